//! `tranship status [ID]`: one migration as both of its nodes see it.

use std::sync::Arc;
use std::time::Duration;

use tranship_agent::api::{MigrationView, Role};
use tranship_core::{Fault, FaultKind, MigrationId, NodeAddress};
use tranship_migrate::destination::ArrivalState;
use tranship_migrate::record::DepartureState;

use super::Context;
use crate::cli::StatusArgs;
use crate::connect::{self, Connection};
use crate::render::report;

/// How long the two ends of a migration in doubt may take to agree over a stream that is carried here.
const CARRY: Duration = Duration::from_secs(30);

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
    let mut connections = Vec::new();
    for address in nodes {
        match connect::connect(context, &address).await {
            Ok(connection) => connections.push(connection),
            Err(fault) => faults.push(fault.on_node(address.to_string())),
        }
    }
    let mut found = ask(&connections, &id, &mut faults).await;
    if carry(context, &connections, &found, &id).await {
        found = ask(&connections, &id, &mut faults).await;
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

pub(super) async fn ask(
    connections: &[Connection],
    id: &MigrationId,
    faults: &mut Vec<Fault>,
) -> Vec<(String, MigrationView)> {
    let mut found = Vec::new();
    for connection in connections {
        match connection.client.migration(id).await {
            Ok(views) => found.extend(views.into_iter().map(|v| (connection.label.clone(), v))),
            Err(fault) => faults.push(fault.clone().on_node(connection.label.clone())),
        }
    }
    found
}

/// A source in doubt goes on asking a destination that it cannot reach, and that waits for its word. Both can be reached
/// from here: the stream between them goes through this process until they agree. Says whether that was tried.
pub(super) async fn carry(
    context: &Context,
    connections: &[Connection],
    found: &[(String, MigrationView)],
    id: &MigrationId,
) -> bool {
    let at = |role: Role| {
        let (label, view) = found.iter().find(|(_, view)| view.role == role)?;
        Some((connections.iter().find(|c| &c.label == label)?, view))
    };
    let (Some((source, here)), Some((destination, there))) = (at(Role::Source), at(Role::Destination)) else {
        return false;
    };
    if here.departure != Some(DepartureState::InDoubt) || there.arrival != Some(ArrivalState::Started) {
        return false;
    }
    let (Ok(to), Ok(from)) = (
        destination.client.peer_stream(id).await,
        source.client.relay_stream(id).await,
    ) else {
        // One of them lost its agent meanwhile; what they say is shown all the same.
        return false;
    };
    context
        .ui
        .say("the source cannot reach the destination: carrying the data between them until they agree");
    let counts = Arc::default();
    let carried = tranship_wire::relay::relay(from, to, &counts);
    let settled = async {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let views = source.client.migration(id).await.unwrap_or_default();
            let doubt = |v: &MigrationView| v.departure == Some(DepartureState::InDoubt);
            if !views.iter().any(doubt) {
                return;
            }
        }
    };
    tokio::select! {
        _ = carried => {}
        () = settled => {}
        () = tokio::time::sleep(CARRY) => {}
    }
    true
}
