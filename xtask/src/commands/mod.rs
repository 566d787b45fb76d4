//! The commands, one module each.

mod bench;
mod ci;
mod demo;
mod kernel;
mod test;
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
    /// Two hosts, a web service under load, one command: see a container move.
    Demo(demo::Args),
    /// All tests, on real hosts made here.
    Test,
    /// End-to-end tests on a kernel that this machine does not run: one with dirty tracking of memory, in an emulated machine.
    Kernel(kernel::Args),
    /// What decides whether a change lands: lints, documentation, dependencies, tests, here and on another kernel.
    Ci,
    /// Side by side with what a user would do instead.
    Bench(bench::Args),
}

/// Runs the command and reports its failure.
pub fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Testbed(args) => testbed::run(args),
        Command::Demo(args) => demo::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Test => test::run(false).map(|()| ExitCode::SUCCESS),
        Command::Kernel(args) => kernel::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Ci => ci::run().map(|()| ExitCode::SUCCESS),
        Command::Bench(args) => bench::run(&args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}
