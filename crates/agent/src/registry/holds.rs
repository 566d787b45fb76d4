//! Containers that stand still for their checkpoints: neither moved nor written to meanwhile.

use std::sync::Arc;

use tranship_core::fault::FaultKind;
use tranship_core::storage::ElementAt;
use tranship_core::{ContainerSpec, Fault, MigrationId};

use super::{DepartureTask, Registry, is_over, locked};
use crate::locks::Held;
use crate::writes::{self, Writing};

/// A container that is held, until this is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    _open: Writing,
    _lock: Held,
}

impl Registry {
    /// Keeps migrations and copies away from a container and from what it may write to. `id` stands for what is done with it in the
    /// file of the container's lock.
    ///
    /// # Errors
    /// `container.moving`, `container.copying`, `container.checkpointing` if something of that is under way; `agent.state`.
    pub(crate) fn hold(&self, id: &MigrationId, spec: &ContainerSpec) -> Result<Hold, Fault> {
        let elements = writes::of_container(spec);
        let running = locked(&self.departures);
        let leaving =
            |task: &&Arc<DepartureTask>| writes::overlap(&writes::of_departure(&task.plan), &elements);
        if let Some(task) = running.values().find(leaving) {
            let whither = format!("to {}", task.plan.destination);
            return Err(moving(spec, &whither, &task.plan.id));
        }
        let arriving = locked(&self.arrivals)
            .values()
            .map(|arrival| arrival.record())
            .find(|record| !is_over(record) && writes::overlap(&writes::of_arrival(record), &elements));
        if let Some(record) = arriving {
            let whither = format!("here from {}", record.plan.source);
            return Err(moving(spec, &whither, &record.plan.id));
        }
        if let Some(name) = self.writes.held(&elements) {
            return Err(writes::checkpointing(&name));
        }
        if self.writes.touch(&elements) {
            return Err(copying(spec, &elements));
        }
        let lock = self.locks.take(id, std::slice::from_ref(&spec.id))?;
        Ok(Hold {
            _open: self.writes.hold(elements, &spec.name),
            _lock: lock,
        })
    }
}

fn moving(spec: &ContainerSpec, whither: &str, id: &MigrationId) -> Fault {
    Fault::new(
        "container.moving",
        FaultKind::Environment,
        format!(
            "{}, or a volume of it, is on its way {whither}, by migration {id}",
            spec.name
        ),
    )
    .on_container(spec.name.clone())
    .with_hint(format!("`tranship status {id}` shows how far it is"))
}

fn copying(spec: &ContainerSpec, elements: &[ElementAt]) -> Fault {
    let parts: Vec<String> = elements.iter().map(ToString::to_string).collect();
    Fault::new(
        "container.copying",
        FaultKind::Environment,
        format!("files are being copied into {}", spec.name),
    )
    .because(format!("one of: {}", parts.join(", ")))
    .on_container(spec.name.clone())
    .with_hint("wait until that copy has ended, or end it")
}
