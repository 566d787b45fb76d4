//! The port [`Storage`] for directories of this node that this process may read and write as root.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tranship_core::fault::{Explain, Fault, FaultKind};
use tranship_core::node::ElementSize;
use tranship_core::storage::{
    BegunRound, ElementPlace, ElementRoute, ElementSink, ElementSource, Pipe, ProgressFn, RoundOptions,
    RoundReport, Storage, SyncOptions,
};

use crate::boot::{BOOT, is_of_this_boot};
use crate::bridge::{IDLE, split};
use crate::place::{self, Asides, PlaceError};
use crate::scan::{Excludes, Nested};
use crate::sink::{DirectorySink, SinkOptions};
use crate::source::{Begun, Source, SourceOptions};

/// Reads and writes directories.
#[derive(Debug, Clone)]
pub struct DirectStorage {
    work: PathBuf,
    asides: Asides,
}

/// Why an element could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Only the engine reaches it.
    #[error("the files at {path} of container {container} can only be reached through the engine")]
    NotDirect {
        /// The container.
        container: String,
        /// Path in it.
        path: String,
    },
}

impl Explain for StorageError {
    fn code(&self) -> &'static str {
        match self {
            Self::NotDirect { .. } => "content.not-direct",
        }
    }

    fn hint(&self) -> Option<String> {
        Some("let the agent run as root on the machine of the engine".to_owned())
    }
}

impl DirectStorage {
    /// Keeps records between rounds in `work`, in a directory for each element. They say what does not have to be read or sent again;
    /// without them everything still works.
    #[must_use]
    pub fn new(work: impl Into<PathBuf>) -> Self {
        Self {
            work: work.into(),
            asides: Asides::default(),
        }
    }

    /// Keeps what makes way in these directories.
    #[must_use]
    pub fn with_asides(mut self, asides: Asides) -> Self {
        self.asides = asides;
        self
    }

    /// Removes records of an earlier boot of the machine, which nobody believes. Failing at one is no failure at the others.
    pub fn forget_earlier_boots(&self) {
        let elements = std::fs::read_dir(&self.work).into_iter().flatten().flatten();
        for element in elements.map(|element| element.path()) {
            let stale = |end: &str| {
                let records = element.join(end);
                !records.exists() || (records.join(BOOT).exists() && !is_of_this_boot(&records.join(BOOT)))
            };
            // One without a note has just been made.
            if stale("source")
                && stale("sink")
                && let Err(error) = std::fs::remove_dir_all(&element)
            {
                tracing::warn!("cannot remove the records in {}: {error}", element.display());
            }
        }
    }

    /// Directory and kind of an element, and where its records are.
    fn place(&self, place: &ElementPlace) -> Result<(PathBuf, bool, PathBuf), Fault> {
        match place {
            ElementPlace::Directory { path, overlay } => {
                let name = blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex();
                let work = self.work.join(&name.as_str()[..32]);
                Ok((path.clone(), *overlay, work))
            }
            ElementPlace::Archive { container, path } => Err(StorageError::NotDirect {
                container: container.to_string(),
                path: path.clone(),
            }
            .into()),
        }
    }
}

#[async_trait]
impl Storage for DirectStorage {
    async fn source(
        &self,
        place: &ElementPlace,
        options: &SyncOptions,
    ) -> Result<Box<dyn ElementSource>, Fault> {
        let (root, overlay, work) = self.place(place)?;
        let nested = if options.mounts_stay {
            Nested::ShowEmpty
        } else {
            Nested::Refuse
        };
        let options = SourceOptions {
            root,
            overlay,
            work: work.join("source"),
            excludes: Excludes::new(&options.exclude)?,
            nested,
            compression: options.compression,
            limit_rate: options.limit_rate,
            threads: 0,
        };
        let opened = tokio::task::spawn_blocking(move || Source::open(options)).await;
        let source = opened
            .map_err(|error| defect(&error))?
            .map_err(|error| error.fault())?;
        Ok(Box::new(DirectorySource {
            source: Arc::new(Mutex::new(source)),
        }))
    }

    async fn sink(&self, place: &ElementPlace, _route: ElementRoute) -> Result<Box<dyn ElementSink>, Fault> {
        let (root, overlay, work) = self.place(place)?;
        Ok(Box::new(DirectorySink::new(SinkOptions {
            root,
            overlay,
            work: work.join("sink"),
        })))
    }

    async fn exists(&self, place: &ElementPlace) -> Result<bool, Fault> {
        let (path, ..) = self.place(place)?;
        blocking(move || place::exists(&path)).await
    }

    async fn make(&self, place: &ElementPlace) -> Result<bool, Fault> {
        let (path, ..) = self.place(place)?;
        blocking(move || place::make(&path)).await
    }

    async fn remove(&self, place: &ElementPlace) -> Result<(), Fault> {
        let (path, ..) = self.place(place)?;
        blocking(move || place::remove(&path)).await
    }

    async fn set_aside(&self, place: &ElementPlace, key: &str) -> Result<(), Fault> {
        let ((path, ..), asides, key) = (self.place(place)?, self.asides.clone(), key.to_owned());
        blocking(move || asides.set_aside(&path, &key)).await
    }

    async fn put_back(&self, place: &ElementPlace, key: &str) -> Result<bool, Fault> {
        let ((path, ..), asides, key) = (self.place(place)?, self.asides.clone(), key.to_owned());
        blocking(move || asides.put_back(&path, &key)).await
    }

    async fn drop_aside(&self, place: &ElementPlace, key: &str) -> Result<(), Fault> {
        let ((path, ..), asides, key) = (self.place(place)?, self.asides.clone(), key.to_owned());
        blocking(move || asides.drop_aside(&path, &key)).await
    }

    async fn size(&self, place: &ElementPlace) -> Result<Option<ElementSize>, Fault> {
        let (path, ..) = self.place(place)?;
        blocking(move || place::size(&path)).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PlaceError> + Send + 'static,
) -> Result<T, Fault> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(Fault::from),
        Err(error) => Err(defect(&error)),
    }
}

/// A directory of this node that is read.
struct DirectorySource {
    /// Locked for as long as a round goes on, which may be longer than anybody waits for it.
    source: Arc<Mutex<Source>>,
}

/// A round of a directory that has begun.
struct DirectoryRound {
    source: Arc<Mutex<Source>>,
    /// `None` while a thread has it, and after one ended early.
    begun: Option<Begun>,
    /// Whoever drops this ends the threads, too; and when the round is over, the thread that still listens.
    _guard: DropGuard,
}

#[async_trait]
impl ElementSource for DirectorySource {
    async fn begin(&mut self, pipe: Pipe, options: RoundOptions) -> Result<Box<dyn BegunRound>, Fault> {
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let (input, output) = split(pipe, Handle::current(), IDLE, stop);
        let source = Arc::clone(&self.source);
        let thread = tokio::task::spawn_blocking(move || {
            let source = source.lock().unwrap_or_else(PoisonError::into_inner);
            source.begin(input, output, options)
        });
        Ok(Box::new(DirectoryRound {
            source: Arc::clone(&self.source),
            begun: Some(thread.await.map_err(|error| defect(&error))?),
            _guard: guard,
        }))
    }
}

#[async_trait]
impl BegunRound for DirectoryRound {
    async fn meet(&mut self) -> Result<(), Fault> {
        let (source, mut begun) = (Arc::clone(&self.source), self.take()?);
        let thread = tokio::task::spawn_blocking(move || {
            let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
            let met = source.meet(&mut begun).map_err(|error| error.fault());
            met.map(|()| begun)
        });
        self.begun = Some(thread.await.unwrap_or_else(|error| Err(defect(&error)))?);
        Ok(())
    }

    async fn foresee(&mut self) -> Result<(), Fault> {
        let (source, mut begun) = (Arc::clone(&self.source), self.take()?);
        let thread = tokio::task::spawn_blocking(move || {
            let source = source.lock().unwrap_or_else(PoisonError::into_inner);
            let asked = source.foresee(&mut begun).map_err(|error| error.fault());
            asked.map(|()| begun)
        });
        self.begun = Some(thread.await.unwrap_or_else(|error| Err(defect(&error)))?);
        Ok(())
    }

    async fn follow(&mut self, writing: BoxFuture<'_, ()>) -> Result<(), Fault> {
        let (source, begun) = (Arc::clone(&self.source), self.take()?);
        let over = Over::default();
        let thread = {
            let over = Arc::clone(&over.0);
            tokio::task::spawn_blocking(move || {
                let source = source.lock().unwrap_or_else(PoisonError::into_inner);
                source.follow(&begun, &over);
                begun
            })
        };
        writing.await;
        drop(over);
        self.begun = Some(thread.await.map_err(|error| defect(&error))?);
        Ok(())
    }

    async fn go(mut self: Box<Self>, progress: ProgressFn) -> Result<RoundReport, Fault> {
        let (source, begun) = (Arc::clone(&self.source), self.take()?);
        let thread = tokio::task::spawn_blocking(move || {
            let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
            let gone = source.go(begun, &|so_far| progress(so_far));
            gone.map_err(|error| error.fault())
        });
        thread.await.unwrap_or_else(|error| Err(defect(&error)))
    }
}

/// Tells a thread that follows that nothing is written any more, also where nobody waits for it.
#[derive(Default)]
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl DirectoryRound {
    fn take(&mut self) -> Result<Begun, Fault> {
        self.begun.take().ok_or_else(|| {
            let message = "a round that is over was to go on";
            Fault::new("content.defect", FaultKind::Bug, message)
        })
    }
}

fn defect(error: &tokio::task::JoinError) -> Fault {
    Fault::new(
        "content.defect",
        FaultKind::Bug,
        "a thread of the content source ended early",
    )
    .because(error.to_string())
}
