//! The agent as a process: it listens on the node's own socket, and ends when it has had nothing to do for a while.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tranship_core::Fault;
use tranship_migrate::Ports;
use tranship_wire::h2::{self, ServerOptions};
use tranship_wire::local::{LocalError, LocalListener};
use tranship_wire::{PeerIdentity, WireError, h1};

use crate::archive_api::DockerHandler;
use crate::checkpoints::Checkpoints;
use crate::copies::Copies;
use crate::guids::Guids;
use crate::locks::Locks;
use crate::registry::Registry;
use crate::server::OwnerHandler;
use crate::state::{Agent, Identity};
use crate::store::FileRecords;
use crate::ways::Ways;

/// What a daemon is made with.
pub struct Config {
    /// Its socket; the directory is made, closed to others.
    pub socket: PathBuf,
    /// Where its records go.
    pub state_directory: PathBuf,
    /// Who it is.
    pub identity: Identity,
    /// The engine, the storage elements and the shell of this node.
    pub ports: Ports,
    /// How long it stays without anything to do; for ever if there is none, as under a service manager.
    pub idle: Option<Duration>,
}

/// The socket at which docker's clients find the agent that has this one.
#[must_use]
pub fn docker_socket(socket: &Path) -> PathBuf {
    let name = socket.file_name().unwrap_or_default().to_string_lossy();
    socket.with_file_name(name.replacen("agent", "docker", 1))
}

async fn accept(
    listener: Option<&LocalListener>,
) -> Result<(tokio::net::UnixStream, PeerIdentity), LocalError> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// Serves until there is nothing to do, or until `shutdown`.
///
/// # Errors
/// When the socket or the state directory cannot be used, or another agent holds the socket.
pub async fn serve(config: Config, shutdown: CancellationToken) -> Result<(), Fault> {
    let listener = LocalListener::bind(&config.socket)
        .await
        .map_err(|e| WireError::from(e).into_fault())?;
    let records = FileRecords::open(&config.state_directory).map_err(|e| {
        Fault::new(
            "agent.state",
            tranship_core::FaultKind::Environment,
            format!("the state directory cannot be used: {e}"),
        )
        .with_hint("the agent needs to write there")
    })?;
    let registry = Registry::new(config.ports.clone(), records, Locks::new(&config.state_directory));
    let copies = Copies::new(config.ports.clone(), &config.state_directory);
    let checkpoints = Checkpoints::new(Arc::clone(&registry), &config.state_directory);
    let agent = Agent::new(
        config.identity,
        registry,
        Guids::open(&config.state_directory),
        Ways::new(&config.state_directory),
        Arc::clone(&copies),
        Arc::clone(&checkpoints),
    );
    // What a crash left open is settled beside the first questions, not before them: an engine that does not answer
    // must not keep the agent from saying so.
    tokio::spawn(agent.recover());
    tokio::spawn(async move { copies.recover().await });
    tokio::spawn(checkpoints.settle());
    // Docker's clients have a door of their own. Without it everything else works.
    let docker = LocalListener::bind(&docker_socket(&config.socket)).await;
    if let Err(error) = &docker {
        tracing::warn!("docker's clients cannot be answered: {error}");
    }
    let docker = docker.ok();
    let mut idle_since = tokio::time::Instant::now();
    let second = Duration::from_secs(1);
    let mut tick = tokio::time::interval(config.idle.map_or(second, |idle| idle.min(second)));
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let guard = agent.connected();
                    let handler = Arc::new(OwnerHandler { agent: Arc::clone(&agent), shutdown: shutdown.clone() });
                    tokio::spawn(async move {
                        let options = ServerOptions::default();
                        if let Err(error) = h2::serve_connection(stream, handler, peer, &options, CancellationToken::new()).await {
                            tracing::debug!("a caller left: {error}");
                        }
                        drop(guard);
                    });
                }
                Err(error) => {
                    tracing::warn!("a connection was refused: {error}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            },
            accepted = accept(docker.as_ref()) => match accepted {
                Ok((stream, peer)) => {
                    let guard = agent.connected();
                    let handler = Arc::new(DockerHandler { agent: Arc::clone(&agent) });
                    tokio::spawn(async move {
                        if let Err(error) = h1::serve_connection(stream, handler, peer).await {
                            tracing::debug!("a client of docker left: {error}");
                        }
                        drop(guard);
                    });
                }
                Err(error) => {
                    tracing::warn!("a connection was refused: {error}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            },
            _ = tick.tick() => {
                if !agent.done() {
                    idle_since = tokio::time::Instant::now();
                } else if config.idle.is_some_and(|idle| idle_since.elapsed() >= idle) {
                    break;
                }
            }
        }
    }
    // Answers under way get out.
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(())
}
