//! What a container's processes hold by now, and which they are: looked at before each dump.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cgroups;

/// Where the hierarchies of control groups are mounted.
const HIERARCHIES: &str = "/sys/fs/cgroup";
/// How long threads take at most to come to a stand.
const STANDS_WITHIN: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// How long they are given where nobody says whether they have.
const STANDS_SOON: Duration = Duration::from_millis(50);

/// What a container's processes are like right now, as far as a dump minds it.
pub(super) struct Held {
    /// Bytes that a dump writes at least: what each process has for itself, in memory and swapped out, and what they share once, of which
    /// the kernel tells no more than each one's part. Files in a tmpfs that nobody maps are not among them.
    pub(super) bytes: u64,
    /// Some of that is in huge pages that were asked for by that name (`HugetlbPages` in proc_pid_status(5)).
    pub(super) hugetlb: bool,
    /// What one of the processes says of its control groups; empty if there is none.
    pub(super) groups: String,
}

/// Looks at the container's processes, which takes some milliseconds for each hundred processes of the machine.
pub(super) fn held(container: &str) -> Held {
    let all = processes(container);
    let groups = all
        .last()
        .map(|process| std::fs::read_to_string(process.join("cgroup")));
    let groups = groups.and_then(Result::ok).unwrap_or_default();
    let statuses: Vec<String> = all.iter().map(|process| said(process)).collect();
    let hugetlb = statuses.iter().any(|status| kib(status, "HugetlbPages:") > 0);
    let bytes = held_by(statuses.into_iter());
    Held {
        bytes,
        hugetlb,
        groups,
    }
}

fn held_by(statuses: impl Iterator<Item = String>) -> u64 {
    let (mut own, mut shared) = (0_u64, 0_u64);
    for status in statuses {
        let kib = |name: &str| kib(&status, name);
        for name in ["RssAnon:", "VmSwap:", "HugetlbPages:"] {
            own = own.saturating_add(kib(name));
        }
        shared = shared.max(kib("RssShmem:"));
    }
    own.saturating_add(shared).saturating_mul(1024)
}

/// Bytes of a container's memory that the kernel keeps in huge pages: it marks them as a whole. A look at all of its memory.
pub(super) fn in_huge_pages(container: &str) -> u64 {
    let all = processes(container).into_iter();
    let rollups = all.filter_map(|process| std::fs::read_to_string(process.join("smaps_rollup")).ok());
    rollups.fold(0, |sum, rollup| sum.saturating_add(huge_in(&rollup)))
}

/// Bytes of `AnonHugePages` (proc_pid_smaps(5)).
fn huge_in(rollup: &str) -> u64 {
    kib(rollup, "AnonHugePages:").saturating_mul(1024)
}

/// A number of kibibytes, or of times, in what the kernel says of a process.
fn kib(said: &str, name: &str) -> u64 {
    let line = said.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or_default()
}

/// The numbers of the container's processes here, by those that they have in the container. Those in namespaces of their own within it have
/// several numbers: the one counts that the container's first process would know them by. Empty where that is not clear.
pub(super) fn numbers(container: &str) -> BTreeMap<u64, u64> {
    by_number(
        &processes(container)
            .iter()
            .map(|path| numbers_in(&said(path)))
            .collect::<Vec<_>>(),
    )
}

/// How often each thread of the container's processes was taken from a processor, which does not change as long as they stand still.
fn switches(container: &str) -> BTreeMap<PathBuf, (u64, u64)> {
    let mut all = BTreeMap::new();
    for process in processes(container) {
        let threads = std::fs::read_dir(process.join("task"));
        for thread in threads.into_iter().flatten().flatten() {
            let said = said(&thread.path());
            let counts = ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"];
            all.insert(thread.path(), counts.map(|name| kib(&said, name)).into());
        }
    }
    all
}

/// Looks at a paused container's processes, whose control groups `groups` are, and fails if any of them ran meanwhile. That CRIU has just let go
/// of them is waited for.
pub(super) fn while_they_stand<T>(
    container: &str,
    groups: &str,
    look: impl FnOnce() -> Result<T, String>,
) -> Result<T, String> {
    come_to_a_stand(groups);
    unless_changed(|| switches(container), look)
}

fn unless_changed<S: PartialEq, T>(
    state: impl Fn() -> S,
    look: impl FnOnce() -> Result<T, String>,
) -> Result<T, String> {
    let before = state();
    let seen = look()?;
    // What was dumped is of the time before, so that a second look would not do.
    if before != state() {
        return Err("it did not stand still while its memory was compared".to_owned());
    }
    Ok(seen)
}

/// Waits until the freezer has all threads, which takes until all that CRIU has let go of have come to a stand, and at most [`STANDS_WITHIN`].
fn come_to_a_stand(groups: &str) {
    let begun = Instant::now();
    while begun.elapsed() < STANDS_WITHIN {
        match stands(groups, Path::new(HIERARCHIES)) {
            Some(true) => return,
            Some(false) => std::thread::sleep(LOOK_AGAIN),
            None => return std::thread::sleep(STANDS_SOON),
        }
    }
}

/// Whether the freezer says so: `freezer.state` in version 1 of control groups, `cgroup.events` in version 2 (cgroups(7)). Nothing where it is not found.
fn stands(groups: &str, hierarchies: &Path) -> Option<bool> {
    if let Some(group) = cgroups::group_in(groups, "freezer") {
        let state = hierarchies.join("freezer").join(group).join("freezer.state");
        let state = std::fs::read_to_string(state).ok()?;
        return Some(state.trim() == "FROZEN");
    }
    let events = hierarchies
        .join(cgroups::group_in(groups, "")?)
        .join("cgroup.events");
    let events = std::fs::read_to_string(events).ok()?;
    Some(events.lines().any(|line| line == "frozen 1"))
}

/// What the kernel says of a process; nothing of one that is gone.
fn said(process: &Path) -> String {
    std::fs::read_to_string(process.join("status")).unwrap_or_default()
}

/// The directories of the container's processes, however many they are.
fn processes(container: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbered = all.filter(|entry| {
        entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.parse::<u64>().is_ok())
    });
    let paths = numbered.map(|entry| entry.path());
    let of_it = paths.filter(|path| {
        std::fs::read_to_string(path.join("cgroup")).is_ok_and(|groups| cgroups::are_of(&groups, container))
    });
    of_it.collect()
}

/// All numbers that a process has, the outermost first (`NSpid` in proc_pid_status(5)).
fn numbers_in(status: &str) -> Vec<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let words = line.unwrap_or_default().split_whitespace();
    words.filter_map(|word| word.parse().ok()).collect()
}

fn by_number(all: &[Vec<u64>]) -> BTreeMap<u64, u64> {
    let first = all.iter().filter(|numbers| numbers.last() == Some(&1));
    let depth = first.map(Vec::len).min().unwrap_or_default();
    let mut found = BTreeMap::new();
    for numbers in all {
        let inner = depth.checked_sub(1).and_then(|index| numbers.get(index));
        if let (Some(inner), Some(outer)) = (inner, numbers.first())
            && found.insert(*inner, *outer).is_some()
        {
            // Another container's groups lie below those of this one.
            return BTreeMap::new();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_counted_in_bytes() {
        let rollup = "00400000-7fff [rollup]\nRss: 9 kB\nAnonHugePages:    4096 kB\nShmemPmdMapped: 1 kB\n";
        assert_eq!(huge_in(rollup), 4 << 20);
        assert_eq!(huge_in(""), 0);
    }

    #[test]
    fn processes_are_known_by_their_numbers_in_the_container() {
        assert_eq!(
            numbers_in("Name:\tx\nNSpid:\t900\t40\t1\nThreads:\t1\n"),
            [900, 40, 1]
        );
        assert_eq!(numbers_in("Name:\tx\n"), Vec::<u64>::new());
        // The second one's child is the first of a namespace within.
        let all = vec![vec![900, 1], vec![905, 6], vec![906, 7, 1]];
        assert_eq!(by_number(&all), BTreeMap::from([(1, 900), (6, 905), (7, 906)]));
        assert_eq!(by_number(&[vec![900, 6]]), BTreeMap::new());
        assert_eq!(by_number(&[]), BTreeMap::new());
        assert_eq!(by_number(&[vec![900, 1], vec![950, 1]]), BTreeMap::new());
    }

    #[test]
    fn the_freezer_says_whether_they_stand() {
        let mounted = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = mounted.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let (first, second) = ("7:cpu:/x\n5:freezer:/docker/ab\n0::/\n", "0::/docker/a:b\n");
        let both = || [first, second].map(|groups| stands(groups, mounted.path()));
        assert_eq!(both(), [None, None]);
        assert_eq!(stands("", mounted.path()), None);
        write("freezer/docker/ab/freezer.state", "FREEZING\n");
        write("docker/a:b/cgroup.events", "populated 1\nfrozen 0\n");
        assert_eq!(both(), [Some(false), Some(false)]);
        write("freezer/docker/ab/freezer.state", "FROZEN\n");
        write("docker/a:b/cgroup.events", "populated 1\nfrozen 1\n");
        assert_eq!(both(), [Some(true), Some(true)]);
    }

    #[test]
    fn what_was_seen_while_something_ran_is_not_believed() {
        let ran = std::cell::Cell::new(0);
        assert_eq!(unless_changed(|| ran.get(), || Ok(7)), Ok(7));
        let seen = unless_changed(
            || ran.get(),
            || {
                ran.set(1);
                Ok(7)
            },
        );
        assert!(seen.is_err_and(|why| why.contains("did not stand still")));
    }

    #[test]
    fn what_processes_share_is_held_once() {
        let status = |own: u64, shared: u64| {
            format!(
                "VmRSS:\t 9 kB\nRssAnon:\t {own} kB\nRssFile:\t 70 kB\nRssShmem:\t {shared} kB\nVmSwap:\t 3 kB\n"
            )
        };
        let all = [status(100, 40), status(20, 50), "Name:\tkthread\n".to_owned()];
        assert_eq!(held_by(all.into_iter()), 176 * 1024);
    }
}
