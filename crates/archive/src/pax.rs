//! PAX extended headers: records of the form `LENGTH KEY=VALUE\n`.
//!
//! Format: POSIX.1-2017 pax, "pax Extended Header". Attributes: star(5) for `SCHILY.xattr.*` and `SCHILY.acl.*`;
//! libarchive-formats(5) for `LIBARCHIVE.xattr.*`.

use std::collections::BTreeMap;

use crate::acl::Acl;
use crate::entry::Entry;
use crate::error::Defect;

pub(crate) const XATTR: &[u8] = b"SCHILY.xattr.";
const LIBARCHIVE_XATTR: &[u8] = b"LIBARCHIVE.xattr.";
pub(crate) const ACL_ACCESS: &[u8] = b"SCHILY.acl.access";
pub(crate) const ACL_DEFAULT: &[u8] = b"SCHILY.acl.default";
pub(crate) const XATTR_ACL_ACCESS: &[u8] = b"system.posix_acl_access";
pub(crate) const XATTR_ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
const SPARSE_OFFSET: &[u8] = b"GNU.sparse.offset";
const SPARSE_LENGTH: &[u8] = b"GNU.sparse.numbytes";

/// The records of one header.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Records {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// GNU sparse 0.0 repeats these two keys, alternating; the numbers as they stand there.
    pub(crate) sparse_pairs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Records {
    /// Reads the records of a header.
    pub(crate) fn parse(mut bytes: &[u8]) -> Result<Self, Defect> {
        let mut records = Self::default();
        let mut offset: Option<Vec<u8>> = None;
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes)?;
            bytes = rest;
            if key == SPARSE_OFFSET {
                if offset.replace(value.to_vec()).is_some() {
                    return Err(Defect::PaxDuplicate { key: lossy(key) });
                }
            } else if key == SPARSE_LENGTH {
                let Some(offset) = offset.take() else {
                    return Err(Defect::Sparse {
                        what: "a length without an offset",
                    });
                };
                records.sparse_pairs.push((offset, value.to_vec()));
            } else if records.values.insert(key.to_vec(), value.to_vec()).is_some() {
                return Err(Defect::PaxDuplicate { key: lossy(key) });
            }
        }
        if offset.is_some() {
            return Err(Defect::Sparse {
                what: "an offset without a length",
            });
        }
        if let Some(charset) = records.get(b"hdrcharset")
            && charset != b"BINARY"
            && charset != b"ISO-IR 10646 2000 UTF-8"
        {
            return Err(Defect::PaxCharset {
                charset: lossy(charset),
            });
        }
        Ok(records)
    }

    /// A value. An empty one counts as none: that is how a record takes back a global one.
    pub(crate) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.values
            .get(key)
            .map(Vec::as_slice)
            .filter(|value| !value.is_empty())
    }

    /// Lays these records over what held before.
    pub(crate) fn over(&self, below: &Self) -> Self {
        let mut whole = below.clone();
        whole.values.extend(self.values.clone());
        whole.sparse_pairs.clone_from(&self.sparse_pairs);
        whole
    }

    /// Refuses what must not hold for all entries.
    pub(crate) fn check_global(&self) -> Result<(), Defect> {
        let bad = self.values.keys().find(|key| {
            matches!(key.as_slice(), b"path" | b"linkpath" | b"size")
                || key.starts_with(b"GNU.sparse.")
                || key.starts_with(b"SCHILY.")
                || key.starts_with(b"LIBARCHIVE.")
        });
        match bad {
            Some(key) => Err(Defect::PaxGlobal { key: lossy(key) }),
            None if self.sparse_pairs.is_empty() => Ok(()),
            None => Err(Defect::PaxGlobal {
                key: lossy(SPARSE_OFFSET),
            }),
        }
    }

    /// The keys that begin with this.
    pub(crate) fn keys_below<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.values
            .range(prefix.to_vec()..)
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(move |(key, value)| (key.strip_prefix(prefix).unwrap_or_default(), value.as_slice()))
    }

    /// The two records of an attribute have to say the same.
    fn check_same(&self, name: &[u8], value: &[u8]) -> Result<(), Defect> {
        let other = self.values.get([LIBARCHIVE_XATTR, name].concat().as_slice());
        match other.map(|other| base64(other)) {
            Some(Some(other)) if other == value => Ok(()),
            _ => Err(Defect::Xattr { name: lossy(name) }),
        }
    }

    /// Puts attributes and access control lists into the entry.
    pub(crate) fn attributes(&self, entry: &mut Entry) -> Result<(), Defect> {
        for (name, value) in self.keys_below(XATTR) {
            // libarchive writes both, and percent-encodes the name in both.
            if self
                .values
                .contains_key([LIBARCHIVE_XATTR, name].concat().as_slice())
            {
                self.check_same(name, value)?;
            } else {
                insert(entry, decode_name(name), value.to_vec())?;
            }
        }
        for (name, value) in self.keys_below(LIBARCHIVE_XATTR) {
            let (name, value) = libarchive_attribute(name, value)?;
            insert(entry, name, value)?;
        }
        entry.acl_access = take_acl(entry, self.get(ACL_ACCESS), XATTR_ACL_ACCESS)?;
        entry.acl_default = take_acl(entry, self.get(ACL_DEFAULT), XATTR_ACL_DEFAULT)?;
        Ok(())
    }
}

/// Name and value of an attribute as libarchive writes it.
fn libarchive_attribute(name: &[u8], value: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Defect> {
    match (percent_decode(name), base64(value)) {
        (Some(name), Some(value)) => Ok((name, value)),
        _ => Err(Defect::Xattr { name: lossy(name) }),
    }
}

fn insert(entry: &mut Entry, name: Vec<u8>, value: Vec<u8>) -> Result<(), Defect> {
    // Longest name of an attribute in Linux; a NUL would cut it.
    if name.is_empty() || name.len() > 255 || name.contains(&0) {
        return Err(Defect::Xattr { name: lossy(&name) });
    }
    match entry.xattrs.get(&name) {
        Some(before) if *before != value => Err(Defect::Xattr { name: lossy(&name) }),
        _ => {
            entry.xattrs.insert(name, value);
            Ok(())
        }
    }
}

/// The list from its record, from the attribute of that name, or from both if they say the same.
fn take_acl(entry: &mut Entry, text: Option<&[u8]>, attribute: &[u8]) -> Result<Option<Acl>, Defect> {
    let text = match text {
        Some(text) => Some(Acl::parse(text).ok_or(Defect::Acl)?),
        None => None,
    };
    let Some(bytes) = entry.xattrs.get(attribute) else {
        return Ok(text);
    };
    let acl = Acl::from_xattr(bytes).ok_or(Defect::Acl)?;
    if text.is_some_and(|text| !text.agrees_with(&acl)) {
        return Err(Defect::Acl);
    }
    entry.xattrs.remove(attribute);
    Ok(Some(acl))
}

/// Key, value and what follows the record.
type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// The first record.
fn record(bytes: &[u8]) -> Result<Record<'_>, Defect> {
    let malformed = |what| Defect::PaxMalformed { what };
    let space = bytes
        .iter()
        .take(20)
        .position(|&byte| byte == b' ')
        .ok_or(malformed("a record has no length"))?;
    let (digits, _) = bytes.split_at_checked(space).unwrap_or_default();
    if digits.first() == Some(&b'0') {
        return Err(malformed("a length begins with a zero"));
    }
    let length = crate::sparse::decimal(digits).ok_or(malformed("a length is not a number"))?;
    let length = usize::try_from(length).map_err(|_| malformed("a length is too large"))?;
    let (whole, rest) = bytes
        .split_at_checked(length)
        .ok_or(malformed("a record is longer than its header"))?;
    let body = whole
        .get(space + 1..)
        .ok_or(malformed("a record is shorter than its length"))?;
    let body = body
        .strip_suffix(b"\n")
        .ok_or(malformed("a record does not end with a newline"))?;
    let equals = body
        .iter()
        .position(|&byte| byte == b'=')
        .ok_or(malformed("a record has no equals sign"))?;
    let (key, value) = body.split_at_checked(equals).unwrap_or_default();
    let value = value.get(1..).unwrap_or_default();
    if key.is_empty() || key.contains(&0) {
        return Err(malformed("a key is empty or has a NUL byte"));
    }
    Ok((key, value, rest))
}

/// Appends a record. Its length counts its own digits.
pub(crate) fn push(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// A name of an attribute as GNU tar writes it into a key: `=` and `%` escaped.
pub(crate) fn encode_name(name: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(name.len());
    for &byte in name {
        match byte {
            b'%' => encoded.extend_from_slice(b"%25"),
            b'=' => encoded.extend_from_slice(b"%3D"),
            _ => encoded.push(byte),
        }
    }
    encoded
}

/// Undoes [`encode_name`], and nothing else: other writers do not escape.
fn decode_name(mut name: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(name.len());
    while let Some((&byte, rest)) = name.split_first() {
        name = rest;
        decoded.push(match byte {
            b'%' if rest.starts_with(b"25") => {
                name = rest.get(2..).unwrap_or_default();
                b'%'
            }
            b'%' if rest.starts_with(b"3D") => {
                name = rest.get(2..).unwrap_or_default();
                b'='
            }
            _ => byte,
        });
    }
    decoded
}

/// Undoes percent encoding. `None` if it is malformed.
pub(crate) fn percent_decode(mut text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    while let Some((&byte, rest)) = text.split_first() {
        if byte == b'%' {
            let (&[high, low], rest) = rest.split_first_chunk::<2>()?;
            let digit = |byte: u8| char::from(byte).to_digit(16);
            decoded.push(u8::try_from(digit(high)? * 16 + digit(low)?).ok()?);
            text = rest;
        } else {
            decoded.push(byte);
            text = rest;
        }
    }
    Some(decoded)
}

/// Decodes base64, with or without padding. `None` if it is malformed.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let end = text
        .iter()
        .rposition(|&byte| byte != b'=')
        .map_or(0, |last| last + 1);
    let text = text.get(..end).filter(|kept| text.len() - kept.len() <= 2)?;
    let mut decoded = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for &byte in text {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xff_ffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            decoded.push(u8::try_from((bits >> count) & 0xff).ok()?);
        }
    }
    (count < 6).then_some(decoded)
}

pub(crate) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..bytes.len().min(200)).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_written_with_their_own_length() {
        for length in [1, 5, 85, 86, 87, 88, 89, 90, 980, 985, 990, 995, 9990] {
            let mut bytes = Vec::new();
            push(&mut bytes, b"path", &vec![b'x'; length]);
            let digits: usize = std::str::from_utf8(bytes.split(|&b| b == b' ').next().unwrap())
                .unwrap()
                .parse()
                .unwrap();
            assert_eq!(digits, bytes.len());
            assert_eq!(
                Records::parse(&bytes).unwrap().get(b"path").unwrap().len(),
                length
            );
        }
    }

    #[test]
    fn values_may_hold_anything() {
        let mut bytes = Vec::new();
        push(&mut bytes, b"SCHILY.xattr.user.a%3Db", b"x=\n\0\xff");
        push(&mut bytes, b"LIBARCHIVE.xattr.user.c%20d", b"AAH/");
        let mut entry = Entry::file("f", 0o644, 0);
        Records::parse(&bytes).unwrap().attributes(&mut entry).unwrap();
        assert_eq!(entry.xattrs[&b"user.a=b"[..]], b"x=\n\0\xff");
        assert_eq!(entry.xattrs[&b"user.c d"[..]], [0, 1, 255]);
        assert_eq!(decode_name(&encode_name(b"a=%3D%25=b%")), b"a=%3D%25=b%");
    }

    #[test]
    fn malformed_records_are_refused() {
        for bytes in [
            "x",
            "5 a=b",
            "6 a=b",
            "06 a=b\n",
            "6 a=bc",
            "6 =b\nx",
            "100 a=b\n",
            "5 a=b\n",
            "6  a=b",
            "+6 a=b\n",
            "6 ab \n",
            "1 ",
            "0 a=b\n",
            "99999999999999999999 a=b\n",
            "\n",
            "6 a=b\n\0",
        ] {
            assert!(Records::parse(bytes.as_bytes()).is_err(), "{bytes:?}");
        }
        assert!(matches!(
            Records::parse(b"6 a=b\n6 a=b\n"),
            Err(Defect::PaxDuplicate { .. })
        ));
    }

    #[test]
    fn base64_is_strict() {
        assert_eq!(base64(b"").unwrap(), b"");
        assert_eq!(base64(b"Zg==").unwrap(), b"f");
        assert_eq!(base64(b"Zm8").unwrap(), b"fo");
        assert_eq!(base64(b"Zm9vYmFy").unwrap(), b"foobar");
        for bad in ["Z", "Z===", "Zm 8", "====", "Zm9vY"] {
            assert_eq!(base64(bad.as_bytes()), None, "{bad}");
        }
    }
}
