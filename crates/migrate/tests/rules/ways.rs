//! Which way an image goes, and why.

use tranship_migrate::ImageStrategy::{self, Auto, Layers, Registry, Simple, Stream};

use super::*;

/// The way that is chosen after a change, with its reason.
#[track_caller]
fn chosen(change: impl FnOnce(&mut Sides), expected: ImageStrategy, reason: &str) {
    let mut sides = sides();
    change(&mut sides);
    let plan = sides.plan();
    let way = &plan.image_way;
    assert_eq!(way.strategy, expected, "{way:?}");
    assert!(way.reason.contains(reason), "{way:?}");
    assert_eq!(codes(&plan, Severity::Conflict), [""; 0]);
}

fn large(sides: &mut Sides) {
    sides.report.archive_bytes = vec![9 << 30, 8 << 30, 1 << 30, 10];
    sides.survey.node.free_bytes = Some(100 << 30);
}

fn from(registry: &str) -> impl FnOnce(&mut Sides) {
    let digest = format!("r:5000/app@sha256:{}", "0".repeat(64));
    let registry = registry.to_owned();
    move |s| {
        s.report.spec.image.repo_digests = vec![digest];
        s.options.registry = Some(registry);
    }
}

#[test]
fn auto_takes_the_cheapest_and_says_why() {
    chosen(|_| {}, Stream, "3 of 3 layers");
    chosen(|s| s.survey.arrivals[0].layers_held = 2, Stream, "1 of 3 layers");
    chosen(
        |s| s.survey.arrivals[0].image_held = true,
        Stream,
        "there already",
    );
    chosen(|s| s.options.whole_image = true, Simple, "whole");
    chosen(large, Layers, "is kept if the link breaks");
    // Where only a little is missing, the length of the whole does not count.
    let little = |s: &mut Sides| {
        large(s);
        s.survey.arrivals[0].layers_held = 2;
    };
    chosen(little, Stream, "1 of 3 layers");
    for spoil in [
        (|s: &mut Sides| s.source.direct_layers = false) as fn(&mut Sides),
        |s| s.survey.node.engine.image_store = ImageStore::Containerd,
        |s| s.survey.node.free_bytes = Some(20 << 30),
    ] {
        let mut sides = sides();
        large(&mut sides);
        spoil(&mut sides);
        assert_eq!(sides.plan().image_way.strategy, Stream);
    }
    // With containerd's store at both ends as well, as long as both agents can ask it.
    let containerd = |s: &mut Sides| {
        large(s);
        for engine in [&mut s.source.engine, &mut s.survey.node.engine] {
            engine.image_store = ImageStore::Containerd;
            engine.containerd_seen = true;
        }
        s.source.direct_layers = false;
    };
    chosen(containerd, Layers, "is kept if the link breaks");
    for spoil in [
        (|s: &mut Sides| s.source.engine.containerd_seen = false) as fn(&mut Sides),
        |s| s.survey.node.engine.containerd_seen = false,
    ] {
        let mut sides = sides();
        containerd(&mut sides);
        spoil(&mut sides);
        assert_eq!(sides.plan().image_way.strategy, Stream);
        sides.options.image_strategy = Layers;
        assert!(codes(&sides.plan(), Severity::Conflict).contains(&"image.strategy"));
    }
    // A registry that has the image spares the source; any other one would have to be filled first.
    chosen(from("r:5000"), Registry, "nothing is sent from the source");
    chosen(
        from("http://r:5000/team"),
        Registry,
        "nothing is sent from the source",
    );
    chosen(from("r"), Stream, "travel twice");
    chosen(from("other:5000"), Stream, "travel twice");
}

#[test]
fn what_was_asked_for_is_done_or_refused() {
    for strategy in [Simple, Stream, Layers, Registry] {
        let ask = |s: &mut Sides| {
            s.options.image_strategy = strategy;
            s.options.registry = Some("r:5000".into());
        };
        chosen(ask, strategy, "asked for");
        let mut sides = sides();
        ask(&mut sides);
        sides.survey.arrivals[0].layers_held = 2;
        assert_eq!(sides.plan().options.whole_image, strategy == Simple);
        let bytes = if strategy == Simple { 3000 } else { 1000 };
        assert_eq!(sides.plan().prediction.bytes, bytes);
    }
    assert_ne!(sides().plan().image_way.strategy, Auto);
    conflicts(|s| s.options.image_strategy = Registry, &["image.registry"]);
    // What came from a registry is for containerd what it was, as long as it can be asked what it lacks.
    let packed = |s: &mut Sides| {
        s.report.spec.image.repo_digests = vec![format!("r:5000/app@{}", s.report.spec.image.id)];
        s.options.registry = Some("r:5000".into());
        for engine in [&mut s.source.engine, &mut s.survey.node.engine] {
            engine.image_store = ImageStore::Containerd;
            engine.containerd_seen = true;
        }
    };
    chosen(packed, Registry, "nothing is sent from the source");
    for strategy in [Layers, Registry] {
        let asked = |s: &mut Sides| {
            packed(s);
            s.options.image_strategy = strategy;
        };
        chosen(asked, strategy, "asked for");
        let mut blind = sides();
        asked(&mut blind);
        blind.survey.node.engine.containerd_seen = false;
        assert!(codes(&blind.plan(), Severity::Conflict).contains(&"image.strategy"));
    }
    let blind = |s: &mut Sides| {
        packed(s);
        s.source.engine.containerd_seen = false;
    };
    chosen(blind, Stream, "travel twice");
    for strategy in [Layers, Registry] {
        for blind in [true, false] {
            let ask = |s: &mut Sides| {
                s.options.image_strategy = strategy;
                s.options.registry = Some("r:5000".into());
                match blind {
                    true => s.source.direct_layers = false,
                    false => s.survey.node.engine.image_store = ImageStore::Podman,
                }
            };
            let mut sides = sides();
            ask(&mut sides);
            let plan = sides.plan();
            assert!(codes(&plan, Severity::Conflict).contains(&"image.strategy"));
            // Nothing has to be read one by one of what a registry has already, or what is there.
            sides.survey.arrivals[0].image_held = true;
            let plan = sides.plan();
            assert!(!codes(&plan, Severity::Conflict).contains(&"image.strategy"));
        }
    }
}
