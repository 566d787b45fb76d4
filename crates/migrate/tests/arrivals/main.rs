//! The destination's half by itself: what it makes, takes back, insists on, and answers in each of its states.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may panic as tests do"
)]

#[path = "../harness/mod.rs"]
mod harness;
mod making;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use harness::link::{Disk, World, group, options, world};
use harness::{mount, ports};
use tranship_core::container::{ContainerState, Health, MountKind, MountSpec, RestartPolicy};
use tranship_core::fault::FaultKind;
use tranship_core::storage::{ElementAt, ElementRoute};
use tranship_core::{ContainerId, ContainerSpec, Fault};
use tranship_migrate::Arrival;
use tranship_migrate::destination::{ArrivalState, UNKNOWN, link_lost, meaning};
use tranship_migrate::options::{ModeRequest, MoveOptions, VolumeConflict};
use tranship_migrate::plan::Plan;
use tranship_migrate::protocol::{Answer, Owner};
use tranship_migrate::record::{ArrivalRecord, Undo};
use tranship_testkit::memory::{self, Failure, MemoryEngine};

const STATES: [ArrivalState; 6] = [
    ArrivalState::Receiving,
    ArrivalState::Prepared,
    ArrivalState::Started,
    ArrivalState::Adopted,
    ArrivalState::Discarding,
    ArrivalState::Discarded,
];

/// An arrival whose image is here and whose containers are made.
async fn prepared(world: &World) {
    world.destination.add_image(&world.plan.transfer.image);
    world.arrival.open().await.unwrap();
    for member in 0..world.plan.members().len() {
        world.arrival.image(member, None).await.unwrap();
    }
    world.arrival.prepare().await.unwrap();
    world.arrival.create().await.unwrap();
}

fn code<T>(result: &Result<T, Fault>) -> &str {
    result.as_ref().err().map_or("", |fault| fault.code.as_str())
}

/// The arrival as an agent finds it that starts with this record.
fn found(world: &World, state: ArrivalState) -> Arrival {
    let record = ArrivalRecord {
        state,
        ..world.arrival.record()
    };
    Arrival::from_record(ports(&world.destination), world.disk.clone(), record)
}

fn count(engine: &MemoryEngine, call: &str) -> usize {
    engine.calls().iter().filter(|c| **c == call).count()
}

#[test]
fn what_a_destination_says_has_one_meaning() {
    let fault = |code: &str| Fault::new(code, FaultKind::Environment, "x");
    for (code, means, lost) in [
        ("arrival.adopted", Answer::Adopted, false),
        ("arrival.discarded", Answer::Discarded, false),
        (UNKNOWN, Answer::Unknown, false),
        ("arrival.stuck", Answer::Failed, false),
        ("wire.lost", Answer::Failed, true),
    ] {
        assert_eq!(
            (meaning(&fault(code)), link_lost(&fault(code))),
            (means, lost),
            "{code}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn each_state_answers_each_question_in_its_own_way() {
    use ArrivalState::{Adopted, Discarded, Discarding, Prepared, Started};
    for mode in [ModeRequest::Cold, ModeRequest::Stateless] {
        for state in STATES {
            let at = async || {
                let world = world(&options(mode), |_| {});
                prepared(&world).await;
                let arrival = found(&world, state);
                (world, arrival)
            };
            let what = format!("{mode:?} {state:?}");
            let over = matches!(state, Adopted | Discarded);
            let (_world, arrival) = at().await;
            assert_eq!(arrival.is_over(), over, "{what}");
            assert!(format!("{arrival:?}").contains(&format!("{state:?}")));
            let for_good = match state {
                Adopted => "arrival.adopted",
                Discarding | Discarded => "arrival.discarded",
                _ => "",
            };
            let order = |right: bool| match (for_good, right) {
                ("", false) => "arrival.order",
                (for_good, _) => for_good,
            };
            assert_eq!(
                code(&arrival.start().await),
                order(matches!(state, Prepared | Started)),
                "{what}"
            );
            let (_world, arrival) = at().await;
            let expected = match state {
                // It was told to start, and never did.
                Started => "health.timeout",
                _ => order(false),
            };
            assert_eq!(code(&arrival.ready().await), expected, "{what}");
            let (_world, arrival) = at().await;
            let expected = if state == Adopted {
                ""
            } else {
                order(state == Started)
            };
            assert_eq!(code(&arrival.adopt().await), expected, "{what}");
            let (world, arrival) = at().await;
            let expected = if state == Adopted { "arrival.adopted" } else { "" };
            assert_eq!(code(&arrival.discard().await), expected, "{what}");
            let left = if matches!(state, Adopted | Discarded) {
                1
            } else {
                0
            };
            assert_eq!(world.destination.all().len(), left, "{what}");
            // What is not under way any more takes nothing in.
            let (_world, arrival) = at().await;
            let closed = matches!(state, Discarding | Discarded);
            let expected = if closed { "arrival.discarded" } else { "" };
            assert_eq!(code(&arrival.open().await), expected, "{what}");
            assert_eq!(code(&arrival.image(0, None).await), expected, "{what}");
            assert_eq!(code(&arrival.prepare().await), expected, "{what}");
            assert_eq!(code(&arrival.go_on().await), expected, "{what}");
            if mode == ModeRequest::Cold {
                let expected = match (closed, state) {
                    (true, _) => "arrival.discarded",
                    (_, Prepared) => "",
                    _ => "arrival.order",
                };
                assert_eq!(code(&arrival.open_element(0).await), expected, "{what}");
                let (pipe, _other) = tokio::io::duplex(8);
                let taken = tokio::time::timeout(Duration::from_secs(1), arrival.element(0, Box::new(pipe)));
                match taken.await {
                    Ok(ended) => assert_eq!(code(&ended), expected, "{what}"),
                    Err(_) => assert_eq!(state, Prepared, "{what}: it waits for the source"),
                }
            }
            let (_world, arrival) = at().await;
            assert_eq!(
                code(&arrival.image(1, None).await),
                if closed {
                    "arrival.discarded"
                } else {
                    "request.invalid"
                },
                "{what}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_alone_ends_what_nobody_has_decided() {
    use ArrivalState::{Adopted, Discarded, Discarding, Prepared, Receiving, Started};
    for (mode, state, ends) in [
        (ModeRequest::Cold, Receiving, true),
        (ModeRequest::Cold, Prepared, true),
        (ModeRequest::Cold, Started, false),
        (ModeRequest::Cold, Adopted, false),
        (ModeRequest::Cold, Discarding, true),
        (ModeRequest::Cold, Discarded, false),
        (ModeRequest::Stateless, Receiving, true),
        (ModeRequest::Stateless, Prepared, true),
        // Two may run: the source serves.
        (ModeRequest::Stateless, Started, true),
        (ModeRequest::Stateless, Adopted, false),
        (ModeRequest::Stateless, Discarding, true),
        (ModeRequest::Stateless, Discarded, false),
    ] {
        let world = world(&options(mode), |_| {});
        prepared(&world).await;
        let arrival = found(&world, state);
        let what = format!("{mode:?} {state:?}");
        assert_eq!(arrival.ends_with_its_link(), ends, "{what}");
        let before = world.destination.inventory();
        arrival.alone().await.unwrap();
        let expected = if ends { Discarded } else { state };
        assert_eq!(arrival.record().state, expected, "{what}");
        assert_eq!(world.destination.all().is_empty(), ends, "{what}");
        if !ends {
            assert_eq!(world.destination.inventory(), before, "{what}");
        }
        // After a restart, what was told to start runs, and what was being taken away goes.
        let world = self::world(&options(mode), |_| {});
        prepared(&world).await;
        let arrival = found(&world, state);
        arrival.recover().await.unwrap();
        let runs = mode == ModeRequest::Cold && state == Started;
        let state_there = world.there().0;
        match state {
            Discarding => assert_eq!((state_there.as_str(), arrival.is_over()), ("", true), "{what}"),
            _ if runs => assert_eq!(state_there, "running", "{what}"),
            _ => assert_eq!(state_there, "created", "{what}"),
        }
    }
    // What could not be undone is to be tried again.
    let world = world(&options(ModeRequest::Cold), |_| {});
    prepared(&world).await;
    let calls = world.destination.calls().len();
    world.destination.fail(&[(calls, Failure::Before)]);
    let stuck = world.arrival.alone().await;
    assert_eq!(code(&stuck), "arrival.stuck");
    assert_eq!(stuck.unwrap_err().kind, FaultKind::InDoubt);
    assert_eq!(world.arrival.record().state, ArrivalState::Discarding);
    world.arrival.alone().await.unwrap();
    assert!(world.arrival.is_over() && world.destination.all().is_empty());
    // The same holds after a restart.
    let world = self::world(&options(ModeRequest::Cold), |_| {});
    prepared(&world).await;
    let arrival = found(&world, ArrivalState::Started);
    let calls = world.destination.calls().len();
    world.destination.fail(&[(calls, Failure::Before)]);
    assert_eq!(code(&arrival.recover().await), "engine.failed");
    arrival.recover().await.unwrap();
    assert_eq!(world.there().0, "running");
}

#[tokio::test(start_paused = true)]
async fn a_person_decides_what_is_not_decided_yet() {
    use ArrivalState::{Adopted, Discarded, Discarding, Prepared, Receiving, Started};
    for (state, to_source, to_destination) in [
        (Receiving, "", "arrival.order"),
        (Prepared, "", ""),
        (Started, "", ""),
        (Adopted, "arrival.adopted", ""),
        (Discarding, "", "arrival.discarded"),
        (Discarded, "", "arrival.discarded"),
    ] {
        for (owner, expected) in [(Owner::Source, to_source), (Owner::Destination, to_destination)] {
            let world = world(&options(ModeRequest::Cold), |_| {});
            prepared(&world).await;
            let arrival = found(&world, state);
            if state == Prepared {
                arrival.open_element(0).await.unwrap();
            }
            let what = format!("{state:?} {owner}");
            assert_eq!(code(&arrival.resolve(owner).await), expected, "{what}");
            if expected.is_empty() && state != Discarded && state != Adopted {
                match owner {
                    Owner::Source => assert!(world.destination.all().is_empty(), "{what}"),
                    Owner::Destination => {
                        assert_eq!(world.there(), ("running".into(), "always".into()), "{what}");
                        assert_eq!(arrival.record().state, Adopted, "{what}");
                    }
                }
            }
        }
    }
    // Only who gives it back breaks off what is under way.
    for (owner, breaks) in [(Owner::Source, true), (Owner::Destination, false)] {
        let world = world(&options(ModeRequest::Cold), |_| {});
        prepared(&world).await;
        let arrival = Arc::new(found(&world, Started));
        arrival.start().await.unwrap();
        let proving = tokio::spawn({
            let arrival = Arc::clone(&arrival);
            async move { arrival.ready().await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        arrival.resolve(owner).await.unwrap();
        let proved = proving.await.unwrap();
        assert_eq!(
            code(&proved) == "arrival.cancelled",
            breaks,
            "{owner}: {proved:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_insists_for_a_minute_where_going_back_would_lose_something() {
    let away =
        |from: usize, times: usize| -> Vec<_> { (from..from + times).map(|n| (n, Failure::After)).collect() };
    // Calls are repeated each 300 ms: 200 of them are a minute.
    for (times, ends) in [(0, ""), (5, ""), (200, ""), (201, "engine.uncertain")] {
        let world = world(&options(ModeRequest::Cold), |_| {});
        prepared(&world).await;
        let calls = world.destination.calls().len();
        world.destination.fail(&away(calls, times));
        let begun = tokio::time::Instant::now();
        assert_eq!(code(&world.arrival.start().await), ends, "{times}");
        let tries = u64::try_from(times.min(200)).unwrap();
        assert_eq!(begun.elapsed(), Duration::from_millis(300 * tries), "{times}");
        assert_eq!(count(&world.destination, "start"), times.min(200) + 1);
    }
    // One that refuses is not asked again to start, but to keep a policy.
    let world = world(&options(ModeRequest::Cold), |_| {});
    prepared(&world).await;
    let calls = world.destination.calls().len();
    world.destination.fail(&[(calls, Failure::Before)]);
    assert_eq!(code(&world.arrival.start().await), "engine.failed");
    world.arrival.start().await.unwrap();
    let calls = world.destination.calls().len();
    let refuses: Vec<_> = (calls..calls + 3).map(|n| (n, Failure::Before)).collect();
    world.destination.fail(&refuses);
    world.arrival.adopt().await.unwrap();
    assert_eq!(world.there(), ("running".into(), "always".into()));
    // A container that is gone will not have one.
    let world = self::world(&options(ModeRequest::Cold), |_| {});
    prepared(&world).await;
    world.arrival.start().await.unwrap();
    let id = world.destination.all().remove(0).spec.id;
    let gone = tranship_core::Engine::remove_container(world.destination.as_ref(), &id);
    gone.await.unwrap();
    let begun = tokio::time::Instant::now();
    assert_eq!(code(&world.arrival.adopt().await), "container.not-found");
    assert_eq!(begun.elapsed(), Duration::ZERO);
    // Whoever gives up does not wait.
    let world = self::world(&options(ModeRequest::Cold), |_| {});
    prepared(&world).await;
    let calls = world.destination.calls().len();
    world.destination.fail(&away(calls, 50));
    let arrival = Arc::clone(&world.arrival);
    let starting = tokio::spawn(async move { arrival.start().await });
    tokio::time::sleep(Duration::from_millis(700)).await;
    let arrival = Arc::clone(&world.arrival);
    let discarding = tokio::spawn(async move { arrival.discard().await });
    assert_eq!(code(&starting.await.unwrap()), "engine.uncertain");
    assert!(count(&world.destination, "start") <= 4);
    let _ = discarding.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_record_of_an_adoption_waits_for_room_and_others_do_not() {
    for (state, refuses, waits) in [
        (ArrivalState::Adopted, 5, true),
        (ArrivalState::Started, 1, false),
        (ArrivalState::Prepared, 1, false),
        (ArrivalState::Discarding, 1, false),
        (ArrivalState::Discarded, 1, false),
    ] {
        let world = world(&options(ModeRequest::Cold), |_| {});
        world.destination.add_image(&world.plan.transfer.image);
        world.arrival.open().await.unwrap();
        world.arrival.image(0, None).await.unwrap();
        *world.disk.refuses_there.lock().unwrap() = vec![(state, refuses)];
        let begun = tokio::time::Instant::now();
        let all = async {
            world.arrival.create().await?;
            world.arrival.start().await?;
            if matches!(state, ArrivalState::Discarding | ArrivalState::Discarded) {
                world.arrival.discard().await.map(|_| ())
            } else {
                world.arrival.adopt().await.map(|_| ())
            }
        };
        let done = all.await;
        assert_eq!(code(&done), if waits { "" } else { "record.write" }, "{state:?}");
        let waited = if waits { 1_500 } else { 0 };
        assert_eq!(begun.elapsed(), Duration::from_millis(waited), "{state:?}");
        let now = world.arrival.record().state;
        assert_eq!(now == state, waits, "{state:?}: what is not saved is not so");
        let saved = world.disk.arrivals.lock().unwrap().last().cloned().unwrap();
        assert_eq!(saved, world.arrival.record(), "{state:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_container_that_was_asked_for_is_the_one_that_is_named() {
    for health in [None, Some(Health::Healthy)] {
        let world = group(&options(ModeRequest::Cold), &["web", "worker"], |_| {});
        prepared(&world).await;
        world.arrival.start().await.unwrap();
        if let Some(health) = health {
            world.destination.set_health(health);
        }
        let proved = world.arrival.ready().await.unwrap();
        assert_eq!(proved.healthy, health.is_some());
        let adopted = world.arrival.adopt().await.unwrap();
        let web = world.destination.all().into_iter().find(|c| c.spec.name == "web");
        assert_eq!(proved.container_id, web.unwrap().spec.id.to_string());
        assert_eq!(adopted.container_id, proved.container_id);
    }
    // What ends while it proves itself is started again in its policy's place; where the source serves, it goes back.
    for (mode, expected) in [(ModeRequest::Cold, ""), (ModeRequest::Stateless, "health.exited")] {
        let world = world(&options(mode), |_| {});
        prepared(&world).await;
        world.arrival.start().await.unwrap();
        let id = world.destination.all().remove(0).spec.id;
        world.destination.alter(&id, |c| c.state = ContainerState::Exited);
        let proved = world.arrival.ready().await;
        assert_eq!(code(&proved), expected, "{mode:?}");
        if let Err(fault) = proved {
            assert_eq!(fault.container.as_deref(), Some("web"));
        }
    }
    // One that says it is unhealthy has the time that the user gave it.
    for (given, expected) in [(None, "health.unhealthy"), (Some(4_000), "health.timeout")] {
        let options = MoveOptions {
            health_timeout_ms: given,
            ..options(ModeRequest::Cold)
        };
        let world = world(&options, |_| {});
        prepared(&world).await;
        world.arrival.start().await.unwrap();
        world.destination.set_health(Health::Unhealthy);
        assert_eq!(code(&world.arrival.ready().await), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_that_waits_for_its_memory_is_not_started_by_a_restart() {
    let options = MoveOptions {
        include_tmpfs: vec!["/scratch".into()],
        ..options(ModeRequest::Warm)
    };
    let world = group(&options, &["web", "worker"], |s| {
        if s.name == "web" {
            s.mounts.push(mount(MountKind::Tmpfs, "", "/scratch"));
        }
    });
    prepared(&world).await;
    let arrival = found(&world, ArrivalState::Started);
    arrival.recover().await.unwrap();
    let of = |name| World::of_container(&world.destination, name).unwrap().0;
    assert_eq!((of("web"), of("worker")), ("created".into(), "running".into()));
    for _ in 0..2 {
        // Asked twice, it waits as before.
        arrival.start().await.unwrap();
        assert_eq!((of("web"), of("worker")), ("paused".into(), "running".into()));
        assert_eq!(count(&world.destination, "pause"), 1);
    }
    arrival.go_on().await.unwrap();
    assert_eq!((of("web"), of("worker")), ("running".into(), "running".into()));
    assert_eq!(count(&world.destination, "unpause"), 1);
    // What went on is not held up by a source that did not hear so, nor by one of its agent's ends.
    for arrival in [
        &arrival,
        &Arrival::from_record(ports(&world.destination), world.disk.clone(), arrival.record()),
    ] {
        arrival.start().await.unwrap();
        assert_eq!(of("web"), "running");
        arrival.go_on().await.unwrap();
        assert_eq!(
            (
                count(&world.destination, "pause"),
                count(&world.destination, "unpause")
            ),
            (1, 1)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_only_the_engine_reaches_is_not_written() {
    let world = world(&options(ModeRequest::Cold), |_| {});
    prepared(&world).await;
    let layer = |e: &tranship_migrate::elements::ElementPlan| matches!(e.at, ElementAt::Layer { .. });
    let index = world.plan.elements.iter().position(layer).unwrap();
    world.destination.set_indirect(true);
    assert_eq!(code(&world.arrival.open_element(index).await), "layer.route");
    world.destination.set_indirect(false);
    world.arrival.open_element(index).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_here_in_part_is_brought_and_is_not_taken_away() {
    let world = world(&options(ModeRequest::Cold), |_| {});
    let mut part = world.plan.transfer.image.clone();
    part.incomplete = true;
    world.destination.add_image(&part);
    let opened = world.arrival.open().await.unwrap();
    assert!(!opened[0].image_held);
    assert_eq!(code(&world.arrival.image(0, None).await), "image.missing");
    assert_eq!(world.arrival.record().undo, []);
}
