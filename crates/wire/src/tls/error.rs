//! Why two agents found no direct path.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tranship_core::fault::Explain;

use crate::identity::Fingerprint;

/// The direct path failed. There is always another way: over `ssh`, or through the caller.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// No key could be made.
    #[error("cannot make a throw-away key")]
    Key(#[from] rcgen::Error),
    /// The key was not accepted by our own TLS.
    #[error("cannot set up TLS")]
    Setup(#[from] rustls::Error),
    /// A file of a certificate or key is not what it should be.
    #[error("no {what} in PEM form is in its file")]
    Pem {
        /// `certificate`, `private key`.
        what: &'static str,
    },
    /// There is no port to listen at.
    #[error("cannot listen at {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The listener has stopped.
    #[error("the listener for direct connections has stopped")]
    Stopped,
    /// The offer names no address.
    #[error("the other agent offers no address for a direct connection")]
    NoAddress,
    /// No address of the offer answered as it should.
    #[error("no address of the other agent can be reached directly: {}", shown(failed))]
    Unreachable {
        /// Each address and why not.
        failed: Vec<(SocketAddr, TlsError)>,
    },
    /// There is no connection to this address.
    #[error("no connection")]
    Connect(#[source] io::Error),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// Another one answers there.
    #[error("the certificate there is {found}, not the announced {expected}")]
    Fingerprint {
        /// The announced certificate.
        expected: Fingerprint,
        /// The one that was shown.
        found: Fingerprint,
    },
    /// The handshake failed.
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
    /// The other side does not know our certificate or our token.
    #[error("the other agent did not accept us")]
    Refused,
}

fn shown(failed: &[(SocketAddr, TlsError)]) -> String {
    let one = |(address, error): &(SocketAddr, TlsError)| match std::error::Error::source(error) {
        Some(source) => format!("{address} ({error}: {source})"),
        None => format!("{address} ({error})"),
    };
    failed.iter().map(one).collect::<Vec<_>>().join(", ")
}

impl Explain for TlsError {
    fn code(&self) -> &'static str {
        match self {
            Self::Random => "tls.random",
            Self::Key(_) => "tls.key",
            Self::Setup(_) => "tls.setup",
            Self::Pem { .. } => "tls.pem",
            Self::Listen { .. } => "tls.listen",
            Self::Stopped => "tls.stopped",
            Self::NoAddress => "tls.no-address",
            Self::Unreachable { .. } => "tls.unreachable",
            Self::Connect(_) => "tls.connect",
            Self::Timeout(_) => "tls.timeout",
            Self::Fingerprint { .. } => "tls.fingerprint",
            Self::Handshake(_) => "tls.handshake",
            Self::Refused => "tls.refused",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { .. } | Self::Connect(_) | Self::Timeout(_) => Some(
                "allow TCP from one node to the other for a direct path; without it the data goes another way"
                    .into(),
            ),
            Self::Fingerprint { .. } => {
                Some("another host or a proxy answers at that address; the data goes another way".into())
            }
            _ => None,
        }
    }
}
