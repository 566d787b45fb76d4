//! Removing whole trees, and counting what is in them, without leaving them.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, RawDir, RenameFlags};
use rustix::io::Errno;

use super::error::{SinkError, failed};
use super::place::{open_child as open, open_directory, open_root};

/// Directories that are open at once, at most. What is deeper is moved up before it is removed.
const MAX_OPEN: usize = 128;

/// What is in a tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Entries below the root.
    pub entries: u64,
    /// Bytes that they take on disk; a file with several names counts once for each.
    pub bytes: u64,
}

/// Names in a directory with their types, but for `.` and `..`.
fn names(directory: BorrowedFd<'_>) -> Result<Vec<(Vec<u8>, FileType)>, Errno> {
    let mut buffer = Vec::with_capacity(64 << 10);
    // A descriptor of its own, so that reading starts at the beginning.
    let own = open(directory, b".")?;
    let mut reader = RawDir::new(own, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = reader.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((name.to_vec(), entry.file_type()));
        }
    }
    Ok(names)
}

/// Whether a directory has nothing in it.
pub(super) fn is_empty(directory: BorrowedFd<'_>) -> Result<bool, SinkError> {
    names(directory)
        .map(|names| names.is_empty())
        .map_err(|error| failed(b"", "read", error))
}

/// Removes `name` from `directory` with everything below. `false` if there was none.
pub(super) fn tree(directory: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) => return Ok(true),
        Err(Errno::NOENT) => return Ok(false),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    let top = match open(directory, name) {
        Ok(top) => top,
        // It is a file that must not be removed.
        Err(Errno::NOTDIR) => return Err(Errno::PERM),
        Err(error) => return Err(error),
    };
    empty(top.as_fd())?;
    rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR)?;
    Ok(true)
}

/// Removes everything in a directory.
fn empty(top: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut moved = 0_u64;
    // Moving deep directories up makes new names at the top, so it is looked at until it is empty.
    loop {
        let found = names(top)?;
        if found.is_empty() {
            return Ok(());
        }
        for (name, kind) in found {
            one(top, top, &name, kind, 1, &mut moved)?;
        }
    }
}

fn one(
    top: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    name: &[u8],
    kind: FileType,
    depth: usize,
    moved: &mut u64,
) -> Result<(), Errno> {
    if kind != FileType::Directory {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // Not every file system says what is a directory.
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error),
        }
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    if depth >= MAX_OPEN {
        loop {
            *moved += 1;
            let new = format!(".tranship-deep-{moved}");
            match rustix::fs::renameat_with(parent, name, top, new, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                other => return other,
            }
        }
    }
    let directory = open(parent, name)?;
    for (below, kind) in names(directory.as_fd())? {
        one(top, directory.as_fd(), &below, kind, depth + 1, moved)?;
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Empties a directory; the directory itself stays. Symbolic links are removed and not followed, other mounts are an error.
///
/// # Errors
/// Something cannot be removed. What was removed before stays removed.
pub fn clear(root: &Path) -> Result<(), SinkError> {
    let root = open_root(root)?;
    empty(root.as_fd()).map_err(|error| failed(b"", "empty", error))
}

/// Counts what is in a directory, without following symbolic links or going to other mounts.
///
/// # Errors
/// Something cannot be read.
pub fn usage(root: &Path) -> Result<Usage, SinkError> {
    let root = open_root(root)?;
    count(root.as_fd()).map_err(|error| failed(b"", "look at", error))
}

fn count(root: BorrowedFd<'_>) -> Result<Usage, Errno> {
    let mut usage = Usage::default();
    let mut rest: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(path) = rest.pop() {
        let directory = match open_directory(root, &path) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::XDEV) => continue,
            Err(error) => return Err(error),
        };
        for (name, _) in names(directory.as_fd())? {
            let stat = match rustix::fs::statat(&directory, &*name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error),
            };
            usage.entries += 1;
            usage.bytes += stat.st_blocks as u64 * 512;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let mut below = path.clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(&name);
                rest.push(below);
            }
        }
    }
    Ok(usage)
}
