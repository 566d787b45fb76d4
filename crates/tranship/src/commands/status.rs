//! `tranship status [ID]`: one migration as both of its nodes see it.

use tranship_core::{Fault, FaultKind, NodeAddress};

use super::Context;
use crate::cli::StatusArgs;
use crate::connect;
use crate::render::report;

/// Prints both sides' view. A node that cannot be reached is a failure of its own; the other one is shown all the same.
pub async fn run(context: &Context, args: &StatusArgs) -> Vec<Fault> {
    let entries = context.history().entries();
    let entry = match &args.id {
        Some(id) => entries.into_iter().find(|e| &e.id == id),
        None => entries.into_iter().next(),
    };
    let (id, nodes): (_, Vec<NodeAddress>) = match (&args.id, entry) {
        (_, Some(entry)) if args.node.is_empty() => (entry.id, vec![entry.source, entry.destination]),
        (Some(id), _) if !args.node.is_empty() => (id.clone(), args.node.clone()),
        (None, Some(entry)) => (entry.id, args.node.clone()),
        (Some(id), _) => {
            return vec![
                Fault::new(
                    "migrate.not-found",
                    FaultKind::Environment,
                    format!("migration {id} was not started from here"),
                )
                .with_hint("--node NODE asks a node that took part in it"),
            ];
        }
        (None, None) => {
            return vec![
                Fault::new(
                    "migrate.not-found",
                    FaultKind::Environment,
                    "no migration was started from here yet",
                )
                .with_hint("`tranship list --node NODE` asks a node for those that it knows"),
            ];
        }
    };
    let mut faults = Vec::new();
    let mut found = Vec::new();
    for address in nodes {
        let views = match connect::connect(context, &address).await {
            Ok(connection) => connection.client.migration(&id).await,
            Err(fault) => Err(fault),
        };
        match views {
            Ok(views) => found.extend(views.into_iter().map(|v| (address.to_string(), v))),
            Err(fault) => faults.push(fault.on_node(address.to_string())),
        }
    }
    let printed = if context.ui.json {
        let rows: Vec<_> = found
            .iter()
            .map(|(node, view)| serde_json::json!({"node": node, "migration": view}))
            .collect();
        context.ui.json(&rows)
    } else {
        let mut lines = found
            .iter()
            .flat_map(|(node, view)| report::detail(&context.ui, node, view));
        lines.try_for_each(|line| context.ui.line(&line))
    };
    faults.extend(printed.err());
    faults
}
