//! The command line: arguments and help texts, nothing else.

mod checkpoint;
mod image;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use tranship_agent::files::Owner;
use tranship_core::ids::{ContainerName, MigrationId};
use tranship_core::storage::Compression;
use tranship_core::{Fault, NodeAddress};
use tranship_migrate::ImageStrategy;
use tranship_migrate::options::MoveOptions;

pub use self::checkpoint::{
    ArchiveCompression, CheckpointArgs, CheckpointCommand, CheckpointCreateArgs, CheckpointExportArgs,
    CheckpointImportArgs, CheckpointLsArgs, CheckpointRestoreArgs, CheckpointRmArgs,
};
pub use self::image::{ImageArgs, ImageCommand, ImageLayersArgs, ImageLsArgs, ImageServeArgs, ImageWayArgs};
pub use self::values::{MemoryTrackingArg, ModeArg, OnSourceArg, TcpArg, VolumeConflictArg};
use crate::hooks;
use crate::volume_address::VolumeAddress;

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
    /// Say more on standard error; up to three times
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
    /// Copy files between containers, volumes, this machine and archives
    Cp(CpArgs),
    /// Go on watching a migration; starts agents that a crash or a reboot ended, and carries a link that is missing
    Resume(OneArgs),
    /// End a migration in order, as long as the source has not handed over
    Abort(OneArgs),
    /// Take the container back, also after the source handed over and until the destination adopted it
    Rollback(OneArgs),
    /// Say who owns the container of a migration in doubt, after looking at both nodes
    Resolve(ResolveArgs),
    /// Show what happened in one migration, at both of its nodes
    Logs(OneArgs),
    /// List, copy, keep and compare volumes
    Volume(VolumeArgs),
    /// Keep the memory of a running container on its node, and let it go on from there
    Checkpoint(CheckpointArgs),
    /// Bring images from node to node without a registry, or be one
    Image(ImageArgs),
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
    /// What becomes of established TCP connections
    #[arg(long, value_enum, default_value_t = TcpArg::Close)]
    pub tcp: TcpArg,
    /// Whether live mode asks the kernel which pages were written
    #[arg(long, value_enum, default_value_t = MemoryTrackingArg::Auto)]
    pub memory_tracking: MemoryTrackingArg,
    /// Name at the destination
    #[arg(long, value_name = "NAME", help_heading = "Conflicts")]
    pub rename: Option<ContainerName>,
    /// Remove a container of the same name at the destination; it comes back if the migration fails
    #[arg(long, help_heading = "Conflicts")]
    pub replace: bool,
    /// Publish a port of the host elsewhere; once for each port
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
    /// Move containers that share a volume with it along, all frozen together
    #[arg(long, help_heading = "State")]
    pub with_dependents: bool,
    /// Carry the data of this volume only, by name or path in the container; several times for several
    #[arg(long, value_name = "NAME", help_heading = "State")]
    pub volume: Vec<String>,
    /// Leave the data of this volume behind, by name or path in the container
    #[arg(long, value_name = "NAME", help_heading = "State")]
    pub exclude_volume: Vec<String>,
    /// Leave behind what matches, in volumes and layer: *, **, ?, a leading / for the top, a trailing / for directories
    #[arg(long, value_name = "PATTERN", help_heading = "State")]
    pub exclude: Vec<String>,
    /// Carry what a bind mount holds, by its path in the container or on the host
    #[arg(long, value_name = "PATH", help_heading = "State")]
    pub include_bind: Vec<String>,
    /// Use what the destination has at the path of this bind mount
    #[arg(long, value_name = "PATH", help_heading = "State")]
    pub shared_bind: Vec<String>,
    /// Carry what a tmpfs holds, by its path in the container (warm mode)
    #[arg(long, value_name = "PATH", help_heading = "State")]
    pub include_tmpfs: Vec<String>,
    /// What to do about a volume of the same name at the destination
    #[arg(long, value_enum, default_value_t = VolumeConflictArg::Refuse, help_heading = "Conflicts")]
    pub volume_conflict: VolumeConflictArg,
    /// Do not freeze before the freeze is expected to last at most this long
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, help_heading = "Freeze")]
    pub max_downtime: Option<u64>,
    /// Rounds of copying while it runs, at most; 0 copies everything in the freeze [default: 6]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100), help_heading = "Freeze")]
    pub rounds: Option<u32>,
    /// Run a command in the source's container right before it freezes
    #[arg(long, value_name = "COMMAND", help_heading = "Freeze")]
    pub hook_pre_freeze: Vec<String>,
    /// Run a command on the source's host while it is frozen
    #[arg(long, value_name = "COMMAND", help_heading = "Freeze")]
    pub hook_post_freeze: Vec<String>,
    /// Run a command in the container at the destination once it runs there
    #[arg(long, value_name = "COMMAND", help_heading = "Freeze")]
    pub hook_post_start: Vec<String>,
    /// Run a command in the source's container if it goes on after all
    #[arg(long, value_name = "COMMAND", help_heading = "Freeze")]
    pub hook_thaw: Vec<String>,
    /// Seconds that each of these commands may take
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400), help_heading = "Freeze")]
    pub hook_timeout: u64,
    /// Read hooks from a TOML file, one "hook" table for each: when, where (container or host), command, timeout
    #[arg(long, value_name = "FILE", help_heading = "Freeze")]
    pub hooks: Option<PathBuf>,
    /// Bytes per second on the wire, at most; K, M and G may follow
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, help_heading = "Transfer")]
    pub limit_rate: Option<u64>,
    /// Compression of volumes and layer on the wire: none, zstd, zstd:LEVEL or auto
    #[arg(long, value_name = "HOW", default_value = "auto", help_heading = "Transfer")]
    pub compress: Compression,
    /// Leave behind what the containers wrote into their own layers
    #[arg(long, help_heading = "State")]
    pub without_layer: bool,
    /// Send the whole image, layers that are there included; the same as --image-strategy simple
    #[arg(long, help_heading = "Transfer", conflicts_with = "image_strategy")]
    pub whole_image: bool,
    /// How the image gets there.
    #[command(flatten)]
    pub image: ImageWayArgs,
    /// Carry the data through this machine, without trying the direct way
    #[arg(long, help_heading = "Transfer")]
    pub relay: bool,
    /// Seconds within which a container must be healthy at the destination [default: by its health check, else 30]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub health_timeout: Option<u64>,
}

impl MoveArgs {
    /// The options of a move, as the heart takes them.
    ///
    /// # Errors
    /// `usage.hooks` when the file of hooks cannot be read.
    pub fn options(&self) -> Result<MoveOptions, Fault> {
        Ok(MoveOptions {
            mode: self.mode.into(),
            on_source: self.on_source.into(),
            tcp: self.tcp.into(),
            memory_tracking: self.memory_tracking.into(),
            rename: self.rename.as_ref().map(ToString::to_string),
            replace: self.replace,
            publish: self.publish.iter().copied().collect(),
            without_volumes: self.without_volumes,
            without_layer: self.without_layer,
            retag: self.retag,
            new_subnets: self.new_subnets,
            reuse_networks: self.reuse_networks,
            whole_image: self.whole_image || self.image.strategy() == ImageStrategy::Simple,
            image_strategy: self.image.strategy(),
            registry: self.image.registry.clone(),
            health_timeout_ms: self.health_timeout.map(|s| s * 1000),
            with_dependents: self.with_dependents,
            volumes: self.volume.clone(),
            exclude_volumes: self.exclude_volume.clone(),
            exclude: self.exclude.clone(),
            include_bind: self.include_bind.clone(),
            shared_bind: self.shared_bind.clone(),
            include_tmpfs: self.include_tmpfs.clone(),
            volume_conflict: self.volume_conflict.into(),
            max_downtime_ms: self.max_downtime,
            rounds: self.rounds,
            compression: self.compress,
            limit_rate: self.limit_rate,
            hooks: hooks::all(self)?,
        })
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
    /// Ask this node for all migrations that it knows; may be given several times
    #[arg(long, value_name = "NODE")]
    pub node: Vec<NodeAddress>,
}

/// `tranship status`
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// The migration; the one that you started last if not given
    #[arg(value_name = "ID")]
    pub id: Option<MigrationId>,
    /// Ask this node in place of those that the migration was started with; may be given several times
    #[arg(long, value_name = "NODE")]
    pub node: Vec<NodeAddress>,
}

/// Which migration.
#[derive(Debug, Clone, Args)]
pub struct OneArgs {
    /// The migration
    #[arg(value_name = "ID")]
    pub id: MigrationId,
    /// Ask this node in place of those that the migration was started with; may be given several times
    #[arg(long, value_name = "NODE")]
    pub node: Vec<NodeAddress>,
}

/// `tranship resolve`
#[derive(Debug, Clone, Args)]
pub struct ResolveArgs {
    #[command(flatten)]
    pub migration: OneArgs,
    /// Who owns the container from now on
    #[arg(long, value_enum)]
    pub owner: OwnerArg,
    /// Decide although a node cannot be asked: you have made sure that the container does not run there and never will
    #[arg(long)]
    pub force: bool,
}

/// One of the two sides of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OwnerArg {
    /// Where it came from
    Source,
    /// Where it went
    Destination,
}

/// `tranship doctor`
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// The nodes to look at; with several, every pair is looked at too
    #[arg(value_name = "NODE", default_value = "local")]
    pub nodes: Vec<NodeAddress>,
}

/// `tranship cp`
#[derive(Debug, Clone, Args)]
pub struct CpArgs {
    /// What is copied, and last where it goes: [NODE//]CONTAINER:PATH, [NODE//]volume:NAME:PATH, a path of this machine,
    /// or - for an archive. A source that ends with /. stands for what is in it
    #[arg(value_name = "SRC... DST", required = true, num_args = 2..)]
    pub operands: Vec<OsString>,
    /// Follow a symbolic link that is the source itself
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// In a container, give everything to the container's own user
    #[arg(short, long)]
    pub archive: bool,
    /// Give everything to this owner
    #[arg(long, value_name = "UID:GID", conflicts_with = "archive")]
    pub chown: Option<Owner>,
    /// Copy only what is at this path of the source and below it; several times for several
    #[arg(long, value_name = "PATH")]
    pub include: Vec<OsString>,
    /// Leave out what is at this path of the source and below it; several times for several
    #[arg(long, value_name = "PATH")]
    pub exclude: Vec<OsString>,
    /// Take *, ? and [...] in the paths of containers and volumes for patterns, as a shell does; quote them
    #[arg(long)]
    pub glob: bool,
    /// Send only what the files at the destination do not hold already. Both ends are read and compared by content
    #[arg(long)]
    pub delta: bool,
    /// Keep the beginning of a large file when the copy is interrupted, and go on there the next time; implies --delta
    #[arg(long)]
    pub partial: bool,
    /// Copy through this process, although the agents could do without it
    #[arg(long)]
    pub relay: bool,
}

/// `tranship volume`
#[derive(Debug, Clone, Args)]
pub struct VolumeArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: VolumeCommand,
}

/// What can be done with volumes.
#[derive(Debug, Clone, Subcommand)]
pub enum VolumeCommand {
    /// List the volumes of a node, who uses them, and their snapshots
    Ls(VolumeLsArgs),
    /// Copy a volume with its attributes to another node or name; run again, it sends only what changed
    Copy(VolumeCopyArgs),
    /// Keep what a volume holds now, on its own node
    Snapshot(VolumeSnapshotArgs),
    /// Write a volume as a tar archive, with all attributes
    Export(VolumeExportArgs),
    /// Make a volume from a tar archive, plain or compressed
    Import(VolumeImportArgs),
    /// Compare what two volumes hold, byte by byte and attribute by attribute
    Verify(VolumeVerifyArgs),
}

/// `tranship volume ls`
#[derive(Debug, Clone, Args)]
pub struct VolumeLsArgs {
    /// The node
    #[arg(value_name = "NODE", default_value = "local")]
    pub node: NodeAddress,
}

/// `tranship volume copy`
#[derive(Debug, Clone, Args)]
pub struct VolumeCopyArgs {
    /// The volume, as [NODE//]NAME, or a snapshot of it, as [NODE//]NAME@TIME
    #[arg(value_name = "SRC")]
    pub source: VolumeAddress,
    /// The copy, as [NODE//]NAME, or NODE// for the same name
    #[arg(value_name = "DST")]
    pub destination: VolumeAddress,
    /// Make a volume that is there equal to the source, removing what the source does not have
    #[arg(long)]
    pub update: bool,
    /// Pause the containers that use the volume for the last round, so that the copy is of one moment
    #[arg(long)]
    pub freeze: bool,
    /// Leave out what matches
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// Bytes per second on the wire, at most; K, M and G may follow
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub limit_rate: Option<u64>,
    /// Compression on the wire: none, zstd, zstd:LEVEL or auto
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub compress: Compression,
    /// Carry the data through this machine, without trying the direct way
    #[arg(long)]
    pub relay: bool,
}

/// `tranship volume snapshot`
#[derive(Debug, Clone, Args)]
pub struct VolumeSnapshotArgs {
    /// The volume, as [NODE//]NAME; with --rm a snapshot, as [NODE//]NAME@TIME
    #[arg(value_name = "VOLUME")]
    pub volume: VolumeAddress,
    /// Pause the containers that use the volume for the last round, so that the snapshot is of one moment
    #[arg(long)]
    pub freeze: bool,
    /// Leave out what matches
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// Remove the snapshot
    #[arg(long, conflicts_with_all = ["freeze", "exclude"])]
    pub rm: bool,
}

/// `tranship volume export`
#[derive(Debug, Clone, Args)]
pub struct VolumeExportArgs {
    /// The volume, as [NODE//]NAME, or a snapshot of it, as [NODE//]NAME@TIME
    #[arg(value_name = "VOLUME")]
    pub volume: VolumeAddress,
    /// The archive; - is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,
}

/// `tranship volume import`
#[derive(Debug, Clone, Args)]
pub struct VolumeImportArgs {
    /// The new volume, as [NODE//]NAME
    #[arg(value_name = "VOLUME")]
    pub volume: VolumeAddress,
    /// The archive; - is standard input
    #[arg(value_name = "FILE", default_value = "-")]
    pub input: PathBuf,
    /// A label of the volume; several times for several
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub label: Vec<(String, String)>,
    /// An option of the volume's driver; several times for several
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub opt: Vec<(String, String)>,
}

/// `tranship volume verify`
#[derive(Debug, Clone, Args)]
pub struct VolumeVerifyArgs {
    /// A volume, as [NODE//]NAME, or a snapshot, as [NODE//]NAME@TIME
    #[arg(value_name = "A")]
    pub left: VolumeAddress,
    /// Another one
    #[arg(value_name = "B")]
    pub right: VolumeAddress,
    /// Show at most this many differences
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub limit: usize,
}

/// `tranship agent`
#[derive(Debug, Clone, Args)]
pub struct AgentArgs {
    #[command(subcommand)]
    pub action: Option<AgentAction>,
    /// Join standard input and output to this node's agent, starting it if need be
    #[arg(long, conflicts_with = "serve")]
    pub stdio: bool,
    /// Be this node's agent until there is nothing left to do
    #[arg(long, hide = true)]
    pub serve: bool,
    /// With --serve: stay, also without anything to do
    #[arg(long, hide = true)]
    pub stay: bool,
    /// Print name, version and protocol versions
    #[arg(long, hide = true)]
    pub version_line: bool,
    /// The engine's socket [default: docker's, else podman's]
    #[arg(long, value_name = "SOCKET")]
    pub engine: Option<PathBuf>,
}

/// What to do with the agent as a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Subcommand)]
pub enum AgentAction {
    /// Make the agent a service of systemd, so that it goes on with migrations after a reboot by itself
    Install,
    /// Undo what install did
    Uninstall,
}

/// `tranship completions`
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Seconds with a fraction, as milliseconds.
fn parse_seconds(text: &str) -> Result<u64, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| format!("{text:?} is not a number of seconds"))?;
    if !(0.001..=86_400.0).contains(&seconds) {
        return Err("it is between 0.001 and 86400 seconds".into());
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the range was just checked"
    )]
    Ok((seconds * 1000.0).round() as u64)
}

/// A number of bytes with an optional K, M or G (powers of 1024).
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (text.get(..at), 1u64 << 10),
        Some((at, 'm' | 'M')) => (text.get(..at), 1 << 20),
        Some((at, 'g' | 'G')) => (text.get(..at), 1 << 30),
        _ => (Some(text), 1),
    };
    let number: u64 = digits
        .unwrap_or_default()
        .parse()
        .map_err(|_| format!("{text:?} is not a number of bytes such as 500K, 20M or 1G"))?;
    match number.checked_mul(factor) {
        Some(bytes @ 1..) => Ok(bytes),
        _ => Err(format!("{text:?} is out of range")),
    }
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it is written KEY=VALUE".into()),
    }
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
