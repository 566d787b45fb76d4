//! Bytes of the messages and of manifests: integers as LEB128 varints, signed ones zigzag before, strings with their length
//! in front, entries as below. One value has one encoding: longer varints than needed are refused, because a tree's name is
//! the hash of its bytes.
//!
//! ```text
//! entry    kind u8 | path | mode | uid | gid | zigzag seconds | nanos | n (name value)×n | what the kind adds
//! kind     1 directory, 2 file, 3 hardlink, 4 symlink, 5 FIFO, 6 socket, 7 character device, 8 block device
//! adds     file: size, and where extents are wanted: n extent×n
//!          hardlink, symlink: target        devices: major minor
//! extent   length×2 + (1 for a hole), and for a chunk its id
//! ```

use bytes::Bytes;

use crate::entry::{ChunkId, DIGEST_LENGTH, Entry, EntryKind, Extent, Timestamp, TreeId};

/// Bytes of a name, at most: what Linux file systems allow.
pub const MAX_NAME: usize = 255;
/// Components of a path, at most.
pub const MAX_DEPTH: usize = 1024;
/// Bytes of a path, at most.
pub const MAX_PATH: usize = MAX_DEPTH * (MAX_NAME + 1);
/// Bytes of a symbolic link's text, at most.
pub const MAX_LINK: usize = 4095;
/// Bytes of an extended attribute's value, at most: `XATTR_SIZE_MAX`.
pub const MAX_XATTR_VALUE: usize = 65536;
/// Bytes of all names of one entry's extended attributes, at most: `XATTR_LIST_MAX`.
pub const MAX_XATTR_NAMES: usize = 65536;
/// Bytes of a file, at most: offsets are signed in the kernel.
pub const MAX_FILE: u64 = i64::MAX as u64;

/// Extended attributes by name.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Bytes that do not mean what they should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end before the value does.
    #[error("it ends too early")]
    Truncated,
    /// There are bytes after the value.
    #[error("bytes follow where it should end")]
    Trailing,
    /// A number that is too large or not written in its shortest form.
    #[error("a number is too large or not in its shortest form")]
    Number,
    /// A number that is outside of what its field allows.
    #[error("{0} is out of range")]
    Range(&'static str),
    /// A path that no tree has.
    #[error("the path {path:?} {reason}")]
    Path {
        /// The path, or its beginning.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A kind of entry, operation or message that is not known.
    #[error("{what} {kind} is not known")]
    Unknown {
        /// Kind of what.
        what: &'static str,
        /// Its number.
        kind: u64,
    },
    /// Extended attributes that are out of order, double, too long or too many.
    #[error("the extended attributes {0}")]
    Xattr(&'static str),
    /// Extents that don't make the file.
    #[error("the extents {0}")]
    Extents(&'static str),
}

/// Whether a file's extents are part of an encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extents {
    /// They are, and they cover the file.
    With,
    /// They are not.
    Without,
}

/// Appends a number.
pub fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed number.
pub fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_number(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends a string of bytes with its length.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends an extent.
pub fn put_extent(out: &mut Vec<u8>, extent: &Extent) {
    match extent {
        Extent::Chunk { length, id } => {
            put_number(out, u64::from(*length) << 1);
            out.extend_from_slice(&id.0);
        }
        Extent::Hole { length } => put_number(out, length << 1 | 1),
    }
}

/// Appends an entry with its whole path.
pub fn put_entry(out: &mut Vec<u8>, entry: &Entry, extents: Extents) {
    put_entry_with_path(out, entry, &entry.path, extents);
}

/// Appends an entry with `path` in place of its own: manifests write only the end of it.
pub fn put_entry_with_path(out: &mut Vec<u8>, entry: &Entry, path: &[u8], extents: Extents) {
    out.push(match &entry.kind {
        EntryKind::Directory => 1,
        EntryKind::File { .. } => 2,
        EntryKind::Hardlink { .. } => 3,
        EntryKind::Symlink { .. } => 4,
        EntryKind::Fifo => 5,
        EntryKind::Socket => 6,
        EntryKind::CharDevice { .. } => 7,
        EntryKind::BlockDevice { .. } => 8,
    });
    put_bytes(out, path);
    put_number(out, u64::from(entry.mode));
    put_number(out, u64::from(entry.uid));
    put_number(out, u64::from(entry.gid));
    put_signed(out, entry.mtime.seconds);
    put_number(out, u64::from(entry.mtime.nanos));
    put_number(out, entry.xattrs.len() as u64);
    for (name, value) in &entry.xattrs {
        put_bytes(out, name);
        put_bytes(out, value);
    }
    match &entry.kind {
        EntryKind::Directory | EntryKind::Fifo | EntryKind::Socket => {}
        EntryKind::File { size, extents: list } => {
            put_number(out, *size);
            if extents == Extents::With {
                put_number(out, list.len() as u64);
                for extent in list {
                    put_extent(out, extent);
                }
            }
        }
        EntryKind::Hardlink { target } | EntryKind::Symlink { target } => put_bytes(out, target),
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
            put_number(out, u64::from(*major));
            put_number(out, u64::from(*minor));
        }
    }
}

/// Checks that a path is one that a tree may have.
pub fn check_path(path: &[u8]) -> Result<(), DecodeError> {
    let bad = |reason| {
        let shown = &path[..path.len().min(200)];
        Err(DecodeError::Path {
            path: String::from_utf8_lossy(shown).into_owned(),
            reason,
        })
    };
    if path.is_empty() {
        return Ok(());
    }
    if path.len() > MAX_PATH {
        return bad("is too long");
    }
    if path[0] == b'/' {
        return bad("is absolute");
    }
    let mut depth = 0;
    for name in path.split(|&byte| byte == b'/') {
        depth += 1;
        match name {
            b"" => return bad("has an empty component"),
            b"." | b".." => return bad("has a component that is . or .."),
            _ if name.len() > MAX_NAME => return bad("has a name of more than 255 bytes"),
            _ if name.contains(&0) => return bad("has a NUL byte"),
            _ => {}
        }
    }
    if depth > MAX_DEPTH {
        return bad("is more than 1024 directories deep");
    }
    Ok(())
}

/// Takes values off the front of some bytes.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the beginning of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What has not been taken yet.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Nothing may be left.
    pub fn end(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Trailing)
        }
    }

    /// The next `length` bytes.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// One byte.
    pub fn byte(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take(1)?[0])
    }

    /// A number.
    pub fn number(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DecodeError::Number);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(DecodeError::Number);
                }
                return Ok(value);
            }
        }
        Err(DecodeError::Number)
    }

    /// A number of 32 bits; `what` names the field.
    pub fn number32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        u32::try_from(self.number()?).map_err(|_| DecodeError::Range(what))
    }

    /// A signed number.
    pub fn signed(&mut self) -> Result<i64, DecodeError> {
        let value = self.number()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A string of at most `most` bytes; `what` names the field.
    pub fn bytes(&mut self, most: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let length = self.number()?;
        if length > most as u64 {
            return Err(DecodeError::Range(what));
        }
        self.take(length as usize)
    }

    /// A digest.
    pub fn digest(&mut self) -> Result<[u8; DIGEST_LENGTH], DecodeError> {
        let mut digest = [0; DIGEST_LENGTH];
        digest.copy_from_slice(self.take(DIGEST_LENGTH)?);
        Ok(digest)
    }

    /// A chunk's name.
    pub fn chunk_id(&mut self) -> Result<ChunkId, DecodeError> {
        Ok(ChunkId(self.digest()?))
    }

    /// A tree's name.
    pub fn tree_id(&mut self) -> Result<TreeId, DecodeError> {
        Ok(TreeId(self.digest()?))
    }

    /// A checked path.
    pub fn path(&mut self) -> Result<Vec<u8>, DecodeError> {
        let path = self.bytes(MAX_PATH, "the length of a path")?;
        check_path(path)?;
        Ok(path.to_vec())
    }

    /// An extent.
    pub fn extent(&mut self) -> Result<Extent, DecodeError> {
        let number = self.number()?;
        let length = number >> 1;
        if length == 0 {
            return Err(DecodeError::Extents("have an empty one"));
        }
        if number & 1 == 1 {
            return Ok(Extent::Hole { length });
        }
        Ok(Extent::Chunk {
            length: u32::try_from(length).map_err(|_| DecodeError::Range("the length of a chunk"))?,
            id: self.chunk_id()?,
        })
    }

    /// An entry. `shared` goes before the path that the bytes hold; messages have none.
    pub fn entry(&mut self, shared: &[u8], extents: Extents) -> Result<Entry, DecodeError> {
        let kind = self.byte()?;
        let rest = self.bytes(MAX_PATH, "the length of a path")?;
        let mut path = Vec::with_capacity(shared.len() + rest.len());
        path.extend_from_slice(shared);
        path.extend_from_slice(rest);
        check_path(&path)?;
        let mode = self.number32("a mode")?;
        if mode > 0o7777 {
            return Err(DecodeError::Range("a mode"));
        }
        let uid = self.number32("an owner")?;
        let gid = self.number32("a group")?;
        // -1 means "leave it" to chown.
        if uid == u32::MAX || gid == u32::MAX {
            return Err(DecodeError::Range("an owner or group"));
        }
        let seconds = self.signed()?;
        let nanos = self.number32("nanoseconds")?;
        if nanos >= 1_000_000_000 {
            return Err(DecodeError::Range("nanoseconds"));
        }
        let xattrs = self.xattrs()?;
        let kind = match kind {
            1 => EntryKind::Directory,
            2 => self.file(extents)?,
            3 => EntryKind::Hardlink { target: self.path()? },
            4 => {
                let target = self.bytes(MAX_LINK, "the length of a link")?;
                if target.is_empty() || target.contains(&0) {
                    return Err(DecodeError::Range("the text of a link"));
                }
                EntryKind::Symlink {
                    target: target.to_vec(),
                }
            }
            5 => EntryKind::Fifo,
            6 => EntryKind::Socket,
            7 => EntryKind::CharDevice {
                major: self.number32("a device number")?,
                minor: self.number32("a device number")?,
            },
            8 => EntryKind::BlockDevice {
                major: self.number32("a device number")?,
                minor: self.number32("a device number")?,
            },
            kind => {
                return Err(DecodeError::Unknown {
                    what: "kind of entry",
                    kind: u64::from(kind),
                });
            }
        };
        if mode != 0 && matches!(kind, EntryKind::Symlink { .. }) {
            return Err(DecodeError::Range("the mode of a link"));
        }
        if path.is_empty() && kind != EntryKind::Directory {
            return Err(DecodeError::Range("the kind of the root"));
        }
        Ok(Entry {
            path,
            kind,
            mode,
            uid,
            gid,
            mtime: Timestamp { seconds, nanos },
            xattrs,
        })
    }

    fn xattrs(&mut self) -> Result<Xattrs, DecodeError> {
        let count = self.number()?;
        let mut xattrs: Xattrs = Vec::new();
        let mut names = 0;
        for _ in 0..count {
            let name = self.bytes(MAX_NAME, "the name of an extended attribute")?;
            let value = self.bytes(MAX_XATTR_VALUE, "the value of an extended attribute")?;
            names += name.len() + 1;
            if name.is_empty() || name.contains(&0) {
                return Err(DecodeError::Xattr("have an empty name or a NUL in one"));
            }
            if names > MAX_XATTR_NAMES {
                return Err(DecodeError::Xattr("are too many"));
            }
            if xattrs.last().is_some_and(|(last, _)| last.as_slice() >= name) {
                return Err(DecodeError::Xattr("are out of order"));
            }
            xattrs.push((name.to_vec(), value.to_vec()));
        }
        Ok(xattrs)
    }

    fn file(&mut self, extents: Extents) -> Result<EntryKind, DecodeError> {
        let size = self.number()?;
        if size > MAX_FILE {
            return Err(DecodeError::Range("the size of a file"));
        }
        let mut list = Vec::new();
        if extents == Extents::With {
            let count = self.number()?;
            let mut covered = 0_u64;
            for _ in 0..count {
                let extent = self.extent()?;
                let after_hole = matches!(list.last(), Some(Extent::Hole { .. }));
                if after_hole && matches!(extent, Extent::Hole { .. }) {
                    return Err(DecodeError::Extents("have two holes in a row"));
                }
                covered = covered
                    .checked_add(extent.length())
                    .ok_or(DecodeError::Extents("are longer than the file"))?;
                list.push(extent);
            }
            if covered != size {
                return Err(DecodeError::Extents("are not as long as the file"));
            }
        }
        Ok(EntryKind::File { size, extents: list })
    }
}

/// The part of `frame` that `part`, a slice of it, is. Nothing is copied.
#[must_use]
pub fn share(frame: &Bytes, part: &[u8]) -> Bytes {
    if part.is_empty() {
        return Bytes::new();
    }
    frame.slice_ref(part)
}
