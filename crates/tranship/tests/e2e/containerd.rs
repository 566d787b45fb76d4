//! Hosts whose Docker keeps its images with containerd.

use serde_json::Value;
use tranship_testkit::testbed::{Node, Options};

use crate::world::{World, inspect, is_running, untagged_image};

/// Two layers of 9 MB over busybox, of which `app:base` has the lower one. The engine keeps them packed.
pub const BUILD: &str = "mkdir -p /srv/build && cd /srv/build && head -c 9000000 /dev/urandom > one && head -c 9000000 /dev/urandom > two && \
    printf 'FROM tranship-test/busybox:1\nCOPY one /one\n' > base && printf 'FROM app:base\nCOPY two /two\nCMD [\"sleep\",\"9999\"]\nSTOPSIGNAL KILL\n' > top && \
    export DOCKER_BUILDKIT=0; docker build -q -t app:base -f base . && docker build -q -t app:1 -t other:1 -f top .";

/// Makes of `app:1` the image `multi:1`: an index of it and of one for another processor, which is not there.
pub const INDEX: &str = r#"
set -e
rm -rf /srv/multi && mkdir /srv/multi && cd /srv/multi
docker save app:1 | tar x
rm manifest.json
put() { sum=$(sha256sum "$1" | cut -d' ' -f1); mv "$1" "blobs/sha256/$sum"; }
own=$(jq -c '.manifests[0] | {mediaType, digest, size}' index.json)
jq -n --argjson own "$own" '{schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json", manifests: [
    {mediaType: $own.mediaType, size: 999, digest: ("sha256:" + ("ab" * 32)), platform: {os: "linux", architecture: "s390x"}},
    ($own + {platform: {os: "linux", architecture: "amd64"}})]}' > multi
size=$(stat -c %s multi)
put multi
jq -n --arg digest "sha256:$sum" --argjson size "$size" '{schemaVersion: 2, manifests: [
    {mediaType: "application/vnd.oci.image.index.v1+json", digest: $digest, size: $size,
     annotations: {"io.containerd.image.name": "docker.io/library/multi:1"}}]}' > index.json
tar c . | docker load
"#;

/// Makes of `app:1` the image `two:1`: an index of it and of one for another processor, and both are there.
pub const TWO: &str = r#"
set -e
rm -rf /srv/two && mkdir /srv/two && cd /srv/two
docker save app:1 | tar x
rm manifest.json
put() { sum=$(sha256sum "$1" | cut -d' ' -f1); size=$(stat -c %s "$1"); mv "$1" "blobs/sha256/$sum"; }
own=$(jq -c '.manifests[0] | {mediaType, digest, size}' index.json)
manifest=blobs/sha256/$(echo "$own" | jq -r .digest | cut -d: -f2)
jq '.architecture = "s390x"' "blobs/sha256/$(jq -r .config.digest "$manifest" | cut -d: -f2)" > config
put config
jq --arg digest "sha256:$sum" --argjson size "$size" '.config.digest = $digest | .config.size = $size' "$manifest" > other
put other
jq -n --argjson own "$own" --arg digest "sha256:$sum" --argjson size "$size" '{schemaVersion: 2,
    mediaType: "application/vnd.oci.image.index.v1+json", manifests: [
    {mediaType: $own.mediaType, size: $size, digest: $digest, platform: {os: "linux", architecture: "s390x"}},
    ($own + {platform: {os: "linux", architecture: "amd64"}})]}' > two
put two
jq -n --arg digest "sha256:$sum" --argjson size "$size" '{schemaVersion: 2, manifests: [
    {mediaType: "application/vnd.oci.image.index.v1+json", digest: $digest, size: $size,
     annotations: {"io.containerd.image.name": "docker.io/library/two:1"}}]}' > index.json
tar c . | docker load
"#;

/// Bytes of the upper layer, and of all.
pub const ONE: std::ops::Range<u64> = 9_000_000..9_500_000;
pub const ALL: std::ops::Range<u64> = 18_000_000..23_000_000;

pub fn both() -> Options {
    Options::default().containerd_stores(&["a", "b"])
}

/// Id, layers and platform of an image.
fn id(node: &Node, reference: &str) -> String {
    let format = "{{.Id}} {{.RootFS.Layers}} {{.Architecture}}";
    node.exec_ok(["docker", "image", "inspect", "--format", format, reference])
        .unwrap()
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap()
}

/// `tranship image push --json` of these from `a` to `b`.
fn push(world: &World, images: &[&str]) -> Value {
    let to = ["ssh://root@b", "--from", "ssh://root@a"];
    let args = [&["image", "push", "--json"], images, &to].concat();
    world.run(&args).expect(0).json()
}

#[test]
fn images_keep_their_ids_and_only_missing_blobs_travel() {
    let world = world!(both());
    world.a.load_image("busybox").unwrap();
    world.a.sh(BUILD).unwrap();
    world.a.sh(INDEX).unwrap();
    world.run(&["doctor", "ssh://root@a", "ssh://root@b"]).expect(0);
    let args = ["app:1", "--on", "ssh://root@b", "--from", "ssh://root@a"];
    let shown = world.run(&[&["image", "layers"], &args[..]].concat()).expect(0);
    assert_eq!(shown.stdout.matches("missing").count(), 3, "{}", shown.stdout);

    let sent = push(&world, &["app:base", "app:1"]);
    assert_eq!(number(&sent[0], "layers_sent"), 2);
    assert_eq!(number(&sent[1], "layers_sent"), 1);
    assert!(ONE.contains(&number(&sent[1], "bytes")), "{sent}");
    for tag in ["app:base", "app:1"] {
        assert_eq!(id(&world.a, tag), id(&world.b, tag));
    }
    let sums = |node: &Node, image: &str| {
        let run = format!("docker run --rm --network none {image} md5sum /one /two");
        node.sh(&run).unwrap()
    };
    assert_eq!(sums(&world.a, "app:1"), sums(&world.b, "app:1"));
    // All of it is there, not only what runs: it can be given on.
    world.b.sh("docker save app:1 | tar t > /dev/null").unwrap();

    // An index of which one platform is here; its blobs are there already.
    let sent = push(&world, &["multi:1"]);
    assert_eq!(number(&sent[0], "layers_sent"), 0);
    assert!(number(&sent[0], "bytes") < 20_000, "{sent}");
    assert_eq!(id(&world.a, "multi:1"), id(&world.b, "multi:1"));
    assert_ne!(id(&world.a, "multi:1"), id(&world.a, "app:1"));
    assert_eq!(sums(&world.a, "multi:1"), sums(&world.b, "multi:1"));

    // One without a tag by its id, and another tag of one that is there.
    let untagged = &untagged_image(&world.b, "app:1");
    world
        .run(&["image", "pull", untagged, "ssh://root@b", "--to", "ssh://root@a"])
        .expect(0)
        .saying(&["0 of 3 layers sent"]);
    assert_eq!(id(&world.a, untagged), id(&world.b, untagged));
    assert_eq!(number(&push(&world, &["other:1"])[0], "bytes"), 0);
    let listed = world.run(&["image", "ls", "ssh://root@b"]).expect(0).stdout;
    for tag in ["app:base", "app:1", "multi:1", "other:1"] {
        assert!(listed.contains(tag), "{listed}");
    }

    // What a load that failed left of an image is not taken for the image.
    let ghost = "docker rmi -f app:1 other:1 multi:1 app:base >/dev/null; docker image prune -af >/dev/null; \
        ! tar c -C /root/short . | docker load 2>/dev/null >/dev/null; docker image inspect -f '{{.Id}}' app:1";
    world
        .a
        .sh("mkdir /srv/short && cd /srv/short && docker save app:1 | tar x && rm manifest.json && find blobs -size +1000k -delete && \
            tar c . | ssh root@b 'mkdir /root/short && tar x -C /root/short'")
        .unwrap();
    let left = world.b.sh(ghost).unwrap();
    assert!(id(&world.a, "app:1").starts_with(left.trim()), "{left}");
    let sent = push(&world, &["app:1"]);
    assert!(ALL.contains(&number(&sent[0], "bytes")), "{sent}");
    assert_eq!(sums(&world.a, "app:1"), sums(&world.b, "app:1"));
}

#[test]
fn containers_move_with_the_same_image() {
    let world = world!(both());
    world.a.load_image("busybox").unwrap();
    world.a.sh(BUILD).unwrap();
    world.a.sh(INDEX).unwrap();
    world.run(&["doctor", "ssh://root@a", "ssh://root@b"]).expect(0);
    let before = world.b.inventory().unwrap();
    let received = || world.b.link_bytes().unwrap().received;
    let run = |image: &str| {
        let volume = "-v data:/data --network none";
        world
            .a
            .sh(&format!(
                "docker rm -fv web 2>/dev/null; docker run -d --name web {volume} {image} sleep 9999"
            ))
            .unwrap();
        world
            .a
            .sh("docker exec web sh -c 'echo layer > /written; rm /one; echo volume > /data/file'")
            .unwrap();
    };
    let by_id = inspect(&world.a, "app:1", "{{.Id}}");
    for (image, options, range) in [
        ("app:1", &["--mode", "warm"][..], ALL),
        ("multi:1", &["--mode", "cold", "--image-strategy", "stream"], ALL),
        (&by_id, &["--mode", "cold", "--image-strategy", "simple"], ALL),
    ] {
        run(image);
        let begun = received();
        let options = [options, &["--on-source", "remove"]].concat();
        world.migrate(&options).expect(0);
        let came = received() - begun;
        assert!(range.contains(&came), "{image}: {came}");
        assert!(is_running(&world.b, "web"));
        assert_eq!(id(&world.a, image), id(&world.b, image));
        assert!(id(&world.a, image).starts_with(&inspect(&world.b, "web", "{{.Image}}")));
        assert_eq!(inspect(&world.b, "web", "{{.Config.Image}}"), image);
        let found = world
            .b
            .sh("docker exec web sh -c 'cat /written /data/file; ls /one 2>&1'; true")
            .unwrap();
        assert!(
            found.starts_with("layer\nvolume\n") && found.contains("No such"),
            "{found}"
        );
        world
            .b
            .sh(&format!(
                "docker rm -fv web && docker volume rm data && docker rmi {image}"
            ))
            .unwrap();
        assert_eq!(world.b.inventory().unwrap(), before, "{image}");
    }

    // A failure leaves nothing there, and the container runs on.
    run("app:1");
    world.arm(&world.b, "destination.created=fail");
    let options = ["--mode", "cold"];
    let failed = world.migrate(&options);
    assert_ne!(failed.code, 0);
    assert_eq!(world.b.inventory().unwrap(), before);
    assert!(is_running(&world.a, "web"));
    world.arm(&world.b, "none");
    // Layers that are there do not travel again.
    push(&world, &["app:base"]);
    let begun = received();
    world.migrate(&options).expect(0);
    let came = received() - begun;
    assert!((9_000_000..11_000_000).contains(&came), "{came}");

    world.b.sh("docker rm -f web && docker rmi app:1").unwrap();

    // Which of two platforms the container is for is not said.
    world.a.sh(TWO).unwrap();
    world
        .a
        .sh("docker rm -f web 2>/dev/null; docker run -d --name web --network none two:1 sleep 9999")
        .unwrap();
    let found = world.findings("web", &[]);
    assert!(
        found.contains(&("image.platforms".into(), "conflict".into())),
        "{found:?}"
    );
}

#[test]
fn stores_of_different_kinds_are_told_apart_before_anything_travels() {
    let world = world!(Options::default().containerd_stores(&["b"]));
    world.serve(&[]);
    for options in [&[][..], &["--whole-image"]] {
        let found = world.findings("web", options);
        assert!(
            found.contains(&("image.store".into(), "conflict".into())),
            "{found:?}"
        );
    }
    let pushed = [
        "image",
        "push",
        "tranship-test/busybox:1",
        "ssh://root@b",
        "--from",
        "ssh://root@a",
    ];
    world
        .run(&pushed)
        .expect(1)
        .saying(&["image.store", "containerd-snapshotter"]);
    let layers = [
        "image", "layers", pushed[2], "--on", pushed[3], pushed[4], pushed[5],
    ];
    world.run(&layers).expect(1).saying(&["image.store"]);
    let inventories = world.inventories();
    world.migrate(&[]).expect(1).saying(&["image.store"]);
    assert_eq!(world.inventories(), inventories);
}
