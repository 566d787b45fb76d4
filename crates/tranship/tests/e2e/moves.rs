//! Moves that succeed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::world::{get, inspect, is_running, serves};

#[test]
fn a_stateless_service_moves_without_a_failed_request() {
    let world = world!();
    world.serve(&[]);
    let (a, b) = (world.a.address(), world.b.address());
    let id = inspect(&world.a, "web", "{{.Image}}");
    let stop = Arc::new(AtomicBool::new(false));
    let client = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let (mut answered, mut failed) = ([0u32; 2], 0);
            while !stop.load(Ordering::Relaxed) {
                if get(a, 8080) {
                    answered[0] += 1;
                } else if get(b, 8080) {
                    answered[1] += 1;
                } else {
                    failed += 1;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            (answered, failed)
        }
    });
    let outcome = world.migrate(&["--json"]).expect(0);
    std::thread::sleep(Duration::from_millis(300));
    stop.store(true, Ordering::Relaxed);
    let (answered, failed) = client.join().unwrap();
    assert_eq!(failed, 0, "answered: {answered:?}");
    assert!(answered[0] > 0 && answered[1] > 0, "{answered:?}");
    let view = &outcome.json()[0];
    assert_eq!(view["status"], "complete");
    assert_eq!(view["downtime_ms"], serde_json::Value::Null);

    assert_eq!(
        inspect(&world.b, "web", "{{.Image}}"),
        id,
        "the image id is the same"
    );
    assert_eq!(
        inspect(&world.b, "web", "{{.Config.Image}}"),
        inspect(&world.a, "web", "{{.Config.Image}}")
    );
    assert!(is_running(&world.b, "web") && !is_running(&world.a, "web"));
    assert_eq!(
        inspect(&world.b, "web", "{{.HostConfig.RestartPolicy.Name}}"),
        "always"
    );
    assert_eq!(
        inspect(&world.a, "web", "{{.HostConfig.RestartPolicy.Name}}"),
        "no",
        "a reboot must not start a second one"
    );
}

#[test]
fn cold_mode_never_runs_two_and_goes_there_and_back() {
    let world = world!();
    world.serve(&[]);
    let outcome = world.migrate(&["--mode", "cold", "--json"]).expect(0);
    assert!(outcome.json()[0]["downtime_ms"].is_u64(), "the downtime is shown");
    assert!(is_running(&world.b, "web") && !is_running(&world.a, "web"));
    // And back, over what was left at the source.
    let back = [
        "migrate",
        "web",
        "--from",
        "ssh://root@b",
        "--to",
        "ssh://root@a",
        "--mode",
        "cold",
        "--on-source",
        "remove",
    ];
    world.run(&back).expect(1).saying(&["name.taken", "--replace"]);
    let mut replace = back.to_vec();
    replace.push("--replace");
    world.run(&replace).expect(0);
    assert!(is_running(&world.a, "web"));
    assert!(
        world.b.exec(["docker", "inspect", "web"]).unwrap().status.code() != Some(0),
        "--on-source remove"
    );
    assert!(serves(world.a.address(), 8080));
    let left: Vec<String> = world
        .a
        .inventory()
        .unwrap()
        .into_iter()
        .filter(|l| l.contains("replaced"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn only_the_missing_layer_travels() {
    let world = world!();
    let image = world.a.load_image("web:2").unwrap();
    world.b.load_image("web:1").unwrap();
    world
        .a
        .exec_ok(["docker", "run", "-d", "--name", "web", &image])
        .unwrap();
    let id = inspect(&world.a, "web", "{{.Image}}");
    // The program is uploaded once, over the same link; that is not what is measured.
    world.run(&["doctor", "ssh://root@a", "ssh://root@b"]);
    let layer = {
        let plan = world.run(&[
            "plan",
            "web",
            "--from",
            "ssh://root@a",
            "--to",
            "ssh://root@b",
            "--mode",
            "stateless",
            "--json",
        ]);
        let plan = plan.expect(0).json();
        assert_eq!(
            plan[0]["transfer"]["skip_layers"].as_u64().unwrap() + 1,
            plan[0]["create"]["spec"]["image"]["layers"]
                .as_array()
                .unwrap()
                .len() as u64
        );
        plan[0]["prediction"]["bytes"].as_u64().unwrap()
    };
    assert!(
        layer > 4_000_000,
        "the layer has {layer} bytes, too few to measure by"
    );
    let before = world.b.link_bytes().unwrap();
    let outcome = world.migrate(&["--mode", "stateless", "--json"]).expect(0);
    let after = world.b.link_bytes().unwrap();
    let received = after.received - before.received;
    // The headers of packets count as well: up to a twentieth where they come one by one, as on a busy machine.
    assert!(
        received <= layer + layer / 10,
        "{received} bytes reached the destination for a layer of {layer}"
    );
    assert_eq!(
        outcome.json()[0]["bytes_sent"].as_u64().unwrap(),
        layer,
        "the plan's bytes were exact"
    );
    assert_eq!(inspect(&world.b, "web", "{{.Image}}"), id);
    assert_eq!(
        world
            .b
            .exec_ok([
                "docker",
                "image",
                "inspect",
                "--format",
                "{{json .RootFS}}",
                &image
            ])
            .unwrap(),
        world
            .a
            .exec_ok([
                "docker",
                "image",
                "inspect",
                "--format",
                "{{json .RootFS}}",
                &image
            ])
            .unwrap(),
    );
}

#[test]
fn several_containers_share_a_network_and_an_image() {
    let world = world!();
    world.serve(&[]);
    world
        .a
        .exec_ok([
            "docker",
            "network",
            "create",
            "--subnet",
            "10.66.0.0/24",
            "--label",
            "k=v",
            "back",
        ])
        .unwrap();
    world
        .a
        .exec_ok([
            "docker",
            "network",
            "connect",
            "--ip",
            "10.66.0.10",
            "--alias",
            "www",
            "back",
            "web",
        ])
        .unwrap();
    let image = inspect(&world.a, "web", "{{.Config.Image}}");
    world
        .a
        .exec_ok([
            "docker",
            "run",
            "-d",
            "--name",
            "second",
            "--network",
            "back",
            &image,
        ])
        .unwrap();
    let args = [
        "migrate",
        "web",
        "second",
        "--from",
        "ssh://root@a",
        "--to",
        "ssh://root@b",
        "--json",
    ];
    let outcome = world.run(&args).expect(0);
    let views = outcome.json();
    assert_eq!(views.as_array().unwrap().len(), 2);
    assert_eq!(views[1]["bytes_sent"], 0, "the image is there already");
    assert_eq!(
        inspect(
            &world.b,
            "web",
            "{{(index .NetworkSettings.Networks \"back\").IPAddress}}"
        ),
        "10.66.0.10"
    );
    assert_eq!(
        world
            .b
            .exec_ok([
                "docker",
                "exec",
                "second",
                "wget",
                "-qO",
                "/dev/null",
                "http://www:8080/"
            ])
            .unwrap(),
        ""
    );
    let label = world
        .b
        .exec_ok([
            "docker",
            "network",
            "inspect",
            "--format",
            "{{index .Labels \"k\"}}",
            "back",
        ])
        .unwrap();
    assert_eq!(label.trim(), "v");
}

#[test]
fn a_container_made_with_rm_moves_without_a_gap_or_not_at_all() {
    let world = world!();
    let image = world.a.load_image("busybox").unwrap();
    world
        .a
        .exec_ok([
            "docker",
            "run",
            "-d",
            "--rm",
            "--name",
            "web",
            "-p",
            "8080:8080",
            &image,
        ])
        .unwrap();
    world
        .migrate(&["--mode", "cold"])
        .expect(1)
        .saying(&["container.auto-remove"]);
    world.migrate(&[]).expect(0);
    assert!(is_running(&world.b, "web"));
    assert_eq!(inspect(&world.b, "web", "{{.HostConfig.AutoRemove}}"), "true");
    crate::world::wait_until(|| world.a.inventory().unwrap().iter().all(|l| !l.contains("web ")));
}

#[test]
fn keep_rename_and_publish_make_a_second_instance_elsewhere() {
    let world = world!();
    world.serve(&[]);
    world
        .migrate(&[
            "--mode",
            "stateless",
            "--on-source",
            "keep",
            "--rename",
            "twin",
            "--publish",
            "8080=9090",
        ])
        .expect(0);
    assert!(serves(world.a.address(), 8080) && serves(world.b.address(), 9090));
    assert!(is_running(&world.b, "twin"));
    world
        .migrate(&["--mode", "cold", "--on-source", "keep"])
        .expect(2)
        .saying(&["usage.keep"]);
}
