//! Operations in order, some of which wait for the sink's hashes of blocks.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use bytes::{Bytes, BytesMut};

use super::SourceError;
use super::blocks::{Grid, matches, patch};
use super::body::Body;
use super::wire::{Frame, Queue};
use crate::entry::{ChunkId, Entry};
use crate::frame::FrameError;
use crate::message::{Ask, AskRange, MAX_CHUNK, Message, Operation, Part};

/// Bytes of content that wait for hashes, at most.
const BYTES: usize = 64 << 20;
/// Operations that wait, at most.
const OPERATIONS: usize = 16 << 10;
/// A question is sent when it covers this many bytes of the base or so many ranges.
const ASK_BYTES: u64 = 4 << 20;
const ASK_RANGES: usize = 256;

/// New content of a file, and where the base may have something like it.
pub(super) struct Gap {
    pub(super) path: Arc<[u8]>,
    pub(super) chunks: Vec<(ChunkId, Bytes)>,
    /// Bytes of all chunks.
    pub(super) length: u64,
    pub(super) base_from: u64,
    pub(super) base_length: u32,
    /// Where the content begins in a file that is written in place: what the base has before a chunk of it is overwritten by then.
    pub(super) not_before: Option<u64>,
}

/// A question that has been sent or will be.
struct Question {
    ask: Ask,
    number: usize,
    gaps: usize,
    hashes: usize,
    bytes: u64,
}

/// Where a gap's hashes will be.
struct Place {
    question: usize,
    first: usize,
    grid: Grid,
}

enum Waiting {
    Operation(Operation),
    Whole(Entry, ChunkId, Bytes),
    Gap(Gap, Place),
}

/// The operations.
pub(super) struct Pending<'a> {
    queue: &'a Queue,
    answers: &'a Receiver<Result<Message, FrameError>>,
    body: Body,
    waiting: VecDeque<Waiting>,
    bytes: usize,
    /// Questions that are being put together, by size of block.
    questions: HashMap<u32, Question>,
    next_question: usize,
    /// Numbers of those that were sent and have no answer, in order.
    sent: VecDeque<usize>,
    answered: HashMap<usize, Answer>,
    pub(super) literal: u64,
}

struct Answer {
    hashes: Vec<u64>,
    /// Gaps that did not take their part yet.
    left: usize,
}

impl<'a> Pending<'a> {
    pub(super) fn new(queue: &'a Queue, answers: &'a Receiver<Result<Message, FrameError>>) -> Self {
        Self {
            queue,
            answers,
            body: Body::default(),
            waiting: VecDeque::new(),
            bytes: 0,
            questions: HashMap::new(),
            next_question: 0,
            sent: VecDeque::new(),
            answered: HashMap::new(),
            literal: 0,
        }
    }

    /// An operation without content.
    pub(super) fn put(&mut self, operation: Operation) -> Result<(), SourceError> {
        if self.waiting.is_empty() {
            return Ok(self.body.put(&operation, self.queue)?);
        }
        self.waiting.push_back(Waiting::Operation(operation));
        Ok(())
    }

    /// A chunk that the base does not have.
    pub(super) fn data(&mut self, id: ChunkId, bytes: Bytes) -> Result<(), SourceError> {
        self.literal += bytes.len() as u64;
        if !self.waiting.is_empty() {
            self.bytes += bytes.len();
        }
        self.put(Operation::Data { id, bytes })
    }

    /// A chunk that is known to be like one of the base's.
    pub(super) fn patch(&mut self, operation: Operation) -> Result<(), SourceError> {
        if let Operation::Patch { parts, .. } = &operation {
            let literal = parts.iter().map(|part| match part {
                Part::Literal(bytes) => bytes.len() as u64,
                Part::Base { .. } => 0,
            });
            self.literal += literal.sum::<u64>();
        }
        self.put(operation)
    }

    /// A small file.
    pub(super) fn whole(&mut self, entry: Entry, id: ChunkId, bytes: Bytes) -> Result<(), SourceError> {
        self.literal += bytes.len() as u64;
        if self.waiting.is_empty() {
            return Ok(self.body.whole(&entry, &id, &bytes, self.queue)?);
        }
        self.bytes += bytes.len();
        self.waiting.push_back(Waiting::Whole(entry, id, bytes));
        Ok(())
    }

    /// Content that may be like the base's.
    pub(super) fn gap(&mut self, gap: Gap) -> Result<(), SourceError> {
        let grid = Grid::of(gap.base_from, gap.base_length);
        let block = grid.block;
        let next = &mut self.next_question;
        let question = self.questions.entry(block).or_insert_with(|| {
            *next += 1;
            Question {
                ask: Ask {
                    block,
                    ranges: Vec::new(),
                },
                number: *next,
                gaps: 0,
                hashes: 0,
                bytes: 0,
            }
        });
        let place = Place {
            question: question.number,
            first: question.hashes,
            grid,
        };
        question.hashes += grid.count();
        question.bytes += u64::from(gap.base_length);
        question.gaps += 1;
        for (offset, length) in [
            (gap.base_from, grid.head),
            (gap.base_from + u64::from(grid.head), grid.length - grid.head),
        ] {
            if length > 0 {
                question.ask.ranges.push(AskRange {
                    path: gap.path.to_vec(),
                    offset,
                    length,
                });
            }
        }
        let enough = question.bytes >= ASK_BYTES || question.ask.ranges.len() >= ASK_RANGES;
        self.bytes += gap.length as usize;
        self.waiting.push_back(Waiting::Gap(gap, place));
        if enough {
            self.ask(block);
        }
        Ok(())
    }

    fn ask(&mut self, block: u32) {
        if let Some(question) = self.questions.remove(&block) {
            self.sent.push_back(question.number);
            self.answered.insert(
                question.number,
                Answer {
                    hashes: Vec::new(),
                    left: question.gaps,
                },
            );
            self.queue.ask(Frame::of(&Message::Ask(question.ask)));
        }
    }

    fn ask_all(&mut self) {
        let blocks: Vec<u32> = self.questions.keys().copied().collect();
        for block in blocks {
            self.ask(block);
        }
    }

    /// Sends what can be sent; all of it, if `all`, and otherwise waits only while too much waits.
    pub(super) fn go_on(&mut self, all: bool) -> Result<(), SourceError> {
        loop {
            match self.answers.try_recv() {
                Ok(answer) => self.answer(answer?)?,
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Err(FrameError::Closed.into()),
            }
            self.send_ready()?;
            let too_much = self.bytes > BYTES || self.waiting.len() > OPERATIONS;
            if self.waiting.is_empty() || !(all || too_much) {
                break;
            }
            self.ask_all();
            let answer = self.answers.recv().map_err(|_| FrameError::Closed)?;
            self.answer(answer?)?;
        }
        if all {
            self.body.send(self.queue)?;
        }
        Ok(())
    }

    fn answer(&mut self, message: Message) -> Result<(), SourceError> {
        match message {
            Message::Blocks(blocks) => {
                let number = self
                    .sent
                    .pop_front()
                    .ok_or(SourceError::State { what: "Blocks" })?;
                if let Some(answer) = self.answered.get_mut(&number) {
                    answer.hashes = blocks.hashes;
                }
                Ok(())
            }
            Message::Failed(fault) => Err(SourceError::Peer(fault)),
            other => Err(SourceError::State { what: other.name() }),
        }
    }

    fn send_ready(&mut self) -> Result<(), SourceError> {
        while let Some(waiting) = self.waiting.front() {
            if let Waiting::Gap(_, place) = waiting
                && (!self.answered.contains_key(&place.question) || self.sent.contains(&place.question))
            {
                return Ok(());
            }
            match self.waiting.pop_front() {
                None => {}
                Some(Waiting::Operation(operation)) => {
                    if let Operation::Data { bytes, .. } = &operation {
                        self.bytes = self.bytes.saturating_sub(bytes.len());
                    }
                    self.body.put(&operation, self.queue)?;
                }
                Some(Waiting::Whole(entry, id, bytes)) => {
                    self.bytes = self.bytes.saturating_sub(bytes.len());
                    self.body.whole(&entry, &id, &bytes, self.queue)?;
                }
                Some(Waiting::Gap(gap, place)) => {
                    self.bytes = self.bytes.saturating_sub(gap.length as usize);
                    self.fill(gap, &place)?;
                }
            }
        }
        Ok(())
    }

    fn fill(&mut self, gap: Gap, place: &Place) -> Result<(), SourceError> {
        let mut found = Vec::new();
        if let Some(answer) = self.answered.get_mut(&place.question) {
            // No hashes: the sink could not read what it should have.
            if let Some(hashes) = answer.hashes.get(place.first..place.first + place.grid.count()) {
                found = match &gap.chunks[..] {
                    [(_, only)] => matches(only, place.grid, hashes),
                    several => {
                        let mut joined = BytesMut::with_capacity(gap.length as usize);
                        for (_, bytes) in several {
                            joined.extend_from_slice(bytes);
                        }
                        matches(&joined, place.grid, hashes)
                    }
                };
            }
            answer.left -= 1;
            if answer.left == 0 {
                self.answered.remove(&place.question);
            }
        }
        let mut at = 0;
        for (id, bytes) in gap.chunks {
            let not_before = gap
                .not_before
                .map(|begin| (begin + at as u64).saturating_sub(gap.base_from) as usize);
            match patch(&bytes, at, &found, not_before, MAX_CHUNK) {
                Some(patch) => {
                    self.literal += patch.literal as u64;
                    let operation = Operation::Patch {
                        path: gap.path.to_vec(),
                        offset: gap.base_from + patch.from as u64,
                        length: patch.length as u32,
                        id,
                        parts: patch.parts,
                    };
                    self.body.put(&operation, self.queue)?;
                }
                None => {
                    self.literal += bytes.len() as u64;
                    let bytes = bytes.clone();
                    self.body.put(&Operation::Data { id, bytes }, self.queue)?;
                }
            }
            at += bytes.len();
        }
        Ok(())
    }
}
