//! The destination's half of a migration: take in, make, start, prove; then adopt, or discard without a trace.
//!
//! Each step notes what it is about to change before it does so. [`Arrival::discard`] takes the notes back in reverse,
//! and so can an agent that starts after a crash, from the record alone.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tranship_core::container::ContainerState;
use tranship_core::engine::ByteStream;
use tranship_core::fault::FaultKind;
use tranship_core::storage::{ElementAt, Pipe};
use tranship_core::{ContainerId, EngineError, Fault};

use crate::destination::{ArrivalState, Opened};
use crate::elements::Target;
use crate::images::{Came, ImageOrigin, Kept, room_of};
use crate::options::HookTime;
use crate::plan::{Member, Plan};
use crate::ports::Ports;
use crate::record::{ArrivalRecord, Records, Undo};
use crate::{failpoint, hook};

mod elements;
mod make;
mod owned;
mod undo;

/// One migration as its destination sees it.
pub struct Arrival {
    ports: Ports,
    records: Arc<dyn Records>,
    record: Mutex<ArrivalRecord>,
    /// The elements that are open for writing, by their place in the plan.
    sinks: elements::Sinks,
    /// Where the source answers questions about layers.
    image_pipe: std::sync::Mutex<Option<Pipe>>,
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
            went_on: false,
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
            image_pipe: std::sync::Mutex::default(),
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

    async fn save(&self, record: &ArrivalRecord) -> Result<(), Fault> {
        self.records.save_arrival(record).await?;
        self.snapshot.send_replace(record.clone());
        Ok(())
    }

    fn refuse_if_over(record: &ArrivalRecord) -> Result<(), Fault> {
        match record.state {
            ArrivalState::Discarding | ArrivalState::Discarded => Err(owned::discarded()),
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
            let known = self.ports.engine.image(image.id.as_str()).await?;
            let image_held = known.is_some_and(|known| known.is_whole(image));
            let layers_held = if image_held {
                image.layers.len()
            } else {
                self.ports.engine.layers_held(image.known_layers()).await?
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
        self.bring(member, Bring::Archive(archive)).await.map(drop)
    }

    /// Keeps the stream at whose other end the source answers questions about layers. It takes the place of an older one.
    pub fn offer_image_pipe(&self, pipe: Pipe) {
        self.image_pipe().replace(pipe);
    }

    fn image_pipe(&self) -> std::sync::MutexGuard<'_, Option<Pipe>> {
        self.image_pipe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches an image, or only sets the tag where it is here already.
    ///
    /// # Errors
    /// As [`Arrival::image`]; what the way of the image says.
    pub async fn image_from(&self, member: usize, origin: &ImageOrigin) -> Result<Came, Fault> {
        self.bring(member, Bring::From(origin)).await
    }

    async fn bring(&self, member: usize, bring: Bring<'_>) -> Result<Came, Fault> {
        failpoint::reach("destination.image").await?;
        let mut record = self.record.lock().await;
        Self::refuse_if_over(&record)?;
        let transfer = member_of(&record, member)?.transfer;
        let (image, tag, room) = (transfer.image, transfer.tag, room_of(transfer.bytes));
        let known = self.ports.engine.image(image.id.as_str()).await?;
        let held = known.as_ref().is_some_and(|known| known.is_whole(&image));
        let (mut notes, mut came) = (Vec::new(), Came::default());
        // What was known before, even in part, is not this migration's to remove.
        if known.is_none() {
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
        // Nothing comes of what the source was told is there: whether it is the right one is seen below.
        let nothing_comes =
            matches!(bring, Bring::Archive(None)) && known.is_some_and(|known| !known.incomplete);
        if (!held && !nothing_comes) || (record.plan.options.whole_image && !shared) {
            let (archive, kept) = match bring {
                Bring::Archive(Some(archive)) => (archive, Kept::default()),
                Bring::Archive(None) => {
                    return Err(Fault::new(
                        "image.missing",
                        FaultKind::Environment,
                        "the image is no longer at the destination",
                    )
                    .with_hint("run the command again"));
                }
                Bring::From(origin) => {
                    expected(origin, &record.plan)?;
                    let here = self.ports.engine.layers_held(image.known_layers()).await?;
                    let pipe = self.image_pipe().take();
                    let fetched = self.ports.images.fetch(&image, here, origin, pipe);
                    let fetched = self.unless_cancelled(fetched).await?;
                    came = fetched.came;
                    (fetched.archive, fetched.kept)
                }
            };
            // After an engine that had no room, what is kept for the next try would take up what that needs, by whichever way it comes.
            self.ports.images.make_room(room).await;
            // Not given up half-way: an engine that has the whole archive goes on taking it in after its caller left, and
            // the discard would come too early to see the image. When it is to end, the archive breaks off instead.
            let archive = self.until_cancelled(archive);
            let taken = self.ports.engine.import_image(archive).await;
            kept.settle(&taken);
            taken?;
        }
        failpoint::reach("destination.image-loaded").await?;
        match self.ports.engine.image(image.id.as_str()).await? {
            Some(here) if here.is_whole(&image) => {}
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
        Ok(came)
    }

    /// Lets containers go on that waited for their tmpfs.
    ///
    /// # Errors
    /// What the engine says; `hook.failed`.
    pub async fn go_on(&self) -> Result<(), Fault> {
        let mut record = self.record.lock().await;
        Self::refuse_if_over(&record)?;
        if !record.went_on {
            // Noted first: one that runs must not be paused again because nobody heard that it does.
            record.went_on = true;
            self.save(&record).await?;
        }
        for index in record
            .plan
            .start_order()
            .into_iter()
            .filter(|i| has_tmpfs(&record, *i))
        {
            let id = container_of(&record, index)?;
            if self.ports.engine.status(&id).await?.state == ContainerState::Paused {
                self.ports.engine.unpause(&id).await?;
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
}

/// Only the registry that the plan names is asked: names and passwords are shown to it.
fn expected(origin: &ImageOrigin, plan: &Plan) -> Result<(), Fault> {
    match origin {
        ImageOrigin::Registry { address, .. } if plan.options.registry.as_ref() != Some(address) => {
            let text = format!("the plan does not name the registry {address}");
            Err(Fault::new("request.invalid", FaultKind::Usage, text))
        }
        _ => Ok(()),
    }
}

/// How an image comes.
enum Bring<'a> {
    /// As an archive, where it is not here already.
    Archive(Option<ByteStream>),
    /// It is fetched.
    From(&'a ImageOrigin),
}

/// Whether the container waits after its start for a tmpfs to be filled.
fn waits_for_tmpfs(record: &ArrivalRecord, index: usize) -> bool {
    !record.went_on && has_tmpfs(record, index)
}

/// The memory that the container starts from, as an element of this node.
fn memory_of(record: &ArrivalRecord, index: usize) -> Option<ElementAt> {
    let container = record.containers.get(&index)?;
    let mut elements = record.plan.elements.iter().filter(|e| e.copied);
    elements.find_map(|element| match element.target {
        Target::Memory { member, bytes } if member == index => Some(ElementAt::Memory {
            container: container.clone(),
            bytes,
        }),
        _ => None,
    })
}

/// Whether the container has a tmpfs that comes along.
fn has_tmpfs(record: &ArrivalRecord, index: usize) -> bool {
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
