//! What the containers hold, on its way: rounds while they run, the final delta while they stand still.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, future::BoxFuture, stream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tranship_core::event::{Event, Phase, Reporter};
use tranship_core::fault::FaultKind;
use tranship_core::memory::{DumpKind, Dumped};
use tranship_core::storage::{
    BegunRound, ElementAt, ElementPlace, ElementRoute, ElementSource, Pipe, ProgressFn, RoundOptions,
    RoundProgress, RoundReport, SyncOptions,
};
use tranship_core::{Engine, Fault};

use super::memory::LastDump;
use super::predict::{longer_after, meets_before, predict};
use super::{Departure, LOST_DESTINATION, PATIENCE, PROGRESS_EVERY, RETRY, millis};
use crate::destination::{Destination, link_lost};
use crate::elements::Target;
use crate::failpoint;
use crate::pipe::breakable;
use crate::plan::Plan;
use crate::record::RoundRecord;

/// Rounds while the source runs, unless the user says otherwise.
const ROUNDS: u32 = 6;
/// A round that takes no longer than this leaves nothing to gain from another one.
const SHORT: Duration = Duration::from_millis(150);
/// A round that takes more than this share of the one before does not shorten the freeze by much.
const WORTH_IT: f64 = 0.7;
/// Elements whose round of the freeze begins before it, at most: each keeps a stream open.
const MEETINGS: usize = 32;
/// Elements whose final delta travels at the same time.
const SIDE_BY_SIDE: usize = 4;
/// Longest time that the destination takes to begin a round.
const OPENING: Duration = Duration::from_secs(60);

/// An element that is open for reading.
pub(super) struct OpenElement {
    /// Its place in the plan.
    index: usize,
    label: String,
    place: ElementPlace,
    /// It is memory, which has to be dumped before each round.
    memory: Option<ElementAt>,
    /// The newest dump of it.
    dumped: Option<LastDump>,
    /// The newest dump has travelled.
    dump_sent: bool,
    /// In a mutex that is never waited for, so that the whole can be looked at from several threads.
    source: std::sync::Mutex<Box<dyn ElementSource>>,
    /// The round of the freeze, which met the destination before.
    begun: std::sync::Mutex<Option<Box<dyn BegunRound>>>,
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
struct Meter {
    reporter: Arc<dyn Reporter>,
    phase: Phase,
    total: Option<u64>,
    done: AtomicU64,
    shown: std::sync::Mutex<Instant>,
}

impl Meter {
    /// What one element reports, added to what the others did.
    fn of_one(self: &Arc<Self>) -> ProgressFn {
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

impl Departure {
    fn meter(&self, phase: Phase, total: Option<u64>) -> Arc<Meter> {
        Arc::new(Meter {
            reporter: Arc::clone(&self.reporter),
            phase,
            total,
            done: AtomicU64::new(0),
            shown: std::sync::Mutex::new(Instant::now()),
        })
    }

    fn sync_options(&self) -> SyncOptions {
        let options = &self.plan().options;
        SyncOptions {
            exclude: options.exclude.clone(),
            compression: options.compression,
            limit_rate: options.limit_rate,
            mounts_stay: false,
            route: ElementRoute::default(),
        }
    }

    /// Opens the plan's elements whose data travels. With `live`, only those that can be read while the source runs.
    async fn open_elements(&mut self, live: bool) -> Result<(), Fault> {
        let options = self.sync_options();
        for (index, element) in self.record.plan.elements.clone().into_iter().enumerate() {
            let open = self.elements.iter().any(|e| e.index == index);
            if !element.copied || open || matches!(element.target, Target::Tmpfs { .. }) {
                continue;
            }
            let dumped = match element.target {
                Target::Memory { member, .. } => Some(self.dumped.get(&member).copied()),
                _ => None,
            };
            let memory = dumped.is_some();
            // An archive is read once, while nothing changes.
            if live && element.route == ElementRoute::Archive {
                continue;
            }
            let options = SyncOptions {
                route: element.route,
                // A dump with a part missing is none.
                exclude: if memory {
                    Vec::new()
                } else {
                    options.exclude.clone()
                },
                ..options.clone()
            };
            let place = self.ports.locate(&element.at, element.route).await?;
            if live && matches!(place, ElementPlace::Archive { .. }) {
                self.ports.engine.release(&place).await?;
                continue;
            }
            let opened = self.ports.storage.source(&place, &options).await;
            let source = match opened {
                Ok(source) => source,
                Err(fault) => {
                    self.ports.engine.release(&place).await?;
                    return Err(fault.on_node(self.plan().source.clone()));
                }
            };
            self.elements.push(OpenElement {
                index,
                label: element.label(),
                place,
                memory: memory.then(|| element.at.clone()),
                dumped: dumped.flatten(),
                dump_sent: false,
                source: std::sync::Mutex::new(source),
                begun: std::sync::Mutex::default(),
            });
        }
        Ok(())
    }

    /// Begins the rounds of the freeze: what the destination holds is looked through there while the source still runs.
    pub(super) async fn meet(&mut self) -> Result<(), Fault> {
        let rounds = &self.record.rounds;
        if !rounds.last().is_some_and(|last| meets_before(last.entries)) {
            return Ok(());
        }
        let meter = self.meter(Phase::Bulk, None);
        let begun = Instant::now();
        let met = self.of_all(Step::Meet, &meter).await;
        self.stop_if_cancelled()?;
        met.into_iter().try_for_each(|met| met.map(drop))?;
        if let Some(target) = self.plan().options.max_downtime_ms {
            let written = longer_after(&self.record.rounds, millis(begun.elapsed()));
            let predicted = predict(&self.record.rounds).saturating_add(self.memory_ms());
            if predicted.saturating_add(written) > target {
                // Of memory nothing more is to be carried for it: the freeze dumps it as it is then.
                for element in self.elements.iter_mut().filter(|e| e.memory.is_none()) {
                    *element.begun.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
                }
            }
        }
        Ok(())
    }

    /// Dumps memory that is tracked once more, right before the freeze: where a dump can follow no more, all of it travels while it still runs. What
    /// is dumped here and followed in the freeze travels with that.
    pub(super) async fn last_look(&mut self) -> Result<(), Fault> {
        let mut travels = false;
        for element in &mut self.elements {
            let Some(memory) = element.memory.clone().filter(|_| element.is_tracked()) else {
                continue;
            };
            let begun = Instant::now();
            let dumped = self.ports.engine.dump(&memory, DumpKind::Next).await?;
            element.dumped = Some(LastDump::next(element.dumped, dumped, begun.elapsed()));
            if !element.is_tracked() {
                travels = true;
                element.dump_sent = false;
            }
        }
        if travels {
            // Those were meant for the freeze.
            for element in &mut self.elements {
                *element.begun.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
            }
            self.round_of_all(Phase::Bulk, RoundOptions::default(), None)
                .await?;
        }
        Ok(())
    }

    /// Gives back what the engine made for reading.
    pub(super) async fn close_elements(&mut self) {
        for element in std::mem::take(&mut self.elements) {
            drop(element.source);
            if let Err(error) = self.ports.engine.release(&element.place).await {
                let text = format!("what was made for reading {} is left: {error}", element.label);
                self.reporter.report(Event::Warning { text });
            }
        }
    }

    /// Copies while the source runs, in rounds, as long as that shortens the freeze.
    pub(super) async fn bulk(&mut self) -> Result<(), Fault> {
        failpoint::reach("source.bulk").await?;
        let limit = self.plan().options.rounds.unwrap_or(ROUNDS);
        if limit == 0 {
            return Ok(());
        }
        self.open_elements(true).await?;
        if self.elements.is_empty() {
            return Ok(());
        }
        let target = self.plan().options.max_downtime_ms;
        let mut previous: Option<RoundRecord> = None;
        for number in 1..=limit {
            let options = RoundOptions::default();
            let total = if number == 1 {
                Some(self.plan().prediction.data_bytes)
            } else {
                None
            };
            let round = self
                .round_of_all(Phase::Bulk, options, total.filter(|t| *t > 0))
                .await?;
            self.stop_if_cancelled()?;
            let predicted = predict(&self.record.rounds).saturating_add(self.memory_ms());
            self.record.predicted_downtime_ms = Some(predicted);
            self.save().await?;
            self.reporter.report(Event::Note {
                text: format!(
                    "round {number}: {} of {} entries differ, {} bytes; a freeze now would take about {:.1} s",
                    round.changed_entries,
                    round.entries,
                    round.literal_bytes,
                    seconds(predicted)
                ),
            });
            let fits = target.is_none_or(|t| predicted <= t);
            let short = round.took_ms <= millis(SHORT);
            let shrinking = previous.is_none_or(|p| {
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "milliseconds of a round are far below 2^52"
                )]
                let share = round.took_ms as f64 / p.took_ms.max(1) as f64;
                share < WORTH_IT
            });
            // The first round tells how much there is, not how much changes.
            if short || (number > 1 && target.is_some() && fits) || (number > 2 && !shrinking) {
                break;
            }
            previous = Some(round);
        }
        if let (Some(target), Some(predicted)) = (target, self.record.predicted_downtime_ms)
            && predicted > target
        {
            return Err(Fault::new(
                "precopy.not-converging",
                FaultKind::RolledBack,
                format!(
                    "the freeze would take about {:.1} s, and more rounds of copying do not bring it below the {:.1} s asked for",
                    seconds(predicted),
                    seconds(target)
                ),
            )
            .with_hint(
                "allow more with --max-downtime or --rounds, move it when it writes less, or leave out what changes most with --exclude",
            ));
        }
        Ok(())
    }

    /// Milliseconds that a freeze takes for memory: it is dumped, and looked through meanwhile, and restored.
    fn memory_ms(&self) -> u64 {
        let dumps = self.elements.iter().filter_map(|element| element.dumped);
        dumps.map(|dumped| millis(dumped.in_freeze())).sum()
    }

    /// Copies what changed since the last round, while the source stands still, and makes it durable there.
    pub(super) async fn delta(&mut self) -> Result<(), Fault> {
        failpoint::reach("source.delta").await?;
        self.open_elements(false).await?;
        let options = RoundOptions {
            frozen: true,
            durable: true,
        };
        self.round_of_all(Phase::Delta, options, None).await?;
        failpoint::reach("source.delta-done").await
    }

    /// One round of every open element, and its record.
    async fn round_of_all(
        &mut self,
        phase: Phase,
        options: RoundOptions,
        total: Option<u64>,
    ) -> Result<RoundRecord, Fault> {
        let begun = Instant::now();
        let meter = self.meter(phase, total);
        let reports = self.of_all(Step::Round(options), &meter).await;
        let mut record = RoundRecord {
            frozen: options.frozen,
            ..RoundRecord::default()
        };
        let mut failed = None;
        for report in reports {
            match report {
                Ok(report) => {
                    record.entries += report.entries;
                    record.bytes += report.bytes;
                    record.changed_entries += report.changed_entries;
                    record.literal_bytes += report.literal_bytes;
                    record.wire_bytes += report.wire_bytes;
                }
                Err(fault) => {
                    failed.get_or_insert(fault);
                }
            }
        }
        record.took_ms = millis(begun.elapsed());
        self.record.bytes_sent += record.wire_bytes;
        self.record.rounds.push(record);
        self.stop_if_cancelled()?;
        failed.map_or(Ok(record), Err)
    }

    /// A step of the round of every open element.
    async fn of_all(&mut self, step: Step, meter: &Arc<Meter>) -> Vec<Result<RoundReport, Fault>> {
        let mut cancelled = self.cancelled.clone();
        let mut elements = std::mem::take(&mut self.elements);
        let reports = {
            let ends = Ends {
                engine: self.ports.engine.as_ref(),
                destination: &self.destination,
                plan: self.plan(),
                given_up: &self.given_up,
            };
            let work = rounds(&ends, &mut elements, step, meter);
            tokio::pin!(work);
            tokio::select! {
                reports = &mut work => reports,
                () = told(&mut cancelled) => {
                    // The rounds come to an end by themselves now; nothing is read any more when this returns.
                    self.given_up.cancel();
                    work.await
                }
            }
        };
        self.elements = elements;
        reports
    }

    /// A container that came to use one of the volumes or directories since the plan was made would write into what is being
    /// copied.
    pub(super) async fn check_users(&self) -> Result<(), Fault> {
        let engine = self.ports.engine.as_ref();
        let mut volumes = None;
        for element in self.plan().elements.iter().filter(|e| e.copied) {
            let (users, code, hint) = match &element.at {
                ElementAt::Volume { name } => {
                    let volumes = match &mut volumes {
                        Some(known) => known,
                        None => volumes.insert(engine.volume_specs().await?),
                    };
                    let users = volumes.iter().find(|v| &v.name == name).map(|v| v.users.clone());
                    (
                        users.unwrap_or_default(),
                        "volume.shared",
                        "stop that container, or move both with --with-dependents",
                    )
                }
                ElementAt::Bind { path } => (
                    engine.path_users(path).await?,
                    "bind.shared",
                    "stop that container, or move both with --with-dependents",
                ),
                ElementAt::Layer { .. } | ElementAt::Tmpfs { .. } | ElementAt::Memory { .. } => continue,
            };
            let other = users.iter().find(|user| {
                user.running && !self.members.iter().any(|m| m.create.spec.id == user.container)
            });
            if let Some(other) = other {
                let message = format!(
                    "the {} is used by {} since the plan was made",
                    element.at, other.name
                );
                return Err(Fault::new(code, FaultKind::RolledBack, message).with_hint(hint));
            }
        }
        Ok(())
    }

    /// Sends what tmpfs hold to containers that run there already and wait for it.
    pub(super) async fn fill_memory(&mut self) -> Result<(), Fault> {
        let options = SyncOptions {
            // In a container other things are mounted in it, by the container's own doing.
            mounts_stay: true,
            ..self.sync_options()
        };
        for (index, element) in self.record.plan.elements.clone().into_iter().enumerate() {
            if !element.copied || !matches!(element.target, Target::Tmpfs { .. }) {
                continue;
            }
            let place = self.ports.engine.locate(&element.at).await?;
            let source = self.ports.storage.source(&place, &options).await?;
            let mut open = OpenElement {
                index,
                label: element.label(),
                place,
                memory: None,
                dumped: None,
                dump_sent: false,
                source: std::sync::Mutex::new(source),
                begun: std::sync::Mutex::default(),
            };
            let meter = self.meter(Phase::Start, None);
            let frozen = RoundOptions {
                frozen: true,
                durable: false,
            };
            let frozen = Step::Round(frozen);
            let report = round_of_one(&self.destination, &mut open, frozen, &self.given_up, &meter).await;
            self.elements.push(open);
            self.record.bytes_sent += report?.wire_bytes;
        }
        Ok(())
    }
}

/// Ends when the user gave up.
async fn told(cancelled: &mut watch::Receiver<bool>) {
    // A sender that is gone can tell nothing any more.
    if cancelled.wait_for(|c| *c).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Both ends of a round, and what they have agreed on.
struct Ends<'a> {
    engine: &'a dyn Engine,
    destination: &'a Arc<dyn Destination>,
    plan: &'a Plan,
    given_up: &'a CancellationToken,
}

/// What is done of a round.
#[derive(Clone, Copy)]
enum Step {
    /// It begins, and is the one of the freeze.
    Meet,
    /// All of it, or what is left of it.
    Round(RoundOptions),
}

/// A step of the round of each element.
async fn rounds(
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
                element.dumped = Some(LastDump::next(element.dumped, dumped, begun.elapsed()));
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
    let mut dumped = Ok(Dumped::Whole);
    let dump = async { dumped = engine.dump(memory, DumpKind::Last).await };
    let followed = round.follow(Box::pin(dump)).await;
    let dumped = dumped?;
    followed.map(|()| dumped)
}

/// A step of the round of one element. A link that was lost is made again for a while: what arrived is there.
async fn round_of_one(
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

fn seconds(milliseconds: u64) -> f64 {
    Duration::from_millis(milliseconds).as_secs_f64()
}
