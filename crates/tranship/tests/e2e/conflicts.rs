//! What the plan finds before a byte moves.

use crate::world::serves;

fn codes(findings: &[(String, String)], severity: &str) -> Vec<String> {
    findings
        .iter()
        .filter(|(_, s)| s == severity)
        .map(|(c, _)| c.clone())
        .collect()
}

#[test]
fn every_conflict_is_named_and_nothing_is_changed() {
    let world = world!();
    world.serve(&[]);
    let image = world.a.load_image("busybox").unwrap();
    world.b.load_image("busybox").unwrap();
    let run = |name: &str, options: &[&str]| {
        let mut args = vec!["docker", "run", "-d", "--name", name];
        args.extend(options);
        args.extend([image.as_str(), "sleep", "100000"]);
        world.a.exec_ok(&args).unwrap();
    };
    let docker = |args: &[&str]| world.a.exec_ok([&["docker"], args].concat()).unwrap();
    docker(&["volume", "create", "data"]);
    docker(&["network", "create", "--subnet", "10.71.0.0/24", "n1"]);
    docker(&["network", "create", "--subnet", "10.72.0.0/24", "n2"]);
    docker(&["network", "create", "--subnet", "10.73.0.0/24", "n3"]);
    world
        .b
        .sh("docker network create --subnet 10.99.0.0/24 n1")
        .unwrap();
    world
        .b
        .sh("docker network create --subnet 10.72.0.0/16 other")
        .unwrap();
    world
        .b
        .sh("docker network create --subnet 10.73.0.0/24 n3")
        .unwrap();
    world
        .b
        .sh(&format!(
            "docker run -d --name holder --network n3 --ip 10.73.0.9 {image} sleep 100000"
        ))
        .unwrap();
    world
        .b
        .sh(&format!("docker run -d --name taken {image} sleep 100000"))
        .unwrap();
    world.b.sh("docker volume create data").unwrap();
    world.a.sh("mknod /dev/mine c 1 3").unwrap();
    run("volume", &["-v", "data:/data"]);
    run("anonymous", &["-v", "/data"]);
    run("bind", &["-v", "/srv/only-here:/data"]);
    run("linked", &["--link", "web:db"]);
    run("joined", &["--network", "container:web"]);
    run("device", &["--device", "/dev/mine"]);
    run("differs", &["--network", "n1"]);
    run("overlaps", &["--network", "n2"]);
    run("fixed", &["--network", "n3", "--ip", "10.73.0.9"]);
    run("taken", &[]);
    run("paused", &[]);
    docker(&["pause", "paused"]);
    run("stopped", &[]);
    docker(&["stop", "-t", "0", "stopped"]);
    run("wrote", &[]);
    docker(&["exec", "wrote", "sh", "-c", "echo precious > /root-file"]);
    world.b.sh("docker rm -f squatter 2>/dev/null; true").unwrap();
    world
        .b
        .sh(&format!(
            "docker run -d --name squatter -p 8080:80 {image} sleep 100000"
        ))
        .unwrap();

    let before = world.inventories();
    for (container, options, conflict) in [
        ("web", &[][..], "port.taken"),
        ("volume", &[], "volume.exists"),
        ("volume", &["--without-volumes"], "volume.exists"),
        ("anonymous", &["--mode", "stateless"], "volume.stateless"),
        ("bind", &[], "bind.present"),
        ("bind", &["--without-volumes"], "bind.missing"),
        ("linked", &[], "network.links"),
        ("joined", &[], "namespace.shared"),
        ("device", &[], "device.missing"),
        ("differs", &[], "network.differs"),
        ("overlaps", &[], "network.overlap"),
        ("fixed", &[], "network.address-taken"),
        ("taken", &[], "name.taken"),
        ("paused", &[], "container.paused"),
        ("stopped", &[], "container.not-running"),
        ("web", &["--publish", "1=2"], "port.not-published"),
    ] {
        let found = codes(&world.findings(container, options), "conflict");
        assert!(
            found.iter().any(|c| c == conflict),
            "{container} {options:?}: {conflict} is not in {found:?}"
        );
    }
    for (container, options) in [
        ("web", &["--publish", "8080=8081"][..]),
        ("anonymous", &[]),
        ("anonymous", &["--without-volumes"]),
        ("differs", &["--reuse-networks"]),
        ("overlaps", &["--new-subnets"]),
        ("fixed", &["--new-subnets"]),
        ("taken", &["--rename", "free"]),
        ("taken", &["--replace"]),
        ("wrote", &[]),
        ("wrote", &["--mode", "stateless"]),
        ("wrote", &["--without-layer"]),
    ] {
        let found = codes(&world.findings(container, options), "conflict");
        assert!(found.is_empty(), "{container} {options:?}: {found:?}");
    }
    // `migrate` refuses for the same reasons, with the reason and the way out.
    world
        .migrate(&[])
        .expect(1)
        .saying(&["error[port.taken]", "hint: --publish 8080=NEW", "container web"]);
    assert_eq!(world.inventories(), before);
    assert!(serves(world.a.address(), 8080));
}

#[test]
fn a_tag_that_means_another_image_there_is_not_moved_unasked() {
    let world = world!();
    world.serve(&[]);
    let image = world.a.load_image("busybox").unwrap();
    let other = world.b.load_image("web:1").unwrap();
    world.b.exec_ok(["docker", "tag", &other, &image]).unwrap();
    let before = world.b.inventory().unwrap();
    world
        .migrate(&[])
        .expect(1)
        .saying(&["image.tag-taken", "--retag"]);
    assert_eq!(world.b.inventory().unwrap(), before);
    // A rollback gives the tag back to whom it belonged.
    world.arm(&world.b, "destination.created=fail");
    world.migrate(&["--retag"]).expect(4);
    assert_eq!(world.b.inventory().unwrap(), before);
    world.arm(&world.b, "none");
    world.migrate(&["--retag"]).expect(0);
    let id = |node: &tranship_testkit::testbed::Node| {
        node.exec_ok(["docker", "image", "inspect", "--format", "{{.Id}}", &image])
            .unwrap()
    };
    assert_eq!(id(&world.a), id(&world.b));
}
