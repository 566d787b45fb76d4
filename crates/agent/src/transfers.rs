//! Files that go from one agent straight to another: an archive packed at the source and unpacked at the destination, without
//! the caller in between.
//!
//! The caller tells the destination what may be unpacked and where ([`ReceiveFiles`]), which opens a way in for the source's
//! agent that lets it do just that, once. Then it tells the source where to send ([`SendFiles`]) and watches. When it goes
//! away, both ends break off.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt as _};
use http::{HeaderMap, Method};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tranship_core::fault::FaultKind;
use tranship_core::{Fault, MigrationId};
use tranship_wire::WireError;
use tranship_wire::h2::Client;

use tranship_archive::confined::{Links, Root};
use tranship_archive::path::TreePath;

use crate::api::{CopyHere, FilesEvent, FilesRoute, ReceiveFiles, SendFiles};
use crate::files::bridge::{self, Pieces};
use crate::files::{PathRequest, Unpacked, blocking, machine};
use crate::state::Agent;

/// Where a peer sends the archive.
pub(crate) const STEP: &str = "files";
/// How often progress is told.
const TOLD: Duration = Duration::from_millis(100);

/// How the sending goes.
pub type FilesStream = std::pin::Pin<Box<dyn Stream<Item = Result<FilesEvent, Fault>> + Send>>;

type Events = mpsc::Sender<Result<FilesEvent, Fault>>;

/// What a way in is for, and lets happen once.
#[derive(Debug)]
pub(crate) struct Permit(Mutex<Option<ReceiveFiles>>);

impl Permit {
    pub(crate) fn new(asked: ReceiveFiles) -> Self {
        Self(Mutex::new(Some(asked)))
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<ReceiveFiles>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take(&self) -> Option<ReceiveFiles> {
        self.slot().take()
    }

    pub(crate) fn is_used(&self) -> bool {
        self.slot().is_none()
    }
}

fn aborted() -> Fault {
    Fault::new(
        "copy.aborted",
        FaultKind::Environment,
        "the copy was broken off by its caller",
    )
}

/// How sending ended, short of success.
enum Failed {
    /// At this end.
    Here(Fault),
    /// At the other one.
    There(Fault),
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        Self::Here(fault)
    }
}

impl Agent {
    /// Unpacks what a peer sends, if its way in is for that and it is the first time.
    ///
    /// # Errors
    /// `copy.not-found`; as [`Agent::unpack`].
    pub(crate) async fn receive_files(
        self: &Arc<Self>,
        id: &MigrationId,
        archive: tranship_wire::h2::ByteStream,
    ) -> Result<Unpacked, Fault> {
        let asked = self.incoming.files(id).ok_or_else(|| {
            Fault::new(
                "copy.not-found",
                FaultKind::Environment,
                format!("no files are expected here by the name {id}"),
            )
        })?;
        let writing = PathRequest::from_query(&asked.request)?;
        let (agent, holder) = (Arc::clone(self), asked.holder);
        // It is finished in order even if the source goes away: a stream that breaks off is an error of its own.
        let task = tokio::spawn(async move { agent.unpack(&holder, &writing, archive).await });
        task.await
            .unwrap_or_else(|e| Err(Fault::new("agent.task", FaultKind::Bug, e.to_string())))
    }

    /// Packs files and sends them to another agent, or unpacks them here. Dropping the stream ends it at both ends.
    pub fn send_files(self: &Arc<Self>, id: MigrationId, asked: SendFiles) -> FilesStream {
        let (agent, way) = (Arc::clone(self), id.clone());
        self.sending.told(id, move |given_up, events| async move {
            agent.send_files_to(&way, asked, &given_up, &events).await
        })
    }

    /// Copies between a container or volume and the machine's files as a process sees them. Dropping the stream ends it.
    pub fn copy_here(self: &Arc<Self>, id: MigrationId, asked: CopyHere, process: i32) -> FilesStream {
        let agent = Arc::clone(self);
        self.sending.told(id, move |given_up, events| async move {
            let reading = PathRequest::from_query(&asked.reading)?;
            let writing = PathRequest::from_query(&asked.writing)?;
            let root = machine::seen_by(process, &asked.caller)?;
            let (pieces, root) = match asked.into {
                true => (machine::pack(root, reading).await?, None),
                false => (agent.pack(&asked.holder, &reading).await?.1, Some(root)),
            };
            unpacked(watched(pieces, given_up, events), |pieces| async move {
                match root {
                    None => agent.unpack(&asked.holder, &writing, pieces).await,
                    Some(root) => unpack_here(root, writing, pieces).await,
                }
            })
            .await
        })
    }

    async fn send_files_to(
        self: &Arc<Self>,
        id: &MigrationId,
        asked: SendFiles,
        given_up: &CancellationToken,
        events: &Events,
    ) -> Result<Unpacked, Failed> {
        let reading = PathRequest::from_query(&asked.request)?;
        let client = match &asked.route {
            FilesRoute::Here(_) => None,
            FilesRoute::Direct(offer) => {
                let (client, address) = self.outgoing.connect(offer, id, given_up).await?;
                // The caller is told before anything is packed: until then it may choose another way.
                let _ = events.send(Ok(FilesEvent::Connected { address })).await;
                Some(client)
            }
        };
        let (_, pieces) = self.pack(&asked.holder, &reading).await?;
        let pieces = watched(pieces, given_up.clone(), events.clone());
        match (client, asked.route) {
            (Some(client), _) => send(&client, pieces).await,
            (None, FilesRoute::Here(to)) => {
                let writing = PathRequest::from_query(&to.request).map_err(Failed::There)?;
                unpacked(pieces, |pieces| self.unpack(&to.holder, &writing, pieces)).await
            }
            (None, FilesRoute::Direct(_)) => Err(Failed::Here(aborted())),
        }
    }
}

/// A copy that is not over.
struct UnderWay(Sending, MigrationId);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.all().remove(&self.1);
    }
}

/// Copies that callers watch, by the names that they gave them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sending(Arc<Mutex<HashMap<MigrationId, CancellationToken>>>);

impl Sending {
    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<MigrationId, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of copies under way.
    pub(crate) fn busy(&self) -> usize {
        self.all().len()
    }

    /// Breaks a copy off. Its watcher is told when it has ended.
    pub(crate) fn give_up(&self, id: &MigrationId) {
        if let Some(given_up) = self.all().get(id) {
            given_up.cancel();
        }
    }

    /// What work tells while it is done, and how it ends. Dropping the stream gives the work up.
    fn told<W, F>(&self, id: MigrationId, work: W) -> FilesStream
    where
        W: FnOnce(CancellationToken, Events) -> F + Send + 'static,
        F: Future<Output = Result<Unpacked, Failed>> + Send,
    {
        let (sender, receiver) = mpsc::channel(16);
        let given_up = CancellationToken::new();
        let token = given_up.clone();
        self.all().insert(id.clone(), given_up.clone());
        let under_way = UnderWay(self.clone(), id);
        tokio::spawn(async move {
            let under_way = under_way;
            let end = match work(token, sender.clone()).await {
                Ok(unpacked) => Ok(FilesEvent::Done { unpacked }),
                Err(Failed::There(fault)) => Ok(FilesEvent::Refused {
                    fault: Box::new(fault),
                }),
                Err(Failed::Here(fault)) => Err(fault),
            };
            drop(under_way);
            // Nobody may be left to hear it.
            let _ = sender.send(end).await;
        });
        let guard = given_up.drop_guard();
        Box::pin(futures_util::stream::unfold(
            (receiver, guard),
            |(mut receiver, guard)| async move { receiver.recv().await.map(|event| (event, (receiver, guard))) },
        ))
    }
}

async fn unpack_here(root: Root, writing: PathRequest, pieces: Pieces) -> Result<Unpacked, Fault> {
    let archive = bridge::reader(pieces);
    blocking(move || {
        let directory = TreePath::of_request(&writing.path)?;
        let root = root.below(&directory, Links::Beneath)?;
        machine::unpack(archive, &root, writing.owner, writing.partial)
    })
    .await
}

async fn send(client: &Client, pieces: Pieces) -> Result<Unpacked, Failed> {
    let path = format!("/v1/peer/{STEP}");
    let sent = client
        .send_stream(Method::POST, &path, HeaderMap::new(), pieces)
        .await;
    sent.map_err(|error| match error {
        WireError::Source { source, what } => Failed::Here(match source.downcast::<Fault>() {
            Ok(own) => *own,
            Err(other) => Fault::new("archive.read", FaultKind::Environment, format!("{what}: {other}")),
        }),
        other => Failed::There(other.into_fault()),
    })
}

/// The pieces, with an error in place of the next one once the copy was given up, and told about every now and then.
fn watched(pieces: Pieces, given_up: CancellationToken, events: Events) -> Pieces {
    let state = (pieces, given_up, events, 0u64, Instant::now());
    Box::pin(futures_util::stream::unfold(Some(state), |state| async move {
        let (mut pieces, given_up, events, mut sent, mut told) = state?;
        let piece = tokio::select! {
            biased;
            () = given_up.cancelled() => return Some((Err(aborted()), None)),
            piece = pieces.next() => piece?,
        };
        if let Ok(piece) = &piece {
            sent += piece.len() as u64;
            if told.elapsed() >= TOLD {
                told = Instant::now();
                // A watcher that is slow misses some; the end is never missed.
                let _ = events.try_send(Ok(FilesEvent::Progress { bytes: sent }));
            }
        }
        let rest = piece.is_ok().then_some((pieces, given_up, events, sent, told));
        Some((piece, rest))
    }))
}

/// Has the pieces unpacked by this agent. A fault of theirs says more than what the receiving half makes of it.
async fn unpacked<F>(pieces: Pieces, unpack: impl FnOnce(Pieces) -> F) -> Result<Unpacked, Failed>
where
    F: Future<Output = Result<Unpacked, Fault>>,
{
    let own = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&own);
    let pieces = pieces.inspect(move |piece| {
        if let Err(broken) = piece {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(broken.clone());
        }
    });
    let done = unpack(Box::pin(pieces)).await;
    let broken = own.lock().unwrap_or_else(PoisonError::into_inner).take();
    done.map_err(|fault| broken.map_or(Failed::There(fault), Failed::Here))
}
