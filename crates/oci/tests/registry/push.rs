//! Taking images in.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use tranship_core::ids::Digest;
use tranship_oci::document::media;
use tranship_oci::port::Images;
use tranship_oci::{Limits, Registry};

use crate::common::{Client, Engine, Image, gzip, limits, manifest, noise, plain, zstd};

fn image(name: &str) -> Image {
    Image::new(name, &[noise(1, 300_000), noise(2, 700), Vec::new()])
}

#[tokio::test]
async fn an_image_arrives_with_its_id_however_it_is_packed() {
    for pack in [plain, gzip, zstd] {
        let client = Client::new(Engine::with(&[]));
        let image = image("app");
        let put = client.push("team/app", "1", &image, pack).await.expect(201);
        assert_eq!(client.engine.tags.lock().unwrap()["team/app:1"], image.id());
        let held = client.engine.images.lock().unwrap()[&image.id()].clone();
        assert_eq!(
            (held.config, held.layers),
            (image.config.clone(), image.layers.clone())
        );
        // As it was pushed, by its digest; and as it is held, by its tag.
        let digest = put.header("docker-content-digest").to_owned();
        let pushed = client.get(put.header("location")).await.expect(200);
        assert_eq!(Digest::of(&pushed.body).as_str(), digest);
        let ours = client.get("/v2/team/app/manifests/1").await.expect(200).json();
        assert_eq!(ours["config"]["digest"], image.id().as_str());
        assert_eq!(ours["layers"][0]["digest"], image.diff_ids()[0].as_str());
    }
}

#[tokio::test]
async fn layers_that_are_held_are_not_sent_to_the_engine() {
    let image = image("app");
    let mut layers: Vec<Vec<u8>> = image.layers.iter().map(|l| l.to_vec()).collect();
    layers.push(noise(9, 5000));
    let larger = Image::new("larger", &layers);
    let client = Client::new(Engine::with(&[("app:1", &image)]));
    client.push("app", "2", &larger, gzip).await.expect(201);
    let imported = client.engine.imported.load(Ordering::Relaxed);
    assert!((5000..20_000).contains(&imported), "{imported}");

    // And what the engine holds need not be uploaded at all: plain layers are there under any name.
    let other = Image::new("other", &[layers[1].clone(), layers[3].clone()]);
    client.blob("new", &other.config).await;
    for digest in other.diff_ids() {
        let path = format!("/v2/new/blobs/uploads/?mount={digest}&from=app");
        let mounted = client.call("POST", &path, &[], b"").await.expect(201);
        assert_eq!(mounted.header("location"), format!("/v2/new/blobs/{digest}"));
    }
    let named: Vec<(Digest, usize)> = other
        .diff_ids()
        .into_iter()
        .zip(other.layers.iter().map(|l| l.len()))
        .collect();
    let document = manifest(&other, &named).replace("+gzip", "");
    client
        .put("new", "1", media::MANIFEST, document.as_bytes())
        .await
        .expect(201);
    assert_eq!(
        client.engine.images.lock().unwrap()[&other.id()].layers,
        other.layers
    );

    // The same once more: nothing but the tag.
    let archives = client.engine.archives.load(Ordering::Relaxed);
    client.push("app", "3", &larger, zstd).await.expect(201);
    assert_eq!(client.engine.archives.load(Ordering::Relaxed), archives);
    assert_eq!(client.engine.tags.lock().unwrap()["app:3"], larger.id());
    // What is nowhere is uploaded after all.
    let path = format!("/v2/new/blobs/uploads/?mount={}&from=app", Digest::of(b"nowhere"));
    client.call("POST", &path, &[], b"").await.expect(202);
}

#[tokio::test]
async fn a_blob_comes_in_pieces() {
    let client = Client::new(Engine::with(&[]));
    let bytes = noise(3, 3_000_000);
    let digest = Digest::of(&bytes);
    let begun = client
        .call("POST", "/v2/a/b/blobs/uploads/", &[], b"")
        .await
        .expect(202);
    let at = begun.header("location").to_owned();
    let (first, rest) = bytes.split_at(1_200_000);
    let (second, last) = rest.split_at(1);
    let sent = client
        .call(
            "PATCH",
            &at,
            &[("content-range", "0-1199999"), ("content-length", "1200000")],
            first,
        )
        .await
        .expect(202);
    assert_eq!(sent.header("range"), "0-1199999");
    assert_eq!(sent.header("location"), at);

    // Out of order, twice, with a hole: nothing changes, and it is said where it stands.
    for range in ["0-1199999", "1200001-1200001", "1199999-1199999"] {
        let refused = client
            .call("PATCH", &at, &[("content-range", range)], second)
            .await
            .expect(416);
        assert_eq!(refused.header("range"), "0-1199999");
    }
    let status = client.get(&at).await.expect(204);
    assert_eq!(status.header("range"), "0-1199999");
    // Another repository's upload is none of one's own.
    client
        .get(&at.replace("/a/b/", "/a/c/"))
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN", "oci.no-upload");
    client.call("PATCH", &at, &[], second).await.expect(202);
    let end = format!("{at}?digest={}", digest.as_str().replace(':', "%3A"));
    let range = format!("1200001-{}", bytes.len() - 1);
    let done = client
        .call("PUT", &end, &[("content-range", &range)], last)
        .await
        .expect(201);
    assert_eq!(done.header("docker-content-digest"), digest.as_str());
    let got = client.get(done.header("location")).await.expect(200);
    assert_eq!(got.body, bytes);
    let part = client
        .call("GET", done.header("location"), &[("range", "bytes=5-9")], b"")
        .await
        .expect(206);
    assert_eq!(part.body, &bytes[5..10]);
    client.get(&at).await.expect(404);

    let begun = client
        .call("POST", "/v2/a/blobs/uploads/", &[], b"")
        .await
        .expect(202);
    let at = begun.header("location");
    client.call("DELETE", at, &[], b"").await.expect(204);
    client.get(at).await.expect(404);
    let blob = format!("/v2/a/blobs/{digest}");
    client.call("DELETE", &blob, &[], b"").await.expect(202);
    client.get(&blob).await.expect(404);
    assert_eq!(client.spooled(), 0);
}

#[tokio::test]
async fn an_index_names_what_was_pushed() {
    let client = Client::new(Engine::with(&[]));
    let mut images = Vec::new();
    for (name, architecture) in [("here", "amd64"), ("there", "arm64")] {
        let image = image(name);
        let document = {
            client.blob("app", &image.config).await;
            let mut layers = Vec::new();
            for layer in &image.layers {
                let packed = gzip(layer);
                layers.push((client.blob("app", &packed).await, packed.len()));
            }
            manifest(&image, &layers)
        };
        let digest = Digest::of(document.as_bytes());
        images.push((image, digest, document, architecture));
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": media::INDEX,
        "manifests": images.iter().map(|(_, digest, document, architecture)| json!({
            "mediaType": media::MANIFEST, "digest": digest, "size": document.len(),
            "platform": { "os": "linux", "architecture": architecture },
        })).collect::<Vec<_>>(),
    })
    .to_string();
    client
        .put("app", "multi", media::INDEX, index.as_bytes())
        .await
        .refused(400, "MANIFEST_BLOB_UNKNOWN", "oci.blob-missing");
    for (_, digest, document, _) in &images {
        client
            .put("app", digest.as_str(), media::MANIFEST, document.as_bytes())
            .await
            .expect(201);
    }
    let put = client
        .put("app", "multi", media::INDEX, index.as_bytes())
        .await
        .expect(201);
    let got = client.get(put.header("location")).await.expect(200);
    assert_eq!(got.header("content-type"), media::INDEX);
    assert_eq!(got.body, index.as_bytes());
    let here = if cfg!(target_arch = "aarch64") { 1 } else { 0 };
    assert_eq!(
        client.engine.tags.lock().unwrap()["app:multi"],
        images[here].0.id()
    );
}

#[tokio::test]
async fn tags_and_manifests_are_deleted_as_far_as_the_engine_lets_them() {
    let image = image("app");
    let client = Client::new(Engine::with(&[("app:1", &image), ("app:2", &image)]));
    let digest = Digest::of(&client.get("/v2/app/manifests/1").await.expect(200).body);
    let by_digest = format!("/v2/app/manifests/{digest}");
    client
        .call("DELETE", &by_digest, &[], b"")
        .await
        .refused(405, "UNSUPPORTED", "engine.conflict");
    for tag in ["1", "2"] {
        client
            .call("DELETE", &format!("/v2/app/manifests/{tag}"), &[], b"")
            .await
            .expect(202);
    }
    client
        .call("DELETE", "/v2/app/manifests/1", &[], b"")
        .await
        .expect(404);
    client.call("DELETE", &by_digest, &[], b"").await.expect(202);
    client.call("DELETE", &by_digest, &[], b"").await.expect(404);
    assert!(client.engine.images.lock().unwrap().is_empty());
}

#[tokio::test]
async fn nothing_is_taken_in_where_it_is_only_read() {
    let image = image("app");
    let engine = Engine::with(&[("app:1", &image)]);
    let images: Arc<dyn Images> = engine.clone();
    let client = Client {
        registry: Registry::reading(images, None),
        engine,
        spool: tempfile::tempdir().unwrap(),
    };
    client.get("/v2/app/manifests/1").await.expect(200);
    for (method, path) in [
        ("POST", "/v2/app/blobs/uploads/"),
        ("PUT", "/v2/app/manifests/2"),
        ("DELETE", "/v2/app/manifests/1"),
    ] {
        client
            .call(method, path, &[], b"")
            .await
            .refused(405, "UNSUPPORTED", "oci.unsupported");
    }
    assert!(client.engine.tags.lock().unwrap().contains_key("app:1"));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_asks_for_goes() {
    let client = Client::with(
        Engine::with(&[]),
        Limits {
            idle: Duration::from_secs(60),
            ..limits()
        },
        None,
    );
    client.blob("a", b"blob").await;
    client
        .call("POST", "/v2/a/blobs/uploads/", &[], b"")
        .await
        .expect(202);
    assert_eq!(client.spooled(), 2);
    tokio::time::advance(Duration::from_secs(59)).await;
    let path = format!("/v2/a/blobs/{}", Digest::of(b"blob"));
    client.get(&path).await.expect(200);
    tokio::time::advance(Duration::from_secs(59)).await;
    client
        .call("POST", "/v2/a/blobs/uploads/", &[], b"")
        .await
        .expect(202);
    assert_eq!(
        client.spooled(),
        2,
        "the first upload is gone, the blob was asked for"
    );
    tokio::time::advance(Duration::from_secs(61)).await;
    client.registry.sweep();
    assert_eq!(client.spooled(), 0);
    client
        .call("POST", "/v2/a/blobs/uploads/", &[], b"")
        .await
        .expect(202);
    assert_eq!(client.spooled(), 1);
}

#[test]
fn a_spool_belongs_to_one_server() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path().join("spool");
    let open = || {
        let images: Arc<dyn Images> = Engine::with(&[]);
        Registry::writing(images, None, &spool, limits())
    };
    let first = open().unwrap();
    let refused = open().err().map(tranship_core::Fault::from).unwrap();
    assert_eq!(refused.code, "oci.spool");
    assert!(refused.hint.unwrap().contains("other server"));
    std::fs::write(spool.join("blobs/left"), "over").unwrap();
    drop(first);
    let _second = open().unwrap();
    assert_eq!(std::fs::read_dir(spool.join("blobs")).unwrap().count(), 0);
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(
        std::fs::metadata(&spool).unwrap().permissions().mode() & 0o777,
        0o700
    );
}
