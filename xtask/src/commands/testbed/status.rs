//! `testbed status`: which beds are up.

use std::process::ExitCode;

use tranship_testkit::testbed::{Dirs, Error, Testbed, beds, missing_capability};

use crate::commands::CommandResult;

/// Runs `testbed status`.
pub fn run() -> CommandResult {
    let dirs = Dirs::default();
    if let Some(reason) = missing_capability() {
        println!("no testbed on this machine: {reason}");
    }
    let names = beds(&dirs)?;
    if names.is_empty() {
        println!("no testbed is up");
    }
    for name in names {
        let bed = match Testbed::attach(&dirs, &name) {
            Ok(bed) => bed,
            // Gone since it was listed.
            Err(Error::NoBed(_)) => continue,
            Err(error) => return Err(error.into()),
        };
        let owner = bed.owner();
        println!("testbed {name} ({}), {owner}", bed.engine());
        for node in bed.all() {
            let state = if node.is_running() { "on" } else { "off" };
            println!(
                "  {}  {}  {state}  cable {}",
                node.name(),
                node.address(),
                node.link_state()
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}
