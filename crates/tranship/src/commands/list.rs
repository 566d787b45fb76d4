//! `tranship list`

use tranship_agent::api::{MigrationView, Role};
use tranship_core::Fault;

use super::Context;
use crate::cli::ListArgs;
use crate::connect;
use crate::render::{duration_ms, table};
use crate::ui::Style;

/// Lists the migrations that were started from here, or those that nodes know.
pub async fn run(context: &Context, args: &ListArgs) -> Vec<Fault> {
    if args.node.is_empty() {
        return history(context).err().into_iter().collect();
    }
    let mut faults = Vec::new();
    let mut all: Vec<(String, MigrationView)> = Vec::new();
    for address in &args.node {
        let views = match connect::connect(context, address).await {
            Ok(connection) => connection.client.migrations().await,
            Err(fault) => Err(fault),
        };
        match views {
            Ok(views) => all.extend(views.into_iter().map(|v| (address.to_string(), v))),
            Err(fault) => faults.push(fault.on_node(address.to_string())),
        }
    }
    if let Err(fault) = print_views(context, &all) {
        faults.push(fault);
    }
    faults
}

fn history(context: &Context) -> Result<(), Fault> {
    let entries = context.history().entries();
    if context.ui.json {
        return context.ui.json(&entries);
    }
    if entries.is_empty() {
        context
            .ui
            .say("no migration was started from here yet; --node NODE asks a node for those that it knows");
        return Ok(());
    }
    let mut rows = vec![
        ["ID", "CONTAINER", "FROM", "TO", "BEGUN", "OUTCOME"]
            .map(String::from)
            .to_vec(),
    ];
    let now = tranship_agent::node::now_ms();
    rows.extend(entries.into_iter().map(|e| {
        vec![
            e.id.to_string(),
            e.container,
            e.source.to_string(),
            e.destination.to_string(),
            ago(now, e.begun_at_ms),
            e.outcome
                .unwrap_or_else(|| "not known (`tranship status ID` asks)".into()),
        ]
    }));
    print_table(context, &rows)
}

fn print_views(context: &Context, all: &[(String, MigrationView)]) -> Result<(), Fault> {
    if context.ui.json {
        let rows: Vec<_> = all
            .iter()
            .map(|(node, view)| serde_json::json!({"node": node, "migration": view}))
            .collect();
        return context.ui.json(&rows);
    }
    let mut rows = vec![
        [
            "ID",
            "CONTAINER",
            "NODE IS",
            "FROM",
            "TO",
            "BEGUN",
            "STATUS",
            "TOOK",
        ]
        .map(String::from)
        .to_vec(),
    ];
    let now = tranship_agent::node::now_ms();
    rows.extend(all.iter().map(|(_, v)| {
        let role = if v.role == Role::Source {
            "source"
        } else {
            "destination"
        };
        vec![
            v.id.to_string(),
            v.container.clone(),
            role.to_owned(),
            v.source.clone(),
            v.destination.clone(),
            ago(now, v.begun_at_ms),
            v.status.clone(),
            if v.total_ms > 0 {
                duration_ms(v.total_ms)
            } else {
                String::new()
            },
        ]
    }));
    print_table(context, &rows)
}

/// A table with its head.
pub(super) fn print_table(context: &Context, rows: &[Vec<String>]) -> Result<(), Fault> {
    for (index, line) in table(rows).iter().enumerate() {
        let style = if index == 0 { Style::Dim } else { Style::Plain };
        context.ui.line(&context.ui.paint(style, line))?;
    }
    Ok(())
}

/// How long ago something was, in words.
pub(super) fn ago(now_ms: u64, then_ms: u64) -> String {
    match now_ms.saturating_sub(then_ms) / 1000 {
        s @ 0..=119 => format!("{s} s ago"),
        s @ 120..=7199 => format!("{} min ago", s / 60),
        s @ 7200..=172_799 => format!("{} h ago", s / 3600),
        s => format!("{} days ago", s / 86_400),
    }
}
