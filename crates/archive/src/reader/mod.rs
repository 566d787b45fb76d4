//! Reads tar archives as streams: ustar, PAX, GNU long names, sparse files in all four of GNU's formats.
//!
//! Memory is bounded by [`Limits`], whatever the archive says. Whatever tar readers take in different ways is an error: an
//! archive that means one thing here and another there can smuggle files past whoever checked it.

mod interpret;
mod sparse_map;

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read};

use crate::entry::Entry;
use crate::error::{Defect, ReadError};
use crate::header::{self, BLOCK, Block};
use crate::path::TreePath;
use crate::pax::Records;
use crate::sparse::Extent;

/// What an archive may ask for at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries, extended headers not counted.
    pub entries: u64,
    /// Bytes of a name or of a link's target.
    pub name: usize,
    /// Bytes of a PAX header or of a GNU long name.
    pub pax: u64,
    /// Extents of one sparse file.
    pub extents: usize,
}

impl Default for Limits {
    /// A million entries, names of 64 KiB, extended headers of 1 MiB, 262,144 extents.
    fn default() -> Self {
        Self {
            entries: 1_000_000,
            name: 65_536,
            pax: 1 << 20,
            extents: 1 << 18,
        }
    }
}

/// How an archive is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// What it may ask for.
    pub limits: Limits,
    /// Take whatever follows the end of the archive for padding and leave it unread, as docker does. Otherwise only zeros
    /// may follow.
    pub ignore_trailing: bool,
    /// Take the end of the stream between two entries for the end of the archive, as docker does; so an empty stream is an
    /// empty archive.
    pub end_optional: bool,
    /// Take several entries of one name, of which the last wins, as docker and tar do. Otherwise names are remembered, in
    /// 16 bytes each.
    pub allow_duplicates: bool,
}

impl ReadOptions {
    /// Nothing is taken on trust: the archive has to have its end, nothing after it, and no name twice.
    #[must_use]
    pub fn strict() -> Self {
        Self::default()
    }

    /// What docker takes from users: no end, trailing bytes, and names twice.
    #[must_use]
    pub fn like_docker() -> Self {
        Self {
            ignore_trailing: true,
            end_optional: true,
            allow_duplicates: true,
            ..Self::default()
        }
    }
}

/// Reads an archive entry by entry.
pub struct Reader<R> {
    inner: R,
    options: ReadOptions,
    /// Bytes read so far.
    position: u64,
    /// Where the header of the present entry begins.
    header_at: u64,
    global: Records,
    entries: u64,
    state: State,
    names: Names,
    content: Content,
}

/// How far an archive is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Ended,
    Failed,
}

/// What is left of the present entry's content.
#[derive(Default)]
struct Content {
    /// Bytes in the archive, padding not counted.
    stored: u64,
    /// Bytes after them to the next header.
    padding: u64,
    /// Extents that are not read yet, in reverse; the present one shrinks.
    extents: Vec<Extent>,
    /// The next byte of the file that [`Data`] gives.
    position: u64,
    /// The size of the file.
    size: u64,
}

/// Names seen, as two independent hashes with a random key each: an archive cannot be made to collide.
pub(crate) struct Names {
    seen: HashSet<(u64, u64)>,
    keys: (RandomState, RandomState),
}

impl Names {
    pub(crate) fn new() -> Self {
        Self {
            seen: HashSet::new(),
            keys: (RandomState::new(), RandomState::new()),
        }
    }

    fn key(&self, name: &[u8]) -> (u64, u64) {
        (self.keys.0.hash_one(name), self.keys.1.hash_one(name))
    }

    /// Notes a name; false if it was there.
    pub(crate) fn insert(&mut self, name: &[u8]) -> bool {
        let key = self.key(name);
        self.seen.insert(key)
    }

    pub(crate) fn remove(&mut self, name: &[u8]) {
        let key = self.key(name);
        self.seen.remove(&key);
    }

    pub(crate) fn contains(&self, name: &[u8]) -> bool {
        self.seen.contains(&self.key(name))
    }
}

/// Extended headers before an entry.
#[derive(Default)]
struct Extensions {
    records: Option<Records>,
    gnu_name: Option<Vec<u8>>,
    gnu_link: Option<Vec<u8>>,
}

impl Extensions {
    fn any(&self) -> bool {
        self.records.is_some() || self.gnu_name.is_some() || self.gnu_link.is_some()
    }
}

impl<R: Read> Reader<R> {
    /// A reader of this stream, which is best buffered.
    pub fn new(inner: R, options: ReadOptions) -> Self {
        Self {
            inner,
            options,
            position: 0,
            header_at: 0,
            global: Records::default(),
            entries: 0,
            state: State::Open,
            names: Names::new(),
            content: Content::default(),
        }
    }

    /// The next entry, or none at the end. What was not read of the content of the one before is passed over.
    ///
    /// # Errors
    ///
    /// [`ReadError`]; after one, the archive cannot be read on.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ReadError> {
        match self.state {
            State::Open => {}
            State::Ended => return Ok(None),
            State::Failed => return Err(Defect::AfterError.at(self.header_at)),
        }
        // An error must be followed neither by a guess at what comes next nor by what looks like an end.
        self.state = State::Failed;
        self.skip_content()?;
        self.header_at = self.position;
        let entry = self.read_entry()?;
        self.state = if entry.is_some() {
            State::Open
        } else {
            State::Ended
        };
        Ok(entry)
    }

    /// Reads data of the present entry: fills the beginning of `buffer` with bytes that stand together in the file, and says
    /// which. None at the end. Holes are left out.
    ///
    /// # Errors
    ///
    /// [`ReadError`] if the stream fails or ends.
    pub fn read_extent(&mut self, buffer: &mut [u8]) -> Result<Option<Extent>, ReadError> {
        let Some(next) = self.content.extents.last_mut() else {
            return Ok(None);
        };
        let want = buffer
            .len()
            .min(usize::try_from(next.length).unwrap_or(usize::MAX));
        let offset = next.offset;
        let part = buffer.get_mut(..want).unwrap_or_default();
        let got = match self.inner.read(part) {
            Ok(0) if want > 0 => return Err(self.cut_off("an entry's content")),
            Ok(got) => got as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(self.failed(error)),
        };
        self.position += got;
        self.content.stored = self.content.stored.saturating_sub(got);
        if let Some(next) = self.content.extents.last_mut() {
            next.offset += got;
            next.length = next.length.saturating_sub(got);
            if next.length == 0 {
                self.content.extents.pop();
            }
        }
        Ok(Some(Extent { offset, length: got }))
    }

    /// The content of the present entry with zeros for holes.
    pub fn data(&mut self) -> Data<'_, R> {
        Data(self)
    }

    /// Bytes of the archive read so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The stream, wherever reading stopped.
    pub fn into_inner(self) -> R {
        self.inner
    }

    fn read_entry(&mut self) -> Result<Option<Entry>, ReadError> {
        let mut extensions = Extensions::default();
        loop {
            let at = self.position;
            let Some(block) = self.read_header(&extensions)? else {
                return Ok(None);
            };
            let fail = |defect: Defect| defect.at(at);
            header::verify(&block).map_err(fail)?;
            let size = header::unsigned(header::SIZE.of(&block), "size").map_err(fail)?;
            let kind = block.get(header::KIND).copied().unwrap_or_default();
            if matches!(kind, b'g' | b'x' | b'L' | b'K') {
                interpret::check_extension(&block).map_err(fail)?;
            }
            match kind {
                b'g' if extensions.any() => {
                    return Err(fail(Defect::DanglingExtension {
                        followed_by: "a global extended header",
                    }));
                }
                b'g' => {
                    let records = Records::parse(&self.read_extension(size)?).map_err(fail)?;
                    records.check_global().map_err(fail)?;
                    self.global = records.over(&self.global);
                }
                b'x' if extensions.records.is_some() => return Err(fail(Defect::DuplicateExtension)),
                b'x' => {
                    let records = Records::parse(&self.read_extension(size)?).map_err(fail)?;
                    extensions.records = Some(records);
                }
                b'L' | b'K' => {
                    let bytes = self.read_extension(size)?;
                    let name = header::text(&bytes).map_err(fail)?.to_vec();
                    let slot = if kind == b'L' {
                        &mut extensions.gnu_name
                    } else {
                        &mut extensions.gnu_link
                    };
                    if slot.replace(name).is_some() {
                        return Err(fail(Defect::DuplicateExtension));
                    }
                }
                _ => return self.finish_entry(&block, size, &extensions).map(Some),
            }
        }
    }

    /// Makes an entry of its header and what stood before it, and gets ready to read the content.
    fn finish_entry(
        &mut self,
        block: &Block,
        size: u64,
        extensions: &Extensions,
    ) -> Result<Entry, ReadError> {
        let at = self.header_at;
        self.entries += 1;
        let limits = self.options.limits;
        if self.entries > limits.entries {
            return Err(Defect::TooManyEntries {
                limit: limits.entries,
            }
            .at(at));
        }
        let own = extensions.records.clone().unwrap_or_default();
        let records = own.over(&self.global);
        let mut raw = interpret::entry(block, size, extensions, &records, limits).map_err(|d| d.at(at))?;
        let named = |error: ReadError| ReadError {
            path: Some(raw.entry.path.clone()),
            ..error
        };
        let mut stored = raw.stored;
        let padding = padding_of(stored);
        if let Some(form) = raw.sparse.take() {
            let (map, size, used) = self.read_sparse(block, form, stored).map_err(named)?;
            stored -= used;
            if map.stored() != stored {
                return Err(named(
                    Defect::Sparse {
                        what: "its extents and the content differ in size",
                    }
                    .at(at),
                ));
            }
            raw.entry.size = size;
            raw.entry.sparse = Some(map);
        }
        let mut entry = raw.entry;
        if !self.options.allow_duplicates {
            // What is no path is the business of whoever makes one of the name; here it only has to be told apart.
            let name =
                TreePath::of_entry(&entry.path).map_or(entry.path.clone(), |path| path.as_bytes().to_vec());
            if !self.names.insert(&name) {
                return Err(ReadError {
                    path: Some(entry.path),
                    ..Defect::DuplicateEntry.at(at)
                });
            }
        }
        records.attributes(&mut entry).map_err(|defect| ReadError {
            path: Some(entry.path.clone()),
            ..defect.at(at)
        })?;
        let mut extents = match &entry.sparse {
            Some(map) => map.extents().to_vec(),
            None if entry.size > 0 => vec![Extent {
                offset: 0,
                length: entry.size,
            }],
            None => Vec::new(),
        };
        extents.reverse();
        self.content = Content {
            stored,
            padding,
            extents,
            position: 0,
            size: entry.size,
        };
        Ok(entry)
    }

    /// The next header, or none at the end of the archive.
    fn read_header(&mut self, extensions: &Extensions) -> Result<Option<Block>, ReadError> {
        let at = self.position;
        let dangling = |followed_by| Err(Defect::DanglingExtension { followed_by }.at(at));
        let Some(block) = self.read_block("a header")? else {
            return match extensions.any() {
                true => dangling("the end of the stream"),
                false if self.options.end_optional => Ok(None),
                false => Err(Defect::Truncated {
                    what: "the list of entries: its end is missing",
                }
                .at(at)),
            };
        };
        if block.iter().any(|&byte| byte != 0) {
            return Ok(Some(block));
        }
        if extensions.any() {
            return dangling("the end of the archive");
        }
        match self.read_block("the end")? {
            Some(second) if second.iter().all(|&byte| byte == 0) => {}
            Some(_) => return Err(Defect::LoneZeroBlock.at(at)),
            None if self.options.end_optional => return Ok(None),
            None => return Err(Defect::Truncated { what: "its end" }.at(at)),
        }
        if !self.options.ignore_trailing {
            self.read_trailing()?;
        }
        Ok(None)
    }

    fn read_trailing(&mut self) -> Result<(), ReadError> {
        let mut buffer = [0; 8192];
        loop {
            let got = match self.inner.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.failed(error)),
            };
            if buffer.iter().take(got).any(|&byte| byte != 0) {
                return Err(Defect::TrailingData.at(self.position));
            }
            self.position += got as u64;
        }
    }

    /// One block; none if the stream ends before it.
    fn read_block(&mut self, what: &'static str) -> Result<Option<Block>, ReadError> {
        let mut block = [0; BLOCK];
        let got = self.fill(&mut block)?;
        match got {
            BLOCK => Ok(Some(block)),
            0 => Ok(None),
            _ => Err(self.cut_off(what)),
        }
    }

    /// The content of an extended header.
    fn read_extension(&mut self, size: u64) -> Result<Vec<u8>, ReadError> {
        let limit = self.options.limits.pax;
        let length = match usize::try_from(size) {
            Ok(length) if size <= limit => length,
            _ => return Err(Defect::PaxTooLarge { limit }.at(self.header_at)),
        };
        let mut bytes = vec![0; length.next_multiple_of(BLOCK)];
        let got = self.fill(&mut bytes)?;
        if got < bytes.len() {
            return Err(self.cut_off("an extended header"));
        }
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Fills the buffer as far as the stream goes.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, ReadError> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..)
            && !rest.is_empty()
        {
            match self.inner.read(rest) {
                Ok(0) => break,
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        self.position += filled as u64;
        Ok(filled)
    }

    fn skip_content(&mut self) -> Result<(), ReadError> {
        let mut left = self.content.stored + self.content.padding;
        let mut buffer = [0; 16_384];
        while left > 0 {
            let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = self.fill(buffer.get_mut(..want).unwrap_or_default())?;
            if got < want {
                return Err(self.cut_off("an entry's content"));
            }
            left -= got as u64;
        }
        self.content = Content::default();
        Ok(())
    }

    fn cut_off(&self, what: &'static str) -> ReadError {
        Defect::Truncated { what }.at(self.header_at)
    }

    fn failed(&self, error: io::Error) -> ReadError {
        Defect::Io(error).at(self.header_at)
    }
}

fn padding_of(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// The content of an entry, with zeros for holes.
pub struct Data<'a, R>(&'a mut Reader<R>);

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let content = &self.0.content;
        let (position, size) = (content.position, content.size);
        // Where the next data begins; the end of the file if there is none.
        let next = content.extents.last().map_or(size, |extent| extent.offset);
        let got = if position < next {
            let hole = usize::try_from(next - position).unwrap_or(usize::MAX);
            let part = buffer.get_mut(..hole.min(buffer.len())).unwrap_or_default();
            part.fill(0);
            part.len() as u64
        } else if position >= size || buffer.is_empty() {
            0
        } else {
            loop {
                match self.0.read_extent(buffer)? {
                    Some(Extent { length: 0, .. }) => {}
                    Some(extent) => break extent.length,
                    None => break 0,
                }
            }
        };
        self.0.content.position += got;
        usize::try_from(got).map_err(io::Error::other)
    }
}
