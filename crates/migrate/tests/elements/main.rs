//! Which storage elements a plan carries, under which names, and what it refuses to touch.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may panic as tests do"
)]

mod edges;

use tranship_core::container::{HealthCheck, LayerChanges, MountKind, MountSpec};
use tranship_core::node::{ArrivalFacts, ContainerReport, ElementSize, NodeFacts, Survey};
use tranship_core::storage::{ElementAt, ElementRoute, VolumeSpec, VolumeUser};
use tranship_core::{ContainerId, MigrationId};
use tranship_migrate::elements::{Making, Target};
use tranship_migrate::options::{
    Hook, HookPlace, HookTime, ModeRequest, MoveOptions, OnSource, VolumeConflict,
};
use tranship_migrate::plan::{Mode, Plan, PlanInput, Prediction, Severity, plan};
use tranship_testkit::memory;

struct Sides {
    reports: Vec<ContainerReport>,
    survey: Survey,
    options: MoveOptions,
}

fn node() -> NodeFacts {
    NodeFacts {
        host_name: "n".into(),
        tranship_version: "0".into(),
        user_id: 0,
        clock_ms: 1_000_000,
        engine: memory::facts(),
        free_bytes: Some(10 << 30),
        free_inodes: Some(1_000_000),
        direct_layers: true,
        direct_files: true,
        addresses: Vec::new(),
        limits: Vec::new(),
        live: memory::live_facts(),
    }
}

fn mount(kind: MountKind, name: &str, path: &str) -> MountSpec {
    MountSpec {
        kind,
        name: if kind == MountKind::Volume {
            name.into()
        } else {
            String::new()
        },
        source: format!("/srv/{name}"),
        destination: path.into(),
        driver: "local".into(),
        writable: true,
        anonymous: kind == MountKind::Volume && name.len() == 64,
    }
}

fn report(name: &str, id: &str, mounts: Vec<MountSpec>) -> ContainerReport {
    let mut spec = memory::bare_spec(name, &memory::image("app:1", 2));
    spec.id = ContainerId::new(id).unwrap();
    let volumes = mounts
        .iter()
        .filter(|m| m.kind == MountKind::Volume)
        .map(|m| VolumeSpec {
            name: m.name.clone(),
            driver: "local".into(),
            anonymous: m.anonymous,
            guid: format!("guid-of-{}", m.name),
            users: vec![user(name, id, true)],
            ..VolumeSpec::default()
        })
        .collect();
    spec.mounts = mounts;
    ContainerReport {
        spec,
        changes: LayerChanges::default(),
        archive_bytes: vec![10, 5, 1],
        volumes,
        sizes: Default::default(),
        bind_files: Vec::new(),
        bind_users: Default::default(),
        mounted_below: Default::default(),
        memory: None,
        notes: Default::default(),
    }
}

fn user(name: &str, id: &str, running: bool) -> VolumeUser {
    VolumeUser {
        container: ContainerId::new(id).unwrap(),
        name: name.into(),
        running,
        writable: true,
    }
}

fn sides(mounts: Vec<MountSpec>) -> Sides {
    Sides {
        reports: vec![report("db", "01", mounts)],
        survey: Survey {
            node: node(),
            containers: Vec::new(),
            networks: Vec::new(),
            volumes: Vec::new(),
            volume_specs: Vec::new(),
            ports: Vec::new(),
            arrivals: vec![ArrivalFacts::default(); 3],
        },
        options: MoveOptions::default(),
    }
}

impl Sides {
    fn plan(&self) -> Plan {
        plan(&PlanInput {
            source: "a",
            destination: "b",
            containers: &[(MigrationId::new("m1").unwrap(), self.reports.clone())],
            source_node: &node(),
            survey: &self.survey,
            options: &self.options,
            not_live: None,
        })
        .remove(0)
    }

    fn there(&mut self, name: &str, users: Vec<VolumeUser>) {
        self.survey.volumes.push(name.into());
        self.survey.volume_specs.push(VolumeSpec {
            name: name.into(),
            driver: "local".into(),
            users,
            ..VolumeSpec::default()
        });
    }
}

fn codes(plan: &Plan, severity: Severity) -> Vec<&str> {
    let found = plan.findings.iter().filter(|f| f.severity == severity);
    found.map(|f| f.code.as_str()).collect()
}

#[track_caller]
fn fine(plan: &Plan) {
    assert_eq!(codes(plan, Severity::Conflict), [""; 0], "{:#?}", plan.findings);
}

fn volume(name: &str, path: &str) -> MountSpec {
    mount(MountKind::Volume, name, path)
}

#[test]
fn a_container_with_a_volume_moves_cold_and_brings_layer_and_volume() {
    let plan = sides(vec![volume("data", "/data")]).plan();
    fine(&plan);
    assert_eq!(plan.mode, Mode::Cold);
    let targets: Vec<_> = plan.elements.iter().map(|e| &e.target).collect();
    let named = Target::Volume {
        name: "data".into(),
        making: Making::New,
    };
    assert_eq!(targets, [&named, &Target::Layer { member: 0 }]);
    assert!(plan.elements.iter().all(|e| e.copied));
    assert_eq!(plan.create.carried.get("/data").unwrap(), "data");
    assert!(!plan.create.empty_volumes);
    assert_eq!(plan.elements[0].volume.as_ref().unwrap().guid, "guid-of-data");
}

#[test]
fn an_anonymous_volume_gets_a_new_name_and_its_data() {
    let name = "f".repeat(64);
    let plan = sides(vec![volume(&name, "/var/lib/x")]).plan();
    fine(&plan);
    assert_eq!(plan.create.carried.get("/var/lib/x").unwrap(), "");
    assert!(
        matches!(&plan.elements[0].target, Target::Anonymous { member: 0, path } if path == "/var/lib/x")
    );
}

#[test]
fn one_volume_at_two_paths_travels_once() {
    let plan = sides(vec![volume("data", "/a"), volume("data", "/b")]).plan();
    fine(&plan);
    assert_eq!(
        plan.elements
            .iter()
            .filter(|e| matches!(e.at, ElementAt::Volume { .. }))
            .count(),
        1
    );
    assert_eq!(plan.create.carried.len(), 2);
}

#[test]
fn stateless_never_carries_a_volume() {
    let mut sides = sides(vec![volume("data", "/data")]);
    sides.options.mode = ModeRequest::Stateless;
    assert_eq!(codes(&sides.plan(), Severity::Conflict), ["volume.stateless"]);
    sides.options.without_volumes = true;
    fine(&sides.plan());
}

#[test]
fn a_volume_of_that_name_at_the_destination_is_never_overwritten_unasked() {
    let mut sides = sides(vec![volume("data", "/data")]);
    sides.there("data", vec![]);
    assert_eq!(codes(&sides.plan(), Severity::Conflict), ["volume.exists"]);
    let with = |sides: &mut Sides, conflict| {
        sides.options.volume_conflict = conflict;
        let plan = sides.plan();
        fine(&plan);
        (
            plan.elements[0].target.clone(),
            plan.elements[0].copied,
            plan.create.carried["/data"].clone(),
        )
    };
    let target = |name: &str, making| Target::Volume {
        name: name.into(),
        making,
    };
    assert_eq!(
        with(&mut sides, VolumeConflict::Rename),
        (target("data-2", Making::New), true, "data-2".into())
    );
    assert_eq!(
        with(&mut sides, VolumeConflict::Reuse),
        (target("data", Making::Reuse), false, "data".into())
    );
    assert_eq!(
        with(&mut sides, VolumeConflict::Replace),
        (target("data", Making::Replace), true, "data".into())
    );
    sides.survey.volume_specs[0].users = vec![user("other", "09", true)];
    assert_eq!(codes(&sides.plan(), Severity::Conflict), ["volume.in-use"]);
    sides.survey.volumes.push("data-2".into());
    assert_eq!(with(&mut sides, VolumeConflict::Rename).2, "data-3");
}

#[test]
fn whoever_shares_a_volume_moves_along_or_nothing_moves() {
    let mut sides = sides(vec![volume("data", "/data")]);
    sides.reports[0].volumes[0].users.push(user("worker", "02", true));
    assert_eq!(codes(&sides.plan(), Severity::Conflict), ["volume.shared"]);
    sides.reports[0].volumes[0].users[1].running = false;
    let plan = sides.plan();
    fine(&plan);
    assert!(codes(&plan, Severity::Warning).contains(&"volume.shared"));

    sides.reports[0].volumes[0].users[1].running = true;
    let mut worker = report("worker", "02", vec![volume("data", "/in")]);
    worker.volumes = sides.reports[0].volumes.clone();
    worker
        .spec
        .labels
        .insert("com.docker.compose.service".into(), "worker".into());
    sides.reports[0]
        .spec
        .labels
        .insert("com.docker.compose.service".into(), "db".into());
    sides.reports[0].spec.labels.insert(
        "com.docker.compose.depends_on".into(),
        "worker:service_started:false".into(),
    );
    sides.reports.push(worker);
    let plan = sides.plan();
    fine(&plan);
    assert_eq!(plan.companions.len(), 1);
    assert_eq!(
        plan.elements
            .iter()
            .filter(|e| matches!(e.at, ElementAt::Volume { .. }))
            .count(),
        1
    );
    assert_eq!(plan.companions[0].create.carried.get("/in").unwrap(), "data");
    assert_eq!(plan.start_order(), [1, 0], "what others depend on starts first");
}

#[test]
fn what_lies_elsewhere_is_made_again_but_not_copied() {
    let mut sides = sides(vec![volume("share", "/share")]);
    let options = [("type", "nfs"), ("o", "addr=10.0.0.9,rw"), ("device", ":/export")];
    sides.reports[0].volumes[0].options = options.map(|(k, v)| (k.into(), v.into())).into();
    let plan = sides.plan();
    fine(&plan);
    assert!(!plan.elements[0].copied);
    assert!(codes(&plan, Severity::Note).contains(&"volume.elsewhere"));
    sides.reports[0].volumes[0].driver = "rexray".into();
    assert_eq!(codes(&sides.plan(), Severity::Conflict), ["volume.driver"]);
}

#[test]
fn subsets_leave_the_others_empty_and_unknown_names_are_errors() {
    let mut sides = sides(vec![volume("data", "/data"), volume("cache", "/cache")]);
    sides.options.volumes = vec!["data".into()];
    let plan = sides.plan();
    fine(&plan);
    assert_eq!(plan.create.carried.keys().collect::<Vec<_>>(), ["/data"]);
    assert!(plan.create.empty_volumes);
    assert!(codes(&plan, Severity::Warning).contains(&"volume.empty"));
    sides.options.volumes.clear();
    sides.options.exclude_volumes = vec!["/cache".into()];
    assert_eq!(sides.plan().create.carried.len(), 1);
    sides.options.exclude_volumes = vec!["cahce".into()];
    assert_eq!(codes(&sides.plan(), Severity::Conflict), ["mount.no-such"]);
}

#[test]
fn a_bind_mount_comes_only_when_asked_and_never_over_somebodys_files() {
    let mut sides = sides(vec![mount(MountKind::Bind, "conf", "/conf")]);
    assert_eq!(codes(&sides.plan(), Severity::Conflict), ["bind.present"]);
    sides.options.shared_bind = vec!["/conf".into()];
    let plan = sides.plan();
    fine(&plan);
    assert_eq!(plan.create.carried.get("/conf").unwrap(), "/srv/conf");
    assert_eq!(
        plan.mode,
        Mode::Stateless,
        "what the destination has is no state of this container"
    );
    sides.options.shared_bind.clear();
    sides.options.include_bind = vec!["/srv/conf".into()];
    let plan = sides.plan();
    fine(&plan);
    assert_eq!(plan.mode, Mode::Cold);
    sides.survey.arrivals[0].filled_bind_sources = vec!["/srv/conf".into()];
    assert_eq!(codes(&sides.plan(), Severity::Conflict), ["bind.exists"]);
    sides.options.volume_conflict = VolumeConflict::Replace;
    fine(&sides.plan());
    sides.reports[0].spec.mounts[0].source = "/etc".into();
    sides.options.include_bind = vec!["/conf".into()];
    assert_eq!(codes(&sides.plan(), Severity::Conflict), ["bind.system"]);
}

#[test]
fn a_directory_that_others_use_is_not_moved_away_from_them() {
    let mut sides = sides(vec![mount(MountKind::Bind, "conf", "/conf")]);
    sides.options.include_bind = vec!["/conf".into()];
    let source = "/srv/conf".to_owned();
    let used = |users: Vec<VolumeUser>| [(source.clone(), users)].into();
    sides.reports[0].bind_users = used(vec![user("reader", "02", false)]);
    let plan = sides.plan();
    fine(&plan);
    assert!(
        codes(&plan, Severity::Warning).contains(&"bind.shared"),
        "it is stopped"
    );
    sides.reports[0].bind_users = used(vec![user("reader", "02", true)]);
    assert_eq!(codes(&sides.plan(), Severity::Conflict), ["bind.shared"]);
    sides.options.include_bind.clear();
    sides.options.shared_bind = vec!["/conf".into()];
    fine(&sides.plan());
    // Together they may go.
    sides.options.shared_bind.clear();
    sides.options.include_bind = vec!["/conf".into()];
    sides
        .reports
        .push(report("reader", "02", vec![mount(MountKind::Bind, "conf", "/c")]));
    sides.options.include_bind.push("/c".into());
    fine(&sides.plan());

    sides.reports.pop();
    sides.options.include_bind.pop();
    sides.reports[0].bind_users.clear();
    sides.survey.arrivals[0].filled_bind_sources = vec![source.clone()];
    sides.survey.arrivals[0].bind_users = used(vec![user("theirs", "09", true)]);
    sides.options.volume_conflict = VolumeConflict::Replace;
    assert_eq!(codes(&sides.plan(), Severity::Conflict), ["bind.in-use"]);
}

#[test]
fn what_is_mounted_below_is_not_left_behind_without_a_word() {
    for kind in [MountKind::Bind, MountKind::Volume] {
        let mut sides = sides(vec![mount(kind, "files", "/files")]);
        sides.options.include_bind = match kind {
            MountKind::Bind => vec!["/files".into()],
            _ => Vec::new(),
        };
        sides.reports[0].mounted_below = [("/files".to_owned(), vec!["a/big disk".to_owned()])].into();
        let plan = sides.plan();
        assert_eq!(
            codes(&plan, Severity::Conflict),
            ["files.mounted-below"],
            "{kind:?}"
        );
        assert!(plan.findings.iter().any(|f| {
            f.remedy
                .as_deref()
                .is_some_and(|r| r.contains("--exclude '/a/big disk'"))
        }));
        for exclude in ["/a/big disk", "a/", "/a"] {
            sides.options.exclude = vec![exclude.into()];
            fine(&sides.plan());
        }
        sides.options.exclude = vec!["/a/big".into()];
        assert_eq!(codes(&sides.plan(), Severity::Conflict), ["files.mounted-below"]);
    }
}

#[test]
fn memory_comes_only_while_it_is_there() {
    let mut sides = sides(vec![mount(MountKind::Tmpfs, "", "/scratch")]);
    fine(&sides.plan());
    sides.options.include_tmpfs = vec!["/scratch".into()];
    sides.options.mode = ModeRequest::Cold;
    assert_eq!(codes(&sides.plan(), Severity::Conflict), ["tmpfs.mode"]);
    sides.options.mode = ModeRequest::Warm;
    let plan = sides.plan();
    fine(&plan);
    assert!(
        plan.elements
            .iter()
            .any(|e| matches!(e.target, Target::Tmpfs { .. }))
    );
}

#[test]
fn labels_bring_hooks_into_the_container_but_never_onto_the_host() {
    let mut sides = sides(vec![volume("data", "/data")]);
    let labels = [
        ("tranship.hook.pre-freeze", "sync"),
        ("tranship.hook.pre-freeze.timeout", "7"),
    ];
    sides.reports[0]
        .spec
        .labels
        .extend(labels.map(|(k, v)| (k.to_owned(), v.to_owned())));
    let plan = sides.plan();
    fine(&plan);
    let hook = &plan.hooks[0].hook;
    assert_eq!(
        (hook.when, hook.place, hook.command.as_str(), hook.timeout),
        (HookTime::PreFreeze, HookPlace::Container, "sync", 7)
    );
    sides.options.hooks = vec![Hook {
        when: HookTime::PostFreeze,
        place: HookPlace::Container,
        command: "x".into(),
        timeout: 1,
    }];
    assert_eq!(codes(&sides.plan(), Severity::Conflict), ["hook.frozen"]);
}

#[test]
fn two_instances_are_never_kept_where_there_is_state() {
    for mode in [ModeRequest::Auto, ModeRequest::Cold, ModeRequest::Warm] {
        let mut sides = sides(vec![volume("data", "/data")]);
        sides.options.mode = mode;
        sides.options.on_source = OnSource::Keep;
        assert_eq!(
            codes(&sides.plan(), Severity::Conflict),
            ["plan.keep"],
            "{mode:?}"
        );
    }
}
