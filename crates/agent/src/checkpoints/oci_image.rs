//! A checkpoint as an image of OCI's: its archive is the one layer, and what it is of is said in annotations.
//!
//! Podman (`container checkpoint --create-image`; containers/podman `libpod/define/annotations.go`), CRI-O (`pkg/annotations`) and
//! containerd keep checkpoints in registries so, and know them by their annotations, of which those that begin with `org.criu` are
//! meant for all of them (checkpoint-restore/checkpointctl `lib/annotations.go`).
//!
//! What is written is an image layout (OCI image specification 1.1, `image-layout.md`) as a tar archive. A blob's name is its digest, and
//! its length stands before it: so the layer is made twice, first to measure it, and nothing of it is kept on a disk.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tranship_archive::entry::Entry;
use tranship_archive::writer::Writer;
use tranship_core::ContainerSpec;
use tranship_core::ids::Digest;
use tranship_core::node::EngineFacts;
use tranship_oci::document::media;
use tranship_oci::name::{Repository, Tag};

use super::archive::{Content, Described, Export, Silent, stream, unwritten};
use super::error::CheckpointError;
use super::images::BUFFER;
use super::store::About;
use super::transfer::runtime_of;
use crate::files::rfc3339;

/// Media type of a layer that is compressed with zstd.
const ZSTD_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// How the names of these images begin, so that none is that of an image to run.
const NAMES: &str = "checkpoint/";

/// What is said of a checkpoint beside its archive.
#[derive(Debug, Clone)]
pub(super) struct ImageFacts {
    annotations: BTreeMap<String, String>,
    architecture: String,
    /// When the checkpoint was made.
    created: String,
    /// What the image is called, if that can be a name of an image.
    reference: Option<String>,
}

impl ImageFacts {
    /// What is known of a container, its engine, and the version of CRIU there.
    pub(super) fn new(spec: &ContainerSpec, about: &About, engine: &EngineFacts, criu: &str) -> Self {
        let runtime = runtime_of(spec);
        let criu = criu_number(criu);
        let cgroups = format!("v{}", engine.cgroup_version);
        let (name, image) = (spec.name.as_str(), spec.image_reference.as_str());
        let mut annotations = BTreeMap::new();
        // Podman takes an image for a checkpoint by the name of the runtime, CRI-O and containerd by that of the container.
        for (family, keys) in [
            (
                "org.criu.checkpoint",
                &[
                    ("container.name", name),
                    ("engine.name", engine.kind.as_str()),
                    ("engine.version", engine.version.as_str()),
                    ("rootfsImageUserRequested", image),
                    ("cgroup.version", cgroups.as_str()),
                ][..],
            ),
            (
                "io.podman.annotations.checkpoint",
                &[("name", name), ("cgroups.version", cgroups.as_str())],
            ),
        ] {
            let common = [
                ("rawImageName", image),
                ("rootfsImageName", image),
                ("rootfsImageID", spec.image.id.hex()),
                ("runtime.name", runtime),
                ("criu.version", criu.as_str()),
                ("host.arch", spec.image.architecture.as_str()),
                ("host.kernel", engine.kernel.as_str()),
            ];
            for (key, value) in keys.iter().chain(&common).filter(|(_, value)| !value.is_empty()) {
                annotations.insert(format!("{family}.{key}"), (*value).to_owned());
            }
        }
        for (key, value) in [("name", name), ("rootfsImageName", image)] {
            annotations.insert(
                format!("io.kubernetes.cri-o.annotations.checkpoint.{key}"),
                value.to_owned(),
            );
        }
        let seconds = i64::try_from(about.created_at_ms / 1000).unwrap_or_default();
        Self {
            annotations,
            architecture: spec.image.architecture.clone(),
            created: rfc3339(seconds, 0),
            reference: reference(name, about.name.as_str()),
        }
    }
}

/// A version of CRIU as it writes it itself in one number: `40201` for 4.2.1. Empty if it is none.
fn criu_number(version: &str) -> String {
    let mut parts = version
        .split('.')
        .map(|part| part.parse::<u32>().unwrap_or_default());
    let mut next = || parts.next().unwrap_or_default().min(99);
    match next() * 10_000 + next() * 100 + next() {
        0 => String::new(),
        number => number.to_string(),
    }
}

/// The name of the image. Names of containers have capitals, and marks in rows, which those of images have not.
fn reference(container: &str, checkpoint: &str) -> Option<String> {
    let name = Repository::new(&format!("{NAMES}{}", container.to_ascii_lowercase())).ok()?;
    let tag = Tag::new(checkpoint).ok()?;
    Some(format!("{}:{}", name.as_str(), tag.as_str()))
}

/// A checkpoint that is to be written as an image.
pub(super) struct ImageExport {
    /// Its archive, which can be read.
    pub(super) archive: Export,
    pub(super) facts: ImageFacts,
}

impl ImageExport {
    /// Writes it. The index comes last: an archive that breaks off is no image.
    ///
    /// # Errors
    /// `checkpoint.damaged`, `checkpoint.stream`.
    pub(super) fn write(&self, mut out: impl Write) -> Result<(), CheckpointError> {
        let described = self.archive.described(&mut out)?;
        let silent = Silent {
            out: &mut out,
            bytes: 0,
        };
        let layer = self.layer_into(&described, silent)?;
        let mut image = Writer::new(BufWriter::with_capacity(BUFFER, out));
        document(
            &mut image,
            "oci-layout",
            &json!({ "imageLayoutVersion": "1.0.0" }),
        )?;
        let entry = Entry::file(blob(&layer.digest), 0o600, layer.bytes);
        image.start(&entry).map_err(unwritten)?;
        if self.layer_into(&described, Content(&mut image))? != layer {
            let changed = io::Error::other("the layer is not the same the second time");
            return Err(stream(changed));
        }
        let config = kept(&mut image, media::CONFIG, &self.config(&layer))?;
        let manifest = kept(&mut image, media::MANIFEST, &self.manifest(&layer, config))?;
        document(&mut image, "index.json", &self.index(manifest))?;
        let mut out = image.finish().map_err(unwritten)?;
        out.flush().map_err(stream)
    }

    /// Writes the layer, and measures it.
    fn layer_into(&self, described: &Described, out: impl Write) -> Result<Layer, CheckpointError> {
        let packed = self.archive.encoder(Measured::new(out))?;
        let plain = self.archive.write_plain(described, Measured::new(packed))?;
        let (packed, diff_id, _) = plain.end();
        let (_, digest, bytes) = packed.finish().map_err(stream)?.end();
        Ok(Layer {
            digest,
            bytes,
            diff_id,
        })
    }

    fn config(&self, layer: &Layer) -> Value {
        let facts = &self.facts;
        json!({
            "created": facts.created,
            "architecture": facts.architecture,
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [layer.diff_id] },
            "history": [{ "created": facts.created, "created_by": "tranship checkpoint export" }],
        })
    }

    fn manifest(&self, layer: &Layer, config: Value) -> Value {
        let kind = if self.archive.is_compressed() {
            ZSTD_LAYER
        } else {
            media::LAYER
        };
        json!({
            "schemaVersion": 2,
            "mediaType": media::MANIFEST,
            "config": config,
            "layers": [{ "mediaType": kind, "digest": layer.digest, "size": layer.bytes }],
            "annotations": self.facts.annotations,
        })
    }

    fn index(&self, mut manifest: Value) -> Value {
        if let Some(reference) = &self.facts.reference {
            manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": reference });
        }
        json!({ "schemaVersion": 2, "mediaType": media::INDEX, "manifests": [manifest] })
    }
}

/// A layer as it is told of.
#[derive(Debug, PartialEq, Eq)]
struct Layer {
    /// Of the blob.
    digest: Digest,
    /// Of the blob.
    bytes: u64,
    /// The digest of the plain tar.
    diff_id: Digest,
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn document<W: Write>(image: &mut Writer<W>, name: &str, value: &Value) -> Result<(), CheckpointError> {
    put(image, name, value.to_string().as_bytes())
}

/// Writes a document as a blob, and gives what others name it by.
fn kept<W: Write>(image: &mut Writer<W>, kind: &str, value: &Value) -> Result<Value, CheckpointError> {
    let text = value.to_string();
    let digest = Digest::of(text.as_bytes());
    put(image, &blob(&digest), text.as_bytes())?;
    Ok(json!({ "mediaType": kind, "digest": digest, "size": text.len() }))
}

fn put<W: Write>(image: &mut Writer<W>, name: &str, content: &[u8]) -> Result<(), CheckpointError> {
    let entry = Entry::file(name, 0o600, content.len() as u64);
    image.append(&entry, &mut &*content).map_err(unwritten)
}

/// Measures what is written.
struct Measured<W> {
    inner: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W> Measured<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
            bytes: 0,
        }
    }

    fn end(self) -> (W, Digest, u64) {
        (
            self.inner,
            Digest::from_sha256(&self.hasher.finalize().into()),
            self.bytes,
        )
    }
}

impl<W: Write> Write for Measured<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(bytes.get(..written).unwrap_or_default());
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Whether an entry is one that the archive of an image may begin with, by whichever tool wrote it.
pub(super) fn is_of_layout(entry: &Entry) -> bool {
    let path = entry.path.strip_prefix(b"./").unwrap_or(&entry.path);
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let files: [&[u8]; 4] = [b"oci-layout", b"index.json", b"manifest.json", b"blobs"];
    files.contains(&path) || path.starts_with(b"blobs/")
}

#[cfg(test)]
mod tests;
