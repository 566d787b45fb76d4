//! `cargo xtask test`: everything that proves the code, on real hosts made here, and a count of what was skipped.

use std::path::Path;
use std::process::Command;

use tranship_testkit::testbed::{Dirs, Options, Testbed};

use crate::build::cargo;

/// Runs all tests. With `CI` set, a skipped test is a failure.
pub fn run(ci: bool) -> Result<(), Box<dyn std::error::Error>> {
    println!("tests run against real hosts (namespaces with their own dockerd and sshd); root is needed.");
    println!(
        "the first time on a machine this builds a Debian tree and test images, which takes a few minutes."
    );
    if let Some(missing) = tranship_testkit::testbed::missing_capability() {
        println!("this machine cannot make hosts: {missing}");
    } else {
        // Built once and first, so that no test waits for it.
        drop(Testbed::up(Options::default())?);
        tranship_testkit::testbed::ensure_images(&Dirs::default(), None)?;
    }
    let skips = tempfile::NamedTempFile::new()?;
    // Libraries and the testbed first: what they get wrong, the rest would only repeat.
    cargo_test(skips.path(), &["--workspace", "--exclude", "tranship"])?;
    // The binary with its fail points, over real hosts. Two beds at a time is what two processors carry.
    cargo_test(
        skips.path(),
        &[
            "--package",
            "tranship",
            "--features",
            "fail-points",
            "--bins",
            "--test",
            "e2e",
            "--",
            "--test-threads",
            "2",
        ],
    )?;
    // Every fault at every place: some hundred migrations, several at a time, and a table of how they ended.
    cargo_test(
        skips.path(),
        &[
            "--package",
            "tranship",
            "--features",
            "fail-points",
            "--test",
            "faults",
            "--",
            "--nocapture",
        ],
    )?;
    let skipped = std::fs::read_to_string(skips.path())?;
    let skipped: Vec<&str> = skipped.lines().collect();
    for line in &skipped {
        println!("SKIPPED: {line}");
    }
    println!("{} skipped", skipped.len());
    if ci && !skipped.is_empty() {
        return Err("tests were skipped, and continuous integration skips nothing".into());
    }
    Ok(())
}

fn cargo_test(skips: &Path, arguments: &[&str]) -> Result<(), Box<dyn std::error::Error>> {
    println!("\n$ cargo test {}", arguments.join(" "));
    let status = Command::new(cargo())
        .arg("test")
        .args(arguments)
        .env("TRANSHIP_TEST_SKIPS", skips)
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("cargo test ended with {status}").into())
    }
}
