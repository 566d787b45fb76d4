//! `testbed up`: brings up a bed that outlives the command.

use std::process::ExitCode;

use tranship_testkit::testbed::{Engine, Options, Testbed};

use super::DEFAULT_BED;
use crate::commands::CommandResult;

/// Arguments of `testbed up`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many nodes; they are called a, b, c and so on.
    #[arg(long, default_value_t = 2)]
    nodes: usize,
    /// The container engine: docker or podman.
    #[arg(long, default_value_t = Engine::Docker)]
    engine: Engine,
    /// The bed's name.
    #[arg(long, default_value = DEFAULT_BED)]
    name: String,
    /// Put /var/lib/docker of NODE on a file system of BYTES bytes.
    #[arg(long, value_name = "NODE=BYTES", value_parser = parse_disk)]
    small_disk: Vec<(String, u64)>,
    /// Let containerd keep the images of NODE's Docker.
    #[arg(long, value_name = "NODE")]
    containerd_store: Vec<String>,
    /// The Debian mirror for the first build; otherwise the one apt uses on this machine.
    #[arg(long)]
    mirror: Option<String>,
}

fn parse_disk(text: &str) -> Result<(String, u64), String> {
    let (node, bytes) = text.split_once('=').ok_or("expected NODE=BYTES")?;
    Ok((
        node.to_owned(),
        bytes.parse().map_err(|error| format!("{bytes}: {error}"))?,
    ))
}

/// Runs `testbed up`.
pub fn run(args: Args) -> CommandResult {
    let mut options = Options {
        nodes: args.nodes,
        engine: args.engine,
        name: Some(args.name),
        persistent: true,
        containerd_stores: args.containerd_store,
        mirror: args.mirror,
        ..Options::default()
    };
    for (node, bytes) in args.small_disk {
        options = options.small_disk(&node, "/var/lib/docker", bytes);
    }
    let bed = Testbed::up(options)?;
    for node in bed.all() {
        println!("{}  {}", node.name(), node.address());
    }
    println!("log in:     ssh -F {} a", bed.ssh_config().display());
    let name = if bed.name() == DEFAULT_BED {
        String::new()
    } else {
        format!(" --name {}", bed.name())
    };
    println!(
        "run:        cargo xtask testbed exec{name} a -- {} ps",
        bed.engine().client()
    );
    println!("take down:  cargo xtask testbed down{name}");
    Ok(ExitCode::SUCCESS)
}
