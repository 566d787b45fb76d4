//! What came of layers, until an image is made of them. A layer that broke off goes on where it stands, also with another connection;
//! one that several images wait for comes once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tranship_core::ids::Digest;

use crate::error::OciError;
use crate::name::Repository;
use crate::spool::{BlobFile, Limits, Shared, Spool};

/// What is kept of a layer on its way; whoever holds the lock brings it.
pub(super) type Slot = Arc<tokio::sync::Mutex<Part>>;

/// What is kept of a layer on its way.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// The upload that it comes into.
    pub(super) upload: Option<String>,
    /// What was put together of parts was something else. It comes in one piece from then on, also over the next connection.
    pub(super) damaged: Option<Damaged>,
}

/// A layer that was put together wrongly.
#[derive(Debug)]
pub(super) struct Damaged {
    /// The digest of what was put together.
    pub(super) found: Digest,
    /// How often it broke off since, of which nothing could be used.
    pub(super) broken: u32,
}

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
                Arc::strong_count(slot) > 1
                    || held.upload.as_ref().is_some_and(|id| self.spool.has_upload(id))
            }
            Err(_) => true,
        });
    }

    /// Whether there is something of a layer that nobody has given up yet.
    #[must_use]
    pub fn keeps(&self) -> bool {
        self.spool.keeps()
    }

    /// Bytes of layers that nobody brings or reads at the moment. They make way for others.
    #[must_use]
    pub fn idle_bytes(&self) -> u64 {
        self.spool.idle_bytes()
    }

    /// Throws away what nobody brings or reads at the moment if less than this is free, beside what is always left free. Blocks.
    ///
    /// # Errors
    /// [`OciError::Spool`].
    pub fn make_room(&self, bytes: u64) -> Result<(), OciError> {
        match self.spool.room(bytes) {
            Err(OciError::NoSpace { .. }) => {
                self.make_way(&BTreeMap::new());
                Ok(())
            }
            looked => looked.map(drop),
        }
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

    /// Looks whether there is room for blobs of these lengths beside what is here of them. What is here of others makes way.
    pub(super) fn room_for(&self, wanted: &BTreeMap<Digest, u64>) -> Result<(), OciError> {
        let lacking = wanted
            .iter()
            .map(|(digest, size)| size.saturating_sub(self.came(digest)));
        let needed = lacking.fold(0, u64::saturating_add);
        match self.spool.room(needed) {
            Err(OciError::NoSpace { .. }) => {
                self.make_way(wanted);
                self.spool.room(needed).map(drop)
            }
            looked => {
                if !self.spool.takes_blobs(wanted.len()) {
                    self.make_way(wanted);
                }
                looked.map(drop)
            }
        }
    }

    /// How many bytes are here of a blob.
    fn came(&self, digest: &Digest) -> u64 {
        if let Some(blob) = self.spool.blob(digest) {
            return blob.length;
        }
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let id = slots
            .get(digest)
            .and_then(|slot| slot.try_lock().ok()?.upload.clone());
        let upload = id.and_then(|id| self.spool.upload(&self.name, &id).ok());
        // Of one that is written to at this moment nothing counts: there is more room then, not less.
        upload.map_or(0, |upload| upload.try_lock().map_or(0, |upload| upload.at))
    }

    /// Throws away what nobody brings or reads at the moment, but for these.
    fn make_way(&self, wanted: &BTreeMap<Digest, u64>) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let mut spared: HashSet<Digest> = wanted.keys().cloned().collect();
        slots.retain(|digest, slot| {
            let idle = Arc::strong_count(slot) == 1 && !wanted.contains_key(digest);
            match slot.try_lock() {
                Ok(mut held) if idle => self.drop_upload(&mut held.upload),
                _ => {
                    spared.insert(digest.clone());
                    return true;
                }
            }
            false
        });
        self.spool.drop_unread(&spared);
    }

    /// Throws away what came of a layer.
    pub(super) fn drop_upload(&self, slot: &mut Option<String>) {
        if let Some(id) = slot.take() {
            self.spool.give_up(&id);
        }
    }
}

/// What is in a store of an image that came. As long as this is there it stays, and then for a while, unless it is removed.
pub struct Kept {
    store: Arc<Store>,
    blobs: Vec<(Digest, Arc<BlobFile>)>,
}

impl Kept {
    pub(super) fn new(store: &Arc<Store>, blobs: Vec<(Digest, Arc<BlobFile>)>) -> Self {
        Self {
            store: Arc::clone(store),
            blobs,
        }
    }

    /// Removes it: the engine has the image, or it is of no use.
    pub fn remove(self) {
        for (digest, _) in &self.blobs {
            self.store.spool.drop_blob(digest);
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

    /// A blob of the store.
    async fn put(store: &Store, bytes: &'static [u8]) -> Digest {
        let (digest, mut slot) = (Digest::of(bytes), None);
        let (id, upload) = store.upload(&mut slot).unwrap();
        let body = futures_util::stream::iter([Ok::<_, std::io::Error>(bytes.into())]);
        store.spool.append(&upload, None, None, body).await.unwrap();
        store.spool.finish(&id, &upload, &digest).await.unwrap();
        digest
    }

    /// Begins a blob of which these bytes come.
    async fn begin(store: &Store, name: &[u8], bytes: &'static [u8]) -> (Digest, Slot) {
        let digest = Digest::of(name);
        let slot = store.slot(&digest);
        let (_, upload) = store.upload(&mut slot.lock().await.upload).unwrap();
        let body = futures_util::stream::iter([Ok::<_, std::io::Error>(bytes.into())]);
        store.spool.append(&upload, None, None, body).await.unwrap();
        (digest, slot)
    }

    fn wanted(blobs: &[(&Digest, u64)]) -> BTreeMap<Digest, u64> {
        blobs
            .iter()
            .map(|(digest, size)| ((*digest).clone(), *size))
            .collect()
    }

    #[tokio::test]
    async fn what_is_here_needs_no_room_and_makes_way_for_what_is_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits {
            free: 0,
            ..Limits::default()
        };
        let store = Arc::new(Store::open(directory.path(), limits).unwrap());
        let (mine, other, read) = (
            put(&store, b"mine").await,
            put(&store, b"other").await,
            put(&store, b"read").await,
        );
        let reader = store.spool.blob(&read).unwrap();
        let (part, _) = begin(&store, b"part", b"pa").await;
        let (old, _) = begin(&store, b"old", b"o").await;
        let (busy, waiting) = begin(&store, b"busy", b"bus").await;
        let came = |digests: [&Digest; 6]| digests.map(|digest| store.came(digest));
        let all = [&mine, &part, &other, &old, &read, &busy];
        assert_eq!(came(all), [4, 2, 5, 1, 4, 3]);
        // There is room: all of it stays.
        store.room_for(&wanted(&[(&mine, 4), (&part, 4)])).unwrap();
        assert_eq!(came(all), [4, 2, 5, 1, 4, 3]);
        // There is none, however much makes way.
        let error = store
            .room_for(&wanted(&[(&mine, 4), (&part, u64::MAX)]))
            .unwrap_err();
        assert!(matches!(error, OciError::NoSpace { .. }), "{error}");
        assert_eq!(came(all), [4, 2, 0, 0, 4, 3]);
        drop((reader, waiting));
        store.room_for(&wanted(&[(&part, u64::MAX)])).unwrap_err();
        assert_eq!(came(all), [0, 2, 0, 0, 0, 0]);
    }

    #[tokio::test]
    async fn what_is_idle_makes_way_for_what_comes_otherwise() {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits {
            free: 0,
            ..Limits::default()
        };
        let store = Store::open(directory.path(), limits).unwrap();
        let (idle, read) = (put(&store, b"idle").await, put(&store, b"read it").await);
        let (old, _) = begin(&store, b"old", b"o").await;
        let (busy, waiting) = begin(&store, b"busy", b"bus").await;
        let reader = store.spool.blob(&read).unwrap();
        let came = || [&idle, &read, &old, &busy].map(|digest| store.came(digest));
        // Of those that are waited for, it is not known whether they come to more.
        assert_eq!(store.idle_bytes(), 4 + 1 + 3);
        store.make_room(1).unwrap();
        assert_eq!(came(), [4, 7, 1, 3]);
        store.make_room(u64::MAX).unwrap();
        assert_eq!(came(), [0, 7, 0, 3]);
        drop((reader, waiting));
        assert_eq!(store.idle_bytes(), 7 + 3);
        store.make_room(u64::MAX).unwrap();
        assert_eq!((came(), store.idle_bytes()), ([0; 4], 0));
    }

    #[tokio::test]
    async fn blobs_make_way_for_more_than_may_be_kept() {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits {
            blobs: 2,
            free: 0,
            ..Limits::default()
        };
        let store = Store::open(directory.path(), limits).unwrap();
        let (one, two) = (put(&store, b"one").await, put(&store, b"two").await);
        let next = Digest::of(b"next");
        assert!(store.upload(&mut None).is_err());
        store.room_for(&wanted(&[(&one, 3), (&next, 4)])).unwrap();
        assert_eq!((store.came(&one), store.came(&two)), (3, 0));
        assert!(store.upload(&mut None).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_of_an_image_stays_until_it_is_removed_or_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits {
            free: 0,
            ..Limits::default()
        };
        let store = Arc::new(Store::open(directory.path(), limits).unwrap());
        let kept = |digest: &Digest| {
            let blob = store.spool.blob(digest).unwrap();
            Kept::new(&store, vec![(digest.clone(), blob)])
        };
        let (one, two) = (put(&store, b"one").await, put(&store, b"two").await);
        kept(&one).remove();
        assert_eq!((store.came(&one), store.came(&two)), (0, 3));
        // However long its engine takes.
        let loading = kept(&two);
        for _ in 0..20 {
            tokio::time::advance(std::time::Duration::from_secs(60)).await;
            store.sweep();
        }
        drop(loading);
        for minute in 1..=20 {
            tokio::time::advance(std::time::Duration::from_secs(60)).await;
            store.sweep();
            assert_eq!(store.keeps(), minute < 15, "minute {minute}");
        }
    }
}
