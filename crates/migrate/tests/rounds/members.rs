//! Images, hooks, policies and several containers in one move.

use super::*;

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
    let done = resume(world.source.as_ref(), &world.plan, &BTreeSet::new()).await;
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
    let fault = resume(world.source.as_ref(), &world.plan, &BTreeSet::new())
        .await
        .unwrap_err();
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
