//! What CRIU's logs say, in words.
//!
//! A log has a line for everything that was looked at; those that matter begin with `Error`. The first of them is the cause, what
//! follows is what came of it.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// As much of a log is read, in bytes.
const LONGEST_LOG: u64 = 8 << 20;
/// Lines of it that are shown.
const SHOWN: usize = 3;
/// Time between two looks for a log that has yet to appear.
const LOOK: Duration = Duration::from_millis(1);
/// Where containerd keeps what belongs to running containers: the system's, and one that dockerd started for itself.
const STATES: [&str; 2] = ["/run/containerd", "/run/docker/containerd/daemon"];

/// Phrases of CRIU's sources (and of its version 4.1.1 on a newer kernel), what they mean, and what can be done.
const MEANINGS: &[(&str, &str)] = &[
    (
        "Can't get 1:16 opt",
        "this CRIU cannot dump internet sockets on this kernel: CRIU 4.2 can",
    ),
    (
        "Connected TCP socket",
        "it has TCP connections, and this CRIU was not told to close them",
    ),
    ("io_uring", "it uses io_uring, which CRIU cannot dump"),
    (
        "Can't dump ghost file",
        "it holds a large file open that was deleted",
    ),
    (
        "doesn't have a proper root mount",
        "one of its mounts is unlike those that CRIU knows",
    ),
    (
        "External socket is used",
        "it is connected to a unix socket outside of the container",
    ),
    (
        "Can't bind inet socket",
        "it listens on an address of its own, which the container does not have there",
    ),
    (
        "CPU capabilities do not match",
        "the processors differ: what the program was started with is missing there",
    ),
    (
        "file locks are hold",
        "it holds locks on files, which a restore brings back only with the line file-locks in /etc/criu/runc.conf at both ends",
    ),
    (
        "Can't get rlimit",
        "the agent lacks the capability CAP_SYS_RESOURCE, without which only processes of root can be dumped",
    ),
    (
        "Unsupported proto 262",
        "it has sockets of Multipath TCP, which CRIU cannot dump (programs in Go: GODEBUG=multipathtcp=0)",
    ),
    (
        "has bad size",
        "a file that it has open is not as it was when it was dumped",
    ),
];

/// Why a dump failed.
pub(super) fn dump(log: &[u8], said: &[u8]) -> String {
    why(log).unwrap_or_else(|| {
        let said = String::from_utf8_lossy(said);
        let last = said.lines().rev().find(|line| !line.trim().is_empty());
        last.map_or_else(
            || "the runtime did not say why".to_owned(),
            |line| line.trim().to_owned(),
        )
    })
}

/// Why a restore failed.
pub(super) fn restore(log: &[u8], engine: &str) -> String {
    match why(log) {
        Some(why) => format!("{why} ({})", engine.lines().next().unwrap_or_default().trim()),
        None => engine.to_owned(),
    }
}

/// The errors of a log, and what they mean.
fn why(log: &[u8]) -> Option<String> {
    let log = String::from_utf8_lossy(log);
    let errors: Vec<&str> = log
        .lines()
        .filter_map(|line| line.split_once("Error ").map(|(_, error)| error.trim()))
        .collect();
    let first = *errors.first()?;
    let meaning = errors
        .iter()
        .find_map(|error| MEANINGS.iter().find(|(phrase, _)| error.contains(phrase)))
        .map(|(_, meaning)| *meaning);
    let shown: Vec<&str> = errors.iter().take(SHOWN).copied().collect();
    Some(match meaning {
        Some(meaning) => format!("{meaning}; CRIU says: {first}"),
        None => format!("CRIU says: {}", shown.join("; ")),
    })
}

/// The log of a restore under way. It goes with the task as soon as that fails, so it is opened when it appears.
pub(super) struct RestoreLog {
    ended: Arc<AtomicBool>,
    found: Option<JoinHandle<Option<File>>>,
}

impl RestoreLog {
    /// Looks for the log of this container's restore.
    pub(super) fn watch(container: &str) -> Self {
        let paths = STATES.map(|state| {
            PathBuf::from(format!(
                "{state}/io.containerd.runtime.v2.task/moby/{container}/work/restore.log"
            ))
        });
        Self::watch_paths(paths.to_vec())
    }

    /// Looks for a log in one place.
    pub(super) fn of(path: PathBuf) -> Self {
        Self::watch_paths(vec![path])
    }

    fn watch_paths(paths: Vec<PathBuf>) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ended);
        let looking = std::thread::Builder::new().name("restore-log".into());
        let found = looking.spawn(move || {
            loop {
                if let Some(file) = paths.iter().find_map(|path| File::open(path).ok()) {
                    return Some(file);
                }
                if told.load(Ordering::Relaxed) {
                    return None;
                }
                std::thread::sleep(LOOK);
            }
        });
        Self {
            ended,
            found: found.ok(),
        }
    }

    /// What was written to it.
    pub(super) fn end(mut self) -> Vec<u8> {
        self.ended.store(true, Ordering::Relaxed);
        let file = self.found.take().and_then(|found| found.join().ok()).flatten();
        let mut log = Vec::new();
        if let Some(file) = file
            && let Err(error) = file.take(LONGEST_LOG).read_to_end(&mut log)
        {
            tracing::debug!("the log of the restore: {error}");
        }
        log
    }
}

impl Drop for RestoreLog {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_matters_is_found_and_put_in_words() {
        let log = b"(00.01) Dumping\n(00.02) Error (criu/sockets.c:471): sockets: Can't get 1:16 opt: Protocol not available\n\
                    (00.03) Error (criu/cr-dump.c:1): Dump files (pid: 1) failed with -1\n";
        let said = dump(log, b"criu failed");
        assert!(
            said.starts_with("this CRIU cannot dump internet sockets"),
            "{said}"
        );
        assert!(said.contains("sockets.c:471"), "{said}");
        let unknown = dump(b"(00.02) Error (criu/x.c:1): something new\n", b"");
        assert!(unknown.contains("something new"), "{unknown}");
        assert_eq!(dump(b"", b"\nno such container\n\n"), "no such container");
        let restored = restore(log, "OCI runtime restore failed: criu failed\nlog file: /run/x");
        assert!(
            restored.ends_with("(OCI runtime restore failed: criu failed)"),
            "{restored}"
        );
        assert_eq!(restore(b"", "whole\nanswer"), "whole\nanswer");
    }

    #[test]
    fn a_log_that_goes_with_its_directory_is_read_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("restore.log");
        let watch = RestoreLog::watch_paths(vec![path.clone()]);
        std::fs::write(&path, b"first\n").unwrap();
        std::thread::sleep(Duration::from_millis(100));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(watch.end(), b"first\n");
        let none = RestoreLog::watch_paths(vec![path]);
        assert!(none.end().is_empty());
    }
}
