//! The catalogue of bad archives: every one has its code, and nothing of it is passed over.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics has failed"
)]

mod build;
#[path = "../common/mod.rs"]
mod common;
mod extensions;
mod headers;
mod sparse;

use std::io;

use build::*;
use common::{Random, archive, file};
use tranship_archive::entry::{Entry, Kind};
use tranship_archive::error::ReadError;
use tranship_archive::reader::{Limits, ReadOptions, Reader};

/// Reads everything; the code of the error, if there is one.
fn read(bytes: &[u8], options: ReadOptions) -> Result<Vec<Entry>, ReadError> {
    let mut reader = Reader::new(bytes, options);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        while reader.read_extent(&mut [0; 4096])?.is_some() {}
        entries.push(entry);
    }
    Ok(entries)
}

fn code(bytes: &[u8], options: ReadOptions) -> &'static str {
    match read(bytes, options) {
        Ok(entries) => panic!("accepted: {entries:?}"),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            error.defect.code()
        }
    }
}

fn catalogue() -> Vec<Case> {
    [headers::catalogue(), extensions::catalogue(), sparse::catalogue()].concat()
}

#[test]
fn every_bad_archive_has_its_code() {
    let catalogue = catalogue();
    assert!(catalogue.len() >= 150, "{}", catalogue.len());
    for (name, bytes, expected) in &catalogue {
        assert_eq!(code(bytes, ReadOptions::strict()), *expected, "{name}");
    }
}

#[test]
fn an_error_stays_an_error() {
    for (name, bytes, _) in catalogue() {
        let mut reader = Reader::new(&bytes[..], ReadOptions::strict());
        while let Ok(Some(_)) = reader.next_entry() {}
        let again = reader.next_entry().unwrap_err().defect.code();
        assert_eq!(again, "archive.after-error", "{name}");
    }
}

#[test]
fn limits_hold() {
    let many = archive(
        &(0..20)
            .map(|n| (Entry::file(format!("f{n}"), 0, 0), &b""[..]))
            .collect::<Vec<_>>(),
    );
    let limited = |limits: Limits| ReadOptions {
        limits,
        ..ReadOptions::strict()
    };
    let entries = limited(Limits {
        entries: 19,
        ..Limits::default()
    });
    assert_eq!(code(&many, entries), "archive.too-many-entries");
    let exact = limited(Limits {
        entries: 20,
        ..Limits::default()
    });
    assert_eq!(read(&many, exact).unwrap().len(), 20);
    let name = limited(Limits {
        name: 10,
        ..Limits::default()
    });
    assert_eq!(
        code(&archive(&[(Entry::file("x".repeat(11), 0, 0), b"")]), name),
        "archive.name-too-long"
    );
    let extents = limited(Limits {
        extents: 1,
        ..Limits::default()
    });
    let two = sparse_records(
        &[("size", "100"), ("numblocks", "2"), ("map", "0,2,4,2")],
        b"abcd",
    );
    assert_eq!(code(&two, extents), "archive.sparse-too-large");
    assert_eq!(
        code(&sparse_1_0("2\n0\n2\n4\n2\n", "100", b"abcd"), extents),
        "archive.sparse-too-large"
    );
}

#[test]
fn docker_takes_more() {
    let like_docker = ReadOptions::like_docker();
    assert_eq!(read(b"", like_docker).unwrap().len(), 0);
    let good = ended(&[plain("f", b"content")]);
    assert_eq!(read(&good[..1024], like_docker).unwrap().len(), 1);
    assert_eq!(read(&good[..1536], like_docker).unwrap().len(), 1);
    assert_eq!(
        read(&[good.clone(), b"garbage".to_vec()].concat(), like_docker)
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        read(&ended(&[plain("f", b""), plain("f", b"2")]), like_docker)
            .unwrap()
            .len(),
        2
    );
    assert_eq!(code(&good[..700], like_docker), "archive.truncated");
    assert_eq!(code(b"garbage", like_docker), "archive.truncated");
}

#[test]
fn what_is_well_formed_is_taken() {
    for (name, bytes) in [
        (
            "a padded end",
            [ended(&[plain("f", b"")]), vec![0; 9000]].concat(),
        ),
        ("a v7 directory", ended(&[Header::new(0, "d/", 0).sealed()])),
        ("a contiguous file", ended(&[Header::new(b'7', "f", 0).sealed()])),
        (
            "a global comment",
            ended(&[extension(b'g', &record("comment", b"x")), plain("f", b"")]),
        ),
        (
            "an equal size",
            ended(&[pax(&[("size", b"3")]), plain("f", b"abc")]),
        ),
        (
            "both names the same",
            ended(&[extension(b'L', b"n\0"), pax(&[("path", b"n")]), plain("f", b"")]),
        ),
        (
            "sparse 0.0",
            sparse_records(
                &[
                    ("size", "100"),
                    ("numblocks", "2"),
                    ("offset", "0"),
                    ("numbytes", "2"),
                    ("offset", "9"),
                    ("numbytes", "2"),
                ],
                b"abcd",
            ),
        ),
        (
            "sparse 0.1",
            sparse_records(&[("size", "100"), ("numblocks", "1"), ("map", "96,4")], b"abcd"),
        ),
        ("sparse 1.0", sparse_1_0("2\n0\n4\n100\n0\n", "100", b"abcd")),
        (
            "sparse of old GNU",
            old_gnu(
                &[
                    ("00000000010\0", "00000000004\0"),
                    ("00000000144\0", "00000000000\0"),
                ],
                0,
                "00000000144\0",
                b"",
                b"abcd",
            ),
        ),
        (
            "an attribute twice, the same",
            ended(&[
                pax(&[
                    ("SCHILY.xattr.user.a", b"f"),
                    ("LIBARCHIVE.xattr.user.a", b"Zg=="),
                ]),
                plain("f", b""),
            ]),
        ),
        (
            "an unknown key",
            ended(&[pax(&[("VENDOR.key", b"x"), ("atime", b"1.5")]), plain("f", b"")]),
        ),
    ] {
        let entries = read(&bytes, ReadOptions::strict());
        assert_eq!(entries.map(|entries| entries.len()).ok(), Some(1), "{name}");
    }
}

#[test]
fn memory_stays_bounded_whatever_the_archive_says() {
    /// An endless archive: one entry after the other, and a file of eight exabytes at the end.
    struct Endless {
        block: Vec<u8>,
        at: usize,
        entries: u64,
        random: Random,
    }
    impl io::Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.at == self.block.len() {
                self.at = 0;
                self.entries += 1;
                let name = format!("d{}/{}", self.random.next(), self.entries);
                self.block = Header::new(b'0', &name, 0).sealed();
            }
            let length = buffer.len().min(self.block.len() - self.at);
            buffer[..length].copy_from_slice(&self.block[self.at..self.at + length]);
            self.at += length;
            Ok(length)
        }
    }
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = resident();
    let endless = Endless {
        block: Vec::new(),
        at: 0,
        entries: 0,
        random: Random(1),
    };
    let mut reader = Reader::new(endless, ReadOptions::strict());
    let error = loop {
        match reader.next_entry() {
            Ok(entry) => assert!(entry.is_some()),
            Err(error) => break error,
        }
    };
    assert_eq!(error.defect.code(), "archive.too-many-entries");
    let used = resident().saturating_sub(before);
    assert!(used < 64 << 10, "{used} KiB for a million names");
    let (entry, content) = file("f", "x");
    assert_eq!(entry.kind, Kind::File);
    assert_eq!(content.len(), 1);
}
