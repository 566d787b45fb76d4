use std::io::{Cursor, Read as _};
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use tranship_archive::confined::{ExportOptions, Links, Root, export_as};
use tranship_archive::filter::FilterSpec;
use tranship_archive::path::TreePath;
use tranship_archive::writer::Writer;

use super::*;

/// Bytes that look like nothing in particular.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

fn root(path: &Path) -> Arc<Root> {
    Arc::new(Root::open(path, Links::InRoot).unwrap())
}

fn archive(path: &Path) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    let (name, options) = (TreePath::root(), ExportOptions::default());
    export_as(
        &root(path),
        b"/.",
        Some(&name),
        &FilterSpec::default(),
        &mut writer,
        &options,
    )
    .unwrap();
    writer.finish().unwrap()
}

fn index_of(archive: &[u8], there: &Path) -> Index {
    let names = read_names(&names_of(archive).unwrap()).unwrap();
    let mut index = Vec::new();
    write_index(&root(there), &TreePath::root(), &names, &mut index).unwrap();
    Index::parse(&index).unwrap()
}

fn encoded_bytes(archive: &[u8], index: &Index) -> Vec<u8> {
    let mut frames = Vec::new();
    encode(archive, &mut frames, index).unwrap();
    frames
}

fn decoded(frames: &[u8], there: &Path) -> Result<Vec<u8>, Fault> {
    let mut decoder = Decoder::new(Cursor::new(frames), Some((root(there), TreePath::root())));
    let broken = decoder.broken();
    let mut all = Vec::new();
    match decoder.read_to_end(&mut all) {
        Ok(_) => Ok(all),
        Err(error) => Err(broken.or(Fault::new("io", FaultKind::Environment, error.to_string()))),
    }
}

/// Two directories: what is copied, and what is there.
fn places() -> (tempfile::TempDir, tempfile::TempDir) {
    (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap())
}

#[test]
fn a_page_in_a_large_file_costs_a_chunk_and_the_archive_is_the_same() {
    let (here, there) = places();
    let mut content = noise(1, 8 << 20);
    std::fs::write(there.path().join("file"), &content).unwrap();
    content[3 << 20..(3 << 20) + 4096].copy_from_slice(&noise(2, 4096));
    // Everything after this stands elsewhere than before.
    content.splice(100..100, *b"inserted");
    std::fs::write(here.path().join("file"), &content).unwrap();
    std::fs::write(here.path().join("new"), noise(3, 10_000)).unwrap();
    let whole = archive(here.path());
    let frames = encoded_bytes(&whole, &index_of(&whole, there.path()));
    assert!(frames.len() < 700_000, "{}", frames.len());
    assert_eq!(decoded(&frames, there.path()).unwrap(), whole);
}

#[test]
fn what_an_earlier_copy_left_beside_a_file_is_not_sent_again() {
    let (here, there) = places();
    let content = noise(1, 8 << 20);
    std::fs::write(here.path().join("file"), &content).unwrap();
    std::fs::write(there.path().join(".tranship-partial.file"), &content[..5 << 20]).unwrap();
    let whole = archive(here.path());
    // With and without an older file under the name itself.
    for old in [None, Some(noise(2, 6 << 20))] {
        if let Some(old) = &old {
            std::fs::write(there.path().join("file"), old).unwrap();
        }
        let frames = encoded_bytes(&whole, &index_of(&whole, there.path()));
        assert!(frames.len() < 4 << 20, "{}", frames.len());
        assert_eq!(decoded(&frames, there.path()).unwrap(), whole);
    }
    // What is both in the old file and beside it is found in either.
    std::fs::write(there.path().join("file"), &content[4 << 20..]).unwrap();
    let frames = encoded_bytes(&whole, &index_of(&whole, there.path()));
    assert!(frames.len() < 1 << 20, "{}", frames.len());
    assert_eq!(decoded(&frames, there.path()).unwrap(), whole);
    // It is gone when it is needed.
    std::fs::remove_file(there.path().join(".tranship-partial.file")).unwrap();
    assert_eq!(decoded(&frames, there.path()).unwrap_err().code, "delta.changed");
}

#[test]
fn holes_are_neither_sent_nor_looked_for() {
    let (here, there) = places();
    for (path, seed) in [(here.path(), 1), (there.path(), 2)] {
        let file = std::fs::File::create(path.join("file")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &noise(7, 1 << 20), 5 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &noise(seed, 1 << 16), 64 << 20).unwrap();
        file.set_len(1 << 30).unwrap();
    }
    let whole = archive(here.path());
    let frames = encoded_bytes(&whole, &index_of(&whole, there.path()));
    assert!(frames.len() < 200_000, "{}", frames.len());
    assert_eq!(decoded(&frames, there.path()).unwrap(), whole);
}

#[test]
fn what_changed_after_it_was_compared_is_an_error() {
    let (here, there) = places();
    let content = noise(1, 1 << 20);
    for path in [here.path(), there.path()] {
        std::fs::write(path.join("file"), &content).unwrap();
    }
    let whole = archive(here.path());
    let frames = encoded_bytes(&whole, &index_of(&whole, there.path()));
    let file = there.path().join("file");
    for change in [
        |file: &Path| std::fs::write(file, noise(2, 1 << 20)).unwrap(),
        |file: &Path| std::fs::write(file, b"short").unwrap(),
        |file: &Path| std::fs::remove_file(file).unwrap(),
        // A link is not followed to where the content is.
        |file: &Path| {
            let other = file.with_file_name("other");
            std::fs::write(&other, noise(1, 1 << 20)).unwrap();
            std::os::unix::fs::symlink("other", file).unwrap();
        },
    ] {
        change(&file);
        assert_eq!(decoded(&frames, there.path()).unwrap_err().code, "delta.changed");
    }
}

#[test]
fn what_is_no_regular_file_is_not_read() {
    let (here, there) = places();
    for name in ["fifo", "link", "directory", "small", "file"] {
        std::fs::write(here.path().join(name), noise(1, 4096)).unwrap();
    }
    let fifo = there.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
    std::os::unix::fs::symlink("file", there.path().join("link")).unwrap();
    std::fs::create_dir(there.path().join("directory")).unwrap();
    std::fs::write(there.path().join("small"), b"s").unwrap();
    std::fs::write(there.path().join("file"), noise(1, 4096)).unwrap();
    let whole = archive(here.path());
    let index = index_of(&whole, there.path());
    for name in ["fifo", "link", "directory"] {
        assert!(index.file(name.as_bytes()).is_none(), "{name}");
    }
    assert!(index.file(b"file").is_some());
    assert_eq!(
        decoded(&encoded_bytes(&whole, &index), there.path()).unwrap(),
        whole
    );
}

#[test]
fn paths_do_not_lead_out_of_the_root() {
    let (outer, _) = places();
    let inner = outer.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let secret = noise(1, 4096);
    std::fs::write(outer.path().join("secret"), &secret).unwrap();
    std::os::unix::fs::symlink("..", inner.join("up")).unwrap();
    for path in [&b"../secret"[..], b"up/secret", b"/../secret"] {
        let mut frames = vec![FILE];
        frames.extend(u32::try_from(path.len()).unwrap().to_le_bytes());
        frames.extend(path);
        frames.push(REFERENCE);
        frames.extend(0_u64.to_le_bytes());
        frames.extend(4096_u32.to_le_bytes());
        frames.extend(blake3::hash(&secret).as_bytes());
        frames.push(END);
        assert_eq!(decoded(&frames, &inner).unwrap_err().code, "delta.changed");
    }
}

#[test]
fn frames_that_break_off_or_go_on_are_refused() {
    let (here, there) = places();
    for path in [here.path(), there.path()] {
        std::fs::write(path.join("file"), noise(1, 300_000)).unwrap();
    }
    let whole = archive(here.path());
    let frames = encoded_bytes(&whole, &index_of(&whole, there.path()));
    for length in 0..frames.len() {
        assert!(decoded(&frames[..length], there.path()).is_err(), "{length}");
    }
    let longer = [&frames[..], b"x"].concat();
    assert_eq!(
        decoded(&longer, there.path()).unwrap_err().code,
        "delta.malformed"
    );
    let huge = [&[LITERAL][..], &u32::MAX.to_le_bytes()].concat();
    assert_eq!(decoded(&huge, there.path()).unwrap_err().code, "delta.malformed");
    assert_eq!(decoded(&[9], there.path()).unwrap_err().code, "delta.malformed");
    let mut index = Vec::new();
    write_empty_index(&mut index).unwrap();
    assert!(Index::parse(&index).is_ok());
    assert!(Index::parse(&index[..5]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_edits_give_the_same_archive(
        length in 0..600_000_usize,
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..3_u8, 0..70_000_usize), 0..6),
    ) {
        let (here, there) = places();
        let mut content = noise(1, length);
        std::fs::write(there.path().join("f"), &content).unwrap();
        for (seed, (at, kind, bytes)) in edits.into_iter().enumerate() {
            let at = at.index(content.len() + 1);
            let end = (at + bytes).min(content.len());
            let new = noise(seed as u64 + 2, bytes);
            match kind {
                0 => drop(content.splice(at..at, new)),
                1 => drop(content.drain(at..end)),
                _ => { content.splice(at..end, new); }
            }
        }
        std::fs::write(here.path().join("f"), &content).unwrap();
        let whole = archive(here.path());
        let frames = encoded_bytes(&whole, &index_of(&whole, there.path()));
        prop_assert_eq!(decoded(&frames, there.path()).unwrap(), whole);
    }

    #[test]
    fn no_index_and_no_frames_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let (_, there) = places();
        let _ = Index::parse(&[MAGIC, &bytes].concat());
        let _ = read_names(&bytes);
        let _ = decoded(&bytes, there.path());
    }
}
