//! Bad headers: lengths, ends, numbers, names and kinds.

use crate::build::*;

/// Name, archive, code.
pub fn catalogue() -> Vec<Case> {
    let f = || plain("f", b"");
    let good = ended(&[plain("f", b"content")]);
    let cut = |at: usize| good[..at].to_vec();
    let mut flipped = good.clone();
    flipped[0] ^= 1;
    let long = "x".repeat(70_000);
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
            with(124, b"000\x00000\0\0\0\0\0"),
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
    ]
}
