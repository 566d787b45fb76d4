//! One newtype per kind of id, so that a container id cannot be passed where an image id is meant.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a text is not a valid id of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {text:?} is not valid: {reason}")]
pub struct IdError {
    /// What the text should have named.
    pub kind: &'static str,
    /// The text as given.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks `text` and wraps it.
            ///
            /// # Errors
            /// [`IdError`] when the text does not have the form of this id.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                match $check(&text) {
                    Ok(()) => Ok(Self(text)),
                    Err(reason) => Err(IdError { kind: $kind, text, reason }),
                }
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

id!(
    /// The engine's own id of a container: hexadecimal text, 64 digits at Docker and Podman.
    ContainerId, "container id", check_hex_id
);
id!(
    /// What a person calls a container: a name, or an id or the beginning of one.
    ContainerName, "container", check_container_name
);
id!(
    /// One migration. Chosen by the caller, the same at source and destination.
    MigrationId, "migration id", check_migration_id
);
id!(
    /// What a checkpoint of a container is called. It names a directory, so it is as plain as a container's name, and shorter.
    CheckpointName, "checkpoint", check_checkpoint_name
);
id!(
    /// A digest with its algorithm, `sha256:` and 64 lower-case hexadecimal digits.
    Digest, "digest", check_digest
);

impl Digest {
    /// The 64 hexadecimal digits without the algorithm.
    #[must_use]
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or(self.0.as_str(), |(_, hex)| hex)
    }

    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(format!("sha256:{}", hex(&sha2::Sha256::digest(bytes))))
    }

    /// A digest from the 32 bytes that a SHA-256 hasher gave.
    #[must_use]
    pub fn from_sha256(bytes: &[u8; 32]) -> Self {
        Self(format!("sha256:{}", hex(bytes)))
    }
}

/// Lower-case hexadecimal text of `bytes`.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing into a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn check_hex_id(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > 128 {
        return Err("it must have 1 to 128 digits");
    }
    if !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("it must be hexadecimal");
    }
    Ok(())
}

/// Docker's rule for names (`[a-zA-Z0-9][a-zA-Z0-9_.-]+`), with a leading slash not accepted and one character allowed,
/// since it may be the beginning of an id.
fn check_container_name(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > 255 {
        return Err("it is longer than 255 bytes");
    }
    if text.starts_with('-') {
        return Err("it begins with '-', which a program could take for an option");
    }
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err("it must begin with a letter or a digit");
    }
    if !text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
    {
        return Err("only letters, digits, '_', '.' and '-' are allowed");
    }
    Ok(())
}

fn check_checkpoint_name(text: &str) -> Result<(), &'static str> {
    if text.len() > 128 {
        return Err("it is longer than 128 bytes");
    }
    check_container_name(text)
}

fn check_migration_id(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > 40 {
        return Err("it must have 1 to 40 characters");
    }
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        return Err("only lower-case letters and digits are allowed");
    }
    Ok(())
}

fn check_digest(text: &str) -> Result<(), &'static str> {
    let Some(hex) = text.strip_prefix("sha256:") else {
        return Err("it must begin with 'sha256:'");
    };
    if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err("64 lower-case hexadecimal digits must follow the algorithm");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_options_are_refused() {
        for bad in ["", "-it", "--help", "a b", "a\nb", "../x", "/web", "a/b", "ü"] {
            assert!(ContainerName::new(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(ContainerName::new("x".repeat(256)).is_err());
        for good in ["web", "a", "my_app-1.2", "0123456789ab"] {
            assert_eq!(ContainerName::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn the_name_of_a_checkpoint_leads_nowhere() {
        for bad in ["", ".", "..", ".new-x", "../x", "a/b", "a@b", "-x", "a b"] {
            assert!(CheckpointName::new(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(CheckpointName::new("x".repeat(129)).is_err());
        for good in ["before-upgrade", "1764316341123", "a.b_c"] {
            assert!(CheckpointName::new(good).is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn digests_are_strict() {
        let good = Digest::of(b"");
        assert_eq!(
            good.hex(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        for bad in [
            "",
            "sha256:",
            "sha256:../../etc",
            "md5:00",
            &good.as_str().to_uppercase(),
            &good.as_str()[..70],
        ] {
            assert!(Digest::new(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
