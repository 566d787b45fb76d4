//! Checks a whole manifest, and with it what a stream alone cannot tell.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};

use super::error::shown;
use super::write::encode_attributes;
use super::{TreeError, TreeReader, TreeSummary};
use crate::entry::{Entry, EntryKind, TreeId};

/// Most files with several names in one manifest. Each takes its path and about 100 bytes of memory.
pub const MAX_HARDLINK_GROUPS: usize = 1 << 20;

/// What is known about a path that hard links lead to.
#[derive(Clone, Copy)]
struct Head {
    /// Hash of the attributes that its further names have.
    links: u64,
    seen: bool,
}

/// Reads a manifest from its beginning to its end, twice if it has hard links, and refuses one that is not what a writer would
/// have written.
///
/// # Errors
///
/// The first thing that is wrong with it.
pub fn check<R: Read + Seek>(mut input: R, wanted: Option<TreeId>) -> Result<TreeSummary, TreeError> {
    input.seek(SeekFrom::Start(0))?;
    let mut heads: HashMap<Vec<u8>, Head> = HashMap::new();
    let mut scratch = Vec::new();
    let mut reader = TreeReader::new(&mut input);
    while let Some(entry) = reader.next()? {
        let EntryKind::Hardlink { target } = &entry.kind else {
            continue;
        };
        let links = attributes(&entry, &mut scratch);
        match heads.get(target) {
            Some(head) if head.links != links => return Err(differs(&entry, target)),
            Some(_) => {}
            None => {
                if heads.len() >= MAX_HARDLINK_GROUPS {
                    return Err(TreeError::HardlinkGroups);
                }
                heads.insert(target.clone(), Head { links, seen: false });
            }
        }
    }
    let summary = reader.finish(wanted)?;
    if heads.is_empty() {
        return Ok(summary);
    }
    input.seek(SeekFrom::Start(0))?;
    let mut reader = TreeReader::new(&mut input);
    while let Some(entry) = reader.next()? {
        match &entry.kind {
            EntryKind::Hardlink { target } => {
                if !heads.get(target).is_some_and(|head| head.seen) {
                    return Err(TreeError::Hardlink {
                        path: shown(&entry.path),
                        target: shown(target),
                        reason: "which is not there, or has no names of its own",
                    });
                }
            }
            EntryKind::Directory => {}
            _ => {
                if let Some(head) = heads.get_mut(&entry.path) {
                    if head.links != attributes(&entry, &mut scratch) {
                        return Err(differs(&entry, &entry.path));
                    }
                    head.seen = true;
                }
            }
        }
    }
    // What was read twice must have been the same twice.
    reader.finish(Some(summary.id))
}

fn differs(entry: &Entry, target: &[u8]) -> TreeError {
    TreeError::Hardlink {
        path: shown(&entry.path),
        target: shown(target),
        reason: "whose attributes are others",
    }
}

fn attributes(entry: &Entry, scratch: &mut Vec<u8>) -> u64 {
    scratch.clear();
    encode_attributes(entry, scratch);
    let hash = blake3::hash(scratch);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(first)
}
