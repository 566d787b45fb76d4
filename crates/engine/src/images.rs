//! Images: which layers are held, archives out and in.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bollard::body_try_stream;
use bollard::query_parameters as query;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::Value;
use tranship_core::engine::{ByteStream, ImageArchive};
use tranship_core::ids::Digest;
use tranship_core::image::common_layers;
use tranship_core::node::ImageStore;
use tranship_core::{EngineError, ImageSpec};

use crate::containerd::{Containerd, Kept, OciArchive, SNAPSHOTTER, explain, storage_of};
use crate::describe;
use crate::docker::{DockerEngine, Identity, UNLIMITED};
use crate::export::Archive;
use crate::fault::Ask;
use crate::filter::TarFilter;
use crate::networks::PARALLEL;
use crate::raw::escape;

impl DockerEngine {
    pub(crate) async fn image_document(&self, reference: &str) -> Result<Value, EngineError> {
        let ask = Ask::new("inspect", "image", reference);
        let path = format!("/images/{}/json", escape(reference));
        self.raw.get(&path, &ask).await
    }

    pub(crate) async fn held(&self, layers: &[Digest]) -> Result<usize, EngineError> {
        let identity = self.identity().await?;
        if layers.is_empty() {
            return Ok(0);
        }
        if let Some(containerd) = self.containerd(&identity).await {
            let ask = Ask::new("look for layers in", "engine", "");
            let held = containerd.first_held(layers).await;
            return held.map_err(|error| ask.uncertain(explain(error)));
        }
        if identity.store != ImageStore::Classic {
            // What others hold cannot be told.
            return Ok(0);
        }
        if let Some(held) = self.store(&identity).and_then(|store| store.layers_held(layers)) {
            return Ok(held);
        }
        let ask = Ask::new("list", "images", "");
        let options = query::ListImagesOptionsBuilder::default().all(true).build();
        let images = self.told(self.docker.list_images(Some(options)).await, &ask)?;
        let stacks: Vec<Vec<Digest>> = stream::iter(images.into_iter().map(|image| image.id))
            .map(|id| async move { self.stack_of(&id).await })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        Ok(common_layers(layers, stacks.iter().map(Vec::as_slice)))
    }

    /// The layers of an image, none if it vanished meanwhile.
    async fn stack_of(&self, id: &str) -> Result<Vec<Digest>, EngineError> {
        let ask = Ask::new("inspect", "image", id);
        match self.image_document(id).await {
            Ok(document) => Ok(describe::image(&document, &ask)?.layers),
            Err(EngineError::NotFound { .. }) => Ok(Vec::new()),
            Err(other) => Err(other),
        }
    }

    /// The image with the digests of its layers as they are kept. After a load that failed, containerd has the documents of an image
    /// without its layers: it is incomplete. What cannot be read says nothing of it.
    pub(crate) async fn as_kept(
        &self,
        mut image: ImageSpec,
        document: &Value,
    ) -> Result<ImageSpec, EngineError> {
        if !may_be_containerd(document) {
            return Ok(image);
        }
        let identity = self.identity().await?;
        if identity.driver != SNAPSHOTTER {
            return Ok(image);
        }
        let Some(containerd) = self.containerd(&identity).await else {
            return Ok(image);
        };
        let kept = match self.kept(&containerd, &image).await {
            Ok(kept) => kept,
            Err(EngineError::NotFound { what, name }) => {
                tracing::debug!(image = %image.id, what, name, "containerd does not have all of an image");
                // Where its documents are not found, nothing is known of it but what the engine says.
                image.incomplete = what == "layer";
                return Ok(image);
            }
            Err(error) => {
                tracing::warn!(image = %image.id, %error, "what containerd keeps of an image cannot be read");
                return Ok(image);
            }
        };
        // The files of a blob may be there for another namespace.
        for blobs in [&kept.layers[..], std::slice::from_ref(&kept.config)] {
            match containerd.first_held(blobs).await {
                Ok(held) if held == blobs.len() => {}
                Ok(_) => {
                    image.incomplete = true;
                    return Ok(image);
                }
                Err(error) => {
                    let why = explain(error);
                    tracing::warn!(image = %image.id, why, "containerd does not say what it has of an image");
                    return Ok(image);
                }
            }
        }
        image.kept_layers = kept.layers;
        Ok(image)
    }

    /// How many images for a platform an id stands for here; `None` where this cannot be known.
    pub(crate) async fn platforms_of(&self, identity: &Identity, image: &Digest) -> Option<usize> {
        let content = self.containerd(identity).await?.content();
        let id = image.clone();
        let read = tokio::task::spawn_blocking(move || content.platforms(&id)).await;
        read.ok()?
            .inspect_err(|error| tracing::debug!(%image, %error, "the platforms of an image are not known"))
            .ok()
    }

    async fn kept(&self, containerd: &Containerd, image: &ImageSpec) -> Result<Kept, EngineError> {
        let (content, wanted) = (containerd.content(), image.clone());
        let read = tokio::task::spawn_blocking(move || content.of(&wanted)).await;
        read.unwrap_or_else(|error| Err(Ask::new("read", "image", image.id.as_str()).failed(error)))
    }

    pub(crate) async fn sizes(&self, image: &ImageSpec, tag: Option<&str>) -> Result<Vec<u64>, EngineError> {
        Ok(self
            .direct_archive(image, tag)
            .await?
            .map(|archive| archive.lengths())
            .unwrap_or_default())
    }

    pub(crate) async fn export(
        &self,
        image: &ImageSpec,
        tag: Option<&str>,
        skip: usize,
    ) -> Result<ImageArchive, EngineError> {
        if let Some(archive) = self.direct_archive(image, tag).await? {
            let (length, stream) = archive.stream(skip);
            return Ok(ImageArchive {
                length: Some(length),
                stream,
            });
        }
        Ok(ImageArchive {
            length: None,
            stream: self.save(image, tag, skip).await?,
        })
    }

    /// The archive from the engine's storage, `None` where the engine has to make it.
    async fn direct_archive(
        &self,
        image: &ImageSpec,
        tag: Option<&str>,
    ) -> Result<Option<Direct>, EngineError> {
        let identity = self.identity().await?;
        if let Some(containerd) = self.containerd(&identity).await {
            return match self.kept(&containerd, image).await {
                Ok(kept) => {
                    let archive = OciArchive::of(containerd.content(), &image.id, kept);
                    Ok(Some(Direct::Containerd(archive)))
                }
                Err(error @ EngineError::Corrupt { .. }) => Err(error),
                Err(error) => {
                    tracing::warn!(image = %image.id, %error, "containerd's files cannot be read directly; `save` is used");
                    Ok(None)
                }
            };
        }
        let Some(store) = self.store(&identity) else {
            return Ok(None);
        };
        let (id, tag) = (image.clone(), tag.map(str::to_owned));
        let read = tokio::task::spawn_blocking(move || Archive::of(&store, &id, tag.as_deref())).await;
        match read {
            Ok(Ok(archive)) => Ok(Some(Direct::Classic(archive))),
            // Storage that is not as expected: a newer engine's, or another engine's. The engine itself will know.
            Ok(Err(error)) => {
                tracing::warn!(image = %image.id, %error, "the engine's storage cannot be read directly; `save` is used");
                Ok(None)
            }
            Err(error) => Err(Ask::new("export", "image", image.id.as_str()).failed(error)),
        }
    }

    /// The archive as the engine makes it. Asked for by tag, it names the tag; by id, none.
    async fn save(
        &self,
        image: &ImageSpec,
        tag: Option<&str>,
        skip: usize,
    ) -> Result<ByteStream, EngineError> {
        if self.podman {
            return self.podman_save(image).await;
        }
        let reference = match tag {
            // The tag may mean another image by now; then it is not this one's to give.
            Some(tag) if self.stands_for(tag, image).await? => tag,
            _ => image.id.as_str(),
        };
        let ask = Ask::new("export", "image", reference);
        let endpoint = self.raw.endpoint().to_owned();
        let docker = self.patient(UNLIMITED);
        let archive = docker.export_image(&escape(reference));
        let errors = ask.clone();
        let archive = archive.map_err(move |error| errors.bollard(error, &endpoint));
        let layers = image.known_layers();
        let skipped: BTreeSet<String> = layers
            .iter()
            .take(skip)
            .map(|layer| format!("blobs/sha256/{}", layer.hex()))
            .collect();
        let kept: BTreeSet<String> = layers
            .iter()
            .skip(skip)
            .map(|layer| format!("blobs/sha256/{}", layer.hex()))
            .collect();
        let filter = TarFilter::new(move |name: &[u8]| {
            std::str::from_utf8(name).is_ok_and(|name| skipped.contains(name) && !kept.contains(name))
        });
        Ok(filtered(Box::pin(archive), filter, ask))
    }

    async fn stands_for(&self, tag: &str, image: &ImageSpec) -> Result<bool, EngineError> {
        let ask = Ask::new("inspect", "image", tag);
        match self.image_document(tag).await {
            Ok(document) => Ok(describe::image(&document, &ask)?.id == image.id),
            Err(EngineError::NotFound { .. }) => Ok(false),
            Err(other) => Err(other),
        }
    }

    pub(crate) async fn load(&self, archive: ByteStream) -> Result<(), EngineError> {
        let ask = Ask::new("load", "image", "");
        // What broke the stream says more than the engine's words about an unexpected end.
        let broken: Arc<Mutex<Option<EngineError>>> = Arc::default();
        let reason = Arc::clone(&broken);
        let body = archive.map_err(move |error| {
            let message = error.to_string();
            *reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            // hyper ends the connection without the last chunk: the engine sees that the archive is not whole.
            io::Error::other(message)
        });
        let docker = self.patient(UNLIMITED);
        let options = query::ImportImageOptionsBuilder::default().quiet(true).build();
        let mut answers = Box::pin(docker.import_image(options, body_try_stream(body), None));
        let mut result = Ok(());
        while let Some(answer) = answers.next().await {
            result = self.told(answer, &ask).map(|_| ());
            if result.is_err() {
                break;
            }
        }
        let broken = broken.lock().unwrap_or_else(PoisonError::into_inner).take();
        match broken {
            Some(error) => Err(error),
            None => result,
        }
    }
}

/// Whether containerd may keep what this document of an image describes. The engine's own drivers are told apart at once, without
/// asking it for what it is.
pub(crate) fn may_be_containerd(document: &Value) -> bool {
    !["overlay2", "overlay", "fuse-overlayfs", "btrfs", "zfs", "vfs"].contains(&storage_of(document).as_str())
}

/// An archive that is made without the engine.
enum Direct {
    Classic(Archive),
    Containerd(OciArchive),
}

impl Direct {
    fn lengths(&self) -> Vec<u64> {
        match self {
            Self::Classic(archive) => archive.lengths(),
            Self::Containerd(archive) => archive.lengths(),
        }
    }

    /// The archive's length in bytes, and its bytes.
    fn stream(self, skip: usize) -> (u64, ByteStream) {
        match self {
            Self::Classic(archive) => (archive.length(skip), archive.stream(skip)),
            Self::Containerd(archive) => archive.stream(skip),
        }
    }
}

/// The archive without what the filter leaves out, and an error if it is not a whole tar.
pub(crate) fn filtered<F>(archive: ByteStream, filter: TarFilter<F>, ask: Ask) -> ByteStream
where
    F: FnMut(&[u8]) -> bool + Send + 'static,
{
    let state = Some((archive, filter, Vec::<Bytes>::new()));
    let pieces = stream::try_unfold(state, move |state| {
        let ask = ask.clone();
        async move {
            let Some((mut archive, mut filter, mut out)) = state else {
                return Ok(None);
            };
            loop {
                match archive.next().await {
                    Some(Ok(piece)) => filter
                        .push(piece, &mut out)
                        .map_err(|error| ask.uncertain(format!("not a tar archive: {}", error.0)))?,
                    Some(Err(error)) => return Err(error),
                    None if filter.is_complete() => return Ok(None),
                    None => return Err(ask.uncertain("the archive ends in the middle")),
                }
                if !out.is_empty() {
                    let ready = std::mem::take(&mut out);
                    return Ok(Some((ready, Some((archive, filter, out)))));
                }
            }
        }
    });
    Box::pin(
        pieces
            .map_ok(|ready| stream::iter(ready.into_iter().map(Ok)))
            .try_flatten(),
    )
}
