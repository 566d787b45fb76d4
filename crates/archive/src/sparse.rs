//! Where a file with holes has data.

/// The extents of a file that hold data: in order, not overlapping, none empty, all within the file's size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SparseMap {
    extents: Vec<Extent>,
}

/// A run of bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

impl Extent {
    /// The first byte after it. Extents of a map never overflow.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

impl SparseMap {
    /// A map of a file of `size` bytes. Empty extents are left out, as some writers mark the end of a file with one.
    ///
    /// # Errors
    ///
    /// What is wrong, in words, if extents overlap, are out of order or reach over the end.
    pub fn new(extents: impl IntoIterator<Item = Extent>, size: u64) -> Result<Self, &'static str> {
        let mut kept: Vec<Extent> = Vec::new();
        let mut end = 0;
        for extent in extents {
            let after = extent
                .offset
                .checked_add(extent.length)
                .ok_or("an extent is longer than any file")?;
            if extent.offset < end {
                return Err("extents overlap or are out of order");
            }
            if after > size {
                return Err("an extent reaches over the end of the file");
            }
            end = after;
            if extent.length > 0 {
                kept.push(extent);
            }
        }
        Ok(Self { extents: kept })
    }

    /// The extents in order.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Bytes of data in all extents.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.extents.iter().map(|extent| extent.length).sum()
    }

    /// The data fills a file of `size` bytes without a hole.
    #[must_use]
    pub fn is_dense(&self, size: u64) -> bool {
        self.stored() == size
    }
}

/// Reads a decimal number of a sparse map or of a PAX record: digits only, at most 2⁶³ − 1.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 20 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    i64::try_from(number).ok().map(i64::unsigned_abs)
}

/// The map of GNU format 1.0 as it stands before the data, padded to whole blocks.
pub(crate) fn text_of_map(map: &SparseMap, size: u64) -> Vec<u8> {
    let mut pairs = map.extents.clone();
    // GNU tar wants the size marked by an empty extent where the file ends with a hole.
    if pairs.last().is_none_or(|last| last.end() < size) {
        pairs.push(Extent {
            offset: size,
            length: 0,
        });
    }
    let mut text = format!("{}\n", pairs.len()).into_bytes();
    for extent in pairs {
        text.extend_from_slice(format!("{}\n{}\n", extent.offset, extent.length).as_bytes());
    }
    text.resize(text.len().next_multiple_of(crate::header::BLOCK), 0);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(u64, u64)], size: u64) -> Result<SparseMap, &'static str> {
        SparseMap::new(
            pairs.iter().map(|&(offset, length)| Extent { offset, length }),
            size,
        )
    }

    #[test]
    fn lies_are_refused() {
        assert!(map(&[(0, 10), (5, 10)], 100).is_err());
        assert!(map(&[(50, 10), (5, 10)], 100).is_err());
        assert!(map(&[(95, 10)], 100).is_err());
        assert!(map(&[(u64::MAX, 10)], 100).is_err());
        assert!(map(&[(101, 0)], 100).is_err());
        let good = map(&[(0, 10), (10, 5), (100, 0)], 100).unwrap();
        assert_eq!((good.extents().len(), good.stored()), (2, 15));
    }

    #[test]
    fn the_map_is_written_like_gnu_tar_does() {
        let text = text_of_map(&map(&[(4096, 7)], 10_000).unwrap(), 10_000);
        assert!(text.starts_with(b"2\n4096\n7\n10000\n0\n\0"));
        assert_eq!(text.len(), 512);
        assert!(text_of_map(&map(&[], 5).unwrap(), 5).starts_with(b"1\n5\n0\n\0"));
    }

    #[test]
    fn numbers_are_digits_only() {
        assert_eq!(decimal(b"0"), Some(0));
        assert_eq!(decimal(b"9223372036854775807"), Some(i64::MAX as u64));
        for text in [
            "",
            "-1",
            "+1",
            " 1",
            "9223372036854775808",
            "1 ",
            "99999999999999999999999",
        ] {
            assert_eq!(decimal(text.as_bytes()), None, "{text}");
        }
    }
}
