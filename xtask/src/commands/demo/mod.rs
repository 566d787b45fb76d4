//! `cargo xtask demo`: two hosts, services under load, one command each. Shows what their clients saw.

mod volume;
mod web;

use std::error::Error;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tranship_testkit::testbed::{Node, Options, Testbed};

use crate::build;

/// `cargo xtask demo`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What moves: a web service that keeps nothing, a service with a volume that is written to without a pause, or both
    #[arg(long, default_value = "both", value_parser = ["web", "volume", "both"])]
    show: String,
    /// How they move: stateless (web service only; no downtime), cold (stopped meanwhile) or warm (paused meanwhile)
    /// [default: stateless for the web service, warm for the volume]
    #[arg(long, value_parser = ["stateless", "cold", "warm"])]
    mode: Option<String>,
}

/// What a demonstration is made with.
struct Stage {
    tranship: PathBuf,
    bed: Testbed,
    a: Node,
    b: Node,
    state: tempfile::TempDir,
}

/// Runs the demonstration.
pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let (web, volume) = (args.show != "volume", args.show != "web");
    if args.mode.as_deref() == Some("stateless") && args.show == "volume" {
        return Err("what a volume holds cannot be in two places: --mode cold or --mode warm".into());
    }
    println!("Two Docker hosts on this machine, services on the first, clients that never stop asking.");
    println!("building tranship (release) …");
    let tranship = build::release()?;
    println!("starting two hosts, each with its own file system, network, sshd and dockerd …");
    println!(
        "(the first time on a machine this builds a Debian tree and test images, which takes a few minutes)"
    );
    let bed = Testbed::up(Options::default())?;
    let [a, b] = bed.array();
    let stage = Stage {
        tranship,
        bed,
        a,
        b,
        state: tempfile::tempdir()?,
    };
    if web {
        web::run(&stage, args.mode.as_deref().unwrap_or("stateless"))?;
    }
    if volume {
        let mode = args.mode.as_deref().filter(|mode| *mode != "stateless");
        volume::run(&stage, mode.unwrap_or("warm"))?;
    }
    println!("taking the hosts down …");
    drop(stage);
    println!("done. `cargo xtask testbed up` gives you such hosts to try things on.");
    Ok(())
}

impl Stage {
    /// `tranship migrate NAME --from a --to b`, shown as it is typed; its output goes where ours goes.
    fn migrate(&self, name: &str, mode: &str) -> Result<(), Box<dyn Error>> {
        println!("\n$ tranship migrate {name} --from ssh://root@a --to ssh://root@b --mode {mode}");
        let status = self.command(name, mode).status()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("tranship ended with {status}").into())
        }
    }

    fn command(&self, name: &str, mode: &str) -> Command {
        let mut command = Command::new(&self.tranship);
        command
            .args([
                "migrate",
                name,
                "--from",
                "ssh://root@a",
                "--to",
                "ssh://root@b",
                "--mode",
                mode,
            ])
            .env("TRANSHIP_SSH_CONFIG", self.bed.ssh_config())
            .env("TRANSHIP_STATE_DIR", self.state.path())
            .stdin(Stdio::null());
        command
    }
}

/// What `docker ps` says on a host.
fn show_containers(node: &Node, all: bool) -> Result<(), Box<dyn Error>> {
    let flag = if all { " -a" } else { "" };
    println!("\n$ docker ps{flag}    (on {}, {})", node.name(), node.address());
    let mut words = vec!["docker", "ps"];
    if all {
        words.push("-a");
    }
    words.extend([
        "--format",
        "table {{.Names}}\t{{.Image}}\t{{.Status}}\t{{.Ports}}",
    ]);
    print!("{}", node.exec_ok(words)?);
    Ok(())
}
