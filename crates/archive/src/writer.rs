//! Writes archives in one canonical form: a plain ustar header where it can say everything, PAX records for the rest.
//!
//! The same entries give the same bytes. Sparse files are written in GNU's format 1.0.

use std::io::{self, Read, Write};

use tranship_core::fault::Explain;

use crate::acl::Acl;
use crate::entry::{Device, Entry, Kind, MODE_BITS, show};
use crate::error::ReadError;
use crate::header::{self, BLOCK, Block, OCTAL_8, OCTAL_12};
use crate::path::LONGEST_PATH;
use crate::pax;
use crate::reader::Reader;
use crate::sparse::text_of_map;

/// Largest extended header, in bytes; readers refuse larger ones.
const LARGEST_EXTENSION: usize = 1 << 20;
/// Bytes copied at a time.
const CHUNK: usize = 65_536;

/// An archive that could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// An entry that no archive can hold.
    #[error("the entry {} cannot be written: {what}", show(.path))]
    Entry {
        /// Its name.
        path: Vec<u8>,
        /// What is wrong with it.
        what: &'static str,
    },
    /// More or less content than the entry announced.
    #[error("the content of {} is {what} than announced", show(.path))]
    Content {
        /// Its name.
        path: Vec<u8>,
        /// `shorter` or `longer`.
        what: &'static str,
    },
    /// What the content was copied from could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The file that the content comes from could not be read.
    #[error("cannot read the content of {}", show(.path))]
    Source {
        /// Its name.
        path: Vec<u8>,
        /// Why.
        source: io::Error,
    },
    /// The stream could not be written.
    #[error("cannot write the archive")]
    Io(#[from] io::Error),
}

impl Explain for WriteError {
    fn code(&self) -> &'static str {
        match self {
            Self::Entry { .. } => "archive.entry",
            Self::Content { .. } => "archive.content-size",
            Self::Read(error) => error.code(),
            Self::Source { .. } => "archive.source-failed",
            Self::Io(error) if error.kind() == io::ErrorKind::StorageFull => "archive.no-space",
            Self::Io(_) => "archive.write-failed",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Content { .. } => {
                Some("the file changed while it was read; copy it again when nothing writes it".to_owned())
            }
            Self::Read(error) => error.hint(),
            _ => None,
        }
    }
}

/// Writes an archive entry by entry.
pub struct Writer<W> {
    out: W,
    /// The present entry.
    path: Vec<u8>,
    /// Bytes of its content that are still to come.
    left: u64,
    /// Bytes of zeros after them.
    padding: usize,
}

impl<W: Write> Writer<W> {
    /// A writer to this stream, which is best buffered.
    pub fn new(out: W) -> Self {
        Self {
            out,
            path: Vec::new(),
            left: 0,
            padding: 0,
        }
    }

    /// Begins an entry. Its content, [`Entry::stored_size`] bytes, goes to [`Self::write_data`].
    ///
    /// # Errors
    ///
    /// [`WriteError::Entry`] if it cannot be written; [`WriteError::Content`] if content of the entry before is missing.
    pub fn start(&mut self, entry: &Entry) -> Result<(), WriteError> {
        self.end_entry()?;
        let bad = |what| WriteError::Entry {
            path: entry.path.clone(),
            what,
        };
        check(entry).map_err(bad)?;
        let form = Form::of(entry).map_err(bad)?;
        if form.records.len() > LARGEST_EXTENSION {
            return Err(bad("its names and attributes are too large"));
        }
        if !form.records.is_empty() {
            self.out.write_all(&extension_header(entry, form.records.len()))?;
            self.write_padded(&form.records)?;
        }
        self.out.write_all(&form.block)?;
        self.out.write_all(&form.map)?;
        self.path.clone_from(&entry.path);
        self.left = entry.stored_size();
        self.padding = padding(self.left);
        Ok(())
    }

    /// Content of the present entry. Of a sparse file only the bytes of its extents.
    ///
    /// # Errors
    ///
    /// [`WriteError::Content`] if it is more than announced.
    pub fn write_data(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.left = self
            .left
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| self.content("longer"))?;
        self.out.write_all(bytes)?;
        Ok(())
    }

    /// An entry and its content, which must have exactly [`Entry::stored_size`] bytes.
    ///
    /// # Errors
    ///
    /// As [`Self::start`] and [`Self::write_data`]; [`WriteError::Source`] if `data` cannot be read.
    pub fn append(&mut self, entry: &Entry, data: &mut dyn Read) -> Result<(), WriteError> {
        self.start(entry)?;
        let mut buffer = vec![0; CHUNK];
        while self.left > 0 {
            let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            let part = buffer.get_mut(..want).unwrap_or_default();
            match data.read(part) {
                Ok(0) => return Err(self.content("shorter")),
                Ok(got) => self.write_data(part.get(..got).unwrap_or_default())?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(WriteError::Source {
                        path: self.path.clone(),
                        source,
                    });
                }
            }
        }
        self.end_entry()
    }

    /// An entry with the content of the present entry of another archive.
    ///
    /// # Errors
    ///
    /// As [`Self::append`]; [`WriteError::Read`] if the other archive cannot be read.
    pub fn append_from<R: Read>(&mut self, entry: &Entry, from: &mut Reader<R>) -> Result<(), WriteError> {
        self.start(entry)?;
        let mut buffer = vec![0; CHUNK.min(usize::try_from(self.left).unwrap_or(CHUNK))];
        while self.left > 0 {
            match from.read_extent(&mut buffer)? {
                Some(extent) => {
                    let got = usize::try_from(extent.length).unwrap_or(usize::MAX);
                    self.write_data(buffer.get(..got).unwrap_or_default())?;
                }
                None => return Err(self.content("shorter")),
            }
        }
        self.end_entry()
    }

    /// The stream. Whoever writes to it writes into the archive.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Ends the archive and gives the stream back.
    ///
    /// # Errors
    ///
    /// [`WriteError::Content`] if content of the last entry is missing.
    pub fn finish(mut self) -> Result<W, WriteError> {
        self.end_entry()?;
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn end_entry(&mut self) -> Result<(), WriteError> {
        if self.left > 0 {
            return Err(self.content("shorter"));
        }
        let zeros = [0; BLOCK];
        self.out
            .write_all(zeros.get(..self.padding).unwrap_or_default())?;
        self.padding = 0;
        Ok(())
    }

    fn write_padded(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.out.write_all(bytes)?;
        let zeros = [0; BLOCK];
        let padding = padding(bytes.len() as u64);
        self.out.write_all(zeros.get(..padding).unwrap_or_default())?;
        Ok(())
    }

    fn content(&self, what: &'static str) -> WriteError {
        WriteError::Content {
            path: self.path.clone(),
            what,
        }
    }
}

fn padding(size: u64) -> usize {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or_default();
    (BLOCK - over) % BLOCK
}

/// Refuses what would be read differently from what was meant.
fn check(entry: &Entry) -> Result<(), &'static str> {
    let names = match &entry.kind {
        Kind::Symlink { target } | Kind::HardLink { target } => vec![&entry.path, target],
        _ => vec![&entry.path],
    };
    for name in names {
        if name.is_empty() {
            return Err("a name is empty");
        }
        if name.contains(&0) {
            return Err("a name has a NUL byte in it");
        }
        if name.len() > LONGEST_PATH {
            return Err("a name is too long");
        }
    }
    if !entry.kind.is_directory() && entry.path.ends_with(b"/") {
        return Err("only a directory's name may end with a slash");
    }
    if entry.kind != Kind::File && (entry.size > 0 || entry.sparse.is_some()) {
        return Err("only a file has content");
    }
    if entry.size > i64::MAX.unsigned_abs() {
        return Err("it is too large");
    }
    if entry.uid == u32::MAX || entry.gid == u32::MAX {
        return Err("its owner is no number that a file can have");
    }
    if entry.mtime.nanoseconds >= 1_000_000_000 {
        return Err("its time is no time");
    }
    if let Some(map) = &entry.sparse
        && map.extents().last().is_some_and(|last| last.end() > entry.size)
    {
        return Err("its sparse map reaches over its end");
    }
    Ok(())
}

/// The bytes of an entry but for its content.
struct Form {
    records: Vec<u8>,
    block: Block,
    map: Vec<u8>,
}

impl Form {
    fn of(entry: &Entry) -> Result<Self, &'static str> {
        let mut form = Self {
            records: Vec::new(),
            block: [0; BLOCK],
            map: Vec::new(),
        };
        let mut name = entry.path.clone();
        if entry.kind.is_directory() && !name.ends_with(b"/") {
            name.push(b'/');
        }
        let mut stored = entry.stored_size();
        if let Some(map) = entry.sparse.as_ref() {
            form.map = text_of_map(map, entry.size);
            stored += form.map.len() as u64;
            form.sparse_names(&name, entry.size);
        } else {
            form.name(&name);
        }
        let empty = Vec::new();
        let (letter, target) = match &entry.kind {
            Kind::File => (b'0', &empty),
            Kind::HardLink { target } => (b'1', target),
            Kind::Symlink { target } => (b'2', target),
            Kind::CharacterDevice(device) => (b'3', form.device(*device)?),
            Kind::BlockDevice(device) => (b'4', form.device(*device)?),
            Kind::Directory => (b'5', &empty),
            Kind::Fifo => (b'6', &empty),
        };
        if fits(target, header::LINK.1) {
            header::LINK.put(&mut form.block, target);
        } else {
            form.long_text(b"linkpath", target);
            header::LINK.put(&mut form.block, target);
        }
        if let Some(kind) = form.block.get_mut(header::KIND) {
            *kind = letter;
        }
        form.numbers(entry, stored);
        form.attributes(entry);
        header::MAGIC.put(&mut form.block, header::POSIX_MAGIC);
        header::seal(&mut form.block);
        Ok(form)
    }

    fn name(&mut self, name: &[u8]) {
        if fits(name, header::NAME.1) {
            header::NAME.put(&mut self.block, name);
        } else if let Some((prefix, rest)) = split(name) {
            header::PREFIX.put(&mut self.block, prefix);
            header::NAME.put(&mut self.block, rest);
        } else {
            self.long_text(b"path", name);
            header::NAME.put(&mut self.block, name);
        }
    }

    /// The real name goes into a record; readers that do not know the format unpack map and data under another name.
    fn sparse_names(&mut self, name: &[u8], size: u64) {
        let (parent, last) = match name.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => name.split_at_checked(slash + 1).unwrap_or((&[], name)),
            None => (&[][..], name),
        };
        let other = [parent, b"GNUSparseFile.0/", last].concat();
        self.name(&other);
        self.record(b"GNU.sparse.major", b"1");
        self.record(b"GNU.sparse.minor", b"0");
        self.record(b"GNU.sparse.name", name);
        self.record(b"GNU.sparse.realsize", size.to_string().as_bytes());
    }

    /// PAX wants UTF-8. Where that is not what the bytes are, it has to be told.
    fn long_text(&mut self, key: &[u8], text: &[u8]) {
        const BINARY: &[u8] = b"21 hdrcharset=BINARY\n";
        if std::str::from_utf8(text).is_err() && !self.records.starts_with(BINARY) {
            self.records.splice(0..0, BINARY.iter().copied());
        }
        self.record(key, text);
    }

    fn device(&mut self, device: Device) -> Result<&'static Vec<u8>, &'static str> {
        static NO_TARGET: Vec<u8> = Vec::new();
        if u64::from(device.major) > OCTAL_8 || u64::from(device.minor) > OCTAL_8 {
            return Err("its device number is too large");
        }
        header::MAJOR.put_octal(&mut self.block, device.major.into());
        header::MINOR.put_octal(&mut self.block, device.minor.into());
        Ok(&NO_TARGET)
    }

    fn numbers(&mut self, entry: &Entry, stored: u64) {
        header::MODE.put_octal(&mut self.block, u64::from(entry.mode & MODE_BITS));
        let sizes = [
            (&b"size"[..], header::SIZE, stored, OCTAL_12),
            (b"uid", header::UID, entry.uid.into(), OCTAL_8),
            (b"gid", header::GID, entry.gid.into(), OCTAL_8),
        ];
        for (key, field, number, largest) in sizes {
            if number <= largest {
                field.put_octal(&mut self.block, number);
            } else {
                field.put_octal(&mut self.block, 0);
                self.record(key, number.to_string().as_bytes());
            }
        }
        let seconds = u64::try_from(entry.mtime.seconds).unwrap_or(0);
        header::MTIME.put_octal(&mut self.block, seconds.min(OCTAL_12));
        if entry.mtime.nanoseconds > 0 || entry.mtime.seconds < 0 || seconds > OCTAL_12 {
            self.record(b"mtime", entry.mtime.to_string().as_bytes());
        }
    }

    fn attributes(&mut self, entry: &Entry) {
        let lists: [(&[u8], &Option<Acl>); 2] = [
            (pax::ACL_ACCESS, &entry.acl_access),
            (pax::ACL_DEFAULT, &entry.acl_default),
        ];
        for (key, acl) in lists {
            if let Some(acl) = acl {
                self.record(key, &acl.to_text());
            }
        }
        for (name, value) in &entry.xattrs {
            let key = [pax::XATTR, &pax::encode_name(name)].concat();
            self.record(&key, value);
        }
    }

    fn record(&mut self, key: &[u8], value: &[u8]) {
        pax::push(&mut self.records, key, value);
    }
}

/// A header may say it: short enough, and either ASCII or bytes that are no text, for which a record is no better.
fn fits(name: &[u8], width: usize) -> bool {
    name.len() <= width && (name.is_ascii() || std::str::from_utf8(name).is_err())
}

/// Prefix and name, if the name can be split that way.
fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if !name.is_ascii() {
        return None;
    }
    let slash = name
        .iter()
        .take(header::PREFIX.1 + 1)
        // The last byte may be a directory's slash, after which nothing would be left.
        .take(name.len() - 1)
        .rposition(|&byte| byte == b'/')
        .filter(|&slash| slash > 0)?;
    let (prefix, rest) = name.split_at_checked(slash)?;
    let rest = rest.get(1..)?;
    (rest.len() <= header::NAME.1).then_some((prefix, rest))
}

fn extension_header(entry: &Entry, length: usize) -> Block {
    let mut block = [0; BLOCK];
    let last = entry
        .path
        .split(|&byte| byte == b'/')
        .rfind(|component| !component.is_empty())
        .filter(|name| name.is_ascii())
        .unwrap_or(b"entry");
    header::NAME.put(&mut block, &[b"PaxHeaders/", last].concat());
    header::MODE.put_octal(&mut block, 0o644);
    for field in [header::UID, header::GID, header::MTIME] {
        field.put_octal(&mut block, 0);
    }
    header::SIZE.put_octal(&mut block, length as u64);
    if let Some(kind) = block.get_mut(header::KIND) {
        *kind = b'x';
    }
    header::MAGIC.put(&mut block, header::POSIX_MAGIC);
    header::seal(&mut block);
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Time;
    use crate::reader::ReadOptions;
    use crate::sparse::{Extent, SparseMap};

    fn round_trip(entry: &Entry, data: &[u8]) -> (Vec<u8>, Entry, Vec<u8>) {
        let mut writer = Writer::new(Vec::new());
        writer.append(entry, &mut &data[..]).unwrap();
        let bytes = writer.finish().unwrap();
        let mut reader = Reader::new(&bytes[..], ReadOptions::strict());
        let back = reader.next_entry().unwrap().unwrap();
        let mut content = Vec::new();
        reader.data().read_to_end(&mut content).unwrap();
        assert!(reader.next_entry().unwrap().is_none());
        (bytes, back, content)
    }

    #[test]
    fn plain_entries_need_no_extension() {
        let mut entry = Entry::file("a/b", 0o640, 5);
        entry.uid = 1000;
        entry.mtime.seconds = 1_700_000_000;
        let (bytes, back, content) = round_trip(&entry, b"hello");
        assert_eq!((back, &content[..]), (entry, &b"hello"[..]));
        assert_eq!(bytes.len(), 4 * BLOCK);
        let long = format!("{}/{}", "d".repeat(150), "f".repeat(100));
        let (bytes, back, _) = round_trip(&Entry::file(long.clone(), 0, 0), b"");
        assert_eq!((bytes.len(), back.path), (3 * BLOCK, long.into_bytes()));
    }

    #[test]
    fn everything_survives() {
        let mut entry = Entry::file("é".repeat(300), 0o7777, 3);
        entry.uid = u32::MAX - 1;
        entry.gid = 3_000_000;
        entry.mtime = Time {
            seconds: -5,
            nanoseconds: 123_456_789,
        };
        entry.xattrs.insert(b"user.a=b%".to_vec(), b"\0\n=\xff".to_vec());
        entry.xattrs.insert(b"user.empty".to_vec(), Vec::new());
        entry.acl_access = Acl::parse(b"user::rwx,user:7:r--,group::r-x,mask::r-x,other::---");
        assert_eq!(round_trip(&entry, b"abc").1, entry);
        for kind in [
            Kind::Directory,
            Kind::Fifo,
            Kind::Symlink {
                target: b"../x\xff".to_vec(),
            },
            Kind::HardLink {
                target: vec![0xfe; 200],
            },
            Kind::CharacterDevice(Device {
                major: 4095,
                minor: 1_048_575,
            }),
            Kind::BlockDevice(Device { major: 8, minor: 1 }),
        ] {
            let mut name = vec![0xff; 120];
            if kind == Kind::Directory {
                name.push(b'/');
            }
            let entry = Entry::new(name, kind, 0o1755);
            assert_eq!(round_trip(&entry, b"").1, entry);
        }
    }

    #[test]
    fn sparse_files_keep_their_holes() {
        let mut entry = Entry::file("dir/sparse", 0o600, 100_000);
        let extents = [(4096, 3), (50_000, 2)].map(|(offset, length)| Extent { offset, length });
        entry.sparse = Some(SparseMap::new(extents, entry.size).unwrap());
        let (_, back, content) = round_trip(&entry, b"abcde");
        assert_eq!(back, entry);
        assert_eq!(content.len(), 100_000);
        assert_eq!(
            (&content[4096..4099], &content[50_000..50_002]),
            (&b"abc"[..], &b"de"[..])
        );
        assert_eq!(content.iter().filter(|&&byte| byte != 0).count(), 5);
    }

    #[test]
    fn nine_gigabytes_are_announced_in_a_record() {
        let mut entry = Entry::file("large", 0o600, 9 << 30);
        let mut writer = Writer::new(Vec::new());
        writer.start(&entry).unwrap();
        let bytes = std::mem::take(&mut writer.out);
        let mut reader = Reader::new(&bytes[..], ReadOptions::strict());
        assert_eq!(reader.next_entry().unwrap().unwrap().size, 9 << 30);
        entry.sparse = Some(SparseMap::default());
        let mut writer = Writer::new(Vec::new());
        writer.append(&entry, &mut io::empty()).unwrap();
        let bytes = writer.finish().unwrap();
        assert_eq!(bytes.len(), 6 * BLOCK);
        let mut reader = Reader::new(&bytes[..], ReadOptions::strict());
        assert_eq!(reader.next_entry().unwrap().unwrap(), entry);
    }

    #[test]
    fn wrong_content_is_an_error() {
        let entry = Entry::file("f", 0o600, 3);
        let mut writer = Writer::new(Vec::new());
        writer.start(&entry).unwrap();
        assert_eq!(
            writer.write_data(b"abcd").unwrap_err().code(),
            "archive.content-size"
        );
        let mut writer = Writer::new(Vec::new());
        writer.start(&entry).unwrap();
        assert!(writer.start(&entry).is_err());
        assert!(Writer::new(Vec::new()).append(&entry, &mut &b"ab"[..]).is_err());
        for bad in [
            Entry::file("", 0, 0),
            Entry::file("a\0b", 0, 0),
            Entry::file("a/", 0, 0),
            Entry::new("l", Kind::Symlink { target: Vec::new() }, 0),
            Entry {
                size: 1,
                ..Entry::new("d", Kind::Directory, 0)
            },
        ] {
            assert_eq!(
                Writer::new(Vec::new()).start(&bad).unwrap_err().code(),
                "archive.entry"
            );
        }
    }
}
