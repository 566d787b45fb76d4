//! Damaged archives are unpacked, the same ones in every run, into a root from which links lead out: nothing panics, nothing
//! outside changes, and nothing unfinished stays.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics has failed"
)]

mod common;

use std::fs;
use std::os::unix::fs::symlink as link;
use std::path::{Path, PathBuf};

use common::generate::{self, Abilities};
use common::mutate::{mutate, seal};
use common::{Random, describe, hard_link, setting, symlink};
use tempfile::TempDir;
use tranship_archive::TreePath;
use tranship_archive::confined::{Devices, ExtractOptions, Links, Ownership, Root, SetId, extract};
use tranship_archive::entry::{Entry, Kind};
use tranship_archive::reader::{ReadOptions, Reader};
use tranship_archive::writer::Writer;
use tranship_core::fault::Explain as _;

/// Names that lead somewhere else, or would.
const NAMES: [&str; 14] = [
    "out/f",
    "out/new/f",
    "absolute/f",
    "up/f",
    "d/f",
    "d/../out/f",
    "d/out",
    "made",
    "made/f",
    "made/sub/f",
    "f",
    "./f",
    "/etc/f",
    "out",
];

/// Where links of an archive lead.
const TARGETS: [&str; 7] = ["../canary", "..", "/", "d", "out", "../../../../etc", "missing"];

fn seed(number: u64) -> Vec<u8> {
    let mut random = Random(number);
    let mut writer = Writer::new(Vec::new());
    for _ in 0..=random.below(5) {
        let name: &str = random.pick::<&str>(&NAMES);
        let entry = match random.below(6) {
            0 | 1 => symlink(name, random.pick::<&str>(&TARGETS)),
            2 => hard_link(name, random.pick::<&str>(&NAMES)),
            3 => Entry::new(name, Kind::Directory, 0o755),
            _ => Entry::file(name, 0o644, 6),
        };
        let content: &[u8] = if entry.kind == Kind::File { b"inside" } else { b"" };
        // What the writer refuses is made by mutation.
        let _ = writer.append(&entry, &mut &content[..]);
    }
    for (entry, data) in generate::entries(&mut random, Abilities::ALL, 1) {
        if data.len() <= 4096 {
            let _ = writer.append(&entry, &mut &data[..]);
        }
    }
    writer.finish().unwrap()
}

/// A root with links that lead out of it, beside a tree that must stay as it is.
struct Arena {
    outer: TempDir,
    root: PathBuf,
    canary: Vec<String>,
}

impl Arena {
    fn new() -> Self {
        let outer = TempDir::new().unwrap();
        fs::create_dir_all(outer.path().join("canary/sub")).unwrap();
        fs::write(outer.path().join("canary/f"), "outside").unwrap();
        fs::write(outer.path().join("canary/sub/f"), "outside").unwrap();
        let root = outer.path().join("root");
        let mut arena = Self {
            outer,
            root,
            canary: Vec::new(),
        };
        arena.fill();
        arena.canary = arena.outside();
        arena
    }

    fn fill(&self) {
        let _ = fs::remove_dir_all(&self.root);
        fs::create_dir_all(self.root.join("d")).unwrap();
        fs::write(self.root.join("f"), "old").unwrap();
        link("../canary", self.root.join("out")).unwrap();
        link(self.outer.path().join("canary"), self.root.join("absolute")).unwrap();
        link("..", self.root.join("up")).unwrap();
    }

    /// Everything beside the root, and the names beside it.
    fn outside(&self) -> Vec<String> {
        let mut seen = describe(&self.outer.path().join("canary"));
        let beside = fs::read_dir(self.outer.path()).unwrap();
        seen.extend(beside.map(|entry| format!("{:?}", entry.unwrap().file_name())));
        seen.sort();
        seen
    }
}

fn unfinished(directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().any(|entry| {
        let entry = entry.unwrap();
        entry.file_name().to_string_lossy().starts_with(".tranship-")
            || (entry.file_type().unwrap().is_dir() && unfinished(&entry.path()))
    })
}

#[test]
fn damaged_archives_change_nothing_outside() {
    let mut random = Random(6);
    let seeds: Vec<Vec<u8>> = (0..300).map(seed).collect();
    let arena = Arena::new();
    let (mut whole, mut refused) = (0, 0);
    for execution in 0..setting("TRANSHIP_TEST_UNPACKINGS", 20_000) {
        let mut bytes = random.pick(&seeds).clone();
        if random.chance(80) {
            mutate(&mut random, &mut bytes);
            seal(&mut bytes);
        }
        let links = *random.pick(&[Links::InRoot, Links::Beneath, Links::Refuse]);
        let root = Root::open(&arena.root, links).unwrap();
        let options = ExtractOptions {
            // Modes that take rights away would stop the test's own cleaning up.
            ownership: Ownership::Caller,
            devices: Devices::Skip,
            setid: SetId::Strip,
            through_own_links: random.chance(50),
            no_overwrite_dir_non_dir: random.chance(50),
            refuse_absolute: random.chance(20),
            root_metadata: random.chance(20),
            ..ExtractOptions::default()
        };
        let reading = match random.below(2) {
            0 => ReadOptions::strict(),
            _ => ReadOptions::like_docker(),
        };
        let mut reader = Reader::new(&bytes[..], reading);
        match extract(&mut reader, &root, &TreePath::root(), options) {
            Ok(_) => whole += 1,
            Err(error) => {
                assert!(error.code().starts_with("archive."), "{}", error.code());
                refused += 1;
            }
        }
        assert_eq!(arena.outside(), arena.canary, "execution {execution}");
        if common::is_root() {
            assert!(!unfinished(&arena.root), "execution {execution}");
        }
        if execution % 8 == 7 {
            arena.fill();
        }
    }
    eprintln!("{whole} unpacked, {refused} refused");
    assert!(whole > 1000 && refused > 1000);
}
