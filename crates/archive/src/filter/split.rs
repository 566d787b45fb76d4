//! How one request over a container's tree becomes one request per storage element.
//!
//! An element is mounted at a path; the container's own layer at `/`. A path belongs to the element with the longest mount
//! path above it.

use std::collections::BTreeMap;

use tranship_core::fault::Explain;

use super::{FilterSpec, Pattern};
use crate::path::{PathError, TreePath};

/// The elements of a container by where they are mounted; there always is one at `/`.
#[derive(Debug, Clone)]
pub struct Mounts<E> {
    by_path: BTreeMap<TreePath, E>,
}

/// A request that cannot be split.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// The path is none.
    #[error(transparent)]
    Path(#[from] PathError),
    /// Two elements are mounted at one path.
    #[error("two storage elements are mounted at {path}")]
    MountedTwice {
        /// The path.
        path: TreePath,
    },
}

impl Explain for SplitError {
    fn code(&self) -> &'static str {
        match self {
            Self::Path(error) => error.code(),
            Self::MountedTwice { .. } => "archive.mounted-twice",
        }
    }
}

impl<E: Clone> Mounts<E> {
    /// A container whose layer this is.
    #[must_use]
    pub fn new(layer: E) -> Self {
        Self {
            by_path: BTreeMap::from([(TreePath::root(), layer)]),
        }
    }

    /// Adds an element that is mounted at a path of the container.
    ///
    /// # Errors
    ///
    /// [`SplitError`].
    pub fn mount(&mut self, path: &[u8], element: E) -> Result<(), SplitError> {
        let path = TreePath::of_request(path)?;
        if self.by_path.contains_key(&path) {
            return Err(SplitError::MountedTwice { path });
        }
        self.by_path.insert(path, element);
        Ok(())
    }

    /// The mount that a path belongs to.
    fn owner(&self, path: &TreePath) -> Option<(&TreePath, &E)> {
        self.by_path
            .iter()
            .filter(|(mount, _)| path.is_within(mount))
            .max_by_key(|(mount, _)| mount.depth())
    }

    /// Elements in which something of the tree below `top` is, parents first.
    fn within<'a>(&'a self, top: &'a TreePath) -> impl Iterator<Item = (&'a TreePath, &'a E)> {
        self.by_path.iter().filter(|(mount, _)| mount.is_within(top))
    }
}

/// What the exports of single elements are that together, in this order, are the export of `request`.
///
/// Where a mount point lies in what is asked for, both its parent (which has the directory under it) and itself (whose root
/// it is) give a header for it; the later one is right, and [`crate::merge`] takes it.
///
/// # Errors
///
/// [`SplitError::Path`] if the request is no path.
pub fn split_export<E: Clone>(
    request: &[u8],
    mounts: &Mounts<E>,
) -> Result<Vec<(E, FilterSpec)>, SplitError> {
    let source = TreePath::of_request(request)?;
    let contents = ends_in_dot(request);
    let base = match source.name() {
        Some(name) if !contents => TreePath::below(name)?,
        _ => TreePath::root(),
    };
    let mut involved: BTreeMap<&TreePath, &E> = mounts.within(&source).collect();
    involved.extend(mounts.owner(&source));
    if involved.contains_key(&source) && !contents {
        // The parent's element has the directory that the element is mounted on.
        involved.extend(source.parent().and_then(|parent| mounts.owner(&parent)));
    }
    let specs = involved.into_iter().map(|(mount, element)| {
        let mut spec = FilterSpec::default();
        if let Some(inside) = source.strip(mount) {
            spec.include.push(if contents {
                Pattern::below(inside.clone())
            } else {
                Pattern::whole(inside.clone())
            });
            if !inside.is_root() {
                spec.exclude.push(Pattern::whole(TreePath::root()));
            }
            spec.strip = inside;
            spec.rebase.clone_from(&base);
        } else {
            spec.include.push(Pattern::whole(TreePath::root()));
            spec.rebase = mount.strip(&source).unwrap_or_default().under(&base);
        }
        spec.exclude.extend(
            mounts
                .within(mount)
                .filter_map(|(nested, _)| nested.strip(mount))
                .filter(|nested| !nested.is_root())
                .map(Pattern::below),
        );
        (element.clone(), spec)
    });
    Ok(specs.collect())
}

/// What the imports into single elements are that an import below the directory `request` can touch, parents first.
///
/// An entry of the archive goes to the one whose `strip` is the longest path above its name; [`crate::fan_out`] does that.
///
/// # Errors
///
/// [`SplitError::Path`] if the request is no path.
pub fn split_import<E: Clone>(
    request: &[u8],
    mounts: &Mounts<E>,
) -> Result<Vec<(E, FilterSpec)>, SplitError> {
    let directory = TreePath::of_request(request)?;
    let mut specs = Vec::new();
    if let Some((mount, element)) = mounts.owner(&directory) {
        specs.push((
            element.clone(),
            FilterSpec {
                rebase: directory.strip(mount).unwrap_or_default(),
                ..FilterSpec::default()
            },
        ));
    }
    for (mount, element) in mounts
        .within(&directory)
        .filter(|(mount, _)| **mount != directory)
    {
        specs.push((
            element.clone(),
            FilterSpec {
                strip: mount.strip(&directory).unwrap_or_default(),
                ..FilterSpec::default()
            },
        ));
    }
    Ok(specs)
}

/// The element that a path belongs to, and its path in there.
///
/// # Errors
///
/// [`SplitError::Path`] if the request is no path.
pub fn split_stat<E: Clone>(request: &[u8], mounts: &Mounts<E>) -> Result<Option<(E, TreePath)>, SplitError> {
    let path = TreePath::of_request(request)?;
    let owner = mounts.owner(&path);
    Ok(owner.map(|(mount, element)| (element.clone(), path.strip(mount).unwrap_or_default())))
}

/// Only a last element `.` means "what is in it".
pub(crate) fn ends_in_dot(request: &[u8]) -> bool {
    request == b"." || request.ends_with(b"/.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(paths: &[(&str, &'static str)]) -> Mounts<&'static str> {
        let mut mounts = Mounts::new("L");
        for (path, name) in paths {
            mounts.mount(path.as_bytes(), *name).unwrap();
        }
        mounts
    }

    fn three() -> Mounts<&'static str> {
        mounts(&[("/mnt/B", "B"), ("/mnt/A/AB", "AB"), ("/mnt/A", "A")])
    }

    /// The form of the table: `L{i mnt; e X; s mnt; r mnt}`.
    fn shown(specs: &[(&str, FilterSpec)]) -> String {
        let list = |patterns: &[Pattern]| {
            let mut texts: Vec<String> = patterns
                .iter()
                .map(|pattern| match String::from_utf8(pattern.to_bytes()).unwrap() {
                    text if text.is_empty() => "ε".to_owned(),
                    text => text,
                })
                .collect();
            texts.sort_by_key(|text| (text != "ε", text.clone()));
            texts.join(",")
        };
        let mut out = Vec::new();
        for (name, spec) in specs {
            let mut parts = Vec::new();
            if !spec.include.is_empty() {
                parts.push(format!("i {}", list(&spec.include)));
            }
            if !spec.exclude.is_empty() {
                let text = list(&spec.exclude).replace("mnt/A/,mnt/A/AB/,mnt/B/", "X");
                parts.push(format!("e {}", text.replace("ε,X", "εX")));
            }
            if !spec.strip.is_root() {
                parts.push(format!("s {}", &spec.strip.to_string()[1..]));
            }
            if !spec.rebase.is_root() {
                parts.push(format!("r {}", &spec.rebase.to_string()[1..]));
            }
            out.push(format!("{name}{{{}}}", parts.join("; ")));
        }
        out.join(" ")
    }

    #[test]
    fn exports_are_split_as_in_the_worked_examples() {
        let below = "A{i ε; e AB/; r mnt/A} AB{i ε; r mnt/A/AB} B{i ε; r mnt/B}";
        for (example, request, expected) in [
            (1, "/", format!("L{{i ε; e X}} {below}")),
            (2, "/mnt", format!("L{{i mnt; e εX; s mnt; r mnt}} {below}")),
            (2, "/mnt/", format!("L{{i mnt; e εX; s mnt; r mnt}} {below}")),
            (
                3,
                "/mnt/.",
                "L{i mnt/; e εX; s mnt} A{i ε; e AB/; r A} AB{i ε; r A/AB} B{i ε; r B}".to_owned(),
            ),
            (
                4,
                "/mnt/A",
                "L{i mnt/A; e εX; s mnt/A; r A} A{i ε; e AB/; r A} AB{i ε; r A/AB}".to_owned(),
            ),
            (
                5,
                "/mnt/A/AB",
                "A{i AB; e ε,AB/; s AB; r AB} AB{i ε; r AB}".to_owned(),
            ),
            (
                6,
                "/mnt/A/a/file.txt",
                "A{i a/file.txt; e ε,AB/; s a/file.txt; r file.txt}".to_owned(),
            ),
            (7, "/mnt/A/AB/x/.", "AB{i x/; e ε; s x}".to_owned()),
            (8, "/etc/", "L{i etc; e εX; s etc; r etc}".to_owned()),
            (9, "/mnt/A/.", "A{i ε; e AB/} AB{i ε; r AB}".to_owned()),
        ] {
            let specs = split_export(request.as_bytes(), &three()).unwrap();
            assert_eq!(shown(&specs), expected, "example {example}: {request}");
        }
    }

    /// Only the elements that these entries go to, as the others are never contacted.
    fn touched(specs: Vec<(&'static str, FilterSpec)>, names: &[&str]) -> Vec<(&'static str, FilterSpec)> {
        let routes: Vec<usize> = names
            .iter()
            .map(|name| {
                let path = TreePath::of_entry(name.as_bytes()).unwrap();
                crate::fan_out::route(specs.iter().map(|(_, spec)| spec), &path).unwrap()
            })
            .collect();
        specs
            .into_iter()
            .enumerate()
            .filter(|(index, _)| routes.contains(index))
            .map(|(_, spec)| spec)
            .collect()
    }

    #[test]
    fn imports_are_split_as_in_the_worked_examples() {
        let volumes = mounts(&[("/volumes/data", "V")]);
        let nested = mounts(&[("/v1", "V1"), ("/v1/v2", "V2"), ("/v1/v2/v3", "V3")]);
        let three = three();
        type Case<'a> = (u32, &'a Mounts<&'static str>, &'a str, &'a [&'a str], &'a str);
        let cases: [Case<'_>; 7] = [
            (
                10,
                &three,
                "/",
                &["mnt/x", "mnt/A/v", "mnt/A/AB/w"],
                "L{} A{s mnt/A} AB{s mnt/A/AB}",
            ),
            (
                11,
                &three,
                "/mnt",
                &["x", "A/f", "A/AB/g", "B/h"],
                "L{r mnt} A{s A} AB{s A/AB} B{s B}",
            ),
            (12, &three, "/mnt/A", &["f", "AB/g"], "A{} AB{s AB}"),
            (13, &three, "/mnt/A/sub", &["f"], "A{r sub}"),
            (14, &three, "/etc", &["f"], "L{r etc}"),
            (
                15,
                &volumes,
                "/volumes",
                &["x", "data/y"],
                "L{r volumes} V{s data}",
            ),
            (16, &nested, "/v1/v2/v3", &["f"], "V3{}"),
        ];
        for (example, mounts, request, names, expected) in cases {
            let specs = split_import(request.as_bytes(), mounts).unwrap();
            assert_eq!(shown(&touched(specs, names)), expected, "example {example}");
            // A dot at the end changes nothing.
            let dotted = split_import(format!("{request}/.").as_bytes(), mounts).unwrap();
            assert_eq!(
                shown(&touched(dotted, names)),
                expected,
                "example {example} with a dot"
            );
        }
        assert_eq!(shown(&split_import(b"/v1/v2/v3", &nested).unwrap()), "V3{}");
    }

    #[test]
    fn the_errata_of_the_worked_examples_hold() {
        let volumes = mounts(&[("/volumes/data", "V")]);
        assert_eq!(
            shown(&split_export(b"/volumes/", &volumes).unwrap()),
            "L{i volumes; e ε,volumes/data/; s volumes; r volumes} V{i ε; r volumes/data}"
        );
    }

    #[test]
    fn prefixes_of_names_are_not_mounts() {
        assert_eq!(shown(&split_import(b"/mnt/Ab", &three()).unwrap()), "L{r mnt/Ab}");
        let specs = split_import(b"/mnt", &three()).unwrap();
        assert_eq!(shown(&touched(specs, &["Ab/f"])), "L{r mnt}");
        let from_a = &split_export(b"/mnt/A", &three()).unwrap()[0].1;
        assert!(!from_a.includes(&TreePath::of_entry(b"mnt/A.txt").unwrap()));
        assert_eq!(
            split_stat(b"/mn", &three()).unwrap(),
            Some(("L", TreePath::below(b"mn").unwrap()))
        );
        assert_eq!(
            split_stat(b"/mnt/A/AB/x/", &three()).unwrap(),
            Some(("AB", TreePath::below(b"x").unwrap()))
        );
        assert_eq!(
            split_stat(b"/mnt/A/../../..", &three()).unwrap(),
            Some(("L", TreePath::root()))
        );
    }

    #[test]
    fn mounts_are_checked() {
        let mut mounts = three();
        assert_eq!(
            mounts.mount(b"/mnt//A/.", "C").unwrap_err().code(),
            "archive.mounted-twice"
        );
        assert_eq!(
            mounts.mount(b"/", "C").unwrap_err().code(),
            "archive.mounted-twice"
        );
        assert!(split_export(b"a\0b", &mounts).is_err());
    }

    /// Every path of a tree is exported by exactly the element that owns it, but for mount points, which the parent gives a
    /// header for.
    #[test]
    fn exports_cover_the_tree_exactly() {
        let three = three();
        let tree = [
            "",
            "etc",
            "etc/passwd",
            "mnt",
            "mnt/x",
            "mnt/Ab",
            "mnt/Ab/y",
            "mnt/A",
            "mnt/A/v",
            "mnt/A/AB",
            "mnt/A/AB/w",
            "mnt/A/AB/x",
            "mnt/A/AB/x/z",
            "mnt/B",
            "mnt/B/h",
        ];
        for request in [
            "/",
            "/.",
            "/mnt",
            "/mnt/.",
            "/mnt/A",
            "/mnt/A/.",
            "/mnt/A/AB",
            "/mnt/A/AB/x",
            "/etc",
            "/mnt/Ab/.",
        ] {
            let specs = split_export(request.as_bytes(), &three).unwrap();
            let source = TreePath::of_request(request.as_bytes()).unwrap();
            for path in tree {
                let path = TreePath::below(path.as_bytes()).unwrap();
                let (owner, _) = split_stat(path.as_bytes(), &three).unwrap().unwrap();
                let mut given: Vec<&str> = Vec::new();
                for (element, spec) in &specs {
                    let mount = three.by_path.iter().find(|(_, name)| *name == element).unwrap().0;
                    if path.strip(mount).is_some_and(|inside| spec.includes(&inside)) {
                        given.push(element);
                    }
                }
                if !path.is_within(&source) {
                    assert!(given.is_empty(), "{request}: {path} from {given:?}");
                } else {
                    assert_eq!(given.last(), Some(&owner), "{request}: {path}");
                    let is_mount = three.by_path.contains_key(&path) && !path.is_root();
                    assert!(
                        given.len() == 1 || (is_mount && given.len() == 2),
                        "{request}: {path} from {given:?}"
                    );
                }
            }
        }
    }
}
