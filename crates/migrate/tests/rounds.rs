//! How many rounds there are, what they count, when they are tried again; images, hooks and memory on their way.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may panic as tests do"
)]

mod harness;

use std::time::Duration;

use harness::link::{How, World, group, options, world};
use tranship_core::container::{ContainerState, MountKind, MountSpec, RestartPolicy};
use tranship_core::engine::ExecOutcome;
use tranship_core::event::{Event, Phase};
use tranship_core::fault::FaultKind;
use tranship_core::storage::{Compression, ElementAt, ElementRoute, SyncOptions};
use tranship_core::{ContainerId, ContainerSpec};
use tranship_migrate::departure::resume;
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

fn mount(kind: MountKind, name: &str, path: &str) -> MountSpec {
    MountSpec {
        kind,
        name: name.into(),
        source: String::new(),
        destination: path.into(),
        driver: if kind == MountKind::Volume {
            "local".into()
        } else {
            String::new()
        },
        writable: true,
        anonymous: false,
    }
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
        let expected: Vec<u64> = expected.take(rounds + 1).copied().collect();
        assert_eq!(
            took, expected,
            "{durations:?}, and the last one while it stands still"
        );
    }
    for (wished, live) in [(0, 0), (1, 1), (2, 2), (9, 9)] {
        let options = MoveOptions {
            rounds: Some(wished),
            ..cold()
        };
        let durations: Vec<u64> = (0..12).map(|n| 4_000_000 >> n).collect();
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
    // Live rounds go one after the other, frozen ones side by side.
    let took: Vec<u64> = record.rounds.iter().map(|r| r.took_ms).collect();
    assert_eq!(took, [2_000, 2_000, 2_000, 1_000]);
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
    assert_eq!(progress(&world, Phase::Delta), [(0, None)]);
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

#[tokio::test(start_paused = true)]
async fn layers_that_are_gone_are_sent_after_all_and_nothing_else_is_sent_twice() {
    let environment = FaultKind::Environment;
    let held = |layers: usize, options: &MoveOptions| {
        let world = world(options, |_| {});
        if layers > 0 {
            world.destination.add_image(&memory::image("old:1", layers));
        }
        world
    };
    for (layers, whole, how, exports, skipped, ends) in [
        (0, false, None, 1, 0, ""),
        (2, false, None, 1, 2, ""),
        (2, true, None, 1, 0, ""),
        (2, false, Some(How::Says("some.fault", environment)), 2, 0, ""),
        (
            0,
            false,
            Some(How::Says("some.fault", environment)),
            1,
            0,
            "some.fault",
        ),
        (
            2,
            true,
            Some(How::Says("some.fault", environment)),
            1,
            0,
            "some.fault",
        ),
        (2, false, Some(How::Lost), 1, 2, "wire.lost"),
    ] {
        let options = MoveOptions {
            whole_image: whole,
            ..cold()
        };
        let world = held(layers, &options);
        if let Some(how) = how {
            world.link.on("image", 0..1, how);
        }
        let record = world.run().await;
        let what = format!("{layers} {whole} {how:?}");
        assert_eq!(code(&record), ends, "{what}");
        assert_eq!(world.asked_here("export image"), exports, "{what}");
        assert_eq!(record.plan.transfer.skip_layers, skipped, "{what}");
        assert_eq!(
            world.told.warnings("sending the whole image"),
            usize::from(exports == 2),
            "{what}"
        );
    }
    // Whoever gave up is not sent more.
    let world = held(2, &cold());
    world.link.on("image", 0..EVER, How::Takes(1_000));
    let cancel = world.cancel.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        cancel.send_replace(true);
    });
    let record = world.run().await;
    assert_eq!(code(&record), "migrate.aborted");
    assert_eq!(world.asked_here("export image"), 1);

    // An image that is there travels only when asked to.
    for whole in [false, true] {
        let options = MoveOptions {
            whole_image: whole,
            ..cold()
        };
        let world = self::world(&options, |_| {});
        world.destination.add_image(&world.plan.transfer.image);
        let record = world.run().await;
        assert_eq!(record.state, DepartureState::Complete);
        assert_eq!(world.asked_here("export image"), usize::from(whole));
        let imports = world.destination.calls();
        let imports = imports.iter().filter(|c| **c == "import image").count();
        assert_eq!(imports, usize::from(whole));
    }
}

#[tokio::test(start_paused = true)]
async fn the_bytes_of_an_image_are_said_as_they_go() {
    for ms in [1_000, 0] {
        let world = world(&cold(), |_| {});
        world.link.on("image", 0..1, How::Takes(ms));
        let record = world.run().await;
        assert_eq!(record.state, DepartureState::Complete);
        let said: Vec<u64> = progress(&world, Phase::Image).iter().map(|p| p.0).collect();
        let all = record
            .phases
            .iter()
            .find(|p| p.phase == Phase::Image)
            .unwrap()
            .bytes;
        assert_eq!(said.last(), Some(&all));
        // The engine gives it out in two parts, of which the second is one byte. The first comes at once.
        let expected = if ms > 0 { vec![all, all] } else { vec![all] };
        assert_eq!(said, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_that_two_of_them_share_travels_once() {
    for whole in [false, true] {
        let options = MoveOptions {
            whole_image: whole,
            ..cold()
        };
        let world = group(&options, &["web", "worker"], |_| {});
        let record = world.run().await;
        assert_eq!(record.state, DepartureState::Complete, "{:?}", record.fault);
        assert_eq!(world.link.count("image"), 2);
        assert_eq!(world.asked_here("export image"), 1, "{whole}");
        let running = |c: &memory::MemoryContainer| c.state == ContainerState::Running;
        assert_eq!(world.destination.all().iter().filter(|c| running(c)).count(), 2);
        // The one that was asked for is the one that is named.
        let web = world.destination.all().into_iter().find(|c| c.spec.name == "web");
        assert_eq!(record.destination_container, web.map(|c| c.spec.id.to_string()));
    }
}

#[tokio::test(start_paused = true)]
async fn policies_are_parked_where_there_are_any_and_before_anything_stops() {
    for (never, mode) in [
        (false, ModeRequest::Cold),
        (true, ModeRequest::Cold),
        (false, ModeRequest::Warm),
        (true, ModeRequest::Stateless),
    ] {
        let world = group(&options(mode), &["web", "worker"], |s| {
            if never {
                s.restart_policy = RestartPolicy::never();
            }
        });
        assert_eq!(world.run().await.state, DepartureState::Complete);
        let calls = world.source.calls();
        let at = |name: &str| {
            let all: Vec<usize> = (0..calls.len()).filter(|n| calls[*n] == name).collect();
            all
        };
        let stops = match mode {
            ModeRequest::Warm => at("pause"),
            _ => at("stop"),
        };
        assert_eq!(stops.len(), 2);
        let policies = at("set restart policy");
        assert_eq!(policies.len(), if never { 0 } else { 2 });
        assert!(policies.iter().all(|p| *p < stops[0]));
        let there = world.destination.calls();
        let given = there.iter().filter(|c| **c == "set restart policy").count();
        assert_eq!(given, if never { 0 } else { 2 });
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_released_is_said_and_left() {
    for (mode, on_source, failing, warning, left) in [
        (ModeRequest::Warm, OnSource::Stop, "", "", 1),
        (ModeRequest::Warm, OnSource::Remove, "", "", 0),
        (ModeRequest::Cold, OnSource::Remove, "", "", 0),
        (
            ModeRequest::Warm,
            OnSource::Remove,
            "kill",
            "could not be ended",
            1,
        ),
        (
            ModeRequest::Cold,
            OnSource::Remove,
            "remove container only",
            "could not be removed",
            1,
        ),
    ] {
        let options = MoveOptions {
            on_source,
            ..self::options(mode)
        };
        let clean = world(&options, |_| {});
        let _ = clean.run().await;
        let world = world(&options, |_| {});
        if !failing.is_empty() {
            let last = clean.source.calls().iter().rposition(|c| *c == failing).unwrap();
            world.source.fail(&[(last, Failure::Before)]);
        }
        let record = world.run().await;
        let what = format!("{mode:?} {on_source:?} {failing}");
        assert_eq!(record.state, DepartureState::Complete, "{what}");
        assert_eq!(world.source.all().len(), left, "{what}");
        assert_eq!(
            world.told.warnings(""),
            usize::from(!warning.is_empty()),
            "{what}"
        );
        assert!(world.told.warnings(warning) <= 1, "{what}");
        assert_eq!(
            world.asked_here("kill"),
            if mode == ModeRequest::Warm { 2 } else { 0 },
            "{what}"
        );
    }
    // The engine takes one that was made with --rm away by itself.
    let options = MoveOptions {
        on_source: OnSource::Remove,
        ..self::options(ModeRequest::Stateless)
    };
    let world = world(&options, |s| s.auto_remove = true);
    assert_eq!(world.run().await.state, DepartureState::Complete);
    assert_eq!(world.asked_here("remove container only"), 0);
    assert!(world.source.all().is_empty());
}

#[tokio::test(start_paused = true)]
async fn hooks_run_at_their_times_and_thaw_undoes_what_ran() {
    let hook = |when, place, command: &str| Hook {
        when,
        place,
        command: command.into(),
        timeout: 5,
    };
    let container = HookPlace::Container;
    let options = MoveOptions {
        hooks: vec![
            hook(HookTime::PreFreeze, container, "flush"),
            hook(HookTime::PreFreeze, container, "lock"),
            hook(HookTime::PostFreeze, HookPlace::Host, "snapshot"),
            hook(HookTime::PostStart, container, "warm up"),
            hook(HookTime::Thaw, container, "unlock"),
            hook(HookTime::Thaw, container, "unflush"),
        ],
        ..cold()
    };
    let ran = |world: &World| {
        let execs = world.source.execs();
        let commands: Vec<String> = execs.into_iter().map(|(_, c)| c).collect();
        commands
    };
    let fails = |engine: &memory::MemoryEngine, command: &str, exit_code| {
        engine.on_exec(
            command,
            ExecOutcome {
                exit_code,
                output: " it said no \n".into(),
            },
        );
    };
    let world = world(&options, |_| {});
    assert_eq!(world.run().await.state, DepartureState::Complete);
    assert_eq!(ran(&world), ["flush", "lock"]);
    let there: Vec<String> = world.destination.execs().into_iter().map(|(_, c)| c).collect();
    assert_eq!(there, ["warm up"]);

    // What fails before they ran has nothing to thaw.
    let world = self::world(&options, |_| {});
    world
        .link
        .on("prepare", 0..1, How::Says("some.fault", FaultKind::Environment));
    assert_eq!(world.run().await.state, DepartureState::RolledBack);
    assert_eq!(ran(&world), [""; 0]);

    for (exit_code, expected, text) in [
        (Some(3), "hook.failed", "ended with exit code 3"),
        (None, "hook.timeout", "did not end within 5 s"),
    ] {
        let world = self::world(&options, |_| {});
        fails(&world.source, "flush", exit_code);
        let record = world.run().await;
        assert_eq!(code(&record), expected);
        let fault = record.fault.unwrap();
        assert!(fault.message.contains(text), "{fault}");
        assert_eq!(fault.causes, ["it said: it said no"]);
        assert_eq!(
            ran(&world),
            ["flush", "unlock", "unflush"],
            "the second did not run"
        );
        assert_eq!(world.asked_here("stop"), 0);
    }
    // All of those that thaw run, and one that fails is said.
    let world = self::world(&options, |_| {});
    fails(&world.source, "unlock", Some(1));
    fails(&world.source, "unflush", Some(2));
    world
        .link
        .on("start", 0..1, How::Says("some.fault", FaultKind::Environment));
    let record = world.run().await;
    assert_eq!(code(&record), "some.fault");
    assert_eq!(ran(&world), ["flush", "lock", "unlock", "unflush"]);
    assert_eq!(world.told.warnings("a hook failed"), 1);
    assert_eq!(world.told.warnings("exit code 1"), 1, "the first of them");
    let saved = world.disk.departures.lock().unwrap().clone();
    let hooked = saved.iter().position(|r| r.hooked).unwrap();
    assert_eq!(saved[hooked].state, DepartureState::Preparing, "before it ran");
}

#[tokio::test(start_paused = true)]
async fn who_comes_to_use_what_is_copied_is_told_from_who_moves_along() {
    for mode in [ModeRequest::Cold, ModeRequest::Warm] {
        // Both members use it, and each of them runs or is paused while the other is looked at.
        let world = group(&options(mode), &["web", "worker"], with_volume);
        let record = world.run().await;
        assert_eq!(record.state, DepartureState::Complete, "{:?}", record.fault);
        for (running, volume, expected) in [
            (true, "data", "volume.shared"),
            (false, "data", ""),
            (true, "another", ""),
        ] {
            let world = self::world(&options(mode), with_volume);
            let engine = world.source.clone();
            world.told.listen(move |event| {
                if matches!(event, Event::PhaseStarted { phase: Phase::Freeze }) {
                    let job = engine.run("job", &memory::image("app:1", 3), |s| {
                        s.mounts.push(mount(MountKind::Volume, volume, "/in"));
                    });
                    if !running {
                        engine.alter(&job.id, |c| c.state = ContainerState::Exited);
                    }
                }
            });
            let record = world.run().await;
            assert_eq!(code(&record), expected, "{mode:?} {running} {volume}");
        }
    }
}

/// A container that was stopped or paused, and how it comes back.
async fn comes_back(
    state: ContainerState,
    never: bool,
    fails: std::ops::Range<usize>,
    failure: Failure,
) -> (Option<String>, u128, Vec<&'static str>) {
    let world = world(&cold(), |s| {
        if never {
            s.restart_policy = RestartPolicy::never();
        }
    });
    let id: ContainerId = world.plan.spec().id.clone();
    world.source.alter(&id, |c| {
        c.state = state;
        c.policy = RestartPolicy::never();
    });
    // Calls that the scene itself made are counted as well.
    let before = world.source.calls().len();
    let fails: Vec<_> = fails.map(|n| (before + n, failure)).collect();
    world.source.fail(&fails);
    let begun = tokio::time::Instant::now();
    let done = resume(world.source.as_ref(), &world.plan).await;
    let expected = if never { "no" } else { "always" };
    if done.is_ok() {
        assert_eq!(world.here(), ("running".into(), expected.into()));
    }
    let fault = done.err().map(|f| {
        assert_eq!(
            (f.code.as_str(), f.kind),
            ("source.not-resumed", FaultKind::InDoubt)
        );
        assert_eq!(
            (f.node.as_deref(), f.container.as_deref()),
            (Some("a"), Some("web"))
        );
        f.to_string()
    });
    (
        fault,
        begun.elapsed().as_millis(),
        world.source.calls().split_off(before),
    )
}

#[tokio::test(start_paused = true)]
async fn a_source_comes_back_as_it_was_left_and_is_tried_patiently() {
    use ContainerState::{Exited, Paused, Running};
    let after = Failure::After;
    for (state, never, calls) in [
        (Exited, false, &["status", "set restart policy", "start"][..]),
        (Running, false, &["status", "set restart policy", "start"]),
        (Paused, false, &["status", "set restart policy", "unpause"]),
        (Exited, true, &["status", "start"]),
        (Paused, true, &["status", "unpause"]),
    ] {
        let (fault, took, made) = comes_back(state, never, 0..0, after).await;
        assert_eq!((fault, took, made.as_slice()), (None, 0, calls));
    }
    // One that refuses is asked five times, a little later each time.
    for (times, ends, took_ms) in [(4, true, 3_000), (5, false, 3_000)] {
        let (fault, took, _) = comes_back(Exited, false, 0..times, Failure::Before).await;
        assert_eq!((fault.is_none(), took), (ends, took_ms), "{times}");
    }
    // One that is away, for a minute.
    let (fault, took, _) = comes_back(Exited, false, 0..20, after).await;
    assert_eq!((fault, took), (None, 3_000 + 16 * 1_500));
    let (fault, took, calls) = comes_back(Exited, false, 0..EVER / 1_000, after).await;
    assert!(fault.is_some_and(|f| f.contains("broke off")));
    // After three seconds and thirty-eight times one and a half, the minute is over.
    assert_eq!((took, calls.len()), (60_000, 5 + 38));
}

#[tokio::test(start_paused = true)]
async fn the_others_come_back_whatever_becomes_of_one() {
    let world = group(&cold(), &["web", "worker"], |_| {});
    for container in world.source.all() {
        world
            .source
            .alter(&container.spec.id, |c| c.state = ContainerState::Exited);
    }
    let first = world.plan.start_order()[0];
    let first = world.plan.members()[first].create.spec.clone();
    let gone = tranship_core::Engine::remove_container(world.source.as_ref(), &first.id);
    gone.await.unwrap();
    let fault = resume(world.source.as_ref(), &world.plan).await.unwrap_err();
    assert_eq!(fault.container, Some(first.name));
    let states: Vec<_> = world.source.all().into_iter().map(|c| c.state).collect();
    assert_eq!(states, [ContainerState::Running]);
}

#[tokio::test(start_paused = true)]
async fn elements_are_read_as_the_user_and_the_plan_say() {
    let options = MoveOptions {
        include_tmpfs: vec!["/scratch".into()],
        exclude: vec!["/cache".into()],
        compression: Compression::Zstd(5),
        limit_rate: Some(1 << 20),
        ..options(ModeRequest::Warm)
    };
    for route in [ElementRoute::Tree, ElementRoute::Archive] {
        let mut world = world(&options, |s| {
            with_volume(s);
            s.mounts.push(mount(MountKind::Tmpfs, "", "/scratch"));
        });
        let volume = world.plan.elements.iter_mut().find(|e| e.at == at_volume());
        volume.unwrap().route = route;
        let world = World::of(world.source, world.destination, world.plan);
        let storage = world.source.storage();
        let path = |at| World::path_of(&world.source, &at);
        let container = world.plan.spec().id.clone();
        let (data, layer, scratch) = (
            path(at_volume()),
            path(ElementAt::Layer {
                container: container.clone(),
            }),
            path(ElementAt::Tmpfs {
                container,
                path: "/scratch".into(),
            }),
        );
        storage.put(&scratch, "lock", "mine");
        let record = world.run().await;
        assert_eq!(record.state, DepartureState::Complete, "{:?}", record.fault);
        let read = |route, mounts_stay| SyncOptions {
            exclude: vec!["/cache".into()],
            compression: Compression::Zstd(5),
            limit_rate: Some(1 << 20),
            mounts_stay,
            route,
        };
        // In a container other things are mounted, by its own doing.
        let mut expected = vec![
            (data.clone(), read(route, false)),
            (layer, read(ElementRoute::Tree, false)),
            (scratch, read(ElementRoute::Tree, true)),
        ];
        if route == ElementRoute::Archive {
            // It is read once, while nothing changes.
            expected.swap(0, 1);
        }
        assert_eq!(storage.sources(), expected, "{route:?}");
        let live = storage
            .rounds()
            .iter()
            .any(|(path, options)| *path == data && !options.frozen);
        assert_eq!(live, route == ElementRoute::Tree);
    }
}
