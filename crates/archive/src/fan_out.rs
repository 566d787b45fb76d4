//! One archive is fed to several storage elements: the first step of an import that was split over them.
//!
//! Everything happens on the calling thread, one entry after the other: nothing is buffered but one chunk, and a sink that
//! fails is dropped at once, so that whatever reads from it sees an end and nobody waits for anybody.

use std::io::{Read, Write};

use tranship_core::fault::{Explain, Fault};

use crate::entry::{Entry, Kind};
use crate::error::ReadError;
use crate::filter::{FilterSpec, RenameError};
use crate::path::TreePath;
use crate::reader::Reader;
use crate::writer::Writer;

/// Bytes of content passed on at a time.
const CHUNK: usize = 65_536;

/// What entries are fed to. Names are those that the sink's spec makes of them.
pub trait Sink {
    /// An entry begins; the one before is complete.
    ///
    /// # Errors
    ///
    /// Whatever keeps the sink from taking it; nothing more is fed to it then.
    fn entry(&mut self, entry: &Entry) -> Result<(), Fault>;

    /// Content of the entry: bytes that belong at `offset` of the file. Holes are left out.
    ///
    /// # Errors
    ///
    /// As [`Self::entry`].
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Fault>;

    /// All entries were fed. Not called after an error, of this sink or of the archive.
    ///
    /// # Errors
    ///
    /// As [`Self::entry`].
    fn finish(&mut self) -> Result<(), Fault>;
}

/// Opens a sink.
pub type OpenSink<'a> = Box<dyn FnOnce() -> Result<Box<dyn Sink + 'a>, Fault> + 'a>;

/// Where a part of the archive goes.
pub struct Outlet<'a> {
    /// What of it, and under which names; from [`crate::filter::split_import`].
    pub spec: FilterSpec,
    /// Opens the sink when the first entry goes to it; elements that nothing goes to are never contacted.
    pub open: OpenSink<'a>,
}

/// What became of one outlet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was for it; it was not opened.
    Untouched,
    /// It took this many entries.
    Done(u64),
    /// It failed.
    Failed(Fault),
    /// It was dropped before its end because something else failed.
    Abandoned,
}

/// What to do when one sink fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// Stop at once; the others are dropped without an end.
    Stop,
    /// Feed the others to the end.
    Continue,
}

/// What became of the whole.
#[derive(Debug)]
pub struct FanOut {
    /// One outcome per outlet, in their order.
    pub outcomes: Vec<Outcome>,
    /// Why the archive itself could not be fed to its end.
    pub failure: Option<FanOutError>,
}

/// An archive that could not be fed to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FanOutError {
    /// It could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// An entry could not be renamed.
    #[error(transparent)]
    Rename(#[from] RenameError),
    /// An entry that no outlet is for.
    #[error("{path} belongs to no storage element")]
    NoOutlet {
        /// The entry.
        path: TreePath,
    },
    /// A hard link to a file of another storage element.
    #[error("the hard link {path} and its target {target} belong to different storage elements")]
    LinkCrosses {
        /// The link.
        path: TreePath,
        /// The other name.
        target: TreePath,
    },
}

impl Explain for FanOutError {
    fn code(&self) -> &'static str {
        match self {
            Self::Read(error) => error.code(),
            Self::Rename(error) => error.code(),
            Self::NoOutlet { .. } => "archive.no-outlet",
            Self::LinkCrosses { .. } => "archive.link-crosses",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Read(error) => error.hint(),
            Self::Rename(error) => error.hint(),
            Self::NoOutlet { .. } => None,
            Self::LinkCrosses { .. } => Some("copy it as a file of its own".to_owned()),
        }
    }
}

enum State<'a> {
    Closed(Option<OpenSink<'a>>),
    Open(Box<dyn Sink + 'a>, u64),
    Ended(Outcome),
}

impl State<'_> {
    fn attempt(&mut self, act: impl FnOnce(&mut dyn Sink) -> Result<(), Fault>) {
        if let Self::Closed(open) = self
            && let Some(open) = open.take()
        {
            *self = match open() {
                Ok(sink) => Self::Open(sink, 0),
                Err(fault) => Self::Ended(Outcome::Failed(fault)),
            };
        }
        if let Self::Open(sink, _) = self
            && let Err(fault) = act(sink.as_mut())
        {
            // The sink is dropped here.
            *self = Self::Ended(Outcome::Failed(fault));
        }
    }

    fn failed(&self) -> bool {
        matches!(self, Self::Ended(Outcome::Failed(_)))
    }
}

/// The index of the spec that an entry of this name is for: of those whose `strip` is at or above it, the longest.
#[must_use]
pub fn route<'a>(specs: impl Iterator<Item = &'a FilterSpec>, path: &TreePath) -> Option<usize> {
    specs
        .enumerate()
        .filter(|(_, spec)| path.is_within(&spec.strip))
        .max_by_key(|(_, spec)| spec.strip.depth())
        .map(|(index, _)| index)
}

/// Feeds every entry to the one outlet that it is for.
pub fn fan_out<R: Read>(reader: &mut Reader<R>, outlets: Vec<Outlet<'_>>, on_failure: OnFailure) -> FanOut {
    let (specs, mut states): (Vec<FilterSpec>, Vec<State<'_>>) = outlets
        .into_iter()
        .map(|outlet| (outlet.spec, State::Closed(Some(outlet.open))))
        .unzip();
    let failure = feed(reader, &specs, &mut states, on_failure).err();
    let stopped = on_failure == OnFailure::Stop && states.iter().any(State::failed);
    let whole = failure.is_none() && !stopped;
    let mut failed_at_end = false;
    let outcomes = states
        .into_iter()
        .map(|state| match state {
            State::Closed(_) => Outcome::Untouched,
            State::Ended(outcome) => outcome,
            State::Open(..) if !whole || failed_at_end => Outcome::Abandoned,
            State::Open(mut sink, entries) => match sink.finish() {
                Ok(()) => Outcome::Done(entries),
                Err(fault) => {
                    failed_at_end = on_failure == OnFailure::Stop;
                    Outcome::Failed(fault)
                }
            },
        })
        .collect();
    FanOut { outcomes, failure }
}

fn feed<R: Read>(
    reader: &mut Reader<R>,
    specs: &[FilterSpec],
    states: &mut [State<'_>],
    on_failure: OnFailure,
) -> Result<(), FanOutError> {
    let mut buffer = vec![0; CHUNK];
    while let Some(entry) = reader.next_entry()? {
        let path = TreePath::of_entry(&entry.path).map_err(RenameError::from)?;
        let index = route(specs.iter(), &path);
        let (Some(index), Some(spec)) = (index, index.and_then(|index| specs.get(index))) else {
            return Err(FanOutError::NoOutlet { path });
        };
        if let Kind::HardLink { target } = &entry.kind {
            let target = TreePath::of_entry(target).map_err(RenameError::from)?;
            if route(specs.iter(), &target) != Some(index) {
                return Err(FanOutError::LinkCrosses { path, target });
            }
        }
        let (Some(renamed), Some(state)) = (spec.apply(&entry)?, states.get_mut(index)) else {
            continue;
        };
        state.attempt(|sink| sink.entry(&renamed));
        if let State::Open(_, entries) = state {
            *entries += 1;
        }
        while matches!(state, State::Open(..))
            && let Some(extent) = reader.read_extent(&mut buffer)?
        {
            let length = usize::try_from(extent.length).unwrap_or(usize::MAX);
            let bytes = buffer.get(..length).unwrap_or_default();
            state.attempt(|sink| sink.data(extent.offset, bytes));
        }
        if on_failure == OnFailure::Stop && state.failed() {
            return Ok(());
        }
    }
    Ok(())
}

/// A sink that writes an archive.
pub struct ArchiveSink<W: Write>(Option<Writer<W>>);

impl<W: Write> ArchiveSink<W> {
    /// An archive to this stream.
    pub fn new(out: W) -> Self {
        Self(Some(Writer::new(out)))
    }

    fn writer(&mut self) -> Result<&mut Writer<W>, Fault> {
        self.0.as_mut().ok_or_else(|| {
            Fault::new(
                "archive.finished",
                tranship_core::FaultKind::Bug,
                "the archive is finished already",
            )
        })
    }
}

impl<W: Write> Sink for ArchiveSink<W> {
    fn entry(&mut self, entry: &Entry) -> Result<(), Fault> {
        Ok(self.writer()?.start(entry)?)
    }

    fn data(&mut self, _offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        Ok(self.writer()?.write_data(bytes)?)
    }

    fn finish(&mut self) -> Result<(), Fault> {
        self.writer()?;
        if let Some(writer) = self.0.take() {
            writer.finish()?;
        }
        Ok(())
    }
}
