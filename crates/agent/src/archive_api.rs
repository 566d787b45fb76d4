//! `HEAD|GET|PUT …/archive`: in tranship's own API, and as docker's clients ask for it.
//!
//! Where docker's versions disagree about the status of a failure: a path in a read-only place is 403 (its documentation; in
//! fact 500 up to version 28, and 400 since), a place to unpack at that is no directory is 400 (500 before), and what would
//! replace a directory by a file or the other way round is 409 (docker: 500). Docker's own client shows the message only.

use std::io::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{Stream, StreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming as RequestBody;
use tranship_archive::compression::{Encoder, Format};
use tranship_core::Fault;
use tranship_core::fault::FaultKind;
use tranship_core::ids::ContainerName;
use tranship_wire::PeerIdentity;
use tranship_wire::h2::{self, Body, Handler};

use crate::files::bridge::{self, Pieces};
use crate::files::{Holder, PathRequest, RemoteStat, delta};
use crate::state::Agent;

/// The status that fits a fault.
fn status_of(fault: &Fault) -> StatusCode {
    let code = fault.code.as_str();
    match code {
        _ if code.ends_with(".not-found") => StatusCode::NOT_FOUND,
        "request.path" | "request.invalid" => StatusCode::BAD_REQUEST,
        "file.read-only" => StatusCode::FORBIDDEN,
        "container.changed"
        | "container.moving"
        | "archive.overwrite-directory"
        | "archive.overwrite-non-directory" => StatusCode::CONFLICT,
        "archive.not-a-directory" if fault.message.starts_with("extraction point") => StatusCode::BAD_REQUEST,
        _ if code.starts_with("archive.filter-") => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

pub(crate) fn with_stat(stat: &RemoteStat) -> Result<HeaderMap, Fault> {
    let mut headers = HeaderMap::new();
    let value = HeaderValue::from_str(&stat.to_header()?)
        .map_err(|e| Fault::new("stat.header", FaultKind::Bug, e.to_string()))?;
    headers.insert(HeaderName::from_static(RemoteStat::HEADER), value);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/x-tar"),
    );
    Ok(headers)
}

/// Answers in tranship's own API: faults as they are.
pub(crate) async fn answer(
    agent: &Arc<Agent>,
    holder: Holder,
    request: Request<RequestBody>,
) -> Response<Body> {
    let asks = |word: &str| {
        request.method() == Method::GET
            && request
                .uri()
                .query()
                .is_some_and(|query| query.split('&').any(|part| part == word))
    };
    let (stat, glob) = (asks("stat=true"), asks("glob=true"));
    let head = request.method() == Method::HEAD;
    let done = if request.method() == Method::POST {
        compare(agent, &holder, request).await
    } else if stat || glob {
        match PathRequest::from_query(request.uri().query().unwrap_or_default()) {
            Ok(asked) if glob => agent
                .find(&holder, &asked.path)
                .await
                .map(|paths| h2::json_response(&paths)),
            Ok(asked) => agent
                .path_stat(&holder, &asked.path)
                .await
                .map(|stat| h2::json_response(&stat)),
            Err(fault) => Err(fault),
        }
    } else {
        respond(agent, &holder, request).await
    };
    bare(
        head,
        done.unwrap_or_else(|fault| h2::fault_response_with(status_of(&fault), &fault)),
    )
}

/// `POST`: with `index=true`, what is here of the files whose names come; else an archive without what the index has that comes.
async fn compare(
    agent: &Arc<Agent>,
    holder: &Holder,
    request: Request<RequestBody>,
) -> Result<Response<Body>, Fault> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let asked = PathRequest::from_query(&query)?;
    let for_index = query.split('&').any(|part| part == "index=true");
    let most = delta::LARGEST_INDEX.max(delta::LARGEST_LIST);
    let body = collected(h2::read_stream(request), most).await?;
    let pieces = if for_index {
        let names = delta::read_names(&body)?;
        agent.index(holder, &asked.path, names).await?
    } else {
        let index = delta::Index::parse(&body)?;
        drop(body);
        agent.pack_against(holder, &asked, index).await?.1
    };
    Ok(h2::stream_response(HeaderMap::new(), pieces))
}

/// All of a stream that is not longer than `most` bytes.
///
/// # Errors
/// `request.invalid` if it is; what the stream says.
pub(crate) async fn collected<E: Into<Fault>>(
    mut stream: impl Stream<Item = Result<bytes::Bytes, E>> + Unpin,
    most: usize,
) -> Result<Vec<u8>, Fault> {
    let mut all = Vec::new();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(Into::into)?;
        if all.len() + piece.len() > most {
            let text = format!("more than {most} bytes came where that is the most");
            return Err(Fault::new("request.invalid", FaultKind::Usage, text));
        }
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

/// The answer without its body if it is one to `HEAD`, which has none: over HTTP/2 one would break the stream.
pub(crate) fn bare(head: bool, mut response: Response<Body>) -> Response<Body> {
    if head {
        *response.body_mut() = h2::full_body(Vec::new());
    }
    response
}

async fn respond(
    agent: &Arc<Agent>,
    holder: &Holder,
    request: Request<RequestBody>,
) -> Result<Response<Body>, Fault> {
    let asked = PathRequest::from_query(request.uri().query().unwrap_or_default())?;
    match *request.method() {
        Method::HEAD => {
            let stat = agent.path_stat(holder, &asked.path).await?;
            let mut response = Response::new(h2::full_body(Vec::new()));
            response.headers_mut().extend(with_stat(&stat)?);
            Ok(response)
        }
        Method::GET => {
            let zip = request
                .headers()
                .get(header::ACCEPT_ENCODING)
                .and_then(|value| value.to_str().ok())
                .is_some_and(accepts_gzip);
            let (stat, pieces) = agent.pack(holder, &asked).await?;
            let mut headers = with_stat(&stat)?;
            let pieces = if zip {
                headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                gzip(pieces).await?
            } else {
                pieces
            };
            let mut response = h2::stream_response(HeaderMap::new(), pieces);
            for (name, value) in headers {
                if let Some(name) = name {
                    response.headers_mut().insert(name, value);
                }
            }
            Ok(response)
        }
        Method::PUT => {
            let wanted = request.version() < http::Version::HTTP_2;
            let body = Rest::new(h2::read_stream(request), wanted);
            let (agent, holder) = (Arc::clone(agent), holder.clone());
            // It is finished in order even if the caller goes away: a stream that breaks off is an error of its own.
            let task = tokio::spawn(async move { agent.unpack(&holder, &asked, body).await });
            let done = task
                .await
                .unwrap_or_else(|e| Err(Fault::new("agent.task", FaultKind::Bug, e.to_string())))?;
            Ok(h2::json_response(&done))
        }
        _ => Err(Fault::new("request.invalid", FaultKind::Usage, "no such method")),
    }
}

/// How long the rest of an upload that was refused is read on.
const REST: Duration = Duration::from_secs(10);

/// An upload that is read to its end even if its archive was refused before: over HTTP/1.1, a client that is still sending would
/// see a broken connection in place of the answer.
pub(crate) struct Rest<S: Stream + Unpin + Send + 'static> {
    body: Option<S>,
    wanted: bool,
}

impl<S: Stream + Unpin + Send + 'static> Rest<S> {
    pub(crate) fn new(body: S, wanted: bool) -> Self {
        Self {
            body: Some(body),
            wanted,
        }
    }
}

impl<S: Stream + Unpin + Send + 'static> Stream for Rest<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Option<S::Item>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_next(context),
            None => Poll::Ready(None),
        }
    }
}

impl<S: Stream + Unpin + Send + 'static> Drop for Rest<S> {
    fn drop(&mut self) {
        if let (true, Some(mut body), Ok(runtime)) = (
            self.wanted,
            self.body.take(),
            tokio::runtime::Handle::try_current(),
        ) {
            runtime.spawn(tokio::time::timeout(REST, async move {
                while body.next().await.is_some() {}
            }));
        }
    }
}

/// Whether gzip is asked for, and not just tolerated by a star.
fn accepts_gzip(value: &str) -> bool {
    value.split(',').any(|part| {
        let mut words = part.split(';').map(str::trim);
        let name = words.next().unwrap_or_default();
        name.eq_ignore_ascii_case("gzip") && !words.any(|word| matches!(word, "q=0" | "q=0.0"))
    })
}

async fn gzip(pieces: Pieces) -> Result<Pieces, Fault> {
    let mut reader = bridge::reader(pieces);
    bridge::writer(move |out| {
        let failed = |e: std::io::Error| Fault::new("archive.write", FaultKind::Environment, e.to_string());
        let mut encoder = Encoder::new(out, Format::Gzip, Some(1))?;
        std::io::copy(&mut reader, &mut encoder).map_err(failed)?;
        encoder.flush().map_err(failed)?;
        encoder.finish().map_err(failed)?;
        Ok(())
    })
    .await
}

/// Answers docker's clients: what they need for `docker cp`, and nothing else.
pub struct DockerHandler {
    /// The agent.
    pub agent: Arc<Agent>,
}

/// The version of docker's API whose archive calls these are; they are the same since 1.20.
const API_VERSION: &str = "1.41";

fn docker_fault(fault: &Fault) -> Response<Body> {
    let mut response = h2::json_response(&serde_json::json!({ "message": fault.message }));
    *response.status_mut() = status_of(fault);
    response
}

#[async_trait]
impl Handler for DockerHandler {
    async fn handle(&self, request: Request<RequestBody>, _peer: &PeerIdentity) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let mut parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        if parts.first().is_some_and(|part| is_version(part)) {
            parts.remove(0);
        }
        let mut response = match parts.as_slice() {
            ["_ping"] => {
                let mut response = Response::new(h2::full_body(if *request.method() == Method::HEAD {
                    ""
                } else {
                    "OK"
                }));
                let text = HeaderValue::from_static("text/plain; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, text);
                response
            }
            ["containers", name, "archive"] => match ContainerName::new(*name) {
                Ok(name) => {
                    let done = respond(&self.agent, &Holder::Container(name), request).await;
                    let put =
                        matches!(&done, Ok(response) if response.headers().get(RemoteStat::HEADER).is_none());
                    match done {
                        // Docker says nothing after an upload.
                        Ok(_) if put => Response::new(h2::full_body("")),
                        Ok(response) => response,
                        Err(fault) => docker_fault(&fault),
                    }
                }
                Err(_) => docker_fault(&Fault::new(
                    "container.not-found",
                    FaultKind::Environment,
                    format!("No such container: {name}"),
                )),
            },
            _ => docker_fault(&Fault::new(
                "page.not-found",
                FaultKind::Environment,
                "page not found: tranship answers only what docker cp asks",
            )),
        };
        response
            .headers_mut()
            .insert("api-version", HeaderValue::from_static(API_VERSION));
        response
            .headers_mut()
            .insert("ostype", HeaderValue::from_static("linux"));
        response
    }
}

fn is_version(part: &str) -> bool {
    part.strip_prefix('v')
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()) && rest.contains('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_has_to_be_asked_for() {
        assert!(accepts_gzip("gzip") && accepts_gzip("deflate, GZIP;q=0.5"));
        assert!(!accepts_gzip("*") && !accepts_gzip("gzip;q=0") && !accepts_gzip("identity"));
    }

    #[test]
    fn versions_are_told_from_names() {
        assert!(is_version("v1.41") && !is_version("containers") && !is_version("v1"));
    }
}
