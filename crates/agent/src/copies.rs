//! Copies of volumes outside migrations: from node to node, into snapshots, and comparing.
//!
//! Containers that are paused for a copy are noted in a file first, so that an agent that died meanwhile lets them go on when it
//! starts again. So are volumes that are made for a copy.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tranship_core::container::ContainerState;
use tranship_core::fault::FaultKind;
use tranship_core::storage::{
    ElementAt, ElementPlace, ElementRoute, ElementSink, ElementSource, Pipe, ProgressFn, RoundOptions,
    RoundProgress, RoundReport, VolumeSpec,
};
use tranship_core::{ContainerId, Engine, EngineError, Fault, MigrationId};
use tranship_migrate::Ports;
use tranship_migrate::departure::meets_before;

use crate::api::{ReceiveCopy, SendCopy};
use crate::guids::{Guids, is_guid};
use crate::unfinished::Unfinished;

/// How often letting containers go on is tried before a person has to.
const THAW_TRIES: u32 = 120;
const THAW_AGAIN: Duration = Duration::from_millis(500);

/// A copy that arrives here.
struct Receiving {
    volume: VolumeSpec,
    /// The volume was made for this copy.
    made: bool,
    place: ElementPlace,
    sink: tokio::sync::Mutex<Box<dyn ElementSink>>,
    given_up: CancellationToken,
}

/// The copies that this agent takes part in.
pub struct Copies {
    ports: Ports,
    directory: PathBuf,
    receiving: Mutex<HashMap<MigrationId, Arc<Receiving>>>,
    /// Volumes that are made for what arrives here.
    pub(crate) unfinished: Unfinished,
    /// Held while it is found out what an agent before this one left unfinished.
    settling: tokio::sync::Mutex<()>,
}

/// What is paused for a copy.
#[derive(Debug, Serialize, Deserialize)]
struct Frozen {
    containers: Vec<ContainerId>,
}

fn exists(name: &str) -> Fault {
    Fault::new(
        "volume.exists",
        FaultKind::Environment,
        format!("there is a volume {name:?} already"),
    )
    .with_hint("--update makes it equal to the source, and removes what the source does not have; or name another one")
}

impl Copies {
    /// Keeps its notes under `state_directory`.
    #[must_use]
    pub fn new(ports: Ports, state_directory: &Path) -> Arc<Self> {
        Arc::new(Self {
            ports,
            directory: state_directory.join("copies"),
            receiving: Mutex::default(),
            unfinished: Unfinished::new(state_directory.join("unfinished")),
            settling: tokio::sync::Mutex::new(()),
        })
    }

    /// Where archives are kept while they are passed on.
    pub(crate) fn spool(&self) -> PathBuf {
        self.directory.with_file_name("spool")
    }

    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<MigrationId, Arc<Receiving>>> {
        self.receiving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of copies that arrive here.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.all().len()
    }

    /// Lets containers go on that an agent which died had paused, and takes away the volumes that it had not filled.
    pub async fn recover(&self) {
        self.thaw_noted().await;
        if let Err(fault) = self.remove_unfinished().await {
            // The notes stay, and the next agent looks at them.
            tracing::warn!("a volume that was not filled could not be taken away: {fault}");
        }
    }

    /// Waits until it is found out what an agent before this one left unfinished.
    pub(crate) async fn settled(&self) {
        drop(self.settling.lock().await);
    }

    async fn remove_unfinished(&self) -> Result<(), Fault> {
        let _settling = self.settling.lock().await;
        let notes = self.unfinished.all();
        if notes.is_empty() {
            return Ok(());
        }
        let engine = &self.ports.engine;
        let volumes = engine.volume_specs().await?;
        for note in notes {
            if volumes.iter().any(|volume| note.means(volume)) {
                tracing::warn!(volume = %note.name, "it was being filled when the agent ended, and is taken away");
                let name = note.name.clone();
                let place = self.ports.directory(&ElementAt::Volume { name }).await?;
                self.keep(&place, &note.guid).await;
                engine.remove_volume(&note.name).await?;
            }
            self.unfinished.forget(&note.name);
        }
        Ok(())
    }

    async fn thaw_noted(&self) {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        for path in entries.map(|e| e.path()) {
            let frozen = std::fs::read(&path)
                .ok()
                .and_then(|bytes| serde_json::from_slice::<Frozen>(&bytes).ok());
            let Some(frozen) = frozen else { continue };
            // A note that stays is looked at by the next agent.
            if thaw(self.ports.engine.as_ref(), &frozen.containers)
                .await
                .is_empty()
            {
                remove_note(&path);
            }
        }
    }

    /// Makes ready to take in a copy.
    ///
    /// # Errors
    /// `volume.exists`, `volume.in-use`; what the engine or the storage says.
    pub async fn receive(&self, id: &MigrationId, asked: ReceiveCopy) -> Result<(), Fault> {
        let guid = &asked.volume.guid;
        if !guid.is_empty() && !is_guid(guid) {
            let text = format!("{guid:?} is no GUID of a volume");
            return Err(Fault::new("request.invalid", FaultKind::Usage, text));
        }
        let engine = &self.ports.engine;
        let _settling = self.settling.lock().await;
        let name = asked.volume.name.clone();
        let there = engine.volume_specs().await?.into_iter().find(|v| v.name == name);
        let made = there.is_none();
        if let Some(there) = &there {
            if !asked.update {
                return Err(exists(&name));
            }
            if let Some(user) = there.users.iter().find(|u| u.running) {
                return Err(Fault::new(
                    "volume.in-use",
                    FaultKind::Environment,
                    format!(
                        "the volume {name:?} is in use by {}, under whose feet nothing is changed",
                        user.name
                    ),
                )
                .with_hint("stop it first, or copy to another name"));
            }
            // What an earlier copy left is brought up to date, and stays.
            self.unfinished.forget(&name);
        }
        let at = ElementAt::Volume { name: name.clone() };
        if made {
            match engine.create_volume(&asked.volume).await {
                Err(EngineError::Conflict { .. }) => return Err(exists(&name)),
                done => done?,
            }
        }
        let opened = async {
            if made {
                self.unfinished.note(engine.as_ref(), &name, guid).await?;
            }
            let place = self.ports.directory(&at).await?;
            if made {
                self.bring_back(&place, &asked.volume.guid).await;
            }
            let sink = self.ports.storage.sink(&place, ElementRoute::Tree).await?;
            Ok::<_, Fault>((place, sink))
        };
        let (place, sink) = match opened.await {
            Ok(opened) => opened,
            Err(fault) => {
                if made {
                    engine.remove_volume(&name).await?;
                    self.unfinished.forget(&name);
                }
                return Err(fault);
            }
        };
        let receiving = Receiving {
            volume: asked.volume,
            made,
            place,
            sink: tokio::sync::Mutex::new(sink),
            given_up: CancellationToken::new(),
        };
        self.all().insert(id.clone(), Arc::new(receiving));
        Ok(())
    }

    /// Takes in one round.
    ///
    /// # Errors
    /// `copy.not-found`; what the storage says.
    pub async fn round(&self, id: &MigrationId, pipe: Pipe) -> Result<(), Fault> {
        let receiving = self.find(id)?;
        let mut sink = receiving.sink.lock().await;
        let pipe = tranship_migrate::breakable(pipe, &receiving.given_up);
        sink.round(pipe, Arc::new(|_: RoundProgress| {}))
            .await
            .map(|_| ())
    }

    /// The volume that a copy fills.
    ///
    /// # Errors
    /// `copy.not-found`.
    pub fn volume_of(&self, id: &MigrationId) -> Result<String, Fault> {
        Ok(self.find(id)?.volume.name.clone())
    }

    fn find(&self, id: &MigrationId) -> Result<Arc<Receiving>, Fault> {
        self.all().get(id).cloned().ok_or_else(|| {
            Fault::new(
                "copy.not-found",
                FaultKind::Environment,
                format!("no copy {id} is expected here"),
            )
        })
    }

    /// Ends a copy: it stays if it is `complete`, else what was made for it goes, kept aside for the next try. Over already is
    /// done well.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn end(&self, id: &MigrationId, complete: bool, guids: &Guids) -> Result<(), Fault> {
        let Some(receiving) = self.all().remove(id) else {
            return Ok(());
        };
        receiving.given_up.cancel();
        // Whoever writes in a thread of its own has come to an end when this is free.
        let _sink = receiving.sink.lock().await;
        let engine = &self.ports.engine;
        engine.release(&receiving.place).await?;
        let name = &receiving.volume.name;
        if complete {
            let here = engine.volume_specs().await?.into_iter().find(|v| &v.name == name);
            if let Some(here) = here {
                guids.set(&here, &receiving.volume.guid);
            }
        } else if receiving.made {
            self.keep(&receiving.place, &receiving.volume.guid).await;
            engine.remove_volume(name).await?;
        }
        if receiving.made {
            self.unfinished.forget(name);
        }
        Ok(())
    }

    async fn keep(&self, place: &ElementPlace, guid: &str) {
        if guid.is_empty() {
            return;
        }
        let key = format!("partial-{guid}");
        let storage = &self.ports.storage;
        let kept = async {
            storage.drop_aside(place, &key).await?;
            storage.set_aside(place, &key).await
        };
        if let Err(fault) = kept.await {
            tracing::debug!("what arrived is not kept: {fault}");
        }
    }

    async fn bring_back(&self, place: &ElementPlace, guid: &str) {
        if guid.is_empty() {
            return;
        }
        if let Err(fault) = self
            .ports
            .storage
            .put_back(place, &format!("partial-{guid}"))
            .await
        {
            tracing::debug!("nothing is there from an earlier try: {fault}");
        }
    }

    /// Sends a volume in rounds: while it is written to, and, if that is asked for, once more while its users are paused.
    ///
    /// # Errors
    /// What the engine, the storage or the other side says. Paused containers go on whatever happens.
    pub async fn send<F>(
        &self,
        id: &MigrationId,
        asked: &SendCopy,
        given_up: &CancellationToken,
        progress: ProgressFn,
        pipe: impl Fn() -> F + Send + Sync,
    ) -> Result<Vec<RoundReport>, Fault>
    where
        F: Future<Output = Result<Pipe, Fault>> + Send,
    {
        let engine = &self.ports.engine;
        let place = match &asked.place {
            Some(place) => place.clone(),
            None => {
                let name = asked.volume.clone();
                self.ports.directory(&ElementAt::Volume { name }).await?
            }
        };
        let mut source = self.ports.storage.source(&place, &asked.options).await?;
        let mut reports = Vec::new();
        let sent = self
            .rounds(
                id,
                asked,
                given_up,
                &progress,
                &pipe,
                source.as_mut(),
                &mut reports,
            )
            .await;
        engine.release(&place).await?;
        sent.map(|()| reports)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one step of `send`, named for its own sake"
    )]
    async fn rounds<F>(
        &self,
        id: &MigrationId,
        asked: &SendCopy,
        given_up: &CancellationToken,
        progress: &ProgressFn,
        pipe: &(impl Fn() -> F + Send + Sync),
        source: &mut dyn ElementSource,
        reports: &mut Vec<RoundReport>,
    ) -> Result<(), Fault>
    where
        F: Future<Output = Result<Pipe, Fault>> + Send,
    {
        let users = self.running_users(&asked.volume).await?;
        // Nothing writes: one round is exact.
        let still = asked.place.is_some() || users.is_empty();
        let live = RoundOptions {
            frozen: still,
            durable: still || !asked.freeze,
        };
        let open = async || Ok::<_, Fault>(tranship_migrate::breakable(pipe().await?, given_up));
        reports.push(source.round(open().await?, live, Arc::clone(progress)).await?);
        if still && asked.place.is_none() {
            self.check_still(&asked.volume).await?;
        }
        if still || !asked.freeze {
            return Ok(());
        }
        let frozen = RoundOptions {
            frozen: true,
            durable: true,
        };
        // What is there is looked through while they still run.
        let mut begun = source.begin(open().await?, frozen).await?;
        if reports.last().is_some_and(|last| meets_before(last.entries)) {
            begun.meet().await?;
        }
        // A round may take hours, and others may have come to use the volume.
        let users = self.running_users(&asked.volume).await?;
        let note = self.directory.join(format!("{id}.json"));
        self.note(&note, &users)?;
        let mut done = Ok(());
        for container in &users {
            if let Err(error) = self.ports.engine.pause(container).await {
                done = Err(Fault::from(error));
                break;
            }
        }
        if done.is_ok() {
            let round = async {
                let report = begun.go(Arc::clone(progress)).await?;
                self.check_still(&asked.volume).await?;
                Ok(report)
            };
            done = round.await.map(|report| reports.push(report));
        }
        let stuck = thaw(self.ports.engine.as_ref(), &users).await;
        if stuck.is_empty() {
            remove_note(&note);
            return done;
        }
        let names: Vec<_> = stuck.iter().map(ToString::to_string).collect();
        Err(Fault::new(
            "copy.not-resumed",
            FaultKind::InDoubt,
            format!(
                "the engine did not let go on what was paused for the copy: {}",
                names.join(", ")
            ),
        )
        .with_hint("let it go on with `docker unpause` once the engine answers again; so does the next agent that starts"))
    }

    /// Nobody writes to the volume: what is paused does not.
    async fn check_still(&self, volume: &str) -> Result<(), Fault> {
        let Some(user) = self.running_users(volume).await?.into_iter().next() else {
            return Ok(());
        };
        Err(Fault::new(
            "volume.shared",
            FaultKind::Environment,
            format!("the container {user} came to use the volume {volume:?} while it was copied"),
        )
        .with_hint("run the command again; what arrived is used"))
    }

    fn note(&self, path: &Path, containers: &[ContainerId]) -> Result<(), Fault> {
        use std::os::unix::fs::DirBuilderExt as _;
        let written = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .and_then(|()| {
                let frozen = Frozen {
                    containers: containers.to_vec(),
                };
                crate::store::write_durably(path, &serde_json::to_vec(&frozen)?)
            });
        written.map_err(|e| {
            Fault::new(
                "record.write",
                FaultKind::Environment,
                format!("what is paused could not be noted: {e}"),
            )
            .with_hint("the agent's state directory needs space and write permission")
        })
    }

    async fn running_users(&self, volume: &str) -> Result<Vec<ContainerId>, Fault> {
        let volumes = self.ports.engine.volume_specs().await?;
        let users = volumes
            .into_iter()
            .filter(|v| v.name == volume)
            .flat_map(|v| v.users);
        let mut running = Vec::new();
        for user in users.filter(|u| u.running) {
            // One that its user paused stands still as it is, and must not go on because of a copy.
            let state = self.ports.engine.status(&user.container).await?.state;
            if state != ContainerState::Paused {
                running.push(user.container);
            }
        }
        Ok(running)
    }
}

/// Lets containers go on, however often the engine has to be asked. One that is gone needs nothing, nor does one that somebody
/// else let go on. Those that it did not reach are returned.
async fn thaw(engine: &dyn Engine, containers: &[ContainerId]) -> Vec<ContainerId> {
    let mut stuck = Vec::new();
    for container in containers {
        for attempt in 1..=THAW_TRIES {
            match engine.unpause(container).await {
                Ok(()) | Err(EngineError::NotFound { .. }) => break,
                Err(_) if goes_on(engine, container).await => break,
                Err(error) if attempt == THAW_TRIES => {
                    tracing::error!("the container {container} could not be unpaused: {error}");
                    stuck.push(container.clone());
                }
                Err(_) => tokio::time::sleep(THAW_AGAIN).await,
            }
        }
    }
    stuck
}

/// The engine says that it is not paused.
async fn goes_on(engine: &dyn Engine, container: &ContainerId) -> bool {
    match engine.status(container).await {
        Ok(status) => status.state != ContainerState::Paused,
        Err(error) => matches!(error, EngineError::NotFound { .. }),
    }
}

fn remove_note(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!("{} could not be removed: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tranship_testkit::memory::{self, Failure, MemoryEngine};

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_let_go_on_is_told_and_what_goes_on_is_not() {
        let engine = MemoryEngine::new();
        let paused = engine.run("paused", &memory::image("app:1", 1), |_| {}).id;
        let runs = engine.run("runs", &memory::image("app:1", 1), |_| {}).id;
        engine.pause(&paused).await.unwrap();
        let gone = ContainerId::new("f".repeat(64)).unwrap();
        let all = [paused.clone(), runs, gone];
        // An engine that is away for longer than anybody waits.
        let away: Vec<_> = (0..1000).map(|call| (call, Failure::Before)).collect();
        engine.fail(&away);
        assert_eq!(thaw(&engine, &all[..1]).await, &all[..1]);
        engine.fail(&[]);
        assert_eq!(thaw(&engine, &all).await, []);
        assert_eq!(
            engine.status(&paused).await.unwrap().state,
            ContainerState::Running
        );
    }
}
