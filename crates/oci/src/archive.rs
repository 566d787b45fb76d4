//! Images as archives for `docker load`: in the form of `docker save`, of plain layers, or as OCI layouts, of blobs as they are kept.

use std::collections::BTreeSet;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde_json::json;
use tranship_core::EngineError;
use tranship_core::engine::ByteStream;
use tranship_core::ids::Digest;

use crate::document::media;
use crate::error::OciError;
use crate::held::Document;

/// Block of a tar, in bytes.
const BLOCK: u64 = 512;

/// Opens the plain tar of a layer when its turn comes.
pub(crate) type Open =
    Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = Result<ByteStream, EngineError>> + Send>> + Send>;

/// A layer of an archive.
pub(crate) struct Layer {
    pub(crate) diff_id: Digest,
    /// Bytes of its plain tar.
    pub(crate) length: u64,
    pub(crate) open: Open,
}

/// A blob of an archive, as it is.
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    /// Its length in bytes.
    pub(crate) length: u64,
    pub(crate) open: Open,
}

enum Part {
    Bytes(Bytes),
    Layer(Open),
}

/// The entries of an archive.
#[derive(Default)]
struct Parts(Vec<Part>);

impl Parts {
    fn file(&mut self, name: &str, length: u64, open: Open) -> Result<(), OciError> {
        self.0.push(Part::Bytes(entry(name, length)?));
        self.0.push(Part::Layer(open));
        self.0.push(Part::Bytes(padding(length)));
        Ok(())
    }

    fn document(&mut self, name: &str, bytes: Bytes) -> Result<(), OciError> {
        let length = bytes.len() as u64;
        self.0.push(Part::Bytes(entry(name, length)?));
        self.0.push(Part::Bytes(bytes));
        self.0.push(Part::Bytes(padding(length)));
        Ok(())
    }

    fn end(mut self) -> ByteStream {
        self.0
            .push(Part::Bytes(Bytes::from_static(&[0; 2 * BLOCK as usize])));
        let pieces = stream::iter(self.0)
            .then(|part| async move {
                match part {
                    Part::Bytes(bytes) => one(Ok(bytes)),
                    Part::Layer(open) => match open().await {
                        Ok(stream) => stream,
                        Err(error) => one(Err(error)),
                    },
                }
            })
            .flatten();
        Box::pin(pieces)
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The OCI layout of the image of a manifest or an index: with these documents, and these blobs of what they name. Who takes it in has to
/// hold the others. It has no tag, and the index comes last: an archive that breaks off is none.
pub(crate) fn layout(
    image: &Document,
    parts: Vec<Document>,
    blobs: Vec<Blob>,
) -> Result<ByteStream, OciError> {
    let index = json!({
        "schemaVersion": 2,
        "mediaType": media::INDEX,
        "manifests": [{ "mediaType": image.media_type, "digest": image.digest, "size": image.bytes.len() }],
    });
    let mut entries = Parts::default();
    entries.document(
        "oci-layout",
        Bytes::from_static(br#"{"imageLayoutVersion":"1.0.0"}"#),
    )?;
    let mut seen = BTreeSet::new();
    for blob in blobs {
        if seen.insert(blob.digest.clone()) {
            entries.file(&blob_name(&blob.digest), blob.length, blob.open)?;
        }
    }
    for document in parts.iter().chain([image]) {
        if seen.insert(document.digest.clone()) {
            entries.document(&blob_name(&document.digest), document.bytes.clone())?;
        }
    }
    entries.document("index.json", index.to_string().into())?;
    Ok(entries.end())
}

/// The image as an archive in `docker save` form (names as Docker 25 gives them) of which only these layers are there. The manifest
/// names all of `diff_ids` and comes last: an archive that breaks off is none.
pub(crate) fn plain(
    id: &Digest,
    config: Bytes,
    diff_ids: &[Digest],
    layers: Vec<Layer>,
) -> Result<ByteStream, OciError> {
    let names: Vec<String> = diff_ids.iter().map(blob_name).collect();
    let manifest = json!([{ "Config": blob_name(id), "RepoTags": null, "Layers": names }]).to_string();
    let mut entries = Parts::default();
    let mut seen = BTreeSet::new();
    for layer in layers {
        if seen.insert(layer.diff_id.clone()) {
            entries.file(&blob_name(&layer.diff_id), layer.length, layer.open)?;
        }
    }
    entries.document(&blob_name(id), config)?;
    entries.document("manifest.json", manifest.into())?;
    Ok(entries.end())
}

fn one(item: Result<Bytes, EngineError>) -> ByteStream {
    Box::pin(stream::once(async move { item }))
}

fn entry(name: &str, length: u64) -> Result<Bytes, OciError> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).map_err(|source| OciError::Spool {
        action: "name an entry of an archive",
        source,
    })?;
    header.set_size(length);
    header.set_mode(0o444);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok(Bytes::copy_from_slice(header.as_bytes()))
}

fn padding(length: u64) -> Bytes {
    static ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];
    let padding = length.next_multiple_of(BLOCK) - length;
    // Less than a block.
    Bytes::from_static(&ZEROS).slice(..usize::try_from(padding).unwrap_or_default())
}
