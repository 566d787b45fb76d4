//! What can go wrong between two nodes, in one type per transport and [`WireError`] over all of them.

use std::error::Error as StdError;
use std::time::Duration;

use tranship_core::fault::{Explain, Fault, FaultKind};

use crate::bootstrap::BootstrapError;
use crate::local::LocalError;
use crate::ssh::SshError;
use crate::tls::TlsError;

/// A cause of any type, as streams given by callers may fail with.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// A request to another node, or the way there, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// `ssh` did not get through.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// The agent could not be started at the other end.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The direct path between two agents failed.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// This node's own agent was not reached.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The connection ended or went silent, with this request under way or before it.
    #[error("the connection to {peer} was lost")]
    Lost {
        /// The other end, as the caller named it.
        peer: String,
        /// What was seen of it.
        source: Option<BoxError>,
    },
    /// The connection lives, but the other end broke off this one stream.
    #[error("{peer} broke off {what}")]
    Aborted {
        /// The other end, as the caller named it.
        peer: String,
        /// Method and path.
        what: String,
        /// What was seen of it.
        source: BoxError,
    },
    /// The other end answered with a fault of its own.
    #[error("{0}")]
    Remote(Box<Fault>),
    /// The other end answered with a failure that is not a fault.
    #[error("{peer} answered {what} with status {status}: {text}")]
    Status {
        /// The other end, as the caller named it.
        peer: String,
        /// Method and path.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of the body, made printable.
        text: String,
    },
    /// A body is not the JSON that was expected.
    #[error("the body of {what} is not what this version of tranship understands")]
    Malformed {
        /// Method and path.
        what: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A body or an event is longer than anything reasonable.
    #[error("the body of {what} is longer than {limit} bytes")]
    TooLarge {
        /// Method and path.
        what: String,
        /// What is accepted.
        limit: usize,
    },
    /// A body did not come within its time.
    #[error("the body of {what} did not arrive within {after:?}")]
    Slow {
        /// Method and path.
        what: String,
        /// How long was waited.
        after: Duration,
    },
    /// The stream that was to be sent failed at our end; the other end saw an error.
    #[error("what was to be sent by {what} could not be read to its end")]
    Source {
        /// Method and path.
        what: String,
        /// The stream's own error.
        source: BoxError,
    },
    /// A path or a header cannot be put into a request.
    #[error("{what:?} does not make a request")]
    Request {
        /// Method and path.
        what: String,
        /// What is wrong with it.
        source: http::Error,
    },
    /// A value cannot be written as JSON.
    #[error("the body of {what} cannot be written as JSON")]
    Unwritable {
        /// Method and path.
        what: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// What the other end sent is not HTTP/2.
    #[error("{peer} does not speak tranship's protocol")]
    Protocol {
        /// The other end, as the caller named it.
        peer: String,
        /// What was seen of it.
        source: BoxError,
    },
}

impl WireError {
    /// The fault to show or to pass on: one that came from the other end stays as it was made there.
    #[must_use]
    pub fn into_fault(self) -> Fault {
        match self {
            Self::Remote(fault) => *fault,
            other => Fault::of(&other),
        }
    }

    /// Whether the connection is gone, so that other requests over it have no use.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

impl Explain for WireError {
    fn code(&self) -> &'static str {
        match self {
            Self::Ssh(inner) => inner.code(),
            Self::Bootstrap(inner) => inner.code(),
            Self::Tls(inner) => inner.code(),
            Self::Local(inner) => inner.code(),
            Self::Lost { .. } => "wire.lost",
            Self::Aborted { .. } => "wire.aborted",
            Self::Remote(_) => "wire.remote",
            Self::Status { .. } => "wire.status",
            Self::Malformed { .. } => "wire.malformed",
            Self::TooLarge { .. } => "wire.too-large",
            Self::Slow { .. } => "wire.slow",
            Self::Source { .. } => "wire.source",
            Self::Request { .. } => "wire.request",
            Self::Unwritable { .. } => "wire.unwritable",
            Self::Protocol { .. } => "wire.protocol",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Ssh(inner) => inner.hint(),
            Self::Bootstrap(inner) => inner.hint(),
            Self::Tls(inner) => inner.hint(),
            Self::Local(inner) => inner.hint(),
            Self::Lost { .. } => {
                Some("check the network between the two machines and that the agent still runs".into())
            }
            Self::Aborted { .. } => Some("the log of the agent there says why".into()),
            Self::Remote(fault) => fault.hint.clone(),
            Self::Malformed { .. } | Self::Protocol { .. } | Self::Status { .. } => {
                Some("install the same version of tranship at both ends".into())
            }
            Self::TooLarge { .. }
            | Self::Slow { .. }
            | Self::Source { .. }
            | Self::Request { .. }
            | Self::Unwritable { .. } => None,
        }
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::Ssh(inner) => inner.kind(),
            Self::Bootstrap(inner) => inner.kind(),
            Self::Tls(inner) => inner.kind(),
            Self::Local(inner) => inner.kind(),
            Self::Remote(fault) => fault.kind,
            Self::Request { .. } | Self::Unwritable { .. } => FaultKind::Bug,
            _ => FaultKind::Environment,
        }
    }
}

/// A text from another machine, made fit for a terminal: one line, no control characters, bounded.
pub(crate) fn printable(text: &str, limit: usize) -> String {
    let mut shown = String::new();
    for word in text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|w| !w.is_empty())
    {
        if shown.len() + word.len() >= limit {
            shown.push('…');
            break;
        }
        if !shown.is_empty() {
            shown.push(' ');
        }
        shown.push_str(word);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remote_fault_is_passed_on_as_it_was() {
        let fault = Fault::new("engine.no-space", FaultKind::RolledBack, "no space").with_hint("make some");
        assert_eq!(WireError::Remote(Box::new(fault.clone())).into_fault(), fault);
    }

    #[test]
    fn text_of_another_machine_cannot_steer_a_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\r\n\tc", 100), "a [31mb c");
        assert!(printable(&"word ".repeat(1000), 50).len() < 60);
    }
}
