//! An image to a registry: the layers that it lacks as plain tars, the configuration, and a manifest without a tag.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use tranship_core::ids::Digest;
use tranship_core::image::ImageBlob;
use tranship_core::{EngineError, ImageSpec};

use super::request::Ask;
use super::{Client, ClientError, Payload};
use crate::document::{self, Form, media};
use crate::error::OciError;
use crate::held::Document;
use crate::name::{Reference, Repository};
use crate::port::Images;

/// How many layers are sent at once.
const PARALLEL: usize = 3;

/// An image that a registry has now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Digest of its manifest, by which it is pulled. It has no tag there.
    pub manifest: Digest,
    /// How many layers were sent.
    pub layers: usize,
    /// Bytes that were sent.
    pub bytes: u64,
}

/// What is sent.
pub(super) enum Content<'a> {
    Full(Bytes),
    Layer {
        images: &'a Arc<dyn Images>,
        image: &'a ImageSpec,
        index: usize,
        length: u64,
    },
    /// A blob as the engine keeps it.
    Kept {
        images: &'a Arc<dyn Images>,
        blob: &'a ImageBlob,
    },
}

impl Content<'_> {
    fn length(&self) -> u64 {
        match self {
            Self::Full(bytes) => bytes.len() as u64,
            Self::Layer { length, .. } => *length,
            Self::Kept { blob, .. } => blob.size,
        }
    }
}

impl Client {
    /// Brings an image to a repository. What is there already, or in one of the repositories `near` of the same registry, is not sent.
    ///
    /// # Errors
    /// Any [`ClientError`]; what the engine says.
    pub async fn push(
        &self,
        repository: &Repository,
        near: &[Repository],
        images: &Arc<dyn Images>,
        image: &ImageSpec,
        sent: &Arc<AtomicU64>,
    ) -> Result<Pushed, ClientError> {
        let config = images.config(&image.id).await.map_err(OciError::from)?;
        let lengths = images.lengths(image).await.map_err(OciError::from)?;
        if lengths.len() != image.layers.len() {
            let error = EngineError::Corrupt {
                what: format!("image {}", image.id),
                message: "its storage has another number of layers".into(),
            };
            return Err(OciError::from(error).into());
        }
        let layers: Vec<(Digest, u64)> = image.layers.iter().cloned().zip(lengths).collect();
        let manifest = document::write(Form::Oci, (&image.id, config.len() as u64), &layers)?;
        let digest = Digest::of(&manifest);
        let before = sent.load(Ordering::Relaxed);
        let mut seen = BTreeSet::new();
        let contents = layers
            .into_iter()
            .enumerate()
            .filter(|(_, (digest, _))| seen.insert(digest.clone()))
            .map(|(index, (digest, length))| {
                let content = Content::Layer {
                    images,
                    image,
                    index,
                    length,
                };
                (digest, content)
            });
        let count = self.put_blobs(repository, near, contents, sent).await?;
        let content = Content::Full(config);
        self.put_blob(repository, near, &image.id, &content, sent).await?;
        let document = Document {
            media_type: media::MANIFEST.to_owned(),
            digest: digest.clone(),
            bytes: manifest,
        };
        self.put_manifest(repository, document).await?;
        Ok(Pushed {
            manifest: digest,
            layers: count,
            bytes: sent.load(Ordering::Relaxed).saturating_sub(before),
        })
    }

    /// Whether a registry has this very image by a digest: the engine may have it from there.
    ///
    /// # Errors
    /// Any [`ClientError`] but that it is not there, or another image.
    pub async fn has(
        &self,
        repository: &Repository,
        manifest: &Digest,
        image: &ImageSpec,
    ) -> Result<bool, ClientError> {
        let reference = Reference::Digest(manifest.clone());
        match self.manifest(repository, &reference, image).await {
            Ok((config, _)) => Ok(config.digest == image.id),
            Err(ClientError::NotFound { .. } | ClientError::OtherImage { .. }) => Ok(false),
            Err(other) => Err(other),
        }
    }

    /// Sends blobs, several at once, but for those that are there. How many were sent.
    pub(super) async fn put_blobs(
        &self,
        repository: &Repository,
        near: &[Repository],
        blobs: impl Iterator<Item = (Digest, Content<'_>)>,
        sent: &Arc<AtomicU64>,
    ) -> Result<usize, ClientError> {
        let sending: Vec<_> = blobs
            .map(|(digest, content)| async move {
                let went = self.put_blob(repository, near, &digest, &content, sent).await?;
                Ok(usize::from(went))
            })
            .collect();
        stream::iter(sending)
            .buffer_unordered(PARALLEL)
            .try_fold(0, |sum, went| std::future::ready(Ok(sum + went)))
            .await
    }

    /// Sends a blob, unless it is there. Whether it was sent. An upload that does not come to its end is cancelled.
    pub(super) async fn put_blob(
        &self,
        repository: &Repository,
        near: &[Repository],
        digest: &Digest,
        content: &Content<'_>,
        sent: &Arc<AtomicU64>,
    ) -> Result<bool, ClientError> {
        let mut tries = 1;
        loop {
            match self.put_blob_once(repository, near, digest, content, sent).await {
                Err(error) if error.passes() && tries < self.patience.tries => {
                    tries += 1;
                    tokio::time::sleep(self.patience.breath).await;
                }
                done => return done,
            }
        }
    }

    async fn put_blob_once(
        &self,
        repository: &Repository,
        near: &[Repository],
        digest: &Digest,
        content: &Content<'_>,
        sent: &Arc<AtomicU64>,
    ) -> Result<bool, ClientError> {
        let scope = push_scope(repository, near);
        let name = repository.as_str();
        let what = format!("blob {digest}");
        let path = format!("/v2/{name}/blobs/{digest}");
        let head = self.ask(&Ask::new(Method::HEAD, path, &what, &scope)).await?;
        match head.status() {
            StatusCode::OK => return Ok(false),
            StatusCode::NOT_FOUND => {}
            _ => return Err(self.refusal(head, &what).await),
        }
        let mut opened = None;
        for from in near.iter().filter(|from| *from != repository) {
            let path = format!("/v2/{name}/blobs/uploads/?mount={digest}&from={}", from.as_str());
            let answer = match self.ask(&Ask::new(Method::POST, path, &what, &scope)).await {
                // Whoever may not read there may still write here.
                Err(ClientError::Denied { .. }) => continue,
                other => other?,
            };
            match answer.status() {
                StatusCode::CREATED => return Ok(false),
                // Begun in place of a mount. One that was begun so before is dropped, and with that cancelled.
                StatusCode::ACCEPTED => opened = self.opened(&answer, repository, &scope).or(opened),
                _ => {}
            }
        }
        let opened = match opened {
            Some(opened) => opened,
            None => {
                let path = format!("/v2/{name}/blobs/uploads/");
                let answer = self.ask(&Ask::new(Method::POST, path, &what, &scope)).await?;
                if answer.status() != StatusCode::ACCEPTED {
                    return Err(self.refusal(answer, &what).await);
                }
                self.opened(&answer, repository, &scope)
                    .ok_or_else(|| self.nonsense(&what, "it does not say where to"))?
            }
        };
        let location = opened.location();
        let joint = if location.contains('?') { '&' } else { '?' };
        let path = format!("{location}{joint}digest={digest}");
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media::BYTES));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(content.length()));
        let taken = Arc::default();
        let (body, failed) = self.payload(content, sent, &taken).await?;
        let answer = self.send(Method::PUT, &path, headers, &scope, &what, (body, &taken));
        let answer = answer.await;
        // What the engine says of its own layer says more than the broken connection that comes of it.
        if let Some(error) = failed.lock().ok().and_then(|mut failed| failed.take()) {
            return Err(OciError::from(error).into());
        }
        let answer = answer?;
        match answer.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT => {
                opened.done();
                Ok(true)
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(ClientError::Denied {
                registry: self.name(),
                what,
            }),
            _ => Err(self.refusal(answer, &what).await),
        }
    }

    async fn payload(
        &self,
        content: &Content<'_>,
        sent: &Arc<AtomicU64>,
        taken: &Arc<AtomicU64>,
    ) -> Result<(Payload, Failure), ClientError> {
        let failure = Failure::default();
        let (sent, taken) = (Arc::clone(sent), Arc::clone(taken));
        let opened = match content {
            Content::Full(bytes) => {
                sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                taken.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                return Ok((Payload::Full(bytes.clone()), failure));
            }
            Content::Layer {
                images, image, index, ..
            } => images.layer(image, *index, 0).await,
            Content::Kept { images, blob } => images.blob(blob, 0..blob.size).await,
        };
        let failed = Arc::clone(&failure);
        let stream = opened.map_err(OciError::from)?.map(move |piece| match piece {
            Ok(piece) => {
                sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
                taken.fetch_add(piece.len() as u64, Ordering::Relaxed);
                Ok(piece)
            }
            Err(error) => {
                let message = error.to_string();
                if let Ok(mut failed) = failed.lock() {
                    *failed = Some(error);
                }
                Err(std::io::Error::other(message))
            }
        });
        let payload = Payload::Stream {
            length: content.length(),
            stream: Box::pin(stream),
        };
        Ok((payload, failure))
    }

    /// Puts a manifest by its digest, so that it has no tag that would have to be taken away again.
    pub(super) async fn put_manifest(
        &self,
        repository: &Repository,
        document: Document,
    ) -> Result<(), ClientError> {
        let digest = &document.digest;
        let what = format!("manifest {digest}");
        let path = format!("/v2/{}/manifests/{digest}", repository.as_str());
        let mut ask = Ask::new(Method::PUT, path, &what, &push_scope(repository, &[]));
        let kind = HeaderValue::from_str(&document.media_type);
        let kind = kind.map_err(|_| self.nonsense(&what, "no media type"))?;
        ask.headers.insert(header::CONTENT_TYPE, kind);
        ask.body = document.bytes;
        // Some unpack all the layers before they answer.
        ask.pause = Some(self.patience.document);
        let mut tries = 1;
        loop {
            let error = match self.ask(&ask).await {
                Ok(answer) if matches!(answer.status(), StatusCode::CREATED | StatusCode::OK) => {
                    return Ok(());
                }
                Ok(answer) => self.refusal(answer, &what).await,
                Err(error) => error,
            };
            if !error.passes() || tries >= self.patience.tries {
                return Err(error);
            }
            // By its digest, the same again is no other one.
            tries += 1;
            tokio::time::sleep(self.patience.breath).await;
        }
    }
}

/// What failed while a body was made.
type Failure = Arc<std::sync::Mutex<Option<EngineError>>>;

pub(super) fn push_scope(repository: &Repository, near: &[Repository]) -> String {
    let mut scope = format!("repository:{}:pull,push", repository.as_str());
    for near in near.iter().filter(|near| *near != repository) {
        scope.push_str(&format!(" repository:{}:pull", near.as_str()));
    }
    scope
}
