//! What the model checker cannot see: the transitions that it never meets because the shells never cause them, and what a half
//! says about itself. One line per case.

use super::destination::{self, Destination};
use super::source::{self, Source};
use super::{Answer, Message, Owner};
use crate::destination::ArrivalState;
use crate::record::DepartureState;

const MESSAGES: [Message; 5] = [
    Message::Prepare,
    Message::Start,
    Message::Ready,
    Message::Adopt,
    Message::Discard,
];

fn sources() -> Vec<source::Doing> {
    use source::Doing;
    let mut all = vec![
        Doing::SaveBegun,
        Doing::Prepare,
        Doing::SaveFrozen,
        Doing::Freeze,
        Doing::Delta,
        Doing::Verify,
        Doing::SaveCommitted,
        Doing::SaveReturning,
        Doing::Resume,
        Doing::TellDiscard,
        Doing::SaveRolledBack,
        Doing::SaveNotResumed,
        Doing::Rest,
        Doing::SaveHandedOver,
        Doing::Release,
        Doing::SaveComplete,
        Doing::Over,
    ];
    all.extend(MESSAGES.map(Doing::Ask));
    all
}

fn at(doing: source::Doing) -> Source {
    Source {
        doing,
        ..Source::new()
    }
}

fn busy() -> Vec<destination::Doing> {
    use destination::Doing;
    vec![
        Doing::SaveReceiving,
        Doing::Make,
        Doing::SavePrepared,
        Doing::SaveStarted,
        Doing::Start,
        Doing::Prove,
        Doing::Keep,
        Doing::StartKept,
        Doing::SaveAdopted,
        Doing::SaveDiscarding,
        Doing::Remove,
        Doing::SaveDiscarded,
        Doing::Say(Answer::Started),
    ]
}

fn there(doing: destination::Doing, held: Option<ArrivalState>) -> Destination {
    Destination {
        doing,
        silent: false,
        ..Destination::holding(held)
    }
}

#[test]
fn a_source_that_comes_back_goes_on_by_its_record() {
    use source::Action;
    let resume = Action::Resume { touched: true };
    for (state, action, relinquished) in [
        (
            DepartureState::Preparing,
            Action::Resume { touched: false },
            false,
        ),
        (DepartureState::Frozen, resume, false),
        (DepartureState::NotResumed, resume, false),
        (DepartureState::Returning, resume, true),
        (DepartureState::Committed, Action::Ask(Message::Start), false),
        (DepartureState::InDoubt, Action::Ask(Message::Start), false),
        (DepartureState::HandedOver, Action::Release, false),
        (DepartureState::Complete, Action::End, false),
        (DepartureState::RolledBack, Action::End, false),
    ] {
        let source = Source::restarted(state);
        assert_eq!(source.action(), action, "{state:?}");
        // Only one that the destination has given back has nothing to tell it.
        assert_eq!(source.relinquished, relinquished, "{state:?}");
    }
}

#[test]
fn an_abort_counts_before_the_commit_and_a_way_back_after_it() {
    use source::{Action, Doing, Input};
    for doing in sources() {
        let early = matches!(
            doing,
            Doing::SaveBegun
                | Doing::Prepare
                | Doing::SaveFrozen
                | Doing::Freeze
                | Doing::Delta
                | Doing::Verify
        );
        let committed = matches!(doing, Doing::Ask(_));
        assert_eq!(at(doing).may_abort(), early, "{doing:?}");
        assert_eq!(at(doing).is_committed(), committed, "{doing:?}");
        for input in [Input::Abort, Input::GoBack] {
            let mut source = at(doing);
            source.on(input);
            assert_eq!(source.aborted, early, "{doing:?}, {input:?}");
            let expected = match (committed, input) {
                (true, Input::GoBack) => Action::Ask(Message::Discard),
                _ => at(doing).action(),
            };
            assert_eq!(source.action(), expected, "{doing:?}, {input:?}");
            // Once more changes nothing, neither does the other one take it back.
            source.on(Input::Abort);
            source.on(input);
            assert_eq!(source.aborted, early, "{doing:?}, {input:?}");
        }
    }
}

#[test]
fn a_person_decides_only_what_nobody_knows() {
    use source::{Action, Doing, Input};
    for doing in sources() {
        for owner in [Owner::Source, Owner::Destination] {
            let mut source = at(doing);
            source.on(Input::Resolve(owner));
            let expected = match (doing, owner) {
                (Doing::Ask(_), Owner::Source) => Action::Save(DepartureState::Returning),
                (Doing::Ask(_), Owner::Destination) => Action::Save(DepartureState::HandedOver),
                _ => at(doing).action(),
            };
            assert_eq!(source.action(), expected, "{doing:?}, {owner}");
        }
    }
    assert_eq!(Owner::Source.to_string(), "source");
    assert_eq!(Owner::Destination.to_string(), "destination");
}

#[test]
fn a_timer_ends_a_rest_and_nothing_else() {
    use source::{Action, Doing, Input};
    for doing in sources() {
        let mut source = at(doing);
        source.on(Input::Timer);
        let expected = match doing {
            Doing::Rest => Action::Resume { touched: false },
            _ => at(doing).action(),
        };
        assert_eq!(source.action(), expected, "{doing:?}");
    }
}

#[test]
fn an_answer_moves_only_the_question_that_it_fits() {
    use source::{Action, Doing, Input};
    for asked in MESSAGES {
        for (answer, fitting) in [
            (Answer::Prepared, None),
            (
                Answer::Started,
                (asked == Message::Start).then_some(Action::Ask(Message::Ready)),
            ),
            (
                Answer::Ready,
                (asked == Message::Ready).then_some(Action::Ask(Message::Adopt)),
            ),
            (Answer::Adopted, Some(Action::Save(DepartureState::HandedOver))),
            (Answer::Discarded, Some(Action::Save(DepartureState::Returning))),
            (Answer::Unknown, None),
            (
                Answer::Failed,
                matches!(asked, Message::Start | Message::Ready | Message::Adopt)
                    .then_some(Action::Ask(Message::Discard)),
            ),
        ] {
            let mut source = at(Doing::Ask(asked));
            source.on(Input::Answer(answer));
            let expected = fitting.unwrap_or(Action::Ask(asked));
            assert_eq!(source.action(), expected, "{asked:?}, {answer:?}");
        }
    }
}

#[test]
fn only_a_destination_that_was_asked_for_something_is_told_to_discard() {
    use source::{Action, Input};
    let mut source = Source::new();
    source.on(Input::Saved);
    for input in [Input::Failed, Input::Done] {
        source.on(input);
    }
    assert_eq!(source.action(), Action::Tell(Message::Discard), "it had prepared");
    let mut source = Source::restarted(DepartureState::Returning);
    source.on(Input::Done);
    assert_eq!(
        source.action(),
        Action::Save(DepartureState::RolledBack),
        "it had discarded"
    );
}

#[test]
fn what_is_heard_while_nothing_was_asked_changes_nothing() {
    use source::{Doing, Input};
    let answers = [
        Answer::Prepared,
        Answer::Started,
        Answer::Ready,
        Answer::Adopted,
        Answer::Discarded,
        Answer::Unknown,
        Answer::Failed,
    ];
    for doing in sources() {
        for answer in answers {
            let mut source = at(doing);
            source.on(Input::Answer(answer));
            if !matches!(doing, Doing::Ask(_)) {
                assert_eq!(source, at(doing), "{doing:?}, {answer:?}");
            }
        }
        let mut source = at(doing);
        source.on(Input::NoAnswer);
        assert_eq!(source, at(doing), "{doing:?}");
    }
}

#[test]
fn a_destination_that_comes_back_goes_on_by_its_record() {
    use destination::Action;
    for (held, action) in [
        (None, Action::Idle),
        (Some(ArrivalState::Receiving), Action::Idle),
        (Some(ArrivalState::Prepared), Action::Idle),
        (Some(ArrivalState::Started), Action::Start),
        (Some(ArrivalState::Adopted), Action::Idle),
        (Some(ArrivalState::Discarding), Action::Remove),
        (Some(ArrivalState::Discarded), Action::Idle),
    ] {
        let destination = Destination::restarted(held);
        assert_eq!(destination.action(), action, "{held:?}");
        assert_eq!(destination.held(), held);
        assert!(destination.silent, "nobody has asked yet");
    }
}

#[test]
fn a_destination_does_one_thing_after_the_other() {
    use destination::Input;
    for doing in busy() {
        for held in [
            ArrivalState::Receiving,
            ArrivalState::Started,
            ArrivalState::Discarding,
        ] {
            let before = there(doing, Some(held));
            let inputs = MESSAGES.map(Input::Asked).into_iter().chain([
                Input::Alone,
                Input::Resolve(Owner::Source),
                Input::Resolve(Owner::Destination),
            ]);
            for input in inputs {
                let mut destination = before;
                destination.on(input);
                assert_eq!(destination, before, "{doing:?}, {held:?}, {input:?}");
            }
        }
    }
}

#[test]
fn only_containers_that_were_adopted_are_kept_as_they_start() {
    use destination::Doing;
    for doing in busy() {
        let keeping = there(doing, Some(ArrivalState::Adopted)).is_keeping();
        assert_eq!(keeping, doing == Doing::StartKept, "{doing:?}");
    }
    assert!(!Destination::holding(Some(ArrivalState::Adopted)).is_keeping());
}
