//! A server for clients that are not tranship, over TCP: HTTP/1.1, with TLS where a certificate is given.
//!
//! It lets everybody connect: who may do what is the handler's business. What a stranger can hold is bounded: so many connections, of which
//! one address has a share, each with a deadline for the handshake and for the header of every request.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring as provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::h1;
use crate::h2::Handler;
use crate::identity::PeerIdentity;
use crate::tls::TlsError;

/// How long a client may take for the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How many connections there may be at once; more wait until one ends.
const CONNECTIONS: usize = 128;
/// How many of them one address may have; more are closed at once. Clients of registries have a few, also behind a common address.
const SHARE: usize = 32;
/// How long sent bytes may stay without an acknowledgement.
const UNACKNOWLEDGED: Duration = Duration::from_secs(120);
/// How long requests under way may take when the server ends.
const GRACE: Duration = Duration::from_secs(10);
/// How long to wait after the system refused to accept, as it does when there are no descriptors left.
const BREATH: Duration = Duration::from_millis(100);

/// Listens for clients.
pub struct HttpServer {
    listener: TcpListener,
    address: SocketAddr,
    acceptor: Option<TlsAcceptor>,
}

/// A certificate with its chain, and its key.
#[derive(Clone)]
pub struct ServerKey(Arc<ServerConfig>);

impl ServerKey {
    /// Reads certificates, the server's own first, and a key, both in PEM.
    ///
    /// # Errors
    /// [`TlsError::Pem`] and [`TlsError::Setup`], also where the two do not belong together.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let (chain, key) = pair(certificates, key)?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }
}

/// A certificate with its chain, and its key, from PEM.
pub(crate) fn pair(
    certificates: &[u8],
    key: &[u8],
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificates)
        .collect::<Result<_, _>>()
        .map_err(|_| TlsError::Pem { what: "certificate" })?;
    if chain.is_empty() {
        return Err(TlsError::Pem { what: "certificate" });
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::Pem { what: "private key" })?;
    Ok((chain, key))
}

impl HttpServer {
    /// Listens at an address; with port 0 the system chooses one.
    ///
    /// # Errors
    /// [`TlsError::Listen`].
    pub async fn bind(address: SocketAddr, key: Option<ServerKey>) -> Result<Self, TlsError> {
        let failed = |source| TlsError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        Ok(Self {
            address: listener.local_addr().map_err(failed)?,
            listener,
            acceptor: key.map(|key| TlsAcceptor::from(key.0)),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`, and then until the requests under way are through, for a few seconds at most.
    pub async fn serve(self, handler: Arc<dyn Handler>, shutdown: CancellationToken) {
        let (places, shares) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Shares::default()));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                break;
            };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(BREATH).await;
                    continue;
                }
            };
            let Some(share) = shares.take(from.ip()) else {
                tracing::debug!(%from, "a client has as many connections as one address may have");
                continue;
            };
            let (handler, acceptor, shutdown) =
                (Arc::clone(&handler), self.acceptor.clone(), shutdown.clone());
            connections.spawn(async move {
                if let Err(error) = one(stream, from, acceptor, handler, shutdown).await {
                    let error: &dyn std::error::Error = &error;
                    tracing::debug!(%from, error, "a client left");
                }
                drop((share, place));
            });
        }
        drop(self.listener);
        let through = async { while connections.join_next().await.is_some() {} };
        if timeout(GRACE, through).await.is_err() {
            connections.shutdown().await;
        }
    }
}

/// How many connections each address has.
#[derive(Default)]
struct Shares(Mutex<HashMap<IpAddr, usize>>);

impl Shares {
    /// A place for one more connection of this address, if it has not all of its share.
    fn take(self: &Arc<Self>, address: IpAddr) -> Option<Share> {
        let whose = holder(address);
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(whose).or_default();
        if *count >= SHARE {
            return None;
        }
        *count += 1;
        let shares = Arc::clone(self);
        Some(Share { shares, whose })
    }
}

/// Who an address counts for: with IPv6, the network that one machine may choose its addresses from.
fn holder(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

/// One connection of an address.
struct Share {
    shares: Arc<Shares>,
    whose: IpAddr,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.whose) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.whose);
            }
        }
    }
}

async fn one(
    stream: TcpStream,
    from: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    handler: Arc<dyn Handler>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let milliseconds = u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX);
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_tcp_user_timeout(&stream, milliseconds)?;
    let peer = PeerIdentity::Network { address: from };
    let served = match acceptor {
        None => h1::serve_until(stream, handler, peer, shutdown).await,
        Some(acceptor) => {
            let tls = timeout(HANDSHAKE, acceptor.accept(stream))
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            h1::serve_until(tls, handler, peer, shutdown).await
        }
    };
    served.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_share_and_no_more() {
        let shares = Arc::new(Shares::default());
        let take = |address: &str| shares.take(address.parse().unwrap());
        let mut held: Vec<Share> = (0..SHARE).map(|_| take("192.0.2.1").unwrap()).collect();
        assert!(take("192.0.2.1").is_none());
        // In another form it is the same one.
        assert!(take("::ffff:192.0.2.1").is_none());
        let others = [take("192.0.2.2"), take("2001:db8::1")];
        assert!(others.iter().all(Option::is_some));
        // What one leaves the next one may have.
        held.pop();
        held.push(take("192.0.2.1").unwrap());
        assert!(take("192.0.2.1").is_none());
        // One machine has many addresses of its network.
        for number in 1..SHARE {
            held.push(take(&format!("2001:db8::{number:x}:1")).unwrap());
        }
        assert!(take("2001:db8::9:9:9:9").is_none());
        held.push(take("2001:db8:0:1::1").unwrap());
        // Nothing is remembered of those who left.
        drop((held, others));
        assert!(shares.0.lock().unwrap().is_empty());
    }
}
