use std::io::Read as _;

use serde_json::Value;
use tranship_testkit::memory;

use super::*;
use crate::checkpoints::ArchiveMemory;
use crate::checkpoints::archive::{Document, Incoming, Versions};
use crate::checkpoints::images;
use crate::checkpoints::seal::NodeKey;
use crate::checkpoints::store::tests::about;

/// Bytes in which nothing repeats soon.
fn noise(length: u32) -> Vec<u8> {
    (0..length)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

struct Room {
    root: tempfile::TempDir,
    bytes: u64,
}

impl Room {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let dump = root.path().join("dump");
        std::fs::create_dir(&dump).unwrap();
        std::fs::write(dump.join("core-1.img"), b"core").unwrap();
        // More than is written at a time, of what shrinks and of what does not.
        let pages = [vec![0; 2_500_000], noise(1_500_000)].concat();
        std::fs::write(dump.join("pages-1.img"), &pages).unwrap();
        let room = Self {
            root,
            bytes: 4 + pages.len() as u64,
        };
        let sealed = room.root.path().join("sealed");
        images::pack(&dump, &sealed, &room.key(), b"about").unwrap();
        room
    }

    fn key(&self) -> NodeKey {
        NodeKey::open(&self.root.path().join("key"), true).unwrap()
    }

    fn about(&self) -> About {
        let mut about = about("one");
        about.image_bytes = self.bytes;
        about
    }

    fn archive(&self, compress: bool) -> Export {
        Export {
            file: self.root.path().join("sealed"),
            context: b"about".to_vec(),
            about: self.about(),
            key: self.key(),
            exported_by: Versions {
                tranship: "1".into(),
                engine: "2".into(),
                criu: "3".into(),
            },
            documents: vec![Document {
                name: "config.dump",
                content: b"{}".to_vec(),
            }],
            memory: ArchiveMemory::Unencrypted,
            compress,
        }
    }

    fn export(&self, compress: bool) -> ImageExport {
        let spec = memory::bare_spec("Web", &memory::image("app:1", 2));
        ImageExport {
            archive: self.archive(compress),
            facts: ImageFacts::new(&spec, &self.about(), &memory::facts(), "4.2.1"),
        }
    }

    /// The files of the image, by name and in their order.
    fn image(&self, compress: bool) -> Vec<(String, Vec<u8>)> {
        let mut written = Vec::new();
        self.export(compress).write(&mut written).unwrap();
        let mut archive = tranship_archive::reader::Reader::new(
            written.as_slice(),
            tranship_archive::reader::ReadOptions::strict(),
        );
        let mut files = Vec::new();
        while let Some(entry) = archive.next_entry().unwrap() {
            let mut content = Vec::new();
            archive.data().read_to_end(&mut content).unwrap();
            assert_eq!(content.len() as u64, entry.size);
            files.push((String::from_utf8(entry.path.clone()).unwrap(), content));
        }
        files
    }
}

fn json_of<'a>(files: &'a [(String, Vec<u8>)], name: &str) -> (&'a [u8], Value) {
    let (_, content) = files.iter().find(|(found, _)| found == name).unwrap();
    (content, serde_json::from_slice(content).unwrap())
}

/// What a descriptor names, whose digest and size have to be right.
fn named<'a>(files: &'a [(String, Vec<u8>)], descriptor: &Value) -> &'a [u8] {
    let digest = Digest::new(descriptor["digest"].as_str().unwrap()).unwrap();
    let name = blob(&digest);
    let (_, content) = files.iter().find(|(found, _)| *found == name).unwrap();
    assert_eq!(Digest::of(content), digest, "{name}");
    assert_eq!(descriptor["size"], content.len(), "{name}");
    content
}

#[test]
fn every_part_of_an_image_is_what_the_one_before_says() {
    let room = Room::new();
    for compress in [false, true] {
        let files = room.image(compress);
        assert_eq!(files.first().unwrap().0, "oci-layout");
        assert_eq!(files.last().unwrap().0, "index.json", "what breaks off is none");
        assert_eq!(files.len(), 5);
        assert_eq!(json_of(&files, "oci-layout").1["imageLayoutVersion"], "1.0.0");
        let (_, index) = json_of(&files, "index.json");
        let manifests = index["manifests"].as_array().unwrap();
        assert_eq!(manifests.len(), 1);
        assert_eq!(
            manifests[0]["annotations"]["org.opencontainers.image.ref.name"],
            "checkpoint/web:one"
        );
        assert_eq!(manifests[0]["mediaType"], media::MANIFEST);
        let manifest: Value = serde_json::from_slice(named(&files, &manifests[0])).unwrap();
        let config: Value = serde_json::from_slice(named(&files, &manifest["config"])).unwrap();
        let layers = manifest["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 1);
        let layer = named(&files, &layers[0]);

        let mut plain = Vec::new();
        let kind = if compress {
            plain = zstd_plain(layer);
            ZSTD_LAYER
        } else {
            plain.extend_from_slice(layer);
            media::LAYER
        };
        assert_eq!(layers[0]["mediaType"], kind);
        assert_eq!(
            config["rootfs"]["diff_ids"],
            serde_json::json!([Digest::of(&plain)])
        );
        assert_eq!(config["architecture"], "amd64");
        // It is the archive, byte for byte, and comes back as such.
        let mut archive = Vec::new();
        room.archive(compress).write(&mut archive).unwrap();
        assert!(archive == layer, "compressed: {compress}");
        let incoming = Incoming::open(layer, &room.key()).unwrap();
        assert_eq!(incoming.description.checkpoint, room.about());
    }
}

fn zstd_plain(layer: &[u8]) -> Vec<u8> {
    let options = tranship_archive::compression::DecodeOptions::default();
    let mut decoder = tranship_archive::compression::Decoder::new(layer, options).unwrap();
    let mut plain = Vec::new();
    decoder.read_to_end(&mut plain).unwrap();
    plain
}

#[test]
fn what_it_is_of_is_said_to_podman_cri_o_and_all_others() {
    let room = Room::new();
    let files = room.image(true);
    let (_, index) = json_of(&files, "index.json");
    let manifest: Value = serde_json::from_slice(named(&files, &index["manifests"][0])).unwrap();
    let says = |key: &str| manifest["annotations"][key].as_str().unwrap_or_default();
    for family in ["org.criu.checkpoint", "io.podman.annotations.checkpoint"] {
        assert_eq!(says(&format!("{family}.runtime.name")), "runc");
        assert_eq!(says(&format!("{family}.criu.version")), "40201");
        assert_eq!(says(&format!("{family}.rootfsImageName")), "app:1");
        let id = says(&format!("{family}.rootfsImageID"));
        assert!(id.len() == 64, "{id}");
    }
    for key in [
        "org.criu.checkpoint.container.name",
        "io.podman.annotations.checkpoint.name",
        "io.kubernetes.cri-o.annotations.checkpoint.name",
    ] {
        assert_eq!(says(key), "Web", "{key}");
    }
    let all = manifest["annotations"].as_object().unwrap();
    assert!(
        all.values()
            .all(|value| value.as_str().is_some_and(|text| !text.is_empty()))
    );
}

#[test]
fn only_what_can_be_a_name_is_one() {
    assert_eq!(reference("Web", "one").as_deref(), Some("checkpoint/web:one"));
    assert_eq!(reference("a._b", "one"), None);
    for (version, number) in [("4.2.1", "40201"), ("4.2", "40200"), ("", "")] {
        assert_eq!(criu_number(version), number);
    }
}

/// Is asked whether it still takes something, and does so often, and then no more.
#[derive(Default)]
struct Leaves {
    after: usize,
    asked: usize,
    written: usize,
}

impl Write for Leaves {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.written += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.asked += 1;
        match self.asked > self.after {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => Ok(()),
        }
    }
}

#[test]
fn whoever_left_before_the_first_byte_is_not_written_for() {
    let room = Room::new();
    let mut all = Leaves {
        after: usize::MAX,
        ..Leaves::default()
    };
    room.archive(true).described(&mut all).unwrap();
    // While the images are described, and while the layer is measured.
    for after in [0, all.asked] {
        for compress in [true, false] {
            let mut leaves = Leaves {
                after,
                ..Leaves::default()
            };
            let error = room.export(compress).write(&mut leaves).unwrap_err();
            assert!(matches!(error, CheckpointError::Stream(_)), "{error}");
            assert_eq!((leaves.asked, leaves.written), (after + 1, 0));
        }
    }
}
