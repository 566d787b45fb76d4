//! `testbed down`: takes beds away, with everything in them.

use std::process::ExitCode;

use tranship_testkit::testbed::{Dirs, beds, down};

use super::BedName;
use crate::commands::CommandResult;

/// Arguments of `testbed down`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    bed: BedName,
    /// All beds on this machine, also those of running tests.
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

/// Runs `testbed down`.
pub fn run(args: &Args) -> CommandResult {
    let dirs = Dirs::default();
    let names = if args.all {
        beds(&dirs)?
    } else {
        vec![args.bed.name.clone()]
    };
    for name in names {
        down(&dirs, &name)?;
        println!("testbed {name} is down");
    }
    Ok(ExitCode::SUCCESS)
}
