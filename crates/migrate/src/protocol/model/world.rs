//! Two hosts, a network and a person, as far as ownership can be hurt by them.
//!
//! A message that was sent may arrive any number of times from then on, or never, and in any order: the network is a set.
//! Agents are killed between any two steps, in the middle of an action too; hosts reboot; engines restart; what was written
//! and not synced is there or not. None of it is counted: there may be any number of each.

use super::flaws::Flaw;
use crate::destination::ArrivalState;
use crate::protocol::destination::{self, Destination};
use crate::protocol::source::{self, Doing, Source};
use crate::protocol::{Answer, Message, Owner};
use crate::record::DepartureState;

/// How many containers move together.
pub(super) const MOST_MEMBERS: usize = 2;

/// What one container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Run {
    Absent,
    Down,
    Paused,
    Up,
}

/// One kind of migration, and which catastrophes it may meet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Config {
    pub name: &'static str,
    pub members: usize,
    /// Paused instead of stopped.
    pub warm: bool,
    /// The source is removed after the hand-over.
    pub remove: bool,
    /// A host may be destroyed.
    pub loss: bool,
    /// The destination's state directory may be deleted.
    pub forgets: bool,
}

/// Everything that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct World {
    /// The source's agent, if it lives.
    pub source: Option<Source>,
    /// What is synced.
    pub s_disk: Option<DepartureState>,
    /// What is written.
    pub s_cache: Option<DepartureState>,
    pub s_run: [Run; MOST_MEMBERS],
    pub s_parked: [bool; MOST_MEMBERS],
    /// How far the present action is.
    pub s_part: u8,
    pub destination: Option<Destination>,
    pub d_disk: Option<ArrivalState>,
    pub d_cache: Option<ArrivalState>,
    pub d_run: [Run; MOST_MEMBERS],
    pub d_given: [bool; MOST_MEMBERS],
    pub d_part: u8,
    /// Messages that were ever sent.
    pub to_destination: u8,
    /// Answers that were ever sent.
    pub to_source: u8,
    /// No container of the source ran since the freeze was done: the time of its last start tells.
    pub still: bool,
    /// The destination's data holds every write of the source.
    pub fresh: bool,
    /// And would survive a reboot.
    pub synced: bool,
    pub source_lost: bool,
    pub destination_lost: bool,
    pub forgot: bool,
}

/// What can happen, for traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Step {
    Source(source::Action),
    SourceFails(source::Action),
    SourceHears(Answer),
    SourceHearsNothing,
    SourceKilled,
    SourceStarts,
    SourceReboots,
    SourceEngineRestarts,
    SourceContainerThawed,
    SourceLost,
    Destination(destination::Action),
    DestinationFails(destination::Action),
    DestinationHears(Message),
    DestinationAlone,
    DestinationKilled,
    DestinationStarts,
    DestinationReboots,
    DestinationEngineRestarts,
    DestinationLost,
    DestinationForgets,
    UserAborts,
    UserWantsItBack,
    PersonResolves(Owner),
}

/// One thing that can happen next.
pub(super) struct Next {
    pub step: Step,
    pub world: World,
    /// It happens by itself sooner or later if nothing more goes wrong.
    pub progress: bool,
    /// It needs the source's host only.
    pub alone: bool,
}

pub(super) struct Model {
    pub config: Config,
    pub flaw: Option<Flaw>,
}

pub(super) fn bit(message: Message) -> u8 {
    1 << message as u8
}

pub(super) fn answer_bit(answer: Answer) -> u8 {
    1 << answer as u8
}

pub(super) const MESSAGES: [Message; 5] = [
    Message::Prepare,
    Message::Start,
    Message::Ready,
    Message::Adopt,
    Message::Discard,
];
const ANSWERS: [Answer; 7] = [
    Answer::Prepared,
    Answer::Started,
    Answer::Ready,
    Answer::Adopted,
    Answer::Discarded,
    Answer::Unknown,
    Answer::Failed,
];

impl Model {
    pub fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    pub fn members(&self) -> std::ops::Range<usize> {
        0..self.config.members
    }

    pub fn first(&self) -> World {
        let mut up = [Run::Absent; MOST_MEMBERS];
        for member in self.members() {
            up[member] = Run::Up;
        }
        World {
            source: Some(Source::new()),
            s_disk: None,
            s_cache: None,
            s_run: up,
            s_parked: [false; MOST_MEMBERS],
            s_part: 0,
            destination: Some(Destination::holding(None)),
            d_disk: None,
            d_cache: None,
            d_run: [Run::Absent; MOST_MEMBERS],
            d_given: [false; MOST_MEMBERS],
            d_part: 0,
            to_destination: 0,
            to_source: 0,
            still: false,
            fresh: false,
            synced: false,
            source_lost: false,
            destination_lost: false,
            forgot: false,
        }
    }

    /// Everything that can happen next.
    pub fn next(&self, world: &World, out: &mut Vec<Next>) {
        self.source_steps(world, out);
        self.source_faults(world, out);
        self.destination_steps(world, out);
        self.destination_faults(world, out);
        self.person(world, out);
        for next in out.iter_mut() {
            // The worst case: a container that runs writes at once.
            if self.members().any(|m| next.world.s_run[m] == Run::Up) {
                next.world.fresh = false;
                next.world.still = false;
            }
        }
    }

    fn source_steps(&self, world: &World, out: &mut Vec<Next>) {
        let Some(source) = world.source else { return };
        let action = source.action();
        let went = Step::Source(action);
        let mut push = |step, world, progress| {
            out.push(Next {
                step,
                world,
                progress,
                alone: true,
            });
        };
        let told = |mut w: World, input| {
            w.source = Some(self.source_on(source, input));
            w.s_part = 0;
            w
        };
        match action {
            source::Action::Save(state) => {
                if world.s_part == 0 {
                    let mut written = *world;
                    written.s_cache = Some(state);
                    written.s_part = 1;
                    push(went, written, true);
                    push(
                        Step::SourceFails(action),
                        told(*world, source::Input::NotSaved),
                        false,
                    );
                } else {
                    let mut synced = *world;
                    if !self.source_sync_is_left_out(state) {
                        synced.s_disk = synced.s_cache;
                    }
                    push(went, told(synced, source::Input::Saved), true);
                    push(
                        Step::SourceFails(action),
                        told(*world, source::Input::NotSaved),
                        false,
                    );
                    let mut taken_back = *world;
                    taken_back.s_cache = taken_back.s_disk;
                    push(
                        Step::SourceFails(action),
                        told(taken_back, source::Input::NotSaved),
                        false,
                    );
                }
                return;
            }
            source::Action::Prepare if world.to_destination & bit(Message::Prepare) == 0 => {
                let mut sent = *world;
                sent.to_destination |= bit(Message::Prepare);
                push(went, sent, true);
            }
            source::Action::Ask(message) if world.to_destination & bit(message) == 0 => {
                let mut sent = *world;
                sent.to_destination |= bit(message);
                push(went, sent, true);
            }
            source::Action::Prepare => {}
            source::Action::Ask(_) => {
                let mut heard_nothing = *world;
                heard_nothing.source = Some(self.source_on(source, source::Input::NoAnswer));
                push(Step::SourceHearsNothing, heard_nothing, false);
            }
            source::Action::Tell(message) => {
                let mut sent = *world;
                sent.to_destination |= bit(message);
                push(went, told(sent, source::Input::Done), true);
            }
            source::Action::Delta => {
                let there = world.destination.is_some_and(|d| {
                    d.doing == destination::Doing::Idle && d.held == Some(ArrivalState::Prepared)
                });
                if there {
                    let mut copied = *world;
                    copied.fresh = true;
                    copied.synced = !self.has(Flaw::DeltaNotDurable);
                    push(went, told(copied, source::Input::Done), true);
                } else {
                    push(
                        Step::SourceFails(action),
                        told(*world, source::Input::Failed),
                        true,
                    );
                }
            }
            source::Action::Verify => {
                let frozen = if self.config.warm { Run::Paused } else { Run::Down };
                let as_it_was = world.still && self.members().all(|m| world.s_run[m] == frozen);
                if !as_it_was && !self.has(Flaw::NoVerify) {
                    push(went, told(*world, source::Input::Failed), true);
                } else {
                    let mut ended = *world;
                    if self.config.warm && !self.has(Flaw::PausedUntilTheEnd) {
                        // None of it runs again, whoever thaws it.
                        for member in self.members() {
                            ended.s_run[member] = Run::Down;
                        }
                    }
                    push(went, told(ended, source::Input::Done), true);
                    // It happened, and nobody heard so.
                    push(
                        Step::SourceFails(action),
                        told(ended, source::Input::Failed),
                        false,
                    );
                }
            }
            source::Action::Rest => push(went, told(*world, source::Input::Timer), true),
            source::Action::End => return,
            source::Action::Freeze | source::Action::Resume { .. } | source::Action::Release => {
                let (after, input) = self.source_engine(world, action);
                match input {
                    Some(input) => push(went, told(after, input), true),
                    None => push(went, after, true),
                }
                // It happened, and nobody heard so.
                push(
                    Step::SourceFails(action),
                    told(after, source::Input::Failed),
                    false,
                );
            }
        }
        if !matches!(
            action,
            source::Action::Ask(_) | source::Action::Tell(_) | source::Action::Rest
        ) {
            // A link that stays down ends by itself what is not committed.
            let by_itself = action == source::Action::Prepare && world.destination_lost;
            push(
                Step::SourceFails(action),
                told(*world, source::Input::Failed),
                by_itself,
            );
        }
    }

    /// The next part of an action on the source's engine, and what is heard when it was the last.
    fn source_engine(&self, world: &World, action: source::Action) -> (World, Option<source::Input>) {
        let count = self.config.members;
        let part = usize::from(world.s_part);
        let mut after = *world;
        after.s_part += 1;
        let parts = match action {
            source::Action::Freeze => {
                if part < count {
                    after.s_parked[part] = !self.has(Flaw::PolicyLeftOn);
                } else if let Some(run) = after.s_run.get_mut(2 * count - 1 - part)
                    && *run == Run::Up
                {
                    *run = if self.config.warm { Run::Paused } else { Run::Down };
                }
                2 * count
            }
            source::Action::Resume { touched: true } => {
                let member = part / 2;
                if after.s_run[member] == Run::Absent {
                    return (*world, Some(source::Input::Failed));
                }
                if part % 2 == 1 {
                    after.s_run[member] = Run::Up;
                } else if !self.has(Flaw::PolicyNotGivenBack) {
                    after.s_parked[member] = false;
                }
                2 * count
            }
            source::Action::Resume { touched: false } => 1,
            source::Action::Release => {
                after.s_run[part] = if self.config.remove {
                    Run::Absent
                } else {
                    Run::Down
                };
                count
            }
            _ => 0,
        };
        let over = part + 1 >= parts;
        after.still |= over && action == source::Action::Freeze;
        (after, over.then_some(source::Input::Done))
    }

    fn source_faults(&self, world: &World, out: &mut Vec<Next>) {
        let mut push = |step, world, progress, alone| {
            out.push(Next {
                step,
                world,
                progress,
                alone,
            });
        };
        if world.source_lost {
            return;
        }
        if let Some(source) = world.source {
            for answer in ANSWERS {
                if world.to_source & answer_bit(answer) == 0 {
                    continue;
                }
                let input = match (source.action(), answer) {
                    (source::Action::Prepare, Answer::Prepared) => source::Input::Done,
                    (source::Action::Prepare, Answer::Failed | Answer::Discarded) => source::Input::Failed,
                    (source::Action::Ask(_), _) => source::Input::Answer(answer),
                    _ => continue,
                };
                let mut heard = *world;
                heard.source = Some(self.source_on(source, input));
                heard.s_part = 0;
                push(Step::SourceHears(answer), heard, true, false);
            }
            if source.may_abort() && !source.aborted
                || self.has(Flaw::AbortAfterCommit) && source.is_committed()
            {
                let mut aborted = *world;
                aborted.source = Some(self.source_on(source, source::Input::Abort));
                push(Step::UserAborts, aborted, false, false);
            }
            if source.is_committed() && source.doing != Doing::Ask(Message::Discard) {
                let mut back = *world;
                back.source = Some(self.source_on(source, source::Input::GoBack));
                push(Step::UserWantsItBack, back, false, false);
            }
            if source.action() == source::Action::Delta && world.s_run[0] != Run::Up {
                let mut thawed = *world;
                thawed.s_run[0] = Run::Up;
                push(Step::SourceContainerThawed, thawed, false, false);
            }
            let mut killed = *world;
            killed.source = None;
            killed.s_part = 0;
            push(Step::SourceKilled, killed, false, false);
        } else {
            let mut started = *world;
            if !self.has(Flaw::RestartTrustsTheCache) {
                started.s_disk = started.s_cache;
            }
            // Without a record there is no migration.
            let state = started.s_cache.unwrap_or(DepartureState::RolledBack);
            started.source = Some(self.source_restarted(state));
            push(Step::SourceStarts, started, true, true);
        }
        let mut engine = *world;
        // An engine that ends in order thaws what is paused, to stop it: for a moment it runs, and writes.
        engine.fresh &= self.members().all(|m| engine.s_run[m] != Run::Paused);
        self.source_engine_restarts(&mut engine);
        push(Step::SourceEngineRestarts, engine, false, false);
        for kept in [world.s_disk, world.s_cache] {
            let mut rebooted = *world;
            rebooted.source = None;
            rebooted.s_part = 0;
            rebooted.s_disk = kept;
            rebooted.s_cache = kept;
            self.source_engine_restarts(&mut rebooted);
            push(Step::SourceReboots, rebooted, false, false);
        }
        if self.config.loss && !world.destination_lost {
            let mut lost = *world;
            lost.source = None;
            lost.s_part = 0;
            lost.s_run = [Run::Absent; MOST_MEMBERS];
            lost.source_lost = true;
            push(Step::SourceLost, lost, false, false);
        }
    }

    fn source_engine_restarts(&self, world: &mut World) {
        for member in self.members() {
            let run = &mut world.s_run[member];
            if *run != Run::Absent {
                // One that is not parked comes back by its policy, or by whoever looks after it where it has none.
                *run = if world.s_parked[member] {
                    Run::Down
                } else {
                    Run::Up
                };
            }
        }
    }

    /// A person comes only where the machines cannot know, and has looked.
    fn person(&self, world: &World, out: &mut Vec<Next>) {
        let mut push = |owner, world| {
            out.push(Next {
                step: Step::PersonResolves(owner),
                world,
                progress: true,
                alone: false,
            });
        };
        let knows_nothing = world
            .destination
            .is_some_and(|d| d.held.is_none() && d.doing == destination::Doing::Idle);
        if let Some(source) = world.source
            && source.is_committed()
            && (world.destination_lost || world.forgot && knows_nothing)
        {
            let runs = self.members().all(|m| world.d_run[m] == Run::Up);
            let owner = if runs { Owner::Destination } else { Owner::Source };
            let mut resolved = *world;
            // Whoever decides also does by hand what the destination cannot do any more.
            if runs {
                resolved.d_given = [true; MOST_MEMBERS];
            } else {
                resolved.d_run = [Run::Absent; MOST_MEMBERS];
            }
            resolved.source = Some(self.source_on(source, source::Input::Resolve(owner)));
            push(owner, resolved);
        }
        if let Some(half) = world.destination
            && half.action() == destination::Action::Idle
            && half.held == Some(ArrivalState::Started)
            && world.source_lost
        {
            let mut resolved = *world;
            let input = destination::Input::Resolve(Owner::Destination);
            resolved.destination = Some(self.destination_on(half, input));
            push(Owner::Destination, resolved);
        }
    }

    /// What must hold in every state; the broken promise if one is.
    pub fn broken(&self, world: &World) -> Option<&'static str> {
        let here = self.members().any(|m| world.s_run[m] == Run::Up);
        let there = self.members().any(|m| world.d_run[m] == Run::Up);
        let noted = matches!(
            world.d_disk,
            Some(ArrivalState::Started | ArrivalState::Adopted | ArrivalState::Discarding)
        );
        if here && there {
            return Some("two instances run");
        }
        if there && !noted && !world.forgot {
            return Some("the destination runs it without a durable record");
        }
        if there && !world.fresh {
            return Some("the destination runs it without all acknowledged writes");
        }
        None
    }

    /// Whether this is an end that everybody can live with.
    pub fn is_good_end(&self, world: &World) -> bool {
        let all_here = self
            .members()
            .all(|m| world.s_run[m] == Run::Up && !world.s_parked[m]);
        // What could not be released stands still, and is said.
        let none_here = self.members().all(|m| world.s_run[m] != Run::Up);
        let all_there = self.members().all(|m| world.d_run[m] == Run::Up);
        let given = self.members().all(|m| world.d_given[m]);
        let none_there = self.members().all(|m| world.d_run[m] == Run::Absent);
        let idle = world
            .destination
            .is_some_and(|d| d.doing == destination::Doing::Idle);
        let held = world.destination.and_then(|d| d.held);
        let kept = held == Some(ArrivalState::Adopted) && all_there && given;
        // Without records nobody can tell whose a container is that does not run: it is left.
        let none_there = none_there || world.forgot && self.members().all(|m| world.d_run[m] != Run::Up);
        let gone = matches!(held, None | Some(ArrivalState::Discarded)) && none_there;
        if world.source_lost {
            return idle && (kept || gone);
        }
        let over = world.source.is_some_and(|s| s.doing == Doing::Over);
        let complete = world.s_disk == Some(DepartureState::Complete);
        let rolled_back = matches!(world.s_disk, None | Some(DepartureState::RolledBack));
        if world.destination_lost {
            return over && (complete || (rolled_back && all_here));
        }
        let forgotten = world.forgot && all_there;
        over && idle && ((complete && none_here && (kept || forgotten)) || (rolled_back && all_here && gone))
    }

    /// Whether the source must be able to come back by itself.
    pub fn is_the_sources(&self, world: &World) -> bool {
        let before = |state| {
            matches!(
                state,
                None | Some(
                    DepartureState::Preparing
                        | DepartureState::Frozen
                        | DepartureState::NotResumed
                        | DepartureState::Returning
                )
            )
        };
        !world.source_lost
            && before(world.s_disk)
            && before(world.s_cache)
            && world
                .source
                .is_none_or(|s| !s.is_committed() && s.doing != Doing::SaveCommitted)
    }

    pub fn serves_here(&self, world: &World) -> bool {
        self.members().all(|m| world.s_run[m] == Run::Up)
    }
}
