//! Making a checkpoint.
//!
//! The container is paused, dumped, and its files are looked at. One that is to go on does so then; one that is to end stands still
//! until its dump is on the disk under its name, and is ended after that. Until the name is given everything can be taken back, from
//! then on everything is brought to its end: by this agent, or by the next one (`recover`).

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;
use tranship_core::container::{ContainerState, RestartPolicy};
use tranship_core::fault::FaultKind;
use tranship_core::ids::CheckpointName;
use tranship_core::storage::ElementPlace;
use tranship_core::{ContainerSpec, Engine, EngineError, Fault, MigrationId};
use tranship_migrate::failpoint;

use super::error::CheckpointError;
use super::look::{self, Look};
use super::store::{About, Begun, Kept, New, Store};
use super::{CheckpointCreated, Checkpoints, CreateCheckpoint, blocking, images};

/// Bytes of disk beyond what the container uses that must be free: files of CRIU, and what others write meanwhile.
const MARGIN: u64 = 64 << 20;
/// How long an engine is waited for that does not answer, and how often it is asked.
const ENGINE_AWAY: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(500);
/// How long what was killed may be seen running.
const DYING: Duration = Duration::from_secs(2);

impl Checkpoints {
    /// Makes a checkpoint of a running container.
    ///
    /// # Errors
    /// What stands in the way (`checkpoint.…`, `live.…`, `container.…`), and what the engine says. The container goes on then as if
    /// nothing had happened.
    pub async fn create(&self, asked: &CreateCheckpoint) -> Result<CheckpointCreated, Fault> {
        let store = self.store().await?;
        let spec = self.engine().inspect(&asked.container).await?;
        let on = |fault: Fault| fault.on_container(spec.name.clone());
        let connections = self.look_ahead(&store, &spec).await.map_err(on)?;
        let hold = self.registry.hold(&new_id()?, &spec)?;
        let name = match &asked.name {
            Some(name) => name.clone(),
            None => CheckpointName::new(crate::node::now_ms().to_string())
                .map_err(|error| Fault::new("checkpoint.name", FaultKind::Bug, error.to_string()))?,
        };
        if store.holds(&spec.id, &name) {
            return Err(on(Fault::of(&CheckpointError::Exists {
                container: spec.name.clone(),
                name: name.to_string(),
            })));
        }
        let memory_bytes = connections.bytes;
        let begun = Begun {
            container: spec.id.clone(),
            started_at: spec.status.started_at.clone(),
            restart_policy: spec.restart_policy.clone(),
            leave_running: asked.leave_running,
            memory_bytes,
        };
        let kept = self.make(&store, &spec, &name, &begun).await.map_err(on)?;
        drop(hold);
        let places = |wanted: fn(&Look) -> bool| {
            let looks = kept.about.files.iter().filter(|look| wanted(look));
            looks.map(|look| look.at.to_string()).collect::<Vec<String>>()
        };
        Ok(CheckpointCreated {
            compared: places(|look| look.print.is_some()),
            not_compared: places(|look| look.print.is_none()),
            connections: connections.connections,
            checkpoint: self.info(&kept).await?,
        })
    }

    /// What can be told before anything is done.
    async fn look_ahead(
        &self,
        store: &Store,
        spec: &ContainerSpec,
    ) -> Result<tranship_core::memory::MemoryReport, Fault> {
        if spec.status.state != ContainerState::Running {
            return Err(Fault::of(&CheckpointError::NotRunning {
                container: spec.name.clone(),
                state: spec.status.state.to_string(),
            }));
        }
        if spec.auto_remove {
            return Err(Fault::of(&CheckpointError::AutoRemove {
                container: spec.name.clone(),
            }));
        }
        let node = self.engine().live_facts().await?;
        let report = self.engine().memory(spec).await?.ok_or_else(|| {
            Fault::new(
                "live.unseen",
                FaultKind::Environment,
                "the agent does not see the container's processes",
            )
            .with_hint("run the engine and the agent in the same namespaces")
        })?;
        let mut obstacles = node.obstacles.iter().chain(&report.obstacles);
        if let Some(first) = obstacles.next() {
            let fault = Fault::new(first.code.clone(), FaultKind::Environment, first.message.clone());
            let fault = obstacles.fold(fault, |fault, other| fault.because(other.message.clone()));
            return Err(if first.remedy.is_empty() {
                fault
            } else {
                fault.with_hint(first.remedy.clone())
            });
        }
        if report.locks && !node.restores_locks {
            return Err(Fault::new(
                "live.locks",
                FaultKind::Environment,
                "it holds locks on files, which a restore by the engine leaves out unless it is told to",
            )
            .with_hint("put the line `file-locks` into /etc/criu/runc.conf"));
        }
        room_for(store, report.bytes)?;
        Ok(report)
    }

    async fn make(
        &self,
        store: &Store,
        spec: &ContainerSpec,
        name: &CheckpointName,
        begun: &Begun,
    ) -> Result<Kept, Fault> {
        let new = store.begin(name, begun)?;
        let made = self.take(spec, name, begun, &new).await;
        if let Err(mut fault) = made {
            if let Err(left) = undo(self.engine(), begun).await {
                fault = left.because(fault.to_string());
                // What is left is looked at by the next agent.
                return Err(fault);
            }
            new.remove()?;
            return Err(fault);
        }
        let kept = match new.keep() {
            Ok(kept) => kept,
            Err(error) if new.is_there() => {
                undo(self.engine(), begun).await?;
                new.remove()?;
                return Err(error.into());
            }
            // It has its name, and whether that lasts is not known. The next agent sees it, and brings it to the one end or the other.
            Err(error) => {
                let fault = Fault::of(&error).with_kind(FaultKind::InDoubt);
                return Err(fault.with_hint(
                    "the container may be paused: the agent settles that when it starts the next time",
                ));
            }
        };
        let place = failpoint::reach("checkpoint.kept").await;
        finish(self.engine(), &kept).await?;
        place?;
        Ok(kept)
    }

    /// Everything up to the moment when it gets its name.
    async fn take(
        &self,
        spec: &ContainerSpec,
        name: &CheckpointName,
        begun: &Begun,
        new: &New,
    ) -> Result<(), Fault> {
        let engine = self.engine();
        let key = self.node_key(true).await?;
        if !begun.leave_running && !begun.restart_policy.is_never() {
            engine
                .set_restart_policy(&begun.container, &RestartPolicy::never())
                .await?;
        }
        engine.pause(&begun.container).await?;
        failpoint::reach("checkpoint.paused").await?;
        engine.dump(&begun.memory()).await?;
        failpoint::reach("checkpoint.dumped").await?;
        let files = look::at_files_of(self.registry.ports(), spec).await?;
        stands(engine, begun).await?;
        if begun.leave_running {
            engine.unpause(&begun.container).await?;
        }
        let dumped = images_of(engine, begun).await?;
        let counted = dumped.clone();
        let bytes = blocking(move || images::bytes_in(&counted)).await?;
        let about = About::new(name.clone(), spec, begun, bytes, files);
        let context = new.describe(&about)?;
        let memory = new.memory();
        blocking(move || images::pack(&dumped, &memory, &key, &context)).await?;
        failpoint::reach("checkpoint.sealed").await?;
        if !begun.leave_running {
            stands(engine, begun).await?;
        }
        Ok(())
    }
}

/// A random id for what is done with a container.
pub(super) fn new_id() -> Result<MigrationId, Fault> {
    let mut random = [0u8; 8];
    let filled = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    let bug = |why: String| Fault::new("agent.random", FaultKind::Environment, why);
    filled.map_err(|error| bug(error.to_string()))?;
    MigrationId::new(tranship_core::ids::hex(&random)).map_err(|error| bug(error.to_string()))
}

/// The directory with the images of a container's dump, whose path and whose parents belong to root alone.
pub(super) async fn images_of(engine: &dyn Engine, begun: &Begun) -> Result<PathBuf, Fault> {
    match engine.locate(&begun.memory()).await? {
        ElementPlace::Directory { path, .. } => Ok(path),
        ElementPlace::Archive { .. } => Err(Fault::of(&CheckpointError::Root)),
    }
}

fn room_for(store: &Store, bytes: u64) -> Result<(), CheckpointError> {
    // It is made when it is needed; the file system is that of what is above.
    let place = store.root().ancestors().find(|path| path.is_dir());
    let Some(space) = place.and_then(|path| rustix::fs::statvfs(path).ok()) else {
        return Ok(());
    };
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let needed = bytes.saturating_add(MARGIN);
    if free < needed {
        return Err(CheckpointError::NoSpace {
            path: store.root().to_owned(),
            needed,
            free,
        });
    }
    Ok(())
}

/// It must stand as it was paused: what somebody let go on has written what the dump does not know.
async fn stands(engine: &dyn Engine, begun: &Begun) -> Result<(), Fault> {
    let status = engine.status(&begun.container).await?;
    if status.state == ContainerState::Paused && status.started_at == begun.started_at {
        return Ok(());
    }
    Err(Fault::new(
        "container.changed",
        FaultKind::RolledBack,
        format!(
            "it is {} although it was to stand still for its checkpoint",
            status.state
        ),
    )
    .with_hint("somebody, or a restart of the engine, let it go on or ended it; run the command again"))
}

/// Gives the restart policy back that was parked, unless somebody has set another one meanwhile.
pub(super) async fn unpark(
    engine: &dyn Engine,
    begun: &Begun,
    now: &RestartPolicy,
) -> Result<(), EngineError> {
    if begun.leave_running || begun.restart_policy.is_never() || !now.is_never() {
        return Ok(());
    }
    engine
        .set_restart_policy(&begun.container, &begun.restart_policy)
        .await
}

/// Takes back what was done for a checkpoint that has no name yet: the container goes on from where it stands. An engine that is away,
/// as it is while it is restarted, is waited for.
///
/// # Errors
/// `checkpoint.not-resumed`: it could not be let go on.
pub(super) async fn undo(engine: &dyn Engine, begun: &Begun) -> Result<(), Fault> {
    // A dump that is under way puts the freezer back at its end into the state that it found.
    let dumped = engine.has_dump(&begun.memory()).await;
    tracing::debug!(?dumped, "the dump of a checkpoint that is taken back");
    let since = Instant::now();
    let undone = loop {
        match let_go_on(engine, begun).await {
            Err(error) if is_away(&error) && since.elapsed() < ENGINE_AWAY => tokio::time::sleep(AGAIN).await,
            done => break done,
        }
    };
    forget(engine, begun).await;
    undone.map_err(|error| {
        Fault::new(
            "checkpoint.not-resumed",
            FaultKind::InDoubt,
            "the engine did not let the container go on that was paused for its checkpoint",
        )
        .because(error.to_string())
        .with_hint("let it go on with `docker unpause`; so does the next agent that starts")
    })
}

async fn let_go_on(engine: &dyn Engine, begun: &Begun) -> Result<(), EngineError> {
    let status = match engine.status(&begun.container).await {
        Err(EngineError::NotFound { .. }) => return Ok(()),
        status => status?,
    };
    if !begun.leave_running && !begun.restart_policy.is_never() {
        engine
            .set_restart_policy(&begun.container, &begun.restart_policy)
            .await?;
    }
    if status.state == ContainerState::Paused && status.started_at == begun.started_at {
        engine.unpause(&begun.container).await?;
    }
    Ok(())
}

fn is_away(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::Unreachable { .. } | EngineError::Uncertain { .. }
    )
}

/// Takes the dump away. It holds whatever the processes knew, so failing at that is said.
pub(super) async fn forget(engine: &dyn Engine, begun: &Begun) {
    if let Err(error) = engine.forget(&begun.memory()).await {
        tracing::error!("a dump of the memory of {} is left: {error}", begun.container);
    }
}

/// Brings a checkpoint that has its name to its end: the container goes on, or is ended. One that ran on by itself meanwhile, as after a
/// restart of the engine, has left its dump behind, and keeps running without a checkpoint.
///
/// # Errors
/// `container.changed` for such a one; `checkpoint.not-ended`; what the engine says.
pub(super) async fn finish(engine: &dyn Engine, kept: &Kept) -> Result<(), Fault> {
    let begun = &kept.about.begun;
    if begun.leave_running {
        undo(engine, begun).await?;
        return Ok(kept.finished()?);
    }
    let since = Instant::now();
    let mut seen_running = false;
    loop {
        let error = match end(engine, begun).await {
            Ok(true) => break,
            // What was killed while it stood still may be on its way out.
            Ok(false) if !seen_running => {
                seen_running = true;
                tokio::time::sleep(DYING).await;
                continue;
            }
            Ok(false) => {
                // The memory goes on where it is: nothing else may go on from it any more.
                kept.remove()?;
                undo(engine, begun).await?;
                return Err(Fault::new(
                    "container.changed",
                    FaultKind::RolledBack,
                    "it went on by itself before it could be ended, and runs without a checkpoint",
                )
                .with_hint("somebody, or a restart of the engine, let it go on; run the command again"));
            }
            Err(error) => error,
        };
        // The signal may be on its way: its memory is lost then, but for the checkpoint, which stays.
        if since.elapsed() > ENGINE_AWAY {
            return Err(Fault::new(
                "checkpoint.not-ended",
                FaultKind::InDoubt,
                "the checkpoint is made, and the engine did not end the container, which stands still",
            )
            .because(error.to_string())
            .with_hint("end it with `docker kill`; so does the next agent that starts"));
        }
        tokio::time::sleep(AGAIN).await;
    }
    forget(engine, begun).await;
    Ok(kept.finished()?)
}

/// Ends what stands still since its dump. Says whether it has ended, and not gone on.
async fn end(engine: &dyn Engine, begun: &Begun) -> Result<bool, EngineError> {
    let status = match engine.status(&begun.container).await {
        Err(EngineError::NotFound { .. }) => return Ok(true),
        status => status?,
    };
    match status.state {
        ContainerState::Paused if status.started_at == begun.started_at => {
            engine.kill(&begun.container).await?;
            Ok(true)
        }
        ContainerState::Paused | ContainerState::Running | ContainerState::Restarting => Ok(false),
        _ => Ok(true),
    }
}
