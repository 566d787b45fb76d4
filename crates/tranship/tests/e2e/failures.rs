//! Moves that fail: the source serves again, the destination is as it was, the exit code and the message say so.

use std::time::Duration;

use tranship_testkit::testbed::{Link, Node, Options};

use crate::world::{World, finish, get, inspect, is_running, reached, serves, wait_until};

/// The places where the source's agent can be made to fail, with the modes that pass them.
const AT_SOURCE: &[(&str, &[&str])] = &[
    ("source.check", &["stateless", "cold"]),
    ("source.image", &["stateless", "cold"]),
    ("source.prepare", &["stateless", "cold"]),
    ("source.create", &["stateless", "cold"]),
    ("source.freeze", &["stateless", "cold"]),
    ("source.frozen", &["cold"]),
    ("source.start", &["stateless", "cold"]),
    ("source.health", &["stateless", "cold"]),
    ("source.adopt", &["stateless", "cold"]),
];

/// The same for the destination's agent.
const AT_DESTINATION: &[&str] = &[
    "destination.open",
    "destination.image",
    "destination.image-loaded",
    "destination.prepare",
    "destination.network-made",
    "destination.create",
    "destination.created",
    "destination.start",
    "destination.started",
    "destination.adopt",
];

fn assert_as_before(world: &World, before: &(Vec<String>, Vec<String>), what: &str) {
    assert!(
        serves(world.a.address(), 8080),
        "{what}: the source does not serve"
    );
    assert_eq!(
        inspect(&world.a, "web", "{{.HostConfig.RestartPolicy.Name}}"),
        "always",
        "{what}"
    );
    let now = world.inventories();
    assert_eq!(now.0, before.0, "{what}: the source is not as it was");
    assert_eq!(now.1, before.1, "{what}: something is left at the destination");
}

fn fail_at(world: &World, node: &Node, point: &str, mode: &str, before: &(Vec<String>, Vec<String>)) {
    world.arm(node, &format!("{point}=fail"));
    let outcome = world
        .migrate(&["--mode", mode])
        .expect(4)
        .saying(&["test.fail-point", "rolled back"]);
    world.arm(node, "none");
    drop(outcome);
    assert_as_before(world, before, &format!("{point}, {mode}"));
}

#[test]
fn a_failure_at_any_step_of_the_source_puts_everything_back() {
    let world = world!();
    world.serve(&[]);
    world.a.exec_ok(["docker", "network", "create", "back"]).unwrap();
    world
        .a
        .exec_ok(["docker", "network", "connect", "back", "web"])
        .unwrap();
    let before = world.inventories();
    for (point, modes) in AT_SOURCE {
        for mode in *modes {
            fail_at(&world, &world.a, point, mode, &before);
        }
    }
    // And nothing that was tried stands in the way of a move that succeeds.
    world.migrate(&["--mode", "cold"]).expect(0);
    assert!(serves(world.b.address(), 8080));
}

#[test]
fn a_failure_at_any_step_of_the_destination_leaves_nothing_there() {
    let world = world!();
    world.serve(&[]);
    world.a.exec_ok(["docker", "network", "create", "back"]).unwrap();
    world
        .a
        .exec_ok(["docker", "network", "connect", "back", "web"])
        .unwrap();
    let before = world.inventories();
    for point in AT_DESTINATION {
        for mode in ["stateless", "cold"] {
            fail_at(&world, &world.b, point, mode, &before);
        }
    }
    let reached = |node: &Node| node.sh("sort -u /run/tranship/fail-point.reached").unwrap();
    let reached = format!("{}{}", reached(&world.a), reached(&world.b));
    for point in tranship_migrate_points() {
        assert!(
            reached.lines().any(|l| l == point),
            "the fail point {point} was never passed"
        );
    }
}

/// Every fail point of the program, so that one that nobody reaches is noticed.
fn tranship_migrate_points() -> Vec<&'static str> {
    // `source.frozen` lies behind the failures of the destination that this list is checked after.
    AT_DESTINATION
        .iter()
        .copied()
        .chain(AT_SOURCE.iter().map(|(p, _)| *p))
        .collect()
}

#[test]
fn a_replaced_container_comes_back_when_the_move_fails() {
    let world = world!();
    world.serve(&[]);
    let image = world.b.load_image("web:1").unwrap();
    world
        .b
        .exec_ok([
            "docker",
            "run",
            "-d",
            "--name",
            "web",
            "--restart",
            "unless-stopped",
            "-p",
            "8080:8080",
            &image,
        ])
        .unwrap();
    wait_until(|| get(world.b.address(), 8080));
    let before = world.inventories();
    for point in ["destination.created", "destination.started", "destination.adopt"] {
        world.arm(&world.b, &format!("{point}=fail"));
        world.migrate(&["--mode", "cold", "--replace"]).expect(4);
        assert_as_before(&world, &before, point);
        wait_until(|| get(world.b.address(), 8080));
        assert_eq!(
            inspect(&world.b, "web", "{{.HostConfig.RestartPolicy.Name}}"),
            "unless-stopped"
        );
    }
}

#[test]
fn an_unhealthy_container_goes_back_with_its_last_words() {
    let world = world!();
    // Healthy only on the host whose name it was made on.
    let check = [
        "--health-cmd",
        "test -e /dev/shm/fine",
        "--health-interval",
        "300ms",
        "--health-retries",
        "2",
    ];
    world.serve(&check);
    world
        .a
        .exec_ok(["docker", "exec", "web", "touch", "/dev/shm/fine"])
        .unwrap();
    wait_until(|| inspect(&world.a, "web", "{{.State.Health.Status}}") == "healthy");
    let before = world.inventories();
    for mode in ["stateless", "cold"] {
        world
            .migrate(&["--mode", mode])
            .expect(4)
            .saying(&["health.unhealthy", "hint:"]);
        assert!(is_running(&world.a, "web"), "{mode}");
        assert_eq!(world.b.inventory().unwrap(), before.1, "{mode}");
    }
}

#[test]
fn a_container_that_ends_at_once_there_goes_back() {
    let world = world!();
    let image = world.a.load_image("busybox").unwrap();
    // It runs only where its host has the device.
    world.a.sh("touch /srv/here").unwrap();
    let script = "test -e /srv/here || { echo no file here >&2; exit 7; }; sleep 1000";
    world
        .a
        .exec_ok([
            "docker",
            "run",
            "-d",
            "--name",
            "web",
            "-v",
            "/srv:/srv",
            &image,
            "sh",
            "-c",
            script,
        ])
        .unwrap();
    world.b.sh("mkdir -p /srv").unwrap();
    let before = world.inventories();
    for mode in ["stateless", "cold"] {
        world
            .migrate(&["--mode", mode, "--without-volumes"])
            .expect(4)
            .saying(&["health.exited", "exit code 7", "no file here"]);
        assert!(is_running(&world.a, "web"), "{mode}");
        assert_eq!(world.inventories(), before, "{mode}");
    }
}

#[test]
fn a_port_that_is_taken_meanwhile_ends_it_in_order() {
    let world = world!();
    world.serve(&[]);
    world.b.load_image("busybox").unwrap();
    let before = world.inventories();
    world.arm(&world.b, "destination.create=wait:4000");
    let child = world.begin(&["--mode", "cold"]);
    wait_until(|| {
        world
            .b
            .exec(["test", "-s", "/run/tranship/fail-point.reached"])
            .unwrap()
            .status
            .success()
    });
    let mut squatter = world
        .b
        .spawn(["busybox", "nc", "-ll", "-p", "8080", "-e", "true"])
        .unwrap();
    finish(child).expect(4).saying(&["8080", "hint:"]);
    squatter.kill().unwrap();
    assert_as_before(&world, &before, "port taken");
}

#[test]
fn a_disk_that_is_full_is_seen_before_or_ends_it_in_order() {
    let small = Options::default().small_disk("b", "/var/lib/docker", 160 << 20);
    let world = world!(small);
    let image = world.a.load_image("web:1").unwrap();
    world
        .a
        .exec_ok([
            "docker",
            "run",
            "-d",
            "--name",
            "web",
            "--restart",
            "always",
            "-p",
            "8080:8080",
            &image,
        ])
        .unwrap();
    wait_until(|| get(world.a.address(), 8080));
    let before = world.inventories();
    world
        .migrate(&["--mode", "stateless"])
        .expect(1)
        .saying(&["space.bytes", "prune"]);
    let push = ["image", "push", &image, "ssh://root@b", "--from", "ssh://root@a"];
    world
        .run(&push)
        .expect(1)
        .saying(&["error[image.space]", "ssh://root@b", "prune"]);
    assert_eq!(world.inventories(), before);
    drop(world);

    // Enough when the plan is made, too little when the image comes.
    let world = world!(Options::default().small_disk("b", "/var/lib/docker", 900 << 20));
    world.a.load_image("web:1").unwrap();
    world
        .a
        .exec_ok([
            "docker",
            "run",
            "-d",
            "--name",
            "web",
            "--restart",
            "always",
            "-p",
            "8080:8080",
            &image,
        ])
        .unwrap();
    wait_until(|| get(world.a.address(), 8080));
    let before = world.inventories();
    world.arm(&world.b, "destination.image=wait:3000");
    let child = world.begin(&["--mode", "stateless"]);
    wait_until(|| reached(&world.b, "destination.image"));
    world.b.sh("free=$(df --output=avail -B1 /var/lib/docker | tail -1); fallocate -l $((free - 30000000)) /var/lib/docker/ballast").unwrap();
    let outcome = finish(child);
    world.b.sh("rm -f /var/lib/docker/ballast").unwrap();
    outcome.expect(4).saying(&["engine.no-space"]);
    assert_as_before(&world, &before, "no space");
}

#[test]
fn an_engine_that_dies_at_the_destination_ends_it_in_order() {
    let world = world!();
    world.serve(&[]);
    let before = world.inventories();
    world.arm(&world.b, "destination.create=wait:3000");
    let child = world
        .command(&["migrate", "web", "--from", "ssh://root@a", "--to", "ssh://root@b"])
        .spawn()
        .unwrap();
    wait_until(|| reached(&world.b, "destination.create"));
    world.b.kill_engine().unwrap();
    let outcome = finish(child);
    assert!(outcome.code == 4 || outcome.code == 5, "{outcome:?}");
    assert!(outcome.stderr.contains("engine."), "{}", outcome.stderr);
    assert!(serves(world.a.address(), 8080));
    world.b.restart_engine().unwrap();
    assert_eq!(world.a.inventory().unwrap(), before.0);
    // What the dead engine could not take away is said, and no container is among it.
    assert!(
        !world
            .b
            .inventory()
            .unwrap()
            .iter()
            .any(|l| l.starts_with("container"))
    );
}

#[test]
fn a_link_that_is_cut_while_the_image_travels_ends_it_in_order() {
    let world = world!();
    let image = world.a.load_image("web:1").unwrap();
    world
        .a
        .exec_ok([
            "docker",
            "run",
            "-d",
            "--name",
            "web",
            "--restart",
            "always",
            "-p",
            "8080:8080",
            &image,
        ])
        .unwrap();
    wait_until(|| get(world.a.address(), 8080));
    let before = world.inventories();
    world.run(&["doctor", "ssh://root@a", "ssh://root@b"]);
    world.b.set_link(Link::Rate("100mbit")).unwrap();
    let bytes = || world.b.link_bytes().unwrap().received;
    let start = bytes();
    let child = world.begin(&["--mode", "stateless"]);
    wait_until(|| bytes() - start > 10_000_000);
    world.b.set_link(Link::Down).unwrap();
    finish(child).expect(4).saying(&["wire.", "rolled back", "hint:"]);
    assert!(serves(world.a.address(), 8080));
    assert_eq!(world.a.inventory().unwrap(), before.0);
    // Nobody can reach the destination: it cleans up by itself.
    wait_until(|| world.b.inventory().unwrap() == before.1);
    wait_until(|| {
        world
            .b
            .exec(["pgrep", "-f", "agent --serve"])
            .unwrap()
            .stdout
            .lines()
            .count()
            <= 1
    });
}

#[test]
fn a_caller_that_is_killed_leaves_a_migration_that_finishes() {
    let world = world!();
    world.serve(&[]);
    world.arm(&world.b, "destination.create=wait:2000");
    let mut child = world.begin(&["--mode", "cold"]);
    wait_until(|| reached(&world.b, "destination.create"));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until(|| get(world.b.address(), 8080));
    wait_until(|| !is_running(&world.a, "web"));
    let status = world.run(&["status", "--json"]).expect(0).json();
    assert_eq!(
        status.as_array().unwrap().len(),
        2,
        "both sides know it: {status}"
    );
    wait_until(|| world.run(&["status", "--json"]).json()[0]["migration"]["status"] == "complete");
}

#[test]
fn an_ssh_connection_that_dies_is_made_again() {
    let world = world!();
    world.serve(&[]);
    world.arm(&world.b, "destination.create=wait:3000");
    let child = world
        .command(&["migrate", "web", "--from", "ssh://root@a", "--to", "ssh://root@b"])
        .spawn()
        .unwrap();
    wait_until(|| reached(&world.b, "destination.create"));
    // The server's end of every session of the caller, not the daemon itself.
    world
        .a
        .sh("pkill -f '[s]shd-session: root@notty' || pkill -f '[s]shd: root@notty'")
        .unwrap();
    finish(child).expect(0).saying(&["lost sight"]);
    assert!(serves(world.b.address(), 8080));
}

#[test]
fn an_interrupt_rolls_back() {
    let world = world!();
    world.serve(&[]);
    let before = world.inventories();
    world.arm(&world.b, "destination.create=wait:2000");
    let child = world.begin(&["--mode", "cold"]);
    wait_until(|| reached(&world.b, "destination.create"));
    std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    finish(child)
        .expect(4)
        .saying(&["migrate.aborted", "interrupted"]);
    assert_as_before(&world, &before, "interrupt");
}

#[test]
fn an_agent_that_is_killed_puts_back_what_it_left_when_it_starts_again() {
    for (point, node_is_source) in [
        ("source.frozen", true),
        ("source.image", true),
        ("destination.created", false),
        ("destination.network-made", false),
    ] {
        let world = world!();
        world.serve(&[]);
        world.a.exec_ok(["docker", "network", "create", "back"]).unwrap();
        world
            .a
            .exec_ok(["docker", "network", "connect", "back", "web"])
            .unwrap();
        let before = world.inventories();
        let node = if node_is_source { &world.a } else { &world.b };
        world.arm(node, &format!("{point}=die"));
        let outcome = world.migrate(&["--mode", "cold"]);
        assert!(matches!(outcome.code, 4 | 5), "{point}: {outcome:?}");
        world.arm(node, "none");
        // Any command starts the agents again, and they settle what was open.
        world.run(&["doctor", "ssh://root@a", "ssh://root@b"]);
        std::thread::sleep(Duration::from_millis(500));
        wait_until(|| get(world.a.address(), 8080));
        wait_until(|| world.inventories() == before);
    }
}

#[test]
fn a_second_migration_of_the_same_container_is_refused_by_name() {
    let world = world!();
    world.serve(&[]);
    world.arm(&world.b, "destination.create=wait:4000");
    let first = world
        .command(&["migrate", "web", "--from", "ssh://root@a", "--to", "ssh://root@b"])
        .spawn()
        .unwrap();
    wait_until(|| reached(&world.b, "destination.create"));
    world
        .migrate(&["--rename", "other", "--publish", "8080=8081"])
        .expect(1)
        .saying(&["migrate.busy", "tranship status"]);
    finish(first).expect(0);
}
