//! What is said in one round, from the greeting to the last comparison.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Mutex, PoisonError};

use tranship_core::storage::{RoundOptions, RoundProgress};

use super::delta::Delta;
use super::index::Index;
use super::pending::Pending;
use super::wire::{Frame, Queue};
use super::{MAX_PASSES, SourceError, SourceOptions};
use crate::entry::{Timestamp, TreeId};
use crate::frame::FrameError;
use crate::message::{self, Ask, AskRange, Blocks, Holds, Message, Totals, VERSION_MAX, VERSION_MIN, Wants};
use crate::scan::{
    Base, Compare, Context, Early, Found, Hashes, Items, Job, Recorder, Replay, Root, ScanError, ScanOptions,
    Todo, Walk, Wanted,
};
use crate::tree::TreeSummary;

/// Bytes of the base's large files, and of a block of theirs that the sink is asked for ahead: there are no more hashes than 64 MiB.
const BLOCKS: [(u64, u32); 2] = [(4 << 30, 512), (32 << 30, 4096)];
/// Bytes that are asked for at once.
const STRETCH: u32 = 1 << 20;
/// Questions ahead that wait for their answer, at most.
const ASKED: usize = 32;

/// What one round works with.
pub(super) struct Round<'a> {
    pub(super) options: &'a SourceOptions,
    pub(super) round: RoundOptions,
    pub(super) queue: &'a Queue,
    pub(super) answers: &'a Receiver<Result<Message, FrameError>>,
    pub(super) early: &'a Mutex<Early>,
    pub(super) progress: &'a (dyn Fn(RoundProgress) + Sync),
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

    /// The sink hears why the round is over, unless it knows.
    pub(super) fn fail(&self, error: SourceError) -> SourceError {
        let error = self.explain(error);
        if !matches!(
            error,
            SourceError::Peer(_) | SourceError::Frame(FrameError::Stream(_) | FrameError::Closed)
        ) {
            let _ = self
                .queue
                .push(Frame::of(&Message::Failed(Box::new(error.fault()))));
        }
        error
    }

    /// Learns who is there, and says who speaks.
    fn greet(&self) -> Result<(), SourceError> {
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
        })
    }

    /// Learns what the sink holds, and says whether that is what this side knows.
    fn hear_base(&self, known: Option<&Base>) -> Result<Option<Base>, SourceError> {
        match self.hear()? {
            Message::Holds(Holds::Nothing) => {
                self.say(&Message::Base(message::Base::Nothing))?;
                Ok(None)
            }
            Message::Holds(Holds::Tree(id)) => Ok(Some(match known.filter(|known| known.id == id) {
                Some(known) => {
                    self.say(&Message::Base(message::Base::Tree(id)))?;
                    known.clone()
                }
                None => self.receive_manifest(id)?,
            })),
            other => Err(SourceError::State { what: other.name() }),
        }
    }

    /// The sink looks at what it holds, and this side at the same time: what it knows is most likely that. Damaged records are
    /// forgotten.
    fn look_ahead(&self, known: &mut Option<Base>) -> Result<Option<(TreeId, Timestamp, Todo)>, SourceError> {
        let began = crate::scan::now();
        let Some(base) = known.as_ref() else {
            return Ok(None);
        };
        match self.look(base) {
            Ok(todo) => Ok(Some((base.id, began, todo))),
            Err(SourceError::Scan(ScanError::Tree(_))) => {
                *known = None;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What the sink holds. The look ahead shows that this side's records can be read, while it does not matter how long that takes.
    pub(super) fn meet(&mut self, known: &mut Option<Base>) -> Result<Option<Base>, SourceError> {
        self.greet()?;
        let wished = self.round;
        // Whatever is to stand still in the round may still be written to now.
        self.round.frozen = false;
        let looked = self.look_ahead(known);
        self.round = wished;
        looked?;
        self.hear_base(known.as_ref())
    }

    /// Learns what the large files of the base hold, in hashes of blocks. Of more than can be kept in memory it learns nothing.
    pub(super) fn ask_ahead(&self, base: &Base) -> Result<Hashes, SourceError> {
        let files = crate::scan::large_files(base)?;
        let all: u64 = files.iter().map(|file| file.size).sum();
        let Some((_, block)) = BLOCKS.into_iter().find(|(most, _)| all <= *most) else {
            return Ok(Hashes::default());
        };
        let mut hashes = Hashes {
            block,
            ..Hashes::default()
        };
        let mut asked: VecDeque<(Vec<u8>, u32)> = VecDeque::new();
        for file in files {
            for offset in (0..file.size).step_by(STRETCH as usize) {
                let length = (file.size - offset).min(u64::from(STRETCH)) as u32;
                if asked.len() >= ASKED {
                    self.hear_blocks(&mut asked, &mut hashes)?;
                }
                asked.push_back((file.path.clone(), length.div_ceil(block)));
                let path = file.path.clone();
                let ranges = vec![AskRange { path, offset, length }];
                self.queue.ask(Frame::of(&Message::Ask(Ask { block, ranges })));
            }
        }
        while !asked.is_empty() {
            self.hear_blocks(&mut asked, &mut hashes)?;
        }
        Ok(hashes)
    }

    /// The answer to the oldest question. What a sink cannot read it does not answer, and nothing of it is like anything then.
    fn hear_blocks(
        &self,
        asked: &mut VecDeque<(Vec<u8>, u32)>,
        hashes: &mut Hashes,
    ) -> Result<(), SourceError> {
        let mut found = match self.hear()? {
            Message::Blocks(Blocks { hashes }) => hashes,
            other => return Err(SourceError::State { what: other.name() }),
        };
        if let Some((path, count)) = asked.pop_front() {
            found.resize(count as usize, 0);
            hashes.files.entry(path).or_default().append(&mut found);
        }
        Ok(())
    }

    /// Whether the sink said anything while it was to wait.
    fn still_there(&self) -> Result<(), SourceError> {
        match self.answers.try_recv() {
            Err(TryRecvError::Empty) => Ok(()),
            Err(TryRecvError::Disconnected) => Err(FrameError::Closed.into()),
            Ok(Err(error)) => Err(error.into()),
            Ok(Ok(Message::Failed(fault))) => Err(SourceError::Peer(fault)),
            Ok(Ok(other)) => Err(SourceError::State { what: other.name() }),
        }
    }

    /// The round; where the sink was met before, from what it holds.
    pub(super) fn converse(
        &mut self,
        met: Option<Option<Base>>,
        known: &mut Option<Base>,
    ) -> Result<Totals, SourceError> {
        let (base, ahead) = match met {
            Some(base) => {
                self.still_there()?;
                (base, None)
            }
            None => {
                self.greet()?;
                let ahead = self.look_ahead(known)?;
                (self.hear_base(known.as_ref())?, ahead)
            }
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
        Ok(Todo::look(&root, &options, base, &self.options.work, |seen| {
            self.report(seen, 0);
            Ok(())
        })?)
    }

    /// Sends the delta from the base to what is there now.
    fn send_changes(&self, base: &Base, began: Timestamp, todo: &Todo) -> Result<Sent, SourceError> {
        if let (0, 0, Some(summary)) = (todo.gone, todo.looks, todo.base) {
            self.finish_delta()?;
            return Ok(Sent {
                totals: Totals::of(&summary),
                files: None,
            });
        }
        let options = self.scan_options();
        let root = crate::scan::open_root(&self.options.root)?;
        let index = Index::of(base, todo)?;
        let lacks = |id: &crate::entry::ChunkId| !index.has(id);
        let early = std::mem::take(&mut *self.early.lock().unwrap_or_else(PoisonError::into_inner));
        let context = Context::new(&root, &options, began, Wanted::If(&lacks)).with_early(early);
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
                ..Totals::of(&summary)
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
