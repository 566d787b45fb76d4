//! Who is at the other end of a connection, as far as the transport proved it.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::hex;

/// SHA-256 of a certificate in DER form.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

/// What a transport knows about its peer. A handler decides by this what the peer may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerIdentity {
    /// Whoever holds the other end of this process's standard input and output: `sshd` let them in.
    Stdio,
    /// A process on this machine; the kernel vouches for its user.
    Local {
        /// The user it runs as.
        uid: u32,
        /// The number of the process that connected, as this process sees it.
        process: i32,
    },
    /// Anybody who can reach a port of this machine.
    Network {
        /// Where from.
        address: std::net::SocketAddr,
    },
    /// An agent that proved to hold the key of this certificate and knew the token of the offer.
    Agent {
        /// Its certificate.
        fingerprint: Fingerprint,
    },
}

/// A text is not the fingerprint of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 64 lower-case hexadecimal digits")]
pub struct NotAFingerprint;

impl Fingerprint {
    /// The fingerprint of a certificate in DER form.
    #[must_use]
    pub fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }

    /// Compares in constant time.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = NotAFingerprint;
    fn try_from(text: String) -> Result<Self, NotAFingerprint> {
        hex::decode(&text).map(Self).ok_or(NotAFingerprint)
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("the caller over standard input and output"),
            Self::Local { uid, .. } => write!(f, "a process of user {uid}"),
            Self::Network { address } => write!(f, "a client at {address}"),
            Self::Agent { fingerprint } => write!(f, "the agent with certificate {fingerprint}"),
        }
    }
}
