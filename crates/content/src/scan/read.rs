//! Reads what is in an entry: everything but the content of large files, which go in segments.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{SeekFrom, readlinkat, seek};
use rustix::io::Errno;

use super::stat::{Kind, Stat, Xattrs, open_directory, open_file, stat_at, stat_of, xattrs_at, xattrs_of};
use super::walk::Seen;
use super::{Context, Piece, ScanError, Scanned};
use crate::chunk::Sizes;
use crate::entry::{ChunkId, Entry, EntryKind, Extent};

/// How often something that changes while it is read is read again when nothing should write any more.
pub(crate) const TRIES: usize = 3;
/// Files up to this many bytes are read at once.
pub(crate) const SMALL: u64 = 1 << 20;

/// Something to read.
pub(crate) struct Look {
    pub(crate) seen: Seen,
    /// For a further name: the first one.
    pub(crate) link: Option<Vec<u8>>,
    /// What the base has there.
    pub(crate) base: Option<Entry>,
    /// The directory that it is in; the root's own for the root.
    pub(crate) directory: Arc<OwnedFd>,
}

/// The name of a path in its directory; a dot for the root, which has none.
pub(crate) fn name_of(path: &[u8]) -> &[u8] {
    match super::dirs::split(path).1 {
        b"" => b".",
        name => name,
    }
}

/// An entry without content. Those of files and links have to be filled in.
pub(crate) fn entry_of(path: Vec<u8>, stat: &Stat, kind: EntryKind, xattrs: Xattrs) -> Entry {
    Entry {
        path,
        kind,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        mtime: stat.mtime,
        xattrs,
    }
}

/// Reads one entry. `None`: it is not there any more, or something else is.
pub(crate) fn read(look: Look, context: &Context<'_>) -> Result<Option<Scanned>, ScanError> {
    let mut look = look;
    let mut tries = 0;
    loop {
        let (scanned, settled) = match attempt(&mut look, context) {
            Ok(scanned) => scanned,
            Err(ScanError::Io { source, .. }) if !context.frozen && vanished(&source) => return Ok(None),
            Err(ScanError::Io { source, .. }) if vanished(&source) => {
                return Err(changed(&look.seen.path));
            }
            Err(error) => return Err(error),
        };
        if settled || !context.frozen {
            return Ok(Some(scanned));
        }
        tries += 1;
        if tries == TRIES {
            return Err(changed(&look.seen.path));
        }
    }
}

pub(crate) fn changed(path: &[u8]) -> ScanError {
    ScanError::Changed {
        path: super::error::shown(path),
    }
}

/// What open and stat say when a path has gone or leads to something else now.
pub(crate) fn vanished(error: &std::io::Error) -> bool {
    [
        Errno::NOENT,
        Errno::NOTDIR,
        Errno::LOOP,
        Errno::XDEV,
        Errno::NXIO,
        Errno::STALE,
    ]
    .iter()
    .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn attempt(look: &mut Look, context: &Context<'_>) -> Result<(Scanned, bool), ScanError> {
    let path = look.seen.path.clone();
    let name = name_of(&path);
    let before = look.seen.stat;
    if let Some(target) = look.link.clone() {
        // Attributes are the first name's, and whoever puts the tree together has them.
        let entry = entry_of(path, &before, EntryKind::Hardlink { target }, Vec::new());
        return Ok((scanned(look, context, entry, before, true), true));
    }
    let mut pieces = Vec::new();
    let io = |action, error: Errno| ScanError::io(action, &path, error);
    let (entry, after) = match before.kind {
        Kind::Directory => {
            let directory = open_directory(&*look.directory, name).map_err(|error| io("open", error))?;
            let after = stat_of(&directory).map_err(|error| io("look at", error))?;
            let xattrs = xattrs_of(&directory, &path, context.overlay)?;
            (
                entry_of(path.clone(), &after, EntryKind::Directory, xattrs),
                after,
            )
        }
        Kind::File => {
            let file = open_file(&*look.directory, name).map_err(|error| io("open", error))?;
            if context.is_mapped(before.ino, name) {
                rustix::fs::fdatasync(&file).map_err(|error| io("write back", error))?;
            }
            let xattrs = xattrs_of(&file, &path, context.overlay)?;
            let extents = read_small(&file.into(), before.size, &path, context, &mut pieces)?;
            let kind = EntryKind::File {
                size: before.size,
                extents,
            };
            // Opened by name, so it is looked at by name: a file that took its place is another.
            let after = stat_at(&*look.directory, name).map_err(|error| io("look at", error))?;
            (entry_of(path.clone(), &before, kind, xattrs), after)
        }
        other => {
            let kind = match other {
                Kind::Symlink => EntryKind::Symlink {
                    target: readlinkat(&*look.directory, name, Vec::new())
                        // It is no link any more.
                        .map_err(|error| {
                            if error == Errno::INVAL {
                                Errno::NOENT
                            } else {
                                error
                            }
                        })
                        .map_err(|error| io("read", error))?
                        .into_bytes(),
                },
                Kind::Fifo => EntryKind::Fifo,
                Kind::Socket => EntryKind::Socket,
                Kind::CharDevice => EntryKind::CharDevice {
                    major: before.device.0,
                    minor: before.device.1,
                },
                _ => EntryKind::BlockDevice {
                    major: before.device.0,
                    minor: before.device.1,
                },
            };
            let xattrs = xattrs_at(&look.directory, name, &path, context.overlay)?;
            let after = stat_at(&*look.directory, name).map_err(|error| io("look at", error))?;
            (entry_of(path.clone(), &before, kind, xattrs), after)
        }
    };
    if after.kind != before.kind {
        return Err(io("read", Errno::NOENT));
    }
    let settled = after.same_state(&before);
    // A directory's entry is what was seen last; of a file, what its size and content were read by.
    look.seen.stat = after;
    let stat = if before.kind == Kind::Directory {
        after
    } else {
        before
    };
    let mut scanned = scanned(
        look,
        context,
        entry,
        stat,
        settled || before.kind == Kind::Directory,
    );
    scanned.pieces = pieces;
    Ok((scanned, settled))
}

fn scanned(look: &Look, context: &Context<'_>, entry: Entry, stat: Stat, settled: bool) -> Scanned {
    Scanned {
        entry,
        facts: stat.facts((settled && !context.silent(stat.kind)).then_some(context.began)),
        base: look.base.clone(),
        pieces: Vec::new(),
        settled,
    }
}

/// Reads a file that fits into memory. What is missing because it shrank meanwhile is a hole; whoever looks at its times notices.
fn read_small(
    file: &File,
    size: u64,
    path: &[u8],
    context: &Context<'_>,
    pieces: &mut Vec<Piece>,
) -> Result<Vec<Extent>, ScanError> {
    let sizes = Sizes::of(size);
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let (data, hole) = next_data(file, at, size).map_err(|error| ScanError::io("read", path, error))?;
        if data > at {
            let extent = Extent::Hole { length: data - at };
            add_extent(&mut extents, pieces, extent, None, context);
        }
        // A small file is at most 1 MiB, and here even a larger one is cut off by `hole`.
        let mut buffer = vec![0; (hole - data) as usize];
        let got = read_at(file, &mut buffer, data).map_err(|error| ScanError::io("read", path, error))?;
        buffer.truncate(got);
        let buffer = Bytes::from(buffer);
        let mut from = 0;
        while from < got {
            let length = sizes.cut(&buffer[from..]);
            let bytes = buffer.slice(from..from + length);
            let extent = Extent::Chunk {
                length: length as u32,
                id: ChunkId(*blake3::hash(&bytes).as_bytes()),
            };
            add_extent(&mut extents, pieces, extent, Some(bytes), context);
            from += length;
        }
        at = data + got as u64;
        if at < hole {
            // It became shorter.
            let extent = Extent::Hole { length: size - at };
            add_extent(&mut extents, pieces, extent, None, context);
            at = size;
        }
    }
    Ok(extents)
}

fn add_extent(
    extents: &mut Vec<Extent>,
    pieces: &mut Vec<Piece>,
    extent: Extent,
    bytes: Option<Bytes>,
    context: &Context<'_>,
) {
    if let (Some(Extent::Hole { length }), Extent::Hole { length: more }) = (extents.last_mut(), &extent) {
        *length += more;
        if let Some(Piece {
            extent: Extent::Hole { length },
            ..
        }) = pieces.last_mut()
        {
            *length += more;
        }
        return;
    }
    extents.push(extent);
    pieces.push(Piece {
        extent,
        bytes: bytes.filter(|_| context.wants(&extent)),
        parts: None,
    });
}

/// Where the next data begins at or after `at`, and where the hole after it begins; both at most `size`. A stretch without data
/// is `(size, size)`.
pub(crate) fn next_data(file: &File, at: u64, size: u64) -> Result<(u64, u64), Errno> {
    // Most files have no hole, and one question says so.
    if at == 0 && size > 0 && seek(file, SeekFrom::Hole(0)).is_ok_and(|hole| hole >= size) {
        return Ok((0, size));
    }
    let data = match seek(file, SeekFrom::Data(at)) {
        Ok(data) => data.min(size),
        Err(Errno::NXIO) => return Ok((size, size)),
        // A file system without this knowledge.
        Err(Errno::INVAL | Errno::NOTSUP | Errno::NOSYS) => return Ok((at, size)),
        Err(error) => return Err(error),
    };
    let hole = match seek(file, SeekFrom::Hole(data)) {
        Ok(hole) => hole.min(size),
        // It became shorter between the two calls.
        Err(Errno::NXIO) => size,
        Err(error) => return Err(error),
    };
    // A file system may say nonsense about a file that changes; a hole of nothing would go on forever.
    Ok((data, hole.max((data + 1).min(size))))
}

/// Reads until the buffer is full or the file ends.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], offset + got as u64) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}
