//! System calls of a scan. All go relative to open directories and follow no link.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use super::{ScanError, error::shown};
use crate::entry::Timestamp;
use crate::tree::Facts;

/// What an entry is, as `stat` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// What `stat` says about an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) kind: Kind,
    /// Permission bits; 0 for symlinks.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) nlink: u32,
    pub(crate) device: (u32, u32),
    /// Number of the mount that it is on.
    pub(crate) mount: u64,
}

impl Stat {
    /// Whether nothing that a reader could notice changed between two looks at the same inode.
    pub(crate) fn same_state(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.ino == other.ino
            && self.dev == other.dev
            && self.size == other.size
            && self.ctime == other.ctime
            && self.mtime == other.mtime
    }

    /// The facts to keep, with the time when the scan began that read it.
    pub(crate) fn facts(&self, read: Option<Timestamp>) -> Facts {
        Facts {
            dev: self.dev,
            ino: self.ino,
            ctime: self.ctime,
            nlink: self.nlink,
            read,
        }
    }

    /// Deletion in an overlay's upper directory.
    pub(crate) fn is_whiteout(&self) -> bool {
        self.kind == Kind::CharDevice && self.device == (0, 0)
    }
}

const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::MNT_ID);

/// Looks at `name` in a directory.
pub(crate) fn stat_at(directory: impl AsFd, name: &[u8]) -> Result<Stat, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    Ok(from_statx(&fs::statx(directory, name, flags, WANTED)?))
}

/// Looks at what is open.
pub(crate) fn stat_of(file: impl AsFd) -> Result<Stat, Errno> {
    Ok(from_statx(&fs::statx(file, c"", AtFlags::EMPTY_PATH, WANTED)?))
}

fn from_statx(raw: &fs::Statx) -> Stat {
    let kind = match FileType::from_raw_mode(u32::from(raw.stx_mode)) {
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::CharDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        _ => Kind::File,
    };
    let time = |raw: fs::StatxTimestamp| Timestamp {
        seconds: raw.tv_sec,
        nanos: raw.tv_nsec.min(999_999_999),
    };
    Stat {
        kind,
        mode: if kind == Kind::Symlink {
            0
        } else {
            u32::from(raw.stx_mode) & 0o7777
        },
        uid: raw.stx_uid,
        gid: raw.stx_gid,
        size: raw.stx_size,
        mtime: time(raw.stx_mtime),
        ctime: time(raw.stx_ctime),
        dev: u64::from(raw.stx_dev_major) << 32 | u64::from(raw.stx_dev_minor),
        ino: raw.stx_ino,
        nlink: raw.stx_nlink,
        device: (raw.stx_rdev_major, raw.stx_rdev_minor),
        mount: raw.stx_mnt_id,
    }
}

/// The directory that is scanned.
#[derive(Debug)]
pub(crate) struct Root {
    pub(crate) fd: OwnedFd,
    pub(crate) stat: Stat,
    /// Its file system never says that mapped memory was written to (see [`super::mapped`]).
    pub(crate) silent: bool,
}

impl Root {
    pub(crate) fn open(path: &Path) -> Result<Self, ScanError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let named = path.as_os_str().as_encoded_bytes();
        let fd = fs::open(path, flags, Mode::empty()).map_err(|error| match error {
            Errno::NOTDIR => ScanError::NotDirectory { path: shown(named) },
            error => ScanError::io("open", named, error),
        })?;
        let stat = stat_of(&fd).map_err(|error| ScanError::io("look at", named, error))?;
        let silent = is_in_memory(&fd);
        Ok(Self { fd, stat, silent })
    }

    /// Whether an entry is still on the mount that is scanned: neither another file system nor a bind mount.
    pub(crate) fn holds(&self, stat: &Stat) -> bool {
        stat.mount == self.stat.mount && (stat.kind != Kind::Directory || stat.dev == self.stat.dev)
    }
}

/// Opens a directory in another one.
pub(crate) fn open_directory(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    fs::openat(parent, name, flags, Mode::empty())
}

/// Opens a regular file in a directory; what is none any more has gone. Reading it leaves its access time alone where that is
/// allowed.
///
/// Whoever writes to the tree may put a device in the file's place at any moment, and opening a device does things: a watchdog
/// begins to count. So the file is held first, without opening it, and what is opened is what is held.
pub(crate) fn open_file(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let held = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = fs::openat(&parent, name, held, Mode::empty())?;
    let mode = fs::fstat(&held)?.st_mode;
    if !fs::FileType::from_raw_mode(mode).is_file() {
        return Err(Errno::NOENT);
    }
    let way = format!("/proc/self/fd/{}", held.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    match fs::open(&way, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => fs::open(&way, flags, Mode::empty()),
        other => other,
    }
}

/// Extended attributes in ascending order of names.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Reads the extended attributes of something open.
pub(crate) fn xattrs_of(file: impl AsFd, path: &[u8], overlay: bool) -> Result<Xattrs, ScanError> {
    read_xattrs(
        path,
        overlay,
        |buffer| fs::flistxattr(&file, buffer),
        |name, buffer| fs::fgetxattr(&file, name, buffer),
    )
}

/// Reads the extended attributes of what cannot be opened without effects: links, pipes, sockets, devices.
pub(crate) fn xattrs_at(
    directory: &OwnedFd,
    name: &[u8],
    path: &[u8],
    overlay: bool,
) -> Result<Xattrs, ScanError> {
    let mut at = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    at.extend_from_slice(name);
    read_xattrs(
        path,
        overlay,
        |buffer| fs::llistxattr(at.as_slice(), buffer),
        |name, buffer| fs::lgetxattr(at.as_slice(), name, buffer),
    )
}

fn read_xattrs(
    path: &[u8],
    overlay: bool,
    list: impl Fn(&mut [u8]) -> Result<usize, Errno>,
    get: impl Fn(&[u8], &mut [u8]) -> Result<usize, Errno>,
) -> Result<Xattrs, ScanError> {
    let mut small = [0; 256];
    let mut large = Vec::new();
    let names: &[u8] = match list(&mut small) {
        Ok(0) | Err(Errno::NOTSUP | Errno::NOSYS) => return Ok(Vec::new()),
        Ok(length) => &small[..length],
        Err(Errno::RANGE) => {
            large.resize(64 << 10, 0);
            let length =
                list(&mut large).map_err(|error| ScanError::io("list the attributes of", path, error))?;
            &large[..length]
        }
        Err(error) => return Err(ScanError::io("list the attributes of", path, error)),
    };
    let mut found = Vec::new();
    let mut buffer = vec![0; 1024];
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if !travels(name, path, overlay)? {
            continue;
        }
        let length = loop {
            match get(name, &mut buffer) {
                Ok(length) => break Some(length),
                Err(Errno::RANGE) if buffer.len() < 64 << 10 => buffer.resize(64 << 10, 0),
                // It went away since it was listed; the change of ctime will tell.
                Err(Errno::NODATA) => break None,
                Err(error) => return Err(ScanError::io("read an attribute of", path, error)),
            }
        };
        if let Some(length) = length {
            found.push((name.to_vec(), buffer[..length].to_vec()));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether an extended attribute is part of an entry.
fn travels(name: &[u8], path: &[u8], overlay: bool) -> Result<bool, ScanError> {
    // Labels of this machine's security modules, which the other machine's engine gives anew; and signatures that are bound to
    // the inode.
    let label = [
        &b"security.selinux"[..],
        b"security.SMACK64",
        b"security.apparmor",
        b"security.ima",
        b"security.evm",
    ];
    if label.iter().any(|prefix| name.starts_with(prefix)) {
        return Ok(false);
    }
    if overlay {
        let inner = name
            .strip_prefix(b"trusted.overlay.")
            .or_else(|| name.strip_prefix(b"user.overlay."));
        match inner {
            // Where the file was copied up from and other notes that mean something on that file system only.
            Some(b"origin" | b"impure" | b"nlink" | b"uuid" | b"upper") => return Ok(false),
            Some(b"redirect" | b"metacopy") => {
                return Err(ScanError::DependsOnLower {
                    path: shown(path),
                    attribute: String::from_utf8_lossy(name).into_owned(),
                });
            }
            _ => {}
        }
    }
    Ok([&b"user."[..], b"trusted.", b"security.", b"system.posix_acl_"]
        .iter()
        .any(|prefix| name.starts_with(prefix)))
}

/// Names in a directory, sorted, in one piece of memory: about 12 bytes each besides the name itself.
#[derive(Debug, Default)]
pub(crate) struct Names {
    bytes: Vec<u8>,
    /// Where each begins, its length and its type.
    names: Vec<(u32, u8, FileType)>,
}

impl Names {
    pub(crate) fn read(
        directory: &OwnedFd,
        path: &[u8],
        buffer: &mut [MaybeUninit<u8>],
    ) -> Result<Self, ScanError> {
        let mut found = Self::default();
        let mut raw = fs::RawDir::new(directory, buffer);
        while let Some(entry) = raw.next() {
            let entry = entry.map_err(|error| ScanError::io("list", path, error))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let start =
                u32::try_from(found.bytes.len()).map_err(|_| ScanError::io("list", path, Errno::OVERFLOW))?;
            // Names have 255 bytes at most.
            found
                .names
                .push((start, name.len().min(255) as u8, entry.file_type()));
            found.bytes.extend_from_slice(name);
        }
        let bytes = &found.bytes;
        let name = |&(start, length, _): &(u32, u8, FileType)| {
            &bytes[start as usize..start as usize + usize::from(length)]
        };
        found.names.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        Ok(found)
    }

    pub(crate) fn get(&self, at: usize) -> Option<(&[u8], FileType)> {
        let (start, length, kind) = *self.names.get(at)?;
        let start = start as usize;
        Some((&self.bytes[start..start + usize::from(length)], kind))
    }
}

/// Whether a file system keeps what it holds in memory: tmpfs, ramfs, hugetlbfs.
pub(crate) fn is_in_memory(directory: &OwnedFd) -> bool {
    fs::fstatfs(directory)
        .is_ok_and(|found| [0x0102_1994, 0x8584_58f6, 0x958_458f6].contains(&(found.f_type as u64)))
}
