//! Notes about checkpoints that were exported: what became of their containers since.
//!
//! A checkpoint learns that it was used, and that its container went to another node. Its copy in an archive learns nothing, and the
//! checkpoint itself may be removed. So the node keeps a note for each that was exported, as long as its container is there, and takes
//! back from an archive only what it has such a note of.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use tranship_core::ContainerId;

use super::{About, Kept, MOVED, Store, USED, mark, names_in, or_missing, sync};
use crate::checkpoints::error::CheckpointError;

/// How the names of these notes begin. No checkpoint may be called so.
pub(super) const EXPORTED: &str = ".exported-";

/// The note about one exported checkpoint.
#[derive(Debug)]
pub(in crate::checkpoints) struct Receipt {
    pub(super) directory: PathBuf,
}

impl Receipt {
    /// It was exported from here.
    pub(in crate::checkpoints) fn exists(&self) -> bool {
        self.directory.is_dir()
    }

    /// Notes that it is exported.
    ///
    /// # Errors
    /// `checkpoint.store`.
    pub(in crate::checkpoints) fn make(&self) -> Result<(), CheckpointError> {
        let unmade = |error| CheckpointError::io(&self.directory, "made", error);
        match DirBuilder::new().mode(0o700).create(&self.directory) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.map_err(unmade)?,
        }
        sync(self.directory.parent()).map_err(unmade)
    }

    /// Its container went on from it, or may have, and does so once only.
    pub(in crate::checkpoints) fn is_used(&self) -> bool {
        self.directory.join(USED).exists()
    }

    /// Its container went to another node.
    pub(in crate::checkpoints) fn is_moved(&self) -> bool {
        self.directory.join(MOVED).exists()
    }

    /// Notes that its container went to another node.
    ///
    /// # Errors
    /// `checkpoint.store`.
    pub(in crate::checkpoints) fn moved(&self) -> Result<(), CheckpointError> {
        if self.is_moved() {
            return Ok(());
        }
        mark(&self.directory, MOVED, true)
    }

    /// Forgets it, once its container is gone.
    ///
    /// # Errors
    /// `checkpoint.store`.
    pub(in crate::checkpoints) fn remove(&self) -> Result<(), CheckpointError> {
        or_missing(fs::remove_dir_all(&self.directory))
            // The directory above it goes with the last that is in it.
            .and_then(|()| or_missing(sync(self.directory.parent())))
            .map_err(|error| CheckpointError::io(&self.directory, "removed", error))?;
        // Others of the same container may be there.
        let empty = self.directory.parent().map(fs::remove_dir);
        tracing::trace!(?empty, "the container's checkpoints");
        Ok(())
    }
}

impl Store {
    /// The note about this checkpoint, which may be there or not.
    ///
    /// # Errors
    /// As [`About::identity`].
    pub(in crate::checkpoints) fn receipt(&self, about: &About) -> Result<Receipt, CheckpointError> {
        let container = self.root.join(about.begun.container.as_str());
        Ok(Receipt {
            directory: container.join(format!("{EXPORTED}{}", about.identity()?)),
        })
    }

    /// All notes, with their containers.
    ///
    /// # Errors
    /// `checkpoint.store`.
    pub(in crate::checkpoints) fn receipts(&self) -> Result<Vec<(ContainerId, Receipt)>, CheckpointError> {
        let mut found = Vec::new();
        for name in names_in(&self.root)? {
            let Ok(container) = ContainerId::new(name.as_str()) else {
                continue;
            };
            let parent = self.root.join(&name);
            for name in names_in(&parent)?
                .iter()
                .filter(|name| name.starts_with(EXPORTED))
            {
                let directory = parent.join(name);
                found.push((container.clone(), Receipt { directory }));
            }
        }
        Ok(found)
    }
}

impl Kept {
    /// Its container went on from it, or may have: no copy of it may be restored after that. One that was left running goes back as
    /// often as it is asked to.
    ///
    /// # Errors
    /// `checkpoint.store`.
    pub(in crate::checkpoints) fn spoil_copies(&self) -> Result<(), CheckpointError> {
        if self.about.begun.leave_running {
            return Ok(());
        }
        let directory = self.copies()?;
        if directory.is_dir() {
            mark(&directory, USED, true)?;
        }
        Ok(())
    }
}
