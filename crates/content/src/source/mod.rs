//! The half of a round that reads.
//!
//! ```text
//! scan's threads ──► delta ──► pending ──► queue ──► writer ──► sink
//!                                ▲  answers                      │
//!                                └────────── reader ◄────────────┘
//! ```
//!
//! With nothing at the sink everything is sent in one pass, without a question. With a base, the scan first only looks, then reads what
//! may have changed; chunks that the base has are named, and for the others the sink is asked for hashes of short blocks while the
//! scan goes on.
//!
//! Memory: that of a scan, 64 MiB of content that waits for hashes, 8 MiB of frames, the index of moved chunks (60 MiB at most).

mod adapt;
mod blocks;
mod body;
mod delta;
mod error;
mod index;
mod pending;
mod round;
mod wire;

use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use tranship_core::storage::{Compression, RoundOptions, RoundProgress, RoundReport};

pub use error::SourceError;
pub(crate) use index::IN_PLACE;

use crate::boot::{BOOT, is_of_this_boot, note_boot};
use crate::entry::TreeId;
use crate::frame::{FrameError, FrameReader};
use crate::message::Message;
use crate::scan::{Base, Early, Excludes, Hashes, Nested};
use round::Round;
use wire::Queue;

/// Answers that may wait to be looked at; there are never more questions than that.
const ANSWERS: usize = 1024;
/// Passes in which files are sent once more, at most.
const MAX_PASSES: u32 = 3;
/// Locked as long as the records beside it are used.
const LOCK: &str = "source.lock";
/// Begins the names of directories in the work directory for those who come while its own records are used.
const BESIDE: &str = "beside-";
/// As many read an element at the same time, at most.
const READERS: u32 = 256;

/// What is read, and how.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// The directory.
    pub root: PathBuf,
    /// It is the upper directory of an overlay.
    pub overlay: bool,
    /// A directory for records between rounds, of this element alone. Made if it is not there. Who opens the element while another has
    /// the records begins without any, in a directory below.
    pub work: PathBuf,
    /// Paths that stay behind.
    pub excludes: Excludes,
    /// What becomes of file systems that are mounted below the directory.
    pub nested: Nested,
    /// Compression on the wire.
    pub compression: Compression,
    /// Bytes per second on the wire, at most.
    pub limit_rate: Option<u64>,
    /// Threads that read and hash; 0 for one per processor.
    pub threads: usize,
}

/// An element that is read, round after round.
#[derive(Debug)]
pub struct Source {
    options: SourceOptions,
    /// The tree of the last round that came to a good end.
    known: Option<Base>,
    _records: Records,
}

/// A directory with records that nobody else uses.
#[derive(Debug)]
struct Records {
    /// One that is of no use to whoever comes later, and goes with this.
    passing: Option<PathBuf>,
    _lock: File,
}

impl Drop for Records {
    fn drop(&mut self) {
        if let Some(passing) = &self.passing {
            // Renamed first, so that nobody takes it while it goes. What stays is found, and used, by the next who comes second.
            let gone = passing.with_extension("gone");
            let _ = std::fs::remove_dir_all(&gone);
            if std::fs::rename(passing, &gone).is_ok() {
                let _ = std::fs::remove_dir_all(&gone);
            }
        }
    }
}

impl Records {
    /// Takes the directory, or one below it if it is taken. Says which.
    fn take(work: &Path) -> io::Result<(Self, PathBuf)> {
        for reader in 0..READERS {
            let passing = (reader > 0).then(|| work.join(format!("{BESIDE}{reader}")));
            let directory = passing.as_deref().unwrap_or(work).to_owned();
            std::fs::create_dir_all(&directory)?;
            let path = directory.join(LOCK);
            let lock = match File::create(&path) {
                // Whoever had it removed it just now.
                Err(error) if passing.is_some() && error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // The same, a moment later: this one is not there any more.
            let there = std::fs::metadata(&path);
            if there.is_ok_and(|there| lock.metadata().is_ok_and(|own| own.ino() == there.ino())) {
                return Ok((Self { passing, _lock: lock }, directory));
            }
        }
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "too many read it at the same time",
        ))
    }
}

impl Source {
    /// Opens an element. Records of earlier rounds in the work directory are used if they are whole.
    ///
    /// # Errors
    ///
    /// The work directory cannot be made.
    pub fn open(mut options: SourceOptions) -> Result<Self, SourceError> {
        let wished = options.work.display().to_string();
        let io = |source| SourceError::Work {
            path: wished.clone(),
            source,
        };
        let (records, work) = Records::take(&options.work).map_err(io)?;
        options.work = work;
        let mut known = None;
        let noted = options.work.join(BOOT);
        let believed = is_of_this_boot(&noted);
        for entry in std::fs::read_dir(&options.work).map_err(io)? {
            let tree = entry.map_err(io)?.path();
            if !believed {
                if tree
                    .extension()
                    .is_some_and(|kind| kind == "facts" || kind == "tree")
                {
                    std::fs::remove_file(&tree).map_err(io)?;
                }
                continue;
            }
            let id = tree.file_stem().and_then(|stem| tree_id(stem.to_str()?));
            let facts = tree.with_extension("facts");
            if let Some(id) = id.filter(|_| tree.extension().is_some_and(|kind| kind == "tree"))
                && facts.exists()
            {
                known = Some(Base {
                    id,
                    tree,
                    facts: Some(facts),
                });
            }
        }
        note_boot(&noted).map_err(io)?;
        Ok(Self {
            options,
            known,
            _records: records,
        })
    }

    /// Begins a round with the sink at the other end of the streams, which should have a buffer behind them. Two threads carry what
    /// is said; they end with the streams, or with what is returned.
    pub fn begin<R, W>(&self, input: R, output: W, options: RoundOptions) -> Begun
    where
        R: Read + Send + 'static,
        W: Write + Send + 'static,
    {
        let (heard, answers) = sync_channel(ANSWERS);
        std::thread::spawn(move || {
            let mut frames = FrameReader::new(input);
            loop {
                let message = frames.message();
                let last = !matches!(&message, Ok(message) if !matches!(message, Message::Applied(_) | Message::Failed(_)));
                if heard.send(message).is_err() || last {
                    return;
                }
            }
        });
        let queue = Arc::new(Queue::default());
        let writer = {
            let (queue, compression, limit) = (
                Arc::clone(&queue),
                self.options.compression,
                self.options.limit_rate,
            );
            std::thread::spawn(move || queue.write_all(output, compression, limit))
        };
        Begun {
            options,
            queue: Queued(queue),
            writer: Some(writer),
            answers,
            base: None,
            early: Mutex::default(),
            hashes: Hashes::default(),
        }
    }

    /// Waits until the sink has said what it holds, and says from what the round goes on. Blocks.
    ///
    /// # Errors
    ///
    /// The round is over; the sink was told why where that was possible.
    pub fn meet(&mut self, begun: &mut Begun) -> Result<(), SourceError> {
        if begun.base.is_none() {
            let mut round = begun.round(&self.options, &|_| {});
            let met = round.meet(&mut self.known);
            match met.map_err(|error| round.fail(error)) {
                Ok(base) => begun.base = Some(base),
                Err(error) => {
                    begun.end();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Asks the sink what its large files hold, so that [`Self::follow`] need not read again what differs. To be called after
    /// [`Self::meet`]. Blocks.
    ///
    /// # Errors
    ///
    /// The round is over; the sink was told why where that was possible.
    pub fn foresee(&self, begun: &mut Begun) -> Result<(), SourceError> {
        let Some(Some(base)) = begun.base.clone() else {
            return Ok(());
        };
        let round = begun.round(&self.options, &|_| {});
        let asked = round.ask_ahead(&base);
        match asked.map_err(|error| round.fail(error)) {
            Ok(hashes) => begun.hashes = hashes,
            Err(error) => {
                begun.end();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Reads large files that the sink holds while they are written anew, until that is `over`, so that [`Self::go`] need not. They only
    /// grow meanwhile. To be called after [`Self::meet`]. What cannot be read is left to `go`. Blocks.
    pub fn follow(&self, begun: &Begun, over: &AtomicBool) {
        let Some(Some(base)) = &begun.base else { return };
        if let Ok(early) = crate::scan::follow(&self.options.root, base, &begun.hashes, over) {
            *begun.early.lock().unwrap_or_else(PoisonError::into_inner) = early;
        }
    }

    /// Brings the sink up to what the element is now. Blocks.
    ///
    /// The thread that reads ends when its stream does, which may be after this returned.
    ///
    /// # Errors
    ///
    /// The sink is not equal to the element; it was told why where that was possible. What arrived stays there.
    pub fn go(
        &mut self,
        mut begun: Begun,
        progress: &(dyn Fn(RoundProgress) + Sync),
    ) -> Result<RoundReport, SourceError> {
        let began = Instant::now();
        let mut round = begun.round(&self.options, progress);
        let result = round.converse(begun.base.clone(), &mut self.known);
        let result = result.map_err(|error| round.fail(error));
        begun.end();
        result.map(|totals| RoundReport {
            tree: totals.tree.to_string(),
            entries: totals.entries,
            bytes: totals.bytes,
            changed_entries: totals.changed_entries,
            literal_bytes: totals.literal_bytes,
            wire_bytes: begun.queue.0.written(),
            unsettled: totals.unsettled,
            milliseconds: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// A round from beginning to end: [`Source::begin`] and [`Source::go`].
    ///
    /// # Errors
    ///
    /// As [`Source::go`].
    pub fn round<R, W>(
        &mut self,
        input: R,
        output: W,
        options: RoundOptions,
        progress: &(dyn Fn(RoundProgress) + Sync),
    ) -> Result<RoundReport, SourceError>
    where
        R: Read + Send + 'static,
        W: Write + Send + 'static,
    {
        let begun = self.begin(input, output, options);
        self.go(begun, progress)
    }
}

/// A round that has begun. Dropped, it ends.
#[derive(Debug)]
pub struct Begun {
    options: RoundOptions,
    queue: Queued,
    writer: Option<JoinHandle<()>>,
    answers: Receiver<Result<Message, FrameError>>,
    /// What the sink holds, once it said so: nothing, or a tree.
    base: Option<Option<Base>>,
    /// What the sink's large files hold, as far as it was asked.
    hashes: Hashes,
    /// What was read of the element before the round goes on.
    early: Mutex<Early>,
}

/// The queue of a round, which ends with it.
#[derive(Debug)]
struct Queued(Arc<Queue>);

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Begun {
    /// Nothing more is said. What was said is on its way when this returns.
    fn end(&mut self) {
        self.queue.0.end();
        if let Some(writer) = self.writer.take() {
            // What it could not write was heard of by whoever spoke.
            let _ = writer.join();
        }
    }

    fn round<'a>(
        &'a self,
        options: &'a SourceOptions,
        progress: &'a (dyn Fn(RoundProgress) + Sync),
    ) -> Round<'a> {
        Round {
            options,
            round: self.options,
            queue: &self.queue.0,
            answers: &self.answers,
            early: &self.early,
            progress,
        }
    }
}

fn tree_id(text: &str) -> Option<TreeId> {
    let mut id = [0; crate::entry::DIGEST_LENGTH];
    if text.len() != 2 * id.len() || !text.is_ascii() {
        return None;
    }
    for (at, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(TreeId(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_another_boot_are_not_used() {
        let work = tempfile::tempdir().unwrap();
        let options = SourceOptions {
            root: work.path().to_owned(),
            overlay: false,
            work: work.path().to_owned(),
            excludes: Excludes::default(),
            nested: Nested::default(),
            compression: Compression::default(),
            limit_rate: None,
            threads: 0,
        };
        let names = ["tree", "facts"].map(|kind| format!("{}.{kind}", "ab".repeat(32)));
        let write = || {
            names
                .iter()
                .for_each(|name| std::fs::write(work.path().join(name), "").unwrap())
        };
        assert!(Source::open(options.clone()).unwrap().known.is_none());
        write();
        assert!(Source::open(options.clone()).unwrap().known.is_some());
        std::fs::write(work.path().join(BOOT), "another").unwrap();
        assert!(Source::open(options.clone()).unwrap().known.is_none());
        assert!(names.iter().all(|name| !work.path().join(name).exists()));
        write();
        assert!(Source::open(options).unwrap().known.is_some());
    }

    #[test]
    fn whoever_comes_second_has_records_of_its_own() {
        let work = tempfile::tempdir().unwrap();
        let take = || Records::take(work.path()).unwrap();
        let (first, at) = take();
        assert_eq!(at, work.path());
        let (second, at) = take();
        assert_eq!(at, work.path().join("beside-1"));
        let (third, beside) = take();
        assert_eq!(beside, work.path().join("beside-2"));
        drop(second);
        assert!(!at.exists() && beside.exists());
        drop(first);
        assert_eq!(take().1, work.path());
        drop(third);
        assert!(!beside.exists() && work.path().exists());
    }
}
