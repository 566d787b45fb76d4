//! A node: one host of a bed.

use std::ffi::OsStr;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::bed::Bed;
use super::error::{Error, Result};
use super::images;
use super::inventory;
use super::network::{self, Link, LinkBytes};
use super::options::Engine;
use super::process::ProcessId;
use super::run::{self, Output};

/// A handle on one host. Handles are cheap to clone; the bed stays up as long as one of its handles exists.
#[derive(Debug, Clone)]
pub struct Node {
    bed: Arc<Bed>,
    index: usize,
}

impl Node {
    pub(crate) fn new(bed: Arc<Bed>, index: usize) -> Self {
        Self { bed, index }
    }

    /// The node's name, which is its host name and what `ssh` calls it: `a`, `b` and so on.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.bed.record.nodes[self.index]
    }

    /// The node's address, reachable from the host and from the other nodes.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        network::node_address(self.bed.record.subnet, self.index)
    }

    /// The bed's configuration for `ssh -F FILE NAME` on the host.
    #[must_use]
    pub fn ssh_config(&self) -> &Path {
        &self.bed.ssh_config
    }

    /// The engine that runs here.
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.bed.record.engine
    }

    /// The engine's API socket as the host reaches it. Changes when the node is switched off and on.
    ///
    /// # Errors
    ///
    /// [`Error::NodeOff`] when the node doesn't run.
    pub fn engine_socket(&self) -> Result<PathBuf> {
        let process = self.bed.node_process(self.name())?;
        Ok(PathBuf::from(format!(
            "/proc/{}/root{}",
            process.pid,
            self.engine().socket()
        )))
    }

    /// The node's root directory as the host sees it, for reading and writing files. Changes when the node is
    /// switched off and on.
    ///
    /// # Errors
    ///
    /// [`Error::NodeOff`] when the node doesn't run.
    pub fn root(&self) -> Result<PathBuf> {
        let process = self.bed.node_process(self.name())?;
        Ok(PathBuf::from(format!("/proc/{}/root", process.pid)))
    }

    /// The directory on the host with the node's `/var/log`, readable also while the node is off.
    #[must_use]
    pub fn log_dir(&self) -> PathBuf {
        self.bed.node_path(self.name()).join("log")
    }

    /// A command that will run in the node as root: in all its namespaces and control groups, with its files and a
    /// clean environment. Standard streams are the caller's to set; unset ones are inherited.
    ///
    /// # Errors
    ///
    /// [`Error::NodeOff`] when the node doesn't run.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Command> {
        let process = self.bed.node_process(self.name())?;
        let mut command = Command::new("sh");
        command
            .env_clear()
            .env("PATH", run::PATH)
            .env("HOME", "/root")
            .env("USER", "root")
            .env("LANG", "C.UTF-8")
            .env("TB_JOIN", self.bed.join_list(self.name()))
            .current_dir("/")
            .arg(self.bed.join_script())
            .arg("nsenter")
            .arg(format!("--target={}", process.pid))
            .args([
                "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd", "--",
            ])
            .args(args);
        Ok(command)
    }

    /// Runs a command in the node to its end, whatever that is, with nothing on standard input.
    ///
    /// # Errors
    ///
    /// When the node doesn't run or the host cannot start the command. A command that the node doesn't have ends
    /// with status 127.
    pub fn exec<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Output> {
        self.exec_with_input(args, &[])
    }

    /// [`Node::exec`] with these bytes on standard input.
    ///
    /// # Errors
    ///
    /// As [`Node::exec`].
    pub fn exec_with_input<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        input: &[u8],
    ) -> Result<Output> {
        let line: Vec<S> = args.into_iter().collect();
        let text = line
            .iter()
            .map(|word| word.as_ref().to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ");
        let mut command = self.command(&line)?;
        command.stdin(if input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let spawn_error = |source| Error::Spawn {
            place: self.name().to_owned(),
            command: text.clone(),
            source,
        };
        let mut child = command.spawn().map_err(spawn_error)?;
        let stdin = child.stdin.take();
        let raw = thread::scope(|scope| {
            scope.spawn(move || {
                // A command may end without reading everything.
                stdin.map(|mut stdin| stdin.write_all(input))
            });
            child.wait_with_output()
        })
        .map_err(spawn_error)?;
        Ok(Output {
            status: raw.status,
            stdout: String::from_utf8_lossy(&raw.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&raw.stderr).into_owned(),
        })
    }

    /// Runs a command that has to succeed, and returns its standard output.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] with all it printed when it ends with another status than 0; otherwise as [`Node::exec`].
    pub fn exec_ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<String> {
        let line: Vec<S> = args.into_iter().collect();
        let output = self.exec(&line)?;
        if output.success() {
            return Ok(output.stdout);
        }
        let text = line
            .iter()
            .map(|word| word.as_ref().to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ");
        Err(run::failed(self.name(), &text, output))
    }

    /// Runs a shell script that has to succeed, and returns its standard output.
    ///
    /// # Errors
    ///
    /// As [`Node::exec_ok`].
    pub fn sh(&self, script: &str) -> Result<String> {
        self.exec_ok(["sh", "-c", script])
    }

    /// Starts a command in the node and goes on; all three standard streams are pipes.
    ///
    /// # Errors
    ///
    /// As [`Node::exec`].
    pub fn spawn<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<NodeProcess> {
        let line: Vec<S> = args.into_iter().collect();
        // Between us and the command is nsenter: when that is killed, so is the command.
        let words = ["setpriv", "--pdeathsig", "KILL"].map(OsStr::new).into_iter();
        let mut command = self.command(words.chain(line.iter().map(AsRef::as_ref)))?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command.spawn().map_err(|source| Error::Spawn {
            place: self.name().to_owned(),
            command: run::describe(&command),
            source,
        })?;
        Ok(NodeProcess { child })
    }

    /// Loads a test image (one of [`super::IMAGES`]; built first where the cache has none) and returns its
    /// full name, such as `tranship-test/busybox:1`.
    ///
    /// # Errors
    ///
    /// [`Error::NoImage`] for other names; what building or loading it meets.
    pub fn load_image(&self, name: &str) -> Result<String> {
        images::load(&self.bed, self, name)
    }

    /// Cuts, mends or slows the node's cable. Switching the node off and on mends it.
    ///
    /// # Errors
    ///
    /// When `tc` does not accept the rate.
    pub fn set_link(&self, link: Link<'_>) -> Result<()> {
        let process = self.bed.node_process(self.name()).ok();
        network::set_link(self.name(), self.bed.switch_process()?, process, link)
    }

    /// The state of the node's cable, for people to read.
    #[must_use]
    pub fn link_state(&self) -> String {
        self.bed.switch_process().map_or_else(
            |_| "unplugged".to_owned(),
            |switch| network::link_state(self.name(), switch).unwrap_or_else(|_| "unplugged".to_owned()),
        )
    }

    /// Bytes that crossed the node's cable since it was switched on.
    ///
    /// # Errors
    ///
    /// [`Error::NodeOff`] when the node doesn't run.
    pub fn link_bytes(&self) -> Result<LinkBytes> {
        network::link_bytes(self.bed.node_process(self.name())?)
    }

    /// Processor time, in user and kernel mode, that all of the node's processes have used, those that ended included.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] where the host's control groups do not count it.
    pub fn processor_time(&self) -> Result<Duration> {
        let counted = self
            .bed
            .cgroups()
            .processor_time(&self.bed.record.name, self.name());
        counted
            .ok_or_else(|| Error::Unsupported("control groups here do not count processor time".to_owned()))
    }

    /// Anonymous memory in bytes that the node's processes of these names hold now: what they need for themselves, without
    /// files that are mapped or cached.
    #[must_use]
    pub fn memory_of(&self, programs: &[&str]) -> u64 {
        let processes = self
            .bed
            .cgroups()
            .processes(&self.bed.record.name, Some(self.name()));
        processes
            .iter()
            .filter_map(|process| process.memory_if(programs))
            .sum()
    }

    /// Ids of Docker's containers here in which a process runs that is neither frozen nor dying. The kernel says so: it is
    /// true also while no engine answers, and costs next to nothing.
    #[must_use]
    pub fn running_containers(&self) -> Vec<String> {
        self.bed
            .cgroups()
            .running_containers(&self.bed.record.name, self.name())
    }

    /// Command lines of all processes here.
    #[must_use]
    pub fn command_lines(&self) -> Vec<String> {
        let processes = self
            .bed
            .cgroups()
            .processes(&self.bed.record.name, Some(self.name()));
        processes.iter().filter_map(ProcessId::command_line).collect()
    }

    /// Kills every process here whose command line holds the text, at once and without a word to it; returns how many.
    pub fn kill_running(&self, text: &str) -> usize {
        let processes = self
            .bed
            .cgroups()
            .processes(&self.bed.record.name, Some(self.name()));
        let named = |p: &&ProcessId| p.command_line().is_some_and(|line| line.contains(text));
        processes.iter().filter(named).inspect(|p| p.kill()).count()
    }

    /// Kills the engine as a crash would: its containers go on, nobody answers any more.
    ///
    /// # Errors
    ///
    /// As [`Node::exec_ok`].
    pub fn kill_engine(&self) -> Result<()> {
        self.exec_ok(["/usr/local/sbin/testbed-engine", "kill"]).map(drop)
    }

    /// Ends the engine in good order, which stops its containers where it is Docker.
    ///
    /// # Errors
    ///
    /// As [`Node::exec_ok`].
    pub fn stop_engine(&self) -> Result<()> {
        self.exec_ok(["/usr/local/sbin/testbed-engine", "stop"]).map(drop)
    }

    /// Ends the engine in good order if it runs, starts it again and waits until it answers.
    ///
    /// # Errors
    ///
    /// As [`Node::exec_ok`], and [`Error::NotReady`] when it doesn't come back.
    pub fn restart_engine(&self) -> Result<()> {
        self.stop_engine()?;
        self.exec_ok(["/usr/local/sbin/testbed-engine", "start"])?;
        self.bed.wait_for_engine(self.name())
    }

    /// Cuts the node's power: every process ends at once, memory is lost, the disk stays as it is.
    ///
    /// # Errors
    ///
    /// [`Error::NotGone`] when a process can't be killed.
    pub fn power_off(&self) -> Result<()> {
        self.bed.cut_power(self.name())
    }

    /// Switches a node on that was off, and waits until it answers.
    ///
    /// # Errors
    ///
    /// [`Error::NotReady`] when it doesn't come up.
    pub fn power_on(&self) -> Result<()> {
        if self.bed.node_process(self.name()).is_ok() {
            return Ok(());
        }
        self.bed.launch_node(self.name())?;
        self.bed.wait_for_node(self.name())
    }

    /// [`Node::power_off`], then [`Node::power_on`].
    ///
    /// # Errors
    ///
    /// As both.
    pub fn reboot(&self) -> Result<()> {
        self.power_off()?;
        self.power_on()
    }

    /// Whether the node is switched on.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.bed.node_process(self.name()).is_ok()
    }

    /// Everything the engine holds, one sorted line per container, image, network and volume, without what changes
    /// by itself: equal before and after means that nothing was left behind.
    ///
    /// # Errors
    ///
    /// As [`Node::exec_ok`].
    pub fn inventory(&self) -> Result<Vec<String>> {
        inventory::take(self)
    }
}

/// A command running in a node; it is killed when this is dropped.
#[derive(Debug)]
pub struct NodeProcess {
    child: Child,
}

impl NodeProcess {
    /// Its standard input; taking and dropping it closes it.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Its standard output; can be taken once.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its standard error; can be taken once.
    pub fn stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Kills it and waits for its end.
    ///
    /// # Errors
    ///
    /// What the system says, which is nothing usually.
    pub fn kill(&mut self) -> std::io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }

    /// Waits for its end without reading what it prints.
    ///
    /// # Errors
    ///
    /// What the system says, which is nothing usually.
    pub fn wait(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait()
    }

    /// Whether it has ended, and how.
    ///
    /// # Errors
    ///
    /// What the system says, which is nothing usually.
    pub fn try_wait(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
