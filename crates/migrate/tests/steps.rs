//! The steps of a migration over engines in memory: what happens when all goes well, and that whatever single or double
//! failure comes at whatever call, the outcome is one of the few that are allowed.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may panic as tests do"
)]

mod harness;

use std::sync::{Arc, Mutex};

use harness::{network, node, survey};
use tokio::sync::watch;
use tranship_core::container::{ContainerState, Health, LayerChanges, MountKind, MountSpec};
use tranship_core::event::{Event, Reporter, Silent};
use tranship_core::fault::FaultKind;
use tranship_core::node::{ArrivalFacts, ContainerReport};
use tranship_core::{ContainerSpec, MigrationId};
use tranship_migrate::options::{ModeRequest, MoveOptions, OnSource};
use tranship_migrate::plan::{Plan, PlanInput, plan};
use tranship_migrate::record::{DepartureRecord, DepartureState};
use tranship_testkit::memory::{self, Failure, MemoryEngine};

struct Scene {
    source: Arc<MemoryEngine>,
    destination: Arc<MemoryEngine>,
    plan: Plan,
    before: (Vec<String>, Vec<String>),
}

fn scene(options: &MoveOptions, change: impl FnOnce(&mut ContainerSpec)) -> Scene {
    let (source, destination) = (Arc::new(MemoryEngine::new()), Arc::new(MemoryEngine::new()));
    let image = memory::image("app:1", 3);
    let spec = source.run("web", &image, |s| {
        s.networks.push(network());
        change(s);
    });
    let old = memory::image("old:1", 1);
    let _ = destination.run(if options.replace { "web" } else { "other" }, &old, |_| {});
    let report = ContainerReport {
        spec,
        changes: LayerChanges::default(),
        archive_bytes: Vec::new(),
        volumes: Vec::new(),
        sizes: Default::default(),
        bind_files: Vec::new(),
        bind_users: Default::default(),
        mounted_below: Default::default(),
        memory: None,
        notes: Default::default(),
    };
    let survey = survey(vec![ArrivalFacts {
        layers_held: 1,
        ..ArrivalFacts::default()
    }]);
    let containers = [(MigrationId::new("m1").unwrap(), vec![report])];
    let mut plans = plan(&PlanInput {
        source: "a",
        destination: "b",
        containers: &containers,
        source_node: &node("a"),
        survey: &survey,
        options,
        not_live: None,
    });
    let plan = plans.remove(0);
    assert_eq!(plan.conflicts().next(), None);
    let before = (source.inventory(), destination.inventory());
    Scene {
        source,
        destination,
        plan,
        before,
    }
}

async fn run(
    scene: &Scene,
    cancelled: watch::Receiver<bool>,
    reporter: Arc<dyn Reporter>,
) -> DepartureRecord {
    harness::run(
        &scene.source,
        &scene.destination,
        &scene.plan,
        cancelled,
        reporter,
    )
    .await
}

async fn run_quietly(scene: &Scene) -> DepartureRecord {
    let (_keep, cancelled) = watch::channel(false);
    run(scene, cancelled, Arc::new(Silent)).await
}

fn web_runs(engine: &MemoryEngine) -> bool {
    engine.all().iter().any(|c| {
        c.spec.name == "web" && c.state == ContainerState::Running && c.spec.image_reference == "app:1"
    })
}

fn options(mode: ModeRequest) -> MoveOptions {
    MoveOptions {
        mode,
        ..MoveOptions::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_moves_in_either_mode() {
    for mode in [ModeRequest::Stateless, ModeRequest::Cold, ModeRequest::Warm] {
        let scene = scene(&options(mode), |_| {});
        let record = run_quietly(&scene).await;
        assert_eq!(
            (record.state, &record.fault),
            (DepartureState::Complete, &None),
            "{mode:?}"
        );
        assert!(web_runs(&scene.destination) && !web_runs(&scene.source));
        let there = scene
            .destination
            .all()
            .into_iter()
            .find(|c| c.spec.name == "web")
            .unwrap();
        assert_eq!(there.policy.name, "always", "the restart policy is given back");
        let here = scene
            .source
            .all()
            .into_iter()
            .find(|c| c.spec.name == "web")
            .unwrap();
        assert_eq!(
            here.policy.name, "no",
            "a reboot of the source must not start a second one"
        );
        assert_eq!(record.downtime_ms.is_some(), mode != ModeRequest::Stateless);
        assert_eq!(
            record.plan.transfer.skip_layers, 1,
            "the layer that is there does not travel"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn remove_and_keep_do_what_they_say() {
    let kept = scene(
        &MoveOptions {
            on_source: OnSource::Keep,
            ..options(ModeRequest::Stateless)
        },
        |_| {},
    );
    assert_eq!(run_quietly(&kept).await.state, DepartureState::Complete);
    assert_eq!(kept.source.inventory(), kept.before.0);
    let removed = scene(
        &MoveOptions {
            on_source: OnSource::Remove,
            ..options(ModeRequest::Cold)
        },
        |_| {},
    );
    assert_eq!(run_quietly(&removed).await.state, DepartureState::Complete);
    assert!(removed.source.all().is_empty());
}

/// The invariants, whatever failed.
fn check(scene: &Scene, record: &DepartureRecord, what: &str) {
    let (here, there) = (web_runs(&scene.source), web_runs(&scene.destination));
    match record.state {
        DepartureState::Complete => {
            assert!(there, "{what}: complete, but nothing runs there");
            assert!(
                !here || record.plan.spec().auto_remove,
                "{what}: complete, but the source runs too"
            );
        }
        DepartureState::RolledBack => {
            assert_eq!(
                scene.source.inventory(),
                scene.before.0,
                "{what}: the source is not as it was"
            );
            let fault = record.fault.as_ref().unwrap();
            assert_eq!(fault.kind, FaultKind::RolledBack, "{what}");
        }
        DepartureState::InDoubt | DepartureState::NotResumed => {
            assert_eq!(record.fault.as_ref().unwrap().kind, FaultKind::InDoubt, "{what}")
        }
        other => panic!("{what}: ended as {other:?}"),
    }
    if record.plan.mode.is_stateful() {
        assert!(!(here && there), "{what}: two instances run");
    }
}

#[tokio::test(start_paused = true)]
async fn every_single_failure_ends_well_and_leaves_nothing() {
    let mut cells = 0;
    for mode in [ModeRequest::Stateless, ModeRequest::Cold, ModeRequest::Warm] {
        for replace in [false, true] {
            for failure in [Failure::Before, Failure::After] {
                for at_source in [true, false] {
                    for call in 0.. {
                        let scene = scene(
                            &MoveOptions {
                                replace,
                                ..options(mode)
                            },
                            |_| {},
                        );
                        let engine = if at_source {
                            &scene.source
                        } else {
                            &scene.destination
                        };
                        engine.fail(&[(call, failure)]);
                        let record = run_quietly(&scene).await;
                        let calls = engine.calls();
                        let Some(name) = calls.get(call) else { break };
                        let what = format!(
                            "{mode:?} replace={replace} {failure:?} {name} (call {call}, source {at_source})"
                        );
                        check(&scene, &record, &what);
                        assert_ne!(
                            record.state,
                            DepartureState::InDoubt,
                            "{what}: one failure is never a doubt"
                        );
                        if record.state == DepartureState::RolledBack {
                            assert_eq!(
                                scene.destination.inventory(),
                                scene.before.1,
                                "{what}: something is left there"
                            );
                        }
                        cells += 1;
                    }
                }
            }
        }
    }
    assert!(cells > 150, "only {cells} failures were tried");
}

#[tokio::test(start_paused = true)]
async fn no_pair_of_failures_makes_two_instances_or_a_silent_loss() {
    for mode in [ModeRequest::Stateless, ModeRequest::Cold, ModeRequest::Warm] {
        let clean = scene(&options(mode), |_| {});
        let _ = run_quietly(&clean).await;
        let calls = clean.destination.calls().len();
        for first in 0..calls {
            for gap in 1..8 {
                for failure in [Failure::Before, Failure::After] {
                    let scene = scene(&options(mode), |_| {});
                    scene
                        .destination
                        .fail(&[(first, failure), (first + gap, failure)]);
                    let record = run_quietly(&scene).await;
                    let what = format!(
                        "{mode:?} {failure:?} calls {first} and {}: {:?}",
                        first + gap,
                        record.fault
                    );
                    check(&scene, &record, &what);
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_is_away_for_a_moment_after_the_start_sends_nothing_back() {
    for mode in [ModeRequest::Cold, ModeRequest::Warm] {
        let clean = scene(&options(mode), |_| {});
        let _ = run_quietly(&clean).await;
        let calls = clean.destination.calls();
        let start = calls.iter().position(|c| *c == "start").unwrap();
        for (first, call) in calls.iter().enumerate().skip(start) {
            let scene = scene(&options(mode), |_| {});
            let away: Vec<_> = (first..first + 3).map(|n| (n, Failure::After)).collect();
            scene.destination.fail(&away);
            let record = run_quietly(&scene).await;
            let what = format!("{mode:?} call {first}, {call}: {:?}", record.fault);
            assert_eq!(record.state, DepartureState::Complete, "{what}");
            check(&scene, &record, &what);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_paused_is_ended_before_the_commit_and_comes_back_by_a_start() {
    let clean = scene(&options(ModeRequest::Warm), |_| {});
    let _ = run_quietly(&clean).await;
    let calls = clean.destination.calls();
    let start = calls.iter().position(|c| *c == "start").unwrap();
    let scene = scene(&options(ModeRequest::Warm), |_| {});
    scene.destination.fail(&[(start, Failure::Before)]);
    let record = run_quietly(&scene).await;
    assert_eq!(record.state, DepartureState::RolledBack, "{:?}", record.fault);
    let calls = scene.source.calls();
    let last = |name: &str| calls.iter().rposition(|c| *c == name);
    assert!(
        last("pause") < last("kill") && last("kill") < last("start"),
        "{calls:?}"
    );
    assert_eq!(last("unpause"), None);
    check(&scene, &record, "a start that fails there");
}

#[tokio::test(start_paused = true)]
async fn an_unhealthy_container_goes_back() {
    for mode in [ModeRequest::Stateless, ModeRequest::Cold, ModeRequest::Warm] {
        let scene = scene(&options(mode), |_| {});
        scene.destination.set_health(Health::Unhealthy);
        let record = run_quietly(&scene).await;
        assert_eq!(record.state, DepartureState::RolledBack);
        let fault = record.fault.clone().unwrap();
        assert_eq!(fault.code, "health.unhealthy");
        assert!(fault.to_string().contains("its last line"), "{fault}");
        assert_eq!(scene.source.inventory(), scene.before.0);
        assert_eq!(scene.destination.inventory(), scene.before.1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_changed_since_the_plan_ends_it_before_anything_happens() {
    let removed = scene(&options(ModeRequest::Cold), |_| {});
    let id = removed.plan.spec().id.clone();
    tranship_core::Engine::remove_container(removed.source.as_ref(), &id)
        .await
        .unwrap();
    let paused = scene(&options(ModeRequest::Cold), |_| {});
    paused
        .source
        .alter(&paused.plan.spec().id, |c| c.state = ContainerState::Paused);
    let restarted = scene(&options(ModeRequest::Cold), |_| {});
    restarted.source.alter(&restarted.plan.spec().id, |c| {
        c.spec.status.started_at = "later".into()
    });
    for scene in [removed, paused, restarted] {
        let record = run_quietly(&scene).await;
        assert_eq!(record.fault.unwrap().code, "container.changed");
        assert_eq!(scene.destination.inventory(), scene.before.1);
    }
}

/// Asks for an abort when a phase begins.
struct AbortAt(tranship_core::Phase, watch::Sender<bool>);

impl Reporter for AbortAt {
    fn report(&self, event: Event) {
        if event == (Event::PhaseStarted { phase: self.0 }) {
            self.1.send_replace(true);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_abort_rolls_back_until_the_commit_and_not_after() {
    use tranship_core::Phase;
    for (mode, phase, completes) in [
        (ModeRequest::Cold, Phase::Check, false),
        (ModeRequest::Cold, Phase::Image, false),
        (ModeRequest::Cold, Phase::Create, false),
        (ModeRequest::Cold, Phase::Freeze, false),
        (ModeRequest::Cold, Phase::Start, true),
        (ModeRequest::Warm, Phase::Freeze, false),
        (ModeRequest::Warm, Phase::Start, true),
        (ModeRequest::Stateless, Phase::Start, false),
        (ModeRequest::Stateless, Phase::Health, false),
        (ModeRequest::Stateless, Phase::HandOver, true),
    ] {
        let scene = scene(&options(mode), |_| {});
        let (sender, cancelled) = watch::channel(false);
        let record = run(&scene, cancelled, Arc::new(AbortAt(phase, sender))).await;
        check(&scene, &record, &format!("{mode:?} {phase:?}"));
        assert_eq!(
            record.state == DepartureState::Complete,
            completes,
            "{mode:?} {phase:?}"
        );
        if !completes {
            assert_eq!(record.fault.unwrap().code, "migrate.aborted");
            assert_eq!(scene.destination.inventory(), scene.before.1);
        }
    }
}

fn anonymous_volume(name: &str) -> MountSpec {
    MountSpec {
        kind: MountKind::Volume,
        destination: "/data".into(),
        name: name.into(),
        source: String::new(),
        driver: "local".into(),
        writable: true,
        anonymous: true,
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_removed_leaves_its_volumes() {
    let options = MoveOptions {
        on_source: OnSource::Remove,
        without_volumes: true,
        ..options(ModeRequest::Cold)
    };
    let scene = scene(&options, |s| s.mounts.push(anonymous_volume("v1")));
    scene.source.add_volume("v1");
    assert_eq!(run_quietly(&scene).await.state, DepartureState::Complete);
    assert!(scene.source.all().is_empty());
    assert!(
        scene.source.inventory().contains(&"volume v1".to_owned()),
        "its data did not travel, and must not be destroyed"
    );
}

#[tokio::test(start_paused = true)]
async fn a_container_that_makes_way_leaves_its_volumes() {
    let options = MoveOptions {
        replace: true,
        ..options(ModeRequest::Cold)
    };
    let scene = scene(&options, |_| {});
    let other = scene.destination.all().remove(0).spec.id;
    scene
        .destination
        .alter(&other, |c| c.spec.mounts.push(anonymous_volume("v1")));
    scene.destination.add_volume("v1");
    assert_eq!(run_quietly(&scene).await.state, DepartureState::Complete);
    assert_eq!(scene.destination.all().len(), 1);
    assert!(scene.destination.inventory().contains(&"volume v1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn an_image_that_was_there_without_a_tag_stays_when_the_move_fails() {
    let scene = scene(&options(ModeRequest::Cold), |_| {});
    scene.destination.add_image(&memory::image("app:1", 3));
    scene.destination.forget_tag("app:1");
    scene.destination.set_health(Health::Unhealthy);
    assert_eq!(run_quietly(&scene).await.state, DepartureState::RolledBack);
    let image = format!("image {}", scene.plan.transfer.image.id);
    assert!(scene.destination.inventory().contains(&image));
}

/// Asks for an abort some time after a phase began.
struct AbortAfter(tranship_core::Phase, std::time::Duration, watch::Sender<bool>);

impl Reporter for AbortAfter {
    fn report(&self, event: Event) {
        if event == (Event::PhaseStarted { phase: self.0 }) {
            let (after, sender) = (self.1, self.2.clone());
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                sender.send_replace(true);
            });
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_that_the_engine_is_taking_in_at_an_abort_does_not_stay() {
    use std::time::Duration;
    let scene = scene(&options(ModeRequest::Cold), |_| {});
    scene.destination.set_import_time(Duration::from_secs(5));
    let (sender, cancelled) = watch::channel(false);
    let abort = AbortAfter(tranship_core::Phase::Image, Duration::from_secs(1), sender);
    let record = run(&scene, cancelled, Arc::new(abort)).await;
    assert_eq!(record.fault.unwrap().code, "migrate.aborted");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(scene.destination.inventory(), scene.before.1);
}

/// Keeps what was said to be the end, and the policy that the source's container had then.
struct Ends(Arc<MemoryEngine>, Mutex<Vec<(String, String)>>);

impl Reporter for Ends {
    fn report(&self, event: Event) {
        if let Event::Finished { fault: Some(fault) } = event {
            let policy = self.0.all().remove(0).policy.name;
            self.1.lock().unwrap().push((fault.code, policy));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_cannot_start_gets_its_restart_policy_back_and_is_tried_again() {
    let clean = scene(&options(ModeRequest::Cold), |_| {});
    clean.destination.set_health(Health::Unhealthy);
    let _ = run_quietly(&clean).await;
    let start = clean.source.calls().iter().rposition(|c| *c == "start").unwrap();
    let scene = scene(&options(ModeRequest::Cold), |_| {});
    scene.destination.set_health(Health::Unhealthy);
    // Every third call is a start: status, policy, start, status, policy, start …
    let starts: Vec<_> = (0..5).map(|n| (start + 3 * n, Failure::Before)).collect();
    scene.source.fail(&starts);
    let ends = Arc::new(Ends(scene.source.clone(), Mutex::default()));
    let (_keep, cancelled) = watch::channel(false);
    let record = run(&scene, cancelled, ends.clone()).await;
    assert_eq!(record.state, DepartureState::RolledBack);
    assert_eq!(scene.source.inventory(), scene.before.0);
    let ends = ends.1.lock().unwrap().clone();
    assert_eq!(
        ends,
        [
            ("source.not-resumed".to_owned(), "always".to_owned()),
            ("health.unhealthy".to_owned(), "always".to_owned())
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_paused_container_does_not_make_way() {
    let options = MoveOptions {
        replace: true,
        ..options(ModeRequest::Stateless)
    };
    let scene = scene(&options, |_| {});
    let other = scene.destination.all().remove(0).spec.id;
    scene
        .destination
        .alter(&other, |c| c.state = ContainerState::Paused);
    let before = scene.destination.inventory();
    let record = run_quietly(&scene).await;
    assert_eq!(record.fault.unwrap().code, "name.paused");
    assert_eq!(scene.destination.inventory(), before);
}
