//! The node's storage elements: where this node keeps what belongs to them beside their own files.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::OnceCell;
use tranship_content::place::Asides;
use tranship_content::storage::DirectStorage;
use tranship_core::node::ElementSize;
use tranship_core::storage::{ElementPlace, ElementRoute, ElementSink, ElementSource, Storage, SyncOptions};
use tranship_core::{Engine, Fault};

use crate::tar_route::{TarSink, TarSource};

/// How long what arrived of a migration that failed is kept for the next try.
const PARTIAL: Duration = Duration::from_secs(24 * 3600);

/// Storage elements that this process reaches itself.
pub struct NodeStorage {
    engine: Arc<dyn Engine>,
    state_directory: PathBuf,
    direct: OnceCell<DirectStorage>,
}

impl NodeStorage {
    /// Keeps its own files under `state_directory`.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, state_directory: PathBuf) -> Self {
        Self {
            engine,
            state_directory,
            direct: OnceCell::new(),
        }
    }

    /// What makes way is kept beside the engine's own data, because there it is on the same file system.
    async fn direct(&self) -> Result<&DirectStorage, Fault> {
        self.direct
            .get_or_try_init(|| async {
                let root = PathBuf::from(self.engine.facts().await?.root_directory);
                let asides = Asides {
                    directories: vec![root.join("tranship"), self.state_directory.join("aside")],
                };
                asides.expire("partial-", PARTIAL);
                let storage = DirectStorage::new(self.state_directory.join("content")).with_asides(asides);
                storage.forget_earlier_boots();
                Ok(storage)
            })
            .await
    }
}

#[async_trait]
impl Storage for NodeStorage {
    async fn source(
        &self,
        place: &ElementPlace,
        options: &SyncOptions,
    ) -> Result<Box<dyn ElementSource>, Fault> {
        if options.route == ElementRoute::Archive || matches!(place, ElementPlace::Archive { .. }) {
            return Ok(Box::new(TarSource {
                engine: Arc::clone(&self.engine),
                place: place.clone(),
            }));
        }
        self.direct().await?.source(place, options).await
    }

    async fn sink(&self, place: &ElementPlace, route: ElementRoute) -> Result<Box<dyn ElementSink>, Fault> {
        if route == ElementRoute::Archive || matches!(place, ElementPlace::Archive { .. }) {
            return Ok(Box::new(TarSink {
                engine: Arc::clone(&self.engine),
                place: place.clone(),
            }));
        }
        self.direct().await?.sink(place, route).await
    }

    async fn exists(&self, place: &ElementPlace) -> Result<bool, Fault> {
        self.direct().await?.exists(place).await
    }

    async fn make(&self, place: &ElementPlace) -> Result<bool, Fault> {
        self.direct().await?.make(place).await
    }

    async fn remove(&self, place: &ElementPlace) -> Result<(), Fault> {
        self.direct().await?.remove(place).await
    }

    async fn set_aside(&self, place: &ElementPlace, key: &str) -> Result<(), Fault> {
        self.direct().await?.set_aside(place, key).await
    }

    async fn put_back(&self, place: &ElementPlace, key: &str) -> Result<bool, Fault> {
        self.direct().await?.put_back(place, key).await
    }

    async fn drop_aside(&self, place: &ElementPlace, key: &str) -> Result<(), Fault> {
        self.direct().await?.drop_aside(place, key).await
    }

    async fn size(&self, place: &ElementPlace) -> Result<Option<ElementSize>, Fault> {
        self.direct().await?.size(place).await
    }
}
