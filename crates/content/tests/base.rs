//! Operations that refer to what the sink holds already.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "a test says what it skips")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use bytes::Bytes;
use support::{Peer, differences, id, read_tree, tree_id, with_sink};
use tempfile::TempDir;
use tranship_content::entry::{Entry, EntryKind, Extent};
use tranship_content::message::{Ask, AskRange, Message, Operation, Part, Totals, Wants, Write as How};
use tranship_content::sink::SinkError;
use tranship_core::fault::Explain as _;
use tranship_core::storage::RoundReport;

struct Sides {
    _all: TempDir,
    from: PathBuf,
    to: PathBuf,
    work: PathBuf,
}

fn sides() -> Sides {
    let all = tempfile::tempdir_in("/var/tmp").unwrap();
    let from = all.path().join("from");
    let to = all.path().join("to/root");
    let work = all.path().join("work");
    fs::create_dir_all(&from).unwrap();
    fs::create_dir_all(&to).unwrap();
    Sides {
        _all: all,
        from,
        to,
        work,
    }
}

fn random(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed * 2 + 1;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}

/// Sends these operations and what the tree is said to be; gives what the sink asked for again, and the last message.
fn exchange(
    sides: &Sides,
    operations: &[Operation],
    tree: &[Entry],
    again: impl FnOnce(&mut Peer, &[Vec<u8>]) + Send,
) -> (Result<RoundReport, SinkError>, Vec<Vec<u8>>) {
    with_sink(&sides.to, &sides.work, |peer| {
        peer.open(Wants {
            frozen: true,
            durable: true,
        });
        peer.operations(operations);
        peer.say(&Message::Done);
        let mut missing = Vec::new();
        if let Message::Again { paths } = peer.hear() {
            if !paths.is_empty() {
                again(peer, &paths);
                peer.say(&Message::Done);
                peer.hear();
            }
            missing = paths;
            peer.say(&Message::End(Totals::of(&tree_id(tree))));
        }
        let _ = peer.frames.message();
        missing
    })
}

fn nothing(_: &mut Peer, paths: &[Vec<u8>]) {
    panic!("asked again: {paths:?}");
}

/// The entry of a tree at a path, with these extents.
fn with_extents(tree: &mut [Entry], path: &str, extents: Vec<Extent>) -> Entry {
    let entry = tree
        .iter_mut()
        .find(|entry| entry.path == path.as_bytes())
        .unwrap();
    let EntryKind::File { extents: old, .. } = &mut entry.kind else {
        panic!("{path} is no file");
    };
    *old = extents;
    entry.clone()
}

fn chunk(bytes: &[u8]) -> Extent {
    Extent::Chunk {
        length: bytes.len() as u32,
        id: id(bytes),
    }
}

fn file(entry: &Entry, write: How) -> Operation {
    Operation::File {
        entry: entry.clone(),
        write,
    }
}

fn data(bytes: &[u8]) -> Operation {
    Operation::Data {
        id: id(bytes),
        bytes: Bytes::copy_from_slice(bytes),
    }
}

fn copy(path: &str, offset: usize, bytes: &[u8]) -> Operation {
    Operation::Copy {
        path: path.into(),
        offset: offset as u64,
        length: bytes.len() as u32,
        id: id(bytes),
    }
}

fn root_time(sides: &Sides, tree: &[Entry]) -> Operation {
    let _ = sides;
    Operation::Attributes(tree[0].clone())
}

#[test]
fn moved_content_is_copied_from_what_was_removed_or_replaced() {
    let sides = sides();
    let (x, y) = (random(1, 50_000), random(2, 3_000));
    for side in [&sides.from, &sides.to] {
        fs::create_dir_all(side.join("old/deep")).unwrap();
        fs::write(side.join("old/deep/x"), &x).unwrap();
        fs::write(side.join("f"), &y).unwrap();
    }
    // The directory moves to the end, and two files change places with it.
    fs::rename(sides.from.join("old"), sides.from.join("z-new")).unwrap();
    fs::write(sides.from.join("f"), &x).unwrap();
    fs::write(sides.from.join("g"), &y).unwrap();
    let mut tree = read_tree(&sides.from);
    let f = with_extents(&mut tree, "f", vec![chunk(&x)]);
    let g = with_extents(&mut tree, "g", vec![chunk(&y)]);
    let moved = with_extents(&mut tree, "z-new/deep/x", vec![chunk(&x)]);
    let at = |path: &str| {
        tree.iter()
            .find(|entry| entry.path == path.as_bytes())
            .unwrap()
            .clone()
    };
    let operations = [
        root_time(&sides, &tree),
        file(&f, How::Replace),
        copy("old/deep/x", 0, &x),
        Operation::FileEnd,
        file(&g, How::Replace),
        copy("f", 0, &y),
        Operation::FileEnd,
        Operation::Remove {
            path: b"old".to_vec(),
        },
        Operation::Make(at("z-new")),
        Operation::Make(at("z-new/deep")),
        file(&moved, How::Replace),
        copy("old/deep/x", 0, &x),
        Operation::FileEnd,
    ];
    let (report, _) = exchange(&sides, &operations, &tree, nothing);
    assert_eq!(report.unwrap().literal_bytes, 0);
    assert_eq!(differences(&sides.from, &sides.to), "");
    assert_eq!(fs::read_dir(sides.to.parent().unwrap()).unwrap().count(), 1);
}

/// A base of three chunks, and the file at both sides.
fn three(sides: &Sides) -> [Vec<u8>; 3] {
    let parts = [random(3, 70_000), random(4, 80_000), random(5, 60_000)];
    for side in [&sides.from, &sides.to] {
        fs::write(side.join("f"), parts.concat()).unwrap();
    }
    parts
}

/// Brings the sink to hold `f` in exactly these chunks, so that later rounds may keep them.
fn first_round(sides: &Sides, parts: &[Vec<u8>]) {
    let mut tree = read_tree(&sides.from);
    let extents = parts.iter().map(|part| chunk(part)).collect();
    let f = with_extents(&mut tree, "f", extents);
    let mut operations = vec![root_time(sides, &tree), file(&f, How::Replace)];
    operations.extend(parts.iter().map(|part| data(part)));
    operations.push(Operation::FileEnd);
    exchange(sides, &operations, &tree, nothing).0.unwrap();
    assert_eq!(differences(&sides.from, &sides.to), "");
}

#[test]
fn large_files_are_patched_in_place() {
    for (write, links) in [(How::InPlace, false), (How::InPlace, true), (How::Replace, false)] {
        let sides = sides();
        let [a, b, c] = three(&sides);
        first_round(&sides, &[a.clone(), b.clone(), c.clone()]);
        let before = fs::metadata(sides.to.join("f")).unwrap().ino();
        if links {
            fs::hard_link(sides.to.join("f"), sides.to.parent().unwrap().join("outside")).unwrap();
        }
        let mut patched = b.clone();
        patched[1000..1010].copy_from_slice(b"0123456789");
        let tail = random(9, 1234);
        fs::write(sides.from.join("f"), [&a[..], &patched, &tail].concat()).unwrap();
        let mut tree = read_tree(&sides.from);
        let f = with_extents(&mut tree, "f", vec![chunk(&a), chunk(&patched), chunk(&tail)]);
        let operations = [
            root_time(&sides, &tree),
            file(&f, write),
            // A further name makes the sink look again, and it may cut otherwise.
            if links {
                copy("f", 0, &a)
            } else {
                Operation::Keep {
                    length: a.len() as u64,
                }
            },
            Operation::Patch {
                path: b"f".to_vec(),
                offset: a.len() as u64,
                length: b.len() as u32,
                id: id(&patched),
                parts: vec![
                    Part::Base {
                        offset: 0,
                        length: 1000,
                    },
                    Part::Literal(Bytes::from_static(b"0123456789")),
                    Part::Base {
                        offset: 1010,
                        length: b.len() as u32 - 1010,
                    },
                ],
            },
            data(&tail),
            Operation::FileEnd,
        ];
        let (report, _) = exchange(&sides, &operations, &tree, nothing);
        assert_eq!(report.unwrap().literal_bytes, 10 + 1234);
        assert_eq!(differences(&sides.from, &sides.to), "");
        let after = fs::metadata(sides.to.join("f")).unwrap().ino();
        assert_eq!(before == after, write == How::InPlace && !links);
        if links {
            let outside = fs::read(sides.to.parent().unwrap().join("outside")).unwrap();
            assert!(
                outside == [&a[..], &b, &c].concat(),
                "a name outside the root saw the change"
            );
        }
    }
}

#[test]
fn holes_stay_holes() {
    let sides = sides();
    let [a, b, c] = three(&sides);
    first_round(&sides, &[a.clone(), b.clone(), c.clone()]);
    let sparse = fs::File::create(sides.from.join("f")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    use std::os::unix::fs::FileExt as _;
    sparse.write_all_at(&a, 0).unwrap();
    sparse.write_all_at(&c, 1 << 30).unwrap();
    drop(sparse);
    let hole = (1_u64 << 30) - a.len() as u64;
    let rest = (1_u64 << 40) - (1 << 30) - c.len() as u64;
    let entry = fs::metadata(sides.from.join("f")).unwrap();
    for write in [How::InPlace, How::Replace] {
        let mut tree = vec![];
        // Reading a tebibyte of zeros would take long.
        fs::rename(sides.from.join("f"), sides.from.parent().unwrap().join("aside")).unwrap();
        fs::write(sides.from.join("f"), b"").unwrap();
        tree.extend(read_tree(&sides.from));
        fs::rename(sides.from.parent().unwrap().join("aside"), sides.from.join("f")).unwrap();
        let f = tree.last_mut().unwrap();
        f.kind = EntryKind::File {
            size: 1 << 40,
            extents: vec![
                chunk(&a),
                Extent::Hole { length: hole },
                chunk(&c),
                Extent::Hole { length: rest },
            ],
        };
        f.mtime.seconds = entry.mtime();
        f.mtime.nanos = entry.mtime_nsec() as u32;
        let f = f.clone();
        let operations = [
            root_time(&sides, &tree),
            file(&f, write),
            data(&a),
            Operation::Hole { length: hole },
            data(&c),
            Operation::Hole { length: rest },
            Operation::FileEnd,
        ];
        exchange(&sides, &operations, &tree, nothing).0.unwrap();
        let found = fs::metadata(sides.to.join("f")).unwrap();
        assert_eq!(found.size(), 1 << 40);
        assert!(
            found.blocks() * 512 < 200_000,
            "{} bytes are taken",
            found.blocks() * 512
        );
        let mut read = vec![0; c.len()];
        let file = fs::File::open(sides.to.join("f")).unwrap();
        file.read_exact_at(&mut read, 1 << 30).unwrap();
        assert_eq!(read, c);
        file.read_exact_at(&mut read[..100], a.len() as u64).unwrap();
        assert_eq!(read[..100], [0; 100]);
        // The next round begins with the file as it was.
        fs::write(sides.to.join("f"), [&a[..], &b, &c].concat()).unwrap();
    }
}

#[test]
fn what_the_base_does_not_have_is_asked_for_again() {
    let sides = sides();
    let (x, y) = (random(6, 40_000), random(7, 40_000));
    for side in [&sides.from, &sides.to] {
        fs::write(side.join("f"), &x).unwrap();
        fs::write(side.join("p"), &x).unwrap();
    }
    fs::write(sides.from.join("f"), &y).unwrap();
    fs::hard_link(sides.from.join("f"), sides.from.join("g")).unwrap();
    fs::write(sides.from.join("new"), &y).unwrap();
    let mut tree = read_tree(&sides.from);
    let f = with_extents(&mut tree, "f", vec![chunk(&y)]);
    let new = with_extents(&mut tree, "new", vec![chunk(&y)]);
    let p = with_extents(&mut tree, "p", vec![chunk(&x)]);
    let g = tree.iter().find(|entry| entry.path == b"g").unwrap().clone();
    let operations = [
        root_time(&sides, &tree),
        file(&f, How::Replace),
        copy("f", 0, &y),
        Operation::FileEnd,
        Operation::Make(g),
        file(&new, How::Replace),
        copy("nowhere", 0, &y),
        Operation::FileEnd,
        file(&p, How::InPlace),
        Operation::Patch {
            path: b"p".to_vec(),
            offset: 0,
            length: 100,
            id: id(&x),
            parts: vec![Part::Base {
                offset: 0,
                length: 100,
            }],
        },
        data(&x[100..]),
        Operation::FileEnd,
    ];
    // The patch has the wrong length, so its extents are not those of the tree: it is sent rightly the second time.
    let mut operations = operations.to_vec();
    operations.splice(
        operations.len() - 4..,
        [
            file(&p, How::InPlace),
            copy("p", 1, &x[..x.len() - 1]),
            data(&x[..1]),
            Operation::FileEnd,
        ],
    );
    let (report, missing) = exchange(&sides, &operations, &tree, |peer, _| {
        let mut list = Vec::new();
        for (entry, bytes) in [(&f, &y), (&new, &y), (&p, &x)] {
            list.extend([file(entry, How::Replace), data(bytes), Operation::FileEnd]);
        }
        peer.operations(&list);
    });
    assert_eq!(missing, [b"f".to_vec(), b"new".to_vec(), b"p".to_vec()]);
    report.unwrap();
    assert_eq!(differences(&sides.from, &sides.to), "");
}

#[test]
fn hashes_of_blocks_are_those_of_the_beginning() {
    let sides = sides();
    let bytes = random(8, 10_000);
    fs::write(sides.to.join("f"), &bytes).unwrap();
    let (result, ()) = with_sink(&sides.to, &sides.work, |peer| {
        peer.open(Wants::default());
        peer.operations(&[Operation::Remove { path: b"f".to_vec() }]);
        let range = |path: &str, offset, length| AskRange {
            path: path.into(),
            offset,
            length,
        };
        for (ranges, wanted) in [
            (
                vec![range("f", 0, 1100), range("f", 5000, 600)],
                vec![
                    &bytes[..512],
                    &bytes[512..1024],
                    &bytes[1024..1100],
                    &bytes[5000..5512],
                    &bytes[5512..5600],
                ],
            ),
            (vec![range("f", 9000, 1001)], vec![]),
            (vec![range("nowhere", 0, 1)], vec![]),
        ] {
            peer.say(&Message::Ask(Ask { block: 512, ranges }));
            let Message::Blocks(blocks) = peer.hear() else {
                panic!("no answer");
            };
            let wanted: Vec<u64> = wanted.into_iter().map(xxhash_rust::xxh3::xxh3_64).collect();
            assert_eq!(blocks.hashes, wanted);
        }
    });
    assert_eq!(result.unwrap_err().code(), "content.link-lost");
}

#[test]
fn immutable_files_are_named() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: root");
        return;
    }
    let sides = sides();
    fs::write(sides.to.join("f"), b"old").unwrap();
    fs::write(sides.from.join("f"), b"new").unwrap();
    let flag = |flag: &str| {
        std::process::Command::new("chattr")
            .arg(flag)
            .arg(sides.to.join("f"))
            .status()
            .is_ok_and(|status| status.success())
    };
    for set in ["+i", "+a"] {
        if !flag(set) {
            println!("SKIPPED: chattr");
            return;
        }
        let mut tree = read_tree(&sides.from);
        let f = with_extents(&mut tree, "f", vec![chunk(b"new")]);
        let whole = Operation::Whole {
            entry: f.clone(),
            id: id(b"new"),
            bytes: Bytes::from_static(b"new"),
        };
        let cases = [
            vec![whole],
            vec![file(&f, How::InPlace)],
            vec![Operation::Remove { path: b"f".to_vec() }],
            vec![Operation::Attributes(f.clone())],
        ];
        for (number, case) in cases.into_iter().enumerate() {
            let (result, _) = exchange(&sides, &case, &tree, nothing);
            let error = result.unwrap_err();
            assert_eq!(error.code(), "content.immutable", "{set} {number}: {error}");
        }
        assert!(flag(&set.replace('+', "-")));
    }
}
