//! Image archives straight from the engine's storage: exact, of known length, without the layers that the other side
//! holds, and with a digest checked for every layer.
//!
//! The archive is in `docker save` form with names as Docker 25 gives them (`blobs/sha256/HEX`). `manifest.json` names
//! *all* layers, also those left out: `docker load` does not read a layer whose chain id it knows, so it takes the
//! rest (classic image store). The manifest comes last, and a layer's digest is compared as soon as its last byte has
//! been read: an archive with a damaged layer breaks off before anything in it could be loaded.
//!
//! Two threads share the work, one reads and one hashes; a short queue of large buffers is between them and another
//! one before the consumer, so that memory stays bounded whoever is slow.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::Bytes;
use futures_util::stream;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tranship_core::engine::ByteStream;
use tranship_core::ids::Digest;
use tranship_core::{EngineError, ImageSpec};

use crate::store::{Store, StoredLayer, unreadable};
use crate::tarsplit::{self, Sink};

/// Size of the buffers that travel, in bytes.
const BUFFER: usize = 512 << 10;

/// Buffers in each queue.
const QUEUE: usize = 8;

/// Block of a tar, in bytes.
const BLOCK: u64 = 512;

/// An archive that could be written.
pub(crate) struct Archive {
    config: Bytes,
    config_id: Digest,
    layers: Vec<StoredLayer>,
    lengths: Vec<u64>,
    manifest: Bytes,
}

impl Archive {
    /// Reads everything about `image` but the files of its layers. Blocks.
    pub(crate) fn of(store: &Store, image: &ImageSpec, tag: Option<&str>) -> Result<Self, EngineError> {
        let config = store.config(&image.id)?;
        let layers = store.layers_of(&image.id, &config)?;
        let lengths = layers
            .iter()
            .map(|layer| {
                tarsplit::length(&layer.tar_split).map_err(|error| unreadable(&layer.tar_split, &error))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let manifest = json!([{
            "Config": blob_name(&image.id),
            "RepoTags": tag.map(|tag| vec![tag]),
            "Layers": layers.iter().map(|layer| blob_name(&layer.diff_id)).collect::<Vec<_>>(),
        }]);
        Ok(Self {
            config: config.into(),
            config_id: image.id.clone(),
            layers,
            lengths,
            manifest: manifest.to_string().into(),
        })
    }

    /// Indices of the layers that are in the archive; one that the image has twice is there once.
    fn parts(&self, skip: usize) -> Vec<usize> {
        let mut seen = BTreeSet::new();
        (skip.min(self.layers.len())..self.layers.len())
            .filter(|index| seen.insert(&self.layers[*index].diff_id))
            .collect()
    }

    /// Length of the archive in bytes without the `skip` lowest layers.
    pub(crate) fn length(&self, skip: usize) -> u64 {
        let layers = self.parts(skip).into_iter().map(|index| self.lengths[index]);
        let documents = [self.config.len() as u64, self.manifest.len() as u64];
        let entries: u64 = layers.chain(documents).map(entry_length).sum();
        entries + 2 * BLOCK
    }

    /// Lengths for every number of skipped layers, from none to all.
    pub(crate) fn lengths(&self) -> Vec<u64> {
        (0..=self.layers.len()).map(|skip| self.length(skip)).collect()
    }

    /// The archive as a stream, made by two blocking tasks.
    pub(crate) fn stream(self, skip: usize) -> ByteStream {
        checked_stream(move |writer| self.write(skip, writer))
    }

    fn write(&self, skip: usize, writer: &mut Writer) -> Result<(), Stop> {
        for index in self.parts(skip) {
            let (layer, length) = (&self.layers[index], self.lengths[index]);
            writer.header(&layer.diff_id, length)?;
            write_layer(layer, length, writer)?;
            writer.pad(length)?;
        }
        writer.document(&blob_name(&self.config_id), &self.config)?;
        writer.document("manifest.json", &self.manifest)?;
        writer.end()
    }
}

/// What an entry of an archive with this content takes in bytes.
pub(crate) fn entry_length(content: u64) -> u64 {
    BLOCK + content.next_multiple_of(BLOCK)
}

/// What `write` writes, as a stream made by two blocking tasks.
pub(crate) fn checked_stream(
    write: impl FnOnce(&mut Writer) -> Result<(), Stop> + Send + 'static,
) -> ByteStream {
    let (to_hasher, from_reader) = sync_channel(QUEUE);
    let (to_stream, mut from_hasher) = mpsc::channel(QUEUE);
    tokio::task::spawn_blocking(move || {
        let mut writer = Writer::new(to_hasher);
        if let Err(stop) = write(&mut writer) {
            writer.fail(stop);
        }
    });
    tokio::task::spawn_blocking(move || hash(&from_reader, &to_stream));
    Box::pin(stream::poll_fn(move |context| from_hasher.poll_recv(context)))
}

/// The name of a blob in an archive.
pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn corrupt(layer: &Digest, message: String) -> EngineError {
    EngineError::Corrupt {
        what: format!("layer {layer}"),
        message,
    }
}

/// The plain tar of one layer from `offset` on, made by two blocking tasks. Of a whole layer, what comes last is held back until its digest
/// is known to be right. A part is given as it is: to compare it, everything before it would have to be read while nobody hears anything.
pub(crate) fn layer_stream(layer: StoredLayer, length: u64, offset: u64) -> ByteStream {
    if offset > 0 {
        return checked_stream(move |writer| {
            assemble(&layer, length, offset, writer)?;
            writer.flush()
        });
    }
    let (to_hasher, from_reader) = sync_channel(QUEUE);
    let (to_stream, mut from_hasher) = mpsc::channel(QUEUE);
    tokio::task::spawn_blocking(move || {
        let mut writer = Writer::new(to_hasher);
        if let Err(stop) = write_layer(&layer, length, &mut writer) {
            writer.fail(stop);
        }
    });
    tokio::task::spawn_blocking(move || check(&from_reader, &to_stream));
    Box::pin(stream::poll_fn(move |context| from_hasher.poll_recv(context)))
}

/// These bytes of the file of a blob, made by two blocking tasks. Of a whole blob, what comes last is held back until its digest is known
/// to be right; parts are given as they are.
pub(crate) fn blob_stream(file: OwnedFd, digest: Digest, size: u64, part: Range<u64>) -> ByteStream {
    if part.start > 0 || part.end < size {
        return checked_stream(move |writer| {
            writer.stretch(&digest, &file, part)?;
            writer.flush()
        });
    }
    let (to_hasher, from_reader) = sync_channel(QUEUE);
    let (to_stream, mut from_hasher) = mpsc::channel(QUEUE);
    tokio::task::spawn_blocking(move || {
        let mut writer = Writer::new(to_hasher);
        if let Err(stop) = writer.content(&digest, &file, size) {
            writer.fail(stop);
        }
    });
    tokio::task::spawn_blocking(move || check(&from_reader, &to_stream));
    Box::pin(stream::poll_fn(move |context| from_hasher.poll_recv(context)))
}

fn write_layer(layer: &StoredLayer, length: u64, writer: &mut Writer) -> Result<(), Stop> {
    writer.begin_layer()?;
    assemble(layer, length, 0, writer)?;
    writer.end_layer(&layer.diff_id, length)
}

/// Writes what of a layer lies behind `offset`, by a record that has to be of `length` bytes still.
fn assemble(layer: &StoredLayer, length: u64, offset: u64, writer: &mut Writer) -> Result<(), Stop> {
    let assembled = tarsplit::assemble(&layer.tar_split, &layer.files, offset, writer);
    let found = assembled.map_err(|error| match error {
        error if error.kind() == io::ErrorKind::BrokenPipe => Stop::Unwanted,
        error => Stop::Failed(corrupt(&layer.diff_id, error.to_string())),
    })?;
    if found == length {
        return Ok(());
    }
    let message = format!("its record gives {found} bytes instead of {length}");
    Err(Stop::Failed(corrupt(&layer.diff_id, message)))
}

/// Why writing ends early.
pub(crate) enum Stop {
    /// Nobody reads any more.
    Unwanted,
    Failed(EngineError),
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        // The only error of input and output between the threads is that the other one is gone.
        Self::Unwanted
    }
}

/// From the reading to the hashing thread.
enum Message {
    Bytes(Vec<u8>),
    /// What follows belongs to a layer.
    LayerBegins,
    /// What came since the layer began has this digest and length, or is damaged.
    LayerEnds(Digest, u64),
    Failed(EngineError),
}

/// Writes an archive piece by piece.
pub(crate) struct Writer {
    channel: SyncSender<Message>,
    buffer: Vec<u8>,
}

impl Writer {
    fn new(channel: SyncSender<Message>) -> Self {
        Self {
            channel,
            buffer: Vec::with_capacity(BUFFER),
        }
    }

    fn send(&self, message: Message) -> io::Result<()> {
        self.channel
            .send(message)
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }

    fn flush_buffer(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(BUFFER));
        self.send(Message::Bytes(full))
    }

    fn flush(&mut self) -> Result<(), Stop> {
        Ok(self.flush_buffer()?)
    }

    fn raw(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        Ok(self.bytes(bytes)?)
    }

    fn header(&mut self, digest: &Digest, length: u64) -> Result<(), Stop> {
        self.named_header(&blob_name(digest), length)
    }

    fn named_header(&mut self, name: &str, length: u64) -> Result<(), Stop> {
        let mut header = tar::Header::new_gnu();
        header.set_path(name)?;
        header.set_size(length);
        header.set_mode(0o444);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        self.raw(header.as_bytes())
    }

    fn pad(&mut self, length: u64) -> Result<(), Stop> {
        let padding = length.next_multiple_of(BLOCK) - length;
        let zeros = [0; BLOCK as usize];
        // Less than a block.
        self.raw(&zeros[..usize::try_from(padding).unwrap_or_default()])
    }

    /// A short entry.
    pub(crate) fn document(&mut self, name: &str, content: &[u8]) -> Result<(), Stop> {
        self.named_header(name, content.len() as u64)?;
        self.raw(content)?;
        self.pad(content.len() as u64)
    }

    /// An entry that is a whole file, compared with its digest.
    pub(crate) fn blob(
        &mut self,
        name: &str,
        digest: &Digest,
        file: &OwnedFd,
        size: u64,
    ) -> Result<(), Stop> {
        self.named_header(name, size)?;
        self.content(digest, file, size)?;
        self.pad(size)
    }

    /// A whole file, compared with its digest.
    fn content(&mut self, digest: &Digest, file: &OwnedFd, size: u64) -> Result<(), Stop> {
        self.begin_layer()?;
        self.stretch(digest, file, 0..size)?;
        self.end_layer(digest, size)
    }

    /// A part of a file, as it is.
    fn stretch(&mut self, digest: &Digest, file: &OwnedFd, part: Range<u64>) -> Result<(), Stop> {
        self.part(file, part).map_err(|error| match error {
            error if error.kind() == io::ErrorKind::BrokenPipe => Stop::Unwanted,
            error => Stop::Failed(corrupt(digest, error.to_string())),
        })
    }

    fn part(&mut self, file: &OwnedFd, part: Range<u64>) -> io::Result<()> {
        let mut at = part.start;
        while at < part.end {
            if self.buffer.len() == BUFFER {
                self.flush_buffer()?;
            }
            let room = BUFFER - self.buffer.len();
            let want = usize::try_from(part.end - at).unwrap_or(room).min(room);
            let read = read_more(file, at, &mut self.buffer, want)?;
            if read == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("it ends before the byte {} that it had", part.end),
                ));
            }
            at += read as u64;
        }
        Ok(())
    }

    /// The end of the archive.
    pub(crate) fn end(&mut self) -> Result<(), Stop> {
        self.raw(&[0; 2 * BLOCK as usize])?;
        self.flush()
    }

    fn begin_layer(&mut self) -> Result<(), Stop> {
        self.flush()?;
        Ok(self.send(Message::LayerBegins)?)
    }

    fn end_layer(&mut self, diff_id: &Digest, length: u64) -> Result<(), Stop> {
        self.flush()?;
        Ok(self.send(Message::LayerEnds(diff_id.clone(), length))?)
    }

    fn fail(&self, stop: Stop) {
        if let Stop::Failed(error) = stop {
            // Nobody to tell is as good as told.
            let _ = self.send(Message::Failed(error));
        }
    }
}

impl Sink for Writer {
    fn bytes(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = BUFFER - self.buffer.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == BUFFER {
                self.flush_buffer()?;
            }
        }
        Ok(())
    }

    fn file(&mut self, file: &OwnedFd, part: Range<u64>) -> io::Result<()> {
        self.part(file, part)
    }
}

/// Reads at most `want` bytes from `offset` on behind those in `buffer`, without clearing the room for them first.
fn read_more(file: &OwnedFd, offset: u64, buffer: &mut Vec<u8>, want: usize) -> io::Result<usize> {
    let before = buffer.len();
    loop {
        match rustix::io::pread(file, rustix::buffer::spare_capacity(buffer), offset) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => break,
        }
    }
    // There may be more room than wanted, and the file may be longer than it was.
    buffer.truncate(before + want);
    Ok(buffer.len() - before)
}

fn hash(from_reader: &Receiver<Message>, to_stream: &mpsc::Sender<Result<Bytes, EngineError>>) {
    let mut layer: Option<(Sha256, u64)> = None;
    for message in from_reader {
        let sent = match message {
            Message::Bytes(bytes) => {
                if let Some((hasher, length)) = &mut layer {
                    hasher.update(&bytes);
                    *length += bytes.len() as u64;
                }
                to_stream.blocking_send(Ok(bytes.into()))
            }
            Message::LayerBegins => {
                layer = Some((Sha256::new(), 0));
                Ok(())
            }
            Message::LayerEnds(diff_id, expected) => {
                let (hasher, length) = layer.take().unwrap_or_default();
                match compare(hasher, length, &diff_id, expected) {
                    Ok(()) => Ok(()),
                    Err(error) => {
                        // Nothing may follow, least of all the manifest.
                        let _ = to_stream.blocking_send(Err(error));
                        return;
                    }
                }
            }
            Message::Failed(error) => {
                let _ = to_stream.blocking_send(Err(error));
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

fn compare(hasher: Sha256, length: u64, diff_id: &Digest, expected: u64) -> Result<(), EngineError> {
    let found = Digest::from_sha256(&hasher.finalize().into());
    if found == *diff_id && length == expected {
        return Ok(());
    }
    let message = format!("its files give {found} and {length} bytes instead of {expected}");
    Err(corrupt(diff_id, message))
}

/// Hashes one layer and hands it on, always one buffer late.
fn check(from_reader: &Receiver<Message>, to_stream: &mpsc::Sender<Result<Bytes, EngineError>>) {
    let (mut hasher, mut length) = (Sha256::new(), 0_u64);
    let mut held: Option<Bytes> = None;
    for message in from_reader {
        let next = match message {
            Message::LayerBegins => continue,
            Message::Bytes(bytes) => {
                hasher.update(&bytes);
                length += bytes.len() as u64;
                match held.replace(bytes.into()) {
                    Some(before) => Ok(before),
                    None => continue,
                }
            }
            Message::LayerEnds(diff_id, expected) => {
                let last = compare(hasher, length, &diff_id, expected).map(|()| held);
                // Nobody to tell is as good as told.
                let _ = match last {
                    Ok(Some(last)) => to_stream.blocking_send(Ok(last)),
                    Ok(None) => Ok(()),
                    Err(error) => to_stream.blocking_send(Err(error)),
                };
                return;
            }
            Message::Failed(error) => Err(error),
        };
        let failed = next.is_err();
        if to_stream.blocking_send(next).is_err() || failed {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
