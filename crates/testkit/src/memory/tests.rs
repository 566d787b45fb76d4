#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::StreamExt as _;
use tranship_core::Engine as _;
use tranship_core::container::{MountKind, MountSpec};
use tranship_core::engine::CreateRequest;
use tranship_core::storage::{
    ElementAt, ElementPlace, ElementRoute, RoundOptions, RoundReport, Storage as _, SyncOptions,
};

use super::*;

fn mount(kind: MountKind, name: &str, destination: &str, anonymous: bool) -> MountSpec {
    let (name, source) = match kind {
        MountKind::Volume => (name, ""),
        _ => ("", name),
    };
    MountSpec {
        kind,
        name: name.into(),
        source: source.into(),
        destination: destination.into(),
        driver: "local".into(),
        writable: true,
        anonymous,
    }
}

fn request(spec: &ContainerSpec, carried: &[(&str, &str)]) -> CreateRequest {
    CreateRequest {
        name: spec.name.clone(),
        publish: BTreeMap::new(),
        restart_policy: RestartPolicy::never(),
        empty_volumes: false,
        carried: carried
            .iter()
            .map(|(path, to)| ((*path).to_owned(), (*to).to_owned()))
            .collect(),
        drop_fixed_addresses: false,
        spec: spec.clone(),
    }
}

fn web(engine: &MemoryEngine) -> ContainerSpec {
    engine.run("web", &image("app:1", 1), |spec| {
        spec.mounts = vec![
            mount(MountKind::Volume, "data", "/data", false),
            mount(MountKind::Volume, "made-up", "/cache", true),
            mount(MountKind::Volume, "made-up", "/cache-2", true),
            mount(MountKind::Bind, "/srv", "/srv", false),
        ];
    })
}

#[tokio::test]
async fn volumes_have_users_and_mounts_come_along() {
    let (source, destination) = (MemoryEngine::named("a"), MemoryEngine::named("b"));
    let spec = web(&source);
    let volumes = source.volume_specs().await.unwrap();
    assert_eq!(volumes.len(), 2);
    assert!(
        volumes
            .iter()
            .all(|v| v.users[0].name == "web" && v.users[0].running)
    );
    let carried = [
        ("/data", "data-2"),
        ("/cache", ""),
        ("/cache-2", ""),
        ("/srv", "/srv-2"),
    ];
    let mut wanted = request(&spec, &carried);
    let missing = destination.create_container(&wanted).await;
    assert!(
        matches!(missing, Err(EngineError::NotFound { what: "volume", .. })),
        "{missing:?}"
    );
    let mut data = volumes.iter().find(|v| v.name == "data").unwrap().clone();
    data.name = "data-2".into();
    destination.create_volume(&data).await.unwrap();
    let twice = destination.create_volume(&data).await;
    assert!(matches!(twice, Err(EngineError::Conflict { .. })), "{twice:?}");
    let id = destination.create_container(&wanted).await.unwrap();
    let made = destination.all()[0].spec.clone();
    assert_eq!(made.mounts[0].name, "data-2");
    assert!(made.mounts[1].anonymous && made.mounts[1].name.len() == 64);
    assert_eq!(made.mounts[1].name, made.mounts[2].name);
    assert_eq!(made.mounts[3].source, "/srv-2");
    let in_use = destination.remove_volume("data-2").await;
    assert!(matches!(in_use, Err(EngineError::Conflict { .. })), "{in_use:?}");
    destination.remove_container(&id).await.unwrap();
    assert_eq!(destination.volumes().await.unwrap(), ["data-2"]);
    destination.remove_volume("data-2").await.unwrap();
    assert!(destination.storage().inventory().is_empty());

    wanted.carried.remove("/data");
    let refused = destination.create_container(&wanted).await;
    assert!(
        matches!(refused, Err(EngineError::Unsupported { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn states_follow_the_rules() {
    let engine = MemoryEngine::new();
    let id = web(&engine).id;
    engine.pause(&id).await.unwrap();
    engine.pause(&id).await.unwrap();
    assert!(engine.start(&id).await.is_err() && engine.exec(&id, "x", Duration::ZERO).await.is_err());
    engine.unpause(&id).await.unwrap();
    let bad = ExecOutcome {
        exit_code: Some(3),
        output: "no".into(),
    };
    engine.on_exec("check", bad.clone());
    assert_eq!(engine.exec(&id, "check", Duration::ZERO).await.unwrap(), bad);
    assert_eq!(
        engine.exec(&id, "other", Duration::ZERO).await.unwrap().exit_code,
        Some(0)
    );
    assert_eq!(engine.execs().len(), 2);
    engine.pause(&id).await.unwrap();
    engine.kill(&id).await.unwrap();
    engine.kill(&id).await.unwrap();
    assert_eq!(engine.status(&id).await.unwrap().state, ContainerState::Exited);
    assert!(engine.pause(&id).await.is_err() && engine.unpause(&id).await.is_err());
}

#[tokio::test]
async fn elements_are_reached_directly_or_by_a_helper() {
    let engine = MemoryEngine::named("a");
    let spec = web(&engine);
    let volume = ElementAt::Volume { name: "data".into() };
    let path = PathBuf::from("/memory/a/volume/data");
    let place = engine.locate(&volume).await.unwrap();
    assert_eq!(
        place,
        ElementPlace::Directory {
            path: path.clone(),
            overlay: false
        }
    );
    let tmpfs = ElementAt::Tmpfs {
        container: spec.id.clone(),
        path: "/t".into(),
    };
    assert!(engine.locate(&tmpfs).await.is_ok());
    let none = engine.locate(&ElementAt::Volume { name: "none".into() }).await;
    assert!(matches!(none, Err(EngineError::NotFound { what: "volume", .. })));

    engine.set_indirect(true);
    let before = engine.inventory();
    let place = engine.locate(&volume).await.unwrap();
    let ElementPlace::Archive {
        container,
        path: inside,
    } = &place
    else {
        panic!("{place:?}")
    };
    engine.storage().put(&path, "f", "1");
    assert_eq!(
        engine.storage().get(MemoryStorage::path_of(&place)).unwrap()["f"],
        b"1"
    );
    let archive = engine.export_path(container, inside).await.unwrap();
    engine.storage().set(&path, Contents::new());
    engine
        .import_path(container, inside, archive.boxed())
        .await
        .unwrap();
    assert_eq!(engine.storage().get(&path).unwrap()["f"], b"1");
    assert!(
        engine
            .volume_specs()
            .await
            .unwrap()
            .iter()
            .all(|v| v.users.len() == 1)
    );
    assert_ne!(engine.inventory(), before);
    engine.release(&place).await.unwrap();
    engine.release(&place).await.unwrap();
    assert_eq!(engine.inventory(), before);
}

fn place(path: &str) -> ElementPlace {
    ElementPlace::Directory {
        path: path.into(),
        overlay: false,
    }
}

/// One round between two elements; what each end says.
async fn round(
    from: &MemoryStorage,
    to: &MemoryStorage,
    options: RoundOptions,
) -> (
    Result<RoundReport, tranship_core::Fault>,
    Result<RoundReport, tranship_core::Fault>,
) {
    let sync = SyncOptions {
        exclude: vec!["tmp/".into()],
        ..SyncOptions::default()
    };
    let opened = (
        from.source(&place("/s"), &sync).await,
        to.sink(&place("/d"), ElementRoute::Tree).await,
    );
    let (mut source, mut sink) = match opened {
        (Ok(source), Ok(sink)) => (source, sink),
        (source, sink) => {
            let lost = || tranship_core::Fault::new("test", tranship_core::FaultKind::Bug, "not opened");
            return (
                Err(source.err().unwrap_or_else(lost)),
                Err(sink.err().unwrap_or_else(lost)),
            );
        }
    };
    let (one, other) = tokio::io::duplex(64);
    tokio::join!(
        source.round(Box::new(one), options, Arc::new(|_| {})),
        sink.round(Box::new(other), Arc::new(|_| {})),
    )
}

#[tokio::test]
async fn rounds_bring_the_sink_up_to_date() {
    let (from, to) = (MemoryStorage::new(), MemoryStorage::new());
    from.put("/s", "a", "one");
    from.put("/s", "tmp/x", "stays");
    to.put("/d", "old", "goes");
    from.on_round("/s", |round, contents| {
        contents.insert("log".into(), format!("round {round}").into_bytes());
    });
    let (sent, taken) = round(&from, &to, RoundOptions::default()).await;
    let first = sent.unwrap();
    assert_eq!(first, taken.unwrap());
    assert_eq!(
        (first.entries, first.changed_entries, first.literal_bytes),
        (1, 2, 3)
    );
    let frozen = RoundOptions {
        frozen: true,
        durable: true,
    };
    let second = round(&from, &to, frozen).await.0.unwrap();
    assert_eq!(
        (second.entries, second.changed_entries, second.literal_bytes),
        (2, 1, 7)
    );
    assert_eq!(to.get("/d").unwrap()["log"], b"round 0");
    let third = round(&from, &to, frozen).await.0.unwrap();
    assert_eq!((third.changed_entries, third.tree), (0, second.tree));
    assert_eq!(from.rounds().len(), 3);
    assert!(
        from.source(&place("/none"), &SyncOptions::default())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn every_call_can_fail_before_and_after() {
    for (at_source, number, failure, arrives, source_knows, sink_knows) in [
        (true, 0, Failure::Before, false, false, false),
        (true, 0, Failure::After, false, false, false),
        (true, 1, Failure::Before, false, false, false),
        (true, 1, Failure::After, true, false, true),
        (false, 0, Failure::Before, false, false, false),
        (false, 0, Failure::After, false, false, false),
        (false, 1, Failure::Before, false, false, false),
        (false, 1, Failure::After, true, false, false),
    ] {
        let (from, to) = (MemoryStorage::new(), MemoryStorage::new());
        from.put("/s", "a", "one");
        let failing = if at_source { &from } else { &to };
        failing.fail(&[(number, failure)]);
        let (sent, taken) = round(&from, &to, RoundOptions::default()).await;
        let seen = (to.get("/d").is_some(), sent.is_ok(), taken.is_ok());
        assert_eq!(
            seen,
            (arrives, source_knows, sink_knows),
            "{at_source} {number} {failure:?}"
        );
        failing.fail(&[]);
        assert!(round(&from, &to, RoundOptions::default()).await.0.is_ok());
    }
}
