//! Bugs that are planted, one at a time, to see that the checker would find them. Production code has no hook for them: they
//! rewrite what a transition gave, or what the world does with it.

use super::world::Model;
use crate::destination::ArrivalState;
use crate::protocol::destination::{self, Destination};
use crate::protocol::source::{self, Doing, Source};
use crate::protocol::{Answer, Message};
use crate::record::DepartureState;

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// The commit is written and not synced.
    CommitNotSynced,
    /// The destination is told to start before the commit is saved.
    StartBeforeCommit,
    /// A commit whose saving failed counts as not made.
    FailedCommitIsNone,
    /// An agent that starts acts on what it reads without syncing it first.
    RestartTrustsTheCache,
    /// The destination starts the container before its own record.
    StartBeforeRecord,
    /// The destination's record of the start is not synced.
    StartedNotSynced,
    /// The source resumes when the destination does not answer for long.
    SilenceIsRefusal,
    /// The destination starts by itself when the source is away for long.
    SilenceIsCommit,
    /// The restart policy stays on while the source is frozen.
    PolicyLeftOn,
    /// The source's restart policy is not given back.
    PolicyNotGivenBack,
    /// The destination's container never gets its restart policy.
    PolicyNotGivenThere,
    /// The destination says that it discarded before that is durable.
    DiscardedNotSynced,
    /// The destination says that it discarded before the container is gone.
    DiscardedBeforeRemoval,
    /// The destination says that it adopted before that is durable.
    AdoptedNotSynced,
    /// The destination adopts what an engine's restart ended after its proof.
    AdoptedWithoutStart,
    /// The source is released before the destination adopted.
    ReleaseBeforeAdoption,
    /// After the commit the source comes back before the destination let go.
    ResumeBeforeDiscard,
    /// A failure after the commit is taken for a refusal.
    FailureIsRefusal,
    /// A destination without a record is taken for one that discarded.
    UnknownIsDiscarded,
    /// An abort counts after the commit too.
    AbortAfterCommit,
    /// An agent that restarts takes a commit for a freeze.
    RestartForgetsCommit,
    /// An agent that restarts leaves a frozen source as it is.
    RestartLeavesFrozen,
    /// An agent that restarts goes on to the commit of what may have changed.
    RestartGoesOn,
    /// The delta is taken before the source freezes.
    DeltaBeforeFreeze,
    /// What arrived is not synced before the commit.
    DeltaNotDurable,
    /// Nobody looks whether the source still stands before the commit.
    NoVerify,
    /// What was paused stays so after the commit, and runs for a moment when its engine is ended in order.
    PausedUntilTheEnd,
    /// A migration that was discarded can be prepared once more.
    DiscardedBeginsAnew,
    /// A container that was adopted can be discarded.
    AdoptedIsDiscarded,
    /// A destination that restarts while it discards starts the container again.
    RestartForgetsDiscarding,
    /// A destination that restarts does not start what was told to start, and says that it is fine.
    RestartLeavesDown,
    /// The last record is not tried again.
    LastRecordOnlyOnce,
}

pub(super) const ALL: &[Flaw] = &[
    Flaw::CommitNotSynced,
    Flaw::StartBeforeCommit,
    Flaw::FailedCommitIsNone,
    Flaw::RestartTrustsTheCache,
    Flaw::StartBeforeRecord,
    Flaw::StartedNotSynced,
    Flaw::SilenceIsRefusal,
    Flaw::SilenceIsCommit,
    Flaw::PolicyLeftOn,
    Flaw::PolicyNotGivenBack,
    Flaw::PolicyNotGivenThere,
    Flaw::DiscardedNotSynced,
    Flaw::DiscardedBeforeRemoval,
    Flaw::AdoptedNotSynced,
    Flaw::AdoptedWithoutStart,
    Flaw::ReleaseBeforeAdoption,
    Flaw::ResumeBeforeDiscard,
    Flaw::FailureIsRefusal,
    Flaw::UnknownIsDiscarded,
    Flaw::AbortAfterCommit,
    Flaw::RestartForgetsCommit,
    Flaw::RestartLeavesFrozen,
    Flaw::RestartGoesOn,
    Flaw::DeltaBeforeFreeze,
    Flaw::DeltaNotDurable,
    Flaw::NoVerify,
    Flaw::PausedUntilTheEnd,
    Flaw::DiscardedBeginsAnew,
    Flaw::AdoptedIsDiscarded,
    Flaw::RestartForgetsDiscarding,
    Flaw::RestartLeavesDown,
    Flaw::LastRecordOnlyOnce,
];

impl Model {
    /// The production transition of the source, with the planted bug if there is one.
    pub(super) fn source_on(&self, before: Source, input: source::Input) -> Source {
        let mut after = before;
        after.on(input);
        let Some(flaw) = self.flaw else { return after };
        let committed = before.is_committed();
        match flaw {
            Flaw::StartBeforeCommit if after.doing == Doing::SaveCommitted => {
                // The record follows, too late.
                after.doing = Doing::Ask(Message::Start);
            }
            Flaw::FailedCommitIsNone
                if before.doing == Doing::SaveCommitted && input == source::Input::NotSaved =>
            {
                after.doing = Doing::Resume;
            }
            Flaw::SilenceIsRefusal if committed && input == source::Input::NoAnswer => {
                after.doing = Doing::Resume
            }
            Flaw::ReleaseBeforeAdoption if after.doing == Doing::Ask(Message::Adopt) => {
                after.doing = Doing::SaveHandedOver
            }
            Flaw::ResumeBeforeDiscard if committed && after.doing == Doing::Ask(Message::Discard) => {
                after.doing = Doing::Resume;
            }
            Flaw::FailureIsRefusal if committed && input == source::Input::Answer(Answer::Failed) => {
                after.doing = Doing::SaveReturning;
            }
            Flaw::UnknownIsDiscarded if committed && input == source::Input::Answer(Answer::Unknown) => {
                after.doing = Doing::SaveReturning;
            }
            Flaw::AbortAfterCommit if committed && input == source::Input::Abort => {
                after.doing = Doing::Resume
            }
            Flaw::DeltaBeforeFreeze => match (before.doing, after.doing) {
                (Doing::Prepare, Doing::SaveFrozen) => after.doing = Doing::Delta,
                (Doing::Delta, Doing::Verify) => after.doing = Doing::SaveFrozen,
                (Doing::Freeze, Doing::Delta) => after.doing = Doing::Verify,
                _ => {}
            },
            Flaw::LastRecordOnlyOnce
                if matches!(before.doing, Doing::SaveRolledBack | Doing::SaveComplete)
                    && input == source::Input::NotSaved =>
            {
                after.doing = Doing::Over;
            }
            _ => {}
        }
        after
    }

    pub(super) fn source_restarted(&self, state: DepartureState) -> Source {
        let mut source = Source::restarted(state);
        match (self.flaw, state) {
            (Some(Flaw::RestartForgetsCommit), DepartureState::Committed) => {
                source = Source::restarted(DepartureState::Frozen);
            }
            (Some(Flaw::RestartLeavesFrozen), DepartureState::Frozen) => source.doing = Doing::SaveRolledBack,
            (Some(Flaw::RestartGoesOn), DepartureState::Frozen) => source.doing = Doing::SaveCommitted,
            _ => {}
        }
        source
    }

    pub(super) fn source_sync_is_left_out(&self, state: DepartureState) -> bool {
        self.has(Flaw::CommitNotSynced) && state == DepartureState::Committed
    }

    /// The production transition of the destination, with the planted bug if there is one.
    pub(super) fn destination_on(&self, before: Destination, input: destination::Input) -> Destination {
        use destination::Doing;
        let mut after = before;
        after.on(input);
        let Some(flaw) = self.flaw else { return after };
        match flaw {
            Flaw::StartBeforeRecord => match (before.doing, after.doing) {
                (Doing::Idle, Doing::SaveStarted) => after.doing = Doing::Start,
                (Doing::Start, Doing::Say(Answer::Started))
                    if before.held == Some(ArrivalState::Prepared) =>
                {
                    after.doing = Doing::SaveStarted;
                }
                (Doing::SaveStarted, Doing::Start) => after.doing = Doing::Say(Answer::Started),
                _ => {}
            },
            Flaw::SilenceIsCommit
                if input == destination::Input::Alone && before.held == Some(ArrivalState::Prepared) =>
            {
                after.doing = Doing::SaveStarted;
            }
            Flaw::DiscardedBeforeRemoval => match (before.doing, after.doing) {
                (Doing::SaveDiscarding, Doing::Remove) => {
                    after.silent = false;
                    after.doing = Doing::Say(Answer::Discarded);
                }
                (Doing::Idle, Doing::SaveDiscarding) if before.held == Some(ArrivalState::Discarding) => {
                    after.doing = Doing::Remove;
                }
                _ => {}
            },
            Flaw::AdoptedWithoutStart if after.doing == Doing::StartKept => after.doing = Doing::SaveAdopted,
            Flaw::DiscardedBeginsAnew
                if before.held == Some(ArrivalState::Discarded)
                    && input == destination::Input::Asked(Message::Prepare) =>
            {
                after.doing = Doing::SaveReceiving;
            }
            Flaw::AdoptedIsDiscarded
                if before.held == Some(ArrivalState::Adopted)
                    && input == destination::Input::Asked(Message::Discard) =>
            {
                after.doing = Doing::SaveDiscarding;
            }
            _ => {}
        }
        after
    }

    pub(super) fn destination_restarted(&self, held: Option<ArrivalState>) -> Destination {
        use destination::Doing;
        let mut half = Destination::restarted(held);
        match (self.flaw, held) {
            (Some(Flaw::RestartForgetsDiscarding), Some(ArrivalState::Discarding)) => {
                half = Destination::restarted(Some(ArrivalState::Started));
            }
            (Some(Flaw::RestartLeavesDown), Some(ArrivalState::Started)) => {
                half.silent = false;
                half.doing = Doing::SaveAdopted;
            }
            _ => {}
        }
        half
    }

    pub(super) fn destination_sync_is_left_out(&self, state: ArrivalState) -> bool {
        match self.flaw {
            Some(Flaw::StartedNotSynced) => state == ArrivalState::Started,
            Some(Flaw::DiscardedNotSynced) => {
                matches!(state, ArrivalState::Discarding | ArrivalState::Discarded)
            }
            Some(Flaw::AdoptedNotSynced) => state == ArrivalState::Adopted,
            _ => false,
        }
    }
}
