//! Paths inside a tree, by components.

use std::fmt;

use tranship_core::fault::Explain;

use crate::entry::show;

/// Longest path that Linux takes in one call is 4,096 bytes; archives may name deeper trees, up to this many bytes.
pub const LONGEST_PATH: usize = 65_536;

/// A path below the root of a tree: components joined with `/`; no `.`, `..`, empty component, NUL, leading or trailing
/// slash. The root itself is the empty path.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreePath(Vec<u8>);

/// A name that is no path below a root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// It has a `..` component.
    #[error("the name {} leads upwards", show(.0))]
    Parent(Vec<u8>),
    /// It has a NUL byte.
    #[error("the name {} has a NUL byte in it", show(.0))]
    Nul(Vec<u8>),
    /// It is absolute where that is not wanted.
    #[error("the name {} is absolute", show(.0))]
    Absolute(Vec<u8>),
    /// It is longer than [`LONGEST_PATH`], or a component is longer than 255 bytes.
    #[error("the name {} is too long", show(.0))]
    TooLong(Vec<u8>),
    /// It is empty.
    #[error("the name is empty")]
    Empty,
}

impl Explain for PathError {
    fn code(&self) -> &'static str {
        match self {
            Self::Parent(_) => "archive.path-parent",
            Self::Nul(_) => "archive.nul-in-name",
            Self::Absolute(_) => "archive.path-absolute",
            Self::TooLong(_) => "archive.name-too-long",
            Self::Empty => "archive.empty-name",
        }
    }

    fn hint(&self) -> Option<String> {
        Some(
            "the archive is not safe to unpack; look at it with `tar -t` before you trust its maker"
                .to_owned(),
        )
    }
}

impl TreePath {
    /// The root.
    #[must_use]
    pub fn root() -> Self {
        Self::default()
    }

    /// The path that an entry's name means. A leading slash is passed over, as docker and tar do; `..` is refused.
    ///
    /// # Errors
    ///
    /// [`PathError`].
    pub fn of_entry(name: &[u8]) -> Result<Self, PathError> {
        if name.is_empty() {
            return Err(PathError::Empty);
        }
        Self::below(name)
    }

    /// As [`Self::of_entry`], but an absolute name is refused.
    ///
    /// # Errors
    ///
    /// [`PathError`].
    pub fn of_relative_entry(name: &[u8]) -> Result<Self, PathError> {
        if name.starts_with(b"/") {
            return Err(PathError::Absolute(name.to_vec()));
        }
        Self::of_entry(name)
    }

    /// As [`Self::of_entry`], but the empty name means the root.
    ///
    /// # Errors
    ///
    /// [`PathError`].
    pub fn below(name: &[u8]) -> Result<Self, PathError> {
        let mut path = Self::root();
        for component in checked(name)? {
            if component == b".." {
                return Err(PathError::Parent(name.to_vec()));
            }
            path.push(component);
        }
        Ok(path)
    }

    /// The path that a user means: relative to the root, `..` taken off textually and never above the root.
    ///
    /// # Errors
    ///
    /// [`PathError`], but not [`PathError::Parent`].
    pub fn of_request(name: &[u8]) -> Result<Self, PathError> {
        let mut path = Self::root();
        for component in checked(name)? {
            if component == b".." {
                path = path.parent().unwrap_or_default();
            } else {
                path.push(component);
            }
        }
        Ok(path)
    }

    /// The bytes, without slashes around them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// It is the root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The components from the root down.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0
            .split(|&byte| byte == b'/')
            .filter(|component| !component.is_empty())
    }

    /// How many components.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.components().count()
    }

    /// The last component; none for the root.
    #[must_use]
    pub fn name(&self) -> Option<&[u8]> {
        self.components().next_back()
    }

    /// Everything but the last component; none for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let end = self.0.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        Some(Self(self.0.get(..end).unwrap_or_default().to_vec()))
    }

    /// It is `top` or lies below it.
    #[must_use]
    pub fn is_within(&self, top: &Self) -> bool {
        self.rest_below(top).is_some()
    }

    /// What is left below `top`; the root if it is `top`. `None` if it lies elsewhere.
    #[must_use]
    pub fn strip(&self, top: &Self) -> Option<Self> {
        self.rest_below(top).map(|rest| Self(rest.to_vec()))
    }

    /// This path below `top`.
    #[must_use]
    pub fn under(&self, top: &Self) -> Self {
        match (top.is_root(), self.is_root()) {
            (true, _) => self.clone(),
            (_, true) => top.clone(),
            _ => {
                let mut bytes = Vec::with_capacity(top.0.len() + 1 + self.0.len());
                bytes.extend_from_slice(&top.0);
                bytes.push(b'/');
                bytes.extend_from_slice(&self.0);
                Self(bytes)
            }
        }
    }

    /// The name of an entry: `./` for the root, a slash at the end of a directory.
    #[must_use]
    pub fn to_entry(&self, directory: bool) -> Vec<u8> {
        if self.is_root() {
            return b"./".to_vec();
        }
        let mut name = self.0.clone();
        if directory {
            name.push(b'/');
        }
        name
    }

    fn rest_below(&self, top: &Self) -> Option<&[u8]> {
        let rest = self.0.strip_prefix(top.0.as_slice())?;
        if top.is_root() || rest.is_empty() {
            return Some(rest);
        }
        rest.strip_prefix(b"/")
    }

    fn push(&mut self, component: &[u8]) {
        if !self.0.is_empty() {
            self.0.push(b'/');
        }
        self.0.extend_from_slice(component);
    }
}

/// The components of a name but for empty ones and `.`.
fn checked(name: &[u8]) -> Result<impl Iterator<Item = &[u8]>, PathError> {
    if name.contains(&0) {
        return Err(PathError::Nul(name.to_vec()));
    }
    let split = || name.split(|&byte| byte == b'/');
    if name.len() > LONGEST_PATH || split().any(|component| component.len() > 255) {
        return Err(PathError::TooLong(name.to_vec()));
    }
    Ok(split().filter(|component| !component.is_empty() && *component != b"."))
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_entries_are_cleaned_or_refused() {
        for (name, path) in [
            ("a/b", "a/b"),
            ("./a//b/./", "a/b"),
            ("/", ""),
            ("./", ""),
            ("/abs/x", "abs/x"),
            ("...", "..."),
        ] {
            assert_eq!(
                TreePath::of_entry(name.as_bytes()).unwrap().as_bytes(),
                path.as_bytes()
            );
        }
        for name in ["..", "../x", "a/../b", "a/..", "/.."] {
            assert!(
                matches!(TreePath::of_entry(name.as_bytes()), Err(PathError::Parent(_))),
                "{name}"
            );
        }
        assert_eq!(TreePath::of_entry(b""), Err(PathError::Empty));
        assert!(matches!(TreePath::of_entry(b"a\0b"), Err(PathError::Nul(_))));
        assert!(matches!(
            TreePath::of_entry(&[b'x'; 256]),
            Err(PathError::TooLong(_))
        ));
        assert!(matches!(
            TreePath::of_relative_entry(b"/x"),
            Err(PathError::Absolute(_))
        ));
    }

    #[test]
    fn requests_never_leave_the_root() {
        for (name, path) in [
            ("/../../some/path", "some/path"),
            ("a/b/../c", "a/c"),
            ("a/../../..", ""),
            ("", ""),
            ("tmp/rel/.", "tmp/rel"),
        ] {
            assert_eq!(
                TreePath::of_request(name.as_bytes()).unwrap().as_bytes(),
                path.as_bytes()
            );
        }
    }

    #[test]
    fn prefixes_are_whole_components() {
        let path = |text: &str| TreePath::of_request(text.as_bytes()).unwrap();
        assert!(path("mnt/A/x").is_within(&path("mnt/A")));
        assert!(!path("mnt/Ab/x").is_within(&path("mnt/A")));
        assert_eq!(path("mnt/A").strip(&path("mnt/A")), Some(TreePath::root()));
        assert_eq!(path("mnt/A").strip(&TreePath::root()), Some(path("mnt/A")));
        assert_eq!(path("a").under(&path("b/c")), path("b/c/a"));
        assert_eq!(path("a/b").parent(), Some(path("a")));
        assert_eq!(path("a").parent(), Some(TreePath::root()));
        assert_eq!(TreePath::root().parent(), None);
        assert_eq!(path("a/b").name(), Some(&b"b"[..]));
    }
}
