//! The dialling side of the direct path.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::key::{PeerKey, PeerOffer, mismatch, server_name};
use super::stream::{PeerStream, prepare};
use super::{TlsError, WELCOME};

/// The most addresses of an offer that are tried.
const MOST: usize = 32;

/// How long to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DialTimes {
    /// How long one address may keep the next one waiting.
    pub stagger: Duration,
    /// How long everything together may take.
    pub overall: Duration,
}

impl Default for DialTimes {
    fn default() -> Self {
        Self {
            stagger: Duration::from_millis(250),
            overall: Duration::from_secs(5),
        }
    }
}

/// A direct path that works.
#[derive(Debug)]
pub struct Dialled {
    /// The connection.
    pub stream: PeerStream,
    /// The addresses that were tried before it answered, and why they didn't.
    pub failed: Vec<(SocketAddr, TlsError)>,
}

/// Connects to the agent that made an offer, by whichever address answers first with the right certificate.
///
/// # Errors
/// [`TlsError::Unreachable`] with a reason for each address; [`TlsError::Refused`] if the right agent does not know us.
pub async fn dial(offer: &PeerOffer, key: &PeerKey, times: &DialTimes) -> Result<Dialled, TlsError> {
    let connector = TlsConnector::from(key.client(offer.fingerprint)?);
    let mut left = offer
        .addresses
        .iter()
        .take(MOST)
        .map(|ip| SocketAddr::new(*ip, offer.port));
    let started = Instant::now();
    let deadline = started + times.overall;
    let mut next_at = started;
    let mut trying = FuturesUnordered::new();
    let mut under_way: Vec<SocketAddr> = Vec::new();
    let mut failed = Vec::new();
    let mut more = true;
    loop {
        if !more && trying.is_empty() {
            break;
        }
        tokio::select! {
            biased;
            Some((address, result)) = trying.next(), if !trying.is_empty() => {
                under_way.retain(|other| *other != address);
                match result {
                    Ok(tls) => {
                        // Only here is the secret said, to the one who has proved to be the right one.
                        let admitted = timeout_at(deadline, introduce(tls, offer));
                        let tls = admitted.await.map_err(|_| TlsError::Timeout(times.overall))??;
                        let stream = PeerStream::new(tls.into(), offer.fingerprint, address);
                        return Ok(Dialled { stream, failed });
                    }
                    Err(error) => {
                        tracing::debug!(%address, error = &error as &dyn std::error::Error, "no direct path");
                        failed.push((address, error));
                        next_at = Instant::now();
                    }
                }
            }
            () = sleep_until(next_at), if more => match left.next() {
                Some(address) => {
                    under_way.push(address);
                    let connector = connector.clone();
                    trying.push(async move { (address, attempt(address, connector).await) });
                    next_at = Instant::now() + times.stagger;
                }
                None => more = false,
            },
            () = sleep_until(deadline) => {
                failed.extend(under_way.drain(..).map(|address| (address, TlsError::Timeout(times.overall))));
                break;
            }
        }
    }
    if failed.is_empty() {
        return Err(TlsError::NoAddress);
    }
    Err(TlsError::Unreachable { failed })
}

/// A connection with a handshake, after which we know them but they only know our certificate.
async fn attempt(address: SocketAddr, connector: TlsConnector) -> Result<TlsStream<TcpStream>, TlsError> {
    let stream = TcpStream::connect(address).await.map_err(TlsError::Connect)?;
    prepare(&stream);
    connector
        .connect(server_name()?, stream)
        .await
        .map_err(|error| match mismatch(&error) {
            Some(mismatch) => TlsError::Fingerprint {
                expected: mismatch.expected,
                found: mismatch.found,
            },
            None => TlsError::Handshake(error),
        })
}

async fn introduce(
    mut tls: TlsStream<TcpStream>,
    offer: &PeerOffer,
) -> Result<TlsStream<TcpStream>, TlsError> {
    let refused = |error: io::Error| {
        tracing::debug!(%error, "the other agent closed the connection instead of answering");
        TlsError::Refused
    };
    tls.write_all(offer.token.bytes()).await.map_err(refused)?;
    tls.flush().await.map_err(refused)?;
    match tls.read_u8().await.map_err(refused)? {
        WELCOME => Ok(tls),
        _ => Err(TlsError::Refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::key::Token;

    #[tokio::test]
    async fn an_offer_without_an_address_leads_nowhere() {
        let key = PeerKey::generate().unwrap();
        let token = Token::generate().unwrap();
        let offer = PeerOffer {
            port: 1,
            addresses: vec![],
            fingerprint: key.fingerprint(),
            token,
        };
        let error = dial(&offer, &key, &DialTimes::default()).await.unwrap_err();
        assert!(matches!(error, TlsError::NoAddress), "{error}");
    }
}
