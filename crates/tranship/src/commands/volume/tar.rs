//! `tranship volume export` and `import`.

use std::io::IsTerminal as _;
use std::path::Path;

use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tranship_core::storage::VolumeSpec;
use tranship_core::{Fault, FaultKind};

use crate::cli::{VolumeExportArgs, VolumeImportArgs};
use crate::commands::Context;
use crate::connect;
use crate::progress::Line;
use crate::render::bytes;

/// Bytes read at a time.
const PIECE: usize = 256 << 10;

fn file_fault(path: &str, error: &std::io::Error) -> Fault {
    let mut fault = Fault::new(
        "archive.file",
        FaultKind::Environment,
        format!("{path} cannot be used: {error}"),
    );
    fault.path = Some(path.to_owned());
    fault
}

/// Writes a volume as a tar archive. A file has its name only once it is whole.
pub async fn export(context: &Context, args: &VolumeExportArgs) -> Result<(), Fault> {
    let to_file = args.output.as_os_str() != "-";
    if !to_file && std::io::stdout().is_terminal() {
        return Err(Fault::new(
            "usage.export",
            FaultKind::Usage,
            "an archive is not written to a terminal",
        )
        .with_hint("--output FILE, or send standard output somewhere"));
    }
    let node = connect::connect(context, &args.volume.node).await?;
    let here = |f: Fault| f.on_node(node.label.clone());
    let mut parts = node
        .client
        .export_volume(&args.volume.name, args.volume.snapshot)
        .await
        .map_err(here)?;
    let name = args.output.display().to_string();
    let unfinished = args.output.with_added_extension("part");
    let mut out: Box<dyn tokio::io::AsyncWrite + Unpin + Send> = if to_file {
        let file = tokio::fs::File::create(&unfinished).await;
        Box::new(file.map_err(|e| file_fault(&name, &e))?)
    } else {
        Box::new(tokio::io::stdout())
    };
    let mut line = Line::new(&context.ui);
    let mut total = 0u64;
    let copied = async {
        while let Some(part) = parts.next().await {
            let part = part.map_err(|e| here(e.into_fault()))?;
            out.write_all(&part).await.map_err(|e| file_fault(&name, &e))?;
            total += part.len() as u64;
            line.show(format!("{}: {}", args.volume, bytes(total)));
        }
        out.flush().await.map_err(|e| file_fault(&name, &e))
    };
    let copied: Result<(), Fault> = copied.await;
    drop((line, out));
    if to_file {
        let done = match &copied {
            Ok(()) => std::fs::File::open(&unfinished)
                .and_then(|file| file.sync_all())
                .and_then(|()| std::fs::rename(&unfinished, &args.output)),
            Err(_) => std::fs::remove_file(&unfinished),
        };
        copied?;
        done.map_err(|e| file_fault(&name, &e))?;
        context
            .ui
            .say(&format!("{} → {name}: {}", args.volume, bytes(total)));
        return Ok(());
    }
    copied
}

/// Makes a volume from a tar archive.
pub async fn import(context: &Context, args: &VolumeImportArgs) -> Result<(), Fault> {
    if args.volume.snapshot.is_some() || args.volume.name.is_empty() {
        return Err(Fault::new(
            "usage.import",
            FaultKind::Usage,
            "an archive becomes a new volume, which is named NODE//NAME",
        ));
    }
    let node = connect::connect(context, &args.volume.node).await?;
    let spec = VolumeSpec {
        name: args.volume.name.clone(),
        driver: "local".into(),
        labels: args.label.iter().cloned().collect(),
        options: args.opt.iter().cloned().collect(),
        ..VolumeSpec::default()
    };
    let name = args.input.display().to_string();
    let input: Box<dyn tokio::io::AsyncRead + Unpin + Send> = if args.input == Path::new("-") {
        Box::new(tokio::io::stdin())
    } else {
        let file = tokio::fs::File::open(&args.input).await;
        Box::new(file.map_err(|e| file_fault(&name, &e))?)
    };
    let parts = futures_util::stream::unfold(Some(input), |input| async move {
        let mut input = input?;
        let mut buffer = bytes::BytesMut::with_capacity(PIECE);
        match input.read_buf(&mut buffer).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(buffer.freeze()), Some(input))),
            Err(error) => Some((Err(error), None)),
        }
    });
    let imported = node.client.import_volume(&spec, Box::pin(parts)).await;
    let imported = imported.map_err(|f| f.on_node(node.label.clone()))?;
    if imported.skipped > 0 {
        context.ui.warn(&format!(
            "{} entries were left out: sockets, or what that node cannot hold",
            imported.skipped
        ));
    }
    if context.ui.json {
        return context.ui.json(&imported);
    }
    context.ui.line(&format!(
        "{name} → {}: {} in {} entries",
        args.volume,
        bytes(imported.bytes),
        imported.entries
    ))
}
