//! What a node says about itself, and what it says when asked about containers that want to come.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::container::{ContainerSpec, ContainerSummary};
use crate::memory::{LiveFacts, MemoryReport};
use crate::network::NetworkSpec;
use crate::storage::{VolumeSpec, VolumeUser};

/// Facts about an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFacts {
    /// `docker` or `podman`.
    pub kind: String,
    /// Version of the engine.
    pub version: String,
    /// Version of its API, as `1.45`.
    pub api_version: String,
    /// Operating system in Go's names.
    pub os: String,
    /// Processor architecture in Go's names.
    pub architecture: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Number of processors.
    pub cpus: u64,
    /// Memory in bytes.
    pub memory: u64,
    /// `overlay2`, `vfs` …
    pub storage_driver: String,
    /// The image store: Docker's own or containerd's.
    pub image_store: ImageStore,
    /// Directory of the engine's data.
    pub root_directory: String,
    /// `1` or `2`.
    pub cgroup_version: String,
    /// Names of OCI runtimes.
    pub runtimes: Vec<String>,
    /// Names of log drivers.
    pub log_drivers: Vec<String>,
    /// Names of network drivers.
    pub network_drivers: Vec<String>,
    /// Names of volume drivers.
    pub volume_drivers: Vec<String>,
    /// Security options in force, such as `name=seccomp,profile=builtin`.
    pub security_options: Vec<String>,
    /// The engine runs without root.
    pub rootless: bool,
    /// Experimental features (checkpoints) are switched on.
    pub experimental: bool,
    /// The engine keeps its images with a containerd that answers here, and whose files are seen from here.
    #[serde(default)]
    pub containerd_seen: bool,
    /// The root directory of that containerd: it has the images and the layers of containers. Empty where it is not seen.
    #[serde(default)]
    pub containerd_root: String,
}

/// Who keeps the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageStore {
    /// Docker's classic store: the image id is the digest of the configuration.
    Classic,
    /// containerd's content store: the image id is the digest of a manifest.
    Containerd,
    /// Podman's store.
    Podman,
}

/// Facts about a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Host name.
    pub host_name: String,
    /// Version of tranship there.
    pub tranship_version: String,
    /// User id of the agent.
    pub user_id: u32,
    /// Milliseconds since 1970 on its clock.
    pub clock_ms: u64,
    /// The engine.
    pub engine: EngineFacts,
    /// Bytes free for the engine's data, where the agent could look.
    pub free_bytes: Option<u64>,
    /// Inodes free for the engine's data, where the agent could look.
    pub free_inodes: Option<u64>,
    /// The agent reads layers straight from the engine's storage.
    pub direct_layers: bool,
    /// The agent reads and writes the files of storage elements itself, not through the engine.
    #[serde(default)]
    pub direct_files: bool,
    /// Addresses of its interfaces.
    pub addresses: Vec<IpAddr>,
    /// What the agent can't do here and why, for people.
    pub limits: Vec<String>,
    /// Whether memory can be dumped and restored here.
    #[serde(default)]
    pub live: LiveFacts,
}

/// A port that something listens on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortInUse {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Address, unspecified for all.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Name of the container that publishes it, if it is one.
    pub container: Option<String>,
}

/// A node's answer to: what if these containers came to you?
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Survey {
    /// The node.
    pub node: NodeFacts,
    /// Its containers, by which names and ports are taken.
    pub containers: Vec<ContainerSummary>,
    /// All its networks.
    pub networks: Vec<NetworkSpec>,
    /// Names of all its volumes.
    pub volumes: Vec<String>,
    /// All its volumes with their attributes.
    #[serde(default)]
    pub volume_specs: Vec<VolumeSpec>,
    /// Ports in use on the host, by containers or others.
    pub ports: Vec<PortInUse>,
    /// For each container asked about, in the same order.
    pub arrivals: Vec<ArrivalFacts>,
}

/// What a node found about one container that wants to come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrivalFacts {
    /// How many of the image's lowest layers it holds.
    pub layers_held: usize,
    /// The image itself is here.
    pub image_held: bool,
    /// Id of the image that bears the container's tag here, if one does.
    pub tag_points_at: Option<String>,
    /// Devices that don't exist here.
    pub missing_devices: Vec<String>,
    /// Sources of bind mounts that don't exist here.
    pub missing_bind_sources: Vec<String>,
    /// Sources of bind mounts that are here and hold something.
    #[serde(default)]
    pub filled_bind_sources: Vec<String>,
    /// Who mounts the sources of bind mounts here, by source.
    #[serde(default)]
    pub bind_users: BTreeMap<String, Vec<VolumeUser>>,
}

/// The question that a [`Survey`] answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SurveyRequest {
    /// The containers that want to come.
    pub containers: Vec<ContainerSpec>,
}

/// How much a storage element holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElementSize {
    /// Bytes of its files.
    pub bytes: u64,
    /// Number of entries.
    pub entries: u64,
}

/// A node's answer to: tell me about this container of yours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerReport {
    /// The container.
    pub spec: ContainerSpec,
    /// What it wrote into its layer.
    pub changes: crate::container::LayerChanges,
    /// For each number of skipped lowest layers the bytes of the image archive, where the node can tell beforehand:
    /// `archive_bytes[n]` for `n` layers skipped.
    pub archive_bytes: Vec<u64>,
    /// The volumes that it mounts, with everybody else who mounts them.
    #[serde(default)]
    pub volumes: Vec<VolumeSpec>,
    /// Bytes and files of its storage elements where the node could look, by path in the container; `/` is its layer.
    #[serde(default)]
    pub sizes: BTreeMap<String, ElementSize>,
    /// Sources of its bind mounts that are no directories.
    #[serde(default)]
    pub bind_files: Vec<String>,
    /// Who else mounts the sources of its bind mounts, by source.
    #[serde(default)]
    pub bind_users: BTreeMap<String, Vec<VolumeUser>>,
    /// File systems that are mounted below its volumes and bind mounts, by path in the container: paths below that.
    #[serde(default)]
    pub mounted_below: BTreeMap<String, Vec<String>>,
    /// Its memory, if it runs and the node can look.
    #[serde(default)]
    pub memory: Option<MemoryReport>,
    /// Other notes for the plan, by code.
    #[serde(default)]
    pub notes: BTreeMap<String, String>,
}
