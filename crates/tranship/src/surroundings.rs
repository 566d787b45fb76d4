//! The one place that reads the environment.
#![allow(
    clippy::disallowed_methods,
    reason = "the binary reads the environment here, so that nothing else has to"
)]

use std::path::PathBuf;

use tranship_core::{Fault, FaultKind};

use crate::commands::Environment;

/// Whether the user asked for no colours (<https://no-color.org>).
pub fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
}

/// Reads what the program takes from its surroundings.
///
/// # Errors
/// `environment.executable` when the program's own file cannot be told.
pub fn read() -> Result<Environment, Fault> {
    let path = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let text = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let executable = std::env::current_exe().map_err(|e| {
        Fault::new(
            "environment.executable",
            FaultKind::Environment,
            format!("cannot find this program's own file: {e}"),
        )
    })?;
    // The kernel's own link leads to what runs, even after its name is gone.
    let link = PathBuf::from("/proc/self/exe");
    let image = if link.exists() { link } else { executable.clone() };
    let root = rustix::process::geteuid().is_root();
    let uid = rustix::process::geteuid().as_raw();
    let home = path("HOME");
    let user_runtime_directory = path("XDG_RUNTIME_DIR");
    let state_directory = path("TRANSHIP_STATE_DIR").unwrap_or_else(|| {
        if root {
            return PathBuf::from("/var/lib/tranship");
        }
        let base = path("XDG_STATE_HOME").or_else(|| home.as_ref().map(|h| h.join(".local/state")));
        base.map_or_else(
            || PathBuf::from(format!("/var/tmp/tranship-{uid}")),
            |b| b.join("tranship"),
        )
    });
    let runtime_directory = path("TRANSHIP_RUNTIME_DIR").unwrap_or_else(|| {
        if root {
            return PathBuf::from("/run/tranship");
        }
        user_runtime_directory.as_ref().map_or_else(
            || PathBuf::from(format!("/tmp/tranship-{uid}")),
            |d| d.join("tranship"),
        )
    });
    let docker_config = path("DOCKER_CONFIG").or_else(|| home.as_ref().map(|h| h.join(".docker")));
    Ok(Environment {
        executable,
        image,
        state_directory,
        runtime_directory,
        docker_config,
        docker_host: text("DOCKER_HOST"),
        user_runtime_directory,
    })
}
