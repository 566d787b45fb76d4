//! What travels between the binary and an agent, and between two agents. Paths and bodies of the HTTP/2 API.
//!
//! | method and path | who | what |
//! |---|---|---|
//! | `GET /v1/hello` | caller | [`Hello`]: versions, capabilities |
//! | `GET /v1/node` | caller | facts about node and engine |
//! | `GET /v1/containers/NAME` | caller | a container, for a plan |
//! | `HEAD`, `GET`, `PUT /v1/containers/NAME/archive?path=` | caller | files in and out, see [`crate::files::PathRequest`]; `GET` with `stat=true` tells what is there, with `glob=true` which paths a pattern matches |
//! | `POST /v1/containers/NAME/archive?path=&index=true` | caller | names of files → what is there of them, see [`crate::files::delta`] |
//! | `POST /v1/containers/NAME/archive?path=` | caller | such an index → an archive without what it has |
//! | `HEAD`, `GET`, `PUT`, `POST /v1/volumes/NAME/files?path=` | caller | the same for a volume |
//! | `HEAD`, `GET`, `PUT /v1/elements/STORE/ID/archive` | caller | one storage element (`volume/NAME`, `layer/CONTAINER`, `bind/PATH`, `tmpfs/CONTAINER:PATH`), by a [`tranship_archive::filter::FilterSpec`] in the query; `headers-only=true` and `ancestor=…` beside it, see `docs/cp.md` |
//! | `POST /v1/files/ID/receive` | caller | [`ReceiveFiles`] → [`Expected`]: opens the way in for files of another agent |
//! | `POST /v1/files/ID/send` | caller | [`SendFiles`] → server-sent [`FilesEvent`]s: packs files and sends them to another agent |
//! | `POST /v1/files/ID/here` | caller | [`CopyHere`] → server-sent [`FilesEvent`]s: copies between a container or volume and the caller's own machine |
//! | `POST /v1/files/ID/forget` | caller | closes that way in, if nobody came, and breaks off what is sent from here |
//! | `GET /v1/images` | caller | all images, as [`tranship_core::ImageSpec`] |
//! | `POST /v1/images/find` | caller | a tag, digest or id → [`crate::images::FoundImage`] or nothing |
//! | `POST /v1/images/held` | caller | layers → how many of the lowest are here |
//! | `POST /v1/images/export` | caller | [`crate::images::ExportImage`] → an archive without the lowest layers |
//! | `PUT /v1/images/import` | caller | such an archive |
//! | `POST /v1/images/settle` | caller | [`crate::images::SettleImage`]: looks at what came, and tags it |
//! | `POST /v1/images/serve` | caller | [`crate::images::ways::ServeImage`]: answers, as a registry of one image, on a stream that came by `/v1/relay/ID` |
//! | `POST /v1/images/push` | caller | [`crate::images::ways::PushImage`] → [`crate::images::ways::PushedImage`]: to a registry |
//! | `POST /v1/images/fetch` | caller | [`crate::images::ways::FetchImage`]: from such a stream, whose other end serves, or from a registry |
//! | `POST /v1/survey` | caller | what if these containers came to you? |
//! | `POST /v1/arrivals` | caller | [`Expect`] → [`Expected`]: open the direct path for one migration |
//! | `POST /v1/reach` | caller | [`Reach`] → [`Reached`]: can the direct path be dialled from here? |
//! | `POST /v1/relay/ID` | caller | a stream to the other agent, carried by the caller (full duplex); taken by the request that names it |
//! | `POST /v1/departures` | caller | [`Depart`]: begin |
//! | `GET /v1/migrations[/ID]` | caller | [`MigrationView`]s |
//! | `GET /v1/migrations/ID/events` | caller | server-sent [`tranship_core::Event`]s, from the beginning |
//! | `POST /v1/migrations/ID/abort` | caller | end it in order |
//! | `POST /v1/migrations/ID/rollback` | caller | take it back, also after the commit |
//! | `POST /v1/migrations/ID/resolve` | caller | [`Resolve`]: a person decides who owns the container |
//! | `GET /v1/migrations/ID/log` | caller | what happened here, as text |
//! | `GET /v1/containers/NAME/migration` | caller | [`Leaving`], if the container is on its way |
//! | `GET /v1/volumes` | caller | [`VolumeInfo`]s |
//! | `POST /v1/copies/ID/receive`, `…/complete`, `…/give-up` | caller | [`ReceiveCopy`]: at the destination of a copy |
//! | `POST /v1/copies/ID/send` | caller | [`SendCopy`] → server-sent [`CopyEvent`]s |
//! | `POST /v1/snapshots`, `…/remove` | caller | [`TakeSnapshot`] → server-sent [`CopyEvent`]s |
//! | `GET /v1/volumes/NAME/manifest` | caller | the tree of a volume or (`NAME@TIME`) snapshot, as in `docs/tree-format.md` |
//! | `GET /v1/volumes/NAME/archive` | caller | a volume or (`NAME@TIME`) snapshot as a tar archive |
//! | `PUT /v1/volumes/NAME/archive` | caller | a tar archive becomes a volume, described in [`VOLUME_HEADER`] |
//! | `GET /v1/checkpoints` | caller | [`crate::checkpoints::CheckpointInfo`]s |
//! | `POST /v1/checkpoints/create` | caller | [`crate::checkpoints::CreateCheckpoint`] → [`crate::checkpoints::CheckpointCreated`] |
//! | `POST /v1/checkpoints/restore` | caller | [`crate::checkpoints::RestoreCheckpoint`] → [`crate::checkpoints::CheckpointRestored`] |
//! | `POST /v1/checkpoints/export` | caller | [`crate::checkpoints::ExportCheckpoint`] → an archive, or an image with it, as in `docs/checkpoint-archive.md` |
//! | `PUT /v1/checkpoints/import/CONTAINER[/NAME]` | caller | such an archive → [`crate::checkpoints::CheckpointInfo`] |
//! | `DELETE /v1/checkpoints/CONTAINER/NAME` | caller | removes it for good |
//! | `POST /v1/retire` | caller | end the agent if it has nothing to do |
//! | `POST /v1/peer/STEP` | the source's agent | the steps of [`tranship_migrate::Destination`] |
//! | `POST /v1/peer/image/N/pipe` | the source's agent | the stream on which the source is a registry of one image (HTTP/2 the other way round) |
//! | `POST /v1/peer/image/N/from` | the source's agent | fetch the image: from that stream, or from a registry |
//! | `POST /v1/peer/files` | the source's agent | the archive that [`ReceiveFiles`] announced |
//! | `POST /v1/peer/copy` | the source's agent | one round of a copy (full duplex) |
//! | `POST /v1/peer/element/N` | the source's agent | one round of an element (full duplex; `…/open` asks first) |

use serde::{Deserialize, Serialize};
use tranship_core::MigrationId;
use tranship_core::node::ElementSize;
use tranship_core::storage::{ElementPlace, RoundReport, SyncOptions, VolumeSpec};
use tranship_migrate::destination::ArrivalState;
use tranship_migrate::protocol::Owner;
use tranship_migrate::record::{DepartureState, PhaseRecord, RoundRecord};
use tranship_migrate::{MoveOptions, Plan};
use tranship_wire::Fingerprint;
use tranship_wire::tls::PeerOffer;

use crate::files::machine::View;
use crate::files::{Holder, Unpacked};

/// Oldest version of the protocol that this build speaks.
pub const PROTOCOL_MIN: u32 = 1;
/// Newest version of the protocol that this build speaks.
pub const PROTOCOL_MAX: u32 = 1;

/// An agent's first words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of tranship.
    pub version: String,
    /// Oldest protocol spoken.
    pub protocol_min: u32,
    /// Newest protocol spoken.
    pub protocol_max: u32,
    /// Hash of the binary.
    pub build: String,
    /// What it can do, by name.
    pub capabilities: Vec<String>,
    /// Process id.
    pub pid: u32,
    /// Random text of this run of the agent: two addresses that give the same lead to the same agent.
    pub instance: String,
    /// Migrations under way.
    pub busy: usize,
    /// The throw-away certificate by which other agents know it.
    pub fingerprint: Fingerprint,
}

/// Tells a destination that a migration is to come.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Expect {
    /// The migration.
    pub id: MigrationId,
    /// The certificate of the source's agent, the only one that is let in.
    pub source: Fingerprint,
}

/// How the source may reach this agent directly.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Expected {
    /// Addresses, fingerprint and token of a listener that lives as long as the migration.
    pub offer: PeerOffer,
}

/// Asks a source whether it can dial an offer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reach {
    /// The destination's offer.
    pub offer: PeerOffer,
}

/// The answer to [`Reach`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reached {
    /// The address that answered.
    pub address: String,
}

/// How the source's agent reaches the destination's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Route {
    /// A TLS connection of its own.
    Direct(Box<PeerOffer>),
    /// A stream that the caller carries.
    Relay,
}

/// Begins a migration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Depart {
    /// What was planned.
    pub plan: Plan,
    /// The way to the destination.
    pub route: Route,
}

/// Tells a destination which volume a copy fills.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiveCopy {
    /// The volume, as it is to be made where it is missing.
    pub volume: VolumeSpec,
    /// One that is there may be changed: what it holds becomes equal to the source.
    pub update: bool,
}

/// Tells a source to send a volume, or a snapshot of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendCopy {
    /// Name of the volume.
    pub volume: String,
    /// The snapshot in place of the volume's present content, by its time.
    #[serde(default)]
    pub snapshot: Option<u64>,
    /// Where the snapshot is; the agent fills it in.
    #[serde(skip)]
    pub place: Option<ElementPlace>,
    /// How it is read.
    pub options: SyncOptions,
    /// Containers that use it are paused for the last round.
    pub freeze: bool,
    /// Name of the destination, for messages.
    pub destination: String,
    /// The way there.
    pub route: Route,
}

/// Tells a destination which files another agent may unpack there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiveFiles {
    /// The certificate of the source's agent, the only one that is let in.
    pub source: Fingerprint,
    /// Whose files they become.
    pub holder: Holder,
    /// Where and how, as [`crate::files::PathRequest::to_query`] writes it.
    pub request: String,
}

/// Tells a source to pack files and send them on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendFiles {
    /// Whose files.
    pub holder: Holder,
    /// Which and how, as [`crate::files::PathRequest::to_query`] writes it.
    pub request: String,
    /// The way to their destination.
    pub route: FilesRoute,
}

/// Tells an agent to copy between a container or volume and the files of the machine, as the caller sees them, which runs on the
/// same machine and as root like the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyHere {
    /// What the caller sees: the agent copies only if it sees the same of it, and may do the same.
    pub caller: View,
    /// Whose files, of the two ends that is not the machine.
    pub holder: Holder,
    /// They are the ones that are written.
    pub into: bool,
    /// What is read, as [`crate::files::PathRequest::to_query`] writes it. The machine's paths lead to no magic link (`/proc/self`).
    pub reading: String,
    /// Where it is written.
    pub writing: String,
}

/// How files reach their destination without their caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FilesRoute {
    /// A TLS connection to another agent.
    Direct(Box<PeerOffer>),
    /// They are unpacked by the same agent.
    Here(Box<ReceiveFiles>),
}

/// How sending files goes. A fault in its place is the source's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum FilesEvent {
    /// The other agent was reached. A fault before this one means that no byte was packed.
    Connected {
        /// Where.
        address: String,
    },
    /// Under way.
    Progress {
        /// Bytes of the archive that went out.
        bytes: u64,
    },
    /// The destination failed.
    Refused {
        /// Why.
        fault: Box<tranship_core::Fault>,
    },
    /// Everything is there.
    Done {
        /// What was unpacked.
        unpacked: Unpacked,
    },
}

/// The header in which the attributes of a volume come that an archive becomes, as JSON in ASCII.
pub const VOLUME_HEADER: &str = "tranship-volume";

/// Asks for a snapshot of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeSnapshot {
    /// Name of the volume.
    pub volume: String,
    /// Containers that use it are paused for the last round.
    pub freeze: bool,
    /// Patterns of paths that are left out.
    pub exclude: Vec<String>,
}

/// What was kept of a volume at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// The volume's name when it was taken.
    pub volume: String,
    /// The volume's GUID.
    pub guid: String,
    /// When it was taken, in milliseconds since 1970. With the GUID it names the snapshot.
    pub timestamp: u64,
    /// Id of its tree.
    pub tree: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// Its entries.
    pub entries: u64,
}

/// A volume in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// The volume.
    #[serde(flatten)]
    pub spec: VolumeSpec,
    /// How much it holds, where a quick look tells.
    pub size: Option<ElementSize>,
    /// What was kept of it, oldest first.
    pub snapshots: Vec<SnapshotInfo>,
}

/// How far a copy is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum CopyEvent {
    /// Under way.
    Progress {
        /// Bytes of content looked at.
        bytes: u64,
        /// Entries looked at.
        entries: u64,
        /// Bytes on the wire.
        wire_bytes: u64,
    },
    /// It arrived.
    Done {
        /// Its rounds.
        rounds: Vec<RoundReport>,
        /// When the snapshot was begun, in milliseconds since 1970, if it is one.
        #[serde(default)]
        snapshot: Option<u64>,
    },
}

/// A person's word about who owns a container.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Resolve {
    /// Who owns it.
    pub owner: Owner,
}

/// A migration under way that takes a container away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// The migration.
    pub id: MigrationId,
    /// Where it goes, as its caller named it.
    pub destination: String,
    /// The options that it was begun with.
    pub options: MoveOptions,
}

/// Which end of a migration an agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The container leaves from here.
    Source,
    /// The container comes here.
    Destination,
}

/// A migration as one of its agents sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationView {
    /// The migration.
    pub id: MigrationId,
    /// Which end this agent is.
    pub role: Role,
    /// Name of the container at the source.
    pub container: String,
    /// The source, as the caller named it.
    pub source: String,
    /// The destination, as the caller named it.
    pub destination: String,
    /// `stateless`, `cold`, `warm` or `live`.
    pub mode: String,
    /// Why `auto` took it, if that chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode_reason: Option<String>,
    /// The state in the words of the user.
    pub status: String,
    /// State at the source, if this is the source.
    pub departure: Option<DepartureState>,
    /// State at the destination, if this is the destination.
    pub arrival: Option<ArrivalState>,
    /// Milliseconds since 1970 when it began.
    pub begun_at_ms: u64,
    /// Milliseconds from beginning to end, 0 while under way.
    pub total_ms: u64,
    /// Milliseconds of downtime, if there was any.
    pub downtime_ms: Option<u64>,
    /// Bytes of image and data that travelled.
    pub bytes_sent: u64,
    /// The rounds of copying.
    #[serde(default)]
    pub rounds: Vec<RoundRecord>,
    /// Milliseconds of downtime that were expected right before the freeze.
    #[serde(default)]
    pub predicted_downtime_ms: Option<u64>,
    /// Bytes of the whole image.
    pub image_bytes: u64,
    /// Timeline.
    pub phases: Vec<PhaseRecord>,
    /// The container's id at the destination.
    pub destination_container: Option<String>,
    /// A health check passed at the destination.
    pub proved_healthy: bool,
    /// What failed.
    pub fault: Option<tranship_core::Fault>,
    /// What could not be undone here.
    pub left_behind: Vec<String>,
}
