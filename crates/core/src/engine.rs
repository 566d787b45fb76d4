//! The port to a container engine.
//!
//! Every method is one action whose result is certain or an error; none retries. `migrate` builds on this port alone,
//! so that it runs the same over a real engine and over the one in memory that tests use.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use serde::{Deserialize, Serialize};

use crate::container::{ContainerSpec, ContainerStatus, ContainerSummary, LayerChanges, RestartPolicy};
use crate::fault::{Explain, FaultKind};
use crate::ids::{ContainerId, ContainerName, Digest};
use crate::image::{ImageBlob, ImageSpec};
use crate::memory::{DumpKind, Dumped, LiveFacts, MemoryReport, Obstacle};
use crate::network::NetworkSpec;
use crate::node::EngineFacts;
use crate::storage::{ElementAt, ElementPlace, VolumeSpec, VolumeUser};

/// Bytes of an image archive, in order. An error ends it; what was received until then must not be used.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, EngineError>> + Send>>;

/// An image archive under way.
pub struct ImageArchive {
    /// Length in bytes, if it is known beforehand.
    pub length: Option<u64>,
    /// The archive in `docker save` form.
    pub stream: ByteStream,
}

impl std::fmt::Debug for ImageArchive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageArchive")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

/// How a container is made again elsewhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CreateRequest {
    /// The container as the source describes it.
    pub spec: ContainerSpec,
    /// Name at the destination.
    pub name: String,
    /// Ports of the host that are published elsewhere: old → new.
    pub publish: BTreeMap<u16, u16>,
    /// Restart policy to create it with; the source's own comes back after the hand-over.
    pub restart_policy: RestartPolicy,
    /// Volumes come as new and empty ones. Without this, a container with volumes or bind mounts that `carried` does not
    /// name is refused.
    pub empty_volumes: bool,
    /// The mounts whose data comes along, by their path in the container: for a named volume its name at the destination,
    /// for an anonymous one an empty text (the engine makes up a new name), for a bind mount the path of the host there.
    /// Named volumes must be there. One that is still empty may be filled from the image while the container is made.
    #[serde(default)]
    pub carried: BTreeMap<String, String>,
    /// Ask the engine for new addresses even where the user fixed them.
    pub drop_fixed_addresses: bool,
}

/// What exactly an engine refused or failed at.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// No engine answers.
    #[error("the engine at {endpoint} cannot be reached")]
    Unreachable {
        /// Socket or address.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// The engine's socket is there, but closed to this user.
    #[error("permission denied at the engine's socket {endpoint}")]
    Denied {
        /// Socket.
        endpoint: String,
    },
    /// The engine does not know the thing.
    #[error("there is no {what} {name:?}")]
    NotFound {
        /// `container`, `image`, `network`, `volume`, `file`.
        what: &'static str,
        /// As it was asked for.
        name: String,
    },
    /// Something of that name or address is there already, or in use.
    #[error("the engine refused to {action}: {message}")]
    Conflict {
        /// What was asked, such as `create container web`.
        action: String,
        /// The engine's own words.
        message: String,
    },
    /// The engine refused or failed.
    #[error("the engine could not {action}: {message}")]
    Failed {
        /// What was asked.
        action: String,
        /// HTTP status, 0 if none.
        status: u16,
        /// The engine's own words.
        message: String,
    },
    /// The engine's answer broke off or made no sense; whether it did the thing is not known.
    #[error("the engine's answer to {action} broke off: {message}")]
    Uncertain {
        /// What was asked.
        action: String,
        /// What was seen.
        message: String,
    },
    /// The engine's storage has no room left.
    #[error("no space left for the engine to {action}")]
    NoSpace {
        /// What was asked.
        action: String,
        /// The engine's own words.
        message: String,
    },
    /// What arrived or is stored is not what its digest says.
    #[error("{what} is damaged: {message}")]
    Corrupt {
        /// Layer or archive.
        what: String,
        /// What was found.
        message: String,
    },
    /// This engine or this route can't do it.
    #[error("{message}")]
    Unsupported {
        /// What and why.
        message: String,
    },
}

impl Explain for EngineError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "engine.unreachable",
            Self::Denied { .. } => "engine.denied",
            Self::NotFound { what, .. } => match *what {
                "container" => "container.not-found",
                "image" => "image.not-found",
                "network" => "network.not-found",
                "volume" => "volume.not-found",
                "file" => "file.not-found",
                _ => "engine.not-found",
            },
            Self::Conflict { .. } => "engine.conflict",
            Self::Failed { .. } => "engine.failed",
            Self::Uncertain { .. } => "engine.uncertain",
            Self::NoSpace { .. } => "engine.no-space",
            Self::Corrupt { .. } => "image.corrupt",
            Self::Unsupported { .. } => "engine.unsupported",
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unreachable { reason, .. } => format!(
                "is docker or podman installed and running there? ({reason}) Try `docker version` on that machine"
            ),
            Self::Denied { .. } => {
                "log in as root, or add the user to the group that owns the socket (`usermod -aG docker USER`)".into()
            }
            Self::NotFound { what: "container", .. } => {
                "`docker ps -a` on that machine shows the names; check --from as well".into()
            }
            Self::NotFound { .. } => return None,
            Self::Conflict { .. } => "something with this name, port or address is in use there; see the message".into(),
            Self::Failed { .. } => "the engine's log on that machine says more".into(),
            Self::Uncertain { .. } => {
                "the engine may have restarted; check it with `docker ps -a` there and run the command again".into()
            }
            Self::NoSpace { .. } => "free space there (`docker system df`, `docker system prune`) and try again".into(),
            Self::Corrupt { .. } => {
                "the engine's storage there may be damaged; `docker save` of the same image tells".into()
            }
            Self::Unsupported { .. } => return None,
        })
    }

    fn kind(&self) -> FaultKind {
        FaultKind::Environment
    }
}

/// How a command in a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecOutcome {
    /// Its exit code; `None` where it did not end in time.
    pub exit_code: Option<i64>,
    /// The last 4 KiB that it wrote, to either stream.
    pub output: String,
}

/// How an engine unpacks an archive in a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// Neither replace a directory by something else nor the other way round.
    pub no_overwrite_dir_non_dir: bool,
    /// Files become those of the container's user, if it has one.
    pub copy_uid_gid: bool,
}

/// A container's root directory, through one of its processes.
#[derive(Debug)]
pub struct LiveRoot {
    /// The directory. As long as it is open, what is mounted there stays.
    pub directory: OwnedFd,
    /// The process, by its number here.
    pub process: i64,
}

/// A container engine on one node.
#[async_trait]
pub trait Engine: Send + Sync {
    /// What the engine says about itself.
    async fn facts(&self) -> Result<EngineFacts, EngineError>;

    /// Everything about one container, its image and its user-defined networks included.
    async fn inspect(&self, container: &ContainerName) -> Result<ContainerSpec, EngineError>;

    /// What a container does now.
    async fn status(&self, container: &ContainerId) -> Result<ContainerStatus, EngineError>;

    /// All containers, stopped ones included.
    async fn containers(&self) -> Result<Vec<ContainerSummary>, EngineError>;

    /// What the container wrote into its layer, caches and run-time files left out.
    async fn layer_changes(&self, container: &ContainerId) -> Result<LayerChanges, EngineError>;

    /// The image that `reference` (tag, digest or id) means, if there is one and all its layers are there.
    async fn image(&self, reference: &str) -> Result<Option<ImageSpec>, EngineError>;

    /// All images that have a tag or that nothing else is made of; not the steps of a build in between.
    async fn images(&self) -> Result<Vec<ImageSpec>, EngineError> {
        Err(EngineError::Unsupported {
            message: "this engine does not list its images".into(),
        })
    }

    /// The configuration document of an image, byte for byte: its digest is the id.
    async fn image_config(&self, image: &Digest) -> Result<Bytes, EngineError> {
        Err(EngineError::Unsupported {
            message: format!("this engine does not give out the configuration of {image}"),
        })
    }

    /// Length of the plain tar of every layer in bytes, lowest first.
    async fn layer_lengths(&self, image: &ImageSpec) -> Result<Vec<u64>, EngineError> {
        Err(EngineError::Unsupported {
            message: format!("this engine does not give out single layers of {}", image.id),
        })
    }

    /// The plain tar of one layer from the byte `offset` on. From its first byte on, its digest is compared: if that is not what it should
    /// be, the stream ends in an error before its last bytes are handed out. From any other byte on, what is there is given at once and
    /// compared with nothing: whoever has the beginning has to compare the whole.
    async fn layer(&self, image: &ImageSpec, index: usize, offset: u64) -> Result<ByteStream, EngineError> {
        Err(EngineError::Unsupported {
            message: format!(
                "this engine does not give out single layers: number {index} of {} from byte {offset}",
                image.id
            ),
        })
    }

    /// The blobs that are here of these images, as the engine keeps them and of all platforms, each once. `None` where the engine
    /// keeps plain layers.
    async fn image_blobs(&self, images: &[Digest]) -> Result<Option<Vec<ImageBlob>>, EngineError> {
        let _ = images;
        Ok(None)
    }

    /// These bytes of a blob. Where they are all of it, its digest is compared as that of a layer is ([`Engine::layer`]); parts are given
    /// as they are kept.
    async fn image_blob(&self, blob: &ImageBlob, part: Range<u64>) -> Result<ByteStream, EngineError> {
        Err(EngineError::Unsupported {
            message: format!(
                "this engine does not give out blobs: {} from byte {}",
                blob.digest, part.start
            ),
        })
    }

    /// Which of these blobs are not here, where the engine keeps blobs.
    async fn blobs_lacking(&self, blobs: &[Digest]) -> Result<Vec<Digest>, EngineError> {
        Err(EngineError::Unsupported {
            message: format!("this engine does not say which of {} blobs it has", blobs.len()),
        })
    }

    /// How many of the lowest `layers` are here, as one stack: by the digests that [`ImageSpec::known_layers`] gives.
    async fn layers_held(&self, layers: &[Digest]) -> Result<usize, EngineError>;

    /// Bytes of the archive that [`Engine::export_image`] would give, for every number of skipped lowest layers from
    /// none to all. Empty where that cannot be told beforehand.
    async fn archive_sizes(&self, image: &ImageSpec, tag: Option<&str>) -> Result<Vec<u64>, EngineError>;

    /// The image as an archive in `docker save` form, without its `skip` lowest layers, bearing `tag`.
    async fn export_image(
        &self,
        image: &ImageSpec,
        tag: Option<&str>,
        skip: usize,
    ) -> Result<ImageArchive, EngineError>;

    /// Takes in an archive as [`Engine::export_image`] makes it. Nothing is kept if it fails.
    async fn import_image(&self, archive: ByteStream) -> Result<(), EngineError>;

    /// Gives the image a tag; a tag that pointed elsewhere moves.
    async fn tag_image(&self, image: &Digest, tag: &str) -> Result<(), EngineError>;

    /// Takes a tag off, or removes the image if `reference` is an id. Layers that nothing else needs go with the last
    /// reference. Done already is done well.
    async fn remove_image(&self, reference: &str) -> Result<(), EngineError>;

    /// All networks.
    async fn networks(&self) -> Result<Vec<NetworkSpec>, EngineError>;

    /// Makes a network like `spec`, with addresses of the engine's choice if `new_subnets`. Returns its id.
    async fn create_network(&self, spec: &NetworkSpec, new_subnets: bool) -> Result<String, EngineError>;

    /// Removes a network by id. Done already is done well.
    async fn remove_network(&self, id: &str) -> Result<(), EngineError>;

    /// Names of all volumes.
    async fn volumes(&self) -> Result<Vec<String>, EngineError>;

    /// All volumes with their attributes and the containers that mount them. `guid` is left empty.
    async fn volume_specs(&self) -> Result<Vec<VolumeSpec>, EngineError>;

    /// The containers whose mounts touch a path of the host, as [`crate::storage::mount_touches`] has it; stopped ones included.
    async fn path_users(&self, path: &str) -> Result<Vec<VolumeUser>, EngineError>;

    /// Makes a volume with the name, driver, options and labels of `spec`. One of that name that is there already is a
    /// conflict, also where the engine itself would take it for the same.
    async fn create_volume(&self, spec: &VolumeSpec) -> Result<(), EngineError>;

    /// Where an element's files are and how this process reaches them: directly where it can, else through the engine. For
    /// [`ElementPlace::Archive`] a container of the same image may be made, which is never started;
    /// [`Engine::release`] takes it away.
    async fn locate(&self, element: &ElementAt) -> Result<ElementPlace, EngineError>;

    /// Takes away what [`Engine::locate`] made for this place. Done already is done well.
    async fn release(&self, place: &ElementPlace) -> Result<(), EngineError>;

    /// The files at a path of a container as a tar archive, as `docker cp CONTAINER:PATH -` gives them.
    async fn export_path(&self, container: &ContainerId, path: &str) -> Result<ByteStream, EngineError>;

    /// Unpacks a tar archive into a directory of a container. Numeric owners are kept.
    async fn import_path(
        &self,
        container: &ContainerId,
        path: &str,
        archive: ByteStream,
    ) -> Result<(), EngineError>;

    /// As [`Engine::import_path`], in the ways that the engine's archive API offers.
    async fn import_path_with(
        &self,
        container: &ContainerId,
        path: &str,
        options: ImportOptions,
        archive: ByteStream,
    ) -> Result<(), EngineError> {
        if options == ImportOptions::default() {
            return self.import_path(container, path, archive).await;
        }
        Err(EngineError::Unsupported {
            message: "this engine unpacks archives in one way only".into(),
        })
    }

    /// What is at a path of a container: the header `X-Docker-Container-Path-Stat` of the engine's archive API.
    async fn path_stat(&self, container: &ContainerId, path: &str) -> Result<String, EngineError> {
        Err(EngineError::Unsupported {
            message: format!("this engine does not say what is at {path} of {container}"),
        })
    }

    /// The root directory of a container that runs or is paused, through one of its processes, as this process may use
    /// it: with everything that is mounted there. `None` where that cannot be had.
    async fn live_root(&self, container: &ContainerId) -> Result<Option<LiveRoot>, EngineError> {
        let _ = container;
        Ok(None)
    }

    /// Freezes a container's processes. Paused already is done well.
    async fn pause(&self, container: &ContainerId) -> Result<(), EngineError>;

    /// Lets a paused container go on. Running already is done well.
    async fn unpause(&self, container: &ContainerId) -> Result<(), EngineError>;

    /// Kills a container's main process and waits until it is gone, a paused one included. Stopped already is done well.
    async fn kill(&self, container: &ContainerId) -> Result<(), EngineError>;

    /// What this node has for dumping and restoring memory.
    async fn live_facts(&self) -> Result<LiveFacts, EngineError> {
        Ok(LiveFacts {
            obstacles: vec![Obstacle::new(
                "live.engine",
                "this engine's containers cannot be dumped",
                "",
            )],
            ..LiveFacts::default()
        })
    }

    /// The memory of a running container, and what of it could not travel. `None` where this process cannot look.
    async fn memory(&self, spec: &ContainerSpec) -> Result<Option<MemoryReport>, EngineError> {
        let _ = spec;
        Ok(None)
    }

    /// Writes the memory of a container that runs or is paused to where [`Engine::locate`] says, in place of what is there, or beside it
    /// if this is one of several that belong together. It stands still meanwhile, and then is as it was: running, or paused. `element` is
    /// an [`ElementAt::Memory`].
    async fn dump(&self, element: &ElementAt, kind: DumpKind) -> Result<Dumped, EngineError> {
        let _ = kind;
        Err(EngineError::Unsupported {
            message: format!("this engine does not dump {element}"),
        })
    }

    /// Takes away what an earlier [`Engine::dump`] wrote, so that the next one need not: that takes long where it was much. Until then
    /// there is none to go back to.
    async fn clear_dump(&self, element: &ElementAt) -> Result<(), EngineError> {
        let _ = element;
        Ok(())
    }

    /// Whether [`Engine::dump`] came to its end, on this boot of the machine, and what it wrote is still there.
    async fn has_dump(&self, element: &ElementAt) -> Result<bool, EngineError> {
        let _ = element;
        Ok(false)
    }

    /// Starts a container that does not run from what [`Engine::locate`] has for it: its processes go on where they were dumped, and
    /// connections that they had are closed. What is there must be of this boot of the machine.
    async fn restore(&self, element: &ElementAt) -> Result<(), EngineError> {
        Err(EngineError::Unsupported {
            message: format!("this engine does not restore {element}"),
        })
    }

    /// Whether processes of a container run of which the engine knows nothing, because it was killed while it restored them. What is just
    /// ending is waited for.
    ///
    /// # Errors
    /// What the engine says.
    async fn has_strays(&self, container: &ContainerId) -> Result<bool, EngineError> {
        let _ = container;
        Ok(false)
    }

    /// What keeps a container from being restored here that a dump does not know.
    ///
    /// # Errors
    /// What the engine says.
    async fn restore_obstacles(&self, spec: &ContainerSpec) -> Result<Vec<Obstacle>, EngineError> {
        let _ = spec;
        Ok(Vec::new())
    }

    /// When the engine will say that a container which does not run was started last, once a restore of it is ordered: if that is another
    /// time than it says now, without a start. Podman forgets a restore of before as it makes some containers ready for the next one.
    ///
    /// # Errors
    /// What the engine says.
    async fn start_told_later(&self, container: &ContainerId) -> Result<Option<String>, EngineError> {
        let _ = container;
        Ok(None)
    }

    /// Takes back what was done to a container for a restore that did not begin. It stands still then as before. Nothing to take back is
    /// done well, and what runs goes on.
    ///
    /// # Errors
    /// What the engine says.
    async fn take_restore_back(&self, container: &ContainerId) -> Result<(), EngineError> {
        let _ = container;
        Ok(())
    }

    /// Removes the dump of a container. Gone already is done well.
    async fn forget(&self, element: &ElementAt) -> Result<(), EngineError> {
        let _ = element;
        Ok(())
    }

    /// Runs `command` with `sh -c` in a running container as its own user, and waits for its end; at most `timeout`.
    async fn exec(
        &self,
        container: &ContainerId,
        command: &str,
        timeout: Duration,
    ) -> Result<ExecOutcome, EngineError>;

    /// Removes a volume by name. Done already is done well.
    async fn remove_volume(&self, name: &str) -> Result<(), EngineError>;

    /// Makes a container and joins it to all its networks; it is not started. A half-made one is removed.
    async fn create_container(&self, request: &CreateRequest) -> Result<ContainerId, EngineError>;

    /// Starts a container. Running already is done well.
    async fn start(&self, container: &ContainerId) -> Result<(), EngineError>;

    /// Stops a container, with the stop signal and time that it was made with. Stopped already is done well.
    async fn stop(&self, container: &ContainerId, timeout: Option<Duration>) -> Result<(), EngineError>;

    /// Removes a container, by force, with its anonymous volumes. Gone already is done well.
    async fn remove_container(&self, container: &ContainerId) -> Result<(), EngineError>;

    /// Removes a container, by force, and leaves its volumes: what they hold may be wanted. Gone already is done well.
    async fn remove_container_only(&self, container: &ContainerId) -> Result<(), EngineError>;

    /// Gives a container another name.
    async fn rename(&self, container: &ContainerId, name: &str) -> Result<(), EngineError>;

    /// Sets a container's restart policy.
    async fn set_restart_policy(
        &self,
        container: &ContainerId,
        policy: &RestartPolicy,
    ) -> Result<(), EngineError>;

    /// The last lines that a container wrote, for explanations. At most `lines` of them.
    async fn log_tail(&self, container: &ContainerId, lines: usize) -> Result<Vec<String>, EngineError>;
}
