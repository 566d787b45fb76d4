//! Volumes that were made for what is still arriving in them: noted, so that an agent that starts after a crash takes away what
//! would otherwise stand there, partly filled, under the name of something whole.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tranship_core::fault::FaultKind;
use tranship_core::ids::Digest;
use tranship_core::storage::VolumeSpec;
use tranship_core::{Engine, Fault};

use crate::guids::birth;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// The volume's name.
    pub(crate) name: String,
    /// The GUID under which what arrived is kept for the next try, if it has one.
    #[serde(default)]
    pub(crate) guid: String,
    /// What tells it from a later one of that name.
    birth: String,
}

impl Note {
    /// Whether this is the volume that was made then, and nobody has come to use it.
    pub(crate) fn means(&self, volume: &VolumeSpec) -> bool {
        volume.name == self.name && birth(volume) == self.birth && volume.users.is_empty()
    }
}

/// The notes, a file for each.
#[derive(Debug)]
pub(crate) struct Unfinished(PathBuf);

impl Unfinished {
    /// Keeps the notes in a directory, which is made when it is needed.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    fn file(&self, name: &str) -> PathBuf {
        let digest = Digest::of(name.as_bytes());
        self.0.join(format!("{}.json", digest.hex()))
    }

    /// Notes a volume that was made right now.
    ///
    /// # Errors
    /// What the engine says; `record.write`.
    pub(crate) async fn note(&self, engine: &dyn Engine, name: &str, guid: &str) -> Result<(), Fault> {
        use std::os::unix::fs::DirBuilderExt as _;
        let volumes = engine.volume_specs().await?;
        // Gone again already: there is nothing to take away.
        let Some(volume) = volumes.iter().find(|v| v.name == name) else {
            return Ok(());
        };
        let note = Note {
            name: name.to_owned(),
            guid: guid.to_owned(),
            birth: birth(volume),
        };
        let written = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .and_then(|()| crate::store::write_durably(&self.file(name), &serde_json::to_vec(&note)?));
        written.map_err(|error| {
            Fault::new(
                "record.write",
                FaultKind::Environment,
                format!("the new volume {name:?} could not be noted: {error}"),
            )
            .with_hint("the agent's state directory needs space and write permission")
        })
    }

    /// The volume is whole, or gone, or somebody goes on filling it.
    pub(crate) fn forget(&self, name: &str) {
        let file = self.file(name);
        match std::fs::remove_file(&file) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!("{} could not be removed: {error}", file.display()),
        }
    }

    /// All that are noted. A note that cannot be read is none.
    pub(crate) fn all(&self) -> Vec<Note> {
        let read = |path: &Path| serde_json::from_slice(&std::fs::read(path).ok()?).ok();
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries.filter_map(|entry| read(&entry.path())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tranship_testkit::memory::MemoryEngine;

    #[tokio::test]
    async fn only_the_very_volume_that_was_noted_is_meant() {
        let directory = tempfile::tempdir().unwrap();
        let engine = MemoryEngine::new();
        engine.add_volume("data");
        let unfinished = Unfinished::new(directory.path().join("unfinished"));
        assert_eq!(unfinished.all(), []);
        unfinished.note(&engine, "data", "0123-4567").await.unwrap();
        unfinished.note(&engine, "not there", "").await.unwrap();
        let notes = unfinished.all();
        assert_eq!(notes.len(), 1);
        let mut volume = engine.volume_specs().await.unwrap().remove(0);
        assert!(notes[0].means(&volume));
        volume.created_at = "later".into();
        assert!(!notes[0].means(&volume), "another one of its name");
        unfinished.forget("data");
        unfinished.forget("data");
        assert_eq!(unfinished.all(), []);
    }
}
