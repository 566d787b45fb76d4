//! What the user asked for, beyond which container goes where.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tranship_core::storage::Compression;

use crate::images::ImageStrategy;

/// Which way the user asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModeRequest {
    /// Stateless where there is no state to carry, else live where nothing speaks against it, else cold.
    #[default]
    Auto,
    /// The user vouches that the container keeps no state: it runs there before it stops here.
    Stateless,
    /// It stops here before it starts there.
    Cold,
    /// It is paused here while the rest is carried; the program starts afresh there.
    Warm,
    /// It is paused here while the rest is carried; its processes go on there where they were.
    Live,
}

/// What becomes of the source after the hand-over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnSource {
    /// It is stopped and kept, its restart policy `no`.
    #[default]
    Stop,
    /// It is removed.
    Remove,
    /// It goes on running; stateless mode only.
    Keep,
}

/// What to do about a volume of the same name at the destination.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeConflict {
    /// The migration does not begin.
    #[default]
    Refuse,
    /// The destination's volume is used with the data that it holds; nothing is copied into it.
    Reuse,
    /// The volume comes under another name.
    Rename,
    /// The data of the destination's volume makes way; it comes back if the migration fails.
    Replace,
}

/// What becomes of established TCP connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TcpConnections {
    /// They are closed, and clients connect anew.
    #[default]
    Close,
    /// They go on. The plan refuses it: see `check/live.rs`.
    Keep,
}

impl TcpConnections {
    /// Whether they are closed, as where nobody asked.
    #[must_use]
    pub fn is_close(&self) -> bool {
        *self == Self::Close
    }
}

/// Whether the kernel is asked which pages were written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryTracking {
    /// Where it tells.
    #[default]
    Auto,
    /// Never: all of the memory is dumped each time.
    Off,
}

impl MemoryTracking {
    /// Whether nobody asked for anything else.
    #[must_use]
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookTime {
    /// At the source, right before it freezes. If it fails, nothing freezes.
    PreFreeze,
    /// At the source's host, while it is frozen. If it fails, the source goes on.
    PostFreeze,
    /// At the destination, once the container runs and before it has to prove itself. If it fails, the source goes on.
    PostStart,
    /// At the source, after it goes on because the migration was given up; undoes what `pre-freeze` did.
    Thaw,
}

impl std::fmt::Display for HookTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::PreFreeze => "pre-freeze",
            Self::PostFreeze => "post-freeze",
            Self::PostStart => "post-start",
            Self::Thaw => "thaw",
        })
    }
}

impl std::str::FromStr for HookTime {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "pre-freeze" => Ok(Self::PreFreeze),
            "post-freeze" => Ok(Self::PostFreeze),
            "post-start" => Ok(Self::PostStart),
            "thaw" => Ok(Self::Thaw),
            _ => Err(format!(
                "{text:?} is none of pre-freeze, post-freeze, post-start and thaw"
            )),
        }
    }
}

/// Where a hook runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookPlace {
    /// In the container, by its shell, as its user.
    #[default]
    Container,
    /// On the node, by its shell, as the agent's user. Only the user of tranship can ask for it, no label.
    Host,
}

/// A command of the user at a moment of the migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// When.
    pub when: HookTime,
    /// Where.
    #[serde(default, rename = "where")]
    pub place: HookPlace,
    /// What, for `sh -c`.
    pub command: String,
    /// Seconds after which it has failed.
    #[serde(default = "default_hook_timeout")]
    pub timeout: u64,
}

/// Seconds that a hook may take if nobody says otherwise.
pub(crate) fn default_hook_timeout() -> u64 {
    30
}

/// Options of one migration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveOptions {
    /// How it moves.
    #[serde(default)]
    pub mode: ModeRequest,
    /// What becomes of the source.
    #[serde(default)]
    pub on_source: OnSource,
    /// What becomes of established TCP connections.
    #[serde(default, skip_serializing_if = "TcpConnections::is_close")]
    pub tcp: TcpConnections,
    /// Whether the kernel is asked which pages were written.
    #[serde(default, skip_serializing_if = "MemoryTracking::is_auto")]
    pub memory_tracking: MemoryTracking,
    /// Another name at the destination.
    #[serde(default)]
    pub rename: Option<String>,
    /// A container of the same name at the destination makes way. It comes back if the migration fails.
    #[serde(default)]
    pub replace: bool,
    /// Ports of the host that are published elsewhere: old → new.
    #[serde(default)]
    pub publish: BTreeMap<u16, u16>,
    /// Volumes come as new and empty ones.
    #[serde(default)]
    pub without_volumes: bool,
    /// What the container wrote into its layer stays behind.
    #[serde(default)]
    pub without_layer: bool,
    /// The image's tag moves to it at the destination although another image bears it.
    #[serde(default)]
    pub retag: bool,
    /// Networks get addresses of the destination engine's choice.
    #[serde(default)]
    pub new_subnets: bool,
    /// A network of the same name at the destination is good enough although it differs.
    #[serde(default)]
    pub reuse_networks: bool,
    /// The whole image travels, layers that are there included.
    #[serde(default)]
    pub whole_image: bool,
    /// How the image gets there.
    #[serde(default, skip_serializing_if = "ImageStrategy::is_auto")]
    pub image_strategy: ImageStrategy,
    /// The registry by way of which it may get there: `[http://]HOST[:PORT][/PATH]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
    /// Milliseconds within which the container must be healthy (or just stay up) at the destination.
    #[serde(default)]
    pub health_timeout_ms: Option<u64>,
    /// Containers that share a volume with it move along.
    #[serde(default)]
    pub with_dependents: bool,
    /// Only these volumes bring their data; all of them if empty. Names, or paths in the container.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// These volumes come empty. Names, or paths in the container.
    #[serde(default)]
    pub exclude_volumes: Vec<String>,
    /// Patterns of paths that stay behind, in every volume and in the layer.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Bind mounts whose data comes along, by their path in the container or on the host.
    #[serde(default)]
    pub include_bind: Vec<String>,
    /// Bind mounts for which the destination has the right thing at the same path already.
    #[serde(default)]
    pub shared_bind: Vec<String>,
    /// tmpfs whose content comes along, by their path in the container.
    #[serde(default)]
    pub include_tmpfs: Vec<String>,
    /// What to do about volumes of the same name.
    #[serde(default)]
    pub volume_conflict: VolumeConflict,
    /// The source does not freeze before a freeze is expected to last at most this many milliseconds.
    #[serde(default)]
    pub max_downtime_ms: Option<u64>,
    /// Rounds of copying while the source runs, at most.
    #[serde(default)]
    pub rounds: Option<u32>,
    /// Compression of data on the wire.
    #[serde(default)]
    pub compression: Compression,
    /// Bytes per second on the wire, at most.
    #[serde(default)]
    pub limit_rate: Option<u64>,
    /// Commands of the user, in the order in which they run at their time.
    #[serde(default)]
    pub hooks: Vec<Hook>,
}

impl MoveOptions {
    /// Whether layers travel that are there already.
    #[must_use]
    pub fn sends_whole_image(&self) -> bool {
        self.whole_image || self.image_strategy == ImageStrategy::Simple
    }
}
