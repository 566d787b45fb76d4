//! Entries and operations in few words.

use bytes::Bytes;
use tranship_content::entry::{Entry, EntryKind, Timestamp};
use tranship_content::message::{Operation, Write as How};

use super::id;

pub fn entry(path: &str, kind: EntryKind) -> Entry {
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

pub fn file(path: &str, size: u64) -> Entry {
    entry(
        path,
        EntryKind::File {
            size,
            extents: Vec::new(),
        },
    )
}

pub fn root() -> Operation {
    Operation::Make(entry("", EntryKind::Directory))
}

pub fn directory(path: &str) -> Operation {
    Operation::Make(entry(path, EntryKind::Directory))
}

pub fn link(path: &str, target: &str) -> Operation {
    Operation::Make(entry(
        path,
        EntryKind::Symlink {
            target: target.into(),
        },
    ))
}

pub fn whole(path: &str, bytes: &'static [u8]) -> Operation {
    Operation::Whole {
        entry: file(path, bytes.len() as u64),
        id: id(bytes),
        bytes: Bytes::from_static(bytes),
    }
}

pub fn begin(path: &str, size: u64, write: How) -> Operation {
    Operation::File {
        entry: file(path, size),
        write,
    }
}

pub fn data(bytes: &'static [u8]) -> Operation {
    Operation::Data {
        id: id(bytes),
        bytes: Bytes::from_static(bytes),
    }
}
