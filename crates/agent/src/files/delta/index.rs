//! What the destination has.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use tranship_archive::confined::{Root, partial_of};
use tranship_archive::entry::Kind;
use tranship_archive::path::TreePath;
use tranship_core::Fault;
use tranship_core::fault::FaultKind;

use super::{BESIDE, LARGEST_INDEX, LARGEST_LIST, LONGEST_PATH, MAGIC, SMALLEST, malformed, sizes};
use crate::files::rewrite;

/// Bytes of one chunk in an index.
const RECORD: usize = 8 + 4 + 32;

/// Chunks of the destination's files, by the names of the archive.
#[derive(Debug, Default)]
pub struct Index(HashMap<Vec<u8>, FileIndex>);

/// One file.
#[derive(Debug)]
pub(super) struct FileIndex {
    /// Bytes that it has there.
    pub(super) size: u64,
    /// Hash, offset and length of each chunk, sorted.
    chunks: Vec<([u8; 32], u64, u32)>,
}

impl FileIndex {
    /// Where a chunk of this length and hash is.
    pub(super) fn find(&self, hash: &[u8; 32], length: usize) -> Option<u64> {
        let at = self.chunks.partition_point(|(known, ..)| known < hash);
        let (known, offset, known_length) = self.chunks.get(at)?;
        (known == hash && usize::try_from(*known_length) == Ok(length)).then_some(*offset)
    }
}

impl Index {
    /// Reads what [`write_index`] wrote.
    ///
    /// # Errors
    /// `delta.malformed`.
    pub fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let mut rest = bytes.strip_prefix(MAGIC).ok_or_else(|| malformed("no index"))?;
        let mut files = HashMap::new();
        while !rest.is_empty() {
            let length = usize::from(u16::from_le_bytes(take(&mut rest)?));
            let path = part(&mut rest, length)?.to_vec();
            let size = u64::from_le_bytes(take(&mut rest)?);
            let count = usize::try_from(u32::from_le_bytes(take(&mut rest)?)).unwrap_or(usize::MAX);
            let records = part(&mut rest, count.saturating_mul(RECORD))?;
            let mut chunks = Vec::with_capacity(count);
            for mut record in records.chunks_exact(RECORD) {
                let offset = u64::from_le_bytes(take(&mut record)?);
                let length = u32::from_le_bytes(take(&mut record)?);
                chunks.push((take::<32>(&mut record)?, offset, length));
            }
            chunks.sort_unstable();
            files.insert(path, FileIndex { size, chunks });
        }
        Ok(Self(files))
    }

    /// What is known of the file that has this name in the archive.
    pub(super) fn file(&self, name: &[u8]) -> Option<&FileIndex> {
        self.0.get(name)
    }
}

fn part<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Fault> {
    let (part, after) = rest
        .split_at_checked(length)
        .ok_or_else(|| malformed("the index is cut off"))?;
    *rest = after;
    Ok(part)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Fault> {
    let (part, after) = rest
        .split_first_chunk::<N>()
        .ok_or_else(|| malformed("the index is cut off"))?;
    *rest = after;
    Ok(*part)
}

/// The names of the regular files of an archive, for [`read_names`]: each with its length, as `u16`.
///
/// # Errors
/// What is wrong with the archive.
pub fn names_of<R: Read>(archive: R) -> Result<Vec<u8>, Fault> {
    let mut reader = rewrite::open(archive)?;
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let fits = names.len() + 2 + entry.path.len() <= LARGEST_LIST;
        if let (Kind::File, Ok(length), true) = (&entry.kind, u16::try_from(entry.path.len()), fits) {
            names.extend(length.to_le_bytes());
            names.extend(&entry.path);
        }
    }
    Ok(names)
}

/// Reads a list of names.
///
/// # Errors
/// `delta.malformed`.
pub fn read_names(mut list: &[u8]) -> Result<Vec<Vec<u8>>, Fault> {
    let mut names = Vec::new();
    while !list.is_empty() {
        let length = usize::from(u16::from_le_bytes(take(&mut list)?));
        names.push(part(&mut list, length)?.to_vec());
    }
    Ok(names)
}

/// Writes what there is of these files, named as in an archive that is unpacked at `base`. What is no regular file, or cannot be
/// read, is left out: it is sent whole.
///
/// # Errors
/// `archive.write` if `out` cannot be written.
pub fn write_index<W: Write>(
    root: &Root,
    base: &TreePath,
    names: &[Vec<u8>],
    out: &mut W,
) -> Result<(), Fault> {
    let failed = |e: io::Error| Fault::new("archive.write", FaultKind::Environment, e.to_string());
    out.write_all(MAGIC).map_err(failed)?;
    let mut left = LARGEST_INDEX - MAGIC.len();
    for name in names {
        let Ok(path) = TreePath::of_entry(name) else {
            continue;
        };
        let path = path.under(base);
        let beside = partial_of(&path).and_then(|path| root.file(&path));
        let files = [(root.file(&path), 0), (beside, BESIDE)];
        let files: Vec<_> = files
            .into_iter()
            .filter_map(|(file, bit)| Some((file?, bit)))
            .collect();
        if left < RECORD {
            break;
        }
        let Ok(record) = record_of(name, &files, left) else {
            continue;
        };
        left -= record.len();
        out.write_all(&record).map_err(failed)?;
    }
    Ok(())
}

/// The record of one file, with what is set in the offsets of each of those that it is in; empty for one that is not worth it or
/// does not fit into `most` bytes.
fn record_of(name: &[u8], files: &[(File, u64)], most: usize) -> io::Result<Vec<u8>> {
    let mut size = 0;
    for (file, _) in files {
        size = size.max(file.metadata()?.len());
    }
    let mut record = Vec::new();
    if size < SMALLEST || name.len() > LONGEST_PATH {
        return Ok(record);
    }
    let length = u16::try_from(name.len()).unwrap_or(u16::MAX);
    record.extend(length.to_le_bytes());
    record.extend(name);
    record.extend(size.to_le_bytes());
    let count_at = record.len();
    record.extend([0; 4]);
    let mut count = 0_u32;
    for (file, bit) in files {
        let end = file.metadata()?.len();
        let mut at = 0;
        while let Some((start, end_of_data)) = data_from(file, at, end)? {
            let sizes = sizes(size);
            let mut buffer = Vec::new();
            let mut offset = start;
            while offset < end_of_data {
                fill(file, &mut buffer, offset, end_of_data, sizes.max())?;
                if buffer.is_empty() {
                    break;
                }
                let length = sizes.cut(&buffer);
                if record.len() + RECORD > most {
                    return Ok(Vec::new());
                }
                let chunk = buffer.get(..length).unwrap_or_default();
                record.extend((offset | bit).to_le_bytes());
                record.extend(u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
                record.extend(blake3::hash(chunk).as_bytes());
                count += 1;
                buffer.drain(..length);
                offset += length as u64;
            }
            at = end_of_data;
        }
    }
    if count == 0 || record.len() > most {
        return Ok(Vec::new());
    }
    if let Some(place) = record.get_mut(count_at..count_at + 4) {
        place.copy_from_slice(&count.to_le_bytes());
    }
    Ok(record)
}

/// Fills the buffer, whose first byte is at `offset`, up to `most` bytes but not beyond `end`.
fn fill(file: &File, buffer: &mut Vec<u8>, offset: u64, end: u64, most: usize) -> io::Result<()> {
    let there = buffer.len();
    let want = usize::try_from(end - offset).unwrap_or(usize::MAX).min(most);
    // Refilled in large steps: the rest is moved to the front each time.
    if there >= want {
        return Ok(());
    }
    buffer.resize(want, 0);
    let mut at = there;
    while at < want {
        match file.read_at(buffer.get_mut(at..).unwrap_or_default(), offset + at as u64) {
            Ok(0) => break,
            Ok(got) => at += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(at);
    Ok(())
}

/// The next stretch of data at or after an offset.
fn data_from(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) if start >= size => Ok(None),
        Ok(start) => Ok(Some((
            start,
            rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size),
        ))),
        Err(Errno::NXIO) => Ok(None),
        // A file system that knows no holes.
        Err(Errno::INVAL) => Ok(Some((at, size))),
        Err(error) => Err(error.into()),
    }
}
