//! What is asked for, in the query of a URL.

use tranship_archive::filter::{FilterSpec, Pattern};
use tranship_archive::path::TreePath;
use tranship_core::Fault;
use tranship_core::fault::FaultKind;

/// Whose the unpacked files become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A path and how its files go in or out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathRequest {
    /// The path, as it was asked for.
    pub path: Vec<u8>,
    /// Follow a link that is the path itself.
    pub follow: bool,
    /// Name in the archive in place of the path's own; empty for the contents.
    pub name: Option<Vec<u8>>,
    /// What goes along, relative to the path; everything if empty.
    pub include: Vec<Vec<u8>>,
    /// What stays, relative to the path.
    pub exclude: Vec<Vec<u8>>,
    /// Keep holes and all extended attributes. Docker expands the ones and drops the others.
    pub rich: bool,
    /// Refuse to replace a directory by something else, and the other way round.
    pub no_overwrite_dir_non_dir: bool,
    /// Files become those of the container's user.
    pub copy_uid_gid: bool,
    /// Files become those of this owner.
    pub owner: Option<Owner>,
    /// Pack files as empty ones: only what there is, not what is in it.
    pub headers_only: bool,
    /// What is unpacked comes as [`super::delta`] writes it.
    pub delta: bool,
    /// The beginning of a large file that is broken off is kept for the next time.
    pub partial: bool,
}

impl PathRequest {
    /// The query of a URL.
    #[must_use]
    pub fn to_query(&self) -> String {
        let mut parts = vec![format!("path={}", encode(&self.path))];
        if let Some(name) = &self.name {
            parts.push(format!("name={}", encode(name)));
        }
        for (key, values) in [("include", &self.include), ("exclude", &self.exclude)] {
            parts.extend(values.iter().map(|value| format!("{key}={}", encode(value))));
        }
        for (key, value) in [
            ("follow", self.follow),
            ("rich", self.rich),
            ("noOverwriteDirNonDir", self.no_overwrite_dir_non_dir),
            ("copyUIDGID", self.copy_uid_gid),
            ("headersOnly", self.headers_only),
            ("delta", self.delta),
            ("partial", self.partial),
        ] {
            if value {
                parts.push(format!("{key}=true"));
            }
        }
        if let Some(owner) = self.owner {
            parts.push(format!("owner={}:{}", owner.uid, owner.gid));
        }
        parts.join("&")
    }

    /// Reads the query of a URL. What is not known is passed over, as docker does.
    ///
    /// # Errors
    /// `request.path` without a path, in docker's words; `request.invalid`.
    pub fn from_query(query: &str) -> Result<Self, Fault> {
        let invalid = |what: &str| Fault::new("request.invalid", FaultKind::Usage, what.to_owned());
        let mut asked = Self::default();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let value = decode(value).ok_or_else(|| invalid("the query is not percent-encoded"))?;
            match key {
                "path" => asked.path = value,
                "name" => asked.name = Some(value),
                "include" => asked.include.push(value),
                "exclude" => asked.exclude.push(value),
                "follow" => asked.follow = is_true(&value),
                "rich" => asked.rich = is_true(&value),
                "noOverwriteDirNonDir" => asked.no_overwrite_dir_non_dir = is_true(&value),
                "copyUIDGID" => asked.copy_uid_gid = is_true(&value),
                "headersOnly" => asked.headers_only = is_true(&value),
                "delta" => asked.delta = is_true(&value),
                "partial" => asked.partial = is_true(&value),
                "owner" => {
                    let owner = std::str::from_utf8(&value).ok().and_then(parse_owner);
                    asked.owner = Some(owner.ok_or_else(|| invalid("an owner is written UID:GID"))?);
                }
                _ => {}
            }
        }
        if asked.path.is_empty() {
            let text = "bad parameter: path cannot be empty";
            return Err(Fault::new("request.path", FaultKind::Usage, text));
        }
        Ok(asked)
    }

    /// The include and exclude patterns.
    ///
    /// # Errors
    /// `archive.path-parent` and its like.
    pub fn filter(&self) -> Result<FilterSpec, Fault> {
        let patterns = |texts: &[Vec<u8>]| -> Result<Vec<Pattern>, Fault> {
            texts.iter().map(|text| Ok(Pattern::parse(text)?)).collect()
        };
        let include = patterns(&self.include)?;
        let mut exclude = patterns(&self.exclude)?;
        if !include.is_empty() {
            exclude.push(Pattern::whole(TreePath::root()));
        }
        Ok(FilterSpec {
            include,
            exclude,
            ..FilterSpec::default()
        })
    }

    /// The name in the archive, if another one is asked for.
    ///
    /// # Errors
    /// `archive.path-parent` and its like.
    pub fn base(&self) -> Result<Option<TreePath>, Fault> {
        match &self.name {
            Some(name) => Ok(Some(TreePath::below(name)?)),
            None => Ok(None),
        }
    }
}

/// `UID:GID`, or `UID` for both.
fn parse_owner(text: &str) -> Option<Owner> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    Some(Owner {
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
    })
}

impl std::str::FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_owner(text).ok_or_else(|| format!("{text:?} is not UID:GID in numbers"))
    }
}

/// Docker's booleans: only these are false.
fn is_true(value: &[u8]) -> bool {
    let lower = value.to_ascii_lowercase();
    let lower = lower.trim_ascii();
    !(lower.is_empty() || [&b"0"[..], b"no", b"false", b"none"].contains(&lower))
}

fn encode(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing into a String cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// As Go reads queries: `+` is a space.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits = std::str::from_utf8(after.get(..2)?).ok()?;
                if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                    return None;
                }
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                rest = after.get(2..)?;
            }
            other => bytes.push(other),
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_as_it_was_written() {
        let asked = PathRequest {
            path: b"/sp ace+\xff/q&=%41".to_vec(),
            follow: true,
            name: Some(Vec::new()),
            include: vec![b"a".to_vec(), b"b/".to_vec()],
            exclude: vec![b"c".to_vec()],
            rich: true,
            no_overwrite_dir_non_dir: true,
            copy_uid_gid: true,
            owner: Some(Owner { uid: 1, gid: 2 }),
            headers_only: true,
            delta: true,
            partial: true,
        };
        assert_eq!(PathRequest::from_query(&asked.to_query()).unwrap(), asked);
    }

    #[test]
    fn docker_s_ways_of_writing_are_understood() {
        let read = |query: &str| PathRequest::from_query(query);
        assert_eq!(read("path=%2Fa+b&x=1").unwrap().path, b"/a b");
        for (value, meant) in [
            ("1", true),
            ("True", true),
            ("", false),
            ("0", false),
            ("No", false),
        ] {
            let asked = read(&format!("path=/&copyUIDGID={value}")).unwrap();
            assert_eq!(asked.copy_uid_gid, meant, "{value:?}");
        }
        for query in ["", "path=", "x=y"] {
            let fault = read(query).unwrap_err();
            assert!(fault.message.contains("path cannot be empty"), "{query:?}");
        }
        assert!(read("path=%zz").is_err() && read("path=%+1").is_err() && read("path=/&owner=x").is_err());
    }
}
