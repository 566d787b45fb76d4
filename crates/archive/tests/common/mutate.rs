//! Damages what others wrote, the same way in every run.

use super::Random;

/// Bytes that formats give a meaning to.
const TELLING: &[u8] = b"\0\n /=%&:,.-+0178xgLKSDVM\x80\xff\x7f{}\"'?#";

/// Changes some bytes.
pub fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(4) {
        let length = bytes.len() as u64;
        let at = random.below(length + 1) as usize;
        match random.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = *random.pick(TELLING),
            2 => bytes.insert(at, *random.pick(TELLING)),
            3 if at < bytes.len() => {
                bytes.remove(at);
            }
            4 => bytes.truncate(at),
            5 if at < bytes.len() => {
                let end = (at + random.below(600) as usize).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = random.below(length) as usize;
                bytes.splice(to..to, piece);
            }
            _ if at < bytes.len() => {
                let end = (at + random.below(16) as usize).min(bytes.len());
                bytes[at..end].fill(*random.pick(TELLING));
            }
            _ => {}
        }
    }
}

/// Makes the checksums of all blocks that look like headers right.
pub fn seal(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}
