//! Archives on their way: decompressed, filtered, renamed, given to another owner.

use std::io::{BufReader, Read, Write};

use tranship_archive::compression::{DecodeOptions, Decoder};
use tranship_archive::filter::FilterSpec;
use tranship_archive::path::TreePath;
use tranship_archive::reader::{ReadOptions, Reader};
use tranship_archive::writer::Writer;
use tranship_core::Fault;
use tranship_core::fault::FaultKind;

use super::bridge::{self, Pieces};
use super::{Owner, Unpacked};

/// The archive with all files empty: the engine gives whole ones only, and their content is not to travel.
///
/// # Errors
/// What is wrong with the archive.
pub(super) async fn headers_only(pieces: Pieces) -> Result<Pieces, Fault> {
    let from = bridge::reader(pieces);
    bridge::writer(move |out| {
        let mut reader = open(from)?;
        let mut writer = Writer::new(out);
        while let Some(mut entry) = reader.next_entry()? {
            entry.size = 0;
            entry.sparse = None;
            writer.start(&entry)?;
        }
        writer.finish()?;
        Ok(())
    })
    .await
}

/// A reader of an archive as users send it: of any format that is known.
///
/// # Errors
/// What the stream says.
pub fn open<R: Read>(from: R) -> Result<Reader<BufReader<Decoder<R>>>, Fault> {
    let decoder = Decoder::new(from, DecodeOptions::default())?;
    let buffered = BufReader::with_capacity(65_536, decoder);
    Ok(Reader::new(buffered, ReadOptions::like_docker()))
}

/// Copies an archive, which may be compressed, entry by entry.
///
/// # Errors
/// What is wrong with the archive; what the writer says.
pub fn rewrite<R: Read, W: Write>(
    from: R,
    to: W,
    spec: &FilterSpec,
    owner: Option<Owner>,
) -> Result<Unpacked, Fault> {
    rewrite_checked(from, to, spec, owner, |_| Ok(()))
}

/// The same, where each new name may be refused.
pub(crate) fn rewrite_checked<R: Read, W: Write>(
    from: R,
    to: W,
    spec: &FilterSpec,
    owner: Option<Owner>,
    mut check: impl FnMut(&TreePath) -> Result<(), Fault>,
) -> Result<Unpacked, Fault> {
    let mut reader = open(from)?;
    let mut writer = Writer::new(to);
    let mut done = Unpacked::default();
    while let Some(entry) = reader.next_entry()? {
        let Some(mut entry) = spec.apply(&entry)? else {
            continue;
        };
        check(&TreePath::of_entry(&entry.path)?)?;
        if let Some(owner) = owner {
            (entry.uid, entry.gid) = (owner.uid, owner.gid);
        }
        writer.append_from(&entry, &mut reader)?;
        done.entries += 1;
        done.bytes += entry.stored_size();
    }
    let mut out = writer.finish()?;
    out.flush()
        .map_err(|e| Fault::new("archive.write", FaultKind::Environment, e.to_string()))?;
    Ok(done)
}
