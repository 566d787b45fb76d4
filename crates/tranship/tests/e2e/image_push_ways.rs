//! `tranship image push --image-strategy`: the same images by every way, counted on the wire.

use std::process::Command;

use serde_json::Value;
use tranship_testkit::testbed::Link;

use crate::image_ways::{ALL, BUILD, DockerRegistry, ONE, id, spooled, tags};
use crate::registry::{GUARDED, Serving, guard, log_in};
use crate::world::{Outcome, World, finish, wait_until};

const TO_B: [&str; 3] = ["ssh://root@b", "--from", "ssh://root@a"];

/// A world whose `a` has `app:base` and `app:1`, and whose agents run.
fn with_images(world: &World) {
    world.a.load_image("busybox").unwrap();
    world.a.sh(BUILD).unwrap();
    world.run(&["doctor", "ssh://root@a", "ssh://root@b"]);
}

fn push(world: &World, images: &[&str], options: &[&str]) -> Outcome {
    world.run(&[&["image", "push", "--json"], images, &TO_B[..], options].concat())
}

fn received(world: &World) -> u64 {
    world.b.link_bytes().unwrap().received
}

/// Pushes `app:1` by this way, and returns what was said of it and how many bytes `b` received; the image is gone from there then.
fn pushed_and_forgotten(world: &World, options: &[&str]) -> (Value, u64) {
    let before = received(world);
    let pushed = push(world, &["app:1"], options).expect(0);
    // Machines hear which image it is, and from when to when it travels.
    let events: Vec<Value> = pushed
        .stderr
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let first: Vec<_> = events.iter().take(2).map(|event| &event["event"]).collect();
    assert_eq!(first, ["note", "phase-started"], "{events:?}");
    assert_eq!(events[0]["text"], "app:1");
    let last = events.last().unwrap();
    assert_eq!(
        (&last["event"], &last["phase"]),
        (&"phase-ended".into(), &"image".into())
    );
    let said = pushed.json();
    assert_eq!(last["bytes"], said[0]["bytes"]);
    let came = received(world) - before;
    assert_eq!(id(&world.a, "app:1"), id(&world.b, "app:1"), "{options:?}");
    let sums = "docker run --rm --network none app:1 md5sum /one /two";
    assert_eq!(world.a.sh(sums).unwrap(), world.b.sh(sums).unwrap());
    world.b.sh("docker rmi app:1").unwrap();
    (said[0].clone(), came)
}

#[test]
fn every_way_pushes_the_same_image_and_only_what_is_missing() {
    let world = world!();
    with_images(&world);
    for strategy in ["stream", "layers", "simple"] {
        let (said, came) = pushed_and_forgotten(&world, &["--image-strategy", strategy]);
        assert!(ALL.contains(&came), "{strategy}, fresh: {came}");
        assert_eq!(said["image_way"]["strategy"], strategy);
        assert_eq!(said["image_way"]["reason"], "as asked for");
        assert_eq!(said["layers_sent"], 3, "{said}");
        assert!(!tags(&world.b).contains("app"), "{}", tags(&world.b));
    }
    // With two of three layers there.
    push(&world, &["app:base"], &["--image-strategy", "layers"]).expect(0);
    for (strategy, expected, layers) in [
        ("stream", ONE, 1),
        ("layers", ONE, 1),
        ("auto", ONE, 1),
        ("simple", ALL, 3),
    ] {
        let (said, came) = pushed_and_forgotten(&world, &["--image-strategy", strategy]);
        assert!(expected.contains(&came), "{strategy}: {came}");
        assert_eq!(said["layers_sent"], layers, "{strategy}: {said}");
    }
    // It is said which way was taken, and why.
    let (said, _) = pushed_and_forgotten(&world, &[]);
    assert_eq!(said["image_way"]["strategy"], "stream");
    let reason = said["image_way"]["reason"].as_str().unwrap();
    assert!(reason.contains("1 of 3 layers"), "{said}");
    world
        .run(
            &[
                &["image", "push", "app:1"],
                &TO_B[..],
                &["--image-strategy", "layers"],
            ]
            .concat(),
        )
        .expect(0)
        .saying(&["1 of 3 layers sent", "by layers: as asked for"]);
    // All of it there: nothing travels.
    let before = received(&world);
    let said = push(&world, &["app:1"], &["--image-strategy", "layers"])
        .expect(0)
        .json();
    assert_eq!(said[0]["bytes"], 0);
    assert_eq!(said[0]["there"], true, "{said}");
    assert!(said[0].get("image_way").is_none(), "{said}");
    assert!(received(&world) - before < 1_000_000);
    assert_eq!(spooled(&world.b), "");
}

#[test]
fn layers_that_images_share_travel_once() {
    let world = world!();
    with_images(&world);
    let numbers = |said: &Value, key: &str| -> Vec<u64> {
        let said = said.as_array().unwrap();
        said.iter().map(|image| image[key].as_u64().unwrap()).collect()
    };
    for strategy in ["layers", "stream"] {
        let before = received(&world);
        let said = push(&world, &["app:base", "app:1"], &["--image-strategy", strategy])
            .expect(0)
            .json();
        let came = received(&world) - before;
        // Each of the two layers of 9 MB once, and busybox.
        assert!((18_000_000..26_000_000).contains(&came), "{strategy}: {came}");
        assert_eq!(numbers(&said, "layers_sent"), [2, 1], "{said}");
        assert!(ONE.contains(&numbers(&said, "bytes")[1]), "{said}");
        for image in ["app:base", "app:1"] {
            assert_eq!(id(&world.a, image), id(&world.b, image), "{strategy}");
        }
        world.b.sh("docker rmi app:1 app:base").unwrap();
    }
    // The one with more layers first: nothing but its name is left of the other; and under the other command.
    let pull = |options: &[&str]| {
        let args = [
            "image",
            "pull",
            "--json",
            "app:1",
            "app:base",
            "ssh://root@a",
            "--to",
            "ssh://root@b",
        ];
        world.run(&[&args, options].concat()).expect(0).json()
    };
    let said = pull(&["--image-strategy", "layers"]);
    assert_eq!(numbers(&said, "layers_sent"), [3, 0], "{said}");
    assert_eq!(said[1]["there"], false, "{said}");
    assert_eq!(said[1]["image_way"]["strategy"], "layers", "{said}");
    assert_eq!(id(&world.a, "app:base"), id(&world.b, "app:base"));
    assert_eq!(spooled(&world.b), "");
}

#[test]
fn ways_that_cannot_be_are_refused() {
    let world = world!();
    with_images(&world);
    // What makes no sense is refused before anything is asked.
    for options in [
        &["--image-strategy", "registry"][..],
        &["--image-strategy", "layers", "--registry", "r:5000"],
        &["--image-strategy", "registry", "--registry", "ftp://r"],
        &["--image-strategy", "registry", "--registry", "me:secret@r"],
    ] {
        push(&world, &["app:1"], options).expect(2);
    }
    // Without root nobody reads single layers; nothing of the other image has travelled when that is said.
    let before = world.inventories();
    let from_deploy = ["ssh://root@b", "--from", "ssh://deploy@a"];
    world
        .run(
            &[
                &["image", "push", "app:base", "app:1"],
                &from_deploy[..],
                &["--image-strategy", "layers"],
            ]
            .concat(),
        )
        .expect(1)
        .saying(&[
            "image.strategy",
            "ssh://deploy@a",
            "single layers",
            "--image-strategy stream",
        ]);
    // A registry that nobody listens at.
    push(
        &world,
        &["app:1"],
        &["--image-strategy", "registry", "--registry", "b:5444"],
    )
    .expect(1)
    .saying(&["registry.", "refused"]);
    assert_eq!(world.inventories(), before);
    // The choice is left to tranship: it takes the way that there is.
    let said = world
        .run(&[&["image", "push", "--json", "app:1"], &from_deploy[..]].concat())
        .expect(0)
        .json();
    assert_eq!(said[0]["image_way"]["strategy"], "stream");
    assert_eq!(id(&world.a, "app:1"), id(&world.b, "app:1"));
}

#[test]
fn a_push_by_layers_that_broke_off_is_gone_on_with() {
    let world = world!();
    with_images(&world);
    let before = world.b.inventory().unwrap();
    let layers = ["--image-strategy", "layers"];
    world.b.set_link(Link::Rate("24mbit")).unwrap();
    let begun = received(&world);
    let args = [&["image", "push", "app:1"], &TO_B[..], &layers].concat();
    let child = world.command(&args).spawn().unwrap();
    wait_until(|| received(&world) > begun + 10_000_000);
    let killed = Command::new("kill")
        .args(["-KILL", &child.id().to_string()])
        .status();
    assert!(killed.unwrap().success());
    assert_ne!(finish(child).code, 0);
    world.b.set_link(Link::Up).unwrap();
    // The engine has nothing of it, and the agent what came.
    assert_eq!(world.b.inventory().unwrap(), before);
    let begun = received(&world);
    push(&world, &["app:1"], &layers).expect(0);
    let came = received(&world) - begun;
    assert!(came < 17_000_000, "{came}");
    assert_eq!(id(&world.a, "app:1"), id(&world.b, "app:1"));
    assert_eq!(spooled(&world.b), "");
}

#[test]
fn a_layer_that_the_source_cannot_give_out_is_told_by_the_source() {
    let world = world!();
    with_images(&world);
    let before = world.b.inventory().unwrap();
    // A file of the upper layer is another one than the engine noted.
    world
        .a
        .sh("d=$(docker image inspect -f '{{.GraphDriver.Data.UpperDir}}' app:1) && printf 12345678 | dd of=\"$d/two\" conv=notrunc status=none")
        .unwrap();
    push(&world, &["app:1"], &["--image-strategy", "layers"])
        .expect(1)
        .saying(&["image.corrupt", "damaged", "ssh://root@a"]);
    assert_eq!(world.b.inventory().unwrap(), before);
    // What came before it is there, and told of.
    let said = push(&world, &["app:base", "app:1"], &["--image-strategy", "layers"])
        .expect(1)
        .saying(&["image.corrupt"])
        .json();
    assert_eq!(said.as_array().unwrap().len(), 1, "{said}");
    assert_eq!(said[0]["image"], "app:base");
    assert_eq!(id(&world.a, "app:base"), id(&world.b, "app:base"));
}

#[test]
fn a_push_to_a_registry_that_is_broken_off_leaves_no_upload_open() {
    let world = world!();
    for node in [&world.a, &world.b] {
        node.load_image("busybox").unwrap();
    }
    world.b.sh(BUILD).unwrap();
    world.run(&["doctor", "ssh://root@a", "ssh://root@b"]);
    guard(&world);
    let serving = Serving::begin(&world.a, GUARDED).reachable();
    log_in(&world.b);
    let uploads = |more: &str| {
        world
            .a
            .sh(&format!("find /root/state -path '*/uploads/*' {more}"))
            .unwrap()
    };
    world.a.set_link(Link::Rate("16mbit")).unwrap();
    let args = [
        "image",
        "push",
        "app:1",
        "ssh://root@a",
        "--from",
        "ssh://root@b",
        "--image-strategy",
        "registry",
        "--registry",
        "a:5000",
    ];
    let child = world.command(&args).spawn().unwrap();
    wait_until(|| !uploads("-size +1000k").is_empty());
    let killed = Command::new("kill")
        .args(["-KILL", &child.id().to_string()])
        .status();
    assert!(killed.unwrap().success());
    assert_ne!(finish(child).code, 0);
    wait_until(|| uploads("").is_empty());
    assert_eq!(serving.end("TERM"), 0);
}

#[test]
fn by_way_of_a_registry() {
    let world = world!();
    with_images(&world);
    let registry = DockerRegistry::begin(&world, &world.b);
    let by = ["--image-strategy", "registry", "--registry", &registry.name];
    let before = world.inventories();
    push(&world, &["app:1"], &by)
        .expect(1)
        .saying(&["registry.denied", "docker login b:5443"]);
    assert_eq!(world.inventories(), before);
    for node in [&world.a, &world.b] {
        registry.log_in(node);
    }
    // What is pushed crosses the link, what is pulled does not; what the images share is pushed and pulled once.
    let before = received(&world);
    let said = push(&world, &["app:base", "app:1"], &by).expect(0).json();
    let came = received(&world) - before;
    assert!((18_000_000..26_000_000).contains(&came), "{came}");
    assert!(ONE.contains(&said[1]["pushed_bytes"].as_u64().unwrap()), "{said}");
    assert_eq!(said[1]["layers_sent"], 1, "{said}");
    assert_eq!(said[1]["image_way"]["strategy"], "registry", "{said}");
    for image in ["app:base", "app:1"] {
        assert_eq!(id(&world.a, image), id(&world.b, image));
    }
    world.b.sh("docker rmi app:1 app:base").unwrap();
    // The registry has the layers now: nothing is pushed.
    let (said, came) = pushed_and_forgotten(&world, &by);
    assert!(came < 1_000_000, "{came}");
    assert_eq!(said["pushed_bytes"], 0, "{said}");
    // No tag is left, neither there nor in the engines.
    let listed = registry.get(&world.a, "tranship/tags/list");
    assert!(
        listed.contains("\"tags\":null") || listed.contains("NAME_UNKNOWN"),
        "{listed}"
    );
    assert!(!tags(&world.a).contains(":5443") && !tags(&world.b).contains(":5443"));

    // An image that came from there is not pushed at all, and `auto` knows it.
    let tagged = format!("{}/team/app:1", registry.name);
    world
        .a
        .sh(&format!(
            "export HOME=/root; docker tag app:1 {tagged} && docker push -q {tagged}"
        ))
        .unwrap();
    let (said, came) = pushed_and_forgotten(&world, &["--registry", &registry.name]);
    assert!(came < 1_000_000, "{came}");
    assert_eq!(said["image_way"]["strategy"], "registry", "{said}");
    let reason = said["image_way"]["reason"].as_str().unwrap();
    assert!(reason.contains("it came from b:5443"), "{reason}");
    // It does not have it any more: `auto` sends it from here, and says why.
    world
        .b
        .sh("rm -r /root/registry/docker/registry/v2/repositories/team")
        .unwrap();
    let (said, came) = pushed_and_forgotten(&world, &["--registry", &registry.name]);
    assert!(ALL.contains(&came), "{came}");
    assert_eq!(said["image_way"]["strategy"], "stream", "{said}");
    let reason = said["image_way"]["reason"].as_str().unwrap();
    assert!(reason.contains("registry does not work"), "{reason}");
    assert_eq!(spooled(&world.b), "");
}
