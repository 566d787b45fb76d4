//! Large files that are cut while something still writes at their end.
//!
//! A dump of memory takes as long as reading and cutting it does. Where nothing but its end changes, both can be done at the same
//! time: a segment is cut as soon as everything is written that its cuts depend on, and [`cut`] takes that over later instead of
//! reading it. Names of chunks are kept, and where hashes of the base's blocks are known, the blocks that differ; other bytes are
//! read again by whoever wants them. The sink compares all of them with the names.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::dirs::{Directories, split};
use super::read::read_at;
use super::segment::{Hints, Large, Range, cut, segment_end};
use super::stat::{Kind, Root, Stat, open_file, stat_of};
use super::{Base, BaseEntries, Context, ScanError, ScanOptions, Wanted};
use crate::chunk::Sizes;
use crate::entry::{EntryKind, Extent};
use crate::message::Part;
use crate::source::IN_PLACE;

/// Bytes of blocks that differ that are kept until the round goes on, at most: where much changed, chunks are read again.
const KEPT: usize = 128 << 20;
/// Time between two looks whether something was written.
const LOOK: Duration = Duration::from_millis(2);

/// The chunks of segments, by where these begin and end, and how they are made of the base's if that is known.
pub(crate) type Cuts = HashMap<(u64, u64), Vec<(Extent, Option<Vec<Part>>)>>;

/// Hashes (XXH3, 64 bits) of the blocks of files, by path: those of the base.
#[derive(Debug, Default)]
pub(crate) struct Hashes {
    /// Bytes of a block; the last one of a file may be shorter.
    pub(crate) block: u32,
    pub(crate) files: HashMap<Vec<u8>, Vec<u64>>,
}

/// What was cut early.
#[derive(Debug, Default)]
pub(crate) struct Early {
    files: HashMap<Vec<u8>, Followed>,
}

impl Early {
    /// What was cut of the file at this path, if it is the one that was looked at, and would be cut alike. It is given away.
    pub(crate) fn take(&mut self, path: &[u8], stat: &Stat, sizes: Sizes) -> Cuts {
        let followed = self.files.remove(path);
        let same = |followed: &Followed| {
            (followed.stat.dev, followed.stat.ino) == (stat.dev, stat.ino) && followed.large.sizes == sizes
        };
        followed.filter(same).map(|f| f.cuts).unwrap_or_default()
    }
}

/// A file that is being written.
#[derive(Debug)]
struct Followed {
    /// Stays open, so that no file that takes its place gets its number.
    large: Large,
    stat: Stat,
    /// Up to here it is cut.
    at: u64,
    cuts: Cuts,
    /// Bytes of blocks that are kept.
    kept: usize,
}

/// A file of the base that may be written anew.
pub(crate) struct Known {
    pub(crate) path: Vec<u8>,
    pub(crate) size: u64,
    extents: Vec<Extent>,
}

/// Cuts large files that the base has, while they are written anew, until that is `over`. What is before the end of a file must stay as
/// it is. What cannot be read is left for later.
///
/// # Errors
/// The base cannot be read.
pub(crate) fn follow(
    root: &Path,
    base: &Base,
    hashes: &Hashes,
    over: &AtomicBool,
) -> Result<Early, ScanError> {
    let mut context = None;
    let mut kept = 0;
    let mut files: Vec<(Known, Option<Followed>)> = large_files(base)?
        .into_iter()
        .map(|known| (known, None))
        .collect();
    while !over.load(Ordering::Relaxed) {
        let mut found = false;
        for (known, followed) in &mut files {
            // The directory may come and go, too.
            let Ok(root) = Root::open(root) else { break };
            let context = context.get_or_insert_with(|| {
                Context::new(&root, &ScanOptions::default(), super::now(), Wanted::All)
            });
            if followed.is_none() {
                *followed = open(&root, known);
            }
            if let Some(file) = followed {
                let before = file.kept;
                match file.go_on(context, hashes, KEPT.saturating_sub(kept), over) {
                    Ok(more) => {
                        found |= more;
                        kept += file.kept - before;
                    }
                    // Another one may take its place.
                    Err(_) => {
                        kept -= before;
                        *followed = None;
                    }
                }
            }
        }
        if !found {
            std::thread::sleep(LOOK);
        }
    }
    let files = files
        .into_iter()
        .filter_map(|(known, followed)| Some((known.path, followed?)));
    Ok(Early {
        files: files.collect(),
    })
}

/// Files of the base that are worth it.
pub(crate) fn large_files(base: &Base) -> Result<Vec<Known>, ScanError> {
    let mut entries = BaseEntries::open(base)?;
    let mut files = Vec::new();
    while let Some((entry, _)) = entries.take()? {
        if let EntryKind::File { size, extents } = entry.kind
            && size >= IN_PLACE
        {
            files.push(Known {
                path: entry.path,
                size,
                extents,
            });
        }
    }
    Ok(files)
}

fn open(root: &Root, known: &Known) -> Option<Followed> {
    let (directory, name) = split(&known.path);
    let directory = Directories::new(root).ok()?.open(directory).ok()?;
    let file = open_file(&*directory, name).ok()?;
    let stat = stat_of(&file).ok()?;
    let sizes = Sizes::of(known.size);
    (stat.kind == Kind::File && root.holds(&stat)).then(|| Followed {
        large: Large {
            file: File::from(file),
            path: known.path.clone(),
            sizes,
            hints: Some(Hints::new(&known.extents, known.size, sizes)),
            in_place: false,
            early: Cuts::new(),
        },
        stat,
        at: 0,
        cuts: Cuts::new(),
        kept: 0,
    })
}

impl Followed {
    /// Cuts what was written since, and keeps no more than `room` bytes of blocks. Says whether there was anything.
    fn go_on(
        &mut self,
        context: &Context<'_>,
        hashes: &Hashes,
        room: usize,
        over: &AtomicBool,
    ) -> Result<bool, ScanError> {
        let most = self.kept.saturating_add(room);
        let mut found = false;
        while !over.load(Ordering::Relaxed) {
            // Each time: one that was removed would be read in vain, and keep its memory as long.
            let now = stat_of(&self.large.file);
            let now = now.map_err(|error| ScanError::io("look at", &self.large.path, error))?;
            if now.nlink == 0 || now.size < self.at {
                return Err(super::read::changed(&self.large.path));
            }
            let range = Range {
                from: self.at,
                to: segment_end(&self.large, self.at, u64::MAX),
                end: u64::MAX,
            };
            if !is_complete(&self.large, range, now.size) {
                break;
            }
            let segment = cut(&self.large, range, context)?;
            let mut at = range.from;
            let mut cuts = Vec::with_capacity(segment.pieces.len());
            for piece in segment.pieces {
                let parts = piece.bytes.and_then(|bytes| self.parts(hashes, at, &bytes));
                let parts = parts.filter(|parts| literal_of(parts) <= most - self.kept);
                self.kept += parts.as_deref().map_or(0, literal_of);
                cuts.push((piece.extent, parts));
                at += piece.extent.length();
            }
            self.cuts.insert((range.from, range.to), cuts);
            self.at = range.to;
            found = true;
        }
        Ok(found)
    }
}

impl Followed {
    /// How a chunk is made of the one that the base has in its place. `None` if it has none there, or that would save little.
    fn parts(&self, hashes: &Hashes, at: u64, bytes: &[u8]) -> Option<Vec<Part>> {
        let known = hashes.files.get(&self.large.path)?;
        let (old, _) = self.large.hints.as_ref()?.chunk_at(at)?;
        if old as usize != bytes.len() {
            return None;
        }
        let block = u64::from(hashes.block);
        let end = at + u64::from(old);
        let mut edge = vec![0; hashes.block as usize];
        let mut stretches: Vec<(bool, usize)> = Vec::new();
        let mut from = at;
        while from < end {
            let begin = from - from % block;
            // Blocks lie where they lie in the file: the first and the last reach into other chunks.
            let whole = match begin.checked_sub(at).map(|begin| begin as usize) {
                Some(begin) if begin + edge.len() <= bytes.len() => &bytes[begin..begin + edge.len()],
                _ => {
                    let read = read_at(&self.large.file, &mut edge, begin).ok()?;
                    &edge[..read]
                }
            };
            let same = known.get((begin / block) as usize) == Some(&xxh3_64(whole));
            let to = (begin + block).min(end);
            match stretches.last_mut() {
                Some((last, length)) if *last == same => *length += (to - from) as usize,
                _ => stretches.push((same, (to - from) as usize)),
            }
            from = to;
        }
        let literal: usize = stretches
            .iter()
            .filter(|(same, _)| !same)
            .map(|(_, length)| length)
            .sum();
        if literal + 8 * stretches.len() + 16 >= bytes.len() {
            return None;
        }
        let mut done = 0;
        let parts = stretches.into_iter().map(|(same, length)| {
            let from = done;
            done += length;
            if same {
                // A chunk has 4 MiB at most.
                Part::Base {
                    offset: from as u32,
                    length: length as u32,
                }
            } else {
                Part::Literal(Bytes::copy_from_slice(&bytes[from..done]))
            }
        });
        Some(parts.collect())
    }
}

/// Bytes that are not the base's.
fn literal_of(parts: &[Part]) -> usize {
    let literal = parts.iter().map(|part| match part {
        Part::Literal(bytes) => bytes.len(),
        Part::Base { .. } => 0,
    });
    literal.sum()
}

/// Whether what lies beyond `end` has no say in how a segment is cut.
pub(super) fn is_complete(large: &Large, range: Range, end: u64) -> bool {
    range.to.saturating_add(large.sizes.max() as u64) <= end
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::Mutex;

    use super::*;
    use crate::scan::tests::noise;
    use crate::scan::{Job, Recorder, Replay, Todo, open_root, run, scan};

    const NAME: &[u8] = b"pages-1.img";

    struct Bench {
        root: tempfile::TempDir,
        work: tempfile::TempDir,
    }

    impl Bench {
        /// A directory with one file, and its tree.
        fn new(content: &[u8]) -> (Self, Base) {
            let bench = Self {
                root: tempfile::tempdir().unwrap(),
                work: tempfile::tempdir().unwrap(),
            };
            std::fs::write(bench.file(), content).unwrap();
            let (tree, facts) = (bench.work.path().join("tree"), bench.work.path().join("facts"));
            let options = ScanOptions::default();
            let outcome = scan(
                bench.root.path(),
                &options,
                None,
                (&tree, &facts),
                bench.work.path(),
            )
            .unwrap();
            let base = Base {
                id: outcome.tree.id,
                tree,
                facts: Some(facts),
            };
            (bench, base)
        }

        fn file(&self) -> std::path::PathBuf {
            self.root.path().join("pages-1.img")
        }

        /// Writes the file anew in parts and cuts what there is of it after each of them.
        fn written_in_parts(&self, base: &Base, hashes: &Hashes, content: &[u8]) -> Early {
            let root = open_root(self.root.path()).unwrap();
            let context = Context::new(&root, &ScanOptions::default(), crate::scan::now(), Wanted::All);
            let known = large_files(base).unwrap().pop().unwrap();
            std::fs::remove_file(self.file()).unwrap();
            let mut file = File::create(self.file()).unwrap();
            let mut followed = open(&root, &known).unwrap();
            for part in content.chunks(3_000_000) {
                file.write_all(part).unwrap();
                followed
                    .go_on(&context, hashes, KEPT, &AtomicBool::new(false))
                    .unwrap();
            }
            Early {
                files: [(known.path, followed)].into(),
            }
        }

        /// Writes the file anew in parts while it is followed.
        fn written_anew(&self, base: &Base, hashes: &Hashes, content: &[u8]) -> Early {
            let over = AtomicBool::new(false);
            std::fs::remove_file(self.file()).unwrap();
            std::thread::scope(|scope| {
                let following = scope.spawn(|| follow(self.root.path(), base, hashes, &over).unwrap());
                let mut file = File::create(self.file()).unwrap();
                for part in content.chunks(3_000_000) {
                    file.write_all(part).unwrap();
                    std::thread::sleep(LOOK);
                }
                over.store(true, Ordering::Relaxed);
                following.join().unwrap()
            })
        }

        /// The id of the tree with what was cut early, and how many bytes of chunks that the base lacks came with it.
        fn scanned(&self, base: &Base, early: Early) -> (crate::entry::TreeId, Vec<(u64, Vec<u8>)>) {
            let options = ScanOptions {
                frozen: true,
                ..ScanOptions::default()
            };
            let root = open_root(self.root.path()).unwrap();
            let todo = Todo::look(&root, &options, base, self.work.path(), |_| Ok(())).unwrap();
            let mut items = Replay::new(base, &todo).unwrap();
            let context = Context::new(&root, &options, crate::scan::now(), Wanted::All);
            let context = context.with_early(early);
            let job = Job {
                root: &root,
                options: &options,
                context: &context,
            };
            let to = ["next.tree", "next.facts"].map(|name| self.work.path().join(name));
            let mut recorder = Recorder::create(&to[0], &to[1]).unwrap();
            let bytes = Mutex::new((0, Vec::new()));
            run::<ScanError>(job, &mut items, &mut |mut found| {
                if let crate::scan::Found::Piece(piece) = &found {
                    let mut bytes = bytes.lock().unwrap();
                    let at = bytes.0;
                    bytes.1.extend(piece.bytes.as_ref().map(|b| (at, b.to_vec())));
                    bytes.0 += piece.extent.length();
                }
                recorder.take(&mut found)
            })
            .unwrap();
            (recorder.finish().unwrap().id, bytes.into_inner().unwrap().1)
        }
    }

    /// The content of before with some pages changed, and some bytes more.
    fn changed(mut content: Vec<u8>, more: usize) -> Vec<u8> {
        for at in (0..content.len() - 8).step_by(5_000_000) {
            content[at..at + 8].copy_from_slice(b"changed!");
        }
        content.extend(noise(more, 9));
        content
    }

    #[test]
    fn what_is_cut_early_is_as_if_cut_later() {
        let before = noise(70 << 20, 1);
        let none = Hashes::default();
        for more in [0, 40 << 20] {
            let (bench, base) = Bench::new(&before);
            let after = changed(before.clone(), more);
            let early = bench.written_in_parts(&base, &none, &after);
            let cut: u64 = early.files[NAME].cuts.keys().map(|(from, to)| to - from).sum();
            assert!(cut >= after.len() as u64 - (32 << 20), "{cut} of {}", after.len());
            let (with, bytes) = bench.scanned(&base, early);
            let (without, all) = bench.scanned(&base, Early::default());
            assert!(with == without && with != base.id);
            assert!(bytes == all, "and so are the bytes");
            let early = bench.written_anew(&base, &none, &after);
            let (with, bytes) = bench.scanned(&base, early);
            let (without, all) = bench.scanned(&base, Early::default());
            assert!(with == without && bytes == all, "wherever it stood");
            assert!(
                bytes
                    .iter()
                    .all(|(at, bytes)| after[*at as usize..].starts_with(bytes))
            );
        }
    }

    #[test]
    fn of_a_chunk_that_changed_the_blocks_that_differ_are_kept() {
        let before = noise(70 << 20, 1);
        let (bench, base) = Bench::new(&before);
        let hashes = Hashes {
            block: 512,
            files: [(NAME.to_vec(), before.chunks(512).map(xxh3_64).collect())].into(),
        };
        let after = changed(before.clone(), 40 << 20);
        let early = bench.written_in_parts(&base, &hashes, &after);
        let (mut patched, mut literal) = (0, 0);
        for ((from, _), chunks) in &early.files[NAME].cuts {
            let mut at = *from as usize;
            for (extent, parts) in chunks {
                let length = extent.length() as usize;
                let mut made = Vec::new();
                for part in parts.iter().flatten() {
                    match part {
                        Part::Literal(bytes) => {
                            made.extend_from_slice(bytes);
                            literal += bytes.len();
                        }
                        Part::Base { offset, length } => {
                            made.extend_from_slice(&before[at + *offset as usize..][..*length as usize]);
                        }
                    }
                }
                if parts.is_some() {
                    patched += 1;
                    assert!(made == after[at..at + length], "at {at}");
                }
                at += length;
            }
        }
        // Every change lies in a block or two.
        assert!(patched >= 8 && literal <= 14 * 1024, "{patched}, {literal}");
        let (with, _) = bench.scanned(&base, early);
        assert_eq!(with, bench.scanned(&base, Early::default()).0);
    }

    #[test]
    fn a_file_that_took_its_place_is_read_itself() {
        let before = noise(20 << 20, 1);
        let (bench, base) = Bench::new(&before);
        let early = bench.written_in_parts(&base, &Hashes::default(), &changed(before.clone(), 0));
        assert!(!early.files[NAME].cuts.is_empty());
        let other = bench.root.path().join("other");
        std::fs::write(&other, &before).unwrap();
        std::fs::rename(&other, bench.file()).unwrap();
        let (id, _) = bench.scanned(&base, early);
        assert_ne!(id, base.id, "another time");
        assert_eq!(id, bench.scanned(&base, Early::default()).0);
    }

    #[test]
    fn nothing_is_written_and_nothing_is_found() {
        let (bench, base) = Bench::new(&noise(5 << 20, 1));
        std::fs::remove_dir_all(bench.root.path()).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let following =
                scope.spawn(|| follow(bench.root.path(), &base, &Hashes::default(), &over).unwrap());
            std::thread::sleep(LOOK * 4);
            over.store(true, Ordering::Relaxed);
            assert!(following.join().unwrap().files.is_empty());
        });
    }
}
