//! Answers to questions for hashes of blocks.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::Receiver;

use xxhash_rust::xxh3::xxh3_64;

use super::Voice;
use super::content::read_exactly;
use super::place::Place;
use crate::message::{Ask, Blocks, Message};

/// Bytes that are read at once; whole blocks of every size that may be asked for fit in.
const STEP: usize = 1 << 20;

/// Answers until nobody asks any more, or the other side is gone.
pub(super) fn answer<W: Write>(place: &Place, asked: Receiver<Ask>, voice: &Voice<W>) {
    let mut open: Option<(Vec<u8>, OwnedFd)> = None;
    while let Ok(ask) = asked.recv() {
        let hashes = hashes(place, &ask, &mut open).unwrap_or_default();
        if voice.say(&Message::Blocks(Blocks { hashes })).is_err() {
            return;
        }
    }
}

/// `None` if the ranges cannot be read.
fn hashes(place: &Place, ask: &Ask, open: &mut Option<(Vec<u8>, OwnedFd)>) -> Option<Vec<u64>> {
    let block = ask.block as usize;
    let step = STEP - STEP % block;
    let mut buffer = vec![0; step];
    let mut hashes = Vec::new();
    for range in &ask.ranges {
        if open.as_ref().is_none_or(|(path, _)| *path != range.path) {
            *open = None;
            *open = Some((range.path.clone(), place.open_base(&range.path).ok()?));
        }
        let (_, file) = open.as_ref()?;
        let mut done = 0;
        let length = range.length as usize;
        while done < length {
            let piece = &mut buffer[..step.min(length - done)];
            if !read_exactly(file.as_fd(), piece, range.offset + done as u64) {
                return None;
            }
            hashes.extend(piece.chunks(block).map(xxh3_64));
            done += piece.len();
        }
    }
    Some(hashes)
}
