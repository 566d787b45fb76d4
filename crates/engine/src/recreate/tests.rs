//! The pure half of making a container again, on documents as engines write them.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tranship_core::container::RestartPolicy;
use tranship_core::engine::CreateRequest;
use tranship_core::ids::Digest;
use tranship_core::{EngineError, ImageSpec};

use super::*;
use crate::describe::{self, Surroundings};
use crate::fault::Ask;
use crate::json::at;

mod mounts;

/// A running container of Docker 26 with many options.
const RUNNING: &str = include_str!("fixtures/docker-26-running.json");

fn running() -> Value {
    serde_json::from_str(RUNNING).unwrap()
}

fn request(document: Value) -> CreateRequest {
    let image = ImageSpec {
        id: Digest::of(b"image"),
        tags: vec!["svc:1".into()],
        repo_digests: Vec::new(),
        kept_layers: Vec::new(),
        variant: String::new(),
        incomplete: false,
        layers: Vec::new(),
        size: 0,
        architecture: "amd64".into(),
        os: "linux".into(),
    };
    let around = Surroundings {
        host_name: "node-a".into(),
        default_runtime: "runc".into(),
        engine_major: 26,
        ..Surroundings::default()
    };
    let ask = Ask::new("inspect", "container", "test");
    let spec = describe::container(document, image, Vec::new(), &around, &ask).unwrap();
    CreateRequest {
        name: spec.name.clone(),
        publish: BTreeMap::new(),
        restart_policy: spec.restart_policy.clone(),
        empty_volumes: false,
        carried: BTreeMap::new(),
        drop_fixed_addresses: false,
        spec,
    }
}

/// A container with the engine's defaults, as Docker 20.10 shows it.
fn plain() -> Value {
    json!({
        "Id": "c6b65eb085ec664e62cf733685d303f04dbfa763fd8d53f7f436aa8b723c55f0",
        "Name": "/plain",
        "State": { "Status": "running" },
        "Image": Digest::of(b"image").as_str(),
        "Config": {
            "Hostname": "c6b65eb085ec", "Image": "svc:1", "Cmd": ["-f"], "Entrypoint": ["/bin/httpd"],
            "Env": ["A=1"], "Labels": {}, "Volumes": null, "FutureField": { "kept": true },
        },
        "HostConfig": {
            "NetworkMode": "default", "RestartPolicy": { "Name": "", "MaximumRetryCount": 0 },
            "PortBindings": {}, "KernelMemory": 0, "KernelMemoryTCP": 0, "MemorySwappiness": -1,
            "OomKillDisable": null, "Runtime": "runc", "CapAdd": ["NET_ADMIN"], "Links": null,
            "ContainerIDFile": "/tmp/cid", "FutureLimit": 7,
        },
        "NetworkSettings": { "Networks": { "bridge": {
            "IPAMConfig": null, "Links": null, "Aliases": null, "NetworkID": "f2", "EndpointID": "d1",
            "Gateway": "172.17.0.1", "IPAddress": "172.17.0.2", "IPPrefixLen": 16, "IPv6Gateway": "",
            "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0, "MacAddress": "02:42:ac:11:00:02",
            "DriverOpts": null,
        } } },
        "Mounts": [],
    })
}

fn body(request: &CreateRequest) -> Value {
    create_body(request, &json!({}), "svc:1", Joins::All).unwrap()
}

#[test]
fn what_the_engine_allocated_stays_behind() {
    let body = body(&request(running()));
    let text = body.to_string();
    for allocated in [
        "EndpointID",
        "NetworkID",
        "37b2d034e655",
        "02:42:ac:1f:00:02",
        "DNSNames",
        "172.31.0.2",
    ] {
        assert!(!text.contains(allocated), "{allocated}");
    }
    let endpoints = &body["NetworkingConfig"]["EndpointsConfig"];
    assert_eq!(endpoints["net1"]["IPAMConfig"]["IPv4Address"], "172.30.5.9");
    assert_eq!(endpoints["net1"]["IPAMConfig"]["IPv6Address"], "fd00:30::99");
    assert_eq!(endpoints["net1"]["Aliases"], json!(["w1", "w2"]));
    assert_eq!(endpoints["net1"]["MacAddress"], "02:42:ac:1e:00:99");
    assert_eq!(endpoints["net2"], json!({ "Aliases": ["z"] }));
    assert_eq!(
        (&body["Hostname"], &body["MacAddress"]),
        (&json!("hh"), &json!("02:42:ac:1e:00:99"))
    );
}

#[test]
fn what_the_user_said_goes_along_known_or_not() {
    let source = running();
    let body = body(&request(source.clone()));
    for (key, value) in source["HostConfig"].as_object().unwrap() {
        if [
            "ContainerIDFile",
            "VolumesFrom",
            "Links",
            "Runtime",
            "MemorySwappiness",
            "Binds",
        ]
        .contains(&key.as_str())
        {
            continue;
        }
        assert_eq!(&body["HostConfig"][key], value, "{key}");
    }
    for (key, value) in source["Config"].as_object().unwrap() {
        assert_eq!(&body[key], value, "{key}");
    }
    let old = body_of_plain();
    assert_eq!(old["FutureField"], json!({ "kept": true }));
    assert_eq!(old["HostConfig"]["FutureLimit"], 7);
}

fn body_of_plain() -> Value {
    body(&request(plain()))
}

#[test]
fn quirks_of_older_engines_do_not_travel() {
    let body = body_of_plain();
    let host = &body["HostConfig"];
    for gone in [
        "KernelMemory",
        "KernelMemoryTCP",
        "MemorySwappiness",
        "OomKillDisable",
        "ContainerIDFile",
        "Links",
        "Runtime",
    ] {
        assert!(host.get(gone).is_none(), "{gone}");
    }
    assert_eq!(
        host["RestartPolicy"],
        json!({ "Name": "no", "MaximumRetryCount": 0 })
    );
    assert!(body.get("Hostname").is_none() && body.get("MacAddress").is_none());
    assert_eq!(body["NetworkingConfig"]["EndpointsConfig"], json!({}));
}

#[test]
fn earlier_engines_take_one_network_in_the_body() {
    let request = request(running());
    let body = create_body(&request, &json!({}), "svc:1", Joins::Primary).unwrap();
    let endpoints = body["NetworkingConfig"]["EndpointsConfig"].as_object().unwrap();
    assert_eq!(endpoints.keys().collect::<Vec<_>>(), ["net1"]);
    assert_eq!(further_endpoints(&request, Joins::All), []);
    let further = further_endpoints(&request, Joins::Primary);
    assert_eq!(further, [("net2".to_owned(), json!({ "Aliases": ["z"] }))]);
}

#[test]
fn the_images_entry_point_does_not_come_back() {
    let image = json!({ "Entrypoint": ["/entry"], "Cmd": ["x"] });
    for nothing in [Value::Null, json!([])] {
        let mut document = plain();
        document["Config"]["Entrypoint"] = nothing.clone();
        let request = request(document);
        let body = create_body(&request, &image, "svc:1", Joins::All).unwrap();
        assert_eq!(
            (&body["Entrypoint"], &body["Cmd"]),
            (&json!([""]), &json!(["-f"]))
        );
        // Where the image has none, nothing needs to be said.
        let body = create_body(&request, &json!({}), "svc:1", Joins::All).unwrap();
        assert_eq!(body["Entrypoint"], Value::Null);
    }
    let mut document = plain();
    document["Config"]["Cmd"] = Value::Null;
    let body = create_body(&request(document), &image, "svc:1", Joins::All).unwrap();
    assert_eq!(
        (&body["Entrypoint"], &body["Cmd"]),
        (&json!(["/bin/httpd"]), &Value::Null)
    );
}

#[test]
fn the_request_changes_what_it_names() {
    let mut request = request(running());
    request.publish = BTreeMap::from([(8080, 9090), (5353, 5354), (1, 2)]);
    request.restart_policy = RestartPolicy::never();
    request.drop_fixed_addresses = true;
    let body = create_body(&request, &json!({}), "sha256:abc", Joins::All).unwrap();
    let ports = &body["HostConfig"]["PortBindings"];
    assert_eq!(ports["80/tcp"][0]["HostPort"], "9090");
    assert_eq!(
        ports["53/udp"][0],
        json!({ "HostIp": "127.0.0.1", "HostPort": "5354" })
    );
    assert_eq!(ports["7001/tcp"][0]["HostPort"], "7001");
    assert_eq!(body["HostConfig"]["RestartPolicy"]["Name"], "no");
    assert_eq!(body["Image"], "sha256:abc");
    assert!(!body["NetworkingConfig"].to_string().contains("172.30.5.9"));
    // And the comparison knows.
    let wanted = expected(&request, &json!({}), "sha256:abc").unwrap();
    assert!(losses(&wanted, &wanted).is_empty());
    let lines = differences(&wanted, &running()).join("\n");
    for change in [
        "HostConfig.PortBindings.80/tcp.0.HostPort",
        "HostConfig.RestartPolicy.Name",
        "Config.Image",
        "IPAMConfig",
    ] {
        assert!(lines.contains(change), "{change} not in\n{lines}");
    }
}

#[test]
fn a_networks_id_becomes_its_name() {
    let mut document = running();
    document["HostConfig"]["NetworkMode"] =
        document["NetworkSettings"]["Networks"]["net1"]["NetworkID"].clone();
    let request = request(document.clone());
    assert_eq!(request.spec.network_mode, "net1");
    assert_eq!(body(&request)["HostConfig"]["NetworkMode"], "net1");
    assert!(differences(&document, &running()).is_empty());
}

#[test]
fn a_container_taken_off_its_primary_network_is_noticed() {
    let mut document = running();
    document["NetworkSettings"]["Networks"]
        .as_object_mut()
        .unwrap()
        .remove("net1");
    assert_eq!(leaves_primary(&request(document).spec), Some("net1"));
    assert_eq!(leaves_primary(&request(running()).spec), None);
    assert_eq!(leaves_primary(&request(plain()).spec), None);
    let mut host = plain();
    host["HostConfig"]["NetworkMode"] = "host".into();
    host["Config"]["Hostname"] = "node-a".into();
    host["NetworkSettings"]["Networks"] = json!({ "host": {} });
    let request = request(host);
    assert_eq!(leaves_primary(&request.spec), None);
    assert_eq!(request.spec.host_name, None);
    assert_eq!(body(&request)["NetworkingConfig"]["EndpointsConfig"], json!({}));
}

#[test]
fn what_depends_on_others_or_holds_data_is_refused() {
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut document = plain();
        change(&mut document);
        create_body(&request(document), &json!({}), "svc:1", Joins::All)
    };
    for change in [
        &|d: &mut Value| d["HostConfig"]["NetworkMode"] = "container:abc".into(),
        &|d: &mut Value| d["HostConfig"]["IpcMode"] = "container:abc".into(),
        &|d: &mut Value| d["HostConfig"]["Links"] = json!(["/db:/plain/db"]),
        &|d: &mut Value| d["Mounts"] = json!([{ "Type": "volume", "Name": "v", "Destination": "/v" }]),
        &|d: &mut Value| d["Mounts"] = json!([{ "Type": "bind", "Source": "/x", "Destination": "/v" }]),
    ] as [&dyn Fn(&mut Value); 5]
    {
        let result = refused(change);
        assert!(
            matches!(result, Err(EngineError::Unsupported { .. })),
            "{result:?}"
        );
    }
}

#[test]
fn every_field_that_is_not_ignored_counts() {
    /// Changes each leaf in turn and asks whether it was noticed.
    fn leaves(value: &Value, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
        match value {
            Value::Object(map) if !map.is_empty() => map.iter().for_each(|(key, value)| {
                path.push(key.clone());
                leaves(value, path, found);
                path.pop();
            }),
            _ => found.push(path.clone()),
        }
    }
    let source = running();
    let mut found = Vec::new();
    leaves(&source, &mut Vec::new(), &mut found);
    assert!(found.len() > 150);
    let mut silent = Vec::new();
    for path in found {
        let keys: Vec<&str> = path.iter().map(String::as_str).collect();
        let mut changed = source.clone();
        let mut place = &mut changed;
        for key in &keys {
            place = place.get_mut(*key).unwrap();
        }
        *place = match at(&source, &keys) {
            Value::Bool(flag) => json!(!flag),
            Value::Number(_) => json!(4242),
            Value::Array(list) if list.is_empty() => json!(["new"]),
            Value::Array(_) => json!([]),
            _ => json!("changed"),
        };
        if differences(&source, &changed).is_empty() {
            silent.push(path.join("."));
        }
    }
    let ignored = |path: &str| {
        IGNORED.iter().any(|(pattern, _)| {
            let (pattern, path): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), path.split('.').collect());
            path.len() >= pattern.len() && pattern.iter().zip(&path).all(|(a, b)| *a == "*" || a == b)
        })
    };
    silent.retain(|path| !ignored(path));
    assert!(silent.is_empty(), "changes that nobody notices: {silent:?}");
}

#[test]
fn the_same_in_other_words_is_the_same() {
    let source = plain();
    let mut other = source.clone();
    other["Id"] = "ab".repeat(32).into();
    other["Config"]["Hostname"] = "abababababab".into();
    other["HostConfig"]["NetworkMode"] = "bridge".into();
    other["HostConfig"]["CapAdd"] = json!(["CAP_NET_ADMIN"]);
    other["HostConfig"]["MemorySwappiness"] = Value::Null;
    other["HostConfig"]["OomKillDisable"] = false.into();
    other["HostConfig"]["RestartPolicy"]["Name"] = "no".into();
    other["HostConfig"]
        .as_object_mut()
        .unwrap()
        .remove("ContainerIDFile");
    other["NetworkSettings"]["Networks"]["bridge"]["Aliases"] = json!(["abababababab"]);
    assert_eq!(differences(&source, &other), Vec::<String>::new());
    // An empty list of masked paths is not none at all; a label without a value is a label.
    let mut unmasked = source.clone();
    unmasked["HostConfig"]["MaskedPaths"] = json!([]);
    assert_eq!(differences(&source, &unmasked).len(), 1);
    let mut labelled = source.clone();
    labelled["Config"]["Labels"] = json!({ "empty": "" });
    assert_eq!(differences(&source, &labelled).len(), 1);
    let mut alone = source.clone();
    alone["NetworkSettings"]["Networks"] = json!({});
    assert_eq!(differences(&source, &alone).len(), 1);
    // A default that only the new one names is no loss, the other way round it is.
    let mut newer = source.clone();
    newer["HostConfig"]["Newer"] = 1.into();
    assert!(losses(&source, &newer).is_empty());
    assert_eq!(losses(&newer, &source).len(), 1);
}

#[test]
fn a_network_is_made_again_without_its_state() {
    let document = json!({
        "Name": "front", "Id": "e2da", "Created": "2026", "Scope": "local", "Driver": "bridge", "EnableIPv6": true,
        "IPAM": { "Driver": "default", "Options": {}, "Config": [
            { "Subnet": "172.30.0.0/16", "Gateway": "172.30.0.1", "AuxiliaryAddresses": { "r": "172.30.5.7" } },
            { "Subnet": "fd00:30::/64" },
        ] },
        "Internal": false, "Attachable": false, "Ingress": false, "ConfigFrom": { "Network": "" }, "ConfigOnly": false,
        "Containers": { "37b2": { "Name": "full", "IPv4Address": "172.30.5.9/16", "IPv6Address": "" } },
        "Options": { "com.docker.network.driver.mtu": "1400" }, "Labels": { "n": "1" }, "FutureField": 1,
    });
    let spec = describe::network(document);
    assert_eq!(
        spec.used["full"],
        ["172.30.5.9".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(spec.pools.len(), 2);
    let body = network_body(&spec, false, false);
    for gone in ["Id", "Created", "Containers", "ConfigFrom", "Ingress"] {
        assert!(body.get(gone).is_none(), "{gone}");
    }
    assert_eq!(body["IPAM"]["Config"].as_array().unwrap().len(), 2);
    assert_eq!(
        (&body["FutureField"], &body["Labels"]["n"]),
        (&json!(1), &json!("1"))
    );
    assert!(network_body(&spec, true, false)["IPAM"].get("Config").is_none());
    assert_eq!(
        network_body(&spec, true, true)["IPAM"]["Config"],
        json!([{ "Subnet": "fd00:30::/64" }])
    );
}
