//! Pushes to an engine that keeps blobs, at a bad moment or of bad things: what is acknowledged is there, all of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::json;
use tranship_core::ids::Digest;
use tranship_oci::document::media;

use crate::common::{Client, Image, gzip, manifest, manifest_of, noise, plain};
use crate::kept::{client, image, index};
use crate::store::Store;

/// A document that was pushed by its digest.
struct Put {
    text: String,
    digest: Digest,
    blobs: Vec<Digest>,
}

impl Put {
    fn named(&self) -> (Digest, usize) {
        (self.digest.clone(), self.text.len())
    }

    fn is_in(&self, store: &Store) -> bool {
        self.blobs
            .iter()
            .chain([&self.digest])
            .all(|blob| store.has(blob))
    }
}

async fn put(client: &Client, text: String, blobs: Vec<Digest>) -> Put {
    let digest = Digest::of(text.as_bytes());
    client
        .put("app", digest.as_str(), media::MANIFEST, text.as_bytes())
        .await
        .expect(201);
    Put { text, digest, blobs }
}

async fn child(client: &Client, image: &Image) -> Put {
    let mut layers = Vec::new();
    for layer in &image.layers {
        let packed = gzip(layer);
        layers.push((client.blob("app", &packed).await, packed.len()));
    }
    let mut blobs: Vec<Digest> = layers.iter().map(|(digest, _)| digest.clone()).collect();
    blobs.push(client.blob("app", &image.config).await);
    put(client, manifest(image, &layers), blobs).await
}

async fn attestation(client: &Client) -> Put {
    let (statement, config) = (&b"{\"said\":1}"[..], &b"{\"os\":\"unknown\"}"[..]);
    let blobs = vec![
        client.blob("app", statement).await,
        client.blob("app", config).await,
    ];
    let text = json!({ "schemaVersion": 2, "mediaType": media::MANIFEST,
        "config": { "mediaType": media::CONFIG, "digest": blobs[1], "size": config.len() },
        "layers": [{ "mediaType": media::ATTESTATION, "digest": blobs[0], "size": statement.len() }] });
    put(client, text.to_string(), blobs).await
}

async fn drop_uploads(client: &Client, blobs: &[Digest]) {
    for blob in blobs {
        let path = format!("/v2/app/blobs/{blob}");
        client.call("DELETE", &path, &[], b"").await.expect(202);
    }
}

#[tokio::test]
async fn an_index_whose_images_went_meanwhile_comes_with_their_blobs_or_not_at_all() {
    let store = Arc::new(Store::default());
    let client = client(&store);
    let children = [
        child(&client, &image("here")).await,
        child(&client, &image("there")).await,
    ];
    let said = attestation(&client).await;
    let text = index(&[children[0].named(), children[1].named(), said.named()]);
    let id = Digest::of(text.as_bytes());
    let put = || client.put("app", "1", media::INDEX, text.as_bytes());
    put().await.expect(201);
    // All of it goes; the client, which is told that it is here, sends the index only.
    store.empty();
    for document in children.iter().chain([&said]) {
        let path = format!("/v2/app/manifests/{}", document.digest);
        client.call("HEAD", &path, &[], b"").await.expect(200);
    }
    put().await.expect(201);
    assert_eq!(store.tags.lock().unwrap()["app:1"], id);
    assert!(
        children
            .iter()
            .chain([&said])
            .all(|document| document.is_in(&store))
    );
    assert!(
        store.untagged.lock().unwrap().is_empty(),
        "nothing is left beside it"
    );

    // Without what was uploaded it cannot be done.
    store.empty();
    drop_uploads(&client, &children[1].blobs[..1]).await;
    put()
        .await
        .refused(400, "MANIFEST_BLOB_UNKNOWN", "oci.blob-missing");
    assert!(!store.has(&id) && store.tags.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_manifest_that_is_here_without_its_layers_does_not_make_an_index() {
    let store = Arc::new(Store::default());
    let part = Image::new("part", &[noise(7, 900)]);
    let here = store.image(&image("here"), gzip);
    let lacking = store.image(&part, gzip);
    let other = store.put(index(&[here.clone(), lacking.clone()]));
    store.tag_as("other:1", &other);
    let layer = gzip(&part.layers[0]);
    store.drop_blob(&Digest::of(&layer));
    let client = client(&store);
    let text = index(&[lacking, here]);
    let put = || client.put("app", "1", media::INDEX, text.as_bytes());
    put()
        .await
        .refused(400, "MANIFEST_BLOB_UNKNOWN", "oci.blob-missing");
    client.blob("app", &layer).await;
    put().await.expect(201);
    assert!(store.has(&Digest::of(&layer)));
    assert!(store.untagged.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_attestation_of_an_index_that_is_held_is_taken_in() {
    let store = Arc::new(Store::default());
    let first = client(&store);
    let here = child(&first, &image("here")).await;
    let said = attestation(&first).await;
    let text = index(&[here.named(), said.named()]);
    let put = |client: Client| {
        let text = &text;
        async move {
            client
                .put("app", "1", media::INDEX, text.as_bytes())
                .await
                .expect(201);
            client
        }
    };
    // As the engine knows it that pulled it for its platform.
    store.put(text.clone());
    store.tag_as("app:1", &Digest::of(text.as_bytes()));
    assert!(!store.has(&said.digest));
    let first = put(first).await;
    assert!(said.is_in(&store));
    let path = format!("/v2/app/manifests/{}", said.digest);
    client(&store).get(&path).await.expect(200);
    // Once all of it is there nothing is loaded.
    drop_uploads(&first, &said.blobs).await;
    let archives = store.imported.load(Ordering::Relaxed);
    put(first).await;
    assert_eq!(store.imported.load(Ordering::Relaxed), archives);
    // With its document alone it is not.
    store.drop_blob(&said.blobs[0]);
    let second = client(&store);
    second
        .put("app", "1", media::INDEX, text.as_bytes())
        .await
        .refused(400, "MANIFEST_BLOB_UNKNOWN", "oci.blob-missing");
}

#[tokio::test]
async fn layers_are_of_kinds_that_containerd_unpacks() {
    let docker = "application/vnd.docker.image.rootfs.diff.tar";
    for (kind, pack, taken) in [
        (
            format!("{}+gzip", media::LAYER),
            gzip as fn(&[u8]) -> Vec<u8>,
            true,
        ),
        (format!("{docker}.gzip"), gzip, true),
        (docker.to_owned(), plain, true),
        (media::LAYER.to_owned(), plain, true),
        (media::LAYER.to_owned(), gzip, false),
        (docker.to_owned(), gzip, false),
        (format!("{}+gzip", media::LAYER), plain, true),
        (format!("{docker}.gzip"), plain, true),
        (format!("{docker}+gzip"), gzip, false),
        (format!("{}.gzip", media::LAYER), gzip, false),
        (format!("{docker}.zstd"), crate::common::zstd, false),
        (format!("{}.zstd", media::LAYER), crate::common::zstd, false),
    ] {
        let store = Arc::new(Store::default());
        let client = client(&store);
        let image = Image::new("app", &[noise(3, 700)]);
        client.blob("app", &image.config).await;
        let packed = pack(&image.layers[0]);
        let layers = [(client.blob("app", &packed).await, packed.len())];
        let text = manifest_of(&image, &layers, "").replace(media::LAYER, &kind);
        let put = client.put("app", "1", media::MANIFEST, text.as_bytes()).await;
        match taken {
            true => drop(put.expect(201)),
            false => {
                put.refused(400, "MANIFEST_INVALID", "oci.manifest");
                assert_eq!(store.imported.load(Ordering::Relaxed), 0, "{kind}");
            }
        }
    }
}

#[tokio::test]
async fn a_load_that_failed_is_not_taken_for_done() {
    let store = Arc::new(Store::default());
    let client = client(&store);
    let here = child(&client, &image("here")).await;
    let text = index(&[here.named()]);
    let other = image("other");
    store.fails.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        let got = client.push("app", "2", &other, gzip).await;
        assert_eq!(got.status, 500, "{got:?}");
        let got = client.put("app", "1", media::INDEX, text.as_bytes()).await;
        assert_eq!(got.status, 500, "{got:?}");
        let left = store.untagged.lock().unwrap().clone();
        assert!(left == std::slice::from_ref(&here.digest), "{left:?}");
    }
    store.fails.store(false, Ordering::Relaxed);
    client.push("app", "2", &other, gzip).await.expect(201);
    client
        .put("app", "1", media::INDEX, text.as_bytes())
        .await
        .expect(201);
}

#[tokio::test]
async fn an_image_that_went_before_it_got_its_tag_is_taken_in_again() {
    let store = Arc::new(Store::default());
    let client = client(&store);
    store.loses.store(true, Ordering::Relaxed);
    let put = client.push("app", "1", &image("app"), gzip).await.expect(201);
    let digest = put.header("docker-content-digest").to_owned();
    assert_eq!(store.tags.lock().unwrap()["app:1"].as_str(), digest);
    let here = child(&client, &image("here")).await;
    let text = index(&[here.named()]);
    store.loses.store(true, Ordering::Relaxed);
    client
        .put("app", "2", media::INDEX, text.as_bytes())
        .await
        .expect(201);
    let id = Digest::of(text.as_bytes());
    assert_eq!(store.tags.lock().unwrap()["app:2"], id);
}

#[tokio::test]
async fn an_index_names_only_so_much() {
    let store = Arc::new(Store::default());
    let client = client(&store);
    let here = child(&client, &image("here")).await;
    let many = vec![(here.digest.clone(), 12 << 20); 3];
    client
        .put("app", "1", media::INDEX, index(&many).as_bytes())
        .await
        .refused(413, "SIZE_INVALID", "oci.too-large");
}

#[tokio::test]
async fn a_blob_that_cannot_be_had_is_not_said_to_be_here() {
    let store = Arc::new(Store::default());
    let layer = noise(1, 5000);
    let base = Image::new("base", std::slice::from_ref(&layer));
    let (id, _) = store.image(&base, plain);
    store.tag_as("base:1", &id);
    let client = client(&store);
    let digest = Digest::of(&layer);
    let path = format!("/v2/app/blobs/{digest}");
    let mount = format!("/v2/app/blobs/uploads/?mount={digest}&from=base");
    let app = Image::new("app", &[layer.clone(), noise(2, 600)]);
    let top = plain(&app.layers[1]);
    client.blob("app", &app.config).await;
    client.blob("app", &top).await;
    let layers = [(digest.clone(), 5000), (Digest::of(&top), 600)];
    let text = manifest_of(&app, &layers, "");
    let put = || client.put("app", "1", media::MANIFEST, text.as_bytes());
    client.call("HEAD", &path, &[], b"").await.expect(200);

    // Its file is somebody else's.
    store.others.lock().unwrap().insert(digest.clone());
    client.call("HEAD", &path, &[], b"").await.expect(404);
    client.get(&path).await.expect(404);
    client.call("POST", &mount, &[], b"").await.expect(202);
    put()
        .await
        .refused(400, "MANIFEST_BLOB_UNKNOWN", "oci.blob-missing");
    store.others.lock().unwrap().clear();

    // It is cut.
    let whole = store.blobs.lock().unwrap()[&digest].clone();
    let set = |bytes: bytes::Bytes| store.blobs.lock().unwrap().insert(digest.clone(), bytes);
    store.cut.lock().unwrap().insert(digest.clone());
    for (method, path) in [("HEAD", &path), ("POST", &mount)] {
        client.call(method, path, &[], b"").await.expect(500);
    }
    put().await.expect(500);
    store.cut.lock().unwrap().clear();

    // It is damaged, under the name that the configuration has for it.
    let mut damaged = whole.to_vec();
    damaged[17] ^= 1;
    set(damaged.into());
    put().await.refused(400, "MANIFEST_INVALID", "oci.layer");
    assert_eq!(store.imported.load(Ordering::Relaxed), 0);
    set(whole);
    client.call("POST", &mount, &[], b"").await.expect(201);
    put().await.expect(201);
}

#[tokio::test]
async fn a_name_that_engines_take_for_an_id_is_refused_before_the_work() {
    let store = Arc::new(Store::default());
    let client = client(&store);
    let name = "ab".repeat(32);
    for name in [name.clone(), format!("library/{name}")] {
        client
            .push(&name, "1", &image("app"), gzip)
            .await
            .refused(400, "NAME_INVALID", "oci.name");
    }
    assert_eq!(store.imported.load(Ordering::Relaxed), 0);
    let inner = format!("me/{name}");
    client.push(&inner, "1", &image("app"), gzip).await.expect(201);
}
