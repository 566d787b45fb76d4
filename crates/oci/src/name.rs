//! Names of repositories, tags and references, as the distribution specification has them
//! (<https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#pulling-manifests>), and which of the engine's tags they
//! mean.

use tranship_core::ids::Digest;

use crate::error::OciError;

/// Longest name of a repository, in bytes: what clients and registries keep to.
const LONGEST_NAME: usize = 255;

/// Longest tag, in bytes.
const LONGEST_TAG: usize = 128;

/// The name of a repository: parts of lower-case letters and digits, separated by slashes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository(String);

impl Repository {
    /// Checks the text.
    ///
    /// # Errors
    /// [`OciError::Name`].
    pub fn new(text: &str) -> Result<Self, OciError> {
        if text.len() <= LONGEST_NAME && text.split('/').all(is_part) {
            return Ok(Self(text.to_owned()));
        }
        Err(OciError::Name {
            text: text.to_owned(),
        })
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tag by which the engine knows what is called `tag` in this repository. The engine's own names for what has no registry
    /// in it, `docker.io/` and `library/`, are left out.
    ///
    /// # Errors
    /// [`OciError::Name`] for a name that an engine takes for a digest.
    pub fn local(&self, tag: &Tag) -> Result<String, OciError> {
        let bare = self.bare();
        if ["sha256", "sha384", "sha512"].contains(&bare) {
            return Err(OciError::Name { text: self.0.clone() });
        }
        Ok(format!("{bare}:{}", tag.as_str()))
    }

    /// The same for a tag that is to be given.
    ///
    /// # Errors
    /// [`OciError::Name`] also for 64 hexadecimal digits, which an engine takes for an id.
    pub fn given(&self, tag: &Tag) -> Result<String, OciError> {
        if Digest::new(format!("sha256:{}", self.bare())).is_ok() {
            return Err(OciError::Name { text: self.0.clone() });
        }
        self.local(tag)
    }

    fn bare(&self) -> &str {
        let bare = self.0.strip_prefix("docker.io/").unwrap_or(&self.0);
        match bare.strip_prefix("library/") {
            Some(rest) if !rest.contains('/') => rest,
            _ => bare,
        }
    }

    /// The repository and the tag that one of the engine's tags is reached by; none where it cannot be said, as with a registry's
    /// port in it.
    #[must_use]
    pub fn of_local(tag: &str) -> Option<(Self, Tag)> {
        let (name, tag) = tag.rsplit_once(':')?;
        Some((Self::new(name).ok()?, Tag::new(tag).ok()?))
    }
}

/// One part between slashes: runs of letters and digits, joined by one dot, one or two underscores, or dashes.
fn is_part(part: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut rest = part;
    loop {
        let after = rest.trim_start_matches(alphanumeric);
        if after.len() == rest.len() {
            return false;
        }
        if after.is_empty() {
            return true;
        }
        let end = after.find(alphanumeric).unwrap_or(after.len());
        let (separator, next) = after.split_at(end);
        if !matches!(separator, "." | "_" | "__") && !separator.bytes().all(|b| b == b'-') {
            return false;
        }
        rest = next;
    }
}

/// A tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

impl Tag {
    /// Checks the text.
    ///
    /// # Errors
    /// [`OciError::Reference`].
    pub fn new(text: &str) -> Result<Self, OciError> {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let good = text.len() <= LONGEST_TAG
            && text.starts_with(word)
            && text.chars().all(|c| word(c) || matches!(c, '.' | '-'));
        if good {
            return Ok(Self(text.to_owned()));
        }
        Err(OciError::Reference {
            text: text.to_owned(),
        })
    }

    /// The tag as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a manifest is asked for by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A tag.
    Tag(Tag),
    /// The digest of the document.
    Digest(Digest),
}

impl Reference {
    /// Reads a digest where there is a colon, else a tag.
    ///
    /// # Errors
    /// [`OciError::Digest`] or [`OciError::Reference`].
    pub fn new(text: &str) -> Result<Self, OciError> {
        match text.contains(':') {
            true => digest(text).map(Self::Digest),
            false => Tag::new(text).map(Self::Tag),
        }
    }
}

/// Reads a digest; only SHA-256 is known.
///
/// # Errors
/// [`OciError::Digest`].
pub fn digest(text: &str) -> Result<Digest, OciError> {
    Digest::new(text).map_err(|error| OciError::Digest {
        message: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_follow_the_grammar() {
        for good in [
            "app",
            "a/b/c",
            "a.b",
            "a_b",
            "a__b",
            "a---b",
            "quay.io/x/y",
            "0",
            &"a".repeat(255),
        ] {
            assert!(Repository::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a..b",
            "a___b",
            "a._b",
            "-a",
            "a-",
            "..",
            "a/../b",
            "a/./b",
            "host:5000/a",
            "a\0",
            "ä",
            "a b",
            "a%2fb",
            &"a".repeat(256),
        ] {
            assert!(Repository::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn tags_and_digests_are_told_apart() {
        assert!(matches!(Reference::new("v1.2-x_Y"), Ok(Reference::Tag(_))));
        let hex = "0".repeat(64);
        assert!(matches!(
            Reference::new(&format!("sha256:{hex}")),
            Ok(Reference::Digest(_))
        ));
        for bad in [
            "",
            ".a",
            "-a",
            "a/b",
            "..",
            "sha256:",
            &format!("sha256:{}", "A".repeat(64)),
            &format!("sha512:{hex}"),
            &format!("sha256:{hex}/"),
            &"a".repeat(129),
        ] {
            assert!(Reference::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn repositories_mean_local_tags() {
        let local = |name: &str| Repository::new(name).unwrap().local(&Tag::new("1").unwrap());
        assert_eq!(local("app").unwrap(), "app:1");
        assert_eq!(local("library/app").unwrap(), "app:1");
        assert_eq!(local("docker.io/library/app").unwrap(), "app:1");
        assert_eq!(local("docker.io/me/app").unwrap(), "me/app:1");
        assert_eq!(local("quay.io/me/app").unwrap(), "quay.io/me/app:1");
        assert!(
            local("sha256").is_err(),
            "with a tag it would be the id of an image"
        );
        let (name, tag) = Repository::of_local("quay.io/me/app:1").unwrap();
        assert_eq!((name.as_str(), tag.as_str()), ("quay.io/me/app", "1"));
        for none in ["host:5000/app:1", "app", "<none>:<none>"] {
            assert!(Repository::of_local(none).is_none(), "{none}");
        }
    }

    proptest! {
        #[test]
        fn no_name_leads_out_of_a_directory(text in "[a-z./_-]{0,12}") {
            if Repository::new(&text).is_ok() {
                prop_assert!(text.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.contains("..")));
            }
        }
    }
}
