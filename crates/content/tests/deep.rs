//! Trees that are deeper than paths can say, and emptying them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod support;

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use tranship_content::scan::Excludes;
use tranship_content::sink::{self, SinkOptions, Usage};
use tranship_content::source::{Source, SourceOptions};
use tranship_core::storage::{Compression, RoundOptions};

/// Makes `levels` directories in one another, with a file in every tenth.
fn dig(root: &Path, name: &str, levels: usize) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at: OwnedFd = fs::File::open(root).unwrap().into();
    for level in 0..levels {
        if level % 10 == 0 {
            let file = openat(at.as_fd(), "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
            write!(fs::File::from(file), "{level}").unwrap();
        }
        mkdirat(at.as_fd(), name, Mode::RWXU).unwrap();
        at = openat(at.as_fd(), name, flags, Mode::empty()).unwrap();
    }
}

/// What find says about a tree; it can walk trees of any depth.
fn listing(root: &Path) -> String {
    let found = Command::new("find")
        .current_dir(root)
        .args([".", "-printf", "%P %y %m %T@ %U:%G\\n"])
        .output()
        .unwrap();
    assert!(found.status.success());
    let contents = Command::new("find")
        .current_dir(root)
        .args([".", "-type", "f", "-execdir", "cat", "{}", ";"])
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut lines: Vec<String> = text(&found.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    lines.join("\n") + &text(&contents.stdout)
}

fn round(from: &Path, to: &Path, work: &Path) -> Result<(), String> {
    let mut source = Source::open(SourceOptions {
        root: from.to_path_buf(),
        overlay: false,
        work: work.join("source"),
        excludes: Excludes::default(),
        nested: tranship_content::scan::Nested::default(),
        compression: Compression::None,
        limit_rate: None,
        threads: 0,
    })
    .unwrap();
    let options = SinkOptions {
        root: to.to_path_buf(),
        work: work.join("sink"),
        overlay: false,
    };
    let (here, there) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let taking = scope.spawn(|| {
            let taken = sink::round(
                there.try_clone().unwrap(),
                there.try_clone().unwrap(),
                &options,
                &|_| {},
            );
            let _ = there.shutdown(std::net::Shutdown::Both);
            taken
        });
        let sent = source.round(
            here.try_clone().unwrap(),
            here.try_clone().unwrap(),
            RoundOptions::default(),
            &|_| {},
        );
        let _ = here.shutdown(std::net::Shutdown::Both);
        let taken = taking.join().unwrap();
        sent.map_err(|error| error.to_string())?;
        taken.map_err(|error| error.to_string())?;
        Ok(())
    })
}

#[test]
fn trees_deeper_than_paths_travel() {
    let all = tempfile::tempdir_in("/var/tmp").unwrap();
    let (from, to, work) = (
        all.path().join("from"),
        all.path().join("to"),
        all.path().join("work"),
    );
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    dig(&from, &"x".repeat(200), 150);
    round(&from, &to, &work).unwrap();
    assert_eq!(listing(&from), listing(&to));
    // Everything goes away again, and something else comes.
    fs::rename(from.join("x".repeat(200)), from.join("y")).unwrap();
    round(&from, &to, &work).unwrap();
    assert_eq!(listing(&from), listing(&to));
    sink::clear(&from).unwrap();
    sink::clear(&to).unwrap();
    dig(&from, "d", 1030);
    let refused = round(&from, &to, &work).unwrap_err();
    assert!(refused.contains("1024"), "{refused}");
    sink::clear(&from).unwrap();
    sink::clear(&to).unwrap();
    assert_eq!(fs::read_dir(&from).unwrap().count(), 0);
}

#[test]
fn clearing_stays_inside() {
    let all = tempfile::tempdir_in("/var/tmp").unwrap();
    let (root, outside) = (all.path().join("root"), all.path().join("outside"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("canary"), vec![1; 5000]).unwrap();
    assert_eq!(sink::usage(&root).unwrap(), Usage::default());
    dig(&root, "deep", 700);
    symlink(&outside, root.join("link")).unwrap();
    fs::write(root.join("other"), vec![1; 10_000]).unwrap();
    let usage = sink::usage(&root).unwrap();
    assert_eq!(usage.entries, 700 + 70 + 2);
    assert!(usage.bytes >= 10_000, "{usage:?}");
    sink::clear(&root).unwrap();
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    assert!(outside.join("canary").exists());
}
