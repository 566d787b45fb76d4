//! Agents of other versions, other builds, and clocks that are years apart.

use std::path::{Path, PathBuf};
use std::process::Command;

use tranship_testkit::testbed::Node;

use crate::world::{Outcome, World, finish, get, inspect, is_running, program, serves, wait_until};

/// Makes a node's agent say something else than it is: see `failpoint::setting`.
fn set(node: &Node, name: &str, text: &str) {
    node.sh(&format!(
        "mkdir -p -m 700 /run/tranship && printf %s '{text}' > /run/tranship/fail-point.{name}"
    ))
    .unwrap();
}

fn there_and_back(world: &World, mode: &str) {
    world.migrate(&["--mode", mode]).expect(0);
    assert!(serves(world.b.address(), 8080) && !is_running(&world.a, "web"));
    let options = [
        "--mode",
        mode,
        "--replace",
        "--volume-conflict",
        "replace",
        "--on-source",
        "remove",
    ];
    world.migrate_between("b", "a", &options).expect(0);
    assert!(serves(world.a.address(), 8080));
    world.b.sh("docker volume rm -f data").unwrap();
}

#[test]
fn agents_one_version_apart_work_together_and_others_are_refused_with_both_names() {
    let world = world!();
    world.serve(&["-v", "data:/data"]);
    // The older one does not speak our newest, the newer one speaks more.
    set(&world.a, "protocol", "0 1 0.0.9");
    set(&world.b, "protocol", "1 2 0.2.0");
    there_and_back(&world, "cold");
    let before = world.inventories();
    for (apart, version) in [("2 3", "2.0.0"), ("0 0", "0.0.1")] {
        set(&world.b, "protocol", &format!("{apart} {version}"));
        world.migrate(&["--mode", "cold"]).expect(1).saying(&[
            "agent.version",
            version,
            env!("CARGO_PKG_VERSION"),
            "ssh://root@b",
        ]);
    }
    assert_eq!(world.inventories(), before);
}

/// Another build of the program: what follows the end of a program is no part of it, and its hash is another.
fn other_build(directory: &Path) -> PathBuf {
    let path = directory.join("tranship");
    let mut bytes = std::fs::read(program()).unwrap();
    bytes.extend(b"another build");
    std::fs::write(&path, bytes).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).unwrap();
    path
}

fn run_build(world: &World, build: &Path, args: &[&str]) -> Outcome {
    let usual = world.command(args);
    let mut command = Command::new(build);
    command.args(args).env_clear();
    for (name, value) in usual.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    finish(command.spawn().unwrap())
}

/// The program file of the agent that runs on a node, and its process.
fn agent(node: &Node) -> (String, String) {
    let lines = node.sh("pgrep -f 'agent --serve' | head -1").unwrap();
    let pid = lines.trim().to_owned();
    let program = node.sh(&format!("readlink /proc/{pid}/exe")).unwrap();
    (program.trim().to_owned(), pid)
}

#[test]
fn an_update_waits_until_the_migration_under_way_is_over() {
    let world = world!();
    world.serve(&["-v", "data:/data"]);
    let newer_place = tempfile::tempdir().unwrap();
    let newer = other_build(newer_place.path());
    let child = world.begin_held(&world.a, "source.frozen", &["--mode", "cold"]);
    let old = [agent(&world.a), agent(&world.b)];
    // The other build works with the agents that are at work, and lets them be.
    let shown = run_build(&world, &newer, &["status", "--json"]).expect(0).json();
    assert_eq!(shown[0]["migration"]["departure"], "frozen", "{shown}");
    assert_eq!([agent(&world.a), agent(&world.b)], old);
    // One that speaks another protocol cannot be worked with, and is let be as well.
    set(&world.a, "protocol", "2 3 2.0.0");
    run_build(&world, &newer, &["list", "--node", "ssh://root@a"])
        .expect(1)
        .saying(&[
            "agent.version",
            "2.0.0",
            env!("CARGO_PKG_VERSION"),
            "hint: that one is at work",
        ]);
    set(&world.a, "protocol", "");
    assert_eq!([agent(&world.a), agent(&world.b)], old);
    world.arm(&world.a, "none");
    finish(child).expect(0);
    assert!(serves(world.b.address(), 8080) && !is_running(&world.a, "web"));
    // Once nothing is under way, the other build takes the place of the first, and knows what was.
    wait_until(|| {
        // A way in stays open for a while, for a source that did not hear the last answer.
        run_build(
            &world,
            &newer,
            &["list", "--node", "ssh://root@a", "--node", "ssh://root@b"],
        );
        let new = [agent(&world.a), agent(&world.b)];
        new[0].0 != old[0].0 && new[1].0 != old[1].0
    });
    let shown = run_build(&world, &newer, &["status", "--json"]).expect(0).json();
    assert_eq!(shown[0]["migration"]["status"], "complete", "{shown}");
}

#[test]
fn clocks_that_are_years_apart_and_step_change_nothing() {
    const YEARS: i64 = 10 * 365 * 24 * 3600 * 1000;
    let world = world!();
    world.serve(&["-v", "data:/data"]);
    for (here, there) in [(YEARS, -YEARS), (-YEARS, YEARS)] {
        set(&world.a, "clock", &here.to_string());
        set(&world.b, "clock", &there.to_string());
        for mode in ["cold", "warm"] {
            there_and_back(&world, mode);
        }
    }
    // Both clocks step in the middle, an agent is killed, and one that starts again reads records of its future.
    let before = world.inventories();
    for (place, node, end) in [
        ("source.frozen", &world.a, 4),
        ("destination.created", &world.b, 4),
        ("source.committed", &world.a, 0),
    ] {
        let child = world.begin_held(node, place, &["--mode", "cold"]);
        set(&world.a, "clock", &(-2 * YEARS).to_string());
        set(&world.b, "clock", &(2 * YEARS).to_string());
        node.kill_running("agent --serve");
        world.arm(node, "none");
        let outcome = finish(child);
        assert_eq!(outcome.code, end, "{place}: {}", outcome.stderr);
        world.run(&["status"]);
        if end == 4 {
            wait_until(|| world.inventories() == before);
            assert!(serves(world.a.address(), 8080), "{place}");
        } else {
            wait_until(|| get(world.b.address(), 8080));
            assert!(!is_running(&world.a, "web"), "{place}");
        }
        set(&world.a, "clock", &YEARS.to_string());
        set(&world.b, "clock", "0");
    }
    assert_eq!(
        inspect(&world.b, "web", "{{.HostConfig.RestartPolicy.Name}}"),
        "always"
    );
}

#[test]
fn a_program_whose_file_is_gone_while_it_runs_still_works() {
    let world = world!();
    world.serve(&[]);
    std::fs::copy(program(), world.a.root().unwrap().join("usr/local/bin/tranship")).unwrap();
    // The descriptor leads to what has no name any more, as for a caller over whose upload another one put the same.
    // The first command starts an agent of it, and the second one knows that agent for its own.
    let copy = |name: &str| format!("/proc/self/fd/3 cp web:/etc/passwd /srv/{name} 3<&3");
    let script = format!(
        "exec 3</usr/local/bin/tranship && rm /usr/local/bin/tranship && {} && pgrep -f agent.--serve >/srv/1 && \
         {} && pgrep -f agent.--serve >/srv/2 && cmp /srv/one /srv/two && cmp /srv/1 /srv/2 && test -s /srv/one",
        copy("one"),
        copy("two")
    );
    world.a.exec_ok(["bash", "-c", &script]).unwrap();
}
