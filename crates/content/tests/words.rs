//! What a word of the protocol is made of: every bit counts, and no bytes make the reader fall over.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod support;

use std::fs;

use bytes::Bytes;
use support::make::*;
use support::{id, with_sink};
use tranship_content::encoding::{Extents, put_bytes, put_entry, put_number};
use tranship_content::entry::Entry;
use tranship_content::message::{Message, Operation, Part, Wants, Write as How, operations, put_data_head};
use tranship_core::fault::Explain as _;

#[test]
fn every_flipped_bit_of_content_is_noticed_before_it_is_written() {
    let content: &'static [u8] = b"some bytes that matter";
    let mut body = Vec::new();
    root().put(&mut body);
    begin("a", content.len() as u64, How::Replace).put(&mut body);
    put_data_head(&mut body, &id(content), content.len());
    let start = body.len();
    body.extend_from_slice(content);
    Operation::FileEnd.put(&mut body);
    for bit in 0..content.len() * 8 {
        let mut flipped = body.clone();
        flipped[start + bit / 8] ^= 1 << (bit % 8);
        let all = tempfile::tempdir().unwrap();
        let to = all.path().join("root");
        fs::create_dir(&to).unwrap();
        let (result, _) = with_sink(&to, &all.path().join("work"), |peer| {
            peer.open(Wants::default());
            peer.say(&Message::Delta(flipped.into()));
            peer.hear()
        });
        assert_eq!(result.unwrap_err().code(), "chunk.corrupt");
        assert_eq!(fs::read(to.join("a")).unwrap_or_default(), b"");
    }
}

#[test]
fn garbage_never_panics() {
    use proptest::prelude::*;
    proptest!(ProptestConfig::with_cases(2000), |(kind in 0_u8..20, body in proptest::collection::vec(any::<u8>(), 0..200))| {
        let _ = Message::decode(kind, Bytes::from(body.clone()));
        for operation in operations(Bytes::from(body)) {
            if operation.is_err() {
                break;
            }
        }
    });
}

#[test]
fn operations_survive_their_encoding() {
    let mut odd = Vec::new();
    put_number(&mut odd, u64::MAX);
    put_bytes(&mut odd, b"x");
    put_entry(&mut odd, &file("a", 0), Extents::With);
    let list = vec![
        root(),
        directory("a"),
        link("a/l", "x"),
        begin("b", 22, How::InPlace),
        data(b"1234"),
        Operation::Hole { length: 3 },
        Operation::Copy {
            path: b"b".to_vec(),
            offset: 1 << 40,
            length: 7,
            id: id(b""),
        },
        Operation::Patch {
            path: b"b".to_vec(),
            offset: 3,
            length: 9,
            id: id(b"y"),
            parts: vec![
                Part::Base { offset: 0, length: 9 },
                Part::Literal(Bytes::from_static(b"zz")),
            ],
        },
        Operation::Keep { length: 1 << 50 },
        Operation::FileEnd,
        whole("c", b"x"),
        Operation::Attributes(Entry {
            xattrs: vec![(b"user.a".to_vec(), b"v".to_vec())],
            ..file("d", 9)
        }),
        Operation::Remove { path: b"e".to_vec() },
    ];
    let mut body = Vec::new();
    for operation in &list {
        operation.put(&mut body);
    }
    let back: Vec<_> = operations(body.into()).map(Result::unwrap).collect();
    assert_eq!(back, list);
}
