//! One round of each open element: memory is dumped before it is read, and a link that was lost is made again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, future::BoxFuture, stream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tranship_core::event::{Event, Phase, Reporter};
use tranship_core::fault::FaultKind;
use tranship_core::memory::{DumpKind, Dumped};
use tranship_core::storage::{
    BegunRound, ElementAt, ElementPlace, ElementSource, Pipe, ProgressFn, RoundOptions, RoundProgress,
    RoundReport,
};
use tranship_core::{Engine, Fault};

use super::memory::{LastDump, tell_of_whole};
use super::{LOST_DESTINATION, PATIENCE, PROGRESS_EVERY, RETRY};
use crate::destination::{Destination, link_lost};
use crate::pipe::breakable;
use crate::plan::Plan;

/// Elements whose round of the freeze begins before it, at most: each keeps a stream open.
const MEETINGS: usize = 32;
/// Elements whose final delta travels at the same time.
const SIDE_BY_SIDE: usize = 4;
/// Longest time that the destination takes to begin a round.
const OPENING: Duration = Duration::from_secs(60);

/// An element that is open for reading.
pub(super) struct OpenElement {
    /// Its place in the plan.
    pub(super) index: usize,
    pub(super) label: String,
    pub(super) place: ElementPlace,
    /// It is memory, which has to be dumped before each round.
    pub(super) memory: Option<ElementAt>,
    /// The newest dump of it.
    pub(super) dumped: Option<LastDump>,
    /// The newest dump has travelled.
    pub(super) dump_sent: bool,
    /// In a mutex that is never waited for, so that the whole can be looked at from several threads.
    pub(super) source: std::sync::Mutex<Box<dyn ElementSource>>,
    /// The round of the freeze, which met the destination before.
    pub(super) begun: std::sync::Mutex<Option<Box<dyn BegunRound>>>,
}

impl OpenElement {
    /// It is this memory.
    pub(super) fn is_of(&self, memory: &ElementAt) -> bool {
        self.memory.as_ref() == Some(memory)
    }

    /// It is memory of which one dump follows the other.
    pub(super) fn is_tracked(&self) -> bool {
        self.dumped.is_some_and(|dumped| dumped.is_tracked())
    }
}

/// Bytes of all elements in one phase, for people.
pub(super) struct Meter {
    pub(super) reporter: Arc<dyn Reporter>,
    pub(super) phase: Phase,
    pub(super) total: Option<u64>,
    pub(super) done: AtomicU64,
    pub(super) shown: std::sync::Mutex<Instant>,
}

impl Meter {
    /// What one element reports, added to what the others did.
    pub(super) fn of_one(self: &Arc<Self>) -> ProgressFn {
        let meter = Arc::clone(self);
        let mine = AtomicU64::new(0);
        Arc::new(move |progress: RoundProgress| {
            let before = mine.swap(progress.bytes, Ordering::Relaxed);
            let more = progress.bytes.saturating_sub(before);
            let all = meter.done.fetch_add(more, Ordering::Relaxed) + more;
            let Ok(mut shown) = meter.shown.try_lock() else {
                return;
            };
            if shown.elapsed() >= PROGRESS_EVERY {
                *shown = Instant::now();
                meter.reporter.report(Event::Progress {
                    phase: meter.phase,
                    bytes: all,
                    total: meter.total,
                });
            }
        })
    }
}

/// Both ends of a round, and what they have agreed on.
pub(super) struct Ends<'a> {
    pub(super) engine: &'a dyn Engine,
    pub(super) destination: &'a Arc<dyn Destination>,
    pub(super) plan: &'a Plan,
    pub(super) given_up: &'a CancellationToken,
}

/// What is done of a round.
#[derive(Clone, Copy)]
pub(super) enum Step {
    /// It begins, and is the one of the freeze.
    Meet,
    /// All of it, or what is left of it.
    Round(RoundOptions),
}

/// A step of the round of each element.
pub(super) async fn rounds(
    ends: &Ends<'_>,
    elements: &mut [OpenElement],
    step: Step,
    meter: &Arc<Meter>,
) -> Vec<Result<RoundReport, Fault>> {
    let (side_by_side, most) = match step {
        Step::Meet => (SIDE_BY_SIDE, MEETINGS),
        // One at a time while the source runs, so that it keeps its share of the disk.
        Step::Round(options) => (if options.frozen { SIDE_BY_SIDE } else { 1 }, usize::MAX),
    };
    let mut work: Vec<BoxFuture<'_, Result<RoundReport, Fault>>> = Vec::new();
    for element in elements.iter_mut().take(most) {
        work.push(Box::pin(async move {
            let label = element.label.clone();
            let done = dumped_and_sent(ends, element, step, meter).await;
            done.map_err(|mut fault| {
                fault.message = format!("{label}: {}", fault.message);
                // What the way to the destination lost is told with its name too.
                fault.of_peer |= ["wire.", "arrival.", "content.link-lost"]
                    .iter()
                    .any(|prefix| fault.code.starts_with(prefix));
                fault.on_either(&ends.plan.source, &ends.plan.destination)
            })
        }));
    }
    stream::iter(work).buffer_unordered(side_by_side).collect().await
}

/// A step of the round of one element. Memory is dumped before it is read.
async fn dumped_and_sent(
    ends: &Ends<'_>,
    element: &mut OpenElement,
    step: Step,
    meter: &Arc<Meter>,
) -> Result<RoundReport, Fault> {
    let step = match (step, &element.memory) {
        (Step::Round(options), Some(memory)) => {
            let fresh = element.dumped.is_some_and(|dumped| dumped.is_fresh());
            if !fresh || options.frozen {
                let begun = Instant::now();
                // What is there of tracked dumps does not change, and what comes is little.
                let follows = options.frozen && !element.is_tracked();
                let kind = if options.frozen {
                    DumpKind::Last
                } else {
                    DumpKind::Next
                };
                let waiting = element.begun.get_mut().unwrap_or_else(PoisonError::into_inner);
                let dumped = match waiting.as_mut().filter(|_| follows) {
                    Some(round) => dumped_and_followed(ends.engine, memory, round.as_mut()).await?,
                    None => ends.engine.dump(memory, kind).await?,
                };
                tell_of_whole(&dumped, &element.label, &*meter.reporter);
                element.dumped = Some(LastDump::next(element.dumped, &dumped, begun.elapsed()));
            } else if element.dump_sent {
                return Ok(RoundReport::default());
            }
            element.dump_sent = true;
            // A restart of the machine ends every process anyway.
            let durable = false;
            Step::Round(RoundOptions { durable, ..options })
        }
        (step, _) => step,
    };
    round_of_one(ends.destination, element, step, ends.given_up, meter).await
}

/// Dumps memory while the round that carries it reads what is written already.
async fn dumped_and_followed(
    engine: &dyn Engine,
    memory: &ElementAt,
    round: &mut dyn BegunRound,
) -> Result<Dumped, Fault> {
    let mut dumped = Ok(Dumped::Whole { why: None });
    let dump = async { dumped = engine.dump(memory, DumpKind::Last).await };
    let followed = round.follow(Box::pin(dump)).await;
    let dumped = dumped?;
    followed.map(|()| dumped)
}

/// A step of the round of one element. A link that was lost is made again for a while: what arrived is there.
pub(super) async fn round_of_one(
    destination: &Arc<dyn Destination>,
    element: &mut OpenElement,
    step: Step,
    given_up: &CancellationToken,
    meter: &Arc<Meter>,
) -> Result<RoundReport, Fault> {
    let progress = meter.of_one();
    let begun = Instant::now();
    let changes = element.memory.is_some() && !element.is_tracked();
    let mut warned = false;
    loop {
        let waiting = element.begun.get_mut().unwrap_or_else(PoisonError::into_inner);
        let source = element.source.get_mut().unwrap_or_else(PoisonError::into_inner);
        let round = async {
            let mut begun = match waiting.take() {
                Some(begun) => begun,
                None => {
                    let pipe = opened(destination, element.index, given_up).await?;
                    let options = match step {
                        Step::Round(options) => options,
                        Step::Meet => RoundOptions {
                            frozen: true,
                            durable: element.memory.is_none(),
                        },
                    };
                    source.begin(pipe, options).await?
                }
            };
            match step {
                Step::Meet => {
                    begun.meet().await?;
                    if changes {
                        begun.foresee().await?;
                    }
                    *waiting = Some(begun);
                    Ok(RoundReport::default())
                }
                Step::Round(_) => begun.go(Arc::clone(&progress)).await,
            }
        };
        match round.await {
            Err(fault)
                if (link_lost(&fault) || fault.code == "content.link-lost")
                    && begun.elapsed() < PATIENCE
                    && !given_up.is_cancelled() =>
            {
                // Whoever watches may be able to bring it back.
                if !warned {
                    warned = true;
                    let text = format!("{LOST_DESTINATION}, trying again: {fault}");
                    meter.reporter.report(Event::Warning { text });
                }
                tokio::time::sleep(RETRY).await;
            }
            done => return done,
        }
    }
}

/// A stream for a round, unless the migration is given up, or the destination takes too long.
async fn opened(
    destination: &Arc<dyn Destination>,
    index: usize,
    given_up: &CancellationToken,
) -> Result<Pipe, Fault> {
    let lost = |why: String| Fault::new("wire.silent", FaultKind::Environment, why);
    tokio::select! {
        pipe = destination.element(index) => Ok(breakable(pipe?, given_up)),
        () = given_up.cancelled() => Err(lost("the migration was given up".into())),
        () = tokio::time::sleep(OPENING) => Err(lost(format!(
            "the destination did not begin a round within {} s",
            OPENING.as_secs()
        ))),
    }
}
