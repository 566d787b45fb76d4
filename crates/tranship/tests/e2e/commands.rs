//! What a person does about a migration under way: `status`, `list`, `resume`, `abort`, `rollback`, `resolve`, `logs`, and
//! interrupts.

use std::process::Child;
use std::time::Duration;

use tranship_testkit::testbed::{Link, Node};

use crate::world::{Outcome, World, finish, get, inspect, is_running, serves, wait_until};

/// Begins a cold migration and waits until it stands at a place, which is held.
fn hold(world: &World, node: &Node, place: &str) -> Child {
    world.begin_held(node, place, &["--mode", "cold"])
}

fn on(world: &World, command: &str, options: &[&str]) -> Outcome {
    let id = world.newest_id();
    let mut args = vec![command, &id];
    args.extend(options);
    world.run(&args)
}

/// The source's state, as `status` shows it.
fn departure(world: &World) -> String {
    let shown = world.run(&["status", "--json"]);
    let views: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap_or_default();
    let states = views.as_array().into_iter().flatten();
    let mut states = states.filter_map(|v| v["migration"]["departure"].as_str());
    states.next().unwrap_or_default().to_owned()
}

#[test]
fn an_abort_takes_back_what_is_not_committed_and_a_rollback_what_is() {
    let world = world!();
    world.serve(&["-v", "data:/data"]);
    let before = world.inventories();
    let child = hold(&world, &world.b, "destination.created");
    let caller = std::thread::scope(|scope| {
        let asked = scope.spawn(|| on(&world, "abort", &[]));
        // It is heard while the step is under way, and the step ends in order.
        std::thread::sleep(Duration::from_millis(1500));
        world.arm(&world.b, "none");
        asked.join().unwrap().expect(0);
        finish(child)
    });
    caller.expect(4).saying(&["migrate.aborted"]);
    wait_until(|| world.inventories() == before);
    assert!(serves(world.a.address(), 8080));

    let child = hold(&world, &world.a, "source.health");
    on(&world, "abort", &[])
        .expect(1)
        .saying(&["migrate.too-late", "tranship rollback"]);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| on(&world, "rollback", &[]));
        std::thread::sleep(Duration::from_millis(1500));
        world.arm(&world.a, "none");
        asked.join().unwrap().expect(0);
    });
    finish(child).expect(4);
    wait_until(|| world.inventories() == before);
    assert!(serves(world.a.address(), 8080));
    on(&world, "rollback", &[])
        .expect(1)
        .saying(&["migrate.not-found"]);
    // Both nodes tell what happened.
    let log = on(&world, "logs", &[]).expect(0).stdout;
    for line in [
        "source: check begins",
        "destination: prepared",
        "destination: discarded",
    ] {
        assert!(log.contains(line), "{line:?} is not in\n{log}");
    }
    // And nothing stands in the way of the next try.
    world.begin(&["--mode", "cold"]).wait().unwrap();
    assert!(serves(world.b.address(), 8080));
    on(&world, "resume", &[]).expect(0).saying(&["is over: complete"]);
}

#[test]
fn resume_watches_what_goes_on_without_its_caller() {
    let world = world!();
    world.serve(&["-v", "data:/data"]);
    let mut child = hold(&world, &world.a, "source.frozen");
    child.kill().unwrap();
    child.wait().unwrap();
    let watched = std::thread::scope(|scope| {
        let watching = scope.spawn(|| on(&world, "resume", &[]));
        let again = scope.spawn(|| finish(world.begin(&["--mode", "cold"])));
        std::thread::sleep(Duration::from_secs(2));
        world.arm(&world.a, "none");
        again
            .join()
            .unwrap()
            .expect(0)
            .saying(&["does this already; watching it"]);
        watching.join().unwrap()
    });
    watched.expect(0);
    assert!(serves(world.b.address(), 8080) && !is_running(&world.a, "web"));
}

#[test]
fn doubt_is_shown_while_the_link_is_cut_and_ends_when_it_is_back() {
    let world = world!();
    world.serve(&["-v", "data:/data"]);
    let child = hold(&world, &world.a, "source.committed");
    world.b.set_link(Link::Down).unwrap();
    world.arm(&world.a, "none");
    finish(child)
        .expect(5)
        .saying(&["migrate.in-doubt", "tranship resolve", "hint:"]);
    let shown = world.run(&["status"]);
    assert_eq!(
        shown.code, 1,
        "a node that cannot be asked is a failure: {shown:?}"
    );
    assert!(shown.stdout.contains("in-doubt"), "{shown:?}");
    let listed = world.run(&["list", "--node", "ssh://root@a"]).expect(0);
    assert!(listed.stdout.contains("in-doubt"), "{listed:?}");
    assert!(!is_running(&world.a, "web"), "the source waits");
    // Nobody decides blindly.
    on(&world, "resolve", &["--owner", "source"])
        .expect(5)
        .saying(&["resolve.blind", "--force"]);
    world.b.set_link(Link::Up).unwrap();
    wait_until(|| {
        is_running(&world.a, "web") != is_running(&world.b, "web") && departure(&world) != "in-doubt"
    });
    assert!(serves(world.a.address(), 8080) || serves(world.b.address(), 8080));
}

#[test]
fn a_destination_that_is_gone_for_good_is_resolved_by_a_person() {
    let world = world!();
    world.serve(&["-v", "data:/data"]);
    let before = world.a.inventory().unwrap();
    let child = hold(&world, &world.a, "source.committed");
    world.b.power_off().unwrap();
    world.arm(&world.a, "none");
    finish(child).expect(5).saying(&["migrate.in-doubt"]);
    on(&world, "resolve", &["--owner", "source", "--force"]).expect(0);
    wait_until(|| get(world.a.address(), 8080));
    wait_until(|| departure(&world) == "rolled-back");
    assert_eq!(
        inspect(&world.a, "web", "{{.HostConfig.RestartPolicy.Name}}"),
        "always"
    );
    assert_eq!(world.a.inventory().unwrap(), before);
    // It comes back all the same, and does not start what it never was told to start.
    world.b.power_on().unwrap();
    world.run(&["status"]);
    wait_until(|| {
        !world
            .b
            .inventory()
            .unwrap()
            .iter()
            .any(|l| l.starts_with("container") || l.starts_with("volume"))
    });
    assert!(serves(world.a.address(), 8080));
}

#[test]
fn a_person_may_give_it_to_the_destination() {
    let world = world!();
    world.serve(&["-v", "data:/data"]);
    let child = hold(&world, &world.a, "source.health");
    // The two hosts do not hear each other, the caller hears both.
    let (a, b) = (world.a.address(), world.b.address());
    world
        .a
        .sh(&format!("iptables -w -I INPUT -s {b} -j DROP"))
        .unwrap();
    world
        .b
        .sh(&format!("iptables -w -I INPUT -s {a} -j DROP"))
        .unwrap();
    world.arm(&world.a, "none");
    finish(child).expect(5).saying(&["migrate.in-doubt"]);
    on(&world, "resolve", &["--owner", "destination"]).expect(0);
    wait_until(|| departure(&world) == "complete");
    assert!(serves(b, 8080) && !is_running(&world.a, "web"));
    assert_eq!(
        inspect(&world.b, "web", "{{.HostConfig.RestartPolicy.Name}}"),
        "always"
    );
    assert_eq!(
        inspect(&world.a, "web", "{{.HostConfig.RestartPolicy.Name}}"),
        "no"
    );
}

#[test]
fn an_interrupt_is_the_same_once_and_twice() {
    let world = world!();
    world.serve(&["-v", "data:/data"]);
    let before = world.inventories();
    for times in [1, 2] {
        let child = hold(&world, &world.b, "destination.created");
        for _ in 0..times {
            let interrupt = ["-INT", &child.id().to_string()];
            std::process::Command::new("kill")
                .args(interrupt)
                .status()
                .unwrap();
            std::thread::sleep(Duration::from_millis(700));
        }
        world.arm(&world.b, "none");
        let outcome = finish(child)
            .expect(4)
            .saying(&["migrate.aborted", "asking the source to roll back"]);
        assert_eq!(
            outcome.stderr.contains("interrupted again"),
            times == 2,
            "{}",
            outcome.stderr
        );
        wait_until(|| world.inventories() == before);
        assert!(serves(world.a.address(), 8080));
    }
    // After the commit it is too late, and said so.
    let child = hold(&world, &world.a, "source.start");
    let interrupt = ["-INT", &child.id().to_string()];
    std::process::Command::new("kill")
        .args(interrupt)
        .status()
        .unwrap();
    std::thread::sleep(Duration::from_millis(700));
    world.arm(&world.a, "none");
    finish(child).expect(0).saying(&["too late to go back"]);
    assert!(serves(world.b.address(), 8080) && !is_running(&world.a, "web"));
}
