//! Images in containerd's content store: which blobs an id stands for, and which of them are the layers.
//!
//! The id of an image is the digest of its manifest, or of an index of manifests, of which one is for this machine and the others
//! may be here or not. Everything read here is treated as damaged until its digest says otherwise.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use serde_json::Value;
use tranship_core::ids::Digest;
use tranship_core::{EngineError, ImageSpec};

use crate::json::{at, items, text, texts};

/// Largest document that is read, in bytes: what containerd itself takes for a manifest or an index.
const LARGEST_DOCUMENT: u64 = 8 << 20;

/// Most blobs of one image, for all its platforms.
pub(super) const MOST_BLOBS: usize = 4096;

/// Most layers of one image: more than any snapshotter can stack.
const MOST_LAYERS: usize = 512;

/// How deep indexes may be in each other.
pub(super) const DEEPEST: usize = 4;

/// The blobs of one containerd.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    blobs: PathBuf,
}

/// A blob that is here.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    /// Length in bytes.
    pub(crate) size: u64,
}

/// What the store has of an image.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Digests of the layers as they are kept, lowest first, as many as the image has.
    pub(crate) layers: Vec<Digest>,
    /// The configuration.
    pub(crate) config: Digest,
    /// Media type of what the id is the digest of.
    pub(crate) media_type: String,
    /// Everything that is here of it, of other platforms as well, documents after what they name.
    pub(crate) blobs: Vec<Blob>,
}

/// What an index may name besides other things: manifests and indexes, and what does not say what it is.
const DOCUMENTS: [&str; 5] = [
    "",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// A document of an image, by what it names.
pub(super) enum Document {
    /// What it names, and whether each is a document as well.
    Index(Vec<(Digest, bool)>),
    Manifest {
        config: Digest,
        layers: Vec<Digest>,
    },
}

impl Content {
    pub(crate) fn below(root: &Path) -> Self {
        Self {
            blobs: root.join("io.containerd.content.v1.content/blobs/sha256"),
        }
    }

    /// The file of a blob and its length, `None` if it is not here.
    pub(crate) fn open(&self, digest: &Digest) -> Result<Option<(OwnedFd, u64)>, EngineError> {
        let path = self.blobs.join(digest.hex());
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match open(&path, flags, Mode::empty()) {
            Ok(file) => file,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(damaged(digest, error)),
        };
        let stat = fstat(&file).map_err(|error| damaged(digest, error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(damaged(digest, "it is no file"));
        }
        Ok(Some((file, u64::try_from(stat.st_size).unwrap_or_default())))
    }

    /// A blob as long as it is, `None` if it is not here. No file stays open for it.
    pub(super) fn blob(&self, digest: &Digest) -> Result<Option<Blob>, EngineError> {
        let opened = self.open(digest)?;
        Ok(opened.map(|(_, size)| Blob {
            digest: digest.clone(),
            size,
        }))
    }

    /// A document, compared with its digest; `None` if it is not here.
    pub(super) fn document(&self, digest: &Digest) -> Result<Option<(Blob, Value)>, EngineError> {
        let Some((file, size)) = self.open(digest)? else {
            return Ok(None);
        };
        let bytes = read(file).map_err(|error| damaged(digest, error))?;
        if Digest::of(&bytes) != *digest {
            return Err(damaged(digest, "its bytes have another digest"));
        }
        let value = serde_json::from_slice(&bytes).map_err(|error| damaged(digest, error))?;
        let blob = Blob {
            digest: digest.clone(),
            size,
        };
        Ok(Some((blob, value)))
    }

    /// How many images for a platform are here under an id: manifests whose configuration is here. Attestations are none. Blocks.
    ///
    /// # Errors
    /// [`EngineError::Corrupt`] if there are too many documents, or what the id stands for cannot be read.
    pub(crate) fn platforms(&self, id: &Digest) -> Result<usize, EngineError> {
        let (mut todo, mut seen, mut found) = (vec![id.clone()], BTreeSet::new(), 0);
        while let Some(digest) = todo.pop() {
            if seen.len() > MOST_BLOBS {
                return Err(damaged(id, "it names too many others"));
            }
            if !seen.insert(digest.clone()) {
                continue;
            }
            let read = self.document(&digest);
            let read = read.and_then(|read| read.map(|(_, value)| parse(&digest, &value)).transpose());
            match read {
                Ok(Some(Document::Index(children))) => {
                    todo.extend(
                        children
                            .into_iter()
                            .filter(|(_, document)| *document)
                            .map(|(child, _)| child),
                    );
                }
                Ok(Some(Document::Manifest { config, .. })) => {
                    found += usize::from(self.is_for_a_platform(&config))
                }
                Ok(None) => {}
                Err(error) if digest == *id => return Err(error),
                Err(error) => tracing::debug!(%digest, %error, "a part of an index is no image"),
            }
        }
        Ok(found)
    }

    fn is_for_a_platform(&self, config: &Digest) -> bool {
        let says = |value: &Value, key: &str| text(value, &[key]);
        match self.document(config) {
            Ok(Some((_, value))) => {
                (says(&value, "os"), says(&value, "architecture")) != ("unknown".into(), "unknown".into())
            }
            Ok(None) => false,
            Err(error) => {
                tracing::debug!(%config, %error, "a configuration is no image's");
                false
            }
        }
    }

    /// What is here of an image. Blocks.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] of an image if the documents are not here by which it can be known, of a layer if that or the
    /// configuration is missing, and [`EngineError::Corrupt`] if something is not what it should be.
    pub(crate) fn of(&self, image: &ImageSpec) -> Result<Kept, EngineError> {
        let mut walk = Walk {
            content: self,
            image,
            seen: BTreeSet::new(),
            tried: BTreeSet::new(),
            blobs: Vec::new(),
            own: None,
        };
        let media_type = walk.visit(&image.id, 0)?.ok_or_else(|| missing(image))?;
        let (config, layers) = walk.own.ok_or_else(|| missing(image))?;
        Ok(Kept {
            layers,
            config,
            media_type,
            blobs: walk.blobs,
        })
    }
}

fn missing(image: &ImageSpec) -> EngineError {
    EngineError::NotFound {
        what: "image",
        name: format!("{} in containerd's content store", image.id),
    }
}

struct Walk<'a> {
    content: &'a Content,
    image: &'a ImageSpec,
    seen: BTreeSet<Digest>,
    /// What an index named: it is looked at once.
    tried: BTreeSet<Digest>,
    blobs: Vec<Blob>,
    /// Configuration and layers of the first manifest whose image is the one that the engine runs here.
    own: Option<(Digest, Vec<Digest>)>,
}

impl Walk<'_> {
    /// Takes in a document and what it names. Returns its media type, nothing if it is not here.
    fn visit(&mut self, digest: &Digest, depth: usize) -> Result<Option<String>, EngineError> {
        if depth > DEEPEST || self.seen.len() > MOST_BLOBS {
            return Err(damaged(&self.image.id, "it names too many others"));
        }
        let Some((blob, value)) = self.content.document(digest)? else {
            return Ok(None);
        };
        match parse(digest, &value)? {
            Document::Index(children) => {
                for (child, is_document) in children {
                    match is_document {
                        true if self.seen.contains(&child) => {}
                        true => self.visit_child(&child, depth + 1)?,
                        false => drop(self.keep_other(&child)?),
                    }
                }
            }
            Document::Manifest { config, layers } => {
                let own = self.own.is_none() && self.is_own(&config);
                for named in layers.iter().chain([&config]) {
                    if !own {
                        self.keep_other(named)?;
                    } else if !self.keep(named)? {
                        return Err(EngineError::NotFound {
                            what: "layer",
                            name: format!("{named} of {} in containerd's content store", self.image.id),
                        });
                    }
                }
                if own {
                    if layers.len() != self.image.layers.len() {
                        return Err(damaged(
                            digest,
                            "it has another number of layers than its configuration",
                        ));
                    }
                    self.own = Some((config, layers));
                }
            }
        }
        if self.seen.insert(digest.clone()) {
            self.blobs.push(blob);
        }
        Ok(Some(media_type(&value)))
    }

    /// Takes in what an index names. What is odd about it is no reason to refuse the image beside it: it goes along as a blob.
    fn visit_child(&mut self, child: &Digest, depth: usize) -> Result<(), EngineError> {
        if !self.tried.insert(child.clone()) {
            return Ok(());
        }
        match self.visit(child, depth) {
            Ok(_) => Ok(()),
            Err(error @ EngineError::NotFound { what: "layer", .. }) => Err(error),
            Err(error) => {
                tracing::debug!(%child, %error, "a part of an index is no image");
                self.keep_other(child).map(drop)
            }
        }
    }

    /// Keeps a blob that is not needed for the image that the engine runs, if it is here and is one.
    fn keep_other(&mut self, digest: &Digest) -> Result<bool, EngineError> {
        self.bounded()?;
        self.keep(digest).or_else(|error| {
            tracing::debug!(%digest, %error, "a blob of another platform is left out");
            Ok(false)
        })
    }

    fn bounded(&self) -> Result<(), EngineError> {
        if self.seen.len() >= MOST_BLOBS {
            return Err(damaged(&self.image.id, "it names too many others"));
        }
        Ok(())
    }

    /// Keeps a blob if it is here.
    fn keep(&mut self, digest: &Digest) -> Result<bool, EngineError> {
        if self.seen.contains(digest) {
            return Ok(true);
        }
        self.bounded()?;
        let Some(blob) = self.content.blob(digest)? else {
            return Ok(false);
        };
        self.seen.insert(digest.clone());
        self.blobs.push(blob);
        Ok(true)
    }

    /// Whether it is the configuration of the image that the engine runs. What is no configuration is not.
    fn is_own(&self, config: &Digest) -> bool {
        let value = match self.content.document(config) {
            Ok(Some((_, value))) => value,
            Ok(None) => return false,
            Err(error) => {
                tracing::debug!(%config, %error, "a configuration is no image's");
                return false;
            }
        };
        let layers = texts(&value, &["rootfs", "diff_ids"]);
        // Where it does not say what it is for, the engine takes it for its own.
        let says =
            |key: &str, wanted: &String| ["", wanted.as_str()].contains(&text(&value, &[key]).as_str());
        says("os", &self.image.os)
            && says("architecture", &self.image.architecture)
            && layers.iter().eq(self.image.layers.iter().map(Digest::as_str))
    }
}

pub(super) fn parse(digest: &Digest, value: &Value) -> Result<Document, EngineError> {
    let digests = |key: &str| {
        let named = items(value, &[key])
            .iter()
            .map(|item| Digest::new(text(item, &["digest"])));
        named
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| damaged(digest, error))
    };
    let has = |key: &str| !at(value, &[key]).is_null();
    // One that could be read in two ways means something else to each reader.
    match (has("manifests"), has("config") || has("layers")) {
        (true, false) => {
            // What has a digest of another kind is kept elsewhere, and is nothing that the engine runs.
            let children = items(value, &["manifests"]).iter().filter_map(|item| {
                let kind = DOCUMENTS.contains(&text(item, &["mediaType"]).as_str());
                Some((Digest::new(text(item, &["digest"])).ok()?, kind))
            });
            Ok(Document::Index(children.collect()))
        }
        (false, true) if items(value, &["layers"]).len() > MOST_LAYERS => {
            Err(damaged(digest, "it has more layers than an image can have"))
        }
        (false, true) => {
            let config = Digest::new(text(value, &["config", "digest"]));
            Ok(Document::Manifest {
                config: config.map_err(|error| damaged(digest, error))?,
                layers: digests("layers")?,
            })
        }
        _ => Err(damaged(digest, "it is neither a manifest nor an index")),
    }
}

pub(super) fn media_type(value: &Value) -> String {
    match text(value, &["mediaType"]) {
        kind if !kind.is_empty() => kind,
        _ if at(value, &["manifests"]).is_null() => "application/vnd.oci.image.manifest.v1+json".into(),
        _ => "application/vnd.oci.image.index.v1+json".into(),
    }
}

fn damaged(blob: &Digest, why: impl ToString) -> EngineError {
    EngineError::Corrupt {
        what: format!("blob {blob} of containerd's content store"),
        message: why.to_string(),
    }
}

fn read(file: OwnedFd) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::from(file)
        .take(LARGEST_DOCUMENT + 1)
        .read_to_end(&mut bytes)?;
    if read as u64 > LARGEST_DOCUMENT {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "larger than such a document can be",
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) struct Made {
        pub(crate) root: tempfile::TempDir,
        pub(crate) content: Content,
    }

    impl Made {
        pub(crate) fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let content = Content::below(root.path());
            std::fs::create_dir_all(&content.blobs).unwrap();
            Self { root, content }
        }

        pub(crate) fn put(&self, bytes: &[u8]) -> Digest {
            let digest = Digest::of(bytes);
            std::fs::write(self.path(&digest), bytes).unwrap();
            digest
        }

        pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
            self.content.blobs.join(digest.hex())
        }

        /// A manifest of layers that are kept packed, and the image as the engine describes it.
        pub(crate) fn manifest(&self, architecture: &str, layers: &[&[u8]]) -> ImageSpec {
            let plain = |layer: &&[u8]| Digest::of(&[b"plain", *layer].concat());
            let plain: Vec<Digest> = layers.iter().map(plain).collect();
            let config =
                json!({ "os": "linux", "architecture": architecture, "rootfs": { "diff_ids": plain } });
            let config = self.put(config.to_string().as_bytes());
            let layers: Vec<Value> = layers
                .iter()
                .map(|layer| json!({ "digest": self.put(layer) }))
                .collect();
            let manifest = json!({ "config": { "digest": config }, "layers": layers });
            ImageSpec {
                id: self.put(manifest.to_string().as_bytes()),
                tags: Vec::new(),
                repo_digests: Vec::new(),
                layers: plain,
                kept_layers: Vec::new(),
                variant: String::new(),
                incomplete: false,
                size: 0,
                architecture: architecture.into(),
                os: "linux".into(),
            }
        }

        pub(crate) fn index(&self, manifests: &[&Digest]) -> Digest {
            let manifests: Vec<Value> = manifests
                .iter()
                .map(|digest| json!({ "digest": digest }))
                .collect();
            self.put(json!({ "manifests": manifests }).to_string().as_bytes())
        }
    }

    #[test]
    fn layers_are_those_of_the_manifest_that_the_engine_runs() {
        let made = Made::new();
        let other = made.manifest("arm64", &[b"x", b"y"]);
        let mut image = made.manifest("amd64", &[b"a", b"b"]);
        let kept = made.content.of(&image).unwrap();
        assert_eq!(kept.layers, [Digest::of(b"a"), Digest::of(b"b")]);
        assert_eq!(kept.blobs.len(), 4);
        assert_eq!(kept.blobs.last().unwrap().digest, image.id);

        // In an index, beside one that is here and one that is not.
        image.id = made.index(&[&other.id, &Digest::of(b"elsewhere"), &image.id]);
        let kept = made.content.of(&image).unwrap();
        assert_eq!(kept.layers, [Digest::of(b"a"), Digest::of(b"b")]);
        assert_eq!(kept.media_type, "application/vnd.oci.image.index.v1+json");
        assert_eq!(kept.blobs.len(), 9);
        // What else an index names goes along as it is.
        let text = json!({ "manifests": [{ "digest": image.id }, { "digest": made.put(b"note"), "mediaType": "text/plain" }] });
        let annotated = ImageSpec {
            id: made.put(text.to_string().as_bytes()),
            ..image.clone()
        };
        assert_eq!(made.content.of(&annotated).unwrap().blobs.len(), 11);
        // Of other platforms, layers may be missing; of this one not.
        std::fs::remove_file(made.path(&Digest::of(b"x"))).unwrap();
        assert_eq!(made.content.of(&image).unwrap().blobs.len(), 8);
        std::fs::remove_file(made.path(&Digest::of(b"a"))).unwrap();
        let lacking = made.content.of(&image).unwrap_err();
        assert!(
            matches!(lacking, EngineError::NotFound { what: "layer", .. }),
            "{lacking}"
        );
    }

    #[test]
    fn documents_that_are_not_what_they_should_be_are_refused() {
        let made = Made::new();
        let image = made.manifest("amd64", &[b"a"]);
        let with_id = |id: Digest| ImageSpec { id, ..image.clone() };
        let refused = |id: Digest| made.content.of(&with_id(id)).unwrap_err();
        assert!(matches!(
            refused(Digest::of(b"nowhere")),
            EngineError::NotFound { .. }
        ));
        assert!(matches!(refused(made.index(&[])), EngineError::NotFound { .. }));
        let outside = made.put(br#"{"manifests":[{"digest":"../../etc/passwd"}]}"#);
        assert!(matches!(refused(outside), EngineError::NotFound { .. }));
        for text in [
            "",
            "[]",
            "{}",
            r#"{"layers":[]}"#,
            &format!(
                r#"{{"manifests":[],"layers":[],"config":{{"digest":"{}"}}}}"#,
                image.id
            ),
        ] {
            let error = refused(made.put(text.as_bytes()));
            assert!(matches!(error, EngineError::Corrupt { .. }), "{text}: {error}");
        }
        // Deeper and deeper.
        let mut index = image.id.clone();
        for _ in 0..=DEEPEST {
            index = made.index(&[&index]);
        }
        assert!(matches!(refused(index), EngineError::NotFound { .. }));
        let many = vec![json!({ "digest": image.id }); MOST_LAYERS + 1];
        let many = json!({ "config": { "digest": image.id }, "layers": many });
        let many = made.put(many.to_string().as_bytes());
        assert!(matches!(refused(many), EngineError::Corrupt { .. }));
        let many: Vec<Digest> = (0..=MOST_BLOBS)
            .map(|n| made.put(n.to_string().as_bytes()))
            .collect();
        let many = made.index(&many.iter().collect::<Vec<_>>());
        assert!(matches!(refused(many), EngineError::Corrupt { .. }));
        std::fs::write(made.path(&image.id), b"{\"manifests\":[]}").unwrap();
        assert!(matches!(refused(image.id.clone()), EngineError::Corrupt { .. }));
        let link = made.path(&Digest::of(b"link"));
        std::os::unix::fs::symlink("/etc/hostname", link).unwrap();
        assert!(matches!(
            refused(Digest::of(b"link")),
            EngineError::Corrupt { .. }
        ));
    }

    #[test]
    fn what_is_odd_beside_the_image_does_not_keep_it_from_being_known() {
        let made = Made::new();
        let image = made.manifest("amd64", &[b"a", b"b"]);
        let own = made.content.of(&image).unwrap().blobs.len();
        let put = |value: Value| made.put(value.to_string().as_bytes());
        let large = vec![b' '; usize::try_from(LARGEST_DOCUMENT).unwrap() + 1];
        let odd = [
            json!({ "digest": "sha512:abcd" }),
            json!({ "digest": put(json!({ "config": { "digest": made.put(b"no json") }, "layers": [] })) }),
            json!({ "digest": put(json!({ "config": { "digest": made.put(&large) }, "layers": [] })) }),
            json!({ "digest": put(json!({ "config": { "digest": "sha512:abcd" }, "layers": [] })) }),
            json!({ "digest": made.put(b"neither") }),
        ];
        let linked = Digest::of(b"linked");
        std::os::unix::fs::symlink("/etc/hostname", made.path(&linked)).unwrap();
        let odd = odd
            .into_iter()
            .chain([json!({ "digest": linked }), json!({ "digest": image.id })]);
        let index = put(json!({ "manifests": odd.collect::<Vec<_>>() }));
        let kept = made
            .content
            .of(&ImageSpec {
                id: index.clone(),
                ..image
            })
            .unwrap();
        assert_eq!(kept.layers, [Digest::of(b"a"), Digest::of(b"b")]);
        assert_eq!(kept.blobs.len(), own + 1 + 2 + 2 + 1 + 1);
        assert_eq!(made.content.platforms(&index).unwrap(), 1);
    }

    #[test]
    fn platforms_are_the_images_whose_configurations_are_here() {
        let made = Made::new();
        let (one, two) = (made.manifest("amd64", &[b"a"]), made.manifest("arm64", &[b"a"]));
        assert_eq!(made.content.platforms(&one.id).unwrap(), 1);
        let inner = made.index(&[&two.id]);
        let index = made.index(&[&one.id, &Digest::of(b"elsewhere"), &inner, &two.id]);
        assert_eq!(made.content.platforms(&index).unwrap(), 2);
        let note = json!({ "os": "unknown", "architecture": "unknown", "rootfs": { "diff_ids": [] } });
        let note = json!({ "config": { "digest": made.put(note.to_string().as_bytes()) }, "layers": [] });
        let note = made.put(note.to_string().as_bytes());
        assert_eq!(made.content.platforms(&made.index(&[&one.id, &note])).unwrap(), 1);
        assert!(made.content.platforms(&made.put(b"neither")).is_err());
        assert_eq!(made.content.platforms(&Digest::of(b"nowhere")).unwrap(), 0);
    }
}
