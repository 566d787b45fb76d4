//! Volumes in the create body: named ones by name, the engine's own as new ones without a name.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use tranship_core::container::{MountKind, MountSpec};
use tranship_core::engine::CreateRequest;
use tranship_core::{ContainerSpec, EngineError};

use crate::json::{entries, items, object, text, texts};

/// Refuses a container with volumes or bind mounts unless empty ones are allowed.
pub(super) fn check(request: &CreateRequest) -> Result<(), EngineError> {
    let holds_data = |mount: &&MountSpec| mount.kind != MountKind::Tmpfs;
    match request.spec.mounts.iter().find(holds_data) {
        Some(mount) if !request.empty_volumes => Err(EngineError::Unsupported {
            message: format!(
                "container {} has a volume or bind mount at {}, whose data does not come along",
                request.spec.name, mount.destination
            ),
        }),
        _ => Ok(()),
    }
}

/// Rewrites `Binds` and `Mounts` so that they stand alone: names that the engine made up are left
/// out, and mounts that came from another container (`--volumes-from`) are named themselves.
pub(super) fn carry(spec: &ContainerSpec, host: &mut Map<String, Value>) {
    let anonymous: BTreeSet<&str> = spec
        .mounts
        .iter()
        .filter(|mount| mount.anonymous)
        .map(|mount| mount.name.as_str())
        .collect();
    let document = &spec.document;
    let mut covered: BTreeSet<String> = entries(document, &["Config", "Volumes"])
        .chain(entries(document, &["HostConfig", "Tmpfs"]))
        .map(|(path, _)| path.clone())
        .collect();

    let mut binds = Vec::new();
    let mut mounts = Vec::new();
    for bind in texts(document, &["HostConfig", "Binds"]) {
        let mut parts = bind.split(':');
        let source = parts.next().unwrap_or_default();
        let target = parts.next().unwrap_or_default();
        covered.insert(target.to_owned());
        if anonymous.contains(source) {
            let read_only = parts
                .next()
                .is_some_and(|mode| mode.split(',').any(|word| word == "ro"));
            mounts.push(json!({ "Type": "volume", "Target": target, "ReadOnly": read_only }));
        } else {
            binds.push(bind);
        }
    }
    for mount in items(document, &["HostConfig", "Mounts"]) {
        covered.insert(text(mount, &["Target"]));
        let mut mount = object(mount, &[]);
        let source = mount.get("Source").and_then(Value::as_str).unwrap_or_default();
        if anonymous.contains(source) {
            mount.remove("Source");
        }
        mounts.push(Value::Object(mount));
    }
    for mount in &spec.mounts {
        if covered.contains(&mount.destination) || mount.kind == MountKind::Tmpfs {
            continue;
        }
        if mount.anonymous {
            mounts.push(json!({
                "Type": "volume", "Target": mount.destination, "ReadOnly": !mount.writable,
            }));
        } else {
            let source = if mount.name.is_empty() {
                &mount.source
            } else {
                &mount.name
            };
            let mode = if mount.writable { "rw" } else { "ro" };
            binds.push(format!("{source}:{}:{mode}", mount.destination));
        }
    }
    set(host, "Binds", binds.into_iter().map(Value::String).collect());
    set(host, "Mounts", mounts);
}

fn set(host: &mut Map<String, Value>, key: &str, list: Vec<Value>) {
    if list.is_empty() {
        host.remove(key);
    } else {
        host.insert(key.into(), Value::Array(list));
    }
}
