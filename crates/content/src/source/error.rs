//! What can go wrong on the side that reads.

use std::io;

use tranship_core::fault::{Explain, Fault, FaultKind};

use crate::frame::FrameError;
use crate::scan::ScanError;
use crate::tree::TreeError;

/// Why a round ended without the sink being equal to the source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The element could not be read.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// The conversation broke, or its frames are not valid.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The sink's manifest is not one.
    #[error(transparent)]
    Manifest(#[from] TreeError),
    /// The sink ended the round.
    #[error("the other side gave up: {0}")]
    Peer(Box<Fault>),
    /// A message that must not come now.
    #[error("the other side sent {what} where it must not come")]
    State {
        /// Its name.
        what: &'static str,
    },
    /// No common version.
    #[error(
        "the other side speaks versions {oldest} to {newest} of the content protocol, this side does not"
    )]
    Version {
        /// Oldest version of the sink.
        oldest: u16,
        /// Newest version of the sink.
        newest: u16,
    },
    /// The sink says that it holds another tree than was sent.
    #[error("the other side holds another tree than was sent: {found} instead of {wanted}")]
    NotEqual {
        /// What it holds.
        found: crate::entry::TreeId,
        /// What it should hold.
        wanted: crate::entry::TreeId,
    },
    /// The directory for this side's records cannot be used.
    #[error("cannot write in the work directory {path}")]
    Work {
        /// The directory.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A defect of this program.
    #[error("a defect in tranship: {0}")]
    Defect(&'static str),
}

impl SourceError {
    /// The common form. A fault of the other side is passed on as it came, marked as that side's.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Peer(fault) => Fault {
                of_peer: true,
                ..(**fault).clone()
            },
            other => Fault::of(other),
        }
    }
}

impl Explain for SourceError {
    fn code(&self) -> &'static str {
        match self {
            Self::Scan(error) => error.code(),
            Self::Frame(error) => error.code(),
            Self::Manifest(error) => error.code(),
            Self::Peer(_) => "content.peer",
            Self::State { .. } => "content.bad-state",
            Self::Version { .. } => "content.version",
            Self::NotEqual { .. } => "content.not-equal",
            Self::Work { .. } => "content.work-directory",
            Self::Defect(_) => "content.defect",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Scan(error) => error.hint(),
            Self::Frame(error) => error.hint(),
            Self::Manifest(error) => error.hint(),
            Self::Peer(fault) => fault.hint.clone(),
            Self::Version { .. } => Some("use the same version of tranship on both nodes".to_owned()),
            _ => None,
        }
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::Scan(error) => error.kind(),
            Self::Peer(fault) => fault.kind,
            Self::Defect(_) => FaultKind::Bug,
            _ => FaultKind::Environment,
        }
    }
}
