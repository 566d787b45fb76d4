//! Ending what is paused.
//!
//! Podman sends a signal to a paused container and waits five seconds for its end, which with the old freezer does not come before the
//! thaw; then it calls the container stopped, and neither thaws it nor lets it be thawed any more (seen with 5.4.2).

use tranship_core::{ContainerId, EngineError};

use crate::docker::DockerEngine;
use crate::fault::Ask;

impl DockerEngine {
    /// Thaws a container whose processes, `signalled` of them, have their deadly signal already: none of them runs again.
    pub(crate) async fn let_podman_end(&self, id: &ContainerId, signalled: usize) -> Result<(), EngineError> {
        let ask = Ask::new("kill", "container", id.as_str());
        if signalled == 0 {
            return Err(
                ask.failed("its processes are not seen from here, and Podman does not end what is paused")
            );
        }
        self.thaw(id).await.or_else(|error| match error {
            // It ended as it was thawed.
            EngineError::Conflict { .. } | EngineError::Failed { .. } => Ok(()),
            other => Err(other),
        })
    }
}
