//! `tranship migrate`: plans, then moves one container after another and shows how it goes.

use std::time::Duration;

use futures_util::StreamExt as _;
use tranship_agent::api::{Depart, Expect, MigrationView, Reach, Role, Route};
use tranship_core::event::Event;
use tranship_core::ids::ContainerName;
use tranship_core::{Fault, FaultKind, MigrationId};
use tranship_migrate::departure::{LOST_DESTINATION, NOT_DUMPED};
use tranship_migrate::options::ModeRequest;
use tranship_migrate::plan::{Mode, Plan};
use tranship_migrate::record::DepartureState;

use super::Context;
use super::plan::{Prepared, plans, prepare, refuse_conflicts};
use crate::cli::MigrateArgs;
use crate::connect::{self, Connection};
use crate::history::Entry;
use crate::interrupts::Interrupts;
use crate::progress::Progress;
use crate::render;

/// How often a lost connection to the source is made again before the caller gives up watching.
const RECONNECTS: u32 = 5;
/// How long a destination that the source lost is called from here.
const WAKE: Duration = Duration::from_secs(8);

/// Moves the containers. Every fault of every container is in the answer.
pub async fn run(context: &Context, args: &MigrateArgs) -> Vec<Fault> {
    let mut prepared = match prepare(context, &args.moves).await {
        Ok(prepared) => prepared,
        Err(fault) => return vec![fault],
    };
    if let Some(id) = prepared.under_way.take() {
        context
            .ui
            .say(&format!("migration {id} does this already; watching it"));
        return watch_to_the_end(context, &mut prepared.source, &id).await;
    }
    if let Err(fault) = refuse_conflicts(&prepared.plans) {
        show_plans(context, &prepared.plans);
        return vec![fault];
    }
    show_plans(context, &prepared.plans);
    let mut faults = Vec::new();
    let mut views = Vec::new();
    let plans = std::mem::take(&mut prepared.plans);
    let mut waiting = plans.into_iter();
    while let Some(plan) = waiting.next() {
        let name = plan.spec().name.clone();
        match one_of(context, args, &mut prepared, plan).await {
            Ok(view) => {
                faults.extend(view.fault.clone());
                show_summary(context, &view);
                views.push(view);
            }
            Err(fault) => faults.push(fault.on_container(name)),
        }
        // What comes after a failure may depend on what failed.
        if !faults.is_empty() {
            for plan in waiting {
                context.ui.warn(&format!(
                    "{} was not moved, because of the failure before it",
                    plan.spec().name
                ));
            }
            break;
        }
    }
    if context.ui.json
        && let Err(fault) = context.ui.json(&views)
    {
        faults.push(fault);
    }
    faults
}

/// Watches a migration that was begun before, and shows how it went.
pub async fn watch_to_the_end(context: &Context, source: &mut Connection, id: &MigrationId) -> Vec<Fault> {
    match watch(context, source, id, &mut Noticed::default()).await {
        Ok(view) => {
            show_summary(context, &view);
            let mut faults: Vec<Fault> = view.fault.clone().into_iter().collect();
            if context.ui.json {
                faults.extend(context.ui.json(&[view]).err());
            }
            faults
        }
        Err(fault) => vec![fault],
    }
}

fn show_plans(context: &Context, plans: &[Plan]) {
    for plan in plans {
        for line in render::plan::lines(&context.ui, plan) {
            context.ui.say(&line);
        }
    }
}

fn show_summary(context: &Context, view: &MigrationView) {
    if context.ui.json {
        return;
    }
    for line in render::report::summary(&context.ui, view) {
        if context.ui.line(&line).is_err() {
            // Nobody reads; the exit code still says how it went.
            return;
        }
    }
}

/// Moves one container. Where `auto` took live mode, and its memory then turned out not to be dumped, it goes on with what `auto`
/// takes without it: the source ran all the time, nothing had travelled, and the first try is over and put back.
async fn one_of(
    context: &Context,
    args: &MigrateArgs,
    prepared: &mut Prepared,
    plan: Plan,
) -> Result<MigrationView, Fault> {
    let container = plan.spec().id.clone();
    let chosen = plan.options.mode == ModeRequest::Auto && plan.mode == Mode::Live;
    let mut interrupts = Noticed::default();
    let mut view = one(context, args, prepared, plan, &mut interrupts).await?;
    let put_back = view.departure == Some(DepartureState::RolledBack);
    let fault = match &view.fault {
        Some(fault) if chosen && put_back && fault.code == NOT_DUMPED => fault,
        _ => {
            if chosen && put_back {
                view.fault = view.fault.map(of_chosen_live);
            }
            return Ok(view);
        }
    };
    // It may have come when the first try was being put back already, which an abort does not change.
    if interrupts.any {
        return Ok(view);
    }
    context.ui.warn(&format!("not in live mode: {}", fault.message));
    let named = ContainerName::new(container.as_str())
        .map_err(|error| Fault::new("name.invalid", FaultKind::Bug, error.to_string()))?;
    let (containers, options) = ([named], args.moves.options()?);
    let (source, destination) = (&prepared.source, &prepared.destination);
    let again = plans(source, destination, &containers, &options, Some(&fault.message));
    let Some(again) = interrupts.unless_any(again).await else {
        context.ui.say("interrupted: it is not moved in another mode");
        return Ok(view);
    };
    let again = again.map_err(|error| error.because(fault.message.clone()))?;
    show_plans(context, &again);
    refuse_conflicts(&again).map_err(|error| error.because(fault.message.clone()))?;
    match again.into_iter().next() {
        Some(plan) => one(context, args, prepared, plan, &mut interrupts).await,
        None => Ok(view),
    }
}

/// A fault of a move for which `auto` took live mode: after one that the mode may have to do with, the same command would take it again.
fn of_chosen_live(mut fault: Fault) -> Fault {
    let other =
        "live mode was chosen by `auto`, and would be again: --mode cold carries everything but memory";
    let of_live = ["engine.", "live.", "health."]
        .iter()
        .any(|room| fault.code.starts_with(room));
    if of_live {
        let before = fault.hint.take().map(|hint| format!("{hint}; "));
        fault.hint = Some(format!("{}{other}", before.unwrap_or_default()));
    }
    fault
}

/// Interrupts of one container's move, over all its tries: once they are heard they end nothing by themselves any more, so that one
/// which comes between two tries would be lost to all.
#[derive(Default)]
struct Noticed {
    /// From the first look at a migration on.
    signals: Option<Interrupts>,
    /// One came.
    any: bool,
}

impl Noticed {
    fn listen(&mut self) -> Result<(), Fault> {
        if self.signals.is_none() {
            self.signals = Some(Interrupts::new()?);
        }
        Ok(())
    }

    /// Waits for the next one. Whether there was one before.
    async fn next(&mut self) -> bool {
        match &mut self.signals {
            Some(signals) => signals.next().await,
            None => std::future::pending().await,
        }
        std::mem::replace(&mut self.any, true)
    }

    /// What comes of `work`, unless there is an interrupt before it is through, or was one before it began.
    async fn unless_any<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        if self.any {
            return None;
        }
        tokio::select! {
            biased;
            _ = self.next() => None,
            done = work => Some(done),
        }
    }
}

async fn one(
    context: &Context,
    args: &MigrateArgs,
    prepared: &mut Prepared,
    plan: Plan,
    interrupts: &mut Noticed,
) -> Result<MigrationView, Fault> {
    let id = plan.id.clone();
    let mut entry = Entry {
        id: id.clone(),
        container: plan.spec().name.clone(),
        source: prepared.source.address.clone(),
        destination: prepared.destination.address.clone(),
        begun_at_ms: tranship_agent::node::now_ms(),
        outcome: None,
        forgotten: false,
    };
    let route = route(
        context,
        &prepared.source,
        &prepared.destination,
        &id,
        args.moves.relay,
    )
    .await?;
    let depart = Depart { plan, route };
    // Noted before it begins: a caller that dies now must still be able to ask for it.
    if let Err(error) = context.history().add(&entry) {
        context
            .ui
            .warn(&format!("`tranship list` will not know this migration: {error}"));
    }
    if let Err(fault) = prepared.source.client.depart(&depart).await {
        // An answer of the source says that it did not begin; without one it may have.
        if !fault.code.starts_with("wire.") {
            context.history().forget(&entry);
        }
        return Err(fault.on_node(prepared.source.label.clone()));
    }
    context
        .ui
        .say(&format!("migration {id} of {} began", entry.container));
    let view = watch(context, &mut prepared.source, &id, interrupts).await;
    entry.outcome = Some(match &view {
        Ok(view) => view.fault.as_ref().map_or_else(
            || view.status.clone(),
            |f| format!("{} [{}]", view.status, f.code),
        ),
        Err(fault) => format!("not known [{}]", fault.code),
    });
    if context.history().add(&entry).is_err() {
        // Said once already.
    }
    view
}

/// Opens the direct way from agent to agent, or carries the stream through this process.
pub async fn route(
    context: &Context,
    source: &Connection,
    destination: &Connection,
    id: &MigrationId,
    relay: bool,
) -> Result<Route, Fault> {
    let expected = destination
        .client
        .expect(&Expect {
            id: id.clone(),
            source: source.hello.fingerprint,
        })
        .await
        .map_err(|f| f.on_node(destination.label.clone()))?;
    if !relay {
        match source
            .client
            .reach(&Reach {
                offer: expected.offer.clone(),
            })
            .await
        {
            Ok(reached) => {
                context
                    .ui
                    .say(&format!("data path: directly to {} (TLS 1.3)", reached.address));
                return Ok(Route::Direct(Box::new(expected.offer)));
            }
            Err(fault) => context.ui.say(&format!("no direct data path: {fault}")),
        }
    }
    context.ui.say("data path: through this machine");
    let from = source
        .client
        .relay_stream(id)
        .await
        .map_err(|f| f.on_node(source.label.clone()))?;
    let to = destination
        .client
        .peer_stream(id)
        .await
        .map_err(|f| f.on_node(destination.label.clone()))?;
    tokio::spawn(async move {
        if let Err(error) = tranship_wire::relay::relay(from, to, &std::sync::Arc::default()).await {
            tracing::debug!("the relay ended: {error}");
        }
    });
    Ok(Route::Relay)
}

/// Shows the migration until it is over. Interrupts ask it to end in order; a lost connection is made again.
async fn watch(
    context: &Context,
    source: &mut Connection,
    id: &MigrationId,
    interrupts: &mut Noticed,
) -> Result<MigrationView, Fault> {
    let mut progress = Progress::new(&context.ui);
    let mut losses = 0;
    loop {
        match follow(context, source, id, &mut progress, interrupts).await {
            Ok(()) => match finished_view(source, id).await {
                Ok(view) => return Ok(view),
                Err(fault) if losses >= RECONNECTS => return Err(lost(id, &fault)),
                Err(_) => {}
            },
            Err(fault) if losses >= RECONNECTS => return Err(lost(id, &fault)),
            // An interrupt at a terminal reaches ssh too, and its end is no surprise then.
            Err(_) if interrupts.any => context
                .ui
                .say("connecting to the source again, to see how it ends"),
            Err(fault) => context
                .ui
                .warn(&format!("lost sight of the source, connecting again: {fault}")),
        }
        losses += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
        match connect::connect(context, &source.address.clone()).await {
            Ok(again) => *source = again,
            Err(fault) if losses >= RECONNECTS => return Err(lost(id, &fault)),
            Err(_) => {}
        }
    }
}

fn lost(id: &MigrationId, fault: &Fault) -> Fault {
    Fault::new(
        "caller.lost",
        FaultKind::InDoubt,
        "lost sight of the source while the migration was under way",
    )
    .because(fault.to_string())
    .with_hint(format!(
        "the agents finish or roll back by themselves; `tranship status {id}` tells once they can be reached"
    ))
}

async fn follow(
    context: &Context,
    source: &Connection,
    id: &MigrationId,
    progress: &mut Progress,
    interrupts: &mut Noticed,
) -> Result<(), Fault> {
    let mut events = source.client.events(id).await?;
    interrupts.listen()?;
    if interrupts.any {
        // An interrupt at a terminal ends ssh too, perhaps before it carried the request.
        match source.client.abort(id).await {
            Ok(()) => {}
            // It is over, or can't go back any more: what is left is to see how it ends.
            Err(fault) if matches!(fault.code.as_str(), "migrate.not-found" | "migrate.too-late") => {}
            Err(fault) => return Err(fault),
        }
    }
    loop {
        tokio::select! {
            event = events.next() => match event {
                None => return Ok(()),
                Some(Err(fault)) => return Err(fault),
                Some(Ok(event)) => {
                    let over = matches!(event, Event::Finished { .. });
                    progress.show(&event);
                    if let Event::Warning { text } = &event
                        && text.starts_with(LOST_DESTINATION)
                    {
                        wake_destination(context, id).await;
                    }
                    if over {
                        return Ok(());
                    }
                }
            },
            again = interrupts.next() => {
                context.ui.say(if again {
                    "interrupted again: the source was asked already and goes back in order; it does so without this \
                     program too, and `tranship status` shows how it ends"
                } else {
                    "interrupted: asking the source to roll back"
                });
                match source.client.abort(id).await {
                    Ok(()) => {}
                    Err(fault) if fault.code == "migrate.too-late" => {
                        context.ui.say(&format!("too late to go back: {fault}"));
                    }
                    // The connection may have gone with the interrupt; it is asked again over the next one.
                    Err(fault) => tracing::debug!("not asked yet: {fault}"),
                }
            }
        }
    }
}

/// The destination's agent may have ended: connecting to its node starts it, and it goes on where it was.
async fn wake_destination(context: &Context, id: &MigrationId) {
    let entries = context.history().entries();
    let Some(entry) = entries.into_iter().find(|e| &e.id == id) else {
        return;
    };
    let again = connect::connect(context, &entry.destination);
    match tokio::time::timeout(WAKE, again).await {
        Ok(Ok(_)) => context.ui.say("connected to the destination again"),
        Ok(Err(fault)) => tracing::debug!("the destination cannot be reached from here either: {fault}"),
        Err(_) => tracing::debug!("the destination cannot be reached from here either"),
    }
}

/// The source's view once the record is final; the last event may come a moment before it.
async fn finished_view(source: &Connection, id: &MigrationId) -> Result<MigrationView, Fault> {
    let mut last = Fault::new(
        "migrate.not-found",
        FaultKind::Bug,
        "the source does not know the migration",
    );
    for _ in 0..40 {
        match source.client.migration(id).await {
            Ok(views) => {
                if let Some(view) = views.into_iter().find(|v| v.role == Role::Source)
                    && (view.status != "in-progress")
                {
                    return Ok(view);
                }
            }
            Err(fault) => last = fault,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    #[test]
    fn whoever_let_auto_choose_live_mode_is_told_of_another_one() {
        let hint = |code: &str, hint: Option<&str>| {
            let fault = Fault::new(code, FaultKind::RolledBack, "it did not work");
            of_chosen_live(hint.into_iter().fold(fault, Fault::with_hint)).hint
        };
        for code in ["engine.failed", "live.files", "health.exited"] {
            let told = hint(code, None).unwrap();
            assert!(told.starts_with("live mode was chosen") && told.contains("--mode cold"));
            let told = hint(code, Some("look")).unwrap();
            assert!(told.starts_with("look; ") && told.contains("--mode cold"));
        }
        for code in ["migrate.aborted", "wire.lost", "registry.digest"] {
            assert_eq!(hint(code, Some("look")).unwrap(), "look");
        }
    }

    #[tokio::test]
    async fn an_interrupt_between_two_tries_is_not_lost() {
        let mut interrupts = Noticed::default();
        interrupts.listen().unwrap();
        assert_eq!(interrupts.unless_any(std::future::ready(1)).await, Some(1));
        // Nobody looks when it comes.
        kill_process(getpid(), Signal::INT).unwrap();
        let slow = tokio::time::sleep(Duration::from_secs(600));
        assert_eq!(interrupts.unless_any(slow).await, None);
        assert!(interrupts.any);
        assert_eq!(interrupts.unless_any(std::future::ready(1)).await, None);
        kill_process(getpid(), Signal::TERM).unwrap();
        assert!(interrupts.next().await, "it is the second one");
    }
}
