use std::path::PathBuf;
use std::sync::Arc;

use tranship_core::container::{ContainerState, RestartPolicy};
use tranship_core::engine::CreateRequest;
use tranship_core::image::ImageTransfer;
use tranship_core::{Engine, MigrationId};
use tranship_migrate::plan::Prediction;
use tranship_migrate::record::{DepartureRecord, DepartureState, Records as _};
use tranship_migrate::{Mode, MoveOptions, Plan, Ports};
use tranship_testkit::memory::{self, Failure, MemoryEngine};

use super::*;
use crate::checkpoints::recover::Restored;
use crate::checkpoints::store::tests::about;
use crate::docker_config::DockerConfig;
use crate::host::Shell;
use crate::image_ways::NodeImages;
use crate::locks::Locks;
use crate::registry::Registry;
use crate::store::FileRecords;

/// A node with a container that was ended for a checkpoint.
struct Node {
    root: tempfile::TempDir,
    engine: Arc<MemoryEngine>,
    store: Store,
    spec: ContainerSpec,
}

impl Node {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let engine = Arc::new(MemoryEngine::new());
        let spec = engine.run("web", &memory::image("app:1", 1), |_| ());
        engine.alter(&spec.id, |container| container.state = ContainerState::Exited);
        Self {
            store: Store::beside(root.path()),
            root,
            engine,
            spec,
        }
    }

    fn records(&self) -> FileRecords {
        FileRecords::open(self.root.path()).unwrap()
    }

    /// As an agent that begins has them.
    fn checkpoints(&self) -> Arc<Checkpoints> {
        let engine: Arc<dyn Engine> = self.engine.clone();
        let ports = Ports {
            images: Arc::new(NodeImages::new(
                Arc::clone(&engine),
                self.root.path(),
                DockerConfig::default(),
            )),
            storage: Arc::new(self.engine.storage()),
            engine,
            host: Arc::new(Shell),
        };
        let registry = Registry::new(ports, self.records(), Locks::new(self.root.path()));
        Checkpoints::new(registry, self.root.path())
    }

    fn about(&self, spec: &ContainerSpec, name: &str) -> About {
        let mut about = about(name);
        about.begun.container = spec.id.clone();
        about.begun.started_at.clone_from(&spec.status.started_at);
        about.begun.restart_policy = spec.restart_policy.clone();
        about
    }

    fn kept(&self, about: &About) -> Kept {
        let new = self.store.make_new(&about.begun.container, &about.name).unwrap();
        new.describe(about).unwrap();
        new.keep().unwrap()
    }

    /// One that came back from an archive.
    fn back(&self) -> Kept {
        self.kept(&self.about(&self.spec, "one"))
    }

    fn policy(&self) -> String {
        self.engine.all()[0].policy.name.clone()
    }

    /// Lets that one of the next calls fail, from 0.
    fn fail(&self, call: usize, how: Failure) {
        self.engine.fail(&[(self.engine.calls().len() + call, how)]);
    }

    fn is_kept(&self) -> bool {
        !self.store.all().unwrap().is_empty()
    }

    /// A move away that was completed.
    fn moved(&self, id: &str, spec: &ContainerSpec, begun_at_ms: u64) -> DepartureRecord {
        let plan = Plan {
            id: MigrationId::new(id).unwrap(),
            source: "a".into(),
            destination: "b".into(),
            mode: Mode::Cold,
            options: MoveOptions::default(),
            transfer: ImageTransfer {
                image: spec.image.clone(),
                tag: None,
                skip_layers: 0,
                bytes: None,
            },
            image_way: Default::default(),
            create: CreateRequest {
                spec: spec.clone(),
                name: spec.name.clone(),
                publish: Default::default(),
                restart_policy: RestartPolicy::never(),
                empty_volumes: false,
                carried: Default::default(),
                drop_fixed_addresses: false,
            },
            restart_policy: spec.restart_policy.clone(),
            health_timeout_ms: 0,
            companions: Vec::new(),
            elements: Vec::new(),
            tracked_memory: false,
            hooks: Vec::new(),
            findings: Vec::new(),
            prediction: Prediction::default(),
        };
        let mut record = DepartureRecord::new(plan, begun_at_ms);
        record.state = DepartureState::Complete;
        record
    }

    /// More moves than are remembered: first the container's own, then many of others.
    async fn move_away_long_ago(&self) -> PathBuf {
        let records = self.records();
        let own = self.moved("own", &self.spec, 0);
        records.save_departure(&own).await.unwrap();
        let mut other = self.spec.clone();
        other.id = tranship_core::ContainerId::new("f".repeat(64)).unwrap();
        for number in 1..=200 {
            let record = self.moved(&format!("m{number}"), &other, number);
            records.save_departure(&record).await.unwrap();
        }
        let journal = self.root.path().join("departures/own.journal");
        assert!(journal.exists());
        journal
    }
}

fn code<T>(result: Result<T, Fault>) -> Option<String> {
    result.err().map(|fault| fault.code)
}

#[tokio::test]
async fn a_checkpoint_that_came_back_parks_the_policy_of_its_container() {
    let node = Node::new();
    let kept = node.back();
    let seen = node.checkpoints().await_it(&kept, node.spec.clone()).await;
    assert_eq!(seen.unwrap().unwrap().restart_policy, RestartPolicy::never());
    assert!(node.is_kept());
    assert_eq!(node.policy(), "no");
}

#[tokio::test]
async fn what_remembers_a_policy_stays_where_it_may_be_parked() {
    let node = Node::new();
    let checkpoints = node.checkpoints();
    let kept = node.back();
    for (how, policy) in [(Failure::Before, "always"), (Failure::After, "no")] {
        node.fail(1, how);
        let fault = checkpoints.await_it(&kept, node.spec.clone()).await.unwrap_err();
        assert_eq!(fault.code, "checkpoint.not-parked");
        assert_eq!(fault.kind, FaultKind::InDoubt);
        assert_eq!(node.policy(), policy);
    }
    let left = node.store.all().unwrap().remove(0);
    let spec = checkpoints.spec_of(&node.spec.id).await.unwrap().unwrap();
    checkpoints.unpark(&left.about.begun, &spec).await.unwrap();
    assert_eq!(node.policy(), "always");
}

#[tokio::test]
async fn a_policy_that_was_changed_meanwhile_is_not_parked() {
    let node = Node::new();
    let kept = node.back();
    node.engine.alter(&node.spec.id, |container| {
        container.policy.name = "unless-stopped".into();
    });
    let refused = node.checkpoints().await_it(&kept, node.spec.clone()).await;
    assert_eq!(code(refused).as_deref(), Some("container.changed"));
    assert!(!node.is_kept());
    assert_eq!(node.policy(), "unless-stopped");
}

#[tokio::test]
async fn one_that_was_started_meanwhile_keeps_its_policy() {
    let node = Node::new();
    let kept = node.back();
    let receipt = node.store.receipt(&kept.about).unwrap();
    receipt.make().unwrap();
    node.engine.alter(&node.spec.id, |container| {
        container.spec.status.started_at = "2002-02-03T04:05:06Z".into();
    });
    let refused = node.checkpoints().await_it(&kept, node.spec.clone()).await;
    assert_eq!(code(refused).as_deref(), Some("checkpoint.started-since"));
    assert!(receipt.is_started_since(), "its engine may forget that");
    assert!(!node.is_kept());
    assert_eq!(node.policy(), "always");
}

#[tokio::test]
async fn what_another_checkpoint_parked_comes_back_after_an_agent_that_died() {
    let node = Node::new();
    let waiting = node.back();
    let mut about = node.about(&node.spec, "two");
    about.begun.leave_running = true;
    let kept = node.kept(&about);
    let checkpoints = node.checkpoints();
    checkpoints.park(&waiting.about.begun).await.unwrap();
    let order = || {
        kept.restoring(true).unwrap();
        kept.others_are_about_to_end(&node.spec.status.started_at)
            .unwrap();
        kept.used(true).unwrap();
    };
    order();
    assert_eq!(checkpoints.end_restore(&kept).await.unwrap(), Restored::Never);
    assert_eq!(node.policy(), "no", "the container waits as before");
    assert!(!waiting.is_started_since());

    order();
    node.engine.alter(&node.spec.id, |container| {
        container.state = ContainerState::Running;
        container.spec.status.started_at = "2002-02-03T04:05:06Z".into();
    });
    assert_eq!(checkpoints.end_restore(&kept).await.unwrap(), Restored::Maybe);
    assert_eq!(node.policy(), "always");
    assert!(waiting.is_started_since() && !kept.is_restoring());
}

#[tokio::test]
async fn an_engine_that_is_away_afterwards_does_not_make_it_undone() {
    let node = Node::new();
    let kept = node.back();
    node.fail(2, Failure::Before);
    let seen = node.checkpoints().await_it(&kept, node.spec.clone()).await;
    assert_eq!(seen.unwrap().unwrap().id, node.spec.id);
    assert!(node.is_kept());
    assert_eq!(node.policy(), "no");
    // One that was left running has nothing parked.
    let mut about = node.about(&node.spec, "two");
    about.begun.leave_running = true;
    let kept = node.kept(&about);
    node.fail(0, Failure::Before);
    let seen = node.checkpoints().await_it(&kept, node.spec.clone()).await;
    assert!(seen.unwrap().is_some());
}

#[tokio::test]
async fn a_move_is_noted_before_its_record_goes() {
    let node = Node::new();
    let kept = node.back();
    let exported = node.about(&node.spec, "two");
    let receipt = node.store.receipt(&exported).unwrap();
    receipt.make().unwrap();
    let journal = node.move_away_long_ago().await;
    // An agent that cannot look leaves the record to the next one.
    for call in [0, 1] {
        let checkpoints = node.checkpoints();
        node.fail(call, Failure::Before);
        checkpoints.recover(&node.store).await.unwrap();
        assert!(journal.exists());
    }
    let checkpoints = node.checkpoints();
    assert!(journal.exists());
    checkpoints.recover(&node.store).await.unwrap();
    assert!(!journal.exists());
    assert!(kept.is_moved() && receipt.is_moved());
    let refused = node
        .checkpoints()
        .may_come_back(&node.store, &exported, &node.spec)
        .await;
    assert_eq!(code(refused).as_deref(), Some("container.moved"));
}

#[tokio::test]
async fn a_move_is_noted_even_if_something_else_cannot_be_settled() {
    let node = Node::new();
    let exported = node.about(&node.spec, "two");
    let receipt = node.store.receipt(&exported).unwrap();
    let kept = node.back();
    receipt.make().unwrap();
    kept.restoring(true).unwrap();
    node.move_away_long_ago().await;
    // Two looks for the notes, one for the hold, and then the dump is removed.
    node.fail(3, Failure::Before);
    let stuck = node.checkpoints().recover(&node.store).await;
    assert_eq!(code(stuck).as_deref(), Some("checkpoint.dump-left"));
    assert!(receipt.is_moved());
}

#[tokio::test]
async fn one_container_that_cannot_be_looked_at_keeps_no_other_from_anything() {
    let node = Node::new();
    let other = node.engine.run("other", &memory::image("app:1", 1), |_| ());
    let mut receipts = Vec::new();
    for spec in [&node.spec, &other] {
        let receipt = node.store.receipt(&node.about(spec, "one")).unwrap();
        std::fs::create_dir_all(node.store.root().join(spec.id.as_str())).unwrap();
        receipt.make().unwrap();
        receipts.push(receipt);
        let record = node.moved(&spec.name, spec, 0);
        node.records().save_departure(&record).await.unwrap();
    }
    let checkpoints = node.checkpoints();
    node.fail(0, Failure::Before);
    checkpoints.recover(&node.store).await.unwrap();
    assert_eq!(receipts.iter().filter(|receipt| receipt.is_moved()).count(), 1);
    // Nothing of others is asked for.
    let calls = node.engine.calls().len();
    for spec in [&node.spec, &other] {
        let about = node.about(spec, "one");
        let refused = checkpoints.may_come_back(&node.store, &about, spec).await;
        assert_eq!(code(refused).as_deref(), Some("container.moved"));
    }
    assert_eq!(node.engine.calls().len(), calls);
    assert!(receipts.iter().all(super::super::store::Receipt::is_moved));
}
