//! Stateless mode: two instances may run side by side, so whoever is in doubt serves.

use std::collections::BTreeSet;

use tokio::time::Instant;
use tranship_core::Fault;
use tranship_core::event::{Event, Phase};
use tranship_core::fault::FaultKind;

use super::{Departure, LOST_DESTINATION, NOT_RESUMED, PATIENCE, RETRY, RunningPhase, millis, rollback};
use crate::destination::{ADOPTED, Adopted, Destination, Discarded, link_lost};
use crate::failpoint;
use crate::options::OnSource;
use crate::record::DepartureState;

impl Departure {
    pub(super) async fn run_stateless(&mut self) {
        let result = match self.save().await {
            Ok(()) => self.all_steps().await,
            Err(fault) => Err(fault),
        };
        match result {
            Ok(()) => self.record.state = DepartureState::Complete,
            Err(fault) => self.roll_back(fault).await,
        }
        self.save_the_end().await;
    }

    /// Goes on after a restart of the agent. Whoever is in doubt serves, so the source does before anybody is asked; then the
    /// destination says whose the container is.
    pub(super) async fn recover_stateless(&mut self) {
        self.adopt_asked = self.record.state != DepartureState::Preparing;
        let cause = Fault::new(
            "agent.restarted",
            FaultKind::RolledBack,
            "the source's agent ended before the migration did",
        );
        let begun = self.begin(Phase::Rollback);
        let resumed = self.resume_stateless().await;
        let discarded = self.insist(|d| async move { d.discard().await }).await;
        self.gone_back(&begun, &cause, resumed, discarded).await;
        self.save_the_end().await;
    }

    async fn save_the_end(&mut self) {
        self.record.total_ms = millis(self.begun.elapsed());
        if let (Some(frozen), Some(serving)) = (self.frozen_at, self.serving_at) {
            self.record.downtime_ms = Some(millis(serving.saturating_duration_since(frozen)));
        }
        if let Err(fault) = self.save().await {
            self.records.show_departure(&self.record);
            self.reporter.report(Event::Warning {
                text: format!("the last record was not saved: {fault}"),
            });
        }
    }

    async fn all_steps(&mut self) -> Result<(), Fault> {
        self.steps_before_freeze().await?;
        self.stateless_steps().await?;
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
        let stop_last = self.members.iter().any(|m| m.create.spec.auto_remove);
        let keep = self.plan().options.on_source == OnSource::Keep;
        let phase = self.begin(Phase::HandOver);
        let frozen = if keep || stop_last {
            Ok(())
        } else {
            self.freeze_stateless().await
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

    /// Parks the restart policy and stops the source, after noting durably that it will.
    async fn freeze_stateless(&mut self) -> Result<(), Fault> {
        failpoint::reach("source.freeze").await?;
        self.record.state = DepartureState::Frozen;
        self.save().await?;
        self.frozen_at = Some(Instant::now());
        self.park_and_stop().await
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

    /// Repeats a call whose link was lost, for a while.
    async fn insist<T, F>(
        &mut self,
        call: impl Fn(std::sync::Arc<dyn Destination>) -> F + Send + Sync,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>> + Send,
    {
        let begun = Instant::now();
        let mut warned = false;
        loop {
            let fault = match call(std::sync::Arc::clone(&self.destination)).await {
                Err(fault) if link_lost(&fault) => fault,
                other => return other,
            };
            if !warned {
                warned = true;
                self.reporter.report(Event::Warning {
                    text: format!("{LOST_DESTINATION}, trying again: {fault}"),
                });
            }
            if begun.elapsed() >= PATIENCE {
                return Err(fault);
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Puts everything back; the source comes first, so that it serves again at once.
    async fn roll_back(&mut self, cause: Fault) {
        self.given_up.cancel();
        let begun = self.begin(Phase::Rollback);
        let resumed = self.resume_stateless().await;
        let discarded = self.destination.discard().await;
        self.gone_back(&begun, &cause, resumed, discarded).await;
    }

    /// What the way back came to.
    async fn gone_back(
        &mut self,
        begun: &RunningPhase,
        cause: &Fault,
        resumed: Result<(), Fault>,
        discarded: Result<Discarded, Fault>,
    ) {
        if discarded.as_ref().is_err_and(|fault| fault.code == ADOPTED) {
            // It had gone well, and nobody here had heard so.
            self.end_here().await;
            return;
        }
        let mut fault = cause.clone();
        if fault.kind != FaultKind::Bug {
            fault.kind = FaultKind::RolledBack;
        }
        match discarded {
            Ok(discarded) => self.say_left_behind(discarded.left_behind),
            // The source serves, and perhaps the destination as well.
            Err(lost) if link_lost(&lost) && self.adopt_asked => {
                fault.kind = FaultKind::InDoubt;
                fault
                    .causes
                    .push(format!("the destination may run the container too: {lost}"));
            }
            Err(lost) if link_lost(&lost) => self.reporter.report(Event::Warning {
                text: format!("the destination could not be told, and cleans up by itself: {lost}"),
            }),
            Err(unknown) if unknown.code == crate::destination::UNKNOWN => {}
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
        self.record.state = match fault.kind {
            FaultKind::InDoubt if fault.code == NOT_RESUMED => DepartureState::NotResumed,
            FaultKind::InDoubt => DepartureState::InDoubt,
            _ => DepartureState::RolledBack,
        };
        let name = self.plan().spec().name.clone();
        self.record.fault = Some(fault.on_container(name));
        let ended = self.end(begun, Ok(()));
        debug_assert!(ended.is_ok());
    }

    /// The destination serves for good; the source ends as the user wished.
    async fn end_here(&mut self) {
        self.record.state = DepartureState::Complete;
        self.frozen_at = None;
        if self.plan().options.on_source != OnSource::Keep
            && let Err(fault) = self.park_and_stop().await
        {
            let text = format!("the source could not be stopped, so two instances run: {fault}");
            self.reporter.report(Event::Warning { text });
        }
        self.release().await;
    }

    /// Starts the source again if it was stopped, and gives it its restart policy back.
    async fn resume_stateless(&mut self) -> Result<(), Fault> {
        if self.record.state != DepartureState::Preparing {
            rollback::resume(self.ports.engine.as_ref(), self.plan(), &BTreeSet::new()).await?;
            self.serving_at = Some(Instant::now());
        }
        self.thaw().await;
        Ok(())
    }
}
