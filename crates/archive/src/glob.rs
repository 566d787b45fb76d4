//! Patterns of paths, as shells have them: each component of a path is matched by itself.

use std::io::Read;
use std::os::fd::AsFd as _;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::confined::{LocateError, Root, SystemError};
use crate::error::ReadError;
use crate::path::{PathError, TreePath};
use crate::reader::Reader;

/// A pattern: `*` and `?` stand for bytes of one component, `[…]` and `[!…]` for one byte, and `\` takes the meaning of the next
/// one away. A dot at the beginning of a name is matched by a dot only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    components: Vec<Vec<u8>>,
}

impl Glob {
    /// Whether the text has anything that a pattern gives a meaning to.
    #[must_use]
    pub fn is_pattern(text: &[u8]) -> bool {
        text.iter().any(|byte| b"*?[\\".contains(byte))
    }

    /// Reads an absolute pattern. `.` and `..` are taken as text, as in every request.
    ///
    /// # Errors
    ///
    /// [`PathError`].
    pub fn parse(text: &[u8]) -> Result<Self, PathError> {
        let path = TreePath::of_request(text)?;
        Ok(Self {
            components: path.components().map(<[u8]>::to_vec).collect(),
        })
    }

    /// The directory above the first component with a meaning, and how many components that are.
    #[must_use]
    pub fn literal(&self) -> (TreePath, usize) {
        let count = self
            .components
            .iter()
            .take_while(|component| !Self::is_pattern(component))
            .count();
        let path = self
            .components
            .iter()
            .take(count)
            .fold(TreePath::root(), |path, name| {
                TreePath::below(name).unwrap_or_default().under(&path)
            });
        (path, count)
    }

    /// The pattern of one component, counted from the root.
    fn component(&self, depth: usize) -> Option<&[u8]> {
        self.components.get(depth).map(Vec::as_slice)
    }

    /// The whole path is matched.
    #[must_use]
    pub fn matches(&self, path: &TreePath) -> bool {
        path.depth() == self.components.len()
            && path
                .components()
                .zip(&self.components)
                .all(|(name, pattern)| matches_name(pattern, name))
    }

    /// The paths in an archive of the directory [`Self::literal`] that are matched, sorted.
    ///
    /// # Errors
    ///
    /// [`ReadError`] if it is none.
    pub fn in_archive<R: Read>(&self, reader: &mut Reader<R>) -> Result<Vec<TreePath>, ReadError> {
        let (above, _) = self.literal();
        let mut found = Vec::new();
        let mut buffer = vec![0; 65_536];
        while let Some(entry) = reader.next_entry()? {
            if let Ok(path) = TreePath::of_entry(&entry.path) {
                let path = path.under(&above);
                if self.matches(&path) {
                    found.push(path);
                }
            }
            while reader.read_extent(&mut buffer)?.is_some() {}
        }
        found.sort();
        found.dedup();
        Ok(found)
    }
}

/// One name against the pattern of one component.
fn matches_name(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && !pattern.starts_with(b".") && !pattern.starts_with(b"\\.") {
        return false;
    }
    // The last star, and how far the name was when it was met: only the last one ever has to take more.
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p + 1, n));
            p += 1;
            continue;
        }
        let byte = name.get(n).copied().unwrap_or_default();
        match one(pattern.get(p..).unwrap_or_default(), byte) {
            Some(length) => {
                p += length;
                n += 1;
            }
            None => match star {
                Some((after, taken)) => {
                    star = Some((after, taken + 1));
                    p = after;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern
        .get(p..)
        .unwrap_or_default()
        .iter()
        .all(|&byte| byte == b'*')
}

/// How much of the pattern one byte takes; none if it does not match.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', next, ..] => (*next == byte).then_some(2),
        [b'[', set @ ..] => {
            let (negated, set) = match set {
                [b'!' | b'^', rest @ ..] => (true, rest),
                _ => (false, set),
            };
            // A bracket that comes first is one of the set; without an end it stands for itself.
            let Some(end) = set.iter().skip(1).position(|&byte| byte == b']').map(|at| at + 1) else {
                return (byte == b'[').then_some(1);
            };
            let (mut rest, mut found) = (set.get(..end).unwrap_or_default(), false);
            while let Some((&first, after)) = rest.split_first() {
                (found, rest) = match after {
                    [b'-', last, more @ ..] => (found || (first..=*last).contains(&byte), more),
                    _ => (found || first == byte, after),
                };
            }
            (found != negated).then_some(1 + usize::from(negated) + end + 1)
        }
        [first, ..] => (*first == byte).then_some(1),
        [] => None,
    }
}

/// The paths of the tree that a pattern matches, sorted. Links on the way are followed within the root; a last one is found
/// itself.
///
/// # Errors
///
/// [`LocateError`]; not for what is not there.
pub fn find(root: &Root, glob: &Glob) -> Result<Vec<TreePath>, LocateError> {
    let (above, depth) = glob.literal();
    let mut found = Vec::new();
    descend(root, glob, &above, depth, &mut found)?;
    found.sort();
    Ok(found)
}

fn descend(
    root: &Root,
    glob: &Glob,
    path: &TreePath,
    depth: usize,
    found: &mut Vec<TreePath>,
) -> Result<(), LocateError> {
    let failed = |doing, source| SystemError {
        doing,
        path: path.as_bytes().to_vec(),
        source,
    };
    let Some(pattern) = glob.component(depth) else {
        match root.resolve(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(_) => found.push(path.clone()),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(failed("find", error).into()),
        }
        return Ok(());
    };
    if !Glob::is_pattern(pattern) {
        return descend(
            root,
            glob,
            &TreePath::below(pattern)?.under(path),
            depth + 1,
            found,
        );
    }
    let directory = match root.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY) {
        Ok(directory) => directory,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        Err(error) => return Err(failed("open the directory", error).into()),
    };
    let names = crate::confined::names(directory.as_fd()).map_err(|e| failed("list the directory", e))?;
    drop(directory);
    for name in names.iter().filter(|name| matches_name(pattern, name)) {
        descend(root, glob, &TreePath::below(name)?.under(path), depth + 1, found)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_matched_as_in_a_shell() {
        for (pattern, name, matched) in [
            ("*.log", "a.log", true),
            ("*.log", "a.log.1", false),
            ("*.log", ".log", false),
            (".*", ".log", true),
            ("?", "ab", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXc", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[!a-c]x", "dx", true),
            ("[]x]", "]", true),
            ("[", "[", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("**", "anything", true),
            ("*", "", true),
            ("", "", true),
        ] {
            assert_eq!(
                matches_name(pattern.as_bytes(), name.as_bytes()),
                matched,
                "{pattern} {name}"
            );
        }
        // No pattern takes longer than pattern times name.
        let begun = std::time::Instant::now();
        assert!(!matches_name(
            "a*".repeat(60).as_bytes(),
            "a".repeat(255)
                .as_bytes()
                .split_last()
                .map_or(&b""[..], |_| b"ab")
        ));
        assert!(!matches_name(
            (("*a".repeat(100)) + "b").as_bytes(),
            "a".repeat(255).as_bytes()
        ));
        assert!(begun.elapsed().as_millis() < 500);
    }

    #[test]
    fn components_are_matched_one_by_one() {
        let glob = Glob::parse(b"/var/*/x?/f").unwrap();
        assert_eq!(glob.literal(), (TreePath::below(b"var").unwrap(), 1));
        for (path, matched) in [
            ("var/a/x1/f", true),
            ("var/a/b/x1/f", false),
            ("var/a/x1/ff", false),
            ("varx/a/x1/f", false),
        ] {
            assert_eq!(
                glob.matches(&TreePath::below(path.as_bytes()).unwrap()),
                matched,
                "{path}"
            );
        }
    }

    #[test]
    fn links_lead_nowhere_out_of_the_root() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        std::fs::create_dir_all(root.join("d/sub")).unwrap();
        std::fs::create_dir_all(outer.path().join("canary")).unwrap();
        std::fs::write(outer.path().join("canary/f"), "").unwrap();
        for name in ["d/f", "d/sub/f", "d/.hidden"] {
            std::fs::write(root.join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("../canary", root.join("out")).unwrap();
        std::os::unix::fs::symlink("d", root.join("in")).unwrap();
        let root = Root::open(&root, crate::confined::Links::InRoot).unwrap();
        let found = |pattern: &str| -> Vec<String> {
            let found = find(&root, &Glob::parse(pattern.as_bytes()).unwrap()).unwrap();
            found
                .iter()
                .map(|path| String::from_utf8_lossy(path.as_bytes()).into_owned())
                .collect()
        };
        assert_eq!(found("/*/f"), ["d/f", "in/f"]);
        assert_eq!(found("/d/*"), ["d/f", "d/sub"]);
        assert_eq!(found("/*/sub/*"), ["d/sub/f", "in/sub/f"]);
        assert_eq!(found("/o*"), ["out"]);
        assert_eq!(found("/none/*"), Vec::<String>::new());
    }
}
