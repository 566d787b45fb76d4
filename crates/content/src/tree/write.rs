//! Writes a manifest as a stream.

use std::io::Write;

use super::error::shown;
use super::read::Order;
use super::{MAGIC, MAX_CHUNK, TreeError, TreeSummary, kind};
use crate::entry::{Entry, EntryKind, Extent, TreeId};

/// Bytes that are hashed and written at once.
const BLOCK: usize = 256 << 10;

/// Takes entries in canonical order and writes the manifest.
pub struct TreeWriter<W: Write> {
    out: W,
    block: Vec<u8>,
    body: Vec<u8>,
    hash: blake3::Hasher,
    order: Order,
    bytes: u64,
    chunks: u64,
    length: u64,
}

impl<W: Write> TreeWriter<W> {
    /// Begins a manifest.
    pub fn new(out: W) -> Self {
        let mut block = Vec::with_capacity(BLOCK + 4096);
        block.extend_from_slice(&MAGIC);
        Self {
            out,
            block,
            body: Vec::new(),
            hash: blake3::Hasher::new(),
            order: Order::default(),
            bytes: 0,
            chunks: 0,
            length: 0,
        }
    }

    /// Adds the next entry.
    ///
    /// # Errors
    ///
    /// The entry is not one that a reader would take (order, parent, path, extents), or writing fails.
    pub fn push(&mut self, entry: &Entry) -> Result<(), TreeError> {
        validate(entry)?;
        let shared = self
            .order
            .admit(&entry.path, matches!(entry.kind, EntryKind::Directory))?;
        if let EntryKind::File { size, extents } = &entry.kind {
            self.bytes = self.bytes.checked_add(*size).ok_or(TreeError::Overflow)?;
            self.chunks += extents
                .iter()
                .filter(|extent| matches!(extent, Extent::Chunk { .. }))
                .count() as u64;
        }
        self.body.clear();
        self.body.push(kind_number(&entry.kind));
        put(&mut self.body, shared as u64);
        put(&mut self.body, (entry.path.len() - shared) as u64);
        self.body.extend_from_slice(&entry.path[shared..]);
        encode_attributes(entry, &mut self.body);
        encode_kind(&entry.kind, &mut self.body);
        put(&mut self.block, self.body.len() as u64);
        self.block.extend_from_slice(&self.body);
        if self.body.capacity() > 4 * BLOCK {
            self.body = Vec::new();
        }
        if self.block.len() >= BLOCK {
            self.flush_block()?;
        }
        Ok(())
    }

    /// Ends the manifest. The writer is flushed, not synced.
    ///
    /// # Errors
    ///
    /// No root was pushed, or writing fails.
    pub fn finish(mut self) -> Result<(TreeSummary, W), TreeError> {
        if self.order.count() == 0 {
            return Err(TreeError::Root);
        }
        self.block.push(0);
        for count in [self.order.count(), self.bytes, self.chunks] {
            self.block.extend_from_slice(&count.to_le_bytes());
        }
        self.flush_block()?;
        self.out.flush()?;
        let summary = TreeSummary {
            id: TreeId(*self.hash.finalize().as_bytes()),
            entries: self.order.count(),
            bytes: self.bytes,
            chunks: self.chunks,
            length: self.length,
        };
        Ok((summary, self.out))
    }

    fn flush_block(&mut self) -> Result<(), TreeError> {
        self.hash.update(&self.block);
        self.out.write_all(&self.block)?;
        self.length += self.block.len() as u64;
        self.block.clear();
        if self.block.capacity() > 8 * BLOCK {
            self.block = Vec::with_capacity(BLOCK + 4096);
        }
        Ok(())
    }
}

/// Number of a kind in the encoding.
pub(super) fn kind_number(of: &EntryKind) -> u8 {
    match of {
        EntryKind::Directory => kind::DIRECTORY,
        EntryKind::File { .. } => kind::FILE,
        EntryKind::Hardlink { .. } => kind::HARDLINK,
        EntryKind::Symlink { .. } => kind::SYMLINK,
        EntryKind::Fifo => kind::FIFO,
        EntryKind::Socket => kind::SOCKET,
        EntryKind::CharDevice { .. } => kind::CHAR_DEVICE,
        EntryKind::BlockDevice { .. } => kind::BLOCK_DEVICE,
    }
}

/// Appends mode, owner, time and extended attributes as a manifest has them.
pub fn encode_attributes(entry: &Entry, out: &mut Vec<u8>) {
    put(out, u64::from(entry.mode));
    put(out, u64::from(entry.uid));
    put(out, u64::from(entry.gid));
    put(out, zigzag(entry.mtime.seconds));
    put(out, u64::from(entry.mtime.nanos));
    put(out, entry.xattrs.len() as u64);
    for (name, value) in &entry.xattrs {
        put(out, name.len() as u64);
        out.extend_from_slice(name);
        put(out, value.len() as u64);
        out.extend_from_slice(value);
    }
}

fn encode_kind(of: &EntryKind, out: &mut Vec<u8>) {
    match of {
        EntryKind::Directory | EntryKind::Fifo | EntryKind::Socket => {}
        EntryKind::File { size, extents } => {
            put(out, *size);
            put(out, extents.len() as u64);
            for extent in extents {
                match extent {
                    Extent::Chunk { length, id } => {
                        put(out, u64::from(*length) << 1);
                        out.extend_from_slice(&id.0);
                    }
                    // Files end at 2^63 bytes at most, so the shift keeps every bit.
                    Extent::Hole { length } => put(out, length << 1 | 1),
                }
            }
        }
        EntryKind::Hardlink { target } | EntryKind::Symlink { target } => {
            put(out, target.len() as u64);
            out.extend_from_slice(target);
        }
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
            put(out, u64::from(*major));
            put(out, u64::from(*minor));
        }
    }
}

/// Refuses an entry whose fields no file system would give, whatever its place in the order.
pub(super) fn validate(entry: &Entry) -> Result<(), TreeError> {
    let wrong = |reason| TreeError::Entry {
        path: shown(&entry.path),
        reason,
    };
    if entry.mode > 0o7777 {
        return Err(wrong("its mode has more than permission bits"));
    }
    if entry.uid == u32::MAX || entry.gid == u32::MAX {
        return Err(wrong("its owner is the number that means no owner"));
    }
    if entry.mtime.nanos >= 1_000_000_000 {
        return Err(wrong("its time has a second or more of nanoseconds"));
    }
    if entry.xattrs.len() > super::MAX_XATTRS {
        return Err(wrong("it has too many extended attributes"));
    }
    let mut previous: Option<&[u8]> = None;
    for (name, value) in &entry.xattrs {
        if name.is_empty() || name.len() > super::MAX_NAME || name.contains(&0) {
            return Err(wrong("an extended attribute has an impossible name"));
        }
        if value.len() > super::MAX_XATTR_VALUE {
            return Err(wrong("an extended attribute is longer than 64 KiB"));
        }
        if previous.is_some_and(|previous| previous >= name.as_slice()) {
            return Err(wrong("its extended attributes are not sorted"));
        }
        previous = Some(name);
    }
    match &entry.kind {
        EntryKind::Symlink { target } => {
            if entry.mode != 0 {
                return Err(wrong("a symbolic link has no mode"));
            }
            if target.is_empty() || target.len() > super::MAX_SYMLINK || target.contains(&0) {
                return Err(wrong("a symbolic link has an impossible text"));
            }
        }
        EntryKind::File { size, extents } => validate_extents(&entry.path, *size, extents)?,
        EntryKind::Hardlink { target } => {
            super::read::check_path(target)?;
            if target.is_empty() || crate::entry::compare_paths(target, &entry.path).is_ge() {
                return Err(TreeError::Hardlink {
                    path: shown(&entry.path),
                    target: shown(target),
                    reason: "which does not come before it",
                });
            }
        }
        EntryKind::Directory
        | EntryKind::Fifo
        | EntryKind::Socket
        | EntryKind::CharDevice { .. }
        | EntryKind::BlockDevice { .. } => {}
    }
    Ok(())
}

fn validate_extents(path: &[u8], size: u64, extents: &[Extent]) -> Result<(), TreeError> {
    let wrong = |reason| TreeError::Extents {
        path: shown(path),
        reason,
    };
    if size > i64::MAX as u64 {
        return Err(wrong("the file is larger than files can be"));
    }
    let mut at: u64 = 0;
    let mut after_hole = false;
    for extent in extents {
        match extent {
            Extent::Chunk { length, .. } => {
                if *length == 0 || *length > MAX_CHUNK {
                    return Err(wrong("a chunk has an impossible length"));
                }
                after_hole = false;
            }
            Extent::Hole { length } => {
                if *length == 0 {
                    return Err(wrong("a hole is empty"));
                }
                if after_hole {
                    return Err(wrong("two holes are next to each other"));
                }
                after_hole = true;
            }
        }
        at = at
            .checked_add(extent.length())
            .filter(|at| *at <= size)
            .ok_or_else(|| wrong("they reach beyond the file's end"))?;
    }
    if at != size {
        return Err(wrong("they do not cover the file"));
    }
    Ok(())
}

/// Appends a number, seven bits per byte, low ones first.
pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Signed numbers so that small ones are short.
pub(super) fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}
