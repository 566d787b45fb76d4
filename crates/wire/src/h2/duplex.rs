//! A byte stream in both directions, made of the two bodies of one request.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

use super::body::{Body, ByteStream, stream_body};

/// The longest piece that one write takes.
const PIECE: usize = 256 << 10;
/// How many pieces wait between the writer and the connection.
const PIECES: usize = 4;

/// A duplex stream inside a connection.
///
/// `shutdown` ends the writing side cleanly. Dropping it without that resets the stream, so that the other end does
/// not take what it got for everything.
#[derive(Debug)]
pub struct Duplex {
    incoming: ByteStream,
    rest: Bytes,
    outgoing: PollSender<Bytes>,
    finished: Arc<AtomicBool>,
}

#[derive(Debug, thiserror::Error)]
#[error("the stream was dropped before its end")]
struct Dropped;

/// What was written to a [`Duplex`], on its way out.
struct Outgoing {
    pieces: mpsc::Receiver<Bytes>,
    finished: Arc<AtomicBool>,
    ended: bool,
}

/// The two halves of a writing side: where the [`Duplex`] puts bytes, and the body that carries them.
pub(super) struct Writer {
    outgoing: PollSender<Bytes>,
    finished: Arc<AtomicBool>,
}

pub(super) fn writer() -> (Writer, Body) {
    let (sender, pieces) = mpsc::channel(PIECES);
    let finished = Arc::new(AtomicBool::new(false));
    let body = stream_body(Outgoing {
        pieces,
        finished: Arc::clone(&finished),
        ended: false,
    });
    (
        Writer {
            outgoing: PollSender::new(sender),
            finished,
        },
        body,
    )
}

impl Writer {
    pub(super) fn with(self, incoming: ByteStream) -> Duplex {
        Duplex {
            incoming,
            rest: Bytes::new(),
            outgoing: self.outgoing,
            finished: self.finished,
        }
    }
}

impl Stream for Outgoing {
    type Item = Result<Bytes, Dropped>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match ready!(self.pieces.poll_recv(cx)) {
            Some(piece) => Poll::Ready(Some(Ok(piece))),
            None => {
                self.ended = true;
                match self.finished.load(Ordering::Acquire) {
                    true => Poll::Ready(None),
                    false => Poll::Ready(Some(Err(Dropped))),
                }
            }
        }
    }
}

fn gone() -> io::Error {
    io::Error::new(
        io::ErrorKind::BrokenPipe,
        "the other end no longer takes this stream",
    )
}

impl AsyncRead for Duplex {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            match ready!(self.incoming.poll_next_unpin(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(bytes)) => self.rest = bytes,
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let take = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..take]);
        self.rest.advance(take);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(self.outgoing.poll_reserve(cx)).map_err(|_| gone())?;
        let piece = &buf[..buf.len().min(PIECE)];
        self.outgoing
            .send_item(Bytes::copy_from_slice(piece))
            .map_err(|_| gone())?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finished.store(true, Ordering::Release);
        self.outgoing.close();
        Poll::Ready(Ok(()))
    }
}
