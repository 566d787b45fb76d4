//! The destination's half.

use super::{Answer, Message, Owner};
use crate::destination::ArrivalState;

/// What the shell is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Nothing, until something is asked.
    Idle,
    /// Make a record with this state durable. [`Input::Saved`] or [`Input::NotSaved`].
    Save(ArrivalState),
    /// Make what is missing: networks, volumes, containers with restart policy `no`. [`Input::Done`] or [`Input::Failed`].
    Make,
    /// Start the containers; running already is done well. [`Input::Done`] or [`Input::Failed`].
    Start,
    /// Wait until they prove themselves. [`Input::Done`] or [`Input::Failed`].
    Prove,
    /// Give them their restart policies back. [`Input::Done`] or [`Input::Failed`].
    Keep,
    /// Take the containers away, and everything else that was made. [`Input::Done`] when no container is left, else
    /// [`Input::Failed`].
    Remove,
    /// Answer the source, and go on.
    Say(Answer),
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    /// The source asked. Ignored while something is under way: the shell asks one after the other.
    Asked(Message),
    /// The source has been away for a while. It decides nothing that the source may have decided otherwise.
    Alone,
    /// A person who knows decides.
    Resolve(Owner),
    /// The action was done.
    Done,
    /// The action was not done, or only in part.
    Failed,
    /// The record is durable.
    Saved,
    /// The record may be durable or not.
    NotSaved,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Doing {
    Idle,
    SaveReceiving,
    Make,
    SavePrepared,
    SaveStarted,
    Start,
    Prove,
    Keep,
    /// With its policy on: a container that an engine's restart ended since it was proved runs again, and comes back
    /// by itself from here on.
    StartKept,
    SaveAdopted,
    SaveDiscarding,
    Remove,
    SaveDiscarded,
    Say(Answer),
}

/// The destination of one migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The newest record, durable or perhaps durable.
    pub(super) held: Option<ArrivalState>,
    pub(super) doing: Doing,
    /// Nobody waits for an answer.
    pub(super) silent: bool,
    /// A person decided that it belongs here.
    pub(super) adopting: bool,
}

impl Destination {
    /// An arrival whose newest record says `held`; `None` where there is no record.
    #[must_use]
    pub fn holding(held: Option<ArrivalState>) -> Self {
        Self {
            held,
            doing: Doing::Idle,
            silent: true,
            adopting: false,
        }
    }

    /// An arrival whose agent ended; `held` is what the newest durable record says. A container that was told to start runs
    /// again before anybody asks, and one that was being taken away goes.
    #[must_use]
    pub fn restarted(held: Option<ArrivalState>) -> Self {
        let mut this = Self::holding(held);
        this.doing = match held {
            Some(ArrivalState::Started) => Doing::Start,
            Some(ArrivalState::Discarding) => Doing::Remove,
            _ => Doing::Idle,
        };
        this
    }

    /// The state of the newest record.
    #[must_use]
    pub fn held(&self) -> Option<ArrivalState> {
        self.held
    }

    /// Whether the containers that are started now are adopted already.
    #[must_use]
    pub fn is_keeping(&self) -> bool {
        self.doing == Doing::StartKept
    }

    /// What is to be done now.
    #[must_use]
    pub fn action(&self) -> Action {
        match self.doing {
            Doing::Idle => Action::Idle,
            Doing::SaveReceiving => Action::Save(ArrivalState::Receiving),
            Doing::Make => Action::Make,
            Doing::SavePrepared => Action::Save(ArrivalState::Prepared),
            Doing::SaveStarted => Action::Save(ArrivalState::Started),
            Doing::Start | Doing::StartKept => Action::Start,
            Doing::Prove => Action::Prove,
            Doing::Keep => Action::Keep,
            Doing::SaveAdopted => Action::Save(ArrivalState::Adopted),
            Doing::SaveDiscarding => Action::Save(ArrivalState::Discarding),
            Doing::Remove => Action::Remove,
            Doing::SaveDiscarded => Action::Save(ArrivalState::Discarded),
            Doing::Say(answer) => Action::Say(answer),
        }
    }

    /// Takes in what happened. What does not fit what is being done changes nothing.
    pub fn on(&mut self, input: Input) {
        match input {
            Input::Asked(message) if self.doing == Doing::Idle => {
                self.silent = false;
                self.adopting = false;
                self.doing = self.asked(message);
            }
            Input::Alone if self.doing == Doing::Idle => {
                self.silent = true;
                self.doing = match self.held {
                    Some(ArrivalState::Receiving | ArrivalState::Prepared) => Doing::SaveDiscarding,
                    Some(ArrivalState::Discarding) => Doing::Remove,
                    // Only the source, or a person, can know.
                    Some(ArrivalState::Started | ArrivalState::Adopted | ArrivalState::Discarded) | None => {
                        Doing::Idle
                    }
                };
            }
            Input::Resolve(owner) if self.doing == Doing::Idle => {
                self.silent = false;
                self.doing = self.resolve(owner);
            }
            Input::Asked(_) | Input::Alone | Input::Resolve(_) => {}
            Input::Saved => self.saved(),
            Input::Done => self.done(),
            Input::Failed | Input::NotSaved => self.failed(input),
        }
        if self.silent && matches!(self.doing, Doing::Say(_)) {
            self.doing = Doing::Idle;
        }
    }

    /// The answer got out, or nobody waits for it any more.
    pub fn said(&mut self) {
        if matches!(self.doing, Doing::Say(_)) {
            self.doing = Doing::Idle;
        }
    }

    fn asked(&self, message: Message) -> Doing {
        let Some(held) = self.held else {
            return match message {
                Message::Prepare => Doing::SaveReceiving,
                _ => Doing::Say(Answer::Unknown),
            };
        };
        match (held, message) {
            // What is for good is said, whatever was asked.
            (ArrivalState::Adopted, _) => Doing::Say(Answer::Adopted),
            (ArrivalState::Discarded, _) => Doing::Say(Answer::Discarded),
            (ArrivalState::Discarding, _) => Doing::Remove,
            (ArrivalState::Receiving, Message::Prepare) => Doing::SaveReceiving,
            (ArrivalState::Prepared | ArrivalState::Started, Message::Prepare) => {
                Doing::Say(Answer::Prepared)
            }
            (ArrivalState::Prepared, Message::Start) => Doing::SaveStarted,
            (ArrivalState::Started, Message::Start) => Doing::Start,
            (ArrivalState::Started, Message::Ready) => Doing::Prove,
            (ArrivalState::Started, Message::Adopt) => Doing::Keep,
            (ArrivalState::Receiving | ArrivalState::Prepared | ArrivalState::Started, Message::Discard) => {
                Doing::SaveDiscarding
            }
            (ArrivalState::Receiving, Message::Start)
            | (ArrivalState::Receiving | ArrivalState::Prepared, Message::Ready | Message::Adopt) => {
                Doing::Say(Answer::Failed)
            }
        }
    }

    fn resolve(&mut self, owner: Owner) -> Doing {
        self.adopting = owner == Owner::Destination;
        match (self.held, owner) {
            (None, _) => Doing::Say(Answer::Unknown),
            (Some(ArrivalState::Adopted), _) => Doing::Say(Answer::Adopted),
            (Some(ArrivalState::Discarded), _) => Doing::Say(Answer::Discarded),
            (Some(ArrivalState::Discarding), _) => Doing::Remove,
            (Some(ArrivalState::Receiving), Owner::Destination) => Doing::Say(Answer::Failed),
            (Some(ArrivalState::Prepared), Owner::Destination) => Doing::SaveStarted,
            (Some(ArrivalState::Started), Owner::Destination) => Doing::Start,
            (
                Some(ArrivalState::Receiving | ArrivalState::Prepared | ArrivalState::Started),
                Owner::Source,
            ) => Doing::SaveDiscarding,
        }
    }

    fn saved(&mut self) {
        let (held, next) = match self.doing {
            Doing::SaveReceiving => (ArrivalState::Receiving, Doing::Make),
            Doing::SavePrepared => (ArrivalState::Prepared, Doing::Say(Answer::Prepared)),
            Doing::SaveStarted => (ArrivalState::Started, Doing::Start),
            Doing::SaveAdopted => (ArrivalState::Adopted, Doing::Say(Answer::Adopted)),
            Doing::SaveDiscarding => (ArrivalState::Discarding, Doing::Remove),
            Doing::SaveDiscarded => (ArrivalState::Discarded, Doing::Say(Answer::Discarded)),
            _ => return,
        };
        self.held = Some(held);
        self.doing = next;
    }

    fn done(&mut self) {
        self.doing = match self.doing {
            Doing::Make => Doing::SavePrepared,
            Doing::Start if self.adopting => Doing::Keep,
            Doing::Start => Doing::Say(Answer::Started),
            Doing::Prove => Doing::Say(Answer::Ready),
            Doing::Keep => Doing::StartKept,
            Doing::StartKept => Doing::SaveAdopted,
            Doing::Remove => Doing::SaveDiscarded,
            same => same,
        };
    }

    fn failed(&mut self, input: Input) {
        let fits = match self.doing {
            Doing::SaveReceiving
            | Doing::SavePrepared
            | Doing::SaveStarted
            | Doing::SaveAdopted
            | Doing::SaveDiscarding
            | Doing::SaveDiscarded => input == Input::NotSaved,
            Doing::Make | Doing::Start | Doing::Prove | Doing::Keep | Doing::StartKept | Doing::Remove => {
                input == Input::Failed
            }
            Doing::Idle | Doing::Say(_) => false,
        };
        if fits {
            self.doing = Doing::Say(Answer::Failed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(held: Option<ArrivalState>, message: Message) -> Action {
        let mut half = Destination::holding(held);
        half.on(Input::Asked(message));
        half.action()
    }

    #[test]
    fn it_runs_only_after_its_own_record() {
        let mut half = Destination::holding(Some(ArrivalState::Prepared));
        half.on(Input::Asked(Message::Start));
        assert_eq!(half.action(), Action::Save(ArrivalState::Started));
        let mut unsaved = half;
        unsaved.on(Input::NotSaved);
        assert_eq!(unsaved.action(), Action::Say(Answer::Failed));
        half.on(Input::Saved);
        assert_eq!(half.action(), Action::Start);
        half.on(Input::Done);
        assert_eq!(half.action(), Action::Say(Answer::Started));
        half.said();
        assert_eq!(half.action(), Action::Idle);
    }

    #[test]
    fn handing_back_is_durable_before_and_after() {
        let mut half = Destination::holding(Some(ArrivalState::Started));
        half.on(Input::Asked(Message::Discard));
        assert_eq!(half.action(), Action::Save(ArrivalState::Discarding));
        half.on(Input::Saved);
        assert_eq!(half.action(), Action::Remove);
        half.on(Input::Failed);
        assert_eq!(half.action(), Action::Say(Answer::Failed));
        half.said();
        half.on(Input::Asked(Message::Start));
        assert_eq!(half.action(), Action::Remove, "it never runs again");
        half.on(Input::Done);
        assert_eq!(half.action(), Action::Save(ArrivalState::Discarded));
    }

    #[test]
    fn what_is_for_good_stays() {
        for message in [
            Message::Prepare,
            Message::Start,
            Message::Ready,
            Message::Adopt,
            Message::Discard,
        ] {
            assert_eq!(
                ask(Some(ArrivalState::Adopted), message),
                Action::Say(Answer::Adopted)
            );
            assert_eq!(
                ask(Some(ArrivalState::Discarded), message),
                Action::Say(Answer::Discarded)
            );
        }
        assert_eq!(ask(None, Message::Discard), Action::Say(Answer::Unknown));
    }

    #[test]
    fn being_alone_decides_only_what_is_not_decided() {
        for (held, action) in [
            (
                Some(ArrivalState::Prepared),
                Action::Save(ArrivalState::Discarding),
            ),
            (Some(ArrivalState::Started), Action::Idle),
            (Some(ArrivalState::Adopted), Action::Idle),
            (None, Action::Idle),
        ] {
            let mut half = Destination::holding(held);
            half.on(Input::Alone);
            assert_eq!(half.action(), action);
        }
    }

    #[test]
    fn a_restart_starts_once_more_what_was_told_to_start() {
        let mut half = Destination::restarted(Some(ArrivalState::Started));
        assert_eq!(half.action(), Action::Start);
        half.on(Input::Done);
        assert_eq!(half.action(), Action::Idle, "nobody asked, so nobody is answered");
    }
}
