//! Memory on its way, and what a container goes on from.

use tranship_core::Engine as _;
use tranship_core::memory::DumpKind;

use super::*;

/// A world with a container that holds a token in memory and nowhere else.
fn remembering() -> World {
    let world = world(&options(ModeRequest::Live), |_| {});
    let heap = world.source.heap(&world.plan.spec().id);
    world.source.storage().put(heap, "token", "only in memory");
    world
}

/// Whether a running container of the engine still holds it.
fn remembers(engine: &memory::MemoryEngine) -> bool {
    engine.all().iter().any(|c| {
        let heap = engine.storage().get(engine.heap(&c.spec.id)).unwrap_or_default();
        c.state == ContainerState::Running && heap.contains_key("token")
    })
}

fn dumped(engine: &memory::MemoryEngine) -> bool {
    engine.all().iter().any(|c| engine.is_dumped(&c.spec.id))
}

#[tokio::test(start_paused = true)]
async fn it_goes_on_there_and_no_dump_is_left() {
    let world = remembering();
    let record = world.run().await;
    assert_eq!(record.state, DepartureState::Complete, "{:?}", record.fault);
    assert!(remembers(&world.destination));
    assert_eq!(world.here().0, "exited");
    assert!(!dumped(&world.source) && !dumped(&world.destination));
    // Once while it ran, once in the freeze; a second round that comes at once needs no third.
    let calls = world.source.calls();
    assert_eq!(calls.iter().filter(|c| **c == "dump").count(), 2);
    assert!(record.rounds.len() >= 2);
}

#[tokio::test(start_paused = true)]
async fn the_freeze_does_not_wait_for_what_can_be_done_before_or_beside_it() {
    let world = remembering();
    world.run().await;
    let calls = world.source.calls();
    let at = |name: &str| calls.iter().rposition(|c| *c == name).unwrap();
    assert!(
        at("clear dump") < at("pause") && at("pause") < at("dump"),
        "{calls:?}"
    );
    // The dump is read while it is written, by the round that begins before the freeze.
    let said = world.source.storage().calls();
    let last = |name: &str| said.iter().rposition(|call| *call == name).unwrap();
    assert!(last("source meet") < last("source foresee"), "{said:?}");
    assert!(last("source foresee") < last("source follow"), "{said:?}");
    assert!(last("source follow") < last("source round"), "{said:?}");
    for once in ["source foresee", "source follow"] {
        assert_eq!(said.iter().filter(|call| **call == once).count(), 1, "{once}");
    }

    for failing in ["source foresee", "source follow"] {
        let world = remembering();
        let number = said.iter().position(|c| *c == failing).unwrap();
        world.source.storage().fail(&[(number, Failure::Before)]);
        let record = world.run().await;
        assert_eq!(record.state, DepartureState::RolledBack, "{failing}");
        assert_eq!(code(&record), "storage.failed");
        assert!(remembers(&world.source) && !dumped(&world.source));
        assert_eq!(world.here(), ("running".into(), "always".into()));
    }
    // What is not removed before is removed by the dump itself.
    let world = remembering();
    world.source.fail(&[(at("clear dump"), Failure::Before)]);
    let record = world.run().await;
    assert_eq!(record.state, DepartureState::Complete);
}

#[tokio::test(start_paused = true)]
async fn dumps_that_follow_each_other_all_travel_and_none_is_cleared() {
    let world = remembering();
    world.source.set_tracked(true);
    let heap = world.source.heap(&world.plan.spec().id);
    let storage = world.source.storage();
    world.told.listen(move |event| {
        if *event == (Event::PhaseStarted { phase: Phase::Freeze }) {
            storage.put(heap.clone(), "late", "written right before the freeze");
        }
    });
    let record = world.run().await;
    assert_eq!(record.state, DepartureState::Complete, "{:?}", record.fault);
    assert!(remembers(&world.destination));
    let there = world.destination.all().iter().find_map(|c| {
        world
            .destination
            .storage()
            .get(world.destination.heap(&c.spec.id))
    });
    assert!(there.unwrap().contains_key("late"));
    assert!(!dumped(&world.source) && !dumped(&world.destination));
    assert_eq!(world.asked_here("clear dump"), 0);
    // What is there does not change: nothing of it is read again while it stands still.
    let said = world.source.storage().calls();
    assert!(
        !said.contains(&"source foresee") && !said.contains(&"source follow"),
        "{said:?}"
    );
    assert!(said.contains(&"source meet"));
}

#[tokio::test(start_paused = true)]
async fn a_dump_that_can_follow_no_more_before_the_freeze_travels_whole_before_it() {
    let world = remembering();
    world.source.set_tracked(true);
    let source = world.source.clone();
    world.told.listen(move |event| {
        // After the first dump.
        if *event == (Event::PhaseStarted { phase: Phase::Bulk }) {
            source.set_tracked(false);
        }
    });
    let record = world.run().await;
    assert_eq!(record.state, DepartureState::Complete, "{:?}", record.fault);
    assert!(remembers(&world.destination));
    assert!(!dumped(&world.source) && !dumped(&world.destination));
    // All of it travelled while it ran, and once more in the freeze as any whole dump does.
    let calls = world.source.calls();
    let pause = calls.iter().position(|c| *c == "pause").unwrap();
    let dumps = calls[..pause].iter().filter(|c| **c == "dump").count();
    assert!(dumps >= 2, "{calls:?}");
    let before = record.rounds.iter().rev().nth(1).unwrap();
    assert!(!before.frozen && before.literal_bytes > 0, "{:?}", record.rounds);
}

#[tokio::test(start_paused = true)]
async fn a_source_goes_on_from_all_its_dumps() {
    let world = remembering();
    world.source.set_tracked(true);
    world.run().await;
    let calls = world.destination.calls();
    let restore = calls.iter().position(|c| *c == "restore").unwrap();
    let world = remembering();
    world.source.set_tracked(true);
    world.destination.fail(&[(restore, Failure::Before)]);
    let record = world.run().await;
    assert_eq!(record.state, DepartureState::RolledBack);
    assert!(remembers(&world.source));
    assert_eq!(world.here(), ("running".into(), "always".into()));
    assert!(!dumped(&world.source) && !dumped(&world.destination));
}

#[tokio::test(start_paused = true)]
async fn the_first_dump_comes_before_anything_travels() {
    let world = remembering();
    world.run().await;
    let calls = world.source.calls();
    let dump = calls.iter().position(|c| *c == "dump").unwrap();
    let export = calls.iter().position(|c| *c == "export image").unwrap();
    assert!(dump < export, "{calls:?}");

    let world = remembering();
    world.source.fail(&[(dump, Failure::Before)]);
    let record = world.run().await;
    assert_eq!(record.state, DepartureState::RolledBack);
    assert_eq!(code(&record), NOT_DUMPED);
    let fault = record.fault.unwrap();
    assert!(
        fault.message.contains("web cannot be dumped: told to fail"),
        "{fault}"
    );
    assert_eq!((record.bytes_sent, record.downtime_ms), (0, None));
    let calls = world.source.calls();
    assert!(
        !calls.contains(&"pause") && !calls.contains(&"export image"),
        "{calls:?}"
    );
    assert!(!world.destination.calls().contains(&"create container"));
    assert!(remembers(&world.source) && !dumped(&world.source));
    assert_eq!(world.here(), ("running".into(), "always".into()));

    // Whether it can be dumped is not known where the answer is lost.
    let world = remembering();
    world.source.fail(&[(dump, Failure::After)]);
    let record = world.run().await;
    assert_eq!(code(&record), "engine.uncertain");
    assert!(remembers(&world.source) && !dumped(&world.source));
}

#[tokio::test(start_paused = true)]
async fn an_abort_during_a_first_dump_that_fails_is_an_abort() {
    let world = remembering();
    world.run().await;
    let dump = world.source.calls().iter().position(|c| *c == "dump").unwrap();

    let world = remembering();
    world.source.fail(&[(dump, Failure::Before)]);
    // Whoever chose the mode would go on in another one after `NOT_DUMPED`.
    let cancel = world.cancel.clone();
    world.told.listen(move |event| {
        if *event == (Event::PhaseStarted { phase: Phase::Check }) {
            cancel.send_replace(true);
        }
    });
    let record = world.run().await;
    assert_eq!(world.asked_here("dump"), 1);
    assert_eq!(record.state, DepartureState::RolledBack);
    assert_eq!(code(&record), "migrate.aborted");
    assert!(remembers(&world.source) && !dumped(&world.source));
}

#[tokio::test(start_paused = true)]
async fn a_first_dump_that_is_old_by_the_first_round_is_made_again() {
    for (image_ms, dumps) in [(9_000, 2), (11_000, 3)] {
        let world = remembering();
        world.link.on("create", 0..EVER, How::Takes(image_ms));
        let record = world.run().await;
        assert_eq!(record.state, DepartureState::Complete, "{:?}", record.fault);
        assert!(remembers(&world.destination));
        let calls = world.source.calls();
        assert_eq!(calls.iter().filter(|c| **c == "dump").count(), dumps);
        // It travelled before the freeze either way.
        let first = record.rounds.first().unwrap();
        assert!(first.bytes > 0 && !first.frozen, "{:?}", record.rounds);
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_destination_cannot_start_goes_on_here_from_where_it_was() {
    for (call, state) in [
        // Before the commit it was never ended.
        ("element 1", "never ended"),
        ("start", "restored"),
        ("ready", "restored"),
    ] {
        let world = remembering();
        world
            .link
            .on(call, 0..EVER, How::Says("engine.failed", FaultKind::Environment));
        let record = world.run().await;
        assert_eq!(record.state, DepartureState::RolledBack, "{call}");
        assert!(remembers(&world.source), "{call}");
        assert_eq!(world.here(), ("running".into(), "always".into()));
        assert!(!dumped(&world.source) && !dumped(&world.destination), "{call}");
        let calls = world.source.calls();
        assert_eq!(calls.contains(&"restore"), state == "restored", "{call}");
        assert!(record.fault.unwrap().causes.iter().all(|c| !c.contains("afresh")));
    }
}

/// How a container comes back that was dumped and has ended, and whether it remembers.
async fn comes_back(dumped: bool, change: impl FnOnce(&World), fails: &[usize]) -> (Vec<String>, bool) {
    let world = remembering();
    let spec = world.plan.spec().clone();
    let at = world.plan.elements.last().unwrap().at.clone();
    world.source.dump(&at, DumpKind::Whole).await.unwrap();
    world.source.kill(&spec.id).await.unwrap();
    change(&world);
    let before = world.source.calls().len();
    let fails: Vec<_> = fails.iter().map(|n| (before + n, Failure::Before)).collect();
    world.source.fail(&fails);
    let ended = dumped.then_some(0).into_iter().collect();
    let lost = resume(world.source.as_ref(), &world.plan, &ended).await.unwrap();
    assert_eq!(world.here(), ("running".into(), "always".into()));
    (lost, remembers(&world.source))
}

#[tokio::test(start_paused = true)]
async fn only_what_was_ended_for_the_move_goes_on_from_its_dump() {
    assert_eq!(comes_back(true, |_| {}, &[]).await, (Vec::new(), true));
    // It ended by itself: what it wrote at its end is not in the dump.
    let (lost, remembers) = comes_back(false, |_| {}, &[]).await;
    assert!(!remembers && lost[0].contains("afresh"), "{lost:?}");
    // Somebody started it since, and it ended again.
    let restarted = |world: &World| {
        let id = world.plan.spec().id.clone();
        world
            .source
            .alter(&id, |c| c.spec.status.started_at = "later".into());
    };
    let (lost, remembers) = comes_back(true, restarted, &[]).await;
    assert!(!remembers && lost[0].contains("afresh"), "{lost:?}");
    // Its engine was ended in order just then, and let it end by itself.
    let in_order = |world: &World| {
        let id = world.plan.spec().id.clone();
        world.source.alter(&id, |c| c.spec.status.exit_code = 143);
    };
    let (lost, remembers) = comes_back(true, in_order, &[]).await;
    assert!(!remembers && lost[0].contains("afresh"), "{lost:?}");
    // The dump is gone, as after a restart of the machine.
    let gone = |world: &World| {
        let at = world.plan.elements.last().unwrap().at.clone();
        futures_util::FutureExt::now_or_never(world.source.forget(&at))
            .unwrap()
            .unwrap();
    };
    let (lost, remembers) = comes_back(true, gone, &[]).await;
    assert!(!remembers && lost[0].contains("afresh"), "{lost:?}");
}

#[tokio::test(start_paused = true)]
async fn an_end_that_its_engine_was_never_asked_for_is_its_own() {
    let world = remembering();
    world.run().await;
    let kill = world.source.calls().iter().position(|c| *c == "kill").unwrap();
    for ends in [false, true] {
        let world = remembering();
        world.source.fail(&[(kill, Failure::Away)]);
        let (source, id) = (world.source.clone(), world.plan.spec().id.clone());
        world.told.listen(move |event| {
            // Its engine, which was away, ended it in order: thawed, and killed when it took too long.
            if ends
                && *event
                    == (Event::PhaseStarted {
                        phase: Phase::Rollback,
                    })
            {
                source.alter(&id, |c| {
                    c.state = ContainerState::Exited;
                    c.spec.status.exit_code = 137;
                });
            }
        });
        let record = world.run().await;
        assert_eq!(record.state, DepartureState::RolledBack);
        assert_eq!(world.here(), ("running".into(), "always".into()));
        assert_eq!(world.asked_here("restore"), 0);
        let causes = record.fault.unwrap().causes;
        assert_eq!(causes.iter().any(|c| c.contains("afresh")), ends, "{causes:?}");
        assert!(!dumped(&world.source));
    }
}

#[tokio::test(start_paused = true)]
async fn a_dump_is_tried_twice_and_then_it_serves_without() {
    // Looked for, status, policy, restore: four calls a time.
    assert_eq!(comes_back(true, |_| {}, &[3]).await, (Vec::new(), true));
    let (lost, remembers) = comes_back(true, |_| {}, &[3, 7]).await;
    assert!(!remembers);
    assert!(
        lost[0].contains("could not go on from its own memory"),
        "{lost:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_never_ended_has_no_dump_to_go_on_from_later() {
    let world = remembering();
    let spec = world.plan.spec().clone();
    let at = world.plan.elements.last().unwrap().at.clone();
    world.source.pause(&spec.id).await.unwrap();
    world.source.dump(&at, DumpKind::Whole).await.unwrap();
    let ended = [0].into_iter().collect();
    for passes in [1, 2] {
        let lost = resume(world.source.as_ref(), &world.plan, &ended).await.unwrap();
        assert_eq!(lost.is_empty(), passes == 1, "{lost:?}");
        assert!(!dumped(&world.source));
        // Killed by somebody, hours later.
        world.source.kill(&spec.id).await.unwrap();
    }
    assert_eq!(world.asked_here("restore"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_record_of_the_version_before_is_understood() {
    for ended in [true, false] {
        let world = remembering();
        let at = world.plan.elements.last().unwrap().at.clone();
        world.source.dump(&at, DumpKind::Whole).await.unwrap();
        world.source.kill(&world.plan.spec().id).await.unwrap();
        let mut record = DepartureRecord::new(world.plan.clone(), 0);
        record.state = DepartureState::Frozen;
        let mut written = serde_json::to_value(&record).unwrap();
        let fields = written.as_object_mut().unwrap();
        assert!(!fields.contains_key("ended_members"));
        fields.insert("ended_from_dump".into(), ended.into());
        let record = serde_json::from_value(written).unwrap();
        let record = world.recover_from(record).await;
        assert_eq!(record.state, DepartureState::RolledBack);
        assert_eq!(remembers(&world.source), ended, "by its dump, or afresh");
    }
}
