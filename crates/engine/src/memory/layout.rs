//! Laying a dump out as the engine wants to find a checkpoint: small images as files, large ones as links.
//!
//! The engine packs the directory into an archive and unpacks it somewhere else, so links must be relative, lead up to the root
//! whatever their depth, and down again. Absolute ones are resolved in the container's root, where nothing is.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use tranship_core::ContainerId;

use super::message::Damaged;
use super::{chain, is_private, or_missing, private_directory, sockets};

/// Images up to this size are copied, in bytes.
const SMALL: u64 = 64 << 10;
/// More than any directory is deep that an engine unpacks a checkpoint in. `..` of the root is the root.
const DEPTH: usize = 24;
/// The image that says which files and sockets are open.
const FILES: &str = "files.img";
/// A list of open files that is longer than this is none, in bytes.
const LARGEST_FILES: u64 = 256 << 20;
/// The name of the checkpoint at Docker.
pub(super) const NAME: &str = "tranship";
/// How the names of directories begin that containerd unpacks checkpoints in.
const UNPACKED: &str = "ctrd-checkpoint";

/// What a dump looks like that cannot be used.
#[derive(Debug)]
pub(super) enum LayoutError {
    /// A file is none that CRIU writes.
    Strange(PathBuf, &'static str),
    /// Where the engine looks for a checkpoint there is one already, which somebody else made.
    Taken(PathBuf),
    /// The file system refused.
    Io(PathBuf, io::Error),
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Strange(path, why) => write!(f, "the dump is damaged: {}: {why}", path.display()),
            Self::Taken(path) => write!(
                f,
                "{} is of a checkpoint that was not made here, and is left alone: remove it, or put it elsewhere",
                path.display()
            ),
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

/// Takes the checkpoint away, also one that a restore left which was interrupted. One of somebody else's stays: Podman keeps its user's where
/// it restores from (`podman container checkpoint`). Says whether there is none any more.
pub(super) fn remove(directory: &Path, container: &ContainerId) -> io::Result<bool> {
    match directory.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
        Ok(found) if !found.is_dir() => return Ok(false),
        Ok(_) => {}
    }
    let mark = mark(container);
    if directory.join(&mark).symlink_metadata().is_ok() {
        // The mark last: who is interrupted here finds its own again.
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_name() == mark.as_str() {
                continue;
            }
            let removed = if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())
            } else {
                std::fs::remove_file(entry.path())
            };
            or_missing(removed)?;
        }
        or_missing(std::fs::remove_file(directory.join(&mark)))?;
    }
    // Without the mark it is one's own only if it is empty: made a moment before the mark, or left a moment after it.
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            tracing::warn!(path = %directory.display(), "a checkpoint that was not made here is left");
            return Ok(false);
        }
        other => or_missing(other)?,
    }
    // Others' checkpoints may lie there, or whatever else the engine has beside it.
    let empty = directory.parent().map(std::fs::remove_dir);
    tracing::trace!(?empty, "the checkpoints");
    Ok(true)
}

/// Whether somebody else's checkpoint lies there, which [`remove`] leaves.
pub(super) fn is_taken(directory: &Path, container: &ContainerId) -> io::Result<bool> {
    let found = match directory.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    if !found.is_dir() {
        return Ok(true);
    }
    let is_ours = directory.join(mark(container)).symlink_metadata().is_ok();
    Ok(!is_ours && std::fs::read_dir(directory)?.next().is_some())
}

/// The file by which the checkpoint of a container is known wherever it is unpacked. CRIU does not look at it.
fn mark(container: &ContainerId) -> String {
    format!("tranship-{container}")
}

/// Removes what containerd unpacked for a restore of this container and left behind, in `directory`: it never takes its own temporary
/// directories away (`services/tasks/local.go`), and they hold part of the memory.
pub(super) fn remove_unpacked(directory: &Path, container: &ContainerId) -> io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let named = entry.file_name().as_bytes().starts_with(UNPACKED.as_bytes());
        if named && is_private(&path) && path.join(mark(container)).symlink_metadata().is_ok() {
            std::fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

/// Makes a checkpoint in `directory`, which is among the engine's, of the images in `images`. Says how many connections it closes. What
/// cannot be laid out leaves nothing, and what others made there stays.
pub(super) fn lay_out(
    images: &Path,
    directory: &Path,
    container: &ContainerId,
) -> Result<usize, LayoutError> {
    let checkpoints = directory.parent().unwrap_or(directory);
    let refused = |path: &Path| {
        let path = path.to_owned();
        move |error| LayoutError::Io(path, error)
    };
    if !remove(directory, container).map_err(refused(directory))? {
        return Err(LayoutError::Taken(directory.to_owned()));
    }
    // The engine makes this one as it likes.
    std::fs::create_dir_all(checkpoints).map_err(refused(checkpoints))?;
    private_directory(directory).map_err(refused(directory))?;
    let marked = directory.join(mark(container));
    let done = std::fs::write(&marked, b"")
        .map_err(refused(&marked))
        .and_then(|()| fill(images, directory));
    if done.is_err() {
        remove(directory, container).map_err(refused(directory))?;
    }
    done
}

fn fill(images: &Path, directory: &Path) -> Result<usize, LayoutError> {
    let io = |path: &Path, error: io::Error| LayoutError::Io(path.to_owned(), error);
    let several = chain::length(images).map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => {
            LayoutError::Strange(images.to_owned(), "the dumps do not belong together")
        }
        _ => io(images, e),
    })?;
    for number in 1..=several {
        lead_back(images, number)?;
    }
    if several > 1 {
        let to = directory.join(chain::PARENT);
        let before = chain::link(images, several - 1);
        std::os::unix::fs::symlink(from_anywhere(&before), &to).map_err(|e| io(&to, e))?;
    }
    let newest = if several == 0 {
        images.to_owned()
    } else {
        chain::link(images, several)
    };
    fill_with(&newest, several > 1, directory)
}

/// One of several dumps leads to the one before, and to nothing else: whatever link it came with is made anew.
fn lead_back(images: &Path, number: u32) -> Result<(), LayoutError> {
    let of = chain::link(images, number);
    let io = |path: &Path, error: io::Error| LayoutError::Io(path.to_owned(), error);
    let parent = of.join(chain::PARENT);
    or_missing(std::fs::remove_file(&parent)).map_err(|e| io(&parent, e))?;
    for entry in std::fs::read_dir(&of).map_err(|e| io(&of, e))? {
        let entry = entry.map_err(|e| io(&of, e))?;
        check(&entry)?;
    }
    if number > 1 {
        let before = chain::from_the_next(number - 1);
        std::os::unix::fs::symlink(before, &parent).map_err(|e| io(&parent, e))?;
    }
    Ok(())
}

/// Refuses what CRIU does not write.
fn check(entry: &std::fs::DirEntry) -> Result<u64, LayoutError> {
    let path = entry.path();
    let about = entry.metadata().map_err(|e| LayoutError::Io(path.clone(), e))?;
    if !about.is_file() {
        return Err(LayoutError::Strange(path, "it is no plain file"));
    }
    if !is_a_name(&entry.file_name()) {
        return Err(LayoutError::Strange(path, "no image has such a name"));
    }
    Ok(about.len())
}

/// A link that leads there from wherever the engine unpacks it.
fn from_anywhere(path: &Path) -> PathBuf {
    let mut target = PathBuf::new();
    target.extend(std::iter::repeat_n("..", DEPTH));
    target.push(path.strip_prefix("/").unwrap_or(path));
    target
}

fn fill_with(images: &Path, follows: bool, directory: &Path) -> Result<usize, LayoutError> {
    let mut closed = 0;
    let io = |path: &Path, error: io::Error| LayoutError::Io(path.to_owned(), error);
    for entry in std::fs::read_dir(images).map_err(|e| io(images, e))? {
        let entry = entry.map_err(|e| io(images, e))?;
        let from = entry.path();
        let name = entry.file_name();
        if follows && name == chain::PARENT {
            continue;
        }
        let length = check(&entry)?;
        let to = directory.join(&name);
        if name == FILES {
            if length > LARGEST_FILES {
                return Err(LayoutError::Strange(from, "it is too long"));
            }
            let image = std::fs::read(&from).map_err(|e| io(&from, e))?;
            let (image, connections) =
                sockets::close_connections(&image).map_err(|Damaged(why)| LayoutError::Strange(from, why))?;
            closed = connections;
            std::fs::write(&to, image).map_err(|e| io(&to, e))?;
        } else if length <= SMALL {
            std::fs::copy(&from, &to).map_err(|e| io(&to, e))?;
        } else {
            std::os::unix::fs::symlink(from_anywhere(&from), &to).map_err(|e| io(&to, e))?;
        }
    }
    Ok(closed)
}

/// Letters, digits and a few marks, as in all names that CRIU and runc give.
fn is_a_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    bytes.first().is_some_and(u8::is_ascii_alphanumeric) && bytes.len() <= 128 && bytes.iter().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container() -> ContainerId {
        ContainerId::new("a".repeat(64)).unwrap()
    }

    #[test]
    fn only_what_was_unpacked_of_this_container_is_removed() {
        use std::os::unix::fs::DirBuilderExt as _;
        let root = tempfile::tempdir().unwrap();
        let other = ContainerId::new("b".repeat(64)).unwrap();
        let made = |name: &str, mode: u32, of: &ContainerId| {
            let path = root.path().join(name);
            std::fs::DirBuilder::new().mode(mode).create(&path).unwrap();
            std::fs::write(path.join(mark(of)), b"").unwrap();
            path
        };
        let ours = made("ctrd-checkpoint1", 0o700, &container());
        let theirs = made("ctrd-checkpoint2", 0o700, &other);
        let open = made("ctrd-checkpoint3", 0o755, &container());
        let named = made("something", 0o700, &container());
        std::os::unix::fs::symlink(&named, root.path().join("ctrd-checkpoint4")).unwrap();
        remove_unpacked(root.path(), &container()).unwrap();
        assert!(!ours.exists());
        assert!(theirs.exists() && open.exists() && named.join(mark(&container())).exists());
        remove_unpacked(&root.path().join("nothing"), &container()).unwrap();
    }

    fn directories() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let images = root.path().join("images");
        std::fs::create_dir(&images).unwrap();
        let checkpoint = root.path().join("checkpoints").join(NAME);
        (root, images, checkpoint)
    }

    #[test]
    fn large_images_are_links_that_lead_there_from_anywhere() {
        let (root, images, made) = directories();
        std::fs::write(images.join("pages-1.img"), vec![7u8; 100_000]).unwrap();
        std::fs::write(images.join("core-1.img"), b"core").unwrap();
        assert_eq!(lay_out(&images, &made, &container()).unwrap(), 0);
        let link = std::fs::read_link(made.join("pages-1.img")).unwrap();
        assert!(link.is_relative());
        let elsewhere = root.path().join("elsewhere");
        std::os::unix::fs::symlink(&link, &elsewhere).unwrap();
        assert_eq!(std::fs::read(elsewhere).unwrap().len(), 100_000);
        assert!(!made.join("core-1.img").is_symlink());
        assert!(remove(&made, &container()).unwrap());
        assert!(!made.parent().unwrap().exists());
        assert!(images.join("pages-1.img").exists());
    }

    #[test]
    fn what_criu_does_not_write_is_refused_and_nothing_stays() {
        for kind in ["link", "directory", "name", "files"] {
            let (_root, images, made) = directories();
            match kind {
                "link" => std::os::unix::fs::symlink("/etc/shadow", images.join("core-1.img")).unwrap(),
                "directory" => std::fs::create_dir(images.join("core-1.img")).unwrap(),
                "name" => std::fs::write(images.join(".hidden"), b"").unwrap(),
                _ => std::fs::write(images.join(FILES), b"no image").unwrap(),
            }
            let refused = lay_out(&images, &made, &container());
            assert!(matches!(refused, Err(LayoutError::Strange(..))), "{kind}");
            assert!(!made.parent().unwrap().exists(), "{kind}");
        }
    }

    /// Three dumps that follow each other, as they arrive.
    fn several() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let (root, images, checkpoint) = directories();
        for number in 1..=3 {
            let link = chain::link(&images, number);
            std::fs::create_dir(&link).unwrap();
            std::fs::write(link.join("pagemap-1.img"), format!("of {number}")).unwrap();
            std::fs::write(link.join("pages-1.img"), vec![number as u8; 100_000]).unwrap();
        }
        std::fs::write(images.join("3/core-1.img"), b"core").unwrap();
        (root, images, checkpoint)
    }

    #[test]
    fn each_of_several_dumps_leads_to_the_one_before_from_anywhere() {
        let (root, images, made) = several();
        // What came along is not believed.
        for number in 1..=3 {
            let to = if number == 2 { "../2" } else { "/etc" };
            std::os::unix::fs::symlink(to, images.join(format!("{number}/parent"))).unwrap();
        }
        lay_out(&images, &made, &container()).unwrap();
        let names: std::collections::BTreeSet<_> = std::fs::read_dir(&made)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let expected = [
            "core-1.img",
            "pagemap-1.img",
            "pages-1.img",
            "parent",
            &mark(&container()),
        ];
        assert_eq!(names, expected.map(str::to_owned).into());
        assert_eq!(std::fs::read(made.join("pagemap-1.img")).unwrap(), b"of 3");
        // The engine unpacks it somewhere else.
        let elsewhere = root.path().join("a/b");
        std::fs::create_dir_all(&elsewhere).unwrap();
        std::fs::rename(made.join("parent"), elsewhere.join("parent")).unwrap();
        let mut at = elsewhere.join("parent");
        for expected in ["of 2", "of 1"] {
            let found = std::fs::read(at.join("pagemap-1.img")).unwrap();
            assert_eq!(found, expected.as_bytes());
            at.push("parent");
        }
        assert!(at.symlink_metadata().is_err(), "the first follows none");
    }

    #[test]
    fn what_does_not_belong_to_several_dumps_is_refused_and_nothing_stays() {
        for kind in [
            "hole",
            "name",
            "file",
            "link",
            "directory",
            "parent",
            "to a directory",
        ] {
            let (root, images, made) = several();
            match kind {
                "hole" => std::fs::remove_dir_all(images.join("2")).unwrap(),
                "name" => std::fs::create_dir(images.join("x")).unwrap(),
                "file" => std::fs::write(images.join("core-1.img"), b"").unwrap(),
                "link" => std::os::unix::fs::symlink("/etc/shadow", images.join("1/pages-2.img")).unwrap(),
                "directory" => std::fs::create_dir(images.join("2/pages-2.img")).unwrap(),
                "parent" => std::fs::create_dir(images.join("2/parent")).unwrap(),
                _ => {
                    std::fs::rename(images.join("2"), root.path().join("2")).unwrap();
                    std::os::unix::fs::symlink(root.path().join("2"), images.join("2")).unwrap();
                }
            }
            assert!(lay_out(&images, &made, &container()).is_err(), "{kind}");
            assert!(!made.parent().unwrap().exists(), "{kind}");
        }
    }

    #[test]
    fn an_older_one_makes_way() {
        let (_root, images, old) = directories();
        std::fs::create_dir_all(old.join("directory")).unwrap();
        std::fs::write(old.join("core-9.img"), b"").unwrap();
        std::fs::write(old.join(mark(&container())), b"").unwrap();
        std::fs::write(images.join("core-1.img"), b"core").unwrap();
        lay_out(&images, &old, &container()).unwrap();
        assert!(!old.join("core-9.img").exists());
        assert!(old.join("core-1.img").exists());
    }

    #[test]
    fn a_checkpoint_of_somebody_else_s_stays() {
        let (_root, images, theirs) = directories();
        std::fs::create_dir_all(&theirs).unwrap();
        std::fs::write(theirs.join("core-9.img"), b"").unwrap();
        std::fs::write(theirs.join(mark(&ContainerId::new("b".repeat(64)).unwrap())), b"").unwrap();
        std::fs::write(images.join("core-1.img"), b"core").unwrap();
        assert!(is_taken(&theirs, &container()).unwrap());
        assert!(!remove(&theirs, &container()).unwrap());
        let refused = lay_out(&images, &theirs, &container());
        assert!(matches!(refused, Err(LayoutError::Taken(_))), "{refused:?}");
        assert!(theirs.join("core-9.img").exists() && !theirs.join("core-1.img").exists());

        std::fs::remove_dir_all(&theirs).unwrap();
        std::os::unix::fs::symlink(&images, &theirs).unwrap();
        assert!(is_taken(&theirs, &container()).unwrap());
        assert!(!remove(&theirs, &container()).unwrap());
        assert!(theirs.is_symlink() && images.join("core-1.img").exists());
    }

    #[test]
    fn a_directory_that_was_made_right_before_an_interruption_makes_way() {
        let (_root, images, empty) = directories();
        assert!(!is_taken(&empty, &container()).unwrap(), "nothing is there");
        std::fs::create_dir_all(&empty).unwrap();
        assert!(!is_taken(&empty, &container()).unwrap());
        std::fs::write(images.join("core-1.img"), b"core").unwrap();
        lay_out(&images, &empty, &container()).unwrap();
        assert!(!is_taken(&empty, &container()).unwrap(), "it is ours");
        std::fs::remove_file(empty.join("core-1.img")).unwrap();
        std::fs::remove_file(empty.join(mark(&container()))).unwrap();
        assert!(remove(&empty, &container()).unwrap());
        assert!(!empty.exists());
    }
}
