use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;

use tranship_core::fault::Explain as _;

use super::*;
use crate::checkpoints::store::tests::about;

type Images = BTreeMap<String, Vec<u8>>;
type Entries<'a> = Vec<(Entry, &'a [u8])>;

/// A checkpoint on the disk, and a place for what comes back.
struct Room {
    root: tempfile::TempDir,
    images: Images,
}

/// Bytes in which nothing repeats soon.
fn noise(length: usize) -> Vec<u8> {
    (0..length as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

impl Room {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let images: Images = [
            ("core-1.img", b"core".to_vec()),
            ("empty.img", Vec::new()),
            ("pages-1.img", noise(700)),
        ]
        .map(|(name, content)| (name.to_owned(), content))
        .into();
        let dump = root.path().join("dump");
        std::fs::create_dir(&dump).unwrap();
        for (name, content) in &images {
            std::fs::write(dump.join(name), content).unwrap();
        }
        let room = Self { root, images };
        images::pack(&dump, &room.path("sealed"), &room.key(), b"about").unwrap();
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn key(&self) -> NodeKey {
        NodeKey::open(&self.path("key"), true).unwrap()
    }

    fn about(&self) -> About {
        let mut about = about("one");
        about.image_bytes = self.images.values().map(|image| image.len() as u64).sum();
        about
    }

    fn export(&self, memory: ArchiveMemory, compress: bool) -> Vec<u8> {
        let export = Export {
            file: self.path("sealed"),
            context: b"about".to_vec(),
            about: self.about(),
            key: self.key(),
            exported_by: versions(),
            documents: vec![
                Document {
                    name: "config.dump",
                    content: b"{}".to_vec(),
                },
                Document {
                    name: "spec.dump",
                    content: b"{ }".to_vec(),
                },
            ],
            memory,
            compress,
        };
        let mut archive = Vec::new();
        export.write(&mut archive).unwrap();
        archive
    }

    /// Takes an archive in, and gives what came.
    fn import(&self, archive: &[u8], key: &NodeKey) -> Result<Images, CheckpointError> {
        let file = self.path("again");
        let _ = std::fs::remove_file(&file);
        let incoming = Incoming::open(archive, key)?;
        assert_eq!(incoming.description.checkpoint, self.about());
        let about = incoming.description.checkpoint.clone();
        incoming.seal_into(&file, &self.key(), b"again")?;
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut found = Images::new();
        images::each(&file, &self.key(), b"again", about.image_bytes, |entry, data| {
            let mut content = Vec::new();
            data.read_to_end(&mut content).unwrap();
            let name = String::from_utf8(entry.path.clone()).unwrap();
            found.insert(name, content);
            Ok(())
        })?;
        Ok(found)
    }

    /// What it is refused with; nothing is anywhere but in the one file that its caller removes.
    fn refused(&self, archive: &[u8]) -> Option<&'static str> {
        let refused = self.import(archive, &self.key()).err().map(|error| error.code());
        for entry in std::fs::read_dir(self.root.path()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let known = ["dump", "sealed", "key", "again", "key.new"];
            assert!(known.contains(&name.as_str()), "{name}");
        }
        refused
    }

    fn description(&self) -> Description {
        let listed = |name: &str, content: &[u8]| Listed {
            name: name.to_owned(),
            bytes: content.len() as u64,
            digest: Digest::of(content),
        };
        Description {
            version: VERSION,
            memory: ArchiveMemory::Unencrypted,
            exported_by: versions(),
            checkpoint: self.about(),
            documents: Vec::new(),
            images: self
                .images
                .iter()
                .map(|(name, image)| listed(name, image))
                .collect(),
        }
    }

    /// An archive with a description that this node proves, and other entries than it says.
    fn forged(&self, description: &Description, entries: &[(Entry, &[u8])]) -> Vec<u8> {
        let text = serde_json::to_vec(description).unwrap();
        let proof = self.key().prove(&text).unwrap();
        let mut all = vec![file(DESCRIPTION, &text), file(PROOF_OF_IT, &proof)];
        all.extend(entries.iter().map(|(entry, content)| (entry.clone(), *content)));
        tar(&all)
    }
}

fn versions() -> Versions {
    Versions {
        tranship: "1".into(),
        engine: "2".into(),
        criu: "3".into(),
    }
}

fn file<'a>(name: &str, content: &'a [u8]) -> (Entry, &'a [u8]) {
    (Entry::file(name, 0o600, content.len() as u64), content)
}

fn tar(entries: &[(Entry, &[u8])]) -> Vec<u8> {
    let mut archive = Writer::new(Vec::new());
    for (entry, content) in entries {
        archive.append(entry, &mut &**content).unwrap();
    }
    archive.finish().unwrap()
}

fn names(archive: &[u8]) -> Vec<String> {
    let plain = Decoder::new(archive, DecodeOptions::default()).unwrap();
    let mut archive = Reader::new(plain, images::read_options());
    let mut names = Vec::new();
    while let Some(entry) = archive.next_entry().unwrap() {
        assert_eq!(entry.mode & 0o077, 0, "{}", entry.shown());
        names.push(String::from_utf8(entry.path).unwrap());
    }
    names
}

#[test]
fn what_was_exported_comes_back_as_it_was() {
    let room = Room::new();
    for (memory, compress) in [
        (ArchiveMemory::Unencrypted, false),
        (ArchiveMemory::Unencrypted, true),
        (ArchiveMemory::Encrypted, false),
        (ArchiveMemory::Encrypted, true),
    ] {
        let archive = room.export(memory, compress);
        assert_eq!(room.import(&archive, &room.key()).unwrap(), room.images);
        let begins: &[&str] = &["tranship.json", "tranship.hmac"];
        let rest: &[&str] = match memory {
            ArchiveMemory::Encrypted => &["memory.sealed"],
            ArchiveMemory::Unencrypted => &[
                "config.dump",
                "spec.dump",
                "checkpoint/",
                "checkpoint/core-1.img",
                "checkpoint/empty.img",
                "checkpoint/pages-1.img",
            ],
        };
        assert_eq!(names(&archive), [begins, rest].concat());
        let seen = archive.windows(100).any(|part| part == &noise(700)[..100]);
        if memory == ArchiveMemory::Encrypted || !compress {
            assert_eq!(seen, memory == ArchiveMemory::Unencrypted, "{memory} {compress}");
        }
    }
}

#[test]
fn what_was_packed_again_in_the_same_order_is_as_good() {
    let room = Room::new();
    for memory in [ArchiveMemory::Unencrypted, ArchiveMemory::Encrypted] {
        let archive = room.export(memory, false);
        let again = tempfile::tempdir().unwrap();
        std::fs::write(again.path().join("one.tar"), &archive).unwrap();
        let script = "tar -xf one.tar && tar -cf two.tar --no-recursion \"$@\"";
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script, "sh"]).current_dir(again.path());
        let all = names(&archive);
        assert!(command.args(&all).status().unwrap().success());
        let packed = std::fs::read(again.path().join("two.tar")).unwrap();
        assert_eq!(
            room.import(&packed, &room.key()).unwrap(),
            room.images,
            "{memory}"
        );
        if memory == ArchiveMemory::Unencrypted {
            assert!(command.arg("checkpoint/core-1.img").status().unwrap().success());
            let packed = std::fs::read(again.path().join("two.tar")).unwrap();
            assert_eq!(room.refused(&packed), Some("checkpoint.archive"));
        }
    }
}

#[test]
fn what_describes_a_sealed_archive_tells_nothing_of_what_is_in_it() {
    let room = Room::new();
    let archive = room.export(ArchiveMemory::Encrypted, false);
    let mut reader = Reader::new(&archive[..], images::read_options());
    let text = whole(&mut reader, DESCRIPTION, LONGEST_DESCRIPTION).unwrap();
    let text = String::from_utf8(text).unwrap();
    for (name, content) in &room.images {
        assert!(!text.contains(name), "{text}");
        assert!(!text.contains(Digest::of(content).hex()), "{text}");
        // Zero is in other numbers as well.
        if !content.is_empty() {
            assert!(!text.contains(&format!(":{}", content.len())), "{text}");
        }
    }
    assert!(text.contains("\"images\":[]"), "{text}");
}

#[test]
fn what_is_sealed_must_be_images_as_a_dump_has_them() {
    let room = Room::new();
    let mut description = room.description();
    description.memory = ArchiveMemory::Encrypted;
    description.images.clear();
    let text = serde_json::to_vec(&description).unwrap();
    let pages = noise(700);
    let archive = |entries: &[(Entry, &[u8])]| {
        let mut sealing = Sealing::begin(Vec::new(), &room.key(), &text).unwrap();
        sealing.write_all(&tar(entries)).unwrap();
        let sealed = sealing.finish().unwrap();
        room.forged(&description, &[file(SEALED, &sealed)])
    };
    let (core, empty, last) = (
        file("core-1.img", b"core"),
        file("empty.img", b""),
        file("pages-1.img", &pages),
    );
    let good = archive(&[core.clone(), empty.clone(), last.clone()]);
    assert_eq!(room.import(&good, &room.key()).unwrap(), room.images);
    let target = b"core-1.img".to_vec();
    let bad: Vec<(&str, Entries<'_>)> = vec![
        ("one is missing", vec![core.clone(), empty.clone()]),
        ("another order", vec![empty.clone(), core.clone(), last.clone()]),
        (
            "twice",
            vec![core.clone(), empty.clone(), empty.clone(), last.clone()],
        ),
        (
            "more",
            vec![core.clone(), empty.clone(), last.clone(), file("x.img", b"x")],
        ),
        (
            "another path",
            vec![file("../core-1.img", b"core"), empty.clone(), last.clone()],
        ),
        (
            "a link",
            vec![
                core,
                (Entry::new("empty.img", Kind::Symlink { target }, 0o777), b""),
                last,
            ],
        ),
    ];
    for (what, entries) in bad {
        assert_eq!(
            room.refused(&archive(&entries)),
            Some("checkpoint.archive"),
            "{what}"
        );
    }
    // Nor does it list what is sealed.
    let mut listing = room.description();
    listing.memory = ArchiveMemory::Encrypted;
    assert_eq!(
        room.refused(&room.forged(&listing, &[])),
        Some("checkpoint.archive")
    );
}

/// Comes for ever, and is counted.
struct Endless<'a> {
    begins: &'a [u8],
    repeats: &'a [u8],
    given: usize,
}

impl Read for Endless<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(self.given < 64 << 20, "it is read on and on");
        let part = match self.begins.get(self.given..) {
            Some(rest) if !rest.is_empty() => rest,
            _ => &self.repeats[(self.given - self.begins.len()) % self.repeats.len()..],
        };
        let read = part.len().min(buffer.len());
        buffer[..read].copy_from_slice(&part[..read]);
        self.given += read;
        Ok(read)
    }
}

#[test]
fn frames_that_hold_nothing_come_to_an_end() {
    let room = Room::new();
    let mut skipped = vec![0x50, 0x2a, 0x4d, 0x18, 0, 0, 1, 0];
    skipped.resize(8 + (64 << 10), 7);
    let good = room.export(ArchiveMemory::Unencrypted, true);
    for begins in [&b""[..], &good] {
        let endless = Endless {
            begins,
            repeats: &skipped,
            given: 0,
        };
        let refused = Incoming::open(endless, &room.key())
            .and_then(|incoming| incoming.seal_into(&room.path("again"), &room.key(), b"again"));
        assert_eq!(refused.unwrap_err().code(), "checkpoint.archive");
    }
}

#[test]
fn nothing_is_taken_that_is_compressed_in_another_way() {
    let room = Room::new();
    let plain = room.export(ArchiveMemory::Unencrypted, false);
    let mut zipped = Encoder::new(Vec::new(), Format::Gzip, None).unwrap();
    zipped.write_all(&plain).unwrap();
    let zipped = zipped.finish().unwrap();
    for archive in [&zipped[..], b"BZh9 and so on", b"\xfd7zXZ\0 and so on"] {
        assert_eq!(room.refused(archive), Some("checkpoint.archive"));
    }
    assert!(!room.path("again").exists());
}

#[test]
fn an_image_is_told_from_a_damaged_archive() {
    let room = Room::new();
    for name in ["oci-layout", "blobs/sha256/00", "index.json", "./manifest.json"] {
        // A header as all tools write it.
        let mut header = [0; 1024 + 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        for (at, value) in [
            (100, "0000644"),
            (108, "0000000"),
            (116, "0000000"),
            (124, "00000000000"),
            (136, "00000000000"),
        ] {
            header[at..at + value.len()].copy_from_slice(value.as_bytes());
        }
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u32 = header[..512].iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let error = room.import(&header, &room.key()).err().unwrap();
        assert_eq!(error.code(), "checkpoint.archive", "{name}");
        assert!(error.hint().unwrap().contains("tar -xOf"), "{name}: {error}");
    }
}

#[test]
fn large_images_come_back_as_well() {
    let mut room = Room::new();
    let pages = noise(3 << 20);
    std::fs::write(room.path("dump/pages-1.img"), &pages).unwrap();
    room.images.insert("pages-1.img".into(), pages);
    std::fs::remove_file(room.path("sealed")).unwrap();
    images::pack(&room.path("dump"), &room.path("sealed"), &room.key(), b"about").unwrap();
    for memory in [ArchiveMemory::Unencrypted, ArchiveMemory::Encrypted] {
        let archive = room.export(memory, true);
        assert!(
            room.import(&archive, &room.key()).unwrap() == room.images,
            "{memory}"
        );
    }
}

#[test]
fn a_cut_is_found_wherever_it_is() {
    let room = Room::new();
    for (memory, compress) in [
        (ArchiveMemory::Unencrypted, false),
        (ArchiveMemory::Unencrypted, true),
        (ArchiveMemory::Encrypted, false),
    ] {
        let archive = room.export(memory, compress);
        for length in 0..archive.len() {
            let refused = room.refused(&archive[..length]);
            assert_eq!(
                refused,
                Some("checkpoint.archive"),
                "{memory}, {length} of {}",
                archive.len()
            );
        }
        let longer = [&archive[..], b"x"].concat();
        assert_eq!(room.refused(&longer), Some("checkpoint.archive"), "{memory}");
    }
}

#[test]
fn a_flipped_bit_is_found_or_changes_nothing() {
    let room = Room::new();
    for (memory, compress) in [
        (ArchiveMemory::Unencrypted, false),
        (ArchiveMemory::Unencrypted, true),
        (ArchiveMemory::Encrypted, false),
    ] {
        let archive = room.export(memory, compress);
        let mut passed = 0;
        for at in 0..archive.len() {
            let mut damaged = archive.clone();
            damaged[at] ^= 1 << (at % 8);
            match room.import(&damaged, &room.key()) {
                // Bytes that fill a block up mean nothing.
                Ok(images) => {
                    assert_eq!(images, room.images, "{memory}, byte {at}");
                    passed += 1;
                }
                Err(error) => assert!(
                    ["checkpoint.archive", "checkpoint.foreign"].contains(&error.code()),
                    "{memory}, byte {at}: {error}"
                ),
            }
        }
        assert!(passed < archive.len() / 2, "{memory}: {passed}");
    }
}

#[test]
fn what_another_node_exported_is_refused_before_anything_is_written() {
    let (room, other) = (Room::new(), Room::new());
    for memory in [ArchiveMemory::Unencrypted, ArchiveMemory::Encrypted] {
        let archive = other.export(memory, false);
        assert_eq!(room.refused(&archive), Some("checkpoint.foreign"));
        assert!(!room.path("again").exists());
    }
}

#[test]
fn another_description_is_refused_before_anything_is_written() {
    let room = Room::new();
    let text = serde_json::to_string(&room.description()).unwrap();
    let proof = room.key().prove(text.as_bytes()).unwrap();
    for (from, to) in [
        ("2026-01-01", "2026-01-02"),
        ("aaaa", "bbbb"),
        ("\"leave_running\":false", "\"leave_running\":true"),
        ("\"one\"", "\"two\""),
        ("}", "} "),
    ] {
        let lie = text.replace(from, to);
        assert_ne!(lie, text, "{from}");
        let archive = tar(&[file(DESCRIPTION, lie.as_bytes()), file(PROOF_OF_IT, &proof)]);
        assert_eq!(room.refused(&archive), Some("checkpoint.foreign"), "{to}");
    }
    assert!(!room.path("again").exists());
}

#[test]
fn what_the_description_does_not_say_is_refused() {
    let room = Room::new();
    let description = room.description();
    let pages = noise(700);
    let directory = || (Entry::new(DIRECTORY, Kind::Directory, 0o700), &b""[..]);
    let core = || file("checkpoint/core-1.img", b"core");
    let empty = || file("checkpoint/empty.img", b"");
    let last = || file("checkpoint/pages-1.img", &pages);
    let link = |name: &str| {
        let target = b"/etc/shadow".to_vec();
        (Entry::new(name, Kind::Symlink { target }, 0o777), &b""[..])
    };
    let hard = |name: &str| {
        let target = b"checkpoint/core-1.img".to_vec();
        (Entry::new(name, Kind::HardLink { target }, 0o600), &b""[..])
    };
    let device = |name: &str| {
        let number = tranship_archive::entry::Device { major: 1, minor: 1 };
        (Entry::new(name, Kind::CharacterDevice(number), 0o600), &b""[..])
    };
    let good = [directory(), core(), empty(), last()];
    assert_eq!(room.refused(&room.forged(&description, &good)), None);
    let bad: Vec<(&str, Entries<'_>)> = vec![
        ("nothing", vec![]),
        ("no directory", vec![core(), empty(), last()]),
        ("one is missing", vec![directory(), core(), empty()]),
        ("another order", vec![directory(), empty(), core(), last()]),
        ("twice", vec![directory(), core(), core(), empty(), last()]),
        (
            "one more",
            vec![
                directory(),
                core(),
                empty(),
                last(),
                file("checkpoint/x.img", b"x"),
            ],
        ),
        (
            "one above",
            vec![directory(), core(), empty(), last(), file("../x.img", b"x")],
        ),
        (
            "another path",
            vec![
                directory(),
                file("checkpoint/../core-1.img", b"core"),
                empty(),
                last(),
            ],
        ),
        (
            "an absolute path",
            vec![directory(), file("/core-1.img", b"core"), empty(), last()],
        ),
        (
            "a link",
            vec![directory(), link("checkpoint/core-1.img"), empty(), last()],
        ),
        (
            "a link for the directory",
            vec![link("checkpoint"), core(), empty(), last()],
        ),
        (
            "another name of one",
            vec![directory(), core(), hard("checkpoint/empty.img"), last()],
        ),
        (
            "a device",
            vec![directory(), core(), device("checkpoint/empty.img"), last()],
        ),
        (
            "other content",
            vec![
                directory(),
                file("checkpoint/core-1.img", b"Core"),
                empty(),
                last(),
            ],
        ),
        (
            "more content",
            vec![
                directory(),
                file("checkpoint/core-1.img", b"core!"),
                empty(),
                last(),
            ],
        ),
        (
            "a document",
            vec![file("config.dump", b"{}"), directory(), core(), empty(), last()],
        ),
    ];
    for (what, entries) in bad {
        let archive = room.forged(&description, &entries);
        assert_eq!(room.refused(&archive), Some("checkpoint.archive"), "{what}");
    }
}

#[test]
fn even_a_proved_description_must_be_one_that_could_have_been_written() {
    let room = Room::new();
    let changes: [fn(&mut Description); 6] = [
        |description| description.version = 2,
        |description| description.images[0].name = "../core-1.img".into(),
        |description| description.images[0].name = "zzz.img".into(),
        |description| description.images[0].bytes = u64::MAX,
        |description| description.images[0].bytes += 1,
        |description| {
            description.images.pop();
        },
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut description = room.description();
        change(&mut description);
        let archive = room.forged(&description, &[]);
        assert_eq!(room.refused(&archive), Some("checkpoint.archive"), "{number}");
    }
    assert!(!room.path("again").exists());
}

#[test]
fn an_archive_cannot_ask_for_more_than_a_description_may_have() {
    let room = Room::new();
    for (name, size) in [
        (DESCRIPTION, LONGEST_DESCRIPTION + 1),
        (PROOF_OF_IT, PROOF as u64 + 1),
    ] {
        let mut archive = Writer::new(Vec::new());
        if name == PROOF_OF_IT {
            archive
                .append(&Entry::file(DESCRIPTION, 0o600, 2), &mut &b"{}"[..])
                .unwrap();
        }
        archive.start(&Entry::file(name, 0o600, size)).unwrap();
        let begun = archive.get_mut().clone();
        assert_eq!(room.refused(&begun), Some("checkpoint.archive"), "{name}");
    }
    // Much of nothing after the end, in little: no more of it is read than an archive may have.
    let mut archive = room.forged(&room.description(), &[]);
    let ends = archive.len() - 1024;
    let good = room.export(ArchiveMemory::Unencrypted, false);
    let mut bomb = Encoder::new(Vec::new(), Format::Zstd, Some(1)).unwrap();
    bomb.write_all(&good).unwrap();
    for _ in 0..64 {
        bomb.write_all(&vec![0; 1 << 20]).unwrap();
    }
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 64 << 10);
    assert_eq!(room.refused(&bomb), Some("checkpoint.archive"));
    // And no archive at all.
    archive.truncate(ends);
    for text in [&b""[..], b"x", &[0; 1024], &archive] {
        assert_eq!(room.refused(text), Some("checkpoint.archive"));
    }
}
