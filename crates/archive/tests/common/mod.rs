//! What the tests share.
#![allow(dead_code, reason = "every test uses a part of it")]

pub mod generate;
pub mod mutate;

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use tranship_archive::confined::{ExportOptions, Links, Root, export};
use tranship_archive::entry::{Entry, Kind};
use tranship_archive::reader::{ReadOptions, Reader};
use tranship_archive::writer::Writer;
use tranship_core::fault::Explain as _;

/// Numbers that look random and are the same in every run: splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// A number from the environment, for longer runs than usual.
pub fn setting(name: &str, usual: u64) -> u64 {
    // Tests may be told to run longer; the library itself never looks at the environment.
    #[allow(clippy::disallowed_methods)]
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(usual)
}

pub fn archive(entries: &[(Entry, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, data) in entries {
        writer.append(entry, &mut &data[..]).unwrap();
    }
    writer.finish().unwrap()
}

pub fn file(path: &str, content: &str) -> (Entry, Vec<u8>) {
    (
        Entry::file(path, 0o644, content.len() as u64),
        content.as_bytes().to_vec(),
    )
}

pub fn symlink(path: &str, target: &str) -> Entry {
    Entry::new(
        path,
        Kind::Symlink {
            target: target.into(),
        },
        0o777,
    )
}

pub fn hard_link(path: &str, target: &str) -> Entry {
    Entry::new(
        path,
        Kind::HardLink {
            target: target.into(),
        },
        0o644,
    )
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Everything about a tree that a copy has to keep, one line per file. Hard links share a number.
pub fn describe(root: &Path) -> Vec<String> {
    let mut inodes = Vec::new();
    let mut lines = Vec::new();
    walk(root, root, &mut inodes, &mut lines);
    lines.sort();
    lines
}

fn walk(root: &Path, path: &Path, inodes: &mut Vec<u64>, lines: &mut Vec<String>) {
    let meta = path.symlink_metadata().unwrap();
    let kind = meta.file_type();
    let mut line = format!(
        "{:?} {:o} {}:{} {}.{:09}",
        path.strip_prefix(root).unwrap(),
        meta.permissions().mode(),
        meta.uid(),
        meta.gid(),
        meta.mtime(),
        meta.mtime_nsec()
    );
    if kind.is_symlink() {
        line += &format!(" -> {:?}", path.read_link().unwrap());
    } else if kind.is_file() {
        let content = std::fs::read(path).unwrap();
        let sum = content.iter().fold(17_u64, |sum, &byte| {
            sum.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        line += &format!(" {} bytes {sum:x}", content.len());
    } else if kind.is_char_device() || kind.is_block_device() {
        line += &format!(" device {:x}", meta.rdev());
    }
    if meta.nlink() > 1 && !kind.is_dir() {
        let number = inodes
            .iter()
            .position(|&inode| inode == meta.ino())
            .unwrap_or_else(|| {
                inodes.push(meta.ino());
                inodes.len() - 1
            });
        line += &format!(" links {number}");
    }
    if !kind.is_symlink() {
        let mut buffer = vec![0; 65_536];
        let length = rustix::fs::listxattr(path, &mut buffer[..]).unwrap_or(0);
        let mut names: Vec<&[u8]> = buffer[..length]
            .split(|&b| b == 0)
            .filter(|n| !n.is_empty())
            .collect();
        names.sort_unstable();
        for name in names {
            let mut value = vec![0; 65_536];
            let length = rustix::fs::getxattr(path, name, &mut value[..]).unwrap();
            line += &format!(" {}={:?}", String::from_utf8_lossy(name), &value[..length]);
        }
    }
    lines.push(line);
    if kind.is_dir() {
        let mut children: Vec<_> = std::fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        children.sort();
        for child in children {
            walk(root, &child, inodes, lines);
        }
    }
}

/// Packs a path of a root; the code of the error.
pub fn pack(root: &Path, request: &str, options: &ExportOptions) -> Result<Vec<u8>, String> {
    let root = Root::open(root, Links::InRoot).unwrap();
    let mut writer = Writer::new(Vec::new());
    export(&root, request.as_bytes(), &mut writer, options).map_err(|error| error.code().to_owned())?;
    Ok(writer.finish().unwrap())
}

/// The names in an archive.
pub fn names(bytes: &[u8]) -> Vec<String> {
    let mut reader = Reader::new(bytes, ReadOptions::strict());
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        names.push(String::from_utf8(entry.path).unwrap());
    }
    names
}
