//! Memory of the source's processes: dumps that travel like files, and are what going back starts from.

use std::time::Duration;

use tokio::time::Instant;
use tranship_core::event::Event;
use tranship_core::fault::FaultKind;
use tranship_core::storage::ElementAt;
use tranship_core::{EngineError, Fault};

use super::Departure;
use crate::elements::Target;
use crate::plan::Plan;

/// Code of the fault that means: its memory cannot be dumped, which was seen before anything of it stood still for its move or
/// travelled.
pub const NOT_DUMPED: &str = "live.dump";
/// Time between two tries to take a dump away.
const FORGET_AGAIN: Duration = Duration::from_secs(1);

/// The memory of one of the plan's containers at the source, if it is to travel.
pub(super) fn memory_of(plan: &Plan, index: usize) -> Option<&ElementAt> {
    let memory = plan.elements.iter().find(|element| {
        element.copied && matches!(element.target, Target::Memory { member, .. } if member == index)
    });
    memory.map(|element| &element.at)
}

impl Departure {
    /// Dumps memory for the first time, while the source runs: what only CRIU can tell is told before anything travels. The first round
    /// takes this dump if it comes soon.
    pub(super) async fn first_dump(&mut self) -> Result<(), Fault> {
        for index in 0..self.members.len() {
            let Some(memory) = memory_of(self.plan(), index) else {
                continue;
            };
            let begun = Instant::now();
            match self.ports.engine.dump(memory).await {
                Ok(()) => {}
                Err(EngineError::Failed { message, .. } | EngineError::Unsupported { message }) => {
                    // Whoever asked for its end meanwhile is not to see it go on in another mode.
                    self.stop_if_cancelled()?;
                    return Err(self.not_dumped(index, &message));
                }
                Err(error) => return Err(error.into()),
            }
            self.dumped.insert(index, (Instant::now(), begun.elapsed()));
        }
        Ok(())
    }

    fn not_dumped(&self, index: usize, why: &str) -> Fault {
        let name = self.members.get(index).map(|m| m.create.spec.name.clone());
        let name = name.unwrap_or_default();
        Fault::new(
            NOT_DUMPED,
            FaultKind::RolledBack,
            format!("the memory of {name} cannot be dumped: {why}"),
        )
        .on_node(self.plan().source.clone())
        .on_container(name)
        .with_hint("--mode cold or --mode warm carries everything but memory")
    }

    /// Makes room for the dumps of the freeze. What was dumped before has travelled, and removing it takes time. What fails here is
    /// left to the dump itself, which does the same.
    pub(super) async fn clear_dumps(&self) {
        for index in 0..self.members.len() {
            if let Some(memory) = memory_of(self.plan(), index)
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
