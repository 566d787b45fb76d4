//! Ways of images beside one archive: a node as the registry of one image at the end of a stream, and registries of others.

use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::{Request, Response};
use hyper::body::Incoming as RequestBody;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use tranship_core::engine::ByteStream;
use tranship_core::fault::FaultKind;
use tranship_core::ids::Digest;
use tranship_core::image::ImageBlob;
use tranship_core::storage::Pipe;
use tranship_core::{Engine, EngineError, Fault, ImageSpec};
use tranship_migrate::images::{Came, Fetched, ImageOrigin, ImageWays, Kept};
use tranship_oci::client::{
    Address, BodyStream, Client, ClientError, NoLogins, Patience, Payload, Platforms, Store, Transport,
    Wanted,
};
use tranship_oci::document::is_for_config;
use tranship_oci::name::{Reference, Repository, Tag};
use tranship_oci::port::{EngineImages, Images};
use tranship_oci::{Answer, Limits, Registry};
use tranship_wire::h2::{self, Body, ClientOptions, Handler, ServerOptions};
use tranship_wire::{PeerIdentity, WireError};

use crate::docker_config::DockerConfig;
use crate::trust;

/// How often what nobody goes on with is looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// The repository that images have on their way through a registry, below the path of its address.
const TRANSPORT: &str = "tranship";

/// The repository of the one image at the end of a stream.
const ONLY: &str = "image";

/// Brings images from node to node by single layers.
pub struct NodeImages {
    engine: Arc<dyn Engine>,
    directory: PathBuf,
    store: OnceCell<Arc<Store>>,
    docker: DockerConfig,
}

impl NodeImages {
    /// The ways of a node's images; what comes is kept below the state directory until the engine has it. Names and passwords of
    /// registries are those of docker's own configuration.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, state_directory: &Path, docker: DockerConfig) -> Self {
        Self {
            engine,
            directory: state_directory.join("layers"),
            store: OnceCell::new(),
            docker,
        }
    }

    /// The directory for what comes, taken at its first use.
    async fn store(&self) -> Result<Arc<Store>, Fault> {
        let opened = self.store.get_or_try_init(|| async {
            let directory = self.directory.clone();
            let opened =
                tokio::task::spawn_blocking(move || Store::open(&directory, Limits::default())).await;
            let store = Arc::new(opened.map_err(|error| {
                Fault::new(
                    "agent.task",
                    FaultKind::Bug,
                    format!("a step of the agent ended badly: {error}"),
                )
            })??);
            tokio::spawn(sweep(Arc::downgrade(&store)));
            Ok::<_, Fault>(store)
        });
        opened.await.cloned()
    }

    fn registry(&self, address: &str) -> Result<(Address, Arc<Client>), Fault> {
        let address: Address = address.parse().map_err(Fault::from)?;
        let logins = Arc::new(self.docker.clone());
        let transport = Arc::new(Https {
            registry: address.host().to_owned(),
        });
        let client = Client::new(address.clone(), transport, logins, Patience::default());
        Ok((address, client))
    }
}

async fn sweep(store: Weak<Store>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(store) = store.upgrade() else {
            return;
        };
        // Its failure would be that of the next one as well.
        let _ = tokio::task::spawn_blocking(move || store.sweep()).await;
    }
}

#[async_trait]
impl ImageWays for NodeImages {
    async fn serve(&self, image: &ImageSpec, pipe: Pipe, sent: Arc<AtomicU64>) -> Result<(), Fault> {
        let failed = Arc::new(Mutex::new(None));
        let images = Arc::new(OneImage {
            engine: EngineImages(Arc::clone(&self.engine)),
            image: image.clone(),
            failed: Arc::clone(&failed),
        });
        let handler = Arc::new(Counted {
            registry: Registry::reading(images, None),
            sent,
        });
        let options = ServerOptions::default();
        let served = h2::serve_connection(
            pipe,
            handler,
            PeerIdentity::Stdio,
            &options,
            CancellationToken::new(),
        )
        .await;
        // The other side hears only that a layer broke off.
        if let Some(error) = failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error.into());
        }
        served.map_err(WireError::into_fault)
    }

    async fn push(
        &self,
        image: &ImageSpec,
        registry: &str,
        may_push: bool,
        sent: Arc<AtomicU64>,
    ) -> Result<ImageOrigin, Fault> {
        let (address, client) = self.registry(registry)?;
        let origin = |repository: &Repository, manifest: Digest| ImageOrigin::Registry {
            address: registry.to_owned(),
            repository: repository.as_str().to_owned(),
            manifest,
        };
        let images: Arc<dyn Images> = Arc::new(EngineImages(Arc::clone(&self.engine)));
        let keeps_blobs = images.blobs(&[]).await?.is_some();
        let mut near = Vec::new();
        let mut unseen = None;
        for known in &image.repo_digests {
            let Some((repository, manifest)) = of_registry(&address, known) else {
                continue;
            };
            let has = match keeps_blobs {
                true if manifest == image.id => client.has_kept(&repository, image).await,
                true => continue,
                false => client.has(&repository, &manifest, image).await,
            };
            match has {
                Ok(true) => return Ok(origin(&repository, manifest)),
                // It may have been deleted there.
                Ok(false) => near.push(repository),
                // Whoever may not look may still be let in elsewhere, and asks for nothing from here.
                Err(error) => {
                    tracing::debug!(repository = repository.as_str(), %error, "a repository that cannot be looked at");
                    unseen.get_or_insert(error);
                }
            }
        }
        if !may_push {
            // Where it could not be looked for, it may be there all the same.
            if let Some(error) = unseen {
                return Err(error.into());
            }
            let text = format!("{registry} does not have the image {} any more", image.id);
            return Err(Fault::new("registry.not-found", FaultKind::Environment, text));
        }
        let repository = address.repository(TRANSPORT).map_err(Fault::from)?;
        let pushed = match keeps_blobs {
            true => client.push_kept(&repository, &near, &images, image, &sent).await,
            false => client.push(&repository, &near, &images, image, &sent).await,
        };
        let pushed = pushed.map_err(Fault::from)?;
        Ok(origin(&repository, pushed.manifest))
    }

    async fn fetch(
        &self,
        image: &ImageSpec,
        held: usize,
        origin: &ImageOrigin,
        pipe: Option<Pipe>,
    ) -> Result<Fetched, Fault> {
        let store = self.store().await?;
        let (client, repository, reference) = match (origin, pipe) {
            (ImageOrigin::Source, None) => {
                return Err(Fault::new(
                    "registry.lost",
                    FaultKind::Environment,
                    "the source opened no stream to ask for layers on",
                ));
            }
            (ImageOrigin::Source, Some(pipe)) => {
                let options = ClientOptions::new("the source");
                let connected = h2::Client::connect(pipe, &options).await;
                let transport = Arc::new(OverStream(connected.map_err(WireError::into_fault)?));
                let address: Address = "http://source".parse().map_err(Fault::from)?;
                // Whether the link lives is the source's to see: it opens another one.
                let patience = Patience {
                    tries: 1,
                    ..Patience::default()
                };
                let client = Client::new(address, transport, Arc::new(NoLogins), patience);
                let repository = Repository::new(ONLY).map_err(Fault::from)?;
                // An image is known by the digits of its id where it has no tag.
                let tag = Tag::new(image.id.hex()).map_err(Fault::from)?;
                (client, repository, Reference::Tag(tag))
            }
            (
                ImageOrigin::Registry {
                    address,
                    repository,
                    manifest,
                },
                _,
            ) => {
                let (_, client) = self.registry(address)?;
                let repository = Repository::new(repository).map_err(Fault::from)?;
                (client, repository, Reference::Digest(manifest.clone()))
            }
        };
        let images = EngineImages(Arc::clone(&self.engine));
        // An engine that keeps blobs is given those: put together from plain layers, it would be another image.
        let fetched = match images.blobs(&[]).await? {
            Some(_) => {
                // A registry may have an image for many platforms, of which the source has one.
                let platforms = match origin {
                    ImageOrigin::Source => Platforms::All,
                    ImageOrigin::Registry { .. } => Platforms::Own,
                };
                let wanted = (image, platforms);
                client.fetch_kept(&repository, wanted, &images, &store).await
            }
            None => {
                let wanted = Wanted { image, held };
                client.fetch(&repository, &reference, wanted, &store).await
            }
        };
        let fetched = fetched.map_err(Fault::from)?;
        let came = Came {
            layers: fetched.layers,
            bytes: fetched.bytes,
        };
        let kept = fetched.kept;
        Ok(Fetched {
            archive: fetched.archive,
            came,
            kept: Kept::new(move || kept.remove()),
        })
    }

    fn keeps(&self) -> bool {
        self.store.get().is_some_and(|store| store.keeps())
    }

    async fn make_room(&self, bytes: u64) {
        let Some(store) = self.store.get().cloned() else {
            return;
        };
        let made = tokio::task::spawn_blocking(move || store.make_room(bytes)).await;
        if let Ok(Err(error)) = made {
            // The engine will say whether there is room.
            tracing::warn!(%error, "what is kept of layers cannot make way");
        }
    }

    async fn kept_bytes(&self, directory: &Path) -> u64 {
        let Some(store) = self.store.get().cloned() else {
            return 0;
        };
        let both = [self.directory.clone(), directory.to_owned()];
        let looked = tokio::task::spawn_blocking(move || {
            let [here, there] = both.map(|path| std::fs::metadata(path).map(|found| found.dev()).ok());
            match here.is_some() && here == there {
                true => store.idle_bytes(),
                false => 0,
            }
        });
        looked.await.unwrap_or_default()
    }
}

/// The repository and the digest of `host/repository@digest`, if it is of this registry.
fn of_registry(address: &Address, known: &str) -> Option<(Repository, Digest)> {
    let (name, digest) = known.split_once('@')?;
    let (host, repository) = name.split_once('/')?;
    if host != address.host() {
        return None;
    }
    Some((Repository::new(repository).ok()?, Digest::new(digest).ok()?))
}

/// One image of an engine, as if there were no others.
struct OneImage {
    engine: EngineImages,
    image: ImageSpec,
    /// Why the first layer broke off that did.
    failed: Arc<Mutex<Option<EngineError>>>,
}

impl OneImage {
    fn check(&self, id: &Digest) -> Result<(), EngineError> {
        if *id == self.image.id {
            return Ok(());
        }
        Err(EngineError::NotFound {
            what: "image",
            name: id.to_string(),
        })
    }

    /// Keeps what broke off first.
    fn keep(&self) -> impl Fn(&EngineError) + Send + 'static {
        let failed = Arc::clone(&self.failed);
        move |error| {
            let mut first = failed.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert_with(|| error.clone());
        }
    }

    /// A layer that was found damaged as a whole would not be found so in parts: its other end would fetch them for nothing.
    fn sound(&self) -> Result<(), EngineError> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        match &*failed {
            Some(error @ EngineError::Corrupt { .. }) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    fn only_read<T>() -> Result<T, EngineError> {
        Err(EngineError::Unsupported {
            message: "this image is only read".into(),
        })
    }
}

#[async_trait]
impl Images for OneImage {
    async fn list(&self) -> Result<Vec<ImageSpec>, EngineError> {
        Ok(vec![self.image.clone()])
    }
    async fn find(&self, reference: &str) -> Result<Option<ImageSpec>, EngineError> {
        Ok((reference == self.image.id.as_str()).then(|| self.image.clone()))
    }
    async fn config(&self, image: &Digest) -> Result<Bytes, EngineError> {
        self.check(image)?;
        self.engine.config(image).await
    }
    async fn lengths(&self, image: &ImageSpec) -> Result<Vec<u64>, EngineError> {
        self.check(&image.id)?;
        self.engine.lengths(image).await
    }
    async fn layer(&self, image: &ImageSpec, index: usize, offset: u64) -> Result<ByteStream, EngineError> {
        self.check(&image.id)?;
        self.sound()?;
        let keep = self.keep();
        let layer = self.engine.layer(image, index, offset).await.inspect_err(&keep)?;
        Ok(Box::pin(layer.inspect_err(keep)))
    }
    async fn blobs(&self, images: &[Digest]) -> Result<Option<Vec<ImageBlob>>, EngineError> {
        let only = images.iter().filter(|id| **id == self.image.id);
        self.engine.blobs(&only.cloned().collect::<Vec<_>>()).await
    }
    async fn blob(&self, blob: &ImageBlob, part: Range<u64>) -> Result<ByteStream, EngineError> {
        self.sound()?;
        let keep = self.keep();
        let opened = self.engine.blob(blob, part).await;
        // Of other platforms, not all has to be here.
        let opened = opened.inspect_err(|error| match error {
            EngineError::NotFound { .. } => {}
            error => keep(error),
        })?;
        Ok(Box::pin(opened.inspect_err(keep)))
    }
    async fn held(&self, _layers: &[Digest]) -> Result<usize, EngineError> {
        Self::only_read()
    }
    async fn import(&self, _archive: ByteStream) -> Result<(), EngineError> {
        Self::only_read()
    }
    async fn tag(&self, _image: &Digest, _tag: &str) -> Result<(), EngineError> {
        Self::only_read()
    }
    async fn remove(&self, _reference: &str) -> Result<(), EngineError> {
        Self::only_read()
    }
}

/// Answers, and counts what goes out of layers. A configuration is asked for at every try, also by one that comes no farther: whoever
/// counts on the sum would try for ever.
struct Counted {
    registry: Registry,
    sent: Arc<AtomicU64>,
}

#[async_trait]
impl Handler for Counted {
    async fn handle(&self, request: Request<RequestBody>, _peer: &PeerIdentity) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let accepts = parts.headers.get_all(http::header::ACCEPT).iter();
        let for_config = is_for_config(accepts.filter_map(|value| value.to_str().ok()));
        let stream = h2::read_stream(Request::from_parts(parts.clone(), body));
        let response = self.registry.answer(Request::from_parts(parts, stream)).await;
        let sent = Arc::clone(&self.sent);
        response.map(|answer| match answer {
            Answer::Full(bytes) => h2::full_body(bytes),
            Answer::Stream(stream) if for_config => h2::stream_body(stream),
            Answer::Stream(stream) => h2::stream_body(stream.inspect(move |piece| {
                if let Ok(piece) = piece {
                    sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
                }
            })),
        })
    }
}

fn body(payload: Payload) -> Body {
    match payload {
        Payload::Full(bytes) => h2::full_body(bytes),
        Payload::Stream { stream, .. } => h2::stream_body(stream),
    }
}

fn answered(response: Response<h2::ByteStream>) -> Response<BodyStream> {
    response.map(|stream| {
        let stream = stream.map(|piece| piece.map_err(|error| io::Error::other(told(error))));
        Box::pin(stream) as BodyStream
    })
}

fn told(error: WireError) -> String {
    let fault = error.into_fault();
    match fault.causes.last() {
        Some(cause) => format!("{}: {cause}", fault.message),
        None => fault.message,
    }
}

/// Requests over a stream to the source.
struct OverStream(h2::Client);

#[async_trait]
impl Transport for OverStream {
    async fn send(&self, request: Request<Payload>) -> io::Result<Response<BodyStream>> {
        let response = self.0.exchange(request.map(body)).await;
        Ok(answered(response.map_err(|error| io::Error::other(told(error)))?))
    }
}

/// Requests to a registry elsewhere, and to where it leads.
struct Https {
    /// `host[:port]` of the registry itself.
    registry: String,
}

#[async_trait]
impl Transport for Https {
    async fn send(&self, request: Request<Payload>) -> io::Result<Response<BodyStream>> {
        let uri = request.uri();
        let roots = match (uri.scheme_str(), uri.authority()) {
            (Some("https"), Some(host)) => Some(trust::roots(host.as_str(), &self.registry).await?),
            _ => None,
        };
        let response = tranship_wire::https::send(request.map(body), roots.as_ref()).await;
        Ok(answered(response.map_err(|error| io::Error::other(told(error)))?))
    }
}

/// Looks whether a text is the address of a registry.
///
/// # Errors
/// `registry.address`.
pub fn check_registry(text: &str) -> Result<(), Fault> {
    text.parse::<Address>()
        .map(drop)
        .map_err(|error: ClientError| Fault::from(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tranship_testkit::memory::{MemoryEngine, image};

    /// Looks for an image, without pushing it, where a registry has this one answer.
    async fn looked_for(status: &'static str) -> Fault {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let answering = async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await;
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        };
        let state = tempfile::tempdir().unwrap();
        let engine = Arc::new(MemoryEngine::new());
        let images = NodeImages::new(engine, state.path(), DockerConfig::default());
        let mut image = image("app:1", 1);
        image.repo_digests = vec![format!("{host}/app@{}", Digest::of(b"manifest"))];
        let registry = format!("http://{host}");
        let found = tokio::select! {
            found = images.push(&image, &registry, false, Arc::default()) => found,
            () = answering => unreachable!(),
        };
        found.unwrap_err()
    }

    #[tokio::test]
    async fn a_registry_that_cannot_be_looked_at_is_not_said_to_lack_the_image() {
        let fault = looked_for("403 Forbidden").await;
        assert!(!fault.message.contains("any more"), "{fault}");
        assert!(
            fault.code != "registry.not-found" && fault.code.starts_with("registry."),
            "{fault}"
        );
        let fault = looked_for("404 Not Found").await;
        assert_eq!(fault.code, "registry.not-found");
        assert!(fault.message.contains("does not have the image"), "{fault}");
    }
}
