//! POSIX access control lists: the text of `SCHILY.acl.*` records and the bytes of `system.posix_acl_*` attributes.
//!
//! Text as acl(5) has it, entries separated by commas or newlines, with star's fourth field (the numeric id beside the
//! name). Bytes as in the kernel's `include/uapi/linux/posix_acl_xattr.h`, version 2.

use std::fmt::Write as _;

/// Version of the attribute's format.
const VERSION: u32 = 2;
/// Id of entries that have none.
const NO_ID: u32 = u32::MAX;
/// More entries than any file system keeps in one attribute.
const MOST_ENTRIES: usize = 8192;

/// A list of rights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl(Vec<AclEntry>);

/// One line of a list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AclEntry {
    /// Whom it is about.
    pub who: Who,
    /// Bits: 4 read, 2 write, 1 execute.
    pub rights: u8,
}

/// Whom an entry is about. The order is the kernel's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// The owner.
    Owner,
    /// A user.
    User(Name),
    /// The owning group.
    OwningGroup,
    /// A group.
    Group(Name),
    /// What named users, the owning group and named groups can have at most.
    Mask,
    /// Everybody else.
    Other,
}

/// A user or group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// By number.
    Id(u32),
    /// By name only; numbers are needed to set it.
    Text(Vec<u8>),
}

impl Acl {
    /// The entries, in the kernel's order.
    #[must_use]
    pub fn entries(&self) -> &[AclEntry] {
        &self.0
    }

    /// Reads the text form. `None` if it is none, or says something twice.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut entries = Vec::new();
        for line in text.split(|&byte| byte == b',' || byte == b'\n') {
            let line = line.split(|&byte| byte == b'#').next().unwrap_or_default();
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            entries.push(parse_line(line)?);
        }
        Self::checked(entries)
    }

    /// The text form, with numbers where they are known.
    #[must_use]
    pub fn to_text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        for entry in &self.0 {
            if !text.is_empty() {
                text.push(b',');
            }
            let (tag, name) = match &entry.who {
                Who::Owner => ("user", None),
                Who::User(name) => ("user", Some(name)),
                Who::OwningGroup => ("group", None),
                Who::Group(name) => ("group", Some(name)),
                Who::Mask => ("mask", None),
                Who::Other => ("other", None),
            };
            text.extend_from_slice(tag.as_bytes());
            text.push(b':');
            match name {
                Some(Name::Id(id)) => {
                    let mut digits = String::new();
                    // Writing to a string cannot fail.
                    let _ = write!(digits, "{id}");
                    text.extend_from_slice(digits.as_bytes());
                }
                Some(Name::Text(name)) => text.extend_from_slice(name),
                None => {}
            }
            text.push(b':');
            for (bit, letter) in [(4, b'r'), (2, b'w'), (1, b'x')] {
                text.push(if entry.rights & bit == 0 { b'-' } else { letter });
            }
        }
        text
    }

    /// Reads the bytes of the attribute. `None` if they are malformed.
    #[must_use]
    pub fn from_xattr(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*version) != VERSION || rest.len() % 8 != 0 {
            return None;
        }
        let mut entries = Vec::new();
        for &[t0, t1, p0, p1, i0, i1, i2, i3] in rest.as_chunks::<8>().0 {
            let id = u32::from_le_bytes([i0, i1, i2, i3]);
            let who = match u16::from_le_bytes([t0, t1]) {
                0x01 => Who::Owner,
                0x02 => Who::User(Name::Id(id)),
                0x04 => Who::OwningGroup,
                0x08 => Who::Group(Name::Id(id)),
                0x10 => Who::Mask,
                0x20 => Who::Other,
                _ => return None,
            };
            let rights = u16::from_le_bytes([p0, p1]);
            entries.push(AclEntry {
                who,
                rights: u8::try_from(rights).ok().filter(|&rights| rights <= 7)?,
            });
        }
        Self::checked(entries)
    }

    /// The bytes of the attribute. `None` if a user or group is known by name only.
    #[must_use]
    pub fn to_xattr(&self) -> Option<Vec<u8>> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            let (tag, id): (u16, u32) = match &entry.who {
                Who::Owner => (0x01, NO_ID),
                Who::User(Name::Id(id)) => (0x02, *id),
                Who::OwningGroup => (0x04, NO_ID),
                Who::Group(Name::Id(id)) => (0x08, *id),
                Who::Mask => (0x10, NO_ID),
                Who::Other => (0x20, NO_ID),
                Who::User(Name::Text(_)) | Who::Group(Name::Text(_)) => return None,
            };
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&u16::from(entry.rights).to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        Some(bytes)
    }

    /// This list, in which users may be known by name only, can be the same as `numbers`, in which they are not. GNU tar
    /// writes both side by side.
    pub(crate) fn agrees_with(&self, numbers: &Self) -> bool {
        let mut left: Vec<&AclEntry> = numbers.0.iter().collect();
        // Those with numbers first, so that a name does not take what belongs to one of them.
        let named =
            |entry: &AclEntry| matches!(entry.who, Who::User(Name::Text(_)) | Who::Group(Name::Text(_)));
        let (names, ids): (Vec<&AclEntry>, Vec<&AclEntry>) = self.0.iter().partition(|entry| named(entry));
        for entry in ids.into_iter().chain(names) {
            let found = left.iter().position(|other| {
                let same_tag = std::mem::discriminant(&other.who) == std::mem::discriminant(&entry.who);
                other.rights == entry.rights && (other.who == entry.who || (same_tag && named(entry)))
            });
            match found {
                Some(found) => left.swap_remove(found),
                None => return false,
            };
        }
        left.is_empty()
    }

    fn checked(mut entries: Vec<AclEntry>) -> Option<Self> {
        entries.sort();
        let twice = entries
            .windows(2)
            .any(|pair| matches!(pair, [one, two] if one.who == two.who));
        if entries.is_empty() || twice || entries.len() > MOST_ENTRIES {
            return None;
        }
        Some(Self(entries))
    }
}

fn parse_line(line: &[u8]) -> Option<AclEntry> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b':').collect();
    let (tag, name, rights, id) = match fields.as_slice() {
        [tag, name, rights] => (*tag, *name, *rights, None),
        [tag, name, rights, id] => (*tag, *name, *rights, Some(number(id)?)),
        // `mask:rwx` and `other:rwx` are legal, too.
        [tag @ (b"mask" | b"m" | b"other" | b"o"), rights] => (*tag, &b""[..], *rights, None),
        _ => return None,
    };
    let named = || match (id, number(name)) {
        (Some(id), _) | (None, Some(id)) => Name::Id(id),
        (None, None) => Name::Text(name.to_vec()),
    };
    let who = match (tag, name.is_empty()) {
        (b"user" | b"u", true) => Who::Owner,
        (b"user" | b"u", false) => Who::User(named()),
        (b"group" | b"g", true) => Who::OwningGroup,
        (b"group" | b"g", false) => Who::Group(named()),
        (b"mask" | b"m", true) => Who::Mask,
        (b"other" | b"o", true) => Who::Other,
        _ => return None,
    };
    let mut bits = 0;
    for &letter in rights.trim_ascii() {
        let bit = match letter {
            b'r' => 4,
            b'w' => 2,
            b'x' => 1,
            b'-' => continue,
            _ => return None,
        };
        if bits & bit != 0 {
            return None;
        }
        bits |= bit;
    }
    Some(AclEntry { who, rights: bits })
}

fn number(text: &[u8]) -> Option<u32> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text)
        .ok()?
        .parse()
        .ok()
        .filter(|&id| id != NO_ID)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_attribute_say_the_same() {
        let acl =
            Acl::parse(b"user::rwx\nuser:lisa:r-x:502\ngroup::r--\nmask::rwx #c\nother::---\n").unwrap();
        assert_eq!(
            acl.to_text(),
            b"user::rwx,user:502:r-x,group::r--,mask::rwx,other::---"
        );
        let bytes = acl.to_xattr().unwrap();
        assert_eq!(Acl::from_xattr(&bytes), Some(acl.clone()));
        assert_eq!(Acl::parse(&acl.to_text()), Some(acl));
        assert_eq!(bytes.len(), 4 + 5 * 8);
        assert_eq!(bytes[..12], [2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255]);
    }

    #[test]
    fn names_without_numbers_stay_text() {
        let acl = Acl::parse(b"u::rw-,u:lisa:r,g::-,m::r,o::-").unwrap();
        assert_eq!(acl.to_xattr(), None);
        assert_eq!(
            acl.to_text(),
            b"user::rw-,user:lisa:r--,group::---,mask::r--,other::---"
        );
    }

    #[test]
    fn names_agree_with_any_number_but_rights_have_to_be_the_same() {
        let acl = |text: &str| Acl::parse(text.as_bytes()).unwrap();
        let numbers = acl("u::rw-,u:5:r,u:6:w,g::-,m::r,o::-");
        assert!(acl("u::rw-,u:lisa:r,u:6:w,g::-,m::r,o::-").agrees_with(&numbers));
        assert!(acl("u::rw-,u:lisa:r,u:tom:w,g::-,m::r,o::-").agrees_with(&numbers));
        assert!(!acl("u::rw-,u:lisa:r,u:tom:r,g::-,m::r,o::-").agrees_with(&numbers));
        assert!(!acl("u::rw-,u:lisa:r,u:7:w,g::-,m::r,o::-").agrees_with(&numbers));
        assert!(!acl("u::rw-,u:lisa:r,g:tom:w,g::-,m::r,o::-").agrees_with(&numbers));
        assert!(!acl("u::rw-,g::-,m::r,o::-").agrees_with(&numbers));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in [
            "",
            "user",
            "user::rwz",
            "user::rr",
            "user::r,user::w",
            "root::r",
            "mask:x:r",
            "u:a:r:b",
            "::",
            "user:4294967295:r:4294967295",
        ] {
            assert_eq!(Acl::parse(text.as_bytes()), None, "{text}");
        }
        for bytes in [
            &b""[..],
            &[1, 0, 0, 0],
            &[2, 0, 0, 0, 1],
            &[2, 0, 0, 0, 3, 0, 7, 0, 0, 0, 0, 0],
            &[2, 0, 0, 0, 1, 0, 8, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(Acl::from_xattr(bytes), None);
        }
    }
}
