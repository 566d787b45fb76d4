//! `tranship volume export` and `import`.

use std::sync::Arc;

use futures_util::StreamExt as _;
use tranship_core::storage::VolumeSpec;
use tranship_core::{Fault, FaultKind};

use crate::cli::{VolumeExportArgs, VolumeImportArgs};
use crate::commands::Context;
use crate::commands::archives::{self, Keep};
use crate::connect;
use crate::progress::Line;
use crate::render::bytes;

/// Writes a volume as a tar archive. A file has its name only once it is whole.
pub async fn export(context: &Context, args: &VolumeExportArgs) -> Result<(), Fault> {
    let to_file = archives::goes_to_file(&args.output)?;
    let node = connect::connect(context, &args.volume.node).await?;
    let here = |f: Fault| f.on_node(node.label.clone());
    let parts = node
        .client
        .export_volume(&args.volume.name, args.volume.snapshot)
        .await
        .map_err(here)?;
    let parts = parts.map(|part| part.map_err(|e| here(e.into_fault())));
    let mut line = Line::new(&context.ui);
    let show = |total| line.show(format!("{}: {}", args.volume, bytes(total)));
    let total = archives::write(parts, &args.output, Keep::Shared, show).await?;
    drop(line);
    if to_file {
        let name = args.output.display();
        context
            .ui
            .say(&format!("{} → {name}: {}", args.volume, bytes(total)));
    }
    Ok(())
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
    let name = args.input.display();
    let parts = archives::parts_of(archives::open(&args.input).await?, Arc::default());
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
