//! Images, from the asking side.

use bytes::Bytes;
use futures_util::Stream;
use tranship_core::ids::Digest;
use tranship_core::{Fault, FaultKind, ImageSpec};
use tranship_migrate::images::Came;
use tranship_wire::WireError;
use tranship_wire::h2::ByteStream;

use super::ways::{FetchImage, PushImage, PushedImage, ServeImage};
use super::{ExportImage, FoundImage, SettleImage};
use crate::client::AgentClient;

impl AgentClient {
    /// All images of the node.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn images(&self) -> Result<Vec<ImageSpec>, Fault> {
        self.get("/v1/images").await
    }

    /// The image that a tag, digest or id means, if there is one.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn find_image(&self, reference: &str) -> Result<Option<FoundImage>, Fault> {
        self.post("/v1/images/find", reference).await
    }

    /// How many of the lowest layers the node holds, as one stack.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn layers_held(&self, layers: &[Digest]) -> Result<usize, Fault> {
        self.post("/v1/images/held", layers).await
    }

    /// An image as an archive without its lowest layers.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn export_image(&self, asked: &ExportImage) -> Result<ByteStream, Fault> {
        let json = serde_json::to_vec(asked)
            .map_err(|e| Fault::new("request.invalid", FaultKind::Bug, e.to_string()))?;
        let archive = self.client.post_stream("/v1/images/export", json).await;
        archive.map_err(WireError::into_fault)
    }

    /// Takes in such an archive.
    ///
    /// # Errors
    /// As [`AgentClient::hello`]; the fault that the archive ends with.
    pub async fn import_image(
        &self,
        archive: impl Stream<Item = Result<Bytes, Fault>> + Send + 'static,
    ) -> Result<(), Fault> {
        let path = "/v1/images/import";
        let sent = self
            .client
            .send_stream(http::Method::PUT, path, http::HeaderMap::new(), archive)
            .await;
        sent.map_err(|error| match error {
            WireError::Source { source, what } => match source.downcast::<Fault>() {
                Ok(fault) => *fault,
                Err(source) => WireError::Source { source, what }.into_fault(),
            },
            other => other.into_fault(),
        })
    }

    /// Looks whether an image is there as it should be, and gives it its tag.
    ///
    /// # Errors
    /// As [`AgentClient::hello`]; `image.corrupt`.
    pub async fn settle_image(&self, asked: &SettleImage) -> Result<(), Fault> {
        self.post("/v1/images/settle", asked).await
    }

    /// At the source: answers what comes by a stream that was handed over with [`AgentClient::relay_stream`].
    ///
    /// # Errors
    /// As [`AgentClient::hello`]; what the source's engine says of a layer.
    pub async fn serve_image(&self, asked: &ServeImage) -> Result<(), Fault> {
        self.post("/v1/images/serve", asked).await
    }

    /// At the source: brings an image to a registry. Dropping it ends it.
    ///
    /// # Errors
    /// As [`AgentClient::hello`]; what the registry says.
    pub async fn push_image(&self, asked: &PushImage) -> Result<PushedImage, Fault> {
        self.post("/v1/images/push", asked).await
    }

    /// At the destination: fetches an image. Dropping it ends it, unless the engine there has all of the image already.
    ///
    /// # Errors
    /// As [`AgentClient::hello`]; what the registry or the other end of the stream says.
    pub async fn fetch_image(&self, asked: &FetchImage) -> Result<Came, Fault> {
        self.post("/v1/images/fetch", asked).await
    }
}
