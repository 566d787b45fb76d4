//! How data travels, and which mode is chosen.

use tranship_testkit::testbed::Link;

use super::{assert_none, volume};
use crate::world::{World, inspect, is_running};

/// A volume with data that compresses, data that does not, and many small files.
fn with_data() -> Option<World> {
    let world = World::with(tranship_testkit::testbed::Options::default())?;
    world.hold(&["-v", "data:/data"], &["sleep", "infinity"]);
    world.inside(
        &world.a,
        "cd /data; head -c 12000000 /dev/urandom > random; seq 1 2000000 > text; truncate -s 100M hole
         mkdir many; i=0; while [ $i -lt 500 ]; do echo file $i > many/$i; i=$((i + 1)); done",
    );
    Some(world)
}

fn again(world: &World) {
    world
        .b
        .sh("docker rm -f web && docker volume rm data && rm -rf /var/lib/docker/tranship")
        .unwrap();
    world.a.sh("docker start web").unwrap();
}

#[test]
fn data_arrives_whole_however_it_travels() {
    let Some(world) = with_data() else { return };
    let text = 14_888_896; // `seq 1 2000000`
    let mut sent = std::collections::BTreeMap::new();
    for options in [
        &["--mode", "cold"][..],
        &["--mode", "cold", "--compress", "none"],
        &["--mode", "warm", "--compress", "zstd:3"],
        &["--mode", "warm", "--compress", "zstd:19", "--rounds", "0"],
        &["--mode", "cold", "--relay"],
        &["--mode", "cold", "--rounds", "1", "--whole-image"],
    ] {
        let view = world.migrate(&[options, &["--json"]].concat()).expect(0).json();
        assert_none(
            &world.differences(&volume("data"), &volume("data")),
            &options.join(" "),
        );
        let wire: u64 = view[0]["rounds"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["wire_bytes"].as_u64().unwrap())
            .sum();
        sent.insert(options.join(" "), wire);
        again(&world);
    }
    let plain = sent["--mode cold --compress none"];
    assert!(
        plain >= 12_000_000 + text,
        "holes travel as nothing, the rest whole: {sent:?}"
    );
    assert!(plain < 12_000_000 + text + 1_000_000, "{sent:?}");
    let packed = sent["--mode warm --compress zstd:3"];
    assert!(packed < 12_000_000 + text / 2, "text is packed: {sent:?}");
    assert!(packed > 12_000_000, "random bytes are not: {sent:?}");
}

#[test]
fn a_rate_that_is_asked_for_is_kept() {
    let Some(world) = with_data() else { return };
    world
        .migrate(&["--mode", "cold", "--on-source", "stop"])
        .expect(0);
    again(&world);
    let begun = std::time::Instant::now();
    let bytes = world.b.link_bytes().unwrap().received;
    world
        .migrate(&["--mode", "cold", "--limit-rate", "4M", "--compress", "none"])
        .expect(0);
    let bytes = world.b.link_bytes().unwrap().received - bytes;
    let seconds = begun.elapsed().as_secs_f64();
    assert!(bytes > 26_000_000, "{bytes}");
    // It cannot have taken less time than the rate allows; how much more is the machine's affair.
    assert!(seconds > 26.0 / 4.3, "{bytes} bytes in {seconds} s");
    assert_none(&world.differences(&volume("data"), &volume("data")), "slowly");
}

#[test]
fn data_survives_a_link_that_falters() {
    let Some(world) = with_data() else { return };
    world.run(&["doctor", "ssh://root@a", "ssh://root@b"]);
    world.migrate(&["--mode", "cold"]).expect(0);
    again(&world);
    world.b.set_link(Link::Rate("50mbit")).unwrap();
    let received = || world.b.link_bytes().unwrap().received;
    let begun = received();
    let child = world.begin(&["--mode", "cold", "--json", "--compress", "none"]);
    crate::world::wait_until(|| received() - begun > 6_000_000);
    world.b.set_link(Link::Down).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(3));
    world.b.set_link(Link::Up).unwrap();
    crate::world::finish(child).expect(0);
    assert_none(
        &world.differences(&volume("data"), &volume("data")),
        "after a gap of 3 s",
    );
}

#[test]
fn auto_stops_or_pauses_where_there_is_state_and_is_stateless_where_there_is_none() {
    let world = world!();
    world.hold(&["-v", "data:/data"], &["sleep", "infinity"]);
    // What decides between live and cold is not the point here.
    world.b.sh("mv $(command -v criu) /tmp/criu.away").unwrap();
    let mode = |options: &[&str]| {
        let mut args = crate::world::migrate_args("web", "a", "b", options);
        args[0] = "plan";
        args.push("--json");
        let plan = world.run(&args).json();
        plan[0]["mode"].as_str().unwrap().to_owned()
    };
    assert_eq!(mode(&[]), "cold", "an empty volume is state too");
    assert_eq!(mode(&["--without-volumes"]), "stateless");
    world.inside(&world.a, "echo x > /root/x");
    assert_eq!(
        mode(&["--without-volumes"]),
        "cold",
        "a layer that was written to"
    );
    assert_eq!(mode(&["--without-volumes", "--without-layer"]), "stateless");
    world.migrate(&[]).expect(0);
    assert!(!is_running(&world.a, "web") && is_running(&world.b, "web"));
    world.inside(&world.b, "test -e /root/x");
}

#[test]
fn a_warm_move_that_fails_leaves_the_same_process_running_until_memory_has_moved() {
    let world = world!();
    world.hold(
        &[
            "-v",
            "data:/data",
            "--restart",
            "unless-stopped",
            "--tmpfs",
            "/scratch",
        ],
        &[
            "sh",
            "-c",
            "n=0; while :; do n=$((n + 1)); echo $n > /scratch/n; echo $n > /data/n; sleep 0.05; done",
        ],
    );
    let process = || {
        inspect(
            &world.a,
            "web",
            "{{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}} {{.State.Status}} {{.HostConfig.RestartPolicy.Name}}",
        )
    };
    let count = || -> u64 {
        world
            .inside(&world.a, "cat /scratch/n")
            .trim()
            .parse()
            .unwrap_or(0)
    };
    let before = (world.inventories(), process());
    let fail = |node: &tranship_testkit::testbed::Node, point: &str| {
        world.arm(node, &format!("{point}=fail"));
        world
            .migrate(&["--mode", "warm", "--include-tmpfs", "/scratch"])
            .expect(4)
            .saying(&["test.fail-point", "rolled back"]);
        world.arm(node, "none");
    };
    let mut last = count();
    for (node, point) in [
        (&world.a, "source.freeze"),
        (&world.a, "source.frozen"),
        (&world.a, "source.delta"),
        (&world.a, "source.delta-done"),
        (&world.a, "source.committed"),
        (&world.a, "source.start"),
        (&world.b, "destination.start"),
        (&world.b, "destination.started"),
    ] {
        fail(node, point);
        assert_eq!((world.inventories(), process()), before, "{point}");
        crate::world::wait_until(|| count() > last);
        last = count();
    }
    // What it held in memory is there now: here it was ended, so that nothing can let it go on, and starts afresh.
    for (node, point) in [(&world.a, "source.adopt"), (&world.b, "destination.adopt")] {
        fail(node, point);
        assert_eq!(world.inventories(), before.0, "{point}");
        let process = process();
        assert!(
            process.ends_with(" 0 running unless-stopped"),
            "{point}: {process}"
        );
        crate::world::wait_until(|| count() > 0);
    }
    world.migrate(&["--mode", "warm"]).expect(0);
}
