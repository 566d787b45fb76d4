//! Bytes of the operations.

use bytes::Bytes;

use super::{MAX_CHUNK, Operation, Part, Write, kind};
use crate::encoding::{DecodeError, Extents, MAX_FILE, Reader, put_bytes, put_entry, put_number, share};
use crate::entry::{ChunkId, DIGEST_LENGTH, Entry};

impl Operation {
    /// Appends the operation to the body of a `Delta` frame.
    pub fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Remove { path } => {
                out.push(kind::REMOVE);
                put_bytes(out, path);
            }
            Self::Make(entry) => {
                out.push(kind::MAKE);
                put_entry(out, entry, Extents::Without);
            }
            Self::Attributes(entry) => {
                out.push(kind::ATTRIBUTES);
                put_entry(out, entry, Extents::Without);
            }
            Self::File { entry, write } => {
                out.push(kind::FILE);
                out.push(u8::from(*write == Write::InPlace));
                put_entry(out, entry, Extents::Without);
            }
            Self::Hole { length } => {
                out.push(kind::HOLE);
                put_number(out, *length);
            }
            Self::Data { id, bytes } => {
                put_data_head(out, id, bytes.len());
                out.extend_from_slice(bytes);
            }
            Self::Copy {
                path,
                offset,
                length,
                id,
            } => {
                out.push(kind::COPY);
                put_stretch(out, path, *offset, *length, id);
            }
            Self::Patch {
                path,
                offset,
                length,
                id,
                parts,
            } => {
                out.push(kind::PATCH);
                put_stretch(out, path, *offset, *length, id);
                put_number(out, parts.len() as u64);
                for part in parts {
                    match part {
                        Part::Base { offset, length } => {
                            put_number(out, u64::from(*length) << 1);
                            put_number(out, u64::from(*offset));
                        }
                        Part::Literal(bytes) => {
                            put_number(out, (bytes.len() as u64) << 1 | 1);
                            out.extend_from_slice(bytes);
                        }
                    }
                }
            }
            Self::Keep { length } => {
                out.push(kind::KEEP);
                put_number(out, *length);
            }
            Self::FileEnd => out.push(kind::FILE_END),
            Self::Whole { entry, id, bytes } => put_whole(out, entry, id, bytes),
        }
    }
}

/// Appends a `Whole` without an [`Operation`] around it.
pub fn put_whole(out: &mut Vec<u8>, entry: &Entry, id: &ChunkId, bytes: &[u8]) {
    out.push(kind::WHOLE);
    put_entry(out, entry, Extents::Without);
    out.extend_from_slice(&id.0);
    put_bytes(out, bytes);
}

/// Appends all of a `Data` but its `length` bytes, which have to follow. They can go to the frame from where they are.
pub fn put_data_head(out: &mut Vec<u8>, id: &ChunkId, length: usize) {
    out.push(kind::DATA);
    out.extend_from_slice(&id.0);
    put_number(out, length as u64);
}

fn put_stretch(out: &mut Vec<u8>, path: &[u8], offset: u64, length: u32, id: &ChunkId) {
    put_bytes(out, path);
    put_number(out, offset);
    put_number(out, u64::from(length));
    out.extend_from_slice(&id.0);
}

/// Takes the body of a `Delta` frame apart. Bytes of content stay where they are.
#[must_use]
pub fn operations(body: Bytes) -> Operations {
    Operations { body, at: 0 }
}

/// Operations of one frame. After an error there is nothing more.
#[derive(Debug)]
pub struct Operations {
    body: Bytes,
    at: usize,
}

impl Iterator for Operations {
    type Item = Result<Operation, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.body.len() {
            return None;
        }
        let mut reader = Reader::new(&self.body[self.at..]);
        let operation = operation(&mut reader, &self.body);
        self.at = match operation {
            Ok(_) => self.body.len() - reader.rest().len(),
            Err(_) => self.body.len(),
        };
        Some(operation)
    }
}

fn operation(reader: &mut Reader<'_>, frame: &Bytes) -> Result<Operation, DecodeError> {
    Ok(match reader.byte()? {
        kind::REMOVE => Operation::Remove { path: reader.path()? },
        kind::MAKE => Operation::Make(reader.entry(&[], Extents::Without)?),
        kind::ATTRIBUTES => Operation::Attributes(reader.entry(&[], Extents::Without)?),
        kind::FILE => {
            let write = match reader.byte()? {
                0 => Write::Replace,
                1 => Write::InPlace,
                _ => return Err(DecodeError::Range("how a file is written")),
            };
            let entry = reader.entry(&[], Extents::Without)?;
            Operation::File { entry, write }
        }
        kind::HOLE => Operation::Hole {
            length: span(reader)?,
        },
        kind::DATA => {
            let id = reader.chunk_id()?;
            let bytes = reader.bytes(MAX_CHUNK, "the length of a chunk")?;
            if bytes.is_empty() {
                return Err(DecodeError::Range("the length of a chunk"));
            }
            Operation::Data {
                id,
                bytes: share(frame, bytes),
            }
        }
        kind::COPY => {
            let (path, offset, length, id) = stretch(reader)?;
            Operation::Copy {
                path,
                offset,
                length,
                id,
            }
        }
        kind::PATCH => {
            let (path, offset, length, id) = stretch(reader)?;
            let parts = parts(reader, frame, length)?;
            Operation::Patch {
                path,
                offset,
                length,
                id,
                parts,
            }
        }
        kind::KEEP => Operation::Keep {
            length: span(reader)?,
        },
        kind::FILE_END => Operation::FileEnd,
        kind::WHOLE => {
            let entry = reader.entry(&[], Extents::Without)?;
            let id = reader.chunk_id()?;
            let bytes = share(frame, reader.bytes(MAX_CHUNK, "the length of a chunk")?);
            if bytes.is_empty() && id.0 != [0; DIGEST_LENGTH] {
                return Err(DecodeError::Range("the name of an empty file's chunk"));
            }
            Operation::Whole { entry, id, bytes }
        }
        kind => {
            return Err(DecodeError::Unknown {
                what: "operation",
                kind: u64::from(kind),
            });
        }
    })
}

fn span(reader: &mut Reader<'_>) -> Result<u64, DecodeError> {
    match reader.number()? {
        length @ 1..=MAX_FILE => Ok(length),
        _ => Err(DecodeError::Range("the length of a stretch")),
    }
}

fn stretch(reader: &mut Reader<'_>) -> Result<(Vec<u8>, u64, u32, ChunkId), DecodeError> {
    let path = reader.path()?;
    let offset = reader.number()?;
    let length = reader.number32("the length of a stretch")?;
    check_stretch(offset, length, MAX_CHUNK as u32)?;
    Ok((path, offset, length, reader.chunk_id()?))
}

fn parts(reader: &mut Reader<'_>, frame: &Bytes, base: u32) -> Result<Vec<Part>, DecodeError> {
    let count = reader.number()?;
    let mut parts = Vec::new();
    let mut total = 0_u64;
    for _ in 0..count {
        let number = reader.number()?;
        let length = number >> 1;
        total = total.saturating_add(length);
        if length == 0 || total > MAX_CHUNK as u64 {
            return Err(DecodeError::Range("the length of a patch"));
        }
        parts.push(if number & 1 == 1 {
            Part::Literal(share(frame, reader.take(length as usize)?))
        } else {
            let offset = reader.number()?;
            if offset.checked_add(length).is_none_or(|end| end > u64::from(base)) {
                return Err(DecodeError::Range("a part of a patch"));
            }
            Part::Base {
                offset: offset as u32,
                length: length as u32,
            }
        });
    }
    if total == 0 {
        return Err(DecodeError::Range("the length of a patch"));
    }
    Ok(parts)
}

/// Checks a stretch of a file.
pub(super) fn check_stretch(offset: u64, length: u32, most: u32) -> Result<(), DecodeError> {
    if length == 0 || length > most {
        return Err(DecodeError::Range("the length of a stretch"));
    }
    match offset.checked_add(u64::from(length)) {
        Some(end) if end <= MAX_FILE => Ok(()),
        _ => Err(DecodeError::Range("the end of a stretch")),
    }
}
