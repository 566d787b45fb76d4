//! Moves of data that are cut off: the source serves on as it was, nothing is left at the destination, and the next try does not
//! begin anew.

use std::time::Duration;

use tranship_testkit::testbed::{Link, Node, Options};

use super::{assert_none, volume};
use crate::world::{Outcome, World, finish, get, inspect, serves, wait_until};

/// Bytes of the volume's data, none of which compress.
const BYTES: u64 = 24 << 20;

/// A service with a volume; its page tells that it serves.
fn serving(options: Options) -> Option<World> {
    let world = World::with(options)?;
    let image = world.a.load_image("busybox").unwrap();
    world
        .a
        .sh(&format!(
            "docker run -d --name web --restart always --stop-signal KILL -p 8080:8080 -v data:/data {image}
             cd /var/lib/docker/volumes/data/_data && head -c {BYTES} /dev/urandom > random && mkdir small && cd small
             i=0; while [ $i -lt 300 ]; do echo $i > $i; i=$((i + 1)); done"
        ))
        .unwrap();
    wait_until(|| get(world.a.address(), 8080));
    // The image and the program are there already: what travels from now on is data.
    world.b.load_image("busybox").unwrap();
    world.run(&["doctor", "ssh://root@a", "ssh://root@b"]);
    Some(world)
}

struct Before {
    inventories: (Vec<String>, Vec<String>),
    files: String,
}

impl Before {
    fn of(world: &World) -> Self {
        Self {
            inventories: world.inventories(),
            files: files(&world.a),
        }
    }

    #[track_caller]
    fn assert(&self, world: &World, what: &str) {
        wait_until(|| get(world.a.address(), 8080));
        assert_eq!(
            inspect(&world.a, "web", "{{.HostConfig.RestartPolicy.Name}}"),
            "always",
            "{what}"
        );
        wait_until(|| world.inventories() == self.inventories);
        assert_eq!(files(&world.a), self.files, "{what}: the source's data");
    }
}

fn files(node: &Node) -> String {
    node.sh(&format!(
        "cd {} && find . -type f | sort | xargs sha256sum",
        volume("data")
    ))
    .unwrap()
}

/// Bytes of data that a move sent.
fn sent(outcome: &Outcome) -> u64 {
    let view = outcome.json();
    let rounds = view[0]["rounds"].as_array().cloned().unwrap_or_default();
    rounds.iter().map(|r| r["wire_bytes"].as_u64().unwrap()).sum()
}

fn received(world: &World) -> u64 {
    world.b.link_bytes().unwrap().received
}

/// Waits until about this many bytes of data reached the destination.
fn wait_for_bytes(world: &World, begun: u64, bytes: u64) {
    wait_until(|| received(world) - begun > bytes);
}

const COLD: &[&str] = &["--mode", "cold", "--json", "--compress", "none"];

/// The move that is not interrupted: it must need much less than all.
#[track_caller]
fn rerun(world: &World, most: u64) {
    let outcome = world.migrate(COLD).expect(0);
    let sent = sent(&outcome);
    assert!(sent < most, "the next try sent {sent} bytes of {BYTES} again");
    assert_none(
        &world.differences(&volume("data"), &volume("data")),
        "after the next try",
    );
    wait_until(|| get(world.b.address(), 8080));
    let left = world
        .b
        .sh("ls -A /var/lib/docker/tranship 2> /dev/null || true")
        .unwrap();
    assert_eq!(
        left, "",
        "what an earlier try left is gone once the move is complete"
    );
}

#[test]
fn an_agent_that_is_killed_while_data_moves_leaves_the_source_as_it_was() {
    let Some(world) = serving(Options::default()) else {
        return;
    };
    let before = Before::of(&world);
    for (node, point, mode) in [
        (&world.a, "source.bulk", "cold"),
        (&world.b, "destination.volume-made", "cold"),
        (&world.b, "destination.element", "cold"),
        (&world.b, "destination.element", "warm"),
        (&world.a, "source.frozen", "warm"),
        (&world.a, "source.delta", "cold"),
        (&world.a, "source.delta", "warm"),
        (&world.a, "source.delta-done", "cold"),
        (&world.a, "source.delta-done", "warm"),
    ] {
        world.arm(node, &format!("{point}=die"));
        let outcome = world.migrate(&["--mode", mode]);
        assert!(matches!(outcome.code, 4 | 5), "{point}: {outcome:?}");
        world.arm(node, "none");
        // Any command starts the agents again, and they settle what was open.
        world.run(&["doctor", "ssh://root@a", "ssh://root@b"]);
        before.assert(&world, &format!("{point} in {mode} mode"));
        assert_ne!(inspect(&world.a, "web", "{{.State.Status}}"), "paused", "{point}");
    }
    rerun(&world, BYTES / 4);
}

#[test]
fn an_agent_that_is_killed_in_the_middle_of_the_data_keeps_what_arrived() {
    let Some(world) = serving(Options::default()) else {
        return;
    };
    let before = Before::of(&world);
    let kill_after = |node: &Node, bytes: u64| {
        let begun = received(&world);
        let child = world.begin(&[
            "--mode",
            "cold",
            "--limit-rate",
            "6M",
            "--compress",
            "none",
            "--json",
        ]);
        wait_for_bytes(&world, begun, bytes);
        node.sh("kill -KILL $(pgrep -f '[a]gent --serve')").unwrap();
        finish(child)
    };
    let outcome = kill_after(&world.a, BYTES / 2);
    assert!(matches!(outcome.code, 4 | 5), "{outcome:?}");
    world.run(&["doctor", "ssh://root@a", "ssh://root@b"]);
    before.assert(&world, "the source's agent");
    // The destination's agent is woken, and the round begins again with what is there.
    let outcome = kill_after(&world.b, BYTES / 5).expect(0);
    assert!(sent(&outcome) < BYTES * 3 / 4, "{outcome:?}");
    assert_none(
        &world.differences(&volume("data"), &volume("data")),
        "after the destination's agent was killed",
    );
    wait_until(|| get(world.b.address(), 8080));
}

#[test]
fn a_link_that_is_cut_while_data_moves_ends_it_in_order() {
    let Some(world) = serving(Options::default()) else {
        return;
    };
    let before = Before::of(&world);
    let begun = received(&world);
    let child = world.begin(&["--mode", "cold", "--limit-rate", "6M", "--compress", "none"]);
    wait_for_bytes(&world, begun, BYTES / 2);
    world.b.set_link(Link::Down).unwrap();
    finish(child).expect(4).saying(&["rolled back", "hint:"]);
    assert!(serves(world.a.address(), 8080));
    assert_eq!(world.a.inventory().unwrap(), before.inventories.0);
    // Nobody can reach the destination: it cleans up by itself.
    wait_until(|| world.b.inventory().unwrap() == before.inventories.1);
    world.b.set_link(Link::Up).unwrap();
    before.assert(&world, "the link");
    rerun(&world, BYTES * 3 / 4);
}

#[test]
fn an_interrupt_while_data_moves_ends_it_in_order() {
    let Some(world) = serving(Options::default()) else {
        return;
    };
    let before = Before::of(&world);
    let begun = received(&world);
    let child = world.begin(&["--mode", "warm", "--limit-rate", "6M", "--compress", "none"]);
    wait_for_bytes(&world, begun, BYTES * 2 / 3);
    let asked = std::time::Instant::now();
    std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    finish(child)
        .expect(4)
        .saying(&["migrate.aborted", "interrupted"]);
    assert!(
        asked.elapsed() < Duration::from_secs(20),
        "it went on for {:?}",
        asked.elapsed()
    );
    before.assert(&world, "interrupt");
    rerun(&world, BYTES * 2 / 3);
}

#[test]
fn a_caller_that_is_killed_while_data_moves_leaves_a_move_that_finishes() {
    let Some(world) = serving(Options::default()) else {
        return;
    };
    let begun = received(&world);
    let mut child = world.begin(&["--mode", "cold", "--limit-rate", "8M", "--compress", "none"]);
    wait_for_bytes(&world, begun, BYTES / 4);
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until(|| get(world.b.address(), 8080));
    assert_none(
        &world.differences(&volume("data"), &volume("data")),
        "after the caller was killed",
    );
    wait_until(|| world.run(&["status", "--json"]).json()[0]["migration"]["status"] == "complete");
}

#[test]
fn a_relay_that_is_killed_while_data_moves_is_rolled_back() {
    let Some(world) = serving(Options::default()) else {
        return;
    };
    let before = Before::of(&world);
    let begun = received(&world);
    let mut child = world.begin(&[
        "--mode",
        "cold",
        "--relay",
        "--limit-rate",
        "8M",
        "--compress",
        "none",
    ]);
    wait_for_bytes(&world, begun, BYTES / 4);
    child.kill().unwrap();
    child.wait().unwrap();
    before.assert(&world, "the relay was killed");
}

#[test]
fn a_disk_that_runs_full_while_data_moves_ends_it_in_order() {
    let Some(world) = serving(Options::default().small_disk("b", "/var/lib/docker", 120 << 20)) else {
        return;
    };
    let before = Before::of(&world);
    world.arm(&world.b, "destination.element=wait:3000");
    let child = world.begin(&["--mode", "cold"]);
    world.wait_for_point(&world.b, "destination.element");
    world
        .b
        .sh("free=$(df --output=avail -B1 /var/lib/docker | tail -1); fallocate -l $((free - 9000000)) /var/lib/docker/ballast")
        .unwrap();
    let outcome = finish(child);
    world.arm(&world.b, "none");
    world.b.sh("rm -f /var/lib/docker/ballast").unwrap();
    outcome
        .expect(4)
        .saying(&["space", "rolled back", "hint:", "where: node ssh://root@b"]);
    before.assert(&world, "no space");
    rerun(&world, BYTES + BYTES / 10);
}

#[test]
fn a_disk_that_is_too_small_is_seen_before() {
    let Some(world) = serving(Options::default().small_disk("b", "/var/lib/docker", 48 << 20)) else {
        return;
    };
    let before = Before::of(&world);
    world
        .migrate(&["--mode", "cold"])
        .expect(1)
        .saying(&["space.bytes"]);
    before.assert(&world, "seen before");
}
