//! The root that is written, and the staging directory beside it: the only two places where a sink writes.
//!
//! Every directory is opened from the descriptor of the one above it, component by component or by `openat2`, never through a
//! symbolic link and never onto another mount. Whoever swaps names meanwhile gets an error and no write outside.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

use super::error::{SinkError, failed};
use super::refusal::refused;
use super::remove;
use super::room::Room;

/// Name of the staging directory where it has to be inside the root. A scan leaves it out, at the root only.
pub const STAGING_NAME: &str = ".tranship-staging";
/// Longest path given to one system call.
const STRIDE: usize = 4000;

/// How directories are opened.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The root and its staging directory. Shared by the threads of a round.
pub(super) struct Place {
    root: OwnedFd,
    staging: OnceLock<OwnedFd>,
    name: Vec<u8>,
    outside: Mutex<Option<OwnedFd>>,
    displaced: Mutex<HashSet<u128>>,
    /// The root is the upper directory of an overlay.
    pub(super) overlay: bool,
    /// Looks after memory where the root lies there.
    pub(super) room: Option<Arc<Room>>,
}

/// The name of `path` in staging.
pub(super) struct StagedName {
    key: u128,
    name: [u8; 32],
}

impl StagedName {
    pub(super) fn of(path: &[u8]) -> Self {
        let key = xxhash_rust::xxh3::xxh3_128(path);
        let mut name = [0; 32];
        for (at, byte) in name.iter_mut().enumerate() {
            *byte = b"0123456789abcdef"[(key >> (124 - 4 * at)) as usize & 15];
        }
        Self { key, name }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.name
    }
}

/// Opens a directory that may be anywhere, following symbolic links: for roots that the operator named.
pub(super) fn open_root(path: &Path) -> Result<OwnedFd, SinkError> {
    use std::os::unix::ffi::OsStrExt as _;
    rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|source| SinkError::Io {
        path: super::error::shown(path.as_os_str().as_bytes()),
        doing: "open",
        source,
    })
}

/// Opens what is at a relative path below `directory` without leaving it.
pub(super) fn open_beneath(
    directory: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    loop {
        match rustix::fs::openat2(directory, path, flags | OFlags::CLOEXEC, mode, resolve) {
            // A rename somewhere on the system got in between; or a signal.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Opens a directory at any depth, even where its path is longer than the kernel takes at once.
pub(super) fn open_directory(from: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let mut rest = path;
    let mut at: Option<OwnedFd> = None;
    loop {
        let (now, later) = if rest.len() <= STRIDE {
            (rest, &[][..])
        } else {
            let cut = rest[..STRIDE]
                .iter()
                .rposition(|&byte| byte == b'/')
                .ok_or(Errno::NAMETOOLONG)?;
            (&rest[..cut], &rest[cut + 1..])
        };
        let now = if now.is_empty() { b"." } else { now };
        let next = open_beneath(
            at.as_ref().map_or(from, AsFd::as_fd),
            now,
            DIRECTORY,
            Mode::empty(),
        )?;
        if later.is_empty() {
            return Ok(next);
        }
        rest = later;
        at = Some(next);
    }
}

/// Directory and name of a path.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

impl Place {
    /// Opens the root, and removes what an earlier round left in staging.
    pub(super) fn open(path: &Path, overlay: bool) -> Result<Self, SinkError> {
        use std::os::unix::ffi::OsStrExt as _;
        let root = open_root(path)?;
        // The same name in every round, so that leftovers are found.
        let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let key = xxhash_rust::xxh3::xxh3_64(real.as_os_str().as_bytes());
        let name = format!("{STAGING_NAME}-{key:016x}").into_bytes();
        let outside = beside(root.as_fd());
        let place = Self {
            room: Room::of(&root).map(Arc::new),
            root,
            staging: OnceLock::new(),
            name,
            outside: Mutex::new(outside),
            displaced: Mutex::new(HashSet::new()),
            overlay,
        };
        place.clean()?;
        Ok(place)
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Removes staging with all that is in it. `true` if it was inside the root, whose time then changed.
    pub(super) fn clean(&self) -> Result<bool, SinkError> {
        if let Some(outside) = lock(&self.outside).as_ref() {
            match remove::tree(outside.as_fd(), &self.name) {
                // There cannot be anything of ours then.
                Ok(_) | Err(Errno::ROFS | Errno::ACCESS) => {}
                Err(error) => return Err(failed(&self.name, "remove", error)),
            }
        }
        match remove::tree(self.root(), STAGING_NAME.as_bytes()) {
            Ok(found) => Ok(found),
            Err(Errno::ROFS) => Ok(false),
            Err(error) => Err(failed(STAGING_NAME.as_bytes(), "remove", error)),
        }
    }

    /// Staging is there already.
    pub(super) fn has_staging(&self) -> bool {
        self.staging.get().is_some()
    }

    /// The staging directory, made now if it is not there yet.
    pub(super) fn staging(&self) -> Result<BorrowedFd<'_>, SinkError> {
        if let Some(staging) = self.staging.get() {
            return Ok(staging.as_fd());
        }
        let outside = lock(&self.outside);
        if let Some(staging) = self.staging.get() {
            return Ok(staging.as_fd());
        }
        let made = match outside.as_ref().map(|outside| self.make_outside(outside.as_fd())) {
            Some(Ok(staging)) => staging,
            Some(Err(error @ (Errno::NOSPC | Errno::DQUOT))) => {
                return Err(failed(&self.name, "make", error));
            }
            _ => {
                let name = STAGING_NAME.as_bytes();
                make_private(self.root(), name).map_err(|error| failed(name, "make", error))?
            }
        };
        Ok(self.staging.get_or_init(|| made).as_fd())
    }

    /// Makes staging beside the root and proves that files can go from there to here: quotas of projects forbid it sometimes.
    fn make_outside(&self, outside: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        let made = make_private(outside, &self.name)?;
        let probe = || {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            drop(rustix::fs::openat(&made, c"probe", flags, Mode::RUSR)?);
            rustix::fs::renameat_with(&made, c"probe", &self.root, STAGING_NAME, RenameFlags::NOREPLACE)?;
            rustix::fs::unlinkat(&self.root, STAGING_NAME, AtFlags::empty())
        };
        if let Err(error) = probe() {
            remove::tree(outside, &self.name)?;
            return Err(error);
        }
        Ok(made)
    }

    /// Moves what is at `name` in `directory` to staging, where it stays until the end of the round. `path` is its whole path.
    pub(super) fn displace(
        &self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
    ) -> Result<(), SinkError> {
        let staged = StagedName::of(path);
        let staging = self.staging()?;
        let mut displaced = lock(&self.displaced);
        rustix::fs::renameat_with(directory, name, staging, staged.bytes(), RenameFlags::NOREPLACE)
            .map_err(|error| refused(directory, name, path, "move away", error))?;
        displaced.insert(staged.key);
        Ok(())
    }

    /// Puts the staged file of `path` under its name. What was there comes to be in staging in its stead.
    pub(super) fn exchange(
        &self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        staged: &StagedName,
    ) -> Result<(), SinkError> {
        let staging = self.staging()?;
        let mut displaced = lock(&self.displaced);
        let swap = |flags| rustix::fs::renameat_with(staging, staged.bytes(), directory, name, flags);
        match swap(RenameFlags::EXCHANGE) {
            Ok(()) => {
                displaced.insert(staged.key);
                Ok(())
            }
            Err(Errno::NOENT) => swap(RenameFlags::NOREPLACE)
                .map_err(|error| refused(directory, name, path, "put in place", error)),
            Err(Errno::INVAL | Errno::NOSYS) => {
                // A file system that cannot exchange: two steps, between which the name is missing.
                let mut aside = staged.bytes().to_vec();
                aside.extend_from_slice(b".old");
                let step = |from: BorrowedFd<'_>, old: &[u8], to: BorrowedFd<'_>, new: &[u8]| {
                    rustix::fs::renameat(from, old, to, new)
                        .map_err(|error| failed(path, "put in place", error))
                };
                step(directory, name, staging, &aside)?;
                step(staging, staged.bytes(), directory, name)?;
                step(staging, &aside, staging, staged.bytes())?;
                displaced.insert(staged.key);
                Ok(())
            }
            Err(error) => Err(refused(directory, name, path, "put in place", error)),
        }
    }

    /// Opens a regular file of the base for reading, as it was at the beginning of the round.
    pub(super) fn open_base(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let displaced = lock(&self.displaced);
        if let (false, Some(staging)) = (displaced.is_empty(), self.staging.get()) {
            let mut ends = path
                .iter()
                .enumerate()
                .filter(|(_, byte)| **byte == b'/')
                .map(|(at, _)| at);
            loop {
                let end = ends.next();
                let prefix = &path[..end.unwrap_or(path.len())];
                let staged = StagedName::of(prefix);
                if displaced.contains(&staged.key) {
                    let Some(end) = end else {
                        return regular(open_beneath(
                            staging.as_fd(),
                            staged.bytes(),
                            flags,
                            Mode::empty(),
                        )?);
                    };
                    let directory = open_directory(staging.as_fd(), staged.bytes())?;
                    let (parent, name) = split(&path[end + 1..]);
                    let parent = open_directory(directory.as_fd(), parent)?;
                    return regular(open_beneath(parent.as_fd(), name, flags, Mode::empty())?);
                }
                if end.is_none() {
                    break;
                }
            }
        }
        if path.len() <= STRIDE {
            return regular(open_beneath(self.root(), path, flags, Mode::empty())?);
        }
        let (parent, name) = split(path);
        let parent = open_directory(self.root(), parent)?;
        regular(open_beneath(parent.as_fd(), name, flags, Mode::empty())?)
    }
}

fn regular(file: OwnedFd) -> Result<OwnedFd, Errno> {
    let stat = rustix::fs::fstat(&file)?;
    if stat.st_mode & 0o170_000 == 0o100_000 {
        Ok(file)
    } else {
        Err(Errno::INVAL)
    }
}

fn make_private(directory: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(directory, name, Mode::RWXU) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            remove::tree(directory, name)?;
            rustix::fs::mkdirat(directory, name, Mode::RWXU)?;
        }
        Err(error) => return Err(error),
    }
    open_beneath(directory, name, DIRECTORY, Mode::empty())
}

/// The directory above the root, if it is on the same mount, so that names can go from one to the other.
fn beside(root: BorrowedFd<'_>) -> Option<OwnedFd> {
    let above = rustix::fs::openat(root, c"..", DIRECTORY, Mode::empty()).ok()?;
    let mount = |fd: BorrowedFd<'_>| {
        let stat =
            rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID | StatxFlags::INO).ok()?;
        let known = stat.stx_mask & StatxFlags::MNT_ID.bits() != 0;
        known.then_some((stat.stx_mnt_id, stat.stx_ino))
    };
    let (here, there) = (mount(root)?, mount(above.as_fd())?);
    (here.0 == there.0 && here.1 != there.1).then_some(above)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a directory for writing in it from the descriptor of the one above.
pub(super) fn open_child(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    open_beneath(parent, name, DIRECTORY, Mode::empty())
}
