use super::walk::{Ahead, Seens};
use super::*;
use crate::entry::{ChunkId, EntryKind, compare_paths};
use crate::tree::TreeReader;
use proptest::prelude::*;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};

/// Bytes that look random.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}

/// A scan with its files.
struct Taken {
    outcome: ScanOutcome,
    base: Base,
    entries: Vec<Entry>,
}

#[test]
fn a_walk_in_a_thread_of_its_own_is_the_same_and_ends_when_nobody_listens() {
    let bench = Bench::new();
    for directory in 0..5 {
        fs::create_dir(bench.path(&directory.to_string())).unwrap();
        for file in 0..700 {
            fs::write(bench.path(&format!("{directory}/{file}")), b"").unwrap();
        }
    }
    let options = ScanOptions::default();
    let root = open_root(bench.root.path()).unwrap();
    let paths = |seens: &mut dyn Seens, most: usize| {
        let mut paths = Vec::new();
        while paths.len() < most
            && let Some(seen) = seens.next().unwrap()
        {
            paths.push(seen.path);
        }
        paths
    };
    let alone = paths(&mut Walk::new(&root, &options).unwrap(), usize::MAX);
    assert_eq!(alone.len(), 3506);
    std::thread::scope(|scope| {
        let mut ahead = Ahead::start(scope, Walk::new(&root, &options).unwrap()).unwrap();
        assert!(paths(&mut ahead, usize::MAX) == alone);
        assert!(ahead.next().unwrap().is_none(), "and again");
        let mut ahead = Ahead::start(scope, Walk::new(&root, &options).unwrap()).unwrap();
        assert!(paths(&mut ahead, 3) == alone[..3]);
    });
}

struct Bench {
    root: tempfile::TempDir,
    work: tempfile::TempDir,
    count: std::cell::Cell<u32>,
}

impl Bench {
    fn new() -> Self {
        // Not in memory: those file systems are read anew every time.
        let place = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target");
        let place = std::env::temp_dir()
            .join("content-tests")
            .join(place.len().to_string());
        fs::create_dir_all(&place).unwrap();
        Self {
            root: tempfile::tempdir_in(&place).unwrap(),
            work: tempfile::tempdir_in(&place).unwrap(),
            count: std::cell::Cell::new(0),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn scan(&self, options: &ScanOptions, base: Option<&Base>) -> Result<Taken, ScanError> {
        self.count.set(self.count.get() + 1);
        let tree = self.work.path().join(format!("{}.tree", self.count.get()));
        let facts = self.work.path().join(format!("{}.facts", self.count.get()));
        let outcome = scan(self.root.path(), options, base, (&tree, &facts), self.work.path())?;
        crate::tree::check(File::open(&tree).unwrap(), Some(outcome.tree.id)).unwrap();
        Ok(Taken {
            entries: read_tree(&tree),
            base: Base {
                id: outcome.tree.id,
                tree,
                facts: Some(facts),
            },
            outcome,
        })
    }

    fn fresh(&self) -> Taken {
        self.scan(&ScanOptions::default(), None).unwrap()
    }

    /// Makes everything old enough to be trusted: as if the scan had begun later than it did.
    fn age(&self, base: &Base) -> Base {
        let mut reader = crate::tree::FactsReader::new(File::open(base.facts.as_ref().unwrap()).unwrap());
        let count = read_tree(&base.tree).len();
        let path = self.work.path().join(format!("{}.aged", base.id));
        let mut writer = crate::tree::FactsWriter::new(File::create(&path).unwrap());
        for _ in 0..count {
            let mut facts = reader.next().unwrap();
            if let Some(read) = &mut facts.read {
                read.seconds += 100;
            }
            writer.push(&facts).unwrap();
        }
        writer.finish(base.id).unwrap();
        Base {
            facts: Some(path),
            ..base.clone()
        }
    }
}

pub(crate) fn read_tree(path: &Path) -> Vec<Entry> {
    let mut reader = TreeReader::new(File::open(path).unwrap());
    let mut entries = Vec::new();
    while let Some(entry) = reader.next().unwrap() {
        entries.push(entry);
    }
    entries
}

/// Another way to see a directory: with the standard library, no order, no threads, whole files.
fn naive(root: &Path, at: &Path, out: &mut Vec<String>) {
    let meta = fs::symlink_metadata(at).unwrap();
    let path = at.strip_prefix(root).unwrap();
    let kind = match meta.mode() & libc_kind::MASK {
        libc_kind::DIRECTORY => "directory".to_owned(),
        libc_kind::FILE => {
            use sha2::Digest as _;
            let mut content = Vec::new();
            File::open(at).unwrap().read_to_end(&mut content).unwrap();
            format!(
                "file {} {:x?}",
                content.len(),
                sha2::Sha256::digest(&content).as_slice()
            )
        }
        libc_kind::LINK => format!("link {:?}", fs::read_link(at).unwrap()),
        other => format!("special {other:o} {}", meta.rdev()),
    };
    let mode = if kind.starts_with("link") {
        0
    } else {
        meta.mode() & 0o7777
    };
    out.push(format!(
        "{path:?} {kind} {mode:o} {}:{} {}.{}",
        meta.uid(),
        meta.gid(),
        meta.mtime(),
        meta.mtime_nsec()
    ));
    if meta.is_dir() {
        for entry in fs::read_dir(at).unwrap() {
            naive(root, &entry.unwrap().path(), out);
        }
    }
}

mod libc_kind {
    pub(super) const MASK: u32 = 0o170_000;
    pub(super) const DIRECTORY: u32 = 0o040_000;
    pub(super) const FILE: u32 = 0o100_000;
    pub(super) const LINK: u32 = 0o120_000;
}

/// The same words from a scan's entries and the content that their chunks stand for.
fn told(root: &Path, entries: &[Entry]) -> Vec<String> {
    use std::os::unix::ffi::OsStrExt as _;
    let by_path: std::collections::HashMap<&[u8], &Entry> = entries
        .iter()
        .map(|entry| (entry.path.as_slice(), entry))
        .collect();
    let mut out: Vec<String> = entries
        .iter()
        .map(|entry| {
            let path = Path::new(std::ffi::OsStr::from_bytes(&entry.path));
            let real = match &entry.kind {
                EntryKind::Hardlink { target } => by_path[target.as_slice()],
                _ => entry,
            };
            let kind = match &real.kind {
                EntryKind::Directory => "directory".to_owned(),
                EntryKind::File { size, extents } => {
                    use sha2::Digest as _;
                    let file = File::open(root.join(path)).unwrap();
                    let mut content = Vec::new();
                    let mut at = 0;
                    for extent in extents {
                        match extent {
                            Extent::Hole { length } => content.resize(content.len() + *length as usize, 0),
                            Extent::Chunk { length, id } => {
                                let mut bytes = vec![0; *length as usize];
                                file.read_exact_at(&mut bytes, at).unwrap();
                                assert_eq!(
                                    *id,
                                    ChunkId(*blake3::hash(&bytes).as_bytes()),
                                    "{path:?} at {at}"
                                );
                                content.extend_from_slice(&bytes);
                            }
                        }
                        at += extent.length();
                    }
                    assert_eq!(at, *size);
                    format!("file {size} {:x?}", sha2::Sha256::digest(&content).as_slice())
                }
                EntryKind::Symlink { target } => {
                    format!("link {:?}", Path::new(std::ffi::OsStr::from_bytes(target)))
                }
                EntryKind::Fifo => "special 10000 0".to_owned(),
                EntryKind::Socket => "special 140000 0".to_owned(),
                EntryKind::CharDevice { major, minor } => {
                    format!("special 20000 {}", rustix::fs::makedev(*major, *minor))
                }
                EntryKind::BlockDevice { major, minor } => {
                    format!("special 60000 {}", rustix::fs::makedev(*major, *minor))
                }
                EntryKind::Hardlink { .. } => panic!("a link to a link"),
            };
            format!(
                "{path:?} {kind} {:o} {}:{} {}.{}",
                entry.mode, entry.uid, entry.gid, entry.mtime.seconds, entry.mtime.nanos
            )
        })
        .collect();
    out.sort();
    out
}

fn assert_told(bench: &Bench, entries: &[Entry]) {
    let mut wanted = Vec::new();
    naive(bench.root.path(), bench.root.path(), &mut wanted);
    wanted.sort();
    assert_eq!(told(bench.root.path(), entries), wanted);
    assert!(
        entries
            .windows(2)
            .all(|pair| compare_paths(&pair[0].path, &pair[1].path).is_lt())
    );
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// One of everything that a file system has.
fn everything(bench: &Bench) {
    use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};
    let p = |name: &str| bench.path(name);
    fs::create_dir_all(p("a/b/empty")).unwrap();
    fs::write(p("a.b"), b"sorts after a/").unwrap();
    fs::write(p("a/zero"), b"").unwrap();
    fs::write(p("a/small"), noise(5000, 1)).unwrap();
    fs::write(p("a/middle"), noise(700_000, 2)).unwrap();
    fs::write(p("a/large"), noise(30_000_000, 3)).unwrap();
    fs::set_permissions(p("a/small"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::set_permissions(p("a/b"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::hard_link(p("a/small"), p("a/b/further")).unwrap();
    fs::hard_link(p("a/large"), p("z-further")).unwrap();
    symlink("../nowhere", p("a/link")).unwrap();
    fs::hard_link(p("a/link"), p("a/link2")).unwrap();
    use std::os::unix::ffi::OsStrExt as _;
    fs::write(
        bench
            .root
            .path()
            .join(std::ffi::OsStr::from_bytes(b"n\xff\n \\name")),
        b"x",
    )
    .unwrap();
    let sparse = File::create(p("sparse")).unwrap();
    sparse.write_all_at(b"data", 1 << 20).unwrap();
    sparse.write_all_at(&noise(200_000, 4), 40 << 20).unwrap();
    sparse.set_len(60 << 20).unwrap();
    File::create(p("all-hole")).unwrap().set_len(5 << 20).unwrap();
    File::create(p("little-hole")).unwrap().set_len(10_000).unwrap();
    mknodat(CWD, p("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    drop(std::os::unix::net::UnixListener::bind(p("socket")).unwrap());
    setxattr(p("a/small"), "user.note", b"hello", XattrFlags::empty()).unwrap();
    setxattr(p("a"), "user.empty", b"", XattrFlags::empty()).unwrap();
    if is_root() {
        let device = |name, kind, major, minor| {
            mknodat(
                CWD,
                p(name),
                kind,
                Mode::from_raw_mode(0o640),
                makedev(major, minor),
            )
            .unwrap();
        };
        device("null", FileType::CharacterDevice, 1, 3);
        device("whiteout", FileType::CharacterDevice, 0, 0);
        device("loop", FileType::BlockDevice, 7, 1000);
        std::os::unix::fs::lchown(p("a/link"), Some(1234), Some(4321)).unwrap();
        setxattr(
            p("a/middle"),
            "trusted.secret",
            [0_u8, 1, 2].as_slice(),
            XattrFlags::empty(),
        )
        .unwrap();
        setxattr(
            p("a/middle"),
            "security.capability",
            [1_u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].as_slice(),
            XattrFlags::empty(),
        )
        .unwrap();
        rustix::fs::lsetxattr(p("a/link"), "trusted.on-link", b"y", XattrFlags::empty()).unwrap();
    }
}

fn find<'a>(entries: &'a [Entry], path: &str) -> &'a Entry {
    entries
        .iter()
        .find(|entry| entry.path == path.as_bytes())
        .unwrap_or_else(|| panic!("{path} is there"))
}

#[test]
fn a_scan_tells_everything() {
    let bench = Bench::new();
    everything(&bench);
    let taken = bench.fresh();
    assert_told(&bench, &taken.entries);
    let entries = &taken.entries;
    assert_eq!(
        find(entries, "a/small").kind,
        EntryKind::Hardlink {
            target: b"a/b/further".to_vec()
        },
        "a/b is before a/small"
    );
    assert_eq!(
        find(entries, "a/small").xattrs,
        [(b"user.note".to_vec(), b"hello".to_vec())]
    );
    assert_eq!(find(entries, "a").xattrs, [(b"user.empty".to_vec(), Vec::new())]);
    assert_eq!(
        find(entries, "all-hole").kind,
        EntryKind::File {
            size: 5 << 20,
            extents: vec![Extent::Hole { length: 5 << 20 }]
        }
    );
    let EntryKind::File { extents, .. } = &find(entries, "sparse").kind else {
        panic!("a file")
    };
    assert!(matches!(extents[0], Extent::Hole { length } if length >= 1 << 19));
    assert!(matches!(extents.last(), Some(Extent::Hole { .. })));
    if is_root() {
        assert_eq!(
            find(entries, "a/middle")
                .xattrs
                .iter()
                .map(|(name, _)| name.as_slice())
                .collect::<Vec<_>>(),
            [&b"security.capability"[..], b"trusted.secret"]
        );
        assert_eq!(
            find(entries, "a/link").xattrs,
            [(b"trusted.on-link".to_vec(), b"y".to_vec())]
        );
    }
    // Once more, with other numbers of threads.
    for threads in [1, 7] {
        let options = ScanOptions {
            threads,
            ..ScanOptions::default()
        };
        assert_eq!(
            bench.scan(&options, None).unwrap().outcome.tree,
            taken.outcome.tree
        );
    }
}

#[test]
fn what_did_not_change_is_not_read() {
    let bench = Bench::new();
    everything(&bench);
    let first = bench.fresh();
    // Everything was written just now and is not to be trusted yet.
    let again = bench.scan(&ScanOptions::default(), Some(&first.base)).unwrap();
    assert_eq!(again.outcome.tree, first.outcome.tree);
    assert_eq!(again.outcome.read, first.outcome.tree.entries);
    let aged = bench.age(&first.base);
    let again = bench.scan(&ScanOptions::default(), Some(&aged)).unwrap();
    assert_eq!(again.outcome.tree, first.outcome.tree);
    assert_eq!(again.outcome.read, 0);
    fs::set_permissions(bench.path("a/middle"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(bench.path("a/new"), b"new").unwrap();
    let changed = bench.scan(&ScanOptions::default(), Some(&aged)).unwrap();
    assert_eq!(changed.outcome.read, 3, "a, a/middle and a/new");
    assert_eq!(changed.outcome.tree, bench.fresh().outcome.tree);
}

/// Changes at random.
fn mutate(bench: &Bench, entries: &[Entry], seed: u64) {
    let mut random = seed | 1;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 11) as usize % below.max(1)
    };
    for round in 0..12 {
        let entry = &entries[next(entries.len())];
        use std::os::unix::ffi::OsStrExt as _;
        let path = bench.root.path().join(std::ffi::OsStr::from_bytes(&entry.path));
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        let other = bench.path(&format!("moved-{round}-{seed}"));
        match next(9) {
            0 if meta.is_file() && meta.len() > 0 => {
                let at = next(meta.len() as usize) as u64;
                File::options()
                    .write(true)
                    .open(&path)
                    .unwrap()
                    .write_all_at(b"!", at)
                    .unwrap();
            }
            1 if meta.is_file() => {
                File::options()
                    .append(true)
                    .open(&path)
                    .unwrap()
                    .write_all(&noise(next(300_000), seed))
                    .unwrap();
            }
            2 if meta.is_file() => {
                File::options()
                    .write(true)
                    .open(&path)
                    .unwrap()
                    .set_len(next(meta.len() as usize + 1) as u64)
                    .unwrap();
            }
            3 if meta.is_file() => {
                let mut content = fs::read(&path).unwrap();
                let at = next(content.len());
                content.splice(at..at, noise(1 + next(5000), seed));
                fs::write(&path, content).unwrap();
            }
            4 if !entry.path.is_empty() => {
                fs::rename(&path, &other).unwrap();
            }
            5 if !entry.path.is_empty() => {
                if meta.is_dir() {
                    fs::remove_dir_all(&path).unwrap();
                    fs::write(&path, b"a file now").unwrap();
                } else {
                    fs::remove_file(&path).unwrap();
                    fs::create_dir(&path).unwrap();
                    fs::write(path.join("in it"), noise(next(100_000), seed)).unwrap();
                }
            }
            6 if meta.is_file() => fs::hard_link(&path, &other).unwrap(),
            7 if !meta.is_symlink() => {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o700 | next(64) as u32)).unwrap();
            }
            8 if meta.is_file() && meta.len() > 100_000 => {
                // A hole where there was none.
                let file = File::options().write(true).open(&path).unwrap();
                let at = next(meta.len() as usize - 70_000) as u64 / 4096 * 4096;
                let _ = rustix::fs::fallocate(
                    &file,
                    rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
                    at,
                    65_536,
                );
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn a_rescan_is_what_a_new_scan_is(seed: u64) {
        let bench = Bench::new();
        everything(&bench);
        let mut base = bench.age(&bench.fresh().base);
        let mut entries = read_tree(&base.tree);
        for round in 0..3 {
            mutate(&bench, &entries, seed.wrapping_add(round));
            let again = bench.scan(&ScanOptions { frozen: true, ..ScanOptions::default() }, Some(&base)).unwrap();
            let fresh = bench.fresh();
            prop_assert_eq!(&again.entries, &fresh.entries);
            prop_assert_eq!(again.outcome.tree, fresh.outcome.tree);
            assert_told(&bench, &again.entries);
            base = bench.age(&again.base);
            entries = again.entries;
        }
    }
}
