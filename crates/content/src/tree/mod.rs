//! Manifests on disk, written and read as streams: what an element holds, in canonical bytes whose BLAKE3 is its name.
//!
//! `docs/tree-format.md` describes every byte. Memory does not grow with the number of entries: a writer keeps the previous
//! path, a reader keeps one entry and the path that leads to it. One entry can be large: a file takes 40 bytes per extent, which
//! is 40 MiB for a file of 1 TiB.
//!
//! Manifests come from other machines. A reader refuses whatever a writer would not have written; [`check()`] reads a whole
//! manifest, and with it what a stream alone cannot tell (that hard links lead to an entry, and to an equal one).

mod check;
mod error;
mod facts;
mod read;
mod write;

pub use check::{MAX_HARDLINK_GROUPS, check};
pub use error::TreeError;
pub use facts::{FACT_LENGTH, Facts, FactsReader, FactsWriter};
pub use read::TreeReader;
pub use write::{TreeWriter, encode_attributes};

use crate::entry::TreeId;

/// What every manifest begins with; the last byte is the version.
pub const MAGIC: [u8; 9] = *b"tshptree\x01";
/// Longest path in bytes.
pub const MAX_PATH: usize = 256 << 10;
/// Longest component of a path in bytes, as Linux has it.
pub const MAX_NAME: usize = 255;
/// Most components of a path.
pub const MAX_DEPTH: usize = 1024;
/// Longest text of a symbolic link in bytes.
pub const MAX_SYMLINK: usize = 4095;
/// Longest value of an extended attribute in bytes, as Linux has it.
pub const MAX_XATTR_VALUE: usize = 64 << 10;
/// Most extended attributes of one entry: Linux gives all names together 64 KiB.
pub const MAX_XATTRS: usize = 32 << 10;
/// Longest encoding of one entry in bytes: a file of about 16 TiB in chunks.
pub const MAX_RECORD: usize = 512 << 20;
/// Longest chunk in bytes.
pub const MAX_CHUNK: u32 = 4 << 20;

/// What a manifest says about itself at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeSummary {
    /// BLAKE3 of all its bytes.
    pub id: TreeId,
    /// Number of entries, the root's included.
    pub entries: u64,
    /// Bytes of all files, holes included, further names not.
    pub bytes: u64,
    /// Number of chunks.
    pub chunks: u64,
    /// Length of the manifest in bytes.
    pub length: u64,
}

/// Numbers of kinds in the encoding.
mod kind {
    pub(super) const DIRECTORY: u8 = 0;
    pub(super) const FILE: u8 = 1;
    pub(super) const HARDLINK: u8 = 2;
    pub(super) const SYMLINK: u8 = 3;
    pub(super) const FIFO: u8 = 4;
    pub(super) const SOCKET: u8 = 5;
    pub(super) const CHAR_DEVICE: u8 = 6;
    pub(super) const BLOCK_DEVICE: u8 = 7;
}

#[cfg(test)]
mod tests;
