//! Gets an agent at the other end of a stream, wherever the node is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::Digest as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tranship_agent::AgentClient;
use tranship_agent::api::{Hello, PROTOCOL_MAX, PROTOCOL_MIN};
use tranship_core::address::SshAddress;
use tranship_core::{Fault, FaultKind, NodeAddress};
use tranship_wire::WireError;
use tranship_wire::bootstrap::{self, BootstrapOptions, Origin};
use tranship_wire::h2::{Client, ClientOptions};
use tranship_wire::ssh::SshTransport;

use crate::commands::{Context, agent};

/// How long the agent's first words may take.
const FIRST_WORDS: Duration = Duration::from_secs(20);

/// A node that answers.
pub struct Connection {
    /// As the user named it.
    pub address: NodeAddress,
    /// The same, for messages.
    pub label: String,
    /// The agent there.
    pub client: AgentClient,
    /// Its first words.
    pub hello: Hello,
    /// How it was reached, in words.
    pub way: String,
    /// Its agent runs on this machine.
    pub here: bool,
}

impl Connection {
    /// Its agent says that it can do this.
    pub fn can(&self, capability: &str) -> bool {
        self.hello.capabilities.iter().any(|can| can == capability)
    }
}

/// Connects to a node's agent, uploading and starting it where that is needed and allowed.
///
/// # Errors
/// Why it could not be reached, with the node's name.
pub async fn connect(context: &Context, address: &NodeAddress) -> Result<Connection, Fault> {
    let label = address.to_string();
    connect_inner(context, address, &label)
        .await
        .map_err(|f| f.on_node(label))
}

async fn connect_inner(context: &Context, address: &NodeAddress, label: &str) -> Result<Connection, Fault> {
    let resolved = match address {
        NodeAddress::Context(name) => resolve_context(context, name)?,
        other => other.clone(),
    };
    let here = matches!(resolved, NodeAddress::Local | NodeAddress::Unix(_));
    let (client, way) = match &resolved {
        NodeAddress::Local => (local(context, None, label).await?, "on this machine".to_owned()),
        NodeAddress::Unix(socket) => (
            local(context, Some(Path::new(socket)), label).await?,
            format!("on this machine, engine at {socket}"),
        ),
        NodeAddress::Ssh(ssh) => over_ssh(context, ssh, label).await?,
        NodeAddress::Context(name) => {
            return Err(context_fault(name, "it leads to another context"));
        }
    };
    let client = AgentClient::new(client);
    let hello = tokio::time::timeout(FIRST_WORDS, client.hello())
        .await
        .map_err(|_| {
            Fault::new(
                "agent.silent",
                FaultKind::Environment,
                "the agent there does not answer",
            )
            .with_hint("look at its log (agent.log in tranship's state directory there)")
        })??;
    if hello.protocol_max < PROTOCOL_MIN || hello.protocol_min > PROTOCOL_MAX {
        return Err(Fault::new(
            "agent.version",
            FaultKind::Environment,
            format!(
                "tranship {} there speaks protocol {}–{}, tranship {} here speaks {PROTOCOL_MIN}–{PROTOCOL_MAX}",
                hello.version,
                hello.protocol_min,
                hello.protocol_max,
                env!("CARGO_PKG_VERSION"),
            ),
        )
        .with_hint(if hello.busy > 0 {
            "that one is at work: this version takes its place once its migrations are over"
        } else {
            "install versions that are no more than one apart"
        }));
    }
    Ok(Connection {
        address: address.clone(),
        label: label.to_owned(),
        client,
        hello,
        way,
        here,
    })
}

async fn speak<IO>(stream: IO, label: &str) -> Result<Client, Fault>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    Client::connect(stream, &ClientOptions::new(label))
        .await
        .map_err(WireError::into_fault)
}

/// This machine's own agent, over its socket: nothing stands between that would have to pass on what is copied.
async fn local(context: &Context, engine: Option<&Path>, label: &str) -> Result<Client, Fault> {
    speak(agent::reach(context, engine).await?, label).await
}

async fn over_ssh(context: &Context, address: &SshAddress, label: &str) -> Result<(Client, String), Fault> {
    let mut transport = SshTransport::new(address.clone());
    if let Some(file) = &context.global.ssh_config {
        transport
            .options
            .extend(["-F".to_owned(), file.display().to_string()]);
    }
    transport.batch = context.global.batch || !context.ui.terminal;
    let binary = context.environment.image.clone();
    let sha256 = hash_of(&binary).await?;
    let mut options = BootstrapOptions::new(
        env!("CARGO_PKG_VERSION"),
        PROTOCOL_MIN..=PROTOCOL_MAX,
        binary,
        sha256,
    );
    options.no_bootstrap = context.global.no_bootstrap;
    // Builds under test share a version with others, and must be the ones that run.
    options.force_own = cfg!(feature = "fail-points") && !context.global.no_bootstrap;
    let stream = bootstrap::connect(&transport, &options, &|_| {})
        .await
        .map_err(WireError::into_fault)?;
    let way = match stream.origin() {
        Origin::Installed(installed) => format!("ssh; tranship {} is installed", installed.version),
        Origin::Cached => "ssh; tranship was uploaded before".to_owned(),
        Origin::Uploaded { bytes } => {
            let bytes = crate::render::bytes(*bytes);
            context.ui.say(&format!("{label}: uploaded tranship ({bytes})"));
            format!("ssh; tranship was uploaded ({bytes})")
        }
    };
    Ok((speak(stream, label).await?, way))
}

/// SHA-256 of a file, in hexadecimal digits.
pub async fn hash_of(path: &Path) -> Result<String, Fault> {
    let file = path.to_owned();
    let hashed = tokio::task::spawn_blocking(move || -> std::io::Result<String> {
        use std::io::Read as _;
        let mut hasher = sha2::Sha256::new();
        let mut input = std::fs::File::open(&file)?;
        let mut part = vec![0; 1 << 20];
        loop {
            match input.read(&mut part)? {
                0 => return Ok(tranship_core::ids::hex(&hasher.finalize())),
                length => hasher.update(part.get(..length).unwrap_or_default()),
            }
        }
    });
    let fault = |e: String| {
        let mut fault = Fault::new(
            "environment.executable",
            FaultKind::Environment,
            format!("this program's file cannot be read: {e}"),
        );
        fault.path = Some(path.display().to_string());
        fault
    };
    hashed
        .await
        .map_err(|e| fault(e.to_string()))?
        .map_err(|e| fault(e.to_string()))
}

/// What a docker context's name stands for: docker keeps each in a directory named by the SHA-256 of its name.
fn resolve_context(context: &Context, name: &str) -> Result<NodeAddress, Fault> {
    if name == "default" {
        return Ok(NodeAddress::Local);
    }
    let base: &PathBuf = context
        .environment
        .docker_config
        .as_ref()
        .ok_or_else(|| context_fault(name, "docker's configuration directory is not known"))?;
    let directory = tranship_core::ids::hex(&sha2::Sha256::digest(name.as_bytes()));
    let path = base
        .join("contexts")
        .join("meta")
        .join(directory)
        .join("meta.json");
    let text = std::fs::read_to_string(&path).map_err(|e| context_fault(name, &e.to_string()))?;
    let meta: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| context_fault(name, &e.to_string()))?;
    let host = meta["Endpoints"]["docker"]["Host"]
        .as_str()
        .ok_or_else(|| context_fault(name, "it names no docker host"))?;
    match NodeAddress::parse(host) {
        Ok(NodeAddress::Context(_)) | Err(_) => Err(context_fault(
            name,
            &format!("its host {host:?} is not supported"),
        )),
        Ok(address) => Ok(address),
    }
}

fn context_fault(name: &str, reason: &str) -> Fault {
    Fault::new(
        "context.not-found",
        FaultKind::Environment,
        format!("there is no usable docker context {name:?}"),
    )
    .because(reason)
    .with_hint("`docker context ls` shows them; a host is written ssh://[user@]host[:port]")
}
