//! Journals that were damaged, and the agent as a service, on real hosts.

use std::path::PathBuf;

use tranship_testkit::testbed::Node;

use crate::world::{World, finish, get, inspect, is_running, wait_until};

/// Begins a cold migration, waits until it stands at a place, and kills the agent there.
fn killed_at(world: &World, node: &Node, place: &str) {
    let mut child = world.begin_held(node, place, &["--mode", "cold"]);
    child.kill().unwrap();
    assert!(node.kill_running("agent --serve") > 0);
    finish(child);
    world.arm(node, "none");
}

/// The only journal of a side.
fn journal(node: &Node, side: &str) -> PathBuf {
    let directory = node.root().unwrap().join("var/lib/tranship/agent").join(side);
    let mut entries = std::fs::read_dir(directory).unwrap();
    entries.next().unwrap().unwrap().path()
}

#[test]
fn a_torn_tail_is_dropped_and_the_migration_goes_on_from_the_record_before() {
    for (cut, garbage) in [(1, 0), (5, 0), (0, 3), (0, 4096)] {
        let world = world!();
        world.serve(&["-v", "data:/data"]);
        let before = world.inventories();
        killed_at(&world, &world.a, "source.frozen");
        let path = journal(&world.a, "departures");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(bytes.len() - cut);
        bytes.extend(std::iter::repeat_n(0, garbage));
        std::fs::write(&path, &bytes).unwrap();
        // What a person asks brings the agent back; the source had been stopped, or was about to be by its record.
        world.run(&["status"]);
        if cut == 0 {
            wait_until(|| get(world.a.address(), 8080));
            wait_until(|| world.inventories() == before);
        } else {
            // The record that said so is gone, which no crash does: it had been synced. Nothing else is lost.
            let shown = world.run(&["status", "--json"]).json();
            assert_eq!(shown[0]["migration"]["departure"], "rolled-back", "{shown}");
            assert!(!is_running(&world.b, "web"));
            world.a.exec_ok(["docker", "start", "web"]).unwrap();
            wait_until(|| get(world.a.address(), 8080));
        }
    }
}

#[test]
fn damage_inside_is_refused_with_an_explanation_and_nothing_is_lost() {
    for (side, place) in [
        ("departures", "source.committed"),
        ("arrivals", "destination.started"),
    ] {
        let world = world!();
        world.serve(&["-v", "data:/data"]);
        let node = if side == "departures" { &world.a } else { &world.b };
        killed_at(&world, node, place);
        let path = journal(node, side);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[40] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let shown = world.run(&["status"]);
        assert_ne!(shown.code, 0, "{shown:?}");
        let shown = shown.saying(&["journal.damaged", "damaged", "docker ps -a", "hint:"]);
        assert!(shown.stderr.contains(&world.newest_id()), "{shown:?}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "it is left as it is");
        // At most one runs, and both containers are there for a person to look at.
        assert!(!(is_running(&world.a, "web") && is_running(&world.b, "web")));
        assert_eq!(inspect(&world.a, "web", "{{.State.Status}}"), "exited");
        if side == "departures" {
            // Told by a person, who has looked: nothing runs there, so it is started here and the rest goes.
            assert!(!is_running(&world.b, "web"));
            world.a.exec_ok(["docker", "start", "web"]).unwrap();
            wait_until(|| get(world.a.address(), 8080));
        }
    }
}

/// Says what it is called with, and that all is well.
const SYSTEMCTL: &str = "#!/bin/sh\necho \"$*\" >> /run/systemctl.said\n";

#[test]
fn the_agent_is_installed_as_a_service_and_taken_away_again() {
    let world = world!();
    world.run(&["doctor", "ssh://root@a", "ssh://root@b"]);
    let program = world.a.sh("ls /root/.cache/tranship/bin/tranship-*").unwrap();
    let agent = |verb: &str| world.a.exec([program.trim(), "agent", verb]).unwrap();
    let unit = "/etc/systemd/system/tranship-agent.service";
    let there = |path: &str| world.a.exec(["test", "-e", path]).unwrap().success();
    // Where there is no systemd, it is said what would be done, and nothing is.
    let said = agent("install");
    assert_eq!(said.status.code(), Some(1), "{}", said.stderr);
    for text in [
        "service.no-systemd",
        unit,
        "agent --serve --stay",
        "Restart=always",
        "enable --now",
    ] {
        assert!(said.stderr.contains(text), "{text:?} is not in\n{}", said.stderr);
    }
    assert!(!there(unit) && !there("/usr/local/bin/tranship"));
    // Where there is one, it is asked.
    world
        .a
        .sh("mkdir -p /run/systemd/system /etc/systemd/system")
        .unwrap();
    let input = [
        "sh",
        "-c",
        "cat > /usr/local/bin/systemctl && chmod 755 /usr/local/bin/systemctl",
    ];
    assert!(
        world
            .a
            .exec_with_input(input, SYSTEMCTL.as_bytes())
            .unwrap()
            .success()
    );
    for _ in 0..2 {
        let said = agent("install");
        assert!(said.success(), "{}", said.stderr);
    }
    let text = world.a.sh(&format!("cat {unit}")).unwrap();
    assert!(
        text.contains("ExecStart=\"/usr/local/bin/tranship\" agent --serve --stay"),
        "{text}"
    );
    let asked = world.a.sh("cat /run/systemctl.said").unwrap();
    assert!(
        asked.contains("daemon-reload") && asked.contains("enable --now tranship-agent.service"),
        "{asked}"
    );
    // What the unit starts is an agent that callers find, and that goes on after a crash as the service manager has it.
    let start = "cd / && setsid /usr/local/bin/tranship agent --serve --stay -v >/dev/null 2>&1 </dev/null &";
    world.a.kill_running("agent --serve");
    world.a.sh(start).unwrap();
    world.serve(&["-v", "data:/data"]);
    let before = world.inventories();
    killed_at(&world, &world.a, "source.frozen");
    world.a.sh(start).unwrap();
    let begun = std::time::Instant::now();
    wait_until(|| get(world.a.address(), 8080));
    assert!(begun.elapsed() < std::time::Duration::from_secs(10));
    wait_until(|| world.inventories() == before);
    let said = agent("uninstall");
    assert!(said.success(), "{}", said.stderr);
    assert!(!there(unit) && there("/usr/local/bin/tranship"));
    let said = agent("uninstall");
    assert_eq!(said.status.code(), Some(1));
    assert!(said.stderr.contains("service.not-installed"), "{}", said.stderr);
}
