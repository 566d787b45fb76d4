//! Going back: the source serves again, the destination is as it was.

use std::time::Duration;

use tokio::time::Instant;
use tranship_core::container::ContainerState;
use tranship_core::event::Event;
use tranship_core::fault::FaultKind;
use tranship_core::{Engine, EngineError, Fault};

use super::{Departure, ENGINE_AWAY, NOT_RESUMED};
use crate::options::HookTime;
use crate::plan::{Member, Plan};

impl Departure {
    /// Undoes what pre-freeze hooks did. Failing at that is said, and no failure of the going back.
    pub(super) async fn thaw(&mut self) {
        if let Err(fault) = self.hooks(HookTime::Thaw).await {
            self.reporter.report(Event::Warning {
                text: format!("the source serves again, but a hook failed: {fault}"),
            });
        }
    }

    pub(super) fn say_left_behind(&self, left_behind: Vec<String>) {
        for left in left_behind {
            self.reporter.report(Event::Warning {
                text: format!("left at the destination: {left}"),
            });
        }
    }
}

/// Makes the source serve again after it was frozen: starts it, and gives it its restart policy back. Also what an agent
/// does at its start with a record that says `frozen`.
///
/// # Errors
/// `source.not-resumed`, which needs a person.
pub async fn resume(engine: &dyn Engine, plan: &Plan) -> Result<(), Fault> {
    let members = plan.members();
    let mut first_failure = None;
    for member in plan.start_order().into_iter().filter_map(|i| members.get(i)) {
        // The others are brought back whatever becomes of this one.
        if let Err(fault) = resume_member(engine, plan, member).await {
            first_failure.get_or_insert(fault);
        }
    }
    first_failure.map_or(Ok(()), Err)
}

async fn resume_member(engine: &dyn Engine, plan: &Plan, member: &Member) -> Result<(), Fault> {
    let spec = &member.create.spec;
    let begun = Instant::now();
    let mut attempt = 0u32;
    let reason = loop {
        let error = match try_resume(engine, member).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        attempt += 1;
        // An engine that is being restarted takes longer than one that refuses.
        let away = matches!(
            error,
            EngineError::Unreachable { .. } | EngineError::Uncertain { .. }
        );
        if attempt >= 5 && !(away && begun.elapsed() < ENGINE_AWAY) {
            break error.to_string();
        }
        tokio::time::sleep(Duration::from_millis(300 * u64::from(attempt.min(5)))).await;
    };
    Err(Fault::new(
        NOT_RESUMED,
        FaultKind::InDoubt,
        format!(
            "the container {} was stopped and could not be started again at the source",
            spec.name
        ),
    )
    .on_container(spec.name.clone())
    .on_node(plan.source.clone())
    .because(reason)
    .with_hint(format!("start it there with `docker start {}`", spec.name)))
}

/// Lets it go on where it is paused, and starts it where it is not running: it may have been either, and a host that was
/// rebooted meanwhile made a stopped one of a paused one. The restart policy comes first: an engine that is restarted right
/// after the start would otherwise leave it down, and whoever starts it by hand gets back what they had.
async fn try_resume(engine: &dyn Engine, member: &Member) -> Result<(), EngineError> {
    let id = &member.create.spec.id;
    let state = engine.status(id).await?.state;
    if !member.restart_policy.is_never() {
        engine.set_restart_policy(id, &member.restart_policy).await?;
    }
    match state {
        ContainerState::Paused => engine.unpause(id).await,
        _ => engine.start(id).await,
    }
}
