//! Bad extended headers: PAX, GNU names, attributes, sizes that disagree.

use crate::build::*;

/// Name, archive, code.
pub fn catalogue() -> Vec<Case> {
    let f = || plain("f", b"");
    let large = vec![b'x'; (1 << 20) + 1];
    vec![
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
    ]
}
