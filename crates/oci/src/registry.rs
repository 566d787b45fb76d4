//! The registry: tells requests apart, and puts what came of them into answers.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use serde_json::json;
use tranship_core::engine::ByteStream;
use tranship_core::fault::Explain as _;

use crate::access::Credentials;
use crate::error::OciError;
use crate::held::Held;
use crate::name::{Reference, Repository, digest};
use crate::port::Images;
use crate::spool::{Limits, Spool};

pub(crate) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// The body of an answer.
pub enum Answer {
    /// All of it.
    Full(Bytes),
    /// Bit by bit; an error must reach the client as a broken connection.
    Stream(ByteStream),
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full(bytes) => f.debug_tuple("Full").field(bytes).finish(),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// A registry over an engine's images.
pub struct Registry {
    pub(crate) held: Held,
    pub(crate) spool: Option<Spool>,
    access: Option<Credentials>,
    /// How many manifests are taken in at once: each may unpack large layers.
    pub(crate) imports: tokio::sync::Semaphore,
    /// Held by who gives a tag, or removes what has none.
    pub(crate) naming: tokio::sync::Mutex<()>,
}

/// How many manifests are taken in at once.
const IMPORTS: usize = 2;

impl Registry {
    /// A registry that is only read. Without `access` it lets everybody in.
    #[must_use]
    pub fn reading(images: Arc<dyn Images>, access: Option<Credentials>) -> Self {
        Self {
            held: Held::new(images),
            spool: None,
            access,
            imports: tokio::sync::Semaphore::new(IMPORTS),
            naming: tokio::sync::Mutex::default(),
        }
    }

    /// A registry that takes images in as well. The directory is for it alone; whatever is in it is removed. Blocks.
    ///
    /// # Errors
    /// [`OciError::Spool`].
    pub fn writing(
        images: Arc<dyn Images>,
        access: Option<Credentials>,
        spool: &Path,
        limits: Limits,
    ) -> Result<Self, OciError> {
        Ok(Self {
            spool: Some(Spool::open(spool, limits)?),
            ..Self::reading(images, access)
        })
    }

    /// Drops uploads, blobs and manifests that nobody asked for in a while. Who serves calls it now and then; it is done at every
    /// upload as well.
    pub fn sweep(&self) {
        if let Some(spool) = &self.spool {
            spool.sweep();
        }
    }

    /// Answers one request.
    pub async fn answer<S, E>(&self, request: Request<S>) -> Response<Answer>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + Unpin,
        E: std::fmt::Display + Send,
    {
        let head = *request.method() == Method::HEAD;
        let mut response = match self.admitted(request.headers()).await {
            true => match self.route(request).await {
                Ok(response) => response,
                Err(error) => refusal(&error),
            },
            false => unauthorized(),
        };
        response
            .headers_mut()
            .insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        if head {
            *response.body_mut() = Answer::Full(Bytes::new());
        }
        response
    }

    async fn admitted(&self, headers: &HeaderMap) -> bool {
        match &self.access {
            None => true,
            Some(access) => access.allow(text(headers, &header::AUTHORIZATION)).await,
        }
    }

    async fn route<S, E>(&self, request: Request<S>) -> Result<Response<Answer>, OciError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + Unpin,
        E: std::fmt::Display + Send,
    {
        let (parts, body) = request.into_parts();
        let Some(path) = parts.uri.path().strip_prefix("/v2") else {
            return Err(nothing_there());
        };
        let query = Query::of(parts.uri.query());
        let read = parts.method == Method::GET || parts.method == Method::HEAD;
        if matches!(path, "" | "/") && read {
            return Ok(json_answer(StatusCode::OK, &json!({})));
        }
        let segments: Vec<&str> = path.strip_prefix('/').unwrap_or_default().split('/').collect();
        let repository = |name: &[&str]| Repository::new(&name.join("/"));
        let method = parts.method.as_str();
        match (segments.as_slice(), method) {
            (["_catalog"], "GET" | "HEAD") => self.catalog(&query).await,
            ([name @ .., "tags", "list"], "GET" | "HEAD") => self.tags(&repository(name)?, &query).await,
            ([name @ .., "blobs", "uploads"] | [name @ .., "blobs", "uploads", ""], "POST") => {
                self.begin_upload(&repository(name)?, &query, &parts.headers, body)
                    .await
            }
            ([name @ .., "blobs", "uploads", id], _) => {
                let name = repository(name)?;
                match method {
                    "GET" => self.upload_status(&name, id).await,
                    "PATCH" => self.continue_upload(&name, id, &parts.headers, body).await,
                    "PUT" => self.end_upload(&name, id, &query, &parts.headers, body).await,
                    "DELETE" => self.give_up_upload(&name, id),
                    _ => Err(no_such_method()),
                }
            }
            ([name @ .., "manifests", reference], _) => {
                let (name, reference) = (repository(name)?, Reference::new(reference)?);
                match method {
                    "GET" | "HEAD" => self.manifest(&name, &reference, &parts.headers).await,
                    "PUT" => self.put_manifest(&name, &reference, &parts.headers, body).await,
                    "DELETE" => self.delete_manifest(&name, &reference).await,
                    _ => Err(no_such_method()),
                }
            }
            ([name @ .., "blobs", blob], _) => {
                let (_, blob) = (repository(name)?, digest(blob)?);
                match method {
                    "GET" => self.blob(&blob, &parts.headers, false).await,
                    "HEAD" => self.blob(&blob, &parts.headers, true).await,
                    "DELETE" => self.delete_blob(&blob).await,
                    _ => Err(no_such_method()),
                }
            }
            ([name @ .., "referrers", subject], "GET" | "HEAD") => {
                let (_, _) = (repository(name)?, digest(subject)?);
                Ok(no_referrers())
            }
            _ => Err(nothing_there()),
        }
    }

    /// The spool, where images may come in.
    pub(crate) fn writable(&self) -> Result<&Spool, OciError> {
        self.spool.as_ref().ok_or_else(|| OciError::Unsupported {
            message: "this registry is only read".into(),
        })
    }
}

fn nothing_there() -> OciError {
    OciError::NoName {
        name: "at this path".into(),
    }
}

fn no_such_method() -> OciError {
    OciError::Unsupported {
        message: "this cannot be done here".into(),
    }
}

/// The words behind the question mark.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    fn of(text: Option<&str>) -> Self {
        let pairs = form_urlencoded::parse(text.unwrap_or_default().as_bytes());
        Self(pairs.into_owned().collect())
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }
}

/// A header's text, if it is text.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// What is put into a header here is digests, numbers and paths of checked parts.
pub(crate) fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

/// An answer without a body.
pub(crate) fn bare(status: StatusCode) -> Response<Answer> {
    let mut response = Response::new(Answer::Full(Bytes::new()));
    *response.status_mut() = status;
    response
}

pub(crate) fn full(status: StatusCode, content_type: &str, bytes: Bytes) -> Response<Answer> {
    let mut response = bare(status);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, value(content_type));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    *response.body_mut() = Answer::Full(bytes);
    response
}

pub(crate) fn json_answer(status: StatusCode, document: &serde_json::Value) -> Response<Answer> {
    full(status, "application/json", document.to_string().into())
}

/// No image here has anything that refers to it.
fn no_referrers() -> Response<Answer> {
    let index = json!({
        "schemaVersion": 2,
        "mediaType": crate::document::media::INDEX,
        "manifests": [],
    });
    full(
        StatusCode::OK,
        crate::document::media::INDEX,
        index.to_string().into(),
    )
}

fn errors(status: StatusCode, code: &str, message: &str, detail: &str) -> Response<Answer> {
    let error = json!({ "code": code, "message": message, "detail": detail });
    json_answer(status, &json!({ "errors": [error] }))
}

/// A failure in the specification's form; `detail` is tranship's own code for it.
fn refusal(error: &OciError) -> Response<Answer> {
    let (status, code) = error.answer();
    if status.is_server_error() {
        tracing::warn!(
            error = error as &dyn std::error::Error,
            code = error.code(),
            "a request failed"
        );
    }
    let mut response = errors(status, code, &error.to_string(), error.code());
    match error {
        OciError::Range { length } => {
            let range = value(&format!("bytes */{length}"));
            response.headers_mut().insert(header::CONTENT_RANGE, range);
        }
        OciError::Order { at, .. } => {
            response
                .headers_mut()
                .insert(header::RANGE, crate::upload::range(*at));
        }
        _ => {}
    }
    response
}

fn unauthorized() -> Response<Answer> {
    let mut response = errors(
        StatusCode::UNAUTHORIZED,
        "UNAUTHORIZED",
        "name and password are needed, or wrong",
        "oci.unauthorized",
    );
    let basic = HeaderValue::from_static("Basic realm=\"tranship\", charset=\"UTF-8\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, basic);
    response
}
