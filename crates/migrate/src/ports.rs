//! What one node gives to its half of a migration.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tranship_core::engine::ExecOutcome;
use tranship_core::fault::FaultKind;
use tranship_core::storage::{ElementAt, ElementPlace, ElementRoute, Storage};
use tranship_core::{Engine, Fault};

use crate::images::ImageWays;

/// Runs the user's commands on the node itself.
#[async_trait]
pub trait Host: Send + Sync {
    /// Runs `sh -c command` with these variables added to its environment, for at most `timeout`; then it is killed with
    /// its children, and has no exit code.
    async fn run(
        &self,
        command: &str,
        environment: &[(&str, &str)],
        timeout: Duration,
    ) -> Result<ExecOutcome, Fault>;
}

/// The ports of one node.
#[derive(Clone)]
pub struct Ports {
    /// Its engine.
    pub engine: Arc<dyn Engine>,
    /// Its storage elements.
    pub storage: Arc<dyn Storage>,
    /// Its shell.
    pub host: Arc<dyn Host>,
    /// Its images, by other ways than one archive.
    pub images: Arc<dyn ImageWays>,
}

impl Ports {
    /// Where an element is whose data travels by this route.
    ///
    /// # Errors
    /// `layer.route` for a container's layer that was planned as a tree and can be had through the engine only: as an archive of `/` it
    /// would be the image, the volumes and what else is mounted there as well. Else what the engine says.
    pub(crate) async fn locate(&self, at: &ElementAt, route: ElementRoute) -> Result<ElementPlace, Fault> {
        let place = self.engine.locate(at).await?;
        let engine_only = matches!(place, ElementPlace::Archive { .. });
        if !engine_only || route == ElementRoute::Archive || !matches!(at, ElementAt::Layer { .. }) {
            return Ok(place);
        }
        self.engine.release(&place).await?;
        Err(Fault::new(
            "layer.route",
            FaultKind::Environment,
            format!("{at} is not found among the engine's files, and cannot be carried without them"),
        )
        .with_hint(
            "`tranship doctor` says what the agent there sees; --without-layer leaves the layer behind",
        ))
    }

    /// Where an element is that is needed as a directory. Nothing stays behind where the engine alone reaches it.
    ///
    /// # Errors
    /// `content.route` where this process does not reach it itself; what the engine says.
    pub async fn directory(&self, at: &ElementAt) -> Result<ElementPlace, Fault> {
        let place = self.engine.locate(at).await?;
        if matches!(place, ElementPlace::Directory { .. }) {
            return Ok(place);
        }
        self.engine.release(&place).await?;
        Err(Fault::new(
            "content.route",
            FaultKind::Environment,
            format!("{at} is reached through the engine only, which cannot do that"),
        )
        .with_hint("log in as root there"))
    }
}
