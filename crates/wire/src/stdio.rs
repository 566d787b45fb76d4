//! This process's standard input and output as one duplex stream, as the far end of `ssh` uses them.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// As large as an unprivileged process may make a pipe.
const PIPE: usize = 1 << 20;

/// Standard input and output, read and written without a thread in between. They have to be pipes or sockets, and
/// nothing else in the process may use them.
#[derive(Debug)]
pub struct Stdio {
    input: AsyncFd<OwnedFd>,
    output: Option<AsyncFd<OwnedFd>>,
}

impl Stdio {
    /// Takes over standard input and output. Has to be called within a runtime.
    ///
    /// # Errors
    /// When they are files or something else that cannot be waited for.
    pub fn take() -> io::Result<Self> {
        let input = rustix::io::dup(rustix::stdio::stdin())?;
        let output = rustix::io::dup(rustix::stdio::stdout())?;
        // The originals would keep the stream open after it was shut down.
        let null = rustix::fs::open(
            "/dev/null",
            OFlags::RDWR | OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        Self::new(input, output)
    }

    fn new(input: OwnedFd, output: OwnedFd) -> io::Result<Self> {
        for fd in [&input, &output] {
            fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
            enlarge_pipe(fd);
        }
        Ok(Self {
            input: AsyncFd::new(input)?,
            output: Some(AsyncFd::new(output)?),
        })
    }
}

/// Gives a pipe more room; where that is not allowed, the usual room has to do.
pub(crate) fn enlarge_pipe(fd: impl std::os::fd::AsFd) {
    if let Err(error) = rustix::pipe::fcntl_setpipe_size(fd, PIPE) {
        tracing::trace!(%error, "the pipe keeps its size");
    }
}

impl AsyncRead for Stdio {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.input.poll_read_ready(cx))?;
            let read = guard.try_io(|fd| {
                rustix::io::read(fd.get_ref(), buf.initialize_unfilled()).map_err(io::Error::from)
            });
            match read {
                Ok(Ok(read)) => {
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Stdio {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Some(output) = &self.output else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        loop {
            let mut guard = ready!(output.poll_write_ready(cx))?;
            match guard.try_io(|fd| rustix::io::write(fd.get_ref(), buf).map_err(io::Error::from)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(written) => return Poll::Ready(written),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(output) = self.output.take() {
            // A socket may be open elsewhere too; shutting it down reaches its other end regardless.
            let _ = rustix::net::shutdown(output.get_ref(), rustix::net::Shutdown::Write);
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn pipes_carry_bytes_both_ways_and_end() {
        let (input, far_output) = rustix::pipe::pipe().unwrap();
        let (far_input, output) = rustix::pipe::pipe().unwrap();
        let mut near = Stdio::new(input, output).unwrap();
        let mut far = Stdio::new(far_input, far_output).unwrap();
        let bytes = vec![7; 5 << 20];
        let sent = bytes.clone();
        let writing = tokio::spawn(async move {
            far.write_all(&sent).await.unwrap();
            far.shutdown().await.unwrap();
            far
        });
        let mut got = Vec::new();
        near.read_to_end(&mut got).await.unwrap();
        assert!(got == bytes);
        let mut far = writing.await.unwrap();
        near.write_all(b"answer").await.unwrap();
        near.shutdown().await.unwrap();
        let mut answer = String::new();
        far.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
    }
}
