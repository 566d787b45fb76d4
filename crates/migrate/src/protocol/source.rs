//! The source's half.

use super::{Answer, Message, Owner};
use crate::record::DepartureState;

/// What the shell is to do next. It tells the machine how that went, and asks again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Make a record with this state durable. [`Input::Saved`] or [`Input::NotSaved`].
    Save(DepartureState),
    /// Everything that needs no freeze: check, image, networks, containers, rounds of copying.
    /// [`Input::Done`] or [`Input::Failed`].
    Prepare,
    /// Park the restart policies, then stop or pause. [`Input::Done`] or [`Input::Failed`].
    Freeze,
    /// Copy what changed since the last round, durably. [`Input::Done`] or [`Input::Failed`].
    Delta,
    /// Look whether the source still stands as it was frozen. [`Input::Done`] or [`Input::Failed`].
    Verify,
    /// Ask the destination and wait for its answer. [`Input::Answer`] or [`Input::NoAnswer`], after which it is asked again.
    Ask(Message),
    /// Tell the destination once; an answer is welcome and not needed. [`Input::Done`] whatever came.
    Tell(Message),
    /// Bring the source back, with its restart policy, where it was `touched`; and undo what hooks did.
    /// [`Input::Done`] or [`Input::Failed`].
    Resume {
        /// It may have been frozen.
        touched: bool,
    },
    /// End or remove what is left at the source, as the user wished. [`Input::Done`] or [`Input::Failed`].
    Release,
    /// Wait for a while, then [`Input::Timer`].
    Rest,
    /// Nothing more.
    End,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    /// The action was done.
    Done,
    /// The action was not done, or only in part.
    Failed,
    /// The record is durable.
    Saved,
    /// The record may be durable or not.
    NotSaved,
    /// The destination answered, perhaps to an older question.
    Answer(Answer),
    /// Nothing is known about the question.
    NoAnswer,
    /// A rest is over.
    Timer,
    /// The user gives up; counts until the commit.
    Abort,
    /// The user wants the container back, commit or not; counts until the destination adopted it.
    GoBack,
    /// A person who knows decides where the machine can't; counts after the commit.
    Resolve(Owner),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Doing {
    SaveBegun,
    Prepare,
    SaveFrozen,
    Freeze,
    Delta,
    Verify,
    SaveCommitted,
    Ask(Message),
    SaveReturning,
    Resume,
    TellDiscard,
    SaveRolledBack,
    SaveNotResumed,
    Rest,
    SaveHandedOver,
    Release,
    SaveComplete,
    Over,
}

/// The source of one migration in cold or warm mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source {
    pub(super) doing: Doing,
    /// The container may have been frozen.
    pub(super) touched: bool,
    /// The user gave up before the commit.
    pub(super) aborted: bool,
    /// The destination needs not be told to discard: it said that it did, or was never asked for anything.
    pub(super) relinquished: bool,
    /// The last try to bring the container back failed.
    pub(super) stuck: bool,
}

impl Source {
    /// A migration that nothing has happened to yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            doing: Doing::SaveBegun,
            touched: false,
            aborted: false,
            relinquished: true,
            stuck: false,
        }
    }

    /// A migration whose agent ended; `state` is what the newest durable record says.
    #[must_use]
    pub fn restarted(state: DepartureState) -> Self {
        let doing = match state {
            DepartureState::Preparing
            | DepartureState::Frozen
            | DepartureState::NotResumed
            | DepartureState::Returning => Doing::Resume,
            DepartureState::Committed | DepartureState::InDoubt => Doing::Ask(Message::Start),
            DepartureState::HandedOver => Doing::Release,
            DepartureState::Complete | DepartureState::RolledBack => Doing::Over,
        };
        Self {
            doing,
            touched: state != DepartureState::Preparing,
            aborted: false,
            relinquished: state == DepartureState::Returning,
            stuck: false,
        }
    }

    /// What is to be done now.
    #[must_use]
    pub fn action(&self) -> Action {
        match self.doing {
            Doing::SaveBegun => Action::Save(DepartureState::Preparing),
            Doing::Prepare => Action::Prepare,
            Doing::SaveFrozen => Action::Save(DepartureState::Frozen),
            Doing::Freeze => Action::Freeze,
            Doing::Delta => Action::Delta,
            Doing::Verify => Action::Verify,
            Doing::SaveCommitted => Action::Save(DepartureState::Committed),
            Doing::Ask(message) => Action::Ask(message),
            Doing::SaveReturning => Action::Save(DepartureState::Returning),
            Doing::Resume => Action::Resume {
                touched: self.touched,
            },
            Doing::TellDiscard => Action::Tell(Message::Discard),
            Doing::SaveRolledBack => Action::Save(DepartureState::RolledBack),
            Doing::SaveNotResumed => Action::Save(DepartureState::NotResumed),
            Doing::Rest => Action::Rest,
            Doing::SaveHandedOver => Action::Save(DepartureState::HandedOver),
            Doing::Release => Action::Release,
            Doing::SaveComplete => Action::Save(DepartureState::Complete),
            Doing::Over => Action::End,
        }
    }

    /// Whether the commit was, or may have been, made durable and nobody knows yet how it ends.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        matches!(self.doing, Doing::Ask(_))
    }

    /// Whether an abort still counts.
    #[must_use]
    pub fn may_abort(&self) -> bool {
        matches!(
            self.doing,
            Doing::SaveBegun
                | Doing::Prepare
                | Doing::SaveFrozen
                | Doing::Freeze
                | Doing::Delta
                | Doing::Verify
        )
    }

    /// Takes in what happened. What does not fit what is being done is stale, and changes nothing.
    pub fn on(&mut self, input: Input) {
        match input {
            Input::Abort => self.aborted |= self.may_abort(),
            Input::GoBack => {
                self.aborted |= self.may_abort();
                if self.is_committed() {
                    self.doing = Doing::Ask(Message::Discard);
                }
            }
            Input::Resolve(owner) if self.is_committed() => match owner {
                // It is told to discard all the same, in case it comes back.
                Owner::Source => self.doing = Doing::SaveReturning,
                Owner::Destination => self.doing = Doing::SaveHandedOver,
            },
            Input::Answer(answer) => self.on_answer(answer),
            // Nothing is known, so nothing changes: it is asked again.
            Input::NoAnswer | Input::Resolve(_) => {}
            Input::Done | Input::Saved => self.on_success(input),
            Input::Failed | Input::NotSaved => self.on_failure(input),
            Input::Timer => {
                if self.doing == Doing::Rest {
                    self.doing = Doing::Resume;
                }
            }
        }
    }

    /// Only what the destination said for good moves ownership.
    fn on_answer(&mut self, answer: Answer) {
        let Doing::Ask(asked) = self.doing else { return };
        self.doing = match (asked, answer) {
            (_, Answer::Discarded) => {
                self.relinquished = true;
                Doing::SaveReturning
            }
            (_, Answer::Adopted) => Doing::SaveHandedOver,
            (Message::Start, Answer::Started) => Doing::Ask(Message::Ready),
            (Message::Ready, Answer::Ready) => Doing::Ask(Message::Adopt),
            (Message::Start | Message::Ready | Message::Adopt, Answer::Failed) => {
                Doing::Ask(Message::Discard)
            }
            // A destination that forgot may run it all the same: nobody can know.
            _ => self.doing,
        };
    }

    fn on_success(&mut self, input: Input) {
        let saved = input == Input::Saved;
        let next = match (self.doing, saved) {
            (Doing::SaveBegun, true) => Doing::Prepare,
            (Doing::Prepare, false) => Doing::SaveFrozen,
            (Doing::SaveFrozen, true) => Doing::Freeze,
            (Doing::Freeze, false) => Doing::Delta,
            (Doing::Delta, false) => Doing::Verify,
            (Doing::Verify, false) => Doing::SaveCommitted,
            (Doing::SaveCommitted, true) => Doing::Ask(Message::Start),
            (Doing::SaveReturning, true) => Doing::Resume,
            (Doing::Resume, false) => {
                self.stuck = false;
                self.after_resume()
            }
            (Doing::TellDiscard, false) if self.stuck => Doing::SaveNotResumed,
            (Doing::TellDiscard, false) => Doing::SaveRolledBack,
            (Doing::SaveRolledBack | Doing::SaveComplete, true) => Doing::Over,
            (Doing::SaveNotResumed, true) => Doing::Rest,
            (Doing::SaveHandedOver, true) => Doing::Release,
            (Doing::Release, false) => Doing::SaveComplete,
            (same, _) => same,
        };
        // What the destination makes from here on has to be undone.
        self.relinquished &= next != Doing::Prepare;
        self.touched |= next == Doing::Freeze;
        self.doing = if self.aborted && self.may_abort() && next != self.doing {
            self.go_back_alone(next)
        } else {
            next
        };
    }

    fn after_resume(&self) -> Doing {
        match (self.relinquished, self.stuck) {
            (false, _) => Doing::TellDiscard,
            (true, true) => Doing::SaveNotResumed,
            (true, false) => Doing::SaveRolledBack,
        }
    }

    /// Before the commit the source needs nobody to go back.
    fn go_back_alone(&self, next: Doing) -> Doing {
        match next {
            // The last moment: what was to be committed is not.
            Doing::Prepare
            | Doing::SaveFrozen
            | Doing::Freeze
            | Doing::Delta
            | Doing::Verify
            | Doing::SaveCommitted => Doing::Resume,
            other => other,
        }
    }

    fn on_failure(&mut self, input: Input) {
        let not_saved = input == Input::NotSaved;
        self.doing = match (self.doing, not_saved) {
            // Nothing was done, and nobody asked for anything.
            (Doing::SaveBegun, true) => Doing::Over,
            (Doing::Prepare | Doing::Freeze | Doing::Delta | Doing::Verify, false)
            | (Doing::SaveFrozen, true) => Doing::Resume,
            // It may be durable, and would count after a restart: only the destination's word makes it safe to go back.
            (Doing::SaveCommitted, true) => Doing::Ask(Message::Discard),
            // The destination's word is durable there and can be had again.
            (Doing::SaveReturning, true) => Doing::Resume,
            (Doing::Resume, false) => {
                self.stuck = true;
                self.after_resume()
            }
            (Doing::SaveNotResumed, true) => Doing::Rest,
            // What is left is said, and is no reason to keep the migration open.
            (Doing::Release, false) => Doing::SaveComplete,
            // Tried again: nothing is removed here before it is durable that the destination has it, and a record that stays
            // open would bring the source back after a restart.
            (same, _) => same,
        };
    }
}

impl Default for Source {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drive(source: &mut Source, inputs: &[Input]) {
        for input in inputs {
            source.on(*input);
        }
    }

    #[test]
    fn all_goes_well() {
        let mut source = Source::new();
        let steps = [
            (Action::Save(DepartureState::Preparing), Input::Saved),
            (Action::Prepare, Input::Done),
            (Action::Save(DepartureState::Frozen), Input::Saved),
            (Action::Freeze, Input::Done),
            (Action::Delta, Input::Done),
            (Action::Verify, Input::Done),
            (Action::Save(DepartureState::Committed), Input::Saved),
            (Action::Ask(Message::Start), Input::Answer(Answer::Started)),
            (Action::Ask(Message::Ready), Input::Answer(Answer::Ready)),
            (Action::Ask(Message::Adopt), Input::Answer(Answer::Adopted)),
            (Action::Save(DepartureState::HandedOver), Input::Saved),
            (Action::Release, Input::Done),
            (Action::Save(DepartureState::Complete), Input::Saved),
        ];
        for (action, input) in steps {
            assert_eq!(source.action(), action);
            source.on(input);
        }
        assert_eq!(source.action(), Action::End);
    }

    #[test]
    fn a_commit_that_may_not_be_durable_counts_as_made() {
        let mut source = Source::new();
        drive(&mut source, &[Input::Saved, Input::Done, Input::Saved]);
        drive(&mut source, &[Input::Done, Input::Done, Input::Done]);
        assert_eq!(source.action(), Action::Save(DepartureState::Committed));
        source.on(Input::NotSaved);
        assert_eq!(source.action(), Action::Ask(Message::Discard));
        drive(
            &mut source,
            &[Input::NoAnswer, Input::Answer(Answer::Failed), Input::Abort],
        );
        assert_eq!(source.action(), Action::Ask(Message::Discard));
        source.on(Input::Answer(Answer::Discarded));
        assert_eq!(source.action(), Action::Save(DepartureState::Returning));
    }

    #[test]
    fn an_abort_counts_until_the_commit() {
        let mut source = Source::new();
        drive(&mut source, &[Input::Saved, Input::Abort]);
        assert_eq!(source.action(), Action::Prepare, "what is under way ends first");
        source.on(Input::Done);
        assert_eq!(source.action(), Action::Resume { touched: false });
        let mut source = Source::new();
        drive(
            &mut source,
            &[Input::Saved, Input::Done, Input::Saved, Input::Done, Input::Done],
        );
        drive(&mut source, &[Input::Abort, Input::Done]);
        assert_eq!(
            source.action(),
            Action::Resume { touched: true },
            "not committed any more"
        );
        let mut source = Source::restarted(DepartureState::Committed);
        source.on(Input::Abort);
        assert_eq!(source.action(), Action::Ask(Message::Start));
        source.on(Input::GoBack);
        assert_eq!(source.action(), Action::Ask(Message::Discard));
    }

    #[test]
    fn a_destination_that_forgot_leaves_it_to_a_person() {
        let mut source = Source::restarted(DepartureState::Committed);
        source.on(Input::Answer(Answer::Unknown));
        assert_eq!(source.action(), Action::Ask(Message::Start));
        let mut other = source;
        source.on(Input::Resolve(Owner::Source));
        assert_eq!(source.action(), Action::Save(DepartureState::Returning));
        other.on(Input::Resolve(Owner::Destination));
        assert_eq!(other.action(), Action::Save(DepartureState::HandedOver));
    }

    #[test]
    fn a_source_that_does_not_come_back_is_tried_again() {
        let mut source = Source::restarted(DepartureState::Frozen);
        drive(&mut source, &[Input::Failed, Input::Done]);
        assert_eq!(source.action(), Action::Save(DepartureState::NotResumed));
        source.on(Input::Saved);
        assert_eq!(source.action(), Action::Rest);
        drive(
            &mut source,
            &[Input::Timer, Input::Done, Input::Done, Input::NotSaved],
        );
        assert_eq!(source.action(), Action::Save(DepartureState::RolledBack));
        source.on(Input::Saved);
        assert_eq!(source.action(), Action::End);
    }
}
