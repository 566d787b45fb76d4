//! Everything that reads what others wrote is fed mutations of it, the same in every run: nothing panics, nothing takes
//! memory without bound, and what is accepted is what it says it is.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics has failed"
)]

mod common;

use std::io::Read as _;

use common::generate::{self, Abilities};
use common::mutate::{mutate, seal};
use common::{Random, setting};
use tranship_archive::TreePath;
use tranship_archive::acl::Acl;
use tranship_archive::compression::{CompressionError, DecodeOptions, Decoder, Encoder, Format};
use tranship_archive::copy_rules::{Operand, Present, place};
use tranship_archive::filter::{FilterSpec, Mounts, split_export, split_import, split_stat};
use tranship_archive::reader::{ReadOptions, Reader};
use tranship_archive::writer::Writer;

/// Executions of all targets together, about.
fn executions() -> u64 {
    setting("TRANSHIP_TEST_MUTATIONS", 200_000)
}

/// Reads everything and writes what was read again; the second reading must give the same.
fn read_and_check(bytes: &[u8]) -> bool {
    let mut reader = Reader::new(bytes, ReadOptions::strict());
    let mut writer = Writer::new(Vec::new());
    let mut entries = Vec::new();
    loop {
        match reader.next_entry() {
            Ok(Some(entry)) => {
                assert!(entry.stored_size() <= entry.size);
                match writer.append_from(&entry, &mut reader) {
                    Ok(()) => entries.push(entry),
                    Err(_) => return false,
                }
            }
            Ok(None) => break,
            Err(error) => {
                assert!(error.defect.code().starts_with("archive."));
                return false;
            }
        }
    }
    let again = writer.finish().unwrap();
    let mut reader = Reader::new(&again[..], ReadOptions::strict());
    for entry in entries {
        let mut back = reader.next_entry().unwrap().unwrap();
        // A directory gets its slash, and a map without holes is a map no more.
        if back.kind.is_directory() && !entry.path.ends_with(b"/") {
            back.path.pop();
        }
        assert_eq!(back, entry);
    }
    assert!(reader.next_entry().unwrap().is_none());
    true
}

#[test]
fn archives() {
    let mut random = Random(1);
    let seeds: Vec<Vec<u8>> = (0..200)
        .map(|seed| {
            let mut writer = Writer::new(Vec::new());
            for (entry, data) in generate::entries(&mut Random(seed), Abilities::ALL, 2) {
                // Small archives, so that a mutation hits something.
                if data.len() <= 4096 {
                    writer.append(&entry, &mut &data[..]).unwrap();
                }
            }
            writer.finish().unwrap()
        })
        .collect();
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..executions() / 2 {
        let mut bytes = random.pick(&seeds).clone();
        mutate(&mut random, &mut bytes);
        if random.chance(90) {
            seal(&mut bytes);
        }
        if read_and_check(&bytes) {
            accepted += 1;
        } else {
            refused += 1;
        }
    }
    eprintln!("archives: {accepted} accepted, {refused} refused");
    assert!(accepted > 0 && refused > 0);
}

#[test]
fn filters() {
    let mut random = Random(2);
    let seeds = [
        "include=a/b&exclude=&exclude=a/&strip=a&rebase=new",
        "include=x%20%2B%25%FF/&rebase=q%26%3D",
        "exclude=mnt/A/&exclude=mnt/B/&include=mnt&strip=mnt&rebase=mnt",
        "",
    ];
    let paths: Vec<TreePath> = ["", "a", "a/b", "a/b/c", "mnt/A", "mnt/A/x", "mnt/Ab"]
        .iter()
        .map(|path| TreePath::below(path.as_bytes()).unwrap())
        .collect();
    let mut accepted = 0;
    for _ in 0..executions() / 4 {
        let mut text = random.pick(&seeds).as_bytes().to_vec();
        mutate(&mut random, &mut text);
        let text = String::from_utf8_lossy(&text);
        let Ok(spec) = FilterSpec::from_query(&text) else {
            continue;
        };
        accepted += 1;
        let canonical = spec.to_query();
        let again = FilterSpec::from_query(&canonical).unwrap();
        assert_eq!(again, spec, "{text:?}");
        assert_eq!(again.to_query(), canonical);
        for path in &paths {
            let _ = spec.rename(path);
            // A walk must reach everything that is included.
            let mut above = path.parent();
            while let Some(directory) = above {
                assert!(
                    !spec.includes(path) || spec.descends_into(&directory),
                    "{text:?}: {path}"
                );
                above = directory.parent();
            }
        }
    }
    assert!(accepted > 100, "{accepted}");
}

#[test]
fn paths_and_operands() {
    let mut random = Random(3);
    let mut mounts = Mounts::new(0);
    mounts.mount(b"/mnt/A", 1).unwrap();
    mounts.mount(b"/mnt/A/B", 2).unwrap();
    let seeds: [&[u8]; 8] = [
        b"/mnt/A/../B/.",
        b"c1:/tmp/x",
        b"ssh://me@host:22//c1:/x",
        b"volume:v:/x",
        b"./a:b",
        b"../..",
        b"/",
        b"d/.",
    ];
    for _ in 0..executions() / 8 {
        let mut text = random.pick(&seeds).to_vec();
        mutate(&mut random, &mut text);
        let _ = Operand::parse(&text);
        for present in [
            Present::Directory,
            Present::File,
            Present::Nothing { parent: true },
        ] {
            let _ = place(&text, true, &text, present);
        }
        if let Ok(path) = TreePath::of_request(&text) {
            assert!(
                path.components()
                    .all(|part| part != b".." && part != b"." && !part.contains(&0))
            );
            assert_eq!(TreePath::of_entry(&path.to_entry(true)).unwrap(), path);
            assert!(!split_export(&text, &mounts).unwrap().is_empty());
            assert!(!split_import(&text, &mounts).unwrap().is_empty());
            assert!(split_stat(&text, &mounts).unwrap().is_some());
        }
        if let Ok(path) = TreePath::of_entry(&text) {
            assert!(TreePath::of_request(&text).unwrap() == path);
        }
    }
}

#[test]
fn access_control_lists() {
    let mut random = Random(4);
    let text = b"user::rwx,user:lisa:r-x:502,group::r--,mask::rwx,other::---";
    let bytes = Acl::parse(text).unwrap().to_xattr().unwrap();
    for _ in 0..executions() / 16 {
        let mut mutated = text.to_vec();
        mutate(&mut random, &mut mutated);
        if let Some(acl) = Acl::parse(&mutated) {
            assert_eq!(
                Acl::parse(&acl.to_text()).as_ref(),
                Some(&acl),
                "{:?}",
                String::from_utf8_lossy(&mutated)
            );
        }
        let mut mutated = bytes.clone();
        mutate(&mut random, &mut mutated);
        if let Some(acl) = Acl::from_xattr(&mutated) {
            assert_eq!(Acl::from_xattr(&acl.to_xattr().unwrap()), Some(acl));
        }
    }
}

#[test]
fn compressed_streams() {
    let mut random = Random(5);
    let data: Vec<u8> = (0..3000_u32).flat_map(|n| n.to_le_bytes()).collect();
    let mut seeds: Vec<Vec<u8>> = [Format::Gzip, Format::Zstd]
        .into_iter()
        .map(|format| {
            let mut encoder = Encoder::new(Vec::new(), format, None).unwrap();
            std::io::Write::write_all(&mut encoder, &data).unwrap();
            encoder.finish().unwrap()
        })
        .collect();
    let mut encoder = bzip2::read::BzEncoder::new(&data[..2000], bzip2::Compression::fast());
    let mut bytes = Vec::new();
    encoder.read_to_end(&mut bytes).unwrap();
    seeds.push(bytes);
    let mut encoder = liblzma::read::XzEncoder::new(&data[..2000], 0);
    let mut bytes = Vec::new();
    encoder.read_to_end(&mut bytes).unwrap();
    seeds.push(bytes);
    let options = DecodeOptions {
        output: Some(1 << 20),
        ..DecodeOptions::default()
    };
    for _ in 0..executions() / 16 {
        let mut bytes = random.pick(&seeds).clone();
        mutate(&mut random, &mut bytes);
        let mut decoder = Decoder::new(&bytes[..], options).unwrap();
        let mut out = Vec::new();
        let typed = |error: &std::io::Error| {
            error
                .get_ref()
                .is_some_and(|inner| inner.is::<CompressionError>())
        };
        match decoder.read_to_end(&mut out) {
            Ok(_) => assert_eq!(decoder.read(&mut [0; 10]).unwrap(), 0, "goes on after its end"),
            Err(error) => {
                assert!(typed(&error), "{error:?}");
                assert!(
                    typed(&decoder.read(&mut [0; 10]).unwrap_err()),
                    "an error looks like an end"
                );
            }
        }
        assert!(out.len() <= 2 << 20);
    }
}
