//! What happens to a container while it is on its way, by somebody else's hand.

use std::io::Write as _;
use std::process::{Child, ChildStdin, Command, Stdio};

use tranship_testkit::testbed::Node;

use crate::world::{Outcome, World, finish, get, inspect, is_running, migrate_args, serves, wait_until};

/// Begins a migration and waits until it stands at a place of the source, which is held.
fn hold(world: &World, mode: &str, place: &str) -> Child {
    world.begin_held(&world.a, place, &["--mode", mode])
}

fn let_go(world: &World, child: Child) -> Outcome {
    world.arm(&world.a, "none");
    finish(child)
}

/// Places before and after the freeze.
const PLACES: [&str; 2] = ["source.bulk", "source.frozen"];

#[test]
fn a_container_that_is_removed_meanwhile_ends_it_and_leaves_nothing_there() {
    let world = world!();
    for place in PLACES {
        world.serve(&["-v", "data:/data"]);
        let there = world.b.inventory().unwrap();
        let child = hold(&world, "cold", place);
        world.a.exec_ok(["docker", "rm", "-f", "web"]).unwrap();
        let outcome = let_go(&world, child);
        assert!(matches!(outcome.code, 4 | 5), "{place}: {outcome:?}");
        wait_until(|| world.b.inventory().unwrap() == there);
        assert!(!is_running(&world.b, "web"), "{place}");
        world.a.exec_ok(["docker", "volume", "rm", "data"]).unwrap();
    }
}

#[test]
fn a_container_that_is_renamed_meanwhile_is_the_same_one() {
    let world = world!();
    for place in PLACES {
        world.serve(&["-v", "data:/data"]);
        let child = hold(&world, "cold", place);
        world.a.exec_ok(["docker", "rename", "web", "site"]).unwrap();
        let outcome = let_go(&world, child);
        // By its id it is still the one of the plan; the other side got the name of the plan.
        outcome.expect(0);
        assert!(serves(world.b.address(), 8080), "{place}");
        assert!(!is_running(&world.a, "site"), "{place}");
        world.a.exec_ok(["docker", "rm", "-fv", "site"]).unwrap();
        world.b.exec_ok(["docker", "rm", "-fv", "web"]).unwrap();
        for node in [&world.a, &world.b] {
            node.exec_ok(["docker", "volume", "rm", "-f", "data"]).unwrap();
        }
    }
}

#[test]
fn a_container_that_is_restarted_or_started_meanwhile_ends_it() {
    let world = world!();
    world.serve(&["-v", "data:/data"]);
    let before = world.inventories();
    let child = hold(&world, "cold", "source.bulk");
    world.a.exec_ok(["docker", "restart", "web"]).unwrap();
    let_go(&world, child)
        .expect(4)
        .saying(&["container.changed", "restarted", "hint:"]);
    assert_eq!(world.inventories(), before);
    for mode in ["cold", "warm"] {
        let child = hold(&world, mode, "source.frozen");
        let verb = if mode == "cold" { "start" } else { "unpause" };
        world.a.exec_ok(["docker", verb, "web"]).unwrap();
        let_go(&world, child)
            .expect(4)
            .saying(&["container.changed", "hint:"]);
        wait_until(|| get(world.a.address(), 8080));
        assert_eq!(world.inventories(), before, "{mode}");
    }
}

#[test]
fn a_container_that_exits_meanwhile_ends_it_and_stays_as_its_policy_says() {
    let world = world!();
    let image = world.a.load_image("busybox").unwrap();
    let run = [
        "docker",
        "run",
        "-d",
        "--name",
        "web",
        "-v",
        "data:/data",
        &image,
        "sleep",
        "1000",
    ];
    world.a.exec_ok(run).unwrap();
    let there = world.b.inventory().unwrap();
    let child = hold(&world, "cold", "source.bulk");
    world.a.exec_ok(["docker", "kill", "web"]).unwrap();
    let_go(&world, child)
        .expect(4)
        .saying(&["container.changed", "exited"]);
    assert_eq!(inspect(&world.a, "web", "{{.State.Status}}"), "exited");
    wait_until(|| world.b.inventory().unwrap() == there);
}

#[test]
fn opposite_ways_at_the_same_time_do_not_wait_for_each_other() {
    let world = world!();
    world.serve(&["-v", "data:/data"]);
    let image = world.b.load_image("busybox").unwrap();
    let run = [
        "docker",
        "run",
        "-d",
        "--name",
        "other",
        "-v",
        "more:/data",
        &image,
        "sleep",
        "1000",
    ];
    world.b.exec_ok(run).unwrap();
    let there = world.begin(&["--mode", "cold"]);
    let args = migrate_args("other", "b", "a", &["--mode", "warm"]);
    let back = world.command(&args).spawn().unwrap();
    finish(there).expect(0);
    finish(back).expect(0);
    assert!(serves(world.b.address(), 8080));
    assert!(is_running(&world.a, "other") && !is_running(&world.b, "other"));
}

#[test]
fn a_container_that_still_arrives_does_not_leave_again() {
    let world = world!();
    world.serve(&["-v", "data:/data"]);
    let child = hold(&world, "cold", "source.start");
    let refused = world.migrate_between("b", "a", &["--mode", "cold"]);
    assert!(matches!(refused.code, 1 | 2), "{refused:?}");
    let child_ended = let_go(&world, child);
    child_ended.expect(0);
    assert!(serves(world.b.address(), 8080) && !is_running(&world.a, "web"));
    // And when it is there, it may.
    let options = ["--mode", "cold", "--replace", "--volume-conflict", "replace"];
    world.migrate_between("b", "a", &options).expect(0);
    assert!(serves(world.a.address(), 8080) && !is_running(&world.b, "web"));
}

/// A copy of two files into the volume `data`, the first of which is there.
struct Upload {
    copying: Child,
    input: ChildStdin,
    rest: Vec<u8>,
}

impl Upload {
    fn begin(world: &World, node: &Node, target: &str) -> Self {
        let directory = world.state.path();
        for name in ["late", "later"] {
            std::fs::write(directory.join(name), name).unwrap();
        }
        let mut tar = Command::new("tar");
        let archive = tar
            .arg("-C")
            .arg(directory)
            .args(["-cf", "-", "late", "later"])
            .output();
        let mut archive = archive.unwrap().stdout;
        // The first entry and the header of the second, whose content comes when the test says so.
        let rest = archive.split_off(1536);
        let mut command = world.command(&["cp", "-", target]);
        let mut copying = command.stdin(Stdio::piped()).spawn().unwrap();
        let mut input = copying.stdin.take().unwrap();
        input.write_all(&archive).unwrap();
        wait_until(|| {
            let there = node.sh("ls /var/lib/docker/volumes/data/_data").unwrap();
            there.contains("late")
        });
        Self { copying, input, rest }
    }

    fn end(mut self) -> Outcome {
        self.input.write_all(&self.rest).unwrap();
        drop(self.input);
        finish(self.copying)
    }
}

#[test]
fn nothing_is_copied_into_what_moves_and_nothing_moves_under_a_copy() {
    let world = world!();
    let late = world.state.path().join("late");
    std::fs::write(&late, "late").unwrap();
    let late = late.to_str().unwrap();
    let clean = || {
        for node in [&world.a, &world.b] {
            node.sh("docker rm -fv web; docker volume rm -f data").unwrap();
        }
    };
    for place in PLACES {
        world.serve(&["-v", "data:/data"]);
        let child = hold(&world, "warm", place);
        // What were written after the last look at the source would be acknowledged, and lost.
        for inside in ["web:/data", "web:/", "volume:data:/"] {
            let outcome = world.run(&["cp", late, &format!("ssh://root@a//{inside}")]);
            assert_eq!(outcome.code, 1, "{place}, {inside}: {outcome:?}");
            outcome.saying(&["container.moving", "on its way to", "tranship status"]);
        }
        world
            .run(&["cp", "ssh://root@a//web:/etc/hostname", "-"])
            .expect(0);
        let_go(&world, child).expect(0);
        world.run(&["cp", late, "ssh://root@b//web:/data"]).expect(0);
        clean();
    }

    world.serve(&["-v", "data:/data"]);
    let upload = Upload::begin(&world, &world.a, "ssh://root@a//web:/data");
    world
        .run(&migrate_args("web", "a", "b", &["--mode", "cold"]))
        .expect(1)
        .saying(&["container.copying", "hint:"]);
    assert!(serves(world.a.address(), 8080));
    upload.end().expect(0);
    world
        .run(&migrate_args("web", "a", "b", &["--mode", "cold"]))
        .expect(0);
    let there = world
        .b
        .sh("cd /var/lib/docker/volumes/data/_data && cat late later")
        .unwrap();
    assert_eq!(there, "latelater");
}

#[test]
fn nothing_arrives_in_a_volume_that_is_being_copied_into() {
    let world = world!();
    world.serve(&["-v", "data:/data"]);
    world.b.sh("docker volume create data").unwrap();
    let before = world.inventories();
    let upload = Upload::begin(&world, &world.b, "ssh://root@b//volume:data:/");
    // What is replaced makes way: the copy would go on in it, and be thrown away with it.
    let replace = ["--mode", "cold", "--volume-conflict", "replace"];
    let outcome = world.run(&migrate_args("web", "a", "b", &replace));
    assert_ne!(outcome.code, 0);
    outcome.saying(&["container.copying", "hint:"]);
    assert!(serves(world.a.address(), 8080));
    upload.end().expect(0);
    assert_eq!(world.inventories(), before);
    world.run(&migrate_args("web", "a", "b", &replace)).expect(0);
}
