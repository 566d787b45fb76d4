//! What a comparison found to do, on disk: memory does not grow with it.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::items::{BaseEntries, Compare, Item, Items};
use super::stat::{Kind, Root, Stat};
use super::walk::{Ahead, Walk};
use super::{Base, ScanError, ScanOptions};
use crate::entry::Timestamp;
use crate::tree::TreeSummary;

/// What a comparison found to do, on disk: everything that is not [`Item::Same`].
pub(crate) struct Todo {
    file: File,
    /// Entries that the base has no more.
    pub(crate) gone: u64,
    /// Entries to look at.
    pub(crate) looks: u64,
    /// What the base said at its end.
    pub(crate) base: Option<TreeSummary>,
}

impl Todo {
    /// Looks at everything beside the base, without reading, and writes down what there is to do.
    pub(crate) fn look(
        root: &Root,
        options: &ScanOptions,
        base: &Base,
        directory: &Path,
        met: impl FnMut(u64) -> Result<(), ScanError>,
    ) -> Result<Self, ScanError> {
        std::thread::scope(|scope| {
            let walk = Ahead::start(scope, Walk::new(root, options)?)?;
            let base = BaseEntries::open(base)?;
            let compare = Compare::new(walk, Some(base), options.overlay, root.silent)?;
            Self::make(compare, directory, met)
        })
    }

    /// Compares, and writes down what there is to do.
    fn make(
        mut items: Compare<'_>,
        directory: &Path,
        mut met: impl FnMut(u64) -> Result<(), ScanError>,
    ) -> Result<Self, ScanError> {
        let named = directory.as_os_str().as_encoded_bytes();
        let io = |error: std::io::Error| ScanError::io("write in", named, error);
        let file = scratch_file(directory)?;
        let mut out = BufWriter::with_capacity(256 << 10, &file);
        let (mut gone, mut looks) = (0, 0);
        let mut record = Vec::new();
        while let Some(item) = items.next()? {
            if items.seen.is_multiple_of(1024) {
                met(items.seen)?;
            }
            record.clear();
            match item {
                Item::Same(..) => continue,
                Item::Gone(path) => {
                    gone += 1;
                    put(&mut record, &path);
                    record.push(0);
                }
                Item::Look { seen, link, .. } => {
                    looks += 1;
                    put(&mut record, &seen.path);
                    record.push(1 + u8::from(link.is_some()));
                    if let Some(link) = link {
                        put(&mut record, &link);
                    }
                    put_stat(&mut record, &seen.stat);
                }
            }
            out.write_all(&record).map_err(io)?;
        }
        out.flush().map_err(io)?;
        drop(out);
        Ok(Self {
            file,
            gone,
            looks,
            base: items.base_summary(),
        })
    }

    /// Reads it from the beginning.
    pub(crate) fn records(&self) -> Result<Records, ScanError> {
        let mut file = self
            .file
            .try_clone()
            .map_err(|error| ScanError::io("read", b"", error))?;
        file.seek(SeekFrom::Start(0))
            .map_err(|error| ScanError::io("read", b"", error))?;
        Ok(Records {
            input: BufReader::with_capacity(256 << 10, file),
            left: self.gone + self.looks,
        })
    }
}

/// A file without a name.
pub(crate) fn scratch_file(directory: &Path) -> Result<File, ScanError> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let path = directory.join(format!(
        ".scratch-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    ));
    let open = || {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        std::fs::remove_file(&path)?;
        Ok::<_, std::io::Error>(file)
    };
    open().map_err(|error| ScanError::io("write in", directory.as_os_str().as_encoded_bytes(), error))
}

/// A line of what there is to do.
pub(crate) struct Record {
    pub(crate) path: Vec<u8>,
    /// `None`: it has gone.
    pub(crate) look: Option<(Stat, Option<Vec<u8>>)>,
}

/// Lines of what there is to do.
pub(crate) struct Records {
    input: BufReader<File>,
    left: u64,
}

impl Records {
    pub(crate) fn next(&mut self) -> Result<Option<Record>, ScanError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.read()
            .map(Some)
            .map_err(|error| ScanError::io("read", b"", error))
    }

    fn read(&mut self) -> std::io::Result<Record> {
        let path = self.text()?;
        let mut tag = [0];
        self.input.read_exact(&mut tag)?;
        if tag[0] == 0 {
            return Ok(Record { path, look: None });
        }
        let link = if tag[0] == 2 { Some(self.text()?) } else { None };
        let mut raw = [0; STAT_LENGTH];
        self.input.read_exact(&mut raw)?;
        Ok(Record {
            path,
            look: Some((get_stat(&raw), link)),
        })
    }

    fn text(&mut self) -> std::io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.input.read_exact(&mut length)?;
        let mut text = vec![0; u32::from_le_bytes(length) as usize];
        self.input.read_exact(&mut text)?;
        Ok(text)
    }
}

fn put(out: &mut Vec<u8>, text: &[u8]) {
    // Paths have 256 KiB at most.
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text);
}

const STAT_LENGTH: usize = 1 + 4 * 3 + 8 + 12 * 2 + 8 * 2 + 4 + 8 + 8;
const KINDS: [Kind; 7] = [
    Kind::Directory,
    Kind::File,
    Kind::Symlink,
    Kind::Fifo,
    Kind::Socket,
    Kind::CharDevice,
    Kind::BlockDevice,
];

fn put_stat(out: &mut Vec<u8>, stat: &Stat) {
    out.push(KINDS.iter().position(|kind| *kind == stat.kind).unwrap_or(0) as u8);
    for number in [
        stat.mode,
        stat.uid,
        stat.gid,
        stat.nlink,
        stat.device.0,
        stat.device.1,
        stat.mtime.nanos,
        stat.ctime.nanos,
    ] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    for number in [
        stat.size,
        stat.dev,
        stat.ino,
        stat.mount,
        stat.mtime.seconds as u64,
        stat.ctime.seconds as u64,
    ] {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

fn get_stat(raw: &[u8; STAT_LENGTH]) -> Stat {
    let short = |index: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&raw[1 + 4 * index..][..4]);
        u32::from_le_bytes(bytes)
    };
    let long = |index: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&raw[33 + 8 * index..][..8]);
        u64::from_le_bytes(bytes)
    };
    Stat {
        kind: KINDS[usize::from(raw[0]).min(KINDS.len() - 1)],
        mode: short(0),
        uid: short(1),
        gid: short(2),
        nlink: short(3),
        device: (short(4), short(5)),
        mtime: Timestamp {
            seconds: long(4) as i64,
            nanos: short(6),
        },
        ctime: Timestamp {
            seconds: long(5) as i64,
            nanos: short(7),
        },
        size: long(0),
        dev: long(1),
        ino: long(2),
        mount: long(3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stat_says_is_kept() {
        let stat = Stat {
            kind: Kind::BlockDevice,
            mode: 1,
            uid: 2,
            gid: 3,
            size: 4,
            mtime: Timestamp {
                seconds: -5,
                nanos: 6,
            },
            ctime: Timestamp { seconds: 7, nanos: 8 },
            dev: 9,
            ino: u64::MAX,
            nlink: 11,
            device: (12, 13),
            mount: 14,
        };
        let mut raw = Vec::new();
        put_stat(&mut raw, &stat);
        assert_eq!(get_stat(&raw.try_into().unwrap()), stat);
    }
}
