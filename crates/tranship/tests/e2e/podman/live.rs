//! Processes of Podman's containers go on at another host where they were.

use super::options;
use crate::live::failures::harmed_with;
use crate::live::redis::nothing_is_missing;
use crate::live::{nothing_dumped, numbers, without_gap};
use crate::world::{finish, inspect, is_running, wait_until};

#[test]
fn a_counter_counts_on_without_a_gap() {
    let world = world!(options());
    world.count(&[
        "--memory",
        "64m",
        "--health-cmd",
        "true",
        "--health-interval",
        "1s",
    ]);
    let report = world.live("a", "b", &[]);
    let before = numbers(&world.a);
    wait_until(|| numbers(&world.b).len() > 10);
    let after = numbers(&world.b);
    without_gap(&before);
    without_gap(&after);
    assert_eq!(before.last().unwrap() + 1, after[0], "it went on where it was");
    println!("downtime {} ms", report["downtime_ms"]);

    // Podman keeps its books as for any container.
    assert!(!is_running(&world.a, "web"));
    assert_eq!(
        inspect(&world.b, "web", "{{.HostConfig.RestartPolicy.Name}}"),
        "always"
    );
    assert_eq!(inspect(&world.b, "web", "{{.HostConfig.Memory}}"), "67108864");
    let client = |args: &[&str]| {
        let mut all = vec!["podman"];
        all.extend(args);
        world.b.exec_ok(&all).unwrap()
    };
    assert_eq!(client(&["exec", "web", "echo", "hello"]).trim(), "hello");
    client(&["healthcheck", "run", "web"]);
    assert_eq!(inspect(&world.b, "web", "{{.State.Health.Status}}"), "healthy");
    let count = numbers(&world.b).len();
    client(&["pause", "web"]);
    client(&["unpause", "web"]);
    wait_until(|| numbers(&world.b).len() > count + 5);

    // And back, from memory again.
    world.live("b", "a", &["--replace"]);
    let there = numbers(&world.b);
    wait_until(|| numbers(&world.a).len() > 10);
    assert_eq!(there.last().unwrap() + 1, numbers(&world.a)[0]);

    // What ends by itself is started again, as it would have been at the source.
    world
        .a
        .sh("kill -9 $(podman inspect --format '{{.State.Pid}}' web)")
        .unwrap();
    let starts = || numbers(&world.a).iter().filter(|number| **number == 1).count();
    wait_until(|| starts() == 1 && is_running(&world.a, "web"));
    wait_until(|| numbers(&world.a).last() > Some(&20));

    world.a.exec_ok(["podman", "stop", "-t", "1", "web"]).unwrap();
    assert!(!is_running(&world.a, "web"));
    world.a.exec_ok(["podman", "start", "web"]).unwrap();
    wait_until(|| numbers(&world.a).last() < Some(&20));
    nothing_dumped(&world.a);
    nothing_dumped(&world.b);
}

#[test]
fn an_open_file_in_a_volume_and_a_fixed_address_come_along() {
    let world = world!(options());
    let image = world.a.load_image("python").unwrap();
    let count = "exec 3>>/data/log; i=0; while :; do i=$((i+1)); echo $i; echo $i >&3; sleep 0.05; done";
    world
        .a
        .sh(&format!(
            "podman network create --subnet 10.66.0.0/24 net1
             podman run -d --name web --network net1:ip=10.66.0.9 -v data:/data -v /anon {image} sh -c '{count}'"
        ))
        .unwrap();
    wait_until(|| numbers(&world.a).len() > 10);
    world.live("a", "b", &[]);
    wait_until(|| numbers(&world.b).len() > 10);
    let log = world
        .b
        .exec_ok(["podman", "exec", "web", "cat", "/data/log"])
        .unwrap();
    let written: Vec<u64> = log.lines().map(|line| line.parse().unwrap()).collect();
    without_gap(&written);
    assert_eq!(written[0], 1, "what was written before the move");
    let address = "{{(index .NetworkSettings.Networks \"net1\").IPAddress}}";
    assert_eq!(inspect(&world.b, "web", address), "10.66.0.9");
    world
        .b
        .sh("podman exec web grep -q 10.66.0.9 /proc/net/fib_trie")
        .unwrap();
}

#[test]
fn no_write_that_redis_acknowledged_is_missing() {
    nothing_is_missing(options());
}

#[test]
fn a_restore_that_fails_there_lets_the_source_go_on() {
    harmed_with(
        options(),
        "rm /dev/shm/tranship-memory/*/images/core-1.img",
        "missing image",
    );
}

#[test]
fn a_list_of_files_that_is_none_lets_the_source_go_on() {
    harmed_with(
        options(),
        "for f in /dev/shm/tranship-memory/*/images/files.img; do echo nothing > $f; done",
        "no list of open files",
    );
}

/// Waits until CRIU restores, and kills Podman's service then.
const KILL_AS_IT_RESTORES: &str = "for i in $(seq 3000); do \
    if pgrep -f 'conmon .*--restore' > /dev/null && pgrep -x criu > /dev/null; then sleep 0.2; testbed-engine kill; echo killed; exit; fi; \
    sleep 0.01; done";

#[test]
fn a_service_that_is_killed_as_it_restores_leaves_one_instance() {
    let world = world!(options());
    let image = world.a.load_image("python").unwrap();
    // Large enough for the restore to take a while.
    let program = "import os, time\nheld = os.urandom(600 << 20)\nnumber = 0\nwhile True: number += 1; print(number, flush=True); time.sleep(0.05)";
    let run = [
        "podman",
        "run",
        "-d",
        "--name",
        "web",
        "--restart",
        "always",
        &image,
        "python3",
        "-c",
        program,
    ];
    world.a.exec_ok(run).unwrap();
    wait_until(|| numbers(&world.a).len() > 10);
    let child = world.begin_held(&world.b, "destination.committed", &["--mode", "live"]);
    world.arm(&world.b, "");
    assert_eq!(world.b.sh(KILL_AS_IT_RESTORES).unwrap().trim(), "killed");
    let processes = || {
        let all = world.b.sh("pgrep -xc python3 || true").unwrap();
        all.trim().to_owned()
    };
    // The restore goes on without it.
    wait_until(|| processes() == "1" && world.b.sh("ls /run/crun/*/status").is_ok());
    world.b.restart_engine().unwrap();
    // Whether it was back in time or not: what runs there has ended before the source goes on.
    let outcome = finish(child);
    assert!([4, 5].contains(&outcome.code), "{}", outcome.stderr);
    wait_until(|| is_running(&world.a, "web"));
    assert_eq!(processes(), "0");
    assert_eq!(world.b.sh("podman ps -aq").unwrap().trim(), "");
    let count = numbers(&world.a).len();
    wait_until(|| numbers(&world.a).len() > count + 10);
    without_gap(&numbers(&world.a));
    nothing_dumped(&world.a);
    nothing_dumped(&world.b);
}
