//! Manifests that come in: everything is compared before the engine hears of the image, and looked at afterwards.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use tokio::time::timeout;
use tranship_core::EngineError;
use tranship_core::engine::ByteStream;
use tranship_core::ids::Digest;

use crate::archive;
use crate::document::{self, Descriptor, ImageConfig, LARGEST, Pushed};
use crate::error::OciError;
use crate::held::{Document, HeldBlob};
use crate::layer;
use crate::name::{Reference, Repository};
use crate::port::Images;
use crate::registry::{Answer, CONTENT_DIGEST, Registry, bare, text, value};
use crate::spool::{BlobFile, Spool};

/// Where a layer of a pushed image is.
pub(crate) enum Source {
    Spooled(Arc<BlobFile>),
    Held(Box<HeldBlob>),
}

/// A layer that was compared.
pub(crate) struct Layer {
    diff_id: Digest,
    length: u64,
    /// Whether it came packed.
    pub(crate) packed: bool,
    pub(crate) source: Source,
}

pub(crate) fn missing(what: &str, digest: &Digest) -> OciError {
    OciError::Missing {
        message: format!("{what} {digest} was not pushed"),
    }
}

pub(crate) fn refused(message: impl Into<String>) -> OciError {
    OciError::Manifest {
        message: message.into(),
    }
}

impl Registry {
    pub(crate) async fn put_manifest<S, E>(
        &self,
        name: &Repository,
        reference: &Reference,
        headers: &HeaderMap,
        body: S,
    ) -> Result<Response<Answer>, OciError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let spool = self.writable()?;
        // A name that cannot be given is said before the work.
        let local = match reference {
            Reference::Tag(tag) => Some(name.given(tag)?),
            Reference::Digest(_) => None,
        };
        let bytes = gather(spool, body).await?;
        let digest = Digest::of(&bytes);
        if let Reference::Digest(wanted) = reference
            && *wanted != digest
        {
            return Err(OciError::Digest {
                message: format!("the manifest has the digest {digest}, not {wanted}"),
            });
        }
        let (media_type, pushed) = document::read(text(headers, &header::CONTENT_TYPE), &bytes)?;
        let document = Document {
            media_type,
            digest: digest.clone(),
            bytes,
        };
        let keeps_blobs = self.held.keeps_blobs().await?;
        let image = match &pushed {
            _ if keeps_blobs => self.take_in_blobs(spool, &document, &pushed).await?,
            Pushed::Manifest { config, layers } => Some(self.take_in(spool, config, layers).await?),
            Pushed::Attestation { .. } => {
                return Err(refused(
                    "an engine that keeps plain layers has no place for attestations",
                ));
            }
            Pushed::Index(manifests) => self.look_through(manifests).await?,
        };
        // Docker gives the tag to everything that an index names before it gives it to the index. An attestation gets none.
        let local = local.filter(|_| !matches!(pushed, Pushed::Attestation { .. }));
        if let Some(local) = local {
            let image = image.ok_or_else(|| {
                refused("nothing of it is an image for this machine, so that none gets the tag")
            })?;
            let mut given = self.give(&image, &local).await;
            if let (true, Err(EngineError::NotFound { .. })) = (keeps_blobs, &given) {
                // Without a tag it looked like a part of another push's index, and made way with those.
                self.held.forget();
                self.take_in_blobs(spool, &document, &pushed).await?;
                given = self.give(&image, &local).await;
            }
            given?;
        }
        if let (true, Pushed::Index(manifests)) = (keeps_blobs, &pushed) {
            self.tidy(spool, manifests).await;
        }
        self.held.forget();
        spool.keep(document);
        let mut response = bare(StatusCode::CREATED);
        let headers = response.headers_mut();
        let location = format!("/v2/{}/manifests/{digest}", name.as_str());
        headers.insert(header::LOCATION, value(&location));
        headers.insert(CONTENT_DIGEST, value(digest.as_str()));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        Ok(response)
    }

    async fn give(&self, image: &Digest, local: &str) -> Result<(), EngineError> {
        let _naming = self.naming.lock().await;
        self.held.images.tag(image, local).await
    }

    /// Brings the image of a manifest into the engine, and returns its id.
    async fn take_in(
        &self,
        spool: &Spool,
        config: &Descriptor,
        layers: &[Descriptor],
    ) -> Result<Digest, OciError> {
        let id = config.digest.clone();
        let images = &self.held.images;
        // An engine whose images cannot be read one layer at a time knows images by other ids, or takes archives in other ways.
        if let Err(error @ EngineError::Unsupported { .. }) = images.config(&id).await {
            return Err(error.into());
        }
        let document = self.configuration(spool, config).await?;
        let ImageConfig { diff_ids, .. } = document::read_config(&document)?;
        if diff_ids.len() != layers.len() {
            return Err(refused(format!(
                "the configuration has {} layers and the manifest {}",
                diff_ids.len(),
                layers.len()
            )));
        }
        let Ok(_place) = self.imports.acquire().await else {
            return Err(OciError::TooMany { what: "pushes" });
        };
        let layers = self.compared(spool, layers, &diff_ids).await?;
        if self.stands(&id, &diff_ids).await? {
            return Ok(id);
        }
        let skip = images.held(&diff_ids).await?.min(layers.len());
        let archive = plain_archive(images, &id, document, layers, skip)?;
        images.import(archive).await?;
        if !self.stands(&id, &diff_ids).await? {
            return Err(EngineError::Corrupt {
                what: format!("the image {id}"),
                message: "the engine took the archive but does not hold this image".into(),
            }
            .into());
        }
        Ok(id)
    }

    pub(crate) async fn configuration(&self, spool: &Spool, config: &Descriptor) -> Result<Bytes, OciError> {
        let bytes = match spool.blob(&config.digest) {
            Some(blob) if blob.length > document::LARGEST_CONFIG => {
                return Err(OciError::TooLarge {
                    what: "the configuration",
                    limit: document::LARGEST_CONFIG,
                });
            }
            Some(blob) => layer::whole(&blob)?,
            None => match self.held.blob(&config.digest).await? {
                Some(HeldBlob::Config(bytes)) => bytes,
                Some(HeldBlob::Kept(blob)) => self
                    .held
                    .kept(&blob, document::LARGEST_CONFIG)
                    .await?
                    .ok_or_else(|| missing("the configuration", &config.digest))?,
                _ => return Err(missing("the configuration", &config.digest)),
            },
        };
        if bytes.len() as u64 != config.size || Digest::of(&bytes) != config.digest {
            return Err(refused(format!(
                "the configuration has {} bytes, not {}",
                bytes.len(),
                config.size
            )));
        }
        Ok(bytes)
    }

    /// Whether the engine holds exactly this image.
    pub(crate) async fn stands(&self, id: &Digest, diff_ids: &[Digest]) -> Result<bool, OciError> {
        let found = self.held.images.find(id.as_str()).await?;
        Ok(found.is_some_and(|image| image.id == *id && image.layers == diff_ids))
    }

    /// Finds every layer, unpacks it and compares it with the configuration.
    pub(crate) async fn compared(
        &self,
        spool: &Spool,
        layers: &[Descriptor],
        diff_ids: &[Digest],
    ) -> Result<Vec<Layer>, OciError> {
        let mut found = Vec::new();
        // All of them are looked for before the first one is unpacked.
        for descriptor in layers {
            let source = match spool.blob(&descriptor.digest) {
                Some(blob) => Source::Spooled(blob),
                None => match self.held.present(&descriptor.digest).await? {
                    Some(blob @ (HeldBlob::Layer { .. } | HeldBlob::Kept(_))) => Source::Held(Box::new(blob)),
                    _ => return Err(missing("the layer", &descriptor.digest)),
                },
            };
            let length = match &source {
                Source::Spooled(blob) => blob.length,
                Source::Held(blob) => blob.length(),
            };
            if length != descriptor.size {
                return Err(refused(format!(
                    "{} has {length} bytes, not {}",
                    descriptor.digest, descriptor.size
                )));
            }
            found.push(source);
        }
        let mut known: HashMap<(Digest, Digest), (u64, bool)> = HashMap::new();
        let mut total = 0_u64;
        let mut out = Vec::new();
        for ((descriptor, diff_id), source) in layers.iter().zip(diff_ids).zip(found) {
            let key = (descriptor.digest.clone(), diff_id.clone());
            let (length, packed) = match (&source, known.get(&key)) {
                (_, Some(found)) => *found,
                (Source::Held(blob), None) => match &**blob {
                    // A file may be damaged, also one whose name is right.
                    HeldBlob::Kept(blob) => {
                        let part = self.held.kept_part(blob, 0..blob.size).await?;
                        let part = part.ok_or_else(|| missing("the layer", &blob.digest))?;
                        let packed = (layer::blocking(part), blob.size);
                        verified(spool, packed, &key, &mut total).await?
                    }
                    blob if descriptor.digest == *diff_id => (blob.length(), false),
                    _ => {
                        return Err(OciError::Layer {
                            digest: descriptor.digest.to_string(),
                            message: format!("it is plain, and not {diff_id} as the configuration says"),
                        });
                    }
                },
                (Source::Spooled(blob), None) => {
                    verified(spool, (blob.open()?, blob.length), &key, &mut total).await?
                }
            };
            known.insert(key, (length, packed));
            out.push(Layer {
                diff_id: diff_id.clone(),
                length,
                packed,
                source,
            });
        }
        Ok(out)
    }

    /// Looks whether all manifests of an index are here, and returns the id of the image that this machine would run.
    async fn look_through(&self, manifests: &[Descriptor]) -> Result<Option<Digest>, OciError> {
        let mut images = Vec::new();
        for descriptor in manifests {
            let (_, Pushed::Manifest { config, .. }) = self.part(descriptor).await? else {
                return Err(refused("an index of attestations is not taken in"));
            };
            let here = match &descriptor.platform {
                Some(platform) => platform.os == "linux" && platform.architecture == architecture(),
                None => manifests.len() == 1,
            };
            if here {
                images.push(config.digest);
            }
        }
        Ok(images.into_iter().next())
    }

    /// A manifest that an index names.
    pub(crate) async fn part(&self, descriptor: &Descriptor) -> Result<(Document, Pushed), OciError> {
        let document = match self.document(&descriptor.digest).await {
            Ok(document) => document,
            Err(OciError::NoManifest { .. }) => return Err(missing("the manifest", &descriptor.digest)),
            Err(other) => return Err(other),
        };
        if document.bytes.len() as u64 != descriptor.size {
            return Err(refused(format!("{} has another length", descriptor.digest)));
        }
        match document::read(Some(&descriptor.media_type), &document.bytes)? {
            (_, Pushed::Index(_)) => Err(refused("an index in an index is not taken in")),
            (_, pushed) => Ok((document, pushed)),
        }
    }

    pub(crate) async fn delete_manifest(
        &self,
        name: &Repository,
        reference: &Reference,
    ) -> Result<Response<Answer>, OciError> {
        let spool = self.writable()?;
        let images = &self.held.images;
        let unknown = |what: String| OciError::NoManifest { what };
        match reference {
            Reference::Tag(tag) => {
                let local = name.local(tag)?;
                let found = images.find(&local).await?;
                if !found.is_some_and(|image| image.tags.contains(&local)) {
                    return Err(unknown(local));
                }
                images.remove(&local).await?;
            }
            Reference::Digest(digest) => {
                let kept = spool.drop_document(digest);
                let held = self.held.manifest_of(digest).await?;
                match held {
                    Some((Some(image), _)) => {
                        // Under this name only: the engine refuses while other tags or containers need the image.
                        images.remove(image.id.as_str()).await?;
                    }
                    Some((None, _)) => {
                        return Err(OciError::Unsupported {
                            message:
                                "a manifest of an index goes when no image of the engine needs it any more"
                                    .into(),
                        });
                    }
                    None if kept => {}
                    None => return Err(unknown(digest.to_string())),
                }
            }
        }
        self.held.forget();
        Ok(bare(StatusCode::ACCEPTED))
    }
}

/// Compares a packed layer with its diff id, after others of this image that had `total` bytes. Returns its length, and whether it
/// is packed.
async fn verified(
    spool: &Spool,
    packed: (impl Read + Send + 'static, u64),
    (digest, diff_id): &(Digest, Digest),
    total: &mut u64,
) -> Result<(u64, bool), OciError> {
    let room = spool.room(*total)?.saturating_sub(*total);
    let (digest, diff_id, limits) = (digest.clone(), diff_id.clone(), spool.limits.clone());
    let found = tokio::task::spawn_blocking(move || layer::verify(&digest, packed, &diff_id, &limits, room));
    let found = found.await.map_err(|error| OciError::Spool {
        action: "unpack a layer",
        source: std::io::Error::other(error),
    })??;
    *total = total.saturating_add(found.0);
    Ok(found)
}

/// This machine's architecture in Go's names.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

async fn gather<S, E>(spool: &Spool, mut body: S) -> Result<Bytes, OciError>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    let mut bytes = BytesMut::new();
    let broken = |message: String| OciError::Body { message };
    loop {
        match timeout(spool.limits.pause, body.next()).await {
            Err(_) => return Err(broken("nothing came for too long".into())),
            Ok(None) => return Ok(bytes.freeze()),
            Ok(Some(Err(error))) => return Err(broken(error.to_string())),
            Ok(Some(Ok(piece))) if bytes.len() + piece.len() > LARGEST => {
                return Err(OciError::TooLarge {
                    what: "the manifest",
                    limit: LARGEST as u64,
                });
            }
            Ok(Some(Ok(piece))) => bytes.extend_from_slice(&piece),
        }
    }
}

/// The image as an archive without its `skip` lowest layers.
fn plain_archive(
    images: &Arc<dyn Images>,
    id: &Digest,
    config: Bytes,
    layers: Vec<Layer>,
    skip: usize,
) -> Result<ByteStream, OciError> {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let wanted = layers.into_iter().skip(skip).map(|layer| {
        let (images, diff_id, length) = (Arc::clone(images), layer.diff_id.clone(), layer.length);
        archive::Layer {
            diff_id: layer.diff_id,
            length,
            open: Box::new(move || {
                Box::pin(async move { open(&*images, layer.source, diff_id, length).await })
            }),
        }
    });
    archive::plain(id, config, &diff_ids, wanted.collect())
}

async fn open(
    images: &dyn Images,
    source: Source,
    diff_id: Digest,
    length: u64,
) -> Result<ByteStream, EngineError> {
    match source {
        Source::Spooled(blob) => Ok(layer::unpacked(blob, diff_id, length)),
        Source::Held(blob) => match *blob {
            HeldBlob::Layer { image, index, .. } => images.layer(&image, index, 0).await,
            // Only layers are looked for as layers, and an engine that keeps blobs is given those.
            HeldBlob::Config(_) | HeldBlob::Kept(_) => Err(EngineError::Corrupt {
                what: format!("layer {diff_id}"),
                message: "it is not a plain layer".into(),
            }),
        },
    }
}
