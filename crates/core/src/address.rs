//! How a node is named: the forms that docker uses for its hosts.
//!
//! Parsing is strict because parts of an address end up as arguments of `ssh`. Resolving a docker context's name is
//! left to the binary, which may read the user's files.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where an engine is: this machine, or another one and the way to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NodeAddress {
    /// This machine and its default engine.
    Local,
    /// This machine and the engine that listens on a unix socket.
    Unix(String),
    /// A machine reached by `ssh`.
    Ssh(SshAddress),
    /// A name without a scheme: a docker context.
    Context(String),
}

/// `ssh://[user@]host[:port]`, each part already checked to be safe as an argument of `ssh`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SshAddress {
    /// The user to log in as; `ssh` decides when it is not given.
    pub user: Option<String>,
    /// Host name, alias from the user's ssh configuration, or address (IPv6 without brackets).
    pub host: String,
    /// Port; `ssh` decides when it is not given.
    pub port: Option<u16>,
}

/// Why a text does not name a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} does not name a node: {reason}")]
pub struct AddressError {
    /// The text as given.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

impl NodeAddress {
    /// Reads an address as the command line takes it.
    ///
    /// # Errors
    /// [`AddressError`] for anything that is not one of the forms, or that could be taken for an option by a program.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        Self::parse_parts(text).map_err(|reason| AddressError {
            text: text.to_owned(),
            reason,
        })
    }

    fn parse_parts(text: &str) -> Result<Self, String> {
        if text.len() > 1024 {
            return Err("it is longer than 1024 bytes".into());
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err("it contains white space or control characters".into());
        }
        if text.is_empty() || text == "local" {
            return Ok(Self::Local);
        }
        if text.starts_with('-') {
            return Err("it begins with '-', which a program could take for an option".into());
        }
        match text.split_once("://") {
            Some(("ssh", rest)) => Ok(Self::Ssh(SshAddress::parse(rest)?)),
            Some(("unix", path)) => {
                if path.starts_with('/') {
                    Ok(Self::Unix(path.to_owned()))
                } else {
                    Err("unix:// needs an absolute path, as in unix:///var/run/docker.sock".into())
                }
            }
            Some((scheme @ ("tls" | "kube" | "tcp" | "http" | "https"), _)) => Err(format!(
                "{scheme}:// is not supported in this version; use ssh://[user@]host[:port]"
            )),
            Some((scheme, _)) => Err(format!(
                "the scheme {scheme:?} is not known; use ssh:// or unix://"
            )),
            None => {
                let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '+' | '-');
                if text.chars().all(fits) {
                    Ok(Self::Context(text.to_owned()))
                } else {
                    Err("a host is written ssh://[user@]host[:port]; anything else is a docker context's name".into())
                }
            }
        }
    }
}

impl SshAddress {
    fn parse(rest: &str) -> Result<Self, String> {
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('/') {
            return Err("a path after the host has no meaning".into());
        }
        let (user, host_port) = match rest.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, rest),
        };
        if let Some(user) = user {
            check_part("user", user, |c| {
                c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '+' | '@' | '\\')
            })?;
        }
        let (host, port) = split_port(host_port)?;
        check_part("host", host, |c| {
            c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%')
        })?;
        Ok(Self {
            user: user.map(str::to_owned),
            host: host.to_owned(),
            port,
        })
    }
}

fn split_port(text: &str) -> Result<(&str, Option<u16>), String> {
    let (host, port) = if let Some(inner) = text.strip_prefix('[') {
        let Some((host, after)) = inner.split_once(']') else {
            return Err("the '[' of an IPv6 address is not closed".into());
        };
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err("only a port may follow the ']' of an IPv6 address".into()),
        }
    } else {
        match text.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("an IPv6 address is written in brackets, as in ssh://[::1]:22".into());
            }
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let port = match port {
        None => None,
        Some(port) => match port.parse::<u16>() {
            Ok(number) if number > 0 && port.bytes().all(|b| b.is_ascii_digit()) => Some(number),
            _ => return Err(format!("{port:?} is not a port between 1 and 65535")),
        },
    };
    Ok((host, port))
}

fn check_part(what: &str, text: &str, fits: impl Fn(char) -> bool) -> Result<(), String> {
    if text.is_empty() {
        return Err(format!("the {what} is empty"));
    }
    if text.starts_with('-') {
        return Err(format!(
            "the {what} begins with '-', which ssh could take for an option"
        ));
    }
    if let Some(bad) = text.chars().find(|c| !fits(*c)) {
        return Err(format!("the {what} contains {bad:?}"));
    }
    Ok(())
}

impl fmt::Display for SshAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ssh://")?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?;
        } else {
            f.write_str(&self.host)?;
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Unix(path) => write!(f, "unix://{path}"),
            Self::Ssh(ssh) => ssh.fmt(f),
            Self::Context(name) => f.write_str(name),
        }
    }
}

impl std::str::FromStr for NodeAddress {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for NodeAddress {
    type Error = AddressError;
    fn try_from(text: String) -> Result<Self, AddressError> {
        Self::parse(&text)
    }
}

impl From<NodeAddress> for String {
    fn from(address: NodeAddress) -> String {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_forms_are_read_and_written_back() {
        for text in [
            "local",
            "unix:///run/docker.sock",
            "ssh://a",
            "ssh://root@a:2222",
            "ssh://u@[fe80::1%eth0]:22",
            "prod",
        ] {
            assert_eq!(NodeAddress::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(NodeAddress::parse("").unwrap(), NodeAddress::Local);
        assert_eq!(NodeAddress::parse("ssh://a/").unwrap().to_string(), "ssh://a");
    }

    #[test]
    fn what_ssh_could_take_for_an_option_is_refused() {
        for bad in [
            "-oProxyCommand=x",
            "ssh://-oProxyCommand=x",
            "ssh://user@-oProxyCommand=x",
            "ssh://-l@host",
            "ssh://",
            "ssh://@h",
            "ssh://a b",
            "ssh://a\nb",
            "ssh://a:0",
            "ssh://a:65536",
            "ssh://a:+1",
            "ssh://a:b",
            "ssh://a/path",
            "ssh://::1",
            "ssh://[::1",
            "ssh://[::1]x",
            "unix://relative",
            "tls://a",
            "gopher://a",
            "a;b",
            "$(id)",
            "ssh://a;b",
            "ssh://a`id`",
        ] {
            assert!(NodeAddress::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_accepted_is_stable(text in ".{0,60}") {
            if let Ok(address) = NodeAddress::parse(&text) {
                prop_assert_eq!(NodeAddress::parse(&address.to_string()).unwrap(), address);
            }
        }

        #[test]
        fn an_accepted_host_never_begins_with_a_dash(text in "ssh://[-a@:\\[\\]0-9]{0,12}") {
            if let Ok(NodeAddress::Ssh(ssh)) = NodeAddress::parse(&text) {
                prop_assert!(!ssh.host.starts_with('-'));
                prop_assert!(!ssh.user.unwrap_or_default().starts_with('-'));
            }
        }
    }
}
