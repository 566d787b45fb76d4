//! What the user asked for, beyond which container goes where.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Which way the user asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModeRequest {
    /// Stateless where there is no state to carry; otherwise the user is asked to choose.
    #[default]
    Auto,
    /// The user vouches that the container keeps no state: it runs there before it stops here.
    Stateless,
    /// It stops here before it starts there.
    Cold,
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
    /// Milliseconds within which the container must be healthy (or just stay up) at the destination.
    #[serde(default)]
    pub health_timeout_ms: Option<u64>,
}
