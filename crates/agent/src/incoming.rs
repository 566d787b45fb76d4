//! Ways in for sources: one listener per expected migration, and what happens when nobody is connected any more.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tranship_core::fault::FaultKind;
use tranship_core::{Fault, MigrationId};
use tranship_wire::h2::{self, ServerOptions};
use tranship_wire::tls::{PeerKey, PeerListener, PeerOffer};
use tranship_wire::{PeerIdentity, WireError};

use crate::api::{Expect, ReceiveFiles};
use crate::node;
use crate::registry::Registry;
use crate::server::PeerHandler;
use crate::state::Agent;
use crate::transfers::Permit;
use crate::ways::{WayIn, Ways};

/// How long a migration may be expected before its source connects.
const FIRST_CONTACT: Duration = Duration::from_secs(60);
/// How long a source may be away before an arrival that may end with its link is undone.
const AWAY: Duration = Duration::from_secs(10);
/// How long the way in stays open after the end, for a source that did not hear the last answer.
const AFTER_THE_END: Duration = Duration::from_secs(20);
/// How long it stays open where the source was never told: it may have committed, and be down for a while.
const UNTOLD: Duration = Duration::from_secs(60 * 60);
/// How often an undoing that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// The expected migrations.
pub struct Incoming {
    registry: Arc<Registry>,
    key: PeerKey,
    ways: Ways,
    doors: Mutex<HashMap<MigrationId, Arc<Door>>>,
}

/// One way in.
struct Door {
    connections: watch::Sender<usize>,
    closed: CancellationToken,
    /// The source has heard how it ended.
    told: AtomicBool,
    /// It is for files, not for a migration.
    files: Option<Permit>,
}

/// A connection of a source; it is counted until this is dropped.
pub struct Visit(Arc<Door>);

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.connections.send_modify(|n| *n -= 1);
    }
}

impl Door {
    fn visit(self: &Arc<Self>) -> Visit {
        self.connections.send_modify(|n| *n += 1);
        Visit(Arc::clone(self))
    }
}

impl Incoming {
    /// No ways in yet.
    #[must_use]
    pub fn new(registry: Arc<Registry>, key: PeerKey, ways: Ways) -> Arc<Self> {
        Arc::new(Self {
            registry,
            key,
            ways,
            doors: Mutex::default(),
        })
    }

    fn doors(&self) -> std::sync::MutexGuard<'_, HashMap<MigrationId, Arc<Door>>> {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of ways in that are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.doors().len()
    }

    /// Opens a way in for one migration, and remembers it for the case that the agent is restarted.
    ///
    /// # Errors
    /// `arrival.known` when there is one already; what the network or the state directory says.
    pub async fn expect(self: &Arc<Self>, agent: &Arc<Agent>, expect: Expect) -> Result<PeerOffer, Fault> {
        let id = expect.id;
        let listener = PeerListener::bind_everywhere(&self.key, expect.source).await;
        let listener = listener.map_err(|e| WireError::from(e).into_fault())?;
        let offer = listener.offer(node::reachable_addresses());
        let door = self.door(&id, None)?;
        let way = WayIn {
            source: expect.source,
            offer: offer.clone(),
        };
        if let Err(fault) = self.ways.keep_in(&id, &way) {
            self.doors().remove(&id);
            return Err(fault);
        }
        self.watch_over(agent, id, door, Some(listener));
        Ok(offer)
    }

    /// Opens a way in for files, which lives as long as the agent, at most.
    ///
    /// # Errors
    /// As [`Incoming::expect`].
    pub(crate) async fn expect_files(
        self: &Arc<Self>,
        agent: &Arc<Agent>,
        id: MigrationId,
        asked: ReceiveFiles,
    ) -> Result<PeerOffer, Fault> {
        let listener = PeerListener::bind_everywhere(&self.key, asked.source).await;
        let listener = listener.map_err(|e| WireError::from(e).into_fault())?;
        let offer = listener.offer(node::reachable_addresses());
        let door = self.door(&id, Some(Permit::new(asked)))?;
        self.watch_over(agent, id, door, Some(listener));
        Ok(offer)
    }

    /// The files that may come in by this way; told once.
    pub(crate) fn files(&self, id: &MigrationId) -> Option<ReceiveFiles> {
        let door = self.doors().get(id).cloned()?;
        door.files.as_ref()?.take()
    }

    /// Closes a way in for files by which nobody came. One that is used ends by itself.
    pub(crate) fn forget_files(&self, id: &MigrationId) {
        if let Some(door) = self.doors().get(id)
            && door.files.as_ref().is_some_and(|permit| permit.take().is_some())
        {
            door.closed.cancel();
        }
    }

    /// Opens the way in again after a restart of the agent. Where it cannot listen any more, or never did, a caller may
    /// carry the source's stream.
    pub async fn reopen(self: &Arc<Self>, agent: &Arc<Agent>, id: MigrationId) {
        let listener = match self.ways.kept_in(&id) {
            Some(way) => match PeerListener::bind_again(&self.key, way.source, &way.offer).await {
                Ok(listener) => Some(listener),
                Err(error) => {
                    tracing::error!("the way in for migration {id} could not be opened again: {error}");
                    None
                }
            },
            None => None,
        };
        if let Ok(door) = self.door(&id, None) {
            self.watch_over(agent, id, door, listener);
        }
    }

    /// Migrations whose way in was open when the agent ended.
    #[must_use]
    pub fn left_open(&self) -> Vec<MigrationId> {
        self.ways.all_in()
    }

    fn door(&self, id: &MigrationId, files: Option<Permit>) -> Result<Arc<Door>, Fault> {
        let door = Arc::new(Door {
            connections: watch::Sender::new(0),
            closed: CancellationToken::new(),
            told: AtomicBool::new(false),
            files,
        });
        match self.doors().entry(id.clone()) {
            // The way in that is open stays the one that is watched.
            Entry::Occupied(_) => Err(Fault::new(
                "arrival.known",
                FaultKind::Environment,
                format!("migration {id} is expected already"),
            )),
            Entry::Vacant(place) => {
                place.insert(Arc::clone(&door));
                Ok(door)
            }
        }
    }

    fn watch_over(
        self: &Arc<Self>,
        agent: &Arc<Agent>,
        id: MigrationId,
        door: Arc<Door>,
        listener: Option<PeerListener>,
    ) {
        let incoming = Arc::clone(self);
        let agent = Arc::clone(agent);
        tokio::spawn(async move {
            tokio::select! {
                () = accept(listener, &agent, &id, &door) => {}
                () = incoming.watch(&id, &door) => {}
                () = door.closed.cancelled() => {}
            }
            door.closed.cancel();
            if door.files.is_none() {
                incoming.ways.forget_in(&id);
            }
            incoming.doors().remove(&id);
        });
    }

    /// The source of a migration has heard how it ended.
    pub fn told(&self, id: &MigrationId) {
        if let Some(door) = self.doors().get(id) {
            door.told.store(true, Ordering::Relaxed);
        }
    }

    /// Lets in a source whose stream the caller carries.
    ///
    /// # Errors
    /// `arrival.unexpected` when nobody announced this migration.
    pub fn let_in(&self, id: &MigrationId) -> Result<Visit, Fault> {
        match self.doors().get(id) {
            Some(door) => Ok(door.visit()),
            None => Err(Fault::new(
                "arrival.unexpected",
                FaultKind::Environment,
                format!("migration {id} is not expected here"),
            )),
        }
    }

    /// Ends when the way in is no longer needed. What was begun and may end with its link is undone first.
    async fn watch(&self, id: &MigrationId, door: &Door) {
        let mut connections = door.connections.subscribe();
        loop {
            if connections.wait_for(|n| *n == 0).await.is_err() {
                return;
            }
            if door.files.as_ref().is_some_and(Permit::is_used) {
                return;
            }
            let arrival = self.registry.arrival(id);
            let over = arrival.as_ref().is_none_or(|a| a.is_over());
            let patience = match &arrival {
                // Not yet; or somebody looked in (doctor does) and began nothing.
                None => FIRST_CONTACT,
                Some(_) if !over => AWAY,
                Some(_) if door.told.load(Ordering::Relaxed) => AFTER_THE_END,
                Some(_) => UNTOLD,
            };
            if tokio::time::timeout(patience, connections.wait_for(|n| *n > 0))
                .await
                .is_ok()
            {
                continue;
            }
            let Some(arrival) = arrival.filter(|_| !over) else {
                return;
            };
            if arrival.ends_with_its_link() {
                tracing::warn!("the source of migration {id} is gone; undoing what arrived");
                // Until the commit, and in stateless mode, a source that was away for so long has gone back by itself.
                match arrival.alone().await {
                    Ok(()) => continue,
                    Err(fault) => tracing::error!("migration {id} could not be undone: {fault}"),
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

async fn accept(listener: Option<PeerListener>, agent: &Arc<Agent>, id: &MigrationId, door: &Arc<Door>) {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    loop {
        match listener.accept().await {
            Ok(stream) => {
                let peer = stream.identity();
                let (agent, id, visit) = (Arc::clone(agent), id.clone(), door.visit());
                tokio::spawn(async move { serve_peer(agent, id, stream, peer, visit).await });
            }
            Err(error) => {
                tracing::error!("the way in for migration {id} no longer works: {error}");
                // Streams that callers carry may still come.
                return std::future::pending().await;
            }
        }
    }
}

/// Answers one connection of a source until it ends or the way in closes.
pub async fn serve_peer<IO>(agent: Arc<Agent>, id: MigrationId, stream: IO, peer: PeerIdentity, visit: Visit)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handler = Arc::new(PeerHandler {
        agent,
        id: id.clone(),
    });
    let closed = visit.0.closed.clone();
    if let Err(error) = h2::serve_connection(stream, handler, peer, &ServerOptions::default(), closed).await {
        tracing::debug!("the source of migration {id} left: {error}");
    }
    drop(visit);
}
