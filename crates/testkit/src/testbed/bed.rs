//! A bed at work: starting its switch and its nodes, waiting for them, and taking everything away again.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::cgroup::Cgroups;
use super::error::{AtPath, Error, Result};
use super::keys::{SshFiles, hosts_file};
use super::network::{self, node_address};
use super::options::Engine;
use super::paths::{Dirs, make_dir};
use super::process::{ProcessId, wait_until};
use super::run::{HOST, checked, host};
use super::state::{self, Record};
use super::tree::tail;

/// How long a part of a bed may take to come up, on a machine busy with other things.
const READY_WITHIN: Duration = Duration::from_secs(90);

/// How long one look at a socket may take.
const LOOK: Duration = Duration::from_secs(2);

/// The switch's name among the members of a bed; nodes have single letters.
const SWITCH: &str = "switch";

/// Scripts that run with the host's files in view.
const HOST_SCRIPTS: [(&str, &str); 4] = [
    ("join.sh", include_str!("scripts/join.sh")),
    ("switch.sh", include_str!("scripts/switch.sh")),
    ("network.sh", include_str!("scripts/network.sh")),
    ("root.sh", include_str!("scripts/root.sh")),
];

/// Scripts that run inside the nodes.
const NODE_SCRIPTS: [(&str, &str); 2] = [
    ("testbed-start", include_str!("scripts/start.sh")),
    ("testbed-engine", include_str!("scripts/engine.sh")),
];

/// A bed, whoever it belongs to.
#[derive(Debug)]
pub(crate) struct Bed {
    pub dirs: Dirs,
    pub record: Record,
    pub ssh_config: PathBuf,
    cgroups: Cgroups,
    /// Processes this process started and must reap, each with the member it is the first process of.
    children: Mutex<Vec<(String, Child)>>,
    /// Whether the bed goes when this value does.
    owned: bool,
}

impl Bed {
    /// Wraps the record of a bed.
    pub fn new(dirs: Dirs, record: Record, owned: bool) -> Result<Self> {
        let ssh_config = SshFiles::of(&dirs.bed(&record.name)).config();
        let cgroups = Cgroups::detect()?;
        Ok(Self {
            dirs,
            record,
            ssh_config,
            cgroups,
            children: Mutex::default(),
            owned,
        })
    }

    /// The bed's directory on the host.
    pub fn path(&self) -> PathBuf {
        self.dirs.bed(&self.record.name)
    }

    /// A node's directory on the host.
    pub fn node_path(&self, node: &str) -> PathBuf {
        self.path().join("nodes").join(node)
    }

    /// Brings everything up and waits until it answers.
    pub fn start(&self) -> Result<()> {
        let scripts = self.path().join("scripts");
        make_dir(&scripts)?;
        make_dir(&self.dirs.images())?;
        for (name, text) in HOST_SCRIPTS {
            let path = scripts.join(name);
            fs::write(&path, text).at("write", &path)?;
        }
        self.start_switch()?;
        let ssh = SshFiles::of(&self.path());
        ssh.create(&self.record)?;
        for node in &self.record.nodes {
            self.prepare_node(node, &ssh)?;
            self.launch_node(node)?;
        }
        for node in &self.record.nodes {
            self.wait_for_node(node)?;
        }
        Ok(())
    }

    /// Gives the bed to nobody: it stays until somebody takes it down.
    pub fn release(&mut self) -> Result<()> {
        self.record.owner = None;
        self.record.save(&self.dirs)?;
        self.owned = false;
        Ok(())
    }

    /// The switch's process.
    pub fn switch_process(&self) -> Result<ProcessId> {
        read_process(&self.path().join("switch.pid")).ok_or_else(|| Error::NodeOff(SWITCH.to_owned()))
    }

    /// A node's first process.
    ///
    /// # Errors
    ///
    /// [`Error::NodeOff`] when it doesn't run.
    pub fn node_process(&self, node: &str) -> Result<ProcessId> {
        read_process(&self.node_path(node).join("pid")).ok_or_else(|| Error::NodeOff(node.to_owned()))
    }

    /// The control groups that beds live in.
    pub fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// The control groups of a node's processes, as `join.sh` takes them.
    pub fn join_list(&self, node: &str) -> String {
        paths(&self.cgroups.homes(&self.record.name, node))
    }

    /// Where `join.sh` is.
    pub fn join_script(&self) -> PathBuf {
        self.path().join("scripts/join.sh")
    }

    fn start_switch(&self) -> Result<()> {
        let pidfile = self.path().join("switch.pid");
        let log = self.path().join("switch.log");
        let subnet = self.record.subnet;
        self.launch(SWITCH, &log, &["--net"], "switch.sh", |command| {
            command
                .env("TB_CALLER", std::process::id().to_string())
                .env("TB_HOST_LINK", network::host_link(subnet))
                .env("TB_HOST_ADDRESS", format!("{}/24", network::host_address(subnet)))
                .env("TB_PIDFILE", &pidfile);
        })?;
        self.wait_for(SWITCH, "the switch", &log, || pidfile.exists())
    }

    /// Makes a node's own files; what they hold survives a reboot.
    fn prepare_node(&self, node: &str, ssh: &SshFiles) -> Result<()> {
        let path = self.node_path(node);
        for name in [
            "root",
            "work",
            "docker",
            "containerd",
            "containers",
            "log",
            "upper/etc/docker",
            "upper/usr/local/sbin",
        ] {
            make_dir(&path.join(name))?;
        }
        let upper = path.join("upper");
        let files = [
            ("etc/hosts", hosts_file(&self.record)),
            ("etc/hostname", format!("{node}\n")),
            (
                "etc/resolv.conf",
                "# The testbed has no name server.\n".to_owned(),
            ),
            ("etc/testbed-engine", format!("{}\n", self.record.engine)),
            ("etc/docker/daemon.json", self.daemon_file(node)),
        ];
        for (name, text) in files {
            let file = upper.join(name);
            fs::write(&file, text).at("write", &file)?;
        }
        for (name, text) in NODE_SCRIPTS {
            let file = upper.join("usr/local/sbin").join(name);
            fs::write(&file, text).at("write", &file)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).at("set permissions of", &file)?;
        }
        ssh.install(&self.record, node, &upper)?;
        for (image, bytes) in self.disk_images(node).map(|(image, disk)| (image, disk.bytes)) {
            let file = File::create(&image).at("create", &image)?;
            file.set_len(bytes).at("resize", &image)?;
            checked(HOST, host("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        }
        Ok(())
    }

    /// dockerd's configuration. The command line has the rest, and both may not set the same thing.
    fn daemon_file(&self, node: &str) -> String {
        let configuration = if self.record.containerd_stores.iter().any(|name| name == node) {
            serde_json::json!({ "features": { "containerd-snapshotter": true } })
        } else {
            serde_json::json!({ "storage-driver": "overlay2" })
        };
        configuration.to_string()
    }

    fn disk_images(&self, node: &str) -> impl Iterator<Item = (PathBuf, &super::options::SmallDisk)> {
        let path = self.node_path(node);
        let disks = self.record.disks.iter().filter(move |disk| disk.node == node);
        disks
            .enumerate()
            .map(move |(index, disk)| (path.join(format!("disk-{index}.img")), disk))
    }

    /// Switches a node on. Returns at once; see [`Bed::wait_for_node`].
    pub fn launch_node(&self, node: &str) -> Result<()> {
        let path = self.node_path(node);
        let index = self.index(node)?;
        let record = &self.record;
        let disks: Vec<String> = self
            .disk_images(node)
            .map(|(image, disk)| format!("{}:{}", disk.path.display(), image.display()))
            .collect();
        let pidfile = path.join("pid");
        match fs::remove_file(&pidfile) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).at("remove", &pidfile),
            _ => {}
        }
        let switch = self.switch_process()?;
        let namespaces = [
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--cgroup",
            "--propagation=private",
        ];
        self.launch(
            node,
            &path.join("boot.log"),
            &namespaces,
            "network.sh",
            |command| {
                command
                    .env("TB_NODE", node)
                    .env("TB_SWITCH", switch.pid.to_string())
                    .env("TB_PORT", network::port(node))
                    .env("TB_MAC", network::node_mac(record.subnet, index))
                    .env("TB_ADDRESS", format!("{}/24", node_address(record.subnet, index)))
                    .env("TB_HOMES", self.join_list(node))
                    .env("TB_SCRIPTS", self.path().join("scripts"))
                    .env("TB_DIR", &path)
                    .env("TB_TREE", &record.tree)
                    .env("TB_IMAGES", self.dirs.images())
                    .env("TB_CGROUP_MOUNTS", self.cgroups.mounts())
                    .env("TB_DISKS", disks.join(" "))
                    .env("TB_ENGINE", record.engine.client());
            },
        )
    }

    /// Starts a script as a member of this bed, in control groups and namespaces of its own.
    fn launch(
        &self,
        member: &str,
        log: &Path,
        namespaces: &[&str],
        script: &str,
        configure: impl FnOnce(&mut std::process::Command),
    ) -> Result<()> {
        self.cgroups.create(&self.record.name, member)?;
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .at("open", log)?;
        let errors = output.try_clone().at("share", log)?;
        let mut command = host("setsid");
        command
            .arg("sh")
            .arg(self.join_script())
            .arg("unshare")
            .args(namespaces)
            .arg("sh")
            .arg(self.path().join("scripts").join(script))
            .env("TB_JOIN", paths(&self.cgroups.roots(&self.record.name, member)))
            .current_dir("/")
            .stdout(Stdio::from(output))
            .stderr(Stdio::from(errors));
        configure(&mut command);
        let child = command.spawn().map_err(|source| Error::Spawn {
            place: member.to_owned(),
            command: script.to_owned(),
            source,
        })?;
        self.children
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((member.to_owned(), child));
        Ok(())
    }

    /// Waits until a node's sshd and engine answer.
    pub fn wait_for_node(&self, node: &str) -> Result<()> {
        let index = self.index(node)?;
        let boot_log = self.node_path(node).join("boot.log");
        let ssh = SocketAddr::from((node_address(self.record.subnet, index), 22));
        self.wait_for(node, "the node", &boot_log, || self.node_process(node).is_ok())?;
        // A node whose cable is cut can't be reached, yet is ready when its engine is.
        let reachable = || {
            fs::read_to_string(self.root_of(node).join("sys/class/net/eth0/carrier"))
                .is_ok_and(|carrier| carrier.trim() == "1")
        };
        self.wait_for(node, "sshd", &boot_log, || {
            greets(ssh) || (!reachable() && self.engine_answers(node))
        })?;
        self.wait_for_engine(node)
    }

    /// Waits until a node's engine answers.
    pub fn wait_for_engine(&self, node: &str) -> Result<()> {
        let log = match self.record.engine {
            Engine::Docker => "dockerd.log",
            Engine::Podman => "podman.log",
        };
        let log = self.node_path(node).join("log").join(log);
        self.wait_for(node, self.record.engine.client(), &log, || {
            self.engine_answers(node)
        })
    }

    fn engine_answers(&self, node: &str) -> bool {
        let socket = self.record.engine.socket().trim_start_matches('/');
        answers_ping(&self.root_of(node).join(socket))
    }

    /// A node's root directory as the host sees it, while the node runs.
    fn root_of(&self, node: &str) -> PathBuf {
        let pid = self.node_process(node).map_or(0, |process| process.pid);
        PathBuf::from(format!("/proc/{pid}/root"))
    }

    fn wait_for(&self, member: &str, what: &str, log: &Path, mut ready: impl FnMut() -> bool) -> Result<()> {
        let mut ended = false;
        let came = wait_until(READY_WITHIN, || {
            if ready() {
                return true;
            }
            self.reap();
            let running =
                self.has_child(member) || !self.cgroups.processes(&self.record.name, Some(member)).is_empty();
            ended = !running;
            ended
        });
        if came && !ended {
            return Ok(());
        }
        let what = if ended {
            format!("{what} (its processes ended)")
        } else {
            what.to_owned()
        };
        let place = format!("{}/{member}", self.record.name);
        Err(Error::NotReady {
            place,
            what,
            waited: READY_WITHIN,
            log: tail(log, 20),
        })
    }

    /// Switches a node off without a word to its processes, like a power cut.
    pub fn cut_power(&self, node: &str) -> Result<()> {
        self.index(node)?;
        self.kill_inits(&[node]);
        self.cgroups.kill(&self.record.name, Some(node))?;
        self.end_children(|member| member == node);
        // The kernel takes its time with the network of dead processes, and answers pings until then.
        network::unplug(node, self.switch_process()?)?;
        self.cgroups.remove(&self.record.name, Some(node))
    }

    /// Takes the bed away: processes, cables, control groups, loop devices, files. Does nothing twice.
    pub fn tear_down(&self) -> Result<()> {
        let nodes: Vec<&str> = self.record.nodes.iter().map(String::as_str).collect();
        self.kill_inits(&nodes);
        self.cgroups.kill(&self.record.name, None)?;
        self.end_children(|_| true);
        network::unplug_host(self.record.subnet)?;
        self.cgroups.remove(&self.record.name, None)?;
        self.release_loops()?;
        state::discard(&self.dirs, &self.record.name)
    }

    /// Kills the first processes of nodes, with which all others in there end, and gives their parents a moment to
    /// reap them: parents that are killed as well leave that to the host's init, whenever it gets to it.
    fn kill_inits(&self, nodes: &[&str]) {
        let inits: Vec<ProcessId> = nodes
            .iter()
            .filter_map(|node| self.node_process(node).ok())
            .collect();
        inits.iter().for_each(ProcessId::kill);
        wait_until(Duration::from_secs(5), || {
            nodes
                .iter()
                .for_each(|node| self.cgroups.thaw(&self.record.name, Some(node)));
            inits
                .iter()
                .all(|init| !Path::new("/proc").join(init.pid.to_string()).exists())
        });
    }

    /// Loop devices let go by themselves when the last mount goes, a moment after the last process.
    fn release_loops(&self) -> Result<()> {
        if self.record.disks.is_empty() {
            return Ok(());
        }
        let path = self.path();
        if wait_until(Duration::from_secs(2), || loops_below(&path).is_empty()) {
            return Ok(());
        }
        for device in loops_below(&path) {
            checked(HOST, host("losetup").arg("--detach").arg(device))?;
        }
        Ok(())
    }

    fn index(&self, node: &str) -> Result<usize> {
        let position = self.record.nodes.iter().position(|known| known == node);
        position.ok_or_else(|| Error::NoNode {
            bed: self.record.name.clone(),
            node: node.to_owned(),
        })
    }

    /// Collects children that ended.
    fn reap(&self) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.retain_mut(|(_, child)| matches!(child.try_wait(), Ok(None)));
    }

    /// Ends and reaps first processes of members; their groups are empty already, unless they did not yet join.
    fn end_children(&self, chosen: impl Fn(&str) -> bool) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, mut child) in children.extract_if(.., |(member, _)| chosen(member)) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Whether a member's first process, started by this process, still runs.
    fn has_child(&self, member: &str) -> bool {
        let children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.iter().any(|(name, _)| name == member)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if self.owned
            && let Err(error) = self.tear_down()
        {
            tracing::error!(bed = %self.record.name, %error, "testbed not taken down; the next one will try again");
        }
        let children = std::mem::take(&mut *self.children.lock().unwrap_or_else(PoisonError::into_inner));
        if !children.is_empty() {
            // A bed that stays goes on without us, yet its processes must be reaped while we are their parent.
            thread::spawn(|| children.into_iter().for_each(|(_, mut child)| drop(child.wait())));
        }
    }
}

fn read_process(path: &Path) -> Option<ProcessId> {
    ProcessId::parse(&fs::read_to_string(path).ok()?).filter(ProcessId::alive)
}

fn paths(list: &[PathBuf]) -> String {
    list.iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether sshd greets at this address.
fn greets(address: SocketAddr) -> bool {
    let look = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, LOOK)?;
        stream.set_read_timeout(Some(LOOK))?;
        let mut greeting = [0; 4];
        stream.read_exact(&mut greeting)?;
        Ok(&greeting == b"SSH-")
    };
    look().unwrap_or(false)
}

/// Whether an engine's API answers at this socket.
fn answers_ping(socket: &Path) -> bool {
    let look = || -> std::io::Result<bool> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(LOOK))?;
        stream.write_all(b"GET /_ping HTTP/1.0\r\nHost: testbed\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        Ok(status.ends_with(b" 200"))
    };
    look().unwrap_or(false)
}

/// Loop devices whose files lie below this directory.
fn loops_below(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| {
            fs::read_to_string(entry.path().join("loop/backing_file"))
                .is_ok_and(|file| Path::new(file.trim()).starts_with(directory))
        })
        .map(|entry| Path::new("/dev").join(entry.file_name()))
        .collect()
}
