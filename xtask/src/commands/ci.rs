//! `cargo xtask ci`: what decides whether a change lands.

use std::process::Command;

use crate::build::cargo;

/// Lints, documentation, dependencies, tests, and those tests that need another kernel.
pub fn run() -> Result<(), Box<dyn std::error::Error>> {
    step(
        "formatting",
        Command::new(cargo()).args(["fmt", "--all", "--check"]),
    )?;
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ];
    step("lints", Command::new(cargo()).args(clippy))?;
    // What is released has no fail points, and must not depend on what only they use.
    let release = [
        "clippy",
        "--package",
        "tranship",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ];
    step("lints of what is released", Command::new(cargo()).args(release))?;
    let docs = [
        "doc",
        "--workspace",
        "--no-deps",
        "--quiet",
        "--document-private-items",
    ];
    step(
        "documentation",
        Command::new(cargo())
            .args(docs)
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    dependencies()?;
    super::test::run(true)?;
    println!("== tests on another kernel");
    let args = super::kernel::Args::of_ci();
    super::kernel::run(&args).or_else(|error| {
        // Time goes unevenly in an emulated machine beside others.
        println!("== once more, since it failed: {error}");
        super::kernel::run(&args)
    })
}

fn step(what: &str, command: &mut Command) -> Result<(), Box<dyn std::error::Error>> {
    println!("== {what}");
    let status = command.status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{what}: {status}").into())
    }
}

/// `cargo deny` without the advisory database, which is fetched from a place that continuous integration may not reach.
fn dependencies() -> Result<(), Box<dyn std::error::Error>> {
    println!("== dependencies");
    let there = Command::new(cargo())
        .args(["deny", "--version"])
        .output()
        .is_ok_and(|o| o.status.success());
    if !there {
        println!("installing cargo-deny (once per machine) …");
        let install = ["install", "--locked", "--quiet", "cargo-deny"];
        step("cargo-deny", Command::new(cargo()).args(install))?;
    }
    step(
        "licences, bans and sources",
        Command::new(cargo()).args(["deny", "check", "bans", "licenses", "sources"]),
    )
}
