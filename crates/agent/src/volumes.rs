//! What an agent does with volumes outside migrations: lists them, sends them, keeps snapshots of them.
//!
//! A snapshot is a directory beside the engine's data, named by the volume's GUID and the time in milliseconds, with a note of
//! the same name beside it. It is made by the same rounds that carry a volume to another node, so it is verified as it is
//! written, and has its final name only once it is whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::Stream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tranship_content::scan::{ScanOptions, scan};
use tranship_core::fault::FaultKind;
use tranship_core::storage::{
    ElementAt, ElementPlace, ElementRoute, Pipe, ProgressFn, RoundProgress, RoundReport, SyncOptions,
};
use tranship_core::{Fault, MigrationId};

use crate::api::{CopyEvent, SendCopy, SnapshotInfo, TakeSnapshot, VolumeInfo};
use crate::node::now_ms;
use crate::state::Agent;

/// Bytes between the two halves of a round within this process.
const BUFFER: usize = 1 << 20;
/// Milliseconds after which a snapshot that is being made shows that somebody works on it.
const NEW: u64 = 60_000;

/// How a copy goes.
pub type CopyStream = std::pin::Pin<Box<dyn Stream<Item = Result<CopyEvent, Fault>> + Send>>;

fn no_snapshot(volume: &str, timestamp: u64) -> Fault {
    Fault::new(
        "snapshot.not-found",
        FaultKind::Environment,
        format!("there is no snapshot {volume}@{timestamp} here"),
    )
    .with_hint("`tranship volume ls` shows them")
}

fn no_volume(name: &str) -> Fault {
    Fault::of(&tranship_core::EngineError::NotFound {
        what: "volume",
        name: name.to_owned(),
    })
    .with_hint("`tranship volume ls` shows them")
}

impl Agent {
    async fn snapshot_root(&self) -> Result<PathBuf, Fault> {
        let facts = self.registry.engine().facts().await?;
        Ok(Path::new(&facts.root_directory).join("tranship/snapshots"))
    }

    /// All volumes of this node with their sizes and snapshots.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn volumes(&self) -> Result<Vec<VolumeInfo>, Fault> {
        let root = self.snapshot_root().await?;
        let ports = self.registry.ports();
        let reached = crate::node::reached(ports).await;
        let mut list = Vec::new();
        for mut spec in ports.engine.volume_specs().await? {
            spec.guid = self.guids.of(&spec);
            let at = ElementAt::Volume {
                name: spec.name.clone(),
            };
            let size = match reached {
                true => match ports.directory(&at).await {
                    Ok(place) => ports.storage.size(&place).await.ok().flatten(),
                    Err(_) => None,
                },
                false => None,
            };
            list.push(VolumeInfo {
                snapshots: snapshots_in(&root.join(&spec.guid)),
                size,
                spec,
            });
        }
        Ok(list)
    }

    /// A volume by name, with its GUID.
    pub(crate) async fn volume(&self, name: &str) -> Result<tranship_core::storage::VolumeSpec, Fault> {
        let volumes = self.registry.engine().volume_specs().await?;
        let mut spec = volumes
            .into_iter()
            .find(|v| v.name == name)
            .ok_or_else(|| no_volume(name))?;
        spec.guid = self.guids.of(&spec);
        Ok(spec)
    }

    /// Where a snapshot of the volume is.
    pub(crate) async fn snapshot_place(&self, volume: &str, timestamp: u64) -> Result<ElementPlace, Fault> {
        let spec = self.volume(volume).await?;
        let directory = self.snapshot_root().await?.join(&spec.guid);
        if !snapshots_in(&directory).iter().any(|s| s.timestamp == timestamp) {
            return Err(no_snapshot(volume, timestamp));
        }
        Ok(ElementPlace::Directory {
            path: directory.join(timestamp.to_string()),
            overlay: false,
        })
    }

    /// The manifest of a volume or of a snapshot, read anew.
    ///
    /// # Errors
    /// `volume.not-found`, `snapshot.not-found`; what the file system says.
    pub async fn manifest(&self, volume: &str, snapshot: Option<u64>) -> Result<std::fs::File, Fault> {
        let path = self.directory_of(volume, snapshot).await?;
        let facts = self.registry.engine().facts().await?;
        let scratch = Path::new(&facts.root_directory).join("tranship");
        let scan = tokio::task::spawn_blocking(move || scan_to_file(&path, &scratch));
        scan.await
            .map_err(|e| Fault::new("agent.task", FaultKind::Bug, e.to_string()))?
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// `snapshot.not-found`; what the file system says.
    pub async fn remove_snapshot(&self, volume: &str, timestamp: u64) -> Result<(), Fault> {
        let place = self.snapshot_place(volume, timestamp).await?;
        if let ElementPlace::Directory { path, .. } = &place {
            // The note first: without it there is no snapshot, only a directory that nobody counts on.
            let removed = std::fs::remove_file(path.with_extension("json"));
            removed.map_err(|e| Fault::new("snapshot.remove", FaultKind::Environment, e.to_string()))?;
        }
        self.registry.ports().storage.remove(&place).await
    }

    /// Sends a volume to another node. The stream tells how it goes; dropping it ends the copy.
    pub fn send_copy(self: &Arc<Self>, id: MigrationId, mut asked: SendCopy) -> CopyStream {
        let agent = Arc::clone(self);
        told(move |given_up, progress| async move {
            if let Some(timestamp) = asked.snapshot {
                asked.place = Some(agent.snapshot_place(&asked.volume, timestamp).await?);
            }
            let peer = Arc::new(agent.outgoing.peer(&id, &asked.destination, &asked.route));
            let pipe = || {
                let peer = Arc::clone(&peer);
                async move { peer.pipe("/v1/peer/copy").await }
            };
            let rounds = agent.copies.send(&id, &asked, &given_up, progress, pipe).await?;
            Ok(CopyEvent::Done {
                rounds,
                snapshot: None,
            })
        })
    }

    /// Keeps a snapshot of a volume. The stream tells how it goes; dropping it ends the work.
    pub fn take_snapshot(self: &Arc<Self>, id: MigrationId, asked: TakeSnapshot) -> CopyStream {
        let agent = Arc::clone(self);
        told(move |given_up, progress| async move {
            let spec = agent.volume(&asked.volume).await?;
            let directory = agent.snapshot_root().await?.join(&spec.guid);
            let timestamp = now_ms();
            let unfinished = ElementPlace::Directory {
                path: directory.join(format!("{timestamp}.new")),
                overlay: false,
            };
            let storage = Arc::clone(&agent.registry.ports().storage);
            for path in left_in(&directory, timestamp) {
                let overlay = false;
                storage.remove(&ElementPlace::Directory { path, overlay }).await?;
            }
            storage.make(&unfinished).await?;
            let _claim = claim(&directory.join(format!("{timestamp}.new")))?;
            let sink = Arc::new(tokio::sync::Mutex::new(
                storage.sink(&unfinished, ElementRoute::Tree).await?,
            ));
            let pipe = || {
                let (here, there) = tokio::io::duplex(BUFFER);
                let sink = Arc::clone(&sink);
                tokio::spawn(async move {
                    let mut sink = sink.lock().await;
                    let silent: ProgressFn = Arc::new(|_| {});
                    if let Err(fault) = sink.round(Box::new(there), silent).await {
                        tracing::warn!("a snapshot could not be written: {fault}");
                    }
                });
                async move { Ok(Box::new(here) as Pipe) }
            };
            let send = SendCopy {
                volume: asked.volume.clone(),
                snapshot: None,
                place: None,
                options: SyncOptions {
                    exclude: asked.exclude.clone(),
                    compression: tranship_core::storage::Compression::None,
                    limit_rate: None,
                    mounts_stay: false,
                    route: ElementRoute::Tree,
                },
                freeze: asked.freeze,
                destination: String::new(),
                route: crate::api::Route::Relay,
            };
            let sent = agent.copies.send(&id, &send, &given_up, progress, pipe).await;
            // Whoever still writes has come to an end when this is free.
            drop(sink.lock().await);
            let kept = match sent {
                Ok(rounds) => keep(&directory, timestamp, &spec, rounds),
                Err(fault) => Err(fault),
            };
            if kept.is_err() {
                storage.remove(&unfinished).await?;
            }
            kept.map(|rounds| CopyEvent::Done {
                rounds,
                snapshot: Some(timestamp),
            })
        })
    }
}

/// Scans a directory into a manifest that has no name any more.
fn scan_to_file(path: &Path, scratch: &Path) -> Result<std::fs::File, Fault> {
    let failed = |e: std::io::Error| {
        Fault::new(
            "agent.state",
            FaultKind::Environment,
            format!("a manifest could not be written below {}: {e}", scratch.display()),
        )
    };
    std::fs::create_dir_all(scratch).map_err(failed)?;
    let directory = tempfile::Builder::new()
        .prefix("scan-")
        .tempdir_in(scratch)
        .map_err(failed)?;
    let (tree, facts) = (directory.path().join("tree"), directory.path().join("facts"));
    let options = ScanOptions::default();
    scan(path, &options, None, (&tree, &facts), directory.path()).map_err(|e| Fault::of(&e))?;
    std::fs::File::open(&tree).map_err(failed)
}

/// Gives a finished snapshot its name, and notes it.
fn keep(
    directory: &Path,
    timestamp: u64,
    spec: &tranship_core::storage::VolumeSpec,
    rounds: Vec<RoundReport>,
) -> Result<Vec<RoundReport>, Fault> {
    let last = rounds.last().cloned().unwrap_or_default();
    let info = SnapshotInfo {
        volume: spec.name.clone(),
        guid: spec.guid.clone(),
        timestamp,
        tree: last.tree,
        bytes: last.bytes,
        entries: last.entries,
    };
    let named = std::fs::rename(
        directory.join(format!("{timestamp}.new")),
        directory.join(timestamp.to_string()),
    )
    .and_then(|()| {
        let bytes = serde_json::to_vec(&info)?;
        crate::store::write_durably(&directory.join(format!("{timestamp}.json")), &bytes)
    });
    named.map_err(|e| {
        Fault::new(
            "snapshot.write",
            FaultKind::Environment,
            format!("the snapshot could not be noted: {e}"),
        )
    })?;
    Ok(rounds)
}

/// Claims an unfinished snapshot, until this is dropped. It fails where somebody works on it.
fn claim(unfinished: &Path) -> Result<std::fs::File, Fault> {
    let locked = std::fs::File::open(unfinished).and_then(|file| {
        file.try_lock()?;
        Ok(file)
    });
    locked.map_err(|e| Fault::new("snapshot.write", FaultKind::Environment, e.to_string()))
}

/// Unfinished snapshots on which nobody works any more.
fn left_in(directory: &Path, now: u64) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| {
            let begun = path
                .file_name()
                .and_then(|name| name.to_str()?.strip_suffix(".new")?.parse::<u64>().ok());
            // One that was made just now may not be claimed yet.
            begun.is_some_and(|begun| begun + NEW < now) && claim(path).is_ok()
        })
        .collect()
}

/// The snapshots that are whole, oldest first.
fn snapshots_in(directory: &Path) -> Vec<SnapshotInfo> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<SnapshotInfo> = entries
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "json"))
        .filter_map(|p| serde_json::from_slice(&std::fs::read(p).ok()?).ok())
        .filter(|s: &SnapshotInfo| directory.join(s.timestamp.to_string()).is_dir())
        .collect();
    found.sort_by_key(|s| s.timestamp);
    found
}

/// Runs work that reports its progress in a task of its own, and gives what it reports as a stream. When the stream is dropped, the
/// work is told to end; it still cleans up after itself.
fn told<F>(work: impl FnOnce(CancellationToken, ProgressFn) -> F + Send + 'static) -> CopyStream
where
    F: Future<Output = Result<CopyEvent, Fault>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(16);
    let given_up = CancellationToken::new();
    let progress: ProgressFn = {
        let sender = sender.clone();
        let shown = std::sync::Mutex::new(std::time::Instant::now());
        Arc::new(move |now: RoundProgress| {
            let Ok(mut shown) = shown.try_lock() else { return };
            if shown.elapsed() < std::time::Duration::from_millis(100) {
                return;
            }
            *shown = std::time::Instant::now();
            // A watcher that is slow misses some; the end is never missed.
            let _ = sender.try_send(Ok(CopyEvent::Progress {
                bytes: now.bytes,
                entries: now.entries,
                wire_bytes: now.wire_bytes,
            }));
        })
    };
    let task = work(given_up.clone(), progress);
    tokio::spawn(async move {
        let end = task.await;
        // Nobody may be left to hear it.
        let _ = sender.send(end).await;
    });
    let guard = given_up.drop_guard();
    let events = futures_util::stream::unfold((receiver, guard), |(mut receiver, guard)| async move {
        let event = receiver.recv().await?;
        Some((event, (receiver, guard)))
    });
    Box::pin(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_snapshots_are_left_only_by_who_is_gone() {
        let at = tempfile::tempdir().unwrap();
        let path = |name: &str| at.path().join(name);
        for name in ["1000.new", "2000.new", "90000.new", "1500", "x.new"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        let working = claim(&path("2000.new")).unwrap();
        assert_eq!(left_in(at.path(), 100_000), [path("1000.new")]);
        drop(working);
        let mut left = left_in(at.path(), 100_000);
        left.sort();
        assert_eq!(left, [path("1000.new"), path("2000.new")]);
    }
}
