//! The sink's record of what it holds: the manifest and the facts beside it, in a directory of its own outside the root.
//!
//! The record is believed only after a rescan compared its facts with what is there. Whatever a round that broke off changed has
//! another change time, so an older record stays useful – but not after a crash of the machine, when bytes may have reached the
//! disk and their times not. A mark that a round began, with the boot in which it did, tells that; and a record of another boot is
//! not believed at all, since others wrote to the root meanwhile.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::Stat;

use super::SinkError;
use crate::boot::{BOOT, boot, is_of_this_boot, note_boot};
use crate::entry::{Entry, Timestamp, TreeId};
use crate::scan::Base;
use crate::tree::{Facts, FactsReader, FactsWriter, TreeError, TreeReader, TreeSummary, TreeWriter};

const MANIFEST: &str = "sink.tree";
const FACTS: &str = "sink.facts";
const MARK: &str = "sink.open";
const LOCK: &str = "sink.lock";
/// Stands for the end of the round, which is not known while facts are written.
const ROUND_END: i64 = i64::MAX;
/// After this long the clock that stamps files has ticked.
const TICK: Duration = Duration::from_millis(20);
/// Seconds by which a scan wants a change to be older than the look at it, because others may write at that moment. While a round
/// writes nobody else does, so the sink dates its own looks that much later.
const RACY_SECONDS: i64 = 2;

/// How long a round waits for an earlier one that was stopped and has not noticed yet.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the record is. While it is open, no other round has it.
#[derive(Debug)]
pub(super) struct Record {
    directory: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

/// A manifest and its facts, by their paths.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub manifest: PathBuf,
    pub facts: PathBuf,
}

fn lock(path: &Path) -> Result<File, SinkError> {
    let file = File::create(path).map_err(TreeError::Io)?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if started.elapsed() < PATIENCE => {
                std::thread::sleep(TICK);
            }
            Err(TryLockError::WouldBlock) => return Err(SinkError::Busy),
            Err(TryLockError::Error(error)) => return Err(SinkError::Record(TreeError::Io(error))),
        }
    }
}

impl Record {
    pub(super) fn open(directory: &Path) -> Result<Self, SinkError> {
        let record = |error| SinkError::Record(TreeError::Io(error));
        std::fs::create_dir_all(directory).map_err(record)?;
        let lock = lock(&directory.join(LOCK))?;
        for left in std::fs::read_dir(directory).map_err(record)? {
            let left = left.map_err(record)?;
            let name = left.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("sink.") && name.ends_with(".new") {
                std::fs::remove_file(left.path()).map_err(record)?;
            }
        }
        Ok(Self {
            directory: directory.to_path_buf(),
            _lock: lock,
        })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The last record, if it may be used as the base of a rescan.
    pub(super) fn held(&self) -> Result<Option<Base>, TreeError> {
        if std::fs::read_to_string(self.path(MARK)).is_ok_and(|marked| marked != boot())
            || !is_of_this_boot(&self.path(BOOT))
        {
            return Ok(None);
        }
        let tree = self.path(MANIFEST);
        let facts = self.path(FACTS);
        if !facts.exists() {
            return Ok(None);
        }
        let mut hash = blake3::Hasher::new();
        match File::open(&tree) {
            Ok(file) => hash.update_reader(file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(Some(Base {
            id: TreeId(*hash.finalize().as_bytes()),
            tree,
            facts: Some(facts),
        }))
    }

    /// Notes durably that the root is about to be changed.
    pub(super) fn begin(&self) -> io::Result<()> {
        let boot = boot();
        if std::fs::read_to_string(self.path(MARK)).is_ok_and(|marked| marked == boot) {
            return Ok(());
        }
        let mut mark = File::create(self.path(MARK))?;
        mark.write_all(boot.as_bytes())?;
        mark.sync_all()?;
        File::open(&self.directory)?.sync_all()
    }

    /// Makes what is in these files the record.
    pub(super) fn keep(&self, new: &Held) -> io::Result<()> {
        std::fs::rename(&new.manifest, self.path(MANIFEST))?;
        std::fs::rename(&new.facts, self.path(FACTS))?;
        note_boot(&self.path(BOOT))
    }

    /// Something was changed since the root was last known to be on disk.
    pub(super) fn is_open(&self) -> bool {
        self.path(MARK).exists()
    }

    /// Notes that the root is on disk as the record says. The record itself is brought there too; were it torn nevertheless, its
    /// checksums would tell.
    pub(super) fn settle(&self) -> io::Result<()> {
        File::open(self.path(MANIFEST))?.sync_all()?;
        File::open(self.path(FACTS))?.sync_all()?;
        match std::fs::remove_file(self.path(MARK)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        File::open(&self.directory)?.sync_all()
    }
}

/// The base as a stream.
pub(super) struct BaseStream {
    tree: Option<(TreeReader<File>, FactsReader<File>)>,
    next: Option<(Entry, Facts)>,
}

impl BaseStream {
    /// A base without anything.
    pub(super) fn nothing() -> Self {
        Self {
            tree: None,
            next: None,
        }
    }

    pub(super) fn open(held: &Held) -> Result<Self, TreeError> {
        let manifest = File::open(&held.manifest)?;
        let facts = File::open(&held.facts)?;
        let mut base = Self {
            tree: Some((TreeReader::new(manifest), FactsReader::new(facts))),
            next: None,
        };
        base.step()?;
        Ok(base)
    }

    pub(super) fn peek(&self) -> Option<&Entry> {
        self.next.as_ref().map(|(entry, _)| entry)
    }

    pub(super) fn take(&mut self) -> Result<Option<(Entry, Facts)>, TreeError> {
        let taken = self.next.take();
        self.step()?;
        Ok(taken)
    }

    fn step(&mut self) -> Result<(), TreeError> {
        if let Some((tree, facts)) = &mut self.tree {
            self.next = match tree.next()? {
                Some(entry) => Some((entry, facts.next()?)),
                None => None,
            };
        }
        Ok(())
    }
}

/// The tree that comes out of a round, on its way to the record.
pub(super) struct Output {
    tree: TreeWriter<File>,
    facts: FactsWriter<File>,
    to: Held,
}

/// Facts of something that this round wrote and nobody else touched.
pub(super) fn facts_of(stat: &Stat) -> Facts {
    Facts {
        dev: u64::from(rustix::fs::major(stat.st_dev)) << 32 | u64::from(rustix::fs::minor(stat.st_dev)),
        ino: stat.st_ino,
        ctime: Timestamp {
            seconds: stat.st_ctime,
            nanos: stat.st_ctime_nsec as u32,
        },
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        read: Some(Timestamp {
            seconds: ROUND_END,
            nanos: 0,
        }),
    }
}

impl Output {
    pub(super) fn create(record: &Record, number: u32) -> Result<Self, TreeError> {
        let to = Held {
            manifest: record.path(&format!("sink.{number}.tree.new")),
            facts: record.path(&format!("sink.{number}.facts.new")),
        };
        Ok(Self {
            tree: TreeWriter::new(File::create(&to.manifest)?),
            facts: FactsWriter::new(File::create(&to.facts)?),
            to,
        })
    }

    pub(super) fn push(&mut self, entry: &Entry, facts: &Facts) -> Result<(), TreeError> {
        self.tree.push(entry)?;
        self.facts.push(facts)
    }

    /// Completes the tree.
    pub(super) fn finish(self) -> Result<(TreeSummary, Held), TreeError> {
        let (summary, _) = self.tree.finish()?;
        self.facts.finish(summary.id)?;
        Ok((summary, self.to))
    }
}

/// Dates the facts of what a round wrote, when nothing is written any more.
pub(super) fn date(held: &Held, summary: &TreeSummary) -> Result<(), TreeError> {
    // Whatever is changed from now on gets a later time than what the round changed.
    std::thread::sleep(TICK);
    let mut now = crate::scan::now();
    now.seconds += RACY_SECONDS;
    let dated = held.facts.with_extension("dated.new");
    let mut reader = FactsReader::new(File::open(&held.facts)?);
    let mut writer = FactsWriter::new(File::create(&dated)?);
    for _ in 0..summary.entries {
        let mut facts = reader.next()?;
        if facts.read.is_some_and(|read| read.seconds == ROUND_END) {
            facts.read = Some(now);
        }
        writer.push(&facts)?;
    }
    reader.finish(summary.id)?;
    writer.finish(summary.id)?;
    std::fs::rename(&dated, &held.facts)?;
    Ok(())
}

/// Gives the bytes of a manifest in pieces that fit into messages.
pub(super) fn pieces(
    manifest: &Path,
    mut give: impl FnMut(Vec<u8>) -> Result<(), SinkError>,
) -> Result<(), SinkError> {
    let mut file = File::open(manifest).map_err(TreeError::Io)?;
    loop {
        let mut piece = Vec::new();
        (&mut file)
            .take(1 << 20)
            .read_to_end(&mut piece)
            .map_err(TreeError::Io)?;
        if piece.is_empty() {
            return Ok(());
        }
        give(piece)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_another_boot_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let record = Record::open(directory.path()).unwrap();
        let new = Held {
            manifest: directory.path().join("manifest"),
            facts: directory.path().join("facts"),
        };
        for file in [&new.manifest, &new.facts] {
            std::fs::write(file, "something").unwrap();
        }
        record.keep(&new).unwrap();
        assert!(record.held().unwrap().is_some());
        std::fs::write(record.path(BOOT), "another").unwrap();
        assert!(record.held().unwrap().is_none());
    }
}
