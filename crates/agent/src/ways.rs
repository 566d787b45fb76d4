//! The ways between agents that must be the same after a restart: the agent's own key, where sources were told to come in,
//! and how destinations are reached. Files that only their owner can read: they hold secrets.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tranship_core::fault::FaultKind;
use tranship_core::{Fault, MigrationId};
use tranship_wire::tls::{PeerKey, PeerOffer};
use tranship_wire::{Fingerprint, WireError};

use crate::api::Route;
use crate::store::write_durably;

/// A way in for one source.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WayIn {
    /// The certificate of the source's agent.
    pub source: Fingerprint,
    /// What the source was told.
    pub offer: PeerOffer,
}

/// The ways of the migrations under way.
#[derive(Debug, Clone)]
pub struct Ways {
    directory: PathBuf,
}

fn state(what: &str, error: &std::io::Error) -> Fault {
    Fault::new(
        "agent.state",
        FaultKind::Environment,
        format!("{what} cannot be written to the state directory: {error}"),
    )
    .with_hint("the agent's state directory needs space and write permission")
}

fn make(directory: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
}

/// The key by which other agents know this one; made at the first start.
///
/// # Errors
/// What the system or the file system says.
pub fn peer_key(state_directory: &Path) -> Result<PeerKey, Fault> {
    let path = state_directory.join("peer.key");
    if let Some(key) = fs::read(&path).ok().and_then(|bytes| PeerKey::from_bytes(&bytes)) {
        return Ok(key);
    }
    let key = PeerKey::generate().map_err(|e| WireError::from(e).into_fault())?;
    make(state_directory)
        .and_then(|()| write_durably(&path, &key.to_bytes()))
        .map_err(|e| state("the agent's key", &e))?;
    Ok(key)
}

impl Ways {
    /// The ways under a state directory.
    #[must_use]
    pub fn new(state_directory: &Path) -> Self {
        Self {
            directory: state_directory.join("ways"),
        }
    }

    fn path(&self, id: &MigrationId, end: &str) -> PathBuf {
        self.directory.join(format!("{id}.{end}"))
    }

    fn keep<T: Serialize>(&self, id: &MigrationId, end: &str, way: &T) -> Result<(), Fault> {
        let written = serde_json::to_vec(way)
            .map_err(std::io::Error::from)
            .and_then(|bytes| {
                make(&self.directory)?;
                write_durably(&self.path(id, end), &bytes)
            });
        written.map_err(|e| state("the way to the other agent", &e))
    }

    fn kept<T: DeserializeOwned>(&self, id: &MigrationId, end: &str) -> Option<T> {
        let bytes = fs::read(self.path(id, end)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    fn forget(&self, id: &MigrationId, end: &str) {
        // It may never have been kept.
        let _ = fs::remove_file(self.path(id, end));
    }

    /// Keeps a way in.
    ///
    /// # Errors
    /// `agent.state`.
    pub fn keep_in(&self, id: &MigrationId, way: &WayIn) -> Result<(), Fault> {
        self.keep(id, "in", way)
    }

    /// The way in that was kept.
    #[must_use]
    pub fn kept_in(&self, id: &MigrationId) -> Option<WayIn> {
        self.kept(id, "in")
    }

    /// Migrations with a way in.
    #[must_use]
    pub fn all_in(&self) -> Vec<MigrationId> {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
            .filter_map(|name| MigrationId::new(name.strip_suffix(".in")?).ok())
            .collect()
    }

    /// The way in is no longer needed.
    pub fn forget_in(&self, id: &MigrationId) {
        self.forget(id, "in");
    }

    /// Keeps a way out.
    ///
    /// # Errors
    /// `agent.state`.
    pub fn keep_out(&self, id: &MigrationId, route: &Route) -> Result<(), Fault> {
        self.keep(id, "out", route)
    }

    /// The way out that was kept.
    #[must_use]
    pub fn kept_out(&self, id: &MigrationId) -> Option<Route> {
        self.kept(id, "out")
    }

    /// The way out is no longer needed.
    pub fn forget_out(&self, id: &MigrationId) {
        self.forget(id, "out");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_key_is_the_same_after_a_restart_and_nobody_elses_to_read() {
        let directory = tempfile::tempdir().unwrap();
        let first = peer_key(directory.path()).unwrap();
        let second = peer_key(directory.path()).unwrap();
        assert_eq!(first.fingerprint(), second.fingerprint());
        let mode = fs::metadata(directory.path().join("peer.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(directory.path().join("peer.key"), b"nonsense").unwrap();
        assert_ne!(
            peer_key(directory.path()).unwrap().fingerprint(),
            first.fingerprint()
        );
    }

    #[test]
    fn ways_are_kept_until_they_are_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let ways = Ways::new(directory.path());
        let id = MigrationId::new("m1").unwrap();
        assert!(ways.kept_out(&id).is_none() && ways.all_in().is_empty());
        ways.keep_out(&id, &Route::Relay).unwrap();
        assert!(matches!(ways.kept_out(&id), Some(Route::Relay)));
        ways.forget_out(&id);
        assert!(ways.kept_out(&id).is_none());
    }
}
