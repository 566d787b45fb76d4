//! Going back: the source serves again, the destination is as it was.

use std::time::Duration;

use tokio::time::Instant;
use tranship_core::container::ContainerState;
use tranship_core::event::{Event, Phase};
use tranship_core::fault::FaultKind;
use tranship_core::{Engine, EngineError, Fault};

use super::{Departure, ENGINE_AWAY, NOT_RESUMED, millis};
use crate::destination::link_lost;
use crate::options::HookTime;
use crate::plan::{Member, Plan};
use crate::record::{DepartureState, PhaseRecord};

impl Departure {
    /// Puts everything back. Before the commit the source comes first, so that it serves again at once; after it the
    /// destination has to let go first.
    pub(super) async fn roll_back(&mut self, cause: Fault) {
        // Whoever reads or writes in a thread of its own comes to an end.
        self.given_up.cancel();
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
        if self.record.state != DepartureState::Preparing {
            resume(self.ports.engine.as_ref(), self.plan()).await?;
            self.serving_at = Some(Instant::now());
        }
        if let Err(fault) = self.hooks(HookTime::Thaw).await {
            self.reporter.report(Event::Warning {
                text: format!("the source serves again, but a hook failed: {fault}"),
            });
        }
        Ok(())
    }
}

/// Makes the source serve again after it was frozen: starts it, and gives it its restart policy back. Also what an agent
/// does at its start with a record that says `frozen`.
///
/// # Errors
/// `source.not-resumed`, which needs a person.
pub async fn resume(engine: &dyn Engine, plan: &Plan) -> Result<(), Fault> {
    let members = plan.members();
    let mut first_failure = None;
    for member in plan.start_order().into_iter().filter_map(|i| members.get(i)) {
        // The others are brought back whatever becomes of this one.
        if let Err(fault) = resume_member(engine, plan, member).await {
            first_failure.get_or_insert(fault);
        }
    }
    first_failure.map_or(Ok(()), Err)
}

async fn resume_member(engine: &dyn Engine, plan: &Plan, member: &Member) -> Result<(), Fault> {
    let spec = &member.create.spec;
    let begun = Instant::now();
    let mut attempt = 0u32;
    let reason = loop {
        let error = match try_resume(engine, member).await {
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

/// Lets it go on where it is paused, and starts it where it is not running: it may have been either, and a host that was
/// rebooted meanwhile made a stopped one of a paused one.
async fn try_resume(engine: &dyn Engine, member: &Member) -> Result<(), EngineError> {
    let id = &member.create.spec.id;
    let started = match engine.status(id).await?.state {
        ContainerState::Paused => engine.unpause(id).await,
        _ => engine.start(id).await,
    };
    // Also where it does not start: whoever starts it by hand then gets back what they had.
    if !member.restart_policy.is_never() {
        engine.set_restart_policy(id, &member.restart_policy).await?;
    }
    started
}
