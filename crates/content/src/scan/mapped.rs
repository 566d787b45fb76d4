//! Files that some process has mapped into its memory and may write to without a system call.
//!
//! A rescan trusts times: what was written since the last scan has a newer ctime. Memory mapped with `MAP_SHARED` keeps to that only
//! in part. The first write to a page faults and stamps the file; while the page stays dirty, further writes go unnoticed. So a
//! write, a scan and another write to the same page leave the file with the first write's time, and the rescan would miss the
//! second. Writing the file's dirty pages back makes its pages read-only again, so that the next write faults and stamps. Therefore:
//!
//! * before a scan reads a file that is mapped, it has its pages written back (`fdatasync`). A write after that has a ctime no older
//!   than the scan's beginning, and the rescan reads it again. What is not mapped when the scan begins but mapped later faults on
//!   its first write anyhow.
//! * Whole file systems are not synced: this costs what the mapped files' own pages cost.
//! * Memory file systems (tmpfs) never make pages read-only, mapped or once mapped. Files there are read in every scan.
//!
//! Files are recognised by inode number, and by name for the sake of overlays, whose mappings show another inode. Both may
//! match too much, which costs a sync. Processes that may not be looked at are passed over.

use std::collections::HashSet;

/// What is mapped, shared and backed by a file.
#[derive(Debug, Default)]
pub(crate) struct Mapped {
    inodes: HashSet<u64>,
    names: HashSet<Vec<u8>>,
}

impl Mapped {
    /// Looks at all processes.
    pub(crate) fn now() -> Self {
        let mut found = Self::default();
        let Ok(processes) = std::fs::read_dir("/proc") else {
            return found;
        };
        for process in processes.flatten() {
            let name = process.file_name();
            if name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
                && let Ok(maps) = std::fs::read(process.path().join("maps"))
            {
                found.add(&maps);
            }
        }
        found
    }

    fn add(&mut self, maps: &[u8]) {
        // address perms offset dev inode path
        for line in maps.split(|byte| *byte == b'\n') {
            let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
            let shared = fields
                .nth(1)
                .is_some_and(|permissions| permissions.get(3) == Some(&b's'));
            if !shared {
                continue;
            }
            let inode = fields
                .nth(2)
                .and_then(|field| std::str::from_utf8(field).ok())
                .and_then(|field| field.parse().ok());
            let Some(inode) = inode.filter(|inode| *inode != 0) else {
                continue;
            };
            self.inodes.insert(inode);
            if let Some(slash) = line.iter().rposition(|byte| *byte == b'/') {
                let name = &line[slash + 1..];
                self.names
                    .insert(name.strip_suffix(b" (deleted)").unwrap_or(name).to_vec());
            }
        }
    }

    /// Whether this file may be one of them.
    pub(crate) fn has(&self, inode: u64, name: &[u8]) -> bool {
        self.inodes.contains(&inode) || self.names.contains(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_mappings_of_files_are_found() {
        let mut mapped = Mapped::default();
        mapped.add(
            b"7f00-7f01 rw-p 00000000 fe:00 11    /lib/private.so\n\
              7f01-7f02 rw-s 00000000 fe:00 12    /data/my db (deleted)\n\
              7f02-7f03 r--s 00000000 00:01 13    /dev/shm/x\n\
              7f03-7f04 rw-s 00000000 00:01 0 \n",
        );
        assert!(!mapped.has(11, b"private.so"));
        assert!(mapped.has(12, b"") && mapped.has(0, b"my db"));
        assert!(mapped.has(13, b"other"));
        assert!(!mapped.has(14, b"other"));
    }
}
