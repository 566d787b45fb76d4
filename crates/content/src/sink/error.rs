//! What can go wrong on the side that writes.

use rustix::io::Errno;
use tranship_core::fault::{Explain, Fault, FaultKind};

use crate::encoding::DecodeError;
use crate::entry::{ChunkId, TreeId};
use crate::frame::FrameError;

/// Why a round ended without the sink being equal to the source.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The conversation broke, or its frames are not valid.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// An operation of the delta is not valid.
    #[error("the source sent an operation that is not valid: {0}")]
    Operation(#[source] DecodeError),
    /// A message or an operation that must not come now.
    #[error("the source sent {what} where it must not come")]
    State {
        /// Its name.
        what: &'static str,
    },
    /// No common version.
    #[error("the source speaks versions {oldest} to {newest} of the content protocol, this side does not")]
    Version {
        /// Oldest version of the source.
        oldest: u16,
        /// Newest version of the source.
        newest: u16,
    },
    /// Paths out of canonical order, a parent that is no directory, a hardlink to what comes later.
    #[error("the source's delta is out of order at {path}: {reason}")]
    Order {
        /// The path.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// Bytes that are not the chunk that they are said to be. They were not written.
    #[error("bytes for {path} are not chunk {id}")]
    Chunk {
        /// The file.
        path: String,
        /// Name of the chunk.
        id: ChunkId,
    },
    /// Content that does not make the file that the entry describes.
    #[error("the content sent for {path} {reason}")]
    Content {
        /// The file.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The source ended the round.
    #[error("the source gave up: {0}")]
    Peer(Box<Fault>),
    /// No space, no inodes, or a quota.
    #[error("no space is left for {path}")]
    NoSpace {
        /// The file.
        path: String,
        /// What the kernel said.
        source: Errno,
    },
    /// The file system is read-only.
    #[error("the file system of {path} is read-only")]
    ReadOnly {
        /// The file.
        path: String,
    },
    /// A file that is immutable or append-only.
    #[error("{path} is immutable or append-only and can't be changed")]
    Immutable {
        /// The file.
        path: String,
    },
    /// A mount lies over a path that has to be written.
    #[error("{path} is a mount point or lies below one, within the tree that is written")]
    Mount {
        /// The path.
        path: String,
    },
    /// Somebody else changed the tree while it was written.
    #[error("{path} was changed by somebody else while it was written: {reason}")]
    Changed {
        /// The path.
        path: String,
        /// What was found.
        reason: &'static str,
    },
    /// What was written reads back otherwise.
    #[error("{path} did not become what it should: {what}")]
    NotEqual {
        /// The path.
        path: String,
        /// Which attribute, and how.
        what: String,
    },
    /// The file system or a lack of privilege does not allow it.
    #[error("cannot {doing} of {path}")]
    Unsupported {
        /// The path.
        path: String,
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        source: Errno,
    },
    /// Any other system call that failed.
    #[error("cannot {doing} {path}")]
    Io {
        /// The path.
        path: String,
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        source: Errno,
    },
    /// The tree that came out is not the source's.
    #[error("the tree that was written is {here}, but the source has {there}")]
    Tree {
        /// Here.
        here: TreeId,
        /// At the source.
        there: TreeId,
    },
    /// The sink's own record of its tree could not be kept or read.
    #[error("the record of the tree at this side failed")]
    Record(#[from] crate::tree::TreeError),
    /// Another round writes to the same root.
    #[error("another round is still writing there")]
    Busy,
    /// What is there already could not be read.
    #[error(transparent)]
    Scan(#[from] crate::scan::ScanError),
    /// No thread could be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    /// A defect.
    #[error("a defect in the content sink: {0}")]
    Defect(&'static str),
}

impl SinkError {
    /// The form that crosses wires. A fault of the source stays what it was.
    #[must_use]
    pub fn fault(&self) -> Fault {
        if let Self::Peer(fault) = self {
            return (**fault).clone();
        }
        let mut fault = Fault::of(self);
        fault.path = match self {
            Self::Order { path, .. }
            | Self::Chunk { path, .. }
            | Self::Content { path, .. }
            | Self::NoSpace { path, .. }
            | Self::ReadOnly { path }
            | Self::Immutable { path }
            | Self::Mount { path }
            | Self::Changed { path, .. }
            | Self::NotEqual { path, .. }
            | Self::Unsupported { path, .. }
            | Self::Io { path, .. } => Some(path.clone()),
            _ => None,
        };
        fault
    }
}

impl Explain for SinkError {
    fn code(&self) -> &'static str {
        match self {
            Self::Frame(error) => error.code(),
            Self::Operation(DecodeError::Path { .. }) => "content.bad-path",
            Self::Operation(_) => "content.bad-message",
            Self::State { .. } => "content.wrong-state",
            Self::Version { .. } => "content.version",
            Self::Order { .. } => "manifest.order",
            Self::Chunk { .. } => "chunk.corrupt",
            Self::Content { .. } => "chunk.content",
            Self::Peer(_) => "content.peer",
            Self::NoSpace { .. } => "content.no-space",
            Self::ReadOnly { .. } => "content.read-only",
            Self::Immutable { .. } => "content.immutable",
            Self::Mount { .. } => "content.mount-inside",
            Self::Changed { .. } => "content.destination-changed",
            Self::NotEqual { .. } => "content.not-equal",
            Self::Unsupported { .. } => "content.unsupported",
            Self::Io { .. } => "content.io",
            Self::Tree { .. } => "content.tree-differs",
            Self::Record(error) => error.code(),
            Self::Scan(error) => error.code(),
            Self::Busy => "content.busy",
            Self::Thread(_) => "content.threads",
            Self::Defect(_) => "content.defect",
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Frame(error) => return error.hint(),
            Self::Record(error) => return error.hint(),
            Self::Scan(error) => return error.hint(),
            Self::NoSpace { .. } => "free space or inodes there, or memory where its file system lies in memory, and run it again: what arrived is kept".into(),
            Self::Immutable { .. } => "clear the flag with chattr -ia, or leave the path out".into(),
            Self::Mount { .. } => "unmount it, or leave the path out".into(),
            Self::Changed { .. } => "make sure that nothing writes there, and run it again".into(),
            Self::Version { .. } => "use the same version of tranship on both sides".into(),
            Self::Tree { .. } | Self::Chunk { .. } => {
                "run it again; if it stays, look at the memory and disks of both hosts".into()
            }
            Self::Unsupported { .. } | Self::NotEqual { .. } => {
                "the destination's file system has to hold what the source's does, and tranship has to be root there"
                    .into()
            }
            _ => return None,
        })
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::Defect(_) => FaultKind::Bug,
            _ => FaultKind::Environment,
        }
    }
}

/// A path for people.
pub(super) fn shown(path: &[u8]) -> String {
    if path.is_empty() {
        return ".".into();
    }
    String::from_utf8_lossy(&path[..path.len().min(4096)]).into_owned()
}

/// The typed error of a system call that failed on a path below the root.
pub(super) fn failed(path: &[u8], doing: &'static str, source: Errno) -> SinkError {
    let path = shown(path);
    match source {
        Errno::NOSPC | Errno::DQUOT => SinkError::NoSpace { path, source },
        Errno::ROFS => SinkError::ReadOnly { path },
        Errno::XDEV | Errno::BUSY => SinkError::Mount { path },
        Errno::LOOP | Errno::NOTDIR => SinkError::Changed {
            path,
            reason: "a directory on the way became something else",
        },
        Errno::EXIST => SinkError::Changed {
            path,
            reason: "something is there that was not",
        },
        Errno::NOENT => SinkError::Changed {
            path,
            reason: "it is gone",
        },
        Errno::NOTSUP => SinkError::Unsupported { path, doing, source },
        source => SinkError::Io { path, doing, source },
    }
}
