//! What a tree has that another one has not: as image layers say it, with a file `.wh.NAME` for what is not there any more.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;

use super::error::{Doing as _, ExportError};
use super::export::{ExportOptions, ExportReport, Walk, reopen};
use super::metadata::{Attributes, file_type, read_attributes};
use super::root::{Root, open_child, proc_path};
use super::walk;
use crate::entry::{Entry, Kind};
use crate::filter::FilterSpec;
use crate::path::TreePath;
use crate::writer::Writer;

/// Marks of image layers (image-spec, layer.md).
const DELETED: &[u8] = b".wh.";
const DELETED_ALL: &[u8] = b".wh..wh..opq";
/// What an overlay keeps in attributes.
const OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Writes what of the tree goes along and differs from its ancestor, and marks for what is gone.
///
/// Two files are taken for equal if type, mode, owner, size, time of the last change, device number, link target and extended
/// attributes are; what is in them is not compared. A directory's own time is not looked at, as it follows from its entries.
///
/// # Errors
///
/// [`ExportError`].
pub fn export_difference<W: Write>(
    root: &Root,
    ancestor: &Root,
    spec: &FilterSpec,
    out: &mut Writer<W>,
    options: &ExportOptions,
) -> Result<ExportReport, ExportError> {
    let opening = "open the directory";
    let new = root.directory(&TreePath::root()).doing(opening, b"/")?;
    let old = ancestor.directory(&TreePath::root()).doing(opening, b"/")?;
    let mut walk = Walk::new(out, options, spec, false);
    walk.compare(
        &Found::of(new, b"/")?,
        Some(&Found::of(old, b"/")?),
        &TreePath::root(),
        0,
    )?;
    Ok(walk.report)
}

/// A file that is held.
struct Found {
    fd: OwnedFd,
    stat: Stat,
}

impl Found {
    fn of(fd: OwnedFd, path: &[u8]) -> Result<Self, ExportError> {
        let stat = rustix::fs::fstat(&fd).doing("look at", path)?;
        Ok(Self { fd, stat })
    }

    /// A name in it; none if there is nothing.
    fn child(&self, name: &[u8], path: &TreePath) -> Result<Option<Self>, ExportError> {
        match open_child(self.fd.as_fd(), name, OFlags::PATH) {
            Err(Errno::NOENT) => Ok(None),
            result => Self::of(result.doing("open", path.as_bytes())?, path.as_bytes()).map(Some),
        }
    }

    fn is_directory(&self) -> bool {
        file_type(&self.stat) == FileType::Directory
    }

    fn names(&self, path: &TreePath) -> Result<Vec<Vec<u8>>, ExportError> {
        let opened = reopen(&self.fd, OFlags::DIRECTORY).doing("open the directory", path.as_bytes())?;
        Ok(walk::names(opened.as_fd()).doing("list the directory", path.as_bytes())?)
    }

    /// All that is compared of it but what `stat` says.
    fn rest(&self, path: &TreePath) -> Result<Entry, ExportError> {
        let kind = match file_type(&self.stat) {
            FileType::Symlink => Kind::Symlink {
                target: rustix::fs::readlinkat(&self.fd, "", Vec::new())
                    .doing("read the link", path.as_bytes())?
                    .into_bytes(),
            },
            _ => Kind::File,
        };
        let mut entry = Entry::new(path.as_bytes().to_vec(), kind, 0);
        read_attributes(self.fd.as_fd(), &mut entry, &Attributes::All)?;
        // An overlay's own notes differ between two views of one file.
        entry.xattrs.retain(|name, _| !is_overlay(name));
        Ok(entry)
    }

    fn equals(&self, other: &Self, path: &TreePath) -> Result<bool, ExportError> {
        let (a, b) = (&self.stat, &other.stat);
        let same = (a.st_mode, a.st_uid, a.st_gid) == (b.st_mode, b.st_uid, b.st_gid)
            && (self.is_directory()
                || (a.st_size, a.st_mtime, a.st_mtime_nsec, a.st_rdev)
                    == (b.st_size, b.st_mtime, b.st_mtime_nsec, b.st_rdev));
        Ok(same && self.rest(path)? == other.rest(path)?)
    }
}

impl<W: Write> Walk<'_, W> {
    fn compare(
        &mut self,
        new: &Found,
        old: Option<&Found>,
        path: &TreePath,
        depth: usize,
    ) -> Result<(), ExportError> {
        let same = match old {
            Some(old) => new.equals(old, path)?,
            None => false,
        };
        if !same && self.spec.includes(path) {
            self.write(&new.fd, &new.stat, path)?;
        }
        if !new.is_directory() || !self.spec.descends_into(path) {
            return Ok(());
        }
        if depth > walk::DEEPEST {
            return Err(ExportError::TooDeep {
                path: path.as_bytes().to_vec(),
                limit: walk::DEEPEST,
            });
        }
        let old = old.filter(|old| old.is_directory());
        let names = new.names(path)?;
        if let Some(old) = old {
            let there: BTreeSet<&[u8]> = names.iter().map(Vec::as_slice).collect();
            for name in old.names(path)? {
                if !there.contains(name.as_slice()) {
                    self.deleted(&TreePath::below(&name)?.under(path))?;
                }
            }
        }
        for name in &names {
            let child = TreePath::below(name)?.under(path);
            let Some(found) = new.child(name, &child)? else {
                // It was removed since the directory was listed.
                continue;
            };
            let before = match old {
                Some(old) => old.child(name, &child)?,
                None => None,
            };
            self.compare(&found, before.as_ref(), &child, depth + 1)?;
        }
        Ok(())
    }

    /// A mark for a path that is not there any more.
    pub(super) fn deleted(&mut self, path: &TreePath) -> Result<(), ExportError> {
        let Some(name) = path.name().filter(|_| self.spec.includes(path)) else {
            return Ok(());
        };
        let mark = TreePath::below(&[DELETED, name].concat())?;
        let beside = mark.under(&path.parent().unwrap_or_default());
        self.mark(&beside)
    }

    /// A mark for everything that was in a directory.
    pub(super) fn deleted_all(&mut self, path: &TreePath) -> Result<(), ExportError> {
        if !self.spec.includes(path) {
            return Ok(());
        }
        self.mark(&TreePath::below(DELETED_ALL)?.under(path))
    }

    fn mark(&mut self, path: &TreePath) -> Result<(), ExportError> {
        let name = self.spec.rename(path)?.to_entry(false);
        self.report.entries += 1;
        Ok(self.out.start(&Entry::new(name, Kind::File, 0o600))?)
    }
}

/// An overlay's mark of a deletion.
pub(super) fn is_deletion(stat: &Stat) -> bool {
    file_type(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// An overlay shows nothing of what is below this directory.
pub(super) fn hides_all(fd: &OwnedFd) -> Result<bool, Errno> {
    let mut value = [0; 8];
    match rustix::fs::getxattr(proc_path(fd.as_fd()), c"trusted.overlay.opaque", &mut value[..]) {
        Ok(length) => Ok(value.get(..length) == Some(b"y")),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE | Errno::PERM) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_overlay(name: &[u8]) -> bool {
    OVERLAY.iter().any(|prefix| name.starts_with(prefix))
}

/// Takes away what only the overlay understands.
pub(super) fn keep_own_attributes(entry: &mut Entry) -> Result<(), ExportError> {
    let depends = |name: &Vec<u8>| {
        let inner = OVERLAY.iter().find_map(|prefix| name.strip_prefix(*prefix));
        matches!(inner, Some(b"redirect" | b"metacopy"))
    };
    if entry.xattrs.keys().any(depends) {
        return Err(ExportError::DependsOnLower {
            path: entry.path.clone(),
        });
    }
    entry.xattrs.retain(|name, _| !is_overlay(name));
    Ok(())
}
