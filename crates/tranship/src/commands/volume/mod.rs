//! `tranship volume`: what is done with volumes outside migrations.

mod copy;
mod ls;
mod snapshot;
mod tar;
mod verify;

use std::time::Instant;

use futures_util::StreamExt as _;
use tranship_agent::CopyEvents;
use tranship_agent::api::CopyEvent;
use tranship_core::storage::RoundReport;
use tranship_core::{Fault, FaultKind};

use super::Context;
use crate::cli::{VolumeArgs, VolumeCommand};
use crate::progress::Line;
use crate::render::{bytes, duration_ms};

/// Runs one of the forms.
pub async fn run(context: &Context, args: &VolumeArgs) -> Result<(), Fault> {
    match &args.command {
        VolumeCommand::Ls(args) => ls::run(context, args).await,
        VolumeCommand::Copy(args) => copy::run(context, args).await,
        VolumeCommand::Snapshot(args) => snapshot::run(context, args).await,
        VolumeCommand::Export(args) => tar::export(context, args).await,
        VolumeCommand::Import(args) => tar::import(context, args).await,
        VolumeCommand::Verify(args) => verify::run(context, args).await,
    }
}

/// Shows how a copy goes, to its end: its rounds, and the time of the snapshot if it is one. An interrupt ends it in order: the stream is dropped, and the agents clean up.
async fn follow(
    context: &Context,
    what: &str,
    mut events: CopyEvents,
) -> Result<(Vec<RoundReport>, Option<u64>), Fault> {
    let mut line = Line::new(&context.ui);
    let begun = Instant::now();
    let gone = || {
        Fault::new(
            "wire.lost",
            FaultKind::Environment,
            "the connection ended before the copy did",
        )
        .with_hint("run the command again; what arrived is used")
    };
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = tokio::signal::ctrl_c() => {
                return Err(Fault::new("copy.aborted", FaultKind::RolledBack, "the copy was aborted on request"));
            }
        };
        match event.ok_or_else(gone)?? {
            CopyEvent::Progress {
                bytes: done,
                entries,
                wire_bytes,
            } if context.ui.json => {
                let event = CopyEvent::Progress {
                    bytes: done,
                    entries,
                    wire_bytes,
                };
                if let Ok(text) = serde_json::to_string(&event) {
                    context.ui.error_line(&text);
                }
            }
            CopyEvent::Progress {
                bytes: done,
                entries,
                wire_bytes,
            } => {
                let rate = wire_bytes as f64 / begun.elapsed().as_secs_f64().max(0.001);
                line.show(format!(
                    "{what}: {} in {entries} entries looked at, {} sent, {}/s",
                    bytes(done),
                    bytes(wire_bytes),
                    bytes(rate as u64)
                ));
            }
            CopyEvent::Done { rounds, snapshot } => return Ok((rounds, snapshot)),
        }
    }
}

/// What the rounds of a copy did, in a line.
fn in_words(rounds: &[RoundReport]) -> String {
    let last = rounds.last().cloned().unwrap_or_default();
    let sent: u64 = rounds.iter().map(|r| r.wire_bytes).sum();
    let took: u64 = rounds.iter().map(|r| r.milliseconds).sum();
    format!(
        "{} in {} entries, {} sent in {}, tree {}",
        bytes(last.bytes),
        last.entries,
        bytes(sent),
        duration_ms(took),
        last.tree.get(..16).unwrap_or(&last.tree)
    )
}
