//! ssh keys and configuration of a bed: everybody may log in everywhere and nobody is asked anything.
//!
//! One key pair opens `root`, `deploy` and `guest` on all nodes, from the host and from the nodes themselves. Host
//! keys are known beforehand, so host-key checking stays on.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread;

use super::error::{AtPath, Result};
use super::network::{host_address, node_address};
use super::paths::make_dir;
use super::run::{HOST, checked, host};
use super::state::Record;

/// Users with the bed's key, and their home directories; they are looked up in the tree's own list of users.
const USERS: [&str; 3] = ["root", "deploy", "guest"];

/// Where the ssh files of a bed are.
#[derive(Debug, Clone)]
pub(crate) struct SshFiles {
    directory: PathBuf,
}

impl SshFiles {
    /// The ssh files below a bed's directory.
    pub fn of(bed: &Path) -> Self {
        Self {
            directory: bed.join("ssh"),
        }
    }

    /// For `ssh -F` on the host.
    pub fn config(&self) -> PathBuf {
        self.directory.join("config")
    }

    /// The private key that opens every node.
    pub fn identity(&self) -> PathBuf {
        self.directory.join("id_ed25519")
    }

    /// The host keys of all nodes.
    pub fn known_hosts(&self) -> PathBuf {
        self.directory.join("known_hosts")
    }

    fn host_key(&self, node: &str) -> PathBuf {
        self.directory.join(format!("host-{node}"))
    }

    /// Makes all keys and the files for the host's side.
    pub fn create(&self, record: &Record) -> Result<()> {
        make_dir(&self.directory)?;
        thread::scope(|scope| {
            let mut jobs = vec![scope.spawn(|| generate(&self.identity(), "testbed"))];
            for node in &record.nodes {
                let path = self.host_key(node);
                jobs.push(scope.spawn(move || generate(&path, node)));
            }
            jobs.into_iter().map(join).collect::<Result<Vec<()>>>()
        })?;
        let mut known_hosts = String::new();
        let mut config = String::new();
        for (index, node) in record.nodes.iter().enumerate() {
            let address = node_address(record.subnet, index);
            let path = public(&self.host_key(node));
            let key = fs::read_to_string(&path).at("read", &path)?;
            known_hosts.push_str(&format!("{node},{address} {key}"));
            config.push_str(&format!("Host {node}\n    HostName {address}\n"));
        }
        config.push_str(&format!(
            "Match all\n    User root\n    IdentityFile {}\n    IdentitiesOnly yes\n    UserKnownHostsFile {}\n    \
             GlobalKnownHostsFile /dev/null\n    StrictHostKeyChecking yes\n    BatchMode yes\n    \
             ConnectTimeout 10\n    LogLevel ERROR\n",
            self.identity().display(),
            self.known_hosts().display()
        ));
        fs::write(self.known_hosts(), known_hosts).at("write", &self.known_hosts())?;
        fs::write(self.config(), config).at("write", &self.config())
    }

    /// Puts a node's keys, and what it must know of the others, into the files that make it different from the
    /// shared tree.
    pub fn install(&self, record: &Record, node: &str, upper: &Path) -> Result<()> {
        let etc_ssh = upper.join("etc/ssh");
        make_dir(&etc_ssh)?;
        copy(&self.host_key(node), &etc_ssh.join("ssh_host_ed25519_key"), 0o600)?;
        copy(
            &public(&self.host_key(node)),
            &etc_ssh.join("ssh_host_ed25519_key.pub"),
            0o644,
        )?;
        let known_hosts = etc_ssh.join("ssh_known_hosts");
        copy(&self.known_hosts(), &known_hosts, 0o644)?;

        let passwd = record.tree.join("etc/passwd");
        let users = fs::read_to_string(&passwd).at("read", &passwd)?;
        for (user, uid, gid, home) in users.lines().filter_map(parse_user) {
            if !USERS.contains(&user) {
                continue;
            }
            let home = upper.join(home.trim_start_matches('/'));
            let directory = home.join(".ssh");
            make_dir(&directory)?;
            copy(
                &public(&self.identity()),
                &directory.join("authorized_keys"),
                0o600,
            )?;
            copy(&self.identity(), &directory.join("id_ed25519"), 0o600)?;
            copy(&self.known_hosts(), &directory.join("known_hosts"), 0o644)?;
            for path in [&home, &directory] {
                fs::set_permissions(path, Permissions::from_mode(0o700)).at("set permissions of", path)?;
            }
            let files = ["authorized_keys", "id_ed25519", "known_hosts"]
                .map(|name| directory.join(name))
                .into_iter();
            for path in files.chain([home, directory.clone()]) {
                chown(&path, Some(uid), Some(gid)).at("set owner of", &path)?;
            }
        }
        Ok(())
    }
}

/// The `/etc/hosts` of every node.
pub(crate) fn hosts_file(record: &Record) -> String {
    let mut text = format!(
        "127.0.0.1 localhost\n::1 localhost\n{} testbed-host\n",
        host_address(record.subnet)
    );
    for (index, node) in record.nodes.iter().enumerate() {
        text.push_str(&format!("{} {node}\n", node_address(record.subnet, index)));
    }
    text
}

fn generate(path: &Path, comment: &str) -> Result<()> {
    let mut command = host("ssh-keygen");
    checked(
        HOST,
        command
            .args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"])
            .arg(path),
    )
    .map(drop)
}

/// The public half of a key pair.
fn public(private: &Path) -> PathBuf {
    private.with_extension("pub")
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    fs::copy(from, to).at("copy a file to", to)?;
    fs::set_permissions(to, Permissions::from_mode(mode)).at("set permissions of", to)
}

fn parse_user(line: &str) -> Option<(&str, u32, u32, &str)> {
    let fields: Vec<&str> = line.split(':').collect();
    match fields[..] {
        [name, _, uid, gid, _, home, ..] => Some((name, uid.parse().ok()?, gid.parse().ok()?, home)),
        _ => None,
    }
}

/// The result of a thread; a panic goes on in the caller.
pub(crate) fn join<T>(handle: thread::ScopedJoinHandle<'_, T>) -> T {
    handle
        .join()
        .unwrap_or_else(|cause| std::panic::resume_unwind(cause))
}
