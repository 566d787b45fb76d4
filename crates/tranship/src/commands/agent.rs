//! `tranship agent`: joins a stream to this node's agent, or is that agent.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tranship_agent::api::{PROTOCOL_MAX, PROTOCOL_MIN};
use tranship_agent::daemon::{self, Config};
use tranship_agent::{AgentClient, DockerConfig, Identity, NodeEngine, NodeImages, NodeStorage, Shell};
use tranship_core::{Engine, Fault, FaultKind};
use tranship_migrate::Ports;
use tranship_wire::WireError;
use tranship_wire::h2::{Client, ClientOptions};
use tranship_wire::local;
use tranship_wire::stdio::Stdio as StdioStream;

use super::{Context, service};
use crate::cli::{AgentAction, AgentArgs};
use crate::connect::hash_of;

/// How long the agent stays without anything to do.
const IDLE: Duration = Duration::from_secs(60);
/// How long a new agent may take until it answers.
const START: Duration = Duration::from_secs(10);

/// Runs one of the three forms.
pub async fn run(context: &Context, args: &AgentArgs) -> Result<(), Fault> {
    if args.version_line {
        let line = format!(
            "tranship {} {PROTOCOL_MIN} {PROTOCOL_MAX}",
            env!("CARGO_PKG_VERSION")
        );
        return context.ui.line(&line);
    }
    let place = Place::new(context, args.engine.as_deref());
    match args.action {
        Some(AgentAction::Install) => return service::install(context, args.engine.as_deref()).await,
        Some(AgentAction::Uninstall) => return service::uninstall(context).await,
        None => {}
    }
    if args.serve {
        return serve(context, args, &place).await;
    }
    if args.stdio {
        return join(context, args).await;
    }
    Err(Fault::new(
        "usage.agent",
        FaultKind::Usage,
        "the agent is started by tranship itself, with --stdio",
    )
    .with_hint("`tranship agent install` makes it a service that is there after a reboot"))
}

/// Where one agent keeps its things. An engine other than the default one has an agent of its own.
struct Place {
    socket: PathBuf,
    state: PathBuf,
    log: PathBuf,
    #[cfg_attr(
        not(feature = "fail-points"),
        expect(dead_code, reason = "only test builds have fail points")
    )]
    runtime: PathBuf,
}

impl Place {
    fn new(context: &Context, engine: Option<&Path>) -> Self {
        let environment = &context.environment;
        let suffix = engine.map_or_else(String::new, |socket| {
            use sha2::Digest as _;
            let hash = tranship_core::ids::hex(&sha2::Sha256::digest(socket.as_os_str().as_encoded_bytes()));
            format!("-{}", hash.get(..12).unwrap_or_default())
        });
        let state = environment.state_directory.join(format!("agent{suffix}"));
        Self {
            socket: environment.runtime_directory.join(format!("agent{suffix}.sock")),
            log: state.join("agent.log"),
            state,
            runtime: environment.runtime_directory.clone(),
        }
    }
}

/// The engine's socket: what was asked for, what docker's own variables say, or the first that exists.
pub fn engine_socket(context: &Context, asked: Option<&Path>) -> PathBuf {
    if let Some(socket) = asked {
        return socket.to_owned();
    }
    let environment = &context.environment;
    if let Some(path) = environment
        .docker_host
        .as_deref()
        .and_then(|h| h.strip_prefix("unix://"))
    {
        return PathBuf::from(path);
    }
    let docker = PathBuf::from("/var/run/docker.sock");
    let mut candidates = Vec::new();
    if let Some(directory) = &environment.user_runtime_directory {
        candidates.push(directory.join("docker.sock"));
    }
    candidates.push(docker.clone());
    if let Some(directory) = &environment.user_runtime_directory {
        candidates.push(directory.join("podman/podman.sock"));
    }
    candidates.push(PathBuf::from("/run/podman/podman.sock"));
    candidates.into_iter().find(|p| p.exists()).unwrap_or(docker)
}

/// Is the agent until there is nothing left to do.
async fn serve(context: &Context, args: &AgentArgs, place: &Place) -> Result<(), Fault> {
    // A session of its own: the end of the ssh connection that started it is not its end.
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!("no session of its own: {error}");
    }
    #[cfg(feature = "fail-points")]
    tranship_migrate::failpoint::read_from(place.runtime.join("fail-point"));
    let engine: Arc<dyn Engine> = Arc::new(NodeEngine::at(engine_socket(context, args.engine.as_deref())));
    let docker = DockerConfig(context.environment.docker_config.clone());
    let ports = Ports {
        images: Arc::new(NodeImages::new(Arc::clone(&engine), &place.state, docker)),
        storage: Arc::new(NodeStorage::new(Arc::clone(&engine), place.state.clone())),
        engine,
        host: Arc::new(Shell),
    };
    let mut random = [0u8; 16];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Fault::new("random.failed", FaultKind::Bug, e.to_string()))?;
    let identity = Identity {
        build: hash_of(&context.environment.image).await?,
        instance: tranship_core::ids::hex(&random),
        key: tranship_agent::peer_key(&place.state)?,
    };
    let config = Config {
        socket: place.socket.clone(),
        state_directory: place.state.clone(),
        identity,
        ports,
        idle: (!args.stay).then_some(IDLE),
    };
    let shutdown = CancellationToken::new();
    daemon::serve(config, shutdown).await
}

/// A connection to this node's agent, which is started if none runs or if an idle one is of another build.
///
/// # Errors
/// `agent.busy`, `agent.start`.
pub async fn reach(context: &Context, engine: Option<&Path>) -> Result<tokio::net::UnixStream, Fault> {
    let place = &Place::new(context, engine);
    let own = hash_of(&context.environment.image).await?;
    if let Some((client, hello)) = ask(&place.socket).await
        && hello.build != own
    {
        // One that is at work stays. Whether its words can be understood, the caller sees from its first ones.
        let retired = client.retire().await.unwrap_or(false);
        drop(client);
        if retired {
            wait_until_gone(&place.socket).await;
        }
    }
    match local::connect(&place.socket).await {
        Ok(stream) => Ok(stream),
        Err(_) => start(context, engine, place).await,
    }
}

/// Joins standard input and output to the agent.
async fn join(context: &Context, args: &AgentArgs) -> Result<(), Fault> {
    let stream = reach(context, args.engine.as_deref()).await?;
    let stdio =
        StdioStream::take().map_err(|e| Fault::new("agent.stdio", FaultKind::Environment, e.to_string()))?;
    // An agent that is gone must be seen at once at the other end of ssh.
    if let Err(error) = tranship_wire::relay::relay_until_gone(stdio, stream).await {
        tracing::debug!("the connection ended: {error}");
    }
    Ok(())
}

async fn ask(socket: &Path) -> Option<(AgentClient, tranship_agent::api::Hello)> {
    let stream = local::connect(socket).await.ok()?;
    let client = Client::connect(stream, &ClientOptions::new("this node's agent"))
        .await
        .ok()?;
    let client = AgentClient::new(client);
    let hello = tokio::time::timeout(Duration::from_secs(5), client.hello())
        .await
        .ok()?
        .ok()?;
    Some((client, hello))
}

async fn wait_until_gone(socket: &Path) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) && local::connect(socket).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Starts the agent beside us and waits until it answers.
async fn start(
    context: &Context,
    engine: Option<&Path>,
    place: &Place,
) -> Result<tokio::net::UnixStream, Fault> {
    let fault = |what: String| {
        let mut fault = Fault::new("agent.start", FaultKind::Environment, what);
        fault.path = Some(place.log.display().to_string());
        fault.with_hint("its log says more")
    };
    let log = open_log(&place.log).map_err(|e| fault(format!("the agent's log cannot be written: {e}")))?;
    let mut command = std::process::Command::new(context.environment.to_run());
    command
        .args(["agent", "--serve", "-v"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    if let Some(engine) = engine {
        command.arg("--engine").arg(engine);
    }
    // The agent must not hold a directory that somebody wants to unmount.
    command.current_dir("/");
    let mut child = command
        .spawn()
        .map_err(|e| fault(format!("the agent could not be started: {e}")))?;
    let begun = Instant::now();
    loop {
        match local::connect(&place.socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                // Another caller's agent may have won the socket; then ours ends and theirs answers.
                let ended = child.try_wait().ok().flatten();
                if let Some(status) = ended
                    && begun.elapsed() > Duration::from_secs(1)
                {
                    let end = last_line(&place.log);
                    return Err(fault(format!("the agent ended at once ({status})")).because(end));
                }
                if begun.elapsed() > START {
                    return Err(fault(format!(
                        "the agent does not answer: {}",
                        WireError::from(error).into_fault()
                    )));
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn open_log(path: &Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::DirBuilderExt as _;
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)?;
    }
    // One log is enough to explain the last runs, and must not grow for ever.
    let large = std::fs::metadata(path).is_ok_and(|m| m.len() > 4 << 20);
    std::fs::OpenOptions::new()
        .create(true)
        .append(!large)
        .write(true)
        .truncate(large)
        .mode(0o600)
        .open(path)
}

fn last_line(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().last().unwrap_or_default().to_owned()
}
