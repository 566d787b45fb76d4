//! The form in which a checkpoint leaves its node and comes back: see `docs/checkpoint-archive.md`.
//!
//! A tar archive, whose first entry describes it, and whose second one proves that this node wrote the first. The images follow as
//! podman lays them out, or sealed. Of those that can be read, the description has the names, sizes and digests, in their order, so that
//! nothing can be added, left out or exchanged either. Of sealed ones it has nothing but the sum of their bytes: a digest, or an exact
//! size, of what is easily guessed would tell what it is. They are sealed with the description as their context, which proves as much.
//!
//! An archive that comes in is hostile until its description is proved. Until then no more of it is read than a description may have;
//! then no more than it says. That goes for what comes as well as for what it becomes: frames without content cost nothing but time.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tranship_archive::compression::{DecodeOptions, Decoder, Encoder, Format};
use tranship_archive::entry::{Entry, Kind};
use tranship_archive::reader::{Data, Reader};
use tranship_archive::writer::{WriteError, Writer};
use tranship_core::ids::Digest;

use super::ArchiveMemory;
use super::error::CheckpointError;
use super::images::{self, BUFFER, Packing};
use super::oci_image;
use super::seal::{NodeKey, Opening, PROOF, Sealing, sealed_bytes};
use super::store::About;

const DESCRIPTION: &str = "tranship.json";
const PROOF_OF_IT: &str = "tranship.hmac";
const SEALED: &str = "memory.sealed";
const DIRECTORY: &str = "checkpoint/";
/// The form of the archive.
const VERSION: u32 = 1;
/// A description that is longer is none, in bytes. The longest, of as many images as there can be, has about half of it.
const LONGEST_DESCRIPTION: u64 = 32 << 20;
/// Bytes of all files in an archive, at most. No machine has as much memory.
const MOST_BYTES: u64 = 1 << 50;
/// Bytes that an archive may have beyond its description's: headers, and what tools fill up with zeros.
const SLACK: u64 = 1 << 20;
/// Bytes of an entry's headers and padding, at most.
const PER_ENTRY: u64 = 4096;

/// A file in an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listed {
    /// Its name; of an image, without the directory.
    name: String,
    /// Bytes.
    bytes: u64,
    /// Of its content.
    digest: Digest,
}

/// What wrote an archive, for people and other programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Versions {
    pub(super) tranship: String,
    pub(super) engine: String,
    pub(super) criu: String,
}

/// What an archive says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Description {
    version: u32,
    memory: ArchiveMemory,
    exported_by: Versions,
    /// What the checkpoint is.
    pub(super) checkpoint: About,
    /// For other programs.
    documents: Vec<Listed>,
    /// The dump, if it can be read.
    images: Vec<Listed>,
}

impl Description {
    /// Says what of it cannot be, or is of another version.
    fn check(&self) -> Result<(), CheckpointError> {
        let newer = Some(self.version).filter(|version| *version != VERSION);
        if let Some(version) = newer.or(self.checkpoint.foreign_version()) {
            return Err(bad(format!("its description is of version {version}")));
        }
        let named = self
            .images
            .iter()
            .all(|image| images::is_a_name(image.name.as_bytes()));
        let sorted = self.images.is_sorted_by(|a, b| a.name < b.name);
        let sum = |files: &[Listed]| {
            files
                .iter()
                .fold(0u64, |sum, file| sum.saturating_add(file.bytes))
        };
        let (images, documents) = (self.checkpoint.image_bytes, sum(&self.documents));
        let possible = images.saturating_add(documents) <= MOST_BYTES;
        let fits = match self.memory {
            ArchiveMemory::Unencrypted => sum(&self.images) == images,
            ArchiveMemory::Encrypted => self.images.is_empty() && self.documents.is_empty(),
        };
        if !named || !sorted || !possible || !fits {
            return Err(bad("its description contradicts itself".into()));
        }
        Ok(())
    }

    /// Bytes that may follow.
    fn allowance(&self) -> u64 {
        match self.memory {
            ArchiveMemory::Unencrypted => {
                let all = self.images.iter().chain(&self.documents);
                all.fold(SLACK, |sum, file| sum + file.bytes + PER_ENTRY)
            }
            ArchiveMemory::Encrypted => {
                let headers = SLACK + images::MOST_IMAGES * PER_ENTRY;
                sealed_bytes(self.checkpoint.image_bytes + headers)
            }
        }
    }
}

fn bad(why: String) -> CheckpointError {
    CheckpointError::Archive { why }
}

/// What is wrong with an archive, with the words of whatever read it.
fn unreadable(error: impl std::error::Error) -> CheckpointError {
    let mut why = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        if !why.contains(&text) {
            why = format!("{why}: {text}");
        }
        source = inner.source();
    }
    bad(why)
}

fn digest_of(hasher: Sha256) -> Digest {
    Digest::from_sha256(&hasher.finalize().into())
}

/// A document beside the images.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) name: &'static str,
    pub(super) content: Vec<u8>,
}

/// What is known of a checkpoint once its images were read.
pub(super) struct Described {
    /// The description.
    text: Vec<u8>,
    /// Bytes of the images as an archive of their own.
    inner: u64,
}

/// A checkpoint that is to be written as an archive.
pub(super) struct Export {
    /// Its sealed images.
    pub(super) file: PathBuf,
    /// What they are sealed with.
    pub(super) context: Vec<u8>,
    pub(super) about: About,
    pub(super) key: NodeKey,
    pub(super) exported_by: Versions,
    pub(super) documents: Vec<Document>,
    pub(super) memory: ArchiveMemory,
    /// The whole archive is compressed. What is sealed would not get smaller.
    pub(super) compress: bool,
}

impl Export {
    /// Writes it. The images are read twice: what describes them comes first.
    ///
    /// # Errors
    /// `checkpoint.damaged`, `checkpoint.stream`.
    pub(super) fn write(&self, mut out: impl Write) -> Result<(), CheckpointError> {
        let described = self.described(&mut out)?;
        let out = self.encoder(BufWriter::with_capacity(BUFFER, out))?;
        let out = self.write_plain(&described, out)?;
        out.finish().and_then(|mut out| out.flush()).map_err(stream)
    }

    /// Whether the archive as a whole is compressed.
    pub(super) fn is_compressed(&self) -> bool {
        self.compress && self.memory == ArchiveMemory::Unencrypted
    }

    /// What the archive is written through.
    pub(super) fn encoder<W: Write>(&self, out: W) -> Result<Encoder<W>, CheckpointError> {
        let format = if self.is_compressed() {
            Format::Zstd
        } else {
            Format::Identity
        };
        // At the lowest level: most of what shrinks at all are pages of zeros and of text.
        Encoder::new(out, format, Some(1)).map_err(|error| stream(io::Error::other(error)))
    }

    /// The first look at the images, for `out`, which gets nothing of it.
    pub(super) fn described(&self, out: impl Write) -> Result<Described, CheckpointError> {
        let (description, inner) = self.describe(out)?;
        let text = serde_json::to_vec(&description).map_err(|error| stream(error.into()))?;
        if text.len() as u64 > LONGEST_DESCRIPTION {
            return Err(bad("its description is too long".into()));
        }
        Ok(Described { text, inner })
    }

    /// Writes the archive itself: readable ones have the same bytes each time.
    pub(super) fn write_plain<W: Write>(&self, described: &Described, out: W) -> Result<W, CheckpointError> {
        let Described { text, inner } = described;
        let mut archive = Writer::new(out);
        let proof = self.key.prove(text).map_err(stream)?;
        let mut small = |name: &str, content: &[u8]| {
            let entry = Entry::file(name, 0o600, content.len() as u64);
            archive.append(&entry, &mut &*content).map_err(unwritten)
        };
        small(DESCRIPTION, text)?;
        small(PROOF_OF_IT, &proof)?;
        match self.memory {
            ArchiveMemory::Unencrypted => {
                for document in &self.documents {
                    small(document.name, &document.content)?;
                }
                let directory = Entry::new(DIRECTORY, Kind::Directory, 0o700);
                archive.start(&directory).map_err(unwritten)?;
                self.images_into(&mut archive, DIRECTORY)?;
            }
            ArchiveMemory::Encrypted => {
                let entry = Entry::file(SEALED, 0o600, sealed_bytes(*inner));
                archive.start(&entry).map_err(unwritten)?;
                let sealing = Sealing::begin(Content(&mut archive), &self.key, text).map_err(stream)?;
                let mut images = Writer::new(sealing);
                self.images_into(&mut images, "")?;
                images.finish().map_err(unwritten)?.finish().map_err(stream)?;
            }
        }
        archive.finish().map_err(unwritten)
    }

    /// Describes what will follow, and says how long the images are as an archive of their own.
    fn describe(&self, out: impl Write) -> Result<(Description, u64), CheckpointError> {
        let mut found = Vec::new();
        let mut counted = Writer::new(Silent { out, bytes: 0 });
        let (about, file) = (&self.about, &self.file);
        // The description can be read by everybody.
        let listed = self.memory == ArchiveMemory::Unencrypted;
        images::each(
            file,
            &self.key,
            &self.context,
            about.image_bytes,
            |entry, data| {
                let mut hasher = Sha256::new();
                counted.start(entry).map_err(unwritten)?;
                images::pass_on(
                    data,
                    |error| images::unread(file, error),
                    |part| {
                        if listed {
                            hasher.update(part);
                        }
                        counted.write_data(part).map_err(unwritten)
                    },
                )?;
                if listed {
                    found.push(Listed {
                        name: String::from_utf8_lossy(&entry.path).into_owned(),
                        bytes: entry.size,
                        digest: digest_of(hasher),
                    });
                }
                Ok(())
            },
        )?;
        let documents = match self.memory {
            ArchiveMemory::Encrypted => Vec::new(),
            ArchiveMemory::Unencrypted => {
                let of = |document: &Document| Listed {
                    name: document.name.to_owned(),
                    bytes: document.content.len() as u64,
                    digest: Digest::of(&document.content),
                };
                self.documents.iter().map(of).collect()
            }
        };
        let description = Description {
            version: VERSION,
            memory: self.memory,
            exported_by: self.exported_by.clone(),
            checkpoint: about.clone(),
            documents,
            images: found,
        };
        // What could not come back is not written.
        description.check()?;
        Ok((description, counted.finish().map_err(unwritten)?.bytes))
    }

    fn images_into<W: Write>(&self, archive: &mut Writer<W>, below: &str) -> Result<(), CheckpointError> {
        let (about, file) = (&self.about, &self.file);
        images::each(
            file,
            &self.key,
            &self.context,
            about.image_bytes,
            |entry, data| {
                let name = [below.as_bytes(), &entry.path].concat();
                let entry = images::image_entry(&name, entry.size);
                archive.start(&entry).map_err(unwritten)?;
                images::pass_on(
                    data,
                    |error| images::unread(file, error),
                    |part| archive.write_data(part).map_err(unwritten),
                )
            },
        )
    }
}

pub(super) fn stream(error: io::Error) -> CheckpointError {
    CheckpointError::Stream(error)
}

pub(super) fn unwritten(error: WriteError) -> CheckpointError {
    stream(images::io_of(error))
}

/// Counts bytes, of which `out` gets none. It is only asked whether it still takes any: a look at many images takes long, and whoever
/// wanted to have them may have left.
pub(super) struct Silent<W> {
    pub(super) out: W,
    pub(super) bytes: u64,
}

impl<W: Write> Write for Silent<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.flush()?;
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The content of the present entry of an archive.
pub(super) struct Content<'a, W>(pub(super) &'a mut Writer<W>);

impl<W: Write> Write for Content<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_data(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes that may still come, which may become more.
#[derive(Clone)]
struct Allowance(Arc<AtomicU64>);

impl Allowance {
    /// What may come before the description is proved.
    fn unproved() -> Self {
        Self(Arc::new(AtomicU64::new(LONGEST_DESCRIPTION + SLACK)))
    }

    fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Reads no more than is allowed.
struct Bounded<R> {
    inner: R,
    left: Allowance,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let left = self.left.0.load(Ordering::Relaxed).checked_sub(read as u64);
        let longer = || io::Error::new(io::ErrorKind::InvalidData, "it is longer than a checkpoint's");
        self.left.0.store(left.ok_or_else(longer)?, Ordering::Relaxed);
        Ok(read)
    }
}

/// An archive that comes in, of which the description is proved.
pub(super) struct Incoming<R: Read> {
    archive: Reader<BufReader<Bounded<Decoder<Bounded<R>>>>>,
    /// What it says of itself.
    pub(super) description: Description,
    /// The same, byte for byte.
    text: Vec<u8>,
}

impl<R: Read> Incoming<R> {
    /// Reads the description, and believes it only if this node wrote it.
    ///
    /// # Errors
    /// `checkpoint.archive`, `checkpoint.foreign`.
    pub(super) fn open(input: R, key: &NodeKey) -> Result<Self, CheckpointError> {
        let (comes, becomes) = (Allowance::unproved(), Allowance::unproved());
        let input = Bounded {
            inner: input,
            left: comes.clone(),
        };
        let decoder = Decoder::new(input, DecodeOptions::default()).map_err(unreadable)?;
        // No other one is ever written.
        if !matches!(decoder.format(), Format::Identity | Format::Zstd) {
            return Err(bad(format!("it is compressed with {}", decoder.format())));
        }
        let bounded = Bounded {
            inner: decoder,
            left: becomes.clone(),
        };
        let buffered = BufReader::with_capacity(64 << 10, bounded);
        let mut archive = Reader::new(buffered, images::read_options());
        let text = whole(&mut archive, DESCRIPTION, LONGEST_DESCRIPTION)?;
        let proof = whole(&mut archive, PROOF_OF_IT, PROOF as u64)?;
        if !key.is_proved(&text, &proof).map_err(unreadable)? {
            return Err(CheckpointError::Foreign);
        }
        let description: Description = serde_json::from_slice(&text).map_err(unreadable)?;
        description.check()?;
        let allowance = description.allowance();
        becomes.add(allowance);
        // What cannot be compressed gets longer by three bytes in each block of 128 KiB.
        comes.add(allowance + allowance / 1024);
        Ok(Self {
            archive,
            description,
            text,
        })
    }

    /// Reads the rest, and seals the images into a new file, with another description. What fails may leave a part of it.
    ///
    /// # Errors
    /// `checkpoint.archive` for whatever is not as its description says; what the file system says.
    pub(super) fn seal_into(
        mut self,
        file: &Path,
        key: &NodeKey,
        context: &[u8],
    ) -> Result<(), CheckpointError> {
        let mut packing = Packing::begin(file, key, context)?;
        let Description {
            memory,
            documents,
            images,
            ..
        } = &self.description;
        match memory {
            ArchiveMemory::Unencrypted => {
                for listed in documents {
                    let data = expect(&mut self.archive, &listed.name, listed.bytes)?;
                    compared(data, listed, |_| Ok(()))?;
                }
                match self.archive.next_entry().map_err(unreadable)? {
                    Some(entry) if entry.kind == Kind::Directory && entry.path == DIRECTORY.as_bytes() => {}
                    other => return Err(unexpected(other.as_ref(), DIRECTORY)),
                }
                take(&mut self.archive, DIRECTORY, images, &mut packing)?;
            }
            ArchiveMemory::Encrypted => {
                let entry = self.archive.next_entry().map_err(unreadable)?;
                if !entry
                    .as_ref()
                    .is_some_and(|entry| is_file(entry, SEALED) && entry.size <= self.description.allowance())
                {
                    return Err(unexpected(entry.as_ref(), SEALED));
                }
                let sealed = self.archive.data();
                let opening = Opening::begin(sealed, key, &self.text).map_err(unreadable)?;
                let mut inner = Reader::new(opening, images::read_options());
                let bytes = self.description.checkpoint.image_bytes;
                take_sealed(&mut inner, bytes, &mut packing)?;
            }
        }
        ended(&mut self.archive)?;
        packing.finish()
    }
}

/// The images, all of them and in their order.
fn take<R: Read>(
    archive: &mut Reader<R>,
    below: &str,
    images: &[Listed],
    packing: &mut Packing,
) -> Result<(), CheckpointError> {
    for listed in images {
        packing.start(listed.name.as_bytes(), listed.bytes)?;
        let data = expect(archive, &format!("{below}{}", listed.name), listed.bytes)?;
        compared(data, listed, |part| packing.write(part))?;
    }
    Ok(())
}

/// The images of an archive that was sealed, whose content is proved as it is read: all that are there, as a dump has them.
fn take_sealed<R: Read>(
    archive: &mut Reader<R>,
    bytes: u64,
    packing: &mut Packing,
) -> Result<(), CheckpointError> {
    let mut before = Vec::new();
    let missing = images::each_of(archive, bytes, bad, |entry, data| {
        if entry.path <= before {
            return Err(bad(format!("{} is out of its order", entry.shown())));
        }
        before.clone_from(&entry.path);
        packing.start(&entry.path, entry.size)?;
        images::pass_on(data, unreadable, |part| packing.write(part))
    })?;
    match missing {
        0 => Ok(()),
        _ => Err(bad("it holds less than its description says".into())),
    }
}

/// Passes on the content of a file, and compares it with its digest.
fn compared<R: Read>(
    mut data: Data<'_, R>,
    listed: &Listed,
    mut pass: impl FnMut(&[u8]) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let mut hasher = Sha256::new();
    images::pass_on(&mut data, unreadable, |part| {
        hasher.update(part);
        pass(part)
    })?;
    if digest_of(hasher) != listed.digest {
        return Err(bad(format!("the content of {} is not what it was", listed.name)));
    }
    Ok(())
}

fn is_file(entry: &Entry, name: &str) -> bool {
    entry.kind == Kind::File && entry.sparse.is_none() && entry.path == name.as_bytes()
}

/// The next entry, which has to be this file.
fn expect<'a, R: Read>(
    archive: &'a mut Reader<R>,
    name: &str,
    bytes: u64,
) -> Result<Data<'a, R>, CheckpointError> {
    let entry = archive.next_entry().map_err(unreadable)?;
    match &entry {
        Some(entry) if is_file(entry, name) && entry.size == bytes => Ok(archive.data()),
        _ => Err(unexpected(entry.as_ref(), name)),
    }
}

fn unexpected(found: Option<&Entry>, name: &str) -> CheckpointError {
    bad(found.map_or_else(
        || format!("{name} is missing"),
        |entry| format!("where {name} should be it has {}", entry.shown()),
    ))
}

/// A small file as a whole.
fn whole<R: Read>(archive: &mut Reader<R>, name: &str, most: u64) -> Result<Vec<u8>, CheckpointError> {
    let entry = archive.next_entry().map_err(unreadable)?;
    if !entry
        .as_ref()
        .is_some_and(|entry| is_file(entry, name) && entry.size <= most)
    {
        return Err(match entry.as_ref().is_some_and(oci_image::is_of_layout) {
            true => CheckpointError::Image,
            false => unexpected(entry.as_ref(), name),
        });
    }
    let mut content = Vec::new();
    archive
        .data()
        .take(most)
        .read_to_end(&mut content)
        .map_err(unreadable)?;
    Ok(content)
}

fn ended<R: Read>(archive: &mut Reader<R>) -> Result<(), CheckpointError> {
    match archive.next_entry().map_err(unreadable)? {
        None => Ok(()),
        Some(entry) => Err(bad(format!(
            "it has {}, which its description has not",
            entry.shown()
        ))),
    }
}

#[cfg(test)]
mod tests;
