//! Uploads of blobs: in one request or in pieces.

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use tranship_core::ids::Digest;

use crate::error::OciError;
use crate::name::{Repository, digest};
use crate::range::piece;
use crate::registry::{Answer, CONTENT_DIGEST, Query, Registry, bare, text, value};

const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// The `Range` header of an upload at which `at` bytes are there: the last byte is named, so that none and one look alike.
pub(crate) fn range(at: u64) -> HeaderValue {
    value(&format!("0-{}", at.saturating_sub(1)))
}

fn standing(status: StatusCode, name: &Repository, id: &str, at: u64) -> Response<Answer> {
    let mut response = bare(status);
    let headers = response.headers_mut();
    let location = format!("/v2/{}/blobs/uploads/{id}", name.as_str());
    headers.insert(header::LOCATION, value(&location));
    headers.insert(header::RANGE, range(at));
    headers.insert(UPLOAD_ID, value(id));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    response
}

fn created(name: &Repository, blob: &Digest) -> Response<Answer> {
    let mut response = bare(StatusCode::CREATED);
    let headers = response.headers_mut();
    let location = format!("/v2/{}/blobs/{blob}", name.as_str());
    headers.insert(header::LOCATION, value(&location));
    headers.insert(CONTENT_DIGEST, value(blob.as_str()));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    response
}

/// How long the body is said to be.
fn announced(headers: &HeaderMap) -> Result<Option<u64>, OciError> {
    let Some(length) = headers.get(header::CONTENT_LENGTH) else {
        return Ok(None);
    };
    let length = length.to_str().ok().and_then(|text| text.parse().ok());
    length.map(Some).ok_or_else(|| OciError::Request {
        message: "Content-Length is not a number".into(),
    })
}

/// Where a piece begins, and how long it is, where that is told.
fn extent(headers: &HeaderMap) -> Result<(Option<u64>, Option<u64>), OciError> {
    let length = announced(headers)?;
    let Some(text) = text(headers, &header::CONTENT_RANGE) else {
        return Ok((None, length));
    };
    let upload = |message: String| OciError::Upload { message };
    let (start, last) =
        piece(text).ok_or_else(|| upload(format!("Content-Range is START-LAST, not {text:?}")))?;
    let told = last - start + 1;
    if length.is_some_and(|length| length != told) {
        return Err(upload("Content-Range and Content-Length disagree".into()));
    }
    Ok((Some(start), Some(told)))
}

impl Registry {
    pub(crate) async fn begin_upload<S, E>(
        &self,
        name: &Repository,
        query: &Query,
        headers: &HeaderMap,
        body: S,
    ) -> Result<Response<Answer>, OciError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let spool = self.writable()?;
        if let Some(mount) = query.get("mount") {
            let mount = digest(mount)?;
            if spool.blob(&mount).is_some() || self.held.present(&mount).await?.is_some() {
                return Ok(created(name, &mount));
            }
        }
        let Some(wanted) = query.get("digest") else {
            let (id, _) = spool.begin(name)?;
            return Ok(standing(StatusCode::ACCEPTED, name, &id, 0));
        };
        let wanted = digest(wanted)?;
        let (id, upload) = spool.begin(name)?;
        let came = spool.append(&upload, None, announced(headers)?, body).await;
        if let Err(error) = came {
            // Nobody knows its name.
            spool.give_up(&id);
            return Err(error);
        }
        spool.finish(&id, &upload, &wanted).await?;
        Ok(created(name, &wanted))
    }

    pub(crate) async fn upload_status(
        &self,
        name: &Repository,
        id: &str,
    ) -> Result<Response<Answer>, OciError> {
        let upload = self.writable()?.upload(name, id)?;
        let at = upload.lock().await.at;
        Ok(standing(StatusCode::NO_CONTENT, name, id, at))
    }

    pub(crate) async fn continue_upload<S, E>(
        &self,
        name: &Repository,
        id: &str,
        headers: &HeaderMap,
        body: S,
    ) -> Result<Response<Answer>, OciError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let spool = self.writable()?;
        let upload = spool.upload(name, id)?;
        let (from, length) = extent(headers)?;
        let at = spool.append(&upload, from, length, body).await?;
        Ok(standing(StatusCode::ACCEPTED, name, id, at))
    }

    pub(crate) async fn end_upload<S, E>(
        &self,
        name: &Repository,
        id: &str,
        query: &Query,
        headers: &HeaderMap,
        body: S,
    ) -> Result<Response<Answer>, OciError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let spool = self.writable()?;
        let upload = spool.upload(name, id)?;
        let wanted = query.get("digest").ok_or_else(|| OciError::Digest {
            message: "an upload ends with ?digest=".into(),
        })?;
        let wanted = digest(wanted)?;
        let (from, length) = extent(headers)?;
        spool.append(&upload, from, length, body).await?;
        spool.finish(id, &upload, &wanted).await?;
        Ok(created(name, &wanted))
    }

    pub(crate) fn give_up_upload(&self, name: &Repository, id: &str) -> Result<Response<Answer>, OciError> {
        let spool = self.writable()?;
        spool.upload(name, id)?;
        spool.give_up(id);
        Ok(bare(StatusCode::NO_CONTENT))
    }

    pub(crate) async fn delete_blob(&self, blob: &Digest) -> Result<Response<Answer>, OciError> {
        if self.writable()?.drop_blob(blob) {
            return Ok(bare(StatusCode::ACCEPTED));
        }
        match self.held.blob(blob).await? {
            Some(_) => Err(OciError::Unsupported {
                message: "a layer goes when no image of the engine needs it any more".into(),
            }),
            None => Err(OciError::NoBlob {
                digest: blob.to_string(),
            }),
        }
    }
}
