//! The source's half of a migration, which drives the whole.
//!
//! Two orders of steps, by mode:
//!
//! * stateless: image, networks, create, start there, prove there, stop here, adopt there, release here;
//! * cold and warm: image, networks and volumes, create, rounds of copying, stop (or pause) here, final delta, **commit**, start
//!   there, prove there, adopt there, release here.
//!
//! In cold and warm mode [`crate::protocol`] decides, and `drive.rs` does what it says: the commit is a record made durable here
//! before the destination is told to start. From then on the source resumes only after the destination has said that it
//! discarded; a lost link alone decides nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tranship_core::container::{ContainerState, RestartPolicy};
use tranship_core::event::{Event, Phase, Reporter};
use tranship_core::fault::FaultKind;
use tranship_core::{ContainerSpec, EngineError, Fault};

use crate::destination::{Adopted, Destination, Opened, link_lost};
use crate::failpoint;
use crate::options::OnSource;
use crate::plan::{Member, Plan};
use crate::ports::Ports;
use crate::protocol::source::Source;
use crate::record::{DepartureRecord, PhaseRecord, Records};

mod data;
mod drive;
mod element;
mod hooks;
mod image;
mod memory;
mod predict;
mod rollback;
mod stateless;

pub use drive::Order;
pub use memory::NOT_DUMPED;
pub use predict::meets_before;
pub use rollback::resume;

/// How long a lost link is waited for where going back would be worse than waiting.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long an engine that does not answer is waited for before a stopped source is given up.
const ENGINE_AWAY: Duration = Duration::from_secs(60);
/// Code of the fault that means: the source is stopped, and could not be started again.
pub const NOT_RESUMED: &str = "source.not-resumed";
/// How the warning begins that tells whoever watches that the destination does not answer.
pub const LOST_DESTINATION: &str = "lost the destination";
const RETRY: Duration = Duration::from_millis(500);
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// One migration as its source sees it.
pub struct Departure {
    ports: Ports,
    destination: Arc<dyn Destination>,
    records: Arc<dyn Records>,
    reporter: Arc<dyn Reporter>,
    cancelled: watch::Receiver<bool>,
    record: DepartureRecord,
    members: Vec<Member>,
    /// The elements that are open for reading.
    elements: Vec<element::OpenElement>,
    /// By member, the dump of its memory before anything travelled.
    dumped: BTreeMap<usize, memory::LastDump>,
    /// Breaks the pipes of rounds under way.
    given_up: CancellationToken,
    begun: Instant,
    /// The source was stopped (or was about to be) by us.
    frozen_at: Option<Instant>,
    serving_at: Option<Instant>,
    /// The destination may have adopted the container without our knowing.
    adopt_asked: bool,
    /// It goes on from a record, after a restart of the agent.
    recovered: bool,
    /// What a person orders while it is under way.
    orders: Option<watch::Receiver<Option<Order>>>,
}

/// A phase under way.
#[derive(Clone)]
struct RunningPhase {
    phase: Phase,
    begun: Instant,
    bytes_before: u64,
}

impl Departure {
    /// A migration that nothing has happened to yet.
    #[must_use]
    pub fn new(
        ports: Ports,
        destination: Arc<dyn Destination>,
        records: Arc<dyn Records>,
        reporter: Arc<dyn Reporter>,
        cancelled: watch::Receiver<bool>,
        plan: Plan,
        begun_at_ms: u64,
    ) -> Self {
        let record = DepartureRecord::new(plan, begun_at_ms);
        let mut this = Self::recovered(ports, destination, records, reporter, cancelled, record);
        this.recovered = false;
        this
    }

    /// A migration whose agent ended, as its newest record describes it.
    #[must_use]
    pub fn recovered(
        ports: Ports,
        destination: Arc<dyn Destination>,
        records: Arc<dyn Records>,
        reporter: Arc<dyn Reporter>,
        cancelled: watch::Receiver<bool>,
        mut record: DepartureRecord,
    ) -> Self {
        let members = record.plan.members();
        if std::mem::take(&mut record.ended_from_dump) {
            record.ended_members.extend(0..members.len());
        }
        Self {
            ports,
            destination,
            records,
            reporter,
            cancelled,
            members,
            record,
            elements: Vec::new(),
            dumped: BTreeMap::new(),
            given_up: CancellationToken::new(),
            begun: Instant::now(),
            frozen_at: None,
            serving_at: None,
            adopt_asked: false,
            recovered: true,
            orders: None,
        }
    }

    /// Listens to what a person orders.
    #[must_use]
    pub fn with_orders(mut self, orders: watch::Receiver<Option<Order>>) -> Self {
        self.orders = Some(orders);
        self
    }

    /// Runs the migration to its end. The record says how it ended; a fault in it has the kind
    /// [`FaultKind::RolledBack`] or, in stateless mode, [`FaultKind::InDoubt`]. In the other modes it does not end before it
    /// is settled: whoever watches is told by the event [`Event::Finished`] that it is in doubt.
    pub async fn run(mut self) -> DepartureRecord {
        self.begun = Instant::now();
        if self.plan().mode.is_stateful() {
            let half = if self.recovered {
                Source::restarted(self.record.state)
            } else {
                Source::new()
            };
            self.drive(half).await;
            self.close_elements().await;
        } else if self.recovered {
            self.recover_stateless().await;
        } else {
            self.run_stateless().await;
        }
        self.reporter.report(Event::Finished {
            fault: self.record.fault.clone(),
        });
        self.record
    }

    fn plan(&self) -> &Plan {
        &self.record.plan
    }

    async fn save(&self) -> Result<(), Fault> {
        self.records
            .save_departure(&self.record)
            .await
            .map_err(Fault::from)
    }

    fn stop_if_cancelled(&self) -> Result<(), Fault> {
        if *self.cancelled.borrow() {
            return Err(Fault::new(
                "migrate.aborted",
                FaultKind::RolledBack,
                "the migration was aborted on request",
            ));
        }
        Ok(())
    }

    fn begin(&self, phase: Phase) -> RunningPhase {
        self.reporter.report(Event::PhaseStarted { phase });
        RunningPhase {
            phase,
            begun: Instant::now(),
            bytes_before: self.record.bytes_sent,
        }
    }

    /// Notes how long a phase took, and passes its result on.
    fn end<T>(&mut self, running: &RunningPhase, result: Result<T, Fault>) -> Result<T, Fault> {
        let RunningPhase {
            phase,
            begun,
            bytes_before,
        } = *running;
        let bytes = self.record.bytes_sent - bytes_before;
        let took_ms = millis(begun.elapsed());
        let begun_ms = millis(begun.saturating_duration_since(self.begun));
        self.record.phases.push(PhaseRecord {
            phase,
            begun_ms,
            took_ms,
            bytes,
        });
        if result.is_ok() {
            self.reporter.report(Event::PhaseEnded {
                phase,
                milliseconds: took_ms,
                bytes,
            });
        }
        result
    }

    /// Image, networks and containers; the same in every mode.
    async fn steps_before_freeze(&mut self) -> Result<(), Fault> {
        let phase = self.begin(Phase::Check);
        let fits = async {
            self.check().await?;
            self.first_dump().await
        };
        let done = fits.await;
        self.end(&phase, done)?;
        self.stop_if_cancelled()?;
        let phase = self.begin(Phase::Image);
        let done = self.image().await;
        self.end(&phase, done)?;
        self.stop_if_cancelled()?;
        let phase = self.begin(Phase::Prepare);
        let done = self.prepare_there().await;
        self.end(&phase, done)?;
        self.stop_if_cancelled()?;
        let phase = self.begin(Phase::Create);
        let done = self.create_there().await;
        self.end(&phase, done)?;
        self.stop_if_cancelled()
    }

    async fn prepare_there(&mut self) -> Result<(), Fault> {
        failpoint::reach("source.prepare").await?;
        self.destination.prepare().await
    }

    async fn create_there(&mut self) -> Result<(), Fault> {
        failpoint::reach("source.create").await?;
        self.destination.create().await
    }

    fn note_container(&mut self, ready: &Adopted) {
        self.record.destination_container = Some(ready.container_id.clone());
        self.record.proved_healthy = ready.healthy;
    }

    /// The container must still be the one, and doing what it did, when the plan was made.
    async fn check(&mut self) -> Result<(), Fault> {
        failpoint::reach("source.check").await?;
        for member in self.members.clone() {
            self.check_member(&member.create.spec).await?;
        }
        Ok(())
    }

    async fn check_member(&self, spec: &ContainerSpec) -> Result<(), Fault> {
        let changed = |what: String| {
            Fault::new(
                "container.changed",
                FaultKind::Environment,
                format!("{} {what} since the plan was made", spec.name),
            )
            .with_hint("run the command again")
        };
        let status = match self.ports.engine.status(&spec.id).await {
            Ok(status) => status,
            Err(EngineError::NotFound { .. }) => return Err(changed("was removed".into())),
            Err(error) => return Err(error.into()),
        };
        if status.state != ContainerState::Running {
            return Err(changed(format!("became {}", status.state)));
        }
        if status.started_at != spec.status.started_at {
            return Err(changed("was restarted".into()));
        }
        Ok(())
    }

    async fn image(&mut self) -> Result<(), Fault> {
        failpoint::reach("source.image").await?;
        let opened = self.destination.open(&self.record.plan).await?;
        for (index, member) in self.members.clone().iter().enumerate() {
            let held = opened.get(index).cloned().unwrap_or_default();
            self.image_of(index, member, &held).await?;
        }
        Ok(())
    }

    async fn image_of(&mut self, index: usize, member: &Member, opened: &Opened) -> Result<(), Fault> {
        let whole = self.plan().options.whole_image;
        let layers = member.transfer.image.layers.len();
        // An image that several of them share travels once.
        let sent_before = self
            .members
            .iter()
            .take(index)
            .any(|m| m.transfer.image.id == member.transfer.image.id);
        if (opened.image_held && !whole) || sent_before {
            self.reporter.report(Event::Note {
                text: "the image is there already".into(),
            });
            return self
                .destination
                .image(index, Box::pin(futures_util::stream::empty()))
                .await;
        }
        if let Some(done) = self.image_otherwise(index, member, opened).await {
            return done;
        }
        let skip = if whole { 0 } else { opened.layers_held.min(layers) };
        match self.send_image(index, member, skip).await {
            // Layers that were there may have gone in between; the whole image does not depend on them.
            Err(fault) if skip > 0 && !link_lost(&fault) && !*self.cancelled.borrow() => {
                let text =
                    format!("sending only the missing layers failed ({fault}); sending the whole image");
                self.reporter.report(Event::Warning { text });
                self.send_image(index, member, 0).await
            }
            done => done,
        }
    }

    async fn send_image(&mut self, index: usize, member: &Member, skip: usize) -> Result<(), Fault> {
        if index == 0 {
            self.record.plan.transfer.skip_layers = skip;
        }
        let transfer = &member.transfer;
        let archive = self
            .ports
            .engine
            .export_image(&transfer.image, transfer.tag.as_deref(), skip)
            .await?;
        let sent = Arc::new(AtomicU64::new(0));
        let counted = {
            let (sent, reporter, total) = (Arc::clone(&sent), Arc::clone(&self.reporter), archive.length);
            let mut last = Instant::now();
            archive.stream.inspect(move |part| {
                let Ok(part) = part else { return };
                let bytes = sent.fetch_add(part.len() as u64, Ordering::Relaxed) + part.len() as u64;
                if last.elapsed() >= PROGRESS_EVERY {
                    last = Instant::now();
                    reporter.report(Event::Progress {
                        phase: Phase::Image,
                        bytes,
                        total,
                    });
                }
            })
        };
        let mut cancelled = self.cancelled.clone();
        let result = tokio::select! {
            result = self.destination.image(index, Box::pin(counted)) => result,
            _ = cancelled.wait_for(|c| *c) => {
                Err(Fault::new("migrate.aborted", FaultKind::RolledBack, "the migration was aborted on request"))
            }
        };
        let bytes = sent.load(Ordering::Relaxed);
        self.record.bytes_sent += bytes;
        self.reporter.report(Event::Progress {
            phase: Phase::Image,
            bytes,
            total: archive.length,
        });
        result
    }

    /// All restart policies first, so that no engine that is restarted meanwhile starts what shall stand still.
    async fn park_and_stop(&self) -> Result<(), Fault> {
        for member in &self.members {
            if !member.restart_policy.is_never() {
                self.ports
                    .engine
                    .set_restart_policy(&member.create.spec.id, &RestartPolicy::never())
                    .await?;
            }
        }
        let mut order = self.plan().start_order();
        order.reverse();
        for member in order.into_iter().filter_map(|index| self.members.get(index)) {
            let id = &member.create.spec.id;
            if self.plan().mode.pauses() {
                self.ports.engine.pause(id).await?;
                continue;
            }
            match self.ports.engine.stop(id, None).await {
                // With --rm the engine may have taken it away before it answered.
                Err(EngineError::NotFound { .. }) if member.create.spec.auto_remove => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// After the hand-over nothing can be undone any more: what fails here is said, and left to a person.
    async fn release(&mut self) {
        self.record.fault = None;
        let remove = self.plan().options.on_source == OnSource::Remove;
        for member in self.members.clone() {
            let spec = &member.create.spec;
            if self.plan().mode.pauses()
                && let Err(error) = self.ports.engine.kill(&spec.id).await
            {
                let text = format!(
                    "the source {} is paused and could not be ended: {error}; do not unpause it, remove it with `docker rm -f`",
                    spec.name
                );
                self.reporter.report(Event::Warning { text });
                continue;
            }
            if !remove || spec.auto_remove {
                continue;
            }
            if let Err(error) = self.ports.engine.remove_container_only(&spec.id).await {
                let text = format!(
                    "the source {} is stopped but could not be removed: {error}",
                    spec.name
                );
                self.reporter.report(Event::Warning { text });
            }
        }
        self.forget_dumps(ENGINE_AWAY).await;
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
