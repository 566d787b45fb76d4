//! `testbed link`: cuts, mends or slows a node's cable.

use std::process::ExitCode;

use clap::Subcommand;
use tranship_testkit::testbed::Link;

use super::BedName;
use crate::commands::CommandResult;

/// Arguments of `testbed link`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    bed: BedName,
    /// The node's name.
    node: String,
    #[command(subcommand)]
    state: State,
}

#[derive(Debug, Subcommand)]
enum State {
    /// Cut: packets vanish, connections stay open.
    Down,
    /// Whole and fast.
    Up,
    /// Slowed to a rate, such as 100mbit.
    Rate {
        /// As tc takes it: 500kbit, 100mbit, 2gbit.
        rate: String,
    },
}

/// Runs `testbed link`.
pub fn run(args: &Args) -> CommandResult {
    let bed = args.bed.attach()?;
    let link = match &args.state {
        State::Down => Link::Down,
        State::Up => Link::Up,
        State::Rate { rate } => Link::Rate(rate),
    };
    bed.node(&args.node)?.set_link(link)?;
    Ok(ExitCode::SUCCESS)
}
