//! What the engine holds, as manifests and blobs. Lists and lengths are remembered for a moment: a pull asks for one layer after the
//! other, and asking the engine for all its images each time would cost more than the layers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tranship_core::ids::Digest;
use tranship_core::{EngineError, ImageSpec};

use crate::document::{self, Form};
use crate::error::OciError;
use crate::port::Images;

/// How long the list of images is believed.
const FRESH: Duration = Duration::from_secs(2);

/// A manifest, ours or one that was pushed.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) bytes: Bytes,
}

/// Where a blob is in the engine.
#[derive(Debug, Clone)]
pub(crate) enum HeldBlob {
    Config(Bytes),
    Layer {
        image: ImageSpec,
        index: usize,
        length: u64,
    },
}

impl HeldBlob {
    pub(crate) fn length(&self) -> u64 {
        match self {
            Self::Config(bytes) => bytes.len() as u64,
            Self::Layer { length, .. } => *length,
        }
    }
}

/// An image's two manifests, and the lengths of its layers.
struct Written {
    oci: Document,
    docker: Document,
    lengths: Vec<u64>,
}

#[derive(Default)]
struct Known {
    list: Option<(Instant, Arc<Vec<ImageSpec>>)>,
    written: HashMap<Digest, Arc<Written>>,
}

pub(crate) struct Held {
    pub(crate) images: Arc<dyn Images>,
    known: Mutex<Known>,
}

impl Held {
    pub(crate) fn new(images: Arc<dyn Images>) -> Self {
        Self {
            images,
            known: Mutex::default(),
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was remembered may be wrong from now on.
    pub(crate) fn forget(&self) {
        self.known().list = None;
    }

    pub(crate) async fn list(&self) -> Result<Arc<Vec<ImageSpec>>, OciError> {
        let remembered = self.known().list.clone();
        if let Some((at, list)) = remembered
            && at.elapsed() < FRESH
        {
            return Ok(list);
        }
        let asked = Instant::now();
        let list = Arc::new(self.images.list().await?);
        let mut known = self.known();
        known
            .written
            .retain(|id, _| list.iter().any(|image| image.id == *id));
        known.list = Some((asked, Arc::clone(&list)));
        Ok(list)
    }

    async fn written(&self, image: &ImageSpec) -> Result<Arc<Written>, OciError> {
        if let Some(written) = self.known().written.get(&image.id) {
            return Ok(Arc::clone(written));
        }
        let config = self.images.config(&image.id).await?;
        let lengths = self.images.lengths(image).await?;
        if lengths.len() != image.layers.len() {
            return Err(EngineError::Corrupt {
                what: format!("image {}", image.id),
                message: "its storage has another number of layers".into(),
            }
            .into());
        }
        let layers: Vec<(Digest, u64)> = image
            .layers
            .iter()
            .cloned()
            .zip(lengths.iter().copied())
            .collect();
        let document = |form: Form| {
            let bytes = document::write(form, (&image.id, config.len() as u64), &layers)?;
            Ok::<_, OciError>(Document {
                media_type: form.manifest().to_owned(),
                digest: Digest::of(&bytes),
                bytes,
            })
        };
        let written = Arc::new(Written {
            oci: document(Form::Oci)?,
            docker: document(Form::Docker)?,
            lengths,
        });
        self.known()
            .written
            .insert(image.id.clone(), Arc::clone(&written));
        Ok(written)
    }

    pub(crate) async fn manifest(&self, image: &ImageSpec, form: Form) -> Result<Document, OciError> {
        let written = self.written(image).await?;
        Ok(match form {
            Form::Oci => written.oci.clone(),
            Form::Docker => written.docker.clone(),
        })
    }

    /// The manifest of this digest, with its image.
    pub(crate) async fn manifest_of(
        &self,
        digest: &Digest,
    ) -> Result<Option<(ImageSpec, Document)>, OciError> {
        for image in self.list().await?.iter() {
            let written = match self.written(image).await {
                Ok(written) => written,
                Err(OciError::Engine(error @ EngineError::Unsupported { .. })) => return Err(error.into()),
                Err(error) => {
                    tracing::debug!(image = %image.id, %error, "an image that cannot be served");
                    continue;
                }
            };
            for document in [&written.oci, &written.docker] {
                if document.digest == *digest {
                    return Ok(Some((image.clone(), document.clone())));
                }
            }
        }
        Ok(None)
    }

    /// The blob of this digest: the configuration of an image, or a plain layer.
    pub(crate) async fn blob(&self, digest: &Digest) -> Result<Option<HeldBlob>, OciError> {
        let list = self.list().await?;
        if list.iter().any(|image| image.id == *digest) {
            return match self.images.config(digest).await {
                Ok(config) => Ok(Some(HeldBlob::Config(config))),
                Err(EngineError::NotFound { .. }) => Ok(None),
                Err(other) => Err(other.into()),
            };
        }
        for image in list.iter() {
            let Some(index) = image.layers.iter().position(|layer| layer == digest) else {
                continue;
            };
            match self.written(image).await {
                Ok(written) => {
                    let length = written.lengths.get(index).copied().unwrap_or_default();
                    let image = image.clone();
                    return Ok(Some(HeldBlob::Layer { image, index, length }));
                }
                Err(OciError::Engine(error @ EngineError::Unsupported { .. })) => return Err(error.into()),
                // Another image may have it as well.
                Err(error) => tracing::debug!(image = %image.id, %error, "an image that cannot be served"),
            }
        }
        Ok(None)
    }
}
