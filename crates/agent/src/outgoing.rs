//! Ways out to destinations: the other side's [`Destination`] port, carried over a connection that is made again when it
//! was lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderMap, Method};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tranship_core::engine::ByteStream;
use tranship_core::fault::FaultKind;
use tranship_core::storage::Pipe;
use tranship_core::{EngineError, Fault, MigrationId};
use tranship_migrate::destination::{Adopted, ArrivalState, Discarded, Opened};
use tranship_migrate::images::{Came, ImageOrigin};
use tranship_migrate::{Destination, Plan};
use tranship_wire::WireError;
use tranship_wire::h2::{Client, ClientOptions, Duplex};
use tranship_wire::tls::{self, DialTimes, Dialled, PeerKey, PeerOffer, TlsError};

use crate::api::{Reached, Route};

/// How long a stream waits for whoever it is for. That is seconds, but a source may have to ask slow engines before it speaks.
const WAITS: Duration = Duration::from_secs(10 * 60);

/// A stream that a caller carries, and since when.
struct Offered {
    stream: Duplex,
    at: Instant,
}

/// Streams that callers carry, waiting for the migration that they are for.
pub struct Outgoing {
    key: PeerKey,
    relays: Mutex<HashMap<MigrationId, Offered>>,
}

impl Outgoing {
    /// No ways out yet.
    #[must_use]
    pub fn new(key: PeerKey) -> Arc<Self> {
        Arc::new(Self {
            key,
            relays: Mutex::default(),
        })
    }

    fn relays(&self) -> std::sync::MutexGuard<'_, HashMap<MigrationId, Offered>> {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a stream that a caller carries. Those that nobody took and whose callers are gone, or wait for too long, make way.
    pub fn offer_relay(&self, id: MigrationId, stream: Duplex) {
        let at = Instant::now();
        let mut relays = self.relays();
        relays.retain(|_, offered| !offered.stream.is_closed() && offered.at.elapsed() < WAITS);
        relays.insert(id, Offered { stream, at });
    }

    /// The stream that a caller handed over under this name.
    pub(crate) fn take_relay(&self, id: &MigrationId) -> Option<Duplex> {
        self.relays().remove(id).map(|offered| offered.stream)
    }

    /// Tries the direct way and closes it again.
    ///
    /// # Errors
    /// Why no address answered.
    pub async fn reach(&self, offer: &PeerOffer) -> Result<Reached, Fault> {
        let dialled = self
            .dial(offer)
            .await
            .map_err(|e| WireError::from(e).into_fault())?;
        Ok(Reached {
            address: dialled.stream.address().to_string(),
        })
    }

    async fn dial(&self, offer: &PeerOffer) -> Result<Dialled, TlsError> {
        tls::dial(offer, &self.key, &DialTimes::default()).await
    }

    /// Connects to the agent that made an offer; the connection breaks when `given_up` is cancelled. The address that answered is
    /// told.
    ///
    /// # Errors
    /// Why no address answered.
    pub(crate) async fn connect(
        &self,
        offer: &PeerOffer,
        id: &MigrationId,
        given_up: &CancellationToken,
    ) -> Result<(Client, String), Fault> {
        let dialled = self
            .dial(offer)
            .await
            .map_err(|e| WireError::from(e).into_fault())?;
        let address = dialled.stream.address().to_string();
        let pipe = tranship_migrate::breakable(Box::new(dialled.stream), given_up);
        let options = ClientOptions::new(format!("the destination of {id}"));
        let client = Client::connect(pipe, &options).await;
        Ok((client.map_err(WireError::into_fault)?, address))
    }

    /// The other side of a migration.
    #[must_use]
    pub fn destination(self: &Arc<Self>, plan: &Plan, route: &Route) -> Arc<dyn Destination> {
        Arc::new(self.peer(&plan.id, &plan.destination, route))
    }

    /// The other side of a migration or of a copy.
    #[must_use]
    pub(crate) fn peer(self: &Arc<Self>, id: &MigrationId, name: &str, route: &Route) -> RemoteDestination {
        RemoteDestination {
            id: id.clone(),
            name: name.to_owned(),
            route: route.clone(),
            outgoing: Arc::clone(self),
            client: tokio::sync::Mutex::new(None),
        }
    }
}

/// The other side, over a connection that is made again when it was lost.
pub(crate) struct RemoteDestination {
    id: MigrationId,
    name: String,
    route: Route,
    outgoing: Arc<Outgoing>,
    client: tokio::sync::Mutex<Option<Client>>,
}

/// Nothing is known about a call whose link was lost, whatever part of the link it was.
fn lost(error: WireError) -> Fault {
    if let WireError::Source { source, what } = error {
        return match source.downcast::<EngineError>() {
            Ok(engine) => Fault::from(*engine),
            Err(other) => Fault::new("image.source", FaultKind::Environment, format!("{what}: {other}")),
        };
    }
    let remote = matches!(error, WireError::Remote(_));
    let mut fault = error.into_fault();
    if !remote && !fault.code.starts_with("wire.") {
        fault.causes.insert(0, format!("[{}]", fault.code));
        fault.code = "wire.lost".into();
    }
    fault
}

impl RemoteDestination {
    async fn client(&self) -> Result<Client, Fault> {
        let mut slot = self.client.lock().await;
        if let Some(client) = slot.as_ref().filter(|c| !c.is_closed()) {
            return Ok(client.clone());
        }
        let options = ClientOptions::new(self.name.clone());
        let client = match &self.route {
            Route::Direct(offer) => match self.outgoing.dial(offer).await {
                Ok(dialled) => Client::connect(dialled.stream, &options).await,
                Err(error) => match self.outgoing.take_relay(&self.id) {
                    // A caller came to help.
                    Some(stream) => Client::connect(stream, &options).await,
                    None => return Err(lost(error.into())),
                },
            },
            Route::Relay => {
                let Some(stream) = self.outgoing.take_relay(&self.id) else {
                    return Err(Fault::new(
                        "wire.lost",
                        FaultKind::Environment,
                        "the caller that carried the data is gone",
                    )
                    .with_hint(
                        "keep the caller running, or let the source reach the destination by TCP; \
                         `tranship status ID` carries it again while the migration is in doubt",
                    ));
                };
                Client::connect(stream, &options).await
            }
        }
        .map_err(lost)?;
        *slot = Some(client.clone());
        Ok(client)
    }

    /// Opens a stream in both directions.
    pub(crate) async fn pipe(&self, path: &str) -> Result<Pipe, Fault> {
        let client = self.client().await?;
        let stream = client.duplex(path).await;
        Ok(Box::new(stream.map_err(|e| lost(e).on_node(self.name.clone()))?))
    }

    async fn step<Q: Serialize + Sync, T: DeserializeOwned>(
        &self,
        step: &str,
        value: &Q,
    ) -> Result<T, Fault> {
        let client = self.client().await?;
        let answer = client.post_json(&format!("/v1/peer/{step}"), value).await;
        answer.map_err(|e| lost(e).on_node(self.name.clone()))
    }
}

#[async_trait]
impl Destination for RemoteDestination {
    async fn open(&self, plan: &Plan) -> Result<Vec<Opened>, Fault> {
        self.step("open", plan).await
    }

    async fn image(&self, member: usize, archive: ByteStream) -> Result<(), Fault> {
        let client = self.client().await?;
        let answer = client
            .send_stream(
                Method::POST,
                &format!("/v1/peer/image/{member}"),
                HeaderMap::new(),
                archive,
            )
            .await;
        answer.map_err(|e| lost(e).on_node(self.name.clone()))
    }

    async fn image_pipe(&self, member: usize) -> Result<Pipe, Fault> {
        self.pipe(&format!("/v1/peer/image/{member}/pipe")).await
    }

    async fn image_from(&self, member: usize, origin: &ImageOrigin) -> Result<Came, Fault> {
        self.step(&format!("image/{member}/from"), origin).await
    }

    async fn prepare(&self) -> Result<(), Fault> {
        self.step("prepare", &()).await
    }

    async fn create(&self) -> Result<(), Fault> {
        self.step("create", &()).await
    }

    async fn element(&self, index: usize) -> Result<Pipe, Fault> {
        // What stands in the way is an answer of its own; inside the stream only the two halves of a round speak.
        self.step::<_, ()>(&format!("element/{index}/open"), &()).await?;
        self.pipe(&format!("/v1/peer/element/{index}")).await
    }

    async fn start(&self) -> Result<(), Fault> {
        self.step("start", &()).await
    }

    async fn go_on(&self) -> Result<(), Fault> {
        self.step("go-on", &()).await
    }

    async fn ready(&self) -> Result<Adopted, Fault> {
        self.step("ready", &()).await
    }

    async fn adopt(&self) -> Result<Adopted, Fault> {
        self.step("adopt", &()).await
    }

    async fn discard(&self) -> Result<Discarded, Fault> {
        self.step("discard", &()).await
    }

    async fn state(&self) -> Result<Option<ArrivalState>, Fault> {
        self.step("state", &()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Response};
    use hyper::body::Incoming as RequestBody;
    use tranship_wire::PeerIdentity;
    use tranship_wire::h2::{self, Body, Handler, ServerOptions};

    struct Door(Arc<Outgoing>);

    #[async_trait]
    impl Handler for Door {
        async fn handle(&self, request: Request<RequestBody>, _peer: &PeerIdentity) -> Response<Body> {
            let id = request.uri().path().trim_start_matches('/').parse().unwrap();
            let (response, stream) = h2::duplex_response(request);
            self.0.offer_relay(id, stream);
            response
        }
    }

    #[tokio::test]
    async fn streams_whose_callers_are_gone_make_way_for_others() {
        let outgoing = Outgoing::new(PeerKey::generate().unwrap());
        let (near, far) = tokio::io::duplex(64 << 10);
        let door = Arc::new(Door(Arc::clone(&outgoing)));
        let served = tokio::spawn(async move {
            let options = ServerOptions::default();
            h2::serve_connection(far, door, PeerIdentity::Stdio, &options, CancellationToken::new()).await
        });
        let client = Client::connect(near, &ClientOptions::new("the agent"))
            .await
            .unwrap();
        let ids = ["one", "two", "three"].map(|name| MigrationId::new(name).unwrap());
        let [one, two, three] = &ids;
        let gone = client.duplex(&format!("/{one}")).await.unwrap();
        let waits = client.duplex(&format!("/{two}")).await.unwrap();
        assert_eq!(outgoing.relays().len(), 2);
        drop(gone);
        let closed = || outgoing.relays()[one].stream.is_closed();
        while !closed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let newer = client.duplex(&format!("/{three}")).await.unwrap();
        assert!(outgoing.take_relay(one).is_none());
        assert!(outgoing.take_relay(two).is_some() && outgoing.take_relay(three).is_some());
        drop((waits, newer));
        served.abort();
    }
}
