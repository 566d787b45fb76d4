//! Whole rounds, source to sink, judged by GNU tar: what it packs from both sides has to be the same bytes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod support;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use tranship_content::scan::{Excludes, ScanOptions, scan};
use tranship_content::sink::{self, SinkError, SinkOptions};
use tranship_content::source::{Source, SourceError, SourceOptions};
use tranship_core::fault::Explain as _;
use tranship_core::storage::{Compression, RoundOptions, RoundReport};

struct Pair {
    place: tempfile::TempDir,
    source: Option<Source>,
}

const FROZEN: RoundOptions = RoundOptions {
    frozen: true,
    durable: false,
};

impl Pair {
    fn new() -> Self {
        Self::with(Compression::Auto, &[])
    }

    fn with(compression: Compression, excludes: &[&str]) -> Self {
        // Not in memory, where every scan reads everything.
        let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::create_dir(place.path().join("source")).unwrap();
        fs::create_dir(place.path().join("sink")).unwrap();
        let mut pair = Self { place, source: None };
        pair.source = Some(pair.open(compression, excludes));
        pair
    }

    fn open(&self, compression: Compression, excludes: &[&str]) -> Source {
        Source::open(SourceOptions {
            root: self.path("source"),
            overlay: false,
            work: self.path("source.work"),
            excludes: Excludes::new(excludes).unwrap(),
            nested: tranship_content::scan::Nested::default(),
            compression,
            limit_rate: None,
            threads: 0,
        })
        .unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path("source").join(name)
    }

    fn try_round(
        &mut self,
        options: RoundOptions,
    ) -> (Result<RoundReport, SourceError>, Result<RoundReport, SinkError>) {
        self.spoken(|source, a| source.round(a.try_clone().unwrap(), a, options, &|_| ()))
    }

    /// What a source says to a sink, and how it ended for each of them.
    fn spoken<T>(
        &mut self,
        says: impl FnOnce(&mut Source, UnixStream) -> Result<T, SourceError>,
    ) -> (Result<T, SourceError>, Result<RoundReport, SinkError>) {
        let (a, b) = UnixStream::pair().unwrap();
        let sink = SinkOptions {
            root: self.path("sink"),
            work: self.path("sink.work"),
            overlay: false,
        };
        let source = self.source.as_mut().unwrap();
        std::thread::scope(|scope| {
            let taken = scope.spawn(move || {
                let output = b.try_clone().unwrap();
                let result = sink::round(&b, output, &sink, &|_| ());
                let _ = b.shutdown(std::net::Shutdown::Both);
                result
            });
            let result = says(source, a.try_clone().unwrap());
            let _ = a.shutdown(std::net::Shutdown::Write);
            (result, taken.join().unwrap())
        })
    }

    fn round(&mut self) -> RoundReport {
        match self.try_round(FROZEN) {
            (Ok(sent), Ok(taken)) => {
                assert_eq!(sent.tree, taken.tree);
                assert_eq!(sent.entries, taken.entries);
                assert_eq!(sent.bytes, taken.bytes);
                assert_eq!(sent.literal_bytes, taken.literal_bytes);
                sent
            }
            (sent, taken) => panic!("source: {sent:?}\nsink: {taken:?}"),
        }
    }

    /// Both sides are the same: to tar, and to new scans without a base.
    fn assert_equal(&self) {
        let (a, b) = (packed(&self.path("source")), packed(&self.path("sink")));
        if let Some(at) = a.iter().zip(&b).position(|(a, b)| a != b) {
            let show = |bytes: &[u8]| {
                String::from_utf8_lossy(&bytes[at.saturating_sub(2048)..(at + 1024).min(bytes.len())])
                    .replace('\0', "")
            };
            panic!(
                "{}\n{}\n---\n{}",
                differences(&self.path("source"), &self.path("sink")),
                show(&a),
                show(&b)
            );
        }
        assert_eq!(a.len(), b.len());
        let entries = |name: &str| {
            let to = (self.path("check.tree"), self.path("check.facts"));
            let options = ScanOptions::default();
            scan(
                &self.path(name),
                &options,
                None,
                (&to.0, &to.1),
                self.place.path(),
            )
            .unwrap();
            let mut reader = tranship_content::tree::TreeReader::new(File::open(to.0).unwrap());
            let mut entries = Vec::new();
            while let Some(entry) = reader.next().unwrap() {
                entries.push(entry);
            }
            entries
        };
        for (a, b) in entries("source").into_iter().zip(entries("sink")) {
            assert_eq!(a, b);
        }
    }
}

fn tar(root: &Path, more: &[&str]) -> Vec<u8> {
    let out = Command::new("tar")
        .args([
            "--format=pax",
            "--sort=name",
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
            "--acls",
        ])
        .args(["--pax-option=delete=atime,delete=ctime", "-cf", "-", "-C"])
        .arg(root)
        .args(more)
        .arg(".")
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

fn packed(root: &Path) -> Vec<u8> {
    tar(root, &[])
}

fn differences(a: &Path, b: &Path) -> String {
    let (a, b) = (support::read_tree(a), support::read_tree(b));
    let mut out = String::new();
    for entry in &a {
        if !b.contains(entry) {
            let other = b.iter().find(|other| other.path == entry.path);
            out += &format!("source {entry:?}\n  sink {other:?}\n");
        }
    }
    for entry in &b {
        if !a.iter().any(|other| other.path == entry.path) {
            out += &format!("only sink {entry:?}\n");
        }
    }
    out
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}

/// One of everything that a file system has.
fn everything(pair: &Pair) {
    use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};
    let p = |name: &str| pair.at(name);
    fs::create_dir_all(p("a/b/empty")).unwrap();
    fs::write(p("a.b"), b"sorts after a/").unwrap();
    fs::write(p("a/zero"), b"").unwrap();
    fs::write(p("a/small"), noise(5000, 1)).unwrap();
    fs::write(
        p("a/text"),
        "all work and no play makes jack a dull boy\n".repeat(3000),
    )
    .unwrap();
    fs::write(p("a/middle"), noise(700_000, 2)).unwrap();
    fs::write(p("a/large"), noise(9_000_000, 3)).unwrap();
    fs::write(p("larger"), noise(20_000_000, 3)).unwrap();
    fs::hard_link(p("a/small"), p("a/b/further")).unwrap();
    fs::hard_link(p("a/large"), p("z-further")).unwrap();
    fs::set_permissions(p("a/small"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::set_permissions(p("a/b"), fs::Permissions::from_mode(0o1777)).unwrap();
    symlink("../nowhere", p("a/link")).unwrap();
    fs::write(
        pair.path("source")
            .join(std::ffi::OsStr::from_bytes(b"n\xff\n \\name")),
        b"x",
    )
    .unwrap();
    let sparse = File::create(p("sparse")).unwrap();
    sparse.write_all_at(b"data", 1 << 20).unwrap();
    sparse.write_all_at(&noise(200_000, 4), 8 << 20).unwrap();
    sparse.set_len(11 << 20).unwrap();
    File::create(p("all-hole")).unwrap().set_len(5 << 20).unwrap();
    mknodat(CWD, p("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    setxattr(p("a/small"), "user.note", b"hello", XattrFlags::empty()).unwrap();
    setxattr(p("a"), "user.empty", b"", XattrFlags::empty()).unwrap();
    if rustix::process::geteuid().is_root() {
        for (name, kind, major, minor) in [
            ("null", FileType::CharacterDevice, 1, 3),
            ("whiteout", FileType::CharacterDevice, 0, 0),
            ("loop", FileType::BlockDevice, 7, 1000),
        ] {
            mknodat(
                CWD,
                p(name),
                kind,
                Mode::from_raw_mode(0o640),
                makedev(major, minor),
            )
            .unwrap();
        }
        std::os::unix::fs::lchown(p("a/link"), Some(1234), Some(4321)).unwrap();
        std::os::unix::fs::chown(p("a/middle"), Some(1234), Some(4321)).unwrap();
        // One each: tar writes several in the order of the disk.
        setxattr(
            p("a/text"),
            "trusted.secret",
            [0_u8, 1, 2].as_slice(),
            XattrFlags::empty(),
        )
        .unwrap();
        let capability = [1_u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        setxattr(
            p("a/middle"),
            "security.capability",
            capability.as_slice(),
            XattrFlags::empty(),
        )
        .unwrap();
    }
}

/// Changes at random.
fn mutate(pair: &Pair, seed: u64) {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 11) as usize % below.max(1)
    };
    for round in 0..14 {
        let paths: Vec<PathBuf> = support::read_tree(&pair.path("source"))
            .iter()
            .map(|entry| support::below(&pair.path("source"), &entry.path))
            .collect();
        let path = &paths[next(paths.len())];
        let is_root = *path == pair.path("source");
        let Ok(meta) = fs::symlink_metadata(path) else {
            continue;
        };
        let other = pair.at(&format!("moved-{round}-{seed}"));
        let open = || File::options().write(true).open(path).unwrap();
        match next(11) {
            0 if meta.is_file() && meta.len() > 0 => {
                for _ in 0..1 + next(5) {
                    let at = next(meta.len() as usize) as u64;
                    open()
                        .write_all_at(&noise(1 + next(3000), seed ^ at), at)
                        .unwrap();
                }
            }
            1 if meta.is_file() => {
                let more = noise(next(300_000), seed);
                File::options()
                    .append(true)
                    .open(path)
                    .unwrap()
                    .write_all(&more)
                    .unwrap();
            }
            2 if meta.is_file() => open().set_len(next(meta.len() as usize + 1) as u64).unwrap(),
            3 | 9 if meta.is_file() => {
                let mut content = fs::read(path).unwrap();
                let at = next(content.len());
                content.splice(at..at, noise(1 + next(5000), seed));
                fs::write(path, content).unwrap();
            }
            4 if !is_root => {
                fs::rename(path, &other).unwrap();
            }
            5 if !is_root => {
                if meta.is_dir() {
                    fs::remove_dir_all(path).unwrap();
                    fs::write(path, b"a file now").unwrap();
                } else {
                    fs::remove_file(path).unwrap();
                    fs::create_dir(path).unwrap();
                    fs::write(path.join("in it"), noise(next(100_000), seed)).unwrap();
                }
            }
            6 if meta.is_file() => fs::hard_link(path, &other).unwrap(),
            7 if !meta.is_symlink() => {
                fs::set_permissions(path, fs::Permissions::from_mode(0o700 | next(64) as u32)).unwrap();
            }
            8 if meta.is_file() && meta.len() > 100_000 => {
                let at = next(meta.len() as usize - 70_000) as u64 / 4096 * 4096;
                let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                let _ = rustix::fs::fallocate(open(), flags, at, 65_536);
            }
            10 if meta.is_file() && meta.len() > 100_000 => {
                // Content moves within the file.
                let mut content = fs::read(path).unwrap();
                let third = content.len() / 3;
                content.rotate_left(third);
                open().write_all_at(&content, 0).unwrap();
            }
            _ => {}
        }
    }
}

#[test]
fn everything_arrives_and_then_nothing_is_sent() {
    let mut pair = Pair::new();
    everything(&pair);
    let fresh = pair.round();
    pair.assert_equal();
    assert_eq!(fresh.changed_entries, fresh.entries);
    let again = pair.round();
    assert_eq!((again.changed_entries, again.literal_bytes), (0, 0));
    assert_eq!(again.tree, fresh.tree);
    // A source that knows nothing of it gets the sink's manifest.
    fs::remove_dir_all(pair.path("source.work")).unwrap();
    pair.source = Some(pair.open(Compression::Auto, &[]));
    let again = pair.round();
    assert_eq!((again.changed_entries, again.literal_bytes), (0, 0));
    // And another one finds the records of that one.
    pair.source = Some(pair.open(Compression::Auto, &[]));
    let again = pair.round();
    assert!(again.wire_bytes < 1000, "{again:?}");
    pair.assert_equal();
}

#[test]
fn a_round_that_met_the_sink_carries_what_came_after() {
    // The sink holds nothing, what the source knows, and what it does not know.
    for holds in ["nothing", "what is known", "something"] {
        let mut pair = Pair::new();
        everything(&pair);
        if holds != "nothing" {
            pair.round();
        }
        if holds == "something" {
            fs::remove_dir_all(pair.path("source.work")).unwrap();
            pair.source = Some(pair.open(Compression::Auto, &[]));
        }
        let (changed, kept) = (pair.at("a/large"), pair.at("a/small"));
        let went_on = |source: &mut Source, a: UnixStream| {
            let mut begun = source.begin(a.try_clone().unwrap(), a, FROZEN);
            source.meet(&mut begun)?;
            source.meet(&mut begun)?;
            fs::write(&changed, b"after the meeting").unwrap();
            fs::rename(&kept, kept.with_file_name("renamed")).unwrap();
            source.go(begun, &|_| ())
        };
        let (sent, taken) = pair.spoken(went_on);
        assert_eq!(sent.unwrap().tree, taken.unwrap().tree, "{holds}");
        pair.assert_equal();
        assert_eq!(pair.round().changed_entries, 0, "{holds}");
    }
}

#[test]
fn whoever_meets_the_sink_may_be_written_to() {
    let mut pair = Pair::new();
    for directory in 0..40 {
        fs::create_dir(pair.at(&directory.to_string())).unwrap();
        for file in 0..50 {
            fs::write(pair.at(&format!("{directory}/{file}")), b"").unwrap();
        }
    }
    pair.round();
    let root = pair.path("source");
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (name, other) = (
                |n: u32| root.join(format!("{n}")),
                |n: u32| root.join(format!("x{n}")),
            );
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                (0..40).for_each(|n| fs::rename(name(n), other(n)).unwrap());
                (0..40).for_each(|n| fs::rename(other(n), name(n)).unwrap());
            }
        });
        for _ in 0..20 {
            let (met, _) = pair.spoken(|source, a| {
                let mut begun = source.begin(a.try_clone().unwrap(), a, FROZEN);
                source.meet(&mut begun)
            });
            if met.is_err() {
                over.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            met.unwrap();
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    pair.round();
    pair.assert_equal();
}

#[test]
fn a_round_that_met_the_sink_and_does_not_go_on_changes_nothing() {
    let mut pair = Pair::new();
    everything(&pair);
    pair.round();
    fs::write(pair.at("new"), b"new").unwrap();
    let before = support::read_tree(&pair.path("sink"));
    let (met, taken) = pair.spoken(|source, a| {
        let mut begun = source.begin(a.try_clone().unwrap(), a, FROZEN);
        source.meet(&mut begun)
    });
    met.unwrap();
    taken.unwrap_err();
    assert!(before == support::read_tree(&pair.path("sink")));
    pair.round();
    pair.assert_equal();
}

#[test]
fn what_moves_is_not_sent() {
    let mut pair = Pair::new();
    everything(&pair);
    pair.round();
    fs::rename(pair.at("a"), pair.at("b")).unwrap();
    fs::rename(pair.at("larger"), pair.at("b/larger")).unwrap();
    let report = pair.round();
    pair.assert_equal();
    assert_eq!(report.literal_bytes, 0, "{report:?}");
}

#[test]
fn small_changes_send_little() {
    for (name, length) in [("in place", 0), ("inserted", 777)] {
        let mut pair = Pair::new();
        everything(&pair);
        pair.round();
        let mut changed = 0;
        for file in ["a/small", "a/text", "a/middle", "a/large", "larger"] {
            let mut content = fs::read(pair.at(file)).unwrap();
            let at = content.len() / 2;
            let new = noise(500, 99);
            changed += 500 + length as u64;
            content.splice(at..at + 500, new);
            content.splice(at..at, noise(length, 98));
            File::options()
                .write(true)
                .open(pair.at(file))
                .unwrap()
                .write_all_at(&content, 0)
                .unwrap();
        }
        let report = pair.round();
        pair.assert_equal();
        assert!(report.literal_bytes < changed + 5 * 3000, "{name}: {report:?}");
    }
}

#[test]
fn excluded_paths_stay_behind() {
    let mut pair = Pair::with(Compression::Auto, &["/a/b", "*.log", "larger"]);
    everything(&pair);
    fs::write(pair.at("a/x.log"), b"x").unwrap();
    pair.round();
    let there = support::read_tree(&pair.path("sink"));
    let has = |path: &str| there.iter().any(|entry| entry.path == path.as_bytes());
    assert!(has("a/small") && !has("a/b") && !has("a/b/further") && !has("larger") && !has("a/x.log"));
}

#[test]
fn compression_changes_nothing_but_the_bytes_on_the_wire() {
    let mut sizes = Vec::new();
    for compression in [Compression::None, Compression::Zstd(3)] {
        let mut pair = Pair::with(compression, &[]);
        everything(&pair);
        for at in 0..50 {
            fs::write(
                pair.at(&format!("text-{at}")),
                format!("{at} and so on\n").repeat(3000),
            )
            .unwrap();
        }
        sizes.push(pair.round().wire_bytes);
        pair.assert_equal();
    }
    assert!(sizes[1] + 1_000_000 < sizes[0], "{sizes:?}");
}

#[test]
fn a_round_after_one_that_broke_goes_on_from_there() {
    let mut pair = Pair::new();
    everything(&pair);
    for bytes in [10, 100_000, 5_000_000] {
        let (a, b) = UnixStream::pair().unwrap();
        let sink = SinkOptions {
            root: pair.path("sink"),
            work: pair.path("sink.work"),
            overlay: false,
        };
        let source = pair.source.as_mut().unwrap();
        std::thread::scope(|scope| {
            let end = b.try_clone().unwrap();
            scope.spawn(move || {
                let result = sink::round(Short(&b, bytes), b.try_clone().unwrap(), &sink, &|_| ());
                let _ = end.shutdown(std::net::Shutdown::Both);
                assert!(result.is_err());
            });
            let error = source
                .round(a.try_clone().unwrap(), a.try_clone().unwrap(), FROZEN, &|_| ())
                .unwrap_err();
            assert_eq!(error.fault().code, "content.link-lost");
        });
    }
    pair.round();
    pair.assert_equal();
}

/// A stream that ends early.
struct Short<'a>(&'a UnixStream, usize);

impl std::io::Read for Short<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = buffer.len().min(self.1);
        let read = std::io::Read::read(&mut self.0, &mut buffer[..most])?;
        self.1 -= read;
        Ok(read)
    }
}

#[test]
fn the_reason_of_the_sink_reaches_the_source() {
    let mut pair = Pair::new();
    everything(&pair);
    fs::remove_dir_all(pair.path("sink")).unwrap();
    let (sent, taken) = pair.try_round(FROZEN);
    let (sent, taken) = (sent.unwrap_err(), taken.unwrap_err());
    assert_eq!(sent.fault().code, taken.code());
}

#[test]
fn files_that_change_meanwhile_are_looked_at_again() {
    let mut pair = Pair::new();
    everything(&pair);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let root = pair.path("source");
    std::thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            let mut at = 0_u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                at += 1;
                let name = root.join(format!("busy-{}", at % 50));
                let _ = fs::write(&name, noise(1000 + (at as usize * 7919) % 3_000_000, at));
                if at.is_multiple_of(3) {
                    let _ = fs::rename(&name, root.join(format!("other-{}", at % 20)));
                }
                if at.is_multiple_of(7) {
                    let _ = fs::remove_file(root.join(format!("other-{}", at % 10)));
                }
                if let Ok(file) = File::options().write(true).open(root.join("larger")) {
                    let _ = file.write_all_at(&at.to_le_bytes(), at * 4096 % 20_000_000);
                    let _ = file.set_len(15_000_000 + at % 5_000_000);
                }
            }
        });
        for _ in 0..4 {
            let (sent, taken) = pair.try_round(RoundOptions::default());
            if sent.is_err() || taken.is_err() {
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
                panic!("source: {sent:?}\nsink: {taken:?}");
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    pair.round();
    pair.assert_equal();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn sides_are_equal_after_every_round(seed: u64) {
        let mut pair = Pair::new();
        everything(&pair);
        pair.round();
        for round in 0..3 {
            mutate(&pair, seed.wrapping_add(round));
            pair.round();
            pair.assert_equal();
            let again = pair.round();
            prop_assert_eq!(again.changed_entries, 0);
        }
        let meta = fs::metadata(pair.at(".")).unwrap();
        prop_assert!(meta.is_dir() && meta.uid() < u32::MAX);
    }
}
