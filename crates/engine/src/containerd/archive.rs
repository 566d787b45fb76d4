//! Archives of images from containerd's content store: exact, of known length, without the layers that the other side holds.
//!
//! An archive is an OCI image layout in a tar. It names all layers, also those left out: `docker load` imports what is there, and a
//! blob that its own content store holds is found by its digest. Blobs go as they are kept, so that the manifest, and with it the
//! id, stays what it is. Each is compared with its digest while it streams, and the index comes last: an archive with a damaged
//! blob breaks off before there is anything in it that could be loaded.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde_json::json;
use tranship_core::engine::ByteStream;
use tranship_core::ids::Digest;

use super::content::Kept;
use crate::export::{Stop, Writer, blob_name, checked_stream, entry_length};

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// An archive that could be written.
pub(crate) struct OciArchive {
    kept: Kept,
    index: Bytes,
}

impl OciArchive {
    /// The archive of what is kept of the image `id`. It has no tag: who takes it in gives it one.
    pub(crate) fn of(id: &Digest, kept: Kept) -> Self {
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
        Self {
            kept,
            index: index.to_string().into(),
        }
    }

    /// Layers that are left out: one that is there a second time further up is not.
    fn left_out(&self, skip: usize) -> BTreeSet<&Digest> {
        let (below, above) = self.kept.layers.split_at(skip.min(self.kept.layers.len()));
        below.iter().filter(|layer| !above.contains(layer)).collect()
    }

    fn length(&self, skip: usize) -> u64 {
        let left_out = self.left_out(skip);
        let blobs = self
            .kept
            .blobs
            .iter()
            .filter(|blob| !left_out.contains(&blob.digest));
        let documents = [LAYOUT.len() as u64, self.index.len() as u64];
        let entries: u64 = blobs
            .map(|blob| blob.size)
            .chain(documents)
            .map(entry_length)
            .sum();
        entries + entry_length(0) * 2
    }

    /// Lengths in bytes for every number of skipped layers, from none to all.
    pub(crate) fn lengths(&self) -> Vec<u64> {
        (0..=self.kept.layers.len())
            .map(|skip| self.length(skip))
            .collect()
    }

    /// The archive as a stream, and its length in bytes.
    pub(crate) fn stream(self, skip: usize) -> (u64, ByteStream) {
        let length = self.length(skip);
        let stream = checked_stream(move |writer| self.write(skip, writer));
        (length, stream)
    }

    fn write(&self, skip: usize, writer: &mut Writer) -> Result<(), Stop> {
        writer.document("oci-layout", LAYOUT)?;
        let left_out = self.left_out(skip);
        for blob in self
            .kept
            .blobs
            .iter()
            .filter(|blob| !left_out.contains(&blob.digest))
        {
            writer.blob(&blob_name(&blob.digest), &blob.digest, &blob.file, blob.size)?;
        }
        writer.document("index.json", &self.index)?;
        writer.end()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use futures_util::TryStreamExt as _;
    use tranship_core::EngineError;

    use super::super::content::tests::Made;
    use super::*;

    async fn written(archive: OciArchive, skip: usize) -> Result<Vec<u8>, EngineError> {
        let (length, stream) = archive.stream(skip);
        let pieces: Vec<Bytes> = stream.try_collect().await?;
        let bytes = pieces.concat();
        assert_eq!(bytes.len() as u64, length);
        Ok(bytes)
    }

    #[tokio::test]
    async fn an_archive_names_all_layers_and_holds_the_missing_ones() {
        let made = Made::new();
        let image = made.manifest("amd64", &[b"same", b"a", b"same", b"b"]);
        for (skip, blobs) in [(0, 5), (1, 5), (2, 4), (3, 3), (4, 2), (9, 2)] {
            let archive = OciArchive::of(&image.id, made.content.of(&image).unwrap());
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
        let archive = |made: &Made| OciArchive::of(&image.id, made.content.of(&image).unwrap());
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
