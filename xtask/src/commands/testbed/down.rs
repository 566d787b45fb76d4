//! `testbed down`: takes beds away, with everything in them.

use std::process::ExitCode;

use tranship_testkit::testbed::{Dirs, Error, Testbed, beds, collect_garbage, down};

use super::BedName;
use crate::commands::CommandResult;

/// Arguments of `testbed down`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    bed: BedName,
    /// All beds on this machine but those of running processes, such as tests.
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

/// Runs `testbed down`.
pub fn run(args: &Args) -> CommandResult {
    let dirs = Dirs::default();
    if !args.all {
        down(&dirs, &args.bed.name)?;
        println!("testbed {} is down", args.bed.name);
        return Ok(ExitCode::SUCCESS);
    }
    for name in collect_garbage(&dirs)? {
        println!("testbed {name} is down");
    }
    for name in beds(&dirs)? {
        let bed = match Testbed::attach(&dirs, &name) {
            Ok(bed) => bed,
            // Gone since it was listed.
            Err(Error::NoBed(_)) => continue,
            Err(error) => return Err(error.into()),
        };
        if bed.has_living_owner() {
            println!(
                "testbed {name} {}: left alone; `down --name {name}` takes it down",
                bed.owner()
            );
        } else {
            bed.down()?;
            println!("testbed {name} is down");
        }
    }
    Ok(ExitCode::SUCCESS)
}
