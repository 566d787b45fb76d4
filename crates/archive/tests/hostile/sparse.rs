//! Bad sparse maps.

use crate::build::*;

/// Name, archive, code.
pub fn catalogue() -> Vec<Case> {
    vec![
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
