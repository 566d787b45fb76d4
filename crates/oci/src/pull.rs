//! Reading: catalog, tags, manifests, blobs.

use std::collections::BTreeSet;

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::json;
use tranship_core::ImageSpec;
use tranship_core::ids::Digest;

use crate::document::{Form, media};
use crate::error::OciError;
use crate::held::{Document, HeldBlob};
use crate::name::{Reference, Repository, Tag};
use crate::range::{Wanted, wanted};
use crate::registry::{Answer, CONTENT_DIGEST, Query, Registry, bare, full, json_answer, text, value};
use crate::spool;

/// Names in one answer, where the client does not say or says more.
const PAGE: usize = 1000;

impl Registry {
    pub(crate) async fn catalog(&self, query: &Query) -> Result<Response<Answer>, OciError> {
        let names: BTreeSet<String> = self
            .held
            .list()
            .await?
            .images
            .iter()
            .flat_map(|image| &image.tags)
            .filter_map(|tag| Repository::of_local(tag))
            .map(|(name, _)| name.as_str().to_owned())
            .collect();
        page(
            "/v2/_catalog",
            query,
            names,
            |names| json!({ "repositories": names }),
        )
    }

    pub(crate) async fn tags(&self, name: &Repository, query: &Query) -> Result<Response<Answer>, OciError> {
        let tags: BTreeSet<String> = self
            .held
            .list()
            .await?
            .images
            .iter()
            .flat_map(|image| &image.tags)
            .filter_map(|local| {
                let (_, tag) = Repository::of_local(local)?;
                // `library/app` lists the tags of `app`.
                (name.local(&tag).ok()? == *local).then(|| tag.as_str().to_owned())
            })
            .collect();
        if tags.is_empty() {
            return Err(OciError::NoName {
                name: name.as_str().to_owned(),
            });
        }
        let path = format!("/v2/{}/tags/list", name.as_str());
        page(
            &path,
            query,
            tags,
            |tags| json!({ "name": name.as_str(), "tags": tags }),
        )
    }

    pub(crate) async fn manifest(
        &self,
        name: &Repository,
        reference: &Reference,
        headers: &HeaderMap,
    ) -> Result<Response<Answer>, OciError> {
        let document = match reference {
            Reference::Tag(tag) => {
                let Some(image) = self.meant(name, tag).await? else {
                    return Err(OciError::NoManifest {
                        what: format!("{}:{}", name.as_str(), tag.as_str()),
                    });
                };
                let accept = headers.get_all(header::ACCEPT).iter();
                let form = Form::accepted(accept.filter_map(|value| value.to_str().ok()));
                self.held.manifest(&image, form).await?
            }
            Reference::Digest(digest) => self.document(digest).await?,
        };
        let mut response = full(StatusCode::OK, &document.media_type, document.bytes);
        let headers = response.headers_mut();
        headers.insert(CONTENT_DIGEST, value(document.digest.as_str()));
        headers.insert(header::ETAG, value(&format!("\"{}\"", document.digest)));
        Ok(response)
    }

    /// The image that a tag means. The 64 digits of an image's id, which have the form of a tag, mean that image in every repository,
    /// unless they are a tag there: clients have no other words for an image without a tag.
    async fn meant(&self, name: &Repository, tag: &Tag) -> Result<Option<ImageSpec>, OciError> {
        let local = name.local(tag)?;
        let image = self.held.images.find(&local).await?;
        if let Some(image) = image.filter(|image| image.tags.contains(&local)) {
            return Ok(Some(image));
        }
        let Ok(id) = Digest::new(format!("sha256:{}", tag.as_str())) else {
            return Ok(None);
        };
        let image = self.held.images.find(id.as_str()).await?;
        Ok(image.filter(|image| image.id == id))
    }

    /// The manifest or index of this digest: as it was pushed, as it is kept, or ours.
    pub(crate) async fn document(&self, digest: &Digest) -> Result<Document, OciError> {
        if let Some(document) = self.spool.as_ref().and_then(|spool| spool.document(digest)) {
            return Ok(document);
        }
        match self.held.manifest_of(digest).await? {
            Some((_, document)) => Ok(document),
            None => Err(OciError::NoManifest {
                what: digest.to_string(),
            }),
        }
    }

    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        headers: &HeaderMap,
        head: bool,
    ) -> Result<Response<Answer>, OciError> {
        let spooled = self.spool.as_ref().and_then(|spool| spool.blob(digest));
        let held = match &spooled {
            Some(_) => None,
            // What is said to be here is not uploaded.
            None if head => self.held.present(digest).await?,
            None => self.held.blob(digest).await?,
        };
        let length = match (&spooled, &held) {
            (Some(blob), _) => blob.length,
            (None, Some(blob)) => blob.length(),
            (None, None) => {
                return Err(OciError::NoBlob {
                    digest: digest.to_string(),
                });
            }
        };
        let (start, end, status) = match wanted(text(headers, &header::RANGE), length) {
            Wanted::Whole => (0, length, StatusCode::OK),
            // HEAD knows no ranges.
            Wanted::Part { .. } if head => (0, length, StatusCode::OK),
            Wanted::Part { start, end } => (start, end, StatusCode::PARTIAL_CONTENT),
            Wanted::Impossible => return Err(OciError::Range { length }),
        };
        let mut response = bare(status);
        let fields = response.headers_mut();
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static(media::BYTES));
        fields.insert(header::CONTENT_LENGTH, HeaderValue::from(end - start));
        fields.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        fields.insert(header::ETAG, value(&format!("\"{digest}\"")));
        fields.insert(CONTENT_DIGEST, value(digest.as_str()));
        if status == StatusCode::PARTIAL_CONTENT {
            // `end` is behind the last byte, and a part is never empty.
            let range = format!("bytes {start}-{}/{length}", end - 1);
            fields.insert(header::CONTENT_RANGE, value(&range));
        }
        if head {
            return Ok(response);
        }
        *response.body_mut() = match (spooled, held) {
            (Some(blob), _) => Answer::Stream(spool::stream(&blob, start, end)?),
            (None, Some(HeldBlob::Config(bytes))) => {
                let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                Answer::Full(bytes.slice(at(start)..at(end)))
            }
            (None, Some(HeldBlob::Layer { image, index, .. })) => {
                let layer = self.held.images.layer(&image, index, start).await?;
                Answer::Stream(if end < length {
                    first(layer, end - start)
                } else {
                    layer
                })
            }
            (None, Some(HeldBlob::Kept(blob))) => {
                let part = self.held.kept_part(&blob, start..end).await?;
                Answer::Stream(part.ok_or_else(|| OciError::NoBlob {
                    digest: digest.to_string(),
                })?)
            }
            (None, None) => Answer::Full(bytes::Bytes::new()),
        };
        Ok(response)
    }
}

/// The first `length` bytes of a stream.
fn first(stream: tranship_core::engine::ByteStream, length: u64) -> tranship_core::engine::ByteStream {
    use futures_util::StreamExt as _;
    let cut = stream.scan(length, |left, piece| {
        let cut = (*left > 0).then(|| {
            piece.map(|mut piece: bytes::Bytes| {
                piece.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= piece.len() as u64;
                piece
            })
        });
        futures_util::future::ready(cut)
    });
    Box::pin(cut)
}

/// One page of names in order, with the way to the next one (`Link`, RFC 8288).
fn page(
    path: &str,
    query: &Query,
    names: BTreeSet<String>,
    document: impl FnOnce(&[String]) -> serde_json::Value,
) -> Result<Response<Answer>, OciError> {
    let n = match query.get("n") {
        None => PAGE,
        Some(n) if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => {
            // More than fits is more than there is.
            n.parse().unwrap_or(PAGE).min(PAGE)
        }
        Some(n) => {
            return Err(OciError::Request {
                message: format!("n is a number, not {n:?}"),
            });
        }
    };
    let last = query.get("last").unwrap_or_default();
    let mut rest = names.into_iter().filter(|name| name.as_str() > last);
    let shown: Vec<String> = rest.by_ref().take(n).collect();
    let mut response = json_answer(StatusCode::OK, &document(&shown));
    if let (Some(last), Some(_)) = (shown.last(), rest.next()) {
        // Names and tags need no escaping in a query: a slash is allowed there.
        let link = format!("<{path}?n={n}&last={last}>; rel=\"next\"");
        response.headers_mut().insert(header::LINK, value(&link));
    }
    Ok(response)
}
