//! Containers that write their worst while they are copied: what arrives is what the source was when it stood still.

use std::io::Read as _;

use tranship_testkit::testbed::NodeProcess;

use super::{assert_none, compare, long, volume};
use crate::world::World;

const WRITERS: &str = include_str!("scripts/writers.py");
const KINDS: [&str; 9] = [
    "tick",
    "stamps",
    "renames",
    "logs",
    "truncations",
    "memory",
    "kinds",
    "deletions",
    "attributes",
];

/// Starts writers in `web` at `a`; they end with the container.
fn write(world: &World, kinds: &[&str], directory: &str) -> Vec<NodeProcess> {
    let start = |kind: &&str| {
        let command = ["docker", "exec", "web", "python3", "-c", WRITERS, directory, kind];
        let mut process = world.a.spawn(command).unwrap();
        let mut said = [0u8; 7];
        process.stdout().unwrap().read_exact(&mut said).unwrap();
        assert_eq!(&said, b"writing", "{kind}");
        process
    };
    kinds.iter().map(start).collect()
}

/// Moves while they write and compares with what the source was when it stood still: it was not started again since.
fn move_and_compare(world: &World, image: &str, options: &[&str], what: &str) {
    let view = world.migrate(&[options, &["--json"]].concat()).expect(0).json();
    assert_none(&world.differences(&volume("data"), &volume("data")), what);
    let (here, there) = (
        world.listing(&world.a, image, "data"),
        world.listing(&world.b, image, "data"),
    );
    assert!(!here.is_empty());
    assert_none(&compare(&here, &there), what);
    let rounds = view[0]["rounds"].as_array().unwrap();
    assert!(
        rounds.len() >= 2,
        "{what}: nothing was copied while they wrote: {rounds:?}"
    );
    world
        .b
        .sh("docker rm -f web && docker volume rm data && rm -rf /var/lib/docker/tranship")
        .unwrap();
    world
        .a
        .sh("docker start web && rm -r /var/lib/docker/volumes/data/_data/*")
        .unwrap();
}

#[test]
fn what_arrives_is_what_the_source_was_when_it_stood_still() {
    let world = world!();
    let image = world.hold(&["-v", "data:/data"], &["sleep", "infinity"]);
    // More than a look at a directory takes, so that writers are met in the middle of it.
    let ballast = "mkdir -p /data/ballast; i=0; while [ $i -lt 2000 ]; do echo $i > /data/ballast/$i; i=$((i + 1)); done";
    for mode in ["cold", "warm"] {
        world.inside(&world.a, ballast);
        let writers = write(&world, &KINDS, "/data");
        move_and_compare(&world, &image, &["--mode", mode, "--rounds", "4"], mode);
        drop(writers);
    }
    if long() {
        for turn in 0..5 {
            for mode in ["cold", "warm"] {
                let writers = write(&world, &KINDS, "/data");
                move_and_compare(
                    &world,
                    &image,
                    &["--mode", mode, "--rounds", "5"],
                    &format!("{mode} {turn}"),
                );
                drop(writers);
            }
        }
    }
}

#[test]
fn each_writer_alone_is_followed_to_the_last_write() {
    let world = world!();
    let image = world.hold(&["-v", "data:/data"], &["sleep", "infinity"]);
    for kind in KINDS {
        let writers = write(&world, &[kind], "/data");
        std::thread::sleep(std::time::Duration::from_millis(300));
        move_and_compare(&world, &image, &["--mode", "warm", "--rounds", "3"], kind);
        drop(writers);
    }
}

#[test]
fn a_layer_that_is_written_to_is_followed_as_well() {
    let world = world!();
    world.hold(&[], &["sleep", "infinity"]);
    let listing = include_str!("scripts/listing.py");
    let writers = write(
        &world,
        &["renames", "kinds", "deletions", "memory", "tick"],
        "/srv",
    );
    world.migrate(&["--mode", "warm", "--rounds", "3"]).expect(0);
    let after = world.python(&world.b, &["--privileged"], listing, &["/srv"]);
    // Started again only to look: nothing writes any more.
    world.a.sh("docker start web").unwrap();
    let before = world.python(&world.a, &["--privileged"], listing, &["/srv"]);
    let lines = |text: &str| text.lines().map(ToOwned::to_owned).collect::<Vec<_>>();
    assert!(lines(&before).len() > 100);
    assert_none(&compare(&lines(&before), &lines(&after)), "the layer");
    drop(writers);
}
