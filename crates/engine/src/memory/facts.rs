//! What a node has for dumping and restoring memory, and what of a container stands in the way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use tranship_core::memory::{LiveFacts, MemoryReport, Obstacle};
use tranship_core::network::kernel_socket_address;
use tranship_core::{ContainerSpec, EngineError};

use crate::cgroups;
use crate::docker::DockerEngine;
use crate::fault::Ask;
use crate::json::{at, flag, items, number, text};
use crate::programs::program;
use crate::raw::escape;

/// As many processes of a container are looked at.
const MOST_PROCESSES: usize = 4096;

impl DockerEngine {
    pub(crate) async fn live_facts_here(&self) -> Result<LiveFacts, EngineError> {
        let mut obstacles = Vec::new();
        if self.podman {
            self.podman_obstacles(&mut obstacles).await?;
        }
        if !self.reaches_processes() {
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
        if !self.podman && version_of("runc", "--version").await.is_empty() {
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
            restores_locks: self.restores_locks(),
            tracks_memory: tracks_memory().await,
            restores_tracked: true,
            obstacles,
        })
    }

    pub(crate) async fn memory_report(
        &self,
        spec: &ContainerSpec,
    ) -> Result<Option<MemoryReport>, EngineError> {
        if !self.reaches_processes() {
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
        let mut report = MemoryReport {
            bytes: used_memory(&stats),
            ..MemoryReport::default()
        };
        let found = &mut report.obstacles;
        by_document(&document, self.podman, found);
        let proc = PathBuf::from(format!("/proc/{process}"));
        // The number may mean another process here, or by now.
        let groups = std::fs::read_to_string(proc.join("cgroup")).unwrap_or_default();
        if !cgroups::are_of(&groups, id) {
            return Ok(None);
        }
        if self.podman {
            super::podman::of_container(spec, &proc, found);
        }
        let looked = tokio::task::spawn_blocking({
            let (id, init) = (id.to_owned(), process);
            let own_checks = spec.health_check.is_some();
            move || {
                let mut found = Vec::new();
                let members = members(&id);
                by_files(&members, &mut found);
                // A health check's process is one of these, now and then.
                if !own_checks && members.keys().any(|pid| is_foreign(*pid, init, &members)) {
                    found.push(Obstacle::new(
                        "live.exec",
                        "processes run in it that `docker exec` started, which would not come along",
                        "end them",
                    ));
                }
                (found, holds_locks(&members))
            }
        });
        let (by_processes, locks) = looked.await.map_err(|error| ask.failed(error))?;
        found.extend(by_processes);
        report.locks = locks;
        let own_network = !matches!(text(&document, &["HostConfig", "NetworkMode"]).as_str(), "host");
        if own_network {
            let sockets = sockets(&proc.join("net"));
            report.connections = sockets.connections;
            let fixed = |address: &IpAddr| {
                spec.attachments
                    .iter()
                    .any(|a| a.fixed_addresses.contains(address))
            };
            if let Some(address) = sockets.bound.iter().find(|address| !fixed(address)) {
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
fn by_document(document: &serde_json::Value, podman: bool, found: &mut Vec<Obstacle>) {
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
        // Shared memory that others may join is Podman's default; whether there is any is looked at elsewhere.
        let open = mode == "shareable" && !podman;
        if mode == "host" || open || mode.starts_with("container:") {
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

/// Bytes that processes hold, from the engine's statistics: with cgroups 2, and 1.
fn used_memory(stats: &serde_json::Value) -> u64 {
    let of = |key: &str| at(stats, &["memory_stats", "stats", key]).as_u64();
    let second = of("anon").map(|anon| anon.saturating_add(of("shmem").unwrap_or_default()));
    let first = of("total_rss").map(|rss| rss.saturating_add(of("total_shmem").unwrap_or_default()));
    let all = at(stats, &["memory_stats", "usage"]).as_u64().unwrap_or_default();
    second.or(first).unwrap_or(all)
}

/// The processes in the container's cgroups and those below, each with its parent.
fn members(container: &str) -> BTreeMap<i64, i64> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i64>().ok());
    numbers
        .filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
                .is_ok_and(|groups| cgroups::are_of(&groups, container))
        })
        .filter_map(|pid| Some((pid, parent_of(pid)?)))
        .take(MOST_PROCESSES)
        .collect()
}

fn parent_of(pid: i64) -> Option<i64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    parent.trim().parse().ok()
}

/// Whether a process has come into the container from outside: what belongs to it descends from its first.
fn is_foreign(pid: i64, init: i64, members: &BTreeMap<i64, i64>) -> bool {
    let mut at = pid;
    for _ in 0..members.len() {
        if at == init {
            return false;
        }
        match members.get(&at) {
            Some(parent) => at = *parent,
            None => return true,
        }
    }
    at != init
}

/// Whether one of the processes holds a lock on a file. `/proc/locks` has a line for each (proc(5)): number, kind, mode, access, process.
fn holds_locks(members: &BTreeMap<i64, i64>) -> bool {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    locks.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let kind = words.next().unwrap_or_default();
        let pid = words.nth(2).and_then(|pid| pid.parse::<i64>().ok());
        matches!(kind, "POSIX" | "FLOCK" | "OFDLCK") && pid.is_some_and(|pid| members.contains_key(&pid))
    })
}

/// What open files tell.
fn by_files(processes: &BTreeMap<i64, i64>, found: &mut Vec<Obstacle>) {
    let mut seen = BTreeSet::new();
    for process in processes.keys() {
        let files = std::fs::read_dir(format!("/proc/{process}/fd"))
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
                    if what == IO_URING { WITHOUT_IO_URING } else { "" },
                ));
            }
        }
    }
}

/// What the kernel's queues of requests are called.
const IO_URING: &str = "an io_uring";
/// Programs that would use one ask for it, and do without where it is refused. Node waits by one, whatever `UV_USE_IO_URING` says
/// (newer versions of libuv: `uv__use_io_uring` in `src/unix/linux.c`).
const WITHOUT_IO_URING: &str = "make it again with the engine's own seccomp profile, which refuses io_uring (Docker from 25 on), so that \
     programs do without; UV_USE_IO_URING=0 alone is not enough for Node";

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
        "anon_inode:[io_uring]" => Some(IO_URING),
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
    connections: u64,
    /// Addresses that something listens on alone.
    bound: BTreeSet<IpAddr>,
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
    match *state {
        // With a peer that is the machine itself it is a connection all the same. UDP's peers are no connections.
        "01" if !remote.starts_with("00000000:") => sockets.connections += 1,
        "0A" | "07" => {
            sockets.bound.extend(own_address(local));
        }
        _ => {}
    }
}

/// An address of the container itself: neither all of them, nor the machine itself, nor one of a group. Docker's own resolver listens at
/// an address of the machine itself, and is there anew.
fn own_address(local: &str) -> Option<IpAddr> {
    let (address, _) = kernel_socket_address(local)?;
    let broadcast = matches!(address, IpAddr::V4(four) if four.is_broadcast());
    (!address.is_unspecified() && !address.is_loopback() && !address.is_multicast() && !broadcast)
        .then_some(address)
}

/// The first version number in what a program says about itself; empty if it cannot be run.
async fn version_of(name: &str, flag: &str) -> String {
    let said = program(name)
        .arg(flag)
        .output()
        .await
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    said.split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
        .unwrap_or_default()
        .to_owned()
}

/// Whether the kernel tells which pages were written, and CRIU can use that.
pub(super) async fn tracks_memory() -> bool {
    let checked = program("criu")
        .args(["check", "--feature", "mem_dirty_track"])
        .output();
    checked.await.is_ok_and(|output| output.status.success())
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
    tranship_core::memory::available(&about_memory()).unwrap_or_default()
}

/// What the kernel says about memory.
pub(super) fn about_memory() -> String {
    std::fs::read_to_string("/proc/meminfo").unwrap_or_default()
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
            "1: 0B00007F:18EB 00000000:0000 0A 0",
        ]);
        assert_eq!((everywhere.bound.len(), everywhere.connections), (0, 0));
        let alone = of(&["0: 020011AC:18EB 00000000:0000 0A 0"]);
        assert_eq!(
            alone.bound.into_iter().collect::<Vec<_>>(),
            [IpAddr::from([172, 17, 0, 2])]
        );
        let open = of(&["0: 020011AC:18EB 010011AC:E110 01 0"]);
        assert_eq!((open.bound.len(), open.connections), (0, 1));
        assert!(of(&["", "x", "0: zz 00 0A"]).bound.is_empty());
        let six = of(&[
            "0: 00000000000000000000000000000000:18EB 0:0 0A 0",
            "0: 00000000000000000000000001000000:18EB 0:0 0A 0",
        ]);
        assert!(six.bound.is_empty());
        // fd00::1 is no loopback, a group is nobody's own.
        let own = of(&[
            "0: 000000FD000000000000000001000000:18EB 0:0 0A 0",
            "0: FB0000E0:14E9 0:0 07 0",
        ]);
        assert_eq!(own.bound.len(), 1);
    }

    #[test]
    fn what_came_from_outside_is_told_from_descendants() {
        let members = BTreeMap::from([(10, 5), (11, 10), (12, 11), (20, 5), (21, 20)]);
        for (pid, foreign) in [(10, false), (11, false), (12, false), (20, true), (21, true)] {
            assert_eq!(is_foreign(pid, 10, &members), foreign, "{pid}");
        }
    }

    #[test]
    fn caches_of_files_are_no_memory_of_processes() {
        let second =
            json!({"memory_stats": {"usage": 900, "stats": {"anon": 100, "shmem": 20, "file": 700}}});
        assert_eq!(used_memory(&second), 120);
        let first = json!({"memory_stats": {"usage": 900, "stats": {"total_rss": 100, "total_cache": 700}}});
        assert_eq!(used_memory(&first), 100);
        assert_eq!(used_memory(&json!({"memory_stats": {"usage": 900}})), 900);
    }

    #[test]
    fn a_document_tells_what_cannot_be_dumped() {
        let codes = |document: serde_json::Value| {
            let mut found = Vec::new();
            by_document(&document, false, &mut found);
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
