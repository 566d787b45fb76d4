//! Progress in the words of the domain. The heart reports; who listens decides what a person sees.

use serde::{Deserialize, Serialize};

use crate::fault::Fault;

/// A stretch of a migration that a person would name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Both sides are asked again whether the plan still holds.
    Check,
    /// The image travels.
    Image,
    /// Networks and volumes are made at the destination.
    Prepare,
    /// The container is made at the destination.
    Create,
    /// Volumes and layer travel while the source runs.
    Bulk,
    /// The source stops.
    Freeze,
    /// What changed since the last round travels, and everything is compared.
    Delta,
    /// The destination starts.
    Start,
    /// The destination proves itself.
    Health,
    /// The source hands over.
    HandOver,
    /// Everything is put back.
    Rollback,
}

impl Phase {
    /// The word that a timeline shows.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Image => "image",
            Self::Prepare => "prepare",
            Self::Create => "create",
            Self::Bulk => "pre-copy",
            Self::Freeze => "stop source",
            Self::Delta => "final delta",
            Self::Start => "start",
            Self::Health => "health",
            Self::HandOver => "hand over",
            Self::Rollback => "roll back",
        }
    }
}

/// Something that happened in a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    /// A phase began.
    PhaseStarted {
        /// Which.
        phase: Phase,
    },
    /// Bytes moved in the present phase.
    Progress {
        /// Which.
        phase: Phase,
        /// Bytes so far.
        bytes: u64,
        /// Bytes expected, if known.
        total: Option<u64>,
    },
    /// A phase ended well.
    PhaseEnded {
        /// Which.
        phase: Phase,
        /// How long it took.
        milliseconds: u64,
        /// Bytes that it moved.
        bytes: u64,
    },
    /// Something worth a line.
    Note {
        /// The line.
        text: String,
    },
    /// Something that a person should look at.
    Warning {
        /// The line.
        text: String,
    },
    /// The migration is over.
    Finished {
        /// What failed, if it did.
        fault: Option<Fault>,
    },
}

/// Takes events. Implementations must not block.
pub trait Reporter: Send + Sync {
    /// Something happened.
    fn report(&self, event: Event);
}

/// Ignores everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Reporter for Silent {
    fn report(&self, _event: Event) {}
}
