//! `HEAD|GET|PUT /v1/elements/STORE/ID/archive`.
//!
//! | status | means |
//! |---|---|
//! | 200 | done |
//! | 400 | the id is no path, or the query is no filter |
//! | 403 | nothing can be written there |
//! | 404 | no such store, container, volume, directory, snapshot or path |
//! | 409 | the container does not run, is being moved, or was stopped or started meanwhile; a directory would replace something else, or the other way round; a mount covers the place |
//! | 422 | the filter does not fit what it is applied to, the element has no such ancestor, or the archive is none |
//! | 500 | the system or the engine failed |

use std::sync::Arc;

use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Incoming as RequestBody;
use tranship_core::Fault;
use tranship_core::fault::FaultKind;
use tranship_wire::h2::{self, Body};

use super::request::{Element, ElementRequest};
use crate::archive_api::{bare, with_stat};
use crate::files::bridge;
use crate::state::Agent;

/// What the system says about a file, not about an archive.
const SYSTEM: [&str; 7] = [
    "archive.no-space",
    "archive.link-refused",
    "archive.path-races",
    "archive.permission",
    "archive.system",
    "archive.read",
    "archive.write",
];

fn status_of(fault: &Fault) -> StatusCode {
    let code = fault.code.as_str();
    match code {
        _ if code.ends_with(".not-found") => StatusCode::NOT_FOUND,
        "request.path" | "request.invalid" => StatusCode::BAD_REQUEST,
        "archive.filter-outside" => StatusCode::UNPROCESSABLE_ENTITY,
        _ if code.starts_with("archive.filter-") => StatusCode::BAD_REQUEST,
        "file.read-only" | "archive.read-only" => StatusCode::FORBIDDEN,
        "container.changed"
        | "container.moving"
        | "container.not-running"
        | "element.covered"
        | "archive.busy"
        | "archive.not-a-directory"
        | "archive.overwrite-directory"
        | "archive.overwrite-non-directory" => StatusCode::CONFLICT,
        "element.stat" | "element.ancestor" => StatusCode::UNPROCESSABLE_ENTITY,
        _ if SYSTEM.contains(&code) => StatusCode::INTERNAL_SERVER_ERROR,
        _ if code.starts_with("archive.") => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Answers for one storage element. `HEAD` says what is at the included path, or at its root.
pub(crate) async fn answer(
    agent: &Arc<Agent>,
    store: &str,
    id: &str,
    request: Request<RequestBody>,
) -> Response<Body> {
    let head = request.method() == Method::HEAD;
    let done = match Element::parse(store, id) {
        Ok(element) => respond(agent, element, request).await,
        Err(fault) => Err(fault),
    };
    bare(
        head,
        done.unwrap_or_else(|fault| h2::fault_response_with(status_of(&fault), &fault)),
    )
}

async fn respond(
    agent: &Arc<Agent>,
    element: Element,
    request: Request<RequestBody>,
) -> Result<Response<Body>, Fault> {
    let asked = ElementRequest::from_query(request.uri().query().unwrap_or_default())?;
    match *request.method() {
        Method::HEAD => {
            let stat = agent.element_stat(&element, &asked.spec).await?;
            let mut response = Response::new(h2::full_body(Vec::new()));
            response.headers_mut().extend(with_stat(&stat)?);
            Ok(response)
        }
        Method::GET => {
            let pieces = agent.pack_element(&element, asked).await?;
            let mut response = h2::stream_response(HeaderMap::new(), pieces);
            let tar = http::HeaderValue::from_static("application/x-tar");
            response.headers_mut().insert(http::header::CONTENT_TYPE, tar);
            Ok(response)
        }
        Method::PUT => {
            let archive = bridge::reader(h2::read_stream(request));
            let agent = Arc::clone(agent);
            // It is finished in order even if the caller goes away.
            let task = tokio::spawn(async move { agent.unpack_element(&element, asked, archive).await });
            let done = task
                .await
                .unwrap_or_else(|e| Err(Fault::new("agent.task", FaultKind::Bug, e.to_string())))?;
            Ok(h2::json_response(&done))
        }
        _ => Err(Fault::new("request.invalid", FaultKind::Usage, "no such method")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_failure_has_its_status() {
        for (code, status) in [
            ("request.path", 400),
            ("archive.filter-key", 400),
            ("file.read-only", 403),
            ("archive.read-only", 403),
            ("store.not-found", 404),
            ("archive.not-found", 404),
            ("snapshot.not-found", 404),
            ("container.changed", 409),
            ("container.moving", 409),
            ("container.not-running", 409),
            ("archive.overwrite-directory", 409),
            ("element.covered", 409),
            ("element.ancestor", 422),
            ("element.stat", 422),
            ("archive.filter-outside", 422),
            ("archive.link-target-filtered", 422),
            ("archive.checksum", 422),
            ("archive.no-space", 500),
            ("engine.failed", 500),
        ] {
            let fault = Fault::new(code, FaultKind::Environment, "");
            assert_eq!(status_of(&fault).as_u16(), status, "{code}");
        }
    }
}
