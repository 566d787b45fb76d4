//! Dumps and restores of Podman's containers, as root.
//!
//! crun dumps, as runc does for Docker, and libpod restores: it looks into `checkpoint` in the container's directory, where the images
//! are files and relative links as for Docker. It needs a specification there, which the container has since it was initialised
//! (`crate::podman`), sets the network up anew, and starts a conmon. It keeps its books right but for health checks: no timer is made
//! for them (`libpod/container_internal_common.go`, `restore`).
//!
//! `/dev/shm` is a file system of Podman's outside of the container, in every ipc mode, and not in CRIU's images.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tranship_core::memory::Obstacle;
use tranship_core::{ContainerId, ContainerSpec, EngineError};

use crate::cgroups;
use crate::docker::DockerEngine;
use crate::fault::Ask;
use crate::json::{at, number, text};
use crate::podman::{API, KEY};

/// Where root's crun keeps what it knows of containers (`crun --version` calls it `rundir`).
const CRUN: &str = "/run/crun";

/// Podman's directory of a container below the root of its storage.
const USER_DATA: &str = "userdata";

/// Where a container has shared memory, below the directory of one of its processes.
const SHARED: &str = "root/dev/shm";

/// What is said where it has any.
pub(super) const SHARED_MEMORY: &str =
    "it has files in /dev/shm, which Podman keeps outside of the container and a dump leaves out";

/// What libpod asks to restore from, in there.
const CHECKPOINT: &str = "checkpoint";

/// What else libpod takes into account at a restore, and removes after it (`restore` in `libpod/container_internal_common.go`): what
/// `podman container checkpoint` left there.
const LEFT: [&str; 6] = [
    "pre-checkpoint",
    "checkpoint-volumes",
    "dev-shm.tar",
    "network.status",
    "rootfs-diff.tar",
    "deleted.files",
];

impl DockerEngine {
    /// What keeps this Podman from it.
    pub(super) async fn podman_obstacles(&self, found: &mut Vec<Obstacle>) -> Result<(), EngineError> {
        let ask = Ask::new("describe", "engine", "");
        let info = self.raw.get(&format!("{API}/info"), &ask).await?;
        let runtime = at(&info, &["host", "ociRuntime"]);
        let name = text(runtime, &["name"]);
        if name != "crun" || !text(runtime, &["version"]).contains("+CRIU") {
            found.push(Obstacle::new(
                "live.runtime",
                format!("Podman's runtime is {name:?}; memory is dumped by a crun that was built with CRIU"),
                "use such a crun as Podman's runtime (`crun --version` says +CRIU)",
            ));
        }
        if at(&info, &["host", "security", "rootless"]) == &Value::Bool(true) {
            found.push(Obstacle::new(
                "live.rootless",
                "memory of a Podman without root is not dumped",
                "run the container with root's Podman",
            ));
        }
        Ok(())
    }

    /// Whether a container that has processes has files in `/dev/shm`.
    pub(super) async fn has_shared_memory(&self, container: &ContainerId) -> Result<bool, EngineError> {
        let inspect = self.libpod_document(container.as_str()).await?;
        let proc = PathBuf::from(format!("/proc/{}", number(&inspect, &["State", "Pid"])));
        // The number may be another process's by now; the dump finds no container then.
        let groups = std::fs::read_to_string(proc.join("cgroup")).unwrap_or_default();
        Ok(cgroups::are_of(&groups, container.as_str()) && has_files(&proc.join(SHARED)))
    }

    /// Where libpod looks for what it restores a container from.
    pub(super) fn podman_checkpoint(root: &Path, container: &ContainerId) -> PathBuf {
        user_data(root, container).join(CHECKPOINT)
    }

    /// What is called to restore it. Locks on files are in the dump, if it has any.
    pub(super) fn podman_restore(container: &ContainerId) -> String {
        format!("{API}/containers/{}/restore?fileLocks=true", container.as_str())
    }
}

/// What a checkpoint of somebody else's left beside the one that a container is to be restored from.
pub(super) fn left_beside(checkpoint: &Path) -> Option<PathBuf> {
    let left = LEFT.iter().map(|name| checkpoint.with_file_name(name));
    left.into_iter().find(|path| path.symlink_metadata().is_ok())
}

/// The log of a restore that failed. It stays until the next one.
pub(super) fn restore_log(root: &Path, container: &ContainerId) -> PathBuf {
    user_data(root, container).join("restore.log")
}

fn user_data(root: &Path, container: &ContainerId) -> PathBuf {
    root.join("overlay-containers")
        .join(container.as_str())
        .join(USER_DATA)
}

/// Where crun keeps its records of a container that has processes.
pub(crate) fn crun_root(container: &ContainerId) -> Option<PathBuf> {
    let root = PathBuf::from(CRUN);
    root.join(container.as_str())
        .join("status")
        .exists()
        .then_some(root)
}

fn has_files(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some())
}

/// What of a container stands in the way, beyond what does so with Docker. `proc` is the directory of its first process.
pub(super) fn of_container(spec: &ContainerSpec, proc: &Path, found: &mut Vec<Obstacle>) {
    let runtime = text(&spec.document, &[KEY, "Inspect", "OCIRuntime"]);
    if runtime != "crun" && !runtime.ends_with("/crun") {
        found.push(Obstacle::new(
            "live.runtime",
            format!("its runtime is {runtime:?}, and memory is dumped by crun"),
            "make it again with crun",
        ));
    }
    if has_files(&proc.join(SHARED)) {
        found.push(Obstacle::new("live.shared-memory", SHARED_MEMORY, ""));
    }
    if spec.health_check.is_some() && Path::new("/run/systemd/system").is_dir() {
        found.push(Obstacle::new(
            "live.health-check",
            "it has a health check, and Podman makes no timer for it when it restores: nobody would look at its health any more",
            "make it again with --no-healthcheck",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::left_beside;

    #[test]
    fn what_a_checkpoint_left_beside_the_place_of_ours_is_seen() {
        let data = tempfile::tempdir().unwrap();
        let place = data.path().join("checkpoint");
        std::fs::write(data.path().join("config.json"), "{}").unwrap();
        assert_eq!(left_beside(&place), None);
        let left = data.path().join("network.status");
        std::os::unix::fs::symlink("nowhere", &left).unwrap();
        assert_eq!(left_beside(&place), Some(left));
    }
}
