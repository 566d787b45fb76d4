//! What a container's processes hold by now, and which they are: looked at before each dump.

use std::collections::BTreeMap;

use super::facts::members;
use crate::cgroups;

/// What a container's processes are like right now, as far as a dump minds it.
pub(super) struct Held {
    /// Bytes that a dump writes at least: what each process has for itself, in memory and swapped out, and what they share once, of which
    /// the kernel tells no more than each one's part. Files in a tmpfs that nobody maps are not among them.
    pub(super) bytes: u64,
    /// What one of the processes says of its control groups; empty if there is none.
    pub(super) groups: String,
}

/// Looks at the container's processes, which takes some milliseconds for each hundred processes of the machine.
pub(super) fn held(container: &str) -> Held {
    let mut groups = String::new();
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let statuses = all.filter_map(|entry| {
        entry.file_name().to_str()?.parse::<u64>().ok()?;
        let said = std::fs::read_to_string(entry.path().join("cgroup")).ok()?;
        if !cgroups::are_of(&said, container) {
            return None;
        }
        groups = said;
        std::fs::read_to_string(entry.path().join("status")).ok()
    });
    let bytes = held_by(statuses);
    Held { bytes, groups }
}

fn held_by(statuses: impl Iterator<Item = String>) -> u64 {
    let (mut own, mut shared) = (0_u64, 0_u64);
    for status in statuses {
        let kib = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            number.unwrap_or_default()
        };
        for name in ["RssAnon:", "VmSwap:", "HugetlbPages:"] {
            own = own.saturating_add(kib(name));
        }
        shared = shared.max(kib("RssShmem:"));
    }
    own.saturating_add(shared).saturating_mul(1024)
}

/// Bytes of a container's memory that the kernel keeps in huge pages: it marks them as a whole. A look at all of its memory.
pub(super) fn in_huge_pages(container: &str) -> u64 {
    let all = members(container).into_keys();
    let rollups = all.filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok());
    rollups.fold(0, |sum, rollup| sum.saturating_add(huge_in(&rollup)))
}

/// Bytes of `AnonHugePages` (proc_pid_smaps(5)).
fn huge_in(rollup: &str) -> u64 {
    let line = rollup
        .lines()
        .find_map(|line| line.strip_prefix("AnonHugePages:"));
    let number: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or_default().saturating_mul(1024)
}

/// The numbers of the container's processes here, by those that they have in the container. Those in namespaces of their own within it have
/// several numbers: the one counts that the container's first process would know them by.
pub(super) fn numbers(container: &str) -> BTreeMap<u64, u64> {
    let numbers = members(container).into_keys().filter_map(|pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        Some(numbers_in(&status))
    });
    by_number(numbers.collect())
}

/// All numbers that a process has, the outermost first (`NSpid` in proc_pid_status(5)).
fn numbers_in(status: &str) -> Vec<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let words = line.unwrap_or_default().split_whitespace();
    words.filter_map(|word| word.parse().ok()).collect()
}

fn by_number(all: Vec<Vec<u64>>) -> BTreeMap<u64, u64> {
    let first = all.iter().filter(|numbers| numbers.last() == Some(&1));
    let depth = first.map(Vec::len).min().unwrap_or_default();
    let pairs = all.iter().filter_map(|numbers| {
        let inner = numbers.get(depth.checked_sub(1)?)?;
        Some((*inner, *numbers.first()?))
    });
    pairs.collect()
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
        assert_eq!(by_number(all), BTreeMap::from([(1, 900), (6, 905), (7, 906)]));
        assert_eq!(by_number(vec![vec![900, 6]]), BTreeMap::new());
        assert_eq!(by_number(Vec::new()), BTreeMap::new());
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
