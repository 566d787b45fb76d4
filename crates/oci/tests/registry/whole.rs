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
