//! Reads a manifest as a stream, and refuses what no writer would have written.

use std::cmp::Ordering;
use std::io::Read;

use super::error::shown;
use super::write::validate;
use super::{MAGIC, MAX_DEPTH, MAX_NAME, MAX_PATH, MAX_RECORD, TreeError, TreeSummary, kind};
use crate::entry::{ChunkId, DIGEST_LENGTH, Entry, EntryKind, Extent, Timestamp, TreeId, compare_paths};

/// Bytes that are read at once.
const BLOCK: usize = 256 << 10;

/// Gives the entries of a manifest one by one.
pub struct TreeReader<R: Read> {
    input: R,
    buffer: Vec<u8>,
    at: usize,
    hash: blake3::Hasher,
    length: u64,
    order: Order,
    bytes: u64,
    chunks: u64,
    begun: bool,
    summary: Option<TreeSummary>,
}

impl<R: Read> TreeReader<R> {
    /// Reads from `input`, in large pieces.
    pub fn new(input: R) -> Self {
        Self {
            input,
            buffer: Vec::new(),
            at: 0,
            hash: blake3::Hasher::new(),
            length: 0,
            order: Order::default(),
            bytes: 0,
            chunks: 0,
            begun: false,
            summary: None,
        }
    }

    /// The next entry, or `None` after the last one, when the counts at the end were right and nothing follows.
    ///
    /// # Errors
    ///
    /// Reading fails, or the manifest is not one that a writer would have written.
    #[allow(clippy::should_implement_trait)] // It can fail, and an iterator of results invites to go on after an error.
    pub fn next(&mut self) -> Result<Option<Entry>, TreeError> {
        if self.summary.is_some() {
            return Ok(None);
        }
        if !self.begun {
            self.begin()?;
        }
        let length = self.record_length()?;
        if length == 0 {
            self.end()?;
            return Ok(None);
        }
        let number = self.order.count();
        if length > MAX_RECORD as u64 {
            return Err(TreeError::RecordLength {
                entry: number,
                length,
            });
        }
        let length = length as usize;
        self.want(length)?;
        let mut fields = Fields {
            bytes: &self.buffer[self.at..self.at + length],
            entry: number,
        };
        let (entry, said) = fields.entry(self.order.previous())?;
        self.at += length;
        validate(&entry)?;
        let shared = self
            .order
            .admit(&entry.path, matches!(entry.kind, EntryKind::Directory))?;
        if shared != said {
            return Err(TreeError::RecordShape { entry: number });
        }
        if let EntryKind::File { size, extents } = &entry.kind {
            self.bytes = self.bytes.checked_add(*size).ok_or(TreeError::Overflow)?;
            self.chunks += extents
                .iter()
                .filter(|extent| matches!(extent, Extent::Chunk { .. }))
                .count() as u64;
        }
        Ok(Some(entry))
    }

    /// What the manifest says at its end; `None` before [`Self::next`] gave `None`.
    #[must_use]
    pub fn summary(&self) -> Option<TreeSummary> {
        self.summary
    }

    /// Reads what is left, and checks that it is the manifest that it should be.
    ///
    /// # Errors
    ///
    /// As [`Self::next`], and when the id is another.
    pub fn finish(mut self, wanted: Option<TreeId>) -> Result<TreeSummary, TreeError> {
        while self.next()?.is_some() {}
        let summary = self.summary.ok_or(TreeError::Truncated { at: self.length })?;
        match wanted {
            Some(wanted) if wanted != summary.id => Err(TreeError::Id {
                found: summary.id,
                wanted,
            }),
            _ => Ok(summary),
        }
    }

    fn begin(&mut self) -> Result<(), TreeError> {
        let version = MAGIC.len() - 1;
        if let Err(error) = self.want(MAGIC.len()) {
            let start = &self.buffer[self.at..];
            return Err(if start == &MAGIC[..start.len()] {
                error
            } else {
                TreeError::Magic
            });
        }
        let magic = &self.buffer[self.at..self.at + MAGIC.len()];
        if magic[..version] != MAGIC[..version] {
            return Err(TreeError::Magic);
        }
        if magic[version] != MAGIC[version] {
            return Err(TreeError::Version {
                found: magic[version],
            });
        }
        self.at += MAGIC.len();
        self.begun = true;
        Ok(())
    }

    fn end(&mut self) -> Result<(), TreeError> {
        self.want(24)?;
        let mut counts = [0_u64; 3];
        for count in &mut counts {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&self.buffer[self.at..self.at + 8]);
            *count = u64::from_le_bytes(bytes);
            self.at += 8;
        }
        if self.order.count() == 0 {
            return Err(TreeError::Root);
        }
        if counts != [self.order.count(), self.bytes, self.chunks] {
            return Err(TreeError::Counts);
        }
        if self.at < self.buffer.len() || self.fill()? > 0 {
            return Err(TreeError::Trailing);
        }
        self.summary = Some(TreeSummary {
            id: TreeId(*self.hash.finalize().as_bytes()),
            entries: counts[0],
            bytes: counts[1],
            chunks: counts[2],
            length: self.length,
        });
        Ok(())
    }

    fn record_length(&mut self) -> Result<u64, TreeError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            self.want(1)?;
            let byte = self.buffer[self.at];
            self.at += 1;
            if let Some(whole) = add_seven_bits(&mut number, byte, shift).ok_or(TreeError::Number {
                entry: self.order.count(),
            })? {
                return Ok(whole);
            }
        }
        Err(TreeError::Number {
            entry: self.order.count(),
        })
    }

    /// Makes sure that `count` bytes are in the buffer. It grows with what really comes, not with what is claimed.
    fn want(&mut self, count: usize) -> Result<(), TreeError> {
        while self.buffer.len() - self.at < count {
            if self.fill()? == 0 {
                return Err(TreeError::Truncated { at: self.length });
            }
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<usize, TreeError> {
        if self.at > 0 {
            self.buffer.drain(..self.at);
            self.at = 0;
        }
        if self.buffer.is_empty() && self.buffer.capacity() > 8 * BLOCK {
            self.buffer = Vec::new();
        }
        let had = self.buffer.len();
        self.buffer.resize(had + BLOCK, 0);
        let got = loop {
            match self.input.read(&mut self.buffer[had..]) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let got = match got {
            Ok(got) => got,
            Err(error) => {
                self.buffer.truncate(had);
                return Err(error.into());
            }
        };
        self.buffer.truncate(had + got);
        self.hash.update(&self.buffer[had..]);
        self.length += got as u64;
        Ok(got)
    }
}

/// `Some(Some(number))` when it is complete, `Some(None)` when more bytes follow, `None` when it is not in its shortest form or
/// too large.
fn add_seven_bits(number: &mut u64, byte: u8, shift: u32) -> Option<Option<u64>> {
    let bits = u64::from(byte & 0x7f);
    if shift == 63 && bits > 1 {
        return None;
    }
    *number |= bits << shift;
    if byte & 0x80 != 0 {
        return if shift == 63 { None } else { Some(None) };
    }
    if byte == 0 && shift > 0 {
        return None;
    }
    Some(Some(*number))
}

/// The fields of one record.
struct Fields<'a> {
    bytes: &'a [u8],
    entry: u64,
}

impl<'a> Fields<'a> {
    /// The entry, and how many bytes of its path it says to share with the previous one.
    fn entry(&mut self, previous: &[u8]) -> Result<(Entry, usize), TreeError> {
        let shape = TreeError::RecordShape { entry: self.entry };
        let kind = self.take(1)?[0];
        let shared = self.length(previous.len())?;
        let rest = self.length(MAX_PATH)?;
        let suffix = self.take(rest)?;
        let mut path = Vec::with_capacity(shared + rest);
        path.extend_from_slice(&previous[..shared]);
        path.extend_from_slice(suffix);
        let mode = self.small()?;
        let uid = self.small()?;
        let gid = self.small()?;
        let seconds = self.number()?;
        let seconds = (seconds >> 1) as i64 ^ -((seconds & 1) as i64);
        let nanos = self.small()?;
        let count = self.length(super::MAX_XATTRS)?;
        let mut xattrs = Vec::with_capacity(count.min(64));
        for _ in 0..count {
            let length = self.length(MAX_NAME)?;
            let name = self.take(length)?.to_vec();
            let length = self.length(super::MAX_XATTR_VALUE)?;
            xattrs.push((name, self.take(length)?.to_vec()));
        }
        let kind = match kind {
            kind::DIRECTORY => EntryKind::Directory,
            kind::FILE => self.file()?,
            kind::HARDLINK => EntryKind::Hardlink {
                target: self.text(MAX_PATH)?,
            },
            kind::SYMLINK => EntryKind::Symlink {
                target: self.text(super::MAX_SYMLINK)?,
            },
            kind::FIFO => EntryKind::Fifo,
            kind::SOCKET => EntryKind::Socket,
            kind::CHAR_DEVICE => EntryKind::CharDevice {
                major: self.small()?,
                minor: self.small()?,
            },
            kind::BLOCK_DEVICE => EntryKind::BlockDevice {
                major: self.small()?,
                minor: self.small()?,
            },
            _ => {
                return Err(TreeError::Entry {
                    path: shown(&path),
                    reason: "its kind is not known here",
                });
            }
        };
        if !self.bytes.is_empty() {
            return Err(shape);
        }
        let entry = Entry {
            path,
            kind,
            mode,
            uid,
            gid,
            mtime: Timestamp { seconds, nanos },
            xattrs,
        };
        Ok((entry, shared))
    }

    fn file(&mut self) -> Result<EntryKind, TreeError> {
        let size = self.number()?;
        // Every extent takes at least one byte, so this bounds what is set aside.
        let count = self.length(self.bytes.len())?;
        let mut extents = Vec::with_capacity(count.min(self.bytes.len() / DIGEST_LENGTH + 1));
        for _ in 0..count {
            let word = self.number()?;
            extents.push(if word & 1 == 1 {
                Extent::Hole { length: word >> 1 }
            } else {
                let length = u32::try_from(word >> 1).map_err(|_| TreeError::Number { entry: self.entry })?;
                let mut id = [0; DIGEST_LENGTH];
                id.copy_from_slice(self.take(DIGEST_LENGTH)?);
                Extent::Chunk {
                    length,
                    id: ChunkId(id),
                }
            });
        }
        Ok(EntryKind::File { size, extents })
    }

    fn text(&mut self, most: usize) -> Result<Vec<u8>, TreeError> {
        let length = self.length(most)?;
        Ok(self.take(length)?.to_vec())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], TreeError> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(count)
            .ok_or(TreeError::RecordShape { entry: self.entry })?;
        self.bytes = rest;
        Ok(taken)
    }

    fn length(&mut self, most: usize) -> Result<usize, TreeError> {
        let number = self.number()?;
        if number > most as u64 {
            return Err(TreeError::Number { entry: self.entry });
        }
        Ok(number as usize)
    }

    fn small(&mut self) -> Result<u32, TreeError> {
        u32::try_from(self.number()?).map_err(|_| TreeError::Number { entry: self.entry })
    }

    fn number(&mut self) -> Result<u64, TreeError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            match add_seven_bits(&mut number, byte, shift) {
                Some(Some(whole)) => return Ok(whole),
                Some(None) => {}
                None => break,
            }
        }
        Err(TreeError::Number { entry: self.entry })
    }
}

/// Keeps watch over the order of entries: the first is the root, each is after the one before, and lies in a directory that came.
#[derive(Debug, Default)]
pub(crate) struct Order {
    previous: Vec<u8>,
    /// Lengths of those prefixes of `previous` that are directories, itself included, ascending.
    directories: Vec<usize>,
    count: u64,
}

impl Order {
    /// Number of entries so far.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Path of the last one.
    pub(crate) fn previous(&self) -> &[u8] {
        &self.previous
    }

    /// Lets an entry in and says how many bytes its path shares with the one before.
    pub(crate) fn admit(&mut self, path: &[u8], directory: bool) -> Result<usize, TreeError> {
        if self.count == 0 {
            if !path.is_empty() || !directory {
                return Err(TreeError::Root);
            }
            self.directories.push(0);
            self.count = 1;
            return Ok(0);
        }
        match compare_paths(&self.previous, path) {
            Ordering::Less => {}
            Ordering::Equal => return Err(TreeError::Duplicate { path: shown(path) }),
            Ordering::Greater => return Err(TreeError::Unsorted { path: shown(path) }),
        }
        let shared = common(&self.previous, path);
        // Only what comes after the shared bytes is new; a component may have begun within them.
        let fresh = path[..shared]
            .iter()
            .rposition(|byte| *byte == b'/')
            .map_or(0, |at| at + 1);
        check_components(path, fresh)?;
        let parent = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let most = parent.min(shared);
        while self.directories.last().is_some_and(|length| *length > most) {
            self.directories.pop();
        }
        if self.directories.last() != Some(&parent) {
            return Err(TreeError::Orphan { path: shown(path) });
        }
        if directory {
            if self.directories.len() > MAX_DEPTH {
                return Err(TreeError::Depth);
            }
            self.directories.push(path.len());
        } else if self.directories.len() > MAX_DEPTH {
            return Err(TreeError::Depth);
        }
        self.previous.truncate(shared);
        self.previous.extend_from_slice(&path[shared..]);
        self.count += 1;
        Ok(shared)
    }
}

/// Length of the longest common beginning.
fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter()
        .zip(b)
        .position(|(x, y)| x != y)
        .unwrap_or(a.len().min(b.len()))
}

/// Refuses paths that are absolute, climb, or have more than a file system takes. The empty path is the root.
pub(crate) fn check_path(path: &[u8]) -> Result<(), TreeError> {
    if path.is_empty() {
        return Ok(());
    }
    if path.iter().filter(|byte| **byte == b'/').count() >= MAX_DEPTH {
        return Err(TreeError::Depth);
    }
    check_components(path, 0)
}

fn check_components(path: &[u8], from: usize) -> Result<(), TreeError> {
    let wrong = |reason| {
        Err(TreeError::Path {
            path: shown(&path[..path.len().min(4096)]),
            reason,
        })
    };
    if path.len() > MAX_PATH {
        return wrong("it is longer than 256 KiB");
    }
    for name in path[from..].split(|byte| *byte == b'/') {
        if name.is_empty() {
            return wrong("a component is empty");
        }
        if name == b"." || name == b".." {
            return wrong("a component is . or ..");
        }
        if name.len() > MAX_NAME {
            return wrong("a component is longer than 255 bytes");
        }
        if name.contains(&0) {
            return wrong("it has a NUL byte");
        }
    }
    Ok(())
}
