//! From a directory to entries, in canonical order and with several threads; again and again with as little reading as can be.
//!
//! ```text
//! walk ──► items ──► batches and segments ──► threads read, cut, hash ──► in order ──► visitor
//!            ▲
//!           base, with the facts of its scan
//! ```
//!
//! A scan never leaves the root: not by links, which it does not follow, nor by mount points, which it shows as empty directories
//! or refuses.
//! With a base and its facts it first only looks (`stat`) at everything; what did not change since is neither opened nor read.
//! What changed while it was read is *unsettled*: its entry is one that may never have been, and the next scan reads it again.
//!
//! Memory: names of one directory per level, at most [`AHEAD`] batches or segments of 20 MiB at most, one path per file with
//! further names not met yet, and the extents of one file.

mod assemble;
mod buffers;
mod dirs;
mod early;
mod error;
mod exclude;
mod items;
mod mapped;
mod read;
mod record;
mod segment;
mod stat;
mod todo;
mod walk;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;

pub(crate) use assemble::{Job, run};
pub(crate) use early::{Early, Hashes, follow, large_files};
pub use error::ScanError;
pub use exclude::Excludes;
pub(crate) use items::{Again, BaseEntries, Compare, Items, Replay};
use mapped::Mapped;
pub(crate) use record::Recorder;
pub use record::scan;
pub use segment::Hints;
use stat::Kind;
pub(crate) use stat::{Root, is_in_memory};
pub(crate) use todo::Todo;
pub(crate) use walk::Walk;

use crate::entry::{ChunkId, Entry, Extent, Timestamp, TreeId};
use crate::message::Part;
use crate::tree::{Facts, TreeSummary};

/// Batches and segments that are under way at most, besides one per thread.
pub const AHEAD: usize = 3;

/// A tree from an earlier scan or from a sink, on disk.
#[derive(Debug, Clone)]
pub struct Base {
    /// Its id.
    pub id: TreeId,
    /// The manifest.
    pub tree: PathBuf,
    /// The record beside it, if this element's own scan made it.
    pub facts: Option<PathBuf>,
}

/// What becomes of what is mounted below the root: another file system, a bind mount, a subvolume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Nested {
    /// Only the empty directory on which it is mounted belongs to the element.
    #[default]
    ShowEmpty,
    /// An error, so that nothing stays behind without a word.
    Refuse,
}

/// How a directory is scanned.
#[derive(Debug, Clone, Default)]
pub struct ScanOptions {
    /// It is the upper directory of an overlay.
    pub overlay: bool,
    /// Paths that stay behind.
    pub excludes: Excludes,
    /// Nothing writes any more: a change under the scan is an error.
    pub frozen: bool,
    /// What becomes of what is mounted below it.
    pub nested: Nested,
    /// Threads that read and hash; 0 for one per processor.
    pub threads: usize,
}

/// What a scan came to.
#[derive(Debug, Clone, Copy)]
pub struct ScanOutcome {
    /// The tree.
    pub tree: TreeSummary,
    /// Entries that changed while they were read.
    pub unsettled: u64,
    /// Entries that were opened and read.
    pub read: u64,
}

/// A part of a file: a chunk or a hole.
#[derive(Debug, Clone)]
pub struct Piece {
    /// What it is.
    pub extent: Extent,
    /// The chunk's bytes, unless whoever scans does not want them.
    pub bytes: Option<Bytes>,
    /// In place of its bytes: how it is made of the chunk that the base has here, which is as long.
    pub parts: Option<Vec<Part>>,
}

/// An entry that was read.
#[derive(Debug)]
pub struct Scanned {
    /// The entry.
    pub entry: Entry,
    /// What `stat` said.
    pub facts: Facts,
    /// What the base has at this path.
    pub base: Option<Entry>,
    /// A file's content.
    pub pieces: Vec<Piece>,
    /// It did not change while it was read.
    pub settled: bool,
}

/// A large file whose pieces follow.
#[derive(Debug)]
pub struct Begun {
    /// The file, without extents.
    pub entry: Entry,
    /// What `stat` said.
    pub facts: Facts,
    /// What the base has at this path.
    pub base: Option<Entry>,
    /// What the base says about its content, if it has a file there.
    pub large: Arc<LargeFile>,
}

/// A large file that is open.
#[derive(Debug)]
pub struct LargeFile(pub(crate) segment::Large);

impl LargeFile {
    /// What the base says about its content.
    #[must_use]
    pub fn hints(&self) -> Option<&Hints> {
        self.0.hints.as_ref()
    }

    /// What is at the sink should be written to in place: most of it is where it was.
    #[must_use]
    pub fn in_place(&self) -> bool {
        self.0.in_place
    }
}

/// What a scan finds, in canonical order.
#[derive(Debug)]
pub enum Found {
    /// The base's entry is still right.
    Same(Box<Entry>, Facts),
    /// The base's entry has gone.
    Gone(Vec<u8>),
    /// An entry that was read.
    Entry(Box<Scanned>),
    /// A large file begins.
    Begin(Box<Begun>),
    /// Its next piece.
    Piece(Piece),
    /// It is complete. Unsettled, if it changed while it was read.
    End {
        /// It did not change while it was read.
        settled: bool,
    },
}

/// Which bytes of content a scan hands over.
pub(crate) enum Wanted<'a> {
    /// None: the tree is all that matters.
    Nothing,
    /// All.
    All,
    /// Those of chunks for which this says `true`.
    If(&'a (dyn Fn(&ChunkId) -> bool + Sync)),
}

/// What the threads of a scan have in common.
pub(crate) struct Context<'a> {
    pub(crate) frozen: bool,
    pub(crate) overlay: bool,
    /// When the scan began.
    pub(crate) began: Timestamp,
    pub(crate) wanted: Wanted<'a>,
    silent: bool,
    mapped: OnceLock<Mapped>,
    buffers: Arc<buffers::Buffers>,
    early: Mutex<Early>,
}

impl<'a> Context<'a> {
    pub(crate) fn new(root: &Root, options: &ScanOptions, began: Timestamp, wanted: Wanted<'a>) -> Self {
        Self {
            frozen: options.frozen,
            overlay: options.overlay,
            began,
            wanted,
            silent: root.silent,
            mapped: OnceLock::new(),
            buffers: Arc::default(),
            early: Mutex::default(),
        }
    }

    /// Takes over what was cut before the scan began.
    pub(crate) fn with_early(mut self, early: Early) -> Self {
        self.early = Mutex::new(early);
        self
    }

    fn early(&self) -> std::sync::MutexGuard<'_, Early> {
        self.early.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wants(&self, extent: &Extent) -> bool {
        match (extent, &self.wanted) {
            (Extent::Hole { .. }, _) | (_, Wanted::Nothing) => false,
            (_, Wanted::All) => true,
            (Extent::Chunk { id, .. }, Wanted::If(wants)) => wants(id),
        }
    }

    /// Whether any bytes are wanted.
    fn wants_any(&self) -> bool {
        !matches!(self.wanted, Wanted::Nothing)
    }

    /// Whether times say nothing about the content of such entries.
    fn silent(&self, kind: Kind) -> bool {
        self.silent && kind == Kind::File
    }

    /// Whether a file may be mapped by some process. The first question looks at all processes, which is after the scan began, as
    /// it has to be.
    fn is_mapped(&self, inode: u64, name: &[u8]) -> bool {
        !self.silent && self.mapped.get_or_init(Mapped::now).has(inode, name)
    }
}

/// The clock that stamps files, or one that is ahead of it by no more than its tick.
#[expect(
    clippy::disallowed_methods,
    reason = "compared with times of files only, which are of the same clock"
)]
pub(crate) fn now() -> Timestamp {
    match std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
        Ok(since) => Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: since.subsec_nanos(),
        },
        // A clock before 1970: nothing is trusted then.
        Err(_) => Timestamp::default(),
    }
}

/// Opens the directory to scan.
pub(crate) fn open_root(path: &Path) -> Result<Root, ScanError> {
    Root::open(path)
}

#[cfg(test)]
mod tests;
