//! Processes by identity: a pid alone may have passed to somebody else, a pid with its start time has not.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// How often conditions are looked at while waiting.
const POLL: Duration = Duration::from_millis(3);

/// A process that can be told from a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    /// Its pid in the host's process tree.
    pub pid: u32,
    /// When it started, in clock ticks since the machine did.
    pub start: u64,
}

impl ProcessId {
    /// The process that has this pid now, unless it has ended.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold spaces: count fields from its end.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?;
        if state == "Z" || state == "X" {
            return None;
        }
        let start = fields.nth(18)?.parse().ok()?;
        Some(Self { pid, start })
    }

    /// The calling process.
    pub fn current() -> Option<Self> {
        Self::of(std::process::id())
    }

    /// Reads `PID START`, the form the start scripts write.
    pub fn parse(text: &str) -> Option<Self> {
        let (pid, start) = text.trim().split_once(' ')?;
        Some(Self {
            pid: pid.parse().ok()?,
            start: start.parse().ok()?,
        })
    }

    /// Whether it still runs (a zombie does not).
    pub fn alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Bytes of anonymous memory that it holds, if its program has one of these names.
    pub fn memory_if(&self, programs: &[&str]) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        if !programs.contains(&field("Name:")?.trim()) {
            return None;
        }
        let kibibytes: u64 = field("RssAnon:")?
            .trim()
            .strip_suffix(" kB")?
            .trim()
            .parse()
            .ok()?;
        Some(kibibytes * 1024)
    }

    /// Its command line, the words separated by blanks; its name where it has none.
    pub fn command_line(&self) -> Option<String> {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.pid)).ok()?;
        let words = String::from_utf8_lossy(&bytes).replace('\0', " ");
        if !words.trim().is_empty() {
            return Some(words.trim().to_owned());
        }
        let name = fs::read_to_string(format!("/proc/{}/comm", self.pid)).ok()?;
        Some(name.trim().to_owned())
    }

    /// Whether it will run no instruction of its own any more: it is ending, or is to be killed as soon as it is scheduled.
    pub fn is_dying(&self) -> bool {
        /// `PF_EXITING` of the kernel.
        const EXITING: u64 = 4;
        /// The bit of SIGKILL in a set of signals.
        const KILL: u64 = 1 << 8;
        let read = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", self.pid)).unwrap_or_default();
        let status = read("status");
        let pending = |name: &str| {
            let set = status.lines().find_map(|line| line.strip_prefix(name));
            set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
                .is_some_and(|set| set & KILL != 0)
        };
        let stat = read("stat");
        let flags = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(6)?.parse::<u64>().ok());
        pending("SigPnd:") || pending("ShdPnd:") || flags.is_none_or(|flags| flags & EXITING != 0)
    }

    /// Kills it, and only it: the pid is pinned before the identity is checked.
    pub fn kill(&self) {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return;
        };
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
            return;
        };
        if self.alive() {
            // It may end by itself between the check and the signal; that is what we want anyway.
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
    }
}

/// Looks at a condition until it holds or time is up; returns whether it held.
pub(crate) fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if begin.elapsed() > limit {
            return false;
        }
        thread::sleep(POLL);
    }
}
