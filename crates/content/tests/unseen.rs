//! Changes that times do not show, or show late: a rescan must not miss them. And what the walk must not enter.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "a test says what it skips")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use tranship_content::entry::{Entry, EntryKind};
use tranship_content::scan::{Base, Excludes, ScanError, ScanOptions, ScanOutcome, scan};
use tranship_content::tree::TreeReader;
use tranship_core::fault::Explain as _;

struct Element {
    place: tempfile::TempDir,
    count: u32,
}

impl Element {
    fn new() -> Self {
        Self::at(Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    fn at(directory: &Path) -> Self {
        let place = tempfile::tempdir_in(directory).unwrap();
        fs::create_dir(place.path().join("root")).unwrap();
        Self { place, count: 0 }
    }

    fn root(&self) -> PathBuf {
        self.place.path().join("root")
    }

    fn scan(&mut self, base: Option<&Base>) -> (Base, ScanOutcome) {
        self.scan_with(&ScanOptions::default(), base).unwrap()
    }

    fn scan_with(
        &mut self,
        options: &ScanOptions,
        base: Option<&Base>,
    ) -> Result<(Base, ScanOutcome), ScanError> {
        self.count += 1;
        let tree = self.place.path().join(format!("{}.tree", self.count));
        let facts = self.place.path().join(format!("{}.facts", self.count));
        let outcome = scan(&self.root(), options, base, (&tree, &facts), self.place.path())?;
        let base = Base {
            id: outcome.tree.id,
            tree,
            facts: Some(facts),
        };
        Ok((base, outcome))
    }

    /// A rescan has to come to the same tree as a scan without a base.
    fn assert_seen(&mut self, base: &Base) {
        let (again, _) = self.scan(Some(base));
        let (fresh, _) = self.scan(None);
        assert_eq!(again.id, fresh.id, "the rescan missed something");
        assert_ne!(again.id, base.id, "nothing was changed at all");
    }
}

fn entries(base: &Base) -> Vec<Entry> {
    let mut reader = TreeReader::new(File::open(&base.tree).unwrap());
    let mut entries = Vec::new();
    while let Some(entry) = reader.next().unwrap() {
        entries.push(entry);
    }
    entries
}

fn paths(base: &Base) -> Vec<String> {
    entries(base)
        .into_iter()
        .map(|entry| String::from_utf8(entry.path).unwrap())
        .collect()
}

#[test]
fn a_write_within_a_tick_of_the_scan_is_seen() {
    let mut element = Element::new();
    let path = element.root().join("file");
    let file = File::create(&path).unwrap();
    for round in 0..50_u32 {
        file.write_all_at(&round.to_le_bytes(), 0).unwrap();
        let (base, _) = element.scan(None);
        file.write_all_at(&(round + 1000).to_le_bytes(), 0).unwrap();
        element.assert_seen(&base);
    }
}

#[test]
fn a_write_whose_time_was_put_back_is_seen() {
    let mut element = Element::new();
    let path = element.root().join("file");
    fs::write(&path, b"one").unwrap();
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(2200));
    let (base, _) = element.scan(None);
    assert_eq!(element.scan(Some(&base)).1.read, 0, "it is trusted by now");
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"two", 0).unwrap();
    file.set_modified(time).unwrap();
    element.assert_seen(&base);
}

/// A process that has a file mapped and writes to it when told to.
struct Mapper {
    child: Child,
    orders: ChildStdin,
    answers: std::io::BufReader<std::process::ChildStdout>,
}

impl Mapper {
    fn new(path: &Path) -> Option<Self> {
        let program = "import mmap, sys\n\
            f = open(sys.argv[1], 'r+b')\n\
            m = mmap.mmap(f.fileno(), 0)\n\
            f.close()\n\
            print('ready', flush=True)\n\
            for line in sys.stdin:\n\
            \x20   at, byte = map(int, line.split())\n\
            \x20   m[at] = byte\n\
            \x20   print('done', flush=True)\n";
        let mut child = Command::new("python3")
            .args(["-c", program])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let orders = child.stdin.take()?;
        let answers = std::io::BufReader::new(child.stdout.take()?);
        let mut mapper = Self {
            child,
            orders,
            answers,
        };
        mapper.answer();
        Some(mapper)
    }

    fn answer(&mut self) {
        use std::io::BufRead as _;
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert!(line == "ready\n" || line == "done\n", "{line:?}");
    }

    fn write(&mut self, at: usize, byte: u8) {
        use std::io::Write as _;
        writeln!(self.orders, "{at} {byte}").unwrap();
        self.answer();
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn mapped(directory: &Path) {
    let mut element = Element::at(directory);
    let path = element.root().join("mapped");
    fs::write(&path, vec![7; 3 << 20]).unwrap();
    fs::write(element.root().join("small"), vec![7; 5000]).unwrap();
    for name in ["mapped", "small"] {
        let Some(mut mapper) = Mapper::new(&element.root().join(name)) else {
            println!("SKIPPED: python3, which maps a file, is not there");
            return;
        };
        // The page becomes writable, and its file is stamped, now; not again while it stays dirty.
        mapper.write(4097, 1);
        std::thread::sleep(std::time::Duration::from_millis(2300));
        let (base, _) = element.scan(None);
        mapper.write(4098, 2);
        element.assert_seen(&base);
        std::thread::sleep(std::time::Duration::from_millis(2300));
        let (base, _) = element.scan(None);
        mapper.write(4099, 3);
        element.assert_seen(&base);
    }
}

#[test]
fn writes_to_mapped_memory_are_seen() {
    mapped(Path::new(env!("CARGO_TARGET_TMPDIR")));
}

#[test]
fn writes_to_mapped_memory_of_a_tmpfs_are_seen() {
    let shared = Path::new("/dev/shm");
    if !shared.is_dir() {
        println!("SKIPPED: there is no /dev/shm");
        return;
    }
    mapped(shared);
}

#[test]
fn a_swapped_pair_and_a_renamed_directory_are_seen() {
    let mut element = Element::new();
    let root = element.root();
    fs::create_dir(root.join("d")).unwrap();
    for name in ["a", "b", "d/c"] {
        fs::write(root.join(name), name.repeat(3)).unwrap();
    }
    fs::hard_link(root.join("d/c"), root.join("e")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(2200));
    let (base, _) = element.scan(None);
    let flags = rustix::fs::RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(
        rustix::fs::CWD,
        root.join("a"),
        rustix::fs::CWD,
        root.join("b"),
        flags,
    )
    .unwrap();
    element.assert_seen(&base);
    // The file's first name changes although nothing about the file itself does.
    fs::rename(root.join("d"), root.join("z")).unwrap();
    element.assert_seen(&base);
    let (base, _) = element.scan(Some(&base));
    assert_eq!(paths(&base), ["", "a", "b", "e", "z", "z/c"]);
}

#[test]
fn a_change_under_a_frozen_scan_is_an_error() {
    let mut element = Element::new();
    let path = element.root().join("busy");
    fs::write(&path, vec![0; 40 << 20]).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let frozen = ScanOptions {
        frozen: true,
        ..ScanOptions::default()
    };
    let (frozen_code, unsettled) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::options().write(true).open(&path).unwrap();
            let mut at = 0_u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                at += 1;
                file.write_all_at(&at.to_le_bytes(), at % (40 << 20)).unwrap();
            }
        });
        let frozen = element.scan_with(&frozen, None).map_err(|error| error.code());
        let open = element.scan_with(&ScanOptions::default(), None).unwrap();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        (frozen.err(), open.1.unsettled)
    });
    assert_eq!(frozen_code, Some("content.changed-while-frozen"));
    assert_eq!(unsettled, 1);
}

#[test]
fn links_out_of_the_root_are_not_followed() {
    let mut element = Element::new();
    std::os::unix::fs::symlink("/etc", element.root().join("link")).unwrap();
    std::os::unix::fs::symlink("/", element.root().join("z")).unwrap();
    let (base, _) = element.scan(None);
    assert_eq!(paths(&base), ["", "link", "z"]);
}

#[test]
fn mounts_are_not_entered() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
    let mut element = Element::new();
    let root = element.root();
    for name in ["tmpfs", "bind", "own"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    fs::write(root.join("own/file"), b"own").unwrap();
    fs::write(root.join("over"), b"hidden").unwrap();
    if mount("none", root.join("tmpfs"), "tmpfs", MountFlags::empty(), c"").is_err() {
        println!("SKIPPED: may not mount");
        return;
    }
    fs::write(root.join("tmpfs/other"), b"x").unwrap();
    // The same file system, so its device number does not tell.
    mount_bind(root.join("own"), root.join("bind")).unwrap();
    mount_bind(root.join("own/file"), root.join("over")).unwrap();
    let (base, _) = element.scan(None);
    for name in ["tmpfs", "bind", "over"] {
        unmount(root.join(name), UnmountFlags::DETACH).unwrap();
    }
    assert_eq!(paths(&base), ["", "bind", "own", "own/file", "tmpfs"]);
}

#[test]
fn an_overlays_own_notes_stay_and_its_dependencies_are_refused() {
    use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};
    let mut element = Element::new();
    let root = element.root();
    let device = mknodat(
        CWD,
        root.join("gone"),
        FileType::CharacterDevice,
        Mode::empty(),
        0,
    );
    let set =
        |path: &str, name: &str, value: &[u8]| setxattr(root.join(path), name, value, XattrFlags::empty());
    fs::create_dir(root.join("d")).unwrap();
    if device.is_err() || set("d", "trusted.overlay.opaque", b"y").is_err() {
        println!("SKIPPED: may not make devices and trusted attributes");
        return;
    }
    fs::hard_link(root.join("gone"), root.join("gone-too")).unwrap();
    fs::write(root.join("f"), b"x").unwrap();
    set("f", "trusted.overlay.origin", &[0, 251, 1]).unwrap();
    set("d", "trusted.overlay.impure", b"y").unwrap();
    set("f", "trusted.mine", b"z").unwrap();
    let overlay = ScanOptions {
        overlay: true,
        ..ScanOptions::default()
    };
    let (base, _) = element.scan_with(&overlay, None).unwrap();
    let found = entries(&base);
    let attributes = |path: &str| -> Vec<String> {
        let entry = found.iter().find(|entry| entry.path == path.as_bytes()).unwrap();
        entry
            .xattrs
            .iter()
            .map(|(name, _)| String::from_utf8(name.clone()).unwrap())
            .collect()
    };
    assert_eq!(attributes("d"), ["trusted.overlay.opaque"]);
    assert_eq!(attributes("f"), ["trusted.mine"]);
    for entry in found.iter().filter(|entry| entry.path.starts_with(b"gone")) {
        assert_eq!(
            entry.kind,
            EntryKind::CharDevice { major: 0, minor: 0 },
            "each is a deletion of its own"
        );
    }
    set("d", "trusted.overlay.redirect", b"/elsewhere").unwrap();
    let error = element.scan_with(&overlay, None).map(|_| ()).unwrap_err();
    assert_eq!(error.code(), "content.depends-on-lower");
}

#[test]
fn excluded_paths_are_not_even_looked_at() {
    let mut element = Element::new();
    let root = element.root();
    fs::create_dir_all(root.join("a/cache/x")).unwrap();
    fs::write(root.join("a/keep"), b"").unwrap();
    fs::write(root.join("cache.log"), b"").unwrap();
    let options = ScanOptions {
        excludes: Excludes::new(&["cache/", "*.log"]).unwrap(),
        ..ScanOptions::default()
    };
    let (base, _) = element.scan_with(&options, None).unwrap();
    assert_eq!(paths(&base), ["", "a", "a/keep"]);
}
