//! Why no agent runs at the other end.

use std::path::PathBuf;
use std::time::Duration;

use tranship_core::fault::{Explain, FaultKind};

/// The agent could not be started at the other end of an `ssh` that works.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(
    missing_docs,
    reason = "the fields are the same everywhere: the host, and what it said"
)]
pub enum BootstrapError {
    /// An option holds something that a shell would read.
    #[error("{text:?} cannot be handed to the other end's shell")]
    Argument { text: String },
    /// The own version or hash has no proper form.
    #[error("{text:?} is not a version or a SHA-256")]
    Version { text: String },
    /// The shell there printed too much before the script came to its word.
    #[error("the login shell of {host} printed more than {limit} bytes of its own")]
    Noise { host: String, limit: usize },
    /// The script did not run.
    #[error("{host} has no shell for us: {text}")]
    Shell { host: String, text: String },
    /// A step took too long.
    #[error("{host} did not answer within {after:?} while {step}")]
    Timeout {
        host: String,
        step: &'static str,
        after: Duration,
    },
    /// Nothing may be uploaded, and there is no version there to work with.
    #[error("{host} has {found}, and nothing may be uploaded to it")]
    Refused {
        host: String,
        found: String,
        needed: String,
    },
    /// Our own binary does not run on that kind of machine.
    #[error("{host} is {there}, and this tranship was built for {here}")]
    Architecture {
        host: String,
        here: String,
        there: String,
    },
    /// Our own binary cannot be read.
    #[error("cannot read {}", path.display())]
    Binary {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// What arrived there is not what was meant to.
    #[error("what arrived at {host} has the SHA-256 {found:?} instead of {expected}")]
    Hash {
        host: String,
        expected: String,
        found: String,
    },
    /// There is no tool there to compute a hash.
    #[error("{host} cannot check an upload: {text}")]
    NoHash { host: String, text: String },
    /// There is no space for the binary.
    #[error("there is no space for tranship on {host}: {text}")]
    NoSpace { host: String, text: String },
    /// Programs may not be run from where they can be put.
    #[error("tranship cannot be kept on {host} where it may be run: {text}")]
    NoExec { host: String, text: String },
    /// There is no directory to put the binary into.
    #[error("tranship cannot be put anywhere on {host}: {text}")]
    NoDirectory { host: String, text: String },
    /// Writing failed there in another way.
    #[error("the upload to {host} could not be written: {text}")]
    Write { host: String, text: String },
    /// The upload ended early.
    #[error("the upload to {host} was cut short: {text}")]
    CutShort { host: String, text: String },
    /// The binary is there but does not run.
    #[error("tranship does not run on {host}: {text}")]
    CannotRun { host: String, text: String },
    /// The script said something that this version does not understand.
    #[error("{host} answered {text:?} while {step}")]
    Unexpected {
        host: String,
        step: &'static str,
        text: String,
    },
}

impl BootstrapError {
    /// The error that the script reported.
    pub(super) fn reported(host: &str, expected: &str, code: &str, text: &str) -> Self {
        let host = host.to_owned();
        let text = crate::error::printable(text, 400);
        match code {
            "hash" => Self::Hash {
                host,
                expected: expected.to_owned(),
                found: text,
            },
            "no-hash" => Self::NoHash { host, text },
            "no-space" => Self::NoSpace { host, text },
            "no-exec" => Self::NoExec { host, text },
            "no-directory" => Self::NoDirectory { host, text },
            "write" => Self::Write { host, text },
            "cut-short" => Self::CutShort { host, text },
            "cannot-run" => Self::CannotRun { host, text },
            _ => Self::Unexpected {
                host,
                step: "starting the agent",
                text,
            },
        }
    }
}

impl Explain for BootstrapError {
    fn code(&self) -> &'static str {
        match self {
            Self::Argument { .. } => "bootstrap.argument",
            Self::Version { .. } => "bootstrap.version",
            Self::Noise { .. } => "bootstrap.noise",
            Self::Shell { .. } => "bootstrap.shell",
            Self::Timeout { .. } => "bootstrap.timeout",
            Self::Refused { .. } => "bootstrap.refused",
            Self::Architecture { .. } => "bootstrap.architecture",
            Self::Binary { .. } => "bootstrap.binary",
            Self::Hash { .. } => "bootstrap.hash",
            Self::NoHash { .. } => "bootstrap.no-hash",
            Self::NoSpace { .. } => "bootstrap.no-space",
            Self::NoExec { .. } => "bootstrap.no-exec",
            Self::NoDirectory { .. } => "bootstrap.no-directory",
            Self::Write { .. } => "bootstrap.write",
            Self::CutShort { .. } => "bootstrap.cut-short",
            Self::CannotRun { .. } => "bootstrap.cannot-run",
            Self::Unexpected { .. } => "bootstrap.unexpected",
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Argument { .. } | Self::Version { .. } | Self::Binary { .. } => return None,
            Self::Noise { .. } => "make the shell's start-up files silent when no terminal is there".into(),
            Self::Shell { .. } => "the user needs a login shell and a POSIX sh there".into(),
            Self::Timeout { .. } => "check the load of the host and its shell's start-up files".into(),
            Self::Refused { needed, .. } => format!("install {needed} there, or allow the upload"),
            Self::Architecture { there, .. } => {
                format!("install a tranship built for {there} there, in a directory of the PATH")
            }
            Self::Hash { .. } => "try again; if it stays so, the disk or the memory there is at fault".into(),
            Self::NoHash { .. } => "install coreutils there, or tranship itself".into(),
            Self::NoSpace { .. } => {
                "make space there, point XDG_CACHE_HOME elsewhere, or install tranship there".into()
            }
            Self::NoExec { .. } | Self::NoDirectory { .. } | Self::Write { .. } => {
                "point XDG_CACHE_HOME to a writable directory that allows programs, or install tranship there"
                    .into()
            }
            Self::CutShort { .. } => "check the network and try again".into(),
            Self::CannotRun { .. } => {
                "install a tranship built for that system there, in a directory of the PATH".into()
            }
            Self::Unexpected { .. } => "install the same version of tranship at both ends".into(),
        })
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::Version { .. } => FaultKind::Bug,
            Self::Argument { .. } => FaultKind::Usage,
            _ => FaultKind::Environment,
        }
    }
}
