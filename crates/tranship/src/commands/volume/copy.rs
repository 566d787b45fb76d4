//! `tranship volume copy`.

use tranship_agent::api::{ReceiveCopy, SendCopy};
use tranship_core::storage::{SyncOptions, VolumeSpec};
use tranship_core::{Fault, FaultKind};

use super::{follow, in_words};
use crate::cli::VolumeCopyArgs;
use crate::commands::Context;
use crate::commands::migrate::route;
use crate::commands::plan::new_id;
use crate::connect::{self, Connection};

/// Copies a volume.
pub async fn run(context: &Context, args: &VolumeCopyArgs) -> Result<(), Fault> {
    if args.destination.snapshot.is_some() {
        return Err(Fault::new(
            "usage.copy",
            FaultKind::Usage,
            "a copy goes into a volume, not into a snapshot",
        )
        .with_hint("leave out @TIME of the destination"));
    }
    let (source, destination) = tokio::join!(
        connect::connect(context, &args.source.node),
        connect::connect(context, &args.destination.node)
    );
    let (source, destination) = (source?, destination?);
    let spec = volume_of(&source, args).await?;
    if source.hello.instance == destination.hello.instance
        && spec.name == args.source.name
        && args.source.snapshot.is_none()
    {
        return Err(Fault::new(
            "usage.copy",
            FaultKind::Usage,
            "source and destination are the same volume",
        )
        .with_hint("give the copy another name"));
    }
    if let Some(why) = spec.data_elsewhere() {
        return Err(Fault::new(
            "volume.elsewhere",
            FaultKind::Environment,
            format!("the data of {} is not on that node: {why}", args.source),
        )
        .with_hint("make a volume with the same options at the destination, and it finds the same data"));
    }
    let id = new_id()?;
    let route = route(context, &source, &destination, &id, args.relay).await?;
    let receive = ReceiveCopy {
        volume: spec,
        update: args.update,
    };
    let there = |f: Fault| f.on_node(destination.label.clone());
    destination
        .client
        .receive_copy(&id, &receive)
        .await
        .map_err(there)?;
    let send = SendCopy {
        volume: args.source.name.clone(),
        snapshot: args.source.snapshot,
        place: None,
        options: SyncOptions {
            exclude: args.exclude.clone(),
            compression: args.compress,
            limit_rate: args.limit_rate,
            ..SyncOptions::default()
        },
        freeze: args.freeze,
        destination: destination.label.clone(),
        route,
    };
    let sent = match source.client.send_copy(&id, &send).await {
        Ok(events) => follow(context, &args.source.name, events).await,
        Err(fault) => Err(fault),
    };
    let rounds = match sent {
        Ok((rounds, _)) => {
            destination.client.end_copy(&id, true).await.map_err(there)?;
            rounds
        }
        Err(fault) => {
            if let Err(stuck) = destination.client.end_copy(&id, false).await {
                context.ui.warn(&format!(
                    "the destination could not be told, and cleans up by itself: {stuck}"
                ));
            }
            return Err(fault.on_either(&source.label, &destination.label));
        }
    };
    if context.ui.json {
        return context.ui.json(&rounds);
    }
    let to = format!("{}//{}", args.destination.node, receive.volume.name);
    context
        .ui
        .line(&format!("{} → {to}: {}", args.source, in_words(&rounds)))
}

/// The volume as it is to be made at the destination.
async fn volume_of(source: &Connection, args: &VolumeCopyArgs) -> Result<VolumeSpec, Fault> {
    let here = |f: Fault| f.on_node(source.label.clone());
    let volumes = source.client.volumes().await.map_err(here)?;
    let found = volumes.into_iter().find(|v| v.spec.name == args.source.name);
    let Some(found) = found else {
        return Err(Fault::new(
            "volume.not-found",
            FaultKind::Environment,
            format!("there is no volume {:?}", args.source.name),
        )
        .with_hint("`tranship volume ls NODE` shows them")
        .on_node(source.label.clone()));
    };
    let mut spec = found.spec;
    if !args.destination.name.is_empty() {
        spec.name.clone_from(&args.destination.name);
    }
    spec.users.clear();
    spec.mountpoint = None;
    Ok(spec)
}
