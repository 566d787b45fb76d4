//! Images by other ways than one archive.

use tranship_migrate::ImageStrategy;

use super::*;

fn by(strategy: ImageStrategy) -> MoveOptions {
    MoveOptions {
        image_strategy: strategy,
        registry: (strategy == ImageStrategy::Registry).then(|| "r:5000".into()),
        ..cold()
    }
}

#[tokio::test(start_paused = true)]
async fn the_destination_asks_for_the_layers_that_it_lacks() {
    for held in [0, 2] {
        let world = world(&by(ImageStrategy::Layers), |_| {});
        if held > 0 {
            world.destination.add_image(&memory::image("old:1", held));
        }
        let record = world.run().await;
        assert_eq!(record.state, DepartureState::Complete, "{:?}", record.fault);
        assert_eq!(
            (world.link.count("image"), world.link.count("image from")),
            (0, 1)
        );
        assert_eq!(record.plan.transfer.skip_layers, held);
        let image = record.phases.iter().find(|p| p.phase == Phase::Image).unwrap();
        assert!(image.bytes > 0);
    }
    // One that is there is not asked about.
    let world = world(&by(ImageStrategy::Layers), |_| {});
    world.destination.add_image(&world.plan.transfer.image);
    assert_eq!(world.run().await.state, DepartureState::Complete);
    assert_eq!(world.link.count("image from"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_link_that_breaks_while_layers_come_is_made_again() {
    for (call, how) in [
        ("image from", How::Lost),
        ("image from", How::Deaf),
        ("image pipe", How::Lost),
        ("image from", How::Says("registry.lost", FaultKind::Environment)),
    ] {
        let world = world(&by(ImageStrategy::Layers), |_| {});
        world.link.on(call, 0..3, how);
        let record = world.run().await;
        assert_eq!(
            record.state,
            DepartureState::Complete,
            "{call} {how:?} {:?}",
            record.fault
        );
        assert_eq!(world.link.count(call), 4);
        assert_eq!(world.told.warnings("it goes on"), 1);
    }
    // Not for ever, and not for what would be no better the next time.
    for (how, code) in [
        (How::Lost, "wire.lost"),
        (
            How::Says("registry.digest", FaultKind::Environment),
            "registry.digest",
        ),
    ] {
        let world = world(&by(ImageStrategy::Layers), |_| {});
        world.link.on("image from", 0..EVER, how);
        let record = world.run().await;
        assert_eq!(self::code(&record), code);
        assert_eq!(record.state, DepartureState::RolledBack);
        assert_eq!(world.link.count("image from") == 1, code == "registry.digest");
    }
    // Whoever gave up is not waited for.
    let world = world(&by(ImageStrategy::Layers), |_| {});
    world.link.on("image from", 0..EVER, How::Takes(60_000));
    let cancel = world.cancel.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        cancel.send_replace(true);
    });
    let record = world.run().await;
    assert_eq!(code(&record), "migrate.aborted");
}

#[tokio::test(start_paused = true)]
async fn a_registry_in_between() {
    let world = world(&by(ImageStrategy::Registry), |_| {});
    let record = world.run().await;
    assert_eq!(record.state, DepartureState::Complete, "{:?}", record.fault);
    assert_eq!(
        (world.link.count("image pipe"), world.link.count("image from")),
        (0, 1)
    );
    assert_eq!(world.asked_here("export image"), 0);
    assert!(
        record.bytes_sent > 1000,
        "what went there, and what came from there"
    );
    let image = &record.plan.transfer.image;
    let there = world.destination.all();
    assert_eq!(there[0].spec.image.id, image.id);
}

#[tokio::test(start_paused = true)]
async fn two_that_share_an_image_fetch_it_once() {
    let world = group(&by(ImageStrategy::Layers), &["web", "worker"], |_| {});
    let record = world.run().await;
    assert_eq!(record.state, DepartureState::Complete, "{:?}", record.fault);
    assert_eq!(
        (world.link.count("image from"), world.link.count("image")),
        (1, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn each_of_several_has_its_own_way() {
    for from_registry in ["web", "worker"] {
        let options = MoveOptions {
            registry: Some("r:5000".into()),
            ..cold()
        };
        let world = group(&options, &["web", "worker"], |spec| {
            if spec.name == from_registry {
                spec.image = memory::image("own:1", 2);
                spec.image.repo_digests = vec![format!("r:5000/own@sha256:{}", "0".repeat(64))];
            }
        });
        let members = world.plan.members();
        let ways: Vec<_> = members
            .iter()
            .map(|m| m.image_way.as_ref().unwrap().strategy)
            .collect();
        let mut expected = [ImageStrategy::Stream, ImageStrategy::Registry];
        if from_registry == "web" {
            expected.reverse();
        }
        assert_eq!(ways, expected);
        let record = world.run().await;
        assert_eq!(record.state, DepartureState::Complete, "{:?}", record.fault);
        assert_eq!(
            (world.link.count("image from"), world.link.count("image")),
            (1, 1),
            "{from_registry}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_way_that_nobody_asked_for_may_turn_out_to_be_none() {
    for (registry, how, streams) in [
        ("r:5000", None, 0),
        ("gone:5000", None, 1),
        (
            "r:5000",
            Some(How::Says("registry.denied", FaultKind::Environment)),
            1,
        ),
        (
            "r:5000",
            Some(How::Says("oci.no-space", FaultKind::Environment)),
            1,
        ),
    ] {
        let options = MoveOptions {
            registry: Some(registry.into()),
            ..cold()
        };
        let world = world(&options, |spec| {
            let digest = "0".repeat(64);
            spec.image.repo_digests = vec![format!("{registry}/app@sha256:{digest}")];
        });
        assert_eq!(world.plan.image_way.strategy, ImageStrategy::Registry);
        if let Some(how) = how {
            world.link.on("image from", 0..1, how);
        }
        let record = world.run().await;
        assert_eq!(record.state, DepartureState::Complete, "{:?}", record.fault);
        assert_eq!(world.link.count("image"), streams, "{registry} {how:?}");
        assert_eq!(world.told.warnings("from here"), streams);
    }
    // What was asked for by name is not replaced by something else.
    let world = world(&by(ImageStrategy::Registry), |_| {});
    world.link.on(
        "image from",
        0..1,
        How::Says("registry.denied", FaultKind::Environment),
    );
    let record = world.run().await;
    assert_eq!(code(&record), "registry.denied");
    // Which of the two was refused there is not known otherwise.
    let node = record.fault.and_then(|fault| fault.node);
    assert_eq!(node.as_ref(), Some(&world.plan.destination));
}

#[tokio::test]
async fn a_registry_that_the_plan_does_not_name_is_not_asked() {
    use tranship_migrate::Arrival;
    use tranship_migrate::images::ImageOrigin;

    for (registry, code) in [("r:5000", ""), ("else:5000", "request.invalid")] {
        let world = world(&by(ImageStrategy::Registry), |_| {});
        let kept = std::sync::Arc::new(harness::Kept::default());
        let arrival = Arrival::new(harness::ports(&world.destination), kept, world.plan.clone(), 0);
        arrival.open().await.unwrap();
        let origin = ImageOrigin::Registry {
            address: registry.into(),
            repository: "tranship".into(),
            manifest: world.plan.transfer.image.id.clone(),
        };
        let came = arrival.image_from(0, &origin).await;
        assert_eq!(came.err().map_or(String::new(), |f| f.code), code);
    }
}

#[tokio::test]
async fn what_came_stays_here_if_the_engine_is_to_blame() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tranship_migrate::images::ImageOrigin;
    use tranship_migrate::{Arrival, Ports};
    use tranship_testkit::memory::Failure;

    // Nothing, a refusal, and an answer that never came.
    for (failure, code, goes) in [
        (None, "", 1),
        (Some(Failure::Before), "engine.failed", 1),
        (Some(Failure::After), "engine.uncertain", 0),
    ] {
        let mut calls = None;
        // The first run tells which call it is.
        for failure in [None, failure] {
            let world = world(&by(ImageStrategy::Registry), |_| {});
            if let (Some(failure), Some(call)) = (failure, calls) {
                world.destination.fail(&[(call, failure)]);
            }
            let removed = Arc::new(AtomicUsize::new(0));
            let images = harness::images::Carried {
                engine: Arc::clone(&world.destination),
                removed: Arc::clone(&removed),
                rooms: Arc::default(),
            };
            let ports = Ports {
                images: Arc::new(images),
                ..harness::ports(&world.destination)
            };
            let kept = Arc::new(harness::Kept::default());
            let arrival = Arrival::new(ports, kept, world.plan.clone(), 0);
            arrival.open().await.unwrap();
            let origin = ImageOrigin::Registry {
                address: "r:5000".into(),
                repository: "tranship".into(),
                manifest: world.plan.transfer.image.id.clone(),
            };
            let came = arrival.image_from(0, &origin).await;
            if calls.is_none() {
                let names = world.destination.calls();
                calls = names.iter().position(|name| *name == "import image");
                continue;
            }
            assert_eq!(came.err().map_or(String::new(), |f| f.code), code);
            assert_eq!(removed.load(Ordering::Relaxed), goes, "{code}");
        }
    }
}

#[tokio::test]
async fn what_is_kept_of_layers_makes_way_for_an_image_in_any_way() {
    use std::sync::Arc;
    use tranship_core::Engine as _;
    use tranship_migrate::images::{ImageOrigin, ROOM};
    use tranship_migrate::{Arrival, Ports};

    for (by_archive, bytes, room) in [
        (true, Some(1000), 2000),
        (true, None, ROOM),
        (false, Some(1000), 2000),
    ] {
        let mut world = world(&by(ImageStrategy::Registry), |_| {});
        world.plan.transfer.bytes = bytes;
        let images = harness::images::Carried::by(&world.destination);
        let rooms = Arc::clone(&images.rooms);
        let ports = Ports {
            images: Arc::new(images),
            ..harness::ports(&world.destination)
        };
        let kept = Arc::new(harness::Kept::default());
        let arrival = Arrival::new(ports, kept, world.plan.clone(), 0);
        arrival.open().await.unwrap();
        let image = &world.plan.transfer.image;
        if by_archive {
            let archive = world.source.export_image(image, None, 0).await.unwrap();
            arrival.image(0, Some(archive.stream)).await.unwrap();
        } else {
            let origin = ImageOrigin::Registry {
                address: "r:5000".into(),
                repository: "tranship".into(),
                manifest: image.id.clone(),
            };
            arrival.image_from(0, &origin).await.unwrap();
        }
        assert_eq!(*rooms.lock().unwrap(), [(room, false)]);
    }
}
