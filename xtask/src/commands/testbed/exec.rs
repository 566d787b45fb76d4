//! `testbed exec`: runs a command in a node, as root, with this terminal.

use std::process::ExitCode;

use super::BedName;
use crate::commands::CommandResult;

/// Arguments of `testbed exec`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    bed: BedName,
    /// The node's name.
    node: String,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs `testbed exec`; ends as the command did.
pub fn run(args: &Args) -> CommandResult {
    let bed = args.bed.attach()?;
    let status = bed.node(&args.node)?.command(&args.command)?.status()?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
