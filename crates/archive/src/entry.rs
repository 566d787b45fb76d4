//! What one entry of an archive is: everything about a file but its bytes.

use std::collections::BTreeMap;
use std::fmt;

use crate::acl::Acl;
use crate::sparse::SparseMap;

/// Permission bits with setuid, setgid and sticky.
pub const MODE_BITS: u32 = 0o7777;

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name as the archive has it: any bytes but NUL, perhaps absolute, perhaps with a slash at the end of a directory.
    /// [`crate::TreePath`] makes a path of it.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, setuid, setgid and sticky: [`MODE_BITS`].
    pub mode: u32,
    /// Numeric owner. Never `u32::MAX`, which system calls take for "leave it".
    pub uid: u32,
    /// Numeric group. Never `u32::MAX`.
    pub gid: u32,
    /// Time of the last change of the content.
    pub mtime: Time,
    /// Bytes of the file with its holes; zero for everything that is no file.
    pub size: u64,
    /// Where the file has data, if it has holes.
    pub sparse: Option<SparseMap>,
    /// Extended attributes by full name, such as `user.mime_type`. POSIX access control lists are not among them if the
    /// archive has them as lists.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// POSIX access control list.
    pub acl_access: Option<Acl>,
    /// POSIX access control list that new children of a directory get.
    pub acl_default: Option<Acl>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link with its text, verbatim.
    Symlink {
        /// Text of the link.
        target: Vec<u8>,
    },
    /// Another name of an earlier entry of the same archive.
    HardLink {
        /// Name of that entry, as the archive has it.
        target: Vec<u8>,
    },
    /// A named pipe.
    Fifo,
    /// A character device.
    CharacterDevice(Device),
    /// A block device.
    BlockDevice(Device),
}

/// Number of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Which driver.
    pub major: u32,
    /// Which device of the driver.
    pub minor: u32,
}

/// A moment: seconds since 1970 UTC, rounded down, and nanoseconds after that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970-01-01T00:00:00Z, negative before.
    pub seconds: i64,
    /// Nanoseconds after `seconds`, below 1,000,000,000.
    pub nanoseconds: u32,
}

impl Entry {
    /// An entry of this kind that belongs to root, is from 1970 and has no extras.
    #[must_use]
    pub fn new(path: impl Into<Vec<u8>>, kind: Kind, mode: u32) -> Self {
        Self {
            path: path.into(),
            kind,
            mode: mode & MODE_BITS,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            size: 0,
            sparse: None,
            xattrs: BTreeMap::new(),
            acl_access: None,
            acl_default: None,
        }
    }

    /// A regular file of this many bytes.
    #[must_use]
    pub fn file(path: impl Into<Vec<u8>>, mode: u32, size: u64) -> Self {
        Self {
            size,
            ..Self::new(path, Kind::File, mode)
        }
    }

    /// Bytes of content that the entry has in an archive: the size without holes.
    #[must_use]
    pub fn stored_size(&self) -> u64 {
        self.sparse.as_ref().map_or(self.size, SparseMap::stored)
    }

    /// The name for messages.
    #[must_use]
    pub fn shown(&self) -> String {
        show(&self.path)
    }
}

impl Kind {
    /// It is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        matches!(self, Self::Directory)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Directory => "directory",
            Self::Symlink { .. } => "symbolic link",
            Self::HardLink { .. } => "hard link",
            Self::Fifo => "named pipe",
            Self::CharacterDevice(_) => "character device",
            Self::BlockDevice(_) => "block device",
        })
    }
}

impl fmt::Display for Time {
    /// Decimal seconds without needless zeros, as PAX records have them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanoseconds == 0 {
            return write!(f, "{}", self.seconds);
        }
        let (sign, whole, nanoseconds) = if self.seconds < 0 {
            (
                "-",
                (self.seconds + 1).unsigned_abs(),
                1_000_000_000 - self.nanoseconds,
            )
        } else {
            ("", self.seconds.unsigned_abs(), self.nanoseconds)
        };
        let fraction = format!("{nanoseconds:09}");
        write!(f, "{sign}{whole}.{}", fraction.trim_end_matches('0'))
    }
}

impl Time {
    /// Reads decimal seconds. What is finer than nanoseconds is rounded down. `None` if it is no such number.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (negative, digits) = match text.strip_prefix(b"-") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (whole, fraction) = match digits.iter().position(|&byte| byte == b'.') {
            Some(dot) => (digits.get(..dot)?, digits.get(dot + 1..)?),
            None => (digits, &[][..]),
        };
        if whole.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
            return None;
        }
        let seconds: i64 = std::str::from_utf8(whole).ok()?.parse().ok()?;
        let mut nanoseconds: u32 = 0;
        for place in 0..9 {
            let digit = fraction.get(place).map_or(0, |digit| u32::from(digit - b'0'));
            nanoseconds = nanoseconds * 10 + digit;
        }
        let finer = fraction.iter().skip(9).any(|&digit| digit != b'0');
        if !negative {
            return Some(Self { seconds, nanoseconds });
        }
        if finer {
            nanoseconds += 1;
        }
        match nanoseconds {
            0 => Some(Self {
                seconds: -seconds,
                nanoseconds: 0,
            }),
            _ => Some(Self {
                seconds: (-seconds).checked_sub(1)?,
                nanoseconds: 1_000_000_000 - nanoseconds,
            }),
        }
    }
}

/// Bytes of a name for messages: quoted, with everything escaped that could confuse a terminal.
#[must_use]
pub fn show(name: &[u8]) -> String {
    const LONGEST: usize = 200;
    let (head, cut) = match name.get(..LONGEST) {
        Some(head) if name.len() > LONGEST => (head, "…"),
        _ => (name, ""),
    };
    format!("{:?}{cut}", String::from_utf8_lossy(head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        for (text, seconds, nanoseconds) in [
            ("0", 0, 0),
            ("1700000000.123456789", 1_700_000_000, 123_456_789),
            ("1.5", 1, 500_000_000),
            ("-1.5", -2, 500_000_000),
            ("-0.25", -1, 750_000_000),
            ("-7", -7, 0),
            ("-1.000000001", -2, 999_999_999),
        ] {
            let time = Time { seconds, nanoseconds };
            assert_eq!(Time::parse(text.as_bytes()), Some(time), "{text}");
            assert_eq!(time.to_string(), text);
        }
        assert_eq!(
            Time::parse(b"1.9999999999"),
            Some(Time {
                seconds: 1,
                nanoseconds: 999_999_999
            })
        );
        assert_eq!(
            Time::parse(b"-0.0000000001"),
            Some(Time {
                seconds: -1,
                nanoseconds: 999_999_999
            })
        );
        for text in [
            "",
            "-",
            "+1",
            "1e5",
            ".5",
            "1.2.3",
            "99999999999999999999",
            " 1",
            "0x1",
        ] {
            assert_eq!(Time::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn names_are_shown_without_control_characters() {
        assert_eq!(show(b"a\n\x1b[2J"), r#""a\n\u{1b}[2J""#);
        assert!(show(&[b'x'; 70_000]).len() < 300);
    }
}
