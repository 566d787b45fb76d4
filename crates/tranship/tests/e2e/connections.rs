//! Ways to nodes, and what is said when they are closed.

use crate::world::{is_running, serves};

#[test]
fn bad_addresses_and_names_are_refused_before_anything_is_connected() {
    let world = world!();
    for (args, code) in [
        (
            &["migrate", "web", "--to", "ssh://-oProxyCommand=touch /tmp/x"][..],
            2,
        ),
        (&["migrate", "web", "--to", "ssh://u@-oProxyCommand=x"], 2),
        (&["migrate", "web", "--from", "-x", "--to", "ssh://root@b"], 2),
        (&["migrate", "web", "--to", "gopher://b"], 2),
        (&["migrate", "web", "--to", "ssh://b/path"], 2),
        (&["migrate", "web", "--to", "ssh://b\n"], 2),
        (&["migrate", "--to", "ssh://root@b"], 2),
        (&["migrate", "web"], 2),
        (&["migrate", "--", "-it"], 2),
        (&["migrate", "we b", "--to", "ssh://root@b"], 2),
        (&["migrate", "web", "--to", "ssh://root@b", "--publish", "80"], 2),
        (
            &["migrate", "web", "--to", "ssh://root@b", "--publish", "80=0"],
            2,
        ),
        (
            &["migrate", "web", "other", "--to", "ssh://root@b", "--rename", "x"],
            2,
        ),
        (
            &["migrate", "web", "--from", "ssh://root@b", "--to", "ssh://root@b"],
            2,
        ),
        (&["nonsense"], 2),
        (
            &[
                "migrate",
                "web",
                "--from",
                "ssh://root@a",
                "--to",
                "no-such-context",
            ],
            1,
        ),
    ] {
        let outcome = world.run(args).expect(code);
        assert!(!outcome.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn every_closed_door_says_which_and_why() {
    let world = world!();
    world.serve(&[]);
    let before = world.inventories();
    let to = |node: &str| world.run(&["migrate", "web", "--from", "ssh://root@a", "--to", node]);
    to("ssh://root@nowhere.invalid")
        .expect(1)
        .saying(&["error[ssh.", "nowhere.invalid", "hint:"]);
    to("ssh://root@b:9").expect(1).saying(&["error[ssh.", "hint:"]);
    to("ssh://stranger@b").expect(1).saying(&["error[ssh.", "hint:"]);
    // A user who may log in but not talk to the engine.
    to("ssh://guest@b")
        .expect(1)
        .saying(&["error[engine.denied]", "hint:"]);
    // A container that is not there.
    world
        .run(&[
            "migrate",
            "missing",
            "--from",
            "ssh://root@a",
            "--to",
            "ssh://root@b",
        ])
        .expect(1)
        .saying(&["error[container.not-found]", "missing", "hint:"]);
    // Both addresses lead to one node.
    let address = format!("ssh://root@{}", world.a.address());
    world.run(&["migrate", "web", "--from", "ssh://root@a", "--to", &address]);
    // No engine.
    world.b.kill_engine().unwrap();
    to("ssh://root@b")
        .expect(1)
        .saying(&["error[engine.unreachable]", "hint:"]);
    world.b.restart_engine().unwrap();
    // Nothing may be uploaded.
    world
        .b
        .sh("rm -rf /root/.cache/tranship; pkill -f '[a]gent --serve' || true")
        .unwrap();
    world
        .migrate(&["--no-bootstrap"])
        .expect(1)
        .saying(&["error[bootstrap.", "hint:"]);
    assert_eq!(world.inventories(), before);
    assert!(serves(world.a.address(), 8080));
}

#[test]
fn a_user_without_root_moves_containers_through_the_engine() {
    let world = world!();
    world.serve(&[]);
    world
        .run(&[
            "migrate",
            "web",
            "--from",
            "ssh://deploy@a",
            "--to",
            "ssh://deploy@b",
        ])
        .expect(0);
    assert!(is_running(&world.b, "web") && !is_running(&world.a, "web"));
    // The next one sends only what is missing, as far as the engine lets it be told apart.
    let image = world.b.load_image("web:1").unwrap();
    world.a.load_image("web:2").unwrap();
    let second = image.replace("web:1", "web:2");
    world
        .a
        .exec_ok(["docker", "run", "-d", "--name", "two", &second])
        .unwrap();
    let args = [
        "migrate",
        "two",
        "--from",
        "ssh://deploy@a",
        "--to",
        "ssh://deploy@b",
        "--mode",
        "stateless",
        "--json",
    ];
    let view = world.run(&args).expect(0).json();
    let (sent, whole) = (
        view[0]["bytes_sent"].as_u64().unwrap(),
        view[0]["image_bytes"].as_u64().unwrap(),
    );
    assert!(sent < whole / 4, "{sent} bytes of {whole} were sent");
}

#[test]
fn a_user_without_root_carries_volumes_through_the_engine() {
    let world = world!();
    world.serve(&["-v", "data:/data", "-v", "/anonymous"]);
    let write = "mkdir -p /data/sub && echo one > /data/sub/f && ln /data/sub/f /data/again && chown 7:8 /data/sub && echo two > /anonymous/g";
    world
        .a
        .exec_ok(["docker", "exec", "web", "sh", "-c", write])
        .unwrap();
    let look =
        "cd /data && ls -ln sub/f again && stat -c '%n %u:%g %a %h' sub sub/f && cat sub/f /anonymous/g";
    let before = world
        .a
        .exec_ok(["docker", "exec", "web", "sh", "-c", look])
        .unwrap();
    for (from, to) in [
        ("ssh://deploy@a", "ssh://deploy@b"),
        ("ssh://root@b", "ssh://deploy@a"),
        ("ssh://deploy@a", "ssh://root@b"),
    ] {
        let args = [
            "migrate",
            "web",
            "--from",
            from,
            "--to",
            to,
            "--on-source",
            "remove",
        ];
        world.run(&args).expect(0).saying(&["files.engine-route"]);
        let (here, there) = if to.ends_with('b') {
            (&world.a, &world.b)
        } else {
            (&world.b, &world.a)
        };
        let after = there
            .exec_ok(["docker", "exec", "web", "sh", "-c", look])
            .unwrap();
        assert_eq!(after, before, "{from} to {to}");
        for node in [&world.a, &world.b] {
            let left: Vec<String> = node
                .inventory()
                .unwrap()
                .into_iter()
                .filter(|l| l.contains("helper"))
                .collect();
            assert!(left.is_empty(), "{from} to {to}: {left:?}");
        }
        here.exec_ok(["docker", "volume", "rm", "data"]).unwrap();
    }
}

#[test]
fn the_caller_carries_the_data_where_there_is_no_direct_way() {
    let world = world!();
    world.serve(&[]);
    world
        .migrate(&["--relay", "--mode", "cold"])
        .expect(0)
        .saying(&["data path: through this machine"]);
    assert!(serves(world.b.address(), 8080));
    // A firewall that lets only ssh in is found out by itself.
    world.a.sh("iptables -I INPUT -p tcp -i eth0 ! --dport 22 -m conntrack --ctstate NEW -j DROP || iptables -I INPUT -p tcp ! --dport 22 --syn -j DROP").unwrap();
    let back = [
        "migrate",
        "web",
        "--from",
        "ssh://root@b",
        "--to",
        "ssh://root@a",
        "--replace",
        "--on-source",
        "remove",
    ];
    world
        .run(&back)
        .expect(0)
        .saying(&["no direct data path", "data path: through this machine"]);
    assert!(is_running(&world.a, "web"));
}

#[test]
fn tranship_is_uploaded_once() {
    let world = world!();
    world.serve(&[]);
    let before = world.a.link_bytes().unwrap().received;
    world
        .run(&["doctor", "ssh://root@a"])
        .expect(0)
        .saying(&["upload"]);
    let first = world.a.link_bytes().unwrap().received - before;
    let before = world.a.link_bytes().unwrap().received;
    let again = world.run(&["doctor", "ssh://root@a"]).expect(0);
    let second = world.a.link_bytes().unwrap().received - before;
    assert!(
        first > 1_000_000 && second < 200_000,
        "{first} bytes, then {second}"
    );
    assert!(!again.stderr.contains("upload"), "{}", again.stderr);
    // A damaged copy is noticed by its hash and replaced.
    world.a.sh("pkill -f '[a]gent --serve' || true; for f in /root/.cache/tranship/bin/tranship-*; do cp $f /tmp/damaged; printf x >> /tmp/damaged; mv /tmp/damaged $f; done").unwrap();
    world
        .run(&["doctor", "ssh://root@a"])
        .expect(0)
        .saying(&["upload"]);
}

#[test]
fn a_node_can_be_the_caller() {
    let world = world!();
    world.serve(&[]);
    let root = world.a.root().unwrap();
    std::fs::copy(crate::world::program(), root.join("usr/local/bin/tranship")).unwrap();
    let output = world
        .a
        .exec(["tranship", "migrate", "web", "--to", "ssh://root@b"])
        .unwrap();
    assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
    assert!(serves(world.b.address(), 8080));
}
