//! Programs in the middle of their work.

use std::collections::BTreeMap;

use tranship_testkit::testbed::Options;

use super::{nothing_dumped, numbers, without_gap};
use crate::world::{get, inspect, is_running, wait_until};

#[test]
fn a_counter_counts_on_without_a_gap() {
    counts_on_without_a_gap(Options::default());
}

#[test]
fn a_counter_counts_on_where_containerd_keeps_its_layer() {
    counts_on_without_a_gap(Options::default().containerd_stores(&["a", "b"]));
}

fn counts_on_without_a_gap(options: Options) {
    let world = world!(options);
    world.count(&["--memory", "64m"]);
    let report = world.live("a", "b", &[]);
    let before = numbers(&world.a);
    wait_until(|| numbers(&world.b).len() > 10);
    let after = numbers(&world.b);
    without_gap(&before);
    without_gap(&after);
    assert_eq!(before.last().unwrap() + 1, after[0], "it went on where it was");
    println!("downtime {} ms", report["downtime_ms"]);

    // The engine keeps its books as for any container.
    assert!(!is_running(&world.a, "web"));
    assert_eq!(
        inspect(&world.b, "web", "{{.HostConfig.RestartPolicy.Name}}"),
        "always"
    );
    assert_eq!(inspect(&world.b, "web", "{{.HostConfig.Memory}}"), "67108864");
    let said = world
        .b
        .exec_ok(["docker", "exec", "web", "echo", "hello"])
        .unwrap();
    assert_eq!(said.trim(), "hello");
    let count = numbers(&world.b).len();
    world.b.exec_ok(["docker", "pause", "web"]).unwrap();
    world.b.exec_ok(["docker", "unpause", "web"]).unwrap();
    wait_until(|| numbers(&world.b).len() > count + 5);
    world.b.exec_ok(["docker", "kill", "web"]).unwrap();
    wait_until(|| !is_running(&world.b, "web"));
    nothing_dumped(&world.a);
    nothing_dumped(&world.b);
}

/// Threads, a file that was deleted and is still open, a pipe, a pair of sockets, a timer, a child, a map of a file, a tmpfs.
const MANY_THINGS: &str = r#"
import os, socket, threading, time, signal, tempfile, mmap
held = open("/srv/held", "w+b"); held.write(b"held by name only in memory"); held.flush(); os.unlink("/srv/held")
reading, writing = os.pipe(); os.write(writing, b"in the pipe")
one, other = socket.socketpair(); one.sendall(b"in the socket")
kept = open("/srv/kept", "a+"); kept.write("begun\n"); kept.flush()
mapped = mmap.mmap(os.open("/srv/mapped", os.O_RDWR | os.O_CREAT), 0) if os.path.exists("/srv/mapped") else None
open("/memory/file", "w").write("in the tmpfs")
ticks = 0
def tick(*_):
    global ticks
    ticks += 1
signal.signal(signal.SIGALRM, tick); signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
counted = [0, 0]
def count(which):
    while True:
        counted[which] += 1
        time.sleep(0.01)
for which in range(2): threading.Thread(target=count, args=(which,), daemon=True).start()
child = os.fork()
if child == 0:
    n = 0
    while True:
        n += 1
        open("/srv/child.new", "w").write(f"{os.getpid()} {n}"); os.rename("/srv/child.new", "/srv/child")
        time.sleep(0.02)
begun = time.monotonic(); last = begun; backwards = 0
token = os.urandom(16).hex()
server = socket.socket(); server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); server.bind(("0.0.0.0", 8080)); server.listen()
server.settimeout(0.05)
told = {}
while True:
    now = time.monotonic(); backwards += now < last; last = now
    try: client, _ = server.accept()
    except (TimeoutError, InterruptedError): continue
    client.settimeout(2)
    what = client.recv(100).strip()
    if what == b"look":
        held.seek(0)
        told["held"] = held.read().decode()
        told["pipe"] = os.read(reading, 100).decode(); os.write(writing, b"in the pipe")
        told["socket"] = other.recv(100).decode(); one.sendall(b"in the socket")
        told["tmpfs"] = open("/memory/file").read()
        kept.write("looked\n"); kept.flush()
    client.sendall("\n".join([f"{k}={v}" for k, v in told.items()] + [f"token={token}", f"ticks={ticks}", f"counted={min(counted)}",
        f"child={open('/srv/child').read()}", f"backwards={backwards}", f"pid={os.getpid()}", f"uptime={now - begun}"]).encode())
    client.close()
"#;

fn look(address: std::net::Ipv4Addr) -> Option<BTreeMap<String, String>> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect((address, 8080)).ok()?;
    stream
        .set_read_timeout(Some(std::time::Duration::from_secs(5)))
        .ok()?;
    stream.write_all(b"look").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let pairs = answer.lines().filter_map(|line| line.split_once('='));
    let facts: BTreeMap<String, String> = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    facts.contains_key("uptime").then_some(facts)
}

fn number(facts: &BTreeMap<String, String>, key: &str) -> f64 {
    let text = &facts[key];
    text.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_program_with_many_things_open_goes_on_with_all_of_them() {
    let world = world!();
    let image = world.a.load_image("python").unwrap();
    let run = [
        "docker",
        "run",
        "-d",
        "--name",
        "web",
        "-p",
        "8080:8080",
        "--tmpfs",
        "/memory",
        "-v",
        "data:/srv",
        &image,
        "python3",
        "-c",
        MANY_THINGS,
    ];
    world.a.exec_ok(run).unwrap();
    wait_until(|| look(world.a.address()).is_some());
    let before = look(world.a.address()).unwrap();
    world.live("a", "b", &[]);
    wait_until(|| look(world.b.address()).is_some());
    let after = look(world.b.address()).unwrap();
    for same in ["held", "pipe", "socket", "tmpfs", "token", "pid"] {
        assert_eq!(before[same], after[same], "{same}");
    }
    assert_eq!(after["held"], "held by name only in memory");
    assert_eq!(after["tmpfs"], "in the tmpfs");
    assert_eq!(after["backwards"], "0", "its clock went back");
    for more in ["ticks", "counted", "child", "uptime"] {
        assert!(
            number(&after, more) > number(&before, more),
            "{more}: {before:?}\n{after:?}"
        );
    }
    let later = look(world.b.address()).unwrap();
    wait_until(|| {
        let now = look(world.b.address()).unwrap();
        ["ticks", "counted", "child"]
            .iter()
            .all(|k| number(&now, k) > number(&later, k))
    });
    // What it wrote into the file that it had open is in the volume there, and only there.
    let kept = world.b.sh("cat /var/lib/docker/volumes/data/_data/kept").unwrap();
    assert!(kept.lines().count() >= 3, "{kept}");
    nothing_dumped(&world.a);
    nothing_dumped(&world.b);
}

#[test]
fn a_server_of_several_processes_serves_on() {
    let world = world!();
    let image = world.a.load_image("web:1").unwrap();
    world
        .a
        .exec_ok([
            // Processes of other users need a capability that not every machine gives to its tests.
            "docker",
            "run",
            "-d",
            "--name",
            "web",
            "-p",
            "8080:8080",
            "--user",
            "0:0",
            &image,
            "nginx",
            "-g",
            "daemon off; user root;",
        ])
        .unwrap();
    wait_until(|| get(world.a.address(), 8080));
    let processes = |node: &tranship_testkit::testbed::Node| {
        let list = node.exec_ok(["docker", "top", "web", "-eo", "pid,args"]).unwrap();
        let commands = list
            .lines()
            .skip(1)
            .filter_map(|line| line.trim().split_once(' '));
        let mut commands: Vec<String> = commands.map(|(_, command)| command.to_owned()).collect();
        commands.sort();
        commands
    };
    let before = processes(&world.a);
    assert!(before.len() > 1, "{before:?}");
    world.live("a", "b", &[]);
    assert_eq!(processes(&world.b), before);
    wait_until(|| get(world.b.address(), 8080));
    // It answers its health check as before.
    wait_until(|| inspect(&world.b, "web", "{{.State.Health.Status}}") == "healthy");
    nothing_dumped(&world.b);
}

#[test]
fn what_cannot_be_dumped_is_said_before_anything_moves() {
    let world = world!();
    let image = world.a.load_image("python").unwrap();
    world
        .a
        .exec_ok([
            "docker",
            "run",
            "-dt",
            "--ipc",
            "shareable",
            "--name",
            "web",
            &image,
            "sleep",
            "1000",
        ])
        .unwrap();
    let found = world.findings("web", &["--mode", "live"]);
    for code in ["live.terminal", "live.namespace"] {
        assert!(
            found.contains(&(code.to_owned(), "conflict".to_owned())),
            "{code}: {found:?}"
        );
    }
    let outcome = world.migrate(&["--mode", "live"]).expect(1);
    outcome.saying(&["live.terminal", "--mode warm"]);
    let outcome = world.migrate(&["--mode", "warm", "--tcp", "keep"]).expect(1);
    outcome.saying(&["live.tcp-keep", "leave out --tcp keep"]);
    assert!(is_running(&world.a, "web"));
    nothing_dumped(&world.a);
}

#[test]
fn locks_on_files_travel_only_where_a_restore_brings_them_back() {
    let world = world!();
    let image = world.a.load_image("python").unwrap();
    let program = "import fcntl, time
f = open('/srv/lock', 'w'); fcntl.lockf(f, fcntl.LOCK_EX)
i = 0
while True:
    i += 1; print(i, flush=True); time.sleep(0.05)";
    let run = [
        "docker",
        "run",
        "-d",
        "--name",
        "web",
        "-v",
        "data:/srv",
        &image,
        "python3",
        "-c",
        program,
    ];
    world.a.exec_ok(run).unwrap();
    wait_until(|| numbers(&world.a).len() > 5);
    let configuration = "/etc/criu/runc.conf";
    world.b.sh(&format!("mv {configuration} /tmp/")).unwrap();
    let found = world.findings("web", &["--mode", "live"]);
    assert!(
        found.contains(&("live.locks".to_owned(), "conflict".to_owned())),
        "{found:?}"
    );
    world.b.sh(&format!("mv /tmp/runc.conf {configuration}")).unwrap();
    world.live("a", "b", &[]);
    wait_until(|| numbers(&world.b).len() > 5);
    let locks = world.b.sh("cat /proc/locks").unwrap();
    let process = inspect(&world.b, "web", "{{.State.Pid}}");
    assert!(
        locks
            .lines()
            .any(|line| line.contains("POSIX") && line.contains(&format!(" {process} "))),
        "{locks}"
    );
}
