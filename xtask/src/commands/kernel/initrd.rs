//! The guest's first file system: a shell, the modules without which its disk cannot be seen, and a script.

use std::io;
use std::path::{Path, PathBuf};

const INIT: &str = include_str!("init.sh");

/// What [`INIT`] loads, by name.
const MODULES: [&str; 7] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
    "overlay",
];

/// The file system as an archive that the kernel unpacks; `modules` is a directory below which they are anywhere.
pub fn build(busybox: &Path, modules: &Path) -> io::Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "disk", "modules", "new"] {
        archive.add(directory, 0o040_755, b"");
    }
    archive.add("bin/busybox", 0o100_755, &std::fs::read(busybox)?);
    archive.add("init", 0o100_755, INIT.as_bytes());
    for module in MODULES {
        let file = format!("{module}.ko");
        // What is missing is built into the kernel, or the guest's log says that it has no disk.
        if let Some(path) = find(modules, &file)? {
            archive.add(&format!("modules/{file}"), 0o100_644, &std::fs::read(path)?);
        }
    }
    Ok(archive.finish())
}

/// Looks for a file of this name anywhere below a directory.
fn find(directory: &Path, name: &str) -> io::Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find(&entry.path(), name)? {
                return Ok(Some(found));
            }
        } else if entry.file_name() == name {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// A cpio archive of the form `newc` (Documentation/driver-api/early-userspace/buffer-format.rst of the kernel).
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: usize,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (inode, size, name_size) = (self.entries, content.len(), name.len() + 1);
        // Inode, mode, owner, group, links, time, size, device and its own device by two numbers each, name, checksum.
        let header = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}",
            0, 1
        );
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, b"");
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_the_kernel_reads() {
        let mut archive = Archive::default();
        archive.add("ab", 0o100_644, b"hello");
        let bytes = archive.finish();
        assert_eq!(&bytes[..14], b"07070100000001");
        assert_eq!(&bytes[14..22], b"000081a4");
        assert_eq!(&bytes[54..62], b"00000005", "the size");
        assert_eq!(&bytes[94..102], b"00000003", "the name with its end");
        // The header has 110 bytes; what follows it begins at a multiple of four.
        assert_eq!(&bytes[110..124], b"ab\0\0\0\0hello\0\0\0");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn the_script_loads_what_is_packed() {
        let names = INIT.lines().find_map(|line| line.strip_prefix("for module in "));
        let names: Vec<&str> = names.unwrap().trim_end_matches("; do").split(' ').collect();
        assert_eq!(names, MODULES);
    }
}
