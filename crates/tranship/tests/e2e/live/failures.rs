//! When it cannot go on there: the source goes on from its own memory as if nothing had happened.

use std::time::{Duration, Instant};

use tranship_testkit::testbed::Options;

use super::{life, nothing_dumped, numbers, without_gap};
use crate::world::{World, finish, is_running, reached, wait_until};

/// The counter goes on at `a` where it was, and nothing is left of the try.
#[track_caller]
fn counts_on_at_a(world: &World, before: &(Vec<String>, Vec<String>)) {
    let count = numbers(&world.a).len();
    wait_until(|| numbers(&world.a).len() > count + 5);
    without_gap(&numbers(&world.a));
    assert!(!is_running(&world.b, "web"));
    assert_eq!(&world.inventories(), before);
    nothing_dumped(&world.a);
    nothing_dumped(&world.b);
}

#[test]
fn before_the_commit_it_is_let_go_on_as_it_is() {
    let world = world!();
    world.count(&[]);
    let before = world.inventories();
    let as_it_was = life(&world.a);
    for (node, place) in [
        (&world.a, "source.frozen"),
        (&world.a, "source.delta-done"),
        (&world.b, "destination.element"),
        (&world.b, "destination.created"),
    ] {
        world.arm(node, &format!("{place}=fail"));
        world.migrate(&["--mode", "live"]).expect(4);
        world.arm(node, "");
        assert_eq!(life(&world.a), as_it_was, "{place}: it was never ended");
        counts_on_at_a(&world, &before);
    }
}

/// The destination is held once it has the memory and was told to start, `harm` is done there, and it is let go.
fn harmed(harm: &str, name: &str) {
    harmed_with(Options::default(), harm, name);
}

pub(crate) fn harmed_with(options: Options, harm: &str, name: &str) {
    let world = world!(options);
    world.count(&["-p", "8080:8080"]);
    let before = world.inventories();
    let child = world.begin_held(&world.b, "destination.committed", &["--mode", "live"]);
    assert!(
        !is_running(&world.a, "web"),
        "nothing runs between the commit and the start"
    );
    world.b.sh(harm).unwrap();
    let begun = Instant::now();
    world.arm(&world.b, "");
    wait_until(|| is_running(&world.a, "web"));
    let after = begun.elapsed();
    let outcome = finish(child).expect(4);
    world.b.sh("[ ! -e /tmp/undo ] || sh /tmp/undo").unwrap();
    counts_on_at_a(&world, &before);
    println!("{name}: it went on at the source after {} ms", after.as_millis());
    assert!(!outcome.stderr.contains("afresh"), "{}", outcome.stderr);
}

#[test]
fn an_image_that_is_missing_there() {
    harmed("rm /dev/shm/tranship-memory/*/images/core-1.img", "missing image");
}

#[test]
fn an_image_that_is_damaged_there() {
    harmed(
        "for f in /dev/shm/tranship-memory/*/images/pagemap-1.img; do head -c 30 /dev/zero > $f; done",
        "damaged image",
    );
}

#[test]
fn a_list_of_files_that_is_none() {
    harmed(
        "for f in /dev/shm/tranship-memory/*/images/files.img; do echo nothing > $f; done",
        "no list of open files",
    );
}

#[test]
fn a_port_that_is_taken_there_meanwhile() {
    harmed(
        "setsid busybox nc -ll -p 8080 -e cat > /dev/null 2>&1 < /dev/null & echo kill $! > /tmp/undo; sleep 0.3",
        "port taken",
    );
}

#[test]
fn no_restorer_there() {
    harmed(
        "mv $(command -v criu) /tmp/criu.away; echo mv /tmp/criu.away /usr/sbin/criu > /tmp/undo",
        "no CRIU",
    );
}

#[test]
fn agents_that_die_around_the_restore() {
    for (victim_is_a, place) in [
        (true, "source.committed"),
        (false, "destination.committed"),
        (false, "destination.started"),
        (true, "source.delta-done"),
    ] {
        let world = world!();
        world.count(&[]);
        let node = if victim_is_a { &world.a } else { &world.b };
        world.arm(node, &format!("{place}=die"));
        let outcome = world.migrate(&["--mode", "live"]);
        assert!(reached(node, place), "{place}");
        world.arm(node, "");
        println!("{place}: exit code {}", outcome.code);
        let id = world.newest_id();
        let deadline = Instant::now() + Duration::from_secs(60);
        let (mut on_a, mut on_b);
        loop {
            let status = world.run(&["status", &id]);
            on_a = is_running(&world.a, "web");
            on_b = is_running(&world.b, "web");
            assert!(!(on_a && on_b), "{place}: two run\n{}", status.stdout);
            let over = status.stdout.contains("complete") || status.stdout.contains("rolled back");
            if over && (on_a || on_b) {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{place}: {}\n{}",
                status.stdout,
                status.stderr
            );
            std::thread::sleep(Duration::from_millis(200));
        }
        // Wherever it is, it counts on from where it was.
        let mut all = numbers(&world.a);
        if on_b {
            wait_until(|| numbers(&world.b).len() > 5);
            all.extend(numbers(&world.b));
        }
        without_gap(&all);
        nothing_dumped(&world.a);
        nothing_dumped(&world.b);
    }
}

#[test]
fn an_end_of_its_own_is_not_undone_from_a_dump() {
    let world = world!();
    world.count(&[]);
    // It was dumped while it ran. Then somebody ends it, before the freeze.
    let child = world.begin_held(&world.a, "source.freeze", &["--mode", "live"]);
    let counted = numbers(&world.a).len();
    wait_until(|| numbers(&world.a).len() > counted + 20);
    world.a.exec_ok(["docker", "stop", "-t", "0", "web"]).unwrap();
    world.arm(&world.a, "");
    finish(child).expect(4);
    wait_until(|| is_running(&world.a, "web"));
    // It begins anew: from the dump it would count again what it has counted already.
    wait_until(|| numbers(&world.a).iter().filter(|n| **n == 1).count() == 2);
    nothing_dumped(&world.a);
    nothing_dumped(&world.b);
}

#[test]
fn memory_that_grows_beyond_what_is_free_lets_it_go_on() {
    // Grows by half a gigabyte when it is told to.
    const GROWS: &str = "import os, signal, time
kept = []
signal.signal(signal.SIGUSR1, lambda *_: kept.append(os.urandom(500 << 20)))
number = 0
while True:
    number += 1
    print(number, flush=True)
    time.sleep(0.05)
";
    let world = world!();
    // As it is on small machines, where it is half of the memory.
    world.a.sh("mount -o remount,size=400m /dev/shm").unwrap();
    let image = world.a.load_image("python").unwrap();
    let run = [
        "docker", "run", "-d", "--name", "web", &image, "python3", "-c", GROWS,
    ];
    world.a.exec_ok(run).unwrap();
    wait_until(|| numbers(&world.a).len() > 10);
    let before = world.inventories();
    let as_it_was = life(&world.a);
    let child = world.begin_held(&world.a, "source.freeze", &["--mode", "live"]);
    world.a.sh("docker kill -s USR1 web").unwrap();
    wait_until(|| {
        let used = world
            .a
            .sh("awk '/RssAnon/ { print $2 }' /proc/$(docker inspect -f '{{.State.Pid}}' web)/status");
        used.unwrap().trim().parse::<u64>().unwrap() > 500 << 10
    });
    world.arm(&world.a, "");
    let outcome = finish(child).expect(4);
    assert!(outcome.stderr.contains("MiB by now"), "{}", outcome.stderr);
    assert_eq!(life(&world.a), as_it_was, "it was never ended");
    counts_on_at_a(&world, &before);
}
