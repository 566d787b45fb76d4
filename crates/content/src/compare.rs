//! What is different between two trees.
//!
//! Both manifests are read side by side as streams, so memory does not grow with them. Content is compared by its chunks: what two
//! scans of this version cut differently is different.

use std::cmp::Ordering;
use std::io::Read;

use crate::entry::{Entry, EntryKind, Extent, compare_paths};
use crate::tree::{TreeError, TreeReader};

/// One path that is not the same in both trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The path, relative to the root; empty for the root itself.
    pub path: Vec<u8>,
    /// What is different.
    pub what: Vec<Aspect>,
}

/// In what two entries differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Aspect {
    /// Only the first tree has it.
    OnlyLeft,
    /// Only the second tree has it.
    OnlyRight,
    /// It is of another type.
    Type,
    /// The bytes of a file, or the text of a link.
    Content,
    /// The bytes are the same, but not which of them are holes.
    Holes,
    /// Which paths are the same file.
    Links,
    /// The numbers of a device.
    Device,
    /// Permission bits.
    Mode,
    /// Owner or group.
    Owner,
    /// Time of the last modification.
    Time,
    /// Extended attributes, ACLs and capabilities among them.
    Attributes,
}

impl Aspect {
    /// The word for people.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::OnlyLeft => "only in the first",
            Self::OnlyRight => "only in the second",
            Self::Type => "type",
            Self::Content => "content",
            Self::Holes => "holes",
            Self::Links => "links",
            Self::Device => "device",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Time => "time",
            Self::Attributes => "attributes",
        }
    }
}

/// Calls `found` for every difference, in canonical order, until it says that it has seen enough by `false`. Returns whether the trees
/// are equal.
///
/// # Errors
/// A manifest is damaged.
pub fn compare<L: Read, R: Read>(
    left: L,
    right: R,
    mut found: impl FnMut(Difference) -> bool,
) -> Result<bool, TreeError> {
    let (mut left, mut right) = (TreeReader::new(left), TreeReader::new(right));
    let (mut l, mut r) = (left.next()?, right.next()?);
    let mut equal = true;
    loop {
        let order = match (&l, &r) {
            (None, None) => return Ok(equal),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(l), Some(r)) => compare_paths(&l.path, &r.path),
        };
        let (path, what) = match (order, &l, &r) {
            (Ordering::Equal, Some(l), Some(r)) => (l.path.clone(), aspects(l, r)),
            (Ordering::Less, Some(l), _) => (l.path.clone(), vec![Aspect::OnlyLeft]),
            (_, _, Some(r)) => (r.path.clone(), vec![Aspect::OnlyRight]),
            _ => return Ok(equal),
        };
        if !what.is_empty() {
            equal = false;
            if !found(Difference { path, what }) {
                return Ok(false);
            }
        }
        if order != Ordering::Greater {
            l = left.next()?;
        }
        if order != Ordering::Less {
            r = right.next()?;
        }
    }
}

fn aspects(l: &Entry, r: &Entry) -> Vec<Aspect> {
    let mut what = Vec::new();
    match (&l.kind, &r.kind) {
        (l, r) if l == r => {}
        (EntryKind::File { size: a, extents: l }, EntryKind::File { size: b, extents: r }) => {
            what.push(if a == b && same_but_holes(l, r) {
                Aspect::Holes
            } else {
                Aspect::Content
            });
        }
        (EntryKind::Symlink { .. }, EntryKind::Symlink { .. }) => what.push(Aspect::Content),
        (EntryKind::Hardlink { .. }, _) | (_, EntryKind::Hardlink { .. }) => what.push(Aspect::Links),
        (EntryKind::CharDevice { .. }, EntryKind::CharDevice { .. })
        | (EntryKind::BlockDevice { .. }, EntryKind::BlockDevice { .. }) => what.push(Aspect::Device),
        _ => what.push(Aspect::Type),
    }
    let checks = [
        (l.mode != r.mode, Aspect::Mode),
        ((l.uid, l.gid) != (r.uid, r.gid), Aspect::Owner),
        (l.mtime != r.mtime, Aspect::Time),
        (l.xattrs != r.xattrs, Aspect::Attributes),
    ];
    what.extend(
        checks
            .iter()
            .filter(|(differs, _)| *differs)
            .map(|(_, aspect)| *aspect),
    );
    what
}

/// Whether all chunks are the same, in the same places, where neither has a hole.
fn same_but_holes(left: &[Extent], right: &[Extent]) -> bool {
    let chunks = |extents: &[Extent]| {
        let mut at = 0u64;
        let mut chunks = Vec::new();
        for extent in extents {
            if let Extent::Chunk { id, .. } = extent {
                chunks.push((at, *id));
            }
            at += extent.length();
        }
        chunks
    };
    let has_hole = |extents: &[Extent]| extents.iter().any(|e| matches!(e, Extent::Hole { .. }));
    (has_hole(left) || has_hole(right)) && chunks(left) == chunks(right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{ChunkId, Timestamp};
    use crate::tree::TreeWriter;

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry {
            path: path.into(),
            kind,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            xattrs: Vec::new(),
        }
    }

    fn file(byte: u8) -> EntryKind {
        EntryKind::File {
            size: 3,
            extents: vec![Extent::Chunk {
                length: 3,
                id: ChunkId([byte; 32]),
            }],
        }
    }

    fn tree(entries: &[Entry]) -> Vec<u8> {
        let mut writer = TreeWriter::new(Vec::new());
        for entry in entries {
            writer.push(entry).unwrap();
        }
        writer.finish().unwrap().1
    }

    #[test]
    fn every_aspect_is_told() {
        let root = entry("", EntryKind::Directory);
        let mut owned = entry("c", file(3));
        owned.uid = 7;
        owned.mtime.nanos = 1;
        let left = tree(&[
            root.clone(),
            entry("a", file(1)),
            entry("b", file(2)),
            entry("c", file(3)),
            entry("d", EntryKind::Fifo),
        ]);
        let right = tree(&[
            root,
            entry("a", file(9)),
            owned,
            entry("d", EntryKind::Directory),
            entry("e", file(1)),
        ]);
        let mut found = Vec::new();
        let equal = compare(&left[..], &right[..], |difference| {
            found.push((String::from_utf8(difference.path).unwrap(), difference.what));
            true
        });
        assert!(!equal.unwrap());
        let wanted = [
            ("a", vec![Aspect::Content]),
            ("b", vec![Aspect::OnlyLeft]),
            ("c", vec![Aspect::Owner, Aspect::Time]),
            ("d", vec![Aspect::Type]),
            ("e", vec![Aspect::OnlyRight]),
        ];
        assert_eq!(found, wanted.map(|(path, what)| (path.to_owned(), what)));
        assert!(compare(&left[..], &left[..], |_| panic!("equal")).unwrap());
    }
}
