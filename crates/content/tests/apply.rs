//! Rounds from a simple source to the real sink.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod support;

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use support::{differences, sides, sync};

fn tool(program: &str, arguments: &[&str], path: &Path) {
    let status = std::process::Command::new(program)
        .args(arguments)
        .arg(path)
        .status()
        .unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// One of everything that a file system can hold.
fn zoo(root: &Path) {
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("small"), b"content").unwrap();
    fs::write(root.join("large"), vec![7; 300_000]).unwrap();
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::create_dir(root.join("a.b")).unwrap();
    fs::write(root.join("a/b/c/file"), b"deep").unwrap();
    fs::write(root.join("a.b/other"), b"x").unwrap();
    fs::hard_link(root.join("small"), root.join("z-small")).unwrap();
    fs::hard_link(root.join("small"), root.join("a/small")).unwrap();
    symlink("../nowhere", root.join("link")).unwrap();
    fs::hard_link(root.join("link"), root.join("z-link")).unwrap();
    symlink("small", root.join("a/to-small")).unwrap();
    tool("mkfifo", &[], &root.join("fifo"));
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
    let odd = std::ffi::OsStr::from_bytes(b"odd \xff\xfe\n name");
    fs::write(root.join(odd), b"odd").unwrap();
    fs::write(root.join("n".repeat(255)), b"long").unwrap();
    fs::write(root.join("setuid"), b"#!").unwrap();
    fs::set_permissions(root.join("setuid"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::create_dir(root.join("sticky")).unwrap();
    fs::set_permissions(root.join("sticky"), fs::Permissions::from_mode(0o3777)).unwrap();
    fs::write(root.join("sticky/in"), b"in").unwrap();
    fs::create_dir(root.join("closed")).unwrap();
    fs::write(root.join("closed/in"), b"in").unwrap();
    fs::set_permissions(root.join("closed"), fs::Permissions::from_mode(0o000)).unwrap();
    tool(
        "touch",
        &["-d", "1960-05-01 00:00:00.123456789 UTC"],
        &root.join("a/b"),
    );
    tool(
        "touch",
        &["-h", "-d", "2001-05-01 00:00:00.5 UTC"],
        &root.join("link"),
    );
    tool(
        "setfattr",
        &["-n", "user.note", "-v", "hello"],
        &root.join("large"),
    );
    tool("setfattr", &["-n", "user.note", "-v", "dir"], &root.join("a"));
    if !is_root() {
        return;
    }
    std::os::unix::fs::chown(root.join("setuid"), Some(1234), Some(4321)).unwrap();
    fs::set_permissions(root.join("setuid"), fs::Permissions::from_mode(0o6755)).unwrap();
    std::os::unix::fs::lchown(root.join("link"), Some(99), Some(98)).unwrap();
    for (name, kind, numbers) in [
        ("null", "c", ["1", "3"]),
        ("gone", "c", ["0", "0"]),
        ("disk", "b", ["259", "70000"]),
    ] {
        let status = std::process::Command::new("mknod")
            .arg(root.join(name))
            .args([kind, numbers[0], numbers[1]])
            .status()
            .unwrap();
        assert!(status.success());
    }
    tool(
        "setfattr",
        &["-n", "trusted.overlay.opaque", "-v", "y"],
        &root.join("a.b"),
    );
    tool(
        "setfattr",
        &["-h", "-n", "trusted.note", "-v", "on a link"],
        &root.join("a/to-small"),
    );
    tool(
        "setfattr",
        &["-n", "trusted.note", "-v", "on a fifo"],
        &root.join("fifo"),
    );
    fs::write(root.join("capable"), b"x").unwrap();
    std::os::unix::fs::chown(root.join("capable"), Some(5), Some(5)).unwrap();
    tool("setcap", &["cap_net_raw+ep"], &root.join("capable"));
    tool("setfacl", &["-m", "u:77:rwx,g:78:r"], &root.join("a/b/c/file"));
    tool("setfacl", &["-m", "d:u:77:rwx,d:g:78:r"], &root.join("a/b/c"));
    tool("setfacl", &["-m", "u:77:rwx"], &root.join("a/b"));
}

#[test]
fn everything_arrives_and_nothing_changes_the_second_time() {
    let pair = sides();
    zoo(&pair.from);
    let report = sync(&pair.from, &pair.to, &pair.work);
    assert_eq!(differences(&pair.from, &pair.to), "");
    assert!(report.entries > 20);
    let again = sync(&pair.from, &pair.to, &pair.work);
    assert_eq!(again.tree, report.tree);
    assert_eq!(again.changed_entries, 0);
    assert_eq!(differences(&pair.from, &pair.to), "");
    let beside = fs::read_dir(pair.to.parent().unwrap()).unwrap().count();
    assert_eq!(beside, 1, "staging is left");
}

#[test]
fn types_change_into_each_other() {
    let pair = sides();
    zoo(&pair.from);
    sync(&pair.from, &pair.to, &pair.work);
    let at = |name: &str| pair.from.join(name);
    // File to directory, directory to file, link to file, file to link, FIFO to directory.
    fs::remove_file(at("large")).unwrap();
    fs::create_dir(at("large")).unwrap();
    fs::write(at("large/in"), b"new").unwrap();
    fs::remove_dir_all(at("a")).unwrap();
    fs::write(at("a"), b"was a directory").unwrap();
    fs::remove_file(at("link")).unwrap();
    fs::write(at("link"), b"was a link").unwrap();
    fs::remove_file(at("empty")).unwrap();
    symlink("x", at("empty")).unwrap();
    fs::remove_file(at("fifo")).unwrap();
    fs::create_dir_all(at("fifo/deep/er")).unwrap();
    // A head of hard links gets other content under another inode.
    fs::write(at("new"), b"other content").unwrap();
    fs::rename(at("new"), at("small")).unwrap();
    fs::remove_file(at("z-small")).unwrap();
    fs::hard_link(at("small"), at("z-small")).unwrap();
    sync(&pair.from, &pair.to, &pair.work);
    assert_eq!(differences(&pair.from, &pair.to), "");
    let inode = |name: &str| fs::metadata(pair.to.join(name)).unwrap().ino();
    assert_eq!(inode("small"), inode("z-small"));
}

#[test]
fn directories_keep_their_times_when_files_in_them_change() {
    let pair = sides();
    fs::create_dir_all(pair.from.join("d/e")).unwrap();
    fs::write(pair.from.join("d/e/f"), b"1").unwrap();
    tool("touch", &["-d", "2001-01-01"], &pair.from.join("d/e"));
    sync(&pair.from, &pair.to, &pair.work);
    let time = || fs::metadata(pair.from.join("d/e")).unwrap().mtime();
    let before = time();
    fs::write(pair.from.join("d/e/f"), b"22").unwrap();
    assert_eq!(time(), before);
    sync(&pair.from, &pair.to, &pair.work);
    assert_eq!(differences(&pair.from, &pair.to), "");
    assert_eq!(fs::metadata(pair.to.join("d/e")).unwrap().mtime(), before);
}

#[test]
fn further_names_follow_their_file() {
    let pair = sides();
    fs::write(pair.from.join("a"), b"one").unwrap();
    fs::hard_link(pair.from.join("a"), pair.from.join("b")).unwrap();
    fs::create_dir(pair.from.join("d")).unwrap();
    fs::hard_link(pair.from.join("a"), pair.from.join("d/c")).unwrap();
    for keep_time in [false, true] {
        let old = "2003-01-01";
        for content in ["first", "second"] {
            fs::write(pair.from.join("a"), content).unwrap();
            if keep_time {
                // Then the further names' entries don't change, and are not mentioned.
                tool("touch", &["-d", old], &pair.from.join("a"));
            }
            sync(&pair.from, &pair.to, &pair.work);
            assert_eq!(differences(&pair.from, &pair.to), "");
            let inode = |name: &str| fs::metadata(pair.to.join(name)).unwrap().ino();
            assert_eq!([inode("a"), inode("a")], [inode("b"), inode("d/c")]);
        }
    }
}
