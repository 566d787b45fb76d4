//! The 512-byte header of ustar and GNU tar: fields, numbers, checksum.
//!
//! Layout: POSIX.1-2017 pax, "ustar Interchange Format"; GNU's from the tar manual, "Basic Tar Format".

use crate::error::Defect;

/// Bytes of a block; everything in an archive is padded to whole blocks.
pub const BLOCK: usize = 512;

/// Largest number in the 12-byte octal fields (size and time): 8 GiB − 1.
pub(crate) const OCTAL_12: u64 = 0o77_777_777_777;
/// Largest number in the 8-byte octal fields.
pub(crate) const OCTAL_8: u64 = 0o7_777_777;

/// One block.
pub(crate) type Block = [u8; BLOCK];

/// A field: where it starts and how long it is.
#[derive(Clone, Copy)]
pub(crate) struct Field(pub usize, pub usize);

pub(crate) const NAME: Field = Field(0, 100);
pub(crate) const MODE: Field = Field(100, 8);
pub(crate) const UID: Field = Field(108, 8);
pub(crate) const GID: Field = Field(116, 8);
pub(crate) const SIZE: Field = Field(124, 12);
pub(crate) const MTIME: Field = Field(136, 12);
pub(crate) const CHECKSUM: Field = Field(148, 8);
pub(crate) const KIND: usize = 156;
pub(crate) const LINK: Field = Field(157, 100);
pub(crate) const MAGIC: Field = Field(257, 8);
pub(crate) const MAJOR: Field = Field(329, 8);
pub(crate) const MINOR: Field = Field(337, 8);
pub(crate) const PREFIX: Field = Field(345, 155);
/// star keeps times at the end of the prefix and says so in the last four bytes.
const STAR_PREFIX: Field = Field(345, 131);
const STAR_TRAILER: Field = Field(508, 4);
/// Old GNU sparse header: four extents, "more follow", real size.
const GNU_SPARSE: usize = 386;
const GNU_EXTENDED: usize = 482;
const GNU_REAL_SIZE: Field = Field(483, 12);
/// Old GNU sparse continuation: 21 extents, "more follow".
const GNU_CONTINUED: usize = 504;

pub(crate) const POSIX_MAGIC: &[u8; 8] = b"ustar\x0000";
const GNU_MAGIC: &[u8; 8] = b"ustar  \0";

/// Which of the formats a header is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Before POSIX: no prefix, no device numbers.
    V7,
    Posix,
    Star,
    Gnu,
}

impl Field {
    pub(crate) fn of(self, block: &Block) -> &[u8] {
        block.get(self.0..self.0 + self.1).unwrap_or_default()
    }

    pub(crate) fn put(self, block: &mut Block, bytes: &[u8]) {
        if let Some(field) = block.get_mut(self.0..self.0 + self.1) {
            for (to, from) in field.iter_mut().zip(bytes) {
                *to = *from;
            }
        }
    }

    /// Octal digits with leading zeros and a NUL at the end. The caller checked that the number fits.
    pub(crate) fn put_octal(self, block: &mut Block, number: u64) {
        let width = self.1 - 1;
        self.put(block, format!("{number:0width$o}\0").as_bytes());
    }
}

/// The format of a header.
pub(crate) fn format(block: &Block) -> Format {
    let magic = MAGIC.of(block);
    if magic == GNU_MAGIC {
        Format::Gnu
    } else if magic.starts_with(b"ustar\0") {
        if STAR_TRAILER.of(block) == b"tar\0" {
            Format::Star
        } else {
            Format::Posix
        }
    } else {
        Format::V7
    }
}

/// The sum of all bytes, the checksum itself taken for spaces: as unsigned and, as old writers did it, as signed bytes.
pub(crate) fn sums(block: &Block) -> (i64, i64) {
    let (mut unsigned, mut signed) = (0, 0);
    for (at, &byte) in block.iter().enumerate() {
        let byte = if (CHECKSUM.0..CHECKSUM.0 + CHECKSUM.1).contains(&at) {
            b' '
        } else {
            byte
        };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    (unsigned, signed)
}

/// Writes the checksum; everything else must be in place.
pub(crate) fn seal(block: &mut Block) {
    let sum = sums(block).0;
    CHECKSUM.put(block, format!("{sum:06o}\0 ").as_bytes());
}

/// Checks the checksum.
pub(crate) fn verify(block: &Block) -> Result<(), Defect> {
    let stated = number(CHECKSUM.of(block), "checksum").map_err(|_| Defect::Checksum)?;
    let (unsigned, signed) = sums(block);
    if stated == unsigned || stated == signed {
        Ok(())
    } else {
        Err(Defect::Checksum)
    }
}

/// Reads a number: octal digits, or GNU's base 256 if the first byte is 0x80 (positive) or 0xFF (negative).
///
/// An empty field is zero. Everything but spaces and NUL after the digits is refused, where other readers stop looking.
pub(crate) fn number(field: &[u8], what: &'static str) -> Result<i64, Defect> {
    match field.split_first() {
        Some((0x80, rest)) => base_256(rest, 0, what),
        Some((0xff, rest)) => base_256(rest, -1, what),
        _ => octal(field, what),
    }
}

fn base_256(bytes: &[u8], start: i64, what: &'static str) -> Result<i64, Defect> {
    let mut value = start;
    for &byte in bytes {
        value = value
            .checked_mul(256)
            .and_then(|value| value.checked_add(i64::from(byte)))
            .ok_or(Defect::NumberRange { what })?;
    }
    // A first byte 0xFF means negative; 0xFF 0x00… would be the sign without a number below it.
    if start == 0 || value < 0 {
        Ok(value)
    } else {
        Err(Defect::NumberRange { what })
    }
}

fn octal(field: &[u8], what: &'static str) -> Result<i64, Defect> {
    let text = field.trim_ascii_start();
    let digits = text
        .iter()
        .position(|byte| !(b'0'..=b'7').contains(byte))
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at_checked(digits).unwrap_or((text, &[]));
    if rest.first() == Some(&b'-') && digits.is_empty() {
        return Err(Defect::NumberRange { what });
    }
    if !rest.iter().all(|&byte| byte == b' ' || byte == 0) {
        return Err(Defect::Number { what });
    }
    let mut value: i64 = 0;
    for digit in digits {
        value = value
            .checked_mul(8)
            .and_then(|value| value.checked_add(i64::from(digit - b'0')))
            .ok_or(Defect::NumberRange { what })?;
    }
    Ok(value)
}

/// Reads a number that must not be negative.
pub(crate) fn unsigned(field: &[u8], what: &'static str) -> Result<u64, Defect> {
    u64::try_from(number(field, what)?).map_err(|_| Defect::NumberRange { what })
}

/// Reads a text field: up to the first NUL, after which there must be nothing else.
pub(crate) fn text(field: &[u8]) -> Result<&[u8], Defect> {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    let (text, rest) = field.split_at_checked(end).unwrap_or((field, &[]));
    if rest.iter().any(|&byte| byte != 0) {
        return Err(Defect::NulInName);
    }
    Ok(text)
}

/// The name of a header, prefix included.
pub(crate) fn name(block: &Block) -> Result<Vec<u8>, Defect> {
    let name = text(NAME.of(block))?;
    let prefix = match format(block) {
        Format::Posix => text(PREFIX.of(block))?,
        Format::Star => text(STAR_PREFIX.of(block))?,
        Format::V7 | Format::Gnu => &[],
    };
    if prefix.is_empty() {
        return Ok(name.to_vec());
    }
    let mut whole = prefix.to_vec();
    whole.push(b'/');
    whole.extend_from_slice(name);
    Ok(whole)
}

/// Offsets and lengths as they stand in an archive, not checked yet.
pub(crate) type Pairs = Vec<(u64, u64)>;

/// The extents of an old GNU sparse header as they stand there, whether more follow, and the real size.
pub(crate) fn gnu_sparse(block: &Block) -> Result<(Pairs, bool, u64), Defect> {
    let extents = pairs(block, GNU_SPARSE, 4)?;
    let more = flag(block.get(GNU_EXTENDED))?;
    let real = unsigned(GNU_REAL_SIZE.of(block), "real size")?;
    Ok((extents, more, real))
}

/// The extents of a continuation of an old GNU sparse header, and whether more follow.
pub(crate) fn gnu_sparse_continued(block: &Block) -> Result<(Pairs, bool), Defect> {
    Ok((pairs(block, 0, 21)?, flag(block.get(GNU_CONTINUED))?))
}

fn flag(byte: Option<&u8>) -> Result<bool, Defect> {
    match byte {
        Some(0 | b'0') => Ok(false),
        Some(1 | b'1') => Ok(true),
        _ => Err(Defect::Sparse {
            what: "the mark of a continuation is neither 0 nor 1",
        }),
    }
}

fn pairs(block: &Block, start: usize, count: usize) -> Result<Pairs, Defect> {
    let mut pairs = Vec::new();
    let mut ended = false;
    for index in 0..count {
        let at = start + index * 24;
        let (offset, length) = (Field(at, 12).of(block), Field(at + 12, 12).of(block));
        // An entry without a length ends the list.
        if length.first() == Some(&0) {
            ended = true;
            continue;
        }
        if ended {
            return Err(Defect::Sparse {
                what: "the list of extents has a gap",
            });
        }
        pairs.push((
            unsigned(offset, "sparse offset")?,
            unsigned(length, "sparse length")?,
        ));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_both_forms() {
        assert_eq!(number(b"0000644\0", "n").unwrap(), 0o644);
        assert_eq!(number(b"   644 \0", "n").unwrap(), 0o644);
        assert_eq!(number(b"77777777", "n").unwrap(), 0o77_777_777);
        assert_eq!(number(b"\0\0\0\0\0\0\0\0", "n").unwrap(), 0);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0], "n").unwrap(), 256);
        assert_eq!(number(&[0xff; 12], "n").unwrap(), -1);
        assert_eq!(
            number(&[0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255], "n").unwrap(),
            i64::MAX
        );
        let range = |field: &[u8]| matches!(number(field, "n"), Err(Defect::NumberRange { .. }));
        assert!(range(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]));
        assert!(range(&[
            0x80, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255
        ]));
        assert!(range(&[0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
        assert!(range(b"-000001\0"));
        for bad in [
            &b"0000648\0"[..],
            b"644x\0\0\0\0",
            b"644\x001\0\0\0",
            &[0x81, 0, 0, 0, 0, 0, 0, 1],
            b"0x1\0\0\0\0\0",
        ] {
            assert!(matches!(number(bad, "n"), Err(Defect::Number { .. })), "{bad:?}");
        }
    }

    #[test]
    fn text_after_the_end_of_a_name_is_refused() {
        assert_eq!(text(b"abc\0\0").unwrap(), b"abc");
        assert_eq!(text(b"abcde").unwrap(), b"abcde");
        assert!(matches!(text(b"abc\0d"), Err(Defect::NulInName)));
    }
}
