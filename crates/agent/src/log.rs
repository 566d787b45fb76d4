//! What happened in one migration at this node, line by line, for people. Losing a line is no failure of the migration.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use tranship_core::MigrationId;
use tranship_core::event::Event;

/// A log larger than this takes no more lines, in bytes.
const LARGEST: u64 = 4 << 20;

/// The log of one migration.
#[derive(Debug, Clone)]
pub struct MigrationLog {
    path: PathBuf,
}

impl MigrationLog {
    /// The log of a migration in a directory.
    #[must_use]
    pub fn at(directory: &Path, id: &MigrationId) -> Self {
        Self {
            path: directory.join(format!("{id}.log")),
        }
    }

    /// Adds a line. `now_ms` are milliseconds since 1970.
    pub fn line(&self, now_ms: u64, text: &str) {
        let text: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let added = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)
            .and_then(|mut file| {
                if file.metadata()?.len() < LARGEST {
                    file.write_all(format!("{}.{:03} {text}\n", now_ms / 1000, now_ms % 1000).as_bytes())?;
                }
                Ok(())
            });
        if let Err(error) = added {
            tracing::debug!("no line is added to {}: {error}", self.path.display());
        }
    }

    /// Adds what the source reported.
    pub fn event(&self, now_ms: u64, event: &Event) {
        let text = match event {
            Event::Progress { .. } => return,
            Event::PhaseStarted { phase } => format!("source: {} begins", phase.label()),
            Event::PhaseEnded {
                phase,
                milliseconds,
                bytes,
            } => format!(
                "source: {} took {milliseconds} ms and moved {bytes} bytes",
                phase.label()
            ),
            Event::Note { text } => format!("source: {text}"),
            Event::Warning { text } => format!("source: warning: {text}"),
            Event::Finished { fault: None } => "source: complete".to_owned(),
            Event::Finished { fault: Some(fault) } => format!("source: [{}] {fault}", fault.code),
        };
        self.line(now_ms, &text);
    }

    /// All lines.
    #[must_use]
    pub fn text(&self) -> String {
        fs::read(&self.path).map_or_else(|_| String::new(), |b| String::from_utf8_lossy(&b).into_owned())
    }

    /// Removes it.
    pub fn remove(&self) {
        // There may be none.
        let _ = fs::remove_file(&self.path);
    }
}
