//! Everything that a container was made with is the same after a move.

use serde_json::Value;
use tranship_testkit::testbed::Node;

fn document(node: &Node, container: &str) -> Value {
    let text = node.exec_ok(["docker", "inspect", container]).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()[0].clone()
}

/// What two containers on two hosts can't share: ids, times, paths of the host, and what is handed out at run time.
const DIFFERENT: &[&str] = &[
    "/Id",
    "/Created",
    "/State",
    "/ResolvConfPath",
    "/HostnamePath",
    "/HostsPath",
    "/LogPath",
    "/RestartCount",
    "/GraphDriver",
    "/NetworkSettings",
];

#[test]
fn a_container_with_more_than_forty_options_is_the_same_there() {
    let world = world!();
    let image = world.a.load_image("busybox").unwrap();
    world
        .a
        .exec_ok([
            "docker",
            "network",
            "create",
            "--subnet",
            "10.80.0.0/24",
            "--gateway",
            "10.80.0.1",
            "--ip-range",
            "10.80.0.128/25",
            "--label",
            "team=red",
            "-o",
            "com.docker.network.bridge.name=brfront",
            "front",
        ])
        .unwrap();
    world
        .a
        .exec_ok([
            "docker",
            "network",
            "create",
            "--internal",
            "--subnet",
            "10.81.0.0/24",
            "--ipv6",
            "--subnet",
            "fd00:81::/64",
            "back",
        ])
        .unwrap();
    world
        .a
        .sh("printf '{\"defaultAction\":\"SCMP_ACT_ALLOW\"}' > /tmp/seccomp.json")
        .unwrap();
    let mut args = vec!["docker", "run", "-d", "--name", "web"];
    let options = [
        "--add-host",
        "db.example:10.9.8.7",
        "--annotation",
        "note=kept",
        "--blkio-weight",
        "300",
        "--cap-add",
        "NET_ADMIN",
        "--cap-drop",
        "MKNOD",
        "--cgroupns",
        "private",
        "--cpu-period",
        "50000",
        "--cpu-quota",
        "25000",
        "--cpu-shares",
        "512",
        "--cpuset-cpus",
        "0",
        "--device",
        "/dev/null:/dev/mynull:r",
        "--device-cgroup-rule",
        "c 1:3 rw",
        "--dns",
        "9.9.9.9",
        "--dns-option",
        "ndots:2",
        "--dns-search",
        "example.test",
        "--domainname",
        "example.test",
        "--entrypoint",
        "/bin/sh",
        "--env",
        "A=1",
        "--env",
        "SPACES=a b  c",
        "--env",
        "QUOTES='\"=,\n\t",
        "--env",
        "EMPTY=",
        "--expose",
        "1234/udp",
        "--group-add",
        "1001",
        "--health-cmd",
        "true",
        "--health-interval",
        "500ms",
        "--health-retries",
        "4",
        "--health-start-period",
        "3s",
        "--health-timeout",
        "2s",
        "--hostname",
        "own-name",
        "--init",
        "--ipc",
        "private",
        "--label",
        "empty=",
        "--label",
        "odd=a,b=c \"d\"\né",
        "--log-driver",
        "json-file",
        "--log-opt",
        "max-size=1m",
        "--log-opt",
        "max-file=3",
        "--memory",
        "64m",
        "--memory-reservation",
        "32m",
        "--memory-swap",
        "128m",
        "--network",
        "front",
        "--network-alias",
        "www",
        "--ip",
        "10.80.0.200",
        "--oom-score-adj",
        "321",
        "--pids-limit",
        "77",
        "--publish",
        "8081:80",
        "--publish",
        "127.0.0.1:8082:81/udp",
        "--publish",
        "9000-9002:9000-9002",
        "--publish",
        "83",
        "--read-only",
        "--restart",
        "on-failure:3",
        "--security-opt",
        "no-new-privileges",
        "--security-opt",
        "seccomp=/tmp/seccomp.json",
        "--shm-size",
        "12m",
        "--stop-signal",
        "KILL",
        "--stop-timeout",
        "7",
        "--sysctl",
        "net.ipv4.ip_forward=0",
        "--tmpfs",
        "/scratch:size=4m,mode=1770",
        "--tty",
        "--interactive",
        "--ulimit",
        "nofile=1000:2000",
        "--ulimit",
        "core=0",
        "--user",
        "12:34",
        "--uts",
        "",
        "--workdir",
        "/var/tmp/new",
    ];
    args.extend(options.iter().copied().filter(|o| !o.is_empty() && *o != "--uts"));
    args.extend([
        image.as_str(),
        "-c",
        "while :; do sleep 1; done",
        "arg with space",
        "",
    ]);
    world.a.exec_ok(&args).unwrap();
    world
        .a
        .exec_ok([
            "docker",
            "network",
            "connect",
            "--ip",
            "10.81.0.7",
            "--ip6",
            "fd00:81::7",
            "--alias",
            "hidden",
            "back",
            "web",
        ])
        .unwrap();
    let source = document(&world.a, "web");
    world.migrate(&["--mode", "cold"]).expect(0);
    let (mut before, mut after) = (source, document(&world.b, "web"));
    assert_eq!(
        networks(&before),
        networks(&after),
        "aliases, addresses and ports are those that the user asked for"
    );
    for path in DIFFERENT {
        for document in [&mut before, &mut after] {
            if let Some(object) = document.as_object_mut() {
                object.remove(path.trim_start_matches('/'));
            }
        }
    }
    let differences = compare("", &before, &after);
    assert!(differences.is_empty(), "\n{}", differences.join("\n"));
    for network in ["front", "back"] {
        let describe = |node: &Node| {
            let text = node.exec_ok(["docker", "network", "inspect", network]).unwrap();
            let mut network = serde_json::from_str::<Value>(&text).unwrap()[0].clone();
            for key in ["Id", "Created", "Containers"] {
                network.as_object_mut().unwrap().remove(key);
            }
            network
        };
        assert_eq!(describe(&world.a), describe(&world.b));
    }
}

#[test]
fn mixes_of_options_that_have_bitten_others_come_through() {
    let world = world!();
    let image = world.a.load_image("busybox").unwrap();
    let web = world.a.load_image("web:1").unwrap();
    world.a.exec_ok(["docker", "network", "create", "net"]).unwrap();
    let mixes: &[(&str, &str, &[&str], &[&str])] = &[
        (
            "privileged",
            &image,
            &["--privileged", "--pid", "host", "--ipc", "host"],
            &["sleep", "100000"],
        ),
        (
            "hostnet",
            &image,
            &["--network", "host", "--uts", "host"],
            &["sleep", "100000"],
        ),
        ("nonet", &image, &["--network", "none"], &["sleep", "100000"]),
        (
            "noentry",
            &web,
            &["--no-healthcheck", "--entrypoint", ""],
            &["sleep", "100000"],
        ),
        (
            "nocmd",
            &web,
            &["--no-healthcheck", "--entrypoint", "/bin/cat", "-it"],
            &[],
        ),
        ("nohealth", &web, &["--no-healthcheck"], &[]),
        (
            "unlimited",
            &image,
            &[
                "--memory",
                "32m",
                "--memory-swap",
                "-1",
                "--oom-kill-disable",
                "--stop-timeout",
                "-1",
                "--stop-signal",
                "KILL",
            ],
            &["sleep", "100000"],
        ),
        (
            "mac",
            &image,
            &["--network", "net", "--mac-address", "02:11:22:33:44:55"],
            &["sleep", "100000"],
        ),
        (
            "shared",
            &image,
            &[
                "--ipc",
                "shareable",
                "--cgroupns",
                "host",
                "--cgroup-parent",
                "/tranship-test",
            ],
            &["sleep", "100000"],
        ),
        (
            "nolog",
            &image,
            &["--log-driver", "none", "--restart", "unless-stopped"],
            &["sleep", "100000"],
        ),
        (
            "mount",
            &image,
            &[
                "--mount",
                "type=tmpfs,dst=/t,tmpfs-size=1048576,tmpfs-mode=0700",
                "--publish-all",
            ],
            &["sleep", "100000"],
        ),
        (
            "cpus",
            &image,
            &[
                "--cpus",
                "0.5",
                "--cpu-rt-runtime",
                "0",
                "--security-opt",
                "label=disable",
                "--security-opt",
                "apparmor=unconfined",
            ],
            &["sleep", "100000"],
        ),
    ];
    let mut names = Vec::new();
    for (name, image, options, command) in mixes {
        let mut args = vec!["docker", "run", "-d", "--name", name];
        args.extend(*options);
        // A shell's `sleep` as the first process would wait out the grace period of every stop.
        if !options.contains(&"--stop-signal") {
            args.extend(["--stop-signal", "KILL"]);
        }
        args.push(image);
        args.extend(*command);
        world.a.exec_ok(&args).unwrap();
        names.push(*name);
    }
    let before: Vec<Value> = names.iter().map(|n| document(&world.a, n)).collect();
    let mut args = vec!["migrate"];
    args.extend(&names);
    args.extend([
        "--from",
        "ssh://root@a",
        "--to",
        "ssh://root@b",
        "--mode",
        "stateless",
    ]);
    world.run(&args).expect(0);
    let mut all = Vec::new();
    for (name, mut before) in names.iter().zip(before) {
        let mut after = document(&world.b, name);
        for path in DIFFERENT {
            for document in [&mut before, &mut after] {
                document
                    .as_object_mut()
                    .unwrap()
                    .remove(path.trim_start_matches('/'));
            }
        }
        // On the host's network, a container that has no name of its own bears the host's.
        if *name == "hostnet" {
            assert_eq!(
                (&before["Config"]["Hostname"], &after["Config"]["Hostname"]),
                (&"a".into(), &"b".into())
            );
            before["Config"]["Hostname"] = Value::Null;
            after["Config"]["Hostname"] = Value::Null;
        }
        // Docker gives a container its own short id as host name unless it is told another.
        let own = |d: &Value| {
            d["Config"]["Hostname"]
                .as_str()
                .is_some_and(|h| h.len() == 12 && h.bytes().all(|b| b.is_ascii_hexdigit()))
        };
        if own(&before) && own(&after) {
            before["Config"]["Hostname"] = Value::Null;
            after["Config"]["Hostname"] = Value::Null;
        }
        all.extend(
            compare("", &before, &after)
                .into_iter()
                .map(|d| format!("{name}: {d}")),
        );
    }
    assert!(all.is_empty(), "\n{}", all.join("\n"));
}

/// What the user asked for in each network.
fn networks(document: &Value) -> Value {
    let networks = document["NetworkSettings"]["Networks"].as_object().unwrap();
    let short = document["Id"].as_str().unwrap().get(..12).unwrap();
    let asked: serde_json::Map<String, Value> = networks
        .iter()
        .map(|(name, n)| {
            let aliases: Vec<&Value> = n["Aliases"].as_array().into_iter().flatten().filter(|a| *a != short).collect();
            let asked = serde_json::json!({
                "ipam": n["IPAMConfig"], "aliases": aliases, "address": n["IPAddress"], "six": n["GlobalIPv6Address"],
            });
            (name.clone(), asked)
        })
        .collect();
    Value::Object(asked)
}

fn compare(path: &str, before: &Value, after: &Value) -> Vec<String> {
    match (before, after) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            keys.into_iter()
                .flat_map(|k| {
                    let null = Value::Null;
                    compare(
                        &format!("{path}/{k}"),
                        a.get(k).unwrap_or(&null),
                        b.get(k).unwrap_or(&null),
                    )
                })
                .collect()
        }
        (a, b) if a == b => Vec::new(),
        (a, b) => vec![format!("{path}: {a} became {b}")],
    }
}
