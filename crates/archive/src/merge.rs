//! Several archives become one: the last step of an export that was split over storage elements.

use std::io::{Read, Write};

use tranship_core::fault::Explain;

use crate::entry::{Entry, show};
use crate::error::ReadError;
use crate::filter::{FilterSpec, RenameError};
use crate::path::TreePath;
use crate::reader::{Names, Reader};
use crate::writer::{WriteError, Writer};

/// One of the archives.
pub struct Part<R> {
    /// The archive.
    pub reader: Reader<R>,
    /// What of it goes along, and under which names; the empty spec if whoever made it did that.
    pub spec: FilterSpec,
    /// Where its root is in the whole, if that is the mount point of an element: the directory that an earlier part has in
    /// that place lies under the mount and is left out.
    pub mounted_at: Option<TreePath>,
}

/// How archives are merged.
#[derive(Debug, Clone, Copy, Default)]
pub struct MergeOptions {
    /// Write names with a slash before them, as docker does where `/` is asked for.
    pub absolute: bool,
}

/// What a merge did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MergeReport {
    /// Entries written.
    pub entries: u64,
    /// Bytes of content, holes not counted.
    pub bytes: u64,
}

/// Archives that could not be merged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// One of them could not be read.
    #[error("part {part} of the archive cannot be read")]
    Read {
        /// Which, from 0.
        part: usize,
        /// Why.
        source: ReadError,
    },
    /// An entry could not be renamed.
    #[error("part {part} of the archive cannot be renamed")]
    Rename {
        /// Which, from 0.
        part: usize,
        /// Why.
        source: RenameError,
    },
    /// Two of them have an entry of one name.
    #[error("{} comes from two parts of the archive", show(.path))]
    Duplicate {
        /// The name.
        path: Vec<u8>,
    },
    /// The whole could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Explain for MergeError {
    fn code(&self) -> &'static str {
        match self {
            Self::Read { source, .. } => source.code(),
            Self::Rename { source, .. } => source.code(),
            Self::Duplicate { .. } => "archive.duplicate-entry",
            Self::Write(error) => error.code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Read { source, .. } => source.hint(),
            Self::Rename { source, .. } => source.hint(),
            Self::Duplicate { .. } => None,
            Self::Write(error) => error.hint(),
        }
    }
}

/// Appends all entries of all parts, in order, to `out`, which the caller ends.
///
/// # Errors
///
/// [`MergeError`]; what was written until then is a beginning of the archive without an end.
pub fn merge<R: Read, W: Write>(
    parts: Vec<Part<R>>,
    out: &mut Writer<W>,
    options: MergeOptions,
) -> Result<MergeReport, MergeError> {
    let mut report = MergeReport::default();
    let mut names = Names::new();
    let mounts: Vec<Option<TreePath>> = parts.iter().map(|part| part.mounted_at.clone()).collect();
    for (number, mut part) in parts.into_iter().enumerate() {
        let later = mounts.get(number + 1..).unwrap_or_default();
        while let Some(entry) = part
            .reader
            .next_entry()
            .map_err(|source| MergeError::Read { part: number, source })?
        {
            let renamed = part
                .spec
                .apply(&entry)
                .map_err(|source| MergeError::Rename { part: number, source })?;
            let Some(mut entry) = renamed else { continue };
            let path = TreePath::of_entry(&entry.path).map_err(|error| MergeError::Rename {
                part: number,
                source: error.into(),
            })?;
            if later.iter().flatten().any(|mount| *mount == path) {
                continue;
            }
            if !names.insert(path.as_bytes()) {
                return Err(MergeError::Duplicate { path: entry.path });
            }
            if options.absolute {
                absolute(&mut entry, &path);
            }
            out.append_from(&entry, &mut part.reader)?;
            report.entries += 1;
            report.bytes += entry.stored_size();
        }
    }
    Ok(report)
}

/// Names as docker gives them for `/`: `/`, `/bin/`, and hard links to match.
fn absolute(entry: &mut Entry, path: &TreePath) {
    let slashed = |path: &TreePath, directory: bool| {
        let mut name = b"/".to_vec();
        if !path.is_root() {
            name.extend(path.to_entry(directory));
        }
        name
    };
    entry.path = slashed(path, entry.kind.is_directory());
    if let crate::entry::Kind::HardLink { target } = &mut entry.kind
        && let Ok(path) = TreePath::of_entry(target)
    {
        *target = slashed(&path, false);
    }
}
