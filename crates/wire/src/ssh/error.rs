//! The ways in which `ssh` fails, told apart by what it says.

use std::path::PathBuf;

use tranship_core::address::SshAddress;
use tranship_core::fault::{Explain, FaultKind};

/// `ssh` did not get through, or its connection ended.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
#[allow(
    missing_docs,
    reason = "the fields are the same everywhere: the host, and what ssh said"
)]
pub enum SshError {
    /// The program cannot be started.
    #[error("cannot start {}", program.display())]
    Program {
        program: PathBuf,
        #[source]
        source: std::sync::Arc<std::io::Error>,
    },
    /// A part of the address could be taken for an option.
    #[error("{address:?} cannot be handed to ssh")]
    Address { address: SshAddress },
    /// The name has no address.
    #[error("the host {} is not known: {text}", address.host)]
    UnknownHost { address: SshAddress, text: String },
    /// Nothing listens there.
    #[error("{address} refuses the connection: {text}")]
    Refused { address: SshAddress, text: String },
    /// There was no answer.
    #[error("{address} does not answer: {text}")]
    Timeout { address: SshAddress, text: String },
    /// There is no way there.
    #[error("there is no route to {address}: {text}")]
    NoRoute { address: SshAddress, text: String },
    /// The host has another key than the one on record.
    #[error("the host key of {address} is not the one on record: {text}")]
    HostKeyChanged { address: SshAddress, text: String },
    /// The host's key is not on record.
    #[error("the host key of {address} is not known here: {text}")]
    HostKeyUnknown { address: SshAddress, text: String },
    /// The host does not let this user in.
    #[error("{address} does not let us in: {text}")]
    Denied { address: SshAddress, text: String },
    /// The other end closed the connection before it stood.
    #[error("{address} closed the connection before it stood: {text}")]
    Closed { address: SshAddress, text: String },
    /// `ssh` does not understand its options or its configuration.
    #[error("ssh does not accept its options or its configuration: {text}")]
    Configuration { address: SshAddress, text: String },
    /// `ssh` failed in another way.
    #[error("ssh to {address} failed: {text}")]
    Failed { address: SshAddress, text: String },
    /// The connection had stood and ended.
    #[error("the ssh connection to {address} ended{}: {text}", status(*code))]
    Ended {
        address: SshAddress,
        code: Option<i32>,
        text: String,
    },
}

fn status(code: Option<i32>) -> String {
    code.map_or_else(
        || " by a signal".to_owned(),
        |code| format!(" with status {code}"),
    )
}

impl SshError {
    /// Tells from the words of `ssh` why no connection stood.
    ///
    /// Only whole lines in the form that OpenSSH writes count: a server's banner comes the same way.
    pub(super) fn classify(address: SshAddress, said: &str) -> Self {
        let lines: Vec<&str> = said
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        let find = |fits: &dyn Fn(&str) -> bool| lines.iter().rev().copied().find(|line| fits(line));
        let clean = |line: &str| crate::error::printable(line, 300);
        let all = clean(&lines.join(" "));
        let says =
            |words: &'static str| find(&|line: &str| line.starts_with("ssh: ") && line.contains(words));

        if find(&|line| line.contains("REMOTE HOST IDENTIFICATION HAS CHANGED")).is_some() {
            let text = find(&|line| line.starts_with("Offending")).map_or_else(|| all.clone(), clean);
            return Self::HostKeyChanged { address, text };
        }
        if let Some(line) = find(&|line| line.starts_with("No ") && line.contains("host key is known for"))
            .or_else(|| find(&|line| line.starts_with("Host key verification failed")))
        {
            return Self::HostKeyUnknown {
                address,
                text: clean(line),
            };
        }
        if let Some(line) = says("Could not resolve hostname") {
            return Self::UnknownHost {
                address,
                text: clean(line),
            };
        }
        if let Some(line) = says("Connection refused") {
            return Self::Refused {
                address,
                text: clean(line),
            };
        }
        if let Some(line) = says("timed out").or_else(|| {
            find(&|line| {
                line.starts_with("Timeout, server") || line.starts_with("Connection timed out during")
            })
        }) {
            return Self::Timeout {
                address,
                text: clean(line),
            };
        }
        if let Some(line) = says("No route to host").or_else(|| says("Network is unreachable")) {
            return Self::NoRoute {
                address,
                text: clean(line),
            };
        }
        if let Some(line) = find(&|line| {
            line.contains(": Permission denied (") || line.contains("Too many authentication failures")
        }) {
            return Self::Denied {
                address,
                text: clean(line),
            };
        }
        if let Some(line) = find(&|line| {
            line.contains("Bad configuration option")
                || line.contains("terminating, ")
                || line.starts_with("Can't open user config file")
                || line.starts_with("unknown option")
                || line.starts_with("usage: ssh")
        }) {
            return Self::Configuration {
                address,
                text: clean(line),
            };
        }
        if let Some(line) = find(&|line| {
            line.starts_with("kex_exchange_identification:")
                || line.starts_with("Connection closed by")
                || line.starts_with("Connection reset by")
        }) {
            return Self::Closed {
                address,
                text: clean(line),
            };
        }
        let text = if all.is_empty() {
            "it said nothing".to_owned()
        } else {
            all
        };
        Self::Failed { address, text }
    }
}

impl Explain for SshError {
    fn code(&self) -> &'static str {
        match self {
            Self::Program { .. } => "ssh.program",
            Self::Address { .. } => "ssh.address",
            Self::UnknownHost { .. } => "ssh.unknown-host",
            Self::Refused { .. } => "ssh.refused",
            Self::Timeout { .. } => "ssh.timeout",
            Self::NoRoute { .. } => "ssh.no-route",
            Self::HostKeyChanged { .. } => "ssh.host-key-changed",
            Self::HostKeyUnknown { .. } => "ssh.host-key-unknown",
            Self::Denied { .. } => "ssh.denied",
            Self::Closed { .. } => "ssh.closed",
            Self::Configuration { .. } => "ssh.configuration",
            Self::Failed { .. } => "ssh.failed",
            Self::Ended { .. } => "ssh.ended",
        }
    }

    fn hint(&self) -> Option<String> {
        let login = |address: &SshAddress| {
            let mut command = "ssh ".to_owned();
            if let Some(port) = address.port {
                command.push_str(&format!("-p {port} "));
            }
            if let Some(user) = &address.user {
                command.push_str(&format!("-l {user} "));
            }
            format!("{command}-- {}", address.host)
        };
        Some(match self {
            Self::Program { .. } => "install OpenSSH's client, or say where it is".into(),
            Self::Address { .. } => "write it ssh://[user@]host[:port]".into(),
            Self::UnknownHost { .. } => {
                "check the name, or give it an address in /etc/hosts or ~/.ssh/config".into()
            }
            Self::Refused { .. } => "check that sshd runs there, and the port".into(),
            Self::Timeout { .. } | Self::NoRoute { .. } => {
                "check that the host is up and that no firewall is in between".into()
            }
            Self::HostKeyChanged { address, .. } => format!(
                "if the host was installed anew, remove its old key with `ssh-keygen -R {}`; if not, someone may be in between",
                match address.port {
                    Some(port) => format!("'[{}]:{port}'", address.host),
                    None => address.host.clone(),
                }
            ),
            Self::HostKeyUnknown { address, .. } => {
                format!("log in once with `{}` and compare the key", login(address))
            }
            Self::Denied { address, .. } => {
                format!(
                    "make `{}` work first; tranship logs in in the same way",
                    login(address)
                )
            }
            Self::Configuration { .. } => "check ~/.ssh/config and the options for ssh".into(),
            Self::Closed { address, .. } | Self::Failed { address, .. } => {
                format!("`{} true` shows more with -v", login(address))
            }
            Self::Ended { .. } => "check the network between here and there".into(),
        })
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::Address { .. } => FaultKind::Usage,
            _ => FaultKind::Environment,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_ssh_are_told_apart() {
        for (said, code) in [
            (
                "ssh: Could not resolve hostname nope: Name or service not known\r\n",
                "ssh.unknown-host",
            ),
            (
                "ssh: connect to host h port 1: Connection refused\r\n",
                "ssh.refused",
            ),
            (
                "ssh: connect to host h port 1: Connection timed out",
                "ssh.timeout",
            ),
            ("Timeout, server h not responding.", "ssh.timeout"),
            ("ssh: connect to host h port 1: No route to host", "ssh.no-route"),
            (
                "ssh: connect to host h port 1: Network is unreachable",
                "ssh.no-route",
            ),
            (
                "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nOffending ED25519 key in f:1\nHost key verification failed.",
                "ssh.host-key-changed",
            ),
            (
                "No ED25519 host key is known for h and you have requested strict checking.\nHost key verification failed.",
                "ssh.host-key-unknown",
            ),
            ("Host key verification failed.", "ssh.host-key-unknown"),
            ("root@h: Permission denied (publickey,password).", "ssh.denied"),
            (
                "kex_exchange_identification: read: Connection reset by peer\nConnection reset by 1.2.3.4 port 22",
                "ssh.closed",
            ),
            (
                "f: line 1: Bad configuration option: x\nf: terminating, 1 bad configuration options",
                "ssh.configuration",
            ),
            ("something else", "ssh.failed"),
            ("", "ssh.failed"),
            // A banner cannot pass for the word of ssh itself.
            (
                "Welcome. Could not resolve hostname. Connection refused.\nu@h: Permission denied (publickey).",
                "ssh.denied",
            ),
        ] {
            let address = SshAddress {
                user: None,
                host: "h".into(),
                port: None,
            };
            let error = SshError::classify(address, said);
            assert_eq!(error.code(), code, "{said:?}: {error}");
            assert!(error.hint().is_some());
        }
    }
}
