//! Whether the container that was made is the one that was asked for, by libpod's inspect document and by what the runtime was given.
//!
//! Everything is compared but what two containers cannot share (ids, paths that follow from them) and what was asked for otherwise
//! (names of volumes, ports, the parked restart policy).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use tranship_core::container::MountKind;
use tranship_core::engine::CreateRequest;

use super::ports;
use crate::describe::{is_generated_name, is_short_id};
use crate::json::{at, is_empty, items, object, text, texts};
use crate::recreate::carried;

/// Fields of the inspect document's `HostConfig` that say the node's, or what is compared elsewhere.
const HOST_IGNORED: [&str; 10] = [
    // Mounts are compared themselves, ports as they were asked for.
    "Binds",
    "PortBindings",
    "RestartPolicy",
    "LogConfig",
    "Annotations",
    "ContainerIDFile",
    "CgroupManager",
    "Ulimits",
    "Devices",
    "VolumesFrom",
];

/// The same of its `Config`.
const CONFIG_IGNORED: [&str; 4] = ["Hostname", "Env", "Annotations", "Image"];

/// Fields at the top of it that are compared.
const COMPARED: [&str; 6] = [
    "OCIRuntime",
    "Rootfs",
    "Pod",
    "Dependencies",
    "UseImageHosts",
    "UseImageHostname",
];

/// How the profiles begin that Podman makes for AppArmor itself.
pub(super) const DEFAULT_PROFILE: &str = "containers-default-";

/// Fields of the runtime's specification that the nodes differ in.
const LINUX_IGNORED: [&str; 3] = ["cgroupsPath", "mountLabel", "seccomp"];

/// In what `made`, Podman's documents of the new container, is not what the request asks for. One line for each field.
pub(super) fn differences(request: &CreateRequest, wanted: &Value, made: &Value) -> Vec<String> {
    let own = text(made, &["Inspect", "Id"]);
    let old = Side {
        documents: wanted,
        id: request.spec.id.as_str(),
        request: Some(request),
    };
    let new = Side {
        documents: made,
        id: &own,
        request: None,
    };
    let mut found = Vec::new();
    walk("", &old.seen(), &new.seen(), &mut found);
    found
}

/// One of the two containers.
struct Side<'a> {
    documents: &'a Value,
    id: &'a str,
    /// What is asked for otherwise than it was.
    request: Option<&'a CreateRequest>,
}

impl Side<'_> {
    /// All that is compared, in one spelling.
    fn seen(&self) -> Value {
        let inspect = at(self.documents, &["Inspect"]);
        let runtime = at(self.documents, &["Runtime"]);
        let mut config = object(inspect, &["Config"]);
        config.retain(|key, _| !CONFIG_IGNORED.contains(&key.as_str()));
        let mut host = object(inspect, &["HostConfig"]);
        host.retain(|key, _| !HOST_IGNORED.contains(&key.as_str()));
        let options: BTreeSet<String> = texts(inspect, &["HostConfig", "SecurityOpt"])
            .iter()
            .map(|option| match option.strip_prefix("apparmor=") {
                Some(profile) => format!("apparmor={}", without_version(profile)),
                None => option.clone(),
            })
            .collect();
        host.insert("SecurityOpt".into(), json!(options));
        let top: Map<String, Value> = COMPARED
            .iter()
            .map(|key| ((*key).to_owned(), at(inspect, &[key]).clone()))
            .collect();
        json!({
            "container": top,
            "Config": config,
            "HostConfig": host,
            "LogConfig": {
                "Type": at(inspect, &["HostConfig", "LogConfig", "Type"]),
                "Tag": at(inspect, &["HostConfig", "LogConfig", "Tag"]),
            },
            "Hostname": self.host_name(inspect),
            "Annotations": self.annotations(inspect),
            "Mounts": self.mounts(inspect),
            "Networks": self.networks(),
            "Ports": self.ports(),
            "runtime": self.runtime(runtime),
        })
    }

    /// The name that was chosen, nothing where it is made of the id.
    fn host_name(&self, inspect: &Value) -> Value {
        let name = text(inspect, &["Config", "Hostname"]);
        if is_short_id(&name, self.id) || text(inspect, &["HostConfig", "UTSMode"]) == "host" {
            return Value::Null;
        }
        name.into()
    }

    fn annotations(&self, inspect: &Value) -> Value {
        let mut annotations = object(inspect, &["Config", "Annotations"]);
        // A file of the command that made it, and whose volumes it borrowed: they are its own now.
        annotations.retain(|key, _| !key.ends_with(".cid-file") && !key.ends_with(".volumes-from"));
        Value::Object(annotations)
    }

    /// Mounts by where they are, from where they shall be.
    fn mounts(&self, inspect: &Value) -> Value {
        let mut mounts = BTreeMap::new();
        for mount in items(inspect, &["Mounts"]) {
            let destination = text(mount, &["Destination"]);
            let mut fields = object(mount, &[]);
            sort(&mut fields, "Options");
            let asked = self.request.and_then(|request| {
                let seen = request
                    .spec
                    .mounts
                    .iter()
                    .find(|m| m.destination == destination)?;
                Some((seen.kind, carried(request, seen)?.to_owned()))
            });
            if text(mount, &["Type"]) == "volume" {
                fields.remove("Source");
                if let Some((_, name)) = asked {
                    fields.insert("Name".into(), name.into());
                }
                let name = fields.get("Name").and_then(Value::as_str).unwrap_or_default();
                if name.is_empty() || is_generated_name(name) {
                    fields.remove("Name");
                }
            } else if let Some((MountKind::Bind, path)) = asked {
                fields.insert("Source".into(), path.into());
            }
            mounts.insert(destination, Value::Object(fields));
        }
        json!(mounts)
    }

    fn networks(&self) -> Value {
        let mut networks = object(self.documents, &["Wishes", "Networks"]);
        let host_name = text(self.documents, &["Inspect", "Config", "Hostname"]);
        for network in networks.values_mut().filter_map(Value::as_object_mut) {
            let aliases: BTreeSet<String> = network
                .get("aliases")
                .map(|aliases| texts(aliases, &[]))
                .unwrap_or_default()
                .into_iter()
                .filter(|alias| !is_short_id(alias, self.id) && *alias != host_name)
                .collect();
            network.insert("aliases".into(), json!(aliases));
            if self.request.is_some_and(|request| request.drop_fixed_addresses) {
                network.remove("static_ips");
            }
        }
        Value::Object(networks)
    }

    fn ports(&self) -> Value {
        let ports = ports::single(self.documents, self.request.map(|request| &request.publish));
        let ports = ports.iter().map(ToString::to_string);
        json!(ports.collect::<BTreeSet<String>>())
    }

    /// What the runtime was given.
    fn runtime(&self, runtime: &Value) -> Value {
        let mut process = object(runtime, &["process"]);
        process.remove("selinuxLabel");
        let profile = text(runtime, &["process", "apparmorProfile"]);
        process.insert("apparmorProfile".into(), without_version(&profile).into());
        let env: BTreeSet<String> = texts(runtime, &["process", "env"])
            .into_iter()
            .filter(|entry| {
                let name = entry.strip_prefix("HOSTNAME=");
                !name.is_some_and(|name| is_short_id(name, self.id))
            })
            .collect();
        process.insert("env".into(), json!(env));
        let limits: BTreeSet<String> = items(runtime, &["process", "rlimits"])
            .iter()
            .map(ToString::to_string)
            .collect();
        process.insert("rlimits".into(), json!(limits));
        let mut linux = object(runtime, &["linux"]);
        linux.retain(|key, _| !LINUX_IGNORED.contains(&key.as_str()));
        // Podman's own profile is that of its version; whether there is one is the user's choice.
        linux.insert(
            "confined".into(),
            (!is_empty(at(runtime, &["linux", "seccomp"]))).into(),
        );
        let namespaces: BTreeSet<String> = items(runtime, &["linux", "namespaces"])
            .iter()
            .map(|namespace| text(namespace, &["type"]))
            .collect();
        linux.insert("namespaces".into(), json!(namespaces));
        for key in ["maskedPaths", "readonlyPaths"] {
            sort(&mut linux, key);
        }
        let mounts: BTreeMap<String, Value> = items(runtime, &["mounts"])
            .iter()
            .map(|mount| {
                let mut fields = object(mount, &[]);
                sort(&mut fields, "options");
                // Those of the user were compared above, Podman's own lie in the container's directories.
                if text(mount, &["type"]) == "bind" {
                    fields.remove("source");
                }
                fields.remove("destination");
                (text(mount, &["destination"]), Value::Object(fields))
            })
            .collect();
        json!({
            "process": process,
            "linux": linux,
            "mounts": mounts,
            "hooks": at(runtime, &["hooks"]),
            "readonly": at(runtime, &["root", "readonly"]),
        })
    }
}

/// A profile of AppArmor. Podman's own one bears the version of the library that made it.
fn without_version(profile: &str) -> &str {
    if profile.starts_with(DEFAULT_PROFILE) {
        DEFAULT_PROFILE
    } else {
        profile
    }
}

/// A list whose order means nothing.
fn sort(fields: &mut Map<String, Value>, key: &str) {
    if let Some(list) = fields.get(key).filter(|list| list.is_array()) {
        let sorted: BTreeSet<String> = texts(list, &[]).into_iter().collect();
        fields.insert(key.to_owned(), json!(sorted));
    }
}

fn walk(path: &str, here: &Value, there: &Value, found: &mut Vec<String>) {
    if here == there || (is_empty(here) && is_empty(there)) {
        return;
    }
    if let (Value::Object(_) | Value::Null, Value::Object(_) | Value::Null) = (here, there) {
        let (here, there) = (object(here, &[]), object(there, &[]));
        for key in here.keys().chain(there.keys()).collect::<BTreeSet<_>>() {
            let [a, b] = [&here, &there].map(|side| side.get(key).unwrap_or(&Value::Null));
            walk(&format!("{path}/{key}"), a, b, found);
        }
        return;
    }
    // What is in them may be secret, and errors are written down.
    if path.ends_with("/CreateCommand") {
        found.push(format!("{path}: another one there"));
        return;
    }
    if path.ends_with("/process/env") {
        let [here, there] = [here, there].map(|side| texts(side, &[]).into_iter().collect::<BTreeSet<_>>());
        let names: BTreeSet<&str> = here
            .symmetric_difference(&there)
            .map(|entry| entry.split('=').next().unwrap_or_default())
            .collect();
        let names: Vec<&str> = names.into_iter().collect();
        found.push(format!("{path}: other values of {} there", names.join(", ")));
        return;
    }
    let short = |value: &Value| value.to_string().chars().take(160).collect::<String>();
    found.push(format!("{path}: {} there {}", short(here), short(there)));
}
