//! An engine in memory, for tests that need speed and faults more than they need Docker.
//!
//! It keeps containers, images, networks and volumes as a real engine would, counts every call, and can be told to fail
//! the n-th one: before it did anything, or after it did everything but could not say so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde_json::json;
use tranship_core::container::{
    ContainerSpec, ContainerState, ContainerStatus, ContainerSummary, Health, LayerChanges, RestartPolicy,
    Ties,
};
use tranship_core::engine::{ByteStream, CreateRequest, ImageArchive};
use tranship_core::ids::{ContainerName, Digest};
use tranship_core::image::common_layers;
use tranship_core::node::{EngineFacts, ImageStore};
use tranship_core::{ContainerId, Engine, EngineError, ImageSpec, NetworkSpec};

/// When and how a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It does nothing and says so.
    Before,
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

#[derive(Debug, Default)]
struct State {
    containers: BTreeMap<String, MemoryContainer>,
    images: BTreeMap<String, ImageSpec>,
    tags: BTreeMap<String, String>,
    networks: BTreeMap<String, NetworkSpec>,
    volumes: Vec<String>,
    calls: usize,
    names: Vec<&'static str>,
    fail: Vec<(usize, Failure)>,
    next_id: u64,
    health: Option<Health>,
    import_takes: Duration,
}

/// An engine in memory.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    state: Arc<Mutex<State>>,
}

impl MemoryEngine {
    /// An engine that holds nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
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

    /// Puts a volume there.
    pub fn add_volume(&self, name: &str) {
        self.with(|s| s.volumes.push(name.to_owned()));
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
            let volumes = s.volumes.iter().map(|v| format!("volume {v}"));
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

impl State {
    fn new_id(&mut self) -> ContainerId {
        self.next_id += 1;
        // Sixty-four hexadecimal digits always make an id.
        ContainerId::new(format!("{:064x}", self.next_id)).unwrap_or_else(|_| unreachable!())
    }

    fn container(&mut self, id: &ContainerId) -> Result<&mut MemoryContainer, EngineError> {
        self.containers
            .get_mut(id.as_str())
            .ok_or_else(|| EngineError::NotFound {
                what: "container",
                name: id.to_string(),
            })
    }

    fn image(&self, reference: &str) -> Option<ImageSpec> {
        let id = self.tags.get(reference).map_or(reference, String::as_str);
        let mut image = self.images.get(id)?.clone();
        image.tags = self
            .tags
            .iter()
            .filter(|(_, i)| i.as_str() == id)
            .map(|(t, _)| t.clone())
            .collect();
        Some(image)
    }
}

/// A small image with as many layers as asked for.
#[must_use]
pub fn image(tag: &str, layers: usize) -> ImageSpec {
    ImageSpec {
        id: Digest::of(format!("image {tag} {layers}").as_bytes()),
        tags: vec![tag.to_owned()],
        repo_digests: Vec::new(),
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

#[async_trait]
impl Engine for MemoryEngine {
    async fn facts(&self) -> Result<EngineFacts, EngineError> {
        self.call("facts", |_| Ok(facts()))
    }

    async fn inspect(&self, container: &ContainerName) -> Result<ContainerSpec, EngineError> {
        self.call("inspect", |s| {
            let found = s
                .containers
                .values()
                .find(|c| c.spec.name == container.as_str() || c.spec.id.as_str() == container.as_str())
                .ok_or_else(|| EngineError::NotFound {
                    what: "container",
                    name: container.to_string(),
                })?;
            let mut spec = found.spec.clone();
            spec.status.state = found.state;
            spec.restart_policy = found.policy.clone();
            Ok(spec)
        })
    }

    async fn status(&self, container: &ContainerId) -> Result<ContainerStatus, EngineError> {
        self.call("status", |s| {
            let health = s.health;
            let found = s.container(container)?;
            let mut status = found.spec.status.clone();
            status.state = found.state;
            if let Some(health) = health {
                status.health = health;
            }
            Ok(status)
        })
    }

    async fn containers(&self) -> Result<Vec<ContainerSummary>, EngineError> {
        self.call("containers", |s| {
            Ok(s.containers
                .values()
                .map(|c| ContainerSummary {
                    id: c.spec.id.clone(),
                    names: vec![c.spec.name.clone()],
                    state: c.state.to_string(),
                    ports: c.spec.ports.clone(),
                })
                .collect())
        })
    }

    async fn layer_changes(&self, _container: &ContainerId) -> Result<LayerChanges, EngineError> {
        self.call("layer changes", |_| Ok(LayerChanges::default()))
    }

    async fn image(&self, reference: &str) -> Result<Option<ImageSpec>, EngineError> {
        self.call("image", |s| Ok(s.image(reference)))
    }

    async fn layers_held(&self, layers: &[Digest]) -> Result<usize, EngineError> {
        self.call("layers held", |s| {
            Ok(common_layers(
                layers,
                s.images.values().map(|i| i.layers.as_slice()),
            ))
        })
    }

    async fn archive_sizes(&self, image: &ImageSpec, _tag: Option<&str>) -> Result<Vec<u64>, EngineError> {
        self.call("archive sizes", |_| {
            Ok((0..=image.layers.len()).rev().map(|n| 1000 * n as u64).collect())
        })
    }

    async fn export_image(
        &self,
        image: &ImageSpec,
        tag: Option<&str>,
        skip: usize,
    ) -> Result<ImageArchive, EngineError> {
        let tags: Vec<String> = tag.into_iter().map(str::to_owned).collect();
        self.call("export image", |_| {
            let mut archived = image.clone();
            archived.tags = tags;
            let head = serde_json::to_vec(&(archived, skip)).unwrap_or_default();
            let parts = vec![Ok(Bytes::from(head)), Ok(Bytes::from_static(b"\n"))];
            Ok(ImageArchive {
                length: None,
                stream: stream::iter(parts).boxed(),
            })
        })
    }

    async fn import_image(&self, mut archive: ByteStream) -> Result<(), EngineError> {
        let mut all = Vec::new();
        while let Some(part) = archive.next().await {
            all.extend_from_slice(&part?);
        }
        // As a real engine: what it has received as a whole it takes in, whether or not somebody still waits for it.
        let (state, takes) = (Arc::clone(&self.state), self.with(|s| s.import_takes));
        let work = async move {
            tokio::time::sleep(takes).await;
            Self { state }.take_in(&all)
        };
        match tokio::spawn(work).await {
            Ok(done) => done,
            Err(error) => Err(EngineError::Uncertain {
                action: "load".into(),
                message: error.to_string(),
            }),
        }
    }

    async fn tag_image(&self, image: &Digest, tag: &str) -> Result<(), EngineError> {
        self.call("tag image", |s| {
            s.tags.insert(tag.to_owned(), image.to_string());
            Ok(())
        })
    }

    async fn remove_image(&self, reference: &str) -> Result<(), EngineError> {
        self.call("remove image", |s| {
            match s.tags.remove(reference) {
                // As Docker: the image goes with its last tag.
                Some(id) if !s.tags.values().any(|i| *i == id) => {
                    s.images.remove(&id);
                }
                Some(_) => {}
                None => {
                    s.images.remove(reference);
                    s.tags.retain(|_, id| id != reference);
                }
            }
            Ok(())
        })
    }

    async fn networks(&self) -> Result<Vec<NetworkSpec>, EngineError> {
        self.call("networks", |s| Ok(s.networks.values().cloned().collect()))
    }

    async fn create_network(&self, spec: &NetworkSpec, _new_subnets: bool) -> Result<String, EngineError> {
        self.call("create network", |s| {
            let id = s.new_id().to_string();
            s.networks.insert(
                id.clone(),
                NetworkSpec {
                    id: id.clone(),
                    used: BTreeMap::new(),
                    ..spec.clone()
                },
            );
            Ok(id)
        })
    }

    async fn remove_network(&self, id: &str) -> Result<(), EngineError> {
        self.call("remove network", |s| {
            s.networks.remove(id);
            Ok(())
        })
    }

    async fn volumes(&self) -> Result<Vec<String>, EngineError> {
        self.call("volumes", |s| Ok(s.volumes.clone()))
    }

    async fn remove_volume(&self, name: &str) -> Result<(), EngineError> {
        self.call("remove volume", |s| {
            s.volumes.retain(|v| v != name);
            Ok(())
        })
    }

    async fn create_container(&self, request: &CreateRequest) -> Result<ContainerId, EngineError> {
        self.call("create container", |s| {
            if s.containers.values().any(|c| c.spec.name == request.name) {
                return Err(EngineError::Conflict {
                    action: "create".into(),
                    message: "the name is in use".into(),
                });
            }
            let id = s.new_id();
            let mut spec = request.spec.clone();
            spec.id = id.clone();
            spec.name.clone_from(&request.name);
            for mount in spec.mounts.iter().filter(|m| !m.anonymous && !m.name.is_empty()) {
                s.volumes.push(mount.name.clone());
            }
            let policy = request.restart_policy.clone();
            s.containers.insert(
                id.to_string(),
                MemoryContainer {
                    spec,
                    state: ContainerState::Created,
                    policy,
                },
            );
            Ok(id)
        })
    }

    async fn start(&self, container: &ContainerId) -> Result<(), EngineError> {
        self.call("start", |s| {
            s.container(container)?.state = ContainerState::Running;
            Ok(())
        })
    }

    async fn stop(&self, container: &ContainerId, _timeout: Option<Duration>) -> Result<(), EngineError> {
        self.call("stop", |s| {
            let found = s.container(container)?;
            found.state = ContainerState::Exited;
            if found.spec.auto_remove {
                s.containers.remove(container.as_str());
            }
            Ok(())
        })
    }

    async fn remove_container(&self, container: &ContainerId) -> Result<(), EngineError> {
        self.call("remove container", |s| {
            let gone = s.containers.remove(container.as_str());
            let anonymous = gone
                .into_iter()
                .flat_map(|c| c.spec.mounts)
                .filter(|m| m.anonymous);
            for mount in anonymous {
                s.volumes.retain(|v| *v != mount.name);
            }
            Ok(())
        })
    }

    async fn remove_container_only(&self, container: &ContainerId) -> Result<(), EngineError> {
        self.call("remove container only", |s| {
            s.containers.remove(container.as_str());
            Ok(())
        })
    }

    async fn rename(&self, container: &ContainerId, name: &str) -> Result<(), EngineError> {
        self.call("rename", |s| {
            s.container(container)?.spec.name = name.to_owned();
            Ok(())
        })
    }

    async fn set_restart_policy(
        &self,
        container: &ContainerId,
        policy: &RestartPolicy,
    ) -> Result<(), EngineError> {
        self.call("set restart policy", |s| {
            s.container(container)?.policy = policy.clone();
            Ok(())
        })
    }

    async fn log_tail(&self, _container: &ContainerId, _lines: usize) -> Result<Vec<String>, EngineError> {
        self.call("log tail", |_| Ok(vec!["its last line".into()]))
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
