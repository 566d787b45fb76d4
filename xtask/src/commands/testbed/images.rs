//! `testbed images`: builds the test images into the cache.

use std::process::ExitCode;

use tranship_testkit::testbed::{Dirs, IMAGES, ensure_images};

use crate::commands::CommandResult;

/// Arguments of `testbed images`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The Debian mirror for the first build; otherwise the one apt uses on this machine.
    #[arg(long)]
    mirror: Option<String>,
}

/// Runs `testbed images`.
pub fn run(args: &Args) -> CommandResult {
    let directory = ensure_images(&Dirs::default(), args.mirror.as_deref())?;
    println!("{}: {}", directory.display(), IMAGES.join(", "));
    Ok(ExitCode::SUCCESS)
}
