//! Pushes to an engine that keeps blobs: what came is compared as everywhere, and loaded as it came, so that the digest of what was
//! pushed is the image's id.

use std::sync::Arc;

use tranship_core::EngineError;
use tranship_core::ids::Digest;

use crate::archive::{self, Blob};
use crate::document::{self, Descriptor, ImageConfig, Pushed};
use crate::error::OciError;
use crate::held::Document;
use crate::push::{Source, missing, refused};
use crate::registry::Registry;
use crate::spool::{self, BlobFile, Spool};

impl Registry {
    /// Brings what a manifest or an index names into the engine, and returns the image's id. An attestation waits for its index.
    pub(crate) async fn take_in_blobs(
        &self,
        spool: &Spool,
        image: &Document,
        pushed: &Pushed,
    ) -> Result<Option<Digest>, OciError> {
        match pushed {
            Pushed::Manifest { config, layers } => {
                self.take_in_manifest(spool, image, config, layers).await?
            }
            Pushed::Index(manifests) => self.take_in_index(spool, image, manifests).await?,
            Pushed::Attestation { config, layers } => {
                self.attached(spool, config, layers).await?;
                return Ok(None);
            }
        }
        Ok(Some(image.digest.clone()))
    }

    async fn take_in_manifest(
        &self,
        spool: &Spool,
        image: &Document,
        config: &Descriptor,
        layers: &[Descriptor],
    ) -> Result<(), OciError> {
        let diff_ids = self.diff_ids(spool, config, layers).await?;
        // The digest of the manifest says that of every blob.
        if self.stands(&image.digest, &diff_ids).await? && self.is_whole(config, layers).await? {
            return Ok(());
        }
        let Ok(_place) = self.imports.acquire().await else {
            return Err(OciError::TooMany { what: "pushes" });
        };
        self.load_manifest(spool, image, config, layers, &diff_ids).await
    }

    async fn diff_ids(
        &self,
        spool: &Spool,
        config: &Descriptor,
        layers: &[Descriptor],
    ) -> Result<Vec<Digest>, OciError> {
        let bytes = self.configuration(spool, config).await?;
        let ImageConfig { diff_ids, .. } = document::read_config(&bytes)?;
        match diff_ids.len() == layers.len() {
            true => Ok(diff_ids),
            false => Err(refused(format!(
                "the configuration has {} layers and the manifest {}",
                diff_ids.len(),
                layers.len()
            ))),
        }
    }

    /// Compares the blobs of a manifest and loads it, for who has a place for that.
    async fn load_manifest(
        &self,
        spool: &Spool,
        image: &Document,
        config: &Descriptor,
        layers: &[Descriptor],
        diff_ids: &[Digest],
    ) -> Result<(), OciError> {
        let packed: Vec<bool> = layers.iter().map(said_packed).collect::<Result<_, _>>()?;
        let compared = self.compared(spool, layers, diff_ids).await?;
        for ((layer, said), descriptor) in compared.iter().zip(packed).zip(layers) {
            check_packed(descriptor, layer.packed, said)?;
        }
        // What the engine holds it finds by itself.
        let mut blobs: Vec<Blob> = layers
            .iter()
            .zip(compared)
            .filter_map(|(descriptor, layer)| match layer.source {
                Source::Spooled(blob) => Some(spooled(&descriptor.digest, blob)),
                Source::Held(_) => None,
            })
            .collect();
        blobs.extend(
            spool
                .blob(&config.digest)
                .map(|blob| spooled(&config.digest, blob)),
        );
        self.load(image, Vec::new(), blobs).await?;
        match self.stands(&image.digest, diff_ids).await? {
            true => Ok(()),
            false => Err(not_taken(&image.digest)),
        }
    }

    /// The images of an index were taken in before it, and what is said of them comes with it. Those that went meanwhile are taken in
    /// again, as long as what was uploaded is there.
    async fn take_in_index(
        &self,
        spool: &Spool,
        image: &Document,
        manifests: &[Descriptor],
    ) -> Result<(), OciError> {
        // Before anything is read: the manifests lie in memory.
        let Ok(_place) = self.imports.acquire().await else {
            return Err(OciError::TooMany { what: "pushes" });
        };
        self.held.forget();
        let (mut parts, mut blobs, mut images, mut all_held) = (Vec::new(), Vec::new(), 0, true);
        for descriptor in manifests {
            // It may be one that was pushed and whose image went: only what the engine holds says that of the blobs.
            let (part, pushed) = self.part(descriptor).await?;
            all_held &= self.held.present(&part.digest).await?.is_some();
            match pushed {
                Pushed::Attestation { config, layers } => {
                    all_held &= self.is_whole(&config, &layers).await?;
                    blobs.extend(self.attached(spool, &config, &layers).await?);
                }
                Pushed::Manifest { config, layers } => {
                    images += 1;
                    if !self.is_whole(&config, &layers).await? {
                        all_held = false;
                        let diff_ids = self.diff_ids(spool, &config, &layers).await?;
                        self.load_manifest(spool, &part, &config, &layers, &diff_ids)
                            .await?;
                        // It came for this index, and makes way for it.
                        spool.keep(part.clone());
                    }
                }
                Pushed::Index(_) => return Err(refused("an index in an index is not taken in")),
            }
            parts.push(part);
        }
        if images == 0 {
            return Err(refused("an index without an image is not taken in"));
        }
        if all_held && self.is_held(&image.digest).await? {
            return Ok(());
        }
        self.load(image, parts, blobs).await?;
        match self.is_held(&image.digest).await? {
            true => Ok(()),
            false => Err(not_taken(&image.digest)),
        }
    }

    /// Images that were pushed for this index only and have no tag would be listed beside it for good: the index keeps their blobs. What
    /// the engine does not let go of stays.
    pub(crate) async fn tidy(&self, spool: &Spool, manifests: &[Descriptor]) {
        for digest in manifests.iter().map(|descriptor| &descriptor.digest) {
            if spool.document(digest).is_some() {
                self.discard(digest).await;
            }
        }
    }

    /// Removes an image that has no tag.
    async fn discard(&self, digest: &Digest) {
        let images = &self.held.images;
        let _naming = self.naming.lock().await;
        let removed = match images.find(digest.as_str()).await {
            Ok(Some(image)) if image.id == *digest && image.tags.is_empty() => {
                images.remove(digest.as_str()).await
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            tracing::debug!(%digest, %error, "an image stays without a tag");
        }
    }

    /// Whether the engine holds all of these blobs.
    async fn is_whole(&self, config: &Descriptor, layers: &[Descriptor]) -> Result<bool, OciError> {
        for descriptor in layers.iter().chain([config]) {
            if self.held.present(&descriptor.digest).await?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The blobs of an attestation that the engine does not hold; all of them have to be somewhere.
    async fn attached(
        &self,
        spool: &Spool,
        config: &Descriptor,
        layers: &[Descriptor],
    ) -> Result<Vec<Blob>, OciError> {
        let mut blobs = Vec::new();
        for descriptor in layers.iter().chain([config]) {
            let length = match spool.blob(&descriptor.digest) {
                Some(blob) => {
                    let length = blob.length;
                    blobs.push(spooled(&descriptor.digest, blob));
                    length
                }
                None => match self.held.present(&descriptor.digest).await? {
                    Some(blob) => blob.length(),
                    None => return Err(missing("the attestation's blob", &descriptor.digest)),
                },
            };
            if length != descriptor.size {
                return Err(refused(format!(
                    "{} has {length} bytes, not {}",
                    descriptor.digest, descriptor.size
                )));
            }
        }
        Ok(blobs)
    }

    async fn load(&self, image: &Document, parts: Vec<Document>, blobs: Vec<Blob>) -> Result<(), OciError> {
        let before = self.is_held(&image.digest).await?;
        let archive = archive::layout(image, parts, blobs)?;
        let loaded = self.held.images.import(archive).await;
        self.held.forget();
        if loaded.is_err() && !before {
            // The engine lists what it could not unpack: the next try would take that for done.
            self.discard(&image.digest).await;
        }
        Ok(loaded?)
    }

    /// Whether the engine has an image of this id, whichever platform it runs of it.
    async fn is_held(&self, id: &Digest) -> Result<bool, OciError> {
        let found = self.held.images.find(id.as_str()).await?;
        Ok(found.is_some_and(|image| image.id == *id))
    }
}

/// Whether a layer is said to be packed; those of kinds that containerd does not unpack are refused.
pub(crate) fn said_packed(layer: &Descriptor) -> Result<bool, OciError> {
    document::is_packed(&layer.media_type).ok_or_else(|| {
        refused(format!(
            "layers of the kind {:?} are not taken in by an engine that keeps blobs: containerd does not unpack them",
            layer.media_type
        ))
    })
}

/// Compares what a layer is with what it is said to be. What is said to be packed and is not is taken for what it is, and Docker's classic
/// store pushes such: it calls layers that a registry has already packed, without having sent them.
pub(crate) fn check_packed(layer: &Descriptor, packed: bool, said: bool) -> Result<(), OciError> {
    if packed && !said {
        return Err(refused(format!(
            "{} is packed, unlike {:?}: containerd would not unpack it",
            layer.digest, layer.media_type
        )));
    }
    Ok(())
}

pub(crate) fn spooled(digest: &Digest, blob: Arc<BlobFile>) -> Blob {
    let length = blob.length;
    Blob {
        digest: digest.clone(),
        length,
        open: Box::new(move || {
            Box::pin(async move {
                spool::stream(&blob, 0, length).map_err(|error| EngineError::Failed {
                    action: "read an uploaded blob".into(),
                    status: 0,
                    message: error.to_string(),
                })
            })
        }),
    }
}

fn not_taken(id: &Digest) -> OciError {
    OciError::Engine(EngineError::Corrupt {
        what: format!("the image {id}"),
        message: "the engine took the archive but does not hold this image".into(),
    })
}
