//! `tranship volume`: volumes by themselves, across hosts, as archives and as snapshots.

use std::process::Stdio;

use super::{assert_none, volume};
use crate::world::{World, finish, is_running, wait_until};

/// A volume that a running container writes to, with some of everything.
fn scene() -> Option<World> {
    let world = World::with(Default::default())?;
    world
        .a
        .sh("docker volume create --label kind=precious --label 'odd=a b=\"c\"' data")
        .unwrap();
    world.hold(
        &["-v", "data:/data"],
        &["sh", "-c", "while :; do date +%N >> /data/log; done"],
    );
    world
        .a
        .sh("cd /var/lib/docker/volumes/data/_data && mkdir -p deep/er && head -c 9000000 /dev/urandom > deep/random
             ln deep/random deep/er/again; ln -s ../random deep/er/link; mkfifo pipe; truncate -s 4M holes; echo end >> holes
             setfacl -m u:1234:rw deep 2>/dev/null; chown 77:88 deep; chmod 2751 deep; touch -d '2003-04-05 06:07:08.09' deep/random")
        .unwrap();
    Some(world)
}

/// What the rest of a failed import or copy would be.
fn volumes(world: &World) -> String {
    world.b.sh("docker volume ls -q").unwrap()
}

#[test]
fn a_volume_is_copied_live_frozen_again_and_from_a_snapshot() {
    let Some(world) = scene() else { return };
    // While it is written to, a copy is what it was at some moment; the rest is exact.
    world
        .run(&["volume", "copy", "ssh://root@a//data", "ssh://root@b//"])
        .expect(0);
    let labels = |node: &tranship_testkit::testbed::Node, name: &str| {
        node.sh(&format!("docker volume inspect -f '{{{{json .Labels}}}}' {name}"))
            .unwrap()
    };
    assert_eq!(labels(&world.b, "data"), labels(&world.a, "data"));
    world
        .run(&["volume", "copy", "ssh://root@a//data", "ssh://root@b//data"])
        .expect(1)
        .saying(&["volume.exists", "--update"]);
    world
        .run(&[
            "volume",
            "copy",
            "--update",
            "--freeze",
            "ssh://root@a//data",
            "ssh://root@b//data",
        ])
        .expect(0);
    assert!(is_running(&world.a, "web"), "it goes on after the freeze");
    let paused = world.a.sh("docker inspect -f '{{.State.Paused}}' web").unwrap();
    assert_eq!(paused.trim(), "false");

    let taken = world
        .run(&["volume", "snapshot", "--freeze", "--json", "ssh://root@a//data"])
        .expect(0)
        .json();
    let time = taken["timestamp"].as_u64().unwrap();
    world.a.sh("docker kill web").unwrap();
    world
        .a
        .sh("rm -r /var/lib/docker/volumes/data/_data/deep")
        .unwrap();
    let snapshot = format!("ssh://root@a//data@{time}");
    world
        .run(&["volume", "copy", &snapshot, "ssh://root@b//then"])
        .expect(0);
    world
        .run(&["volume", "verify", &snapshot, "ssh://root@b//then"])
        .expect(0);
    let differs = world
        .run(&["volume", "verify", "ssh://root@a//data", "ssh://root@b//then"])
        .expect(1);
    assert!(differs.stdout.contains("deep/random"), "{}", differs.stdout);
    // Nothing uses it any more: one round is exact, and takes away what has gone.
    world
        .run(&[
            "volume",
            "copy",
            "--update",
            "ssh://root@a//data",
            "ssh://root@b//data",
        ])
        .expect(0);
    assert_none(&world.differences(&volume("data"), &volume("data")), "updated");
    world
        .run(&["volume", "verify", "ssh://root@a//data", "ssh://root@b//data"])
        .expect(0);
    let listed = world.run(&["volume", "ls", "ssh://root@a"]).expect(0);
    assert!(
        listed.stdout.contains("data") && listed.stdout.contains("web"),
        "{}",
        listed.stdout
    );
    world.run(&["volume", "snapshot", "--rm", &snapshot]).expect(0);
    let gone = world.run(&["volume", "copy", &snapshot, "ssh://root@b//then2"]);
    assert_ne!(gone.code, 0);
    assert!(!volumes(&world).contains("then2"));
}

#[test]
fn a_volume_becomes_an_archive_and_a_volume_again() {
    let Some(world) = scene() else { return };
    world.a.sh("docker kill web").unwrap();
    let file = world.state.path().join("data.tar");
    let file = file.to_str().unwrap();
    world
        .run(&["volume", "export", "ssh://root@a//data", "-o", file])
        .expect(0);
    world
        .run(&[
            "volume",
            "import",
            "ssh://root@b//back",
            file,
            "--label",
            "from=archive",
        ])
        .expect(0);
    world
        .run(&["volume", "verify", "ssh://root@a//data", "ssh://root@b//back"])
        .expect(0);
    assert_none(
        &world.differences(&volume("data"), &volume("back")),
        "from the archive",
    );
    world
        .run(&["volume", "import", "ssh://root@b//back", file])
        .expect(1)
        .saying(&["volume.exists"]);
    // A part of an archive is no volume.
    let part = world.state.path().join("part.tar");
    let whole = std::fs::read(file).unwrap();
    std::fs::write(&part, &whole[..whole.len() / 2]).unwrap();
    let broken = world.run(&["volume", "import", "ssh://root@b//part", part.to_str().unwrap()]);
    assert_ne!(broken.code, 0);
    assert!(broken.stderr.contains("error[archive."), "{}", broken.stderr);
    assert!(!volumes(&world).contains("part"), "{}", volumes(&world));
}

#[test]
fn what_an_agent_that_was_killed_had_not_filled_is_gone_when_it_comes_back() {
    let Some(world) = scene() else { return };
    world.a.sh("docker kill web").unwrap();
    // Enough to be under way for long after the first file is there.
    world
        .a
        .sh("head -c 80000000 /dev/urandom > /var/lib/docker/volumes/data/_data/later")
        .unwrap();
    world.b.sh("docker volume create other").unwrap();
    let copy = ["volume", "copy", "ssh://root@a//data", "ssh://root@b//copied"];
    let slowly = [&copy[..], &["--limit-rate", "2M", "--compress", "none"]].concat();
    let mut copying = world.command(&slowly).spawn().unwrap();
    let mut importing = world
        .command(&["volume", "import", "ssh://root@b//imported", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let open = importing.stdin.take();
    wait_until(|| {
        let there = volumes(&world);
        there.contains("copied") && there.contains("imported")
    });
    // Which file comes first is not settled; that some of the volume has come is.
    let mut ended = false;
    wait_until(|| {
        ended = ended || copying.try_wait().unwrap().is_some();
        ended
            || world
                .b
                .sh("test $(du -sk /var/lib/docker/volumes/copied/_data | cut -f1) -gt 1000")
                .is_ok()
    });
    if ended {
        let outcome = finish(copying);
        panic!(
            "the copy ended by itself, with {}: {}",
            outcome.code, outcome.stderr
        );
    }
    assert!(world.b.kill_running("agent --serve") > 0);
    assert_ne!(finish(copying).code, 0);
    drop(open);
    assert_ne!(finish(importing).code, 0);
    assert!(
        volumes(&world).contains("copied"),
        "nobody was left to take it away"
    );
    // One that somebody made under the name meanwhile is theirs.
    world
        .b
        .sh("docker volume rm imported && docker volume create imported && echo theirs > /var/lib/docker/volumes/imported/_data/x")
        .unwrap();
    world.run(&["doctor", "ssh://root@b"]);
    wait_until(|| !volumes(&world).contains("copied"));
    assert_eq!(volumes(&world), "imported\nother\n");
    assert_eq!(
        world
            .b
            .sh("cat /var/lib/docker/volumes/imported/_data/x")
            .unwrap(),
        "theirs\n"
    );
    // The next try begins with what arrived.
    world.run(&copy).expect(0);
    world
        .run(&["volume", "verify", "ssh://root@a//data", "ssh://root@b//copied"])
        .expect(0);
}
