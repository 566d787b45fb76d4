//! What Podman has and a move cannot carry yet is said by the plan, before anything is touched.

use super::options;
use crate::world::World;

/// The conflicts of a plan for `web`, made of one command at `a`.
fn conflicts(world: &World, make: &str, mode: &str) -> Vec<String> {
    world.a.sh("podman rm -f -t 0 -a; podman pod rm -f -a").unwrap();
    world.a.sh(make).unwrap();
    let found = world.findings("web", &["--mode", mode]);
    found
        .into_iter()
        .filter(|(_, severity)| severity == "conflict")
        .map(|(code, _)| code)
        .collect()
}

#[test]
fn what_cannot_be_made_again_is_refused_by_the_plan() {
    let world = world!(options());
    let image = world.a.load_image("busybox").unwrap();
    world.a.sh("echo s | podman secret create key -").unwrap();
    let refused = |make: &str, code: &str| {
        let found = conflicts(&world, &make.replace("IMAGE", &image), "cold");
        assert!(found.iter().any(|c| c == code), "{make}: {found:?}");
    };
    refused(
        "podman pod create --name p --infra=true --infra-image IMAGE --infra-command 'sleep 1000' || podman pod create --name p --infra=false; podman run -d --pod p --name web IMAGE",
        "podman.pod",
    );
    refused(
        "podman run -d --name other IMAGE; podman run -d --name web --network container:other IMAGE",
        "namespace.shared",
    );
    refused(
        "podman run -d --name other IMAGE; podman run -d --name web --requires other IMAGE",
        "podman.requires",
    );
    refused("podman run -d --name web --secret key IMAGE", "podman.secrets");
    refused(
        "podman run -d --name web --secret key,type=env IMAGE",
        "podman.unseen",
    );
    refused(
        "podman run -d --name web --systemd=always IMAGE",
        "podman.systemd",
    );
    refused(
        "mkdir -p /srv/o; podman run -d --name web -v /srv/o:/o:O IMAGE",
        "podman.mount",
    );
    refused(
        "podman run -d --name web --log-opt max-size=1m IMAGE",
        "podman.log",
    );
    let nothing = conflicts(&world, &format!("podman run -d --name web {image}"), "cold");
    assert_eq!(nothing, Vec::<String>::new());
}

#[test]
fn memory_that_cannot_be_carried_is_refused_by_the_plan() {
    let world = world!(options());
    let image = world.a.load_image("busybox").unwrap();
    let refused = |make: &str, code: &str| {
        let found = conflicts(&world, &make.replace("IMAGE", &image), "live");
        assert!(found.iter().any(|c| c == code), "{make}: {found:?}");
    };
    refused(
        "podman run -d --name web IMAGE && podman exec web sh -c 'echo x > /dev/shm/f'",
        "live.shared-memory",
    );
    refused("podman run -d -t --name web IMAGE", "live.terminal");
    refused("podman run -d --name web --pid host IMAGE", "live.namespace");
    let nothing = conflicts(&world, &format!("podman run -d --name web {image}"), "live");
    assert_eq!(nothing, Vec::<String>::new());
    world.b.sh("mv $(command -v criu) /tmp/criu.away").unwrap();
    let without = conflicts(&world, &format!("podman run -d --name web {image}"), "live");
    world.b.sh("mv /tmp/criu.away /usr/sbin/criu").unwrap();
    assert!(without.iter().any(|c| c == "live.criu"), "{without:?}");
}
