//! The rules at their edges: what just fits, and what just does not.

use super::*;

/// Whether the plan says this, as a warning or a note.
fn says(change: impl FnOnce(&mut Sides), severity: Severity, code: &str) -> bool {
    let mut sides = sides();
    change(&mut sides);
    codes(&sides.plan(), severity).contains(&code)
}

#[test]
fn a_limit_that_just_fits_is_no_limit() {
    let cpus = |set: &'static str| move |s: &mut Sides| s.report.spec.ties.cpuset = set.into();
    conflicts(cpus("0-1"), &[]);
    conflicts(cpus("1, 2"), &["resources.cpuset"]);
    conflicts(cpus("2"), &["resources.cpuset"]);
    conflicts(|s| s.report.spec.ties.nano_cpus = 2_000_000_000, &[]);
    conflicts(
        |s| s.report.spec.ties.nano_cpus = 2_000_000_001,
        &["resources.cpus"],
    );
    let memory = |bytes: i64| {
        says(
            |s| s.report.spec.ties.memory = bytes,
            Severity::Warning,
            "resources.memory",
        )
    };
    assert!(!memory(0) && !memory(1) && !memory(8 << 30));
    assert!(memory((8 << 30) + 1));
    // An engine that does not say what it has refuses nothing.
    let unknown = |s: &mut Sides| {
        s.survey.node.engine.cpus = 0;
        s.survey.node.engine.memory = 0;
        s.report.spec.ties.cpuset = "0-7".into();
        s.report.spec.ties.nano_cpus = 9_000_000_000;
        s.report.spec.ties.memory = 1 << 40;
    };
    conflicts(unknown, &[]);
    assert!(!says(unknown, Severity::Warning, "resources.memory"));
}

#[test]
fn space_is_needed_to_the_byte_and_to_the_inode() {
    let volume = |s: &mut Sides| {
        s.report.spec.mounts = vec![data_volume()];
        s.report.sizes.insert(
            "/data".into(),
            ElementSize {
                bytes: 500,
                entries: 40,
            },
        );
    };
    // An image is there twice for a while, data once.
    for (data, needed) in [(false, 6_000), (true, 6_500)] {
        let needed = needed + (64 << 20);
        for (free, expected) in [(needed, &[][..]), (needed - 1, &["space.bytes"])] {
            conflicts(
                |s| {
                    if data {
                        volume(s);
                    }
                    s.survey.node.free_bytes = Some(free);
                },
                expected,
            );
        }
    }
    for (data, needed) in [(false, 1_000), (true, 1_040)] {
        for (free, expected) in [(needed, &[][..]), (needed - 1, &["space.inodes"])] {
            conflicts(
                |s| {
                    if data {
                        volume(s);
                    }
                    s.survey.node.free_inodes = Some(free);
                },
                expected,
            );
        }
    }
    // What does not travel needs nothing.
    conflicts(
        |s| {
            s.survey.arrivals[0].image_held = true;
            s.survey.node.free_bytes = Some(0);
            s.survey.node.free_inodes = Some(0);
        },
        &[],
    );
}

#[test]
fn what_the_engine_there_has_is_not_missed() {
    let ties = |change: fn(&mut Sides)| conflicts(change, &[]);
    ties(|s| s.report.spec.ties.runtime = "runc".into());
    ties(|s| {
        s.report.spec.ties.runtime = "kata".into();
        s.survey.node.engine.runtimes.clear();
    });
    ties(|s| s.survey.node.engine.runtimes = vec!["crun".into()]);
    ties(|s| s.report.spec.ties.log_driver = "json-file".into());
    ties(|s| {
        s.report.spec.ties.log_driver = "loki".into();
        s.survey.node.engine.log_drivers.clear();
    });
    ties(|s| {
        s.report.spec.ties.device_requests = vec!["all GPUs".into()];
        s.survey.node.engine.runtimes.push("nvidia".into());
    });
    conflicts(
        |s| {
            s.report.spec.attachments = vec![NetworkAttachment {
                network: "bridge".into(),
                aliases: Vec::new(),
                fixed_addresses: Vec::new(),
                links: vec!["db".into()],
                mac_address: None,
            }];
        },
        &["network.links"],
    );
    let profile = |options: &[&str]| {
        says(
            |s| {
                s.report.spec.ties.apparmor_profile = Some("mine".into());
                s.survey.node.engine.security_options = options.iter().map(|o| (*o).to_owned()).collect();
            },
            Severity::Warning,
            "security.apparmor",
        )
    };
    assert!(profile(&[]) && profile(&["name=seccomp"]) && !profile(&["name=seccomp", "name=apparmor"]));
    assert!(!says(|_| {}, Severity::Warning, "security.apparmor"));
}

#[test]
fn an_image_runs_where_its_platform_does() {
    for (engine, image, fits) in [
        ("x86_64", "amd64", true),
        ("amd64", "amd64", true),
        ("x86_64", "386", true),
        ("i686", "386", true),
        ("i686", "amd64", false),
        ("aarch64", "arm64", true),
        ("aarch64", "386", false),
        ("aarch64", "arm", false),
        ("armv7l", "arm", true),
        ("riscv64", "riscv64", true),
        ("riscv64", "amd64", false),
    ] {
        let expected: &[&str] = if fits { &[] } else { &["image.platform"] };
        conflicts(
            |s| {
                s.survey.node.engine.architecture = engine.into();
                s.report.spec.image.architecture = image.into();
            },
            expected,
        );
    }
    conflicts(
        |s| s.survey.node.engine.os = "windows".into(),
        &["image.platform"],
    );
}

#[test]
fn image_stores_and_tags_of_both_sides_are_compared() {
    let store = |s: &mut Sides| s.survey.node.engine.image_store = ImageStore::Containerd;
    conflicts(store, &["image.store"]);
    let other_kind = |s: &mut Sides| {
        store(s);
        s.survey.node.engine.kind = "podman".into();
    };
    conflicts(other_kind, &["engine.kind"]);
    assert!(says(other_kind, Severity::Warning, "image.store"));
    let both = |s: &mut Sides| {
        store(s);
        s.source.engine.image_store = ImageStore::Containerd;
    };
    conflicts(both, &[]);
    assert!(says(both, Severity::Note, "image.whole") && !says(|_| {}, Severity::Note, "image.whole"));
    let seen = |s: &mut Sides| {
        both(s);
        s.survey.node.engine.containerd_seen = true;
    };
    assert!(
        says(seen, Severity::Note, "image.whole"),
        "what the source keeps is not known"
    );
    let known = |s: &mut Sides| {
        seen(s);
        s.report.spec.image.kept_layers = s.report.spec.image.layers.clone();
    };
    assert!(!says(known, Severity::Note, "image.whole"));
    let empty = |s: &mut Sides| {
        both(s);
        s.report.spec.image.layers.clear();
    };
    assert!(!says(empty, Severity::Note, "image.whole"));

    let points_at = |s: &mut Sides, id: &str| s.survey.arrivals[0].tag_points_at = Some(id.into());
    conflicts(
        |s| {
            let own = s.report.spec.image.id.to_string();
            points_at(s, &own);
        },
        &[],
    );
    let retag = |s: &mut Sides| {
        points_at(s, "sha256:other");
        s.options.retag = true;
    };
    conflicts(retag, &[]);
    assert!(says(retag, Severity::Warning, "image.retag"));

    let moved = |reference: &'static str| {
        says(
            |s| s.report.spec.image_reference = reference.into(),
            Severity::Warning,
            "image.tag-moved",
        )
    };
    assert!(!moved("app:1") && !moved("docker.io/library/app:1") && !moved("sha256:0123"));
    assert!(moved("app:2") && moved("app") && moved("app@sha256:0123") && moved("localhost:5000/app:1"));
    let latest = |s: &mut Sides| {
        s.report.spec.image_reference = "localhost:5000/app".into();
        s.report.spec.image.tags = vec!["localhost:5000/app:latest".into()];
    };
    assert!(!says(latest, Severity::Warning, "image.tag-moved"));
    let digests = |s: &mut Sides| s.report.spec.image.repo_digests = vec!["app@sha256:0123".into()];
    assert!(says(digests, Severity::Note, "image.repo-digests"));
    assert!(!says(|_| {}, Severity::Note, "image.repo-digests"));
}

#[test]
fn what_only_a_person_can_weigh_is_said() {
    let skewed = |by: u64| says(|s| s.survey.node.clock_ms += by, Severity::Warning, "clock.skew");
    assert!(!skewed(0) && !skewed(60_000) && skewed(60_001));
    let cgroup = |s: &mut Sides| s.survey.node.engine.cgroup_version = "2".into();
    assert!(says(cgroup, Severity::Warning, "cgroup.version"));
    assert!(!says(|_| {}, Severity::Warning, "cgroup.version"));
    let note = |s: &mut Sides| {
        s.report.notes.insert("x.y".into(), "text".into());
    };
    assert!(says(note, Severity::Note, "x.y"));

    let rm = |s: &mut Sides| s.report.spec.auto_remove = true;
    assert!(says(rm, Severity::Note, "container.auto-remove"));
    assert!(!says(|_| {}, Severity::Note, "container.auto-remove"));
    let kept = |s: &mut Sides| {
        rm(s);
        s.options.on_source = OnSource::Keep;
    };
    assert!(!says(kept, Severity::Note, "container.auto-remove"));
    for (mode, expected) in [
        (ModeRequest::Stateless, &[][..]),
        (ModeRequest::Warm, &["container.auto-remove"]),
        (ModeRequest::Cold, &["container.auto-remove"]),
    ] {
        conflicts(
            |s| {
                rm(s);
                s.options.mode = mode;
            },
            expected,
        );
    }

    let host = |s: &mut Sides| s.report.spec.network_mode = "host".into();
    assert!(says(host, Severity::Warning, "network.host"));
    assert!(!says(|_| {}, Severity::Warning, "network.host"));
    let ephemeral = |s: &mut Sides| {
        let mut chosen = port(None, 80, "tcp");
        chosen.host_port = None;
        s.report.spec.ports = vec![chosen];
    };
    assert!(says(ephemeral, Severity::Note, "port.ephemeral"));
    let fixed = |s: &mut Sides| s.report.spec.ports = vec![port(None, 80, "tcp")];
    assert!(!says(fixed, Severity::Note, "port.ephemeral"));
}

#[test]
fn who_bears_the_name_there_makes_way_only_when_asked_and_able() {
    let there = |state: &'static str, replace: bool| {
        move |s: &mut Sides| {
            s.survey.containers = vec![ContainerSummary {
                id: ContainerId::new("ff").unwrap(),
                names: vec!["web".into()],
                state: state.into(),
                ports: Vec::new(),
            }];
            s.options.replace = replace;
        }
    };
    conflicts(there("running", false), &["name.taken"]);
    conflicts(there("paused", false), &["name.taken"]);
    conflicts(there("paused", true), &["name.paused"]);
    conflicts(there("running", true), &[]);
    assert!(says(there("running", true), Severity::Warning, "name.replaced"));
    let nobody = |s: &mut Sides| s.options.replace = true;
    assert!(!says(nobody, Severity::Warning, "name.replaced"));
}

#[test]
fn an_address_of_the_host_must_be_there() {
    let at = |address: &'static str, addresses: &'static [&'static str]| {
        move |s: &mut Sides| {
            s.report.spec.ports = vec![port(Some(address), 80, "tcp")];
            s.survey.node.addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        }
    };
    conflicts(at("192.0.2.1", &["192.0.2.1"]), &[]);
    conflicts(at("0.0.0.0", &["192.0.2.1"]), &[]);
    conflicts(at("127.0.0.1", &["192.0.2.1"]), &[]);
    conflicts(at("203.0.113.9", &["192.0.2.1"]), &["port.address"]);
    // Nobody could look.
    conflicts(at("203.0.113.9", &[]), &[]);
}

#[test]
fn members_of_one_call_are_compared_with_each_other() {
    let meet = |change: &dyn Fn(&mut ContainerReport, &mut ContainerReport)| {
        let mut sides = sides();
        let mut first = sides.report.clone();
        let mut second = sides.report.clone();
        second.spec.id = ContainerId::new("02").unwrap();
        second.spec.name = "other".into();
        change(&mut first, &mut second);
        sides.survey.arrivals.push(ArrivalFacts::default());
        let plans = plan(&PlanInput {
            source: "a",
            destination: "b",
            containers: &[
                (MigrationId::new("m1").unwrap(), vec![first]),
                (MigrationId::new("m2").unwrap(), vec![second]),
            ],
            source_node: &sides.source,
            survey: &sides.survey,
            options: &sides.options,
            not_live: None,
        });
        assert_eq!(codes(&plans[0], Severity::Conflict), [""; 0]);
        let found: Vec<String> = plans[1].conflicts().map(|f| f.code.clone()).collect();
        found
    };
    let none: Vec<String> = Vec::new();
    assert_eq!(meet(&|_, _| {}), none);
    assert_eq!(meet(&|a, b| b.spec.name = a.spec.name.clone()), ["name.taken"]);
    assert_eq!(
        meet(&|a, b| {
            b.spec.id = a.spec.id.clone();
            b.spec.name = a.spec.name.clone();
        }),
        ["plan.twice"]
    );
    let ports = |one: PublishedPort, two: PublishedPort| {
        meet(&|a, b| {
            a.spec.ports = vec![one.clone()];
            b.spec.ports = vec![two.clone()];
        })
    };
    let taken = ["port.taken"];
    assert_eq!(ports(port(None, 80, "tcp"), port(None, 80, "tcp")), taken);
    assert_eq!(ports(port(None, 80, "tcp"), port(None, 81, "tcp")), none);
    assert_eq!(ports(port(None, 80, "tcp"), port(None, 80, "udp")), none);
    let local = Some("127.0.0.1");
    assert_eq!(ports(port(local, 80, "tcp"), port(local, 80, "tcp")), taken);
    assert_eq!(
        ports(port(local, 80, "tcp"), port(Some("192.0.2.1"), 80, "tcp")),
        none
    );
    assert_eq!(
        ports(port(local, 80, "tcp"), port(Some("0.0.0.0"), 80, "tcp")),
        taken
    );
    assert_eq!(
        ports(port(Some("0.0.0.0"), 80, "tcp"), port(local, 80, "tcp")),
        taken
    );
    assert_eq!(
        ports(port(Some("0.0.0.0"), 80, "tcp"), port(Some("::1"), 80, "tcp")),
        none
    );
}

#[test]
fn networks_of_both_sides_are_compared_by_name_subnet_and_use() {
    let joined = |s: &mut Sides, fixed: &str| {
        s.report.spec.networks = vec![network("back", "10.1.0.0/24"), network("front", "10.2.0.0/24")];
        let attached = |name: &str, fixed: &str| NetworkAttachment {
            network: name.into(),
            aliases: Vec::new(),
            fixed_addresses: fixed.parse().into_iter().collect(),
            links: Vec::new(),
            mac_address: None,
        };
        s.report.spec.attachments = vec![attached("back", fixed), attached("front", "")];
    };
    let held_by = |s: &mut Sides, name: &str| {
        joined(s, "10.1.0.9");
        s.survey.networks = vec![network("back", "10.1.0.0/24")];
        s.survey.networks[0]
            .used
            .insert(name.into(), vec!["10.1.0.9".parse().unwrap()]);
    };
    // Who makes way takes the address along, and nobody else does.
    conflicts(
        |s| {
            held_by(s, "web");
            s.options.replace = true;
        },
        &[],
    );
    conflicts(
        |s| {
            held_by(s, "other");
            s.options.replace = true;
        },
        &["network.address-taken"],
    );
    conflicts(|s| held_by(s, "web"), &["network.address-taken"]);
    conflicts(
        |s| {
            held_by(s, "other");
            s.options.new_subnets = true;
        },
        &[],
    );
    // Another address of that network is nobody's trouble.
    conflicts(
        |s| {
            held_by(s, "other");
            s.survey.networks[0]
                .used
                .insert("other".into(), vec!["10.1.0.8".parse().unwrap()]);
        },
        &[],
    );
    let differs = |s: &mut Sides| {
        joined(s, "");
        s.survey.networks = vec![network("back", "10.9.0.0/24")];
        s.options.reuse_networks = true;
    };
    conflicts(differs, &[]);
    assert!(says(differs, Severity::Warning, "network.differs"));
    let same = |s: &mut Sides| {
        joined(s, "");
        s.survey.networks = vec![network("back", "10.1.0.0/24")];
    };
    assert!(!says(same, Severity::Warning, "network.differs"));
    // An engine that names no drivers is asked for any.
    conflicts(
        |s| {
            joined(s, "");
            s.report.spec.networks[0].driver = "weave".into();
            s.survey.node.engine.network_drivers.clear();
        },
        &[],
    );
    // An address of the destination in a network that is compared as a whole is not named once more.
    conflicts(
        |s| {
            joined(s, "");
            s.survey.networks = vec![network("wide", "10.1.0.0/16")];
            s.survey.node.addresses = vec!["10.1.0.1".parse().unwrap()];
        },
        &["network.overlap"],
    );
    let new = |s: &mut Sides| joined(s, "10.1.0.9");
    assert!(says(new, Severity::Note, "network.new"));
    let dropped = |fixed: &'static str| {
        move |s: &mut Sides| {
            joined(s, fixed);
            s.options.new_subnets = true;
        }
    };
    assert!(says(
        dropped("10.1.0.9"),
        Severity::Warning,
        "network.addresses-dropped"
    ));
    assert!(!says(dropped(""), Severity::Warning, "network.addresses-dropped"));
}
