//! Bodies of requests and answers.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{Stream, TryStreamExt};
use http_body::{Body as _, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, ReadBuf};

use crate::error::{BoxError, WireError};

/// The body that is sent, of whatever kind.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// What is accepted of a body that is held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Its length in bytes.
    pub json: usize,
    /// How long it may take to arrive.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            json: 16 << 20,
            time: Duration::from_secs(60),
        }
    }
}

/// A body that is there already.
pub fn full_body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body that comes bit by bit. An error of the stream resets it, so that the receiver sees an error as well.
pub fn stream_body<S, E>(stream: S) -> Body
where
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: Into<BoxError> + 'static,
{
    let stream = stream
        .map_ok(Frame::data)
        .map_err(Into::into)
        .inspect_err(|error: &BoxError| {
            // The receiver learns only that it was broken off.
            let error: &(dyn std::error::Error + 'static) = error.as_ref();
            tracing::debug!(error, "a stream fails under way");
        });
    StreamBody::new(stream).boxed_unsync()
}

/// Which stream of which connection an error belongs to.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) peer: String,
    pub(crate) what: String,
}

impl Place {
    /// Tells a lost connection from a single stream that was broken off.
    pub(crate) fn error(&self, error: hyper::Error) -> WireError {
        match reset_by_peer(&error) {
            true => WireError::Aborted {
                peer: self.peer.clone(),
                what: self.what.clone(),
                source: Box::new(error),
            },
            false => WireError::Lost {
                peer: self.peer.clone(),
                source: Some(Box::new(error)),
            },
        }
    }
}

/// Whether only one stream was reset while the connection may well live on.
fn reset_by_peer(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<h2::Error>() {
            return error.is_reset();
        }
        source = cause.source();
    }
    false
}

/// The bytes of a body as they come in. It ends without an error only if the sender finished it.
///
/// As a [`Stream`] it hands out what came without copying it; as [`AsyncRead`] its errors have a [`WireError`] inside.
#[derive(Debug)]
pub struct ByteStream {
    body: Incoming,
    /// What is left of a piece that did not fit where it was read to.
    rest: Bytes,
    place: Place,
    ended: bool,
}

impl ByteStream {
    pub(crate) fn new(body: Incoming, place: Place) -> Self {
        Self {
            body,
            rest: Bytes::new(),
            place,
            ended: false,
        }
    }
}

impl Stream for ByteStream {
    type Item = Result<Bytes, WireError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.rest))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        loop {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => return Poll::Ready(Some(Ok(data))),
                    Err(_trailers) => {}
                },
                Poll::Ready(Some(Err(error))) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(self.place.error(error))));
                }
                Poll::Ready(None) => {
                    self.ended = true;
                    return Poll::Ready(None);
                }
            }
        }
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = match ready!(self.as_mut().poll_next(cx)) {
            None => return Poll::Ready(Ok(())),
            Some(Ok(bytes)) => bytes,
            Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
        };
        let take = bytes.len().min(buf.remaining());
        buf.put_slice(bytes.get(..take).unwrap_or_default());
        bytes.advance(take);
        self.rest = bytes;
        Poll::Ready(Ok(()))
    }
}

/// A whole body in memory, within limits.
pub(super) async fn collect(body: Incoming, place: &Place, limits: Limits) -> Result<Bytes, WireError> {
    let collected = tokio::time::timeout(limits.time, Limited::new(body, limits.json).collect())
        .await
        .map_err(|_| WireError::Slow {
            what: place.what.clone(),
            after: limits.time,
        })?;
    match collected {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(error) => Err(place.error(*error)),
            Err(_limit) => Err(WireError::TooLarge {
                what: place.what.clone(),
                limit: limits.json,
            }),
        },
    }
}

/// Reads JSON, where an empty body stands for `null`.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8], place: &Place) -> Result<T, WireError> {
    let bytes = if bytes.is_empty() { b"null" } else { bytes };
    serde_json::from_slice(bytes).map_err(|source| WireError::Malformed {
        what: place.what.clone(),
        source,
    })
}
