//! Gives up on a connection that has stopped moving.
//!
//! HTTP/2 pings alone cannot tell a dead peer from a slow one: on a slow link a ping waits behind megabytes that were
//! sent before it. So the pings only make sure that a live connection always has something to say, and [`Guarded`]
//! watches the stream under them: no byte read and no byte accepted for [`Keepalive::silence`] means that it is dead.
//! On the serving side it also limits how long a peer may take over the header of a request.
//!
//! It also keeps two ends that both send in bulk from waiting for each other, see [`Ahead`].

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::ahead::Ahead;
use crate::h2::READ_AHEAD;

/// When a silent peer is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// How often a peer is asked for a sign of life.
    pub interval: Duration,
    /// How long nothing at all may move in either direction. Longer than `interval`.
    pub silence: Duration,
    /// How long an answer to a sign of life may take while other bytes do move.
    pub answer: Duration,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            silence: Duration::from_secs(10),
            answer: Duration::from_secs(120),
        }
    }
}

/// A stream that fails with [`io::ErrorKind::TimedOut`] once nothing has moved for too long.
pub(crate) struct Guarded<IO> {
    io: IO,
    silence: Duration,
    moved: Instant,
    armed: Pin<Box<Sleep>>,
    frames: Option<FrameClock>,
    ahead: Ahead,
    /// Whether the reader waits for bytes, and has not let a write wait since: then it will be woken by them.
    reads: bool,
}

impl<IO> Guarded<IO> {
    pub(crate) fn new(io: IO, silence: Duration) -> Self {
        let now = Instant::now();
        Self {
            io,
            silence,
            moved: now,
            armed: Box::pin(tokio::time::sleep_until(now + silence)),
            frames: None,
            ahead: Ahead::new(READ_AHEAD),
            reads: false,
        }
    }

    /// Also limits how long a request's header, or any frame but data, may take to arrive.
    pub(crate) fn with_header_limit(mut self, limit: Duration) -> Self {
        self.frames = Some(FrameClock::new(limit, self.moved));
        self
    }

    /// Called whenever the stream has nothing to offer: fails when the time is up, else arms the clock.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            if self.ahead.is_full()
                && let Some(frames) = &mut self.frames
            {
                // It is not the peer that keeps the rest of a header waiting.
                frames.excuse(Instant::now());
            }
            let silence = self.moved + self.silence;
            let header = self.frames.as_ref().and_then(FrameClock::deadline);
            let deadline = header.map_or(silence, |header| header.min(silence));
            let now = Instant::now();
            if now >= deadline {
                let text = if header.is_some_and(|header| now >= header) {
                    "the peer took too long over the header of a request"
                } else {
                    "nothing moved for too long; the peer is taken for dead"
                };
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            // Re-arming at every byte would cost more than waking up early once in a while.
            if self.armed.is_elapsed() || self.armed.deadline() > deadline {
                self.armed.as_mut().reset(deadline);
            }
            if self.armed.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
        }
    }

    fn settle<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
        moved: impl FnOnce(&T) -> bool,
    ) -> Poll<io::Result<T>> {
        match polled {
            Poll::Pending => match self.check(cx) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            },
            Poll::Ready(Ok(value)) => {
                if moved(&value) {
                    self.moved = Instant::now();
                }
                Poll::Ready(Ok(value))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    }
}

impl<IO: AsyncRead + Unpin> Guarded<IO> {
    /// Called whenever a write has to wait: reads ahead if nobody reads.
    fn blocked(&mut self, cx: &mut Context<'_>) {
        if std::mem::take(&mut self.reads) {
            return;
        }
        let (was_empty, now) = (self.ahead.is_empty(), Instant::now());
        let frames = &mut self.frames;
        let read = self.ahead.fill(&mut self.io, cx, |bytes| {
            if let Some(frames) = frames {
                frames.feed(bytes, now);
            }
        });
        if read > 0 {
            self.moved = now;
        }
        if was_empty && !self.ahead.is_empty() {
            // The reader may have asked before, and what would have woken it is here already.
            cx.waker().wake_by_ref();
        }
    }

    fn settle_write<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
        moved: impl FnOnce(&T) -> bool,
    ) -> Poll<io::Result<T>> {
        if polled.is_pending() {
            self.blocked(cx);
        }
        self.settle(cx, polled, moved)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guarded<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.reads = false;
        if !this.ahead.is_empty() {
            return Poll::Ready(this.ahead.take(buf));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        this.reads = polled.is_pending();
        ready!(this.settle(cx, polled, |()| true))?;
        if let Some(frames) = &mut this.frames {
            frames.feed(buf.filled().get(before..).unwrap_or_default(), this.moved);
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guarded<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_write(cx, buf);
        this.settle_write(cx, polled, |written| *written > 0)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.settle_write(cx, polled, |written| *written > 0)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_flush(cx);
        this.settle_write(cx, polled, |()| false)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_shutdown(cx);
        this.settle_write(cx, polled, |()| false)
    }
}

/// Follows the frames of HTTP/2 just far enough to know since when something other than data is incomplete.
#[derive(Debug)]
struct FrameClock {
    limit: Duration,
    preface_left: usize,
    header: [u8; 9],
    header_have: usize,
    payload_left: usize,
    payload_is_data: bool,
    block_open: bool,
    waiting_since: Option<Instant>,
}

impl FrameClock {
    const PREFACE: usize = 24;
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const CONTINUATION: u8 = 9;
    const END_HEADERS: u8 = 4;

    fn new(limit: Duration, now: Instant) -> Self {
        Self {
            limit,
            preface_left: Self::PREFACE,
            header: [0; 9],
            header_have: 0,
            payload_left: 0,
            payload_is_data: false,
            block_open: false,
            waiting_since: Some(now),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.waiting_since.map(|since| since + self.limit)
    }

    /// Starts the clock anew, if it runs.
    fn excuse(&mut self, now: Instant) {
        self.waiting_since = self.waiting_since.map(|_| now);
    }

    fn feed(&mut self, mut bytes: &[u8], now: Instant) {
        let mut completed = false;
        while !bytes.is_empty() {
            if self.preface_left > 0 {
                let take = self.preface_left.min(bytes.len());
                self.preface_left -= take;
                bytes = &bytes[take..];
                completed |= self.preface_left == 0;
            } else if self.payload_left > 0 {
                let take = self.payload_left.min(bytes.len());
                self.payload_left -= take;
                bytes = &bytes[take..];
                completed |= self.payload_left == 0 && !self.block_open;
            } else {
                let take = (self.header.len() - self.header_have).min(bytes.len());
                self.header[self.header_have..self.header_have + take].copy_from_slice(&bytes[..take]);
                self.header_have += take;
                bytes = &bytes[take..];
                if self.header_have == self.header.len() {
                    self.header_have = 0;
                    let [high, middle, low, kind, flags, ..] = self.header;
                    self.payload_left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                    self.payload_is_data = kind == Self::DATA;
                    if matches!(kind, Self::HEADERS | Self::CONTINUATION) {
                        self.block_open = flags & Self::END_HEADERS == 0;
                    }
                    completed |= self.payload_left == 0 && !self.block_open;
                }
            }
        }
        let incomplete = self.preface_left > 0
            || self.header_have > 0
            || self.block_open
            || (self.payload_left > 0 && !self.payload_is_data);
        self.waiting_since = match (incomplete, self.waiting_since) {
            (false, _) => None,
            (true, Some(since)) if !completed => Some(since),
            (true, _) => Some(now),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    fn frame(length: u32, kind: u8, flags: u8) -> Vec<u8> {
        let mut bytes = length.to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags, 0, 0, 0, 1]);
        bytes
    }

    #[test]
    fn only_an_unfinished_header_runs_against_the_clock() {
        let start = Instant::now();
        let limit = Duration::from_secs(10);
        let mut clock = FrameClock::new(limit, start);
        let later = start + Duration::from_secs(3);
        clock.feed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", later);
        assert_eq!(
            clock.deadline(),
            Some(start + limit),
            "the preface is not complete"
        );
        clock.feed(b"\n", later);
        assert_eq!(clock.deadline(), None);
        // A header block that stays open over several frames runs from its beginning.
        clock.feed(&frame(2, 1, 0), later);
        clock.feed(b"ab", later + limit / 2);
        clock.feed(&frame(1, 9, 0), later + limit / 2);
        clock.feed(b"c", later + limit / 2);
        assert_eq!(clock.deadline(), Some(later + limit));
        clock.feed(&frame(0, 9, 4), later + limit / 2);
        assert_eq!(clock.deadline(), None);
        // Data may take its time.
        clock.feed(&frame(100, 0, 0), later);
        clock.feed(&[0; 99], later);
        assert_eq!(clock.deadline(), None);
        // A new frame that begins in the same read as an old one ends has its own clock.
        let end = later + limit * 2;
        let mut bytes = vec![0];
        bytes.extend(&frame(5, 1, 4)[..4]);
        clock.feed(&bytes, end);
        assert_eq!(clock.deadline(), Some(end + limit));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_reading_and_a_full_pipe_ends_writing() {
        let silence = Duration::from_secs(10);
        let (near, mut far) = tokio::io::duplex(8);
        let mut near = Guarded::new(near, silence);
        let start = Instant::now();
        far.write_all(b"x").await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), b'x');
        let error = timeout(silence * 9, near.read_u8()).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() >= silence && start.elapsed() < silence * 2);

        let (near, _far) = tokio::io::duplex(8);
        let mut near = Guarded::new(near, silence);
        let error = timeout(silence * 9, near.write_all(&[0; 9]))
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_stream_is_not_a_dead_one() {
        let (near, mut far) = tokio::io::duplex(8);
        let mut near = Guarded::new(near, Duration::from_secs(10));
        tokio::spawn(async move {
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_secs(9)).await;
                far.write_all(b"x").await.unwrap();
            }
        });
        let mut got = Vec::new();
        near.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn two_ends_that_both_only_write_get_a_frame_through() {
        let silence = Duration::from_secs(10);
        let (near, far) = tokio::io::duplex(1 << 10);
        let mut ends = [near, far].map(|end| Guarded::new(end, silence));
        let sent = |number: u8| {
            (0..1 << 20).map(move |at: u32| number.wrapping_add(at.to_be_bytes()[3] ^ at.to_be_bytes()[1]))
        };
        let run = ends.iter_mut().zip(0..).map(|(end, number)| async move {
            // As a connection does that owes something: it reads only after it has written.
            end.write_all(&sent(number).collect::<Vec<_>>()).await?;
            let mut got = vec![0; 1 << 20];
            end.read_exact(&mut got).await?;
            io::Result::Ok(got == sent(1 - number).collect::<Vec<_>>())
        });
        for same in futures_util::future::join_all(run).await {
            assert!(same.unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_the_bound_is_read_ahead_and_its_end_is_kept() {
        let silence = Duration::from_secs(10);
        let (near, mut far) = tokio::io::duplex(1 << 10);
        let mut near = Guarded::new(near, silence);
        near.ahead = Ahead::new(5000);
        let error = {
            let flood = vec![1; 1 << 20];
            let empty = vec![0; 1 << 20];
            tokio::select! {
                result = near.write_all(&empty) => result.unwrap_err(),
                result = far.write_all(&flood) => panic!("everything was taken: {result:?}"),
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(near.ahead.bytes().len(), 5000);

        let (near, mut far) = tokio::io::duplex(1 << 10);
        let mut near = Guarded::new(near, silence);
        far.write_all(b"last").await.unwrap();
        far.shutdown().await.unwrap();
        let blocked = timeout(silence / 2, near.write_all(&[0; 2 << 10])).await;
        assert!(blocked.is_err());
        let mut got = Vec::new();
        near.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"last");
    }
}
