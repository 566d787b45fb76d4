//! The directories of elements as wholes: made, removed, set aside and brought back, measured.
//!
//! What is set aside is renamed, never copied: into the first of the given directories that is on the same file system. A
//! crash between two renames leaves a state that the same call, repeated, goes on from.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Gid, Mode, Uid, XattrFlags};
use tranship_core::fault::Explain;
use tranship_core::node::ElementSize;

/// How long a quick look at a size may take.
const LOOK: Duration = Duration::from_secs(2);
/// Longest list of attribute names, and longest value, that Linux allows.
const XATTR_MAX: usize = 64 << 10;

/// Why a directory could not be made, removed or set aside.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// What the file system says.
    #[error("{path} cannot be {what}: {reason}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// `made`, `removed`, `set aside` …
        what: &'static str,
        /// Why.
        #[source]
        reason: io::Error,
    },
    /// It can only be renamed within its own file system, and none of the directories for that is there.
    #[error("{path} cannot be set aside: there is no directory for that on its file system")]
    NoRoom {
        /// The directory.
        path: PathBuf,
    },
    /// It is where another file system is mounted.
    #[error("{path} cannot be set aside: another file system is mounted there")]
    Mounted {
        /// The directory.
        path: PathBuf,
    },
    /// What is set aside is told apart by plain names, and this is none: it would lead somewhere else.
    #[error("{key:?} is no name under which anything is set aside")]
    Key {
        /// The name.
        key: String,
    },
}

impl Explain for PlaceError {
    fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "content.place",
            Self::NoRoom { .. } => "content.no-room",
            Self::Mounted { .. } => "content.mounted",
            Self::Key { .. } => "content.key",
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Io { .. } => "the agent needs root and a writable file system there".into(),
            Self::Key { .. } => "the other node sent it as a volume's GUID; do not trust that node".into(),
            Self::NoRoom { .. } | Self::Mounted { .. } => {
                "move its content away yourself, or let the volume come under another name".into()
            }
        })
    }
}

fn failed(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> PlaceError {
    let path = path.to_owned();
    move |reason| {
        if reason.kind() == io::ErrorKind::ResourceBusy {
            PlaceError::Mounted { path }
        } else {
            PlaceError::Io { path, what, reason }
        }
    }
}

/// What `key` names in a directory. Keys have parts that come from another node.
fn inside(directory: &Path, key: &str) -> Result<PathBuf, PlaceError> {
    let plain = !key.is_empty() && key != "." && key != ".." && !key.contains(['/', '\0']);
    if plain {
        Ok(directory.join(key))
    } else {
        Err(PlaceError::Key { key: key.to_owned() })
    }
}

/// The metadata of a path, not following a link; `None` if nothing is there.
fn look(path: &Path) -> Result<Option<Metadata>, PlaceError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, "looked at")(error)),
    }
}

/// Whether there is anything at a path, be it a link that leads nowhere.
///
/// # Errors
/// What the file system says.
pub fn exists(path: &Path) -> Result<bool, PlaceError> {
    Ok(look(path)?.is_some())
}

/// Makes the directory and those above it where they are missing; says whether it was missing itself.
///
/// # Errors
/// What the file system says.
pub fn make(path: &Path) -> Result<bool, PlaceError> {
    if look(path)?.is_some() {
        return Ok(false);
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(failed(path, "made"))?;
    Ok(true)
}

/// Removes the directory with everything in it, following no link. Gone already is done well.
///
/// # Errors
/// What the file system says.
pub fn remove(path: &Path) -> Result<(), PlaceError> {
    let done = match look(path)? {
        None => return Ok(()),
        Some(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Some(_) => fs::remove_file(path),
    };
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, "removed")(error)),
        _ => Ok(()),
    }
}

/// Where things that make way are kept.
#[derive(Debug, Clone, Default)]
pub struct Asides {
    /// Directories for that, best first; made when they are first used.
    pub directories: Vec<PathBuf>,
}

impl Asides {
    /// The directory on the same file system as `path` or, where `path` is gone, as its parent.
    fn beside(&self, path: &Path) -> Result<Option<PathBuf>, PlaceError> {
        let metadata = match look(path)? {
            Some(metadata) => Some(metadata),
            None => path.parent().map(look).transpose()?.flatten(),
        };
        let Some(device) = metadata.map(|m| m.dev()) else {
            return Ok(None);
        };
        for directory in &self.directories {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            if made.is_ok() && look(directory)?.is_some_and(|m| m.is_dir() && m.dev() == device) {
                return Ok(Some(directory.clone()));
            }
        }
        Ok(None)
    }

    /// What `path` holds makes way under `key`, and an empty directory with the same attributes takes its place.
    ///
    /// # Errors
    /// [`PlaceError::NoRoom`] where no directory is on the same file system; what the file system says.
    pub fn set_aside(&self, path: &Path, key: &str) -> Result<(), PlaceError> {
        let Some(directory) = self.beside(path)? else {
            return Err(PlaceError::NoRoom {
                path: path.to_owned(),
            });
        };
        let aside = inside(&directory, key)?;
        if look(&aside)?.is_none() {
            fs::rename(path, &aside).map_err(failed(path, "set aside"))?;
        }
        if look(path)?.is_none() {
            make_like(path, &aside)?;
        }
        sync_parent(path);
        sync_parent(&aside);
        Ok(())
    }

    /// What was set aside under `key` takes the place of what `path` holds now. Says whether there was something.
    ///
    /// # Errors
    /// What the file system says.
    pub fn put_back(&self, path: &Path, key: &str) -> Result<bool, PlaceError> {
        let Some(directory) = self.beside(path)? else {
            return Ok(false);
        };
        let aside = inside(&directory, key)?;
        let trash = directory.join(format!("{key}.trash"));
        if look(&aside)?.is_none() {
            remove(&trash)?;
            return Ok(false);
        }
        if look(path)?.is_some() {
            remove(&trash)?;
            fs::rename(path, &trash).map_err(failed(path, "put back"))?;
        }
        fs::rename(&aside, path).map_err(failed(path, "put back"))?;
        sync_parent(path);
        remove(&trash)?;
        Ok(true)
    }

    /// What was set aside under `key` goes for good.
    ///
    /// # Errors
    /// What the file system says.
    pub fn drop_aside(&self, path: &Path, key: &str) -> Result<(), PlaceError> {
        if let Some(directory) = self.beside(path)? {
            remove(&inside(&directory, key)?)?;
            remove(&directory.join(format!("{key}.trash")))?;
        }
        Ok(())
    }

    /// Removes what has been set aside under keys that begin with `prefix` longer ago than `age`. Failing at one is no
    /// failure at the others.
    pub fn expire(&self, prefix: &str, age: Duration) {
        for directory in &self.directories {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            for entry in entries.filter(|e| e.file_name().to_string_lossy().starts_with(prefix)) {
                // Renaming sets the time of the last change of the inode.
                let old = entry
                    .metadata()
                    .ok()
                    .and_then(|m| u64::try_from(m.ctime()).ok())
                    .map(|s| std::time::UNIX_EPOCH + Duration::from_secs(s))
                    .and_then(|then| then.elapsed().ok())
                    .is_some_and(|since| since > age);
                if old && let Err(error) = remove(&entry.path()) {
                    tracing::warn!("{error}");
                }
            }
        }
    }
}

/// An empty directory with owner, mode and extended attributes of another one.
fn make_like(path: &Path, model: &Path) -> Result<(), PlaceError> {
    let attributes = fs::symlink_metadata(model).map_err(failed(model, "looked at"))?;
    DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(failed(path, "made"))?;
    let set = || -> rustix::io::Result<()> {
        let flags =
            rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())?;
        let (uid, gid) = (Uid::from_raw(attributes.uid()), Gid::from_raw(attributes.gid()));
        rustix::fs::fchown(&directory, Some(uid), Some(gid))?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(attributes.mode() & 0o7777))?;
        let mut names = vec![0u8; XATTR_MAX];
        let length = rustix::fs::llistxattr(model, &mut names)?;
        names.truncate(length);
        for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
            let mut value = vec![0u8; XATTR_MAX];
            let length = rustix::fs::lgetxattr(model, name, &mut value)?;
            value.truncate(length);
            rustix::fs::fsetxattr(&directory, name, &value, XattrFlags::empty())?;
        }
        Ok(())
    };
    match set() {
        // A file system without extended attributes has none to carry over.
        Err(rustix::io::Errno::NOTSUP) | Ok(()) => Ok(()),
        Err(error) => Err(failed(path, "made")(error.into())),
    }
}

/// Makes a rename durable. Where that fails the rename itself has still happened, and recovery looks at what is there.
fn sync_parent(path: &Path) {
    if let Some(parent) = path.parent()
        && let Ok(directory) = fs::File::open(parent)
        && let Err(error) = directory.sync_all()
    {
        tracing::warn!("{} could not be synced: {error}", parent.display());
    }
}

/// Bytes and entries below a directory, its own file system only. `None` where a quick look is not enough to tell.
///
/// # Errors
/// What the file system says of the directory itself; what vanishes meanwhile does not count.
pub fn size(path: &Path) -> Result<Option<ElementSize>, PlaceError> {
    let Some(top) = look(path)? else {
        return Ok(None);
    };
    let begun = Instant::now();
    let mut size = ElementSize::default();
    let mut linked: HashSet<u64> = HashSet::new();
    let mut waiting: Vec<OsString> = vec![path.into()];
    while let Some(directory) = waiting.pop() {
        if begun.elapsed() > LOOK {
            return Ok(None);
        }
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            size.entries += 1;
            if metadata.dev() != top.dev() {
                continue;
            }
            if metadata.is_dir() {
                waiting.push(entry.path().into());
            } else if metadata.is_file() && (metadata.nlink() == 1 || linked.insert(metadata.ino())) {
                // Holes take nothing, neither there nor on the way.
                size.bytes += metadata.len().min(metadata.blocks().saturating_mul(512).max(1));
            }
        }
    }
    Ok(Some(size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn scene() -> (tempfile::TempDir, PathBuf, Asides) {
        let scene = tempfile::tempdir().unwrap();
        let element = scene.path().join("element");
        fs::create_dir(&element).unwrap();
        fs::set_permissions(&element, fs::Permissions::from_mode(0o1730)).unwrap();
        fs::write(element.join("old"), "old").unwrap();
        let asides = Asides {
            directories: vec!["/proc/nowhere".into(), scene.path().join("aside")],
        };
        (scene, element, asides)
    }

    #[test]
    fn a_key_that_leads_elsewhere_touches_nothing() {
        let (scene, element, asides) = scene();
        asides.set_aside(&element, "partial-a").unwrap();
        let outside = scene.path().join("outside");
        fs::create_dir(&outside).unwrap();
        for key in [
            "partial-a/../../outside",
            "../outside",
            "..",
            ".",
            "",
            "/etc",
            "a\0b",
        ] {
            for refused in [
                asides.put_back(&element, key).map(|_| ()),
                asides.set_aside(&element, key),
                asides.drop_aside(&element, key),
            ] {
                assert!(
                    matches!(refused, Err(PlaceError::Key { .. })),
                    "{key:?}: {refused:?}"
                );
            }
        }
        assert!(outside.is_dir() && element.is_dir());
    }

    #[test]
    fn what_makes_way_comes_back_as_it_was() {
        let (_scene, element, asides) = scene();
        for _ in 0..2 {
            asides.set_aside(&element, "k").unwrap();
            assert_eq!(fs::read_dir(&element).unwrap().count(), 0);
            assert_eq!(fs::metadata(&element).unwrap().mode() & 0o7777, 0o1730);
        }
        fs::write(element.join("new"), "new").unwrap();
        assert!(asides.put_back(&element, "k").unwrap());
        assert_eq!(fs::read_to_string(element.join("old")).unwrap(), "old");
        assert!(!element.join("new").exists());
        assert!(!asides.put_back(&element, "k").unwrap(), "it came back already");
        assert_eq!(fs::read_to_string(element.join("old")).unwrap(), "old");
    }

    #[test]
    fn a_crash_between_two_renames_is_gone_on_from() {
        let (scene, element, asides) = scene();
        asides.set_aside(&element, "k").unwrap();
        fs::remove_dir(&element).unwrap();
        asides.set_aside(&element, "k").unwrap();
        assert!(element.exists());
        // While putting back: the new content is in the trash, the old not yet in place.
        fs::rename(&element, scene.path().join("aside/k.trash")).unwrap();
        assert!(asides.put_back(&element, "k").unwrap());
        assert!(element.join("old").exists());
        assert!(!scene.path().join("aside/k.trash").exists());
    }

    #[test]
    fn what_is_dropped_or_old_does_not_come_back() {
        let (_scene, element, asides) = scene();
        asides.set_aside(&element, "partial-1").unwrap();
        asides.expire("partial-", Duration::from_secs(3600));
        asides.drop_aside(&element, "partial-1").unwrap();
        assert!(!asides.put_back(&element, "partial-1").unwrap());
    }

    #[test]
    fn without_a_directory_on_the_same_file_system_nothing_moves() {
        let (_scene, element, _) = scene();
        let asides = Asides {
            directories: vec!["/proc/nowhere".into()],
        };
        assert!(matches!(
            asides.set_aside(&element, "k"),
            Err(PlaceError::NoRoom { .. })
        ));
        assert!(element.join("old").exists());
    }

    #[test]
    fn sizes_count_links_once() {
        let (_scene, element, _) = scene();
        fs::write(element.join("a"), vec![1; 10_000]).unwrap();
        fs::hard_link(element.join("a"), element.join("b")).unwrap();
        let size = size(&element).unwrap().unwrap();
        assert_eq!((size.bytes, size.entries), (10_003, 3));
    }
}
