//! The adapter itself: connecting, and one method per action of the port.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bollard::errors::Error as BollardError;
use bollard::query_parameters as query;
use bollard::{API_DEFAULT_VERSION, Docker};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tranship_core::container::{
    ContainerStatus, ContainerSummary, LayerChanges, PublishedPort, RestartPolicy,
};
use tranship_core::engine::{ByteStream, CreateRequest, ExecOutcome, ImageArchive, ImportOptions, LiveRoot};
use tranship_core::ids::{ContainerName, Digest};
use tranship_core::image::ImageBlob;
use tranship_core::memory::{DumpKind, Dumped, LiveFacts, MemoryReport, Obstacle};
use tranship_core::node::{EngineFacts, ImageStore};
use tranship_core::storage::{ElementAt, ElementPlace, VolumeSpec, VolumeUser};
use tranship_core::{ContainerId, ContainerSpec, Engine, EngineError, ImageSpec, NetworkSpec};

use crate::describe;
use crate::fault::Ask;
use crate::json::{at, items, text};
use crate::raw::{CONTROL_DEADLINE, Raw, escape};

/// Stands for no deadline: longer than any call lasts. bollard knows no "none".
pub(crate) const UNLIMITED: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Docker's time between the stop signal and the kill, in seconds, where the container has none of its own.
const DEFAULT_STOP_SECONDS: i64 = 10;

/// How long the engine may take for a stop besides the waiting: killing, unmounting, telling.
const STOP_MARGIN: Duration = Duration::from_secs(60);

/// Docker or Podman on this node, or wherever its socket leads.
#[derive(Debug, Clone)]
pub struct DockerEngine {
    pub(crate) docker: Docker,
    pub(crate) raw: Raw,
    pub(crate) podman: bool,
    direct: Option<bool>,
    pub(crate) root_prefix: PathBuf,
    /// The engine and the containerd that were seen to belong together, by their ids.
    pub(crate) proved: Arc<Mutex<Option<(String, String)>>>,
    pub(crate) looks: Arc<Mutex<crate::podman::Looks>>,
}

/// What the engine says about itself that decides the ways to its images.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) id: String,
    pub(crate) host_name: String,
    pub(crate) default_runtime: String,
    pub(crate) store: ImageStore,
    pub(crate) driver: String,
    pub(crate) root: PathBuf,
    pub(crate) major: u64,
    /// Files do not have the owners on disk that they have in containers: without root, or with `userns-remap`.
    pub(crate) shifts_ids: bool,
    /// The engine's clock, as it writes it.
    pub(crate) system_time: String,
}

/// How long what Podman calls ended may take to be so.
const ENDING: Duration = Duration::from_secs(5);

impl DockerEngine {
    /// Connects to the engine at a unix socket and agrees with it on a version of the API.
    ///
    /// # Errors
    /// [`EngineError::Unreachable`] when nothing answers there, [`EngineError::Denied`] when the socket is closed to
    /// this user.
    pub async fn connect(socket: &Path) -> Result<Self, EngineError> {
        let raw = Raw::new(socket);
        let ask = Ask::new("connect to", "engine", "");
        // bollard calls a socket that this user may not see "not found": the raw client tells them apart.
        let version = raw.get("/version", &ask).await?;
        let podman = items(&version, &["Components"])
            .iter()
            .any(|component| text(component, &["Name"]).contains("Podman"));
        let path = socket.to_str().ok_or_else(|| EngineError::Unreachable {
            endpoint: raw.endpoint().to_owned(),
            reason: "the path of the socket is not UTF-8".into(),
        })?;
        let docker = Docker::connect_with_unix(path, CONTROL_DEADLINE.as_secs(), API_DEFAULT_VERSION)
            .map_err(|error| ask.bollard(error, raw.endpoint()))?;
        let docker = docker
            .negotiate_version()
            .await
            .map_err(|error| ask.bollard(error, raw.endpoint()))?;
        Ok(Self {
            docker,
            raw,
            podman,
            direct: None,
            root_prefix: PathBuf::from("/"),
            proved: Arc::default(),
            looks: Arc::default(),
        })
    }

    /// Whether to read layers, and reach files, straight in the engine's storage. Without a word it is done when running
    /// as root and the storage is readable; `false` never does it, `true` tries it as any user.
    #[must_use]
    pub fn with_direct_layers(mut self, direct: bool) -> Self {
        self.direct = Some(direct);
        self
    }

    /// Where the engine's file system begins, if its root directory is not this process's: for an engine in a mount
    /// namespace of its own, `/proc/PID/root`.
    #[must_use]
    pub fn with_root_prefix(mut self, prefix: impl Into<PathBuf>) -> Self {
        self.root_prefix = prefix.into();
        self
    }

    /// Whether layers are read straight from the engine's storage here.
    ///
    /// # Errors
    /// As [`Engine::facts`].
    pub async fn reads_layers_directly(&self) -> Result<bool, EngineError> {
        Ok(self.store(&self.identity().await?).is_some())
    }

    /// Whether the engine may be passed by where that is possible.
    pub(crate) fn wants_direct(&self) -> bool {
        self.direct
            .unwrap_or_else(|| rustix::process::geteuid().is_root())
    }

    pub(crate) async fn identity(&self) -> Result<Identity, EngineError> {
        let ask = Ask::new("describe", "engine", "");
        let info = self.told(self.docker.info().await, &ask)?;
        let version = info.server_version.unwrap_or_default();
        let driver_status = info.driver_status.unwrap_or_default();
        let driver = info.driver.unwrap_or_default();
        let security = info.security_options.unwrap_or_default();
        Ok(Identity {
            shifts_ids: security
                .iter()
                .any(|option| option.contains("name=rootless") || option.contains("name=userns")),
            system_time: info.system_time.unwrap_or_default(),
            id: info.id.unwrap_or_default(),
            host_name: info.name.unwrap_or_default(),
            default_runtime: info.default_runtime.unwrap_or_default(),
            store: self.image_store(&driver_status),
            driver,
            root: PathBuf::from(info.docker_root_dir.unwrap_or_default()),
            major: version
                .split('.')
                .next()
                .and_then(|major| major.parse().ok())
                .unwrap_or_default(),
        })
    }

    /// Docker reports the type of the snapshotter where containerd keeps the images (`daemon/info.go`, "driver-type").
    fn image_store(&self, driver_status: &[Vec<String>]) -> ImageStore {
        let containerd = driver_status
            .iter()
            .any(|line| line.first().is_some_and(|key| key == "driver-type"));
        match (self.podman, containerd) {
            (true, _) => ImageStore::Podman,
            (false, true) => ImageStore::Containerd,
            (false, false) => ImageStore::Classic,
        }
    }

    /// bollard's result in the port's words.
    pub(crate) fn told<T>(&self, result: Result<T, BollardError>, ask: &Ask) -> Result<T, EngineError> {
        result.map_err(|error| ask.bollard(error, self.raw.endpoint()))
    }

    /// A client whose calls may take as long as they need.
    pub(crate) fn patient(&self, deadline: Duration) -> Docker {
        self.docker.clone().with_timeout(deadline)
    }

    async fn remove(&self, container: &ContainerId, volumes: bool) -> Result<(), EngineError> {
        let ask = Ask::new("remove", "container", container.as_str());
        let adopted = if volumes {
            self.adopted_volumes(container).await?
        } else {
            Vec::new()
        };
        if self.podman {
            // Once it is removed, whoever asked takes it for ended.
            or_gone(self.let_go_within(container, ENDING).await)?;
        }
        let options = query::RemoveContainerOptionsBuilder::default()
            .force(true)
            .v(volumes)
            .build();
        let removed = self
            .docker
            .remove_container(container.as_str(), Some(options))
            .await;
        match self.told(removed, &ask) {
            // It is on its way out already (`--rm`, or a second call).
            Err(EngineError::Conflict { message, .. }) if message.contains("is already in progress") => {}
            other => or_gone(other)?,
        }
        for volume in adopted {
            match self.unmake_volume(&volume).await {
                // Another container uses it by now: the engine would leave it as well.
                Ok(()) | Err(EngineError::Conflict { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    pub(crate) async fn document(&self, container: &str) -> Result<serde_json::Value, EngineError> {
        let ask = Ask::new("inspect", "container", container);
        let path = format!("/containers/{}/json", escape(container));
        self.raw.get(&path, &ask).await
    }
}

/// Gone already, or done already, is done well.
pub(crate) fn or_gone(result: Result<(), EngineError>) -> Result<(), EngineError> {
    match result {
        Err(EngineError::NotFound { .. }) => Ok(()),
        other => other,
    }
}

#[async_trait]
impl Engine for DockerEngine {
    async fn facts(&self) -> Result<EngineFacts, EngineError> {
        let ask = Ask::new("describe", "engine", "");
        let info = self.told(self.docker.info().await, &ask)?;
        let version = self.told(self.docker.version().await, &ask)?;
        let plugins = info.plugins.unwrap_or_default();
        let security_options = info.security_options.unwrap_or_default();
        let count = |number: Option<i64>| number.and_then(|n| u64::try_from(n).ok()).unwrap_or_default();
        let mut runtimes: Vec<String> = info.runtimes.unwrap_or_default().into_keys().collect();
        runtimes.sort();
        let image_store = self.image_store(&info.driver_status.unwrap_or_default());
        let containerd = match image_store {
            ImageStore::Containerd => self.containerd(&self.identity().await?).await,
            _ => None,
        };
        Ok(EngineFacts {
            containerd_seen: containerd.is_some(),
            containerd_root: containerd.map_or_else(String::new, |c| c.root().display().to_string()),
            kind: if self.podman { "podman" } else { "docker" }.into(),
            version: version.version.unwrap_or_default(),
            api_version: version.api_version.unwrap_or_default(),
            os: version.os.unwrap_or_default(),
            architecture: version.arch.unwrap_or_default(),
            kernel: info.kernel_version.unwrap_or_default(),
            cpus: count(info.ncpu),
            memory: count(info.mem_total),
            image_store,
            storage_driver: info.driver.unwrap_or_default(),
            root_directory: info.docker_root_dir.unwrap_or_default(),
            cgroup_version: info.cgroup_version.map(|v| v.to_string()).unwrap_or_default(),
            runtimes,
            log_drivers: plugins.log.unwrap_or_default(),
            network_drivers: plugins.network.unwrap_or_default(),
            volume_drivers: plugins.volume.unwrap_or_default(),
            rootless: security_options
                .iter()
                .any(|option| option.contains("name=rootless")),
            security_options,
            experimental: info.experimental_build.unwrap_or_default(),
        })
    }

    async fn inspect(&self, container: &ContainerName) -> Result<ContainerSpec, EngineError> {
        self.inspect_container(container).await
    }

    async fn status(&self, container: &ContainerId) -> Result<ContainerStatus, EngineError> {
        if self.podman {
            return self.podman_status(container).await;
        }
        Ok(describe::status(&self.document(container.as_str()).await?))
    }

    async fn containers(&self) -> Result<Vec<ContainerSummary>, EngineError> {
        if self.podman {
            return self.podman_containers().await;
        }
        let ask = Ask::new("list", "containers", "");
        let options = query::ListContainersOptionsBuilder::default().all(true).build();
        let list = self.told(self.docker.list_containers(Some(options)).await, &ask)?;
        list.into_iter()
            .map(|container| {
                let id = ContainerId::new(container.id.unwrap_or_default());
                let mut ports: Vec<PublishedPort> = container
                    .ports
                    .into_iter()
                    .flatten()
                    .filter_map(|port| {
                        Some(PublishedPort {
                            container_port: port.private_port,
                            protocol: port.typ.map(|t| t.to_string()).unwrap_or_default(),
                            host_address: port.ip.and_then(|ip| ip.parse().ok()),
                            host_port: Some(port.public_port?),
                        })
                    })
                    .collect();
                ports.sort();
                let names = container.names.unwrap_or_default();
                Ok(ContainerSummary {
                    id: id.map_err(|error| ask.uncertain(error))?,
                    names: names
                        .iter()
                        .map(|name| name.trim_start_matches('/').to_owned())
                        .collect(),
                    state: container.state.map(|state| state.to_string()).unwrap_or_default(),
                    ports,
                })
            })
            .collect()
    }

    async fn layer_changes(&self, container: &ContainerId) -> Result<LayerChanges, EngineError> {
        self.changes_of(container).await
    }

    async fn image(&self, reference: &str) -> Result<Option<ImageSpec>, EngineError> {
        let ask = Ask::new("inspect", "image", reference);
        match self.image_document(reference).await {
            Ok(document) => {
                let image = self.as_kept(describe::image(&document, &ask)?, &document).await?;
                Ok(Some(image))
            }
            Err(EngineError::NotFound { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }

    async fn images(&self) -> Result<Vec<ImageSpec>, EngineError> {
        self.all_images().await
    }

    async fn image_config(&self, image: &Digest) -> Result<Bytes, EngineError> {
        self.config_of(image).await
    }

    async fn layer_lengths(&self, image: &ImageSpec) -> Result<Vec<u64>, EngineError> {
        self.lengths_of(image).await
    }

    async fn layer(&self, image: &ImageSpec, index: usize, offset: u64) -> Result<ByteStream, EngineError> {
        self.layer_of(image, index, offset).await
    }

    async fn image_blobs(&self, images: &[Digest]) -> Result<Option<Vec<ImageBlob>>, EngineError> {
        self.blobs_of(images).await
    }

    async fn image_blob(&self, blob: &ImageBlob, part: Range<u64>) -> Result<ByteStream, EngineError> {
        self.blob_of(blob, part).await
    }

    async fn blobs_lacking(&self, blobs: &[Digest]) -> Result<Vec<Digest>, EngineError> {
        self.lacking(blobs).await
    }

    async fn layers_held(&self, layers: &[Digest]) -> Result<usize, EngineError> {
        self.held(layers).await
    }

    async fn archive_sizes(&self, image: &ImageSpec, tag: Option<&str>) -> Result<Vec<u64>, EngineError> {
        self.sizes(image, tag).await
    }

    async fn export_image(
        &self,
        image: &ImageSpec,
        tag: Option<&str>,
        skip: usize,
    ) -> Result<ImageArchive, EngineError> {
        self.export(image, tag, skip).await
    }

    async fn import_image(&self, archive: ByteStream) -> Result<(), EngineError> {
        self.load(archive).await
    }

    async fn tag_image(&self, image: &Digest, tag: &str) -> Result<(), EngineError> {
        let ask = Ask::new("tag", "image", image.as_str());
        // A colon after the last slash separates the tag; one before it belongs to a port.
        let (repository, name) = match tag.rsplit_once(':') {
            Some((repository, name)) if !name.contains('/') => (repository, name),
            _ => (tag, "latest"),
        };
        let options = query::TagImageOptionsBuilder::default()
            .repo(repository)
            .tag(name)
            .build();
        self.told(self.docker.tag_image(image.as_str(), Some(options)).await, &ask)
    }

    async fn remove_image(&self, reference: &str) -> Result<(), EngineError> {
        let ask = Ask::new("remove", "image", reference);
        let removed = self
            .docker
            .remove_image(&escape(reference), None::<query::RemoveImageOptions>, None)
            .await;
        or_gone(self.told(removed, &ask).map(|_| ()))
    }

    async fn networks(&self) -> Result<Vec<NetworkSpec>, EngineError> {
        self.all_networks().await
    }

    async fn create_network(&self, spec: &NetworkSpec, new_subnets: bool) -> Result<String, EngineError> {
        self.make_network(spec, new_subnets).await
    }

    async fn remove_network(&self, id: &str) -> Result<(), EngineError> {
        let ask = Ask::new("remove", "network", id);
        or_gone(self.told(self.docker.remove_network(&escape(id)).await, &ask))
    }

    async fn volumes(&self) -> Result<Vec<String>, EngineError> {
        let ask = Ask::new("list", "volumes", "");
        let list = self.docker.list_volumes(None::<query::ListVolumesOptions>).await;
        let volumes = self.told(list, &ask)?.volumes.unwrap_or_default();
        Ok(volumes.into_iter().map(|volume| volume.name).collect())
    }

    async fn volume_specs(&self) -> Result<Vec<VolumeSpec>, EngineError> {
        self.all_volumes().await
    }

    async fn path_users(&self, path: &str) -> Result<Vec<VolumeUser>, EngineError> {
        self.users_of_path(path).await
    }

    async fn create_volume(&self, spec: &VolumeSpec) -> Result<(), EngineError> {
        self.make_volume(spec).await
    }

    async fn remove_volume(&self, name: &str) -> Result<(), EngineError> {
        self.unmake_volume(name).await
    }

    async fn locate(&self, element: &ElementAt) -> Result<ElementPlace, EngineError> {
        self.place_of(element).await
    }

    async fn release(&self, place: &ElementPlace) -> Result<(), EngineError> {
        self.release_place(place).await
    }

    async fn export_path(&self, container: &ContainerId, path: &str) -> Result<ByteStream, EngineError> {
        self.files_out(container, path).await
    }

    async fn import_path(
        &self,
        container: &ContainerId,
        path: &str,
        archive: ByteStream,
    ) -> Result<(), EngineError> {
        self.files_in(container, path, ImportOptions::default(), archive)
            .await
    }

    async fn import_path_with(
        &self,
        container: &ContainerId,
        path: &str,
        options: ImportOptions,
        archive: ByteStream,
    ) -> Result<(), EngineError> {
        self.files_in(container, path, options, archive).await
    }

    async fn path_stat(&self, container: &ContainerId, path: &str) -> Result<String, EngineError> {
        self.stat_in(container, path).await
    }

    async fn live_root(&self, container: &ContainerId) -> Result<Option<LiveRoot>, EngineError> {
        self.root_of_process(container).await
    }

    async fn pause(&self, container: &ContainerId) -> Result<(), EngineError> {
        self.freeze(container).await
    }

    async fn unpause(&self, container: &ContainerId) -> Result<(), EngineError> {
        self.thaw(container).await
    }

    async fn kill(&self, container: &ContainerId) -> Result<(), EngineError> {
        self.kill_all(container).await
    }

    async fn live_facts(&self) -> Result<LiveFacts, EngineError> {
        self.live_facts_here().await
    }

    async fn memory(&self, spec: &ContainerSpec) -> Result<Option<MemoryReport>, EngineError> {
        self.memory_report(spec).await
    }

    async fn dump(&self, element: &ElementAt, kind: DumpKind) -> Result<Dumped, EngineError> {
        self.write_dump(element, kind).await
    }

    async fn clear_dump(&self, element: &ElementAt) -> Result<(), EngineError> {
        self.empty_dump(element).await
    }

    async fn has_dump(&self, element: &ElementAt) -> Result<bool, EngineError> {
        self.dump_is_there(element).await
    }

    async fn restore(&self, element: &ElementAt) -> Result<(), EngineError> {
        self.start_from_dump(element).await
    }

    async fn has_strays(&self, container: &ContainerId) -> Result<bool, EngineError> {
        // Docker ends what it does not know when it starts.
        Ok(self.podman && self.has_stray_processes(container).await?)
    }

    async fn restore_obstacles(&self, spec: &ContainerSpec) -> Result<Vec<Obstacle>, EngineError> {
        self.left_by_others(&spec.id).await
    }

    async fn start_told_later(&self, container: &ContainerId) -> Result<Option<String>, EngineError> {
        if self.podman {
            return self.start_once_ready(container).await;
        }
        Ok(None)
    }

    async fn take_restore_back(&self, container: &ContainerId) -> Result<(), EngineError> {
        if self.podman {
            self.take_initialisation_back(container).await?;
        }
        Ok(())
    }

    async fn forget(&self, element: &ElementAt) -> Result<(), EngineError> {
        self.remove_dump(element).await
    }

    async fn exec(
        &self,
        container: &ContainerId,
        command: &str,
        timeout: Duration,
    ) -> Result<ExecOutcome, EngineError> {
        self.run_in(container, command, timeout).await
    }

    async fn create_container(&self, request: &CreateRequest) -> Result<ContainerId, EngineError> {
        self.recreate(request).await
    }

    async fn start(&self, container: &ContainerId) -> Result<(), EngineError> {
        let ask = Ask::new("start", "container", container.as_str());
        self.let_go(container).await?;
        let started = self
            .docker
            .start_container(container.as_str(), None::<query::StartContainerOptions>)
            .await;
        self.told(started, &ask)
    }

    async fn stop(&self, container: &ContainerId, timeout: Option<Duration>) -> Result<(), EngineError> {
        let ask = Ask::new("stop", "container", container.as_str());
        let seconds = match timeout {
            Some(timeout) => i64::try_from(timeout.as_millis().div_ceil(1000)).unwrap_or(-1),
            None => {
                let document = self.document(container.as_str()).await?;
                let own = at(&document, &["Config", "StopTimeout"]).as_i64();
                own.unwrap_or(DEFAULT_STOP_SECONDS)
            }
        };
        let deadline = u64::try_from(seconds).map_or(UNLIMITED, |s| Duration::from_secs(s) + STOP_MARGIN);
        let options = timeout.map(|_| {
            let seconds = i32::try_from(seconds).unwrap_or(i32::MAX);
            query::StopContainerOptionsBuilder::default().t(seconds).build()
        });
        let stopped = self
            .patient(deadline.min(UNLIMITED))
            .stop_container(container.as_str(), options)
            .await;
        self.told(stopped, &ask)
    }

    async fn remove_container(&self, container: &ContainerId) -> Result<(), EngineError> {
        self.remove(container, true).await
    }

    async fn remove_container_only(&self, container: &ContainerId) -> Result<(), EngineError> {
        self.remove(container, false).await
    }

    async fn rename(&self, container: &ContainerId, name: &str) -> Result<(), EngineError> {
        let ask = Ask::new("rename", "container", container.as_str());
        let options = query::RenameContainerOptionsBuilder::default().name(name).build();
        self.told(
            self.docker.rename_container(container.as_str(), options).await,
            &ask,
        )
    }

    async fn set_restart_policy(
        &self,
        container: &ContainerId,
        policy: &RestartPolicy,
    ) -> Result<(), EngineError> {
        self.update_restart_policy(container, policy).await
    }

    async fn log_tail(&self, container: &ContainerId, lines: usize) -> Result<Vec<String>, EngineError> {
        let ask = Ask::new("read the log of", "container", container.as_str());
        let options = query::LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .tail(&lines.to_string())
            .build();
        let mut log = self.docker.logs(container.as_str(), Some(options));
        let mut text = Vec::new();
        // A line may be as long as it likes; what is shown to people may not.
        while let Some(part) = log.next().await {
            match self.told(part, &ask) {
                Ok(part) => text.extend_from_slice(&part.into_bytes()),
                // `none`, `syslog` and others keep nothing to read.
                Err(EngineError::Failed { message, .. }) if message.contains("does not support reading") => {
                    break;
                }
                Err(error) => return Err(error),
            }
            if text.len() > 1 << 20 {
                break;
            }
        }
        let all: Vec<String> = String::from_utf8_lossy(&text)
            .lines()
            .map(str::to_owned)
            .collect();
        Ok(all[all.len().saturating_sub(lines)..].to_vec())
    }
}
