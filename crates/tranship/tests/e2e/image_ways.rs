//! `--image-strategy`: the same container by every way, counted on the wire.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use tranship_testkit::testbed::{Link, Node, NodeProcess};

use crate::world::{World, finish, inspect, is_running, wait_until};

/// Two layers of 9 MB over busybox, of which `app:base` has the lower one.
pub const BUILD: &str = "mkdir -p /srv/build && cd /srv/build && head -c 9000000 /dev/urandom > one && head -c 9000000 /dev/urandom > two && \
    printf 'FROM tranship-test/busybox:1\nCOPY one /one\n' > base && printf 'FROM app:base\nCOPY two /two\nCMD [\"sleep\",\"9999\"]\nSTOPSIGNAL KILL\n' > top && \
    export DOCKER_BUILDKIT=0; docker build -q -t app:base -f base . && docker build -q -t app:1 -f top .";

/// Bytes of the upper layer, and of both.
pub const ONE: std::ops::Range<u64> = 9_000_000..10_000_000;
pub const ALL: std::ops::Range<u64> = 18_000_000..32_000_000;

pub fn id(node: &Node, reference: &str) -> String {
    let format = "{{.Id}} {{.RootFS.Layers}}";
    node.exec_ok(["docker", "image", "inspect", "--format", format, reference])
        .unwrap()
}

pub fn tags(node: &Node) -> String {
    let listed = node.sh("docker images --format '{{.Repository}}:{{.Tag}}' | sort");
    listed.unwrap()
}

pub fn run_web(node: &Node, image: &str) {
    node.exec_ok(["docker", "run", "-d", "--name", "web", "--network", "none", image])
        .unwrap();
}

/// Moves `web` to `b` and returns how many bytes `b` received; then it is back at `a`, and the image gone from `b`.
pub fn there_and_forgotten(world: &World, image: &str, options: &[&str]) -> u64 {
    let received = || world.b.link_bytes().unwrap().received;
    let before = received();
    world
        .migrate(&[&["--mode", "cold", "--on-source", "remove"], options].concat())
        .expect(0);
    let came = received() - before;
    assert!(is_running(&world.b, "web"));
    assert_eq!(id(&world.a, image), id(&world.b, image), "{options:?}");
    let meant = id(&world.a, image);
    assert!(meant.starts_with(&inspect(&world.b, "web", "{{.Image}}")));
    assert_eq!(inspect(&world.b, "web", "{{.Config.Image}}"), image);
    let sums = |node: &Node| {
        node.sh(&format!(
            "docker run --rm --network none {image} md5sum /one /two"
        ))
        .unwrap()
    };
    assert_eq!(sums(&world.a), sums(&world.b));
    world
        .b
        .sh(&format!("docker rm -f web && docker rmi {image}"))
        .unwrap();
    run_web(&world.a, image);
    came
}

/// What came of layers and is not the engine's yet.
pub fn spooled(node: &Node) -> String {
    node.sh("find /var/lib/tranship -path '*/layers/*' -type f ! -name lock")
        .unwrap()
}

pub fn warm_up(world: &World) {
    // The agents are there, so that only the image is counted.
    world.run(&["doctor", "ssh://root@a", "ssh://root@b"]);
}

#[test]
fn every_way_brings_the_same_image_and_only_what_is_missing() {
    let world = world!();
    world.a.load_image("busybox").unwrap();
    world.a.sh(BUILD).unwrap();
    run_web(&world.a, "app:1");
    warm_up(&world);
    for (strategy, fresh) in [("stream", ALL), ("layers", ALL), ("simple", ALL)] {
        let came = there_and_forgotten(&world, "app:1", &["--image-strategy", strategy]);
        assert!(fresh.contains(&came), "{strategy}, fresh: {came}");
        assert!(!tags(&world.b).contains("app"), "{}", tags(&world.b));
    }
    // With two of three layers there.
    world
        .run(&[
            "image",
            "push",
            "app:base",
            "ssh://root@b",
            "--from",
            "ssh://root@a",
        ])
        .expect(0);
    for (strategy, expected) in [("stream", ONE), ("layers", ONE), ("auto", ONE), ("simple", ALL)] {
        let came = there_and_forgotten(&world, "app:1", &["--image-strategy", strategy]);
        assert!(expected.contains(&came), "{strategy}: {came}");
    }
    assert_eq!(spooled(&world.b), "");
    // All of it there: nothing travels.
    world
        .run(&["image", "push", "app:1", "ssh://root@b", "--from", "ssh://root@a"])
        .expect(0);
    let came = there_and_forgotten(&world, "app:1", &["--image-strategy", "layers"]);
    assert!(came < 1_000_000, "{came}");
    // The plan says which way, and why.
    let plan = |options: &[&str]| -> Value {
        let args = [
            "plan",
            "web",
            "--from",
            "ssh://root@a",
            "--to",
            "ssh://root@b",
            "--json",
        ];
        world.run(&[&args, options].concat()).expect(0).json()
    };
    let way = plan(&[])[0]["image_way"].clone();
    assert_eq!(way["strategy"], "stream");
    assert!(way["reason"].as_str().unwrap().contains("1 of 3 layers"), "{way}");
    let shown = world
        .run(&["plan", "web", "--from", "ssh://root@a", "--to", "ssh://root@b"])
        .expect(0);
    assert!(shown.stdout.contains("stream: 1 of 3 layers"), "{}", shown.stdout);
    // What makes no sense is refused before anything is asked.
    for options in [
        &["--image-strategy", "registry"][..],
        &["--image-strategy", "layers", "--registry", "r:5000"],
        &["--image-strategy", "registry", "--registry", "ftp://r"],
        &["--image-strategy", "registry", "--registry", "me:secret@r"],
        &["--image-strategy", "simple", "--whole-image"],
    ] {
        world.migrate(options).expect(2);
    }
}

/// Resets every connection between the agents for a while.
pub fn break_connections(node: &Node) {
    // All that is not ssh.
    let rule = "INPUT -p tcp ! --dport 22 -j REJECT --reject-with tcp-reset";
    node.sh(&format!("iptables -I {rule} && sleep 2; iptables -D {rule}"))
        .unwrap();
}

#[test]
fn layers_go_on_where_they_stood_when_the_connection_broke() {
    let world = world!();
    world.a.load_image("busybox").unwrap();
    world.a.sh(BUILD).unwrap();
    run_web(&world.a, "app:1");
    warm_up(&world);
    world.b.set_link(Link::Rate("24mbit")).unwrap();
    let received = || world.b.link_bytes().unwrap().received;
    let before = received();
    let child = world.begin(&["--mode", "cold", "--image-strategy", "layers"]);
    wait_until(|| received() > before + 10_000_000);
    break_connections(&world.b);
    world.b.set_link(Link::Up).unwrap();
    finish(child)
        .expect(0)
        .saying(&["what came of the image is kept"]);
    let came = received() - before;
    // Two layers of 9 MB and busybox once; less than a mebibyte of each layer, and what was on its way, comes again.
    assert!(came < 27_000_000, "{came}");
    assert_eq!(id(&world.a, "app:1"), id(&world.b, "app:1"));
    assert_eq!(spooled(&world.b), "");
}

/// A layer of two large files over busybox.
const LARGE: &str = "mkdir -p /srv/large && cd /srv/large && head -c 24000000 /dev/urandom > one && head -c 12000000 /dev/urandom > two && \
    printf 'FROM tranship-test/busybox:1\nCOPY one two /\nCMD [\"sleep\",\"9999\"]\nSTOPSIGNAL KILL\n' > Dockerfile && \
    DOCKER_BUILDKIT=0 docker build -q -t large:1 .";

#[test]
fn a_layer_that_broke_off_late_goes_on_without_what_lies_before_being_read() {
    let world = world!();
    for node in [&world.a, &world.b] {
        node.load_image("busybox").unwrap();
    }
    world.a.sh(LARGE).unwrap();
    run_web(&world.a, "large:1");
    warm_up(&world);
    world.b.set_link(Link::Rate("40mbit")).unwrap();
    let received = || world.b.link_bytes().unwrap().received;
    let before = received();
    let child = world.begin(&["--mode", "cold", "--image-strategy", "layers"]);
    // All of the first file is there, and some of the second.
    wait_until(|| received() > before + 30_000_000);
    let cut = "INPUT -p tcp ! --dport 22 -j REJECT --reject-with tcp-reset";
    world.b.sh(&format!("iptables -I {cut}")).unwrap();
    // Whoever read the first file again would fail.
    world
        .a
        .sh("set -- $(find /var/lib/docker/overlay2/*/diff/one -size +20000k) && [ $# = 1 ] && truncate -s 0 $1")
        .unwrap();
    world.b.sh(&format!("sleep 2; iptables -D {cut}")).unwrap();
    world.b.set_link(Link::Up).unwrap();
    finish(child)
        .expect(0)
        .saying(&["what came of the image is kept"]);
    let came = received() - before;
    assert!((36_000_000..46_000_000).contains(&came), "{came}");
    assert_eq!(id(&world.a, "large:1"), id(&world.b, "large:1"));
    let sums = world.a.sh("cd /srv/large && md5sum one two").unwrap();
    let there = "docker run --rm --network none large:1 md5sum one two";
    assert_eq!(sums, world.b.sh(there).unwrap());
    assert_eq!(spooled(&world.b), "");
}

#[test]
fn layers_that_the_engine_had_no_space_for_do_not_come_again() {
    let world = world!();
    world.a.load_image("busybox").unwrap();
    world.a.sh(BUILD).unwrap();
    run_web(&world.a, "app:1");
    warm_up(&world);
    let before = world.inventories();
    // The engine unpacks an archive here first.
    let small = "mount -t tmpfs -o size=2m none /var/lib/docker/tmp";
    world.b.sh(small).unwrap();
    let received = || world.b.link_bytes().unwrap().received;
    let counted = |args: &[&str], code| {
        let begun = received();
        let outcome = world.run(args).expect(code);
        (received() - begun, outcome.stderr)
    };
    let migrate = [
        "migrate",
        "web",
        "--from",
        "ssh://root@a",
        "--to",
        "ssh://root@b",
        "--mode",
        "cold",
        "--image-strategy",
        "layers",
    ];
    let (came, says) = counted(&migrate, 4);
    assert!(says.contains("engine.no-space"), "{says}");
    assert!(ALL.contains(&came), "{came}");
    assert_eq!(world.inventories(), before);
    assert_ne!(spooled(&world.b), "");
    let push = [
        "image",
        "push",
        "app:1",
        "ssh://root@b",
        "--from",
        "ssh://root@a",
        "--image-strategy",
        "layers",
    ];
    let (came, says) = counted(&push, 1);
    assert!(says.contains("engine.no-space"), "{says}");
    assert!(came < 1_000_000, "{came}");
    world.b.sh("umount /var/lib/docker/tmp").unwrap();
    let (came, _) = counted(&migrate, 0);
    assert!(came < 1_000_000, "{came}");
    assert!(is_running(&world.b, "web"));
    assert_eq!(id(&world.a, "app:1"), id(&world.b, "app:1"));
    assert_eq!(spooled(&world.b), "");
}

#[test]
fn what_came_of_layers_goes_when_the_migration_is_aborted() {
    let world = world!();
    world.a.load_image("busybox").unwrap();
    world.a.sh(BUILD).unwrap();
    run_web(&world.a, "app:1");
    warm_up(&world);
    let before = world.inventories();
    world.b.set_link(Link::Rate("24mbit")).unwrap();
    let received = || world.b.link_bytes().unwrap().received;
    let begun = received();
    let child = world.begin(&["--mode", "cold", "--image-strategy", "layers"]);
    wait_until(|| received() > begun + 6_000_000);
    world.run(&["abort", &world.newest_id()]).expect(0);
    finish(child).expect(4).saying(&["migrate.aborted"]);
    world.b.set_link(Link::Up).unwrap();
    assert_eq!(world.inventories(), before);
    // The next try begins with what came, and leaves nothing.
    let begun = received();
    world
        .migrate(&["--mode", "cold", "--image-strategy", "layers"])
        .expect(0);
    let came = received() - begun;
    assert!(came < 20_000_000, "{came}");
    assert_eq!(spooled(&world.b), "");
}

fn write(node: &Node, path: &str, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let path = node.root().unwrap().join(path.trim_start_matches('/'));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// `docker-registry` on a node, with TLS and a password; it ends with this.
pub struct DockerRegistry {
    process: NodeProcess,
    pub name: String,
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        // The host goes in a moment anyway.
        let _ = self.process.kill();
    }
}

impl DockerRegistry {
    pub fn begin(world: &World, node: &Node) -> Self {
        let name = node.name().to_owned();
        let made = rcgen::generate_simple_self_signed(vec![name.clone()]).unwrap();
        write(node, "/root/registry.crt", &made.cert.pem());
        write(node, "/root/registry.key", &made.signing_key.serialize_pem());
        let hash = bcrypt::hash("pass-word-1", 5).unwrap();
        write(node, "/root/registry.users", &format!("me:{hash}\n"));
        let config = "version: 0.1\nlog: {level: warn}\nstorage: {filesystem: {rootdirectory: /root/registry}}\n\
            auth: {htpasswd: {realm: test, path: /root/registry.users}}\n\
            http: {addr: 0.0.0.0:5443, secret: x, tls: {certificate: /root/registry.crt, key: /root/registry.key}}\n";
        write(node, "/root/registry.yml", config);
        for other in [&world.a, &world.b] {
            let path = format!("/etc/docker/certs.d/{name}:5443/ca.crt");
            write(other, &path, &made.cert.pem());
        }
        let script = "exec docker-registry serve /root/registry.yml > /root/registry.log 2>&1";
        let process = node.spawn(["sh", "-c", script]).unwrap();
        let address = SocketAddr::from((node.address(), 5443));
        wait_until(|| TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok());
        Self {
            process,
            name: format!("{name}:5443"),
        }
    }

    pub fn log_in(&self, node: &Node) {
        let script = format!(
            "export HOME=/root; printf pass-word-1 | docker login -u me --password-stdin {}",
            self.name
        );
        node.sh(&script).unwrap();
    }

    pub fn get(&self, node: &Node, path: &str) -> String {
        let accept = "Accept: application/vnd.oci.image.manifest.v1+json, application/json";
        let script = format!(
            "curl -sk -H '{accept}' -u me:pass-word-1 https://{}/v2/{path}",
            self.name
        );
        node.sh(&script).unwrap()
    }
}

#[test]
fn by_way_of_a_registry_at_either_end() {
    let world = world!();
    world.a.load_image("busybox").unwrap();
    world.a.sh(BUILD).unwrap();
    run_web(&world.a, "app:1");
    warm_up(&world);
    let (at_a, at_b) = (
        DockerRegistry::begin(&world, &world.a),
        DockerRegistry::begin(&world, &world.b),
    );
    let by = |registry: &DockerRegistry| {
        ["--image-strategy", "registry", "--registry", &registry.name].map(str::to_owned)
    };
    let go = |registry: &DockerRegistry| {
        let options = by(registry);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        there_and_forgotten(&world, "app:1", &options)
    };

    // Without a password nothing moves, and nothing is left.
    let before = world.inventories();
    let options = by(&at_b);
    let options: Vec<&str> = ["--mode", "cold"]
        .into_iter()
        .chain(options.iter().map(String::as_str))
        .collect();
    world
        .migrate(&options)
        .expect(4)
        .saying(&["registry.denied", "docker login b:5443", "rolled back"]);
    assert_eq!(world.inventories(), before);

    // The destination's registry: what is pushed crosses the link, what is pulled does not.
    for node in [&world.a, &world.b] {
        at_a.log_in(node);
        at_b.log_in(node);
    }
    let came = go(&at_b);
    assert!(ALL.contains(&came), "{came}");
    // The registry has the layers now: nothing is pushed.
    let came = go(&at_b);
    assert!(came < 1_000_000, "{came}");
    // The source's registry: what is pushed stays there, what is pulled crosses the link, without layers that are there.
    world
        .run(&[
            "image",
            "push",
            "app:base",
            "ssh://root@b",
            "--from",
            "ssh://root@a",
        ])
        .expect(0);
    let came = go(&at_a);
    assert!(ONE.contains(&came), "{came}");

    // No tag is left, neither there nor in the engines.
    for registry in [&at_a, &at_b] {
        let listed = registry.get(&world.a, "tranship/tags/list");
        assert!(
            listed.contains("\"tags\":null") || listed.contains("NAME_UNKNOWN"),
            "{listed}"
        );
    }
    assert!(!tags(&world.a).contains(":5443") && !tags(&world.b).contains(":5443"));
    assert_eq!(spooled(&world.b), "");

    // An image that came from there is not pushed at all, and `auto` knows it.
    let tagged = format!("{}/team/app:1", at_a.name);
    world
        .a
        .sh(&format!(
            "export HOME=/root; docker tag app:1 {tagged} && docker push -q {tagged}"
        ))
        .unwrap();
    let plan = world
        .run(&[
            "plan",
            "web",
            "--from",
            "ssh://root@a",
            "--to",
            "ssh://root@b",
            "--json",
            "--registry",
            &at_a.name,
        ])
        .expect(0)
        .json();
    assert_eq!(plan[0]["image_way"]["strategy"], "registry", "{plan}");
    // The password comes from a helper now.
    let helper = format!(
        "#!/bin/sh\nread -r host\n[ \"$host\" = {} ] || {{ echo credentials not found in native keychain; exit 1; }}\n\
         printf '{{\"Username\":\"me\",\"Secret\":\"pass-word-1\"}}'\n",
        at_a.name
    );
    for node in [&world.a, &world.b] {
        write(node, "/usr/local/bin/docker-credential-test", &helper);
        node.sh("chmod 700 /usr/local/bin/docker-credential-test")
            .unwrap();
        let config = format!(r#"{{"credHelpers":{{"{}":"test"}}}}"#, at_a.name);
        write(node, "/root/.docker/config.json", &config);
    }
    let came = there_and_forgotten(&world, "app:1", &["--registry", &at_a.name]);
    assert!(ONE.contains(&came), "{came}");

    // Nobody wrote the password down.
    for node in [&world.a, &world.b] {
        let found = node
            .sh("grep -rlsE 'pass-word-1|bWU6cGFzcy13b3JkLTE' /var/lib/tranship /run/tranship || true")
            .unwrap();
        assert_eq!(found, "");
    }
}

#[test]
fn a_registry_that_is_not_trusted_or_not_there() {
    let world = world!();
    world.serve(&[]);
    let before = world.inventories();
    let registry = DockerRegistry::begin(&world, &world.b);
    world.a.sh("rm -r /etc/docker/certs.d").unwrap();
    let go = |registry: &str| {
        world.migrate(&[
            "--mode",
            "cold",
            "--image-strategy",
            "registry",
            "--registry",
            registry,
        ])
    };
    for (name, says) in [
        (registry.name.as_str(), "certificate"),
        ("b:5444", "refused"),
        ("http://b:5443", "400"),
    ] {
        let outcome = go(name).expect(4);
        assert!(
            outcome.stderr.contains("registry.") && outcome.stderr.to_lowercase().contains(says),
            "{name}: {}",
            outcome.stderr
        );
        assert_eq!(world.inventories(), before);
    }
}
