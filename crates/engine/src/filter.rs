//! Leaves entries out of a tar that streams by, holding no more of it than one header and its extensions.
//!
//! Used on the answer of `docker save`, which always has all layers. The bytes of everything that stays are passed on
//! as they are.

use bytes::{Buf as _, Bytes, BytesMut};

/// Block of a tar, in bytes.
const BLOCK: usize = 512;

/// Most that the extended headers of one entry may hold, in bytes.
const LARGEST_EXTENSION: u64 = 1 << 20;

/// Why a stream is not a tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotATar(pub(crate) String);

/// The filter.
pub(crate) struct TarFilter<F> {
    leave_out: F,
    state: State,
    /// Beginning of a header or an extension that has not come whole.
    pending: BytesMut,
    /// Extended headers that belong to the next entry, as they came.
    extensions: BytesMut,
    long_name: Option<Vec<u8>>,
    size: Option<u64>,
    /// Blocks of zeros in a row; two of them end an archive.
    zeros: u8,
    marked: bool,
}

enum State {
    Header,
    /// Content and padding of an extended header: length of the content, length with padding, type.
    Extension(usize, usize, u8),
    /// Content and padding of an entry: bytes to come, and whether they pass.
    Content(u64, bool),
}

impl<F: FnMut(&[u8]) -> bool> TarFilter<F> {
    /// `leave_out` is asked with the name of every entry.
    pub(crate) fn new(leave_out: F) -> Self {
        Self {
            leave_out,
            state: State::Header,
            pending: BytesMut::new(),
            extensions: BytesMut::new(),
            long_name: None,
            size: None,
            zeros: 0,
            marked: false,
        }
    }

    /// The stream is whole only with the mark that ends an archive. An engine that fails between two entries leaves it
    /// out, and ends its answer otherwise as if nothing had been.
    pub(crate) fn with_end_mark(mut self) -> Self {
        self.marked = true;
        self
    }

    /// Takes in the next piece and appends what stays to `out`.
    pub(crate) fn push(&mut self, mut piece: Bytes, out: &mut Vec<Bytes>) -> Result<(), NotATar> {
        while !piece.is_empty() {
            match self.state {
                State::Content(left, passes) => {
                    let now = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let content = piece.split_to(now);
                    if passes {
                        out.push(content);
                    }
                    self.state = match left - now as u64 {
                        0 => State::Header,
                        left => State::Content(left, passes),
                    };
                }
                State::Header => {
                    if self.fill(&mut piece, BLOCK) {
                        self.header(out)?;
                    }
                }
                State::Extension(length, padded, kind) => {
                    if self.fill(&mut piece, padded) {
                        self.extension(length, kind)?;
                        self.state = State::Header;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the stream may end here.
    pub(crate) fn is_complete(&self) -> bool {
        let between = matches!(self.state, State::Header);
        let ended = !self.marked || self.zeros > 1;
        between && ended && self.pending.is_empty() && self.extensions.is_empty()
    }

    /// Collects up to `length` bytes; true when they are there.
    fn fill(&mut self, piece: &mut Bytes, length: usize) -> bool {
        let now = piece.len().min(length - self.pending.len());
        self.pending.extend_from_slice(&piece[..now]);
        piece.advance(now);
        self.pending.len() == length
    }

    fn header(&mut self, out: &mut Vec<Bytes>) -> Result<(), NotATar> {
        let block = self.pending.split().freeze();
        if block.iter().all(|b| *b == 0) {
            self.zeros = self.zeros.saturating_add(1);
            out.push(block);
            return Ok(());
        }
        self.zeros = 0;
        let mut header = tar::Header::new_old();
        header.as_mut_bytes().copy_from_slice(&block);
        let sum: u32 = (block.iter().enumerate())
            .map(|(at, b)| {
                if (148..156).contains(&at) {
                    32
                } else {
                    u32::from(*b)
                }
            })
            .sum();
        let bad = |error: std::io::Error| NotATar(error.to_string());
        if header.cksum().map_err(bad)? != sum {
            return Err(NotATar("a header's checksum is wrong".into()));
        }
        let size = header.entry_size().map_err(bad)?;
        let kind = header.entry_type();
        if kind.is_pax_local_extensions() || kind.is_gnu_longname() || kind.is_gnu_longlink() {
            let held = self.extensions.len() as u64;
            if size.saturating_add(held) > LARGEST_EXTENSION {
                return Err(NotATar(format!("an extended header of {size} bytes")));
            }
            // Bounded just above.
            let length = usize::try_from(size).unwrap_or_default();
            self.extensions.extend_from_slice(&block);
            if length > 0 {
                self.state = State::Extension(length, length.next_multiple_of(BLOCK), kind.as_byte());
            }
            return Ok(());
        }
        let size = self.size.take().unwrap_or(size);
        let name = self
            .long_name
            .take()
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let passes = !(self.leave_out)(&name);
        let extensions = self.extensions.split().freeze();
        if passes {
            if !extensions.is_empty() {
                out.push(extensions);
            }
            out.push(block);
        }
        let padded = size
            .checked_next_multiple_of(BLOCK as u64)
            .ok_or_else(|| NotATar("an entry larger than anything".into()))?;
        if padded > 0 {
            self.state = State::Content(padded, passes);
        }
        Ok(())
    }

    fn extension(&mut self, length: usize, kind: u8) -> Result<(), NotATar> {
        let block = self.pending.split();
        self.extensions.extend_from_slice(&block);
        let content = &block[..length];
        match kind {
            b'L' => {
                let end = content.iter().position(|b| *b == 0).unwrap_or(content.len());
                self.long_name = Some(content[..end].to_vec());
            }
            b'x' => {
                for record in tar::PaxExtensions::new(content) {
                    let record = record.map_err(|error| NotATar(error.to_string()))?;
                    match record.key_bytes() {
                        b"path" => self.long_name = Some(record.value_bytes().to_vec()),
                        b"size" => {
                            let size = record.value().ok().and_then(|text| text.parse().ok());
                            self.size = Some(size.ok_or_else(|| NotATar("a size that is no number".into()))?);
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read as _;

    fn archive(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder
                .append_data(&mut header, name, content.as_slice())
                .unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn filter(bytes: &[u8], cuts: &[usize], drop: &str) -> Result<(Vec<u8>, bool), NotATar> {
        let mut filter = TarFilter::new(|name: &[u8]| name.starts_with(drop.as_bytes()));
        let (mut out, mut rest) = (Vec::new(), Bytes::copy_from_slice(bytes));
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let piece = rest.split_to((*cut).clamp(1, rest.len()));
            filter.push(piece, &mut out)?;
        }
        Ok((out.concat(), filter.is_complete()))
    }

    proptest! {
        #[test]
        fn what_stays_is_untouched(
            entries in prop::collection::vec(
                ("(drop|keep)/[a-z]{1,120}(/[a-z]{1,60}){0,2}", prop::collection::vec(any::<u8>(), 0..2000)),
                0..8,
            ),
            cuts in prop::collection::vec(1..1500_usize, 1..12),
        ) {
            let bytes = archive(&entries);
            let (kept, complete) = filter(&bytes, &cuts, "drop/").unwrap();
            prop_assert!(complete);
            let wanted: Vec<_> = entries.iter().filter(|(name, _)| !name.starts_with("drop/")).cloned().collect();
            prop_assert_eq!(&kept, &archive(&wanted));
            let (all, _) = filter(&bytes, &cuts, "nothing").unwrap();
            prop_assert_eq!(all, bytes);
        }

        #[test]
        fn junk_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..4000), cut in 1..700_usize) {
            let _ = filter(&bytes, &[cut], "x");
        }
    }

    #[test]
    fn sizes_and_names_of_pax_headers_count() {
        let mut builder = tar::Builder::new(Vec::new());
        let long = format!("drop/{}", "x".repeat(300));
        builder
            .append_pax_extensions([("path", long.as_bytes()), ("size", b"600".as_slice())])
            .unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_path("short").unwrap();
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, std::io::empty()).unwrap();
        let mut bytes = builder.into_inner().unwrap();
        bytes.truncate(bytes.len() - 1024);
        bytes.extend_from_slice(&[7; 1024]);
        bytes.extend(archive(&[("keep".into(), b"k".to_vec())]));
        let (kept, complete) = filter(&bytes, &[100], "drop/").unwrap();
        assert!(complete);
        let mut archive = tar::Archive::new(kept.as_slice());
        let mut entries = archive.entries().unwrap();
        let mut entry = entries.next().unwrap().unwrap();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        assert_eq!(
            (entry.path().unwrap().to_str().unwrap(), content.as_str()),
            ("keep", "k")
        );
    }

    #[test]
    fn a_broken_archive_is_noticed() {
        let bytes = archive(&[("keep".into(), vec![1; 3000])]);
        assert!(!filter(&bytes[..1000], &[512], "drop").unwrap().1);
        let mut wrong = bytes.clone();
        wrong[3] ^= 1;
        assert!(filter(&wrong, &[512], "drop").is_err());
        // Between two entries, or with half of the mark, only the mark tells.
        for (length, whole) in [(3584, false), (4096, false), (4608, true)] {
            let mut filter = TarFilter::new(|_: &[u8]| false).with_end_mark();
            filter
                .push(Bytes::copy_from_slice(&bytes[..length]), &mut Vec::new())
                .unwrap();
            assert_eq!(filter.is_complete(), whole, "{length}");
        }
    }
}
