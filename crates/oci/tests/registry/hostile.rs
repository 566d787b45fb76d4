//! Liars: what they send is refused with a reason, and nothing of it reaches the engine.

use std::io::Write as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde_json::json;
use tranship_core::ids::Digest;
use tranship_oci::Limits;
use tranship_oci::document::media;

use crate::common::{Client, Engine, Image, gzip, limits, manifest, noise, plain};

fn image() -> Image {
    Image::new("app", &[noise(1, 5000)])
}

fn client() -> Client {
    Client::new(Engine::with(&[]))
}

async fn begin(client: &Client) -> String {
    let begun = client
        .call("POST", "/v2/a/blobs/uploads/", &[], b"")
        .await
        .expect(202);
    begun.header("location").to_owned()
}

#[tokio::test]
async fn a_blob_with_another_digest_is_gone() {
    let client = client();
    let wrong = Digest::of(b"else");
    let path = format!("/v2/a/blobs/uploads/?digest={wrong}");
    client
        .call("POST", &path, &[], b"this")
        .await
        .refused(400, "DIGEST_INVALID", "oci.digest");
    let at = begin(&client).await;
    let path = format!("{at}?digest={wrong}");
    client
        .call("PUT", &path, &[], b"this")
        .await
        .refused(400, "DIGEST_INVALID", "oci.digest");
    client.get(&at).await.expect(404);
    let at = begin(&client).await;
    client
        .call("PUT", &at, &[], b"this")
        .await
        .refused(400, "DIGEST_INVALID", "oci.digest");
    for digest in [
        "sha256:00",
        "sha512:00",
        &wrong.as_str().to_uppercase(),
        "../../x",
    ] {
        let path = format!("{at}?digest={digest}");
        client
            .call("PUT", &path, &[], b"")
            .await
            .refused(400, "DIGEST_INVALID", "oci.digest");
    }
    client.call("DELETE", &at, &[], b"").await.expect(204);
    assert_eq!(client.spooled(), 0);
}

#[tokio::test]
async fn a_body_has_the_length_that_it_claims() {
    let client = client();
    let at = begin(&client).await;
    let long = client
        .call("PATCH", &at, &[("content-length", "3")], b"four")
        .await;
    long.refused(400, "SIZE_INVALID", "oci.body");
    assert_eq!(client.get(&at).await.expect(204).header("range"), "0-0");
    let long = client
        .call("PATCH", &at, &[("content-range", "0-2")], b"four")
        .await;
    long.refused(400, "SIZE_INVALID", "oci.body");
    let disagreeing = [("content-range", "0-2"), ("content-length", "4")];
    client
        .call("PATCH", &at, &disagreeing, b"four")
        .await
        .refused(400, "BLOB_UPLOAD_INVALID", "oci.upload");
    let short = client
        .call("PATCH", &at, &[("content-length", "9")], b"four")
        .await;
    short.refused(400, "SIZE_INVALID", "oci.body");
    // What came of a short one counts: its sender goes on from there.
    assert_eq!(client.get(&at).await.expect(204).header("range"), "0-3");
    for bad in ["x", "3-1", "-1", "0-18446744073709551615"] {
        let reply = client.call("PATCH", &at, &[("content-range", bad)], b"x").await;
        reply.refused(400, "BLOB_UPLOAD_INVALID", "oci.upload");
    }
    let digest = Digest::of(b"fourmore");
    let done = client
        .call("PUT", &format!("{at}?digest={digest}"), &[], b"more")
        .await;
    done.expect(201);
}

#[tokio::test]
async fn an_endless_body_ends() {
    let client = client();
    let at = begin(&client).await;
    let endless = stream::repeat_with(|| Ok(Bytes::from_static(&[7; 100_000])));
    client
        .stream("PATCH", &at, &[], endless)
        .await
        .refused(413, "SIZE_INVALID", "oci.too-large");
    let endless = stream::repeat_with(|| Ok(Bytes::from_static(&[b' '; 100_000])));
    let kind = [("content-type", media::MANIFEST)];
    client
        .stream("PUT", "/v2/a/manifests/1", &kind, endless)
        .await
        .refused(413, "SIZE_INVALID", "oci.too-large");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stands_still_ends() {
    let client = client();
    let at = begin(&client).await;
    let stuck = stream::iter([Ok(Bytes::from_static(b"x"))]).chain(stream::pending());
    client
        .stream("PATCH", &at, &[], Box::pin(stuck))
        .await
        .refused(400, "SIZE_INVALID", "oci.body");
}

#[tokio::test]
async fn uploads_and_disk_are_bounded() {
    let client = client();
    for _ in 0..limits().uploads {
        begin(&client).await;
    }
    client
        .call("POST", "/v2/a/blobs/uploads/", &[], b"")
        .await
        .refused(429, "TOOMANYREQUESTS", "oci.too-many");
    let full = Limits {
        free: u64::MAX,
        ..limits()
    };
    let client = Client::with(Engine::with(&[]), full, None);
    let at = begin(&client).await;
    client
        .call("PATCH", &at, &[], b"x")
        .await
        .refused(507, "DENIED", "oci.no-space");
}

#[tokio::test]
async fn a_manifest_is_believed_only_as_far_as_its_blobs() {
    let client = client();
    let image = image();
    let layer = gzip(&image.layers[0]);
    let named = [(Digest::of(&layer), layer.len())];
    let good = manifest(&image, &named);
    let put = |document: String| {
        let client = &client;
        async move { client.put("app", "1", media::MANIFEST, document.as_bytes()).await }
    };
    put(good.clone())
        .await
        .refused(400, "MANIFEST_BLOB_UNKNOWN", "oci.blob-missing");
    client.blob("app", &image.config).await;
    put(good.clone())
        .await
        .refused(400, "MANIFEST_BLOB_UNKNOWN", "oci.blob-missing");
    client.blob("app", &layer).await;
    let size = format!("\"size\":{}", layer.len());
    put(good.replace(&size, "\"size\":1"))
        .await
        .refused(400, "MANIFEST_INVALID", "oci.manifest");
    put(manifest(&image, &[]))
        .await
        .refused(400, "MANIFEST_INVALID", "oci.manifest");
    put(good.replace(media::CONFIG, "application/json"))
        .await
        .refused(400, "MANIFEST_INVALID", "oci.manifest");
    put("{}".into())
        .await
        .refused(400, "MANIFEST_INVALID", "oci.manifest");
    let elsewhere = Digest::of(b"elsewhere");
    client
        .put("app", elsewhere.as_str(), media::MANIFEST, good.as_bytes())
        .await
        .refused(400, "DIGEST_INVALID", "oci.digest");
    assert!(client.engine.is_empty());
    put(good).await.expect(201);
}

#[tokio::test]
async fn a_layer_that_is_not_what_the_configuration_says() {
    let good = image();
    let other = noise(8, 5000);
    let mut broken = gzip(&good.layers[0]);
    let middle = broken.len() / 2;
    broken[middle] ^= 0x55;
    let cut = gzip(&good.layers[0])[..2000].to_vec();
    let followed = [gzip(&good.layers[0]), b"more".to_vec()].concat();
    for blob in [other.clone(), gzip(&other), broken, cut, followed] {
        let client = client();
        client.blob("app", &good.config).await;
        let digest = client.blob("app", &blob).await;
        let document = manifest(&good, &[(digest, blob.len())]);
        client
            .put("app", "1", media::MANIFEST, document.as_bytes())
            .await
            .refused(400, "MANIFEST_INVALID", "oci.layer");
        assert!(client.engine.is_empty());
        assert!(client.engine.tags.lock().unwrap().is_empty());
    }
    // One that the engine holds, in the wrong place.
    let held = Image::new("held", std::slice::from_ref(&other));
    let client = Client::new(Engine::with(&[("held:1", &held)]));
    client.blob("app", &good.config).await;
    let document = manifest(&good, &[(Digest::of(&other), other.len())]);
    client
        .put("app", "1", media::MANIFEST, document.as_bytes())
        .await
        .refused(400, "MANIFEST_INVALID", "oci.layer");
    // The second of two: the first one is not loaded either.
    let two = Image::new("two", &[noise(1, 100), noise(2, 100)]);
    client.blob("app", &two.config).await;
    let first = client.blob("app", &two.layers[0]).await;
    let second = client.blob("app", &noise(3, 100)).await;
    let document = manifest(&two, &[(first, 100), (second, 100)]);
    client
        .put("app", "1", media::MANIFEST, document.as_bytes())
        .await
        .refused(400, "MANIFEST_INVALID", "oci.layer");
    assert_eq!(client.engine.archives.load(Ordering::Relaxed), 0);
}

/// A gigabyte of zeros in about a megabyte.
fn bomb() -> (Vec<u8>, Digest) {
    use sha2::Digest as _;
    let zeros = vec![0; 1 << 20];
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let mut hasher = sha2::Sha256::new();
    for _ in 0..1024 {
        encoder.write_all(&zeros).unwrap();
        hasher.update(&zeros);
    }
    (
        encoder.finish().unwrap(),
        Digest::from_sha256(&hasher.finalize().into()),
    )
}

#[tokio::test]
async fn a_layer_bomb_is_defused() {
    let (packed, diff_id) = bomb();
    assert!(packed.len() < 1_100_000);
    let config = json!({ "rootfs": { "type": "layers", "diff_ids": [diff_id] } }).to_string();
    let image = Image {
        config: config.into(),
        layers: Vec::new(),
    };
    let document = manifest(&image, &[(Digest::of(&packed), packed.len())]);
    // With the limits as they are outside of tests, and with one for the layer alone.
    let usual = Limits {
        free: 0,
        ..Limits::default()
    };
    let alone = Limits {
        ratio: u64::MAX,
        layer: 100 << 20,
        ..usual.clone()
    };
    for limits in [usual, alone] {
        let client = Client::with(Engine::with(&[]), limits, None);
        client.blob("app", &image.config).await;
        client.blob("app", &packed).await;
        client
            .put("app", "1", media::MANIFEST, document.as_bytes())
            .await
            .refused(413, "SIZE_INVALID", "oci.layer-bomb");
        assert!(client.engine.is_empty());
        assert_eq!(client.spooled(), 2, "nothing was unpacked onto the disk");
    }
}

#[tokio::test]
async fn an_index_of_indexes_is_refused() {
    let client = client();
    let image = image();
    let pushed = client.push("app", "1", &image, plain).await.expect(201);
    let child = pushed.header("docker-content-digest").to_owned();
    let size = client.get(pushed.header("location")).await.body.len();
    let index = |kind: &str, digest: &str, size: usize| {
        json!({ "schemaVersion": 2, "mediaType": media::INDEX,
            "manifests": [{ "mediaType": kind, "digest": digest, "size": size }] })
        .to_string()
    };
    let good = index(media::MANIFEST, &child, size);
    client
        .put("app", "i", media::INDEX, good.as_bytes())
        .await
        .expect(201);
    let digest = Digest::of(good.as_bytes());
    for kind in [
        media::INDEX,
        media::MANIFEST,
        media::DOCKER_LIST,
        media::DOCKER_MANIFEST,
    ] {
        let nested = index(kind, digest.as_str(), good.len());
        client
            .put("app", "i", media::INDEX, nested.as_bytes())
            .await
            .refused(400, "MANIFEST_INVALID", "oci.manifest");
    }
    let lying = index(media::MANIFEST, &child, size + 1);
    client
        .put("app", "i", media::INDEX, lying.as_bytes())
        .await
        .refused(400, "MANIFEST_INVALID", "oci.manifest");
}

#[tokio::test]
async fn names_lead_nowhere_else() {
    let client = client();
    let zeros = "0".repeat(64);
    for path in [
        "/v2/../../etc/manifests/1",
        "/v2/a/../b/tags/list",
        "/v2/A/manifests/1",
        "/v2//manifests/1",
        "/v2/a//b/blobs/uploads/",
        "/v2/a%2f..%2fb/tags/list",
        &format!("/v2/{}/tags/list", "a".repeat(256)),
    ] {
        let method = if path.ends_with("uploads/") { "POST" } else { "GET" };
        client
            .call(method, path, &[], b"")
            .await
            .refused(400, "NAME_INVALID", "oci.name");
    }
    // With a tag of this form it would be the id of an image.
    for method in ["GET", "PUT", "DELETE"] {
        client
            .call(method, &format!("/v2/sha256/manifests/{zeros}"), &[], b"")
            .await
            .refused(400, "NAME_INVALID", "oci.name");
    }
    client
        .get("/v2/a/manifests/..")
        .await
        .refused(400, "MANIFEST_INVALID", "oci.reference");
    for path in [
        "/v2/a/blobs/uploads/../../lock",
        "/v2/a/blobs/uploads/..",
        "/v2/a/blobs/uploads/lock",
    ] {
        let reply = client.call("PATCH", path, &[], b"x").await;
        assert!(
            [400, 404].contains(&reply.status.as_u16()),
            "{path} {}",
            reply.status
        );
    }
    for path in ["/", "/v1/", "/v2x", "/v2/a", "/v2/a/b/c"] {
        client.get(path).await.expect(404);
    }
    assert_eq!(client.spooled(), 0);
}

#[tokio::test]
async fn pauses_do_not_count_as_long_as_something_comes() {
    let client = client();
    let at = begin(&client).await;
    let slow = stream::iter(0..5).then(|_| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok(Bytes::from_static(b"x"))
    });
    client.stream("PATCH", &at, &[], Box::pin(slow)).await.expect(202);
}
