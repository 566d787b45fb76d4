//! How long a freeze is expected to last, from the rounds that there were. Arithmetic alone; `data` decides what follows from it.

use crate::record::RoundRecord;

/// What the freeze takes beside the data: stopping, a record, starting. An estimate for predictions.
const FREEZE_FIXED_MS: u64 = 700;
/// Entries that are looked at in a millisecond when nothing of them changed. An estimate for predictions.
const LOOKS_PER_MS: u64 = 250;

/// Entries up to which the destination looks at them before a freeze, which takes a second or two: what the source writes meanwhile is one
/// more thing to carry in the freeze, where both ends would look at the same time otherwise.
const MEETING_ENTRIES: u64 = 500_000;

/// Whether the destination is to look through what it holds before a freeze, by the entries of the last round.
#[must_use]
pub fn meets_before(entries: u64) -> bool {
    entries <= MEETING_ENTRIES
}

/// Milliseconds that a freeze right after these rounds would last: a look at everything, and what was written while the last
/// round ran, as fast as bytes went in the fastest one.
pub(super) fn predict(rounds: &[RoundRecord]) -> u64 {
    let Some(last) = rounds.last() else {
        return FREEZE_FIXED_MS;
    };
    let per_ms = fastest(rounds);
    let Some(previous) = rounds.iter().rev().nth(1) else {
        // The first round tells how much there is, not how fast it changes.
        return FREEZE_FIXED_MS.saturating_add(last.entries / LOOKS_PER_MS);
    };
    let looking = last.took_ms.saturating_sub(last.literal_bytes / per_ms);
    FREEZE_FIXED_MS
        .saturating_add(looking)
        .saturating_add(carry(last, previous, per_ms, last.took_ms))
}

/// Bytes in a millisecond, in the round in which most went.
fn fastest(rounds: &[RoundRecord]) -> u64 {
    let speeds = rounds.iter().map(|r| r.literal_bytes / r.took_ms.max(1));
    speeds.max().unwrap_or(0).max(1)
}

/// Milliseconds that it takes to carry what is written in `ms` milliseconds. What the last round sent was written while the one
/// before ran.
fn carry(last: &RoundRecord, previous: &RoundRecord, per_ms: u64, ms: u64) -> u64 {
    last.literal_bytes.saturating_mul(ms) / previous.took_ms.max(1) / per_ms
}

/// Milliseconds by which a freeze is longer when it begins `ms` milliseconds after the last of these rounds.
pub(super) fn longer_after(rounds: &[RoundRecord], ms: u64) -> u64 {
    match rounds {
        [.., previous, last] => carry(last, previous, fastest(rounds), ms),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(entries: u64, literal_bytes: u64, took_ms: u64) -> RoundRecord {
        RoundRecord {
            entries,
            literal_bytes,
            took_ms,
            ..RoundRecord::default()
        }
    }

    #[test]
    fn the_freeze_is_a_look_and_what_was_written_meanwhile() {
        assert_eq!(predict(&[]), FREEZE_FIXED_MS);
        assert_eq!(predict(&[round(100_000, 1 << 30, 5_000)]), FREEZE_FIXED_MS + 400);
        // 200 bytes a millisecond travel; of the second round's 200 ms, 100 ms went for 20,000 bytes that were written in
        // 10 s, so 400 bytes were written during it.
        let rounds = [round(10, 2_000_000, 10_000), round(10, 20_000, 200)];
        assert_eq!(predict(&rounds), FREEZE_FIXED_MS + 100 + 2);
        assert_eq!(longer_after(&rounds, 1_000), 10);
        assert_eq!(longer_after(&rounds[..1], 1_000), 0);
    }
}
