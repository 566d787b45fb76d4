//! Whether two containers are the same but for what no two containers share.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::volumes;
use crate::describe::{is_generated_name, is_short_id, network_mode};
use crate::json::{at, flag, is_empty, items, object, text};

/// The fields of an inspect document that may differ, and why. A `*` stands for any one name.
pub const IGNORED: &[(&str, &str)] = &[
    ("Id", "chosen by the engine"),
    ("Created", "time"),
    ("State", "what it does now"),
    ("RestartCount", "what it did"),
    ("ExecIDs", "what it does now"),
    ("ResolvConfPath", "path that follows from the id"),
    ("HostnamePath", "path that follows from the id"),
    ("HostsPath", "path that follows from the id"),
    ("LogPath", "path that follows from the id"),
    ("Driver", "the node's storage"),
    ("GraphDriver", "the node's storage"),
    ("Storage", "the node's storage"),
    ("ImageManifestDescriptor", "the node's storage"),
    ("MountLabel", "the node's SELinux"),
    ("ProcessLabel", "the node's SELinux"),
    (
        "AppArmorProfile",
        "the node's AppArmor; a profile that the user named is in SecurityOpt",
    ),
    ("HostConfig.ContainerIDFile", "a file of the command that made it"),
    ("HostConfig.KernelMemory", "gone since Docker 23"),
    ("HostConfig.KernelMemoryTCP", "gone since Docker 23"),
    ("NetworkSettings.Bridge", "the node's"),
    ("NetworkSettings.SandboxID", "allocated"),
    ("NetworkSettings.SandboxKey", "allocated"),
    (
        "NetworkSettings.Ports",
        "allocated while it runs; the wish is in PortBindings",
    ),
    ("NetworkSettings.HairpinMode", "the node's"),
    ("NetworkSettings.LinkLocalIPv6Address", "allocated"),
    ("NetworkSettings.LinkLocalIPv6PrefixLen", "allocated"),
    ("NetworkSettings.SecondaryIPAddresses", "allocated"),
    ("NetworkSettings.SecondaryIPv6Addresses", "allocated"),
    ("NetworkSettings.EndpointID", "allocated"),
    ("NetworkSettings.Gateway", "allocated"),
    ("NetworkSettings.GlobalIPv6Address", "allocated"),
    ("NetworkSettings.GlobalIPv6PrefixLen", "allocated"),
    ("NetworkSettings.IPAddress", "allocated"),
    ("NetworkSettings.IPPrefixLen", "allocated"),
    ("NetworkSettings.IPv6Gateway", "allocated"),
    ("NetworkSettings.MacAddress", "allocated"),
    ("NetworkSettings.Networks.*.NetworkID", "allocated"),
    ("NetworkSettings.Networks.*.EndpointID", "allocated"),
    ("NetworkSettings.Networks.*.Gateway", "allocated"),
    (
        "NetworkSettings.Networks.*.IPAddress",
        "allocated; a fixed one is in IPAMConfig",
    ),
    ("NetworkSettings.Networks.*.IPPrefixLen", "allocated"),
    ("NetworkSettings.Networks.*.IPv6Gateway", "allocated"),
    (
        "NetworkSettings.Networks.*.GlobalIPv6Address",
        "allocated; a fixed one is in IPAMConfig",
    ),
    ("NetworkSettings.Networks.*.GlobalIPv6PrefixLen", "allocated"),
    (
        "NetworkSettings.Networks.*.MacAddress",
        "allocated; the user's is in Config.MacAddress",
    ),
    (
        "NetworkSettings.Networks.*.DNSNames",
        "follows from the names and the id",
    ),
];

/// One field in which two documents differ.
struct Difference {
    path: Vec<String>,
    here: Value,
    there: Value,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.path.join(".");
        write!(f, "{path}: {} there {}", short(&self.here), short(&self.there))
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 120 {
        return text;
    }
    let mut text: String = text.chars().take(120).collect();
    text.push('…');
    text
}

/// In what two containers differ, given their inspect documents, one line for each field; empty when they are the
/// same. Only the fields of [`IGNORED`] are left out; what the engines write in two ways for the same thing counts as
/// the same: `null`, zero and empty, capabilities with and without `CAP_`, the order of sets, a host name or an alias
/// made from the id, the names of anonymous volumes, a network's id in place of its name, and in the mode of a mount what
/// other fields say.
#[must_use]
pub fn differences(here: &Value, there: &Value) -> Vec<String> {
    compare(here, there).iter().map(ToString::to_string).collect()
}

/// The differences that are losses: what `expected` names and `made` lacks or has otherwise. What only `made` has is a
/// default of another version.
pub(crate) fn losses(expected: &Value, made: &Value) -> Vec<String> {
    compare(expected, made)
        .iter()
        .filter(|difference| !is_empty(&difference.here))
        .map(ToString::to_string)
        .collect()
}

fn compare(here: &Value, there: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    walk(&mut Vec::new(), &normalised(here), &normalised(there), &mut found);
    found
}

fn walk(path: &mut Vec<String>, here: &Value, there: &Value, found: &mut Vec<Difference>) {
    if here == there || is_ignored(path) {
        return;
    }
    let empty = (is_empty(here), is_empty(there));
    if empty == (true, true) {
        return;
    }
    match (here, there) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
                path.push(key.clone());
                let (a, b) = (a.get(key), b.get(key));
                walk(path, a.unwrap_or(&Value::Null), b.unwrap_or(&Value::Null), found);
                path.pop();
            }
        }
        // One side lacks the whole object: its fields may all be empty or ignored.
        (Value::Object(_), _) if empty.1 => walk(path, here, &json!({}), found),
        (_, Value::Object(_)) if empty.0 => walk(path, &json!({}), there, found),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                path.push(index.to_string());
                walk(path, a, b, found);
                path.pop();
            }
        }
        _ => found.push(Difference {
            path: path.clone(),
            here: here.clone(),
            there: there.clone(),
        }),
    }
}

fn is_ignored(path: &[String]) -> bool {
    IGNORED.iter().any(|(pattern, _)| {
        let mut parts = pattern.split('.');
        path.iter()
            .all(|name| parts.next().is_some_and(|part| part == "*" || part == name))
            && parts.next().is_none()
    })
}

/// The document with one spelling for everything that engines spell in several ways.
fn normalised(document: &Value) -> Value {
    let id = text(document, &["Id"]);
    let mode = network_mode(document, &[]);
    let mode = if mode == "default" {
        "bridge".to_owned()
    } else {
        mode
    };
    let mut config = object(document, &["Config"]);
    let mut host = object(document, &["HostConfig"]);
    let name = text(document, &["Config", "Hostname"]);
    if is_short_id(&name, &id) || mode == "host" || at(document, &["HostConfig", "UTSMode"]) == "host" {
        config.remove("Hostname");
    }
    if host.get("MemorySwappiness") == Some(&json!(-1)) {
        host.remove("MemorySwappiness");
    }
    host.insert("NetworkMode".into(), mode.into());
    if let Some(policy) = host.get_mut("RestartPolicy").and_then(Value::as_object_mut)
        && policy.get("Name").is_some_and(is_empty)
    {
        policy.insert("Name".into(), "no".into());
    }
    for key in ["CapAdd", "CapDrop"] {
        sort_set(&mut host, key, |capability| {
            let capability = capability.to_ascii_uppercase();
            match capability.as_str() {
                "ALL" => capability,
                name if name.starts_with("CAP_") => capability,
                name => format!("CAP_{name}"),
            }
        });
    }
    for key in ["Binds", "SecurityOpt", "GroupAdd"] {
        sort_set(&mut host, key, str::to_owned);
    }
    // An empty list unmasks the kernel's files, none at all masks them as the engine likes.
    if !flag(document, &["HostConfig", "Privileged"]) {
        for key in ["MaskedPaths", "ReadonlyPaths"] {
            if host.get(key).and_then(Value::as_array).is_some_and(Vec::is_empty) {
                host.insert(key.into(), "unmasked".into());
            }
        }
    }

    for (fields, keys) in [
        (&mut config, &["Labels", "Volumes", "ExposedPorts"][..]),
        (
            &mut host,
            &["Annotations", "PortBindings", "StorageOpt", "Sysctls", "Tmpfs"][..],
        ),
    ] {
        for key in keys {
            mark_presence(fields, key);
        }
    }

    let mut networks = object(document, &["NetworkSettings", "Networks"]);
    for endpoint in networks.values_mut().filter_map(Value::as_object_mut) {
        if let Some(aliases) = endpoint.get_mut("Aliases").and_then(Value::as_array_mut) {
            aliases.retain(|alias| !alias.as_str().is_some_and(|alias| is_short_id(alias, &id)));
        }
        sort_set(endpoint, "Aliases", str::to_owned);
    }
    let mut settings = object(document, &["NetworkSettings"]);
    // A container that is in no network and one that was taken off all of them are the same; an endpoint without any
    // wish is still an endpoint.
    for endpoint in networks.values_mut() {
        let mut fields = object(endpoint, &[]);
        fields.insert("joined".into(), true.into());
        *endpoint = Value::Object(fields);
    }
    settings.insert("Networks".into(), Value::Object(networks));

    let mut result = object(document, &[]);
    result.insert("Config".into(), Value::Object(config));
    result.insert("HostConfig".into(), Value::Object(host));
    result.insert("NetworkSettings".into(), Value::Object(settings));
    result.insert("Mounts".into(), mounts(document));
    Value::Object(result)
}

/// Mounts by where they are, without what the engine made up.
fn mounts(document: &Value) -> Value {
    let mut mounts = Map::new();
    for mount in items(document, &["Mounts"]) {
        let mut fields = object(mount, &[]);
        fields.insert("Mode".into(), volumes::mode(mount).into());
        if fields.get("Type") == Some(&json!("volume")) {
            fields.remove("Source");
            if is_generated_name(&text(mount, &["Name"])) {
                fields.remove("Name");
            }
        }
        mounts.insert(text(mount, &["Destination"]), Value::Object(fields));
    }
    Value::Object(mounts)
}

/// In these maps a name counts, even one without a value.
fn mark_presence(fields: &mut Map<String, Value>, key: &str) {
    let values = fields.get_mut(key).and_then(Value::as_object_mut);
    for value in values
        .into_iter()
        .flat_map(Map::values_mut)
        .filter(|value| is_empty(value))
    {
        *value = "present".into();
    }
}

fn sort_set(fields: &mut Map<String, Value>, key: &str, spell: impl Fn(&str) -> String) {
    let Some(list) = fields.get(key).and_then(Value::as_array) else {
        return;
    };
    let sorted: BTreeSet<String> = list.iter().filter_map(Value::as_str).map(spell).collect();
    fields.insert(key.into(), json!(sorted));
}
