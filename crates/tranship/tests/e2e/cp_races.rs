//! A directory in the container is exchanged with a symbolic link that leads out of it, all the time, while files are copied in
//! and out by the real program. A thread of the test makes the exchanges in the container's own file system, as a process in it
//! could, but faster. Whoever takes paths at their word reads and writes the host's files then.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tranship_testkit::testbed::Options;

use crate::world::{World, finish};

/// Exchanges that have to happen while copies run.
const SWAPS: u64 = 100_000;
/// Copies each way that have to run meanwhile.
const COPIES: u64 = 40;

/// Exchanges `x` and `y` until told to stop.
fn exchange(directory: &Path, stop: &AtomicBool, count: &AtomicU64) {
    use rustix::fs::{RenameFlags, renameat_with};
    let directory = std::fs::File::open(directory).unwrap();
    while !stop.load(Ordering::Relaxed) {
        renameat_with(
            directory.as_fd(),
            "x",
            directory.as_fd(),
            "y",
            RenameFlags::EXCHANGE,
        )
        .unwrap();
        count.fetch_add(1, Ordering::Relaxed);
        // As fast as processes of a container can, and the two ends of the copy get their turn.
        std::thread::yield_now();
    }
}

#[test]
fn links_that_are_swapped_in_lead_neither_reader_nor_writer_out() {
    let Some(world) = World::with(Options::default()) else {
        return;
    };
    let image = world.a.load_image("busybox").unwrap();
    // The link is absolute: in the container it leads to a decoy, on the host to a tree that must stay as it is.
    let script = format!(
        "mkdir -p /srv/canary/s1 /srv/canary/s2 && for d in . s1 s2; do echo outside >/srv/canary/$d/f; done
        docker run -d --name c1 --network none {image} sleep 86400
        docker exec c1 sh -c 'mkdir -p /srv/canary/s1 /srv/canary/s2 /srv/x/s1 /srv/x/s2 && ln -s /srv/canary /srv/y
            for d in . s1 s2; do echo decoy >/srv/canary/$d/f; echo inside >/srv/x/$d/f; done'"
    );
    world.a.sh(&script).unwrap();
    let look = "cd /srv/canary && find . | sort | xargs stat -c '%n %i %s %a %Y %Z' && cat f s1/f s2/f";
    let before = world.a.sh(look).unwrap();
    let process = crate::world::inspect(&world.a, "c1", "{{.State.Pid}}");
    let seen_from_host = format!("/proc/{process}/root/srv");
    let files = world.state.path().join("files");
    for directory in ["x/s1", "x/s2"] {
        std::fs::create_dir_all(files.join(directory)).unwrap();
    }
    // Entries that go to and fro between directories, so that each is found anew.
    for number in 0..100 {
        std::fs::write(files.join(format!("x/s{}/n{number}", 1 + number % 2)), "copied").unwrap();
    }
    let cp = |from: &str, to: &str| {
        let mut command = world.command(&["cp", from, to]);
        command.current_dir(&files);
        finish(command.spawn().unwrap())
    };
    let node = "ssh://root@a//";
    cp("x/s1/n0", &format!("{node}c1:/srv/warm-up")).expect(0);
    // The directory as the container has it: the exchanges are made in its own file system.
    let merged = crate::world::inspect(&world.a, "c1", "{{.GraphDriver.Data.MergedDir}}");
    let inside = world
        .a
        .root()
        .unwrap()
        .join(merged.trim_start_matches('/'))
        .join("srv");
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut done, mut refused, mut naive) = (0, 0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| exchange(&inside, &stop, &count));
        let mut run = 0;
        let mut all = || {
            while run < COPIES || count.load(Ordering::Relaxed) < SWAPS {
                run += 1;
                let out = format!("out{run}");
                for (from, to) in [
                    ("x".to_owned(), format!("{node}c1:/srv")),
                    ("x/.".to_owned(), format!("{node}c1:/srv/x")),
                    (format!("{node}c1:/srv/x/."), out.clone()),
                    (format!("{node}c1:/srv/x/s1/f"), "one".to_owned()),
                ] {
                    let outcome = cp(&from, &to);
                    match outcome.code {
                        0 => done += 1,
                        1 => refused += 1,
                        code => panic!("{code}: {}", outcome.stderr),
                    }
                    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
                }
                for place in [files.join(&out), files.join("one")] {
                    assert!(!holds(&place, "outside"), "run {run} read a file of the host");
                }
                let _ = std::fs::remove_dir_all(files.join(out));
            }
            assert_eq!(
                world.a.sh(look).unwrap(),
                before,
                "a file of the host was written"
            );
            // The control: whoever takes the path at its word on the host does get out, reading and writing.
            let reads = format!(
                "i=0; while [ $i -lt 300 ]; do cat {seen_from_host}/x/f; i=$((i+1)); done 2>/dev/null; true"
            );
            naive = world.a.sh(&reads).unwrap().matches("outside").count();
            let writes = format!(
                "i=0; while [ $i -lt 300 ]; do echo escaped >{seen_from_host}/x/f; i=$((i+1)); done 2>/dev/null; true"
            );
            world.a.sh(&writes).unwrap();
        };
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut all));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    });
    let swaps = count.load(Ordering::Relaxed);
    println!(
        "{swaps} exchanges, {done} copies done, {refused} refused; the naive reader got out {naive} times of 300"
    );
    assert!(swaps >= SWAPS && done > 0 && refused > 0 && naive > 0);
    assert_eq!(world.a.sh("cat /srv/canary/f").unwrap(), "escaped\n");
}

/// Whether a file there, or below, has this text.
fn holds(path: &Path, text: &str) -> bool {
    if path.is_dir() && !path.is_symlink() {
        let entries = std::fs::read_dir(path).unwrap();
        return entries
            .into_iter()
            .any(|entry| holds(&entry.unwrap().path(), text));
    }
    std::fs::read_to_string(path).is_ok_and(|content| content.contains(text))
}
