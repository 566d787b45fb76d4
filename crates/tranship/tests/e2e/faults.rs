//! Every fail point with every victim, on real hosts: at most one instance at every moment, one at the end, nothing left.
//!
//! A run arms one place, moves a container cold, lets the fault happen, brings the agents back with `tranship status`, and
//! looks. `TRANSHIP_FAULTS=all` goes through every place; without it, a sample that fits into continuous integration's
//! time is taken. The places that were reached are collected; one that no run reached fails the test that goes through all.

#![allow(clippy::print_stdout, reason = "a run says how it ended")]

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tranship_migrate::failpoint;
use tranship_testkit::testbed::{Link, Node};

use crate::world::{World, finish, is_running, wait_until};

/// Looks every 20 ms whether `web` runs on both hosts at once.
struct Poller {
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicUsize>,
    thread: JoinHandle<Option<String>>,
}

/// The state of `web` as the engine says it; nothing where no engine answers.
fn state_of(socket: &PathBuf) -> Option<String> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    stream
        .write_all(b"GET /v1.41/containers/web/json HTTP/1.0\r\nHost: d\r\n\r\n")
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split("\"Status\":\"").nth(1)?;
    Some(status.split('"').next()?.to_owned())
}

impl Poller {
    fn start(a: &Node, b: &Node) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let looks = Arc::new(AtomicUsize::new(0));
        let (a, b, told, counted) = (a.clone(), b.clone(), Arc::clone(&stop), Arc::clone(&looks));
        let thread = std::thread::spawn(move || {
            let mut twice = None;
            while !told.load(Ordering::Relaxed) {
                let runs = |node: &Node| {
                    let state = node.engine_socket().ok().and_then(|s| state_of(&s));
                    state.as_deref() == Some("running")
                };
                // The source is looked at before and after, so that a hand-over in between does not count.
                if runs(&a) && runs(&b) && runs(&a) && twice.is_none() {
                    twice = Some(format!("at look {}", counted.load(Ordering::Relaxed)));
                }
                counted.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
            twice
        });
        Self { stop, looks, thread }
    }

    #[track_caller]
    fn end(self, what: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let twice = self.thread.join().unwrap();
        assert!(self.looks.load(Ordering::Relaxed) > 0, "{what}: nobody looked");
        assert_eq!(twice, None, "{what}: two instances ran");
    }
}

/// What goes wrong, where.
#[derive(Clone)]
struct Run {
    what: String,
    at_source: Option<String>,
    at_destination: Option<String>,
    kill_caller: bool,
}

impl Run {
    fn new(what: &str, source: Option<&str>, destination: Option<&str>) -> Self {
        Self {
            what: what.to_owned(),
            at_source: source.map(str::to_owned),
            at_destination: destination.map(str::to_owned),
            kill_caller: false,
        }
    }
}

/// The agent that reaches the place dies there. Places of the way back need something that sends it there.
fn killed_at(point: &str) -> Run {
    let die = format!("{point}=die");
    if point.starts_with("source.") {
        return Run::new(&die, Some(&die), None);
    }
    let back = matches!(
        point,
        "destination.discard" | "destination.discarding" | "destination.removed"
    );
    Run::new(&die, back.then_some("source.committed=fail"), Some(&die))
}

/// The caller is killed while an agent waits at the place.
fn caller_killed_at(point: &str) -> Run {
    let wait = format!("{point}=wait:1500");
    let mut run = if point.starts_with("source.") {
        Run::new(&wait, Some(&wait), None)
    } else {
        Run::new(&wait, None, Some(&wait))
    };
    run.what = format!("caller killed at {point}");
    run.kill_caller = true;
    run
}

struct Faults {
    world: World,
    empty: (Vec<String>, Vec<String>),
    reached: BTreeSet<String>,
}

impl Faults {
    fn new(world: World) -> Self {
        let _image = world.a.load_image("busybox").unwrap();
        let mut this = Self {
            empty: (Vec::new(), Vec::new()),
            world,
            reached: BTreeSet::new(),
        };
        this.clear();
        this.empty = this.world.inventories();
        this
    }

    fn clear(&mut self) {
        for node in [&self.world.a, &self.world.b] {
            node.sh(
                "rm -f /run/tranship/fail-point; docker rm -f web >/dev/null 2>&1; docker volume rm -f data >/dev/null 2>&1; \
                 docker network rm back >/dev/null 2>&1; rm -f /run/tranship/fail-point.reached; true",
            )
            .unwrap();
        }
        self.world
            .b
            .sh("docker images -q tranship-test/busybox | xargs -r docker rmi -f >/dev/null 2>&1; true")
            .unwrap();
    }

    fn note_reached(&mut self) {
        for node in [&self.world.a, &self.world.b] {
            let list = node
                .sh("cat /run/tranship/fail-point.reached 2>/dev/null; true")
                .unwrap();
            self.reached.extend(list.lines().map(str::to_owned));
        }
    }

    /// One run to its end; what `meanwhile` does happens once the migration was begun.
    fn run(&mut self, run: &Run, meanwhile: impl FnOnce(&World)) {
        let what = &run.what;
        self.clear();
        let world = &self.world;
        world.a.exec_ok(["docker", "network", "create", "back"]).unwrap();
        world.serve(&["-v", "data:/data", "--network", "back"]);
        world
            .a
            .exec_ok(["docker", "exec", "web", "sh", "-c", "echo kept > /data/file"])
            .unwrap();
        let before = world.inventories();
        for (node, arm) in [(&world.a, &run.at_source), (&world.b, &run.at_destination)] {
            world.arm(node, arm.as_deref().unwrap_or("none"));
        }
        let poller = Poller::start(&world.a, &world.b);
        let begun = Instant::now();
        let mut child = world
            .command(&[
                "migrate",
                "web",
                "--from",
                "ssh://root@a",
                "--to",
                "ssh://root@b",
                "--mode",
                "cold",
                "--hook-pre-freeze",
                "true",
            ])
            .spawn()
            .unwrap();
        meanwhile(world);
        if run.kill_caller {
            let point = run.what.rsplit(' ').next().unwrap().to_owned();
            let node = if point.starts_with("source.") {
                &world.a
            } else {
                &world.b
            };
            let deadline = Instant::now() + Duration::from_secs(20);
            while Instant::now() < deadline
                && !node
                    .exec(["grep", "-qsx", &point, "/run/tranship/fail-point.reached"])
                    .unwrap()
                    .success()
                && child.try_wait().unwrap().is_none()
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            child.kill().unwrap();
        }
        let outcome = finish(child);
        assert!(!outcome.stderr.contains("panicked"), "{what}: {}", outcome.stderr);
        for node in [&world.a, &world.b] {
            world.arm(node, "none");
        }
        // Any command brings the agents back; they settle by themselves.
        let settled = || {
            let status = world.run(&["status", "--json"]);
            let views: serde_json::Value = serde_json::from_str(&status.stdout).unwrap_or_default();
            let views = views.as_array()?;
            let state = |key: &str| {
                views
                    .iter()
                    .find_map(|v| v["migration"][key].as_str().map(str::to_owned))
            };
            Some((state("departure"), state("arrival")))
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut seen = None;
        let complete = loop {
            assert!(
                Instant::now() < deadline,
                "{what}: not settled after a minute: {seen:?}\n{}",
                outcome.stderr
            );
            seen = settled();
            match &seen {
                Some((Some(d), a)) if d == "complete" && a.as_deref() == Some("adopted") => break true,
                Some((Some(d), a)) if d == "rolled-back" && a.as_deref().is_none_or(|a| a == "discarded") => {
                    break false;
                }
                // It never began.
                Some((None, None)) | None if outcome.code == 1 => break false,
                _ => std::thread::sleep(Duration::from_millis(300)),
            }
        };
        if complete {
            assert!(!is_running(&world.a, "web"), "{what}: the source runs");
            wait_until(|| is_running(&world.b, "web"));
            let kept = world
                .b
                .exec_ok(["docker", "exec", "web", "cat", "/data/file"])
                .unwrap();
            assert_eq!(kept.trim(), "kept", "{what}");
        } else {
            wait_until(|| is_running(&world.a, "web"));
            wait_until(|| world.inventories() == before);
        }
        poller.end(what);
        println!(
            "{what}: {} after {:.1} s, exit code {}",
            if complete { "complete" } else { "rolled back" },
            begun.elapsed().as_secs_f64(),
            outcome.code
        );
        self.note_reached();
        self.clear();
        wait_until(|| self.world.inventories() == self.empty);
    }
}

/// A sample of the places, or all of them.
fn places() -> (Vec<&'static str>, bool) {
    let all = std::env::var("TRANSHIP_FAULTS").is_ok_and(|v| v == "all");
    if all {
        return (failpoint::ALL.to_vec(), true);
    }
    let sample = [
        "source.frozen",
        "source.committed",
        "source.adopt",
        "destination.committed",
        "destination.started",
        "destination.adopted",
        "destination.removed",
    ];
    (sample.to_vec(), false)
}

#[test]
fn an_agent_killed_anywhere_leaves_one_instance() {
    let mut faults = Faults::new(world!());
    let (places, all) = places();
    for point in &places {
        faults.run(&killed_at(point), |_| {});
    }
    let missed: Vec<_> = places.iter().filter(|p| !faults.reached.contains(**p)).collect();
    println!(
        "{} of {} places were reached by an agent that died there",
        places.len() - missed.len(),
        places.len()
    );
    assert!(missed.is_empty(), "not reached: {missed:?}");
    if all {
        let strange: Vec<_> = faults
            .reached
            .iter()
            .filter(|r| !failpoint::ALL.contains(&r.as_str()))
            .collect();
        assert!(strange.is_empty(), "not in the list: {strange:?}");
    }
}

#[test]
fn a_caller_killed_anywhere_leaves_one_instance() {
    let mut faults = Faults::new(world!());
    let (places, _) = places();
    for point in places {
        if !matches!(
            point,
            "destination.discard" | "destination.discarding" | "destination.removed"
        ) {
            faults.run(&caller_killed_at(point), |_| {});
        }
    }
}

#[test]
fn engines_hosts_and_links_that_fail_around_the_commit_leave_one_instance() {
    let mut faults = Faults::new(world!());
    let reached = |node: &Node, point: &str| {
        wait_until(|| {
            node.exec(["grep", "-qsx", point, "/run/tranship/fail-point.reached"])
                .unwrap()
                .success()
        });
    };
    let frozen = Run::new(
        "source host rebooted while frozen",
        Some("source.frozen=wait:4000"),
        None,
    );
    faults.run(&frozen, |w| {
        reached(&w.a, "source.frozen");
        w.a.reboot().unwrap();
    });
    let committed = Run::new(
        "source host rebooted after the commit",
        Some("source.committed=wait:4000"),
        None,
    );
    faults.run(&committed, |w| {
        reached(&w.a, "source.committed");
        w.a.reboot().unwrap();
    });
    let started = Run::new(
        "destination host rebooted after its start",
        None,
        Some("destination.started=wait:4000"),
    );
    faults.run(&started, |w| {
        reached(&w.b, "destination.started");
        w.b.reboot().unwrap();
    });
    let engine = Run::new(
        "destination engine restarted after its start",
        None,
        Some("destination.started=wait:3000"),
    );
    faults.run(&engine, |w| {
        reached(&w.b, "destination.started");
        w.b.restart_engine().unwrap();
    });
    let engine = Run::new(
        "source engine restarted while frozen",
        Some("source.frozen=wait:3000"),
        None,
    );
    faults.run(&engine, |w| {
        reached(&w.a, "source.frozen");
        w.a.restart_engine().unwrap();
    });
    let link = Run::new("link cut at the commit", Some("source.committed=wait:2000"), None);
    faults.run(&link, |w| {
        reached(&w.a, "source.committed");
        w.b.set_link(Link::Down).unwrap();
        std::thread::sleep(Duration::from_secs(18));
        w.b.set_link(Link::Up).unwrap();
    });
}
