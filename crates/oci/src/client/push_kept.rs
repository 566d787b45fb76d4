//! An image that an engine keeps as blobs, to a registry: what it lacks of them, as they are kept, and the documents that name them. By
//! their digests, so that the image has no tag there, and the same id to whoever pulls it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use http::{Method, StatusCode};
use tranship_core::ids::Digest;
use tranship_core::image::ImageBlob;
use tranship_core::{EngineError, ImageSpec};

use super::push::{Content, Pushed, push_scope};
use super::request::Ask;
use super::{Client, ClientError};
use crate::document::{self, LARGEST};
use crate::error::OciError;
use crate::held::Document;
use crate::name::Repository;
use crate::port::Images;

/// What an image consists of where it is kept.
#[derive(Default)]
struct Kept {
    /// Documents after what they name.
    documents: Vec<Document>,
    blobs: BTreeSet<Digest>,
}

impl Kept {
    /// Counts the blobs that a document names.
    fn name(&mut self, pushed: document::Pushed) {
        match pushed {
            document::Pushed::Manifest { config, layers }
            | document::Pushed::Attestation { config, layers } => {
                self.blobs.extend(layers.into_iter().map(|layer| layer.digest));
                self.blobs.insert(config.digest);
            }
            document::Pushed::Index(_) => {}
        }
    }
}

impl Client {
    /// Brings an image to a repository as the engine keeps it. What is there already, or in one of the repositories `near` of the same
    /// registry, is not sent.
    ///
    /// # Errors
    /// [`ClientError::Partial`] if the registry could not have all that the image names; any other [`ClientError`]; what the engine says.
    pub async fn push_kept(
        &self,
        repository: &Repository,
        near: &[Repository],
        images: &Arc<dyn Images>,
        image: &ImageSpec,
        sent: &Arc<AtomicU64>,
    ) -> Result<Pushed, ClientError> {
        let here = images.blobs(std::slice::from_ref(&image.id)).await;
        let here: BTreeMap<Digest, ImageBlob> = here
            .map_err(OciError::from)?
            .unwrap_or_default()
            .into_iter()
            .map(|blob| (blob.digest.clone(), blob))
            .collect();
        let kept = self.gathered(repository, &**images, image, &here).await?;
        let mut blobs = Vec::new();
        for digest in &kept.blobs {
            match here.get(digest) {
                Some(blob) => blobs.push(blob),
                // The registry would refuse the manifest after all the others were sent.
                None if self.is_there(repository, "blobs", digest).await? => {}
                None => return Err(self.partial(image, digest)),
            }
        }
        let before = sent.load(Ordering::Relaxed);
        let contents = blobs.into_iter().map(|blob| {
            let content = Content::Kept { images, blob };
            (blob.digest.clone(), content)
        });
        let count = self.put_blobs(repository, near, contents, sent).await?;
        for document in kept.documents {
            self.put_manifest(repository, document).await?;
        }
        Ok(Pushed {
            manifest: image.id.clone(),
            layers: count,
            bytes: sent.load(Ordering::Relaxed).saturating_sub(before),
        })
    }

    /// The documents of an image, and what they name. What of an index is not here has to be at the registry, which would refuse the index.
    async fn gathered(
        &self,
        repository: &Repository,
        images: &dyn Images,
        image: &ImageSpec,
        here: &BTreeMap<Digest, ImageBlob>,
    ) -> Result<Kept, ClientError> {
        let lost = || EngineError::NotFound {
            what: "image",
            name: image.id.to_string(),
        };
        let root = here.get(&image.id).ok_or_else(|| OciError::from(lost()))?;
        let (root, pushed) = read(images, root).await?;
        let mut kept = Kept::default();
        match pushed {
            document::Pushed::Index(children) => {
                let mut seen = BTreeSet::new();
                for child in children.iter().filter(|child| seen.insert(&child.digest)) {
                    let Some(blob) = here.get(&child.digest) else {
                        if self.is_there(repository, "manifests", &child.digest).await? {
                            continue;
                        }
                        return Err(self.partial(image, &child.digest));
                    };
                    let (document, pushed) = read(images, blob).await?;
                    kept.name(pushed);
                    kept.documents.push(document);
                }
            }
            other => kept.name(other),
        }
        kept.documents.push(root);
        Ok(kept)
    }

    fn partial(&self, image: &ImageSpec, lacking: &Digest) -> ClientError {
        ClientError::Partial {
            registry: self.name(),
            image: image.id.to_string(),
            lacking: lacking.to_string(),
        }
    }

    async fn is_there(
        &self,
        repository: &Repository,
        kind: &str,
        digest: &Digest,
    ) -> Result<bool, ClientError> {
        let path = format!("/v2/{}/{kind}/{digest}", repository.as_str());
        let what = format!("{} {digest}", kind.trim_end_matches('s'));
        let mut ask = Ask::new(Method::HEAD, path, &what, &push_scope(repository, &[]));
        ask.accept_documents();
        let head = self.ask(&ask).await?;
        match head.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refusal(head, &what).await),
        }
    }
}

/// A document as the engine keeps it, compared with its digest.
async fn read(images: &dyn Images, blob: &ImageBlob) -> Result<(Document, document::Pushed), OciError> {
    if blob.size > LARGEST as u64 {
        return Err(OciError::TooLarge {
            what: "the manifest",
            limit: LARGEST as u64,
        });
    }
    let gather = |mut all: BytesMut, piece: Bytes| async move {
        all.extend_from_slice(&piece);
        Ok(all)
    };
    let stream = images.blob(blob, 0..blob.size).await?;
    let bytes = stream.try_fold(BytesMut::new(), gather).await?.freeze();
    let (media_type, pushed) = document::read(blob.document.as_deref(), &bytes)?;
    let document = Document {
        media_type,
        digest: blob.digest.clone(),
        bytes,
    };
    Ok((document, pushed))
}
