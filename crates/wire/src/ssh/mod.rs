//! The system's own `ssh` as a transport.
//!
//! `ssh` is started with the user's configuration in force, so keys, agents, jump hosts and `known_hosts` work as they
//! do by hand; a password or a passphrase is asked for on the terminal. What it says on its standard error is kept
//! for errors, and tells one way of failing from another.

mod error;
mod stream;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;
use tranship_core::address::SshAddress;

pub use error::SshError;
pub use stream::{SshDiagnostics, SshStream};

/// A way to a host, as `ssh` goes it.
#[derive(Debug, Clone)]
pub struct SshTransport {
    /// Where to.
    pub address: SshAddress,
    /// The program.
    pub program: PathBuf,
    /// Options given by the user, such as `-F FILE`; they come first and so have the last word.
    pub options: Vec<String>,
    /// Never ask for anything; fail instead. Also keeps the terminal's signals from `ssh`, so that an orderly end
    /// after an interrupt still has a connection.
    pub batch: bool,
    /// How long the connection may take to stand; `ssh` decides when it is not given.
    pub connect_timeout: Option<Duration>,
}

impl SshTransport {
    /// The usual `ssh` without further options.
    #[must_use]
    pub fn new(address: SshAddress) -> Self {
        Self {
            address,
            program: PathBuf::from("ssh"),
            options: Vec::new(),
            batch: false,
            connect_timeout: None,
        }
    }

    /// Starts `ssh` with a command for the other end.
    ///
    /// The command is read by the login shell there, whichever that is.
    ///
    /// # Errors
    /// [`SshError::Program`] if `ssh` cannot be started, [`SshError::Address`] for an address that was not parsed and
    /// that `ssh` could take for an option. Whatever happens later shows on the stream.
    pub fn open(&self, command: &str) -> Result<SshStream, SshError> {
        let arguments = self.arguments(command)?;
        tracing::debug!(program = %self.program.display(), host = %self.address, "starting ssh");
        let mut program = Command::new(&self.program);
        program
            .args(&arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if self.batch {
            program.process_group(0);
        }
        let child = program.spawn().map_err(|source| self.not_started(source))?;
        SshStream::new(child, self.address.clone()).map_err(|source| self.not_started(source))
    }

    fn not_started(&self, source: std::io::Error) -> SshError {
        SshError::Program {
            program: self.program.clone(),
            source: Arc::new(source),
        }
    }

    fn arguments(&self, command: &str) -> Result<Vec<OsString>, SshError> {
        let SshAddress { user, host, port } = &self.address;
        // Parsing makes sure of this already, but the fields are open to anyone.
        let unsafe_part = |part: &str| {
            part.is_empty() || part.starts_with('-') || part.chars().any(|c| c.is_control() || c == ' ')
        };
        if unsafe_part(host) || user.as_deref().is_some_and(unsafe_part) {
            return Err(SshError::Address {
                address: self.address.clone(),
            });
        }
        let mut arguments: Vec<String> = self.options.clone();
        let mut option = |text: String| arguments.extend(["-o".to_owned(), text]);
        if self.batch {
            option("BatchMode=yes".into());
        }
        if let Some(timeout) = self.connect_timeout {
            option(format!("ConnectTimeout={}", timeout.as_secs().max(1)));
        }
        for text in [
            "ServerAliveInterval=5",
            "ServerAliveCountMax=3",
            // What a configuration sets for interactive use would get in the way of a plain stream.
            "RemoteCommand=none",
            "ClearAllForwardings=yes",
            "PermitLocalCommand=no",
        ] {
            option(text.into());
        }
        arguments.extend(["-a", "-x", "-T", "-e", "none"].map(str::to_owned));
        if let Some(port) = port {
            arguments.extend(["-p".to_owned(), port.to_string()]);
        }
        if let Some(user) = user {
            arguments.extend(["-l".to_owned(), user.clone()]);
        }
        arguments.extend(["--".to_owned(), host.clone(), command.to_owned()]);
        Ok(arguments.into_iter().map(OsString::from).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tranship_core::NodeAddress;
    use tranship_core::fault::Explain as _;

    fn transport(text: &str) -> SshTransport {
        match NodeAddress::parse(text) {
            Ok(NodeAddress::Ssh(address)) => SshTransport::new(address),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_host_and_the_command_come_after_two_dashes() {
        let mut transport = transport("ssh://root@[fe80::1%eth0]:2222");
        transport.options = vec!["-F".into(), "some file".into()];
        transport.batch = true;
        let arguments = transport.arguments("true").unwrap();
        let arguments: Vec<_> = arguments.iter().map(|a| a.to_str().unwrap()).collect();
        assert_eq!(arguments[..2], ["-F", "some file"]);
        assert!(arguments.contains(&"BatchMode=yes"));
        let end = &arguments[arguments.len() - 7..];
        assert_eq!(end, ["-p", "2222", "-l", "root", "--", "fe80::1%eth0", "true"]);
    }

    #[test]
    fn an_address_that_looks_like_an_option_is_refused_even_unparsed() {
        for (user, host) in [
            (None, "-oProxyCommand=x"),
            (Some("-l"), "h"),
            (None, ""),
            (Some("a b"), "h"),
        ] {
            let address = SshAddress {
                user: user.map(str::to_owned),
                host: host.to_owned(),
                port: None,
            };
            let error = SshTransport::new(address).open("true").unwrap_err();
            assert_eq!(error.code(), "ssh.address");
        }
    }

    #[test]
    fn a_missing_program_is_named() {
        let mut transport = transport("ssh://h");
        transport.program = "/nonexistent/ssh".into();
        let error = transport.open("true").unwrap_err();
        assert_eq!(error.code(), "ssh.program");
        assert!(error.to_string().contains("/nonexistent/ssh"), "{error}");
    }
}
