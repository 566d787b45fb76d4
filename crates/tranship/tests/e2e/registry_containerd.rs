//! `tranship image serve` on a host whose Docker keeps its images with containerd: blobs go out and come in as they are.

use serde_json::Value;
use tranship_testkit::testbed::{Node, Options};

use crate::containerd::{BUILD, INDEX, TWO, both};
use crate::registry::{GUARDED, Serving, guard, id, log_in, pull_over_an_end};
use crate::world::{World, inspect, untagged_image, wait_until};

/// Makes of `app:1` the image `said:1` as BuildKit does: an index of it and of an attestation.
pub const SAID: &str = r#"
set -e
rm -rf /srv/said && mkdir /srv/said && cd /srv/said
docker save app:1 | tar x
rm manifest.json
put() { sum=$(sha256sum "$1" | cut -d' ' -f1); size=$(stat -c %s "$1"); mv "$1" "blobs/sha256/$sum"; }
own=$(jq -c '.manifests[0] | {mediaType, digest, size}' index.json)
echo '{"_type": "https://in-toto.io/Statement/v0.1", "subject": []}' > said
put said
layer=$(jq -nc --arg digest "sha256:$sum" --argjson size "$size"     '{mediaType: "application/vnd.in-toto+json", digest: $digest, size: $size}')
echo "$layer" | jq '{architecture: "unknown", os: "unknown", config: {}, rootfs: {type: "layers", diff_ids: [.digest]}}' > config
put config
jq -n --argjson layer "$layer" --arg digest "sha256:$sum" --argjson size "$size" '{schemaVersion: 2,
    mediaType: "application/vnd.oci.image.manifest.v1+json", layers: [$layer],
    config: {mediaType: "application/vnd.oci.image.config.v1+json", digest: $digest, size: $size}}' > attestation
put attestation
jq -n --argjson own "$own" --arg digest "sha256:$sum" --argjson size "$size" '{schemaVersion: 2,
    mediaType: "application/vnd.oci.image.index.v1+json", manifests: [
    ($own + {platform: {os: "linux", architecture: "amd64"}}),
    {mediaType: "application/vnd.oci.image.manifest.v1+json", size: $size, digest: $digest,
     annotations: {"vnd.docker.reference.digest": $own.digest, "vnd.docker.reference.type": "attestation-manifest"},
     platform: {os: "unknown", architecture: "unknown"}}]}' > index
put index
jq -n --arg digest "sha256:$sum" --argjson size "$size" '{schemaVersion: 2, manifests: [
    {mediaType: "application/vnd.oci.image.index.v1+json", digest: $digest, size: $size,
     annotations: {"io.containerd.image.name": "docker.io/library/said:1"}}]}' > index.json
tar c . | docker load
"#;

/// What the client of a registry says of the one at `a`, asked from `b`.
fn curl(world: &World, options: &str, path: &str) -> String {
    let line = format!("curl -sk -u me:secret {options} 'https://a:5000/v2/{path}'");
    world.b.sh(&line).unwrap()
}

fn json(world: &World, path: &str) -> Value {
    serde_json::from_str(&curl(world, "", path)).unwrap()
}

fn status(world: &World, options: &str, path: &str) -> String {
    curl(
        world,
        &format!("{options} -o /dev/null -w '%{{http_code}}'"),
        path,
    )
}

fn docker(node: &Node, line: &str) -> String {
    node.sh(&format!("export HOME=/root; docker {line}")).unwrap()
}

fn sums(node: &Node, image: &str) -> String {
    let run = format!("docker run --rm --network none {image} md5sum /one /two");
    node.sh(&run).unwrap()
}

/// Where `a` keeps a blob, as this process sees it.
fn blob_file(world: &World, digest: &str) -> std::path::PathBuf {
    let hex = digest.strip_prefix("sha256:").unwrap();
    let find = format!("find /var/lib /run -path '*content.v1.content/blobs/sha256/{hex}' 2>/dev/null; true");
    let found = world.a.sh(&find).unwrap();
    let path = found.lines().next().unwrap();
    world.a.root().unwrap().join(path.trim_start_matches('/'))
}

#[test]
fn docker_pulls_blobs_as_they_are_kept() {
    let world = world!(both());
    for node in [&world.a, &world.b] {
        node.load_image("busybox").unwrap();
    }
    world.a.sh(BUILD).unwrap();
    world.a.sh(INDEX).unwrap();
    let untagged = untagged_image(&world.a, "app:1");
    guard(&world);
    let serving = Serving::begin(&world.a, GUARDED).reachable();
    assert_eq!(
        world
            .b
            .sh("curl -sk -o /dev/null -w '%{http_code}' https://a:5000/v2/")
            .unwrap(),
        "401"
    );
    log_in(&world.b);

    // The id is the digest of the manifest, and stays. Blobs that are here do not come again.
    let received = || world.b.link_bytes().unwrap().received;
    let before = received();
    docker(&world.b, "pull a:5000/app:base");
    let base = received() - before;
    assert!((9_000_000..14_000_000).contains(&base), "{base}");
    docker(&world.b, "pull a:5000/app:1");
    let top = received() - before - base;
    assert!((9_000_000..10_000_000).contains(&top), "{top}");
    assert_eq!(id(&world.a, "app:1"), id(&world.b, "a:5000/app:1"));
    assert_eq!(sums(&world.a, "app:1"), sums(&world.b, "a:5000/app:1"));
    // An index of which one platform is here; and what has no tag, by its id.
    docker(&world.b, "pull a:5000/multi:1");
    assert_eq!(id(&world.a, "multi:1"), id(&world.b, "a:5000/multi:1"));
    assert_eq!(sums(&world.a, "app:1"), sums(&world.b, "a:5000/multi:1"));
    let hex = untagged.strip_prefix("sha256:").unwrap();
    docker(&world.b, &format!("pull a:5000/any:{hex}"));
    assert_eq!(
        id(&world.a, &untagged),
        id(&world.b, &format!("a:5000/any:{hex}"))
    );
    let by_digest = format!("a:5000/app@{}", inspect(&world.a, "app:1", "{{.Id}}"));
    docker(&world.b, &format!("rmi a:5000/app:1 && docker pull {by_digest}"));
    assert_eq!(id(&world.a, "app:1"), id(&world.b, &by_digest));

    // Other clients take their own platform as well; all of them are not here.
    let copy = |options: &str| {
        let line = "skopeo copy -q --src-creds me:secret docker://a:5000/multi:1 dir:/root/copied";
        world.b.sh(&format!("{line} {options}"))
    };
    copy("").unwrap();
    copy("--all").unwrap_err();

    // As the protocol has it.
    let listed = json(&world, "_catalog");
    let names: Vec<&str> = listed["repositories"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    for name in ["app", "multi", "other", "tranship-test/busybox"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert_eq!(
        json(&world, "app/tags/list")["tags"],
        serde_json::json!(["1", "base"])
    );
    let manifest = json(&world, "app/manifests/1");
    let head = curl(&world, "-I", "app/manifests/1").to_ascii_lowercase();
    let kept = inspect(&world.a, "app:1", "{{.Id}}");
    assert!(head.contains(&format!("docker-content-digest: {kept}")), "{head}");
    assert!(
        head.contains(&format!(
            "content-type: {}",
            manifest["mediaType"].as_str().unwrap()
        )),
        "{head}"
    );
    for blob in manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .chain([&manifest["config"]])
    {
        let digest = blob["digest"].as_str().unwrap();
        let path = format!("app/blobs/{digest}");
        let size = blob["size"].as_u64().unwrap();
        let head = curl(&world, "-I", &path).to_ascii_lowercase();
        assert!(head.contains(&format!("content-length: {size}")), "{head}");
        // In three parts, of which the last one has no end.
        let parts = [(0, Some(99)), (100, Some(size / 2)), (size / 2 + 1, None)];
        world.b.sh("rm -f /root/blob").unwrap();
        for (start, last) in parts {
            let last = last.map(|last: u64| last.to_string()).unwrap_or_default();
            let options = format!("-r {start}-{last} -w '%{{http_code}}' -o /root/part");
            assert_eq!(curl(&world, &options, &path), "206");
            world.b.sh("cat /root/part >> /root/blob").unwrap();
        }
        let sum = world.b.sh("sha256sum < /root/blob | cut -d' ' -f1").unwrap();
        assert_eq!(format!("sha256:{}", sum.trim()), digest);
        assert_eq!(status(&world, &format!("-r {size}-"), &path), "416");
    }
    let elsewhere = format!("sha256:{}", "ab".repeat(32));
    assert_eq!(status(&world, "", &format!("multi/manifests/{elsewhere}")), "404");
    assert_eq!(status(&world, "", &format!("multi/blobs/{elsewhere}")), "404");
    assert_eq!(status(&world, "-I", "app/manifests/2"), "404");
    assert_eq!(serving.end("TERM"), 0);
}

#[test]
fn docker_pushes_and_the_digest_stays() {
    let world = world!(both());
    for node in [&world.a, &world.b] {
        node.load_image("busybox").unwrap();
    }
    world.b.sh(BUILD).unwrap();
    world.b.sh(TWO).unwrap();
    world.b.sh(SAID).unwrap();
    guard(&world);
    let serving = Serving::begin(&world.a, GUARDED).reachable();
    log_in(&world.b);
    docker(
        &world.b,
        "tag app:base a:5000/team/app:base && docker push a:5000/team/app:base",
    );
    assert_eq!(id(&world.b, "app:base"), id(&world.a, "team/app:base"));
    // What is there does not come again.
    let received = || world.a.link_bytes().unwrap().received;
    let before = received();
    docker(
        &world.b,
        "tag app:1 a:5000/team/app:1 && docker push a:5000/team/app:1",
    );
    let came = received() - before;
    assert!((9_000_000..10_000_000).contains(&came), "{came}");
    assert_eq!(id(&world.b, "app:1"), id(&world.a, "team/app:1"));
    assert_eq!(sums(&world.b, "app:1"), sums(&world.a, "team/app:1"));
    assert!(world.a.sh("docker images team/app").unwrap().contains("base"));
    // Again, and as another one.
    docker(&world.b, "push a:5000/team/app:1");
    docker(&world.b, "tag app:1 a:5000/again:1 && docker push a:5000/again:1");
    assert_eq!(id(&world.b, "app:1"), id(&world.a, "again:1"));
    // An index of two platforms.
    docker(&world.b, "tag two:1 a:5000/two:1 && docker push a:5000/two:1");
    assert_eq!(id(&world.b, "two:1"), id(&world.a, "two:1"));
    let count = "docker save two:1 | tar t | grep -c blobs/sha256/.";
    assert_eq!(world.b.sh(count).unwrap(), world.a.sh(count).unwrap());
    // An index of an image and of what is said of it.
    docker(&world.b, "tag said:1 a:5000/said:1 && docker push a:5000/said:1");
    assert_eq!(id(&world.b, "said:1"), id(&world.a, "said:1"));
    let count = "docker save said:1 | tar t | grep -c blobs/sha256/.";
    assert_eq!(world.b.sh(count).unwrap(), world.a.sh(count).unwrap());
    assert_eq!(sums(&world.b, "app:1"), sums(&world.a, "said:1"));
    // It is there once: not with its images without a tag beside it.
    let untagged = "docker images -qf dangling=true";
    assert_eq!(world.a.sh(untagged).unwrap(), "");
    // All of it is there: it goes out again as it came.
    docker(&world.b, "rmi a:5000/two:1 && docker pull a:5000/two:1");
    assert_eq!(id(&world.b, "a:5000/two:1"), id(&world.a, "two:1"));
    // The same by another client, out and in.
    let copy = "skopeo copy -q --all --src-creds me:secret docker://a:5000/two:1 dir:/root/two && \
        ssh root@a 'docker rmi two:1 && docker image prune -f' && \
        skopeo copy -q --all --dest-creds me:secret dir:/root/two docker://a:5000/three:1";
    world.b.sh(copy).unwrap();
    assert_eq!(id(&world.a, "three:1"), id(&world.b, "two:1"));
    assert_eq!(sums(&world.a, "three:1"), sums(&world.b, "app:1"));
    assert_eq!(serving.end("TERM"), 0);

    let serving = Serving::begin(&world.a, &format!("{GUARDED} --read-only")).reachable();
    let push = "export HOME=/root; docker tag app:1 a:5000/third:1 && docker push a:5000/third:1";
    world.b.sh(push).unwrap_err();
    assert_eq!(serving.end("TERM"), 0);
}

#[test]
fn the_classic_store_pulls_from_containerd_and_pushes_to_it() {
    let world = world!(Options::default().containerd_stores(&["a"]));
    for node in [&world.a, &world.b] {
        node.load_image("busybox").unwrap();
    }
    world.a.sh(BUILD).unwrap();
    guard(&world);
    let serving = Serving::begin(&world.a, GUARDED).reachable();
    log_in(&world.b);

    let serving = pull_over_an_end(&world, serving);
    assert_eq!(sums(&world.a, "app:1"), sums(&world.b, "a:5000/app:1"));
    let manifest = json(&world, "app/manifests/1");
    let config = manifest["config"]["digest"].as_str().unwrap();
    assert_eq!(inspect(&world.b, "a:5000/app:1", "{{.Id}}"), config);

    docker(
        &world.b,
        "tag a:5000/app:1 a:5000/back:1 && docker push a:5000/back:1",
    );
    assert_eq!(sums(&world.a, "app:1"), sums(&world.a, "back:1"));
    let pushed = docker(
        &world.b,
        "image inspect -f '{{range .RepoDigests}}{{.}} {{end}}' a:5000/back:1",
    );
    let kept = inspect(&world.a, "back:1", "{{.Id}}");
    assert!(pushed.contains(&format!("a:5000/back@{kept}")), "{pushed} {kept}");
    assert_eq!(serving.end("TERM"), 0);
}

#[test]
fn blobs_that_go_or_are_damaged_never_look_whole() {
    let world = world!(Options::default().containerd_stores(&["a"]));
    world.a.load_image("busybox").unwrap();
    world.a.sh(BUILD).unwrap();
    guard(&world);
    let serving = Serving::begin(&world.a, GUARDED).reachable();
    log_in(&world.b);
    let manifest = json(&world, "app/manifests/1");
    let layer = |index: usize| manifest["layers"][index]["digest"].as_str().unwrap().to_owned();
    let (one, two) = (layer(1), layer(2));

    // Its image is removed while it streams: it comes whole, or not at all.
    let begun = format!(
        "curl -sk -u me:secret --limit-rate 3M -o /root/blob https://a:5000/v2/app/blobs/{two}; echo $? > /root/code"
    );
    let mut streaming = world.b.spawn(["sh", "-c", &begun]).unwrap();
    let partly = "test $(stat -c %s /root/blob 2>/dev/null || echo 0) -gt 500000";
    wait_until(|| world.b.sh(partly).is_ok());
    let file = blob_file(&world, &two);
    world.a.sh("docker rmi -f app:1 other:1").unwrap();
    wait_until(|| !file.exists());
    streaming.wait().unwrap();
    let (code, sum) = (
        world.b.sh("cat /root/code").unwrap(),
        world.b.sh("sha256sum < /root/blob").unwrap(),
    );
    assert!(
        code.trim() != "0" || two.ends_with(sum.split(' ').next().unwrap()),
        "{code} {sum}"
    );
    wait_until(|| status(&world, "-I", &format!("app/blobs/{two}")) == "404");

    // One that is damaged ends before its end. A part of it comes as it is: whoever puts parts together has to compare the whole.
    let file = blob_file(&world, &one);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[4_000_000] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let get = |options: &str| {
        let line = format!(
            "rm -f /root/part; curl -sk -u me:secret {options} -o /root/part https://a:5000/v2/app/blobs/{one}; echo $?"
        );
        let code = world.b.sh(&line).unwrap();
        let part = std::fs::read(world.b.root().unwrap().join("root/part"));
        (code.trim() == "0", part.unwrap_or_default())
    };
    for options in ["", "-r 0-"] {
        let (whole, came) = get(options);
        assert!(!whole && came.len() < bytes.len(), "{options}: {}", came.len());
    }
    for begin in [100, 5_000_000, bytes.len() - 1] {
        let (ended, came) = get(&format!("-r {begin}-"));
        assert!(ended && came == bytes[begin..], "from {begin}: {}", came.len());
    }
    // One that is cut is not said to be here.
    let options = std::fs::OpenOptions::new().write(true).open(&file);
    options.unwrap().set_len(4_000_000).unwrap();
    wait_until(|| status(&world, "-I", &format!("app/blobs/{one}")) == "500");
    let pull = "export HOME=/root; timeout 60 docker pull a:5000/app:base";
    world.b.sh(pull).unwrap_err();
    // A manifest that is damaged is not given out.
    let file = blob_file(&world, &inspect(&world.a, "app:base", "{{.Id}}"));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes.push(b' ');
    std::fs::write(&file, &bytes).unwrap();
    assert_ne!(status(&world, "", "app/manifests/base"), "200");
    assert_eq!(serving.end("TERM"), 0);
}
