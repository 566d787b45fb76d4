//! Joins streams of the asynchronous world to readers and writers that block.

use std::io::{self, Read, Write};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tranship_core::Fault;

/// Bytes that go on as one.
const PIECE: usize = 256 << 10;
/// Pieces that may wait.
const WAITING: usize = 8;

/// What a stream brings: its end is said, so that one that was dropped is not taken for a short one.
enum Item {
    Data(Bytes),
    Failed(io::Error),
    End,
}

/// Reads a stream, for a thread that may block.
pub struct StreamReader {
    items: mpsc::Receiver<Item>,
    rest: Bytes,
    ended: bool,
}

/// A reader of this stream, which is driven by a task of its own.
pub fn reader<S, E>(mut stream: S) -> StreamReader
where
    S: Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    let (sender, items) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        loop {
            let item = match stream.next().await {
                Some(Ok(bytes)) => Item::Data(bytes),
                Some(Err(error)) => Item::Failed(io::Error::other(error)),
                None => Item::End,
            };
            let last = !matches!(item, Item::Data(_));
            // Nobody reads on after an error of the reader's own.
            if sender.send(item).await.is_err() || last {
                break;
            }
        }
    });
    StreamReader {
        items,
        rest: Bytes::new(),
        ended: false,
    }
}

impl Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.ended {
            match self.items.blocking_recv() {
                Some(Item::Data(bytes)) => self.rest = bytes,
                Some(Item::End) => self.ended = true,
                Some(Item::Failed(error)) => return Err(error),
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the stream was broken off",
                    ));
                }
            }
        }
        let length = self.rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..length), self.rest.get(..length)) {
            to.copy_from_slice(from);
        }
        self.rest.advance(length);
        Ok(length)
    }
}

/// Writes pieces of a stream, for a thread that may block.
pub struct StreamWriter {
    pieces: mpsc::Sender<Result<Bytes, Fault>>,
    buffer: BytesMut,
}

impl StreamWriter {
    fn pass_on(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            // Whoever has nothing to write for long asks so whether anybody still listens.
            return match self.pieces.is_closed() {
                true => Err(io::ErrorKind::BrokenPipe.into()),
                false => Ok(()),
            };
        }
        let next = BytesMut::with_capacity(2 * PIECE);
        let piece = std::mem::replace(&mut self.buffer, next).freeze();
        self.pieces
            .blocking_send(Ok(piece))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

impl Write for StreamWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            self.pass_on()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pass_on()
    }
}

/// Pieces that a thread writes, and the fault that it may end with.
pub type Pieces = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, Fault>> + Send>>;

/// Runs `work` on a thread that may block; what it writes is the stream. An error before the first bytes is the result, one
/// after them ends the stream.
///
/// # Errors
/// The fault of work that fails at once.
pub async fn writer<W>(work: W) -> Result<Pieces, Fault>
where
    W: FnOnce(&mut StreamWriter) -> Result<(), Fault> + Send + 'static,
{
    let (pieces, mut receiver) = mpsc::channel(WAITING);
    tokio::task::spawn_blocking(move || {
        let mut out = StreamWriter {
            pieces: pieces.clone(),
            buffer: BytesMut::with_capacity(2 * PIECE),
        };
        let done = work(&mut out).and_then(|()| {
            out.flush().map_err(|e| {
                Fault::new(
                    "stream.closed",
                    tranship_core::FaultKind::Environment,
                    e.to_string(),
                )
            })
        });
        if let Err(fault) = done {
            // Nobody may be left to hear it.
            let _ = pieces.blocking_send(Err(fault));
        }
    });
    let first = match receiver.recv().await {
        Some(first) => Some(Ok(first?)),
        None => None,
    };
    let rest = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    Ok(Box::pin(futures_util::stream::iter(first).chain(rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_writer_without_bytes_sees_that_nobody_listens_any_more() {
        let (tell, told) = std::sync::mpsc::channel();
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        let writing = tokio::spawn(writer(move |out| {
            tell.send(out.flush()).unwrap();
            wait.recv().unwrap();
            tell.send(out.flush()).unwrap();
            Ok(())
        }));
        let told = tokio::task::spawn_blocking(move || (told.recv().unwrap(), told)).await;
        let (first, told) = told.unwrap();
        assert!(first.is_ok());
        writing.abort();
        assert!(writing.await.is_err());
        go_on.send(()).unwrap();
        let second = tokio::task::spawn_blocking(move || told.recv().unwrap())
            .await
            .unwrap();
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
