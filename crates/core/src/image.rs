//! Images as the engines and the transport see them.

use serde::{Deserialize, Serialize};

use crate::ids::Digest;

/// One image at one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// The engine's id of the image: with Docker's classic store the digest of the configuration, with containerd's that of a manifest
    /// or an index.
    pub id: Digest,
    /// All tags that point at it, as `repository:tag`.
    pub tags: Vec<String>,
    /// Digests under which registries know it, as `repository@sha256:…`.
    pub repo_digests: Vec<String>,
    /// Digests of the plain (uncompressed) layers, lowest first.
    pub layers: Vec<Digest>,
    /// Digests of the layers as the engine keeps them, lowest first: with containerd's store those of its blobs, which may be packed.
    /// Empty where they are kept by those of the plain layers, or where this cannot be known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_layers: Vec<Digest>,
    /// Size of all layers' files in bytes, as the engine counts it.
    pub size: u64,
    /// Processor architecture in Go's names, such as `amd64`.
    pub architecture: String,
    /// Operating system in Go's names, such as `linux`.
    pub os: String,
    /// Variant of the architecture, such as `v8`; mostly empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// The engine knows it, but not all of it is there: it may be named and tagged, and nothing can be made from it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub incomplete: bool,
}

impl ImageSpec {
    /// Whether this, at another engine, is what `wanted` describes, and all of it is there. One id may stand for the images of several
    /// platforms.
    #[must_use]
    pub fn is_whole(&self, wanted: &Self) -> bool {
        !self.incomplete && self.layers == wanted.layers && self.same_platform(wanted)
    }

    /// Whether both are for the same platform.
    #[must_use]
    pub fn same_platform(&self, other: &Self) -> bool {
        // Engines do not all tell the variant.
        let variants = [self.variant.as_str(), other.variant.as_str()];
        self.os == other.os
            && self.architecture == other.architecture
            && (variants.contains(&"") || variants[0] == variants[1])
    }

    /// The digests by which an engine with a store of the same kind knows these layers, lowest first.
    #[must_use]
    pub fn known_layers(&self) -> &[Digest] {
        if self.kept_layers.is_empty() {
            &self.layers
        } else {
            &self.kept_layers
        }
    }
}

/// A blob of an image, where the engine keeps images as blobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Its media type, if it is a manifest or an index.
    pub document: Option<String>,
}

/// What travels of an image, and what it weighs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageTransfer {
    /// The image.
    pub image: ImageSpec,
    /// The tag that the destination gives it, if the container was made from a tag.
    pub tag: Option<String>,
    /// How many of the lowest layers stay behind because the destination holds them.
    pub skip_layers: usize,
    /// Bytes of the archive that will be sent, where they can be known beforehand.
    pub bytes: Option<u64>,
}

/// The id of a stack of layers: the diff id of a single layer, else the digest of `CHAIN DIFF` (OCI image
/// specification, "Layer ChainID"). Engines look layers up by it.
///
/// Returns one chain id for each prefix of `layers`, lowest first.
#[must_use]
pub fn chain_ids(layers: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(layers.len());
    for layer in layers {
        let next = match chain.last() {
            None => layer.clone(),
            Some(below) => Digest::of(format!("{below} {layer}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

/// The longest run of lowest layers of `wanted` that one of the `held` stacks begins with.
#[must_use]
pub fn common_layers<'a>(wanted: &[Digest], held: impl IntoIterator<Item = &'a [Digest]>) -> usize {
    held.into_iter()
        .map(|stack| stack.iter().zip(wanted).take_while(|(a, b)| a == b).count())
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_follow_the_specification() {
        let layers = [Digest::of(b"a"), Digest::of(b"b")];
        let chain = chain_ids(&layers);
        assert_eq!(chain[0], layers[0]);
        assert_eq!(
            chain[1],
            Digest::of(format!("{} {}", layers[0], layers[1]).as_bytes())
        );
        assert!(chain_ids(&[]).is_empty());
    }

    #[test]
    fn only_a_shared_beginning_counts_as_held() {
        let l: Vec<Digest> = [b"a", b"b", b"c"].iter().map(|b| Digest::of(*b)).collect();
        assert_eq!(common_layers(&l, [&l[..2], &l[1..]]), 2);
        assert_eq!(
            common_layers(&l, [&l[1..]]),
            0,
            "a layer on another base is another layer"
        );
        assert_eq!(common_layers(&l, []), 0);
        assert_eq!(common_layers(&l[..1], [&l[..]]), 1);
    }
}
