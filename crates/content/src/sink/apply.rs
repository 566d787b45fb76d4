//! Puts a delta into the root, in one pass together with the base's manifest, and writes the manifest of what comes out.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64;

use super::attributes::{self, Node};
use super::content::Filling;
use super::dirs::{Directories, is_below};
use super::error::{SinkError, failed, shown};
use super::pending::Pending;
use super::place::{Place, open_directory, split};
use super::pool::Job;
use super::record::{BaseStream, Held, Output, facts_of};
use super::refusal::refused;
use crate::entry::{ChunkId, Entry, EntryKind, compare_paths};
use crate::message::{Operation, Write};
use crate::tree::{Facts, TreeSummary};

/// Facts of something that a rescan has to look at again.
const UNKNOWN: Facts = Facts {
    dev: 0,
    ino: 0,
    ctime: crate::entry::Timestamp { seconds: 0, nanos: 0 },
    nlink: 0,
    read: None,
};

/// What a pass came to.
pub(super) struct Applied {
    /// The tree that came out.
    pub summary: TreeSummary,
    /// Where its manifest is.
    pub held: Held,
    /// Files that could not be put together, in canonical order.
    pub again: Vec<Vec<u8>>,
    /// The root's entry.
    pub root: Option<Entry>,
}

/// Counts of a round, over all passes.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    /// Entries that were changed.
    pub changed: u64,
    /// Bytes of content that came over the wire.
    pub literal: u64,
    /// Bytes of content that were put in place.
    pub content: u64,
}

/// One pass.
pub(super) struct Apply {
    place: Arc<Place>,
    base: BaseStream,
    pending: Pending,
    directories: Directories,
    /// Path of the last entry or removal.
    last: Option<Vec<u8>>,
    /// The last removal, whose path may come once more and below which the base has nothing any more.
    removed: Option<Vec<u8>>,
    filling: Option<Filling>,
    /// Hashes of the paths that have another inode than in the base: further names of theirs have to be made again.
    renewed: HashSet<u64>,
    /// The directory that a hardlink's target was in last.
    target: Option<(Vec<u8>, OwnedFd)>,
    again: Vec<Vec<u8>>,
    pub(super) counts: Counts,
}

impl Apply {
    pub(super) fn new(place: Arc<Place>, base: BaseStream, output: Output) -> Self {
        Self {
            pending: Pending::new(place.clone(), output),
            place,
            base,
            directories: Directories::new(),
            last: None,
            removed: None,
            filling: None,
            renewed: HashSet::new(),
            target: None,
            again: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Bytes of content that are in place by now.
    pub(super) fn in_place(&self) -> u64 {
        self.counts.content + self.pending.content
    }

    /// Tells what failed of what is under way.
    pub(super) fn look(&mut self) -> Result<(), SinkError> {
        self.pending.look()
    }

    /// Waits for what is under way.
    pub(super) fn settle(&mut self) -> Result<(), SinkError> {
        self.pending.settle()
    }

    /// Does one operation.
    pub(super) fn operation(&mut self, operation: Operation) -> Result<(), SinkError> {
        match (&mut self.filling, operation) {
            (Some(filling), Operation::Data { id, bytes }) => {
                self.counts.literal += bytes.len() as u64;
                filling.data(id, &bytes)
            }
            (Some(filling), Operation::Hole { length }) => filling.hole(length),
            (
                Some(filling),
                Operation::Copy {
                    path,
                    offset,
                    length,
                    id,
                },
            ) => filling.copy(&self.place, &path, offset, length, id),
            (
                Some(filling),
                Operation::Patch {
                    path,
                    offset,
                    length,
                    id,
                    parts,
                },
            ) => {
                for part in &parts {
                    if let crate::message::Part::Literal(bytes) = part {
                        self.counts.literal += bytes.len() as u64;
                    }
                }
                filling.patch(&self.place, &path, offset, length, id, &parts)
            }
            (Some(filling), Operation::Keep { length }) => filling.keep(&self.place, length),
            (Some(_), Operation::FileEnd) => self.file_end(),
            (None, Operation::Remove { path }) => self.remove(path),
            (None, Operation::Make(entry)) => self.make(entry),
            (None, Operation::Attributes(entry)) => self.attributes(entry),
            (None, Operation::File { entry, write }) => {
                let base = self.clear_for_file(&entry)?;
                self.begin_file(entry, write, base)
            }
            (None, Operation::Whole { entry, id, bytes }) => self.whole(entry, id, &bytes),
            (Some(_), _) => Err(SinkError::State {
                what: "an operation within a file's content",
            }),
            (None, _) => Err(SinkError::State {
                what: "content without a file",
            }),
        }
    }

    /// Everything came: what is left of the base stays, and the directories get their attributes.
    pub(super) fn finish(mut self) -> Result<(Applied, Counts), SinkError> {
        if self.filling.is_some() {
            return Err(SinkError::State {
                what: "the end within a file's content",
            });
        }
        while self.base.peek().is_some() {
            self.pass()?;
        }
        // Whoever makes files may have made staging too.
        self.pending.settle()?;
        if self.place.has_staging() {
            self.directories.touch_root();
        }
        let root = self.directories.finish(&self.place, &mut self.pending)?;
        self.counts.content += self.pending.content;
        let (summary, held) = self.pending.finish()?;
        Ok((
            Applied {
                summary,
                held,
                again: self.again,
                root,
            },
            self.counts,
        ))
    }

    /// Goes to `path` in canonical order, past what of the base comes before, and takes what the base has there.
    fn reach(&mut self, path: &[u8], removal: bool) -> Result<Option<(Entry, Facts)>, SinkError> {
        if let Some(last) = &self.last {
            let after_removal = !removal && self.removed.as_ref() == Some(last);
            match compare_paths(last, path) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal if after_removal => {}
                _ => {
                    return Err(SinkError::Order {
                        path: shown(path),
                        reason: "it should have come earlier",
                    });
                }
            }
        }
        while self
            .base
            .peek()
            .is_some_and(|next| compare_paths(&next.path, path).is_lt())
        {
            self.pass()?;
        }
        let here = self.base.peek().is_some_and(|next| next.path == path);
        let gone = self
            .removed
            .as_ref()
            .is_some_and(|removed| is_below(path, removed));
        let found = if here { self.base.take()? } else { None };
        self.last = Some(path.to_vec());
        self.counts.changed += 1;
        // What is below something that was moved away is gone with it.
        Ok(if gone { None } else { found })
    }

    /// Takes the next entry of the base over as it is, unless it is gone.
    fn pass(&mut self) -> Result<(), SinkError> {
        let Some((entry, facts)) = self.base.take()? else {
            return Ok(());
        };
        if let Some(removed) = &self.removed
            && is_below(&entry.path, removed)
        {
            return Ok(());
        }
        if let EntryKind::Hardlink { target } = &entry.kind
            && self.renewed.contains(&xxh3_64(target))
        {
            self.link(&entry, target, true)?;
            return self.pending.push(&entry, &UNKNOWN);
        }
        self.pending.push(&entry, &facts)?;
        if matches!(entry.kind, EntryKind::Directory) {
            self.directories
                .enter(&self.place, &entry.path, &mut self.pending)?;
            self.directories.push(entry, false);
        }
        Ok(())
    }

    fn remove(&mut self, path: Vec<u8>) -> Result<(), SinkError> {
        if path.is_empty() {
            return Err(SinkError::Order {
                path: shown(&path),
                reason: "the root can't be removed",
            });
        }
        let Some((base, _)) = self.reach(&path, true)? else {
            return Err(SinkError::Order {
                path: shown(&path),
                reason: "it is to be removed, but the base does not have it",
            });
        };
        self.clear(&base)?;
        self.removed = Some(path);
        Ok(())
    }

    /// Takes what the base has at a path away.
    fn clear(&mut self, base: &Entry) -> Result<(), SinkError> {
        let path = &base.path;
        self.directories.enter(&self.place, path, &mut self.pending)?;
        let directory = self.directories.current(&self.place)?;
        let name = split(path).1;
        match base.kind {
            // Content that a later copy may need.
            EntryKind::File { size, .. } if size > 0 => self.place.displace(directory, name, path),
            EntryKind::Directory => self.place.displace(directory, name, path),
            _ => rustix::fs::unlinkat(directory, name, AtFlags::empty())
                .map_err(|error| refused(directory, name, path, "remove", error)),
        }
    }

    fn make(&mut self, entry: Entry) -> Result<(), SinkError> {
        if let EntryKind::File { size, .. } = entry.kind {
            if size > 0 {
                return Err(SinkError::Content {
                    path: shown(&entry.path),
                    reason: "is missing",
                });
            }
            return self.whole(entry, ChunkId([0; 32]), &[]);
        }
        let base = self.reach(&entry.path, false)?;
        if matches!(entry.kind, EntryKind::Directory) {
            let there = base
                .as_ref()
                .is_some_and(|(base, _)| matches!(base.kind, EntryKind::Directory));
            if let (Some((base, _)), false) = (&base, there) {
                self.clear(base)?;
            }
            return self.directory(entry, there);
        }
        if let Some((base, _)) = &base {
            self.clear(base)?;
            self.removed = Some(base.path.clone());
        }
        self.renewed.insert(xxh3_64(&entry.path));
        self.directories
            .enter(&self.place, &entry.path, &mut self.pending)?;
        let facts = match &entry.kind {
            EntryKind::Hardlink { target } => {
                self.link(&entry, target, false)?;
                UNKNOWN
            }
            _ => self.node(&entry)?,
        };
        self.pending.push(&entry, &facts)
    }

    fn directory(&mut self, entry: Entry, there: bool) -> Result<(), SinkError> {
        let path = &entry.path;
        self.directories.enter(&self.place, path, &mut self.pending)?;
        if !there && !path.is_empty() {
            let directory = self.directories.current(&self.place)?;
            let name = split(path).1;
            // Its mode comes when everything in it is done.
            rustix::fs::mkdirat(directory, name, Mode::RWXU)
                .map_err(|error| refused(directory, name, path, "make the directory", error))?;
        }
        self.pending.push(&entry, &UNKNOWN)?;
        self.directories.push(entry, true);
        Ok(())
    }

    /// Makes a symbolic link, FIFO, socket or device.
    fn node(&mut self, entry: &Entry) -> Result<Facts, SinkError> {
        let path = &entry.path;
        let name = split(path).1;
        let overlay = self.place.overlay;
        let directory = self.directories.current(&self.place)?;
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let special = |kind, device| rustix::fs::mknodat(directory, name, kind, mode, device);
        let made = match &entry.kind {
            EntryKind::Symlink { target } => rustix::fs::symlinkat(target.as_slice(), directory, name),
            EntryKind::Fifo => special(FileType::Fifo, 0),
            EntryKind::Socket => special(FileType::Socket, 0),
            EntryKind::CharDevice { major, minor } => {
                special(FileType::CharacterDevice, rustix::fs::makedev(*major, *minor))
            }
            EntryKind::BlockDevice { major, minor } => {
                special(FileType::BlockDevice, rustix::fs::makedev(*major, *minor))
            }
            _ => return Err(SinkError::Defect("a node of another kind")),
        };
        made.map_err(|error| match error {
            Errno::PERM if !matches!(entry.kind, EntryKind::Symlink { .. }) => SinkError::Unsupported {
                path: shown(path),
                doing: "make the device, FIFO or socket",
                source: error,
            },
            error => refused(directory, name, path, "make", error),
        })?;
        let node = open_node(directory, name).map_err(|error| failed(path, "open", error))?;
        let now = rustix::fs::fstat(&node).map_err(|error| failed(path, "look at", error))?;
        let stat = attributes::set(Node::Path(node.as_fd()), entry, &now, overlay)?;
        Ok(facts_of(&stat))
    }

    /// Makes a further name, in place of the one that is there if `again`.
    fn link(&mut self, entry: &Entry, target: &[u8], again: bool) -> Result<(), SinkError> {
        let path = &entry.path;
        if compare_paths(target, path).is_ge() {
            return Err(SinkError::Order {
                path: shown(path),
                reason: "it is a further name of something that does not come before it",
            });
        }
        self.directories.enter(&self.place, path, &mut self.pending)?;
        // What it is a further name of may still be under way.
        self.pending.settle()?;
        if self.again.iter().any(|again| again == target) {
            // It is made when that comes once more.
            return Ok(());
        }
        let (from, target_name) = split(target);
        if self.target.as_ref().is_none_or(|(open, _)| open != from) {
            let opened = open_directory(self.place.root(), from)
                .map_err(|error| failed(target, "open the directory of", error))?;
            self.target = Some((from.to_vec(), opened));
        }
        let Some((_, from)) = &self.target else {
            return Err(SinkError::Defect("a directory that was opened is not open"));
        };
        let directory = self.directories.current(&self.place)?;
        let name = split(path).1;
        if again {
            match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(refused(directory, name, path, "remove", error)),
            }
        }
        rustix::fs::linkat(from, target_name, directory, name, AtFlags::empty())
            .map_err(|error| refused(directory, name, path, "link", error))?;
        // Its attributes are those of the other name, which are there already: if it says otherwise, it lies.
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| failed(path, "look at", error))?;
        attributes::check(entry, &stat)
    }

    fn attributes(&mut self, mut entry: Entry) -> Result<(), SinkError> {
        let Some((base, _)) = self.reach(&entry.path, false)? else {
            return Err(SinkError::Order {
                path: shown(&entry.path),
                reason: "its attributes change, but the base does not have it",
            });
        };
        let other = || SinkError::Order {
            path: shown(&entry.path),
            reason: "only its attributes change, but the base has something else there",
        };
        if std::mem::discriminant(&base.kind) != std::mem::discriminant(&entry.kind) {
            return Err(other());
        }
        match (&mut entry.kind, base.kind) {
            (EntryKind::Directory, _) => return self.directory(entry, true),
            (
                EntryKind::File { size, extents },
                EntryKind::File {
                    size: was,
                    extents: base,
                },
            ) => {
                if *size != was {
                    return Err(other());
                }
                *extents = base;
            }
            (kind, base) if *kind != base => return Err(other()),
            _ => {}
        }
        self.directories
            .enter(&self.place, &entry.path, &mut self.pending)?;
        if let EntryKind::Hardlink { target } = &entry.kind
            && self.renewed.contains(&xxh3_64(target))
        {
            self.link(&entry, target, true)?;
            return self.pending.push(&entry, &UNKNOWN);
        }
        let path = &entry.path;
        let name = split(path).1;
        let overlay = self.place.overlay;
        let directory = self.directories.look(&self.place)?;
        let node = open_node(directory, name).map_err(|error| failed(path, "open", error))?;
        let now = rustix::fs::fstat(&node).map_err(|error| failed(path, "look at", error))?;
        if attributes::kind_bits(&entry.kind).is_some_and(|kind| kind != now.st_mode & 0o170_000) {
            return Err(SinkError::Changed {
                path: shown(path),
                reason: "it is of another type",
            });
        }
        let stat = attributes::set(Node::Path(node.as_fd()), &entry, &now, overlay)
            .map_err(|error| explain(error, directory, name))?;
        let facts = match entry.kind {
            EntryKind::Hardlink { .. } => UNKNOWN,
            _ => facts_of(&stat),
        };
        self.pending.push(&entry, &facts)
    }

    /// Goes to where a file will be and takes away what cannot be replaced by one; the base's file if there is one.
    fn clear_for_file(&mut self, entry: &Entry) -> Result<Option<Entry>, SinkError> {
        let base = self.reach(&entry.path, false)?.map(|(base, _)| base);
        let base = match base {
            Some(base) if !matches!(base.kind, EntryKind::File { .. }) => {
                self.clear(&base)?;
                self.removed = Some(base.path);
                None
            }
            other => other,
        };
        self.directories
            .enter(&self.place, &entry.path, &mut self.pending)?;
        Ok(base)
    }

    fn begin_file(&mut self, entry: Entry, write: Write, base: Option<Entry>) -> Result<(), SinkError> {
        let path = entry.path.clone();
        let directory = self.directories.current(&self.place)?;
        let filling = Filling::begin(&self.place, directory, split(&path).1, entry, write, base)?;
        if !filling.is_in_place() {
            self.renewed.insert(xxh3_64(&path));
        }
        self.filling = Some(filling);
        Ok(())
    }

    fn file_end(&mut self) -> Result<(), SinkError> {
        let Some(filling) = self.filling.take() else {
            return Err(SinkError::Defect("a file ends that did not begin"));
        };
        let path = filling.path().to_vec();
        let directory = self.directories.current(&self.place)?;
        let name = split(&path).1;
        let filled = filling
            .finish(&self.place, directory, name)
            .map_err(|error| explain(error, directory, name))?;
        if filled.stat.is_none() {
            self.again.push(path);
        } else if let EntryKind::File { size, .. } = filled.entry.kind {
            self.counts.content += size;
        }
        let facts = filled.stat.as_ref().map_or(UNKNOWN, facts_of);
        self.pending.push(&filled.entry, &facts)
    }

    fn whole(&mut self, entry: Entry, id: ChunkId, bytes: &[u8]) -> Result<(), SinkError> {
        let base = self.clear_for_file(&entry)?;
        let size = match entry.kind {
            EntryKind::File { size, .. } => size,
            _ => {
                return Err(SinkError::Content {
                    path: shown(&entry.path),
                    reason: "is for something that is no file",
                });
            }
        };
        if size != bytes.len() as u64 {
            return Err(SinkError::Content {
                path: shown(&entry.path),
                reason: "is not as long as the file",
            });
        }
        self.counts.literal += size;
        self.renewed.insert(xxh3_64(&entry.path));
        let directory = self.directories.share(&self.place)?;
        let base = base.map(|base| Entry {
            // Nothing is taken from it.
            kind: EntryKind::File {
                size: 0,
                extents: Vec::new(),
            },
            ..base
        });
        self.pending.file(Job {
            directory,
            entry,
            id,
            // The frame that they came in may be far larger, and is not to wait with them.
            bytes: Bytes::copy_from_slice(bytes),
            base,
        })
    }
}

/// A descriptor that stands for whatever is at `name`, a symbolic link included, without opening it.
fn open_node(directory: std::os::fd::BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

/// Looks whether a flag of the file is behind a refusal.
pub(super) fn explain(error: SinkError, directory: std::os::fd::BorrowedFd<'_>, name: &[u8]) -> SinkError {
    match error {
        SinkError::Unsupported {
            path,
            doing,
            source: source @ (Errno::PERM | Errno::ACCESS),
        } => match refused(directory, name, path.as_bytes(), doing, source) {
            locked @ SinkError::Immutable { .. } => locked,
            _ => SinkError::Unsupported { path, doing, source },
        },
        other => other,
    }
}
