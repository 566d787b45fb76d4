//! An engine in memory, for tests that need speed and faults more than they need Docker.
//!
//! It keeps containers, images, networks and volumes as a real engine would, counts every call, and can be told to fail
//! the n-th one: before it did anything, or after it did everything but could not say so. [`MemoryStorage`] keeps what is
//! in the storage elements, and fails in the same way.
//!
//! | file | |
//! |---|---|
//! | `mod` | what tests prepare and look at |
//! | `engine` | the port, method by method |
//! | `state` | what the engine holds, and its rules |
//! | `storage` | what is in volumes, layers and mounts |

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tranship_core::container::{ContainerSpec, ContainerState, ContainerStatus, Health, RestartPolicy, Ties};
use tranship_core::engine::ExecOutcome;
use tranship_core::ids::Digest;
use tranship_core::image::common_layers;
use tranship_core::memory::LiveFacts;
use tranship_core::node::{EngineFacts, ImageStore};
use tranship_core::storage::VolumeSpec;
use tranship_core::{ContainerId, EngineError, ImageSpec};

mod engine;
mod state;
mod storage;
#[cfg(test)]
mod tests;

use state::State;
pub use storage::{Contents, MemoryStorage};

/// When and how a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It does nothing and says so.
    Before,
    /// It is away, and nothing reaches it.
    Away,
    /// It does everything, and then the answer is lost.
    After,
}

/// One container in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryContainer {
    /// As it was made.
    pub spec: ContainerSpec,
    /// What it does now.
    pub state: ContainerState,
    /// Its restart policy now.
    pub policy: RestartPolicy,
}

/// An engine in memory.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    state: Arc<Mutex<State>>,
}

impl MemoryEngine {
    /// An engine that holds nothing, on a node called `node`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An engine that holds nothing, on the node of this name. Its elements are at `/memory/NODE/…`.
    #[must_use]
    pub fn named(node: &str) -> Self {
        let engine = Self::new();
        engine.with(|s| s.node = node.to_owned());
        engine
    }

    /// What is in its storage elements. A volume that is made begins empty there, and one that is removed is gone there as
    /// well.
    #[must_use]
    pub fn storage(&self) -> MemoryStorage {
        self.with(|s| s.storage.clone())
    }

    /// Its kernel tells what was written to memory, so that dumps which follow others hold no more than that.
    pub fn set_tracked(&self, tracked: bool) {
        self.with(|s| s.tracked = tracked);
    }

    /// Whether files are reached only through the engine: [`tranship_core::Engine::locate`] then says so, and makes helper
    /// containers.
    pub fn set_indirect(&self, indirect: bool) {
        self.with(|s| s.indirect = indirect);
    }

    /// How a command will end, when it is run with exactly this text. Others end well and say nothing.
    pub fn on_exec(&self, command: &str, outcome: ExecOutcome) {
        self.with(|s| s.outcomes.insert(command.to_owned(), outcome));
    }

    /// The commands that were run, in order, each with its container.
    #[must_use]
    pub fn execs(&self) -> Vec<(ContainerId, String)> {
        self.with(|s| s.execs.clone())
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(
            &mut self
                .state
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        )
    }

    fn take_in(&self, all: &[u8]) -> Result<(), EngineError> {
        self.call("import image", |s| {
            let (image, skip): (ImageSpec, usize) =
                serde_json::from_slice(all).map_err(|e| EngineError::Corrupt {
                    what: "archive".into(),
                    message: e.to_string(),
                })?;
            let held = common_layers(&image.layers, s.images.values().map(|i| i.layers.as_slice()));
            if held < skip {
                return Err(EngineError::Failed {
                    action: "load".into(),
                    status: 0,
                    message: "a layer is missing".into(),
                });
            }
            for tag in &image.tags {
                s.tags.insert(tag.clone(), image.id.to_string());
            }
            s.images.insert(image.id.to_string(), image);
            Ok(())
        })
    }

    /// How long an image takes to be taken in once its archive is here.
    pub fn set_import_time(&self, takes: Duration) {
        self.with(|s| s.import_takes = takes);
    }

    /// Puts a plain volume there.
    pub fn add_volume(&self, name: &str) {
        self.put_volume(&VolumeSpec {
            name: name.to_owned(),
            ..VolumeSpec::default()
        });
    }

    /// Puts a volume there as it is described.
    pub fn put_volume(&self, spec: &VolumeSpec) {
        self.with(|s| s.add_volume(spec));
    }

    /// Takes a tag off an image and leaves the image.
    pub fn forget_tag(&self, tag: &str) {
        self.with(|s| s.tags.remove(tag));
    }

    /// Lets the calls with these numbers (from 0) fail.
    pub fn fail(&self, calls: &[(usize, Failure)]) {
        self.with(|s| s.fail = calls.to_vec());
    }

    /// How many calls there were, and their names.
    #[must_use]
    pub fn calls(&self) -> Vec<&'static str> {
        self.with(|s| s.names.clone())
    }

    /// What the health check of every container says.
    pub fn set_health(&self, health: Health) {
        self.with(|s| s.health = Some(health));
    }

    /// Puts an image there.
    pub fn add_image(&self, image: &ImageSpec) {
        self.with(|s| {
            for tag in &image.tags {
                s.tags.insert(tag.clone(), image.id.to_string());
            }
            s.images.insert(image.id.to_string(), image.clone());
        });
    }

    /// Puts a running container there, with its image and networks, and gives back how it is described.
    #[must_use]
    pub fn run(
        &self,
        name: &str,
        image: &ImageSpec,
        change: impl FnOnce(&mut ContainerSpec),
    ) -> ContainerSpec {
        self.add_image(image);
        let mut spec = bare_spec(name, image);
        change(&mut spec);
        self.with(|s| {
            spec.id = s.new_id();
            for network in &spec.networks {
                s.networks.insert(network.id.clone(), network.clone());
            }
            s.add_volumes_of(&spec);
            s.storage.set(s.layer_path(&spec.id), Contents::new());
            s.storage.set(s.heap_path(&spec.id), Contents::new());
            let policy = spec.restart_policy.clone();
            let container = MemoryContainer {
                spec: spec.clone(),
                state: ContainerState::Running,
                policy,
            };
            s.containers.insert(spec.id.to_string(), container);
        });
        spec
    }

    /// Where the memory of a running container's processes is in [`MemoryEngine::storage`].
    #[must_use]
    pub fn heap(&self, id: &ContainerId) -> PathBuf {
        self.with(|s| s.heap_path(id))
    }

    /// Whether there is a dump of a container's memory, whole or not.
    #[must_use]
    pub fn is_dumped(&self, id: &ContainerId) -> bool {
        self.with(|s| s.storage.get(s.dump_path(id)).is_some())
    }

    /// Changes a container behind the back of whoever uses the engine.
    pub fn alter(&self, id: &ContainerId, change: impl FnOnce(&mut MemoryContainer)) {
        self.with(|s| s.containers.get_mut(id.as_str()).map(change));
    }

    /// The containers, by id.
    #[must_use]
    pub fn all(&self) -> Vec<MemoryContainer> {
        self.with(|s| s.containers.values().cloned().collect())
    }

    /// Everything that is there, as sorted lines, for comparing before with after.
    #[must_use]
    pub fn inventory(&self) -> Vec<String> {
        self.with(|s| {
            let containers = s
                .containers
                .values()
                .map(|c| format!("container {} {} {}", c.spec.name, c.state, c.policy.name));
            let images = s.images.keys().map(|i| format!("image {i}"));
            let tags = s.tags.iter().map(|(t, i)| format!("tag {t} {i}"));
            let networks = s.networks.values().map(|n| format!("network {}", n.name));
            let volumes = s.volumes.keys().map(|v| format!("volume {v}"));
            let mut all: Vec<String> = containers
                .chain(images)
                .chain(tags)
                .chain(networks)
                .chain(volumes)
                .collect();
            all.sort();
            all
        })
    }

    /// Counts the call, and does `work` unless the call is to fail before it.
    fn call<T>(
        &self,
        name: &'static str,
        work: impl FnOnce(&mut State) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        self.with(|s| {
            let number = s.calls;
            s.calls += 1;
            s.names.push(name);
            let failure = s.fail.iter().find(|(n, _)| *n == number).map(|(_, f)| *f);
            match failure {
                Some(Failure::Before) => Err(EngineError::Failed {
                    action: name.into(),
                    status: 500,
                    message: "told to fail".into(),
                }),
                Some(Failure::Away) => Err(EngineError::Unreachable {
                    endpoint: name.into(),
                    reason: "told to be away".into(),
                }),
                Some(Failure::After) => {
                    let _ = work(s);
                    Err(EngineError::Uncertain {
                        action: name.into(),
                        message: "told to lose the answer".into(),
                    })
                }
                None => work(s),
            }
        })
    }
}

/// A small image with as many layers as asked for.
#[must_use]
pub fn image(tag: &str, layers: usize) -> ImageSpec {
    ImageSpec {
        id: Digest::of(format!("image {tag} {layers}").as_bytes()),
        tags: vec![tag.to_owned()],
        repo_digests: Vec::new(),
        kept_layers: Vec::new(),
        variant: String::new(),
        incomplete: false,
        layers: (0..layers)
            .map(|n| Digest::of(format!("layer {n}").as_bytes()))
            .collect(),
        size: 1000 * layers as u64,
        architecture: "amd64".into(),
        os: "linux".into(),
    }
}

/// A running container that asks for nothing special.
#[must_use]
pub fn bare_spec(name: &str, image: &ImageSpec) -> ContainerSpec {
    ContainerSpec {
        id: ContainerId::new("0").unwrap_or_else(|_| unreachable!()),
        name: name.to_owned(),
        status: ContainerStatus {
            state: ContainerState::Running,
            health: Health::None,
            started_at: "2001-02-03T04:05:06Z".into(),
            exit_code: 0,
            error: String::new(),
            oom_killed: false,
            restart_count: 0,
        },
        image: image.clone(),
        image_reference: image.tags.first().cloned().unwrap_or_default(),
        labels: BTreeMap::new(),
        auto_remove: false,
        restart_policy: RestartPolicy {
            name: "always".into(),
            maximum_retries: 0,
        },
        health_check: None,
        stop_timeout: None,
        ports: Vec::new(),
        host_name: None,
        network_mode: "bridge".into(),
        attachments: Vec::new(),
        networks: Vec::new(),
        mounts: Vec::new(),
        ties: Ties::default(),
        document: json!({}),
    }
}

/// What the engine in memory says about itself.
#[must_use]
pub fn facts() -> EngineFacts {
    EngineFacts {
        kind: "memory".into(),
        version: "1".into(),
        api_version: "1.45".into(),
        os: "linux".into(),
        architecture: "x86_64".into(),
        kernel: "6".into(),
        cpus: 2,
        memory: 8 << 30,
        storage_driver: "memory".into(),
        image_store: ImageStore::Classic,
        containerd_seen: false,
        containerd_root: String::new(),
        root_directory: "/".into(),
        cgroup_version: "1".into(),
        runtimes: vec!["runc".into()],
        log_drivers: vec!["json-file".into()],
        network_drivers: vec!["bridge".into()],
        volume_drivers: vec!["local".into()],
        security_options: Vec::new(),
        rootless: false,
        experimental: false,
    }
}

/// What the engine in memory says about dumps: it can do everything.
#[must_use]
pub fn live_facts() -> LiveFacts {
    LiveFacts {
        criu: "4.2".into(),
        cpu_features: vec!["sse2".into()],
        free_memory: 8 << 30,
        restores_locks: true,
        tracks_memory: true,
        restores_tracked: true,
        obstacles: Vec::new(),
    }
}
