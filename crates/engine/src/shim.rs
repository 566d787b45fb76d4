//! What keeps a container's processes between the engine and the runtime: containerd's shim, or Podman's conmon.
//!
//! An engine that was killed finds its containers again after its start, ends them, and may call them exited while their
//! shim has not told yet that they ended: a shim waits up to half a minute for a reader of a command whose caller is gone,
//! such as a health check. What is started then is cleaned up after when the late word arrives: it goes on without its
//! network and without its files, and the engine calls it running. (Seen with Docker 26.1.5 and containerd 1.7; the same
//! happens by hand, and to a restart policy.) So a start waits until the last run is let go.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use tranship_core::container::ContainerState;
use tranship_core::{ContainerId, Engine as _, EngineError};

use crate::docker::DockerEngine;

/// How long a start waits for the last run to be let go: a shim opens the pipes of a command for 30 s at most. What is held for
/// longer is not about to be let go; Docker takes it away then, as it does when it starts.
pub(crate) const LET_GO_WITHIN: Duration = Duration::from_secs(45);

/// How long a look at the processes may take.
const LOOK_WITHIN: Duration = Duration::from_secs(5);

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(25);

impl DockerEngine {
    /// Waits until nothing holds an earlier run of a container that does not run, 45 s at most; with Podman, ends it then. Does
    /// nothing where processes are not seen from here.
    ///
    /// # Errors
    /// What asking for its state says, and ending what Podman does not know.
    pub(crate) async fn let_go(&self, id: &ContainerId) -> Result<(), EngineError> {
        self.let_go_within(id, LET_GO_WITHIN).await
    }

    /// [`DockerEngine::let_go`] with a time of its own.
    pub(crate) async fn let_go_within(&self, id: &ContainerId, within: Duration) -> Result<(), EngineError> {
        if self.is_let_go(id, within).await? {
            return Ok(());
        }
        if self.podman {
            return self.end_strays(id).await;
        }
        tracing::warn!(container = %id, "its runtime still holds its last run; it is started nevertheless");
        Ok(())
    }

    /// Waits until nothing holds an earlier run of a container that does not run. `false` if that was still so after the time.
    pub(crate) async fn is_let_go(&self, id: &ContainerId, within: Duration) -> Result<bool, EngineError> {
        if !self.wants_direct() {
            return Ok(true);
        }
        let begun = tokio::time::Instant::now();
        loop {
            match self.has_shim(id).await {
                Some(true) => {}
                Some(false) => return Ok(true),
                None => {
                    tracing::warn!(container = %id, "the processes could not be looked through before a start");
                    return Ok(true);
                }
            }
            match self.status(id).await?.state {
                ContainerState::Created | ContainerState::Exited | ContainerState::Dead => {}
                // It is the run that is there now that is held.
                _ => return Ok(true),
            }
            if begun.elapsed() > within {
                return Ok(false);
            }
            tracing::debug!(container = %id, "waiting for the runtime to let go of the last run");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether a shim of this container runs. `None` if the processes cannot be looked through.
    pub(crate) async fn has_shim(&self, id: &ContainerId) -> Option<bool> {
        let (proc, wanted) = (self.root_prefix.join("proc"), id.clone());
        let look = tokio::task::spawn_blocking(move || is_held(&proc, &wanted));
        tokio::time::timeout(LOOK_WITHIN, look).await.ok()?.ok()
    }
}

/// Whether a shim of this container runs. Only root and this user can have one: command lines are anybody's to choose.
fn is_held(proc: &Path, id: &ContainerId) -> bool {
    let own = rustix::process::geteuid().as_raw();
    let processes = std::fs::read_dir(proc).into_iter().flatten().flatten();
    processes
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .iter()
                .all(u8::is_ascii_digit)
        })
        .map(|entry| entry.path())
        // The name first: reading the command line of a process that hangs in the kernel may hang as well.
        .filter(|process| {
            std::fs::read(process.join("comm"))
                .is_ok_and(|name| name.starts_with(b"containerd-shim") || name.starts_with(b"conmon"))
        })
        .filter(|process| std::fs::metadata(process).is_ok_and(|m| m.uid() == 0 || m.uid() == own))
        .filter_map(|process| std::fs::read(process.join("cmdline")).ok())
        .any(|command_line| is_shim_of(&command_line, id.as_str()))
}

/// Whether a command line, its arguments ended by zeros, is that of the shim of the container's own processes: Podman's conmon
/// of a command in the container, which may stay for minutes after it, names the container as well (`-c`).
fn is_shim_of(command_line: &[u8], id: &str) -> bool {
    let mut arguments = command_line.split(|byte| *byte == 0);
    let program = arguments.next().unwrap_or_default();
    let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let flag: &[u8] = if name.starts_with(b"containerd-shim") {
        b"-id"
    } else if name == b"conmon" {
        b"-u"
    } else {
        return false;
    };
    arguments.any(|argument| argument == flag) && arguments.next() == Some(id.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shims_are_told_from_what_names_the_container_too() {
        let id = "4f".repeat(32);
        let shim = format!("/usr/bin/containerd-shim-runc-v2\0-namespace\0moby\0-id\0{id}\0-address\0x\0");
        assert!(is_shim_of(shim.as_bytes(), &id));
        let conmon = |of: &str| is_shim_of(format!("/usr/bin/conmon\0-c\0{id}\0-u\0{of}\0").as_bytes(), &id);
        assert!(conmon(&id));
        assert!(!conmon(&"6f".repeat(32)), "a command in the container");
        assert!(!is_shim_of(shim.as_bytes(), &"5f".repeat(32)));
        assert!(!is_shim_of(format!("docker\0logs\0{id}\0").as_bytes(), &id));
        assert!(!is_shim_of(b"", &id));
    }

    #[test]
    fn processes_are_looked_through() {
        let proc = tempfile::tempdir().unwrap();
        let id = ContainerId::new("4f".repeat(32)).unwrap();
        assert!(!is_held(&proc.path().join("none"), &id));
        let process = |name: &str, command: &str, comm: &str| {
            let directory = proc.path().join(name);
            std::fs::create_dir(&directory).unwrap();
            std::fs::write(directory.join("comm"), format!("{comm}\n")).unwrap();
            std::fs::write(directory.join("cmdline"), format!("{command}\0-id\0{id}\0")).unwrap();
        };
        process("1", "init", "init");
        process("self", "containerd-shim-runc-v2", "containerd-shim");
        process("71", "containerd-shim-runc-v2", "something-else");
        std::fs::create_dir(proc.path().join("72")).unwrap();
        assert!(
            !is_held(proc.path(), &id),
            "what is not a shim's process does not count"
        );
        process("70", "/usr/bin/containerd-shim-runc-v2", "containerd-shim");
        assert!(is_held(proc.path(), &id));
    }
}
