//! What went wrong, in the port's words: one place that turns answers of the engine, errors of bollard and errors of the
//! raw client into [`EngineError`].
//!
//! Docker tells several things apart by its message alone, so a few phrases of its messages are known here. They come
//! from moby (`daemon/`, `libnetwork/`) and have been the same from 20.10 to 28.

use std::error::Error as StdError;
use std::io;

use tranship_core::EngineError;

/// What was asked, for error messages, and what a "404" means then.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    /// Verb and object, such as `start container web`.
    pub(crate) action: String,
    /// Kind of the object.
    pub(crate) what: &'static str,
    /// Name of the object.
    pub(crate) name: String,
}

impl Ask {
    pub(crate) fn new(verb: &str, what: &'static str, name: impl Into<String>) -> Self {
        let name = name.into();
        let action = if name.is_empty() {
            format!("{verb} {what}")
        } else {
            format!("{verb} {what} {name}")
        };
        Self { action, what, name }
    }

    /// The answer broke off or made no sense.
    pub(crate) fn uncertain(&self, message: impl ToString) -> EngineError {
        EngineError::Uncertain {
            action: self.action.clone(),
            message: message.to_string(),
        }
    }

    /// The engine failed without a status of HTTP.
    pub(crate) fn failed(&self, message: impl ToString) -> EngineError {
        self.refused(0, &message.to_string())
    }

    /// The engine answered with an error.
    pub(crate) fn refused(&self, status: u16, message: &str) -> EngineError {
        let action = self.action.clone();
        let message = message.trim().to_owned();
        let lower = message.to_ascii_lowercase();
        let says = |phrases: &[&str]| phrases.iter().any(|phrase| lower.contains(phrase));
        if says(&["no space left on device", "disk quota exceeded"]) {
            return EngineError::NoSpace { action, message };
        }
        if status == 404 {
            let what = if lower.contains("no such image") {
                "image"
            } else if lower.contains("no such container") {
                "container"
            } else if lower.contains("no such volume") {
                "volume"
            } else if lower.starts_with("network ") || lower.contains("no such network") {
                "network"
            } else {
                self.what
            };
            let name = if what == self.what {
                self.name.clone()
            } else {
                name_in(&message)
            };
            return EngineError::NotFound { what, name };
        }
        if status == 409
            || says(&[
                "port is already allocated",
                "address already in use",
                "pool overlaps with other one",
                "is already in use by container",
            ])
        {
            return EngineError::Conflict { action, message };
        }
        EngineError::Failed {
            action,
            status,
            message,
        }
    }

    /// An error of bollard.
    pub(crate) fn bollard(&self, error: bollard::errors::Error, endpoint: &str) -> EngineError {
        use bollard::errors::Error as E;
        match error {
            E::DockerResponseServerError { status_code, message } => self.refused(status_code, &message),
            E::DockerStreamError { error } => self.failed(error),
            E::SocketNotFoundError(path) => EngineError::Unreachable {
                endpoint: endpoint.to_owned(),
                reason: format!("there is no socket {path}"),
            },
            E::RequestTimeoutError => self.uncertain("no answer in time"),
            E::HyperLegacyError { err } if err.is_connect() => {
                unreachable_or_denied(io_source(&err), endpoint, &err)
            }
            other => self.uncertain(chain(&other)),
        }
    }
}

/// The last word of a message like `No such image: web:1`.
fn name_in(message: &str) -> String {
    message
        .rsplit(": ")
        .next()
        .unwrap_or_default()
        .trim_matches(|c: char| c == '"' || c.is_whitespace())
        .to_owned()
}

/// An error at connecting.
pub(crate) fn unreachable_or_denied(
    error: Option<&io::Error>,
    endpoint: &str,
    shown: &dyn StdError,
) -> EngineError {
    match error.map(io::Error::kind) {
        Some(io::ErrorKind::PermissionDenied) => EngineError::Denied {
            endpoint: endpoint.to_owned(),
        },
        _ => EngineError::Unreachable {
            endpoint: endpoint.to_owned(),
            reason: error.map_or_else(|| chain(shown), io::Error::to_string),
        },
    }
}

fn io_source<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io);
        }
        next = error.source();
    }
    None
}

/// The error and its reasons in one line.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_socket_is_not_a_missing_one() {
        let told = |kind: io::ErrorKind| {
            let error = io::Error::from(kind);
            unreachable_or_denied(Some(&error), "unix:///run/docker.sock", &error)
        };
        assert!(matches!(
            told(io::ErrorKind::PermissionDenied),
            EngineError::Denied { .. }
        ));
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused] {
            assert!(matches!(told(kind), EngineError::Unreachable { .. }));
        }
    }

    #[test]
    fn the_engines_own_words_decide() {
        let ask = Ask::new("start", "container", "web");
        assert!(matches!(
            ask.refused(500, "driver failed programming external connectivity on endpoint web: Bind for 0.0.0.0:80 failed: port is already allocated"),
            EngineError::Conflict { .. }
        ));
        assert!(matches!(
            ask.refused(500, "write /x: no space left on device"),
            EngineError::NoSpace { .. }
        ));
        assert!(matches!(
            ask.refused(404, "No such container: web"),
            EngineError::NotFound { what: "container", name } if name == "web"
        ));
        assert!(matches!(
            ask.refused(404, "No such image: svc:1"),
            EngineError::NotFound { what: "image", name } if name == "svc:1"
        ));
        assert!(matches!(
            ask.refused(500, "boom"),
            EngineError::Failed { status: 500, .. }
        ));
        assert!(matches!(ask.refused(409, "x"), EngineError::Conflict { .. }));
    }
}
