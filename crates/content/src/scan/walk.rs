//! Walks a directory in canonical order and looks at each entry, without reading any.

use std::mem::MaybeUninit;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::dirs::Directories;
use super::stat::{Kind, Names, Root, Stat, stat_at};
use super::{Excludes, Nested, ScanError, ScanOptions};
use crate::tree::MAX_DEPTH;

/// An entry that the walk met.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) path: Vec<u8>,
    pub(crate) stat: Stat,
}

/// Gives entries in canonical order, the root first.
pub(crate) trait Seens: Send {
    /// The next one.
    fn next(&mut self) -> Result<Option<Seen>, ScanError>;
}

/// Entries that one thread hands to another at a time.
const HANDFUL: usize = 256;
/// Handfuls that wait, at most.
const HANDFULS: usize = 8;

/// A walk in a thread of its own, so that entries are looked at while others are compared.
pub(crate) struct Ahead {
    handfuls: Receiver<Result<Vec<Seen>, ScanError>>,
    current: std::vec::IntoIter<Seen>,
    ended: bool,
}

impl Ahead {
    /// Begins to walk. The thread ends with the walk, or once nobody listens any more.
    pub(crate) fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        mut walk: Walk<'scope>,
    ) -> Result<Self, ScanError> {
        let (sender, handfuls) = sync_channel(HANDFULS);
        let run = move || {
            loop {
                let handful = walk.handful();
                // The last one is empty: a thread that ended early must not look like the end of the tree.
                let last = handful.as_ref().map_or(true, Vec::is_empty);
                if sender.send(handful).is_err() || last {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("scan-walk".to_owned())
            .spawn_scoped(scope, run)
            .map_err(|error| ScanError::io("begin to look at", b"", error))?;
        Ok(Self {
            handfuls,
            current: Vec::new().into_iter(),
            ended: false,
        })
    }
}

impl Seens for Ahead {
    fn next(&mut self) -> Result<Option<Seen>, ScanError> {
        if self.current.len() == 0 && !self.ended {
            let gone = |_| ScanError::io("look at", b"", std::io::Error::other("the walk ended early"));
            self.current = self.handfuls.recv().map_err(gone)??.into_iter();
            self.ended = self.current.len() == 0;
        }
        Ok(self.current.next())
    }
}

struct Level {
    names: Names,
    next: usize,
    /// Length of the directory's path.
    length: usize,
}

/// The walk. Its memory is the names in the directories from the root to where it is.
pub(crate) struct Walk<'a> {
    root: &'a Root,
    excludes: &'a Excludes,
    frozen: bool,
    nested: Nested,
    directories: Directories,
    levels: Vec<Level>,
    path: Vec<u8>,
    /// The path is that of a directory which has not been entered yet.
    enter: bool,
    begun: bool,
    buffer: Box<[MaybeUninit<u8>]>,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(root: &'a Root, options: &'a ScanOptions) -> Result<Self, ScanError> {
        Ok(Self {
            root,
            excludes: &options.excludes,
            frozen: options.frozen,
            nested: options.nested,
            directories: Directories::new(root).map_err(|error| ScanError::io("open", b"", error))?,
            levels: Vec::new(),
            path: Vec::new(),
            enter: false,
            begun: false,
            buffer: Box::new_uninit_slice(64 << 10),
        })
    }
}

impl Seens for Walk<'_> {
    fn next(&mut self) -> Result<Option<Seen>, ScanError> {
        if !self.begun {
            self.begun = true;
            self.enter = true;
            let stat =
                super::stat::stat_of(&self.root.fd).map_err(|error| ScanError::io("look at", b"", error))?;
            return Ok(Some(Seen {
                path: Vec::new(),
                stat,
            }));
        }
        if std::mem::take(&mut self.enter) {
            self.enter_directory()?;
        }
        loop {
            let Some(level) = self.levels.last_mut() else {
                return Ok(None);
            };
            self.path.truncate(level.length);
            let Some((name, kind)) = level.names.get(level.next) else {
                self.levels.pop();
                continue;
            };
            level.next += 1;
            let parent = self.directories.open(&self.path);
            if level.length > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name);
            if !self.excludes.is_empty()
                && kind != FileType::Unknown
                && self.excludes.matches(&self.path, kind == FileType::Directory)
            {
                continue;
            }
            let stat = match parent.and_then(|parent| stat_at(parent, name)) {
                Ok(stat) => stat,
                // It, or a directory above it, went away or was replaced.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {
                    if self.frozen {
                        return Err(self.changed());
                    }
                    continue;
                }
                Err(error) => return Err(ScanError::io("look at", &self.path, error)),
            };
            if kind == FileType::Unknown && self.excludes.matches(&self.path, stat.kind == Kind::Directory) {
                continue;
            }
            if !self.root.holds(&stat) {
                // Another file system begins here.
                if self.nested == Nested::Refuse {
                    return Err(ScanError::Nested {
                        path: super::error::shown(&self.path),
                    });
                }
                // A directory stays as the empty place where it was; a file that is mounted over another hides what is the
                // element's own.
                if stat.kind != Kind::Directory {
                    continue;
                }
            } else if stat.kind == Kind::Directory {
                self.enter = true;
            }
            return Ok(Some(Seen {
                path: self.path.clone(),
                stat,
            }));
        }
    }
}

impl Walk<'_> {
    /// The next entries, none at the end.
    fn handful(&mut self) -> Result<Vec<Seen>, ScanError> {
        let mut handful = Vec::with_capacity(HANDFUL);
        while handful.len() < HANDFUL
            && let Some(seen) = self.next()?
        {
            handful.push(seen);
        }
        Ok(handful)
    }

    fn enter_directory(&mut self) -> Result<(), ScanError> {
        if self.levels.len() > MAX_DEPTH {
            return Err(crate::tree::TreeError::Depth.into());
        }
        let directory = match self.directories.open(&self.path) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) if !self.frozen => return Ok(()),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Err(self.changed()),
            Err(error) => return Err(ScanError::io("open", &self.path, error)),
        };
        // A file description of its own: reading moves its position, and others may have it open.
        let directory = super::stat::open_directory(&*directory, b".")
            .map_err(|error| ScanError::io("open", &self.path, error))?;
        let names = match Names::read(&directory, &self.path, &mut self.buffer) {
            // It was removed while it was open.
            Err(ScanError::Io { source, .. })
                if source.raw_os_error() == Some(Errno::NOENT.raw_os_error()) && !self.frozen =>
            {
                Names::default()
            }
            other => other?,
        };
        self.levels.push(Level {
            names,
            next: 0,
            length: self.path.len(),
        });
        Ok(())
    }

    fn changed(&self) -> ScanError {
        ScanError::Changed {
            path: super::error::shown(&self.path),
        }
    }
}
