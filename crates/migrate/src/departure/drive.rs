//! Doing what the protocol says: the shell around the source's half of it.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tranship_core::container::{ContainerSpec, ContainerState};
use tranship_core::event::{Event, Phase};
use tranship_core::fault::FaultKind;
use tranship_core::{EngineError, Fault};

use super::{Departure, LOST_DESTINATION, PATIENCE, RETRY, RunningPhase, millis, rollback};
use crate::destination::{link_lost, meaning};
use crate::elements::Target;
use crate::failpoint;
use crate::options::HookTime;
use crate::plan::Mode;
use crate::protocol::source::{Action, Input, Source};
use crate::protocol::{Answer, Message, Owner};
use crate::record::DepartureState;

/// How long an engine that is away is waited for before the destination is told to discard.
const FORGET_WITHIN: Duration = Duration::from_secs(10);
/// How often a source that does not start, or a record that cannot be saved, is tried again.
const AGAIN: Duration = Duration::from_secs(3);

/// What a person may order while a migration is under way, besides giving up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Take the container back, also after the commit.
    GoBack,
    /// Who owns the container, where nobody else can know.
    Resolve(Owner),
}

/// What the shell remembers beside the machine: reasons and times, for people.
#[derive(Default)]
pub(super) struct Shell {
    /// Why it goes back.
    cause: Option<Fault>,
    /// Why the source did not come back.
    stuck: Option<Fault>,
    asking: Option<(Message, RunningPhase, Instant)>,
    freezing: Option<RunningPhase>,
    going_back: Option<RunningPhase>,
    warned: bool,
    finished: bool,
}

impl Departure {
    /// Goes on from where the record stands until nothing more is to be done.
    pub(super) async fn drive(&mut self, mut half: Source) {
        let mut shell = Shell::default();
        if self.recovered {
            shell.cause = Some(Fault::new(
                "agent.restarted",
                FaultKind::RolledBack,
                "the source's agent ended before the migration did",
            ));
        }
        let mut orders = self.orders.clone();
        loop {
            if *self.cancelled.borrow() {
                half.on(Input::Abort);
            }
            let input = match half.action() {
                Action::End => {
                    if !self.record.state.is_over() {
                        // Its first record could not be saved, so that nothing was begun.
                        self.record.state = DepartureState::RolledBack;
                        self.record.fault = Some(self.verdict(&shell, DepartureState::RolledBack));
                        self.records.show_departure(&self.record);
                    }
                    return;
                }
                Action::Save(state) => self.save_state(&mut shell, state).await,
                Action::Prepare => {
                    let done = self.prepare(&mut shell.freezing).await;
                    heard(&mut shell, done)
                }
                Action::Freeze => {
                    let done = self.freeze().await;
                    heard(&mut shell, done)
                }
                Action::Delta => {
                    let done = self.frozen_steps(&mut shell).await;
                    heard(&mut shell, done)
                }
                Action::Verify => {
                    let done = self.verify().await;
                    heard(&mut shell, done)
                }
                Action::Ask(message) => {
                    tokio::select! {
                        input = self.ask(&mut shell, message) => input,
                        order = next_order(&mut orders) => self.ordered(&mut shell, order),
                    }
                }
                Action::Tell(_) => {
                    self.tell_discard(&mut shell).await;
                    Input::Done
                }
                Action::Resume { touched } => self.bring_back(&mut shell, touched).await,
                Action::Release => {
                    self.release().await;
                    Input::Done
                }
                Action::Rest => {
                    self.finish_early(&mut shell);
                    tokio::time::sleep(AGAIN).await;
                    Input::Timer
                }
            };
            half.on(input);
            // The place right after the commit; what fails here goes the long way back.
            if self.record.state == DepartureState::Committed
                && input == Input::Saved
                && let Err(fault) = failpoint::reach("source.committed").await
            {
                shell.cause.get_or_insert(fault);
                half.on(Input::GoBack);
            }
        }
    }

    /// Everything that needs no freeze, up to the last moment before it.
    async fn prepare(&mut self, freezing: &mut Option<RunningPhase>) -> Result<(), Fault> {
        self.steps_before_freeze().await?;
        if self.record.plan.elements.iter().any(|e| e.copied) {
            let phase = self.begin(Phase::Bulk);
            let copied = async {
                self.bulk().await?;
                self.meet().await?;
                self.last_look().await
            };
            let done = copied.await;
            self.end(&phase, done)?;
            self.stop_if_cancelled()?;
        }
        self.clear_dumps().await;
        self.stop_if_cancelled()?;
        *freezing = Some(self.begin(Phase::Freeze));
        self.check().await?;
        self.hooks(HookTime::PreFreeze).await
    }

    async fn freeze(&mut self) -> Result<(), Fault> {
        failpoint::reach("source.freeze").await?;
        self.frozen_at = Some(Instant::now());
        self.park_and_stop().await
    }

    /// What happens while the source stands still and nothing is decided.
    async fn frozen_steps(&mut self, shell: &mut Shell) -> Result<(), Fault> {
        let quiet = async {
            self.hooks(HookTime::PostFreeze).await?;
            self.check_users().await?;
            failpoint::reach("source.frozen").await
        };
        let done = quiet.await;
        match shell.freezing.take() {
            Some(phase) => self.end(&phase, done)?,
            None => done?,
        }
        self.stop_if_cancelled()?;
        if self.record.plan.elements.iter().any(|e| e.copied) {
            let phase = self.begin(Phase::Delta);
            let done = self.delta().await;
            self.end(&phase, done)?;
            self.stop_if_cancelled()?;
        }
        Ok(())
    }

    /// The source must stand as it was frozen: what somebody started meanwhile wrote what did not travel. What is paused
    /// is ended then, before the commit: an engine that is ended in order thaws it, and it would answer for what nobody
    /// carries any more.
    async fn verify(&mut self) -> Result<(), Fault> {
        self.check_users().await?;
        for member in &self.members {
            let spec = &member.create.spec;
            let status = self.ports.engine.status(&spec.id).await?;
            let stands = match self.plan().mode {
                Mode::Warm | Mode::Live => status.state == ContainerState::Paused,
                _ => !matches!(
                    status.state,
                    ContainerState::Running | ContainerState::Restarting | ContainerState::Paused
                ),
            };
            if !stands || status.started_at != spec.status.started_at {
                return Err(changed(spec, status.state));
            }
        }
        if self.plan().mode.pauses() && !self.fills_tmpfs() {
            self.end_paused().await?;
        }
        Ok(())
    }

    /// Whether what is paused still holds what is to travel.
    fn fills_tmpfs(&self) -> bool {
        let in_memory = |target: &Target| matches!(target, Target::Tmpfs { .. });
        let elements = &self.plan().elements;
        elements.iter().any(|e| e.copied && in_memory(&e.target))
    }

    /// Ends what is paused, without a word to it.
    async fn end_paused(&mut self) -> Result<(), Fault> {
        for index in 0..self.members.len() {
            let spec = self.members[index].create.spec.clone();
            if self.plan().mode == Mode::Live {
                self.end_dumped(index, &spec).await?;
            } else {
                self.ports.engine.kill(&spec.id).await?;
            }
        }
        Ok(())
    }

    /// Ends what was dumped while it stood still. That its end is our doing is noted before, and only as long as it is true: an engine
    /// that is ended in order thaws what is paused and lets it end by itself, and what it writes then is in no dump.
    async fn end_dumped(&mut self, index: usize, spec: &ContainerSpec) -> Result<(), Fault> {
        if self.record.ended_members.insert(index) {
            self.save().await?;
            // The note took a while.
            let status = self.ports.engine.status(&spec.id).await;
            let fault = match status {
                Ok(status)
                    if status.state == ContainerState::Paused
                        && status.started_at == spec.status.started_at =>
                {
                    None
                }
                Ok(status) => Some(changed(spec, status.state)),
                Err(error) => Some(error.into()),
            };
            if let Some(fault) = fault {
                return self.not_by_us(index, fault).await;
            }
        }
        match self.ports.engine.kill(&spec.id).await {
            Ok(()) => Ok(()),
            // Nothing was sent.
            Err(error @ EngineError::Unreachable { .. }) => self.not_by_us(index, error.into()).await,
            Err(error) => Err(error.into()),
        }
    }

    /// However it ends from here on, that is not our doing.
    async fn not_by_us(&mut self, index: usize, fault: Fault) -> Result<(), Fault> {
        self.record.ended_members.remove(&index);
        self.save().await?;
        Err(fault)
    }

    async fn save_state(&mut self, shell: &mut Shell, state: DepartureState) -> Input {
        self.record.state = state;
        let last = match state {
            DepartureState::RolledBack | DepartureState::NotResumed => {
                self.record.fault = Some(self.verdict(shell, state));
                if let Some(phase) = shell.going_back.take() {
                    let ended = self.end(&phase, Ok(()));
                    debug_assert!(ended.is_ok());
                }
                state == DepartureState::RolledBack
            }
            DepartureState::HandedOver | DepartureState::Complete => {
                self.record.fault = None;
                state == DepartureState::Complete
            }
            _ => false,
        };
        if last {
            self.close_elements().await;
            self.note_times();
        }
        match self.save().await {
            Ok(()) => Input::Saved,
            Err(fault) => {
                if last || state == DepartureState::HandedOver {
                    if !shell.warned {
                        shell.warned = true;
                        let text = format!("the last record is not saved yet, trying again: {fault}");
                        self.reporter.report(Event::Warning { text });
                    }
                    if last {
                        self.records.show_departure(&self.record);
                        self.finish_early(shell);
                    }
                    tokio::time::sleep(AGAIN).await;
                } else {
                    shell.cause.get_or_insert(fault);
                }
                Input::NotSaved
            }
        }
    }

    /// How it failed, in one fault.
    fn verdict(&self, shell: &Shell, state: DepartureState) -> Fault {
        let mut cause = shell.cause.clone().unwrap_or_else(aborted);
        let fault = match &shell.stuck {
            Some(stuck) if state == DepartureState::NotResumed => stuck.clone().because(cause.to_string()),
            _ => {
                if cause.kind != FaultKind::Bug {
                    cause.kind = FaultKind::RolledBack;
                }
                cause
            }
        };
        fault.on_container(self.plan().spec().name.clone())
    }

    /// Whoever watches is told; the agent goes on.
    fn finish_early(&mut self, shell: &mut Shell) {
        if !shell.finished {
            shell.finished = true;
            self.reporter.report(Event::Finished {
                fault: self.record.fault.clone(),
            });
        }
    }

    fn begin_going_back(&mut self, shell: &mut Shell) {
        // Whoever reads or writes in a thread of its own comes to an end.
        self.given_up.cancel();
        if shell.going_back.is_none() {
            shell.going_back = Some(self.begin(Phase::Rollback));
        }
    }

    async fn bring_back(&mut self, shell: &mut Shell, touched: bool) -> Input {
        let cause = shell.cause.get_or_insert_with(aborted).clone();
        if let Some(phase) = shell.freezing.take() {
            let ended = self.end(&phase, Err::<(), Fault>(cause));
            debug_assert!(ended.is_err());
        }
        self.begin_going_back(shell);
        if touched {
            let ended = &self.record.ended_members;
            match rollback::resume(self.ports.engine.as_ref(), &self.record.plan, ended).await {
                Ok(lost) => {
                    for text in lost {
                        self.reporter.report(Event::Warning { text: text.clone() });
                        if let Some(cause) = &mut shell.cause {
                            cause.causes.push(text);
                        }
                    }
                }
                Err(fault) => {
                    shell.stuck = Some(fault);
                    return Input::Failed;
                }
            }
            if self.frozen_at.is_some() {
                self.serving_at = Some(Instant::now());
            }
        }
        self.thaw().await;
        // The destination waits to be told.
        self.forget_dumps(FORGET_WITHIN).await;
        Input::Done
    }

    async fn tell_discard(&mut self, shell: &mut Shell) {
        match self.destination.discard().await {
            Ok(discarded) => self.say_left_behind(discarded.left_behind),
            Err(fault) if meaning(&fault) == Answer::Unknown => {}
            Err(fault) if link_lost(&fault) => self.reporter.report(Event::Warning {
                text: format!("the destination could not be told, and cleans up by itself: {fault}"),
            }),
            Err(fault) => {
                let text = format!("cleaning up at the destination: {fault}");
                self.reporter.report(Event::Warning { text: text.clone() });
                if let Some(cause) = &mut shell.cause {
                    cause.causes.push(text);
                }
            }
        }
    }

    /// Asks once. What the machine makes of the answer is its business; here it gets its name, and its time in the timeline.
    async fn ask(&mut self, shell: &mut Shell, message: Message) -> Input {
        let same = shell.asking.as_ref().is_some_and(|(asked, ..)| *asked == message);
        if !same {
            let phase = match message {
                Message::Prepare | Message::Start => Phase::Start,
                Message::Ready => Phase::Health,
                Message::Adopt => Phase::HandOver,
                Message::Discard => {
                    self.begin_going_back(shell);
                    Phase::Rollback
                }
            };
            let running = match &shell.going_back {
                Some(running) if message == Message::Discard => running.clone(),
                _ => self.begin(phase),
            };
            shell.asking = Some((message, running, Instant::now()));
            shell.warned = false;
        }
        let fault = match self.ask_once(message).await {
            Ok(answer) => {
                if let Some((_, phase, _)) = shell.asking.take()
                    && message != Message::Discard
                {
                    let ended = self.end(&phase, Ok(()));
                    debug_assert!(ended.is_ok());
                }
                return Input::Answer(answer);
            }
            Err(fault) => fault,
        };
        if link_lost(&fault) {
            if !shell.warned {
                shell.warned = true;
                let text = format!("{LOST_DESTINATION}, trying again: {fault}");
                self.reporter.report(Event::Warning { text });
            }
            if shell
                .asking
                .as_ref()
                .is_some_and(|(.., since)| since.elapsed() >= PATIENCE)
            {
                self.enter_doubt(shell, &fault).await;
            }
            tokio::time::sleep(RETRY).await;
            return Input::NoAnswer;
        }
        let answer = meaning(&fault);
        let open = answer == Answer::Unknown || (answer == Answer::Failed && message == Message::Discard);
        if open {
            self.enter_doubt(shell, &fault).await;
            tokio::time::sleep(RETRY).await;
        } else {
            shell.asking = None;
            if answer != Answer::Adopted {
                shell.cause.get_or_insert(fault);
            }
        }
        Input::Answer(answer)
    }

    async fn ask_once(&mut self, message: Message) -> Result<Answer, Fault> {
        match message {
            Message::Prepare => self.destination.create().await.map(|()| Answer::Prepared),
            Message::Start => {
                failpoint::reach("source.start").await?;
                self.destination.start().await?;
                if self.fills_tmpfs() {
                    if !self.record.memory_sent {
                        self.fill_memory().await?;
                        self.record.memory_sent = true;
                        // Before it is gone here: whoever asks again after a restart must not look for it.
                        self.save().await?;
                    }
                    if self.plan().mode.pauses() {
                        self.end_paused().await?;
                    }
                    self.destination.go_on().await?;
                }
                self.serving_at = Some(Instant::now());
                Ok(Answer::Started)
            }
            Message::Ready => {
                failpoint::reach("source.health").await?;
                let ready = self.destination.ready().await?;
                // Where something tests its health, it serves from then on; elsewhere nobody can tell more than that it
                // runs.
                if ready.healthy {
                    self.serving_at = Some(Instant::now());
                }
                self.note_container(&ready);
                Ok(Answer::Ready)
            }
            Message::Adopt => {
                failpoint::reach("source.adopt").await?;
                let adopted = self.destination.adopt().await?;
                self.record.destination_container = Some(adopted.container_id);
                Ok(Answer::Adopted)
            }
            Message::Discard => {
                let discarded = self.destination.discard().await?;
                self.say_left_behind(discarded.left_behind);
                Ok(Answer::Discarded)
            }
        }
    }

    /// It is said that nobody knows; the asking goes on.
    async fn enter_doubt(&mut self, shell: &mut Shell, cause: &Fault) {
        if self.record.state == DepartureState::InDoubt {
            return;
        }
        let told = match meaning(cause) {
            Answer::Unknown => {
                "the destination was told to start the container and has lost its records of it: it is not known whether it runs there"
            }
            Answer::Failed if !link_lost(cause) => {
                "the destination could not give the container back, and it may run there"
            }
            _ => {
                "the destination was told to start the container and cannot be reached: it is not known whether it runs there"
            }
        };
        let fault = Fault::new("migrate.in-doubt", FaultKind::InDoubt, told)
            .on_container(self.plan().spec().name.clone())
            .on_node(self.plan().destination.clone())
            .because(cause.to_string())
            .with_hint(
                "the source stays stopped and its agent goes on asking; when the link is back it settles by itself. \
                 `tranship status ID` from a machine that reaches both carries the link meanwhile, and `tranship resolve ID` \
                 settles it when the other side is gone for good",
            );
        self.record.state = DepartureState::InDoubt;
        self.record.fault = Some(fault);
        // A restart reads the same from `committed`.
        if let Err(fault) = self.save().await {
            self.records.show_departure(&self.record);
            self.reporter.report(Event::Warning {
                text: format!("the record was not saved: {fault}"),
            });
        }
        shell.finished = false;
        self.finish_early(shell);
    }

    fn ordered(&mut self, shell: &mut Shell, order: Order) -> Input {
        shell.asking = None;
        match order {
            Order::GoBack => {
                shell.cause.get_or_insert_with(aborted);
                Input::GoBack
            }
            Order::Resolve(owner) => {
                if owner == Owner::Source {
                    shell.cause = Some(Fault::new(
                        "migrate.resolved",
                        FaultKind::RolledBack,
                        "a person decided that the container belongs to the source",
                    ));
                }
                Input::Resolve(owner)
            }
        }
    }

    fn note_times(&mut self) {
        self.record.total_ms = millis(self.begun.elapsed());
        if let (Some(frozen), Some(serving)) = (self.frozen_at, self.serving_at) {
            self.record.downtime_ms = Some(millis(serving.saturating_duration_since(frozen)));
        }
    }
}

fn aborted() -> Fault {
    Fault::new(
        "migrate.aborted",
        FaultKind::RolledBack,
        "the migration was aborted on request",
    )
}

/// Keeps the first reason.
fn heard(shell: &mut Shell, done: Result<(), Fault>) -> Input {
    match done {
        Ok(()) => Input::Done,
        Err(fault) => {
            shell.cause.get_or_insert(fault);
            Input::Failed
        }
    }
}

/// The next order of a person; never, where nobody can give any.
async fn next_order(orders: &mut Option<watch::Receiver<Option<Order>>>) -> Order {
    if let Some(orders) = orders {
        while orders.changed().await.is_ok() {
            if let Some(order) = *orders.borrow_and_update() {
                return order;
            }
        }
    }
    std::future::pending().await
}

/// It does not stand as it was frozen.
fn changed(spec: &ContainerSpec, state: ContainerState) -> Fault {
    Fault::new(
        "container.changed",
        FaultKind::RolledBack,
        format!(
            "{} is {state} although it was to stand still while its data was copied",
            spec.name
        ),
    )
    .with_hint("somebody, or a restart of the engine, started or ended it; run the command again")
}
