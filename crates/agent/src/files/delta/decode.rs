//! From frames to the archive.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use tranship_archive::confined::{Root, partial_of};
use tranship_archive::path::TreePath;
use tranship_core::Fault;
use tranship_core::fault::FaultKind;

use super::{BESIDE, END, FILE, LITERAL, LONGEST_CHUNK, LONGEST_PATH, REFERENCE, malformed};

/// The archive that frames stand for. What it takes from files is compared with its hash first.
pub struct Decoder<R> {
    frames: R,
    /// Where files are, and the directory that the archive is unpacked in. None where none can be reached.
    place: Option<(Arc<Root>, TreePath)>,
    path: Vec<u8>,
    /// The file of that path, and what is beside it, once they were needed.
    files: [Option<File>; 2],
    /// Bytes that follow as they are.
    literal: usize,
    chunk: Vec<u8>,
    /// So much of the chunk was read.
    read: usize,
    ended: bool,
    fault: Broken,
}

/// Why a [`Decoder`] failed: whoever reads an archive from it hears of an error of its stream only.
#[derive(Clone, Default)]
pub struct Broken(Arc<Mutex<Option<Fault>>>);

impl Broken {
    /// The decoder's own fault if it had one.
    #[must_use]
    pub fn or(&self, fault: Fault) -> Fault {
        let own = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        own.unwrap_or(fault)
    }

    fn with(&self, fault: Fault) -> io::Error {
        let text = fault.message.clone();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
        io::Error::other(text)
    }
}

impl<R: Read> Decoder<R> {
    /// Reads frames; `place` is the root and the directory in it that the archive is unpacked in.
    pub fn new(frames: R, place: Option<(Arc<Root>, TreePath)>) -> Self {
        Self {
            frames,
            place,
            path: Vec::new(),
            files: [None, None],
            literal: 0,
            chunk: Vec::new(),
            read: 0,
            ended: false,
            fault: Broken::default(),
        }
    }

    /// Where its own faults are kept.
    #[must_use]
    pub fn broken(&self) -> Broken {
        self.fault.clone()
    }

    fn number<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.frames.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn length(&mut self, most: usize) -> io::Result<usize> {
        let length = usize::try_from(u32::from_le_bytes(self.number()?)).unwrap_or(usize::MAX);
        if length > most {
            return Err(self.fault.with(malformed("a part of it is too long")));
        }
        Ok(length)
    }

    fn next(&mut self) -> io::Result<()> {
        match self.number::<1>()? {
            [LITERAL] => self.literal = self.length(LONGEST_CHUNK)?,
            [FILE] => {
                let mut path = vec![0; self.length(LONGEST_PATH)?];
                self.frames.read_exact(&mut path)?;
                self.path = path;
                self.files = [None, None];
            }
            [REFERENCE] => {
                let offset = u64::from_le_bytes(self.number()?);
                let length = self.length(LONGEST_CHUNK)?;
                let hash: [u8; 32] = self.number()?;
                self.take(offset, length, &hash)?;
            }
            [END] => {
                self.ended = true;
                if self.frames.read(&mut [0])? != 0 {
                    return Err(self.fault.with(malformed("something follows its end")));
                }
            }
            _ => return Err(self.fault.with(malformed("a frame of no known kind"))),
        }
        Ok(())
    }

    fn take(&mut self, offset: u64, length: usize, hash: &[u8; 32]) -> io::Result<()> {
        if self.place.is_none() {
            let text = "the container was stopped while it was compared";
            let fault = Fault::new("container.changed", FaultKind::Environment, text);
            return Err(self.fault.with(fault.with_hint("run the copy again")));
        }
        let beside = offset & BESIDE != 0;
        let [file, partial] = &mut self.files;
        let file = if beside { partial } else { file };
        if file.is_none()
            && let (Some((root, base)), Ok(path)) = (&self.place, TreePath::of_entry(&self.path))
        {
            let path = path.under(base);
            let path = if beside { partial_of(&path) } else { Some(path) };
            *file = path.and_then(|path| root.file(&path));
        }
        self.chunk.resize(length, 0);
        self.read = 0;
        let whole = match file {
            Some(file) => file.read_exact_at(&mut self.chunk, offset & !BESIDE).is_ok(),
            None => false,
        };
        if whole && blake3::hash(&self.chunk) == *hash {
            return Ok(());
        }
        let path = String::from_utf8_lossy(&self.path).into_owned();
        let text = format!("{path} changed at the destination while it was compared");
        let mut fault = Fault::new("delta.changed", FaultKind::Environment, text)
            .with_hint("run the copy again, or without --delta");
        fault.path = Some(path);
        Err(self.fault.with(fault))
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let known = self.chunk.get(self.read..).unwrap_or_default();
            if !known.is_empty() {
                let length = known.len().min(buffer.len());
                if let (Some(to), Some(from)) = (buffer.get_mut(..length), known.get(..length)) {
                    to.copy_from_slice(from);
                }
                self.read += length;
                return Ok(length);
            }
            if self.literal > 0 {
                let want = self.literal.min(buffer.len());
                let got = self.frames.read(buffer.get_mut(..want).unwrap_or_default())?;
                if got == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.literal -= got;
                return Ok(got);
            }
            if self.ended {
                return Ok(0);
            }
            self.next()?;
        }
    }
}
