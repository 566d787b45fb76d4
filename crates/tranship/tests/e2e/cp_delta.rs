//! `tranship cp --delta`: what differs travels, and the result is that of a copy without it.

use std::path::Path;

use serde_json::Value;

use crate::world::{Outcome, World, shell, with_containers};

/// Everything about a tree that a copy keeps, sizes on disk included.
const LOOK: &str = "cd /srv/tree && find . | sort | while read -r f; do stat -c '%n %F %a %u:%g %Y %h' \"$f\"; \
    readlink \"$f\"; [ -f \"$f\" ] && md5sum <\"$f\"; done; true";

/// A tree with a file of 24 MiB, and one with holes.
const MAKE: &str = "mkdir -p /srv/tree/sub && cd /srv/tree && dd if=/dev/urandom of=big bs=1M count=24 2>/dev/null && \
    dd if=/dev/urandom of=sub/holes bs=1M count=1 seek=30 2>/dev/null && \
    echo x >sub/f && ln sub/f sub/g && ln big sub/again && ln -s /nowhere link && mkfifo pipe && chown -h 7:8 sub/f big && \
    chmod 4755 big && touch -d '2001-02-03 04:05:06' sub/f big";

/// One page written, some bytes inserted in front, and a file gone that another one of the same content replaces.
const CHANGE: &str = "cd /srv/tree && cp big sub/new && { echo inserted; cat sub/new; } >big && \
    dd if=/dev/urandom of=big bs=4096 count=1 seek=3000 conv=notrunc 2>/dev/null && rm sub/new && rm sub/f && ln sub/g sub/f";

fn scene() -> Option<World> {
    with_containers("-v data:/data")
}

fn cp(world: &World, options: &[&str], from: &str, to: &str) -> Outcome {
    world.run(&[&["cp", "--json"], options, &[from, to]].concat())
}

fn sent(outcome: &Outcome) -> u64 {
    let json: Value = outcome.json();
    assert_eq!(json["ways"][0]["way"], "difference", "{}", outcome.stdout);
    json["sent"].as_u64().unwrap()
}

/// As busybox writes it of its standard input.
fn md5(path: &Path) -> String {
    let file = std::fs::File::open(path).unwrap();
    let output = std::process::Command::new("md5sum").stdin(file).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Copies twice, with a change in between, and compares with a copy that sends everything.
fn twice(world: &World, from: &str, to: &str, plain: &str) -> (u64, u64) {
    let tree = format!("{from}/tree");
    let fresh = cp(world, &["--delta"], &tree, to).expect(0);
    let all = sent(&fresh);
    shell(&world.a, CHANGE);
    let again = cp(world, &["--delta"], &tree, to).expect(0);
    cp(world, &[], &tree, plain).expect(0);
    (all, sent(&again))
}

#[test]
fn what_differs_travels_between_hosts() {
    let Some(world) = scene() else { return };
    shell(&world.a, MAKE);
    shell(&world.b, "mkdir -p /srv /data/plain");
    let (all, part) = twice(
        &world,
        "ssh://root@a//c1:/srv",
        "ssh://root@b//c1:/srv",
        "ssh://root@b//c1:/data/plain",
    );
    assert!(all > 25 << 20, "{all}");
    assert!(part < 1 << 20, "{part}");
    let look = |directory: &str| shell(&world.b, &LOOK.replace("/srv/tree", directory));
    assert_eq!(look("/srv/tree"), look("/data/plain/tree"));
    assert_eq!(
        shell(&world.b, "du -k /srv/tree/sub/holes | cut -f1").trim(),
        "1024",
        "holes stay holes"
    );
    let left = shell(&world.b, "find /srv /data -name '.tranship*'");
    assert_eq!(left, "");
    // Into a volume that nobody uses, from a container that does not run: the engine gives everything, what is known stays here.
    world.a.exec_ok(["docker", "stop", "-t", "0", "c1"]).unwrap();
    world.b.sh("docker volume create alone").unwrap();
    let to = "ssh://root@b//volume:alone:/";
    cp(&world, &["--delta"], "ssh://root@a//c1:/srv/tree", to).expect(0);
    let again = cp(&world, &["--delta"], "ssh://root@a//c1:/srv/tree", to).expect(0);
    assert!(sent(&again) < 1 << 20, "{}", again.stdout);
    assert_eq!(
        world
            .b
            .sh("md5sum </var/lib/docker/volumes/alone/_data/tree/big")
            .unwrap(),
        shell(&world.b, "md5sum </srv/tree/big")
    );
}

#[test]
fn what_differs_travels_in_and_out() {
    let Some(world) = scene() else { return };
    let here = world.state.path().join("tree");
    std::fs::create_dir_all(here.join("sub")).unwrap();
    let noise = |length: usize| {
        use std::io::Read as _;
        let mut bytes = vec![0; length];
        let mut random = std::fs::File::open("/dev/urandom").unwrap();
        random.read_exact(&mut bytes).unwrap();
        bytes
    };
    let mut content = noise(24 << 20);
    std::fs::write(here.join("big"), &content).unwrap();
    std::fs::write(here.join("sub/small"), "small").unwrap();
    let (source, inside) = (here.to_str().unwrap(), "ssh://root@a//c1:/srv");
    shell(&world.a, "mkdir -p /srv");
    assert!(sent(&cp(&world, &["--delta"], source, inside).expect(0)) > 24 << 20);
    content[10 << 20..(10 << 20) + 100].copy_from_slice(&noise(100));
    std::fs::write(here.join("big"), &content).unwrap();
    assert!(sent(&cp(&world, &["--delta"], source, inside).expect(0)) < 1 << 20);
    let in_container = || shell(&world.a, "md5sum </srv/tree/big");
    assert_eq!(md5(&here.join("big")), in_container());
    let out = world.state.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let target = out.to_str().unwrap();
    let from = "ssh://root@a//c1:/srv/tree";
    assert!(sent(&cp(&world, &["--delta"], from, target).expect(0)) > 24 << 20);
    assert_eq!(md5(&out.join("tree/big")), in_container());
    shell(
        &world.a,
        "printf changed | dd of=/srv/tree/big bs=1 seek=77777 conv=notrunc 2>/dev/null",
    );
    assert!(sent(&cp(&world, &["--delta"], from, target).expect(0)) < 1 << 20);
    assert_ne!(md5(&here.join("big")), in_container());
    assert_eq!(md5(&out.join("tree/big")), in_container());
    // A container that does not run is filled by the engine, which compares nothing.
    world.a.exec_ok(["docker", "stop", "-t", "0", "c1"]).unwrap();
    assert!(sent(&cp(&world, &["--delta"], source, "ssh://root@a//c1:/srv").expect(0)) > 24 << 20);
    let streamed = world.run(&["cp", "--delta", from, "-"]);
    assert_ne!(streamed.code, 0);
    streamed.saying(&["usage.cp", "--delta"]);
    let nowhere = "ssh://root@a//c1:/nowhere/x/";
    let plain = cp(&world, &[], source, nowhere).expect(1);
    assert_eq!(
        cp(&world, &["--delta"], source, nowhere).expect(1).stderr,
        plain.stderr
    );
}
