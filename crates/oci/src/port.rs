//! What the registry needs of an engine, and nothing else of it: so that tests can be an engine.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tranship_core::engine::ByteStream;
use tranship_core::ids::Digest;
use tranship_core::image::ImageBlob;
use tranship_core::{Engine, EngineError, ImageSpec};

/// An engine's images. Methods and errors are those of [`Engine`].
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// [`Engine::images`]
    async fn list(&self) -> Result<Vec<ImageSpec>, EngineError>;
    /// [`Engine::image`]
    async fn find(&self, reference: &str) -> Result<Option<ImageSpec>, EngineError>;
    /// [`Engine::image_config`]
    async fn config(&self, image: &Digest) -> Result<Bytes, EngineError>;
    /// [`Engine::layer_lengths`]
    async fn lengths(&self, image: &ImageSpec) -> Result<Vec<u64>, EngineError>;
    /// [`Engine::layer`]
    async fn layer(&self, image: &ImageSpec, index: usize, offset: u64) -> Result<ByteStream, EngineError>;
    /// [`Engine::image_blobs`]
    async fn blobs(&self, images: &[Digest]) -> Result<Option<Vec<ImageBlob>>, EngineError> {
        let _ = images;
        Ok(None)
    }
    /// [`Engine::image_blob`]
    async fn blob(&self, blob: &ImageBlob, part: Range<u64>) -> Result<ByteStream, EngineError> {
        let _ = part;
        Err(EngineError::Unsupported {
            message: format!("blobs are not read here: {}", blob.digest),
        })
    }
    /// [`Engine::blobs_lacking`]
    async fn lacking(&self, blobs: &[Digest]) -> Result<Vec<Digest>, EngineError> {
        Err(EngineError::Unsupported {
            message: format!("nobody says here which of {} blobs are there", blobs.len()),
        })
    }
    /// [`Engine::layers_held`]
    async fn held(&self, layers: &[Digest]) -> Result<usize, EngineError>;
    /// [`Engine::import_image`]
    async fn import(&self, archive: ByteStream) -> Result<(), EngineError>;
    /// [`Engine::tag_image`]
    async fn tag(&self, image: &Digest, tag: &str) -> Result<(), EngineError>;
    /// [`Engine::remove_image`]
    async fn remove(&self, reference: &str) -> Result<(), EngineError>;
}

/// The images of an engine.
pub struct EngineImages(pub Arc<dyn Engine>);

#[async_trait]
impl Images for EngineImages {
    async fn list(&self) -> Result<Vec<ImageSpec>, EngineError> {
        self.0.images().await
    }
    async fn find(&self, reference: &str) -> Result<Option<ImageSpec>, EngineError> {
        let found = self.0.image(reference).await?;
        Ok(found.filter(|image| !image.incomplete))
    }
    async fn config(&self, image: &Digest) -> Result<Bytes, EngineError> {
        self.0.image_config(image).await
    }
    async fn lengths(&self, image: &ImageSpec) -> Result<Vec<u64>, EngineError> {
        self.0.layer_lengths(image).await
    }
    async fn layer(&self, image: &ImageSpec, index: usize, offset: u64) -> Result<ByteStream, EngineError> {
        self.0.layer(image, index, offset).await
    }
    async fn blobs(&self, images: &[Digest]) -> Result<Option<Vec<ImageBlob>>, EngineError> {
        self.0.image_blobs(images).await
    }
    async fn blob(&self, blob: &ImageBlob, part: Range<u64>) -> Result<ByteStream, EngineError> {
        self.0.image_blob(blob, part).await
    }
    async fn lacking(&self, blobs: &[Digest]) -> Result<Vec<Digest>, EngineError> {
        self.0.blobs_lacking(blobs).await
    }
    async fn held(&self, layers: &[Digest]) -> Result<usize, EngineError> {
        self.0.layers_held(layers).await
    }
    async fn import(&self, archive: ByteStream) -> Result<(), EngineError> {
        self.0.import_image(archive).await
    }
    async fn tag(&self, image: &Digest, tag: &str) -> Result<(), EngineError> {
        self.0.tag_image(image, tag).await
    }
    async fn remove(&self, reference: &str) -> Result<(), EngineError> {
        self.0.remove_image(reference).await
    }
}
