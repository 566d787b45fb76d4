//! What can go wrong with a scan.

use std::io;

use tranship_core::fault::{Explain, FaultKind};

use crate::tree::TreeError;

/// Why an element could not be scanned.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// A system call failed.
    #[error("cannot {action} {path:?}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Path below the root, or the root's own.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The root is no directory.
    #[error("{path:?} is not a directory")]
    NotDirectory {
        /// Its path.
        path: String,
    },
    /// Something changed although nothing should write any more.
    #[error("{path:?} changed while it was read, although nothing should write to it any more")]
    Changed {
        /// Its path below the root.
        path: String,
    },
    /// The overlay's upper directory has something that means nothing without its lower directories.
    #[error("{path:?} depends on the layers below by {attribute}, which does not travel")]
    DependsOnLower {
        /// Its path below the root.
        path: String,
        /// The extended attribute that says so.
        attribute: String,
    },
    /// Another file system is mounted below the root.
    #[error("another file system is mounted at {path:?}, below what is read, and would stay behind")]
    Nested {
        /// Its path below the root.
        path: String,
    },
    /// A pattern of paths is wrong.
    #[error("the pattern {pattern:?} is wrong: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More files with several names than this program keeps in mind.
    #[error("more than {} files have several names", crate::tree::MAX_HARDLINK_GROUPS)]
    HardlinkGroups,
    /// The manifest could not be read or written.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Whoever wanted the result has gone.
    #[error("the scan was stopped")]
    Stopped,
}

impl ScanError {
    pub(crate) fn io(action: &'static str, path: &[u8], source: impl Into<io::Error>) -> Self {
        Self::Io {
            action,
            path: shown(path),
            source: source.into(),
        }
    }
}

/// A path for a message; the root is a dot.
pub(crate) fn shown(path: &[u8]) -> String {
    if path.is_empty() {
        ".".to_owned()
    } else {
        String::from_utf8_lossy(path).into_owned()
    }
}

impl Explain for ScanError {
    fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "content.read",
            Self::NotDirectory { .. } => "content.not-a-directory",
            Self::Changed { .. } => "content.changed-while-frozen",
            Self::DependsOnLower { .. } => "content.depends-on-lower",
            Self::Nested { .. } => "files.mounted-below",
            Self::Pattern { .. } => "content.pattern",
            Self::HardlinkGroups => "content.hardlink-groups",
            Self::Tree(error) => error.code(),
            Self::Stopped => "content.stopped",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Changed { .. } => Some("look for another process that writes there".to_owned()),
            Self::DependsOnLower { .. } => Some(
                "the overlay was mounted with redirect_dir or metacopy; mount it without, or copy the file over itself"
                    .to_owned(),
            ),
            Self::Nested { path } => Some(format!(
                "unmount it, or leave it behind with --exclude '/{path}' and take care of it yourself"
            )),
            Self::Pattern { .. } => {
                Some("patterns know *, **, ?, a leading / and a trailing /".to_owned())
            }
            Self::Tree(error) => error.hint(),
            _ => None,
        }
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::Pattern { .. } => FaultKind::Usage,
            _ => FaultKind::Environment,
        }
    }
}
