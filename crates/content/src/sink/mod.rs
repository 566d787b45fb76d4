//! The half of a round that writes.
//!
//! Three threads: one reads and unpacks frames, one applies operations, one answers questions for block hashes. Between them are
//! queues of a few frames, so memory does not grow with what is sent. Files that come whole, which small ones do, are made by
//! some threads more (`pool`), and go into the manifest in its order (`pending`).
//!
//! At any moment a crash leaves only checked bytes under final names, a staging directory that the next round removes, and a
//! record that the next round compares with what is there.

mod answer;
mod apply;
mod attributes;
mod content;
mod dirs;
mod element;
mod error;
mod pending;
mod place;
mod pool;
mod record;
mod refusal;
mod remove;
mod room;
mod worker;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use tranship_core::storage::{RoundProgress, RoundReport};

pub use element::DirectorySink;
pub use error::SinkError;
pub use place::STAGING_NAME;
pub use remove::{Usage, clear, usage};

use crate::frame::{FrameError, FrameReader, FrameWriter};
use crate::message::{Base, Holds, Message, Totals, VERSION_MAX, VERSION_MIN, Wants};
use crate::scan::{self, ScanError, ScanOptions};
use crate::tree::TreeSummary;
use place::Place;
use record::{Held, Record};
use worker::{Outcome, Task};

/// Frames of operations that wait to be applied, at most.
const QUEUE: usize = 3;
/// Questions that wait for their answer, at most.
const QUESTIONS: usize = 64;
/// How often files may be asked for again.
const MAX_PASSES: u32 = 3;
/// After this long without a word, the other side is told that this one is still there.
const ALIVE: Duration = Duration::from_secs(5);

/// What a sink writes to.
#[derive(Debug, Clone)]
pub struct SinkOptions {
    /// The directory that becomes equal to the source. It has to exist.
    pub root: PathBuf,
    /// A directory for the record of what the root holds, outside the root and of this root alone. Made if it is not there.
    pub work: PathBuf,
    /// The root is the upper directory of an overlay.
    pub overlay: bool,
}

/// The way to the other side, for all threads.
struct Voice<W> {
    frames: Mutex<(FrameWriter<W>, Instant, bool)>,
}

impl<W: Write> Voice<W> {
    fn lock(&self) -> MutexGuard<'_, (FrameWriter<W>, Instant, bool)> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, message: &Message) -> Result<(), SinkError> {
        let mut frames = self.lock();
        if frames.2 {
            return Ok(());
        }
        frames.0.message(message)?;
        frames.1 = Instant::now();
        Ok(())
    }

    /// Tells the other side why the round is over. Nothing is said after that.
    fn fail(&self, error: &SinkError) {
        if matches!(
            error,
            SinkError::Peer(_) | SinkError::Frame(FrameError::Stream(_) | FrameError::Closed)
        ) {
            return;
        }
        let _ = self.say(&Message::Failed(Box::new(error.fault())));
        self.lock().2 = true;
    }

    fn alive(&self) -> Result<(), SinkError> {
        if self.lock().1.elapsed() < ALIVE {
            return Ok(());
        }
        self.say(&Message::Alive)
    }

    fn written(&self) -> u64 {
        self.lock().0.written()
    }
}

/// Takes in one round: makes the root equal to the source at the other end of the streams.
///
/// # Errors
/// The root is not equal to the source, and the other side was told why where that was possible. What arrived stays, and another
/// round uses it.
pub fn round<R: Read, W: Write + Send>(
    input: R,
    output: W,
    options: &SinkOptions,
    progress: &(dyn Fn(RoundProgress) + Sync),
) -> Result<RoundReport, SinkError> {
    let started = Instant::now();
    let voice = Voice {
        frames: Mutex::new((FrameWriter::new(output), Instant::now(), false)),
    };
    let mut frames = FrameReader::new(input);
    let (stop, stopped) = sync_channel::<()>(0);
    let result = std::thread::scope(|scope| {
        let voice = &voice;
        thread("sink-alive", scope, move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(ALIVE) {
                if voice.alive().is_err() {
                    return;
                }
            }
        })?;
        let result = converse(&mut frames, voice, options, progress);
        drop(stop);
        result
    });
    if let Err(error) = &result {
        voice.fail(error);
    }
    let totals = result?;
    Ok(RoundReport {
        tree: totals.tree.to_string(),
        entries: totals.entries,
        bytes: totals.bytes,
        changed_entries: totals.changed_entries,
        literal_bytes: totals.literal_bytes,
        wire_bytes: frames.taken() + voice.written(),
        unsettled: totals.unsettled,
        milliseconds: started.elapsed().as_millis() as u64,
    })
}

/// Starts a thread of a round.
fn thread<'scope, T: Send + 'scope, F: FnOnce() -> T + Send + 'scope>(
    name: &str,
    scope: &'scope Scope<'scope, '_>,
    run: F,
) -> Result<ScopedJoinHandle<'scope, T>, SinkError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn_scoped(scope, run)
        .map_err(SinkError::Thread)
}

/// The next message; a fault of the other side is an error.
fn hear<R: Read>(frames: &mut FrameReader<R>) -> Result<Message, SinkError> {
    match frames.message()? {
        Message::Failed(fault) => Err(SinkError::Peer(fault)),
        message => Ok(message),
    }
}

fn unexpected<T>(message: &Message) -> Result<T, SinkError> {
    Err(SinkError::State { what: message.name() })
}

fn converse<R: Read, W: Write + Send>(
    frames: &mut FrameReader<R>,
    voice: &Voice<W>,
    options: &SinkOptions,
    progress: &(dyn Fn(RoundProgress) + Sync),
) -> Result<Totals, SinkError> {
    voice.say(&Message::Hello {
        oldest: VERSION_MIN,
        newest: VERSION_MAX,
        wants: Wants::default(),
    })?;
    let wants = match hear(frames)? {
        Message::Hello {
            oldest,
            newest,
            wants,
        } => {
            if oldest > newest || oldest > VERSION_MAX || newest < VERSION_MIN {
                return Err(SinkError::Version { oldest, newest });
            }
            wants
        }
        other => return unexpected(&other),
    };
    let record = Record::open(&options.work)?;
    let place = Arc::new(Place::open(&options.root, options.overlay)?);
    let base = if remove::is_empty(place.root())? {
        None
    } else {
        Some(look(&record, &place, options, wants)?)
    };
    voice.say(&Message::Holds(match &base {
        None => Holds::Nothing,
        Some((summary, _)) => Holds::Tree(summary.id),
    }))?;
    match (hear(frames)?, &base) {
        (Message::Base(Base::Nothing), None) => {}
        (Message::Base(Base::Tree(id)), Some((summary, _))) if id == summary.id => {}
        (Message::Base(Base::Send), Some((summary, held))) => {
            record::pieces(&held.manifest, |piece| {
                voice.say(&Message::Manifest(piece.into()))
            })?;
            voice.say(&Message::ManifestEnd { tree: summary.id })?;
        }
        (other, _) => return unexpected(&other),
    }
    let (tasks, queue) = sync_channel(QUEUE);
    let (report, outcomes) = sync_channel(1);
    let (questions, asked) = sync_channel(QUESTIONS);
    let worker = worker::Worker::new(&record, place.clone(), base, wants);
    let shared = &worker.shared;
    let progress = |wire: u64| progress(shared.progress(wire));
    std::thread::scope(|scope| {
        let (place, worker) = (&place, &worker);
        thread("sink-answer", scope, move || answer::answer(place, asked, voice))?;
        let applying = thread("sink-apply", scope, move || {
            if let Err(error) = worker.run(&queue, &report) {
                // The reader may be waiting for the other side, which ends its waiting; and it finds the reason before it finds
                // that nobody takes from the queue.
                voice.fail(&error);
                shared.fail(error);
            }
        })?;
        let mut talk = || -> Result<Totals, SinkError> {
            // A worker that is gone left its reason.
            let gone = |_| SinkError::Defect("the worker is gone");
            for _ in 0..MAX_PASSES {
                loop {
                    match hear(frames)? {
                        Message::Delta(body) => tasks
                            .send(Task::Operations(body))
                            .map_err(|_| SinkError::Defect("the worker is gone"))?,
                        Message::Ask(ask) => questions
                            .send(ask)
                            .map_err(|_| SinkError::Defect("the answers are gone"))?,
                        Message::Done => break,
                        other => return unexpected(&other),
                    }
                    progress(frames.taken());
                }
                tasks
                    .send(Task::Done)
                    .map_err(|_| SinkError::Defect("the worker is gone"))?;
                let Outcome::Pass { again } = outcomes.recv().map_err(gone)? else {
                    return Err(SinkError::Defect("an outcome out of turn"));
                };
                let complete = again.is_empty();
                voice.say(&Message::Again { paths: again })?;
                if complete {
                    let end = match hear(frames)? {
                        Message::End(totals) => totals,
                        other => return unexpected(&other),
                    };
                    tasks
                        .send(Task::End(end))
                        .map_err(|_| SinkError::Defect("the worker is gone"))?;
                    let Outcome::End { mut totals } = outcomes.recv().map_err(gone)? else {
                        return Err(SinkError::Defect("an outcome out of turn"));
                    };
                    progress(frames.taken());
                    totals.wire_bytes = voice.written();
                    voice.say(&Message::Applied(totals))?;
                    return Ok(totals);
                }
            }
            Err(SinkError::Content {
                path: ".".into(),
                reason: "could not be put together, although it came several times",
            })
        };
        let result = talk();
        drop(tasks);
        drop(questions);
        drop(outcomes);
        // What arrived before an end is still applied: the next round need not send it.
        let _ = applying.join();
        match (result, shared.failure()) {
            (Err(_), Some(error)) => Err(error),
            (result, _) => result,
        }
    })
}

/// What the root holds. What earlier rounds wrote goes to the disk meanwhile, if this round is to last: nobody may stand still for it
/// yet.
fn look(
    record: &Record,
    place: &Place,
    options: &SinkOptions,
    wants: Wants,
) -> Result<(TreeSummary, Held), SinkError> {
    std::thread::scope(|scope| {
        let writing = if wants.durable && record.is_open() {
            Some(thread("sink-write-back", scope, || worker::write_back(place))?)
        } else {
            None
        };
        let held = held(record, options);
        match writing.map(ScopedJoinHandle::join) {
            None => held,
            Some(Ok(written)) => written.and(held),
            Some(Err(_)) => Err(SinkError::Defect("writing to disk ended with a panic")),
        }
    })
}

/// What the root holds, by the record and a look at what changed since, or by reading everything.
fn held(record: &Record, options: &SinkOptions) -> Result<(TreeSummary, Held), SinkError> {
    let new = Held {
        manifest: record.path("sink.scan.tree.new"),
        facts: record.path("sink.scan.facts.new"),
    };
    let how = ScanOptions {
        overlay: options.overlay,
        frozen: true,
        ..ScanOptions::default()
    };
    let look = |base: Option<&scan::Base>| {
        let to = (new.manifest.as_path(), new.facts.as_path());
        scan::scan(&options.root, &how, base, to, &options.work)
    };
    let outcome = match record.held()? {
        None => look(None)?,
        Some(base) => match look(Some(&base)) {
            Err(ScanError::Tree(_)) => look(None)?,
            other => other?,
        },
    };
    Ok((outcome.tree, new))
}
