//! The node as a registry: carries requests over HTTP to [`tranship_oci::Registry`] and its answers back.

use std::sync::Arc;

use async_trait::async_trait;
use http::{Request, Response};
use hyper::body::Incoming as RequestBody;
use tranship_core::Engine;
use tranship_oci::port::EngineImages;
use tranship_oci::{Answer, Registry};
use tranship_wire::PeerIdentity;
use tranship_wire::h2::{self, Body, Handler};

use crate::archive_api::Rest;

/// Answers clients of a registry.
pub struct RegistryHandler {
    /// The registry.
    pub registry: Registry,
}

/// An engine's images as a registry sees them.
#[must_use]
pub fn images(engine: Arc<dyn Engine>) -> Arc<EngineImages> {
    Arc::new(EngineImages(engine))
}

#[async_trait]
impl Handler for RegistryHandler {
    async fn handle(&self, request: Request<RequestBody>, peer: &PeerIdentity) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let wanted = parts.version < http::Version::HTTP_2;
        let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
        let stream = h2::read_stream(Request::from_parts(parts.clone(), body));
        let request = Request::from_parts(parts, Rest::new(stream, wanted));
        let response = self.registry.answer(request).await;
        tracing::info!(%peer, %method, path, status = response.status().as_u16(), "answered");
        response.map(|answer| match answer {
            Answer::Full(bytes) => h2::full_body(bytes),
            Answer::Stream(stream) => h2::stream_body(stream),
        })
    }
}
