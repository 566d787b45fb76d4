//! The control groups a bed lives in, `tranship-testbed/BED/NODE` in every hierarchy.
//!
//! They serve two ends: nodes get control groups of their own, and every process of a bed can be found, also when
//! the process that started it died before it could take notes.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{AtPath, Error, Result};
use super::process::{ProcessId, wait_until};

/// The group all beds are in.
const TOP: &str = "tranship-testbed";

/// How long a group may stay busy after its last process was killed.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// One version-1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    /// Where the host has it mounted.
    mount: PathBuf,
    /// The options that mount it again, such as `cpu,cpuacct` or `none,name=systemd`.
    options: String,
}

/// What kind of control groups the host runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cgroups {
    v1: Vec<Hierarchy>,
    v2: Option<PathBuf>,
    /// Where the unified hierarchy is mounted beside those of version 1. A node's restores make groups there, which nobody else would remove,
    /// and every later dump on the machine would take them along.
    beside: Option<PathBuf>,
}

impl Cgroups {
    /// Looks at the host's mounts. Version 2 is used where no version-1 hierarchy is mounted.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] when neither is mounted.
    pub fn detect() -> Result<Self> {
        let path = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(path).at("read", path)?;
        let found = Self::parse(&text);
        if found.v1.is_empty() && found.v2.is_none() {
            return Err(Error::Unsupported("no control groups are mounted".to_owned()));
        }
        Ok(found)
    }

    fn parse(mountinfo: &str) -> Self {
        let mut v1: Vec<Hierarchy> = Vec::new();
        let mut v2 = None;
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let Some(mount) = left.split(' ').nth(4).map(PathBuf::from) else {
                continue;
            };
            let mut right = right.split(' ');
            match right.next() {
                Some("cgroup") => {
                    let names: Vec<&str> = right
                        .nth(1)
                        .unwrap_or_default()
                        .split(',')
                        .filter(|option| is_controller(option))
                        .collect();
                    let mut options = names.join(",");
                    if options.starts_with("name=") {
                        options.insert_str(0, "none,");
                    }
                    if !options.is_empty() && !v1.iter().any(|known| known.options == options) {
                        v1.push(Hierarchy { mount, options });
                    }
                }
                Some("cgroup2") => v2 = v2.or(Some(mount)),
                _ => {}
            }
        }
        let beside = if v1.is_empty() { None } else { v2.take() };
        Self { v1, v2, beside }
    }

    /// The version-1 hierarchies as `DIRECTORY:OPTIONS`, separated by spaces; empty with version 2.
    pub fn mounts(&self) -> String {
        self.v1
            .iter()
            .filter_map(|hierarchy| {
                let directory = hierarchy.mount.file_name()?.to_str()?;
                Some(format!("{directory}:{}", hierarchy.options))
            })
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Makes the groups of one member of a bed.
    pub fn create(&self, bed: &str, member: &str) -> Result<()> {
        for hierarchy in &self.v1 {
            let mut path = hierarchy.mount.clone();
            for part in [TOP, bed, member] {
                path.push(part);
                make_group(&path)?;
                if hierarchy.options.split(',').any(|option| option == "cpuset") {
                    inherit_cpuset(&path)?;
                }
            }
        }
        if let Some(mount) = &self.v2 {
            let mut path = mount.clone();
            enable_controllers(&path);
            for part in [TOP, bed, member] {
                path.push(part);
                make_group(&path)?;
                if part != member {
                    enable_controllers(&path);
                }
            }
            make_group(&path.join("init"))?;
        }
        if let Some(mount) = &self.beside {
            make_group(&mount.join(TOP).join(bed).join(member))?;
        }
        Ok(())
    }

    fn all_mounts(&self) -> impl Iterator<Item = &PathBuf> {
        let v1 = self.v1.iter().map(|hierarchy| &hierarchy.mount);
        v1.chain(&self.v2).chain(&self.beside)
    }

    /// The groups a member's first process joins before it gets its own view of control groups.
    pub fn roots(&self, bed: &str, member: &str) -> Vec<PathBuf> {
        self.all_mounts()
            .map(|mount| mount.join(TOP).join(bed).join(member))
            .collect()
    }

    /// The groups a member's processes stay in. Version 2 allows no process next to a group's children.
    pub fn homes(&self, bed: &str, member: &str) -> Vec<PathBuf> {
        let mut roots = self.roots(bed, member);
        if self.v2.is_some() {
            roots.iter_mut().for_each(|root| root.push("init"));
        }
        roots
    }

    /// Every process of a bed, or of one member of it.
    pub fn processes(&self, bed: &str, member: Option<&str>) -> Vec<ProcessId> {
        let mut pids = Vec::new();
        for mut path in self.bed_paths(bed) {
            path.extend(member);
            collect_processes(&path, &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids.into_iter().filter_map(ProcessId::of).collect()
    }

    /// Kills every process of a bed, or of one member of it, until none is left.
    pub fn kill(&self, bed: &str, member: Option<&str>) -> Result<()> {
        let done = wait_until(EMPTY_WITHIN, || {
            let left = self.processes(bed, member);
            left.iter().for_each(ProcessId::kill);
            self.thaw(bed, member);
            left.is_empty()
        });
        if done {
            Ok(())
        } else {
            Err(self.not_gone(bed, "a process"))
        }
    }

    /// Lets paused containers go on: with version 1, a frozen process doesn't even die.
    pub fn thaw(&self, bed: &str, member: Option<&str>) {
        for mut path in self.bed_paths(bed) {
            path.extend(member);
            thaw_groups(&path);
        }
    }

    /// Removes the groups of a bed, or of one member of it. A process that joins meanwhile is killed: whoever started
    /// it is gone.
    pub fn remove(&self, bed: &str, member: Option<&str>) -> Result<()> {
        for mut path in self.bed_paths(bed) {
            path.extend(member);
            let removed = wait_until(EMPTY_WITHIN, || {
                remove_group(&path) || {
                    self.processes(bed, member).iter().for_each(ProcessId::kill);
                    false
                }
            });
            if !removed {
                return Err(self.not_gone(bed, &path.display().to_string()));
            }
        }
        if member.is_none() {
            for path in self.bed_paths(bed) {
                if let Some(top) = path.parent() {
                    // Not empty while other beds are up.
                    let _ = fs::remove_dir(top);
                }
            }
        }
        Ok(())
    }

    /// Processor time that all processes of a member have used, those that ended included.
    pub fn processor_time(&self, bed: &str, member: &str) -> Option<Duration> {
        let below = |mount: &Path| mount.join(TOP).join(bed).join(member);
        let accounting = |h: &&Hierarchy| h.options.split(',').any(|option| option == "cpuacct");
        if let Some(hierarchy) = self.v1.iter().find(accounting) {
            let text = fs::read_to_string(below(&hierarchy.mount).join("cpuacct.usage")).ok()?;
            return text.trim().parse().ok().map(Duration::from_nanos);
        }
        let text = fs::read_to_string(below(self.v2.as_deref()?).join("cpu.stat")).ok()?;
        let used = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
        used.parse().ok().map(Duration::from_micros)
    }

    /// Docker's containers of a member in which a process runs that is neither frozen nor dying.
    pub fn running_containers(&self, bed: &str, member: &str) -> Vec<String> {
        let freezer = |h: &&Hierarchy| h.options.split(',').any(|option| option == "freezer");
        let Some(mount) = self
            .v1
            .iter()
            .find(freezer)
            .map(|h| &h.mount)
            .or(self.v2.as_ref())
        else {
            return Vec::new();
        };
        let containers = subdirectories(&mount.join(TOP).join(bed).join(member).join("docker"));
        let runs = containers.iter().filter(|path| {
            let read = |name: &str| fs::read_to_string(path.join(name)).unwrap_or_default();
            let frozen =
                !matches!(read("freezer.state").trim(), "" | "THAWED") || read("cgroup.freeze").trim() == "1";
            let mut pids = Vec::new();
            collect_processes(path, &mut pids);
            let mut processes = pids.into_iter().filter_map(ProcessId::of);
            // What is killed while it is frozen is thawed to die.
            !frozen && processes.any(|process| !process.is_dying())
        });
        runs.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect()
    }

    fn bed_paths(&self, bed: &str) -> Vec<PathBuf> {
        self.all_mounts().map(|mount| mount.join(TOP).join(bed)).collect()
    }

    fn not_gone(&self, bed: &str, what: &str) -> Error {
        Error::NotGone {
            place: format!("testbed {bed}"),
            what: what.to_owned(),
            waited: EMPTY_WITHIN,
        }
    }
}

/// Whether a super-block option names a controller or a named hierarchy.
fn is_controller(option: &str) -> bool {
    const OTHER: [&str; 8] = [
        "rw",
        "ro",
        "none",
        "xattr",
        "clone_children",
        "noprefix",
        "all",
        "cpuset_v2_mode",
    ];
    !option.is_empty() && !option.starts_with("release_agent") && !OTHER.contains(&option)
}

/// Makes a group; a bed going down may take the parent away in between, so the caller's parents are made again.
fn make_group(path: &Path) -> Result<()> {
    let mut attempts = 0;
    loop {
        match fs::create_dir_all(path) {
            Err(error) if error.kind() == ErrorKind::NotFound && attempts < 10 => attempts += 1,
            other => return other.at("create control group", path),
        }
    }
}

/// A new cpuset is empty and accepts no process: give it what its parent has.
fn inherit_cpuset(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(name), path.join(name));
        if fs::read_to_string(&to).at("read", &to)?.trim().is_empty() {
            let value = fs::read_to_string(&from).at("read", &from)?;
            fs::write(&to, value).at("write", &to)?;
        }
    }
    Ok(())
}

/// Offers a version-2 group's controllers to its children, as far as the kernel lets us.
fn enable_controllers(path: &Path) {
    let Ok(controllers) = fs::read_to_string(path.join("cgroup.controllers")) else {
        return;
    };
    for controller in controllers.split_whitespace() {
        if let Err(error) = fs::write(path.join("cgroup.subtree_control"), format!("+{controller}")) {
            tracing::debug!(%controller, path = %path.display(), %error, "controller not available to nodes");
        }
    }
}

fn subdirectories(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn collect_processes(path: &Path, pids: &mut Vec<u32>) {
    if let Ok(text) = fs::read_to_string(path.join("cgroup.procs")) {
        pids.extend(
            text.lines()
                .filter_map(|line| line.parse::<u32>().ok())
                .filter(|pid| *pid != 0),
        );
    }
    for child in subdirectories(path) {
        collect_processes(&child, pids);
    }
}

/// Thaws a group and those below it, where it is one of the freezer's.
fn thaw_groups(path: &Path) {
    let state = path.join("freezer.state");
    if fs::read_to_string(&state).is_ok_and(|text| text.trim() != "THAWED") {
        // The group may vanish meanwhile; the next look tells.
        let _ = fs::write(&state, "THAWED");
    }
    for child in subdirectories(path) {
        thaw_groups(&child);
    }
}

/// Removes a group and those below it; returns whether it is gone.
fn remove_group(path: &Path) -> bool {
    for child in subdirectories(path) {
        remove_group(&child);
    }
    match fs::remove_dir(path) {
        Ok(()) => true,
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime shared:9 - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn version_1_wins_on_a_hybrid_host() {
        let found = Cgroups::parse(HYBRID);
        assert_eq!(
            found.mounts(),
            "cpu,cpuacct:cpu,cpuacct systemd:none,name=systemd"
        );
        assert_eq!(found.v2, None);
        assert_eq!(
            found.homes("bed", "a"),
            [
                PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/tranship-testbed/bed/a"),
                PathBuf::from("/sys/fs/cgroup/systemd/tranship-testbed/bed/a"),
                PathBuf::from("/sys/fs/cgroup/unified/tranship-testbed/bed/a")
            ]
        );
    }

    #[test]
    fn version_2_keeps_processes_in_a_leaf() {
        let found = Cgroups::parse(
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        assert_eq!(found.mounts(), "");
        assert_eq!(
            found.roots("bed", "a"),
            [PathBuf::from("/sys/fs/cgroup/tranship-testbed/bed/a")]
        );
        assert_eq!(
            found.homes("bed", "a"),
            [PathBuf::from("/sys/fs/cgroup/tranship-testbed/bed/a/init")]
        );
    }
}
