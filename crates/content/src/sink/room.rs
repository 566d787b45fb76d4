//! Room where what arrives lies in memory.
//!
//! A file system in memory takes as much as it is let, and then it is not the one who writes that the kernel ends, but whoever uses
//! most. So the sink stops while memory is left for the rest of the machine, and says that there is no space.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

/// Bytes between two looks.
const EVERY: u64 = 8 << 20;
/// Bytes of memory that others keep.
const LEFT: u64 = 128 << 20;

/// Watches over memory for all threads of a round.
pub(super) struct Room {
    written: AtomicU64,
    available: fn() -> Option<u64>,
}

impl Room {
    /// `None` where the directory is on a disk, which says itself when it is full.
    pub(super) fn of(directory: &OwnedFd) -> Option<Self> {
        crate::scan::is_in_memory(directory).then(|| Self::new(available))
    }

    fn new(available: fn() -> Option<u64>) -> Self {
        Self {
            written: AtomicU64::new(0),
            available,
        }
    }

    /// Asks for room for as many bytes.
    ///
    /// # Errors
    /// `ENOSPC` where too little memory would be left. Where the kernel does not say how much there is, nothing is refused.
    pub(super) fn take(&self, bytes: u64) -> Result<(), Errno> {
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        if before / EVERY == before.saturating_add(bytes) / EVERY {
            return Ok(());
        }
        match (self.available)() {
            Some(available) if available < LEFT.saturating_add(bytes) => Err(Errno::NOSPC),
            _ => Ok(()),
        }
    }
}

fn available() -> Option<u64> {
    tranship_core::memory::available_at_all(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_where_no_memory_would_be_left_for_others() {
        let room = Room::new(|| Some(LEFT + EVERY));
        assert_eq!(room.take(EVERY), Ok(()));
        assert_eq!(room.take(2 * EVERY), Err(Errno::NOSPC));
        let little = Room::new(|| Some(0));
        assert_eq!(little.take(EVERY - 1), Ok(()), "a little is no danger");
        assert_eq!(little.take(1), Err(Errno::NOSPC));
        assert_eq!(Room::new(|| None).take(u64::MAX), Ok(()));
    }

    #[test]
    fn only_what_lies_in_memory_is_watched() {
        let of = |path: &str| Room::of(&super::super::place::open_root(path.as_ref()).unwrap()).is_some();
        assert!(of("/dev/shm"));
        assert!(!of("/proc"));
    }
}
