//! Elements as plain tar archives, for nodes where this process is not root and only the engine reaches the files.
//!
//! The engine can give out and take in archives, but it can neither look at single files cheaply nor remove any. So an element
//! goes this way once, whole, while its container stands still, into an element that holds nothing else; what cannot be told
//! apart from success afterwards is refused beforehand.
//!
//! On the pipe: `length u32 LE | bytes` … `0 | BLAKE3 of all bytes`, then the sink's answer, `length u32 LE | JSON`.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf};
use tokio_util::io::{StreamReader, SyncIoBridge};
use tranship_archive::reader::{ReadOptions, Reader};
use tranship_core::engine::ByteStream;
use tranship_core::fault::FaultKind;
use tranship_core::storage::{
    BegunRound, ElementPlace, ElementSink, ElementSource, Pipe, ProgressFn, RoundOptions, RoundProgress,
    RoundReport,
};
use tranship_core::{Engine, EngineError, Fault};

use crate::archives;

/// The longest piece on the pipe in bytes.
const PIECE: usize = 1 << 20;
/// The longest answer in bytes.
const ANSWER: u32 = 1 << 20;

fn lost(error: &std::io::Error) -> Fault {
    Fault::new(
        "content.link-lost",
        FaultKind::Environment,
        format!("the other side of the copy is gone: {error}"),
    )
}

/// Reads an element as an archive.
pub(crate) struct TarSource {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) place: ElementPlace,
}

/// Writes an element from an archive.
pub(crate) struct TarSink {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) place: ElementPlace,
}

type Pieces = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, Fault>> + Send>>;

/// What is at a place, as an archive whose names begin with `./`.
async fn archive_of(engine: &dyn Engine, place: &ElementPlace) -> Result<Pieces, Fault> {
    match place {
        ElementPlace::Directory { path, .. } => Ok(Box::pin(archives::directory_archive(path.clone()))),
        ElementPlace::Archive { container, path } => {
            let contents = format!("{}/.", path.trim_end_matches('/'));
            let archive = engine.export_path(container, &contents).await?;
            Ok(Box::pin(archive.map(|piece| piece.map_err(Fault::from))))
        }
    }
}

/// A round of an archive. What the sink holds makes no difference: it gets everything.
struct TarRound {
    engine: Arc<dyn Engine>,
    place: ElementPlace,
    pipe: Pipe,
}

#[async_trait]
impl ElementSource for TarSource {
    async fn begin(&mut self, pipe: Pipe, options: RoundOptions) -> Result<Box<dyn BegunRound>, Fault> {
        if !options.frozen {
            return Err(Fault::new(
                "content.route",
                FaultKind::Bug,
                "an element that only the engine reaches is read while it stands still, or not at all",
            ));
        }
        Ok(Box::new(TarRound {
            engine: Arc::clone(&self.engine),
            place: self.place.clone(),
            pipe,
        }))
    }
}

#[async_trait]
impl BegunRound for TarRound {
    async fn go(self: Box<Self>, progress: ProgressFn) -> Result<RoundReport, Fault> {
        let begun = Instant::now();
        let mut pipe = self.pipe;
        let mut archive = archive_of(self.engine.as_ref(), &self.place).await?;
        let mut hasher = blake3::Hasher::new();
        let mut sent = 0u64;
        while let Some(piece) = archive.next().await {
            let mut piece = piece?;
            while !piece.is_empty() {
                let part = piece.split_to(piece.len().min(PIECE));
                hasher.update(&part);
                let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
                pipe.write_u32_le(length).await.map_err(|e| lost(&e))?;
                pipe.write_all(&part).await.map_err(|e| lost(&e))?;
                sent += part.len() as u64;
            }
            progress(RoundProgress {
                entries: 0,
                bytes: sent,
                wire_bytes: sent,
            });
        }
        pipe.write_u32_le(0).await.map_err(|e| lost(&e))?;
        pipe.write_all(hasher.finalize().as_bytes())
            .await
            .map_err(|e| lost(&e))?;
        pipe.flush().await.map_err(|e| lost(&e))?;
        let length = pipe.read_u32_le().await.map_err(|e| lost(&e))?;
        if length > ANSWER {
            return Err(malformed("an answer longer than any"));
        }
        let mut answer = Vec::new();
        let read = (&mut pipe).take(u64::from(length)).read_to_end(&mut answer).await;
        if read.map_err(|e| lost(&e))? as u64 != u64::from(length) {
            return Err(lost(&std::io::ErrorKind::UnexpectedEof.into()));
        }
        let answer: Result<RoundReport, Fault> =
            serde_json::from_slice(&answer).map_err(|e| malformed(&e.to_string()))?;
        let mut report = answer?;
        report.milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(report)
    }
}

fn malformed(what: &str) -> Fault {
    Fault::new(
        "content.bad-frame",
        FaultKind::Environment,
        format!("the other side of the copy does not speak its language: {what}"),
    )
}

/// The archive on its way in: an error in place of its end if the other side broke off, or if the bytes are not those that were sent.
fn incoming(mut pipe: ReadHalf<Pipe>, digest: Arc<Mutex<Option<String>>>, progress: ProgressFn) -> Pieces {
    let pieces = async_stream(move |sender| async move {
        let mut hasher = blake3::Hasher::new();
        let mut received = 0u64;
        loop {
            let length = pipe.read_u32_le().await.map_err(|e| lost(&e))? as usize;
            if length > PIECE {
                return Err(malformed("a piece longer than any"));
            }
            if length == 0 {
                let mut sent = [0u8; 32];
                pipe.read_exact(&mut sent).await.map_err(|e| lost(&e))?;
                let own = hasher.finalize();
                // Compared in constant time by blake3 itself.
                if own != blake3::Hash::from_bytes(sent) {
                    return Err(Fault::new(
                        "chunk.corrupt",
                        FaultKind::Environment,
                        "what arrived is not what was sent",
                    ));
                }
                *digest.lock().unwrap_or_else(PoisonError::into_inner) = Some(own.to_hex().to_string());
                return Ok(());
            }
            let mut piece = vec![0; length];
            pipe.read_exact(&mut piece).await.map_err(|e| lost(&e))?;
            hasher.update(&piece);
            received += length as u64;
            progress(RoundProgress {
                entries: 0,
                bytes: received,
                wire_bytes: received,
            });
            if sender.send(Ok(Bytes::from(piece))).await.is_err() {
                return Ok(());
            }
        }
    });
    Box::pin(pieces)
}

/// Runs work that sends pieces as a stream; its error is the last one.
fn async_stream<F>(
    work: impl FnOnce(tokio::sync::mpsc::Sender<Result<Bytes, Fault>>) -> F,
) -> impl Stream<Item = Result<Bytes, Fault>> + Send
where
    F: Future<Output = Result<(), Fault>> + Send + 'static,
{
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let last = sender.clone();
    let work = work(sender);
    tokio::spawn(async move {
        if let Err(fault) = work.await {
            // Nobody may be left to hear it.
            let _ = last.send(Err(fault)).await;
        }
    });
    archives::pieces(receiver)
}

#[async_trait]
impl ElementSink for TarSink {
    async fn round(&mut self, pipe: Pipe, progress: ProgressFn) -> Result<RoundReport, Fault> {
        let (read, mut write) = tokio::io::split(pipe);
        let result = self.take_in(read, progress).await;
        let answer = serde_json::to_vec(&result).map_err(|e| malformed(&e.to_string()))?;
        let length = u32::try_from(answer.len()).unwrap_or(u32::MAX);
        let answered = async {
            write.write_u32_le(length).await?;
            write.write_all(&answer).await?;
            write.flush().await?;
            write.shutdown().await
        };
        if let Err(error) = answered.await {
            tracing::debug!("the source of an archive is gone: {error}");
        }
        result
    }
}

impl TarSink {
    async fn take_in(&self, read: ReadHalf<Pipe>, progress: ProgressFn) -> Result<RoundReport, Fault> {
        let digest = Arc::new(Mutex::new(None));
        let names = Arc::new(Mutex::new(Names::default()));
        // What is there already, put there by the engine from the image, cannot be removed by the engine's means.
        let there = names_in(archive_of(self.engine.as_ref(), &self.place).await?).await?;
        let arriving = incoming(read, Arc::clone(&digest), progress);
        match &self.place {
            ElementPlace::Directory { path, .. } => {
                let path = path.clone();
                let arriving = arriving.map(|p| p.map_err(|f| std::io::Error::other(f.to_string())));
                let input = SyncIoBridge::new(StreamReader::new(arriving));
                let names = Arc::clone(&names);
                let thread = tokio::task::spawn_blocking(move || {
                    archives::read_archive(&path, input, |name| note(&names, name))
                });
                thread
                    .await
                    .map_err(|e| Fault::new("agent.task", FaultKind::Bug, e.to_string()))??;
            }
            ElementPlace::Archive { container, path } => {
                // The engine reads the archive; this side reads along, to know what is in it.
                let (tee, copy) = tokio::sync::mpsc::channel::<Result<Bytes, Fault>>(4);
                let watcher = tokio::spawn(names_in(Box::pin(archives::pieces(copy))));
                let passed: ByteStream = Box::pin(arriving.then(move |piece| {
                    let tee = tee.clone();
                    async move {
                        match piece {
                            Ok(bytes) => {
                                // Whoever reads along may have failed; the engine decides all the same.
                                let _ = tee.send(Ok(bytes.clone())).await;
                                Ok(bytes)
                            }
                            Err(fault) => Err(EngineError::Uncertain {
                                action: "take in files".into(),
                                message: fault.to_string(),
                            }),
                        }
                    }
                }));
                self.engine.import_path(container, path, passed).await?;
                let seen = watcher
                    .await
                    .map_err(|e| Fault::new("agent.task", FaultKind::Bug, e.to_string()))??;
                *names.lock().unwrap_or_else(PoisonError::into_inner) = seen;
            }
        }
        let names = names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left) = there.paths.iter().find(|path| !names.paths.contains(*path)) {
            let mut fault = Fault::new(
                "content.cannot-remove",
                FaultKind::Environment,
                "the image puts a file there that the source does not have any more, and the engine cannot remove it",
            )
            .with_hint("log in as root at both ends, or leave this volume out with --exclude-volume");
            fault.path = Some(String::from_utf8_lossy(left).into_owned());
            return Err(fault);
        }
        let tree = digest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(tree) = tree else {
            return Err(lost(&std::io::ErrorKind::UnexpectedEof.into()));
        };
        Ok(RoundReport {
            tree,
            entries: names.paths.len() as u64,
            bytes: names.bytes,
            changed_entries: names.paths.len() as u64,
            literal_bytes: names.bytes,
            wire_bytes: names.bytes,
            unsettled: 0,
            milliseconds: 0,
        })
    }
}

/// What is in an archive.
#[derive(Default)]
struct Names {
    paths: BTreeSet<Vec<u8>>,
    bytes: u64,
}

fn note(names: &Mutex<Names>, entry: &tranship_archive::entry::Entry) {
    let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
    names.bytes = names.bytes.saturating_add(entry.size);
    names.paths.insert(plain(&entry.path));
}

/// A name without what does not tell it from others.
fn plain(name: &[u8]) -> Vec<u8> {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    name.strip_suffix(b"/").unwrap_or(name).to_vec()
}

/// Reads an archive for its names only.
async fn names_in(archive: Pieces) -> Result<Names, Fault> {
    let archive = archive.map(|p| p.map_err(|f| std::io::Error::other(f.to_string())));
    let input = SyncIoBridge::new(StreamReader::new(archive));
    let thread = tokio::task::spawn_blocking(move || {
        let mut reader = Reader::new(
            std::io::BufReader::with_capacity(256 << 10, input),
            ReadOptions::like_docker(),
        );
        let names = Mutex::new(Names::default());
        let mut buffer = vec![0; 64 << 10];
        while let Some(entry) = reader.next_entry().map_err(|e| Fault::of(&e))? {
            note(&names, &entry);
            while reader
                .read_extent(&mut buffer)
                .map_err(|e| Fault::of(&e))?
                .is_some()
            {}
        }
        // To its end, so that whoever sends is not held up.
        let mut rest = reader.into_inner();
        std::io::copy(&mut rest, &mut std::io::sink()).map_err(|e| lost(&e))?;
        Ok(names.into_inner().unwrap_or_else(PoisonError::into_inner))
    });
    thread
        .await
        .map_err(|e| Fault::new("agent.task", FaultKind::Bug, e.to_string()))?
}
