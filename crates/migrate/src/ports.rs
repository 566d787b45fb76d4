//! What one node gives to its half of a migration.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tranship_core::engine::ExecOutcome;
use tranship_core::storage::Storage;
use tranship_core::{Engine, Fault};

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
}
