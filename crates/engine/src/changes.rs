//! What a container wrote into its own layer, without what nobody would miss.

use std::collections::BTreeSet;

use bollard::models::ChangeType;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::Method;
use serde_json::Value;
use tranship_core::container::LayerChanges;
use tranship_core::{ContainerId, EngineError};

use crate::docker::DockerEngine;
use crate::fault::Ask;
use crate::json::{entries, items, number, text};
use crate::networks::PARALLEL;
use crate::raw::escape;

/// How many files are looked at one by one.
const LOOKED_AT: usize = 200;

/// How often the engine is asked again for changes that change while it lists them.
const COMPARED: u32 = 5;

/// How many are named to people.
const EXAMPLES: usize = 5;

/// Directories whose content comes and goes with the running container, or can be made again.
const PASSING: [&str; 8] = [
    "/dev",
    "/proc",
    "/sys",
    "/run",
    "/tmp",
    "/var/cache",
    "/var/run",
    "/var/tmp",
];

/// Files that the engine writes into every container.
const ENGINES_OWN: [&str; 7] = [
    "/.dockerenv",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/mtab",
    "/etc/resolv.conf",
    "/run/.containerenv",
    "/sbin/docker-init",
];

/// The changed paths that may be data: `(path, deleted)`. Directories that are listed only because something in them
/// changed are not among them.
fn candidates(changes: &[(String, ChangeType)], document: &Value) -> Vec<(String, bool)> {
    let mounts: Vec<String> = items(document, &["Mounts"])
        .iter()
        .map(|mount| text(mount, &["Destination"]))
        .chain(entries(document, &["HostConfig", "Tmpfs"]).map(|(path, _)| path.clone()))
        .collect();
    // Docker lists the directories above every change: a path that is above another one is a directory.
    let parents: BTreeSet<&str> = changes
        .iter()
        .flat_map(|(path, _)| path.match_indices('/').skip(1).map(|(at, _)| &path[..at]))
        .collect();
    changes
        .iter()
        .filter(|(path, _)| {
            let below = |directory: &str| {
                let rest = path.strip_prefix(directory.trim_end_matches('/'));
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            !(parents.contains(path.as_str())
                || PASSING.iter().any(|directory| below(directory))
                || mounts.iter().any(|directory| !directory.is_empty() && below(directory))
                // A mount's own directory is made in the layer, and those above it.
                || mounts.iter().any(|mount| mount.starts_with(&format!("{path}/")))
                || ENGINES_OWN.contains(&path.as_str())
                || path.split('/').any(|part| part == "__pycache__"))
        })
        .map(|(path, kind)| (path.clone(), *kind == ChangeType::_2))
        .collect()
}

/// What a path of a container is.
enum Found {
    File(u64),
    /// A directory.
    Nothing,
}

impl DockerEngine {
    pub(crate) async fn changes_of(&self, id: &ContainerId) -> Result<LayerChanges, EngineError> {
        let ask = Ask::new("compare the files of", "container", id.as_str());
        let document = self.document(id.as_str()).await?;
        let mut attempt = 0;
        let changes = loop {
            attempt += 1;
            match self.told(self.docker.container_changes(id.as_str()).await, &ask) {
                Ok(changes) => break changes,
                // The engine gives up at the first directory that goes while it looks.
                Err(EngineError::Failed { message, .. }) if message.contains("no such file or directory") => {
                    if attempt >= COMPARED {
                        return Ok(LayerChanges {
                            files: 1,
                            examples: vec!["it writes too fast for a list".into()],
                            ..LayerChanges::default()
                        });
                    }
                }
                Err(error) => return Err(error),
            }
        };
        let changes: Vec<(String, ChangeType)> = changes
            .into_iter()
            .flatten()
            .map(|change| (change.path, change.kind))
            .collect();
        let candidates = candidates(&changes, &document);
        let beyond = candidates.len().saturating_sub(LOOKED_AT) as u64;
        let looked: Vec<(String, Found)> = stream::iter(candidates.into_iter().take(LOOKED_AT))
            .map(|(path, deleted)| async move {
                let found = if deleted {
                    Found::File(0)
                } else {
                    self.look_at(id, &path).await?
                };
                Ok::<_, EngineError>((path, found))
            })
            .buffered(PARALLEL)
            .try_collect()
            .await?;
        let mut result = LayerChanges {
            files: beyond,
            ..LayerChanges::default()
        };
        for (path, found) in looked {
            if let Found::File(size) = found {
                result.files += 1;
                result.bytes = result.bytes.saturating_add(size);
                if result.examples.len() < EXAMPLES {
                    result.examples.push(path);
                }
            }
        }
        Ok(result)
    }

    /// Stats one path: the engine answers `HEAD archive` with a header that holds JSON in base64.
    async fn look_at(&self, id: &ContainerId, path: &str) -> Result<Found, EngineError> {
        use base64::Engine as _;
        let ask = Ask::new("stat a file of", "container", id.as_str());
        let url = format!("/containers/{}/archive?path={}", id.as_str(), escape(path));
        let stat = match self
            .raw
            .header(Method::HEAD, &url, "X-Docker-Container-Path-Stat", &ask)
            .await
        {
            Ok(stat) => stat,
            // Gone meanwhile, or hidden by a mount.
            Err(EngineError::NotFound { .. }) => return Ok(Found::Nothing),
            // The engine stumbles over what is renamed or replaced under its eyes. There is something, of whatever size.
            Err(EngineError::Failed { .. }) => return Ok(Found::File(0)),
            Err(other) => return Err(other),
        };
        let stat: Value = base64::engine::general_purpose::STANDARD
            .decode(stat)
            .ok()
            .and_then(|json| serde_json::from_slice(&json).ok())
            .ok_or_else(|| ask.uncertain("the answer has no stat"))?;
        // Go's `fs.FileMode`: the topmost bit marks a directory.
        let is_directory = number(&stat, &["mode"]) & (1 << 31) != 0;
        let size = u64::try_from(number(&stat, &["size"])).unwrap_or_default();
        // An empty file counts: that it exists is what marks and locks are about.
        Ok(if is_directory {
            Found::Nothing
        } else {
            Found::File(size)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_may_be_data_counts() {
        let document = json!({
            "Mounts": [{ "Destination": "/data" }, { "Destination": "/srv/files" }],
            "HostConfig": { "Tmpfs": { "/scratch": "" } },
        });
        let changes: Vec<(String, ChangeType)> = [
            ("/etc", ChangeType::_0),
            ("/etc/hosts", ChangeType::_1),
            ("/etc/app.conf", ChangeType::_0),
            ("/etcetera", ChangeType::_1),
            ("/run", ChangeType::_0),
            ("/run/nginx.pid", ChangeType::_1),
            ("/running", ChangeType::_1),
            ("/data", ChangeType::_1),
            ("/srv", ChangeType::_1),
            ("/srv/files", ChangeType::_1),
            ("/scratch/x", ChangeType::_1),
            ("/usr/lib/__pycache__/x.pyc", ChangeType::_1),
            ("/usr/bin/gone", ChangeType::_2),
        ]
        .map(|(path, kind)| (path.to_owned(), kind))
        .to_vec();
        let paths: Vec<(String, bool)> = candidates(&changes, &document);
        let names: Vec<&str> = paths.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(names, ["/etc/app.conf", "/etcetera", "/running", "/usr/bin/gone"]);
        assert!(paths[3].1);
    }
}
