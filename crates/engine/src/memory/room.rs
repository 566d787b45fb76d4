//! Whether there is room for a dump, and for the processes that are restored from it. In memory nobody says that it is full: the kernel
//! ends whoever uses most, which may be somebody else.

use std::path::Path;

use super::{chain, facts};

/// The file system in memory that dumps go to where they fit.
pub(super) const IN_MEMORY: &str = "/dev/shm";
/// As many times the container's memory must be available for its dump to lie in memory: the dump, a second copy of what changed
/// while it arrives, and the processes that are restored from it.
const TIMES: u64 = 3;
/// Room for what is not memory of processes, in bytes.
const MARGIN: u64 = 64 << 20;

/// Whether a dump of so many bytes can lie in memory.
pub(super) fn lies_in_memory(root: &Path, bytes: u64) -> bool {
    let needed = bytes.saturating_mul(TIMES).saturating_add(MARGIN);
    let free = rustix::fs::statvfs(root).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize));
    needed <= facts::free_memory() && bytes.saturating_mul(2).saturating_add(MARGIN) <= free
}

/// Bytes that a dump in this directory may take.
fn room_at(directory: &Path) -> u64 {
    let free = rustix::fs::statvfs(directory).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize));
    if directory.starts_with(IN_MEMORY) {
        free.min(facts::free_memory())
    } else {
        free
    }
}

/// Whether memory of so many bytes can be dumped to this directory.
///
/// # Errors
/// What to tell: how much it is, and how much is free.
pub(super) fn for_dump(held: u64, directory: &Path) -> Result<(), String> {
    has_room(held, room_at(directory))
}

fn has_room(held: u64, free: u64) -> Result<(), String> {
    if held.saturating_add(MARGIN) <= free {
        return Ok(());
    }
    Err(format!(
        "its processes hold {} MiB by now, and {} MiB are free where the dump goes",
        held >> 20,
        free >> 20
    ))
}

/// Whether the memory of processes that are restored can be had. What they share by fork is in the images once for each: it is no less
/// than the largest of them holds, and no more than all do, or than they `used` as the engine counts. Nothing is refused where the
/// kernel does not say how much there is.
///
/// # Errors
/// What to tell: how much it is, and how much is available.
pub(super) fn for_restore(images: &Path, used: u64) -> Result<(), String> {
    let available = tranship_core::memory::available_at_all(&facts::about_memory());
    fits(images, used, available)
}

fn fits(images: &Path, used: u64, available: Option<u64>) -> Result<(), String> {
    let Some(available) = available else {
        return Ok(());
    };
    let pages = chain::all_pages(images)
        .map_err(|error| error.to_string())?
        .into_iter();
    let (all, largest) = pages.fold((0_u64, 0_u64), |(all, largest), length| {
        (all.saturating_add(length), largest.max(length))
    });
    let needed = all.min(used).max(largest);
    if needed <= available {
        return Ok(());
    }
    Err(format!(
        "its processes held {} MiB, and {} MiB of memory are available",
        needed >> 20,
        available >> 20
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_has_grown_is_not_dumped_where_it_does_not_fit() {
        assert!(has_room(1 << 30, (1 << 30) + MARGIN).is_ok());
        let said = has_room(1 << 30, 1 << 30).unwrap_err();
        assert!(said.contains("hold 1024 MiB by now, and 1024 MiB"), "{said}");
        assert!(for_dump(u64::MAX, Path::new(IN_MEMORY)).is_err());
        assert!(for_dump(0, Path::new("/nowhere")).is_err());
    }

    #[test]
    fn what_is_restored_has_to_find_memory() {
        let images = tempfile::tempdir().unwrap();
        for (name, length) in [
            ("pages-1.img", 3 << 20),
            ("pages-2.img", 2 << 20),
            ("pstree.img", 9 << 20),
        ] {
            std::fs::write(images.path().join(name), vec![0; length]).unwrap();
        }
        assert!(fits(images.path(), u64::MAX, Some(5 << 20)).is_ok());
        let said = fits(images.path(), u64::MAX, Some((5 << 20) - 1)).unwrap_err();
        assert_eq!(
            said,
            "its processes held 5 MiB, and 4 MiB of memory are available"
        );
        assert!(
            fits(images.path(), 1 << 20, Some(3 << 20)).is_ok(),
            "shared by fork"
        );
        assert!(
            fits(images.path(), 1 << 20, Some(2 << 20)).is_err(),
            "one has grown"
        );
        assert!(fits(images.path(), u64::MAX, None).is_ok());
        assert!(for_restore(&images.path().join("missing"), 1).is_err());
    }
}
