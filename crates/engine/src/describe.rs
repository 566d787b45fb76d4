//! From the engine's documents to the typed view: pure functions, no calls.
//!
//! Field names and defaults are those of the Docker Engine API, versions 1.41 to 1.52
//! (<https://docs.docker.com/reference/api/engine/>), and of Podman's compatible one.

use std::net::IpAddr;

use serde_json::Value;
use tranship_core::container::{
    ContainerState, ContainerStatus, Health, HealthCheck, MountKind, MountSpec, NetworkAttachment,
    PublishedPort, RestartPolicy, Ties,
};
use tranship_core::ids::Digest;
use tranship_core::network::AddressPool;
use tranship_core::{ContainerId, ContainerSpec, EngineError, ImageSpec, NetworkSpec};

use crate::fault::Ask;
use crate::json::{at, entries, flag, items, number, text, text_map, texts};

/// What has to be known besides the container's own document to tell the user's wishes from the engine's defaults.
#[derive(Debug, Clone, Default)]
pub(crate) struct Surroundings {
    /// Host name of the node.
    pub(crate) host_name: String,
    /// The engine's default OCI runtime.
    pub(crate) default_runtime: String,
    /// Major version of the engine.
    pub(crate) engine_major: u64,
    /// Hardware addresses that the user asked for, by network, where the engine's own records could be read.
    pub(crate) desired_macs: Option<std::collections::BTreeMap<String, String>>,
    /// Names of the volumes that the engine named by itself.
    pub(crate) anonymous_volumes: std::collections::BTreeSet<String>,
    /// Names of containers by id, for namespaces that are shared.
    pub(crate) container_names: std::collections::BTreeMap<String, String>,
}

/// The typed view of a container.
pub(crate) fn container(
    document: Value,
    image: ImageSpec,
    networks: Vec<NetworkSpec>,
    around: &Surroundings,
    ask: &Ask,
) -> Result<ContainerSpec, EngineError> {
    let id = ContainerId::new(text(&document, &["Id"])).map_err(|error| ask.uncertain(error))?;
    let network_mode = network_mode(&document, &networks);
    let spec = ContainerSpec {
        name: text(&document, &["Name"]).trim_start_matches('/').to_owned(),
        status: status(&document),
        image,
        image_reference: text(&document, &["Config", "Image"]),
        labels: text_map(&document, &["Config", "Labels"]),
        auto_remove: flag(&document, &["HostConfig", "AutoRemove"]),
        restart_policy: restart_policy(&document),
        health_check: health_check(&document),
        stop_timeout: at(&document, &["Config", "StopTimeout"]).as_i64(),
        ports: ports(&document),
        host_name: host_name(&document, id.as_str(), &network_mode, around),
        attachments: attachments(&document, id.as_str(), &network_mode, around),
        mounts: mounts(&document, around),
        ties: ties(&document, around),
        network_mode,
        networks,
        id,
        document,
    };
    Ok(spec)
}

/// Host name that the user chose. The engine's own choices are the short id, and the node's name where the container
/// uses the node's network.
fn host_name(document: &Value, id: &str, network_mode: &str, around: &Surroundings) -> Option<String> {
    let name = text(document, &["Config", "Hostname"]);
    let generated = name.is_empty()
        || is_short_id(&name, id)
        || network_mode.starts_with("container:")
        || at(document, &["HostConfig", "UTSMode"]) == "host"
        || (network_mode == "host" && name == around.host_name);
    (!generated).then_some(name)
}

/// Whether the engine derived `name` from the container's id.
pub(crate) fn is_short_id(name: &str, id: &str) -> bool {
    name.len() >= 12 && id.starts_with(name)
}

/// `NetworkMode` with the id of a network replaced by its name.
pub(crate) fn network_mode(document: &Value, networks: &[NetworkSpec]) -> String {
    let mode = text(document, &["HostConfig", "NetworkMode"]);
    if let Some(network) = networks.iter().find(|network| network.id == mode) {
        return network.name.clone();
    }
    entries(document, &["NetworkSettings", "Networks"])
        .find(|(_, endpoint)| !mode.is_empty() && text(endpoint, &["NetworkID"]) == mode)
        .map_or(mode, |(name, _)| name.clone())
}

/// The network whose endpoint is made together with the container. Docker calls its own bridge `default` as well.
pub(crate) fn primary_network(network_mode: &str) -> &str {
    match network_mode {
        "" | "default" => "bridge",
        other => other,
    }
}

/// What the container does now.
pub(crate) fn status(document: &Value) -> ContainerStatus {
    let state = at(document, &["State"]);
    ContainerStatus {
        state: state_of(&text(state, &["Status"])),
        health: match text(state, &["Health", "Status"]).as_str() {
            "starting" => Health::Starting,
            "healthy" => Health::Healthy,
            "unhealthy" => Health::Unhealthy,
            _ => Health::None,
        },
        started_at: text(state, &["StartedAt"]),
        exit_code: number(state, &["ExitCode"]),
        error: text(state, &["Error"]),
        oom_killed: flag(state, &["OOMKilled"]),
        restart_count: u64::try_from(number(document, &["RestartCount"])).unwrap_or_default(),
    }
}

/// Docker's states; Podman has a few words more for the same.
fn state_of(word: &str) -> ContainerState {
    match word {
        "running" | "stopping" => ContainerState::Running,
        "paused" => ContainerState::Paused,
        "restarting" => ContainerState::Restarting,
        "removing" => ContainerState::Removing,
        "exited" | "stopped" => ContainerState::Exited,
        "dead" => ContainerState::Dead,
        _ => ContainerState::Created,
    }
}

pub(crate) fn restart_policy(document: &Value) -> RestartPolicy {
    let policy = at(document, &["HostConfig", "RestartPolicy"]);
    let name = text(policy, &["Name"]);
    RestartPolicy {
        name: if name.is_empty() { "no".into() } else { name },
        maximum_retries: number(policy, &["MaximumRetryCount"]),
    }
}

/// Docker's defaults (`daemon/health.go`): 30 s between checks, 30 s for each, no grace, three failures.
fn health_check(document: &Value) -> Option<HealthCheck> {
    let check = at(document, &["Config", "Healthcheck"]);
    let test = texts(check, &["Test"]);
    if test.is_empty() || test[0] == "NONE" {
        return None;
    }
    let milliseconds = |key: &str, default: u64| match u64::try_from(number(check, &[key])) {
        Ok(0) | Err(_) => default,
        Ok(nanoseconds) => nanoseconds.div_ceil(1_000_000),
    };
    Some(HealthCheck {
        interval_ms: milliseconds("Interval", 30_000),
        timeout_ms: milliseconds("Timeout", 30_000),
        start_period_ms: milliseconds("StartPeriod", 0),
        retries: match u64::try_from(number(check, &["Retries"])) {
            Ok(0) | Err(_) => 3,
            Ok(retries) => retries,
        },
    })
}

fn ports(document: &Value) -> Vec<PublishedPort> {
    let mut ports = Vec::new();
    for (key, bindings) in entries(document, &["HostConfig", "PortBindings"]) {
        let Some((container_port, protocol)) = port_key(key) else {
            continue;
        };
        for binding in items(bindings, &[]) {
            ports.push(PublishedPort {
                container_port,
                protocol: protocol.clone(),
                host_address: text(binding, &["HostIp"]).parse().ok(),
                host_port: text(binding, &["HostPort"])
                    .parse()
                    .ok()
                    .filter(|port| *port != 0),
            });
        }
    }
    if flag(document, &["HostConfig", "PublishAllPorts"]) {
        for (key, _) in entries(document, &["Config", "ExposedPorts"]) {
            let Some((container_port, protocol)) = port_key(key) else {
                continue;
            };
            let bound =
                |port: &PublishedPort| port.container_port == container_port && port.protocol == protocol;
            if !ports.iter().any(bound) {
                ports.push(PublishedPort {
                    container_port,
                    protocol,
                    host_address: None,
                    host_port: None,
                });
            }
        }
    }
    ports.sort();
    ports
}

/// `80/tcp` as port and protocol.
fn port_key(key: &str) -> Option<(u16, String)> {
    let (port, protocol) = key.split_once('/').unwrap_or((key, "tcp"));
    Some((port.parse().ok()?, protocol.to_owned()))
}

fn attachments(
    document: &Value,
    id: &str,
    network_mode: &str,
    around: &Surroundings,
) -> Vec<NetworkAttachment> {
    entries(document, &["NetworkSettings", "Networks"])
        .map(|(network, endpoint)| {
            let ipam = at(endpoint, &["IPAMConfig"]);
            NetworkAttachment {
                network: network.clone(),
                aliases: texts(endpoint, &["Aliases"])
                    .into_iter()
                    .filter(|alias| !is_short_id(alias, id))
                    .collect(),
                fixed_addresses: [text(ipam, &["IPv4Address"]), text(ipam, &["IPv6Address"])]
                    .iter()
                    .filter_map(|address| address.parse::<IpAddr>().ok())
                    .collect(),
                mac_address: user_mac(document, network, endpoint, network_mode, around),
                links: texts(endpoint, &["Links"]),
            }
        })
        .collect()
}

/// The hardware address of an endpoint if the user chose it.
///
/// `inspect` shows the address in use, the engine's own choice or not. Docker's records on disk name the wish; without
/// them `Config.MacAddress` does for the primary network (API before 1.52), and up to Docker 27 a generated address is
/// `02:42:` and the IPv4 address. From 28 on generated ones are random, and a wish for a further network is not seen.
fn user_mac(
    document: &Value,
    network: &str,
    endpoint: &Value,
    network_mode: &str,
    around: &Surroundings,
) -> Option<String> {
    if let Some(desired) = &around.desired_macs {
        return desired.get(network).filter(|mac| !mac.is_empty()).cloned();
    }
    if primary_network(network_mode) == network {
        let wish = text(document, &["Config", "MacAddress"]);
        return (!wish.is_empty()).then_some(wish);
    }
    let mac = text(endpoint, &["MacAddress"]);
    let known = around.engine_major > 0 && around.engine_major < 28;
    (known && !mac.is_empty() && !mac.to_ascii_lowercase().starts_with("02:42:")).then_some(mac)
}

fn mounts(document: &Value, around: &Surroundings) -> Vec<MountSpec> {
    let mut mounts: Vec<MountSpec> = items(document, &["Mounts"])
        .iter()
        .map(|mount| {
            let name = text(mount, &["Name"]);
            MountSpec {
                kind: match text(mount, &["Type"]).as_str() {
                    "volume" => MountKind::Volume,
                    "bind" => MountKind::Bind,
                    "tmpfs" => MountKind::Tmpfs,
                    _ => MountKind::Other,
                },
                source: text(mount, &["Source"]),
                destination: text(mount, &["Destination"]),
                driver: text(mount, &["Driver"]),
                writable: flag(mount, &["RW"]),
                anonymous: is_generated_name(&name) || around.anonymous_volumes.contains(&name),
                name,
            }
        })
        .collect();
    // `--tmpfs` is not among the mounts.
    for (destination, options) in entries(document, &["HostConfig", "Tmpfs"]) {
        let read_only = options
            .as_str()
            .is_some_and(|o| o.split(',').any(|word| word == "ro"));
        mounts.push(MountSpec {
            kind: MountKind::Tmpfs,
            name: String::new(),
            source: String::new(),
            destination: destination.clone(),
            driver: String::new(),
            writable: !read_only,
            anonymous: false,
        });
    }
    mounts
}

/// Whether a volume's name has the form that engines make up.
pub(crate) fn is_generated_name(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Keys of `HostConfig` that may name another container, with the word for messages.
const NAMESPACES: [(&str, &str); 6] = [
    ("NetworkMode", "network"),
    ("IpcMode", "ipc"),
    ("PidMode", "pid"),
    ("UTSMode", "uts"),
    ("UsernsMode", "userns"),
    ("CgroupnsMode", "cgroupns"),
];

/// Ids or names of the containers whose namespaces this one shares, with the word for messages.
pub(crate) fn shared_namespaces(document: &Value) -> Vec<(&'static str, String)> {
    NAMESPACES
        .iter()
        .filter_map(|(key, word)| {
            let mode = text(document, &["HostConfig", key]);
            mode.strip_prefix("container:").map(|id| (*word, id.to_owned()))
        })
        .collect()
}

fn ties(document: &Value, around: &Surroundings) -> Ties {
    let host = at(document, &["HostConfig"]);
    let runtime = text(host, &["Runtime"]);
    let quota = number(host, &["CpuQuota"]);
    let period = match number(host, &["CpuPeriod"]) {
        0 => 100_000,
        period => period,
    };
    let nano_cpus = match number(host, &["NanoCpus"]) {
        0 if quota > 0 => quota.saturating_mul(1_000_000_000) / period,
        nano_cpus => nano_cpus,
    };
    Ties {
        links: texts(host, &["Links"]),
        shared_namespaces: shared_namespaces(document)
            .into_iter()
            .map(|(word, id)| {
                let name = around.container_names.get(&id).unwrap_or(&id);
                format!("{word} container:{name}")
            })
            .collect(),
        devices: items(host, &["Devices"])
            .iter()
            .map(|device| text(device, &["PathOnHost"]))
            .collect(),
        device_requests: items(host, &["DeviceRequests"])
            .iter()
            .map(device_request)
            .collect(),
        runtime: if runtime == around.default_runtime {
            String::new()
        } else {
            runtime
        },
        log_driver: text(host, &["LogConfig", "Type"]),
        cpuset: text(host, &["CpusetCpus"]),
        nano_cpus,
        memory: number(host, &["Memory"]),
        orchestrator: orchestrator(document),
        apparmor_profile: texts(host, &["SecurityOpt"]).iter().find_map(|option| {
            let profile = option
                .strip_prefix("apparmor=")
                .or_else(|| option.strip_prefix("apparmor:"))?;
            (profile != "unconfined").then(|| profile.to_owned())
        }),
        image_platform: None,
        uncarried: Vec::new(),
    }
}

fn device_request(request: &Value) -> String {
    let mut words = vec![match text(request, &["Driver"]) {
        driver if driver.is_empty() => "device".to_owned(),
        driver => driver,
    }];
    match number(request, &["Count"]) {
        0 => words.extend(texts(request, &["DeviceIDs"])),
        -1 => words.push("all".into()),
        count => words.push(count.to_string()),
    }
    for capabilities in items(request, &["Capabilities"]) {
        words.push(texts(capabilities, &[]).join("+"));
    }
    words.join(" ")
}

fn orchestrator(document: &Value) -> Option<String> {
    let has = |prefix: &str| entries(document, &["Config", "Labels"]).any(|(key, _)| key.starts_with(prefix));
    if has("com.docker.swarm.") {
        Some("Docker Swarm".into())
    } else if has("io.kubernetes.") {
        Some("Kubernetes".into())
    } else {
        None
    }
}

/// An image from its inspect document. Podman leaves the algorithm out of ids.
pub(crate) fn image(document: &Value, ask: &Ask) -> Result<ImageSpec, EngineError> {
    let layers = texts(document, &["RootFS", "Layers"])
        .into_iter()
        .map(Digest::new)
        .collect::<Result<_, _>>()
        .map_err(|error| ask.uncertain(error))?;
    Ok(ImageSpec {
        id: image_id(&text(document, &["Id"]), ask)?,
        tags: texts(document, &["RepoTags"]),
        repo_digests: texts(document, &["RepoDigests"]),
        kept_layers: Vec::new(),
        variant: text(document, &["Variant"]),
        incomplete: false,
        layers,
        size: u64::try_from(number(document, &["Size"])).unwrap_or_default(),
        architecture: text(document, &["Architecture"]),
        os: text(document, &["Os"]),
    })
}

/// What a container is for.
pub(crate) struct Platform {
    pub(crate) os: String,
    pub(crate) architecture: String,
    pub(crate) variant: String,
}

impl Platform {
    /// Whether the image is for it.
    pub(crate) fn is_of(&self, image: &ImageSpec) -> bool {
        self.os == image.os
            && self.architecture == image.architecture
            && (self.variant.is_empty() || image.variant.is_empty() || self.variant == image.variant)
    }
}

/// What a container is for, where its document says it (Docker 28 and later with containerd's image store).
pub(crate) fn platform(document: &Value) -> Option<Platform> {
    let told = at(document, &["ImageManifestDescriptor", "platform"]);
    let platform = Platform {
        os: text(told, &["os"]),
        architecture: text(told, &["architecture"]),
        variant: text(told, &["variant"]),
    };
    (!platform.os.is_empty() && !platform.architecture.is_empty()).then_some(platform)
}

/// An image id in either engine's spelling.
pub(crate) fn image_id(text: &str, ask: &Ask) -> Result<Digest, EngineError> {
    let full = if text.contains(':') {
        text.to_owned()
    } else {
        format!("sha256:{text}")
    };
    Digest::new(full).map_err(|error| ask.uncertain(error))
}

/// A network from its inspect document.
pub(crate) fn network(document: Value) -> NetworkSpec {
    let optional = |value: &Value, key: &str| Some(text(value, &[key])).filter(|text| !text.is_empty());
    let pools = items(&document, &["IPAM", "Config"])
        .iter()
        .filter_map(|pool| {
            Some(AddressPool {
                subnet: optional(pool, "Subnet")?,
                gateway: optional(pool, "Gateway"),
                range: optional(pool, "IPRange"),
            })
        })
        .collect();
    let used = entries(&document, &["Containers"])
        .map(|(id, endpoint)| {
            let name = text(endpoint, &["Name"]);
            let addresses = ["IPv4Address", "IPv6Address"]
                .iter()
                .filter_map(|key| text(endpoint, &[key]).split('/').next()?.parse().ok())
                .collect();
            (if name.is_empty() { id.clone() } else { name }, addresses)
        })
        .collect();
    NetworkSpec {
        id: text(&document, &["Id"]),
        name: text(&document, &["Name"]),
        driver: text(&document, &["Driver"]),
        scope: text(&document, &["Scope"]),
        internal: flag(&document, &["Internal"]),
        ipv6: flag(&document, &["EnableIPv6"]),
        options: text_map(&document, &["Options"]),
        labels: text_map(&document, &["Labels"]),
        pools,
        used,
        document,
    }
}
