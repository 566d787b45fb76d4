//! Where a registry is.

use std::fmt;
use std::str::FromStr;

use super::ClientError;
use crate::name::Repository;

/// Host and port of a registry, and the path below which repositories are used. Without TLS only where the text says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    secure: bool,
    host: String,
    path: Option<Repository>,
}

impl Address {
    /// Whether its connections are guarded by TLS.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// `host[:port]`, by which docker's credentials and certificates are filed.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository of this name below the path of the address.
    ///
    /// # Errors
    /// [`ClientError::Oci`] if that is no name.
    pub fn repository(&self, name: &str) -> Result<Repository, ClientError> {
        Ok(match &self.path {
            Some(path) => Repository::new(&format!("{}/{name}", path.as_str()))?,
            None => Repository::new(name)?,
        })
    }

    /// The beginning of its URLs.
    pub(super) fn base(&self) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        format!("{scheme}://{}", self.host)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "" } else { "http://" };
        write!(f, "{scheme}{}", self.host)?;
        match &self.path {
            Some(path) => write!(f, "/{}", path.as_str()),
            None => Ok(()),
        }
    }
}

impl FromStr for Address {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let wrong = |message| ClientError::Address {
            text: text.to_owned(),
            message,
        };
        let (secure, rest) = match text.split_once("://") {
            None => (true, text),
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            Some(_) => return Err(wrong("it is reached by https or http only")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, path) = match rest.split_once('/') {
            Some((host, path)) => (host, Some(path)),
            None => (rest, None),
        };
        if host.contains('@') {
            return Err(wrong("name and password do not belong into an address"));
        }
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
        let authority = http::uri::Authority::from_str(host).map_err(|_| wrong("it has no host"))?;
        if authority.host().is_empty() || authority.host().starts_with('-') || !host.chars().all(good) {
            return Err(wrong("it has no host"));
        }
        let path = path.map(Repository::new).transpose();
        Ok(Self {
            secure,
            host: host.to_ascii_lowercase(),
            path: path.map_err(|_| wrong("its path is not the beginning of a repository's name"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_whether_it_is_guarded() {
        for (text, base, shown) in [
            ("Reg.example", "https://reg.example", "reg.example"),
            ("https://r:5000/", "https://r:5000", "r:5000"),
            ("http://r:5000/team/x", "http://r:5000", "http://r:5000/team/x"),
            ("[::1]:5000", "https://[::1]:5000", "[::1]:5000"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.base(), base);
            assert_eq!(address.to_string(), shown);
            assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
        }
        let address: Address = "r/team".parse().unwrap();
        assert_eq!(address.repository("app").unwrap().as_str(), "team/app");
        for bad in [
            "",
            "ftp://r",
            "me:secret@r",
            "r/../x",
            "r/A",
            "-r",
            "https://",
            "/x",
            "r\n",
            "r?x",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad:?}");
        }
    }
}
