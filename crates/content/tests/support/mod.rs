//! A source that is simple enough to be right: it reads whole trees, compares them entry by entry, and sends what differs whole.

#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

pub mod make;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tranship_content::entry::{ChunkId, Entry, EntryKind, Extent, Timestamp, TreeId, compare_paths};
use tranship_content::frame::{FrameReader, FrameWriter};
use tranship_content::message::{Base, Holds, Message, Operation, Totals, Wants, Write as How};
use tranship_content::sink::{self, SinkError, SinkOptions};
use tranship_content::tree::{TreeReader, TreeSummary, TreeWriter};
use tranship_core::storage::RoundReport;

pub const PIECE: usize = 64 << 10;

/// A source and a sink, and where the sink keeps its record.
pub struct Sides {
    pub all: tempfile::TempDir,
    pub from: PathBuf,
    pub to: PathBuf,
    pub work: PathBuf,
}

/// Both empty, and not in memory.
pub fn sides() -> Sides {
    let all = tempfile::tempdir_in("/var/tmp").unwrap();
    let [from, to, work] = ["from", "to/root", "work"].map(|name| all.path().join(name));
    fs::create_dir_all(&from).unwrap();
    fs::create_dir_all(&to).unwrap();
    Sides { all, from, to, work }
}

pub fn id(bytes: &[u8]) -> ChunkId {
    ChunkId(*blake3::hash(bytes).as_bytes())
}

/// All entries of a directory in canonical order.
pub fn read_tree(root: &Path) -> Vec<Entry> {
    let mut paths: Vec<Vec<u8>> = vec![Vec::new()];
    let mut rest = vec![Vec::new()];
    while let Some(at) = rest.pop() {
        for found in fs::read_dir(below(root, &at)).unwrap() {
            let found = found.unwrap();
            let mut path = at.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(found.file_name().as_bytes());
            if path == sink::STAGING_NAME.as_bytes() {
                continue;
            }
            if found.file_type().unwrap().is_dir() {
                rest.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort_by(|a, b| compare_paths(a, b));
    let mut heads = BTreeMap::new();
    paths
        .into_iter()
        .map(|path| read_entry(root, path, &mut heads))
        .collect()
}

pub fn below(root: &Path, path: &[u8]) -> PathBuf {
    if path.is_empty() {
        return root.to_path_buf();
    }
    root.join(std::ffi::OsString::from_vec(path.to_vec()))
}

fn read_entry(root: &Path, path: Vec<u8>, heads: &mut BTreeMap<(u64, u64), Vec<u8>>) -> Entry {
    let real = below(root, &path);
    let meta = fs::symlink_metadata(&real).unwrap();
    let kind = meta.file_type();
    let mut xattrs = Vec::new();
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(&real, &mut names[..]).unwrap_or(0);
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(&real, name, &mut value[..]).unwrap();
        value.truncate(length);
        xattrs.push((name.to_vec(), value));
    }
    xattrs.sort();
    let head = heads.get(&(meta.dev(), meta.ino())).cloned();
    if !kind.is_dir() && meta.nlink() > 1 {
        heads.entry((meta.dev(), meta.ino())).or_insert(path.clone());
    }
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let kind = if let Some(target) = head {
        EntryKind::Hardlink { target }
    } else if kind.is_dir() {
        EntryKind::Directory
    } else if kind.is_symlink() {
        EntryKind::Symlink {
            target: fs::read_link(&real).unwrap().into_os_string().into_vec(),
        }
    } else if kind.is_fifo() {
        EntryKind::Fifo
    } else if kind.is_socket() {
        EntryKind::Socket
    } else if kind.is_char_device() {
        EntryKind::CharDevice { major, minor }
    } else if kind.is_block_device() {
        EntryKind::BlockDevice { major, minor }
    } else {
        let file = fs::File::open(&real).unwrap();
        let mut extents = Vec::new();
        let mut buffer = vec![0; PIECE];
        let mut at = 0;
        loop {
            let length = file.read_at(&mut buffer, at).unwrap();
            if length == 0 {
                break;
            }
            extents.push(Extent::Chunk {
                length: length as u32,
                id: id(&buffer[..length]),
            });
            at += length as u64;
        }
        EntryKind::File { size: at, extents }
    };
    Entry {
        mode: if meta.file_type().is_symlink() {
            0
        } else {
            meta.mode() & 0o7777
        },
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: Timestamp {
            seconds: meta.mtime(),
            nanos: meta.mtime_nsec() as u32,
        },
        path,
        kind,
        xattrs,
    }
}

pub fn tree_id(entries: &[Entry]) -> TreeSummary {
    let mut writer = TreeWriter::new(std::io::sink());
    for entry in entries {
        writer.push(entry).unwrap();
    }
    writer.finish().unwrap().0
}

/// The source's end of a conversation.
pub struct Peer {
    pub stream: UnixStream,
    pub frames: FrameReader<UnixStream>,
    pub out: FrameWriter<UnixStream>,
    pub base: Vec<Entry>,
}

impl Peer {
    pub fn say(&mut self, message: &Message) {
        // A sink that gave up may be gone.
        let _ = self.out.message(message);
    }

    pub fn hear(&mut self) -> Message {
        self.frames.message().unwrap()
    }

    /// Greets, and has the sink's tree.
    pub fn open(&mut self, wants: Wants) {
        let Message::Hello { .. } = self.hear() else {
            panic!("no greeting");
        };
        self.say(&Message::Hello {
            oldest: 1,
            newest: 1,
            wants,
        });
        match self.hear() {
            Message::Holds(Holds::Nothing) => self.say(&Message::Base(Base::Nothing)),
            Message::Holds(Holds::Tree(_)) => {
                self.say(&Message::Base(Base::Send));
                let mut bytes = Vec::new();
                loop {
                    match self.hear() {
                        Message::Manifest(piece) => bytes.extend_from_slice(&piece),
                        Message::ManifestEnd { .. } => break,
                        other => panic!("{other:?}"),
                    }
                }
                let mut reader = TreeReader::new(&bytes[..]);
                while let Some(entry) = reader.next().unwrap() {
                    self.base.push(entry);
                }
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn operations(&mut self, operations: &[Operation]) {
        let mut body = Vec::new();
        for operation in operations {
            operation.put(&mut body);
            if body.len() > 1 << 20 {
                self.say(&Message::Delta(Bytes::from(std::mem::take(&mut body))));
            }
        }
        self.say(&Message::Delta(body.into()));
    }

    pub fn end(&mut self, summary: &TreeSummary) -> Message {
        self.say(&Message::Done);
        match self.hear() {
            Message::Again { paths } => assert!(paths.is_empty(), "{paths:?}"),
            other => return other,
        }
        self.say(&Message::End(Totals::of(summary)));
        self.hear()
    }
}

pub fn chunk(root: &Path, entry: &Entry) -> Vec<Operation> {
    let EntryKind::File { extents, .. } = &entry.kind else {
        return Vec::new();
    };
    let file = fs::File::open(below(root, &entry.path)).unwrap();
    let mut at = 0;
    let mut operations = Vec::new();
    for extent in extents {
        if let Extent::Chunk { length, id } = extent {
            let mut bytes = vec![0; *length as usize];
            file.read_exact_at(&mut bytes, at).unwrap();
            operations.push(Operation::Data {
                id: *id,
                bytes: bytes.into(),
            });
        }
        at += extent.length();
    }
    operations
}

/// What makes `base` into `new`, whose files are in `root`.
pub fn delta(base: &[Entry], new: &[Entry], root: &Path) -> Vec<Operation> {
    let mut operations = Vec::new();
    let mut removed: Option<Vec<u8>> = None;
    let inside = |path: &[u8], removed: &Option<Vec<u8>>| {
        removed.as_ref().is_some_and(|removed| {
            path.len() > removed.len() && path.starts_with(removed) && path[removed.len()] == b'/'
        })
    };
    let mut base = base.iter().peekable();
    let mut remove = |entry: &Entry, operations: &mut Vec<Operation>| {
        if !inside(&entry.path, &removed) {
            removed = Some(entry.path.clone());
            operations.push(Operation::Remove {
                path: entry.path.clone(),
            });
            return true;
        }
        false
    };
    for entry in new {
        while let Some(old) = base.next_if(|old| compare_paths(&old.path, &entry.path).is_lt()) {
            remove(old, &mut operations);
        }
        let mut old = base.next_if(|old| old.path == entry.path);
        if let Some(was) = old {
            if was == entry {
                continue;
            }
            let same_kind = std::mem::discriminant(&was.kind) == std::mem::discriminant(&entry.kind);
            let file = matches!(entry.kind, EntryKind::File { .. });
            if same_kind && (was.kind == entry.kind || entry.kind == EntryKind::Directory) {
                operations.push(Operation::Attributes(entry.clone()));
                continue;
            }
            if !(same_kind && file) {
                remove(was, &mut operations);
                old = None;
            }
        }
        let _ = old;
        match &entry.kind {
            EntryKind::File { extents, .. } if extents.len() == 1 => {
                let Some(Operation::Data { id, bytes }) = chunk(root, entry).pop() else {
                    panic!("no chunk");
                };
                operations.push(Operation::Whole {
                    entry: entry.clone(),
                    id,
                    bytes,
                });
            }
            EntryKind::File { size, .. } if *size > 0 => {
                operations.push(Operation::File {
                    entry: entry.clone(),
                    write: How::Replace,
                });
                operations.extend(chunk(root, entry));
                operations.push(Operation::FileEnd);
            }
            _ => operations.push(Operation::Make(entry.clone())),
        }
    }
    for old in base {
        remove(old, &mut operations);
    }
    operations
}

/// Both ends of a connection; whoever is on the other end is a thread.
pub fn with_sink<T: Send>(
    root: &Path,
    work: &Path,
    source: impl FnOnce(&mut Peer) -> T + Send,
) -> (Result<RoundReport, SinkError>, T) {
    let (here, there) = UnixStream::pair().unwrap();
    // Whoever waits for what never comes fails.
    for end in [&here, &there] {
        end.set_read_timeout(Some(std::time::Duration::from_secs(20)))
            .unwrap();
    }
    let options = SinkOptions {
        root: root.to_path_buf(),
        work: work.to_path_buf(),
        overlay: false,
    };
    std::thread::scope(|scope| {
        let peer = scope.spawn(move || {
            let mut peer = Peer {
                stream: here.try_clone().unwrap(),
                frames: FrameReader::new(here.try_clone().unwrap()),
                out: FrameWriter::new(here.try_clone().unwrap()),
                base: Vec::new(),
            };
            let result = source(&mut peer);
            drop(peer);
            let _ = here.shutdown(std::net::Shutdown::Both);
            result
        });
        let input = there.try_clone().unwrap();
        let result = sink::round(input, there.try_clone().unwrap(), &options, &|_| {});
        let _ = there.shutdown(std::net::Shutdown::Both);
        (result, peer.join().unwrap())
    })
}

/// Makes `to` equal to `from`.
pub fn sync(from: &Path, to: &Path, work: &Path) -> RoundReport {
    let (report, last) = with_sink(to, work, |peer| {
        peer.open(Wants {
            frozen: true,
            durable: true,
        });
        let new = read_tree(from);
        let operations = delta(&peer.base, &new, from);
        if !operations.is_empty() {
            peer.operations(&operations);
        }
        peer.end(&tree_id(&new))
    });
    let report = report.unwrap_or_else(|error| panic!("{error}: {:?}", error.fault()));
    assert!(matches!(last, Message::Applied(_)), "{last:?}");
    report
}

/// What rsync finds different between two trees; it knows nothing of ours.
pub fn differences(from: &Path, to: &Path) -> String {
    let slash = |path: &Path| format!("{}/", path.display());
    let output = std::process::Command::new("rsync")
        .args(["-aHAXSn", "--delete", "--checksum", "-i", "--"])
        .args([slash(from), slash(to)])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn no_tree() -> TreeId {
    TreeId([7; 32])
}

pub fn raw(stream: &mut UnixStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
}

pub fn drain(stream: &mut UnixStream) {
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
}
