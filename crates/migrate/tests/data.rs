//! What containers hold on its way, over engines and storage in memory: everything arrives, whatever single failure comes at
//! whatever call, nothing is lost, and nothing is left.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may panic as tests do"
)]

mod harness;

use std::sync::Arc;

use harness::{network, node};
use tokio::sync::watch;
use tranship_core::container::{ContainerState, LayerChanges, MountKind, MountSpec};
use tranship_core::engine::ExecOutcome;
use tranship_core::event::{Event, Phase, Reporter, Silent};
use tranship_core::node::{ArrivalFacts, ContainerReport, Survey};
use tranship_core::storage::{ElementAt, ElementPlace};
use tranship_core::{ContainerSpec, Engine, MigrationId};
use tranship_migrate::options::{Hook, HookPlace, HookTime, ModeRequest, MoveOptions, VolumeConflict};
use tranship_migrate::plan::{Plan, PlanInput, plan};
use tranship_migrate::record::{DepartureRecord, DepartureState};
use tranship_testkit::memory::{self, Failure, MemoryEngine, MemoryStorage};

struct Scene {
    source: Arc<MemoryEngine>,
    destination: Arc<MemoryEngine>,
    plan: Plan,
    before: (Vec<String>, Vec<String>),
}

fn volume(name: &str, path: &str, anonymous: bool) -> MountSpec {
    MountSpec {
        kind: MountKind::Volume,
        name: name.into(),
        source: String::new(),
        destination: path.into(),
        driver: "local".into(),
        writable: true,
        anonymous,
    }
}

fn path_of(engine: &MemoryEngine, at: &ElementAt) -> std::path::PathBuf {
    let place = futures_util::FutureExt::now_or_never(engine.locate(at))
        .unwrap()
        .unwrap();
    assert!(matches!(place, ElementPlace::Directory { .. }));
    MemoryStorage::path_of(&place)
}

fn at_volume(name: &str) -> ElementAt {
    ElementAt::Volume { name: name.into() }
}

fn everything(engine: &MemoryEngine) -> Vec<String> {
    let mut all = engine.inventory();
    all.extend(engine.storage().inventory());
    // Ids are made up anew for whatever is made.
    all.retain(|line| !line.contains("/layer/"));
    all
}

/// A container with a named and an anonymous volume and something in its layer.
fn scene(options: &MoveOptions, change: impl FnOnce(&mut ContainerSpec)) -> Scene {
    let source = Arc::new(MemoryEngine::named("a"));
    let destination = Arc::new(MemoryEngine::named("b"));
    let anonymous = "e".repeat(64);
    let spec = source.run("db", &memory::image("app:1", 3), |s| {
        s.networks.push(network());
        s.mounts = vec![volume("data", "/data", false), volume(&anonymous, "/extra", true)];
        change(s);
    });
    let storage = source.storage();
    storage.put(path_of(&source, &at_volume("data")), "rows", "one");
    storage.put(path_of(&source, &at_volume(&anonymous)), "more", "two");
    let layer = ElementAt::Layer {
        container: spec.id.clone(),
    };
    storage.put(path_of(&source, &layer), "etc/motd", "three");
    let volumes = futures_util::FutureExt::now_or_never(source.volume_specs())
        .unwrap()
        .unwrap();
    let report = ContainerReport {
        spec,
        changes: LayerChanges {
            files: 1,
            bytes: 5,
            examples: vec!["/etc/motd".into()],
        },
        archive_bytes: Vec::new(),
        volumes: volumes
            .into_iter()
            .map(|mut v| {
                v.guid = format!("guid-{}", v.name.get(..4).unwrap());
                v
            })
            .collect(),
        sizes: Default::default(),
        bind_files: Vec::new(),
        bind_users: Default::default(),
        mounted_below: Default::default(),
        memory: None,
        notes: Default::default(),
    };
    if options.volume_conflict != VolumeConflict::Refuse {
        destination.add_volume("data");
        destination
            .storage()
            .put(path_of(&destination, &at_volume("data")), "theirs", "precious");
    }
    let survey = Survey {
        node: node("b"),
        containers: Vec::new(),
        networks: Vec::new(),
        volumes: futures_util::FutureExt::now_or_never(destination.volumes())
            .unwrap()
            .unwrap(),
        volume_specs: futures_util::FutureExt::now_or_never(destination.volume_specs())
            .unwrap()
            .unwrap(),
        ports: Vec::new(),
        arrivals: vec![ArrivalFacts::default()],
    };
    let plan = plan(&PlanInput {
        source: "a",
        destination: "b",
        containers: &[(MigrationId::new("m1").unwrap(), vec![report])],
        source_node: &node("a"),
        survey: &survey,
        options,
        not_live: None,
    })
    .remove(0);
    assert_eq!(plan.conflicts().next(), None);
    let before = (everything(&source), everything(&destination));
    Scene {
        source,
        destination,
        plan,
        before,
    }
}

async fn run(scene: &Scene) -> DepartureRecord {
    let (_keep, cancelled) = watch::channel(false);
    harness::run(
        &scene.source,
        &scene.destination,
        &scene.plan,
        cancelled,
        Arc::new(Silent),
    )
    .await
}

fn options(mode: ModeRequest) -> MoveOptions {
    MoveOptions {
        mode,
        ..MoveOptions::default()
    }
}

fn state_of(engine: &MemoryEngine) -> Option<ContainerState> {
    engine
        .all()
        .into_iter()
        .find(|c| c.spec.name == "db")
        .map(|c| c.state)
}

/// What the container sees at the destination.
fn arrived(scene: &Scene, name: &str) -> bool {
    let there = scene
        .destination
        .all()
        .into_iter()
        .find(|c| c.spec.name == "db")
        .unwrap();
    let storage = scene.destination.storage();
    let extra = there
        .spec
        .mounts
        .iter()
        .find(|m| m.destination == "/extra")
        .unwrap();
    let holds = |at: &ElementAt, file: &str, content: &str| {
        let contents = storage.get(path_of(&scene.destination, at)).unwrap_or_default();
        contents.get(file).is_some_and(|c| c == content.as_bytes()) && contents.len() == 1
    };
    holds(&at_volume(name), "rows", "one")
        && holds(&at_volume(&extra.name), "more", "two")
        && holds(
            &ElementAt::Layer {
                container: there.spec.id.clone(),
            },
            "etc/motd",
            "three",
        )
}

#[tokio::test(start_paused = true)]
async fn everything_arrives_in_both_modes() {
    for mode in [ModeRequest::Auto, ModeRequest::Cold, ModeRequest::Warm] {
        let scene = scene(&options(mode), |_| {});
        let record = run(&scene).await;
        assert_eq!(
            (record.state, &record.fault),
            (DepartureState::Complete, &None),
            "{mode:?}"
        );
        assert!(arrived(&scene, "data"), "{mode:?}");
        assert_eq!(state_of(&scene.destination), Some(ContainerState::Running));
        assert_eq!(
            state_of(&scene.source),
            Some(ContainerState::Exited),
            "paused or stopped, it has ended"
        );
        assert!(record.rounds.last().unwrap().frozen);
        assert!(record.rounds.iter().filter(|r| !r.frozen).count() >= 1);
    }
}

#[test]
fn a_plan_survives_its_way_over_the_wire() {
    let options = MoveOptions {
        hooks: vec![Hook {
            when: HookTime::PreFreeze,
            place: HookPlace::Host,
            command: "sync".into(),
            timeout: 5,
        }],
        ..options(ModeRequest::Cold)
    };
    let plan = scene(&options, |_| {}).plan;
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
}

#[tokio::test(start_paused = true)]
async fn what_is_written_until_the_freeze_arrives() {
    let scene = scene(&options(ModeRequest::Warm), |_| {});
    let data = path_of(&scene.source, &at_volume("data"));
    scene.source.storage().on_round(&data, |round, contents| {
        contents.insert("rows".into(), format!("after round {round}").into());
    });
    let record = run(&scene).await;
    assert_eq!(record.state, DepartureState::Complete);
    let last = scene.source.storage().get(&data).unwrap();
    assert!(last["rows"].starts_with(b"after round"));
    let there = scene
        .destination
        .storage()
        .get(path_of(&scene.destination, &at_volume("data")))
        .unwrap();
    assert_eq!(there, last, "the last write before the freeze");
}

/// Starts a container with a mount of the moving one once the source stands still and was looked at.
struct Latecomer(Arc<MemoryEngine>, MountSpec);

impl Reporter for Latecomer {
    fn report(&self, event: Event) {
        if matches!(event, Event::PhaseStarted { phase: Phase::Delta }) {
            let _job = self.0.run("job", &memory::image("app:1", 3), |s| {
                s.mounts = vec![self.1.clone()];
            });
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_that_comes_to_use_a_volume_during_the_last_round_sends_it_back() {
    let directory = MountSpec {
        kind: MountKind::Bind,
        source: "/srv/files".into(),
        ..volume("", "/files", false)
    };
    for (mode, mount, code) in [
        (ModeRequest::Cold, volume("data", "/data", false), "volume.shared"),
        (ModeRequest::Warm, volume("data", "/data", false), "volume.shared"),
        (ModeRequest::Cold, directory.clone(), "bind.shared"),
    ] {
        let options = MoveOptions {
            include_bind: match mount.kind {
                MountKind::Bind => vec!["/files".into()],
                _ => Vec::new(),
            },
            ..options(mode)
        };
        let scene = scene(&options, |s| {
            if mount.kind == MountKind::Bind {
                s.mounts.push(directory.clone());
            }
        });
        if mount.kind == MountKind::Bind {
            let at = ElementAt::Bind {
                path: mount.source.clone(),
            };
            scene
                .source
                .storage()
                .put(path_of(&scene.source, &at), "page", "four");
        }
        let (_keep, cancelled) = watch::channel(false);
        let reporter = Arc::new(Latecomer(Arc::clone(&scene.source), mount));
        let record = harness::run(
            &scene.source,
            &scene.destination,
            &scene.plan,
            cancelled,
            reporter,
        )
        .await;
        assert_eq!(record.state, DepartureState::RolledBack, "{mode:?}");
        let fault = record.fault.unwrap();
        assert_eq!(fault.code, code, "{mode:?}");
        assert!(fault.message.contains("job"), "{fault}");
        assert_eq!(state_of(&scene.source), Some(ContainerState::Running), "{mode:?}");
        assert_eq!(everything(&scene.destination), scene.before.1, "{mode:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_single_failure_loses_or_leaves_anything() {
    let mut cells = 0;
    for mode in [ModeRequest::Cold, ModeRequest::Warm] {
        for conflict in [
            VolumeConflict::Refuse,
            VolumeConflict::Replace,
            VolumeConflict::Rename,
        ] {
            for failure in [Failure::Before, Failure::After] {
                for what in ["engine a", "engine b", "storage a", "storage b"] {
                    for call in 0.. {
                        let options = MoveOptions {
                            volume_conflict: conflict,
                            ..options(mode)
                        };
                        let scene = scene(&options, |_| {});
                        let engine = if what.ends_with('a') {
                            &scene.source
                        } else {
                            &scene.destination
                        };
                        // Calls that the scene itself made are counted as well.
                        let of_engine = what.starts_with("engine");
                        let before = if of_engine {
                            engine.calls().len()
                        } else {
                            engine.storage().calls().len()
                        };
                        let fail = [(before + call, failure)];
                        if of_engine {
                            engine.fail(&fail)
                        } else {
                            engine.storage().fail(&fail)
                        }
                        let record = run(&scene).await;
                        let calls = if of_engine {
                            engine.calls()
                        } else {
                            engine.storage().calls()
                        };
                        let Some(name) = calls.get(before + call) else {
                            break;
                        };
                        let label = format!(
                            "{mode:?} {conflict:?} {failure:?} {what} {name} (call {call}): {:?}",
                            record.fault
                        );
                        check(&scene, &record, conflict, &label);
                        cells += 1;
                    }
                }
            }
        }
    }
    assert!(cells > 400, "only {cells} failures were tried");
}

fn check(scene: &Scene, record: &DepartureRecord, conflict: VolumeConflict, label: &str) {
    match record.state {
        DepartureState::Complete => {
            let name = if conflict == VolumeConflict::Rename {
                "data-2"
            } else {
                "data"
            };
            assert!(arrived(scene, name), "{label}: data is missing");
            assert_eq!(
                state_of(&scene.destination),
                Some(ContainerState::Running),
                "{label}"
            );
            assert_ne!(
                state_of(&scene.source),
                Some(ContainerState::Running),
                "{label}: two run"
            );
        }
        DepartureState::RolledBack => {
            assert_eq!(
                everything(&scene.source),
                scene.before.0,
                "{label}: the source is not as it was"
            );
            let left: Vec<String> = record.fault.iter().flat_map(|f| f.causes.clone()).collect();
            let told = left
                .iter()
                .any(|c| c.contains("left") || c.contains("cleaning up"));
            let now = everything(&scene.destination);
            assert!(
                now == scene.before.1 || told,
                "{label}: left there without a word: {now:#?} {:#?}",
                scene.before.1
            );
            // Whatever else: what was the destination's own is never lost.
            if conflict != VolumeConflict::Refuse {
                let own = scene
                    .destination
                    .storage()
                    .get(path_of(&scene.destination, &at_volume("data")));
                let aside = scene
                    .destination
                    .storage()
                    .inventory()
                    .iter()
                    .any(|l| l.starts_with("aside replaced"));
                assert!(
                    own.is_some_and(|c| c.contains_key("theirs")) || aside,
                    "{label}: the destination's own data is gone"
                );
            }
        }
        other => panic!("{label}: ended as {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_hook_freezes_nothing_and_thaws() {
    let hook = |when, place, command: &str| Hook {
        when,
        place,
        command: command.into(),
        timeout: 5,
    };
    for (failing, place) in [
        (HookTime::PreFreeze, HookPlace::Container),
        (HookTime::PostFreeze, HookPlace::Host),
        (HookTime::PostStart, HookPlace::Container),
    ] {
        let options = MoveOptions {
            hooks: vec![
                hook(
                    HookTime::PreFreeze,
                    HookPlace::Container,
                    if failing == HookTime::PreFreeze {
                        "false"
                    } else {
                        "flush"
                    },
                ),
                hook(failing, place, "false"),
                hook(HookTime::Thaw, HookPlace::Container, "unlock"),
            ],
            ..options(ModeRequest::Warm)
        };
        let scene = scene(&options, |_| {});
        for engine in [&scene.source, &scene.destination] {
            engine.on_exec(
                "false",
                ExecOutcome {
                    exit_code: Some(1),
                    output: "no".into(),
                },
            );
        }
        let record = run(&scene).await;
        assert_eq!(record.state, DepartureState::RolledBack, "{failing}");
        assert_eq!(record.fault.unwrap().code, "hook.failed", "{failing}");
        assert_eq!(everything(&scene.source), scene.before.0, "{failing}");
        assert_eq!(everything(&scene.destination), scene.before.1, "{failing}");
        assert!(
            scene.source.execs().iter().any(|(_, c)| c == "unlock"),
            "{failing}: it was not thawed"
        );
        if failing == HookTime::PreFreeze {
            assert!(!scene.source.calls().contains(&"pause"), "nothing froze");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_freeze_that_would_be_too_long_does_not_begin() {
    let options = MoveOptions {
        max_downtime_ms: Some(1),
        ..options(ModeRequest::Cold)
    };
    let scene = scene(&options, |_| {});
    let record = run(&scene).await;
    assert_eq!(record.fault.unwrap().code, "precopy.not-converging");
    assert!(!scene.source.calls().contains(&"stop"));
    assert_eq!(everything(&scene.destination), scene.before.1);
}
