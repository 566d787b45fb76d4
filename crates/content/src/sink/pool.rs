//! Threads that make small files, each of which came whole.
//!
//! Making a file is a handful of system calls that wait for one another, so that one thread leaves the other processors idle.
//! The kernel lets one thread at a time make a name in a directory; hashing, writing, attributes and closing go side by side.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;

use super::apply::explain;
use super::content::Filling;
use super::error::{SinkError, shown};
use super::place::{Place, split};
use super::record::facts_of;
use crate::entry::{ChunkId, Entry, EntryKind};
use crate::message::Write;
use crate::tree::Facts;

/// Threads at most: the kernel's locks of directories and of the file system's journal leave no work for more.
const MOST: usize = 4;

/// A file to be made, in the place of the base's if there is one.
pub(super) struct Job {
    /// Where it comes to be.
    pub directory: Arc<OwnedFd>,
    /// The file, without extents.
    pub entry: Entry,
    /// The name of its chunk; zeros if it is empty.
    pub id: ChunkId,
    /// Its content.
    pub bytes: Bytes,
    /// The base's file of this path.
    pub base: Option<Entry>,
}

/// What came of a batch, in its order.
pub(super) type Made = Result<Vec<(Entry, Facts)>, SinkError>;

struct Batch {
    jobs: Vec<Job>,
    done: Sender<Made>,
}

/// The threads. They end, with all that they were given done, when this goes.
pub(super) struct Pool {
    batches: Option<Sender<Batch>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts as many threads as there are processors, up to a bound.
    ///
    /// # Errors
    /// [`SinkError::Thread`].
    pub(super) fn start(place: &Arc<Place>) -> Result<Self, SinkError> {
        let (batches, queue) = channel::<Batch>();
        let queue = Arc::new(Mutex::new(queue));
        let mut pool = Self {
            batches: Some(batches),
            threads: Vec::new(),
        };
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        for _ in 0..processors.min(MOST) {
            let (place, queue) = (place.clone(), queue.clone());
            let thread = std::thread::Builder::new().name("sink-files".into());
            match thread.spawn(move || work(&place, &queue)) {
                Ok(thread) => pool.threads.push(thread),
                // As many as the system lets have do as well.
                Err(_) if !pool.threads.is_empty() => break,
                Err(error) => return Err(SinkError::Thread(error)),
            }
        }
        Ok(pool)
    }

    /// Hands files over. What came of them comes out of the receiver; it is closed without a word if a thread panicked.
    pub(super) fn make(&self, jobs: Vec<Job>) -> Receiver<Made> {
        let (done, made) = channel();
        if let Some(batches) = &self.batches {
            // Without threads the batch is dropped, and with it the way back.
            let _ = batches.send(Batch { jobs, done });
        }
        made
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        drop(self.batches.take());
        for thread in self.threads.drain(..) {
            // Whoever waits for a batch of a thread that panicked sees it.
            let _ = thread.join();
        }
    }
}

fn work(place: &Place, queue: &Mutex<Receiver<Batch>>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Batch { jobs, done }) = next else { return };
        // Whoever gave it may be gone.
        let _ = done.send(jobs.into_iter().map(|job| make(place, job)).collect());
    }
}

/// Makes one file, after its bytes were compared with their name.
fn make(place: &Place, job: Job) -> Result<(Entry, Facts), SinkError> {
    let Job {
        directory,
        entry,
        id,
        bytes,
        base,
    } = job;
    if !bytes.is_empty() && *blake3::hash(&bytes).as_bytes() != id.0 {
        return Err(SinkError::Chunk {
            path: shown(&entry.path),
            id,
        });
    }
    let path = entry.path.clone();
    let (directory, name) = (directory.as_fd(), split(&path).1);
    let mut filling = Filling::begin(place, directory, name, entry, Write::Replace, base)?;
    if !bytes.is_empty() {
        filling.checked(id, &bytes)?;
    }
    let filled = filling
        .finish(place, directory, name)
        .map_err(|error| explain(error, directory, name))?;
    let stat = filled
        .stat
        .ok_or(SinkError::Defect("a file without a base refers to one"))?;
    debug_assert!(matches!(filled.entry.kind, EntryKind::File { .. }));
    Ok((filled.entry, facts_of(&stat)))
}
