//! Owner, permissions, attributes and times, set and read through descriptors.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::Skips;
use super::error::{Doing as _, SystemError};
use super::root::proc_path;
use crate::acl::Acl;
use crate::entry::{Entry, Kind, Time};
use crate::pax::{XATTR_ACL_ACCESS, XATTR_ACL_DEFAULT};

/// Nanoseconds that mean "leave this time" (`UTIME_OMIT`).
const OMIT: i64 = 0x3fff_fffe;

/// Which extended attributes and access control lists are carried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Attributes {
    /// All of them.
    #[default]
    All,
    /// Those whose names are in the list; docker's own export carries `security.capability` only.
    Only(Vec<Vec<u8>>),
    /// None.
    None,
}

impl Attributes {
    pub(super) fn carries(&self, name: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.iter().any(|known| known == name),
            Self::None => false,
        }
    }
}

/// What is to be set, policy applied.
pub(super) struct Settings {
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mode: u32,
    pub(super) mtime: Option<Time>,
}

/// Sets everything on a descriptor, which may be open with `O_PATH`. The order matters: a change of owner takes setuid bits and
/// capabilities away, attributes may be refused once the mode forbids writing, and everything but the times changes nothing
/// that times say.
pub(super) fn apply(
    fd: BorrowedFd<'_>,
    entry: &Entry,
    settings: &Settings,
    attributes: &Attributes,
    clear_inherited: bool,
    skips: &mut Skips,
) -> Result<(), SystemError> {
    let path = &entry.path;
    if let Some((uid, gid)) = settings.owner {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chownat(fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
            .doing("change the owner of", path)?;
    }
    let link = matches!(entry.kind, Kind::Symlink { .. });
    if clear_inherited && !link {
        // Access control lists that an earlier entry gave the directory for its children.
        if entry.acl_access.is_none() {
            remove_attribute(fd, XATTR_ACL_ACCESS).doing("remove the access control list of", path)?;
        }
        if entry.kind.is_directory() && entry.acl_default.is_none() {
            remove_attribute(fd, XATTR_ACL_DEFAULT).doing("remove the access control list of", path)?;
        }
    }
    if !link {
        let mode = Mode::from_raw_mode(settings.mode);
        let changed = match rustix::fs::fchmod(fd, mode) {
            // It is open with `O_PATH`.
            Err(Errno::BADF) => rustix::fs::chmodat(CWD, proc_path(fd), mode, AtFlags::empty()),
            done => done,
        };
        changed.doing("change the mode of", path)?;
    }
    set_attributes(fd, entry, attributes, skips)?;
    match settings.mtime {
        Some(mtime) => set_mtime(fd, mtime).doing("set the time of", path),
        None => Ok(()),
    }
}

fn remove_attribute(fd: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::removexattr(proc_path(fd), name) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        result => result,
    }
}

fn set_attributes(
    fd: BorrowedFd<'_>,
    entry: &Entry,
    attributes: &Attributes,
    skips: &mut Skips,
) -> Result<(), SystemError> {
    let mut set = |name: &[u8], value: &[u8]| {
        if !attributes.carries(name) {
            return Ok(());
        }
        match rustix::fs::setxattr(proc_path(fd), name, value, XattrFlags::empty()) {
            Ok(()) => Ok(()),
            // The file system has none of this kind, the kind of file cannot have it, or it is for root only.
            Err(Errno::OPNOTSUPP) => {
                skips.note(
                    &entry.path,
                    "an extended attribute that the file system does not have",
                );
                Ok(())
            }
            Err(Errno::PERM | Errno::ACCESS) => {
                skips.note(&entry.path, "an extended attribute that may not be set");
                Ok(())
            }
            Err(source) => Err(source).doing("set an extended attribute of", &entry.path),
        }
    };
    for (name, value) in &entry.xattrs {
        set(name, value)?;
    }
    let lists = [
        (XATTR_ACL_ACCESS, &entry.acl_access),
        (XATTR_ACL_DEFAULT, &entry.acl_default),
    ];
    let mut unknown = false;
    for (name, acl) in lists {
        match acl.as_ref().map(Acl::to_xattr) {
            Some(Some(value)) => set(name, &value)?,
            Some(None) => unknown = true,
            None => {}
        }
    }
    if unknown && *attributes == Attributes::All {
        skips.note(
            &entry.path,
            "an access control list that names users without their numbers",
        );
    }
    Ok(())
}

/// Sets the time of the last change; the time of the last access stays.
pub(super) fn set_mtime(fd: BorrowedFd<'_>, mtime: Time) -> Result<(), Errno> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: OMIT,
        },
        last_modification: Timespec {
            tv_sec: mtime.seconds,
            tv_nsec: mtime.nanoseconds.into(),
        },
    };
    rustix::fs::utimensat(fd, "", &times, AtFlags::EMPTY_PATH)
}

/// Reads attributes and access control lists of what a descriptor is open on into the entry.
pub(super) fn read_attributes(
    fd: BorrowedFd<'_>,
    entry: &mut Entry,
    wanted: &Attributes,
) -> Result<(), SystemError> {
    if *wanted == Attributes::None {
        return Ok(());
    }
    let place = proc_path(fd);
    let names = match grow(|buffer| rustix::fs::listxattr(&place, buffer)) {
        Ok(names) => names,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(source) => return Err(source).doing("list the extended attributes of", &entry.path),
    };
    let mut found = BTreeMap::new();
    for name in names.split(|&byte| byte == 0).filter(|name| wanted.carries(name)) {
        if name.is_empty() {
            continue;
        }
        match grow(|buffer| rustix::fs::getxattr(&place, name, buffer)) {
            Ok(value) => {
                found.insert(name.to_vec(), value);
            }
            // Removed since, or not for us to read.
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {}
            Err(source) => return Err(source).doing("read an extended attribute of", &entry.path),
        }
    }
    for (name, slot) in [
        (XATTR_ACL_ACCESS, &mut entry.acl_access),
        (XATTR_ACL_DEFAULT, &mut entry.acl_default),
    ] {
        if let Some(acl) = found.get(name).and_then(|value| Acl::from_xattr(value)) {
            *slot = Some(acl);
            found.remove(name);
        }
    }
    entry.xattrs = found;
    Ok(())
}

/// Calls with a larger buffer until the value fits; attributes have at most 64 KiB.
fn grow(mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    for size in [1024, 65_536, 1 << 20] {
        let mut buffer = vec![0; size];
        match read(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::RANGE)
}

/// The type of a file as the kernel has it.
pub(super) fn file_type(stat: &rustix::fs::Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The type that an entry makes.
pub(super) fn type_of(kind: &Kind) -> FileType {
    match kind {
        Kind::File | Kind::HardLink { .. } => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink { .. } => FileType::Symlink,
        Kind::Fifo => FileType::Fifo,
        Kind::CharacterDevice(_) => FileType::CharacterDevice,
        Kind::BlockDevice(_) => FileType::BlockDevice,
    }
}

/// Device and inode: the same file as long as something holds it open.
pub(super) fn identity(fd: BorrowedFd<'_>) -> Result<(u64, u64), Errno> {
    let stat = rustix::fs::fstat(fd.as_fd())?;
    Ok((stat.st_dev, stat.st_ino))
}
