//! The real source and the real sink over many random trees and what happens to them, against rsync's judgement.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod support;

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use support::differences;
use tranship_content::sink::{self, SinkOptions};
use tranship_content::source::{Source, SourceOptions};
use tranship_core::storage::{Compression, RoundOptions, RoundReport};

/// A generator of numbers that gives the same ones for the same seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() {
            return None;
        }
        let at = self.below(from.len() as u64) as usize;
        from.get(at)
    }

    fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..length.div_ceil(8))
            .flat_map(|_| self.next().to_le_bytes())
            .take(length as usize)
            .collect()
    }

    fn length(&mut self) -> u64 {
        match self.below(12) {
            0 => 0,
            1..=7 => self.below(5_000),
            8..=9 => self.below(200_000),
            10 => self.below(3_000_000),
            _ => 4_000_000 + self.below(6_000_000),
        }
    }

    fn name(&mut self) -> String {
        const NAMES: [&str; 12] = [
            "a", "a.b", "b", "ab", "a b", "Z", "~", "né", "x\ny", "#", "c", "-rf",
        ];
        format!("{}{}", NAMES[self.below(12) as usize], self.below(4))
    }
}

fn everything(root: &Path) -> (Vec<PathBuf>, Vec<PathBuf>, Vec<PathBuf>) {
    let (mut directories, mut files, mut others) = (vec![root.to_path_buf()], Vec::new(), Vec::new());
    let mut at = 0;
    while at < directories.len() {
        let mut found: Vec<_> = fs::read_dir(&directories[at])
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        found.sort();
        for path in found {
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_dir() {
                directories.push(path);
            } else if kind.is_file() {
                files.push(path);
            } else {
                others.push(path);
            }
        }
        at += 1;
    }
    (directories, files, others)
}

fn remove(path: &Path) {
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir()) {
        fs::remove_dir_all(path).unwrap();
    } else {
        let _ = fs::remove_file(path);
    }
}

fn make_file(dice: &mut Dice, path: &Path) {
    let length = dice.length();
    let file = fs::File::create(path).unwrap();
    if dice.one_in(6) && length > 0 {
        // With holes at the beginning, between, and at the end.
        file.set_len(length * 4).unwrap();
        file.write_all_at(&dice.bytes(length / 2), length).unwrap();
        file.write_all_at(&dice.bytes(length / 3), length * 3).unwrap();
    } else {
        file.write_all_at(&dice.bytes(length), 0).unwrap();
    }
}

fn make(dice: &mut Dice, root: &Path) {
    let (directories, files, _) = everything(root);
    let Some(parent) = dice.pick(&directories) else {
        return;
    };
    let path = parent.join(dice.name());
    if fs::symlink_metadata(&path).is_ok() {
        if dice.one_in(3) && path.starts_with(root) {
            remove(&path);
        } else {
            return;
        }
    }
    match dice.below(10) {
        0..=4 => make_file(dice, &path),
        5..=6 => fs::create_dir(&path).unwrap(),
        7 => symlink(dice.name(), &path).unwrap(),
        8 => {
            if let Some(file) = dice.pick(&files).filter(|file| file.exists()) {
                fs::hard_link(file, &path).unwrap();
            }
        }
        _ => rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o640),
            0,
        )
        .unwrap(),
    }
}

fn change(dice: &mut Dice, root: &Path) {
    let (directories, files, others) = everything(root);
    let Some(file) = dice.pick(&files) else { return };
    match dice.below(14) {
        0..=2 => {
            let open = fs::OpenOptions::new().write(true).open(file).unwrap();
            let size = open.metadata().unwrap().len();
            for _ in 0..=dice.below(4) {
                let length = dice.below(5_000);
                let bytes = dice.bytes(length);
                open.write_all_at(&bytes, dice.below(size + 1)).unwrap();
            }
        }
        3 => {
            // Bytes that are put in move everything behind them.
            let mut bytes = fs::read(file).unwrap();
            let at = dice.below(bytes.len() as u64 + 1) as usize;
            let length = dice.below(100);
            bytes.splice(at..at, dice.bytes(length));
            fs::write(file, bytes).unwrap();
        }
        4 => {
            let open = fs::OpenOptions::new().write(true).open(file).unwrap();
            let size = open.metadata().unwrap().len();
            open.set_len(dice.below(size + 1)).unwrap();
        }
        5 => make_file(dice, file),
        6 | 7 => {
            let paths: Vec<&PathBuf> = directories[1..].iter().chain(&files).chain(&others).collect();
            if let (Some(from), Some(to)) = (dice.pick(&paths), dice.pick(&directories)) {
                let to = to.join(dice.name());
                if !to.starts_with(from) {
                    let _ = fs::rename(from, to);
                }
            }
        }
        8 => remove(file),
        9 => {
            if let Some(gone) = dice.pick(&directories[1..]) {
                remove(gone);
            }
        }
        10 => {
            if let Some(gone) = dice.pick(&others) {
                remove(gone);
            }
        }
        11 => {
            let mode = 0o400 | dice.below(0o1000) as u32;
            fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
            if rustix::process::geteuid().is_root() {
                let id = dice.below(3) as u32 * 1000;
                std::os::unix::fs::chown(file, Some(id), Some(id)).unwrap();
            }
        }
        12 => {
            let all: Vec<&PathBuf> = directories.iter().chain(&files).collect();
            if let Some(path) = dice.pick(&all) {
                let length = dice.below(300);
                let value = dice.bytes(length);
                let name = format!("user.{}", dice.below(3));
                rustix::fs::setxattr(*path, name, &value, rustix::fs::XattrFlags::empty()).unwrap();
            }
        }
        _ => {
            if let Some(directory) = dice.pick(&directories[1..]) {
                let mode = 0o700 | dice.below(0o10000) as u32;
                fs::set_permissions(directory, fs::Permissions::from_mode(mode)).unwrap();
            }
        }
    }
}

struct Sides {
    source: Source,
    from: PathBuf,
    sink: SinkOptions,
}

fn round(sides: &mut Sides, frozen: bool) -> RoundReport {
    let (here, there) = UnixStream::pair().unwrap();
    let options = RoundOptions {
        frozen,
        durable: false,
    };
    let sink = &sides.sink;
    let source = &mut sides.source;
    let (sent, taken) = std::thread::scope(|scope| {
        let taking = scope.spawn(move || {
            let taken = sink::round(
                there.try_clone().unwrap(),
                there.try_clone().unwrap(),
                sink,
                &|_| {},
            );
            let _ = there.shutdown(std::net::Shutdown::Both);
            taken
        });
        let sent = source.round(here.try_clone().unwrap(), here, options, &|_| {});
        (sent, taking.join().unwrap())
    });
    let taken = taken.unwrap_or_else(|error| panic!("{error}: {:?}", error.fault()));
    let sent = sent.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(sent.tree, taken.tree);
    assert_eq!(sent.entries, taken.entries);
    assert_eq!(sent.bytes, taken.bytes);
    sent
}

fn sides(all: &Path) -> Sides {
    let (from, to) = (all.join("from"), all.join("to/root"));
    fs::create_dir_all(&from).unwrap();
    fs::create_dir_all(&to).unwrap();
    let source = Source::open(SourceOptions {
        root: from.clone(),
        overlay: false,
        work: all.join("source-work"),
        excludes: tranship_content::scan::Excludes::default(),
        nested: tranship_content::scan::Nested::default(),
        compression: Compression::Auto,
        limit_rate: None,
        threads: 0,
    })
    .unwrap();
    Sides {
        source,
        from,
        sink: SinkOptions {
            root: to,
            work: all.join("sink-work"),
            overlay: false,
        },
    }
}

fn run(seed: u64) {
    let all = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut dice = Dice(seed);
    let mut sides = sides(all.path());
    // Something is at the destination already, which may be like the source or not.
    if dice.one_in(2) {
        for _ in 0..dice.below(30) {
            make(&mut dice, &sides.sink.root);
        }
    }
    for _ in 0..10 + dice.below(60) {
        make(&mut dice, &sides.from);
    }
    for number in 0..4 {
        round(&mut sides, number == 3);
        let found = differences(&sides.from, &sides.sink.root);
        assert_eq!(found, "", "seed {seed}, round {number}");
        if dice.one_in(4) {
            // The destination is changed behind the sink's back; its next look has to see it.
            for _ in 0..5 {
                change(&mut dice, &sides.sink.root);
            }
        }
        for _ in 0..dice.below(25) {
            change(&mut dice, &sides.from);
        }
        for _ in 0..dice.below(8) {
            make(&mut dice, &sides.from);
        }
    }
}

#[test]
fn random_trees_become_equal_and_stay_so() {
    for seed in 0..24 {
        run(seed);
    }
}

#[test]
fn nothing_changed_sends_nothing() {
    let all = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut dice = Dice(77);
    let mut sides = sides(all.path());
    for _ in 0..60 {
        make(&mut dice, &sides.from);
    }
    let first = round(&mut sides, true);
    let inode = fs::metadata(&sides.sink.root).unwrap().ctime_nsec();
    let second = round(&mut sides, true);
    assert_eq!(first.tree, second.tree);
    assert_eq!((second.changed_entries, second.literal_bytes), (0, 0));
    assert!(second.wire_bytes < 500, "{} bytes", second.wire_bytes);
    assert_eq!(
        fs::metadata(&sides.sink.root).unwrap().ctime_nsec(),
        inode,
        "the root was touched"
    );
}
