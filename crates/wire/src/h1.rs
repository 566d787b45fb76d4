//! HTTP/1.1, for clients that are not tranship.

use std::convert::Infallible;
use std::sync::Arc;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::error::WireError;
use crate::h2::Handler;
use crate::identity::PeerIdentity;

/// How long the header of a request may take.
const HEADER_TIME: std::time::Duration = std::time::Duration::from_secs(30);

/// Serves one connection until the peer ends it.
///
/// # Errors
/// [`WireError::Lost`] when it ended otherwise.
pub async fn serve_connection<IO>(
    io: IO,
    handler: Arc<dyn Handler>,
    peer: PeerIdentity,
) -> Result<(), WireError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    serve_until(io, handler, peer, CancellationToken::new()).await
}

/// Serves one connection until the peer ends it, or until `shutdown` and the request under way is through.
///
/// # Errors
/// [`WireError::Lost`] when it ended otherwise.
pub async fn serve_until<IO>(
    io: IO,
    handler: Arc<dyn Handler>,
    peer: PeerIdentity,
    shutdown: CancellationToken,
) -> Result<(), WireError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let peer = Arc::new(peer);
    let service_peer = Arc::clone(&peer);
    let service = service_fn(move |request: Request<Incoming>| {
        let handler = Arc::clone(&handler);
        let peer = Arc::clone(&service_peer);
        async move { Ok::<_, Infallible>(handler.handle(request, &peer).await) }
    });
    let connection = Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        // A client may send its whole request and close its half before it reads.
        .half_close(true)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    result.map_err(|error| WireError::Lost {
        peer: peer.to_string(),
        source: Some(error.into()),
    })
}
