//! Running commands on the host and collecting what they say.

use std::ffi::OsStr;
use std::process::{Command, ExitStatus, Stdio};

use super::error::{Error, Result};

/// Where programs are looked for, on the host and in the nodes.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The place named in errors of commands that run outside the nodes.
pub(crate) const HOST: &str = "host";

/// What a finished command left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error; bytes that are not UTF-8 are replaced.
    pub stderr: String,
}

impl Output {
    /// Whether the command ended with status 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status.success()
    }
}

/// A command on the host with a predictable environment and nothing on standard input.
pub(crate) fn host(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", PATH).env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// Runs a command to its end, whatever that is.
pub(crate) fn output(place: &str, command: &mut Command) -> Result<Output> {
    let raw = command.output().map_err(|source| Error::Spawn {
        place: place.to_owned(),
        command: describe(command),
        source,
    })?;
    Ok(Output {
        status: raw.status,
        stdout: String::from_utf8_lossy(&raw.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&raw.stderr).into_owned(),
    })
}

/// Runs a command that has to succeed and returns its standard output.
pub(crate) fn checked(place: &str, command: &mut Command) -> Result<String> {
    let output = output(place, command)?;
    if output.success() {
        Ok(output.stdout)
    } else {
        Err(failed(place, &describe(command), output))
    }
}

/// The error for a command that ended badly.
pub(crate) fn failed(place: &str, command: &str, output: Output) -> Error {
    Error::Failed {
        place: place.to_owned(),
        command: command.to_owned(),
        status: output.status,
        stdout: output.stdout,
        stderr: output.stderr,
    }
}

/// The command line as a person would type it, near enough.
pub(crate) fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}
