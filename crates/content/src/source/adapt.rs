//! Whether compressing the next frame makes the round faster.
//!
//! Compression helps when the link is what everything waits for and processors have time. The writer sees both: its queue is full for
//! long, few bytes per second go through, and the processors are idle for a good part (`/proc/stat`). On a fast link, or between
//! two hosts that are short of processor time, it is off.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tranship_core::storage::Compression;

/// How often it is decided anew.
const PERIOD: Duration = Duration::from_millis(300);
/// A link that takes more bytes per second than this is faster than compression is worth.
const FAST: f64 = 200e6;
/// Level where nobody asked for one.
const LEVEL: i32 = 1;
/// Frames shorter than this stay as they are.
const SHORT: usize = 512;

pub(super) struct Adapt {
    compression: Compression,
    on: bool,
    /// Beginning of the period, bytes and busy processors then.
    since: Instant,
    bytes: u64,
    idle: Option<f64>,
    full: u32,
    frames: u32,
    sample: Option<zstd::bulk::Compressor<'static>>,
}

impl Adapt {
    pub(super) fn new(compression: Compression, limit: Option<u64>) -> Self {
        Self {
            compression,
            // A limit below what a processor compresses makes the link the slow part for sure.
            on: limit.is_some_and(|limit| (limit as f64) < FAST),
            since: Instant::now(),
            bytes: 0,
            idle: idle_seconds(),
            full: 0,
            frames: 0,
            sample: None,
        }
    }

    /// Level for a frame; `None`: as it is.
    pub(super) fn level(&mut self, parts: &[Bytes]) -> Option<i32> {
        let length: usize = parts.iter().map(Bytes::len).sum();
        if length < SHORT {
            return None;
        }
        match self.compression {
            Compression::None => None,
            Compression::Zstd(level) => Some(level),
            Compression::Auto if !self.on => None,
            Compression::Auto => self.compressible(parts).then_some(LEVEL),
        }
    }

    /// Tries a small piece of each of the largest parts.
    fn compressible(&mut self, parts: &[Bytes]) -> bool {
        let Some(largest) = parts.iter().max_by_key(|part| part.len()) else {
            return false;
        };
        let middle = largest.len() / 2;
        let piece = &largest[middle.saturating_sub(2048)..(middle + 2048).min(largest.len())];
        let sample = match &mut self.sample {
            Some(sample) => sample,
            none => match zstd::bulk::Compressor::new(1) {
                Ok(new) => none.insert(new),
                Err(_) => return false,
            },
        };
        sample
            .compress(piece)
            .is_ok_and(|packed| packed.len() < piece.len() - piece.len() / 8)
    }

    /// A frame was written, with so many bytes in all so far; the queue behind it is full or not.
    pub(super) fn wrote(&mut self, written: u64, full: bool) {
        if self.compression != Compression::Auto {
            return;
        }
        self.frames += 1;
        self.full += u32::from(full);
        let elapsed = self.since.elapsed();
        if elapsed < PERIOD {
            return;
        }
        let seconds = elapsed.as_secs_f64();
        let rate = (written - self.bytes) as f64 / seconds;
        let idle = idle_seconds();
        let idle_share = match (self.idle, idle) {
            (Some(before), Some(now)) => (now - before) / seconds,
            _ => 0.0,
        };
        let waited = self.full * 10 >= self.frames * 8;
        // Half a processor is enough to compress what such a link takes.
        self.on =
            rate < FAST && waited && idle_share > 0.5 || self.on && rate < FAST && waited && idle_share > 0.2;
        self.since = Instant::now();
        self.bytes = written;
        self.idle = idle;
        self.full = 0;
        self.frames = 0;
    }
}

/// Seconds that all processors together were idle since the start.
fn idle_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let mut fields = stat.lines().next()?.split_whitespace().skip(1);
    let idle: f64 = fields.nth(3)?.parse().ok()?;
    let waiting: f64 = fields.next()?.parse().ok()?;
    // In hundredths on every Linux there is.
    Some((idle + waiting) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_says_is_done() {
        let text = [Bytes::from(vec![b'a'; 100_000])];
        assert_eq!(Adapt::new(Compression::None, None).level(&text), None);
        assert_eq!(Adapt::new(Compression::Zstd(7), None).level(&text), Some(7));
        assert_eq!(Adapt::new(Compression::Auto, None).level(&text), None);
        let mut limited = Adapt::new(Compression::Auto, Some(1 << 20));
        assert_eq!(limited.level(&text), Some(LEVEL));
        let mut random = vec![0; 100_000];
        blake3::Hasher::new().finalize_xof().fill(&mut random);
        assert_eq!(limited.level(&[Bytes::from(random)]), None, "nothing to gain");
    }
}
