//! What the unpacking of an archive has begun and not completed.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::AtFlags;

use crate::entry::{Entry, Time};
use crate::path::TreePath;

/// A file whose content is being written, under a temporary name.
pub(super) struct OpenFile {
    pub(super) fd: OwnedFd,
    pub(super) parent: Arc<OwnedFd>,
    pub(super) temporary: Vec<u8>,
    pub(super) name: Vec<u8>,
    pub(super) entry: Entry,
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
        if !self.temporary.is_empty() {
            // Nothing better can be done about a failure than to leave it.
            let _ = rustix::fs::unlinkat(&*self.parent, &self.temporary, AtFlags::empty());
        }
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
