//! The memory of running containers: what a node must have so that it can be dumped and restored, and what of one container stands in
//! the way.

use serde::{Deserialize, Serialize};

/// Something that keeps a container, or its memory, from travelling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obstacle {
    /// Stable code such as `live.terminal`.
    pub code: String,
    /// What it is.
    pub message: String,
    /// What can be done about it; empty if nothing.
    #[serde(default)]
    pub remedy: String,
}

impl Obstacle {
    /// An obstacle with what can be done about it.
    pub fn new(code: &str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            remedy: remedy.into(),
        }
    }
}

/// What a node says about dumping and restoring memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveFacts {
    /// Version of CRIU, such as `4.2.1`; empty if there is none.
    #[serde(default)]
    pub criu: String,
    /// Features of the processor, as the kernel names them, sorted.
    #[serde(default)]
    pub cpu_features: Vec<String>,
    /// Bytes of memory that are available without swapping, as the kernel estimates it.
    #[serde(default)]
    pub free_memory: u64,
    /// Locks on files come back with a restore here, because the runtime's configuration of CRIU says so.
    #[serde(default)]
    pub restores_locks: bool,
    /// What keeps this node from it.
    #[serde(default)]
    pub obstacles: Vec<Obstacle>,
}

/// What a node says about the memory of one of its running containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// Bytes that its processes use, caches of files left out.
    pub bytes: u64,
    /// Its processes hold locks on files.
    #[serde(default)]
    pub locks: bool,
    /// Established TCP connections.
    #[serde(default)]
    pub connections: u64,
    /// What of it keeps its memory from travelling.
    #[serde(default)]
    pub obstacles: Vec<Obstacle>,
}
