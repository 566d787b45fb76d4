//! `tranship completions SHELL`

use clap::CommandFactory as _;
use tranship_core::Fault;

use super::Context;
use crate::cli::{Cli, CompletionsArgs};

/// Prints completions for the shell.
pub fn run(context: &Context, args: &CompletionsArgs) -> Result<(), Fault> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "tranship", &mut script);
    context.ui.document(String::from_utf8_lossy(&script).trim_end())
}
