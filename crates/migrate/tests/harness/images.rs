//! Images by other ways than one archive, over engines in memory: an archive through a pipe, or by a registry that is a promise.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tranship_core::fault::FaultKind;
use tranship_core::storage::Pipe;
use tranship_core::{Engine as _, Fault, ImageSpec};
use tranship_migrate::images::{Came, Fetched, ImageOrigin, ImageWays, Kept};
use tranship_testkit::memory::MemoryEngine;

/// The ways of one engine's images.
pub struct Carried {
    pub engine: Arc<MemoryEngine>,
    /// How often what was kept of an image was removed.
    pub removed: Arc<AtomicUsize>,
    /// For how many bytes there was to be room, and whether the engine took something in before.
    pub rooms: Arc<Mutex<Vec<(u64, bool)>>>,
}

fn lost() -> Fault {
    Fault::new("registry.lost", FaultKind::Environment, "the stream broke")
}

impl Carried {
    pub fn by(engine: &Arc<MemoryEngine>) -> Self {
        Self {
            engine: Arc::clone(engine),
            removed: Arc::default(),
            rooms: Arc::default(),
        }
    }
}

#[async_trait]
impl ImageWays for Carried {
    async fn serve(&self, image: &ImageSpec, mut pipe: Pipe, sent: Arc<AtomicU64>) -> Result<(), Fault> {
        let skip = pipe.read_u64().await.map_err(|_| lost())?;
        let skip = usize::try_from(skip).unwrap();
        let mut archive = self.engine.export_image(image, None, skip).await?.stream;
        while let Some(piece) = archive.next().await {
            let piece = piece?;
            sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
            pipe.write_all(&piece).await.map_err(|_| lost())?;
        }
        pipe.shutdown().await.map_err(|_| lost())
    }

    async fn push(
        &self,
        image: &ImageSpec,
        registry: &str,
        may_push: bool,
        sent: Arc<AtomicU64>,
    ) -> Result<ImageOrigin, Fault> {
        if !may_push && registry.starts_with("gone") {
            return Err(Fault::new("registry.not-found", FaultKind::Environment, "gone"));
        }
        sent.fetch_add(1000, Ordering::Relaxed);
        Ok(ImageOrigin::Registry {
            address: registry.to_owned(),
            repository: "tranship".into(),
            manifest: image.id.clone(),
        })
    }

    async fn fetch(
        &self,
        image: &ImageSpec,
        held: usize,
        origin: &ImageOrigin,
        pipe: Option<Pipe>,
    ) -> Result<Fetched, Fault> {
        let layers = image.layers.len() - held;
        let mut bytes = Vec::new();
        match (origin, pipe) {
            (ImageOrigin::Source, Some(mut pipe)) => {
                pipe.write_u64(held as u64).await.map_err(|_| lost())?;
                pipe.read_to_end(&mut bytes).await.map_err(|_| lost())?;
            }
            (ImageOrigin::Source, None) => return Err(lost()),
            (ImageOrigin::Registry { .. }, _) => {
                // As if it had been there.
                let elsewhere = MemoryEngine::new();
                elsewhere.add_image(image);
                let mut archive = elsewhere.export_image(image, None, held).await?.stream;
                while let Some(piece) = archive.next().await {
                    bytes.extend_from_slice(&piece?);
                }
            }
        }
        let came = Came {
            layers,
            bytes: bytes.len() as u64,
        };
        let removed = Arc::clone(&self.removed);
        Ok(Fetched {
            archive: Box::pin(stream::iter([Ok(bytes.into())])),
            came,
            kept: Kept::new(move || {
                removed.fetch_add(1, Ordering::Relaxed);
            }),
        })
    }
    async fn make_room(&self, bytes: u64) {
        let late = self.engine.calls().contains(&"import image");
        self.rooms.lock().unwrap().push((bytes, late));
    }
}
