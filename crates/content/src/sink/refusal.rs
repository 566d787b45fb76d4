//! Why the kernel says no.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::error::{SinkError, failed, shown};

/// The typed error of a call about `name` in `directory`, after looking whether a flag of one of the two forbids it.
pub(super) fn refused(
    directory: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    doing: &'static str,
    source: Errno,
) -> SinkError {
    let locked = |name: &[u8], flags| {
        let locks = StatxAttributes::IMMUTABLE | StatxAttributes::APPEND;
        rustix::fs::statx(directory, name, flags, StatxFlags::empty())
            .is_ok_and(|stat| stat.stx_attributes.intersects(locks))
    };
    if matches!(source, Errno::PERM | Errno::ACCESS)
        && (locked(b"", AtFlags::EMPTY_PATH) || locked(name, AtFlags::SYMLINK_NOFOLLOW))
    {
        return SinkError::Immutable { path: shown(path) };
    }
    failed(path, doing, source)
}
