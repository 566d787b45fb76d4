//! Memory of Podman's containers that is kept on its node, and goes on from there.

use std::time::Duration;

use serde_json::{Value, json};

use super::options;
use crate::checkpoint::{counts_on, dies_as_it_makes_one, state, while_one_is_made};
use crate::live::{life, nothing_dumped, numbers, without_gap};
use crate::world::{World, finish, inspect, is_running, reached, wait_until};

/// Where checkpoints lie on a node.
const STORE: &str = "/var/lib/containers/storage/tranship/checkpoints";
/// The files of the volume `data`.
const DATA: &str = "/var/lib/containers/storage/volumes/data/_data";

impl World {
    fn podman(&self, args: &[&str]) -> String {
        let mut all = vec!["podman"];
        all.extend(args);
        self.a.exec_ok(&all).unwrap()
    }

    /// Kills the container's first process from outside, as if it had ended by itself.
    fn end_by_itself(&self) {
        self.a
            .sh("kill -9 $(podman inspect --format '{{.State.Pid}}' web)")
            .unwrap();
    }
}

#[test]
fn a_counter_goes_on_from_its_checkpoint_once() {
    let world = world!(options());
    world.count(&["-v", "data:/srv", "-p", "8080:8080"]);
    // The second one is of a run that was restored itself.
    for name in ["one", "two"] {
        let made = world
            .checkpoint("create", "web", &["--name", name, "--json"])
            .expect(0)
            .json();
        assert_eq!(made["name"], name);
        assert_eq!(made["left_running"], false);
        assert_eq!(made["compared"], json!(["the container's layer", "volume data"]));
        assert_eq!(state(&world.a), "exited");
        assert_eq!(world.policy(), "no", "a restart of the machine does not start it");
        nothing_dumped(&world.a);
        let before = numbers(&world.a);

        let list = world.checkpoints();
        assert_eq!((list.len(), &list[0]["state"]), (1, &Value::from("ready")));
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

        world.checkpoint("restore", "web", &[]).expect(0);
        counts_on(&world);
        let all = numbers(&world.a);
        without_gap(&all);
        assert!(all.len() > before.len());
        nothing_dumped(&world.a);
        assert_eq!(world.policy(), "always");
        assert!(world.checkpoints().is_empty(), "it goes on from it once");
        world
            .checkpoint("restore", &format!("web@{name}"), &[])
            .expect(1)
            .saying(&["checkpoint.not-found"]);
    }
    // Podman keeps its books as for any container, and its restart policy works.
    assert_eq!(world.podman(&["exec", "web", "echo", "hello"]).trim(), "hello");
    let starts = || numbers(&world.a).iter().filter(|number| **number == 1).count();
    world.end_by_itself();
    wait_until(|| starts() == 2 && is_running(&world.a, "web"));
    world.podman(&["stop", "-t", "0", "web"]);
    assert_eq!(state(&world.a), "exited");
}

#[test]
fn memory_goes_on_only_with_the_files_that_it_knows_and_in_the_run_that_it_is_of() {
    let world = world!(options());
    world.count(&["-v", "data:/srv"]);
    world.checkpoint("create", "web", &["--name", "one"]).expect(0);
    let refused = |options: &[&str], texts: &[&str]| {
        world
            .checkpoint("restore", "web", options)
            .expect(1)
            .saying(texts);
        assert_eq!(state(&world.a), "exited");
        assert_eq!(world.policy(), "no");
    };
    world.a.sh(&format!("echo x > {DATA}/new")).unwrap();
    refused(&[], &["checkpoint.files-changed", "volume data"]);
    world.a.sh(&format!("rm {DATA}/new")).unwrap();
    world
        .a
        .sh("echo x > /tmp/x && podman cp /tmp/x web:/etc/x")
        .unwrap();
    refused(&[], &["checkpoint.files-changed", "the container's layer"]);
    world
        .checkpoint("restore", "web", &["--changed-files"])
        .expect(0)
        .saying(&["files changed since"]);
    counts_on(&world);
    without_gap(&numbers(&world.a));

    world.checkpoint("create", "web", &["--name", "two"]).expect(0);
    world.podman(&["start", "web"]);
    world
        .checkpoint("restore", "web", &[])
        .expect(1)
        .saying(&["checkpoint.started-since"]);
    world.podman(&["stop", "-t", "0", "web"]);
    for options in [&[][..], &["--changed-files"]] {
        refused(options, &["checkpoint.started-since"]);
    }
    assert_eq!(world.checkpoints()[0]["state"], "started-since");
    // It runs, and so it is here that it belongs: its policy comes back.
    world.podman(&["start", "web"]);
    world.checkpoint("rm", "web@two", &[]).expect(0);
    assert!(world.checkpoints().is_empty());
    assert_eq!(world.policy(), "always");

    // One whose container is gone is removed all the same.
    world.checkpoint("create", "web", &["--name", "three"]).expect(0);
    world.podman(&["rm", "web"]);
    assert_eq!(world.checkpoints()[0]["state"], "container-gone");
    world
        .checkpoint("restore", "web@three", &[])
        .expect(1)
        .saying(&["checkpoint.container-gone"]);
    world.checkpoint("rm", "web@three", &[]).expect(0);
    let left = world.a.sh(&format!("ls -A {STORE}")).unwrap();
    assert_eq!(left, "");
}

#[test]
fn one_that_runs_on_can_go_back() {
    let world = world!(options());
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
        .checkpoint("restore", "web", &[])
        .expect(1)
        .saying(&["checkpoint.running"]);
    for _ in 0..2 {
        world.podman(&["stop", "-t", "0", "web"]);
        let counted = numbers(&world.a);
        world.checkpoint("restore", "web", &[]).expect(0);
        wait_until(|| numbers(&world.a).len() > counted.len() + 5);
        let after = numbers(&world.a).split_off(counted.len());
        without_gap(&after);
        let most = *counted.iter().max().unwrap();
        assert!(
            after[0] <= most && after[0] > 5,
            "it did not go back: {} after {most}",
            after[0]
        );
        assert_eq!(world.checkpoints().len(), 1, "it stays");
        nothing_dumped(&world.a);
        // That its user had stopped it is forgotten, as by a start: what ends by itself is started again.
        let starts = || numbers(&world.a).iter().filter(|number| **number == 1).count();
        let before = starts();
        world.end_by_itself();
        wait_until(|| starts() == before + 1 && is_running(&world.a, "web"));
    }
    world.checkpoint("rm", "web@one", &[]).expect(0);
    assert!(is_running(&world.a, "web"));
    assert!(world.checkpoints().is_empty());
}

#[test]
fn one_whose_container_went_on_from_another_stays_so() {
    let world = world!(options());
    world.count(&["-p", "8080:8080"]);
    world
        .checkpoint("create", "web", &["--name", "one", "--leave-running"])
        .expect(0);
    world.checkpoint("create", "web", &["--name", "two"]).expect(0);
    let copy = world.archive("two.tar");
    world.export("web@two", &copy, &["--encrypted"]).expect(0);
    let states = || -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let list = world.checkpoints();
        list.iter()
            .map(|one| (text(&one["name"]), text(&one["state"])))
            .collect()
    };
    let are = |one: &str, two: &str| vec![("one".into(), one.into()), ("two".into(), two.into())];
    // Where Podman refuses, nothing is worth less.
    world
        .a
        .sh("setsid busybox nc -ll -p 8080 -e cat > /dev/null 2>&1 < /dev/null & echo kill $! > /tmp/undo; sleep 0.3")
        .unwrap();
    world
        .checkpoint("restore", "web@one", &["--changed-files"])
        .expect(1);
    assert_eq!(states(), are("ready", "ready"));
    assert_eq!(world.policy(), "no", "it waits for the other one");
    world.a.sh("sh /tmp/undo").unwrap();

    world
        .checkpoint("restore", "web@one", &["--changed-files"])
        .expect(0);
    assert_eq!(states(), are("running", "started-since"));
    assert_eq!(world.policy(), "always", "it waits for nothing any more");
    // Podman forgets that it was restored, as it does when the machine is started anew.
    world.podman(&["stop", "-t", "0", "web"]);
    world.podman(&["init", "web"]);
    world.podman(&["container", "cleanup", "web"]);
    let restored = inspect(&world.a, "web", "{{.State.RestoredAt}}");
    assert!(restored.starts_with("0001"), "it is not forgotten: {restored}");
    assert_eq!(states(), are("ready", "started-since"));
    world
        .checkpoint("restore", "web@two", &["--changed-files"])
        .expect(1)
        .saying(&["checkpoint.started-since"]);
    world.checkpoint("rm", "web@two", &[]).expect(0);
    world
        .import(&copy, "ssh://root@a//web", &[])
        .expect(1)
        .saying(&["checkpoint.started-since"]);
}

#[test]
fn an_exported_checkpoint_comes_back_and_goes_on_once() {
    let world = world!(options());
    world.count(&["-v", "data:/srv"]);
    world.checkpoint("create", "web", &["--name", "one"]).expect(0);
    let (plain, sealed, image) = (
        world.archive("plain.tar"),
        world.archive("sealed.tar"),
        world.archive("image.tar"),
    );
    let unencrypted = ["--unencrypted", "--compress", "none"];
    world.export("web@one", &plain, &unencrypted).expect(0);
    world.export("web@one", &sealed, &["--encrypted"]).expect(0);
    world
        .export("web@one", &image, &["--unencrypted", "--oci"])
        .expect(0);
    let content = String::from_utf8_lossy(&std::fs::read(&plain).unwrap()).into_owned();
    assert!(content.contains("while :; do") && content.contains("\"runtime\": \"crun\""));
    let hidden = std::fs::read(&sealed).unwrap();
    assert!(!String::from_utf8_lossy(&hidden).contains("while :; do"));

    let web = "ssh://root@a//web";
    world
        .import(&sealed, web, &["--name", "two"])
        .expect(1)
        .saying(&["checkpoint.present"]);
    world.checkpoint("rm", "web@one", &[]).expect(0);
    assert!(world.checkpoints().is_empty());
    assert_eq!(world.policy(), "always", "it waits for nothing any more");

    world.import(&sealed, web, &[]).expect(0);
    assert_eq!(world.policy(), "no", "it waits again");
    world.checkpoint("restore", "web@one", &[]).expect(0);
    counts_on(&world);
    without_gap(&numbers(&world.a));
    assert_eq!(world.policy(), "always");

    // From no copy a second time, also where Podman has forgotten that it was restored, as it does when the machine is started anew.
    world.podman(&["stop", "-t", "0", "web"]);
    world
        .import(&plain, web, &[])
        .expect(1)
        .saying(&["checkpoint.started-since"]);
    world.podman(&["init", "web"]);
    let restored = inspect(&world.a, "web", "{{.State.RestoredAt}}");
    assert!(restored.starts_with("0001"), "it is not forgotten: {restored}");
    world.podman(&["container", "cleanup", "web"]);
    for file in [&plain, &sealed] {
        world
            .import(file, web, &[])
            .expect(1)
            .saying(&["checkpoint.used"]);
    }
    assert!(world.checkpoints().is_empty());
}

#[test]
fn what_cannot_be_dumped_is_told_and_runs_on() {
    let world = world!(options());
    let image = world.a.load_image("python").unwrap();
    for (options, command, code) in [
        (&["-t"][..], "sleep 86400", "live.terminal"),
        (&["--rm"], "sleep 86400", "checkpoint.auto-remove"),
        (
            &["--label", "PODMAN_SYSTEMD_UNIT=web.service"],
            "sleep 86400",
            "podman.unit",
        ),
        (
            &["--health-cmd", "true", "--health-on-failure", "restart"],
            "sleep 86400",
            "podman.health-restart",
        ),
        (&[], "echo x > /dev/shm/x; sleep 86400", "live.shared-memory"),
    ] {
        let mut args = vec!["run", "-d", "--name", "web"];
        args.extend(options);
        args.extend([image.as_str(), "sh", "-c", command]);
        world.podman(&args);
        std::thread::sleep(Duration::from_millis(300));
        world.checkpoint("create", "web", &[]).expect(1).saying(&[code]);
        assert!(is_running(&world.a, "web"));
        world.podman(&["rm", "-f", "-t", "0", "web"]);
    }
    assert!(world.checkpoints().is_empty());

    // Files that come to be after it was looked at would be missing after a restore, and nobody would have been told.
    world.count(&[]);
    let data = inspect(&world.a, "web", "{{.StaticDir}}");
    // What Podman's own checkpoints leave would be applied to memory that it does not belong to.
    for left in ["network.status", "checkpoint"] {
        let left = format!("{data}/{left}");
        world.a.sh(&format!("mkdir {left} && touch {left}/x")).unwrap();
        world
            .checkpoint("create", "web", &["--name", "one"])
            .expect(1)
            .saying(&[left.as_str(), "was not made here"]);
        assert!(world.checkpoints().is_empty());
        world.a.sh(&format!("rm -r {left}")).unwrap();
        counts_on(&world);
    }
    world.arm(&world.a, "checkpoint.pausing=hold");
    let args = ["checkpoint", "create", "ssh://root@a//web", "--name", "one"];
    let child = world.command(&args).spawn().unwrap();
    wait_until(|| reached(&world.a, "checkpoint.pausing"));
    world.podman(&["exec", "web", "sh", "-c", "echo x > /dev/shm/x"]);
    world.arm(&world.a, "");
    finish(child).expect(1).saying(&["/dev/shm"]);
    counts_on(&world);
    without_gap(&numbers(&world.a));
    assert_eq!(world.policy(), "always");
    assert!(world.checkpoints().is_empty());
}

#[test]
fn a_restore_that_podman_refuses_can_be_tried_again() {
    let world = world!(options());
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

    // Where it moves, its checkpoints stay behind, and nothing goes on from them.
    let options = ["--name", "two", "--leave-running"];
    world.checkpoint("create", "web", &options).expect(0);
    world.migrate(&["--mode", "cold"]).expect(0);
    assert_eq!(world.checkpoints()[0]["state"], "moved");
    world
        .checkpoint("restore", "web@two", &["--changed-files"])
        .expect(1)
        .saying(&["container.moved"]);
    assert!(!is_running(&world.a, "web"));
    world.checkpoint("rm", "web@two", &[]).expect(0);
}

#[test]
fn services_that_go_away_while_a_checkpoint_is_made_or_restored() {
    let world = world!(options());
    world.count(&[]);
    let away = |place: &str, args: &[&str]| {
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
    // Podman's containers stand and run without it: what was under way goes on, or is taken back.
    let create = ["checkpoint", "create", "ssh://root@a//web", "--name", "one"];
    let restore = ["checkpoint", "restore", "ssh://root@a//web@one"];
    for place in ["checkpoint.dumped", "checkpoint.kept", "checkpoint.ending"] {
        let as_it_was = life(&world.a);
        let outcome = away(place, &create);
        let list = world.checkpoints();
        assert_eq!(
            outcome.code == 0,
            !list.is_empty(),
            "{place}: {outcome:?} {list:?}"
        );
        if list.is_empty() {
            assert_eq!(life(&world.a), as_it_was, "{place}: it was never ended");
        } else {
            assert_eq!(list[0]["state"], "ready", "{place}");
            world.run(&restore).expect(0);
        }
        counts_on(&world);
        without_gap(&numbers(&world.a));
        assert_eq!(world.policy(), "always", "{place}");
        nothing_dumped(&world.a);
    }
    world.checkpoint("create", "web", &["--name", "one"]).expect(0);
    let outcome = away("checkpoint.ordered", &restore);
    if outcome.code != 0 {
        assert_eq!(state(&world.a), "exited", "it was started afresh");
        assert_eq!(world.policy(), "no");
        assert_eq!(world.checkpoints()[0]["state"], "ready");
        nothing_dumped(&world.a);
        world.run(&restore).expect(0);
    }
    counts_on(&world);
    without_gap(&numbers(&world.a));
    assert_eq!(world.policy(), "always");
}

#[test]
fn agents_that_die_while_a_checkpoint_is_made() {
    let world = world!(options());
    world.count(&[]);
    for (place, leave_running) in while_one_is_made() {
        dies_as_it_makes_one(&world, place, leave_running, STORE);
    }
}

#[test]
fn agents_that_die_while_a_checkpoint_is_restored() {
    for place in ["checkpoint.opened", "checkpoint.ordered", "checkpoint.restored"] {
        let world = world!(options());
        world.count(&[]);
        world.checkpoint("create", "web", &["--name", "one"]).expect(0);
        world.arm(&world.a, &format!("{place}=die"));
        assert_ne!(world.checkpoint("restore", "web", &[]).code, 0, "{place}");
        world.arm(&world.a, "");
        let one = world.checkpoints()[0].clone();
        if place == "checkpoint.restored" {
            // Nobody saw how that restore ended.
            assert_eq!(one["state"], "used", "{place}");
            world.checkpoint("rm", "web@one", &[]).expect(0);
        } else {
            assert_eq!(one["state"], "ready", "{place}");
            world.checkpoint("restore", "web", &[]).expect(0);
        }
        counts_on(&world);
        without_gap(&numbers(&world.a));
        assert_eq!(world.policy(), "always", "{place}");
        assert!(world.checkpoints().is_empty(), "{place}");
        nothing_dumped(&world.a);
    }
}

#[test]
fn an_agent_that_dies_while_a_container_is_initialised_leaves_it_as_it_was() {
    let world = world!(options());
    world.count(&[]);
    let options = ["--name", "one", "--leave-running"];
    world.checkpoint("create", "web", &options).expect(0);
    world.podman(&["stop", "-t", "0", "web"]);
    // Podman has made everything ready for a start by then, and its command is asked to take that back.
    let dies = r#"case "$1 $2" in "container cleanup") kill -9 $PPID;; *) exec PODMAN "$@";; esac"#;
    let wrapper = "/usr/local/sbin/podman";
    let make = format!(
        "podman=$(command -v podman) && printf '#!/bin/sh\\n%s\\n' '{dies}' | sed s,PODMAN,$podman, > {wrapper} && chmod +x {wrapper}"
    );
    world.a.sh(&make).unwrap();
    assert_ne!(world.checkpoint("restore", "web", &[]).code, 0);
    world.a.sh(&format!("rm {wrapper}")).unwrap();
    assert_eq!(state(&world.a), "initialized", "the agent did not die there");

    assert_eq!(world.checkpoints()[0]["state"], "ready");
    assert_eq!(state(&world.a), "created", "it holds its network");
    nothing_dumped(&world.a);
    let before = numbers(&world.a).len();
    world.checkpoint("restore", "web", &[]).expect(0);
    wait_until(|| numbers(&world.a).len() > before + 5);
    without_gap(&numbers(&world.a).split_off(before));
}

#[test]
fn one_of_a_restored_run_is_still_good_where_podman_refuses_it() {
    let world = world!(options());
    world.count(&[]);
    world.checkpoint("create", "web", &["--name", "one"]).expect(0);
    world.checkpoint("restore", "web", &[]).expect(0);
    counts_on(&world);
    let options = ["--name", "back", "--leave-running"];
    world.checkpoint("create", "web", &options).expect(0);
    world.checkpoint("create", "web", &["--name", "two"]).expect(0);
    // Podman notes that, also of one that has ended. To take it back, it is initialised, and its restore forgotten.
    world.podman(&["stop", "web"]);
    assert_eq!(inspect(&world.a, "web", "{{.State.StoppedByUser}}"), "true");
    let criu = world.a.sh("command -v criu").unwrap();
    let criu = criu.trim();
    for name in ["back", "two"] {
        world.a.sh(&format!("mv {criu} /tmp/criu.away")).unwrap();
        let options = ["--changed-files"];
        world
            .checkpoint("restore", &format!("web@{name}"), &options)
            .expect(1);
        world.a.sh(&format!("mv /tmp/criu.away {criu}")).unwrap();
        let restored = inspect(&world.a, "web", "{{.State.RestoredAt}}");
        assert!(restored.starts_with("0001"), "it is not forgotten: {restored}");
        for one in world.checkpoints() {
            assert_eq!(one["state"], "ready", "{name}: {one}");
        }
        assert_eq!(world.policy(), "no", "{name}");
        nothing_dumped(&world.a);
    }
    world.checkpoint("restore", "web@two", &[]).expect(0);
    counts_on(&world);
    without_gap(&numbers(&world.a));
    assert_eq!(world.policy(), "always");
    let starts = || numbers(&world.a).iter().filter(|number| **number == 1).count();
    world.end_by_itself();
    wait_until(|| starts() == 2 && is_running(&world.a, "web"));
}
