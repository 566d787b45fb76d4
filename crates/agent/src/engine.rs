//! The node's engine, connected to when it is first needed: an agent must be able to say that its engine does not answer,
//! and to work with it once it does.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::OnceCell;
use tranship_core::container::{ContainerStatus, ContainerSummary, LayerChanges, RestartPolicy};
use tranship_core::engine::{ByteStream, CreateRequest, ExecOutcome, ImageArchive, ImportOptions, LiveRoot};
use tranship_core::ids::{ContainerName, Digest};
use tranship_core::image::ImageBlob;
use tranship_core::memory::{DumpKind, Dumped, LiveFacts, MemoryReport, Obstacle};
use tranship_core::node::EngineFacts;
use tranship_core::storage::{ElementAt, ElementPlace, VolumeSpec, VolumeUser};
use tranship_core::{ContainerId, ContainerSpec, Engine, EngineError, ImageSpec, NetworkSpec};
use tranship_engine::DockerEngine;

/// The engine at a unix socket of this node.
#[derive(Debug)]
pub struct NodeEngine {
    socket: PathBuf,
    connected: OnceCell<DockerEngine>,
}

impl NodeEngine {
    /// The engine that listens at `socket`, whether it does so now or later.
    #[must_use]
    pub fn at(socket: PathBuf) -> Self {
        Self {
            socket,
            connected: OnceCell::new(),
        }
    }

    async fn engine(&self) -> Result<&DockerEngine, EngineError> {
        self.connected
            .get_or_try_init(|| DockerEngine::connect(&self.socket))
            .await
    }
}

macro_rules! passed_on {
    ($( $name:ident ( $($argument:ident : $kind:ty),* ) -> $result:ty; )*) => {
        #[async_trait]
        impl Engine for NodeEngine {
            $(
                async fn $name(&self, $($argument: $kind),*) -> Result<$result, EngineError> {
                    self.engine().await?.$name($($argument),*).await
                }
            )*
        }
    };
}

passed_on! {
    facts() -> EngineFacts;
    inspect(container: &ContainerName) -> ContainerSpec;
    status(container: &ContainerId) -> ContainerStatus;
    containers() -> Vec<ContainerSummary>;
    layer_changes(container: &ContainerId) -> LayerChanges;
    image(reference: &str) -> Option<ImageSpec>;
    images() -> Vec<ImageSpec>;
    image_config(image: &Digest) -> Bytes;
    layer_lengths(image: &ImageSpec) -> Vec<u64>;
    layer(image: &ImageSpec, index: usize, offset: u64) -> ByteStream;
    image_blobs(images: &[Digest]) -> Option<Vec<ImageBlob>>;
    image_blob(blob: &ImageBlob, part: Range<u64>) -> ByteStream;
    blobs_lacking(blobs: &[Digest]) -> Vec<Digest>;
    layers_held(layers: &[Digest]) -> usize;
    archive_sizes(image: &ImageSpec, tag: Option<&str>) -> Vec<u64>;
    export_image(image: &ImageSpec, tag: Option<&str>, skip: usize) -> ImageArchive;
    import_image(archive: ByteStream) -> ();
    tag_image(image: &Digest, tag: &str) -> ();
    remove_image(reference: &str) -> ();
    networks() -> Vec<NetworkSpec>;
    create_network(spec: &NetworkSpec, new_subnets: bool) -> String;
    remove_network(id: &str) -> ();
    volumes() -> Vec<String>;
    volume_specs() -> Vec<VolumeSpec>;
    path_users(path: &str) -> Vec<VolumeUser>;
    create_volume(spec: &VolumeSpec) -> ();
    remove_volume(name: &str) -> ();
    locate(element: &ElementAt) -> ElementPlace;
    release(place: &ElementPlace) -> ();
    export_path(container: &ContainerId, path: &str) -> ByteStream;
    import_path(container: &ContainerId, path: &str, archive: ByteStream) -> ();
    import_path_with(container: &ContainerId, path: &str, options: ImportOptions, archive: ByteStream) -> ();
    path_stat(container: &ContainerId, path: &str) -> String;
    live_root(container: &ContainerId) -> Option<LiveRoot>;
    pause(container: &ContainerId) -> ();
    unpause(container: &ContainerId) -> ();
    kill(container: &ContainerId) -> ();
    live_facts() -> LiveFacts;
    memory(spec: &ContainerSpec) -> Option<MemoryReport>;
    dump(element: &ElementAt, kind: DumpKind) -> Dumped;
    clear_dump(element: &ElementAt) -> ();
    has_dump(element: &ElementAt) -> bool;
    restore(element: &ElementAt) -> ();
    has_strays(container: &ContainerId) -> bool;
    restore_obstacles(spec: &ContainerSpec) -> Vec<Obstacle>;
    start_told_later(container: &ContainerId) -> Option<String>;
    take_restore_back(container: &ContainerId) -> ();
    forget(element: &ElementAt) -> ();
    exec(container: &ContainerId, command: &str, timeout: Duration) -> ExecOutcome;
    create_container(request: &CreateRequest) -> ContainerId;
    start(container: &ContainerId) -> ();
    stop(container: &ContainerId, timeout: Option<Duration>) -> ();
    remove_container(container: &ContainerId) -> ();
    remove_container_only(container: &ContainerId) -> ();
    rename(container: &ContainerId, name: &str) -> ();
    set_restart_policy(container: &ContainerId, policy: &RestartPolicy) -> ();
    log_tail(container: &ContainerId, lines: usize) -> Vec<String>;
}
