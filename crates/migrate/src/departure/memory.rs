//! Memory of the source's processes: dumps that travel like files, and are what going back starts from.

use std::time::Duration;

use tokio::time::Instant;
use tranship_core::event::{Event, Reporter};
use tranship_core::fault::FaultKind;
use tranship_core::memory::{DumpKind, Dumped};
use tranship_core::storage::ElementAt;
use tranship_core::{EngineError, Fault};

use super::Departure;
use super::element::OpenElement;
use crate::elements::Target;
use crate::plan::Plan;

/// Code of the fault that means: its memory cannot be dumped, which was seen before anything of it stood still for its move or
/// travelled.
pub const NOT_DUMPED: &str = "live.dump";
/// While they run, processes are not dumped whole more often than this: they stand still meanwhile.
const DUMP_AGAIN: Duration = Duration::from_secs(10);
/// Of what was written since, they are dumped so often that they stand still for one part in so many.
const STANDS_STILL: u32 = 10;
/// Time between two tries to take a dump away.
const FORGET_AGAIN: Duration = Duration::from_secs(1);

/// The memory of one of the plan's containers at the source, if it is to travel.
pub(super) fn memory_of(plan: &Plan, index: usize) -> Option<&ElementAt> {
    let memory = plan.elements.iter().find(|element| {
        element.copied && matches!(element.target, Target::Memory { member, .. } if member == index)
    });
    memory.map(|element| &element.at)
}

/// The newest dump of one container's memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct LastDump {
    made: Instant,
    /// How long it took.
    took: Duration,
    /// How long all of it took, when that was dumped last.
    all_took: Duration,
    tracked: bool,
}

impl LastDump {
    pub(super) fn first(kind: &Dumped, took: Duration) -> Self {
        Self {
            made: Instant::now(),
            took,
            all_took: took,
            tracked: *kind == Dumped::Tracked,
        }
    }

    /// The one that comes after.
    pub(super) fn next(before: Option<Self>, kind: &Dumped, took: Duration) -> Self {
        let this = Self::first(kind, took);
        match before.filter(|_| this.tracked) {
            Some(before) => Self {
                all_took: before.all_took,
                ..this
            },
            None => this,
        }
    }

    /// It is of what is there now, or as good as that: processes stand still for each.
    pub(super) fn is_fresh(&self) -> bool {
        let again = if self.tracked {
            self.took.saturating_mul(STANDS_STILL)
        } else {
            DUMP_AGAIN
        };
        self.made.elapsed() < again
    }

    /// Later ones hold only what was written since.
    pub(super) fn is_tracked(&self) -> bool {
        self.tracked
    }

    /// How long the freeze takes for it: one more, a comparison with what the others hold, and a restore, either of which takes at most about as long
    /// as dumping all of it.
    pub(super) fn in_freeze(&self) -> Duration {
        let compared = if self.tracked {
            self.all_took
        } else {
            Duration::ZERO
        };
        self.took.saturating_add(self.all_took).saturating_add(compared)
    }
}

/// Says why later dumps are not of what was written since, where they could have been.
pub(super) fn tell_of_whole(dumped: &Dumped, label: &str, reporter: &dyn Reporter) {
    if let Dumped::Whole { why: Some(why) } = dumped {
        let text = format!("{label} is dumped whole from here on: {why}");
        reporter.report(Event::Note { text });
    }
}

impl Departure {
    /// Dumps memory for the first time, while the source runs: what only CRIU can tell is told before anything travels. The first round
    /// takes this dump if it comes soon.
    pub(super) async fn first_dump(&mut self) -> Result<(), Fault> {
        let kind = if self.plan().tracked_memory && self.plan().options.rounds != Some(0) {
            DumpKind::First
        } else {
            DumpKind::Whole
        };
        for index in 0..self.members.len() {
            let Some(memory) = memory_of(self.plan(), index) else {
                continue;
            };
            let begun = Instant::now();
            let dumped = match self.ports.engine.dump(memory, kind).await {
                Ok(dumped) => dumped,
                Err(EngineError::Failed { message, .. } | EngineError::Unsupported { message }) => {
                    // Whoever asked for its end meanwhile is not to see it go on in another mode.
                    self.stop_if_cancelled()?;
                    return Err(self.not_dumped(index, &message));
                }
                Err(error) => return Err(error.into()),
            };
            let label = format!("the memory of {}", self.name_of(index));
            tell_of_whole(&dumped, &label, &*self.reporter);
            self.dumped
                .insert(index, LastDump::first(&dumped, begun.elapsed()));
        }
        Ok(())
    }

    /// Whether the last dump of it is one that others follow.
    fn is_tracked(&self, memory: &ElementAt) -> bool {
        let open = self.elements.iter().find(|element| element.is_of(memory));
        open.is_some_and(OpenElement::is_tracked)
    }

    fn name_of(&self, index: usize) -> String {
        let member = self.members.get(index);
        member.map_or_else(String::new, |m| m.create.spec.name.to_string())
    }

    fn not_dumped(&self, index: usize, why: &str) -> Fault {
        let name = self.name_of(index);
        Fault::new(
            NOT_DUMPED,
            FaultKind::RolledBack,
            format!("the memory of {name} cannot be dumped: {why}"),
        )
        .on_node(self.plan().source.clone())
        .on_container(name)
        .with_hint("--mode cold or --mode warm carries everything but memory")
    }

    /// Makes room for the dumps of the freeze. What was dumped before has travelled, and removing it takes time; where one follows the
    /// other it stays. What fails here is left to the dump itself, which does the same.
    pub(super) async fn clear_dumps(&self) {
        for index in 0..self.members.len() {
            if let Some(memory) = memory_of(self.plan(), index)
                && !self.is_tracked(memory)
                && let Err(error) = self.ports.engine.clear_dump(memory).await
            {
                tracing::debug!("a dump is left to be cleared in the freeze: {error}");
            }
        }
    }

    /// Takes the dumps away. They hold whatever the processes knew, so an engine that is away is waited for, as long as is said for all
    /// of them, and failing is told.
    pub(super) async fn forget_dumps(&self, within: Duration) {
        let begun = Instant::now();
        for index in 0..self.members.len() {
            let Some(memory) = memory_of(self.plan(), index) else {
                continue;
            };
            let mut forgotten = self.ports.engine.forget(memory).await;
            while matches!(
                forgotten,
                Err(EngineError::Unreachable { .. } | EngineError::Uncertain { .. })
            ) && begun.elapsed() < within
            {
                tokio::time::sleep(FORGET_AGAIN).await;
                forgotten = self.ports.engine.forget(memory).await;
            }
            if let Err(error) = forgotten {
                self.reporter.report(Event::Warning {
                    text: format!("a dump of the container's memory is left at the source: {error}"),
                });
            }
        }
    }
}
