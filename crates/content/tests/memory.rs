//! Memory does not grow with the number of entries. A process of its own, since it looks at the most memory that it ever had.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::fs::{self, File};

use tranship_content::entry::{ChunkId, Entry, EntryKind, Extent, Timestamp};
use tranship_content::tree::{TreeReader, TreeWriter, check};

/// Most memory that reading and writing a manifest may take, in KiB.
const BOUND: u64 = 64 << 10;

fn high_water() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn entry(path: String, kind: EntryKind) -> Entry {
    Entry {
        path: path.into_bytes(),
        kind,
        mode: 0o644,
        uid: 1,
        gid: 2,
        mtime: Timestamp {
            seconds: 1_700_000_000,
            nanos: 5,
        },
        xattrs: Vec::new(),
    }
}

#[test]
fn five_million_entries_take_no_more_memory_than_a_few() {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = place.path().join("tree");
    let mut writer = TreeWriter::new(File::create(&path).unwrap());
    writer.push(&entry(String::new(), EntryKind::Directory)).unwrap();
    for directory in 0..5000 {
        let name = format!("directory-{directory:04}");
        writer.push(&entry(name.clone(), EntryKind::Directory)).unwrap();
        for file in 0..999 {
            let kind = EntryKind::File {
                size: 4096,
                extents: vec![Extent::Chunk {
                    length: 4096,
                    id: ChunkId([file as u8; 32]),
                }],
            };
            writer
                .push(&entry(format!("{name}/file-{file:03}"), kind))
                .unwrap();
        }
    }
    let (written, _) = writer.finish().unwrap();
    assert_eq!(written.entries, 5_000_001);
    assert_eq!(
        check(File::open(&path).unwrap(), Some(written.id)).unwrap(),
        written
    );
    let compared = tranship_content::verify::compare::<_, _, tranship_content::tree::TreeError, _>(
        TreeReader::new(File::open(&path).unwrap()),
        TreeReader::new(File::open(&path).unwrap()),
        |_, _| Ok(()),
    );
    assert_eq!(compared.unwrap(), 0);
    assert!(high_water() < BOUND, "{} KiB", high_water());
}
