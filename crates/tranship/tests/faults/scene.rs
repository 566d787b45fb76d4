//! Two hosts at work: engines and agents asked directly, and whoever keeps services running.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tranship_testkit::testbed::{Node, Options};

use crate::cases::{Case, Mode, Side};
use crate::leftovers;
use crate::world::{World, set_fail_point, wait_until};

/// Directories of the destination that are on small disks.
const SMALL: [(&str, u64); 2] = [("/var/lib/docker", 1 << 30), ("/var/lib/tranship", 32 << 20)];

/// The volume of the container, as the host sees it.
const LOG: &str = "var/lib/docker/volumes/data/_data/log";

/// Asks an engine; nothing where none answers.
pub fn engine(node: &Node, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
    let mut stream = UnixStream::connect(node.engine_socket().ok()?).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let head = format!(
        "{method} /v1.45{path} HTTP/1.0\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    let text = answer.split_once("\r\n\r\n")?.1;
    Some((status, serde_json::from_str(text).unwrap_or(Value::Null)))
}

/// A document of an engine.
pub fn engine_get(node: &Node, path: &str) -> Option<Value> {
    engine(node, "GET", path, &Value::Null).and_then(|(status, document)| (status == 200).then_some(document))
}

/// Asks an engine that has to do it.
#[track_caller]
fn engine_ok(node: &Node, method: &str, path: &str, body: &Value) -> Value {
    let (status, document) =
        engine(node, method, path, body).unwrap_or_else(|| panic!("no answer to {path}"));
    assert!(status < 300, "{method} {path}: {status} {document}");
    document
}

/// What both nodes hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    pub engines: [Vec<String>; 2],
    pub systems: [Vec<String>; 2],
    pub agents: [Vec<String>; 2],
}

/// Two hosts with the image, ready for one case after another.
pub struct Scene {
    pub world: World,
    image: String,
    empty: Option<Holdings>,
}

impl Scene {
    pub fn new() -> Option<Self> {
        let disks = SMALL.iter().fold(Options::default(), |options, (path, bytes)| {
            options.small_disk("b", path, *bytes)
        });
        let world = World::with(disks)?;
        let image = world.a.load_image("python").unwrap();
        world.b.load_image("python").unwrap();
        // Brings the program to both hosts.
        let _ready = world.run(&["doctor", "ssh://root@a", "ssh://root@b"]);
        let mut scene = Self {
            world,
            image,
            empty: None,
        };
        scene.clear();
        // The ends of the connections that brought it go a moment later.
        let passing = |l: &String| l.contains("agent --stdio") || l.starts_with("sshd-session");
        let ended = |node: &Node| !node.command_lines().iter().any(passing);
        wait_until(|| scene.nodes().into_iter().all(ended));
        scene.empty = Some(scene.holdings());
        Some(scene)
    }

    pub fn nodes(&self) -> [&Node; 2] {
        [&self.world.a, &self.world.b]
    }

    pub fn holdings(&self) -> Holdings {
        let [a, b] = self.nodes();
        Holdings {
            engines: [a, b].map(|n| leftovers::of_engine(n).unwrap_or_default()),
            systems: [a, b].map(leftovers::of_system),
            agents: [a, b].map(leftovers::of_agent),
        }
    }

    /// What the two hosts held before the first case.
    pub fn empty(&self) -> Holdings {
        self.empty.clone().unwrap()
    }

    /// The container at the source, as the case wants it.
    pub fn set_up(&self, case: &Case) {
        let a = &self.world.a;
        let stateful = case.mode != Mode::Stateless;
        if case.image_travels() {
            engine_ok(
                &self.world.b,
                "DELETE",
                &format!("/images/{}?force=1", self.image),
                &Value::Null,
            );
        }
        engine_ok(
            a,
            "POST",
            "/networks/create",
            &json!({"Name": "back", "Driver": "bridge"}),
        );
        let binds: &[&str] = if stateful { &["data:/lines"] } else { &[] };
        let second = 1_000_000_000u64;
        let body = json!({
            "Image": self.image,
            "Cmd": ["append-service", if stateful { "/lines" } else { "/tmp" }],
            "StopSignal": "SIGTERM",
            "ExposedPorts": {"7000/tcp": {}},
            // Healthy soon, and not asked again.
            "Healthcheck": {"Test": ["CMD", "true"], "Interval": 3600 * second, "StartPeriod": 60 * second,
                "StartInterval": second / 10},
            "HostConfig": {
                "Binds": binds,
                "NetworkMode": "back",
                "RestartPolicy": {"Name": "always"},
                "PortBindings": {"7000/tcp": [{"HostPort": "7000"}]},
            },
        });
        engine_ok(a, "POST", "/containers/create?name=web", &body);
        engine_ok(a, "POST", "/containers/web/start", &Value::Null);
    }

    /// Takes away what a case brought.
    pub fn clear(&self) {
        for node in self.nodes() {
            arm(node, "");
            if let Ok(root) = node.root() {
                let _ = std::fs::remove_file(root.join("run/tranship/fail-point.reached"));
            }
            for path in [
                "/containers/web?force=1&v=1",
                "/volumes/data?force=1",
                "/networks/back",
            ] {
                let _ = engine(node, "DELETE", path, &Value::Null);
            }
        }
        if leftovers::of_engine(&self.world.b)
            .is_some_and(|held| !held.iter().any(|l| l.starts_with("image")))
        {
            self.world.b.load_image("python").unwrap();
        }
    }

    /// Places that were passed on a node since the case began.
    pub fn reached(&self, node: &Node) -> Vec<String> {
        let file = node
            .root()
            .map(|root| root.join("run/tranship/fail-point.reached"));
        let text = file.map_or_else(
            |_| String::new(),
            |file| std::fs::read_to_string(file).unwrap_or_default(),
        );
        text.lines().map(str::to_owned).collect()
    }

    /// The newest states in the journals of a node: what is durable there, whether an agent runs or not.
    pub fn states(&self, node: &Node, side: Side) -> BTreeMap<String, (String, String)> {
        let Ok(root) = node.root() else {
            return BTreeMap::new();
        };
        let directory = root.join("var/lib/tranship/agent").join(journals(side));
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries
            .filter_map(|e| {
                let path = e.path();
                let id = path.file_stem()?.to_string_lossy().into_owned();
                Some((id, newest(&std::fs::read(&path).ok()?)?))
            })
            .collect()
    }

    /// Begins the migration.
    pub fn begin(&self, case: &Case) -> Child {
        let mut options = vec!["--mode", case.mode.name()];
        if case.mode != Mode::Stateless {
            options.extend(["--hook-pre-freeze", "true"]);
        }
        self.world.begin(&options)
    }

    /// Leaves no byte on the destination's disks; on that of the agent's records only where the service runs there already:
    /// its log, too, would end in half a line.
    pub fn fill_disks(&self, runs_there: bool) {
        for (path, _) in SMALL.into_iter().skip(usize::from(runs_there)) {
            let script = format!(
                "fallocate -l $(($(df --output=avail -B1 {path} | tail -1) - 65536)) {path}/ballast; \
                 dd if=/dev/zero of={path}/ballast.rest bs=4096 2>/dev/null; true"
            );
            self.world.b.sh(&script).unwrap();
        }
    }

    pub fn free_disks(&self) {
        for (path, _) in SMALL {
            self.world
                .b
                .sh(&format!("rm -f {path}/ballast {path}/ballast.rest"))
                .unwrap();
        }
    }

    /// The lines that the service wrote, where it is now.
    pub fn log(&self, node: &Node) -> String {
        std::fs::read_to_string(node.root().unwrap().join(LOG)).unwrap()
    }
}

/// Arms places on a node; on one that is down there is nothing to arm.
pub fn arm(node: &Node, text: &str) {
    if let Ok(root) = node.root() {
        set_fail_point(&root, text);
    }
}

/// The container's document on a node.
pub fn inspect(node: &Node) -> Option<Value> {
    engine_get(node, "/containers/web/json")
}

/// Where the journals of a side are.
pub fn journals(side: Side) -> &'static str {
    match side {
        Side::Source => "departures",
        Side::Destination => "arrivals",
    }
}

/// The state, and the fault if there is one, of the last whole record of a journal.
fn newest(bytes: &[u8]) -> Option<(String, String)> {
    let mut rest = bytes;
    let mut last = None;
    while let Some(head) = rest.get(..9) {
        let length = u32::from_le_bytes(head[..4].try_into().unwrap()) as usize;
        let Some(payload) = rest.get(9..9 + length) else {
            break;
        };
        let Ok(record) = serde_json::from_slice::<Value>(payload) else {
            break;
        };
        last = Some(record);
        rest = &rest[9 + length..];
    }
    let record = last?;
    let fault = &record["fault"];
    let fault = if fault.is_null() {
        String::new()
    } else {
        fault.to_string()
    };
    Some((record["state"].as_str()?.to_owned(), fault))
}

/// Whether an agent runs on a node.
pub fn agent_runs(node: &Node) -> bool {
    node.command_lines()
        .iter()
        .any(|line| line.contains("agent --serve"))
}

/// Starts the agents again that ended, as an init system does with a service.
pub struct Keeper {
    stop: Arc<AtomicBool>,
    back: Arc<Mutex<[Option<Instant>; 2]>>,
    thread: JoinHandle<()>,
}

impl Keeper {
    /// Keeps those of the two agents that are asked for.
    pub fn start(nodes: [&Node; 2], kept: [bool; 2]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let back = Arc::new(Mutex::new([None; 2]));
        let nodes = nodes.map(Clone::clone);
        let (told, noted) = (Arc::clone(&stop), Arc::clone(&back));
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                for (index, node) in nodes.iter().enumerate() {
                    if kept[index] && node.is_running() && !agent_runs(node) {
                        start_agent(node);
                        noted.lock().unwrap()[index] = Some(Instant::now());
                    }
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Self { stop, back, thread }
    }

    /// When an agent was started again last.
    pub fn back_at(&self, index: usize) -> Option<Instant> {
        self.back.lock().unwrap()[index]
    }

    pub fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// Starts the program that was brought there, as its service would.
pub fn start_agent(node: &Node) {
    let script = "mkdir -p /var/lib/tranship/agent; program=$(ls -t /root/.cache/tranship/bin/tranship-* | head -1); \
                  setsid \"$program\" agent --serve -v </dev/null >/dev/null 2>>/var/lib/tranship/agent/agent.log & \
                  tries=0; while ! [ -S /run/tranship/agent.sock ] && [ $tries -lt 100 ]; do sleep 0.02; tries=$((tries+1)); done";
    // A host that is going down just now has nothing to start it with; it is tried again.
    let _ = node.exec(["sh", "-c", script]);
    let deadline = Instant::now() + Duration::from_secs(3);
    while !agent_runs(node) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
}
