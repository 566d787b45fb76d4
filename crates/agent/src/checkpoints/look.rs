//! What the files of a container looked like when its memory was dumped.
//!
//! Memory goes on only with the files that it knows: a process that has half of a file in a buffer would write its other half into
//! what that became. So a checkpoint remembers a print of every place that its container may write to: names, kinds, owners,
//! modes, sizes, inodes and times of all files, which costs no reading of content. Times of directories are left out, since
//! a restore that failed may have made files there and removed them; what came or went shows by its name.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use serde::{Deserialize, Serialize};
use tranship_core::container::MountKind;
use tranship_core::storage::{ElementAt, ElementPlace};
use tranship_core::{ContainerSpec, EngineError, Fault};
use tranship_migrate::Ports;

use super::error::CheckpointError;

/// A place with more entries than this is not looked at.
const MOST_ENTRIES: u64 = 2_000_000;

/// A storage element, and what was in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Look {
    /// The element, by its names at the engine.
    pub(super) at: ElementAt,
    /// Print of its files. `None` where they could not be looked at.
    pub(super) print: Option<String>,
}

/// Why it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// To see what becomes of it. What processes wrote through shared mappings is written to the disk first: from then on every
    /// further write moves a file's time, which otherwise happens only at the first one.
    Dump,
    /// To see what became of it.
    Restore,
}

/// Everything that a container may write to and that outlives its processes.
fn elements_of(spec: &ContainerSpec) -> Vec<ElementAt> {
    let mut elements = vec![ElementAt::Layer {
        container: spec.id.clone(),
    }];
    for mount in &spec.mounts {
        match mount.kind {
            MountKind::Volume => elements.push(ElementAt::Volume {
                name: mount.name.clone(),
            }),
            // What it only reads is the host's business.
            MountKind::Bind if mount.writable => elements.push(ElementAt::Bind {
                path: mount.source.clone(),
            }),
            MountKind::Bind | MountKind::Tmpfs | MountKind::Other => {}
        }
    }
    elements.sort();
    elements.dedup();
    elements
}

/// Finds out before anything is done whether files can be looked at.
///
/// # Errors
/// `checkpoint.storage` where the container's layer is no directory here; what the engine says.
pub(super) async fn is_possible(ports: &Ports, spec: &ContainerSpec) -> Result<(), Fault> {
    for at in elements_of(spec) {
        match ports.directory(&at).await {
            Err(fault) if is_out_of_reach(&fault) && matches!(at, ElementAt::Layer { .. }) => {
                let error = CheckpointError::Storage {
                    container: spec.name.clone(),
                };
                return Err(Fault::of(&error).because(fault.to_string()));
            }
            Err(fault) if !is_out_of_reach(&fault) && !is_gone(&fault) => return Err(fault),
            _ => {}
        }
    }
    Ok(())
}

fn is_out_of_reach(fault: &Fault) -> bool {
    fault.code == "content.route"
}

fn is_gone(fault: &Fault) -> bool {
    fault.code.ends_with(".not-found")
}

/// Looks at everything that a container may write to and that outlives its processes.
///
/// # Errors
/// `content.route` where this process does not reach its layer; what the engine and the file system say.
pub(super) async fn at_files_of(
    ports: &Ports,
    spec: &ContainerSpec,
    moment: Moment,
) -> Result<Vec<Look>, Fault> {
    let volumes = ports.engine.volume_specs().await?;
    let mut looks = Vec::new();
    for at in elements_of(spec) {
        let elsewhere = |name: &String| {
            let of = volumes.iter().find(|volume| &volume.name == name);
            of.is_some_and(|volume| volume.data_elsewhere().is_some())
        };
        let print = match &at {
            // It is mounted only while its container runs.
            ElementAt::Volume { name } if elsewhere(name) => None,
            _ => print_of_element(ports, &at, moment).await?,
        };
        looks.push(Look { at, print });
    }
    Ok(looks)
}

async fn print_of_element(ports: &Ports, at: &ElementAt, moment: Moment) -> Result<Option<String>, Fault> {
    let path = match ports.directory(at).await {
        Ok(ElementPlace::Directory { path, .. }) => path,
        // Somebody removed a volume's directory, or a path of the host: that is a change like others.
        Err(fault) if is_gone(&fault) => return Ok(Some("gone".into())),
        Ok(ElementPlace::Archive { .. }) => return Ok(None),
        Err(fault) if is_out_of_reach(&fault) && !matches!(at, ElementAt::Layer { .. }) => return Ok(None),
        Err(fault) => return Err(fault),
    };
    let shown = path.clone();
    let looked = tokio::task::spawn_blocking(move || print(&path, moment));
    let looked = looked.await.map_err(|error| {
        Fault::from(EngineError::Uncertain {
            action: format!("look at {at}"),
            message: error.to_string(),
        })
    })?;
    looked.map_err(|error| Fault::from(CheckpointError::io(shown, "looked at", error)))
}

/// In which elements the files are not what they were, or cannot be compared any more. Those that could not be compared from the
/// beginning are not told.
pub(super) fn changes(before: &[Look], now: &[Look]) -> Vec<String> {
    let known = |looks: &[Look], at: &ElementAt| {
        let look = looks.iter().find(|look| &look.at == at);
        look.map(|look| look.print.clone())
    };
    let mut changed: Vec<String> = Vec::new();
    for look in before.iter().chain(now) {
        let differ = match (known(before, &look.at), known(now, &look.at)) {
            (Some(Some(before)), Some(Some(now))) => before != now,
            (Some(None), Some(_)) => false,
            _ => true,
        };
        let shown = look.at.to_string();
        if differ && !changed.contains(&shown) {
            changed.push(shown);
        }
    }
    changed
}

/// The print of a directory and all that is in it, or of a file. `None` if that is too much, if something else is mounted in it, or if
/// times say too little there.
fn print(root: &Path, moment: Moment) -> io::Result<Option<String>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = match rustix::fs::open(root, flags, Mode::empty()) {
        Ok(top) => top,
        Err(rustix::io::Errno::NOENT) => return Ok(Some("gone".into())),
        Err(error) => return Err(error.into()),
    };
    if !settle(root, &top, moment)? {
        return Ok(None);
    }
    let mut hasher = blake3::Hasher::new();
    let mut entries = 0;
    let mount = rustix::fs::statx(&top, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id;
    // The top itself, then directories that are yet to be entered, by their paths below it.
    let mut todo = Vec::new();
    if note(&mut hasher, &top, OsStr::new(""), Path::new(""), mount)? == Noted::Directory {
        todo.push(PathBuf::new());
    }
    while let Some(directory) = todo.pop() {
        let (opened, names) = match names_in(&top, &directory)? {
            Names::These(opened, names) => (opened, names),
            Names::Elsewhere => return Ok(None),
            Names::Gone => {
                hasher.update(b"gone\0");
                continue;
            }
        };
        for name in names {
            entries += 1;
            if entries > MOST_ENTRIES {
                return Ok(None);
            }
            let name = OsStr::from_bytes(&name);
            let path = directory.join(name);
            match note(&mut hasher, &opened, name, &path, mount)? {
                Noted::Directory => todo.push(path),
                Noted::Elsewhere => return Ok(None),
                Noted::Other => {}
            }
        }
    }
    Ok(Some(hasher.finalize().to_hex().to_string()))
}

/// File systems that keep files in memory alone: nothing is ever written back there, and times of files that are mapped say nothing.
const IN_MEMORY: [u64; 3] = [0x0102_1994, 0x8584_58f6, 0x9584_58f6];

/// Writes back what was written through shared mappings. Says whether times of files tell of writes at all there.
fn settle(root: &Path, top: &OwnedFd, moment: Moment) -> io::Result<bool> {
    let kind = u64::try_from(rustix::fs::fstatfs(top)?.f_type).unwrap_or_default();
    if IN_MEMORY.contains(&kind) {
        return Ok(false);
    }
    let found = FileType::from_raw_mode(rustix::fs::fstat(top)?.st_mode);
    if moment == Moment::Dump && matches!(found, FileType::Directory | FileType::RegularFile) {
        // What is opened as a path alone cannot be written back.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::syncfs(rustix::fs::open(root, flags, Mode::empty())?)?;
    }
    Ok(true)
}

/// What is in a directory.
enum Names {
    /// These, sorted.
    These(OwnedFd, Vec<Vec<u8>>),
    /// It is gone again.
    Gone,
    /// Something else is mounted on it.
    Elsewhere,
}

/// The names in a directory.
fn names_in(top: &OwnedFd, directory: &Path) -> io::Result<Names> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = if directory.as_os_str().is_empty() {
        Path::new(".")
    } else {
        directory
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let opened = match rustix::fs::openat2(top, path, flags, Mode::empty(), resolve) {
        Ok(opened) => opened,
        Err(rustix::io::Errno::XDEV) => return Ok(Names::Elsewhere),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(Names::Gone),
        Err(error) => return Err(error.into()),
    };
    let mut names = Vec::new();
    for entry in Dir::read_from(&opened)? {
        let name = entry?.file_name().to_owned().into_bytes();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(Names::These(opened, names))
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Noted {
    /// A directory.
    Directory,
    /// Something else is mounted on it.
    Elsewhere,
    /// All else.
    Other,
}

/// Takes one entry into the print.
fn note(
    hasher: &mut blake3::Hasher,
    at: &OwnedFd,
    name: &OsStr,
    path: &Path,
    mount: u64,
) -> io::Result<Noted> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    let about = match rustix::fs::statx(at, name, flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID) {
        Ok(about) => about,
        // Another container may write to a volume that it shares with this one.
        Err(rustix::io::Errno::NOENT) => return Ok(Noted::Other),
        Err(error) => return Err(error.into()),
    };
    // Kernels before 5.8 do not say; there only directories show it.
    if about.stx_mnt_id != mount {
        return Ok(Noted::Elsewhere);
    }
    let path = path.as_os_str().to_owned().into_vec();
    hasher.update(&(path.len() as u64).to_le_bytes());
    hasher.update(&path);
    let mut number = |number: u64| {
        hasher.update(&number.to_le_bytes());
    };
    number(about.stx_mode.into());
    number(about.stx_uid.into());
    number(about.stx_gid.into());
    number((u64::from(about.stx_rdev_major) << 32) | u64::from(about.stx_rdev_minor));
    let kind = FileType::from_raw_mode(about.stx_mode.into());
    // A directory that was removed and made again hides what the image has below it.
    if matches!(
        kind,
        FileType::RegularFile | FileType::Symlink | FileType::Directory
    ) {
        number(about.stx_ino);
    }
    if matches!(kind, FileType::RegularFile | FileType::Symlink) {
        number(about.stx_size);
        number(about.stx_nlink.into());
        for time in [about.stx_mtime, about.stx_ctime] {
            number(time.tv_sec.cast_unsigned());
            number(time.tv_nsec.into());
        }
    }
    Ok(if kind == FileType::Directory {
        Noted::Directory
    } else {
        Noted::Other
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let path = root.path();
        std::fs::create_dir_all(path.join("a/b")).unwrap();
        std::fs::write(path.join("a/b/file"), b"content").unwrap();
        std::fs::write(path.join("other"), b"x").unwrap();
        std::os::unix::fs::symlink("/etc", path.join("link")).unwrap();
        root
    }

    fn of(root: &tempfile::TempDir) -> String {
        print(root.path(), Moment::Restore).unwrap().unwrap()
    }

    #[test]
    fn what_stands_still_has_the_same_print() {
        let root = tree();
        let before = of(&root);
        std::fs::read(root.path().join("other")).unwrap();
        // As a restore does that fails.
        std::fs::write(root.path().join("a/temporary"), b"x").unwrap();
        std::fs::remove_file(root.path().join("a/temporary")).unwrap();
        assert_eq!(of(&root), before);
    }

    #[test]
    fn every_change_shows() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 7] = [
            ("content of the same length", |root| {
                std::fs::write(root.join("a/b/file"), b"CONTENT").unwrap();
            }),
            ("another file of its name", |root| {
                std::fs::write(root.join("new"), b"x").unwrap();
                std::fs::rename(root.join("new"), root.join("other")).unwrap();
            }),
            ("a new file", |root| {
                std::fs::write(root.join("a/n"), b"").unwrap()
            }),
            ("a file that is gone", |root| {
                std::fs::remove_file(root.join("other")).unwrap();
            }),
            ("another name", |root| {
                std::fs::rename(root.join("other"), root.join("more")).unwrap();
            }),
            ("another mode of a directory", |root| {
                use std::os::unix::fs::PermissionsExt as _;
                std::fs::set_permissions(root.join("a"), std::fs::Permissions::from_mode(0o700)).unwrap();
            }),
            ("another link", |root| {
                std::fs::remove_file(root.join("link")).unwrap();
                std::os::unix::fs::symlink("/usr", root.join("link")).unwrap();
            }),
        ];
        for (what, change) in changes {
            let root = tree();
            let before = of(&root);
            // The clock of file times goes in steps of a few milliseconds.
            std::thread::sleep(std::time::Duration::from_millis(20));
            change(root.path());
            assert_ne!(of(&root), before, "{what}");
        }
    }

    #[test]
    fn a_file_or_nothing_has_a_print_too() {
        let root = tree();
        let file = print(&root.path().join("other"), Moment::Dump).unwrap();
        assert!(file.is_some());
        assert_ne!(file, print(&root.path().join("a/b/file"), Moment::Dump).unwrap());
        assert_eq!(
            print(&root.path().join("nothing"), Moment::Restore)
                .unwrap()
                .as_deref(),
            Some("gone")
        );
    }

    #[test]
    fn what_lies_in_memory_or_has_something_mounted_in_it_has_none() {
        assert_eq!(print(Path::new("/dev/shm"), Moment::Dump).unwrap(), None);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        if mounts.contains(" /sys/fs/cgroup ") {
            assert_eq!(print(Path::new("/sys/fs"), Moment::Restore).unwrap(), None);
        }
    }

    #[test]
    fn changes_are_named_and_what_was_not_seen_is_not() {
        let look = |name: &str, print: Option<&str>| Look {
            at: ElementAt::Volume { name: name.into() },
            print: print.map(str::to_owned),
        };
        let before = [
            look("same", Some("1")),
            look("other", Some("1")),
            look("unseen", None),
            look("missing", Some("1")),
            look("lost", Some("1")),
        ];
        let now = [
            look("same", Some("1")),
            look("other", Some("2")),
            look("unseen", Some("1")),
            look("new", Some("1")),
            look("lost", None),
        ];
        assert_eq!(
            changes(&before, &now),
            ["volume other", "volume missing", "volume lost", "volume new"]
        );
    }
}
