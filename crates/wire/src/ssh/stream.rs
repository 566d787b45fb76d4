//! A running `ssh` as a byte stream.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, BufReader, ReadBuf};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Sleep, sleep, timeout};
use tranship_core::address::SshAddress;

use super::SshError;
use crate::stdio::enlarge_pipe;

/// How much of what `ssh` says is kept.
const TAIL: usize = 8 << 10;
/// How long `ssh` may take to end by itself after its output ended, and after it was told to.
const END: Duration = Duration::from_secs(2);
/// How long the rest of its words is waited for: a master connection that lives on may hold them open for ever.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// What `ssh` said on its standard error, as far as it is kept. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct SshDiagnostics(Arc<Mutex<VecDeque<u8>>>);

impl SshDiagnostics {
    /// The last words, not yet made fit for a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        let tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&tail.iter().copied().collect::<Vec<u8>>()).into_owned()
    }

    fn add(&self, bytes: &[u8]) {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(bytes);
        let surplus = tail.len().saturating_sub(TAIL);
        tail.drain(..surplus);
    }
}

/// The standard input and output of a command at the other end. Dropping it ends `ssh`.
///
/// Its end is clean only if the command there ended with success; everything else is an error with an [`SshError`]
/// inside.
#[derive(Debug)]
pub struct SshStream {
    input: Option<ChildStdin>,
    output: ChildStdout,
    address: SshAddress,
    said: SshDiagnostics,
    received: bool,
    ending: Option<Ending>,
    // Dropping this tells the keeper to end ssh.
    _hold: oneshot::Sender<()>,
    keeper: Option<JoinHandle<io::Result<ExitStatus>>>,
}

#[derive(Debug)]
struct Ending {
    patience: Pin<Box<Sleep>>,
}

impl SshStream {
    pub(super) fn new(mut child: Child, address: SshAddress) -> io::Result<Self> {
        let missing = || io::Error::other("ssh was started without its pipes");
        let input = child.stdin.take().ok_or_else(missing)?;
        let output = child.stdout.take().ok_or_else(missing)?;
        let errors = child.stderr.take().ok_or_else(missing)?;
        enlarge_pipe(&input);
        enlarge_pipe(&output);
        let said = SshDiagnostics::default();
        let listener = tokio::spawn(listen(errors, said.clone(), address.to_string()));
        let (hold, held) = oneshot::channel();
        let keeper = tokio::spawn(keep(child, held, listener));
        Ok(Self {
            input: Some(input),
            output,
            address,
            said,
            received: false,
            ending: None,
            _hold: hold,
            keeper: Some(keeper),
        })
    }

    /// What `ssh` said so far.
    #[must_use]
    pub fn diagnostics(&self) -> SshDiagnostics {
        self.said.clone()
    }

    fn failure(&self, status: &io::Result<ExitStatus>) -> Option<SshError> {
        let address = self.address.clone();
        let said = self.said.text();
        match status {
            Ok(status) if status.success() => None,
            // This is how ssh reports failures of its own.
            Ok(status) if status.code() == Some(255) && !self.received => {
                Some(SshError::classify(address, &said))
            }
            Ok(status) => {
                let text = crate::error::printable(&said, 500);
                let text = if text.is_empty() {
                    "it said nothing".to_owned()
                } else {
                    text
                };
                Some(SshError::Ended {
                    address,
                    code: status.code(),
                    text,
                })
            }
            Err(error) => Some(SshError::Failed {
                address,
                text: error.to_string(),
            }),
        }
    }
}

/// Collects what ssh says, and passes it on line by line.
async fn listen(errors: ChildStderr, said: SshDiagnostics, host: String) {
    let mut errors = BufReader::new(errors);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line without an end must not grow without one either.
        match (&mut errors).take(TAIL as u64).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                said.add(&line);
                tracing::debug!(
                    host,
                    "ssh: {}",
                    crate::error::printable(&String::from_utf8_lossy(&line), 500)
                );
            }
        }
    }
}

/// Waits for ssh to end, and sees to it that it does once nobody needs it.
async fn keep(
    mut child: Child,
    held: oneshot::Receiver<()>,
    listener: JoinHandle<()>,
) -> io::Result<ExitStatus> {
    let ended = tokio::select! {
        status = child.wait() => Some(status),
        _ = held => None,
    };
    let status = match ended {
        Some(status) => status,
        None => stop(&mut child).await,
    };
    if timeout(LAST_WORDS, listener).await.is_err() {
        tracing::trace!("something still holds the standard error of ssh");
    }
    status
}

/// Ends ssh: first so that it can tidy up, then so that it must.
async fn stop(child: &mut Child) -> io::Result<ExitStatus> {
    // As long as it was not waited for, the id belongs to our own child.
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    if let Some(pid) = pid {
        let _ = kill_process(pid, Signal::TERM);
    }
    match timeout(END, child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            child.start_kill()?;
            child.wait().await
        }
    }
}

impl AsyncRead for SshStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ending.is_none() {
            let before = buf.filled().len();
            ready!(Pin::new(&mut self.output).poll_read(cx, buf))?;
            if buf.filled().len() > before || buf.remaining() == 0 {
                self.received |= buf.filled().len() > before;
                return Poll::Ready(Ok(()));
            }
            self.ending = Some(Ending {
                patience: Box::pin(sleep(END)),
            });
        }
        // The output has ended; how it ended shows in the status.
        let Some(keeper) = &mut self.keeper else {
            return Poll::Ready(Ok(()));
        };
        let status = match Pin::new(keeper).poll(cx) {
            Poll::Ready(Ok(status)) => status,
            Poll::Ready(Err(error)) => Err(io::Error::other(error)),
            Poll::Pending => {
                if let Some(ending) = &mut self.ending {
                    ready!(ending.patience.as_mut().poll(cx));
                }
                Err(io::Error::other("its output ended, but it goes on"))
            }
        };
        self.keeper = None;
        match self.failure(&status) {
            None => Poll::Ready(Ok(())),
            Some(error) => Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, error))),
        }
    }
}

fn shut() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the input of ssh was closed already")
}

impl AsyncWrite for SshStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.input {
            Some(input) => Pin::new(input).poll_write(cx, buf),
            None => Poll::Ready(Err(shut())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.input {
            Some(input) => Pin::new(input).poll_write_vectored(cx, bufs),
            None => Poll::Ready(Err(shut())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.input.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.input {
            Some(input) => Pin::new(input).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input = None;
        Poll::Ready(Ok(()))
    }
}
