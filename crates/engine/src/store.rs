//! Docker's classic image store on disk, for reading.
//!
//! Layout below the engine's root directory (moby `image/fs.go`, `layer/filestore.go`, `daemon/graphdriver/overlay2`):
//!
//! ```text
//! engine-id                                        the engine's own id (Docker ≥ 23)
//! image/overlay2/imagedb/content/sha256/ID         configuration of an image, whose digest is the id
//! image/overlay2/layerdb/sha256/CHAIN/cache-id     where the files of the layer are
//! image/overlay2/layerdb/sha256/CHAIN/diff         diff id of the layer
//! image/overlay2/layerdb/sha256/CHAIN/tar-split.json.gz
//! overlay2/CACHE-ID/diff/…                         the files
//! containers/ID/config.v2.json                     the engine's record of a container
//! ```
//!
//! Everything read here is treated as damaged until its digest says otherwise.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tranship_core::ids::Digest;
use tranship_core::image::chain_ids;
use tranship_core::node::ImageStore;
use tranship_core::{ContainerId, EngineError};

use crate::docker::{DockerEngine, Identity};
use crate::json::{entries, text, texts};

/// Largest image configuration that is read, in bytes.
const LARGEST_CONFIG: u64 = 32 << 20;

/// The store of one engine.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
    /// It bears the engine's own id. A socket may lead to an engine in another namespace, whose root directory has the
    /// same name as this one's: what cannot be checked by its digest is believed only then.
    identified: bool,
}

/// One layer of the store.
#[derive(Debug, Clone)]
pub(crate) struct StoredLayer {
    /// Digest of its plain tar.
    pub(crate) diff_id: Digest,
    /// The description of the tar.
    pub(crate) tar_split: PathBuf,
    /// The files.
    pub(crate) files: PathBuf,
}

impl Store {
    /// The store below `root` unless it belongs to another engine than `engine_id`.
    pub(crate) fn open(root: &Path, engine_id: &str) -> Option<Self> {
        // Docker before 23 keeps its id elsewhere.
        let id = std::fs::read_to_string(root.join("engine-id")).ok();
        let identified = match &id {
            Some(id) if id.trim() != engine_id => return None,
            id => id.is_some(),
        };
        Some(Self {
            root: root.to_owned(),
            identified,
        })
    }

    /// Whether layers may be read. An engine that never held one has not made their directory yet.
    pub(crate) fn is_readable(&self) -> bool {
        let layers = self.layers();
        match (std::fs::read_dir(&layers), layers.parent()) {
            (Err(error), Some(above)) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::read_dir(above).is_ok()
            }
            (read, _) => read.is_ok(),
        }
    }

    fn layers(&self) -> PathBuf {
        self.root.join("image/overlay2/layerdb/sha256")
    }

    /// The configuration of an image, checked against its id.
    pub(crate) fn config(&self, image: &Digest) -> Result<Vec<u8>, EngineError> {
        let path = self
            .root
            .join("image/overlay2/imagedb/content/sha256")
            .join(image.hex());
        let bytes = read_bounded(&path, LARGEST_CONFIG).map_err(|error| unreadable(&path, &error))?;
        if Digest::of(&bytes) != *image {
            return Err(EngineError::Corrupt {
                what: format!("the configuration of image {image}"),
                message: format!("{} has another digest", path.display()),
            });
        }
        Ok(bytes)
    }

    /// The layers of an image, lowest first, from its configuration.
    pub(crate) fn layers_of(&self, image: &Digest, config: &[u8]) -> Result<Vec<StoredLayer>, EngineError> {
        let damaged = |message: String| EngineError::Corrupt {
            what: format!("image {image}"),
            message,
        };
        let config: Value =
            serde_json::from_slice(config).map_err(|error| damaged(format!("its configuration: {error}")))?;
        let diff_ids = texts(&config, &["rootfs", "diff_ids"])
            .into_iter()
            .map(Digest::new)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| damaged(error.to_string()))?;
        let chain = chain_ids(&diff_ids);
        chain
            .iter()
            .zip(diff_ids)
            .map(|(chain, diff_id)| self.layer(chain, diff_id))
            .collect()
    }

    fn layer(&self, chain: &Digest, diff_id: Digest) -> Result<StoredLayer, EngineError> {
        let directory = self.layers().join(chain.hex());
        let path = directory.join("cache-id");
        let cache = read_bounded(&path, 256).map_err(|error| unreadable(&path, &error))?;
        let cache = String::from_utf8_lossy(&cache).trim().to_owned();
        // It becomes a part of a path.
        if cache.is_empty() || !cache.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(EngineError::Corrupt {
                what: format!("layer {diff_id}"),
                message: format!("{} names no directory", path.display()),
            });
        }
        Ok(StoredLayer {
            diff_id,
            tar_split: directory.join("tar-split.json.gz"),
            files: self.root.join("overlay2").join(cache).join("diff"),
        })
    }

    /// How many of the lowest `layers` are here as one stack, if this can be told.
    pub(crate) fn layers_held(&self, layers: &[Digest]) -> Option<usize> {
        let root = self.layers();
        let held = |chain: &&Digest| root.join(chain.hex()).join("cache-id").is_file();
        self.identified
            .then(|| chain_ids(layers).iter().take_while(held).count())
    }

    /// The hardware addresses that the user asked for, by network, from the engine's record of the container. `None`
    /// where the record does not tell (Docker before 25, Podman).
    pub(crate) fn desired_macs(&self, container: &ContainerId) -> Option<BTreeMap<String, String>> {
        let path = self
            .root
            .join("containers")
            .join(container.as_str())
            .join("config.v2.json");
        let record: Value = serde_json::from_slice(&read_bounded(&path, LARGEST_CONFIG).ok()?).ok()?;
        entries(&record, &["NetworkSettings", "Networks"])
            .map(|(network, endpoint)| {
                endpoint.get("DesiredMacAddress")?;
                Some((network.clone(), text(endpoint, &["DesiredMacAddress"])))
            })
            .collect()
    }
}

impl DockerEngine {
    /// The engine's storage, if it is of the kind that is understood and may be read.
    pub(crate) fn store(&self, identity: &Identity) -> Option<Store> {
        let understood = identity.store == ImageStore::Classic && identity.driver == "overlay2";
        if !self.wants_direct() || !understood {
            return None;
        }
        self.records(identity).filter(Store::is_readable)
    }

    /// The engine's own records below its root directory, if they may be read.
    pub(crate) fn records(&self, identity: &Identity) -> Option<Store> {
        if !self.wants_direct() || self.podman {
            return None;
        }
        let inside = identity.root.strip_prefix("/").unwrap_or(&identity.root);
        Store::open(&self.root_prefix.join(inside), &identity.id)
    }
}

fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path)?
        .take(limit + 1)
        .read_to_end(&mut bytes)?;
    if read as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "larger than such a file can be",
        ));
    }
    Ok(bytes)
}

/// A file of the engine's storage cannot be read.
pub(crate) fn unreadable(path: &Path, error: &io::Error) -> EngineError {
    EngineError::Failed {
        action: "read its image storage".into(),
        status: 0,
        message: format!("{}: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::Store;

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn an_engine_that_never_held_an_image_has_a_store() -> TestResult {
        let root = tempfile::tempdir()?;
        let store = Store::open(root.path(), "id").ok_or("no store")?;
        assert!(!store.is_readable(), "nothing is there");
        std::fs::create_dir_all(root.path().join("image/overlay2/layerdb"))?;
        assert!(store.is_readable(), "no layer is there");
        std::fs::create_dir(root.path().join("image/overlay2/layerdb/sha256"))?;
        assert!(store.is_readable());
        Ok(())
    }
}
