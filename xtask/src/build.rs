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

/// The end-to-end tests as a program.
#[derive(Debug)]
pub struct EndToEnd {
    /// The tests.
    pub tests: PathBuf,
    /// The program under test. The tests know it by this path.
    pub program: PathBuf,
}

/// Builds the end-to-end tests without running any.
pub fn end_to_end() -> Result<EndToEnd, Box<dyn std::error::Error>> {
    let output = Command::new(cargo())
        .args([
            "test",
            "--quiet",
            "--package",
            "tranship",
            "--features",
            "fail-points",
        ])
        .args(["--test", "e2e", "--no-run"])
        .arg("--message-format=json-render-diagnostics")
        .stderr(std::process::Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("cargo test --no-run ended with {}", output.status).into());
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let find = |kind, name| {
        executable(&messages, kind, name).ok_or_else(|| format!("cargo built no {kind} `{name}`"))
    };
    Ok(EndToEnd {
        tests: find("test", "e2e")?,
        program: find("bin", "tranship")?,
    })
}

/// The program that cargo's messages name for a target of this kind and name.
fn executable(messages: &str, kind: &str, name: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let target = &message["target"];
        let wanted = target["name"] == name && target["kind"].as_array()?.iter().any(|known| known == kind);
        wanted.then(|| message["executable"].as_str().map(PathBuf::from))?
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_cargo_built() {
        let messages = r#"
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"e2e"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"tranship"},"executable":"/t/debug/tranship"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"e2e"},"executable":"/t/debug/deps/e2e-1"}
{"reason":"build-finished","success":true}"#;
        let find = |kind, name| executable(messages, kind, name);
        assert_eq!(find("test", "e2e"), Some(PathBuf::from("/t/debug/deps/e2e-1")));
        assert_eq!(find("bin", "tranship"), Some(PathBuf::from("/t/debug/tranship")));
        assert_eq!(find("bin", "e2e"), None);
    }
}
