//! The thread that applies, and what it tells the others.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tranship_core::storage::RoundProgress;

use super::apply::{Apply, Counts};
use super::attributes::{self, Node};
use super::error::{SinkError, failed};
use super::place::Place;
use super::record::{self, BaseStream, Held, Output, Record};
use crate::entry::Entry;
use crate::message::{Totals, Wants, operations};
use crate::tree::{TreeError, TreeSummary};

/// Without an operation for this long, what is under way is waited for.
const QUIET: Duration = Duration::from_millis(20);

/// What the worker is given.
pub(super) enum Task {
    /// The body of a frame.
    Operations(Bytes),
    /// The pass is complete.
    Done,
    /// What has to be there now.
    End(Totals),
}

/// What the worker gives back.
pub(super) enum Outcome {
    /// A pass is over.
    Pass {
        /// Files that have to come once more.
        again: Vec<Vec<u8>>,
    },
    /// The root is equal to the source.
    End {
        /// What the round came to.
        totals: Totals,
    },
}

/// What all threads see.
#[derive(Default)]
pub(super) struct Shared {
    entries: AtomicU64,
    bytes: AtomicU64,
    failure: Mutex<Option<SinkError>>,
}

impl Shared {
    pub(super) fn progress(&self, wire: u64) -> RoundProgress {
        RoundProgress {
            entries: self.entries.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            wire_bytes: wire,
        }
    }

    pub(super) fn fail(&self, error: SinkError) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    pub(super) fn failure(&self) -> Option<SinkError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The thread that applies.
pub(super) struct Worker<'a> {
    record: &'a Record,
    place: Arc<Place>,
    base: Option<(TreeSummary, Held)>,
    wants: Wants,
    pub(super) shared: Arc<Shared>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        record: &'a Record,
        place: Arc<Place>,
        base: Option<(TreeSummary, Held)>,
        wants: Wants,
    ) -> Self {
        Self {
            record,
            place,
            base,
            wants,
            shared: Arc::default(),
        }
    }

    /// Works until the queue ends.
    pub(super) fn run(&self, queue: &Receiver<Task>, report: &SyncSender<Outcome>) -> Result<(), SinkError> {
        let mut now = self.base.clone();
        let mut counts = Counts::default();
        let mut root = None;
        let mut pass = 0;
        let mut apply: Option<Apply> = None;
        loop {
            let task = match &mut apply {
                None => queue.recv().ok(),
                Some(apply) => match queue.recv_timeout(QUIET) {
                    Ok(task) => Some(task),
                    Err(RecvTimeoutError::Disconnected) => None,
                    Err(RecvTimeoutError::Timeout) => {
                        // Whoever is quiet for a moment is to hear of what failed meanwhile.
                        apply.settle()?;
                        queue.recv().ok()
                    }
                },
            };
            let Some(task) = task else {
                // The link is gone. What arrived comes to be in place all the same: the next round need not send it.
                return apply.as_mut().map_or(Ok(()), Apply::settle);
            };
            match task {
                Task::Operations(body) => {
                    let apply = match &mut apply {
                        Some(apply) => apply,
                        none => none.insert(self.begin(now.as_ref(), pass, counts)?),
                    };
                    for operation in operations(body) {
                        apply.operation(operation.map_err(SinkError::Operation)?)?;
                        self.shared.entries.store(apply.counts.changed, Ordering::Relaxed);
                        self.shared.bytes.store(apply.in_place(), Ordering::Relaxed);
                    }
                    apply.look()?;
                }
                Task::Done => {
                    pass += 1;
                    let again = match apply.take() {
                        None if now.is_some() => Vec::new(),
                        None => return Err(SinkError::Record(TreeError::Root)),
                        Some(apply) => {
                            let (applied, counted) = apply.finish()?;
                            counts = counted;
                            self.shared.bytes.store(counts.content, Ordering::Relaxed);
                            now = Some((applied.summary, applied.held));
                            root = applied.root;
                            applied.again
                        }
                    };
                    // Whoever waits for it may be gone.
                    let _ = report.send(Outcome::Pass { again });
                }
                Task::End(end) => {
                    let Some((summary, held)) = &now else {
                        return Err(SinkError::Record(TreeError::Root));
                    };
                    let totals = self.end(&end, summary, held, root.as_ref(), counts)?;
                    let _ = report.send(Outcome::End { totals });
                    return Ok(());
                }
            }
        }
    }

    fn begin(
        &self,
        base: Option<&(TreeSummary, Held)>,
        pass: u32,
        counts: Counts,
    ) -> Result<Apply, SinkError> {
        if pass == 0 {
            self.record.begin().map_err(TreeError::Io)?;
        }
        let base = match base {
            None => BaseStream::nothing(),
            Some((_, held)) => BaseStream::open(held)?,
        };
        let output = Output::create(self.record, pass)?;
        let mut apply = Apply::new(self.place.clone(), base, output);
        apply.counts = counts;
        Ok(apply)
    }

    /// Compares the result with what the source has, and makes it last.
    fn end(
        &self,
        end: &Totals,
        summary: &TreeSummary,
        held: &Held,
        root: Option<&Entry>,
        counts: Counts,
    ) -> Result<Totals, SinkError> {
        if end.tree != summary.id {
            return Err(SinkError::Tree {
                here: summary.id,
                there: end.tree,
            });
        }
        let inside = self.place.clean()?;
        if let (true, Some(root)) = (inside, root) {
            attributes::set_time(Node::Open(self.place.root()), root)?;
        }
        if root.is_some() {
            record::date(held, summary)?;
        }
        self.record.keep(held).map_err(TreeError::Io)?;
        if self.wants.durable && self.record.is_open() {
            write_back(&self.place)?;
            self.record.settle().map_err(TreeError::Io)?;
        }
        Ok(Totals {
            changed_entries: counts.changed,
            literal_bytes: counts.literal,
            unsettled: end.unsettled,
            ..Totals::of(summary)
        })
    }
}

/// Brings the file system of the root to the disk. It tells of a write that failed only once, so that whoever calls it must not pass
/// over its error.
pub(super) fn write_back(place: &Place) -> Result<(), SinkError> {
    rustix::fs::syncfs(place.root().as_fd())
        .map_err(|error| failed(b"", "write to disk what is below", error))
}
