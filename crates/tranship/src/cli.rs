//! The command line: arguments and help texts, nothing else.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tranship_core::NodeAddress;
use tranship_core::ids::{ContainerName, MigrationId};
use tranship_migrate::options::{ModeRequest, MoveOptions, OnSource};

/// Moves running containers from one machine to another, with everything that makes them those containers.
#[derive(Debug, Parser)]
#[command(name = "tranship", version, max_term_width = 100, propagate_version = true)]
pub struct Cli {
    /// What all commands share.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct GlobalArgs {
    /// Print results as JSON on standard output, and progress as JSON lines on standard error
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,
    /// Print results only
    #[arg(short, long, global = true, help_heading = "Output")]
    pub quiet: bool,
    /// Say more on standard error; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Output")]
    pub verbose: u8,
    /// Configuration file for ssh in place of your own
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "TRANSHIP_SSH_CONFIG",
        help_heading = "Connections"
    )]
    pub ssh_config: Option<PathBuf>,
    /// Never ask for passwords; fail where ssh would ask
    #[arg(long, global = true, help_heading = "Connections")]
    pub batch: bool,
    /// Do not upload tranship to nodes that lack it
    #[arg(long, global = true, help_heading = "Connections")]
    pub no_bootstrap: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Move containers from one node to another
    Migrate(MigrateArgs),
    /// Show what `migrate` would do: conflicts, bytes, time and downtime. Changes nothing
    Plan(PlanArgs),
    /// List the migrations that you started, or those that nodes know of
    List(ListArgs),
    /// Show one migration as both of its nodes see it
    Status(StatusArgs),
    /// Say what nodes can do, and what to change
    Doctor(DoctorArgs),
    /// Serve one end of migrations (started by tranship itself, over ssh)
    Agent(AgentArgs),
    /// Print completions for a shell
    Completions(CompletionsArgs),
}

/// Which containers, from where to where, and how.
#[derive(Debug, Clone, Args)]
pub struct MoveArgs {
    /// Name or id of each container
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<ContainerName>,
    #[arg(
        long,
        value_name = "NODE",
        default_value = "local",
        help = "The node where they run: ssh://[user@]host[:port], unix:///socket, a docker context, or this machine"
    )]
    pub from: NodeAddress,
    /// The node where they shall run
    #[arg(long, value_name = "NODE")]
    pub to: NodeAddress,
    /// How they move
    #[arg(long, value_enum, default_value_t = ModeArg::Auto)]
    pub mode: ModeArg,
    /// What becomes of the source after the hand-over
    #[arg(long, value_enum, default_value_t = OnSourceArg::Stop)]
    pub on_source: OnSourceArg,
    /// Name at the destination
    #[arg(long, value_name = "NAME", help_heading = "Conflicts")]
    pub rename: Option<ContainerName>,
    /// Remove a container of the same name at the destination; it comes back if the migration fails
    #[arg(long, help_heading = "Conflicts")]
    pub replace: bool,
    /// Publish a port of the host elsewhere
    #[arg(long, value_name = "OLD=NEW", value_parser = parse_publish, help_heading = "Conflicts")]
    pub publish: Vec<(u16, u16)>,
    /// Let the image's tag move although another image at the destination bears it
    #[arg(long, help_heading = "Conflicts")]
    pub retag: bool,
    /// Let the destination's engine choose subnets and addresses for networks
    #[arg(long, help_heading = "Conflicts")]
    pub new_subnets: bool,
    /// Use a network of the same name at the destination although it differs
    #[arg(long, help_heading = "Conflicts")]
    pub reuse_networks: bool,
    /// Go on with new and empty volumes, and with what the destination has at the paths of bind mounts
    #[arg(long, help_heading = "State")]
    pub without_volumes: bool,
    /// Leave behind what the containers wrote into their own layers
    #[arg(long, help_heading = "State")]
    pub without_layer: bool,
    /// Send the whole image, layers that are there included
    #[arg(long, help_heading = "Transfer")]
    pub whole_image: bool,
    /// Carry the data through this machine, without trying the direct way
    #[arg(long, help_heading = "Transfer")]
    pub relay: bool,
    /// Seconds within which a container must be healthy at the destination [default: by its health check, else 30]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub health_timeout: Option<u64>,
}

impl MoveArgs {
    /// The options of a move, as the heart takes them.
    pub fn options(&self) -> MoveOptions {
        MoveOptions {
            mode: match self.mode {
                ModeArg::Auto => ModeRequest::Auto,
                ModeArg::Stateless => ModeRequest::Stateless,
                ModeArg::Cold => ModeRequest::Cold,
            },
            on_source: match self.on_source {
                OnSourceArg::Stop => OnSource::Stop,
                OnSourceArg::Remove => OnSource::Remove,
                OnSourceArg::Keep => OnSource::Keep,
            },
            rename: self.rename.as_ref().map(ToString::to_string),
            replace: self.replace,
            publish: self.publish.iter().copied().collect(),
            without_volumes: self.without_volumes,
            without_layer: self.without_layer,
            retag: self.retag,
            new_subnets: self.new_subnets,
            reuse_networks: self.reuse_networks,
            whole_image: self.whole_image,
            health_timeout_ms: self.health_timeout.map(|s| s * 1000),
        }
    }
}

/// `tranship migrate`
#[derive(Debug, Clone, Args)]
pub struct MigrateArgs {
    /// Which, from where, to where, how.
    #[command(flatten)]
    pub moves: MoveArgs,
}

/// `tranship plan`
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    /// Which, from where, to where, how.
    #[command(flatten)]
    pub moves: MoveArgs,
}

/// `tranship list`
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Ask this node for all migrations that it knows
    #[arg(long, value_name = "NODE")]
    pub node: Vec<NodeAddress>,
}

/// `tranship status`
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// The migration; the one that you started last if not given
    #[arg(value_name = "ID")]
    pub id: Option<MigrationId>,
    /// Ask these nodes in place of those that the migration was started with
    #[arg(long, value_name = "NODE")]
    pub node: Vec<NodeAddress>,
}

/// `tranship doctor`
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// The nodes to look at; with several, every pair is looked at too
    #[arg(value_name = "NODE", default_value = "local")]
    pub nodes: Vec<NodeAddress>,
}

/// `tranship agent`
#[derive(Debug, Clone, Args)]
pub struct AgentArgs {
    /// Join standard input and output to this node's agent, starting it if need be
    #[arg(long, conflicts_with = "serve")]
    pub stdio: bool,
    /// Be this node's agent until there is nothing left to do
    #[arg(long, hide = true)]
    pub serve: bool,
    /// Print name, version and protocol versions
    #[arg(long, hide = true)]
    pub version_line: bool,
    /// The engine's socket [default: docker's, else podman's]
    #[arg(long, value_name = "SOCKET")]
    pub engine: Option<PathBuf>,
}

/// `tranship completions`
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// How containers move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// Stateless where there is no state to carry, else you are asked to choose
    Auto,
    /// Run there before stopping here: no downtime. You vouch that there is no state
    Stateless,
    /// Stop here, then run there: never two at once
    Cold,
}

/// What becomes of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnSourceArg {
    /// Stop it and keep it, with restart policy "no"
    Stop,
    /// Stop and remove it
    Remove,
    /// Let it run (stateless mode only)
    Keep,
}

fn parse_publish(text: &str) -> Result<(u16, u16), String> {
    let port = |t: &str| match t.parse::<u16>() {
        Ok(n) if n > 0 && !t.starts_with('+') => Ok(n),
        _ => Err(format!("{t:?} is not a port between 1 and 65535")),
    };
    let (old, new) = text
        .split_once('=')
        .ok_or("it is written OLD=NEW, as in 80=8080")?;
    Ok((port(old)?, port(new)?))
}
