//! What came of layers, until an image is made of them. A layer that broke off goes on where it stands, also with another connection;
//! one that several images wait for comes once.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tranship_core::ids::Digest;

use crate::error::OciError;
use crate::name::Repository;
use crate::spool::{Limits, Shared, Spool};

/// The upload that a layer comes into; whoever holds the lock brings it.
pub(super) type Slot = Arc<tokio::sync::Mutex<Option<String>>>;

/// A directory for layers on their way.
pub struct Store {
    pub(super) spool: Spool,
    /// Uploads need a name; there is only this one.
    name: Repository,
    slots: Mutex<HashMap<Digest, Slot>>,
}

impl Store {
    /// Takes the directory, which is for this store alone; whatever is in it is removed. Blocks.
    ///
    /// # Errors
    /// [`OciError::Spool`].
    pub fn open(directory: &Path, limits: Limits) -> Result<Self, OciError> {
        Ok(Self {
            spool: Spool::open(directory, limits)?,
            name: Repository::new("layers")?,
            slots: Mutex::default(),
        })
    }

    /// Drops what nobody went on with for a while.
    pub fn sweep(&self) {
        self.spool.sweep();
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody brings at the moment are layers that broke off; their uploads may be gone by now.
        slots.retain(|_, slot| match slot.try_lock() {
            Ok(held) => {
                Arc::strong_count(slot) > 1 || held.as_ref().is_some_and(|id| self.spool.has_upload(id))
            }
            Err(_) => true,
        });
    }

    /// Whether there is something of a layer that nobody has given up yet.
    #[must_use]
    pub fn keeps(&self) -> bool {
        self.spool.keeps()
    }

    pub(super) fn slot(&self, digest: &Digest) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(digest.clone()).or_default())
    }

    pub(super) fn forget(&self, digest: &Digest) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.remove(digest);
    }

    /// The upload that a layer goes on with, or a new one.
    pub(super) fn upload(&self, slot: &mut Option<String>) -> Result<(String, Shared), OciError> {
        if let Some(id) = slot
            && let Ok(upload) = self.spool.upload(&self.name, id)
        {
            return Ok((id.clone(), upload));
        }
        let (id, upload) = self.spool.begin(&self.name)?;
        *slot = Some(id.clone());
        Ok((id, upload))
    }

    /// Throws away what came of a layer.
    pub(super) fn drop_upload(&self, slot: &mut Option<String>) {
        if let Some(id) = slot.take() {
            self.spool.give_up(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn it_keeps_what_came_until_that_is_made_an_image_of_or_nobody_goes_on_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits {
            idle: Duration::ZERO,
            ..Limits::default()
        };
        let store = Store::open(directory.path(), limits).unwrap();
        assert!(!store.keeps());
        let mut slot = None;
        let (id, upload) = store.upload(&mut slot).unwrap();
        assert!(store.keeps());
        let nothing = Digest::of(b"");
        store.spool.finish(&id, &upload, &nothing).await.unwrap();
        assert!(store.keeps());
        store.spool.drop_blob(&nothing);
        assert!(!store.keeps());
        let mut slot = None;
        store.upload(&mut slot).unwrap();
        assert!(store.keeps());
        store.sweep();
        assert!(!store.keeps());
    }
}
