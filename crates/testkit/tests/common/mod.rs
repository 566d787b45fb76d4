//! What the tests of the testbed share.
#![allow(dead_code, reason = "every test binary uses a part of this")]
#![allow(clippy::expect_used, reason = "helpers of tests may panic as tests do")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tranship_testkit::testbed::{Dirs, Node, Output};

/// What tests return.
pub type TestResult = Result<(), Box<dyn std::error::Error>>;

/// The namespaces nodes live in, by inode number.
pub struct Namespaces(BTreeSet<u64>);

impl Namespaces {
    /// Those of these nodes, taken while they run.
    pub fn of(nodes: &[Node]) -> Self {
        let mut found = BTreeSet::new();
        for node in nodes {
            let process = node.root().expect("a running node");
            let process = process.parent().expect("a directory in /proc").to_owned();
            found.extend(namespaces(&process));
        }
        for inode in namespaces(Path::new("/proc/self")) {
            assert!(!found.contains(&inode), "a node shares a namespace with the host");
        }
        Self(found)
    }
}

fn namespaces(process: &Path) -> Vec<u64> {
    let kinds = ["mnt", "pid", "net", "uts", "ipc", "cgroup"];
    kinds
        .iter()
        .filter_map(|kind| Some(fs::metadata(process.join("ns").join(kind)).ok()?.ino()))
        .collect()
}

/// Everything on the host that can be traced to this bed, by kind.
pub fn traces(bed: &str, subnet: u8, namespaces_of_nodes: &Namespaces) -> Vec<String> {
    let mut found = Vec::new();
    let directory = Dirs::default().state.join("beds").join(bed);
    if directory.exists() {
        found.push(format!("directory {}", directory.display()));
    }
    let link = format!("tship{subnet}");
    if Path::new("/sys/class/net").join(&link).exists() {
        found.push(format!("link {link}"));
    }
    let mut groups = Vec::new();
    find_groups(Path::new("/sys/fs/cgroup"), bed, 0, &mut groups);
    found.extend(groups.iter().map(|path| format!("cgroup {}", path.display())));

    let ours = format!("/tranship-testbed/{bed}/");
    for process in fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .map(|entry| entry.path())
    {
        let name = process.file_name().unwrap_or_default().to_string_lossy();
        if name.parse::<u32>().is_err() {
            continue;
        }
        let membership = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        let mentions = fs::read(process.join("cmdline")).unwrap_or_default();
        let mentions = String::from_utf8_lossy(&mentions).contains(&*directory.to_string_lossy());
        // The kernel gives the numbers of dead namespaces to new ones, such as those of another test's bed.
        let elsewhere = membership.contains("/tranship-testbed/") && !membership.contains(&ours);
        let shares = !elsewhere
            && namespaces(&process)
                .iter()
                .any(|inode| namespaces_of_nodes.0.contains(inode));
        if mentions || shares || membership.contains(&ours) {
            let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
            found.push(format!("process {stat}"));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    for line in mounts.lines() {
        let held = namespaces_of_nodes
            .0
            .iter()
            .any(|inode| line.contains(&format!(":[{inode}]")));
        if held || line.contains(&*directory.to_string_lossy()) {
            found.push(format!("mount {line}"));
        }
    }
    for block in fs::read_dir("/sys/block").expect("/sys/block").flatten() {
        let backing = fs::read_to_string(block.path().join("loop/backing_file")).unwrap_or_default();
        if backing.contains(&*directory.to_string_lossy()) {
            found.push(format!("loop {}", block.path().display()));
        }
    }
    found
}

/// The kinds of [`traces`].
pub fn kinds(traces: &[String]) -> BTreeSet<String> {
    traces
        .iter()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect()
}

fn find_groups(path: &Path, bed: &str, depth: usize, found: &mut Vec<PathBuf>) {
    if depth > 3 {
        return;
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let child = entry.path();
        if !child.is_dir() {
            continue;
        }
        if child.ends_with(Path::new("tranship-testbed").join(bed)) {
            found.push(child);
        } else {
            find_groups(&child, bed, depth + 1, found);
        }
    }
}

/// The third byte of a node's address, which is its bed's subnet.
pub fn subnet(node: &Node) -> u8 {
    node.address().octets()[2]
}

/// Runs ssh on the host with the bed's configuration.
pub fn ssh(config: &Path, target: &str, command: &str) -> std::io::Result<Output> {
    let raw = Command::new("ssh")
        .arg("-F")
        .arg(config)
        .args(["-n", target, command])
        .output()?;
    Ok(Output {
        status: raw.status,
        stdout: String::from_utf8_lossy(&raw.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&raw.stderr).into_owned(),
    })
}

/// The body of an HTTP answer with status 200.
pub fn get(address: Ipv4Addr, port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&(address, port).into(), Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: test\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => Err(std::io::Error::other(answer)),
    }
}

/// Waits for a condition, with a generous limit.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "waited in vain: {what}"
        );
        thread::sleep(Duration::from_millis(50));
    }
}
