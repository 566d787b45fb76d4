//! Health checks where nobody runs them.
//!
//! Podman leaves the running of health checks to timers of systemd. A host without it never runs one: a container would be `starting`
//! for ever. Whoever waits for its health has it looked at then.

use serde_json::Value;
use tranship_core::ContainerId;

use super::API;
use crate::docker::DockerEngine;
use crate::fault::Ask;

/// What is there where systemd runs (`sd_booted(3)`).
const SYSTEMD: &str = "run/systemd/system";

impl DockerEngine {
    /// Runs the health check once, where no timer does. What comes of it is in the container's state.
    pub(super) async fn check_health(&self, container: &ContainerId) {
        if self.root_prefix.join(SYSTEMD).is_dir() {
            return;
        }
        let ask = Ask::new("look at the health of", "container", container.as_str());
        let path = format!("{API}/containers/{}/healthcheck", container.as_str());
        let looked: Result<Value, _> = self.raw.get(&path, &ask).await;
        if let Err(error) = looked {
            tracing::debug!(%container, %error, "a health check that could not be run");
        }
    }
}
