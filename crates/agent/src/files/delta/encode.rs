//! From an archive to frames.

use std::io::{self, Read, Write};

use tranship_archive::entry::Kind;
use tranship_archive::writer::Writer;
use tranship_core::Fault;
use tranship_core::fault::FaultKind;

use super::index::{FileIndex, Index};
use super::{END, FILE, LITERAL, REFERENCE, sizes};
use crate::files::rewrite;

/// Bytes of the archive that go into one frame.
const PIECE: usize = 256 << 10;
/// Bytes read at a time.
const PART: usize = 256 << 10;

/// What the archive is written to: frames, where some of its bytes are only referred to.
struct Frames<W> {
    out: W,
    literal: Vec<u8>,
    /// So many bytes that follow are known to the other end.
    known: usize,
}

impl<W: Write> Frames<W> {
    fn pass_on(&mut self) -> io::Result<()> {
        if self.literal.is_empty() {
            return Ok(());
        }
        self.out.write_all(&[LITERAL])?;
        self.out.write_all(&length(self.literal.len()))?;
        self.out.write_all(&self.literal)?;
        self.literal.clear();
        Ok(())
    }

    fn file(&mut self, path: &[u8]) -> io::Result<()> {
        self.pass_on()?;
        self.out.write_all(&[FILE])?;
        self.out.write_all(&length(path.len()))?;
        self.out.write_all(path)
    }

    /// The bytes that are written next are these of the file.
    fn reference(&mut self, offset: u64, bytes: usize, hash: &[u8; 32]) -> io::Result<()> {
        self.pass_on()?;
        self.known = bytes;
        self.out.write_all(&[REFERENCE])?;
        self.out.write_all(&offset.to_le_bytes())?;
        self.out.write_all(&length(bytes))?;
        self.out.write_all(hash)
    }

    fn end(mut self) -> io::Result<()> {
        self.pass_on()?;
        self.out.write_all(&[END])?;
        self.out.flush()
    }
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes()
}

impl<W: Write> Write for Frames<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.known > 0 {
            let passed = self.known.min(bytes.len());
            self.known -= passed;
            return Ok(passed);
        }
        self.literal.extend_from_slice(bytes);
        if self.literal.len() >= PIECE {
            self.pass_on()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes an archive as frames, without the chunks that the index has.
///
/// # Errors
/// What is wrong with the archive; `archive.write` if `out` cannot be written.
pub fn encode<R: Read, W: Write>(archive: R, out: W, index: &Index) -> Result<(), Fault> {
    let failed = |e: io::Error| Fault::new("archive.write", FaultKind::Environment, e.to_string());
    let mut reader = rewrite::open(archive)?;
    let mut writer = Writer::new(Frames {
        out,
        literal: Vec::with_capacity(2 * PIECE),
        known: 0,
    });
    let mut part = vec![0; PART];
    while let Some(entry) = reader.next_entry()? {
        let known = index.file(&entry.path).filter(|_| entry.kind == Kind::File);
        let Some(known) = known else {
            writer.append_from(&entry, &mut reader)?;
            continue;
        };
        writer.start(&entry)?;
        writer.get_mut().file(&entry.path).map_err(failed)?;
        let mut content = Content {
            known,
            pending: Vec::new(),
            end: 0,
        };
        while let Some(extent) = reader.read_extent(&mut part)? {
            let length = usize::try_from(extent.length).unwrap_or(usize::MAX);
            if extent.offset != content.end {
                content.pass_on(&mut writer, true)?;
            }
            content
                .pending
                .extend_from_slice(part.get(..length).unwrap_or_default());
            content.end = extent.offset + extent.length;
            content.pass_on(&mut writer, false)?;
        }
        content.pass_on(&mut writer, true)?;
    }
    writer.finish()?.end().map_err(failed)
}

/// Content of one file, as far as it is not cut yet.
struct Content<'a> {
    known: &'a FileIndex,
    pending: Vec<u8>,
    /// Where in the file the pending bytes end.
    end: u64,
}

impl Content<'_> {
    /// Cuts and writes what can be cut; everything if nothing follows that stands together with it.
    fn pass_on<W: Write>(&mut self, writer: &mut Writer<Frames<W>>, all: bool) -> Result<(), Fault> {
        let failed = |e: io::Error| Fault::new("archive.write", FaultKind::Environment, e.to_string());
        let sizes = sizes(self.known.size);
        let mut done = 0;
        loop {
            let rest = self.pending.get(done..).unwrap_or_default();
            if rest.is_empty() || (!all && rest.len() < sizes.max()) {
                break;
            }
            let chunk = rest.get(..sizes.cut(rest)).unwrap_or(rest);
            let hash = blake3::hash(chunk);
            if let Some(offset) = self.known.find(hash.as_bytes(), chunk.len()) {
                let frames = writer.get_mut();
                frames
                    .reference(offset, chunk.len(), hash.as_bytes())
                    .map_err(failed)?;
            }
            writer.write_data(chunk)?;
            done += chunk.len();
        }
        self.pending.drain(..done);
        Ok(())
    }
}
