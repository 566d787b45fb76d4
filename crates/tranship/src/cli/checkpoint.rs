//! Arguments of `tranship checkpoint`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use tranship_core::NodeAddress;
use tranship_core::ids::CheckpointName;

use crate::checkpoint_address::CheckpointAddress;

/// `tranship checkpoint`
#[derive(Debug, Clone, Args)]
pub struct CheckpointArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: CheckpointCommand,
}

/// What can be done with checkpoints.
#[derive(Debug, Clone, Subcommand)]
pub enum CheckpointCommand {
    /// Keep what the processes of a running container hold in memory, encrypted on its node, and end it
    Create(CheckpointCreateArgs),
    /// List the checkpoints of a node
    Ls(CheckpointLsArgs),
    /// Let a container go on from a checkpoint, if its files are what they were
    Restore(CheckpointRestoreArgs),
    /// Write a checkpoint as an archive, to be kept elsewhere
    Export(CheckpointExportArgs),
    /// Bring a checkpoint back from an archive, into the container that it is of
    Import(CheckpointImportArgs),
    /// Remove a checkpoint for good
    Rm(CheckpointRmArgs),
}

/// `tranship checkpoint create`
#[derive(Debug, Clone, Args)]
pub struct CheckpointCreateArgs {
    /// The container, as [NODE//]CONTAINER
    #[arg(value_name = "CONTAINER")]
    pub container: CheckpointAddress,
    /// What the checkpoint is called [default: the time in milliseconds since 1970]
    #[arg(long, value_name = "NAME")]
    pub name: Option<CheckpointName>,
    /// Let the container go on. It can go back to the checkpoint as long as its files are what they were
    #[arg(long)]
    pub leave_running: bool,
}

/// `tranship checkpoint ls`
#[derive(Debug, Clone, Args)]
pub struct CheckpointLsArgs {
    /// The node
    #[arg(value_name = "NODE", default_value = "local")]
    pub node: NodeAddress,
}

/// `tranship checkpoint restore`
#[derive(Debug, Clone, Args)]
pub struct CheckpointRestoreArgs {
    /// The checkpoint, as [NODE//]CONTAINER@NAME, or without @NAME if there is only one
    #[arg(value_name = "CHECKPOINT")]
    pub checkpoint: CheckpointAddress,
    /// Also if files changed since: what processes know of them may be wrong, and what they write then may do harm
    #[arg(long)]
    pub changed_files: bool,
}

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ArchiveCompression {
    /// With zstd
    Zstd,
    /// Not at all
    None,
}

/// `tranship checkpoint export`
#[derive(Debug, Clone, Args)]
#[command(group(clap::ArgGroup::new("memory").required(true)))]
pub struct CheckpointExportArgs {
    /// The checkpoint, as [NODE//]CONTAINER@NAME, or without @NAME if there is only one
    #[arg(value_name = "CHECKPOINT")]
    pub checkpoint: CheckpointAddress,
    /// The archive, which only its owner can read; - is standard output, and a file that a shell makes for it has the mode of the shell's
    /// umask
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,
    /// Encrypt it with the key of its node: no other machine can read it
    #[arg(long, group = "memory")]
    pub encrypted: bool,
    /// Leave what the processes had in memory readable, passwords and keys included, as an archive in podman's form
    #[arg(long, group = "memory")]
    pub unencrypted: bool,
    /// How it is compressed. What is encrypted is not
    #[arg(long, value_name = "HOW", default_value = "zstd")]
    pub compress: ArchiveCompression,
    /// Write an image of OCI's, for registries, whose one layer the archive is (skopeo: oci-archive:FILE)
    #[arg(long, requires = "unencrypted")]
    pub oci: bool,
}

/// `tranship checkpoint import`
#[derive(Debug, Clone, Args)]
pub struct CheckpointImportArgs {
    /// The archive; - is standard input
    #[arg(value_name = "FILE")]
    pub input: PathBuf,
    /// The container that it is of, on the node that exported it, as [NODE//]CONTAINER
    #[arg(value_name = "CONTAINER")]
    pub container: CheckpointAddress,
    /// What the checkpoint is called from now on [default: as it was]
    #[arg(long, value_name = "NAME")]
    pub name: Option<CheckpointName>,
}

/// `tranship checkpoint rm`
#[derive(Debug, Clone, Args)]
pub struct CheckpointRmArgs {
    /// The checkpoint, as [NODE//]CONTAINER@NAME
    #[arg(value_name = "CHECKPOINT")]
    pub checkpoint: CheckpointAddress,
}
