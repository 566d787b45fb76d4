//! The port to the other side: what the source asks of the destination, in this order.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tranship_core::Fault;
use tranship_core::engine::ByteStream;
use tranship_core::storage::Pipe;

use crate::images::{Came, ImageOrigin, unsupported};
use crate::plan::Plan;
use crate::protocol::Answer;

/// What the destination holds at the beginning.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The image itself is here.
    pub image_held: bool,
    /// How many of its lowest layers are here.
    pub layers_held: usize,
}

/// What became of the container at the destination.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// Its id there.
    pub container_id: String,
    /// Whether a health check passed; `false` where it just stayed up.
    pub healthy: bool,
}

/// What a discard left.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discarded {
    /// What could not be undone, for people. Empty when nothing is left.
    pub left_behind: Vec<String>,
}

/// Where an arrival stands; what the source may rely on after a link was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArrivalState {
    /// Things arrive; nothing runs. A lost link discards it.
    Receiving,
    /// Everything is there; nothing runs. A lost link discards it.
    Prepared,
    /// The container was told to start; only the source's word ends this state in cold mode.
    Started,
    /// The container belongs to this node.
    Adopted,
    /// It is being taken away, and never runs here again.
    Discarding,
    /// Everything was undone and nothing runs.
    Discarded,
}

/// The destination of one migration. Every call may be repeated: what is done already is done well.
///
/// A [`Fault`] whose code begins with `wire.` says that the link was lost and nothing is known about the call; any other
/// fault is the destination's own answer.
#[async_trait]
pub trait Destination: Send + Sync {
    /// Begins. The destination checks the plan against what it is now.
    /// Says for each of the plan's containers what of its image is there.
    async fn open(&self, plan: &Plan) -> Result<Vec<Opened>, Fault>;
    /// Takes in the image archive of the plan's container `member`.
    async fn image(&self, member: usize, archive: ByteStream) -> Result<(), Fault>;
    /// Opens the stream on which the destination asks for layers of the image of the plan's container `member`.
    async fn image_pipe(&self, _member: usize) -> Result<Pipe, Fault> {
        Err(unsupported())
    }
    /// Lets the destination fetch the image of the plan's container `member`.
    async fn image_from(&self, _member: usize, _origin: &ImageOrigin) -> Result<Came, Fault> {
        Err(unsupported())
    }
    /// Makes networks and volumes.
    async fn prepare(&self) -> Result<(), Fault>;
    /// Makes the containers.
    async fn create(&self) -> Result<(), Fault>;
    /// Opens one round of the plan's element `index`, and is its sink at the other end of the pipe.
    async fn element(&self, index: usize) -> Result<Pipe, Fault>;
    /// Starts the container. In cold mode the source has committed before it asks for this.
    async fn start(&self) -> Result<(), Fault>;
    /// Lets containers go on that wait for their tmpfs.
    async fn go_on(&self) -> Result<(), Fault>;
    /// Waits until the container proved itself.
    async fn ready(&self) -> Result<Adopted, Fault>;
    /// The container belongs to the destination from here on.
    async fn adopt(&self) -> Result<Adopted, Fault>;
    /// Undoes everything, durably. After this the container never runs here.
    async fn discard(&self) -> Result<Discarded, Fault>;
    /// Where the arrival stands; `None` if the destination does not know it.
    async fn state(&self) -> Result<Option<ArrivalState>, Fault>;
}

/// Whether nothing is known about the call that ended with `fault`.
#[must_use]
pub fn link_lost(fault: &Fault) -> bool {
    fault.code.starts_with("wire.")
}

/// Code of the answer that says that the destination owns the container for good.
pub const ADOPTED: &str = "arrival.adopted";
/// Code of the answer that says that the destination gave everything back for good.
pub const DISCARDED: &str = "arrival.discarded";
/// Code of the answer of a destination that has no record of the migration.
pub const UNKNOWN: &str = "arrival.unknown";

/// What a destination's refusal means for who owns the container.
#[must_use]
pub fn meaning(fault: &Fault) -> Answer {
    match fault.code.as_str() {
        ADOPTED => Answer::Adopted,
        DISCARDED => Answer::Discarded,
        UNKNOWN => Answer::Unknown,
        _ => Answer::Failed,
    }
}
