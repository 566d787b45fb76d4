//! Joins two duplex streams, as the caller does for agents that cannot reach each other.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader, ReadBuf};

/// Enough to keep a fast link busy.
const BUFFER: usize = 256 << 10;

/// How many bytes went through a relay so far; readable while it runs.
#[derive(Debug, Default)]
pub struct RelayCounts {
    forward: AtomicU64,
    back: AtomicU64,
}

impl RelayCounts {
    /// Bytes from the first stream to the second.
    pub fn forward(&self) -> u64 {
        self.forward.load(Ordering::Relaxed)
    }

    /// Bytes from the second stream to the first.
    pub fn back(&self) -> u64 {
        self.back.load(Ordering::Relaxed)
    }
}

/// Copies in both directions until both ends are through.
///
/// The end of one stream is passed on as an end, and the other direction goes on. After an error both streams are
/// dropped, which their other ends see as an error if the streams can tell one from the other.
///
/// # Errors
/// The first failure of either stream.
pub async fn relay<A, B>(first: A, second: B, counts: &Arc<RelayCounts>) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut first = Counted {
        io: first,
        counts: Arc::clone(counts),
    };
    let mut second = second;
    tokio::io::copy_bidirectional_with_sizes(&mut first, &mut second, BUFFER, BUFFER)
        .await
        .map(drop)
}

/// Copies in both directions until the second stream has ended, which is the end of all: whoever is behind it is gone, and
/// reads nothing that still comes. The end of the first stream is passed on, and what is answered to it still comes.
///
/// # Errors
/// The first failure of either stream.
pub async fn relay_until_gone<A, B>(first: A, second: B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (first_in, mut first_out) = tokio::io::split(first);
    let (second_in, mut second_out) = tokio::io::split(second);
    let forward = async {
        let mut first_in = BufReader::with_capacity(BUFFER, first_in);
        tokio::io::copy_buf(&mut first_in, &mut second_out).await?;
        second_out.shutdown().await?;
        std::future::pending::<io::Result<()>>().await
    };
    let back = async {
        let mut second_in = BufReader::with_capacity(BUFFER, second_in);
        tokio::io::copy_buf(&mut second_in, &mut first_out).await?;
        first_out.shutdown().await
    };
    tokio::select! {
        ended = back => ended,
        failed = forward => failed,
    }
}

struct Counted<IO> {
    io: IO,
    counts: Arc<RelayCounts>,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Counted<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let read = buf.filled().len().saturating_sub(before);
        self.counts.forward.fetch_add(read as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Counted<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        self.counts.back.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn the_end_of_whoever_answers_is_the_end_of_all() {
        let (mut caller, near) = tokio::io::duplex(16);
        let (mut agent, far) = tokio::io::duplex(16);
        let relayed = tokio::spawn(relay_until_gone(near, far));
        caller.write_all(b"asked").await.unwrap();
        let mut asked = [0; 5];
        agent.read_exact(&mut asked).await.unwrap();
        agent.write_all(b"answer").await.unwrap();
        drop(agent);
        // The caller's own end is still open.
        let mut got = String::new();
        caller.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "answer");
        relayed.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_is_answered_after_the_last_question_still_comes() {
        let (mut caller, near) = tokio::io::duplex(16);
        let (mut agent, far) = tokio::io::duplex(16);
        let relayed = tokio::spawn(relay_until_gone(near, far));
        caller.write_all(b"asked").await.unwrap();
        caller.shutdown().await.unwrap();
        let mut got = String::new();
        agent.read_to_string(&mut got).await.unwrap();
        agent.write_all(b"answer").await.unwrap();
        drop(agent);
        got.clear();
        caller.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "answer");
        relayed.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn both_directions_are_copied_counted_and_ended_one_by_one() {
        let (mut a, near) = tokio::io::duplex(16);
        let (mut b, far) = tokio::io::duplex(16);
        let counts = Arc::new(RelayCounts::default());
        let relayed = tokio::spawn({
            let counts = Arc::clone(&counts);
            async move { relay(near, far, &counts).await }
        });
        a.write_all(b"forward").await.unwrap();
        a.shutdown().await.unwrap();
        let mut got = String::new();
        b.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "forward");
        // The way back is still open.
        b.write_all(b"back").await.unwrap();
        b.shutdown().await.unwrap();
        got.clear();
        a.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "back");
        relayed.await.unwrap().unwrap();
        assert_eq!((counts.forward(), counts.back()), (7, 4));
    }
}
