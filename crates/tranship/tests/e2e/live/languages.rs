//! Programs of runtimes that compile as they run: Node and Java, with what they start by themselves (pools of threads, timers, collectors).

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use tranship_testkit::testbed::Node;

use super::{nothing_dumped, numbers, without_gap};
use crate::podman;
use crate::world::{World, wait_until};
use tranship_testkit::testbed::Options;

/// A program of a test image that counts, writes what it counted into the file that it is given, and tells of itself by HTTP.
struct Program {
    image: &'static str,
    command: &'static [&'static str],
    /// What it tells that is the same for its whole life.
    same: &'static [&'static str],
    /// What it tells that grows.
    grows: &'static [&'static str],
}

const NODE: Program = Program {
    image: "node",
    command: &["node", "/opt/counting.js", "/srv/log"],
    same: &["token", "pid", "childPid", "missed"],
    grows: &["counted", "ticks", "worker", "child"],
};

const JAVA: Program = Program {
    image: "java",
    command: &["java", "-Xmx64m", "-cp", "/opt", "Counting", "/srv/log"],
    same: &["token", "pid"],
    grows: &["counted", "ticks", "work"],
};

/// What the program tells by HTTP, if it answers.
fn told(address: Ipv4Addr) -> Option<BTreeMap<String, String>> {
    let mut stream = TcpStream::connect((address, 8080)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let body = answer
        .starts_with("HTTP/1.1 200")
        .then(|| answer.split_once("\r\n\r\n"))??
        .1;
    let pairs = body.lines().filter_map(|line| line.split_once('='));
    let facts: BTreeMap<String, String> = pairs.map(|(k, v)| (k.trim().to_owned(), v.to_owned())).collect();
    facts.contains_key("pid").then_some(facts)
}

impl Program {
    fn run(&self, world: &World, options: &[&str]) {
        let image = world.a.load_image(self.image).unwrap();
        let client = world.a.engine().client();
        let mut args = vec![
            client,
            "run",
            "-d",
            "--name",
            "web",
            "-p",
            "8080:8080",
            "-v",
            "data:/srv",
        ];
        args.extend(options);
        args.push(&image);
        args.extend(self.command);
        world.a.exec_ok(&args).unwrap();
        wait_until(|| told(world.a.address()).is_some_and(|facts| self.has_begun(&facts)));
    }

    fn has_begun(&self, facts: &BTreeMap<String, String>) -> bool {
        self.grows.iter().all(|key| number(facts, key) > 5)
    }

    /// Moves it, and sees that it is the same there and goes on with everything.
    fn moves(
        &self,
        world: &World,
        (from, source): (&str, &Node),
        (to, there): (&str, &Node),
        options: &[&str],
    ) {
        let before = told(source.address()).unwrap();
        let report = world.live(from, to, options);
        println!(
            "{} {from} to {to}: downtime {} ms",
            self.image, report["downtime_ms"]
        );
        wait_until(|| told(there.address()).is_some());
        let after = told(there.address()).unwrap();
        for key in self.same {
            assert_eq!(before[*key], after[*key], "{key}");
        }
        for key in self.grows {
            assert!(
                number(&after, key) >= number(&before, key),
                "{key}: {before:?}\n{after:?}"
            );
        }
        wait_until(|| {
            let now = told(there.address()).unwrap();
            self.grows
                .iter()
                .all(|key| number(&now, key) > number(&after, key) + 5)
        });
        let last = *numbers(source).last().unwrap();
        let here = numbers(there);
        without_gap(&here);
        assert_eq!(last + 1, here[0], "it went on where it was");
    }

    /// There and back.
    fn goes_on(&self, options: Options) {
        let world = world!(options);
        self.run(&world, &[]);
        let (a, b) = (("a", &world.a), ("b", &world.b));
        self.moves(&world, a, b, &[]);
        self.moves(&world, b, a, &["--replace", "--volume-conflict", "replace"]);
        // What it wrote all the way, into the file that it had open.
        let client = world.a.engine().client();
        let log = world
            .a
            .exec_ok([client, "exec", "web", "cat", "/srv/log"])
            .unwrap();
        let mut written: Vec<u64> = log.lines().map(|line| line.parse().unwrap()).collect();
        // Node writes from a pool of threads, which may overtake each other.
        written.sort_unstable();
        without_gap(&written);
        assert_eq!(written[0], 1);
        nothing_dumped(&world.a);
        nothing_dumped(&world.b);
    }
}

fn number(facts: &BTreeMap<String, String>, key: &str) -> u64 {
    facts[key].parse().unwrap()
}

#[test]
fn node_goes_on_with_its_worker_and_its_child() {
    NODE.goes_on(Options::default());
}

#[test]
fn node_goes_on_where_podman_runs_it() {
    NODE.goes_on(podman::options());
}

#[test]
fn java_goes_on_with_its_threads() {
    JAVA.goes_on(Options::default());
}

#[test]
fn java_goes_on_where_podman_runs_it() {
    JAVA.goes_on(podman::options());
}

#[test]
fn an_io_uring_is_told_before_anything_moves_with_what_keeps_programs_from_it() {
    let world = world!();
    // The engine's own profile forbids it; what Node is told by its variable does not count for the one that it waits with.
    NODE.run(
        &world,
        &["--security-opt", "seccomp=unconfined", "-e", "UV_USE_IO_URING=0"],
    );
    let found = world.findings("web", &["--mode", "live"]);
    assert!(
        found.contains(&("live.file".to_owned(), "conflict".to_owned())),
        "{found:?}"
    );
    let outcome = world.migrate(&["--mode", "live"]).expect(1);
    outcome.saying(&["io_uring", "seccomp"]);
    assert!(told(world.a.address()).is_some());
    nothing_dumped(&world.a);
}
