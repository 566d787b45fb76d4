//! From what a scan finds to operations: what is equal to the base is not mentioned, what moved is copied, what changed a little is
//! patched.

use std::sync::Arc;

use bytes::Bytes;

use super::SourceError;
use super::index::Index;
use super::pending::{Gap, Pending};
use crate::entry::{ChunkId, Entry, EntryKind, Extent};
use crate::message::{Operation, Write};
use crate::scan::{Begun, Found, Hints, LargeFile, Piece, Scanned};

/// Bytes of new content that are compared with the base in one piece, at most.
const GAP: u64 = 2 << 20;
/// New content shorter than this is sent without a question.
const WORTH_ASKING: u64 = 256;

/// What has been counted so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) changed: u64,
}

/// Makes operations.
pub(super) struct Delta<'a> {
    pub(super) pending: Pending<'a>,
    index: Option<&'a Index>,
    /// Path of a directory of the base that is gone or something else now, with a slash: all below is gone with it.
    gone: Option<Vec<u8>>,
    file: Option<FileDelta>,
    pub(super) counts: Counts,
}

/// What is known of the base's file.
enum Known {
    Nothing,
    Own(Hints),
    Large(Arc<LargeFile>),
}

impl Known {
    fn hints(&self) -> Option<&Hints> {
        match self {
            Self::Nothing => None,
            Self::Own(hints) => Some(hints),
            Self::Large(large) => large.hints(),
        }
    }
}

/// A file whose pieces come.
struct FileDelta {
    /// Without extents.
    entry: Entry,
    size: u64,
    path: Arc<[u8]>,
    /// The base's file at this path.
    base: Option<Entry>,
    base_size: u64,
    known: Known,
    in_place: bool,
    /// Up to where pieces came.
    at: u64,
    /// Something is different, and the file was announced.
    different: bool,
    /// Bytes before `at` that stay as they are and were not mentioned yet.
    keep: u64,
    /// Where the base would go on.
    base_at: u64,
    gap: Vec<(ChunkId, Bytes)>,
    gap_length: u64,
}

impl<'a> Delta<'a> {
    pub(super) fn new(pending: Pending<'a>, index: Option<&'a Index>) -> Self {
        Self {
            pending,
            index,
            gone: None,
            file: None,
            counts: Counts::default(),
        }
    }

    /// Takes in what was found next.
    pub(super) fn take(&mut self, found: Found) -> Result<(), SourceError> {
        match found {
            Found::Same(entry, _) => {
                self.counts.entries += 1;
                if let EntryKind::File { size, .. } = entry.kind {
                    self.counts.bytes += size;
                }
                return Ok(());
            }
            Found::Gone(path) => self.gone(path)?,
            Found::Entry(scanned) => {
                self.counts.entries += 1;
                self.entry(*scanned)?;
            }
            Found::Begin(begun) => {
                self.counts.entries += 1;
                self.begin(*begun)?;
            }
            Found::Piece(piece) => self.piece(piece)?,
            Found::End { .. } => self.end()?,
        }
        self.pending.go_on(false)
    }

    fn gone(&mut self, path: Vec<u8>) -> Result<(), SourceError> {
        if self.gone.as_ref().is_some_and(|gone| path.starts_with(gone)) {
            return Ok(());
        }
        self.counts.changed += 1;
        self.took_away(&path);
        self.pending.put(Operation::Remove { path })
    }

    fn took_away(&mut self, path: &[u8]) {
        let mut prefix = path.to_vec();
        prefix.push(b'/');
        self.gone = Some(prefix);
    }

    fn entry(&mut self, scanned: Scanned) -> Result<(), SourceError> {
        let Scanned {
            mut entry,
            base,
            pieces,
            ..
        } = scanned;
        if base.as_ref() == Some(&entry) {
            if let EntryKind::File { size, .. } = entry.kind {
                self.counts.bytes += size;
            }
            return Ok(());
        }
        if let Some(base) = &base
            && matches!(base.kind, EntryKind::Directory)
            && !matches!(entry.kind, EntryKind::Directory)
        {
            let path = base.path.clone();
            self.took_away(&path);
        }
        if let EntryKind::File { size, extents } = &mut entry.kind {
            let size = *size;
            extents.clear();
            return self.small(entry, size, base, pieces);
        }
        self.counts.changed += 1;
        self.pending.put(match base {
            Some(base) if base.kind == entry.kind => Operation::Attributes(entry),
            _ => Operation::Make(entry),
        })
    }

    fn small(
        &mut self,
        entry: Entry,
        size: u64,
        base: Option<Entry>,
        pieces: Vec<Piece>,
    ) -> Result<(), SourceError> {
        let based = matches!(&base, Some(base) if matches!(base.kind, EntryKind::File { .. }));
        if size == 0 {
            self.counts.changed += 1;
            return self.pending.whole(entry, ChunkId([0; 32]), Bytes::new());
        }
        if !based
            && let [
                Piece {
                    extent: Extent::Chunk { id, .. },
                    bytes: Some(bytes),
                    ..
                },
            ] = &pieces[..]
        {
            self.counts.changed += 1;
            self.counts.bytes += size;
            return self.pending.whole(entry, *id, bytes.clone());
        }
        let known = match &base {
            Some(Entry {
                kind: EntryKind::File { size: old, extents },
                ..
            }) => Known::Own(Hints::new(extents, *old, crate::chunk::Sizes::of(size))),
            _ => Known::Nothing,
        };
        self.start(entry, size, base, known, false)?;
        for piece in pieces {
            self.piece(piece)?;
        }
        self.end()
    }

    fn begin(&mut self, begun: Begun) -> Result<(), SourceError> {
        let EntryKind::File { size, .. } = begun.entry.kind else {
            return Err(SourceError::Defect("a large file that is none"));
        };
        if let Some(base) = &begun.base
            && matches!(base.kind, EntryKind::Directory)
        {
            let path = base.path.clone();
            self.took_away(&path);
        }
        let in_place = begun.large.in_place();
        self.start(begun.entry, size, begun.base, Known::Large(begun.large), in_place)
    }

    fn start(
        &mut self,
        entry: Entry,
        size: u64,
        base: Option<Entry>,
        known: Known,
        in_place: bool,
    ) -> Result<(), SourceError> {
        let base_size = match &base {
            Some(Entry {
                kind: EntryKind::File { size, .. },
                ..
            }) => Some(*size),
            _ => None,
        };
        let mut file = FileDelta {
            path: entry.path.as_slice().into(),
            entry,
            size,
            base,
            base_size: base_size.unwrap_or(0),
            known,
            in_place,
            at: 0,
            different: false,
            keep: 0,
            base_at: 0,
            gap: Vec::new(),
            gap_length: 0,
        };
        if base_size.is_none() {
            file.announce(&mut self.pending)?;
        }
        self.file = Some(file);
        Ok(())
    }

    fn piece(&mut self, piece: Piece) -> Result<(), SourceError> {
        let Some(file) = &mut self.file else {
            return Err(SourceError::Defect("a piece of no file"));
        };
        self.counts.bytes += piece.extent.length();
        file.piece(piece, self.index, &mut self.pending)
    }

    fn end(&mut self) -> Result<(), SourceError> {
        let Some(mut file) = self.file.take() else {
            return Err(SourceError::Defect("the end of no file"));
        };
        self.counts.changed += u64::from(file.end(&mut self.pending)?);
        Ok(())
    }
}

impl FileDelta {
    /// Says that this file comes, and what of it stays.
    fn announce(&mut self, pending: &mut Pending<'_>) -> Result<(), SourceError> {
        if self.different {
            return Ok(());
        }
        self.different = true;
        self.keep = self.at;
        pending.put(Operation::File {
            entry: self.entry.clone(),
            write: if self.in_place {
                Write::InPlace
            } else {
                Write::Replace
            },
        })
    }

    fn piece(
        &mut self,
        piece: Piece,
        index: Option<&Index>,
        pending: &mut Pending<'_>,
    ) -> Result<(), SourceError> {
        let length = piece.extent.length();
        let same = match piece.extent {
            Extent::Hole { .. } => self.same_hole(length),
            Extent::Chunk { length, id } => {
                self.known.hints().and_then(|hints| hints.chunk_at(self.at)) == Some((length, id))
            }
        };
        if same {
            self.close_gap(Some(self.at), pending)?;
            if self.different {
                self.keep += length;
            }
            self.at += length;
            self.base_at = self.at;
            return Ok(());
        }
        self.announce(pending)?;
        match (piece.extent, piece.parts) {
            (Extent::Chunk { length, id }, Some(parts)) => {
                self.close_gap(Some(self.at), pending)?;
                self.put_keep(pending)?;
                self.base_at = self.at + u64::from(length);
                pending.patch(Operation::Patch {
                    path: self.path.to_vec(),
                    offset: self.at,
                    length,
                    id,
                    parts,
                })?;
            }
            (Extent::Hole { length }, _) => {
                self.close_gap(None, pending)?;
                self.put_keep(pending)?;
                pending.put(Operation::Hole { length })?;
                self.base_at = self.at + length;
            }
            (Extent::Chunk { length, id }, None) => self.chunk(length, id, piece.bytes, index, pending)?,
        }
        self.at += length;
        Ok(())
    }

    fn chunk(
        &mut self,
        length: u32,
        id: ChunkId,
        bytes: Option<Bytes>,
        index: Option<&Index>,
        pending: &mut Pending<'_>,
    ) -> Result<(), SourceError> {
        let here = self.known.hints().and_then(|hints| hints.place(&id));
        // What is written in place can only be read where nothing was written yet.
        if let Some(offset) = here.filter(|offset| !self.in_place || *offset >= self.at) {
            self.close_gap(Some(offset), pending)?;
            self.put_keep(pending)?;
            self.base_at = offset + u64::from(length);
            return pending.put(Operation::Copy {
                path: self.path.to_vec(),
                offset,
                length,
                id,
            });
        }
        if !self.in_place
            && let Some((path, offset)) = index.and_then(|index| index.find(&id))
        {
            self.close_gap(None, pending)?;
            self.put_keep(pending)?;
            return pending.put(Operation::Copy {
                path: path.to_vec(),
                offset,
                length,
                id,
            });
        }
        let Some(bytes) = bytes else {
            return Err(SourceError::Defect("bytes of a chunk are missing"));
        };
        self.gap.push((id, bytes));
        self.gap_length += u64::from(length);
        // What was changed in place mostly is a chunk as long as the old one.
        let instead = self.gap.len() == 1
            && self.base_at == self.at
            && self
                .known
                .hints()
                .and_then(|hints| hints.chunk_at(self.at))
                .is_some_and(|(old, _)| old == length);
        if self.gap_length >= GAP || instead {
            // The piece counts as having come: it is in the gap.
            self.at += u64::from(length);
            let closed = self.close_gap(instead.then_some(self.at), pending);
            self.at -= u64::from(length);
            closed?;
        }
        Ok(())
    }

    /// The base has a hole at this very place.
    fn same_hole(&self, length: u64) -> bool {
        let end = self.at + length;
        self.known.hints().is_some_and(|hints| {
            hints.hole_at(self.at, end)
                && if end == self.size {
                    self.base_size == end
                } else {
                    hints.chunk_at(end).is_some()
                }
        })
    }

    fn put_keep(&mut self, pending: &mut Pending<'_>) -> Result<(), SourceError> {
        match std::mem::take(&mut self.keep) {
            0 => Ok(()),
            length => pending.put(Operation::Keep { length }),
        }
    }

    /// Sends the new content before `at`, compared with what the base has there: up to `base_end`, if that is known.
    fn close_gap(&mut self, base_end: Option<u64>, pending: &mut Pending<'_>) -> Result<(), SourceError> {
        if self.gap.is_empty() {
            return Ok(());
        }
        self.put_keep(pending)?;
        let length = std::mem::take(&mut self.gap_length);
        let chunks = std::mem::take(&mut self.gap);
        let from = self.base_at;
        let like_this = (from + length).min(self.base_size);
        // An end that is far from where it would be without insertions and deletions says little.
        let end = base_end
            .filter(|end| *end >= from && *end - from <= 2 * length + (64 << 10))
            .unwrap_or(like_this)
            .min(self.base_size);
        self.base_at = end.max(from);
        // Zeros that were a hole would stay one: nothing is written where nothing differs.
        let end = match self.known.hints() {
            Some(hints) if self.in_place => end.min(hints.data_end(from)),
            _ => end,
        };
        if end <= from || length < WORTH_ASKING {
            for (id, bytes) in chunks {
                pending.data(id, bytes)?;
            }
            return Ok(());
        }
        pending.gap(Gap {
            path: Arc::clone(&self.path),
            chunks,
            length,
            base_from: from,
            base_length: (end - from) as u32,
            // Content of the gap ends where the pieces do.
            not_before: self.in_place.then_some(self.at - length),
        })
    }

    /// All pieces came. Whether anything is different from the base.
    fn end(&mut self, pending: &mut Pending<'_>) -> Result<bool, SourceError> {
        if self.size != self.base_size {
            self.announce(pending)?;
        }
        if !self.different {
            let Some(base) = &self.base else {
                return Err(SourceError::Defect("a file equal to none"));
            };
            let equal = base.mode == self.entry.mode
                && base.uid == self.entry.uid
                && base.gid == self.entry.gid
                && base.mtime == self.entry.mtime
                && base.xattrs == self.entry.xattrs;
            if !equal {
                pending.put(Operation::Attributes(self.entry.clone()))?;
            }
            return Ok(!equal);
        }
        self.close_gap(Some(self.base_size), pending)?;
        self.put_keep(pending)?;
        pending.put(Operation::FileEnd)?;
        Ok(true)
    }
}
