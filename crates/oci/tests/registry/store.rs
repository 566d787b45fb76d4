//! An engine in memory that keeps images as blobs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{TryStreamExt as _, stream};
use serde_json::Value;
use tranship_core::engine::ByteStream;
use tranship_core::ids::Digest;
use tranship_core::image::ImageBlob;
use tranship_core::{EngineError, ImageSpec};
use tranship_oci::port::Images;

use crate::common::{Image, manifest_of, suffix};

/// As with containerd: blobs, and the digests that images are known by.
#[derive(Default)]
pub struct Store {
    pub blobs: Mutex<BTreeMap<Digest, Bytes>>,
    pub tags: Mutex<BTreeMap<String, Digest>>,
    pub untagged: Mutex<Vec<Digest>>,
    /// Bytes of all archives that came.
    pub imported: AtomicUsize,
    /// As without root.
    pub closed: AtomicBool,
    /// Blobs whose files are there for somebody else only.
    pub others: Mutex<BTreeSet<Digest>>,
    /// Blobs whose files are shorter than they were.
    pub cut: Mutex<BTreeSet<Digest>>,
    /// Lists what it takes in, and says that it failed.
    pub fails: AtomicBool,
    /// Loses the next image before it gets its tag.
    pub loses: AtomicBool,
}

fn unsupported<T>() -> Result<T, EngineError> {
    Err(EngineError::Unsupported {
        message: "closed".into(),
    })
}

impl Store {
    pub fn put(&self, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        self.blobs.lock().unwrap().insert(digest.clone(), bytes);
        digest
    }

    pub fn drop_blob(&self, digest: &Digest) {
        self.blobs.lock().unwrap().remove(digest).unwrap();
    }

    /// Keeps an image with its layers packed, and returns the digest and length of its manifest.
    pub fn image(&self, image: &Image, pack: fn(&[u8]) -> Vec<u8>) -> (Digest, usize) {
        let layers: Vec<(Digest, usize)> = image
            .layers
            .iter()
            .map(|layer| {
                let packed = pack(layer);
                let length = packed.len();
                (self.put(packed), length)
            })
            .collect();
        self.put(image.config.clone());
        let manifest = manifest_of(image, &layers, suffix(pack));
        let length = manifest.len();
        (self.put(manifest), length)
    }

    /// As after `docker rmi` of everything, and a collection of garbage.
    pub fn empty(&self) {
        self.tags.lock().unwrap().clear();
        self.untagged.lock().unwrap().clear();
        self.blobs.lock().unwrap().clear();
    }

    pub fn has(&self, digest: &Digest) -> bool {
        self.blobs.lock().unwrap().contains_key(digest)
    }

    pub fn tag_as(&self, tag: &str, image: &Digest) {
        self.tags.lock().unwrap().insert(tag.to_owned(), image.clone());
    }

    fn document(&self, digest: &Digest) -> Option<Value> {
        serde_json::from_slice(self.blobs.lock().unwrap().get(digest)?).ok()
    }

    /// The layers of the first manifest that an id stands for and whose configuration is here.
    fn layers(&self, id: &Digest) -> Option<Vec<Digest>> {
        let document = self.document(id)?;
        let digest = |value: &Value| Digest::new(value["digest"].as_str().unwrap()).unwrap();
        if let Some(children) = document["manifests"].as_array() {
            return children.iter().find_map(|child| self.layers(&digest(child)));
        }
        let config = self.document(&digest(&document["config"]))?;
        serde_json::from_value(config["rootfs"]["diff_ids"].clone()).ok()
    }

    fn spec(&self, id: &Digest) -> Option<ImageSpec> {
        let tags = self.tags.lock().unwrap();
        let tags: Vec<String> = tags
            .iter()
            .filter(|(_, to)| *to == id)
            .map(|(tag, _)| tag.clone())
            .collect();
        if tags.is_empty() && !self.untagged.lock().unwrap().contains(id) {
            return None;
        }
        Some(ImageSpec {
            id: id.clone(),
            tags,
            repo_digests: Vec::new(),
            layers: self.layers(id)?,
            kept_layers: Vec::new(),
            variant: String::new(),
            incomplete: false,
            size: 0,
            architecture: "amd64".into(),
            os: "linux".into(),
        })
    }

    fn named(&self, id: &Digest, found: &mut Vec<ImageBlob>) {
        let Some(size) = self.blobs.lock().unwrap().get(id).map(|bytes| bytes.len() as u64) else {
            return;
        };
        let document = self
            .document(id)
            .filter(|document| document["schemaVersion"] == 2);
        found.push(ImageBlob {
            digest: id.clone(),
            size,
            document: document
                .as_ref()
                .map(|document| document["mediaType"].as_str().unwrap().to_owned()),
        });
        let document = document.unwrap_or_default();
        for key in ["manifests", "layers"] {
            for child in document[key].as_array().into_iter().flatten() {
                self.named(&Digest::new(child["digest"].as_str().unwrap()).unwrap(), found);
            }
        }
        if let Some(config) = document["config"]["digest"].as_str() {
            self.named(&Digest::new(config).unwrap(), found);
        }
    }
}

#[async_trait]
impl Images for Store {
    async fn list(&self) -> Result<Vec<ImageSpec>, EngineError> {
        let mut ids: Vec<Digest> = self.tags.lock().unwrap().values().cloned().collect();
        ids.extend(self.untagged.lock().unwrap().iter().cloned());
        ids.sort();
        ids.dedup();
        Ok(ids.iter().filter_map(|id| self.spec(id)).collect())
    }
    async fn find(&self, reference: &str) -> Result<Option<ImageSpec>, EngineError> {
        let tagged = self.tags.lock().unwrap().get(reference).cloned();
        let id = tagged.or_else(|| Digest::new(reference).ok());
        Ok(id.and_then(|id| self.spec(&id)))
    }
    async fn config(&self, _image: &Digest) -> Result<Bytes, EngineError> {
        unsupported()
    }
    async fn lengths(&self, _image: &ImageSpec) -> Result<Vec<u64>, EngineError> {
        unsupported()
    }
    async fn layer(&self, _: &ImageSpec, _: usize, _: u64) -> Result<ByteStream, EngineError> {
        unsupported()
    }
    async fn blobs(&self, images: &[Digest]) -> Result<Option<Vec<ImageBlob>>, EngineError> {
        if self.closed.load(Ordering::Relaxed) {
            return unsupported();
        }
        let mut found = Vec::new();
        for image in images {
            self.named(image, &mut found);
        }
        Ok(Some(found))
    }
    async fn blob(&self, blob: &ImageBlob, part: Range<u64>) -> Result<ByteStream, EngineError> {
        let bytes = self.blobs.lock().unwrap().get(&blob.digest).cloned();
        let hidden = self.others.lock().unwrap().contains(&blob.digest);
        let Some(bytes) = bytes.filter(|_| !hidden) else {
            return Err(EngineError::NotFound {
                what: "blob",
                name: blob.digest.to_string(),
            });
        };
        if self.cut.lock().unwrap().contains(&blob.digest) {
            return Err(EngineError::Corrupt {
                what: "blob".into(),
                message: "cut".into(),
            });
        }
        let at = |offset: u64| usize::try_from(offset).unwrap();
        let pieces = bytes.slice(at(part.start)..at(part.end));
        let mut pieces: Vec<Result<Bytes, EngineError>> = pieces
            .chunks(1000)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        // Parts are given as they are kept.
        if part == (0..blob.size) && Digest::of(&bytes) != blob.digest {
            pieces.pop();
            pieces.push(Err(EngineError::Corrupt {
                what: "blob".into(),
                message: "damaged".into(),
            }));
        }
        Ok(Box::pin(stream::iter(pieces)))
    }
    async fn lacking(&self, blobs: &[Digest]) -> Result<Vec<Digest>, EngineError> {
        let lacks = |blob: &&Digest| !self.has(blob);
        Ok(blobs.iter().filter(lacks).cloned().collect())
    }
    async fn held(&self, _layers: &[Digest]) -> Result<usize, EngineError> {
        unsupported()
    }
    async fn import(&self, archive: ByteStream) -> Result<(), EngineError> {
        let pieces: Vec<Bytes> = archive.try_collect().await?;
        let bytes = pieces.concat();
        self.imported.fetch_add(bytes.len(), Ordering::Relaxed);
        let mut entries = Vec::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_str().unwrap().to_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            entries.push((name, content));
        }
        assert_eq!(entries.first().unwrap().0, "oci-layout");
        let (name, index) = entries.pop().unwrap();
        assert_eq!(name, "index.json");
        for (name, content) in entries.drain(1..) {
            let digest = self.put(content);
            assert_eq!(name, format!("blobs/sha256/{}", digest.hex()));
        }
        let index: Value = serde_json::from_slice(&index).unwrap();
        for image in index["manifests"].as_array().unwrap() {
            assert!(image["annotations"].is_null(), "no tag before it was compared");
            let id = Digest::new(image["digest"].as_str().unwrap()).unwrap();
            assert_eq!(self.blobs.lock().unwrap()[&id].len() as u64, image["size"]);
            self.untagged.lock().unwrap().push(id);
        }
        match self.fails.load(Ordering::Relaxed) {
            true => Err(EngineError::Failed {
                action: "load".into(),
                status: 500,
                message: "it cannot be unpacked".into(),
            }),
            false => Ok(()),
        }
    }
    async fn tag(&self, image: &Digest, tag: &str) -> Result<(), EngineError> {
        if self.loses.swap(false, Ordering::Relaxed) {
            self.untagged.lock().unwrap().retain(|id| id != image);
        }
        if self.spec(image).is_none() {
            return Err(EngineError::NotFound {
                what: "image",
                name: image.to_string(),
            });
        }
        self.tag_as(tag, image);
        self.untagged.lock().unwrap().retain(|id| id != image);
        Ok(())
    }
    async fn remove(&self, reference: &str) -> Result<(), EngineError> {
        if self.tags.lock().unwrap().remove(reference).is_none() {
            let id = Digest::new(reference).unwrap();
            self.tags.lock().unwrap().retain(|_, to| *to != id);
            self.untagged.lock().unwrap().retain(|to| *to != id);
        }
        Ok(())
    }
}
