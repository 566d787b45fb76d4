//! What a bed is to look like.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::paths::Dirs;

/// The container engine that runs in the nodes of a bed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// `dockerd --experimental` on its own `containerd`, API at `/run/docker.sock`.
    #[default]
    Docker,
    /// `podman system service`, API at `/run/podman/podman.sock`.
    Podman,
}

impl Engine {
    /// The name of the engine's command-line client.
    #[must_use]
    pub fn client(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }

    /// The API's socket as seen inside a node.
    #[must_use]
    pub fn socket(self) -> &'static str {
        match self {
            Self::Docker => "/run/docker.sock",
            Self::Podman => "/run/podman/podman.sock",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.client())
    }
}

impl FromStr for Engine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "docker" => Ok(Self::Docker),
            "podman" => Ok(Self::Podman),
            other => Err(format!("no engine `{other}`: docker or podman")),
        }
    }
}

/// A directory of a node that sits on a file system of its own, so that it can be filled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SmallDisk {
    /// The node's name.
    pub node: String,
    /// Where it is mounted; `/var/lib/docker` fills the engine's storage.
    pub path: PathBuf,
    /// Size of the ext4 file system, metadata included.
    pub bytes: u64,
}

/// How to bring up a bed. `Options { nodes: 3, ..Options::default() }` reads well.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many nodes, named `a`, `b`, `c` and so on; 2 unless told.
    pub nodes: usize,
    /// The engine in all nodes.
    pub engine: Engine,
    /// The bed's name; without one, a free one is chosen.
    pub name: Option<String>,
    /// Whether the bed outlives the process that makes it, until [`super::down`] takes it away.
    pub persistent: bool,
    /// Directories on small disks.
    pub disks: Vec<SmallDisk>,
    /// Nodes whose Docker keeps its images with containerd, by name; the others have Docker's classic store.
    pub containerd_stores: Vec<String>,
    /// The Debian mirror for building the root file system; without one, the host's own.
    pub mirror: Option<String>,
    /// Where things are kept on the host.
    pub dirs: Dirs,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 2,
            engine: Engine::default(),
            name: None,
            persistent: false,
            disks: Vec::new(),
            containerd_stores: Vec::new(),
            mirror: None,
            dirs: Dirs::default(),
        }
    }
}

impl Options {
    /// Lets containerd keep the images of these nodes' Docker (`containerd-snapshotter`).
    #[must_use]
    pub fn containerd_stores(mut self, nodes: &[&str]) -> Self {
        self.containerd_stores
            .extend(nodes.iter().map(|node| (*node).to_owned()));
        self
    }

    /// Puts `path` of the named node on an ext4 file system of `bytes` bytes.
    #[must_use]
    pub fn small_disk(mut self, node: &str, path: impl Into<PathBuf>, bytes: u64) -> Self {
        self.disks.push(SmallDisk {
            node: node.to_owned(),
            path: path.into(),
            bytes,
        });
        self
    }
}
