//! `--image-strategy layers` between hosts whose Docker keeps its images with containerd: single blobs, counted on the wire.

use tranship_testkit::testbed::{Link, Node};

use crate::containerd::{ALL, BUILD, INDEX, ONE, both};
use crate::image_ways::{break_connections, run_web, spooled, there_and_forgotten, warm_up};
use crate::registry_containerd::SAID;
use crate::world::{World, finish, inspect, is_running, wait_until};

/// Makes of the uppermost layer of `app:1` alone the image `upper:1`.
const UPPER: &str = r#"
set -e
rm -rf /srv/upper && mkdir /srv/upper && cd /srv/upper
docker save app:1 | tar x
rm manifest.json
put() { sum=$(sha256sum "$1" | cut -d' ' -f1); size=$(stat -c %s "$1"); mv "$1" "blobs/sha256/$sum"; }
manifest=blobs/sha256/$(jq -r '.manifests[0].digest' index.json | cut -d: -f2)
jq '.rootfs.diff_ids |= [.[-1]] | .history = []' "blobs/sha256/$(jq -r .config.digest "$manifest" | cut -d: -f2)" > config
put config
jq --arg digest "sha256:$sum" --argjson size "$size" '.config.digest = $digest | .config.size = $size | .layers |= [.[-1]]' "$manifest" > own
put own
jq -n --arg digest "sha256:$sum" --argjson size "$size" '{schemaVersion: 2, manifests: [
    {mediaType: "application/vnd.oci.image.manifest.v1+json", digest: $digest, size: $size,
     annotations: {"io.containerd.image.name": "docker.io/library/upper:1"}}]}' > index.json
tar c . | docker load
"#;

/// Changes a byte in the middle of the uppermost layer of `app:1`, as it is kept.
const DAMAGE: &str = r#"
set -e
docker save app:1 | tar xO manifest.json | jq -r '.[0].Layers[-1]' > /srv/name
file=$(find / -xdev -path "*io.containerd.content.v1.content/$(cat /srv/name)" | head -n 1)
[ -n "$file" ] || file=$(find /var/lib -path "*io.containerd.content.v1.content/$(cat /srv/name)" | head -n 1)
before=$(stat -c %s "$file")
printf damaged: | dd of="$file" bs=1 seek=4000000 conv=notrunc status=none
[ "$before" = "$(stat -c %s "$file")" ] && [ "sha256:$(sha256sum "$file" | cut -d' ' -f1)" != "sha256:$(basename "$file")" ]
"#;

pub fn made() -> Option<World> {
    let world = World::with(both())?;
    world.a.load_image("busybox").unwrap();
    world.a.sh(BUILD).unwrap();
    run_web(&world.a, "app:1");
    warm_up(&world);
    Some(world)
}

const LAYERS: [&str; 2] = ["--image-strategy", "layers"];

pub fn push(world: &World, image: &str) {
    let args = ["image", "push", image, "ssh://root@b", "--from", "ssh://root@a"];
    world.run(&args).expect(0);
}

/// The names in an image's archive.
pub fn archive(node: &Node, image: &str) -> String {
    node.sh(&format!("docker save {image} | tar t | sort")).unwrap()
}

#[test]
fn only_blobs_that_are_lacking_come_and_the_image_keeps_its_id() {
    let Some(world) = made() else { return };
    let before = world.b.inventory().unwrap();
    let came = there_and_forgotten(&world, "app:1", &LAYERS);
    assert!(ALL.contains(&came), "fresh: {came}");
    assert_eq!(world.b.inventory().unwrap(), before);

    // The lower two of three are there; then the uppermost alone.
    push(&world, "app:base");
    let came = there_and_forgotten(&world, "app:1", &LAYERS);
    assert!(ONE.contains(&came), "{came}");
    world.b.sh("docker rmi app:base").unwrap();
    world.a.sh(UPPER).unwrap();
    push(&world, "upper:1");
    let came = there_and_forgotten(&world, "app:1", &LAYERS);
    assert!((ONE.start..12_000_000).contains(&came), "{came}");
    world.b.sh("docker rmi upper:1").unwrap();

    // An index with a platform that is nowhere, and one with an attestation: as `stream` brings them.
    for (make, image) in [(INDEX, "multi:1"), (SAID, "said:1")] {
        world.a.sh(make).unwrap();
        world.a.sh("docker rm -f web").unwrap();
        run_web(&world.a, image);
        let came = there_and_forgotten(&world, image, &LAYERS);
        assert!(ALL.contains(&came), "{image}: {came}");
        world
            .migrate(&[&["--mode", "cold"], &LAYERS[..]].concat())
            .expect(0);
        assert_eq!(archive(&world.a, image), archive(&world.b, image), "{image}");
        assert!(is_running(&world.b, "web"));
        let forget = format!("docker rm -f web && docker rmi {image}");
        world.b.sh(&forget).unwrap();
    }
    assert_eq!(world.b.inventory().unwrap(), before);
    // All of it there: nothing travels.
    push(&world, "said:1");
    world.a.sh("docker rm -f web").unwrap();
    run_web(&world.a, "said:1");
    let came = there_and_forgotten(&world, "said:1", &LAYERS);
    assert!(came < 1_000_000, "{came}");
    assert_eq!(spooled(&world.b), "");
}

#[test]
fn blobs_go_on_where_they_stood_when_the_connection_broke() {
    let Some(world) = made() else { return };
    world.b.set_link(Link::Rate("24mbit")).unwrap();
    let received = || world.b.link_bytes().unwrap().received;
    let before = received();
    let child = world.begin(&[&["--mode", "cold"], &LAYERS[..]].concat());
    wait_until(|| received() > before + 10_000_000);
    break_connections(&world.b);
    world.b.set_link(Link::Up).unwrap();
    finish(child)
        .expect(0)
        .saying(&["what came of the image is kept"]);
    let came = received() - before;
    // Less than a mebibyte of each blob, and what was on its way, comes again.
    assert!((ALL.start..26_000_000).contains(&came), "{came}");
    let id = |node: &Node| {
        let format = "{{.Id}} {{.RootFS.Layers}}";
        node.exec_ok(["docker", "image", "inspect", "--format", format, "app:1"])
            .unwrap()
    };
    assert_eq!(id(&world.a), id(&world.b));
    assert_eq!(spooled(&world.b), "");
}

#[test]
fn an_aborted_migration_leaves_nothing_and_the_next_goes_on_with_what_came() {
    let Some(world) = made() else { return };
    let before = world.inventories();
    world.b.set_link(Link::Rate("24mbit")).unwrap();
    let received = || world.b.link_bytes().unwrap().received;
    let begun = received();
    let options = [&["--mode", "cold"], &LAYERS[..]].concat();
    let child = world.begin(&options);
    wait_until(|| received() > begun + 10_000_000);
    world.run(&["abort", &world.newest_id()]).expect(0);
    finish(child).expect(4).saying(&["migrate.aborted"]);
    world.b.set_link(Link::Up).unwrap();
    assert_eq!(world.inventories(), before);
    let begun = received();
    world.migrate(&options).expect(0);
    let came = received() - begun;
    assert!(came < 14_000_000, "{came}");
    assert_eq!(spooled(&world.b), "");
}

#[test]
fn a_blob_that_is_not_what_its_digest_says_is_refused_and_nothing_is_loaded() {
    let Some(world) = made() else { return };
    world.a.sh(DAMAGE).unwrap();
    let before = world.inventories();
    let images = |node: &Node| node.sh("docker images -a -q").unwrap();
    let listed = images(&world.b);
    let id = inspect(&world.a, "web", "{{.Image}}");
    let options = [&["--mode", "cold"], &LAYERS[..]].concat();
    world
        .migrate(&options)
        .expect(4)
        .saying(&["image.corrupt", "rolled back"]);
    assert_eq!(world.inventories(), before);
    assert_eq!(images(&world.b), listed);
    // Not even half of it is known there.
    world.b.sh(&format!("! docker image inspect {id}")).unwrap();
    assert!(is_running(&world.a, "web"));
}
