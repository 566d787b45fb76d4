//! One file while its content arrives.
//!
//! Bytes are checked against the name of their chunk before they are written, wherever they come from. A file that is new is
//! written under its own name, which nothing had before; one that takes another's place is written in staging and exchanged
//! with it when it is complete; a large one is written to in place if the source says so.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Advice, FallocateFlags, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::attributes::{self, Node};
use super::error::{SinkError, failed, shown};
use super::place::{Place, StagedName, open_beneath};
use super::refusal::refused;
use super::room::Room;
use crate::entry::{ChunkId, Entry, EntryKind, Extent};
use crate::message::{Part, Write};

/// Bytes after which writing them to disk is started.
const WRITE_BACK: u64 = 8 << 20;

/// Where the bytes go.
enum Where {
    /// To the final name, where nothing was.
    Direct,
    /// To staging.
    Staged(StagedName),
    /// Into the file that is there.
    InPlace,
}

/// A file that is being filled.
pub(super) struct Filling {
    entry: Entry,
    size: u64,
    extents: Vec<Extent>,
    file: OwnedFd,
    to: Where,
    at: u64,
    /// A stretch of the base was not what it should be: nothing more is written, and the source is asked for it again.
    broken: bool,
    base: Vec<Extent>,
    /// Index and offset of the base's extent that begins at or after `at`.
    base_at: (usize, u64),
    /// The base file that was read from last.
    open: Option<(Vec<u8>, OwnedFd)>,
    /// What was read of it; kept, since memory that is new has to be cleared first.
    buffer: Vec<u8>,
    flushed: u64,
    written: u64,
    room: Option<Arc<Room>>,
    /// Bytes of the file that is there, where it is written to: they need no more room.
    held: u64,
}

/// What came of a file.
pub(super) struct Filled {
    /// The entry with all its extents.
    pub entry: Entry,
    /// What it is like now; `None` if it could not be put together: nothing is there then, or the old file is.
    pub stat: Option<Stat>,
}

/// The mode with which a file is made: what it will have, but for setuid and the like, which come after the owner.
fn first_mode(entry: &Entry) -> Mode {
    Mode::from_raw_mode(entry.mode & 0o777)
}

fn open_new(directory: BorrowedFd<'_>, name: &[u8], mode: Mode) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, mode)
}

impl Filling {
    /// Opens what `entry` is written to. `base` is the base's entry at this path if it is a regular file there.
    pub(super) fn begin(
        place: &Place,
        directory: BorrowedFd<'_>,
        name: &[u8],
        entry: Entry,
        write: Write,
        base: Option<Entry>,
    ) -> Result<Self, SinkError> {
        let EntryKind::File { size, .. } = entry.kind else {
            return Err(SinkError::Content {
                path: shown(&entry.path),
                reason: "is for something that is no file",
            });
        };
        let path = &entry.path;
        let mut found = None;
        if base.is_some() && write == Write::InPlace {
            found = open_in_place(directory, name, path)?.map(|file| (file, Where::InPlace));
        }
        let (file, to) = match found {
            Some(found) => found,
            None if base.is_some() => {
                let staged = StagedName::of(path);
                let file = open_new(place.staging()?, staged.bytes(), first_mode(&entry))
                    .map_err(|error| failed(path, "make", error))?;
                (file, Where::Staged(staged))
            }
            None => {
                let file = open_new(directory, name, first_mode(&entry))
                    .map_err(|error| refused(directory, name, path, "make", error))?;
                (file, Where::Direct)
            }
        };
        let held = match &to {
            Where::InPlace => rustix::fs::fstat(&file).map_or(0, |stat| stat.st_size as u64),
            _ => 0,
        };
        let base = match base.map(|base| base.kind) {
            Some(EntryKind::File { extents, .. }) => extents,
            _ => Vec::new(),
        };
        Ok(Self {
            entry,
            size,
            extents: Vec::new(),
            file,
            to,
            at: 0,
            broken: false,
            base,
            base_at: (0, 0),
            open: None,
            buffer: Vec::new(),
            flushed: 0,
            written: 0,
            room: place.room.clone(),
            held,
        })
    }

    /// Path of the file.
    pub(super) fn path(&self) -> &[u8] {
        &self.entry.path
    }

    /// The file that is there is written to.
    pub(super) fn is_in_place(&self) -> bool {
        matches!(self.to, Where::InPlace)
    }

    fn content(&self, reason: &'static str) -> SinkError {
        SinkError::Content {
            path: shown(&self.entry.path),
            reason,
        }
    }

    /// Counts an extent and goes behind it.
    fn push(&mut self, extent: Extent) -> Result<(), SinkError> {
        let end = self
            .at
            .checked_add(extent.length())
            .filter(|end| *end <= self.size);
        self.at = end.ok_or_else(|| self.content("is longer than the file"))?;
        match (self.extents.last_mut(), &extent) {
            (Some(Extent::Hole { length }), Extent::Hole { length: more }) => *length += more,
            _ => self.extents.push(extent),
        }
        Ok(())
    }

    fn check_room(&self, length: u64) -> Result<(), SinkError> {
        if length > self.size - self.at {
            return Err(self.content("is longer than the file"));
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8], at: u64) -> Result<(), SinkError> {
        let end = at + bytes.len() as u64;
        if let Some(room) = self.room.as_ref().filter(|_| end > self.held) {
            let taken = room.take(bytes.len() as u64);
            taken.map_err(|error| failed(&self.entry.path, "write", error))?;
        }
        let mut done = 0;
        while done < bytes.len() {
            match rustix::io::pwrite(&self.file, &bytes[done..], at + done as u64) {
                Ok(0) => return Err(failed(&self.entry.path, "write", Errno::NOSPC)),
                Ok(written) => done += written,
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(&self.entry.path, "write", error)),
            }
        }
        self.written += bytes.len() as u64;
        if self.written >= WRITE_BACK {
            // Starts writing to disk what is not there yet. The pages that are under way stay in the cache.
            let end = at + bytes.len() as u64;
            let start = self.flushed.min(at);
            if let Some(length) = std::num::NonZeroU64::new(end - start) {
                let _ = rustix::fs::fadvise(&self.file, start, Some(length), Advice::DontNeed);
            }
            self.flushed = end;
            self.written = 0;
        }
        Ok(())
    }

    /// A chunk that came over the wire.
    pub(super) fn data(&mut self, id: ChunkId, bytes: &[u8]) -> Result<(), SinkError> {
        self.check_room(bytes.len() as u64)?;
        if *blake3::hash(bytes).as_bytes() != id.0 {
            return Err(SinkError::Chunk {
                path: shown(&self.entry.path),
                id,
            });
        }
        self.checked(id, bytes)
    }

    /// A chunk whose bytes were compared with its name.
    pub(super) fn checked(&mut self, id: ChunkId, bytes: &[u8]) -> Result<(), SinkError> {
        if !self.broken {
            self.put(bytes, self.at)?;
        }
        self.push(Extent::Chunk {
            length: bytes.len() as u32,
            id,
        })
    }

    /// A hole.
    pub(super) fn hole(&mut self, length: u64) -> Result<(), SinkError> {
        self.check_room(length)?;
        if self.is_in_place() && !self.broken {
            self.punch(length)?;
        }
        self.push(Extent::Hole { length })
    }

    fn punch(&mut self, length: u64) -> Result<(), SinkError> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, self.at, length) {
            Ok(()) => Ok(()),
            Err(Errno::NOTSUP | Errno::NOSYS) => {
                let zeros = vec![0; 64 << 10];
                let mut done = 0;
                while done < length {
                    let step = (length - done).min(zeros.len() as u64);
                    self.put(&zeros[..step as usize], self.at + done)?;
                    done += step;
                }
                Ok(())
            }
            Err(error) => Err(failed(&self.entry.path, "punch a hole into", error)),
        }
    }

    /// Reads a stretch of a base file; `None` if it is not there.
    fn read_base(
        &mut self,
        place: &Place,
        path: &[u8],
        offset: u64,
        length: u32,
    ) -> Result<Option<Vec<u8>>, SinkError> {
        if self.open.as_ref().is_none_or(|(open, _)| open != path) {
            self.open = None;
            match place.open_base(path) {
                Ok(file) => self.open = Some((path.to_vec(), file)),
                Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => {
                    return Err(failed(path, "open", error));
                }
                Err(_) => return Ok(None),
            }
        }
        let Some((_, file)) = &self.open else {
            return Ok(None);
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(length as usize, 0);
        Ok(read_exactly(file.as_fd(), &mut buffer, offset).then_some(buffer))
    }

    /// A chunk that a base file holds.
    pub(super) fn copy(
        &mut self,
        place: &Place,
        path: &[u8],
        offset: u64,
        length: u32,
        id: ChunkId,
    ) -> Result<(), SinkError> {
        self.check_room(u64::from(length))?;
        self.check_in_place(path)?;
        if !self.broken {
            let stays = self.is_in_place() && offset == self.at;
            self.take_over(place, path, offset, length, id, stays)?;
        }
        self.push(Extent::Chunk { length, id })
    }

    /// Reads a chunk of the base, compares it with its name, and writes it unless it stays where it is.
    fn take_over(
        &mut self,
        place: &Place,
        path: &[u8],
        offset: u64,
        length: u32,
        id: ChunkId,
        stays: bool,
    ) -> Result<(), SinkError> {
        match self.read_base(place, path, offset, length)? {
            Some(bytes) if *blake3::hash(&bytes).as_bytes() == id.0 => {
                if !stays {
                    self.put(&bytes, self.at)?;
                }
                self.buffer = bytes;
            }
            _ => self.broken = true,
        }
        Ok(())
    }

    /// A chunk that is like one of a base file.
    pub(super) fn patch(
        &mut self,
        place: &Place,
        path: &[u8],
        offset: u64,
        length: u32,
        id: ChunkId,
        parts: &[Part],
    ) -> Result<(), SinkError> {
        let total: u64 = parts.iter().map(Part::length).sum();
        self.check_room(total)?;
        self.check_in_place(path)?;
        if !self.broken {
            match self.read_base(place, path, offset, length)? {
                Some(base) => self.put_patched(base, offset, id, parts)?,
                None => self.broken = true,
            }
        }
        self.push(Extent::Chunk {
            length: total as u32,
            id,
        })
    }

    fn put_patched(
        &mut self,
        mut base: Vec<u8>,
        offset: u64,
        id: ChunkId,
        parts: &[Part],
    ) -> Result<(), SinkError> {
        let too_far = || SinkError::Defect("a patch reaches too far");
        // Where everything stays in its place, only the new bytes are put over the old ones.
        let over = is_over(parts, base.len());
        let mut result = Vec::new();
        let mut at = 0;
        for part in parts {
            let length = part.length() as usize;
            match part {
                Part::Literal(bytes) if over => base
                    .get_mut(at..at + length)
                    .ok_or_else(too_far)?
                    .copy_from_slice(bytes),
                Part::Literal(bytes) => result.extend_from_slice(bytes),
                Part::Base { .. } if over => {}
                Part::Base { offset, .. } => {
                    let from = *offset as usize;
                    result.extend_from_slice(base.get(from..from + length).ok_or_else(too_far)?);
                }
            }
            at += length;
        }
        if over {
            result = base;
        }
        if *blake3::hash(&result).as_bytes() != id.0 {
            self.broken = true;
            return Ok(());
        }
        if over && self.is_in_place() && offset == self.at {
            let mut at = self.at;
            for part in parts {
                if let Part::Literal(bytes) = part {
                    self.put(bytes, at)?;
                }
                at += part.length();
            }
        } else {
            self.put(&result, self.at)?;
        }
        self.buffer = result;
        Ok(())
    }

    fn check_in_place(&self, path: &[u8]) -> Result<(), SinkError> {
        if self.is_in_place() && path != self.entry.path {
            return Err(self.content("refers to another file, although it is written in place"));
        }
        Ok(())
    }

    /// The base's own extents.
    pub(super) fn keep(&mut self, place: &Place, length: u64) -> Result<(), SinkError> {
        self.check_room(length)?;
        let end = self.at + length;
        while self.base_at.1 < self.at {
            let Some(extent) = self.base.get(self.base_at.0) else {
                return Err(self.content("keeps what the base does not have"));
            };
            self.base_at = (self.base_at.0 + 1, self.base_at.1 + extent.length());
        }
        if self.base_at.1 != self.at {
            return Err(self.content("keeps a part of an extent of the base"));
        }
        let path = self.entry.path.clone();
        self.keep_until(place, &path, end)
    }

    fn keep_until(&mut self, place: &Place, path: &[u8], end: u64) -> Result<(), SinkError> {
        while self.at < end {
            let Some(extent) = self.base.get(self.base_at.0).copied() else {
                return Err(self.content("keeps what the base does not have"));
            };
            if extent.length() > end - self.at {
                return Err(self.content("keeps a part of an extent of the base"));
            }
            if let (Extent::Chunk { length, id }, false, false) = (extent, self.is_in_place(), self.broken) {
                self.take_over(place, path, self.at, length, id, false)?;
            }
            self.base_at = (self.base_at.0 + 1, self.base_at.1 + extent.length());
            self.push(extent)?;
        }
        Ok(())
    }

    /// The content is complete: attributes, and the final name.
    pub(super) fn finish(
        mut self,
        place: &Place,
        directory: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<Filled, SinkError> {
        if self.at != self.size {
            return Err(self.content("is shorter than the file"));
        }
        let ends_in_hole = matches!(self.extents.last(), Some(Extent::Hole { .. }));
        self.entry.kind = EntryKind::File {
            size: self.size,
            extents: std::mem::take(&mut self.extents),
        };
        let in_place = self.is_in_place();
        let entry = self.entry;
        let path = &entry.path;
        if self.broken {
            let removed = match self.to {
                Where::Direct => rustix::fs::unlinkat(directory, name, rustix::fs::AtFlags::empty()),
                Where::Staged(staged) => {
                    rustix::fs::unlinkat(place.staging()?, staged.bytes(), rustix::fs::AtFlags::empty())
                }
                Where::InPlace => Ok(()),
            };
            removed.map_err(|error| failed(path, "remove", error))?;
            return Ok(Filled { entry, stat: None });
        }
        let mut now = rustix::fs::fstat(&self.file).map_err(|error| failed(path, "look at", error))?;
        if (ends_in_hole || in_place) && now.st_size as u64 != self.size {
            rustix::fs::ftruncate(&self.file, self.size)
                .map_err(|error| failed(path, "set the size of", error))?;
            now.st_size = self.size as i64;
        }
        let mut stat = attributes::set(Node::Open(self.file.as_fd()), &entry, &now, place.overlay)?;
        if let Where::Staged(staged) = &self.to {
            place.exchange(directory, name, path, staged)?;
            // A new name changes the change time.
            stat = rustix::fs::fstat(&self.file).map_err(|error| failed(path, "look at", error))?;
        }
        Ok(Filled {
            entry,
            stat: Some(stat),
        })
    }
}

/// All parts of the base stay where they were, and the result is as long.
fn is_over(parts: &[Part], length: usize) -> bool {
    let mut at = 0;
    for part in parts {
        if matches!(part, Part::Base { offset, .. } if u64::from(*offset) != at) {
            return false;
        }
        at += part.length();
    }
    at == length as u64
}

/// The file at `name` for writing in place, if it is one with a single name; `None` if it has to be replaced.
fn open_in_place(directory: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<Option<OwnedFd>, SinkError> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match open_beneath(directory, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::TXTBSY) => return Ok(None),
        Err(error) => return Err(refused(directory, name, path, "open", error)),
    };
    let stat = rustix::fs::fstat(&file).map_err(|error| failed(path, "look at", error))?;
    if stat.st_mode & 0o170_000 != 0o100_000 {
        return Err(SinkError::Changed {
            path: shown(path),
            reason: "it is no regular file any more",
        });
    }
    Ok((stat.st_nlink == 1).then_some(file))
}

/// Fills a buffer from a file; `false` if the file does not have that much, or cannot be read.
pub(super) fn read_exactly(file: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> bool {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(file, &mut buffer[done..], offset + done as u64) {
            Ok(0) => return false,
            Ok(read) => done += read,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}
