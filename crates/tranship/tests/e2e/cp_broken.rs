//! Copies that are broken off: nothing half written stays, and with `--partial` the next one goes on within a file.

use std::path::Path;

use tranship_testkit::testbed::Link;

use crate::world::{Outcome, World, finish, program, shell, wait_until, with_containers};

/// Bytes that are there before a copy is interrupted.
const BEGUN: u64 = 4 << 20;
const WHOLE: u64 = 16 << 20;
/// What is said of a copy that an agent made alone.
const WITHIN: &str = "\"within\"";

fn scene() -> Option<World> {
    let world = with_containers("")?;
    for node in [&world.a, &world.b] {
        shell(node, "mkdir -p /srv");
    }
    let all = WHOLE >> 20;
    shell(
        &world.a,
        &format!("dd if=/dev/urandom of=/srv/big bs=1M count={all} 2>/dev/null"),
    );
    // The agents are there: what goes over a slow cable is the copy.
    world
        .run(&["cp", "ssh://root@a//c1:/etc/passwd", "ssh://root@b//c1:/tmp/"])
        .expect(0);
    Some(world)
}

/// What is unfinished in a directory: its size and its name.
fn unfinished(directory: &Path) -> Option<(u64, String)> {
    std::fs::read_dir(directory).unwrap().flatten().find_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = entry.metadata().ok()?.len();
        name.starts_with(".tranship-").then_some((size, name))
    })
}

/// Begins a copy over a slow cable of host a, and interrupts it when a part of the file is there.
fn interrupt(world: &World, args: &[&str], unfinished: impl Fn() -> Option<(u64, String)>) -> Outcome {
    world.a.set_link(Link::Rate("16mbit")).unwrap();
    let copy = world.command(args).spawn().unwrap();
    wait_until(|| unfinished().is_some_and(|(size, name)| size >= BEGUN && !name.contains("partial")));
    let id = copy.id().to_string();
    let kill = std::process::Command::new("kill").args(["-TERM", &id]).status();
    assert!(kill.unwrap().success());
    let outcome = finish(copy);
    world.a.set_link(Link::Up).unwrap();
    outcome.expect(130).saying(&["cp.interrupted"])
}

fn sent(outcome: &Outcome) -> u64 {
    outcome.json()["sent"].as_u64().unwrap()
}

#[test]
fn a_large_file_goes_on_where_it_was_broken_off() {
    let Some(world) = scene() else { return };
    // Into a container of another host, where an older file of that name is.
    shell(&world.b, "echo old >/srv/big");
    let there = world
        .b
        .sh("echo /proc/$(docker inspect -f '{{.State.Pid}}' c1)/root/srv")
        .unwrap();
    let there = world.b.root().unwrap().join(there.trim().trim_start_matches('/'));
    let look = || unfinished(&there);
    let args = [
        "cp",
        "--partial",
        "--json",
        "ssh://root@a//c1:/srv/big",
        "ssh://root@b//c1:/srv/",
    ];
    interrupt(&world, &args, look);
    wait_until(|| look().is_some_and(|(size, name)| size >= BEGUN && name == ".tranship-partial.big"));
    assert_eq!(shell(&world.b, "cat /srv/big"), "old\n", "the old one is whole");
    let outcome = world.run(&args).expect(0);
    assert!(sent(&outcome) < WHOLE - BEGUN / 2, "{}", outcome.stdout);
    assert_eq!(look(), None);
    let sum = shell(&world.a, "md5sum </srv/big");
    assert_eq!(shell(&world.b, "md5sum </srv/big"), sum);

    // The same to this machine, where a copy without --partial leaves nothing.
    let here = world.state.path().join("here");
    std::fs::create_dir(&here).unwrap();
    let target = here.to_str().unwrap();
    interrupt(&world, &["cp", "ssh://root@a//c1:/srv/big", target], || {
        unfinished(&here)
    });
    assert_eq!(std::fs::read_dir(&here).unwrap().count(), 0);
    let args = ["cp", "--partial", "--json", "ssh://root@a//c1:/srv/big", target];
    interrupt(&world, &args, || unfinished(&here));
    assert_eq!(unfinished(&here).unwrap().1, ".tranship-partial.big");
    let outcome = world.run(&args).expect(0);
    assert!(sent(&outcome) < WHOLE - BEGUN / 2, "{}", outcome.stdout);
    assert_eq!(unfinished(&here), None);
    let file = std::fs::File::open(here.join("big")).unwrap();
    let output = std::process::Command::new("md5sum").stdin(file).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), sum);
}

/// On the machine itself the agent reads and writes what its caller sees, not what the agent sees.
#[test]
fn the_agent_of_a_machine_sees_what_its_caller_sees() {
    let Some(world) = scene() else { return };
    let root = world.a.root().unwrap();
    std::fs::copy(program(), root.join("usr/local/bin/tranship")).unwrap();
    let copies = "mkdir -p /mnt/own && tranship cp c1:/etc/group /srv/started && \
        unshare -m sh -ec 'mount -t tmpfs none /mnt/own; mkdir /mnt/own/d; echo mine >/mnt/own/d/f; ln -s /mnt/own/d /mnt/own/l; \
            tranship cp --json /mnt/own/l/f c1:/srv/f; tranship cp --json c1:/etc/passwd /mnt/own/l/; \
            tranship cp /proc/self/comm c1:/srv/comm; ls /mnt/own/d; umount /mnt/own; ls /mnt/own'";
    let told = world.a.sh(copies).unwrap();
    assert!(told.ends_with("f\npasswd\n"), "{told}");
    assert_eq!(told.matches(WITHIN).count(), 2, "{told}");
    assert_eq!(shell(&world.a, "cat /srv/f"), "mine\n");
    // Who may not do what the agent may copies by itself.
    let copies = "cd /srv && setpriv --bounding-set -sys_time tranship cp --json started c1:/srv/less && \
        setpriv --bounding-set -sys_time tranship cp --json c1:/srv/less /srv/back && cmp started back && rm back";
    let told = world.a.sh(copies).unwrap();
    assert!(told.contains("\"bytes\"") && !told.contains(WITHIN), "{told}");
    // In its own root directory, too.
    let copies = "unshare -m sh -ec 'mkdir -p /srv/jail; mount --rbind / /srv/jail; mount -t tmpfs none /srv/jail/mnt; \
        echo jailed >/srv/jail/mnt/f; chroot /srv/jail tranship cp --json /mnt/f c1:/srv/jailed'";
    let told = world.a.sh(copies).unwrap();
    assert!(told.contains(WITHIN), "{told}");
    assert_eq!(shell(&world.a, "cat /srv/jailed"), "jailed\n");
}
