//! Reads the sparse map of an entry.

use std::io::Read;

use crate::error::{Defect, ReadError};
use crate::header::{self, BLOCK, Block};
use crate::reader::Reader;
use crate::reader::interpret::SparseForm;
use crate::sparse::{Extent, SparseMap, decimal};

/// Longest decimal number with its newline, in bytes.
const LONGEST_LINE: usize = 24;

impl<R: Read> Reader<R> {
    /// The map, the size of the file with its holes, and how many of the entry's stored bytes the map took.
    pub(super) fn read_sparse(
        &mut self,
        block: &Block,
        form: SparseForm,
        stored: u64,
    ) -> Result<(SparseMap, u64, u64), ReadError> {
        let at = self.header_at;
        let (pairs, size, used) = match form {
            SparseForm::OldGnu => {
                let (pairs, size) = self.read_old_gnu(block)?;
                (pairs, size, 0)
            }
            SparseForm::Records { pairs, size } => (pairs, size, 0),
            SparseForm::Content { size } => {
                let (pairs, used) = self.read_map_in_content(stored)?;
                (pairs, size, used)
            }
        };
        let extents = pairs
            .into_iter()
            .map(|(offset, length)| Extent { offset, length });
        let map = SparseMap::new(extents, size).map_err(|what| Defect::Sparse { what }.at(at))?;
        Ok((map, size, used))
    }

    fn read_old_gnu(&mut self, block: &Block) -> Result<(Vec<(u64, u64)>, u64), ReadError> {
        let at = self.header_at;
        let (mut pairs, mut more, size) = header::gnu_sparse(block).map_err(|defect| defect.at(at))?;
        while more {
            let Some(next) = self.read_block("a sparse map")? else {
                return Err(self.cut_off("a sparse map"));
            };
            let (further, again) = header::gnu_sparse_continued(&next).map_err(|defect| defect.at(at))?;
            if further.is_empty() && again {
                let what = "a continuation is empty";
                return Err(Defect::Sparse { what }.at(at));
            }
            pairs.extend(further);
            self.check_extents(pairs.len())?;
            more = again;
        }
        Ok((pairs, size))
    }

    /// GNU format 1.0: the number of extents, then offset and length of each, one decimal number per line, padded to whole
    /// blocks.
    fn read_map_in_content(&mut self, stored: u64) -> Result<(Vec<(u64, u64)>, u64), ReadError> {
        let at = self.header_at;
        let wrong = |what| Defect::Sparse { what }.at(at);
        let mut used = 0;
        let mut numbers = Vec::new();
        let mut expected = 1;
        let mut line = Vec::new();
        while numbers.len() < expected {
            if used + BLOCK as u64 > stored {
                return Err(wrong("it is longer than the content"));
            }
            let Some(block) = self.read_block("a sparse map")? else {
                return Err(self.cut_off("a sparse map"));
            };
            used += BLOCK as u64;
            for byte in block {
                if numbers.len() == expected {
                    if byte != 0 {
                        return Err(wrong("it is followed by something else"));
                    }
                    continue;
                }
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > LONGEST_LINE {
                        return Err(wrong("a number is malformed"));
                    }
                    continue;
                }
                let number = decimal(&line).ok_or(wrong("a number is malformed"))?;
                line.clear();
                if numbers.is_empty() {
                    let count = usize::try_from(number).unwrap_or(usize::MAX);
                    self.check_extents(count)?;
                    expected = count * 2 + 1;
                }
                numbers.push(number);
            }
        }
        let pairs = numbers.get(1..).unwrap_or_default().as_chunks::<2>().0;
        Ok((
            pairs.iter().map(|&[offset, length]| (offset, length)).collect(),
            used,
        ))
    }

    fn check_extents(&self, count: usize) -> Result<(), ReadError> {
        let limit = self.options.limits.extents;
        if count > limit {
            return Err(Defect::SparseTooLarge { limit }.at(self.header_at));
        }
        Ok(())
    }
}
