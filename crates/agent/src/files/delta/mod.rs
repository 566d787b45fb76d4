//! `tranship cp --delta`: only what differs travels.
//!
//! The destination cuts the files that it has under the names of the archive by content and says what each chunk hashes to (an
//! [`Index`]). Whoever packs the archive cuts its files in the same way and sends, in place of a chunk that the destination has
//! in the file of the same name, where that is ([`encode()`]). The destination puts the archive together again ([`Decoder`]) and
//! unpacks it as any other. So the result is that of a copy without `--delta`: sizes and times are never believed, and a chunk
//! that is not what it was is an error, not damage.
//!
//! Between the two go frames: a byte that says which, then lengths as `u32` and offsets as `u64`, both little-endian.
//!
//! | byte | then | means |
//! |---|---|---|
//! | 1 | length, bytes | these bytes of the archive |
//! | 2 | length, path | what follows is taken from this file |
//! | 3 | offset, length, BLAKE3 of 32 bytes | these bytes of it |
//! | 4 | | the end of the archive |
//!
//! Beside a file may lie the beginning of it that an earlier copy left ([`partial_of`]). Its chunks are in the index too, with
//! the highest bit of their offsets set: what it means is the destination's own business.
//!
//! [`partial_of`]: tranship_archive::confined::partial_of

mod decode;
mod encode;
mod index;

use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt as _;
use tranship_content::chunk::{ONE_CHUNK, Sizes};
use tranship_core::Fault;
use tranship_core::fault::FaultKind;

use super::bridge::{self, Pieces};

pub use self::decode::{Broken, Decoder};
pub use self::encode::encode;
pub use self::index::{Index, names_of, read_names, write_index};

/// What every index begins with.
const MAGIC: &[u8] = b"tranship index 1\n";
/// The longest path of a file, in bytes.
const LONGEST_PATH: usize = 65_535;
/// Bytes that an index takes at most; files that do not fit any more are sent whole.
pub const LARGEST_INDEX: usize = 64 << 20;
/// Bytes that a list of names takes at most; files that do not fit any more are sent whole.
pub const LARGEST_LIST: usize = 64 << 20;
/// Files with less content are sent whole: to say that they are there costs as much.
const SMALLEST: u64 = 512;
/// Bytes of a chunk, in frames.
const LONGEST_CHUNK: usize = 4 << 20;

/// Set in offsets of what an earlier copy left beside a file.
const BESIDE: u64 = 1 << 63;

const LITERAL: u8 = 1;
const FILE: u8 = 2;
const REFERENCE: u8 = 3;
const END: u8 = 4;

/// How a file is cut that has this many bytes at the destination: finer than for trees, as only one index is kept at a time.
fn sizes(size: u64) -> Sizes {
    Sizes::of((size / 16).max(ONE_CHUNK + 1))
}

/// The index of a destination that cannot be looked at.
///
/// # Errors
/// `archive.write`.
pub fn write_empty_index(out: &mut impl std::io::Write) -> Result<(), Fault> {
    out.write_all(MAGIC)
        .map_err(|e| Fault::new("archive.write", FaultKind::Environment, e.to_string()))
}

/// The frames of an archive that is a stream.
///
/// # Errors
/// As [`encode()`], and what the stream ends with.
pub async fn encoded(pieces: Pieces, index: Index) -> Result<Pieces, Fault> {
    let broken = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&broken);
    let pieces = pieces.inspect(move |piece| {
        if let Err(fault) = piece {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault.clone());
        }
    });
    let archive = bridge::reader(Box::pin(pieces));
    bridge::writer(move |out| {
        let done = encode(archive, &mut *out, &index).and_then(|()| {
            out.flush()
                .map_err(|e| Fault::new("archive.write", FaultKind::Environment, e.to_string()))
        });
        // The stream's own fault says more than that it broke off.
        done.map_err(|fault| {
            let own = broken.lock().unwrap_or_else(PoisonError::into_inner).take();
            own.unwrap_or(fault)
        })
    })
    .await
}

fn malformed(what: &str) -> Fault {
    Fault::new(
        "delta.malformed",
        FaultKind::Environment,
        format!("the difference is damaged: {what}"),
    )
    .with_hint("copy without --delta, and tell us")
}

#[cfg(test)]
mod tests;
