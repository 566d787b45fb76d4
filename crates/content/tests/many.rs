//! Small files by the thousand, which several threads make: order, directories and further names come out as with one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use support::{differences, id, sides, sync, with_sink};
use tranship_content::message::{Message, Operation, Wants};
use tranship_core::fault::Explain as _;

/// Directories of files, some of which nobody may write to, with further names of files of other directories and of the same.
fn fill(root: &Path, directories: usize, files: usize) {
    for number in 0..directories {
        let directory = root.join(format!("d{number:04}/inner"));
        fs::create_dir_all(&directory).unwrap();
        for file in 0..files {
            let path = directory.join(format!("f{file:03}"));
            fs::write(&path, format!("{number} {file} {}", "x".repeat(file * 37))).unwrap();
            let mode = [0o644, 0o400, 0o4711, 0o000][(number + file) % 4];
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            if file % 7 == 3 {
                fs::hard_link(&path, directory.join(format!("f{file:03}.again"))).unwrap();
            }
            if file % 5 == 2 {
                symlink(&path, directory.join(format!("f{file:03}.link"))).unwrap();
            }
        }
        if number > 0 && files > 0 {
            let other = root.join(format!("d{:04}/inner/f000", number - 1));
            fs::hard_link(other, directory.join("of-another")).unwrap();
        }
        if number % 3 == 0 {
            fs::set_permissions(&directory, fs::Permissions::from_mode(0o500)).unwrap();
        }
    }
}

#[test]
fn what_several_threads_make_is_what_one_would() {
    let pair = sides();
    fill(&pair.from, 150, 40);
    let report = sync(&pair.from, &pair.to, &pair.work);
    assert_eq!(differences(&pair.from, &pair.to), "");
    assert!(report.changed_entries > 6_000);
    let again = sync(&pair.from, &pair.to, &pair.work);
    assert_eq!(again.changed_entries, 0, "the record says what is there");

    // Replaced, taken away, and new beside what stays.
    for number in (0..150).step_by(2) {
        let directory = pair.from.join(format!("d{number:04}/inner"));
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
        for file in (0..40).step_by(3) {
            let path = directory.join(format!("f{file:03}"));
            fs::remove_file(&path).unwrap();
            if file % 2 == 0 {
                fs::write(&path, format!("other {number} {file}")).unwrap();
            }
            fs::write(directory.join(format!("g{file:03}")), b"new").unwrap();
        }
    }
    sync(&pair.from, &pair.to, &pair.work);
    assert_eq!(differences(&pair.from, &pair.to), "");
}

#[test]
fn directories_of_one_file_each_do_not_stay_open() {
    let pair = sides();
    fill(&pair.from, 1500, 1);
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let (before, mut most) = (open(), 0);
    std::thread::scope(|scope| {
        let round = scope.spawn(|| sync(&pair.from, &pair.to, &pair.work));
        while !round.is_finished() {
            most = most.max(open());
            std::thread::yield_now();
        }
        round.join().unwrap();
    });
    assert_eq!(differences(&pair.from, &pair.to), "");
    assert!(most < before + 300, "{most} descriptors");
}

#[test]
fn a_lie_among_many_files_is_told_though_nothing_more_comes() {
    let pair = sides();
    let (result, ()) = with_sink(&pair.to, &pair.work, |peer| {
        peer.open(Wants::default());
        let mut operations = vec![support::make::root()];
        for number in 0..500_u32 {
            let path = format!("f{number:03}");
            let Operation::Whole { entry, .. } = support::make::whole(&path, b"truth") else {
                panic!("a whole file");
            };
            let name: &[u8] = if number == 250 { b"other" } else { b"truth" };
            operations.push(Operation::Whole {
                entry,
                id: id(name),
                bytes: bytes::Bytes::from_static(b"truth"),
            });
        }
        peer.operations(&operations);
        // Neither more nor the end is said: what went wrong is told all the same.
        assert!(matches!(peer.hear(), Message::Failed(_)));
    });
    assert_eq!(result.unwrap_err().code(), "chunk.corrupt");
    assert!(!pair.to.join("f250").exists(), "what lies is not written");
    assert!(pair.to.join("f000").metadata().unwrap().len() == 5);
}
