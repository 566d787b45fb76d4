//! Archives of images from containerd's content store: exact, of known length, without the layers that the other side holds.
//!
//! An archive is an OCI image layout in a tar. It names all layers, also those left out: `docker load` imports what is there, and a
//! blob that its own content store holds is found by its digest. Blobs go as they are kept, so that the manifest, and with it the
//! id, stays what it is. Each is compared with its digest while it streams, and the index comes last: an archive with a damaged
//! blob breaks off before there is anything in it that could be loaded.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::json;
use tranship_core::EngineError;
use tranship_core::engine::ByteStream;
use tranship_core::ids::Digest;

use super::content::{Content, Kept};
use crate::export::{Stop, Writer, blob_name, checked_stream, entry_length};

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// An archive that could be written.
pub(crate) struct OciArchive {
    content: Content,
    kept: Kept,
    index: Bytes,
    /// The highest place of each layer in the image: one that is there a second time further up is left out only with that.
    last: BTreeMap<Digest, usize>,
}

impl OciArchive {
    /// The archive of what is kept of the image `id`. It has no tag: who takes it in gives it one.
    pub(crate) fn of(content: Content, id: &Digest, kept: Kept) -> Self {
        let size = kept
            .blobs
            .iter()
            .find(|blob| blob.digest == *id)
            .map(|blob| blob.size);
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{ "mediaType": kept.media_type, "digest": id, "size": size }],
        });
        let last = kept.layers.iter().cloned().zip(0..).collect();
        Self {
            content,
            kept,
            index: index.to_string().into(),
            last,
        }
    }

    /// Whether a blob is in the archive without the `skip` lowest layers.
    fn has(&self, blob: &Digest, skip: usize) -> bool {
        self.last.get(blob).is_none_or(|last| *last >= skip)
    }

    /// Lengths in bytes for every number of skipped layers, from none to all.
    pub(crate) fn lengths(&self) -> Vec<u64> {
        // What goes when one more layer is skipped.
        let mut going = vec![0_u64; self.kept.layers.len()];
        let mut length = entry_length(LAYOUT.len() as u64) + entry_length(self.index.len() as u64);
        length += entry_length(0) * 2;
        for blob in &self.kept.blobs {
            let entry = entry_length(blob.size);
            length = length.saturating_add(entry);
            let last = self.last.get(&blob.digest);
            if let Some(going) = last.and_then(|last| going.get_mut(*last)) {
                *going += entry;
            }
        }
        let mut lengths = vec![length];
        for entry in going {
            length = length.saturating_sub(entry);
            lengths.push(length);
        }
        lengths
    }

    fn length(&self, skip: usize) -> u64 {
        let lengths = self.lengths();
        let length = lengths.get(skip).or(lengths.last());
        length.copied().unwrap_or_default()
    }

    /// The archive as a stream, and its length in bytes.
    pub(crate) fn stream(self, skip: usize) -> (u64, ByteStream) {
        let length = self.length(skip);
        let stream = checked_stream(move |writer| self.write(skip, writer));
        (length, stream)
    }

    fn write(&self, skip: usize, writer: &mut Writer) -> Result<(), Stop> {
        writer.document("oci-layout", LAYOUT)?;
        let wanted = self.kept.blobs.iter();
        for blob in wanted.filter(|blob| self.has(&blob.digest, skip)) {
            // One that went meanwhile ends the archive.
            let opened = self.content.open(&blob.digest).map_err(Stop::Failed)?;
            let (file, _) = opened.ok_or_else(|| {
                Stop::Failed(EngineError::NotFound {
                    what: "layer",
                    name: format!("{} in containerd's content store", blob.digest),
                })
            })?;
            writer.blob(&blob_name(&blob.digest), &blob.digest, &file, blob.size)?;
        }
        writer.document("index.json", &self.index)?;
        writer.end()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use futures_util::TryStreamExt as _;
    use tranship_core::ImageSpec;

    use super::super::content::tests::Made;
    use super::*;

    async fn written(archive: OciArchive, skip: usize) -> Result<Vec<u8>, EngineError> {
        let (length, stream) = archive.stream(skip);
        let pieces: Vec<Bytes> = stream.try_collect().await?;
        let bytes = pieces.concat();
        assert_eq!(bytes.len() as u64, length);
        Ok(bytes)
    }

    fn archive_of(made: &Made, image: &ImageSpec) -> OciArchive {
        let content = made.content.clone();
        let kept = content.of(image).unwrap();
        OciArchive::of(content, &image.id, kept)
    }

    #[tokio::test]
    async fn an_archive_names_all_layers_and_holds_the_missing_ones() {
        let made = Made::new();
        let image = made.manifest("amd64", &[b"same", b"a", b"same", b"b"]);
        for (skip, blobs) in [(0, 5), (1, 5), (2, 4), (3, 3), (4, 2), (9, 2)] {
            let archive = archive_of(&made, &image);
            assert_eq!(archive.lengths().len(), 5);
            let bytes = written(archive, skip).await.unwrap();
            let mut tar = tar::Archive::new(&bytes[..]);
            let (mut names, mut index) = (Vec::new(), String::new());
            for entry in tar.entries().unwrap() {
                let mut entry = entry.unwrap();
                names.push(entry.path().unwrap().display().to_string());
                index.clear();
                entry.read_to_string(&mut index).unwrap();
            }
            assert_eq!(names.first().unwrap(), "oci-layout");
            assert_eq!(names.last().unwrap(), "index.json");
            assert_eq!(names.len(), blobs + 2, "{skip}: {names:?}");
            assert!(index.contains(image.id.as_str()));
        }
    }

    #[tokio::test]
    async fn a_damaged_blob_ends_the_archive_before_its_index() {
        let made = Made::new();
        let image = made.manifest("amd64", &[b"one", b"two"]);
        std::fs::write(made.path(&Digest::of(b"two")), b"tw0").unwrap();
        let archive = |made: &Made| archive_of(made, &image);
        let broken = written(archive(&made), 0).await.unwrap_err();
        assert!(matches!(broken, EngineError::Corrupt { .. }), "{broken}");
        // What is left out is not looked at.
        assert!(written(archive(&made), 2).await.is_ok());
        // One that becomes shorter under our hands, after its length was told.
        let short = archive(&made);
        std::fs::write(made.path(&Digest::of(b"one")), b"o").unwrap();
        assert!(written(short, 0).await.is_err());
        drop(made.root);
    }
}
