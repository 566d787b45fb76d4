//! Single questions to containerd: gRPC over a unix socket, as much of it as a question with one answer needs
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;

use super::proto::Malformed;
use crate::fault::chain;

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Largest answer in bytes. The list of plugins is the longest, with a few dozen KiB.
const LARGEST: usize = 4 << 20;

/// `NOT_FOUND` of gRPC.
const NOT_FOUND: &str = "5";

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CallError {
    /// There is no such thing.
    NotFound,
    /// Anything else, for people.
    Failed(String),
}

impl From<Malformed> for CallError {
    fn from(_: Malformed) -> Self {
        Self::Failed("the answer is no message of containerd's".into())
    }
}

/// A connection.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    namespace: String,
}

impl Connection {
    /// Connects to the socket; questions are about this namespace.
    pub(crate) async fn to(socket: &Path, namespace: &str) -> Result<Self, CallError> {
        let failed = |error: &dyn std::error::Error| CallError::Failed(chain(error));
        let stream = UnixStream::connect(socket).await.map_err(|e| failed(&e))?;
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(|e| failed(&e))?;
        // Ends by itself when the sender is gone.
        tokio::spawn(connection);
        Ok(Self {
            sender,
            namespace: namespace.to_owned(),
        })
    }

    /// Asks `service/method` with a message, and returns the message that answers it.
    pub(crate) async fn call(&self, method: &str, message: &[u8]) -> Result<Vec<u8>, CallError> {
        match tokio::time::timeout(DEADLINE, self.exchange(method, message)).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::Failed(format!(
                "no answer within {} seconds",
                DEADLINE.as_secs()
            ))),
        }
    }

    async fn exchange(&self, method: &str, message: &[u8]) -> Result<Vec<u8>, CallError> {
        let failed = |error: String| CallError::Failed(error);
        let length = u32::try_from(message.len()).map_err(|error| failed(error.to_string()))?;
        let mut framed = vec![0];
        framed.extend_from_slice(&length.to_be_bytes());
        framed.extend_from_slice(message);
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://containerd/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("containerd-namespace", &self.namespace)
            .body(Full::new(Bytes::from(framed)))
            .map_err(|error| failed(chain(&error)))?;
        let answer = self.sender.clone().send_request(request).await;
        let (parts, body) = answer.map_err(|error| failed(chain(&error)))?.into_parts();
        if !parts.status.is_success() {
            return Err(failed(format!("status {}", parts.status)));
        }
        // An answer without a message has its state in the headers.
        refused(&parts.headers)?;
        let collected = Limited::new(body, LARGEST).collect().await;
        let collected = collected.map_err(|error| failed(chain(error.as_ref())))?;
        let trailers = collected.trailers().cloned().unwrap_or_default();
        refused(&trailers)?;
        if !trailers.contains_key("grpc-status") {
            return Err(failed("the answer breaks off".into()));
        }
        Ok(unframed(&collected.to_bytes())?.to_vec())
    }
}

fn refused(headers: &HeaderMap) -> Result<(), CallError> {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match header("grpc-status") {
        None | Some("0") => Ok(()),
        Some(NOT_FOUND) => Err(CallError::NotFound),
        Some(code) => Err(CallError::Failed(format!(
            "{} (code {code})",
            header("grpc-message").unwrap_or("refused")
        ))),
    }
}

/// The one message of an answer. It is not packed: nobody offered to unpack it.
fn unframed(answer: &[u8]) -> Result<&[u8], Malformed> {
    match answer {
        [0, a, b, c, d, message @ ..]
            if message.len() as u64 == u64::from(u32::from_be_bytes([*a, *b, *c, *d])) =>
        {
            Ok(message)
        }
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_exactly_one_message() {
        assert_eq!(unframed(b"\0\0\0\0\x02ab"), Ok(&b"ab"[..]));
        assert_eq!(unframed(b"\0\0\0\0\0"), Ok(&b""[..]));
        for bytes in [
            &b""[..],
            b"\0\0\0\0",
            b"\0\0\0\0\x03ab",
            b"\0\0\0\0\x01ab",
            b"\x01\0\0\0\x02ab",
        ] {
            assert_eq!(unframed(bytes), Err(Malformed), "{bytes:?}");
        }
    }

    #[test]
    fn refusals_are_told_apart() {
        let headers = |code: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", http::HeaderValue::from_static(code));
            headers
        };
        assert_eq!(refused(&HeaderMap::new()), Ok(()));
        assert_eq!(refused(&headers("0")), Ok(()));
        assert_eq!(refused(&headers("5")), Err(CallError::NotFound));
        assert!(matches!(refused(&headers("7")), Err(CallError::Failed(_))));
    }
}
