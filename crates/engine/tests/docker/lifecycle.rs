//! Starting, stopping, failing, and what a container says about itself.

use std::time::{Duration, Instant};

use tranship_core::container::{ContainerState, MountKind, RestartPolicy};
use tranship_core::ids::ContainerName;
use tranship_core::{Engine as _, EngineError};
use tranship_engine::DockerEngine;

use crate::hosts::{BUSYBOX, hosts, make, same};

#[tokio::test]
async fn a_life_of_a_container() {
    let Some(hosts) = hosts() else { return };
    let [a, _] = hosts.connect().await;
    let facts = a.engine.facts().await.unwrap();
    assert_eq!(
        (facts.kind.as_str(), facts.storage_driver.as_str()),
        ("docker", "overlay2")
    );
    assert!(facts.experimental && !facts.rootless && facts.runtimes.contains(&"runc".to_owned()));
    assert!(facts.log_drivers.contains(&"json-file".to_owned()) && facts.cpus > 0 && facts.memory > 0);

    a.docker(&format!(
        "run -d --name life --restart always --stop-timeout 1 -p 9191:80 {BUSYBOX} \
         sh -c 'trap \"\" TERM; echo one; echo two >&2; echo data > /etc/app.conf; mkdir -p /srv/empty; touch /srv/none; while :; do sleep 1; done'"
    ));
    let spec = a.inspect("life").await;
    assert_eq!(spec.status.state, ContainerState::Running);
    assert_eq!(spec.image_reference, BUSYBOX);
    assert_eq!(spec.host_name, None);
    assert_eq!(
        (spec.stop_timeout, spec.ports[0].host_port),
        (Some(1), Some(9191))
    );
    let listed = a.engine.containers().await.unwrap();
    let listed = listed.iter().find(|c| c.id == spec.id).unwrap();
    assert_eq!(listed.names, ["life"]);
    assert!(
        listed
            .ports
            .iter()
            .any(|p| p.host_port == Some(9191) && p.protocol == "tcp")
    );

    let deadline = Instant::now() + Duration::from_secs(20);
    while a.engine.log_tail(&spec.id, 9).await.unwrap().len() < 2 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(a.engine.log_tail(&spec.id, 1).await.unwrap().len(), 1);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let changes = a.engine.layer_changes(&spec.id).await.unwrap();
    // The file that is only there counts, the directory does not.
    assert_eq!((changes.files, changes.bytes), (2, 5), "{changes:?}");
    assert!(changes.examples.iter().any(|path| path == "/etc/app.conf"));
    assert!(changes.examples.iter().any(|path| path == "/srv/none"));

    a.engine
        .set_restart_policy(&spec.id, &RestartPolicy::never())
        .await
        .unwrap();
    assert!(a.inspect("life").await.restart_policy.is_never());
    // It ignores the stop signal: its own time passes, then it is killed.
    let begin = Instant::now();
    a.engine.stop(&spec.id, None).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(1) && begin.elapsed() < Duration::from_secs(8));
    a.engine
        .stop(&spec.id, Some(Duration::from_secs(1)))
        .await
        .unwrap();
    assert_eq!(
        a.engine.status(&spec.id).await.unwrap().state,
        ContainerState::Exited
    );
    a.engine.start(&spec.id).await.unwrap();
    a.engine.start(&spec.id).await.unwrap();
    a.engine.rename(&spec.id, "life-2").await.unwrap();
    assert_eq!(a.inspect("life-2").await.id, spec.id);
    a.engine.remove_container(&spec.id).await.unwrap();
    a.engine.remove_container(&spec.id).await.unwrap();
    let gone = a.engine.inspect(&ContainerName::new("life").unwrap()).await;
    assert!(
        matches!(
            gone,
            Err(EngineError::NotFound {
                what: "container",
                ..
            })
        ),
        "{gone:?}"
    );
}

#[tokio::test]
async fn what_ties_it_down_is_seen() {
    let Some(hosts) = hosts() else { return };
    let [a, b] = hosts.connect().await;
    a.docker(&format!("run -d --name main-one {BUSYBOX} sleep 1000"));
    a.docker(&format!(
        "create --name sidecar --network container:main-one --pid container:main-one {BUSYBOX} sleep 9"
    ));
    a.docker(&format!(
        "create --name linked --link main-one:db {BUSYBOX} sleep 9"
    ));
    a.docker(&format!(
        "create --name swarmed -l com.docker.swarm.task.id=x {BUSYBOX} sleep 9"
    ));
    let sidecar = a.inspect("sidecar").await;
    assert_eq!(
        sidecar.ties.shared_namespaces,
        ["network container:main-one", "pid container:main-one"]
    );
    assert_eq!(a.inspect("linked").await.ties.links.len(), 1);
    assert_eq!(
        a.inspect("swarmed").await.ties.orchestrator.as_deref(),
        Some("Docker Swarm")
    );
    for name in ["sidecar", "linked"] {
        let refused = make(&b, &same(&a.inspect(name).await)).await;
        assert!(
            matches!(refused, Err(EngineError::Unsupported { .. })),
            "{refused:?}"
        );
    }
    a.docker("rm -f main-one sidecar linked swarmed");
}

#[tokio::test]
async fn volumes_come_empty_or_not_at_all() {
    let Some(hosts) = hosts() else { return };
    let [a, b] = hosts.connect().await;
    a.docker(&format!(
        "create --name vol-source -v /anon -v vol-named:/named:ro -v /etc/hostname:/hn:ro \
         --mount type=volume,dst=/mounted,volume-nocopy {BUSYBOX} sleep 9"
    ));
    a.docker(&format!(
        "create --name vol-user --volumes-from vol-source -v /own {BUSYBOX} sleep 9"
    ));
    for name in ["vol-source", "vol-user"] {
        let spec = a.inspect(name).await;
        let anonymous = spec
            .mounts
            .iter()
            .filter(|m| m.kind == MountKind::Volume && m.anonymous);
        assert_eq!(anonymous.count(), if name == "vol-user" { 3 } else { 2 });
        let mut request = same(&spec);
        let refused = make(&b, &request).await;
        assert!(
            matches!(refused, Err(EngineError::Unsupported { .. })),
            "{refused:?}"
        );
        request.empty_volumes = true;
        let id = make(&b, &request).await.unwrap();
        let there = b.inspect(name).await;
        let shape = |spec: &tranship_core::ContainerSpec| {
            let mut shape: Vec<_> = (spec.mounts.iter())
                .map(|m| (m.destination.clone(), m.kind, m.writable, m.anonymous))
                .collect();
            shape.sort_by(|a, b| a.0.cmp(&b.0));
            shape
        };
        assert_eq!(shape(&there), shape(&spec));
        for mount in there.mounts.iter().filter(|m| m.anonymous) {
            assert!(spec.mounts.iter().all(|m| m.name != mount.name));
        }
        let taken = {
            b.engine.remove_container(&id).await.unwrap();
            make(&b, &request).await
        };
        assert!(matches!(taken, Err(EngineError::Conflict { .. })), "{taken:?}");
        b.engine.remove_volume("vol-named").await.unwrap();
        b.engine.remove_volume("vol-named").await.unwrap();
        // The anonymous ones went with the container.
        let left = b.engine.volumes().await.unwrap();
        let ours = |name: &String| there.mounts.iter().any(|mount| mount.name == *name);
        assert!(!left.iter().any(ours), "{left:?}");
    }
    a.docker("rm -f -v vol-user vol-source");
}

#[tokio::test]
async fn a_failure_leaves_nothing() {
    let Some(hosts) = hosts() else { return };
    let [a, b] = hosts.connect().await;
    a.node
        .sh("docker network create --subnet 172.29.0.0/24 fail-a; docker network create fail-b")
        .unwrap();
    a.docker(&format!(
        "create --name fail -p 7777:80 --network name=fail-a,ip=172.29.0.9 --network fail-b {BUSYBOX} sleep 1000"
    ));
    let request = same(&a.inspect("fail").await);
    let names = async || {
        let mut all: Vec<String> = b
            .engine
            .containers()
            .await
            .unwrap()
            .into_iter()
            .flat_map(|c| c.names)
            .collect();
        all.retain(|name| name.starts_with("fail"));
        all
    };
    // The networks are missing: the container is made, and cannot join.
    let missing = b.engine.create_container(&request).await;
    match missing {
        // Docker 26 takes networks that do not exist, and fails at the start.
        Ok(id) => {
            let error = b.engine.start(&id).await.unwrap_err();
            assert!(
                matches!(error, EngineError::NotFound { what: "network", .. }),
                "{error:?}"
            );
            b.engine.remove_container(&id).await.unwrap();
        }
        Err(error) => assert!(
            matches!(error, EngineError::NotFound { what: "network", .. }),
            "{error:?}"
        ),
    }
    assert!(names().await.is_empty());
    // The image is another one.
    let mut other = request.clone();
    other.spec.image.id = tranship_core::ids::Digest::of(b"another");
    let error = make(&b, &other).await.unwrap_err();
    assert!(
        matches!(error, EngineError::NotFound { what: "image", .. }),
        "{error:?}"
    );
    assert!(names().await.is_empty());
    // The name is taken.
    let id = make(&b, &request).await.unwrap();
    let error = make(&b, &request).await.unwrap_err();
    assert!(matches!(error, EngineError::Conflict { .. }), "{error:?}");
    assert_eq!(names().await, ["fail"]);
    // The port is taken: elsewhere it goes, under another name and address.
    b.engine.start(&id).await.unwrap();
    let mut moved = request.clone();
    moved.name = "fail-2".into();
    moved.drop_fixed_addresses = true;
    let second = make(&b, &moved).await.unwrap();
    let error = b.engine.start(&second).await.unwrap_err();
    assert!(matches!(error, EngineError::Conflict { .. }), "{error:?}");
    b.engine.remove_container(&second).await.unwrap();
    moved.publish.insert(7777, 7778);
    let third = make(&b, &moved).await.unwrap();
    b.engine.start(&third).await.unwrap();
    let spec = b.inspect("fail-2").await;
    assert_eq!(spec.ports[0].host_port, Some(7778));
    assert!(spec.attachments.iter().all(|a| a.fixed_addresses.is_empty()));
    for id in [id, third] {
        b.engine.remove_container(&id).await.unwrap();
    }
    for network in &request.spec.networks {
        b.engine.remove_network(&network.name).await.unwrap();
        b.engine.remove_network(&network.name).await.unwrap();
    }
    // A network whose subnet is taken goes elsewhere when asked to.
    let fail_a = request.spec.networks.iter().find(|n| n.name == "fail-a").unwrap();
    b.docker("network create --subnet 172.29.0.0/16 holder");
    let error = b.engine.create_network(fail_a, false).await.unwrap_err();
    assert!(matches!(error, EngineError::Conflict { .. }), "{error:?}");
    let id = b.engine.create_network(fail_a, true).await.unwrap();
    b.engine.remove_network(&id).await.unwrap();
    b.docker("network rm holder");
    a.docker("rm -f fail");
    a.docker("network rm fail-a fail-b");
}

#[tokio::test]
async fn no_engine_and_no_permission_are_told_apart() {
    let Some(hosts) = hosts() else { return };
    let [a, _] = hosts.connect().await;
    let socket = a.node.root().unwrap().join("run/nothing.sock");
    let error = DockerEngine::connect(&socket).await.unwrap_err();
    assert!(matches!(error, EngineError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn the_restart_policy_of_a_passing_container_stays() {
    let Some(hosts) = hosts() else { return };
    let [a, _] = hosts.connect().await;
    a.docker(&format!("run -d --rm --name passing {BUSYBOX} sleep 1000"));
    let spec = a.inspect("passing").await;
    assert!(spec.auto_remove);
    a.engine
        .set_restart_policy(&spec.id, &RestartPolicy::never())
        .await
        .unwrap();
    a.engine.stop(&spec.id, Some(Duration::ZERO)).await.unwrap();
    a.engine.remove_container(&spec.id).await.unwrap();
}

#[tokio::test]
async fn a_log_that_cannot_be_read_is_empty() {
    let Some(hosts) = hosts() else { return };
    let [a, _] = hosts.connect().await;
    a.docker(&format!(
        "run -d --name mute --log-driver none {BUSYBOX} sleep 1000"
    ));
    let spec = a.inspect("mute").await;
    assert!(a.engine.log_tail(&spec.id, 5).await.unwrap().is_empty());
    a.engine.remove_container(&spec.id).await.unwrap();
}
