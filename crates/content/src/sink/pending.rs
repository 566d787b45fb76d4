//! What is under way, in canonical order: the manifest is written in the order of the tree, whatever thread is first, and a
//! directory gets its attributes when everything in it is done.
//!
//! What waits here is bounded by number, by bytes of content, and by directories that stay open.

use std::collections::VecDeque;
use std::mem::size_of;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use super::attributes::{self, Node};
use super::error::{SinkError, failed};
use super::place::Place;
use super::pool::{Job, Made, Pool};
use super::record::{Held, Output};
use crate::entry::{Entry, EntryKind, Extent};
use crate::tree::{Facts, TreeSummary};

/// Files that are handed to a thread at once, at most.
const BATCH: usize = 32;
/// Bytes of content that are handed to a thread at once, about.
pub(super) const BATCH_BYTES: usize = 256 << 10;
/// Batches, entries and directories that wait, at most.
pub(super) const WAITING: usize = 128;
/// Bytes of files and entries that wait, at most, before the next one joins them.
pub(super) const WAITING_BYTES: usize = 8 << 20;
/// Directories that stay open for what is being made in them, at most.
const DIRECTORIES: usize = 64;

/// A directory that the order has left.
pub(super) struct Left {
    pub entry: Entry,
    pub directory: Arc<OwnedFd>,
    /// It is new, or has other attributes than the base's; else only its time has to be set again.
    pub changed: bool,
}

impl Left {
    /// Gives the directory what it is to have.
    fn settle(&self, place: &Place) -> Result<(), SinkError> {
        use std::os::fd::AsFd as _;
        let node = Node::Open(self.directory.as_fd());
        if self.changed {
            let now = rustix::fs::fstat(&self.directory)
                .map_err(|error| failed(&self.entry.path, "look at", error))?;
            attributes::set(node, &self.entry, &now, place.overlay)?;
        } else {
            attributes::set_time(node, &self.entry)?;
        }
        Ok(())
    }
}

enum Work {
    Entry(Box<(Entry, Facts)>),
    Batch(Receiver<Made>),
    Leave(Left),
}

/// Something that waits, and how many bytes it keeps in memory, about.
struct Item {
    work: Work,
    bytes: usize,
}

/// How many bytes an entry keeps in memory, about.
fn weight(entry: &Entry) -> usize {
    let more = match &entry.kind {
        EntryKind::File { extents, .. } => size_of::<Extent>() * extents.len(),
        EntryKind::Symlink { target } | EntryKind::Hardlink { target } => target.len(),
        _ => 0,
    };
    let attributes = entry.xattrs.iter().map(|(name, value)| name.len() + value.len());
    size_of::<Entry>() + entry.path.len() + more + attributes.sum::<usize>()
}

/// Files that no thread has yet, and the threads.
struct Batch {
    pool: Option<Pool>,
    jobs: Vec<Job>,
    bytes: usize,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.jobs.len() >= BATCH || self.bytes >= BATCH_BYTES
    }

    /// Gives the files to a thread; how many bytes they are.
    fn hand_over(&mut self, place: &Arc<Place>) -> Result<(Receiver<Made>, usize), SinkError> {
        let pool = match &mut self.pool {
            Some(pool) => pool,
            None => self.pool.insert(Pool::start(place)?),
        };
        let made = pool.make(std::mem::take(&mut self.jobs));
        Ok((made, std::mem::take(&mut self.bytes)))
    }
}

impl Drop for Batch {
    /// What arrived is put in place even if the round breaks off: the next one need not send it.
    fn drop(&mut self) {
        if let (Some(pool), false) = (&mut self.pool, self.jobs.is_empty()) {
            drop(pool.make(std::mem::take(&mut self.jobs)));
        }
    }
}

/// What is under way, and the manifest that it goes into.
pub(super) struct Pending {
    place: Arc<Place>,
    output: Output,
    waiting: VecDeque<Item>,
    /// Files that come after all that waits.
    batch: Batch,
    /// Bytes of all that waits.
    bytes: usize,
    directories: usize,
    /// Bytes of content that were put in place.
    pub(super) content: u64,
}

impl Pending {
    pub(super) fn new(place: Arc<Place>, output: Output) -> Self {
        Self {
            place,
            output,
            waiting: VecDeque::new(),
            batch: Batch {
                pool: None,
                jobs: Vec::new(),
                bytes: 0,
            },
            bytes: 0,
            directories: 0,
            content: 0,
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.batch.jobs.is_empty()
    }

    /// An entry that is in place.
    pub(super) fn push(&mut self, entry: &Entry, facts: &Facts) -> Result<(), SinkError> {
        if self.is_idle() {
            return Ok(self.output.push(entry, facts)?);
        }
        let bytes = weight(entry);
        self.wait_for(Work::Entry(Box::new((entry.clone(), *facts))), bytes)
    }

    /// A file that has to be made.
    pub(super) fn file(&mut self, job: Job) -> Result<(), SinkError> {
        self.batch.bytes += weight(&job.entry) + job.base.as_ref().map_or(0, weight) + job.bytes.len();
        self.batch.jobs.push(job);
        if self.batch.is_full() {
            self.hand_over()?;
        }
        Ok(())
    }

    /// A directory in which something was changed was left.
    pub(super) fn leave(&mut self, left: Left) -> Result<(), SinkError> {
        if self.is_idle() {
            return left.settle(&self.place);
        }
        self.directories += 1;
        let bytes = weight(&left.entry);
        self.wait_for(Work::Leave(left), bytes)
    }

    /// Lets nothing lie, and takes what is done. What failed is told here, too.
    pub(super) fn look(&mut self) -> Result<(), SinkError> {
        self.hand_over()?;
        self.drain()
    }

    /// Waits until nothing is under way.
    pub(super) fn settle(&mut self) -> Result<(), SinkError> {
        self.hand_over()?;
        while let Some(item) = self.waiting.pop_front() {
            self.take(item)?;
        }
        Ok(())
    }

    /// Completes the manifest.
    pub(super) fn finish(mut self) -> Result<(TreeSummary, Held), SinkError> {
        self.settle()?;
        Ok(self.output.finish()?)
    }

    fn hand_over(&mut self) -> Result<(), SinkError> {
        if self.batch.jobs.is_empty() {
            return Ok(());
        }
        let (made, bytes) = self.batch.hand_over(&self.place)?;
        self.enqueue(Work::Batch(made), bytes)
    }

    fn wait_for(&mut self, work: Work, bytes: usize) -> Result<(), SinkError> {
        self.hand_over()?;
        self.enqueue(work, bytes)
    }

    fn enqueue(&mut self, work: Work, bytes: usize) -> Result<(), SinkError> {
        self.bytes += bytes;
        self.waiting.push_back(Item { work, bytes });
        self.drain()
    }

    /// Takes what is done from the front, and as much more as makes room.
    fn drain(&mut self) -> Result<(), SinkError> {
        while let Some(item) = self.waiting.pop_front() {
            let full = self.waiting.len() >= WAITING
                || self.bytes >= WAITING_BYTES
                || self.directories >= DIRECTORIES;
            match &item.work {
                Work::Batch(made) if !full => match made.try_recv() {
                    Ok(files) => {
                        self.bytes -= item.bytes;
                        self.write(files)?;
                    }
                    Err(TryRecvError::Empty) => {
                        self.waiting.push_front(item);
                        return Ok(());
                    }
                    Err(TryRecvError::Disconnected) => return Err(GONE),
                },
                _ => self.take(item)?,
            }
        }
        Ok(())
    }

    /// Takes the first that waits, and waits for it where it is not done.
    fn take(&mut self, item: Item) -> Result<(), SinkError> {
        self.bytes -= item.bytes;
        match item.work {
            Work::Entry(entry) => Ok(self.output.push(&entry.0, &entry.1)?),
            Work::Batch(made) => {
                let files = made.recv().map_err(|_| GONE)?;
                self.write(files)
            }
            Work::Leave(left) => {
                self.directories -= 1;
                left.settle(&self.place)
            }
        }
    }

    fn write(&mut self, files: Made) -> Result<(), SinkError> {
        for (entry, facts) in files? {
            if let EntryKind::File { size, .. } = entry.kind {
                self.content += size;
            }
            self.output.push(&entry, &facts)?;
        }
        Ok(())
    }
}

const GONE: SinkError = SinkError::Defect("a thread that makes files has ended");
