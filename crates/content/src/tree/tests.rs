use super::*;
use crate::entry::{ChunkId, Entry, EntryKind, Extent, Timestamp};
use std::io::Cursor;
use tranship_core::fault::Explain as _;

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        mode: if matches!(kind, EntryKind::Symlink { .. }) {
            0
        } else {
            0o644
        },
        kind,
        uid: 1000,
        gid: 100,
        mtime: Timestamp {
            seconds: 1_700_000_000,
            nanos: 123_456_789,
        },
        xattrs: Vec::new(),
    }
}

fn chunk(length: u32, fill: u8) -> Extent {
    Extent::Chunk {
        length,
        id: ChunkId([fill; 32]),
    }
}

/// One of everything.
fn sample() -> Vec<Entry> {
    let mut root = entry("", EntryKind::Directory);
    root.mode = 0o755;
    let mut before_1970 = entry("etc", EntryKind::Directory);
    before_1970.mode = 0o1777;
    before_1970.mtime = Timestamp {
        seconds: -2,
        nanos: 5,
    };
    let mut file = entry(
        "etc/data",
        EntryKind::File {
            size: 4096 + 100 + 8192,
            extents: vec![chunk(4096, 1), Extent::Hole { length: 8192 }, chunk(100, 2)],
        },
    );
    file.xattrs = vec![
        (b"security.capability".to_vec(), vec![0, 1, 2]),
        (b"user.note".to_vec(), b"hello".to_vec()),
    ];
    let mut further = entry(
        "etc/further",
        EntryKind::Hardlink {
            target: b"etc/data".to_vec(),
        },
    );
    further.xattrs = file.xattrs.clone();
    vec![
        root,
        before_1970,
        file,
        further,
        entry(
            "etc/link",
            EntryKind::Symlink {
                target: b"../nowhere".to_vec(),
            },
        ),
        entry("etc/null", EntryKind::CharDevice { major: 1, minor: 3 }),
        entry(
            "etc/sda",
            EntryKind::BlockDevice {
                major: 8,
                minor: 1_048_575,
            },
        ),
        entry("pipe", EntryKind::Fifo),
        entry("socket", EntryKind::Socket),
        entry(
            "zero",
            EntryKind::File {
                size: 0,
                extents: Vec::new(),
            },
        ),
    ]
}

fn written(entries: &[Entry]) -> (TreeSummary, Vec<u8>) {
    let mut writer = TreeWriter::new(Vec::new());
    for entry in entries {
        writer.push(entry).unwrap();
    }
    writer.finish().unwrap()
}

/// What a writer would write that does not look at what it writes.
fn forged(entries: &[Entry]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    let mut previous: &[u8] = b"";
    let (mut bytes, mut chunks) = (0_u64, 0_u64);
    for entry in entries {
        let shared = entry
            .path
            .iter()
            .zip(previous)
            .take_while(|(a, b)| a == b)
            .count();
        let mut body = vec![write::kind_number(&entry.kind)];
        write::put(&mut body, shared as u64);
        write::put(&mut body, (entry.path.len() - shared) as u64);
        body.extend_from_slice(&entry.path[shared..]);
        encode_attributes(entry, &mut body);
        match &entry.kind {
            EntryKind::File { size, extents } => {
                write::put(&mut body, *size);
                write::put(&mut body, extents.len() as u64);
                bytes = bytes.wrapping_add(*size);
                for extent in extents {
                    match extent {
                        Extent::Chunk { length, id } => {
                            write::put(&mut body, u64::from(*length) << 1);
                            body.extend_from_slice(&id.0);
                            chunks += 1;
                        }
                        Extent::Hole { length } => write::put(&mut body, length << 1 | 1),
                    }
                }
            }
            EntryKind::Hardlink { target } | EntryKind::Symlink { target } => {
                write::put(&mut body, target.len() as u64);
                body.extend_from_slice(target);
            }
            EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
                write::put(&mut body, u64::from(*major));
                write::put(&mut body, u64::from(*minor));
            }
            _ => {}
        }
        write::put(&mut out, body.len() as u64);
        out.extend_from_slice(&body);
        previous = &entry.path;
    }
    out.push(0);
    for count in [entries.len() as u64, bytes, chunks] {
        out.extend_from_slice(&count.to_le_bytes());
    }
    out
}

fn refusal(bytes: &[u8]) -> &'static str {
    check(Cursor::new(bytes), None)
        .map(|_| "accepted")
        .unwrap_or_else(|error| error.code())
}

#[test]
fn what_was_written_is_read() {
    let entries = sample();
    let (summary, bytes) = written(&entries);
    assert_eq!(forged(&entries), bytes, "the forger writes as the writer does");
    let mut reader = TreeReader::new(Cursor::new(&bytes));
    let mut back = Vec::new();
    while let Some(entry) = reader.next().unwrap() {
        back.push(entry);
    }
    assert_eq!(back, entries);
    assert_eq!(reader.summary(), Some(summary));
    assert_eq!(summary.entries, 10);
    assert_eq!(summary.bytes, 4096 + 8192 + 100);
    assert_eq!(summary.chunks, 2);
    assert_eq!(summary.length, bytes.len() as u64);
    assert_eq!(summary.id.0, *blake3::hash(&bytes).as_bytes());
    assert_eq!(check(Cursor::new(&bytes), Some(summary.id)).unwrap(), summary);
}

#[test]
fn the_documented_bytes_are_the_bytes() {
    let document = include_str!("../../../../docs/tree-format.md");
    let block = document
        .split("<!-- test vector -->")
        .nth(1)
        .and_then(|rest| rest.split("```").nth(1))
        .expect("the document has the vector");
    let mut bytes = Vec::new();
    for line in block.lines().skip(1) {
        let hex: String = line
            .split('|')
            .next()
            .unwrap()
            .chars()
            .filter(char::is_ascii_hexdigit)
            .collect();
        for pair in hex.as_bytes().chunks(2) {
            bytes.push(u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap());
        }
    }
    let (summary, wanted) = written(&sample());
    assert_eq!(
        tranship_core::ids::hex(&bytes),
        tranship_core::ids::hex(&wanted),
        "docs/tree-format.md"
    );
    assert!(
        document.contains(&summary.id.to_string()),
        "docs/tree-format.md should say {}",
        summary.id
    );
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let mut entries = sample();
    // Fill up to about 4 KiB.
    for at in 0..62 {
        entries.push(entry(
            &format!("zero{at:02}"),
            EntryKind::File {
                size: 77,
                extents: vec![chunk(77, at as u8)],
            },
        ));
    }
    let (summary, bytes) = written(&entries);
    assert!((3800..5000).contains(&bytes.len()), "{}", bytes.len());
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << bit;
            let error = check(Cursor::new(&bad), Some(summary.id)).expect_err("a flipped bit");
            assert!(error.code().starts_with("manifest."), "{error}");
        }
    }
    for end in 0..bytes.len() {
        assert_eq!(refusal(&bytes[..end]), "manifest.truncated", "cut at {end}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert_eq!(refusal(&longer), "manifest.trailing");
}

#[test]
fn what_no_writer_writes_is_refused() {
    let root = || entry("", EntryKind::Directory);
    let file = |path: &str, size, extents| entry(path, EntryKind::File { size, extents });
    let fifo = |path: &str| entry(path, EntryKind::Fifo);
    let with = |more: Vec<Entry>| {
        let mut entries = vec![root()];
        entries.extend(more);
        refusal(&forged(&entries))
    };
    let hard = |path: &str, target: &str| {
        entry(
            path,
            EntryKind::Hardlink {
                target: target.as_bytes().to_vec(),
            },
        )
    };
    assert_eq!(with(vec![fifo("a")]), "accepted");
    assert_eq!(refusal(b""), "manifest.truncated");
    assert_eq!(refusal(b"tarball"), "manifest.magic");
    assert_eq!(refusal(b"tshptree\x02\x00"), "manifest.version");
    assert_eq!(refusal(&forged(&[])), "manifest.root");
    assert_eq!(refusal(&forged(&[fifo("")])), "manifest.root");
    assert_eq!(refusal(&forged(&[fifo("a")])), "manifest.root");
    assert_eq!(with(vec![fifo("b"), fifo("a")]), "manifest.unsorted");
    assert_eq!(with(vec![fifo("a"), fifo("a")]), "manifest.duplicate");
    assert_eq!(with(vec![root()]), "manifest.duplicate");
    assert_eq!(with(vec![fifo("a"), fifo("a/b")]), "manifest.orphan");
    assert_eq!(with(vec![fifo("a/b")]), "manifest.orphan");
    for path in [
        "/a", "a/", "a//b", ".", "..", "a/./b", "../a", "a/..", "a\0b", "/", "//",
    ] {
        let code = with(vec![entry("a", EntryKind::Directory), fifo(path)]);
        assert!(
            ["manifest.path", "manifest.orphan", "manifest.unsorted"].contains(&code),
            "{path:?}: {code}"
        );
        assert_ne!(with(vec![fifo(path)]), "accepted", "{path:?}");
    }
    assert_eq!(with(vec![fifo(&"x".repeat(255))]), "accepted");
    assert_eq!(with(vec![fifo(&"x".repeat(256))]), "manifest.path");

    let nested = |depth: usize| {
        let mut entries = vec![root()];
        let mut path = String::new();
        for at in 0..depth {
            if at > 0 {
                path.push('/');
            }
            path.push('d');
            entries.push(entry(&path, EntryKind::Directory));
        }
        refusal(&forged(&entries))
    };
    assert_eq!(nested(1024), "accepted");
    assert_eq!(nested(1025), "manifest.depth");

    let hole = |length| Extent::Hole { length };
    assert_eq!(with(vec![file("a", 5, vec![chunk(5, 1)])]), "accepted");
    assert_eq!(with(vec![file("a", 5, vec![chunk(4, 1)])]), "manifest.extents");
    assert_eq!(with(vec![file("a", 5, vec![chunk(6, 1)])]), "manifest.extents");
    assert_eq!(with(vec![file("a", 5, vec![])]), "manifest.extents");
    assert_eq!(with(vec![file("a", 0, vec![chunk(0, 1)])]), "manifest.extents");
    assert_eq!(with(vec![file("a", 0, vec![hole(0)])]), "manifest.extents");
    assert_eq!(
        with(vec![file("a", 2, vec![hole(1), hole(1)])]),
        "manifest.extents"
    );
    assert_eq!(
        with(vec![file("a", MAX_CHUNK.into(), vec![chunk(MAX_CHUNK, 1)])]),
        "accepted"
    );
    assert_eq!(
        with(vec![file(
            "a",
            u64::from(MAX_CHUNK) + 1,
            vec![chunk(MAX_CHUNK + 1, 1)]
        )]),
        "manifest.extents"
    );
    let most = i64::MAX as u64;
    assert_eq!(with(vec![file("a", most, vec![hole(most)])]), "accepted");
    assert_eq!(
        with(vec![file("a", most + 1, vec![hole(most), chunk(1, 1)])]),
        "manifest.extents"
    );
    assert_eq!(
        with(vec![
            file("a", most, vec![hole(most)]),
            file("b", most, vec![hole(most)]),
            file("c", most, vec![hole(most)])
        ]),
        "manifest.overflow"
    );

    assert_eq!(with(vec![fifo("a"), hard("b", "a")]), "accepted");
    assert_eq!(with(vec![hard("b", "a")]), "manifest.hardlink");
    assert_eq!(with(vec![hard("a", "b"), fifo("b")]), "manifest.hardlink");
    assert_eq!(with(vec![hard("a", "a")]), "manifest.hardlink");
    assert_eq!(with(vec![hard("a", "")]), "manifest.hardlink");
    assert_eq!(
        with(vec![entry("a", EntryKind::Directory), hard("b", "a")]),
        "manifest.hardlink"
    );
    assert_eq!(
        with(vec![fifo("a"), hard("b", "a"), hard("c", "b")]),
        "manifest.hardlink"
    );
    let mut other = hard("b", "a");
    other.uid += 1;
    assert_eq!(with(vec![fifo("a"), other]), "manifest.hardlink");
    assert_eq!(with(vec![fifo("a"), hard("b", "../a")]), "manifest.path");

    let changed = |change: &dyn Fn(&mut Entry)| {
        let mut bad = fifo("a");
        change(&mut bad);
        with(vec![bad])
    };
    assert_eq!(changed(&|entry| entry.mode = 0o10000), "manifest.entry");
    assert_eq!(changed(&|entry| entry.uid = u32::MAX), "manifest.entry");
    assert_eq!(
        changed(&|entry| entry.mtime.nanos = 1_000_000_000),
        "manifest.entry"
    );
    let named = |names: &[&str]| {
        changed(&|entry| {
            entry.xattrs = names
                .iter()
                .map(|name| (name.as_bytes().to_vec(), Vec::new()))
                .collect();
        })
    };
    assert_eq!(named(&["user.a", "user.b"]), "accepted");
    assert_eq!(named(&["user.b", "user.a"]), "manifest.entry");
    assert_eq!(named(&["user.a", "user.a"]), "manifest.entry");
    assert_eq!(named(&[""]), "manifest.entry");
    assert_eq!(named(&["user.\0"]), "manifest.entry");
    assert_eq!(
        changed(&|entry| entry.xattrs = vec![(b"user.a".to_vec(), vec![0; (64 << 10) + 1])]),
        "manifest.number"
    );
    let link = |target: &[u8]| {
        with(vec![entry(
            "a",
            EntryKind::Symlink {
                target: target.to_vec(),
            },
        )])
    };
    assert_eq!(link(&[b'x'; 4095]), "accepted");
    assert_eq!(link(&[b'x'; 4096]), "manifest.number");
    assert_eq!(link(b""), "manifest.entry");
    assert_eq!(link(b"a\0"), "manifest.entry");

    // Counts, number forms, shared prefixes, records.
    let good = forged(&[root(), fifo("a")]);
    let mut bad = good.clone();
    let count = bad.len() - 24;
    bad[count] += 1;
    assert_eq!(refusal(&bad), "manifest.counts");
    let mut bad = MAGIC.to_vec();
    bad.extend_from_slice(&[0x80, 0x00]);
    assert_eq!(refusal(&bad), "manifest.number");
    let mut bad = MAGIC.to_vec();
    bad.extend_from_slice(&[0xff; 10]);
    assert_eq!(refusal(&bad), "manifest.number");
    let mut bad = MAGIC.to_vec();
    write::put(&mut bad, 1 << 40);
    assert_eq!(refusal(&bad), "manifest.record");
    let mut bad = MAGIC.to_vec();
    write::put(&mut bad, 1 << 28);
    assert_eq!(refusal(&bad), "manifest.truncated");
    let mut bad = MAGIC.to_vec();
    bad.extend_from_slice(&[1, 0]);
    assert_eq!(refusal(&bad), "manifest.record");
}

#[test]
fn a_writer_refuses_what_a_reader_would_refuse() {
    let mut writer = TreeWriter::new(Vec::new());
    let error = writer.push(&entry("a", EntryKind::Fifo)).unwrap_err();
    assert_eq!(error.code(), "manifest.root");
    writer.push(&entry("", EntryKind::Directory)).unwrap();
    writer.push(&entry("b", EntryKind::Fifo)).unwrap();
    let error = writer.push(&entry("a", EntryKind::Fifo)).unwrap_err();
    assert_eq!(error.code(), "manifest.unsorted");
    let error = TreeWriter::new(Vec::new()).finish().unwrap_err();
    assert_eq!(error.code(), "manifest.root");
}

#[test]
fn facts_are_read_as_written_and_damage_is_noticed() {
    let tree = crate::entry::TreeId([7; 32]);
    let facts: Vec<Facts> = (0..10_000_u64)
        .map(|at| Facts {
            dev: 5,
            ino: at * 3,
            ctime: Timestamp {
                seconds: at as i64 - 50,
                nanos: 9,
            },
            nlink: 2,
            read: (at % 7 > 0).then_some(Timestamp {
                seconds: 1,
                nanos: at as u32,
            }),
        })
        .collect();
    let write = |facts: &[Facts]| {
        let mut writer = FactsWriter::new(Vec::new());
        for fact in facts {
            writer.push(fact).unwrap();
        }
        writer.finish(tree).unwrap()
    };
    let read = |bytes: &[u8], count: usize, tree| {
        let mut reader = FactsReader::new(bytes);
        for fact in &facts[..count] {
            if reader.next()? != *fact {
                return Err(TreeError::Facts { reason: "differs" });
            }
        }
        reader.finish(tree)
    };
    let bytes = write(&facts);
    read(&bytes, facts.len(), tree).unwrap();
    assert!(read(&bytes, facts.len(), crate::entry::TreeId([8; 32])).is_err());
    assert!(read(&bytes, facts.len() - 1, tree).is_err());
    assert!(read(&bytes[..bytes.len() - 1], facts.len(), tree).is_err());
    let few = write(&facts[..20]);
    for at in 0..few.len() {
        for bit in 0..8 {
            let mut bad = few.clone();
            bad[at] ^= 1 << bit;
            assert!(read(&bad, 20, tree).is_err(), "byte {at} bit {bit}");
        }
    }
}
