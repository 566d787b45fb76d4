//! The answering side.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, future};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tranship_core::fault::{Fault, FaultKind};

use super::body::{Body, ByteStream, Limits, Place, collect, full_body, parse, stream_body};
use super::duplex::{Duplex, sender};
use super::events::write;
use super::{CONNECTION_WINDOW, FRAME_SIZE, HEADER_LIST, SEND_BUFFER, STREAM_WINDOW};
use crate::error::{BoxError, WireError};
use crate::guard::{Guarded, Keepalive};
use crate::identity::PeerIdentity;

/// Answers requests.
///
/// The future of a request is dropped when its caller goes away: what has to be finished regardless belongs into a
/// task of its own.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Answers one request of a peer.
    async fn handle(&self, request: Request<Incoming>, peer: &PeerIdentity) -> Response<Body>;
}

/// What a peer may do to us.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// When a silent peer is given up.
    pub keepalive: Keepalive,
    /// How many requests may be under way at once on a connection.
    pub streams: u32,
    /// How long the header of a request may take to arrive, and the very first bytes.
    pub header_time: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            keepalive: Keepalive::default(),
            streams: 256,
            header_time: Duration::from_secs(10),
        }
    }
}

/// Serves one connection until the peer ends it, or until `shutdown` and the requests under way are through.
///
/// # Errors
/// [`WireError::Lost`] when it ended otherwise: with a failure of the stream, silence or a breach of the protocol.
pub async fn serve_connection<IO>(
    io: IO,
    handler: Arc<dyn Handler>,
    peer: PeerIdentity,
    options: &ServerOptions,
    shutdown: CancellationToken,
) -> Result<(), WireError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let io = Guarded::new(io, options.keepalive.silence).with_header_limit(options.header_time);
    let peer = Arc::new(peer);
    let service_peer = Arc::clone(&peer);
    let service = service_fn(move |request: Request<Incoming>| {
        let handler = Arc::clone(&handler);
        let peer = Arc::clone(&service_peer);
        async move { Ok::<_, Infallible>(handler.handle(request, &peer).await) }
    });
    let connection = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(options.keepalive.interval)
        .keep_alive_timeout(options.keepalive.answer)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_SIZE)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(HEADER_LIST)
        .max_concurrent_streams(options.streams)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    match result {
        Ok(()) => Ok(()),
        Err(error) if hung_up(&error) => Ok(()),
        Err(error) => Err(WireError::Lost {
            peer: peer.to_string(),
            source: Some(error.into()),
        }),
    }
}

/// Whether the peer just closed its end, which is how most connections end.
fn hung_up(error: &hyper::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof};
    let mut source = error.source();
    while let Some(cause) = source {
        let io = match cause.downcast_ref::<h2::Error>() {
            Some(error) => error.get_io(),
            None => cause.downcast_ref::<std::io::Error>(),
        };
        if let Some(io) = io {
            return matches!(
                io.kind(),
                BrokenPipe | ConnectionReset | NotConnected | UnexpectedEof
            );
        }
        source = cause.source();
    }
    false
}

fn place(request: &Request<Incoming>) -> Place {
    Place {
        peer: "the caller".into(),
        what: format!("{} {}", request.method(), request.uri().path()),
    }
}

/// The value that came with a request.
///
/// # Errors
/// [`WireError::Malformed`], [`WireError::TooLarge`], [`WireError::Slow`], or that the caller went away.
pub async fn read_json<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, WireError> {
    let place = place(&request);
    let bytes = collect(request.into_body(), &place, Limits::default()).await?;
    parse(&bytes, &place)
}

/// The stream that came with a request. It ends without an error only if the caller finished it.
#[must_use]
pub fn read_stream(request: Request<Incoming>) -> ByteStream {
    let place = place(&request);
    ByteStream::new(request.into_body(), place)
}

fn response(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Success without a value.
#[must_use]
pub fn empty_response() -> Response<Body> {
    let mut response = Response::new(full_body(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// Success with a value.
#[must_use]
pub fn json_response<T: Serialize + ?Sized>(value: &T) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(json) => response(StatusCode::OK, "application/json", full_body(json)),
        Err(source) => {
            let what = "the answer".into();
            fault_response(&WireError::Unwritable { what, source }.into_fault())
        }
    }
}

/// A failure, with the status that fits what it means.
#[must_use]
pub fn fault_response(fault: &Fault) -> Response<Body> {
    let status = match fault.kind {
        FaultKind::Usage => StatusCode::BAD_REQUEST,
        FaultKind::Environment | FaultKind::RolledBack => StatusCode::UNPROCESSABLE_ENTITY,
        FaultKind::InDoubt => StatusCode::CONFLICT,
        FaultKind::Bug => StatusCode::INTERNAL_SERVER_ERROR,
    };
    fault_response_with(status, fault)
}

/// A failure with a status of its own.
#[must_use]
pub fn fault_response_with(status: StatusCode, fault: &Fault) -> Response<Body> {
    // A fault is made of texts: there is nothing in it that cannot be written.
    let json = serde_json::to_vec(fault).unwrap_or_default();
    response(status, "application/json", full_body(json))
}

/// The answer to a path that has no meaning.
#[must_use]
pub fn not_found(request: &Request<Incoming>) -> Response<Body> {
    let text = format!("this version of tranship does not know {}", place(request).what);
    let fault = Fault::new("wire.not-found", FaultKind::Environment, text)
        .with_hint("install the same version of tranship at both ends");
    fault_response_with(StatusCode::NOT_FOUND, &fault)
}

/// A stream as the answer. If it fails, the receiver sees an error instead of an end.
pub fn stream_response<S, E>(headers: HeaderMap, stream: S) -> Response<Body>
where
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: Into<BoxError> + 'static,
{
    let mut response = response(StatusCode::OK, "application/octet-stream", stream_body(stream));
    response.headers_mut().extend(headers);
    response
}

/// Events as the answer. A fault, or an error that becomes one, is sent as the last one.
pub fn events_response<T, E, S>(events: S) -> Response<Body>
where
    T: Serialize + 'static,
    E: Into<Fault> + 'static,
    S: Stream<Item = Result<T, E>> + Send + 'static,
{
    let lines = events.scan(false, |ended, event| {
        if *ended {
            return future::ready(None);
        }
        *ended = event.is_err();
        future::ready(Some(match event {
            Ok(event) => write(Ok(&event)),
            Err(error) => write::<T>(Err(&error.into())),
        }))
    });
    response(StatusCode::OK, "text/event-stream", stream_body(lines))
}

/// Turns a request into a byte stream in both directions. The answer has to be returned for the stream to open.
#[must_use]
pub fn duplex_response(request: Request<Incoming>) -> (Response<Body>, Duplex) {
    let place = place(&request);
    let (outgoing, body) = sender(place.clone());
    let incoming = ByteStream::new(request.into_body(), place);
    (
        response(StatusCode::OK, "application/octet-stream", body),
        Duplex::new(outgoing, incoming),
    )
}
