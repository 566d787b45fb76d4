//! An image from a registry: its manifest, its configuration, and those of its layers that are wanted, several at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::{HeaderValue, Method, Response, StatusCode, header};
use tranship_core::ImageSpec;
use tranship_core::engine::ByteStream;
use tranship_core::ids::Digest;

use super::request::{Ask, text};
use super::store::{Damaged, Kept, Store};
use super::{BodyStream, Client, ClientError};
use crate::archive::{self, Layer};
use crate::document::{self, Descriptor, LARGEST, LARGEST_CONFIG, Pushed};
use crate::error::OciError;
use crate::held::Document;
use crate::layer;
use crate::name::{Reference, Repository};
use crate::registry::CONTENT_DIGEST;
use crate::spool::{BlobFile, Shared};

/// How many layers are fetched at once.
pub(super) const PARALLEL: usize = 4;

/// How often a layer may break off that has to come in one piece. Each time all of it travels for nothing.
const IN_ONE_PIECE: u32 = 4;

/// What of an image is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The image, as the node has it that it comes from.
    pub image: &'a ImageSpec,
    /// How many of its lowest layers are here already.
    pub held: usize,
}

/// An image that came, every byte compared.
pub struct Fetched {
    /// It as an archive for the engine, without what is here already.
    pub archive: ByteStream,
    /// How many layers came.
    pub layers: usize,
    /// Bytes of layers that came over the connection.
    pub bytes: u64,
    /// What is in the store of it.
    pub kept: Kept,
}

impl std::fmt::Debug for Fetched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetched")
            .field("layers", &self.layers)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Fetches what is wanted of an image. All of it is compared with the digests of `wanted` before the archive is handed out.
    ///
    /// # Errors
    /// Any [`ClientError`]. What came of layers stays in the store for a while, and the next call goes on with it; so it does of an image that
    /// came, unless it is removed.
    pub async fn fetch(
        &self,
        repository: &Repository,
        reference: &Reference,
        wanted: Wanted<'_>,
        store: &Arc<Store>,
    ) -> Result<Fetched, ClientError> {
        let id = &wanted.image.id;
        let (config, layers) = self.manifest(repository, reference, wanted.image).await?;
        if config.digest != *id {
            return Err(self.other(format!("{} in place of {id}", config.digest)));
        }
        let config = self.config(repository, &config).await?;
        let diff_ids = document::read_config(&config)?.diff_ids;
        if diff_ids != wanted.image.layers || diff_ids.len() != layers.len() {
            return Err(self.other(format!("it has other layers than {id}")));
        }
        // A layer may be there twice, and packed in two ways: the first one will do.
        let mut missing: BTreeMap<Digest, Descriptor> = BTreeMap::new();
        for (diff_id, descriptor) in diff_ids.iter().zip(&layers).skip(wanted.held) {
            missing
                .entry(diff_id.clone())
                .or_insert_with(|| descriptor.clone());
        }
        let needed = missing.values().map(|layer| (layer.digest.clone(), layer.size));
        store.room_for(&needed.collect())?;
        let (came, unpacked) = (AtomicU64::new(0), AtomicU64::new(0));
        let found: BTreeMap<Digest, (Arc<BlobFile>, u64)> = stream::iter(missing.clone())
            .map(|(diff_id, descriptor)| {
                let (came, unpacked) = (&came, &unpacked);
                async move {
                    let blob = self.blob(repository, &descriptor, store, came).await?;
                    let (length, _) = compared(&descriptor, &blob, &diff_id, store, unpacked).await?;
                    Ok::<_, ClientError>((diff_id, (blob, length)))
                }
            })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        let parts = diff_ids.iter().skip(wanted.held).filter_map(|diff_id| {
            let (blob, length) = found.get(diff_id)?.clone();
            let digest = diff_id.clone();
            Some(Layer {
                diff_id: diff_id.clone(),
                length,
                open: Box::new(move || Box::pin(async move { Ok(layer::unpacked(blob, digest, length)) })),
            })
        });
        let archive = archive::plain(id, config, &diff_ids, parts.collect())?;
        let blobs = missing.iter().filter_map(|(diff_id, layer)| {
            let (blob, _) = found.get(diff_id)?;
            Some((layer.digest.clone(), Arc::clone(blob)))
        });
        Ok(Fetched {
            archive,
            layers: missing.len(),
            bytes: came.into_inner(),
            kept: Kept::new(store, blobs.collect()),
        })
    }

    pub(super) fn other(&self, message: String) -> ClientError {
        ClientError::OtherImage {
            registry: self.name(),
            message,
        }
    }

    /// The manifest of an image: its configuration and its layers. Of an index, the manifest for the image's machine.
    pub(super) async fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        image: &ImageSpec,
    ) -> Result<(Descriptor, Vec<Descriptor>), ClientError> {
        let (_, document) = self.document(repository, reference, None).await?;
        let manifests = match document? {
            Pushed::Manifest { config, layers } => return Ok((config, layers)),
            Pushed::Attestation { .. } => return Err(self.other("an attestation, and no image".into())),
            Pushed::Index(manifests) => manifests,
        };
        let here = |descriptor: &&Descriptor| match &descriptor.platform {
            Some(platform) => platform.os == image.os && platform.architecture == image.architecture,
            None => manifests.len() == 1,
        };
        let Some(descriptor) = manifests.iter().find(here) else {
            return Err(self.other(format!("none for {}/{}", image.os, image.architecture)));
        };
        let reference = Reference::Digest(descriptor.digest.clone());
        let (_, document) = self.document(repository, &reference, Some(descriptor)).await?;
        match document? {
            Pushed::Manifest { config, layers } => Ok((config, layers)),
            Pushed::Index(_) | Pushed::Attestation { .. } => Err(self.nonsense(
                "an index",
                "it leads to something else, where a manifest should be",
            )),
        }
    }

    /// A manifest or an index, compared with what it is known by, and what is in it; or why it is not one that is taken in.
    pub(super) async fn document(
        &self,
        repository: &Repository,
        reference: &Reference,
        described: Option<&Descriptor>,
    ) -> Result<(Document, Result<Pushed, OciError>), ClientError> {
        let written = match reference {
            Reference::Tag(tag) => tag.as_str(),
            Reference::Digest(digest) => digest.as_str(),
        };
        let what = format!("manifest {}:{written}", repository.as_str());
        let path = format!("/v2/{}/manifests/{written}", repository.as_str());
        let mut ask = Ask::new(Method::GET, path, &what, &pull_scope(repository));
        ask.accept_documents();
        let (headers, bytes) = self.small(&ask, LARGEST).await?;
        let found = Digest::of(&bytes);
        let announced = text(&headers, &CONTENT_DIGEST);
        let meant = match reference {
            Reference::Digest(digest) => Some(digest.as_str()),
            Reference::Tag(_) => announced,
        };
        if meant.is_some_and(|meant| meant != found.as_str()) {
            return Err(self.lie(what, &found));
        }
        if let Some(described) = described
            && described.size != bytes.len() as u64
        {
            return Err(self.length(what, described.size, bytes.len() as u64));
        }
        let kind = text(&headers, &header::CONTENT_TYPE);
        let (media_type, pushed) = match document::read(kind, &bytes) {
            Ok((kind, pushed)) => (kind, Ok(pushed)),
            Err(error) => (kind.unwrap_or_default().to_owned(), Err(error)),
        };
        if let Some(described) = described
            && pushed.is_ok()
            && described.media_type != media_type
        {
            let message = format!(
                "it is {media_type:?}, and was said to be {:?}",
                described.media_type
            );
            return Err(self.nonsense(&what, message));
        }
        let document = Document {
            media_type,
            digest: found,
            bytes,
        };
        Ok((document, pushed))
    }

    pub(super) async fn config(
        &self,
        repository: &Repository,
        config: &Descriptor,
    ) -> Result<Bytes, ClientError> {
        let what = format!("configuration {}", config.digest);
        let path = format!("/v2/{}/blobs/{}", repository.as_str(), config.digest);
        let mut ask = Ask::new(Method::GET, path, &what, &pull_scope(repository));
        ask.accept_config();
        // `check_manifest` has seen to its size.
        let limit = usize::try_from(config.size.min(LARGEST_CONFIG)).unwrap_or(usize::MAX);
        let (_, bytes) = match self.small(&ask, limit).await {
            Err(ClientError::TooLarge { .. }) => {
                return Err(self.length(what, config.size, config.size.saturating_add(1)));
            }
            other => other?,
        };
        if bytes.len() as u64 != config.size {
            return Err(self.length(what, config.size, bytes.len() as u64));
        }
        let found = Digest::of(&bytes);
        if found != config.digest {
            return Err(self.lie(what, &found));
        }
        Ok(bytes)
    }

    /// A document of at most `limit` bytes, asked for again if it breaks off.
    async fn small(&self, ask: &Ask, limit: usize) -> Result<(http::HeaderMap, Bytes), ClientError> {
        let mut tries = 0;
        loop {
            let asked = tokio::time::timeout(self.patience.document, self.small_once(ask, limit)).await;
            match asked.unwrap_or_else(|_| Err(self.lost(&"it does not come to an end"))) {
                Err(error) if error.passes() && tries + 1 < self.patience.tries => {
                    tries += 1;
                    tokio::time::sleep(self.patience.breath).await;
                }
                done => return done,
            }
        }
    }

    async fn small_once(&self, ask: &Ask, limit: usize) -> Result<(http::HeaderMap, Bytes), ClientError> {
        let response = self.ask(ask).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response, &ask.what).await);
        }
        let (parts, body) = response.into_parts();
        if announced(&parts.headers).is_some_and(|length| length > limit as u64) {
            return Err(ClientError::TooLarge {
                registry: self.name(),
                what: ask.what.clone(),
                limit: limit as u64,
            });
        }
        Ok((parts.headers, self.gather(body, &ask.what, limit).await?))
    }

    fn lie(&self, what: String, found: &Digest) -> ClientError {
        ClientError::Digest {
            registry: self.name(),
            what,
            found: found.to_string(),
        }
    }

    fn length(&self, what: String, expected: u64, found: u64) -> ClientError {
        ClientError::Length {
            registry: self.name(),
            what,
            expected,
            found,
        }
    }

    /// A blob, from the store or into it. What broke off goes on where it stands; if what was put together so has another digest, it
    /// is thrown away, and all of it comes once more, in one piece.
    pub(super) async fn blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        store: &Store,
        came: &AtomicU64,
    ) -> Result<Arc<BlobFile>, ClientError> {
        let digest = &descriptor.digest;
        let slot = store.slot(digest);
        let mut slot = slot.lock().await;
        if let Some(blob) = store.spool.blob(digest) {
            store.forget(digest);
            return self.of_length(blob, descriptor);
        }
        let (mut fruitless, mut farthest) = (0, 0);
        loop {
            let (id, upload) = store.upload(&mut slot.upload)?;
            if let Some(damaged) = &mut slot.damaged {
                let mut upload = upload.lock().await;
                if upload.at > 0 {
                    upload.restart();
                    damaged.broken += 1;
                }
                // A link that is shaky enough would have it travel for ever.
                if damaged.broken >= IN_ONE_PIECE {
                    let lie = self.lie(format!("layer {digest}"), &damaged.found);
                    store.drop_upload(&mut slot.upload);
                    store.forget(digest);
                    return Err(lie);
                }
            }
            let before = upload.lock().await.at;
            let got = match before < descriptor.size {
                true => self.part(repository, descriptor, store, &upload, before).await,
                false => Ok(before),
            };
            let at = upload.lock().await.at;
            came.fetch_add(at.saturating_sub(before), Ordering::Relaxed);
            match got {
                Ok(begin) => {
                    let done = store.spool.finish(&id, &upload, digest).await;
                    slot.upload = None;
                    // Parts are compared by nobody before, and the first of them may be of another day. What came in one piece would
                    // come so again.
                    if matches!(done, Err(OciError::Digest { .. })) && begin > 0 && slot.damaged.is_none() {
                        tracing::debug!(%digest, "a layer in parts is not what it should be, and comes anew");
                        let found = upload.lock().await.digest();
                        slot.damaged = Some(Damaged { found, broken: 0 });
                        (fruitless, farthest) = (0, 0);
                        continue;
                    }
                    let blob = store.spool.blob(digest);
                    store.forget(digest);
                    match done {
                        Err(OciError::Digest { .. }) => {
                            let found = upload.lock().await.digest();
                            return Err(self.lie(format!("layer {digest}"), &found));
                        }
                        other => other?,
                    }
                    let blob = blob.ok_or(OciError::NoBlob {
                        digest: digest.to_string(),
                    })?;
                    return self.of_length(blob, descriptor);
                }
                Err(error) if error.passes() => {
                    // One that begins anew again and again comes no farther.
                    fruitless = if at > farthest { 0 } else { fruitless + 1 };
                    farthest = farthest.max(at);
                    if fruitless >= self.patience.tries {
                        return Err(error);
                    }
                    tokio::time::sleep(self.patience.breath).await;
                }
                Err(error) => {
                    // Nobody goes on with what lied, or is not there: others would have no room beside many of those.
                    let useless = matches!(
                        error,
                        ClientError::Digest { .. }
                            | ClientError::Length { .. }
                            | ClientError::Answer { .. }
                            | ClientError::NotFound { .. }
                    );
                    if useless {
                        store.drop_upload(&mut slot.upload);
                        store.forget(digest);
                    }
                    return Err(error);
                }
            }
        }
    }

    fn of_length(&self, blob: Arc<BlobFile>, descriptor: &Descriptor) -> Result<Arc<BlobFile>, ClientError> {
        if blob.length == descriptor.size {
            return Ok(blob);
        }
        let what = format!("layer {}", descriptor.digest);
        Err(self.length(what, descriptor.size, blob.length))
    }

    /// Asks for a blob from `at` on, and appends what comes. Returns where that began, which is 0 where all of it came.
    async fn part(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        store: &Store,
        upload: &Shared,
        at: u64,
    ) -> Result<u64, ClientError> {
        let what = format!("layer {}", descriptor.digest);
        let path = format!("/v2/{}/blobs/{}", repository.as_str(), descriptor.digest);
        let mut ask = Ask::new(Method::GET, path, &what, &pull_scope(repository));
        if at > 0 {
            let range = HeaderValue::from_str(&format!("bytes={at}-"));
            let range = range.map_err(|_| self.nonsense(&what, "no range"))?;
            ask.headers.insert(header::RANGE, range);
        }
        let response = self.ask(&ask).await?;
        let at = match response.status() {
            StatusCode::OK => {
                // Those that know no ranges send all of it.
                upload.lock().await.restart();
                0
            }
            StatusCode::PARTIAL_CONTENT if at > 0 => {
                self.check_range(&response, &what, at, descriptor.size)?;
                at
            }
            StatusCode::PARTIAL_CONTENT => {
                return Err(self.nonsense(&what, "a part, where all was asked for"));
            }
            _ => return Err(self.refusal(response, &what).await),
        };
        let expected = descriptor.size - at;
        let (parts, body) = response.into_parts();
        if let Some(length) = announced(&parts.headers)
            && length != expected
        {
            return Err(self.length(what, descriptor.size, at.saturating_add(length)));
        }
        let mut count = 0_u64;
        let (mut whole, mut broken) = (false, None);
        let counted = body
            .inspect(|piece| match piece {
                Ok(piece) => count += piece.len() as u64,
                Err(error) => broken = Some(error.to_string()),
            })
            .chain(stream::once(async {
                whole = true;
                Ok(Bytes::new())
            }));
        let counted = Box::pin(counted);
        let appended = store
            .spool
            .append(upload, Some(at), Some(expected), counted)
            .await;
        match appended {
            Ok(_) => Ok(at),
            Err(OciError::Body { .. }) if count > expected => {
                Err(self.length(what, descriptor.size, at + count))
            }
            Err(OciError::Body { message }) => match broken {
                Some(broken) => Err(self.lost(&broken)),
                None if whole => Err(self.length(what, descriptor.size, at + count)),
                None => Err(self.lost(&message)),
            },
            Err(other) => Err(other.into()),
        }
    }

    fn check_range(
        &self,
        response: &Response<BodyStream>,
        what: &str,
        at: u64,
        size: u64,
    ) -> Result<(), ClientError> {
        let given = text(response.headers(), &header::CONTENT_RANGE).unwrap_or_default();
        let right = format!("bytes {at}-{}/{size}", size - 1);
        if given == right || given == format!("bytes {at}-{}/*", size - 1) {
            return Ok(());
        }
        Err(self.nonsense(what, format!("it gives {given:?} where {right:?} was asked for")))
    }
}

pub(super) fn pull_scope(repository: &Repository) -> String {
    format!("repository:{}:pull", repository.as_str())
}

fn announced(headers: &http::HeaderMap) -> Option<u64> {
    text(headers, &header::CONTENT_LENGTH)?.parse().ok()
}

/// Compares a blob with the layer that it should be, after others of its image that had `total` bytes unpacked. Returns the length of
/// its plain tar, and whether it is packed. What is plain has been compared, and has its room already.
pub(super) async fn compared(
    descriptor: &Descriptor,
    blob: &Arc<BlobFile>,
    diff_id: &Digest,
    store: &Store,
    total: &AtomicU64,
) -> Result<(u64, bool), ClientError> {
    if descriptor.digest == *diff_id {
        return Ok((blob.length, false));
    }
    let before = total.load(Ordering::Relaxed);
    let whole = store.spool.room(before)?;
    let room = whole.saturating_sub(before);
    let limits = store.spool.limits.clone();
    let (digest, blob, diff_id) = (descriptor.digest.clone(), Arc::clone(blob), diff_id.clone());
    let verified = tokio::task::spawn_blocking(move || {
        let packed = (blob.open()?, blob.length);
        layer::verify(&digest, packed, &diff_id, &limits, room)
    })
    .await;
    let (length, packed) = verified.map_err(|error| OciError::Spool {
        action: "unpack a layer",
        source: std::io::Error::other(error),
    })??;
    // Those that were unpacked meanwhile did not know of this one.
    let all = total.fetch_add(length, Ordering::Relaxed).saturating_add(length);
    if all > whole {
        let digest = descriptor.digest.to_string();
        return Err(OciError::Bomb { digest, limit: whole }.into());
    }
    Ok((length, packed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::Limits;

    #[tokio::test]
    async fn layers_of_one_image_have_one_room() {
        let (plain, directory) = (vec![7_u8; 50_000], tempfile::tempdir().unwrap());
        let packed: Bytes = zstd::encode_all(&plain[..], 3).unwrap().into();
        let limits = Limits {
            free: 0,
            ..Limits::default()
        };
        let store = Store::open(&directory.path().join("s"), limits).unwrap();
        let digest = Digest::of(&packed);
        let (id, upload) = store.upload(&mut None).unwrap();
        let body = stream::iter([Ok::<_, std::io::Error>(packed.clone())]);
        store.spool.append(&upload, None, None, body).await.unwrap();
        store.spool.finish(&id, &upload, &digest).await.unwrap();
        let blob = store.spool.blob(&digest).unwrap();
        let descriptor: Descriptor = serde_json::from_value(serde_json::json!({
            "mediaType": "x", "digest": digest, "size": packed.len(),
        }))
        .unwrap();
        let (diff_id, total) = (Digest::of(&plain), AtomicU64::new(0));
        for count in 1..=3 {
            let found = compared(&descriptor, &blob, &diff_id, &store, &total).await;
            assert_eq!(found.unwrap(), (50_000, true));
            assert_eq!(total.load(Ordering::Relaxed), count * 50_000);
        }
        // However little each of them takes.
        total.store(u64::MAX / 2, Ordering::Relaxed);
        let found = compared(&descriptor, &blob, &diff_id, &store, &total).await;
        let refused = matches!(found, Err(ClientError::Oci(OciError::NoSpace { .. })));
        assert!(refused, "{found:?}");
    }
}
