//! What arrives in the destination's storage elements.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{Mutex, RwLock, RwLockReadGuard};
use tranship_core::fault::FaultKind;
use tranship_core::ids::ContainerName;
use tranship_core::storage::{ElementAt, ElementPlace, ElementSink, Pipe, RoundProgress};
use tranship_core::{EngineError, Fault};

use super::{Arrival, container_of};
use crate::destination::ArrivalState;
use crate::elements::Target;
use crate::failpoint;
use crate::pipe::breakable;
use crate::record::ArrivalRecord;

/// An element that is open for writing. One round at a time.
struct OpenSink {
    place: ElementPlace,
    sink: Mutex<Box<dyn ElementSink>>,
}

/// The elements that are open for writing.
#[derive(Default)]
pub(super) struct Sinks {
    open: Mutex<HashMap<usize, Arc<OpenSink>>>,
    /// Held for reading by every round; whoever holds it for writing knows that none is under way.
    rounds: RwLock<()>,
}

impl Arrival {
    /// Takes in one round of the plan's element `index` from the pipe.
    ///
    /// # Errors
    /// `arrival.order` when the containers run already or are not made yet; what the storage says. The source hears it
    /// through the pipe as well.
    pub async fn element(&self, index: usize, pipe: Pipe) -> Result<(), Fault> {
        failpoint::reach("destination.element").await?;
        let (at, _round) = {
            let record = self.record.lock().await;
            Self::refuse_if_over(&record)?;
            if self.given_up.is_cancelled() {
                return Err(Fault::new(
                    "arrival.cancelled",
                    FaultKind::Environment,
                    "the destination was told to discard this migration",
                ));
            }
            (self.element_at(&record, index).await?, self.round().await)
        };
        let open = self.open_sink(index, &at).await?;
        let mut sink = open.sink.lock().await;
        let progress = Arc::new(|_: RoundProgress| {});
        sink.round(breakable(pipe, &self.given_up), progress).await?;
        Ok(())
    }

    /// Opens the plan's element `index` for writing, or says why it cannot be written now.
    ///
    /// # Errors
    /// As [`Arrival::element`].
    pub async fn open_element(&self, index: usize) -> Result<(), Fault> {
        let (at, _round) = {
            let record = self.record.lock().await;
            Self::refuse_if_over(&record)?;
            (self.element_at(&record, index).await?, self.round().await)
        };
        self.open_sink(index, &at).await.map(|_| ())
    }

    /// A round is under way as long as this is held. Asked for with the record locked, as whoever waits for the end of all rounds does
    /// too: in another order the two would wait for each other.
    async fn round(&self) -> RwLockReadGuard<'_, ()> {
        self.sinks.rounds.read().await
    }

    async fn open_sink(&self, index: usize, at: &ElementAt) -> Result<Arc<OpenSink>, Fault> {
        let mut sinks = self.sinks.open.lock().await;
        if let Some(open) = sinks.get(&index) {
            return Ok(Arc::clone(open));
        }
        let route = self
            .record()
            .plan
            .elements
            .get(index)
            .map(|e| e.route)
            .unwrap_or_default();
        let place = self.ports.locate(at, route).await?;
        let sink = match self.ports.storage.sink(&place, route).await {
            Ok(sink) => sink,
            Err(fault) => {
                self.ports.engine.release(&place).await?;
                return Err(fault);
            }
        };
        let open = Arc::new(OpenSink {
            place,
            sink: Mutex::new(sink),
        });
        sinks.insert(index, Arc::clone(&open));
        Ok(open)
    }

    /// Where the plan's element `index` is at this node.
    async fn element_at(&self, record: &ArrivalRecord, index: usize) -> Result<ElementAt, Fault> {
        let Some(element) = record.plan.elements.get(index).filter(|e| e.copied) else {
            return Err(Fault::new(
                "request.invalid",
                FaultKind::Usage,
                format!("the plan has no element number {index} whose data travels"),
            ));
        };
        let memory = matches!(element.target, Target::Tmpfs { .. });
        let right = if memory {
            ArrivalState::Started
        } else {
            ArrivalState::Prepared
        };
        if record.state != right {
            return Err(Fault::new(
                "arrival.order",
                FaultKind::Bug,
                format!(
                    "{} cannot be written while the arrival is {:?}",
                    element.label(),
                    record.state
                ),
            ));
        }
        Ok(match &element.target {
            Target::Volume { name, .. } => ElementAt::Volume { name: name.clone() },
            Target::Bind { path, .. } => ElementAt::Bind { path: path.clone() },
            Target::Layer { member } => ElementAt::Layer {
                container: container_of(record, *member)?,
            },
            Target::Memory { member, bytes } => ElementAt::Memory {
                container: container_of(record, *member)?,
                bytes: *bytes,
            },
            Target::Tmpfs { member, path } => ElementAt::Tmpfs {
                container: container_of(record, *member)?,
                path: path.clone(),
            },
            Target::Anonymous { member, path } => {
                let id = container_of(record, *member)?;
                let name = ContainerName::new(id.as_str())
                    .map_err(|e| Fault::new("name.invalid", FaultKind::Bug, e.to_string()))?;
                let spec = self.ports.engine.inspect(&name).await?;
                let mount = spec.mounts.into_iter().find(|m| &m.destination == path);
                let Some(mount) = mount else {
                    return Err(EngineError::NotFound {
                        what: "volume",
                        name: path.clone(),
                    }
                    .into());
                };
                ElementAt::Volume { name: mount.name }
            }
        })
    }

    /// Waits for rounds under way and gives back what the engine made for writing.
    pub(super) async fn close_sinks(&self, _record: &ArrivalRecord) -> Result<(), Fault> {
        let _none_under_way = self.sinks.rounds.write().await;
        let open = std::mem::take(&mut *self.sinks.open.lock().await);
        for sink in open.into_values() {
            self.ports.engine.release(&sink.place).await?;
        }
        Ok(())
    }

    /// What arrived in a volume that goes away again is kept for the next try. Failing at that is no failure of the undoing.
    pub(super) async fn keep_partial(&self, name: &str, guid: &str) {
        if guid.is_empty() {
            return;
        }
        let at = ElementAt::Volume {
            name: name.to_owned(),
        };
        let kept = async {
            let place = self.ports.directory(&at).await?;
            // An older try's is no use any more.
            self.ports.storage.drop_aside(&place, &partial_key(guid)).await?;
            self.ports.storage.set_aside(&place, &partial_key(guid)).await
        };
        if let Err(fault) = kept.await {
            tracing::debug!("what arrived in volume {name} is not kept: {fault}");
        }
    }

    /// What an earlier try left of the same volume is there again before the first round.
    pub(super) async fn bring_back_partial(&self, at: &ElementAt, guid: &str) {
        if guid.is_empty() {
            return;
        }
        let back = async {
            let place = self.ports.directory(at).await?;
            self.ports.storage.put_back(&place, &partial_key(guid)).await
        };
        if let Err(fault) = back.await {
            tracing::debug!("nothing of {at} is there from an earlier try: {fault}");
        }
    }
}

fn partial_key(guid: &str) -> String {
    format!("partial-{guid}")
}
