//! The memory of containers: dumps by the runtime, restores by the engine.
//!
//! Docker's own `checkpoint` and `start --checkpoint` pack and copy the images of CRIU several times: 25 s and 22 s for one gigabyte,
//! where the runtime takes one. So the runtime dumps, into a directory of ours, and the engine restores from small images and
//! relative links to the large ones, which it packs as links. It keeps its books that way: logs, `exec`, `stop` and restart
//! policies work on.
//!
//! A container that is paused stays paused while it is dumped: CRIU puts the freezer back before it lets go of the processes
//! (`pstree_switch_state` in `criu/seize.c`).
//!
//! A dump holds everything that the processes had in memory, secrets included. Its directory is root's alone, lies in memory where
//! there is room (`/dev/shm`), else beside the engine's data, and is never believed after a reboot.

mod chain;
mod compare;
mod dump;
mod explain;
mod facts;
mod held;
mod layout;
mod message;
mod pagemap;
mod podman;
mod room;
mod sockets;

use self::dump::Dump;
pub(crate) use self::podman::crun_root;

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tranship_core::container::ContainerState;
use tranship_core::memory::Obstacle;
use tranship_core::storage::ElementAt;
use tranship_core::{ContainerId, Engine as _, EngineError};

use crate::docker::DockerEngine;
use crate::fault::Ask;
use crate::json::text;
use crate::programs::program;

/// Directory in which dumps lie, below one of the roots.
const DUMPS: &str = "tranship-memory";
/// Directory of a container's dump with the images, which are what travels.
const IMAGES: &str = "images";
/// Directory beside it, for logs.
const WORK: &str = "work";
/// File beside it that names the boot of the machine on which the directory was made.
const BOOT: &str = "boot";
/// File beside it that is there once a dump came to its end.
const COMPLETE: &str = "complete";
/// File beside it that is there once a restore was asked for which may have succeeded.
const USED: &str = "used";
/// File beside it that is locked as long as a dump is under way, also if the agent that began it is gone.
const LOCK: &str = "lock";
/// How long a dump that an earlier agent began is waited for.
const DUMP_WITHIN: Duration = Duration::from_secs(600);
/// Where the runtime looks for what CRIU is to do beyond what it says itself.
const RUNTIME_CONFIGURATION: &str = "/etc/criu/runc.conf";
/// Image that every dump has.
const INVENTORY: &str = "inventory.img";
/// How long a restore may take at least, and for each gigabyte on top of it. What is left to itself may still come to its end.
const RESTORE_WITHIN: Duration = Duration::from_secs(120);
const RESTORE_PER_GIB: u64 = 60;
/// Where containerd has its temporary directories: the usual place, and that of a session of root's.
const TEMPORARY: [&str; 2] = ["/tmp", "/run/user/0"];
/// Time between two looks whether a dump has ended.
const AGAIN: Duration = Duration::from_millis(50);
/// Deleted files that are still open are kept in the dump up to this size, in bytes.
const LARGEST_GHOST: u64 = 1 << 30;

impl DockerEngine {
    pub(crate) async fn place_of_memory(
        &self,
        container: &ContainerId,
        bytes: u64,
    ) -> Result<PathBuf, EngineError> {
        let dump = self.dump_of(container, bytes).await?;
        let ask = Ask::new("make room for the memory of", "container", container.as_str());
        dump.make().map_err(|error| ask.failed(error))?;
        Ok(dump.images())
    }

    /// Whether this process is root where the engine's containers run.
    pub(crate) fn reaches_processes(&self) -> bool {
        rustix::process::geteuid().is_root() && self.root_prefix == Path::new("/")
    }

    /// Where the dump of a container is, or is to be.
    async fn dump_of(&self, container: &ContainerId, bytes: u64) -> Result<Dump, EngineError> {
        let unsupported = |why: &str| EngineError::Unsupported {
            message: format!("memory can neither be dumped nor restored here: {why}"),
        };
        if !self.reaches_processes() {
            return Err(unsupported("that takes root on the engine's own machine"));
        }
        let memory = PathBuf::from(room::IN_MEMORY);
        let name = Path::new(DUMPS).join(container.as_str());
        // Anybody may make directories in memory: what is not root's alone is not ours.
        let ours = |root: &Path| is_private(&root.join(DUMPS)) && is_private(&root.join(&name));
        // The engine takes its time to say where its data is, and is not asked while a container stands still for nothing.
        let root = if ours(&memory) {
            memory
        } else {
            let disk = self.identity().await?.root;
            let all = memory.join(DUMPS);
            let taken = all.symlink_metadata().is_ok() && !is_private(&all);
            // What the processes share is in the dump once for each.
            let held = look_at(container).await.map_or(0, |held| held.bytes);
            if !ours(&disk) && room::lies_in_memory(&memory, bytes.max(held)) && !taken {
                memory
            } else {
                disk
            }
        };
        Ok(Dump {
            container: container.clone(),
            bytes,
            directory: root.join(name),
        })
    }

    pub(crate) async fn empty_dump(&self, element: &ElementAt) -> Result<(), EngineError> {
        let (container, bytes) = memory_of(element)?;
        let dump = self.dump_of(container, bytes).await?;
        let ask = Ask::new("remove the dump of", "container", container.as_str());
        dump.make().map_err(|error| ask.failed(error))?;
        let lock = dump.alone().await.map_err(|error| ask.failed(error))?;
        // It may be as large as the memory.
        let cleared = tokio::task::spawn_blocking(move || {
            let cleared = dump.clear();
            drop(lock);
            cleared
        });
        let cleared = cleared.await.map_err(|error| ask.failed(error))?;
        cleared.map_err(|error| ask.failed(error))
    }

    pub(crate) async fn dump_is_there(&self, element: &ElementAt) -> Result<bool, EngineError> {
        let (container, bytes) = memory_of(element)?;
        let dump = self.dump_of(container, bytes).await?;
        if !dump.is_of_this_boot() {
            return Ok(false);
        }
        let ask = Ask::new("look for a dump of", "container", container.as_str());
        // One that is under way puts the freezer back at its end into the state that it found.
        dump.alone().await.map_err(|error| ask.failed(error))?;
        Ok(!dump.directory.join(USED).exists() && dump.is_there())
    }

    pub(crate) async fn start_from_dump(&self, element: &ElementAt) -> Result<(), EngineError> {
        let (container, bytes) = memory_of(element)?;
        let dump = self.dump_of(container, bytes).await?;
        let ask = Ask::new("restore the memory of", "container", container.as_str());
        match self.status(container).await?.state {
            ContainerState::Running => return Ok(()),
            ContainerState::Paused | ContainerState::Restarting => {
                return Err(ask.failed("it runs already"));
            }
            _ => {}
        }
        self.let_go(container).await?;
        let newest = chain::newest(&dump.images()).map_err(|error| ask.failed(error))?;
        if !dump.is_of_this_boot() || !newest.join(INVENTORY).exists() {
            return Err(ask.failed("there is no dump of it, or the machine was started anew since"));
        }
        let used = dump.directory.join(USED);
        if used.exists() {
            return Err(ask.failed("it was restored from this dump before, or may have been"));
        }
        // The kernel would end whoever uses most, which may be somebody else. What was dumped here had its memory here, and is to be had
        // back at any price.
        if !dump.directory.join(COMPLETE).exists() {
            room::for_restore(&dump.images(), bytes).map_err(|error| ask.failed(error))?;
        }
        let checkpoint = self.checkpoint_of(container).await?;
        // It would be applied to memory that it does not belong to.
        if let Some(left) = podman::left_beside(&checkpoint).filter(|_| self.podman) {
            return Err(ask.failed(layout::LayoutError::Taken(left)));
        }
        let laid = layout::lay_out(&dump.images(), &checkpoint, container);
        let connections = laid.map_err(|error| ask.failed(error))?;
        tracing::debug!(connections, "closed in the dump");
        if self.podman {
            self.ready_for_restore(container).await?;
        }
        // First: an engine that is killed meanwhile does not know what it started.
        std::fs::write(&used, b"").map_err(|error| ask.failed(error))?;
        let started = self.start_from(&dump, &ask).await;
        // They are looked for again when the dump goes.
        if let Err(error) = layout::remove(&checkpoint, container).and(remove_unpacked(container)) {
            tracing::warn!("images of a restore of {container} are left: {error}");
        }
        let refused = matches!(
            started,
            Err(EngineError::Failed { .. } | EngineError::Conflict { .. } | EngineError::NoSpace { .. })
        );
        if refused && self.runtime_of(container).await.is_err() {
            or_missing(std::fs::remove_file(&used)).map_err(|error| ask.failed(error))?;
        }
        started
    }

    /// Where the engine looks for what it restores a container from.
    async fn checkpoint_of(&self, container: &ContainerId) -> Result<PathBuf, EngineError> {
        let root = self.identity().await?.root;
        if self.podman {
            return Ok(Self::podman_checkpoint(&root, container));
        }
        let containers = root.join("containers").join(container.as_str());
        Ok(containers.join("checkpoints").join(layout::NAME))
    }

    /// What others left where a container is restored from.
    pub(crate) async fn left_by_others(&self, container: &ContainerId) -> Result<Vec<Obstacle>, EngineError> {
        let ask = Ask::new("look for checkpoints of", "container", container.as_str());
        let checkpoint = self.checkpoint_of(container).await?;
        let taken = layout::is_taken(&checkpoint, container).map_err(|error| ask.failed(error))?;
        let beside = podman::left_beside(&checkpoint).filter(|_| self.podman);
        let left = taken.then_some(checkpoint).or(beside);
        Ok(left
            .map(layout::LayoutError::Taken)
            .iter()
            .map(obstacle)
            .collect())
    }

    async fn start_from(&self, dump: &Dump, ask: &Ask) -> Result<(), EngineError> {
        let id = dump.container.as_str();
        let path = if self.podman {
            Self::podman_restore(&dump.container)
        } else {
            format!("/containers/{id}/start?checkpoint={}", layout::NAME)
        };
        let gib = dump.bytes >> 30;
        let within = RESTORE_WITHIN + Duration::from_secs(RESTORE_PER_GIB.saturating_mul(gib));
        let log = if self.podman {
            let kept = podman::restore_log(&self.identity().await?.root, &dump.container);
            // One of an earlier try says nothing of this one.
            or_missing(std::fs::remove_file(&kept)).map_err(|error| ask.failed(error))?;
            explain::RestoreLog::of(kept)
        } else {
            explain::RestoreLog::watch(id)
        };
        let started = tokio::time::timeout(within, self.raw.act(&path, ask)).await;
        let log = log.end();
        match started {
            Ok(Ok(())) => Ok(()),
            Ok(Err(EngineError::Failed {
                action,
                status,
                message,
            })) => Err(EngineError::Failed {
                action,
                status,
                message: explain::restore(&log, &message),
            }),
            Ok(Err(other)) => Err(other),
            Err(_) => Err(ask.uncertain(format!("no answer within {} s", within.as_secs()))),
        }
    }

    pub(crate) async fn remove_dump(&self, element: &ElementAt) -> Result<(), EngineError> {
        let (container, bytes) = memory_of(element)?;
        if !self.reaches_processes() {
            return Ok(());
        }
        let ask = Ask::new("remove the dump of", "container", container.as_str());
        // In both places: which was chosen may have changed with what was free. The one in memory is known without the engine, which
        // may be away.
        let in_memory = remove_from(Path::new(room::IN_MEMORY), container);
        tracing::trace!(bytes, "the dump goes");
        let checkpoint = self.checkpoint_of(container).await?;
        let disk = self.identity().await?.root;
        let mut failed = remove_from(&disk, container).and(in_memory).err();
        // Small images were copied there for a restore that was interrupted.
        failed = layout::remove(&checkpoint, container).err().or(failed);
        failed = remove_unpacked(container).err().or(failed);
        failed.map_or(Ok(()), |error| Err(ask.failed(error)))
    }

    /// Whether a restore that the engine drives brings locks on files back. libpod is asked for them.
    fn restores_locks(&self) -> bool {
        self.podman || restores_locks()
    }

    /// The runtime that has the container's processes, and where it keeps what it knows of the engine's containers.
    async fn runtime_of(&self, container: &ContainerId) -> Result<Runtime, EngineError> {
        if self.podman {
            let root = podman::crun_root(container).ok_or_else(|| EngineError::Unsupported {
                message: "the runtime of the container is not crun, or keeps its records in another place"
                    .into(),
            })?;
            return Ok(Runtime {
                program: "crun",
                root,
            });
        }
        let document = self.document(container.as_str()).await?;
        let runtime = text(&document, &["HostConfig", "Runtime"]);
        let candidates = [runtime.as_str(), "runc", "io.containerd.runc.v2"];
        candidates
            .iter()
            .filter(|name| !name.is_empty() && !name.contains('/'))
            .flat_map(|name| {
                ["/run/docker", "/var/run/docker"]
                    .map(|run| PathBuf::from(format!("{run}/runtime-{name}/moby")))
            })
            .find(|root| root.join(container.as_str()).join("state.json").exists())
            .map(|root| Runtime { program: "runc", root })
            .ok_or_else(|| EngineError::Unsupported {
                message: format!(
                    "the runtime of the container ({runtime}) is not runc, or keeps its records in another place"
                ),
            })
    }
}

/// What keeps a restore from its place.
fn obstacle(taken: &layout::LayoutError) -> Obstacle {
    Obstacle::new("checkpoint.place-taken", taken.to_string(), "")
}

/// What has a container's processes.
struct Runtime {
    program: &'static str,
    /// Where it keeps its records.
    root: PathBuf,
}

impl Runtime {
    fn command(&self) -> Command {
        let mut command = program(self.program);
        command.arg("--root").arg(&self.root);
        command
    }
}

fn memory_of(element: &ElementAt) -> Result<(&ContainerId, u64), EngineError> {
    match element {
        ElementAt::Memory { container, bytes } => Ok((container, *bytes)),
        other => Err(EngineError::Unsupported {
            message: format!("{other} is no memory"),
        }),
    }
}

async fn look_at(container: &ContainerId) -> Result<held::Held, tokio::task::JoinError> {
    let container = container.clone();
    tokio::task::spawn_blocking(move || held::held(container.as_str())).await
}

/// Removes the container's dump from one of the places where dumps lie.
fn remove_from(root: &Path, container: &ContainerId) -> io::Result<()> {
    let all = root.join(DUMPS);
    if !is_private(&all) {
        return Ok(());
    }
    let removed = or_missing(std::fs::remove_dir_all(all.join(container.as_str())));
    // Others' dumps may lie there.
    let left = std::fs::remove_dir(&all);
    tracing::trace!(?left, "the directory of dumps");
    removed
}

/// What the kernel calls this boot.
fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// Removes what containerd left of a restore, wherever its temporary directories are.
fn remove_unpacked(container: &ContainerId) -> io::Result<()> {
    let done = TEMPORARY.map(|directory| layout::remove_unpacked(Path::new(directory), container));
    done.into_iter().collect()
}

/// Whether a restore that Docker drives brings locks on files back.
fn restores_locks() -> bool {
    let text = std::fs::read_to_string(RUNTIME_CONFIGURATION).unwrap_or_default();
    text.lines()
        .any(|line| line.split_whitespace().next() == Some("file-locks"))
}

/// A directory, and no link to one, that belongs to this user alone.
fn is_private(path: &Path) -> bool {
    let owner = rustix::process::geteuid().as_raw();
    std::fs::symlink_metadata(path)
        .is_ok_and(|found| found.is_dir() && found.uid() == owner && found.mode() & 0o077 == 0)
}

/// Makes a directory that only root may look into. One that is there must be such: anybody may make directories in `/dev/shm`.
fn private_directory(path: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    if is_private(path) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{} is there, and is no directory that belongs to root alone",
        path.display()
    )))
}

/// What is gone already was removed well.
fn or_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn only_a_directory_of_ones_own_is_used() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("dumps");
        private_directory(&path).unwrap();
        private_directory(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(private_directory(&path).is_err());
        let link = root.path().join("link");
        std::os::unix::fs::symlink(root.path(), &link).unwrap();
        assert!(private_directory(&link).is_err());
        assert!(!is_private(&link));
        assert!(!is_private(&root.path().join("nothing")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dump_is_waited_for_whoever_began_it() {
        let root = tempfile::tempdir().unwrap();
        let dump = Dump {
            container: ContainerId::new("a".repeat(64)).unwrap(),
            bytes: 0,
            directory: root.path().join(DUMPS).join("a"),
        };
        private_directory(&root.path().join(DUMPS)).unwrap();
        dump.make().unwrap();
        let lock = dump.alone().await.unwrap();
        // A child that holds it, as the runtime does.
        let child = lock.try_clone().unwrap();
        drop(lock);
        let waited = tokio::time::timeout(Duration::from_secs(5), dump.alone()).await;
        assert!(waited.is_err());
        drop(child);
        dump.alone().await.unwrap();
    }

    #[test]
    fn a_dump_of_another_boot_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let dump = Dump {
            container: ContainerId::new("a".repeat(64)).unwrap(),
            bytes: 0,
            directory: root.path().join(DUMPS).join("a"),
        };
        dump.make().unwrap();
        std::fs::write(dump.images().join(INVENTORY), b"x").unwrap();
        dump.make().unwrap();
        assert!(dump.images().join(INVENTORY).exists());
        std::fs::write(dump.directory.join(BOOT), b"another").unwrap();
        assert!(!dump.is_of_this_boot());
        dump.make().unwrap();
        assert!(!dump.images().join(INVENTORY).exists());
        assert!(dump.is_of_this_boot());
    }
}
