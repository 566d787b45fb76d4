//! The front door: reads the command line and the environment, runs one command, and turns what came of it into output and
//! an exit code.

mod checkpoint_address;
mod cli;
mod commands;
mod connect;
mod failure;
mod history;
mod hooks;
mod interrupts;
mod on_node;
mod progress;
mod render;
mod surroundings;
mod ui;
mod volume_address;

use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;
use tranship_core::{Fault, FaultKind};

use crate::cli::{Cli, Command};
use crate::commands::Context;
use crate::failure::exit;
use crate::ui::Ui;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let ui = Ui::new(&cli.global, surroundings::no_color());
    start_logging(&cli);
    let environment = match surroundings::read() {
        Ok(environment) => environment,
        Err(fault) => {
            ui.fail(&fault);
            return failure::exit_code(&[fault]);
        }
    };
    let context = Context {
        ui,
        global: cli.global.clone(),
        environment,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let fault = Fault::new(
                "runtime.failed",
                FaultKind::Environment,
                format!("cannot start threads: {error}"),
            );
            context.ui.fail(&fault);
            return failure::exit_code(&[fault]);
        }
    };
    let faults = runtime.block_on(run(&context, &cli.command));
    // Tasks that only wait (a relay, a signal handler) must not hold the program.
    runtime.shutdown_background();
    if faults.iter().any(|f| f.code == ui::BROKEN_PIPE) {
        return ExitCode::from(exit::BROKEN_PIPE);
    }
    for fault in &faults {
        context.ui.fail(fault);
    }
    failure::exit_code(&faults)
}

async fn run(context: &Context, command: &Command) -> Vec<Fault> {
    let one = |result: Result<(), Fault>| result.err().into_iter().collect();
    match command {
        Command::Migrate(args) => commands::migrate::run(context, args).await,
        Command::Plan(args) => one(commands::plan::run(context, args).await),
        Command::List(args) => commands::list::run(context, args).await,
        Command::Status(args) => commands::status::run(context, args).await,
        Command::Cp(args) => one(commands::cp::run(context, args).await),
        Command::Resume(args) => commands::settle::resume(context, args).await,
        Command::Abort(args) => commands::settle::abort(context, args).await,
        Command::Rollback(args) => commands::settle::roll_back(context, args).await,
        Command::Resolve(args) => commands::settle::resolve(context, args).await,
        Command::Logs(args) => commands::settle::logs(context, args).await,
        Command::Volume(args) => one(commands::volume::run(context, args).await),
        Command::Checkpoint(args) => one(commands::checkpoint::run(context, args).await),
        Command::Image(args) => one(commands::image::run(context, args).await),
        Command::Doctor(args) => commands::doctor::run(context, args).await,
        Command::Agent(args) => one(commands::agent::run(context, args).await),
        Command::Completions(args) => one(commands::completions::run(context, args)),
    }
}

/// Help and version are results; anything else is a wrong command line.
fn refuse(error: &clap::Error) -> ExitCode {
    let wanted = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    match (error.print(), wanted) {
        (Ok(()), true) => ExitCode::SUCCESS,
        (Err(e), _) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::from(exit::BROKEN_PIPE),
        _ => ExitCode::from(exit::USAGE),
    }
}

/// Logs go to standard error; for the agent that is its log file.
fn start_logging(cli: &Cli) {
    let level = match cli.global.verbose {
        0 => "warn",
        1 => {
            "tranship=info,tranship_agent=info,tranship_migrate=info,tranship_engine=info,tranship_oci=info,tranship_wire=info"
        }
        2 => {
            "tranship=debug,tranship_agent=debug,tranship_migrate=debug,tranship_engine=debug,tranship_oci=debug,tranship_wire=debug"
        }
        _ => "debug",
    };
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(level))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
}
