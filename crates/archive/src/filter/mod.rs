//! Which entries of a tree go along, and under which names: [`FilterSpec`].
//!
//! Paths are compared by components, never as text: `mnt/A` says nothing about `mnt/Ab`.

mod query;
mod split;

pub use query::FilterError;
pub use split::{Mounts, SplitError, split_export, split_import, split_stat};

use crate::entry::{Entry, Kind};
use crate::path::{PathError, TreePath};

/// What an include or exclude is about: a path and everything below it, or only what is below it.
///
/// A directory's own header stays wherever a pattern speaks only of what is below: an exclude `d/` leaves the (then empty)
/// directory `d`, an include `d/` takes `d` along as the root of what is in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern {
    path: TreePath,
    below: bool,
}

impl Pattern {
    /// The path and everything below it.
    #[must_use]
    pub fn whole(path: TreePath) -> Self {
        Self { path, below: false }
    }

    /// What is below the path; written with a slash at the end. For the root this is the same as [`Self::whole`].
    #[must_use]
    pub fn below(path: TreePath) -> Self {
        let below = !path.is_root();
        Self { path, below }
    }

    /// Reads a pattern: a slash at the end stands for "below".
    ///
    /// # Errors
    ///
    /// [`PathError`] if it is no path.
    pub fn parse(text: &[u8]) -> Result<Self, PathError> {
        let path = TreePath::below(text)?;
        Ok(if text.ends_with(b"/") {
            Self::below(path)
        } else {
            Self::whole(path)
        })
    }

    /// The text that [`Self::parse`] reads.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.path.as_bytes().to_vec();
        if self.below {
            bytes.push(b'/');
        }
        bytes
    }

    /// How closely the pattern speaks of the path; `None` if not at all. More components are closer, and of the same
    /// components the one with the slash.
    fn rank(&self, path: &TreePath, header_too: bool) -> Option<usize> {
        let rest = path.strip(&self.path)?;
        if self.below && rest.is_root() && !header_too {
            return None;
        }
        Some(self.weight())
    }

    fn weight(&self) -> usize {
        self.path.depth() * 2 + usize::from(self.below)
    }
}

/// Which entries go along, and under which names.
///
/// In an export, names are those of the tree. In an import, they are those of the archive, before anything is taken off.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct FilterSpec {
    /// What goes along.
    pub include: Vec<Pattern>,
    /// What stays. Of an include and an exclude the closer one counts, so an included child of an excluded directory goes
    /// along; if both are equally close, or there is neither, the entry goes along.
    pub exclude: Vec<Pattern>,
    /// What is taken off the beginning of names.
    pub strip: TreePath,
    /// What is put before names after that.
    pub rebase: TreePath,
}

/// An entry that a spec cannot rename.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RenameError {
    /// Its name, or its link's target, is no path below the root.
    #[error(transparent)]
    Path(#[from] PathError),
    /// It goes along but lies outside of what is taken off.
    #[error("{path} does not lie below {strip}")]
    Outside {
        /// The entry.
        path: TreePath,
        /// What was to be taken off.
        strip: TreePath,
    },
    /// A hard link goes along, and what it is a name of does not.
    #[error("the hard link {path} goes along, but {target} does not")]
    LinkTarget {
        /// The link.
        path: TreePath,
        /// The other name.
        target: TreePath,
    },
}

impl tranship_core::fault::Explain for RenameError {
    fn code(&self) -> &'static str {
        match self {
            Self::Path(error) => error.code(),
            Self::Outside { .. } => "archive.filter-outside",
            Self::LinkTarget { .. } => "archive.link-target-filtered",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Path(error) => error.hint(),
            Self::Outside { .. } => Some("strip a common parent of what is included".to_owned()),
            Self::LinkTarget { .. } => Some("include both names, or neither".to_owned()),
        }
    }
}

impl FilterSpec {
    /// The path goes along.
    #[must_use]
    pub fn includes(&self, path: &TreePath) -> bool {
        let include = self
            .include
            .iter()
            .filter_map(|pattern| pattern.rank(path, true))
            .max();
        let exclude = self
            .exclude
            .iter()
            .filter_map(|pattern| pattern.rank(path, false))
            .max();
        include >= exclude
    }

    /// Something below this directory may go along, so that a walk has to go into it.
    #[must_use]
    pub fn descends_into(&self, path: &TreePath) -> bool {
        let best = |patterns: &[Pattern]| {
            let above = patterns.iter().filter(|pattern| path.is_within(&pattern.path));
            above.map(Pattern::weight).max()
        };
        let deeper = |pattern: &Pattern| pattern.path != *path && pattern.path.is_within(path);
        self.include.iter().any(deeper) || best(&self.include) >= best(&self.exclude)
    }

    /// The name under which a path goes along.
    ///
    /// # Errors
    ///
    /// [`RenameError::Outside`].
    pub fn rename(&self, path: &TreePath) -> Result<TreePath, RenameError> {
        match path.strip(&self.strip) {
            Some(rest) => Ok(rest.under(&self.rebase)),
            None => Err(RenameError::Outside {
                path: path.clone(),
                strip: self.strip.clone(),
            }),
        }
    }

    /// The entry with its new name and, for a hard link, the new name of its target; `None` if it stays.
    ///
    /// # Errors
    ///
    /// [`RenameError`].
    pub fn apply(&self, entry: &Entry) -> Result<Option<Entry>, RenameError> {
        let path = TreePath::of_entry(&entry.path)?;
        if !self.includes(&path) {
            return Ok(None);
        }
        let mut renamed = entry.clone();
        renamed.path = self.rename(&path)?.to_entry(entry.kind.is_directory());
        if let Kind::HardLink { target } = &entry.kind {
            let target = TreePath::of_entry(target)?;
            let lost = || RenameError::LinkTarget {
                path: path.clone(),
                target: target.clone(),
            };
            if !self.includes(&target) {
                return Err(lost());
            }
            let new = self.rename(&target).map_err(|_| lost())?;
            renamed.kind = Kind::HardLink {
                target: new.to_entry(false),
            };
        }
        Ok(Some(renamed))
    }

    /// It takes everything along as it is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::below(text.as_bytes()).unwrap()
    }

    fn spec(include: &[&str], exclude: &[&str]) -> FilterSpec {
        let patterns = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| Pattern::parse(text.as_bytes()).unwrap())
                .collect()
        };
        FilterSpec {
            include: patterns(include),
            exclude: patterns(exclude),
            ..FilterSpec::default()
        }
    }

    #[test]
    fn the_closest_pattern_decides() {
        let both = spec(&["a/b/c", "k"], &["a", "k"]);
        for (name, goes) in [
            ("a", false),
            ("a/b", false),
            ("a/b/c", true),
            ("a/b/c/d", true),
            ("ab", true),
            ("k", true),
            ("z", true),
        ] {
            assert_eq!(both.includes(&path(name)), goes, "{name}");
        }
        let only = spec(&["a/file.txt"], &[""]);
        for (name, goes) in [
            ("a/file.txt", true),
            ("a/file.txt.bak", false),
            ("a", false),
            ("", false),
        ] {
            assert_eq!(only.includes(&path(name)), goes, "{name}");
        }
        let slashes = spec(&["mnt/"], &["", "mnt/A/"]);
        for (name, goes) in [
            ("mnt", true),
            ("mnt/A", true),
            ("mnt/A/x", false),
            ("mnt/Ab", true),
            ("etc", false),
        ] {
            assert_eq!(slashes.includes(&path(name)), goes, "{name}");
        }
        assert!(FilterSpec::default().includes(&path("anything")));
    }

    #[test]
    fn a_walk_goes_where_something_may_be_included() {
        let deep = spec(&["a/b/c"], &[""]);
        for (name, goes) in [
            ("", true),
            ("a", true),
            ("a/b", true),
            ("a/b/c", true),
            ("a/b/c/d", true),
            ("x", false),
            ("a/x", false),
        ] {
            assert_eq!(deep.descends_into(&path(name)), goes, "{name}");
        }
        let header_only = spec(&["mnt/A"], &["", "mnt/A/"]);
        assert!(header_only.includes(&path("mnt/A")));
        assert!(header_only.descends_into(&path("mnt")));
        assert!(!header_only.descends_into(&path("mnt/A")));
        assert!(!header_only.descends_into(&path("x")));
    }

    #[test]
    fn hard_links_are_renamed_with_their_targets() {
        let mut filter = spec(&["d"], &[""]);
        filter.strip = path("d");
        filter.rebase = path("new");
        let link = |target: &str| {
            Entry::new(
                "./d/l",
                Kind::HardLink {
                    target: target.into(),
                },
                0,
            )
        };
        let renamed = filter.apply(&link("d/f")).unwrap().unwrap();
        assert_eq!(renamed.path, b"new/l");
        assert_eq!(
            renamed.kind,
            Kind::HardLink {
                target: b"new/f".to_vec()
            }
        );
        assert!(matches!(
            filter.apply(&link("e/f")),
            Err(RenameError::LinkTarget { .. })
        ));
        assert!(matches!(
            filter.apply(&link("d/../../f")),
            Err(RenameError::Path(_))
        ));
        assert_eq!(filter.apply(&Entry::file("e/x", 0, 0)), Ok(None));
        let outside = FilterSpec {
            strip: path("d"),
            ..FilterSpec::default()
        };
        assert!(matches!(
            outside.apply(&Entry::file("e", 0, 0)),
            Err(RenameError::Outside { .. })
        ));
        let dir = filter
            .apply(&Entry::new("d/", Kind::Directory, 0))
            .unwrap()
            .unwrap();
        assert_eq!(dir.path, b"new/");
    }
}
