//! This process's standard input and output as one duplex stream, as the far end of `ssh` uses them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::fs::{FileType, Mode, OFlags};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::{Receiver, Sender};

/// As large as an unprivileged process may make a pipe.
const PIPE: usize = 1 << 20;

/// Standard input and output, read and written without a thread in between. They have to be pipes or unix sockets, as
/// `sshd` and parents of processes use them, and nothing else in the process may use them.
#[derive(Debug)]
pub struct Stdio {
    input: Input,
    output: Output,
}

#[derive(Debug)]
enum Input {
    Pipe(Receiver),
    Socket(UnixStream),
}

#[derive(Debug)]
enum Output {
    Pipe(Sender),
    Socket(UnixStream),
    Shut,
}

impl Stdio {
    /// Takes over standard input and output. Has to be called within a runtime.
    ///
    /// # Errors
    /// When they are files or something else that cannot be waited for.
    pub fn take() -> io::Result<Self> {
        let input = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        let output = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
        let stdio = Self::new(input, output)?;
        // The originals would keep the stream open after it was shut down.
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        Ok(stdio)
    }

    fn new(input: OwnedFd, output: OwnedFd) -> io::Result<Self> {
        let input = match is_socket(&input)? {
            true => Input::Socket(socket(input)?),
            false => {
                enlarge_pipe(&input);
                Input::Pipe(Receiver::from_owned_fd(input)?)
            }
        };
        let output = match is_socket(&output)? {
            true => Output::Socket(socket(output)?),
            false => {
                enlarge_pipe(&output);
                Output::Pipe(Sender::from_owned_fd(output)?)
            }
        };
        Ok(Self { input, output })
    }
}

fn is_socket(fd: &OwnedFd) -> io::Result<bool> {
    let stat = rustix::fs::fstat(fd)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Socket)
}

fn socket(fd: OwnedFd) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Gives a pipe more room; where that is not allowed, the usual room has to do.
pub(crate) fn enlarge_pipe(fd: impl AsFd) {
    if let Err(error) = rustix::pipe::fcntl_setpipe_size(fd, PIPE) {
        tracing::trace!(%error, "the pipe keeps its size");
    }
}

impl AsyncRead for Stdio {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.input {
            Input::Pipe(pipe) => Pin::new(pipe).poll_read(cx, buf),
            Input::Socket(socket) => Pin::new(socket).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stdio {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.output {
            Output::Pipe(pipe) => Pin::new(pipe).poll_write(cx, buf),
            Output::Socket(socket) => Pin::new(socket).poll_write(cx, buf),
            Output::Shut => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Output::Socket(socket) = &mut self.output {
            return Pin::new(socket).poll_shutdown(cx);
        }
        self.output = Output::Shut;
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
        there_and_back(
            Stdio::new(input, output).unwrap(),
            Stdio::new(far_input, far_output).unwrap(),
        )
        .await;
    }

    #[tokio::test]
    async fn sockets_carry_bytes_both_ways_and_end() {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let both =
            |end: std::os::unix::net::UnixStream| Stdio::new(end.try_clone().unwrap().into(), end.into());
        there_and_back(both(near).unwrap(), both(far).unwrap()).await;
    }

    #[tokio::test]
    async fn what_cannot_be_waited_for_is_refused() {
        let file = || OwnedFd::from(tempfile::tempfile().unwrap());
        assert!(Stdio::new(file(), file()).is_err());
    }

    async fn there_and_back(mut near: Stdio, mut far: Stdio) {
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
