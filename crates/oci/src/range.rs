//! `Range` of a request for a blob (RFC 9110 §14), and `Content-Range` of a piece of an upload, which the distribution specification
//! writes without a unit (`0-1023`).

/// What is to be sent of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// All of it: no range, or one that may be ignored.
    Whole,
    /// These bytes; `end` is the first one that is not wanted.
    Part {
        /// The first byte.
        start: u64,
        /// The byte after the last one.
        end: u64,
    },
    /// A range beyond its end.
    Impossible,
}

/// Reads a `Range` header for something of `length` bytes. Several ranges at once, other units and what is not understood are ignored,
/// as the RFC allows.
#[must_use]
pub fn wanted(header: Option<&str>, length: u64) -> Wanted {
    let Some((from, to)) = header
        .and_then(|text| text.trim().strip_prefix("bytes="))
        .and_then(|range| range.split_once('-'))
    else {
        return Wanted::Whole;
    };
    match (from.trim(), to.trim()) {
        ("", last) => match number(last) {
            Some(0) => Wanted::Impossible,
            Some(last) if length > 0 => Wanted::Part {
                start: length.saturating_sub(last),
                end: length,
            },
            Some(_) => Wanted::Impossible,
            None => Wanted::Whole,
        },
        (from, to) => {
            let (Some(start), Some(last)) = (number(from), number_or(to, u64::MAX)) else {
                return Wanted::Whole;
            };
            if last < start {
                return Wanted::Whole;
            }
            if start >= length {
                return Wanted::Impossible;
            }
            Wanted::Part {
                start,
                end: last.saturating_add(1).min(length),
            }
        }
    }
}

/// Reads `START-LAST` of a piece of an upload, both included. A unit before it is tolerated, and a total behind a slash.
#[must_use]
pub fn piece(header: &str) -> Option<(u64, u64)> {
    let text = header.trim();
    let text = text.strip_prefix("bytes ").unwrap_or(text);
    let text = text.split('/').next().unwrap_or_default();
    let (start, last) = text.split_once('-')?;
    let (start, last) = (number(start)?, number(last)?);
    (start <= last && last < u64::MAX).then_some((start, last))
}

/// Digits only: Rust would take a sign as well. More than fits counts as all there is.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

fn number_or(text: &str, empty: u64) -> Option<u64> {
    if text.is_empty() {
        Some(empty)
    } else {
        number(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_read_as_the_rfc_has_it() {
        let part = |start, end| Wanted::Part { start, end };
        for (header, expected) in [
            ("bytes=0-0", part(0, 1)),
            ("bytes=2-", part(2, 10)),
            ("bytes=2-5", part(2, 6)),
            ("bytes=2-99", part(2, 10)),
            ("bytes=-3", part(7, 10)),
            ("bytes=-99", part(0, 10)),
            ("bytes=10-", Wanted::Impossible),
            ("bytes=99999999999999999999999-", Wanted::Impossible),
            ("bytes=-0", Wanted::Impossible),
            ("bytes=5-2", Wanted::Whole),
            ("bytes=0-1,3-4", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("lines=1-2", Wanted::Whole),
            ("bytes=", Wanted::Whole),
        ] {
            assert_eq!(wanted(Some(header), 10), expected, "{header}");
        }
        assert_eq!(wanted(None, 10), Wanted::Whole);
        assert_eq!(wanted(Some("bytes=0-"), 0), Wanted::Impossible);
    }

    #[test]
    fn pieces_have_two_ends() {
        assert_eq!(piece("0-9"), Some((0, 9)));
        assert_eq!(piece("bytes 5-9/10"), Some((5, 9)));
        for bad in [
            "",
            "-",
            "5",
            "9-5",
            "-5",
            "5-",
            "a-b",
            "0--1",
            "0-18446744073709551615",
        ] {
            assert_eq!(piece(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_part_lies_within(text in "bytes=[0-9-]{0,12}", length in 0_u64..1000) {
            if let Wanted::Part { start, end } = wanted(Some(&text), length) {
                prop_assert!(start < end && end <= length);
            }
        }
    }
}
