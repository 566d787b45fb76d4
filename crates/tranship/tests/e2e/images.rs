//! `tranship image`: images from node to node without a registry.

use std::process::Command;

use serde_json::Value;
use tranship_testkit::testbed::Link;

use crate::world::{World, finish, untagged_image, wait_until};

const BUILD: &str = "mkdir -p /srv/build && cd /srv/build && head -c 9000000 /dev/urandom > one && head -c 9000000 /dev/urandom > two && \
    printf 'FROM tranship-test/busybox:1\nCOPY one /one\n' > base && printf 'FROM app:base\nCOPY two /two\nCMD [\"sleep\",\"9\"]\n' > top && \
    export DOCKER_BUILDKIT=0; docker build -q -t app:base -f base . && docker build -q -t app:1 -t other:1 -f top .";

fn id(world: &World, on_a: bool, reference: &str) -> String {
    let node = if on_a { &world.a } else { &world.b };
    node.sh(&format!(
        "docker image inspect -f '{{{{.Id}}}} {{{{.RootFS.Layers}}}}' {reference}"
    ))
    .unwrap()
}

#[test]
fn only_missing_layers_travel_and_ids_stay() {
    let world = world!();
    world.a.load_image("busybox").unwrap();
    world.a.sh(BUILD).unwrap();
    let to = ["ssh://root@b", "--from", "ssh://root@a"];
    let push = |images: &[&str]| world.run(&[&["image", "push", "--json"], images, &to].concat());
    let layers = ["layers", "app:1", "--on", to[0], to[1], to[2]];
    let shown = || world.run(&[&["image"], &layers[..]].concat()).expect(0);
    let before = shown();
    assert_eq!(before.stdout.matches("missing").count(), 3, "{}", before.stdout);

    // Two that share layers: those are sent once.
    let sent = push(&["app:base", "app:1"]).expect(0).json();
    let number = |value: &Value, key: &str| value[key].as_u64().unwrap();
    assert_eq!(number(&sent[0], "layers_sent"), 2);
    assert_eq!(number(&sent[1], "layers_sent"), 1);
    let bytes = number(&sent[1], "bytes");
    assert!((9_000_000..9_300_000).contains(&bytes), "{bytes}");
    for tag in ["app:base", "app:1"] {
        assert_eq!(id(&world, true, tag), id(&world, false, tag));
    }
    let after = shown();
    assert_eq!(after.stdout.matches("missing").count(), 0, "{}", after.stdout);
    after.saying(&["0 of 3 layers are missing", "nothing would travel"]);
    let there = world
        .b
        .sh("docker run --rm --network none app:1 md5sum /one /two")
        .unwrap();
    assert_eq!(
        there,
        world
            .a
            .sh("docker run --rm --network none app:1 md5sum /one /two")
            .unwrap()
    );

    // Again: nothing travels. Another tag of it is given, and one that meant something else moves.
    let again = push(&["app:1"]).expect(0).json();
    assert_eq!(number(&again[0], "bytes"), 0);
    world.b.sh("docker tag app:base other:1").unwrap();
    push(&["other:1"]).expect(0);
    assert_eq!(id(&world, false, "other:1"), id(&world, false, "app:1"));

    // One that has no tag, by its id; and back, under the other command.
    let untagged = &untagged_image(&world.b, "app:1");
    world
        .run(&["image", "pull", untagged, "ssh://root@b", "--to", "ssh://root@a"])
        .expect(0)
        .saying(&["0 of 3 layers sent"]);
    assert_eq!(id(&world, true, untagged), id(&world, false, untagged));

    // They are listed, those without a tag last.
    let listed = world.run(&["image", "ls", "ssh://root@b"]).expect(0).stdout;
    assert!(
        listed.contains("other:1") && listed.contains("linux/"),
        "{listed}"
    );
    let last = listed.lines().last().unwrap();
    assert!(
        last.starts_with('-') && last.contains(&untagged[..19]),
        "{listed}"
    );
    let listed = world
        .run(&["image", "ls", "--json", "ssh://root@b"])
        .expect(0)
        .json();
    assert!(
        listed
            .as_array()
            .unwrap()
            .iter()
            .any(|image| image["id"] == *untagged)
    );

    world
        .run(&["image", "push", "nothing:1", to[0], to[1], to[2]])
        .expect(1)
        .saying(&["image.not-found", "ssh://root@a", "docker images"]);
}

#[test]
fn a_transfer_that_breaks_off_leaves_nothing() {
    let world = world!();
    world.a.load_image("busybox").unwrap();
    world.a.sh(BUILD).unwrap();
    // Its agents are there, and the image is not, when the link becomes slow.
    let args = ["app:1", "--on", "ssh://root@b", "--from", "ssh://root@a"];
    world.run(&[&["image", "layers"], &args[..]].concat()).expect(0);
    let before = world.b.inventory().unwrap();
    for signal in ["-KILL", "-INT"] {
        world.b.set_link(Link::Rate("8mbit")).unwrap();
        let received = || world.b.link_bytes().unwrap().received;
        let begun = received();
        let child = world
            .command(&["image", "push", "app:1", "ssh://root@b", "--from", "ssh://root@a"])
            .spawn()
            .unwrap();
        wait_until(|| received() > begun + 3_000_000);
        let killed = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        assert!(killed.unwrap().success());
        assert_ne!(finish(child).code, 0, "{signal}");
        world.b.set_link(Link::Up).unwrap();
        wait_until(|| world.b.inventory().unwrap() == before);
    }
    world
        .run(&["image", "push", "app:1", "ssh://root@b", "--from", "ssh://root@a"])
        .expect(0);
}
