//! The bodies of `create container`, `connect network` and `create network`.

use serde_json::{Map, Value, json};
use tranship_core::container::RestartPolicy;
use tranship_core::engine::CreateRequest;
use tranship_core::{ContainerSpec, EngineError, NetworkSpec};

use super::volumes;
use crate::describe::primary_network;
use crate::json::{at, flag, is_empty, object, text};

/// What an engine writes into an endpoint while it is in use.
const OPERATIONAL: [&str; 9] = [
    "NetworkID",
    "EndpointID",
    "Gateway",
    "IPAddress",
    "IPPrefixLen",
    "IPv6Gateway",
    "GlobalIPv6Address",
    "GlobalIPv6PrefixLen",
    "DNSNames",
];

/// What an engine writes into a network besides what it was made from.
const NETWORK_STATE: [&str; 7] = [
    "Id",
    "Created",
    "Containers",
    "Services",
    "Peers",
    "Status",
    "ConfigOnlyContainers",
];

/// Which networks the body of `create container` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joins {
    /// All of them (API 1.44 and later). There it has to be this way: Docker 26 forgets a hardware address that a
    /// container gets by `connect` before its first start.
    All,
    /// The primary one; earlier engines refuse more. The others are connected before the start.
    Primary,
}

/// The body of `create container`.
///
/// `image` is how the image is called there: the source's reference, or its id where the reference means nothing.
/// `image_config` is the image's own configuration (`Config` of its inspect document), which the engine merges with
/// the body: what the container does not have although the image has it must be sent as an explicit nothing.
///
/// # Errors
/// [`EngineError::Unsupported`] when the container shares another one's namespaces, is linked to others, or has
/// volumes or bind mounts that the request neither carries nor allows to be empty.
pub fn create_body(
    request: &CreateRequest,
    image_config: &Value,
    image: &str,
    joins: Joins,
) -> Result<Value, EngineError> {
    let spec = &request.spec;
    if let Some(tie) = spec.ties.shared_namespaces.first().or(spec.ties.links.first()) {
        return Err(EngineError::Unsupported {
            message: format!(
                "container {} depends on another container of its host: {tie}",
                spec.name
            ),
        });
    }
    volumes::check(request)?;
    let mut config = config(spec, image_config, image);
    let mut host = host_config(request);
    volumes::carry(request, &mut host);
    config.insert("HostConfig".into(), Value::Object(host));

    let primary = primary_network(&spec.network_mode);
    let mut endpoints = Map::new();
    for network in spec.attachments.iter().map(|a| a.network.as_str()) {
        let named = network == primary || joins == Joins::All;
        if named && !is_fixed(network) {
            let endpoint = endpoint(spec, network, request.drop_fixed_addresses);
            // Joined anyway if no other is named, and Podman calls it otherwise. Beside others it has to be named.
            let alone = joins == Joins::Primary || spec.attachments.len() == 1;
            if alone && endpoint.is_empty() && NetworkSpec::is_predefined(network) {
                continue;
            }
            endpoints.insert(network.to_owned(), Value::Object(endpoint));
        }
    }
    config.insert("NetworkingConfig".into(), json!({ "EndpointsConfig": endpoints }));
    Ok(Value::Object(config))
}

/// Networks without settings of their own.
fn is_fixed(network: &str) -> bool {
    matches!(network, "host" | "none") || network.starts_with("container:")
}

/// The networks that the body does not name, with their endpoints' settings.
pub(crate) fn further_endpoints(request: &CreateRequest, joins: Joins) -> Vec<(String, Value)> {
    if joins == Joins::All {
        return Vec::new();
    }
    let spec = &request.spec;
    let primary = primary_network(&spec.network_mode);
    spec.attachments
        .iter()
        .filter(|a| a.network != primary && !is_fixed(&a.network))
        .map(|a| {
            let endpoint = endpoint(spec, &a.network, request.drop_fixed_addresses);
            (a.network.clone(), Value::Object(endpoint))
        })
        .collect()
}

/// The network that `NetworkMode` names but that the container was taken off, if so.
pub(crate) fn leaves_primary(spec: &ContainerSpec) -> Option<&str> {
    let primary = primary_network(&spec.network_mode);
    let joined = spec.attachments.iter().any(|a| a.network == primary);
    (!joined && !is_fixed(primary)).then_some(primary)
}

fn config(spec: &ContainerSpec, image_config: &Value, image: &str) -> Map<String, Value> {
    let mut config = object(&spec.document, &["Config"]);
    config.insert("Image".into(), image.into());
    match &spec.host_name {
        Some(name) => config.insert("Hostname".into(), name.as_str().into()),
        None => config.remove("Hostname"),
    };
    let mac = primary_mac(spec);
    match mac {
        // Engines before API 1.44 read it here, later ones want it equal to the endpoint's.
        Some(mac) => config.insert("MacAddress".into(), mac.into()),
        None => config.remove("MacAddress"),
    };
    // An empty entry point would let the image's come back. Docker reads a single empty word as none at all
    // (`daemon/create.go`: "Reset the Entrypoint if it is [""]"), and the image's command stays away then as well.
    if config.get("Entrypoint").is_none_or(is_empty) {
        let reset = !is_empty(at(image_config, &["Entrypoint"])) || config.get("Cmd").is_none_or(is_empty);
        let entrypoint = if reset { json!([""]) } else { Value::Null };
        config.insert("Entrypoint".into(), entrypoint);
    }
    config
}

fn primary_mac(spec: &ContainerSpec) -> Option<&str> {
    let primary = primary_network(&spec.network_mode);
    let attachment = spec.attachments.iter().find(|a| a.network == primary)?;
    attachment.mac_address.as_deref()
}

fn host_config(request: &CreateRequest) -> Map<String, Value> {
    let spec = &request.spec;
    let mut host = object(&spec.document, &["HostConfig"]);
    host.insert("NetworkMode".into(), spec.network_mode.as_str().into());
    host.insert("RestartPolicy".into(), restart_policy(&request.restart_policy));
    for key in ["ContainerIDFile", "VolumesFrom", "Links"] {
        host.remove(key);
    }
    if spec.ties.runtime.is_empty() {
        // The engine there has a default of its own.
        host.remove("Runtime");
    }
    // Docker 23 took the kernel memory limit away; older ones refuse it where the kernel lacks it, a zero included.
    for key in ["KernelMemory", "KernelMemoryTCP"] {
        if host.get(key).is_some_and(is_empty) {
            host.remove(key);
        }
    }
    // "Not set", which older engines write as -1.
    if host
        .get("MemorySwappiness")
        .is_some_and(|v| v.is_null() || v == -1)
    {
        host.remove("MemorySwappiness");
    }
    if host.get("OomKillDisable").is_some_and(Value::is_null) {
        host.remove("OomKillDisable");
    }
    if let Some(bindings) = host.get_mut("PortBindings").and_then(Value::as_object_mut) {
        for binding in bindings.values_mut().filter_map(Value::as_array_mut).flatten() {
            let old = text(binding, &["HostPort"]).parse().ok();
            let new = old.and_then(|port: u16| request.publish.get(&port));
            if let (Some(new), Some(binding)) = (new, binding.as_object_mut()) {
                binding.insert("HostPort".into(), new.to_string().into());
            }
        }
    }
    host
}

pub(crate) fn restart_policy(policy: &RestartPolicy) -> Value {
    let name = if policy.name.is_empty() {
        "no"
    } else {
        &policy.name
    };
    let retries = if name == "on-failure" {
        policy.maximum_retries
    } else {
        0
    };
    json!({ "Name": name, "MaximumRetryCount": retries })
}

/// What the user wished for in one network, without what the engine allocated.
fn endpoint(spec: &ContainerSpec, network: &str, drop_fixed_addresses: bool) -> Map<String, Value> {
    let mut endpoint = object(&spec.document, &["NetworkSettings", "Networks", network]);
    for key in OPERATIONAL {
        endpoint.remove(key);
    }
    for key in ["MacAddress", "Aliases", "Links"] {
        endpoint.remove(key);
    }
    let attachment = spec.attachments.iter().find(|a| a.network == network);
    if let Some(attachment) = attachment {
        if let Some(mac) = &attachment.mac_address {
            endpoint.insert("MacAddress".into(), mac.as_str().into());
        }
        // The engine's own networks know no aliases and refuse them.
        if !attachment.aliases.is_empty() && !NetworkSpec::is_predefined(network) {
            endpoint.insert("Aliases".into(), json!(attachment.aliases));
        }
    }
    if drop_fixed_addresses && let Some(ipam) = endpoint.get_mut("IPAMConfig").and_then(Value::as_object_mut)
    {
        ipam.remove("IPv4Address");
        ipam.remove("IPv6Address");
    }
    endpoint.retain(|_, value| !is_empty(value));
    endpoint
}

/// The inspect document that the new container should have, as far as it follows from the request: the source's, with
/// the changes that the request asks for.
///
/// # Errors
/// As [`create_body`].
pub fn expected(request: &CreateRequest, image_config: &Value, image: &str) -> Result<Value, EngineError> {
    let mut body = object(&create_body(request, image_config, image, Joins::All)?, &[]);
    let host = body.remove("HostConfig").unwrap_or_default();
    body.remove("NetworkingConfig");
    // Sent as an explicit nothing, seen as nothing.
    if at(&Value::Object(body.clone()), &["Entrypoint"]) == &json!([""]) {
        body.insert("Entrypoint".into(), Value::Null);
    }
    let spec = &request.spec;
    let mut networks = object(&spec.document, &["NetworkSettings", "Networks"]);
    for (name, value) in &mut networks {
        if !is_fixed(name) {
            *value = Value::Object(endpoint(spec, name, request.drop_fixed_addresses));
        }
    }
    let mut document = object(&spec.document, &[]);
    document.insert("Name".into(), format!("/{}", request.name).into());
    document.insert("Config".into(), Value::Object(body));
    document.insert("HostConfig".into(), host);
    document.insert("Mounts".into(), Value::Array(volumes::expected(request)));
    document.insert("NetworkSettings".into(), json!({ "Networks": networks }));
    Ok(Value::Object(document))
}

/// The body of `create network`.
///
/// With `new_subnets` the engine chooses the addresses; `keep_ipv6` keeps the user's IPv6 subnets even then, because
/// engines before Docker 27 have none of their own to choose from.
#[must_use]
pub fn network_body(spec: &NetworkSpec, new_subnets: bool, keep_ipv6: bool) -> Value {
    let mut body = object(&spec.document, &[]);
    for key in NETWORK_STATE {
        body.remove(key);
    }
    body.insert("Name".into(), spec.name.as_str().into());
    // Engines before API 1.44 make a second network of the same name without it.
    body.insert("CheckDuplicate".into(), true.into());
    if new_subnets && let Some(ipam) = body.get_mut("IPAM").and_then(Value::as_object_mut) {
        let pools = ipam.remove("Config").unwrap_or_default();
        let kept: Vec<Value> = pools
            .as_array()
            .into_iter()
            .flatten()
            .filter(|pool| keep_ipv6 && text(pool, &["Subnet"]).contains(':'))
            .cloned()
            .collect();
        if !kept.is_empty() {
            ipam.insert("Config".into(), Value::Array(kept));
        }
    }
    if text(&spec.document, &["ConfigFrom", "Network"]).is_empty() {
        body.remove("ConfigFrom");
    }
    if !flag(&spec.document, &["Ingress"]) {
        body.remove("Ingress");
    }
    Value::Object(body)
}
