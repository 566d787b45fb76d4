//! Bytes that were read before anybody asked for them, within bounds.
//!
//! An HTTP/2 connection that owes its peer a small frame, such as a ping's answer, stops reading until it can write
//! it. When both ends do so with a large frame half written, each waits for the other to read. So whoever cannot write
//! and does not ask for bytes either takes some off the line and keeps them: the other end gets its frame through,
//! writes what it owes, and reads again.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

/// How much is read at once.
const STEP: usize = 64 << 10;

/// What was read ahead, and how the stream ended if it did.
#[derive(Debug)]
pub(crate) struct Ahead {
    bytes: BytesMut,
    bound: usize,
    end: Option<io::Result<()>>,
}

impl Ahead {
    /// Keeps up to `bound` bytes.
    pub(crate) fn new(bound: usize) -> Self {
        Self {
            bytes: BytesMut::new(),
            bound,
            end: None,
        }
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether there is nothing to hand out.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.end.is_none()
    }

    /// Whether nothing more is read ahead.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() >= self.bound || self.end.is_some()
    }

    /// Reads until the stream has nothing to offer, ends, or the bound is reached. Hands every piece to `seen` and
    /// returns how many bytes there were. Unless it is full now, the task is woken when there is more.
    pub(crate) fn fill<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
        mut seen: impl FnMut(&[u8]),
    ) -> usize {
        let before = self.bytes.len();
        while !self.is_full() {
            let have = self.bytes.len();
            let step = STEP.min(self.bound - have);
            self.bytes.reserve(step);
            match poll_read_buf(Pin::new(io), cx, &mut (&mut self.bytes).limit(step)) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => self.end = Some(Ok(())),
                Poll::Ready(Ok(_)) => seen(self.bytes.get(have..).unwrap_or_default()),
                Poll::Ready(Err(error)) => self.end = Some(Err(error)),
            }
        }
        self.bytes.len() - before
    }

    /// Hands out what there is, in the order in which it came, and its end once.
    pub(crate) fn take(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        if self.bytes.is_empty() {
            return self.end.take().unwrap_or(Ok(()));
        }
        let take = self.bytes.len().min(buf.remaining());
        buf.put_slice(self.bytes.get(..take).unwrap_or_default());
        self.bytes.advance(take);
        if self.bytes.is_empty() {
            // Rarely needed and possibly large.
            self.bytes = BytesMut::new();
        }
        Ok(())
    }
}
