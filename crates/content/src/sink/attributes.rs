//! Owner, mode, extended attributes and times of what is written, and the proof that they are what was asked for.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

use super::error::{SinkError, failed, shown};
use crate::entry::{Entry, EntryKind, Timestamp};

/// Something whose attributes are set.
#[derive(Clone, Copy)]
pub(super) enum Node<'a> {
    /// A file or directory that is open.
    Open(BorrowedFd<'a>),
    /// Anything, by an `O_PATH` descriptor: nothing can take its place, and opening it had no effect.
    Path(BorrowedFd<'a>),
}

/// A name that leads to the very thing that a descriptor stands for. The kernel follows it to the inode without looking at any
/// path, and does not follow it further if that inode is a symbolic link.
fn magic(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

impl Node<'_> {
    fn stat(self) -> Result<Stat, Errno> {
        match self {
            Self::Open(fd) | Self::Path(fd) => rustix::fs::fstat(fd),
        }
    }

    fn chown(self, uid: u32, gid: u32) -> Result<(), Errno> {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match self {
            Self::Open(fd) => rustix::fs::fchown(fd, uid, gid),
            Self::Path(fd) => rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH),
        }
    }

    fn chmod(self, mode: u32) -> Result<(), Errno> {
        let mode = Mode::from_raw_mode(mode);
        match self {
            Self::Open(fd) => rustix::fs::fchmod(fd, mode),
            Self::Path(fd) => rustix::fs::chmod(magic(fd), mode),
        }
    }

    fn utimes(self, mtime: Timestamp) -> Result<(), Errno> {
        let times = Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            },
            last_modification: Timespec {
                tv_sec: mtime.seconds,
                tv_nsec: i64::from(mtime.nanos),
            },
        };
        match self {
            Self::Open(fd) => rustix::fs::futimens(fd, &times),
            Self::Path(fd) => rustix::fs::utimensat(rustix::fs::CWD, magic(fd), &times, AtFlags::empty()),
        }
    }

    fn list(self, buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Open(fd) => rustix::fs::flistxattr(fd, buffer),
            Self::Path(fd) => rustix::fs::listxattr(magic(fd), buffer),
        }
    }

    fn get(self, name: &[u8], buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Open(fd) => rustix::fs::fgetxattr(fd, name, buffer),
            Self::Path(fd) => rustix::fs::getxattr(magic(fd), name, buffer),
        }
    }

    fn put(self, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        match self {
            Self::Open(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            Self::Path(fd) => rustix::fs::setxattr(magic(fd), name, value, XattrFlags::empty()),
        }
    }

    fn drop(self, name: &[u8]) -> Result<(), Errno> {
        match self {
            Self::Open(fd) => rustix::fs::fremovexattr(fd, name),
            Self::Path(fd) => rustix::fs::removexattr(magic(fd), name),
        }
    }

    /// Names in the order of the kernel.
    fn names(self) -> Result<Vec<Vec<u8>>, Errno> {
        let mut small = [0; 256];
        let mut large = Vec::new();
        let list = match self.list(&mut small) {
            Ok(length) => &small[..length],
            Err(Errno::RANGE) => {
                large.resize(64 << 10, 0);
                let length = self.list(&mut large)?;
                &large[..length]
            }
            Err(Errno::NOTSUP) => &[],
            Err(error) => return Err(error),
        };
        Ok(list
            .split(|&byte| byte == 0)
            .filter(|name| !name.is_empty())
            .map(<[u8]>::to_vec)
            .collect())
    }

    fn value(self, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let mut value = vec![0; 256];
        loop {
            match self.get(name, &mut value) {
                Ok(length) => {
                    value.truncate(length);
                    return Ok(value);
                }
                Err(Errno::RANGE) if value.len() < 64 << 10 => value.resize(64 << 10, 0),
                Err(error) => return Err(error),
            }
        }
    }
}

/// An extended attribute that may be there although nobody asked for it: what the machine's security modules and the overlay that is
/// mounted on it note for themselves.
fn is_local(name: &[u8], overlay: bool) -> bool {
    if let Some(rest) = name.strip_prefix(b"security.") {
        return rest != b"capability";
    }
    let inner = name
        .strip_prefix(b"trusted.overlay.")
        .or_else(|| name.strip_prefix(b"user.overlay."));
    overlay && matches!(inner, Some(b"origin" | b"impure" | b"nlink" | b"uuid" | b"upper"))
}

/// Sets all attributes of an entry and proves that they hold. `now` is what the node is like at this moment.
pub(super) fn set(node: Node<'_>, entry: &Entry, now: &Stat, overlay: bool) -> Result<Stat, SinkError> {
    let path = &entry.path;
    let chown = now.st_uid != entry.uid || now.st_gid != entry.gid;
    if chown {
        node.chown(entry.uid, entry.gid)
            .map_err(|error| refused(path, "set the owner", error))?;
    }
    // chown takes setuid and setgid away, so the mode comes after it; and it takes capabilities away, so they come later still.
    let symlink = is_symlink(now);
    if !symlink && (now.st_mode & 0o7777 != entry.mode || chown && entry.mode & 0o6000 != 0) {
        node.chmod(entry.mode)
            .map_err(|error| refused(path, "set the mode", error))?;
    }
    let mut again = false;
    let there = node
        .names()
        .map_err(|error| failed(path, "list the extended attributes of", error))?;
    if !there.is_empty() || !entry.xattrs.is_empty() {
        again = set_xattrs(node, entry, &there, overlay)?;
        if again && !symlink {
            // An inherited ACL makes the mode's group bits something else.
            let mode = node
                .stat()
                .map_err(|error| failed(path, "look at", error))?
                .st_mode
                & 0o7777;
            if mode != entry.mode {
                node.chmod(entry.mode)
                    .map_err(|error| refused(path, "set the mode", error))?;
            }
        }
    }
    node.utimes(entry.mtime)
        .map_err(|error| refused(path, "set the time", error))?;
    let stat = node.stat().map_err(|error| failed(path, "look at", error))?;
    check(entry, &stat)?;
    if again {
        check_xattrs(node, entry, overlay)?;
    }
    Ok(stat)
}

/// Sets the time alone: for a directory in which something was done, but which itself stays what it was.
pub(super) fn set_time(node: Node<'_>, entry: &Entry) -> Result<Stat, SinkError> {
    node.utimes(entry.mtime)
        .map_err(|error| refused(&entry.path, "set the time", error))?;
    let stat = node
        .stat()
        .map_err(|error| failed(&entry.path, "look at", error))?;
    check(entry, &stat)?;
    Ok(stat)
}

/// Makes the extended attributes those of the entry; `true` if that took anything.
fn set_xattrs(node: Node<'_>, entry: &Entry, there: &[Vec<u8>], overlay: bool) -> Result<bool, SinkError> {
    let path = &entry.path;
    let mut changed = false;
    for name in there {
        if !is_local(name, overlay) && !entry.xattrs.iter().any(|(wanted, _)| wanted == name) {
            node.drop(name)
                .map_err(|error| refused(path, "remove an extended attribute", error))?;
            changed = true;
        }
    }
    for (name, value) in &entry.xattrs {
        if there.contains(name)
            && node
                .value(name)
                .map_err(|error| failed(path, "read an extended attribute of", error))?
                == *value
        {
            continue;
        }
        node.put(name, value)
            .map_err(|error| refused(path, "set an extended attribute", error))?;
        changed = true;
    }
    Ok(changed)
}

fn check_xattrs(node: Node<'_>, entry: &Entry, overlay: bool) -> Result<(), SinkError> {
    let path = &entry.path;
    let there = node
        .names()
        .map_err(|error| failed(path, "list the extended attributes of", error))?;
    let wanted = || entry.xattrs.iter();
    let differs = |name: &[u8]| SinkError::NotEqual {
        path: shown(path),
        what: format!("extended attribute {}", String::from_utf8_lossy(name)),
    };
    if let Some(extra) = there
        .iter()
        .find(|name| !is_local(name, overlay) && !wanted().any(|(want, _)| want == *name))
    {
        return Err(differs(extra));
    }
    for (name, value) in wanted() {
        let missing = !there.contains(name);
        if missing
            || node
                .value(name)
                .map_err(|error| failed(path, "read an extended attribute of", error))?
                != *value
        {
            return Err(differs(name));
        }
    }
    Ok(())
}

fn is_symlink(stat: &Stat) -> bool {
    stat.st_mode & 0o170_000 == 0o120_000
}

/// The file type bits that `stat` has for it; a further name may be of several types.
pub(super) fn kind_bits(kind: &EntryKind) -> Option<u32> {
    Some(match kind {
        EntryKind::Directory => 0o040_000,
        EntryKind::File { .. } => 0o100_000,
        EntryKind::Hardlink { .. } => return None,
        EntryKind::Symlink { .. } => 0o120_000,
        EntryKind::Fifo => 0o010_000,
        EntryKind::Socket => 0o140_000,
        EntryKind::CharDevice { .. } => 0o020_000,
        EntryKind::BlockDevice { .. } => 0o060_000,
    })
}

/// Compares what is there with what was asked for.
pub(super) fn check(entry: &Entry, stat: &Stat) -> Result<(), SinkError> {
    let differs = |what: String| {
        Err(SinkError::NotEqual {
            path: shown(&entry.path),
            what,
        })
    };
    let kind = stat.st_mode & 0o170_000;
    let wanted = kind_bits(&entry.kind).unwrap_or(kind);
    if kind != wanted {
        return differs(format!("its type is {kind:o} and not {wanted:o}"));
    }
    match &entry.kind {
        EntryKind::File { size, .. } if stat.st_size as u64 != *size => {
            return differs(format!("its size is {} and not {size}", stat.st_size));
        }
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor }
            if stat.st_rdev != rustix::fs::makedev(*major, *minor) =>
        {
            return differs(format!("its device number is {:x}", stat.st_rdev));
        }
        _ => {}
    }
    if (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid) {
        return differs(format!(
            "its owner is {}:{} and not {}:{}",
            stat.st_uid, stat.st_gid, entry.uid, entry.gid
        ));
    }
    let mode = stat.st_mode & 0o7777;
    if mode != entry.mode && !is_symlink(stat) {
        return differs(format!("its mode is {mode:04o} and not {:04o}", entry.mode));
    }
    let mtime = Timestamp {
        seconds: stat.st_mtime,
        nanos: stat.st_mtime_nsec as u32,
    };
    if mtime != entry.mtime {
        return differs(format!("its time is {mtime:?} and not {:?}", entry.mtime));
    }
    Ok(())
}

fn refused(path: &[u8], doing: &'static str, source: Errno) -> SinkError {
    match source {
        Errno::PERM | Errno::NOTSUP | Errno::INVAL | Errno::ACCESS => SinkError::Unsupported {
            path: shown(path),
            doing,
            source,
        },
        source => failed(path, doing, source),
    }
}
