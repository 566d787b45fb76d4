//! What the unpacking of an archive has begun and not completed.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Stat};

use super::metadata::set_mtime;
use crate::entry::{Entry, Time};
use crate::path::TreePath;

/// What the name of a file begins with that was broken off, beside the place of the whole one.
const PARTIAL: &[u8] = b".tranship-partial.";
/// The longest name that Linux's file systems take, in bytes.
const LONGEST_NAME: usize = 255;
/// A beginning is kept from this size on, in bytes.
const WORTH_KEEPING: i64 = 1 << 20;

/// Where [`super::ExtractOptions::keep_partial`] leaves the beginning of a file; none for a name that is too long for it.
#[must_use]
pub fn partial_of(path: &TreePath) -> Option<TreePath> {
    let name = partial_name(path.name()?)?;
    Some(TreePath::below(&name).ok()?.under(&path.parent()?))
}

/// Whether a file has the name of a beginning, which may be its own name.
pub(super) fn is_partial(name: &[u8]) -> bool {
    name.starts_with(PARTIAL)
}

fn partial_name(name: &[u8]) -> Option<Vec<u8>> {
    (PARTIAL.len() + name.len() <= LONGEST_NAME).then(|| [PARTIAL, name].concat())
}

/// A file whose content is being written, under a temporary name.
pub(super) struct OpenFile {
    pub(super) fd: OwnedFd,
    pub(super) parent: Arc<OwnedFd>,
    pub(super) temporary: Vec<u8>,
    pub(super) name: Vec<u8>,
    pub(super) entry: Entry,
    /// What is there of it is kept if it stays incomplete.
    pub(super) keep_partial: bool,
}

impl OpenFile {
    /// Gives what is there of the file the name of an incomplete one, unless that has more already.
    fn keep(&self) -> Option<()> {
        let partial = partial_name(&self.name)?;
        let own = rustix::fs::fstat(&self.fd).ok()?;
        // Without holes, nor what a file system has laid by for what may come.
        let stored = |stat: &Stat| stat.st_blocks.saturating_mul(512).min(stat.st_size);
        let known = rustix::fs::statat(&*self.parent, &partial, AtFlags::SYMLINK_NOFOLLOW);
        // The time says of which file it is the beginning.
        let time = self.entry.mtime;
        let more = |known: &Stat| known.st_mtime == time.seconds && stored(known) > stored(&own);
        if stored(&own) < WORTH_KEEPING || known.is_ok_and(|known| more(&known)) {
            return None;
        }
        set_mtime(self.fd.as_fd(), time).ok()?;
        rustix::fs::renameat(&*self.parent, &self.temporary, &*self.parent, &partial).ok()
    }

    /// Removes what an earlier try left: the file is whole now, or there is no space for both.
    pub(super) fn forget_partial(&self) {
        if let (true, Some(partial)) = (self.keep_partial, partial_name(&self.name)) {
            // Mostly there is none. One that stays is in nobody's way.
            let _ = rustix::fs::unlinkat(&*self.parent, &partial, AtFlags::empty());
        }
    }
}

/// A file whose content is kept until all of it is there. It is made under its own name then, if there is nothing yet: with one
/// call for its content there is hardly a moment at which it is not whole, and a name of its own would cost as much as the file.
pub(super) struct SmallFile {
    pub(super) parent: Arc<OwnedFd>,
    pub(super) name: Vec<u8>,
    pub(super) path: TreePath,
    pub(super) entry: Entry,
    pub(super) content: Vec<u8>,
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if self.temporary.is_empty() || (self.keep_partial && self.keep().is_some()) {
            return;
        }
        // Nothing better can be done about a failure than to leave it.
        let _ = rustix::fs::unlinkat(&*self.parent, &self.temporary, AtFlags::empty());
    }
}

pub(super) struct Unfinished {
    pub(super) path: TreePath,
    pub(super) identity: (u64, u64),
    pub(super) mode: u32,
    pub(super) mtime: Time,
    /// It has an access control list, whose mask is what the mode shows as the group's rights.
    pub(super) acl: bool,
}
