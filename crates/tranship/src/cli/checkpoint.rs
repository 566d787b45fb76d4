//! Arguments of `tranship checkpoint`.

use clap::{Args, Subcommand};
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

/// `tranship checkpoint rm`
#[derive(Debug, Clone, Args)]
pub struct CheckpointRmArgs {
    /// The checkpoint, as [NODE//]CONTAINER@NAME
    #[arg(value_name = "CHECKPOINT")]
    pub checkpoint: CheckpointAddress,
}
