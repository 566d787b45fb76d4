//! Large files, cut in segments by several threads at once, as if one had cut them from the beginning to the end.
//!
//! A segment is a part of a stretch of data. A thread cuts it as if a chunk began where it begins. Cuts depend on the bytes
//! since the cut before only, so the chunks of a segment are those of the whole file from the first place on where the cuts
//! coincide. [`Stitch`] puts segments together: where the chunks before a segment reach into it, it cuts on until that happens,
//! usually within a chunk or two.
//!
//! Of a file that the base has, a segment begins where an old chunk began, and chunks are first assumed to be where they were: if
//! the hash says so, that is right, and nothing has to be cut. After the first chunk that is different cuts are looked for until
//! they meet the old ones again.

use std::collections::HashMap;
use std::fs::File;

use bytes::Bytes;

use super::buffers::Buffer;
use super::early::{Cuts, is_complete};
use super::read::read_at;
use super::{Context, Piece, ScanError};
use crate::chunk::Sizes;
use crate::entry::{ChunkId, Extent};
use crate::source::IN_PLACE;

/// A large file that is open.
#[derive(Debug)]
pub(crate) struct Large {
    pub(crate) file: File,
    pub(crate) path: Vec<u8>,
    pub(crate) sizes: Sizes,
    pub(crate) hints: Option<Hints>,
    /// Content that is not where it was is as good as new.
    pub(crate) in_place: bool,
    /// What was cut before.
    pub(crate) early: Cuts,
}

/// Chunks that are looked at to find out whether content is where it was.
const SAMPLES: usize = 8;

/// Whether most of a file's content may be where the base has it, so that it is best written to in place. One insertion moves all
/// that follows, so the far end says it.
pub(crate) fn in_place(file: &File, hints: &Hints, old_size: u64, size: u64) -> bool {
    if old_size < IN_PLACE || size < IN_PLACE || !hints.comparable {
        return false;
    }
    if old_size == size {
        return true;
    }
    let there = hints
        .chunks
        .partition_point(|chunk| chunk.0 + u64::from(chunk.1) <= size);
    // The last chunk ended with the file, and would end elsewhere now.
    let whole = &hints.chunks[..there.min(hints.chunks.len().saturating_sub(1))];
    let late = &whole[whole.len() - whole.len().div_ceil(8)..];
    let mut buffer = Vec::new();
    late.iter()
        .step_by((late.len() / SAMPLES).max(1))
        .any(|(at, length, id, _)| {
            buffer.resize(*length as usize, 0);
            read_at(file, &mut buffer, *at).is_ok_and(|got| got == buffer.len())
                && blake3::hash(&buffer).as_bytes() == &id.0
        })
}

/// What the base says about the file's content.
#[derive(Debug)]
pub struct Hints {
    /// Where each chunk begins, ascending; its length and name, and whether it ends a stretch of data.
    chunks: Vec<(u64, u32, ChunkId, bool)>,
    /// The same by name: one place of each.
    places: HashMap<ChunkId, u64>,
    /// Chunks would be cut at the same places now.
    comparable: bool,
}

impl Hints {
    /// From the base's extents of a file that was `old_size` bytes and is to be cut as one of `sizes`.
    pub(crate) fn new(extents: &[Extent], old_size: u64, sizes: Sizes) -> Self {
        let mut chunks = Vec::new();
        let mut places = HashMap::new();
        let mut at = 0;
        for (index, extent) in extents.iter().enumerate() {
            if let Extent::Chunk { length, id } = extent {
                let last = !matches!(extents.get(index + 1), Some(Extent::Chunk { .. }));
                chunks.push((at, *length, *id, last));
                places.entry(*id).or_insert(at);
            }
            at += extent.length();
        }
        Self {
            chunks,
            places,
            comparable: Sizes::of(old_size) == sizes,
        }
    }

    /// A place in the base's file where this chunk is.
    #[must_use]
    pub fn place(&self, id: &ChunkId) -> Option<u64> {
        self.places.get(id).copied()
    }

    /// The base has a hole from exactly `from` at least up to `to`, or the file ends in between.
    pub(crate) fn hole_at(&self, from: u64, to: u64) -> bool {
        let next = self.index_from(from);
        let before = next.checked_sub(1).and_then(|before| self.chunks.get(before));
        before.map_or(0, |chunk| chunk.0 + u64::from(chunk.1)) == from
            && self.chunks.get(next).is_none_or(|chunk| chunk.0 >= to)
    }

    /// Where the data ends that the base has at this place; this place itself, if it has a hole there or nothing.
    pub(crate) fn data_end(&self, at: u64) -> u64 {
        let mut index = self
            .chunks
            .partition_point(|chunk| chunk.0 + u64::from(chunk.1) <= at);
        let mut end = at;
        while let Some(chunk) = self.chunks.get(index).filter(|chunk| chunk.0 <= end) {
            end = chunk.0 + u64::from(chunk.1);
            index += 1;
            if chunk.3 {
                break;
            }
        }
        end
    }

    /// Index of the first chunk that begins at or after a place.
    fn index_from(&self, at: u64) -> usize {
        self.chunks.partition_point(|chunk| chunk.0 < at)
    }

    /// The chunk of the base that begins at a place, and whether a stretch of data ends with it.
    fn whole_chunk_at(&self, at: u64) -> Option<(u32, ChunkId, bool)> {
        let (from, length, id, last) = *self.chunks.get(self.index_from(at))?;
        (from == at).then_some((length, id, last))
    }

    /// The chunk of the base that begins at a place.
    #[must_use]
    pub(crate) fn chunk_at(&self, at: u64) -> Option<(u32, ChunkId)> {
        let (from, length, id, _) = *self.chunks.get(self.index_from(at))?;
        (from == at).then_some((length, id))
    }
}

/// A part of a stretch of data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// Where the stretch ends.
    pub(crate) end: u64,
}

/// Where the segment that begins at `from` in a stretch up to `end` should stop.
pub(crate) fn segment_end(large: &Large, from: u64, end: u64) -> u64 {
    // Short segments waste more at their seams, long ones take more memory.
    let length = if large.sizes.max() <= 1 << 20 {
        8 << 20
    } else {
        16 << 20
    };
    if end - from <= length + length / 2 {
        return end;
    }
    if let Some(hints) = large.hints.as_ref().filter(|hints| hints.comparable) {
        let at = hints.index_from(from + length);
        if let Some((begin, ..)) = hints.chunks.get(at)
            && *begin <= from + 2 * length
            && *begin < end
        {
            return *begin;
        }
    }
    from + length
}

/// What became of a segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) range: Range,
    /// Chunks from the beginning of the range on, one after the other; the last may reach beyond it.
    pub(crate) pieces: Vec<Piece>,
    /// The file ended before the range did.
    short: bool,
}

/// Bytes that are read at once: what was just read is still near the processor when it is cut and hashed.
const STEP: usize = 1 << 20;

/// The content of a segment, read as far as it was needed.
struct Content<'a> {
    large: &'a Large,
    from: u64,
    buffer: Buffer,
    got: usize,
    /// The file ended before the buffer was full.
    short: bool,
}

impl Content<'_> {
    /// Bytes from `at` on: `wanted` of them, or all up to where the buffer or the file ends. There may be more.
    fn get(&mut self, at: usize, wanted: usize) -> Result<&[u8], ScanError> {
        let room = self.buffer.bytes().len();
        while self.got < (at + wanted).min(room) && !self.short {
            let to = (self.got + STEP).max(at + wanted).min(room);
            let piece = &mut self.buffer.bytes_mut()[self.got..to];
            let wanted = piece.len();
            let read = read_at(&self.large.file, piece, self.from + self.got as u64)
                .map_err(|error| ScanError::io("read", &self.large.path, error))?;
            self.got += read;
            self.short = read < wanted;
        }
        Ok(&self.buffer.bytes()[at.min(self.got)..self.got])
    }
}

/// Cuts a segment.
pub(crate) fn cut(large: &Large, range: Range, context: &Context<'_>) -> Result<Segment, ScanError> {
    if let Some(segment) = cut_before(large, range, context)? {
        return Ok(segment);
    }
    let most = large.sizes.max();
    let room = (range.to + most as u64).min(range.end) - range.from;
    let mut content = Content {
        large,
        from: range.from,
        buffer: context.buffers.take(room as usize),
        got: 0,
        short: false,
    };
    let comparable = large.hints.as_ref().filter(|hints| hints.comparable);
    let mut found: Vec<(Extent, bool)> = Vec::new();
    let mut kept = 0;
    let mut at = range.from;
    while at < range.to {
        let from = (at - range.from) as usize;
        let hint = comparable.and_then(|hints| hints.whole_chunk_at(at));
        let mut known = None;
        if let Some((length, id, last)) = hint
            && let Some(bytes) = content.get(from, length as usize)?.get(..length as usize)
        {
            let hash = ChunkId(*blake3::hash(bytes).as_bytes());
            // A chunk that ended where its stretch ended would have gone on if the stretch had.
            if hash == id && (!last || at + u64::from(length) == range.end) {
                found.push((Extent::Chunk { length, id }, false));
                at += u64::from(length);
                continue;
            }
            known = Some((length as usize, hash));
        }
        let bytes = content.get(from, most)?;
        if bytes.is_empty() {
            break;
        }
        let length = large.sizes.cut(bytes);
        let id = match known {
            Some((same, hash)) if same == length => hash,
            _ => ChunkId(*blake3::hash(&bytes[..length]).as_bytes()),
        };
        let extent = Extent::Chunk {
            length: length as u32,
            id,
        };
        let wanted = wanted(large, &extent, context);
        kept += if wanted { length } else { 0 };
        found.push((extent, wanted));
        at += length as u64;
    }
    let short = content.short;
    // A few chunks should not keep the whole segment in memory with them.
    let apart = 2 * kept < content.got;
    let all = content.buffer.freeze();
    let mut from = 0;
    let pieces = found
        .into_iter()
        .map(|(extent, wanted)| {
            let part = from..from + extent.length() as usize;
            from = part.end;
            let bytes = wanted.then(|| match apart {
                true => Bytes::copy_from_slice(&all[part]),
                false => all.slice(part),
            });
            Piece {
                extent,
                bytes,
                parts: None,
            }
        })
        .collect();
    Ok(Segment { range, pieces, short })
}

/// A segment that was cut early, with the bytes that are wanted. `None` if it was not, or not with the same end in view.
fn cut_before(large: &Large, range: Range, context: &Context<'_>) -> Result<Option<Segment>, ScanError> {
    let known = large.early.get(&(range.from, range.to));
    let Some(extents) = known.filter(|_| is_complete(large, range, range.end)) else {
        return Ok(None);
    };
    let comparable = large.hints.as_ref().filter(|hints| hints.comparable);
    let mut at = range.from;
    let mut pieces = Vec::with_capacity(extents.len());
    for (extent, parts) in extents {
        let same = comparable.is_some_and(|hints| match extent {
            Extent::Chunk { length, id } => hints.chunk_at(at) == Some((*length, *id)),
            Extent::Hole { .. } => false,
        });
        let is_wanted = !same && parts.is_none() && wanted(large, extent, context);
        let bytes = match is_wanted {
            true => read_chunk(large, at, extent.length() as usize)?,
            false => None,
        };
        if is_wanted && bytes.is_none() {
            return Ok(None);
        }
        pieces.push(Piece {
            extent: *extent,
            bytes,
            parts: parts.clone(),
        });
        at += extent.length();
    }
    Ok(Some(Segment {
        range,
        pieces,
        short: false,
    }))
}

/// A chunk by itself, which keeps nothing else in memory: few are wanted of a segment that was cut early. `None` if the file ends
/// before it does.
fn read_chunk(large: &Large, at: u64, length: usize) -> Result<Option<Bytes>, ScanError> {
    let mut bytes = vec![0; length];
    let read =
        read_at(&large.file, &mut bytes, at).map_err(|error| ScanError::io("read", &large.path, error))?;
    Ok((read == length).then(|| bytes.into()))
}

/// Whether the bytes of a chunk are wanted.
fn wanted(large: &Large, extent: &Extent, context: &Context<'_>) -> bool {
    let Extent::Chunk { id, .. } = extent else {
        return false;
    };
    match &large.hints {
        // Other places, in this file or another, may not be what they were when it is written.
        Some(_) if large.in_place => context.wants_any(),
        Some(hints) => hints.place(id).is_none() && context.wants(extent),
        None => context.wants(extent),
    }
}

/// Puts segments together.
#[derive(Debug)]
pub(crate) struct Stitch {
    /// Up to here the file is cut.
    at: u64,
    size: u64,
    /// Content that is missing because the file became shorter.
    short: bool,
}

impl Stitch {
    pub(crate) fn new(size: u64) -> Self {
        Self {
            at: 0,
            size,
            short: false,
        }
    }

    /// The next segment of the file, in order; gives its pieces to `put`.
    pub(crate) fn add<E: From<ScanError>>(
        &mut self,
        large: &Large,
        segment: Segment,
        context: &Context<'_>,
        put: &mut dyn FnMut(Piece) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.short {
            return Ok(());
        }
        let range = segment.range;
        let mut begin = range.from;
        let mut pieces = segment.pieces.into_iter().peekable();
        loop {
            // Leave out what begins before the place up to which the file is cut already.
            while begin < self.at
                && let Some(piece) = pieces.next()
            {
                begin += piece.extent.length();
            }
            if begin == self.at || self.at >= range.to {
                break;
            }
            // The chunks before reach to where no chunk of this segment begins: cut on.
            let length = (large.sizes.max() as u64).min(range.end - self.at) as usize;
            let mut buffer = vec![0; length];
            let got = read_at(&large.file, &mut buffer, self.at)
                .map_err(|error| E::from(ScanError::io("read", &large.path, error)))?;
            buffer.truncate(got);
            if got < length {
                self.short = true;
            }
            if got == 0 {
                break;
            }
            let length = large.sizes.cut(&buffer);
            let extent = Extent::Chunk {
                length: length as u32,
                id: ChunkId(*blake3::hash(&buffer[..length]).as_bytes()),
            };
            buffer.truncate(length);
            put(Piece {
                extent,
                bytes: wanted(large, &extent, context).then(|| buffer.into()),
                parts: None,
            })?;
            self.at += length as u64;
        }
        if begin == self.at {
            for piece in pieces {
                self.at += piece.extent.length();
                put(piece)?;
            }
        }
        self.short |= segment.short && self.at < range.end;
        Ok(())
    }

    /// A hole, after the last segment of the stretch before it.
    pub(crate) fn hole<E>(
        &mut self,
        length: u64,
        put: &mut dyn FnMut(Piece) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.short {
            return Ok(());
        }
        self.at += length;
        put(Piece {
            extent: Extent::Hole { length },
            bytes: None,
            parts: None,
        })
    }

    /// The end of the file. `false`: it became shorter while it was read, and its end is a hole now.
    pub(crate) fn end<E>(&mut self, put: &mut dyn FnMut(Piece) -> Result<(), E>) -> Result<bool, E> {
        if self.at < self.size {
            put(Piece {
                extent: Extent::Hole {
                    length: self.size - self.at,
                },
                bytes: None,
                parts: None,
            })?;
        }
        Ok(!self.short && self.at >= self.size)
    }
}
