//! The part of the agent API that checkpoints are asked for by, from both sides.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http::{HeaderMap, Method, Request, Response};
use hyper::body::Incoming as RequestBody;
use tranship_core::ids::{CheckpointName, ContainerName};
use tranship_core::{Fault, FaultKind};
use tranship_wire::WireError;
use tranship_wire::h2::{self, Body, ByteStream};

use super::{
    CheckpointCreated, CheckpointInfo, CheckpointRestored, CreateCheckpoint, ExportCheckpoint,
    ImportCheckpoint, RestoreCheckpoint,
};
use crate::client::AgentClient;
use crate::server;
use crate::state::Agent;

/// Answers what is asked below `/v1/checkpoints`. What is begun comes to its end even if the caller goes away.
pub(crate) async fn answer(
    agent: &Arc<Agent>,
    path: &[&str],
    request: Request<RequestBody>,
) -> Response<Body> {
    let checkpoints = Arc::clone(&agent.checkpoints);
    match (request.method(), path) {
        (&Method::GET, []) => server::answer(checkpoints.list().await),
        (&Method::POST, ["create"]) => {
            server::answer(match server::body::<CreateCheckpoint>(request).await {
                Ok(asked) => server::regardless(async move { checkpoints.create(&asked).await }).await,
                Err(fault) => Err(fault),
            })
        }
        (&Method::POST, ["restore"]) => {
            server::answer(match server::body::<RestoreCheckpoint>(request).await {
                Ok(asked) => server::regardless(async move { checkpoints.restore(&asked).await }).await,
                Err(fault) => Err(fault),
            })
        }
        (&Method::POST, ["export"]) => {
            let archive = match server::body::<ExportCheckpoint>(request).await {
                Ok(asked) => checkpoints.export(&asked).await,
                Err(fault) => Err(fault),
            };
            match archive {
                Ok(archive) => {
                    h2::stream_response(HeaderMap::new(), archive.map(|part| part.map_err(Box::new)))
                }
                Err(fault) => server::answer::<()>(Err(fault)),
            }
        }
        (&Method::PUT, ["import", container, name @ ..]) if name.len() <= 1 => {
            let asked = server::parse::<ContainerName>(container).and_then(|container| {
                let name = name.first().map(|name| server::parse::<CheckpointName>(name));
                let name = name.transpose()?;
                Ok(ImportCheckpoint { container, name })
            });
            let asked = match asked {
                Ok(asked) => asked,
                Err(fault) => return server::answer::<()>(Err(fault)),
            };
            let parts = h2::read_stream(request)
                .map(|part| part.map_err(|error| std::io::Error::other(error.into_fault().to_string())));
            let imported = async move { checkpoints.import(&asked, Box::pin(parts)).await };
            server::answer(server::regardless(imported).await)
        }
        (&Method::DELETE, [container, name]) => {
            let named = server::parse::<ContainerName>(container)
                .and_then(|container| Ok((container, server::parse::<CheckpointName>(name)?)));
            server::answer(match named {
                Ok((container, name)) => {
                    server::regardless(async move { checkpoints.remove(&container, &name).await }).await
                }
                Err(fault) => Err(fault),
            })
        }
        _ => h2::not_found(&request),
    }
}

impl AgentClient {
    /// All checkpoints of the node, oldest first.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn checkpoints(&self) -> Result<Vec<CheckpointInfo>, Fault> {
        self.get("/v1/checkpoints").await
    }

    /// Makes a checkpoint of a running container.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn create_checkpoint(&self, asked: &CreateCheckpoint) -> Result<CheckpointCreated, Fault> {
        self.post("/v1/checkpoints/create", asked).await
    }

    /// Lets a container go on from a checkpoint.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn restore_checkpoint(&self, asked: &RestoreCheckpoint) -> Result<CheckpointRestored, Fault> {
        self.post("/v1/checkpoints/restore", asked).await
    }

    /// A checkpoint as an archive.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn export_checkpoint(&self, asked: &ExportCheckpoint) -> Result<ByteStream, Fault> {
        let json = serde_json::to_vec(asked)
            .map_err(|error| Fault::new("request.invalid", FaultKind::Bug, error.to_string()))?;
        let archive = self.client.post_stream("/v1/checkpoints/export", json).await;
        archive.map_err(WireError::into_fault)
    }

    /// Brings a checkpoint back from an archive.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn import_checkpoint(
        &self,
        asked: &ImportCheckpoint,
        archive: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<CheckpointInfo, Fault> {
        let name = asked.name.as_ref();
        let name = name.map_or_else(String::new, |name| format!("/{name}"));
        let path = format!("/v1/checkpoints/import/{}{name}", asked.container);
        let sent = self
            .client
            .send_stream(Method::PUT, &path, HeaderMap::new(), archive)
            .await;
        sent.map_err(WireError::into_fault)
    }

    /// Removes a checkpoint for good.
    ///
    /// # Errors
    /// As [`AgentClient::hello`].
    pub async fn remove_checkpoint(
        &self,
        container: &ContainerName,
        name: &CheckpointName,
    ) -> Result<(), Fault> {
        let path = format!("/v1/checkpoints/{container}/{name}");
        self.client.delete(&path).await.map_err(WireError::into_fault)
    }
}
