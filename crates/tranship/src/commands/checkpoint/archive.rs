//! `tranship checkpoint export` and `import`.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use serde::Serialize;
use tranship_agent::checkpoints::{ArchiveMemory, CheckpointState, ExportCheckpoint, ImportCheckpoint};
use tranship_core::{Fault, FaultKind};

use super::{connected, named};
use crate::cli::{ArchiveCompression, CheckpointExportArgs, CheckpointImportArgs};
use crate::commands::Context;
use crate::commands::archives::{self, Keep, Progress};
use crate::connect::Connection;
use crate::interrupts::Interrupts;
use crate::progress::Line;
use crate::render::bytes;

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
    /// It is an image.
    oci: bool,
}

/// What became of an import that was asked to end. The agent takes back what is not whole; once all of it is on its way, it may be.
fn import_aborted(sent: bool) -> Fault {
    let (kind, message) = if sent {
        (
            FaultKind::InDoubt,
            "the import was aborted on request, when all of the archive was sent: whether the checkpoint is back is not known",
        )
    } else {
        (FaultKind::RolledBack, "the import was aborted on request")
    };
    Fault::new("archive.aborted", kind, message)
        .with_hint("`tranship checkpoint ls` shows whether it had come to its end")
}

/// Whether standard output is a file that others than its owner can read.
fn others_read_standard_output() -> bool {
    let file = io::stdout().as_fd().try_clone_to_owned().map(File::from);
    file.and_then(|file| file.metadata())
        .is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o044 != 0)
}

/// An agent that knows checkpoints, but no archives or images of them, is of an earlier version.
fn knows(node: &Connection, oci: bool) -> Result<(), Fault> {
    let (capability, what) = if oci {
        ("checkpoints.oci", "images")
    } else {
        ("checkpoints.archives", "archives")
    };
    if node.can(capability) {
        return Ok(());
    }
    let message = format!(
        "tranship {} there knows no {what} of checkpoints",
        node.hello.version
    );
    Err(Fault::new("agent.version", FaultKind::Environment, message)
        .on_node(node.label.clone())
        .with_hint("install this version there"))
}

/// Writes a checkpoint as an archive. A file has its name only once it is whole, and nobody else can read it before or after.
pub async fn export(context: &Context, args: &CheckpointExportArgs) -> Result<(), Fault> {
    let output = args.output.as_path();
    let to_file = archives::goes_to_file(output)?;
    if to_file {
        archives::is_new(output)?;
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
    let address = &args.checkpoint;
    let node = connected(context, &address.node).await?;
    knows(&node, args.oci)?;
    let here = |fault: Fault| fault.on_node(node.label.clone());
    let asked = ExportCheckpoint {
        container: address.container.clone(),
        name: address.name.clone(),
        memory,
        compress: args.compress == ArchiveCompression::Zstd,
        oci: args.oci,
    };
    let parts = node.client.export_checkpoint(&asked).await.map_err(here)?;
    let parts = parts.map(|part| part.map_err(|error| here(error.into_fault())));
    let mut line = Line::new(&context.ui);
    let show = |total| line.show(format!("{address}: {}", bytes(total)));
    let total = archives::write(parts, output, Keep::Private, show).await?;
    drop(line);
    let exported = Exported {
        checkpoint: address.to_string(),
        file: output.display().to_string(),
        bytes: total,
        memory,
        oci: args.oci,
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
    let input = archives::open(&args.input).await?;
    let node = connected(context, &address.node).await?;
    knows(&node, false)?;
    let asked = ImportCheckpoint {
        container: address.container.clone(),
        name: args.name.clone(),
    };
    let read = Arc::new(Progress::default());
    let parts = archives::parts_of(input, Arc::clone(&read));
    let mut line = Line::new(&context.ui);
    let mut signals = Interrupts::unless_ignored()?;
    let mut imported = std::pin::pin!(node.client.import_checkpoint(&asked, Box::pin(parts)));
    let imported = loop {
        tokio::select! {
            imported = &mut imported => break imported,
            () = signals.next() => {
                return Err(import_aborted(read.has_ended()));
            }
            () = tokio::time::sleep(LOOK) => {
                line.show(format!("{}: {}", args.input.display(), bytes(read.bytes())));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_to_its_end_is_not_called_rolled_back() {
        assert_eq!(import_aborted(false).kind, FaultKind::RolledBack);
        assert_eq!(import_aborted(true).kind, FaultKind::InDoubt);
    }
}
