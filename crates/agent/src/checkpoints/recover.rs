//! What is done about checkpoints that were left half done, by an agent before this one or by an engine that was away.

use std::sync::Arc;
use std::time::Duration;

use tranship_core::{ContainerId, ContainerSpec, Fault};

use super::Checkpoints;
use super::create::new_id;
use super::finish::{Open, is_up};
use super::spec_by_id;
use super::store::{Kept, Receipt, Store};
use crate::registry::Hold;

/// How soon it is tried again where the engine does not answer, and how soon in the end.
const SETTLE_AGAIN: Duration = Duration::from_secs(2);
const SETTLE_AGAIN_IN_THE_END: Duration = Duration::from_secs(60);

/// What came of a restore whose end was not seen, or that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restored {
    /// The container did not go on.
    Never,
    /// It was started: from the checkpoint, or by somebody.
    Maybe,
}

impl Checkpoints {
    /// Settles what is half done, however long the engine is away. Whoever asks for something meanwhile waits for it, or hears why it
    /// cannot be done.
    pub async fn settle(self: Arc<Self>) {
        if !rustix::process::geteuid().is_root() {
            // Such an agent has no checkpoints in which anything is to be noted.
            self.registry.prune();
            return;
        }
        let mut again = SETTLE_AGAIN;
        while let Err(fault) = self.store().await {
            tracing::warn!("checkpoints are not settled yet: {fault}");
            tokio::time::sleep(again).await;
            again = (again * 2).min(SETTLE_AGAIN_IN_THE_END);
        }
    }

    /// Goes on trying to settle what this agent could not. The container stays held until then, so that nothing else begins with it.
    pub(super) fn settle_later(self: &Arc<Self>, hold: Hold, open: Open) {
        let checkpoints = Arc::clone(self);
        tokio::spawn(async move {
            let mut again = SETTLE_AGAIN;
            while let Err(fault) = checkpoints.settle_one(&open).await {
                tracing::warn!("a checkpoint is not settled yet: {fault}");
                tokio::time::sleep(again).await;
                again = (again * 2).min(SETTLE_AGAIN_IN_THE_END);
            }
            drop(hold);
        });
    }

    /// Those that are not over are taken back, unless their container was ended for them.
    pub(super) async fn recover(&self, store: &Store) -> Result<(), Fault> {
        // Before anything that may fail, and before records of migrations go. Where something could not be noted, the records stay
        // for the next agent.
        if self.note_moves(store).await? {
            self.registry.prune();
        }
        for new in store.unfinished()? {
            let _hold = match new.begun()? {
                Some(begun) => self.held(&begun.container).await?,
                None => None,
            };
            self.settle_one(&Open::New(new)).await?;
        }
        for kept in store.all()? {
            if kept.is_unfinished() || kept.is_restoring() {
                let _hold = self.held(&kept.about.begun.container).await?;
                self.settle_one(&Open::Kept(kept)).await?;
            }
        }
        Ok(())
    }

    /// Notes of checkpoints, and of those that were exported, whether their containers went to another node. That is done whenever an
    /// agent begins, which still knows all migrations that are on the disk. Notes of containers that are gone go with them. One that
    /// cannot be looked at keeps none of the others from it; then the answer is `false`.
    ///
    /// # Errors
    /// `checkpoint.store` where it is not known which there are.
    async fn note_moves(&self, store: &Store) -> Result<bool, Fault> {
        let mut all = true;
        let mut noted = |container: &ContainerId, done: Result<(), Fault>| {
            if let Err(fault) = done {
                tracing::warn!("whether {container} was moved is not noted: {fault}");
                all = false;
            }
        };
        for kept in store.all()? {
            let container = &kept.about.begun.container;
            let done = match self.spec_of(container).await {
                Ok(Some(spec)) => self.has_moved(&kept, &spec).map(drop),
                other => other.map(drop),
            };
            noted(container, done);
        }
        for (container, receipt) in store.receipts()? {
            let done = match self.spec_of(&container).await {
                Ok(Some(spec)) => self.note_move(&receipt, &spec).map(drop),
                Ok(None) => receipt.remove().map_err(Fault::from),
                Err(fault) => Err(fault),
            };
            noted(&container, done);
        }
        Ok(all)
    }

    /// Whether the container of a checkpoint that was exported belongs to another node, or is on its way there. The first is noted.
    pub(super) fn note_move(&self, receipt: &Receipt, spec: &ContainerSpec) -> Result<bool, Fault> {
        let moved = self.registry.moved(spec);
        if moved.as_ref().is_some_and(|moved| moved.over) {
            receipt.moved()?;
        }
        Ok(moved.is_some() || receipt.is_moved())
    }

    async fn held(&self, container: &ContainerId) -> Result<Option<Hold>, Fault> {
        match self.spec_of(container).await? {
            Some(spec) => Ok(Some(self.registry.hold_any(&new_id()?, &spec)?)),
            None => Ok(None),
        }
    }

    /// Whether the engine may have forgotten a restore that was ordered: Podman does when the machine is started anew.
    async fn forgets_restores(&self, kept: &Kept) -> Result<bool, Fault> {
        Ok(kept.is_used_before_this_boot() && self.engine().facts().await?.kind == "podman")
    }

    /// Finds out what came of a restore. An engine answers for a container only once a start of it has ended, and an order that reaches
    /// it later finds no images. One that may have gone on from its memory keeps its checkpoint, as a used one: whether it did is not
    /// known here.
    ///
    /// # Errors
    /// `checkpoint.dump-left`; what the engine says. It is to be tried again then.
    pub(super) async fn end_restore(&self, kept: &Kept) -> Result<Restored, Fault> {
        let begun = &kept.about.begun;
        self.forget(begun).await?;
        let ordered = kept.is_used();
        let mut restored = Restored::Never;
        if !ordered {
            kept.others_are_as_before(None)?;
        } else if let Some(spec) = spec_by_id(self.engine(), &begun.container).await? {
            self.engine().take_restore_back(&begun.container).await?;
            let forgotten = self.forgets_restores(kept).await?;
            let goes_on = is_up(&spec.status) || self.engine().has_strays(&begun.container).await?;
            if !goes_on && !forgotten {
                kept.others_are_as_before(Some(&spec.status.started_at))?;
            }
            let started = !kept.is_of_run_begun(&spec.status.started_at) || forgotten;
            if goes_on || (started && !begun.leave_running) {
                restored = Restored::Maybe;
                kept.spoil_copies()?;
                self.unpark(begun, &spec).await?;
            }
            self.unpark_for_others(kept, &spec).await?;
        }
        kept.others_are_over()?;
        // What was left running goes back as often as it is asked to.
        if ordered && (restored == Restored::Never || begun.leave_running) {
            kept.used(false)?;
        }
        kept.restoring(false)?;
        Ok(restored)
    }
}
