//! What can be wrong with a manifest.

use std::io;

use tranship_core::fault::{Explain, FaultKind};

use crate::entry::TreeId;

/// Why a manifest was refused, or could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// It could not be read or written at all.
    #[error("cannot read or write a manifest")]
    Io(#[from] io::Error),
    /// It does not begin like a manifest.
    #[error("this is no manifest")]
    Magic,
    /// Its version is not known here.
    #[error("manifest version {found} is not known here (newest known: 1)")]
    Version {
        /// The version that it names.
        found: u8,
    },
    /// It ends too early.
    #[error("the manifest ends after {at} bytes, in the middle of something")]
    Truncated {
        /// Bytes that were there.
        at: u64,
    },
    /// Something follows its end.
    #[error("bytes follow the manifest's end")]
    Trailing,
    /// A number is not in its shortest form, or too large.
    #[error("a number in the manifest is out of range or not in its shortest form (entry {entry})")]
    Number {
        /// Number of the entry, from 0.
        entry: u64,
    },
    /// An entry is longer than any can be.
    #[error("entry {entry} of the manifest claims {length} bytes")]
    RecordLength {
        /// Number of the entry, from 0.
        entry: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// An entry does not fill its record, or overruns it.
    #[error("entry {entry} of the manifest does not fit its length")]
    RecordShape {
        /// Number of the entry, from 0.
        entry: u64,
    },
    /// A path that no file system would give.
    #[error("the manifest has an impossible path: {path:?}: {reason}")]
    Path {
        /// The path.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A path is deeper than allowed.
    #[error("the manifest has a path of more than {} components", super::MAX_DEPTH)]
    Depth,
    /// Paths are not in canonical order.
    #[error("the manifest is not sorted: {path:?} comes too late")]
    Unsorted {
        /// The path that should have come earlier.
        path: String,
    },
    /// A path comes twice.
    #[error("the manifest has {path:?} twice")]
    Duplicate {
        /// The path.
        path: String,
    },
    /// What is above an entry is no directory of the manifest.
    #[error("the manifest has {path:?} but no directory that it could be in")]
    Orphan {
        /// The path.
        path: String,
    },
    /// The manifest does not begin with its root directory.
    #[error("the manifest does not begin with a root directory")]
    Root,
    /// A field of an entry has an impossible value.
    #[error("the manifest's entry {path:?} is impossible: {reason}")]
    Entry {
        /// Its path.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Extents of a file do not make up its content.
    #[error("the extents of {path:?} in the manifest are wrong: {reason}")]
    Extents {
        /// Path of the file.
        path: String,
        /// What is wrong with them.
        reason: &'static str,
    },
    /// A hard link leads to nothing that can have further names.
    #[error("the hard link {path:?} in the manifest leads to {target:?}, {reason}")]
    Hardlink {
        /// Path of the hard link.
        path: String,
        /// Where it leads.
        target: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More files with several names than this program keeps in mind.
    #[error(
        "the manifest has more than {} files with several names",
        super::MAX_HARDLINK_GROUPS
    )]
    HardlinkGroups,
    /// All files together are larger than a number can say.
    #[error("the manifest's files are too large together")]
    Overflow,
    /// The counts at the end are not those of what came before.
    #[error("the counts at the manifest's end are wrong")]
    Counts,
    /// It is not the manifest that it should be.
    #[error("the manifest is {found}, not {wanted}")]
    Id {
        /// Id that it has.
        found: TreeId,
        /// Id that it should have.
        wanted: TreeId,
    },
    /// The record of stat facts beside a manifest is damaged, or belongs to another one.
    #[error("the record beside the manifest is unusable: {reason}")]
    Facts {
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Explain for TreeError {
    fn code(&self) -> &'static str {
        match self {
            Self::Io(_) => "manifest.io",
            Self::Magic => "manifest.magic",
            Self::Version { .. } => "manifest.version",
            Self::Truncated { .. } => "manifest.truncated",
            Self::Trailing => "manifest.trailing",
            Self::Number { .. } => "manifest.number",
            Self::RecordLength { .. } | Self::RecordShape { .. } => "manifest.record",
            Self::Path { .. } => "manifest.path",
            Self::Depth => "manifest.depth",
            Self::Unsorted { .. } => "manifest.unsorted",
            Self::Duplicate { .. } => "manifest.duplicate",
            Self::Orphan { .. } => "manifest.orphan",
            Self::Root => "manifest.root",
            Self::Entry { .. } => "manifest.entry",
            Self::Extents { .. } => "manifest.extents",
            Self::Hardlink { .. } => "manifest.hardlink",
            Self::HardlinkGroups => "manifest.hardlink-groups",
            Self::Overflow => "manifest.overflow",
            Self::Counts => "manifest.counts",
            Self::Id { .. } => "manifest.id",
            Self::Facts { .. } => "manifest.facts",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Io(_) | Self::HardlinkGroups => None,
            Self::Version { .. } => Some("use the same version of tranship on both nodes".to_owned()),
            Self::Facts { .. } => Some("everything is read anew without it".to_owned()),
            _ => Some(
                "the manifest was damaged, or made by something other than tranship; a new scan makes another"
                    .to_owned(),
            ),
        }
    }

    fn kind(&self) -> FaultKind {
        FaultKind::Environment
    }
}

/// A path for a message: bytes that are no text are shown as such.
pub(crate) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
