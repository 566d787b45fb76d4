//! Open directories along the path that a scan is at.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::stat::{Root, open_directory, stat_of};

/// Most directories that stay open on the way down. Deeper trees reopen some of theirs on the way back.
const KEPT: usize = 48;

/// Opens directories below the root, one component after the other and none of them a link, and keeps those that lead to the
/// latest one. Asked in canonical order it opens each once.
pub(crate) struct Directories {
    root: Arc<OwnedFd>,
    mount: u64,
    path: Vec<u8>,
    /// For each directory on the way: length of its path, and itself.
    levels: Vec<(usize, Option<Arc<OwnedFd>>)>,
}

impl Directories {
    pub(crate) fn new(root: &Root) -> std::io::Result<Self> {
        Ok(Self {
            root: Arc::new(root.fd.try_clone()?),
            mount: root.stat.mount,
            path: Vec::new(),
            levels: Vec::new(),
        })
    }

    /// The directory with this path; the empty path is the root.
    pub(crate) fn open(&mut self, path: &[u8]) -> Result<Arc<OwnedFd>, Errno> {
        if path.is_empty() {
            return Ok(Arc::clone(&self.root));
        }
        while let Some((length, _)) = self.levels.last() {
            let same = *length <= path.len()
                && self.path[..*length] == path[..*length]
                && (*length == path.len() || path[*length] == b'/');
            if same {
                break;
            }
            self.levels.pop();
        }
        // What was closed on the way down has to be opened again from the root.
        if matches!(self.levels.last(), Some((_, None))) {
            self.levels.clear();
        }
        let mut at = self.levels.last().map_or(0, |(length, _)| *length);
        let mut current = match self.levels.last() {
            Some((_, Some(directory))) => Arc::clone(directory),
            _ => Arc::clone(&self.root),
        };
        self.path.truncate(at);
        while at < path.len() {
            let from = if at == 0 { 0 } else { at + 1 };
            let end = path[from..]
                .iter()
                .position(|byte| *byte == b'/')
                .map_or(path.len(), |slash| from + slash);
            let next = open_directory(&*current, &path[from..end])?;
            if stat_of(&next)?.mount != self.mount {
                return Err(Errno::XDEV);
            }
            current = Arc::new(next);
            self.path.extend_from_slice(&path[at..end]);
            at = end;
            self.levels.push((at, Some(Arc::clone(&current))));
            if self.levels.len() > KEPT {
                let old = self.levels.len() - 1 - KEPT;
                self.levels[old].1 = None;
            }
        }
        Ok(current)
    }
}

/// Path of the directory that a path is in, and its name there.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}
