//! What an agent does about checkpoints that one before it left half done.

use std::sync::Arc;
use std::time::Duration;

use tranship_core::Fault;
use tranship_core::container::{ContainerState, RestartPolicy};

use super::Checkpoints;
use super::create::{finish, forget, new_id, undo, unpark};
use super::store::{Kept, New, Store};

/// How soon it is tried again where the engine does not answer, and how soon in the end.
const AGAIN: Duration = Duration::from_secs(2);
const AGAIN_IN_THE_END: Duration = Duration::from_secs(60);

impl Checkpoints {
    /// Settles what is half done, however long the engine is away. Whoever asks for something meanwhile waits for it, or hears why it
    /// cannot be done.
    pub async fn settle(self: Arc<Self>) {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let mut again = AGAIN;
        while let Err(fault) = self.store().await {
            tracing::warn!("checkpoints are not settled yet: {fault}");
            tokio::time::sleep(again).await;
            again = (again * 2).min(AGAIN_IN_THE_END);
        }
    }

    /// Those that have no name yet are taken back, the others brought to their end.
    pub(super) async fn recover(&self, store: &Store) -> Result<(), Fault> {
        for new in store.unfinished()? {
            self.take_back(&new).await?;
        }
        for kept in store.all()? {
            if kept.is_unfinished() {
                let _hold = self.held(&kept).await?;
                // Its checkpoint is gone where it went on by itself, which is an end as well.
                match finish(self.engine(), &kept).await {
                    Err(fault) if fault.code == "container.changed" => tracing::warn!("{fault}"),
                    done => done?,
                }
            } else if kept.is_restoring() {
                self.end_restore(&kept).await?;
            }
        }
        Ok(())
    }

    async fn held(&self, kept: &Kept) -> Result<Option<crate::registry::Hold>, Fault> {
        match self.spec_of(&kept.about.begun.container).await? {
            Some(spec) => Ok(Some(self.registry.hold(&new_id()?, &spec)?)),
            None => Ok(None),
        }
    }

    async fn take_back(&self, new: &New) -> Result<(), Fault> {
        if let Some(begun) = new.begun() {
            let _hold = match self.spec_of(&begun.container).await? {
                Some(spec) => Some(self.registry.hold(&new_id()?, &spec)?),
                None => None,
            };
            undo(self.engine(), &begun).await?;
        }
        Ok(new.remove()?)
    }

    /// An engine answers for a container only once a start of it has ended, so what is seen now is what came of the restore. An order
    /// that reaches it later finds no images.
    async fn end_restore(&self, kept: &Kept) -> Result<(), Fault> {
        let _hold = self.held(kept).await?;
        let begun = &kept.about.begun;
        let spec = self.spec_of(&begun.container).await?;
        forget(self.engine(), begun).await;
        let Some(spec) = spec else {
            return Ok(kept.restoring(false)?);
        };
        let running = matches!(
            spec.status.state,
            ContainerState::Running | ContainerState::Paused | ContainerState::Restarting
        );
        if begun.leave_running {
            kept.used(false)?;
        } else if running || spec.status.started_at != begun.started_at {
            unpark(self.engine(), begun, &spec.restart_policy).await?;
            return Ok(kept.remove()?);
        } else {
            kept.used(false)?;
            if spec.restart_policy == begun.restart_policy {
                self.engine()
                    .set_restart_policy(&begun.container, &RestartPolicy::never())
                    .await?;
            }
        }
        Ok(kept.restoring(false)?)
    }
}
