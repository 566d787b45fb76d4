//! The listening side of the direct path.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::key::{PeerKey, PeerOffer, Token};
use super::stream::{PeerStream, prepare};
use super::{REFUSED, TlsError, WELCOME};
use crate::identity::Fingerprint;

/// How long a stranger may take to prove who it is.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How many strangers may be at it at once.
const AT_ONCE: usize = 32;
/// How many wrong tokens there may be before even the right one is refused: its holder would not guess.
const WRONG_TOKENS: u32 = 3;
/// How many proved connections wait to be accepted.
const WAITING: usize = 16;
/// How long to wait after the system refused to accept, as it does when there are no descriptors left.
const BREATH: Duration = Duration::from_millis(100);

/// Listens for one other agent, for as long as it is kept.
#[derive(Debug)]
pub struct PeerListener {
    port: u16,
    fingerprint: Fingerprint,
    token: Token,
    accepted: Mutex<mpsc::Receiver<PeerStream>>,
    // Dropping the set ends the tasks in it, and with them the sockets.
    _tasks: JoinSet<()>,
}

/// What a handshake needs to know.
struct Gate {
    acceptor: TlsAcceptor,
    expected: Fingerprint,
    token: Token,
    wrong_tokens: AtomicU32,
    places: Arc<Semaphore>,
    accepted: mpsc::Sender<PeerStream>,
}

impl PeerListener {
    /// Listens at addresses, for the agent with this certificate only. The first port that is taken counts for all
    /// addresses that leave it open.
    ///
    /// # Errors
    /// [`TlsError::Listen`] if one address is not to be had.
    pub async fn bind(key: &PeerKey, expected: Fingerprint, at: &[SocketAddr]) -> Result<Self, TlsError> {
        Self::bind_with(key, expected, at, Token::generate()?).await
    }

    async fn bind_with(
        key: &PeerKey,
        expected: Fingerprint,
        at: &[SocketAddr],
        token: Token,
    ) -> Result<Self, TlsError> {
        let mut listeners = Vec::new();
        let mut port = 0;
        for address in at {
            let mut address = *address;
            if address.port() == 0 {
                address.set_port(port);
            }
            let failed = |source| TlsError::Listen { address, source };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            if port == 0 {
                port = listener.local_addr().map_err(failed)?.port();
            }
            listeners.push(listener);
        }
        if listeners.is_empty() {
            return Err(TlsError::NoAddress);
        }
        let (sender, accepted) = mpsc::channel(WAITING);
        let gate = Arc::new(Gate {
            acceptor: TlsAcceptor::from(key.server(expected)?),
            expected,
            token: token.clone(),
            wrong_tokens: AtomicU32::new(0),
            places: Arc::new(Semaphore::new(AT_ONCE)),
            accepted: sender,
        });
        let mut tasks = JoinSet::new();
        for listener in listeners {
            tasks.spawn(Arc::clone(&gate).listen(listener));
        }
        let fingerprint = key.fingerprint();
        Ok(Self {
            port,
            fingerprint,
            token,
            accepted: Mutex::new(accepted),
            _tasks: tasks,
        })
    }

    /// Listens at every address of this machine, at a port of the system's choice.
    ///
    /// # Errors
    /// [`TlsError::Listen`] if there is no port.
    pub async fn bind_everywhere(key: &PeerKey, expected: Fingerprint) -> Result<Self, TlsError> {
        let six = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        // This one takes IPv4 as well, unless the machine has no IPv6.
        match Self::bind(key, expected, &[six]).await {
            Err(TlsError::Listen { .. }) => {
                Self::bind(key, expected, &[SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))]).await
            }
            other => other,
        }
    }

    /// Listens again as an offer said, which was made before this process was started.
    ///
    /// # Errors
    /// [`TlsError::Listen`] if the port is not to be had any more.
    pub async fn bind_again(
        key: &PeerKey,
        expected: Fingerprint,
        offer: &PeerOffer,
    ) -> Result<Self, TlsError> {
        let six = SocketAddr::from((Ipv6Addr::UNSPECIFIED, offer.port));
        match Self::bind_with(key, expected, &[six], offer.token.clone()).await {
            Err(TlsError::Listen { .. }) => {
                let four = SocketAddr::from((Ipv4Addr::UNSPECIFIED, offer.port));
                Self::bind_with(key, expected, &[four], offer.token.clone()).await
            }
            other => other,
        }
    }

    /// What the other agent has to know to get here.
    #[must_use]
    pub fn offer(&self, addresses: Vec<IpAddr>) -> PeerOffer {
        PeerOffer {
            port: self.port,
            addresses,
            fingerprint: self.fingerprint,
            token: self.token.clone(),
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits for the next connection that has proved who it is. Strangers are never seen here.
    ///
    /// # Errors
    /// [`TlsError::Stopped`] if the listener no longer works.
    pub async fn accept(&self) -> Result<PeerStream, TlsError> {
        self.accepted.lock().await.recv().await.ok_or(TlsError::Stopped)
    }
}

impl Gate {
    async fn listen(self: Arc<Self>, listener: TcpListener) {
        let mut handshakes = JoinSet::new();
        loop {
            while handshakes.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, from)) => {
                    // Strangers can fill the places for a few seconds only, and never the memory.
                    let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
                        tracing::warn!(%from, "too many handshakes at once; turned one away");
                        continue;
                    };
                    let gate = Arc::clone(&self);
                    handshakes.spawn(async move {
                        match timeout(HANDSHAKE, gate.admit(stream, from)).await {
                            Ok(Ok(stream)) => {
                                drop(place);
                                // Fails only when the listener was dropped.
                                let _ = gate.accepted.send(stream).await;
                            }
                            Ok(Err(error)) => {
                                let error: &dyn std::error::Error = &error;
                                tracing::warn!(%from, error, "turned away a direct connection");
                            }
                            Err(_) => tracing::warn!(%from, "turned away a connection that took too long"),
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a direct connection");
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    }

    async fn admit(&self, stream: TcpStream, from: SocketAddr) -> Result<PeerStream, TlsError> {
        prepare(&stream);
        let mut tls = self.acceptor.accept(stream).await.map_err(TlsError::Handshake)?;
        let mut said = [0; Token::LENGTH];
        tls.read_exact(&mut said).await.map_err(TlsError::Handshake)?;
        let known = self.wrong_tokens.load(Ordering::Relaxed) < WRONG_TOKENS && self.token.matches(&said);
        if !known {
            self.wrong_tokens.fetch_add(1, Ordering::Relaxed);
        }
        tls.write_all(&[if known { WELCOME } else { REFUSED }])
            .await
            .map_err(TlsError::Handshake)?;
        tls.flush().await.map_err(TlsError::Handshake)?;
        if !known {
            // Ends the stream properly, so that the answer is not lost in a reset.
            let _ = tls.shutdown().await;
            return Err(TlsError::Refused);
        }
        Ok(PeerStream::new(tls.into(), self.expected, from))
    }
}
