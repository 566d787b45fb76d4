//! Unpacking below a root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics has failed"
)]

mod common;

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink as make_link};
use std::path::Path;
use std::process::Command;

use common::{archive, describe, file, hard_link, is_root, pack, symlink};
use tempfile::TempDir;
use tranship_archive::TreePath;
use tranship_archive::acl::Acl;
use tranship_archive::confined::{
    Devices, ExportOptions, ExtractOptions, ExtractReport, Links, Ownership, Root, SetId, extract,
};
use tranship_archive::entry::{Device, Entry, Kind, Time};
use tranship_archive::reader::{ReadOptions, Reader};
use tranship_archive::sparse::{Extent, SparseMap};
use tranship_core::fault::Explain as _;

fn like_cp() -> ExtractOptions {
    ExtractOptions {
        no_overwrite_dir_non_dir: true,
        devices: Devices::Create,
        ownership: if is_root() {
            Ownership::Archive
        } else {
            Ownership::Caller
        },
        ..ExtractOptions::default()
    }
}

fn unpack_with(
    bytes: &[u8],
    root: &Path,
    base: &str,
    links: Links,
    options: ExtractOptions,
) -> Result<ExtractReport, (String, String)> {
    let root = Root::open(root, links).unwrap();
    let base = TreePath::of_request(base.as_bytes()).unwrap();
    let mut reader = Reader::new(bytes, ReadOptions::like_docker());
    extract(&mut reader, &root, &base, options).map_err(|error| (error.code().to_owned(), error.to_string()))
}

fn unpack(bytes: &[u8], root: &Path, base: &str) -> Result<ExtractReport, (String, String)> {
    unpack_with(bytes, root, base, Links::InRoot, like_cp())
}

fn code<T>(result: Result<T, (String, String)>) -> String {
    result.err().expect("an error").0
}

fn one(entry: (Entry, Vec<u8>)) -> Vec<u8> {
    archive(&[(entry.0, &entry.1)])
}

/// A tree with everything that a tree can have.
fn rich_tree(root: &Path) {
    fs::create_dir_all(root.join("d/sub/deep")).unwrap();
    fs::write(root.join("d/f"), "hello").unwrap();
    fs::write(root.join("d/empty"), "").unwrap();
    fs::hard_link(root.join("d/f"), root.join("d/sub/other-name")).unwrap();
    make_link("../f", root.join("d/sub/link")).unwrap();
    make_link("/nowhere", root.join("d/dangling")).unwrap();
    fs::write(root.join("d/new\nline é \\ -x"), "odd").unwrap();
    fs::write(root.join("d").join("n".repeat(250)), "long").unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(root.join("d/pipe"))
            .status()
            .unwrap()
            .success()
    );
    let sparse = fs::File::create(root.join("d/sparse")).unwrap();
    sparse.set_len(10 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"data", 5 << 20).unwrap();
    if is_root() {
        assert!(
            Command::new("mknod")
                .arg(root.join("d/null"))
                .args(["c", "1", "3"])
                .status()
                .unwrap()
                .success()
        );
        assert!(
            Command::new("chown")
                .arg("-h")
                .arg("12:3000000")
                .arg(root.join("d/f"))
                .arg(root.join("d/dangling"))
                .status()
                .unwrap()
                .success()
        );
    }
    fs::set_permissions(root.join("d/f"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(root.join("d/sub"), fs::Permissions::from_mode(0o1750)).unwrap();
    let set = |path: &str, name: &str, value: &[u8]| {
        rustix::fs::setxattr(root.join(path), name, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    set("d/f", "user.binary", b"\0\n=\xff");
    set("d/sub", "user.on-directory", b"x");
    let acl = Acl::parse(b"user::rwx,user:77:r--,group::r-x,mask::r-x,other::---").unwrap();
    set("d/empty", "system.posix_acl_access", &acl.to_xattr().unwrap());
    set("d/sub", "system.posix_acl_default", &acl.to_xattr().unwrap());
    for (path, time) in [
        ("d/f", "2001-02-03T04:05:06.789012345Z"),
        ("d/dangling", "1999-01-01Z"),
        ("d/sub", "1969-12-31T23:59:58.25Z"),
        ("d", "2020-01-01Z"),
    ] {
        assert!(
            Command::new("touch")
                .arg("-h")
                .arg("-d")
                .arg(time)
                .arg(root.join(path))
                .status()
                .unwrap()
                .success()
        );
    }
}

#[test]
fn a_tree_arrives_as_it_was() {
    let (from, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    rich_tree(from.path());
    let bytes = pack(from.path(), "/d", &ExportOptions::default()).unwrap();
    let report = unpack(&bytes, to.path(), "/").unwrap();
    assert_eq!(report.skipped.count, 0, "{:?}", report.skipped);
    assert_eq!(describe(&to.path().join("d")), describe(&from.path().join("d")));
    let blocks = to.path().join("d/sparse").metadata().unwrap().blocks();
    assert!(blocks < 100, "the hole is gone: {blocks} blocks");
    // Again over what is there now: nothing changes.
    unpack(&bytes, to.path(), "/").unwrap();
    assert_eq!(describe(&to.path().join("d")), describe(&from.path().join("d")));
    let leftovers = describe(to.path())
        .iter()
        .filter(|line| line.contains(".tranship-"))
        .count();
    assert_eq!(leftovers, 0);
}

#[test]
fn nothing_leads_out() {
    let outer = TempDir::new().unwrap();
    let root = outer.path().join("root");
    fs::create_dir_all(root.join("base")).unwrap();
    fs::write(outer.path().join("canary"), "safe").unwrap();
    make_link("/../../canary", root.join("up")).unwrap();
    make_link("../..", root.join("base/out")).unwrap();
    make_link(outer.path(), root.join("abs")).unwrap();
    let before = describe(outer.path());
    for (bytes, expected) in [
        (one(file("../x", "")), "archive.path-parent"),
        (one(file("a/../../x", "")), "archive.path-parent"),
        (archive(&[(hard_link("l", "../up"), b"")]), "archive.path-parent"),
        (
            archive(&[(symlink("s", "/"), b""), (file("s/x", "").0, b"")]),
            "archive.through-link",
        ),
        (
            archive(&[(symlink("s", ".."), b""), (hard_link("h", "s/up"), b"")]),
            "archive.through-link",
        ),
        (
            archive(&[
                (symlink("s", "/base"), b""),
                (Entry::new("s/", Kind::Directory, 0o777), b""),
            ]),
            "archive.overwrite-non-directory",
        ),
        (archive(&[(hard_link("h", "missing"), b"")]), "archive.not-found"),
    ] {
        assert_eq!(code(unpack(&bytes, &root, "/base")), expected);
        for made in ["base/s", "base/h"] {
            let _ = fs::remove_file(root.join(made));
        }
    }
    // Links that were there lead somewhere inside.
    unpack(&one(file("out/canary", "overwritten")), &root, "/base").unwrap();
    assert_eq!(fs::read_to_string(root.join("canary")).unwrap(), "overwritten");
    fs::remove_file(root.join("canary")).unwrap();
    assert_eq!(
        code(unpack(&one(file("abs/x", "")), &root, "/")),
        "archive.not-a-directory"
    );
    assert_eq!(
        code(unpack_with(
            &one(file("out/x", "")),
            &root,
            "/base",
            Links::Refuse,
            like_cp()
        )),
        "archive.link-refused"
    );
    assert_eq!(
        code(unpack_with(
            &one(file("abs/x", "")),
            &root,
            "/",
            Links::Beneath,
            like_cp()
        )),
        "archive.link-refused"
    );
    // Absolute names land below the base, or are refused.
    unpack(&one(file("/abs-name", "x")), &root, "/base").unwrap();
    fs::remove_file(root.join("base/abs-name")).unwrap();
    let strict = ExtractOptions {
        refuse_absolute: true,
        ..like_cp()
    };
    assert_eq!(
        code(unpack_with(
            &one(file("/x", "")),
            &root,
            "/base",
            Links::InRoot,
            strict
        )),
        "archive.path-absolute"
    );
    let after = describe(outer.path());
    let outside = |lines: Vec<String>| {
        lines
            .into_iter()
            .filter(|line| line.contains("canary"))
            .collect::<Vec<_>>()
    };
    assert_eq!(outside(after), outside(before));
}

#[test]
fn directories_and_others_do_not_replace_one_another_unless_allowed() {
    let root = TempDir::new().unwrap();
    let dir = archive(&[(Entry::new("x/", Kind::Directory, 0o755), b"")]);
    fs::create_dir_all(root.path().join("x/full")).unwrap();
    let (code, message) = unpack(&one(file("x", "f")), root.path(), "/").unwrap_err();
    assert_eq!(code, "archive.overwrite-directory");
    assert!(
        message.starts_with("cannot overwrite directory \"/x\" with non-directory"),
        "{message}"
    );
    let free = || ExtractOptions {
        no_overwrite_dir_non_dir: false,
        ..like_cp()
    };
    unpack_with(&one(file("x", "f")), root.path(), "/", Links::InRoot, free()).unwrap();
    assert_eq!(fs::read_to_string(root.path().join("x")).unwrap(), "f");
    let (code, message) = unpack(&dir, root.path(), "/").unwrap_err();
    assert_eq!(code, "archive.overwrite-non-directory");
    assert!(
        message.starts_with("cannot overwrite non-directory \"/x\" with directory"),
        "{message}"
    );
    unpack_with(&dir, root.path(), "/", Links::InRoot, free()).unwrap();
    assert!(root.path().join("x").is_dir());
    let (_, message) = unpack(&dir, root.path(), "/x/../x/nope").unwrap_err();
    assert!(message.contains("/x/nope"), "{message}");
    fs::write(root.path().join("plain"), "").unwrap();
    let (_, message) = unpack(&dir, root.path(), "/plain").unwrap_err();
    assert!(
        message.contains("extraction point is not a directory"),
        "{message}"
    );
}

#[test]
fn what_is_there_is_replaced_not_written_through() {
    let root = TempDir::new().unwrap();
    let at = |name: &str| root.path().join(name);
    assert!(Command::new("mkfifo").arg(at("p")).status().unwrap().success());
    unpack(&one(file("p", "content")), root.path(), "/").unwrap();
    assert_eq!(fs::read_to_string(at("p")).unwrap(), "content");
    fs::write(at("kept"), "kept").unwrap();
    make_link("kept", at("l")).unwrap();
    fs::hard_link(at("kept"), at("h")).unwrap();
    unpack(
        &archive(&[(file("l", "12").0, b"12"), (file("h", "34").0, b"34")]),
        root.path(),
        "/",
    )
    .unwrap();
    assert_eq!(fs::read_to_string(at("kept")).unwrap(), "kept");
    assert_eq!(fs::read_to_string(at("l")).unwrap(), "12");
    // A link onto itself and onto its own other name.
    unpack(
        &archive(&[
            (hard_link("kept", "kept"), b""),
            (hard_link("again", "kept"), b""),
            (hard_link("again", "kept"), b""),
        ]),
        root.path(),
        "/",
    )
    .unwrap();
    assert_eq!(fs::read_to_string(at("again")).unwrap(), "kept");
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 5);
    // A new fifo over a file.
    unpack(
        &archive(&[(Entry::new("kept", Kind::Fifo, 0o600), b"")]),
        root.path(),
        "/",
    )
    .unwrap();
    assert!(at("kept").symlink_metadata().unwrap().file_type().is_fifo());
}

#[test]
fn policies_hold() {
    let root = TempDir::new().unwrap();
    let null = archive(&[(
        Entry::new(
            "null",
            Kind::CharacterDevice(Device { major: 1, minor: 3 }),
            0o666,
        ),
        b"",
    )]);
    let with = |change: fn(&mut ExtractOptions), bytes: &[u8]| {
        let mut options = like_cp();
        change(&mut options);
        unpack_with(bytes, root.path(), "/", Links::InRoot, options)
    };
    assert_eq!(
        code(with(|o| o.devices = Devices::Refuse, &null)),
        "archive.device"
    );
    assert_eq!(
        with(|o| o.devices = Devices::Skip, &null).unwrap().skipped.count,
        1
    );
    assert!(!root.path().join("null").exists());
    let mut setuid = Entry::file("s", 0o6755, 0);
    setuid.uid = 1234;
    let setuid = archive(&[(setuid, b"")]);
    assert_eq!(code(with(|o| o.setid = SetId::Refuse, &setuid)), "archive.setid");
    assert!(!root.path().join("s").exists());
    let mode = || root.path().join("s").metadata().unwrap().permissions().mode() & 0o7777;
    with(|o| o.setid = SetId::Strip, &setuid).unwrap();
    assert_eq!(mode(), 0o755);
    with(|_| {}, &setuid).unwrap();
    assert_eq!(mode(), 0o6755);
    if is_root() {
        assert_eq!(root.path().join("s").metadata().unwrap().uid(), 1234);
        with(|o| o.ownership = Ownership::Fixed { uid: 5, gid: 6 }, &setuid).unwrap();
        assert_eq!(root.path().join("s").metadata().unwrap().uid(), 5);
    }
    let whiteout = one(file("d/.wh.x", ""));
    assert_eq!(
        code(with(|o| o.refuse_whiteouts = true, &whiteout)),
        "archive.whiteout"
    );
    with(|_| {}, &whiteout).unwrap();
    let missing = root.path().join("d").metadata().unwrap();
    assert_eq!(
        missing.permissions().mode() & 0o7777,
        0o755,
        "implied directories"
    );
    let through = archive(&[(symlink("ln", "d"), b""), (file("ln/in", "").0, b"")]);
    with(|o| o.through_own_links = true, &through).unwrap();
    assert!(root.path().join("d/in").exists());
    let base = archive(&[(Entry::new("./", Kind::Directory, 0o711), b"")]);
    with(|_| {}, &base).unwrap();
    assert_ne!(
        root.path().metadata().unwrap().permissions().mode() & 0o777,
        0o711
    );
    with(|o| o.root_metadata = true, &base).unwrap();
    assert_eq!(
        root.path().metadata().unwrap().permissions().mode() & 0o777,
        0o711
    );
}

#[test]
fn times_of_directories_are_set_last() {
    let root = TempDir::new().unwrap();
    let mut dir = Entry::new("d/", Kind::Directory, 0o500);
    dir.mtime = Time {
        seconds: 1_000_000_000,
        nanoseconds: 5,
    };
    let bytes = archive(&[(dir, b""), (file("d/f", "x").0, b"x"), (file("d/g", "x").0, b"x")]);
    unpack(&bytes, root.path(), "/").unwrap();
    let meta = root.path().join("d").metadata().unwrap();
    assert_eq!(
        (meta.mtime(), meta.mtime_nsec(), meta.mode() & 0o7777),
        (1_000_000_000, 5, 0o500)
    );
}

#[test]
fn broken_archives_leave_no_half_files() {
    let root = TempDir::new().unwrap();
    fs::write(root.path().join("f"), "old").unwrap();
    let mut bytes = one(file("f", &"new".repeat(1000)));
    bytes.truncate(2000);
    assert_eq!(code(unpack(&bytes, root.path(), "/")), "archive.truncated");
    assert_eq!(fs::read_to_string(root.path().join("f")).unwrap(), "old");
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
}

#[test]
fn the_beginning_of_a_large_file_is_kept_where_that_is_asked_for() {
    let root = TempDir::new().unwrap();
    fs::write(root.path().join("f"), "old").unwrap();
    let content = "new.".repeat(1 << 20);
    let whole = one(file("f", &content));
    let options = || ExtractOptions {
        keep_partial: true,
        ..like_cp()
    };
    let unpack = |length: usize| {
        let bytes = &whole[..length];
        unpack_with(bytes, root.path(), "/", Links::InRoot, options())
    };
    let partial = root.path().join(".tranship-partial.f");
    let kept = || partial.metadata().map_or(0, |meta| meta.len());
    // Too little to be worth it.
    assert_eq!(code(unpack(500_000)), "archive.truncated");
    assert_eq!(kept(), 0);
    assert_eq!(code(unpack(3_000_000)), "archive.truncated");
    let (longest, mode) = (kept(), partial.metadata().unwrap().mode() & 0o777);
    assert!(
        (2_500_000..3_000_000).contains(&longest) && mode == 0o600,
        "{longest} {mode:o}"
    );
    assert!(content.starts_with(&fs::read_to_string(&partial).unwrap()));
    // One that comes less far changes nothing, one that comes further takes its place.
    assert_eq!(code(unpack(1_500_000)), "archive.truncated");
    assert_eq!(kept(), longest);
    assert_eq!(code(unpack(4_000_000)), "archive.truncated");
    assert!(kept() > longest);
    assert_eq!(fs::read_to_string(root.path().join("f")).unwrap(), "old");
    // It goes with the whole one, as does whatever has that name, and a directory that has it is in nobody's way.
    unpack(whole.len()).unwrap();
    assert_eq!(
        (kept(), fs::read_to_string(root.path().join("f")).unwrap()),
        (0, content.clone())
    );
    fs::create_dir(&partial).unwrap();
    assert_eq!(code(unpack(3_000_000)), "archive.truncated");
    unpack(whole.len()).unwrap();
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
    fs::remove_dir(&partial).unwrap();
    // What is the beginning of an older file makes way for less of a newer one.
    assert_eq!(code(unpack(3_900_000)), "archive.truncated");
    fs::File::open(&partial)
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1))
        .unwrap();
    let longest = kept();
    assert_eq!(code(unpack(2_000_000)), "archive.truncated");
    assert!(kept() < longest);
    fs::remove_file(&partial).unwrap();
    // A file of the archive that is called so is a file like any other.
    let both = archive(&[
        (file(".tranship-partial.f", "own").0, b"own"),
        (file("f", &content).0, content.as_bytes()),
    ]);
    for length in [3_000_000, both.len()] {
        let done = unpack_with(&both[..length], root.path(), "/", Links::InRoot, options());
        assert_eq!(done.is_ok(), length == both.len());
        assert_eq!(fs::read_to_string(&partial).unwrap(), "own");
    }
    // A name that leaves no place for another is not kept.
    let long = "n".repeat(250);
    let bytes = one(file(&long, &"x".repeat(4 << 20)));
    let result = unpack_with(&bytes[..3_000_000], root.path(), "/", Links::InRoot, options());
    assert_eq!(code(result), "archive.truncated");
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
}

#[test]
fn a_full_disk_is_named() {
    if !is_root() {
        eprintln!("SKIPPED: mounting a small file system needs root");
        return;
    }
    let root = TempDir::new().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2m", "none"])
        .arg(root.path())
        .status()
        .unwrap();
    assert!(mounted.success());
    let large = file("large", &"x".repeat(4 << 20));
    // A beginning that is kept would keep the disk full.
    let options = ExtractOptions {
        keep_partial: true,
        ..like_cp()
    };
    let result = unpack_with(&one(large), root.path(), "/", Links::InRoot, options);
    let left = fs::read_dir(root.path()).unwrap().count();
    let bound = root.path().join("bound");
    // The kernel may give the space of what has no name any more back a moment later.
    let mut tries = 0;
    while let Err(error) = fs::write(&bound, "host") {
        tries += 1;
        assert!(tries < 100, "{error}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let bind = Command::new("mount")
        .arg("--bind")
        .arg(&bound)
        .arg(&bound)
        .status()
        .unwrap();
    let busy = unpack(&one(file("bound", "x")), root.path(), "/");
    let read_only = Command::new("mount")
        .args(["-o", "remount,ro"])
        .arg(root.path())
        .status()
        .unwrap();
    let refused = unpack(&one(file("x", "")), root.path(), "/");
    assert!(Command::new("umount").arg(&bound).status().unwrap().success());
    assert!(
        Command::new("umount")
            .arg(root.path())
            .status()
            .unwrap()
            .success()
    );
    assert!(bind.success() && read_only.success());
    assert_eq!(code(result), "archive.no-space");
    assert_eq!(left, 0, "the half file is removed");
    let (busy, message) = busy.unwrap_err();
    assert_eq!(busy, "archive.busy");
    assert!(message.to_lowercase().contains("busy"), "{message}");
    assert_eq!(code(refused), "archive.read-only");
}

#[test]
fn sparse_files_are_made_of_holes_and_data() {
    let root = TempDir::new().unwrap();
    let mut entry = Entry::file("s", 0o644, 1 << 30);
    entry.sparse = Some(
        SparseMap::new(
            [Extent {
                offset: 1 << 29,
                length: 3,
            }],
            entry.size,
        )
        .unwrap(),
    );
    let report = unpack(&archive(&[(entry, b"abc")]), root.path(), "/").unwrap();
    assert_eq!(report.bytes, 3);
    let meta = root.path().join("s").metadata().unwrap();
    assert!(meta.len() == 1 << 30 && meta.blocks() < 100);
    let expanded = ExportOptions {
        expand_holes: true,
        ..ExportOptions::default()
    };
    fs::write(root.path().join("t"), "").unwrap();
    fs::File::options()
        .write(true)
        .open(root.path().join("t"))
        .unwrap()
        .set_len(100_000)
        .unwrap();
    let bytes = pack(root.path(), "t", &expanded).unwrap();
    let mut reader = Reader::new(&bytes[..], ReadOptions::strict());
    let entry = reader.next_entry().unwrap().unwrap();
    assert_eq!((entry.size, entry.sparse), (100_000, None));
    assert_eq!(io::copy(&mut reader.data(), &mut io::sink()).unwrap(), 100_000);
}
