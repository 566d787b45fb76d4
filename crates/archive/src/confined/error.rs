//! What can go wrong below a root.

use rustix::io::Errno;
use tranship_core::fault::{Explain, FaultKind};

use crate::entry::show;
use crate::error::ReadError;
use crate::filter::RenameError;
use crate::path::PathError;
use crate::writer::WriteError;

/// A system call that failed, and on what.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {source}", show(.path))]
pub struct SystemError {
    /// What was to be done.
    pub doing: &'static str,
    /// With what.
    pub path: Vec<u8>,
    /// The system's reason.
    pub source: Errno,
}

impl Explain for SystemError {
    fn code(&self) -> &'static str {
        match self.source {
            Errno::NOSPC | Errno::DQUOT => "archive.no-space",
            Errno::ROFS => "archive.read-only",
            Errno::BUSY => "archive.busy",
            Errno::NOENT => "archive.not-found",
            Errno::NOTDIR => "archive.not-a-directory",
            Errno::LOOP | Errno::XDEV => "archive.link-refused",
            Errno::AGAIN => "archive.path-races",
            Errno::ACCESS | Errno::PERM => "archive.permission",
            Errno::NAMETOOLONG => "archive.name-too-long",
            _ => "archive.system",
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self.source {
            Errno::NOSPC | Errno::DQUOT => "make room at the destination; what was copied already is there",
            Errno::ROFS => "it is mounted read-only",
            Errno::BUSY => "something is mounted on it; write to what is mounted there",
            Errno::AGAIN => "something renames directories on the way all the time; stop it and try again",
            Errno::LOOP | Errno::XDEV => "a symbolic link on the way leads where it must not",
            Errno::ACCESS | Errno::PERM => "run as root, or as the owner",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// An archive that could not be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExtractError {
    /// The archive could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A name in it is no path below the destination.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A system call failed.
    #[error(transparent)]
    System(#[from] SystemError),
    /// The place to unpack at is not a directory.
    #[error("extraction point is not a directory: {}", show(.path))]
    NotADirectory {
        /// The place.
        path: Vec<u8>,
    },
    /// Something that is no directory would replace one.
    #[error("cannot overwrite directory {} with non-directory {}", show(.path), show(.destination))]
    OverwriteDirectory {
        /// What is there.
        path: Vec<u8>,
        /// Where the archive is unpacked.
        destination: Vec<u8>,
    },
    /// A directory would replace something that is none.
    #[error("cannot overwrite non-directory {} with directory {}", show(.path), show(.destination))]
    OverwriteNonDirectory {
        /// What is there.
        path: Vec<u8>,
        /// Where the archive is unpacked.
        destination: Vec<u8>,
    },
    /// An entry leads through a symbolic link that the archive itself made.
    #[error("{} leads through a symbolic link of the same archive", show(.path))]
    ThroughLink {
        /// The entry.
        path: Vec<u8>,
    },
    /// A device node, which the policy refuses.
    #[error("{} is a device", show(.path))]
    Device {
        /// The entry.
        path: Vec<u8>,
    },
    /// A setuid or setgid file, which the policy refuses.
    #[error("{} would run as another user", show(.path))]
    SetId {
        /// The entry.
        path: Vec<u8>,
    },
    /// A name by which image layers delete files.
    #[error("{} is the mark of a deleted file in an image layer", show(.path))]
    Whiteout {
        /// The entry.
        path: Vec<u8>,
    },
    /// A directory that is nested too deeply to be removed.
    #[error("{} is nested more deeply than {limit} directories", show(.path))]
    TooDeep {
        /// What was to be replaced.
        path: Vec<u8>,
        /// The limit.
        limit: usize,
    },
    /// Content without an entry, which only a defect of the caller can bring about.
    #[error("content came before an entry")]
    NoEntry,
}

impl Explain for ExtractError {
    fn code(&self) -> &'static str {
        match self {
            Self::Read(error) => error.code(),
            Self::Path(error) => error.code(),
            Self::System(error) => error.code(),
            Self::NotADirectory { .. } => "archive.not-a-directory",
            Self::OverwriteDirectory { .. } => "archive.overwrite-directory",
            Self::OverwriteNonDirectory { .. } => "archive.overwrite-non-directory",
            Self::ThroughLink { .. } => "archive.through-link",
            Self::Device { .. } => "archive.device",
            Self::SetId { .. } => "archive.setid",
            Self::Whiteout { .. } => "archive.whiteout",
            Self::TooDeep { .. } => "archive.too-deep",
            Self::NoEntry => "archive.no-entry",
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Read(error) => return error.hint(),
            Self::Path(error) => return error.hint(),
            Self::System(error) => return error.hint(),
            Self::OverwriteDirectory { .. } | Self::OverwriteNonDirectory { .. } => {
                "remove what is there first, if it is not needed"
            }
            Self::ThroughLink { .. } | Self::Device { .. } | Self::SetId { .. } | Self::Whiteout { .. } => {
                "if you trust its maker, allow it"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::NoEntry => FaultKind::Bug,
            _ => FaultKind::Environment,
        }
    }
}

/// A tree that could not be written to an archive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The path is none.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A system call failed.
    #[error(transparent)]
    System(#[from] SystemError),
    /// The filter cannot rename an entry.
    #[error(transparent)]
    Rename(#[from] RenameError),
    /// The archive could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The tree is nested too deeply.
    #[error("{} is nested more deeply than {limit} directories", show(.path))]
    TooDeep {
        /// The directory.
        path: Vec<u8>,
        /// The limit.
        limit: usize,
    },
    /// A file of an overlay's upper directory is only a note about one below.
    #[error("{} depends on what is below its layer", show(.path))]
    DependsOnLower {
        /// The file.
        path: Vec<u8>,
    },
}

impl Explain for ExportError {
    fn code(&self) -> &'static str {
        match self {
            Self::Path(error) => error.code(),
            Self::System(error) => error.code(),
            Self::Rename(error) => error.code(),
            Self::Write(error) => error.code(),
            Self::TooDeep { .. } => "archive.too-deep",
            Self::DependsOnLower { .. } => "archive.depends-on-lower",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Path(error) => error.hint(),
            Self::System(error) => error.hint(),
            Self::Rename(error) => error.hint(),
            Self::Write(error) => error.hint(),
            Self::TooDeep { .. } => None,
            Self::DependsOnLower { .. } => Some(
                "the overlay was mounted with redirect_dir or metacopy; copy the file over itself in the container"
                    .to_owned(),
            ),
        }
    }
}

/// Names the call and the path of a failure.
pub(super) trait Doing<T> {
    fn doing(self, doing: &'static str, path: &[u8]) -> Result<T, SystemError>;
}

impl<T> Doing<T> for Result<T, Errno> {
    fn doing(self, doing: &'static str, path: &[u8]) -> Result<T, SystemError> {
        self.map_err(|source| SystemError {
            doing,
            path: path.to_vec(),
            source,
        })
    }
}
