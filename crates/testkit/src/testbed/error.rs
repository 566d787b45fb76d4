//! What can go wrong with a testbed. Every variant names the place (a node, a bed or the host) and the command
//! or path involved, so that a failed test explains itself.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

/// Shorthand for results of the testbed.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of the testbed itself or of a command that had to succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine can't carry a testbed at all.
    #[error("no testbed on this machine: {0}")]
    Unsupported(String),
    /// Programs are missing and could not be installed.
    #[error("programs are missing on this machine: {programs} (Debian packages: {packages})")]
    MissingTools {
        /// Names of the programs, separated by spaces.
        programs: String,
        /// Debian packages that bring them, separated by spaces.
        packages: String,
    },
    /// The host's apt configuration names no Debian mirror.
    #[error("no Debian mirror in the apt configuration below {0}; name one with --mirror")]
    NoMirror(PathBuf),
    /// A command ran and failed.
    #[error("{place}: `{command}` failed ({status})\nstdout: {stdout}\nstderr: {stderr}")]
    Failed {
        /// The node, or `host`.
        place: String,
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed.
        stdout: String,
        /// What it complained about.
        stderr: String,
    },
    /// A command could not be started.
    #[error("{place}: cannot run `{command}`: {source}")]
    Spawn {
        /// The node, or `host`.
        place: String,
        /// The command line.
        command: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// A verb, such as `write`.
        action: &'static str,
        /// The path involved.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something did not come up in time.
    #[error("{place}: {what} was not ready after {} s; its log ends:\n{log}", waited.as_secs())]
    NotReady {
        /// The node or the bed.
        place: String,
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
        /// The last lines of the log.
        log: String,
    },
    /// Something refused to end.
    #[error("{place}: {what} is still there after {} s", waited.as_secs())]
    NotGone {
        /// The node or the bed.
        place: String,
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
    },
    /// There is no bed of this name.
    #[error("no testbed named `{0}` is up")]
    NoBed(String),
    /// A bed of this name is up already.
    #[error("a testbed named `{0}` is up already")]
    BedExists(String),
    /// The bed has no node of this name.
    #[error("testbed `{bed}` has no node `{node}`")]
    NoNode {
        /// The bed's name.
        bed: String,
        /// The name asked for.
        node: String,
    },
    /// The node is switched off.
    #[error("node `{0}` is not running")]
    NodeOff(String),
    /// The name can't be used.
    #[error("`{0}` is no name for a testbed: letters, digits and hyphens, at most 32")]
    BadName(String),
    /// The options contradict themselves.
    #[error("cannot bring up a testbed: {0}")]
    BadOptions(String),
    /// All subnets are taken.
    #[error("no free subnet is left for another testbed")]
    NoSubnet,
    /// There is no test image of this name.
    #[error("no test image `{0}`; there are: busybox, web:1, web:2")]
    NoImage(String),
    /// A state file is damaged.
    #[error("cannot understand {}: {source}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },
}

/// Attaches the path to an I/O error.
pub(crate) trait AtPath<T> {
    /// Turns the error into [`Error::Io`]; `action` is a verb.
    fn at(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> AtPath<T> for std::io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io {
            action,
            path: path.to_owned(),
            source,
        })
    }
}
