//! The migrations that this user started from this machine, so that `list` and `status` know where to ask.
//!
//! One JSON object a line, appended. It only remembers addresses: what became of a migration, its nodes know.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tranship_core::{MigrationId, NodeAddress};

/// Lines beyond this are not read; the newest are.
const LONGEST: usize = 1_000;

/// One migration that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The migration.
    pub id: MigrationId,
    /// The container's name at the source.
    pub container: String,
    /// The source.
    pub source: NodeAddress,
    /// The destination.
    pub destination: NodeAddress,
    /// Milliseconds since 1970.
    pub begun_at_ms: u64,
    /// How it ended, as far as this caller saw it: the status, then the code of the failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// It never began.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forgotten: bool,
}

/// The file of all entries.
#[derive(Debug, Clone)]
pub struct History {
    path: PathBuf,
}

impl History {
    /// The history under a state directory.
    pub fn new(state_directory: &Path) -> Self {
        Self {
            path: state_directory.join("history.jsonl"),
        }
    }

    /// Adds a line. A later line of the same id replaces an earlier one.
    ///
    /// # Errors
    /// What the file system says.
    pub fn add(&self, entry: &Entry) -> std::io::Result<()> {
        if let Some(parent) = self.path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)?;
        }
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)?
            .write_all(&line)
    }

    /// Takes back what was noted about a migration that never began.
    pub fn forget(&self, entry: &Entry) {
        // A line too many in the list is the worst that can come of it.
        let _ = self.add(&Entry {
            forgotten: true,
            ..entry.clone()
        });
    }

    /// All entries, newest first. Lines that cannot be read are passed over.
    pub fn entries(&self) -> Vec<Entry> {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        let mut entries: Vec<Entry> = Vec::new();
        for line in text.lines().rev() {
            let Ok(entry) = serde_json::from_str::<Entry>(line) else {
                continue;
            };
            if !entries.iter().any(|e| e.id == entry.id) {
                entries.push(entry);
            }
            if entries.len() >= LONGEST {
                break;
            }
        }
        entries.retain(|e| !e.forgotten);
        entries.sort_by_key(|e| std::cmp::Reverse(e.begun_at_ms));
        entries
    }
}
