//! An image for an engine that keeps blobs: the blobs that it lacks as they are, and the documents that name them, so that the digest
//! of the manifest or index, and with it the image's id, stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tranship_core::ImageSpec;
use tranship_core::ids::Digest;

use super::fetch::{Fetched, PARALLEL, compared};
use super::store::{Kept, Store};
use super::{Client, ClientError};
use crate::archive;
use crate::document::{self, Descriptor, Platform, Pushed};
use crate::error::OciError;
use crate::held::Document;
use crate::layout::{check_packed, said_packed, spooled};
use crate::name::{Reference, Repository};
use crate::port::Images;
use crate::spool::BlobFile;

/// Most blobs of one image, for all its platforms: as many as are read of one where it is kept.
const MOST_BLOBS: usize = 4096;

/// What of an index is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platforms {
    /// The image that the engine runs, and what is said of images.
    Own,
    /// All that is there.
    All,
}

/// A blob that documents of the image name.
struct Named {
    descriptor: Descriptor,
    /// What it has to be unpacked, and whether it is said to be packed, where it is a layer of the image that the engine runs. Others may
    /// be missing at the other side.
    diff_ids: Option<BTreeSet<(Digest, bool)>>,
}

/// What an image consists of, by its documents.
#[derive(Default)]
struct Parts {
    /// Beside the one that the image's id is the digest of.
    documents: Vec<Document>,
    blobs: BTreeMap<Digest, Named>,
    /// The manifest of the image that the engine runs was among them.
    own: bool,
}

impl Parts {
    fn add(&mut self, descriptor: &Descriptor, diff_id: Option<&Digest>) -> Result<(), OciError> {
        if self.blobs.len() >= MOST_BLOBS && !self.blobs.contains_key(&descriptor.digest) {
            return Err(OciError::TooMany { what: "blobs" });
        }
        let named = self
            .blobs
            .entry(descriptor.digest.clone())
            .or_insert_with(|| Named {
                descriptor: descriptor.clone(),
                diff_ids: None,
            });
        if named.descriptor.size != descriptor.size {
            return Err(OciError::Manifest {
                message: format!("{} has two lengths", descriptor.digest),
            });
        }
        if let Some(diff_id) = diff_id {
            // One that containerd cannot unpack would leave an image that is not listed.
            let said = said_packed(descriptor)?;
            let diff_ids = named.diff_ids.get_or_insert_default();
            diff_ids.insert((diff_id.clone(), said));
        }
        Ok(())
    }

    /// What need not be there.
    fn add_all(&mut self, config: &Descriptor, layers: &[Descriptor]) -> Result<(), OciError> {
        let mut named = layers.iter().chain([config]);
        named.try_for_each(|descriptor| self.add(descriptor, None))
    }
}

fn is_of(platform: &Platform, image: &ImageSpec) -> bool {
    platform.os == image.os && platform.architecture == image.architecture
}

impl Client {
    /// Fetches the blobs of an image that the engine behind `images` lacks, of these platforms. Documents and blobs are
    /// compared with their digests, which begin with the image's id, and layers of the image that the engine runs are unpacked and
    /// compared with its configuration, before the archive is handed out.
    ///
    /// # Errors
    /// Any [`ClientError`]; what the engine says. What came of blobs stays in the store as with [`Client::fetch`].
    pub async fn fetch_kept(
        &self,
        repository: &Repository,
        (image, platforms): (&ImageSpec, Platforms),
        images: &dyn Images,
        store: &Arc<Store>,
    ) -> Result<Fetched, ClientError> {
        let (root, parts) = self.parts(repository, image, platforms).await?;
        let all: Vec<Digest> = parts.blobs.keys().cloned().collect();
        let lacking = images.lacking(&all).await.map_err(OciError::from)?;
        let lacking: BTreeSet<Digest> = lacking.into_iter().collect();
        let missing: Vec<Named> = parts
            .blobs
            .into_values()
            .filter(|named| lacking.contains(&named.descriptor.digest))
            .collect();
        // What may not be there at all does not count; while it comes, the disk is looked at again and again.
        let wanted = missing.iter().map(|named| {
            let size = named.diff_ids.as_ref().map_or(0, |_| named.descriptor.size);
            (named.descriptor.digest.clone(), size)
        });
        store.room_for(&wanted.collect())?;
        let layers = missing.iter().filter(|named| named.diff_ids.is_some()).count();
        let (came, unpacked) = (AtomicU64::new(0), AtomicU64::new(0));
        let found: Vec<Option<(Digest, Arc<BlobFile>)>> = stream::iter(missing)
            .map(|named: Named| {
                let counts = (&came, &unpacked);
                async move { self.named(repository, &named, store, counts).await }
            })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        let found: Vec<(Digest, Arc<BlobFile>)> = found.into_iter().flatten().collect();
        let kept = Kept::new(store, found.clone());
        let blobs = found.into_iter().map(|(digest, blob)| spooled(&digest, blob));
        Ok(Fetched {
            archive: archive::layout(&root, parts.documents, blobs.collect())?,
            layers,
            bytes: came.into_inner(),
            kept,
        })
    }

    /// Whether a repository has this very image as it is kept.
    ///
    /// # Errors
    /// Any [`ClientError`] but that it is not there, or another image.
    pub async fn has_kept(&self, repository: &Repository, image: &ImageSpec) -> Result<bool, ClientError> {
        match self.parts(repository, image, Platforms::Own).await {
            Ok(_) => Ok(true),
            Err(ClientError::NotFound { .. } | ClientError::OtherImage { .. }) => Ok(false),
            Err(other) => Err(other),
        }
    }

    /// A blob, compared; `None` if it is not there and need not be.
    async fn named(
        &self,
        repository: &Repository,
        named: &Named,
        store: &Store,
        (came, unpacked): (&AtomicU64, &AtomicU64),
    ) -> Result<Option<(Digest, Arc<BlobFile>)>, ClientError> {
        let descriptor = &named.descriptor;
        let blob = match self.blob(repository, descriptor, store, came).await {
            Err(ClientError::NotFound { .. }) if named.diff_ids.is_none() => return Ok(None),
            other => other?,
        };
        for (diff_id, said) in named.diff_ids.iter().flatten() {
            let (_, packed) = compared(descriptor, &blob, diff_id, store, unpacked).await?;
            check_packed(descriptor, packed, *said)?;
        }
        Ok(Some((descriptor.digest.clone(), blob)))
    }

    /// The document that the image's id is the digest of, and what it leads to.
    async fn parts(
        &self,
        repository: &Repository,
        image: &ImageSpec,
        platforms: Platforms,
    ) -> Result<(Document, Parts), ClientError> {
        let reference = Reference::Digest(image.id.clone());
        let (root, pushed) = self.document(repository, &reference, None).await?;
        let mut parts = Parts::default();
        match pushed? {
            Pushed::Manifest { config, layers } => {
                let named = (&config, &layers[..]);
                self.own_parts(repository, image, None, named, &mut parts).await?;
            }
            Pushed::Attestation { .. } => {}
            Pushed::Index(manifests) => {
                let mut seen = BTreeSet::new();
                for descriptor in manifests.iter().filter(|m| seen.insert(&m.digest)) {
                    let wanted = (image, platforms);
                    self.child(repository, wanted, descriptor, &mut parts).await?;
                }
            }
        }
        match parts.own {
            true => Ok((root, parts)),
            false => Err(self.other(format!(
                "{} without one for {}/{} with these layers",
                image.id, image.os, image.architecture
            ))),
        }
    }

    /// Takes in what an index names, if it is there.
    async fn child(
        &self,
        repository: &Repository,
        (image, platforms): (&ImageSpec, Platforms),
        descriptor: &Descriptor,
        parts: &mut Parts,
    ) -> Result<(), ClientError> {
        let others = platforms == Platforms::All;
        let platform = descriptor.platform.as_ref();
        // What is said of an image is for no platform.
        if !others && !platform.is_none_or(|p| is_of(p, image) || p.os == "unknown") {
            return Ok(());
        }
        let reference = Reference::Digest(descriptor.digest.clone());
        let (document, pushed) = match self.document(repository, &reference, Some(descriptor)).await {
            Err(ClientError::NotFound { .. }) => return Ok(()),
            other => other?,
        };
        match pushed {
            Ok(Pushed::Manifest { config, layers }) => {
                let named = (&config, &layers[..]);
                let own = self.own_parts(repository, image, platform, named, parts);
                match (own.await?, others) {
                    (true, _) => {}
                    (false, true) => parts.add_all(&config, &layers)?,
                    (false, false) => return Ok(()),
                }
            }
            Ok(Pushed::Attestation { config, layers }) => {
                parts.add_all(&config, &layers)?;
            }
            // It is no image, and no reason to refuse the one beside it.
            Ok(Pushed::Index(_)) => {}
            Err(error) => {
                tracing::debug!(digest = %descriptor.digest, %error, "a part of an index is no image")
            }
        }
        parts.documents.push(document);
        Ok(())
    }

    /// Takes in a manifest if it is that of the image that the engine runs. Whether it is.
    async fn own_parts(
        &self,
        repository: &Repository,
        image: &ImageSpec,
        platform: Option<&Platform>,
        (config, layers): (&Descriptor, &[Descriptor]),
        parts: &mut Parts,
    ) -> Result<bool, ClientError> {
        let may_be =
            !parts.own && layers.len() == image.layers.len() && platform.is_none_or(|p| is_of(p, image));
        let own = match may_be {
            true => self.own_config(repository, image, config).await?,
            false => None,
        };
        let Some(bytes) = own else {
            return Ok(false);
        };
        parts.own = true;
        for (layer, diff_id) in layers.iter().zip(&image.layers) {
            parts.add(layer, Some(diff_id))?;
        }
        parts.documents.push(Document {
            media_type: config.media_type.clone(),
            digest: config.digest.clone(),
            bytes,
        });
        Ok(true)
    }

    /// The configuration, if it is that of the image that the engine runs.
    async fn own_config(
        &self,
        repository: &Repository,
        image: &ImageSpec,
        config: &Descriptor,
    ) -> Result<Option<Bytes>, ClientError> {
        let bytes = match self.config(repository, config).await {
            Err(ClientError::NotFound { .. }) => return Ok(None),
            other => other?,
        };
        let Ok(read) = document::read_config(&bytes) else {
            return Ok(None);
        };
        // Where it does not say what it is for, the engine takes it for its own.
        let fits = |says: &str, wanted: &str| says.is_empty() || says == wanted;
        let own = read.diff_ids == image.layers
            && fits(&read.platform.os, &image.os)
            && fits(&read.platform.architecture, &image.architecture);
        Ok(own.then_some(bytes))
    }
}
