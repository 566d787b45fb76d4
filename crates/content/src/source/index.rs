//! Where chunks are in the base's files that are gone or may have changed, so that what moved is not sent.

use std::collections::HashMap;

use crate::entry::{ChunkId, EntryKind, Extent, compare_paths};
use crate::scan::{Base, BaseEntries, ScanError, Todo};

/// Most chunks of the index: about 60 MiB of memory, besides the paths.
pub(super) const MAX_CHUNKS: usize = 1 << 20;
/// Files from this many bytes on, before and after, may be written to in place.
pub(crate) const IN_PLACE: u64 = 4 << 20;

/// Chunks by name.
#[derive(Debug, Default)]
pub(super) struct Index {
    chunks: HashMap<ChunkId, (u32, u64)>,
    paths: Vec<Vec<u8>>,
}

impl Index {
    /// Reads the base beside what there is to do.
    pub(super) fn of(base: &Base, todo: &Todo) -> Result<Self, ScanError> {
        let mut index = Self::default();
        let mut entries = BaseEntries::open(base)?;
        let mut records = todo.records()?;
        while let Some(record) = records.next()? {
            while entries
                .peek()
                .is_some_and(|entry| compare_paths(&entry.path, &record.path).is_lt())
            {
                entries.take()?;
            }
            if entries.peek().is_none_or(|entry| entry.path != record.path) {
                continue;
            }
            let Some((entry, _)) = entries.take()? else { break };
            let EntryKind::File { size, extents } = entry.kind else {
                continue;
            };
            // A file that is written to in place is not what it was any more when files after it could refer to it.
            if record.look.is_some() && size >= IN_PLACE {
                continue;
            }
            if !index.add(entry.path, &extents) {
                break;
            }
        }
        Ok(index)
    }

    fn add(&mut self, path: Vec<u8>, extents: &[Extent]) -> bool {
        let file = self.paths.len() as u32;
        let mut at = 0;
        for extent in extents {
            if let Extent::Chunk { id, .. } = extent {
                if self.chunks.len() >= MAX_CHUNKS {
                    break;
                }
                self.chunks.entry(*id).or_insert((file, at));
            }
            at += extent.length();
        }
        self.paths.push(path);
        self.chunks.len() < MAX_CHUNKS
    }

    /// Path and offset of a chunk.
    pub(super) fn find(&self, id: &ChunkId) -> Option<(&[u8], u64)> {
        let (file, at) = *self.chunks.get(id)?;
        Some((self.paths.get(file as usize)?, at))
    }

    /// It is there.
    pub(super) fn has(&self, id: &ChunkId) -> bool {
        self.chunks.contains_key(id)
    }
}
