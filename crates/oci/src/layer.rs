//! Layers as they come: plain, gzip or zstd, told apart by their first bytes whatever their media type says. All of it is unpacked
//! in this process and never further than it may.

use std::io::{self, BufReader, Read};
use std::sync::Arc;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use futures_util::{TryStreamExt as _, stream};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_util::io::{StreamReader, SyncIoBridge};
use tranship_core::EngineError;
use tranship_core::engine::ByteStream;
use tranship_core::ids::Digest;

use crate::error::OciError;
use crate::spool::{BlobFile, Limits, failed};

/// Size of a buffer, in bytes.
const BUFFER: usize = 256 << 10;

/// Buffers before the engine.
const QUEUE: usize = 8;

/// Largest window of zstd, as a power of two: what unpacking may take in memory. The highest usual levels ask for 8 MiB (23).
const ZSTD_WINDOW: u32 = 25;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The plain bytes of a blob, and whether it was packed.
fn plain(blob: impl Read + Send + 'static) -> io::Result<(Box<dyn Read + Send>, bool)> {
    let mut reader = BufReader::with_capacity(BUFFER, blob);
    let start = io::BufRead::fill_buf(&mut reader)?;
    if start.starts_with(&GZIP) {
        return Ok((Box::new(MultiGzDecoder::new(reader)), true));
    }
    if start.starts_with(&ZSTD) {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?;
        decoder.window_log_max(ZSTD_WINDOW)?;
        return Ok((Box::new(decoder), true));
    }
    Ok((Box::new(reader), false))
}

/// What comes of a stream, to be read outside of asynchronous code while the runtime of this call goes on.
pub(crate) fn blocking(stream: ByteStream) -> impl Read + Send + 'static {
    SyncIoBridge::new(StreamReader::new(stream.map_err(io::Error::other)))
}

/// Unpacks a blob of `packed_length` bytes into nothing and compares the digest of what comes out. Returns its length, and whether it
/// was packed. Blocks.
///
/// # Errors
/// [`OciError::Layer`], and [`OciError::Bomb`] if it unpacks to more than `limits` and `room` (bytes) allow.
pub(crate) fn verify(
    digest: &Digest,
    (blob, packed_length): (impl Read + Send + 'static, u64),
    diff_id: &Digest,
    limits: &Limits,
    room: u64,
) -> Result<(u64, bool), OciError> {
    let damaged = |message: String| OciError::Layer {
        digest: digest.to_string(),
        message,
    };
    let (mut reader, packed) = plain(blob).map_err(|error| damaged(error.to_string()))?;
    let tight = match packed {
        true => limits.tight.max(packed_length.saturating_mul(limits.ratio)),
        false => u64::MAX,
    };
    let limit = limits.layer.min(room).min(tight);
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    let mut length = 0_u64;
    loop {
        let read = match reader.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(damaged(format!("cannot be unpacked: {error}"))),
            Ok(0) => break,
            Ok(read) => read,
        };
        length += read as u64;
        if length > limit {
            return Err(OciError::Bomb {
                digest: digest.to_string(),
                limit,
            });
        }
        hasher.update(buffer.get(..read).unwrap_or_default());
    }
    let found = Digest::from_sha256(&hasher.finalize().into());
    if found != *diff_id {
        return Err(damaged(format!(
            "unpacked it has the digest {found}, not {diff_id} as the configuration says"
        )));
    }
    Ok((length, packed))
}

/// The plain layer of a blob that was verified, as a stream. Length and digest are compared again: an error comes in place of the last
/// bytes if the file is not what it was.
pub(crate) fn unpacked(blob: Arc<BlobFile>, diff_id: Digest, length: u64) -> ByteStream {
    let (sender, mut receiver) = mpsc::channel(QUEUE);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = unpack(&blob, &diff_id, length, &sender) {
            // Nobody to tell is as good as told.
            let _ = sender.blocking_send(Err(error));
        }
    });
    Box::pin(stream::poll_fn(move |context| receiver.poll_recv(context)))
}

fn unpack(
    blob: &BlobFile,
    diff_id: &Digest,
    length: u64,
    sender: &mpsc::Sender<Result<Bytes, EngineError>>,
) -> Result<(), EngineError> {
    let changed = |message: String| EngineError::Corrupt {
        what: format!("layer {diff_id}"),
        message,
    };
    let file = blob.open().map_err(|error| changed(error.to_string()))?;
    let (mut reader, _) = plain(file).map_err(|error| changed(error.to_string()))?;
    let mut hasher = Sha256::new();
    let mut left = length;
    let mut held: Option<Bytes> = None;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
        let mut buffer = vec![0; want];
        reader
            .read_exact(&mut buffer)
            .map_err(|error| changed(error.to_string()))?;
        hasher.update(&buffer);
        left -= want as u64;
        if let Some(before) = held.replace(buffer.into())
            && sender.blocking_send(Ok(before)).is_err()
        {
            return Ok(());
        }
    }
    if Digest::from_sha256(&hasher.finalize().into()) != *diff_id {
        return Err(changed("its file changed after it was verified".into()));
    }
    if let Some(last) = held {
        let _ = sender.blocking_send(Ok(last));
    }
    Ok(())
}

/// All of a small blob.
///
/// # Errors
/// [`OciError::Spool`].
pub(crate) fn whole(blob: &BlobFile) -> Result<Bytes, OciError> {
    let mut bytes = Vec::new();
    let mut file = blob.open()?.take(blob.length);
    file.read_to_end(&mut bytes).map_err(failed("read a blob"))?;
    Ok(bytes.into())
}
