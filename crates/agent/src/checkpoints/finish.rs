//! How the making of a checkpoint ends: with its container gone on, or ended for it.
//!
//! Ending it is the point of no return. Right before it a note is made, so that an end that is ours is told from others. Until then,
//! and wherever it is not proved, the memory goes on where it is, in the container, and there is no checkpoint.

use std::time::Duration;

use tokio::time::Instant;
use tranship_core::container::{ContainerState, ContainerStatus, RestartPolicy};
use tranship_core::fault::FaultKind;
use tranship_core::{ContainerSpec, EngineError, Fault};
use tranship_migrate::failpoint;

use super::store::{Begun, Kept, New};
use super::{Checkpoints, spec_by_id};

/// How long an engine is waited for that does not answer, and how often it is asked.
pub(super) const ENGINE_AWAY: Duration = Duration::from_secs(60);
pub(super) const AGAIN: Duration = Duration::from_millis(500);
/// How long what was killed may be seen running.
const DYING: Duration = Duration::from_secs(2);
/// What a container's exit code is whose process was killed.
const KILLED: i64 = 128 + 9;

/// What is half done.
pub(super) enum Open {
    /// One that was being made.
    New(New),
    /// One that has its name.
    Kept(Kept),
}

pub(super) fn is_away(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::Unreachable { .. } | EngineError::Uncertain { .. }
    )
}

/// Whether it has processes.
pub(super) fn is_up(status: &ContainerStatus) -> bool {
    matches!(
        status.state,
        ContainerState::Running | ContainerState::Paused | ContainerState::Restarting
    )
}

/// The run of which the checkpoint is was killed.
fn was_killed(status: &ContainerStatus, begun: &Begun) -> bool {
    !is_up(status) && status.started_at == begun.started_at && status.exit_code == KILLED
}

impl Checkpoints {
    /// Gives the restart policy back that was parked, unless somebody has set another one meanwhile, or the container belongs to
    /// another node by now.
    pub(super) async fn unpark(&self, begun: &Begun, spec: &ContainerSpec) -> Result<(), EngineError> {
        let parked = !begun.leave_running && !begun.restart_policy.is_never();
        if !parked || !spec.restart_policy.is_never() || self.registry.moved(spec).is_some() {
            return Ok(());
        }
        let engine = self.engine();
        engine
            .set_restart_policy(&begun.container, &begun.restart_policy)
            .await
    }

    /// Gives back what another checkpoint has parked, which waited until the container was to go on from this one, and waits no more.
    pub(super) async fn unpark_for_others(&self, kept: &Kept, spec: &ContainerSpec) -> Result<(), Fault> {
        if let Some(begun) = kept.waited_until_ordered()? {
            self.unpark(&begun, spec).await?;
        }
        Ok(())
    }

    /// Parks the restart policy: nothing is to start what stands still.
    pub(super) async fn park(&self, begun: &Begun) -> Result<(), EngineError> {
        if begun.leave_running || begun.restart_policy.is_never() {
            return Ok(());
        }
        let never = RestartPolicy::never();
        self.engine().set_restart_policy(&begun.container, &never).await
    }

    /// Takes the dump away. It holds whatever the processes knew, so what is noted stays noted until this has succeeded.
    ///
    /// # Errors
    /// `checkpoint.dump-left`.
    pub(super) async fn forget(&self, begun: &Begun) -> Result<(), Fault> {
        let done = self.engine().forget(&begun.memory()).await;
        done.map_err(|error| {
            Fault::new(
                "checkpoint.dump-left",
                FaultKind::InDoubt,
                "a dump of the container's memory could not be removed, which is not encrypted",
            )
            .because(error.to_string())
            .with_hint("only root can read it; the agent goes on trying to remove it")
        })
    }

    /// Lets the container go on from where it stands. An engine that is away, as it is while it is restarted, is waited for.
    ///
    /// # Errors
    /// `checkpoint.not-resumed`: it could not be let go on. `checkpoint.dump-left`.
    async fn undo(&self, begun: &Begun, paused: bool) -> Result<(), Fault> {
        // A dump that is under way puts the freezer back at its end into the state that it found.
        let dumped = self.engine().has_dump(&begun.memory()).await;
        tracing::debug!(?dumped, "the dump of a checkpoint that is taken back");
        let since = Instant::now();
        let undone = loop {
            match self.let_go_on(begun, paused).await {
                Err(error) if is_away(&error) && since.elapsed() < ENGINE_AWAY => {
                    tokio::time::sleep(AGAIN).await;
                }
                done => break done,
            }
        };
        undone.map_err(|error| {
            Fault::new(
                "checkpoint.not-resumed",
                FaultKind::InDoubt,
                "the engine did not let the container go on that was paused for its checkpoint",
            )
            .because(error.to_string())
            .with_hint("the agent goes on trying; `docker unpause` does the same")
        })?;
        self.forget(begun).await
    }

    async fn let_go_on(&self, begun: &Begun, paused: bool) -> Result<(), EngineError> {
        let engine = self.engine();
        let Some(spec) = spec_by_id(engine, &begun.container).await? else {
            return Ok(());
        };
        if self.registry.moved(&spec).is_some() {
            return Ok(());
        }
        self.unpark(begun, &spec).await?;
        // Whichever run it is that our pause met.
        if paused && spec.status.state == ContainerState::Paused {
            engine.unpause(&begun.container).await?;
        }
        Ok(())
    }

    /// Takes back what was done for a checkpoint whose making failed.
    ///
    /// # Errors
    /// As [`Self::undo`]; `checkpoint.store`.
    async fn take_back(&self, new: &New) -> Result<(), Fault> {
        if let Some(begun) = new.begun()? {
            self.undo(&begun, new.is_pausing()).await?;
        }
        Ok(new.remove()?)
    }

    /// Settles what is half done. Its container is held by the caller.
    ///
    /// # Errors
    /// What stands in the way: it is to be tried again.
    pub(super) async fn settle_one(&self, open: &Open) -> Result<(), Fault> {
        match open {
            Open::New(new) => match new.where_it_is() {
                Some(new) => self.take_back(&new).await,
                None => Ok(()),
            },
            Open::Kept(kept) if kept.is_unfinished() => self.settle_made(kept).await,
            Open::Kept(kept) if kept.is_restoring() => self.end_restore(kept).await.map(drop),
            Open::Kept(_) => Ok(()),
        }
    }

    /// Takes back what failed. Where that fails as well, it is left to be tried again.
    pub(super) async fn give_up(&self, open: Open, fault: Fault, left: &mut Option<Open>) -> Fault {
        match self.settle_one(&open).await {
            Ok(()) => fault,
            Err(stuck) => {
                *left = Some(open);
                stuck.because(fault.to_string())
            }
        }
    }

    /// Brings a checkpoint that has its name, and whose agent came no further, to its end. Nothing is killed: whether it stands still
    /// since its dump is not known any more. If our signal had reached it, it ends; else it goes on, without a checkpoint.
    async fn settle_made(&self, kept: &Kept) -> Result<(), Fault> {
        let begun = &kept.about.begun;
        let engine = self.engine();
        let mut spec = spec_by_id(engine, &begun.container).await?;
        let ours = kept.is_ending() && !begun.leave_running;
        // One that is on its way may stand still for that.
        let stands = |spec: &ContainerSpec| {
            spec.status.state == ContainerState::Paused && self.registry.moved(spec).is_none()
        };
        if ours && spec.as_ref().is_some_and(stands) {
            engine.unpause(&begun.container).await?;
            tokio::time::sleep(DYING).await;
            spec = spec_by_id(engine, &begun.container).await?;
        }
        let ended = match &spec {
            // Its checkpoint is there for whoever looks, and is of no use.
            None => true,
            Some(spec) => begun.leave_running || (ours && was_killed(&spec.status, begun)),
        };
        if ended {
            self.forget(begun).await?;
            return Ok(kept.finished()?);
        }
        tracing::warn!(
            "{} was not ended for its checkpoint {}: that is removed",
            begun.container,
            kept.about.name
        );
        // Nothing else may go on from this memory any more.
        kept.used(true)?;
        self.undo(begun, true).await?;
        Ok(kept.remove()?)
    }

    /// Ends the container of a checkpoint that has its name, unless it is to go on, which it does since its dump.
    ///
    /// # Errors
    /// `container.changed` where it went on by itself; `checkpoint.not-ended`; what the engine says. It is to be settled then.
    pub(super) async fn finish(&self, kept: &Kept) -> Result<(), Fault> {
        let begun = &kept.about.begun;
        if !begun.leave_running {
            self.end(kept).await?;
            failpoint::reach("checkpoint.ended").await?;
        }
        self.forget(begun).await?;
        Ok(kept.finished()?)
    }

    /// Ends what stands still since its dump, and nothing else.
    async fn end(&self, kept: &Kept) -> Result<(), Fault> {
        let begun = &kept.about.begun;
        let since = Instant::now();
        let (mut noted, mut killed, mut seen_running) = (false, false, false);
        loop {
            let status = match self.engine().status(&begun.container).await {
                Err(EngineError::NotFound { .. }) => return Err(changed()),
                status => status,
            };
            let error = match status {
                Ok(status)
                    if status.state == ContainerState::Paused && status.started_at == begun.started_at =>
                {
                    if !noted {
                        kept.ending(true)?;
                        failpoint::reach("checkpoint.ending").await?;
                        noted = true;
                        // The note took a while: only what stands still after it is killed.
                        continue;
                    }
                    let done = self.engine().kill(&begun.container).await;
                    // An end before anything was sent is not ours, even if it looks like it.
                    killed |= !matches!(done, Err(EngineError::Unreachable { .. }));
                    match done {
                        Ok(()) => continue,
                        Err(error) => error,
                    }
                }
                Ok(status) if killed && was_killed(&status, begun) => return Ok(()),
                // What was killed while it stood still may be on its way out.
                Ok(status) if killed && is_up(&status) && !seen_running => {
                    seen_running = true;
                    tokio::time::sleep(DYING).await;
                    continue;
                }
                Ok(_) => {
                    // However it ends from here on, that is not our doing.
                    kept.ending(false)?;
                    return Err(changed());
                }
                Err(error) => error,
            };
            if since.elapsed() > ENGINE_AWAY {
                if !killed {
                    // However it ends once the engine is back, nothing of ours did it.
                    kept.ending(false)?;
                }
                return Err(Fault::new(
                    "checkpoint.not-ended",
                    FaultKind::InDoubt,
                    "the engine did not end the container for its checkpoint",
                )
                .because(error.to_string())
                .with_hint(
                    "the agent lets it go on without a checkpoint, unless it ends after all; `tranship checkpoint ls` shows which",
                ));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

fn changed() -> Fault {
    Fault::new(
        "container.changed",
        FaultKind::RolledBack,
        "it went on, or ended by itself, before it could be ended, and is left so without a checkpoint",
    )
    .with_hint("somebody, or a restart of the engine, let it go on; run the command again")
}
