//! `tranship volume snapshot`.

use tranship_agent::api::TakeSnapshot;
use tranship_core::storage::RoundReport;
use tranship_core::{Fault, FaultKind};

use super::{follow, in_words};
use crate::cli::VolumeSnapshotArgs;
use crate::commands::Context;
use crate::commands::plan::new_id;
use crate::connect;

/// What `--json` prints.
#[derive(serde::Serialize)]
struct Taken {
    /// How the snapshot is named on the command line.
    snapshot: String,
    /// Milliseconds since 1970 when it was begun.
    timestamp: Option<u64>,
    rounds: Vec<RoundReport>,
}

/// Keeps a snapshot, or removes one.
pub async fn run(context: &Context, args: &VolumeSnapshotArgs) -> Result<(), Fault> {
    let node = connect::connect(context, &args.volume.node).await?;
    let name = &args.volume.name;
    if args.rm {
        let Some(timestamp) = args.volume.snapshot else {
            return Err(Fault::new(
                "usage.snapshot",
                FaultKind::Usage,
                "--rm needs a snapshot, as NAME@TIME",
            )
            .with_hint("`tranship volume ls` shows them"));
        };
        let removed = node.client.remove_snapshot(name, timestamp).await;
        return removed.map_err(|f| f.on_node(node.label.clone()));
    }
    if args.volume.snapshot.is_some() {
        return Err(Fault::new(
            "usage.snapshot",
            FaultKind::Usage,
            "a snapshot is taken of a volume, not of a snapshot",
        )
        .with_hint("leave out @TIME"));
    }
    let asked = TakeSnapshot {
        volume: name.clone(),
        freeze: args.freeze,
        exclude: args.exclude.clone(),
    };
    let events = node.client.take_snapshot(&new_id()?, &asked).await;
    let events = events.map_err(|f| f.on_node(node.label.clone()))?;
    let (rounds, timestamp) = follow(context, name, events)
        .await
        .map_err(|f| f.on_node(node.label.clone()))?;
    let taken = Taken {
        // An agent of an older version does not tell it.
        snapshot: timestamp.map_or_else(
            || args.volume.to_string(),
            |time| format!("{}@{time}", args.volume),
        ),
        timestamp,
        rounds,
    };
    if context.ui.json {
        return context.ui.json(&taken);
    }
    let words = in_words(&taken.rounds);
    context.ui.line(&format!("{}: kept {words}", taken.snapshot))
}
