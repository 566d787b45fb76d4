//! What is in the way at the destination, and what comes along and what does not.

use super::{assert_none, compare, volume};
use crate::world::{World, finish, is_running};

const SLEEP: &[&str] = &["sleep", "infinity"];

/// A container with one volume whose data is known, and a volume of that name with other data at `b`.
fn with_a_conflict() -> Option<(World, String)> {
    let world = World::with(tranship_testkit::testbed::Options::default())?;
    let image = world.hold(&["-v", "data:/data"], SLEEP);
    world.b.load_image("python").unwrap();
    world.inside(
        &world.a,
        "echo from a > /data/file; mkdir /data/only-a; head -c 300000 /dev/urandom > /data/only-a/x; mkfifo /data/fifo",
    );
    world
        .b
        .sh("docker volume create --label whose=b data
             cd /var/lib/docker/volumes/data/_data && echo from b > file && mkdir only-b && echo b > only-b/x
             ln file linked; chmod 1775 .; chown 12:34 .; touch -d '2005-05-05 05:05:05.5' only-b .")
        .unwrap();
    Some((world, image))
}

#[test]
fn an_existing_volume_is_refused_reused_or_left_for_another_name() {
    let Some((world, image)) = with_a_conflict() else {
        return;
    };
    let theirs = world.listing(&world.b, &image, "data");
    let before = world.inventories();
    world
        .migrate(&["--mode", "cold"])
        .expect(1)
        .saying(&["volume.exists", "--volume-conflict"]);
    assert_eq!(world.inventories(), before);

    world
        .migrate(&["--mode", "cold", "--volume-conflict", "rename"])
        .expect(0);
    let name = super::volume_at(&world.b, "web", "/data");
    assert!(name != "data" && name.starts_with("data"), "{name}");
    assert_none(&world.differences(&volume("data"), &volume(&name)), "renamed");
    assert_none(
        &compare(&theirs, &world.listing(&world.b, &image, "data")),
        "their volume was touched",
    );
    world
        .b
        .sh(&format!("docker rm -f web && docker volume rm {name}"))
        .unwrap();

    world.a.sh("docker start web").unwrap();
    let round = world
        .migrate(&["--mode", "cold", "--volume-conflict", "reuse", "--json"])
        .expect(0);
    assert_eq!(world.inside(&world.b, "cat /data/file").trim(), "from b");
    assert_none(
        &compare(&theirs, &world.listing(&world.b, &image, "data")),
        "the volume that is used as it is",
    );
    let sent = round.json()[0]["bytes_sent"].as_u64().unwrap();
    assert!(
        sent < 100_000,
        "{sent} bytes were sent although nothing is copied"
    );
}

#[test]
fn a_replaced_volume_comes_back_when_the_move_fails() {
    let Some((world, image)) = with_a_conflict() else {
        return;
    };
    let theirs = world.listing(&world.b, &image, "data");
    let before = world.inventories();
    let replace = ["--volume-conflict", "replace"];
    for (point, node, mode) in [
        ("destination.prepare", &world.b, "cold"),
        ("destination.create", &world.b, "cold"),
        ("destination.element", &world.b, "warm"),
        ("source.delta", &world.a, "cold"),
        ("source.delta-done", &world.a, "warm"),
        ("destination.start", &world.b, "cold"),
        ("destination.started", &world.b, "warm"),
        ("destination.adopt", &world.b, "cold"),
    ] {
        world.arm(node, &format!("{point}=fail"));
        let mut options = vec!["--mode", mode];
        options.extend(replace);
        world.migrate(&options).expect(4).saying(&["rolled back"]);
        world.arm(node, "none");
        assert!(is_running(&world.a, "web"), "{point}");
        assert_eq!(world.inventories(), before, "{point}");
        assert_none(
            &compare(&theirs, &world.listing(&world.b, &image, "data")),
            &format!("their volume after {point}"),
        );
    }
    world
        .migrate(&["--mode", "cold", "--volume-conflict", "replace"])
        .expect(0);
    assert_none(&world.differences(&volume("data"), &volume("data")), "replaced");
    let left = world
        .b
        .sh("ls -A /var/lib/docker/tranship 2> /dev/null || true")
        .unwrap();
    assert!(!left.contains("replaced"), "what made way is still there: {left}");
}

#[test]
fn a_volume_in_use_is_not_replaced() {
    let Some((world, image)) = with_a_conflict() else {
        return;
    };
    world
        .b
        .sh(&format!(
            "docker run -d --name theirs -v data:/data {image} sleep infinity"
        ))
        .unwrap();
    let before = world.inventories();
    world
        .migrate(&["--mode", "cold", "--volume-conflict", "replace"])
        .expect(1)
        .saying(&["volume.in-use", "theirs"]);
    assert_eq!(world.inventories(), before);
}

#[test]
fn parts_of_the_state_come_along_as_asked() {
    let world = world!();
    let image = world.hold(&["-v", "one:/one", "-v", "two:/two", "-v", "/three"], SLEEP);
    world.inside(
        &world.a,
        "for d in /one /two /three /root; do
             mkdir -p $d/cache $d/deep/cache $d/deep/deeper; echo x > $d/keep.txt; echo x > $d/drop.log
             echo x > $d/cache/x; echo x > $d/deep/cache/y; echo x > $d/deep/deeper/drop.log; echo x > $d/deep/deeper/keep
         done",
    );
    let files = |path: &str| world.inside(&world.b, &format!("cd {path} && find . -type f | sort"));
    let clear = || {
        world.b.sh("docker rm -f web; docker volume prune -af").unwrap();
        world.a.sh("docker start web").unwrap();
    };
    let all =
        "./cache/x\n./deep/cache/y\n./deep/deeper/drop.log\n./deep/deeper/keep\n./drop.log\n./keep.txt\n";

    world.migrate(&["--mode", "cold", "--volume", "one"]).expect(0);
    assert_eq!(
        (
            files("/one").as_str(),
            files("/two").as_str(),
            files("/three").as_str()
        ),
        (all, "", "")
    );
    clear();
    world
        .migrate(&[
            "--mode",
            "warm",
            "--exclude-volume",
            "/three",
            "--exclude-volume",
            "two",
        ])
        .expect(0);
    assert_eq!(
        (
            files("/one").as_str(),
            files("/two").as_str(),
            files("/three").as_str()
        ),
        (all, "", "")
    );
    assert!(files("/root").contains("keep.txt"));
    clear();
    world
        .migrate(&["--mode", "cold", "--volume", "nonesuch"])
        .expect(1)
        .saying(&["mount.no-such", "nonesuch"]);
    world
        .migrate(&["--mode", "cold", "--exclude", "*.log", "--exclude", "/cache/"])
        .expect(0);
    let rest = "./deep/cache/y\n./deep/deeper/keep\n./keep.txt\n";
    for path in ["/one", "/two", "/three"] {
        assert_eq!(files(path), rest, "{path}");
    }
    assert!(!files("/root").contains("drop.log"));
    clear();
    // A path that stays behind is no reason to remove what the destination has there, nor is its absence a difference.
    world
        .migrate(&[
            "--mode",
            "cold",
            "--exclude",
            "cache/",
            "--exclude",
            "/deep/deeper",
        ])
        .expect(0);
    assert_eq!(files("/two"), "./drop.log\n./keep.txt\n");
    drop(image);
}

#[test]
fn containers_that_share_a_volume_move_together_or_not_at_all() {
    let world = world!();
    let image = world.hold(&["-v", "data:/data", "-v", "own:/own"], SLEEP);
    world
        .a
        .sh(&format!(
            "docker run -d --name beside --stop-signal KILL -v data:/elsewhere -v other:/other {image} sleep infinity
             docker run -d --name stranger --stop-signal KILL -v unrelated:/data {image} sleep infinity"
        ))
        .unwrap();
    world.inside(
        &world.a,
        "echo shared > /data/file; echo own > /own/file; echo w > /root/w",
    );
    world
        .a
        .sh("docker exec beside sh -c 'echo other > /other/file; echo b > /root/b'")
        .unwrap();
    let before = world.inventories();
    world
        .migrate(&["--mode", "cold"])
        .expect(1)
        .saying(&["volume.shared", "beside", "--with-dependents"]);
    assert_eq!(world.inventories(), before);

    // Together, and all back if it fails.
    for (node, point) in [(&world.b, "destination.started"), (&world.a, "source.delta-done")] {
        world.arm(node, &format!("{point}=fail"));
        world.migrate(&["--mode", "warm", "--with-dependents"]).expect(4);
        world.arm(node, "none");
        assert_eq!(world.inventories(), before, "{point}");
        assert!(is_running(&world.a, "web") && is_running(&world.a, "beside"));
    }
    world.migrate(&["--mode", "cold", "--with-dependents"]).expect(0);
    for name in ["web", "beside"] {
        assert!(
            is_running(&world.b, name) && !is_running(&world.a, name),
            "{name}"
        );
    }
    assert!(is_running(&world.a, "stranger"));
    for name in ["data", "own", "other"] {
        assert_none(&world.differences(&volume(name), &volume(name)), name);
    }
    world.inside(
        &world.b,
        "echo more >> /data/file; test -e /root/w; ! test -e /root/b",
    );
    let seen = world
        .b
        .sh("docker exec beside sh -c 'cat /elsewhere/file /other/file /root/b'")
        .unwrap();
    assert_eq!(seen, "shared\nmore\nother\nb\n");
}

#[test]
fn a_bind_mount_comes_along_only_if_it_is_asked_for() {
    let world = world!();
    world
        .a
        .sh("mkdir -p /srv/site/deep /srv/shared && echo a > /srv/site/deep/page && echo a > /srv/shared/x
             chown 7:8 /srv/site && chmod 2770 /srv/site && touch -d '2011-11-11 11:11:11.11' /srv/site/deep /srv/site")
        .unwrap();
    world.b.sh("mkdir /srv/shared && echo b > /srv/shared/x").unwrap();
    world.hold(&["-v", "/srv/site:/site", "-v", "/srv/shared:/shared:ro"], SLEEP);
    let before = world.inventories();
    world
        .migrate(&["--mode", "cold"])
        .expect(1)
        .saying(&["bind.present", "--include-bind", "--shared-bind"]);
    let asked = [
        "--mode",
        "cold",
        "--include-bind",
        "/site",
        "--shared-bind",
        "/shared",
    ];
    world.arm(&world.b, "destination.started=fail");
    world.migrate(&asked).expect(4);
    world.arm(&world.b, "none");
    assert_eq!(world.inventories(), before);
    assert_eq!(
        world.b.sh("ls -A /srv").unwrap(),
        "shared\n",
        "what was made for it is gone again"
    );

    world.migrate(&asked).expect(0);
    assert_none(&world.differences("/srv/site", "/srv/site"), "the directory");
    world.inside(
        &world.b,
        "test $(cat /site/deep/page) = a; test $(cat /shared/x) = b",
    );
    assert_eq!(world.b.sh("cat /srv/shared/x").unwrap(), "b\n");

    // What is there already is nobody's to overwrite, unless told so; then it comes back if the move fails.
    world
        .b
        .sh("docker rm -f web && rm -r /srv/site/* && echo precious > /srv/site/theirs")
        .unwrap();
    world.a.sh("docker start web").unwrap();
    world.migrate(&asked).expect(1).saying(&["bind.exists"]);
    let replace = [&asked[..], &["--volume-conflict", "replace"]].concat();
    world.arm(&world.b, "destination.started=fail");
    world.migrate(&replace).expect(4);
    world.arm(&world.b, "none");
    assert_eq!(
        world.b.sh("cat /srv/site/theirs && ls /srv/site").unwrap(),
        "precious\ntheirs\n"
    );
    world.migrate(&replace).expect(0);
    assert_none(&world.differences("/srv/site", "/srv/site"), "replaced");
}

#[test]
fn a_directory_that_others_use_or_mount_into_is_not_carried_without_a_word() {
    let world = world!();
    world
        .a
        .sh("mkdir -p /srv/site/deep/disk && echo a > /srv/site/page && mount -t tmpfs none /srv/site/deep/disk
             echo theirs > /srv/site/deep/disk/file")
        .unwrap();
    let image = world.hold(&["-v", "/srv/site:/site", "-v", "data:/data"], SLEEP);
    let asked = ["--mode", "cold", "--include-bind", "/site"];
    let before = world.inventories();
    world
        .migrate(&asked)
        .expect(1)
        .saying(&["files.mounted-below", "deep/disk", "--exclude '/deep/disk'"]);
    world
        .a
        .sh(&format!(
            "docker run -d --name reader -v /srv/site/deep:/x:ro {} sleep 100000",
            image
        ))
        .unwrap();
    world.migrate(&asked).expect(1).saying(&["bind.shared", "reader"]);
    world.a.sh("docker rm -f reader").unwrap();
    assert_eq!(world.inventories(), before);
    // It is mounted when the plan is made already: what comes later, the scan itself finds.
    world.a.sh("umount /srv/site/deep/disk").unwrap();
    let moving = world.begin_held(&world.a, "source.bulk", &asked);
    world.a.sh("mount -t tmpfs none /srv/site/deep/disk").unwrap();
    world.arm(&world.a, "none");
    finish(moving).expect(4).saying(&["files.mounted-below"]);
    assert_eq!(world.inventories(), before);
    let with = [&asked[..], &["--exclude", "/deep/disk"]].concat();
    world.migrate(&with).expect(0);
    assert_eq!(world.inside(&world.b, "cat /site/page && ls /site/deep"), "a\n");
    world.a.sh("umount /srv/site/deep/disk").unwrap();
}

#[test]
fn a_bind_mount_of_one_file_comes_along_or_is_refused_before_a_byte_moves() {
    let world = world!();
    world
        .a
        .sh("echo one > /srv/one-file; chown 7:8 /srv/one-file; chmod 640 /srv/one-file")
        .unwrap();
    world.hold(&["-v", "/srv/one-file:/etc/one"], SLEEP);
    let outcome = world.migrate(&["--mode", "cold", "--include-bind", "/etc/one"]);
    if outcome.code == 1 {
        outcome.saying(&["bind.", "/srv/one-file"]);
        assert_eq!(world.b.sh("ls -A /srv").unwrap(), "");
        return;
    }
    outcome.expect(0);
    assert_eq!(world.inside(&world.b, "cat /etc/one"), "one\n");
    assert_eq!(
        world.b.sh("stat -c '%F %u %g %a' /srv/one-file").unwrap(),
        "regular file 7 8 640\n"
    );
}

#[test]
fn a_tmpfs_comes_along_in_warm_mode_only() {
    let world = world!();
    world.hold(
        &[
            "--tmpfs",
            "/scratch:size=8m,mode=1770",
            "--mount",
            "type=tmpfs,dst=/other",
        ],
        SLEEP,
    );
    world.inside(
        &world.a,
        "mkdir /scratch/deep; head -c 100000 /dev/urandom > /scratch/deep/x; ln /scratch/deep/x /scratch/y
         mkfifo /scratch/f; touch -d '2001-01-01 01:01:01' /scratch/deep; echo gone > /other/x; chown 5:6 /scratch/f",
    );
    let look = "cd /scratch && find . | sort | xargs stat -c '%n %f %u %g %h %s %y' && sha256sum deep/x";
    let before = world.inside(&world.a, look);
    world
        .migrate(&["--mode", "cold", "--include-tmpfs", "/scratch"])
        .expect(1)
        .saying(&["tmpfs.mode", "--mode warm"]);
    world
        .migrate(&["--mode", "warm", "--include-tmpfs", "/scratch"])
        .expect(0);
    assert_eq!(world.inside(&world.b, look), before);
    world.inside(&world.b, "! test -e /other/x");
}
