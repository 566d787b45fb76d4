//! Containers that move between two hosts with Podman, as root.

mod checkpoint;
mod live;
mod refusals;

use std::net::TcpStream;

use tranship_testkit::testbed::{Engine, Node, Options};

use crate::world::{World, inspect, is_running, serves, wait_until};

pub(crate) fn options() -> Options {
    Options {
        engine: Engine::Podman,
        ..Options::default()
    }
}

/// A container with something of everything that Podman can be asked for and that moves.
fn run_rich(world: &World) {
    let image = world.a.load_image("busybox").unwrap();
    world
        .a
        .sh(&format!(
            "set -e
            podman network create --subnet 10.66.0.0/24 --label n=1 net1
            podman network create --disable-dns net2
            podman volume create --label a=b data
            podman run -d --name web --restart always -p 8080:8080 --network net1:ip=10.66.0.9,alias=foo --network net2 \
              -v data:/data -v /anon -e A='b c' -l x=y --user 7:8 --group-add 9 --cap-add SYS_TIME --cap-drop KILL \
              --memory 64m --cpus 0.5 --ulimit nofile=1000:2000 --pids-limit 77 --health-cmd 'test -e /data/f' --health-interval 1s \
              --add-host h:1.2.3.4 --dns 9.9.9.9 --hostname hh --sysctl net.core.somaxconn=100 --tmpfs /t:size=1m \
              --stop-timeout 3 --stop-signal KILL --init=false --security-opt no-new-privileges --shm-size 1m --umask 0027 \
              --annotation own=1 --workdir /www {image}
            podman exec -u 0 web sh -c 'echo hi > /data/f; ln /data/f /data/g; chown 7:8 /data /data/f; chmod 1750 /data
              mkdir /anon/d; echo anon > /anon/d/f; chown -R 7:8 /anon; echo layer > /www/written; rm -f /www/index.html; chmod 700 /anon'"
        ))
        .unwrap();
    wait_until(|| inspect(&world.a, "web", "{{.State.Running}}") == "true");
}

/// What is to be equal at both ends, by Podman's own words and those of the container.
fn described(node: &Node) -> String {
    let format = "{{.Image}} {{.ImageName}} {{.Config.Labels}} {{.Config.Cmd}} {{.Config.User}} {{.Config.Hostname}} {{.Config.StopSignal}} \
        {{.Config.StopTimeout}} {{.Config.Umask}} {{.Config.WorkingDir}} {{.Config.Healthcheck}} {{.EffectiveCaps}} {{.BoundingCaps}} \
        {{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}} {{.HostConfig.Ulimits}} {{.HostConfig.ExtraHosts}} \
        {{.HostConfig.Dns}} {{.HostConfig.Tmpfs}} {{.HostConfig.ShmSize}} {{.HostConfig.SecurityOpt}} {{.HostConfig.PortBindings}} \
        {{.HostConfig.RestartPolicy}} {{.HostConfig.GroupAdd}} {{(index .NetworkSettings.Networks \"net1\").IPAddress}} \
        {{.HostConfig.IpcMode}} {{.Config.Annotations}} {{.Config.CreateCommand}}";
    let inside = "sort /proc/self/status | grep -E '^(Cap|NoNew|Groups|Uid|Gid|Umask)'; env | sort; ulimit -n; hostname; \
        cat /proc/sys/net/core/somaxconn; ip -o addr show | grep -c 10.66.0.9; grep -c 1.2.3.4 /etc/hosts; df -k /t | grep -o 1024; pwd";
    let inside = node
        .exec_ok(["podman", "exec", "web", "sh", "-c", inside])
        .unwrap();
    let networks = node
        .sh("podman network inspect net1 net2 | grep -E '\"(name|subnet|gateway|dns_enabled|internal|n)\"' | grep -v web
             podman volume inspect data --format '{{.Labels}} {{.Driver}} {{.Options}}'")
        .unwrap();
    format!("{}\n{inside}\n{networks}", inspect(node, "web", format))
}

/// Names, kinds, owners, modes, links, times and content of what the container has in its volumes.
fn data(node: &Node) -> String {
    let listing = node
        .sh("m=$(podman inspect --format '{{range .Mounts}}{{.Destination}}={{.Source}} {{end}}' web)
             for mount in $(echo $m | tr ' ' '\n' | sort); do echo ${mount%%=*}; cd ${mount#*=}; find . -printf '%P %y %U:%G %m %n %T@ %s\n' | sort; find . -type f | sort | xargs cat; done")
        .unwrap();
    assert!(
        listing.contains("/data") && listing.contains("/anon") && listing.contains("anon\n"),
        "{listing}"
    );
    listing
}

/// Line by line, so that a difference can be seen.
#[track_caller]
fn same(there: &str, here: &str) {
    for (there, here) in there.lines().zip(here.lines()) {
        assert_eq!(there, here);
    }
    assert_eq!(there.lines().count(), here.lines().count());
}

fn moves_whole(mode: &str) {
    let world = world!(options());
    run_rich(&world);
    let outcome = world.run(&[
        "plan",
        "web",
        "--from",
        "ssh://root@a",
        "--to",
        "ssh://root@b",
        "--mode",
        mode,
    ]);
    println!("{}", outcome.expect(0).stdout);
    let (before, files) = (described(&world.a), data(&world.a));
    world.migrate(&["--mode", mode]).expect(0);
    assert!(!is_running(&world.a, "web") && is_running(&world.b, "web"));
    same(&described(&world.b), &before);
    assert_eq!(data(&world.b), files);
    let written = world
        .b
        .exec_ok([
            "podman",
            "exec",
            "-u",
            "0",
            "web",
            "sh",
            "-c",
            "cat /www/written; ls /www",
        ])
        .unwrap();
    assert_eq!(
        written, "layer\nwritten\n",
        "what was written and what was removed"
    );
    wait_until(|| TcpStream::connect((world.b.address(), 8080)).is_ok());
    assert_eq!(inspect(&world.b, "web", "{{.State.Health.Status}}"), "healthy");
    assert_eq!(
        inspect(&world.a, "web", "{{.HostConfig.RestartPolicy.Name}}"),
        "no",
        "parked"
    );

    // And back, where its image and networks are.
    world.a.exec_ok(["podman", "rm", "-v", "web"]).unwrap();
    world.a.exec_ok(["podman", "volume", "rm", "data"]).unwrap();
    world
        .migrate_between("b", "a", &["--mode", mode, "--on-source", "remove"])
        .expect(0);
    same(&described(&world.a), &before);
    assert_eq!(data(&world.a), files);
    assert!(
        !world
            .b
            .sh("podman ps -a --format '{{.Names}}'")
            .unwrap()
            .contains("web")
    );
}

#[test]
fn everything_of_a_container_moves_cold_to_and_fro() {
    moves_whole("cold");
}

#[test]
fn everything_of_a_container_moves_warm_to_and_fro() {
    moves_whole("warm");
}

#[test]
fn a_service_without_state_moves_without_a_break() {
    let world = world!(options());
    world.serve(&[]);
    let image = inspect(&world.a, "web", "{{.Image}}");
    world.migrate(&["--mode", "stateless"]).expect(0);
    assert!(serves(world.b.address(), 8080));
    assert!(!is_running(&world.a, "web"));
    assert_eq!(inspect(&world.b, "web", "{{.Image}}"), image);
    assert_eq!(
        inspect(&world.b, "web", "{{.HostConfig.RestartPolicy.Name}}"),
        "always"
    );
    world
        .migrate_between("b", "a", &["--mode", "stateless", "--replace"])
        .expect(0);
    assert!(serves(world.a.address(), 8080));
}

/// An image with a manifest of OCI's, as Podman builds them, keeps its id.
#[test]
fn an_image_that_podman_built_keeps_its_id() {
    let world = world!(options());
    let base = world.a.load_image("busybox").unwrap();
    world
        .a
        .sh(&format!(
            "printf 'FROM {base}\\nCOPY f /f\\nVOLUME /v\\nLABEL l=m\\n' > /tmp/Containerfile; echo built > /tmp/f
             podman build -q --isolation chroot -t localhost/own:1 -f /tmp/Containerfile /tmp
             podman run -d --name web --restart always localhost/own:1"
        ))
        .unwrap();
    world.a.sh("podman exec web sh -c 'echo kept > /v/f'").unwrap();
    let image = inspect(&world.a, "web", "{{.Image}} {{.ImageName}}");
    world.migrate(&["--mode", "cold"]).expect(0);
    assert_eq!(inspect(&world.b, "web", "{{.Image}} {{.ImageName}}"), image);
    let kept = world
        .b
        .exec_ok(["podman", "exec", "web", "sh", "-c", "cat /v/f /f"])
        .unwrap();
    assert_eq!(kept, "kept\nbuilt\n");
}

/// What does not prove itself there goes on here, and nothing of it stays there.
#[test]
fn what_is_not_healthy_there_goes_back() {
    let world = world!(options());
    world.serve(&[
        "--network",
        "bridge",
        "-v",
        "data:/data",
        "--health-cmd",
        "test $(hostname -i) != none && ! test -e /data/bad",
        "--health-interval",
        "1s",
        "--health-retries",
        "1",
    ]);
    let before = world.inventories();
    let mode = [
        "--mode",
        "cold",
        "--hook-post-freeze",
        "touch $(podman volume inspect data --format '{{.Mountpoint}}')/bad",
    ];
    let outcome = world.migrate(&mode);
    assert_eq!(outcome.code, 4, "{}\n{}", outcome.stdout, outcome.stderr);
    world
        .a
        .sh("rm -f $(podman volume inspect data --format '{{.Mountpoint}}')/bad")
        .unwrap();
    wait_until(|| is_running(&world.a, "web"));
    assert!(serves(world.a.address(), 8080));
    let (a, b) = world.inventories();
    assert_eq!((a, b), before);
}
