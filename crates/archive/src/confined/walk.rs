//! Directories: their names in order, and their removal.

use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{AtFlags, Dir, FileType, OFlags, unlinkat};
use rustix::io::Errno;

use super::root::{is_mount_point, look, open_child};

/// Directories in one another that are held open at a time. Processes may have 1,024 files open by default.
pub(super) const DEEPEST: usize = 512;

/// The names in a directory, sorted, so that the same tree gives the same archive.
pub(crate) fn names(directory: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Removes a name and, if it is a directory, everything in it. Links are removed, not followed.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &[u8], depth: usize) -> Result<(), Errno> {
    match look(parent, name)? {
        None => return Ok(()),
        Some(_) if is_mount_point(parent, name)? => return Err(Errno::BUSY),
        Some(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => {
            return gone(unlinkat(parent, name, AtFlags::empty()));
        }
        Some(_) => {}
    }
    if depth > DEEPEST {
        return Err(Errno::NAMETOOLONG);
    }
    let directory = open_child(parent, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
    for child in names(directory.as_fd())? {
        remove(directory.as_fd(), &child, depth + 1)?;
    }
    gone(unlinkat(parent, name, AtFlags::REMOVEDIR))
}

/// Somebody else may have removed it.
fn gone(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}
