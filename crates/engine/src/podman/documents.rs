//! Reading what Podman says of a container, and what it keeps of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tranship_core::{ContainerId, EngineError};

use super::API;
use crate::docker::DockerEngine;
use crate::fault::Ask;
use crate::json::text;
use crate::programs::program;
use crate::raw::escape;

/// How long Podman's command may take to describe a container.
const TOLD_WITHIN: Duration = Duration::from_secs(60);

/// A specification for the runtime that is longer than this is none, in bytes.
const LARGEST_SPECIFICATION: u64 = 16 << 20;

impl DockerEngine {
    /// libpod's own inspect document.
    pub(crate) async fn libpod_document(&self, container: &str) -> Result<Value, EngineError> {
        let ask = Ask::new("inspect", "container", container);
        let path = format!("{API}/containers/{}/json", escape(container));
        self.raw.get(&path, &ask).await
    }

    /// The three documents of a container. Those that can only be read on the machine itself and as root are `null` elsewhere, and before
    /// the container's first start.
    pub(super) async fn podman_documents(&self, container: &ContainerId) -> Result<Value, EngineError> {
        let inspect = self.libpod_document(container.as_str()).await?;
        let reached = self.reaches_processes();
        let (runtime, wishes) = if reached {
            (
                specification(&directory_of(&inspect)),
                wishes(container).await.unwrap_or_default(),
            )
        } else {
            (Value::Null, Value::Null)
        };
        Ok(json!({ "Inspect": inspect, "Runtime": runtime, "Wishes": wishes }))
    }

    /// The capabilities that Podman gives to a container here unless it is told otherwise.
    pub(super) async fn default_capabilities(&self) -> Result<Vec<String>, EngineError> {
        let ask = Ask::new("describe", "engine", "");
        let info = self.raw.get(&format!("{API}/info"), &ask).await?;
        let list = text(&info, &["host", "security", "capabilities"]);
        Ok(list
            .split(',')
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect())
    }
}

/// Podman's directory of a container, from libpod's inspect document.
pub(super) fn directory_of(inspect: &Value) -> PathBuf {
    PathBuf::from(text(inspect, &["StaticDir"]))
}

/// What the runtime was given, `null` where it cannot be read: then it does not count as known.
pub(super) fn specification(directory: &Path) -> Value {
    let path = directory.join("config.json");
    let fits = std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() <= LARGEST_SPECIFICATION);
    if !directory.is_absolute() || !fits {
        return Value::Null;
    }
    let read = std::fs::read(&path);
    read.ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

/// What was wished for. No API tells it: fixed addresses are in Podman's database, and in the words of its command.
async fn wishes(container: &ContainerId) -> Option<Value> {
    let told = program("podman")
        .args(["generate", "spec", "--compact", container.as_str()])
        .kill_on_drop(true)
        .output();
    let told = tokio::time::timeout(TOLD_WITHIN, told).await.ok()?;
    let told = told
        .inspect_err(|error| tracing::warn!(%container, %error, "podman cannot be run"))
        .ok()?;
    if !told.status.success() {
        let said = String::from_utf8_lossy(&told.stderr);
        tracing::warn!(%container, said = said.trim(), "podman does not describe a container");
        return None;
    }
    serde_json::from_slice(&told.stdout).ok()
}
