//! The bytes of a journal: records that are appended, each with its length and checksum. `docs/journal-format.md` describes
//! them for others.
//!
//! What a crash may leave is a torn tail: a last record that is there in part, or not as it was written. It is dropped.
//! Anything else that does not fit is damage, and a journal that is damaged is refused: what it says decides who owns a
//! container, and a guess could start a second one.

/// Version of the records that this build writes, and the only one that it reads.
pub const VERSION: u8 = 1;
/// Length, checksum, version.
const HEADER: usize = 9;
/// A record larger than this is not ours.
const LARGEST: usize = 64 << 20;

/// A journal as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read<'a> {
    /// The payloads, oldest first.
    pub payloads: Vec<&'a [u8]>,
    /// Bytes of whole records; what follows is a torn tail.
    pub whole: usize,
}

/// Why a journal cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// A record is not what was written, and others follow it.
    #[error(
        "the record at byte {at} is damaged, and whole records follow it: this is no crash, the file was changed or the disk failed"
    )]
    Damaged {
        /// Where it begins.
        at: usize,
    },
    /// Written by another version of tranship.
    #[error("the record at byte {at} has version {found}, and this tranship reads version {VERSION} only")]
    Version {
        /// Where it begins.
        at: usize,
        /// Its version.
        found: u8,
    },
    /// More than a record may hold.
    #[error("a record of {bytes} bytes is too large")]
    TooLarge {
        /// How much it was.
        bytes: usize,
    },
}

/// A record as it is appended.
///
/// # Errors
/// [`JournalError::TooLarge`].
pub fn encode(payload: &[u8]) -> Result<Vec<u8>, JournalError> {
    let length = u32::try_from(payload.len())
        .ok()
        .filter(|_| payload.len() <= LARGEST)
        .ok_or(JournalError::TooLarge { bytes: payload.len() })?;
    let mut record = Vec::with_capacity(HEADER + payload.len());
    record.extend_from_slice(&length.to_le_bytes());
    record.extend_from_slice(&[0; 4]);
    record.push(VERSION);
    record.extend_from_slice(payload);
    let sum = checksum(&record);
    if let Some(place) = record.get_mut(4..8) {
        place.copy_from_slice(&sum.to_le_bytes());
    }
    Ok(record)
}

/// What a journal holds.
///
/// # Errors
/// [`JournalError::Damaged`], [`JournalError::Version`].
pub fn decode(bytes: &[u8]) -> Result<Read<'_>, JournalError> {
    let mut read = Read {
        payloads: Vec::new(),
        whole: 0,
    };
    while let Some(record) = whole_record(bytes, read.whole) {
        let version = record.get(8).copied().unwrap_or_default();
        if version != VERSION {
            return Err(JournalError::Version {
                at: read.whole,
                found: version,
            });
        }
        read.payloads.push(record.get(HEADER..).unwrap_or_default());
        read.whole += record.len();
    }
    // A length that was damaged would hide what follows it: a torn tail has nothing whole after it.
    let hidden = (read.whole + 1..bytes.len()).any(|at| whole_record(bytes, at).is_some());
    if hidden {
        return Err(JournalError::Damaged { at: read.whole });
    }
    Ok(read)
}

/// The record that begins at `at`, if it is there as a whole and as it was written.
fn whole_record(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let rest = bytes.get(at..)?;
    let length = usize::try_from(u32::from_le_bytes(rest.get(..4)?.try_into().ok()?)).ok()?;
    // Nothing is written without a payload; zeros, as some file systems leave them, are no record.
    if length == 0 || length > LARGEST {
        return None;
    }
    let record = rest.get(..HEADER + length)?;
    let sum = u32::from_le_bytes(record.get(4..8)?.try_into().ok()?);
    (sum == checksum(record)).then_some(record)
}

/// CRC-32C over length, version and payload.
fn checksum(record: &[u8]) -> u32 {
    let mut sum: u32 = !0;
    for part in [record.get(..4), record.get(8..)].into_iter().flatten() {
        for byte in part {
            let index = usize::from(sum.to_le_bytes()[0] ^ byte);
            sum = (sum >> 8) ^ TABLE[index];
        }
    }
    !sum
}

/// CRC-32C (Castagnoli), reflected polynomial 0x82F63B78.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 {
                (value >> 1) ^ 0x82F6_3B78
            } else {
                value >> 1
            };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(payloads: &[&[u8]]) -> Vec<u8> {
        payloads.iter().flat_map(|p| encode(p).unwrap()).collect()
    }

    #[test]
    fn the_bytes_are_those_of_the_document() {
        let bytes = encode(b"{\"a\":1}").unwrap();
        let shown: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(shown.join(" "), "07 00 00 00 ed 5b c0 80 01 7b 22 61 22 3a 31 7d");
    }

    #[test]
    fn the_checksum_is_crc32c() {
        // The check value of the catalogue of CRCs, split where the checksum has its hole.
        let mut record = b"1234".to_vec();
        record.extend_from_slice(&[0; 4]);
        record.extend_from_slice(b"56789");
        assert_eq!(checksum(&record), 0xE306_9283);
    }

    #[test]
    fn a_tail_that_is_torn_anywhere_is_dropped() {
        let whole = journal(&[b"one", b"two"]);
        let first = encode(b"one").unwrap().len();
        for length in 0..whole.len() {
            let read = decode(&whole[..length]).unwrap();
            assert_eq!(read.payloads.len(), usize::from(length >= first), "{length}");
            let mut zeros = whole[..length].to_vec();
            zeros.resize(whole.len() + 4096, 0);
            let found = decode(&zeros).unwrap().payloads.len();
            assert_eq!(found, usize::from(length >= first), "{length} and zeros");
        }
        assert_eq!(decode(&whole).unwrap().payloads, [b"one", b"two"]);
    }

    #[test]
    fn every_bit_that_is_flipped_is_found() {
        let whole = journal(&[b"one", b"two", b"three"]);
        let last = encode(b"three").unwrap().len();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            match decode(&bytes) {
                // In the last record it may be a crash; what comes before still counts.
                Ok(read) => {
                    assert!(bit / 8 >= whole.len() - last, "bit {bit} was not seen");
                    assert_eq!(read.payloads, [b"one", b"two"], "bit {bit}");
                }
                Err(error) => assert!(
                    matches!(error, JournalError::Damaged { .. }),
                    "bit {bit}: {error}"
                ),
            }
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = journal(&[b"one"]);
        bytes[8] = 2;
        let sum = checksum(&bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        let error = decode(&bytes).unwrap_err();
        assert_eq!(error, JournalError::Version { at: 0, found: 2 });
        assert!(error.to_string().contains("version 2"), "{error}");
    }
}
