//! What a registry asks for before it answers: a name and a password with every request (Basic), or a token from where it says
//! (Bearer, <https://distribution.github.io/distribution/spec/auth/token/>; for an identity token
//! <https://distribution.github.io/distribution/spec/auth/oauth/>).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use base64::Engine as _;
use http::HeaderValue;

use super::ClientError;

/// What a registry knows somebody by. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// A name and a password.
    Password {
        /// Name of the user.
        user: String,
        /// Password.
        password: String,
    },
    /// An identity token, which gets tokens in place of both: what OAuth2 calls a refresh token.
    Identity(String),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(..)")
    }
}

impl Login {
    /// Name and password as a header.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        let Self::Password { user, password } = self else {
            return None;
        };
        let pair = format!("{user}:{password}");
        let text = base64::engine::general_purpose::STANDARD.encode(pair);
        secret(&format!("Basic {text}"))
    }
}

/// Where names and passwords come from.
#[async_trait]
pub trait Logins: Send + Sync {
    /// Those for a registry, `host[:port]`.
    ///
    /// # Errors
    /// [`ClientError::Credentials`] where they should be and cannot be had.
    async fn login(&self, host: &str) -> Result<Option<Login>, ClientError>;
}

/// No names and passwords at all.
pub struct NoLogins;

#[async_trait]
impl Logins for NoLogins {
    async fn login(&self, _host: &str) -> Result<Option<Login>, ClientError> {
        Ok(None)
    }
}

/// A header that is not shown in logs.
pub(super) fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What was found to be right, by what it is right for.
#[derive(Default)]
pub(super) struct Auth(Mutex<HashMap<String, HeaderValue>>);

impl Auth {
    pub(super) fn get(&self, scope: &str) -> Option<HeaderValue> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(scope).cloned()
    }

    pub(super) fn set(&self, scope: &str, value: HeaderValue) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(scope.to_owned(), value);
    }
}

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads one `WWW-Authenticate` header (RFC 9110 §11.6.1), of which registries use `key="value"` pairs only.
    pub(super) fn read(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut pairs = pairs(rest)?;
        Some(Self::Bearer {
            realm: pairs.remove("realm")?,
            service: pairs.remove("service"),
            scope: pairs.remove("scope"),
        })
    }
}

fn pairs(mut rest: &str) -> Option<HashMap<String, String>> {
    let mut pairs = HashMap::new();
    loop {
        rest = rest.trim_start_matches([' ', ',', '\t']);
        if rest.is_empty() {
            return Some(pairs);
        }
        let (key, after) = rest.split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        pairs.insert(key.trim().to_ascii_lowercase(), value.to_owned());
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        assert_eq!(Challenge::read("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(
            Challenge::read(
                "Bearer realm=\"https://auth/token\",service=\"reg\", scope=\"repository:a/b:pull,push\""
            ),
            Some(Challenge::Bearer {
                realm: "https://auth/token".into(),
                service: Some("reg".into()),
                scope: Some("repository:a/b:pull,push".into()),
            })
        );
        for bad in [
            "",
            "Bearer",
            "Bearer realm",
            "Bearer realm=\"x",
            "Digest realm=\"x\"",
        ] {
            assert_eq!(Challenge::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let login = Login::Password {
            user: "me".into(),
            password: "secret".into(),
        };
        assert!(!format!("{login:?} {:?}", login.header().unwrap()).contains("secret"));
        assert!(format!("{:?}", login.header().unwrap()).contains("Sensitive"));
        let token = Login::Identity("secret".into());
        assert!(token.header().is_none() && !format!("{token:?}").contains("secret"));
    }
}
