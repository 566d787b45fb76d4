//! The asking side.

use std::error::Error as StdError;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{oneshot, watch};
use tranship_core::Fault;

use super::body::{Body, ByteStream, Limits, Place, collect, full_body, parse, stream_body};
use super::duplex::{Duplex, sender};
use super::events::Events;
use super::{CONNECTION_WINDOW, FRAME_SIZE, HEADER_LIST, SEND_BUFFER, STREAM_WINDOW};
use crate::error::{BoxError, WireError, printable};
use crate::guard::{Guarded, Keepalive};

/// Every request needs a host; the stream under it has decided already where it goes.
const AUTHORITY: &str = "tranship";
/// How long a failed request waits for the connection to say why.
const REASON: Duration = Duration::from_millis(200);

/// How to speak over a stream that is open already.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// What the other end is called in errors.
    pub peer: String,
    /// When a silent peer is given up.
    pub keepalive: Keepalive,
    /// What is accepted of an answer that is held in memory.
    pub limits: Limits,
}

impl ClientOptions {
    /// The usual limits, and a name for the other end.
    #[must_use]
    pub fn new(peer: impl Into<String>) -> Self {
        Self {
            peer: peer.into(),
            keepalive: Keepalive::default(),
            limits: Limits::default(),
        }
    }
}

#[derive(Debug, Clone)]
enum State {
    Open,
    Closed(Option<Arc<hyper::Error>>),
}

/// One connection to another node. Clones share it; it closes when the last one and every stream of it are gone.
#[derive(Debug, Clone)]
pub struct Client {
    sender: SendRequest<Body>,
    state: watch::Receiver<State>,
    peer: String,
    limits: Limits,
}

impl Client {
    /// Begins to speak over a stream.
    ///
    /// This doesn't wait for the other end: whether it answers shows with the first request.
    ///
    /// # Errors
    /// [`WireError::Lost`] if the stream fails at once.
    pub async fn connect<IO>(io: IO, options: &ClientOptions) -> Result<Self, WireError>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let io = TokioIo::new(Guarded::new(io, options.keepalive.silence));
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(options.keepalive.interval)
            .keep_alive_timeout(options.keepalive.answer)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_SIZE)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(HEADER_LIST)
            .handshake(io)
            .await
            .map_err(|error| WireError::Lost {
                peer: options.peer.clone(),
                source: Some(error.into()),
            })?;
        let (closed, state) = watch::channel(State::Open);
        let peer = options.peer.clone();
        tokio::spawn(async move {
            let result = connection.await;
            if let Err(error) = &result {
                tracing::debug!(peer, error = error as &dyn StdError, "connection failed");
            }
            closed.send_replace(State::Closed(result.err().map(Arc::new)));
        });
        Ok(Self {
            sender,
            state,
            peer: options.peer.clone(),
            limits: options.limits,
        })
    }

    /// Waits until the connection is gone and says why.
    pub async fn closed(&self) -> WireError {
        let mut state = self.state.clone();
        let source = match state
            .wait_for(|state| matches!(state, State::Closed(_)))
            .await
            .as_deref()
        {
            Ok(State::Closed(Some(error))) => Some(Box::new(Arc::clone(error)) as BoxError),
            Ok(_) | Err(_) => None,
        };
        WireError::Lost {
            peer: self.peer.clone(),
            source,
        }
    }

    /// Whether the connection is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(*self.state.borrow(), State::Closed(_)) || self.sender.is_closed()
    }

    /// What the other end is called in errors.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Asks for a value.
    ///
    /// # Errors
    /// Any [`WireError`]; [`WireError::Remote`] for a fault of the other end.
    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, WireError> {
        self.call(Method::GET, path, HeaderMap::new(), full_body(Bytes::new()))
            .await
    }

    /// Sends a value and gets one back.
    ///
    /// # Errors
    /// Any [`WireError`]; [`WireError::Remote`] for a fault of the other end.
    pub async fn post_json<Q, T>(&self, path: &str, value: &Q) -> Result<T, WireError>
    where
        Q: Serialize + ?Sized,
        T: DeserializeOwned,
    {
        let json = serde_json::to_vec(value).map_err(|source| WireError::Unwritable {
            what: format!("POST {path}"),
            source,
        })?;
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.call(Method::POST, path, headers, full_body(json)).await
    }

    /// Asks to remove something.
    ///
    /// # Errors
    /// Any [`WireError`]; [`WireError::Remote`] for a fault of the other end.
    pub async fn delete(&self, path: &str) -> Result<(), WireError> {
        let place = self.place(&Method::DELETE, path);
        let request = self.build(Method::DELETE, path, HeaderMap::new(), full_body(Bytes::new()))?;
        let response = self.send(request, &place).await?;
        collect(response.into_body(), &place, self.limits).await.map(drop)
    }

    /// Sends a stream and gets a value back. If the stream fails, the other end sees an error instead of an end.
    ///
    /// # Errors
    /// [`WireError::Source`] if the stream failed; else any [`WireError`]. An answer that comes before the stream's
    /// end, such as a fault, stops the sending.
    pub async fn send_stream<T, S, E>(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        stream: S,
    ) -> Result<T, WireError>
    where
        T: DeserializeOwned,
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: Into<BoxError> + Send + 'static,
    {
        let place = self.place(&method, path);
        let (failed, failure) = oneshot::channel::<BoxError>();
        let failed = Mutex::new(Some(failed));
        let body = stream_body(stream.map(move |item| {
            item.map_err(|error| {
                let sender = failed.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(sender) = sender {
                    // Nobody listens any more if the answer came first.
                    let _ = sender.send(error.into());
                }
                SourceFailed
            })
        }));
        let request = self.build(method, path, headers, body)?;
        let answer = async {
            let response = self.send(request, &place).await?;
            let bytes = collect(response.into_body(), &place, self.limits).await?;
            parse(&bytes, &place)
        };
        let failure = async {
            match failure.await {
                Ok(error) => error,
                // The body ended or was dropped without an error of its own.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            source = failure => Err(WireError::Source { what: place.what.clone(), source }),
            answer = answer => answer,
        }
    }

    /// Asks for a stream. It ends without an error only if the other end finished it.
    ///
    /// # Errors
    /// Any [`WireError`]; [`WireError::Remote`] for a fault of the other end.
    pub async fn receive_stream(&self, path: &str) -> Result<(HeaderMap, ByteStream), WireError> {
        let place = self.place(&Method::GET, path);
        let request = self.build(Method::GET, path, HeaderMap::new(), full_body(Bytes::new()))?;
        let (parts, body) = self.send(request, &place).await?.into_parts();
        Ok((parts.headers, ByteStream::new(body, place)))
    }

    /// Sends bytes and gets a stream back. It ends without an error only if the other end finished it.
    ///
    /// # Errors
    /// Any [`WireError`]; [`WireError::Remote`] for a fault of the other end.
    pub async fn post_stream(&self, path: &str, bytes: impl Into<Bytes>) -> Result<ByteStream, WireError> {
        let place = self.place(&Method::POST, path);
        let request = self.build(Method::POST, path, HeaderMap::new(), full_body(bytes))?;
        let body = self.send(request, &place).await?.into_body();
        Ok(ByteStream::new(body, place))
    }

    /// Asks for the headers that a `GET` would bring.
    ///
    /// # Errors
    /// Any [`WireError`]; a failure is a [`WireError::Status`], as there is no body that would say more.
    pub async fn head(&self, path: &str) -> Result<HeaderMap, WireError> {
        let place = self.place(&Method::HEAD, path);
        let request = self.build(Method::HEAD, path, HeaderMap::new(), full_body(Bytes::new()))?;
        let (parts, _) = self.send(request, &place).await?.into_parts();
        Ok(parts.headers)
    }

    /// Asks for events as they happen.
    ///
    /// # Errors
    /// Any [`WireError`]; [`WireError::Remote`] for a fault of the other end.
    pub async fn events<T: DeserializeOwned>(&self, path: &str) -> Result<Events<T>, WireError> {
        let place = self.place(&Method::GET, path);
        let (_, bytes) = self.receive_stream(path).await?;
        Ok(Events::new(bytes, place))
    }

    /// Sends a value and gets events back as they happen.
    ///
    /// # Errors
    /// Any [`WireError`]; [`WireError::Remote`] for a fault of the other end.
    pub async fn post_events<Q, T>(&self, path: &str, value: &Q) -> Result<Events<T>, WireError>
    where
        Q: Serialize + ?Sized,
        T: DeserializeOwned,
    {
        let place = self.place(&Method::POST, path);
        let json = serde_json::to_vec(value).map_err(|source| WireError::Unwritable {
            what: place.what.clone(),
            source,
        })?;
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let request = self.build(Method::POST, path, headers, full_body(json))?;
        let body = self.send(request, &place).await?.into_body();
        Ok(Events::new(ByteStream::new(body, place.clone()), place))
    }

    /// Opens a byte stream in both directions inside this connection.
    ///
    /// # Errors
    /// Any [`WireError`]; [`WireError::Remote`] for a fault of the other end.
    pub async fn duplex(&self, path: &str) -> Result<Duplex, WireError> {
        self.duplex_with(path, HeaderMap::new()).await
    }

    /// The same, with headers that tell the other end what it is for.
    ///
    /// # Errors
    /// Any [`WireError`]; [`WireError::Remote`] for a fault of the other end.
    pub async fn duplex_with(&self, path: &str, headers: HeaderMap) -> Result<Duplex, WireError> {
        let place = self.place(&Method::POST, path);
        let (outgoing, body) = sender(place.clone());
        let request = self.build(Method::POST, path, headers, body)?;
        let response = self.send(request, &place).await?;
        Ok(Duplex::new(
            outgoing,
            ByteStream::new(response.into_body(), place),
        ))
    }

    /// Sends a request as it is and returns the answer as it is, whatever its status. The authority of its address is the other end's
    /// own business.
    ///
    /// # Errors
    /// [`WireError::Lost`] and its like.
    pub async fn exchange(&self, request: Request<Body>) -> Result<Response<ByteStream>, WireError> {
        let place = self.place(request.method(), request.uri().path());
        match self.sender.clone().send_request(request).await {
            Ok(response) => Ok(response.map(|body| ByteStream::new(body, place))),
            Err(error) => Err(self.reason(place.error(error)).await),
        }
    }

    fn place(&self, method: &Method, path: &str) -> Place {
        Place {
            peer: self.peer.clone(),
            what: format!("{method} {path}"),
        }
    }

    fn build(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Body,
    ) -> Result<Request<Body>, WireError> {
        let wrong = |source| WireError::Request {
            what: format!("{method} {path}"),
            source,
        };
        let uri = Uri::builder()
            .scheme("http")
            .authority(AUTHORITY)
            .path_and_query(path);
        let uri = uri.build().map_err(wrong)?;
        let mut request = Request::builder()
            .method(method.clone())
            .uri(uri)
            .body(body)
            .map_err(wrong)?;
        *request.headers_mut() = headers;
        Ok(request)
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Body,
    ) -> Result<T, WireError> {
        let place = self.place(&method, path);
        let response = self
            .send(self.build(method, path, headers, body)?, &place)
            .await?;
        let bytes = collect(response.into_body(), &place, self.limits).await?;
        parse(&bytes, &place)
    }

    /// Sends a request and turns every answer but success into an error.
    async fn send(&self, request: Request<Body>, place: &Place) -> Result<Response<Incoming>, WireError> {
        let response = match self.sender.clone().send_request(request).await {
            Ok(response) => response,
            Err(error) => return Err(self.reason(place.error(error)).await),
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = collect(response.into_body(), place, self.limits).await?;
        Err(match serde_json::from_slice::<Fault>(&bytes) {
            Ok(fault) => WireError::Remote(Box::new(fault)),
            Err(_) => WireError::Status {
                peer: self.peer.clone(),
                what: place.what.clone(),
                status: status.as_u16(),
                text: printable(&String::from_utf8_lossy(&bytes), 200),
            },
        })
    }

    /// A request fails a moment before the connection knows why; the latter has more to say.
    async fn reason(&self, error: WireError) -> WireError {
        if !error.is_lost() {
            return error;
        }
        match tokio::time::timeout(REASON, self.closed()).await {
            Ok(WireError::Lost {
                peer,
                source: Some(source),
            }) => WireError::Lost {
                peer,
                source: Some(source),
            },
            _ => error,
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the stream to be sent failed")]
struct SourceFailed;
