//! The way to the other side: a queue of frames and the thread that writes them.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tranship_core::storage::Compression;

use super::adapt::Adapt;
use crate::frame::{FrameError, FrameWriter};
use crate::message::{DELTA, Message};

/// Bytes of frames that wait to be written, at most.
const QUEUE: usize = 8 << 20;
/// After this long without a frame, the other side is told that this one is still there.
const ALIVE: Duration = Duration::from_secs(5);

/// A frame that waits.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) parts: Vec<Bytes>,
}

impl Frame {
    pub(super) fn of(message: &Message) -> Self {
        Self {
            kind: message.kind(),
            parts: vec![message.body()],
        }
    }

    fn length(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Frame>,
    bytes: usize,
    /// Nothing more will come.
    ended: bool,
    failed: Option<FrameError>,
    /// The writer stopped.
    stopped: bool,
}

/// Frames on their way.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    moved: Condvar,
    written: AtomicU64,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a frame at the end; waits while the queue is full.
    pub(super) fn push(&self, frame: Frame) -> Result<(), FrameError> {
        let mut state = self.lock();
        while state.bytes >= QUEUE && !state.stopped {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stopped {
            return Err(state.failed.take().unwrap_or(FrameError::Closed));
        }
        state.bytes += frame.length();
        state.frames.push_back(frame);
        self.moved.notify_all();
        Ok(())
    }

    /// Puts a question before the operations that wait, and does not wait itself. What says where the conversation stands is not
    /// overtaken: a question that came before the answer to "what do we both have?" would be one about nothing.
    pub(super) fn ask(&self, frame: Frame) {
        let mut state = self.lock();
        let before = state.frames.iter().rposition(|waiting| waiting.kind != DELTA);
        state.bytes += frame.length();
        state.frames.insert(before.map_or(0, |at| at + 1), frame);
        self.moved.notify_all();
    }

    /// Nothing more comes. What is there is still written.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.moved.notify_all();
    }

    /// Bytes written so far.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Waits for the next frame for a while; `Err` when there will be none any more.
    fn next(&self, idle: &mut bool) -> Result<Option<Frame>, ()> {
        let mut state = self.lock();
        let began = Instant::now();
        loop {
            if let Some(frame) = state.frames.pop_front() {
                state.bytes -= frame.length();
                self.moved.notify_all();
                return Ok(Some(frame));
            }
            if state.ended {
                return Err(());
            }
            if !*idle {
                // The caller flushes first.
                *idle = true;
                return Ok(None);
            }
            let left = ALIVE.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Ok(Some(Frame::of(&Message::Alive)));
            }
            state = self
                .moved
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Writes what comes until nothing more does.
    pub(super) fn write_all<W: Write>(&self, output: W, compression: Compression, limit: Option<u64>) {
        let output = io::BufWriter::with_capacity(64 << 10, Limited::new(output, limit));
        let mut writer = FrameWriter::new(output);
        let mut adapt = Adapt::new(compression, limit);
        let mut idle = false;
        let result = loop {
            let frame = match self.next(&mut idle) {
                Ok(Some(frame)) => frame,
                Ok(None) => match writer.flush() {
                    Ok(()) => continue,
                    Err(error) => break Err(error),
                },
                Err(()) => break writer.flush(),
            };
            idle = false;
            let result = match adapt.level(&frame.parts) {
                None => {
                    let parts: Vec<&[u8]> = frame.parts.iter().map(|part| &part[..]).collect();
                    writer.parts(frame.kind, &parts)
                }
                Some(level) => {
                    let body = joined(frame.parts);
                    writer.compressed(frame.kind, &body, level).map(|_| ())
                }
            };
            if let Err(error) = result {
                break Err(error);
            }
            self.written.store(writer.written(), Ordering::Relaxed);
            adapt.wrote(writer.written(), self.lock().bytes >= QUEUE / 2);
        };
        self.written.store(writer.written(), Ordering::Relaxed);
        let mut state = self.lock();
        state.stopped = true;
        state.failed = result.err();
        self.moved.notify_all();
    }
}

fn joined(mut parts: Vec<Bytes>) -> Bytes {
    match parts.len() {
        1 => parts.swap_remove(0),
        _ => parts.concat().into(),
    }
}

/// Lets no more bytes per second through than allowed, in small pieces.
struct Limited<W> {
    inner: W,
    /// Bytes per second.
    limit: Option<u64>,
    began: Instant,
    passed: u64,
}

impl<W> Limited<W> {
    fn new(inner: W, limit: Option<u64>) -> Self {
        Self {
            inner,
            limit: limit.filter(|limit| *limit > 0),
            began: Instant::now(),
            passed: 0,
        }
    }
}

impl<W: Write> Write for Limited<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(limit) = self.limit else {
            return self.inner.write(bytes);
        };
        // What was not used is forgotten after a tenth of a second, so that a pause does not become a burst.
        let due = Duration::from_secs_f64(self.passed as f64 / limit as f64);
        let elapsed = self.began.elapsed();
        if let Some(early) = due.checked_sub(elapsed) {
            std::thread::sleep(early);
        } else if elapsed - due > Duration::from_millis(100) {
            self.began = Instant::now();
            self.passed = 0;
        }
        let piece = (limit / 20).clamp(1024, 1 << 20) as usize;
        let written = self.inner.write(&bytes[..bytes.len().min(piece)])?;
        self.passed += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameReader;

    #[test]
    fn frames_arrive_in_order_and_questions_before_them() {
        let queue = Queue::default();
        for at in 0..3_u8 {
            queue
                .push(Frame {
                    kind: DELTA,
                    parts: vec![Bytes::from(vec![at]), Bytes::from_static(b"x")],
                })
                .unwrap();
        }
        for block in [1024, 2048] {
            queue.ask(question(block));
        }
        queue.end();
        let mut out = Vec::new();
        queue.write_all(&mut out, Compression::None, None);
        assert_eq!(queue.written(), out.len() as u64);
        let mut reader = FrameReader::new(&out[..]);
        for block in [1024, 2048] {
            assert!(matches!(reader.message().unwrap(), Message::Ask(ask) if ask.block == block));
        }
        for at in 0..3_u8 {
            assert_eq!(
                reader.message().unwrap(),
                Message::Delta(Bytes::from(vec![at, b'x']))
            );
        }
    }

    fn question(block: u32) -> Frame {
        Frame::of(&Message::Ask(crate::message::Ask {
            block,
            ranges: Vec::new(),
        }))
    }

    #[test]
    fn a_question_does_not_overtake_what_it_follows_from() {
        let queue = Queue::default();
        let delta = || Frame {
            kind: DELTA,
            parts: vec![Bytes::from_static(b"x")],
        };
        let base = Message::Base(crate::message::Base::Nothing);
        queue.push(delta()).unwrap();
        queue.push(Frame::of(&base)).unwrap();
        queue.push(delta()).unwrap();
        queue.ask(question(1024));
        queue.end();
        let mut out = Vec::new();
        queue.write_all(&mut out, Compression::None, None);
        let mut reader = FrameReader::new(&out[..]);
        assert!(matches!(reader.message().unwrap(), Message::Delta(_)));
        assert_eq!(reader.message().unwrap(), base);
        assert!(matches!(reader.message().unwrap(), Message::Ask(_)));
        assert!(matches!(reader.message().unwrap(), Message::Delta(_)));
    }

    #[test]
    fn a_broken_pipe_reaches_whoever_sends() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let queue = Queue::default();
        std::thread::scope(|scope| {
            scope.spawn(|| queue.write_all(Broken, Compression::None, None));
            let big = Bytes::from(vec![0; 4 << 20]);
            let error = loop {
                if let Err(error) = queue.push(Frame {
                    kind: DELTA,
                    parts: vec![big.clone()],
                }) {
                    break error;
                }
            };
            assert!(matches!(error, FrameError::Stream(_)));
        });
    }

    #[test]
    fn the_limit_holds() {
        let began = Instant::now();
        let mut limited = Limited::new(Vec::new(), Some(1 << 20));
        limited.write_all(&vec![0; 200 << 10]).unwrap();
        // No faster than that; how much slower depends on the machine.
        assert!(
            began.elapsed() >= Duration::from_millis(140),
            "{:?}",
            began.elapsed()
        );
    }
}
