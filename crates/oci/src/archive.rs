//! Images as archives in `docker save` form, for `docker load`.

use std::collections::BTreeSet;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde_json::json;
use tranship_core::EngineError;
use tranship_core::engine::ByteStream;
use tranship_core::ids::Digest;

use crate::error::OciError;

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

enum Part {
    Bytes(Bytes),
    Layer(Open),
}

/// The image as an archive in `docker save` form (names as Docker 25 gives them) of which only these layers are there. The manifest
/// names all of `diff_ids` and comes last: an archive that breaks off is none.
pub(crate) fn archive(
    id: &Digest,
    config: Bytes,
    diff_ids: &[Digest],
    layers: Vec<Layer>,
) -> Result<ByteStream, OciError> {
    let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let names: Vec<String> = diff_ids.iter().map(blob).collect();
    let manifest = json!([{ "Config": blob(id), "RepoTags": null, "Layers": names }]).to_string();
    let mut parts = Vec::new();
    let mut seen = BTreeSet::new();
    for layer in layers {
        if !seen.insert(layer.diff_id.clone()) {
            continue;
        }
        parts.push(Part::Bytes(entry(&blob(&layer.diff_id), layer.length)?));
        parts.push(Part::Layer(layer.open));
        parts.push(Part::Bytes(padding(layer.length)));
    }
    for (name, bytes) in [(blob(id), config), ("manifest.json".to_owned(), manifest.into())] {
        let length = bytes.len() as u64;
        parts.push(Part::Bytes(entry(&name, length)?));
        parts.push(Part::Bytes(bytes));
        parts.push(Part::Bytes(padding(length)));
    }
    parts.push(Part::Bytes(Bytes::from_static(&[0; 2 * BLOCK as usize])));
    let pieces = stream::iter(parts)
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
    Ok(Box::pin(pieces))
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
