//! Images to a registry: what is sent, what is not, and what is left there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use http::{Method, Request, Response};
use tranship_core::fault::Explain as _;
use tranship_oci::client::{BodyStream, Client, ClientError, Payload, Pushed, Transport};
use tranship_oci::name::Repository;
use tranship_oci::port::Images;

use crate::common::{Engine, Image, noise};
use crate::server::{Me, Node, Server, answer, me, patience, spec, writing};

async fn push(
    node: &Node,
    engine: &Arc<Engine>,
    image: &Image,
    near: &[&str],
) -> Result<Pushed, ClientError> {
    let near: Vec<Repository> = near.iter().map(|name| Repository::new(name).unwrap()).collect();
    let images: Arc<dyn Images> = Arc::clone(engine) as _;
    let (repository, sent) = (Repository::new("tranship").unwrap(), Arc::new(AtomicU64::new(0)));
    let pushed = node
        .client
        .push(&repository, &near, &images, &spec(image), &sent)
        .await;
    if let Ok(pushed) = &pushed {
        assert_eq!(pushed.bytes, sent.load(Ordering::Relaxed));
    }
    pushed
}

#[tokio::test]
async fn only_what_the_registry_lacks_is_sent_and_no_tag_is_left() {
    let base = Image::new("base", &[noise(1, 400_000), noise(2, 300_000)]);
    let top = Image::new(
        "top",
        &[
            noise(1, 400_000),
            noise(2, 300_000),
            noise(3, 200_000),
            noise(3, 200_000),
        ],
    );
    let source = Engine::with(&[("base:1", &base), ("top:1", &top)]);
    let (there, spool) = (Engine::with(&[]), tempfile::tempdir().unwrap());
    let registry = writing(Arc::clone(&there), Some(me()), &spool.path().join("s"));
    let node = Node::new(Server::new(registry));
    let first = push(&node, &source, &base, &[]).await.unwrap();
    assert_eq!(first.layers, 2);
    assert_eq!(first.bytes, 700_000 + base.config.len() as u64);
    let second = push(&node, &source, &top, &[]).await.unwrap();
    assert_eq!(second.layers, 1, "two are there, and the third is the fourth");
    assert_eq!(second.bytes, 200_000 + top.config.len() as u64);
    let third = push(&node, &source, &top, &[]).await.unwrap();
    assert_eq!((third.layers, third.bytes), (0, 0));
    assert_eq!(third.manifest, second.manifest);
    assert!(there.tags.lock().unwrap().is_empty());
    let found = there.find(top.id().as_str()).await.unwrap().unwrap();
    assert_eq!(found.layers, top.diff_ids());
    // And it is known by what it was pushed as.
    let repository = Repository::new("tranship").unwrap();
    let has = |image: Image| {
        let (client, repository, manifest) = (&node.client, &repository, &third.manifest);
        async move { client.has(repository, manifest, &spec(&image)).await.unwrap() }
    };
    assert!(has(top.clone()).await);
    assert!(!has(base).await);
}

#[tokio::test]
async fn layers_of_other_repositories_are_mounted() {
    let image = Image::new("app", &[noise(1, 400_000)]);
    let source = Engine::with(&[("app:1", &image)]);
    let spool = tempfile::tempdir().unwrap();
    let registry = writing(Engine::with(&[]), None, &spool.path().join("s"));
    let digest = image.diff_ids()[0].clone();
    let mounts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&mounts);
    // One that has the layer in another repository only.
    let node = Node::new(Server::lying(registry, move |seen, _| {
        if !seen.url.contains(digest.as_str()) {
            // What it took in by mounting it knows, and this one does not.
            return seen.url.contains("/manifests/").then(|| answer(201, &[], ""));
        }
        match seen.method {
            Method::HEAD => Some(answer(404, &[], "")),
            Method::POST => {
                counted.fetch_add(1, Ordering::Relaxed);
                let right = seen.url.contains("from=team/app");
                Some(match right {
                    true => answer(201, &[], ""),
                    false => answer(202, &[("location", "/v2/tranship/blobs/uploads/x")], ""),
                })
            }
            _ => panic!("{} {}", seen.method, seen.url),
        }
    }));
    let pushed = push(&node, &source, &image, &["other", "team/app"])
        .await
        .unwrap();
    assert_eq!(pushed.layers, 0);
    assert_eq!(mounts.load(Ordering::Relaxed), 2);
    // The upload that was begun in place of the first mount is not left open.
    cancelled(&node.server, 1).await;
    assert_eq!(node.server.count(&Method::DELETE, "/blobs/uploads/x"), 1);
}

#[tokio::test]
async fn whoever_may_not_read_elsewhere_sends_the_layer() {
    let image = Image::new("app", &[noise(1, 1000)]);
    let source = Engine::with(&[("app:1", &image)]);
    for status in [401, 403] {
        let (there, spool) = (Engine::with(&[]), tempfile::tempdir().unwrap());
        let registry = writing(Arc::clone(&there), None, &spool.path().join("s"));
        let node = Node::new(Server::lying(registry, move |seen, _| {
            let challenge = [("www-authenticate", "Basic realm=\"x\"")];
            let elsewhere = seen.url.contains("from=secret");
            elsewhere.then(|| answer(status, &challenge, ""))
        }));
        let pushed = push(&node, &source, &image, &["secret"]).await.unwrap();
        assert_eq!(pushed.layers, 1);
        assert!(there.find(image.id().as_str()).await.unwrap().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_manifest_is_put_again_and_its_answer_waited_for() {
    let image = Image::new("app", &[noise(1, 1000)]);
    let source = Engine::with(&[("app:1", &image)]);
    // Seconds until the answer, what it is, how often it is before it is right, and what comes of it.
    for (after, status, wrong, code) in [
        (290, 201, 0, None),
        (0, 503, 3, None),
        (0, 503, 9, Some("registry.status")),
        (0, 400, 9, Some("registry.status")),
        (301, 201, 0, Some("registry.lost")),
    ] {
        let spool = tempfile::tempdir().unwrap();
        let slow = Arc::new(Slow {
            server: Server::new(writing(Engine::with(&[]), None, &spool.path().join("s"))),
            after: Duration::from_secs(after),
            status,
            wrong,
            puts: AtomicUsize::default(),
        });
        let address = "reg.example".parse().unwrap();
        let client = Client::new(address, Arc::clone(&slow) as _, Arc::new(Me), patience());
        let images: Arc<dyn Images> = Arc::clone(&source) as _;
        let (repository, sent) = (Repository::new("tranship").unwrap(), Arc::default());
        let pushed = client.push(&repository, &[], &images, &spec(&image), &sent).await;
        assert_eq!(
            pushed.err().map(|error| error.code()),
            code,
            "{after} {status} {wrong}"
        );
        let puts = if status == 400 { 1 } else { 4 };
        let tries = slow.puts.load(Ordering::Relaxed);
        assert_eq!(
            tries,
            if after == 290 { 1 } else { puts },
            "{after} {status} {wrong}"
        );
    }
}

/// Answers manifests late, and so for the first `wrong` of them.
struct Slow {
    server: Server,
    after: Duration,
    status: u16,
    wrong: usize,
    puts: AtomicUsize,
}

#[async_trait]
impl Transport for Slow {
    async fn send(&self, request: Request<Payload>) -> std::io::Result<Response<BodyStream>> {
        if request.method() != Method::PUT || !request.uri().path().contains("/manifests/") {
            return self.server.send(request).await;
        }
        let before = self.puts.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(self.after).await;
        let status = if before < self.wrong { self.status } else { 201 };
        Ok(answer(status, &[], ""))
    }
}

/// Waits until so many uploads were cancelled.
async fn cancelled(server: &Server, times: usize) {
    let all = async {
        while server.count(&Method::DELETE, "/") < times {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.unwrap();
}

/// Uploads that a registry with this spool keeps.
fn open_uploads(spool: &tempfile::TempDir) -> usize {
    std::fs::read_dir(spool.path().join("s/uploads")).unwrap().count()
}

#[tokio::test]
async fn an_upload_that_is_refused_or_aborted_is_cancelled() {
    let image = Image::new("app", &[noise(1, 1000)]);
    let source = Engine::with(&[("app:1", &image)]);
    // Refused, again and again where that may help.
    for (status, times) in [(400, 1), (503, 4)] {
        let spool = tempfile::tempdir().unwrap();
        let registry = writing(Engine::with(&[]), Some(me()), &spool.path().join("s"));
        let node = Node::new(Server::lying(registry, move |seen, _| {
            (seen.method == Method::PUT).then(|| answer(status, &[], ""))
        }));
        push(&node, &source, &image, &[]).await.unwrap_err();
        cancelled(&node.server, times).await;
        assert_eq!(open_uploads(&spool), 0);
        let seen = node.server.seen.lock().unwrap();
        let deletes = seen.iter().filter(|seen| seen.method == Method::DELETE);
        assert!(deletes.clone().count() == times, "{status}");
        assert!(
            deletes
                .into_iter()
                .all(|seen| seen.header("authorization").is_some())
        );
    }
    // Nobody waits for it any more.
    let spool = tempfile::tempdir().unwrap();
    let stuck = Arc::new(Stuck {
        server: Server::new(writing(Engine::with(&[]), Some(me()), &spool.path().join("s"))),
        pieces: 0,
        puts: AtomicUsize::default(),
    });
    let address = "reg.example".parse().unwrap();
    let client = Client::new(address, Arc::clone(&stuck) as _, Arc::new(Me), patience());
    let pushing = tokio::spawn({
        let images: Arc<dyn Images> = Arc::clone(&source) as _;
        async move {
            let (repository, sent) = (Repository::new("tranship").unwrap(), Arc::default());
            client.push(&repository, &[], &images, &spec(&image), &sent).await
        }
    });
    while stuck.puts.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(open_uploads(&spool), 1);
    pushing.abort();
    cancelled(&stuck.server, 1).await;
    assert_eq!(open_uploads(&spool), 0);
}

#[tokio::test]
async fn an_upload_that_became_a_blob_is_not_cancelled() {
    let image = Image::new("app", &[noise(1, 1000), noise(2, 1000)]);
    let source = Engine::with(&[("app:1", &image)]);
    let spool = tempfile::tempdir().unwrap();
    let registry = writing(Engine::with(&[]), None, &spool.path().join("s"));
    let node = Node::new(Server::new(registry));
    push(&node, &source, &image, &[]).await.unwrap();
    // Longer than it would have waited.
    tokio::time::sleep(patience().breath * 100).await;
    assert_eq!(node.server.count(&Method::DELETE, "/"), 0);
}

#[tokio::test]
async fn only_what_is_an_upload_at_the_registry_itself_is_cancelled() {
    let image = Image::new("app", &[noise(1, 1000)]);
    let source = Engine::with(&[("app:1", &image)]);
    for (location, times) in [
        ("/v2/tranship/blobs/uploads/x?state=1", 1),
        ("https://REG.example/v2/tranship/blobs/uploads/x", 1),
        ("https://store.example/upload?signed=1", 0),
        ("https://store.example/v2/tranship/blobs/uploads/x", 0),
        ("https://reg.example:8443/v2/tranship/blobs/uploads/x", 0),
        ("/v2/other/blobs/uploads/x", 0),
        ("/v2/tranship/manifests/x", 0),
        ("/v2/tranship/blobs/uploads/", 0),
        ("/v2/tranship/blobs/uploads/../../manifests/x", 0),
        ("/v2/tranship/blobs/uploads/%2e%2e/x", 0),
    ] {
        let spool = tempfile::tempdir().unwrap();
        let registry = writing(Engine::with(&[]), Some(me()), &spool.path().join("s"));
        let node = Node::new(Server::lying(registry, move |seen, _| {
            if seen.url.starts_with("https://store.example/") {
                assert!(seen.header("authorization").is_none());
            }
            match seen.method {
                Method::POST if seen.header("authorization").is_some() => {
                    Some(answer(202, &[("location", location)], ""))
                }
                Method::PUT => Some(answer(400, &[], "")),
                Method::DELETE => Some(answer(204, &[], "")),
                _ => None,
            }
        }));
        push(&node, &source, &image, &[]).await.unwrap_err();
        // It is sent wherever the registry says.
        assert_eq!(node.server.count(&Method::PUT, "digest="), 1, "{location}");
        cancelled(&node.server, times).await;
        // Longer than it would have waited.
        tokio::time::sleep(patience().breath * 100).await;
        assert_eq!(node.server.count(&Method::DELETE, "/"), times, "{location}");
    }
}

#[tokio::test]
async fn refusals_end_it() {
    let image = Image::new("app", &[noise(1, 1000)]);
    let source = Engine::with(&[("app:1", &image)]);
    for (status, method, code) in [
        (405, Method::POST, "registry.status"),
        (403, Method::POST, "registry.denied"),
        (400, Method::PUT, "registry.status"),
        (507, Method::PUT, "registry.status"),
        (500, Method::HEAD, "registry.status"),
    ] {
        let spool = tempfile::tempdir().unwrap();
        let registry = writing(Engine::with(&[]), None, &spool.path().join("s"));
        let node = Node::new(Server::lying(registry, move |seen, _| {
            (seen.method == method).then(|| answer(status, &[], ""))
        }));
        let error = push(&node, &source, &image, &[]).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    // The engine says no of its own: that is what is told.
    let spool = tempfile::tempdir().unwrap();
    let registry = writing(Engine::with(&[]), None, &spool.path().join("s"));
    let node = Node::new(Server::new(registry));
    source.closed.store(true, Ordering::Relaxed);
    let error = push(&node, &source, &image, &[]).await.unwrap_err();
    assert_eq!(error.code(), "engine.unsupported");
}

/// Takes some of a body, slowly, and never answers.
struct Stuck {
    server: Server,
    pieces: usize,
    puts: AtomicUsize,
}

#[async_trait]
impl Transport for Stuck {
    async fn send(&self, request: Request<Payload>) -> std::io::Result<Response<BodyStream>> {
        if request.method() != Method::PUT {
            return self.server.send(request).await;
        }
        self.puts.fetch_add(1, Ordering::Relaxed);
        if let Payload::Stream { mut stream, .. } = request.into_body() {
            for _ in 0..self.pieces {
                stream.next().await;
                tokio::time::sleep(Duration::from_secs(50)).await;
            }
        }
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_stops_taking_is_not_waited_for_for_ever() {
    // Eight pieces.
    let image = Image::new("app", &[noise(1, 8000)]);
    let source = Engine::with(&[("app:1", &image)]);
    let mut lasted = Vec::new();
    for pieces in [0, 3, 8] {
        let spool = tempfile::tempdir().unwrap();
        let registry = writing(Engine::with(&[]), Some(me()), &spool.path().join("s"));
        let stuck = Arc::new(Stuck {
            server: Server::new(registry),
            pieces,
            puts: AtomicUsize::default(),
        });
        let address = "reg.example".parse().unwrap();
        let client = Client::new(address, Arc::clone(&stuck) as _, Arc::new(Me), patience());
        let images: Arc<dyn Images> = Arc::clone(&source) as _;
        let (repository, sent) = (Repository::new("tranship").unwrap(), Arc::default());
        let begun = tokio::time::Instant::now();
        let error = client
            .push(&repository, &[], &images, &spec(&image), &sent)
            .await
            .unwrap_err();
        assert_eq!(error.code(), "registry.lost", "{error}");
        assert_eq!(stuck.puts.load(Ordering::Relaxed), 4);
        lasted.push(begun.elapsed().as_secs() / 4);
    }
    // A minute without a piece; and five for an answer once it has everything.
    assert_eq!(lasted, [60, 180, 660]);
}
