//! The commands, one module each.

mod testbed;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// How a command ends: with an exit code of its own, or with an error to be printed.
type CommandResult = Result<ExitCode, Box<dyn Error>>;

/// Tools for working on tranship.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Real hosts on this machine, to try things on.
    Testbed(testbed::Args),
}

/// Runs the command and reports its failure.
pub fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Testbed(args) => testbed::run(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}
