//! What a hostile source may send, and what the sink says. Nothing of it may leave a trace outside the root, or unchecked bytes in it.

mod support;

use std::fs;
use std::io::Write as _;

use bytes::Bytes;
use support::{Peer, id, no_tree, tree_id, with_sink};
use tranship_content::encoding::{Extents, put_bytes, put_entry, put_number};
use tranship_content::entry::{Entry, EntryKind, Timestamp};
use tranship_content::message::{
    Base, DELTA, MAX_FRAME, Message, Operation, Part, Wants, Write as How, operations, put_data_head,
};
use tranship_core::fault::Explain as _;

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        mode: if matches!(kind, EntryKind::Symlink { .. }) {
            0
        } else {
            0o755
        },
        kind,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime: Timestamp {
            seconds: 1_000_000_000,
            nanos: 1,
        },
        xattrs: Vec::new(),
    }
}

fn file(path: &str, size: u64) -> Entry {
    entry(
        path,
        EntryKind::File {
            size,
            extents: Vec::new(),
        },
    )
}

fn root() -> Operation {
    Operation::Make(entry("", EntryKind::Directory))
}

fn directory(path: &str) -> Operation {
    Operation::Make(entry(path, EntryKind::Directory))
}

fn link(path: &str, target: &str) -> Operation {
    Operation::Make(entry(
        path,
        EntryKind::Symlink {
            target: target.into(),
        },
    ))
}

fn whole(path: &str, bytes: &'static [u8]) -> Operation {
    Operation::Whole {
        entry: file(path, bytes.len() as u64),
        id: id(bytes),
        bytes: Bytes::from_static(bytes),
    }
}

fn begin(path: &str, size: u64, write: How) -> Operation {
    Operation::File {
        entry: file(path, size),
        write,
    }
}

fn data(bytes: &'static [u8]) -> Operation {
    Operation::Data {
        id: id(bytes),
        bytes: Bytes::from_static(bytes),
    }
}

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
    let error = result.expect_err("the sink took it");
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
    let ends: Vec<(&str, &str, Box<dyn FnOnce(&mut Peer) + Send>)> = vec![
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
                let mut totals = support::totals(&tree_id(&[entry("", EntryKind::Directory)]));
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

#[test]
fn every_flipped_bit_of_content_is_noticed_before_it_is_written() {
    let content: &'static [u8] = b"some bytes that matter";
    let mut body = Vec::new();
    root().put(&mut body);
    begin("a", content.len() as u64, How::Replace).put(&mut body);
    put_data_head(&mut body, &id(content), content.len());
    let start = body.len();
    body.extend_from_slice(content);
    Operation::FileEnd.put(&mut body);
    for bit in 0..content.len() * 8 {
        let mut flipped = body.clone();
        flipped[start + bit / 8] ^= 1 << (bit % 8);
        let all = tempfile::tempdir().unwrap();
        let to = all.path().join("root");
        fs::create_dir(&to).unwrap();
        let (result, _) = with_sink(&to, &all.path().join("work"), |peer| {
            peer.open(Wants::default());
            peer.say(&Message::Delta(flipped.into()));
            peer.hear()
        });
        assert_eq!(result.unwrap_err().code(), "chunk.corrupt");
        assert_eq!(fs::read(to.join("a")).unwrap_or_default(), b"");
    }
}

#[test]
fn garbage_never_panics() {
    use proptest::prelude::*;
    proptest!(ProptestConfig::with_cases(2000), |(kind in 0_u8..20, body in proptest::collection::vec(any::<u8>(), 0..200))| {
        let _ = Message::decode(kind, Bytes::from(body.clone()));
        for operation in operations(Bytes::from(body)) {
            if operation.is_err() {
                break;
            }
        }
    });
}

#[test]
fn operations_survive_their_encoding() {
    let mut odd = Vec::new();
    put_number(&mut odd, u64::MAX);
    put_bytes(&mut odd, b"x");
    put_entry(&mut odd, &file("a", 0), Extents::With);
    let list = vec![
        root(),
        directory("a"),
        link("a/l", "x"),
        begin("b", 22, How::InPlace),
        data(b"1234"),
        Operation::Hole { length: 3 },
        Operation::Copy {
            path: b"b".to_vec(),
            offset: 1 << 40,
            length: 7,
            id: id(b""),
        },
        Operation::Patch {
            path: b"b".to_vec(),
            offset: 3,
            length: 9,
            id: id(b"y"),
            parts: vec![
                Part::Base { offset: 0, length: 9 },
                Part::Literal(Bytes::from_static(b"zz")),
            ],
        },
        Operation::Keep { length: 1 << 50 },
        Operation::FileEnd,
        whole("c", b"x"),
        Operation::Attributes(Entry {
            xattrs: vec![(b"user.a".to_vec(), b"v".to_vec())],
            ..file("d", 9)
        }),
        Operation::Remove { path: b"e".to_vec() },
    ];
    let mut body = Vec::new();
    for operation in &list {
        operation.put(&mut body);
    }
    let back: Vec<_> = operations(body.into()).map(Result::unwrap).collect();
    assert_eq!(back, list);
}
