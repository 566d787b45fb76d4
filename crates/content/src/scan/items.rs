//! What a scan has to look at: the walk beside the base, entry by entry.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::stat::{Kind, Stat};
use super::walk::{Seen, Walk};
use super::{Base, ScanError};
use crate::entry::{Entry, EntryKind, Timestamp, compare_paths};
use crate::tree::{Facts, FactsReader, MAX_HARDLINK_GROUPS, TreeReader, TreeSummary};

/// Files are stamped with a clock that ticks every 1 to 10 ms, or only every second or two on some file systems; and a file is
/// stamped at the beginning of a write whose bytes come a little later. What was changed less than this before a scan began may
/// have changed once more after it was read and still carry the same time, so the next scan reads it again.
const RACY_SECONDS: i64 = 2;

/// One thing to do, in canonical order.
#[derive(Debug)]
pub(crate) enum Item {
    /// The base's entry is still right.
    Same(Box<Entry>, Facts),
    /// The base's entry has gone.
    Gone(Vec<u8>),
    /// An entry that is new or may have changed.
    Look {
        seen: Seen,
        /// First name of the file that this is a further name of.
        link: Option<Vec<u8>>,
        base: Option<Box<Entry>>,
    },
}

/// Gives items in canonical order.
pub(crate) trait Items {
    /// The next one.
    fn next(&mut self) -> Result<Option<Item>, ScanError>;
}

/// A base's entries with their facts.
pub(crate) struct BaseEntries {
    tree: TreeReader<File>,
    facts: Option<FactsReader<File>>,
    ahead: Option<(Entry, Option<Facts>)>,
    id: crate::entry::TreeId,
    /// What the tree said at its end.
    summary: Option<TreeSummary>,
}

impl BaseEntries {
    pub(crate) fn open(base: &Base) -> Result<Self, ScanError> {
        let open = |path: &Path| {
            File::open(path)
                .map_err(|error| ScanError::io("open", path.as_os_str().as_encoded_bytes(), error))
        };
        let mut entries = Self {
            tree: TreeReader::new(open(&base.tree)?),
            facts: match &base.facts {
                Some(path) => Some(FactsReader::new(open(path)?)),
                None => None,
            },
            ahead: None,
            id: base.id,
            summary: None,
        };
        entries.advance()?;
        Ok(entries)
    }

    pub(crate) fn peek(&self) -> Option<&Entry> {
        self.ahead.as_ref().map(|(entry, _)| entry)
    }

    pub(crate) fn take(&mut self) -> Result<Option<(Entry, Option<Facts>)>, ScanError> {
        let taken = self.ahead.take();
        if taken.is_some() {
            self.advance()?;
        }
        Ok(taken)
    }

    fn advance(&mut self) -> Result<(), ScanError> {
        self.ahead = match self.tree.next()? {
            Some(entry) => {
                let facts = match &mut self.facts {
                    Some(facts) => Some(facts.next()?),
                    None => None,
                };
                Some((entry, facts))
            }
            None => {
                self.finish()?;
                None
            }
        };
        Ok(())
    }

    /// What came was the base, whole, and so were its facts.
    fn finish(&mut self) -> Result<(), ScanError> {
        if self.summary.is_some() {
            return Ok(());
        }
        self.summary = self.tree.summary();
        if let Some(found) = self.summary.map(|summary| summary.id).filter(|id| *id != self.id) {
            return Err(crate::tree::TreeError::Id {
                found,
                wanted: self.id,
            }
            .into());
        }
        if let Some(facts) = self.facts.take() {
            facts.finish(self.id)?;
        }
        Ok(())
    }
}

/// First names of files with several.
#[derive(Debug, Default)]
struct Links {
    first: HashMap<(u64, u64), (Vec<u8>, u32)>,
}

impl Links {
    /// First name of a file that has been met by another name.
    fn link(&mut self, seen: &Seen, overlay: bool) -> Result<Option<Vec<u8>>, ScanError> {
        let stat = &seen.stat;
        // Overlays give all their deletions one inode, which says nothing about them.
        if stat.nlink < 2 || stat.kind == Kind::Directory || (overlay && stat.is_whiteout()) {
            return Ok(None);
        }
        let key = (stat.dev, stat.ino);
        if let Some((first, missing)) = self.first.get_mut(&key) {
            let first = first.clone();
            *missing = missing.saturating_sub(1);
            if *missing == 0 {
                self.first.remove(&key);
            }
            return Ok(Some(first));
        }
        if self.first.len() >= MAX_HARDLINK_GROUPS {
            return Err(ScanError::HardlinkGroups);
        }
        self.first.insert(key, (seen.path.clone(), stat.nlink - 1));
        Ok(None)
    }
}

/// The walk beside the base.
pub(crate) struct Compare<'a> {
    walk: Walk<'a>,
    ahead: Option<Seen>,
    base: Option<BaseEntries>,
    links: Links,
    overlay: bool,
    silent: bool,
    /// Entries that the walk gave.
    pub(crate) seen: u64,
}

impl<'a> Compare<'a> {
    pub(crate) fn new(
        mut walk: Walk<'a>,
        base: Option<BaseEntries>,
        overlay: bool,
        silent: bool,
    ) -> Result<Self, ScanError> {
        Ok(Self {
            ahead: walk.next()?,
            walk,
            base,
            links: Links::default(),
            overlay,
            silent,
            seen: 0,
        })
    }
}

impl Items for Compare<'_> {
    fn next(&mut self) -> Result<Option<Item>, ScanError> {
        let old = self.base.as_ref().and_then(BaseEntries::peek);
        let order = match (&self.ahead, old) {
            (None, None) => return Ok(None),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(seen), Some(old)) => compare_paths(&seen.path, &old.path),
        };
        let old = match &mut self.base {
            Some(base) if order.is_ge() => base.take()?,
            _ => None,
        };
        if order.is_gt() {
            return Ok(old.map(|(entry, _)| Item::Gone(entry.path)));
        }
        let next = self.walk.next()?;
        let Some(seen) = std::mem::replace(&mut self.ahead, next) else {
            return Ok(None);
        };
        self.seen += 1;
        let link = self.links.link(&seen, self.overlay)?;
        Ok(Some(match old {
            Some((entry, Some(facts)))
                if unchanged(&seen.stat, link.as_deref(), &entry, &facts)
                    && !(self.silent && seen.stat.kind == Kind::File) =>
            {
                Item::Same(Box::new(entry), facts)
            }
            other => Item::Look {
                seen,
                link,
                base: other.map(|(entry, _)| Box::new(entry)),
            },
        }))
    }
}

/// Whether an entry is what it was when it was read, without reading it.
fn unchanged(stat: &Stat, link: Option<&[u8]>, entry: &Entry, facts: &Facts) -> bool {
    let Some(read) = facts.read else { return false };
    let kind = match (&entry.kind, link) {
        (EntryKind::Hardlink { target }, Some(first)) => target == first,
        (EntryKind::Hardlink { .. }, None) | (_, Some(_)) => false,
        (EntryKind::Directory, _) => stat.kind == Kind::Directory,
        (EntryKind::File { size, .. }, _) => stat.kind == Kind::File && stat.size == *size,
        (EntryKind::Symlink { .. }, _) => stat.kind == Kind::Symlink,
        (EntryKind::Fifo, _) => stat.kind == Kind::Fifo,
        (EntryKind::Socket, _) => stat.kind == Kind::Socket,
        (EntryKind::CharDevice { major, minor }, _) => {
            stat.kind == Kind::CharDevice && stat.device == (*major, *minor)
        }
        (EntryKind::BlockDevice { major, minor }, _) => {
            stat.kind == Kind::BlockDevice && stat.device == (*major, *minor)
        }
    };
    kind && facts.dev == stat.dev
        && facts.ino == stat.ino
        && facts.ctime == stat.ctime
        && facts.nlink == stat.nlink
        && entry.mtime == stat.mtime
        && entry.mode == stat.mode
        && entry.uid == stat.uid
        && entry.gid == stat.gid
        && stat.ctime
            < Timestamp {
                seconds: read.seconds - RACY_SECONDS,
                nanos: read.nanos,
            }
}

/// What a comparison found to do, on disk: everything that is not [`Item::Same`].
pub(crate) struct Todo {
    file: File,
    /// Entries that the base has no more.
    pub(crate) gone: u64,
    /// Entries to look at.
    pub(crate) looks: u64,
    /// What the base said at its end.
    pub(crate) base: Option<TreeSummary>,
}

impl Todo {
    /// Compares, and writes down what there is to do.
    pub(crate) fn make(
        mut items: Compare<'_>,
        directory: &Path,
        mut met: impl FnMut(u64) -> Result<(), ScanError>,
    ) -> Result<Self, ScanError> {
        let named = directory.as_os_str().as_encoded_bytes();
        let io = |error: std::io::Error| ScanError::io("write in", named, error);
        let file = scratch_file(directory)?;
        let mut out = BufWriter::with_capacity(256 << 10, &file);
        let (mut gone, mut looks) = (0, 0);
        let mut record = Vec::new();
        while let Some(item) = items.next()? {
            if items.seen.is_multiple_of(1024) {
                met(items.seen)?;
            }
            record.clear();
            match item {
                Item::Same(..) => continue,
                Item::Gone(path) => {
                    gone += 1;
                    put(&mut record, &path);
                    record.push(0);
                }
                Item::Look { seen, link, .. } => {
                    looks += 1;
                    put(&mut record, &seen.path);
                    record.push(1 + u8::from(link.is_some()));
                    if let Some(link) = link {
                        put(&mut record, &link);
                    }
                    put_stat(&mut record, &seen.stat);
                }
            }
            out.write_all(&record).map_err(io)?;
        }
        out.flush().map_err(io)?;
        drop(out);
        Ok(Self {
            file,
            gone,
            looks,
            base: items.base.and_then(|base| base.summary),
        })
    }

    /// Reads it from the beginning.
    pub(crate) fn records(&self) -> Result<Records, ScanError> {
        let mut file = self
            .file
            .try_clone()
            .map_err(|error| ScanError::io("read", b"", error))?;
        file.seek(SeekFrom::Start(0))
            .map_err(|error| ScanError::io("read", b"", error))?;
        Ok(Records {
            input: BufReader::with_capacity(256 << 10, file),
            left: self.gone + self.looks,
        })
    }
}

/// A file without a name.
pub(crate) fn scratch_file(directory: &Path) -> Result<File, ScanError> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let path = directory.join(format!(
        ".scratch-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    ));
    let open = || {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        std::fs::remove_file(&path)?;
        Ok::<_, std::io::Error>(file)
    };
    open().map_err(|error| ScanError::io("write in", directory.as_os_str().as_encoded_bytes(), error))
}

/// A line of what there is to do.
pub(crate) struct Record {
    pub(crate) path: Vec<u8>,
    /// `None`: it has gone.
    pub(crate) look: Option<(Stat, Option<Vec<u8>>)>,
}

/// Lines of what there is to do.
pub(crate) struct Records {
    input: BufReader<File>,
    left: u64,
}

impl Records {
    pub(crate) fn next(&mut self) -> Result<Option<Record>, ScanError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.read()
            .map(Some)
            .map_err(|error| ScanError::io("read", b"", error))
    }

    fn read(&mut self) -> std::io::Result<Record> {
        let path = self.text()?;
        let mut tag = [0];
        self.input.read_exact(&mut tag)?;
        if tag[0] == 0 {
            return Ok(Record { path, look: None });
        }
        let link = if tag[0] == 2 { Some(self.text()?) } else { None };
        let mut raw = [0; STAT_LENGTH];
        self.input.read_exact(&mut raw)?;
        Ok(Record {
            path,
            look: Some((get_stat(&raw), link)),
        })
    }

    fn text(&mut self) -> std::io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.input.read_exact(&mut length)?;
        let mut text = vec![0; u32::from_le_bytes(length) as usize];
        self.input.read_exact(&mut text)?;
        Ok(text)
    }
}

/// The base with what there is to do.
pub(crate) struct Replay {
    base: BaseEntries,
    records: Records,
    ahead: Option<Record>,
}

impl Replay {
    pub(crate) fn new(base: &Base, todo: &Todo) -> Result<Self, ScanError> {
        let mut records = todo.records()?;
        Ok(Self {
            base: BaseEntries::open(base)?,
            ahead: records.next()?,
            records,
        })
    }
}

impl Items for Replay {
    fn next(&mut self) -> Result<Option<Item>, ScanError> {
        let order = match (self.base.peek(), &self.ahead) {
            (None, None) => return Ok(None),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(old), Some(record)) => compare_paths(&old.path, &record.path),
        };
        let old = if order.is_le() { self.base.take()? } else { None };
        if order.is_lt() {
            return Ok(old.map(|(entry, facts)| Item::Same(Box::new(entry), facts.unwrap_or_default())));
        }
        let next = self.records.next()?;
        let Some(record) = std::mem::replace(&mut self.ahead, next) else {
            return Ok(None);
        };
        Ok(Some(match record.look {
            None => Item::Gone(record.path),
            Some((stat, link)) => Item::Look {
                seen: Seen {
                    path: record.path,
                    stat,
                },
                link,
                base: old.map(|(entry, _)| Box::new(entry)),
            },
        }))
    }
}

/// A tree of which some files are read again.
pub(crate) struct Again<'a> {
    base: BaseEntries,
    root: &'a super::stat::Root,
    directories: super::dirs::Directories,
    paths: &'a [Vec<u8>],
}

impl<'a> Again<'a> {
    pub(crate) fn new(
        base: &Base,
        root: &'a super::stat::Root,
        paths: &'a [Vec<u8>],
    ) -> Result<Self, ScanError> {
        Ok(Self {
            base: BaseEntries::open(base)?,
            root,
            directories: super::dirs::Directories::new(root)
                .map_err(|error| ScanError::io("open", b"", error))?,
            paths,
        })
    }
}

impl Items for Again<'_> {
    fn next(&mut self) -> Result<Option<Item>, ScanError> {
        let Some((entry, facts)) = self.base.take()? else {
            return Ok(None);
        };
        while self
            .paths
            .first()
            .is_some_and(|path| compare_paths(path, &entry.path).is_lt())
        {
            self.paths = &self.paths[1..];
        }
        if self.paths.first() != Some(&entry.path) {
            return Ok(Some(Item::Same(Box::new(entry), facts.unwrap_or_default())));
        }
        self.paths = &self.paths[1..];
        let (parent, name) = super::dirs::split(&entry.path);
        let stat = self
            .directories
            .open(parent)
            .and_then(|directory| super::stat::stat_at(directory, name));
        Ok(Some(match stat {
            Ok(stat) if self.root.holds(&stat) && stat.kind == Kind::File => Item::Look {
                seen: Seen {
                    path: entry.path,
                    stat,
                },
                link: None,
                base: None,
            },
            _ => Item::Gone(entry.path),
        }))
    }
}

fn put(out: &mut Vec<u8>, text: &[u8]) {
    // Paths have 256 KiB at most.
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text);
}

const STAT_LENGTH: usize = 1 + 4 * 3 + 8 + 12 * 2 + 8 * 2 + 4 + 8 + 8;
const KINDS: [Kind; 7] = [
    Kind::Directory,
    Kind::File,
    Kind::Symlink,
    Kind::Fifo,
    Kind::Socket,
    Kind::CharDevice,
    Kind::BlockDevice,
];

fn put_stat(out: &mut Vec<u8>, stat: &Stat) {
    out.push(KINDS.iter().position(|kind| *kind == stat.kind).unwrap_or(0) as u8);
    for number in [
        stat.mode,
        stat.uid,
        stat.gid,
        stat.nlink,
        stat.device.0,
        stat.device.1,
        stat.mtime.nanos,
        stat.ctime.nanos,
    ] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    for number in [
        stat.size,
        stat.dev,
        stat.ino,
        stat.mount,
        stat.mtime.seconds as u64,
        stat.ctime.seconds as u64,
    ] {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

fn get_stat(raw: &[u8; STAT_LENGTH]) -> Stat {
    let short = |index: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&raw[1 + 4 * index..][..4]);
        u32::from_le_bytes(bytes)
    };
    let long = |index: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&raw[33 + 8 * index..][..8]);
        u64::from_le_bytes(bytes)
    };
    Stat {
        kind: KINDS[usize::from(raw[0]).min(KINDS.len() - 1)],
        mode: short(0),
        uid: short(1),
        gid: short(2),
        nlink: short(3),
        device: (short(4), short(5)),
        mtime: Timestamp {
            seconds: long(4) as i64,
            nanos: short(6),
        },
        ctime: Timestamp {
            seconds: long(5) as i64,
            nanos: short(7),
        },
        size: long(0),
        dev: long(1),
        ino: long(2),
        mount: long(3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stat_says_is_kept() {
        let stat = Stat {
            kind: Kind::BlockDevice,
            mode: 1,
            uid: 2,
            gid: 3,
            size: 4,
            mtime: Timestamp {
                seconds: -5,
                nanos: 6,
            },
            ctime: Timestamp { seconds: 7, nanos: 8 },
            dev: 9,
            ino: u64::MAX,
            nlink: 11,
            device: (12, 13),
            mount: 14,
        };
        let mut raw = Vec::new();
        put_stat(&mut raw, &stat);
        assert_eq!(get_stat(&raw.try_into().unwrap()), stat);
    }
}
