//! Builds the binary that demo, bench and tests run.

use std::path::PathBuf;
use std::process::Command;

/// Builds tranship for release and gives the path of the program.
pub fn release() -> Result<PathBuf, Box<dyn std::error::Error>> {
    let status = Command::new(cargo())
        .args(["build", "--release", "--quiet", "--package", "tranship"])
        .status()?;
    if !status.success() {
        return Err(format!("cargo build ended with {status}").into());
    }
    let program = target_directory()?.join("release").join("tranship");
    if !program.is_file() {
        return Err(format!("{} is missing after the build", program.display()).into());
    }
    Ok(program)
}

/// The cargo that runs us.
pub fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// Where cargo puts what it builds.
pub fn target_directory() -> Result<PathBuf, Box<dyn std::error::Error>> {
    let output = Command::new(cargo())
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let directory = metadata["target_directory"]
        .as_str()
        .ok_or("cargo metadata names no target directory")?;
    Ok(PathBuf::from(directory))
}
