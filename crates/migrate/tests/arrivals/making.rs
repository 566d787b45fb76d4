//! What a destination makes and takes back: images, tags, networks, volumes, directories.

use super::*;

fn with_record(world: &World, undo: Vec<Undo>) -> Arrival {
    let record = ArrivalRecord {
        plan: world.plan.clone(),
        state: ArrivalState::Receiving,
        begun_at_ms: 0,
        undo,
        containers: BTreeMap::new(),
        went_on: false,
        left_behind: Vec::new(),
    };
    Arrival::from_record(ports(&world.destination), Arc::new(Disk::default()), record)
}

#[tokio::test(start_paused = true)]
async fn what_a_crash_left_without_an_id_is_found_by_its_name_and_kind() {
    let world = || world(&options(ModeRequest::Cold), |_| {});
    let container = |name: &str| Undo::Container {
        name: name.into(),
        id: None,
    };
    // A container of that name goes if it was made from this image.
    for (image, name, goes) in [
        ("app:1", "web", true),
        ("other:1", "web", false),
        ("app:1", "another", false),
    ] {
        let world = world();
        let layers = if image == "app:1" { 3 } else { 2 };
        let _made = world.destination.run(name, &memory::image(image, layers), |_| {});
        let left = with_record(&world, vec![container("web")])
            .discard()
            .await
            .unwrap();
        assert_eq!(world.destination.all().is_empty(), goes, "{image} {name}");
        assert_eq!(left.left_behind, [""; 0]);
    }
    // An engine that does not tell leaves it open.
    let world_ = world();
    let calls = world_.destination.calls().len();
    world_.destination.fail(&[(calls, Failure::Before)]);
    let stuck = with_record(&world_, vec![container("web")]).discard().await;
    assert_eq!(code(&stuck), "arrival.stuck");
    // A network of that name goes while nobody uses it.
    for (name, used, goes) in [
        ("back", false, true),
        ("back", true, false),
        ("front", false, false),
    ] {
        let world = world();
        let mut network = harness::network();
        network.name = name.into();
        let id = tranship_core::Engine::create_network(world.destination.as_ref(), &network, false)
            .await
            .unwrap();
        if used {
            network.id = id.clone();
            network.used.insert("other".into(), Vec::new());
            let _user = world.destination.run("other", &memory::image("x:1", 1), |s| {
                s.networks = vec![network];
            });
        }
        let note = Undo::Network {
            name: "back".into(),
            id: None,
        };
        with_record(&world, vec![note]).discard().await.unwrap();
        let left = world.destination.inventory().contains(&format!("network {name}"));
        assert_eq!(!left, goes, "{name} {used}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tag_goes_back_to_what_it_meant_and_an_image_that_was_here_stays() {
    let options = options(ModeRequest::Cold);
    let image = memory::image("app:1", 3);
    let other = memory::image("other:1", 2);
    let tag = |previous: Option<&tranship_core::ImageSpec>| Undo::Tag {
        tag: "app:1".into(),
        previous: previous.map(|i| i.id.to_string()),
    };
    let brought = Undo::Image {
        id: image.id.to_string(),
    };
    let lines = |world: &World, what: &str| {
        let all = world.destination.inventory();
        all.into_iter()
            .filter(|l| l.starts_with(what))
            .collect::<Vec<_>>()
    };
    // It meant another image before.
    let world = || self::world(&options, |_| {});
    let w = world();
    w.destination.add_image(&image);
    w.destination.add_image(&other);
    with_record(&w, vec![tag(Some(&other))]).discard().await.unwrap();
    assert_eq!(
        lines(&w, "tag app:1"),
        [format!("tag app:1 {}", other.id)],
        "it means that again"
    );
    // Somebody gave it to a third one since.
    let w = world();
    let third = memory::image("app:1", 1);
    w.destination.add_image(&third);
    w.destination.add_image(&other);
    with_record(&w, vec![tag(Some(&other))]).discard().await.unwrap();
    assert_eq!(lines(&w, "tag app:1"), [format!("tag app:1 {}", third.id)]);
    // It was not there, and the image was brought along.
    let w = world();
    w.destination.add_image(&image);
    let left = with_record(&w, vec![brought.clone(), tag(None)])
        .discard()
        .await
        .unwrap();
    assert_eq!((lines(&w, "tag"), lines(&w, "image")), (vec![], vec![]));
    assert_eq!(left.left_behind, [""; 0]);
    // It was not there, and the image was: under another name, or without any.
    for named in [true, false] {
        let w = world();
        w.destination.add_image(&image);
        if named {
            tranship_core::Engine::tag_image(w.destination.as_ref(), &image.id, "mine:1")
                .await
                .unwrap();
        }
        let left = with_record(&w, vec![tag(None)]).discard().await.unwrap();
        assert_eq!(lines(&w, "image").len(), 1, "{named}");
        assert_eq!(lines(&w, "tag app:1").is_empty(), named);
        assert_eq!(left.left_behind.len(), usize::from(!named));
        let said = left
            .left_behind
            .iter()
            .all(|l| l.starts_with("the image tag app:1: "));
        assert!(said, "{:?}", left.left_behind);
    }
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_taken_back_is_named() {
    let options = options(ModeRequest::Cold);
    for (note, text) in [
        (
            Undo::Image {
                id: "sha256:0".into(),
            },
            "the image sha256:0: ",
        ),
        (
            Undo::Network {
                name: "back".into(),
                id: Some("n".into()),
            },
            "the network \"back\": ",
        ),
        (
            Undo::Volume {
                name: "data".into(),
                guid: String::new(),
            },
            "the volume \"data\": ",
        ),
        (
            Undo::Aside {
                at: ElementAt::Volume { name: "data".into() },
                key: "k".into(),
            },
            "what volume data held before: ",
        ),
        (
            Undo::Directory {
                path: "/srv/x".into(),
            },
            "the directory /srv/x: ",
        ),
        (
            Undo::SetAside {
                id: ContainerId::new("0f").unwrap(),
                name: "web".into(),
                was_running: true,
                policy: RestartPolicy::never(),
            },
            "the container \"web\" that made way: ",
        ),
    ] {
        let world = world(&options, |_| {});
        let calls = world.destination.calls().len();
        world.destination.fail(&[(calls, Failure::Before)]);
        let arrival = with_record(&world, vec![note]);
        let left = arrival.discard().await.unwrap();
        assert_eq!(left.left_behind.len(), 1, "{text}");
        assert!(left.left_behind[0].starts_with(text), "{:?}", left.left_behind);
        assert_eq!(arrival.record().left_behind, left.left_behind);
        assert!(arrival.record().undo.is_empty() && arrival.is_over());
        // Said once more to who asks once more.
        assert_eq!(arrival.discard().await.unwrap(), left);
    }
    let world = world(&options, |_| {});
    let calls = world.destination.calls().len();
    world.destination.fail(&[(calls, Failure::Before)]);
    let note = Undo::Container {
        name: "web".into(),
        id: Some(ContainerId::new("0f").unwrap()),
    };
    assert_eq!(
        code(&with_record(&world, vec![note]).discard().await),
        "arrival.stuck"
    );
}

#[tokio::test(start_paused = true)]
async fn a_container_that_made_way_comes_back_as_it_was() {
    for (was_running, renamed) in [(true, true), (true, false), (false, true), (false, false)] {
        let world = world(&options(ModeRequest::Cold), |_| {});
        let name = if renamed { "web.replaced-m1" } else { "web" };
        let image = memory::image("old:1", 1);
        let ours = world.destination.run(name, &image, |_| {});
        // Another one whose name looks as if it had made way.
        let theirs = world.destination.run("else.replaced-m1", &image, |_| {});
        for id in [&ours.id, &theirs.id] {
            world.destination.alter(id, |c| {
                c.state = ContainerState::Exited;
                c.policy = RestartPolicy::never();
            });
        }
        let note = Undo::SetAside {
            id: ours.id.clone(),
            name: "web".into(),
            was_running,
            policy: ours.restart_policy.clone(),
        };
        with_record(&world, vec![note]).discard().await.unwrap();
        let state = if was_running { "running" } else { "exited" };
        assert_eq!(world.there(), (state.into(), "always".into()));
        assert_eq!(count(&world.destination, "rename"), usize::from(renamed));
        let other = World::of_container(&world.destination, "else.replaced-m1");
        assert_eq!(other, Some(("exited".into(), "no".into())));
    }
    // In the end it goes, with whatever was kept of it.
    for state in [
        ContainerState::Running,
        ContainerState::Exited,
        ContainerState::Restarting,
    ] {
        let options = MoveOptions {
            replace: true,
            ..options(ModeRequest::Cold)
        };
        for adopted in [true, false] {
            let world = world(&options, |_| {});
            let old = world.destination.run("web", &memory::image("old:1", 1), |_| {});
            world.destination.alter(&old.id, |c| c.state = state);
            prepared(&world).await;
            world.arrival.start().await.unwrap();
            let left = world.destination.all().into_iter().find(|c| c.spec.id == old.id);
            assert_eq!(left.unwrap().spec.name, "web.replaced-m1");
            if adopted {
                world.arrival.adopt().await.unwrap();
                assert_eq!(world.destination.all().len(), 1);
                assert!(world.arrival.record().undo.is_empty());
            } else {
                world.arrival.discard().await.unwrap();
                let again = match state {
                    ContainerState::Exited => "exited",
                    _ => "running",
                };
                assert_eq!(world.there(), (again.into(), "always".into()));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn networks_are_made_once_and_only_where_they_are_missing() {
    for there in [false, true] {
        let world = group(&options(ModeRequest::Cold), &["web", "worker"], |s| {
            s.networks.push(harness::network());
            if s.name == "worker" {
                let mut front = harness::network();
                front.name = "front".into();
                front.id = "n2".into();
                s.networks.push(front);
            }
        });
        if there {
            let network = harness::network();
            let made = tranship_core::Engine::create_network(world.destination.as_ref(), &network, false);
            made.await.unwrap();
        }
        let before = count(&world.destination, "create network");
        prepared(&world).await;
        let made = count(&world.destination, "create network") - before;
        assert_eq!(made, if there { 1 } else { 2 });
        let networks = |name: &str| {
            let line = format!("network {name}");
            world
                .destination
                .inventory()
                .iter()
                .filter(|l| **l == line)
                .count()
        };
        assert_eq!((networks("back"), networks("front")), (1, 1));
        world.arrival.discard().await.unwrap();
        assert_eq!((networks("back"), networks("front")), (usize::from(there), 0));
    }
    let world = world(&options(ModeRequest::Cold), |_| {});
    prepared(&world).await;
    assert_eq!(count(&world.destination, "networks"), 0, "there are none to make");
}

/// A plan with this mount, at a destination that may have changed since.
fn with_mount(options: &MoveOptions, mount: &MountSpec) -> World {
    world(options, |s: &mut ContainerSpec| s.mounts.push(mount.clone()))
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_somebody_made_since_is_neither_used_nor_removed() {
    for without in [true, false] {
        let options = MoveOptions {
            without_volumes: without,
            ..options(ModeRequest::Cold)
        };
        for (name, refused) in [("data", true), ("another", false)] {
            let world = with_mount(&options, &mount(MountKind::Volume, "data", "/data"));
            world.destination.add_image(&world.plan.transfer.image);
            world.destination.add_volume(name);
            let all = async {
                world.arrival.open().await?;
                world.arrival.prepare().await?;
                world.arrival.create().await
            };
            let done = all.await;
            let what = format!("{without} {name}");
            assert_eq!(code(&done), if refused { "volume.exists" } else { "" }, "{what}");
            world.arrival.discard().await.unwrap();
            let volumes: Vec<String> = world
                .destination
                .inventory()
                .into_iter()
                .filter(|l| l.starts_with("volume"))
                .collect();
            assert_eq!(volumes, [format!("volume {name}")], "{what}");
        }
    }
    // Two mounts that come empty, one of them without a name: only the other one has to be free.
    let options = MoveOptions {
        without_volumes: true,
        ..options(ModeRequest::Cold)
    };
    let world = world(&options, |s| {
        let mut nameless = mount(MountKind::Volume, "nameless", "/n");
        nameless.anonymous = true;
        s.mounts = vec![nameless, mount(MountKind::Tmpfs, "", "/t")];
    });
    world.destination.add_volume("nameless");
    prepared(&world).await;
    world.arrival.discard().await.unwrap();
    assert!(
        world
            .destination
            .inventory()
            .contains(&"volume nameless".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn what_arrived_of_a_volume_is_kept_for_the_next_try() {
    // Only a tree that is copied can make use of it.
    for (guid, copied, route, kept) in [
        ("guid-1", true, ElementRoute::Tree, true),
        ("guid-1", true, ElementRoute::Archive, false),
        ("guid-1", false, ElementRoute::Tree, false),
        ("", true, ElementRoute::Tree, false),
    ] {
        let world = with_mount(
            &options(ModeRequest::Cold),
            &mount(MountKind::Volume, "data", "/data"),
        );
        let mut plan: Plan = world.plan.clone();
        plan.elements[0].volume.as_mut().unwrap().guid = guid.into();
        plan.elements[0].copied = copied;
        plan.elements[0].route = route;
        let plan_again = plan.clone();
        let world = World::of(world.source, world.destination, plan);
        prepared(&world).await;
        let at = ElementAt::Volume { name: "data".into() };
        let path = World::path_of(&world.destination, &at);
        world.destination.storage().put(&path, "rows", "half of them");
        world.arrival.discard().await.unwrap();
        assert_eq!(world.destination.storage().get(&path), None);
        let again = World::of(world.source, world.destination, plan_again);
        prepared(&again).await;
        let held = again.destination.storage().get(&path).unwrap();
        assert_eq!(held.contains_key("rows"), kept, "{guid:?} {copied} {route:?}");
        // Another volume does not get it.
        again.arrival.discard().await.unwrap();
        let mut plan = again.plan.clone();
        plan.elements[0].volume.as_mut().unwrap().guid = "guid-2".into();
        let other = World::of(again.source, again.destination, plan);
        prepared(&other).await;
        assert!(other.destination.storage().get(&path).unwrap().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_directory_is_made_or_emptied_and_given_back_as_it_was() {
    let bind = MountSpec {
        source: "/srv/files".into(),
        ..mount(MountKind::Bind, "", "/files")
    };
    let at = ElementAt::Bind {
        path: "/srv/files".into(),
    };
    for there in [None, Some("")] {
        for adopted in [true, false] {
            for replace in [true, false] {
                let options = MoveOptions {
                    include_bind: vec!["/files".into()],
                    volume_conflict: if replace {
                        VolumeConflict::Replace
                    } else {
                        VolumeConflict::Refuse
                    },
                    ..options(ModeRequest::Cold)
                };
                let world = with_mount(&options, &bind);
                let storage = world.destination.storage();
                let path = World::path_of(&world.destination, &at);
                if there.is_some() {
                    storage.put(&path, "theirs", "precious");
                }
                prepared(&world).await;
                let what = format!("{there:?} {adopted} {replace}");
                assert!(storage.get(&path).is_some_and(|c| c.is_empty()), "{what}");
                storage.put(&path, "mine", "arrived");
                if adopted {
                    world.arrival.start().await.unwrap();
                    world.arrival.adopt().await.unwrap();
                    let held = storage.get(&path).unwrap();
                    assert!(held.contains_key("mine") && held.len() == 1, "{what}");
                } else {
                    world.arrival.discard().await.unwrap();
                    let held = storage.get(&path);
                    match there {
                        None => assert_eq!(held, None, "{what}"),
                        Some(_) => {
                            let held = held.unwrap();
                            assert!(held.contains_key("theirs") && held.len() == 1, "{what}");
                        }
                    }
                }
                // Nothing that made way is left in either case.
                let asides = storage.inventory();
                assert!(!asides.iter().any(|l| l.starts_with("aside")), "{what}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_makes_way_in_two_migrations_or_two_places_is_kept_apart() {
    let options = MoveOptions {
        include_bind: vec!["/a".into(), "/b".into()],
        ..options(ModeRequest::Cold)
    };
    let world = world(&options, |s| {
        for path in ["/a", "/b"] {
            s.mounts.push(MountSpec {
                source: format!("/srv{path}"),
                ..mount(MountKind::Bind, "", path)
            });
        }
    });
    let storage = world.destination.storage();
    let paths: Vec<_> = ["/srv/a", "/srv/b"]
        .map(|p| World::path_of(&world.destination, &ElementAt::Bind { path: p.into() }))
        .to_vec();
    for path in &paths {
        storage.put(path, "theirs", path.display().to_string());
    }
    prepared(&world).await;
    let asides = storage.inventory();
    let asides = asides
        .iter()
        .filter(|l| l.starts_with("aside replaced-m1-"))
        .count();
    assert_eq!(asides, 2);
    world.arrival.discard().await.unwrap();
    for path in &paths {
        let held = storage.get(path).unwrap();
        assert_eq!(held["theirs"], path.display().to_string().into_bytes());
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_not_what_was_announced_is_refused() {
    let world = world(&options(ModeRequest::Cold), |_| {});
    let mut other = world.plan.transfer.image.clone();
    other.layers.pop();
    world.destination.add_image(&other);
    world.arrival.open().await.unwrap();
    assert_eq!(code(&world.arrival.image(0, None).await), "image.corrupt");
    // One that went away after it was looked for.
    let world = self::world(&options(ModeRequest::Cold), |_| {});
    world.arrival.open().await.unwrap();
    assert_eq!(code(&world.arrival.image(0, None).await), "image.missing");
    // What is here already is said of each image.
    for (held, layers, expected) in [
        (true, 0, (true, 3)),
        (false, 2, (false, 2)),
        (false, 0, (false, 0)),
    ] {
        let world = self::world(&options(ModeRequest::Cold), |_| {});
        if held {
            world.destination.add_image(&world.plan.transfer.image);
        }
        if layers > 0 {
            world.destination.add_image(&memory::image("old:1", layers));
        }
        let opened = world.arrival.open().await.unwrap();
        assert_eq!(opened.len(), 1);
        assert_eq!((opened[0].image_held, opened[0].layers_held), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_hides_its_files_gives_no_directory_and_keeps_no_helper() {
    let world = with_mount(
        &options(ModeRequest::Cold),
        &mount(MountKind::Volume, "data", "/data"),
    );
    world.destination.add_volume("data");
    let at = ElementAt::Volume { name: "data".into() };
    let node = ports(&world.destination);
    assert!(node.directory(&at).await.is_ok());
    assert_eq!(count(&world.destination, "release"), 0);
    world.destination.set_indirect(true);
    assert_eq!(code(&node.directory(&at).await), "content.route");
    assert!(world.destination.all().is_empty(), "the helper is gone");
}

#[tokio::test(start_paused = true)]
async fn only_what_an_image_changes_is_noted_and_only_once() {
    let image = memory::image("app:1", 3);
    let old = memory::image("old:1", 1);
    let brought = Undo::Image {
        id: image.id.to_string(),
    };
    let tag = |previous: Option<&tranship_core::ImageSpec>| Undo::Tag {
        tag: "app:1".into(),
        previous: previous.map(|i| i.id.to_string()),
    };
    // Whether the image is here, and what its tag means here.
    for (held, means, notes) in [
        (false, None, vec![brought.clone(), tag(None)]),
        (false, Some(&old), vec![brought, tag(Some(&old))]),
        (true, None, vec![tag(None)]),
        (true, Some(&old), vec![tag(Some(&old))]),
        (true, Some(&image), Vec::new()),
    ] {
        let world = world(&options(ModeRequest::Cold), |_| {});
        if held {
            world.destination.add_image(&image);
            world.destination.forget_tag("app:1");
        }
        if let Some(other) = means {
            let mut other = other.clone();
            other.tags = vec!["app:1".into()];
            world.destination.add_image(&other);
        }
        world.arrival.open().await.unwrap();
        for _ in 0..2 {
            // An image that is not here cannot come out of nothing, and that it was to come is noted before.
            let done = world.arrival.image(0, None).await;
            assert_eq!(code(&done), if held { "" } else { "image.missing" });
            let means = means.map(|i| &i.id);
            assert_eq!(world.arrival.record().undo, notes, "{held} {means:?}");
        }
    }
}
