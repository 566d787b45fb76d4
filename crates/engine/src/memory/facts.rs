//! What a node has for dumping and restoring memory, and what of a container stands in the way.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use tranship_core::memory::{LiveFacts, MemoryReport, Obstacle};
use tranship_core::{ContainerSpec, EngineError};

use crate::docker::DockerEngine;
use crate::fault::Ask;
use crate::json::{at, flag, items, number, text};
use crate::raw::escape;

/// As many processes of a container are looked at.
const MOST_PROCESSES: usize = 4096;

impl DockerEngine {
    pub(crate) async fn live_facts_here(&self) -> Result<LiveFacts, EngineError> {
        let mut obstacles = Vec::new();
        if self.podman {
            obstacles.push(Obstacle::new(
                "live.engine",
                "memory of Podman's containers is not dumped yet",
                "",
            ));
        }
        if !rustix::process::geteuid().is_root() || self.root_prefix != Path::new("/") {
            obstacles.push(Obstacle::new(
                "live.root",
                "dumping and restoring memory takes root on the engine's machine",
                "log in as root",
            ));
        }
        let ask = Ask::new("describe", "engine", "");
        let info = self.told(self.docker.info().await, &ask)?;
        if !self.podman && !info.experimental_build.unwrap_or_default() {
            obstacles.push(Obstacle::new(
                "live.experimental",
                "the engine takes checkpoints only with its experimental features",
                "put \"experimental\": true into /etc/docker/daemon.json and restart the engine",
            ));
        }
        let criu = version_of("criu", "--version").await;
        if criu.is_empty() {
            obstacles.push(Obstacle::new(
                "live.criu",
                "there is no CRIU, which writes and reads memory",
                "install criu (4.2 or later)",
            ));
        } else if older(&criu, &[4, 2]) && !older(&info.kernel_version.clone().unwrap_or_default(), &[6, 16])
        {
            obstacles.push(Obstacle::new(
                "live.criu-kernel",
                format!("CRIU {criu} cannot dump internet sockets on kernels from 6.16 on"),
                "install CRIU 4.2 or later",
            ));
        }
        if version_of("runc", "--version").await.is_empty() {
            obstacles.push(Obstacle::new(
                "live.runtime",
                "there is no runc, which drives CRIU",
                "use runc as the engine's runtime",
            ));
        }
        Ok(LiveFacts {
            criu,
            cpu_features: cpu_features(),
            free_memory: free_memory(),
            obstacles,
        })
    }

    pub(crate) async fn memory_report(
        &self,
        spec: &ContainerSpec,
    ) -> Result<Option<MemoryReport>, EngineError> {
        if self.podman || !rustix::process::geteuid().is_root() || self.root_prefix != Path::new("/") {
            return Ok(None);
        }
        let id = spec.id.as_str();
        let document = self.document(id).await?;
        let process = number(&document, &["State", "Pid"]);
        if !flag(&document, &["State", "Running"]) || process <= 0 {
            return Ok(None);
        }
        let ask = Ask::new("measure", "container", id);
        let path = format!("/containers/{}/stats?stream=false&one-shot=true", escape(id));
        let stats = self.raw.get(&path, &ask).await?;
        let usage = |keys: &[&str]| at(&stats, keys).as_u64().unwrap_or_default();
        let cached = usage(&["memory_stats", "stats", "inactive_file"]).max(usage(&[
            "memory_stats",
            "stats",
            "total_inactive_file",
        ]));
        let mut report = MemoryReport {
            bytes: usage(&["memory_stats", "usage"]).saturating_sub(cached),
            ..MemoryReport::default()
        };
        let found = &mut report.obstacles;
        by_document(&document, found);
        let proc = PathBuf::from(format!("/proc/{process}"));
        // The number may mean another process here, or by now.
        let groups = std::fs::read_to_string(proc.join("cgroup")).unwrap_or_default();
        if !groups.contains(id) {
            return Ok(None);
        }
        by_files(&members(&proc), found);
        let own_network = !matches!(text(&document, &["HostConfig", "NetworkMode"]).as_str(), "host");
        if own_network {
            let sockets = sockets(&proc.join("net"));
            report.connections = sockets.connections;
            report.sockets = sockets.any;
            if let Some(address) = sockets.bound
                && spec.attachments.iter().all(|a| a.fixed_addresses.is_empty())
            {
                found.push(Obstacle::new(
                    "live.address",
                    format!("it listens on {address} alone, which is another address there"),
                    "let it listen on all addresses, or give the container a fixed one on a network of your own",
                ));
            }
            if sockets.raw {
                found.push(Obstacle::new(
                    "live.raw-socket",
                    "it has raw or packet sockets, which cannot be restored",
                    "",
                ));
            }
        }
        Ok(Some(report))
    }
}

/// What the engine's document of a container tells.
fn by_document(document: &serde_json::Value, found: &mut Vec<Obstacle>) {
    let host = |key: &str| text(document, &["HostConfig", key]);
    if flag(document, &["Config", "Tty"]) {
        found.push(Obstacle::new(
            "live.terminal",
            "it has a terminal (-t), which cannot be restored",
            "make it again without -t",
        ));
    }
    for (key, what) in [
        ("NetworkMode", "network"),
        ("PidMode", "processes"),
        ("IpcMode", "shared memory"),
    ] {
        let mode = host(key);
        if mode == "host" || mode == "shareable" || mode.starts_with("container:") {
            found.push(Obstacle::new(
                "live.namespace",
                format!("its {what} are not its own alone ({mode})"),
                "make it again with a namespace of its own",
            ));
        }
    }
    if flag(document, &["HostConfig", "Privileged"]) {
        found.push(Obstacle::new(
            "live.privileged",
            "it is privileged, and may use any device of the host",
            "make it again with the rights that it needs only",
        ));
    }
    if !items(document, &["HostConfig", "Devices"]).is_empty()
        || !items(document, &["HostConfig", "DeviceRequests"]).is_empty()
    {
        found.push(Obstacle::new(
            "live.device",
            "it uses devices of the host, whose state cannot be carried",
            "",
        ));
    }
}

/// The processes of the container that `proc` belongs to, as directories of `/proc`: those in the same cgroup.
fn members(proc: &Path) -> Vec<PathBuf> {
    let own = std::fs::read_to_string(proc.join("cgroup")).unwrap_or_default();
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.map(|entry| entry.path())
        .filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()))
        })
        .filter(|path| {
            !own.is_empty() && std::fs::read_to_string(path.join("cgroup")).is_ok_and(|c| c == own)
        })
        .take(MOST_PROCESSES)
        .collect()
}

/// What open files tell.
fn by_files(processes: &[PathBuf], found: &mut Vec<Obstacle>) {
    let mut seen = BTreeSet::new();
    for process in processes {
        let files = std::fs::read_dir(process.join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        for file in files {
            let Ok(target) = std::fs::read_link(file.path()) else {
                continue;
            };
            let target = target.to_string_lossy().into_owned();
            if let Some(what) = not_dumped(&target)
                && seen.insert(what)
            {
                found.push(Obstacle::new(
                    "live.file",
                    format!("it has {what} open, which CRIU cannot dump ({target})"),
                    "",
                ));
            }
        }
    }
}

/// What kind of open file cannot be dumped.
fn not_dumped(target: &str) -> Option<&'static str> {
    let plain = [
        "/dev/null",
        "/dev/zero",
        "/dev/full",
        "/dev/random",
        "/dev/urandom",
        "/dev/net/tun",
    ];
    match target {
        "anon_inode:[io_uring]" => Some("an io_uring"),
        "anon_inode:[perf_event]" => Some("a performance counter"),
        "anon_inode:[userfaultfd]" => Some("a userfaultfd"),
        _ if target.starts_with("anon_inode:bpf") || target.starts_with("anon_inode:kvm") => {
            Some("an object of the kernel")
        }
        _ if target.starts_with("/dev/")
            && !plain.contains(&target)
            && !["/dev/shm/", "/dev/pts/", "/dev/mqueue/"]
                .iter()
                .any(|prefix| target.starts_with(prefix)) =>
        {
            Some("a device")
        }
        _ => None,
    }
}

/// Sockets of a network namespace.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sockets {
    any: bool,
    connections: u64,
    /// An address that something listens on alone.
    bound: Option<String>,
    raw: bool,
}

fn sockets(net: &Path) -> Sockets {
    let mut sockets = Sockets::default();
    for file in ["tcp", "tcp6", "udp", "udp6"] {
        let table = std::fs::read_to_string(net.join(file)).unwrap_or_default();
        for line in table.lines().skip(1) {
            read_socket(line, &mut sockets);
        }
    }
    for file in ["raw", "raw6", "packet"] {
        let table = std::fs::read_to_string(net.join(file)).unwrap_or_default();
        sockets.raw |= table.lines().count() > 1;
    }
    sockets
}

/// A line of `/proc/PID/net/tcp` and its like (proc(5)).
fn read_socket(line: &str, sockets: &mut Sockets) {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, local, remote, state, ..] = fields.as_slice() else {
        return;
    };
    sockets.any = true;
    match *state {
        // With a peer that is the machine itself it is a connection all the same. UDP's peers are no connections.
        "01" if !remote.starts_with("00000000:") => sockets.connections += 1,
        "0A" | "07" => {
            if let Some(address) = own_address(local) {
                sockets.bound = Some(address);
            }
        }
        _ => {}
    }
}

/// An IPv4 address that is neither all of them nor the machine itself.
fn own_address(local: &str) -> Option<String> {
    let (address, port) = local.split_once(':')?;
    let word = match address.len() {
        8 => address,
        // Of IPv6, only addresses of IPv4 in it: link-local and other ones are made anew there.
        32 if address.starts_with("0000000000000000FFFF0000") => address.get(24..)?,
        32 if address.bytes().all(|b| b == b'0') || address.ends_with("01000000") => return None,
        32 => {
            return Some(format!(
                "an address of IPv6, port {}",
                u16::from_str_radix(port, 16).ok()?
            ));
        }
        _ => return None,
    };
    let address = std::net::Ipv4Addr::from(u32::from_str_radix(word, 16).ok()?.to_ne_bytes());
    let port = u16::from_str_radix(port, 16).ok()?;
    // Docker's own resolver listens in the container for it, and is there anew.
    (!address.is_unspecified() && !address.is_loopback()).then(|| format!("{address}:{port}"))
}

/// The first version number in what a program says about itself; empty if it cannot be run.
async fn version_of(program: &str, flag: &str) -> String {
    let said = Command::new(program)
        .arg(flag)
        .stdin(Stdio::null())
        .output()
        .await
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    said.split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
        .unwrap_or_default()
        .to_owned()
}

/// Whether the version is below the other, by as many numbers as that has.
fn older(version: &str, than: &[u32]) -> bool {
    let numbers = version
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0u32));
    let numbers: Vec<u32> = numbers.take(than.len()).collect();
    numbers.as_slice() < than
}

fn cpu_features() -> Vec<String> {
    let about = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = about
        .lines()
        .find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let features: BTreeSet<&str> = line
        .and_then(|line| line.split_once(':'))
        .map(|(_, features)| features.split_whitespace().collect())
        .unwrap_or_default();
    features.into_iter().map(str::to_owned).collect()
}

/// Bytes that the kernel thinks can be had without swapping.
pub(super) fn free_memory() -> u64 {
    let about = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = about.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default().saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn versions_compare_by_number() {
        assert!(older("4.1.1", &[4, 2]));
        assert!(!older("4.2", &[4, 2]));
        assert!(!older("4.10.1", &[4, 2]));
        assert!(!older("6.18.5-cloud-amd64", &[6, 16]));
        assert!(older("6.1.0-41-amd64", &[6, 16]));
        assert!(older("", &[1]));
    }

    #[test]
    fn sockets_are_told_apart() {
        let of = |lines: &[&str]| {
            let mut sockets = Sockets::default();
            for line in lines {
                read_socket(line, &mut sockets);
            }
            sockets
        };
        let everywhere = of(&[
            "0: 00000000:18EB 00000000:0000 0A 0",
            "1: 0100007F:18EB 00000000:0000 0A 0",
        ]);
        assert_eq!(
            (everywhere.any, everywhere.bound.clone(), everywhere.connections),
            (true, None, 0)
        );
        let alone = of(&["0: 020011AC:18EB 00000000:0000 0A 0"]);
        assert_eq!(alone.bound.as_deref(), Some("172.17.0.2:6379"));
        let open = of(&["0: 020011AC:18EB 010011AC:E110 01 0"]);
        assert_eq!((open.bound, open.connections), (None, 1));
        assert_eq!(
            of(&["", "x", "0: zz 00 0A"]),
            Sockets {
                any: true,
                ..Sockets::default()
            }
        );
        let six = of(&[
            "0: 00000000000000000000000000000000:18EB 0:0 0A 0",
            "0: 00000000000000000000000001000000:18EB 0:0 0A 0",
        ]);
        assert_eq!(six.bound, None);
    }

    #[test]
    fn a_document_tells_what_cannot_be_dumped() {
        let codes = |document: serde_json::Value| {
            let mut found = Vec::new();
            by_document(&document, &mut found);
            found.into_iter().map(|o| o.code).collect::<Vec<_>>()
        };
        let plain =
            json!({"Config": {"Tty": false}, "HostConfig": {"NetworkMode": "bridge", "IpcMode": "private"}});
        assert!(codes(plain).is_empty());
        let all = json!({
            "Config": {"Tty": true},
            "HostConfig": {
                "NetworkMode": "host", "IpcMode": "shareable", "Privileged": true,
                "Devices": [{"PathOnHost": "/dev/fuse"}],
            },
        });
        assert_eq!(
            codes(all),
            [
                "live.terminal",
                "live.namespace",
                "live.namespace",
                "live.privileged",
                "live.device"
            ]
        );
    }

    #[test]
    fn open_files_that_cannot_be_dumped_are_known() {
        for fine in [
            "/dev/null",
            "/dev/shm/x",
            "/dev/pts/0",
            "socket:[1]",
            "pipe:[2]",
            "/data/file",
            "anon_inode:[eventpoll]",
            "anon_inode:inotify",
        ] {
            assert_eq!(not_dumped(fine), None, "{fine}");
        }
        for bad in ["anon_inode:[io_uring]", "/dev/fuse", "anon_inode:bpf-map"] {
            assert!(not_dumped(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn this_machine_has_a_processor_and_memory() {
        assert!(!cpu_features().is_empty());
        assert!(free_memory() > 1 << 20);
    }
}
