//! The images of a dump: from their directory into one sealed file, and back into a directory.
//!
//! Inside, they are a tar archive, read as strictly as one that came from elsewhere: plain files with names as CRIU gives them, no
//! more bytes than the checkpoint's description says.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use tranship_archive::entry::{Entry, Kind};
use tranship_archive::reader::{Limits, ReadOptions, Reader};
use tranship_archive::writer::{WriteError, Writer};

use super::error::CheckpointError;
use super::seal::{NodeKey, Opening, Sealing};

/// As many images are taken. A dump has some dozens, and a few for each process.
pub(super) const MOST_IMAGES: u64 = 100_000;
/// Bytes that are read and written at a time.
pub(super) const BUFFER: usize = 1 << 20;

/// Letters, digits and a few marks, as in all names that CRIU and runc give.
pub(super) fn is_a_name(name: &[u8]) -> bool {
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    name.first().is_some_and(u8::is_ascii_alphanumeric) && name.len() <= 128 && name.iter().all(allowed)
}

/// The bytes of all images in a directory.
///
/// # Errors
/// What the file system says; [`CheckpointError::Damaged`] for what CRIU does not write.
pub(super) fn bytes_in(directory: &Path) -> Result<u64, CheckpointError> {
    Ok(list(directory)?.iter().map(|(_, bytes)| bytes).sum())
}

/// Names and sizes, by name.
fn list(directory: &Path) -> Result<Vec<(Vec<u8>, u64)>, CheckpointError> {
    let unread = |error| CheckpointError::io(directory, "read", error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(unread)? {
        let entry = entry.map_err(unread)?;
        let about = entry.metadata().map_err(unread)?;
        let name = entry.file_name().as_bytes().to_vec();
        if !about.is_file() || !is_a_name(&name) {
            return Err(CheckpointError::Damaged {
                path: entry.path(),
                why: "it is no image of CRIU's".into(),
            });
        }
        found.push((name, about.len()));
    }
    found.sort();
    Ok(found)
}

/// Images on their way into a sealed file.
pub(super) struct Packing {
    file: PathBuf,
    archive: Writer<Sealing<BufWriter<File>>>,
}

impl Packing {
    /// Begins a new file.
    ///
    /// # Errors
    /// What the file system says, also of a file that is there.
    pub(super) fn begin(file: &Path, key: &NodeKey, context: &[u8]) -> Result<Self, CheckpointError> {
        let unwritten = |error| CheckpointError::io(file, "written", error);
        let out = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(file)
            .map_err(unwritten)?;
        let out = BufWriter::with_capacity(BUFFER, out);
        Ok(Self {
            archive: Writer::new(Sealing::begin(out, key, context).map_err(unwritten)?),
            file: file.to_owned(),
        })
    }

    /// Begins an image of so many bytes, once those of the one before have come.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn start(&mut self, name: &[u8], bytes: u64) -> Result<(), CheckpointError> {
        let started = self.archive.start(&image_entry(name, bytes));
        started.map_err(|error| self.unwritten(error))
    }

    /// Content of the image.
    ///
    /// # Errors
    /// What the file system says; more than was announced.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        let written = self.archive.write_data(bytes);
        written.map_err(|error| self.unwritten(error))
    }

    /// Makes the file whole and durable.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn finish(self) -> Result<(), CheckpointError> {
        let unwritten = |error| CheckpointError::io(&self.file, "written", error);
        let sealing = self.archive.finish().map_err(|error| unwritten(io_of(error)))?;
        let out = sealing
            .finish()
            .and_then(|buffered| buffered.into_inner().map_err(io::IntoInnerError::into_error));
        out.and_then(|out| out.sync_all()).map_err(unwritten)
    }

    fn unwritten(&self, error: WriteError) -> CheckpointError {
        CheckpointError::io(&self.file, "written", io_of(error))
    }
}

/// An image as an entry of an archive.
pub(super) fn image_entry(name: &[u8], bytes: u64) -> Entry {
    Entry::file(name, 0o600, bytes)
}

/// An archive's error of writing as one of whatever it is written to.
pub(super) fn io_of(error: WriteError) -> io::Error {
    match error {
        WriteError::Io(error) => error,
        other => io::Error::other(other),
    }
}

/// Seals the images of a directory into a new file, and makes it durable.
///
/// # Errors
/// What the file system says; [`CheckpointError::Damaged`] for what CRIU does not write.
pub(super) fn pack(
    directory: &Path,
    file: &Path,
    key: &NodeKey,
    context: &[u8],
) -> Result<(), CheckpointError> {
    let mut packing = Packing::begin(file, key, context)?;
    for (name, bytes) in list(directory)? {
        let path = directory.join(OsStr::from_bytes(&name));
        let unread = |error| CheckpointError::io(&path, "read", error);
        let mut image = File::open(&path).map_err(unread)?;
        packing.start(&name, bytes)?;
        pass_on(&mut image, unread, |part| packing.write(part))?;
    }
    packing.finish()
}

/// Reads to the end, and passes on what is read.
///
/// # Errors
/// What `unread` makes of an error of the reader; that of whoever takes it.
pub(super) fn pass_on(
    from: &mut dyn Read,
    unread: impl Fn(io::Error) -> CheckpointError,
    mut take: impl FnMut(&[u8]) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let mut buffer = vec![0u8; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => take(buffer.get(..read).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unread(error)),
        }
    }
}

/// What is wrong with a sealed file, or with the disk that it is on.
pub(super) fn unread(file: &Path, error: io::Error) -> CheckpointError {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => CheckpointError::Damaged {
            path: file.to_owned(),
            why: error.to_string(),
        },
        _ => CheckpointError::io(file, "read", error),
    }
}

/// How archives of images are read: no more of them than there can be, and nothing on trust.
pub(super) fn read_options() -> ReadOptions {
    ReadOptions {
        limits: Limits {
            entries: MOST_IMAGES + 8,
            name: 256,
            ..Limits::default()
        },
        ..ReadOptions::strict()
    }
}

/// Passes on every image of a sealed file, in their order, and no more than `bytes` of them. An error of the reader that comes with
/// an image is to be told by [`unread`].
///
/// # Errors
/// [`CheckpointError::Damaged`]; what the file system says; that of whoever takes them.
pub(super) fn each(
    file: &Path,
    key: &NodeKey,
    context: &[u8],
    bytes: u64,
    take: impl FnMut(&Entry, &mut dyn Read) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let damaged = |why: String| CheckpointError::Damaged {
        path: file.to_owned(),
        why,
    };
    let sealed = File::open(file).map_err(|error| CheckpointError::io(file, "read", error))?;
    let opening = Opening::begin(io::BufReader::with_capacity(BUFFER, sealed), key, context);
    let mut archive = Reader::new(opening.map_err(|error| unread(file, error))?, read_options());
    each_of(&mut archive, bytes, damaged, take).map(drop)
}

/// Passes on every image of an archive of them, in their order, and no more than `bytes`. Says how many bytes are missing of those.
///
/// # Errors
/// What `wrong` makes of what cannot be; that of whoever takes them.
pub(super) fn each_of<R: Read>(
    archive: &mut Reader<R>,
    bytes: u64,
    wrong: impl Fn(String) -> CheckpointError,
    mut take: impl FnMut(&Entry, &mut dyn Read) -> Result<(), CheckpointError>,
) -> Result<u64, CheckpointError> {
    let mut left = bytes;
    while let Some(entry) = archive.next_entry().map_err(|error| wrong(error.to_string()))? {
        if entry.kind != Kind::File || entry.sparse.is_some() || !is_a_name(&entry.path) {
            return Err(wrong(format!("{} is no image of CRIU's", entry.shown())));
        }
        left = left
            .checked_sub(entry.size)
            .ok_or_else(|| wrong("it holds more than its description says".into()))?;
        take(&entry, &mut archive.data())?;
    }
    Ok(left)
}

/// Opens a sealed file into a directory that is there, is empty, and belongs to this user alone. No more than `bytes` of images are
/// taken. What fails may leave some of them.
///
/// # Errors
/// [`CheckpointError::Damaged`]; what the file system says.
pub(super) fn unpack(
    file: &Path,
    directory: &Path,
    key: &NodeKey,
    context: &[u8],
    bytes: u64,
) -> Result<(), CheckpointError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let into = rustix::fs::open(directory, flags, Mode::empty())
        .map_err(|error| CheckpointError::io(directory, "opened", error.into()))?;
    each(file, key, context, bytes, |entry, data| {
        let path = directory.join(OsStr::from_bytes(&entry.path));
        let unwritten = |error: io::Error| CheckpointError::io(&path, "written", error);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat2(
            &into,
            OsStr::from_bytes(&entry.path),
            flags,
            Mode::RUSR | Mode::WUSR,
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        );
        let mut out = File::from(opened.map_err(|error| unwritten(error.into()))?);
        pass_on(
            data,
            |error| unread(file, error),
            |part| out.write_all(part).map_err(unwritten),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Room {
        root: tempfile::TempDir,
        key: NodeKey,
    }

    impl Room {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let key = NodeKey::open(&root.path().join("key"), true).unwrap();
            for directory in ["from", "to"] {
                std::fs::create_dir(root.path().join(directory)).unwrap();
            }
            Self { root, key }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.root.path().join(name)
        }

        fn image(&self, name: &str, content: &[u8]) {
            std::fs::write(self.path("from").join(name), content).unwrap();
        }

        fn pack(&self) -> Result<(), CheckpointError> {
            pack(&self.path("from"), &self.path("sealed"), &self.key, b"about")
        }

        fn unpack(&self, bytes: u64) -> Result<(), CheckpointError> {
            unpack(&self.path("sealed"), &self.path("to"), &self.key, b"about", bytes)
        }

        /// Seals an archive of somebody else's making.
        fn foreign(&self, entries: &[(Entry, &[u8])]) {
            let file = File::create(self.path("sealed")).unwrap();
            let mut archive = Writer::new(Sealing::begin(file, &self.key, b"about").unwrap());
            for (entry, content) in entries {
                archive.append(entry, &mut &**content).unwrap();
            }
            archive.finish().unwrap().finish().unwrap();
        }
    }

    #[test]
    fn images_come_back_as_they_were() {
        let room = Room::new();
        let pages: Vec<u8> = (0..3_000_000u32).map(|n| (n % 253) as u8).collect();
        room.image("pages-1.img", &pages);
        room.image("core-1.img", b"core");
        room.image("empty.img", b"");
        let bytes = bytes_in(&room.path("from")).unwrap();
        assert_eq!(bytes, 3_000_004);
        room.pack().unwrap();
        room.unpack(bytes).unwrap();
        for name in ["pages-1.img", "core-1.img", "empty.img"] {
            let [from, to] = ["from", "to"].map(|d| std::fs::read(room.path(d).join(name)).unwrap());
            assert!(from == to, "{name}");
        }
        assert_eq!(std::fs::read_dir(room.path("to")).unwrap().count(), 3);
        assert!(room.pack().is_err(), "a file that is there is not written over");
    }

    #[test]
    fn what_criu_does_not_write_is_not_packed() {
        let room = Room::new();
        std::os::unix::fs::symlink("/etc/shadow", room.path("from").join("core-1.img")).unwrap();
        assert!(matches!(room.pack(), Err(CheckpointError::Damaged { .. })));
    }

    #[test]
    fn hostile_archives_write_nothing_elsewhere() {
        let link = Kind::Symlink {
            target: b"/etc".to_vec(),
        };
        let device = Kind::CharacterDevice(tranship_archive::entry::Device { major: 1, minor: 1 });
        type Entries = Vec<(Entry, &'static [u8])>;
        let cases: Vec<(&str, Entries)> = vec![
            ("up", vec![(Entry::file("../up.img", 0o600, 1), b"x")]),
            ("absolute", vec![(Entry::file("/up.img", 0o600, 1), b"x")]),
            ("below", vec![(Entry::file("a/b.img", 0o600, 1), b"x")]),
            ("hidden", vec![(Entry::file(".hidden", 0o600, 1), b"x")]),
            ("link", vec![(Entry::new("core-1.img", link, 0o777), b"")]),
            ("device", vec![(Entry::new("core-1.img", device, 0o600), b"")]),
            (
                "directory",
                vec![(Entry::new("core", Kind::Directory, 0o700), b"")],
            ),
            (
                "twice",
                vec![
                    (Entry::file("core-1.img", 0o600, 1), b"x"),
                    (Entry::file("core-1.img", 0o600, 1), b"y"),
                ],
            ),
            (
                "too much",
                vec![
                    (Entry::file("core-1.img", 0o600, 5), b"12345"),
                    (Entry::file("core-2.img", 0o600, 6), b"123456"),
                ],
            ),
        ];
        for (what, entries) in cases {
            let room = Room::new();
            room.foreign(&entries);
            let refused = room.unpack(10);
            assert!(matches!(refused, Err(CheckpointError::Damaged { .. })), "{what}");
            assert!(!room.path("up.img").exists(), "{what}");
            assert!(std::fs::read_dir(room.path("to")).unwrap().count() <= 1, "{what}");
        }
    }

    #[test]
    fn an_end_that_is_missing_is_found() {
        let room = Room::new();
        room.image("core-1.img", &[7; 200_000]);
        room.pack().unwrap();
        let whole = std::fs::read(room.path("sealed")).unwrap();
        std::fs::write(room.path("sealed"), &whole[..whole.len() - 20]).unwrap();
        assert!(matches!(
            room.unpack(200_000),
            Err(CheckpointError::Damaged { .. })
        ));
    }
}
