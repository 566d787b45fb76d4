//! What of a container Podman cannot be asked to make again elsewhere: told by the plan, so that nothing is lost without a word.

use std::path::Path;

use serde_json::Value;
use tranship_core::NetworkSpec;
use tranship_core::container::NetworkAttachment;
use tranship_core::memory::Obstacle;

use crate::json::{at, flag, is_empty, items, text, texts};

/// What is said where a container has to be made again in another way.
const AGAIN: &str = "make the container again without it";

/// Everything that stands in the way, whatever the mode.
pub(super) fn of(documents: &Value, rootless: bool) -> Vec<Obstacle> {
    let mut found = Vec::new();
    let mut add = |code: &str, message: String, remedy: &str| {
        found.push(Obstacle::new(code, message, remedy));
    };
    if rootless {
        add(
            "podman.rootless",
            "it belongs to a Podman without root, whose containers are not moved yet".into(),
            "run it with root's Podman, and log in as root",
        );
        return found;
    }
    if at(documents, &["Runtime"]).is_null() || at(documents, &["Wishes"]).is_null() {
        add(
            "podman.unseen",
            "what Podman made it of can be read only as root on Podman's own machine, after its first start"
                .into(),
            "log in as root; `podman generate spec` has to describe the container, which it does not with secrets in its environment",
        );
    }
    for (code, message, remedy) in inspected(at(documents, &["Inspect"]))
        .into_iter()
        .chain(wished(at(documents, &["Wishes"])))
    {
        add(code, message, remedy);
    }
    found
}

/// Addresses of its own that a network without a bridge shows to the whole wire. The new container has them as soon as it is made, while
/// the old one still answers: two would.
pub(super) fn of_addresses(networks: &[NetworkSpec], attachments: &[NetworkAttachment]) -> Vec<Obstacle> {
    let on_the_wire = |attachment: &&NetworkAttachment| {
        let own = !attachment.fixed_addresses.is_empty() || attachment.mac_address.is_some();
        let network = networks.iter().find(|network| network.name == attachment.network);
        own && network.is_some_and(|network| matches!(network.driver.as_str(), "macvlan" | "ipvlan"))
    };
    attachments
        .iter()
        .filter(on_the_wire)
        .map(|attachment| {
            Obstacle::new(
                "podman.wire-address",
                format!(
                    "it has a fixed address in network {}, which the new container would answer at as well while it is made",
                    attachment.network
                ),
                "make the container again without a fixed address there, or in a network with a bridge",
            )
        })
        .collect()
}

type Found = (&'static str, String, &'static str);

/// By libpod's own inspect document.
fn inspected(inspect: &Value) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    let host = |key: &str| text(inspect, &["HostConfig", key]);
    let is_set = |path: &[&str]| !is_empty(at(inspect, path));
    if is_set(&["Pod"]) || flag(inspect, &["IsInfra"]) || flag(inspect, &["IsService"]) {
        found.push((
            "podman.pod",
            "it belongs to a pod, whose containers share what a single one cannot take along".into(),
            "make it again outside of the pod",
        ));
    }
    if is_set(&["Dependencies"]) {
        found.push((
            "podman.requires",
            "it starts only together with other containers of its host (--requires, or a namespace of theirs)".into(),
            AGAIN,
        ));
    }
    if is_set(&["Config", "Secrets"]) {
        found.push(secrets());
    }
    let unit = at(inspect, &["Config", "Labels", "PODMAN_SYSTEMD_UNIT"]);
    if !unit.is_null() {
        // It would start a second instance here, or take the container away when it ends.
        found.push((
            "podman.unit",
            format!("it belongs to the systemd unit {unit}, which makes, starts and removes it here"),
            "stop and disable the unit, and make the container again without it, with a restart policy",
        ));
    }
    if flag(inspect, &["HostConfig", "AutoRemove"]) || flag(inspect, &["HostConfig", "AutoRemoveImage"]) {
        // It is ended once when it is made, and Podman would take it away then, and its volumes with it.
        found.push((
            "podman.auto-remove",
            "Podman removes it as soon as it ends (--rm, --rmi)".into(),
            "make the container again without --rm",
        ));
    }
    if flag(inspect, &["Config", "SystemdMode"]) {
        found.push((
            "podman.systemd",
            "systemd runs in it, for which Podman mounts what is not moved yet".into(),
            "make it again with --systemd=false",
        ));
    }
    if is_set(&["Rootfs"]) {
        found.push((
            "podman.rootfs",
            "it has a directory of the host as its root (--rootfs), and no image".into(),
            "make it again from an image",
        ));
    }
    if !host("UsernsMode").is_empty() || is_set(&["HostConfig", "IDMappings"]) {
        found.push((
            "podman.userns",
            "it has user ids of its own (--userns, --uidmap)".into(),
            AGAIN,
        ));
    }
    for key in ["IpcMode", "PidMode", "UTSMode", "CgroupMode", "NetworkMode"] {
        let mode = host(key);
        let fits = match key {
            "NetworkMode" => {
                matches!(mode.as_str(), "bridge" | "host" | "none") || mode.starts_with("container:")
            }
            _ => !mode.starts_with("ns:"),
        };
        if !fits {
            found.push((
                "podman.namespace",
                format!("its {key} is {mode:?}, which is not made again yet"),
                AGAIN,
            ));
        }
    }
    let size = text(inspect, &["HostConfig", "LogConfig", "Size"]);
    let log = text(inspect, &["HostConfig", "LogConfig", "Path"]);
    let elsewhere = !log.is_empty() && !Path::new(&log).starts_with(text(inspect, &["StaticDir"]));
    if !matches!(size.as_str(), "" | "0B") || elsewhere {
        found.push((
            "podman.log",
            format!("its log has a size or a place of its own ({size}, {log}), and Podman does not say which exactly"),
            "make it again without --log-opt max-size and path; log_size_max in containers.conf holds for all containers",
        ));
    }
    let options = options(inspect);
    // No document has them in a form in which they could be asked for again.
    let groups = given(&options, "--cgroups");
    let groups = groups.iter().find(|groups| *groups != "enabled");
    if let Some(groups) = groups
        .cloned()
        .or_else(|| (host("Cgroups") == "disabled").then(|| "disabled".to_owned()))
    {
        found.push((
            "podman.cgroups",
            format!("its control groups are not Podman's usual ones (--cgroups={groups})"),
            "make it again without --cgroups",
        ));
    }
    if !given(&options, "--storage-opt").is_empty() {
        found.push((
            "podman.storage-opt",
            "it has options for its storage (--storage-opt)".into(),
            "make it again without --storage-opt",
        ));
    }
    let limits = [
        "BlkioWeightDevice",
        "BlkioDeviceReadBps",
        "BlkioDeviceWriteBps",
        "BlkioDeviceReadIOps",
        "BlkioDeviceWriteIOps",
    ];
    if limits.iter().any(|key| is_set(&["HostConfig", key])) {
        found.push((
            "podman.device-limits",
            "it has limits for single devices of its host".into(),
            AGAIN,
        ));
    }
    for option in texts(inspect, &["HostConfig", "SecurityOpt"]) {
        let known = matches!(
            option.as_str(),
            "no-new-privileges" | "label=disable" | "seccomp=unconfined"
        ) || option.starts_with("apparmor=");
        if !known {
            found.push((
                "podman.security",
                format!("its security option {option:?} is not made again yet, or names a file of its host"),
                AGAIN,
            ));
        }
    }
    if is_set(&["Config", "StartupHealthCheck"]) {
        found.push((
            "podman.startup-check",
            "it has a health check for its start (--health-startup-cmd), which is not made again yet".into(),
            AGAIN,
        ));
    }
    if text(inspect, &["Config", "HealthcheckOnFailureAction"]) == "restart" {
        // What ends while it is unhealthy is started again, whatever its restart policy is and whoever ended it (`shouldRestart` in
        // `libpod/container_internal.go`): beside the one that was moved, or in place of what is kept.
        found.push((
            "podman.health-restart",
            "Podman starts it again whenever it ends unhealthy, also where a move or a checkpoint ended it (--health-on-failure=restart)".into(),
            AGAIN,
        ));
    }
    let hosts = host("HostsFile");
    if !matches!(hosts.as_str(), "" | "none" | "image") {
        found.push((
            "podman.hosts-file",
            format!("its /etc/hosts is made from {hosts} of its host"),
            AGAIN,
        ));
    }
    found
}

/// The words of the command that made it, without those that are its program's.
fn options(inspect: &Value) -> Vec<String> {
    let mut words = texts(inspect, &["Config", "CreateCommand"]);
    let program = texts(inspect, &["Config", "Cmd"]);
    if words.ends_with(&program) {
        words.truncate(words.len() - program.len());
    }
    words
}

/// Every value that was given for an option, as `--option=value` or in two words.
fn given(words: &[String], option: &str) -> Vec<String> {
    let value = |(place, word): (usize, &String)| match word.strip_prefix(option)? {
        "" => Some(words.get(place + 1).cloned().unwrap_or_default()),
        rest => rest.strip_prefix('=').map(str::to_owned),
    };
    words.iter().enumerate().filter_map(value).collect()
}

/// By what the container was made with.
fn wished(wishes: &Value) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    let is_set = |key: &str| !is_empty(at(wishes, &[key]));
    if is_set("secret_env") {
        found.push(secrets());
    }
    let part = |volume: &Value| !text(volume, &["SubPath"]).is_empty();
    if is_set("overlay_volumes") || is_set("image_volumes") || items(wishes, &["volumes"]).iter().any(part) {
        found.push((
            "podman.mount",
            "it mounts a volume in part, an image, or a directory under an overlay (:O)".into(),
            AGAIN,
        ));
    }
    for mount in items(wishes, &["mounts"]) {
        let kind = text(mount, &["type"]);
        if !matches!(kind.as_str(), "bind" | "tmpfs") {
            found.push((
                "podman.mount",
                format!("it mounts a {kind} at {}", text(mount, &["destination"])),
                AGAIN,
            ));
        }
    }
    if is_set("dependencyContainers") || is_set("devices_from") || is_set("volumes_from") {
        found.push((
            "podman.requires",
            "it takes something from other containers of its host".into(),
            AGAIN,
        ));
    }
    found
}

fn secrets() -> Found {
    (
        "podman.secrets",
        "it has secrets of its Podman, which are not carried".into(),
        "make it again without --secret",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn codes(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut documents = json!({
            "Inspect": {
                "StaticDir": "/s/x/userdata",
                "Config": {}, "Pod": "", "Dependencies": [], "IsInfra": false,
                "HostConfig": {
                    "NetworkMode": "bridge", "IpcMode": "shareable", "PidMode": "private", "UTSMode": "private",
                    "CgroupMode": "host", "UsernsMode": "", "SecurityOpt": ["no-new-privileges"],
                    "LogConfig": { "Type": "k8s-file", "Path": "/s/x/userdata/ctr.log", "Size": "0B" },
                },
            },
            "Runtime": { "process": {} },
            "Wishes": { "mounts": [{ "type": "tmpfs", "destination": "/t" }], "volumes": [{ "SubPath": "" }] },
        });
        change(&mut documents);
        of(&documents, false).into_iter().map(|o| o.code).collect()
    }

    #[test]
    fn an_ordinary_container_has_none() {
        assert!(codes(|_| {}).is_empty());
    }

    /// What stands in the way of one that such a command made, whose program is its last word.
    fn made_by(words: &[&str]) -> Vec<String> {
        codes(|d| {
            d["Inspect"]["Config"]["Cmd"] = json!([words.last().unwrap()]);
            d["Inspect"]["Config"]["CreateCommand"] = [&["podman", "run"], words].concat().into();
        })
    }

    #[test]
    fn words_of_its_program_are_no_options() {
        assert!(made_by(&["--cgroups=enabled", "i", "--cgroups=split"]).is_empty());
    }

    #[test]
    fn fixed_addresses_are_refused_where_two_would_answer() {
        let found = |driver: &str, address: Option<&str>, mac: Option<&str>| {
            let network = NetworkSpec {
                id: "x".into(),
                name: "wire".into(),
                driver: driver.into(),
                scope: "local".into(),
                internal: false,
                ipv6: false,
                options: Default::default(),
                labels: Default::default(),
                pools: Vec::new(),
                used: Default::default(),
                document: Value::Null,
            };
            let attachment = NetworkAttachment {
                network: "wire".into(),
                aliases: Vec::new(),
                fixed_addresses: address.map(|a| a.parse().unwrap()).into_iter().collect(),
                mac_address: mac.map(str::to_owned),
                links: Vec::new(),
            };
            let found = of_addresses(&[network], &[attachment]);
            found.into_iter().map(|o| o.code).collect::<Vec<_>>()
        };
        let address = Some("10.0.0.9");
        assert_eq!(found("macvlan", address, None), ["podman.wire-address"]);
        assert_eq!(found("ipvlan", address, None), ["podman.wire-address"]);
        assert_eq!(
            found("macvlan", None, Some("5e:a6:a8:08:54:21")),
            ["podman.wire-address"]
        );
        assert!(found("macvlan", None, None).is_empty());
        assert!(found("bridge", address, None).is_empty());
    }

    #[test]
    fn what_is_not_made_again_is_named() {
        let host = |key: &str, value: &str| {
            let (key, value) = (key.to_owned(), value.to_owned());
            codes(move |d| d["Inspect"]["HostConfig"][key] = value.into())
        };
        assert_eq!(codes(|d| d["Inspect"]["Pod"] = "p".into()), ["podman.pod"]);
        assert_eq!(
            codes(|d| d["Inspect"]["Dependencies"] = json!(["x"])),
            ["podman.requires"]
        );
        assert_eq!(
            codes(|d| d["Inspect"]["Config"]["Secrets"] = json!([{}])),
            ["podman.secrets"]
        );
        assert_eq!(
            codes(|d| d["Wishes"]["secret_env"] = json!({ "A": "b" })),
            ["podman.secrets"]
        );
        assert_eq!(
            codes(|d| d["Inspect"]["Config"]["SystemdMode"] = true.into()),
            ["podman.systemd"]
        );
        assert_eq!(
            codes(|d| d["Inspect"]["Config"]["Labels"] = json!({ "PODMAN_SYSTEMD_UNIT": "web.service" })),
            ["podman.unit"]
        );
        for key in ["AutoRemove", "AutoRemoveImage"] {
            assert_eq!(
                codes(|d| d["Inspect"]["HostConfig"][key] = true.into()),
                ["podman.auto-remove"]
            );
        }
        let on_failure = |action: &str| {
            let action = action.to_owned();
            codes(move |d| d["Inspect"]["Config"]["HealthcheckOnFailureAction"] = action.into())
        };
        assert_eq!(on_failure("restart"), ["podman.health-restart"]);
        for ends in ["none", "stop", "kill"] {
            assert!(on_failure(ends).is_empty(), "{ends}");
        }
        assert_eq!(codes(|d| d["Inspect"]["Rootfs"] = "/r".into()), ["podman.rootfs"]);
        assert_eq!(host("UsernsMode", "private"), ["podman.userns"]);
        assert_eq!(host("NetworkMode", "slirp4netns"), ["podman.namespace"]);
        assert_eq!(host("PidMode", "ns:/proc/1/ns/pid"), ["podman.namespace"]);
        assert_eq!(host("HostsFile", "/etc/other"), ["podman.hosts-file"]);
        assert_eq!(
            codes(|d| d["Inspect"]["HostConfig"]["LogConfig"]["Size"] = "10.49MB".into()),
            ["podman.log"]
        );
        assert_eq!(
            codes(|d| d["Inspect"]["HostConfig"]["SecurityOpt"] = json!(["seccomp=/etc/p.json"])),
            ["podman.security"]
        );
        assert_eq!(
            codes(|d| d["Wishes"]["overlay_volumes"] = json!([{ "source": "/x" }])),
            ["podman.mount"]
        );
        for (words, code) in [
            (&["--cgroups=split", "i", "sh"][..], "podman.cgroups"),
            (&["--cgroups", "no-conmon", "i", "sh"], "podman.cgroups"),
            (
                &["--cgroups=enabled", "--cgroups=no-conmon", "i", "sh"],
                "podman.cgroups",
            ),
            (&["--storage-opt=size=1G", "i", "sh"], "podman.storage-opt"),
            (&["--storage-opt", "size=1G", "i"], "podman.storage-opt"),
        ] {
            assert_eq!(made_by(words), [code], "{words:?}");
        }
        assert_eq!(host("Cgroups", "disabled"), ["podman.cgroups"]);
        assert_eq!(codes(|d| d["Runtime"] = Value::Null), ["podman.unseen"]);
        assert_eq!(of(&Value::Null, true)[0].code, "podman.rootless");
    }
}
