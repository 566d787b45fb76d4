//! The destination's half of a migration: take in, make, start, prove; then adopt, or discard without a trace.
//!
//! Each step notes what it is about to change before it does so. [`Arrival::discard`] takes the notes back in reverse,
//! and so can an agent that starts after a crash, from the record alone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::sync::{Mutex, watch};
use tranship_core::container::{ContainerState, MountKind, RestartPolicy};
use tranship_core::engine::ByteStream;
use tranship_core::fault::FaultKind;
use tranship_core::{ContainerId, Engine, EngineError, Fault};

use crate::destination::{Adopted, ArrivalState, Discarded, Opened};
use crate::plan::{Mode, Plan};
use crate::record::{ArrivalRecord, Records, Undo};
use crate::{failpoint, health};

/// One migration as its destination sees it.
pub struct Arrival {
    engine: Arc<dyn Engine>,
    records: Arc<dyn Records>,
    record: Mutex<ArrivalRecord>,
    /// A copy that can be read while a step holds the record.
    snapshot: watch::Sender<ArrivalRecord>,
    /// Set once: steps under way end with a fault, so that the discard need not wait for them.
    cancelled: watch::Sender<bool>,
}

impl std::fmt::Debug for Arrival {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arrival")
            .field("state", &self.snapshot.borrow().state)
            .finish_non_exhaustive()
    }
}

impl Arrival {
    /// An arrival that nothing has happened to yet.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, records: Arc<dyn Records>, plan: Plan, begun_at_ms: u64) -> Self {
        let record = ArrivalRecord {
            plan,
            state: ArrivalState::Receiving,
            begun_at_ms,
            undo: Vec::new(),
            container: None,
            left_behind: Vec::new(),
        };
        Self::from_record(engine, records, record)
    }

    /// An arrival as a record describes it, after a restart of the agent.
    #[must_use]
    pub fn from_record(engine: Arc<dyn Engine>, records: Arc<dyn Records>, record: ArrivalRecord) -> Self {
        let snapshot = watch::Sender::new(record.clone());
        Self {
            engine,
            records,
            record: Mutex::new(record),
            snapshot,
            cancelled: watch::Sender::new(false),
        }
    }

    /// The record as it was saved last.
    #[must_use]
    pub fn record(&self) -> ArrivalRecord {
        self.snapshot.borrow().clone()
    }

    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(
            self.snapshot.borrow().state,
            ArrivalState::Adopted | ArrivalState::Discarded
        )
    }

    /// Whether a lost link to the source ends this arrival. In cold mode, a container that was told to start waits for
    /// the source's word, however long that takes: nobody here can know what the source decided.
    #[must_use]
    pub fn ends_with_its_link(&self) -> bool {
        let record = self.snapshot.borrow();
        match record.state {
            ArrivalState::Receiving | ArrivalState::Prepared => true,
            ArrivalState::Started => record.plan.mode == Mode::Stateless,
            ArrivalState::Adopted | ArrivalState::Discarded => false,
        }
    }

    async fn save(&self, record: &ArrivalRecord) -> Result<(), Fault> {
        self.records.save_arrival(record).await?;
        self.snapshot.send_replace(record.clone());
        Ok(())
    }

    fn refuse_if_over(record: &ArrivalRecord) -> Result<(), Fault> {
        match record.state {
            ArrivalState::Discarded => Err(Fault::new(
                "arrival.discarded",
                FaultKind::Environment,
                "the destination has discarded this migration",
            )
            .with_hint("run the command again")),
            _ => Ok(()),
        }
    }

    async fn unless_cancelled<T>(&self, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        let mut cancelled = self.cancelled.subscribe();
        tokio::select! {
            biased;
            _ = cancelled.wait_for(|c| *c) => Err(Fault::new(
                "arrival.cancelled", FaultKind::Environment, "the destination was told to discard this migration",
            )),
            done = work => done,
        }
    }

    /// The archive, ending with an error once this arrival is to be discarded.
    fn until_cancelled(&self, archive: ByteStream) -> ByteStream {
        let mut cancelled = self.cancelled.subscribe();
        let flag = self.cancelled.subscribe();
        let told = async move {
            // The sender lives as long as this arrival.
            let _ = cancelled.wait_for(|c| *c).await;
        };
        let end = stream::once(async move {
            flag.borrow().then(|| {
                Err(EngineError::Uncertain {
                    action: "take in the image".into(),
                    message: "the destination was told to discard this migration".into(),
                })
            })
        });
        Box::pin(archive.take_until(told).chain(end.filter_map(std::future::ready)))
    }

    /// Saves the record for the first time and says what of the image is here.
    ///
    /// # Errors
    /// What the engine or the record store says.
    pub async fn open(&self) -> Result<Opened, Fault> {
        failpoint::reach("destination.open").await?;
        let record = self.record.lock().await;
        Self::refuse_if_over(&record)?;
        self.save(&record).await?;
        let image = &record.plan.transfer.image;
        let image_held = self.engine.image(image.id.as_str()).await?.is_some();
        let layers_held = if image_held {
            image.layers.len()
        } else {
            self.engine.layers_held(&image.layers).await?
        };
        Ok(Opened {
            image_held,
            layers_held,
        })
    }

    /// Takes in an image archive, or only sets the tag where the image is here already.
    ///
    /// # Errors
    /// What the stream or the engine says; `image.corrupt` when the image is another one than announced.
    pub async fn image(&self, archive: Option<ByteStream>) -> Result<(), Fault> {
        failpoint::reach("destination.image").await?;
        let mut record = self.record.lock().await;
        Self::refuse_if_over(&record)?;
        let image = record.plan.transfer.image.clone();
        let tag = record.plan.transfer.tag.clone();
        let held = self.engine.image(image.id.as_str()).await?.is_some();
        let mut notes = Vec::new();
        if !held {
            notes.push(Undo::Image {
                id: image.id.to_string(),
            });
        }
        if let Some(tag) = &tag {
            let previous = self.engine.image(tag).await?.map(|i| i.id.to_string());
            if previous.as_deref() != Some(image.id.as_str()) {
                notes.push(Undo::Tag {
                    tag: tag.clone(),
                    previous,
                });
            }
        }
        for note in notes {
            if !record.undo.contains(&note) {
                record.undo.push(note);
            }
        }
        self.save(&record).await?;
        if !held || record.plan.options.whole_image {
            let Some(archive) = archive else {
                return Err(Fault::new(
                    "image.missing",
                    FaultKind::Environment,
                    "the image is no longer at the destination",
                )
                .with_hint("run the command again"));
            };
            // Not given up half-way: an engine that has the whole archive goes on taking it in after its caller left, and
            // the discard would come too early to see the image. When it is to end, the archive breaks off instead.
            self.engine.import_image(self.until_cancelled(archive)).await?;
        }
        failpoint::reach("destination.image-loaded").await?;
        match self.engine.image(image.id.as_str()).await? {
            Some(here) if here.layers == image.layers => {}
            _ => {
                return Err(EngineError::Corrupt {
                    what: format!("the image {}", image.id),
                    message: "the engine took the archive but holds another image than announced".into(),
                }
                .into());
            }
        }
        if let Some(tag) = &tag {
            self.engine.tag_image(&image.id, tag).await?;
        }
        Ok(())
    }

    /// Makes the networks that are not here.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn prepare(&self) -> Result<(), Fault> {
        failpoint::reach("destination.prepare").await?;
        let mut record = self.record.lock().await;
        Self::refuse_if_over(&record)?;
        let wanted = record.plan.spec().networks.clone();
        if !wanted.is_empty() {
            let here: BTreeSet<String> = self
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
        Ok(())
    }

    /// Notes the volumes that come with the container. As late as can be: one that somebody else makes in between is
    /// not ours to remove.
    async fn note_volumes(&self, record: &mut ArrivalRecord) -> Result<(), Fault> {
        let named: Vec<String> = record
            .plan
            .spec()
            .mounts
            .iter()
            .filter(|m| m.kind == MountKind::Volume && !m.anonymous)
            .map(|m| m.name.clone())
            .collect();
        if !named.is_empty() {
            let here = self.engine.volumes().await?;
            for name in named {
                let note = Undo::Volume { name: name.clone() };
                if here.contains(&name) && !record.undo.contains(&note) {
                    return Err(Fault::new(
                        "volume.exists",
                        FaultKind::Environment,
                        format!("there is a volume {name:?} at the destination since the plan was made"),
                    ));
                }
                record.undo.push(note);
            }
            self.save(record).await?;
        }
        Ok(())
    }

    /// Makes the container. One of the same name makes way if the plan says so.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn create(&self) -> Result<(), Fault> {
        failpoint::reach("destination.create").await?;
        let mut record = self.record.lock().await;
        Self::refuse_if_over(&record)?;
        if record.container.is_some() {
            return Ok(());
        }
        if record.plan.options.replace {
            self.set_aside(&mut record).await?;
        }
        let request = record.plan.create.clone();
        // A name that is in use belongs to somebody else: it must never be noted as ours to remove.
        if self
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
        self.note_volumes(&mut record).await?;
        record.undo.push(Undo::Container {
            name: request.name.clone(),
            id: None,
        });
        self.save(&record).await?;
        let made = match self.engine.create_container(&request).await {
            Ok(made) => made,
            Err(error) => {
                // A definite refusal made nothing, and the name may belong to somebody else by now.
                if matches!(error, EngineError::Conflict { .. }) {
                    record.undo.pop();
                    self.save(&record).await?;
                }
                return Err(error.into());
            }
        };
        if let Some(Undo::Container { id, .. }) = record.undo.last_mut() {
            *id = Some(made.clone());
        }
        record.container = Some(made);
        record.state = ArrivalState::Prepared;
        self.save(&record).await?;
        failpoint::reach("destination.created").await
    }

    async fn set_aside(&self, record: &mut ArrivalRecord) -> Result<(), Fault> {
        let name = record.plan.create.name.clone();
        let Some(other) = self
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
        let spec = self.engine.inspect(&reference).await?;
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
        self.engine
            .set_restart_policy(&other.id, &RestartPolicy::never())
            .await?;
        self.engine.stop(&other.id, None).await?;
        self.engine
            .rename(&other.id, &aside_name(&name, record.plan.id.as_str()))
            .await?;
        Ok(())
    }

    /// Starts the container, after noting durably that it will.
    ///
    /// # Errors
    /// What the engine says, such as a port that is taken.
    pub async fn start(&self) -> Result<(), Fault> {
        failpoint::reach("destination.start").await?;
        let mut record = self.record.lock().await;
        Self::refuse_if_over(&record)?;
        let id = container_of(&record)?;
        if record.state == ArrivalState::Prepared {
            record.state = ArrivalState::Started;
            self.save(&record).await?;
        }
        self.engine.start(&id).await?;
        failpoint::reach("destination.started").await
    }

    /// Waits until the container has proved itself.
    ///
    /// # Errors
    /// `health.exited`, `health.unhealthy` or `health.timeout` with the container's last lines.
    pub async fn ready(&self) -> Result<Adopted, Fault> {
        let (id, timeout, patient) = {
            let record = self.record.lock().await;
            Self::refuse_if_over(&record)?;
            (
                container_of(&record)?,
                Duration::from_millis(record.plan.health_timeout_ms),
                record.plan.options.health_timeout_ms.is_some(),
            )
        };
        let status = self
            .unless_cancelled(health::wait_until_ready(
                self.engine.as_ref(),
                &id,
                timeout,
                patient,
            ))
            .await?;
        let healthy = status.health == tranship_core::container::Health::Healthy;
        Ok(Adopted {
            container_id: id.to_string(),
            healthy,
        })
    }

    /// The container belongs here from now on: it gets its restart policy back, and what made way for it goes.
    ///
    /// # Errors
    /// What the engine or the record store says.
    pub async fn adopt(&self) -> Result<Adopted, Fault> {
        failpoint::reach("destination.adopt").await?;
        let mut record = self.record.lock().await;
        Self::refuse_if_over(&record)?;
        let id = container_of(&record)?;
        let adopted = Adopted {
            container_id: id.to_string(),
            healthy: false,
        };
        if record.state == ArrivalState::Adopted {
            return Ok(adopted);
        }
        let policy = record.plan.restart_policy.clone();
        if !policy.is_never() {
            self.engine.set_restart_policy(&id, &policy).await?;
        }
        record.state = ArrivalState::Adopted;
        self.save(&record).await?;
        for note in std::mem::take(&mut record.undo) {
            if let Undo::SetAside { id, name, .. } = note
                && let Err(error) = self.engine.remove_container_only(&id).await
            {
                record
                    .left_behind
                    .push(format!("the replaced container {name:?} ({id}): {error}"));
            }
        }
        self.save(&record).await?;
        Ok(adopted)
    }

    /// Undoes everything, newest first, and notes durably that it did.
    ///
    /// # Errors
    /// `arrival.adopted` when the container belongs here already; `arrival.stuck` when it could not be removed, and may
    /// therefore still run.
    pub async fn discard(&self) -> Result<Discarded, Fault> {
        self.cancelled.send_replace(true);
        let mut record = self.record.lock().await;
        match record.state {
            ArrivalState::Discarded => {
                return Ok(Discarded {
                    left_behind: record.left_behind.clone(),
                });
            }
            ArrivalState::Adopted => {
                return Err(Fault::new(
                    "arrival.adopted",
                    FaultKind::InDoubt,
                    "the container belongs to the destination already",
                ));
            }
            _ => {}
        }
        while let Some(note) = record.undo.last().cloned() {
            let undone = self.undo(&note, &record).await;
            match (undone, &note) {
                (Ok(()), _) => {}
                (Err(error), Undo::Container { name, .. }) => {
                    return Err(Fault::new(
                        "arrival.stuck",
                        FaultKind::InDoubt,
                        format!(
                            "the container {name:?} could not be removed from the destination and may run"
                        ),
                    )
                    .because(error.to_string())
                    .with_hint("remove it there with `docker rm -f`, then run `tranship status`"));
                }
                (Err(error), other) => record.left_behind.push(format!("{}: {error}", describe(other))),
            }
            record.undo.pop();
            self.save(&record).await?;
        }
        record.state = ArrivalState::Discarded;
        self.save(&record).await?;
        Ok(Discarded {
            left_behind: record.left_behind.clone(),
        })
    }

    async fn undo(&self, note: &Undo, record: &ArrivalRecord) -> Result<(), EngineError> {
        match note {
            Undo::Container { id: Some(id), .. } => self.engine.remove_container(id).await,
            Undo::Container { name, id: None } => {
                // The crash came between making it and noting its id. The name was free before, so what bears it now
                // was made by this migration, unless it was made from another image.
                let Ok(reference) = tranship_core::ids::ContainerName::new(name.clone()) else {
                    return Ok(());
                };
                match self.engine.inspect(&reference).await {
                    Ok(spec) if spec.image.id == record.plan.transfer.image.id => {
                        self.engine.remove_container(&spec.id).await
                    }
                    Ok(_) | Err(EngineError::NotFound { .. }) => Ok(()),
                    Err(error) => Err(error),
                }
            }
            Undo::SetAside {
                id,
                name,
                was_running,
                policy,
            } => {
                let aside = aside_name(name, record.plan.id.as_str());
                let renamed = self
                    .engine
                    .containers()
                    .await?
                    .iter()
                    .any(|c| &c.id == id && c.names.contains(&aside));
                if renamed {
                    self.engine.rename(id, name).await?;
                }
                self.engine.set_restart_policy(id, policy).await?;
                if *was_running {
                    self.engine.start(id).await?;
                }
                Ok(())
            }
            Undo::Volume { name } => self.engine.remove_volume(name).await,
            Undo::Network { id: Some(id), .. } => self.engine.remove_network(id).await,
            Undo::Network { name, id: None } => {
                let made = self
                    .engine
                    .networks()
                    .await?
                    .into_iter()
                    .find(|n| &n.name == name && n.used.is_empty());
                match made {
                    Some(network) => self.engine.remove_network(&network.id).await,
                    None => Ok(()),
                }
            }
            Undo::Tag { tag, previous } => {
                let now = self.engine.image(tag).await?.map(|i| i.id);
                if now.as_ref() != Some(&record.plan.transfer.image.id) {
                    return Ok(());
                }
                match previous
                    .as_ref()
                    .and_then(|p| tranship_core::ids::Digest::new(p.clone()).ok())
                {
                    Some(previous) => self.engine.tag_image(&previous, tag).await,
                    None if self.only_name(tag, record).await? => Err(EngineError::Unsupported {
                        message: "it stays: the image was here before without a tag, and would go with it"
                            .into(),
                    }),
                    None => self.engine.remove_image(tag).await,
                }
            }
            Undo::Image { id } => self.engine.remove_image(id).await,
        }
    }
}

impl Arrival {
    /// Whether an image that was here before the migration has no other tag: engines remove an image with its last one.
    async fn only_name(&self, tag: &str, record: &ArrivalRecord) -> Result<bool, EngineError> {
        let image = &record.plan.transfer.image.id;
        let brought = Undo::Image {
            id: image.to_string(),
        };
        if record.undo.contains(&brought) {
            return Ok(false);
        }
        let here = self.engine.image(image.as_str()).await?;
        Ok(here.is_some_and(|here| here.tags.iter().all(|other| other == tag)))
    }
}

fn aside_name(name: &str, migration: &str) -> String {
    format!("{name}.replaced-{migration}")
}

fn describe(note: &Undo) -> String {
    match note {
        Undo::Image { id } => format!("the image {id}"),
        Undo::Tag { tag, .. } => format!("the image tag {tag}"),
        Undo::Network { name, .. } => format!("the network {name:?}"),
        Undo::Volume { name } => format!("the volume {name:?}"),
        Undo::SetAside { name, .. } => format!("the container {name:?} that made way"),
        Undo::Container { name, .. } => format!("the container {name:?}"),
    }
}

fn container_of(record: &ArrivalRecord) -> Result<ContainerId, Fault> {
    record.container.clone().ok_or_else(|| {
        Fault::new(
            "arrival.order",
            FaultKind::Bug,
            "the container was asked for before it was made",
        )
    })
}
