//! The agent's records on disk: one journal per migration and side, to which records are appended and synced.
//!
//! `docs/journal-format.md` describes the bytes. A record says everything that the one before said and what changed; the
//! plan, which is most of it, is written once and when it changes. Files are readable by their owner only, because a
//! container's environment often holds passwords.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tranship_core::MigrationId;
use tranship_migrate::record::{ArrivalRecord, DepartureRecord, RecordError, Records};

use crate::journal;
use crate::log::MigrationLog;

/// The newest records that are kept; older ones that are over go.
const KEEP: usize = 200;
/// A journal larger than this is not ours.
const LARGEST: u64 = 256 << 20;

const DEPARTURES: &str = "departures";
const ARRIVALS: &str = "arrivals";
const LOGS: &str = "logs";
const PLAN: &str = "plan";

/// Records under a state directory.
#[derive(Debug, Clone)]
pub struct FileRecords {
    directory: PathBuf,
    open: Arc<Mutex<HashMap<PathBuf, Arc<Mutex<Journal>>>>>,
}

/// A journal that is written to.
#[derive(Debug, Default)]
struct Journal {
    file: Option<File>,
    /// Bytes of whole records. What a write that failed left behind them is cut off before the next.
    whole: u64,
    /// The newest plan in it.
    plan: Option<Value>,
}

/// A journal that cannot be used; it is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// The migration, by the file's name.
    pub id: String,
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// What was found at the start of the agent.
#[derive(Debug)]
pub struct Found<T> {
    /// The newest record of each journal.
    pub records: Vec<T>,
    /// Journals that could not be read, and why.
    pub damaged: Vec<Damaged>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FileRecords {
    /// Opens (and makes, if need be) the state directory.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(directory: &Path) -> std::io::Result<Self> {
        for sub in [DEPARTURES, ARRIVALS, LOGS] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory.join(sub))?;
            File::open(directory.join(sub))?.sync_all()?;
        }
        Ok(Self {
            directory: directory.to_owned(),
            open: Arc::default(),
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
            if path.extension().is_none_or(|e| e != "journal") {
                continue;
            }
            match self.newest(&path) {
                Ok(Some(record)) => found.records.push(record),
                // The crash came before its first record was whole: nothing had been done yet.
                Ok(None) => {}
                Err(reason) => found.damaged.push(Damaged {
                    id: path
                        .file_stem()
                        .unwrap_or_default()
                        .to_string_lossy()
                        .into_owned(),
                    path,
                    reason,
                }),
            }
        }
        found
    }

    /// The newest record of a journal, which is synced before anybody acts on it: it may be in the system's memory only.
    fn newest<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>, String> {
        let text = |e: std::io::Error| e.to_string();
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .open(path)
            .map_err(text)?;
        let length = file.metadata().map_err(text)?.len();
        if length > LARGEST {
            return Err(format!("{length} bytes are too many"));
        }
        let bytes = fs::read(path).map_err(text)?;
        let read = journal::decode(&bytes).map_err(|e| e.to_string())?;
        let mut open = Journal {
            file: Some(file),
            whole: read.whole as u64,
            plan: None,
        };
        open.cut().map_err(text)?;
        let mut newest = None;
        for payload in &read.payloads {
            let mut value: Value = serde_json::from_slice(payload).map_err(|e| e.to_string())?;
            if let Some(record) = value.as_object_mut() {
                match record.get(PLAN) {
                    Some(plan) => open.plan = Some(plan.clone()),
                    None => {
                        if let Some(plan) = &open.plan {
                            record.insert(PLAN.to_owned(), plan.clone());
                        }
                    }
                }
            }
            newest = Some(value);
        }
        let record = newest
            .map(serde_json::from_value)
            .transpose()
            .map_err(|e| e.to_string())?;
        locked(&self.open).insert(path.to_owned(), Arc::new(Mutex::new(open)));
        Ok(record)
    }

    /// Removes the oldest records of migrations that `over` names, so that no more than the newest few hundred stay.
    pub fn prune(&self, over: &[(u64, MigrationId)]) {
        let mut by_age: Vec<_> = over.to_vec();
        by_age.sort();
        for (_, id) in by_age.iter().take(by_age.len().saturating_sub(KEEP)) {
            for sub in [DEPARTURES, ARRIVALS] {
                let path = self.path(sub, id);
                locked(&self.open).remove(&path);
                // Another process may have pruned it first.
                let _ = fs::remove_file(path);
            }
            self.log(id).remove();
        }
    }

    /// What people may read of a migration.
    #[must_use]
    pub fn log(&self, id: &MigrationId) -> MigrationLog {
        MigrationLog::at(&self.directory.join(LOGS), id)
    }

    /// Gives back what is held open for a migration that is over.
    pub fn close(&self, id: &MigrationId) {
        for sub in [DEPARTURES, ARRIVALS] {
            if let Some(journal) = locked(&self.open).get(&self.path(sub, id)) {
                locked(journal).file = None;
            }
        }
    }

    fn path(&self, sub: &str, id: &MigrationId) -> PathBuf {
        self.directory.join(sub).join(format!("{id}.journal"))
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
        let value = serde_json::to_value(record).map_err(|e| error(e.to_string()))?;
        let open = Arc::clone(locked(&self.open).entry(path.clone()).or_default());
        let target = path.clone();
        // In a task of its own, so that a caller that goes away does not leave half a record without its end.
        let written = tokio::task::spawn_blocking(move || locked(&open).append(&target, value)).await;
        written
            .map_err(|e| error(e.to_string()))?
            .map_err(|e| error(e.to_string()))
    }
}

impl Journal {
    /// Appends a record and syncs it. After an error it is not known whether a crash would leave it; the next one takes
    /// its place.
    fn append(&mut self, path: &Path, mut value: Value) -> std::io::Result<()> {
        let new_plan = value.get(PLAN).cloned();
        if new_plan == self.plan
            && let Some(record) = value.as_object_mut()
        {
            record.remove(PLAN);
        }
        let payload = serde_json::to_vec(&value)?;
        let record = journal::encode(&payload).map_err(std::io::Error::other)?;
        if self.file.is_none() {
            let file = OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .mode(0o600)
                .open(path)?;
            if let Some(parent) = path.parent() {
                File::open(parent)?.sync_all()?;
            }
            self.file = Some(file);
        }
        self.cut()?;
        let Some(file) = &mut self.file else {
            return Err(std::io::Error::other("the journal is not open"));
        };
        file.write_all(&record)?;
        file.sync_data()?;
        self.whole += record.len() as u64;
        self.plan = new_plan;
        Ok(())
    }

    /// Cuts off what a crash, or a write that failed, left behind the last whole record; and makes what is left durable.
    fn cut(&mut self) -> std::io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        if file.metadata()?.len() != self.whole {
            file.set_len(self.whole)?;
        }
        file.sync_all()
    }
}

/// Writes a file so that either the old or the new content survives a crash. Nothing else is left if it fails.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    if let Err(error) = replace(path, &temporary, bytes) {
        // Where the disk is full, it is in the way of what comes next.
        let gone = fs::remove_file(&temporary);
        tracing::debug!(?gone, "the new {} was not written: {error}", path.display());
        return Err(error);
    }
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn replace(path: &Path, temporary: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(temporary, path)
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Small {
        plan: String,
        step: u32,
    }

    fn small(plan: &str, step: u32) -> Small {
        Small {
            plan: plan.into(),
            step,
        }
    }

    async fn saved(directory: &Path, all: &[Small]) -> PathBuf {
        let records = FileRecords::open(directory).unwrap();
        let id = MigrationId::new("m1").unwrap();
        for record in all {
            records.save(DEPARTURES, &id, record).await.unwrap();
        }
        records.path(DEPARTURES, &id)
    }

    #[tokio::test]
    async fn the_newest_record_is_found_again_and_the_plan_is_written_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = saved(
            directory.path(),
            &[small("p", 1), small("p", 2), small("q", 3), small("q", 4)],
        )
        .await;
        let again = FileRecords::open(directory.path()).unwrap();
        assert_eq!(again.load::<Small>(DEPARTURES).records, [small("q", 4)]);
        let bytes = fs::read(&path).unwrap();
        let read = journal::decode(&bytes).unwrap();
        let plans = read
            .payloads
            .iter()
            .filter(|p| p.windows(4).any(|w| w == b"plan"))
            .count();
        assert_eq!((read.payloads.len(), plans), (4, 2));
        // And it is gone on with.
        let id = MigrationId::new("m1").unwrap();
        again.save(DEPARTURES, &id, &small("q", 5)).await.unwrap();
        assert_eq!(again.load::<Small>(DEPARTURES).records, [small("q", 5)]);
    }

    #[tokio::test]
    async fn a_torn_tail_is_cut_off_and_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = saved(directory.path(), &[small("p", 1), small("p", 2)]).await;
        let length = fs::metadata(&path).unwrap().len();
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(length - 3)
            .unwrap();
        let again = FileRecords::open(directory.path()).unwrap();
        assert_eq!(again.load::<Small>(DEPARTURES).records, [small("p", 1)]);
        let id = MigrationId::new("m1").unwrap();
        again.save(DEPARTURES, &id, &small("p", 3)).await.unwrap();
        assert_eq!(again.load::<Small>(DEPARTURES).records, [small("p", 3)]);
    }

    #[tokio::test]
    async fn damage_inside_is_refused_and_left_in_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = saved(directory.path(), &[small("p", 1), small("p", 2)]).await;
        let mut bytes = fs::read(&path).unwrap();
        bytes[12] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let found = FileRecords::open(directory.path())
            .unwrap()
            .load::<Small>(DEPARTURES);
        assert!(found.records.is_empty());
        assert_eq!(found.damaged[0].id, "m1");
        assert!(found.damaged[0].reason.contains("damaged"), "{:?}", found.damaged);
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}
