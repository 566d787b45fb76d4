//! `tranship checkpoint`: memory of containers that is kept on their node, or brought back to it.

mod archive;

use tranship_agent::checkpoints::{
    CheckpointCreated, CheckpointInfo, CheckpointState, CreateCheckpoint, RestoreCheckpoint,
};
use tranship_core::{Fault, FaultKind, NodeAddress};

use super::Context;
use super::list::{ago, print_table};
use crate::cli::{
    CheckpointArgs, CheckpointCommand, CheckpointCreateArgs, CheckpointLsArgs, CheckpointRestoreArgs,
    CheckpointRmArgs,
};
use crate::connect::{self, Connection};
use crate::failure::one_line;
use crate::on_node;
use crate::render::bytes;

/// Runs one of the forms.
pub async fn run(context: &Context, args: &CheckpointArgs) -> Result<(), Fault> {
    match &args.command {
        CheckpointCommand::Create(args) => create(context, args).await,
        CheckpointCommand::Ls(args) => ls(context, args).await,
        CheckpointCommand::Restore(args) => restore(context, args).await,
        CheckpointCommand::Export(args) => archive::export(context, args).await,
        CheckpointCommand::Import(args) => archive::import(context, args).await,
        CheckpointCommand::Rm(args) => rm(context, args).await,
    }
}

/// Connects to a node whose agent knows checkpoints.
async fn connected(context: &Context, address: &NodeAddress) -> Result<Connection, Fault> {
    let node = connect::connect(context, address).await?;
    if node.can("checkpoints") {
        return Ok(node);
    }
    let message = format!("tranship {} there knows no checkpoints", node.hello.version);
    Err(Fault::new("agent.version", FaultKind::Environment, message)
        .on_node(node.label)
        .with_hint("install this version there"))
}

/// How a checkpoint is named on the command line.
fn named(node: &NodeAddress, checkpoint: &CheckpointInfo) -> String {
    format!(
        "{}{}@{}",
        on_node::prefix(node),
        checkpoint.container,
        checkpoint.name
    )
}

async fn create(context: &Context, args: &CheckpointCreateArgs) -> Result<(), Fault> {
    let address = &args.container;
    if address.name.is_some() {
        return Err(Fault::new(
            "usage.checkpoint",
            FaultKind::Usage,
            "a checkpoint is made of a container, not of a checkpoint",
        )
        .with_hint("leave out @NAME; --name says what it is called"));
    }
    let node = connected(context, &address.node).await?;
    let asked = CreateCheckpoint {
        container: address.container.clone(),
        name: args.name.clone(),
        leave_running: args.leave_running,
    };
    let created = node.client.create_checkpoint(&asked).await;
    let created = created.map_err(|f| f.on_node(node.label.clone()))?;
    if context.ui.json {
        return context.ui.json(&created);
    }
    let name = named(&address.node, &created.checkpoint);
    context.ui.line(&format!(
        "{name}: {} of memory kept",
        bytes(created.checkpoint.memory_bytes)
    ))?;
    explain(context, &created);
    Ok(())
}

/// What was not kept, and what that means for a restore.
fn explain(context: &Context, created: &CheckpointCreated) {
    context.ui.say(if created.checkpoint.left_running {
        "the container runs on; stopped, it can go back to this as long as its files are what they were"
    } else {
        "the container was ended; it can go on from here once, as long as nobody starts it"
    });
    if !created.compared.is_empty() {
        context.ui.say(&format!(
            "files are not kept, they stay where they are: {}; a restore compares them",
            one_line(&created.compared.join(", "))
        ));
    }
    if !created.not_compared.is_empty() {
        context.ui.warn(&format!(
            "neither kept nor compared: {}",
            one_line(&created.not_compared.join(", "))
        ));
    }
    if created.connections > 0 {
        context.ui.say(&format!(
            "{} TCP connection(s) will be closed by a restore",
            created.connections
        ));
    }
}

async fn ls(context: &Context, args: &CheckpointLsArgs) -> Result<(), Fault> {
    let node = connected(context, &args.node).await?;
    let list = node.client.checkpoints().await;
    let list = list.map_err(|f| f.on_node(node.label.clone()))?;
    if context.ui.json {
        return context.ui.json(&list);
    }
    let mut rows = vec![
        ["CONTAINER", "NAME", "MADE", "MEMORY", "STORED", "KIND", "STATE"]
            .map(String::from)
            .to_vec(),
    ];
    let now = tranship_agent::node::now_ms();
    rows.extend(list.iter().map(|checkpoint| {
        // Another container may bear its name by now.
        let container = match checkpoint.state {
            CheckpointState::ContainerGone => {
                let id = checkpoint.container_id.as_str();
                format!("{} ({})", checkpoint.container, id.get(..12).unwrap_or(id))
            }
            _ => checkpoint.container.clone(),
        };
        vec![
            one_line(&container),
            checkpoint.name.to_string(),
            ago(now, checkpoint.created_at_ms),
            bytes(checkpoint.memory_bytes),
            bytes(checkpoint.stored_bytes),
            if checkpoint.left_running {
                "left running"
            } else {
                "ended"
            }
            .to_owned(),
            checkpoint.state.to_string(),
        ]
    }));
    print_table(context, &rows)
}

async fn restore(context: &Context, args: &CheckpointRestoreArgs) -> Result<(), Fault> {
    let address = &args.checkpoint;
    let node = connected(context, &address.node).await?;
    let asked = RestoreCheckpoint {
        container: address.container.clone(),
        name: address.name.clone(),
        changed_files: args.changed_files,
    };
    let restored = node.client.restore_checkpoint(&asked).await;
    let restored = restored.map_err(|f| f.on_node(node.label.clone()))?;
    if !restored.changed.is_empty() {
        context.ui.warn(&format!(
            "files changed since: {}",
            one_line(&restored.changed.join(", "))
        ));
    }
    if !restored.running {
        context
            .ui
            .warn("it went on, and does not run any more; `docker logs` may say why");
    }
    if context.ui.json {
        return context.ui.json(&restored);
    }
    context.ui.line(&format!(
        "{} went on from {}{}",
        restored.container,
        restored.name,
        if restored.kept { "" } else { ", which is removed" }
    ))
}

async fn rm(context: &Context, args: &CheckpointRmArgs) -> Result<(), Fault> {
    let address = &args.checkpoint;
    let Some(name) = &address.name else {
        return Err(Fault::new(
            "usage.checkpoint",
            FaultKind::Usage,
            "a checkpoint is removed by its name, as CONTAINER@NAME",
        )
        .with_hint("`tranship checkpoint ls` shows them"));
    };
    let node = connected(context, &address.node).await?;
    let removed = node.client.remove_checkpoint(&address.container, name).await;
    removed.map_err(|f| f.on_node(node.label.clone()))
}
