//! The part of the agent API that checkpoints are asked for by, from both sides.

use std::sync::Arc;

use http::{Method, Request, Response};
use hyper::body::Incoming as RequestBody;
use tranship_core::Fault;
use tranship_core::ids::{CheckpointName, ContainerName};
use tranship_wire::WireError;
use tranship_wire::h2::{self, Body};

use super::{CheckpointCreated, CheckpointInfo, CheckpointRestored, CreateCheckpoint, RestoreCheckpoint};
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
