//! The memory of running containers: what a node must have so that it can be dumped and restored, and what of one container stands in
//! the way.

use serde::{Deserialize, Serialize};

/// Bytes that can be had without swapping, by what `/proc/meminfo` says (proc_meminfo(5)).
#[must_use]
pub fn available(meminfo: &str) -> Option<u64> {
    bytes_of(meminfo, "MemAvailable:")
}

/// Bytes that can be had, swap and huge pages included, by what `/proc/meminfo` says.
#[must_use]
pub fn available_at_all(meminfo: &str) -> Option<u64> {
    let swap = bytes_of(meminfo, "SwapFree:").unwrap_or_default();
    let size = bytes_of(meminfo, "Hugepagesize:").unwrap_or_default();
    let huge = number_of(meminfo, "HugePages_Free:").map_or(0, |pages| pages.saturating_mul(size));
    Some(available(meminfo)?.saturating_add(swap).saturating_add(huge))
}

fn bytes_of(meminfo: &str, name: &str) -> Option<u64> {
    Some(number_of(meminfo, name)?.saturating_mul(1024))
}

fn number_of(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Something that keeps a container, or its memory, from travelling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obstacle {
    /// Stable code such as `live.terminal`.
    pub code: String,
    /// What it is.
    pub message: String,
    /// What can be done about it; empty if nothing.
    #[serde(default)]
    pub remedy: String,
}

impl Obstacle {
    /// An obstacle with what can be done about it.
    pub fn new(code: &str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            remedy: remedy.into(),
        }
    }
}

/// How much of the memory a dump is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DumpKind {
    /// All of it, on its own.
    Whole,
    /// All of it, and more dumps are to follow: where the kernel tells what is written, and where it pays, they hold little more than that.
    First,
    /// What the kernel says was written since the dump before, where that was made for it; else all of it. Of processes that run, so that another one has
    /// to follow.
    Next,
    /// The last one, of processes that stand still: as `Next`, but right whatever the kernel says.
    Last,
}

/// What a dump was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dumped {
    /// It holds everything, and takes the place of the one before.
    Whole {
        /// Why others do not follow it, or why it does not follow the one before, where that was asked for.
        why: Option<String>,
    },
    /// It stands beside those before it, which stay as they are, and those that follow it hold what was written since.
    Tracked,
}

/// What a node says about dumping and restoring memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveFacts {
    /// Version of CRIU, such as `4.2.1`; empty if there is none.
    #[serde(default)]
    pub criu: String,
    /// Features of the processor, as the kernel names them, sorted.
    #[serde(default)]
    pub cpu_features: Vec<String>,
    /// Bytes of memory that are available without swapping, as the kernel estimates it.
    #[serde(default)]
    pub free_memory: u64,
    /// Locks on files come back with a restore here, because the runtime's configuration of CRIU says so.
    #[serde(default)]
    pub restores_locks: bool,
    /// The kernel tells which pages were written, and CRIU uses that.
    #[serde(default)]
    pub tracks_memory: bool,
    /// Dumps that follow each other can be restored here, whether or not the kernel tells what was written.
    #[serde(default)]
    pub restores_tracked: bool,
    /// What keeps this node from it.
    #[serde(default)]
    pub obstacles: Vec<Obstacle>,
}

/// What a node says about the memory of one of its running containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// Bytes that its processes use, caches of files left out.
    pub bytes: u64,
    /// Its processes hold locks on files.
    #[serde(default)]
    pub locks: bool,
    /// Established TCP connections.
    #[serde(default)]
    pub connections: u64,
    /// What of it keeps its memory from travelling.
    #[serde(default)]
    pub obstacles: Vec<Obstacle>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_had_is_read_in_bytes() {
        let about = "MemTotal:       24620876 kB\nMemFree:        16000000 kB\nMemAvailable:   23000000 kB\nSwapFree:           1024 kB\nHugePages_Free:        3\nHugepagesize:       2048 kB\n";
        assert_eq!(available(about), Some(23_000_000 * 1024));
        assert_eq!(available_at_all(about), Some((23_001_024 + 3 * 2048) * 1024));
        assert_eq!(available("MemFree: 1 kB\n"), None);
        assert_eq!(available_at_all("MemAvailable: x kB\n"), None);
    }
}
