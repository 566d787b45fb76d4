//! `testbed ssh-config`: prints where a bed's ssh configuration is.

use std::process::ExitCode;

use super::BedName;
use crate::commands::CommandResult;

/// Runs `testbed ssh-config`.
pub fn run(bed: &BedName) -> CommandResult {
    println!("{}", bed.attach()?.ssh_config().display());
    Ok(ExitCode::SUCCESS)
}
