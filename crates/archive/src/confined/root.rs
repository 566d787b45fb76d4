//! A directory that nothing leads out of.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, openat, openat2, statat};
use rustix::io::Errno;

use super::error::{Doing as _, SystemError};
use crate::copy_rules::{asserts_directory, means_contents};
use crate::entry::Time;
use crate::path::{PathError, TreePath};

/// How often a path is tried whose directories are renamed while the kernel walks along it.
const ATTEMPTS: usize = 10_000;

/// What symbolic links on the way to a file mean. The last component of a path is never followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// What they mean in a container: absolute ones begin at the root, and `..` ends there.
    InRoot,
    /// They are followed as long as they stay below the root, otherwise they are an error.
    Beneath,
    /// They are an error.
    Refuse,
}

/// A directory that is the root of a tree.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    links: Links,
}

impl Root {
    /// The directory at this path of the host, where links are followed as usual.
    ///
    /// # Errors
    ///
    /// [`SystemError`] if it is none.
    pub fn open(path: &Path, links: Links) -> Result<Self, SystemError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .doing("open the directory", path.as_os_str().as_encoded_bytes())?;
        Ok(Self { fd, links })
    }

    /// The directory that this descriptor is open on.
    #[must_use]
    pub fn from_fd(fd: OwnedFd, links: Links) -> Self {
        Self { fd, links }
    }

    /// The directory at a path of this tree, all links followed, as the root of a tree of its own.
    ///
    /// # Errors
    ///
    /// [`SystemError`] if it is none.
    pub fn below(&self, path: &TreePath, links: Links) -> Result<Self, SystemError> {
        let fd = self
            .directory(path)
            .doing("open the directory", path.as_bytes())?;
        Ok(Self { fd, links })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens what is at a path; links before the last component are treated as [`Links`] says, and the last as `flags` say.
    pub(crate) fn resolve(&self, path: &TreePath, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::NO_MAGICLINKS
            | match self.links {
                Links::InRoot => ResolveFlags::IN_ROOT,
                Links::Beneath => ResolveFlags::BENEATH,
                Links::Refuse => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
            };
        let name = if path.is_root() { b"." } else { path.as_bytes() };
        let mut attempt = 0;
        loop {
            match openat2(&self.fd, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                // Something was renamed while `..` of a link was walked, so the kernel cannot tell whether it stayed below.
                Err(Errno::AGAIN | Errno::INTR) if attempt < ATTEMPTS => attempt += 1,
                result => return result,
            }
        }
    }

    /// A directory for the calls that take one and a name.
    pub(super) fn directory(&self, path: &TreePath) -> Result<OwnedFd, Errno> {
        self.resolve(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// What is at the path of a request, by docker's rules: the last component is followed only if `follow` says so or if
    /// the path ends with a slash or a dot, and then it must be a directory.
    pub(super) fn locate(&self, request: &[u8], follow: bool) -> Result<(OwnedFd, Stat), LocateError> {
        let path = TreePath::of_request(request)?;
        let mut flags = OFlags::PATH;
        let directory = asserts_directory(request) && !path.is_root();
        if directory {
            flags |= OFlags::DIRECTORY;
        }
        if !follow && !directory && !means_contents(request) {
            flags |= OFlags::NOFOLLOW;
        }
        let fd = self.resolve(&path, flags).doing("find", request)?;
        let stat = rustix::fs::fstat(&fd).doing("look at", request)?;
        Ok((fd, stat))
    }

    /// What docker's archive API says about a path.
    ///
    /// # Errors
    ///
    /// [`LocateError`]: code `archive.not-found` if there is nothing, `archive.not-a-directory` if the path says that it is
    /// one.
    pub fn stat(&self, request: &[u8]) -> Result<PathStat, LocateError> {
        let (fd, stat) = self.locate(request, false)?;
        let name = match TreePath::of_request(request)?.name() {
            _ if means_contents(request) => b".".to_vec(),
            Some(name) => name.to_vec(),
            None => b"/".to_vec(),
        };
        let link_target = if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            self.target_of(request, &fd)?
        } else {
            Vec::new()
        };
        Ok(PathStat {
            name,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode,
            mtime: mtime(&stat),
            link_target,
        })
    }

    /// The directory at a path is on a file system, or below a mount, that nothing can be written to.
    ///
    /// # Errors
    ///
    /// [`LocateError`].
    pub fn is_read_only(&self, request: &[u8]) -> Result<bool, LocateError> {
        let path = TreePath::of_request(request)?;
        let fd = self.directory(&path).doing("open the directory", request)?;
        let system = rustix::fs::fstatvfs(&fd).doing("look at", request)?;
        Ok(system.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
    }

    /// The path of the tree that a path leads to, all links followed.
    ///
    /// # Errors
    ///
    /// [`LocateError`].
    pub fn real_path(&self, request: &[u8]) -> Result<Vec<u8>, LocateError> {
        let path = TreePath::of_request(request)?;
        let fd = self.resolve(&path, OFlags::PATH).doing("find", request)?;
        let place = |fd: BorrowedFd<'_>| {
            rustix::fs::readlinkat(rustix::fs::CWD, proc_path(fd), Vec::new()).doing("find", request)
        };
        let (root, target) = (place(self.fd())?, place(fd.as_fd())?);
        let root = root.as_bytes().strip_suffix(b"/").unwrap_or(root.as_bytes());
        let inside = target.as_bytes().strip_prefix(root);
        Ok(inside.unwrap_or(target.as_bytes()).to_vec())
    }

    /// The beginning of a regular file, links followed.
    ///
    /// # Errors
    ///
    /// [`LocateError`].
    pub fn read_beginning(&self, request: &[u8], most: u64) -> Result<Vec<u8>, LocateError> {
        use std::io::Read as _;
        let path = TreePath::of_request(request)?;
        let fd = self
            .resolve(&path, OFlags::RDONLY | OFlags::NONBLOCK)
            .doing("open", request)?;
        let mut bytes = Vec::new();
        std::fs::File::from(fd)
            .take(most)
            .read_to_end(&mut bytes)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
            .doing("read", request)?;
        Ok(bytes)
    }

    /// The regular file at a path, to be read; none if there is anything else or nothing. A link that is the path itself is not
    /// followed.
    #[must_use]
    pub fn file(&self, path: &TreePath) -> Option<std::fs::File> {
        let fd = self.resolve(path, OFlags::PATH | OFlags::NOFOLLOW).ok()?;
        let stat = rustix::fs::fstat(&fd).ok()?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return None;
        }
        // The descriptor pins it: what is opened is what was looked at.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(proc_path(fd.as_fd()), flags, Mode::empty()).ok()?;
        Some(file.into())
    }

    /// The absolute path in the tree that a link leads to in the end; where it leads to nothing, its text made absolute.
    fn target_of(&self, request: &[u8], link: &OwnedFd) -> Result<Vec<u8>, LocateError> {
        let path = TreePath::of_request(request)?;
        let place = |fd: BorrowedFd<'_>| rustix::fs::readlinkat(rustix::fs::CWD, proc_path(fd), Vec::new());
        if let Ok(target) = self.resolve(&path, OFlags::PATH)
            && let (Ok(root), Ok(target)) = (place(self.fd()), place(target.as_fd()))
        {
            let root = root.as_bytes().strip_suffix(b"/").unwrap_or(root.as_bytes());
            if let Some(inside) = target.as_bytes().strip_prefix(root) {
                return Ok(if inside.is_empty() {
                    b"/".to_vec()
                } else {
                    inside.to_vec()
                });
            }
        }
        let text = rustix::fs::readlinkat(link, "", Vec::new()).doing("read the link", request)?;
        let text = text.into_bytes();
        let absolute = if text.starts_with(b"/") {
            text
        } else {
            [path.parent().unwrap_or_default().as_bytes(), b"/", &text].concat()
        };
        let target = TreePath::of_request(&absolute)?;
        Ok([b"/", target.as_bytes()].concat())
    }
}

/// A path that could not be found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocateError {
    /// It is no path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A system call failed.
    #[error(transparent)]
    System(#[from] SystemError),
}

impl tranship_core::fault::Explain for LocateError {
    fn code(&self) -> &'static str {
        match self {
            Self::Path(error) => error.code(),
            Self::System(error) => error.code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Path(error) => error.hint(),
            Self::System(error) => error.hint(),
        }
    }
}

/// What docker's archive API says about a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStat {
    /// The last element: `/` for the root, `.` for a path that ends with it.
    pub name: Vec<u8>,
    /// Bytes.
    pub size: u64,
    /// Type and permissions as `stat` gives them; [`go_mode`] makes docker's of it.
    pub mode: u32,
    /// Time of the last change of the content.
    pub mtime: Time,
    /// Where a link leads to in the end, as an absolute path of the tree; empty for what is none.
    pub link_target: Vec<u8>,
}

/// A mode in Go's bits, which docker's archive API speaks (`io/fs.FileMode`).
#[must_use]
pub fn go_mode(mode: u32) -> u32 {
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => 1 << 31,
        FileType::Symlink => 1 << 27,
        FileType::BlockDevice => 1 << 26,
        FileType::Fifo => 1 << 25,
        FileType::Socket => 1 << 24,
        FileType::CharacterDevice => 1 << 26 | 1 << 21,
        _ => 0,
    };
    let special = [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)];
    let special: u32 = special
        .iter()
        .filter(|(unix, _)| mode & unix != 0)
        .map(|(_, go)| go)
        .sum();
    kind | special | (mode & 0o777)
}

/// The time of the last change of the content.
pub(super) fn mtime(stat: &Stat) -> Time {
    Time {
        seconds: stat.st_mtime,
        nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    }
}

/// A path that leads to what a descriptor is open on, whatever happened to its name.
pub(super) fn proc_path(fd: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd as _;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// What a name in a directory is, links not followed; none if there is nothing.
pub(super) fn look(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether something is mounted at a name in a directory, in whatever namespace the directory is. The kernel itself refuses to
/// replace a mount point only in the caller's own namespace; elsewhere it would take the mount away.
pub(super) fn is_mount_point(directory: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(directory, name, flags, rustix::fs::StatxFlags::TYPE)?;
    let root = rustix::fs::StatxAttributes::MOUNT_ROOT;
    Ok(found.stx_attributes.contains(root))
}

/// Opens a name in a directory; a link is not followed.
pub(super) fn open_child(directory: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    openat(
        directory,
        name,
        flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}
