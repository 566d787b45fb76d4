//! Content-defined cutting: where a file is cut depends on its bytes only, so an insertion moves cuts near it and no others.
//!
//! This is FastCDC: a gear hash rolls over the bytes, and a chunk ends where its bits under a mask are zero. No cut is looked for
//! before the shortest length; up to the average a stricter mask is used and after it a laxer one, which keeps lengths near the
//! average. A cut depends on the bytes since the cut before, and on nothing else: after a cut that two versions of a file have in
//! common they have all cuts in common for as long as their bytes are equal. Cutting begins anew after each hole.
//!
//! Where cuts are is part of what a tree id means, so the table and the sizes never change; tests hold them.

use crate::tree::MAX_CHUNK;

/// Files up to this many bytes are one chunk (one per stretch between holes).
pub const ONE_CHUNK: u64 = 64 << 10;

/// Lengths of chunks in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Shortest, but for the last one before a hole or the end.
    min: usize,
    /// Binary logarithm of the average.
    bits: u32,
    /// Longest.
    max: usize,
}

impl Sizes {
    /// Lengths for a file of `size` bytes, holes included: the manifest takes less than 0.1 % of the data.
    #[must_use]
    pub fn of(size: u64) -> Self {
        let by_bits = |bits: u32| Self {
            min: 1 << (bits - 2),
            bits,
            max: (1 << (bits + 2)).min(MAX_CHUNK as usize),
        };
        if size <= ONE_CHUNK {
            Self {
                min: ONE_CHUNK as usize,
                bits: 16,
                max: ONE_CHUNK as usize,
            }
        } else if size < 64 << 20 {
            by_bits(16)
        } else if size < 4 << 30 {
            by_bits(18)
        } else if size < 1 << 40 {
            by_bits(20)
        } else {
            by_bits(21)
        }
    }

    /// Longest chunk in bytes.
    #[must_use]
    pub fn max(&self) -> usize {
        self.max
    }

    /// Length of the chunk that begins where `data` begins. Whoever calls gives at least [`Self::max`] bytes, or all that there
    /// are up to the next hole or the end; with fewer, the chunk ends with `data`.
    #[must_use]
    pub fn cut(&self, data: &[u8]) -> usize {
        let end = data.len().min(self.max);
        if end <= self.min {
            return end;
        }
        let average = (1_usize << self.bits).min(end);
        // The highest bits hold something of the most bytes; the very top one is left out.
        let strict = top_bits(self.bits + 2);
        let lax = top_bits(self.bits - 2);
        let mut hash = 0;
        if let Some(at) = find(&data[self.min..average], &mut hash, strict) {
            return self.min + at;
        }
        let from = average.max(self.min);
        match find(&data[from..end], &mut hash, lax) {
            Some(at) => from + at,
            None => end,
        }
    }
}

/// Rolls over `data` and returns how many bytes there are up to the first place where the hash has no bit under the mask.
#[inline]
fn find(data: &[u8], hash: &mut u64, mask: u64) -> Option<usize> {
    let mut rolling = *hash;
    let (quads, rest) = data.as_chunks::<4>();
    // Four bytes per turn: what they add does not depend on the hash before, so the processor computes it ahead.
    for (at, quad) in quads.iter().enumerate() {
        let one = GEAR[quad[0] as usize];
        let two = (one << 1).wrapping_add(GEAR[quad[1] as usize]);
        let three = (two << 1).wrapping_add(GEAR[quad[2] as usize]);
        let four = (three << 1).wrapping_add(GEAR[quad[3] as usize]);
        let hashes = [
            (rolling << 1).wrapping_add(one),
            (rolling << 2).wrapping_add(two),
            (rolling << 3).wrapping_add(three),
            (rolling << 4).wrapping_add(four),
        ];
        if hashes[0] & mask == 0 {
            return Some(4 * at + 1);
        }
        if hashes[1] & mask == 0 {
            return Some(4 * at + 2);
        }
        if hashes[2] & mask == 0 {
            return Some(4 * at + 3);
        }
        if hashes[3] & mask == 0 {
            return Some(4 * at + 4);
        }
        rolling = hashes[3];
    }
    for (at, byte) in rest.iter().enumerate() {
        rolling = (rolling << 1).wrapping_add(GEAR[*byte as usize]);
        if rolling & mask == 0 {
            return Some(4 * quads.len() + at + 1);
        }
    }
    *hash = rolling;
    None
}

const fn top_bits(bits: u32) -> u64 {
    ((1 << bits) - 1) << (63 - bits)
}

/// A random number for each byte.
static GEAR: [u64; 256] = gear();

/// The first outputs of SplitMix64 from 0.
const fn gear() -> [u64; 256] {
    let mut table = [0; 256];
    let mut state: u64 = 0;
    let mut at = 0;
    while at < 256 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = state;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[at] = value ^ (value >> 31);
        at += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes that look random and never change.
    fn noise(length: usize, seed: u64) -> Vec<u8> {
        let mut out = vec![0; length];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.finalize_xof().fill(&mut out);
        out
    }

    fn cuts(sizes: Sizes, mut data: &[u8]) -> Vec<usize> {
        let mut lengths = Vec::new();
        while !data.is_empty() {
            let length = sizes.cut(data);
            lengths.push(length);
            data = &data[length..];
        }
        lengths
    }

    /// The definition, byte by byte.
    fn plain_cut(sizes: Sizes, data: &[u8]) -> usize {
        let mut hash: u64 = 0;
        for at in 0..data.len().min(sizes.max) {
            if at < sizes.min {
                continue;
            }
            hash = (hash << 1).wrapping_add(GEAR[data[at] as usize]);
            let bits = if at < 1 << sizes.bits {
                sizes.bits + 2
            } else {
                sizes.bits - 2
            };
            if hash & top_bits(bits) == 0 {
                return at + 1;
            }
        }
        data.len().min(sizes.max)
    }

    #[test]
    fn cuts_are_where_they_always_were() {
        assert_eq!(GEAR[0], 0xe220_a839_7b1d_cdaf, "the first output of SplitMix64");
        assert_eq!(GEAR[255], LAST);
        let data = noise(2 << 20, 1);
        assert_eq!(cuts(Sizes::of(1 << 20), &data[..1 << 20]), VECTOR_64K);
        assert_eq!(cuts(Sizes::of(100 << 20), &data), VECTOR_256K);
        assert_eq!(cuts(Sizes::of(1 << 20), &vec![0; 600_000]), VECTOR_ZEROS);
        assert_eq!(cuts(Sizes::of(65_536), &data[..65_536]), [65_536]);
        assert_eq!(cuts(Sizes::of(1), &data[..1]), [1]);
    }
    const LAST: u64 = 6510009041307890078;
    const VECTOR_64K: &[usize] = &[
        81026, 66920, 83653, 34252, 83545, 69698, 75534, 66729, 80533, 32659, 127750, 71660, 66736, 70025,
        37856,
    ];
    const VECTOR_256K: &[usize] = &[
        265851, 269417, 139281, 199410, 273433, 231223, 74116, 262430, 288786, 93205,
    ];
    const VECTOR_ZEROS: &[usize] = &[262144, 262144, 75712];

    #[test]
    fn lengths_are_near_the_average() {
        for (size, average) in [(1 << 20, 64 << 10), (1 << 30, 256 << 10), (8 << 30, 1 << 20)] {
            let sizes = Sizes::of(size);
            let lengths = cuts(sizes, &noise(200 * average, 7));
            let mean = 200 * average / lengths.len();
            assert!(
                (average * 3 / 4..average * 3 / 2).contains(&mean),
                "{mean} for {average}"
            );
            assert!(
                lengths[..lengths.len() - 1]
                    .iter()
                    .all(|l| (sizes.min..=sizes.max).contains(l))
            );
        }
    }

    #[test]
    fn the_manifest_is_less_than_a_thousandth() {
        for size in [65_537_u64, (64 << 20) - 1, 64 << 20, 4 << 30, 1 << 40] {
            assert!(36 * 1000 <= 1 << Sizes::of(size).bits, "{size}");
        }
    }

    #[test]
    fn an_insertion_moves_few_cuts() {
        let sizes = Sizes::of(1 << 20);
        let data = noise(4 << 20, 3);
        let mut other = data.clone();
        other.splice(1_000_000..1_000_000, noise(100, 4));
        let ends = |data: &[u8]| {
            let mut at = 0;
            cuts(sizes, data)
                .iter()
                .map(|l| {
                    at += l;
                    data.len() - at
                })
                .collect::<std::collections::HashSet<_>>()
        };
        let (a, b) = (ends(&data), ends(&other));
        assert!(a.intersection(&b).count() > a.len() * 3 / 5, "cuts after it stay");
    }

    /// `cargo test --release -p tranship-content chunk -- --ignored --nocapture` in isolation tells how fast it is.
    #[test]
    #[ignore = "measures"]
    #[allow(clippy::print_stderr)] // A measurement.
    fn speed() {
        let data = noise(256 << 20, 1);
        for size in [1 << 20, 1 << 30, 8 << 30] {
            let began = std::time::Instant::now();
            let count = cuts(Sizes::of(size), &data).len();
            let rate = data.len() as f64 / began.elapsed().as_secs_f64() / 1e9;
            eprintln!("{count} chunks, {rate:.2} GB/s");
        }
    }

    proptest! {
        #[test]
        fn the_fast_way_is_the_definition(seed: u64, length in 0_usize..400_000, few in any::<bool>(), big in any::<bool>()) {
            let mut data = noise(length, seed);
            if few {
                data.iter_mut().for_each(|byte| *byte &= 1);
            }
            let sizes = Sizes::of(if big { 1 << 30 } else { 1 << 20 });
            prop_assert_eq!(sizes.cut(&data), plain_cut(sizes, &data));
        }

        #[test]
        fn a_cut_needs_no_more_than_the_longest_chunk(seed: u64, more in 0_usize..300_000) {
            let sizes = Sizes::of(1 << 20);
            let data = noise(sizes.max() + more, seed);
            prop_assert_eq!(sizes.cut(&data), sizes.cut(&data[..sizes.max()]));
        }
    }
}
