//! What is asked for, and what comes of it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Request, Response, header};
use tranship_core::fault::Explain as _;
use tranship_core::ids::Digest;
use tranship_oci::client::{
    BodyStream, Client, ClientError, Login, Logins, Patience, Payload, Store, Transport, Wanted,
};
use tranship_oci::document::media;
use tranship_oci::name::{Reference, Repository, Tag};

use crate::common::{Client as Pusher, Engine, Image, gzip, limits, noise, plain, zstd};
use crate::server::{
    Me, Node, Server, answer, broken, is_layer, me, patience, range_of, reading, spec, streamed, writing,
};

fn three() -> Image {
    Image::new("app", &[noise(1, 700_000), noise(2, 900_000), noise(3, 50_000)])
}

#[tokio::test]
async fn only_layers_that_are_missing_are_asked_for() {
    let image = three();
    for held in 0..=3 {
        let node = Node::new(Server::new(reading(&image)));
        if held > 0 {
            let base = Image::new("base", &image_layers(&image, held));
            node.engine.images.lock().unwrap().insert(base.id(), base);
        }
        let (layers, bytes) = node.take(&image, held).await.unwrap();
        assert_eq!(layers, 3 - held);
        let wanted: usize = image.layers[held..].iter().map(Bytes::len).sum();
        assert_eq!(bytes, wanted as u64);
        for (index, digest) in image.diff_ids().iter().enumerate() {
            let asked = node.server.count(&Method::GET, &format!("/blobs/{digest}"));
            assert_eq!(asked, usize::from(index >= held), "layer {index}, {held} held");
        }
    }
}

fn image_layers(image: &Image, count: usize) -> Vec<Vec<u8>> {
    image.layers[..count].iter().map(|layer| layer.to_vec()).collect()
}

#[tokio::test]
async fn a_layer_that_is_there_twice_comes_once() {
    let twice = noise(5, 10_000);
    let image = Image::new("twice", &[twice.clone(), noise(6, 1000), twice]);
    let node = Node::new(Server::new(reading(&image)));
    assert_eq!(node.take(&image, 0).await.unwrap(), (2, 11_000));
}

#[tokio::test]
async fn packed_layers_are_unpacked_and_the_index_is_followed() {
    for pack in [gzip, zstd, plain] {
        let image = three();
        let other = Pusher::new(Engine::with(&[]));
        let digest = other.push("app", "other", &image, pack).await.expect(201);
        let digest = digest.header("docker-content-digest").to_owned();
        let manifest = other.get(&format!("/v2/app/manifests/{digest}")).await.body;
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": media::INDEX,
            "manifests": [
                { "mediaType": media::MANIFEST, "digest": Digest::of(b"arm"), "size": 3, "platform": { "os": "linux", "architecture": "arm64" } },
                { "mediaType": media::MANIFEST, "digest": digest, "size": manifest.len(), "platform": { "os": "linux", "architecture": "amd64" } },
            ],
        })
        .to_string();
        let server = Server::lying(other.registry, move |seen, _| {
            let tagged = seen.url.ends_with("/manifests/1");
            tagged.then(|| answer(200, &[("content-type", media::INDEX)], index.clone()))
        });
        let node = Node::new(server);
        let (layers, _) = node.take(&image, 0).await.unwrap();
        assert_eq!(layers, 3);
    }
}

#[tokio::test]
async fn a_layer_that_breaks_off_goes_on_where_it_stands() {
    // The spool takes in pieces of a mebibyte.
    let image = Image::new("app", &[noise(1, 5 << 20)]);
    let layer = image.layers[0].clone();
    let breaks = AtomicUsize::new(0);
    let server = {
        let (layer, image) = (layer.clone(), image.clone());
        Server::lying(reading(&image.clone()), move |seen, _| {
            if !is_layer(seen, &image) || breaks.fetch_add(1, Ordering::Relaxed) > 3 {
                return None;
            }
            // A mebibyte and a bit comes each time.
            let at = usize::try_from(range_of(seen).unwrap_or(0)).unwrap();
            let part = layer.slice(at..(at + (1 << 20) + 1000).min(layer.len()));
            let range = format!("bytes {at}-{}/{}", layer.len() - 1, layer.len());
            Some(match at {
                0 => streamed(200, &[], broken(part)),
                _ => streamed(206, &[("content-range", &range)], broken(part)),
            })
        })
    };
    let node = Node::new(server);
    let (_, bytes) = node.take(&image, 0).await.unwrap();
    assert_eq!(bytes, 5 << 20, "nothing that was kept came twice");
    let starts: Vec<Option<u64>> = {
        let seen = node.server.seen.lock().unwrap();
        seen.iter()
            .filter(|seen| is_layer(seen, &image))
            .map(range_of)
            .collect()
    };
    assert_eq!(starts.len(), 5);
    assert!(starts.is_sorted() && starts[0].is_none(), "{starts:?}");
}

/// Where requests for layers began, and what came of it: the first answer breaks off after two of three mebibytes of `first`, the next one
/// ends with what `rest` makes of the right bytes, and so on.
async fn in_parts(first: u8, rest: u8, tries: usize) -> (Vec<Option<u64>>, Result<u64, ClientError>, usize) {
    let image = Image::new("app", &[noise(1, 3 << 20)]);
    let layer = image.layers[0].clone();
    let server = {
        let image = image.clone();
        let calls = AtomicUsize::new(0);
        Server::lying(reading(&image.clone()), move |seen, _| {
            if !is_layer(seen, &image) || calls.fetch_add(1, Ordering::Relaxed) >= tries {
                return None;
            }
            let turned = |by: u8, part: &[u8]| Bytes::from_iter(part.iter().map(|byte| byte ^ by));
            Some(match range_of(seen) {
                None => streamed(200, &[], broken(turned(first, &layer[..2 << 20]))),
                Some(at) => {
                    assert_eq!(at, 2 << 20);
                    let range = [("content-range", "bytes 2097152-3145727/3145728")];
                    answer(206, &range, turned(rest, &layer[2 << 20..]))
                }
            })
        })
    };
    let node = Node::new(server);
    let took = node.take(&image, 0).await.map(|(_, bytes)| bytes);
    let seen = node.server.seen.lock().unwrap();
    let starts = seen.iter().filter(|seen| is_layer(seen, &image)).map(range_of);
    (starts.collect(), took, node.spooled())
}

#[tokio::test]
async fn a_layer_that_was_put_together_wrongly_comes_once_more_and_no_more() {
    let at = Some(2 << 20);
    let (starts, took, _) = in_parts(0, 0, 2).await;
    assert_eq!((starts, took.unwrap()), (vec![None, at], 3 << 20));
    // What came before was not of this layer; or what came after it.
    for (first, rest) in [(1, 0), (0, 1)] {
        let (starts, took, spooled) = in_parts(first, rest, 2).await;
        assert_eq!((starts, took.unwrap()), (vec![None, at, None], 6 << 20));
        assert_eq!(spooled, 0);
    }
    // It never becomes right.
    let (starts, took, spooled) = in_parts(0, 1, usize::MAX).await;
    let error = took.unwrap_err();
    assert!(matches!(error, ClientError::Digest { .. }), "{error}");
    // Each time in one piece.
    assert_eq!(starts, [None, at, None, None, None, None]);
    assert_eq!(spooled, 0);
}

#[tokio::test]
async fn a_layer_that_is_damaged_in_parts_is_given_up_over_any_number_of_connections() {
    let image = Image::new("app", &[noise(1, 3 << 20)]);
    let (layer, dead) = (image.layers[0].clone(), AtomicBool::new(false));
    let server = {
        let image = image.clone();
        Server::lying(reading(&image.clone()), move |seen, _| {
            if !is_layer(seen, &image) {
                return None;
            }
            let range = [("content-range", "bytes 2097152-3145727/3145728")];
            // A connection that broke is of no use to the next request.
            let was_dead = dead.swap(false, Ordering::Relaxed);
            Some(match range_of(seen) {
                None if was_dead => streamed(200, &[], broken(Bytes::new())),
                Some(_) if was_dead => streamed(206, &range, broken(Bytes::new())),
                None => {
                    dead.store(true, Ordering::Relaxed);
                    streamed(200, &[], broken(layer.slice(..2 << 20)))
                }
                Some(_) => answer(206, &range, Bytes::from_iter(layer[2 << 20..].iter().map(|b| !b))),
            })
        })
    };
    let node = Node::new(server);
    let once = Patience {
        tries: 1,
        ..patience()
    };
    let mut ends = Vec::new();
    for _ in 0..9 {
        let address = "reg.example".parse().unwrap();
        let client = Client::new(address, Arc::clone(&node.server) as _, Arc::new(Me), once);
        let (repository, spec) = (Repository::new("app").unwrap(), spec(&image));
        let wanted = Wanted {
            image: &spec,
            held: 0,
        };
        let reference = Reference::Tag(Tag::new("1").unwrap());
        let came = client.fetch(&repository, &reference, wanted, &node.store).await;
        ends.push(came.unwrap_err().code());
        if ends.last() != Some(&"registry.lost") {
            break;
        }
    }
    assert_eq!(ends.len(), 5, "{ends:?}");
    assert_eq!(ends.pop(), Some("registry.digest"));
    let seen = node.server.seen.lock().unwrap();
    assert_eq!(seen.iter().filter(|seen| range_of(seen).is_some()).count(), 2);
    drop(seen);
    assert_eq!(node.spooled(), 0);
}

#[tokio::test]
async fn what_came_before_a_lost_connection_serves_the_next_one() {
    let image = Image::new("app", &[noise(1, 3 << 20), noise(2, 100_000)]);
    let server = {
        let image = image.clone();
        let calls = AtomicUsize::new(0);
        Server::lying(reading(&image.clone()), move |seen, _| {
            let large = seen.url.ends_with(&format!("/blobs/{}", image.diff_ids()[0]));
            if !large {
                return None;
            }
            // Gone for good after two mebibytes, as far as this call can tell.
            Some(match calls.fetch_add(1, Ordering::Relaxed) {
                0 => streamed(200, &[], broken(image.layers[0].slice(..2 << 20))),
                1..=4 => streamed(
                    206,
                    &[("content-range", "bytes 2097152-3145727/3145728")],
                    broken(Bytes::new()),
                ),
                _ => return None,
            })
        })
    };
    let node = Node::new(server);
    let error = node.fetch(&image, 0).await.unwrap_err();
    assert!(matches!(error, ClientError::Lost { .. }), "{error}");
    let (layers, bytes) = node.take(&image, 0).await.unwrap();
    assert_eq!(layers, 2);
    assert!(bytes <= (1 << 20) + 100_000, "{bytes}");
}

#[tokio::test]
async fn a_registry_without_ranges_sends_all_of_it_again() {
    let image = Image::new("app", &[noise(1, 3 << 20)]);
    let server = {
        let image = image.clone();
        let calls = AtomicUsize::new(0);
        Server::lying(reading(&image.clone()), move |seen, _| {
            is_layer(seen, &image).then(|| match calls.fetch_add(1, Ordering::Relaxed) {
                0 => streamed(200, &[], broken(image.layers[0].slice(..2 << 20))),
                _ => answer(200, &[], image.layers[0].clone()),
            })
        })
    };
    Node::new(server).take(&image, 0).await.unwrap();
}

#[tokio::test]
async fn name_and_password_are_shown_to_the_registry_alone() {
    let image = three();
    let spool = tempfile::tempdir().unwrap();
    let engine = Engine::with(&[("app:1", &image)]);
    let registry = writing(engine, Some(me()), &spool.path().join("s"));
    let server = {
        let image = image.clone();
        Server::lying(registry, move |seen, _| {
            if seen.url.starts_with("https://store.example/") {
                assert!(seen.header(header::AUTHORIZATION.as_str()).is_none());
                let found = image
                    .layers
                    .iter()
                    .find(|l| seen.url.ends_with(Digest::of(l).hex()));
                return Some(answer(200, &[], found.unwrap().clone()));
            }
            let authorized = seen.header(header::AUTHORIZATION.as_str()).is_some();
            (authorized && is_layer(seen, &image)).then(|| {
                let hex = seen.url.rsplit(':').next().unwrap();
                let to = format!("https://store.example/{hex}");
                answer(307, &[("location", &to)], "")
            })
        })
    };
    let node = Node::new(server);
    node.take(&image, 0).await.unwrap();
}

#[tokio::test]
async fn a_token_is_got_where_the_registry_says() {
    let image = three();
    let server = Server::lying(reading(&image), |seen, _| {
        if let Some(query) = seen.url.strip_prefix("https://auth.example/token?") {
            assert!(query.contains("service=reg") && query.contains("scope=repository%3Aapp%3Apull"));
            assert!(seen.header("authorization").unwrap().starts_with("Basic "));
            return Some(answer(200, &[], r#"{"token":"t0"}"#));
        }
        let challenge =
            r#"Bearer realm="https://auth.example/token",service="reg",scope="repository:app:pull""#;
        let known = seen.header("authorization") == Some("Bearer t0");
        (!known).then(|| answer(401, &[("www-authenticate", challenge)], ""))
    });
    let node = Node::new(server);
    node.take(&image, 0).await.unwrap();
    // One token for everything that follows.
    assert_eq!(node.server.count(&Method::GET, "auth.example"), 1);
}

/// Somebody with an identity token.
struct Known;

#[async_trait]
impl Logins for Known {
    async fn login(&self, _host: &str) -> Result<Option<Login>, ClientError> {
        Ok(Some(Login::Identity("long lived".into())))
    }
}

/// A registry with a service for tokens at this address, which notes what it is sent.
struct Tokens {
    server: Server,
    realm: &'static str,
    asked: Mutex<Vec<String>>,
}

#[async_trait]
impl Transport for Tokens {
    async fn send(&self, request: Request<Payload>) -> std::io::Result<Response<BodyStream>> {
        if *request.uri() == self.realm {
            assert_eq!(request.method(), Method::POST);
            assert!(request.headers().get(header::AUTHORIZATION).is_none());
            let kind = &request.headers()[header::CONTENT_TYPE];
            assert_eq!(kind, "application/x-www-form-urlencoded");
            let Payload::Full(form) = request.into_body() else {
                panic!("a form is short");
            };
            let form = String::from_utf8(form.to_vec()).unwrap();
            self.asked.lock().unwrap().push(form);
            return Ok(answer(
                200,
                &[],
                r#"{"access_token":"t0","refresh_token":"other"}"#,
            ));
        }
        let shown = request.headers().get(header::AUTHORIZATION);
        if shown.is_some_and(|shown| shown == "Bearer t0") {
            return self.server.send(request).await;
        }
        assert!(shown.is_none());
        let challenge = format!(
            r#"Bearer realm="{}",service="reg",scope="repository:app:pull""#,
            self.realm
        );
        Ok(answer(401, &[("www-authenticate", &challenge)], ""))
    }
}

#[tokio::test]
async fn an_identity_token_gets_a_token_and_goes_nowhere_else() {
    let image = three();
    let fetch = async |realm: &'static str| {
        let tokens = Arc::new(Tokens {
            server: Server::new(reading(&image)),
            realm,
            asked: Mutex::default(),
        });
        let address = "reg.example".parse().unwrap();
        let client = Client::new(address, Arc::clone(&tokens) as _, Arc::new(Known), patience());
        let (repository, spec) = (Repository::new("app").unwrap(), spec(&image));
        let reference = Reference::Tag(Tag::new("1").unwrap());
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&directory.path().join("s"), limits()).unwrap());
        let wanted = Wanted {
            image: &spec,
            held: 0,
        };
        let fetched = client.fetch(&repository, &reference, wanted, &store).await;
        let asked = tokens.asked.lock().unwrap().clone();
        (fetched.map(|fetched| fetched.layers), asked)
    };
    let (layers, asked) = fetch("https://auth.example/token").await;
    assert_eq!(layers.unwrap(), 3);
    let form = "service=reg&grant_type=refresh_token&refresh_token=long+lived&client_id=tranship&scope=repository%3Aapp%3Apull";
    assert_eq!(asked, [form]);
    let (refused, asked) = fetch("http://auth.example/token").await;
    let error = refused.unwrap_err();
    assert!(matches!(error, ClientError::Insecure { .. }), "{error}");
    assert!(!format!("{error} {error:?}").contains("lived") && asked.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_nobody_goes_on_with_is_kept_for_a_while_only() {
    let image = Image::new("app", &[noise(1, 3 << 20)]);
    let server = {
        let image = image.clone();
        Server::lying(reading(&image.clone()), move |seen, _| {
            let part = || broken(image.layers[0].slice(..2 << 20));
            is_layer(seen, &image).then(|| match range_of(seen) {
                None => streamed(200, &[], part()),
                Some(_) => answer(500, &[], ""),
            })
        })
    };
    let node = Node::new(server);
    node.fetch(&image, 0).await.unwrap_err();
    assert_eq!(node.spooled(), 1);
    for minute in 1..=20 {
        tokio::time::advance(std::time::Duration::from_secs(60)).await;
        node.store.sweep();
        assert_eq!(node.spooled(), usize::from(minute < 15), "minute {minute}");
    }
}

#[tokio::test]
async fn an_image_that_was_not_taken_in_does_not_come_again() {
    let image = three();
    let node = Node::new(Server::new(reading(&image)));
    let fetched = node.fetch(&image, 0).await.unwrap();
    assert_eq!((fetched.layers, fetched.bytes), (3, 1_650_000));
    // The engine fails.
    drop(fetched);
    assert_eq!(node.spooled(), 3);
    let (layers, bytes) = node.take(&image, 0).await.unwrap();
    assert_eq!((layers, bytes), (3, 0));
    for digest in image.diff_ids() {
        assert_eq!(node.server.count(&Method::GET, &format!("/blobs/{digest}")), 1);
    }
    assert_eq!(node.spooled(), 0);
}
