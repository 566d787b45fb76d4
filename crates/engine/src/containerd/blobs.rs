//! What of images is here, for who gives it out as it is: every blob that they name, of whichever platform.

use std::collections::{BTreeMap, BTreeSet};

use tranship_core::EngineError;
use tranship_core::ids::Digest;
use tranship_core::image::ImageBlob;

use super::content::{Content, DEEPEST, Document, MOST_BLOBS, media_type, parse};

impl Content {
    /// The blobs that are here of these images, each once. What cannot be read is left out, and does not hide the rest. Blocks.
    pub(crate) fn named_by(&self, images: &[Digest]) -> Vec<ImageBlob> {
        let mut all = BTreeMap::new();
        for image in images {
            let mut named = Named {
                content: self,
                seen: BTreeSet::new(),
                found: &mut all,
            };
            named.visit(image, 0);
        }
        all.into_values().collect()
    }
}

struct Named<'a> {
    content: &'a Content,
    /// Documents of this image, and other blobs; as many as one image may have.
    seen: BTreeSet<(Digest, bool)>,
    found: &'a mut BTreeMap<Digest, ImageBlob>,
}

impl Named<'_> {
    /// Takes in a document and what it names.
    fn visit(&mut self, digest: &Digest, depth: usize) {
        if depth > DEEPEST || !self.is_new(digest, true) {
            return;
        }
        let read = self.content.document(digest);
        let read = read.and_then(|read| {
            let parsed = read.map(|(blob, value)| {
                Ok::<_, EngineError>((blob, media_type(&value), parse(digest, &value)?))
            });
            parsed.transpose()
        });
        let (blob, kind, document) = match read {
            Ok(Some(read)) => read,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%digest, %error, "a part of an image is no manifest");
                return self.keep(digest);
            }
        };
        let found = ImageBlob {
            digest: blob.digest,
            size: blob.size,
            document: Some(kind),
        };
        self.found.insert(digest.clone(), found);
        match document {
            Document::Index(children) => {
                for (child, is_document) in children {
                    match is_document {
                        true => self.visit(&child, depth + 1),
                        false => self.keep(&child),
                    }
                }
            }
            Document::Manifest { config, layers } => {
                for named in layers.iter().chain([&config]) {
                    self.keep(named);
                }
            }
        }
    }

    /// Takes in what is no manifest, or is not to be read as one.
    fn keep(&mut self, digest: &Digest) {
        if !self.is_new(digest, false) || self.found.contains_key(digest) {
            return;
        }
        match self.content.blob(digest) {
            Ok(Some(blob)) => {
                let found = ImageBlob {
                    digest: blob.digest,
                    size: blob.size,
                    document: None,
                };
                self.found.insert(digest.clone(), found);
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%digest, %error, "a blob of an image is left out"),
        }
    }

    fn is_new(&mut self, digest: &Digest, is_document: bool) -> bool {
        self.seen.len() < MOST_BLOBS && self.seen.insert((digest.clone(), is_document))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::content::tests::Made;
    use super::*;

    fn digests(blobs: &[ImageBlob]) -> BTreeSet<Digest> {
        blobs.iter().map(|blob| blob.digest.clone()).collect()
    }

    #[test]
    fn everything_that_is_here_of_an_image_is_found_once() {
        let made = Made::new();
        let other = made.manifest("arm64", &[b"x", b"same"]);
        let image = made.manifest("amd64", &[b"a", b"same"]);
        let note = json!({ "digest": made.put(b"note"), "mediaType": "text/plain" });
        let text = json!({ "manifests": [{ "digest": image.id }, { "digest": other.id }, { "digest": Digest::of(b"elsewhere") },
            { "digest": "sha512:00" }, { "digest": image.id }, note] });
        let index = made.put(text.to_string().as_bytes());
        made.put(b"nobody's");
        let found = made
            .content
            .named_by(&[index.clone(), image.id.clone(), Digest::of(b"nowhere")]);
        // Index, two manifests and configurations, three layers and a note.
        assert_eq!(found.len(), 9);
        assert_eq!(digests(&found).len(), 9);
        let of = |digest: &Digest| found.iter().find(|blob| blob.digest == *digest).unwrap();
        assert_eq!(
            of(&index).document.as_deref(),
            Some("application/vnd.oci.image.index.v1+json")
        );
        assert_eq!(
            of(&other.id).document.as_deref(),
            Some("application/vnd.oci.image.manifest.v1+json")
        );
        for blob in [&b"same"[..], b"note"] {
            let blob_found = of(&Digest::of(blob));
            assert_eq!((&blob_found.document, blob_found.size), (&None, 4));
        }
        assert!(!digests(&found).contains(&Digest::of(b"nobody's")));
        // What is missing of an image does not hide the rest.
        std::fs::remove_file(made.path(&Digest::of(b"a"))).unwrap();
        assert_eq!(made.content.named_by(&[index]).len(), 8);
        assert!(made.content.named_by(&[]).is_empty());
    }

    #[test]
    fn what_is_odd_is_no_manifest_and_leads_nowhere() {
        let made = Made::new();
        let image = made.manifest("amd64", &[b"a"]);
        let damaged = made.manifest("arm64", &[b"b"]);
        std::fs::write(made.path(&damaged.id), b"{\"manifests\":[]}").unwrap();
        let linked = Digest::of(b"linked");
        std::os::unix::fs::symlink("/etc/hostname", made.path(&linked)).unwrap();
        // A layer that could be read as a manifest is a layer, until it is named as a manifest as well.
        let hidden = made.manifest("amd64", &[b"hidden"]);
        let text = json!({ "config": { "digest": made.put(b"{}") }, "layers": [{ "digest": hidden.id }, { "digest": linked }] });
        let outer = made.put(text.to_string().as_bytes());
        let index = made.index(&[&image.id, &damaged.id, &outer]);
        let found = made.content.named_by(std::slice::from_ref(&index));
        let names = digests(&found);
        assert!(!names.contains(&linked) && !names.contains(&Digest::of(b"hidden")));
        let of = |found: &[ImageBlob], digest: &Digest| {
            let found = found.iter().find(|blob| blob.digest == *digest);
            found.unwrap().document.clone()
        };
        assert_eq!(of(&found, &hidden.id), None);
        assert!(of(&found, &image.id).is_some());
        let both = made.index(&[&index, &hidden.id]);
        let found = made.content.named_by(&[both]);
        assert!(of(&found, &hidden.id).is_some());
        assert!(digests(&found).contains(&Digest::of(b"hidden")));
        // Too deep, and too many.
        let mut deep = image.id.clone();
        for _ in 0..=DEEPEST {
            deep = made.index(&[&deep]);
        }
        assert!(!digests(&made.content.named_by(&[deep])).contains(&image.id));
        let many: Vec<Digest> = (0..=MOST_BLOBS)
            .map(|n| made.put(n.to_string().as_bytes()))
            .collect();
        let many = made.index(&many.iter().collect::<Vec<_>>());
        assert!(made.content.named_by(&[many]).len() <= MOST_BLOBS);
    }
}
