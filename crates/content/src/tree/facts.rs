//! The record beside a manifest: what `stat` said about each entry when it was read, so that a rescan can tell what did not
//! change. It is no part of the tree, never travels, and is worth nothing on another machine or after damage.
//!
//! A header (`tshpfact`, version 1 as one byte, id of the tree), then [`FACT_LENGTH`] bytes per entry in the tree's order, all
//! numbers little endian, then the BLAKE3 of everything before it.

use std::io::{Read, Write};

use super::TreeError;
use crate::entry::{DIGEST_LENGTH, Timestamp, TreeId};

/// Length of one entry's facts in bytes.
pub const FACT_LENGTH: usize = 48;
const MAGIC: [u8; 9] = *b"tshpfact\x01";
const BLOCK: usize = 4096 * FACT_LENGTH;

/// What `stat` said about one entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Facts {
    /// Device of the file system.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Time of the last change of the inode.
    pub ctime: Timestamp,
    /// Number of names, those outside the element included.
    pub nlink: u32,
    /// When the scan began that read it; seconds since 1970 by the clock that stamps files. `None`: it changed while it was
    /// read, so whatever the other fields say, it has to be read again.
    pub read: Option<Timestamp>,
}

/// Writes facts.
pub struct FactsWriter<W: Write> {
    out: W,
    block: Vec<u8>,
    hash: blake3::Hasher,
}

impl<W: Write> FactsWriter<W> {
    /// Begins a record. The tree's id comes with [`Self::finish`], since it is known only then.
    pub fn new(out: W) -> Self {
        let mut block = Vec::with_capacity(BLOCK + 64);
        block.extend_from_slice(&MAGIC);
        Self {
            out,
            block,
            hash: blake3::Hasher::new(),
        }
    }

    /// Adds the facts of the next entry.
    ///
    /// # Errors
    ///
    /// Writing fails.
    pub fn push(&mut self, facts: &Facts) -> Result<(), TreeError> {
        let block = &mut self.block;
        block.extend_from_slice(&facts.dev.to_le_bytes());
        block.extend_from_slice(&facts.ino.to_le_bytes());
        block.extend_from_slice(&facts.ctime.seconds.to_le_bytes());
        block.extend_from_slice(&facts.ctime.nanos.to_le_bytes());
        block.extend_from_slice(&facts.nlink.to_le_bytes());
        let read = facts.read.unwrap_or_default();
        block.extend_from_slice(&read.seconds.to_le_bytes());
        block.extend_from_slice(&read.nanos.to_le_bytes());
        block.extend_from_slice(&u32::from(facts.read.is_some()).to_le_bytes());
        if self.block.len() >= BLOCK {
            self.flush_block()?;
        }
        Ok(())
    }

    /// Ends the record, which belongs to this tree. The writer is flushed, not synced.
    ///
    /// # Errors
    ///
    /// Writing fails.
    pub fn finish(mut self, tree: TreeId) -> Result<W, TreeError> {
        self.block.extend_from_slice(&tree.0);
        self.flush_block()?;
        self.out.write_all(self.hash.finalize().as_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn flush_block(&mut self) -> Result<(), TreeError> {
        self.hash.update(&self.block);
        self.out.write_all(&self.block)?;
        self.block.clear();
        Ok(())
    }
}

/// Reads facts. They are to be believed only after [`Self::finish`] found the record whole.
pub struct FactsReader<R: Read> {
    input: R,
    block: Vec<u8>,
    at: usize,
    hashed: usize,
    hash: blake3::Hasher,
    begun: bool,
}

impl<R: Read> FactsReader<R> {
    /// Reads from `input`, in large pieces.
    pub fn new(input: R) -> Self {
        Self {
            input,
            block: Vec::new(),
            at: 0,
            hashed: 0,
            hash: blake3::Hasher::new(),
            begun: false,
        }
    }

    /// Facts of the next entry.
    ///
    /// # Errors
    ///
    /// Reading fails, or there are none left.
    #[allow(clippy::should_implement_trait)] // It can fail.
    pub fn next(&mut self) -> Result<Facts, TreeError> {
        self.begin()?;
        let mut raw = [0; FACT_LENGTH];
        raw.copy_from_slice(self.take(FACT_LENGTH)?);
        let long = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&raw[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let short = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&raw[at..at + 4]);
            u32::from_le_bytes(bytes)
        };
        Ok(Facts {
            dev: long(0),
            ino: long(8),
            ctime: Timestamp {
                seconds: long(16) as i64,
                nanos: short(24),
            },
            nlink: short(28),
            read: (short(44) == 1).then(|| Timestamp {
                seconds: long(32) as i64,
                nanos: short(40),
            }),
        })
    }

    /// Checks, after the facts of the last entry, that the record is whole and belongs to this tree.
    ///
    /// # Errors
    ///
    /// It is not, or does not.
    pub fn finish(mut self, tree: TreeId) -> Result<(), TreeError> {
        self.begin()?;
        if self.take(DIGEST_LENGTH)? != tree.0 {
            return Err(TreeError::Facts {
                reason: "it belongs to another manifest, or has more or fewer entries",
            });
        }
        self.hash_taken();
        let found = *self.hash.finalize().as_bytes();
        if self.take(DIGEST_LENGTH)? != found {
            return Err(TreeError::Facts {
                reason: "its checksum is wrong",
            });
        }
        if self.at < self.block.len() || self.fill()? > 0 {
            return Err(TreeError::Facts {
                reason: "bytes follow its end",
            });
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), TreeError> {
        if !self.begun {
            self.begun = true;
            if self.take(MAGIC.len())? != MAGIC {
                return Err(TreeError::Facts {
                    reason: "it is no such record",
                });
            }
        }
        Ok(())
    }

    fn take(&mut self, count: usize) -> Result<&[u8], TreeError> {
        while self.block.len() - self.at < count {
            if self.fill()? == 0 {
                return Err(TreeError::Facts {
                    reason: "it ends too early",
                });
            }
        }
        let from = self.at;
        self.at += count;
        Ok(&self.block[from..self.at])
    }

    fn hash_taken(&mut self) {
        self.hash.update(&self.block[self.hashed..self.at]);
        self.hashed = self.at;
    }

    fn fill(&mut self) -> Result<usize, TreeError> {
        self.hash_taken();
        self.block.drain(..self.at);
        self.at = 0;
        self.hashed = 0;
        let had = self.block.len();
        self.block.resize(had + BLOCK, 0);
        let got = loop {
            match self.input.read(&mut self.block[had..]) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let kept = *got.as_ref().unwrap_or(&0);
        self.block.truncate(had + kept);
        Ok(got?)
    }
}
