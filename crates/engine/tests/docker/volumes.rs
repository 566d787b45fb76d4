//! Volumes with everything that makes them that volume, and mounts that come along with their container.

use std::collections::BTreeMap;

use serde_json::Value;
use tranship_core::storage::VolumeSpec;
use tranship_core::{ContainerSpec, Engine as _, EngineError};
use tranship_engine::recreate::differences;

use crate::hosts::{BUSYBOX, Host, hosts, make, same};

/// Nothing of this may get lost in a shell, a list or a file of options.
const ODD: &str = "rw,bind,x=\"a b\",y='c'\\ z\nnext = \u{fc} $HOME `id`;,=";

async fn volume(host: &Host, name: &str) -> VolumeSpec {
    let all = host.engine.volume_specs().await.unwrap();
    let found = all.into_iter().find(|volume| volume.name == name);
    found.unwrap_or_else(|| panic!("no volume {name}"))
}

#[tokio::test]
async fn attributes_go_round() {
    let Some(hosts) = hosts() else { return };
    let [a, b] = hosts.connect().await;
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    };
    let wanted = VolumeSpec {
        name: "odd_volume.1".into(),
        driver: "local".into(),
        options: map(&[
            ("type", "none"),
            ("device", "/srv/odd dir, with=\"all\""),
            ("o", ODD),
        ]),
        labels: map(&[(ODD, ODD), ("empty", ""), ("com.example/x", "1")]),
        ..VolumeSpec::default()
    };
    a.engine.create_volume(&wanted).await.unwrap();
    let here = volume(&a, "odd_volume.1").await;
    assert_eq!((&here.options, &here.labels), (&wanted.options, &wanted.labels));
    assert_eq!(
        (here.driver.as_str(), here.scope.as_str(), here.anonymous),
        ("local", "local", false)
    );
    assert!(!here.created_at.is_empty() && here.guid.is_empty() && here.users.is_empty());
    assert!(here.mountpoint.as_ref().unwrap().ends_with("odd_volume.1/_data"));
    // The engine itself sees them so.
    let shown: Value = serde_json::from_str(&a.docker("volume inspect odd_volume.1")).unwrap();
    assert_eq!(shown[0]["Options"]["o"], ODD);
    assert_eq!(shown[0]["Labels"][ODD], ODD);

    b.engine.create_volume(&here).await.unwrap();
    let there = volume(&b, "odd_volume.1").await;
    assert_eq!(
        (&there.driver, &there.options, &there.labels),
        (&here.driver, &here.options, &here.labels)
    );
    // Docker would say yes, and give the one that is there.
    for spec in [
        &here,
        &VolumeSpec {
            name: here.name.clone(),
            ..VolumeSpec::default()
        },
    ] {
        let twice = b.engine.create_volume(spec).await;
        assert!(matches!(twice, Err(EngineError::Conflict { .. })), "{twice:?}");
    }
    for bad in ["", "../x", "a/b", "a:b"] {
        let spec = VolumeSpec {
            name: bad.into(),
            ..VolumeSpec::default()
        };
        let refused = b.engine.create_volume(&spec).await;
        assert!(
            matches!(refused, Err(EngineError::Unsupported { .. })),
            "{bad}: {refused:?}"
        );
    }
    let elsewhere = VolumeSpec {
        name: "elsewhere".into(),
        driver: "no-such-driver".into(),
        ..VolumeSpec::default()
    };
    let refused = b.engine.create_volume(&elsewhere).await;
    assert!(
        matches!(refused, Err(EngineError::Unsupported { .. })),
        "{refused:?}"
    );
    for host in [&a, &b] {
        host.engine.remove_volume("odd_volume.1").await.unwrap();
    }
}

#[tokio::test]
async fn who_uses_a_volume() {
    let Some(hosts) = hosts() else { return };
    let [a, _] = hosts.connect().await;
    for (name, how) in [
        ("use-stopped", "create -v use-shared:/v:ro"),
        (
            "use-running",
            "run -d -v use-shared:/v -v use-shared:/w:ro -v /anonymous",
        ),
        (
            "use-paused",
            "run -d --mount type=volume,src=use-shared,dst=/v,readonly",
        ),
        ("use-borrowed", "create --volumes-from use-running:ro"),
    ] {
        let mut words = how.splitn(2, ' ');
        let (verb, options) = (words.next().unwrap(), words.next().unwrap());
        a.docker(&format!("{verb} --name {name} {options} {BUSYBOX} sleep 1000"));
    }
    a.docker("pause use-paused");
    let shared = volume(&a, "use-shared").await;
    let users: Vec<_> = shared
        .users
        .iter()
        .map(|user| (user.name.as_str(), user.running, user.writable))
        .collect();
    assert_eq!(
        users,
        [
            ("use-borrowed", false, false),
            ("use-paused", true, false),
            ("use-running", true, true),
            ("use-stopped", false, false),
        ]
    );
    let spec = a.inspect("use-running").await;
    assert_eq!(shared.users[2].container, spec.id);
    let anonymous = spec.mounts.iter().find(|mount| mount.anonymous).unwrap();
    let anonymous = volume(&a, &anonymous.name).await;
    assert!(anonymous.anonymous && anonymous.users.len() == 2);
    a.docker("rm -fv use-stopped use-borrowed use-running use-paused");
    a.docker("volume rm use-shared");
}

/// What a mount is, whatever its source is called.
fn shape(document: &Value) -> BTreeMap<String, Value> {
    let mounts = document["Mounts"].as_array().unwrap().iter();
    mounts
        .map(|mount| {
            let mut fields = mount.clone();
            let known = fields.as_object_mut().unwrap();
            for key in ["Name", "Source", "Destination", "Mode"] {
                known.remove(key);
            }
            (mount["Destination"].as_str().unwrap().to_owned(), fields)
        })
        .collect()
}

fn carry(spec: &ContainerSpec, to: &[(&str, &str)]) -> tranship_core::engine::CreateRequest {
    let mut request = same(spec);
    for (path, name) in to {
        request.carried.insert((*path).to_owned(), (*name).to_owned());
    }
    request
}

#[tokio::test]
async fn mounts_come_along_with_every_option() {
    let Some(hosts) = hosts() else { return };
    let [a, b] = hosts.connect().await;
    a.node.sh("mkdir -p /srv/carry/in /srv/carry/b /srv/carry/shared; mount -t tmpfs none /srv/carry/shared; mount --make-rshared /srv/carry/shared").unwrap();
    a.docker(&format!(
        "create --name carry -v carry-ro:/ro:ro,nocopy -v carry-z:/z:z -v carry-plain:/plain -v /unnamed \
         -v /srv/carry/in:/in/:ro,Z -v /srv/carry/shared:/shared:rslave \
         --mount type=volume,src=carry-mount,dst=/mount,volume-nocopy,readonly,volume-label=l=1 \
         --mount type=volume,src=carry-mount,dst=/again,volume-subpath=sub \
         --mount type=volume,dst=/unnamed-2,volume-nocopy,volume-label=k=v \
         --mount type=bind,src=/srv/carry/b,dst=/b,readonly,bind-propagation=private,bind-recursive=disabled \
         --tmpfs /t:size=1m --mount type=tmpfs,dst=/t2,tmpfs-size=1m {BUSYBOX} sleep 1000"
    ));
    let spec = a.inspect("carry").await;
    let request = carry(
        &spec,
        &[
            ("/ro", "there-ro"),
            ("/z", "there-z"),
            ("/plain", "carry-plain"),
            ("/unnamed", ""),
            ("/in", "/srv/there/in"),
            ("/shared", "/srv/there/shared"),
            ("/mount", "there-mount"),
            ("/again", "there-mount"),
            ("/unnamed-2", ""),
            ("/b", "/srv/there/b"),
        ],
    );
    // Nothing is made in place of what has to be there.
    let missing = make(&b, &request).await;
    assert!(
        matches!(missing, Err(EngineError::NotFound { what: "volume", .. })),
        "{missing:?}"
    );
    let names = ["there-ro", "there-z", "carry-plain", "there-mount"];
    for name in names {
        let spec = VolumeSpec {
            name: name.into(),
            ..VolumeSpec::default()
        };
        b.engine.create_volume(&spec).await.unwrap();
    }
    b.node
        .sh(
            "mkdir -p /srv/there/in /srv/there/b /srv/there/shared /var/lib/docker/volumes/there-mount/_data/sub;
             mount -t tmpfs none /srv/there/shared; mount --make-rshared /srv/there/shared;
             echo ro > /var/lib/docker/volumes/there-ro/_data/f; echo in > /srv/there/in/f
             echo sub > /var/lib/docker/volumes/there-mount/_data/sub/f",
        )
        .unwrap();
    let before = b.engine.volumes().await.unwrap();
    let id = make(&b, &request).await.unwrap();
    let (here, there) = (a.document("carry"), b.document(id.as_str()));
    assert_eq!(shape(&here), shape(&there));
    // Sources apart, the whole document is the same.
    let text = there.to_string();
    let renamed = [
        ("there-ro:", "carry-ro:"),
        ("there-z:", "carry-z:"),
        ("\"there-ro\"", "\"carry-ro\""),
        ("\"there-z\"", "\"carry-z\""),
        ("\"there-mount\"", "\"carry-mount\""),
        ("/srv/there/", "/srv/carry/"),
    ]
    .iter()
    .fold(text, |text, (new, old)| text.replace(new, old));
    let found = differences(&here, &serde_json::from_str(&renamed).unwrap());
    assert_eq!(found, Vec::<String>::new());
    let made = b.inspect("carry").await;
    let new: Vec<_> = made
        .mounts
        .iter()
        .filter(|mount| mount.anonymous)
        .map(|m| m.name.clone())
        .collect();
    assert!(
        new.len() == 2
            && new
                .iter()
                .all(|name| spec.mounts.iter().all(|old| old.name != *name))
    );
    b.engine.start(&id).await.unwrap();
    let seen = b.docker("exec carry sh -c 'cat /ro/f /in/f /again/f; touch /ro/x /in/x /b/x /mount/x 2>/dev/null; touch /plain/x && echo ok'");
    assert_eq!(seen, "ro\nin\nsub\nok");
    b.engine.remove_container(&id).await.unwrap();
    assert_eq!(
        b.engine
            .volumes()
            .await
            .unwrap()
            .iter()
            .filter(|name| new.contains(name))
            .count(),
        0
    );
    for name in names {
        assert!(before.contains(&name.to_owned()));
        b.engine.remove_volume(name).await.unwrap();
    }
    a.docker("rm -fv carry");
    a.docker("volume rm carry-ro carry-z carry-plain carry-mount");
}

#[tokio::test]
async fn borrowed_shared_and_read_only_volumes_come_along() {
    let Some(hosts) = hosts() else { return };
    let [a, b] = hosts.connect().await;
    a.node.sh("mkdir -p /srv/lend").unwrap();
    b.node.sh("mkdir -p /srv/borrow").unwrap();
    a.docker(&format!(
        "create --name lender -v /lent -v lent-named:/named:ro -v /srv/lend:/bound:rslave {BUSYBOX} sleep 9"
    ));
    let lent = a.inspect("lender").await;
    let lent = lent
        .mounts
        .iter()
        .find(|mount| mount.anonymous)
        .unwrap()
        .name
        .clone();
    a.docker(&format!(
        "create --name borrower --volumes-from lender:ro -v {lent}:/twice -v {lent}:/etc/shown:ro {BUSYBOX} sleep 1000"
    ));
    let spec = a.inspect("borrower").await;
    let named = VolumeSpec {
        name: "lent-named".into(),
        ..VolumeSpec::default()
    };
    b.engine.create_volume(&named).await.unwrap();
    let mut request = carry(
        &spec,
        &[
            ("/lent", ""),
            ("/twice", ""),
            ("/etc/shown", ""),
            ("/named", "lent-named"),
            ("/bound", "/srv/borrow"),
        ],
    );
    let id = make(&b, &request).await.unwrap();
    assert_eq!(shape(&a.document("borrower")), shape(&b.document("borrower")));
    let made = b.inspect("borrower").await;
    let anonymous: std::collections::BTreeSet<_> = made
        .mounts
        .iter()
        .filter(|mount| mount.anonymous)
        .map(|mount| &mount.name)
        .collect();
    assert_eq!(anonymous.len(), 1);
    b.engine.start(&id).await.unwrap();
    assert_eq!(
        b.docker(
            "exec borrower sh -c 'echo 1 > /twice/f; cat /lent/f /etc/shown/f; touch /lent/x 2>&1 | wc -l'"
        ),
        "1\n1\n1"
    );
    let left = |volumes: Vec<String>| volumes.into_iter().filter(|v| anonymous.contains(v)).count();
    assert_eq!(left(b.engine.volumes().await.unwrap()), 1);
    b.engine.remove_container(&id).await.unwrap();
    assert_eq!(left(b.engine.volumes().await.unwrap()), 0);

    // A container that cannot be made leaves no volume.
    let before = b.engine.volumes().await.unwrap();
    request.spec.document["HostConfig"]["Runtime"] = "no-such-runtime".into();
    request.spec.ties.runtime = "no-such-runtime".into();
    assert!(make(&b, &request).await.is_err());
    let after = b.engine.volumes().await.unwrap();
    let new: Vec<_> = after.iter().filter(|name| !before.contains(name)).collect();
    for name in new {
        let spec = volume(&b, name).await;
        assert!(!spec.labels.contains_key("tranship.anonymous"), "{spec:?}");
    }
    b.engine.remove_volume("lent-named").await.unwrap();
    a.docker("rm -fv borrower lender");
    a.docker("volume rm lent-named");
}
