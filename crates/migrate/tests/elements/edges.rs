//! Which element goes along at the edges: what looks alike, what nobody described, what two of them share.

use super::*;

/// Whether the plan says this, as a warning or a note.
fn says(plan: &Plan, severity: Severity, code: &str) -> bool {
    codes(plan, severity).contains(&code)
}

#[test]
fn a_mount_goes_by_its_name_and_its_path_and_nothing_else() {
    for (name, comes) in [
        ("data", true),
        ("/data", true),
        ("/data/", true),
        ("/srv/data", false),
        ("other", false),
    ] {
        let mut sides = sides(vec![volume("data", "/data"), volume("rest", "/rest")]);
        sides.options.volumes = vec!["rest".into(), name.into()];
        let plan = sides.plan();
        assert_eq!(plan.create.carried.contains_key("/data"), comes, "{name}");
        assert_eq!(says(&plan, Severity::Conflict, "mount.no-such"), !comes, "{name}");
    }
    // Only a bind mount goes by its path on the host as well.
    let mut sides = sides(vec![mount(MountKind::Bind, "conf", "/conf")]);
    for (name, comes) in [("/srv/conf", true), ("/conf/", true), ("/srv", false)] {
        sides.options.include_bind = vec![name.into()];
        let plan = sides.plan();
        assert_eq!(!plan.elements.is_empty(), comes, "{name}");
        assert_eq!(says(&plan, Severity::Conflict, "mount.no-such"), !comes, "{name}");
    }
    // A volume's name does not mean a bind mount.
    sides.options.include_bind = vec!["/conf".into()];
    sides.options.exclude_volumes = vec!["/conf".into()];
    assert!(says(&sides.plan(), Severity::Conflict, "mount.no-such"));
}

#[test]
fn who_uses_what_is_included_is_known() {
    use tranship_migrate::elements::bind_users;
    let mut report = report(
        "db",
        "01",
        vec![
            mount(MountKind::Bind, "conf", "/conf"),
            mount(MountKind::Bind, "logs", "/logs"),
            volume("data", "/data"),
        ],
    );
    for (path, who) in [
        ("/srv/conf", "reader"),
        ("/srv/logs", "writer"),
        ("/srv/data", "none"),
    ] {
        report.bind_users.insert(path.into(), vec![user(who, "02", true)]);
    }
    let names = |include: &[&str]| {
        let include: Vec<String> = include.iter().map(|i| (*i).to_owned()).collect();
        let users: Vec<String> = bind_users(&report, &include).map(|u| u.name.clone()).collect();
        users
    };
    assert_eq!(names(&[]), [""; 0]);
    assert_eq!(names(&["/conf"]), ["reader"]);
    assert_eq!(names(&["/conf", "/srv/logs", "/data"]), ["reader", "writer"]);
}

#[test]
fn what_makes_a_container_stateful_is_what_would_come_along() {
    let mode = |change: &dyn Fn(&mut Sides)| {
        let mut sides = sides(Vec::new());
        change(&mut sides);
        let plan = sides.plan();
        let cold = plan.mode == Mode::Cold;
        assert_eq!(says(&plan, Severity::Note, "mode.cold"), cold);
        cold
    };
    let wrote = |s: &mut Sides| s.reports[0].changes.files = 1;
    assert!(!mode(&|_| {}));
    assert!(mode(&wrote));
    assert!(!mode(&|s| {
        wrote(s);
        s.options.without_layer = true;
    }));
    assert!(!mode(&|s| s.options.without_layer = true));
    let tmpfs = |s: &mut Sides| {
        s.reports[0].spec.mounts = vec![mount(MountKind::Tmpfs, "", "/scratch")];
        s.options.include_tmpfs = vec!["/scratch".into()];
    };
    assert!(!mode(&tmpfs), "memory makes no start elsewhere wrong");
    assert!(mode(&|s| s.reports[0].spec.mounts = vec![volume("data", "/data")]));
    assert!(!mode(&|s| {
        s.reports[0].spec.mounts = vec![volume("data", "/data")];
        s.options.exclude_volumes = vec!["data".into()];
    }));
    // Who asked for a mode need not be told which.
    let mut asked = sides(Vec::new());
    asked.options.mode = ModeRequest::Cold;
    let plan = asked.plan();
    assert!(!says(&plan, Severity::Note, "mode.cold"));
    assert_eq!(plan.elements.len(), 1, "the layer comes along");
    asked.options.mode = ModeRequest::Auto;
    let plan = asked.plan();
    assert_eq!((plan.mode, plan.elements.len()), (Mode::Stateless, 0));
    assert_eq!(plan.options.mode, ModeRequest::Auto, "as it was asked for");
}

#[test]
fn a_group_stops_as_a_whole_where_one_of_it_keeps_state() {
    let mut sides = sides(vec![volume("data", "/data")]);
    sides.reports.push(report("worker", "02", Vec::new()));
    let plan = sides.plan();
    fine(&plan);
    assert_eq!((plan.mode, plan.options.mode), (Mode::Cold, ModeRequest::Auto));
    // What the other one writes until the freeze comes along as well.
    let layers: Vec<&Target> = plan
        .elements
        .iter()
        .map(|e| &e.target)
        .filter(|t| matches!(t, Target::Layer { .. }))
        .collect();
    assert_eq!(
        layers,
        [&Target::Layer { member: 0 }, &Target::Layer { member: 1 }]
    );
}

#[test]
fn a_layer_that_stays_behind_is_said_when_it_holds_something() {
    for (files, said) in [(0, false), (1, true), (2, true)] {
        for stateless in [true, false] {
            let mut sides = sides(Vec::new());
            sides.reports[0].changes.files = files;
            if stateless {
                sides.options.mode = ModeRequest::Stateless;
            } else {
                sides.options.mode = ModeRequest::Cold;
                sides.options.without_layer = true;
            }
            let plan = sides.plan();
            fine(&plan);
            assert_eq!(
                says(&plan, Severity::Warning, "layer.left-behind"),
                said,
                "{files}"
            );
            assert!(plan.elements.is_empty());
        }
    }
}

#[test]
fn without_root_whole_volumes_go_through_the_engine_or_nothing_does() {
    for (here, there) in [(true, true), (false, true), (true, false), (false, false)] {
        let with = |change: &dyn Fn(&mut Sides)| {
            let mut sides = sides(vec![volume("data", "/data")]);
            change(&mut sides);
            sides.survey.node.direct_files = there;
            let source = NodeFacts {
                direct_files: here,
                ..node()
            };
            plan(&PlanInput {
                source: "a",
                destination: "b",
                containers: &[(MigrationId::new("m1").unwrap(), sides.reports.clone())],
                source_node: &source,
                survey: &sides.survey,
                options: &sides.options,
                not_live: None,
            })
            .remove(0)
        };
        let direct = here && there;
        let refused = |change: &dyn Fn(&mut Sides), code: &str| {
            let plan = with(change);
            let expected: Vec<&str> = if direct { Vec::new() } else { vec![code] };
            assert_eq!(
                codes(&plan, Severity::Conflict),
                expected,
                "{code}, {here} {there}"
            );
        };
        let plan = with(&|_| {});
        fine(&plan);
        assert_eq!(says(&plan, Severity::Warning, "files.engine-route"), !direct);
        let route = if direct {
            ElementRoute::Tree
        } else {
            ElementRoute::Archive
        };
        assert_eq!(plan.elements[0].route, route);
        let layer = plan
            .elements
            .iter()
            .any(|e| matches!(e.target, Target::Layer { .. }));
        assert_eq!(layer, direct, "an empty layer is no loss");
        for files in [1, 2] {
            refused(&|s| s.reports[0].changes.files = files, "layer.route");
        }
        refused(&|s| s.options.exclude = vec!["/tmp".into()], "files.exclude");
        refused(
            &|s| {
                s.there("data", vec![]);
                s.options.volume_conflict = VolumeConflict::Replace;
            },
            "files.engine-route",
        );
        refused(
            &|s| {
                s.reports[0].spec.mounts = vec![mount(MountKind::Bind, "conf", "/conf")];
                s.options.include_bind = vec!["/conf".into()];
            },
            "files.engine-route",
        );
        // Nothing that travels needs no way.
        let plan = with(&|s| {
            s.options.without_volumes = true;
            s.options.exclude = vec!["/tmp".into()];
        });
        fine(&plan);
        assert!(!says(&plan, Severity::Warning, "files.engine-route"));
    }
}

#[test]
fn a_volume_that_nobody_described_is_described_by_its_mount() {
    let mut sides = sides(vec![volume("data", "/data")]);
    sides.reports[0].volumes[0].name = "another".into();
    let plan = sides.plan();
    let spec = plan.elements[0].volume.clone().unwrap();
    assert_eq!((spec.name.as_str(), spec.driver.as_str()), ("data", "local"));
    assert!(!spec.anonymous && spec.guid.is_empty());
    let name = "f".repeat(64);
    let mut sides = self::sides(vec![volume(&name, "/data")]);
    sides.reports[0].volumes.clear();
    assert!(sides.plan().elements[0].volume.clone().unwrap().anonymous);
}

#[test]
fn an_anonymous_volume_that_two_of_them_use_keeps_its_name() {
    let name = "f".repeat(64);
    let mut sides = sides(vec![volume(&name, "/data"), volume("other", "/other")]);
    let mut worker = report("worker", "02", vec![volume(&name, "/in")]);
    worker.volumes.clear();
    sides.reports.push(worker);
    let plan = sides.plan();
    fine(&plan);
    assert!(
        matches!(&plan.elements[0].target, Target::Volume { name: n, making: Making::New } if *n == name)
    );
    assert_eq!(plan.companions[0].create.carried["/in"], name);
    assert_eq!(plan.elements[0].label(), format!("volume {name}"));
    sides.reports.pop();
    let plan = sides.plan();
    assert!(matches!(plan.elements[0].target, Target::Anonymous { .. }));
    assert_eq!(plan.elements[0].label(), "volume ffffffffffff at /data");
    assert_eq!(plan.elements[1].label(), "volume other");
    // One whose data lies elsewhere is made by its description, not by the engine.
    sides.reports[0].volumes[0].options =
        [("type", "nfs"), ("o", "addr=10.0.0.9,rw"), ("device", ":/export")]
            .map(|(k, v)| (k.into(), v.into()))
            .into();
    let plan = sides.plan();
    assert!(matches!(plan.elements[0].target, Target::Volume { .. }));
    assert!(!plan.elements[0].copied);
    assert_eq!(codes(&plan, Severity::Conflict), [""; 0]);
}

#[test]
fn an_empty_volume_does_not_hide_one_that_is_there() {
    let mut sides = sides(vec![volume("data", "/data")]);
    sides.options.without_volumes = true;
    let plan = sides.plan();
    fine(&plan);
    assert!(says(&plan, Severity::Warning, "volume.empty") && plan.create.empty_volumes);
    sides.there("data", vec![]);
    let plan = sides.plan();
    assert_eq!(codes(&plan, Severity::Conflict), ["volume.exists"]);
    assert!(!says(&plan, Severity::Warning, "volume.empty"));
    // One without a name gets another there.
    let name = "f".repeat(64);
    let mut sides = self::sides(vec![volume(&name, "/data")]);
    sides.options.without_volumes = true;
    sides.there(&name, vec![]);
    fine(&sides.plan());
    let plan = self::sides(vec![volume("data", "/data")]).plan();
    assert!(!says(&plan, Severity::Warning, "volume.empty") && !plan.create.empty_volumes);
}

#[test]
fn who_mounts_a_volume_is_said_by_who_would_notice() {
    let plan = sides(vec![volume("data", "/data")]).plan();
    assert!(
        !says(&plan, Severity::Warning, "volume.shared"),
        "it is its own user"
    );
    let mut sides = sides(vec![mount(MountKind::Bind, "conf", "/conf")]);
    sides.options.include_bind = vec!["/conf".into()];
    assert!(!says(&sides.plan(), Severity::Warning, "bind.shared"));
    let own = [("/srv/conf".to_owned(), vec![user("db", "01", true)])];
    sides.reports[0].bind_users = own.into();
    let plan = sides.plan();
    fine(&plan);
    assert!(!says(&plan, Severity::Warning, "bind.shared"));
}

#[test]
fn a_volume_is_replaced_only_while_nobody_needs_it() {
    let with = |users: Vec<VolumeUser>, replace: bool, rename: Option<&str>| {
        let mut sides = sides(vec![volume("data", "/data")]);
        sides.there("data", users.clone());
        sides.there("another", vec![user("busy", "08", true)]);
        sides.options.volume_conflict = VolumeConflict::Replace;
        sides.options.replace = replace;
        sides.options.rename = rename.map(str::to_owned);
        let plan = sides.plan();
        let volume = codes(&plan, Severity::Conflict);
        // The same holds for a directory of the host.
        let mut bind = self::sides(vec![mount(MountKind::Bind, "conf", "/conf")]);
        bind.options = MoveOptions {
            include_bind: vec!["/conf".into()],
            ..sides.options.clone()
        };
        bind.survey.arrivals[0].filled_bind_sources = vec!["/srv/conf".into()];
        bind.survey.arrivals[0].bind_users = [("/srv/conf".to_owned(), users)].into();
        let bind = bind.plan();
        let in_use = |free: bool, code: &'static str| if free { vec![] } else { vec![code] };
        let free = volume.is_empty();
        assert_eq!(volume, in_use(free, "volume.in-use"));
        assert_eq!(codes(&bind, Severity::Conflict), in_use(free, "bind.in-use"));
        assert_eq!(says(&plan, Severity::Warning, "volume.replaced"), free);
        free
    };
    let db = |running| vec![user("db", "09", running)];
    assert!(with(Vec::new(), false, None));
    assert!(with(db(false), false, None));
    assert!(!with(db(true), false, None));
    assert!(with(db(true), true, None), "it makes way");
    assert!(!with(db(true), true, Some("db2")), "another makes way");
    assert!(!with(vec![user("db2", "09", true)], true, None));
    assert!(with(vec![user("db2", "09", true)], true, Some("db2")));
}

#[test]
fn a_volume_that_is_filled_anew_keeps_its_own_attributes() {
    let differs = |change: &dyn Fn(&mut VolumeSpec)| {
        let mut sides = sides(vec![volume("data", "/data")]);
        sides.there("data", Vec::new());
        sides.options.volume_conflict = VolumeConflict::Replace;
        change(&mut sides.survey.volume_specs[0]);
        says(&sides.plan(), Severity::Warning, "volume.attributes")
    };
    assert!(!differs(&|_| {}));
    assert!(differs(&|v| v.driver = "other".into()));
    assert!(differs(&|v| {
        v.labels.insert("a".into(), "b".into());
    }));
    assert!(differs(&|v| {
        v.options.insert("a".into(), "b".into());
    }));
    assert!(!differs(&|v| v.name = "another".into()));
}

#[test]
fn what_the_system_holds_is_nobodys_to_carry() {
    for (source, carried) in [
        ("/", false),
        ("/etc", false),
        ("/var", false),
        ("/proc/sys", false),
        ("/run/lock", false),
        ("/etc/app", true),
        ("/var/lib/app", true),
        ("/running", true),
    ] {
        let mut sides = sides(vec![mount(MountKind::Bind, "x", "/x")]);
        sides.reports[0].spec.mounts[0].source = source.into();
        sides.options.include_bind = vec!["/x".into()];
        let expected: Vec<&str> = if carried { Vec::new() } else { vec!["bind.system"] };
        assert_eq!(codes(&sides.plan(), Severity::Conflict), expected, "{source}");
    }
    let mut sides = sides(vec![
        mount(MountKind::Bind, "x", "/x"),
        mount(MountKind::Bind, "x", "/y"),
    ]);
    sides.options.include_bind = vec!["/x".into(), "/y".into()];
    let plan = sides.plan();
    fine(&plan);
    let binds = plan
        .elements
        .iter()
        .filter(|e| matches!(e.target, Target::Bind { .. }));
    assert_eq!(binds.count(), 1, "one directory at two paths travels once");
    sides.reports[0].bind_files = vec!["/srv/x".into()];
    assert_eq!(
        codes(&sides.plan(), Severity::Conflict),
        ["bind.file", "bind.file"]
    );
    sides.options.mode = ModeRequest::Stateless;
    assert_eq!(
        codes(&sides.plan(), Severity::Conflict),
        ["bind.stateless", "bind.stateless"]
    );
}

#[test]
fn the_prediction_counts_what_travels_and_how_long_that_takes() {
    let mut sides = sides(vec![volume("data", "/data"), volume("kept", "/kept")]);
    let data = ElementSize {
        bytes: 400_000_000,
        entries: 40_000,
    };
    sides.reports[0].sizes = [("/data".to_owned(), data)].into();
    sides.reports[0].archive_bytes = vec![300_000_000, 200_000_000, 100_000_000];
    sides.survey.arrivals[0].layers_held = 1;
    sides.options.without_layer = true;
    let plan = sides.plan();
    let expected = Prediction {
        bytes: 600_000_000,
        image_bytes: 300_000_000,
        data_bytes: 400_000_000,
        exact: true,
        // What is fixed, two seconds each for image, files and entries.
        total_ms: 1_500 + 2_000 + 2_000 + 2_000,
        // The switch, a look at every entry, and a fiftieth of the copying.
        downtime_ms: 1_000 + 200 + 80,
    };
    assert_eq!(plan.prediction, expected);
    assert_eq!(plan.transfer.bytes, Some(200_000_000));
    // Without the engine's sizes, the layers' share.
    sides.reports[0].archive_bytes.clear();
    sides.reports[0].spec.image.size = 300;
    let plan = sides.plan();
    assert_eq!((plan.prediction.exact, plan.transfer.bytes), (false, None));
    assert_eq!(plan.prediction.bytes - plan.prediction.data_bytes, 150);
    assert_eq!(plan.prediction.image_bytes, 300);
    sides.survey.arrivals[0].layers_held = 9;
    let plan = sides.plan();
    assert_eq!(plan.transfer.skip_layers, 2);
    assert_eq!(plan.prediction.bytes, plan.prediction.data_bytes);
    sides.survey.arrivals[0].layers_held = 0;
    sides.survey.arrivals[0].image_held = true;
    let plan = sides.plan();
    assert_eq!(
        (plan.transfer.skip_layers, plan.prediction.bytes),
        (2, 400_000_000)
    );
    sides.options.whole_image = true;
    let plan = sides.plan();
    assert_eq!(
        (plan.transfer.skip_layers, plan.prediction.bytes),
        (0, 400_000_300)
    );
    // Nothing stands still where two may run.
    sides.options.without_volumes = true;
    let plan = sides.plan();
    assert_eq!((plan.mode, plan.prediction.downtime_ms), (Mode::Stateless, 0));
    sides.reports[0].spec.health_check = Some(HealthCheck {
        interval_ms: 5_000,
        timeout_ms: 1_000,
        start_period_ms: 2_000,
        retries: 3,
    });
    let plan = sides.plan();
    assert_eq!(plan.prediction.total_ms, 6_500);
    assert_eq!(plan.health_timeout_ms, 2_000 + 4 * 6_000 + 10_000);
    sides.options.health_timeout_ms = Some(3_000);
    let plan = sides.plan();
    assert_eq!((plan.prediction.total_ms, plan.health_timeout_ms), (4_500, 3_000));
}

#[test]
fn each_container_of_a_call_is_planned_by_its_own_facts() {
    let mut sides = sides(Vec::new());
    let ids = ["01", "02", "03"];
    let reports: Vec<ContainerReport> = ids
        .iter()
        .map(|id| report(&format!("c{id}"), id, Vec::new()))
        .collect();
    for (layers, arrival) in sides.survey.arrivals.iter_mut().enumerate() {
        arrival.layers_held = layers;
    }
    sides.options.rename = Some("renamed".into());
    let groups = [
        (MigrationId::new("m1").unwrap(), reports[..2].to_vec()),
        (MigrationId::new("m2").unwrap(), reports[2..].to_vec()),
    ];
    let plans = plan(&PlanInput {
        source: "a",
        destination: "b",
        containers: &groups,
        source_node: &node(),
        survey: &sides.survey,
        options: &sides.options,
        not_live: None,
    });
    assert_eq!(plans.len(), 2);
    assert_eq!(plans[0].transfer.skip_layers, 0);
    assert_eq!(plans[0].companions[0].transfer.skip_layers, 1);
    assert_eq!(plans[1].transfer.skip_layers, 2);
    // Ten and five bytes of the first two, one of the third.
    assert_eq!(plans[0].prediction.bytes, 15);
    assert_eq!(plans[1].prediction.bytes, 1);
    let members = plans[0].members();
    assert_eq!(members.len(), 2);
    // Another name is meant for the one that was asked for.
    assert_eq!(members[0].create.name, "renamed");
    assert_eq!(members[1].create.name, "c02");
    assert!(!says(&plans[0], Severity::Conflict, "plan.keep"));
}

#[test]
fn what_others_depend_on_starts_first_and_then_by_age() {
    let container = |id: &str, created: &str, labels: &[(&str, &str)]| {
        let mut report = report(&format!("c{id}"), id, Vec::new());
        report.spec.document = serde_json::json!({ "Created": created });
        let labels = labels
            .iter()
            .map(|(k, v)| (format!("com.docker.compose.{k}"), (*v).to_owned()));
        report.spec.labels.extend(labels);
        report
    };
    let order = |reports: Vec<ContainerReport>| {
        let mut sides = sides(Vec::new());
        sides.survey.arrivals = vec![ArrivalFacts::default(); reports.len()];
        sides.reports = reports;
        sides.plan().start_order()
    };
    let by_age = |a, b, c| {
        order(vec![
            container("01", a, &[]),
            container("02", b, &[]),
            container("03", c, &[]),
        ])
    };
    assert_eq!(by_age("2020", "2021", "2022"), [0, 1, 2]);
    assert_eq!(by_age("2022", "2020", "2021"), [1, 2, 0]);
    let service = |id, name, project, needs| {
        container(
            id,
            &format!("20{id}"),
            &[("service", name), ("project", project), ("depends_on", needs)],
        )
    };
    let needs = "db:service_started:false,cache:service_healthy:true";
    assert_eq!(
        order(vec![
            service("01", "web", "p", needs),
            service("02", "db", "p", ""),
            service("03", "cache", "p", "db:service_started:false"),
        ]),
        [1, 2, 0]
    );
    // A service of that name in another project is another one.
    assert_eq!(
        order(vec![
            service("01", "web", "p", needs),
            service("02", "db", "q", ""),
            service("03", "cache", "p", ""),
        ]),
        [1, 2, 0]
    );
    assert_eq!(
        order(vec![
            service("01", "web", "p", needs),
            service("02", "db", "q", ""),
            service("03", "other", "p", ""),
        ]),
        [0, 1, 2]
    );
    // A circle waits for everybody else and is broken at its oldest; who names itself waits for nobody.
    assert_eq!(
        order(vec![
            service("02", "a", "p", "b:x:false"),
            service("01", "b", "p", "a:x:false"),
            service("03", "c", "p", "c:x:false"),
        ]),
        [2, 1, 0]
    );
}

#[test]
fn hooks_that_will_not_run_are_said_and_those_that_cannot_are_refused() {
    let hook = |when, place| Hook {
        when,
        place,
        command: "x".into(),
        timeout: 1,
    };
    let times = [
        HookTime::PreFreeze,
        HookTime::PostFreeze,
        HookTime::PostStart,
        HookTime::Thaw,
    ];
    for mode in [ModeRequest::Stateless, ModeRequest::Cold] {
        for when in times {
            for place in [HookPlace::Container, HookPlace::Host] {
                let mut sides = sides(Vec::new());
                sides.options.mode = mode;
                sides.options.hooks = vec![hook(when, place)];
                let plan = sides.plan();
                let frozen = when == HookTime::PostFreeze && place == HookPlace::Container;
                assert_eq!(says(&plan, Severity::Conflict, "hook.frozen"), frozen);
                let idle = mode == ModeRequest::Stateless && when != HookTime::PostStart;
                assert_eq!(
                    says(&plan, Severity::Warning, "hook.stateless"),
                    idle,
                    "{mode:?} {when}"
                );
            }
        }
    }
    for when in times {
        assert_eq!(when.to_string().parse(), Ok(when));
        let mut sides = sides(Vec::new());
        let label = format!("tranship.hook.{when}");
        sides.reports[0].spec.labels.insert(label, "x".into());
        let plan = sides.plan();
        assert_eq!((plan.hooks[0].hook.when, plan.hooks[0].hook.timeout), (when, 30));
    }
    assert!("freeze".parse::<HookTime>().is_err());
}

#[test]
fn modes_have_the_names_that_options_have() {
    for mode in [Mode::Stateless, Mode::Cold, Mode::Warm] {
        let text = serde_json::to_value(mode).unwrap();
        assert_eq!(text, mode.to_string());
    }
}
