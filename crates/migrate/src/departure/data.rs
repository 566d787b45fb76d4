//! What the containers hold, on its way: rounds while they run, the final delta while they stand still.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tranship_core::Fault;
use tranship_core::event::{Event, Phase};
use tranship_core::fault::FaultKind;
use tranship_core::memory::DumpKind;
use tranship_core::storage::{ElementAt, ElementPlace, ElementRoute, RoundOptions, RoundReport, SyncOptions};

use super::element::{Ends, Meter, OpenElement, Step, round_of_one, rounds};
use super::memory::{LastDump, tell_of_whole};
use super::predict::{longer_after, meets_before, predict};
use super::{Departure, millis};
use crate::elements::Target;
use crate::failpoint;
use crate::record::RoundRecord;

/// Rounds while the source runs, unless the user says otherwise.
const ROUNDS: u32 = 6;
/// A round that takes no longer than this leaves nothing to gain from another one.
const SHORT: Duration = Duration::from_millis(150);
/// A round that takes more than this share of the one before does not shorten the freeze by much.
const WORTH_IT: f64 = 0.7;

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
            tell_of_whole(&dumped, &element.label, &*self.reporter);
            element.dumped = Some(LastDump::next(element.dumped, &dumped, begun.elapsed()));
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

fn seconds(milliseconds: u64) -> f64 {
    Duration::from_millis(milliseconds).as_secs_f64()
}
