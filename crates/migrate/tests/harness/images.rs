//! Images by other ways than one archive, over engines in memory: an archive through a pipe, or by a registry that is a promise.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tranship_core::engine::ByteStream;
use tranship_core::fault::FaultKind;
use tranship_core::storage::Pipe;
use tranship_core::{Engine as _, Fault, ImageSpec};
use tranship_migrate::images::{Came, ImageOrigin, ImageWays};
use tranship_testkit::memory::MemoryEngine;

/// The ways of one engine's images.
pub struct Carried(pub Arc<MemoryEngine>);

fn lost() -> Fault {
    Fault::new("registry.lost", FaultKind::Environment, "the stream broke")
}

#[async_trait]
impl ImageWays for Carried {
    async fn serve(&self, image: &ImageSpec, mut pipe: Pipe, sent: Arc<AtomicU64>) -> Result<(), Fault> {
        let skip = pipe.read_u64().await.map_err(|_| lost())?;
        let skip = usize::try_from(skip).unwrap();
        let mut archive = self.0.export_image(image, None, skip).await?.stream;
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
    ) -> Result<(ByteStream, Came), Fault> {
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
        Ok((Box::pin(stream::iter([Ok(bytes.into())])), came))
    }
}
