//! A stream that can be broken from this side, so that whoever works on it in a thread of its own comes to an end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tranship_core::storage::Pipe;

/// A pipe that fails once its token is cancelled.
struct Breakable {
    pipe: Pipe,
    // One for each direction: they may be worked on by two tasks, and each is to be woken.
    reading: Watch,
    writing: Watch,
}

struct Watch {
    broken: Pin<Box<WaitForCancellationFutureOwned>>,
    over: bool,
}

/// The pipe, failing in both directions once `token` is cancelled.
#[must_use]
pub fn breakable(pipe: Pipe, token: &CancellationToken) -> Pipe {
    Box::new(Breakable {
        pipe,
        reading: Watch::new(token),
        writing: Watch::new(token),
    })
}

impl Watch {
    fn new(token: &CancellationToken) -> Self {
        Self {
            broken: Box::pin(token.clone().cancelled_owned()),
            over: false,
        }
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if !self.over && self.broken.as_mut().poll(context).is_ready() {
            self.over = true;
        }
        if self.over {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the migration was given up",
            ));
        }
        Ok(())
    }
}

impl AsyncRead for Breakable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.reading.check(context)?;
        Pin::new(&mut self.pipe).poll_read(context, buffer)
    }
}

impl AsyncWrite for Breakable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writing.check(context)?;
        Pin::new(&mut self.pipe).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writing.check(context)?;
        Pin::new(&mut self.pipe).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writing.check(context)?;
        Pin::new(&mut self.pipe).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_pipe_carries_both_ways_until_it_is_broken_and_nothing_after() {
        let (here, there) = tokio::io::duplex(16);
        let token = CancellationToken::new();
        let (mut pipe, mut other) = (breakable(Box::new(here), &token), there);
        let mut bytes = [0; 4];
        pipe.write_all(b"ping").await.unwrap();
        pipe.flush().await.unwrap();
        other.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ping");
        other.write_all(b"pong").await.unwrap();
        pipe.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"pong");

        other.write_all(b"late").await.unwrap();
        token.cancel();
        // Asked again, it says the same again.
        for _ in 0..2 {
            let errors = [
                pipe.read(&mut bytes).await.map(|_| ()).unwrap_err(),
                pipe.write(b"late").await.map(|_| ()).unwrap_err(),
                pipe.flush().await.unwrap_err(),
                pipe.shutdown().await.unwrap_err(),
            ];
            for error in errors {
                assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
            }
        }
    }

    #[tokio::test]
    async fn whoever_waits_is_woken_when_it_breaks() {
        let (here, _there) = tokio::io::duplex(1);
        let token = CancellationToken::new();
        let (mut reader, mut writer) = tokio::io::split(breakable(Box::new(here), &token));
        let reading = tokio::spawn(async move { reader.read_u8().await });
        let writing = tokio::spawn(async move { writer.write_all(b"more than fits").await });
        tokio::task::yield_now().await;
        token.cancel();
        assert!(reading.await.unwrap().is_err() && writing.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn the_other_end_sees_a_pipe_that_was_shut_down_end() {
        let (here, mut there) = tokio::io::duplex(16);
        let mut pipe = breakable(Box::new(here), &CancellationToken::new());
        pipe.shutdown().await.unwrap();
        assert_eq!(there.read(&mut [0; 4]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn what_is_flushed_is_on_its_way() {
        let (here, mut there) = tokio::io::duplex(16);
        let pipe = tokio::io::BufWriter::new(here);
        let mut pipe = breakable(Box::new(pipe), &CancellationToken::new());
        pipe.write_all(b"data").await.unwrap();
        pipe.flush().await.unwrap();
        let mut bytes = [0; 4];
        let read = there.read_exact(&mut bytes);
        let read = futures_util::FutureExt::now_or_never(read);
        assert_eq!(read.unwrap().unwrap(), 4);
    }
}
