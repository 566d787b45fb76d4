//! Two hosts, the program under test, and what tests ask of them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use tranship_testkit::testbed::{Node, Options, Testbed, missing_capability};

/// What a run of the program left.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Ends the test with everything that was printed unless the exit code is `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "\n--- stdout\n{}\n--- stderr\n{}",
            self.stdout, self.stderr
        );
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// Ends the test unless the error output has the code and the text.
    #[track_caller]
    pub fn saying(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.stderr.contains(text), "{text:?} is not in\n{}", self.stderr);
        }
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("{e}:\n{}\n{}", self.stdout, self.stderr))
    }
}

/// Two hosts and a place for the program's own files.
pub struct World {
    pub bed: Testbed,
    pub a: Node,
    pub b: Node,
    pub state: tempfile::TempDir,
}

/// Two hosts, or the end of the test where this machine cannot carry them.
macro_rules! world {
    () => {
        world!(tranship_testkit::testbed::Options::default())
    };
    ($options:expr) => {
        match $crate::world::World::with($options) {
            Some(world) => world,
            None => return,
        }
    };
}

impl World {
    pub fn with(options: Options) -> Option<Self> {
        if let Some(reason) = missing_capability() {
            tranship_testkit::skipped(&reason);
            return None;
        }
        let bed = Testbed::up(options).unwrap();
        let [a, b] = bed.array();
        Some(Self {
            bed,
            a,
            b,
            state: tempfile::tempdir().unwrap(),
        })
    }

    /// The program with a clean environment. It hears signals also where these tests do not, as in the background of a script: what is
    /// ignored stays so in a child.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("/usr/bin/env");
        command
            .arg("--default-signal=INT,HUP,TERM")
            .arg(program())
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.state.path())
            .env("TRANSHIP_STATE_DIR", self.state.path().join("state"))
            .env("TRANSHIP_RUNTIME_DIR", self.state.path().join("run"))
            .env("TRANSHIP_SSH_CONFIG", self.bed.ssh_config())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, args: &[&str]) -> Outcome {
        finish(self.command(args).spawn().unwrap())
    }

    /// `tranship migrate web --from a --to b` with these options.
    pub fn migrate(&self, options: &[&str]) -> Outcome {
        self.migrate_between("a", "b", options)
    }

    /// The same between any two hosts.
    pub fn migrate_between(&self, from: &str, to: &str, options: &[&str]) -> Outcome {
        self.run(&migrate_args("web", from, to, options))
    }

    /// `tranship migrate web --from a --to b`, not waited for.
    pub fn begin(&self, options: &[&str]) -> Child {
        self.begin_between("a", "b", options)
    }

    /// The same between any two hosts.
    pub fn begin_between(&self, from: &str, to: &str, options: &[&str]) -> Child {
        self.command(&migrate_args("web", from, to, options))
            .spawn()
            .unwrap()
    }

    /// Begins a migration and waits until it stands at a place of a node, where it is held.
    pub fn begin_held(&self, node: &Node, place: &str, options: &[&str]) -> Child {
        // A migration before may have passed there.
        node.sh("rm -f /run/tranship/fail-point.reached").unwrap();
        self.arm(node, &format!("{place}=hold"));
        let child = self.begin(options);
        wait_until(|| reached(node, place));
        child
    }

    /// The newest migration's id.
    pub fn newest_id(&self) -> String {
        let list = self.run(&["list", "--json"]).expect(0).json();
        list[0]["id"].as_str().unwrap().to_owned()
    }

    /// `tranship plan web --from a --to b --json` with these options: its findings as `(code, severity)`.
    pub fn findings(&self, container: &str, options: &[&str]) -> Vec<(String, String)> {
        let mut args = vec![
            "plan",
            container,
            "--from",
            "ssh://root@a",
            "--to",
            "ssh://root@b",
            "--json",
        ];
        args.extend(options);
        let outcome = self.run(&args);
        outcome.json()[0]["findings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| {
                (
                    f["code"].as_str().unwrap().to_owned(),
                    f["severity"].as_str().unwrap().to_owned(),
                )
            })
            .collect()
    }

    /// A small web service on port 8080 of `a`, by the name `web`.
    pub fn serve(&self, options: &[&str]) {
        let image = self.a.load_image("busybox").unwrap();
        let mut args = vec![
            self.a.engine().client(),
            "run",
            "-d",
            "--name",
            "web",
            "--restart",
            "always",
            "--stop-signal",
            "KILL",
            "-p",
            "8080:8080",
        ];
        args.extend(options);
        args.push(&image);
        self.a.exec_ok(&args).unwrap();
        wait_until(|| get(self.a.address(), 8080));
    }

    /// Arms a fail point on a node, for the agent that runs there or will.
    pub fn arm(&self, node: &Node, text: &str) {
        set_fail_point(&node.root().unwrap(), text);
    }

    /// What both engines hold.
    pub fn inventories(&self) -> (Vec<String>, Vec<String>) {
        (self.a.inventory().unwrap(), self.b.inventory().unwrap())
    }
}

/// The arguments of `tranship migrate`.
pub fn migrate_args<'a>(container: &'a str, from: &str, to: &str, options: &[&'a str]) -> Vec<&'a str> {
    let address = |name: &str| match name {
        "a" => "ssh://root@a",
        "b" => "ssh://root@b",
        other => panic!("there is no host {other}"),
    };
    let mut args = vec!["migrate", container, "--from", address(from), "--to", address(to)];
    args.extend(options);
    args
}

/// Writes what arms fail points below a node's root directory: whole or not at all, since an agent reads it at any moment.
pub fn set_fail_point(root: &Path, text: &str) {
    use std::os::unix::fs::DirBuilderExt as _;
    let directory = root.join("run/tranship");
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .unwrap();
    std::fs::write(directory.join("fail-point.new"), text).unwrap();
    std::fs::rename(directory.join("fail-point.new"), directory.join("fail-point")).unwrap();
}

/// The id of an image that a node makes of another one and gives no tag.
pub fn untagged_image(node: &Node, of: &str) -> String {
    let build = format!("printf 'FROM {of}\nENV X=y\n' | DOCKER_BUILDKIT=0 docker build -q -");
    node.sh(&build).unwrap().trim().to_owned()
}

/// Whether an agent of a node passed a place.
pub fn reached(node: &Node, place: &str) -> bool {
    let file = "/run/tranship/fail-point.reached";
    node.exec(["grep", "-qsx", place, file]).unwrap().success()
}

/// The program under test: a copy, so that a build that goes on beside the tests does not change it under their feet.
pub fn program() -> &'static Path {
    static COPY: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join("tranship");
        std::fs::copy(env!("CARGO_BIN_EXE_tranship"), &copy).unwrap();
        // It is hashed and carried often, and most of a test build are symbols. Where there is no `strip`, it is slower.
        let _ = Command::new("strip").arg(&copy).status();
        (directory, copy)
    });
    &COPY.1
}

/// Waits for the program's end.
pub fn finish(child: Child) -> Outcome {
    let output = child.wait_with_output().unwrap();
    Outcome {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// One field of a container's inspect document.
pub fn inspect(node: &Node, container: &str, format: &str) -> String {
    node.exec_ok([node.engine().client(), "inspect", "--format", format, container])
        .unwrap()
        .trim()
        .to_owned()
}

pub fn is_running(node: &Node, container: &str) -> bool {
    let output = node
        .exec([
            node.engine().client(),
            "inspect",
            "--format",
            "{{.State.Running}}",
            container,
        ])
        .unwrap();
    output.stdout.trim() == "true"
}

/// One request; whether it was answered with status 200.
pub fn get(address: Ipv4Addr, port: u16) -> bool {
    let answer = || -> std::io::Result<Vec<u8>> {
        let mut stream =
            TcpStream::connect_timeout(&SocketAddr::from((address, port)), Duration::from_millis(500))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET / HTTP/1.0\r\nHost: web\r\n\r\n")?;
        let mut body = Vec::new();
        stream.read_to_end(&mut body)?;
        Ok(body)
    };
    answer().is_ok_and(|body| body.get(9..12) == Some(b"200"))
}

/// Whether a web service answers before long: a container that was just started runs before its program listens.
pub fn serves(address: Ipv4Addr, port: u16) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !get(address, port) {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

/// Two hosts, each with a container `c1` that does nothing, made with these options.
pub fn with_containers(options: &str) -> Option<World> {
    let world = World::with(Options::default())?;
    for node in [&world.a, &world.b] {
        let image = node.load_image("busybox").unwrap();
        node.sh(&format!(
            "docker run -d --name c1 --network none {options} {image} sleep 86400"
        ))
        .unwrap();
    }
    Some(world)
}

/// Runs a command of the shell in `c1`.
pub fn shell(node: &Node, command: &str) -> String {
    node.exec_ok(["docker", "exec", "c1", "sh", "-c", command])
        .unwrap()
}

/// A connection to a service that is asked line by line. One that is paused answers nothing for as long as it is paused.
pub fn converse(address: Ipv4Addr, port: u16) -> std::io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((address, port)), Duration::from_millis(500))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

/// Sends a line, and waits for the whole line that answers it.
pub fn ask(stream: &mut BufReader<TcpStream>, line: &str) -> std::io::Result<String> {
    stream.get_mut().write_all(line.as_bytes())?;
    let mut answer = String::new();
    if stream.read_line(&mut answer)? == 0 || !answer.ends_with('\n') {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer.trim().to_owned())
}

/// Waits until something is so, and at most a minute; on a slow machine, as many as `TRANSHIP_TEST_PATIENCE` says.
#[track_caller]
pub fn wait_until(mut condition: impl FnMut() -> bool) {
    let minutes = std::env::var("TRANSHIP_TEST_PATIENCE").map_or(1, |minutes| minutes.parse().unwrap());
    let deadline = Instant::now() + Duration::from_secs(60 * minutes);
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "it did not come true within {minutes} min"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}
