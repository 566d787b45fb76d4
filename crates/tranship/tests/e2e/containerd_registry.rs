//! `--image-strategy registry` between hosts whose Docker keeps its images with containerd, by way of a registry at either end.

use crate::containerd::{ALL, INDEX, ONE};
use crate::containerd_layers::{archive, made, push};
use crate::image_ways::{DockerRegistry, run_web, spooled, there_and_forgotten};
use crate::registry_containerd::SAID;
use crate::world::{World, inspect, is_running};

fn by(registry: &DockerRegistry) -> Vec<&str> {
    vec!["--image-strategy", "registry", "--registry", &registry.name]
}

fn begun(world: &World) -> [DockerRegistry; 2] {
    let both = [&world.a, &world.b].map(|node| DockerRegistry::begin(world, node));
    for node in [&world.a, &world.b] {
        both.iter().for_each(|registry| registry.log_in(node));
    }
    both
}

#[test]
fn images_go_through_a_registry_as_they_are_kept() {
    let Some(world) = made() else { return };
    let [at_a, at_b] = begun(&world);
    // What is pushed crosses the link, what is pulled does not; and the second time nothing is pushed.
    let came = there_and_forgotten(&world, "app:1", &by(&at_b));
    assert!(ALL.contains(&came), "{came}");
    let came = there_and_forgotten(&world, "app:1", &by(&at_b));
    assert!(came < 1_000_000, "{came}");
    let id = inspect(&world.a, "app:1", "{{.Id}}");
    let manifest = at_b.get(&world.a, &format!("tranship/manifests/{id}"));
    assert!(manifest.contains("\"layers\""), "{manifest}");
    // The other way round, without blobs that are there.
    push(&world, "app:base");
    let came = there_and_forgotten(&world, "app:1", &by(&at_a));
    assert!(ONE.contains(&came), "{came}");
    world.b.sh("docker rmi app:base").unwrap();

    // With what is said of it.
    world.a.sh(SAID).unwrap();
    world.a.sh("docker rm -f web").unwrap();
    run_web(&world.a, "said:1");
    let moved = [&["--mode", "cold"][..], &by(&at_b)].concat();
    world.migrate(&moved).expect(0);
    assert!(is_running(&world.b, "web"));
    assert_eq!(archive(&world.a, "said:1"), archive(&world.b, "said:1"));
    assert_eq!(spooled(&world.b), "");
    world.b.sh("docker rm -f web && docker rmi said:1").unwrap();

    // An index that is not all here would be refused there.
    world.a.sh(INDEX).unwrap();
    world.a.sh("docker rm -f web").unwrap();
    run_web(&world.a, "multi:1");
    let before = world.inventories();
    world
        .migrate(&moved)
        .expect(4)
        .saying(&["registry.partial", "--image-strategy layers"]);
    assert_eq!(world.inventories(), before);

    // What came from there is not pushed, and `auto` knows it.
    let tagged = format!("{}/team/app:1", at_a.name);
    let line =
        format!("export HOME=/root; docker tag app:1 {tagged} && docker push -q {tagged}; docker rm -f web");
    world.a.sh(&line).unwrap();
    run_web(&world.a, "app:1");
    let came = there_and_forgotten(&world, "app:1", &["--registry", &at_a.name]);
    assert!(ALL.contains(&came), "{came}");
    let plan = [
        "plan",
        "web",
        "--from",
        "ssh://root@a",
        "--to",
        "ssh://root@b",
        "--json",
        "--registry",
    ];
    let plan = world.run(&[&plan[..], &[&at_a.name]].concat()).expect(0).json();
    assert_eq!(plan[0]["image_way"]["strategy"], "registry", "{plan}");
}

#[test]
fn a_registry_that_gives_something_else_is_not_believed() {
    let Some(world) = made() else { return };
    let [_, at_b] = begun(&world);
    there_and_forgotten(&world, "app:1", &by(&at_b));
    let damage = "file=$(find /root/registry -name data -size +8000k | head -n 1) && \
        printf damaged: | dd of=$file bs=1 seek=4000000 conv=notrunc status=none";
    world.b.sh(damage).unwrap();
    let before = world.inventories();
    let options = [&["--mode", "cold"][..], &by(&at_b)].concat();
    world
        .migrate(&options)
        .expect(4)
        .saying(&["registry.digest", "rolled back"]);
    assert_eq!(world.inventories(), before);
    let id = inspect(&world.a, "web", "{{.Image}}");
    world.b.sh(&format!("! docker image inspect {id}")).unwrap();
    assert!(is_running(&world.a, "web"));
}
