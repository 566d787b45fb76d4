//! Where the files of a container are, and the ways in and out.

use std::io::Read as _;
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tranship_core::engine::ByteStream;
use tranship_core::storage::{ElementAt, ElementPlace};
use tranship_core::{ContainerId, Engine, EngineError};

use crate::hosts::{BUSYBOX, Host, hosts};

fn directory(place: &ElementPlace) -> PathBuf {
    match place {
        ElementPlace::Directory { path, .. } => path.clone(),
        ElementPlace::Archive { .. } => panic!("{place:?} is no directory"),
    }
}

fn archive(place: &ElementPlace) -> (ContainerId, String) {
    match place {
        ElementPlace::Archive { container, path } => (container.clone(), path.clone()),
        ElementPlace::Directory { .. } => panic!("{place:?} is no archive"),
    }
}

fn volume(name: &str) -> ElementAt {
    ElementAt::Volume { name: name.into() }
}

fn unsupported(place: Result<ElementPlace, EngineError>) -> String {
    match place {
        Err(EngineError::Unsupported { message }) => message,
        other => panic!("{other:?}"),
    }
}

/// Names, owners and contents of a tar archive.
async fn entries(mut stream: ByteStream) -> Vec<(String, u64, Vec<u8>)> {
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    let mut archive = tar::Archive::new(bytes.as_slice());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        (name, entry.header().uid().unwrap(), content)
    });
    entries.collect()
}

fn tar_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o640);
    header.set_uid(1234);
    header.set_gid(4321);
    header.set_mtime(1_000_000_000);
    builder.append_data(&mut header, name, content).unwrap();
    builder.into_inner().unwrap()
}

fn sent(bytes: &[u8]) -> ByteStream {
    let pieces: Vec<_> = bytes
        .chunks(100_000)
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    Box::pin(stream::iter(pieces))
}

#[tokio::test]
async fn a_layer_is_where_its_container_writes() {
    let Some(hosts) = hosts() else { return };
    let [a, _] = hosts.connect().await;
    a.docker(&format!(
        "run -d --name layered {BUSYBOX} sh -c 'echo layer > /etc/app.conf; rm /bin/vi; sleep 1000'"
    ));
    a.docker("exec layered sh -c 'until test -e /etc/app.conf; do sleep 0.1; done'");
    assert!(a.engine.reaches_files_directly().await.unwrap());
    assert!(!a.indirect().reaches_files_directly().await.unwrap());
    let container = a.inspect("layered").await.id;
    let layer = ElementAt::Layer {
        container: container.clone(),
    };
    let place = a.engine.locate(&layer).await.unwrap();
    assert!(
        matches!(place, ElementPlace::Directory { overlay: true, .. }),
        "{place:?}"
    );
    let written = std::fs::read_to_string(directory(&place).join("etc/app.conf")).unwrap();
    assert_eq!(written, "layer\n");
    a.engine.release(&place).await.unwrap();

    let place = a.indirect().locate(&layer).await.unwrap();
    assert_eq!(archive(&place), (container.clone(), "/".into()));
    let files = entries(
        a.indirect()
            .export_path(&container, "/etc/app.conf")
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(files[0].2, b"layer\n");
    // It is nobody's helper.
    a.indirect().release(&place).await.unwrap();
    assert_eq!(a.inspect("layered").await.id, container);
    a.docker("rm -f layered");
    let gone = a.engine.locate(&layer).await;
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
async fn a_volume_is_found_directly() {
    let Some(hosts) = hosts() else { return };
    let [a, _] = hosts.connect().await;
    a.node
        .sh("mkdir -p /srv/found/real; ln -sfn /srv/found/real /srv/found/link; echo device > /srv/found/real/f")
        .unwrap();
    a.docker("volume create found-plain");
    a.docker("volume create -o type=none -o o=bind -o device=/srv/found/link found-bind");
    a.docker("volume create -o type=tmpfs -o device=tmpfs found-memory");
    a.docker(&format!(
        "run --rm -v found-plain:/v {BUSYBOX} sh -c 'echo plain > /v/f'"
    ));
    let root = a.node.root().unwrap();
    let at = async |element: &ElementAt| directory(&a.engine.locate(element).await.unwrap());
    let plain = at(&volume("found-plain")).await;
    assert_eq!(plain, root.join("var/lib/docker/volumes/found-plain/_data"));
    assert_eq!(std::fs::read_to_string(plain.join("f")).unwrap(), "plain\n");
    // Nobody has it mounted, and the link is one of the engine's file system, not of this one.
    let device = at(&volume("found-bind")).await;
    assert_eq!(device, root.join("srv/found/real"));
    assert_eq!(std::fs::read_to_string(device.join("f")).unwrap(), "device\n");
    let message = unsupported(a.engine.locate(&volume("found-memory")).await);
    assert!(message.contains("memory"), "{message}");
    unsupported(a.indirect().locate(&volume("found-memory")).await);
    let none = a.engine.locate(&volume("found-not")).await;
    assert!(
        matches!(none, Err(EngineError::NotFound { what: "volume", .. })),
        "{none:?}"
    );

    let bind = |path: &str| ElementAt::Bind { path: path.into() };
    assert_eq!(
        at(&bind("/srv/found/link/f")).await,
        root.join("srv/found/real/f")
    );
    assert_eq!(
        at(&bind("/srv/found/link/new/dir")).await,
        root.join("srv/found/real/new/dir")
    );
    unsupported(a.engine.locate(&bind("relative")).await);
    a.docker("volume rm found-plain found-bind found-memory");
}

#[tokio::test]
async fn who_uses_a_directory_of_the_host_is_found_whatever_leads_there() {
    let Some(hosts) = hosts() else { return };
    let [a, _] = hosts.connect().await;
    a.node
        .sh("mkdir -p /srv/shared/real/in /srv/shared/real2; ln -sfn /srv/shared/real /srv/shared/link")
        .unwrap();
    a.docker("volume create -o type=none -o o=bind -o device=/srv/shared/link shared-bind");
    for (name, mount) in [
        ("shared-same", "/srv/shared/link:/x:ro"),
        ("shared-in", "/srv/shared/real/in:/x:ro"),
        ("shared-above", "/srv/shared:/x"),
        ("shared-reads", "/srv:/x:ro"),
        ("shared-beside", "/srv/shared/real2:/x"),
        ("shared-volume", "shared-bind:/x"),
    ] {
        a.docker(&format!("create --name {name} -v {mount} {BUSYBOX} sleep 1000"));
    }
    a.docker("start shared-in");
    for path in ["/srv/shared/real", "/srv/shared/link"] {
        let users = a.engine.path_users(path).await.unwrap();
        let users: Vec<_> = users
            .iter()
            .map(|u| (u.name.as_str(), u.running, u.writable))
            .collect();
        assert_eq!(
            users,
            [
                ("shared-above", false, true),
                ("shared-in", true, false),
                ("shared-same", false, false),
                ("shared-volume", false, true),
            ],
            "{path}"
        );
    }
    a.docker("rm -f shared-same shared-in shared-above shared-reads shared-beside shared-volume");
    a.docker("volume rm shared-bind");
}

/// Containers that only give access to something.
fn helpers(host: &Host) -> usize {
    host.docker("ps -aq --filter label=tranship.helper")
        .lines()
        .count()
}

#[tokio::test]
async fn without_root_the_engine_reaches_volumes() {
    let Some(hosts) = hosts() else { return };
    let [_, b] = hosts.connect().await;
    b.node
        .sh(&format!(
            "mkdir -p /root/withvol /srv/helped && echo bound > /srv/helped/f && cd /root/withvol && \
             printf 'FROM {BUSYBOX}\\nVOLUME /image-volume\\n' > Dockerfile && \
             DOCKER_BUILDKIT=0 docker build --network none -q -t withvol:1 ."
        ))
        .unwrap();
    b.docker("run -d --name helped -v helped-named:/v -v /srv/helped:/b withvol:1 sh -c 'echo 1 > /v/f; echo 2 > /image-volume/f; sleep 1000'");
    b.docker("exec helped sh -c 'until test -e /image-volume/f; do sleep 0.1; done'");
    let engine = b.indirect();
    let spec = b.inspect("helped").await;
    let unnamed = spec
        .mounts
        .iter()
        .find(|mount| mount.anonymous)
        .unwrap()
        .name
        .clone();
    let before = b.engine.volumes().await.unwrap();
    let mut places = Vec::new();
    for (element, content) in [
        (volume("helped-named"), "1\n"),
        (volume(&unnamed), "2\n"),
        (
            ElementAt::Bind {
                path: "/srv/helped".into(),
            },
            "bound\n",
        ),
    ] {
        let place = engine.locate(&element).await.unwrap();
        let (container, path) = archive(&place);
        let files = entries(engine.export_path(&container, &path).await.unwrap()).await;
        let file = files
            .iter()
            .find(|(name, ..)| name == "tranship-volume/f")
            .unwrap();
        assert_eq!(file.2, content.as_bytes());
        engine
            .import_path(&container, &path, sent(&tar_of("new", b"in")))
            .await
            .unwrap();
        places.push(place);
    }
    assert_eq!(helpers(&b), 3);
    let seen =
        b.docker("exec helped sh -c 'cat /v/new /image-volume/new /b/new; stat -c %u:%g:%a:%Y /v/new'");
    assert_eq!(seen, "ininin1234:4321:640:1000000000");
    // Helpers use nothing, and no volume was made for them.
    let volumes = b.engine.volume_specs().await.unwrap();
    let named = volumes
        .iter()
        .find(|volume| volume.name == "helped-named")
        .unwrap();
    assert_eq!(named.users.len(), 1);
    let now = b.engine.volumes().await.unwrap();
    let made_by_image = |name: &&String| !before.contains(name) && name.len() == 64;
    for name in now.iter().filter(made_by_image) {
        let users = &volumes.iter().find(|volume| volume.name == *name).unwrap().users;
        assert!(users.iter().all(|user| !user.name.starts_with("tranship-helper")));
    }
    // Even the last user's end does not take the volume with it.
    b.docker("rm -f helped");
    for place in &places {
        engine.release(place).await.unwrap();
        engine.release(place).await.unwrap();
    }
    assert_eq!(helpers(&b), 0);
    let left = b.engine.volumes().await.unwrap();
    assert!(left.contains(&unnamed) && left.contains(&"helped-named".to_owned()));
    let missing = engine
        .locate(&ElementAt::Bind {
            path: "/srv/nowhere".into(),
        })
        .await;
    assert!(
        matches!(missing, Err(EngineError::NotFound { what: "file", .. })),
        "{missing:?}"
    );
    b.docker(&format!("volume rm helped-named {unnamed}"));
}

#[tokio::test]
async fn a_tmpfs_is_reached_through_its_process_and_nothing_else_is() {
    let Some(hosts) = hosts() else { return };
    let [a, _] = hosts.connect().await;
    a.docker(&format!(
        "run -d --name memory --tmpfs /t1 --mount type=tmpfs,dst=/deep/t2 {BUSYBOX} sleep 1000"
    ));
    a.docker(
        "exec memory sh -c 'echo 1 > /t1/f; echo 2 > /deep/t2/f; ln -s /deep /d; ln -s /d/../t1 /l; ln -s ../../../../../etc /out; ln -s /proc/1/root /magic'",
    );
    let container = a.inspect("memory").await.id;
    let tmpfs = |path: &str| ElementAt::Tmpfs {
        container: container.clone(),
        path: path.into(),
    };
    let at = async |path: &str| a.engine.locate(&tmpfs(path)).await;
    for (path, content) in [
        ("/t1", "1\n"),
        ("/deep/t2", "2\n"),
        ("/d/t2", "2\n"),
        ("/l", "1\n"),
        ("/magic/t1", "1\n"),
    ] {
        let found = directory(&at(path).await.unwrap());
        let text = found.to_str().unwrap().to_owned();
        assert!(
            text.contains("/proc/") && !text.contains("/d/") && !text.ends_with("/l"),
            "{text}"
        );
        assert_eq!(
            std::fs::read_to_string(found.join("f")).unwrap(),
            content,
            "{path}"
        );
    }
    for path in ["/etc", "/out", "/magic/etc", "/", "/nothing"] {
        unsupported(at(path).await);
    }
    unsupported(a.indirect().locate(&tmpfs("/t1")).await);
    a.engine.pause(&container).await.unwrap();
    assert!(at("/t1").await.is_ok());
    a.engine.kill(&container).await.unwrap();
    let message = unsupported(at("/t1").await);
    assert!(message.contains("does not run"), "{message}");
    a.docker("rm -f memory");
}

#[tokio::test]
async fn files_go_out_and_in_as_streams() {
    let Some(hosts) = hosts() else { return };
    let [a, b] = hosts.connect().await;
    for host in [&a, &b] {
        host.docker(&format!(
            "create --name streams --mount type=volume,src=streams-small,dst=/small,volume-opt=type=tmpfs,volume-opt=device=tmpfs,volume-opt=o=size=1m {BUSYBOX} sleep 9"
        ));
    }
    a.node
        .sh("dd if=/dev/urandom of=/tmp/big bs=1M count=40 2>/dev/null; docker cp /tmp/big streams:/srv-big")
        .unwrap();
    let (from, to) = (a.inspect("streams").await.id, b.inspect("streams").await.id);
    let out = a.engine.export_path(&from, "/srv-big").await.unwrap();
    b.engine.import_path(&to, "/", out).await.unwrap();
    let sum = |host: &Host| {
        host.node
            .sh("docker cp streams:/srv-big - | tar xO | sha256sum")
            .unwrap()
    };
    assert_eq!(sum(&a), sum(&b));

    let missing = a.engine.export_path(&from, "/no/such").await.err();
    assert!(
        matches!(&missing, Some(EngineError::NotFound { what: "file", name }) if name == "/no/such"),
        "{missing:?}"
    );
    let missing = b
        .engine
        .import_path(&to, "/no/such", sent(&tar_of("f", b"x")))
        .await;
    assert!(
        matches!(missing, Err(EngineError::NotFound { what: "file", .. })),
        "{missing:?}"
    );
    let nobody = ContainerId::new("0".repeat(64)).unwrap();
    let missing = a.engine.export_path(&nobody, "/etc").await.err();
    assert!(
        matches!(
            missing,
            Some(EngineError::NotFound {
                what: "container",
                ..
            })
        ),
        "{missing:?}"
    );

    // More than fits, by far more than any buffer holds.
    let full = b
        .engine
        .import_path(&to, "/small", sent(&tar_of("f", &vec![7; 30 << 20])))
        .await;
    assert!(matches!(full, Err(EngineError::NoSpace { .. })), "{full:?}");

    // What broke at this side is what is said.
    let tar = tar_of("f", &[1; 300_000]);
    let broken = stream::iter([
        Ok(Bytes::copy_from_slice(&tar[..100_000])),
        Err(EngineError::Corrupt {
            what: "source".into(),
            message: "gone".into(),
        }),
    ]);
    let said = b.engine.import_path(&to, "/", Box::pin(broken)).await;
    assert!(matches!(said, Err(EngineError::Corrupt { .. })), "{said:?}");
    for host in [&a, &b] {
        host.docker("rm -fv streams");
        host.docker("volume rm streams-small");
    }
}
