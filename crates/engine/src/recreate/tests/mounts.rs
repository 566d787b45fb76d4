//! Volumes, bind mounts and tmpfs in the create body.

use super::*;
use crate::recreate::beforehand;

const GENERATED: &str = "58480d97331b4ce3a2bca5b65c925c2e1ffa7006b65408e6401d66ebe91d4382";

#[test]
fn volumes_lose_the_names_that_the_engine_made_up() {
    let generated = GENERATED;
    let mut document = plain();
    document["Config"]["Volumes"] = json!({ "/image": {} });
    document["HostConfig"]["Binds"] =
        json!([format!("{generated}:/old:ro,z"), "named:/named:rw", "/host:/bind"]);
    document["HostConfig"]["Mounts"] = json!([{ "Type": "volume", "Source": generated, "Target": "/m" }]);
    document["HostConfig"]["VolumesFrom"] = json!(["other"]);
    let mount =
        |name: &str, at: &str| json!({ "Type": "volume", "Name": name, "Destination": at, "RW": false });
    document["Mounts"] = json!([
        mount(generated, "/image"), mount(generated, "/old"), mount("named", "/named"), mount(generated, "/m"),
        mount("theirs", "/from-other"), mount(generated, "/from-other-anonymous"),
        { "Type": "bind", "Source": "/host", "Destination": "/bind", "RW": true },
    ]);
    let mut request = request(document);
    request.empty_volumes = true;
    let body = body(&request);
    let host = &body["HostConfig"];
    assert_eq!(
        host["Binds"],
        json!(["named:/named:rw", "/host:/bind", "theirs:/from-other:ro,nocopy"])
    );
    assert_eq!(
        host["Mounts"],
        json!([
            { "Type": "volume", "Target": "/old", "ReadOnly": true },
            { "Type": "volume", "Target": "/m" },
            { "Type": "volume", "Target": "/image", "ReadOnly": true, "VolumeOptions": { "NoCopy": true } },
            {
                "Type": "volume", "Target": "/from-other-anonymous", "ReadOnly": true,
                "VolumeOptions": { "NoCopy": true },
            },
        ])
    );
    assert!(host.get("VolumesFrom").is_none() && !body.to_string().contains(generated));
}

/// A container with mounts of every kind, each written in every way.
fn mixed() -> Value {
    let mut document = plain();
    document["Config"]["Volumes"] = json!({ "/image": {}, "/own/": {} });
    document["HostConfig"]["Binds"] = json!([
        "data:/data/:ro,z,nocopy",
        "plain:/plain",
        "/srv/in:/in:ro,rslave,Z",
        "/srv/keep/:/keep",
        format!("{GENERATED}:/kept"),
    ]);
    document["HostConfig"]["Mounts"] = json!([
        {
            "Type": "volume", "Source": "named", "Target": "/m/", "ReadOnly": true,
            "VolumeOptions": {
                "NoCopy": true, "Subpath": "a/b", "Labels": { "l": "1" },
                "DriverConfig": { "Name": "local", "Options": { "o": "x" } },
            },
        },
        { "Type": "volume", "Target": "/unnamed", "VolumeOptions": { "NoCopy": true } },
        {
            "Type": "bind", "Source": "/srv/b", "Target": "/b", "ReadOnly": true,
            "BindOptions": { "Propagation": "rshared", "NonRecursive": true, "Future": 1 },
        },
        { "Type": "tmpfs", "Target": "/t", "TmpfsOptions": { "SizeBytes": 5 } },
    ]);
    let mount = |kind: &str, name: &str, source: &str, at: &str, rw: bool| json!({ "Type": kind, "Name": name, "Source": source, "Destination": at, "RW": rw, "Mode": "" });
    let hash = |n: u32| format!("{n:064x}");
    document["Mounts"] = json!([
        mount("volume", &hash(1), "/v/1", "/image", true),
        mount("volume", &hash(2), "/v/2", "/own", true),
        mount("volume", "data", "/v/data", "/data", false),
        mount("volume", "plain", "/v/plain", "/plain", true),
        mount("bind", "", "/srv/in", "/in", false),
        mount("bind", "", "/srv/keep", "/keep", true),
        mount("volume", GENERATED, "/v/3", "/kept", true),
        mount("volume", "named", "/v/named", "/m", false),
        mount("volume", &hash(4), "/v/4", "/unnamed", true),
        mount("bind", "", "/srv/b", "/b", false),
        mount("tmpfs", "", "", "/t", true),
    ]);
    document
}

/// The request that carries everything in [`mixed`].
fn everything() -> CreateRequest {
    let mut request = request(mixed());
    request.carried = [
        ("/image", ""),
        ("/own", "now-named"),
        ("/data", "data-2"),
        ("/plain", "plain"),
        ("/in", "/new/in"),
        ("/keep", "/new/keep"),
        ("/kept", ""),
        ("/m", "named-2"),
        ("/unnamed", ""),
        ("/b", "/new/b"),
    ]
    .map(|(path, to)| (path.to_owned(), to.to_owned()))
    .into();
    request
}

#[test]
fn what_is_carried_keeps_every_option() {
    let request = everything();
    let host = &body(&request)["HostConfig"];
    assert_eq!(
        host["Binds"],
        json!([
            "data-2:/data/:ro,z,nocopy",
            "plain:/plain",
            "/new/in:/in:ro,rslave,Z",
            "/new/keep:/keep",
            "now-named:/own:rw",
        ])
    );
    let source = mixed();
    let mut mounts = source["HostConfig"]["Mounts"].as_array().unwrap().clone();
    mounts[0]["Source"] = "named-2".into();
    mounts[2]["Source"] = "/new/b".into();
    mounts.insert(
        0,
        json!({ "Type": "volume", "Target": "/kept", "ReadOnly": false }),
    );
    assert_eq!(host["Mounts"], Value::Array(mounts));
    assert!(beforehand(&request).is_empty());

    let wanted = expected(&request, &json!({}), "svc:1").unwrap();
    let mut made = wanted.clone();
    assert!(losses(&wanted, &made).is_empty());
    let names = wanted["Mounts"].as_array().unwrap();
    assert_eq!(names[2]["Name"], "data-2");
    assert_eq!(names[4]["Source"], "/new/in");
    assert!(names[6].get("Name").is_none() && names[6].get("Source").is_none());
    // What the engine made otherwise is a loss, whatever it is.
    for (index, key, value) in [
        (2, "Name", json!("data")),
        (2, "Name", json!(GENERATED)),
        (3, "RW", json!(false)),
        (4, "Source", json!("/srv/in")),
        (4, "Type", json!("volume")),
    ] {
        made["Mounts"][index][key] = value;
        assert!(!losses(&wanted, &made).is_empty(), "{index} {key}");
        made = wanted.clone();
    }
    made["HostConfig"]["Binds"][0] = "data-2:/data/:ro,z".into();
    assert_eq!(losses(&wanted, &made).len(), 1);
}

#[test]
fn what_is_not_carried_follows_the_old_rule() {
    let mut request = everything();
    for path in ["/plain", "/keep", "/kept"] {
        let to = request.carried.remove(path).unwrap();
        let refused = create_body(&request, &json!({}), "svc:1", Joins::All);
        assert!(
            matches!(&refused, Err(EngineError::Unsupported { message }) if message.contains(path)),
            "{refused:?}"
        );
        request.carried.insert(path.to_owned(), to);
    }
    request.carried.clear();
    request.empty_volumes = true;
    let host = &body(&request)["HostConfig"];
    // Word for word, also what the engine shows otherwise.
    assert_eq!(
        host["Binds"],
        json!([
            "data:/data/:ro,z,nocopy",
            "plain:/plain",
            "/srv/in:/in:ro,rslave,Z",
            "/srv/keep/:/keep"
        ])
    );
}

#[test]
fn places_that_would_be_something_else_are_refused() {
    for (path, to) in [
        ("/data", "/etc"),
        ("/data", "a:/b"),
        ("/data", ".."),
        ("/own", "../x"),
        ("/in", ""),
        ("/in", "relative"),
        ("/in", "/a:/b"),
        ("/nowhere", "x"),
    ] {
        let mut request = everything();
        request.carried.insert(path.to_owned(), to.to_owned());
        let refused = create_body(&request, &json!({}), "svc:1", Joins::All);
        assert!(
            matches!(refused, Err(EngineError::Unsupported { .. })),
            "{path} {to}"
        );
    }
}

#[test]
fn a_borrowed_mount_keeps_its_propagation_and_is_not_filled() {
    let mut document = plain();
    document["HostConfig"]["VolumesFrom"] = json!(["other:ro"]);
    document["Config"]["Volumes"] = json!({ "/data": {} });
    document["Mounts"] = json!([
        { "Type": "bind", "Source": "/srv", "Destination": "/b", "RW": false, "Mode": "", "Propagation": "rslave" },
        { "Type": "volume", "Name": "theirs", "Destination": "/data", "RW": true, "Mode": "" },
    ]);
    let mut request = request(document);
    request.carried = BTreeMap::from([
        ("/b".to_owned(), "/srv/2".to_owned()),
        ("/data".to_owned(), "theirs".to_owned()),
    ]);
    let host = &body(&request)["HostConfig"];
    assert_eq!(
        host["Binds"],
        json!(["/srv/2:/b:ro,rslave", "theirs:/data:rw,nocopy"])
    );
}

#[test]
fn volumes_that_no_body_can_ask_for_are_made_before() {
    let mut document = mixed();
    let hash = |n: u32| format!("{n:064x}");
    let binds = document["HostConfig"]["Binds"].as_array_mut().unwrap();
    binds.push(format!("{GENERATED}:/again").into());
    binds.push(format!("{}:/only:ro", hash(8)).into());
    binds.push(format!("{}:/relabelled:Z", hash(9)).into());
    let mounts = document["Mounts"].as_array_mut().unwrap();
    for (name, at, rw) in [
        (GENERATED, "/again", true),
        (&hash(8), "/only", false),
        (&hash(9), "/relabelled", true),
    ] {
        mounts.push(json!({
            "Type": "volume", "Name": name, "Destination": at, "RW": rw, "Mode": "", "Driver": "local",
        }));
    }
    let mut request = request(document);
    request.empty_volumes = true;
    let before = beforehand(&request);
    let paths: Vec<Vec<String>> = before.iter().map(|volume| volume.paths.clone()).collect();
    assert_eq!(
        paths,
        [vec!["/only"], vec!["/relabelled"], vec!["/kept", "/again"]]
    );
    for path in paths.concat() {
        request.carried.insert(path, "f".repeat(64));
    }
    assert!(beforehand(&request).is_empty());
    let binds = body(&request)["HostConfig"]["Binds"].clone();
    let new = "f".repeat(64);
    for wanted in [
        format!("{new}:/kept"),
        format!("{new}:/again"),
        format!("{new}:/only:ro"),
        format!("{new}:/relabelled:Z"),
    ] {
        assert!(
            binds.as_array().unwrap().contains(&json!(wanted)),
            "{wanted}: {binds}"
        );
    }
}

#[test]
fn modes_are_compared_by_what_they_mean() {
    let with = |kind: &str, mode: &str| {
        let mut document = plain();
        document["Mounts"] = json!([{ "Type": kind, "Name": "v", "Source": "/s", "Destination": "/d", "RW": true, "Mode": mode }]);
        document
    };
    let same = |kind: &str, a: &str, b: &str| differences(&with(kind, a), &with(kind, b)).is_empty();
    assert!(same("volume", "", "z") && same("volume", "rw,nocopy", "z") && same("bind", "rslave,rw", ""));
    assert!(!same("bind", "", "z") && !same("volume", "z", "Z") && !same("bind", "Z", "z"));
}
