//! Going on from a checkpoint.

use std::sync::Arc;

use tokio::time::Instant;
use tranship_core::container::{ContainerState, ContainerStatus};
use tranship_core::{ContainerSpec, Fault};
use tranship_migrate::failpoint;

use super::create::{images_of, new_id};
use super::error::CheckpointError;
use super::finish::{AGAIN, ENGINE_AWAY, Open};
use super::look::{self, Moment};
use super::recover::Restored;
use super::store::{About, Kept};
use super::{CheckpointRestored, Checkpoints, RestoreCheckpoint, blocking, find, images, not_found};

impl Checkpoints {
    /// Lets a container that does not run go on from one of its checkpoints.
    ///
    /// # Errors
    /// What stands in the way (`checkpoint.…`, `container.…`), and what the engine says. Unless it is in doubt the checkpoint is
    /// still there, and the container does not run.
    pub async fn restore(self: &Arc<Self>, asked: &RestoreCheckpoint) -> Result<CheckpointRestored, Fault> {
        let store = self.store().await?;
        let named = self.named(&asked.container).await?;
        let kept = find(&store, &asked.container, named.as_ref(), asked.name.as_ref())?
            .ok_or_else(|| not_found(&asked.container, asked.name.as_ref()))?;
        // It may have another name by now.
        let Some(spec) = self.spec_of(&kept.about.begun.container).await? else {
            return Err(gone(&kept));
        };
        let hold = self.registry.hold(&new_id()?, &spec)?;
        let mut unsettled = false;
        let restored = self
            .restore_held(&spec.id, &kept, asked.changed_files, &mut unsettled)
            .await;
        if unsettled {
            self.settle_later(hold, Open::Kept(kept));
        } else {
            drop(hold);
        }
        restored.map_err(|fault| fault.on_container(spec.name))
    }

    async fn restore_held(
        &self,
        container: &tranship_core::ContainerId,
        kept: &Kept,
        changed_files: bool,
        unsettled: &mut bool,
    ) -> Result<CheckpointRestored, Fault> {
        // Asked again: it may have been started before it was held.
        let Some(spec) = self.spec_of(container).await? else {
            return Err(gone(kept));
        };
        if self.has_moved(kept, &spec)? {
            return Err(Fault::of(&CheckpointError::Moved {
                container: spec.name,
                name: kept.about.name.to_string(),
            }));
        }
        may_go_on(kept, &spec)?;
        let now = look::at_files_of(self.registry.ports(), &spec, Moment::Restore).await?;
        let changed = look::changes(&kept.about.files, &now);
        if !changed.is_empty() && !changed_files {
            return Err(Fault::of(&CheckpointError::FilesChanged {
                container: spec.name,
                name: kept.about.name.to_string(),
                changed,
            }));
        }
        kept.restoring(true)?;
        if let Err(fault) = self.go_on(kept, &spec).await {
            return Err(self.after_failure(kept, &spec, fault, unsettled).await);
        }
        let status = self.engine().status(container).await;
        let once = !kept.about.begun.leave_running;
        if let Err(fault) = self.over(kept, &spec).await {
            // It went on: what is left to do comes later.
            *unsettled = true;
            tracing::warn!("a restore is not settled yet: {fault}");
        }
        Ok(CheckpointRestored {
            name: kept.about.name.clone(),
            container: spec.name,
            running: status.is_ok_and(|status| status.state == ContainerState::Running),
            kept: !once || *unsettled,
            changed,
        })
    }

    async fn go_on(&self, kept: &Kept, spec: &ContainerSpec) -> Result<(), Fault> {
        let engine = self.engine();
        let begun = &kept.about.begun;
        let key = self.node_key(false).await?;
        // Images of another time must not be taken for those of this one.
        engine.forget(&begun.memory()).await?;
        let into = images_of(engine, begun).await?;
        let (memory, context, bytes) = (kept.memory(), kept.context.clone(), kept.about.image_bytes);
        blocking(move || images::unpack(&memory, &into, &key, &context, bytes)).await?;
        failpoint::reach("checkpoint.opened").await?;
        // An engine takes an order to restore what runs for one that was carried out.
        let now = engine.status(&begun.container).await?;
        if now.started_at != spec.status.started_at || now.state != spec.status.state {
            return Err(Fault::of(&CheckpointError::Running {
                container: spec.name.clone(),
                state: format!("{} by now", now.state),
            }));
        }
        if let Some(later) = engine.start_told_later(&begun.container).await? {
            kept.start_is_told_as(&now.started_at, &later)?;
        }
        kept.others_are_about_to_end(&now.started_at)?;
        kept.used(true)?;
        failpoint::reach("checkpoint.ordered").await?;
        engine.restore(&begun.memory()).await?;
        failpoint::reach("checkpoint.restored").await
    }

    /// The container went on. Its restart policy comes back only now: an engine that is restarted before it has restored would start
    /// the container afresh.
    async fn over(&self, kept: &Kept, spec: &ContainerSpec) -> Result<(), Fault> {
        let begun = &kept.about.begun;
        self.unpark(begun, spec).await?;
        self.unpark_for_others(kept, spec).await?;
        self.forget(begun).await?;
        kept.others_are_over()?;
        if !begun.leave_running {
            // Nothing goes on from it a second time, nor from a copy: Podman forgets the time of a restore when the machine is started anew.
            kept.spoil_copies()?;
            return Ok(kept.remove()?);
        }
        kept.used(false)?;
        Ok(kept.restoring(false)?)
    }

    /// Finds out what came of a restore that failed, or whose end was not seen. An engine that is away is waited for.
    async fn after_failure(
        &self,
        kept: &Kept,
        spec: &ContainerSpec,
        fault: Fault,
        unsettled: &mut bool,
    ) -> Fault {
        let since = Instant::now();
        let found = loop {
            match self.end_restore(kept).await {
                Err(_) if since.elapsed() < ENGINE_AWAY => tokio::time::sleep(AGAIN).await,
                found => break found,
            }
        };
        let doubt = Fault::of(&CheckpointError::InDoubt {
            container: spec.name.clone(),
            name: kept.about.name.to_string(),
        });
        match found {
            Ok(Restored::Never) => fault,
            Ok(Restored::Maybe) => doubt.because(fault.to_string()),
            Err(stuck) => {
                *unsettled = true;
                doubt.because(fault.to_string()).because(stuck.to_string())
            }
        }
    }
}

/// Its container was removed.
pub(super) fn gone(kept: &Kept) -> Fault {
    gone_of(&kept.about)
}

/// The container of the checkpoint that this describes was removed.
pub(super) fn gone_of(about: &About) -> Fault {
    Fault::of(&CheckpointError::ContainerGone {
        container: about.container_name.clone(),
        name: about.name.to_string(),
    })
}

/// Whether anything may go on from it, once its container stands still.
///
/// # Errors
/// `checkpoint.unfinished`, `checkpoint.started-since`, `checkpoint.used`.
pub(super) fn is_good(kept: &Kept, spec: &ContainerSpec) -> Result<(), CheckpointError> {
    let (container, name) = (spec.name.clone(), kept.about.name.to_string());
    if kept.is_unfinished() || kept.is_restoring() {
        return Err(CheckpointError::Unfinished { container, name });
    }
    if is_started_since(kept, &spec.status) {
        return Err(CheckpointError::StartedSince { container, name });
    }
    if kept.is_used() {
        return Err(CheckpointError::Used { container, name });
    }
    Ok(())
}

/// Whether the container, which was ended for it, was started since. Seen once, that is noted: the engine may forget it. Not to be asked
/// while it is made or restored.
pub(super) fn is_started_since(kept: &Kept, status: &ContainerStatus) -> bool {
    let begun = &kept.about.begun;
    if begun.leave_running || kept.is_of_run_begun(&status.started_at) {
        return kept.is_started_since();
    }
    if let Err(error) = kept.started_since() {
        tracing::warn!("that a container was started since its checkpoint is not noted: {error}");
    }
    true
}

/// What can be told before files are looked at.
fn may_go_on(kept: &Kept, spec: &ContainerSpec) -> Result<(), CheckpointError> {
    is_good(kept, spec)?;
    match spec.status.state {
        ContainerState::Created | ContainerState::Exited | ContainerState::Dead => Ok(()),
        state => Err(CheckpointError::Running {
            container: spec.name.clone(),
            state: state.to_string(),
        }),
    }
}
