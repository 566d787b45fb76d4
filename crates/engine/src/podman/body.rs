//! The body of libpod's `create container` (its `SpecGenerator`): what the container was made with, and what can only be read from what
//! the runtime was given.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use tranship_core::engine::CreateRequest;
use tranship_core::{ContainerSpec, EngineError};

use super::compare::DEFAULT_PROFILE;
use super::{KEY, mounts, ports};
use crate::describe::is_short_id;
use crate::json::{at, entries, flag, is_empty, items, object, text, texts};

/// What of the wishes goes on as it is. The rest is said in another way here, or is the source's own (names of its files and programs).
/// What is lost with it shows where the new container is compared with the old one.
const AS_THEY_ARE: [&str; 17] = [
    "labels",
    "containerCreateCommand",
    "sdnotifyMode",
    "shm_size",
    "shm_size_systemd",
    "label_nested",
    "expose",
    "use_image_hostname",
    "use_image_hosts",
    "healthLogDestination",
    "healthMaxLogCount",
    "healthMaxLogSize",
    "personality",
    "passwd_entry",
    "group_entry",
    "chroot_directories",
    "volatile",
];

/// Annotations that Podman makes of other options.
const PODMANS_OWN: [&str; 4] = [
    "io.container.manager",
    "org.opencontainers.image.stopSignal",
    "org.systemd.property.",
    "io.podman.annotations.",
];

/// What the destination's Podman does unless it is told otherwise.
pub(super) struct Defaults {
    /// Capabilities of a container.
    pub(super) capabilities: Vec<String>,
    /// The image has a health check.
    pub(super) image_is_checked: bool,
}

/// Podman's own documents of a container, if they came along.
pub(super) fn documents(spec: &ContainerSpec) -> Result<&Value, EngineError> {
    let documents = at(&spec.document, &[KEY]);
    let whole = ["Inspect", "Runtime", "Wishes"]
        .iter()
        .all(|key| at(documents, &[key]).is_object());
    if whole {
        return Ok(documents);
    }
    Err(EngineError::Unsupported {
        message: format!(
            "container {} was not described by Podman's own documents, and cannot be made again without them",
            spec.name
        ),
    })
}

/// The body. `image` is how the image is called there.
///
/// # Errors
/// [`EngineError::Unsupported`] where Podman's own documents did not come along.
pub(super) fn create_body(
    request: &CreateRequest,
    image: &str,
    defaults: &Defaults,
) -> Result<Value, EngineError> {
    let spec = &request.spec;
    let documents = documents(spec)?;
    let (inspect, runtime) = (at(documents, &["Inspect"]), at(documents, &["Runtime"]));
    let mut body = object(documents, &["Wishes"]);
    body.retain(|key, _| AS_THEY_ARE.contains(&key.as_str()));
    let mut set = |key: &str, value: Value| {
        if is_empty(&value) {
            body.remove(key);
        } else {
            body.insert(key.to_owned(), value);
        }
    };
    set("name", request.name.as_str().into());
    set("image", image.into());
    // All volumes are named here, those of the image as well.
    set("image_volume_mode", "ignore".into());
    set("volumes", mounts::volumes(request, documents));
    set("mounts", mounts::mounts(request, documents));
    set("Networks", networks(request, documents));
    set(
        "portmappings",
        ports::single(documents, Some(&request.publish)).into(),
    );
    set("env", env(spec, runtime, documents));
    set("unsetenvall", true.into());
    set("hostname", spec.host_name.clone().unwrap_or_default().into());
    set("annotations", annotations(inspect));
    set("restart_policy", request.restart_policy.name.as_str().into());
    set("init", flag(inspect, &["HostConfig", "Init"]).into());
    set("privileged", flag(inspect, &["HostConfig", "Privileged"]).into());
    set("terminal", flag(inspect, &["Config", "Tty"]).into());
    set("stdin", flag(inspect, &["Config", "OpenStdin"]).into());
    set("user", text(inspect, &["Config", "User"]).into());
    set("groups", at(inspect, &["HostConfig", "GroupAdd"]).clone());
    set("work_dir", text(runtime, &["process", "cwd"]).into());
    set("timeout", at(inspect, &["Config", "Timeout"]).clone());
    set("timezone", text(inspect, &["Config", "Timezone"]).into());
    set("umask", text(inspect, &["Config", "Umask"]).into());
    set("dns_server", at(inspect, &["HostConfig", "Dns"]).clone());
    set("dns_search", at(inspect, &["HostConfig", "DnsSearch"]).clone());
    set("dns_option", at(inspect, &["HostConfig", "DnsOptions"]).clone());
    set("hostadd", at(inspect, &["HostConfig", "ExtraHosts"]).clone());
    set(
        "base_hosts_file",
        text(inspect, &["HostConfig", "HostsFile"]).into(),
    );
    set(
        "cgroup_parent",
        text(inspect, &["HostConfig", "CgroupParent"]).into(),
    );
    set("unified", at(inspect, &["HostConfig", "CgroupConf"]).clone());
    set("sysctl", at(runtime, &["linux", "sysctl"]).clone());
    set("r_limits", limits(runtime));
    set("devices", devices(inspect));
    set("oom_score_adj", at(runtime, &["process", "oomScoreAdj"]).clone());
    set(
        "no_new_privileges",
        flag(runtime, &["process", "noNewPrivileges"]).into(),
    );
    set("log_configuration", log(inspect));
    set("health_check_on_failure_action", on_failure(inspect));
    let resources = {
        let mut resources = object(runtime, &["linux", "resources"]);
        // Which devices it may use follows from those that it has.
        resources.remove("devices");
        Value::Object(resources)
    };
    set("resource_limits", resources);
    security(inspect, &mut set);
    capabilities(inspect, runtime, &defaults.capabilities, &mut set);
    // Once more by their own names: an empty one here says more than none.
    let mut exactly = |key: &str, value: Value| body.insert(key.to_owned(), value);
    exactly("command", json!(texts(inspect, &["Config", "Cmd"])));
    exactly("entrypoint", json!(texts(inspect, &["Config", "Entrypoint"])));
    exactly("httpproxy", false.into());
    exactly("env_host", false.into());
    exactly("systemd", "false".into());
    if let Ok(signal) = text(&spec.document, &["Config", "StopSignal"]).parse::<i64>() {
        exactly("stop_signal", signal.into());
    }
    exactly("stop_timeout", at(inspect, &["Config", "StopTimeout"]).clone());
    if request.restart_policy.name == "on-failure" {
        exactly("restart_tries", request.restart_policy.maximum_retries.into());
    }
    if flag(inspect, &["HostConfig", "ReadonlyRootfs"]) {
        exactly("read_only_filesystem", true.into());
        exactly("read_write_tmpfs", has_own_tmpfs(documents).into());
    }
    if at(inspect, &["Config", "Passwd"]) == &Value::Bool(false) {
        exactly("manage_password", false.into());
    }
    let check = at(inspect, &["Config", "Healthcheck"]);
    if !is_empty(check) {
        exactly("healthconfig", check.clone());
    } else if defaults.image_is_checked {
        exactly("healthconfig", json!({ "Test": ["NONE"] }));
    }
    for (key, mode) in [
        ("pidns", "PidMode"),
        ("ipcns", "IpcMode"),
        ("utsns", "UTSMode"),
        ("cgroupns", "CgroupMode"),
        ("netns", "NetworkMode"),
    ] {
        exactly(key, json!({ "nsmode": text(inspect, &["HostConfig", mode]) }));
    }
    Ok(Value::Object(body))
}

/// Podman mounts memory over a few directories of a root that is read-only, unless it is told not to.
fn has_own_tmpfs(documents: &Value) -> bool {
    let is_there = |list: &[&str], path: &str| {
        items(documents, list)
            .iter()
            .any(|mount| text(mount, &["destination"]) == path && text(mount, &["type"]) == "tmpfs")
    };
    is_there(&["Runtime", "mounts"], "/var/tmp") && !is_there(&["Wishes", "mounts"], "/var/tmp")
}

/// The networks with what was wished for in them. The short id and the host name are added by Podman.
fn networks(request: &CreateRequest, documents: &Value) -> Value {
    let mut networks = object(documents, &["Wishes", "Networks"]);
    for (name, network) in &mut networks {
        let attachment = request.spec.attachments.iter().find(|a| a.network == *name);
        let Some(fields) = network.as_object_mut() else {
            continue;
        };
        let aliases = attachment.map(|a| a.aliases.clone()).unwrap_or_default();
        fields.insert("aliases".into(), json!(aliases));
        if request.drop_fixed_addresses {
            fields.remove("static_ips");
        }
    }
    Value::Object(networks)
}

/// The variables of its processes, but for those that Podman makes of the host name and of the user's home.
fn env(spec: &ContainerSpec, runtime: &Value, documents: &Value) -> Value {
    let wished = object(documents, &["Wishes", "env"]);
    let mut env = Map::new();
    for entry in texts(runtime, &["process", "env"]) {
        let Some((key, value)) = entry.split_once('=') else {
            continue;
        };
        let made_up = match key {
            "HOSTNAME" => spec.host_name.is_none() && is_short_id(value, spec.id.as_str()),
            "HOME" => !wished.contains_key(key),
            _ => false,
        };
        if !made_up {
            env.insert(key.to_owned(), value.into());
        }
    }
    Value::Object(env)
}

fn annotations(inspect: &Value) -> Value {
    let own = entries(inspect, &["Config", "Annotations"])
        .filter(|(key, _)| !PODMANS_OWN.iter().any(|own| key.starts_with(own)))
        .map(|(key, value)| (key.clone(), value.clone()));
    Value::Object(own.collect())
}

/// The kernel's names without their beginning, as Podman wants them.
fn limits(runtime: &Value) -> Value {
    let limits = items(runtime, &["process", "rlimits"]).iter().map(|limit| {
        let name = text(limit, &["type"]);
        let name = name.strip_prefix("RLIMIT_").unwrap_or(&name).to_ascii_lowercase();
        json!({ "type": name, "hard": at(limit, &["hard"]), "soft": at(limit, &["soft"]) })
    });
    Value::Array(limits.collect())
}

fn devices(inspect: &Value) -> Value {
    let devices = items(inspect, &["HostConfig", "Devices"]).iter().map(|device| {
        let [host, inside] = ["PathOnHost", "PathInContainer"].map(|key| text(device, &[key]));
        json!({ "path": format!("{host}:{inside}") })
    });
    Value::Array(devices.collect())
}

fn log(inspect: &Value) -> Value {
    let driver = text(inspect, &["HostConfig", "LogConfig", "Type"]);
    let tag = text(inspect, &["HostConfig", "LogConfig", "Tag"]);
    if tag.is_empty() {
        return json!({ "driver": driver });
    }
    json!({ "driver": driver, "options": { "tag": tag } })
}

/// The numbers of `libpod/define/healthchecks.go`.
fn on_failure(inspect: &Value) -> Value {
    match text(inspect, &["Config", "HealthcheckOnFailureAction"]).as_str() {
        "kill" => 2.into(),
        "restart" => 3.into(),
        "stop" => 4.into(),
        _ => Value::Null,
    }
}

fn security(inspect: &Value, set: &mut impl FnMut(&str, Value)) {
    for option in texts(inspect, &["HostConfig", "SecurityOpt"]) {
        match option.split_once('=') {
            Some(("label", "disable")) => set("selinux_opts", json!(["disable"])),
            Some(("seccomp", profile)) => set("seccomp_profile_path", profile.into()),
            // Podman's own one, which has another name with another version.
            Some(("apparmor", profile)) if profile.starts_with(DEFAULT_PROFILE) => {}
            Some(("apparmor", profile)) => set("apparmor_profile", profile.into()),
            _ => {}
        }
    }
}

/// What it may do, by what the destination's Podman would give it: a container of another user than root has what was added in
/// force, and what it was given by default only in reserve.
fn capabilities(inspect: &Value, runtime: &Value, defaults: &[String], set: &mut impl FnMut(&str, Value)) {
    if flag(inspect, &["HostConfig", "Privileged"]) {
        return;
    }
    let defaults: BTreeSet<String> = defaults.iter().cloned().collect();
    let wanted: BTreeSet<String> = texts(runtime, &["process", "capabilities", "bounding"])
        .into_iter()
        .collect();
    let added: Vec<&String> = wanted.difference(&defaults).collect();
    let dropped: Vec<&String> = defaults.difference(&wanted).collect();
    set("cap_add", json!(added));
    set("cap_drop", json!(dropped));
}
