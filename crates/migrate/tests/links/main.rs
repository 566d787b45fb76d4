//! What a source makes of a destination that is away, refuses or forgets: whom it asks how often, what it says, and who has
//! the container in the end.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may panic as tests do"
)]

mod doubt;
#[path = "../harness/mod.rs"]
mod harness;

use harness::link::{How, World, options, world};
use tranship_core::container::{ContainerState, Health, RestartPolicy};
use tranship_core::event::{Event, Phase};
use tranship_core::fault::FaultKind;
use tranship_migrate::departure::Order;
use tranship_migrate::options::{ModeRequest, MoveOptions, OnSource};
use tranship_migrate::protocol::Owner;
use tranship_migrate::record::{DepartureRecord, DepartureState};
use tranship_testkit::memory::Failure;

const EVER: usize = 1_000_000;
/// A call that is repeated twice a second for fifteen seconds.
const PATIENTLY: usize = 31;
const RUNS: (&str, &str) = ("running", "always");
const STOPPED: (&str, &str) = ("exited", "no");

fn is(what: &(String, String), expected: (&str, &str)) -> bool {
    (what.0.as_str(), what.1.as_str()) == expected
}

fn stateless() -> MoveOptions {
    options(ModeRequest::Stateless)
}

fn cold() -> MoveOptions {
    options(ModeRequest::Cold)
}

fn code(record: &DepartureRecord) -> &str {
    record.fault.as_ref().map_or("", |f| f.code.as_str())
}

fn caused(record: &DepartureRecord, text: &str) -> bool {
    record
        .fault
        .iter()
        .flat_map(|f| &f.causes)
        .any(|c| c.contains(text))
}

#[tokio::test(start_paused = true)]
async fn a_stateless_source_whose_agent_ended_serves_before_it_asks() {
    for (state, lost, expected) in [
        (DepartureState::Preparing, false, DepartureState::RolledBack),
        (DepartureState::Frozen, false, DepartureState::RolledBack),
        (DepartureState::Preparing, true, DepartureState::RolledBack),
        (DepartureState::Frozen, true, DepartureState::InDoubt),
    ] {
        let world = world(&stateless(), |_| {});
        let frozen = state == DepartureState::Frozen;
        if frozen {
            world.source.alter(&world.plan.spec().id, |c| {
                c.state = ContainerState::Exited;
                c.policy = RestartPolicy::never();
            });
        }
        if lost {
            world.link.on("discard", 0..EVER, How::Lost);
        }
        let record = world.recover(state).await;
        let what = format!("{state:?} {lost}");
        assert_eq!(
            (record.state, code(&record)),
            (expected, "agent.restarted"),
            "{what}"
        );
        assert!(is(&world.here(), RUNS), "{what}");
        assert_eq!(world.asked_here("start"), usize::from(frozen), "{what}");
        assert_eq!(
            world.link.count("discard"),
            if lost { PATIENTLY } else { 1 },
            "{what}"
        );
        assert_eq!(
            world.told.warnings("cleans up by itself"),
            usize::from(lost && !frozen),
            "{what}"
        );
        assert_eq!(
            caused(&record, "may run the container too"),
            lost && frozen,
            "{what}"
        );
        let saved = world.disk.departures.lock().unwrap().last().cloned().unwrap();
        assert_eq!(saved, record, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stateless_source_that_did_not_hear_of_the_adoption_ends_as_was_wished() {
    for on_source in [OnSource::Stop, OnSource::Keep, OnSource::Remove] {
        let options = MoveOptions {
            on_source,
            ..stateless()
        };
        for restarted in [true, false] {
            let world = world(&options, |_| {});
            world.link.on("adopt", 0..EVER, How::Deaf);
            let mut record = world.run().await;
            if restarted {
                // It had been adopted, and the source serves after its restart.
                world.source.alter(&world.plan.spec().id, |c| {
                    c.state = ContainerState::Running;
                });
                if on_source != OnSource::Remove {
                    record = world.recover(DepartureState::Frozen).await;
                }
            }
            let what = format!("{on_source:?} {restarted}");
            assert_eq!(
                (record.state, &record.fault),
                (DepartureState::Complete, &None),
                "{what}"
            );
            assert!(is(&world.there(), RUNS), "{what}");
            match on_source {
                OnSource::Stop => assert!(is(&world.here(), STOPPED), "{what}"),
                OnSource::Keep => assert!(is(&world.here(), RUNS), "{what}"),
                OnSource::Remove => assert!(world.source.all().is_empty(), "{what}"),
            }
            assert_eq!(record.downtime_ms, None, "somebody served all the time");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_way_back_comes_to_is_told_apart() {
    use DepartureState::{InDoubt, RolledBack};
    let environment = FaultKind::Environment;
    // What fails, what the destination says to the discard; how it ends, and what is said.
    for (failing, discard, state, cause, warning) in [
        ("ready", None, RolledBack, "", ""),
        ("adopt", None, RolledBack, "", ""),
        (
            "ready",
            Some(How::Says("arrival.unknown", environment)),
            RolledBack,
            "",
            "",
        ),
        (
            "ready",
            Some(How::Says("arrival.stuck", FaultKind::InDoubt)),
            InDoubt,
            "cleaning up",
            "",
        ),
        (
            "ready",
            Some(How::Says("engine.failed", environment)),
            RolledBack,
            "cleaning up",
            "",
        ),
        ("ready", Some(How::Lost), RolledBack, "", "cleans up by itself"),
        ("adopt", Some(How::Lost), InDoubt, "may run the container too", ""),
    ] {
        for kind in [FaultKind::Environment, FaultKind::Bug] {
            let world = world(&stateless(), |_| {});
            world.link.on(failing, 0..EVER, How::Says("some.fault", kind));
            if let Some(discard) = discard {
                world.link.on("discard", 0..EVER, discard);
            }
            let record = world.run().await;
            let what = format!("{failing} {discard:?} {kind:?}: {:?}", record.fault);
            let doubted = state == InDoubt;
            let expected = match (doubted, kind) {
                (true, _) => FaultKind::InDoubt,
                (false, FaultKind::Bug) => FaultKind::Bug,
                (false, _) => FaultKind::RolledBack,
            };
            let fault = record.fault.clone().unwrap();
            assert_eq!((record.state, code(&record)), (state, "some.fault"), "{what}");
            assert_eq!(fault.kind, expected, "{what}");
            assert_eq!(fault.container.as_deref(), Some("web"), "{what}");
            assert_eq!(fault.causes.len(), usize::from(!cause.is_empty()), "{what}");
            assert!(cause.is_empty() || caused(&record, cause), "{what}");
            assert_eq!(
                world.told.warnings(""),
                usize::from(!warning.is_empty()),
                "{what}"
            );
            assert!(warning.is_empty() || world.told.warnings(warning) == 1, "{what}");
            assert!(is(&world.here(), RUNS), "{what}");
            // Only one that was stopped is started, and only that one was away.
            let stopped = failing == "adopt";
            assert_eq!(world.asked_here("start"), usize::from(stopped), "{what}");
            assert_eq!(record.downtime_ms.is_some(), stopped, "{what}");
            assert_eq!(world.link.count("discard"), 1, "{what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stateless_source_that_does_not_start_again_is_a_doubt() {
    let clean = world(&stateless(), |_| {});
    let _ = clean.run().await;
    let stop = clean.source.calls().iter().position(|c| *c == "stop").unwrap();
    let world = world(&stateless(), |_| {});
    let fails: Vec<_> = (stop + 1..stop + 200).map(|n| (n, Failure::Before)).collect();
    world.source.fail(&fails);
    world
        .link
        .on("adopt", 0..EVER, How::Says("some.fault", FaultKind::Environment));
    let record = world.run().await;
    assert_eq!(
        (record.state, code(&record)),
        (DepartureState::NotResumed, "source.not-resumed")
    );
    assert_eq!(record.fault.as_ref().unwrap().kind, FaultKind::InDoubt);
    assert!(caused(&record, "as it was told"), "{:?}", record.fault);
}

#[tokio::test(start_paused = true)]
async fn a_stateless_call_is_repeated_while_the_link_is_lost_and_for_no_other_reason() {
    for call in ["start", "ready", "adopt"] {
        for how in [How::Lost, How::Deaf] {
            let world = world(&stateless(), |_| {});
            world.link.on(call, 0..2, how);
            let begun = tokio::time::Instant::now();
            let record = world.run().await;
            assert_eq!(record.state, DepartureState::Complete, "{call} {how:?}");
            assert_eq!(world.link.count(call), 3);
            assert_eq!(world.told.warnings("lost the destination"), 1);
            assert!(begun.elapsed().as_millis() >= 1_000);
        }
        let world = self::world(&stateless(), |_| {});
        world.link.on(call, 0..EVER, How::Lost);
        let record = world.run().await;
        assert_eq!(
            (record.state, code(&record)),
            (DepartureState::RolledBack, "wire.lost")
        );
        assert_eq!(world.link.count(call), PATIENTLY, "{call}");
        assert_eq!(world.told.warnings("lost the destination"), 1);
        let world = self::world(&stateless(), |_| {});
        world
            .link
            .on(call, 0..1, How::Says("some.fault", FaultKind::Environment));
        let record = world.run().await;
        assert_eq!(record.state, DepartureState::RolledBack);
        assert_eq!(world.link.count(call), 1, "{call}");
        assert_eq!(world.told.warnings("lost the destination"), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn who_would_be_gone_stops_last_and_who_is_kept_does_not_stop() {
    for (remove_itself, on_source) in [
        (false, OnSource::Stop),
        (true, OnSource::Stop),
        (false, OnSource::Keep),
        (true, OnSource::Keep),
    ] {
        let options = MoveOptions {
            on_source,
            ..stateless()
        };
        let fails = world(&options, |s| s.auto_remove = remove_itself);
        fails
            .link
            .on("adopt", 0..1, How::Says("some.fault", FaultKind::Environment));
        let record = fails.run().await;
        assert_eq!(record.state, DepartureState::RolledBack);
        let stopped_first = on_source == OnSource::Stop && !remove_itself;
        assert_eq!(fails.asked_here("stop"), usize::from(stopped_first));
        assert!(is(&fails.here(), RUNS));

        let goes = world(&options, |s| s.auto_remove = remove_itself);
        let record = goes.run().await;
        assert_eq!(record.state, DepartureState::Complete);
        let stops = on_source == OnSource::Stop;
        assert_eq!(goes.asked_here("stop"), usize::from(stops));
        assert_eq!(goes.source.all().is_empty(), stops && remove_itself);
        assert_eq!(goes.told.warnings(""), 0);
        assert_eq!(record.downtime_ms, None);
    }
    // One that cannot be stopped after the hand-over is said, and no failure.
    let clean = world(&stateless(), |s| s.auto_remove = true);
    let _ = clean.run().await;
    let stop = clean.source.calls().iter().position(|c| *c == "stop").unwrap();
    let world = world(&stateless(), |s| s.auto_remove = true);
    world.source.fail(&[(stop, Failure::Before)]);
    let record = world.run().await;
    assert_eq!(record.state, DepartureState::Complete);
    assert_eq!(world.told.warnings("two instances run"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_the_engine_took_away_by_itself_has_stopped() {
    for remove_itself in [true, false] {
        let world = world(&stateless(), |s| {
            s.auto_remove = remove_itself;
            if remove_itself {
                // Engines allow no other.
                s.restart_policy = RestartPolicy::never();
            }
        });
        let (engine, id) = (world.source.clone(), world.plan.spec().id.clone());
        world.told.listen(move |event| {
            if matches!(
                event,
                Event::PhaseStarted {
                    phase: Phase::HandOver
                }
            ) {
                let gone = tranship_core::Engine::remove_container(engine.as_ref(), &id);
                futures_util::FutureExt::now_or_never(gone).unwrap().unwrap();
            }
        });
        let record = world.run().await;
        let expected = if remove_itself {
            DepartureState::Complete
        } else {
            DepartureState::NotResumed
        };
        assert_eq!(record.state, expected);
        assert_eq!(world.told.warnings(""), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_last_record_of_a_stateless_move_that_is_not_saved_is_said() {
    let world = world(&stateless(), |_| {});
    *world.disk.refuses.lock().unwrap() = vec![(DepartureState::Complete, 1)];
    let record = world.run().await;
    assert_eq!(record.state, DepartureState::Complete);
    assert_eq!(world.told.warnings("the last record was not saved"), 1);
    assert_eq!(*world.disk.shown.lock().unwrap(), [DepartureState::Complete]);
    assert!(record.total_ms >= 1_500, "it had to stay up there");
}

#[tokio::test(start_paused = true)]
async fn a_committed_source_asks_until_it_is_answered() {
    for mode in [ModeRequest::Cold, ModeRequest::Warm] {
        for call in ["start", "ready", "adopt"] {
            for how in [How::Lost, How::Deaf] {
                let world = world(&options(mode), |_| {});
                world.link.on(call, 0..3, how);
                let record = world.run().await;
                let what = format!("{mode:?} {call} {how:?}");
                assert_eq!(record.state, DepartureState::Complete, "{what}");
                assert_eq!(world.link.count(call), 4, "{what}");
                assert_eq!(world.told.warnings("lost the destination"), 1, "{what}");
                assert_eq!(world.told.endings(), [None], "{what}");
                // Half a second for each time, until it runs there.
                let away = if call == "start" { 1_500 } else { 0 };
                assert_eq!(record.downtime_ms, Some(away), "{what}");
                assert!(!record.proved_healthy);
                let there = world.destination.all().into_iter().find(|c| c.spec.name == "web");
                assert_eq!(
                    record.destination_container,
                    there.map(|c| c.spec.id.to_string()),
                    "{what}"
                );
            }
        }
        // Each question is warned of by itself.
        let world = self::world(&options(mode), |_| {});
        for call in ["start", "ready", "adopt"] {
            world.link.on(call, 0..2, How::Lost);
        }
        assert_eq!(world.run().await.state, DepartureState::Complete);
        assert_eq!(world.told.warnings("lost the destination"), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_serves_from_when_its_health_is_known() {
    let world = world(&cold(), |_| {});
    world.destination.set_health(Health::Healthy);
    world.link.on("ready", 0..1, How::Takes(700));
    let record = world.run().await;
    assert_eq!(record.state, DepartureState::Complete);
    assert_eq!((record.downtime_ms, record.proved_healthy), (Some(700), true));
    let took = |phase| {
        let found = record.phases.iter().find(|p| p.phase == phase);
        found.map(|p| (p.begun_ms, p.took_ms))
    };
    assert_eq!(took(Phase::Health), Some((0, 700)));
    assert_eq!(took(Phase::HandOver), Some((700, 0)));
    assert_eq!(record.total_ms, 700);
}

#[tokio::test(start_paused = true)]
async fn a_doubt_is_said_once_and_saved_and_ends_when_the_answer_comes() {
    let environment = FaultKind::Environment;
    for (how, times, after_ms, text) in [
        (How::Lost, 100, 15_000, "cannot be reached"),
        (
            How::Says("arrival.unknown", environment),
            5,
            0,
            "has lost its records",
        ),
    ] {
        let world = world(&cold(), |_| {});
        world.link.on("start", 0..times, how);
        let begun = tokio::time::Instant::now();
        let (sender, receiver) = std::sync::mpsc::channel();
        world.told.listen(move |event| {
            if matches!(event, Event::Finished { .. }) {
                sender.send(begun.elapsed().as_millis()).unwrap();
            }
        });
        let record = world.run().await;
        assert_eq!(
            (record.state, &record.fault),
            (DepartureState::Complete, &None),
            "{how:?}"
        );
        let endings = world.told.endings();
        assert_eq!(endings.len(), 2, "{how:?}: {endings:?}");
        assert_eq!(receiver.try_iter().next(), Some(after_ms), "{how:?}");
        let doubt = endings[0].clone().unwrap();
        assert_eq!(
            (doubt.code.as_str(), doubt.kind),
            ("migrate.in-doubt", FaultKind::InDoubt)
        );
        assert!(doubt.message.contains(text), "{doubt}");
        assert_eq!(
            (doubt.container.as_deref(), doubt.node.as_deref()),
            (Some("web"), Some("b"))
        );
        assert!(doubt.hint.is_some() && !doubt.causes.is_empty());
        let saved = world.disk.departures.lock().unwrap().clone();
        let doubts = saved.iter().filter(|r| r.state == DepartureState::InDoubt);
        assert_eq!(doubts.count(), 1, "{how:?}");
    }
    // A container that the destination cannot give back.
    let world = world(&cold(), |_| {});
    world.link.on("start", 0..1, How::Says("some.fault", environment));
    world
        .link
        .on("discard", 0..2, How::Says("arrival.stuck", FaultKind::InDoubt));
    let record = world.run().await;
    assert_eq!(
        (record.state, code(&record)),
        (DepartureState::RolledBack, "some.fault")
    );
    let doubt = world.told.endings()[0].clone().unwrap();
    assert!(
        doubt.message.contains("could not give the container back"),
        "{doubt}"
    );
    assert_eq!(world.link.count("discard"), 3);
    assert!(is(&world.here(), RUNS));
    // A doubt that cannot be saved is said all the same.
    let world = self::world(&cold(), |_| {});
    *world.disk.refuses.lock().unwrap() = vec![(DepartureState::InDoubt, 1)];
    world.link.on("start", 0..40, How::Lost);
    assert_eq!(world.run().await.state, DepartureState::Complete);
    assert_eq!(world.told.warnings("the record was not saved"), 1);
    assert_eq!(*world.disk.shown.lock().unwrap(), [DepartureState::InDoubt]);
    assert_eq!(world.told.endings().len(), 2);
}
