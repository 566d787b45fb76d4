//! Images as a registry needs them: the list, the configuration, and single layers as plain tars from the engine's storage, or blobs as
//! containerd keeps them.

use std::ops::Range;

use bollard::query_parameters as query;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tranship_core::engine::ByteStream;
use tranship_core::ids::Digest;
use tranship_core::image::ImageBlob;
use tranship_core::node::ImageStore;
use tranship_core::{EngineError, ImageSpec};

use crate::containerd::{Containerd, explain};
use crate::describe;
use crate::docker::{DockerEngine, Identity};
use crate::export;
use crate::fault::Ask;
use crate::networks::PARALLEL;
use crate::store::{Store, unreadable};
use crate::tarsplit;

impl DockerEngine {
    pub(crate) async fn all_images(&self) -> Result<Vec<ImageSpec>, EngineError> {
        let ask = Ask::new("list", "images", "");
        let options = query::ListImagesOptionsBuilder::default().build();
        let list = self.told(self.docker.list_images(Some(options)).await, &ask)?;
        let found: Vec<Option<ImageSpec>> = stream::iter(list.into_iter().map(|image| image.id))
            .map(|id| async move {
                let ask = Ask::new("inspect", "image", id.as_str());
                match self.image_document(&id).await {
                    Ok(document) => describe::image(&document, &ask).map(Some),
                    // It vanished meanwhile.
                    Err(EngineError::NotFound { .. }) => Ok(None),
                    Err(other) => Err(other),
                }
            })
            .buffered(PARALLEL)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// The storage that single layers are read from.
    async fn layer_store(&self) -> Result<Store, EngineError> {
        let identity = self.identity().await?;
        if let Some(store) = self.store(&identity) {
            return Ok(store);
        }
        let message = match identity.store {
            ImageStore::Podman => "single layers are read from the storage of Docker, not of Podman".to_owned(),
            ImageStore::Containerd => {
                "plain layers are read from Docker's classic image store; this engine keeps its images with containerd"
                    .to_owned()
            }
            _ if identity.driver != "overlay2" => format!(
                "single layers are read from storage of the kind overlay2; this engine's is {:?}",
                identity.driver
            ),
            _ => format!(
                "single layers are read from the engine's storage ({}), which this user may not read",
                identity.root.display()
            ),
        };
        Err(EngineError::Unsupported { message })
    }

    pub(crate) async fn config_of(&self, image: &Digest) -> Result<Bytes, EngineError> {
        let store = self.layer_store().await?;
        let id = image.clone();
        blocking(image, move || store.config(&id)).await.map(Bytes::from)
    }

    pub(crate) async fn lengths_of(&self, image: &ImageSpec) -> Result<Vec<u64>, EngineError> {
        let store = self.layer_store().await?;
        let id = image.id.clone();
        let layers = move || {
            let layers = store.layers_of(&id, &store.config(&id)?)?;
            layers.iter().map(length).collect()
        };
        blocking(&image.id, layers).await
    }

    pub(crate) async fn layer_of(
        &self,
        image: &ImageSpec,
        index: usize,
        offset: u64,
    ) -> Result<ByteStream, EngineError> {
        let store = self.layer_store().await?;
        let id = image.id.clone();
        let find = move || {
            let mut layers = store.layers_of(&id, &store.config(&id)?)?;
            if index >= layers.len() {
                let name = format!("{index} of {id}");
                return Err(EngineError::NotFound { what: "layer", name });
            }
            let layer = layers.swap_remove(index);
            let length = length(&layer)?;
            Ok((layer, length))
        };
        let (layer, length) = blocking(&image.id, find).await?;
        Ok(export::layer_stream(layer, length, offset.min(length)))
    }

    /// What is here of images where containerd keeps them, `None` where the engine does.
    pub(crate) async fn blobs_of(&self, images: &[Digest]) -> Result<Option<Vec<ImageBlob>>, EngineError> {
        let identity = self.identity().await?;
        if identity.store != ImageStore::Containerd {
            return Ok(None);
        }
        let content = self.blob_store(&identity).await?.content();
        let ids = images.to_vec();
        let read = tokio::task::spawn_blocking(move || content.named_by(&ids)).await;
        read.map(Some)
            .map_err(|error| Ask::new("read", "engine", "").failed(error))
    }

    pub(crate) async fn blob_of(
        &self,
        blob: &ImageBlob,
        part: Range<u64>,
    ) -> Result<ByteStream, EngineError> {
        let identity = self.identity().await?;
        let containerd = self.blob_store(&identity).await?;
        let gone = || EngineError::NotFound {
            what: "blob",
            name: blob.digest.to_string(),
        };
        // Its file may be there for another namespace.
        let held = containerd.size_of(&blob.digest).await;
        let ask = Ask::new("look for a blob in", "engine", "");
        let held = held.map_err(|error| ask.uncertain(explain(error)))?;
        let expected = held.ok_or_else(gone)?;
        let (content, digest) = (containerd.content(), blob.digest.clone());
        let opened = blocking(&blob.digest, move || content.open(&digest)).await?;
        // From here on the file stays, whoever removes its name.
        let (file, size) = opened.ok_or_else(gone)?;
        if let Some(other) = [blob.size, expected].into_iter().find(|length| *length != size) {
            return Err(EngineError::Corrupt {
                what: format!("blob {}", blob.digest),
                message: format!("it has {size} bytes instead of {other}"),
            });
        }
        let part = part.start.min(size)..part.end.min(size);
        Ok(export::blob_stream(file, blob.digest.clone(), size, part))
    }

    /// Which of these containerd does not have for the engine.
    pub(crate) async fn lacking(&self, blobs: &[Digest]) -> Result<Vec<Digest>, EngineError> {
        let identity = self.identity().await?;
        let containerd = self.blob_store(&identity).await?;
        let ask = Ask::new("look for blobs in", "engine", "");
        let mut lacking = Vec::new();
        for blob in blobs {
            let held = containerd.holds(blob).await;
            if !held.map_err(|error| ask.uncertain(explain(error)))? {
                lacking.push(blob.clone());
            }
        }
        Ok(lacking)
    }

    async fn blob_store(&self, identity: &Identity) -> Result<Containerd, EngineError> {
        let found = self.containerd(identity).await;
        found.ok_or_else(|| EngineError::Unsupported {
            message: "this engine keeps its images with containerd, whose blobs this user may not read or which cannot be asked".into(),
        })
    }
}

fn length(layer: &crate::store::StoredLayer) -> Result<u64, EngineError> {
    tarsplit::length(&layer.tar_split).map_err(|error| unreadable(&layer.tar_split, &error))
}

async fn blocking<T: Send + 'static>(
    image: &Digest,
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Ask::new("read", "image", image.as_str()).failed(error)))
}
