//! Why an image could not be had from a registry, or not be brought there.

use std::time::Duration;

use tranship_core::fault::{Explain, FaultKind};

use crate::error::OciError;

/// Why a registry was of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// It cannot be reached, or the connection broke off more often than it got on.
    #[error("{registry} cannot be reached: {message}")]
    Lost {
        /// The registry.
        registry: String,
        /// What was seen.
        message: String,
    },
    /// It refuses what it was asked.
    #[error("{registry} answers {what} with {status}{message}")]
    Status {
        /// The registry.
        registry: String,
        /// What was asked.
        what: String,
        /// HTTP status.
        status: u16,
        /// What it said, with a colon before it; empty if nothing.
        message: String,
    },
    /// It does not have it.
    #[error("{registry} has no {what}")]
    NotFound {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// It wants a name and a password, or others than it got.
    #[error("{registry} refuses {what}: name and password are missing, wrong, or not enough")]
    Denied {
        /// The registry.
        registry: String,
        /// What was asked.
        what: String,
    },
    /// It has too much to do.
    #[error("{registry} is busy and asks to come back in {} s", after.as_secs())]
    Busy {
        /// The registry.
        registry: String,
        /// How long it asks to wait.
        after: Duration,
    },
    /// It sends its clients around.
    #[error("{registry} leads on and on: {message}")]
    Redirects {
        /// The registry.
        registry: String,
        /// Where to.
        message: String,
    },
    /// Something would have to go over a connection that nobody guards, without anybody having said so.
    #[error("{registry} leads to {to}, which is not guarded by TLS")]
    Insecure {
        /// The registry.
        registry: String,
        /// Where to.
        to: String,
    },
    /// What came is not what its digest says.
    #[error("{registry} sent something else than {what}: it has the digest {found}")]
    Digest {
        /// The registry.
        registry: String,
        /// What was asked for, with its digest.
        what: String,
        /// Digest of what came.
        found: String,
    },
    /// What came has another length than was said.
    #[error("{registry} sent {what} with {found} bytes, not {expected}")]
    Length {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// Bytes by the manifest.
        expected: u64,
        /// Bytes that came or were announced.
        found: u64,
    },
    /// More than is taken in.
    #[error("{registry} sent {what} of more than {limit} bytes")]
    TooLarge {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// The most that is taken in.
        limit: u64,
    },
    /// A good image, but another one.
    #[error("{registry} has another image there: {message}")]
    OtherImage {
        /// The registry.
        registry: String,
        /// In which way.
        message: String,
    },
    /// An image that is not all here, and not all there.
    #[error("{registry} would refuse the image {image}: it names {lacking}, which is neither here nor there")]
    Partial {
        /// The registry.
        registry: String,
        /// The image.
        image: String,
        /// What is missing.
        lacking: String,
    },
    /// An answer that makes no sense.
    #[error("{registry} answers {what} in a way that makes no sense: {message}")]
    Answer {
        /// The registry.
        registry: String,
        /// What was asked.
        what: String,
        /// What is wrong.
        message: String,
    },
    /// Not the address of a registry.
    #[error("{text:?} is not the address of a registry: {message}")]
    Address {
        /// As it came.
        text: String,
        /// What is wrong.
        message: &'static str,
    },
    /// Credentials that cannot be had.
    #[error("the credentials for {registry} cannot be had: {message}")]
    Credentials {
        /// The registry.
        registry: String,
        /// Why. Never holds a secret.
        message: String,
    },
    /// Certificates of this node's, which are of no use.
    #[error("the certificates for {registry} are of no use: {message}")]
    Certificates {
        /// The registry.
        registry: String,
        /// Which ones, and why.
        message: String,
    },
    /// A document or layer that is refused, the spool, or the engine.
    #[error(transparent)]
    Oci(#[from] OciError),
}

impl ClientError {
    /// Whether it may go better in a moment, with the same registry.
    #[must_use]
    pub fn passes(&self) -> bool {
        match self {
            Self::Lost { .. } => true,
            Self::Status { status, .. } => matches!(status, 500 | 502 | 503 | 504),
            _ => false,
        }
    }
}

impl Explain for ClientError {
    fn code(&self) -> &'static str {
        match self {
            Self::Lost { .. } => "registry.lost",
            Self::Status { .. } => "registry.status",
            Self::NotFound { .. } => "registry.not-found",
            Self::Denied { .. } => "registry.denied",
            Self::Busy { .. } => "registry.busy",
            Self::Redirects { .. } => "registry.redirects",
            Self::Insecure { .. } => "registry.insecure",
            Self::Digest { .. } => "registry.digest",
            Self::Length { .. } => "registry.length",
            Self::TooLarge { .. } => "registry.too-large",
            Self::OtherImage { .. } => "registry.other-image",
            Self::Partial { .. } => "registry.partial",
            Self::Answer { .. } => "registry.answer",
            Self::Address { .. } => "registry.address",
            Self::Credentials { .. } => "registry.credentials",
            Self::Certificates { .. } => "registry.certificates",
            Self::Oci(error) => error.code(),
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Lost { registry, message } => why_lost(registry, message),
            Self::Denied { registry, .. } => {
                format!("`docker login {registry}` on that node, as the user of its agent")
            }
            Self::Partial { .. } => {
                "an index is pushed whole or not at all, and of this one not all platforms are here; use --image-strategy layers or stream".into()
            }
            Self::Certificates { .. } => {
                "a certificate NAME.cert in /etc/docker/certs.d/HOST:PORT on that node needs its NAME.key beside it".into()
            }
            Self::Busy { .. } => "try again later, or use --image-strategy stream".into(),
            Self::Insecure { .. } => {
                "only an address that begins with http:// is used without TLS, and a password goes without it to that address alone"
                    .into()
            }
            Self::Digest { .. } | Self::Length { .. } => {
                "nothing of it was used; something between here and there changes what it carries".into()
            }
            Self::Address { .. } => {
                "write HOST[:PORT][/PATH], with http:// before it for one without TLS".into()
            }
            Self::Oci(error) => return error.hint(),
            _ => return None,
        })
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::Address { .. } => FaultKind::Usage,
            _ => FaultKind::Environment,
        }
    }
}

/// What to do about a connection that did not come about. A transport says only in words what it met, those of its TLS library.
fn why_lost(registry: &str, message: &str) -> String {
    if message.contains("InvalidContentType") {
        return format!(
            "what answers there does not speak TLS: if it has none on purpose, write http://{registry} (a password goes \
            in the clear then)"
        );
    }
    if message.contains("CaUsedAsEndEntity") {
        return "the registry shows a certificate that is itself an authority's (CA:TRUE), which is not accepted for a server: \
            give it one of its own that the authority signs, or make it with basicConstraints=CA:FALSE"
            .into();
    }
    "is it running, and reached from this node? Certificates of your own belong into /etc/docker/certs.d/HOST:PORT/ca.crt there".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_handshake_met_decides_what_is_advised() {
        for (message, advice) in [
            (
                "the TLS handshake failed: received corrupt message of type InvalidContentType",
                "http://r:5000",
            ),
            (
                "the TLS handshake failed: invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))",
                "CA:FALSE",
            ),
            ("no connection: Connection refused", "is it running"),
        ] {
            let lost = ClientError::Lost {
                registry: "r:5000".into(),
                message: message.into(),
            };
            let hint = lost.hint().unwrap();
            assert!(hint.contains(advice), "{message}: {hint}");
        }
    }
}
