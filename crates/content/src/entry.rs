//! Entries of a tree: what a file system says about one path, and the canonical order of paths.

use std::cmp::Ordering;

/// Length of a digest in bytes.
pub const DIGEST_LENGTH: usize = 32;

/// BLAKE3-256 of a chunk's plain bytes, which is the chunk's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub [u8; DIGEST_LENGTH]);

/// BLAKE3-256 of a tree's canonical encoding, which is the tree's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeId(pub [u8; DIGEST_LENGTH]);

macro_rules! shown_as_hex {
    ($name:ident) => {
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&tranship_core::ids::hex(&self.0))
            }
        }
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}
shown_as_hex!(ChunkId);
shown_as_hex!(TreeId);

/// A moment as file systems keep it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// Nanoseconds within the second, below 1,000,000,000.
    pub nanos: u32,
}

/// A stretch of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Extent {
    /// Bytes, named by their hash.
    Chunk {
        /// Number of bytes, never 0.
        length: u32,
        /// Their name.
        id: ChunkId,
    },
    /// A hole: reads as zeros and takes no room. Never 0 bytes, never next to another hole.
    Hole {
        /// Number of bytes.
        length: u64,
    },
}

impl Extent {
    /// Bytes of the file that it covers.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Chunk { length, .. } => u64::from(*length),
            Self::Hole { length } => *length,
        }
    }
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file. Its extents cover it from the beginning to `size`.
    File {
        /// Bytes.
        size: u64,
        /// Content in order.
        extents: Vec<Extent>,
    },
    /// A further name of a file, symlink, FIFO, socket or device that came before in canonical order. Its attributes are those of
    /// that entry and are repeated here.
    Hardlink {
        /// Path of that entry.
        target: Vec<u8>,
    },
    /// A symbolic link.
    Symlink {
        /// Its text.
        target: Vec<u8>,
    },
    /// A named pipe.
    Fifo,
    /// A socket's name. It is made again as a socket node; whoever listened has to bind it anew.
    Socket,
    /// A character device. In the upper directory of an overlay, 0/0 is a deletion.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// Everything that a file system says about one path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Path below the root, without a leading slash; empty for the root itself. Any bytes but NUL; no empty, `.` or `..`
    /// component.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky: `mode & 0o7777`. 0 for symbolic links, which have none.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Time of the last modification.
    pub mtime: Timestamp,
    /// Extended attributes by name, names in ascending order, POSIX ACLs (`system.posix_acl_*`) and capabilities included.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Canonical order: depth first, a directory right before what is in it, names by their bytes. This is the order of the
/// paths' components, so `a/b` comes before `a.b` although `/` is greater than `.`.
#[must_use]
pub fn compare_paths(a: &[u8], b: &[u8]) -> Ordering {
    // A path that ends is before one that goes on; a slash is before every byte that a name may hold.
    let key = |byte: u8| if byte == b'/' { 0 } else { u16::from(byte) + 1 };
    let common = a.iter().zip(b).position(|(x, y)| x != y);
    match common {
        Some(at) => key(a[at]).cmp(&key(b[at])),
        None => a.len().cmp(&b.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_right_before_what_is_in_it() {
        let mut paths: Vec<&[u8]> = vec![
            b"a.b", b"b", b"a", b"", b"a/\x01", b"a/b/c", b"a/b", b"a\x01", b"a/b.c",
        ];
        paths.sort_by(|a, b| compare_paths(a, b));
        let wanted: Vec<&[u8]> = vec![
            b"", b"a", b"a/\x01", b"a/b", b"a/b/c", b"a/b.c", b"a\x01", b"a.b", b"b",
        ];
        assert_eq!(paths, wanted);
    }
}
