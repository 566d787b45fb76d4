//! Threads that make small files, each of which came whole.
//!
//! Making a file is a handful of system calls that wait for one another, so that one thread leaves the other processors idle.
//! The kernel lets one thread at a time make a name in a directory, and whoever waits for that spins: so what follows in the same
//! directory goes to the same thread, and others get other directories. Only where one directory has much more than its thread
//! can do, those that have nothing to do join in: hashing, writing, attributes and closing go side by side at least.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use bytes::Bytes;

use super::apply::explain;
use super::content::Filling;
use super::error::{SinkError, shown};
use super::pending::{BATCH_BYTES, WAITING, WAITING_BYTES};
use super::place::{Place, split};
use super::record::facts_of;
use crate::entry::{ChunkId, Entry, EntryKind};
use crate::message::Write;
use crate::tree::Facts;

/// Threads at most: the kernel's locks of directories and of the file system's journal leave no work for more.
const MOST: usize = 4;
/// Batches of one directory that wait for its thread before one that has nothing to do joins in: fewer than may wait in all, by
/// number and by bytes, or nobody ever would.
const CROWD: usize = 12;
const _: () = assert!(2 * CROWD <= WAITING && 2 * CROWD * BATCH_BYTES <= WAITING_BYTES);

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

/// One of the threads.
struct Worker {
    batches: Sender<Batch>,
    /// Batches that it was given and has not done.
    waiting: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

/// The threads. They end, with all that they were given done, when this goes.
pub(super) struct Pool {
    workers: Vec<Worker>,
    /// Who makes the files of the directory that came last.
    last: Option<(Arc<OwnedFd>, usize)>,
}

impl Pool {
    /// Starts as many threads as there are processors, up to a bound.
    ///
    /// # Errors
    /// [`SinkError::Thread`].
    pub(super) fn start(place: &Arc<Place>) -> Result<Self, SinkError> {
        let mut pool = Self {
            workers: Vec::new(),
            last: None,
        };
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        for _ in 0..processors.min(MOST) {
            let (batches, queue) = channel::<Batch>();
            let waiting = Arc::new(AtomicUsize::new(0));
            let (place, done) = (place.clone(), waiting.clone());
            let thread = std::thread::Builder::new().name("sink-files".into());
            match thread.spawn(move || work(&place, &queue, &done)) {
                Ok(thread) => pool.workers.push(Worker {
                    batches,
                    waiting,
                    thread,
                }),
                // As many as the system lets have do as well.
                Err(_) if !pool.workers.is_empty() => break,
                Err(error) => return Err(SinkError::Thread(error)),
            }
        }
        Ok(pool)
    }

    /// Hands files over. What came of them comes out of the receiver; it is closed without a word if a thread panicked.
    pub(super) fn make(&mut self, jobs: Vec<Job>) -> Receiver<Made> {
        let (done, made) = channel();
        let (chosen, last) = (self.choose(&jobs), jobs.last().map(|job| job.directory.clone()));
        if let Some(worker) = self.workers.get(chosen) {
            worker.waiting.fetch_add(1, Ordering::Relaxed);
            // Without the thread the batch is dropped, and with it the way back.
            let _ = worker.batches.send(Batch { jobs, done });
        }
        self.last = last.map(|directory| (directory, chosen));
        made
    }

    /// Which thread gets them.
    fn choose(&self, jobs: &[Job]) -> usize {
        let waiting: Vec<usize> = (self.workers.iter())
            .map(|worker| worker.waiting.load(Ordering::Relaxed))
            .collect();
        let same = match (&self.last, jobs.first()) {
            (Some((directory, same)), Some(job)) if Arc::ptr_eq(directory, &job.directory) => Some(*same),
            _ => None,
        };
        choose(&waiting, same)
    }
}

/// The thread that gets files: the `same` that has others of their directory, unless it has too much to do and another one nothing;
/// else the one with the least to do. `waiting` is what each of them has to do.
fn choose(waiting: &[usize], same: Option<usize>) -> usize {
    let idlest = waiting.iter().enumerate().min_by_key(|(_, waiting)| **waiting);
    let (idlest, least) = idlest.map_or((0, 0), |(index, waiting)| (index, *waiting));
    match same.and_then(|same| Some((same, waiting.get(same)?))) {
        Some((same, waiting)) if *waiting < CROWD || least > 0 => same,
        _ => idlest,
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let threads: Vec<_> = self.workers.drain(..).map(|worker| worker.thread).collect();
        for thread in threads {
            // Whoever waits for a batch of a thread that panicked sees it.
            let _ = thread.join();
        }
    }
}

fn work(place: &Place, queue: &Receiver<Batch>, waiting: &AtomicUsize) {
    for Batch { jobs, done } in queue {
        // Whoever gave it may be gone.
        let _ = done.send(jobs.into_iter().map(|job| make(place, job)).collect());
        waiting.fetch_sub(1, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::{CROWD, choose};

    #[test]
    fn files_of_one_directory_go_to_one_thread() {
        assert_eq!(choose(&[3, 0, 1], Some(0)), 0);
        assert_eq!(choose(&[CROWD - 1, 0], Some(0)), 0);
    }

    #[test]
    fn a_new_directory_goes_to_the_thread_with_the_least_to_do() {
        assert_eq!(choose(&[3, 2, 1], None), 2);
        assert_eq!(choose(&[0, 0], None), 0);
    }

    #[test]
    fn a_thread_without_work_joins_in_where_one_directory_is_large() {
        assert_eq!(choose(&[CROWD, 0], Some(0)), 1);
        assert_eq!(choose(&[CROWD, 1], Some(0)), 0, "it has work of its own");
    }
}
