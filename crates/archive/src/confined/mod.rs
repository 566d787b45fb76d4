//! Reads and writes trees that others change meanwhile, without ever leaving them.
//!
//! Whoever is in a container may put a symbolic link wherever a path leads, between any two system calls of ours. So no path is
//! looked at first and used later: the kernel resolves it below the [`Root`]'s descriptor (`openat2`, see openat2(2)),
//! the last component is never followed, and whatever is set is set on descriptors. `/proc` must be mounted: some
//! things can be set on a descriptor through `/proc/self/fd` only.

mod difference;
mod error;
mod export;
mod extract;
mod metadata;
mod options;
mod pending;
mod root;
mod walk;

pub use difference::export_difference;
pub use error::{ExportError, ExtractError, SystemError};
pub use export::{ExportOptions, ExportReport, export, export_as, export_element};
pub use extract::{Extractor, extract};
pub use metadata::Attributes;
pub use options::{Devices, ExtractOptions, ExtractReport, Ownership, SetId};
pub use pending::partial_of;
pub(crate) use walk::names;

pub use root::{Links, LocateError, PathStat, Root, go_mode};

/// Something that was left out, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its path.
    pub path: Vec<u8>,
    /// What was left out and why.
    pub what: &'static str,
}

/// What was left out: the first of it, and how much altogether.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Skips {
    /// The first 1,000.
    pub first: Vec<Skipped>,
    /// How many altogether.
    pub count: u64,
}

impl Skips {
    fn note(&mut self, path: &[u8], what: &'static str) {
        self.count += 1;
        if self.first.len() < 1000 {
            self.first.push(Skipped {
                path: path.to_vec(),
                what,
            });
        }
    }
}
