//! A host of its own for a test: a real `sshd` on a loopback port, with keys, a home and a cache that belong to it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tranship_core::address::SshAddress;
use tranship_wire::bootstrap::BootstrapOptions;
use tranship_wire::ssh::SshTransport;

/// Says why a test did not run.
#[allow(clippy::print_stderr, reason = "this is where a test's words go")]
pub fn skipped(reason: &str) {
    eprintln!("SKIPPED: {reason}");
}

/// A host that is switched off when dropped.
pub struct Host {
    directory: TempDir,
    port: u16,
    sshd: Child,
}

/// What is different about a host.
#[derive(Default)]
pub struct Setup<'a> {
    /// The body of a shell script that stands in for the login shell; the command is in `SSH_ORIGINAL_COMMAND`.
    pub shell: Option<&'a str>,
    /// Shell commands that run as root in a mount namespace of the host's own before `sshd` starts; `$D` is the
    /// host's directory.
    pub mounts: Option<&'a str>,
    /// What `tranship agent --version-line` of an installed one says.
    pub installed: Option<&'a str>,
}

pub fn program(name: &str) -> Option<PathBuf> {
    [
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
        "/usr/local/bin",
        "/usr/local/sbin",
    ]
    .iter()
    .map(|directory| Path::new(directory).join(name))
    .find(|path| path.exists())
}

fn executable(path: &Path, text: &str) {
    // Other threads start programs all the time, and one of them could hold a file open that is being written; the
    // kernel refuses to run such a file. Renaming alone would not help, but writing from a child of our own does.
    let mut cat = Command::new("sh")
        .args(["-c", "cat >\"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    cat.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(cat.wait().unwrap().success());
}

/// A stand-in for the binary: a shell script with enough padding for several pieces.
pub fn agent_script(version_line: &str, padding: usize) -> String {
    let mut text = format!(
        r#"#!/bin/sh
case "$*" in
"agent --version-line") echo "{version_line}"; exit;;
"agent --stdio"*) echo "I am $0 with $*"; read -r order;
  case "$order" in
  echo) exec cat;;
  fail) echo "out of cheese" >&2; exit 3;;
  die) kill -9 $PPID; sleep 5; exit;;
  esac;;
esac
exit 9
"#
    );
    let line = format!("# {}\n", "padding ".repeat(15));
    while text.len() < padding {
        text.push_str(&line);
    }
    text
}

impl Host {
    /// Starts a host, or says why there is none.
    pub fn start(setup: &Setup<'_>) -> Option<Self> {
        let Some(sshd) = program("sshd") else {
            skipped("no sshd");
            return None;
        };
        let root = rustix::process::geteuid().is_root();
        if setup.mounts.is_some() && !(root && can_mount()) {
            skipped("mounting is not allowed");
            return None;
        }
        if root {
            // As a service's start-up does it.
            std::fs::create_dir_all("/run/sshd").unwrap();
        }
        let directory = tempfile::Builder::new().prefix("wire-host-").tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        for name in ["home", "cache", "fallback", "bin"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        for key in ["host_key", "user_key", "other_key"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", &at(key)])
                .status()
                .unwrap();
            assert!(made.success());
        }
        std::fs::copy(at("user_key.pub"), at("authorized_keys")).unwrap();
        let path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";
        let mut config = format!(
            "HostKey {}\nPidFile none\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\nMaxStartups 100\n\
             SetEnv XDG_CACHE_HOME={} HOME={} PATH={}:{path}\n",
            at("host_key"),
            at("authorized_keys"),
            at("cache"),
            at("home"),
            at("bin")
        );
        if let Some(shell) = setup.shell {
            executable(Path::new(&at("shell")), &format!("#!/bin/sh\n{shell}\n"));
            writeln!(config, "ForceCommand {}", at("shell")).unwrap();
        }
        if let Some(line) = setup.installed {
            executable(Path::new(&at("bin/tranship")), &agent_script(line, 0));
        }
        std::fs::write(at("sshd_config"), config).unwrap();
        // Another process may take a port between our asking and using it.
        for _ in 0..5 {
            let port = free_port();
            let mut command = match setup.mounts {
                None => Command::new(&sshd),
                Some(mounts) => {
                    let script = format!("D=$1; shift; set -e; {mounts}\nexec \"$@\"");
                    let mut command = Command::new("unshare");
                    command
                        .args(["-m", "sh", "-c", &script, "sh"])
                        .arg(directory.path())
                        .arg(&sshd);
                    command
                }
            };
            let log = std::fs::File::create(at("sshd.log")).unwrap();
            let mut child = command
                .args([
                    "-D",
                    "-e",
                    "-f",
                    &at("sshd_config"),
                    "-o",
                    "ListenAddress=127.0.0.1",
                    "-p",
                ])
                .arg(port.to_string())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .unwrap();
            if listens(port, &mut child) {
                let host = Self {
                    directory,
                    port,
                    sshd: child,
                };
                host.write_client_files("user_key", "host_key");
                return Some(host);
            }
            let _ = child.kill();
            child.wait().unwrap();
        }
        panic!(
            "sshd does not start: {}",
            std::fs::read_to_string(at("sshd.log")).unwrap()
        );
    }

    /// What the client knows: its own key, and the host's.
    pub fn write_client_files(&self, user_key: &str, host_key: &str) {
        let key = match host_key {
            "" => String::new(),
            name => std::fs::read_to_string(self.path(&format!("{name}.pub"))).unwrap(),
        };
        let known = match host_key {
            "" => String::new(),
            _ => format!("[127.0.0.1]:{} {key}", self.port),
        };
        std::fs::write(self.path("known_hosts"), known).unwrap();
        let config = format!(
            "IdentityFile {}\nIdentitiesOnly yes\nIdentityAgent none\nUserKnownHostsFile {}\n\
             GlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\nUpdateHostKeys no\n",
            self.path(user_key).display(),
            self.path("known_hosts").display()
        );
        std::fs::write(self.path("ssh_config"), config).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Puts a program first in the host's PATH.
    pub fn add_program(&self, name: &str, text: &str) {
        executable(&self.path("bin").join(name), text);
    }

    pub fn ssh(&self) -> SshTransport {
        let address = SshAddress {
            user: None,
            host: "127.0.0.1".into(),
            port: Some(self.port),
        };
        let mut ssh = SshTransport::new(address);
        ssh.options = vec!["-F".into(), self.path("ssh_config").display().to_string()];
        ssh.batch = true;
        ssh
    }

    /// Options to bring a binary with this text.
    pub fn options(&self, text: &str) -> BootstrapOptions {
        let binary = self.path("tranship");
        std::fs::write(&binary, text).unwrap();
        let mut options = BootstrapOptions::new("0.2.0", 1..=2, binary, sha256(text.as_bytes()));
        options.fallback = self.path("fallback").display().to_string();
        options.step_time = Duration::from_secs(20);
        options.login_time = Duration::from_secs(20);
        options
    }

    pub fn cache(&self) -> PathBuf {
        self.path("cache/tranship/bin")
    }

    /// The names of what is in the cache, in order.
    pub fn cached(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.cache()) else {
            return Vec::new();
        };
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        })
}

pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn listens(port: u16, sshd: &mut Child) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline && sshd.try_wait().unwrap().is_none() {
        if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

fn can_mount() -> bool {
    let tried = Command::new("unshare")
        .args(["-m", "sh", "-c", "mount -t tmpfs none /mnt"])
        .stderr(Stdio::null())
        .status();
    tried.is_ok_and(|status| status.success())
}
