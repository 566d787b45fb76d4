//! Networks: reading and making them.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tranship_core::{EngineError, NetworkSpec};

use crate::describe;
use crate::docker::DockerEngine;
use crate::fault::Ask;
use crate::json::text;
use crate::raw::escape;
use crate::recreate::network_body;

/// Inspect calls at the same time.
pub(crate) const PARALLEL: usize = 8;

impl DockerEngine {
    /// One network by id or name, `None` if it is not there.
    pub(crate) async fn network(&self, name: &str) -> Result<Option<NetworkSpec>, EngineError> {
        let ask = Ask::new("inspect", "network", name);
        match self.raw.get(&format!("/networks/{}", escape(name)), &ask).await {
            Ok(document) => {
                let mut network = describe::network(document);
                if self.podman {
                    // By its id: the compatible API calls Podman's own network as Docker calls its.
                    match self.libpod_network(&network.id).await {
                        Ok(document) => network.document = document,
                        Err(EngineError::NotFound { .. }) => return Ok(None),
                        Err(other) => return Err(other),
                    }
                }
                Ok(Some(network))
            }
            Err(EngineError::NotFound { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// All networks. The list alone does not say which addresses are in use.
    pub(crate) async fn all_networks(&self) -> Result<Vec<NetworkSpec>, EngineError> {
        let ask = Ask::new("list", "networks", "");
        let list = self
            .docker
            .list_networks(None::<bollard::query_parameters::ListNetworksOptions>)
            .await;
        let ids = self
            .told(list, &ask)?
            .into_iter()
            .filter_map(|network| network.id);
        let mut networks: Vec<NetworkSpec> = stream::iter(ids)
            .map(|id| async move { self.network(&id).await })
            .buffer_unordered(PARALLEL)
            // One that vanished meanwhile is none.
            .try_filter_map(|network| async move { Ok(network) })
            .try_collect()
            .await?;
        networks.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        Ok(networks)
    }

    pub(crate) async fn make_network(
        &self,
        spec: &NetworkSpec,
        new_subnets: bool,
    ) -> Result<String, EngineError> {
        if self.podman {
            return self.make_podman_network(spec, new_subnets).await;
        }
        let ask = Ask::new("create", "network", &spec.name);
        let create = async |keep_ipv6| {
            let body = network_body(spec, new_subnets, keep_ipv6);
            self.raw.post("/networks/create", &body, &ask).await
        };
        let made = match create(false).await {
            // Before Docker 27 the engine has no IPv6 addresses to give.
            Err(EngineError::Failed { .. }) if new_subnets && spec.ipv6 => create(true).await?,
            other => other?,
        };
        let id = text(&made, &["Id"]);
        if id.is_empty() {
            return Err(ask.uncertain("the answer names no id"));
        }
        Ok(id)
    }
}
