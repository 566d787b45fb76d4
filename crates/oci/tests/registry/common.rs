//! An engine in memory, images, and a client that talks to the registry without a connection.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, Request, StatusCode};
use serde_json::{Value, json};
use tranship_core::engine::ByteStream;
use tranship_core::ids::Digest;
use tranship_core::image::common_layers;
use tranship_core::{EngineError, ImageSpec};
use tranship_oci::document::media;
use tranship_oci::port::Images;
use tranship_oci::{Answer, Credentials, Limits, Registry};

/// An image with its bytes.
#[derive(Clone)]
pub struct Image {
    pub config: Bytes,
    pub layers: Vec<Bytes>,
}

impl Image {
    pub fn new(name: &str, layers: &[Vec<u8>]) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|l| Digest::of(l).to_string()).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": { "Labels": { "name": name } },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        Self {
            config: config.to_string().into(),
            layers: layers.iter().cloned().map(Bytes::from).collect(),
        }
    }

    pub fn id(&self) -> Digest {
        Digest::of(&self.config)
    }

    pub fn diff_ids(&self) -> Vec<Digest> {
        self.layers.iter().map(|layer| Digest::of(layer)).collect()
    }
}

/// Images of one engine.
#[derive(Default)]
pub struct Engine {
    pub images: Mutex<BTreeMap<Digest, Image>>,
    pub tags: Mutex<BTreeMap<String, Digest>>,
    /// Bytes of all archives that came.
    pub imported: AtomicUsize,
    pub archives: AtomicUsize,
    /// As with an engine whose storage cannot be read.
    pub closed: AtomicBool,
}

impl Engine {
    pub fn with(images: &[(&str, &Image)]) -> Arc<Self> {
        let engine = Self::default();
        for (tag, image) in images {
            engine.images.lock().unwrap().insert(image.id(), (*image).clone());
            if !tag.is_empty() {
                engine.tags.lock().unwrap().insert((*tag).to_owned(), image.id());
            }
        }
        Arc::new(engine)
    }

    fn spec(&self, id: &Digest) -> Option<ImageSpec> {
        let images = self.images.lock().unwrap();
        let image = images.get(id)?;
        let tags = self.tags.lock().unwrap();
        Some(ImageSpec {
            id: id.clone(),
            tags: tags
                .iter()
                .filter(|(_, to)| *to == id)
                .map(|(tag, _)| tag.clone())
                .collect(),
            repo_digests: Vec::new(),
            kept_layers: Vec::new(),
            variant: String::new(),
            incomplete: false,
            layers: image.diff_ids(),
            size: 0,
            architecture: "amd64".into(),
            os: "linux".into(),
        })
    }

    fn open(&self) -> Result<(), EngineError> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(EngineError::Unsupported {
                message: "closed".into(),
            });
        }
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.images.lock().unwrap().is_empty() && self.imported.load(Ordering::Relaxed) == 0
    }
}

#[async_trait]
impl Images for Engine {
    async fn list(&self) -> Result<Vec<ImageSpec>, EngineError> {
        let ids: Vec<Digest> = self.images.lock().unwrap().keys().cloned().collect();
        Ok(ids.iter().filter_map(|id| self.spec(id)).collect())
    }
    async fn find(&self, reference: &str) -> Result<Option<ImageSpec>, EngineError> {
        let tagged = self.tags.lock().unwrap().get(reference).cloned();
        let id = tagged.or_else(|| Digest::new(reference).ok());
        Ok(id.and_then(|id| self.spec(&id)))
    }
    async fn config(&self, image: &Digest) -> Result<Bytes, EngineError> {
        self.open()?;
        let images = self.images.lock().unwrap();
        let found = images.get(image).map(|image| image.config.clone());
        found.ok_or_else(|| EngineError::NotFound {
            what: "image",
            name: image.to_string(),
        })
    }
    async fn lengths(&self, image: &ImageSpec) -> Result<Vec<u64>, EngineError> {
        self.open()?;
        let images = self.images.lock().unwrap();
        Ok(images[&image.id].layers.iter().map(|l| l.len() as u64).collect())
    }
    async fn layer(&self, image: &ImageSpec, index: usize, offset: u64) -> Result<ByteStream, EngineError> {
        self.open()?;
        let images = self.images.lock().unwrap();
        let layer = images[&image.id].layers[index].slice(usize::try_from(offset).unwrap()..);
        let pieces: Vec<Result<Bytes, EngineError>> = layer
            .chunks(1000)
            .map(|p| Ok(Bytes::copy_from_slice(p)))
            .collect();
        Ok(Box::pin(stream::iter(pieces)))
    }
    async fn held(&self, layers: &[Digest]) -> Result<usize, EngineError> {
        let images = self.images.lock().unwrap();
        let stacks: Vec<Vec<Digest>> = images.values().map(Image::diff_ids).collect();
        Ok(common_layers(layers, stacks.iter().map(Vec::as_slice)))
    }
    async fn import(&self, mut archive: ByteStream) -> Result<(), EngineError> {
        let mut bytes = Vec::new();
        while let Some(piece) = archive.next().await {
            bytes.extend_from_slice(&piece?);
        }
        self.imported.fetch_add(bytes.len(), Ordering::Relaxed);
        self.archives.fetch_add(1, Ordering::Relaxed);
        let mut entries = BTreeMap::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_str().unwrap().to_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            entries.insert(name, Bytes::from(content));
        }
        let manifest: Value = serde_json::from_slice(&entries["manifest.json"]).unwrap();
        let config = entries[manifest[0]["Config"].as_str().unwrap()].clone();
        let mut images = self.images.lock().unwrap();
        // What is not in the archive is here, with the same stack below.
        let named = manifest[0]["Layers"].as_array().unwrap();
        let layers = named.iter().map(|name| {
            let name = name.as_str().unwrap();
            let held = || {
                let hex = name.rsplit('/').next().unwrap();
                let mut all = images.values().flat_map(|image| &image.layers);
                all.find(|layer| Digest::of(layer).hex() == hex).unwrap().clone()
            };
            entries.get(name).cloned().unwrap_or_else(held)
        });
        let layers = layers.collect();
        images.insert(Digest::of(&config), Image { config, layers });
        Ok(())
    }
    async fn tag(&self, image: &Digest, tag: &str) -> Result<(), EngineError> {
        self.tags.lock().unwrap().insert(tag.to_owned(), image.clone());
        Ok(())
    }
    async fn remove(&self, reference: &str) -> Result<(), EngineError> {
        if self.tags.lock().unwrap().remove(reference).is_some() {
            return Ok(());
        }
        let id = Digest::new(reference).unwrap();
        if self.tags.lock().unwrap().values().any(|to| *to == id) {
            return Err(EngineError::Conflict {
                action: "remove".into(),
                message: "it has tags".into(),
            });
        }
        self.images.lock().unwrap().remove(&id);
        Ok(())
    }
}

/// A registry and how to talk to it.
pub struct Client {
    pub engine: Arc<Engine>,
    pub registry: Registry,
    pub spool: tempfile::TempDir,
}

/// What came back.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Reply {
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(
            self.status.as_u16(),
            status,
            "{}",
            String::from_utf8_lossy(&self.body)
        );
        self
    }

    /// Ends the test unless it is a refusal with the specification's code and tranship's own.
    #[track_caller]
    pub fn refused(self, status: u16, code: &str, own: &str) {
        let reply = self.expect(status);
        let error = &reply.json()["errors"][0];
        assert_eq!(
            (&error["code"], &error["detail"]),
            (&json!(code), &json!(own)),
            "{error}"
        );
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value
            .unwrap_or_else(|| panic!("no {name} in {:?}", self.headers))
            .to_str()
            .unwrap()
    }
}

/// Small enough for tests to hit them.
pub fn limits() -> Limits {
    Limits {
        blob: 8 << 20,
        uploads: 4,
        free: 0,
        layer: 64 << 20,
        tight: 1 << 20,
        ..Limits::default()
    }
}

impl Client {
    pub fn new(engine: Arc<Engine>) -> Self {
        Self::with(engine, limits(), None)
    }

    pub fn with(engine: Arc<Engine>, limits: Limits, access: Option<Credentials>) -> Self {
        let spool = tempfile::tempdir().unwrap();
        let images: Arc<dyn Images> = engine.clone();
        let registry = Registry::writing(images, access, &spool.path().join("spool"), limits).unwrap();
        Self {
            engine,
            registry,
            spool,
        }
    }

    pub async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let pieces: Vec<Result<Bytes, std::io::Error>> = body
            .chunks(100_000)
            .map(|p| Ok(Bytes::copy_from_slice(p)))
            .collect();
        self.stream(method, path, headers, stream::iter(pieces)).await
    }

    pub async fn stream<S>(&self, method: &str, path: &str, headers: &[(&str, &str)], body: S) -> Reply
    where
        S: futures_util::Stream<Item = Result<Bytes, std::io::Error>> + Send + Unpin,
    {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.registry.answer(request.body(body).unwrap()).await;
        let (parts, body) = response.into_parts();
        let body = match body {
            Answer::Full(bytes) => bytes.to_vec(),
            Answer::Stream(mut stream) => {
                let mut bytes = Vec::new();
                while let Some(piece) = stream.next().await {
                    bytes.extend_from_slice(&piece.unwrap());
                }
                bytes
            }
        };
        Reply {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.call("GET", path, &[], b"").await
    }

    /// Uploads a blob in one request, and returns its digest.
    pub async fn blob(&self, name: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        self.call("POST", &path, &[], bytes).await.expect(201);
        digest
    }

    /// Uploads an image's blobs, packed so, and puts its manifest at a tag or digest.
    pub async fn push(
        &self,
        name: &str,
        reference: &str,
        image: &Image,
        pack: fn(&[u8]) -> Vec<u8>,
    ) -> Reply {
        self.blob(name, &image.config).await;
        let mut layers = Vec::new();
        for layer in &image.layers {
            let packed = pack(layer);
            layers.push((self.blob(name, &packed).await, packed.len()));
        }
        let manifest = manifest_of(image, &layers, suffix(pack));
        self.put(name, reference, media::MANIFEST, manifest.as_bytes())
            .await
    }

    pub async fn put(&self, name: &str, reference: &str, kind: &str, document: &[u8]) -> Reply {
        let path = format!("/v2/{name}/manifests/{reference}");
        self.call("PUT", &path, &[("content-type", kind)], document).await
    }

    /// Files in the spool.
    pub fn spooled(&self) -> usize {
        let count = |name: &str| {
            std::fs::read_dir(self.spool.path().join("spool").join(name))
                .unwrap()
                .count()
        };
        count("uploads") + count("blobs")
    }
}

pub fn manifest(image: &Image, layers: &[(Digest, usize)]) -> String {
    manifest_of(image, layers, "+gzip")
}

/// What follows the media type of a layer that is packed so.
pub fn suffix(pack: fn(&[u8]) -> Vec<u8>) -> &'static str {
    match pack(b"abc")[0] {
        0x1f => "+gzip",
        0x28 => "+zstd",
        _ => "",
    }
}

pub fn manifest_of(image: &Image, layers: &[(Digest, usize)], suffix: &str) -> String {
    let layers: Vec<Value> = layers
        .iter()
        .map(|(digest, size)| json!({ "mediaType": format!("{}{suffix}", media::LAYER), "digest": digest, "size": size }))
        .collect();
    json!({
        "schemaVersion": 2,
        "mediaType": media::MANIFEST,
        "config": { "mediaType": media::CONFIG, "digest": image.id(), "size": image.config.len() },
        "layers": layers,
    })
    .to_string()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

pub fn plain(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

/// Bytes that do not look alike.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}
