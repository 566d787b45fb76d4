//! The directories that canonical order is in at the moment, from the root downward.
//!
//! Canonical order goes through a tree depth first, so a stack of directories is enough: a directory is opened when the first
//! thing in it changes, and gets its own attributes when the order leaves it, when nothing more can change its time.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::error::{SinkError, failed, shown};
use super::pending::{Left, Pending};
use super::place::{Place, open_child, open_directory};
use crate::entry::Entry;

/// Descriptors that the stack keeps open, at most.
const MAX_OPEN: usize = 64;

/// A directory that the order is in.
struct Level {
    entry: Entry,
    directory: Option<Arc<OwnedFd>>,
    /// Something in it was changed, so its time was.
    touched: bool,
    /// Its attributes are other ones than the base's.
    changed: bool,
}

/// The stack.
pub(super) struct Directories {
    levels: Vec<Level>,
    open: usize,
}

/// `path` is below the directory `above`.
pub(super) fn is_below(path: &[u8], above: &[u8]) -> bool {
    above.is_empty() && !path.is_empty()
        || path.len() > above.len() && path[above.len()] == b'/' && path.starts_with(above)
}

impl Directories {
    pub(super) fn new() -> Self {
        Self {
            levels: Vec::new(),
            open: 0,
        }
    }

    /// Leaves the directories that `path` is not in. Afterwards the deepest one has to be its parent.
    pub(super) fn enter(
        &mut self,
        place: &Place,
        path: &[u8],
        pending: &mut Pending,
    ) -> Result<(), SinkError> {
        while let Some(last) = self.levels.last() {
            if is_below(path, &last.entry.path) {
                let rest = &path[last.entry.path.len()..];
                if rest.strip_prefix(b"/").unwrap_or(rest).contains(&b'/') {
                    break;
                }
                return Ok(());
            }
            self.leave(place, pending)?;
        }
        if self.levels.is_empty() && path.is_empty() {
            return Ok(());
        }
        Err(SinkError::Order {
            path: shown(path),
            reason: "the directory that it is in did not come before",
        })
    }

    /// Goes into a directory; `changed` if it is new or has other attributes than the base's.
    pub(super) fn push(&mut self, entry: Entry, changed: bool) {
        self.levels.push(Level {
            entry,
            directory: None,
            touched: changed,
            changed,
        });
    }

    /// Leaves all directories and gives the root's entry.
    pub(super) fn finish(
        &mut self,
        place: &Place,
        pending: &mut Pending,
    ) -> Result<Option<Entry>, SinkError> {
        while self.levels.len() > 1 {
            self.leave(place, pending)?;
        }
        let root = self.levels.first().map(|root| root.entry.clone());
        if root.is_some() {
            self.leave(place, pending)?;
        }
        Ok(root)
    }

    /// The root gets its attributes again in the end: staging was made inside it.
    pub(super) fn touch_root(&mut self) {
        if let Some(root) = self.levels.first_mut() {
            root.touched = true;
        }
    }

    /// The deepest directory, in order to change something in it.
    pub(super) fn current(&mut self, place: &Place) -> Result<BorrowedFd<'_>, SinkError> {
        if let Some(deepest) = self.levels.last_mut() {
            deepest.touched = true;
        }
        self.look(place)
    }

    /// The deepest directory, for somebody who changes something in it later.
    pub(super) fn share(&mut self, place: &Place) -> Result<Arc<OwnedFd>, SinkError> {
        if let Some(deepest) = self.levels.last_mut() {
            deepest.touched = true;
        }
        self.deepest(place).cloned()
    }

    /// The deepest directory, in order to look at something in it.
    pub(super) fn look(&mut self, place: &Place) -> Result<BorrowedFd<'_>, SinkError> {
        self.deepest(place).map(AsFd::as_fd)
    }

    fn deepest(&mut self, place: &Place) -> Result<&Arc<OwnedFd>, SinkError> {
        let deepest = self
            .levels
            .len()
            .checked_sub(1)
            .ok_or(SinkError::Defect("no directory is entered"))?;
        self.open(place, deepest)
    }

    fn open(&mut self, place: &Place, level: usize) -> Result<&Arc<OwnedFd>, SinkError> {
        if self.levels[level].directory.is_none() {
            let path = &self.levels[level].entry.path;
            let above = level.checked_sub(1).and_then(|above| {
                let directory = self.levels[above].directory.as_ref()?;
                Some((directory.as_fd(), super::place::split(path).1))
            });
            let opened = match above {
                Some((above, name)) => open_child(above, name),
                None => open_directory(place.root(), path),
            };
            let opened = opened.map_err(|error| failed(path, "open the directory", error))?;
            self.levels[level].directory = Some(Arc::new(opened));
            self.open += 1;
            if self.open > MAX_OPEN {
                let shallowest = self.levels[..level]
                    .iter_mut()
                    .find(|level| level.directory.is_some());
                if let Some(shallowest) = shallowest {
                    shallowest.directory = None;
                    self.open -= 1;
                }
            }
        }
        self.levels[level]
            .directory
            .as_ref()
            .ok_or(SinkError::Defect("a directory that was opened is not open"))
    }

    fn leave(&mut self, place: &Place, pending: &mut Pending) -> Result<(), SinkError> {
        let Some(deepest) = self.levels.len().checked_sub(1) else {
            return Ok(());
        };
        if self.levels[deepest].touched {
            self.open(place, deepest)?;
        }
        let Some(level) = self.levels.pop() else {
            return Ok(());
        };
        let Some(directory) = level.directory else {
            return Ok(());
        };
        self.open -= 1;
        if level.changed || level.touched {
            pending.leave(Left {
                entry: level.entry,
                directory,
                changed: level.changed,
            })?;
        }
        Ok(())
    }
}
