//! Volumes as tar archives: what an agent gives out and takes in as a stream.

use std::io::{self, BufReader, BufWriter, Write};
use std::path::Path;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::io::{StreamReader, SyncIoBridge};
use tranship_archive::TreePath;
use tranship_archive::compression::{DecodeOptions, Decoder};
use tranship_archive::confined::{
    Devices, ExportOptions, ExtractOptions, Extractor, Links, Root, export_element,
};
use tranship_archive::entry::Entry;
use tranship_archive::filter::FilterSpec;
use tranship_archive::reader::{Limits, ReadOptions, Reader};
use tranship_archive::writer::Writer;
use tranship_core::fault::FaultKind;
use tranship_core::storage::{ElementAt, ElementPlace, VolumeSpec};
use tranship_core::{EngineError, Fault};

use crate::state::Agent;

/// Bytes of one piece of an archive on its way out.
const PIECE: usize = 256 << 10;
/// Pieces that wait for the wire.
const PIECES: usize = 4;
/// Entries that an archive of a volume may have.
const ENTRIES: u64 = 100_000_000;

/// What was taken in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Entries.
    pub entries: u64,
    /// Bytes of content, holes not counted.
    pub bytes: u64,
    /// Entries that were left out, sockets for instance.
    pub skipped: u64,
}

/// Passes what a thread writes on to a stream.
struct Pieces(mpsc::Sender<Result<Bytes, Fault>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes))) {
            Ok(()) => Ok(bytes.len()),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Agent {
    /// Where a volume or a snapshot of it is, if this process reaches it itself.
    pub(crate) async fn directory_of(
        &self,
        volume: &str,
        snapshot: Option<u64>,
    ) -> Result<std::path::PathBuf, Fault> {
        let place = match snapshot {
            Some(timestamp) => self.snapshot_place(volume, timestamp).await?,
            None => {
                self.volume(volume).await?;
                let name = volume.to_owned();
                self.registry
                    .ports()
                    .directory(&ElementAt::Volume { name })
                    .await?
            }
        };
        match place {
            ElementPlace::Directory { path, .. } => Ok(path),
            ElementPlace::Archive { path, .. } => Err(Fault::new(
                "content.route",
                FaultKind::Bug,
                format!("{path} is no directory of this node"),
            )),
        }
    }

    /// A volume as a tar archive with all attributes. An error ends the stream before the archive's own end.
    ///
    /// # Errors
    /// `volume.not-found`, `snapshot.not-found`; what the engine says.
    pub async fn export_volume(
        &self,
        volume: &str,
        snapshot: Option<u64>,
    ) -> Result<impl Stream<Item = Result<Bytes, Fault>> + Send + use<>, Fault> {
        let path = self.directory_of(volume, snapshot).await?;
        Ok(directory_archive(path))
    }

    /// Makes a volume and fills it from a tar archive, compressed or not. The volume goes again if the archive is not whole.
    ///
    /// # Errors
    /// `volume.exists`; `archive.*` for what is wrong with the archive; what the engine says.
    pub async fn import_volume(
        &self,
        spec: &VolumeSpec,
        archive: impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static,
    ) -> Result<Imported, Fault> {
        let engine = self.registry.engine();
        self.copies.settled().await;
        match engine.create_volume(spec).await {
            Err(EngineError::Conflict { .. }) => {
                return Err(Fault::new(
                    "volume.exists",
                    FaultKind::Environment,
                    format!("there is a volume {:?} already", spec.name),
                )
                .with_hint("give the new one another name"));
            }
            done => done?,
        }
        let unfinished = &self.copies.unfinished;
        let taken_in = async {
            unfinished.note(engine.as_ref(), &spec.name, "").await?;
            let path = self.directory_of(&spec.name, None).await?;
            let input = SyncIoBridge::new(StreamReader::new(archive));
            let thread = tokio::task::spawn_blocking(move || read_archive(&path, input, |_| {}));
            thread
                .await
                .map_err(|e| Fault::new("agent.task", FaultKind::Bug, e.to_string()))?
        };
        let taken_in = taken_in.await;
        if taken_in.is_err() {
            engine.remove_volume(&spec.name).await?;
        }
        unfinished.forget(&spec.name);
        taken_in
    }
}

/// A directory as an archive, whose names begin with `./`.
pub(crate) fn directory_archive(
    path: std::path::PathBuf,
) -> impl Stream<Item = Result<Bytes, Fault>> + Send + use<> {
    let (sender, receiver) = mpsc::channel(PIECES);
    tokio::task::spawn_blocking(move || {
        if let Err(fault) = write_archive(&path, Pieces(sender.clone())) {
            // Nobody may be left to hear it.
            let _ = sender.blocking_send(Err(fault));
        }
    });
    pieces(receiver)
}

/// What comes out of a channel, as a stream.
pub(crate) fn pieces(
    receiver: mpsc::Receiver<Result<Bytes, Fault>>,
) -> impl Stream<Item = Result<Bytes, Fault>> + Send {
    futures_util::stream::unfold(receiver, |mut receiver| async move {
        let piece = receiver.recv().await?;
        Some((piece, receiver))
    })
    .boxed()
}

fn write_archive(path: &Path, out: Pieces) -> Result<(), Fault> {
    let root = Root::open(path, Links::Refuse).map_err(|e| Fault::of(&e))?;
    let mut writer = Writer::new(BufWriter::with_capacity(PIECE, out));
    export_element(
        &root,
        &FilterSpec::default(),
        &mut writer,
        &ExportOptions::default(),
    )
    .map_err(|e| Fault::of(&e))?;
    let mut out = writer.finish().map_err(|e| Fault::of(&e))?;
    out.flush()
        .map_err(|e| Fault::new("archive.write", FaultKind::Environment, e.to_string()))
}

/// Unpacks an archive into a directory, tells of each entry, and makes everything durable.
pub(crate) fn read_archive(
    path: &Path,
    input: impl io::Read,
    mut tell: impl FnMut(&Entry),
) -> Result<Imported, Fault> {
    let root = Root::open(path, Links::Refuse).map_err(|e| Fault::of(&e))?;
    let plain = Decoder::new(input, DecodeOptions::default()).map_err(|e| Fault::of(&e))?;
    let options = ReadOptions {
        limits: Limits {
            entries: ENTRIES,
            ..Limits::default()
        },
        // Whoever wrote it with another tool may have padded it.
        ignore_trailing: true,
        ..ReadOptions::strict()
    };
    let mut reader = Reader::new(BufReader::with_capacity(PIECE, plain), options);
    let extract_options = ExtractOptions {
        devices: Devices::Create,
        root_metadata: true,
        ..ExtractOptions::default()
    };
    let mut extractor =
        Extractor::new(&root, TreePath::root(), extract_options).map_err(|e| Fault::of(&e))?;
    let mut buffer = vec![0; 64 << 10];
    while let Some(entry) = reader.next_entry().map_err(|e| Fault::of(&e))? {
        tell(&entry);
        extractor.start(&entry).map_err(|e| Fault::of(&e))?;
        while let Some(extent) = reader.read_extent(&mut buffer).map_err(|e| Fault::of(&e))? {
            let length = usize::try_from(extent.length).unwrap_or(usize::MAX);
            let bytes = buffer.get(..length).unwrap_or_default();
            extractor.write(extent.offset, bytes).map_err(|e| Fault::of(&e))?;
        }
    }
    let report = extractor.end().map_err(|e| Fault::of(&e))?;
    let directory = std::fs::File::open(path).and_then(|d| rustix::fs::syncfs(&d).map_err(io::Error::from));
    directory.map_err(|e| {
        Fault::new(
            "archive.sync",
            FaultKind::Environment,
            format!("what was unpacked could not be made durable: {e}"),
        )
    })?;
    Ok(Imported {
        entries: report.entries,
        bytes: report.bytes,
        skipped: report.skipped.count,
    })
}
