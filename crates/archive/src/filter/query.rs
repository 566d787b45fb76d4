//! A [`FilterSpec`] in the query string of a URL.
//!
//! `include=…&include=…&exclude=…&strip=…&rebase=…`: keys in this order, patterns sorted and each once, empty strip and
//! rebase left out. Values are percent-encoded bytes (RFC 3986): unreserved characters and `/` stand for themselves, `+`
//! must be encoded, because some read it as a space. One spec has exactly one text, and the text is read strictly.

use tranship_core::fault::Explain;

use super::{FilterSpec, Pattern};
use crate::path::{PathError, TreePath};
use crate::pax::percent_decode;

/// Longest text, in bytes; HTTP servers take no longer request lines.
const LONGEST: usize = 65_536;

/// A text that is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// A part without `=`.
    #[error("the filter has a part without an equals sign: {part:?}")]
    NoValue {
        /// The part.
        part: String,
    },
    /// A key that does not exist.
    #[error("the filter has the unknown key {key:?}")]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// `strip` or `rebase` twice.
    #[error("the filter has {key} twice")]
    Twice {
        /// Which.
        key: &'static str,
    },
    /// A `%` without two hexadecimal digits, or a character that has to be encoded.
    #[error("the filter's {key} is not percent-encoded: {value:?}")]
    Encoding {
        /// Where.
        key: &'static str,
        /// The value.
        value: String,
    },
    /// A value that is no path below the root.
    #[error("the filter's {key} is no path below the root")]
    Path {
        /// Where.
        key: &'static str,
        /// Why.
        source: PathError,
    },
    /// Too long.
    #[error("the filter is longer than {LONGEST} bytes")]
    TooLong,
}

impl Explain for FilterError {
    fn code(&self) -> &'static str {
        match self {
            Self::NoValue { .. } => "archive.filter-syntax",
            Self::UnknownKey { .. } => "archive.filter-key",
            Self::Twice { .. } => "archive.filter-twice",
            Self::Encoding { .. } => "archive.filter-encoding",
            Self::Path { .. } => "archive.filter-path",
            Self::TooLong => "archive.filter-too-long",
        }
    }

    fn hint(&self) -> Option<String> {
        Some("a filter is include=PATH&exclude=PATH&strip=PATH&rebase=PATH, each percent-encoded".to_owned())
    }
}

impl FilterSpec {
    /// The one text of this spec; empty for the empty one.
    #[must_use]
    pub fn to_query(&self) -> String {
        let mut parts = Vec::new();
        for (key, patterns) in [("include", &self.include), ("exclude", &self.exclude)] {
            let mut texts: Vec<Vec<u8>> = patterns.iter().map(Pattern::to_bytes).collect();
            texts.sort();
            texts.dedup();
            parts.extend(texts.iter().map(|text| format!("{key}={}", encode(text))));
        }
        for (key, path) in [("strip", &self.strip), ("rebase", &self.rebase)] {
            if !path.is_root() {
                parts.push(format!("{key}={}", encode(path.as_bytes())));
            }
        }
        parts.join("&")
    }

    /// Reads such a text. Keys may be in any order.
    ///
    /// # Errors
    ///
    /// [`FilterError`].
    pub fn from_query(text: &str) -> Result<Self, FilterError> {
        if text.len() > LONGEST {
            return Err(FilterError::TooLong);
        }
        let mut spec = Self::default();
        let (mut strip, mut rebase) = (None, None);
        for part in text.split('&').filter(|_| !text.is_empty()) {
            let Some((key, value)) = part.split_once('=') else {
                return Err(FilterError::NoValue {
                    part: part.to_owned(),
                });
            };
            match key {
                "include" => spec.include.push(pattern("include", value)?),
                "exclude" => spec.exclude.push(pattern("exclude", value)?),
                "strip" => once(&mut strip, "strip", value)?,
                "rebase" => once(&mut rebase, "rebase", value)?,
                _ => return Err(FilterError::UnknownKey { key: key.to_owned() }),
            }
        }
        for patterns in [&mut spec.include, &mut spec.exclude] {
            patterns.sort_by_key(Pattern::to_bytes);
            patterns.dedup();
        }
        spec.strip = strip.unwrap_or_default();
        spec.rebase = rebase.unwrap_or_default();
        Ok(spec)
    }
}

fn pattern(key: &'static str, value: &str) -> Result<Pattern, FilterError> {
    let bytes = decode(key, value)?;
    Pattern::parse(&bytes).map_err(|source| FilterError::Path { key, source })
}

fn once(slot: &mut Option<TreePath>, key: &'static str, value: &str) -> Result<(), FilterError> {
    let bytes = decode(key, value)?;
    let path = TreePath::below(&bytes).map_err(|source| FilterError::Path { key, source })?;
    match slot.replace(path) {
        None => Ok(()),
        Some(_) => Err(FilterError::Twice { key }),
    }
}

fn decode(key: &'static str, value: &str) -> Result<Vec<u8>, FilterError> {
    let bad = || FilterError::Encoding {
        key,
        value: value.to_owned(),
    };
    if !value.bytes().all(|byte| byte == b'%' || plain(byte)) {
        return Err(bad());
    }
    percent_decode(value.as_bytes()).ok_or_else(bad)
}

fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if plain(byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_has_one_text() {
        let text = "include=a/b&include=x%20%2B%25%FF/&exclude=&exclude=a/&strip=a&rebase=new/q%26%3D";
        let spec = FilterSpec::from_query(text).unwrap();
        assert_eq!(spec.to_query(), text);
        assert_eq!(spec.include[1].to_bytes(), b"x +%\xff/");
        let shuffled =
            "rebase=/new/q%26=&exclude=a/&strip=a/&include=x%20%2b%25%ff/&include=./a//b&exclude=&exclude=a/";
        assert!(
            FilterSpec::from_query(shuffled).is_err(),
            "an unencoded equals sign"
        );
        let shuffled = shuffled.replace("%26=", "%26%3d");
        assert_eq!(FilterSpec::from_query(&shuffled).unwrap(), spec);
        assert_eq!(FilterSpec::from_query("").unwrap().to_query(), "");
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for (text, code) in [
            ("include", "archive.filter-syntax"),
            ("&", "archive.filter-syntax"),
            ("include=a&", "archive.filter-syntax"),
            ("Include=a", "archive.filter-key"),
            ("strip=a&strip=a", "archive.filter-twice"),
            ("rebase=&rebase=b", "archive.filter-twice"),
            ("include=%", "archive.filter-encoding"),
            ("include=%4", "archive.filter-encoding"),
            ("include=%zz", "archive.filter-encoding"),
            ("include=a+b", "archive.filter-encoding"),
            ("include=a b", "archive.filter-encoding"),
            ("include=é", "archive.filter-encoding"),
            ("include=../a", "archive.filter-path"),
            ("strip=a/..", "archive.filter-path"),
            ("exclude=%00", "archive.filter-path"),
        ] {
            assert_eq!(FilterSpec::from_query(text).unwrap_err().code(), code, "{text}");
        }
        let long = format!("include={}", "a/".repeat(LONGEST));
        assert_eq!(FilterSpec::from_query(&long), Err(FilterError::TooLong));
    }
}
