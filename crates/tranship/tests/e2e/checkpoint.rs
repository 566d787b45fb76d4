//! Memory that is kept on its node, and goes on from there.

use std::time::{Duration, Instant};

use serde_json::Value;
use tranship_testkit::testbed::Node;

use crate::live::{life, nothing_dumped, numbers, without_gap};
use crate::world::{Outcome, World, finish, inspect, is_running, reached, wait_until};

/// Where checkpoints lie on a node.
pub(crate) const STORE: &str = "/var/lib/docker/tranship/checkpoints";

impl World {
    /// `tranship checkpoint VERB ssh://root@a//web…` with these options.
    pub(crate) fn checkpoint(&self, verb: &str, what: &str, options: &[&str]) -> Outcome {
        let address = format!("ssh://root@a//{what}");
        let mut args = vec!["checkpoint", verb, address.as_str()];
        args.extend(options);
        self.run(&args)
    }

    /// What `tranship checkpoint ls` has.
    pub(crate) fn checkpoints(&self) -> Vec<Value> {
        let list = self
            .run(&["checkpoint", "ls", "ssh://root@a", "--json"])
            .expect(0);
        list.json().as_array().unwrap().clone()
    }

    pub(crate) fn policy(&self) -> String {
        inspect(&self.a, "web", "{{.HostConfig.RestartPolicy.Name}}")
    }
}

pub(crate) fn state(node: &Node) -> String {
    inspect(node, "web", "{{.State.Status}}")
}

/// It counts on from the last number that is there, or from one that was counted when the checkpoint was made.
#[track_caller]
pub(crate) fn counts_on(world: &World) {
    let count = numbers(&world.a).len();
    wait_until(|| numbers(&world.a).len() > count + 5);
}

#[test]
fn a_counter_goes_on_from_its_checkpoint_once() {
    let world = world!();
    world.count(&["-v", "data:/srv"]);
    let made = world
        .checkpoint("create", "web", &["--name", "one", "--json"])
        .expect(0)
        .json();
    assert_eq!(made["name"], "one");
    assert_eq!(made["left_running"], false);
    assert_eq!(
        made["compared"],
        serde_json::json!(["the container's layer", "volume data"])
    );
    assert_eq!(state(&world.a), "exited");
    assert_eq!(world.policy(), "no", "a restart of the engine does not start it");
    nothing_dumped(&world.a);
    let before = numbers(&world.a);

    let list = world.checkpoints();
    assert_eq!((list.len(), &list[0]["state"]), (1, &Value::from("ready")));
    let table = world.run(&["checkpoint", "ls", "ssh://root@a"]).expect(0).stdout;
    assert!(table.contains("web") && table.contains("one"), "{table}");
    let modes = world.a.sh(&format!("find {STORE} -printf '%m %y\\n' | sort -u"));
    assert_eq!(modes.unwrap().trim(), "600 f\n700 d");
    // The shell's script is in the memory of the process.
    let plain = world
        .a
        .sh(&format!("grep -rlaF 'while :; do' {STORE} || true"))
        .unwrap();
    assert_eq!(plain, "", "it can be read on the disk");
    world
        .checkpoint("create", "web", &[])
        .expect(1)
        .saying(&["checkpoint.not-running"]);

    world.checkpoint("restore", "web@one", &[]).expect(0);
    counts_on(&world);
    let all = numbers(&world.a);
    without_gap(&all);
    assert!(all.len() > before.len());
    nothing_dumped(&world.a);
    assert_eq!(world.policy(), "always");
    assert!(world.checkpoints().is_empty(), "it goes on from it once");
    let left = world.a.sh(&format!("ls -A {STORE}")).unwrap();
    assert_eq!(left, "");
    // The engine keeps its books as for any container.
    let said = world
        .a
        .exec_ok(["docker", "exec", "web", "echo", "hello"])
        .unwrap();
    assert_eq!(said.trim(), "hello");
    world.a.exec_ok(["docker", "stop", "-t", "0", "web"]).unwrap();
    assert_eq!(state(&world.a), "exited");
    world
        .checkpoint("restore", "web@one", &[])
        .expect(1)
        .saying(&["checkpoint.not-found"]);
}

#[test]
fn memory_goes_on_only_with_the_files_that_it_knows() {
    let world = world!();
    world.count(&["-v", "data:/srv"]);
    world.checkpoint("create", "web", &["--name", "one"]).expect(0);
    world
        .a
        .sh("echo x > /var/lib/docker/volumes/data/_data/new")
        .unwrap();
    world
        .checkpoint("restore", "web", &[])
        .expect(1)
        .saying(&["checkpoint.files-changed", "volume data"]);
    assert_eq!(state(&world.a), "exited");
    world.a.sh("rm /var/lib/docker/volumes/data/_data/new").unwrap();
    world
        .a
        .sh("echo x > /tmp/x && docker cp /tmp/x web:/etc/x")
        .unwrap();
    world
        .checkpoint("restore", "web", &[])
        .expect(1)
        .saying(&["checkpoint.files-changed", "the container's layer"]);
    world
        .checkpoint("restore", "web", &["--changed-files"])
        .expect(0)
        .saying(&["files changed since"]);
    counts_on(&world);
    without_gap(&numbers(&world.a));
}

#[test]
fn one_that_was_started_since_is_not_overtaken() {
    let world = world!();
    world.count(&[]);
    world.checkpoint("create", "web", &["--name", "one"]).expect(0);
    world.a.exec_ok(["docker", "start", "web"]).unwrap();
    world.a.exec_ok(["docker", "stop", "-t", "0", "web"]).unwrap();
    for options in [&[][..], &["--changed-files"]] {
        world
            .checkpoint("restore", "web", options)
            .expect(1)
            .saying(&["checkpoint.started-since"]);
    }
    assert_eq!(world.checkpoints()[0]["state"], "started-since");
    // It runs, and so it is here that it belongs: its policy comes back.
    world.a.exec_ok(["docker", "start", "web"]).unwrap();
    world.checkpoint("rm", "web@one", &[]).expect(0);
    assert!(world.checkpoints().is_empty());
    assert_eq!(world.policy(), "always");
    world
        .checkpoint("rm", "web@one", &[])
        .expect(1)
        .saying(&["checkpoint.not-found"]);

    // A later checkpoint knows the policy that an earlier one has parked, and waits on when that one is removed.
    world.checkpoint("create", "web", &["--name", "old"]).expect(0);
    world.a.exec_ok(["docker", "start", "web"]).unwrap();
    assert_eq!(world.policy(), "no");
    world.checkpoint("create", "web", &["--name", "new"]).expect(0);
    world.checkpoint("rm", "web@old", &[]).expect(0);
    assert_eq!(world.policy(), "no", "it waits for the other one");
    // By the name that it had, as well.
    world.a.exec_ok(["docker", "rename", "web", "other"]).unwrap();
    world.checkpoint("rm", "web@new", &[]).expect(0);
    world.a.exec_ok(["docker", "rename", "other", "web"]).unwrap();
    assert_eq!(world.policy(), "always");

    // One whose container is gone is removed all the same.
    world.a.exec_ok(["docker", "start", "web"]).unwrap();
    world.checkpoint("create", "web", &["--name", "two"]).expect(0);
    world.a.exec_ok(["docker", "rm", "web"]).unwrap();
    assert_eq!(world.checkpoints()[0]["state"], "container-gone");
    world
        .checkpoint("restore", "web@two", &[])
        .expect(1)
        .saying(&["checkpoint.container-gone"]);
    world.checkpoint("rm", "web@two", &[]).expect(0);
    assert!(world.checkpoints().is_empty());
}

#[test]
fn one_that_runs_on_can_go_back() {
    let world = world!();
    world.count(&[]);
    let as_it_was = life(&world.a);
    let options = ["--name", "one", "--leave-running"];
    world.checkpoint("create", "web", &options).expect(0);
    assert_eq!(life(&world.a), as_it_was, "it was not ended");
    nothing_dumped(&world.a);
    counts_on(&world);
    without_gap(&numbers(&world.a));
    assert_eq!(world.policy(), "always");
    world
        .checkpoint("create", "web", &options)
        .expect(1)
        .saying(&["checkpoint.exists"]);
    world
        .checkpoint("restore", "web", &[])
        .expect(1)
        .saying(&["checkpoint.running"]);
    for _ in 0..2 {
        world.a.exec_ok(["docker", "stop", "-t", "0", "web"]).unwrap();
        let counted = numbers(&world.a);
        world.checkpoint("restore", "web", &[]).expect(0);
        wait_until(|| numbers(&world.a).len() > counted.len() + 5);
        let after = numbers(&world.a).split_off(counted.len());
        without_gap(&after);
        assert!(
            after[0] <= *counted.last().unwrap() && after[0] > 5,
            "it did not go back: {} after {}",
            after[0],
            counted.last().unwrap()
        );
        assert_eq!(world.checkpoints().len(), 1, "it stays");
        nothing_dumped(&world.a);
    }
    // What it wrote since is not known to what is in the checkpoint.
    world
        .a
        .exec_ok(["docker", "exec", "web", "sh", "-c", "echo x > /root/written"])
        .unwrap();
    world.a.exec_ok(["docker", "stop", "-t", "0", "web"]).unwrap();
    world
        .checkpoint("restore", "web", &[])
        .expect(1)
        .saying(&["checkpoint.files-changed"]);
    world.checkpoint("restore", "web", &["--changed-files"]).expect(0);
    counts_on(&world);
    world.checkpoint("rm", "web@one", &[]).expect(0);
    assert!(is_running(&world.a, "web"));
}

#[test]
fn what_is_damaged_on_the_disk_is_not_restored() {
    let world = world!();
    world.count(&[]);
    world.checkpoint("create", "web", &["--name", "one"]).expect(0);
    let flip = format!(
        "f=$(echo {STORE}/*/one/memory.sealed); printf X | dd of=$f bs=1 seek=5000 conv=notrunc 2>/dev/null"
    );
    let keep = format!("cp -a {STORE} /var/lib/docker/tranship/kept");
    let back = format!("rm -r {STORE}; cp -a /var/lib/docker/tranship/kept {STORE}");
    world.a.sh(&keep).unwrap();
    let refused = |code: &str| {
        world.checkpoint("restore", "web", &[]).expect(1).saying(&[code]);
        assert_eq!(state(&world.a), "exited");
        assert_eq!(world.policy(), "no");
        nothing_dumped(&world.a);
    };
    world.a.sh(&flip).unwrap();
    refused("checkpoint.damaged");
    world.a.sh(&back).unwrap();
    // Another description does not open the content, even where it says what might be.
    let lie = format!("sed -i 's/\"image_bytes\":/\"image_bytes\":9/' {STORE}/*/one/checkpoint.json");
    world.a.sh(&lie).unwrap();
    refused("checkpoint.damaged");
    world.a.sh(&back).unwrap();
    let key = "/var/lib/tranship/agent/checkpoint.key";
    let mode = world.a.sh(&format!("stat -c %a {key}")).unwrap();
    assert_eq!(mode.trim(), "600");
    world.a.sh(&format!("mv {key} /root/key")).unwrap();
    refused("checkpoint.key");
    world.a.sh(&format!("mv /root/key {key}")).unwrap();
    world.checkpoint("restore", "web", &[]).expect(0);
    counts_on(&world);
    without_gap(&numbers(&world.a));
}

#[test]
fn a_restore_that_the_engine_refuses_can_be_tried_again() {
    let world = world!();
    world.count(&["-p", "8080:8080"]);
    world.checkpoint("create", "web", &["--name", "one"]).expect(0);
    world
        .a
        .sh("setsid busybox nc -ll -p 8080 -e cat > /dev/null 2>&1 < /dev/null & echo kill $! > /tmp/undo; sleep 0.3")
        .unwrap();
    world.checkpoint("restore", "web", &[]).expect(1);
    assert_ne!(state(&world.a), "running");
    assert_eq!(world.policy(), "no");
    assert_eq!(world.checkpoints()[0]["state"], "ready");
    nothing_dumped(&world.a);
    world.a.sh("sh /tmp/undo").unwrap();
    world.checkpoint("restore", "web", &[]).expect(0);
    counts_on(&world);
    without_gap(&numbers(&world.a));
}

#[test]
fn what_cannot_be_dumped_is_told_and_runs_on() {
    let world = world!();
    let image = world.a.load_image("python").unwrap();
    for (options, code) in [
        (&["-t"][..], "live.terminal"),
        (&["--rm"], "checkpoint.auto-remove"),
    ] {
        let mut args = vec!["docker", "run", "-d", "--name", "web"];
        args.extend(options);
        args.extend([image.as_str(), "sleep", "86400"]);
        world.a.exec_ok(&args).unwrap();
        world.checkpoint("create", "web", &[]).expect(1).saying(&[code]);
        assert!(is_running(&world.a, "web"));
        world.a.exec_ok(["docker", "rm", "-f", "web"]).unwrap();
    }
    assert!(world.checkpoints().is_empty());
}

#[test]
fn moves_copies_and_checkpoints_keep_out_of_each_others_way() {
    let world = world!();
    world.count(&[]);
    let child = world.begin_held(&world.a, "source.freeze", &["--mode", "live"]);
    world
        .checkpoint("create", "web", &[])
        .expect(1)
        .saying(&["container.moving"]);
    world.arm(&world.a, "source.freeze=fail");
    finish(child).expect(4);

    world.arm(&world.a, "checkpoint.sealed=hold");
    let args = [
        "checkpoint",
        "create",
        "ssh://root@a//web",
        "--name",
        "one",
        "--leave-running",
    ];
    let child = world.command(&args).spawn().unwrap();
    wait_until(|| reached(&world.a, "checkpoint.sealed"));
    world
        .migrate(&["--mode", "cold"])
        .expect(1)
        .saying(&["container.checkpointing"]);
    let file = world.state.path().join("file");
    std::fs::write(&file, "x").unwrap();
    world
        .run(&["cp", file.to_str().unwrap(), "ssh://root@a//web:/etc/"])
        .expect(1)
        .saying(&["container.checkpointing"]);
    world
        .checkpoint("create", "web", &["--name", "two"])
        .expect(1)
        .saying(&["container.checkpointing"]);
    assert!(world.checkpoints().is_empty(), "it is listed before it is whole");
    world.arm(&world.a, "");
    finish(child).expect(0);
    assert_eq!(world.checkpoints().len(), 1);
    counts_on(&world);
    without_gap(&numbers(&world.a));
    // Where it goes, its checkpoints stay behind, and nothing goes on from them.
    world.migrate(&["--mode", "cold"]).expect(0);
    assert!(!is_running(&world.a, "web"));
    assert_eq!(world.checkpoints()[0]["state"], "moved");
    for options in [&[][..], &["--changed-files"]] {
        world
            .checkpoint("restore", "web@one", options)
            .expect(1)
            .saying(&["container.moved"]);
    }
    assert!(!is_running(&world.a, "web"));
    world.checkpoint("rm", "web@one", &[]).expect(0);
    assert_eq!(world.policy(), "no");
}

#[test]
fn one_that_waits_does_not_move_and_one_that_moved_is_not_started_at_its_source() {
    let world = world!();
    world.count(&[]);
    world.checkpoint("create", "web", &["--name", "one"]).expect(0);
    assert_eq!(world.policy(), "no");
    world
        .migrate(&["--mode", "cold"])
        .expect(1)
        .saying(&["container.not-running"]);
    assert_eq!(world.policy(), "no");
    // Started by hand it moves, without a word of its checkpoint, which says nothing of its restart policy any more.
    world.a.exec_ok(["docker", "start", "web"]).unwrap();
    world.migrate(&["--mode", "cold"]).expect(0);
    assert_eq!(world.checkpoints()[0]["state"], "moved");
    world
        .checkpoint("restore", "web@one", &["--changed-files"])
        .expect(1)
        .saying(&["container.moved"]);
    world.checkpoint("rm", "web@one", &[]).expect(0);
    assert_eq!(world.policy(), "no", "a reboot would start it here as well");
    assert!(!is_running(&world.a, "web"));
}

#[test]
fn engines_that_go_away_while_a_checkpoint_is_made_or_restored() {
    // Killed while it is about to restore: the order does not reach it, and the checkpoint is as good as before.
    let world = world!();
    world.count(&[]);
    world.checkpoint("create", "web", &["--name", "one"]).expect(0);
    let away = |world: &World, place: &str, args: &[&str]| {
        // What was passed before counts no more.
        world.a.sh("rm -f /run/tranship/fail-point.reached").unwrap();
        world.arm(&world.a, &format!("{place}=hold"));
        let child = world.command(args).spawn().unwrap();
        wait_until(|| reached(&world.a, place));
        world.a.stop_engine().unwrap();
        world.arm(&world.a, "");
        std::thread::sleep(Duration::from_secs(2));
        world.a.restart_engine().unwrap();
        finish(child)
    };
    let restore = ["checkpoint", "restore", "ssh://root@a//web@one"];
    assert_ne!(away(&world, "checkpoint.ordered", &restore).code, 0);
    assert_eq!(state(&world.a), "exited", "it was started afresh");
    assert_eq!(world.policy(), "no");
    assert_eq!(world.checkpoints()[0]["state"], "ready");
    nothing_dumped(&world.a);
    world.checkpoint("restore", "web@one", &[]).expect(0);
    counts_on(&world);
    without_gap(&numbers(&world.a));
    assert_eq!(world.policy(), "always");

    // Ended in order once it has restored, which ends the container: that is not taken for the checkpoint's end.
    world.checkpoint("create", "web", &["--name", "one"]).expect(0);
    world.arm(&world.a, "checkpoint.restored=fail");
    let outcome = world.checkpoint("restore", "web@one", &[]);
    assert_ne!(outcome.code, 0);
    outcome.saying(&["checkpoint.in-doubt"]);
    world.arm(&world.a, "");
    assert_eq!(world.checkpoints()[0]["state"], "used");
    world.checkpoint("rm", "web@one", &[]).expect(0);
    counts_on(&world);
    assert_eq!(world.policy(), "always");

    // Ended in order while the container stands still: it lets it go, and the dump is no longer of its end.
    let create = ["checkpoint", "create", "ssh://root@a//web", "--name", "one"];
    for place in ["checkpoint.dumped", "checkpoint.kept", "checkpoint.ending"] {
        let outcome = away(&world, place, &create);
        assert_ne!(outcome.code, 0, "{place}: {}", outcome.stdout);
        assert!(world.checkpoints().is_empty(), "{place}");
        assert_eq!(world.policy(), "always", "{place}");
        nothing_dumped(&world.a);
        world.a.exec_ok(["docker", "start", "web"]).unwrap();
        counts_on(&world);
    }
}

#[test]
fn one_that_is_started_anew_before_it_is_paused_is_not_left_paused() {
    let world = world!();
    world.count(&[]);
    world.arm(&world.a, "checkpoint.pausing=hold");
    let args = ["checkpoint", "create", "ssh://root@a//web", "--name", "one"];
    let child = world.command(&args).spawn().unwrap();
    wait_until(|| reached(&world.a, "checkpoint.pausing"));
    world.a.exec_ok(["docker", "restart", "-t", "0", "web"]).unwrap();
    world.arm(&world.a, "");
    finish(child).expect(4).saying(&["container.changed"]);
    assert_eq!(state(&world.a), "running");
    assert_eq!(world.policy(), "always");
    counts_on(&world);
    assert!(world.checkpoints().is_empty());
}

#[test]
fn what_is_mounted_below_a_bind_is_not_said_to_be_compared() {
    let world = world!();
    world.count(&["-v", "/srv/bound:/srv", "-v", "/run/shared:/mnt"]);
    // Mounted later, as one from before the start is refused by CRIU.
    world
        .a
        .sh("mkdir -p /srv/bound/below /srv/plain && mount --bind /srv/plain /srv/bound/below")
        .unwrap();
    let made = world
        .checkpoint("create", "web", &["--name", "one", "--json"])
        .expect(0)
        .json();
    assert_eq!(made["compared"], serde_json::json!(["the container's layer"]));
    assert_eq!(made["not_compared"].as_array().unwrap().len(), 2, "{made}");
    world.checkpoint("restore", "web", &[]).expect(0);
    counts_on(&world);
    without_gap(&numbers(&world.a));
}

/// Where an agent can die that makes a checkpoint, and whether the container is left running by it.
pub(crate) fn while_one_is_made() -> impl Iterator<Item = (&'static str, bool)> {
    let places = [
        "checkpoint.paused",
        "checkpoint.dumped",
        "checkpoint.sealed",
        "checkpoint.kept",
        "checkpoint.ending",
        "checkpoint.ended",
    ];
    let all = [false, true]
        .into_iter()
        .flat_map(move |left| places.map(|place| (place, left)));
    all.filter(|(place, left_running)| !(*left_running && place.starts_with("checkpoint.end")))
}

/// The agent of a counter's node dies at a place as it makes a checkpoint, and the next one puts everything right.
pub(crate) fn dies_as_it_makes_one(world: &World, place: &str, leave_running: bool, store: &str) {
    let as_it_was = life(&world.a);
    world.arm(&world.a, &format!("{place}=die"));
    let options: &[&str] = if leave_running { &["--leave-running"] } else { &[] };
    assert_ne!(world.checkpoint("create", "web", options).code, 0, "{place}");
    assert!(reached(&world.a, place), "{place}");
    world.arm(&world.a, "");
    let list = world.checkpoints();
    let made = place == "checkpoint.ended" || (leave_running && place == "checkpoint.kept");
    assert_eq!(list.len(), usize::from(made), "{place}: {list:?}");
    if made && !leave_running {
        assert_eq!(state(&world.a), "exited", "{place}");
        world.checkpoint("restore", "web", &[]).expect(0);
    } else {
        assert_eq!(life(&world.a), as_it_was, "{place}: it was never ended");
    }
    counts_on(world);
    without_gap(&numbers(&world.a));
    assert_eq!(world.policy(), "always", "{place}");
    nothing_dumped(&world.a);
    let unfinished = world
        .a
        .sh(&format!(
            "find {store} -name '.new-*' -o -name 'begun*' 2>/dev/null || true"
        ))
        .unwrap();
    assert_eq!(unfinished, "", "{place}");
}

#[test]
fn agents_that_die_while_a_checkpoint_is_made_or_restored() {
    for (place, leave_running) in while_one_is_made() {
        let world = world!();
        world.count(&[]);
        dies_as_it_makes_one(&world, place, leave_running, STORE);
    }
    for place in ["checkpoint.opened", "checkpoint.restored"] {
        let world = world!();
        world.count(&[]);
        world.checkpoint("create", "web", &["--name", "one"]).expect(0);
        world.arm(&world.a, &format!("{place}=die"));
        assert_ne!(world.checkpoint("restore", "web", &[]).code, 0, "{place}");
        world.arm(&world.a, "");
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Some(one) = world.checkpoints().first()
            && !is_running(&world.a, "web")
        {
            if one["state"] == "ready" {
                world.checkpoint("restore", "web", &[]).expect(0);
                break;
            }
            assert!(Instant::now() < deadline, "{place}: {one}");
        }
        counts_on(&world);
        without_gap(&numbers(&world.a));
        assert_eq!(world.policy(), "always", "{place}");
        if place == "checkpoint.restored" {
            // Nobody saw how that restore ended.
            assert_eq!(world.checkpoints()[0]["state"], "used");
            world.checkpoint("rm", "web@one", &[]).expect(0);
        }
        assert!(world.checkpoints().is_empty(), "{place}");
        nothing_dumped(&world.a);
    }
}
