//! Reading what the engine holds.

use std::sync::atomic::Ordering;

use tranship_core::ids::Digest;
use tranship_oci::Credentials;
use tranship_oci::document::media;

use crate::common::{Client, Engine, Image, limits, noise};

fn image(name: &str) -> Image {
    Image::new(name, &[noise(1, 5000), noise(2, 3)])
}

#[tokio::test]
async fn an_image_is_pulled_by_tag_and_by_digest() {
    let image = image("app");
    let client = Client::new(Engine::with(&[("app:1", &image)]));
    client.get("/v2/").await.expect(200);
    for (accept, kind, layer) in [
        ("*/*", media::MANIFEST, media::LAYER),
        (
            media::DOCKER_MANIFEST,
            media::DOCKER_MANIFEST,
            media::DOCKER_LAYER,
        ),
    ] {
        let path = "/v2/app/manifests/1";
        let got = client
            .call("GET", path, &[("accept", accept)], b"")
            .await
            .expect(200);
        assert_eq!(got.header("content-type"), kind);
        let digest = Digest::of(&got.body);
        assert_eq!(got.header("docker-content-digest"), digest.as_str());
        let manifest = got.json();
        assert_eq!(manifest["config"]["digest"], image.id().as_str());
        assert_eq!(manifest["layers"][0]["mediaType"], layer);

        let head = client
            .call("HEAD", path, &[("accept", accept)], b"")
            .await
            .expect(200);
        assert_eq!(head.header("docker-content-digest"), digest.as_str());
        assert_eq!(head.header("content-length"), got.body.len().to_string());
        assert!(head.body.is_empty());

        // The digest decides the form, under any name.
        let by_digest = client
            .get(&format!("/v2/other/manifests/{digest}"))
            .await
            .expect(200);
        assert_eq!(by_digest.body, got.body);
        assert_eq!(by_digest.header("content-type"), kind);

        let mut blobs = manifest["layers"].as_array().unwrap().clone();
        blobs.push(manifest["config"].clone());
        for blob in blobs {
            let digest = blob["digest"].as_str().unwrap();
            let path = format!("/v2/app/blobs/{digest}");
            let got = client.get(&path).await.expect(200);
            assert_eq!(Digest::of(&got.body).as_str(), digest);
            assert_eq!(got.body.len() as u64, blob["size"].as_u64().unwrap());
            let head = client.call("HEAD", &path, &[], b"").await.expect(200);
            assert_eq!(head.header("content-length"), got.body.len().to_string());
        }
    }
    let known = Digest::of(b"unknown");
    client.get(&format!("/v2/app/manifests/{known}")).await.refused(
        404,
        "MANIFEST_UNKNOWN",
        "oci.no-manifest",
    );
    client
        .get(&format!("/v2/app/blobs/{known}"))
        .await
        .refused(404, "BLOB_UNKNOWN", "oci.no-blob");
    client
        .get("/v2/app/manifests/2")
        .await
        .refused(404, "MANIFEST_UNKNOWN", "oci.no-manifest");
}

#[tokio::test]
async fn an_image_without_a_tag_is_pulled_by_its_manifest_or_its_id() {
    let (tagged, untagged) = (image("tagged"), image("untagged"));
    let first = Client::new(Engine::with(&[("app:1", &untagged)]));
    let manifest = first.get("/v2/app/manifests/1").await.expect(200).body;
    let client = Client::new(Engine::with(&[("app:1", &tagged), ("", &untagged)]));
    let by_id = format!("/v2/whatever/manifests/{}", untagged.id().hex());
    assert_eq!(client.get(&by_id).await.expect(200).body, manifest);
    let nothing = format!("/v2/whatever/manifests/{}", Digest::of(b"nothing").hex());
    client
        .get(&nothing)
        .await
        .refused(404, "MANIFEST_UNKNOWN", "oci.no-manifest");
    let path = format!("/v2/whatever/manifests/{}", Digest::of(&manifest));
    assert_eq!(
        client.get(&path).await.expect(200).body,
        manifest,
        "the same at every node"
    );
}

#[tokio::test]
async fn a_pull_goes_on_where_it_was_cut_off() {
    let image = image("app");
    let client = Client::new(Engine::with(&[("app:1", &image)]));
    for (blob, bytes) in [
        (image.diff_ids()[0].clone(), &image.layers[0]),
        (image.id(), &image.config),
    ] {
        let path = format!("/v2/app/blobs/{blob}");
        let length = bytes.len();
        for (range, start, end) in [
            ("bytes=100-".to_owned(), 100, length),
            ("bytes=0-0".to_owned(), 0, 1),
            ("bytes=50-149".to_owned(), 50, 150),
            ("bytes=-7".to_owned(), length - 7, length),
            (format!("bytes=1-{}", length + 99), 1, length),
        ] {
            let got = client
                .call("GET", &path, &[("range", &range)], b"")
                .await
                .expect(206);
            assert_eq!(got.body, &bytes[start..end], "{range}");
            let expected = format!("bytes {start}-{}/{length}", end - 1);
            assert_eq!(got.header("content-range"), expected);
            assert_eq!(got.header("content-length"), (end - start).to_string());
        }
        let beyond = format!("bytes={length}-");
        let got = client
            .call("GET", &path, &[("range", &beyond)], b"")
            .await
            .expect(416);
        assert_eq!(got.header("content-range"), format!("bytes */{length}"));
    }
}

#[tokio::test]
async fn names_come_page_by_page() {
    let (one, two) = (image("one"), image("two"));
    let client = Client::new(Engine::with(&[
        ("app:1", &one),
        ("app:2", &two),
        ("app:10", &one),
        ("quay.io/me/app:1", &one),
        ("host:5000/x:1", &one),
        ("zoo:latest", &two),
    ]));
    let all = client.get("/v2/_catalog").await.expect(200);
    assert_eq!(
        all.json()["repositories"],
        serde_json::json!(["app", "quay.io/me/app", "zoo"])
    );
    assert!(!all.headers.contains_key("link"));
    let mut path = "/v2/_catalog?n=2".to_owned();
    let page = client.get(&path).await.expect(200);
    assert_eq!(
        page.json()["repositories"],
        serde_json::json!(["app", "quay.io/me/app"])
    );
    path = page.header("link").split(['<', '>']).nth(1).unwrap().to_owned();
    let page = client.get(&path).await.expect(200);
    assert_eq!(page.json()["repositories"], serde_json::json!(["zoo"]));
    assert!(!page.headers.contains_key("link"));

    for name in ["app", "library/app"] {
        let tags = client
            .get(&format!("/v2/{name}/tags/list"))
            .await
            .expect(200)
            .json();
        assert_eq!(
            tags,
            serde_json::json!({ "name": name, "tags": ["1", "10", "2"] })
        );
    }
    let page = client.get("/v2/app/tags/list?n=1&last=1").await.expect(200);
    assert_eq!(page.json()["tags"], serde_json::json!(["10"]));
    let none = client.get("/v2/app/tags/list?n=0").await.expect(200);
    assert_eq!(none.json()["tags"], serde_json::json!([]));
    for n in ["1000000000", "99999999999999999999999"] {
        client.get(&format!("/v2/_catalog?n={n}")).await.expect(200);
    }
    client
        .get("/v2/_catalog?n=-1")
        .await
        .refused(400, "UNSUPPORTED", "oci.request");
    client
        .get("/v2/nothing/tags/list")
        .await
        .refused(404, "NAME_UNKNOWN", "oci.no-repository");
    let referrers = format!("/v2/app/referrers/{}", one.id());
    assert_eq!(
        client.get(&referrers).await.expect(200).json()["manifests"],
        serde_json::json!([])
    );
}

#[tokio::test]
async fn an_engine_that_cannot_be_read_says_so() {
    let image = image("app");
    let client = Client::new(Engine::with(&[("app:1", &image)]));
    client.engine.closed.store(true, Ordering::Relaxed);
    client.get("/v2/").await.expect(200);
    client
        .get("/v2/app/manifests/1")
        .await
        .refused(501, "UNSUPPORTED", "engine.unsupported");
    let blob = format!("/v2/app/blobs/{}", image.id());
    client
        .get(&blob)
        .await
        .refused(501, "UNSUPPORTED", "engine.unsupported");
    let blob = format!("/v2/app/blobs/{}", image.diff_ids()[0]);
    client
        .get(&blob)
        .await
        .refused(501, "UNSUPPORTED", "engine.unsupported");
}

#[tokio::test]
async fn strangers_see_nothing() {
    let image = image("app");
    let hash = bcrypt::hash("secret", 8).unwrap();
    let access = Credentials::parse(&format!("me:{hash}")).unwrap();
    let client = Client::with(Engine::with(&[("app:1", &image)]), limits(), Some(access));
    for path in ["/v2/", "/v2/_catalog", "/v2/app/manifests/1", "/", "/v2/../x"] {
        let refused = client.get(path).await;
        assert!(refused.header("www-authenticate").starts_with("Basic "));
        refused.refused(401, "UNAUTHORIZED", "oci.unauthorized");
    }
    // me:secret
    let right = ("authorization", "Basic bWU6c2VjcmV0");
    client
        .call("GET", "/v2/app/manifests/1", &[right], b"")
        .await
        .expect(200);
}
