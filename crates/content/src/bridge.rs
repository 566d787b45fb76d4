//! From a [`Pipe`] of tasks to streams for threads.

use std::io::{self, Read, Write};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tranship_core::storage::Pipe;

/// After this long without a byte the other side is taken for gone. It says that it is alive much more often.
pub const IDLE: Duration = Duration::from_secs(60);

/// What both halves need.
#[derive(Clone)]
struct Wait {
    runtime: Handle,
    idle: Duration,
    stop: CancellationToken,
}

impl Wait {
    fn on<T>(&self, what: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => Err(io::Error::new(
                    io::ErrorKind::ConnectionAborted,
                    "the round was stopped",
                )),
                done = tokio::time::timeout(self.idle, what) => done.unwrap_or_else(|_| {
                    Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("nothing moved for {} s", self.idle.as_secs()),
                    ))
                }),
            }
        })
    }
}

/// The half of a pipe that a thread reads from.
pub struct Incoming {
    half: ReadHalf<Pipe>,
    wait: Wait,
}

/// The half of a pipe that a thread writes to.
pub struct Outgoing {
    half: WriteHalf<Pipe>,
    wait: Wait,
}

/// Splits a pipe for threads that are no tasks' own. Both halves fail once `stop` is cancelled, or when nothing moved for `idle`.
#[must_use]
pub fn split(pipe: Pipe, runtime: Handle, idle: Duration, stop: CancellationToken) -> (Incoming, Outgoing) {
    let (read, write) = tokio::io::split(pipe);
    let wait = Wait { runtime, idle, stop };
    (
        Incoming {
            half: read,
            wait: wait.clone(),
        },
        Outgoing { half: write, wait },
    )
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.wait.on(self.half.read(buffer))
    }
}

impl Write for Outgoing {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.wait.on(self.half.write(buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.wait.on(self.half.flush())
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        // The other side may be gone, or this one stopped; then there is nothing to end.
        let _ = self.wait.on(self.half.shutdown());
    }
}
