//! The destination's half of a migration: take in, make, start, prove; then adopt, or discard without a trace.
//!
//! Each step notes what it is about to change before it does so. [`Arrival::discard`] takes the notes back in reverse,
//! and so can an agent that starts after a crash, from the record alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tranship_core::engine::ByteStream;
use tranship_core::fault::FaultKind;
use tranship_core::{ContainerId, EngineError, Fault};

use crate::destination::{Adopted, ArrivalState, Discarded, Opened};
use crate::elements::Target;
use crate::options::HookTime;
use crate::plan::{Member, Mode, Plan};
use crate::ports::Ports;
use crate::record::{ArrivalRecord, Records, Undo};
use crate::{failpoint, health, hook};

mod elements;
mod make;
mod undo;

/// One migration as its destination sees it.
pub struct Arrival {
    ports: Ports,
    records: Arc<dyn Records>,
    record: Mutex<ArrivalRecord>,
    /// The elements that are open for writing, by their place in the plan.
    sinks: elements::Sinks,
    /// A copy that can be read while a step holds the record.
    snapshot: watch::Sender<ArrivalRecord>,
    /// Set once: steps under way end with a fault, so that the discard need not wait for them.
    cancelled: watch::Sender<bool>,
    /// Breaks the pipes of rounds under way.
    given_up: CancellationToken,
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
    pub fn new(ports: Ports, records: Arc<dyn Records>, plan: Plan, begun_at_ms: u64) -> Self {
        let record = ArrivalRecord {
            plan,
            state: ArrivalState::Receiving,
            begun_at_ms,
            undo: Vec::new(),
            containers: BTreeMap::new(),
            left_behind: Vec::new(),
        };
        Self::from_record(ports, records, record)
    }

    /// An arrival as a record describes it, after a restart of the agent.
    #[must_use]
    pub fn from_record(ports: Ports, records: Arc<dyn Records>, record: ArrivalRecord) -> Self {
        let snapshot = watch::Sender::new(record.clone());
        Self {
            ports,
            records,
            record: Mutex::new(record),
            snapshot,
            sinks: elements::Sinks::default(),
            cancelled: watch::Sender::new(false),
            given_up: CancellationToken::new(),
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
            ArrivalState::Receiving | ArrivalState::Prepared | ArrivalState::Discarding => true,
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
            ArrivalState::Discarding | ArrivalState::Discarded => Err(Fault::new(
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

    /// Saves the record for the first time and says what of each image is here.
    ///
    /// # Errors
    /// What the engine or the record store says.
    pub async fn open(&self) -> Result<Vec<Opened>, Fault> {
        failpoint::reach("destination.open").await?;
        let record = self.record.lock().await;
        Self::refuse_if_over(&record)?;
        self.save(&record).await?;
        let mut opened = Vec::new();
        for member in record.plan.members() {
            let image = &member.transfer.image;
            let image_held = self.ports.engine.image(image.id.as_str()).await?.is_some();
            let layers_held = if image_held {
                image.layers.len()
            } else {
                self.ports.engine.layers_held(&image.layers).await?
            };
            opened.push(Opened {
                image_held,
                layers_held,
            });
        }
        Ok(opened)
    }

    /// Takes in an image archive, or only sets the tag where the image is here already.
    ///
    /// # Errors
    /// What the stream or the engine says; `image.corrupt` when the image is another one than announced.
    pub async fn image(&self, member: usize, archive: Option<ByteStream>) -> Result<(), Fault> {
        failpoint::reach("destination.image").await?;
        let mut record = self.record.lock().await;
        Self::refuse_if_over(&record)?;
        let transfer = member_of(&record, member)?.transfer;
        let (image, tag) = (transfer.image, transfer.tag);
        let held = self.ports.engine.image(image.id.as_str()).await?.is_some();
        let mut notes = Vec::new();
        if !held {
            notes.push(Undo::Image {
                id: image.id.to_string(),
            });
        }
        if let Some(tag) = &tag {
            let previous = self.ports.engine.image(tag).await?.map(|i| i.id.to_string());
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
        let shared = record
            .plan
            .members()
            .iter()
            .take(member)
            .any(|m| m.transfer.image.id == image.id);
        if !held || (record.plan.options.whole_image && !shared) {
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
            self.ports
                .engine
                .import_image(self.until_cancelled(archive))
                .await?;
        }
        failpoint::reach("destination.image-loaded").await?;
        match self.ports.engine.image(image.id.as_str()).await? {
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
            self.ports.engine.tag_image(&image.id, tag).await?;
        }
        Ok(())
    }

    /// Starts the containers, after noting durably that it will, and runs their post-start hooks. Those that wait for a tmpfs
    /// are paused right after their start, until [`Arrival::go_on`].
    ///
    /// # Errors
    /// What the engine says, such as a port that is taken; `hook.failed`.
    pub async fn start(&self) -> Result<(), Fault> {
        failpoint::reach("destination.start").await?;
        let mut record = self.record.lock().await;
        Self::refuse_if_over(&record)?;
        let members = record.plan.members();
        let order = record.plan.start_order();
        for index in &order {
            container_of(&record, *index)?;
        }
        if record.state == ArrivalState::Prepared {
            self.close_sinks(&record).await?;
            record.state = ArrivalState::Started;
            self.save(&record).await?;
        }
        for index in order {
            if index >= members.len() {
                continue;
            }
            let id = container_of(&record, index)?;
            self.ports.engine.start(&id).await?;
            if waits_for_memory(&record, index) {
                self.ports.engine.pause(&id).await?;
            }
        }
        failpoint::reach("destination.started").await?;
        let waits = (0..members.len()).any(|index| waits_for_memory(&record, index));
        if waits {
            Ok(())
        } else {
            self.post_start(&record).await
        }
    }

    /// Lets containers go on that waited for their tmpfs.
    ///
    /// # Errors
    /// What the engine says; `hook.failed`.
    pub async fn go_on(&self) -> Result<(), Fault> {
        let record = self.record.lock().await;
        Self::refuse_if_over(&record)?;
        for index in record.plan.start_order() {
            if waits_for_memory(&record, index) {
                self.ports.engine.unpause(&container_of(&record, index)?).await?;
            }
        }
        self.post_start(&record).await
    }

    async fn post_start(&self, record: &ArrivalRecord) -> Result<(), Fault> {
        for planned in &record.plan.hooks {
            if planned.hook.when == HookTime::PostStart {
                let id = container_of(record, planned.member)?;
                let timeout = Duration::from_secs(planned.hook.timeout);
                let ran = hook::run(&self.ports, &planned.hook, &id, &record.plan, timeout);
                self.unless_cancelled(ran).await?;
            }
        }
        Ok(())
    }

    /// Waits until the containers have proved themselves.
    ///
    /// # Errors
    /// `health.exited`, `health.unhealthy` or `health.timeout` with the container's last lines.
    pub async fn ready(&self) -> Result<Adopted, Fault> {
        let (members, containers, patient) = {
            let record = self.record.lock().await;
            Self::refuse_if_over(&record)?;
            let members = record.plan.members();
            let containers: Vec<ContainerId> = (0..members.len())
                .map(|index| container_of(&record, index))
                .collect::<Result<_, _>>()?;
            (
                members,
                containers,
                record.plan.options.health_timeout_ms.is_some(),
            )
        };
        let mut adopted = Adopted::default();
        for (index, (member, id)) in members.iter().zip(&containers).enumerate() {
            let timeout = Duration::from_millis(member.health_timeout_ms);
            let ready = health::wait_until_ready(self.ports.engine.as_ref(), id, timeout, patient);
            let status = self
                .unless_cancelled(ready)
                .await
                .map_err(|f| f.on_container(member.create.name.clone()))?;
            if index == 0 {
                adopted = Adopted {
                    container_id: id.to_string(),
                    healthy: status.health == tranship_core::container::Health::Healthy,
                };
            }
        }
        Ok(adopted)
    }

    /// The container belongs here from now on: it gets its restart policy back, and what made way for it goes.
    ///
    /// # Errors
    /// What the engine or the record store says.
    pub async fn adopt(&self) -> Result<Adopted, Fault> {
        failpoint::reach("destination.adopt").await?;
        let mut record = self.record.lock().await;
        Self::refuse_if_over(&record)?;
        let id = container_of(&record, 0)?;
        let adopted = Adopted {
            container_id: id.to_string(),
            healthy: false,
        };
        if record.state == ArrivalState::Adopted {
            return Ok(adopted);
        }
        for (index, member) in record.plan.members().into_iter().enumerate() {
            let policy = &member.restart_policy;
            if !policy.is_never() {
                let id = container_of(&record, index)?;
                self.ports.engine.set_restart_policy(&id, policy).await?;
            }
        }
        record.state = ArrivalState::Adopted;
        self.save(&record).await?;
        for note in std::mem::take(&mut record.undo) {
            if let Err(error) = self.let_go(&note).await {
                record
                    .left_behind
                    .push(format!("{}: {error}", undo::describe(&note)));
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
        self.given_up.cancel();
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
        self.close_sinks(&record).await?;
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
                (Err(error), other) => record
                    .left_behind
                    .push(format!("{}: {error}", undo::describe(other))),
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
}

/// Whether the container waits after its start for a tmpfs to be filled.
fn waits_for_memory(record: &ArrivalRecord, index: usize) -> bool {
    record
        .plan
        .elements
        .iter()
        .any(|e| e.copied && matches!(e.target, Target::Tmpfs { member, .. } if member == index))
}

fn member_of(record: &ArrivalRecord, index: usize) -> Result<Member, Fault> {
    record.plan.members().into_iter().nth(index).ok_or_else(|| {
        Fault::new(
            "request.invalid",
            FaultKind::Usage,
            format!("the plan has no container number {index}"),
        )
    })
}

fn container_of(record: &ArrivalRecord, index: usize) -> Result<ContainerId, Fault> {
    record.containers.get(&index).cloned().ok_or_else(|| {
        Fault::new(
            "arrival.order",
            FaultKind::Bug,
            "the container was asked for before it was made",
        )
    })
}
