//! A small HTTP/1.1 client for the documents of the engine that must not lose a field.
//!
//! bollard's models are typed: a field that they do not know is dropped when an answer is read and cannot be sent. A
//! container that is made again from such a model silently loses every option that its engine is newer than. So
//! `inspect container`, `create container`, `inspect network`, `create network` and `connect network` go through here
//! as plain JSON; everything else goes through bollard.
//!
//! Paths carry no API version: the engine then speaks the newest that it knows, and its document has every field.
//! Each request has a connection of its own, as bollard has it, so that a broken one disturbs nothing else.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::{CONTENT_TYPE, HOST};
use http::response::Parts;
use http::{Method, Request};
use http_body_util::{BodyExt as _, BodyStream, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tranship_core::EngineError;
use tranship_core::engine::ByteStream;

use crate::fault::{Ask, chain, unreachable_or_denied};

/// How long an answer to a control call may take.
pub(crate) const CONTROL_DEADLINE: Duration = Duration::from_secs(120);

/// Largest document that is read, in bytes. Inspect documents are a few dozen KiB; seccomp profiles make the largest.
const LARGEST_DOCUMENT: usize = 32 << 20;

/// The client.
#[derive(Debug, Clone)]
pub(crate) struct Raw {
    socket: PathBuf,
    endpoint: String,
}

impl Raw {
    pub(crate) fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            endpoint: format!("unix://{}", socket.display()),
        }
    }

    /// The engine's address, for messages.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Asks for a document.
    pub(crate) async fn get(&self, path: &str, ask: &Ask) -> Result<Value, EngineError> {
        self.call(Method::GET, path, None, ask).await
    }

    /// Sends a document.
    pub(crate) async fn post(&self, path: &str, body: &Value, ask: &Ask) -> Result<Value, EngineError> {
        self.call(Method::POST, path, Some(body), ask).await
    }

    /// Has something done, however long it takes.
    pub(crate) async fn act(&self, path: &str, ask: &Ask) -> Result<(), EngineError> {
        self.send(Method::POST, path, None, ask).await.map(|_| ())
    }

    /// Asks for one header of the answer.
    pub(crate) async fn header(
        &self,
        method: Method,
        path: &str,
        header: &str,
        ask: &Ask,
    ) -> Result<String, EngineError> {
        let (parts, _) = self.exchange(method, path, None, ask).await?;
        let value = parts.headers.get(header).and_then(|value| value.to_str().ok());
        Ok(value.unwrap_or_default().to_owned())
    }

    /// The engine's socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks for bytes, however many and however long they take. An answer that breaks off ends in an error.
    pub(crate) async fn stream(&self, path: &str, ask: &Ask) -> Result<ByteStream, EngineError> {
        let (parts, body) = self.begin(Method::GET, path, None, ask).await?;
        if !parts.status.is_success() {
            let text = whole(body, ask).await?;
            return Err(ask.refused(parts.status.as_u16(), &message_of(&text)));
        }
        let ask = ask.clone();
        let pieces = BodyStream::new(body).filter_map(move |frame| {
            let piece = match frame {
                Ok(frame) => frame.into_data().ok().map(Ok),
                Err(error) => Some(Err(ask.uncertain(chain(&error)))),
            };
            std::future::ready(piece)
        });
        Ok(Box::pin(pieces))
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        ask: &Ask,
    ) -> Result<Value, EngineError> {
        let (_, text) = self.exchange(method, path, body, ask).await?;
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&text).map_err(|error| ask.uncertain(format!("not a JSON document: {error}")))
    }

    /// One request and its whole answer, refusals turned into errors.
    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        ask: &Ask,
    ) -> Result<(Parts, Bytes), EngineError> {
        match tokio::time::timeout(CONTROL_DEADLINE, self.send(method, path, body, ask)).await {
            Ok(answer) => answer,
            Err(_) => Err(ask.uncertain(format!("no answer within {} seconds", CONTROL_DEADLINE.as_secs()))),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        ask: &Ask,
    ) -> Result<(Parts, Bytes), EngineError> {
        let (parts, body) = self.begin(method, path, body, ask).await?;
        let text = whole(body, ask).await?;
        if !parts.status.is_success() && parts.status != http::StatusCode::NOT_MODIFIED {
            return Err(ask.refused(parts.status.as_u16(), &message_of(&text)));
        }
        Ok((parts, text))
    }

    /// Sends a request, and waits for the head of its answer.
    async fn begin(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        ask: &Ask,
    ) -> Result<(Parts, Incoming), EngineError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| unreachable_or_denied(Some(&error), &self.endpoint, &error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ask.uncertain(chain(&error)))?;
        // Ends by itself when the sender and the answer are gone.
        tokio::spawn(connection);
        let bytes = body.map_or_else(Bytes::new, |value| Bytes::from(value.to_string()));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "engine")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(bytes))
            .map_err(|error| ask.failed(chain(&error)))?;
        let answer = sender.send_request(request).await;
        Ok(answer.map_err(|error| ask.uncertain(chain(&error)))?.into_parts())
    }
}

/// A whole answer.
async fn whole(body: Incoming, ask: &Ask) -> Result<Bytes, EngineError> {
    let collected = Limited::new(body, LARGEST_DOCUMENT).collect().await;
    let collected = collected.map_err(|error| ask.uncertain(chain(error.as_ref())))?;
    Ok(collected.to_bytes())
}

/// What an engine says of what it refused.
fn message_of(text: &[u8]) -> String {
    serde_json::from_slice::<Value>(text)
        .ok()
        .and_then(|value| value.get("message").and_then(Value::as_str).map(str::to_owned))
        .unwrap_or_else(|| String::from_utf8_lossy(text).into_owned())
}

/// `text` as one part of a path: what has a meaning in a URL is escaped.
pub(crate) fn escape(text: &str) -> String {
    use std::fmt::Write as _;
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/:@".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing into a String cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn answer(reply: &'static [u8]) -> Result<Value, EngineError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = vec![0; 4096];
            let _ = stream.read(&mut seen).await.unwrap();
            stream.write_all(reply).await.unwrap();
        });
        let result = Raw::new(&path)
            .get("/x", &Ask::new("inspect", "container", "web"))
            .await;
        server.await.unwrap();
        result
    }

    #[tokio::test]
    async fn answers_are_read_or_explained() {
        let ok = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"New\":1}")
            .await
            .unwrap();
        assert_eq!(ok["New"], 1);
        let gone = answer(
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 35\r\n\r\n{\"message\":\"No such container: web\"}",
        )
        .await;
        assert!(
            matches!(
                gone,
                Err(EngineError::NotFound {
                    what: "container",
                    ..
                })
            ),
            "{gone:?}"
        );
        let short = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{\"New\":1}").await;
        assert!(matches!(short, Err(EngineError::Uncertain { .. })), "{short:?}");
        let silent = answer(b"").await;
        assert!(matches!(silent, Err(EngineError::Uncertain { .. })), "{silent:?}");
        let junk = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno").await;
        assert!(matches!(junk, Err(EngineError::Uncertain { .. })), "{junk:?}");
    }

    #[tokio::test]
    async fn no_engine_is_not_an_uncertain_answer() {
        let dir = tempfile::tempdir().unwrap();
        let raw = Raw::new(&dir.path().join("none"));
        let error = raw
            .get("/x", &Ask::new("inspect", "container", "web"))
            .await
            .unwrap_err();
        assert!(matches!(error, EngineError::Unreachable { .. }), "{error:?}");
    }

    #[test]
    fn references_cannot_leave_their_place_in_the_path() {
        assert_eq!(escape("repo/name:1@sha256:ab"), "repo/name:1@sha256:ab");
        assert_eq!(escape("a?b#c d%"), "a%3Fb%23c%20d%25");
    }
}
