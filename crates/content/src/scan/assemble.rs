//! The threads of a scan: one walks, several read, and the caller's own takes what they found in order.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};

use super::dirs::{Directories, split};
use super::items::Item;
use super::read::{Look, SMALL, entry_of, name_of, next_data, read, vanished};
use super::segment::{Hints, Large, Range, Segment, Stitch, cut, segment_end};
use super::stat::{Kind, Stat, open_file, stat_at, stat_of, xattrs_of};
use super::{AHEAD, Begun, Context, Found, Items, LargeFile, Piece, Root, ScanError, ScanOptions};
use crate::chunk::Sizes;
use crate::entry::{Entry, EntryKind, Extent, Timestamp};
use crate::tree::{Facts, MAX_HARDLINK_GROUPS};

/// Most entries of one batch.
const BATCH: usize = 128;
/// A batch ends when its files have this many bytes.
const BATCH_BYTES: u64 = 2 << 20;
/// A batch ends when it keeps this many directories open.
const BATCH_DIRECTORIES: usize = 16;

/// What is to be scanned, and how.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub(crate) root: &'a Root,
    pub(crate) options: &'a ScanOptions,
    pub(crate) context: &'a Context<'a>,
}

/// One thing after the other, some of it still being made.
enum Slot {
    Batch(Receiver<Result<Vec<Outcome>, ScanError>>),
    Begin(Box<Begun>),
    Hole(u64),
    Segment(Receiver<Result<Segment, ScanError>>),
    End { before: Stat, directory: Arc<OwnedFd> },
}

enum Outcome {
    Found(Found),
    /// It is not there any more, or something else is.
    Lost {
        path: Vec<u8>,
        based: bool,
    },
}

enum Task {
    Outcome(Outcome),
    Read(Box<Look>),
}

enum Work {
    Batch(Vec<Task>, SyncSender<Result<Vec<Outcome>, ScanError>>),
    Segment(Arc<LargeFile>, Range, SyncSender<Result<Segment, ScanError>>),
}

/// Reads what `items` say and gives it to `visit`, in order and on the thread that called. Returns how many entries were read.
pub(crate) fn run<E: From<ScanError>>(
    job: Job<'_>,
    items: &mut (dyn Items + Send),
    visit: &mut dyn FnMut(Found) -> Result<(), E>,
) -> Result<u64, E> {
    let threads = match job.options.threads {
        0 => std::thread::available_parallelism().map_or(2, usize::from),
        some => some,
    };
    let (slots, taken) = sync_channel(threads + AHEAD);
    let (work, offered) = channel();
    let offered = Mutex::new(offered);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work_on(&offered, job.context));
        }
        let feeder = scope.spawn(move || {
            let failed = slots.clone();
            let fed = Feeder::new(job, slots, work).and_then(|mut feeder| {
                feeder.feed(items)?;
                Ok(feeder.read)
            });
            match fed {
                Ok(read) => read,
                Err(error) => {
                    // If nobody takes it any more, there is an error there already.
                    let _ = failed.send(Err(error));
                    0
                }
            }
        });
        // It takes the receiver along, so that the feeder stops when this has ended, however it did.
        let assembled = Assembler::new(job, visit).take_all(taken);
        let read = feeder.join().unwrap_or(0);
        assembled.map(|()| read)
    })
}

fn work_on(offered: &Mutex<Receiver<Work>>, context: &Context<'_>) {
    loop {
        let work = match offered.lock() {
            Ok(offered) => offered.recv(),
            Err(_) => return,
        };
        // Answers that nobody waits for any more are dropped.
        match work {
            Ok(Work::Batch(tasks, answer)) => {
                let _ = answer.send(tasks.into_iter().map(|task| outcome(task, context)).collect());
            }
            Ok(Work::Segment(large, range, answer)) => {
                let _ = answer.send(cut(&large.0, range, context));
            }
            Err(_) => return,
        }
    }
}

fn outcome(task: Task, context: &Context<'_>) -> Result<Outcome, ScanError> {
    let look = match task {
        Task::Outcome(outcome) => return Ok(outcome),
        Task::Read(look) => *look,
    };
    let path = look.seen.path.clone();
    let based = look.base.is_some();
    Ok(match read(look, context)? {
        Some(scanned) => Outcome::Found(Found::Entry(Box::new(scanned))),
        None => Outcome::Lost { path, based },
    })
}

struct Feeder<'a> {
    job: Job<'a>,
    slots: SyncSender<Result<Slot, ScanError>>,
    work: Sender<Work>,
    directories: Directories,
    batch: Vec<Task>,
    bytes: u64,
    opened: usize,
    parent: Option<Arc<OwnedFd>>,
    read: u64,
}

impl<'a> Feeder<'a> {
    fn new(
        job: Job<'a>,
        slots: SyncSender<Result<Slot, ScanError>>,
        work: Sender<Work>,
    ) -> Result<Self, ScanError> {
        Ok(Self {
            job,
            slots,
            work,
            directories: Directories::new(job.root).map_err(|error| ScanError::io("open", b"", error))?,
            batch: Vec::new(),
            bytes: 0,
            opened: 0,
            parent: None,
            read: 0,
        })
    }

    fn feed(&mut self, items: &mut (dyn Items + Send)) -> Result<(), ScanError> {
        while let Some(item) = items.next()? {
            match item {
                Item::Same(entry, facts) => {
                    self.push(Task::Outcome(Outcome::Found(Found::Same(entry, facts))))?
                }
                Item::Gone(path) => self.push(Task::Outcome(Outcome::Found(Found::Gone(path))))?,
                Item::Look { seen, link, base } => {
                    self.read += 1;
                    let directory = match self.directories.open(split(&seen.path).0) {
                        Ok(directory) => directory,
                        Err(error) => {
                            let error = ScanError::io("open the directory of", &seen.path, error);
                            self.lost(error, seen.path, base.is_some())?;
                            continue;
                        }
                    };
                    let look = Look {
                        seen,
                        link,
                        base: base.map(|entry| *entry),
                        directory,
                    };
                    if look.seen.stat.kind == Kind::File && look.link.is_none() && look.seen.stat.size > SMALL
                    {
                        self.flush()?;
                        self.large(look)?;
                    } else {
                        self.small(look)?;
                    }
                }
            }
        }
        self.flush()
    }

    fn lost(&mut self, error: ScanError, path: Vec<u8>, based: bool) -> Result<(), ScanError> {
        match error {
            ScanError::Io { source, .. } if vanished(&source) => {
                if self.job.options.frozen {
                    return Err(super::read::changed(&path));
                }
                self.push(Task::Outcome(Outcome::Lost { path, based }))
            }
            error => Err(error),
        }
    }

    fn small(&mut self, look: Look) -> Result<(), ScanError> {
        if !self
            .parent
            .as_ref()
            .is_some_and(|parent| Arc::ptr_eq(parent, &look.directory))
        {
            self.parent = Some(Arc::clone(&look.directory));
            self.opened += 1;
        }
        if look.seen.stat.kind == Kind::File {
            self.bytes += look.seen.stat.size;
        }
        self.push(Task::Read(Box::new(look)))
    }

    fn push(&mut self, task: Task) -> Result<(), ScanError> {
        self.batch.push(task);
        if self.batch.len() >= BATCH || self.bytes >= BATCH_BYTES || self.opened >= BATCH_DIRECTORIES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ScanError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let (answer, waiting) = sync_channel(1);
        self.send(Slot::Batch(waiting))?;
        self.work
            .send(Work::Batch(std::mem::take(&mut self.batch), answer))
            .map_err(|_| ScanError::Stopped)?;
        self.bytes = 0;
        self.opened = 0;
        self.parent = None;
        Ok(())
    }

    fn send(&self, slot: Slot) -> Result<(), ScanError> {
        self.slots.send(Ok(slot)).map_err(|_| ScanError::Stopped)
    }

    /// Opens a large file and hands out its segments.
    fn large(&mut self, look: Look) -> Result<(), ScanError> {
        let path = look.seen.path.clone();
        let name = name_of(&path);
        let io = |action, error: rustix::io::Errno| ScanError::io(action, &path, error);
        let opened = (|| {
            let file = open_file(&*look.directory, name).map_err(|error| io("open", error))?;
            if self.job.context.is_mapped(look.seen.stat.ino, name) {
                rustix::fs::fdatasync(&file).map_err(|error| io("write back", error))?;
            }
            let stat = stat_of(&file).map_err(|error| io("look at", error))?;
            if stat.kind != Kind::File {
                return Err(io("read", rustix::io::Errno::NOENT));
            }
            let xattrs = xattrs_of(&file, &path, self.job.options.overlay)?;
            Ok((file, stat, xattrs))
        })();
        let (file, stat, xattrs) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.lost(error, path, look.base.is_some()),
        };
        let size = stat.size;
        let sizes = Sizes::of(size);
        let hints = match &look.base {
            Some(Entry {
                kind: EntryKind::File { size, extents },
                ..
            }) => Some(Hints::new(extents, *size, sizes)),
            _ => None,
        };
        let file = File::from(file);
        let in_place = match (&look.base, &hints) {
            (
                Some(Entry {
                    kind: EntryKind::File { size: old, .. },
                    ..
                }),
                Some(hints),
            ) => super::segment::in_place(&file, hints, *old, size),
            _ => false,
        };
        let large = Arc::new(LargeFile(Large {
            file,
            path: path.clone(),
            sizes,
            hints,
            in_place,
            early: self.job.context.early().take(&path, &stat, sizes),
        }));
        let kind = EntryKind::File {
            size,
            extents: Vec::new(),
        };
        let read = (!self.job.context.silent(Kind::File)).then_some(self.job.context.began);
        self.send(Slot::Begin(Box::new(Begun {
            entry: entry_of(path.clone(), &stat, kind, xattrs),
            facts: stat.facts(read),
            base: look.base,
            large: Arc::clone(&large),
        })))?;
        let mut at = 0;
        while at < size {
            let (data, hole) = next_data(&large.0.file, at, size).map_err(|error| io("read", error))?;
            if data > at {
                self.send(Slot::Hole(data - at))?;
            }
            let mut from = data;
            while from < hole {
                let range = Range {
                    from,
                    to: segment_end(&large.0, from, hole),
                    end: hole,
                };
                let (answer, waiting) = sync_channel(1);
                self.send(Slot::Segment(waiting))?;
                self.work
                    .send(Work::Segment(Arc::clone(&large), range, answer))
                    .map_err(|_| ScanError::Stopped)?;
                from = range.to;
            }
            at = hole;
        }
        self.send(Slot::End {
            before: stat,
            directory: look.directory,
        })
    }
}

/// What further names of a file repeat.
struct Head {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    settled: bool,
    /// Names that have not been met yet.
    missing: u32,
}

/// Takes slots in order, puts large files together, gives further names the attributes of the first, and leaves out what is in
/// a directory that went away.
struct Assembler<'a, 'v, E> {
    job: Job<'a>,
    visit: &'v mut dyn FnMut(Found) -> Result<(), E>,
    heads: HashMap<Vec<u8>, Head>,
    /// Path of a directory that went away, with a slash.
    lost: Option<Vec<u8>>,
    large: Option<UnderWay>,
}

/// A large file that is being put together.
struct UnderWay {
    file: Arc<LargeFile>,
    path: Vec<u8>,
    facts: Facts,
    stitch: Stitch,
    hole: u64,
    /// It is in a directory that went away.
    ignored: bool,
}

impl<'a, 'v, E: From<ScanError>> Assembler<'a, 'v, E> {
    fn new(job: Job<'a>, visit: &'v mut dyn FnMut(Found) -> Result<(), E>) -> Self {
        Self {
            job,
            visit,
            heads: HashMap::new(),
            lost: None,
            large: None,
        }
    }

    fn take_all(mut self, slots: Receiver<Result<Slot, ScanError>>) -> Result<(), E> {
        for slot in slots {
            match slot? {
                Slot::Batch(waiting) => {
                    for outcome in waiting.recv().map_err(|_| ScanError::Stopped)?? {
                        self.outcome(outcome)?;
                    }
                }
                Slot::Begin(begun) => self.begin(begun)?,
                Slot::Hole(length) => self.pieces(|stitch, _, put| stitch.hole(length, put))?,
                Slot::Segment(waiting) => {
                    let segment = waiting.recv().map_err(|_| ScanError::Stopped)??;
                    let context = self.job.context;
                    self.pieces(|stitch, large, put| stitch.add(large, segment, context, put))?;
                }
                Slot::End { before, directory } => self.end(&before, &directory)?,
            }
        }
        Ok(())
    }

    fn is_lost(&self, path: &[u8]) -> bool {
        self.lost.as_ref().is_some_and(|lost| path.starts_with(lost))
    }

    fn lose(&mut self, mut path: Vec<u8>, based: bool) -> Result<(), E> {
        if self.job.options.frozen {
            return Err(super::read::changed(&path).into());
        }
        if based {
            (self.visit)(Found::Gone(path.clone()))?;
        }
        if !self.is_lost(&path) {
            path.push(b'/');
            self.lost = Some(path);
        }
        Ok(())
    }

    fn outcome(&mut self, outcome: Outcome) -> Result<(), E> {
        match outcome {
            Outcome::Lost { path, based } => self.lose(path, based),
            Outcome::Found(Found::Same(mut entry, facts)) => {
                if self.is_lost(&entry.path) {
                    return self.lose(entry.path, true);
                }
                let mut facts = facts;
                let old = matches!(entry.kind, EntryKind::Hardlink { .. }).then(|| entry.clone());
                if !self.link(&mut entry, &mut facts, true)? {
                    return self.lose(entry.path, true);
                }
                match old {
                    Some(old) if old != entry => (self.visit)(Found::Entry(Box::new(super::Scanned {
                        entry: *entry,
                        facts: Facts { read: None, ..facts },
                        base: Some(*old),
                        pieces: Vec::new(),
                        settled: false,
                    }))),
                    _ => (self.visit)(Found::Same(entry, facts)),
                }
            }
            Outcome::Found(Found::Entry(mut scanned)) => {
                let settled = scanned.settled;
                if self.is_lost(&scanned.entry.path)
                    || !self.link(&mut scanned.entry, &mut scanned.facts, settled)?
                {
                    return self.lose(scanned.entry.path, scanned.base.is_some());
                }
                (self.visit)(Found::Entry(scanned))
            }
            Outcome::Found(found) => (self.visit)(found),
        }
    }

    /// Keeps in mind a first name, or fills in a further one. `false`: the first one is not there.
    fn link(&mut self, entry: &mut Entry, facts: &mut Facts, settled: bool) -> Result<bool, E> {
        let EntryKind::Hardlink { target } = &entry.kind else {
            let whiteout = self.job.options.overlay
                && matches!(entry.kind, EntryKind::CharDevice { major: 0, minor: 0 });
            if facts.nlink > 1 && !whiteout && !matches!(entry.kind, EntryKind::Directory) {
                if self.heads.len() >= MAX_HARDLINK_GROUPS {
                    return Err(ScanError::HardlinkGroups.into());
                }
                self.heads.insert(
                    entry.path.clone(),
                    Head {
                        mode: entry.mode,
                        uid: entry.uid,
                        gid: entry.gid,
                        mtime: entry.mtime,
                        xattrs: entry.xattrs.clone(),
                        settled,
                        missing: facts.nlink - 1,
                    },
                );
            }
            return Ok(true);
        };
        let Some(head) = self.heads.get_mut(target) else {
            return Ok(false);
        };
        (entry.mode, entry.uid, entry.gid, entry.mtime) = (head.mode, head.uid, head.gid, head.mtime);
        entry.xattrs.clone_from(&head.xattrs);
        if !head.settled {
            facts.read = None;
        }
        head.missing = head.missing.saturating_sub(1);
        if head.missing == 0 {
            let target = target.clone();
            self.heads.remove(&target);
        }
        Ok(true)
    }

    fn begin(&mut self, mut begun: Box<Begun>) -> Result<(), E> {
        let EntryKind::File { size, .. } = begun.entry.kind else {
            return Ok(());
        };
        let ignored = self.is_lost(&begun.entry.path);
        self.large = Some(UnderWay {
            file: Arc::clone(&begun.large),
            path: begun.entry.path.clone(),
            facts: begun.facts,
            stitch: Stitch::new(size),
            hole: 0,
            ignored,
        });
        if ignored {
            return self.lose(begun.entry.path, begun.base.is_some());
        }
        let mut facts = begun.facts;
        // Whether it settles is known at its end only.
        self.link(&mut begun.entry, &mut facts, true)?;
        (self.visit)(Found::Begin(begun))
    }

    /// Gives pieces to the visitor, holes next to each other as one.
    fn pieces(
        &mut self,
        make: impl FnOnce(&mut Stitch, &Large, &mut dyn FnMut(Piece) -> Result<(), E>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(large) = self.large.as_mut().filter(|large| !large.ignored) else {
            return Ok(());
        };
        let UnderWay {
            file, stitch, hole, ..
        } = large;
        let visit = &mut *self.visit;
        make(stitch, &file.0, &mut |piece| {
            if let Extent::Hole { length } = piece.extent {
                *hole += length;
                return Ok(());
            }
            give_hole(hole, visit)?;
            visit(Found::Piece(piece))
        })
    }

    fn end(&mut self, before: &Stat, directory: &OwnedFd) -> Result<(), E> {
        let mut whole = false;
        self.pieces(|stitch, _, put| {
            whole = stitch.end(put)?;
            Ok(())
        })?;
        let Some(mut large) = self.large.take().filter(|large| !large.ignored) else {
            return Ok(());
        };
        give_hole(&mut large.hole, self.visit)?;
        let after = stat_at(directory, name_of(&large.path));
        let settled = whole && after.is_ok_and(|after| after.same_state(before));
        if !settled
            && large.facts.nlink > 1
            && let Some(head) = self.heads.get_mut(&large.path)
        {
            head.settled = false;
        }
        (self.visit)(Found::End { settled })
    }
}

fn give_hole<E>(hole: &mut u64, visit: &mut dyn FnMut(Found) -> Result<(), E>) -> Result<(), E> {
    match std::mem::take(hole) {
        0 => Ok(()),
        length => visit(Found::Piece(Piece {
            extent: Extent::Hole { length },
            bytes: None,
            parts: None,
        })),
    }
}
