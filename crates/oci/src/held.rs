//! What the engine holds, as manifests and blobs: of plain layers, manifests of our own making; where it keeps blobs, those. Lists and lengths are remembered for a moment: a pull asks for one layer after the
//! other, and asking the engine for all its images each time would cost more than the layers.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use tokio::time::Instant;
use tranship_core::engine::ByteStream;
use tranship_core::ids::Digest;
use tranship_core::image::ImageBlob;
use tranship_core::{EngineError, ImageSpec};

use crate::document::{self, Form};
use crate::error::OciError;
use crate::port::Images;

/// How long the list of images is believed.
const FRESH: Duration = Duration::from_secs(2);

/// Largest manifest or index that is given out as it is kept, in bytes: what containerd itself takes for one.
const LARGEST_KEPT: u64 = 8 << 20;

/// A manifest, ours, one that was pushed or one that is kept.
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
    /// As the engine keeps it.
    Kept(ImageBlob),
}

impl HeldBlob {
    pub(crate) fn length(&self) -> u64 {
        match self {
            Self::Config(bytes) => bytes.len() as u64,
            Self::Layer { length, .. } => *length,
            Self::Kept(blob) => blob.size,
        }
    }
}

/// An image's two manifests, and the lengths of its layers.
struct Written {
    oci: Document,
    docker: Document,
    lengths: Vec<u64>,
}

/// What the engine lists.
pub(crate) struct Listed {
    pub(crate) images: Vec<ImageSpec>,
    /// What it keeps of them as blobs, if it does; names are told without.
    blobs: Result<Option<HashMap<Digest, ImageBlob>>, EngineError>,
}

#[derive(Default)]
struct Known {
    list: Option<(Instant, Arc<Listed>)>,
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

    /// An image that came since the list was made: its blobs are asked for next.
    fn expect(&self, image: &Digest) {
        let lacks = |list: &Listed| list.images.iter().all(|other| other.id != *image);
        self.known().list.take_if(|(_, list)| lacks(list));
    }

    pub(crate) async fn list(&self) -> Result<Arc<Listed>, OciError> {
        let remembered = self.known().list.clone();
        if let Some((at, list)) = remembered
            && at.elapsed() < FRESH
        {
            return Ok(list);
        }
        let asked = Instant::now();
        let images = self.images.list().await?;
        let ids: Vec<Digest> = images.iter().map(|image| image.id.clone()).collect();
        let blobs = self.images.blobs(&ids).await.map(|blobs| {
            let blobs = blobs?.into_iter().map(|blob| (blob.digest.clone(), blob));
            Some(blobs.collect())
        });
        let list = Arc::new(Listed { images, blobs });
        let mut known = self.known();
        known.written.retain(|id, _| ids.contains(id));
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

    /// Whether the engine keeps blobs, and not plain layers.
    pub(crate) async fn keeps_blobs(&self) -> Result<bool, OciError> {
        Ok(self.images.blobs(&[]).await?.is_some())
    }

    /// The manifest of an image, or its index: as it is kept, or ours in this form.
    pub(crate) async fn manifest(&self, image: &ImageSpec, form: Form) -> Result<Document, OciError> {
        if let Some(blobs) = self.images.blobs(std::slice::from_ref(&image.id)).await? {
            self.expect(&image.id);
            let found = blobs.iter().find(|blob| blob.digest == image.id);
            let document = match found {
                Some(blob) => self.kept_document(blob).await?,
                None => None,
            };
            return document.ok_or_else(|| OciError::NoManifest {
                what: image.id.to_string(),
            });
        }
        let written = self.written(image).await?;
        Ok(match form {
            Form::Oci => written.oci.clone(),
            Form::Docker => written.docker.clone(),
        })
    }

    /// A blob of the engine's that is a manifest or an index; `None` if it is none, or is gone.
    async fn kept_document(&self, blob: &ImageBlob) -> Result<Option<Document>, OciError> {
        let Some(media_type) = blob.document.clone() else {
            return Ok(None);
        };
        let bytes = self.kept(blob, LARGEST_KEPT).await?;
        Ok(bytes.map(|bytes| Document {
            media_type,
            digest: blob.digest.clone(),
            bytes,
        }))
    }

    /// A blob of the engine's, compared with its digest; `None` if it is gone.
    pub(crate) async fn kept(&self, blob: &ImageBlob, limit: u64) -> Result<Option<Bytes>, OciError> {
        if blob.size > limit {
            return Err(OciError::TooLarge {
                what: "the document",
                limit,
            });
        }
        let Some(stream) = self.kept_part(blob, 0..blob.size).await? else {
            return Ok(None);
        };
        let gather = |mut all: BytesMut, piece: Bytes| async move {
            all.extend_from_slice(&piece);
            Ok(all)
        };
        Ok(Some(stream.try_fold(BytesMut::new(), gather).await?.freeze()))
    }

    /// A part of a blob of the engine's; `None` if it is gone.
    pub(crate) async fn kept_part(
        &self,
        blob: &ImageBlob,
        part: Range<u64>,
    ) -> Result<Option<ByteStream>, OciError> {
        match self.images.blob(blob, part).await {
            Ok(stream) => Ok(Some(stream)),
            Err(EngineError::NotFound { .. }) => Ok(None),
            Err(other) => Err(other.into()),
        }
    }

    /// The blob of this digest, if it can be had now: a file may be there for somebody else than the engine, or be gone since the list
    /// was made.
    pub(crate) async fn present(&self, digest: &Digest) -> Result<Option<HeldBlob>, OciError> {
        let found = self.blob(digest).await?;
        if let Some(HeldBlob::Kept(blob)) = &found
            && self.kept_part(blob, 0..0).await?.is_none()
        {
            return Ok(None);
        }
        Ok(found)
    }

    /// The manifest of this digest, with its image; without one where it is only part of an index.
    pub(crate) async fn manifest_of(
        &self,
        digest: &Digest,
    ) -> Result<Option<(Option<ImageSpec>, Document)>, OciError> {
        let list = self.list().await?;
        if let Some(blobs) = list.blobs.as_ref().map_err(Clone::clone)? {
            let Some(blob) = blobs.get(digest) else {
                return Ok(None);
            };
            let image = list.images.iter().find(|image| image.id == *digest);
            let document = self.kept_document(blob).await?;
            return Ok(document.map(|document| (image.cloned(), document)));
        }
        for image in &list.images {
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
                    return Ok(Some((Some(image.clone()), document.clone())));
                }
            }
        }
        Ok(None)
    }

    /// The blob of this digest: the configuration of an image, or a plain layer; or whatever is kept of an image.
    pub(crate) async fn blob(&self, digest: &Digest) -> Result<Option<HeldBlob>, OciError> {
        let list = self.list().await?;
        if let Some(blobs) = list.blobs.as_ref().map_err(Clone::clone)? {
            return Ok(blobs.get(digest).cloned().map(HeldBlob::Kept));
        }
        let list = &list.images;
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
