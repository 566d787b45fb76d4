//! What must survive a crash: one record per migration and side, saved before each step that it describes.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tranship_core::container::RestartPolicy;
use tranship_core::event::Phase;
use tranship_core::storage::ElementAt;
use tranship_core::{ContainerId, Fault, MigrationId};

use crate::destination::ArrivalState;
use crate::plan::Plan;

/// One stretch of the timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseRecord {
    /// Which.
    pub phase: Phase,
    /// Milliseconds from the migration's beginning to its own.
    pub begun_ms: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// Bytes that it moved.
    pub bytes: u64,
}

/// One round over the elements.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundRecord {
    /// The source stood still.
    pub frozen: bool,
    /// Entries of all elements.
    pub entries: u64,
    /// Bytes of all elements.
    pub bytes: u64,
    /// Entries that were new, different or gone.
    pub changed_entries: u64,
    /// Bytes of content that the destination did not hold.
    pub literal_bytes: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// Where a migration stands at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DepartureState {
    /// Nothing of the source was touched.
    Preparing,
    /// The source may be stopped; it is still the owner.
    Frozen,
    /// Ownership has passed, unless the destination gives it back.
    Committed,
    /// The destination gave it back, for good; the source may be stopped still.
    Returning,
    /// The destination adopted the container; what is left here is not released yet.
    HandedOver,
    /// The destination serves and the source is released.
    Complete,
    /// Everything was put back.
    RolledBack,
    /// It is not known what the destination did.
    InDoubt,
    /// Nothing runs at the destination, and the source could not be started again. The agent tries once more when it
    /// starts.
    NotResumed,
}

impl DepartureRecord {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(plan: Plan, begun_at_ms: u64) -> Self {
        Self {
            plan,
            state: DepartureState::Preparing,
            begun_at_ms,
            phases: Vec::new(),
            bytes_sent: 0,
            rounds: Vec::new(),
            predicted_downtime_ms: None,
            hooked: false,
            ended_from_dump: false,
            ended_members: BTreeSet::new(),
            memory_sent: false,
            downtime_ms: None,
            total_ms: 0,
            destination_container: None,
            proved_healthy: false,
            fault: None,
        }
    }
}

impl DepartureState {
    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Complete | Self::RolledBack)
    }

    /// The word for people, as in `design.md`: issued, in-progress, complete, failed, in-doubt.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Preparing | Self::Frozen | Self::Committed | Self::Returning | Self::HandedOver => {
                "in-progress"
            }
            Self::Complete => "complete",
            Self::RolledBack => "failed (rolled back)",
            Self::InDoubt => "in-doubt",
            Self::NotResumed => "in-doubt (the source is stopped)",
        }
    }
}

/// The source's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DepartureRecord {
    /// What was planned.
    pub plan: Plan,
    /// Where it stands.
    pub state: DepartureState,
    /// When it began, milliseconds since 1970; for people only.
    pub begun_at_ms: u64,
    /// The timeline.
    pub phases: Vec<PhaseRecord>,
    /// Bytes of image and data that travelled.
    pub bytes_sent: u64,
    /// The rounds of copying, the one in the freeze last.
    #[serde(default)]
    pub rounds: Vec<RoundRecord>,
    /// Milliseconds of downtime that were expected right before the freeze.
    #[serde(default)]
    pub predicted_downtime_ms: Option<u64>,
    /// A pre-freeze hook was run, so that going back has to run the thaw hooks.
    #[serde(default)]
    pub hooked: bool,
    /// What earlier versions wrote in place of `ended_members`: all of them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended_from_dump: bool,
    /// Members that stood still in live mode until they were about to be ended: their last dump is what they go on from.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub ended_members: BTreeSet<usize>,
    /// What the containers hold in a tmpfs is at the destination: it is not sent again, and may be gone here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub memory_sent: bool,
    /// Milliseconds during which nobody served, if the source was stopped.
    pub downtime_ms: Option<u64>,
    /// Milliseconds from beginning to end.
    pub total_ms: u64,
    /// The container's id at the destination.
    pub destination_container: Option<String>,
    /// A health check passed there.
    pub proved_healthy: bool,
    /// What failed.
    pub fault: Option<Fault>,
}

/// One thing that an arrival changed, and how it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "undo")]
pub enum Undo {
    /// The image came; take it away.
    Image {
        /// Its id.
        id: String,
    },
    /// The tag was set; take it off, or give it back to whom it belonged.
    Tag {
        /// The tag.
        tag: String,
        /// The image that bore it before.
        previous: Option<String>,
    },
    /// A network was about to be made; remove it.
    Network {
        /// Its name.
        name: String,
        /// Its id, once known.
        id: Option<String>,
    },
    /// A volume comes with the migration; remove it. What arrived in it is kept for a while where it has a GUID, so that the
    /// next try need not send it again.
    Volume {
        /// Its name.
        name: String,
        /// Its GUID, empty if it has none or brings no data.
        #[serde(default)]
        guid: String,
    },
    /// What an element of the destination held made way; put it back.
    Aside {
        /// The element.
        at: ElementAt,
        /// The key under which it is kept.
        key: String,
    },
    /// A directory of the host was made; remove it.
    Directory {
        /// Its path.
        path: String,
    },
    /// A container of the same name made way; put it back.
    SetAside {
        /// The container.
        id: ContainerId,
        /// Its name.
        name: String,
        /// It ran.
        was_running: bool,
        /// Its restart policy.
        policy: RestartPolicy,
    },
    /// The container was about to be made; remove it.
    Container {
        /// Its name.
        name: String,
        /// Its id, once known.
        id: Option<ContainerId>,
    },
}

/// The destination's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArrivalRecord {
    /// What was planned.
    pub plan: Plan,
    /// Where it stands.
    pub state: ArrivalState,
    /// When it began, milliseconds since 1970; for people only.
    pub begun_at_ms: u64,
    /// What to undo, oldest first.
    pub undo: Vec<Undo>,
    /// The containers that are made, by their place in the plan.
    #[serde(default)]
    pub containers: BTreeMap<usize, ContainerId>,
    /// Those that waited for a tmpfs were told to go on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub went_on: bool,
    /// What could not be undone.
    pub left_behind: Vec<String>,
}

/// Why a record could not be kept.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the record of migration {id} could not be written to {path}: {reason}")]
pub struct RecordError {
    /// The migration.
    pub id: MigrationId,
    /// The file.
    pub path: String,
    /// Why.
    pub reason: String,
}

impl tranship_core::fault::Explain for RecordError {
    fn code(&self) -> &'static str {
        "record.write"
    }
    fn hint(&self) -> Option<String> {
        Some("the agent's state directory needs space and write permission".into())
    }
}

/// Keeps records so that they survive a crash of the process and of the machine.
#[async_trait]
pub trait Records: Send + Sync {
    /// Saves the source's record, durably, in place of the one before.
    async fn save_departure(&self, record: &DepartureRecord) -> Result<(), RecordError>;
    /// Shows a record that could not be saved to whoever asks.
    fn show_departure(&self, _record: &DepartureRecord) {}
    /// Saves the destination's record, durably, in place of the one before.
    async fn save_arrival(&self, record: &ArrivalRecord) -> Result<(), RecordError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_called_by_what_a_person_has_to_know() {
        for (state, label, over) in [
            (DepartureState::Preparing, "in-progress", false),
            (DepartureState::Frozen, "in-progress", false),
            (DepartureState::Committed, "in-progress", false),
            (DepartureState::Returning, "in-progress", false),
            (DepartureState::HandedOver, "in-progress", false),
            (DepartureState::Complete, "complete", true),
            (DepartureState::RolledBack, "failed (rolled back)", true),
            (DepartureState::InDoubt, "in-doubt", false),
            (
                DepartureState::NotResumed,
                "in-doubt (the source is stopped)",
                false,
            ),
        ] {
            assert_eq!((state.label(), state.is_over()), (label, over), "{state:?}");
        }
    }

    #[test]
    fn a_record_that_cannot_be_written_is_explained() {
        use tranship_core::fault::Explain as _;
        let error = RecordError {
            id: MigrationId::new("m1").unwrap(),
            path: "/x".into(),
            reason: "full".into(),
        };
        assert_eq!(error.code(), "record.write");
        assert!(error.hint().is_some_and(|hint| hint.contains("space")));
        assert_eq!(Fault::from(error).code, "record.write");
    }
}
