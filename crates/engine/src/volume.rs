//! Volumes: what makes each of them that volume, who uses them, and making one again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};
use tranship_core::storage::{VolumeSpec, VolumeUser, mount_touches};
use tranship_core::{ContainerId, EngineError};

use crate::describe::is_generated_name;
use crate::docker::{DockerEngine, or_gone};
use crate::fault::Ask;
use crate::json::{at, flag, items, text, text_map, texts};
use crate::place::HELPER;
use crate::raw::escape;

/// Label of Docker (from 24 on) on the volumes that it named by itself.
const ANONYMOUS: &str = "com.docker.volume.anonymous";

/// Label of the anonymous volumes that had to be made before their container, which the engine therefore does not
/// remove together with it.
const ADOPTED: &str = "tranship.anonymous";

/// The typed view of a volume, without its users.
fn describe(document: &Value) -> VolumeSpec {
    let name = text(document, &["Name"]);
    let mountpoint = text(document, &["Mountpoint"]);
    let labels = text_map(document, &["Labels"]);
    VolumeSpec {
        driver: text(document, &["Driver"]),
        options: text_map(document, &["Options"]),
        scope: text(document, &["Scope"]),
        created_at: text(document, &["CreatedAt"]),
        mountpoint: (!mountpoint.is_empty()).then(|| mountpoint.into()),
        anonymous: labels.contains_key(ANONYMOUS) || is_generated_name(&name),
        labels,
        name,
        users: Vec::new(),
        guid: String::new(),
    }
}

/// The volumes that a container mounts, and whether it may write them.
fn used_by(container: &Value) -> BTreeMap<String, bool> {
    let mut used = BTreeMap::new();
    for mount in items(container, &["Mounts"]) {
        let name = text(mount, &["Name"]);
        if text(mount, &["Type"]) == "volume" && !name.is_empty() {
            *used.entry(name).or_default() |= flag(mount, &["RW"]);
        }
    }
    used
}

/// The name of a container in a list.
fn first_name(container: &Value) -> String {
    let names = texts(container, &["Names"]);
    names
        .first()
        .map_or("", |name| name.trim_start_matches('/'))
        .to_owned()
}

/// Whether a container in a list has processes, or may have some at any moment.
fn is_running(container: &Value) -> bool {
    let state = text(container, &["State"]);
    matches!(state.as_str(), "running" | "paused" | "restarting" | "stopping")
}

/// Whether the name can only mean a volume: neither a path of the host nor, in the text of a mount, anything more than
/// the name. Docker's own rule for local volumes is stricter still.
pub(crate) fn is_volume_name(name: &str) -> bool {
    !name.is_empty()
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// A refusal for names that are none.
pub(crate) fn no_volume_name(name: &str) -> EngineError {
    EngineError::Unsupported {
        message: format!("{name:?} cannot be the name of a volume"),
    }
}

impl DockerEngine {
    /// All volumes, without their users.
    async fn bare_volumes(&self) -> Result<Vec<VolumeSpec>, EngineError> {
        let list = self.raw.get("/volumes", &Ask::new("list", "volumes", "")).await?;
        Ok(items(&list, &["Volumes"]).iter().map(describe).collect())
    }

    pub(crate) async fn all_volumes(&self) -> Result<Vec<VolumeSpec>, EngineError> {
        let ask = Ask::new("list", "volumes", "");
        let mut volumes = self.bare_volumes().await?;
        let mut users: BTreeMap<String, Vec<VolumeUser>> = BTreeMap::new();
        for container in self.containers_with_mounts().await? {
            // What only gives access to a volume does not use it.
            if !at(&container, &["Labels", HELPER]).is_null() {
                continue;
            }
            let id = ContainerId::new(text(&container, &["Id"])).map_err(|error| ask.uncertain(error))?;
            let (name, running) = (first_name(&container), is_running(&container));
            for (volume, writable) in used_by(&container) {
                users.entry(volume).or_default().push(VolumeUser {
                    container: id.clone(),
                    name: name.clone(),
                    running,
                    writable,
                });
            }
        }
        for volume in &mut volumes {
            volume.users = users.remove(&volume.name).unwrap_or_default();
            volume.users.sort_by(|a, b| a.name.cmp(&b.name));
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// The containers whose mounts touch a path of the host, whatever links lead there.
    pub(crate) async fn users_of_path(&self, path: &str) -> Result<Vec<VolumeUser>, EngineError> {
        let ask = Ask::new("list", "containers", "");
        // A volume of the local driver may be a directory anywhere; its mounts name the place where it is mounted.
        let devices: BTreeMap<String, String> = self
            .bare_volumes()
            .await?
            .into_iter()
            .filter_map(|mut volume| Some((volume.name, volume.options.remove("device")?)))
            .filter(|(_, device)| device.starts_with('/'))
            .collect();
        let real = |path: &str| {
            // Links on the way are the host's, and it may be what is not there.
            crate::confined::resolve(&self.root_prefix, Path::new(path), true).unwrap_or_else(|_| path.into())
        };
        let path = real(path);
        let mut users = Vec::new();
        for container in self.containers_with_mounts().await? {
            if !at(&container, &["Labels", HELPER]).is_null() {
                continue;
            }
            let mut touched = false;
            let mut writable = false;
            for mount in items(&container, &["Mounts"]) {
                let source = devices
                    .get(&text(mount, &["Name"]))
                    .cloned()
                    .unwrap_or_else(|| text(mount, &["Source"]));
                let writes = flag(mount, &["RW"]);
                if source.starts_with('/') && mount_touches(&real(&source), writes, &path) {
                    touched = true;
                    writable |= writes;
                }
            }
            if touched {
                let id = ContainerId::new(text(&container, &["Id"])).map_err(|error| ask.uncertain(error))?;
                users.push(VolumeUser {
                    container: id,
                    name: first_name(&container),
                    running: is_running(&container),
                    writable,
                });
            }
        }
        users.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(users)
    }

    /// All containers as the engine lists them, mounts included.
    async fn containers_with_mounts(&self) -> Result<Vec<Value>, EngineError> {
        let ask = Ask::new("list", "containers", "");
        let list = self.raw.get("/containers/json?all=1", &ask).await?;
        let mut containers = items(&list, &[]).to_vec();
        if self.podman {
            // Its lists name no mounts.
            for container in &mut containers {
                let document = match self.document(&text(container, &["Id"])).await {
                    Ok(document) => document,
                    Err(EngineError::NotFound { .. }) => continue,
                    Err(other) => return Err(other),
                };
                container["Mounts"] = at(&document, &["Mounts"]).clone();
            }
        }
        Ok(containers)
    }

    /// One volume by name.
    pub(crate) async fn volume(&self, name: &str) -> Result<VolumeSpec, EngineError> {
        if !is_volume_name(name) {
            return Err(no_volume_name(name));
        }
        let ask = Ask::new("inspect", "volume", name);
        let document = self.raw.get(&format!("/volumes/{}", escape(name)), &ask).await?;
        Ok(describe(&document))
    }

    /// The engine takes a second volume of one name for the first one, whatever it was asked to make; so it is asked
    /// before whether there is one, and what it made is compared with what was asked for.
    pub(crate) async fn make_volume(&self, spec: &VolumeSpec) -> Result<(), EngineError> {
        let ask = Ask::new("create", "volume", &spec.name);
        let conflict = |message: &str| EngineError::Conflict {
            action: ask.action.clone(),
            message: message.to_owned(),
        };
        match self.volume(&spec.name).await {
            Ok(_) => return Err(conflict("a volume of this name is there already")),
            Err(EngineError::NotFound { .. }) => {}
            Err(other) => return Err(other),
        }
        let before = self.identity().await?.system_time;
        let body = json!({
            "Name": spec.name, "Driver": spec.driver, "DriverOpts": spec.options, "Labels": spec.labels,
        });
        let made = match self.raw.post("/volumes/create", &body, &ask).await {
            Ok(made) => describe(&made),
            // What is not found is the driver: the volume is what was to be made.
            Err(EngineError::NotFound { .. }) => {
                return Err(EngineError::Unsupported {
                    message: format!(
                        "volume {} needs the driver {:?}, which is not there",
                        spec.name, spec.driver
                    ),
                });
            }
            Err(other) => return Err(other),
        };
        if is_older(&made.created_at, &before) {
            return Err(conflict("a volume of this name came at the same time"));
        }
        let driver = if spec.driver.is_empty() {
            "local"
        } else {
            &spec.driver
        };
        if (made.name.as_str(), made.driver.as_str()) == (&spec.name, driver)
            && (&made.options, &made.labels) == (&spec.options, &spec.labels)
        {
            return Ok(());
        }
        // Made by somebody else in between, or by an engine that has a mind of its own. Not ours to remove.
        Err(conflict(&format!(
            "it has driver {:?}, options {:?} and labels {:?} there, not those that were asked for",
            made.driver, made.options, made.labels
        )))
    }

    /// A new volume with a name of the engine's choice, to be mounted by that name.
    pub(crate) async fn make_anonymous_volume(
        &self,
        driver: &str,
        options: &BTreeMap<String, String>,
        labels: &BTreeMap<String, String>,
    ) -> Result<String, EngineError> {
        let ask = Ask::new("create", "volume", "");
        let mut labels = labels.clone();
        labels.insert(ADOPTED.to_owned(), String::new());
        let body = json!({ "Driver": driver, "DriverOpts": options, "Labels": labels });
        let made = self.raw.post("/volumes/create", &body, &ask).await?;
        let name = text(&made, &["Name"]);
        if is_volume_name(&name) {
            Ok(name)
        } else {
            Err(ask.uncertain("the new volume has no name"))
        }
    }

    /// The volumes of a container that only this program knows to be anonymous.
    pub(crate) async fn adopted_volumes(&self, id: &ContainerId) -> Result<Vec<String>, EngineError> {
        let document = match self.document(id.as_str()).await {
            Err(EngineError::NotFound { .. }) => return Ok(Vec::new()),
            other => other?,
        };
        let generated: BTreeSet<String> = used_by(&document)
            .into_keys()
            .filter(|name| is_generated_name(name))
            .collect();
        let mut adopted = Vec::new();
        for name in generated {
            match self.volume(&name).await {
                Ok(volume) if volume.labels.contains_key(ADOPTED) => adopted.push(name),
                Ok(_) | Err(EngineError::NotFound { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(adopted)
    }

    pub(crate) async fn unmake_volume(&self, name: &str) -> Result<(), EngineError> {
        let ask = Ask::new("remove", "volume", name);
        if !is_volume_name(name) {
            return Err(no_volume_name(name));
        }
        let removed = self
            .docker
            .remove_volume(
                &escape(name),
                None::<bollard::query_parameters::RemoveVolumeOptions>,
            )
            .await;
        or_gone(self.told(removed, &ask))
    }
}

/// Whether a volume was there before `moment`, both in RFC 3339 by one clock. Docker tells whole seconds of a volume.
/// `false` where the two texts cannot be compared.
fn is_older(created_at: &str, moment: &str) -> bool {
    let seconds = |text: &str| -> Option<(String, String)> {
        let (date, zone) = (text.get(..19)?, text.get(19..)?);
        let zone = zone.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
        Some((date.to_owned(), zone.to_owned()))
    };
    match (seconds(created_at), seconds(moment)) {
        (Some(created), Some(moment)) => created.1 == moment.1 && created.0 < moment.0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_taken_as_they_are() {
        let odd = "a b,c=d \"q\" 'x'\nnext";
        let spec = describe(&json!({
            "Name": "data", "Driver": "local", "Scope": "local", "CreatedAt": "2026-01-02T03:04:05Z",
            "Mountpoint": "/m/_data", "Options": { "o": odd }, "Labels": { odd: odd, "empty": "" },
        }));
        assert_eq!(spec.options["o"], odd);
        assert_eq!(
            (spec.labels[odd].as_str(), spec.labels["empty"].as_str()),
            (odd, "")
        );
        assert!(!spec.anonymous && spec.mountpoint.is_some());
        let bare = describe(&json!({ "Name": "0".repeat(64), "Options": null, "Labels": null }));
        assert!(bare.anonymous && bare.options.is_empty() && bare.mountpoint.is_none());
        assert!(describe(&json!({ "Name": "x", "Labels": { ANONYMOUS: "" } })).anonymous);
    }

    #[test]
    fn a_volume_mounted_twice_is_writable_if_one_mount_is() {
        let mount =
            |at: &str, rw: bool| json!({ "Type": "volume", "Name": "v", "Destination": at, "RW": rw });
        let used = used_by(&json!({ "Mounts": [mount("/a", true), mount("/b", false), { "Type": "bind" }] }));
        assert_eq!(used, BTreeMap::from([("v".to_owned(), true)]));
    }

    #[test]
    fn names_that_are_paths_are_none() {
        for bad in ["", "/etc", "../x", "a/b", "a:b", ".x", "-x", "a b", "a\n"] {
            assert!(!is_volume_name(bad), "{bad:?}");
        }
        assert!(is_volume_name("a") && is_volume_name("my_vol-1.2"));
    }

    #[test]
    fn older_is_said_only_where_it_can_be_known() {
        let then = "2026-01-02T03:04:05.999999Z";
        assert!(is_older("2026-01-02T03:04:04Z", then));
        for not in [
            "2026-01-02T03:04:05Z",
            "2026-01-02T03:04:06Z",
            "2026-01-02T03:04:04+01:00",
            "",
            "ü",
        ] {
            assert!(!is_older(not, then), "{not}");
        }
    }
}
