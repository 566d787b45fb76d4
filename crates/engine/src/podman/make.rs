//! Making a container again by Podman's own API.

use serde_json::Value;
use tranship_core::engine::CreateRequest;
use tranship_core::ids::ContainerName;
use tranship_core::{ContainerId, EngineError};

use super::{API, body, compare};
use crate::describe;
use crate::docker::DockerEngine;
use crate::fault::Ask;
use crate::json::{at, is_empty, text};

impl DockerEngine {
    /// Makes the container, has Podman prepare it, and compares what it is with what it should be. What is not is removed again.
    pub(crate) async fn podman_recreate(
        &self,
        name: &ContainerName,
        request: &CreateRequest,
        image: &str,
        image_config: &Value,
        ask: &Ask,
    ) -> Result<ContainerId, EngineError> {
        if !self.reaches_processes() {
            return Err(EngineError::Unsupported {
                message: "containers are made with Podman only as root on its own machine".into(),
            });
        }
        let defaults = body::Defaults {
            capabilities: self.default_capabilities().await?,
            image_is_checked: !is_empty(at(image_config, &["Healthcheck"])),
        };
        let body = body::create_body(request, image, &defaults)?;
        let path = format!("{API}/containers/create");
        let id = self.make(&path, &body, request, name, ask).await?;
        let done = self.prove(&id, request, ask).await;
        self.kept_if(done, id).await
    }

    async fn prove(&self, id: &ContainerId, request: &CreateRequest, ask: &Ask) -> Result<(), EngineError> {
        self.prepare_once(id).await?;
        let made = self.podman_documents(id).await?;
        let image = describe::image_id(&text(&made, &["Inspect", "Image"]), ask)?;
        if image != request.spec.image.id {
            return Err(EngineError::Conflict {
                action: ask.action.clone(),
                message: format!(
                    "{} means image {image} there, not {}",
                    request.spec.image_reference, request.spec.image.id
                ),
            });
        }
        if ["Runtime", "Wishes"]
            .iter()
            .any(|key| at(&made, &[key]).is_null())
        {
            return Err(ask.failed("what Podman made cannot be looked at"));
        }
        let wanted = body::documents(&request.spec)?;
        let differences = compare::differences(request, wanted, &made);
        if differences.is_empty() {
            return Ok(());
        }
        Err(EngineError::Unsupported {
            message: format!(
                "podman made the container otherwise than asked: {}",
                differences.join("; ")
            ),
        })
    }

    /// Has Podman do what it does before a first start, and take that back but for what stays: the specification, which a restore
    /// needs, and the owners, modes and files that it gives to new volumes, which have to be there before the data come.
    pub(super) async fn prepare_once(&self, id: &ContainerId) -> Result<(), EngineError> {
        let ask = Ask::new("initialise", "container", id.as_str());
        let path = format!("{API}/containers/{}/init", id.as_str());
        self.raw.post(&path, &Value::Null, &ask).await?;
        self.take_back(id).await?;
        self.let_go(id).await
    }
}
