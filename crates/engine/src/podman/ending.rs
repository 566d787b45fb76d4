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
        unless_it_ended(self.thaw(id).await)
    }
}

/// What of the answer to a thaw counts, where the processes are ending.
fn unless_it_ended(thawed: Result<(), EngineError>) -> Result<(), EngineError> {
    match thawed {
        // It ended as it was thawed, or before, and was removed then (`--rm`).
        Err(EngineError::Conflict { .. } | EngineError::Failed { .. } | EngineError::NotFound { .. }) => {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_meanwhile_need_not_thaw() {
        let ask = Ask::new("unpause", "container", "web");
        assert!(unless_it_ended(Ok(())).is_ok());
        for (status, message) in [
            (404, "no such container"),
            (409, "it is not paused"),
            (500, "no process"),
        ] {
            assert!(
                unless_it_ended(Err(ask.refused(status, message))).is_ok(),
                "{status}"
            );
        }
        assert!(unless_it_ended(Err(ask.uncertain("it broke off"))).is_err());
    }
}
