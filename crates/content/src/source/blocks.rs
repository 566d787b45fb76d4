//! What a stretch of a file has in common with a stretch of the base of which only hashes of short blocks are known.

use xxhash_rust::xxh3::xxh3_64;

use bytes::Bytes;

use crate::message::Part;

/// Bytes of a block for a stretch of the base of this many bytes: short ones send less around a change, and cost more hashes on the
/// way back.
fn block_for(length: u64) -> u32 {
    match length {
        0..=0x1000 => 32,
        0x1001..=0xffff => 64,
        0x1_0000..=0x3_ffff => 256,
        0x4_0000..=0xf_ffff => 512,
        _ => 1024,
    }
}

/// A stretch that both have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Match {
    /// Where it begins in the new bytes.
    pub(super) new: usize,
    /// Where it begins in the base's stretch.
    pub(super) base: usize,
    /// Its length in bytes.
    pub(super) length: usize,
}

/// A stretch of the base, cut in blocks at multiples of their length in the file, as pages are: the first may be shorter, and so may
/// the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grid {
    /// Length of a block in bytes.
    pub(super) block: u32,
    /// Length of a first block that is shorter; 0 if it is not.
    pub(super) head: u32,
    /// Length of the stretch in bytes.
    pub(super) length: u32,
}

impl Grid {
    /// For the stretch that begins at `from` in a file.
    pub(super) fn of(from: u64, length: u32) -> Self {
        let block = block_for(u64::from(length));
        let over = (from % u64::from(block)) as u32;
        Self {
            block,
            head: if over == 0 { 0 } else { (block - over).min(length) },
            length,
        }
    }

    /// Number of blocks.
    pub(super) fn count(&self) -> usize {
        (u32::from(self.head > 0) + (self.length - self.head).div_ceil(self.block)) as usize
    }

    /// Where a block begins in the stretch, and its length.
    fn block_at(&self, index: usize) -> (usize, usize) {
        let (block, head) = (self.block as usize, self.head as usize);
        match index {
            0 if head > 0 => (0, head),
            _ => {
                let at = head + (index - usize::from(head > 0)) * block;
                (at, block.min((self.length as usize).saturating_sub(at)))
            }
        }
    }
}

/// Finds blocks of the base's stretch in `new`: at the same distance from the beginning, or from the end. So both changes in place
/// and one insertion or deletion are found. Matches are in order and don't overlap.
pub(super) fn matches(new: &[u8], grid: Grid, hashes: &[u64]) -> Vec<Match> {
    let base_length = grid.length as usize;
    let mut found: Vec<Match> = Vec::new();
    let mut done = 0;
    for (index, hash) in hashes.iter().enumerate() {
        let (base, length) = grid.block_at(index);
        if length == 0 {
            break;
        }
        let from_end = (new.len() + base).checked_sub(base_length);
        let mut places = [Some(base), from_end];
        if places[0] == places[1] {
            places[1] = None;
        }
        let here = places
            .into_iter()
            .flatten()
            .find(|at| *at >= done && at + length <= new.len() && xxh3_64(&new[*at..at + length]) == *hash);
        let Some(at) = here else { continue };
        done = at + length;
        match found.last_mut() {
            Some(last) if last.new + last.length == at && last.base + last.length == base => {
                last.length += length;
            }
            _ => found.push(Match {
                new: at,
                base,
                length,
            }),
        }
    }
    found
}

/// How a chunk is made from the base's stretch.
#[derive(Debug)]
pub(super) struct Patch {
    /// First byte of the base's part that is needed, counted from the beginning of its stretch.
    pub(super) from: usize,
    /// Length of that part.
    pub(super) length: usize,
    pub(super) parts: Vec<Part>,
    /// Bytes that have to be sent.
    pub(super) literal: usize,
}

/// Makes the chunk that is `bytes` and begins at `at` in the new bytes out of matches. `None` if that would save little. With
/// `not_before`, no byte of the base's stretch before that place is used.
pub(super) fn patch(
    bytes: &Bytes,
    at: usize,
    matches: &[Match],
    not_before: Option<usize>,
    most: usize,
) -> Option<Patch> {
    let end = at + bytes.len();
    let mut parts: Vec<(usize, usize, Option<usize>)> = Vec::new();
    let mut done = at;
    let (mut low, mut high) = (usize::MAX, 0);
    let first = matches.partition_point(|found| found.new + found.length <= at);
    for found in &matches[first..] {
        if found.new >= end {
            break;
        }
        let from = found.new.max(at);
        let to = (found.new + found.length).min(end);
        let base = found.base + (from - found.new);
        // The base's part has to fit into what one patch may read.
        let (next_low, next_high) = (low.min(base), high.max(base + to - from));
        if not_before.is_some_and(|least| base < least) || next_high - next_low > most {
            continue;
        }
        (low, high) = (next_low, next_high);
        if from > done {
            parts.push((done - at, from - done, None));
        }
        parts.push((from - at, to - from, Some(base)));
        done = to;
    }
    if done < end {
        parts.push((done - at, end - done, None));
    }
    let literal: usize = parts
        .iter()
        .filter(|(_, _, base)| base.is_none())
        .map(|(_, length, _)| length)
        .sum();
    if high == 0 || literal + 8 * parts.len() + 16 >= bytes.len() {
        return None;
    }
    let parts = parts
        .into_iter()
        .map(|(from, length, base)| match base {
            // Chunks and stretches have 4 MiB at most.
            Some(base) => Part::Base {
                offset: (base - low) as u32,
                length: length as u32,
            },
            None => Part::Literal(bytes.slice(from..from + length)),
        })
        .collect();
    Some(Patch {
        from: low,
        length: high - low,
        parts,
        literal,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(length: usize, seed: u64) -> Vec<u8> {
        let mut out = vec![0; length];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.finalize_xof().fill(&mut out);
        out
    }

    fn hashes(base: &[u8], grid: Grid) -> Vec<u64> {
        let (head, rest) = base.split_at(grid.head as usize);
        let blocks = rest.chunks(grid.block as usize);
        let head = (!head.is_empty()).then_some(head);
        head.into_iter().chain(blocks).map(xxh3_64).collect()
    }

    fn made(base: &[u8], patch: &Patch) -> Vec<u8> {
        let base = &base[patch.from..patch.from + patch.length];
        let mut out = Vec::new();
        for part in &patch.parts {
            match part {
                Part::Base { offset, length } => {
                    out.extend_from_slice(&base[*offset as usize..][..*length as usize]);
                }
                Part::Literal(bytes) => out.extend_from_slice(bytes),
            }
        }
        out
    }

    fn literal(base: &[u8], new: &[u8], block: u32) -> usize {
        let grid = Grid {
            block,
            head: 0,
            length: base.len() as u32,
        };
        assert_eq!(hashes(base, grid).len(), grid.count());
        let found = matches(new, grid, &hashes(base, grid));
        let bytes = Bytes::copy_from_slice(new);
        match patch(&bytes, 0, &found, None, 4 << 20) {
            Some(patch) => {
                assert_eq!(made(base, &patch), new);
                patch.literal
            }
            None => new.len(),
        }
    }

    #[test]
    fn small_changes_stay_small() {
        let base = noise(100_000, 1);
        assert_eq!(literal(&base, &base, 256), 0);
        let mut page = base.clone();
        page[8192..12_288].copy_from_slice(&noise(4096, 2));
        assert_eq!(literal(&base, &page, 256), 4096);
        let mut inserted = base.clone();
        inserted.splice(50_000..50_000, noise(700, 3));
        assert!(literal(&base, &inserted, 256) <= 700 + 512);
        let mut deleted = base.clone();
        deleted.drain(50_000..60_000);
        assert!(literal(&base, &deleted, 256) <= 512);
        let mut appended = base.clone();
        appended.extend(noise(1000, 4));
        assert!(literal(&base, &appended, 256) <= 1000 + 256);
        assert_eq!(literal(&base, &noise(100_000, 5), 256), 100_000);
    }

    proptest! {
        #[test]
        fn a_patch_makes_the_bytes(
            base in proptest::collection::vec(0_u8..3, 0..4000),
            new in proptest::collection::vec(0_u8..3, 1..4000),
            same in 0_usize..4000,
            block in 1_u32..200,
            head in 0_u32..200,
            cut in 0_usize..4000,
            not_before in proptest::option::of(0_usize..3000),
            most in 1_usize..5000,
        ) {
            // Something in common.
            let mut new = new;
            let same = same.min(base.len()).min(new.len());
            new[..same].copy_from_slice(&base[..same]);
            let length = base.len() as u32;
            let grid = Grid { block, head: (head % block).min(length), length };
            prop_assert_eq!(hashes(&base, grid).len(), grid.count());
            let found = matches(&new, grid, &hashes(&base, grid));
            let cut = cut.min(new.len());
            for (at, bytes) in [(0, &new[..cut]), (cut, &new[cut..])] {
                let bytes = Bytes::copy_from_slice(bytes);
                if let Some(patch) = patch(&bytes, at, &found, not_before, most) {
                    prop_assert_eq!(&made(&base, &patch), &bytes);
                    prop_assert!(patch.length <= most);
                    prop_assert!(not_before.is_none_or(|least| patch.from >= least));
                }
            }
        }
    }
}
