//! The half of a round that reads.
//!
//! ```text
//! scan's threads ──► delta ──► pending ──► queue ──► writer ──► sink
//!                                ▲  answers                      │
//!                                └────────── reader ◄────────────┘
//! ```
//!
//! With nothing at the sink everything is sent in one pass, without a question. With a base, the scan first only looks, then reads what
//! may have changed; chunks that the base has are named, and for the others the sink is asked for hashes of short blocks while the
//! scan goes on.
//!
//! Memory: that of a scan, 64 MiB of content that waits for hashes, 8 MiB of frames, the index of moved chunks (60 MiB at most).

mod adapt;
mod blocks;
mod body;
mod delta;
mod error;
mod index;
mod pending;
mod wire;

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use tranship_core::storage::{Compression, RoundOptions, RoundProgress, RoundReport};

pub use error::SourceError;
pub(crate) use index::IN_PLACE;

use crate::boot::{BOOT, is_of_this_boot, note_boot};
use crate::entry::{Timestamp, TreeId};
use crate::frame::{FrameError, FrameReader};
use crate::message::{self, Holds, Message, Totals, VERSION_MAX, VERSION_MIN, Wants};
use crate::scan::{
    Base, BaseEntries, Compare, Context, Excludes, Found, Items, Job, Nested, Recorder, Replay, Root,
    ScanError, ScanOptions, Todo, Walk, Wanted,
};
use crate::tree::TreeSummary;
use delta::Delta;
use index::Index;
use pending::Pending;
use wire::{Frame, Queue};

/// Answers that may wait to be looked at; there are never more questions than that.
const ANSWERS: usize = 1024;
/// Passes in which files are sent once more, at most.
const MAX_PASSES: u32 = 3;

/// What is read, and how.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// The directory.
    pub root: PathBuf,
    /// It is the upper directory of an overlay.
    pub overlay: bool,
    /// A directory for records between rounds, of this element alone. Made if it is not there.
    pub work: PathBuf,
    /// Paths that stay behind.
    pub excludes: Excludes,
    /// What becomes of file systems that are mounted below the directory.
    pub nested: Nested,
    /// Compression on the wire.
    pub compression: Compression,
    /// Bytes per second on the wire, at most.
    pub limit_rate: Option<u64>,
    /// Threads that read and hash; 0 for one per processor.
    pub threads: usize,
}

/// An element that is read, round after round.
#[derive(Debug)]
pub struct Source {
    options: SourceOptions,
    /// The tree of the last round that came to a good end.
    known: Option<Base>,
}

impl Source {
    /// Opens an element. Records of earlier rounds in the work directory are used if they are whole.
    ///
    /// # Errors
    ///
    /// The work directory cannot be made.
    pub fn open(options: SourceOptions) -> Result<Self, SourceError> {
        let io = |source| SourceError::Work {
            path: options.work.display().to_string(),
            source,
        };
        std::fs::create_dir_all(&options.work).map_err(io)?;
        let mut known = None;
        let noted = options.work.join(BOOT);
        let believed = is_of_this_boot(&noted);
        for entry in std::fs::read_dir(&options.work).map_err(io)? {
            let tree = entry.map_err(io)?.path();
            if !believed {
                if tree
                    .extension()
                    .is_some_and(|kind| kind == "facts" || kind == "tree")
                {
                    std::fs::remove_file(&tree).map_err(io)?;
                }
                continue;
            }
            let id = tree.file_stem().and_then(|stem| tree_id(stem.to_str()?));
            let facts = tree.with_extension("facts");
            if let Some(id) = id.filter(|_| tree.extension().is_some_and(|kind| kind == "tree"))
                && facts.exists()
            {
                known = Some(Base {
                    id,
                    tree,
                    facts: Some(facts),
                });
            }
        }
        note_boot(&noted).map_err(io)?;
        Ok(Self { options, known })
    }

    /// Brings the sink at the other end of the streams up to what the element is now. Blocks; the streams should have a buffer
    /// behind them.
    ///
    /// The thread that reads ends when `input` does, which may be after this returned.
    ///
    /// # Errors
    ///
    /// The sink is not equal to the element; it was told why where that was possible. What arrived stays there.
    pub fn round<R, W>(
        &mut self,
        input: R,
        output: W,
        options: RoundOptions,
        progress: &(dyn Fn(RoundProgress) + Sync),
    ) -> Result<RoundReport, SourceError>
    where
        R: Read + Send + 'static,
        W: Write + Send,
    {
        let began = Instant::now();
        let (heard, answers) = sync_channel(ANSWERS);
        std::thread::spawn(move || {
            let mut frames = FrameReader::new(input);
            loop {
                let message = frames.message();
                let last = !matches!(&message, Ok(message) if !matches!(message, Message::Applied(_) | Message::Failed(_)));
                if heard.send(message).is_err() || last {
                    return;
                }
            }
        });
        let queue = Queue::default();
        std::thread::scope(|scope| {
            scope.spawn(|| queue.write_all(output, self.options.compression, self.options.limit_rate));
            let mut round = Round {
                options: &self.options,
                round: options,
                queue: &queue,
                answers: &answers,
                progress,
            };
            let result = round.converse(&mut self.known);
            let result = result.map_err(|error| round.explain(error));
            if let Err(error) = &result
                && !matches!(
                    error,
                    SourceError::Peer(_) | SourceError::Frame(FrameError::Stream(_) | FrameError::Closed)
                )
            {
                let _ = queue.push(Frame::of(&Message::Failed(Box::new(error.fault()))));
            }
            queue.end();
            result
        })
        .map(|totals| RoundReport {
            tree: totals.tree.to_string(),
            entries: totals.entries,
            bytes: totals.bytes,
            changed_entries: totals.changed_entries,
            literal_bytes: totals.literal_bytes,
            wire_bytes: queue.written(),
            unsettled: totals.unsettled,
            milliseconds: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }
}

fn tree_id(text: &str) -> Option<TreeId> {
    let mut id = [0; crate::entry::DIGEST_LENGTH];
    if text.len() != 2 * id.len() || !text.is_ascii() {
        return None;
    }
    for (at, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(TreeId(id))
}

/// What one round works with.
struct Round<'a> {
    options: &'a SourceOptions,
    round: RoundOptions,
    queue: &'a Queue,
    answers: &'a Receiver<Result<Message, FrameError>>,
    progress: &'a (dyn Fn(RoundProgress) + Sync),
}

impl Round<'_> {
    fn say(&self, message: &Message) -> Result<(), SourceError> {
        Ok(self.queue.push(Frame::of(message))?)
    }

    fn hear(&self) -> Result<Message, SourceError> {
        match self.answers.recv().map_err(|_| FrameError::Closed)?? {
            Message::Failed(fault) => Err(SourceError::Peer(fault)),
            message => Ok(message),
        }
    }

    /// When the stream broke, the sink may have said why just before.
    fn explain(&self, error: SourceError) -> SourceError {
        if !matches!(
            error,
            SourceError::Frame(FrameError::Stream(_) | FrameError::Closed)
        ) {
            return error;
        }
        let patience = std::time::Duration::from_secs(1);
        while let Ok(Ok(message)) = self.answers.recv_timeout(patience) {
            if let Message::Failed(fault) = message {
                return SourceError::Peer(fault);
            }
        }
        error
    }

    fn work(&self, name: &str) -> PathBuf {
        self.options.work.join(name)
    }

    fn io(&self, source: std::io::Error) -> SourceError {
        SourceError::Work {
            path: self.options.work.display().to_string(),
            source,
        }
    }

    fn converse(&mut self, known: &mut Option<Base>) -> Result<Totals, SourceError> {
        match self.hear()? {
            Message::Hello { oldest, newest, .. } => {
                if oldest > newest || oldest > VERSION_MAX || newest < VERSION_MIN {
                    return Err(SourceError::Version { oldest, newest });
                }
            }
            other => return Err(SourceError::State { what: other.name() }),
        }
        self.say(&Message::Hello {
            oldest: VERSION_MIN,
            newest: VERSION_MAX,
            wants: Wants {
                frozen: self.round.frozen,
                durable: self.round.durable,
            },
        })?;
        // The sink looks at what it holds now. What this side knows is most likely that, so it looks at the same time.
        let began = crate::scan::now();
        let ahead = match known.as_ref() {
            Some(base) => match self.look(base) {
                Ok(todo) => Some((base.id, began, todo)),
                Err(SourceError::Scan(ScanError::Tree(_))) => {
                    *known = None;
                    None
                }
                Err(error) => return Err(error),
            },
            None => None,
        };
        let base = match self.hear()? {
            Message::Holds(Holds::Nothing) => {
                self.say(&Message::Base(message::Base::Nothing))?;
                None
            }
            Message::Holds(Holds::Tree(id)) => Some(match known.as_ref().filter(|known| known.id == id) {
                Some(known) => {
                    self.say(&Message::Base(message::Base::Tree(id)))?;
                    known.clone()
                }
                None => self.receive_manifest(id)?,
            }),
            other => return Err(SourceError::State { what: other.name() }),
        };
        let sent = match &base {
            None => self.send_all()?,
            Some(base) => {
                let (began, todo) = match ahead.filter(|(id, ..)| *id == base.id) {
                    Some((_, began, todo)) => (began, todo),
                    None => (crate::scan::now(), self.look(base)?),
                };
                self.send_changes(base, began, &todo)?
            }
        };
        let mut totals = sent.totals;
        totals.wire_bytes = self.queue.written();
        self.say(&Message::End(totals))?;
        loop {
            match self.hear()? {
                Message::Applied(applied) if applied.tree == totals.tree => break,
                Message::Applied(applied) => {
                    return Err(SourceError::NotEqual {
                        found: applied.tree,
                        wanted: totals.tree,
                    });
                }
                Message::Blocks(_) => {}
                other => return Err(SourceError::State { what: other.name() }),
            }
        }
        self.keep(&sent, known)?;
        Ok(totals)
    }

    /// Takes in the sink's manifest.
    fn receive_manifest(&self, id: TreeId) -> Result<Base, SourceError> {
        self.say(&Message::Base(message::Base::Send))?;
        let tree = self.work("sink.manifest");
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&tree)
            .map_err(|error| self.io(error))?;
        loop {
            match self.hear()? {
                Message::Manifest(bytes) => file.write_all(&bytes).map_err(|error| self.io(error))?,
                Message::ManifestEnd { tree } if tree == id => break,
                other => return Err(SourceError::State { what: other.name() }),
            }
        }
        crate::tree::check(file, Some(id))?;
        Ok(Base {
            id,
            tree,
            facts: None,
        })
    }

    fn report(&self, entries: u64, bytes: u64) {
        (self.progress)(RoundProgress {
            entries,
            bytes,
            wire_bytes: self.queue.written(),
        });
    }

    fn scan_options(&self) -> ScanOptions {
        ScanOptions {
            overlay: self.options.overlay,
            excludes: self.options.excludes.clone(),
            frozen: self.round.frozen,
            nested: self.options.nested,
            threads: self.options.threads,
        }
    }

    /// Sends everything.
    fn send_all(&self) -> Result<Sent, SourceError> {
        let options = self.scan_options();
        let root = crate::scan::open_root(&self.options.root)?;
        let context = Context::new(&root, &options, crate::scan::now(), Wanted::All);
        let walk = Walk::new(&root, &options)?;
        let mut items = Compare::new(walk, None, options.overlay, root.silent)?;
        let job = Job {
            root: &root,
            options: &options,
            context: &context,
        };
        self.send_items(job, &mut items, None)
    }

    /// Looks at everything beside the base, without reading.
    fn look(&self, base: &Base) -> Result<Todo, SourceError> {
        let options = self.scan_options();
        let root = crate::scan::open_root(&self.options.root)?;
        let walk = Walk::new(&root, &options)?;
        let compare = Compare::new(walk, Some(BaseEntries::open(base)?), options.overlay, root.silent)?;
        Ok(Todo::make(compare, &self.options.work, |seen| {
            self.report(seen, 0);
            Ok(())
        })?)
    }

    /// Sends the delta from the base to what is there now.
    fn send_changes(&self, base: &Base, began: Timestamp, todo: &Todo) -> Result<Sent, SourceError> {
        if let (0, 0, Some(summary)) = (todo.gone, todo.looks, todo.base) {
            self.finish_delta()?;
            return Ok(Sent {
                totals: totals_of(&summary),
                files: None,
            });
        }
        let options = self.scan_options();
        let root = crate::scan::open_root(&self.options.root)?;
        let index = Index::of(base, todo)?;
        let lacks = |id: &crate::entry::ChunkId| !index.has(id);
        let context = Context::new(&root, &options, began, Wanted::If(&lacks));
        let job = Job {
            root: &root,
            options: &options,
            context: &context,
        };
        let mut items = Replay::new(base, todo)?;
        self.send_items(job, &mut items, Some(&index))
    }

    fn send_items(
        &self,
        job: Job<'_>,
        items: &mut (dyn Items + Send),
        index: Option<&Index>,
    ) -> Result<Sent, SourceError> {
        let files = (self.work("next.tree"), self.work("next.facts"));
        let mut recorder = Recorder::create(&files.0, &files.1)?;
        let mut delta = Delta::new(Pending::new(self.queue, self.answers), index);
        let mut steps = 0_u32;
        crate::scan::run(job, items, &mut |mut found| {
            if let Found::End { settled: false } = found
                && job.options.frozen
            {
                return Err(SourceError::Scan(recorder.changed()));
            }
            recorder.take(&mut found)?;
            delta.take(found)?;
            steps += 1;
            if steps.is_multiple_of(256) {
                self.report(delta.counts.entries, delta.counts.bytes);
            }
            Ok(())
        })?;
        delta.pending.go_on(true)?;
        self.report(delta.counts.entries, delta.counts.bytes);
        let unsettled = recorder.unsettled;
        let mut summary = recorder.finish()?;
        let mut literal = delta.pending.literal;
        let changed = delta.counts.changed;
        drop(delta);
        self.say(&Message::Done)?;
        for pass in 0.. {
            let paths = match self.hear()? {
                Message::Again { paths } => paths,
                other => return Err(SourceError::State { what: other.name() }),
            };
            if paths.is_empty() {
                break;
            }
            if pass == MAX_PASSES {
                return Err(SourceError::State { what: "Again" });
            }
            let (again, more) = self.send_again(job, &paths, &files)?;
            summary = again;
            literal += more;
            self.say(&Message::Done)?;
        }
        Ok(Sent {
            totals: Totals {
                changed_entries: changed,
                literal_bytes: literal,
                unsettled,
                ..totals_of(&summary)
            },
            files: Some(files),
        })
    }

    /// Nothing is different.
    fn finish_delta(&self) -> Result<(), SourceError> {
        self.say(&Message::Done)?;
        match self.hear()? {
            Message::Again { paths } if paths.is_empty() => Ok(()),
            other => Err(SourceError::State { what: other.name() }),
        }
    }

    /// Sends some files once more, whole. The tree gets what they are now.
    fn send_again(
        &self,
        job: Job<'_>,
        paths: &[Vec<u8>],
        files: &(PathBuf, PathBuf),
    ) -> Result<(TreeSummary, u64), SourceError> {
        let base = Base {
            id: self.id_of(&files.0)?,
            tree: files.0.clone(),
            facts: Some(files.1.clone()),
        };
        let root: &Root = job.root;
        let context = Context::new(root, job.options, crate::scan::now(), Wanted::All);
        let job = Job {
            context: &context,
            ..job
        };
        let mut items = crate::scan::Again::new(&base, root, paths)?;
        let next = (self.work("again.tree"), self.work("again.facts"));
        let mut recorder = Recorder::create(&next.0, &next.1)?;
        let mut delta = Delta::new(Pending::new(self.queue, self.answers), None);
        crate::scan::run(job, &mut items, &mut |mut found| {
            if let Found::End { settled: false } = found
                && job.options.frozen
            {
                return Err(SourceError::Scan(recorder.changed()));
            }
            recorder.take(&mut found)?;
            delta.take(found)
        })?;
        delta.pending.go_on(true)?;
        let literal = delta.pending.literal;
        let summary = recorder.finish()?;
        std::fs::rename(&next.0, &files.0).map_err(|error| self.io(error))?;
        std::fs::rename(&next.1, &files.1).map_err(|error| self.io(error))?;
        Ok((summary, literal))
    }

    fn id_of(&self, tree: &Path) -> Result<TreeId, SourceError> {
        let file = File::open(tree).map_err(|error| self.io(error))?;
        Ok(crate::tree::TreeReader::new(file).finish(None)?.id)
    }

    /// Keeps the tree that was sent for the next round.
    fn keep(&self, sent: &Sent, known: &mut Option<Base>) -> Result<(), SourceError> {
        let Some((tree, facts)) = &sent.files else {
            return Ok(());
        };
        let id = sent.totals.tree;
        let base = Base {
            id,
            tree: self.work(&format!("{id}.tree")),
            facts: Some(self.work(&format!("{id}.facts"))),
        };
        std::fs::rename(tree, &base.tree).map_err(|error| self.io(error))?;
        std::fs::rename(facts, self.work(&format!("{id}.facts"))).map_err(|error| self.io(error))?;
        if let Some(old) = known.replace(base).filter(|old| old.id != id) {
            let _ = std::fs::remove_file(&old.tree);
            if let Some(facts) = &old.facts {
                let _ = std::fs::remove_file(facts);
            }
        }
        Ok(())
    }
}

/// What was sent.
struct Sent {
    totals: Totals,
    /// Its tree and facts, unless it is the base.
    files: Option<(PathBuf, PathBuf)>,
}

fn totals_of(summary: &TreeSummary) -> Totals {
    Totals {
        tree: summary.id,
        entries: summary.entries,
        bytes: summary.bytes,
        changed_entries: 0,
        literal_bytes: 0,
        wire_bytes: 0,
        unsettled: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_another_boot_are_not_used() {
        let work = tempfile::tempdir().unwrap();
        let options = SourceOptions {
            root: work.path().to_owned(),
            overlay: false,
            work: work.path().to_owned(),
            excludes: Excludes::default(),
            nested: Nested::default(),
            compression: Compression::default(),
            limit_rate: None,
            threads: 0,
        };
        let names = ["tree", "facts"].map(|kind| format!("{}.{kind}", "ab".repeat(32)));
        let write = || {
            names
                .iter()
                .for_each(|name| std::fs::write(work.path().join(name), "").unwrap())
        };
        assert!(Source::open(options.clone()).unwrap().known.is_none());
        write();
        assert!(Source::open(options.clone()).unwrap().known.is_some());
        std::fs::write(work.path().join(BOOT), "another").unwrap();
        assert!(Source::open(options.clone()).unwrap().known.is_none());
        assert!(names.iter().all(|name| !work.path().join(name).exists()));
        write();
        assert!(Source::open(options).unwrap().known.is_some());
    }
}
