//! Manifests and indexes: ours, which are made of what the engine holds, and those that are pushed, which are read strictly.
//!
//! Formats: OCI image specification 1.1 (`manifest.md`, `image-index.md`), and Docker's "Image Manifest Version 2, Schema 2".

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tranship_core::ids::Digest;

use crate::error::OciError;
use crate::keys;

/// Largest manifest or index that is taken in, in bytes, as the distribution specification advises.
pub const LARGEST: usize = 4 << 20;

/// Largest configuration of an image that is taken in, in bytes.
pub const LARGEST_CONFIG: u64 = 8 << 20;

/// Most layers of an image. Docker itself stops far below.
const MOST_LAYERS: usize = 512;

/// Most manifests of an index.
const MOST_MANIFESTS: usize = 512;

/// Largest sum of the lengths of an index's manifests, in bytes: they are read before the index is taken in.
const LARGEST_INDEX: u64 = 32 << 20;

/// Media types.
pub mod media {
    /// OCI image manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image index.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI image configuration.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// Plain OCI layer.
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// Docker's manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's list of manifests.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker's configuration.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// Docker's plain layer.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    /// What is said of an image, as a layer.
    pub const ATTESTATION: &str = "application/vnd.in-toto+json";
    /// What is not known.
    pub const BYTES: &str = "application/octet-stream";
}

/// In which family of formats a document is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// OCI.
    Oci,
    /// Docker schema 2.
    Docker,
}

impl Form {
    /// The form that fits `Accept` headers: OCI wherever it is taken, or where nothing that we know is.
    #[must_use]
    pub fn accepted<'a>(headers: impl Iterator<Item = &'a str>) -> Self {
        let mut docker = false;
        for part in headers.flat_map(|header| header.split(',')) {
            match part.split(';').next().unwrap_or_default().trim() {
                media::MANIFEST => return Self::Oci,
                media::DOCKER_MANIFEST => docker = true,
                _ => {}
            }
        }
        if docker { Self::Docker } else { Self::Oci }
    }

    /// Media type of a manifest.
    #[must_use]
    pub fn manifest(self) -> &'static str {
        match self {
            Self::Oci => media::MANIFEST,
            Self::Docker => media::DOCKER_MANIFEST,
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => media::CONFIG,
            Self::Docker => media::DOCKER_CONFIG,
        }
    }

    fn layer(self) -> &'static str {
        match self {
            Self::Oci => media::LAYER,
            Self::Docker => media::DOCKER_LAYER,
        }
    }
}

/// Whether a request that accepts this is for a configuration. Where blobs are kept, it looks like any other.
#[must_use]
pub fn is_for_config<'a>(mut headers: impl Iterator<Item = &'a str>) -> bool {
    headers.any(|header| [media::CONFIG, media::DOCKER_CONFIG].contains(&header.trim()))
}

/// Something that a manifest names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Places elsewhere to have it from. Never followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub urls: Option<Vec<String>>,
    /// The machine that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            urls: None,
            platform: None,
        }
    }
}

/// The machine that an image is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// In Go's names.
    pub architecture: String,
    /// In Go's names.
    pub os: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Ours<'a> {
    schema_version: u8,
    media_type: &'a str,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// The manifest of an image whose configuration has this digest and length, with plain layers. The same for the same image at
/// every node and in every version: its digest may be written down.
///
/// # Errors
/// Never for documents like these; the writer of JSON could.
pub fn write(form: Form, config: (&Digest, u64), layers: &[(Digest, u64)]) -> Result<Bytes, OciError> {
    let ours = Ours {
        schema_version: 2,
        media_type: form.manifest(),
        config: Descriptor::new(form.config(), config.0.clone(), config.1),
        layers: layers
            .iter()
            .map(|(digest, size)| Descriptor::new(form.layer(), digest.clone(), *size))
            .collect(),
    };
    serde_json::to_vec(&ours)
        .map(Bytes::from)
        .map_err(|error| invalid(format!("the manifest cannot be written: {error}")))
}

/// A document that was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    /// The manifest of one image.
    Manifest {
        /// Its configuration.
        config: Descriptor,
        /// Its layers, lowest first.
        layers: Vec<Descriptor>,
    },
    /// What is said of an image that an index names beside it: no image itself.
    Attestation {
        /// A configuration that is nobody's.
        config: Descriptor,
        /// What is said.
        layers: Vec<Descriptor>,
    },
    /// An index.
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Theirs {
    schema_version: u8,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde_json::Value>,
}

fn invalid(message: impl Into<String>) -> OciError {
    OciError::Manifest {
        message: message.into(),
    }
}

/// Reads a manifest or an index, and returns it with its media type.
///
/// # Errors
/// [`OciError::Manifest`] where the content type and the document disagree, where it could be read as both kinds (CVE-2021-41190) or
/// otherwise by those who do not look at the case of names, and where it is of a kind that an engine has no use for.
pub fn read(content_type: Option<&str>, bytes: &[u8]) -> Result<(String, Pushed), OciError> {
    let theirs: Theirs =
        serde_json::from_slice(bytes).map_err(|error| invalid(format!("not a manifest: {error}")))?;
    keys::check(bytes, &keys::DOCUMENT).map_err(|error| invalid(error.to_string()))?;
    if theirs.schema_version != 2 {
        return Err(invalid("only schema version 2 is known"));
    }
    let content_type = content_type.map(|text| text.split(';').next().unwrap_or_default().trim());
    let media_type = match (content_type, theirs.media_type.as_deref()) {
        (Some(header), Some(inside)) if header != inside => {
            return Err(invalid(format!(
                "it is sent as {header:?} but calls itself {inside:?}"
            )));
        }
        (Some(header), _) => header.to_owned(),
        (None, Some(inside)) => inside.to_owned(),
        (None, None) => return Err(invalid("nothing says what kind of manifest it is")),
    };
    let pushed = match media_type.as_str() {
        media::MANIFEST | media::DOCKER_MANIFEST => {
            if theirs.manifests.is_some() || theirs.fs_layers.is_some() {
                return Err(invalid("it could be read as a manifest of another kind as well"));
            }
            let (Some(config), Some(layers)) = (theirs.config, theirs.layers) else {
                return Err(invalid("a manifest has a configuration and layers"));
            };
            check_manifest(&config, &layers)?;
            match layers.iter().any(is_attestation) {
                true => Pushed::Attestation { config, layers },
                false => Pushed::Manifest { config, layers },
            }
        }
        media::INDEX | media::DOCKER_LIST => {
            if theirs.config.is_some() || theirs.layers.is_some() || theirs.fs_layers.is_some() {
                return Err(invalid("it could be read as a manifest of another kind as well"));
            }
            let manifests = theirs
                .manifests
                .ok_or_else(|| invalid("an index has manifests"))?;
            check_index(&manifests)?;
            Pushed::Index(manifests)
        }
        other => {
            return Err(invalid(format!(
                "manifests of the kind {other:?} are not taken in"
            )));
        }
    };
    Ok((media_type, pushed))
}

fn is_attestation(layer: &Descriptor) -> bool {
    layer.media_type == media::ATTESTATION
}

/// Whether layers of this kind are packed; `None` for those that containerd, which goes by the kind, does not unpack.
pub(crate) fn is_packed(media_type: &str) -> Option<bool> {
    let behind = |plain| media_type.strip_prefix(plain);
    match (behind(media::LAYER), behind(media::DOCKER_LAYER)) {
        (Some(""), _) | (_, Some("")) => Some(false),
        (Some("+gzip" | "+zstd"), _) | (_, Some(".gzip")) => Some(true),
        _ => None,
    }
}

fn check_manifest(config: &Descriptor, layers: &[Descriptor]) -> Result<(), OciError> {
    if ![media::CONFIG, media::DOCKER_CONFIG].contains(&config.media_type.as_str()) {
        return Err(invalid(format!(
            "its configuration is of the kind {:?}: only images are taken in",
            config.media_type
        )));
    }
    if config.size > LARGEST_CONFIG {
        return Err(OciError::TooLarge {
            what: "the configuration",
            limit: LARGEST_CONFIG,
        });
    }
    if layers.len() > MOST_LAYERS {
        return Err(invalid(format!("it has more than {MOST_LAYERS} layers")));
    }
    let mut sizes = BTreeMap::new();
    let attestations = !layers.is_empty() && layers.iter().all(is_attestation);
    for layer in layers {
        let known = attestations
            || [media::LAYER, media::DOCKER_LAYER].iter().any(|plain| {
                layer
                    .media_type
                    .strip_prefix(plain)
                    .is_some_and(|rest| ["", "+gzip", "+zstd", ".gzip", ".zstd"].contains(&rest))
            });
        if !known {
            return Err(invalid(format!(
                "layers of the kind {:?} are not taken in",
                layer.media_type
            )));
        }
        if layer.urls.as_ref().is_some_and(|urls| !urls.is_empty()) {
            return Err(invalid("layers that are to be had elsewhere are not taken in"));
        }
        if *sizes.entry(&layer.digest).or_insert(layer.size) != layer.size {
            return Err(invalid(format!("it gives {} two lengths", layer.digest)));
        }
    }
    Ok(())
}

fn check_index(manifests: &[Descriptor]) -> Result<(), OciError> {
    if manifests.len() > MOST_MANIFESTS {
        return Err(invalid(format!("it has more than {MOST_MANIFESTS} manifests")));
    }
    let sizes = manifests.iter().map(|manifest| manifest.size);
    if sizes.fold(0, u64::saturating_add) > LARGEST_INDEX {
        return Err(OciError::TooLarge {
            what: "what the index names",
            limit: LARGEST_INDEX,
        });
    }
    for manifest in manifests {
        if ![media::MANIFEST, media::DOCKER_MANIFEST].contains(&manifest.media_type.as_str()) {
            return Err(invalid(format!(
                "an index of {:?} is not taken in: only manifests may be in it",
                manifest.media_type
            )));
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

#[derive(Deserialize)]
struct RootFs {
    r#type: String,
    diff_ids: Option<Vec<Digest>>,
}

/// What the configuration of an image says of its layers and its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// Digests of the plain layers, lowest first.
    pub diff_ids: Vec<Digest>,
    /// The machine.
    pub platform: Platform,
}

/// Reads the configuration of an image.
///
/// # Errors
/// [`OciError::Manifest`].
pub fn read_config(bytes: &[u8]) -> Result<ImageConfig, OciError> {
    let config: Config = serde_json::from_slice(bytes)
        .map_err(|error| invalid(format!("not the configuration of an image: {error}")))?;
    keys::check(bytes, &keys::CONFIG).map_err(|error| invalid(format!("in the configuration, {error}")))?;
    if config.rootfs.r#type != "layers" {
        return Err(invalid(
            "the configuration has a root file system of an unknown kind",
        ));
    }
    Ok(ImageConfig {
        diff_ids: config.rootfs.diff_ids.unwrap_or_default(),
        platform: Platform {
            architecture: config.architecture,
            os: config.os,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(extra: &str) -> String {
        let digest = Digest::of(b"c");
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"{}","digest":"{digest}","size":1}},
            "layers":[{{"mediaType":"{}+gzip","digest":"{digest}","size":1}}]{extra}}}"#,
            media::MANIFEST,
            media::CONFIG,
            media::LAYER
        )
    }

    #[test]
    fn ours_is_read_again_and_never_changes() {
        let (config, layer) = (Digest::of(b"c"), Digest::of(b"l"));
        let bytes = write(Form::Docker, (&config, 1), &[(layer.clone(), 2)]).unwrap();
        assert_eq!(
            std::str::from_utf8(&bytes).unwrap(),
            format!(
                r#"{{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"{config}","size":1}},"layers":[{{"mediaType":"application/vnd.docker.image.rootfs.diff.tar","digest":"{layer}","size":2}}]}}"#
            )
        );
        for form in [Form::Oci, Form::Docker] {
            let bytes = write(form, (&config, 1), &[(layer.clone(), 2)]).unwrap();
            let (kind, read) = read(Some(form.manifest()), &bytes).unwrap();
            assert_eq!(kind, form.manifest());
            assert!(matches!(read, Pushed::Manifest { layers, .. } if layers[0].digest == layer));
        }
    }

    #[test]
    fn documents_of_two_minds_are_refused() {
        assert!(read(Some(media::MANIFEST), manifest("").as_bytes()).is_ok());
        assert!(read(None, manifest("").as_bytes()).is_ok());
        let bad = [
            (Some(media::INDEX), manifest("")),
            (Some(media::DOCKER_MANIFEST), manifest("")),
            (Some("text/plain"), manifest("")),
            (Some(media::MANIFEST), manifest(r#","manifests":[]"#)),
            (Some(media::MANIFEST), manifest(r#","fsLayers":[]"#)),
            (Some(media::MANIFEST), manifest(r#","layers":[]"#)),
            (Some(media::MANIFEST), manifest(r#","Layers":[]"#)),
            (Some(media::MANIFEST), manifest("").replace(":2,", ":1,")),
            (Some(media::MANIFEST), manifest("").replace("sha256", "md5")),
            (Some(media::MANIFEST), manifest("").replace("+gzip", "+lzma")),
            (
                Some(media::MANIFEST),
                manifest("").replace("layer.v1", "layer.nondistributable.v1"),
            ),
            (
                Some(media::MANIFEST),
                manifest("").replace(
                    "}]",
                    &format!(
                        "}},{{\"mediaType\":\"{}\",\"digest\":\"{}\",\"size\":1}}]",
                        media::ATTESTATION,
                        Digest::of(b"a")
                    ),
                ),
            ),
            (
                Some(media::MANIFEST),
                manifest("").replace("\"size\":1", "\"size\":-1"),
            ),
            (
                Some(media::MANIFEST),
                manifest("").replace("\"size\":1}]", "\"size\":1,\"urls\":[\"http://x\"]}]"),
            ),
            (Some(media::MANIFEST), "[".repeat(100_000)),
        ];
        for (kind, text) in bad {
            assert!(read(kind, text.as_bytes()).is_err(), "{text:.300}");
        }
    }

    #[test]
    fn an_index_holds_manifests_only() {
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{}","size":1}}]}}"#,
            media::MANIFEST,
            Digest::of(b"m")
        );
        assert!(read(Some(media::INDEX), text.as_bytes()).is_ok());
        let nested = text.replace(media::MANIFEST, media::INDEX);
        assert!(read(Some(media::INDEX), nested.as_bytes()).is_err());
        for (size, fits) in [
            (LARGEST_INDEX, true),
            (LARGEST_INDEX + 1, false),
            (u64::MAX, false),
        ] {
            let large = text.replace("\"size\":1", &format!("\"size\":{size}"));
            assert_eq!(read(Some(media::INDEX), large.as_bytes()).is_ok(), fits);
        }
    }

    #[test]
    fn kinds_of_layers_say_whether_they_are_packed() {
        for (plain, rest, packed) in [
            (media::LAYER, "", Some(false)),
            (media::LAYER, "+gzip", Some(true)),
            (media::LAYER, "+zstd", Some(true)),
            (media::LAYER, ".gzip", None),
            (media::LAYER, ".zstd", None),
            (media::DOCKER_LAYER, "", Some(false)),
            (media::DOCKER_LAYER, ".gzip", Some(true)),
            (media::DOCKER_LAYER, ".zstd", None),
            (media::DOCKER_LAYER, "+gzip", None),
            (media::DOCKER_LAYER, "+zstd", None),
        ] {
            assert_eq!(is_packed(&format!("{plain}{rest}")), packed, "{plain}{rest}");
        }
    }

    #[test]
    fn a_configuration_is_known_by_what_is_accepted() {
        let asked = |headers: &[&str]| is_for_config(headers.iter().copied());
        assert!(asked(&[media::CONFIG, "*/*"]));
        assert!(asked(&[media::DOCKER_CONFIG]));
        assert!(!asked(&["*/*"]) && !asked(&[]) && !asked(&[media::MANIFEST]));
    }

    #[test]
    fn the_form_follows_what_is_accepted() {
        let form = |headers: &[&str]| Form::accepted(headers.iter().copied());
        assert_eq!(form(&[]), Form::Oci);
        assert_eq!(form(&["*/*"]), Form::Oci);
        assert_eq!(form(&[media::DOCKER_MANIFEST]), Form::Docker);
        assert_eq!(
            form(&[
                media::DOCKER_MANIFEST,
                "a/b;q=1, application/vnd.oci.image.manifest.v1+json"
            ]),
            Form::Oci
        );
    }
}
