//! How many rounds there are, what they count, when they are tried again; images, hooks and memory on their way.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may panic as tests do"
)]

#[path = "../harness/mod.rs"]
mod harness;
mod live;
mod members;
mod ways;

use std::collections::BTreeSet;
use std::time::Duration;

use harness::link::{How, World, group, options, world};
use harness::mount;
use tranship_core::container::{ContainerState, MountKind, RestartPolicy};
use tranship_core::engine::ExecOutcome;
use tranship_core::event::{Event, Phase};
use tranship_core::fault::FaultKind;
use tranship_core::storage::{Compression, ElementAt, ElementRoute, SyncOptions};
use tranship_core::{ContainerId, ContainerSpec};
use tranship_migrate::departure::{NOT_DUMPED, resume};
use tranship_migrate::options::{Hook, HookPlace, HookTime, ModeRequest, MoveOptions, OnSource};
use tranship_migrate::record::{DepartureRecord, DepartureState};
use tranship_testkit::memory::{self, Failure};

const EVER: usize = 1_000_000;

fn cold() -> MoveOptions {
    options(ModeRequest::Cold)
}

fn code(record: &DepartureRecord) -> &str {
    record.fault.as_ref().map_or("", |f| f.code.as_str())
}

fn with_volume(spec: &mut ContainerSpec) {
    spec.mounts.push(mount(MountKind::Volume, "data", "/data"));
}

fn at_volume() -> ElementAt {
    ElementAt::Volume { name: "data".into() }
}

/// Rounds that take so long, the last one ever after; how many there are while the source runs, and how it ends.
async fn copies(options: &MoveOptions, durations: &[u64]) -> (usize, DepartureRecord) {
    let world = world(options, |_| {});
    for (number, ms) in durations.iter().enumerate() {
        let end = if number + 1 == durations.len() {
            EVER
        } else {
            number + 1
        };
        world.link.on("element 0", number..end, How::Takes(*ms));
    }
    let record = world.run().await;
    let live = record.rounds.iter().filter(|r| !r.frozen).count();
    (live, record)
}

#[tokio::test(start_paused = true)]
async fn there_are_as_many_rounds_as_shorten_the_freeze() {
    for (durations, rounds) in [
        // What is short already gains nothing.
        (&[100][..], 1),
        (&[150], 1),
        (&[1_000, 150], 2),
        (&[151, 100], 2),
        // The second is made whatever the first took; later ones while they get shorter.
        (&[1_000, 900], 3),
        (&[1_000, 2_000], 3),
        (&[1_000, 500, 200, 100], 4),
        (&[1_000, 800, 560], 3),
        (&[1_000, 800, 559, 391, 391], 5),
        // Six at most.
        (&[51_200, 25_600, 12_800, 6_400, 3_200, 1_600, 800, 400], 6),
    ] {
        let (live, record) = copies(&cold(), durations).await;
        assert_eq!(record.state, DepartureState::Complete, "{durations:?}");
        assert_eq!(live, rounds, "{durations:?}");
        let took: Vec<u64> = record.rounds.iter().map(|r| r.took_ms).collect();
        let expected = durations
            .iter()
            .chain(std::iter::repeat(durations.last().unwrap()));
        let mut expected: Vec<u64> = expected.take(rounds).copied().collect();
        // The way of the last one was opened before it stood still.
        expected.push(0);
        assert_eq!(took, expected, "{durations:?}");
    }
    for (wished, live) in [(0, 0), (1, 1), (2, 2), (9, 9)] {
        let options = MoveOptions {
            rounds: Some(wished),
            ..cold()
        };
        let durations: Vec<u64> = (0..12).map(|n| 58_000 >> n).collect();
        let (rounds, record) = copies(&options, &durations).await;
        assert_eq!((rounds, record.state), (live, DepartureState::Complete));
        assert_eq!(record.predicted_downtime_ms.is_some(), wished > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_freeze_that_is_short_enough_begins_and_a_longer_one_does_not() {
    let at_most = |ms| MoveOptions {
        max_downtime_ms: Some(ms),
        ..cold()
    };
    // With nothing to send, the freeze is the look that the last round took, and 700 ms.
    for (most, durations, rounds, fits) in [
        (1_700, &[1_000][..], 2, true),
        (1_699, &[1_000], 3, false),
        (5_000, &[3_000, 1_000], 2, true),
        (1_200, &[3_000, 1_000, 500], 3, true),
        (1_199, &[3_000, 1_000, 500, 400], 4, true),
        // The first round says nothing of what changes.
        (700, &[1_000, 10], 2, false),
        (710, &[1_000, 10], 2, true),
        (700, &[100], 1, true),
        (699, &[100], 1, false),
    ] {
        let (live, record) = copies(&at_most(most), durations).await;
        let what = format!("{most} {durations:?}");
        assert_eq!(live, rounds, "{what}");
        let expected = if fits { "" } else { "precopy.not-converging" };
        assert_eq!(code(&record), expected, "{what}");
        if !fits {
            let fault = record.fault.unwrap();
            let asked = format!("{:.1} s", Duration::from_millis(most).as_secs_f64());
            assert!(fault.message.contains(&asked), "{fault}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_travels_is_counted_by_round_by_phase_and_in_all() {
    let world = world(&cold(), with_volume);
    let storage = world.source.storage();
    let data = World::path_of(&world.source, &at_volume());
    let layer = ElementAt::Layer {
        container: world.plan.spec().id.clone(),
    };
    storage.put(&data, "rows", "one");
    storage.put(&data, "more", "four");
    storage.put(World::path_of(&world.source, &layer), "etc/motd", "three");
    storage.on_round(&data, |round, contents| {
        contents.insert("rows".into(), format!("now {round}").into());
    });
    for element in ["element 0", "element 1"] {
        world.link.on(element, 0..EVER, How::Takes(1_000));
    }
    let record = world.run().await;
    assert_eq!(record.state, DepartureState::Complete);
    let counted: Vec<_> = record
        .rounds
        .iter()
        .map(|r| (r.frozen, r.entries, r.bytes, r.changed_entries, r.literal_bytes))
        .collect();
    assert_eq!(
        counted,
        [
            (false, 3, 12, 3, 12),
            (false, 3, 14, 1, 5),
            (false, 3, 14, 1, 5),
            (true, 3, 14, 1, 5),
        ]
    );
    assert!(record.rounds.iter().all(|r| r.wire_bytes > r.bytes));
    let of_phase = |phase| {
        let of: Vec<u64> = record
            .phases
            .iter()
            .filter(|p| p.phase == phase)
            .map(|p| p.bytes)
            .collect();
        of
    };
    let wire: Vec<u64> = record.rounds.iter().map(|r| r.wire_bytes).collect();
    assert_eq!(of_phase(Phase::Bulk), [wire[..3].iter().sum::<u64>()]);
    assert_eq!(of_phase(Phase::Delta), [wire[3]]);
    let image = of_phase(Phase::Image)[0];
    assert!(image > 0);
    assert_eq!(record.bytes_sent, image + wire.iter().sum::<u64>());
    assert_eq!(
        record.bytes_sent,
        record.phases.iter().map(|p| p.bytes).sum::<u64>()
    );
    // Live rounds go one after the other; the frozen ones have met the destination before, side by side.
    let took: Vec<u64> = record.rounds.iter().map(|r| r.took_ms).collect();
    assert_eq!(took, [2_000, 2_000, 2_000, 0]);
    let bulk = record.phases.iter().find(|p| p.phase == Phase::Bulk).unwrap();
    assert_eq!(bulk.took_ms, 7_000);
    let durable: Vec<_> = storage
        .rounds()
        .iter()
        .map(|(_, o)| (o.frozen, o.durable))
        .collect();
    assert_eq!(durable.iter().filter(|o| **o == (false, false)).count(), 6);
    assert_eq!(durable.iter().filter(|o| **o == (true, true)).count(), 2);
}

fn progress(world: &World, of: Phase) -> Vec<(u64, Option<u64>)> {
    let events = world.told.0.lock().unwrap();
    let moved = |e: &Event| match e {
        Event::Progress { phase, bytes, total } if *phase == of => Some((*bytes, *total)),
        _ => None,
    };
    events.iter().filter_map(moved).collect()
}

#[tokio::test(start_paused = true)]
async fn progress_is_said_now_and_then_and_adds_up() {
    for (ms, said) in [(1_000, true), (100, true), (99, false), (0, false)] {
        let mut world = world(&cold(), with_volume);
        world.plan.prediction.data_bytes = 77;
        let world = World::of(world.source, world.destination, world.plan);
        let storage = world.source.storage();
        let layer = ElementAt::Layer {
            container: world.plan.spec().id.clone(),
        };
        storage.put(World::path_of(&world.source, &at_volume()), "rows", "one");
        storage.put(World::path_of(&world.source, &layer), "etc/motd", "three");
        world.link.on("element 0", 0..1, How::Takes(ms));
        world.link.on("element 1", 0..1, How::Takes(ms));
        let record = world.run().await;
        assert_eq!(record.state, DepartureState::Complete);
        let expected: &[(u64, Option<u64>)] = match (said, ms) {
            (true, _) => &[(3, Some(77)), (8, Some(77))],
            // Only after a while.
            (_, 99) => &[(8, Some(77))],
            _ => &[],
        };
        let first_round = progress(&world, Phase::Bulk);
        assert_eq!(first_round, expected, "{ms}");
    }
    // Later rounds have no total, nor has a first one of which nothing is known.
    let world = world(&cold(), |_| {});
    world.link.on("element 0", 0..EVER, How::Takes(1_000));
    let record = world.run().await;
    assert_eq!(record.rounds.len(), 4);
    assert_eq!(progress(&world, Phase::Bulk), [(0, None); 3]);
    let mut world = self::world(&cold(), |_| {});
    world.plan.prediction.data_bytes = 1;
    let world = World::of(world.source, world.destination, world.plan);
    world.link.on("element 0", 0..EVER, How::Takes(1_000));
    let _ = world.run().await;
    assert_eq!(
        progress(&world, Phase::Bulk),
        [(0, Some(1)), (0, None), (0, None)]
    );
    // The way of the last one was open already.
    assert_eq!(progress(&world, Phase::Delta), []);
}

#[tokio::test(start_paused = true)]
async fn the_round_of_the_freeze_begins_before_it() {
    let once = MoveOptions {
        rounds: Some(1),
        ..cold()
    };
    // Whatever keeps it from beginning is no reason to stand still.
    let environment = FaultKind::Environment;
    for how in [How::Lost, How::Says("content.disk-full", environment)] {
        let world = world(&once, |_| {});
        world.link.on("element 0", 1..EVER, how);
        let record = world.run().await;
        assert_eq!(record.state, DepartureState::RolledBack, "{how:?}");
        assert!(!world.source.calls().contains(&"stop"), "{how:?}");
    }
    let world = world(&once, |_| {});
    world.link.on("element 0", 1..4, How::Lost);
    let record = world.run().await;
    assert_eq!(record.state, DepartureState::Complete);
    assert_eq!(world.link.count("element 0"), 5);
    let said = world.source.storage().calls();
    let rounds: Vec<_> = said.iter().filter(|call| **call != "source").collect();
    assert_eq!(rounds, [&"source round", &"source meet", &"source round"]);
    // A destination that does not answer is not waited for without end, and whoever gives up not at all.
    let world = self::world(&once, |_| {});
    world.link.on("element 0", 1..EVER, How::Takes(10_000_000));
    let record = world.run().await;
    assert_eq!(code(&record), "wire.silent");
    assert!(!world.source.calls().contains(&"stop"));
    let world = self::world(&once, |_| {});
    world.link.on("element 0", 1..EVER, How::Takes(10_000_000));
    let cancel = world.cancel.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(5)).await;
        cancel.send_replace(true);
    });
    let begun = tokio::time::Instant::now();
    let record = world.run().await;
    assert_eq!(code(&record), "migrate.aborted");
    assert!(begun.elapsed() < Duration::from_secs(6));
    // Where nothing is read while it runs, nothing is met.
    let never = MoveOptions {
        rounds: Some(0),
        ..cold()
    };
    let world = self::world(&never, |_| {});
    assert_eq!(world.run().await.state, DepartureState::Complete);
    assert!(!world.source.storage().calls().contains(&"source meet"));
}

#[tokio::test(start_paused = true)]
async fn a_round_whose_link_is_lost_is_made_again_for_a_while() {
    let environment = FaultKind::Environment;
    for how in [How::Lost, How::Says("content.link-lost", environment)] {
        let world = world(&cold(), |_| {});
        world.link.on("element 0", 0..3, how);
        let record = world.run().await;
        assert_eq!(record.state, DepartureState::Complete, "{how:?}");
        assert_eq!(world.told.warnings("lost the destination"), 1, "{how:?}");
        assert_eq!(record.rounds[0].took_ms, 1_500, "{how:?}");

        let world = self::world(&cold(), |_| {});
        world.link.on("element 0", 0..EVER, how);
        let record = world.run().await;
        let fault = record.fault.clone().unwrap();
        // Twice a second for fifteen seconds.
        assert_eq!(world.link.count("element 0"), 31, "{how:?}");
        assert_eq!(world.told.warnings("lost the destination"), 1, "{how:?}");
        assert_eq!(record.state, DepartureState::RolledBack);
        assert_eq!(fault.node.as_deref(), Some("b"), "{how:?}");
        assert!(fault.message.starts_with("the container's layer: "), "{fault}");
    }
    for (code, node) in [
        ("wire.lost", "b"),
        ("arrival.order", "b"),
        ("storage.failed", "a"),
    ] {
        let world = world(&cold(), |_| {});
        if code != "wire.lost" {
            world.link.on("element 0", 0..EVER, How::Says(code, environment));
        } else {
            world.link.on("element 0", 0..EVER, How::Lost);
        }
        let record = world.run().await;
        assert_eq!(self::code(&record), code);
        assert_eq!(record.fault.unwrap().node.as_deref(), Some(node));
        let calls = if code == "wire.lost" { 31 } else { 1 };
        assert_eq!(world.link.count("element 0"), calls, "{code}");
    }
    // Whoever gives up does not wait for it.
    let world = world(&cold(), |_| {});
    world.link.on("element 0", 0..EVER, How::Lost);
    let cancel = world.cancel.clone();
    world.told.listen(move |event| {
        if matches!(event, Event::Warning { .. }) {
            cancel.send_replace(true);
        }
    });
    let record = world.run().await;
    assert_eq!(code(&record), "migrate.aborted");
    assert!(world.link.count("element 0") <= 2);
}

#[tokio::test(start_paused = true)]
async fn an_element_that_only_the_engine_reaches_is_read_while_nothing_changes() {
    let world = world(&cold(), with_volume);
    let storage = world.source.storage();
    storage.put(World::path_of(&world.source, &at_volume()), "rows", "one");
    world.source.set_indirect(true);
    let record = world.run().await;
    let live = record.rounds.iter().filter(|r| !r.frozen).count();
    assert_eq!(live, 0, "{:?}", record.fault);
    // What the engine made for reading is gone, whatever became of it.
    let helpers = world
        .source
        .all()
        .into_iter()
        .filter(|c| c.spec.name.contains("helper"));
    assert_eq!(helpers.count(), 0);
    assert!(world.asked_here("release") > 0);
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_only_the_engine_reaches_is_not_read() {
    let world = world(&cold(), |_| {});
    world.source.set_indirect(true);
    assert_eq!(code(&world.run().await), "layer.route");
}

#[tokio::test(start_paused = true)]
async fn a_tmpfs_is_filled_while_the_container_waits_for_it() {
    let options = MoveOptions {
        include_tmpfs: vec!["/scratch".into()],
        hooks: vec![Hook {
            when: HookTime::PostStart,
            place: HookPlace::Container,
            command: "look".into(),
            timeout: 5,
        }],
        ..self::options(ModeRequest::Warm)
    };
    let scratch = |spec: &mut ContainerSpec| spec.mounts.push(mount(MountKind::Tmpfs, "", "/scratch"));
    let filled = |world: &World| {
        let at = ElementAt::Tmpfs {
            container: world.plan.spec().id.clone(),
            path: "/scratch".into(),
        };
        let path = World::path_of(&world.source, &at);
        world.source.storage().put(path, "lock", "mine");
    };
    // A container that went on is neither filled nor paused again because its answer was lost.
    for deaf in [None, Some("start"), Some("go on")] {
        let world = world(&options, scratch);
        filled(&world);
        if let Some(call) = deaf {
            world.link.on(call, 0..1, How::Deaf);
        }
        let record = world.run().await;
        let what = format!("{deaf:?}: {:?}", record.fault);
        assert_eq!(record.state, DepartureState::Complete, "{what}");
        let there = world.destination.all().remove(0);
        assert_eq!(there.state, ContainerState::Running, "{what}");
        let at = ElementAt::Tmpfs {
            container: there.spec.id,
            path: "/scratch".into(),
        };
        let path = World::path_of(&world.destination, &at);
        let held = world.destination.storage().get(path).unwrap_or_default();
        assert_eq!(held.get("lock").map(Vec::as_slice), Some(&b"mine"[..]), "{what}");
        let calls = world.destination.calls();
        let first = |name: &str| calls.iter().position(|c| *c == name).unwrap();
        assert!(first("start") < first("pause") && first("pause") < first("unpause"));
        assert!(
            first("unpause") < first("exec"),
            "nothing looks before it goes on"
        );
        assert_eq!(calls.iter().filter(|c| **c == "pause").count(), 1, "{what}");
        assert_eq!(calls.iter().filter(|c| **c == "unpause").count(), 1, "{what}");
        if deaf.is_none() {
            assert_eq!(world.destination.execs().len(), 1);
            // It holds what travels until it has.
            assert_eq!(world.asked_here("kill"), 2, "right after, and at the release");
        }
        let image = record.phases.iter().find(|p| p.phase == Phase::Image).unwrap();
        let rounds: u64 = record.rounds.iter().map(|r| r.wire_bytes).sum();
        assert!(record.bytes_sent > image.bytes + rounds, "memory counts as well");
    }
    // Without one nothing waits.
    let plain = MoveOptions {
        include_tmpfs: Vec::new(),
        ..options
    };
    let world = world(&plain, scratch);
    assert_eq!(world.run().await.state, DepartureState::Complete);
    assert!(!world.destination.calls().contains(&"pause"));
    assert_eq!(world.link.count("go on"), 0);
    assert_eq!(world.destination.execs().len(), 1);
}
