//! `cargo xtask testbed`: beds that stay up until they are taken down.

mod down;
mod exec;
mod gc;
mod images;
mod link;
mod ssh_config;
mod status;
mod up;

use clap::Subcommand;
use tranship_testkit::testbed::{Dirs, Testbed};

use super::CommandResult;

/// The bed that is meant when none is named.
const DEFAULT_BED: &str = "default";

/// Arguments of `testbed`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring up a bed of nodes.
    Up(up::Args),
    /// Take down a bed.
    Down(down::Args),
    /// Run a command in a node.
    Exec(exec::Args),
    /// Cut, mend or slow a node's cable.
    Link(link::Args),
    /// Show the beds that are up.
    Status,
    /// Remove beds whose owner is gone.
    Gc,
    /// Print the path of a configuration for `ssh -F PATH NODE`.
    SshConfig(BedName),
    /// Build the test images into the cache.
    Images(images::Args),
}

/// Which bed.
#[derive(Debug, clap::Args)]
struct BedName {
    /// The bed's name.
    #[arg(long, default_value = DEFAULT_BED)]
    name: String,
}

impl BedName {
    fn attach(&self) -> Result<Testbed, tranship_testkit::testbed::Error> {
        Testbed::attach(&Dirs::default(), &self.name)
    }
}

/// Runs `testbed`.
pub fn run(args: Args) -> CommandResult {
    match args.command {
        Command::Up(args) => up::run(args),
        Command::Down(args) => down::run(&args),
        Command::Exec(args) => exec::run(&args),
        Command::Link(args) => link::run(&args),
        Command::Status => status::run(),
        Command::Gc => gc::run(),
        Command::SshConfig(name) => ssh_config::run(&name),
        Command::Images(args) => images::run(&args),
    }
}
