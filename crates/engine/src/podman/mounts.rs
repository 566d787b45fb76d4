//! Volumes, bind mounts and file systems in memory of a new container: those that the plan saw, and no others.
//!
//! They are described twice: by the typed view, which the plan judged, and by Podman's own documents, which come from the same peer and
//! need not say the same. What only those name is refused, and no field of theirs goes on that is not known here: Podman reads names of
//! fields without regard to case, and takes the last of two.

use serde_json::{Map, Value};
use tranship_core::container::{MountKind, MountSpec};
use tranship_core::engine::CreateRequest;
use tranship_core::{ContainerSpec, EngineError};

use super::body;
use crate::json::{at, items, text, texts};
use crate::recreate::{carried, check_carried};
use crate::volume::{is_volume_name, no_volume_name};

/// What is taken of a volume.
const OF_VOLUMES: [&str; 5] = ["Name", "Dest", "Options", "IsAnonymous", "SubPath"];

/// What is taken of another mount.
const OF_MOUNTS: [&str; 6] = [
    "destination",
    "type",
    "source",
    "options",
    "uidMappings",
    "gidMappings",
];

/// Refuses what cannot be carried to where it shall be, and what the plan did not see.
///
/// # Errors
/// [`EngineError::Unsupported`] for each of them, and where Podman's own documents did not come along.
pub(crate) fn check(request: &CreateRequest) -> Result<(), EngineError> {
    check_carried(request)?;
    let documents = body::documents(&request.spec)?;
    let unseen = |path: &str| EngineError::Unsupported {
        message: format!(
            "what Podman says of container {} names a mount at {path:?} that the container does not have",
            request.spec.name
        ),
    };
    let is_seen =
        |path: &str, kind: MountKind| mount_at(&request.spec, path).filter(|seen| seen.kind == kind);
    for volume in items(documents, &["Wishes", "volumes"]) {
        let path = text(volume, &["Dest"]);
        let seen = is_seen(&path, MountKind::Volume).ok_or_else(|| unseen(&path))?;
        let name = volume_name(request, seen);
        if !name.is_empty() && !is_volume_name(name) {
            return Err(no_volume_name(name));
        }
    }
    for mount in items(documents, &["Wishes", "mounts"]) {
        let path = text(mount, &["destination"]);
        // Runtimes bind whatever has the option, whatever its type is.
        let binds = texts(mount, &["options"])
            .iter()
            .any(|option| matches!(option.as_str(), "bind" | "rbind"));
        let fits = match text(mount, &["type"]).as_str() {
            "tmpfs" => !binds,
            "bind" => is_seen(&path, MountKind::Bind).is_some(),
            _ => false,
        };
        if !fits {
            return Err(unseen(&path));
        }
    }
    Ok(())
}

/// The volumes by their new names; those without a name are made anew, and are the container's own.
pub(super) fn volumes(request: &CreateRequest, documents: &Value) -> Value {
    let volumes = items(documents, &["Wishes", "volumes"]).iter().map(|volume| {
        let mut fields = taken(volume, &OF_VOLUMES);
        if let Some(mount) = mount_at(&request.spec, &text(volume, &["Dest"])) {
            let name = volume_name(request, mount);
            fields.insert("Name".into(), name.into());
            fields.insert("IsAnonymous".into(), name.is_empty().into());
        }
        Value::Object(fields)
    });
    Value::Array(volumes.collect())
}

/// Bind mounts from their new places, and file systems in memory.
pub(super) fn mounts(request: &CreateRequest, documents: &Value) -> Value {
    let mounts = items(documents, &["Wishes", "mounts"]).iter().map(|mount| {
        let mut fields = taken(mount, &OF_MOUNTS);
        let source = if text(mount, &["type"]) == "tmpfs" {
            Some("tmpfs")
        } else {
            mount_at(&request.spec, &text(mount, &["destination"]))
                .filter(|seen| seen.kind == MountKind::Bind)
                .map(|seen| carried(request, seen).unwrap_or(&seen.source))
        };
        if let Some(source) = source {
            fields.insert("source".into(), source.into());
        }
        Value::Object(fields)
    });
    Value::Array(mounts.collect())
}

/// How a volume is called there, nothing for one of the container's own.
fn volume_name<'a>(request: &'a CreateRequest, mount: &'a MountSpec) -> &'a str {
    match carried(request, mount) {
        Some(name) => name,
        None if mount.anonymous => "",
        None => &mount.name,
    }
}

fn mount_at<'a>(spec: &'a ContainerSpec, path: &str) -> Option<&'a MountSpec> {
    spec.mounts.iter().find(|mount| mount.destination == path)
}

fn taken(entry: &Value, keys: &[&str]) -> Map<String, Value> {
    keys.iter()
        .map(|key| ((*key).to_owned(), at(entry, &[key]).clone()))
        .filter(|(_, value)| !value.is_null())
        .collect()
}
