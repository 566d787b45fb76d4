//! `tranship image serve`: docker's own client against a node.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use tranship_testkit::testbed::{Link, Node, NodeProcess, Options};

use crate::world::{World, finish, program, wait_until};

const BUILD: &str = "mkdir -p /srv/build && cd /srv/build && head -c 9000000 /dev/urandom > one && head -c 9000000 /dev/urandom > two && \
    printf 'FROM tranship-test/busybox:1\nCOPY one /one\n' > base && printf 'FROM app:base\nCOPY two /two\nCMD [\"sleep\",\"9\"]\n' > top && \
    export DOCKER_BUILDKIT=0; docker build -q -t app:base -f base . && docker build -q -t app:1 -f top .";

pub const GUARDED: &str =
    "--listen 0.0.0.0:5000 --tls-cert /root/node.crt --tls-key /root/node.key --credentials /root/users";

pub fn id(node: &Node, reference: &str) -> String {
    let format = "{{.Id}} {{.RootFS.Layers}}";
    node.exec_ok(["docker", "image", "inspect", "--format", format, reference])
        .unwrap()
}

fn write(node: &Node, path: &str, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let path = node.root().unwrap().join(path.trim_start_matches('/'));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// A registry on a node; it ends with this.
pub struct Serving<'a> {
    node: &'a Node,
    process: NodeProcess,
}

impl<'a> Serving<'a> {
    pub fn begin(node: &'a Node, options: &str) -> Self {
        let there = node.root().unwrap().join("root/tranship");
        if !there.exists() {
            std::fs::copy(program(), &there).unwrap();
        }
        let script = format!(
            "echo $$ > /root/serve.pid; export HOME=/root TRANSHIP_STATE_DIR=/root/state; \
             exec /root/tranship image serve {options} 2>>/root/serve.log"
        );
        let process = node.spawn(["sh", "-c", &script]).unwrap();
        Self { node, process }
    }

    /// Waits until it answers beyond its node.
    pub fn reachable(self) -> Self {
        let address = SocketAddr::from((self.node.address(), 5000));
        wait_until(|| TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok());
        self
    }

    pub fn end(mut self, signal: &str) -> i32 {
        let kill = format!("kill -{signal} $(cat /root/serve.pid)");
        self.node.sh(&kill).unwrap();
        self.process.wait().unwrap().code().unwrap_or(-1)
    }
}

/// A certificate for `a` and a user `me` with the password `secret` at `a`; the certificate is trusted at `b`.
pub fn guard(world: &World) {
    let made = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).unwrap();
    write(&world.a, "/root/node.crt", &made.cert.pem());
    write(&world.a, "/root/node.key", &made.signing_key.serialize_pem());
    let hash = bcrypt::hash("secret", 8).unwrap();
    write(&world.a, "/root/users", &format!("me:{hash}\n"));
    write(&world.b, "/etc/docker/certs.d/a:5000/ca.crt", &made.cert.pem());
}

pub fn log_in(node: &Node) {
    node.sh("export HOME=/root; printf secret | docker login -u me --password-stdin a:5000")
        .unwrap();
}

#[test]
fn docker_pulls_from_a_node_and_pushes_to_it() {
    let world = world!();
    world.a.load_image("busybox").unwrap();
    world.b.load_image("busybox").unwrap();
    world.a.sh(BUILD).unwrap();
    guard(&world);
    let serving = Serving::begin(&world.a, GUARDED).reachable();
    let docker = |line: &str| world.b.sh(&format!("export HOME=/root; docker {line}"));

    docker("pull a:5000/app:1").unwrap_err();
    world
        .b
        .sh("export HOME=/root; printf wrong | docker login -u me --password-stdin a:5000")
        .unwrap_err();
    log_in(&world.b);

    // What came of an image does not come again. Docker does not see that a layer is here that was loaded, such as busybox.
    let received = || world.b.link_bytes().unwrap().received;
    let before = received();
    docker("pull a:5000/app:base").unwrap();
    let base = received() - before;
    assert!((9_000_000..14_000_000).contains(&base), "{base}");
    docker("pull a:5000/app:1").unwrap();
    let top = received() - before - base;
    assert!((9_000_000..10_000_000).contains(&top), "{top}");
    assert_eq!(id(&world.a, "app:1"), id(&world.b, "a:5000/app:1"));
    let sums = |node: &Node, image: &str| {
        node.sh(&format!(
            "docker run --rm --network none {image} md5sum /one /two"
        ))
        .unwrap()
    };
    assert_eq!(sums(&world.a, "app:1"), sums(&world.b, "a:5000/app:1"));
    // By the digest that docker noted.
    let noted = world
        .b
        .exec_ok([
            "docker",
            "image",
            "inspect",
            "--format",
            "{{index .RepoDigests 0}}",
            "a:5000/app:1",
        ])
        .unwrap();
    docker(&format!("rmi a:5000/app:1 && docker pull {}", noted.trim())).unwrap();
    assert_eq!(id(&world.a, "app:1"), id(&world.b, noted.trim()));

    // And back, with a layer more: packed by docker, plain at the node.
    world
        .b
        .sh(&format!(
            "mkdir -p /srv/more && cd /srv/more && head -c 3000000 /dev/urandom > three && \
             printf 'FROM {}\nCOPY three /three\nENV A=b\n' > Dockerfile && DOCKER_BUILDKIT=0 docker build -q -t a:5000/team/more:2 .",
            noted.trim()
        ))
        .unwrap();
    docker("push a:5000/team/more:2").unwrap();
    assert_eq!(id(&world.b, "a:5000/team/more:2"), id(&world.a, "team/more:2"));
    world
        .a
        .sh("docker run --rm --network none team/more:2 md5sum /three")
        .unwrap();
    // Again, and under another tag: that it is there is seen.
    docker("push a:5000/team/more:2").unwrap();
    docker("tag a:5000/team/more:2 a:5000/other:1 && docker push a:5000/other:1").unwrap();
    assert_eq!(id(&world.a, "other:1"), id(&world.a, "team/more:2"));
    assert_eq!(serving.end("TERM"), 0);
}

/// `b` pulls `app:1` while the server at `a` is killed and comes back.
pub fn pull_over_an_end<'a>(world: &'a World, serving: Serving<'a>) -> Serving<'a> {
    world.b.set_link(Link::Rate("16mbit")).unwrap();
    let received = || world.b.link_bytes().unwrap().received;
    let before = received();
    let mut pull = world
        .b
        .spawn(["env", "HOME=/root", "docker", "pull", "-q", "a:5000/app:1"])
        .unwrap();
    wait_until(|| received() > before + 6_000_000);
    serving.end("KILL");
    let serving = Serving::begin(&world.a, GUARDED).reachable();
    world.b.set_link(Link::Up).unwrap();
    assert!(pull.wait().unwrap().success());
    let came = received() - before;
    // Two layers of 9 MB and busybox, once: what had come when it broke off does not come again.
    assert!(came < 23_500_000, "{came}");
    serving
}

#[test]
fn a_pull_goes_on_after_the_registry_was_gone() {
    let world = world!();
    world.a.load_image("busybox").unwrap();
    world.b.load_image("busybox").unwrap();
    world.a.sh(BUILD).unwrap();
    guard(&world);
    let serving = Serving::begin(&world.a, GUARDED).reachable();
    log_in(&world.b);
    let serving = pull_over_an_end(&world, serving);
    assert_eq!(id(&world.a, "app:1"), id(&world.b, "a:5000/app:1"));
    assert_eq!(serving.end("INT"), 0);
}

#[test]
fn this_machine_alone_needs_no_password() {
    let world = world!();
    let busybox = world.a.load_image("busybox").unwrap();
    let serving = Serving::begin(&world.a, "");
    wait_until(|| {
        let log = world.a.sh("cat /root/serve.log").unwrap_or_default();
        log.contains("http://127.0.0.1:5000/v2/")
    });
    // Nobody else gets there.
    let address = SocketAddr::from((world.a.address(), 5000));
    assert!(TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_err());
    world
        .a
        .sh(&format!(
            "docker tag {busybox} localhost:5000/x/y:1 && docker push localhost:5000/x/y:1 && docker pull localhost:5000/{busybox}"
        ))
        .unwrap();
    assert_eq!(id(&world.a, "x/y:1"), id(&world.a, &busybox));
    assert_eq!(
        id(&world.a, &format!("localhost:5000/{busybox}")),
        id(&world.a, &busybox)
    );
    assert_eq!(serving.end("TERM"), 0);

    let serving = Serving::begin(&world.a, "--read-only");
    wait_until(|| world.a.sh("docker pull localhost:5000/x/y:1").is_ok());
    world.a.sh("docker push localhost:5000/x/y:1").unwrap_err();
    assert_eq!(serving.end("TERM"), 0);
}

/// Podman as a client of both kinds of store: what it pulls and changes comes back, and runs.
#[test]
fn podman_pulls_from_a_node_and_pushes_to_it() {
    let world = world!(Options::default().containerd_stores(&["b"]));
    for node in [&world.a, &world.b] {
        let busybox = node.load_image("busybox").unwrap();
        let serving = Serving::begin(node, "");
        wait_until(|| {
            let log = node.sh("cat /root/serve.log").unwrap_or_default();
            log.contains("http://127.0.0.1:5000/v2/")
        });
        let podman = "podman --root /root/pod --runroot /root/pod.run --storage-driver vfs";
        node.sh(&format!(
            "set -e; at=127.0.0.1:5000
             {podman} pull -q --tls-verify=false $at/{busybox}
             mkdir -p /srv/pod && cd /srv/pod && echo new > new
             printf \"FROM $at/{busybox}\\nCOPY new /new\\n\" > Dockerfile
             {podman} build -q --isolation chroot -t $at/team/new:1 .
             {podman} push -q --tls-verify=false $at/team/new:1
             {podman} rmi -a -f && {podman} pull -q --tls-verify=false $at/team/new:1"
        ))
        .unwrap();
        let said = node
            .sh("docker run --rm --network none team/new:1 cat /new")
            .unwrap();
        assert_eq!(said.trim(), "new");
        assert_eq!(serving.end("TERM"), 0);
    }
}

#[test]
fn nothing_is_served_beyond_the_machine_without_a_guard() {
    let world = world!();
    let path = |name: &str| world.state.path().join(name).to_str().unwrap().to_owned();
    let made = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).unwrap();
    let hash = bcrypt::hash("secret", 8).unwrap();
    for (name, text, mode) in [
        ("crt", made.cert.pem(), 0o644),
        ("key", made.signing_key.serialize_pem(), 0o600),
        ("users", format!("me:{hash}\n"), 0o600),
        ("open", format!("me:{hash}\n"), 0o644),
        ("plain", "me:secret\n".to_owned(), 0o600),
    ] {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(path(name), text).unwrap();
        std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let (crt, key, users) = (path("crt"), path("key"), path("users"));
    let tls = ["--tls-cert", &crt, "--tls-key", &key];
    let serve = |options: &[&str]| {
        let all = [&["image", "serve", "--listen", "0.0.0.0:0"], options].concat();
        finish(world.command(&all).spawn().unwrap())
    };
    for options in [&[][..], &tls, &["--credentials", &users]] {
        serve(options).expect(2).saying(&["registry.open", "--tls-cert"]);
    }
    let with = |file: &str| serve(&[&tls[..], &["--credentials", &path(file)]].concat());
    with("open")
        .expect(1)
        .saying(&["file.open-to-others", "chmod 600"]);
    with("plain")
        .expect(1)
        .saying(&["oci.credentials", "htpasswd -B"]);
    let swapped = ["--tls-cert", &key, "--tls-key", &key, "--credentials", &users];
    serve(&swapped).expect(1).saying(&["tls.pem"]);
}
