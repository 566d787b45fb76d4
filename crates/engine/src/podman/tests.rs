//! Documents of a container of Podman 5.4.2, the body that is made of them, and what counts as a difference.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tranship_core::container::{MountKind, MountSpec, RestartPolicy};
use tranship_core::engine::CreateRequest;
use tranship_core::{ContainerSpec, ImageSpec};

use super::body::{Defaults, create_body};
use super::compare::differences;
use super::{KEY, check_mounts, obstacles};
use crate::fault::Ask;

const ID: &str = "d271e1184eb8df261f0531f3e223d6422a6b9be340c4c067fd52c02c86ed286a";
const ANONYMOUS: &str = "defe167a82379949db542b73a2bb07218e0493969a967fcd845be848f02fb9ac";

fn documents() -> Value {
    serde_json::from_str(include_str!("fixtures/podman-5.4-running.json")).unwrap()
}

fn request() -> CreateRequest {
    let compatible = json!({ "Id": ID, "Name": "/web", "Config": { "StopSignal": "15", "Hostname": "hh" } });
    let image: ImageSpec = crate::describe::image(
        &json!({ "Id": format!("sha256:{}", "5d".repeat(32)) }),
        &Ask::new("inspect", "image", ""),
    )
    .unwrap();
    let around = crate::describe::Surroundings::default();
    let ask = Ask::new("inspect", "container", "web");
    let mut spec: ContainerSpec =
        crate::describe::container(compatible, image, Vec::new(), &around, &ask).unwrap();
    let mount = |name: &str, at: &str, anonymous| MountSpec {
        kind: MountKind::Volume,
        name: name.into(),
        source: String::new(),
        destination: at.into(),
        driver: "local".into(),
        writable: true,
        anonymous,
    };
    spec.mounts = vec![mount("data", "/data", false), mount(ANONYMOUS, "/anon", true)];
    spec.document[KEY] = documents();
    spec.attachments = super::describe::attachments(&documents(), ID);
    CreateRequest {
        spec,
        name: "web".into(),
        publish: BTreeMap::new(),
        restart_policy: RestartPolicy::never(),
        empty_volumes: false,
        carried: BTreeMap::from([("/data".into(), "other".into()), ("/anon".into(), String::new())]),
        drop_fixed_addresses: false,
    }
}

fn body(request: &CreateRequest) -> Value {
    let capabilities = ["CAP_CHOWN", "CAP_MKNOD"].map(str::to_owned).to_vec();
    let defaults = Defaults {
        capabilities,
        image_is_checked: false,
    };
    create_body(request, "image:1", &defaults).unwrap()
}

#[test]
fn the_body_says_everything_again() {
    let mut request = request();
    request.publish.insert(8080, 9090);
    let body = body(&request);
    assert_eq!(body["image"], "image:1");
    assert_eq!(body["restart_policy"], "no", "parked");
    assert_eq!(
        body["volumes"][0],
        json!({ "Name": "other", "Dest": "/data", "Options": ["rw", "rprivate", "nosuid", "nodev", "rbind"], "IsAnonymous": false, "SubPath": "" })
    );
    assert_eq!(
        (&body["volumes"][1]["Name"], &body["volumes"][1]["IsAnonymous"]),
        (&json!(""), &json!(true))
    );
    assert_eq!(body["Networks"]["net1"]["static_ips"], json!(["10.66.0.9"]));
    assert_eq!(body["Networks"]["net1"]["aliases"], json!(["foo"]));
    assert_eq!(body["Networks"]["net2"]["interface_name"], "eth0");
    assert_eq!(body["portmappings"][0]["host_port"], 9090);
    assert_eq!(body["sysctl"]["net.core.somaxconn"], "100");
    assert_eq!(
        body["env"],
        json!({ "A": "b", "HOSTNAME": "hh", "PATH": "/bin", "container": "podman" })
    );
    assert_eq!(
        body["r_limits"][0],
        json!({ "type": "nofile", "hard": 2000, "soft": 1000 })
    );
    assert_eq!(body["resource_limits"]["memory"]["limit"], 67_108_864);
    assert!(body["resource_limits"]["devices"].is_null());
    assert!(
        body["cap_add"]
            .as_array()
            .unwrap()
            .contains(&json!("CAP_SYS_TIME"))
    );
    assert_eq!(body["cap_drop"], json!(["CAP_MKNOD"]));
    assert_eq!(body["entrypoint"], json!([]), "the image's would come back");
    assert_eq!(
        (&body["stop_signal"], &body["stop_timeout"]),
        (&json!(15), &json!(3))
    );
    assert_eq!(body["netns"], json!({ "nsmode": "bridge" }));
    assert_eq!(
        (&body["read_only_filesystem"], &body["read_write_tmpfs"]),
        (&json!(true), &json!(true))
    );
    assert!(body["selinux_opts"].is_null() && body["userns"].is_null());

    request.drop_fixed_addresses = true;
    assert!(self::body(&request)["Networks"]["net1"]["static_ips"].is_null());
    request.spec.document[KEY]["Runtime"] = Value::Null;
    let defaults = Defaults {
        capabilities: Vec::new(),
        image_is_checked: false,
    };
    assert!(create_body(&request, "image:1", &defaults).is_err());
}

#[test]
fn only_what_the_plan_saw_is_mounted() {
    assert!(check_mounts(&request()).is_ok());
    let refused = |change: &dyn Fn(&mut CreateRequest)| {
        let mut request = request();
        change(&mut request);
        check_mounts(&request).is_err()
    };
    let wish = |kind: &'static str, list: &'static str, entry: Value| {
        assert!(
            refused(&|r| {
                let wishes = &mut r.spec.document[KEY]["Wishes"][list];
                wishes.as_array_mut().unwrap().push(entry.clone());
            }),
            "{kind}"
        );
    };
    let bind = json!({ "type": "bind", "source": "/", "destination": "/host", "options": ["rbind"] });
    wish("a bind mount", "mounts", bind);
    let memory = json!({ "type": "tmpfs", "source": "/", "destination": "/host", "options": ["rbind"] });
    wish("one that says it were memory", "mounts", memory);
    let over = json!({ "type": "bind", "source": "/", "destination": "/data" });
    wish("one where a volume is", "mounts", over);
    wish(
        "no type",
        "mounts",
        json!({ "source": "/", "destination": "/host" }),
    );
    wish(
        "a volume",
        "volumes",
        json!({ "Name": "other", "Dest": "/other" }),
    );
    assert!(refused(&|r| drop(
        r.carried.insert("/data".into(), "/etc".into())
    )));
    assert!(refused(&|r| drop(
        r.carried.insert("/nowhere".into(), "x".into())
    )));
    assert!(refused(&|r| drop(r.carried.remove("/data"))));
    assert!(refused(&|r| {
        r.carried.clear();
        r.empty_volumes = true;
        r.spec.mounts[0].name = "../etc".into();
    }));
}

#[test]
fn wishes_go_on_only_as_far_as_they_are_known() {
    let mut request = request();
    request.spec.mounts.push(MountSpec {
        kind: MountKind::Bind,
        name: String::new(),
        source: "/srv/seen".into(),
        destination: "/bound".into(),
        driver: String::new(),
        writable: true,
        anonymous: false,
    });
    let wishes = &mut request.spec.document[KEY]["Wishes"];
    for key in [
        "conmon_pid_file",
        "oci_runtime",
        "init_path",
        "Rootfs",
        "remove",
        "removeImage",
    ] {
        wishes[key] = "/etc/x".into();
    }
    wishes["volumes"][0]["name"] = "/etc".into();
    wishes["mounts"][0]["source"] = "/etc".into();
    wishes["mounts"].as_array_mut().unwrap().push(
        json!({ "type": "bind", "source": "/etc", "Source": "/etc", "destination": "/bound", "options": ["rbind"] }),
    );
    let body = body(&request);
    for value in body.as_object().unwrap().values() {
        assert!(!value.to_string().contains("/etc"), "{value}");
    }
    assert_eq!(body["mounts"][0]["source"], "tmpfs");
    assert_eq!(body["mounts"][1]["source"], "/srv/seen");
    assert_eq!(body["labels"], json!({ "x": "y" }));
}

#[test]
fn of_a_range_only_the_named_port_is_published_elsewhere() {
    let mut request = request();
    let wishes = &mut request.spec.document[KEY]["Wishes"];
    wishes["portmappings"][0]["range"] = 3.into();
    request.publish.insert(8081, 9090);
    let body = body(&request);
    let ports = body["portmappings"].as_array().unwrap();
    let pairs: Vec<_> = ports
        .iter()
        .map(|port| (port["host_port"].as_u64().unwrap(), &port["container_port"]))
        .collect();
    assert_eq!(
        pairs,
        [(8080, &json!(8080)), (9090, &json!(8081)), (8082, &json!(8082))]
    );
    // As Podman would join them again.
    let mut made = made();
    let port = |host: u16, inside: u16, range: u16| json!({ "host_ip": "", "container_port": inside, "host_port": host, "range": range, "protocol": "tcp" });
    made["Wishes"]["portmappings"] = json!([port(8080, 8080, 1), port(8082, 8082, 1), port(9090, 8081, 1)]);
    let wanted = &request.spec.document[KEY];
    assert_eq!(differences(&request, wanted, &made), Vec::<String>::new());
    request.publish.clear();
    let wanted = &request.spec.document[KEY];
    made["Wishes"]["portmappings"] = json!([port(8080, 8080, 2), port(8082, 8082, 1)]);
    assert_eq!(differences(&request, wanted, &made), Vec::<String>::new());
    made["Wishes"]["portmappings"] = json!([port(8080, 8080, 2)]);
    assert_eq!(differences(&request, wanted, &made).len(), 1);
}

#[test]
fn values_of_variables_stay_out_of_what_is_said() {
    let mut made = made();
    made["Runtime"]["process"]["env"] = json!(["PATH=/bin", "A=hidden", "B=hidden"]);
    made["Inspect"]["Config"]["CreateCommand"] = json!(["podman", "run", "-e", "A=hidden"]);
    let said = differences(&request(), &documents(), &made).join("; ");
    assert!(said.contains("A, B, HOME, HOSTNAME, container"), "{said}");
    assert!(said.contains("CreateCommand"), "{said}");
    assert!(!said.contains("hidden") && !said.contains("A=b"), "{said}");
}

#[test]
fn the_version_in_the_name_of_podman_s_profile_means_nothing() {
    let with = |mut documents: Value, profile: &str| {
        documents["Runtime"]["process"]["apparmorProfile"] = profile.into();
        documents["Inspect"]["HostConfig"]["SecurityOpt"] = json!([format!("apparmor={profile}")]);
        documents
    };
    let mut request = request();
    let wanted = with(documents(), "containers-default-0.62.2");
    let found = |profile: &str| differences(&request, &wanted, &with(made(), profile)).len();
    assert_eq!(found("containers-default-0.64.0"), 0);
    assert_eq!(found("unconfined"), 2);
    assert_eq!(found("mine"), 2);
    request.spec.document[KEY] = wanted;
    assert!(body(&request)["apparmor_profile"].is_null());
    request.spec.document[KEY] = with(documents(), "mine");
    assert_eq!(body(&request)["apparmor_profile"], "mine");
}

#[test]
fn nothing_is_made_that_goes_away_by_itself() {
    let mut request = request();
    for key in ["AutoRemove", "AutoRemoveImage"] {
        request.spec.document[KEY]["Inspect"]["HostConfig"][key] = true.into();
    }
    for key in ["remove", "removeImage"] {
        request.spec.document[KEY]["Wishes"][key] = true.into();
    }
    let body = body(&request);
    assert!(body["remove"].is_null() && body["removeImage"].is_null());
}

#[test]
fn an_image_s_health_check_that_the_container_does_not_have_stays_away() {
    let mut request = request();
    request.spec.document[KEY]["Inspect"]["Config"]["Healthcheck"] = Value::Null;
    let defaults = Defaults {
        capabilities: Vec::new(),
        image_is_checked: true,
    };
    let body = create_body(&request, "image:1", &defaults).unwrap();
    assert_eq!(body["healthconfig"], json!({ "Test": ["NONE"] }));
}

/// The documents of the container as it would be made: another id, its own volumes, no restart policy yet.
fn made() -> Value {
    let text = documents()
        .to_string()
        .replace(ID, &"4f".repeat(32))
        .replace(&ID[..12], &"4f".repeat(6));
    let text = text.replace(ANONYMOUS, &"5e".repeat(32));
    let mut made: Value = serde_json::from_str(&text).unwrap();
    made["Inspect"]["Mounts"][0]["Name"] = "other".into();
    made["Inspect"]["HostConfig"]["RestartPolicy"]["Name"] = "no".into();
    made["Runtime"]["process"]["env"]
        .as_array_mut()
        .unwrap()
        .reverse();
    made["Runtime"]["mounts"].as_array_mut().unwrap().reverse();
    made
}

#[test]
fn the_same_container_is_the_same() {
    let found = differences(&request(), &documents(), &made());
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn whatever_is_lost_is_seen() {
    let lost = |change: &dyn Fn(&mut Value)| {
        let mut made = made();
        change(&mut made);
        differences(&request(), &documents(), &made).len()
    };
    let changes: [&dyn Fn(&mut Value); 14] = [
        &|m| m["Runtime"]["linux"]["sysctl"]["net.core.somaxconn"] = "4096".into(),
        &|m| m["Runtime"]["process"]["args"] = json!(["sh"]),
        &|m| drop(m["Runtime"]["process"]["env"].as_array_mut().unwrap().pop()),
        &|m| m["Runtime"]["linux"]["seccomp"] = Value::Null,
        &|m| {
            drop(
                m["Runtime"]["linux"]["maskedPaths"]
                    .as_array_mut()
                    .unwrap()
                    .remove(0),
            )
        },
        &|m| m["Runtime"]["root"]["readonly"] = false.into(),
        &|m| drop(m["Runtime"]["mounts"].as_array_mut().unwrap().pop()),
        &|m| m["Wishes"]["Networks"]["net1"]["static_ips"] = Value::Null,
        &|m| m["Wishes"]["portmappings"] = Value::Null,
        &|m| m["Inspect"]["Config"]["Labels"]["x"] = "z".into(),
        &|m| m["Inspect"]["Config"]["StopTimeout"] = 10.into(),
        &|m| m["Inspect"]["Mounts"][0]["Name"] = "data".into(),
        &|m| m["Inspect"]["HostConfig"]["SomethingNew"] = "x".into(),
        &|m| m["Inspect"]["OCIRuntime"] = "runc".into(),
    ];
    for (number, change) in changes.iter().enumerate() {
        assert!(lost(change) >= 1, "change {number}");
    }
}

#[test]
fn nothing_stands_in_the_way_of_this_one() {
    assert_eq!(obstacles::of(&documents(), false), []);
}
