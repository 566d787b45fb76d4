//! Making a checkpoint.
//!
//! The container is paused, dumped, and its files are looked at. One that is to go on does so then; one that is to end stands still
//! until its dump is on the disk under its name, and is ended after that (`finish`). Until it is ended everything can be taken back: by
//! this agent, as often as it takes, or by the next one (`recover`).

use std::path::PathBuf;
use std::sync::Arc;

use tranship_core::container::{ContainerState, RestartPolicy};
use tranship_core::fault::FaultKind;
use tranship_core::ids::CheckpointName;
use tranship_core::memory::DumpKind;
use tranship_core::storage::ElementPlace;
use tranship_core::{ContainerSpec, Engine, EngineError, Fault, MigrationId};
use tranship_migrate::failpoint;

use super::error::CheckpointError;
use super::finish::Open;
use super::look::{self, Look, Moment};
use super::store::{About, Begun, Kept, New, Store};
use super::{CheckpointCreated, Checkpoints, CreateCheckpoint, blocking, images};

/// Bytes of disk beyond what the container uses that must be free: files of CRIU, and what others write meanwhile.
const MARGIN: u64 = 64 << 20;

/// What keeps a container from moving because there would be another one for a while.
const ONLY_FOR_MOVES: [&str; 1] = ["podman.wire-address"];

impl Checkpoints {
    /// Makes a checkpoint of a running container.
    ///
    /// # Errors
    /// What stands in the way (`checkpoint.…`, `live.…`, `container.…`), and what the engine says. The container goes on then as if
    /// nothing had happened; where that did not succeed (`checkpoint.not-resumed` and others in doubt) it is tried again.
    pub async fn create(self: &Arc<Self>, asked: &CreateCheckpoint) -> Result<CheckpointCreated, Fault> {
        let store = self.store().await?;
        let spec = self.engine().inspect(&asked.container).await?;
        let on = |fault: Fault| fault.on_container(spec.name.clone());
        let connections = self.look_ahead(&store, &spec).await.map_err(on)?;
        let hold = self.registry.hold(&new_id()?, &spec)?;
        let spec = self.still_running(&spec).await?;
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
            restart_policy: policy_of(&store, &spec)?,
            leave_running: asked.leave_running,
            memory_bytes,
        };
        let mut left = None;
        let made = self.make(&store, &spec, &name, &begun, &mut left).await;
        match left {
            Some(open) => self.settle_later(hold, open),
            None => drop(hold),
        }
        let kept = made.map_err(on)?;
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
        // What does not move was never restored either; a unit would start afresh what is ended here.
        let uncarried = spec.ties.uncarried.iter();
        let uncarried = uncarried.filter(|obstacle| !ONLY_FOR_MOVES.contains(&obstacle.code.as_str()));
        // What ends for a checkpoint that cannot be restored would be lost.
        let at_restore = self.engine().restore_obstacles(spec).await?;
        let mut obstacles = uncarried
            .chain(&node.obstacles)
            .chain(&report.obstacles)
            .chain(&at_restore);
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
        look::is_possible(self.registry.ports(), spec).await?;
        room_for(store, report.bytes)?;
        Ok(report)
    }

    /// Asked again once it is held: it must be the run that was looked at, and nobody may have paused it.
    async fn still_running(&self, before: &ContainerSpec) -> Result<ContainerSpec, Fault> {
        let gone = || {
            Fault::from(EngineError::NotFound {
                what: "container",
                name: before.name.clone(),
            })
        };
        let spec = self.spec_of(&before.id).await?.ok_or_else(gone)?;
        let same_run = spec.status.started_at == before.status.started_at;
        if same_run && spec.status.state == ContainerState::Running {
            return Ok(spec);
        }
        let message = format!(
            "it is {} by now, or was started anew meanwhile",
            spec.status.state
        );
        Err(Fault::new("container.changed", FaultKind::Environment, message)
            .on_container(spec.name)
            .with_hint("run the command again"))
    }

    /// Makes it. What could not be taken back is put into `left`.
    async fn make(
        &self,
        store: &Store,
        spec: &ContainerSpec,
        name: &CheckpointName,
        begun: &Begun,
        left: &mut Option<Open>,
    ) -> Result<Kept, Fault> {
        let new = store.begin(name, begun)?;
        if let Err(fault) = self.take(spec, name, begun, &new).await {
            return Err(self.give_up(Open::New(new), fault, left).await);
        }
        let kept = match new.keep() {
            Ok(kept) => kept,
            // It may have its name already.
            Err(error) => return Err(self.give_up(Open::New(new), error.into(), left).await),
        };
        let place = failpoint::reach("checkpoint.kept").await;
        if let Err(fault) = self.finish(&kept).await {
            return Err(self.give_up(Open::Kept(kept), fault, left).await);
        }
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
        self.park(begun).await?;
        new.pausing(true)?;
        failpoint::reach("checkpoint.pausing").await?;
        engine.pause(&begun.container).await?;
        stands(engine, begun).await?;
        failpoint::reach("checkpoint.paused").await?;
        engine.dump(&begun.memory(), DumpKind::Whole).await?;
        failpoint::reach("checkpoint.dumped").await?;
        let files = look::at_files_of(self.registry.ports(), spec, Moment::Dump).await?;
        stands(engine, begun).await?;
        if begun.leave_running {
            engine.unpause(&begun.container).await?;
            new.pausing(false)?;
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

/// Whether so much fits on the disk.
///
/// # Errors
/// `checkpoint.no-space`.
pub(super) fn room_for(store: &Store, bytes: u64) -> Result<(), CheckpointError> {
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

/// The restart policy that is the container's own. Where one of its checkpoints had it parked, and it was started by hand since, that
/// one knows it.
fn policy_of(store: &Store, spec: &ContainerSpec) -> Result<RestartPolicy, Fault> {
    if !spec.restart_policy.is_never() {
        return Ok(spec.restart_policy.clone());
    }
    let parked = |kept: &Kept| {
        let begun = &kept.about.begun;
        begun.container == spec.id
            && !begun.leave_running
            && !begun.restart_policy.is_never()
            && !kept.is_used()
    };
    let newest = store.all()?.into_iter().rev().find(parked);
    Ok(newest.map_or_else(
        || spec.restart_policy.clone(),
        |kept| kept.about.begun.restart_policy,
    ))
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
