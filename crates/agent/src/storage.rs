//! The node's storage elements: their content through `content`, their directories as wholes beside it.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::OnceCell;
use tranship_content::place::{self, Asides, PlaceError};
use tranship_content::scan::Excludes;
use tranship_content::sink::{DirectorySink, SinkOptions};
use tranship_content::source::{DirectorySource, SourceOptions};
use tranship_core::fault::FaultKind;
use tranship_core::ids::Digest;
use tranship_core::node::ElementSize;
use tranship_core::storage::{ElementPlace, ElementSink, ElementSource, Storage, SyncOptions};
use tranship_core::{Engine, Fault};

/// How long what arrived of a migration that failed is kept for the next try.
const PARTIAL: Duration = Duration::from_secs(24 * 3600);

/// Storage elements that this process reaches itself.
pub struct NodeStorage {
    engine: Arc<dyn Engine>,
    state_directory: PathBuf,
    asides: OnceCell<Asides>,
}

impl NodeStorage {
    /// Keeps its own files under `state_directory`.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, state_directory: PathBuf) -> Self {
        Self {
            engine,
            state_directory,
            asides: OnceCell::new(),
        }
    }

    /// Where a half of a round keeps what it knows of a place between rounds.
    fn work(&self, half: &str, place: &ElementPlace) -> Result<PathBuf, Fault> {
        let path = directory(place)?;
        let name = Digest::of(path.as_os_str().as_encoded_bytes());
        let directory = self.state_directory.join("content").join(half).join(name.hex());
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory);
        made.map_err(|e| {
            Fault::new(
                "agent.state",
                FaultKind::Environment,
                format!("{} cannot be made: {e}", directory.display()),
            )
            .with_hint("the agent's state directory needs space and write permission")
        })?;
        Ok(directory)
    }

    /// Where what makes way is kept: beside the engine's own data, because there it is on the same file system.
    async fn asides(&self) -> Result<&Asides, Fault> {
        self.asides
            .get_or_try_init(|| async {
                let root = PathBuf::from(self.engine.facts().await?.root_directory);
                let asides = Asides {
                    directories: vec![root.join("tranship"), self.state_directory.join("aside")],
                };
                asides.expire("partial-", PARTIAL);
                Ok(asides)
            })
            .await
    }
}

/// The directory of a place, for what only works on directories.
fn directory(place: &ElementPlace) -> Result<PathBuf, Fault> {
    match place {
        ElementPlace::Directory { path, .. } => Ok(path.clone()),
        ElementPlace::Archive { path, .. } => Err(Fault::new(
            "content.route",
            FaultKind::Environment,
            format!("{path} is reached through the engine only, which cannot do that"),
        )
        .with_hint("log in as root there")),
    }
}

fn is_overlay(place: &ElementPlace) -> bool {
    matches!(place, ElementPlace::Directory { overlay: true, .. })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PlaceError> + Send + 'static,
) -> Result<T, Fault> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|e| Fault::of(&e)),
        Err(error) => Err(Fault::new("agent.task", FaultKind::Bug, error.to_string())),
    }
}

#[async_trait]
impl Storage for NodeStorage {
    async fn source(
        &self,
        place: &ElementPlace,
        options: &SyncOptions,
    ) -> Result<Box<dyn ElementSource>, Fault> {
        let options = SourceOptions {
            root: directory(place)?,
            overlay: is_overlay(place),
            work: self.work("source", place)?,
            excludes: Excludes::new(&options.exclude).map_err(|e| Fault::of(&e))?,
            compression: options.compression,
            limit_rate: options.limit_rate,
            threads: 0,
        };
        let opened = tokio::task::spawn_blocking(move || DirectorySource::open(options)).await;
        let source = opened.map_err(|e| Fault::new("agent.task", FaultKind::Bug, e.to_string()))??;
        Ok(Box::new(source))
    }

    async fn sink(&self, place: &ElementPlace) -> Result<Box<dyn ElementSink>, Fault> {
        Ok(Box::new(DirectorySink::new(SinkOptions {
            root: directory(place)?,
            work: self.work("sink", place)?,
            overlay: is_overlay(place),
        })))
    }

    async fn make(&self, place: &ElementPlace) -> Result<bool, Fault> {
        let path = directory(place)?;
        blocking(move || place::make(&path)).await
    }

    async fn remove(&self, place: &ElementPlace) -> Result<(), Fault> {
        let path = directory(place)?;
        blocking(move || place::remove(&path)).await
    }

    async fn set_aside(&self, place: &ElementPlace, key: &str) -> Result<(), Fault> {
        let (path, asides, key) = (directory(place)?, self.asides().await?.clone(), key.to_owned());
        blocking(move || asides.set_aside(&path, &key)).await
    }

    async fn put_back(&self, place: &ElementPlace, key: &str) -> Result<bool, Fault> {
        let (path, asides, key) = (directory(place)?, self.asides().await?.clone(), key.to_owned());
        blocking(move || asides.put_back(&path, &key)).await
    }

    async fn drop_aside(&self, place: &ElementPlace, key: &str) -> Result<(), Fault> {
        let (path, asides, key) = (directory(place)?, self.asides().await?.clone(), key.to_owned());
        blocking(move || asides.drop_aside(&path, &key)).await
    }

    async fn size(&self, place: &ElementPlace) -> Result<Option<ElementSize>, Fault> {
        let path = directory(place)?;
        blocking(move || place::size(&path)).await
    }
}
