//! One migration per container: a lock that the system takes back when the process that holds it ends, however it ends.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tranship_core::fault::FaultKind;
use tranship_core::{ContainerId, Fault, MigrationId};

/// Locks under a state directory.
#[derive(Debug, Clone)]
pub struct Locks {
    directory: PathBuf,
}

/// Locks that are held until this is dropped.
#[derive(Debug)]
pub struct Held {
    files: Vec<(PathBuf, File)>,
}

impl Drop for Held {
    fn drop(&mut self) {
        for (path, _) in &self.files {
            // Removed while it is held: whoever opens it in between finds that it is not the one that bears the name.
            let _ = fs::remove_file(path);
        }
    }
}

impl Locks {
    /// The locks under a state directory.
    #[must_use]
    pub fn new(state_directory: &Path) -> Self {
        Self {
            directory: state_directory.join("locks"),
        }
    }

    /// Locks the containers for a migration.
    ///
    /// # Errors
    /// `migrate.busy`, which names the migration that holds one; `agent.state`.
    pub fn take(&self, id: &MigrationId, containers: &[ContainerId]) -> Result<Held, Fault> {
        let mut held = Held { files: Vec::new() };
        for container in containers {
            let path = self.directory.join(format!("{container}.lock"));
            let file = self.take_one(&path, id).map_err(|error| match error {
                Refused::Held(other) => Fault::new(
                    "migrate.busy",
                    FaultKind::Environment,
                    format!("the container is on its way already, by migration {other}"),
                )
                .on_container(container.to_string())
                .with_hint(format!("`tranship status {other}` shows it")),
                Refused::Failed(error) => Fault::new(
                    "agent.state",
                    FaultKind::Environment,
                    format!("the container cannot be locked in the state directory: {error}"),
                )
                .with_hint("the agent's state directory needs space and write permission"),
            })?;
            held.files.push((path, file));
        }
        Ok(held)
    }

    /// Removes the files of locks that nobody holds: an agent that was killed left them.
    pub fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        for path in entries.flatten().map(|e| e.path()) {
            let Ok(file) = File::open(&path) else { continue };
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                // Removed while it is held, as always; one that stays is no harm.
                let _ = fs::remove_file(&path);
            }
        }
    }

    fn take_one(&self, path: &Path, id: &MigrationId) -> Result<File, Refused> {
        use std::os::unix::fs::MetadataExt as _;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)?;
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)?;
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                let mut other = String::new();
                file.read_to_string(&mut other)?;
                return Err(Refused::Held(other));
            }
            // Whoever held it before may have removed it meanwhile.
            if fs::metadata(path).is_ok_and(|m| file.metadata().is_ok_and(|f| f.ino() == m.ino())) {
                file.set_len(0)?;
                file.rewind()?;
                file.write_all(id.as_str().as_bytes())?;
                return Ok(file);
            }
        }
    }
}

enum Refused {
    Held(String),
    Failed(std::io::Error),
}

impl From<std::io::Error> for Refused {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_locked_once_and_the_holder_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let locks = Locks::new(directory.path());
        let (one, two) = (MigrationId::new("m1").unwrap(), MigrationId::new("m2").unwrap());
        let container = [ContainerId::new("c".repeat(64)).unwrap()];
        let held = locks.take(&one, &container).unwrap();
        let fault = locks.take(&two, &container).unwrap_err();
        assert_eq!(fault.code, "migrate.busy");
        assert!(fault.to_string().contains("m1"), "{fault}");
        drop(held);
        locks.take(&two, &container).unwrap();
    }

    #[test]
    fn what_a_killed_agent_left_is_swept_away_and_what_is_held_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let locks = Locks::new(directory.path());
        locks.sweep();
        let id = MigrationId::new("m1").unwrap();
        let container = |c: &str| [ContainerId::new(c.repeat(64)).unwrap()];
        let held = locks.take(&id, &container("c")).unwrap();
        let left = directory
            .path()
            .join("locks")
            .join(format!("{}.lock", "d".repeat(64)));
        fs::write(&left, "m0").unwrap();
        locks.sweep();
        assert!(!left.exists());
        assert!(locks.take(&id, &container("c")).is_err(), "it is still held");
        drop(held);
    }
}
