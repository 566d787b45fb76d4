//! The rules of `docker cp` about its two arguments: what they name, and what becomes of which source at which destination.
//!
//! Pure functions over facts that the caller looks up. The rules are those of docker's reference page and its own tests.

use tranship_core::fault::{Explain, FaultKind};

use crate::entry::show;

/// What an argument of a copy names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operand {
    /// A path of this machine.
    Local(Vec<u8>),
    /// `-`: an archive from standard input or to standard output.
    Stream,
    /// `[NODE//]CONTAINER:PATH`.
    Container {
        /// The node, as the user named it.
        node: Option<Vec<u8>>,
        /// The container's name or id.
        container: Vec<u8>,
        /// Path in the container, relative to its root whether it begins with a slash or not.
        path: Vec<u8>,
    },
    /// `[NODE//]volume:NAME:PATH`.
    Volume {
        /// The node, as the user named it.
        node: Option<Vec<u8>>,
        /// The volume's name.
        name: Vec<u8>,
        /// Path in the volume.
        path: Vec<u8>,
    },
}

/// Arguments that cannot be copied, or not like that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CopyRuleError {
    /// An argument is empty.
    #[error("the {which} is empty")]
    Empty {
        /// `source` or `destination`, or what part of them.
        which: &'static str,
    },
    /// Neither argument names a container or volume.
    #[error("must specify at least one container source or destination")]
    NoContainer,
    /// Both arguments are `-`.
    #[error("cannot copy from standard input to standard output")]
    BothStreams,
    /// The destination ends with a slash and does not exist.
    #[error("no such directory: {}", show(.path))]
    NoSuchDirectory {
        /// The destination.
        path: Vec<u8>,
    },
    /// A directory onto a file.
    #[error("cannot copy directory onto the file {}", show(.path))]
    DirectoryOntoFile {
        /// The destination.
        path: Vec<u8>,
    },
    /// The source is a file, named as a directory.
    #[error("{} is not a directory", show(.path))]
    NotADirectory {
        /// The source or destination.
        path: Vec<u8>,
    },
    /// The directory in which the destination would be made does not exist.
    #[error("the directory {} does not exist", show(.path))]
    NoParent {
        /// The parent.
        path: Vec<u8>,
    },
    /// An archive goes to a directory only.
    #[error("destination {} must be a directory", show(.path))]
    MustBeDirectory {
        /// The destination.
        path: Vec<u8>,
    },
    /// A local device, socket or pipe as destination.
    #[error("{} must be a directory or a regular file", show(.path))]
    NotRegular {
        /// The destination.
        path: Vec<u8>,
    },
}

impl Explain for CopyRuleError {
    fn code(&self) -> &'static str {
        match self {
            Self::Empty { .. } => "archive.operand-empty",
            Self::NoContainer => "archive.no-container",
            Self::BothStreams => "archive.both-streams",
            Self::NoSuchDirectory { .. } => "archive.no-such-directory",
            Self::DirectoryOntoFile { .. } => "archive.directory-onto-file",
            Self::NotADirectory { .. } => "archive.not-a-directory",
            Self::NoParent { .. } => "archive.no-parent",
            Self::MustBeDirectory { .. } => "archive.must-be-directory",
            Self::NotRegular { .. } => "archive.not-regular",
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoContainer => "write CONTAINER:PATH for the one that is in a container",
            Self::NoSuchDirectory { .. } => "make the directory first, or leave the slash off to make a file",
            Self::NoParent { .. } => "make the directory first",
            Self::DirectoryOntoFile { .. } => "name a directory, or something that does not exist",
            _ => return None,
        };
        Some(hint.to_owned())
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::Empty { .. } | Self::NoContainer | Self::BothStreams => FaultKind::Usage,
            _ => FaultKind::Environment,
        }
    }
}

impl Operand {
    /// Reads an argument.
    ///
    /// It is local if it begins with `/`, has no `:`, or begins with `.` before the first one. Later colons belong to the
    /// path. `volume:NAME:PATH` with a valid name is a volume; a path of a container called `volume` begins with a slash.
    ///
    /// # Errors
    ///
    /// [`CopyRuleError::Empty`] if it or the name in it is empty.
    pub fn parse(text: &[u8]) -> Result<Self, CopyRuleError> {
        if text.is_empty() {
            return Err(CopyRuleError::Empty { which: "argument" });
        }
        if text == b"-" {
            return Ok(Self::Stream);
        }
        if text.starts_with(b"/") || text.starts_with(b".") {
            return Ok(Self::Local(text.to_vec()));
        }
        let (node, rest) = split_node(text);
        let Some((name, path)) = split_at(rest, b":") else {
            return Ok(Self::Local(text.to_vec()));
        };
        let node = node.map(<[u8]>::to_vec);
        if name.is_empty() {
            return Err(CopyRuleError::Empty {
                which: "container's name",
            });
        }
        if name == b"volume"
            && let Some((name, path)) = split_at(path, b":")
            && is_name(name)
        {
            return Ok(Self::Volume {
                node,
                name: name.to_vec(),
                path: path.to_vec(),
            });
        }
        Ok(Self::Container {
            node,
            container: name.to_vec(),
            path: path.to_vec(),
        })
    }

    fn is_remote(&self) -> bool {
        matches!(self, Self::Container { .. } | Self::Volume { .. })
    }
}

/// Checks that two arguments make a copy.
///
/// # Errors
///
/// [`CopyRuleError::NoContainer`], [`CopyRuleError::BothStreams`].
pub fn check_operands(source: &Operand, destination: &Operand) -> Result<(), CopyRuleError> {
    if *source == Operand::Stream && *destination == Operand::Stream {
        return Err(CopyRuleError::BothStreams);
    }
    if source.is_remote() || destination.is_remote() {
        Ok(())
    } else {
        Err(CopyRuleError::NoContainer)
    }
}

/// Splits `NODE//` off: a node has no single slash but in `scheme://`, `unix:///path` and `kube://context/namespace`.
fn split_node(text: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let scheme = text.iter().take_while(|byte| byte.is_ascii_lowercase()).count();
    let rest_of = |from: usize| text.get(from..).unwrap_or_default();
    let start = match rest_of(scheme).strip_prefix(b"://") {
        Some(_) if scheme > 0 => scheme + 3,
        _ => 0,
    };
    let Some((before, _)) = split_at(rest_of(start), b"//") else {
        return (None, text);
    };
    // Without a scheme the first colon comes after the container's name, and slashes after that are the path's.
    if start == 0 && (before.contains(&b':') || before.is_empty()) {
        return (None, text);
    }
    let end = start + before.len();
    (text.get(..end), rest_of(end + 2))
}

fn split_at<'a>(text: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = text
        .windows(separator.len())
        .position(|window| window == separator)?;
    Some((text.get(..at)?, text.get(at + separator.len()..)?))
}

/// Docker's names of volumes: `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.
fn is_name(name: &[u8]) -> bool {
    name.first().is_some_and(u8::is_ascii_alphanumeric)
        && name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(byte))
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Present {
    /// A directory.
    Directory,
    /// Anything else.
    File,
    /// Nothing.
    Nothing {
        /// Its parent is a directory.
        parent: bool,
    },
}

/// Where a source goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The directory into which the archive is unpacked.
    pub directory: Vec<u8>,
    /// First component of the names in the archive that are renamed; empty if the archive holds the source's contents.
    pub from: Vec<u8>,
    /// What it becomes; empty if the contents go into `directory`.
    pub to: Vec<u8>,
}

/// Where a source goes, by the rules of `docker cp`.
///
/// `source` and `destination` are the paths as the user wrote them, links at the end of the destination resolved by the
/// caller. The source exists.
///
/// # Errors
///
/// [`CopyRuleError`].
pub fn place(
    source: &[u8],
    source_is_directory: bool,
    destination: &[u8],
    present: Present,
) -> Result<Placement, CopyRuleError> {
    let error_path = || destination.to_vec();
    if destination.is_empty() {
        return Err(CopyRuleError::Empty { which: "destination" });
    }
    let contents = means_contents(source);
    if !source_is_directory && (contents || asserts_directory(source)) {
        return Err(CopyRuleError::NotADirectory {
            path: source.to_vec(),
        });
    }
    let from = if contents { Vec::new() } else { last_name(source) };
    match present {
        Present::Directory => Ok(Placement {
            directory: error_path(),
            to: from.clone(),
            from,
        }),
        Present::File if source_is_directory => Err(CopyRuleError::DirectoryOntoFile { path: error_path() }),
        Present::File if asserts_directory(destination) => {
            Err(CopyRuleError::NotADirectory { path: error_path() })
        }
        Present::Nothing { .. } if !source_is_directory && asserts_directory(destination) => {
            Err(CopyRuleError::NoSuchDirectory { path: error_path() })
        }
        Present::Nothing { parent: false } => Err(CopyRuleError::NoParent {
            path: parent_of(destination),
        }),
        Present::File | Present::Nothing { parent: true } => Ok(Placement {
            directory: parent_of(destination),
            from,
            to: last_name(destination),
        }),
    }
}

/// Where an archive from standard input goes: a directory, links followed.
///
/// # Errors
///
/// [`CopyRuleError::MustBeDirectory`].
pub fn place_stream(destination: &[u8], present: Present) -> Result<Placement, CopyRuleError> {
    match present {
        Present::Directory => Ok(Placement {
            directory: destination.to_vec(),
            from: Vec::new(),
            to: Vec::new(),
        }),
        _ => Err(CopyRuleError::MustBeDirectory {
            path: destination.to_vec(),
        }),
    }
}

/// Only a last element `.` means "what is in it": `dir/` does not, `dir.` does not.
#[must_use]
pub fn means_contents(path: &[u8]) -> bool {
    path.ends_with(b"/.") || path == b"."
}

/// A path that can only be a directory's: it ends with a slash or `.`. One that ends with `..` is cleaned first, by its text, and
/// says nothing then.
#[must_use]
pub fn asserts_directory(path: &[u8]) -> bool {
    matches!(path.rsplit(|&byte| byte == b'/').next(), Some(b"" | b"."))
}

/// An absolute path without `.`, `..` and double slashes, but for the slash or dot that it ends with. As docker does, this looks at
/// the text only: `link/..` is where the link is, and what is before `..` need not exist.
#[must_use]
pub fn cleaned(path: &[u8]) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut last: &[u8] = b"";
    for element in path
        .split(|&byte| byte == b'/')
        .filter(|element| !element.is_empty())
    {
        last = element;
        match element {
            b"." => {}
            b".." => {
                kept.pop();
            }
            name => kept.push(name),
        }
    }
    let mut clean = [b"/", kept.join(&b'/').as_slice()].concat();
    let ends: &[u8] = if last == b"." {
        b"/."
    } else if path.ends_with(b"/") {
        b"/"
    } else {
        b""
    };
    if !ends.is_empty() && clean.ends_with(b"/") {
        clean.pop();
    }
    clean.extend_from_slice(ends);
    clean
}

/// The last element, after `.` and slashes; `/` for the root.
fn last_name(path: &[u8]) -> Vec<u8> {
    let name = elements(path).next_back().unwrap_or(b"/");
    name.to_vec()
}

/// Everything before the last element: `/` for what is in the root, `.` for a bare name.
fn parent_of(path: &[u8]) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = elements(path).collect();
    kept.pop();
    let joined = kept.join(&b'/');
    match (path.starts_with(b"/"), joined.is_empty()) {
        (true, _) => [b"/", joined.as_slice()].concat(),
        (false, true) => b".".to_vec(),
        (false, false) => joined,
    }
}

fn elements(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|element| !element.is_empty() && *element != b".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(node: Option<&str>, container: &str, path: &str) -> Operand {
        Operand::Container {
            node: node.map(Into::into),
            container: container.into(),
            path: path.into(),
        }
    }

    #[test]
    fn paths_are_cleaned_by_their_text() {
        for (path, clean) in [
            ("/a/../b", "/b"),
            ("w/new/..", "/w"),
            ("/../..", "/"),
            ("/a//./b/", "/a/b/"),
            ("/a/b/./", "/a/b/."),
            ("/.", "/."),
            ("//", "/"),
            ("/a/../", "/"),
        ] {
            assert_eq!(cleaned(path.as_bytes()), clean.as_bytes(), "{path}");
        }
    }

    #[test]
    fn arguments_are_read_like_docker_does() {
        let local = |text: &str| Operand::Local(text.into());
        let volume = |node: Option<&str>, name: &str, path: &str| Operand::Volume {
            node: node.map(Into::into),
            name: name.into(),
            path: path.into(),
        };
        for (text, operand) in [
            ("f", local("f")),
            ("/a:b", local("/a:b")),
            ("./a:b", local("./a:b")),
            ("../a:b", local("../a:b")),
            (".a:b", local(".a:b")),
            ("-", Operand::Stream),
            ("-x", local("-x")),
            ("c1:/tmp", container(None, "c1", "/tmp")),
            ("a:b", container(None, "a", "b")),
            ("c1:/te:s:t", container(None, "c1", "/te:s:t")),
            ("c1:", container(None, "c1", "")),
            ("c1:/a//b", container(None, "c1", "/a//b")),
            ("dir//f", local("dir//f")),
            ("host//c1:/x", container(Some("host"), "c1", "/x")),
            ("me@host//c1:/x//y", container(Some("me@host"), "c1", "/x//y")),
            (
                "ssh://me@host:22//c1:/x",
                container(Some("ssh://me@host:22"), "c1", "/x"),
            ),
            (
                "unix:///run/d.sock//c1:/x",
                container(Some("unix:///run/d.sock"), "c1", "/x"),
            ),
            (
                "kube://ctx/ns//pod:/x",
                container(Some("kube://ctx/ns"), "pod", "/x"),
            ),
            ("volume:v1:/x", volume(None, "v1", "/x")),
            ("h//volume:v1:", volume(Some("h"), "v1", "")),
            ("volume:/x", container(None, "volume", "/x")),
            ("volume:/x:y", container(None, "volume", "/x:y")),
        ] {
            assert_eq!(Operand::parse(text.as_bytes()), Ok(operand), "{text}");
        }
        for text in ["", ":x", "h//:x"] {
            assert!(
                matches!(Operand::parse(text.as_bytes()), Err(CopyRuleError::Empty { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn a_copy_needs_a_container() {
        let read = |text: &str| Operand::parse(text.as_bytes()).unwrap();
        assert!(check_operands(&read("f"), &read("c:/x")).is_ok());
        assert!(check_operands(&read("c:/x"), &read("d:/x")).is_ok());
        assert!(check_operands(&read("-"), &read("c:/x")).is_ok());
        let error = check_operands(&read("f"), &read("d")).unwrap_err();
        assert!(error.to_string().contains("must specify at least one container"));
        assert_eq!(
            check_operands(&read("-"), &read("-")),
            Err(CopyRuleError::BothStreams)
        );
    }

    fn placed(
        source: &str,
        directory: bool,
        destination: &str,
        present: Present,
    ) -> Result<(String, String, String), &'static str> {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        place(source.as_bytes(), directory, destination.as_bytes(), present)
            .map(|placement| {
                (
                    text(placement.directory),
                    text(placement.from),
                    text(placement.to),
                )
            })
            .map_err(|error| error.code())
    }

    #[test]
    fn every_row_of_the_table_holds() {
        const MISSING: Present = Present::Nothing { parent: true };
        const ORPHAN: Present = Present::Nothing { parent: false };
        let to = |directory: &str, from: &str, to: &str| {
            Ok((directory.to_owned(), from.to_owned(), to.to_owned()))
        };
        for (source, is_dir, destination, present, expected) in [
            ("f", false, "/t/new", MISSING, to("/t", "f", "new")),
            ("f", false, "/new", MISSING, to("/", "f", "new")),
            ("/a/f", false, "new", MISSING, to(".", "f", "new")),
            ("f", false, "/no/such/x", ORPHAN, Err("archive.no-parent")),
            ("f", false, "/nodir/", MISSING, Err("archive.no-such-directory")),
            ("f", false, "/nodir/", ORPHAN, Err("archive.no-such-directory")),
            ("f", false, "/nodir/.", MISSING, Err("archive.no-such-directory")),
            ("f", false, "/t/q", Present::File, to("/t", "f", "q")),
            ("f", false, "/t/q/", Present::File, Err("archive.not-a-directory")),
            ("f", false, "/t", Present::Directory, to("/t", "f", "f")),
            ("f", false, "/t/", Present::Directory, to("/t/", "f", "f")),
            ("d", true, "/new", MISSING, to("/", "d", "new")),
            ("d/", true, "/new/", MISSING, to("/", "d", "new")),
            ("d", true, "/no/new", ORPHAN, Err("archive.no-parent")),
            ("d", true, "/t", Present::Directory, to("/t", "d", "d")),
            ("d/", true, "/t/", Present::Directory, to("/t/", "d", "d")),
            (
                "d",
                true,
                "/etc/passwd",
                Present::File,
                Err("archive.directory-onto-file"),
            ),
            (
                "d/",
                true,
                "/etc/passwd",
                Present::File,
                Err("archive.directory-onto-file"),
            ),
            (
                "d/.",
                true,
                "/etc/passwd",
                Present::File,
                Err("archive.directory-onto-file"),
            ),
            ("d/.", true, "/new", MISSING, to("/", "", "new")),
            ("d/.", true, "/t", Present::Directory, to("/t", "", "")),
            (".", true, "/t", Present::Directory, to("/t", "", "")),
            (".", true, "/new", MISSING, to("/", "", "new")),
            ("d.", true, "/t", Present::Directory, to("/t", "d.", "d.")),
            ("/", true, "o", Present::Directory, to("o", "/", "/")),
            (
                "f/",
                false,
                "o",
                Present::Directory,
                Err("archive.not-a-directory"),
            ),
            (
                "f/.",
                false,
                "o",
                Present::Directory,
                Err("archive.not-a-directory"),
            ),
            ("f", false, "", MISSING, Err("archive.operand-empty")),
        ] {
            assert_eq!(
                placed(source, is_dir, destination, present),
                expected,
                "{source} to {destination}"
            );
        }
    }

    #[test]
    fn streams_go_to_directories() {
        assert_eq!(place_stream(b"/t", Present::Directory).unwrap().directory, b"/t");
        for present in [Present::File, Present::Nothing { parent: true }] {
            let error = place_stream(b"/t", present).unwrap_err();
            assert!(error.to_string().contains("must be a directory"));
        }
        assert!(!means_contents(b"d/") && !means_contents(b"d.") && means_contents(b"d/."));
    }

    #[test]
    fn messages_are_the_ones_people_know() {
        let message = |error: Result<Placement, CopyRuleError>| error.unwrap_err().to_string();
        assert!(
            message(place(b"f", false, b"/nodir/", Present::Nothing { parent: true }))
                .contains("no such directory")
        );
        assert!(message(place(b"d", true, b"/x", Present::File)).contains("cannot copy directory"));
        assert!(
            message(place(
                b"f",
                false,
                b"o/miss/x",
                Present::Nothing { parent: false }
            ))
            .contains("does not exist")
        );
        assert!(message(place(b"/etc/passwd/", false, b"o", Present::Directory)).contains("not a directory"));
    }
}
