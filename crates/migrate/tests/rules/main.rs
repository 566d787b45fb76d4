//! The plan's rules, one by one, without an engine: what must be a conflict is one, and what need not be is not.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may panic as tests do"
)]

mod auto;
mod edges;
mod live;
mod ways;

use std::net::IpAddr;

use tranship_core::container::{
    ContainerState, ContainerSummary, LayerChanges, MountKind, MountSpec, NetworkAttachment, PublishedPort,
};
use tranship_core::memory::Obstacle;
use tranship_core::network::AddressPool;
use tranship_core::node::{
    ArrivalFacts, ContainerReport, ElementSize, ImageStore, NodeFacts, PortInUse, Survey,
};
use tranship_core::{ContainerId, MigrationId, NetworkSpec};
use tranship_migrate::options::{ModeRequest, MoveOptions, OnSource};
use tranship_migrate::plan::{Mode, Plan, PlanInput, Severity, plan};
use tranship_testkit::memory;

/// Both sides of a plan, to be changed by a test.
struct Sides {
    report: ContainerReport,
    survey: Survey,
    source: NodeFacts,
    options: MoveOptions,
}

/// A volume that may be written to, at `/data`.
fn data_volume() -> MountSpec {
    MountSpec {
        kind: MountKind::Volume,
        name: "data".into(),
        source: String::new(),
        destination: "/data".into(),
        driver: "local".into(),
        writable: true,
        anonymous: false,
    }
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
        addresses: vec!["192.0.2.1".parse().unwrap()],
        limits: Vec::new(),
        live: memory::live_facts(),
    }
}

fn sides() -> Sides {
    let image = memory::image("app:1", 3);
    Sides {
        report: ContainerReport {
            spec: memory::bare_spec("web", &image),
            changes: LayerChanges::default(),
            archive_bytes: vec![3000, 2000, 1000, 10],
            volumes: Vec::new(),
            sizes: Default::default(),
            bind_files: Vec::new(),
            bind_users: Default::default(),
            mounted_below: Default::default(),
            memory: Some(Default::default()),
            notes: Default::default(),
        },
        survey: Survey {
            node: node(),
            containers: Vec::new(),
            networks: Vec::new(),
            volumes: Vec::new(),
            volume_specs: Vec::new(),
            ports: Vec::new(),
            arrivals: vec![ArrivalFacts::default()],
        },
        source: node(),
        options: MoveOptions::default(),
    }
}

impl Sides {
    fn plan(&self) -> Plan {
        let containers = [(MigrationId::new("m1").unwrap(), vec![self.report.clone()])];
        plan(&PlanInput {
            source: "a",
            destination: "b",
            containers: &containers,
            source_node: &self.source,
            survey: &self.survey,
            options: &self.options,
            not_live: None,
        })
        .remove(0)
    }
}

fn codes(plan: &Plan, severity: Severity) -> Vec<&str> {
    plan.findings
        .iter()
        .filter(|f| f.severity == severity)
        .map(|f| f.code.as_str())
        .collect()
}

/// What the change makes a conflict; every conflict must say what to do, or why nothing can be done.
#[track_caller]
fn conflicts(change: impl FnOnce(&mut Sides), expected: &[&str]) {
    let mut sides = sides();
    change(&mut sides);
    let plan = sides.plan();
    assert_eq!(codes(&plan, Severity::Conflict), expected, "{:#?}", plan.findings);
}

fn port(host: Option<&str>, number: u16, protocol: &str) -> PublishedPort {
    PublishedPort {
        container_port: 80,
        protocol: protocol.into(),
        host_address: host.map(|h| h.parse().unwrap()),
        host_port: Some(number),
    }
}

fn used(address: &str, number: u16, protocol: &str, container: Option<&str>) -> PortInUse {
    PortInUse {
        protocol: protocol.into(),
        address: address.parse().unwrap(),
        port: number,
        container: container.map(str::to_owned),
    }
}

/// A bridge of one address pool that nobody uses.
fn network(name: &str, subnet: &str) -> NetworkSpec {
    NetworkSpec {
        id: "n".into(),
        name: name.into(),
        driver: "bridge".into(),
        scope: "local".into(),
        internal: false,
        ipv6: false,
        options: Default::default(),
        labels: Default::default(),
        pools: vec![AddressPool {
            subnet: subnet.into(),
            gateway: None,
            range: None,
        }],
        used: Default::default(),
        document: serde_json::json!({}),
    }
}

#[test]
fn a_plain_container_has_no_conflict_and_exact_bytes() {
    let mut sides = sides();
    sides.survey.arrivals[0].layers_held = 2;
    let plan = sides.plan();
    assert_eq!(codes(&plan, Severity::Conflict), [""; 0]);
    assert_eq!((plan.prediction.bytes, plan.prediction.image_bytes), (1000, 3000));
    sides.survey.arrivals[0].image_held = true;
    assert_eq!(sides.plan().prediction.bytes, 0);
    sides.options.whole_image = true;
    assert_eq!(sides.plan().prediction.bytes, 3000);
    // containerd would keep it a second time, without a name.
    sides.survey.node.engine.containerd_seen = true;
    assert_eq!(sides.plan().prediction.bytes, 0);
    assert!(!sides.plan().options.whole_image);
    sides.survey.arrivals[0].image_held = false;
    assert!(sides.plan().options.whole_image);
}

#[test]
fn an_image_of_uncertain_platform_does_not_move() {
    let mut sides = sides();
    sides.report.spec.ties.image_platform = Some("2 platforms are here".into());
    assert_eq!(codes(&sides.plan(), Severity::Conflict), ["image.platforms"]);
}

#[test]
fn what_an_engine_cannot_be_asked_for_again_does_not_move() {
    conflicts(
        |s| {
            let secrets = Obstacle::new("podman.secrets", "it has secrets", "make it again without");
            s.report.spec.ties.uncarried.push(secrets);
        },
        &["podman.secrets"],
    );
}

#[test]
fn only_a_running_container_moves() {
    for (state, code) in [
        (ContainerState::Paused, "container.paused"),
        (ContainerState::Restarting, "container.restarting"),
        (ContainerState::Exited, "container.not-running"),
        (ContainerState::Created, "container.not-running"),
        (ContainerState::Dead, "container.not-running"),
        (ContainerState::Removing, "container.not-running"),
    ] {
        conflicts(|s| s.report.spec.status.state = state, &[code]);
    }
}

#[test]
fn ports_meet_by_protocol_and_address() {
    let meets = |host: Option<&str>, there: &str, protocol: &str, expected: &[&str]| {
        conflicts(
            |s| {
                s.report.spec.ports = vec![port(host, 80, "tcp")];
                s.survey.ports = vec![used(there, 80, protocol, None)];
            },
            expected,
        );
    };
    meets(None, "0.0.0.0", "tcp", &["port.taken"]);
    meets(None, "127.0.0.1", "tcp", &["port.taken"]);
    meets(Some("0.0.0.0"), "127.0.0.1", "tcp", &["port.taken"]);
    meets(Some("127.0.0.1"), "0.0.0.0", "tcp", &["port.taken"]);
    meets(Some("127.0.0.1"), "::", "tcp", &["port.taken"]);
    meets(Some("127.0.0.1"), "192.0.2.1", "tcp", &[]);
    meets(None, "0.0.0.0", "udp", &[]);
    // An address that the destination does not have.
    meets(Some("203.0.113.9"), "0.0.0.0", "udp", &["port.address"]);
}

#[test]
fn publish_moves_a_port_out_of_the_way_and_names_a_wrong_one() {
    let taken = |s: &mut Sides| {
        s.report.spec.ports = vec![port(None, 80, "tcp")];
        s.survey.ports = vec![
            used("0.0.0.0", 80, "tcp", Some("other")),
            used("0.0.0.0", 82, "tcp", None),
        ];
    };
    conflicts(
        |s| {
            taken(s);
            s.options.publish.insert(80, 81);
        },
        &[],
    );
    conflicts(
        |s| {
            taken(s);
            s.options.publish.insert(80, 82);
        },
        &["port.taken"],
    );
    conflicts(
        |s| {
            taken(s);
            s.options.publish.insert(81, 83);
        },
        &["port.not-published", "port.taken"],
    );
    // The container that makes way takes its ports with it; others don't.
    conflicts(
        |s| {
            taken(s);
            s.options.replace = true;
        },
        &["port.taken"],
    );
    conflicts(
        |s| {
            taken(s);
            s.options.replace = true;
            s.survey.ports[0].container = Some("web".into());
        },
        &[],
    );
}

#[test]
fn names_networks_and_addresses() {
    let network = |subnet: &str| network("back", subnet);
    let joined = |s: &mut Sides, fixed: &[&str]| {
        s.report.spec.networks = vec![network("10.1.0.0/24")];
        s.report.spec.attachments = vec![NetworkAttachment {
            network: "back".into(),
            aliases: Vec::new(),
            fixed_addresses: fixed.iter().map(|a| a.parse::<IpAddr>().unwrap()).collect(),
            links: Vec::new(),
            mac_address: None,
        }];
    };
    conflicts(|s| joined(s, &["10.1.0.9"]), &[]);
    conflicts(
        |s| {
            joined(s, &[]);
            s.survey.networks = vec![network("10.1.0.0/24")];
        },
        &[],
    );
    conflicts(
        |s| {
            joined(s, &[]);
            s.survey.networks = vec![network("10.2.0.0/24")];
        },
        &["network.differs"],
    );
    conflicts(
        |s| {
            joined(s, &["10.1.0.9"]);
            s.survey.networks = vec![network("10.2.0.0/24")];
            s.options.reuse_networks = true;
        },
        &["network.address-outside"],
    );
    conflicts(
        |s| {
            joined(s, &["10.1.0.9"]);
            s.survey.networks = vec![network("10.1.0.0/24")];
            s.survey.networks[0]
                .used
                .insert("other".into(), vec!["10.1.0.9".parse().unwrap()]);
        },
        &["network.address-taken"],
    );
    conflicts(
        |s| {
            joined(s, &[]);
            s.survey.networks = vec![NetworkSpec {
                name: "wide".into(),
                ..network("10.0.0.0/8")
            }];
        },
        &["network.overlap"],
    );
    // The destination's own network must not be hidden behind a bridge.
    conflicts(
        |s| {
            joined(s, &[]);
            s.survey.node.addresses = vec!["10.1.0.77".parse().unwrap()];
        },
        &["network.overlap"],
    );
    conflicts(
        |s| {
            joined(s, &["10.1.0.9"]);
            s.survey.node.addresses = vec!["10.1.0.77".parse().unwrap()];
            s.options.new_subnets = true;
        },
        &[],
    );
    conflicts(
        |s| {
            joined(s, &[]);
            s.report.spec.networks[0].scope = "swarm".into();
        },
        &["network.scope"],
    );
    conflicts(
        |s| {
            joined(s, &[]);
            s.report.spec.networks[0].driver = "weave".into();
        },
        &["network.driver"],
    );

    let other = ContainerSummary {
        id: ContainerId::new("ff").unwrap(),
        names: vec!["web".into()],
        state: "exited".into(),
        ports: Vec::new(),
    };
    conflicts(|s| s.survey.containers = vec![other.clone()], &["name.taken"]);
    conflicts(
        |s| {
            s.survey.containers = vec![other.clone()];
            s.options.rename = Some("web2".into());
        },
        &[],
    );
    conflicts(
        |s| {
            s.survey.containers = vec![other.clone()];
            s.options.replace = true;
        },
        &[],
    );
}

#[test]
fn what_holds_data_is_never_left_behind_in_silence() {
    let mount = |kind| MountSpec {
        kind,
        name: if kind == MountKind::Volume {
            "data".into()
        } else {
            String::new()
        },
        source: "/srv/data".into(),
        destination: "/data".into(),
        driver: "local".into(),
        writable: true,
        anonymous: false,
    };
    let with = |kind| move |s: &mut Sides| s.report.spec.mounts = vec![mount(kind)];
    conflicts(with(MountKind::Volume), &[]);
    conflicts(with(MountKind::Bind), &["bind.present"]);
    conflicts(with(MountKind::Other), &["mount.unknown"]);
    conflicts(with(MountKind::Tmpfs), &[]);
    conflicts(
        |s| {
            with(MountKind::Volume)(s);
            s.options.without_volumes = true;
        },
        &[],
    );
    conflicts(
        |s| {
            with(MountKind::Volume)(s);
            s.options.without_volumes = true;
            s.survey.volumes = vec!["data".into()];
        },
        &["volume.exists"],
    );
    conflicts(
        |s| {
            with(MountKind::Bind)(s);
            s.options.without_volumes = true;
            s.survey.arrivals[0].missing_bind_sources = vec!["/srv/data".into()];
        },
        &["bind.missing"],
    );
    let wrote = |s: &mut Sides| {
        s.report.changes = LayerChanges {
            files: 1,
            bytes: 9,
            examples: vec!["/x".into()],
        }
    };
    conflicts(wrote, &[]);
    let mut sides = sides();
    wrote(&mut sides);
    let plan = sides.plan();
    assert_eq!(plan.mode, Mode::Live, "what it wrote comes along");
    assert_eq!(plan.elements.len(), 2);
    conflicts(
        |s| {
            wrote(s);
            s.options.mode = ModeRequest::Stateless;
        },
        &[],
    );
    conflicts(
        |s| {
            wrote(s);
            s.options.without_layer = true;
        },
        &[],
    );
}

#[test]
fn ties_to_the_host_and_what_it_lacks() {
    conflicts(
        |s| s.report.spec.ties.links = vec!["db".into()],
        &["network.links"],
    );
    conflicts(
        |s| s.report.spec.ties.shared_namespaces = vec!["network container:x".into()],
        &["namespace.shared"],
    );
    conflicts(
        |s| s.report.spec.ties.orchestrator = Some("Swarm".into()),
        &["container.orchestrated"],
    );
    conflicts(
        |s| s.report.spec.ties.runtime = "kata".into(),
        &["runtime.missing"],
    );
    conflicts(
        |s| s.report.spec.ties.log_driver = "loki".into(),
        &["log-driver.missing"],
    );
    conflicts(|s| s.report.spec.ties.log_driver = "none".into(), &[]);
    conflicts(
        |s| s.report.spec.ties.device_requests = vec!["all GPUs".into()],
        &["device.request"],
    );
    conflicts(
        |s| s.survey.arrivals[0].missing_devices = vec!["/dev/x".into()],
        &["device.missing"],
    );
    conflicts(
        |s| s.report.spec.ties.cpuset = "0-2".into(),
        &["resources.cpuset"],
    );
    conflicts(|s| s.report.spec.ties.cpuset = "0,1".into(), &[]);
    conflicts(
        |s| s.report.spec.ties.nano_cpus = 2_500_000_000,
        &["resources.cpus"],
    );
    conflicts(
        |s| s.survey.node.engine.architecture = "aarch64".into(),
        &["image.platform"],
    );
    conflicts(|s| s.survey.node.free_bytes = Some(1 << 20), &["space.bytes"]);
    conflicts(|s| s.survey.node.free_inodes = Some(3), &["space.inodes"]);
    conflicts(
        |s| s.survey.arrivals[0].tag_points_at = Some("sha256:other".into()),
        &["image.tag-taken"],
    );
    conflicts(
        |s| {
            s.survey.node.engine.kind = "memory".into();
            s.survey.node.engine.image_store = ImageStore::Containerd;
        },
        &["image.store"],
    );
    conflicts(
        |s| {
            s.report.spec.auto_remove = true;
            s.options.mode = ModeRequest::Cold;
        },
        &["container.auto-remove"],
    );
    conflicts(
        |s| {
            s.options.on_source = OnSource::Keep;
            s.options.mode = ModeRequest::Cold;
        },
        &["plan.keep"],
    );
}

#[test]
fn a_skewed_clock_is_a_warning_and_decides_nothing() {
    let mut sides = sides();
    sides.survey.node.clock_ms = 400_000_000_000;
    let plan = sides.plan();
    assert_eq!(codes(&plan, Severity::Conflict), [""; 0]);
    assert!(codes(&plan, Severity::Warning).contains(&"clock.skew"));
}

#[test]
fn containers_that_move_together_must_not_meet() {
    let mut first = sides();
    first.report.spec.ports = vec![port(None, 80, "tcp")];
    let mut second = first.report.clone();
    second.spec.id = ContainerId::new("02").unwrap();
    second.spec.name = "other".into();
    let containers = [
        (MigrationId::new("m1").unwrap(), vec![first.report.clone()]),
        (MigrationId::new("m2").unwrap(), vec![second]),
    ];
    first.survey.arrivals.push(ArrivalFacts::default());
    let plans = plan(&PlanInput {
        source: "a",
        destination: "b",
        containers: &containers,
        source_node: &first.source,
        survey: &first.survey,
        options: &first.options,
        not_live: None,
    });
    assert_eq!(codes(&plans[0], Severity::Conflict), [""; 0]);
    assert_eq!(codes(&plans[1], Severity::Conflict), ["port.taken"]);
}

#[test]
fn every_conflict_says_what_to_do_or_why_nothing_helps() {
    let mut sides = sides();
    let spec = &mut sides.report.spec;
    spec.status.state = ContainerState::Paused;
    spec.ties.links = vec!["db".into()];
    spec.ties.runtime = "kata".into();
    spec.ports = vec![port(None, 80, "tcp")];
    sides.survey.ports = vec![used("0.0.0.0", 80, "tcp", None)];
    sides.survey.node.free_bytes = Some(0);
    let plan = sides.plan();
    assert!(plan.conflicts().count() >= 5);
    for conflict in plan.conflicts() {
        assert!(
            conflict.remedy.as_ref().is_some_and(|r| !r.is_empty()),
            "{conflict:?}"
        );
    }
}

#[test]
fn a_container_does_not_move_to_the_engine_that_it_is_on() {
    let own = |s: &mut Sides| {
        s.survey.containers.push(ContainerSummary {
            id: s.report.spec.id.clone(),
            names: vec!["web".into()],
            state: "running".into(),
            ports: Vec::new(),
        });
    };
    conflicts(
        |s| {
            own(s);
            s.options.replace = true;
        },
        &["plan.same-node"],
    );
}

#[test]
fn ports_that_the_engine_does_not_publish_meet_nothing() {
    for mode in ["host", "none"] {
        conflicts(
            |s| {
                s.report.spec.network_mode = mode.into();
                s.report.spec.ports.push(port(None, 8080, "tcp"));
                s.survey.ports.push(used("0.0.0.0", 8080, "tcp", None));
            },
            &[],
        );
    }
}
