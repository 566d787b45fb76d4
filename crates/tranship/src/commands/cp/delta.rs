//! Copies that send only what differs (`--delta`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tranship_agent::files::delta::{self, Decoder, Index};
use tranship_agent::files::{PathRequest, Unpacked, bridge};
use tranship_archive::path::TreePath;
use tranship_core::{Fault, FaultKind};
use tranship_wire::WireError;

use super::between::Way;
use super::remote::Remote;
use super::transfer::{blocking, pack, send, unpack, watched};
use super::{Watch, transfer};

/// What an agent says that it can do.
const CAPABILITY: &str = "files.delta";
/// The same, if it keeps beginnings.
const PARTIAL: &str = "files.partial";

/// Where a copy goes.
pub(super) enum To<'a> {
    /// Into a container or volume.
    Remote(&'a Remote, PathRequest),
    /// Into a directory of this machine.
    Here(PathRequest),
}

fn able(end: &Remote, capability: &str, option: &str) -> Result<(), Fault> {
    if end.can(capability) {
        return Ok(());
    }
    let text = format!("the agent there is of a version that knows no {option}");
    Err(end.explain(
        Fault::new("cp.delta", FaultKind::Environment, text).with_hint(format!(
            "copy without {option}, or use the same version of tranship at both ends"
        )),
    ))
}

/// Copies from a container or volume, or from this machine if there is none.
pub(super) async fn copy(
    from: Option<&Remote>,
    asked: PathRequest,
    to: To<'_>,
    watch: &Watch,
) -> Result<(Unpacked, Option<Way>), Fault> {
    for end in from.into_iter().chain(match &to {
        To::Remote(remote, _) => Some(*remote),
        To::Here(..) => None,
    }) {
        able(end, CAPABILITY, "--delta")?;
    }
    if let To::Remote(to, writing) = &to
        && writing.partial
    {
        able(to, PARTIAL, "--partial")?;
    }
    let names = names(from, &asked).await?;
    let index = index(&to, names).await?;
    let sent = Arc::new(AtomicU64::new(0));
    let done = match from {
        None => {
            let index = Index::parse(&index)?;
            let frames = delta::encoded(pack(asked).await?, index).await?;
            finish(counted(frames, &sent), to, watch).await?
        }
        Some(from) => {
            let frames = from.node.client.pack_against(&from.holder, &asked, index).await;
            let frames = frames.map_err(|fault| from.explain(fault))?;
            let frames = frames.map(|piece| piece.map_err(WireError::into_fault));
            let here = matches!(to, To::Here(..));
            let done = finish(counted(frames, &sent), to, watch).await;
            done.map_err(|fault| if here { from.explain(fault) } else { fault })?
        }
    };
    let bytes = sent.load(Ordering::Relaxed);
    Ok((done, Some(Way::Difference { bytes })))
}

/// The names of what will be copied.
async fn names(from: Option<&Remote>, asked: &PathRequest) -> Result<Vec<u8>, Fault> {
    let headers = PathRequest {
        headers_only: true,
        ..asked.clone()
    };
    match from {
        None => {
            let archive = bridge::reader(pack(headers).await?);
            blocking(move || delta::names_of(archive)).await
        }
        Some(from) => {
            let archive = from.node.client.pack(&from.holder, &headers).await;
            let archive = bridge::reader(archive.map_err(|fault| from.explain(fault))?);
            blocking(move || delta::names_of(archive))
                .await
                .map_err(|fault| from.explain(fault))
        }
    }
}

/// What the destination has of them.
async fn index(to: &To<'_>, names: Vec<u8>) -> Result<Vec<u8>, Fault> {
    match to {
        To::Remote(to, writing) => {
            let index = to.node.client.index(&to.holder, writing, names).await;
            // What is wrong with the destination is told as it is without --delta, when the copy begins.
            Ok(match index {
                Ok(index) => index,
                Err(fault) if fault.code.starts_with("wire.") => return Err(to.explain(fault)),
                Err(_) => empty()?,
            })
        }
        To::Here(writing) => {
            let writing = writing.clone();
            blocking(move || {
                let Ok(root) = transfer::root_of(&writing) else {
                    return empty();
                };
                let mut index = Vec::new();
                let names = delta::read_names(&names)?;
                delta::write_index(&root, &TreePath::root(), &names, &mut index)?;
                Ok(index)
            })
            .await
        }
    }
}

fn empty() -> Result<Vec<u8>, Fault> {
    let mut index = Vec::new();
    delta::write_empty_index(&mut index)?;
    Ok(index)
}

fn counted<E: Send + 'static>(
    frames: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    sent: &Arc<AtomicU64>,
) -> impl Stream<Item = Result<Bytes, E>> + Send + 'static {
    let sent = Arc::clone(sent);
    frames.inspect(move |piece| {
        if let Ok(piece) = piece {
            sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
    })
}

async fn finish(
    frames: impl Stream<Item = Result<Bytes, Fault>> + Send + 'static,
    to: To<'_>,
    watch: &Watch,
) -> Result<Unpacked, Fault> {
    match to {
        To::Remote(to, writing) => {
            let writing = PathRequest {
                delta: true,
                ..writing
            };
            send(frames, to, &writing, watch).await
        }
        To::Here(writing) => {
            let reader = bridge::reader(Box::pin(watched(frames, watch)));
            blocking(move || {
                let root = Arc::new(transfer::root_of(&writing)?);
                let decoder = Decoder::new(reader, Some((root, TreePath::root())));
                let broken = decoder.broken();
                unpack(decoder, &writing).map_err(|fault| broken.or(fault))
            })
            .await
        }
    }
}
