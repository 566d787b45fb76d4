//! Going back: the source serves again, the destination is as it was.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;
use tranship_core::container::ContainerState;
use tranship_core::event::Event;
use tranship_core::fault::FaultKind;
use tranship_core::storage::ElementAt;
use tranship_core::{Engine, EngineError, Fault};

use super::memory::memory_of;
use super::{Departure, ENGINE_AWAY, NOT_RESUMED};
use crate::options::HookTime;
use crate::plan::{Member, Plan};

/// Exit code of what was killed, as engines tell it.
const KILLED: i64 = 128 + 9;
/// Tries to restore memory before it is given up.
const FROM_MEMORY: u32 = 2;

/// What a container may go on from.
struct Memory<'a> {
    at: &'a ElementAt,
    /// It was dumped while it stood still, and ended by us.
    dumped: bool,
    /// Its end was seen to be that, before a restore that failed left another exit code.
    seen: bool,
    /// Why a restore failed.
    failed: Option<String>,
}

/// How a container came back.
enum Resumed {
    /// With all that it was to keep in its mode.
    AsItWas,
    /// Without the memory that live mode was to keep.
    Afresh,
}

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
/// does at its start with a record that says `frozen`. Says what was lost of what live mode should have kept. What ended goes on from
/// its dump only where it is among those that were `ended` by us while they stood still: any other end was its own, and wrote what the dump does not know.
///
/// # Errors
/// `source.not-resumed`, which needs a person.
pub async fn resume(engine: &dyn Engine, plan: &Plan, ended: &BTreeSet<usize>) -> Result<Vec<String>, Fault> {
    let members = plan.members();
    let mut first_failure = None;
    let mut lost = Vec::new();
    for index in plan.start_order() {
        let Some(member) = members.get(index) else {
            continue;
        };
        // The others are brought back whatever becomes of this one.
        let dumped = ended.contains(&index);
        let memory = memory_of(plan, index).map(|at| Memory {
            at,
            dumped,
            seen: false,
            failed: None,
        });
        match resume_member(engine, plan, member, memory).await {
            Ok(said) => lost.extend(said),
            Err(fault) => {
                first_failure.get_or_insert(fault);
            }
        }
    }
    first_failure.map_or(Ok(lost), Err)
}

async fn resume_member(
    engine: &dyn Engine,
    plan: &Plan,
    member: &Member,
    memory: Option<Memory<'_>>,
) -> Result<Option<String>, Fault> {
    let spec = &member.create.spec;
    let begun = Instant::now();
    let mut attempt = 0u32;
    let mut memory = memory;
    let mut lost = None;
    let reason = loop {
        let error = match try_resume(engine, member, memory.as_mut()).await {
            Ok(Resumed::AsItWas) => return Ok(lost),
            Ok(Resumed::Afresh) => {
                let why = memory.and_then(|memory| memory.failed).map_or_else(
                    || "had ended by itself, or its dump is gone,".to_owned(),
                    |failed| format!("could not go on from its own memory ({failed})"),
                );
                return Ok(lost.or_else(|| Some(format!("{} {why} and was started afresh", spec.name))));
            }
            Err(error) => error,
        };
        attempt += 1;
        // An engine that is being restarted takes longer than one that refuses.
        let away = matches!(
            error,
            EngineError::Unreachable { .. } | EngineError::Uncertain { .. }
        );
        if memory.is_some() && attempt >= FROM_MEMORY && !away {
            // It serves again, with what is on its disks.
            lost = Some(format!(
                "{} could not go on from its own memory and was started afresh: {error}",
                spec.name
            ));
            memory = None;
        }
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
    .with_hint(format!(
        "start it there with `docker start {0}`, or `docker unpause {0}` where it is paused",
        spec.name
    )))
}

/// Lets it go on where it is paused, and starts it where it is not running: it may have been either, and a host that was
/// rebooted meanwhile made a stopped one of a paused one. The restart policy comes first: an engine that is restarted right
/// after the start would otherwise leave it down, and whoever starts it by hand gets back what they had.
async fn try_resume(
    engine: &dyn Engine,
    member: &Member,
    memory: Option<&mut Memory<'_>>,
) -> Result<Resumed, EngineError> {
    let id = &member.create.spec.id;
    let has_memory = memory.is_some();
    // A dump that is under way still puts the freezer back at its end: that is waited for.
    let there = match &memory {
        Some(memory) => engine.has_dump(memory.at).await? && memory.dumped,
        None => false,
    };
    let status = engine.status(id).await?;
    let state = status.state;
    if !member.restart_policy.is_never() {
        engine.set_restart_policy(id, &member.restart_policy).await?;
    }
    if state == ContainerState::Paused {
        engine.unpause(id).await?;
        // It goes on, and whenever it ends later, that is its own end.
        if let Some(memory) = memory {
            let forgotten = engine.forget(memory.at).await;
            tracing::debug!(?forgotten, "the dump of what was never ended");
        }
        return Ok(Resumed::AsItWas);
    }
    let ended = state != ContainerState::Running;
    // One that was started since the dump was made has gone on from there, or was begun anew by somebody.
    if ended
        && let Some(memory) = memory
        && there
        && status.started_at == member.create.spec.status.started_at
        && (memory.seen || status.exit_code == KILLED)
    {
        memory.seen = true;
        let restored = engine.restore(memory.at).await;
        if let Err(error) = &restored {
            memory.failed = Some(error.to_string());
        }
        return restored.map(|()| Resumed::AsItWas);
    }
    engine.start(id).await?;
    Ok(if ended && has_memory {
        Resumed::Afresh
    } else {
        Resumed::AsItWas
    })
}
