//! Packing below a root, and what the archive API says about its paths.
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
use std::os::unix::fs::{PermissionsExt as _, symlink as make_link};
use std::path::Path;

use common::{names, pack};
use tempfile::TempDir;
use tranship_archive::TreePath;
use tranship_archive::confined::{
    Attributes, ExportOptions, ExtractOptions, Links, Ownership, Root, export, export_element, extract,
    go_mode,
};
use tranship_archive::filter::FilterSpec;
use tranship_archive::reader::{ReadOptions, Reader};
use tranship_archive::writer::Writer;
use tranship_core::fault::Explain as _;

#[test]
fn first_entries_are_named_as_docker_names_them() {
    let tree = TempDir::new().unwrap();
    fs::create_dir_all(tree.path().join("td/e")).unwrap();
    fs::write(tree.path().join("td/x"), "").unwrap();
    fs::write(tree.path().join("t"), "").unwrap();
    make_link("td", tree.path().join("l")).unwrap();
    make_link("nowhere", tree.path().join("dang")).unwrap();
    let options = ExportOptions::default();
    let follow = ExportOptions {
        follow: true,
        ..ExportOptions::default()
    };
    let packed = |request: &str, options: &ExportOptions| {
        pack(tree.path(), request, options).map(|bytes| names(&bytes))
    };
    assert_eq!(packed("/t", &options).unwrap(), ["t"]);
    assert_eq!(packed("td", &options).unwrap(), ["td/", "td/e/", "td/x"]);
    assert_eq!(packed("/td/.", &options).unwrap(), ["./", "e/", "x"]);
    assert_eq!(
        packed("/", &options).unwrap(),
        ["/", "/dang", "/l", "/t", "/td/", "/td/e/", "/td/x"]
    );
    assert_eq!(packed("/.", &options).unwrap()[0], "./");
    assert_eq!(packed("/../../td", &options).unwrap()[0], "td/");
    assert_eq!(packed("/l", &options).unwrap(), ["l"]);
    assert_eq!(packed("/l/", &options).unwrap(), ["l/", "l/e/", "l/x"]);
    assert_eq!(packed("/l/.", &options).unwrap(), ["./", "e/", "x"]);
    assert_eq!(packed("/l", &follow).unwrap(), ["l/", "l/e/", "l/x"]);
    assert_eq!(packed("/l/x", &options).unwrap(), ["x"]);
    assert_eq!(packed("/dang", &options).unwrap(), ["dang"]);
    assert_eq!(packed("/dang", &follow).unwrap_err(), "archive.not-found");
    assert_eq!(packed("/nope", &options).unwrap_err(), "archive.not-found");
    assert_eq!(packed("/t/", &options).unwrap_err(), "archive.not-a-directory");
    assert_eq!(packed("/t/.", &options).unwrap_err(), "archive.not-a-directory");
}

#[test]
fn elements_are_packed_by_their_spec() {
    let tree = TempDir::new().unwrap();
    for path in ["mnt/A", "mnt/B", "mnt/Ab", "etc"] {
        fs::create_dir_all(tree.path().join(path)).unwrap();
        fs::write(tree.path().join(path).join("f"), "x").unwrap();
    }
    let root = Root::open(tree.path(), Links::InRoot).unwrap();
    let packed = |query: &str| {
        let mut writer = Writer::new(Vec::new());
        let spec = FilterSpec::from_query(query).unwrap();
        let report = export_element(&root, &spec, &mut writer, &ExportOptions::default()).unwrap();
        let names = names(&writer.finish().unwrap());
        assert_eq!(report.entries, names.len() as u64);
        names
    };
    let mounts = "exclude=&exclude=mnt/A/&exclude=mnt/B/";
    assert_eq!(
        packed(&format!("include=mnt&{mounts}&strip=mnt&rebase=mnt")),
        ["mnt/", "mnt/A/", "mnt/Ab/", "mnt/Ab/f", "mnt/B/"]
    );
    assert_eq!(
        packed(&format!("include=mnt/&{mounts}&strip=mnt"))[..2],
        ["./", "A/"]
    );
    assert_eq!(
        packed(&format!("include=mnt/A&{mounts}&strip=mnt/A&rebase=A")),
        ["A/"]
    );
    assert_eq!(packed("include=mnt/A/f&exclude=&strip=mnt/A/f&rebase=f"), ["f"]);
    assert_eq!(packed("rebase=v").len(), 10);
}

#[test]
fn sockets_are_reported_and_attributes_chosen() {
    let tree = TempDir::new().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.path().join("s")).unwrap();
    fs::write(tree.path().join("f"), "12345").unwrap();
    rustix::fs::setxattr(
        tree.path().join("f"),
        "user.a",
        b"1",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    let root = Root::open(tree.path(), Links::InRoot).unwrap();
    let options = ExportOptions {
        attributes: Attributes::Only(vec![b"security.capability".to_vec()]),
        headers_only: true,
        ..ExportOptions::default()
    };
    let mut writer = Writer::new(Vec::new());
    let report = export(&root, b"/.", &mut writer, &options).unwrap();
    assert_eq!((report.skipped.count, report.entries), (1, 2));
    let bytes = writer.finish().unwrap();
    let mut reader = Reader::new(&bytes[..], ReadOptions::strict());
    reader.next_entry().unwrap();
    let entry = reader.next_entry().unwrap().unwrap();
    assert!(entry.xattrs.is_empty() && entry.size == 0);
}

#[test]
fn paths_are_described_as_the_archive_api_does() {
    let tree = TempDir::new().unwrap();
    let at = |name: &str| tree.path().join(name);
    fs::create_dir_all(at("etc")).unwrap();
    fs::write(at("etc/passwd"), "root").unwrap();
    fs::set_permissions(at("etc/passwd"), fs::Permissions::from_mode(0o644)).unwrap();
    make_link("/etc/passwd", at("abs")).unwrap();
    make_link("../../../etc", at("etc/up")).unwrap();
    make_link("nope/../gone", at("etc/dang")).unwrap();
    let root = Root::open(tree.path(), Links::InRoot).unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let passwd = root.stat(b"/etc/passwd").unwrap();
    assert_eq!(
        (go_mode(passwd.mode), passwd.size, passwd.link_target.len()),
        (420, 4, 0)
    );
    for (request, name, target) in [
        ("/", "/", ""),
        ("/etc/.", ".", ""),
        ("etc/", "etc", ""),
        ("/abs", "abs", "/etc/passwd"),
        ("/etc/up", "up", "/etc"),
        ("/etc/dang", "dang", "/etc/gone"),
        ("/../etc/passwd", "passwd", ""),
    ] {
        let stat = root.stat(request.as_bytes()).unwrap();
        assert_eq!(
            (text(&stat.name), text(&stat.link_target)),
            (name.to_owned(), target.to_owned()),
            "{request}"
        );
    }
    assert_eq!(root.stat(b"/nope").unwrap_err().code(), "archive.not-found");
    assert_eq!(
        root.stat(b"/etc/passwd/").unwrap_err().code(),
        "archive.not-a-directory"
    );
    assert_eq!(go_mode(0o040_755), 1 << 31 | 0o755);
    assert_eq!(go_mode(0o120_777), 1 << 27 | 0o777);
    assert_eq!(go_mode(0o107_644), 1 << 23 | 1 << 22 | 1 << 20 | 0o644);
    assert_eq!(go_mode(0o020_600), 1 << 26 | 1 << 21 | 0o600);
}

#[test]
fn deep_trees_are_packed_and_too_deep_ones_are_named() {
    let tree = TempDir::new().unwrap();
    let deep = vec!["d"; 400].join("/");
    fs::create_dir_all(tree.path().join(&deep)).unwrap();
    let bytes = pack(tree.path(), "/.", &ExportOptions::default()).unwrap();
    assert_eq!(names(&bytes).len(), 401);
    let to = TempDir::new().unwrap();
    let root = Root::open(to.path(), Links::InRoot).unwrap();
    let options = ExtractOptions {
        ownership: Ownership::Caller,
        ..ExtractOptions::default()
    };
    let mut reader = Reader::new(&bytes[..], ReadOptions::strict());
    extract(&mut reader, &root, &TreePath::root(), options).unwrap();
    assert!(to.path().join(&deep).is_dir());
    fs::create_dir_all(tree.path().join(vec!["d"; 600].join("/"))).unwrap();
    assert_eq!(
        pack(tree.path(), "/.", &ExportOptions::default()).unwrap_err(),
        "archive.too-deep"
    );
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    struct Shrinking<'a>(&'a Path);
    impl io::Write for Shrinking<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            fs::File::options().write(true).open(self.0)?.set_len(10)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let tree = TempDir::new().unwrap();
    fs::write(tree.path().join("f"), vec![1; 500_000]).unwrap();
    let root = Root::open(tree.path(), Links::InRoot).unwrap();
    let path = tree.path().join("f");
    let mut writer = Writer::new(Shrinking(&path));
    let error = export(&root, b"f", &mut writer, &ExportOptions::default()).unwrap_err();
    assert_eq!(error.code(), "archive.content-size");
}
