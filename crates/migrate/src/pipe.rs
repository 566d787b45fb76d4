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
