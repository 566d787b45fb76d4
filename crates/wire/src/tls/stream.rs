//! An authenticated connection between two agents.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::identity::{Fingerprint, PeerIdentity};

/// How much TLS may hold back before it writes.
const BUFFER: usize = 512 << 10;
/// How long sent bytes may stay without an acknowledgement.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// A connection whose two ends have proved who they are.
#[derive(Debug)]
pub struct PeerStream {
    tls: TlsStream<TcpStream>,
    peer: Fingerprint,
    address: SocketAddr,
}

impl PeerStream {
    pub(super) fn new(mut tls: TlsStream<TcpStream>, peer: Fingerprint, address: SocketAddr) -> Self {
        match &mut tls {
            TlsStream::Client(stream) => stream.get_mut().1.set_buffer_limit(Some(BUFFER)),
            TlsStream::Server(stream) => stream.get_mut().1.set_buffer_limit(Some(BUFFER)),
        }
        Self { tls, peer, address }
    }

    /// The certificate of the other end.
    #[must_use]
    pub fn peer(&self) -> Fingerprint {
        self.peer
    }

    /// The address of the other end.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The other end as a handler knows it.
    #[must_use]
    pub fn identity(&self) -> PeerIdentity {
        PeerIdentity::Agent {
            fingerprint: self.peer,
        }
    }
}

/// Sets what every connection between agents has in common. None of it is worth failing for.
pub(super) fn prepare(stream: &TcpStream) {
    let milliseconds = u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX);
    let set = stream
        .set_nodelay(true)
        .and_then(|()| Ok(rustix::net::sockopt::set_tcp_user_timeout(stream, milliseconds)?));
    if let Err(error) = set {
        tracing::debug!(%error, "a socket option was not accepted");
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
