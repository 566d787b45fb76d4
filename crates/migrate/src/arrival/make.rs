//! What the destination makes: networks, volumes, containers; and what makes way for them.

use std::collections::BTreeSet;

use tranship_core::container::{ContainerState, MountKind, RestartPolicy};
use tranship_core::fault::FaultKind;
use tranship_core::storage::{ElementAt, ElementRoute};
use tranship_core::{EngineError, Fault, NetworkSpec};

use super::{Arrival, undo};
use crate::elements::{ElementPlan, Making, Target};
use crate::failpoint;
use crate::plan::Member;
use crate::record::{ArrivalRecord, Undo};

impl Arrival {
    /// Makes the networks that are not here, then volumes and directories, and makes way for their data.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn prepare(&self) -> Result<(), Fault> {
        failpoint::reach("destination.prepare").await?;
        let mut record = self.record.lock().await;
        Self::refuse_if_over(&record)?;
        let mut wanted: Vec<NetworkSpec> = Vec::new();
        for network in record
            .plan
            .members()
            .into_iter()
            .flat_map(|m| m.create.spec.networks)
        {
            if !wanted.iter().any(|n| n.name == network.name) {
                wanted.push(network);
            }
        }
        if !wanted.is_empty() {
            let here: BTreeSet<String> = self
                .ports
                .engine
                .networks()
                .await?
                .into_iter()
                .map(|n| n.name)
                .collect();
            for network in wanted.iter().filter(|n| !here.contains(&n.name)) {
                record.undo.push(Undo::Network {
                    name: network.name.clone(),
                    id: None,
                });
                self.save(&record).await?;
                let made = self
                    .ports
                    .engine
                    .create_network(network, record.plan.options.new_subnets)
                    .await?;
                if let Some(Undo::Network { id, .. }) = record.undo.last_mut() {
                    *id = Some(made);
                }
                self.save(&record).await?;
                failpoint::reach("destination.network-made").await?;
            }
        }
        for element in record.plan.elements.clone() {
            self.make_element(&mut record, &element).await?;
        }
        Ok(())
    }

    /// Makes what is to hold an element's data, where it is not made with the container.
    async fn make_element(&self, record: &mut ArrivalRecord, element: &ElementPlan) -> Result<(), Fault> {
        match &element.target {
            Target::Volume { name, making } => {
                self.make_volume(record, element, name, *making).await?;
                failpoint::reach("destination.volume-made").await
            }
            Target::Bind { path, making } => self.make_directory(record, path, *making).await,
            Target::Anonymous { .. }
            | Target::Layer { .. }
            | Target::Tmpfs { .. }
            | Target::Memory { .. } => Ok(()),
        }
    }

    async fn make_volume(
        &self,
        record: &mut ArrivalRecord,
        element: &ElementPlan,
        name: &str,
        making: Making,
    ) -> Result<(), Fault> {
        let at = ElementAt::Volume {
            name: name.to_owned(),
        };
        match making {
            Making::Reuse => Ok(()),
            Making::Replace => self.make_way(record, at).await,
            Making::New => {
                let Some(spec) = &element.volume else {
                    return Err(Fault::new(
                        "request.invalid",
                        FaultKind::Usage,
                        format!("the plan says nothing about the volume {name:?}"),
                    ));
                };
                // Only a tree can make use of what an earlier try left.
                let guid = if element.copied && element.route == ElementRoute::Tree {
                    spec.guid.clone()
                } else {
                    String::new()
                };
                let note = Undo::Volume {
                    name: name.to_owned(),
                    guid: guid.clone(),
                };
                if record.undo.contains(&note) {
                    return Ok(());
                }
                // A volume that somebody made in between is not ours to remove.
                if self.ports.engine.volumes().await?.iter().any(|v| v == name) {
                    return Err(volume_exists(name));
                }
                record.undo.push(note);
                self.save(record).await?;
                match self.ports.engine.create_volume(spec).await {
                    Ok(()) => {}
                    Err(error) => {
                        // A definite refusal made nothing, and the name may belong to somebody else by now.
                        if matches!(error, EngineError::Conflict { .. }) {
                            record.undo.pop();
                            self.save(record).await?;
                        }
                        return Err(error.into());
                    }
                }
                self.bring_back_partial(&at, &guid).await;
                Ok(())
            }
        }
    }

    async fn make_directory(
        &self,
        record: &mut ArrivalRecord,
        path: &str,
        making: Making,
    ) -> Result<(), Fault> {
        let at = ElementAt::Bind {
            path: path.to_owned(),
        };
        if making == Making::Replace {
            return self.make_way(record, at).await;
        }
        let note = Undo::Directory {
            path: path.to_owned(),
        };
        if record.undo.contains(&note) {
            return Ok(());
        }
        let place = self.ports.directory(&at).await?;
        if self.ports.storage.exists(&place).await? {
            // Empty by the plan, filled perhaps since. What arrives is taken out again, the directory stays.
            return self.make_way(record, at).await;
        }
        record.undo.push(note);
        self.save(record).await?;
        if !self.ports.storage.make(&place).await? {
            // Somebody made it right now.
            record.undo.pop();
            self.make_way(record, at).await?;
        }
        Ok(())
    }

    /// What the element holds makes way until the migration is over.
    async fn make_way(&self, record: &mut ArrivalRecord, at: ElementAt) -> Result<(), Fault> {
        let key = undo::aside_key(&record.plan.id, &at);
        let note = Undo::Aside {
            at: at.clone(),
            key: key.clone(),
        };
        if record.undo.contains(&note) {
            return Ok(());
        }
        let place = self.ports.directory(&at).await?;
        record.undo.push(note);
        self.save(record).await?;
        self.ports.storage.set_aside(&place, &key).await
    }

    /// Notes the volumes that come new and empty with the container. As late as can be: one that somebody else makes in
    /// between is not ours to remove.
    async fn note_volumes(&self, record: &mut ArrivalRecord, member: &Member) -> Result<(), Fault> {
        let named: BTreeSet<String> = member
            .create
            .spec
            .mounts
            .iter()
            .filter(|m| m.kind == MountKind::Volume && !m.anonymous)
            .filter(|m| !member.create.carried.contains_key(&m.destination))
            .map(|m| m.name.clone())
            .collect();
        if named.is_empty() {
            return Ok(());
        }
        let here = self.ports.engine.volumes().await?;
        for name in named {
            let note = Undo::Volume {
                name: name.clone(),
                guid: String::new(),
            };
            if record.undo.contains(&note) {
                continue;
            }
            if here.contains(&name) {
                return Err(volume_exists(&name));
            }
            record.undo.push(note);
        }
        self.save(record).await
    }

    /// Makes the containers that are not made yet. One of the same name makes way if the plan says so.
    pub(super) async fn make_containers(&self, record: &mut ArrivalRecord) -> Result<(), Fault> {
        let members = record.plan.members();
        for (index, member) in members.iter().enumerate() {
            if !record.containers.contains_key(&index) {
                self.create_member(record, index, member).await?;
            }
        }
        Ok(())
    }

    async fn create_member(
        &self,
        record: &mut ArrivalRecord,
        index: usize,
        member: &Member,
    ) -> Result<(), Fault> {
        let request = &member.create;
        if record.plan.options.replace {
            self.set_aside(record, &request.name).await?;
        }
        // A name that is in use belongs to somebody else: it must never be noted as ours to remove.
        if self
            .ports
            .engine
            .containers()
            .await?
            .iter()
            .any(|c| c.names.contains(&request.name))
        {
            return Err(Fault::new(
                "name.taken",
                FaultKind::Environment,
                format!(
                    "there is a container {:?} at the destination since the plan was made",
                    request.name
                ),
            )
            .with_hint("--rename NAME gives this one another name, --replace removes that one"));
        }
        self.note_volumes(record, member).await?;
        record.undo.push(Undo::Container {
            name: request.name.clone(),
            id: None,
        });
        self.save(record).await?;
        let made = match self.ports.engine.create_container(request).await {
            Ok(made) => made,
            Err(error) => {
                // A definite refusal made nothing, and the name may belong to somebody else by now.
                if matches!(error, EngineError::Conflict { .. }) {
                    record.undo.pop();
                    self.save(record).await?;
                }
                return Err(error.into());
            }
        };
        if let Some(Undo::Container { id, .. }) = record.undo.last_mut() {
            *id = Some(made.clone());
        }
        record.containers.insert(index, made);
        self.save(record).await
    }

    async fn set_aside(&self, record: &mut ArrivalRecord, name: &str) -> Result<(), Fault> {
        let name = name.to_owned();
        let Some(other) = self
            .ports
            .engine
            .containers()
            .await?
            .into_iter()
            .find(|c| c.names.contains(&name))
        else {
            return Ok(());
        };
        let reference = tranship_core::ids::ContainerName::new(other.id.as_str())
            .map_err(|e| Fault::new("name.invalid", FaultKind::Bug, e.to_string()))?;
        let spec = self.ports.engine.inspect(&reference).await?;
        if spec.status.state == ContainerState::Paused {
            return Err(Fault::new(
                "name.paused",
                FaultKind::Environment,
                format!("the container {name:?} at the destination is paused and could not be put back so"),
            )
            .with_hint("`docker unpause` it there, or remove it yourself, then run the command again"));
        }
        let was_running = matches!(
            spec.status.state,
            ContainerState::Running | ContainerState::Restarting
        );
        record.undo.push(Undo::SetAside {
            id: other.id.clone(),
            name: name.clone(),
            was_running,
            policy: spec.restart_policy.clone(),
        });
        self.save(record).await?;
        if spec.auto_remove {
            return Err(Fault::new(
                "name.auto-remove",
                FaultKind::Environment,
                format!(
                    "the container {name:?} at the destination was made with --rm and could not be put back"
                ),
            )
            .with_hint("stop it yourself, then run the command again"));
        }
        self.ports
            .engine
            .set_restart_policy(&other.id, &RestartPolicy::never())
            .await?;
        self.ports.engine.stop(&other.id, None).await?;
        self.ports
            .engine
            .rename(&other.id, &undo::aside_name(&name, record.plan.id.as_str()))
            .await?;
        Ok(())
    }
}

fn volume_exists(name: &str) -> Fault {
    Fault::new(
        "volume.exists",
        FaultKind::Environment,
        format!("there is a volume {name:?} at the destination since the plan was made"),
    )
    .with_hint("run the command again; --volume-conflict says what to do about it")
}
