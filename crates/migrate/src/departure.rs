//! The source's half of a migration, which drives the whole.
//!
//! Two orders of steps, by mode:
//!
//! * stateless: image, networks, create, start there, prove there, stop here, adopt there, release here;
//! * cold: image, networks, create, stop here, **commit**, start there, prove there, adopt there, release here.
//!
//! In cold mode the commit is a record made durable here before the destination is told to start. From then on the
//! source resumes only after the destination has said that it discarded; a lost link alone decides nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::time::Instant;
use tranship_core::container::{ContainerState, RestartPolicy};
use tranship_core::event::{Event, Phase, Reporter};
use tranship_core::fault::FaultKind;
use tranship_core::{Engine, EngineError, Fault};

use crate::destination::{Adopted, Destination, link_lost};
use crate::failpoint;
use crate::options::OnSource;
use crate::plan::{Mode, Plan};
use crate::record::{DepartureRecord, DepartureState, PhaseRecord, Records};

/// How long a lost link is waited for where going back would be worse than waiting.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long an engine that does not answer is waited for before a stopped source is given up.
const ENGINE_AWAY: Duration = Duration::from_secs(60);
/// Code of the fault that means: the source is stopped, and could not be started again.
pub const NOT_RESUMED: &str = "source.not-resumed";
const RETRY: Duration = Duration::from_millis(500);
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// One migration as its source sees it.
pub struct Departure {
    engine: Arc<dyn Engine>,
    destination: Arc<dyn Destination>,
    records: Arc<dyn Records>,
    reporter: Arc<dyn Reporter>,
    cancelled: watch::Receiver<bool>,
    record: DepartureRecord,
    begun: Instant,
    /// The source was stopped (or was about to be) by us.
    frozen_at: Option<Instant>,
    serving_at: Option<Instant>,
    /// The destination may have adopted the container without our knowing.
    adopt_asked: bool,
}

/// A phase under way.
struct RunningPhase {
    phase: Phase,
    begun: Instant,
    bytes_before: u64,
}

impl Departure {
    /// A migration that nothing has happened to yet.
    #[must_use]
    pub fn new(
        engine: Arc<dyn Engine>,
        destination: Arc<dyn Destination>,
        records: Arc<dyn Records>,
        reporter: Arc<dyn Reporter>,
        cancelled: watch::Receiver<bool>,
        plan: Plan,
        begun_at_ms: u64,
    ) -> Self {
        let record = DepartureRecord {
            plan,
            state: DepartureState::Preparing,
            begun_at_ms,
            phases: Vec::new(),
            bytes_sent: 0,
            downtime_ms: None,
            total_ms: 0,
            destination_container: None,
            proved_healthy: false,
            fault: None,
        };
        Self {
            engine,
            destination,
            records,
            reporter,
            cancelled,
            record,
            begun: Instant::now(),
            frozen_at: None,
            serving_at: None,
            adopt_asked: false,
        }
    }

    /// Runs the migration to its end. The record says how it ended; a fault in it has the kind
    /// [`FaultKind::RolledBack`] or [`FaultKind::InDoubt`].
    pub async fn run(mut self) -> DepartureRecord {
        self.begun = Instant::now();
        let result = match self.save().await {
            Ok(()) => self.steps().await,
            Err(fault) => Err(fault),
        };
        match result {
            Ok(()) => self.record.state = DepartureState::Complete,
            Err(fault) => self.roll_back(fault).await,
        }
        self.record.total_ms = millis(self.begun.elapsed());
        if let (Some(frozen), Some(serving)) = (self.frozen_at, self.serving_at) {
            self.record.downtime_ms = Some(millis(serving.saturating_duration_since(frozen)));
        }
        if let Err(fault) = self.save().await {
            self.reporter.report(Event::Warning {
                text: format!("the last record was not saved: {fault}"),
            });
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

    async fn steps(&mut self) -> Result<(), Fault> {
        let phase = self.begin(Phase::Check);
        let done = self.check().await;
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
        self.stop_if_cancelled()?;
        match self.plan().mode {
            Mode::Stateless => self.stateless_steps().await?,
            Mode::Cold => self.cold_steps().await?,
        }
        self.release().await;
        Ok(())
    }

    async fn stateless_steps(&mut self) -> Result<(), Fault> {
        let phase = self.begin(Phase::Start);
        let done = self.start_there().await;
        self.end(&phase, done)?;
        self.stop_if_cancelled()?;
        let phase = self.begin(Phase::Health);
        let done = self.prove_there().await;
        let ready = self.end(&phase, done)?;
        self.note_container(&ready);
        self.stop_if_cancelled()?;
        // A container made with --rm is gone once it stops and could not come back, so it stops last.
        let stop_last = self.plan().spec().auto_remove;
        let keep = self.plan().options.on_source == OnSource::Keep;
        let phase = self.begin(Phase::HandOver);
        let frozen = if keep || stop_last {
            Ok(())
        } else {
            self.freeze().await
        };
        let done = match frozen {
            Ok(()) => self.adopt_there().await,
            Err(fault) => Err(fault),
        };
        self.end(&phase, done)?;
        if stop_last && !keep {
            self.park_and_stop().await.unwrap_or_else(|fault| {
                let text = format!("the source could not be stopped, so two instances run: {fault}");
                self.reporter.report(Event::Warning { text });
            });
        }
        // Somebody served all the time, whatever the source did after.
        self.frozen_at = None;
        Ok(())
    }

    async fn cold_steps(&mut self) -> Result<(), Fault> {
        let phase = self.begin(Phase::Freeze);
        let done = self.check_and_freeze().await;
        self.end(&phase, done)?;
        self.stop_if_cancelled()?;
        self.record.state = DepartureState::Committed;
        self.save().await?;
        let phase = self.begin(Phase::Start);
        let done = self.start_there().await;
        self.end(&phase, done)?;
        self.serving_at = Some(Instant::now());
        let phase = self.begin(Phase::Health);
        let done = self.prove_there().await;
        let ready = self.end(&phase, done)?;
        // Where something tests its health, it serves from then on; elsewhere nobody can tell more than that it runs.
        if ready.healthy {
            self.serving_at = Some(Instant::now());
        }
        self.note_container(&ready);
        let phase = self.begin(Phase::HandOver);
        let done = self.adopt_there().await;
        self.end(&phase, done)
    }

    async fn check_and_freeze(&mut self) -> Result<(), Fault> {
        self.check().await?;
        self.freeze().await?;
        failpoint::reach("source.frozen").await
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
        let spec = self.record.plan.create.spec.clone();
        let changed = |what: String| {
            Fault::new(
                "container.changed",
                FaultKind::Environment,
                format!("{} {what} since the plan was made", spec.name),
            )
            .with_hint("run the command again")
        };
        let status = match self.engine.status(&spec.id).await {
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
        let whole = self.plan().options.whole_image;
        let layers = self.plan().transfer.image.layers.len();
        if opened.image_held && !whole {
            self.reporter.report(Event::Note {
                text: "the image is there already".into(),
            });
            return self
                .destination
                .image(Box::pin(futures_util::stream::empty()))
                .await;
        }
        let skip = if whole { 0 } else { opened.layers_held.min(layers) };
        self.record.plan.transfer.skip_layers = skip;
        match self.send_image(skip).await {
            // Layers that were there may have gone in between; the whole image does not depend on them.
            Err(fault) if skip > 0 && !link_lost(&fault) && !*self.cancelled.borrow() => {
                let text =
                    format!("sending only the missing layers failed ({fault}); sending the whole image");
                self.reporter.report(Event::Warning { text });
                self.record.plan.transfer.skip_layers = 0;
                self.send_image(0).await
            }
            done => done,
        }
    }

    async fn send_image(&mut self, skip: usize) -> Result<(), Fault> {
        let transfer = &self.record.plan.transfer;
        let archive = self
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
            result = self.destination.image(Box::pin(counted)) => result,
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

    /// Parks the restart policy and stops the source, after noting durably that it will.
    async fn freeze(&mut self) -> Result<(), Fault> {
        failpoint::reach("source.freeze").await?;
        self.record.state = DepartureState::Frozen;
        self.save().await?;
        self.frozen_at = Some(Instant::now());
        self.park_and_stop().await
    }

    async fn park_and_stop(&self) -> Result<(), Fault> {
        let id = &self.plan().spec().id;
        if !self.plan().restart_policy.is_never() {
            self.engine
                .set_restart_policy(id, &RestartPolicy::never())
                .await?;
        }
        match self.engine.stop(id, None).await {
            // With --rm the engine may have taken it away before it answered.
            Err(EngineError::NotFound { .. }) if self.plan().spec().auto_remove => Ok(()),
            done => done.map_err(Fault::from),
        }
    }

    async fn start_there(&mut self) -> Result<(), Fault> {
        failpoint::reach("source.start").await?;
        self.insist(|d| async move { d.start().await }).await
    }

    async fn prove_there(&mut self) -> Result<Adopted, Fault> {
        failpoint::reach("source.health").await?;
        self.insist(|d| async move { d.ready().await }).await
    }

    async fn adopt_there(&mut self) -> Result<(), Fault> {
        failpoint::reach("source.adopt").await?;
        self.adopt_asked = true;
        self.insist(|d| async move { d.adopt().await }).await.map(|_| ())
    }

    /// Repeats a call whose link was lost. Before the commit, and in stateless mode, only for a while; after the commit
    /// until the destination answers, saying meanwhile that the migration is in doubt.
    async fn insist<T, F>(
        &mut self,
        call: impl Fn(Arc<dyn Destination>) -> F + Send + Sync,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>> + Send,
    {
        let begun = Instant::now();
        let mut warned = false;
        loop {
            let fault = match call(Arc::clone(&self.destination)).await {
                Err(fault) if link_lost(&fault) => fault,
                other => return other,
            };
            if !warned {
                warned = true;
                self.reporter.report(Event::Warning {
                    text: format!("lost the destination, trying again: {fault}"),
                });
            }
            if begun.elapsed() >= PATIENCE {
                if self.record.state != DepartureState::Committed
                    && self.record.state != DepartureState::InDoubt
                {
                    return Err(fault);
                }
                if self.record.state == DepartureState::Committed {
                    self.enter_doubt(&fault).await;
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn enter_doubt(&mut self, cause: &Fault) {
        let fault = Fault::new(
            "migrate.in-doubt",
            FaultKind::InDoubt,
            "the destination was told to start the container and cannot be reached: it is not known whether it runs there",
        )
        .on_container(self.plan().spec().name.clone())
        .on_node(self.plan().destination.clone())
        .because(cause.to_string())
        .with_hint(
            "the source stays stopped and its agent goes on asking; when the link is back it settles by itself. \
             `tranship status ID` from a machine that reaches both carries the link meanwhile",
        );
        self.record.state = DepartureState::InDoubt;
        self.record.fault = Some(fault.clone());
        if let Err(fault) = self.save().await {
            self.reporter.report(Event::Warning {
                text: format!("the record was not saved: {fault}"),
            });
        }
        self.reporter.report(Event::Finished { fault: Some(fault) });
    }

    /// After the hand-over nothing can be undone any more: what fails here is said, and left to a person.
    async fn release(&mut self) {
        self.record.fault = None;
        if self.plan().options.on_source != OnSource::Remove || self.plan().spec().auto_remove {
            return;
        }
        if let Err(error) = self.engine.remove_container_only(&self.plan().spec().id).await {
            let text = format!("the source is stopped but could not be removed: {error}");
            self.reporter.report(Event::Warning { text });
        }
    }

    /// Puts everything back. Before the commit the source comes first, so that it serves again at once; after it the
    /// destination has to let go first.
    async fn roll_back(&mut self, cause: Fault) {
        self.reporter.report(Event::PhaseStarted {
            phase: Phase::Rollback,
        });
        let begun = Instant::now();
        let committed = matches!(
            self.record.state,
            DepartureState::Committed | DepartureState::InDoubt
        );
        let mut fault = cause.clone();
        if fault.kind != FaultKind::Bug {
            fault.kind = FaultKind::RolledBack;
        }
        if committed {
            match self.discard_there(true).await {
                Ok(()) => {
                    if let Err(stuck) = self.resume().await {
                        fault = stuck.because(cause.to_string());
                    }
                }
                Err(stuck) => fault = stuck.because(cause.to_string()).with_kind(FaultKind::InDoubt),
            }
        } else {
            let resumed = self.resume().await;
            match self.discard_there(false).await {
                Ok(()) => {}
                // Stateless mode only: the source serves, and perhaps the destination as well.
                Err(lost) if link_lost(&lost) && self.adopt_asked => {
                    fault.kind = FaultKind::InDoubt;
                    fault
                        .causes
                        .push(format!("the destination may run the container too: {lost}"));
                }
                Err(lost) if link_lost(&lost) => self.reporter.report(Event::Warning {
                    text: format!("the destination could not be told, and cleans up by itself: {lost}"),
                }),
                Err(stuck) => {
                    fault
                        .causes
                        .push(format!("cleaning up at the destination: {stuck}"));
                    if stuck.kind == FaultKind::InDoubt {
                        fault.kind = FaultKind::InDoubt;
                    }
                }
            }
            if let Err(stuck) = resumed {
                fault = stuck.because(cause.to_string());
            }
        }
        self.record.state = match fault.kind {
            FaultKind::InDoubt if fault.code == NOT_RESUMED => DepartureState::NotResumed,
            FaultKind::InDoubt => DepartureState::InDoubt,
            _ => DepartureState::RolledBack,
        };
        let took_ms = millis(begun.elapsed());
        let begun_ms = millis(begun.saturating_duration_since(self.begun));
        self.record.phases.push(PhaseRecord {
            phase: Phase::Rollback,
            begun_ms,
            took_ms,
            bytes: 0,
        });
        let name = self.plan().spec().name.clone();
        self.record.fault = Some(fault.on_container(name));
        self.reporter.report(Event::PhaseEnded {
            phase: Phase::Rollback,
            milliseconds: took_ms,
            bytes: 0,
        });
    }

    async fn discard_there(&mut self, until_answered: bool) -> Result<(), Fault> {
        let discarded = if until_answered {
            self.insist(|d| async move { d.discard().await }).await?
        } else {
            self.destination.discard().await?
        };
        for left in discarded.left_behind {
            self.reporter.report(Event::Warning {
                text: format!("left at the destination: {left}"),
            });
        }
        Ok(())
    }

    /// Starts the source again if it was stopped, and gives it its restart policy back.
    async fn resume(&mut self) -> Result<(), Fault> {
        if self.record.state == DepartureState::Preparing {
            return Ok(());
        }
        resume(self.engine.as_ref(), self.plan()).await?;
        self.serving_at = Some(Instant::now());
        Ok(())
    }
}

/// Makes the source serve again after it was frozen: starts it, and gives it its restart policy back. Also what an agent
/// does at its start with a record that says `frozen`.
///
/// # Errors
/// `source.not-resumed`, which needs a person.
pub async fn resume(engine: &dyn Engine, plan: &Plan) -> Result<(), Fault> {
    let spec = plan.spec();
    let begun = Instant::now();
    let mut attempt = 0u32;
    let reason = loop {
        let error = match try_resume(engine, plan).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        attempt += 1;
        // An engine that is being restarted takes longer than one that refuses.
        let away = matches!(
            error,
            EngineError::Unreachable { .. } | EngineError::Uncertain { .. }
        );
        if attempt >= 5 && !(away && begun.elapsed() < ENGINE_AWAY) {
            break error.to_string();
        }
        tokio::time::sleep(Duration::from_millis(300 * u64::from(attempt.min(5)))).await;
    };
    Err(Fault::new(
        NOT_RESUMED,
        FaultKind::InDoubt,
        format!(
            "the container {} was stopped and could not be started again at the source",
            spec.name
        ),
    )
    .on_container(spec.name.clone())
    .on_node(plan.source.clone())
    .because(reason)
    .with_hint(format!("start it there with `docker start {}`", spec.name)))
}

async fn try_resume(engine: &dyn Engine, plan: &Plan) -> Result<(), EngineError> {
    let id = &plan.spec().id;
    let started = engine.start(id).await;
    // Also where it does not start: whoever starts it by hand then gets back what they had.
    if !plan.restart_policy.is_never() {
        engine.set_restart_policy(id, &plan.restart_policy).await?;
    }
    started
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
