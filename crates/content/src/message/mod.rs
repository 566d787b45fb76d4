//! What the two halves of a round say to each other over a byte stream, in this order:
//!
//! ```text
//! sink → source    Hello{versions}                       the sink speaks first
//! source → sink    Hello{versions, options}             both go on with the newest version that both speak
//! sink → source    Holds(Nothing | Known tree id)        Nothing: only an empty root directory is there
//! source → sink    Base(Nothing | Known id | Send)       Known: the source has that very tree from an earlier round
//!   if Send:       sink → source  Manifest(bytes)… ManifestEnd{id}
//! source → sink    the delta, in canonical order of paths (below)
//!   meanwhile:     source → sink  Ask{…}  sink → source  Blocks{…}   hashes of short blocks of a base file, so that
//!                  a small change inside a chunk costs little; asked ahead of their use, answered in order
//! source → sink    Done
//! sink → source    Again{paths}                          files that could not be put together (a base chunk was not what the
//!                                                        tree says): the source sends them once more, whole, then Done
//! source → sink    End{tree, entries, bytes}
//! sink → source    Applied{tree, …}                      only after equality, and after syncing if that was asked for
//! ```
//!
//! Either side may send `Failed{fault}` at any time instead, which ends the round, and `Alive`, which means nothing, when it has
//! been busy without anything to say for some seconds.
//!
//! The delta:
//!
//! * `Remove{path}`: the base has it, the source has not (any more, or not of this type). Takes what is below along.
//! * `Make{entry}`: an entry without content that is new or of another type: directory, symlink, FIFO, socket, device, hardlink,
//!   empty file.
//! * `Attributes{entry}`: same content (and extents), other attributes.
//! * `File{entry without extents, write}` then its content from the beginning to the end, then `FileEnd`:
//!   `Hole{length}`, `Data{id, bytes}`, `Copy{path, offset, length, id}` (bytes that the base holds),
//!   `Patch{path, offset, length of base, id, parts}` (bytes of the base with literal parts between them),
//!   `Keep{length}` (the extents that the base has at this very path and offset; it has to begin and end at their bounds).
//!   `write` is `Replace` (a new file takes the place of the old one; `Copy` may refer to any base file) or `InPlace` (large
//!   files: `Copy` and `Patch` refer to this file only, at offsets that have not been written yet in this round; the sink may
//!   still choose to replace it).
//!   Small files may come as `Whole{entry, id, bytes}`, one chunk or none.
//! * entries that are equal to the base's are not mentioned.
//!
//! All of these are *operations*; one frame of kind `Delta` holds as many as fit, one after the other, and an operation is never
//! cut in two.
//!
//! `Copy` and `Patch` always mean the base *as it was at the beginning of the round*: the sink keeps what a `Remove` or a
//! replacement displaces until `Done`.
//!
//! Frames: `length u32 LE of what follows | kind u8 | flags u8 (1: body is zstd) | body`; with flag 1 the body begins with the
//! plain length as u32 LE. A frame's body is at most [`MAX_FRAME`] bytes, plain or compressed. See [`frame`](crate::frame) for
//! reading and writing them and [`encoding`](crate::encoding) for the bytes of values.

mod codec;
mod operation;

use bytes::Bytes;
use tranship_core::fault::Fault;

use crate::entry::{ChunkId, Entry, TreeId};
use crate::tree::TreeSummary;

pub use operation::{Operations, operations, put_data_head, put_whole};

/// The longest frame body in bytes, plain or compressed.
pub const MAX_FRAME: usize = 8 << 20;
/// Bytes of one chunk, at most: with what is around it, it fits into a frame.
pub const MAX_CHUNK: usize = 4 << 20;
/// Oldest version of this language that is spoken.
pub const VERSION_MIN: u16 = 1;
/// Newest version of this language that is spoken.
pub const VERSION_MAX: u16 = 1;
/// First bytes of every `Hello`.
pub const MAGIC: &[u8; 8] = b"tranship";
/// Ranges of one [`Message::Ask`], at most.
pub const MAX_ASK: usize = 4096;
/// Hashes of one [`Message::Blocks`], at most.
pub const MAX_BLOCKS: usize = 512 << 10;

/// A message that is not an operation of the delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Versions that the sender speaks, and what the source wants (zero flags from the sink).
    Hello {
        /// Oldest version.
        oldest: u16,
        /// Newest version.
        newest: u16,
        /// What the source wants of this round.
        wants: Wants,
    },
    /// Sink: what is there.
    Holds(Holds),
    /// Source: what the delta will start from.
    Base(Base),
    /// Sink: a piece of its manifest file.
    Manifest(Bytes),
    /// Sink: the end of its manifest.
    ManifestEnd {
        /// The manifest's name.
        tree: TreeId,
    },
    /// Source: operations, one after the other; [`operations`] takes them apart.
    Delta(Bytes),
    /// Source: hashes of blocks, please.
    Ask(Ask),
    /// Sink: the answer to the oldest `Ask` that has none yet.
    Blocks(Blocks),
    /// Source: the delta is complete.
    Done,
    /// Sink, after each `Done`: files that could not be put together, in canonical order; none if all is well.
    Again {
        /// Their paths.
        paths: Vec<Vec<u8>>,
    },
    /// Source: what the sink must hold now.
    End(Totals),
    /// Sink: it does hold that.
    Applied(Totals),
    /// Either side: the round is over.
    Failed(Box<Fault>),
    /// Either side: still there.
    Alive,
}

/// What a source wants of a round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wants {
    /// Nothing writes to the source any more.
    pub frozen: bool,
    /// Everything has to be durable before `Applied`.
    pub durable: bool,
}

/// What a sink holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// An empty directory.
    Nothing,
    /// This tree.
    Tree(TreeId),
}

/// What a delta starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// An empty directory.
    Nothing,
    /// This tree, which the source has too.
    Tree(TreeId),
    /// The sink's tree, whose manifest the source asks for.
    Send,
}

/// A question for hashes of short blocks of base files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Bytes of a block: 32 to 1 MiB. The last block of a range may be shorter.
    pub block: u32,
    /// Where.
    pub ranges: Vec<AskRange>,
}

/// A stretch of a base file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskRange {
    /// The file.
    pub path: Vec<u8>,
    /// First byte.
    pub offset: u64,
    /// Number of bytes, never 0.
    pub length: u32,
}

/// Hashes of blocks: XXH3, 64 bits, of each block, for all ranges one after the other. They only say what is worth sending; the
/// result is checked by its BLAKE3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks {
    /// The hashes; empty if the ranges could not be read as the tree says.
    pub hashes: Vec<u64>,
}

/// What a round came to. Sources fill all fields in [`Message::End`]; the sink repeats what it counted itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Name of the tree.
    pub tree: TreeId,
    /// Entries of the tree.
    pub entries: u64,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Entries that were new, different or gone.
    pub changed_entries: u64,
    /// Bytes of content that were sent, before compression.
    pub literal_bytes: u64,
    /// Bytes that the sender wrote to the pipe.
    pub wire_bytes: u64,
    /// Files that changed while they were read.
    pub unsettled: u64,
}

impl Totals {
    /// Those of a tree of which nothing had to travel.
    #[must_use]
    pub fn of(tree: &TreeSummary) -> Self {
        Self {
            tree: tree.id,
            entries: tree.entries,
            bytes: tree.bytes,
            changed_entries: 0,
            literal_bytes: 0,
            wire_bytes: 0,
            unsettled: 0,
        }
    }
}

/// How a file comes to its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// A new file takes the old one's place.
    Replace,
    /// The file that is there is written to.
    InPlace,
}

/// A part of a patched chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Bytes of the base's stretch.
    Base {
        /// First byte, counted from the beginning of the stretch.
        offset: u32,
        /// Number of bytes, never 0.
        length: u32,
    },
    /// Other bytes, never none.
    Literal(Bytes),
}

impl Part {
    /// Number of bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Base { length, .. } => u64::from(*length),
            Self::Literal(bytes) => bytes.len() as u64,
        }
    }
}

/// An operation of the delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// The base has it, the source has not.
    Remove {
        /// What goes, with everything below.
        path: Vec<u8>,
    },
    /// An entry without content that is new or of another type.
    Make(Entry),
    /// Other attributes; the content stays. Files come without extents.
    Attributes(Entry),
    /// A file whose content follows up to `FileEnd`.
    File {
        /// The file, without extents.
        entry: Entry,
        /// How it is written.
        write: Write,
    },
    /// A hole.
    Hole {
        /// Bytes, never 0.
        length: u64,
    },
    /// A chunk.
    Data {
        /// Its name.
        id: ChunkId,
        /// Its bytes, never none.
        bytes: Bytes,
    },
    /// A chunk that the base holds.
    Copy {
        /// File of the base.
        path: Vec<u8>,
        /// First byte there.
        offset: u64,
        /// Number of bytes, never 0.
        length: u32,
        /// The chunk's name.
        id: ChunkId,
    },
    /// A chunk that is like one of the base.
    Patch {
        /// File of the base.
        path: Vec<u8>,
        /// First byte there.
        offset: u64,
        /// Number of bytes there.
        length: u32,
        /// Name of the resulting chunk.
        id: ChunkId,
        /// What the result is made of, in order.
        parts: Vec<Part>,
    },
    /// The extents that the base has at this path and this offset.
    Keep {
        /// Bytes, never 0.
        length: u64,
    },
    /// The file is complete.
    FileEnd,
    /// A file with one chunk, or an empty one.
    Whole {
        /// The file, without extents.
        entry: Entry,
        /// The chunk's name; all zeros for an empty file.
        id: ChunkId,
        /// Its bytes.
        bytes: Bytes,
    },
}

/// Numbers of messages and operations.
mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const HOLDS: u8 = 2;
    pub(super) const BASE: u8 = 3;
    pub(super) const MANIFEST: u8 = 4;
    pub(super) const MANIFEST_END: u8 = 5;
    pub(super) const DELTA: u8 = 6;
    pub(super) const ASK: u8 = 7;
    pub(super) const BLOCKS: u8 = 8;
    pub(super) const DONE: u8 = 9;
    pub(super) const AGAIN: u8 = 10;
    pub(super) const END: u8 = 11;
    pub(super) const APPLIED: u8 = 12;
    pub(super) const FAILED: u8 = 13;
    pub(super) const ALIVE: u8 = 14;

    pub(super) const REMOVE: u8 = 1;
    pub(super) const MAKE: u8 = 2;
    pub(super) const ATTRIBUTES: u8 = 3;
    pub(super) const FILE: u8 = 4;
    pub(super) const HOLE: u8 = 5;
    pub(super) const DATA: u8 = 6;
    pub(super) const COPY: u8 = 7;
    pub(super) const PATCH: u8 = 8;
    pub(super) const KEEP: u8 = 9;
    pub(super) const FILE_END: u8 = 10;
    pub(super) const WHOLE: u8 = 11;
}

/// Kind of the frames that hold operations, for those who write them in parts.
pub const DELTA: u8 = kind::DELTA;
