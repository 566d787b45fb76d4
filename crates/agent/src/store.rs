//! The agent's records on disk: one JSON file per migration and side, replaced as a whole.
//!
//! A record is written to a temporary file, synced, renamed over the old one, and the directory is synced: after a crash
//! the file holds either the old record or the new one. Files are readable by their owner only, because a container's
//! environment often holds passwords.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tranship_core::MigrationId;
use tranship_migrate::record::{ArrivalRecord, DepartureRecord, RecordError, Records};

/// The newest records that are kept; older ones that are over go.
const KEEP: usize = 200;
/// A record larger than this is not ours.
const LARGEST: u64 = 64 << 20;

const DEPARTURES: &str = "departures";
const ARRIVALS: &str = "arrivals";

/// Records under a state directory.
#[derive(Debug, Clone)]
pub struct FileRecords {
    directory: PathBuf,
}

/// What was found at the start of the agent.
#[derive(Debug, Default)]
pub struct Found<T> {
    /// Records that could be read.
    pub records: Vec<T>,
    /// Files that could not, and why.
    pub damaged: Vec<String>,
}

impl FileRecords {
    /// Opens (and makes, if need be) the state directory.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(directory: &Path) -> std::io::Result<Self> {
        for sub in [DEPARTURES, ARRIVALS] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory.join(sub))?;
        }
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    /// All departures on disk.
    #[must_use]
    pub fn departures(&self) -> Found<DepartureRecord> {
        self.load(DEPARTURES)
    }

    /// All arrivals on disk.
    #[must_use]
    pub fn arrivals(&self) -> Found<ArrivalRecord> {
        self.load(ARRIVALS)
    }

    fn load<T: DeserializeOwned>(&self, sub: &str) -> Found<T> {
        let mut found = Found {
            records: Vec::new(),
            damaged: Vec::new(),
        };
        let Ok(entries) = fs::read_dir(self.directory.join(sub)) else {
            return found;
        };
        for path in entries.flatten().map(|e| e.path()) {
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let read = || -> Result<T, String> {
                let length = fs::metadata(&path).map_err(|e| e.to_string())?.len();
                if length > LARGEST {
                    return Err(format!("{length} bytes are too many"));
                }
                let bytes = fs::read(&path).map_err(|e| e.to_string())?;
                serde_json::from_slice(&bytes).map_err(|e| e.to_string())
            };
            match read() {
                Ok(record) => found.records.push(record),
                Err(reason) => found.damaged.push(format!("{}: {reason}", path.display())),
            }
        }
        found
    }

    /// Removes the oldest records of migrations that `over` names, so that no more than the newest few hundred stay.
    pub fn prune(&self, over: &[(u64, MigrationId)]) {
        let mut by_age: Vec<_> = over.to_vec();
        by_age.sort();
        for (_, id) in by_age.iter().take(by_age.len().saturating_sub(KEEP)) {
            for sub in [DEPARTURES, ARRIVALS] {
                // Another process may have pruned it first.
                let _ = fs::remove_file(self.path(sub, id));
            }
        }
    }

    fn path(&self, sub: &str, id: &MigrationId) -> PathBuf {
        self.directory.join(sub).join(format!("{id}.json"))
    }

    async fn save<T: Serialize + Sync>(
        &self,
        sub: &'static str,
        id: &MigrationId,
        record: &T,
    ) -> Result<(), RecordError> {
        let path = self.path(sub, id);
        let error = |reason: String| RecordError {
            id: id.clone(),
            path: path.display().to_string(),
            reason,
        };
        let bytes = serde_json::to_vec(record).map_err(|e| error(e.to_string()))?;
        let target = path.clone();
        let written = tokio::task::spawn_blocking(move || write_durably(&target, &bytes)).await;
        written
            .map_err(|e| error(e.to_string()))?
            .map_err(|e| error(e.to_string()))
    }
}

/// Writes a file so that either the old or the new content survives a crash.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[async_trait]
impl Records for FileRecords {
    async fn save_departure(&self, record: &DepartureRecord) -> Result<(), RecordError> {
        self.save(DEPARTURES, &record.plan.id, record).await
    }

    async fn save_arrival(&self, record: &ArrivalRecord) -> Result<(), RecordError> {
        self.save(ARRIVALS, &record.plan.id, record).await
    }
}
