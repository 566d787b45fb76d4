//! `tranship resume`, `abort`, `rollback`, `resolve` and `logs`: what a person does about one migration.

use tranship_agent::api::Role;
use tranship_core::{Fault, FaultKind, MigrationId, NodeAddress};
use tranship_migrate::protocol::Owner;

use super::{Context, migrate, status};
use crate::cli::{OneArgs, OwnerArg, ResolveArgs};
use crate::connect::{self, Connection};
use crate::failure::one_line;

/// The nodes that took part in a migration: the two that it was started with, or those that the user names.
fn nodes(context: &Context, args: &OneArgs) -> Result<Vec<NodeAddress>, Fault> {
    if !args.node.is_empty() {
        return Ok(args.node.clone());
    }
    let entry = context.history().entries().into_iter().find(|e| e.id == args.id);
    entry.map(|e| vec![e.source, e.destination]).ok_or_else(|| {
        Fault::new(
            "migrate.not-found",
            FaultKind::Environment,
            format!("migration {} was not started from here", args.id),
        )
        .with_hint("--node NODE asks a node that took part in it")
    })
}

/// What could be reached, and why the rest could not.
async fn reach(context: &Context, args: &OneArgs) -> (Vec<Connection>, Vec<Fault>) {
    let nodes = match nodes(context, args) {
        Ok(nodes) => nodes,
        Err(fault) => return (Vec::new(), vec![fault]),
    };
    let mut connections = Vec::new();
    let mut faults = Vec::new();
    for address in nodes {
        match connect::connect(context, &address).await {
            Ok(connection) => connections.push(connection),
            Err(fault) => faults.push(fault.on_node(address.to_string())),
        }
    }
    (connections, faults)
}

/// The connection to the node that has this role in the migration.
async fn with_role(
    connections: &mut Vec<Connection>,
    id: &MigrationId,
    role: Role,
) -> Result<Connection, Fault> {
    let mut last = None;
    for index in 0..connections.len() {
        let Some(connection) = connections.get(index) else {
            break;
        };
        match connection.client.migration(id).await {
            Ok(views) if views.iter().any(|v| v.role == role) => return Ok(connections.remove(index)),
            Ok(_) => {}
            Err(fault) => last = Some(fault.on_node(connection.label.clone())),
        }
    }
    Err(last.unwrap_or_else(|| {
        Fault::new(
            "migrate.not-found",
            FaultKind::Environment,
            format!(
                "no node that can be reached is the {} of migration {id}",
                match role {
                    Role::Source => "source",
                    Role::Destination => "destination",
                }
            ),
        )
        .with_hint("--node NODE asks a node that took part in it")
    }))
}

/// Watches a migration to its end, after bringing both agents, and if need be the stream between them, back.
pub async fn resume(context: &Context, args: &OneArgs) -> Vec<Fault> {
    let (mut connections, mut faults) = reach(context, args).await;
    let found = status::ask(&connections, &args.id, &mut faults).await;
    let under_way = found
        .iter()
        .any(|(_, v)| v.role == Role::Source && !v.departure.is_some_and(|d| d.is_over()));
    if !under_way {
        if let Some((_, view)) = found.iter().find(|(_, v)| v.role == Role::Source) {
            context.ui.say(&format!(
                "migration {} is over: {}. What was copied is kept for a while; `tranship migrate` with the same \
                 arguments sends only the rest",
                args.id, view.status
            ));
            faults.extend(view.fault.clone());
        }
        return faults;
    }
    // One way or the other: the source reaches the destination by itself, or the stream goes through here.
    let carried = status::carry(context, &connections, &found, &args.id).await;
    if carried {
        context.ui.say("the two ends were joined through this machine");
    }
    match with_role(&mut connections, &args.id, Role::Source).await {
        Ok(mut source) => faults.extend(migrate::watch_to_the_end(context, &mut source, &args.id).await),
        Err(fault) => faults.push(fault),
    }
    faults
}

/// Ends a migration in order, and watches it end.
pub async fn abort(context: &Context, args: &OneArgs) -> Vec<Fault> {
    ask_back(context, args, false).await
}

/// Takes the container back, and watches it come.
pub async fn roll_back(context: &Context, args: &OneArgs) -> Vec<Fault> {
    ask_back(context, args, true).await
}

async fn ask_back(context: &Context, args: &OneArgs, after_commit: bool) -> Vec<Fault> {
    let (mut connections, mut faults) = reach(context, args).await;
    let mut source = match with_role(&mut connections, &args.id, Role::Source).await {
        Ok(source) => source,
        Err(fault) => {
            faults.push(fault);
            return faults;
        }
    };
    let asked = if after_commit {
        source.client.roll_back(&args.id).await
    } else {
        source.client.abort(&args.id).await
    };
    if let Err(fault) = asked {
        faults.push(fault.on_node(source.label.clone()));
        return faults;
    }
    context.ui.say("asked the source to go back");
    let ends = migrate::watch_to_the_end(context, &mut source, &args.id).await;
    // That it was rolled back is what was asked for.
    faults.extend(ends.into_iter().filter(|f| f.kind != FaultKind::RolledBack));
    faults
}

/// Tells both sides who owns the container. The side that loses it hears so first.
pub async fn resolve(context: &Context, args: &ResolveArgs) -> Vec<Fault> {
    let id = &args.migration.id;
    let owner = match args.owner {
        OwnerArg::Source => Owner::Source,
        OwnerArg::Destination => Owner::Destination,
    };
    let (mut connections, mut faults) = reach(context, &args.migration).await;
    if !faults.is_empty() && !args.force {
        let mut fault = Fault::new(
            "resolve.blind",
            FaultKind::InDoubt,
            "a side of the migration cannot be asked, so nothing was decided",
        )
        .with_hint(
            "make sure by other means that the container does not run there and never will (the machine is gone, or \
             the container was removed there), then repeat with --force",
        );
        fault.causes.extend(faults.iter().map(ToString::to_string));
        return vec![fault];
    }
    let order = match owner {
        Owner::Source => [Role::Destination, Role::Source],
        Owner::Destination => [Role::Source, Role::Destination],
    };
    let mut told = 0;
    for role in order {
        let connection = match with_role(&mut connections, id, role).await {
            Ok(connection) => connection,
            Err(fault) => {
                if !args.force {
                    faults.push(fault);
                }
                continue;
            }
        };
        match connection.client.resolve(id, owner).await {
            Ok(()) => {
                told += 1;
                context.ui.say(&format!(
                    "{}: the container belongs to the {owner}",
                    connection.label
                ));
            }
            // It came to the same by itself.
            Err(fault) if fault.code == "migrate.decided" => {
                told += 1;
                context.ui.say(&format!("{}: {fault}", connection.label));
            }
            Err(fault) => {
                // The other side must not be told the opposite of what this one does.
                faults.push(fault.on_node(connection.label.clone()));
                return faults;
            }
        }
        connections.push(connection);
    }
    if told > 0 && args.force {
        faults.clear();
    }
    faults
}

/// Prints what happened at both nodes, in the order of their clocks.
pub async fn logs(context: &Context, args: &OneArgs) -> Vec<Fault> {
    let (connections, mut faults) = reach(context, args).await;
    let mut lines: Vec<(f64, String)> = Vec::new();
    for connection in &connections {
        match connection.client.log(&args.id).await {
            Ok(text) => {
                for line in text.lines() {
                    let (time, rest) = line.split_once(' ').unwrap_or((line, ""));
                    let line = format!("{time} {}: {}", connection.label, one_line(rest));
                    lines.push((time.parse().unwrap_or_default(), line));
                }
            }
            Err(fault) => faults.push(fault.on_node(connection.label.clone())),
        }
    }
    lines.sort_by(|a, b| a.0.total_cmp(&b.0));
    lines.dedup();
    for (_, line) in &lines {
        if let Err(fault) = context.ui.line(line) {
            faults.push(fault);
            return faults;
        }
    }
    if lines.is_empty() && faults.is_empty() {
        faults.push(
            Fault::new(
                "migrate.not-found",
                FaultKind::Environment,
                format!("nothing was noted of migration {}", args.id),
            )
            .with_hint("`tranship list` shows those that are known"),
        );
    }
    faults
}
