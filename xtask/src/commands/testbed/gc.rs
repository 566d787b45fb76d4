//! `testbed gc`: removes what dead processes left.

use std::process::ExitCode;

use tranship_testkit::testbed::{Dirs, collect_garbage};

use crate::commands::CommandResult;

/// Runs `testbed gc`.
pub fn run() -> CommandResult {
    let removed = collect_garbage(&Dirs::default())?;
    if removed.is_empty() {
        println!("nothing to remove");
    }
    for name in removed {
        println!("removed testbed {name}");
    }
    Ok(ExitCode::SUCCESS)
}
