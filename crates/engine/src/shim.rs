//! What keeps a container's processes between the engine and the runtime: containerd's shim, or Podman's conmon.
//!
//! An engine that was killed finds its containers again after its start, ends them, and may call them exited while their
//! shim has not told yet that they ended: a shim waits up to half a minute for a reader of a command whose caller is gone,
//! such as a health check. What is started then is cleaned up after when the late word arrives: it goes on without its
//! network and without its files, and the engine calls it running. (Seen with Docker 26.1.5 and containerd 1.7; the same
//! happens by hand, and to a restart policy.) So a start waits until the last run is let go.

use std::path::Path;
use std::time::Duration;

use tranship_core::container::ContainerState;
use tranship_core::{ContainerId, Engine as _, EngineError};

use crate::docker::DockerEngine;
use crate::fault::Ask;

/// How long a start waits for the last run to be let go: a shim opens the pipes of a command for 30 s at most.
const LET_GO_WITHIN: Duration = Duration::from_secs(45);

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(25);

impl DockerEngine {
    /// Waits until nothing holds an earlier run of a container that does not run. Does nothing where processes are not
    /// seen from here.
    ///
    /// # Errors
    /// [`EngineError::Conflict`] when it is held for longer than 45 s; what asking for its state says.
    pub(crate) async fn let_go(&self, id: &ContainerId, ask: &Ask) -> Result<(), EngineError> {
        if !self.wants_direct() {
            return Ok(());
        }
        let begun = tokio::time::Instant::now();
        loop {
            let (proc, wanted) = (self.root_prefix.join("proc"), id.clone());
            let looked = tokio::task::spawn_blocking(move || is_held(&proc, &wanted)).await;
            if !looked.map_err(|error| ask.failed(error))? {
                return Ok(());
            }
            match self.status(id).await?.state {
                ContainerState::Created | ContainerState::Exited | ContainerState::Dead => {}
                // It is the run that is there now that is held.
                _ => return Ok(()),
            }
            if begun.elapsed() > LET_GO_WITHIN {
                return Err(EngineError::Conflict {
                    action: format!("start container {id}"),
                    message: format!(
                        "its runtime still holds its last run after {} seconds; if its processes are gone, end its \
                         containerd-shim",
                        LET_GO_WITHIN.as_secs()
                    ),
                });
            }
            tracing::debug!(container = %id, "waiting for the runtime to let go of the last run");
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Whether a shim of this container runs.
fn is_held(proc: &Path, id: &ContainerId) -> bool {
    let processes = std::fs::read_dir(proc).into_iter().flatten().flatten();
    processes
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .iter()
                .all(u8::is_ascii_digit)
        })
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .any(|command_line| is_shim_of(&command_line, id.as_str()))
}

/// Whether a command line, its arguments ended by zeros, is that of a shim of the container.
fn is_shim_of(command_line: &[u8], id: &str) -> bool {
    let mut arguments = command_line.split(|byte| *byte == 0);
    let program = arguments.next().unwrap_or_default();
    let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    (name.starts_with(b"containerd-shim") || name == b"conmon") && arguments.any(|a| a == id.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shims_are_told_from_what_names_the_container_too() {
        let id = "4f".repeat(32);
        let shim = format!("/usr/bin/containerd-shim-runc-v2\0-namespace\0moby\0-id\0{id}\0-address\0x\0");
        assert!(is_shim_of(shim.as_bytes(), &id));
        assert!(is_shim_of(
            format!("conmon\0-c\0{id}\0-u\0{id}\0").as_bytes(),
            &id
        ));
        assert!(!is_shim_of(shim.as_bytes(), &"5f".repeat(32)));
        assert!(!is_shim_of(format!("docker\0logs\0{id}\0").as_bytes(), &id));
        assert!(!is_shim_of(b"", &id));
    }

    #[test]
    fn processes_are_looked_through() {
        let proc = tempfile::tempdir().unwrap();
        let id = ContainerId::new("4f".repeat(32)).unwrap();
        assert!(!is_held(&proc.path().join("none"), &id));
        for (name, command) in [
            ("1", "init"),
            ("self", "containerd-shim-runc-v2"),
            ("70", "conmon"),
        ] {
            std::fs::create_dir(proc.path().join(name)).unwrap();
            let line = format!("{command}\0-id\0{id}\0");
            std::fs::write(proc.path().join(name).join("cmdline"), line).unwrap();
        }
        std::fs::create_dir(proc.path().join("71")).unwrap();
        assert!(is_held(proc.path(), &id));
        std::fs::write(proc.path().join("70/cmdline"), "").unwrap();
        assert!(!is_held(proc.path(), &id), "what is not a process does not count");
    }
}
