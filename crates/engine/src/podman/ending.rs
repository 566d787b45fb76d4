//! Ending what is paused, and what did not begin.
//!
//! Podman sends a signal to a paused container and waits five seconds for its end, which with the old freezer does not come before the
//! thaw; then it calls the container stopped, and neither thaws it nor lets it be thawed any more (seen with 5.4.2).
//!
//! What it stopped itself it marks as stopped by its user. A start takes that mark away, a restore does not: the restart policy of what was
//! restored would be dead. So what was only initialised is not stopped but cleaned up after, which no API does; Podman does not notice by
//! itself that it ended.

use std::time::Duration;

use serde_json::Value;
use tranship_core::{ContainerId, EngineError};

use super::describe::is_time;
use crate::docker::DockerEngine;
use crate::fault::Ask;
use crate::json::{flag, text};
use crate::memory::crun_root;
use crate::programs::program;
use crate::shim::LET_GO_WITHIN;

/// How long a restore of which Podman knows nothing any more may take to be done, and what it restored to end.
const ENDED_WITHIN: Duration = Duration::from_secs(120);

/// Time between two tries.
const AGAIN: Duration = Duration::from_millis(200);

/// How long Podman's command may take to clean up after a container.
const CLEANED_WITHIN: Duration = Duration::from_secs(60);

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

    /// Takes away that its user stopped a container, which a restore would leave, and with it a dead restart policy; and whatever an
    /// initialisation left that was not taken back. Podman forgets when it was restored last.
    pub(crate) async fn ready_for_restore(&self, id: &ContainerId) -> Result<(), EngineError> {
        if self.take_initialisation_back(id).await? {
            return Ok(());
        }
        let inspect = self.libpod_document(id.as_str()).await?;
        if flag(&inspect, &["State", "StoppedByUser"]) {
            self.prepare_once(id).await?;
        }
        Ok(())
    }

    /// Takes an initialisation back that was not, as where an agent was killed before it could. Says whether there was one.
    pub(crate) async fn take_initialisation_back(&self, id: &ContainerId) -> Result<bool, EngineError> {
        let inspect = self.libpod_document(id.as_str()).await?;
        if text(&inspect, &["State", "Status"]) != "initialized" {
            return Ok(false);
        }
        self.take_back(id).await?;
        self.let_go(id).await?;
        Ok(true)
    }

    /// When Podman will say that a container was started last, once it is ready for a restore, if it will have forgotten a restore of
    /// before by then.
    pub(crate) async fn start_once_ready(&self, id: &ContainerId) -> Result<Option<String>, EngineError> {
        let inspect = self.libpod_document(id.as_str()).await?;
        Ok(start_once_initialised(&inspect))
    }

    /// Ends processes of a container that does not run, by what Podman says. They are there where its service was killed while it
    /// restored them: crun and CRIU go on, and Podman would start, restore or remove the container beside them.
    ///
    /// # Errors
    /// They do not end.
    pub(crate) async fn end_strays(&self, id: &ContainerId) -> Result<(), EngineError> {
        let ask = Ask::new("end the processes of", "container", id.as_str());
        if self.waits_for_its_start(id).await? {
            return Ok(());
        }
        let begun = tokio::time::Instant::now();
        while self.has_shim(id).await != Some(false) {
            if begun.elapsed() > ENDED_WITHIN {
                return Err(ask.failed(
                    "processes of it run of which Podman knows nothing: `crun --root /run/crun delete --force ID` ends them",
                ));
            }
            // Until CRIU is done, crun has no record of them.
            if let Some(crun) = crun_root(id) {
                tracing::warn!(container = %id, "it has processes that Podman does not know, which are ended");
                let ending = program("crun")
                    .arg("--root")
                    .arg(crun)
                    .args(["delete", "--force", id.as_str()])
                    .kill_on_drop(true)
                    .output();
                let ended = tokio::time::timeout(CLEANED_WITHIN, ending).await;
                tracing::debug!(container = %id, "crun: {ended:?}");
            }
            tokio::time::sleep(AGAIN).await;
        }
        Ok(())
    }

    /// Whether a container that does not run, by what Podman says, has processes for longer than those of a run that ended.
    pub(crate) async fn has_stray_processes(&self, id: &ContainerId) -> Result<bool, EngineError> {
        let let_go = self.is_let_go(id, LET_GO_WITHIN).await?;
        Ok(!let_go && !self.waits_for_its_start(id).await?)
    }

    /// Whether a container was initialised, so that its process waits and is Podman's own; or is gone, and with it whoever would wait.
    async fn waits_for_its_start(&self, id: &ContainerId) -> Result<bool, EngineError> {
        match self.libpod_document(id.as_str()).await {
            Err(EngineError::NotFound { .. }) => Ok(true),
            inspect => Ok(text(&inspect?, &["State", "Status"]) == "initialized"),
        }
    }

    /// Takes an initialisation back: the container's process, which waits for a start, goes, and so do mounts and networks.
    pub(super) async fn take_back(&self, id: &ContainerId) -> Result<(), EngineError> {
        let ask = Ask::new("clean up after", "container", id.as_str());
        let cleaning = program("podman")
            .args(["container", "cleanup", id.as_str()])
            .kill_on_drop(true)
            .output();
        let done = tokio::time::timeout(CLEANED_WITHIN, cleaning).await;
        let done = done.map_err(|error| ask.failed(error))?;
        let done = done.map_err(|error| ask.failed(format!("podman cannot be run: {error}")))?;
        if done.status.success() {
            return Ok(());
        }
        Err(ask.failed(String::from_utf8_lossy(&done.stderr).trim()))
    }
}

/// What an initialisation makes of the time of the last start, if it takes place and changes that.
fn start_once_initialised(inspect: &Value) -> Option<String> {
    let state = |key: &str| text(inspect, &["State", key]);
    let forgets = flag(inspect, &["State", "StoppedByUser"]) && is_time(&state("RestoredAt"));
    forgets.then(|| state("StartedAt"))
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
    use serde_json::json;

    #[test]
    fn only_an_initialisation_forgets_a_restore() {
        let (never, early, late) = (
            "0001-01-01T00:00:00Z",
            "2026-01-01T00:00:00Z",
            "2026-01-02T00:00:00Z",
        );
        let told = |stopped: bool, restored: &str| {
            let state = json!({ "StoppedByUser": stopped, "StartedAt": early, "RestoredAt": restored });
            start_once_initialised(&json!({ "State": state }))
        };
        assert_eq!(told(true, late).as_deref(), Some(early));
        assert_eq!(told(false, late), None, "it is not initialised");
        assert_eq!(told(true, never), None, "it was not restored");
        assert_eq!(told(true, ""), None);
    }

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
