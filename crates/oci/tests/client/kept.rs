//! Images between engines that keep blobs: which blobs come, and what liars get.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Method, Response};
use serde_json::{Value, json};
use tranship_core::ImageSpec;
use tranship_core::fault::Explain as _;
use tranship_core::ids::Digest;
use tranship_oci::Registry;
use tranship_oci::client::{BodyStream, Client, ClientError, Fetched, Platforms, Store as Came};
use tranship_oci::document::{is_for_config, media};
use tranship_oci::name::Repository;
use tranship_oci::port::Images;

use crate::common::{Image, gzip, limits, manifest_of, noise, plain, zstd};
use crate::server::{Me, Seen, Server, answer, broken, patience, range_of, spec, streamed};
use crate::store::Store;

fn image() -> Image {
    Image::new("app", &[noise(1, 400_000), noise(2, 300_000), noise(3, 20_000)])
}

/// What the engine runs of `id`.
fn own(id: &Digest, image: &Image) -> ImageSpec {
    ImageSpec {
        id: id.clone(),
        ..spec(image)
    }
}

/// Where an image comes from, and where it goes to.
struct Pair {
    server: Arc<Server>,
    client: Arc<Client>,
    came: Arc<Came>,
    to: Store,
    _spool: tempfile::TempDir,
}

impl Pair {
    /// From an engine that gives out this image.
    fn new(
        from: Store,
        id: &Digest,
        lie: impl Fn(&Seen, usize) -> Option<Response<BodyStream>> + Send + Sync + 'static,
    ) -> Self {
        from.tag_as("app:1", id);
        let server = Arc::new(Server::lying(Registry::reading(Arc::new(from), None), lie));
        let spool = tempfile::tempdir().unwrap();
        let address = "reg.example".parse().unwrap();
        Self {
            client: Client::new(address, Arc::clone(&server) as _, Arc::new(Me), patience()),
            server,
            came: Arc::new(Came::open(&spool.path().join("spool"), limits()).unwrap()),
            to: Store::default(),
            _spool: spool,
        }
    }

    fn honest(from: Store, id: &Digest) -> Self {
        Self::new(from, id, |_, _| None)
    }

    async fn fetch(&self, image: &ImageSpec) -> Result<Fetched, ClientError> {
        let repository = Repository::new("image").unwrap();
        self.client
            .fetch_kept(&repository, (image, Platforms::All), &self.to, &self.came)
            .await
    }

    /// Fetches an image, and gives it to the engine.
    async fn take(&self, image: &ImageSpec) -> (usize, u64) {
        let fetched = self.fetch(image).await.unwrap();
        self.to.import(fetched.archive).await.unwrap();
        fetched.kept.remove();
        (fetched.layers, fetched.bytes)
    }

    async fn refuses(&self, image: &ImageSpec, code: &str) {
        let error = self.fetch(image).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(self.to.blobs.lock().unwrap().is_empty());
    }

    fn asked(&self, blob: &Digest) -> usize {
        self.server.count(&Method::GET, &format!("/blobs/{blob}"))
    }
}

fn index(children: &[(&Digest, usize, &str)]) -> String {
    let children: Vec<Value> = children
        .iter()
        .map(|(digest, size, architecture)| {
            json!({ "mediaType": media::MANIFEST, "digest": digest, "size": size,
                "platform": { "os": "linux", "architecture": architecture } })
        })
        .collect();
    json!({ "schemaVersion": 2, "mediaType": media::INDEX, "manifests": children }).to_string()
}

fn blobs(store: &Store) -> BTreeMap<Digest, Bytes> {
    store.blobs.lock().unwrap().clone()
}

#[tokio::test]
async fn blobs_come_as_they_are_kept_and_only_those_that_are_lacking() {
    for pack in [plain, gzip, zstd] {
        let image = image();
        let layers: Vec<Vec<u8>> = image.layers.iter().map(|layer| pack(layer)).collect();
        // None, the lowest, the uppermost alone, and all of them.
        for held in [&[][..], &[0], &[2], &[0, 1, 2]] {
            let from = Store::default();
            let (id, _) = from.image(&image, pack);
            let all = blobs(&from);
            let pair = Pair::honest(from, &id);
            for index in held {
                pair.to.put(layers[*index].clone());
            }
            let (count, bytes) = pair.take(&own(&id, &image)).await;
            let missing = (0..3).filter(|index| !held.contains(index));
            let expected: usize = missing.map(|index| layers[index].len()).sum();
            assert_eq!((count, bytes), (3 - held.len(), expected as u64), "{held:?}");
            assert_eq!(blobs(&pair.to), all);
            assert_eq!(
                pair.to.find(id.as_str()).await.unwrap().unwrap().layers,
                image.diff_ids()
            );
            for (index, layer) in layers.iter().enumerate() {
                let asked = pair.asked(&Digest::of(layer));
                assert_eq!(
                    asked,
                    usize::from(!held.contains(&index)),
                    "layer {index}, {held:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn of_an_index_comes_what_is_there() {
    let from = Store::default();
    let image = image();
    let mine = from.image(&image, gzip);
    let mut other = Image::new("other", &[noise(7, 5000), noise(8, 6000)]);
    other.config = String::from_utf8(other.config.to_vec())
        .unwrap()
        .replace("amd64", "s390x")
        .into();
    let other = from.image(&other, zstd);
    let lacking = Digest::of(&zstd(&noise(8, 6000)));
    from.drop_blob(&lacking);
    let note = from.put(&b"{\"_type\": \"statement\"}"[..]);
    let config = from.put(&b"{\"architecture\":\"unknown\"}"[..]);
    let said = json!({ "schemaVersion": 2, "mediaType": media::MANIFEST,
        "config": { "mediaType": media::CONFIG, "digest": config, "size": 26 },
        "layers": [{ "mediaType": media::ATTESTATION, "digest": note, "size": 22 }] });
    let said = said.to_string();
    let said_id = from.put(said.clone());
    // Of a kind that is not known: it goes along, and nothing that it names.
    let odd = json!({ "schemaVersion": 2, "mediaType": media::MANIFEST, "layers": [],
        "config": { "mediaType": "text/plain", "digest": Digest::of(b"x"), "size": 1 } });
    let odd = odd.to_string();
    let odd_id = from.put(odd.clone());
    let elsewhere = Digest::of(b"elsewhere");
    let id = from.put(index(&[
        (&elsewhere, 9, "arm64"),
        (&other.0, other.1, "s390x"),
        (&odd_id, odd.len(), "unknown"),
        (&mine.0, mine.1, "amd64"),
        (&mine.0, mine.1, "amd64"),
        (&said_id, said.len(), "unknown"),
    ]));
    let all = blobs(&from);
    let pair = Pair::honest(from, &id);
    let (layers, _) = pair.take(&own(&id, &image)).await;
    assert_eq!(layers, 3);
    assert_eq!(blobs(&pair.to), all);
    assert_eq!(pair.asked(&lacking), 1);
    // Once more, nothing is lacking but what nobody has.
    assert_eq!(pair.take(&own(&id, &image)).await, (0, 0));
}

#[tokio::test]
async fn an_index_without_the_image_that_runs_is_another_image() {
    let from = Store::default();
    let (image, other) = (image(), Image::new("other", &[noise(7, 5000)]));
    let (child, size) = from.image(&other, gzip);
    let id = from.put(index(&[(&child, size, "amd64")]));
    let pair = Pair::honest(from, &id);
    pair.refuses(&own(&id, &image), "registry.other-image").await;
    assert_eq!(pair.asked(&Digest::of(&gzip(&noise(7, 5000)))), 0);
    // A layer of another platform may be missing, one of this not.
    let from = Store::default();
    let (id, _) = from.image(&image, gzip);
    from.drop_blob(&Digest::of(&gzip(&image.layers[1])));
    let pair = Pair::honest(from, &id);
    pair.refuses(&own(&id, &image), "registry.not-found").await;
}

#[tokio::test]
async fn a_blob_goes_on_where_it_broke_off() {
    let image = Image::new("app", &[noise(1, 3 << 20)]);
    let from = Store::default();
    let (id, _) = from.image(&image, plain);
    let layer = image.layers[0].clone();
    let calls = AtomicUsize::new(0);
    let pair = Pair::new(from, &id, {
        let (layer, digest) = (layer.clone(), Digest::of(&layer));
        move |seen, _| {
            let first = seen.url.ends_with(digest.as_str()) && calls.fetch_add(1, Ordering::Relaxed) == 0;
            first.then(|| streamed(200, &[], broken(layer.slice(..2 << 20))))
        }
    });
    let (_, bytes) = pair.take(&own(&id, &image)).await;
    assert_eq!(bytes, 3 << 20);
    let seen = pair.server.seen.lock().unwrap();
    let starts: Vec<Option<u64>> = seen
        .iter()
        .filter(|seen| seen.url.ends_with(Digest::of(&layer).as_str()))
        .map(range_of)
        .collect();
    assert_eq!(starts, [None, Some(2 << 20)]);
}

#[tokio::test]
async fn whatever_is_not_what_its_digest_says_is_refused() {
    let image = image();
    let packed = gzip(&image.layers[1]);
    let (upper, config) = (Digest::of(&packed), image.id());
    let mut flipped = packed.clone();
    flipped[1000] ^= 1;
    let made = || {
        let from = Store::default();
        let (id, size) = from.image(&image, gzip);
        (from, id, size)
    };
    let (_, id, size) = made();
    let text = manifest_of(&Image::new("evil", &[noise(9, 100)]), &[], "");
    for (what, body, code) in [
        (&upper, flipped, "registry.digest"),
        (&upper, packed[..packed.len() - 1].to_vec(), "registry.length"),
        (&config, vec![b' '; image.config.len()], "registry.digest"),
        (&id, text.into_bytes(), "registry.digest"),
        (&id, vec![b' '; size], "registry.digest"),
    ] {
        let (from, id, _) = made();
        let what = what.clone();
        let pair = Pair::new(from, &id, move |seen, _| {
            let kind = [("content-type", media::MANIFEST)];
            let lie = || answer(200, &kind, body.clone());
            seen.url.ends_with(what.as_str()).then(lie)
        });
        pair.refuses(&own(&id, &image), code).await;
    }
}

#[tokio::test]
async fn layers_that_do_not_unpack_to_what_the_configuration_says_are_refused() {
    let bomb = vec![0; 3 << 20];
    for (packed, image, code) in [
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
    ] {
        let from = Store::default();
        from.put(image.config.clone());
        let size = packed.len();
        let layer = from.put(packed);
        let id = from.put(manifest_of(&image, &[(layer, size)], "+gzip"));
        Pair::honest(from, &id).refuses(&own(&id, &image), code).await;
    }
}

#[tokio::test]
async fn what_containerd_would_not_unpack_is_refused() {
    let image = Image::new("app", &[noise(1, 3000)]);
    // Packed though its kind is not; and of a kind that it does not know.
    for (suffix, asked) in [("", 1), (".gzip", 0)] {
        let from = Store::default();
        from.put(image.config.clone());
        let packed = gzip(&image.layers[0]);
        let size = packed.len();
        let layer = from.put(packed);
        let id = from.put(manifest_of(&image, &[(layer.clone(), size)], suffix));
        let pair = Pair::honest(from, &id);
        pair.refuses(&own(&id, &image), "oci.manifest").await;
        assert_eq!(pair.asked(&layer), asked, "{suffix:?}");
    }
}

#[tokio::test]
async fn a_configuration_is_asked_for_as_one() {
    let (image, from) = (image(), Store::default());
    let (id, _) = from.image(&image, gzip);
    let pair = Pair::honest(from, &id);
    pair.take(&own(&id, &image)).await;
    for seen in pair.server.seen.lock().unwrap().iter() {
        let accepts = seen.headers.get_all(http::header::ACCEPT).iter();
        let as_config = is_for_config(accepts.filter_map(|value| value.to_str().ok()));
        let is_config = seen.url.ends_with(&format!("/blobs/{}", image.id()));
        assert_eq!(as_config, is_config, "{}", seen.url);
    }
}

#[tokio::test]
async fn an_image_of_endless_blobs_is_refused_before_they_come() {
    let image = image();
    let from = Store::default();
    let mine = from.image(&image, gzip);
    let mut children = Vec::new();
    for number in 0..10 {
        let layers: Vec<(Digest, usize)> = (0..500)
            .map(|layer| (Digest::of(format!("{number} {layer}").as_bytes()), 1))
            .collect();
        let text = manifest_of(&image, &layers, "+gzip");
        let size = text.len();
        children.push((from.put(text), size));
    }
    let mut named: Vec<(&Digest, usize, &str)> =
        children.iter().map(|(id, size)| (id, *size, "arm64")).collect();
    named.push((&mine.0, mine.1, "amd64"));
    let id = from.put(index(&named));
    let pair = Pair::honest(from, &id);
    pair.refuses(&own(&id, &image), "oci.too-many").await;
    assert_eq!(pair.server.count(&Method::GET, "/blobs/"), 0);
}

#[tokio::test]
async fn a_registry_gets_what_it_lacks_and_gives_the_image_that_runs() {
    let (image, from) = (image(), Store::default());
    let mine = from.image(&image, gzip);
    let other = from.image(&Image::new("other", &[noise(7, 5000)]), gzip);
    let text = index(&[(&mine.0, mine.1, "amd64"), (&other.0, other.1, "s390x")]);
    let id = from.put(text);
    from.tag_as("app:1", &id);
    let all = blobs(&from);
    let (there, spool) = (Arc::new(Store::default()), tempfile::tempdir().unwrap());
    let registry = Registry::writing(Arc::clone(&there) as _, None, &spool.path().join("s"), limits());
    let server = Arc::new(Server::new(registry.unwrap()));
    let address = "reg.example".parse().unwrap();
    let client = Client::new(address, Arc::clone(&server) as _, Arc::new(Me), patience());
    let repository = Repository::new("tranship").unwrap();
    let (from, wanted) = (Arc::new(from), own(&id, &image));
    let push = async |wanted: &ImageSpec| {
        let images = Arc::clone(&from) as Arc<dyn Images>;
        let sent = Arc::new(AtomicU64::new(0));
        client.push_kept(&repository, &[], &images, wanted, &sent).await
    };
    assert!(!client.has_kept(&repository, &wanted).await.unwrap());
    let pushed = push(&wanted).await.unwrap();
    assert_eq!((&pushed.manifest, pushed.layers), (&id, 6));
    assert_eq!(blobs(&there), all);
    assert!(client.has_kept(&repository, &wanted).await.unwrap());
    assert!(
        !client
            .has_kept(&repository, &own(&id, &Image::new("x", &[])))
            .await
            .unwrap()
    );
    let again = push(&wanted).await.unwrap();
    assert_eq!((again.layers, again.bytes), (0, 0));

    // Of the registry's platforms, only the one that runs comes.
    let (to, spool) = (Store::default(), tempfile::tempdir().unwrap());
    let came = Arc::new(Came::open(&spool.path().join("s"), limits()).unwrap());
    let fetched = client
        .fetch_kept(&repository, (&wanted, Platforms::Own), &to, &came)
        .await
        .unwrap();
    assert_eq!(fetched.layers, 3);
    to.import(fetched.archive).await.unwrap();
    assert!(to.has(&id) && to.has(&mine.0) && !to.has(&other.0));
    assert_eq!(blobs(&to).len(), 6);

    // An index of which not all is here is refused before anything is sent.
    let elsewhere = Digest::of(b"elsewhere");
    let sparse = from.put(index(&[(&mine.0, mine.1, "amd64"), (&elsewhere, 9, "arm64")]));
    from.tag_as("app:2", &sparse);
    let before = server.count(&Method::POST, "");
    let error = push(&own(&sparse, &image)).await.unwrap_err();
    assert_eq!(error.code(), "registry.partial", "{error}");
    assert_eq!(server.count(&Method::POST, ""), before);
}
