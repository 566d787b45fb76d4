//! What is different between two trees: for people who want to know whether two elements are equal, and if not, where.

use std::cmp::Ordering;
use std::io::Read;

use crate::entry::{Entry, EntryKind, Extent, Timestamp, compare_paths};
use crate::tree::{TreeError, TreeReader};

/// One thing that is different about a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// Only the first tree has it.
    OnlyFirst,
    /// Only the second tree has it.
    OnlySecond,
    /// It is something else: names of the kinds.
    Kind(&'static str, &'static str),
    /// A file's size in bytes.
    Size(u64, u64),
    /// A file's content. Where both have a chunk or both a hole, what they have is different from this byte on; a hole in one
    /// place and zeros in the other count as different too.
    Content {
        /// Beginning of the first different chunk or hole in bytes.
        offset: u64,
    },
    /// Where a symbolic or hard link leads.
    Target(Vec<u8>, Vec<u8>),
    /// A device's numbers.
    Device((u32, u32), (u32, u32)),
    /// Permission bits.
    Mode(u32, u32),
    /// Numeric owner and group.
    Owner((u32, u32), (u32, u32)),
    /// Time of the last modification.
    Mtime(Timestamp, Timestamp),
    /// An extended attribute: one tree does not have it, or another value.
    Xattr(Vec<u8>),
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy;
        match self {
            Self::OnlyFirst => f.write_str("only in the first"),
            Self::OnlySecond => f.write_str("only in the second"),
            Self::Kind(a, b) => write!(f, "{a} instead of {b}"),
            Self::Size(a, b) => write!(f, "size {a} instead of {b}"),
            Self::Content { offset } => write!(f, "content from byte {offset} on"),
            Self::Target(a, b) => write!(f, "target {:?} instead of {:?}", text(a), text(b)),
            Self::Device(a, b) => write!(f, "device {}:{} instead of {}:{}", a.0, a.1, b.0, b.1),
            Self::Mode(a, b) => write!(f, "mode {a:04o} instead of {b:04o}"),
            Self::Owner(a, b) => write!(f, "owner {}:{} instead of {}:{}", a.0, a.1, b.0, b.1),
            Self::Mtime(a, b) => write!(
                f,
                "mtime {}.{:09} instead of {}.{:09}",
                a.seconds, a.nanos, b.seconds, b.nanos
            ),
            Self::Xattr(name) => write!(f, "attribute {:?}", text(name)),
        }
    }
}

/// Reads two trees to their ends and gives each path that is different, in canonical order, with everything that is different about
/// it. Returns how many paths that were.
///
/// # Errors
///
/// A tree cannot be read, or is none.
pub fn compare<A: Read, B: Read, E: From<TreeError>, F>(
    mut first: TreeReader<A>,
    mut second: TreeReader<B>,
    mut each: F,
) -> Result<u64, E>
where
    F: FnMut(&[u8], &[Difference]) -> Result<(), E>,
{
    let mut count = 0;
    let (mut a, mut b) = (first.next()?, second.next()?);
    loop {
        let order = match (&a, &b) {
            (None, None) => return Ok(count),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => compare_paths(&a.path, &b.path),
        };
        let mut found = Vec::new();
        let path;
        match order {
            Ordering::Less => {
                found.push(Difference::OnlyFirst);
                path = a.map(|entry| entry.path);
                a = first.next()?;
            }
            Ordering::Greater => {
                found.push(Difference::OnlySecond);
                path = b.map(|entry| entry.path);
                b = second.next()?;
            }
            Ordering::Equal => {
                if let (Some(a), Some(b)) = (&a, &b) {
                    differences(a, b, &mut found);
                }
                path = a.map(|entry| entry.path);
                a = first.next()?;
                b = second.next()?;
            }
        }
        if !found.is_empty() {
            count += 1;
            each(path.as_deref().unwrap_or_default(), &found)?;
        }
    }
}

fn differences(a: &Entry, b: &Entry, out: &mut Vec<Difference>) {
    match (&a.kind, &b.kind) {
        (
            EntryKind::File { size, extents },
            EntryKind::File {
                size: other,
                extents: others,
            },
        ) => {
            if size != other {
                out.push(Difference::Size(*size, *other));
            }
            if extents != others {
                out.push(Difference::Content {
                    offset: first_different(extents, others),
                });
            }
        }
        (EntryKind::Symlink { target: a }, EntryKind::Symlink { target: b })
        | (EntryKind::Hardlink { target: a }, EntryKind::Hardlink { target: b }) => {
            if a != b {
                out.push(Difference::Target(a.clone(), b.clone()));
            }
        }
        (
            EntryKind::CharDevice { major, minor },
            EntryKind::CharDevice {
                major: other_major,
                minor: other_minor,
            },
        )
        | (
            EntryKind::BlockDevice { major, minor },
            EntryKind::BlockDevice {
                major: other_major,
                minor: other_minor,
            },
        ) => {
            let (a, b) = ((*major, *minor), (*other_major, *other_minor));
            if a != b {
                out.push(Difference::Device(a, b));
            }
        }
        (a, b) if a == b => {}
        (a, b) => out.push(Difference::Kind(name_of(a), name_of(b))),
    }
    if a.mode != b.mode {
        out.push(Difference::Mode(a.mode, b.mode));
    }
    if (a.uid, a.gid) != (b.uid, b.gid) {
        out.push(Difference::Owner((a.uid, a.gid), (b.uid, b.gid)));
    }
    if a.mtime != b.mtime {
        out.push(Difference::Mtime(a.mtime, b.mtime));
    }
    let mut names: Vec<&[u8]> = Vec::new();
    for (one, other) in [(a, b), (b, a)] {
        let lacking = one
            .xattrs
            .iter()
            .filter(|attribute| !other.xattrs.contains(attribute));
        names.extend(lacking.map(|(name, _)| name.as_slice()));
    }
    names.sort_unstable();
    names.dedup();
    out.extend(names.into_iter().map(|name| Difference::Xattr(name.to_vec())));
}

fn first_different(a: &[Extent], b: &[Extent]) -> u64 {
    a.iter()
        .zip(b)
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a.length())
        .sum()
}

fn name_of(kind: &EntryKind) -> &'static str {
    match kind {
        EntryKind::Directory => "directory",
        EntryKind::File { .. } => "file",
        EntryKind::Hardlink { .. } => "further name",
        EntryKind::Symlink { .. } => "symbolic link",
        EntryKind::Fifo => "FIFO",
        EntryKind::Socket => "socket",
        EntryKind::CharDevice { .. } => "character device",
        EntryKind::BlockDevice { .. } => "block device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::ChunkId;
    use crate::tree::TreeWriter;

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry {
            path: path.into(),
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            xattrs: Vec::new(),
        }
    }

    fn file(path: &str, chunks: &[u8]) -> Entry {
        let extents: Vec<Extent> = chunks
            .iter()
            .map(|fill| Extent::Chunk {
                length: 10,
                id: ChunkId([*fill; 32]),
            })
            .collect();
        let size = 10 * extents.len() as u64;
        entry(path, EntryKind::File { size, extents })
    }

    fn compared(a: &[Entry], b: &[Entry]) -> Vec<String> {
        let tree = |entries: &[Entry]| {
            let mut writer = TreeWriter::new(Vec::new());
            writer.push(&entry("", EntryKind::Directory)).unwrap();
            for entry in entries {
                writer.push(entry).unwrap();
            }
            std::io::Cursor::new(writer.finish().unwrap().1)
        };
        let mut lines = Vec::new();
        let count = compare::<_, _, TreeError, _>(
            TreeReader::new(tree(a)),
            TreeReader::new(tree(b)),
            |path, found: &[Difference]| {
                let found: Vec<String> = found.iter().map(ToString::to_string).collect();
                lines.push(format!("{}: {}", String::from_utf8_lossy(path), found.join(", ")));
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(count, lines.len() as u64);
        lines
    }

    #[test]
    fn differences_are_named() {
        let same = [file("a", &[1]), entry("z", EntryKind::Fifo)];
        assert!(compared(&same, &same).is_empty());
        let mut attributes = entry("g", EntryKind::Fifo);
        (attributes.mode, attributes.uid, attributes.mtime.seconds) = (0o600, 5, -1);
        attributes.xattrs = vec![(b"user.a".to_vec(), vec![]), (b"user.b".to_vec(), vec![])];
        let mut others = attributes.clone();
        others.xattrs[1].1 = vec![1];
        (others.mode, others.uid, others.mtime.seconds) = (0o644, 6, 7);
        let link = |target: &str| {
            entry(
                "f",
                EntryKind::Symlink {
                    target: target.into(),
                },
            )
        };
        let device = |minor| entry("e", EntryKind::CharDevice { major: 1, minor });
        let lines = compared(
            &[
                file("b", &[1]),
                file("c", &[1, 2, 3]),
                file("d", &[1, 2]),
                device(3),
                link("x"),
                attributes,
                entry("h", EntryKind::Fifo),
            ],
            &[
                file("c", &[1, 4, 3]),
                file("d", &[1, 2, 3]),
                device(4),
                link("y"),
                others,
                entry("h", EntryKind::Socket),
                file("i", &[]),
            ],
        );
        assert_eq!(
            lines,
            [
                "b: only in the first",
                "c: content from byte 10 on",
                "d: size 20 instead of 30, content from byte 20 on",
                "e: device 1:3 instead of 1:4",
                "f: target \"x\" instead of \"y\"",
                "g: mode 0600 instead of 0644, owner 5:0 instead of 6:0, mtime -1.000000000 instead of 7.000000000, \
                 attribute \"user.b\"",
                "h: FIFO instead of socket",
                "i: only in the second",
            ]
        );
    }
}
