//! Registries without a connection: one that is honest, and what a test does to its answers.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use tranship_core::ImageSpec;
use tranship_core::fault::Explain as _;
use tranship_oci::client::{
    BodyStream, Client, ClientError, Fetched, Login, Logins, Patience, Payload, Store, Transport, Wanted,
};
use tranship_oci::name::{Reference, Repository, Tag};
use tranship_oci::port::Images;
use tranship_oci::{Answer, Credentials, Limits, Registry};

use crate::common::{Engine, Image, limits};

/// A request as the server sees it.
pub struct Seen {
    pub method: Method,
    pub url: String,
    pub headers: HeaderMap,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

type Lie = dyn Fn(&Seen, usize) -> Option<Response<BodyStream>> + Send + Sync;

/// Answers for a registry, but for what `lie` says first: with the request and how many came before.
pub struct Server {
    registry: Registry,
    lie: Box<Lie>,
    pub seen: Mutex<Vec<Seen>>,
}

impl Server {
    pub fn new(registry: Registry) -> Self {
        Self {
            registry,
            lie: Box::new(|_, _| None),
            seen: Mutex::default(),
        }
    }

    pub fn lying(
        registry: Registry,
        lie: impl Fn(&Seen, usize) -> Option<Response<BodyStream>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            lie: Box::new(lie),
            ..Self::new(registry)
        }
    }

    /// How many requests there were with this method and this text in their address.
    pub fn count(&self, method: &Method, text: &str) -> usize {
        let seen = self.seen.lock().unwrap();
        let fits = |seen: &&Seen| seen.method == *method && seen.url.contains(text);
        seen.iter().filter(fits).count()
    }
}

#[async_trait]
impl Transport for Server {
    async fn send(&self, request: Request<Payload>) -> std::io::Result<Response<BodyStream>> {
        let (parts, body) = request.into_parts();
        let seen = Seen {
            method: parts.method.clone(),
            url: parts.uri.to_string(),
            headers: parts.headers.clone(),
        };
        let number = self.seen.lock().unwrap().len();
        let answer = match (self.lie)(&seen, number) {
            Some(answer) => answer,
            None => {
                let body: BodyStream = match body {
                    Payload::Full(bytes) => Box::pin(stream::iter([Ok(bytes)])),
                    Payload::Stream { stream, .. } => stream,
                };
                let answered = self.registry.answer(Request::from_parts(parts, body)).await;
                answered.map(|answer| match answer {
                    Answer::Full(bytes) => Box::pin(stream::iter([Ok(bytes)])) as BodyStream,
                    Answer::Stream(stream) => {
                        Box::pin(stream.map(|piece| piece.map_err(std::io::Error::other)))
                    }
                })
            }
        };
        self.seen.lock().unwrap().push(seen);
        Ok(answer)
    }
}

/// An answer.
pub fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response<BodyStream> {
    streamed(status, headers, Box::pin(stream::iter([Ok(body.into())])))
}

pub fn streamed(status: u16, headers: &[(&str, &str)], body: BodyStream) -> Response<BodyStream> {
    let mut response = Response::builder().status(StatusCode::from_u16(status).unwrap());
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body).unwrap()
}

/// A body that breaks off.
pub fn broken(bytes: Bytes) -> BodyStream {
    Box::pin(stream::iter([
        Ok(bytes),
        Err(std::io::Error::other("the connection broke")),
    ]))
}

/// A user of the tests.
pub struct Me;

#[async_trait]
impl Logins for Me {
    async fn login(&self, host: &str) -> Result<Option<Login>, ClientError> {
        assert_eq!(host, "reg.example");
        Ok(Some(Login::Password {
            user: "me".into(),
            password: "secret".into(),
        }))
    }
}

pub fn me() -> Credentials {
    Credentials::parse(&format!("me:{}\n", bcrypt::hash("secret", 5).unwrap())).unwrap()
}

/// A registry that is only read, with this image at `app:1`.
pub fn reading(image: &Image) -> Registry {
    Registry::reading(Engine::with(&[("app:1", image)]), None)
}

pub fn writing(engine: Arc<Engine>, access: Option<Credentials>, spool: &Path) -> Registry {
    Registry::writing(engine, access, spool, limits()).unwrap()
}

pub fn spec(image: &Image) -> ImageSpec {
    ImageSpec {
        id: image.id(),
        tags: Vec::new(),
        repo_digests: Vec::new(),
        kept_layers: Vec::new(),
        variant: String::new(),
        incomplete: false,
        layers: image.diff_ids(),
        size: 0,
        architecture: "amd64".into(),
        os: "linux".into(),
    }
}

/// A client, where its layers come to, and the engine that they are for.
pub struct Node {
    pub client: Arc<Client>,
    pub server: Arc<Server>,
    pub store: Arc<Store>,
    pub engine: Arc<Engine>,
    pub spool: tempfile::TempDir,
}

pub fn patience() -> Patience {
    Patience {
        busy: Duration::from_secs(20),
        breath: Duration::from_millis(1),
        ..Patience::default()
    }
}

impl Node {
    pub fn new(server: Server) -> Self {
        Self::with(server, limits())
    }

    pub fn with(server: Server, limits: Limits) -> Self {
        let spool = tempfile::tempdir().unwrap();
        let server = Arc::new(server);
        let address = "reg.example".parse().unwrap();
        Self {
            client: Client::new(address, Arc::clone(&server) as _, Arc::new(Me), patience()),
            server,
            store: Arc::new(Store::open(&spool.path().join("spool"), limits).unwrap()),
            engine: Engine::with(&[]),
            spool,
        }
    }

    pub async fn fetch(&self, image: &Image, held: usize) -> Result<Fetched, ClientError> {
        let (repository, tag) = (Repository::new("app").unwrap(), Tag::new("1").unwrap());
        let spec = spec(image);
        let wanted = Wanted { image: &spec, held };
        let reference = Reference::Tag(tag);
        self.client
            .fetch(&repository, &reference, wanted, &self.store)
            .await
    }

    /// Fetches an image, and gives it to the engine.
    pub async fn take(&self, image: &Image, held: usize) -> Result<(usize, u64), ClientError> {
        let fetched = self.fetch(image, held).await?;
        self.engine.import(fetched.archive).await.unwrap();
        fetched.kept.remove();
        let found = self.engine.find(image.id().as_str()).await.unwrap().unwrap();
        assert_eq!(found.layers, image.diff_ids());
        Ok((fetched.layers, fetched.bytes))
    }

    /// Ends the test unless fetching fails with this code and nothing of it stays, in the engine or in the spool.
    pub async fn refuses(&self, image: &Image, code: &str) {
        let error = self.fetch(image, 0).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(self.engine.is_empty());
        let shown = format!("{error} {error:?} {:?}", error.hint());
        assert!(!shown.contains("secret"), "{shown}");
    }

    /// Files in the spool, finished or not.
    pub fn spooled(&self) -> usize {
        let count = |name: &str| {
            std::fs::read_dir(self.spool.path().join("spool").join(name))
                .unwrap()
                .count()
        };
        count("uploads") + count("blobs")
    }
}

/// Whether a request is for a layer's blob of this image.
pub fn is_layer(seen: &Seen, image: &Image) -> bool {
    image
        .diff_ids()
        .iter()
        .any(|digest| seen.url.ends_with(&format!("/blobs/{digest}")))
}

pub fn is_manifest(seen: &Seen) -> bool {
    seen.url.contains("/manifests/")
}

pub fn range_of(seen: &Seen) -> Option<u64> {
    let range = seen.header(header::RANGE.as_str())?;
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}
