//! What goes wrong around a sink: processes that are killed, full disks, names that are swapped under it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "a test says what it skips")]

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use support::{Peer, Sides, delta, differences, id, read_tree, sides, sync, tree_id, with_sink};
use tranship_content::entry::{Entry, EntryKind, Timestamp};
use tranship_content::frame::{FrameReader, FrameWriter};
use tranship_content::message::{Message, Operation, Wants};
use tranship_content::sink::{self, SinkOptions};
use tranship_core::fault::Explain as _;

/// A sink in a process of its own, for killing it: this very test program, run again.
struct SinkProcess {
    child: Child,
    listener: UnixListener,
}

/// Where the process finds what it is to do: it runs in the directory of the test.
const JOB: &str = "sink-job";

impl SinkProcess {
    fn start(sides: &Sides) -> Self {
        let at = sides.all.path();
        let _ = fs::remove_file(at.join("socket"));
        let listener = UnixListener::bind(at.join("socket")).unwrap();
        fs::write(at.join(JOB), b"").unwrap();
        #[allow(clippy::disallowed_methods, reason = "the program to run again is this one")]
        let program = std::env::current_exe().unwrap();
        let child = Command::new(program)
            .args(["--exact", "process_that_is_killed", "--ignored", "--nocapture"])
            .stdout(std::process::Stdio::null())
            .current_dir(at)
            .spawn()
            .unwrap();
        Self { child, listener }
    }

    fn peer(&self) -> Peer {
        let (stream, _) = self.listener.accept().unwrap();
        Peer {
            frames: FrameReader::new(stream.try_clone().unwrap()),
            out: FrameWriter::new(stream.try_clone().unwrap()),
            stream,
            base: Vec::new(),
        }
    }
}

impl Drop for SinkProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Run only as a process of other tests.
#[test]
#[ignore = "a part of other tests"]
fn process_that_is_killed() {
    if !Path::new(JOB).exists() {
        return;
    }
    let stream = UnixStream::connect("socket").unwrap();
    let options = SinkOptions {
        root: "to/root".into(),
        work: "work".into(),
        overlay: false,
    };
    let result = sink::round(stream.try_clone().unwrap(), stream, &options, &|_| {});
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    let mut out = fs::File::create("peak").unwrap();
    write!(out, "{peak}").unwrap();
    result.unwrap();
}

fn fill(root: &Path, seed: u64, files: u64) {
    for number in 0..files {
        let directory = root
            .join(format!("d{}", number % 7))
            .join(format!("e{}", number % 3));
        fs::create_dir_all(&directory).unwrap();
        let length = (number * 7919 + seed * 31) % 9000 + if number % 50 == 0 { 400_000 } else { 0 };
        let bytes: Vec<u8> = (0..length)
            .map(|at| (at.wrapping_mul(seed * 2 + 1) >> 3) as u8 ^ number as u8)
            .collect();
        fs::write(directory.join(format!("f{number}")), bytes).unwrap();
    }
}

#[test]
fn a_killed_sink_leaves_whole_bytes_and_the_next_round_ends_it() {
    let mut broken = 0;
    for run in 0..12_u64 {
        let sides = sides();
        fill(&sides.from, 1, 400);
        if run % 2 == 1 {
            sync(&sides.from, &sides.to, &sides.work);
            fill(&sides.from, 1 + run, 300);
            fs::remove_dir_all(sides.from.join("d3")).unwrap();
            fs::write(sides.from.join("d3"), b"a file now").unwrap();
        }
        let mut process = SinkProcess::start(&sides);
        let mut peer = process.peer();
        let pid = process.child.id();
        let killed = std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_micros(3_000 + run * 4_300));
                let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            });
            // It dies somewhere in here.
            let source = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                peer.open(Wants {
                    frozen: true,
                    durable: true,
                });
                let new = read_tree(&sides.from);
                let operations = delta(&peer.base, &new, &sides.from);
                for few in operations.chunks(8) {
                    peer.operations(few);
                }
                matches!(peer.end(&tree_id(&new)), Message::Applied(_))
            }));
            !matches!(source, Ok(true))
        });
        let _ = process.child.wait();
        broken += u32::from(killed);
        // Whatever has a final name has bytes of the one or the other state from its beginning.
        for entry in read_tree(&sides.to) {
            let EntryKind::File { size, .. } = entry.kind else {
                continue;
            };
            if size == 0 {
                continue;
            }
            let found = fs::read(support::below(&sides.to, &entry.path)).unwrap();
            let new = fs::read(support::below(&sides.from, &entry.path)).unwrap_or_default();
            if run % 2 == 0 {
                assert!(
                    new.starts_with(&found),
                    "{}",
                    String::from_utf8_lossy(&entry.path)
                );
            }
        }
        sync(&sides.from, &sides.to, &sides.work);
        assert_eq!(differences(&sides.from, &sides.to), "", "run {run}");
        assert_eq!(fs::read_dir(sides.to.parent().unwrap()).unwrap().count(), 1);
    }
    assert!(broken > 3, "hardly any run was killed in time: {broken}");
}

#[test]
fn memory_does_not_grow_with_what_is_sent() {
    let sides = sides();
    let bytes = Bytes::from(vec![5; 1 << 20]);
    let mut process = SinkProcess::start(&sides);
    let mut peer = process.peer();
    let entry = |path: &str, kind| Entry {
        path: path.into(),
        mode: 0o755,
        kind,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime: Timestamp { seconds: 9, nanos: 9 },
        xattrs: Vec::new(),
    };
    let mut tree = vec![entry("", EntryKind::Directory)];
    peer.open(Wants::default());
    peer.operations(&[Operation::Make(tree[0].clone())]);
    for number in 0..400 {
        let file = entry(
            &format!("f{number:03}"),
            EntryKind::File {
                size: 1 << 20,
                extents: vec![tranship_content::entry::Extent::Chunk {
                    length: 1 << 20,
                    id: id(&bytes),
                }],
            },
        );
        peer.operations(&[Operation::Whole {
            entry: file.clone(),
            id: id(&bytes),
            bytes: bytes.clone(),
        }]);
        tree.push(file);
    }
    assert!(matches!(peer.end(&tree_id(&tree)), Message::Applied(_)));
    assert!(process.child.wait().unwrap().success());
    let peak = fs::read_to_string(sides.all.path().join("peak")).unwrap();
    let kib: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 64 << 10, "400 MiB took {kib} KiB of memory");
}

/// A small file system in memory; `None` if this process may not mount.
struct Small {
    at: PathBuf,
}

impl Small {
    fn mount(at: &Path, options: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(at)
            .status()
            .is_ok_and(|status| status.success());
        if !mounted {
            println!("SKIPPED: mounting a tmpfs");
        }
        mounted.then(|| Self { at: at.to_path_buf() })
    }

    fn remount(&self, options: &str) {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,{options}")])
            .arg(&self.at)
            .status()
            .unwrap();
        assert!(status.success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.at).status();
    }
}

/// The code with which a round fails.
fn code(sides: &Sides, to: &Path) -> String {
    let (result, _) = with_sink(to, &sides.work, |peer| {
        peer.open(Wants::default());
        let new = read_tree(&sides.from);
        let operations = delta(&peer.base, &new, &sides.from);
        peer.operations(&operations);
        let _ = peer.frames.message();
    });
    result.unwrap_err().code().to_owned()
}

#[test]
fn full_and_read_only_file_systems_are_named_and_the_next_round_goes_on() {
    for full in ["size=2m", "nr_inodes=60"] {
        let sides = sides();
        fill(&sides.from, 1, 200);
        let Some(small) = Small::mount(&sides.all.path().join("small"), full) else {
            return;
        };
        let to = small.at.clone();
        assert_eq!(code(&sides, &to), "content.no-space", "{full}");
        small.remount("size=200m,nr_inodes=10000");
        sync(&sides.from, &to, &sides.work);
        assert_eq!(differences(&sides.from, &to), "");
        fill(&sides.from, 2, 20);
        small.remount("ro");
        assert_eq!(code(&sides, &to), "content.read-only");
        small.remount("rw");
        // Staging was inside here, since the directory above is another file system.
        sync(&sides.from, &to, &sides.work);
        assert_eq!(differences(&sides.from, &to), "");
    }
}

#[test]
fn a_mount_within_what_is_read_is_refused_unless_it_is_excluded() {
    use tranship_content::scan::{Excludes, Nested, ScanOptions, scan};
    let sides = sides();
    fill(&sides.from, 1, 20);
    fs::create_dir_all(&sides.work).unwrap();
    let Some(small) = Small::mount(&sides.from.join("d3/below"), "size=2m") else {
        return;
    };
    fs::write(small.at.join("theirs"), b"theirs").unwrap();
    let take = |nested, excludes: &[&str]| {
        let excludes: Vec<String> = excludes.iter().map(|e| (*e).to_owned()).collect();
        let options = ScanOptions {
            nested,
            excludes: Excludes::new(&excludes).unwrap(),
            ..ScanOptions::default()
        };
        let files = (sides.work.join("tree"), sides.work.join("facts"));
        let done = scan(&sides.from, &options, None, (&files.0, &files.1), &sides.work);
        done.map_err(|error| (error.code(), error.hint().unwrap_or_default()))
    };
    let (code, hint) = take(Nested::Refuse, &[]).map(|_| ()).unwrap_err();
    assert_eq!(code, "files.mounted-below");
    assert!(hint.contains("--exclude '/d3/below'"), "{hint}");
    let excluded = take(Nested::Refuse, &["/d3/below"]).unwrap();
    let shown = take(Nested::ShowEmpty, &[]).unwrap();
    assert_eq!(
        shown.tree.entries,
        excluded.tree.entries + 1,
        "the empty place, and nothing in it"
    );
}

#[test]
fn mounts_within_the_root_are_not_written_to() {
    let sides = sides();
    fill(&sides.from, 1, 20);
    sync(&sides.from, &sides.to, &sides.work);
    let Some(small) = Small::mount(&sides.to.join("d3"), "size=2m") else {
        return;
    };
    fs::write(small.at.join("theirs"), b"theirs").unwrap();
    fill(&sides.from, 2, 20);
    let (result, ()) = with_sink(&sides.to, &sides.work, |peer| {
        peer.open(Wants::default());
        let whole = Operation::Whole {
            entry: Entry {
                path: b"d3/mine".to_vec(),
                mode: 0o644,
                kind: EntryKind::File {
                    size: 4,
                    extents: vec![],
                },
                uid: 0,
                gid: 0,
                mtime: Timestamp::default(),
                xattrs: vec![],
            },
            id: id(b"mine"),
            bytes: Bytes::from_static(b"mine"),
        };
        peer.operations(&[whole]);
        let _ = peer.frames.message();
    });
    assert_eq!(result.unwrap_err().code(), "content.mount-inside");
    let names: Vec<_> = fs::read_dir(&small.at).unwrap().collect();
    assert_eq!(names.len(), 1);
}

/// Puts a link to `outside` in the place of `at` and takes it away again, as fast as it can.
fn swap(at: &Path, outside: &Path, stop: &AtomicBool) {
    let aside = at.with_extension("aside");
    while !stop.load(Ordering::Relaxed) {
        if fs::rename(at, &aside).is_ok() {
            let _ = symlink(outside, at);
            std::thread::yield_now();
            let _ = fs::remove_file(at);
            let _ = fs::rename(&aside, at);
        }
    }
}

/// Ends the other thread when this one does, in whatever way.
struct StopAtTheEnd<'a>(&'a AtomicBool);

impl Drop for StopAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn swapped_links_lead_nowhere() {
    let sides = sides();
    let outside = sides.all.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let target = sides.to.join("d");
    fs::create_dir_all(sides.from.join("d")).unwrap();
    fs::create_dir_all(&target).unwrap();
    let stop = AtomicBool::new(false);
    let (won, lost) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| swap(&target, &outside, &stop));
        // Also where something fails below: otherwise nobody would ever hear of it.
        let _stopped = StopAtTheEnd(&stop);
        // The control: whoever goes by paths is led outside.
        let control = sides.to.join("d");
        let mut fooled = false;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(60) {
            // Where the directory is away for a moment this fails. It is not made again: two directories that both hold
            // something cannot be exchanged any more.
            let _ = fs::write(control.join("control"), b"x");
            fooled = outside.join("control").exists();
            if fooled {
                break;
            }
        }
        assert!(fooled, "the race cannot be lost, so it proves nothing");
        fs::remove_file(outside.join("control")).unwrap();
        for round in 0..150_u64 {
            for number in 0..20 {
                fs::write(
                    sides.from.join(format!("d/f{number}")),
                    format!("{round} {number}"),
                )
                .unwrap();
            }
            let (result, _) = with_sink(&sides.to, &sides.work, |peer| {
                // The sink's scan may fail, too.
                let source = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    peer.open(Wants::default());
                    let new = read_tree(&sides.from);
                    let operations = delta(&peer.base, &new, &sides.from);
                    peer.operations(&operations);
                    peer.end(&tree_id(&new))
                }));
                source.is_ok()
            });
            match result {
                Ok(_) => won.fetch_add(1, Ordering::Relaxed),
                Err(_) => lost.fetch_add(1, Ordering::Relaxed),
            };
        }
    });
    let mut found = String::new();
    for left in fs::read_dir(&outside).unwrap() {
        found.push_str(&format!("{:?} ", left.unwrap().file_name()));
    }
    assert_eq!(found, "", "something was written outside");
    assert!(lost.load(Ordering::Relaxed) > 0, "no round met the race");
    let _ = fs::remove_file(&target);
    sync(&sides.from, &sides.to, &sides.work);
    assert_eq!(differences(&sides.from, &sides.to), "");
}

#[test]
fn a_slow_other_side_that_goes_away_ends_the_round() {
    let sides = sides();
    let (result, ()) = with_sink(&sides.to, &sides.work, |peer| {
        peer.open(Wants::default());
        let mut first = [0];
        let _ = peer.stream.write_all(&[200, 0]);
        peer.stream
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let _ = peer.stream.read(&mut first);
    });
    assert_eq!(result.unwrap_err().code(), "content.link-lost");
}
