//! An engine that keeps images as blobs: they are given out and taken in as they are.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::Request;
use serde_json::{Value, json};
use tranship_core::ids::Digest;
use tranship_oci::document::media;
use tranship_oci::port::Images;
use tranship_oci::{Answer, Registry};

use crate::common::{Client, Engine, Image, gzip, limits, manifest, noise, plain, zstd};
use crate::store::Store;

pub fn client(store: &Arc<Store>) -> Client {
    let spool = tempfile::tempdir().unwrap();
    let images: Arc<dyn Images> = Arc::clone(store) as Arc<dyn Images>;
    let registry = Registry::writing(images, None, &spool.path().join("spool"), limits()).unwrap();
    Client {
        engine: Arc::new(Engine::default()),
        registry,
        spool,
    }
}

pub fn image(name: &str) -> Image {
    Image::new(name, &[noise(1, 5000), noise(2, 300)])
}

pub fn index(children: &[(Digest, usize)]) -> String {
    let children: Vec<Value> = children
        .iter()
        .zip(["amd64", "arm64", "s390x"])
        .map(|((digest, size), architecture)| {
            json!({ "mediaType": media::MANIFEST, "digest": digest, "size": size,
                "platform": { "os": "linux", "architecture": architecture } })
        })
        .collect();
    json!({ "schemaVersion": 2, "mediaType": media::INDEX, "manifests": children }).to_string()
}

/// All that a document names, and itself.
fn blobs_of(document: &Value) -> Vec<String> {
    let mut named = document["layers"].as_array().unwrap().clone();
    named.push(document["config"].clone());
    named
        .iter()
        .map(|blob| blob["digest"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn an_image_is_given_out_as_it_is_kept() {
    for pack in [plain, gzip, zstd] {
        let store = Arc::new(Store::default());
        let (here, size) = store.image(&image("here"), pack);
        store.tag_as("app:1", &here);
        let client = client(&store);
        let bytes = store.blobs.lock().unwrap()[&here].clone();
        assert_eq!(bytes.len(), size);
        for (path, accept) in [
            ("/v2/app/manifests/1".to_owned(), media::MANIFEST),
            ("/v2/app/manifests/1".to_owned(), media::DOCKER_MANIFEST),
            (format!("/v2/app/manifests/{here}"), "*/*"),
            (format!("/v2/any/manifests/{}", here.hex()), "*/*"),
        ] {
            let got = client.call("GET", &path, &[("accept", accept)], b"").await;
            let got = got.expect(200);
            assert_eq!(got.body, bytes, "{path}");
            assert_eq!(got.header("content-type"), media::MANIFEST);
            assert_eq!(got.header("docker-content-digest"), here.as_str());
            let head = client.call("HEAD", &path, &[], b"").await.expect(200);
            assert_eq!(head.header("docker-content-digest"), here.as_str());
            assert_eq!(head.header("content-length"), size.to_string());
        }
        for blob in blobs_of(&serde_json::from_slice(&bytes).unwrap()) {
            let path = format!("/v2/app/blobs/{blob}");
            let got = client.get(&path).await.expect(200);
            assert_eq!(Digest::of(&got.body).as_str(), blob);
            let head = client.call("HEAD", &path, &[], b"").await.expect(200);
            assert_eq!(head.header("content-length"), got.body.len().to_string());
            let length = got.body.len();
            for (range, part) in [
                ("bytes=1-".to_owned(), 1..length),
                ("bytes=3-9".to_owned(), 3..10),
                (format!("bytes=-{}", length - 5), 5..length),
            ] {
                let cut = client.call("GET", &path, &[("range", &range)], b"").await;
                let cut = cut.expect(206);
                assert_eq!(cut.body, &got.body[part.clone()], "{range}");
                let told = format!("bytes {}-{}/{length}", part.start, part.end - 1);
                assert_eq!(cut.header("content-range"), told);
            }
            let beyond = format!("bytes={length}-");
            client
                .call("GET", &path, &[("range", &beyond)], b"")
                .await
                .expect(416);
        }
        let names = client.get("/v2/_catalog").await.expect(200).json();
        assert_eq!(names["repositories"], json!(["app"]));
        let tags = client.get("/v2/app/tags/list").await.expect(200).json();
        assert_eq!(tags["tags"], json!(["1"]));
    }
}

#[tokio::test]
async fn an_index_is_given_out_with_what_is_here_of_it() {
    let store = Arc::new(Store::default());
    let here = store.image(&image("here"), gzip);
    let there = store.image(&image("there"), zstd);
    let part = store.image(&Image::new("part", &[noise(7, 900)]), gzip);
    let (missing, config) = (Digest::of(&gzip(&noise(7, 900))), image("there").id());
    store.drop_blob(&missing);
    let text = index(&[here.clone(), part.clone(), (Digest::of(b"elsewhere"), 9)]);
    let (id, nobodys) = (store.put(text.clone()), store.put(&b"nobody's"[..]));
    store.tag_as("app:1", &id);
    let client = client(&store);
    for reference in ["1", id.as_str(), id.hex()] {
        let got = client.get(&format!("/v2/app/manifests/{reference}")).await;
        let got = got.expect(200);
        assert_eq!(got.body, text.as_bytes());
        assert_eq!(got.header("content-type"), media::INDEX);
    }
    for (child, _) in [&here, &part] {
        let got = client
            .get(&format!("/v2/app/manifests/{child}"))
            .await
            .expect(200);
        assert_eq!(got.header("content-type"), media::MANIFEST);
    }
    // What is elsewhere, and what is here of no image.
    for absent in [&Digest::of(b"elsewhere"), &there.0, &nobodys] {
        let path = format!("/v2/app/manifests/{absent}");
        client
            .get(&path)
            .await
            .refused(404, "MANIFEST_UNKNOWN", "oci.no-manifest");
    }
    for absent in [&missing, &config, &nobodys] {
        for method in ["GET", "HEAD"] {
            let path = format!("/v2/app/blobs/{absent}");
            client.call(method, &path, &[], b"").await.expect(404);
        }
    }
    // The digits of a manifest of an index are no image's.
    let path = format!("/v2/app/manifests/{}", here.0.hex());
    client
        .get(&path)
        .await
        .refused(404, "MANIFEST_UNKNOWN", "oci.no-manifest");
}

#[tokio::test]
async fn an_image_that_just_came_has_its_blobs() {
    let store = Arc::new(Store::default());
    let (first, _) = store.image(&image("first"), gzip);
    store.tag_as("app:1", &first);
    let client = client(&store);
    client.get(&format!("/v2/app/blobs/{first}")).await.expect(200);
    let new = Image::new("new", &[noise(5, 70)]);
    let (second, _) = store.image(&new, gzip);
    store.tag_as("app:2", &second);
    client.get("/v2/app/manifests/2").await.expect(200);
    let layer = Digest::of(&gzip(&noise(5, 70)));
    client.get(&format!("/v2/app/blobs/{layer}")).await.expect(200);
}

#[tokio::test]
async fn a_blob_that_goes_or_is_damaged_is_not_given_out_whole() {
    let store = Arc::new(Store::default());
    let layer = noise(1, 5000);
    let (id, _) = store.image(&Image::new("app", std::slice::from_ref(&layer)), plain);
    store.tag_as("app:1", &id);
    let client = client(&store);
    let digest = Digest::of(&layer);
    let path = format!("/v2/app/blobs/{digest}");
    client.call("HEAD", &path, &[], b"").await.expect(200);
    let mut damaged = layer.clone();
    damaged[17] ^= 1;
    store
        .blobs
        .lock()
        .unwrap()
        .insert(digest.clone(), damaged.clone().into());
    let request = Request::get(&path).header("range", "bytes=0-");
    let request = request.body(stream::empty::<Result<Bytes, std::io::Error>>());
    let answer = client.registry.answer(request.unwrap()).await;
    let Answer::Stream(stream) = answer.into_body() else {
        panic!("a blob is a stream");
    };
    let pieces: Vec<_> = stream.collect().await;
    assert!(pieces.last().unwrap().is_err());
    assert!(
        pieces.iter().flatten().map(Bytes::len).sum::<usize>() < 5000,
        "its end is not given out"
    );
    // A part comes as it is, and is not called whole.
    let part = client.call("GET", &path, &[("range", "bytes=10-")], b"").await;
    let part = part.expect(206);
    assert_eq!(part.header("content-range"), "bytes 10-4999/5000");
    assert_eq!(part.body, &damaged[10..]);
    // It is listed still.
    store.drop_blob(&digest);
    client
        .get(&path)
        .await
        .refused(404, "BLOB_UNKNOWN", "oci.no-blob");
    // A manifest that is damaged is none.
    let manifest = store.blobs.lock().unwrap()[&id].clone();
    let manifest = [&manifest[..], b" "].concat();
    store.blobs.lock().unwrap().insert(id, manifest.into());
    let got = client.get("/v2/app/manifests/1").await;
    assert!(!got.status.is_success(), "{got:?}");
}

#[tokio::test]
async fn what_is_pushed_has_the_digest_that_it_was_pushed_with() {
    for pack in [plain, gzip, zstd] {
        let store = Arc::new(Store::default());
        let client = client(&store);
        let image = image("app");
        let put = client.push("team/app", "1", &image, pack).await.expect(201);
        let digest = Digest::new(put.header("docker-content-digest")).unwrap();
        assert_eq!(store.tags.lock().unwrap()["team/app:1"], digest);
        let pushed = client.get("/v2/team/app/manifests/1").await.expect(200);
        assert_eq!(Digest::of(&pushed.body), digest);
        for layer in &image.layers {
            assert!(
                store
                    .blobs
                    .lock()
                    .unwrap()
                    .contains_key(&Digest::of(&pack(layer)))
            );
        }
        // Again, by its digest, and under another tag: nothing but the tag.
        let archives = store.imported.load(Ordering::Relaxed);
        for reference in [digest.as_str(), "1", "2"] {
            let path = reference;
            client.push("team/app", path, &image, pack).await.expect(201);
        }
        assert_eq!(store.imported.load(Ordering::Relaxed), archives);
        assert_eq!(store.tags.lock().unwrap()["team/app:2"], digest);
    }
}

#[tokio::test]
async fn blobs_that_are_held_are_neither_uploaded_nor_loaded() {
    let store = Arc::new(Store::default());
    let (layer, more) = (noise(1, 50_000), noise(2, 600));
    let (base, _) = store.image(&Image::new("base", std::slice::from_ref(&layer)), gzip);
    store.tag_as("base:1", &base);
    let client = client(&store);
    let larger = Image::new("larger", &[layer.clone(), more.clone()]);
    let packed = gzip(&layer);
    let held = Digest::of(&packed);
    let path = format!("/v2/new/blobs/uploads/?mount={held}&from=base");
    client.call("POST", &path, &[], b"").await.expect(201);
    client.blob("new", &larger.config).await;
    let added = client.blob("new", &gzip(&more)).await;
    let layers = [(held.clone(), packed.len()), (added, gzip(&more).len())];
    let document = manifest(&larger, &layers);
    client
        .put("new", "1", media::MANIFEST, document.as_bytes())
        .await
        .expect(201);
    assert!(store.imported.load(Ordering::Relaxed) < 20_000);
    assert_eq!(
        store.tags.lock().unwrap()["new:1"],
        Digest::of(document.as_bytes())
    );

    // One that is held, but is not what the configuration says.
    let liar = Image::new("liar", std::slice::from_ref(&more));
    client.blob("new", &liar.config).await;
    let document = manifest(&liar, &[(held, packed.len())]);
    client
        .put("new", "2", media::MANIFEST, document.as_bytes())
        .await
        .refused(400, "MANIFEST_INVALID", "oci.layer");
    assert!(!store.tags.lock().unwrap().contains_key("new:2"));
}

#[tokio::test]
async fn lies_do_not_reach_the_engine() {
    let store = Arc::new(Store::default());
    let client = client(&store);
    let image = image("app");
    let layers: Vec<(Digest, usize)> = image
        .layers
        .iter()
        .map(|layer| (Digest::of(&gzip(layer)), gzip(layer).len()))
        .collect();
    let document = manifest(&image, &layers);
    let put = || client.put("app", "1", media::MANIFEST, document.as_bytes());
    put()
        .await
        .refused(400, "MANIFEST_BLOB_UNKNOWN", "oci.blob-missing");
    client.blob("app", &image.config).await;
    client.blob("app", &gzip(&image.layers[0])).await;
    put()
        .await
        .refused(400, "MANIFEST_BLOB_UNKNOWN", "oci.blob-missing");
    let other = gzip(&noise(9, 300));
    client.blob("app", &other).await;
    let swapped = manifest(&image, &[layers[0].clone(), (Digest::of(&other), other.len())]);
    client
        .put("app", "1", media::MANIFEST, swapped.as_bytes())
        .await
        .refused(400, "MANIFEST_INVALID", "oci.layer");
    assert_eq!(store.imported.load(Ordering::Relaxed), 0);
    assert!(store.tags.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_index_is_taken_in_after_its_manifests() {
    let store = Arc::new(Store::default());
    let client = client(&store);
    let mut children = Vec::new();
    for name in ["here", "there"] {
        let image = image(name);
        client.blob("app", &image.config).await;
        let mut layers = Vec::new();
        for layer in &image.layers {
            let packed = gzip(layer);
            layers.push((client.blob("app", &packed).await, packed.len()));
        }
        let document = manifest(&image, &layers);
        children.push((Digest::of(document.as_bytes()), document));
    }
    let sizes: Vec<(Digest, usize)> = children
        .iter()
        .map(|(digest, document)| (digest.clone(), document.len()))
        .collect();
    let text = index(&sizes);
    client
        .put("app", "1", media::INDEX, text.as_bytes())
        .await
        .refused(400, "MANIFEST_BLOB_UNKNOWN", "oci.blob-missing");
    for (digest, document) in &children {
        client
            .put("app", digest.as_str(), media::MANIFEST, document.as_bytes())
            .await
            .expect(201);
    }
    client
        .put("app", "1", media::INDEX, text.as_bytes())
        .await
        .expect(201);
    let id = Digest::of(text.as_bytes());
    assert_eq!(store.tags.lock().unwrap()["app:1"], id);
    let got = client.get("/v2/app/manifests/1").await.expect(200);
    assert_eq!(got.body, text.as_bytes());

    // One that has a tag of its own keeps it.
    let path = format!("/v2/app/manifests/{}", sizes[0].0);
    client.get(&path).await.expect(200);
    client
        .put("app", "own", media::MANIFEST, children[0].1.as_bytes())
        .await
        .expect(201);
    client
        .put("app", "2", media::INDEX, text.as_bytes())
        .await
        .expect(201);
    assert_eq!(
        store.tags.lock().unwrap().remove("app:own"),
        Some(sizes[0].0.clone())
    );

    // A manifest of the index goes with it, and not by itself.
    assert!(
        store.untagged.lock().unwrap().is_empty(),
        "nothing is left beside it"
    );
    let fresh = self::client(&store);
    let child = format!("/v2/app/manifests/{}", sizes[1].0);
    // Whether it was pushed a moment ago or not.
    for client in [&client, &fresh] {
        client.get(&child).await.expect(200);
        client
            .call("DELETE", &child, &[], b"")
            .await
            .refused(405, "UNSUPPORTED", "oci.unsupported");
    }
    fresh
        .call("DELETE", &format!("/v2/app/manifests/{id}"), &[], b"")
        .await
        .expect(202);
    assert!(store.tags.lock().unwrap().is_empty());
    fresh.get(&child).await.expect(404);
}

#[tokio::test]
async fn an_attestation_comes_with_its_index() {
    let store = Arc::new(Store::default());
    let client = client(&store);
    let app = image("app");
    let pushed = client.push("app", "0", &app, gzip).await.expect(201);
    let size = client.get(pushed.header("location")).await.body.len();
    let child = (Digest::new(pushed.header("docker-content-digest")).unwrap(), size);
    let (statement, config) = (&b"{\"said\":1}"[..], &b"{\"os\":\"unknown\"}"[..]);
    let document = json!({ "schemaVersion": 2, "mediaType": media::MANIFEST,
        "config": { "mediaType": media::CONFIG, "digest": Digest::of(config), "size": config.len() },
        "layers": [{ "mediaType": media::ATTESTATION, "digest": Digest::of(statement), "size": statement.len() }] })
    .to_string();
    let digest = Digest::of(document.as_bytes());
    let put = |reference: String| {
        let (client, document) = (&client, &document);
        async move {
            client
                .put("app", &reference, media::MANIFEST, document.as_bytes())
                .await
        }
    };
    client.blob("app", config).await;
    put(digest.to_string())
        .await
        .refused(400, "MANIFEST_BLOB_UNKNOWN", "oci.blob-missing");
    client.blob("app", statement).await;
    // As docker does it, with the tag of the index.
    put("1".into()).await.expect(201);
    assert!(!store.tags.lock().unwrap().contains_key("app:1"));
    put(digest.to_string()).await.expect(201);
    let text = index(&[child, (digest.clone(), document.len())]);
    client
        .put("app", "1", media::INDEX, text.as_bytes())
        .await
        .expect(201);
    // From the engine, and not what was uploaded.
    let fresh = self::client(&store);
    let path = format!("/v2/app/manifests/{digest}");
    assert_eq!(fresh.get(&path).await.expect(200).body, document.as_bytes());
    let path = format!("/v2/app/blobs/{}", Digest::of(statement));
    assert_eq!(fresh.get(&path).await.expect(200).body, statement);

    // Plain layers have no place for it.
    let classic = Client::new(Engine::with(&[]));
    classic.blob("app", config).await;
    classic.blob("app", statement).await;
    classic
        .put("app", digest.as_str(), media::MANIFEST, document.as_bytes())
        .await
        .refused(400, "MANIFEST_INVALID", "oci.manifest");
}

#[tokio::test]
async fn a_store_that_cannot_be_read_says_so() {
    let store = Arc::new(Store::default());
    let image = image("app");
    let (id, _) = store.image(&image, gzip);
    store.tag_as("app:1", &id);
    store.closed.store(true, Ordering::Relaxed);
    let client = client(&store);
    let names = client.get("/v2/_catalog").await.expect(200).json();
    assert_eq!(names["repositories"], json!(["app"]));
    for path in [
        "/v2/app/manifests/1".to_owned(),
        format!("/v2/app/manifests/{id}"),
        format!("/v2/app/blobs/{}", image.id()),
    ] {
        client
            .get(&path)
            .await
            .refused(501, "UNSUPPORTED", "engine.unsupported");
    }
    let document = manifest(&image, &[]);
    client
        .put("app", "2", media::MANIFEST, document.as_bytes())
        .await
        .refused(501, "UNSUPPORTED", "engine.unsupported");
}
