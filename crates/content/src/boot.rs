//! Whether records are of this boot of the machine.
//!
//! After a power cut the content of a file may be newer than what its inode says: `fdatasync` brings data to the disk and may
//! leave times behind. What a record says about times is then no proof that a file is as it was when it was read.

use std::io;
use std::path::Path;

/// Name of the note in a directory of records.
pub(crate) const BOOT: &str = "boot";

/// What the kernel calls this boot; empty where it does not say.
#[must_use]
pub fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// The note was written since the machine started; not where nobody can tell.
pub(crate) fn is_of_this_boot(note: &Path) -> bool {
    let now = boot();
    !now.is_empty() && std::fs::read_to_string(note).is_ok_and(|noted| noted == now)
}

/// Writes the note. It need not last: one that is lost is not believed.
pub(crate) fn note_boot(note: &Path) -> io::Result<()> {
    if is_of_this_boot(note) {
        return Ok(());
    }
    std::fs::write(note, boot())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_of_another_boot_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let note = directory.path().join(BOOT);
        assert!(!is_of_this_boot(&note));
        note_boot(&note).unwrap();
        assert!(is_of_this_boot(&note));
        std::fs::write(&note, "another").unwrap();
        assert!(!is_of_this_boot(&note));
    }
}
