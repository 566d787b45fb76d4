//! Bytes of the messages.

use bytes::Bytes;
use tranship_core::fault::{Fault, FaultKind};

use super::operation::check_stretch;
use super::{Ask, AskRange, Base, Blocks, Holds, MAGIC, MAX_ASK, MAX_BLOCKS, Message, Totals, Wants, kind};
use crate::encoding::{DecodeError, Reader, put_bytes, put_number};

/// Bytes of a text of a fault, at most; the rest is cut off.
const MAX_TEXT: usize = 16 << 10;
/// Reasons of a fault, at most.
const MAX_CAUSES: usize = 32;

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
