//! Archives that are kept in a file on their way.
//!
//! The engine locks a container for a whole download as it does for a whole upload, and answers no question about it
//! meanwhile. Where the sending end of a copy holds what the receiving end asks for, both would wait for ever: two copies
//! in opposite directions, or one within a container. So whoever waits for the engine takes in the archive meanwhile.

use std::io::{self, Read, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tranship_core::Fault;
use tranship_core::fault::FaultKind;

use super::blocking;
use super::bridge::StreamReader;

/// How long the engine may take for its answer before the archive is taken in: an engine that nobody holds up answers in
/// milliseconds.
const PATIENCE: Duration = Duration::from_millis(700);

/// An archive on its way in.
pub(super) enum Incoming {
    /// It is still arriving.
    Stream(StreamReader),
    /// All of it is here.
    File(std::fs::File),
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Stream(stream) => stream.read(buffer),
            Self::File(file) => file.read(buffer),
        }
    }
}

/// Waits for an answer of the engine, and takes the archive in if that takes long. `ask` is called again if the engine gave up
/// while the archive arrived. Whether the archive is here is said apart: an answer may be something that has to be closed.
///
/// # Errors
/// The answer's. The archive's are `agent.spool` and `archive.read`.
pub(super) async fn meanwhile<T, A, F>(
    ask: A,
    directory: PathBuf,
    stream: StreamReader,
) -> Result<(T, Result<Incoming, Fault>), Fault>
where
    A: Fn() -> F,
    F: Future<Output = Result<T, Fault>>,
{
    let mut answer = std::pin::pin!(ask());
    tokio::select! {
        answer = &mut answer => return Ok((answer?, Ok(Incoming::Stream(stream)))),
        () = tokio::time::sleep(PATIENCE) => {}
    }
    let mut taken_in = std::pin::pin!(take_in(directory, stream));
    let (answer, file) = tokio::select! {
        file = &mut taken_in => (answer.await, file),
        answer = &mut answer => match answer {
            // It may have been this archive's own sender that held it up.
            Err(fault) if fault.code != "engine.uncertain" => return Err(fault),
            answer => (answer, taken_in.await),
        },
    };
    let answer = match answer {
        Err(fault) if fault.code == "engine.uncertain" && file.is_ok() => ask().await?,
        answer => answer?,
    };
    Ok((answer, file.map(Incoming::File)))
}

async fn take_in(directory: PathBuf, mut stream: StreamReader) -> Result<std::fs::File, Fault> {
    blocking(move || {
        let failed = |e: io::Error| cannot_keep(&directory, &e);
        let mut file = nameless(&directory).map_err(failed)?;
        let mut buffer = vec![0; 262_144];
        loop {
            let length = stream
                .read(&mut buffer)
                .map_err(|e| Fault::new("archive.read", FaultKind::Environment, e.to_string()))?;
            if length == 0 {
                break;
            }
            file.write_all(buffer.get(..length).unwrap_or_default())
                .map_err(failed)?;
        }
        file.rewind().map_err(failed)?;
        Ok(file)
    })
    .await
}

/// Why an archive cannot be kept.
pub(crate) fn cannot_keep(directory: &Path, error: &io::Error) -> Fault {
    Fault::new(
        "agent.spool",
        FaultKind::Environment,
        format!("the archive cannot be kept in {}: {error}", directory.display()),
    )
    .with_hint("the agent's state directory needs space and write permission")
}

/// A file that nobody else finds and that is gone when it is closed.
pub(crate) fn nameless(directory: &Path) -> io::Result<std::fs::File> {
    use rustix::fs::{Mode, OFlags};
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let fd = rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)?;
    Ok(fd.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use bytes::Bytes;
    use futures_util::StreamExt as _;

    /// Many pieces, more than any buffer takes; `sent` is set at the end.
    fn pieces(sent: Arc<AtomicBool>) -> StreamReader {
        let pieces = futures_util::stream::iter(0..100).map(move |number| {
            sent.store(number == 99, Ordering::Relaxed);
            Ok::<_, io::Error>(Bytes::from(vec![number; 10_000]))
        });
        super::super::bridge::reader(pieces)
    }

    async fn read(mut incoming: Incoming) -> usize {
        blocking(move || {
            let mut all = Vec::new();
            incoming.read_to_end(&mut all).unwrap();
            Ok(all.len())
        })
        .await
        .unwrap()
    }

    #[tokio::test]
    async fn an_answer_that_waits_for_the_sender_comes() {
        let directory = tempfile::tempdir().unwrap();
        let sent = Arc::new(AtomicBool::new(false));
        let waiting = Arc::clone(&sent);
        let ask = || async {
            while !waiting.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(7)
        };
        let stream = pieces(Arc::clone(&sent));
        let (answer, incoming) = meanwhile(ask, directory.path().to_owned(), stream).await.unwrap();
        let incoming = incoming.unwrap();
        assert!(answer == 7 && matches!(incoming, Incoming::File(_)));
        assert_eq!(read(incoming).await, 1_000_000);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn an_engine_that_gave_up_is_asked_again() {
        let directory = tempfile::tempdir().unwrap();
        let asked = AtomicUsize::new(0);
        let ask = || async {
            if asked.fetch_add(1, Ordering::Relaxed) == 0 {
                tokio::time::sleep(2 * PATIENCE).await;
                return Err(Fault::new("engine.uncertain", FaultKind::Environment, "late"));
            }
            Ok(())
        };
        let stream = pieces(Arc::default());
        let ((), incoming) = meanwhile(ask, directory.path().to_owned(), stream).await.unwrap();
        assert_eq!(read(incoming.unwrap()).await, 1_000_000);
    }

    #[tokio::test]
    async fn what_was_opened_is_handed_back_for_closing_although_the_archive_broke_off() {
        let directory = tempfile::tempdir().unwrap();
        let broken = futures_util::stream::iter([
            Ok(Bytes::from_static(b"part")),
            Err(io::Error::other("the sender is gone")),
        ]);
        let stream = super::super::bridge::reader(broken);
        let ask = || async {
            tokio::time::sleep(2 * PATIENCE).await;
            Ok("opened")
        };
        let (opened, incoming) = meanwhile(ask, directory.path().to_owned(), stream).await.unwrap();
        assert_eq!(opened, "opened");
        assert!(incoming.is_err_and(|fault| fault.code == "archive.read"));
    }

    #[tokio::test]
    async fn a_quick_answer_takes_nothing_in() {
        let directory = tempfile::tempdir().unwrap();
        let stream = pieces(Arc::default());
        let ask = || async { Ok(()) };
        let ((), incoming) = meanwhile(ask, directory.path().join("never"), stream)
            .await
            .unwrap();
        let incoming = incoming.unwrap();
        assert!(matches!(incoming, Incoming::Stream(_)) && !directory.path().join("never").exists());
        assert_eq!(read(incoming).await, 1_000_000);
    }
}
