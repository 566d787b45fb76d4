//! Going on from a checkpoint.

use tranship_core::container::{ContainerState, RestartPolicy};
use tranship_core::{ContainerSpec, EngineError, Fault};
use tranship_migrate::failpoint;

use super::create::{forget, images_of, new_id, unpark};
use super::error::CheckpointError;
use super::store::Kept;
use super::{CheckpointRestored, Checkpoints, RestoreCheckpoint, blocking, find, images, look, not_found};

impl Checkpoints {
    /// Lets a container that does not run go on from one of its checkpoints.
    ///
    /// # Errors
    /// What stands in the way (`checkpoint.…`, `container.…`), and what the engine says. Unless it says otherwise the checkpoint is
    /// still there, and the container does not run.
    pub async fn restore(&self, asked: &RestoreCheckpoint) -> Result<CheckpointRestored, Fault> {
        let store = self.store().await?;
        let spec = match self.engine().inspect(&asked.container).await {
            Ok(spec) => Some(spec),
            Err(EngineError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let kept = find(&store, &asked.container, spec.as_ref(), asked.name.as_ref())?
            .ok_or_else(|| not_found(&asked.container, asked.name.as_ref()))?;
        let Some(spec) = spec else {
            return Err(Fault::of(&CheckpointError::ContainerGone {
                container: kept.about.container_name.clone(),
                name: kept.about.name.to_string(),
            }));
        };
        let hold = self.registry.hold(&new_id()?, &spec)?;
        let restored = self.restore_held(&spec.id, &kept, asked.changed_files).await;
        drop(hold);
        restored.map_err(|fault| fault.on_container(spec.name))
    }

    async fn restore_held(
        &self,
        container: &tranship_core::ContainerId,
        kept: &Kept,
        changed_files: bool,
    ) -> Result<CheckpointRestored, Fault> {
        // Asked again: it may have been started before it was held.
        let Some(spec) = self.spec_of(container).await? else {
            return Err(Fault::of(&CheckpointError::ContainerGone {
                container: kept.about.container_name.clone(),
                name: kept.about.name.to_string(),
            }));
        };
        may_go_on(kept, &spec)?;
        let now = look::at_files_of(self.registry.ports(), &spec).await?;
        let changed = look::changes(&kept.about.files, &now);
        if !changed.is_empty() && !changed_files {
            return Err(Fault::of(&CheckpointError::FilesChanged {
                container: spec.name,
                name: kept.about.name.to_string(),
                changed,
            }));
        }
        kept.restoring(true)?;
        let done = self.go_on(kept, &spec).await;
        forget(self.engine(), &kept.about.begun).await;
        if let Err(fault) = done {
            kept.restoring(false)?;
            return Err(fault);
        }
        let status = self.engine().status(container).await;
        let once = !kept.about.begun.leave_running;
        if once {
            // Nothing goes on from it a second time.
            kept.remove()?;
        } else {
            kept.used(false)?;
            kept.restoring(false)?;
        }
        Ok(CheckpointRestored {
            name: kept.about.name.clone(),
            container: spec.name,
            running: status.is_ok_and(|status| status.state == ContainerState::Running),
            kept: !once,
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
        // The restart policy comes first: an engine that is restarted right after the start would otherwise leave it down.
        unpark(engine, begun, &spec.restart_policy).await?;
        kept.used(true)?;
        let restored = engine.restore(&begun.memory()).await;
        failpoint::reach("checkpoint.restored").await?;
        let Err(error) = restored else { return Ok(()) };
        let status = engine.status(&begun.container).await?;
        if status.state == ContainerState::Running {
            return Ok(());
        }
        let refused = matches!(
            error,
            EngineError::Failed { .. }
                | EngineError::Conflict { .. }
                | EngineError::NoSpace { .. }
                | EngineError::Unsupported { .. }
        );
        // An answer that broke off leaves it open whether it ran: then it stays used.
        if refused && status.started_at == spec.status.started_at {
            kept.used(false)?;
        }
        // Parked again, unless it was the user's own before.
        if !begun.leave_running && spec.restart_policy.is_never() {
            engine
                .set_restart_policy(&begun.container, &RestartPolicy::never())
                .await?;
        }
        Err(error.into())
    }
}

/// What can be told before files are looked at.
fn may_go_on(kept: &Kept, spec: &ContainerSpec) -> Result<(), CheckpointError> {
    let begun = &kept.about.begun;
    let (container, name) = (spec.name.clone(), kept.about.name.to_string());
    let stopped = matches!(
        spec.status.state,
        ContainerState::Created | ContainerState::Exited | ContainerState::Dead
    );
    if !begun.leave_running && spec.status.started_at != begun.started_at {
        return Err(CheckpointError::StartedSince { container, name });
    }
    if !stopped {
        return Err(CheckpointError::Running {
            container,
            state: spec.status.state.to_string(),
        });
    }
    if kept.is_used() {
        return Err(CheckpointError::Used { container, name });
    }
    Ok(())
}
