//! Checkpoints: what the processes of a container held in memory at one moment, kept encrypted on their node.
//!
//! The runtime dumps and the engine restores, as in live mode ([`tranship_core::Engine::dump`]). What is kept is memory alone: files
//! stay where they are, and a restore first compares them with what they were (`look`). So
//!
//! * a container that was ended with its checkpoint goes on from it once, as long as nobody started it since;
//! * one that was left running goes back to it as long as no file is another since, or if its user says that this does not matter.
//!
//! What a container is, is asked of the engine each time; a checkpoint holds nothing that could say otherwise.
//!
//! | module | |
//! |---|---|
//! | `create`, `restore` | what is done, step by step |
//! | `finish` | how a container is ended for its checkpoint, and how all is taken back |
//! | `recover` | what is done about those that were left half done, by this agent or one before it |
//! | `store` | directories, descriptions and notes |
//! | `seal`, `images` | encryption, and the images of a dump in one file |
//! | `transfer`, `archive`, `oci_image` | checkpoints that leave their node and come back, and their forms then |
//! | `look` | what files were like |

mod api;
mod archive;
mod create;
mod error;
mod finish;
mod images;
mod look;
mod oci_image;
mod recover;
mod restore;
mod seal;
mod store;
mod transfer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use tranship_core::container::{ContainerState, ContainerStatus};
use tranship_core::fault::FaultKind;
use tranship_core::ids::{CheckpointName, ContainerName};
use tranship_core::{ContainerId, ContainerSpec, Engine, EngineError, Fault};

pub(crate) use self::api::answer;
use self::error::CheckpointError;
use self::seal::NodeKey;
use self::store::{Kept, Store};
use crate::registry::Registry;

/// Asks for a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateCheckpoint {
    /// The container.
    pub container: ContainerName,
    /// What it is called; the time in milliseconds since 1970 if not given.
    #[serde(default)]
    pub name: Option<CheckpointName>,
    /// The container goes on after the dump. Otherwise it is ended.
    #[serde(default)]
    pub leave_running: bool,
}

/// Asks for a container to go on from a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreCheckpoint {
    /// The container.
    pub container: ContainerName,
    /// Which of its checkpoints; the only one if not given.
    #[serde(default)]
    pub name: Option<CheckpointName>,
    /// Also if its files changed since.
    #[serde(default)]
    pub changed_files: bool,
}

/// How an archive of a checkpoint holds what was in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArchiveMemory {
    /// Sealed with the node's key: nobody else can read it.
    Encrypted,
    /// As it is, laid out as podman does it: for other programs, and for whoever gets hold of it.
    Unencrypted,
}

impl std::fmt::Display for ArchiveMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Encrypted => "encrypted",
            Self::Unencrypted => "unencrypted",
        })
    }
}

/// Asks for a checkpoint as an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportCheckpoint {
    /// The container.
    pub container: ContainerName,
    /// Which of its checkpoints; the only one if not given.
    #[serde(default)]
    pub name: Option<CheckpointName>,
    /// Whether others can read it.
    pub memory: ArchiveMemory,
    /// Compresses it with zstd. What is encrypted stays as it is.
    #[serde(default)]
    pub compress: bool,
    /// Writes an image of OCI's whose layer the archive is. Only of what others can read.
    #[serde(default)]
    pub oci: bool,
}

/// Brings a checkpoint back from an archive, which follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportCheckpoint {
    /// The container that it is of.
    pub container: ContainerName,
    /// What it is called from now on; as before if not given.
    pub name: Option<CheckpointName>,
}

/// What would come of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointState {
    /// It can be restored, unless files changed, which only a restore looks at.
    Ready,
    /// The container runs, and has to be stopped first.
    Running,
    /// The container was started since.
    StartedSince,
    /// It was restored, or may have been.
    Used,
    /// The container was removed.
    ContainerGone,
    /// The container was moved to another node, or is on its way.
    Moved,
    /// How its making, or a restore of it, ended is not settled yet.
    Unsettled,
}

impl std::fmt::Display for CheckpointState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Running => "container runs",
            Self::StartedSince => "container was started since",
            Self::Used => "used",
            Self::ContainerGone => "container is gone",
            Self::Moved => "container was moved",
            Self::Unsettled => "not settled yet",
        })
    }
}

/// A checkpoint in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointInfo {
    /// Its name.
    pub name: CheckpointName,
    /// The container's name: the one that it has now, else the one that it had.
    pub container: String,
    /// The container.
    pub container_id: ContainerId,
    /// Milliseconds since 1970 when it was made.
    pub created_at_ms: u64,
    /// The container was left running.
    pub left_running: bool,
    /// Bytes of memory, files of CRIU included.
    pub memory_bytes: u64,
    /// Bytes on the disk.
    pub stored_bytes: u64,
    /// What would come of a restore.
    pub state: CheckpointState,
}

/// What was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointCreated {
    /// The checkpoint.
    #[serde(flatten)]
    pub checkpoint: CheckpointInfo,
    /// Places whose files are not kept, and have to be the same at the restore.
    pub compared: Vec<String>,
    /// Places whose files are neither kept nor compared.
    pub not_compared: Vec<String>,
    /// Established TCP connections, which a restore closes.
    pub connections: u64,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRestored {
    /// The checkpoint's name.
    pub name: CheckpointName,
    /// The container's name.
    pub container: String,
    /// The container runs.
    pub running: bool,
    /// The checkpoint is still there.
    pub kept: bool,
    /// Places whose files changed since it was made, which was said not to matter.
    pub changed: Vec<String>,
}

/// The checkpoints of this node.
pub struct Checkpoints {
    registry: Arc<Registry>,
    key: PathBuf,
    /// Held while the key is read or made: two checkpoints at once must not make two.
    making_key: tokio::sync::Mutex<()>,
    /// Set once it is settled what an agent before this one left half done.
    settled: OnceCell<()>,
}

impl Checkpoints {
    /// Keeps its key under `state_directory`.
    #[must_use]
    pub fn new(registry: Arc<Registry>, state_directory: &Path) -> Arc<Self> {
        Arc::new(Self {
            registry,
            key: state_directory.join("checkpoint.key"),
            making_key: tokio::sync::Mutex::default(),
            settled: OnceCell::new(),
        })
    }

    fn engine(&self) -> &dyn Engine {
        self.registry.engine().as_ref()
    }

    /// The checkpoints on the disk, once nothing of an earlier agent's is half done.
    async fn store(&self) -> Result<Store, Fault> {
        if !rustix::process::geteuid().is_root() {
            return Err(CheckpointError::Root.into());
        }
        let data_root = self.engine().facts().await?.root_directory;
        let store = Store::beside(Path::new(&data_root));
        self.settled.get_or_try_init(|| self.recover(&store)).await?;
        Ok(store)
    }

    async fn node_key(&self, make: bool) -> Result<NodeKey, Fault> {
        let _alone = self.making_key.lock().await;
        let path = self.key.clone();
        blocking(move || NodeKey::open(&path, make)).await
    }

    /// All checkpoints of this node, oldest first.
    ///
    /// # Errors
    /// `checkpoint.root`, `checkpoint.store`; what the engine says.
    pub async fn list(&self) -> Result<Vec<CheckpointInfo>, Fault> {
        let store = self.store().await?;
        let mut list = Vec::new();
        for kept in store.all()? {
            list.push(self.info(&kept).await?);
        }
        Ok(list)
    }

    async fn info(&self, kept: &Kept) -> Result<CheckpointInfo, Fault> {
        let spec = self.spec_of(&kept.about.begun.container).await?;
        let moved = match &spec {
            Some(spec) => self.has_moved(kept, spec)?,
            None => false,
        };
        Ok(info_of(kept, spec.as_ref(), moved))
    }

    /// Whether its container belongs to another node, or is on its way there. That is noted, since records of migrations do not stay for
    /// ever.
    fn has_moved(&self, kept: &Kept, spec: &ContainerSpec) -> Result<bool, Fault> {
        let moved = self.registry.moved(spec);
        if moved.as_ref().is_some_and(|moved| moved.over) && !kept.is_moved() {
            kept.moved()?;
        }
        Ok(moved.is_some() || kept.is_moved())
    }

    /// A container by its id, if it is there.
    async fn spec_of(&self, container: &ContainerId) -> Result<Option<ContainerSpec>, Fault> {
        Ok(spec_by_id(self.engine(), container).await?)
    }

    /// Removes a checkpoint for good, also one whose container is gone. A container that waits for it, or that runs, gets its restart
    /// policy back.
    ///
    /// # Errors
    /// `checkpoint.not-found`, `checkpoint.store`; `container.checkpointing`; what the engine says.
    pub async fn remove(&self, container: &ContainerName, name: &CheckpointName) -> Result<(), Fault> {
        let store = self.store().await?;
        let named = self.named(container).await?;
        let Some(kept) = find(&store, container, named.as_ref(), Some(name))? else {
            // One that cannot be read can be removed all the same.
            return match named.filter(|spec| store.holds(&spec.id, name)) {
                Some(spec) => {
                    let _hold = self.registry.hold_any(&create::new_id()?, &spec)?;
                    Ok(store.remove(&spec.id, name)?)
                }
                None => Err(not_found(container, Some(name))),
            };
        };
        // Its container may have another name by now.
        let id = &kept.about.begun.container;
        let Some(spec) = self.spec_of(id).await? else {
            return Ok(kept.remove()?);
        };
        let _hold = self.registry.hold_any(&create::new_id()?, &spec)?;
        if kept.is_unfinished() || kept.is_restoring() {
            return Err(Fault::of(&CheckpointError::Unfinished {
                container: spec.name,
                name: name.to_string(),
            }));
        }
        let Some(spec) = self.spec_of(id).await? else {
            return Ok(kept.remove()?);
        };
        // It does not wait for this one where it was started since: then for none if it runs, and maybe for another if it does not.
        let waits = kept.is_of_run_begun(&spec.status.started_at);
        if !self.has_moved(&kept, &spec)? && (waits || finish::is_up(&spec.status)) {
            kept.used(true)?;
            self.unpark(&kept.about.begun, &spec).await?;
        }
        Ok(kept.remove()?)
    }

    /// A container by what it is called.
    async fn named(&self, container: &ContainerName) -> Result<Option<ContainerSpec>, Fault> {
        Ok(spec_by_name(self.engine(), container).await?)
    }
}

/// A container by its id, if it is there.
async fn spec_by_id(
    engine: &dyn Engine,
    container: &ContainerId,
) -> Result<Option<ContainerSpec>, EngineError> {
    let name = ContainerName::new(container.as_str()).map_err(|error| EngineError::Unsupported {
        message: error.to_string(),
    })?;
    spec_by_name(engine, &name).await
}

/// A container by what it is called, if it is there.
async fn spec_by_name(
    engine: &dyn Engine,
    name: &ContainerName,
) -> Result<Option<ContainerSpec>, EngineError> {
    match engine.inspect(name).await {
        Ok(spec) => Ok(Some(spec)),
        Err(EngineError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A checkpoint in a list, by what is known of its container.
fn info_of(kept: &Kept, spec: Option<&ContainerSpec>, moved: bool) -> CheckpointInfo {
    let about = &kept.about;
    let state = match spec {
        None => CheckpointState::ContainerGone,
        Some(_) if moved => CheckpointState::Moved,
        Some(spec) => state(kept, &spec.status),
    };
    CheckpointInfo {
        name: about.name.clone(),
        container: spec.map_or_else(|| about.container_name.clone(), |spec| spec.name.clone()),
        container_id: about.begun.container.clone(),
        created_at_ms: about.created_at_ms,
        left_running: about.begun.leave_running,
        memory_bytes: about.image_bytes,
        stored_bytes: kept.stored_bytes(),
        state,
    }
}

/// What would come of a restore.
fn state(kept: &Kept, status: &ContainerStatus) -> CheckpointState {
    if kept.is_unfinished() || kept.is_restoring() {
        return CheckpointState::Unsettled;
    }
    if kept.is_used() {
        return CheckpointState::Used;
    }
    if restore::is_started_since(kept, status) {
        return CheckpointState::StartedSince;
    }
    match status.state {
        ContainerState::Created | ContainerState::Exited | ContainerState::Dead => CheckpointState::Ready,
        _ => CheckpointState::Running,
    }
}

/// The checkpoint that is meant: of the container, or, where there is none of that name any more, of one that had it.
fn find(
    store: &Store,
    container: &ContainerName,
    spec: Option<&ContainerSpec>,
    name: Option<&CheckpointName>,
) -> Result<Option<Kept>, Fault> {
    let mut found = store.all()?;
    found.retain(|kept| match spec {
        Some(spec) => kept.about.begun.container == spec.id,
        None => {
            let id = kept.about.begun.container.as_str();
            kept.about.container_name == container.as_str() || id.starts_with(container.as_str())
        }
    });
    if let Some(name) = name {
        found.retain(|kept| &kept.about.name == name);
    }
    if found.len() > 1 {
        return Err(Fault::of(&CheckpointError::Which {
            container: container.to_string(),
            names: found.iter().map(|kept| kept.about.name.to_string()).collect(),
        }));
    }
    Ok(found.pop())
}

fn not_found(container: &ContainerName, name: Option<&CheckpointName>) -> Fault {
    Fault::of(&CheckpointError::NotFound {
        container: container.to_string(),
        name: name.map_or_else(|| "(any)".to_owned(), ToString::to_string),
    })
}

/// Runs what blocks in a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CheckpointError> + Send + 'static,
) -> Result<T, Fault> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| Fault::new("agent.task", FaultKind::Bug, error.to_string()))?;
    done.map_err(Fault::from)
}
