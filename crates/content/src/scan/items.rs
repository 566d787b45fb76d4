//! What a scan has to look at: the walk beside the base, entry by entry.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use super::stat::{Kind, Stat};
use super::todo::{Record, Records, Todo};
use super::walk::{Seen, Seens};
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
    walk: Box<dyn Seens + 'a>,
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
        mut walk: impl Seens + 'a,
        base: Option<BaseEntries>,
        overlay: bool,
        silent: bool,
    ) -> Result<Self, ScanError> {
        Ok(Self {
            ahead: walk.next()?,
            walk: Box::new(walk),
            base,
            links: Links::default(),
            overlay,
            silent,
            seen: 0,
        })
    }
}

impl Compare<'_> {
    /// What the base said at its end.
    pub(crate) fn base_summary(&self) -> Option<TreeSummary> {
        self.base.as_ref().and_then(|base| base.summary)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_just_before_a_scan_is_not_trusted() {
        let at = |seconds, nanos| Timestamp { seconds, nanos };
        let stat = |ctime| Stat {
            kind: Kind::Fifo,
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: at(1, 0),
            ctime,
            dev: 1,
            ino: 2,
            nlink: 1,
            device: (0, 0),
            mount: 0,
        };
        let entry = Entry {
            path: b"p".to_vec(),
            kind: EntryKind::Fifo,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: at(1, 0),
            xattrs: Vec::new(),
        };
        let trusted = |ctime, read| unchanged(&stat(ctime), None, &entry, &stat(ctime).facts(read));
        assert!(trusted(at(98, 4), Some(at(100, 5))));
        assert!(
            !trusted(at(98, 5), Some(at(100, 5))),
            "written while it was stamped, or in the same tick"
        );
        assert!(!trusted(at(100, 0), Some(at(100, 5))));
        assert!(!trusted(at(200, 0), Some(at(100, 5))), "a clock that went back");
        assert!(!trusted(at(98, 4), None), "it changed while it was read");
    }
}
