//! Somebody in the container exchanges a directory with a symbolic link that leads out, all the time, while files are
//! unpacked and packed there. A naive extractor falls for it within moments; the confined one never does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics has failed"
)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{archive, describe, setting};
use tempfile::TempDir;
use tranship_archive::TreePath;
use tranship_archive::confined::{ExportOptions, ExtractOptions, Links, Ownership, Root, export, extract};
use tranship_archive::entry::{Entry, Kind};
use tranship_archive::reader::{ReadOptions, Reader};
use tranship_archive::writer::Writer;

struct Arena {
    outer: TempDir,
}

impl Arena {
    /// `root/x` is a directory, `root/y` a link out of it; outside is a tree that must stay as it is.
    fn new(target: &str) -> Self {
        let outer = TempDir::new().unwrap();
        let root = outer.path().join("root");
        fs::create_dir_all(root.join("x/sub")).unwrap();
        fs::create_dir_all(outer.path().join("canary/sub")).unwrap();
        fs::write(outer.path().join("canary/f"), "outside").unwrap();
        fs::write(outer.path().join("canary/sub/f"), "outside").unwrap();
        let target = match target {
            "absolute" => outer.path().join("canary"),
            relative => std::path::PathBuf::from(relative),
        };
        // Inside the root the link leads to a place of the same name, so that going on is possible there.
        let decoy = root.join(target.to_str().unwrap().trim_start_matches(['.', '/']));
        fs::create_dir_all(decoy.join("sub")).unwrap();
        symlink(target, root.join("y")).unwrap();
        Self { outer }
    }

    fn root(&self) -> std::path::PathBuf {
        self.outer.path().join("root")
    }

    fn canary(&self) -> Vec<String> {
        describe(&self.outer.path().join("canary"))
    }
}

/// Runs `act` again and again while `x` and `y` are exchanged at least `swaps` times; gives the number of swaps and of runs.
fn under_exchange(root: &Path, swaps: u64, mut act: impl FnMut(u64) -> bool) -> (u64, u64) {
    let stop = AtomicBool::new(false);
    let count = AtomicU64::new(0);
    let mut runs = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let directory = fs::File::open(root).unwrap();
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(
                    &directory,
                    "x",
                    &directory,
                    "y",
                    rustix::fs::RenameFlags::EXCHANGE,
                )
                .unwrap();
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        while count.load(Ordering::Relaxed) < swaps && act(runs) {
            runs += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    (count.load(Ordering::Relaxed), runs)
}

fn bytes() -> Vec<u8> {
    let mut dir = Entry::new("x/sub/", Kind::Directory, 0o711);
    dir.mtime.seconds = 1_000_000_000;
    archive(&[
        (dir, b""),
        (Entry::file("x/f", 0o600, 6), b"inside"),
        (Entry::file("x/sub/f", 0o600, 6), b"inside"),
        (
            Entry::new(
                "x/l",
                Kind::Symlink {
                    target: b"f".to_vec(),
                },
                0o777,
            ),
            b"",
        ),
        (Entry::new("x/p", Kind::Fifo, 0o600), b""),
        (
            Entry::new(
                "x/h",
                Kind::HardLink {
                    target: b"x/f".to_vec(),
                },
                0,
            ),
            b"",
        ),
        (Entry::file("x/new/deep/f", 0o600, 1), b"i"),
    ])
}

#[test]
fn no_exchange_leads_out() {
    let swaps = setting("TRANSHIP_TEST_SWAPS", 120_000) / 3;
    let mut total = 0;
    for (links, target) in [
        (Links::InRoot, "../canary"),
        (Links::InRoot, "absolute"),
        (Links::Refuse, "../canary"),
    ] {
        let arena = Arena::new(target);
        let before = arena.canary();
        let root = Root::open(&arena.root(), links).unwrap();
        let bytes = bytes();
        let options = ExtractOptions {
            ownership: Ownership::Caller,
            ..ExtractOptions::default()
        };
        let (mut done, mut refused) = (0, 0);
        let (count, runs) = under_exchange(&arena.root(), swaps, |run| {
            if run % 4 == 3 {
                // Reading must not see anything from outside either.
                let mut writer = Writer::new(Vec::new());
                if export(&root, b"/x/.", &mut writer, &ExportOptions::default()).is_ok() {
                    let packed = writer.finish().unwrap();
                    assert!(
                        !packed.windows(7).any(|window| window == b"outside"),
                        "a file from outside was read"
                    );
                }
                return true;
            }
            let mut reader = Reader::new(&bytes[..], ReadOptions::strict());
            match extract(&mut reader, &root, &TreePath::root(), options.clone()) {
                Ok(_) => done += 1,
                Err(_) => refused += 1,
            }
            true
        });
        assert_eq!(arena.canary(), before, "{links:?} to {target}");
        assert!(done + refused > 0 && count >= swaps);
        total += count;
        eprintln!("{links:?} {target}: {count} swaps, {runs} runs, {done} unpacked, {refused} refused");
    }
    eprintln!("{total} swaps");
}

/// The same with an extractor that joins paths: if this one doesn't get out, the test above proves nothing.
#[test]
fn a_naive_extractor_does_get_out() {
    let arena = Arena::new("../canary");
    let before = arena.canary();
    let root = arena.root();
    let (count, runs) = under_exchange(&root, 2_000_000, |_| {
        let path = root.join("x/f");
        // The check that makes it look safe.
        if root.join("x").symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            let _ = fs::write(path, "inside");
        }
        arena.canary() == before
    });
    assert_ne!(
        arena.canary(),
        before,
        "no escape in {count} swaps and {runs} runs"
    );
    eprintln!("escaped after {count} swaps and {runs} runs");
}
