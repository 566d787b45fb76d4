//! `cargo xtask bench`: side by side with what a user would do instead.

mod cp;
mod image;
mod measure;
mod memory;
mod volume;
mod ways;

use tranship_testkit::testbed::{Engine, Options, Testbed};

use crate::build;

/// `cargo xtask bench`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is measured: bringing an image over, copying a volume, copying files in and out of containers, or moving memory.
    #[arg(value_parser = ["image", "volume", "cp", "memory"])]
    what: String,
    /// Runs of each case; medians are shown.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    runs: u16,
    /// Cases of the volume or cp benchmark, by letter; all of them if none is named.
    #[arg(long, value_delimiter = ',', value_parser = ["a", "b", "c", "d", "e", "f", "g"])]
    rows: Vec<String>,
    /// Everything a tenth as large: to see whether the benchmark itself works.
    #[arg(long)]
    small: bool,
    /// The engine of the memory benchmark: docker or podman.
    #[arg(long, default_value = "docker")]
    engine: Engine,
}

/// Runs the benchmark.
pub fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    match args.what.as_str() {
        "image" => image::run(usize::from(args.runs), args.small),
        "memory" => memory::run(usize::from(args.runs), args.small, args.engine),
        "cp" => cp::run(usize::from(args.runs), &args.rows, args.small),
        "volume" => volume::run(usize::from(args.runs), &args.rows, args.small),
        other => Err(format!("there is no benchmark {other:?}").into()),
    }
}

/// Two hosts with Docker on which the released program is installed.
fn hosts() -> Result<Testbed, Box<dyn std::error::Error>> {
    hosts_of(Engine::default())
}

/// Two hosts on which the released program is installed.
fn hosts_of(engine: Engine) -> Result<Testbed, Box<dyn std::error::Error>> {
    println!("building tranship (release) …");
    let tranship = build::release()?;
    println!("starting two hosts …");
    let bed = Testbed::up(Options {
        engine,
        ..Options::default()
    })?;
    for node in bed.array::<2>() {
        std::fs::copy(&tranship, node.root()?.join("usr/local/bin/tranship"))?;
    }
    Ok(bed)
}
