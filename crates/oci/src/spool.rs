//! Where uploads are until an image is made of them: a directory of its own, closed to others, emptied when the server starts.
//!
//! ```text
//! lock            held as long as a server uses the directory
//! uploads/ID      what came of an upload so far
//! blobs/HEX       a blob whose digest was compared
//! ```
//!
//! A blob gets its name when its digest is right. It goes when nobody has asked for it for a while; whoever still reads it keeps the
//! file until then.

use std::collections::{HashMap, HashSet};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, timeout};
use tranship_core::EngineError;
use tranship_core::engine::ByteStream;
use tranship_core::ids::{Digest, hex};

use crate::error::OciError;
use crate::held::Document;
use crate::name::Repository;

/// How much is gathered before it is hashed and written, in bytes.
const PIECE: usize = 1 << 20;

/// How much of a blob is read at once when it is sent, in bytes.
const READ: usize = 256 << 10;

/// What may be taken in.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Longest blob, in bytes.
    pub blob: u64,
    /// Uploads under way.
    pub uploads: usize,
    /// Blobs that are kept at once.
    pub blobs: usize,
    /// Manifests and indexes that are kept at once.
    pub documents: usize,
    /// What stays free on the disk of the spool, in bytes.
    pub free: u64,
    /// Longest plain layer, in bytes.
    pub layer: u64,
    /// Up to this length a layer may be packed as tightly as it will, in bytes.
    pub tight: u64,
    /// Beyond that, how many times longer than its blob a layer may be. gzip reaches a thousand, with zeros alone.
    pub ratio: u64,
    /// How long uploads, blobs and manifests are kept after they were last asked for.
    pub idle: Duration,
    /// How long the body of a request may pause.
    pub pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            blob: 64 << 30,
            uploads: 64,
            blobs: 4096,
            documents: 1024,
            free: 1 << 30,
            layer: 64 << 30,
            tight: 256 << 20,
            ratio: 500,
            idle: Duration::from_secs(15 * 60),
            pause: Duration::from_secs(60),
        }
    }
}

/// A blob that was uploaded; its file goes with the last one who holds this.
#[derive(Debug)]
pub(crate) struct BlobFile {
    path: PathBuf,
    pub(crate) length: u64,
}

impl BlobFile {
    pub(crate) fn open(&self) -> Result<File, OciError> {
        File::open(&self.path).map_err(failed("open a blob"))
    }
}

impl Drop for BlobFile {
    fn drop(&mut self) {
        // The directory is emptied at the next start anyway.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// An upload under way.
pub(crate) struct Upload {
    file: File,
    path: PathBuf,
    hasher: Sha256,
    pub(crate) at: u64,
    /// It became a blob.
    done: bool,
}

impl Upload {
    /// Forgets what came so far.
    pub(crate) fn restart(&mut self) {
        self.at = 0;
        self.hasher = Sha256::new();
    }

    /// The digest of what came so far.
    pub(crate) fn digest(&self) -> Digest {
        Digest::from_sha256(&self.hasher.clone().finalize().into())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.done {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// An upload that others may hold as well; only one may write at a time.
pub(crate) type Shared = Arc<tokio::sync::Mutex<Upload>>;

struct Session {
    repository: Repository,
    upload: Shared,
    used: Instant,
}

struct Kept<T> {
    value: T,
    used: Instant,
}

#[derive(Default)]
struct State {
    uploads: HashMap<String, Session>,
    blobs: HashMap<Digest, Kept<Arc<BlobFile>>>,
    documents: HashMap<Digest, Kept<Document>>,
}

pub(crate) struct Spool {
    directory: PathBuf,
    pub(crate) limits: Limits,
    state: Mutex<State>,
    // Holding it is what keeps a second server out.
    _lock: File,
}

pub(crate) fn failed(action: &'static str) -> impl Fn(io::Error) -> OciError {
    move |source| OciError::Spool { action, source }
}

impl Spool {
    /// Takes the directory for this server alone, makes it if it is not there, and empties it.
    pub(crate) fn open(directory: &Path, limits: Limits) -> Result<Self, OciError> {
        let make = |path: &Path| DirBuilder::new().recursive(true).mode(0o700).create(path);
        make(directory).map_err(failed("make the directory"))?;
        let metadata = std::fs::symlink_metadata(directory).map_err(failed("look at the directory"))?;
        if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
            let source = io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to somebody else");
            return Err(failed("look at the directory")(source));
        }
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
            .map_err(failed("close the directory to others"))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(directory.join("lock"))
            .map_err(failed("open its lock"))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| failed("take its lock (another server uses it)")(error.into()))?;
        for name in ["uploads", "blobs"] {
            let path = directory.join(name);
            match std::fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("empty the directory")(error));
                }
                _ => make(&path).map_err(failed("make the directory"))?,
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
            limits,
            state: Mutex::default(),
            _lock: lock,
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops what nobody asked for in a while.
    pub(crate) fn sweep(&self) {
        let idle = self.limits.idle;
        let mut state = self.state();
        // One that is written to at this moment is locked. Its time begins when that ends, as a blob's when nobody holds it any more.
        state.uploads.retain(|_, session| {
            if session.upload.try_lock().is_err() {
                session.used = Instant::now();
            }
            session.used.elapsed() < idle
        });
        state.blobs.retain(|_, blob| {
            if Arc::strong_count(&blob.value) > 1 {
                blob.used = Instant::now();
            }
            blob.used.elapsed() < idle
        });
        state
            .documents
            .retain(|_, document| document.used.elapsed() < idle);
    }

    /// Begins an upload and returns its name.
    pub(crate) fn begin(&self, repository: &Repository) -> Result<(String, Shared), OciError> {
        self.sweep();
        let mut random = [0; 16];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| failed("random numbers")(error.into()))?;
        let id = hex(&random);
        let mut state = self.state();
        if state.uploads.len() >= self.limits.uploads {
            return Err(OciError::TooMany { what: "uploads" });
        }
        if state.blobs.len() >= self.limits.blobs {
            return Err(OciError::TooMany { what: "blobs" });
        }
        let path = self.directory.join("uploads").join(&id);
        let file = OpenOptions::new()
            .create_new(true)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("begin an upload"))?;
        let upload = Arc::new(tokio::sync::Mutex::new(Upload {
            file,
            path,
            hasher: Sha256::new(),
            at: 0,
            done: false,
        }));
        let session = Session {
            repository: repository.clone(),
            upload: Arc::clone(&upload),
            used: Instant::now(),
        };
        state.uploads.insert(id.clone(), session);
        Ok((id, upload))
    }

    /// The upload of this name, in this repository.
    pub(crate) fn upload(&self, repository: &Repository, id: &str) -> Result<Shared, OciError> {
        self.sweep();
        let mut state = self.state();
        let session = state.uploads.get_mut(id).ok_or(OciError::NoUpload)?;
        if session.repository != *repository {
            return Err(OciError::NoUpload);
        }
        session.used = Instant::now();
        Ok(Arc::clone(&session.upload))
    }

    /// Whether there is an upload of this name; looking does not keep it.
    pub(crate) fn has_upload(&self, id: &str) -> bool {
        self.state().uploads.contains_key(id)
    }

    /// Whether there are uploads or blobs.
    pub(crate) fn keeps(&self) -> bool {
        let state = self.state();
        !(state.uploads.is_empty() && state.blobs.is_empty())
    }

    /// Bytes of uploads that nobody writes to at the moment, and of blobs that nobody reads.
    pub(crate) fn idle_bytes(&self) -> u64 {
        let state = self.state();
        let blobs = state.blobs.values().map(|blob| &blob.value);
        let blobs = blobs
            .filter(|blob| Arc::strong_count(blob) == 1)
            .map(|blob| blob.length);
        let uploads = state.uploads.values().filter_map(|session| {
            let unused = Arc::strong_count(&session.upload) == 1;
            session
                .upload
                .try_lock()
                .ok()
                .filter(|_| unused)
                .map(|upload| upload.at)
        });
        blobs.chain(uploads).fold(0, u64::saturating_add)
    }

    /// Gives an upload up.
    pub(crate) fn give_up(&self, id: &str) {
        self.state().uploads.remove(id);
    }

    /// Takes in the body of a request at the end of an upload. `expected` is its length, where it was told; a body of another length
    /// is refused, and one that is too long leaves the upload where it was.
    pub(crate) async fn append<S, E>(
        &self,
        upload: &Shared,
        from: Option<u64>,
        expected: Option<u64>,
        mut body: S,
    ) -> Result<u64, OciError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let busy = |_| OciError::Upload {
            message: "another request writes to this upload".into(),
        };
        let mut held = Arc::clone(upload).try_lock_owned().map_err(busy)?;
        if let Some(start) = from
            && start != held.at
        {
            return Err(OciError::Order {
                at: held.at,
                message: format!("what came begins at {start}"),
            });
        }
        let (begin, before) = (held.at, held.hasher.clone());
        let mut gathered = BytesMut::new();
        let mut came = 0_u64;
        loop {
            let piece = match timeout(self.limits.pause, body.next()).await {
                Err(_) => {
                    return Err(OciError::Body {
                        message: "nothing came for too long".into(),
                    });
                }
                Ok(Some(Err(error))) => {
                    return Err(OciError::Body {
                        message: error.to_string(),
                    });
                }
                Ok(Some(Ok(piece))) => Some(piece),
                Ok(None) => None,
            };
            let ended = piece.is_none();
            came += piece.as_ref().map_or(0, |piece| piece.len() as u64);
            let refused = if expected.is_some_and(|expected| came > expected) {
                Some(OciError::Body {
                    message: "it is longer than it was said to be".into(),
                })
            } else if begin + came > self.limits.blob {
                Some(OciError::TooLarge {
                    what: "the blob",
                    limit: self.limits.blob,
                })
            } else {
                None
            };
            if let Some(error) = refused {
                held.at = begin;
                held.hasher = before;
                return Err(error);
            }
            if let Some(piece) = piece {
                gathered.extend_from_slice(&piece);
            }
            if gathered.len() >= PIECE || (ended && !gathered.is_empty()) {
                self.room(0)?;
                let bytes = gathered.split().freeze();
                // The guard goes along: should the request be dropped, the piece is still written whole before the next one.
                let written = tokio::task::spawn_blocking(move || {
                    held.file.write_all_at(&bytes, held.at)?;
                    held.hasher.update(&bytes);
                    held.at += bytes.len() as u64;
                    Ok::<_, io::Error>(held)
                });
                held = written
                    .await
                    .map_err(io::Error::other)
                    .flatten()
                    .map_err(failed("write an upload"))?;
            }
            if ended {
                break;
            }
        }
        if expected.is_some_and(|expected| came < expected) {
            return Err(OciError::Body {
                message: "it is shorter than it was said to be".into(),
            });
        }
        Ok(held.at)
    }

    /// Ends an upload: it becomes a blob if its digest is right, else it is gone.
    pub(crate) async fn finish(&self, id: &str, upload: &Shared, digest: &Digest) -> Result<(), OciError> {
        let mut held = upload.lock().await;
        self.give_up(id);
        if held.done {
            return Err(OciError::NoUpload);
        }
        let found = held.digest();
        if found != *digest {
            return Err(OciError::Digest {
                message: format!("what came has the digest {found}, not {digest}"),
            });
        }
        // An upload that was set back may have left more behind.
        held.file.set_len(held.at).map_err(failed("end an upload"))?;
        let mut state = self.state();
        if let Some(blob) = state.blobs.get_mut(digest) {
            blob.used = Instant::now();
            return Ok(());
        }
        if state.blobs.len() >= self.limits.blobs {
            return Err(OciError::TooMany { what: "blobs" });
        }
        // A blob of this digest that is still read after it was dropped has its own name.
        let path = self
            .directory
            .join("blobs")
            .join(format!("{}-{id}", digest.hex()));
        std::fs::rename(&held.path, &path).map_err(failed("name a blob"))?;
        held.done = true;
        let value = Arc::new(BlobFile {
            path,
            length: held.at,
        });
        let used = Instant::now();
        state.blobs.insert(digest.clone(), Kept { value, used });
        Ok(())
    }

    /// The blob of this digest.
    pub(crate) fn blob(&self, digest: &Digest) -> Option<Arc<BlobFile>> {
        let mut state = self.state();
        let blob = state.blobs.get_mut(digest)?;
        blob.used = Instant::now();
        Some(Arc::clone(&blob.value))
    }

    /// Drops a blob; whether there was one.
    pub(crate) fn drop_blob(&self, digest: &Digest) -> bool {
        self.state().blobs.remove(digest).is_some()
    }

    /// Whether so many blobs more may be kept.
    pub(crate) fn takes_blobs(&self, more: usize) -> bool {
        self.state().blobs.len().saturating_add(more) <= self.limits.blobs
    }

    /// Drops blobs that nobody reads, but for those that are `spared`.
    pub(crate) fn drop_unread(&self, spared: &HashSet<Digest>) {
        let read = |blob: &Kept<Arc<BlobFile>>| Arc::strong_count(&blob.value) > 1;
        self.state()
            .blobs
            .retain(|digest, blob| read(blob) || spared.contains(digest));
    }

    /// Keeps a manifest or index as it was pushed. The one that was not asked for longest makes way.
    pub(crate) fn keep(&self, document: Document) {
        let mut state = self.state();
        if state.documents.len() >= self.limits.documents {
            let oldest = state.documents.iter().min_by_key(|(_, kept)| kept.used);
            if let Some(oldest) = oldest.map(|(digest, _)| digest.clone()) {
                state.documents.remove(&oldest);
            }
        }
        let used = Instant::now();
        state.documents.insert(
            document.digest.clone(),
            Kept {
                value: document,
                used,
            },
        );
    }

    /// A manifest or index that was pushed.
    pub(crate) fn document(&self, digest: &Digest) -> Option<Document> {
        let mut state = self.state();
        let kept = state.documents.get_mut(digest)?;
        kept.used = Instant::now();
        Some(kept.value.clone())
    }

    /// Drops a manifest or index; whether there was one.
    pub(crate) fn drop_document(&self, digest: &Digest) -> bool {
        self.state().documents.remove(digest).is_some()
    }

    /// Free bytes on the disk, without those that are left alone; fails if they are fewer than `needed`.
    pub(crate) fn room(&self, needed: u64) -> Result<u64, OciError> {
        let disk =
            rustix::fs::statvfs(&self.directory).map_err(|error| failed("look at the disk")(error.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        match free.checked_sub(self.limits.free) {
            Some(room) if room >= needed => Ok(room),
            _ => Err(OciError::NoSpace {
                free,
                kept: self.limits.free,
            }),
        }
    }
}

/// Bytes of a blob from `start` to before `end`.
pub(crate) fn stream(blob: &Arc<BlobFile>, start: u64, end: u64) -> Result<ByteStream, OciError> {
    let file = Arc::new(blob.open()?);
    let state = (file, start);
    let read = futures_util::stream::try_unfold(state, move |(file, at)| async move {
        if at >= end {
            return Ok(None);
        }
        let reader = Arc::clone(&file);
        let read = tokio::task::spawn_blocking(move || {
            let want = usize::try_from(end - at).unwrap_or(READ).min(READ);
            let mut buffer = vec![0; want];
            reader.read_exact_at(&mut buffer, at)?;
            Ok(Bytes::from(buffer))
        });
        let bytes = read
            .await
            .map_err(io::Error::other)
            .flatten()
            .map_err(|error| EngineError::Failed {
                action: "read an uploaded blob".into(),
                status: 0,
                message: error.to_string(),
            })?;
        let next = at + bytes.len() as u64;
        Ok(Some((bytes, (file, next))))
    });
    Ok(Box::pin(read))
}
