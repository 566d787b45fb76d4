//! What makes a volume that volume, beside its files.

use serde_json::Value;
use tranship_testkit::testbed::Node;

use super::{assert_none, volume, volume_at};
use crate::world::inspect;

fn volume_document(node: &Node, name: &str) -> Value {
    let text = node.exec_ok(["docker", "volume", "inspect", name]).unwrap();
    let mut document = serde_json::from_str::<Value>(&text).unwrap()[0].clone();
    document.as_object_mut().unwrap().remove("CreatedAt");
    // None is said in two ways, by how the volume was made.
    for key in ["Labels", "Options"] {
        if document[key].as_object().is_none_or(serde_json::Map::is_empty) {
            document[key] = Value::Null;
        }
    }
    document
}

/// How a container mounts, without the names that engines make up.
fn mounts(node: &Node) -> Value {
    let mounts: Vec<Value> = serde_json::from_str(&inspect(node, "web", "{{json .Mounts}}")).unwrap();
    let mut known: Vec<Value> = mounts
        .into_iter()
        .map(|mut mount| {
            if mount["Name"].as_str().is_some_and(|name| name.len() == 64) {
                mount["Name"] = "anonymous".into();
                mount["Source"] = "anonymous".into();
            }
            mount
        })
        .collect();
    known.sort_by_key(|mount| mount["Destination"].as_str().map(ToOwned::to_owned));
    serde_json::json!({
        "mounts": known,
        "binds": serde_json::from_str::<Value>(&inspect(node, "web", "{{json .HostConfig.Binds}}")).unwrap(),
        "asked": serde_json::from_str::<Value>(&inspect(node, "web", "{{json .HostConfig.Mounts}}")).unwrap(),
        "image": serde_json::from_str::<Value>(&inspect(node, "web", "{{json .Config.Volumes}}")).unwrap(),
    })
}

#[test]
fn volumes_and_mounts_are_described_the_same_there() {
    let world = world!();
    let create = |arguments: &[&str]| {
        world
            .a
            .exec_ok([&["docker", "volume", "create"], arguments].concat())
            .unwrap();
    };
    create(&["plain"]);
    create(&[
        "--label",
        "spaces=a b  c",
        "--label",
        "commas=a,b=c,\"d\",'e'",
        "--label",
        "lines=one\ntwo\n",
        "--label",
        "empty=",
        "--label",
        "bare",
        "--label",
        "é=ü",
        "labelled",
    ]);
    create(&["Odd_name.with-all.9"]);
    create(&["parts"]);
    world
        .a
        .sh("mkdir /var/lib/docker/volumes/parts/_data/inner && echo sub > /var/lib/docker/volumes/parts/_data/inner/file")
        .unwrap();
    world.hold(
        &[
            "-v",
            "plain:/plain",
            "-v",
            "labelled:/labelled:ro",
            "-v",
            "Odd_name.with-all.9:/usr/lib/python3.13/json:nocopy",
            "-v",
            "/anonymous",
            "-v",
            "copied:/etc",
            "--mount",
            "type=volume,dst=/anonymous/too",
            "--mount",
            "type=volume,src=parts,dst=/inner,volume-subpath=inner,readonly",
            "--mount",
            "type=volume,src=made,dst=/made,volume-nocopy,volume-label=k=v,\"volume-label=odd=x=y z\"",
            "--mount",
            "\"type=volume\",\"dst=/with, comma\"",
            "--tmpfs",
            "/scratch:size=1m",
        ],
        &["sleep", "infinity"],
    );
    world.inside(
        &world.a,
        "echo 1 > /plain/file; echo 2 > /anonymous/file; echo 3 > /anonymous/too/file; echo 4 > '/with, comma/file'
         rm /etc/group; echo 5 > /etc/new; echo 6 > /usr/lib/python3.13/json/x",
    );
    let names = [
        "plain",
        "labelled",
        "Odd_name.with-all.9",
        "parts",
        "made",
        "copied",
    ];
    let before: Vec<Value> = names.iter().map(|n| volume_document(&world.a, n)).collect();
    let asked = mounts(&world.a);
    world.migrate(&["--mode", "cold"]).expect(0);
    for (name, before) in names.iter().zip(&before) {
        assert_eq!(&volume_document(&world.b, name), before, "{name}");
    }
    assert_eq!(mounts(&world.b), asked);
    for name in &names {
        assert_none(&world.differences(&volume(name), &volume(name)), name);
    }
    for path in ["/anonymous", "/anonymous/too", "/with, comma"] {
        let (here, there) = (volume_at(&world.a, "web", path), volume_at(&world.b, "web", path));
        let label = volume_document(&world.b, &there)["Labels"].clone();
        assert_eq!(label, volume_document(&world.a, &here)["Labels"], "{path}");
        assert_none(&world.differences(&volume(&here), &volume(&there)), path);
    }
    world.inside(
        &world.b,
        "test $(cat /plain/file /anonymous/file /anonymous/too/file '/with, comma/file' | tr -d '\\n') = 1234
         test $(cat /inner/file) = sub; ! test -e /etc/group; test $(cat /etc/new) = 5
         ! touch /inner/no 2> /dev/null; ! touch /labelled/no 2> /dev/null",
    );
}

#[test]
fn a_volume_keeps_its_guid_through_every_move() {
    let world = world!();
    world.hold(
        &["-v", "data:/data", "-v", "known:/known"],
        &["sleep", "infinity"],
    );
    let guids = |from: &str, to: &str| -> Vec<String> {
        let mut args = crate::world::migrate_args("web", from, to, &["--json", "--mode", "cold"]);
        args[0] = "plan";
        let plan = world.run(&args).json();
        let elements = plan[0]["elements"].as_array().unwrap();
        let volumes = elements.iter().filter(|e| e["volume"].is_object());
        // The engine lists a container's mounts in any order.
        let by_name: std::collections::BTreeMap<&str, &str> = volumes
            .map(|e| {
                (
                    e["volume"]["name"].as_str().unwrap(),
                    e["volume"]["guid"].as_str().unwrap(),
                )
            })
            .collect();
        by_name.values().map(|guid| (*guid).to_owned()).collect()
    };
    let first = guids("a", "b");
    assert!(
        first.len() == 2 && first[0] != first[1] && first.iter().all(|g| g.len() >= 8),
        "{first:?}"
    );
    let options = ["--mode", "cold", "--on-source", "remove"];
    world.migrate_between("a", "b", &options).expect(0);
    assert_eq!(guids("b", "a"), first, "at b");
    world.a.sh("docker volume rm data known").unwrap();
    world.migrate_between("b", "a", &options).expect(0);
    assert_eq!(guids("a", "b"), first, "at a again");
}

#[test]
fn a_volume_that_is_a_directory_of_the_host_by_its_options_brings_its_data_or_is_refused() {
    let world = world!();
    world
        .a
        .sh("mkdir /srv/kept && echo precious > /srv/kept/file")
        .unwrap();
    world.b.sh("mkdir /srv/kept").unwrap();
    world
        .a
        .exec_ok([
            "docker",
            "volume",
            "create",
            "--opt",
            "type=none",
            "--opt",
            "o=bind",
            "--opt",
            "device=/srv/kept",
            "kept",
        ])
        .unwrap();
    world.hold(&["-v", "kept:/kept"], &["sleep", "infinity"]);
    for mode in ["cold", "warm"] {
        let outcome = world.migrate(&["--mode", mode]);
        if outcome.code == 1 {
            outcome.saying(&["volume."]);
            continue;
        }
        outcome.expect(0);
        assert_eq!(
            world.inside(&world.b, "cat /kept/file").trim(),
            "precious",
            "{mode}"
        );
        return;
    }
}

#[test]
fn a_volume_in_memory_is_made_again_as_after_a_restart() {
    let world = world!();
    world
        .a
        .exec_ok([
            "docker",
            "volume",
            "create",
            "--opt",
            "type=tmpfs",
            "--opt",
            "device=tmpfs",
            "--opt",
            "o=size=10m,uid=1000,mode=1770",
            "memory",
        ])
        .unwrap();
    world.hold(
        &["-v", "memory:/memory", "-v", "data:/data"],
        &["sleep", "infinity"],
    );
    world.inside(&world.a, "echo x > /memory/x; echo x > /data/x");
    let before = volume_document(&world.a, "memory");
    let findings = world.findings("web", &["--mode", "cold"]);
    assert!(
        findings.iter().any(|(code, _)| code.starts_with("volume.")),
        "the plan says nothing: {findings:?}"
    );
    world.migrate(&["--mode", "cold"]).expect(0);
    assert_eq!(volume_document(&world.b, "memory"), before);
    world.inside(
        &world.b,
        "mount | grep -q 'tmpfs on /memory' && ! test -e /memory/x && test -e /data/x",
    );
}
