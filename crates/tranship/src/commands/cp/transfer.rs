//! The streams between two ends.

use std::ffi::OsStr;
use std::io::{BufRead as _, Read, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tranship_agent::files::bridge::{self, Pieces};
use tranship_agent::files::{PathRequest, Unpacked, machine, rewrite};
use tranship_archive::confined::{Links, Root};
use tranship_core::{Fault, FaultKind};
use tranship_wire::WireError;

use super::remote::Remote;
use super::{Watch, interrupted};
use crate::progress::Line;
use crate::render::bytes;
use crate::ui::BROKEN_PIPE;

/// Shows how much went by, and how fast.
pub struct Meter {
    line: Line,
    begun: Instant,
    shown: Instant,
}

impl Meter {
    /// Nothing went by yet.
    pub fn new(line: Line) -> Self {
        let now = Instant::now();
        Self {
            line,
            begun: now,
            shown: now,
        }
    }

    /// So many bytes went by.
    pub fn at(&mut self, total: u64) {
        if self.shown.elapsed().as_millis() < 100 {
            return;
        }
        self.shown = Instant::now();
        let rate = total as f64 / self.begun.elapsed().as_secs_f64().max(0.001);
        self.line
            .show(format!("{}, {}/s", bytes(total), bytes(rate as u64)));
    }
}

/// The stream, with its progress shown, until the copy is given up.
pub(super) fn watched<E>(
    stream: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    watch: &Watch,
) -> impl Stream<Item = Result<Bytes, Fault>> + Send + 'static
where
    E: Into<Fault> + Send + 'static,
{
    let state = (Box::pin(stream), watch.given_up.clone(), watch.meter(), 0);
    futures_util::stream::unfold(Some(state), |state| async move {
        let (mut stream, given_up, mut meter, mut total) = state?;
        let piece = tokio::select! {
            biased;
            () = given_up.cancelled() => return Some((Err(interrupted()), None)),
            piece = stream.next() => piece?,
        };
        match piece {
            Ok(piece) => {
                total += piece.len() as u64;
                meter.at(total);
                Some((Ok(piece), Some((stream, given_up, meter, total))))
            }
            Err(error) => Some((Err(error.into()), None)),
        }
    })
}

/// A fault of the sending end says more than what the receiving end made of its silence.
fn first_of(
    stream: impl Stream<Item = Result<Bytes, Fault>> + Send + 'static,
) -> (
    impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static,
    Arc<Mutex<Option<Fault>>>,
) {
    let fault = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&fault);
    let stream = stream.map(move |piece| {
        piece.map_err(|fault| {
            let text = fault.to_string();
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
            std::io::Error::other(text)
        })
    });
    (stream, fault)
}

pub(super) async fn send<E>(
    stream: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    to: &Remote,
    writing: &PathRequest,
    watch: &Watch,
) -> Result<Unpacked, Fault>
where
    E: Into<Fault> + Send + 'static,
{
    let (stream, broken) = first_of(watched(stream, watch));
    let done = to.node.client.unpack(&to.holder, writing, stream).await;
    let broken = broken.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (done, broken) {
        (Ok(done), _) => Ok(done),
        (Err(_), Some(fault)) => Err(fault),
        (Err(fault), None) => Err(to.explain(fault)),
    }
}

/// From this machine.
pub(super) async fn from_here(
    asked: PathRequest,
    to: &Remote,
    writing: &PathRequest,
    watch: &Watch,
) -> Result<Unpacked, Fault> {
    send(pack(asked).await?, to, writing, watch).await
}

pub(super) async fn pack(asked: PathRequest) -> Result<Pieces, Fault> {
    machine::pack(Root::open(Path::new("/"), Links::InRoot)?, asked).await
}

/// An archive from standard input.
pub(super) async fn from_stdin(
    asked: PathRequest,
    to: &Remote,
    writing: &PathRequest,
    watch: &Watch,
) -> Result<Unpacked, Fault> {
    let filter = asked.filter()?;
    let pieces = bridge::writer(move |out| {
        let failed = |e: std::io::Error| Fault::new("input.failed", FaultKind::Environment, e.to_string());
        let mut input = std::io::stdin().lock();
        if filter.is_empty() {
            loop {
                let part = input.fill_buf().map_err(failed)?;
                let length = part.len();
                if length == 0 {
                    return Ok(());
                }
                out.write_all(part).map_err(failed)?;
                // An archive that trickles in is not held back.
                if length < 4096 {
                    out.flush().map_err(failed)?;
                }
                input.consume(length);
            }
        }
        rewrite(input, out, &filter, None).map(|_| ())
    })
    .await?;
    send(pieces, to, writing, watch).await
}

/// An archive to standard output.
pub(super) async fn to_stdout(from: &Remote, asked: &PathRequest) -> Result<Unpacked, Fault> {
    let mut stream = from
        .node
        .client
        .pack(&from.holder, asked)
        .await
        .map_err(|fault| from.explain(fault))?;
    while let Some(piece) = stream.next().await {
        let piece = piece
            .map_err(WireError::into_fault)
            .map_err(|f| from.explain(f))?;
        std::io::stdout().lock().write_all(&piece).map_err(|e| {
            let code = if e.kind() == std::io::ErrorKind::BrokenPipe {
                BROKEN_PIPE
            } else {
                "output.failed"
            };
            Fault::new(
                code,
                FaultKind::Environment,
                format!("standard output cannot be written: {e}"),
            )
        })?;
    }
    let flushed = std::io::stdout().lock().flush();
    flushed.map_err(|e| Fault::new("output.failed", FaultKind::Environment, e.to_string()))?;
    Ok(Unpacked::default())
}

/// To this machine.
pub(super) async fn to_here(
    from: &Remote,
    asked: &PathRequest,
    writing: PathRequest,
    watch: &Watch,
) -> Result<Unpacked, Fault> {
    let stream = from.node.client.pack(&from.holder, asked).await;
    let stream = stream.map_err(|fault| from.explain(fault))?;
    let stream = stream.map(|piece| piece.map_err(WireError::into_fault));
    let reader = bridge::reader(Box::pin(watched(stream, watch)));
    let done = blocking(move || unpack(reader, &writing)).await;
    done.map_err(|fault| from.explain(fault))
}

/// Does what may block on a thread for that.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(Fault::new("cp.task", FaultKind::Bug, e.to_string())))
}

/// The directory of this machine that is written to.
pub(super) fn root_of(writing: &PathRequest) -> Result<Root, Fault> {
    Ok(Root::open(
        Path::new(OsStr::from_bytes(&writing.path)),
        Links::Beneath,
    )?)
}

pub(super) fn unpack(reader: impl Read, writing: &PathRequest) -> Result<Unpacked, Fault> {
    machine::unpack(reader, &root_of(writing)?, writing.owner, writing.partial)
}

/// From one container or volume to another, through this process.
pub(super) async fn between(
    from: &Remote,
    asked: &PathRequest,
    to: &Remote,
    writing: &PathRequest,
    watch: &Watch,
) -> Result<Unpacked, Fault> {
    let stream = from.node.client.pack(&from.holder, asked).await;
    let stream = stream.map_err(|fault| from.explain(fault))?;
    let stream = stream.map(|piece| piece.map_err(WireError::into_fault));
    send(stream, to, writing, watch).await
}
