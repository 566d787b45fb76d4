//! From a header and its extensions to an entry.

use crate::entry::{Device, Entry, Kind, MODE_BITS, Time};
use crate::error::Defect;
use crate::header::{self, Block, Format};
use crate::path::LONGEST_PATH;
use crate::pax::Records;
use crate::reader::{Extensions, Limits};
use crate::sparse::decimal;

/// An entry whose sparse map, if it has one, is still to be read.
pub(super) struct RawEntry {
    pub(super) entry: Entry,
    /// Bytes of content in the archive.
    pub(super) stored: u64,
    pub(super) sparse: Option<SparseForm>,
}

/// Where the sparse map is.
pub(super) enum SparseForm {
    /// In the header and blocks after it.
    OldGnu,
    /// In PAX records; extents and the size.
    Records { pairs: Vec<(u64, u64)>, size: u64 },
    /// At the beginning of the content.
    Content { size: u64 },
}

pub(super) fn entry(
    block: &Block,
    header_size: u64,
    extensions: &Extensions,
    records: &Records,
    limits: Limits,
) -> Result<RawEntry, Defect> {
    let letter = block.get(header::KIND).copied().unwrap_or_default();
    let header_name = header::name(block)?;
    let sparse = sparse_form(letter, records, limits)?;
    let path = path(&header_name, extensions, records, limits)?;
    let stored = size(header_size, records)?;
    let directory = path.ends_with(b"/");
    // Of an entry without a type, some readers judge the name in the header, others the one that counts.
    if letter == 0 && header_name.ends_with(b"/") != directory {
        return Err(Defect::AmbiguousKind);
    }
    let kind = match letter {
        0 if directory => Kind::Directory,
        0 | b'0' | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink {
            target: target(block, extensions, records, limits)?,
        },
        b'2' => Kind::Symlink {
            target: target(block, extensions, records, limits)?,
        },
        b'3' => Kind::CharacterDevice(device(block)?),
        b'4' => Kind::BlockDevice(device(block)?),
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        _ => {
            return Err(Defect::UnsupportedKind {
                kind: char::from(letter),
            });
        }
    };
    if directory && !kind.is_directory() {
        return Err(Defect::AmbiguousKind);
    }
    if stored > 0
        && let Some(kind) = without_content(&kind)
    {
        return Err(Defect::UnexpectedSize { kind, size: stored });
    }
    if sparse.is_some() && kind != Kind::File {
        return Err(Defect::Sparse {
            what: "only a file has one",
        });
    }
    let mut entry = Entry::new(path, kind, 0);
    entry.mode = u32::try_from(header::unsigned(header::MODE.of(block), "mode")?)
        .map_err(|_| Defect::NumberRange { what: "mode" })?
        & MODE_BITS;
    entry.uid = owner(records, b"uid", block, header::UID, "owner")?;
    entry.gid = owner(records, b"gid", block, header::GID, "group")?;
    // The header's own time has to be one even if another counts: other readers stop there.
    let seconds = header::number(header::MTIME.of(block), "time of change")?;
    entry.mtime = match records.get(b"mtime") {
        Some(text) => Time::parse(text).ok_or(Defect::Number {
            what: "time of change",
        })?,
        None => Time {
            seconds,
            nanoseconds: 0,
        },
    };
    check_unused(block)?;
    if entry.kind == Kind::File {
        entry.size = stored;
    }
    Ok(RawEntry {
        entry,
        stored,
        sparse,
    })
}

/// Refuses what other readers stumble over in the header of an extension, though it means nothing.
pub(super) fn check_extension(block: &Block) -> Result<(), Defect> {
    header::name(block)?;
    header::unsigned(header::MODE.of(block), "mode")?;
    header::number(header::UID.of(block), "owner")?;
    header::number(header::GID.of(block), "group")?;
    header::number(header::MTIME.of(block), "time of change")?;
    check_unused(block)
}

/// Device numbers are read by others even where there is no device.
fn check_unused(block: &Block) -> Result<(), Defect> {
    if header::format(block) != Format::V7 {
        header::number(header::MAJOR.of(block), "device number")?;
        header::number(header::MINOR.of(block), "device number")?;
    }
    Ok(())
}

fn without_content(kind: &Kind) -> Option<&'static str> {
    match kind {
        Kind::File => None,
        Kind::Directory => Some("directory"),
        Kind::Symlink { .. } => Some("symbolic link"),
        Kind::HardLink { .. } => Some("hard link"),
        Kind::Fifo => Some("named pipe"),
        Kind::CharacterDevice(_) | Kind::BlockDevice(_) => Some("device"),
    }
}

fn owner(
    records: &Records,
    key: &[u8],
    block: &Block,
    field: header::Field,
    what: &'static str,
) -> Result<u32, Defect> {
    let header = header::number(field.of(block), what)?;
    match records.get(key) {
        Some(text) if text.starts_with(b"-") => Err(Defect::NumberRange { what }),
        Some(text) => checked_id(decimal(text).ok_or(Defect::Number { what })?, what),
        None => {
            let header = u64::try_from(header).map_err(|_| Defect::NumberRange { what })?;
            checked_id(header, what)
        }
    }
}

/// A number that fits 32 bits and is not the "leave it" of system calls.
fn checked_id(number: u64, what: &'static str) -> Result<u32, Defect> {
    u32::try_from(number)
        .ok()
        .filter(|&id| id != u32::MAX)
        .ok_or(Defect::NumberRange { what })
}

/// The size of the content in the archive. A size in a PAX record is for what the header cannot say; where the header says
/// something, both have to agree.
fn size(header: u64, records: &Records) -> Result<u64, Defect> {
    let Some(text) = records.get(b"size") else {
        return Ok(header);
    };
    if text.starts_with(b"-") {
        return Err(Defect::NumberRange { what: "size" });
    }
    if !text.iter().all(u8::is_ascii_digit) {
        return Err(Defect::Number { what: "size" });
    }
    let extended = decimal(text).ok_or(Defect::NumberRange { what: "size" })?;
    if header == extended || (header == 0 && extended > header::OCTAL_12) {
        Ok(extended)
    } else {
        Err(Defect::SizeDisagrees { header, extended })
    }
}

fn path(
    header_name: &[u8],
    extensions: &Extensions,
    records: &Records,
    limits: Limits,
) -> Result<Vec<u8>, Defect> {
    let extended = one_of(extensions.gnu_name.as_deref(), records.get(b"path"))?;
    // A sparse file stands under a made-up name for readers that do not know what it is.
    let name = records
        .get(b"GNU.sparse.name")
        .or(extended)
        .unwrap_or(header_name);
    checked_name(name, "name", limits)
}

fn target(
    block: &Block,
    extensions: &Extensions,
    records: &Records,
    limits: Limits,
) -> Result<Vec<u8>, Defect> {
    let extended = one_of(extensions.gnu_link.as_deref(), records.get(b"linkpath"))?;
    let name = match extended {
        Some(name) => name,
        None => header::text(header::LINK.of(block))?,
    };
    checked_name(name, "target of the link", limits)
}

fn one_of<'a>(gnu: Option<&'a [u8]>, pax: Option<&'a [u8]>) -> Result<Option<&'a [u8]>, Defect> {
    match (gnu, pax) {
        (Some(gnu), Some(pax)) if gnu != pax => Err(Defect::NameDisagrees),
        (gnu, pax) => Ok(gnu.or(pax)),
    }
}

fn checked_name(name: &[u8], what: &'static str, limits: Limits) -> Result<Vec<u8>, Defect> {
    let limit = limits.name.min(LONGEST_PATH);
    if name.is_empty() {
        Err(Defect::EmptyName { what })
    } else if name.contains(&0) {
        Err(Defect::NulInName)
    } else if name.len() > limit {
        Err(Defect::NameTooLong { limit })
    } else {
        Ok(name.to_vec())
    }
}

fn device(block: &Block) -> Result<Device, Defect> {
    if header::format(block) == Format::V7 {
        return Err(Defect::Number {
            what: "device number",
        });
    }
    let part = |field: header::Field| {
        let number = header::unsigned(field.of(block), "device number")?;
        u32::try_from(number).map_err(|_| Defect::NumberRange {
            what: "device number",
        })
    };
    Ok(Device {
        major: part(header::MAJOR)?,
        minor: part(header::MINOR)?,
    })
}

/// Which sparse format an entry is in, if any.
fn sparse_form(letter: u8, records: &Records, limits: Limits) -> Result<Option<SparseForm>, Defect> {
    let wrong = |what| Err(Defect::Sparse { what });
    let get = |key: &str| records.get(format!("GNU.sparse.{key}").as_bytes());
    let any = records.keys_below(b"GNU.sparse.").next().is_some() || !records.sparse_pairs.is_empty();
    let known = |key: &[u8]| {
        matches!(
            key,
            b"major" | b"minor" | b"name" | b"realsize" | b"size" | b"numblocks" | b"map"
        )
    };
    if records.keys_below(b"GNU.sparse.").any(|(key, _)| !known(key)) {
        return wrong("it has an unknown key");
    }
    if letter == b'S' {
        return if any {
            wrong("there are two of different formats")
        } else {
            Ok(Some(SparseForm::OldGnu))
        };
    }
    if !any {
        return Ok(None);
    }
    let number = |key: &str| match get(key) {
        Some(text) => decimal(text).map(Some).ok_or(Defect::Sparse {
            what: "a number is malformed",
        }),
        None => Ok(None),
    };
    match (number("major")?, number("minor")?) {
        (Some(1), Some(0)) => {
            if number("numblocks")?.is_some() || get("map").is_some() || !records.sparse_pairs.is_empty() {
                return wrong("it mixes two formats");
            }
            let (real, other) = (number("realsize")?, number("size")?);
            return match (real, other) {
                (Some(size), None) => Ok(Some(SparseForm::Content { size })),
                (Some(size), Some(other)) if size == other => Ok(Some(SparseForm::Content { size })),
                _ => wrong("it does not say the size of the file, or says two"),
            };
        }
        (None, None) | (Some(0), Some(0 | 1)) => {}
        _ => return wrong("its version is unknown"),
    }
    let size = match (number("size")?, number("realsize")?) {
        (Some(size), None) | (None, Some(size)) => size,
        (Some(size), Some(other)) if size == other => size,
        _ => return wrong("it does not say the size of the file, or says two"),
    };
    let mut pairs = Vec::new();
    match (get("map"), records.sparse_pairs.is_empty()) {
        (Some(_), false) => return wrong("it mixes two formats"),
        (Some(map), true) => {
            let mut numbers = map.split(|&byte| byte == b',');
            while let Some(offset) = numbers.next() {
                let Some(length) = numbers.next() else {
                    return wrong("an offset has no length");
                };
                pairs.push((offset.to_vec(), length.to_vec()));
                if pairs.len() > limits.extents {
                    return Err(Defect::SparseTooLarge {
                        limit: limits.extents,
                    });
                }
            }
        }
        (None, _) => pairs.clone_from(&records.sparse_pairs),
    }
    if pairs.len() > limits.extents {
        return Err(Defect::SparseTooLarge {
            limit: limits.extents,
        });
    }
    if number("numblocks")? != Some(pairs.len() as u64) {
        return wrong("the number of extents is not what it says");
    }
    let pairs: Option<Vec<(u64, u64)>> = pairs
        .iter()
        .map(|(offset, length)| Some((decimal(offset)?, decimal(length)?)))
        .collect();
    match pairs {
        Some(pairs) => Ok(Some(SparseForm::Records { pairs, size })),
        None => wrong("a number is malformed"),
    }
}
