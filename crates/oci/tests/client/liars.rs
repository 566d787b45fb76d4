//! Registries that lie, break or do not end: a typed error, bounded memory and disk, and not a byte for the engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Method, Request, Response};
use serde_json::json;
use tranship_core::ids::Digest;
use tranship_oci::client::{BadCertificates, BodyStream, Client, Payload, Transport};
use tranship_oci::document::media;

use crate::common::{Client as Pusher, Engine, Image, gzip, limits, noise};
use crate::server::{
    Me, Node, Seen, Server, answer, broken, is_layer, is_manifest, me, patience, reading, streamed, writing,
};

fn image() -> Image {
    Image::new("app", &[noise(1, 300_000), noise(2, 200_000)])
}

/// A server that answers requests for layers so.
fn layers(lie: impl Fn(&Seen, &Image) -> Response<BodyStream> + Send + Sync + 'static) -> Node {
    let image = image();
    Node::new(Server::lying(reading(&image), move |seen, _| {
        is_layer(seen, &image).then(|| lie(seen, &image))
    }))
}

/// A server that answers requests for manifests so.
fn manifests(lie: impl Fn(&Seen) -> Response<BodyStream> + Send + Sync + 'static) -> Node {
    Node::new(Server::lying(reading(&image()), move |seen, _| {
        is_manifest(seen).then(|| lie(seen))
    }))
}

fn asked(seen: &Seen, image: &Image) -> Bytes {
    let fits = |layer: &&Bytes| seen.url.ends_with(Digest::of(layer).hex());
    image.layers.iter().find(fits).unwrap().clone()
}

#[tokio::test]
async fn bytes_with_another_digest() {
    let node = layers(|seen, image| {
        let mut bytes = asked(seen, image).to_vec();
        bytes[1000] ^= 1;
        answer(200, &[], bytes)
    });
    node.refuses(&image(), "registry.digest").await;
    // What came in one piece does not become another one by being asked for again.
    let digests = image().diff_ids();
    let asked = |digest: &Digest| node.server.count(&Method::GET, &format!("/blobs/{digest}"));
    assert!(digests.iter().all(|digest| asked(digest) <= 1));
}

#[tokio::test]
async fn bodies_of_another_length() {
    let cut = layers(|seen, image| answer(200, &[], asked(seen, image).slice(..1000)));
    cut.refuses(&image(), "registry.length").await;
    let long = layers(|seen, image| {
        let mut bytes = asked(seen, image).to_vec();
        bytes.push(0);
        answer(200, &[], bytes)
    });
    long.refuses(&image(), "registry.length").await;
    let announced = layers(|seen, image| answer(200, &[("content-length", "7")], asked(seen, image)));
    announced.refuses(&image(), "registry.length").await;
}

#[tokio::test]
async fn a_body_that_always_breaks_off() {
    let node = layers(|seen, image| streamed(200, &[], broken(asked(seen, image).slice(..1000))));
    node.refuses(&image(), "registry.lost").await;
    let tries = node.server.count(&Method::GET, "/blobs/") - 1;
    assert!(tries <= 8, "{tries} requests for two layers");
}

#[tokio::test]
async fn a_body_without_an_end() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let endless = move || -> tranship_oci::client::BodyStream {
        let counted = Arc::clone(&counted);
        Box::pin(stream::repeat_with(move || {
            counted.fetch_add(100_000, Ordering::Relaxed);
            Ok(Bytes::from_static(&[7; 100_000]))
        }))
    };
    let blobs = endless.clone();
    let node = layers(move |_, _| streamed(200, &[], blobs()));
    node.refuses(&image(), "registry.length").await;
    assert!(
        sent.swap(0, Ordering::Relaxed) < 2_000_000,
        "only a little more than the layer is read"
    );
    let node = manifests(move |_| streamed(200, &[("content-type", media::MANIFEST)], endless()));
    node.refuses(&image(), "registry.too-large").await;
    assert!(sent.load(Ordering::Relaxed) < 5_000_000);
    assert_eq!(node.spooled(), 0);
}

#[tokio::test]
async fn a_manifest_of_a_hundred_mebibytes_is_not_even_read() {
    let read = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&read);
    let node = manifests(move |_| {
        let counted = Arc::clone(&counted);
        let body = stream::repeat_with(move || {
            counted.fetch_add(1 << 20, Ordering::Relaxed);
            Ok(Bytes::from_static(&[b' '; 1 << 20]))
        });
        let headers = [("content-type", media::MANIFEST), ("content-length", "104857600")];
        streamed(200, &headers, Box::pin(body.take(100)))
    });
    node.refuses(&image(), "registry.too-large").await;
    assert_eq!(read.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn manifests_of_the_wrong_kind() {
    let honest = {
        let pusher = Pusher::new(Engine::with(&[("app:1", &image())]));
        pusher.get("/v2/app/manifests/1").await.body
    };
    for kind in ["text/html", media::INDEX, media::DOCKER_MANIFEST] {
        let honest = honest.clone();
        let node = manifests(move |_| answer(200, &[("content-type", kind)], honest.clone()));
        node.refuses(&image(), "oci.manifest").await;
    }
    for text in ["", "{}", "[[[[", "null", r#"{"schemaVersion":1}"#] {
        let node = manifests(move |_| answer(200, &[("content-type", media::MANIFEST)], text));
        node.refuses(&image(), "oci.manifest").await;
    }
    // The digest that it announces is not that of what it sends.
    let headers = [
        ("content-type", media::MANIFEST),
        (
            "docker-content-digest",
            "sha256:0000000000000000000000000000000000000000000000000000000000000000",
        ),
    ];
    let node = manifests(move |_| answer(200, &headers, honest.clone()));
    node.refuses(&image(), "registry.digest").await;
}

#[tokio::test]
async fn an_index_that_leads_in_circles() {
    let entry = |kind: &str, digest: &Digest, size: usize| {
        json!({
            "schemaVersion": 2, "mediaType": media::INDEX,
            "manifests": [{ "mediaType": kind, "digest": digest, "size": size }],
        })
        .to_string()
    };
    // An index of indexes is not taken in at all.
    let nested = entry(media::INDEX, &Digest::of(b"x"), 1);
    let node = manifests(move |_| answer(200, &[("content-type", media::INDEX)], nested.clone()));
    node.refuses(&image(), "oci.manifest").await;
    assert_eq!(node.server.count(&Method::GET, "/manifests/"), 1);
    // One that calls an index a manifest.
    let inner = entry(media::MANIFEST, &Digest::of(b"x"), 1);
    let outer = entry(media::MANIFEST, &Digest::of(inner.as_bytes()), inner.len());
    let node = manifests(move |seen| {
        let inside = seen.url.contains("sha256:");
        let text = if inside { inner.clone() } else { outer.clone() };
        answer(200, &[("content-type", media::INDEX)], text)
    });
    node.refuses(&image(), "registry.answer").await;
    // One that names itself: no document holds its own digest, so it is found out.
    let itself = entry(media::MANIFEST, &Digest::of(b"itself"), 100);
    let node = manifests(move |_| answer(200, &[("content-type", media::INDEX)], itself.clone()));
    node.refuses(&image(), "registry.digest").await;
    assert_eq!(node.server.count(&Method::GET, "/manifests/"), 2);
}

#[tokio::test]
async fn a_good_image_that_is_another_one() {
    let other = Image::new("app", &[noise(9, 100)]);
    let node = Node::new(Server::new(reading(&other)));
    node.refuses(&image(), "registry.other-image").await;
    assert_eq!(node.server.count(&Method::GET, "/blobs/"), 0);
    assert_eq!(node.spooled(), 0);
}

#[tokio::test]
async fn a_configuration_that_is_another_one() {
    let image = image();
    let id = image.id();
    let node = Node::new(Server::lying(reading(&image), {
        let id = id.clone();
        move |seen, _| {
            let config = seen.url.ends_with(&format!("/blobs/{id}"));
            config.then(|| answer(200, &[], vec![b' '; 206]))
        }
    }));
    let error = node.fetch(&image, 0).await.unwrap_err();
    let code = tranship_core::fault::Explain::code(&error);
    assert!(["registry.length", "registry.digest"].contains(&code), "{error}");
    assert_eq!(node.spooled(), 0);
}

#[tokio::test]
async fn layers_that_unpack_to_something_else_or_without_end() {
    // A gibibyte of zeros in a mebibyte would be packed a thousand times.
    let bomb = vec![0; 3 << 20];
    for (packed, layer, code) in [
        (
            gzip(&noise(4, 300_000)),
            Image::new("app", &[noise(1, 300_000)]),
            "oci.layer",
        ),
        (
            gzip(&bomb),
            Image::new("app", std::slice::from_ref(&bomb)),
            "oci.layer-bomb",
        ),
        (
            vec![0x1f, 0x8b, 8, 0, 1, 2, 3],
            Image::new("app", &[noise(1, 300_000)]),
            "oci.layer",
        ),
    ] {
        let digest = Digest::of(&packed);
        let manifest = crate::common::manifest(&layer, &[(digest.clone(), packed.len())]);
        let packed = Bytes::from(packed);
        let node = Node::new(Server::lying(reading(&layer), move |seen, _| {
            if is_manifest(seen) {
                return Some(answer(
                    200,
                    &[("content-type", media::MANIFEST)],
                    manifest.clone(),
                ));
            }
            let blob = seen.url.ends_with(digest.as_str());
            blob.then(|| answer(200, &[], packed.clone()))
        }));
        node.refuses(&layer, code).await;
    }
}

#[tokio::test]
async fn redirects_without_an_end_or_a_guard() {
    let node = manifests(|_| answer(302, &[("location", "/v2/app/manifests/1")], ""));
    node.refuses(&image(), "registry.redirects").await;
    assert!(node.server.seen.lock().unwrap().len() <= 6);
    for to in [
        "http://reg.example/v2/app/manifests/1",
        "http://else/",
        "file:///etc/passwd",
    ] {
        let node = manifests(move |_| answer(307, &[("location", to)], ""));
        let error = node.fetch(&image(), 0).await.unwrap_err();
        let code = tranship_core::fault::Explain::code(&error);
        assert!(
            ["registry.insecure", "registry.answer"].contains(&code),
            "{to}: {error}"
        );
        assert_eq!(node.server.seen.lock().unwrap().len(), 1, "{to}");
    }
    let node = manifests(|_| answer(302, &[], ""));
    node.refuses(&image(), "registry.answer").await;
}

#[tokio::test]
async fn a_registry_that_is_never_content_with_the_password() {
    for challenge in [
        "Basic realm=\"x\"",
        "Bearer realm=\"https://reg.example/token\"",
        "Negotiate",
    ] {
        let number = AtomicUsize::new(0);
        let node = Node::new(Server::lying(reading(&image()), move |seen, _| {
            if seen.url.contains("/token") {
                let token = format!(r#"{{"token":"t{}"}}"#, number.fetch_add(1, Ordering::Relaxed));
                return Some(answer(200, &[], token));
            }
            Some(answer(401, &[("www-authenticate", challenge)], ""))
        }));
        node.refuses(&image(), "registry.denied").await;
        assert!(node.server.seen.lock().unwrap().len() <= 5, "{challenge}");
    }
    let node = manifests(|_| answer(403, &[], ""));
    node.refuses(&image(), "registry.denied").await;
    // Where tokens come from must be guarded as well.
    let node = manifests(|_| {
        answer(
            401,
            &[("www-authenticate", "Bearer realm=\"http://else/token\"")],
            "",
        )
    });
    node.refuses(&image(), "registry.insecure").await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_registry_is_waited_for_and_not_for_ever() {
    let busy = |times: usize, after: &'static str| {
        let image = image();
        Node::new(Server::lying(reading(&image), move |_, number| {
            (number < times).then(|| answer(429, &[("retry-after", after)], ""))
        }))
    };
    let node = busy(2, "7");
    let begun = tokio::time::Instant::now();
    node.take(&image(), 0).await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 14);
    for (times, after) in [
        (1000, "7"),
        (1000, "18446744073709551615"),
        (1, "3600"),
        (1000, "soon"),
        (1000, "0"),
    ] {
        let node = busy(times, after);
        let begun = tokio::time::Instant::now();
        node.refuses(&image(), "registry.busy").await;
        assert!(begun.elapsed() <= Duration::from_secs(21), "{after}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_falls_silent() {
    let silent = |body: bool| {
        Node::new(Server::lying(reading(&image()), move |seen, _| {
            let silence: tranship_oci::client::BodyStream = Box::pin(stream::pending());
            (body && is_layer(seen, &image()) || !body && is_manifest(seen))
                .then(|| streamed(200, &[("content-type", media::MANIFEST)], silence))
        }))
    };
    silent(false).refuses(&image(), "registry.lost").await;
    silent(true).refuses(&image(), "registry.lost").await;
}

/// Cannot even begin.
#[derive(Default)]
struct Unready(AtomicUsize);

#[async_trait::async_trait]
impl Transport for Unready {
    async fn send(&self, _request: Request<Payload>) -> std::io::Result<Response<BodyStream>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Err(std::io::Error::other(BadCertificates("no key".into())))
    }
}

#[tokio::test]
async fn certificates_of_no_use_are_no_lost_connection() {
    let node = Node::new(Server::new(reading(&image())));
    let transport = Arc::new(Unready::default());
    let address = "reg.example".parse().unwrap();
    let client = Client::new(address, Arc::clone(&transport) as _, Arc::new(Me), patience());
    let node = Node { client, ..node };
    node.refuses(&image(), "registry.certificates").await;
    assert_eq!(transport.0.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_full_disk_is_said_before_a_byte_comes() {
    let full = tranship_oci::Limits {
        free: u64::MAX / 2,
        ..limits()
    };
    let node = Node::with(Server::new(reading(&image())), full);
    node.refuses(&image(), "oci.no-space").await;
    let digest = image().diff_ids()[0].clone();
    assert_eq!(node.server.count(&Method::GET, digest.as_str()), 0);
}

#[tokio::test]
async fn refusals_are_told_with_what_the_registry_says() {
    let node = manifests(|_| {
        answer(
            400,
            &[],
            r#"{"errors":[{"code":"X","message":"no\u001b[31m such luck"}]}"#,
        )
    });
    let error = node.fetch(&image(), 0).await.unwrap_err();
    assert!(error.to_string().ends_with("400: no[31m such luck"), "{error}");
    let spool = tempfile::tempdir().unwrap();
    let registry = writing(Engine::with(&[]), Some(me()), &spool.path().join("s"));
    Node::new(Server::new(registry))
        .refuses(&image(), "registry.not-found")
        .await;
}
