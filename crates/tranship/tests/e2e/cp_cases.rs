//! The acceptance cases of `tranship cp`, by their numbers: each is a function of `cp_cases.sh` that runs on a host with an engine.
//! Those that `docker cp` passes as well are run with it too, so that the cases themselves are tested.

use tranship_testkit::testbed::{Node, Options};

use crate::world::{World, program};

const SCRIPT: &str = include_str!("cp_cases.sh");
/// Number of the last case.
const LAST: u32 = 47;
/// What `docker cp` does not do there: xz, which it needs a program for that the host does not have, and copying from one container
/// to another.
const BEYOND_DOCKER: [u32; 2] = [27, 38];

#[test]
fn every_case_is_there_once() {
    for number in 1..=LAST {
        let function = format!("\nS{number:02}() {{");
        assert_eq!(SCRIPT.matches(&function).count(), 1, "{function}");
    }
}

#[test]
fn cases_1_to_24_by_docker_and_by_tranship() {
    run(1..=24);
}

#[test]
fn cases_25_to_47_by_docker_and_by_tranship() {
    run(25..=LAST);
}

/// Runs cases with both programs, each in a fresh fixture, and ends with all failures.
fn run(numbers: impl Iterator<Item = u32>) {
    let Some(world) = World::with(Options::default()) else {
        return;
    };
    let image = prepare(&world.a);
    let mut failures = Vec::new();
    let mut passed = 0;
    for number in numbers {
        for (command, socket) in [
            ("docker cp", "/var/run/docker.sock"),
            ("tranship cp", "/run/tranship/docker.sock"),
        ] {
            if command == "docker cp" && BEYOND_DOCKER.contains(&number) {
                continue;
            }
            let script = format!(
                "ID=S{number:02} IMAGE={image} CP='{command}' SOCK={socket}; . /srv/cases.sh; fixture; S{number:02}"
            );
            let done = world.a.exec(["timeout", "60", "sh", "-c", &script]).unwrap();
            if done.status.success() {
                passed += 1;
            } else {
                failures.push(format!("{command}: {}{}", done.stdout, done.stderr));
            }
        }
    }
    println!("{passed} passed");
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// The program, the cases and their archives on a host, whose agent is then started by a first copy.
fn prepare(node: &Node) -> String {
    let root = node.root().unwrap();
    std::fs::copy(program(), root.join("usr/local/bin/tranship")).unwrap();
    std::fs::write(root.join("srv/cases.sh"), SCRIPT).unwrap();
    let tree = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(tree.path().join("a/b")).unwrap();
    std::fs::write(tree.path().join("a/b/c"), "abc\n").unwrap();
    for (name, flags) in [
        ("tar", "cf"),
        ("tar.gz", "czf"),
        ("tar.bz2", "cjf"),
        ("tar.xz", "cJf"),
    ] {
        let made = std::process::Command::new("tar")
            .arg(flags)
            .arg(root.join(format!("srv/abc.{name}")))
            .arg("-C")
            .arg(tree.path())
            .arg("a")
            .status();
        assert!(made.unwrap().success());
    }
    let image = node.load_image("busybox").unwrap();
    node.sh(&format!(
        "docker create --name first {image} true && tranship cp first:/bin/busybox /srv && docker rm first"
    ))
    .unwrap();
    image
}
