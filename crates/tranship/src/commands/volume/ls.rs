//! `tranship volume ls`.

use tranship_core::Fault;

use crate::cli::VolumeLsArgs;
use crate::commands::Context;
use crate::connect;
use crate::failure::one_line;
use crate::render::{bytes, table};

/// Prints the volumes of a node.
pub async fn run(context: &Context, args: &VolumeLsArgs) -> Result<(), Fault> {
    let node = connect::connect(context, &args.node).await?;
    let volumes = node
        .client
        .volumes()
        .await
        .map_err(|f| f.on_node(node.label.clone()))?;
    if context.ui.json {
        return context.ui.json(&volumes);
    }
    let mut rows = vec![
        ["VOLUME", "DRIVER", "SIZE", "ENTRIES", "USED BY", "GUID"]
            .map(String::from)
            .to_vec(),
    ];
    for volume in &volumes {
        let users: Vec<String> = volume
            .spec
            .users
            .iter()
            .map(|u| format!("{}{}", u.name, if u.running { "" } else { " (stopped)" }))
            .collect();
        let (size, entries) = match (volume.size, volume.spec.data_elsewhere()) {
            (Some(size), None) => (bytes(size.bytes), size.entries.to_string()),
            (_, Some(_)) => ("elsewhere".into(), String::new()),
            (None, None) => ("?".into(), String::new()),
        };
        let name = if volume.spec.anonymous {
            format!("{} (anonymous)", volume.spec.name)
        } else {
            volume.spec.name.clone()
        };
        rows.push(vec![
            one_line(&name),
            one_line(&volume.spec.driver),
            size,
            entries,
            one_line(&users.join(", ")),
            volume.spec.guid.clone(),
        ]);
        for snapshot in &volume.snapshots {
            rows.push(vec![
                format!("  @{}", snapshot.timestamp),
                "snapshot".into(),
                bytes(snapshot.bytes),
                snapshot.entries.to_string(),
                String::new(),
                format!("tree {}", snapshot.tree.get(..16).unwrap_or_default()),
            ]);
        }
    }
    for line in table(&rows) {
        context.ui.line(&line)?;
    }
    Ok(())
}
