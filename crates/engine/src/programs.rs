//! Programs of the machine that are run beside the engine's API.

use std::process::Stdio;

use tokio::process::Command;

/// What changes which Podman `podman` speaks to, and which storage and configuration it uses (podman(1), containers.conf(5),
/// containers-storage.conf(5)). The service that the engine's API is asked at has an environment of its own: what was set where the
/// agent was started says nothing of it, and a container of another machine would be described.
const MISLEADING: [&str; 11] = [
    "CONTAINER_HOST",
    "CONTAINER_CONNECTION",
    "CONTAINER_SSHKEY",
    "CONTAINER_PASSPHRASE",
    "CONTAINER_PROXY",
    "CONTAINERS_CONF",
    "CONTAINERS_CONF_OVERRIDE",
    "CONTAINERS_STORAGE_CONF",
    "CONTAINERS_HELPER_BINARY_DIR",
    "STORAGE_DRIVER",
    "STORAGE_OPTS",
];

/// A program that finds nothing to read, and nothing in its environment that leads it elsewhere.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command.stdin(Stdio::null());
    for variable in MISLEADING {
        command.env_remove(variable);
    }
    command
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn nothing_leads_podman_to_another_machine() {
        let command = program("podman");
        for variable in [
            "CONTAINER_HOST",
            "CONTAINER_CONNECTION",
            "CONTAINERS_STORAGE_CONF",
        ] {
            let removed = command
                .as_std()
                .get_envs()
                .any(|(name, value)| name == OsStr::new(variable) && value.is_none());
            assert!(removed, "{variable}");
        }
    }
}
