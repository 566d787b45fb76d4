//! What can be wrong with an archive that is read.

use std::fmt;
use std::io;

use tranship_core::fault::Explain;

use crate::compression::CompressionError;
use crate::entry::show;

/// An archive that could not be read, and where.
#[derive(Debug)]
pub struct ReadError {
    /// Byte of the archive at which the header of the entry begins.
    pub offset: u64,
    /// Name of the entry, once it was known.
    pub path: Option<Vec<u8>>,
    /// What is wrong.
    pub defect: Defect,
}

/// What is wrong with an archive. Readers of tar differ in what they make of most of these, which is why none is passed over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Defect {
    /// It ends before it is complete.
    #[error("the archive ends in the middle of {what}")]
    Truncated {
        /// Of what.
        what: &'static str,
    },
    /// A header's checksum is wrong: it is damaged, or no tar archive.
    #[error("the checksum of the header is wrong")]
    Checksum,
    /// A number is not written as one.
    #[error("the {what} is not a number")]
    Number {
        /// Which.
        what: &'static str,
    },
    /// A number is negative or too large.
    #[error("the {what} is negative or too large")]
    NumberRange {
        /// Which.
        what: &'static str,
    },
    /// A name with a NUL byte, after which some readers stop reading it.
    #[error("a name has a NUL byte in it")]
    NulInName,
    /// A name beyond the limit.
    #[error("a name is longer than {limit} bytes")]
    NameTooLong {
        /// The limit.
        limit: usize,
    },
    /// An entry without a name, or a link without a target.
    #[error("the {what} is empty")]
    EmptyName {
        /// Which.
        what: &'static str,
    },
    /// A PAX header that is not a list of records.
    #[error("the extended header is malformed: {what}")]
    PaxMalformed {
        /// In what.
        what: &'static str,
    },
    /// A key twice in one PAX header.
    #[error("the extended header has the key {key} twice")]
    PaxDuplicate {
        /// The key.
        key: String,
    },
    /// A PAX header or a GNU long name beyond the limit.
    #[error("the extended header is larger than {limit} bytes")]
    PaxTooLarge {
        /// The limit.
        limit: u64,
    },
    /// A global PAX header that would change what all entries are.
    #[error("a global extended header must not set {key}")]
    PaxGlobal {
        /// The key.
        key: String,
    },
    /// A PAX header in an unknown character set.
    #[error("the extended header is in the unknown character set {charset}")]
    PaxCharset {
        /// The character set.
        charset: String,
    },
    /// Header and extended header disagree about the size.
    #[error("the header says {header} bytes, the extended header {extended}")]
    SizeDisagrees {
        /// The header's.
        header: u64,
        /// The extended header's.
        extended: u64,
    },
    /// Two extended headers disagree about a name.
    #[error("two extended headers name the entry differently")]
    NameDisagrees,
    /// An entry that some readers take for a file and others for a directory.
    #[error("the entry can be taken for a file or for a directory")]
    AmbiguousKind,
    /// A kind of entry that cannot be carried.
    #[error("entries of type {kind:?} are not supported")]
    UnsupportedKind {
        /// The type's letter.
        kind: char,
    },
    /// Content for something that has none.
    #[error("a {kind} with {size} bytes of content")]
    UnexpectedSize {
        /// What it is.
        kind: &'static str,
        /// Bytes.
        size: u64,
    },
    /// A sparse map that lies.
    #[error("the sparse map is wrong: {what}")]
    Sparse {
        /// In what.
        what: &'static str,
    },
    /// A sparse map beyond the limit.
    #[error("the sparse map has more than {limit} extents")]
    SparseTooLarge {
        /// The limit.
        limit: usize,
    },
    /// An extended attribute that cannot be decoded, or is there twice with different values.
    #[error("the extended attribute {name} is malformed or there twice with different values")]
    Xattr {
        /// Its name.
        name: String,
    },
    /// An access control list that is none, or disagrees with the attribute that also holds it.
    #[error("an access control list is malformed or there twice with different content")]
    Acl,
    /// An extended header without an entry, or in the wrong place.
    #[error("an extended header is followed by {followed_by}")]
    DanglingExtension {
        /// By what.
        followed_by: &'static str,
    },
    /// The same extended header twice before one entry.
    #[error("an entry has two extended headers of one kind")]
    DuplicateExtension,
    /// One zero block where the end of an archive has two.
    #[error("a single block of zeros is followed by something else")]
    LoneZeroBlock,
    /// Something after the end of the archive.
    #[error("the archive is followed by something else")]
    TrailingData,
    /// More entries than the limit.
    #[error("the archive has more than {limit} entries")]
    TooManyEntries {
        /// The limit.
        limit: u64,
    },
    /// Two entries of one name.
    #[error("the archive has an entry of this name already")]
    DuplicateEntry,
    /// It was read on after an error.
    #[error("the archive could not be read before this")]
    AfterError,
    /// The stream itself failed, or what decompresses it.
    #[error("cannot read the archive: {0}")]
    Io(io::Error),
}

impl Defect {
    pub(crate) fn at(self, offset: u64) -> ReadError {
        ReadError {
            offset,
            path: None,
            defect: self,
        }
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "archive entry {} at byte {}: ", show(path), self.offset)?,
            None => write!(f, "archive at byte {}: ", self.offset)?,
        }
        self.defect.fmt(f)
    }
}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.defect {
            Defect::Io(source) => Some(source),
            _ => None,
        }
    }
}

impl Explain for ReadError {
    fn code(&self) -> &'static str {
        self.defect.code()
    }

    fn hint(&self) -> Option<String> {
        let hint = match &self.defect {
            Defect::Checksum if self.offset == 0 => {
                "is it a tar archive, plain or compressed with gzip, bzip2, xz or zstd?"
            }
            Defect::Truncated { .. } | Defect::LoneZeroBlock | Defect::Checksum => {
                "the archive is damaged or incomplete; make or fetch it again"
            }
            Defect::UnsupportedKind { .. } => {
                "make the archive with `tar --format=pax`, without incremental mode"
            }
            Defect::TooManyEntries { .. } => "copy a part of it at a time",
            Defect::Io(source) => {
                return source
                    .get_ref()
                    .and_then(|inner| inner.downcast_ref::<CompressionError>())
                    .and_then(Explain::hint);
            }
            _ => {
                "readers of tar differ in what they make of this; make the archive again with `tar --format=pax`"
            }
        };
        Some(hint.to_owned())
    }
}

impl Defect {
    /// Stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Truncated { .. } => "archive.truncated",
            Self::Checksum => "archive.checksum",
            Self::Number { .. } => "archive.number",
            Self::NumberRange { .. } => "archive.number-range",
            Self::NulInName => "archive.nul-in-name",
            Self::NameTooLong { .. } => "archive.name-too-long",
            Self::EmptyName { .. } => "archive.empty-name",
            Self::PaxMalformed { .. } => "archive.pax-malformed",
            Self::PaxDuplicate { .. } => "archive.pax-duplicate",
            Self::PaxTooLarge { .. } => "archive.pax-too-large",
            Self::PaxGlobal { .. } => "archive.pax-global",
            Self::PaxCharset { .. } => "archive.pax-charset",
            Self::SizeDisagrees { .. } => "archive.size-disagrees",
            Self::NameDisagrees => "archive.name-disagrees",
            Self::AmbiguousKind => "archive.ambiguous-kind",
            Self::UnsupportedKind { .. } => "archive.unsupported-kind",
            Self::UnexpectedSize { .. } => "archive.unexpected-size",
            Self::Sparse { .. } => "archive.sparse",
            Self::SparseTooLarge { .. } => "archive.sparse-too-large",
            Self::Xattr { .. } => "archive.xattr",
            Self::Acl => "archive.acl",
            Self::DanglingExtension { .. } => "archive.dangling-extension",
            Self::DuplicateExtension => "archive.duplicate-extension",
            Self::LoneZeroBlock => "archive.lone-zero-block",
            Self::TrailingData => "archive.trailing-data",
            Self::TooManyEntries { .. } => "archive.too-many-entries",
            Self::DuplicateEntry => "archive.duplicate-entry",
            Self::AfterError => "archive.after-error",
            Self::Io(source) => source
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<CompressionError>())
                .map_or("archive.read-failed", Explain::code),
        }
    }
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        match error.defect {
            Defect::Io(source) => source,
            _ => Self::new(io::ErrorKind::InvalidData, error),
        }
    }
}
