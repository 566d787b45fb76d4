//! Doing what the protocol says: the shell around the destination's half of it.

use std::time::Duration;

use tranship_core::container::{ContainerState, Health};
use tranship_core::fault::FaultKind;
use tranship_core::storage::ElementAt;
use tranship_core::{ContainerId, EngineError, Fault};

use super::{Arrival, container_of, memory_of, undo, waits_for_tmpfs};
use crate::destination::{ADOPTED, Adopted, ArrivalState, DISCARDED, Discarded};
use crate::failpoint;
use crate::health::{self, ENGINE_AWAY, Proof, engine_away};
use crate::plan::Mode;
use crate::protocol::destination::{Action, Destination, Input};
use crate::protocol::{Answer, Message, Owner};
use crate::record::{ArrivalRecord, Undo};

/// How often an engine that is away is asked again.
const AGAIN: Duration = Duration::from_millis(300);

/// Why containers are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Starting {
    /// The source has committed.
    Asked,
    /// The agent, the engine or the host was restarted since.
    Again,
}

/// What the machine made of an input, and why if it failed.
struct Turn {
    answer: Option<Answer>,
    why: Option<Fault>,
}

impl Turn {
    /// The fault that says what the destination answered instead.
    fn refusal(self) -> Fault {
        match self.answer {
            Some(Answer::Adopted) => adopted(),
            Some(Answer::Discarded) => discarded(),
            _ => self.why.unwrap_or_else(|| {
                Fault::new(
                    "arrival.order",
                    FaultKind::Bug,
                    "the destination was asked for a step before the one that comes first",
                )
            }),
        }
    }
}

impl Arrival {
    /// Hands an input to the machine and does what it says until it has nothing more to do.
    async fn turn(&self, record: &mut ArrivalRecord, half: Destination, starting: Starting) -> Turn {
        let mut half = half;
        let mut why = None;
        let mut answer = None;
        loop {
            let done = match half.action() {
                Action::Idle => return Turn { answer, why },
                Action::Say(said) => {
                    answer = Some(said);
                    half.said();
                    continue;
                }
                Action::Save(state) => {
                    let before = std::mem::replace(&mut record.state, state);
                    let saved = if state == ArrivalState::Adopted {
                        // It has proved itself, and what it answered for is here only: a full disk may have room again.
                        let record = &*record;
                        self.patiently(|| self.save(record), |_| true).await
                    } else {
                        self.save(record).await
                    };
                    match saved {
                        Ok(()) => half.on(Input::Saved),
                        Err(fault) => {
                            record.state = before;
                            why = Some(fault);
                            half.on(Input::NotSaved);
                        }
                    }
                    continue;
                }
                Action::Make => self.make_containers(record).await,
                Action::Start if half.is_keeping() => self.start_kept(record).await,
                Action::Start => self.start_containers(record, starting).await,
                Action::Keep => self.give_policies_back(record).await,
                Action::Remove => self.remove_all(record).await,
                // Waited for elsewhere, without holding the record.
                Action::Prove => Ok(()),
            };
            match done {
                Ok(()) => half.on(Input::Done),
                Err(fault) => {
                    why = Some(fault);
                    half.on(Input::Failed);
                }
            }
        }
    }

    async fn asked(&self, record: &mut ArrivalRecord, message: Message) -> Turn {
        let mut half = Destination::holding(Some(record.state));
        half.on(Input::Asked(message));
        self.turn(record, half, Starting::Asked).await
    }

    /// Makes the containers.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn create(&self) -> Result<(), Fault> {
        failpoint::reach("destination.create").await?;
        let mut record = self.record.lock().await;
        let turn = self.asked(&mut record, Message::Prepare).await;
        match turn.answer {
            Some(Answer::Prepared) => failpoint::reach("destination.created").await,
            _ => Err(turn.refusal()),
        }
    }

    /// Starts the containers, after noting durably that it will, and runs their post-start hooks. Those that wait for a tmpfs
    /// are paused right after their start, until [`Arrival::go_on`].
    ///
    /// # Errors
    /// What the engine says, such as a port that is taken; `hook.failed`; [`ADOPTED`] or [`DISCARDED`] where that is decided.
    pub async fn start(&self) -> Result<(), Fault> {
        failpoint::reach("destination.start").await?;
        let mut record = self.record.lock().await;
        if record.state == ArrivalState::Prepared {
            for index in record.plan.start_order() {
                container_of(&record, index)?;
            }
            self.close_sinks(&record).await?;
        }
        let turn = self.asked(&mut record, Message::Start).await;
        match turn.answer {
            Some(Answer::Started) => Ok(()),
            _ => Err(turn.refusal()),
        }
    }

    async fn start_containers(&self, record: &ArrivalRecord, starting: Starting) -> Result<(), Fault> {
        if starting == Starting::Asked {
            failpoint::reach("destination.committed").await?;
        }
        let members = record.plan.members();
        for index in record
            .plan
            .start_order()
            .into_iter()
            .filter(|i| *i < members.len())
        {
            let id = container_of(record, index)?;
            if let Some(memory) = memory_of(record, index) {
                self.go_on_from(&id, &memory, starting).await?;
                continue;
            }
            if !waits_for_tmpfs(record, index) {
                self.insist(|| self.ports.engine.start(&id)).await?;
                continue;
            }
            // What is to be in memory comes from the source.
            if starting == Starting::Again
                || self.ports.engine.status(&id).await?.state == ContainerState::Paused
            {
                continue;
            }
            self.ports.engine.start(&id).await?;
            self.ports.engine.pause(&id).await?;
        }
        if starting == Starting::Again {
            return Ok(());
        }
        failpoint::reach("destination.started").await?;
        if (0..members.len()).any(|index| waits_for_tmpfs(record, index)) {
            Ok(())
        } else {
            self.post_start(record).await
        }
    }

    /// Starts a container from the memory that arrived. It does so once: what ran here and ended has answered for things that the
    /// dump does not know, and starts afresh as after any restart of its engine.
    async fn go_on_from(
        &self,
        id: &ContainerId,
        memory: &ElementAt,
        starting: Starting,
    ) -> Result<(), EngineError> {
        let engine = self.ports.engine.as_ref();
        let state = self.insist_on(|| engine.status(id)).await?.state;
        match state {
            ContainerState::Running => Ok(()),
            ContainerState::Created => engine.restore(memory).await,
            _ if starting == Starting::Again => self.insist(|| engine.start(id)).await,
            other => Err(EngineError::Conflict {
                action: format!("restore the memory of container {id}"),
                message: format!("it is {other}"),
            }),
        }
    }

    /// Repeats what an engine that is away did not hear: it may be restarted just now. A container that ran here has
    /// answered for things that are nowhere else, so that going back is the last resort.
    async fn insist<F>(&self, act: impl Fn() -> F) -> Result<(), EngineError>
    where
        F: Future<Output = Result<(), EngineError>>,
    {
        self.patiently(act, engine_away).await
    }

    async fn insist_on<T, F>(&self, ask: impl Fn() -> F) -> Result<T, EngineError>
    where
        F: Future<Output = Result<T, EngineError>>,
    {
        self.patiently(ask, engine_away).await
    }

    /// Repeats what may go well a moment later, until the source gives up or time is over.
    async fn patiently<T, E, F>(&self, act: impl Fn() -> F, passing: impl Fn(&E) -> bool) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let begun = tokio::time::Instant::now();
        loop {
            match act().await {
                Err(error)
                    if passing(&error) && begun.elapsed() < ENGINE_AWAY && !*self.cancelled.borrow() =>
                {
                    tokio::time::sleep(AGAIN).await;
                }
                done => return done,
            }
        }
    }

    async fn start_kept(&self, record: &ArrivalRecord) -> Result<(), Fault> {
        for index in record.plan.start_order() {
            let id = container_of(record, index)?;
            self.insist(|| self.ports.engine.start(&id)).await?;
        }
        Ok(())
    }

    /// Waits until the containers have proved themselves.
    ///
    /// # Errors
    /// `health.exited`, `health.unhealthy` or `health.timeout` with the container's last lines; [`ADOPTED`] or [`DISCARDED`]
    /// where that is decided.
    pub async fn ready(&self) -> Result<Adopted, Fault> {
        let (members, containers, patient, stateful) = {
            let mut record = self.record.lock().await;
            let mut half = Destination::holding(Some(record.state));
            half.on(Input::Asked(Message::Ready));
            if half.action() != Action::Prove {
                return Err(self.turn(&mut record, half, Starting::Asked).await.refusal());
            }
            let members = record.plan.members();
            let containers: Vec<ContainerId> = (0..members.len())
                .map(|index| container_of(&record, index))
                .collect::<Result<_, _>>()?;
            (
                members,
                containers,
                record.plan.options.health_timeout_ms.is_some(),
                record.plan.mode.is_stateful(),
            )
        };
        let mut proved = Adopted::default();
        for (index, (member, id)) in members.iter().zip(&containers).enumerate() {
            let proof = Proof {
                timeout: Duration::from_millis(member.health_timeout_ms),
                patient,
                // Where the source serves, going back loses nothing.
                parked: stateful.then_some(&member.restart_policy),
            };
            let ready = health::wait_until_ready(self.ports.engine.as_ref(), id, &proof);
            let status = self
                .unless_cancelled(ready)
                .await
                .map_err(|f| f.on_container(member.create.name.clone()))?;
            if index == 0 {
                proved = Adopted {
                    container_id: id.to_string(),
                    healthy: status.health == Health::Healthy,
                };
            }
        }
        Ok(proved)
    }

    /// The container belongs here from now on: it gets its restart policy back, and what made way for it goes.
    ///
    /// # Errors
    /// What the engine or the record store says; [`DISCARDED`] where that is decided.
    pub async fn adopt(&self) -> Result<Adopted, Fault> {
        failpoint::reach("destination.adopt").await?;
        let mut record = self.record.lock().await;
        let id = container_of(&record, 0)?;
        let turn = self.asked(&mut record, Message::Adopt).await;
        self.adopted_by(&mut record, turn).await?;
        Ok(Adopted {
            container_id: id.to_string(),
            healthy: false,
        })
    }

    async fn adopted_by(&self, record: &mut ArrivalRecord, turn: Turn) -> Result<(), Fault> {
        if turn.answer != Some(Answer::Adopted) {
            return Err(turn.refusal());
        }
        failpoint::reach("destination.adopted").await?;
        let known = record.left_behind.len();
        self.forget_dumps(record).await;
        if record.undo.is_empty() && record.left_behind.len() == known {
            return Ok(());
        }
        for note in std::mem::take(&mut record.undo) {
            if let Err(error) = self.let_go(&note).await {
                record
                    .left_behind
                    .push(format!("{}: {error}", undo::describe(&note)));
            }
        }
        self.save(record).await
    }

    async fn give_policies_back(&self, record: &ArrivalRecord) -> Result<(), Fault> {
        for (index, member) in record.plan.members().into_iter().enumerate() {
            let policy = &member.restart_policy;
            if !policy.is_never() {
                let id = container_of(record, index)?;
                let give = || self.ports.engine.set_restart_policy(&id, policy);
                // An engine whose disk is full for a moment cannot note it either.
                let passing = |error: &EngineError| !matches!(error, EngineError::NotFound { .. });
                self.patiently(give, passing).await?;
            }
        }
        Ok(())
    }

    /// Undoes everything, newest first, and notes durably before that it will and after that it did.
    ///
    /// # Errors
    /// [`ADOPTED`] when the container belongs here already; `arrival.stuck` when it could not be removed, and may therefore
    /// still run.
    pub async fn discard(&self) -> Result<Discarded, Fault> {
        failpoint::reach("destination.discard").await?;
        self.give_up();
        let mut record = self.record.lock().await;
        let turn = self.asked(&mut record, Message::Discard).await;
        self.discarded_by(&record, turn)
    }

    /// Steps under way come to an end.
    fn give_up(&self) {
        self.cancelled.send_replace(true);
        self.given_up.cancel();
    }

    #[expect(clippy::unused_self, reason = "reads like its sibling")]
    fn discarded_by(&self, record: &ArrivalRecord, turn: Turn) -> Result<Discarded, Fault> {
        if turn.answer == Some(Answer::Discarded) {
            return Ok(Discarded {
                left_behind: record.left_behind.clone(),
            });
        }
        Err(turn.refusal())
    }

    /// Takes the dumps of memory away that arrived. They hold whatever the processes knew, so failing at that is noted.
    async fn forget_dumps(&self, record: &mut ArrivalRecord) {
        let members = record.plan.members().len();
        for memory in (0..members)
            .filter_map(|index| memory_of(record, index))
            .collect::<Vec<_>>()
        {
            if let Err(error) = self.ports.engine.forget(&memory).await {
                record
                    .left_behind
                    .push(format!("a dump of the container's memory: {error}"));
            }
        }
    }

    async fn remove_all(&self, record: &mut ArrivalRecord) -> Result<(), Fault> {
        failpoint::reach("destination.discarding").await?;
        self.close_sinks(record).await?;
        self.forget_dumps(record).await;
        while let Some(note) = record.undo.last().cloned() {
            let undone = self.undo(&note, record).await;
            match (undone, &note) {
                (Ok(()), _) => {}
                (Err(error), Undo::Container { name, .. }) => {
                    return Err(Fault::new(
                        "arrival.stuck",
                        FaultKind::InDoubt,
                        format!(
                            "the container {name:?} could not be removed from the destination and may run"
                        ),
                    )
                    .because(error.to_string())
                    .with_hint("remove it there with `docker rm -f`, then run `tranship status`"));
                }
                (Err(error), other) => record
                    .left_behind
                    .push(format!("{}: {error}", undo::describe(other))),
            }
            record.undo.pop();
            self.save(record).await?;
        }
        failpoint::reach("destination.removed").await
    }

    /// Whether a source that is away may still end this arrival without a word. In cold and warm mode, a container that was
    /// told to start waits for the source's word, however long that takes: nobody here can know what the source decided.
    #[must_use]
    pub fn ends_with_its_link(&self) -> bool {
        let record = self.snapshot.borrow();
        if record.plan.mode == Mode::Stateless && record.state == ArrivalState::Started {
            return true;
        }
        let mut half = Destination::holding(Some(record.state));
        half.on(Input::Alone);
        half.action() != Action::Idle
    }

    /// The source was away for long: undoes what may be undone without its word. Says whether that is all.
    ///
    /// # Errors
    /// What could not be undone; it is to be tried again.
    pub async fn alone(&self) -> Result<(), Fault> {
        if !self.ends_with_its_link() {
            return Ok(());
        }
        self.give_up();
        let mut record = self.record.lock().await;
        let mut half = Destination::holding(Some(record.state));
        if record.plan.mode == Mode::Stateless {
            half.on(Input::Asked(Message::Discard));
        } else {
            half.on(Input::Alone);
        }
        let turn = self.turn(&mut record, half, Starting::Again).await;
        match (record.state, turn.why) {
            (ArrivalState::Discarded, _) | (_, None) => Ok(()),
            (_, Some(why)) => Err(why),
        }
    }

    /// After a restart of the agent: what was told to start runs again, and what was being taken away goes.
    ///
    /// # Errors
    /// What the engine says; it is to be tried again.
    pub async fn recover(&self) -> Result<(), Fault> {
        let mut record = self.record.lock().await;
        if record.plan.mode == Mode::Stateless && record.state == ArrivalState::Started {
            // Two may run: the source serves, or does so again.
            return Ok(());
        }
        let half = Destination::restarted(Some(record.state));
        let turn = self.turn(&mut record, half, Starting::Again).await;
        turn.why.map_or(Ok(()), Err)
    }

    /// A person decided who owns the container.
    ///
    /// # Errors
    /// [`ADOPTED`] or [`DISCARDED`] where it was decided before; what the engine or the record store says.
    pub async fn resolve(&self, owner: Owner) -> Result<(), Fault> {
        if owner == Owner::Source {
            self.give_up();
        }
        let mut record = self.record.lock().await;
        if record.state == ArrivalState::Prepared {
            self.close_sinks(&record).await?;
        }
        let mut half = Destination::holding(Some(record.state));
        half.on(Input::Resolve(owner));
        let turn = self.turn(&mut record, half, Starting::Again).await;
        match owner {
            Owner::Destination => self.adopted_by(&mut record, turn).await,
            Owner::Source => self.discarded_by(&record, turn).map(|_| ()),
        }
    }
}

fn adopted() -> Fault {
    Fault::new(
        ADOPTED,
        FaultKind::InDoubt,
        "the container belongs to the destination already",
    )
}

pub(super) fn discarded() -> Fault {
    Fault::new(
        DISCARDED,
        FaultKind::Environment,
        "the destination has discarded this migration",
    )
    .with_hint("run the command again")
}
