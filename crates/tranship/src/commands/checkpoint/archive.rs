//! `tranship checkpoint export` and `import`.

use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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

/// What became of an import that was asked to end. The agent takes back what is not whole; once all of it is on its way, it may be.
fn import_aborted(sent: bool) -> Fault {
    let hint = "`tranship checkpoint ls` shows whether it had come to its end";
    if !sent {
        return aborted("import").with_hint(hint);
    }
    Fault::new(
        "checkpoint.aborted",
        FaultKind::InDoubt,
        "the import was aborted on request, when all of the archive was sent: whether the checkpoint is back is not known",
    )
    .with_hint(hint)
}

/// Whether standard output is a file that others than its owner can read.
fn others_read_standard_output() -> bool {
    let file = io::stdout().as_fd().try_clone_to_owned().map(File::from);
    file.and_then(|file| file.metadata())
        .is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o044 != 0)
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
    if !to_file && memory == ArchiveMemory::Unencrypted && others_read_standard_output() {
        context
            .ui
            .warn("the file that standard output goes to can be read by others; --output FILE makes one that only you can read");
    }
    let mut signals = Interrupts::unless_ignored()?;
    let exported = tokio::select! {
        exported = write(context, args, memory, to_file) => exported?,
        () = signals.next() => {
            let fault = aborted("export");
            return Err(if to_file {
                fault
            } else {
                fault.with_hint("what was written to standard output may be cut off")
            });
        }
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
    let read = Arc::new(Progress::default());
    let parts = parts_of(input, Arc::clone(&read));
    let mut line = Line::new(&context.ui);
    let mut signals = Interrupts::unless_ignored()?;
    let mut imported = std::pin::pin!(node.client.import_checkpoint(&asked, Box::pin(parts)));
    let imported = loop {
        tokio::select! {
            imported = &mut imported => break imported,
            () = signals.next() => {
                return Err(import_aborted(read.ended.load(Ordering::Relaxed)));
            }
            () = tokio::time::sleep(LOOK) => {
                line.show(format!("{}: {}", args.input.display(), bytes(read.bytes.load(Ordering::Relaxed))));
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

/// How far a file was read.
#[derive(Default)]
struct Progress {
    bytes: AtomicU64,
    /// To its end.
    ended: AtomicBool,
}

/// A file in parts, counted.
fn parts_of(
    input: impl AsyncRead + Unpin + Send,
    read: Arc<Progress>,
) -> impl Stream<Item = io::Result<bytes::Bytes>> + Send {
    futures_util::stream::unfold(Some((input, read)), |state| async move {
        let (mut input, read) = state?;
        let mut buffer = bytes::BytesMut::with_capacity(PIECE);
        match input.read_buf(&mut buffer).await {
            Ok(0) => {
                // Noted before anybody else can know it.
                read.ended.store(true, Ordering::Relaxed);
                None
            }
            Ok(got) => {
                read.bytes.fetch_add(got as u64, Ordering::Relaxed);
                Some((Ok(buffer.freeze()), Some((input, read))))
            }
            Err(error) => Some((Err(error), None)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_sent_to_its_end_is_not_called_rolled_back() {
        let read = Arc::new(Progress::default());
        let kind = || import_aborted(read.ended.load(Ordering::Relaxed)).kind;
        let mut parts = Box::pin(parts_of(&b"archive"[..], Arc::clone(&read)));
        assert_eq!(parts.next().await.unwrap().unwrap(), "archive");
        assert_eq!(kind(), FaultKind::RolledBack);
        assert!(parts.next().await.is_none());
        assert_eq!(kind(), FaultKind::InDoubt);
        assert_eq!(read.bytes.load(Ordering::Relaxed), 7);
    }
}
