//! The catalogue of bad archives: every one has its code, and nothing of it is passed over.

mod common;

use std::io;

use common::{Random, archive, file};
use tranship_archive::entry::{Entry, Kind};
use tranship_archive::error::ReadError;
use tranship_archive::reader::{Limits, ReadOptions, Reader};

/// Reads everything; the code of the error, if there is one.
fn read(bytes: &[u8], options: ReadOptions) -> Result<Vec<Entry>, ReadError> {
    let mut reader = Reader::new(bytes, options);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        while reader.read_extent(&mut [0; 4096])?.is_some() {}
        entries.push(entry);
    }
    Ok(entries)
}

fn code(bytes: &[u8], options: ReadOptions) -> &'static str {
    match read(bytes, options) {
        Ok(entries) => panic!("accepted: {entries:?}"),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            error.defect.code()
        }
    }
}

/// A header whose fields a test may set to anything.
struct Header([u8; 512]);

impl Header {
    fn new(kind: u8, name: &str, size: u64) -> Self {
        let mut header = Self([0; 512]);
        header
            .put(0, name.as_bytes())
            .put(100, b"0000644\0")
            .put(108, b"0000000\0")
            .put(116, b"0000000\0");
        header
            .put(124, format!("{size:011o}\0").as_bytes())
            .put(136, b"00000000000\0")
            .put(156, &[kind]);
        header.put(257, b"ustar\x0000");
        header
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn sealed(&self) -> Vec<u8> {
        let mut block = self.0;
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block.to_vec()
    }
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length += 1;
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

fn extension(kind: u8, content: &[u8]) -> Vec<u8> {
    [
        Header::new(kind, "ext", content.len() as u64).sealed(),
        padded(content),
    ]
    .concat()
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let content: Vec<u8> = records
        .iter()
        .flat_map(|(key, value)| record(key, value))
        .collect();
    extension(b'x', &content)
}

fn plain(name: &str, content: &[u8]) -> Vec<u8> {
    [
        Header::new(b'0', name, content.len() as u64).sealed(),
        padded(content),
    ]
    .concat()
}

fn ended(parts: &[Vec<u8>]) -> Vec<u8> {
    [parts.concat(), vec![0; 1024]].concat()
}

/// An entry whose header has one field replaced.
fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut header = Header::new(b'0', "f", 0);
    header.put(at, bytes);
    ended(&[header.sealed()])
}

fn of_kind(kind: u8, name: &str, size: u64) -> Vec<u8> {
    let mut header = Header::new(kind, name, size);
    header
        .put(157, b"target")
        .put(329, b"0000001\0")
        .put(337, b"0000003\0");
    ended(&[header.sealed(), vec![0; size.next_multiple_of(512) as usize]])
}

fn sparse_records(records: &[(&str, &str)], content: &[u8]) -> Vec<u8> {
    let records: Vec<(String, &[u8])> = records
        .iter()
        .map(|(key, value)| (format!("GNU.sparse.{key}"), value.as_bytes()))
        .collect();
    let records: Vec<(&str, &[u8])> = records
        .iter()
        .map(|(key, value)| (key.as_str(), *value))
        .collect();
    ended(&[pax(&records), plain("f", content)])
}

fn sparse_1_0(map: &str, size: &str, data: &[u8]) -> Vec<u8> {
    let content = [padded(map.as_bytes()), data.to_vec()].concat();
    sparse_records(
        &[("major", "1"), ("minor", "0"), ("name", "n"), ("realsize", size)],
        &content,
    )
}

fn old_gnu(extents: &[(&str, &str)], more: u8, real: &str, then: &[u8], data: &[u8]) -> Vec<u8> {
    let mut header = Header::new(b'S', "f", data.len() as u64);
    header.put(257, b"ustar  \0");
    for (index, (offset, length)) in extents.iter().enumerate() {
        header
            .put(386 + index * 24, offset.as_bytes())
            .put(398 + index * 24, length.as_bytes());
    }
    header.put(482, &[more]).put(483, real.as_bytes());
    ended(&[header.sealed(), then.to_vec(), padded(data)])
}

/// Name, archive, code.
fn catalogue() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let f = || plain("f", b"");
    let good = ended(&[plain("f", b"content")]);
    let cut = |at: usize| good[..at].to_vec();
    let mut flipped = good.clone();
    flipped[0] ^= 1;
    let long = "x".repeat(70_000);
    let large = vec![b'x'; (1 << 20) + 1];
    vec![
        ("empty", vec![], "archive.truncated"),
        ("half a header", cut(100), "archive.truncated"),
        ("no content", cut(512), "archive.truncated"),
        ("half the content", cut(515), "archive.truncated"),
        ("no padding", cut(519), "archive.truncated"),
        ("no end", cut(1024), "archive.truncated"),
        ("half an end", cut(1536), "archive.truncated"),
        ("a part of the second end block", cut(1700), "archive.truncated"),
        ("not a tar archive", b"PK\x03\x04".repeat(400), "archive.checksum"),
        ("text", vec![b'a'; 2048], "archive.checksum"),
        ("a flipped bit", flipped, "archive.checksum"),
        (
            "trailing garbage",
            [good.clone(), b"x".to_vec()].concat(),
            "archive.trailing-data",
        ),
        (
            "trailing archive",
            [good.clone(), good.clone()].concat(),
            "archive.trailing-data",
        ),
        (
            "a lone zero block",
            [f(), vec![0; 512], f(), vec![0; 1024]].concat(),
            "archive.lone-zero-block",
        ),
        // Numbers.
        (
            "size with a letter",
            with(124, b"0000000000x\0"),
            "archive.number",
        ),
        (
            "size with digits after the end",
            with(124, b"000\0000\0\0\0\0\0"),
            "archive.number",
        ),
        (
            "size with an eight",
            with(124, b"00000000008\0"),
            "archive.number",
        ),
        (
            "size in hexadecimal",
            with(124, b"0x000000010\0"),
            "archive.number",
        ),
        (
            "size negative in octal",
            with(124, b"-0000000001\0"),
            "archive.number-range",
        ),
        (
            "size negative in base 256",
            with(124, &[0xff; 12]),
            "archive.number-range",
        ),
        (
            "size overflows in base 256",
            with(
                124,
                &[0x80, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255],
            ),
            "archive.number-range",
        ),
        (
            "size is 2^63",
            with(124, &[0x80, 0, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0]),
            "archive.number-range",
        ),
        (
            "size in another base",
            with(124, &[0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
            "archive.number",
        ),
        (
            "size is huge",
            with(124, &[0x80, 0, 0, 0, 127, 255, 255, 255, 255, 255, 255, 255]),
            "archive.truncated",
        ),
        ("mode", with(100, b"rwxr-xr-"), "archive.number"),
        (
            "mode is huge",
            with(100, &[0x80, 255, 255, 255, 255, 255, 255, 255]),
            "archive.number-range",
        ),
        ("owner is negative", with(108, &[0xff; 8]), "archive.number-range"),
        (
            "owner is 2^32 - 1",
            with(108, &[0x80, 0, 0, 0, 255, 255, 255, 255]),
            "archive.number-range",
        ),
        (
            "owner is 2^32",
            with(108, &[0x80, 0, 0, 1, 0, 0, 0, 0]),
            "archive.number-range",
        ),
        ("group", with(116, b"wheel\0\0\0"), "archive.number"),
        ("time", with(136, b"yesterday\0\0\0"), "archive.number"),
        (
            "time overflows",
            with(
                136,
                &[0x80, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255],
            ),
            "archive.number-range",
        ),
        (
            "device number",
            {
                let mut header = Header::new(b'3', "dev", 0);
                header.put(329, b"0000xyz\0");
                ended(&[header.sealed()])
            },
            "archive.number",
        ),
        (
            "device in a v7 header",
            {
                let mut header = Header::new(b'4', "dev", 0);
                header.put(257, &[0; 8]);
                ended(&[header.sealed()])
            },
            "archive.number",
        ),
        // Names.
        ("NUL in a name", with(0, b"f\0x"), "archive.nul-in-name"),
        ("NUL in a prefix", with(345, b"d\0x"), "archive.nul-in-name"),
        (
            "NUL in a link",
            {
                let mut header = Header::new(b'2', "l", 0);
                header.put(157, b"a\0b");
                ended(&[header.sealed()])
            },
            "archive.nul-in-name",
        ),
        (
            "NUL in a PAX path",
            ended(&[pax(&[("path", b"a\0b")]), f()]),
            "archive.nul-in-name",
        ),
        (
            "NUL in a PAX link",
            ended(&[pax(&[("linkpath", b"a\0b")]), Header::new(b'2', "l", 0).sealed()]),
            "archive.nul-in-name",
        ),
        (
            "NUL in a GNU name",
            ended(&[extension(b'L', b"a\0b\0"), f()]),
            "archive.nul-in-name",
        ),
        ("no name", ended(&[plain("", b"")]), "archive.empty-name"),
        (
            "no GNU name",
            ended(&[extension(b'L', b"\0"), f()]),
            "archive.empty-name",
        ),
        (
            "no target of a symbolic link",
            ended(&[Header::new(b'2', "l", 0).sealed()]),
            "archive.empty-name",
        ),
        (
            "no target of a hard link",
            ended(&[Header::new(b'1', "l", 0).sealed()]),
            "archive.empty-name",
        ),
        (
            "a name of 70,000 bytes",
            ended(&[pax(&[("path", long.as_bytes())]), f()]),
            "archive.name-too-long",
        ),
        (
            "a GNU name of 70,000 bytes",
            ended(&[extension(b'L', long.as_bytes()), f()]),
            "archive.name-too-long",
        ),
        (
            "a target of 70,000 bytes",
            ended(&[extension(b'K', long.as_bytes()), of_kind(b'2', "l", 0)]),
            "archive.name-too-long",
        ),
        (
            "two names",
            ended(&[extension(b'L', b"one\0"), pax(&[("path", b"two")]), f()]),
            "archive.name-disagrees",
        ),
        (
            "two targets",
            ended(&[
                pax(&[("linkpath", b"two")]),
                extension(b'K', b"one\0"),
                of_kind(b'2', "l", 0),
            ]),
            "archive.name-disagrees",
        ),
        ("one name twice", ended(&[f(), f()]), "archive.duplicate-entry"),
        (
            "one name twice, written differently",
            ended(&[f(), plain("./f", b"")]),
            "archive.duplicate-entry",
        ),
        (
            "a file and a directory of one name",
            ended(&[f(), of_kind(b'5', "f/", 0)[..512].to_vec()]),
            "archive.duplicate-entry",
        ),
        // Kinds.
        (
            "a file with a slash",
            ended(&[plain("f/", b"")]),
            "archive.ambiguous-kind",
        ),
        (
            "a PAX file with a slash",
            ended(&[pax(&[("path", b"f/")]), f()]),
            "archive.ambiguous-kind",
        ),
        (
            "a symbolic link with a slash",
            of_kind(b'2', "l/", 0),
            "archive.ambiguous-kind",
        ),
        (
            "a pipe with a slash",
            of_kind(b'6', "p/", 0),
            "archive.ambiguous-kind",
        ),
        (
            "a v7 directory that PAX makes a file",
            ended(&[pax(&[("path", b"f")]), Header::new(0, "d/", 0).sealed()]),
            "archive.ambiguous-kind",
        ),
        (
            "a v7 file that PAX makes a directory",
            ended(&[pax(&[("path", b"d/")]), Header::new(0, "f", 0).sealed()]),
            "archive.ambiguous-kind",
        ),
        (
            "a v7 directory with content",
            ended(&[Header::new(0, "d/", 7).sealed(), padded(b"content")]),
            "archive.unexpected-size",
        ),
        (
            "a directory with content",
            of_kind(b'5', "d/", 512),
            "archive.unexpected-size",
        ),
        (
            "a symbolic link with content",
            of_kind(b'2', "l", 1),
            "archive.unexpected-size",
        ),
        (
            "a hard link with content",
            of_kind(b'1', "l", 512),
            "archive.unexpected-size",
        ),
        (
            "a pipe with content",
            of_kind(b'6', "p", 1),
            "archive.unexpected-size",
        ),
        (
            "a device with content",
            of_kind(b'3', "c", 1),
            "archive.unexpected-size",
        ),
        (
            "a multi-volume continuation",
            of_kind(b'M', "m", 0),
            "archive.unsupported-kind",
        ),
        (
            "a volume label",
            of_kind(b'V', "v", 0),
            "archive.unsupported-kind",
        ),
        (
            "an incremental directory",
            of_kind(b'D', "d", 0),
            "archive.unsupported-kind",
        ),
        (
            "a Solaris header",
            of_kind(b'X', "x", 0),
            "archive.unsupported-kind",
        ),
        (
            "an unknown type",
            of_kind(b'z', "z", 0),
            "archive.unsupported-kind",
        ),
        (
            "a type beyond ASCII",
            of_kind(0xff, "z", 0),
            "archive.unsupported-kind",
        ),
        // PAX.
        (
            "a record without a length",
            ended(&[extension(b'x', b"path=x\n"), f()]),
            "archive.pax-malformed",
        ),
        (
            "a record that is too long",
            ended(&[extension(b'x', b"99 path=x\n"), f()]),
            "archive.pax-malformed",
        ),
        (
            "a record that is too short",
            ended(&[extension(b'x', b"5 path=x\n"), f()]),
            "archive.pax-malformed",
        ),
        (
            "a record without an equals sign",
            ended(&[extension(b'x', b"9 path x\n"), f()]),
            "archive.pax-malformed",
        ),
        (
            "a record without a key",
            ended(&[extension(b'x', b"6 =ab\n"), f()]),
            "archive.pax-malformed",
        ),
        (
            "a record without a newline",
            ended(&[extension(b'x', b"10 path=xy"), f()]),
            "archive.pax-malformed",
        ),
        (
            "a record of length zero",
            ended(&[extension(b'x', b"0 path=x\n"), f()]),
            "archive.pax-malformed",
        ),
        (
            "a length with a zero before it",
            ended(&[extension(b'x', b"010 path=x\n"), f()]),
            "archive.pax-malformed",
        ),
        (
            "a length beyond 64 bits",
            ended(&[extension(b'x', b"99999999999999999999 path=x\n"), f()]),
            "archive.pax-malformed",
        ),
        (
            "a negative length",
            ended(&[extension(b'x', b"-10 path=x\n"), f()]),
            "archive.pax-malformed",
        ),
        (
            "zeros after the records",
            ended(&[extension(b'x', b"10 path=x\n\0\0"), f()]),
            "archive.pax-malformed",
        ),
        (
            "NUL in a key",
            ended(&[extension(b'x', b"9 pa\0h=x\n"), f()]),
            "archive.pax-malformed",
        ),
        (
            "a key twice",
            ended(&[pax(&[("path", b"a"), ("path", b"b")]), f()]),
            "archive.pax-duplicate",
        ),
        (
            "a key twice with one value",
            ended(&[pax(&[("mtime", b"1"), ("mtime", b"1")]), f()]),
            "archive.pax-duplicate",
        ),
        (
            "a large PAX header",
            ended(&[extension(b'x', &record("comment", &large)), f()]),
            "archive.pax-too-large",
        ),
        (
            "a huge PAX header",
            ended(&[Header::new(b'x', "x", 8 << 30).sealed()]),
            "archive.pax-too-large",
        ),
        (
            "a huge GNU name",
            ended(&[Header::new(b'L', "x", 8 << 30).sealed()]),
            "archive.pax-too-large",
        ),
        (
            "a PAX header that is cut",
            extension(b'x', &record("path", b"x"))[..520].to_vec(),
            "archive.truncated",
        ),
        (
            "an unknown character set",
            ended(&[pax(&[("hdrcharset", b"EBCDIC")]), f()]),
            "archive.pax-charset",
        ),
        (
            "two PAX headers",
            ended(&[pax(&[("path", b"a")]), pax(&[("mtime", b"1")]), f()]),
            "archive.duplicate-extension",
        ),
        (
            "two GNU names",
            ended(&[extension(b'L', b"a\0"), extension(b'L', b"a\0"), f()]),
            "archive.duplicate-extension",
        ),
        (
            "a PAX header at the end",
            ended(&[pax(&[("path", b"a")])]),
            "archive.dangling-extension",
        ),
        (
            "a PAX header at the end of the stream",
            pax(&[("path", b"a")]),
            "archive.dangling-extension",
        ),
        (
            "a GNU name at the end",
            ended(&[extension(b'L', b"a\0")]),
            "archive.dangling-extension",
        ),
        (
            "a global header in between",
            ended(&[
                pax(&[("path", b"a")]),
                extension(b'g', &record("comment", b"x")),
                f(),
            ]),
            "archive.dangling-extension",
        ),
        (
            "a global path",
            ended(&[extension(b'g', &record("path", b"x")), f()]),
            "archive.pax-global",
        ),
        (
            "a global size",
            ended(&[extension(b'g', &record("size", b"1")), f()]),
            "archive.pax-global",
        ),
        (
            "a global target",
            ended(&[extension(b'g', &record("linkpath", b"x")), f()]),
            "archive.pax-global",
        ),
        (
            "a global attribute",
            ended(&[extension(b'g', &record("SCHILY.xattr.user.a", b"x")), f()]),
            "archive.pax-global",
        ),
        (
            "a global sparse map",
            ended(&[extension(b'g', &record("GNU.sparse.map", b"0,1")), f()]),
            "archive.pax-global",
        ),
        // Sizes that disagree: the way in of CVE-2025-62518.
        (
            "size larger in PAX",
            ended(&[pax(&[("size", b"1024")]), plain("f", b"")]),
            "archive.size-disagrees",
        ),
        (
            "size smaller in PAX",
            ended(&[pax(&[("size", b"0")]), plain("f", &[1; 600])]),
            "archive.size-disagrees",
        ),
        (
            "size negative in PAX",
            ended(&[pax(&[("size", b"-1")]), f()]),
            "archive.number-range",
        ),
        (
            "size overflows in PAX",
            ended(&[pax(&[("size", b"9223372036854775808")]), f()]),
            "archive.number-range",
        ),
        (
            "size is no number in PAX",
            ended(&[pax(&[("size", b"0x10")]), f()]),
            "archive.number",
        ),
        (
            "size with a space in PAX",
            ended(&[pax(&[("size", b" 0")]), f()]),
            "archive.number",
        ),
        (
            "time is no number in PAX",
            ended(&[pax(&[("mtime", b"1e9")]), f()]),
            "archive.number",
        ),
        (
            "owner is no number in PAX",
            ended(&[pax(&[("uid", b"root")]), f()]),
            "archive.number",
        ),
        (
            "owner is negative in PAX",
            ended(&[pax(&[("uid", b"-2")]), f()]),
            "archive.number-range",
        ),
        (
            "group is 2^32 - 1 in PAX",
            ended(&[pax(&[("gid", b"4294967295")]), f()]),
            "archive.number-range",
        ),
        // Attributes.
        (
            "an attribute without a name",
            ended(&[pax(&[("SCHILY.xattr.", b"x")]), f()]),
            "archive.xattr",
        ),
        (
            "an attribute with a long name",
            ended(&[
                pax(&[(&format!("SCHILY.xattr.user.{}", "x".repeat(255)), b"x")]),
                f(),
            ]),
            "archive.xattr",
        ),
        (
            "an attribute twice, differently",
            ended(&[
                pax(&[("SCHILY.xattr.user.a", b"f"), ("LIBARCHIVE.xattr.user.a", b"Zw")]),
                f(),
            ]),
            "archive.xattr",
        ),
        (
            "an attribute that is not base64",
            ended(&[pax(&[("LIBARCHIVE.xattr.user.a", b"Z!")]), f()]),
            "archive.xattr",
        ),
        (
            "an attribute's name with half an escape",
            ended(&[pax(&[("LIBARCHIVE.xattr.user.%4", b"Zg")]), f()]),
            "archive.xattr",
        ),
        (
            "a NUL in an attribute's name",
            ended(&[pax(&[("LIBARCHIVE.xattr.user.%00", b"Zg")]), f()]),
            "archive.xattr",
        ),
        (
            "an access control list that is none",
            ended(&[pax(&[("SCHILY.acl.access", b"anybody")]), f()]),
            "archive.acl",
        ),
        (
            "an access control list with a user twice",
            ended(&[pax(&[("SCHILY.acl.access", b"u:1:r,u:1:w")]), f()]),
            "archive.acl",
        ),
        (
            "an access control list of bytes that is none",
            ended(&[pax(&[("SCHILY.xattr.system.posix_acl_access", b"\x02\0\0")]), f()]),
            "archive.acl",
        ),
        (
            "two access control lists",
            ended(&[
                pax(&[
                    (
                        "SCHILY.xattr.system.posix_acl_access",
                        b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff",
                    ),
                    ("SCHILY.acl.access", b"user::r--"),
                ]),
                f(),
            ]),
            "archive.acl",
        ),
        // Sparse.
        (
            "0.1 overlaps",
            sparse_records(
                &[("size", "100"), ("numblocks", "2"), ("map", "0,4,2,4")],
                b"abcdefgh",
            ),
            "archive.sparse",
        ),
        (
            "0.1 out of order",
            sparse_records(
                &[("size", "100"), ("numblocks", "2"), ("map", "50,4,2,4")],
                b"abcdefgh",
            ),
            "archive.sparse",
        ),
        (
            "0.1 over the end",
            sparse_records(&[("size", "5"), ("numblocks", "1"), ("map", "4,4")], b"abcd"),
            "archive.sparse",
        ),
        (
            "0.1 overflows",
            sparse_records(
                &[
                    ("size", "100"),
                    ("numblocks", "1"),
                    ("map", "9223372036854775807,9223372036854775807"),
                ],
                b"abcd",
            ),
            "archive.sparse",
        ),
        (
            "0.1 with more data than it says",
            sparse_records(&[("size", "100"), ("numblocks", "1"), ("map", "0,3")], b"abcd"),
            "archive.sparse",
        ),
        (
            "0.1 with less data than it says",
            sparse_records(&[("size", "100"), ("numblocks", "1"), ("map", "0,5")], b"abcd"),
            "archive.sparse",
        ),
        (
            "0.1 with another number",
            sparse_records(&[("size", "100"), ("numblocks", "2"), ("map", "0,4")], b"abcd"),
            "archive.sparse",
        ),
        (
            "0.1 with half a pair",
            sparse_records(&[("size", "100"), ("numblocks", "1"), ("map", "0,4,8")], b"abcd"),
            "archive.sparse",
        ),
        (
            "0.1 with a letter",
            sparse_records(&[("size", "100"), ("numblocks", "1"), ("map", "0,x")], b"abcd"),
            "archive.sparse",
        ),
        (
            "0.1 negative",
            sparse_records(&[("size", "100"), ("numblocks", "1"), ("map", "-1,4")], b"abcd"),
            "archive.sparse",
        ),
        (
            "0.1 without a size",
            sparse_records(&[("numblocks", "1"), ("map", "0,4")], b"abcd"),
            "archive.sparse",
        ),
        (
            "0.1 with two sizes",
            sparse_records(
                &[
                    ("size", "100"),
                    ("realsize", "99"),
                    ("numblocks", "1"),
                    ("map", "0,4"),
                ],
                b"abcd",
            ),
            "archive.sparse",
        ),
        (
            "0.0 and 0.1",
            sparse_records(
                &[
                    ("size", "100"),
                    ("numblocks", "1"),
                    ("offset", "0"),
                    ("numbytes", "4"),
                    ("map", "0,4"),
                ],
                b"abcd",
            ),
            "archive.sparse",
        ),
        (
            "0.0 with a length first",
            sparse_records(
                &[
                    ("size", "100"),
                    ("numblocks", "1"),
                    ("numbytes", "4"),
                    ("offset", "0"),
                ],
                b"abcd",
            ),
            "archive.sparse",
        ),
        (
            "0.0 with an offset left",
            sparse_records(&[("size", "100"), ("numblocks", "1"), ("offset", "0")], b"abcd"),
            "archive.sparse",
        ),
        (
            "0.0 with two offsets",
            sparse_records(
                &[
                    ("size", "100"),
                    ("numblocks", "1"),
                    ("offset", "0"),
                    ("offset", "4"),
                    ("numbytes", "4"),
                ],
                b"abcd",
            ),
            "archive.pax-duplicate",
        ),
        (
            "an unknown version",
            sparse_records(&[("major", "2"), ("minor", "0"), ("realsize", "1")], b""),
            "archive.sparse",
        ),
        (
            "half a version",
            sparse_records(&[("major", "1"), ("realsize", "1")], b""),
            "archive.sparse",
        ),
        (
            "an unknown key",
            sparse_records(&[("extra", "1")], b""),
            "archive.sparse",
        ),
        (
            "1.0 with a map in records",
            sparse_records(
                &[("major", "1"), ("minor", "0"), ("realsize", "4"), ("map", "0,4")],
                b"abcd",
            ),
            "archive.sparse",
        ),
        (
            "1.0 without content",
            sparse_records(&[("major", "1"), ("minor", "0"), ("realsize", "4")], b""),
            "archive.sparse",
        ),
        (
            "1.0 without a size",
            sparse_records(&[("major", "1"), ("minor", "0")], b""),
            "archive.sparse",
        ),
        (
            "1.0 overlaps",
            sparse_1_0("2\n0\n4\n2\n4\n", "100", b"abcdefgh"),
            "archive.sparse",
        ),
        (
            "1.0 over the end",
            sparse_1_0("1\n98\n4\n", "100", b"abcd"),
            "archive.sparse",
        ),
        (
            "1.0 announces too much",
            sparse_1_0("3\n0\n4\n", "100", b""),
            "archive.sparse",
        ),
        (
            "1.0 announces a million",
            sparse_1_0("1000000\n", "100", b""),
            "archive.sparse-too-large",
        ),
        (
            "1.0 announces 2^63",
            sparse_1_0("9223372036854775807\n", "100", b""),
            "archive.sparse-too-large",
        ),
        (
            "1.0 with a long number",
            sparse_1_0(&format!("1\n{}\n", "0".repeat(100)), "100", b""),
            "archive.sparse",
        ),
        (
            "1.0 with a space",
            sparse_1_0("1\n 0\n4\n", "100", b"abcd"),
            "archive.sparse",
        ),
        (
            "1.0 with garbage in the padding",
            sparse_1_0("1\n0\n4\nx", "100", b"abcd"),
            "archive.sparse",
        ),
        (
            "1.0 with less data",
            sparse_1_0("1\n0\n5\n", "100", b"abcd"),
            "archive.sparse",
        ),
        (
            "a sparse directory",
            ended(&[
                pax(&[("GNU.sparse.size", b"1"), ("GNU.sparse.numblocks", b"0")]),
                Header::new(b'5', "d/", 0).sealed(),
            ]),
            "archive.sparse",
        ),
        (
            "old GNU overlaps",
            old_gnu(
                &[
                    ("00000000000\0", "00000000004\0"),
                    ("00000000002\0", "00000000004\0"),
                ],
                0,
                "00000000144\0",
                b"",
                b"abcdefgh",
            ),
            "archive.sparse",
        ),
        (
            "old GNU over the end",
            old_gnu(
                &[("00000000144\0", "00000000004\0")],
                0,
                "00000000144\0",
                b"",
                b"abcd",
            ),
            "archive.sparse",
        ),
        (
            "old GNU with a gap",
            {
                let mut header = Header::new(b'S', "f", 4);
                header
                    .put(257, b"ustar  \0")
                    .put(410, b"00000000000\0")
                    .put(422, b"00000000004\0")
                    .put(483, b"00000000144\0");
                ended(&[header.sealed(), padded(b"abcd")])
            },
            "archive.sparse",
        ),
        (
            "old GNU goes on without an end",
            old_gnu(
                &[],
                1,
                "00000000144\0",
                &[vec![0; 504], vec![1], vec![0; 7]].concat(),
                b"",
            ),
            "archive.sparse",
        ),
        (
            "old GNU with a strange mark",
            old_gnu(&[], 7, "00000000144\0", b"", b""),
            "archive.sparse",
        ),
        (
            "old GNU negative",
            old_gnu(
                &[("-0000000001\0", "00000000004\0")],
                0,
                "00000000144\0",
                b"",
                b"abcd",
            ),
            "archive.number-range",
        ),
        (
            "old GNU and PAX",
            [
                pax(&[("GNU.sparse.size", b"100")]),
                old_gnu(&[], 0, "00000000144\0", b"", b""),
            ]
            .concat(),
            "archive.sparse",
        ),
        (
            "old GNU cut",
            old_gnu(&[], 1, "00000000144\0", b"", b"")[..512].to_vec(),
            "archive.truncated",
        ),
    ]
}

#[test]
fn every_bad_archive_has_its_code() {
    let catalogue = catalogue();
    assert!(catalogue.len() >= 150, "{}", catalogue.len());
    for (name, bytes, expected) in &catalogue {
        assert_eq!(code(bytes, ReadOptions::strict()), *expected, "{name}");
    }
}

#[test]
fn an_error_stays_an_error() {
    for (name, bytes, _) in catalogue() {
        let mut reader = Reader::new(&bytes[..], ReadOptions::strict());
        while let Ok(Some(_)) = reader.next_entry() {}
        let again = reader.next_entry().unwrap_err().defect.code();
        assert_eq!(again, "archive.after-error", "{name}");
    }
}

#[test]
fn limits_hold() {
    let many = archive(
        &(0..20)
            .map(|n| (Entry::file(format!("f{n}"), 0, 0), &b""[..]))
            .collect::<Vec<_>>(),
    );
    let limited = |limits: Limits| ReadOptions {
        limits,
        ..ReadOptions::strict()
    };
    let entries = limited(Limits {
        entries: 19,
        ..Limits::default()
    });
    assert_eq!(code(&many, entries), "archive.too-many-entries");
    let exact = limited(Limits {
        entries: 20,
        ..Limits::default()
    });
    assert_eq!(read(&many, exact).unwrap().len(), 20);
    let name = limited(Limits {
        name: 10,
        ..Limits::default()
    });
    assert_eq!(
        code(&archive(&[(Entry::file("x".repeat(11), 0, 0), b"")]), name),
        "archive.name-too-long"
    );
    let extents = limited(Limits {
        extents: 1,
        ..Limits::default()
    });
    let two = sparse_records(
        &[("size", "100"), ("numblocks", "2"), ("map", "0,2,4,2")],
        b"abcd",
    );
    assert_eq!(code(&two, extents), "archive.sparse-too-large");
    assert_eq!(
        code(&sparse_1_0("2\n0\n2\n4\n2\n", "100", b"abcd"), extents),
        "archive.sparse-too-large"
    );
}

#[test]
fn docker_takes_more() {
    let like_docker = ReadOptions::like_docker();
    assert_eq!(read(b"", like_docker).unwrap().len(), 0);
    let good = ended(&[plain("f", b"content")]);
    assert_eq!(read(&good[..1024], like_docker).unwrap().len(), 1);
    assert_eq!(read(&good[..1536], like_docker).unwrap().len(), 1);
    assert_eq!(
        read(&[good.clone(), b"garbage".to_vec()].concat(), like_docker)
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        read(&ended(&[plain("f", b""), plain("f", b"2")]), like_docker)
            .unwrap()
            .len(),
        2
    );
    assert_eq!(code(&good[..700], like_docker), "archive.truncated");
    assert_eq!(code(b"garbage", like_docker), "archive.truncated");
}

#[test]
fn what_is_well_formed_is_taken() {
    for (name, bytes) in [
        (
            "a padded end",
            [ended(&[plain("f", b"")]), vec![0; 9000]].concat(),
        ),
        ("a v7 directory", ended(&[Header::new(0, "d/", 0).sealed()])),
        ("a contiguous file", ended(&[Header::new(b'7', "f", 0).sealed()])),
        (
            "a global comment",
            ended(&[extension(b'g', &record("comment", b"x")), plain("f", b"")]),
        ),
        (
            "an equal size",
            ended(&[pax(&[("size", b"3")]), plain("f", b"abc")]),
        ),
        (
            "both names the same",
            ended(&[extension(b'L', b"n\0"), pax(&[("path", b"n")]), plain("f", b"")]),
        ),
        (
            "sparse 0.0",
            sparse_records(
                &[
                    ("size", "100"),
                    ("numblocks", "2"),
                    ("offset", "0"),
                    ("numbytes", "2"),
                    ("offset", "9"),
                    ("numbytes", "2"),
                ],
                b"abcd",
            ),
        ),
        (
            "sparse 0.1",
            sparse_records(&[("size", "100"), ("numblocks", "1"), ("map", "96,4")], b"abcd"),
        ),
        ("sparse 1.0", sparse_1_0("2\n0\n4\n100\n0\n", "100", b"abcd")),
        (
            "sparse of old GNU",
            old_gnu(
                &[
                    ("00000000010\0", "00000000004\0"),
                    ("00000000144\0", "00000000000\0"),
                ],
                0,
                "00000000144\0",
                b"",
                b"abcd",
            ),
        ),
        (
            "an attribute twice, the same",
            ended(&[
                pax(&[
                    ("SCHILY.xattr.user.a", b"f"),
                    ("LIBARCHIVE.xattr.user.a", b"Zg=="),
                ]),
                plain("f", b""),
            ]),
        ),
        (
            "an unknown key",
            ended(&[pax(&[("VENDOR.key", b"x"), ("atime", b"1.5")]), plain("f", b"")]),
        ),
    ] {
        let entries = read(&bytes, ReadOptions::strict());
        assert_eq!(entries.map(|entries| entries.len()).ok(), Some(1), "{name}");
    }
}

#[test]
fn memory_stays_bounded_whatever_the_archive_says() {
    /// An endless archive: one entry after the other, and a file of eight exabytes at the end.
    struct Endless {
        block: Vec<u8>,
        at: usize,
        entries: u64,
        random: Random,
    }
    impl io::Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.at == self.block.len() {
                self.at = 0;
                self.entries += 1;
                let name = format!("d{}/{}", self.random.next(), self.entries);
                self.block = Header::new(b'0', &name, 0).sealed();
            }
            let length = buffer.len().min(self.block.len() - self.at);
            buffer[..length].copy_from_slice(&self.block[self.at..self.at + length]);
            self.at += length;
            Ok(length)
        }
    }
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = resident();
    let endless = Endless {
        block: Vec::new(),
        at: 0,
        entries: 0,
        random: Random(1),
    };
    let mut reader = Reader::new(endless, ReadOptions::strict());
    let error = loop {
        match reader.next_entry() {
            Ok(entry) => assert!(entry.is_some()),
            Err(error) => break error,
        }
    };
    assert_eq!(error.defect.code(), "archive.too-many-entries");
    let used = resident().saturating_sub(before);
    assert!(used < 64 << 10, "{used} KiB for a million names");
    let (entry, content) = file("f", "x");
    assert_eq!(entry.kind, Kind::File);
    assert_eq!(content.len(), 1);
}
