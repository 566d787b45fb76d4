//! Memory of the source's processes: dumps that travel like files, and are what going back starts from.

use tranship_core::event::Event;
use tranship_core::storage::ElementAt;

use super::Departure;
use crate::elements::Target;
use crate::plan::Plan;

/// The memory of one of the plan's containers at the source, if it is to travel.
pub(super) fn memory_of(plan: &Plan, index: usize) -> Option<&ElementAt> {
    let memory = plan.elements.iter().find(|element| {
        element.copied && matches!(element.target, Target::Memory { member, .. } if member == index)
    });
    memory.map(|element| &element.at)
}

impl Departure {
    /// Takes the dumps away. They hold whatever the processes knew, so failing at that is said.
    pub(super) async fn forget_dumps(&self) {
        for index in 0..self.members.len() {
            let Some(memory) = memory_of(self.plan(), index) else {
                continue;
            };
            if let Err(error) = self.ports.engine.forget(memory).await {
                self.reporter.report(Event::Warning {
                    text: format!("a dump of the container's memory is left at the source: {error}"),
                });
            }
        }
    }
}
