//! Volumes and bind mounts in the create body: what the request carries at its new name or path with every option of
//! the mount, other named volumes by name, the engine's own as new ones without a name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value, json};
use tranship_core::container::{MountKind, MountSpec};
use tranship_core::engine::CreateRequest;
use tranship_core::{ContainerSpec, EngineError};

use crate::json::{at, entries, is_empty, items, object, text, text_map, texts};
use crate::volume::{is_volume_name, no_volume_name};

/// Refuses a container with volumes or bind mounts unless they are carried or empty ones are allowed, and what is
/// carried to a place that cannot be.
pub(crate) fn check(request: &CreateRequest) -> Result<(), EngineError> {
    let spec = &request.spec;
    let unsupported = |message: String| Err(EngineError::Unsupported { message });
    for mount in &spec.mounts {
        let carried = carried(request, mount);
        match (mount.kind, carried) {
            (MountKind::Tmpfs, _) => {}
            (MountKind::Volume, Some("")) => {}
            (MountKind::Volume, Some(name)) if !is_volume_name(name) => return Err(no_volume_name(name)),
            (MountKind::Volume, Some(_)) => {}
            (MountKind::Bind, Some(path)) if !path.starts_with('/') || path.contains([':', '\0']) => {
                return unsupported(format!(
                    "the bind mount at {} cannot come from {path:?}: that is no absolute path, or has a colon",
                    mount.destination
                ));
            }
            (MountKind::Bind, Some(_)) => {}
            _ if request.empty_volumes => {}
            _ => {
                return unsupported(format!(
                    "container {} has a volume or bind mount at {}, whose data does not come along",
                    spec.name, mount.destination
                ));
            }
        }
    }
    let known: BTreeSet<PathBuf> = spec
        .mounts
        .iter()
        .map(|mount| clean(&mount.destination))
        .collect();
    match request.carried.keys().find(|path| !known.contains(&clean(path))) {
        Some(path) => unsupported(format!("container {} mounts nothing at {path}", spec.name)),
        None => Ok(()),
    }
}

/// The path without what means nothing, as engines clean the paths of mounts.
fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}

/// Where the data of a mount comes to, if it is carried.
pub(crate) fn carried<'a>(request: &'a CreateRequest, mount: &MountSpec) -> Option<&'a str> {
    let carried = &request.carried;
    let exact = carried.get(&mount.destination);
    exact
        .or_else(|| {
            let path = clean(&mount.destination);
            carried
                .iter()
                .find(|(key, _)| clean(key) == path)
                .map(|(_, to)| to)
        })
        .map(String::as_str)
}

/// What stands for the source of a mount in the new container.
enum Source<'a> {
    /// A new volume without a name.
    Anonymous,
    /// A volume or a path of the host.
    Named(&'a str),
}

fn source<'a>(request: &'a CreateRequest, mount: &'a MountSpec) -> Source<'a> {
    match (mount.kind, carried(request, mount)) {
        (MountKind::Volume, Some("")) => Source::Anonymous,
        (MountKind::Volume | MountKind::Bind, Some(to)) => Source::Named(to),
        _ if mount.anonymous => Source::Anonymous,
        _ if mount.name.is_empty() => Source::Named(&mount.source),
        _ => Source::Named(&mount.name),
    }
}

/// The same where it differs from what the source's documents say, which are taken word for word otherwise.
fn new_source<'a>(request: &'a CreateRequest, mount: &'a MountSpec) -> Option<Source<'a>> {
    (mount.anonymous || carried(request, mount).is_some()).then(|| source(request, mount))
}

/// The text of a bind in its parts: source, path in the container, mode as it is written.
fn bind_parts(bind: &str) -> (Option<&str>, &str, Option<&str>) {
    match bind.split_once(':') {
        None => (None, bind, None),
        Some((source, rest)) => match rest.split_once(':') {
            None => (Some(source), rest, None),
            Some((target, mode)) => (Some(source), target, Some(mode)),
        },
    }
}

fn words(mode: &str) -> impl Iterator<Item = &str> {
    mode.split(',').filter(|word| !word.is_empty())
}

fn mount_at<'a>(spec: &'a ContainerSpec, target: &str) -> Option<&'a MountSpec> {
    let path = clean(target);
    spec.mounts.iter().find(|mount| clean(&mount.destination) == path)
}

/// Rewrites `Binds` and `Mounts` so that they stand alone: every source is the new container's, names that the engine
/// made up are left out, and mounts that came from another container (`--volumes-from`) are named themselves.
pub(super) fn carry(request: &CreateRequest, host: &mut Map<String, Value>) {
    let spec = &request.spec;
    let document = &spec.document;
    let mut covered: BTreeSet<PathBuf> = entries(document, &["HostConfig", "Tmpfs"])
        .map(|(path, _)| clean(path))
        .collect();

    let mut binds = Vec::new();
    let mut mounts = Vec::new();
    for bind in texts(document, &["HostConfig", "Binds"]) {
        let (old, target, mode) = bind_parts(&bind);
        covered.insert(clean(target));
        let Some(source) = mount_at(spec, target).and_then(|mount| new_source(request, mount)) else {
            binds.push(bind);
            continue;
        };
        match source {
            Source::Named(new) => {
                let mode = mode.map(|mode| format!(":{mode}")).unwrap_or_default();
                binds.push(format!("{new}:{target}{mode}"));
            }
            // A path alone: it has no name already.
            Source::Anonymous if old.is_none() => binds.push(bind),
            Source::Anonymous => {
                let has = |wanted: &str| words(mode.unwrap_or_default()).any(|word| word == wanted);
                mounts.push(anonymous_mount(target, has("ro"), has("nocopy")));
            }
        }
    }
    for mount in items(document, &["HostConfig", "Mounts"]) {
        let target = text(mount, &["Target"]);
        covered.insert(clean(&target));
        let mut mount = object(mount, &[]);
        let kind = mount.get("Type").and_then(Value::as_str).unwrap_or_default();
        if matches!(kind, "volume" | "bind")
            && let Some(source) = mount_at(spec, &target).and_then(|seen| new_source(request, seen))
        {
            match source {
                Source::Anonymous => mount.remove("Source"),
                Source::Named(new) => mount.insert("Source".into(), new.into()),
            };
        }
        mounts.push(Value::Object(mount));
    }
    let own: BTreeSet<PathBuf> = entries(document, &["Config", "Volumes"])
        .map(|(path, _)| clean(path))
        .collect();
    // Volumes of another container were not filled from this one's image.
    let borrows = !is_empty(at(document, &["HostConfig", "VolumesFrom"]));
    for mount in &spec.mounts {
        let path = clean(&mount.destination);
        if covered.contains(&path) || mount.kind == MountKind::Tmpfs {
            continue;
        }
        let source = source(request, mount);
        match source {
            // The engine makes it because the image or the command line said so.
            Source::Anonymous if own.contains(&path) && mount.writable => {}
            Source::Anonymous => {
                mounts.push(anonymous_mount(&mount.destination, !mount.writable, borrows));
            }
            Source::Named(name) => {
                let mut mode = if mount.writable { "rw" } else { "ro" }.to_owned();
                let propagation = propagation(document, &mount.destination);
                if mount.kind == MountKind::Bind && !matches!(propagation.as_str(), "" | "rprivate") {
                    mode = format!("{mode},{propagation}");
                } else if mount.kind == MountKind::Volume && borrows {
                    mode.push_str(",nocopy");
                }
                binds.push(format!("{name}:{}:{mode}", mount.destination));
            }
        }
    }
    set(host, "Binds", binds.into_iter().map(Value::String).collect());
    set(host, "Mounts", mounts);
}

fn propagation(document: &Value, destination: &str) -> String {
    let mount = items(document, &["Mounts"])
        .iter()
        .find(|mount| text(mount, &["Destination"]) == destination);
    mount
        .map(|mount| text(mount, &["Propagation"]))
        .unwrap_or_default()
}

fn anonymous_mount(target: &str, read_only: bool, no_copy: bool) -> Value {
    let mut mount = json!({ "Type": "volume", "Target": target, "ReadOnly": read_only });
    if no_copy {
        mount["VolumeOptions"] = json!({ "NoCopy": true });
    }
    mount
}

fn set(host: &mut Map<String, Value>, key: &str, list: Vec<Value>) {
    if list.is_empty() {
        host.remove(key);
    } else {
        host.insert(key.into(), Value::Array(list));
    }
}

/// The `Mounts` of the inspect document that the new container should have.
pub(super) fn expected(request: &CreateRequest) -> Vec<Value> {
    let mounts = items(&request.spec.document, &["Mounts"]).iter();
    mounts
        .map(|mount| {
            let mut fields = object(mount, &[]);
            match mount_at(&request.spec, &text(mount, &["Destination"])) {
                Some(seen) if seen.kind == MountKind::Volume => {
                    fields.remove("Source");
                    match source(request, seen) {
                        Source::Anonymous => fields.remove("Name"),
                        Source::Named(name) => fields.insert("Name".into(), name.into()),
                    };
                }
                Some(seen) if seen.kind == MountKind::Bind => {
                    if let Source::Named(path) = source(request, seen) {
                        fields.insert("Source".into(), path.into());
                    }
                }
                _ => {}
            }
            Value::Object(fields)
        })
        .collect()
}

/// A volume without a name that has to be made before its container, and the paths where that mounts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Beforehand {
    pub(crate) driver: String,
    pub(crate) options: BTreeMap<String, String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) paths: Vec<String>,
}

/// The anonymous volumes that no create body can ask for: those mounted at several paths, read-only ones, which Docker
/// refuses ("must not set ReadOnly mode when using anonymous volumes"), and those whose mode says more than a mount can.
pub(crate) fn beforehand(request: &CreateRequest) -> Vec<Beforehand> {
    let spec = &request.spec;
    // By name, and by path where an engine shows none.
    let mut groups: BTreeMap<&str, Vec<&MountSpec>> = BTreeMap::new();
    for mount in spec.mounts.iter().filter(|mount| mount.kind == MountKind::Volume) {
        if let Source::Anonymous = source(request, mount) {
            let key = if mount.name.is_empty() {
                &mount.destination
            } else {
                &mount.name
            };
            groups.entry(key).or_default().push(mount);
        }
    }
    groups.retain(|_, mounts| {
        mounts.len() > 1
            || mounts
                .iter()
                .any(|mount| !mount.writable || is_peculiar(spec, mount))
    });
    groups
        .into_values()
        .map(|mounts| {
            let wanted = mounts.iter().find_map(|mount| {
                items(&spec.document, &["HostConfig", "Mounts"])
                    .iter()
                    .find(|item| clean(&text(item, &["Target"])) == clean(&mount.destination))
            });
            let options = wanted.map_or(&Value::Null, |wanted| at(wanted, &["VolumeOptions"]));
            Beforehand {
                driver: mounts
                    .first()
                    .map(|mount| mount.driver.clone())
                    .unwrap_or_default(),
                options: text_map(options, &["DriverConfig", "Options"]),
                labels: text_map(options, &["Labels"]),
                paths: mounts.iter().map(|mount| mount.destination.clone()).collect(),
            }
        })
        .collect()
}

/// What a volume's mode may say without anything being lost in `Mounts`. Podman writes its defaults out.
const ORDINARY: [&str; 8] = ["rw", "ro", "nocopy", "z", "rprivate", "rbind", "nosuid", "nodev"];

/// Whether the mode of a volume that is named in `Binds` has words that `Mounts` has no field for.
fn is_peculiar(spec: &ContainerSpec, mount: &MountSpec) -> bool {
    texts(&spec.document, &["HostConfig", "Binds"])
        .iter()
        .any(|bind| {
            let (_, target, mode) = bind_parts(bind);
            clean(target) == clean(&mount.destination)
                && words(mode.unwrap_or_default()).any(|word| !ORDINARY.contains(&word))
        })
}

/// What a mount's mode says beyond the fields that the engine shows besides it.
///
/// Docker shows the mode as it was written in `Binds`, `z` where a volume was mounted by name without one, and nothing
/// for volumes without a name and those of other containers. Writability and propagation have fields of their own,
/// `nocopy` matters while the container is made and is compared where it was asked for.
pub(super) fn mode(mount: &Value) -> String {
    let mode = text(mount, &["Mode"]);
    let volume = text(mount, &["Type"]) == "volume";
    let said: BTreeSet<&str> = words(&mode)
        .filter(|word| match *word {
            "rw" | "ro" | "nocopy" => false,
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" => false,
            "z" => !volume,
            _ => true,
        })
        .collect();
    said.into_iter().collect::<Vec<_>>().join(",")
}
