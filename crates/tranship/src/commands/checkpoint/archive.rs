//! `tranship checkpoint export` and `import`.

use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tranship_agent::checkpoints::{ArchiveMemory, CheckpointState, ExportCheckpoint, ImportCheckpoint};
use tranship_core::{Fault, FaultKind};

use super::{connected, named};
use crate::cli::{ArchiveCompression, CheckpointExportArgs, CheckpointImportArgs};
use crate::commands::Context;
use crate::connect::Connection;
use crate::interrupts::Interrupts;
use crate::progress::Line;
use crate::render::bytes;

/// Bytes read at a time.
const PIECE: usize = 256 << 10;
/// How often it is shown how far an import is.
const LOOK: Duration = Duration::from_millis(200);

/// What `--json` prints of an export to a file.
#[derive(Debug, Serialize)]
struct Exported {
    /// The checkpoint, as it is named on the command line.
    checkpoint: String,
    file: String,
    bytes: u64,
    memory: ArchiveMemory,
}

fn file_fault(path: &Path, error: &io::Error) -> Fault {
    let path = path.display().to_string();
    let mut fault = Fault::new(
        "archive.file",
        FaultKind::Environment,
        format!("{path} cannot be used: {error}"),
    );
    fault.path = Some(path);
    fault
}

fn aborted(what: &str) -> Fault {
    Fault::new(
        "checkpoint.aborted",
        FaultKind::RolledBack,
        format!("the {what} was aborted on request"),
    )
}

/// An agent that knows checkpoints, but no archives of them, is of an earlier version.
fn knows_archives(node: &Connection) -> Result<(), Fault> {
    if node.can("checkpoints.archives") {
        return Ok(());
    }
    let message = format!(
        "tranship {} there knows no archives of checkpoints",
        node.hello.version
    );
    Err(Fault::new("agent.version", FaultKind::Environment, message)
        .on_node(node.label.clone())
        .with_hint("install this version there"))
}

/// Writes a checkpoint as an archive. A file has its name only once it is whole, and nobody else can read it before or after.
pub async fn export(context: &Context, args: &CheckpointExportArgs) -> Result<(), Fault> {
    let output = args.output.as_path();
    let to_file = output.as_os_str() != "-";
    if !to_file && io::stdout().is_terminal() {
        return Err(Fault::new(
            "usage.export",
            FaultKind::Usage,
            "an archive is not written to a terminal",
        )
        .with_hint("--output FILE, or send standard output somewhere"));
    }
    if to_file && output.symlink_metadata().is_ok() {
        return Err(there(output));
    }
    let memory = if args.unencrypted {
        ArchiveMemory::Unencrypted
    } else {
        ArchiveMemory::Encrypted
    };
    let mut signals = Interrupts::unless_ignored()?;
    let exported = tokio::select! {
        exported = write(context, args, memory, to_file) => exported?,
        () = signals.next() => return Err(aborted("export")),
    };
    if memory == ArchiveMemory::Unencrypted {
        context.ui.warn(&format!(
            "{} holds what the processes had in memory, passwords and keys included, and is not encrypted",
            if to_file {
                exported.file.as_str()
            } else {
                "the archive"
            }
        ));
    }
    if context.ui.json {
        // Standard output is the archive's where it goes there.
        return if to_file {
            context.ui.json(&exported)
        } else {
            Ok(())
        };
    }
    context.ui.say(&format!(
        "{} → {}: {}, {memory}",
        exported.checkpoint,
        exported.file,
        bytes(exported.bytes)
    ));
    Ok(())
}

fn there(path: &Path) -> Fault {
    let mut fault = file_fault(path, &io::ErrorKind::AlreadyExists.into());
    fault.code = "archive.exists".into();
    fault.with_hint("choose another --output, or remove that file; - writes to standard output")
}

async fn write(
    context: &Context,
    args: &CheckpointExportArgs,
    memory: ArchiveMemory,
    to_file: bool,
) -> Result<Exported, Fault> {
    let address = &args.checkpoint;
    let node = connected(context, &address.node).await?;
    knows_archives(&node)?;
    let here = |fault: Fault| fault.on_node(node.label.clone());
    let asked = ExportCheckpoint {
        container: address.container.clone(),
        name: address.name.clone(),
        memory,
        compress: args.compress == ArchiveCompression::Zstd,
    };
    let parts = node.client.export_checkpoint(&asked).await.map_err(here)?;
    let parts = parts.map(|part| part.map_err(|error| here(error.into_fault())));
    let path = args.output.as_path();
    let mut line = Line::new(&context.ui);
    let mut show = |total| line.show(format!("{address}: {}", bytes(total)));
    let bytes = if to_file {
        let unused = |error: io::Error| file_fault(path, &error);
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // Its name is one that nobody can foresee, its mode 0600 from the beginning, and it goes if this ends before its end.
        let file = tempfile::Builder::new()
            .prefix(".tranship-")
            .suffix(".part")
            .tempfile_in(directory)
            .map_err(unused)?;
        let mut out = tokio::fs::File::from_std(file.as_file().try_clone().map_err(unused)?);
        let bytes = copy(parts, &mut out, path, &mut show).await?;
        out.sync_all().await.map_err(unused)?;
        file.persist_noclobber(path).map_err(|error| match error.error {
            error if error.kind() == io::ErrorKind::AlreadyExists => there(path),
            error => unused(error),
        })?;
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(unused)?;
        bytes
    } else {
        copy(parts, &mut tokio::io::stdout(), path, &mut show).await?
    };
    Ok(Exported {
        checkpoint: address.to_string(),
        file: path.display().to_string(),
        bytes,
        memory,
    })
}

/// Writes all parts, and says how many bytes they had.
async fn copy(
    parts: impl Stream<Item = Result<bytes::Bytes, Fault>>,
    out: &mut (impl AsyncWrite + Unpin),
    path: &Path,
    mut show: impl FnMut(u64),
) -> Result<u64, Fault> {
    let unwritten = |error: io::Error| file_fault(path, &error);
    let mut parts = std::pin::pin!(parts);
    let mut total = 0u64;
    while let Some(part) = parts.next().await {
        let part = part?;
        out.write_all(&part).await.map_err(unwritten)?;
        total += part.len() as u64;
        show(total);
    }
    out.flush().await.map_err(unwritten)?;
    Ok(total)
}

/// Brings a checkpoint back from an archive.
pub async fn import(context: &Context, args: &CheckpointImportArgs) -> Result<(), Fault> {
    let address = &args.container;
    if address.name.is_some() {
        return Err(Fault::new(
            "usage.checkpoint",
            FaultKind::Usage,
            "a checkpoint is brought back into a container, not into a checkpoint",
        )
        .with_hint("leave out @NAME; --name says what it is called"));
    }
    let input: Box<dyn AsyncRead + Unpin + Send> = if args.input == Path::new("-") {
        Box::new(tokio::io::stdin())
    } else {
        let file = tokio::fs::File::open(&args.input).await;
        Box::new(file.map_err(|error| file_fault(&args.input, &error))?)
    };
    let node = connected(context, &address.node).await?;
    knows_archives(&node)?;
    let asked = ImportCheckpoint {
        container: address.container.clone(),
        name: args.name.clone(),
    };
    let read = Arc::new(AtomicU64::new(0));
    let parts = parts_of(input, Arc::clone(&read));
    let mut line = Line::new(&context.ui);
    let mut signals = Interrupts::unless_ignored()?;
    let mut imported = std::pin::pin!(node.client.import_checkpoint(&asked, Box::pin(parts)));
    let imported = loop {
        tokio::select! {
            imported = &mut imported => break imported,
            () = signals.next() => {
                return Err(aborted("import").with_hint("`tranship checkpoint ls` shows whether it had come to its end"));
            }
            () = tokio::time::sleep(LOOK) => {
                line.show(format!("{}: {}", args.input.display(), bytes(read.load(Ordering::Relaxed))));
            }
        }
    };
    drop(line);
    let imported = imported.map_err(|fault| fault.on_node(node.label.clone()))?;
    if context.ui.json {
        return context.ui.json(&imported);
    }
    let name = named(&address.node, &imported);
    context.ui.line(&format!(
        "{} → {name}: {} of memory",
        args.input.display(),
        bytes(imported.memory_bytes)
    ))?;
    if imported.state != CheckpointState::Ready {
        context
            .ui
            .say(&format!("not to be restored now: {}", imported.state));
    }
    Ok(())
}

/// A file in parts, counted.
fn parts_of(
    input: impl AsyncRead + Unpin + Send,
    read: Arc<AtomicU64>,
) -> impl Stream<Item = io::Result<bytes::Bytes>> + Send {
    futures_util::stream::unfold(Some((input, read)), |state| async move {
        let (mut input, read) = state?;
        let mut buffer = bytes::BytesMut::with_capacity(PIECE);
        match input.read_buf(&mut buffer).await {
            Ok(0) => None,
            Ok(got) => {
                read.fetch_add(got as u64, Ordering::Relaxed);
                Some((Ok(buffer.freeze()), Some((input, read))))
            }
            Err(error) => Some((Err(error), None)),
        }
    })
}
