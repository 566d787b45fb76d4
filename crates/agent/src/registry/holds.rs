//! Containers that stand still for their checkpoints: neither moved nor written to meanwhile.

use std::collections::HashMap;
use std::sync::Arc;

use tranship_core::fault::FaultKind;
use tranship_core::storage::ElementAt;
use tranship_core::{ContainerSpec, Fault, MigrationId};
use tranship_migrate::record::DepartureState;
use tranship_migrate::{Mode, Plan};

use super::{DepartureTask, Registry, is_over, locked};
use crate::locks::Held;
use crate::writes::{self, Writing};

/// A container that is held, until this is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    _open: Writing,
    _lock: Held,
}

/// A container that a migration took away, or may have.
#[derive(Debug)]
pub(crate) struct Moved {
    id: MigrationId,
    destination: String,
    /// It belongs to the destination for good.
    pub(crate) over: bool,
}

impl Moved {
    /// Why nothing is made of its memory here.
    pub(crate) fn fault(&self, spec: &ContainerSpec) -> Fault {
        let whither = format!("to {}", self.destination);
        if !self.over {
            return moving(spec, &whither, &self.id);
        }
        Fault::new(
            "container.moved",
            FaultKind::Environment,
            format!("{} was moved {whither}, by migration {}", spec.name, self.id),
        )
        .on_container(spec.name.clone())
        .with_hint("it goes on there, and its memory must not go on here as well; `tranship checkpoint rm` removes checkpoints")
    }
}

impl Registry {
    /// The migration that took this container away, or that is not over. One that a person started since, where it was left, is that
    /// person's again.
    pub(crate) fn moved(&self, spec: &ContainerSpec) -> Option<Moved> {
        let records = locked(&self.departure_records);
        let mut found: Option<Moved> = None;
        for record in records.values().filter(|r| r.state != DepartureState::RolledBack) {
            let plan = &record.plan;
            let members = plan.members();
            let Some(member) = members.iter().find(|m| m.create.spec.id == spec.id) else {
                continue;
            };
            let over = record.state == DepartureState::Complete;
            // In stateless mode it may be restarted on its way.
            let same_run = member.create.spec.status.started_at == spec.status.started_at;
            if over && !same_run && plan.mode != Mode::Stateless {
                continue;
            }
            if found.as_ref().is_none_or(|found| found.over) {
                found = Some(Moved {
                    id: plan.id.clone(),
                    destination: plan.destination.to_string(),
                    over,
                });
            }
        }
        found
    }

    /// Keeps migrations and copies away from a container and from what it may write to. `id` stands for what is done with it in the
    /// file of the container's lock.
    ///
    /// # Errors
    /// `container.moving`, `container.copying`, `container.checkpointing` if something of that is under way; `container.moved` if it
    /// belongs to another node by now; `agent.state`.
    pub(crate) fn hold(&self, id: &MigrationId, spec: &ContainerSpec) -> Result<Hold, Fault> {
        let hold = self.hold_any(id, spec)?;
        // Held, so that no migration begins after this look.
        match self.moved(spec) {
            Some(moved) => Err(moved.fault(spec)),
            None => Ok(hold),
        }
    }

    /// As [`Registry::hold`], but for a container that was moved away as well, of which things are only to be removed.
    ///
    /// # Errors
    /// As [`Registry::hold`], but for `container.moved`.
    pub(crate) fn hold_any(&self, id: &MigrationId, spec: &ContainerSpec) -> Result<Hold, Fault> {
        let elements = writes::of_container(spec);
        let running = locked(&self.departures);
        self.refuse_moving(&running, &elements, |plan, whither| {
            moving(spec, whither, &plan.id)
        })?;
        if self.writes.touch(&elements) {
            return Err(copying(spec, &elements));
        }
        let lock = self.locks.take(id, std::slice::from_ref(&spec.id))?;
        Ok(Hold {
            _open: self.writes.hold(elements, &spec.name),
            _lock: lock,
        })
    }

    /// Whether any of these is on its way, or held. Nothing begins between this and what is done while `running` is locked.
    ///
    /// # Errors
    /// `moving`, of the plan and whither it goes; `container.checkpointing`.
    pub(super) fn refuse_moving(
        &self,
        running: &HashMap<MigrationId, Arc<DepartureTask>>,
        elements: &[ElementAt],
        moving: impl Fn(&Plan, &str) -> Fault,
    ) -> Result<(), Fault> {
        let leaving =
            |task: &&Arc<DepartureTask>| writes::overlap(&writes::of_departure(&task.plan), elements);
        if let Some(task) = running.values().find(leaving) {
            return Err(moving(&task.plan, &format!("to {}", task.plan.destination)));
        }
        let arriving = locked(&self.arrivals)
            .values()
            .map(|arrival| arrival.record())
            .find(|record| !is_over(record) && writes::overlap(&writes::of_arrival(record), elements));
        if let Some(record) = arriving {
            let whither = format!("here from {}", record.plan.source);
            return Err(moving(&record.plan, &whither));
        }
        self.writes
            .held(elements)
            .map_or(Ok(()), |name| Err(writes::checkpointing(&name)))
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
