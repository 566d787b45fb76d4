//! A byte stream in both directions, made of the two bodies of one request.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

use super::PIECE;
use super::body::{Body, ByteStream, Place, stream_body};
use crate::error::WireError;

/// How much more than a piece one write takes: a frame of a nested connection is a piece and its header.
const EXTRA: usize = 4 << 10;
/// How many pieces wait between the writer and the connection.
const PIECES: usize = 8;

/// A duplex stream inside a connection.
///
/// `shutdown` ends the writing side cleanly. Dropping it without that resets the stream, so that the other end does
/// not take what it got for everything: it reads an error with a [`WireError`] inside.
///
/// When the other end does not read, at most about 3 MiB (2 MiB between writer and connection, 1 MiB within the
/// connection) are held here and 8 MiB there; then writing waits. Reading goes on meanwhile, whoever else waits.
///
/// As [`AsyncRead`] and [`AsyncWrite`] it copies every byte once; [`Duplex::split`] gives the halves, which pass
/// [`Bytes`] on as they are.
#[derive(Debug)]
pub struct Duplex {
    incoming: ByteStream,
    outgoing: DuplexSender,
}

/// The writing half of a [`Duplex`]. Dropping it without [`DuplexSender::finish`] or `shutdown` resets the stream.
#[derive(Debug)]
pub struct DuplexSender {
    outgoing: PollSender<Bytes>,
    finished: Arc<AtomicBool>,
    place: Place,
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

/// A writing half and the body that carries what is written to it.
pub(super) fn sender(place: Place) -> (DuplexSender, Body) {
    let (sender, pieces) = mpsc::channel(PIECES);
    let finished = Arc::new(AtomicBool::new(false));
    let body = stream_body(Outgoing {
        pieces,
        finished: Arc::clone(&finished),
        ended: false,
    });
    let sender = DuplexSender {
        outgoing: PollSender::new(sender),
        finished,
        place,
    };
    (sender, body)
}

impl Duplex {
    pub(super) fn new(outgoing: DuplexSender, incoming: ByteStream) -> Self {
        Self { incoming, outgoing }
    }

    /// Whether the other end has gone, as far as that is known without reading: nothing that is written gets there any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let sender = self.outgoing.outgoing.get_ref();
        sender.is_none_or(mpsc::Sender::is_closed)
    }

    /// The two halves, for use by two tasks at once and without copying. A sender that is dropped before its end breaks
    /// off both directions; when the receiving half is dropped, what still comes is thrown away and sending goes on.
    #[must_use]
    pub fn split(self) -> (DuplexSender, ByteStream) {
        (self.outgoing, self.incoming)
    }
}

impl DuplexSender {
    /// Sends bytes without copying them, as soon as there is room. Many small pieces cost more than few large ones.
    ///
    /// Dropping the future before it is through may have sent a part of them.
    ///
    /// # Errors
    /// [`WireError::Aborted`] when the other end takes no more. Why, such as a lost connection, is what reading says.
    pub async fn send(&mut self, mut bytes: Bytes) -> Result<(), WireError> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            std::future::poll_fn(|cx| self.outgoing.poll_reserve(cx))
                .await
                .and_then(|()| self.outgoing.send_item(piece))
                .map_err(|_| WireError::Aborted {
                    peer: self.place.peer.clone(),
                    what: self.place.what.clone(),
                    source: gone().into(),
                })?;
        }
        Ok(())
    }

    /// Ends the stream cleanly. What was sent is still on its way: only an answer shows that it arrived.
    pub fn finish(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.finished.store(true, Ordering::Release);
        self.outgoing.close();
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
        Pin::new(&mut self.incoming).poll_read(cx, buf)
    }
}

impl AsyncWrite for DuplexSender {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let there = bufs
            .iter()
            .fold(0, |sum: usize, buf| sum.saturating_add(buf.len()));
        let take = if there <= PIECE + EXTRA { there } else { PIECE };
        if take == 0 {
            return Poll::Ready(Ok(0));
        }
        ready!(self.outgoing.poll_reserve(cx)).map_err(|_| gone())?;
        let mut piece = BytesMut::with_capacity(take);
        for buf in bufs {
            let left = take - piece.len();
            piece.put_slice(buf.get(..left).unwrap_or(buf));
        }
        self.outgoing.send_item(piece.freeze()).map_err(|_| gone())?;
        Poll::Ready(Ok(take))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.outgoing).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.outgoing).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.outgoing).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.outgoing).poll_shutdown(cx)
    }
}
