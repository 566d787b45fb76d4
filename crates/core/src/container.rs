//! A container as tranship sees it: the engine's own document, untouched, and a typed view of what plans need.
//!
//! The document is what makes the container again at the destination, so that an option which this version of tranship
//! does not know still travels. The typed view only ever decides, explains and compares.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::ContainerId;
use crate::image::ImageSpec;
use crate::memory::Obstacle;
use crate::network::NetworkSpec;

/// Everything that makes one container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The engine's id.
    pub id: ContainerId,
    /// Name without the leading slash.
    pub name: String,
    /// What it does now.
    pub status: ContainerStatus,
    /// The image that it was made from.
    pub image: ImageSpec,
    /// How its maker named the image: a tag, a digest or an id.
    pub image_reference: String,
    /// User's and image's labels.
    pub labels: BTreeMap<String, String>,
    /// The engine removes it as soon as it stops (`--rm`).
    pub auto_remove: bool,
    /// What the engine does when it ends or the host boots.
    pub restart_policy: RestartPolicy,
    /// How its health is tested, if it is.
    pub health_check: Option<HealthCheck>,
    /// Seconds between the stop signal and the kill, if not the engine's default.
    pub stop_timeout: Option<i64>,
    /// Ports that the host publishes for it.
    pub ports: Vec<PublishedPort>,
    /// Host name that the user chose, `None` where the engine made it up.
    #[serde(default)]
    pub host_name: Option<String>,
    /// `NetworkMode` in the engine's words, ids replaced by names.
    pub network_mode: String,
    /// Its place in each of its networks.
    pub attachments: Vec<NetworkAttachment>,
    /// The user-defined networks among them.
    pub networks: Vec<NetworkSpec>,
    /// Volumes, bind mounts and tmpfs.
    pub mounts: Vec<MountSpec>,
    /// What ties it to this host or to other containers.
    pub ties: Ties,
    /// The engine's own `inspect` document.
    pub document: Value,
}

/// What a container does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// State in words.
    pub state: ContainerState,
    /// Result of its health check, if it has one.
    pub health: Health,
    /// When it was started last, as the engine writes it. Together with the id it tells one run from another.
    pub started_at: String,
    /// Exit code of the last run.
    pub exit_code: i64,
    /// Reason of the last failed start, empty if none.
    pub error: String,
    /// Killed for lack of memory.
    pub oom_killed: bool,
    /// How often the engine restarted it by policy.
    pub restart_count: u64,
}

/// State of a container in Docker's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerState {
    /// Never started.
    Created,
    /// Its process runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// The engine is about to start it again.
    Restarting,
    /// The engine is taking it away.
    Removing,
    /// It ended.
    Exited,
    /// The engine gave up on it.
    Dead,
}

impl std::fmt::Display for ContainerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Removing => "removing",
            Self::Exited => "exited",
            Self::Dead => "dead",
        })
    }
}

/// Result of a health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// No health check is defined.
    None,
    /// Not known yet.
    Starting,
    /// The last check passed.
    Healthy,
    /// Too many checks in a row failed.
    Unhealthy,
}

/// When the engine starts the container by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// `no`, `always`, `unless-stopped` or `on-failure`.
    pub name: String,
    /// Limit for `on-failure`, 0 for none.
    pub maximum_retries: i64,
}

impl RestartPolicy {
    /// The policy that never starts a container.
    #[must_use]
    pub fn never() -> Self {
        Self {
            name: "no".into(),
            maximum_retries: 0,
        }
    }

    /// Whether this is the policy that never starts a container.
    #[must_use]
    pub fn is_never(&self) -> bool {
        self.name.is_empty() || self.name == "no"
    }
}

/// Times of a health check in milliseconds, the engine's defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// Between two checks.
    pub interval_ms: u64,
    /// For one check.
    pub timeout_ms: u64,
    /// During which failures do not count.
    pub start_period_ms: u64,
    /// Failures in a row that make it unhealthy.
    pub retries: u64,
}

/// One port of the host that leads to the container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Port inside.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Address of the host, `None` for all.
    pub host_address: Option<IpAddr>,
    /// Port of the host, `None` where the engine chooses.
    pub host_port: Option<u16>,
}

/// A container's place in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAttachment {
    /// Name of the network.
    pub network: String,
    /// Further names in this network.
    pub aliases: Vec<String>,
    /// Addresses that the user fixed.
    pub fixed_addresses: Vec<IpAddr>,
    /// Hardware address that the user fixed, as far as the engine tells it from one of its own.
    #[serde(default)]
    pub mac_address: Option<String>,
    /// Containers linked in this network (`--link`).
    pub links: Vec<String>,
}

/// What a mount is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountKind {
    /// A volume of the engine.
    Volume,
    /// A file or directory of the host.
    Bind,
    /// Memory.
    Tmpfs,
    /// Anything else (`npipe`, `cluster`, `image` …).
    Other,
}

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// What it is.
    pub kind: MountKind,
    /// Name of the volume, empty for other kinds.
    pub name: String,
    /// Path on the host.
    pub source: String,
    /// Path in the container.
    pub destination: String,
    /// Driver of the volume.
    pub driver: String,
    /// May be written to.
    pub writable: bool,
    /// The engine made up the volume's name.
    pub anonymous: bool,
}

/// What ties a container to its host or to other containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ties {
    /// Legacy links to other containers (`--link`).
    pub links: Vec<String>,
    /// Namespaces shared with another container, as `network container:NAME`.
    pub shared_namespaces: Vec<String>,
    /// Paths of host devices.
    pub devices: Vec<String>,
    /// Device requests such as GPUs, in words.
    pub device_requests: Vec<String>,
    /// OCI runtime, empty for the default.
    pub runtime: String,
    /// Log driver.
    pub log_driver: String,
    /// Processors it is pinned to, as the kernel writes lists, empty if none.
    pub cpuset: String,
    /// Processor limit in billionths of a processor, 0 for none.
    pub nano_cpus: i64,
    /// Memory limit in bytes, 0 for none.
    pub memory: i64,
    /// Managed by Swarm or another orchestrator, by its name.
    pub orchestrator: Option<String>,
    /// AppArmor profile that the user asked for by name.
    pub apparmor_profile: Option<String>,
    /// Why its image may mean another program elsewhere: the id stands for several platforms, and the engine does not say which one it
    /// runs, or that is not the one that the image is taken for.
    #[serde(default)]
    pub image_platform: Option<String>,
    /// What its engine cannot be asked to make again elsewhere.
    #[serde(default)]
    pub uncarried: Vec<Obstacle>,
}

/// What a container wrote into its own layer, as far as it was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerChanges {
    /// Number of changed, added or deleted files that count as data.
    pub files: u64,
    /// Their size in bytes, where it was looked up.
    pub bytes: u64,
    /// Some of them, for people.
    pub examples: Vec<String>,
}

/// A line of a list of containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSummary {
    /// The engine's id.
    pub id: ContainerId,
    /// Names without the leading slash.
    pub names: Vec<String>,
    /// What it does.
    pub state: String,
    /// Ports of the host in use by it.
    pub ports: Vec<PublishedPort>,
}
