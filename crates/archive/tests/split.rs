//! One request over several storage elements: exports merged, imports fanned out.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics has failed"
)]

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::rc::Rc;

use tranship_archive::TreePath;
use tranship_archive::entry::{Entry, Kind};
use tranship_archive::fan_out::{ArchiveSink, OnFailure, Outcome, Outlet, Sink, fan_out};
use tranship_archive::filter::{FilterSpec, Mounts, split_import};
use tranship_archive::merge::{MergeOptions, Part, merge};
use tranship_archive::reader::{ReadOptions, Reader};
use tranship_archive::writer::Writer;
use tranship_core::fault::{Explain as _, Fault, FaultKind};

fn archive(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (path, content) in entries {
        let entry = match content.strip_prefix("=") {
            Some(target) => Entry::new(
                *path,
                Kind::HardLink {
                    target: target.into(),
                },
                0o644,
            ),
            None if path.ends_with('/') => Entry::new(*path, Kind::Directory, 0o755),
            None => Entry::file(*path, 0o644, content.len() as u64),
        };
        let content = if entry.size == 0 { "" } else { content };
        writer.append(&entry, &mut content.as_bytes()).unwrap();
    }
    writer.finish().unwrap()
}

fn listing(bytes: &[u8]) -> Vec<String> {
    let mut reader = Reader::new(bytes, ReadOptions::strict());
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let mut content = String::new();
        reader.data().read_to_string(&mut content).unwrap();
        let link = match &entry.kind {
            Kind::HardLink { target } => format!("={}", String::from_utf8_lossy(target)),
            _ => content,
        };
        names.push(
            format!("{} {link}", String::from_utf8_lossy(&entry.path))
                .trim_end()
                .to_owned(),
        );
    }
    names
}

fn part<'a>(bytes: &'a [u8], query: &str, mounted_at: Option<&str>) -> Part<&'a [u8]> {
    Part {
        reader: Reader::new(bytes, ReadOptions::strict()),
        spec: FilterSpec::from_query(query).unwrap(),
        mounted_at: mounted_at.map(|path| TreePath::below(path.as_bytes()).unwrap()),
    }
}

#[test]
fn exports_become_one_archive() {
    let layer = archive(&[("./", ""), ("mnt/", ""), ("mnt/A/", ""), ("mnt/x", "1")]);
    let volume = archive(&[("./", ""), ("v", "2"), ("w", "=v")]);
    let parts = || {
        vec![
            part(&layer, "", None),
            part(&volume, "rebase=mnt/A", Some("mnt/A")),
        ]
    };
    let mut writer = Writer::new(Vec::new());
    let report = merge(parts(), &mut writer, MergeOptions::default()).unwrap();
    assert_eq!((report.entries, report.bytes), (6, 2));
    assert_eq!(
        listing(&writer.finish().unwrap()),
        ["./", "mnt/", "mnt/x 1", "mnt/A/", "mnt/A/v 2", "mnt/A/w =mnt/A/v"]
    );
    let mut writer = Writer::new(Vec::new());
    merge(parts(), &mut writer, MergeOptions { absolute: true }).unwrap();
    assert_eq!(
        listing(&writer.finish().unwrap()),
        [
            "/",
            "/mnt/",
            "/mnt/x 1",
            "/mnt/A/",
            "/mnt/A/v 2",
            "/mnt/A/w =/mnt/A/v"
        ]
    );
}

#[test]
fn what_cannot_be_merged_is_an_error() {
    let one = archive(&[("a", "1")]);
    let links = archive(&[("d/f", "1"), ("l", "=d/f")]);
    let mut cut = one.clone();
    cut.truncate(512);
    for (parts, code) in [
        (
            vec![part(&one, "", None), part(&one, "", None)],
            "archive.duplicate-entry",
        ),
        (
            vec![
                part(&one, "", None),
                part(&one, "rebase=b", None),
                part(&cut, "rebase=c", None),
            ],
            "archive.truncated",
        ),
        (
            vec![part(&links, "exclude=d", None)],
            "archive.link-target-filtered",
        ),
        (vec![part(&one, "strip=b", None)], "archive.filter-outside"),
    ] {
        let error = merge(parts, &mut Writer::new(Vec::new()), MergeOptions::default()).unwrap_err();
        assert_eq!(error.code(), code);
    }
}

/// Takes bytes until a limit, then fails like a pipe whose reader has gone.
#[derive(Clone)]
struct Pipe {
    bytes: Rc<RefCell<Vec<u8>>>,
    limit: usize,
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.borrow().len() + bytes.len() > self.limit {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.bytes.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Fans an archive out over these mounts; the sink of the element `broken` takes so many bytes only.
fn import(
    bytes: &[u8],
    broken: &str,
    limit: usize,
    on_failure: OnFailure,
) -> (Vec<Outcome>, Option<&'static str>, Vec<Vec<u8>>) {
    let mut mounts = Mounts::new("L");
    for (path, name) in [("/mnt/A", "A"), ("/mnt/A/AB", "AB"), ("/mnt/B", "B")] {
        mounts.mount(path.as_bytes(), name).unwrap();
    }
    let mut pipes = Vec::new();
    let mut outlets = Vec::new();
    for (name, spec) in split_import(b"/mnt", &mounts).unwrap() {
        let pipe = Pipe {
            bytes: Rc::default(),
            limit: if name == broken { limit } else { usize::MAX },
        };
        pipes.push(pipe.bytes.clone());
        outlets.push(Outlet {
            spec,
            open: Box::new(move || {
                if limit == 0 && name == broken {
                    return Err(Fault::new("test.unreachable", FaultKind::Environment, "gone"));
                }
                let sink: Box<dyn Sink> = Box::new(ArchiveSink::new(pipe));
                Ok(sink)
            }),
        });
    }
    let result = fan_out(
        &mut Reader::new(bytes, ReadOptions::strict()),
        outlets,
        on_failure,
    );
    let failure = result.failure.as_ref().map(tranship_core::fault::Explain::code);
    (
        result.outcomes,
        failure,
        pipes.iter().map(|pipe| pipe.borrow().clone()).collect(),
    )
}

#[test]
fn one_archive_feeds_all_elements() {
    let large = "x".repeat(300_000);
    let bytes = archive(&[
        ("x", "1"),
        ("A/", ""),
        ("A/f", &large),
        ("A/AB/g", "3"),
        ("A/g", "=A/f"),
        ("Ab", "4"),
    ]);
    let (outcomes, failure, streams) = import(&bytes, "", 0, OnFailure::Stop);
    assert_eq!(failure, None);
    assert_eq!(
        outcomes,
        [
            Outcome::Done(2),
            Outcome::Done(3),
            Outcome::Done(1),
            Outcome::Untouched
        ]
    );
    assert_eq!(listing(&streams[0]), ["mnt/x 1", "mnt/Ab 4"]);
    assert_eq!(listing(&streams[1])[0], "./");
    assert_eq!(listing(&streams[1])[2], "g =f");
    assert_eq!(listing(&streams[2]), ["g 3"]);
    assert!(streams[3].is_empty(), "nothing was for B");
}

#[test]
fn a_failing_element_does_not_hold_up_the_others() {
    let large = "x".repeat(300_000);
    let bytes = archive(&[
        ("x", "1"),
        ("A/f", &large),
        ("B/h", "3"),
        ("A/z", "5"),
        ("y", "6"),
    ]);
    for limit in [0, 1, 600, 100_000] {
        let (outcomes, failure, streams) = import(&bytes, "A", limit, OnFailure::Continue);
        assert_eq!(failure, None);
        assert!(matches!(outcomes[1], Outcome::Failed(_)));
        assert_eq!(
            (&outcomes[0], &outcomes[3]),
            (&Outcome::Done(2), &Outcome::Done(1))
        );
        assert_eq!(listing(&streams[0]), ["mnt/x 1", "mnt/y 6"]);
        let (outcomes, _, _) = import(&bytes, "A", limit, OnFailure::Stop);
        assert!(matches!(outcomes[1], Outcome::Failed(_)));
        assert_eq!(
            (&outcomes[0], &outcomes[3]),
            (&Outcome::Abandoned, &Outcome::Untouched)
        );
    }
}

#[test]
fn a_bad_archive_ends_all() {
    let crossing = archive(&[("x", "1"), ("A/l", "=x")]);
    let (outcomes, failure, _) = import(&crossing, "", 0, OnFailure::Continue);
    assert_eq!(failure, Some("archive.link-crosses"));
    assert_eq!(outcomes[0], Outcome::Abandoned);
    let mut cut = archive(&[("x", "1"), ("y", "2")]);
    cut.truncate(1600);
    assert_eq!(
        import(&cut, "", 0, OnFailure::Continue).1,
        Some("archive.truncated")
    );
    let upward = archive(&[("../x", "1")]);
    assert_eq!(
        import(&upward, "", 0, OnFailure::Continue).1,
        Some("archive.path-parent")
    );
}
