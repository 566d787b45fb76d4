//! The agent API from the asking side, one method per request.

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tranship_core::event::Event;
use tranship_core::ids::ContainerName;
use tranship_core::node::{ContainerReport, NodeFacts, Survey, SurveyRequest};
use tranship_core::storage::VolumeSpec;
use tranship_core::{Fault, FaultKind, MigrationId};
use tranship_migrate::protocol::Owner;
use tranship_wire::WireError;
use tranship_wire::h2::{ByteStream, Client, Duplex};

use crate::api::{
    CopyEvent, CopyHere, Depart, Expect, Expected, FilesEvent, Hello, Leaving, MigrationView, Reach, Reached,
    ReceiveCopy, ReceiveFiles, Resolve, SendCopy, SendFiles, TakeSnapshot, VolumeInfo,
};
use crate::archive_api::collected;
use crate::archives::Imported;
use crate::files::{Holder, PathRequest, RemoteStat, Unpacked, delta};

fn archive_path(holder: &Holder, asked: &PathRequest) -> String {
    let what = match holder {
        Holder::Container(name) => format!("containers/{name}/archive"),
        Holder::Volume(name) => format!("volumes/{name}/files"),
    };
    format!("/v1/{what}?{}", asked.to_query())
}

/// What an agent tells of work while it does it.
type Told<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Fault>> + Send>>;

/// How a copy goes. Dropping it ends the copy.
pub type CopyEvents = Told<CopyEvent>;

/// How sending files goes. Dropping it ends it at both ends.
pub type FilesEvents = Told<FilesEvent>;

/// A connection to an agent. Clones share it.
#[derive(Debug, Clone)]
pub struct AgentClient {
    pub(crate) client: Client,
}

/// JSON text without anything but ASCII, as headers want it.
fn ascii(json: &str) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() && !c.is_ascii_control() {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing into a String cannot fail.
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
    text
}

impl AgentClient {
    /// Speaks over a connection that is open already.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    pub(crate) async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, Fault> {
        self.client.get_json(path).await.map_err(WireError::into_fault)
    }

    pub(crate) async fn post<Q, T>(&self, path: &str, value: &Q) -> Result<T, Fault>
    where
        Q: serde::Serialize + ?Sized,
        T: serde::de::DeserializeOwned,
    {
        self.client
            .post_json(path, value)
            .await
            .map_err(WireError::into_fault)
    }

    /// The agent's first words.
    ///
    /// # Errors
    /// What the wire or the other end says; so for every method.
    pub async fn hello(&self) -> Result<Hello, Fault> {
        self.get("/v1/hello").await
    }

    /// Facts about the node.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn node(&self) -> Result<NodeFacts, Fault> {
        self.get("/v1/node").await
    }

    /// One container, for a plan.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn container(&self, name: &ContainerName) -> Result<ContainerReport, Fault> {
        self.get(&format!("/v1/containers/{name}")).await
    }

    /// What is at a path of a container or volume.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn path_stat(&self, holder: &Holder, path: &[u8]) -> Result<RemoteStat, Fault> {
        let asked = PathRequest {
            path: path.to_vec(),
            ..PathRequest::default()
        };
        self.get(&format!("{}&stat=true", archive_path(holder, &asked)))
            .await
    }

    /// The paths of a container or volume that a pattern matches, sorted.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn find(&self, holder: &Holder, pattern: &[u8]) -> Result<Vec<Vec<u8>>, Fault> {
        let asked = PathRequest {
            path: pattern.to_vec(),
            ..PathRequest::default()
        };
        self.get(&format!("{}&glob=true", archive_path(holder, &asked)))
            .await
    }

    /// Files of a container or volume as an archive. It ends without an error only if it is whole.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn pack(&self, holder: &Holder, asked: &PathRequest) -> Result<ByteStream, Fault> {
        let received = self.client.receive_stream(&archive_path(holder, asked)).await;
        Ok(received.map_err(WireError::into_fault)?.1)
    }

    /// What a container or volume has of the files of an archive that would be unpacked at the path that is asked for; `names` as
    /// [`delta::names_of`] writes them.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn index(
        &self,
        holder: &Holder,
        asked: &PathRequest,
        names: Vec<u8>,
    ) -> Result<Vec<u8>, Fault> {
        let path = format!("{}&index=true", archive_path(holder, asked));
        let index = self.client.post_stream(&path, names).await;
        collected(index.map_err(WireError::into_fault)?, delta::LARGEST_INDEX).await
    }

    /// As [`AgentClient::pack`], without what the index has, as [`delta::encode()`] writes it.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn pack_against(
        &self,
        holder: &Holder,
        asked: &PathRequest,
        index: Vec<u8>,
    ) -> Result<ByteStream, Fault> {
        let received = self.client.post_stream(&archive_path(holder, asked), index).await;
        received.map_err(WireError::into_fault)
    }

    /// Unpacks an archive in a container or volume.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn unpack<S, E>(
        &self,
        holder: &Holder,
        asked: &PathRequest,
        archive: S,
    ) -> Result<Unpacked, Fault>
    where
        S: Stream<Item = Result<bytes::Bytes, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let path = archive_path(holder, asked);
        self.client
            .send_stream(http::Method::PUT, &path, http::HeaderMap::new(), archive)
            .await
            .map_err(WireError::into_fault)
    }

    /// One storage element, `STORE/ID` with the id percent-encoded, as an archive; `query` is that of `docs/cp.md`.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn export_element(&self, element: &str, query: &str) -> Result<ByteStream, Fault> {
        let path = format!("/v1/elements/{element}/archive?{query}");
        let received = self.client.receive_stream(&path).await;
        Ok(received.map_err(WireError::into_fault)?.1)
    }

    /// Unpacks an archive in one storage element.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn import_element<S, E>(
        &self,
        element: &str,
        query: &str,
        archive: S,
    ) -> Result<Unpacked, Fault>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let path = format!("/v1/elements/{element}/archive?{query}");
        let sent = self
            .client
            .send_stream(http::Method::PUT, &path, http::HeaderMap::new(), archive)
            .await;
        sent.map_err(WireError::into_fault)
    }

    /// What is at a path of one storage element.
    ///
    /// # Errors
    /// As [`AgentClient::hello`]; `wire.status` in place of the agent's own faults, for which this request has no room.
    pub async fn stat_element(&self, element: &str, query: &str) -> Result<RemoteStat, Fault> {
        let path = format!("/v1/elements/{element}/archive?{query}");
        let headers = self.client.head(&path).await.map_err(WireError::into_fault)?;
        let text = headers
            .get(RemoteStat::HEADER)
            .and_then(|value| value.to_str().ok());
        RemoteStat::from_header(text.unwrap_or_default())
    }

    /// At the destination: opens the way in for files of another agent.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn receive_files(&self, id: &MigrationId, asked: &ReceiveFiles) -> Result<Expected, Fault> {
        self.post(&format!("/v1/files/{id}/receive"), asked).await
    }

    /// Breaks a copy off: at the destination nobody will come by that way, at the source nothing more is sent. The events of a copy
    /// tell when it has ended.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn forget_files(&self, id: &MigrationId) -> Result<(), Fault> {
        self.post(&format!("/v1/files/{id}/forget"), &()).await
    }

    /// At the source: packs files and sends them.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn send_files(&self, id: &MigrationId, asked: &SendFiles) -> Result<FilesEvents, Fault> {
        self.told(&format!("/v1/files/{id}/send"), asked).await
    }

    /// Copies between a container or volume and the files of this machine, as this process sees them.
    ///
    /// # Errors
    /// `files.caller` unless this process and the agent are root; as [`AgentClient::hello`].
    pub async fn copy_here(&self, id: &MigrationId, asked: &CopyHere) -> Result<FilesEvents, Fault> {
        self.told(&format!("/v1/files/{id}/here"), asked).await
    }

    /// What if these containers came to you?
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn survey(&self, request: &SurveyRequest) -> Result<Survey, Fault> {
        self.post("/v1/survey", request).await
    }

    /// Opens the way in for one migration.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn expect(&self, expect: &Expect) -> Result<Expected, Fault> {
        self.post("/v1/arrivals", expect).await
    }

    /// Tries the direct way out.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn reach(&self, reach: &Reach) -> Result<Reached, Fault> {
        self.post("/v1/reach", reach).await
    }

    /// At the source: the stream on which it will speak to the destination.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn relay_stream(&self, id: &MigrationId) -> Result<Duplex, Fault> {
        self.client
            .duplex(&format!("/v1/relay/{id}"))
            .await
            .map_err(WireError::into_fault)
    }

    /// At the destination: the stream on which the source will speak to it.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn peer_stream(&self, id: &MigrationId) -> Result<Duplex, Fault> {
        self.client
            .duplex(&format!("/v1/arrivals/{id}/stream"))
            .await
            .map_err(WireError::into_fault)
    }

    /// Begins a migration.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn depart(&self, depart: &Depart) -> Result<(), Fault> {
        self.post("/v1/departures", depart).await
    }

    /// All migrations that the node knows, newest first.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn migrations(&self) -> Result<Vec<MigrationView>, Fault> {
        self.get("/v1/migrations").await
    }

    /// What the node knows of one migration.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn migration(&self, id: &MigrationId) -> Result<Vec<MigrationView>, Fault> {
        self.get(&format!("/v1/migrations/{id}")).await
    }

    /// The events of a migration, from its beginning to its end.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn events(
        &self,
        id: &MigrationId,
    ) -> Result<impl Stream<Item = Result<Event, Fault>> + Unpin + use<>, Fault> {
        let events = self
            .client
            .events::<Event>(&format!("/v1/migrations/{id}/events"))
            .await;
        Ok(events
            .map_err(WireError::into_fault)?
            .map(|e| e.map_err(WireError::into_fault)))
    }

    /// All volumes of the node.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn volumes(&self) -> Result<Vec<VolumeInfo>, Fault> {
        self.get("/v1/volumes").await
    }

    /// The manifest of a volume, or of a snapshot by its time.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn manifest(
        &self,
        volume: &str,
        snapshot: Option<u64>,
    ) -> Result<tranship_wire::h2::ByteStream, Fault> {
        let time = snapshot.map_or_else(String::new, |time| format!("@{time}"));
        let path = format!("/v1/volumes/{volume}{time}/manifest");
        let (_, bytes) = self
            .client
            .receive_stream(&path)
            .await
            .map_err(WireError::into_fault)?;
        Ok(bytes)
    }

    /// A volume as a tar archive, or a snapshot of it by its time.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn export_volume(
        &self,
        volume: &str,
        snapshot: Option<u64>,
    ) -> Result<tranship_wire::h2::ByteStream, Fault> {
        let time = snapshot.map_or_else(String::new, |time| format!("@{time}"));
        let path = format!("/v1/volumes/{volume}{time}/archive");
        let (_, bytes) = self
            .client
            .receive_stream(&path)
            .await
            .map_err(WireError::into_fault)?;
        Ok(bytes)
    }

    /// Makes a volume of a tar archive.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn import_volume(
        &self,
        spec: &VolumeSpec,
        archive: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<Imported, Fault> {
        let invalid = |e: String| Fault::new("request.invalid", FaultKind::Usage, e);
        let text = serde_json::to_string(spec).map_err(|e| invalid(e.to_string()))?;
        let value = http::HeaderValue::from_str(&ascii(&text)).map_err(|e| invalid(e.to_string()))?;
        let mut headers = http::HeaderMap::new();
        headers.insert(crate::api::VOLUME_HEADER, value);
        let path = format!("/v1/volumes/{}/archive", spec.name);
        let sent = self
            .client
            .send_stream(http::Method::PUT, &path, headers, archive)
            .await;
        sent.map_err(WireError::into_fault)
    }

    /// At the destination: makes ready for a copy.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn receive_copy(&self, id: &MigrationId, asked: &ReceiveCopy) -> Result<(), Fault> {
        self.post(&format!("/v1/copies/{id}/receive"), asked).await
    }

    /// At the destination: the copy arrived, or did not.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn end_copy(&self, id: &MigrationId, complete: bool) -> Result<(), Fault> {
        let how = if complete { "complete" } else { "give-up" };
        self.post(&format!("/v1/copies/{id}/{how}"), &()).await
    }

    /// At the source: sends a copy.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn send_copy(&self, id: &MigrationId, asked: &SendCopy) -> Result<CopyEvents, Fault> {
        self.told(&format!("/v1/copies/{id}/send"), asked).await
    }

    /// Keeps a snapshot of a volume.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn take_snapshot(&self, id: &MigrationId, asked: &TakeSnapshot) -> Result<CopyEvents, Fault> {
        self.told(&format!("/v1/snapshots/{id}"), asked).await
    }

    /// Removes a snapshot of a volume.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn remove_snapshot(&self, volume: &str, timestamp: u64) -> Result<(), Fault> {
        let path = format!("/v1/snapshots/{volume}/{timestamp}");
        self.client.delete(&path).await.map_err(WireError::into_fault)
    }

    async fn told<Q, T>(&self, path: &str, asked: &Q) -> Result<Told<T>, Fault>
    where
        Q: serde::Serialize + Sync,
        T: serde::de::DeserializeOwned + Send + 'static,
    {
        let events = self.client.post_events::<Q, T>(path, asked).await;
        let events = events.map_err(WireError::into_fault)?;
        Ok(Box::pin(events.map(|e| e.map_err(WireError::into_fault))))
    }

    /// Asks a migration to end in order.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn abort(&self, id: &MigrationId) -> Result<(), Fault> {
        self.post(&format!("/v1/migrations/{id}/abort"), &()).await
    }

    /// Asks a migration to take the container back, also after the commit.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn roll_back(&self, id: &MigrationId) -> Result<(), Fault> {
        self.post(&format!("/v1/migrations/{id}/rollback"), &()).await
    }

    /// Tells the node who owns the container, by a person's word.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn resolve(&self, id: &MigrationId, owner: Owner) -> Result<(), Fault> {
        self.post(&format!("/v1/migrations/{id}/resolve"), &Resolve { owner })
            .await
    }

    /// What happened in a migration at the node, as text.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn log(&self, id: &MigrationId) -> Result<String, Fault> {
        self.get(&format!("/v1/migrations/{id}/log")).await
    }

    /// The migration under way that takes a container away.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn leaving(&self, container: &ContainerName) -> Result<Option<Leaving>, Fault> {
        self.get(&format!("/v1/containers/{container}/migration")).await
    }

    /// Ends the agent if it has nothing to do; says whether it will.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn retire(&self) -> Result<bool, Fault> {
        self.post("/v1/retire", &()).await
    }
}
