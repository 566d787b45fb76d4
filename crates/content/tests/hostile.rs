//! What a hostile source may send, and what the sink says. Nothing of it may leave a trace outside the root, or unchecked bytes in it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod support;

use std::fs;
use std::io::Write as _;

use bytes::Bytes;
use support::make::*;
use support::{Peer, id, no_tree, tree_id, with_sink};
use tranship_content::entry::{Entry, EntryKind, Timestamp};
use tranship_content::message::{
    Base, DELTA, MAX_FRAME, Message, Operation, Part, Totals, Wants, Write as How,
};
use tranship_core::fault::Explain as _;

/// The code with which the sink ends a round, and which it told the other side, if it did.
fn code(seed: &[(&str, &[u8])], source: impl FnOnce(&mut Peer) + Send) -> (String, Option<String>) {
    let all = tempfile::tempdir().unwrap();
    let to = all.path().join("outer/root");
    fs::create_dir_all(&to).unwrap();
    let canary = all.path().join("canary");
    fs::write(&canary, b"untouched").unwrap();
    for (name, bytes) in seed {
        fs::write(to.join(name), bytes).unwrap();
    }
    let (result, told) = with_sink(&to, &all.path().join("work"), |peer| {
        peer.open(Wants::default());
        source(peer);
        loop {
            match peer.frames.message() {
                Ok(Message::Failed(fault)) => return Some(fault.code),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    });
    assert_eq!(fs::read(&canary).unwrap(), b"untouched");
    let mut names: Vec<_> = fs::read_dir(all.path())
        .unwrap()
        .map(|found| found.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["canary", "outer", "work"]);
    let error = result.unwrap_err();
    (error.code().to_owned(), told)
}

fn refused(wanted: &str, name: &str, seed: &[(&str, &[u8])], list: Vec<Operation>) {
    let mut list = list;
    if seed.is_empty() {
        list.insert(0, root());
    }
    let (found, told) = code(seed, |peer| {
        peer.operations(&list);
        peer.say(&Message::Done);
    });
    assert_eq!(found, wanted, "{name}");
    assert_eq!(told.as_deref(), Some(wanted), "{name}: not told");
}

#[test]
fn paths_and_their_order() {
    let long = "x".repeat(256);
    let deep = vec!["d"; 1025].join("/");
    for (name, path) in [
        ("climbs", "../canary"),
        ("climbs within", "a/../../canary"),
        ("absolute", "/tmp/x"),
        ("dot", "a/./b"),
        ("empty component", "a//b"),
        ("trailing slash", "a/"),
        ("NUL", "a\0b"),
        ("long name", &long),
        ("deep", &deep),
    ] {
        refused("content.bad-path", name, &[], vec![whole(path, b"x")]);
        refused("content.bad-path", name, &[], vec![directory(path)]);
        let remove = Operation::Remove { path: path.into() };
        refused("content.bad-path", name, &[], vec![remove]);
        let hardlink = entry("z", EntryKind::Hardlink { target: path.into() });
        refused("content.bad-path", name, &[], vec![Operation::Make(hardlink)]);
    }
    let order: Vec<(&str, Vec<Operation>)> = vec![
        ("unsorted", vec![whole("b", b"x"), whole("a", b"x")]),
        ("twice", vec![whole("a", b"x"), whole("a", b"x")]),
        ("root twice", vec![root()]),
        ("no parent", vec![whole("a/b", b"x")]),
        ("file as parent", vec![whole("a", b"x"), whole("a/b", b"x")]),
        ("link as parent", vec![link("a", ".."), whole("a/canary", b"x")]),
        (
            "link as parent of a directory",
            vec![link("a", ".."), directory("a/new")],
        ),
        (
            "parent left",
            vec![directory("a"), directory("b"), whole("a/c", b"x")],
        ),
        (
            "removes what is not there",
            vec![Operation::Remove { path: b"a".to_vec() }],
        ),
        ("removes the root", vec![Operation::Remove { path: Vec::new() }]),
        ("attributes of nothing", vec![Operation::Attributes(file("a", 1))]),
        (
            "hardlink forward",
            vec![Operation::Make(entry(
                "a",
                EntryKind::Hardlink {
                    target: b"b".to_vec(),
                },
            ))],
        ),
        (
            "hardlink to itself",
            vec![Operation::Make(entry(
                "a",
                EntryKind::Hardlink {
                    target: b"a".to_vec(),
                },
            ))],
        ),
    ];
    for (name, list) in order {
        refused("manifest.order", name, &[], list);
    }
    let gone = entry(
        "b",
        EntryKind::Hardlink {
            target: b"a".to_vec(),
        },
    );
    refused(
        "content.destination-changed",
        "hardlink to nothing",
        &[],
        vec![Operation::Make(gone)],
    );
    let through = entry(
        "b",
        EntryKind::Hardlink {
            target: b"a/canary".to_vec(),
        },
    );
    let list = vec![link("a", "../.."), Operation::Make(through)];
    refused(
        "content.destination-changed",
        "hardlink through a link",
        &[],
        list,
    );
    let lies = entry(
        "b",
        EntryKind::Hardlink {
            target: b"a".to_vec(),
        },
    );
    let list = vec![
        Operation::Whole {
            entry: Entry {
                mode: 0o644,
                ..file("a", 1)
            },
            id: id(b"x"),
            bytes: Bytes::from_static(b"x"),
        },
        Operation::Make(lies),
    ];
    refused("content.not-equal", "hardlink with other attributes", &[], list);
}

#[test]
fn content_that_lies() {
    let copy = |path: &str, offset, length| Operation::Copy {
        path: path.into(),
        offset,
        length,
        id: id(b"12345678"),
    };
    let wrong = Operation::Data {
        id: id(b"good"),
        bytes: Bytes::from_static(b"evil"),
    };
    let wrong_whole = Operation::Whole {
        entry: file("a", 4),
        id: id(b"good"),
        bytes: Bytes::from_static(b"evil"),
    };
    refused(
        "chunk.corrupt",
        "data",
        &[],
        vec![begin("a", 4, How::Replace), wrong],
    );
    refused("chunk.corrupt", "whole", &[], vec![wrong_whole]);
    let cases: Vec<(&str, &str, Vec<Operation>)> = vec![
        (
            "chunk.content",
            "too short",
            vec![begin("a", 5, How::Replace), data(b"1234"), Operation::FileEnd],
        ),
        (
            "chunk.content",
            "too long",
            vec![begin("a", 3, How::Replace), data(b"1234"), Operation::FileEnd],
        ),
        (
            "chunk.content",
            "hole too long",
            vec![begin("a", 3, How::Replace), Operation::Hole { length: 4 }],
        ),
        (
            "chunk.content",
            "keep without base",
            vec![begin("a", 3, How::Replace), Operation::Keep { length: 3 }],
        ),
        (
            "chunk.content",
            "whole of another size",
            vec![Operation::Whole {
                entry: file("a", 9),
                id: id(b"x"),
                bytes: Bytes::from_static(b"x"),
            }],
        ),
        (
            "chunk.content",
            "file that is a directory",
            vec![Operation::File {
                entry: entry("a", EntryKind::Directory),
                write: How::Replace,
            }],
        ),
        (
            "chunk.content",
            "whole that is a link",
            vec![Operation::Whole {
                entry: entry(
                    "a",
                    EntryKind::Symlink {
                        target: b"x".to_vec(),
                    },
                ),
                id: id(b"x"),
                bytes: Bytes::from_static(b"x"),
            }],
        ),
        (
            "chunk.content",
            "make of a file with content",
            vec![Operation::Make(file("a", 1))],
        ),
        (
            "content.wrong-state",
            "content without a file",
            vec![data(b"1234")],
        ),
        (
            "content.wrong-state",
            "end without a file",
            vec![Operation::FileEnd],
        ),
        (
            "content.wrong-state",
            "file within a file",
            vec![begin("a", 4, How::Replace), whole("b", b"x")],
        ),
        (
            "content.wrong-state",
            "done within a file",
            vec![begin("a", 4, How::Replace)],
        ),
        (
            "content.bad-message",
            "offset beyond everything",
            vec![begin("a", 8, How::Replace), copy("b", u64::MAX - 2, 8)],
        ),
        (
            "content.bad-message",
            "copy of nothing",
            vec![begin("a", 8, How::Replace), copy("b", 0, 0)],
        ),
        (
            "content.bad-message",
            "huge copy",
            vec![begin("a", 8, How::Replace), copy("b", 0, u32::MAX)],
        ),
        (
            "content.bad-message",
            "patch that reaches too far",
            vec![
                begin("a", 8, How::Replace),
                Operation::Patch {
                    path: b"b".to_vec(),
                    offset: 0,
                    length: 4,
                    id: id(b"x"),
                    parts: vec![Part::Base { offset: 2, length: 3 }],
                },
            ],
        ),
        (
            "content.bad-message",
            "patch of nothing",
            vec![
                begin("a", 8, How::Replace),
                Operation::Patch {
                    path: b"b".to_vec(),
                    offset: 0,
                    length: 4,
                    id: id(b"x"),
                    parts: vec![],
                },
            ],
        ),
        (
            "content.bad-message",
            "huge size",
            vec![begin("a", u64::MAX, How::Replace)],
        ),
        (
            "content.bad-message",
            "mode",
            vec![Operation::Make(Entry {
                mode: 0o17777,
                ..entry("a", EntryKind::Directory)
            })],
        ),
        (
            "content.bad-message",
            "owner",
            vec![Operation::Make(Entry {
                uid: u32::MAX,
                ..entry("a", EntryKind::Directory)
            })],
        ),
        (
            "content.bad-message",
            "time",
            vec![Operation::Make(Entry {
                mtime: Timestamp {
                    seconds: 0,
                    nanos: 1_000_000_000,
                },
                ..entry("a", EntryKind::Directory)
            })],
        ),
        ("content.bad-message", "link without text", vec![link("a", "")]),
        (
            "content.bad-message",
            "root that is a file",
            vec![whole("", b"x")],
        ),
        (
            "content.bad-message",
            "attributes unsorted",
            vec![Operation::Make(Entry {
                xattrs: vec![(b"user.b".to_vec(), vec![]), (b"user.a".to_vec(), vec![])],
                ..entry("a", EntryKind::Directory)
            })],
        ),
    ];
    for (wanted, name, list) in cases {
        refused(wanted, name, &[], list);
    }
    let seed: &[(&str, &[u8])] = &[("base", b"12345678"), ("mine", b"abcdefgh")];
    let list = vec![begin("mine", 8, How::InPlace), copy("base", 0, 8)];
    refused("chunk.content", "in place from elsewhere", seed, list);
    let list = vec![begin("mine", 8, How::Replace), Operation::Keep { length: 4 }];
    refused("chunk.content", "keep of half a chunk", seed, list);
}

#[test]
fn states_versions_and_ends() {
    type Case = (&'static str, &'static str, Box<dyn FnOnce(&mut Peer) + Send>);
    let ends: Vec<Case> = vec![
        (
            "content.wrong-state",
            "applied",
            Box::new(|peer| peer.say(&Message::Again { paths: vec![] })),
        ),
        (
            "content.wrong-state",
            "second base",
            Box::new(|peer| peer.say(&Message::Base(Base::Nothing))),
        ),
        (
            "content.wrong-state",
            "blocks",
            Box::new(|peer| {
                peer.say(&Message::Blocks(tranship_content::message::Blocks {
                    hashes: vec![],
                }))
            }),
        ),
        (
            "manifest.root",
            "nothing at all",
            Box::new(|peer| peer.say(&Message::Done)),
        ),
        (
            "test.gave-up",
            "failed",
            Box::new(|peer| {
                peer.say(&Message::Failed(Box::new(tranship_core::fault::Fault::new(
                    "test.gave-up",
                    tranship_core::fault::FaultKind::Bug,
                    "no",
                ))));
            }),
        ),
        (
            "content.link-lost",
            "hangs up",
            Box::new(|peer| {
                let _ = peer.stream.shutdown(std::net::Shutdown::Both);
            }),
        ),
        (
            "content.tree-differs",
            "another tree",
            Box::new(|peer| {
                peer.operations(&[root(), whole("a", b"x")]);
                peer.say(&Message::Done);
                let Message::Again { .. } = peer.hear() else {
                    panic!()
                };
                let mut totals = Totals::of(&tree_id(&[entry("", EntryKind::Directory)]));
                totals.tree = no_tree();
                peer.say(&Message::End(totals));
            }),
        ),
    ];
    for (wanted, name, source) in ends {
        let (found, _) = code(&[], source);
        let found = if found == "content.peer" {
            "test.gave-up".to_owned()
        } else {
            found
        };
        assert_eq!(found, wanted, "{name}");
    }
    let all = tempfile::tempdir().unwrap();
    fs::create_dir(all.path().join("root")).unwrap();
    let (result, told) = with_sink(&all.path().join("root"), &all.path().join("work"), |peer| {
        peer.hear();
        peer.say(&Message::Hello {
            oldest: 2,
            newest: 9,
            wants: Wants::default(),
        });
        peer.hear()
    });
    assert_eq!(result.unwrap_err().code(), "content.version");
    assert!(matches!(told, Message::Failed(fault) if fault.code == "content.version"));
}

fn frame(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = (body.len() as u32 + 2).to_le_bytes().to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(body);
    frame
}

#[test]
fn frames_that_lie() {
    let packed = |declared: u32, plain: &[u8]| {
        let mut body = declared.to_le_bytes().to_vec();
        body.extend(zstd::bulk::compress(plain, 1).unwrap());
        frame(DELTA, 1, &body)
    };
    let bomb = vec![0; MAX_FRAME + 1];
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("content.bad-frame", "length 0", vec![0, 0, 0, 0, 6, 0]),
        ("content.bad-frame", "length 1", vec![1, 0, 0, 0, 6, 0]),
        (
            "content.bad-frame",
            "length of everything",
            vec![255, 255, 255, 255, 6, 0],
        ),
        ("content.bad-frame", "unknown flags", frame(DELTA, 2, b"")),
        ("content.bad-frame", "declares less", packed(10, &[1; 11])),
        ("content.bad-frame", "declares more", packed(12, &[1; 11])),
        (
            "content.bad-frame",
            "declares too much",
            packed(MAX_FRAME as u32 + 1, &bomb),
        ),
        ("content.bad-frame", "bomb", packed(MAX_FRAME as u32, &bomb)),
        (
            "content.bad-frame",
            "no zstd",
            frame(DELTA, 1, b"\x05\0\0\0hello"),
        ),
        ("content.bad-frame", "compressed nothing", frame(DELTA, 1, b"")),
        ("content.bad-message", "unknown kind", frame(77, 0, b"")),
        ("content.bad-message", "unknown operation", frame(DELTA, 0, &[99])),
        ("content.bad-message", "trailing bytes", frame(9, 0, b"x")),
        (
            "content.bad-message",
            "long number",
            frame(DELTA, 0, &[1, 0x80, 0]),
        ),
        ("content.bad-message", "cut", frame(DELTA, 0, &[1, 5, b'a'])),
    ];
    for (wanted, name, bytes) in cases {
        let (found, _) = code(&[], |peer| {
            let _ = peer.stream.write_all(&bytes);
            let _ = peer.stream.shutdown(std::net::Shutdown::Write);
        });
        assert_eq!(found, wanted, "{name}");
    }
    let (found, _) = code(&[], |peer| {
        let _ = peer.stream.write_all(&frame(DELTA, 0, &[1; 100])[..50]);
        let _ = peer.stream.shutdown(std::net::Shutdown::Write);
    });
    assert_eq!(found, "content.link-lost");
}
