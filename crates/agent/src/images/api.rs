//! What `tranship image` asks of a node, as requests.

use std::sync::Arc;

use futures_util::StreamExt as _;
use http::{Method, Request, Response};
use hyper::body::Incoming as RequestBody;
use tranship_core::Fault;
use tranship_core::ids::Digest;
use tranship_wire::h2::{self, Body};

use super::ways::{FetchImage, PushImage, ServeImage};
use super::{ExportImage, SettleImage};
use crate::server::{answer, body, image_stream, regardless};
use crate::state::Agent;

/// Answers `/v1/images/WHAT`.
pub(crate) async fn answer_images(
    agent: &Arc<Agent>,
    what: &str,
    request: Request<RequestBody>,
) -> Response<Body> {
    let agent = Arc::clone(agent);
    match (request.method(), what) {
        (&Method::POST, "find") => answer(match body::<String>(request).await {
            Ok(reference) => agent.find_image(&reference).await,
            Err(fault) => Err(fault),
        }),
        (&Method::POST, "held") => answer(match body::<Vec<Digest>>(request).await {
            Ok(layers) => agent.engine().layers_held(&layers).await.map_err(Fault::from),
            Err(fault) => Err(fault),
        }),
        (&Method::POST, "export") => {
            let archive = match body::<ExportImage>(request).await {
                Ok(asked) => agent.export_image(&asked).await,
                Err(fault) => Err(fault),
            };
            match archive {
                Ok(archive) => {
                    let stream = archive
                        .stream
                        .map(|part| part.map_err(|e| Box::new(Fault::from(e))));
                    h2::stream_response(http::HeaderMap::new(), stream)
                }
                Err(fault) => answer::<()>(Err(fault)),
            }
        }
        (&Method::PUT, "import") => {
            let archive = image_stream(request);
            answer(regardless(async move { agent.import_image(archive).await }).await)
        }
        (&Method::POST, "settle") => answer(match body::<SettleImage>(request).await {
            Ok(asked) => agent.settle_image(&asked).await,
            Err(fault) => Err(fault),
        }),
        // Whoever asks for these breaks them off by going away.
        (&Method::POST, "serve") => answer(match body::<ServeImage>(request).await {
            Ok(asked) => agent.serve_image(&asked).await,
            Err(fault) => Err(fault),
        }),
        (&Method::POST, "push") => answer(match body::<PushImage>(request).await {
            Ok(asked) => agent.push_image(&asked).await,
            Err(fault) => Err(fault),
        }),
        (&Method::POST, "fetch") => answer(match body::<FetchImage>(request).await {
            Ok(asked) => agent.fetch_image(asked).await,
            Err(fault) => Err(fault),
        }),
        _ => h2::not_found(&request),
    }
}
