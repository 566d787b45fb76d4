//! What the two halves of a round say to each other over a byte stream, in this order:
//!
//! ```text
//! sink → source    Hello{versions}                       the sink speaks first
//! source → sink    Hello{versions, options}             both go on with the newest version that both speak
//! sink → source    Holds(Nothing | Known tree id)        Nothing: only an empty root directory is there
//! source → sink    Base(Nothing | Known id | Send)       Known: the source has that very tree from an earlier round
//!   if Send:       sink → source  Manifest(bytes)… ManifestEnd{id}
//! source → sink    the delta, in canonical order of paths (below)
//!   meanwhile:     source → sink  Ask{…}  sink → source  Blocks{…}   hashes of short blocks of a base file, so that
//!                  a small change inside a chunk costs little; asked ahead of their use, answered in order
//! source → sink    Done
//! sink → source    Again{paths}                          files that could not be put together (a base chunk was not what the
//!                                                        tree says): the source sends them once more, whole, then Done
//! source → sink    End{tree, entries, bytes}
//! sink → source    Applied{tree, …}                      only after equality, and after syncing if that was asked for
//! ```
//!
//! Either side may send `Failed{fault}` at any time instead, which ends the round, and `Alive`, which means nothing, when it has
//! been busy without anything to say for some seconds.
//!
//! The delta:
//!
//! * `Remove{path}`: the base has it, the source has not (any more, or not of this type). Takes what is below along.
//! * `Make{entry}`: an entry without content that is new or of another type: directory, symlink, FIFO, socket, device, hardlink,
//!   empty file.
//! * `Attributes{entry}`: same content (and extents), other attributes.
//! * `File{entry without extents, write}` then its content from the beginning to the end, then `FileEnd`:
//!   `Hole{length}`, `Data{id, bytes}`, `Copy{path, offset, length, id}` (bytes that the base holds),
//!   `Patch{path, offset, length of base, id, parts}` (bytes of the base with literal parts between them),
//!   `Keep{length}` (the extents that the base has at this very path and offset; it has to begin and end at their bounds).
//!   `write` is `Replace` (a new file takes the place of the old one; `Copy` may refer to any base file) or `InPlace` (large
//!   files: `Copy` and `Patch` refer to this file only, at offsets that have not been written yet in this round; the sink may
//!   still choose to replace it).
//!   Small files may come as `Whole{entry, id, bytes}`, one chunk or none.
//! * entries that are equal to the base's are not mentioned.
//!
//! All of these are *operations*; one frame of kind `Delta` holds as many as fit, one after the other, and an operation is never
//! cut in two.
//!
//! `Copy` and `Patch` always mean the base *as it was at the beginning of the round*: the sink keeps what a `Remove` or a
//! replacement displaces until `Done`.
//!
//! Frames: `length u32 LE of what follows | kind u8 | flags u8 (1: body is zstd) | body`; with flag 1 the body begins with the
//! plain length as u32 LE. A frame's body is at most [`MAX_FRAME`] bytes, plain or compressed. See [`frame`](crate::frame) for
//! reading and writing them and [`encoding`](crate::encoding) for the bytes of values.

use bytes::Bytes;
use tranship_core::fault::{Fault, FaultKind};

use crate::encoding::{DecodeError, Extents, MAX_FILE, Reader, put_bytes, put_entry, put_number, share};
use crate::entry::{ChunkId, DIGEST_LENGTH, Entry, TreeId};

/// The longest frame body in bytes, plain or compressed.
pub const MAX_FRAME: usize = 8 << 20;
/// Bytes of one chunk, at most: with what is around it, it fits into a frame.
pub const MAX_CHUNK: usize = 4 << 20;
/// Oldest version of this language that is spoken.
pub const VERSION_MIN: u16 = 1;
/// Newest version of this language that is spoken.
pub const VERSION_MAX: u16 = 1;
/// First bytes of every `Hello`.
pub const MAGIC: &[u8; 8] = b"tranship";
/// Ranges of one [`Message::Ask`], at most.
pub const MAX_ASK: usize = 4096;
/// Hashes of one [`Message::Blocks`], at most.
pub const MAX_BLOCKS: usize = 512 << 10;
/// Bytes of a text of a fault, at most; the rest is cut off.
const MAX_TEXT: usize = 16 << 10;
/// Reasons of a fault, at most.
const MAX_CAUSES: usize = 32;

/// A message that is not an operation of the delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Versions that the sender speaks, and what the source wants (zero flags from the sink).
    Hello {
        /// Oldest version.
        oldest: u16,
        /// Newest version.
        newest: u16,
        /// What the source wants of this round.
        wants: Wants,
    },
    /// Sink: what is there.
    Holds(Holds),
    /// Source: what the delta will start from.
    Base(Base),
    /// Sink: a piece of its manifest file.
    Manifest(Bytes),
    /// Sink: the end of its manifest.
    ManifestEnd {
        /// The manifest's name.
        tree: TreeId,
    },
    /// Source: operations, one after the other; [`operations`] takes them apart.
    Delta(Bytes),
    /// Source: hashes of blocks, please.
    Ask(Ask),
    /// Sink: the answer to the oldest `Ask` that has none yet.
    Blocks(Blocks),
    /// Source: the delta is complete.
    Done,
    /// Sink, after each `Done`: files that could not be put together, in canonical order; none if all is well.
    Again {
        /// Their paths.
        paths: Vec<Vec<u8>>,
    },
    /// Source: what the sink must hold now.
    End(Totals),
    /// Sink: it does hold that.
    Applied(Totals),
    /// Either side: the round is over.
    Failed(Box<Fault>),
    /// Either side: still there.
    Alive,
}

/// What a source wants of a round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wants {
    /// Nothing writes to the source any more.
    pub frozen: bool,
    /// Everything has to be durable before `Applied`.
    pub durable: bool,
}

/// What a sink holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// An empty directory.
    Nothing,
    /// This tree.
    Tree(TreeId),
}

/// What a delta starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// An empty directory.
    Nothing,
    /// This tree, which the source has too.
    Tree(TreeId),
    /// The sink's tree, whose manifest the source asks for.
    Send,
}

/// A question for hashes of short blocks of base files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Bytes of a block: 32 to 1 MiB. The last block of a range may be shorter.
    pub block: u32,
    /// Where.
    pub ranges: Vec<AskRange>,
}

/// A stretch of a base file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskRange {
    /// The file.
    pub path: Vec<u8>,
    /// First byte.
    pub offset: u64,
    /// Number of bytes, never 0.
    pub length: u32,
}

/// Hashes of blocks: XXH3, 64 bits, of each block, for all ranges one after the other. They only say what is worth sending; the
/// result is checked by its BLAKE3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks {
    /// The hashes; empty if the ranges could not be read as the tree says.
    pub hashes: Vec<u64>,
}

/// What a round came to. Sources fill all fields in [`Message::End`]; the sink repeats what it counted itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Name of the tree.
    pub tree: TreeId,
    /// Entries of the tree.
    pub entries: u64,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Entries that were new, different or gone.
    pub changed_entries: u64,
    /// Bytes of content that were sent, before compression.
    pub literal_bytes: u64,
    /// Bytes that the sender wrote to the pipe.
    pub wire_bytes: u64,
    /// Files that changed while they were read.
    pub unsettled: u64,
}

/// How a file comes to its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// A new file takes the old one's place.
    Replace,
    /// The file that is there is written to.
    InPlace,
}

/// A part of a patched chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Bytes of the base's stretch.
    Base {
        /// First byte, counted from the beginning of the stretch.
        offset: u32,
        /// Number of bytes, never 0.
        length: u32,
    },
    /// Other bytes, never none.
    Literal(Bytes),
}

impl Part {
    /// Number of bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Base { length, .. } => u64::from(*length),
            Self::Literal(bytes) => bytes.len() as u64,
        }
    }
}

/// An operation of the delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// The base has it, the source has not.
    Remove {
        /// What goes, with everything below.
        path: Vec<u8>,
    },
    /// An entry without content that is new or of another type.
    Make(Entry),
    /// Other attributes; the content stays. Files come without extents.
    Attributes(Entry),
    /// A file whose content follows up to `FileEnd`.
    File {
        /// The file, without extents.
        entry: Entry,
        /// How it is written.
        write: Write,
    },
    /// A hole.
    Hole {
        /// Bytes, never 0.
        length: u64,
    },
    /// A chunk.
    Data {
        /// Its name.
        id: ChunkId,
        /// Its bytes, never none.
        bytes: Bytes,
    },
    /// A chunk that the base holds.
    Copy {
        /// File of the base.
        path: Vec<u8>,
        /// First byte there.
        offset: u64,
        /// Number of bytes, never 0.
        length: u32,
        /// The chunk's name.
        id: ChunkId,
    },
    /// A chunk that is like one of the base.
    Patch {
        /// File of the base.
        path: Vec<u8>,
        /// First byte there.
        offset: u64,
        /// Number of bytes there.
        length: u32,
        /// Name of the resulting chunk.
        id: ChunkId,
        /// What the result is made of, in order.
        parts: Vec<Part>,
    },
    /// The extents that the base has at this path and this offset.
    Keep {
        /// Bytes, never 0.
        length: u64,
    },
    /// The file is complete.
    FileEnd,
    /// A file with one chunk, or an empty one.
    Whole {
        /// The file, without extents.
        entry: Entry,
        /// The chunk's name; all zeros for an empty file.
        id: ChunkId,
        /// Its bytes.
        bytes: Bytes,
    },
}

mod kind {
    pub const HELLO: u8 = 1;
    pub const HOLDS: u8 = 2;
    pub const BASE: u8 = 3;
    pub const MANIFEST: u8 = 4;
    pub const MANIFEST_END: u8 = 5;
    pub const DELTA: u8 = 6;
    pub const ASK: u8 = 7;
    pub const BLOCKS: u8 = 8;
    pub const DONE: u8 = 9;
    pub const AGAIN: u8 = 10;
    pub const END: u8 = 11;
    pub const APPLIED: u8 = 12;
    pub const FAILED: u8 = 13;
    pub const ALIVE: u8 = 14;

    pub const REMOVE: u8 = 1;
    pub const MAKE: u8 = 2;
    pub const ATTRIBUTES: u8 = 3;
    pub const FILE: u8 = 4;
    pub const HOLE: u8 = 5;
    pub const DATA: u8 = 6;
    pub const COPY: u8 = 7;
    pub const PATCH: u8 = 8;
    pub const KEEP: u8 = 9;
    pub const FILE_END: u8 = 10;
    pub const WHOLE: u8 = 11;
}

/// Kind of the frames that hold operations, for those who write them in parts.
pub const DELTA: u8 = kind::DELTA;

impl Message {
    /// The message's name, for errors.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "Hello",
            Self::Holds(_) => "Holds",
            Self::Base(_) => "Base",
            Self::Manifest(_) => "Manifest",
            Self::ManifestEnd { .. } => "ManifestEnd",
            Self::Delta(_) => "Delta",
            Self::Ask(_) => "Ask",
            Self::Blocks(_) => "Blocks",
            Self::Done => "Done",
            Self::Again { .. } => "Again",
            Self::End(_) => "End",
            Self::Applied(_) => "Applied",
            Self::Failed(_) => "Failed",
            Self::Alive => "Alive",
        }
    }

    /// Kind of the frame that carries it.
    #[must_use]
    pub fn kind(&self) -> u8 {
        match self {
            Self::Hello { .. } => kind::HELLO,
            Self::Holds(_) => kind::HOLDS,
            Self::Base(_) => kind::BASE,
            Self::Manifest(_) => kind::MANIFEST,
            Self::ManifestEnd { .. } => kind::MANIFEST_END,
            Self::Delta(_) => kind::DELTA,
            Self::Ask(_) => kind::ASK,
            Self::Blocks(_) => kind::BLOCKS,
            Self::Done => kind::DONE,
            Self::Again { .. } => kind::AGAIN,
            Self::End(_) => kind::END,
            Self::Applied(_) => kind::APPLIED,
            Self::Failed(_) => kind::FAILED,
            Self::Alive => kind::ALIVE,
        }
    }

    /// The frame's body.
    #[must_use]
    pub fn body(&self) -> Bytes {
        let mut out = Vec::new();
        match self {
            Self::Manifest(bytes) | Self::Delta(bytes) => return bytes.clone(),
            Self::Done | Self::Alive => {}
            Self::Hello {
                oldest,
                newest,
                wants,
            } => {
                out.extend_from_slice(MAGIC);
                out.extend_from_slice(&oldest.to_le_bytes());
                out.extend_from_slice(&newest.to_le_bytes());
                out.push(u8::from(wants.frozen) | u8::from(wants.durable) << 1);
            }
            Self::Holds(Holds::Nothing) | Self::Base(Base::Nothing) => out.push(0),
            Self::Holds(Holds::Tree(tree)) | Self::Base(Base::Tree(tree)) => {
                out.push(1);
                out.extend_from_slice(&tree.0);
            }
            Self::Base(Base::Send) => out.push(2),
            Self::ManifestEnd { tree } => out.extend_from_slice(&tree.0),
            Self::Ask(ask) => {
                put_number(&mut out, u64::from(ask.block));
                put_number(&mut out, ask.ranges.len() as u64);
                for range in &ask.ranges {
                    put_bytes(&mut out, &range.path);
                    put_number(&mut out, range.offset);
                    put_number(&mut out, u64::from(range.length));
                }
            }
            Self::Blocks(blocks) => {
                out.reserve(blocks.hashes.len() * 8);
                for hash in &blocks.hashes {
                    out.extend_from_slice(&hash.to_le_bytes());
                }
            }
            Self::Again { paths } => {
                put_number(&mut out, paths.len() as u64);
                for path in paths {
                    put_bytes(&mut out, path);
                }
            }
            Self::End(totals) | Self::Applied(totals) => {
                out.extend_from_slice(&totals.tree.0);
                for number in [
                    totals.entries,
                    totals.bytes,
                    totals.changed_entries,
                    totals.literal_bytes,
                    totals.wire_bytes,
                    totals.unsettled,
                ] {
                    put_number(&mut out, number);
                }
            }
            Self::Failed(fault) => put_fault(&mut out, fault),
        }
        Bytes::from(out)
    }

    /// The message that a frame carries. Operations are not looked at.
    ///
    /// # Errors
    /// The body is not what the kind says.
    pub fn decode(kind: u8, body: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(&body);
        let message = match kind {
            kind::MANIFEST => return Ok(Self::Manifest(body)),
            kind::DELTA => return Ok(Self::Delta(body)),
            kind::HELLO => {
                if reader.take(MAGIC.len())? != MAGIC {
                    return Err(DecodeError::Range("the greeting"));
                }
                let versions = reader.take(4)?;
                // Later versions may append to it.
                let flags = reader.byte()?;
                return Ok(Self::Hello {
                    oldest: u16::from_le_bytes([versions[0], versions[1]]),
                    newest: u16::from_le_bytes([versions[2], versions[3]]),
                    wants: Wants {
                        frozen: flags & 1 != 0,
                        durable: flags & 2 != 0,
                    },
                });
            }
            kind::HOLDS => match reader.byte()? {
                0 => Self::Holds(Holds::Nothing),
                1 => Self::Holds(Holds::Tree(reader.tree_id()?)),
                _ => return Err(DecodeError::Range("what the sink holds")),
            },
            kind::BASE => match reader.byte()? {
                0 => Self::Base(Base::Nothing),
                1 => Self::Base(Base::Tree(reader.tree_id()?)),
                2 => Self::Base(Base::Send),
                _ => return Err(DecodeError::Range("what the delta starts from")),
            },
            kind::MANIFEST_END => Self::ManifestEnd {
                tree: reader.tree_id()?,
            },
            kind::ASK => Self::Ask(ask(&mut reader)?),
            kind::BLOCKS => {
                let (hashes, rest) = reader.take(body.len())?.as_chunks::<8>();
                if !rest.is_empty() {
                    return Err(DecodeError::Truncated);
                }
                if hashes.len() > MAX_BLOCKS {
                    return Err(DecodeError::Range("the number of hashes"));
                }
                Self::Blocks(Blocks {
                    hashes: hashes.iter().map(|hash| u64::from_le_bytes(*hash)).collect(),
                })
            }
            kind::DONE => Self::Done,
            kind::AGAIN => {
                let count = reader.number()?;
                let mut paths = Vec::new();
                for _ in 0..count {
                    paths.push(reader.path()?);
                }
                Self::Again { paths }
            }
            kind::END => Self::End(totals(&mut reader)?),
            kind::APPLIED => Self::Applied(totals(&mut reader)?),
            kind::FAILED => Self::Failed(Box::new(fault(&mut reader)?)),
            kind::ALIVE => Self::Alive,
            kind => {
                return Err(DecodeError::Unknown {
                    what: "message",
                    kind: u64::from(kind),
                });
            }
        };
        reader.end()?;
        Ok(message)
    }
}

fn ask(reader: &mut Reader<'_>) -> Result<Ask, DecodeError> {
    let block = reader.number32("the size of a block")?;
    if !(32..=1 << 20).contains(&block) {
        return Err(DecodeError::Range("the size of a block"));
    }
    let count = reader.number()?;
    if count > MAX_ASK as u64 {
        return Err(DecodeError::Range("the number of ranges"));
    }
    let mut ranges = Vec::new();
    let mut hashes = 0_u64;
    for _ in 0..count {
        let path = reader.path()?;
        let offset = reader.number()?;
        let length = reader.number32("the length of a range")?;
        check_stretch(offset, length, u32::MAX)?;
        hashes += u64::from(length.div_ceil(block));
        ranges.push(AskRange { path, offset, length });
    }
    if hashes > MAX_BLOCKS as u64 {
        return Err(DecodeError::Range("the number of blocks asked for"));
    }
    Ok(Ask { block, ranges })
}

fn totals(reader: &mut Reader<'_>) -> Result<Totals, DecodeError> {
    Ok(Totals {
        tree: reader.tree_id()?,
        entries: reader.number()?,
        bytes: reader.number()?,
        changed_entries: reader.number()?,
        literal_bytes: reader.number()?,
        wire_bytes: reader.number()?,
        unsettled: reader.number()?,
    })
}

fn put_fault(out: &mut Vec<u8>, fault: &Fault) {
    let mut text = |text: &str| put_bytes(out, &text.as_bytes()[..text.len().min(MAX_TEXT)]);
    text(&fault.code);
    text(match fault.kind {
        FaultKind::Environment => "environment",
        FaultKind::Usage => "usage",
        FaultKind::RolledBack => "rolled-back",
        FaultKind::InDoubt => "in-doubt",
        FaultKind::Bug => "bug",
    });
    text(&fault.message);
    text(fault.hint.as_deref().unwrap_or(""));
    text(fault.node.as_deref().unwrap_or(""));
    text(fault.container.as_deref().unwrap_or(""));
    text(fault.path.as_deref().unwrap_or(""));
    for cause in fault.causes.iter().take(MAX_CAUSES) {
        text(cause);
    }
}

fn fault(reader: &mut Reader<'_>) -> Result<Fault, DecodeError> {
    let mut text = || -> Result<String, DecodeError> {
        let bytes = reader.bytes(MAX_TEXT, "the length of a text")?;
        // Control characters of a peer have no business in a terminal.
        Ok(String::from_utf8_lossy(bytes).replace(|c: char| c.is_control(), " "))
    };
    let code = text()?;
    let kind = match text()?.as_str() {
        "usage" => FaultKind::Usage,
        "rolled-back" => FaultKind::RolledBack,
        "in-doubt" => FaultKind::InDoubt,
        "bug" => FaultKind::Bug,
        _ => FaultKind::Environment,
    };
    let mut fault = Fault::new(code, kind, text()?);
    let some = |text: String| (!text.is_empty()).then_some(text);
    fault.hint = some(text()?);
    fault.node = some(text()?);
    fault.container = some(text()?);
    fault.path = some(text()?);
    while !reader.is_empty() {
        if fault.causes.len() == MAX_CAUSES {
            return Err(DecodeError::Range("the number of causes"));
        }
        let bytes = reader.bytes(MAX_TEXT, "the length of a text")?;
        fault
            .causes
            .push(String::from_utf8_lossy(bytes).replace(|c: char| c.is_control(), " "));
    }
    Ok(fault)
}

fn check_stretch(offset: u64, length: u32, most: u32) -> Result<(), DecodeError> {
    if length == 0 || length > most {
        return Err(DecodeError::Range("the length of a stretch"));
    }
    match offset.checked_add(u64::from(length)) {
        Some(end) if end <= MAX_FILE => Ok(()),
        _ => Err(DecodeError::Range("the end of a stretch")),
    }
}

impl Operation {
    /// Appends the operation to the body of a `Delta` frame.
    pub fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Remove { path } => {
                out.push(kind::REMOVE);
                put_bytes(out, path);
            }
            Self::Make(entry) => {
                out.push(kind::MAKE);
                put_entry(out, entry, Extents::Without);
            }
            Self::Attributes(entry) => {
                out.push(kind::ATTRIBUTES);
                put_entry(out, entry, Extents::Without);
            }
            Self::File { entry, write } => {
                out.push(kind::FILE);
                out.push(u8::from(*write == Write::InPlace));
                put_entry(out, entry, Extents::Without);
            }
            Self::Hole { length } => {
                out.push(kind::HOLE);
                put_number(out, *length);
            }
            Self::Data { id, bytes } => {
                put_data_head(out, id, bytes.len());
                out.extend_from_slice(bytes);
            }
            Self::Copy {
                path,
                offset,
                length,
                id,
            } => {
                out.push(kind::COPY);
                put_stretch(out, path, *offset, *length, id);
            }
            Self::Patch {
                path,
                offset,
                length,
                id,
                parts,
            } => {
                out.push(kind::PATCH);
                put_stretch(out, path, *offset, *length, id);
                put_number(out, parts.len() as u64);
                for part in parts {
                    match part {
                        Part::Base { offset, length } => {
                            put_number(out, u64::from(*length) << 1);
                            put_number(out, u64::from(*offset));
                        }
                        Part::Literal(bytes) => {
                            put_number(out, (bytes.len() as u64) << 1 | 1);
                            out.extend_from_slice(bytes);
                        }
                    }
                }
            }
            Self::Keep { length } => {
                out.push(kind::KEEP);
                put_number(out, *length);
            }
            Self::FileEnd => out.push(kind::FILE_END),
            Self::Whole { entry, id, bytes } => put_whole(out, entry, id, bytes),
        }
    }
}

/// Appends a `Whole` without an [`Operation`] around it.
pub fn put_whole(out: &mut Vec<u8>, entry: &Entry, id: &ChunkId, bytes: &[u8]) {
    out.push(kind::WHOLE);
    put_entry(out, entry, Extents::Without);
    out.extend_from_slice(&id.0);
    put_bytes(out, bytes);
}

/// Appends all of a `Data` but its `length` bytes, which have to follow. They can go to the frame from where they are.
pub fn put_data_head(out: &mut Vec<u8>, id: &ChunkId, length: usize) {
    out.push(kind::DATA);
    out.extend_from_slice(&id.0);
    put_number(out, length as u64);
}

fn put_stretch(out: &mut Vec<u8>, path: &[u8], offset: u64, length: u32, id: &ChunkId) {
    put_bytes(out, path);
    put_number(out, offset);
    put_number(out, u64::from(length));
    out.extend_from_slice(&id.0);
}

/// Takes the body of a `Delta` frame apart. Bytes of content stay where they are.
#[must_use]
pub fn operations(body: Bytes) -> Operations {
    Operations { body, at: 0 }
}

/// Operations of one frame. After an error there is nothing more.
#[derive(Debug)]
pub struct Operations {
    body: Bytes,
    at: usize,
}

impl Iterator for Operations {
    type Item = Result<Operation, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.body.len() {
            return None;
        }
        let mut reader = Reader::new(&self.body[self.at..]);
        let operation = operation(&mut reader, &self.body);
        self.at = match operation {
            Ok(_) => self.body.len() - reader.rest().len(),
            Err(_) => self.body.len(),
        };
        Some(operation)
    }
}

fn operation(reader: &mut Reader<'_>, frame: &Bytes) -> Result<Operation, DecodeError> {
    Ok(match reader.byte()? {
        kind::REMOVE => Operation::Remove { path: reader.path()? },
        kind::MAKE => Operation::Make(reader.entry(&[], Extents::Without)?),
        kind::ATTRIBUTES => Operation::Attributes(reader.entry(&[], Extents::Without)?),
        kind::FILE => {
            let write = match reader.byte()? {
                0 => Write::Replace,
                1 => Write::InPlace,
                _ => return Err(DecodeError::Range("how a file is written")),
            };
            let entry = reader.entry(&[], Extents::Without)?;
            Operation::File { entry, write }
        }
        kind::HOLE => Operation::Hole {
            length: span(reader)?,
        },
        kind::DATA => {
            let id = reader.chunk_id()?;
            let bytes = reader.bytes(MAX_CHUNK, "the length of a chunk")?;
            if bytes.is_empty() {
                return Err(DecodeError::Range("the length of a chunk"));
            }
            Operation::Data {
                id,
                bytes: share(frame, bytes),
            }
        }
        kind::COPY => {
            let (path, offset, length, id) = stretch(reader)?;
            Operation::Copy {
                path,
                offset,
                length,
                id,
            }
        }
        kind::PATCH => {
            let (path, offset, length, id) = stretch(reader)?;
            let parts = parts(reader, frame, length)?;
            Operation::Patch {
                path,
                offset,
                length,
                id,
                parts,
            }
        }
        kind::KEEP => Operation::Keep {
            length: span(reader)?,
        },
        kind::FILE_END => Operation::FileEnd,
        kind::WHOLE => {
            let entry = reader.entry(&[], Extents::Without)?;
            let id = reader.chunk_id()?;
            let bytes = share(frame, reader.bytes(MAX_CHUNK, "the length of a chunk")?);
            if bytes.is_empty() && id.0 != [0; DIGEST_LENGTH] {
                return Err(DecodeError::Range("the name of an empty file's chunk"));
            }
            Operation::Whole { entry, id, bytes }
        }
        kind => {
            return Err(DecodeError::Unknown {
                what: "operation",
                kind: u64::from(kind),
            });
        }
    })
}

fn span(reader: &mut Reader<'_>) -> Result<u64, DecodeError> {
    match reader.number()? {
        length @ 1..=MAX_FILE => Ok(length),
        _ => Err(DecodeError::Range("the length of a stretch")),
    }
}

fn stretch(reader: &mut Reader<'_>) -> Result<(Vec<u8>, u64, u32, ChunkId), DecodeError> {
    let path = reader.path()?;
    let offset = reader.number()?;
    let length = reader.number32("the length of a stretch")?;
    check_stretch(offset, length, MAX_CHUNK as u32)?;
    Ok((path, offset, length, reader.chunk_id()?))
}

fn parts(reader: &mut Reader<'_>, frame: &Bytes, base: u32) -> Result<Vec<Part>, DecodeError> {
    let count = reader.number()?;
    let mut parts = Vec::new();
    let mut total = 0_u64;
    for _ in 0..count {
        let number = reader.number()?;
        let length = number >> 1;
        total = total.saturating_add(length);
        if length == 0 || total > MAX_CHUNK as u64 {
            return Err(DecodeError::Range("the length of a patch"));
        }
        parts.push(if number & 1 == 1 {
            Part::Literal(share(frame, reader.take(length as usize)?))
        } else {
            let offset = reader.number()?;
            if offset.checked_add(length).is_none_or(|end| end > u64::from(base)) {
                return Err(DecodeError::Range("a part of a patch"));
            }
            Part::Base {
                offset: offset as u32,
                length: length as u32,
            }
        });
    }
    if total == 0 {
        return Err(DecodeError::Range("the length of a patch"));
    }
    Ok(parts)
}
