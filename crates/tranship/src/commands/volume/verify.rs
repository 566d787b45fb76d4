//! `tranship volume verify`.

use std::fs::File;
use std::io::{BufReader, Seek as _, SeekFrom, Write as _};

use futures_util::StreamExt as _;
use serde::Serialize;
use tranship_content::tree::{TreeError, TreeReader};
use tranship_content::verify::compare;
use tranship_core::{Fault, FaultKind};

use crate::cli::VolumeVerifyArgs;
use crate::commands::Context;
use crate::connect;
use crate::failure::one_line;
use crate::render::table;
use crate::volume_address::VolumeAddress;

/// A difference, for machines.
#[derive(Debug, Serialize)]
struct Row {
    path: String,
    differs: Vec<String>,
}

/// Compares two volumes. A difference is a result, and makes the exit code 1.
pub async fn run(context: &Context, args: &VolumeVerifyArgs) -> Result<(), Fault> {
    let (left, right) = tokio::join!(manifest(context, &args.left), manifest(context, &args.right));
    let (left, right) = (left?, right?);
    let limit = args.limit;
    let compared = tokio::task::spawn_blocking(move || {
        let mut rows = Vec::new();
        let (left, right) = (
            TreeReader::new(BufReader::new(left)),
            TreeReader::new(BufReader::new(right)),
        );
        let count = compare::<_, _, TreeError, _>(left, right, |path, differences| {
            if rows.len() < limit {
                rows.push(Row {
                    path: format!("/{}", String::from_utf8_lossy(path)),
                    differs: differences.iter().map(ToString::to_string).collect(),
                });
            }
            Ok(())
        });
        count.map(|count| (rows, count))
    });
    let compared = compared
        .await
        .map_err(|e| Fault::new("task", FaultKind::Bug, e.to_string()))?;
    let (rows, count) = compared.map_err(|e| Fault::of(&e))?;
    let equal = count == 0;
    if context.ui.json {
        context.ui.json(&rows)?;
    } else if equal {
        context
            .ui
            .line(&format!("{} and {} are equal", args.left, args.right))?;
    } else {
        let shown: Vec<Vec<String>> = rows
            .iter()
            .map(|row| vec![one_line(&row.path), row.differs.join(", ")])
            .collect();
        for line in table(&shown) {
            context.ui.line(&line)?;
        }
    }
    if equal {
        return Ok(());
    }
    Err(Fault::new(
        "volume.differs",
        FaultKind::Environment,
        format!("{} and {} differ in {count} entries", args.left, args.right),
    )
    .with_hint("`tranship volume copy --update` makes the second equal to the first"))
}

/// The manifest of a volume, in a file without a name.
async fn manifest(context: &Context, volume: &VolumeAddress) -> Result<File, Fault> {
    let node = connect::connect(context, &volume.node).await?;
    let here = |f: Fault| f.on_node(node.label.clone());
    let mut parts = node
        .client
        .manifest(&volume.name, volume.snapshot)
        .await
        .map_err(here)?;
    let failed = |e: std::io::Error| {
        Fault::new(
            "verify.file",
            FaultKind::Environment,
            format!("a manifest could not be kept here: {e}"),
        )
        .with_hint("the directory for temporary files needs space")
    };
    let mut file = tempfile::tempfile().map_err(failed)?;
    while let Some(part) = parts.next().await {
        let part = part.map_err(|e| here(e.into_fault()))?;
        file.write_all(&part).map_err(failed)?;
    }
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    Ok(file)
}
