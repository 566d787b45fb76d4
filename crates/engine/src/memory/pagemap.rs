//! Which pages of a process a dump has, which of them only the one before it has, and where they lie (`images/pagemap.proto` of CRIU).
//!
//! A map lists runs of pages by their addresses. Those that are here lie one after the other in a file of their own, in the order of the
//! list. What is in no list was never touched, or was given back.

use super::message::{Damaged, HEAD, Value, begins_with, fields, put_message, put_number, take_message};

/// Bytes of a page.
pub(super) const PAGE: u64 = 4096;
/// `PAGEMAP_MAGIC` of CRIU's `magic.h`.
const MAGIC: u32 = 0x5608_4025;

/// Fields of a `pagemap_head` and a `pagemap_entry`. Newer versions count pages in `WIDE_PAGES`, and leave a zero in `PAGES`.
const PAGES_ID: u64 = 1;
const ADDRESS: u64 = 1;
const PAGES: u64 = 2;
const IN_PARENT: u64 = 3;
const FLAGS: u64 = 4;
const WIDE_PAGES: u64 = 5;

/// `PE_PARENT` and `PE_PRESENT` of CRIU's `pagemap.h`.
const BEFORE: u64 = 1;
const HERE: u64 = 4;
/// Those, and `PE_LAZY`.
const KNOWN: u64 = 7;

/// Pages that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The address of the first.
    pub(super) start: u64,
    pub(super) pages: u64,
    flags: u64,
}

impl Run {
    /// Pages that lie here.
    pub(super) fn here(start: u64, pages: u64) -> Self {
        let flags = HERE;
        Self { start, pages, flags }
    }

    /// The same with other limits.
    pub(super) fn within(self, start: u64, pages: u64) -> Self {
        Self { start, pages, ..self }
    }

    /// The address after the last.
    pub(super) fn end(&self) -> u64 {
        self.start.saturating_add(self.bytes())
    }

    pub(super) fn bytes(&self) -> u64 {
        self.pages.saturating_mul(PAGE)
    }

    pub(super) fn is_here(&self) -> bool {
        self.flags & HERE != 0
    }

    /// Only the dump before has them, or one before that.
    pub(super) fn is_before(&self) -> bool {
        self.flags & (HERE | BEFORE) == BEFORE
    }
}

/// The map of one process in one dump.
#[derive(Debug, Clone)]
pub(super) struct PageMap {
    /// What stands before the runs, as it was.
    head: Vec<u8>,
    /// The number in the name of the file with the pages.
    pub(super) pages_id: u64,
    /// Pages are counted as newer versions do.
    wide: bool,
    runs: Vec<Run>,
    /// Where the pages of each run begin in their file, in bytes; of those that are not here, where they would.
    offsets: Vec<u64>,
}

impl PageMap {
    /// Reads an image.
    pub(super) fn parse(image: &[u8]) -> Result<Self, Damaged> {
        if !begins_with(image, MAGIC) {
            return Err(Damaged("it does not begin as a map of pages does"));
        }
        let mut rest = image.get(HEAD..).unwrap_or_default();
        let head = take_message(&mut rest)?;
        let pages_id = number_in(head, PAGES_ID)?.ok_or(Damaged("it does not say where the pages are"))?;
        let mut map = Self {
            head: image.get(..image.len() - rest.len()).unwrap_or_default().to_vec(),
            pages_id,
            wide: false,
            runs: Vec::new(),
            offsets: Vec::new(),
        };
        let (mut end, mut offset) = (0, 0);
        while !rest.is_empty() {
            let entry = take_message(&mut rest)?;
            // They would be lost when it is written anew.
            if fields(entry).any(|field| field.is_ok_and(|f| !(ADDRESS..=WIDE_PAGES).contains(&f.number))) {
                return Err(Damaged("it says more of pages than is known here"));
            }
            let wide = number_in(entry, WIDE_PAGES)?;
            map.wide |= wide.is_some();
            let start = number_in(entry, ADDRESS)?.ok_or(Damaged("pages have no address"))?;
            let pages = wide.or(number_in(entry, PAGES)?).unwrap_or_default();
            let flags = match (number_in(entry, FLAGS)?, number_in(entry, IN_PARENT)?) {
                (Some(flags), None | Some(0)) => flags,
                (_, Some(in_parent)) if in_parent != 0 => BEFORE,
                (_, _) => HERE,
            };
            if flags & !KNOWN != 0 || flags & (HERE | BEFORE) == HERE | BEFORE {
                return Err(Damaged("where its pages are is not known"));
            }
            let run = Run { start, pages, flags };
            let fits = pages.checked_mul(PAGE).and_then(|bytes| start.checked_add(bytes));
            if start < end || start % PAGE != 0 || pages == 0 || fits.is_none() {
                return Err(Damaged("its pages are not in order"));
            }
            end = run.end();
            map.runs.push(run);
            map.offsets.push(offset);
            if run.is_here() {
                offset += run.bytes();
            }
        }
        Ok(map)
    }

    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Bytes of all pages that are here.
    pub(super) fn bytes_here(&self) -> u64 {
        let here = self.runs.iter().filter(|run| run.is_here());
        here.map(Run::bytes).fold(0, u64::saturating_add)
    }

    /// The run that this address is in, and where its pages begin in their file.
    pub(super) fn at(&self, address: u64) -> Option<(Run, u64)> {
        let index = self.runs.partition_point(|run| run.end() <= address);
        let run = *self.runs.get(index)?;
        let offset = *self.offsets.get(index)?;
        (run.start <= address).then_some((run, offset))
    }

    /// The first address from this one on that is in a run.
    pub(super) fn next_from(&self, address: u64) -> Option<u64> {
        let index = self.runs.partition_point(|run| run.end() <= address);
        self.runs.get(index).map(|run| run.start.max(address))
    }

    /// The image with these runs in place of its own.
    pub(super) fn with(&self, runs: &[Run]) -> Result<Vec<u8>, Damaged> {
        let mut image = self.head.clone();
        for run in runs {
            let mut entry = Vec::new();
            put_number(&mut entry, ADDRESS, run.start);
            put_number(&mut entry, PAGES, if self.wide { 0 } else { run.pages });
            put_number(&mut entry, FLAGS, run.flags);
            if self.wide {
                put_number(&mut entry, WIDE_PAGES, run.pages);
            }
            put_message(&mut image, &entry)?;
        }
        Ok(image)
    }
}

/// The last number in a field, as protocol buffers want it.
fn number_in(message: &[u8], number: u64) -> Result<Option<u64>, Damaged> {
    let mut found = None;
    for field in fields(message) {
        let field = field?;
        if let Value::Number(value) = field.value
            && field.number == number
        {
            found = Some(value);
        }
    }
    Ok(found)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::message::COMMON_MAGIC;
    use super::*;

    /// A map of runs, each with its first address, pages, and whether they are here.
    pub(in super::super) fn image(wide: bool, runs: &[(u64, u64, bool)]) -> Vec<u8> {
        let mut image = COMMON_MAGIC.to_le_bytes().to_vec();
        image.extend_from_slice(&MAGIC.to_le_bytes());
        let mut head = Vec::new();
        put_number(&mut head, PAGES_ID, 1);
        put_message(&mut image, &head).unwrap();
        let map = PageMap {
            head: image,
            pages_id: 1,
            wide,
            runs: Vec::new(),
            offsets: Vec::new(),
        };
        let runs: Vec<Run> = runs
            .iter()
            .map(|(start, pages, here)| Run {
                start: *start,
                pages: *pages,
                flags: if *here { HERE } else { BEFORE },
            })
            .collect();
        map.with(&runs).unwrap()
    }

    #[test]
    fn a_map_is_read_as_it_was_written() {
        for wide in [false, true] {
            let written = image(
                wide,
                &[(0x1000, 2, true), (0x3000, 3, false), (0x10_0000, 1, true)],
            );
            let map = PageMap::parse(&written).unwrap();
            assert_eq!(map.with(map.runs()).unwrap(), written);
            assert_eq!(map.at(0x2fff).unwrap().0.start, 0x1000);
            assert!(map.at(0x3000).unwrap().0.is_before());
            assert_eq!(map.at(0x6000), None);
            assert_eq!(map.at(0x10_0000).unwrap().1, 2 * PAGE);
            assert_eq!(map.next_from(0), Some(0x1000));
            assert_eq!(map.next_from(0x6000), Some(0x10_0000));
            assert_eq!(map.next_from(0x10_1000), None);
        }
    }

    /// What CRIU 4.2.1 wrote: `08 80 80 88 02 10 00 20 04 28 01` and the like.
    #[test]
    fn an_entry_is_as_criu_writes_it() {
        let entry = [0x08, 0x80, 0x80, 0x88, 0x02, 0x10, 0x00, 0x20, 0x04, 0x28, 0x01];
        let written = image(true, &[(0x42_0000, 1, true)]);
        assert_eq!(written[written.len() - entry.len()..], entry);
        // Of before, without flags.
        let mut old = image(false, &[]);
        for in_parent in [None, Some(1)] {
            let mut entry = Vec::new();
            put_number(
                &mut entry,
                ADDRESS,
                if in_parent.is_some() { 0x3000 } else { 0x1000 },
            );
            put_number(&mut entry, PAGES, 2);
            if let Some(in_parent) = in_parent {
                put_number(&mut entry, IN_PARENT, in_parent);
            }
            put_message(&mut old, &entry).unwrap();
        }
        let map = PageMap::parse(&old).unwrap();
        assert!(map.at(0x1000).unwrap().0.is_here() && map.at(0x3000).unwrap().0.is_before());
    }

    #[test]
    fn what_is_no_map_is_refused() {
        let whole = image(true, &[(0x1000, 2, true), (0x3000, 3, false)]);
        for length in 0..whole.len() {
            let cut = PageMap::parse(&whole[..length]);
            assert!(cut.is_err() || cut.unwrap().runs().len() < 2, "{length}");
        }
        for strange in [
            &[(0x3000, 1, true), (0x1000, 1, true)][..],
            &[(0x1000, 3, true), (0x3000, 1, true)],
            &[(0x1001, 1, true)],
            &[(0x1000, 0, true)],
            &[(0x1000, u64::MAX, true)],
        ] {
            assert!(PageMap::parse(&image(true, strange)).is_err(), "{strange:?}");
        }
    }
}
