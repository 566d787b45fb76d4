//! What a source makes of answers that are final, of orders in doubt, and of records that are not saved.

use super::*;

#[tokio::test(start_paused = true)]
async fn what_the_destination_said_for_good_ends_the_asking() {
    let says = |code| How::Says(code, FaultKind::Environment);
    for call in ["start", "ready", "adopt"] {
        let world = world(&cold(), |_| {});
        world.link.on(call, 0..1, says("arrival.adopted"));
        let record = world.run().await;
        assert_eq!((record.state, &record.fault), (DepartureState::Complete, &None));
        assert!(is(&world.here(), STOPPED));
        let world = self::world(&cold(), |_| {});
        world.link.on(call, 0..1, says("arrival.discarded"));
        let record = world.run().await;
        assert_eq!(
            (record.state, code(&record)),
            (DepartureState::RolledBack, "arrival.discarded")
        );
        assert!(is(&world.here(), RUNS));
        assert_eq!(world.link.count("discard"), 0, "it has");
        for kind in [FaultKind::Environment, FaultKind::Bug] {
            let world = self::world(&cold(), |_| {});
            world.link.on(call, 0..1, How::Says("some.fault", kind));
            let record = world.run().await;
            let expected = match kind {
                FaultKind::Bug => FaultKind::Bug,
                _ => FaultKind::RolledBack,
            };
            assert_eq!(code(&record), "some.fault");
            assert_eq!(record.fault.unwrap().kind, expected);
            assert!(world.destination.all().is_empty());
            // The way back is one phase, from its beginning to its end.
            let phases: Vec<_> = record.phases.iter().map(|p| p.phase).collect();
            let back = phases.iter().filter(|p| **p == Phase::Rollback).count();
            assert_eq!(back, 1, "{phases:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_person_may_order_while_it_is_in_doubt() {
    for (order, lost, state, expected) in [
        (
            Order::GoBack,
            false,
            DepartureState::RolledBack,
            "migrate.aborted",
        ),
        (
            Order::Resolve(Owner::Source),
            true,
            DepartureState::RolledBack,
            "migrate.resolved",
        ),
        (
            Order::Resolve(Owner::Destination),
            true,
            DepartureState::Complete,
            "",
        ),
    ] {
        let world = world(&cold(), |_| {});
        world.link.on("start", 0..EVER, How::Lost);
        if lost {
            world.link.on("discard", 0..EVER, How::Lost);
        }
        let orders = world.orders.clone();
        world.told.listen(move |event| {
            if matches!(event, Event::Finished { fault: Some(f) } if f.code == "migrate.in-doubt") {
                orders.send_replace(Some(order));
            }
        });
        let record = world.run().await;
        assert_eq!((record.state, code(&record)), (state, expected), "{order:?}");
        let back = state == DepartureState::RolledBack;
        assert!(is(&world.here(), if back { RUNS } else { STOPPED }), "{order:?}");
        assert_eq!(
            world.told.warnings("cleans up by itself"),
            usize::from(back && lost),
            "{order:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn before_the_commit_the_source_goes_back_whatever_the_destination_says() {
    let environment = FaultKind::Environment;
    for (discard, warning) in [
        (None, ""),
        (Some(How::Says("arrival.unknown", environment)), ""),
        (Some(How::Lost), "cleans up by itself"),
        (
            Some(How::Says("engine.failed", environment)),
            "cleaning up at the destination",
        ),
    ] {
        for call in ["open", "prepare", "create", "element 0"] {
            let world = world(&cold(), |_| {});
            world.link.on(call, 0..EVER, How::Says("some.fault", environment));
            if let Some(discard) = discard {
                world.link.on("discard", 0..EVER, discard);
            }
            let record = world.run().await;
            let what = format!("{call} {discard:?}");
            assert_eq!(
                (record.state, code(&record)),
                (DepartureState::RolledBack, "some.fault"),
                "{what}"
            );
            assert_eq!(world.link.count("discard"), 1, "{what}");
            assert_eq!(
                world.told.warnings(""),
                usize::from(!warning.is_empty()),
                "{what}"
            );
            assert!(warning.is_empty() || world.told.warnings(warning) == 1, "{what}");
            assert_eq!(
                caused(&record, "cleaning up"),
                warning.starts_with("cleaning"),
                "{what}"
            );
            // It was not stopped, so it is not started.
            assert_eq!(
                (world.asked_here("stop"), world.asked_here("start")),
                (0, 0),
                "{what}"
            );
            assert_eq!(record.downtime_ms, None, "{what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_left_at_the_destination_is_said() {
    let networked = |world: &World| {
        world
            .link
            .on("start", 0..1, How::Says("some.fault", FaultKind::Environment));
    };
    let clean = world(&cold(), |s| s.networks.push(harness::network()));
    networked(&clean);
    let _ = clean.run().await;
    let calls = clean.destination.calls();
    let remove = calls.iter().position(|c| *c == "remove network").unwrap();
    for stateful in [true, false] {
        let options = if stateful { cold() } else { stateless() };
        let world = world(&options, |s| s.networks.push(harness::network()));
        networked(&world);
        // The same calls come before it in either mode, but for what is written into elements.
        let calls = if stateful { remove..remove + 1 } else { 0..0 };
        let fails: Vec<_> = calls.map(|n| (n, Failure::Before)).collect();
        world.destination.fail(&fails);
        let record = world.run().await;
        assert_eq!(record.state, DepartureState::RolledBack);
        assert_eq!(
            world
                .told
                .warnings("left at the destination: the network \"back\""),
            usize::from(stateful)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn records_that_are_not_saved_end_it_before_the_commit_and_wait_after_it() {
    use DepartureState::{Committed, Complete, Frozen, HandedOver, Preparing, Returning, RolledBack};
    for (state, times, expected, waited_ms) in [
        (Preparing, 1, RolledBack, 0),
        (Frozen, 1, RolledBack, 0),
        (Committed, 1, RolledBack, 0),
        (HandedOver, 2, Complete, 6_000),
        (Complete, 3, Complete, 9_000),
    ] {
        let world = world(&cold(), |_| {});
        *world.disk.refuses.lock().unwrap() = vec![(state, times)];
        let begun = tokio::time::Instant::now();
        let record = world.run().await;
        let proof = if expected == Complete { 1_500 } else { 0 };
        let took = u64::try_from(begun.elapsed().as_millis()).unwrap();
        assert!(
            took >= waited_ms + proof && took < waited_ms + proof + 200,
            "{state:?} {took}"
        );
        assert_eq!(record.state, expected, "{state:?}");
        let back = expected == RolledBack;
        assert_eq!(code(&record), if back { "record.write" } else { "" }, "{state:?}");
        assert!(is(&world.here(), if back { RUNS } else { STOPPED }), "{state:?}");
        let last = !back;
        assert_eq!(
            world.told.warnings("the last record is not saved yet"),
            usize::from(last),
            "{state:?}"
        );
        let shown = match state {
            Preparing => vec![RolledBack],
            Complete => vec![Complete; times],
            _ => Vec::new(),
        };
        assert_eq!(*world.disk.shown.lock().unwrap(), shown, "{state:?}");
        let endings = if state == Complete { 2 } else { 1 };
        assert_eq!(world.told.endings().len(), endings, "{state:?}");
        assert_eq!(
            world.link.count("open"),
            usize::from(state != Preparing),
            "{state:?}"
        );
    }
    for state in [Returning, RolledBack] {
        let world = world(&cold(), |_| {});
        *world.disk.refuses.lock().unwrap() = vec![(state, 1)];
        world
            .link
            .on("start", 0..1, How::Says("some.fault", FaultKind::Environment));
        let record = world.run().await;
        assert_eq!((record.state, code(&record)), (RolledBack, "some.fault"));
        assert!(is(&world.here(), RUNS));
        assert_eq!(
            world.told.endings().len(),
            if state == RolledBack { 2 } else { 1 }
        );
    }
}

/// Everything stands still and has travelled.
fn is_end_of_delta(event: &Event) -> bool {
    matches!(
        event,
        Event::PhaseEnded {
            phase: Phase::Delta,
            ..
        }
    )
}

#[tokio::test(start_paused = true)]
async fn what_did_not_stand_still_is_not_committed() {
    let states = [
        ContainerState::Running,
        ContainerState::Restarting,
        ContainerState::Paused,
        ContainerState::Exited,
        ContainerState::Dead,
    ];
    for mode in [ModeRequest::Cold, ModeRequest::Warm] {
        for state in states {
            for restarted in [false, true] {
                let world = world(&options(mode), |_| {});
                let (engine, id) = (world.source.clone(), world.plan.spec().id.clone());
                world.told.listen(move |event| {
                    if is_end_of_delta(event) {
                        engine.alter(&id, |c| {
                            c.state = state;
                            if restarted {
                                c.spec.status.started_at = "later".into();
                            }
                        });
                    }
                });
                let record = world.run().await;
                let stood = !restarted
                    && match mode {
                        ModeRequest::Warm => state == ContainerState::Paused,
                        _ => matches!(state, ContainerState::Exited | ContainerState::Dead),
                    };
                let what = format!("{mode:?} {state} {restarted}");
                let expected = if stood {
                    (DepartureState::Complete, "")
                } else {
                    (DepartureState::RolledBack, "container.changed")
                };
                assert_eq!((record.state, code(&record)), expected, "{what}");
                let kills = match (mode, stood) {
                    // Before the commit, and once more at the release.
                    (ModeRequest::Warm, true) => 2,
                    _ => 0,
                };
                assert_eq!(world.asked_here("kill"), kills, "{what}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_removed_while_it_stood_still_is_not_handed_over() {
    let world = world(&options(ModeRequest::Warm), |_| {});
    let (engine, id) = (world.source.clone(), world.plan.spec().id.clone());
    world.told.listen(move |event| {
        if is_end_of_delta(event) {
            let gone = tranship_core::Engine::remove_container_only(engine.as_ref(), &id);
            futures_util::FutureExt::now_or_never(gone).unwrap().unwrap();
        }
    });
    let ended = tokio::time::timeout(std::time::Duration::from_secs(60), world.run()).await;
    // It cannot come back either, which is tried for ever.
    assert!(ended.is_err(), "{ended:?}");
    let said = world.told.endings()[0].clone().unwrap();
    assert_eq!(said.code, "source.not-resumed");
}
