//! Whether the pages that the last of several dumps leaves to those before it are still what they were. Those that are not are put into it.
//!
//! The kernel's marks are not enough to go by. Linux moves whole page tables with `mremap` and leaves the marks behind, so that other
//! memory appears at an address as if nothing had been written; where a huge page of zeros takes the place of memory that was given back,
//! that is not marked either; and programs may take marks away themselves. So the marks say what to dump early, and what the
//! processes hold decides, while they stand still.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::message::Damaged;
use super::pagemap::{PAGE, PageMap, Run};
use super::{chain, room};

/// Pages that are read at once.
const AT_ONCE: u64 = 256;
/// Threads that compare, at most.
const THREADS: usize = 8;

/// What keeps pages from being compared, or put right.
#[derive(Debug)]
pub(super) enum CompareError {
    Io(PathBuf, io::Error),
    Damaged(PathBuf, &'static str),
    /// A process of the dump, by its number in the container, is not there.
    Missing(u64),
    /// So many mebibytes cannot be written.
    NoRoom(u64),
    /// A thread ended before its work did.
    Incomplete,
}

impl fmt::Display for CompareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Damaged(path, why) => write!(f, "the dump is damaged: {}: {why}", path.display()),
            Self::Missing(number) => write!(
                f,
                "process {number} of the dump is not among those that stand still"
            ),
            Self::NoRoom(needed) => write!(f, "there is no room for a dump of {needed} MiB"),
            Self::Incomplete => f.write_str("memory could not be compared to its end"),
        }
    }
}

/// One dump of one process.
struct Link {
    map: PageMap,
    pages: File,
}

/// All dumps of one process, the newest first, and the process.
struct Process {
    image: PathBuf,
    memory: (PathBuf, File),
    links: Vec<Option<Link>>,
}

/// Pages that follow each other, and which dump has them where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    start: u64,
    pages: u64,
    place: Option<(usize, u64)>,
}

/// Compares what the newest of so many dumps leaves to those before it with the memory of the processes, which must stand still, and puts
/// what differs into it. `processes` has their numbers, by those that they have in the container. Says how many pages differed.
pub(super) fn put_right(
    images: &Path,
    newest: u32,
    processes: &BTreeMap<u64, u64>,
) -> Result<u64, CompareError> {
    put_right_by(images, newest, processes, |process| {
        PathBuf::from(format!("/proc/{process}/mem"))
    })
}

fn put_right_by(
    images: &Path,
    newest: u32,
    processes: &BTreeMap<u64, u64>,
    memory: impl Fn(u64) -> PathBuf,
) -> Result<u64, CompareError> {
    let directory = chain::link(images, newest);
    let mut count = 0;
    // One after the other: each has a file open for every dump.
    for name in names(&directory)? {
        let number = name.trim_start_matches(BEGINS).trim_end_matches(ENDS);
        let Ok(number) = number.parse() else { continue };
        let process = processes.get(&number).ok_or(CompareError::Missing(number))?;
        let process = Process::open(images, newest, &name, memory(*process))?;
        let pages = process.compare()?;
        if !pages.is_empty() {
            count += pages.len() as u64;
            process.put_in(&directory, &pages)?;
        }
    }
    Ok(count)
}

/// How the names of maps of processes begin and end.
const BEGINS: &str = "pagemap-";
const ENDS: &str = ".img";

/// The maps of processes in a dump; those of shared memory have other names.
fn names(directory: &Path) -> Result<Vec<String>, CompareError> {
    let failed = |error| CompareError::Io(directory.to_owned(), error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(name) = name.to_str() else { continue };
        let number = name.strip_prefix(BEGINS).and_then(|rest| rest.strip_suffix(ENDS));
        if number.is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit())) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

impl Process {
    fn open(images: &Path, newest: u32, name: &str, memory: PathBuf) -> Result<Self, CompareError> {
        let mut links = Vec::new();
        for number in (1..=newest).rev() {
            let path = chain::link(images, number).join(name);
            let image = match std::fs::read(&path) {
                // It came later.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    links.push(None);
                    continue;
                }
                other => other.map_err(|error| CompareError::Io(path.clone(), error))?,
            };
            let map =
                PageMap::parse(&image).map_err(|Damaged(why)| CompareError::Damaged(path.clone(), why))?;
            let pages_path = path.with_file_name(pages_of(&map));
            let failed = |error| CompareError::Io(pages_path.clone(), error);
            let pages = File::open(&pages_path).map_err(failed)?;
            if pages.metadata().map_err(failed)?.len() != map.bytes_here() {
                return Err(CompareError::Damaged(
                    pages_path,
                    "it has not the pages that its map says",
                ));
            }
            links.push(Some(Link { map, pages }));
        }
        let file = File::open(&memory).map_err(|error| CompareError::Io(memory.clone(), error))?;
        Ok(Self {
            image: chain::link(images, newest).join(name),
            memory: (memory, file),
            links,
        })
    }

    /// What the newest dump leaves to those before it.
    fn left_to_others(&self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        if let Some(Some(newest)) = self.links.first() {
            for run in newest.map.runs().iter().filter(|run| run.is_before()) {
                self.find(1, run.start, run.end(), &mut pieces);
            }
        }
        pieces
    }

    /// The pages of those that the newest dump leaves to others that are not what the process holds.
    fn compare(&self) -> Result<BTreeSet<u64>, CompareError> {
        let work: Vec<Piece> = self.left_to_others().into_iter().flat_map(split).collect();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.min(THREADS).min(work.len());
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let one = || {
            let mut buffers = [Vec::new(), Vec::new()];
            let mut found = Vec::new();
            while let Some(piece) = work.get(next.fetch_add(1, Ordering::Relaxed))
                && !failed.load(Ordering::Relaxed)
            {
                match self.differing(*piece, &mut buffers) {
                    Ok(pages) => found.extend(pages),
                    Err(error) => {
                        failed.store(true, Ordering::Relaxed);
                        return Err(error);
                    }
                }
            }
            Ok(found)
        };
        let results: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
            let ended = running.into_iter().map(std::thread::ScopedJoinHandle::join);
            ended.collect()
        });
        let mut different = BTreeSet::new();
        for result in results {
            different.extend(result.map_err(|_| CompareError::Incomplete)??);
        }
        Ok(different)
    }

    /// Finds pages in the dumps from this one backwards.
    fn find(&self, link: usize, start: u64, end: u64, pieces: &mut Vec<Piece>) {
        let Some(Some(found)) = self.links.get(link) else {
            return pieces.push(Piece::nowhere(start, end));
        };
        let mut at = start;
        while at < end {
            let to;
            match found.map.at(at) {
                Some((run, offset)) => {
                    to = run.end().min(end);
                    if run.is_here() {
                        let place = Some((link, offset + (at - run.start)));
                        pieces.push(Piece {
                            place,
                            ..Piece::nowhere(at, to)
                        });
                    } else if run.is_before() {
                        self.find(link + 1, at, to, pieces);
                    } else {
                        pieces.push(Piece::nowhere(at, to));
                    }
                }
                None => {
                    to = found.map.next_from(at).unwrap_or(end).min(end);
                    pieces.push(Piece::nowhere(at, to));
                }
            }
            at = to;
        }
    }

    /// The pages of a piece that are not what the process holds.
    fn differing(&self, piece: Piece, buffers: &mut [Vec<u8>; 2]) -> Result<Vec<u64>, CompareError> {
        let addresses = (0..piece.pages).map(|page| piece.start + page * PAGE);
        let Some((link, offset)) = piece.place else {
            return Ok(addresses.collect());
        };
        let bytes = usize::try_from(piece.pages * PAGE).unwrap_or(usize::MAX);
        let [held, dumped] = buffers;
        held.resize(bytes, 0);
        dumped.resize(bytes, 0);
        self.read_memory(held, piece.start)?;
        let Some(Some(link)) = self.links.get(link) else {
            return Ok(addresses.collect());
        };
        let read = link.pages.read_exact_at(dumped, offset);
        read.map_err(|error| CompareError::Io(self.image.with_file_name(pages_of(&link.map)), error))?;
        if held == dumped {
            return Ok(Vec::new());
        }
        let page = PAGE as usize;
        let pairs = held.chunks(page).zip(dumped.chunks(page));
        let pairs = addresses.zip(pairs).filter(|(_, (held, dumped))| held != dumped);
        Ok(pairs.map(|(address, _)| address).collect())
    }

    fn read_memory(&self, to: &mut [u8], address: u64) -> Result<(), CompareError> {
        let (path, memory) = &self.memory;
        let read = memory.read_exact_at(to, address);
        read.map_err(|error| CompareError::Io(path.clone(), error))
    }

    /// Writes the newest dump of it anew, with these pages.
    fn put_in(&self, directory: &Path, pages: &BTreeSet<u64>) -> Result<(), CompareError> {
        let Some(Some(newest)) = self.links.first() else {
            return Ok(());
        };
        let here: u64 = newest
            .map
            .runs()
            .iter()
            .filter(|r| r.is_here())
            .map(Run::bytes)
            .sum();
        let all = here.saturating_add(pages.len() as u64 * PAGE);
        room::for_dump(all, directory).map_err(|_| CompareError::NoRoom(all >> 20))?;
        let path = directory.join(pages_of(&newest.map));
        let failed = |error| CompareError::Io(path.clone(), error);
        let new = path.with_extension("new");
        let mut to = BufWriter::new(File::create(&new).map_err(failed)?);
        let mut from = &newest.pages;
        from.seek(SeekFrom::Start(0)).map_err(failed)?;
        let mut runs = Vec::new();
        for run in newest.map.runs() {
            if run.is_here() {
                let copied = io::copy(&mut from.take(run.bytes()), &mut to).map_err(failed)?;
                if copied != run.bytes() {
                    return Err(failed(io::ErrorKind::UnexpectedEof.into()));
                }
                runs.push(*run);
                continue;
            }
            let mut at = run.start;
            for different in stretches(pages.range(run.start..run.end()).filter(|_| run.is_before())) {
                if at < different.start {
                    runs.push(run.within(at, (different.start - at) / PAGE));
                }
                let mut page = vec![0; PAGE as usize];
                for number in 0..different.pages {
                    self.read_memory(&mut page, different.start + number * PAGE)?;
                    to.write_all(&page).map_err(failed)?;
                }
                runs.push(different);
                at = different.end();
            }
            if at < run.end() {
                runs.push(run.within(at, (run.end() - at) / PAGE));
            }
        }
        to.flush().map_err(failed)?;
        let image = newest.map.with(&runs);
        let image = image.map_err(|Damaged(why)| CompareError::Damaged(self.image.clone(), why))?;
        std::fs::rename(&new, &path).map_err(failed)?;
        std::fs::write(&self.image, image).map_err(|error| CompareError::Io(self.image.clone(), error))
    }
}

impl Piece {
    /// Pages between two addresses that no dump has.
    fn nowhere(start: u64, end: u64) -> Self {
        Self {
            start,
            pages: (end - start) / PAGE,
            place: None,
        }
    }
}

/// The name of the file with the pages of a map.
fn pages_of(map: &PageMap) -> String {
    format!("pages-{}.img", map.pages_id)
}

/// As many pages as are read at once.
fn split(piece: Piece) -> impl Iterator<Item = Piece> {
    (0..piece.pages.div_ceil(AT_ONCE)).map(move |part| {
        let from = part * AT_ONCE;
        Piece {
            start: piece.start + from * PAGE,
            pages: AT_ONCE.min(piece.pages - from),
            place: piece.place.map(|(link, offset)| (link, offset + from * PAGE)),
        }
    })
}

/// Pages in order as runs of those that follow each other.
fn stretches<'a>(pages: impl Iterator<Item = &'a u64>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some(last) if last.end() == *page => last.pages += 1,
            _ => runs.push(Run::here(*page, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::super::pagemap::tests::image;
    use super::*;

    const BASE: u64 = 0x10_0000;

    fn page(of: u8) -> Vec<u8> {
        vec![of; PAGE as usize]
    }

    /// The address of a page.
    fn at(page: u64) -> u64 {
        BASE + page * PAGE
    }

    struct Bench {
        root: tempfile::TempDir,
    }

    impl Bench {
        /// A process whose pages hold these bytes, one for each.
        fn new(memory: &[u8]) -> Self {
            let root = tempfile::tempdir().unwrap();
            std::fs::create_dir(root.path().join("images")).unwrap();
            let file = File::create(root.path().join("memory")).unwrap();
            for (number, of) in memory.iter().enumerate() {
                file.write_all_at(&page(*of), at(number as u64)).unwrap();
            }
            Self { root }
        }

        fn images(&self) -> PathBuf {
            self.root.path().join("images")
        }

        /// A dump of it: runs with their first page, pages and whether they are in it; and a byte for each page that is.
        fn dump(&self, number: u32, runs: &[(u64, u64, bool)], pages: &[u8]) {
            let link = chain::link(&self.images(), number);
            std::fs::create_dir(&link).unwrap();
            let runs: Vec<_> = runs
                .iter()
                .map(|(first, count, here)| (at(*first), *count, *here))
                .collect();
            std::fs::write(link.join("pagemap-7.img"), image(true, &runs)).unwrap();
            // Shared memory has its own maps, which are left alone.
            std::fs::write(link.join("pagemap-shmem-7.img"), b"none").unwrap();
            let bytes: Vec<u8> = pages.iter().flat_map(|of| page(*of)).collect();
            std::fs::write(link.join("pages-1.img"), bytes).unwrap();
        }

        fn put_right(&self, newest: u32) -> Result<u64, CompareError> {
            let memory = self.root.path().join("memory");
            put_right_by(&self.images(), newest, &[(7, 70)].into(), |process| {
                assert_eq!(process, 70);
                memory.clone()
            })
        }

        /// What a restore would find, page by page; zero for what is in no map.
        fn restored(&self, newest: u32, pages: u64) -> Vec<u8> {
            let memory = self.root.path().join("memory");
            let process = Process::open(&self.images(), newest, "pagemap-7.img", memory).unwrap();
            let top = process.links[0].as_ref().unwrap();
            let of = |number: u64| {
                let mut pieces = Vec::new();
                if top.map.at(at(number)).is_some() {
                    process.find(0, at(number), at(number + 1), &mut pieces);
                }
                let Some((link, offset)) = pieces.first().and_then(|piece| piece.place) else {
                    return 0;
                };
                let mut byte = [0];
                let link = process.links[link].as_ref().unwrap();
                link.pages.read_exact_at(&mut byte, offset).unwrap();
                byte[0]
            };
            (0..pages).map(of).collect()
        }
    }

    #[test]
    fn what_is_as_it_was_stays_where_it_is() {
        let bench = Bench::new(&[1, 2, 3, 4, 5]);
        bench.dump(1, &[(0, 5, true)], &[1, 2, 9, 4, 5]);
        bench.dump(2, &[(0, 2, false), (2, 1, true), (3, 2, false)], &[3]);
        let before = std::fs::read(bench.images().join("2/pagemap-7.img")).unwrap();
        assert_eq!(bench.put_right(2).unwrap(), 0);
        assert_eq!(
            std::fs::read(bench.images().join("2/pagemap-7.img")).unwrap(),
            before
        );
        assert_eq!(bench.restored(2, 5), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn what_was_not_marked_is_put_in_wherever_it_lies() {
        let bench = Bench::new(&[1, 2, 3, 4, 5, 6, 7, 8]);
        // The third has only part of it from the second, which has only part from the first.
        bench.dump(1, &[(0, 6, true)], &[1, 20, 3, 40, 50, 6]);
        bench.dump(
            2,
            &[(0, 4, false), (4, 1, true), (5, 1, false), (6, 1, true)],
            &[5, 70],
        );
        bench.dump(
            3,
            &[(0, 3, false), (3, 1, true), (4, 3, false), (7, 1, true)],
            &[4, 8],
        );
        assert_eq!(bench.restored(3, 8), [1, 20, 3, 4, 5, 6, 70, 8]);
        assert_eq!(bench.put_right(3).unwrap(), 2);
        assert_eq!(bench.restored(3, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bench.put_right(3).unwrap(), 0);
        // Those that follow each other are one run, at the beginning and at the end of what they were in.
        let bench = Bench::new(&[1, 2, 3, 4]);
        bench.dump(1, &[(0, 4, true)], &[0, 0, 3, 0]);
        bench.dump(2, &[(0, 4, false)], &[]);
        assert_eq!(bench.put_right(2).unwrap(), 3);
        assert_eq!(bench.restored(2, 4), [1, 2, 3, 4]);
        let written = std::fs::read(bench.images().join("2/pagemap-7.img")).unwrap();
        assert_eq!(PageMap::parse(&written).unwrap().runs().len(), 3);
    }

    #[test]
    fn what_no_dump_has_is_read_from_the_process() {
        let bench = Bench::new(&[1, 2, 3, 4]);
        bench.dump(1, &[(1, 1, true)], &[2]);
        bench.dump(2, &[(0, 4, false)], &[]);
        assert_eq!(bench.put_right(2).unwrap(), 3);
        assert_eq!(bench.restored(2, 4), [1, 2, 3, 4]);
        // Of a process that is not in the dump before at all.
        let bench = Bench::new(&[1]);
        bench.dump(2, &[(0, 1, false)], &[]);
        std::fs::create_dir(chain::link(&bench.images(), 1)).unwrap();
        assert_eq!(bench.put_right(2).unwrap(), 1);
        assert_eq!(bench.restored(2, 1), [1]);
    }

    #[test]
    fn many_pages_are_compared_to_the_last() {
        let mut memory: Vec<u8> = (0..2000u32).map(|n| (n % 251) as u8 + 1).collect();
        let bench = Bench::new(&memory);
        for page in [0, 255, 256, 1023, 1999] {
            memory[page] = 255;
        }
        bench.dump(1, &[(0, 2000, true)], &memory);
        bench.dump(2, &[(0, 2000, false)], &[]);
        assert_eq!(bench.put_right(2).unwrap(), 5);
        let right: Vec<u8> = (0..2000u32).map(|n| (n % 251) as u8 + 1).collect();
        assert_eq!(bench.restored(2, 2000), right);
    }

    #[test]
    fn what_cannot_be_compared_is_an_error() {
        let bench = Bench::new(&[1, 2]);
        bench.dump(1, &[(0, 2, true)], &[1]);
        bench.dump(2, &[(0, 2, false)], &[]);
        assert!(
            matches!(bench.put_right(2), Err(CompareError::Damaged(..))),
            "pages are missing"
        );
        let bench = Bench::new(&[1]);
        bench.dump(1, &[(0, 2, true)], &[1, 2]);
        bench.dump(2, &[(0, 2, false)], &[]);
        assert!(
            matches!(bench.put_right(2), Err(CompareError::Io(..))),
            "memory is gone"
        );
        std::fs::write(bench.images().join("2/pagemap-7.img"), b"nothing").unwrap();
        assert!(matches!(bench.put_right(2), Err(CompareError::Damaged(..))));
        std::fs::write(bench.images().join("2/pagemap-8.img"), b"nothing").unwrap();
        std::fs::remove_file(bench.images().join("2/pagemap-7.img")).unwrap();
        assert!(matches!(bench.put_right(2), Err(CompareError::Missing(8))));
    }
}
