//! Notes that containers were started after they had been ended for their checkpoints.
//!
//! The time of the last start tells that as well, but not for ever: Podman forgets the time of a restore when the machine is started
//! anew, and when the container is initialised. So it is written down before a restore is ordered, with the other checkpoints of the
//! container and with the copies of such, and taken back only where the container surely did not go on.
//!
//! Podman forgets a restore of before as well when it makes a container ready for the next one, which may be refused then. The container
//! is in the same run as before, which is told by another time.

use std::fs;
use std::path::{Path, PathBuf};

use tranship_core::ids::CheckpointName;

use super::receipts::EXPORTED;
use super::{Begun, Kept, Receipt, names_in, unnote};
use crate::checkpoints::error::CheckpointError;

const SINCE: &str = "started-since";
/// By which time a run is known, and by which one the engine may know it from now on.
const TOLD_AS: &str = "told-as";

impl Kept {
    /// Its container, which was ended for it, was noted to have been started since.
    pub(in crate::checkpoints) fn is_started_since(&self) -> bool {
        !self.about.begun.leave_running && self.directory.join(SINCE).exists()
    }

    /// Notes that its container was started since, for its copies as well.
    ///
    /// # Errors
    /// `checkpoint.store`.
    pub(in crate::checkpoints) fn started_since(&self) -> Result<(), CheckpointError> {
        note(&self.directory, "")?;
        let copies = self.copies()?;
        if copies.is_dir() {
            note(&copies, "")
        } else {
            Ok(())
        }
    }

    /// Notes with all other checkpoints of the container, and with the copies of such, that the container is about to be started from
    /// this one. `last_start` is when it was started last.
    ///
    /// # Errors
    /// `checkpoint.store`.
    pub(in crate::checkpoints) fn others_are_about_to_end(
        &self,
        last_start: &str,
    ) -> Result<(), CheckpointError> {
        let order = self.order(last_start)?;
        for place in self.others()? {
            if !place.join(SINCE).exists() {
                note(&place, &order)?;
            }
        }
        Ok(())
    }

    /// Takes back what was noted with the others: the container did not go on from this one. Only what was noted when it was started
    /// last at `last_start`, if that is given.
    ///
    /// # Errors
    /// `checkpoint.store`.
    pub(in crate::checkpoints) fn others_are_as_before(
        &self,
        last_start: Option<&str>,
    ) -> Result<(), CheckpointError> {
        for place in self.others()? {
            let ordered = self.ordered_at(&place)?;
            let is_it = |start: String| last_start.is_none_or(|last| self.is_same_run(&start, last));
            if ordered.is_some_and(is_it) {
                unnote(&place, SINCE)?;
            }
        }
        Ok(())
    }

    /// What was noted with the others stays: the container went on from this one, or may have.
    ///
    /// # Errors
    /// `checkpoint.store`.
    pub(in crate::checkpoints) fn others_are_over(&self) -> Result<(), CheckpointError> {
        for place in self.others()? {
            if self.ordered_at(&place)?.is_some() {
                note(&place, "")?;
            }
        }
        Ok(())
    }

    /// Another checkpoint, for which the container was ended, and which could still be restored when a restore of this one was ordered: it
    /// has the container's restart policy parked. `None` where that is what this one does itself, and once the restore is over.
    ///
    /// # Errors
    /// `checkpoint.store`.
    pub(in crate::checkpoints) fn waited_until_ordered(&self) -> Result<Option<Begun>, CheckpointError> {
        if !self.about.begun.leave_running {
            return Ok(None);
        }
        for place in self.others()? {
            let Some(start) = self.ordered_at(&place)? else {
                continue;
            };
            // What is noted of copies is no checkpoint, and one that cannot be read is told elsewhere.
            let other = Self::read(&place).ok();
            let waited = |other: &Self| {
                !other.about.begun.leave_running && !other.is_used() && other.is_of_run_begun(&start)
            };
            if let Some(other) = other.filter(waited) {
                return Ok(Some(other.about.begun));
            }
        }
        Ok(None)
    }

    /// Notes that the engine may soon say `later` in place of `now` when it is asked for the last start, without a start: with all
    /// checkpoints of that run, and with this one.
    ///
    /// # Errors
    /// `checkpoint.store`.
    pub(in crate::checkpoints) fn start_is_told_as(
        &self,
        now: &str,
        later: &str,
    ) -> Result<(), CheckpointError> {
        let of_the_run = |place: &PathBuf| {
            let other = Self::read(place).ok();
            other.is_some_and(|other| other.about.begun.started_at == now)
        };
        let others = self.others()?.into_iter().filter(of_the_run);
        for place in std::iter::once(self.directory.clone()).chain(others) {
            let path = place.join(TOLD_AS);
            let written = crate::store::write_durably(&path, format!("{now} {later}").as_bytes());
            written.map_err(|error| CheckpointError::io(path, "written", error))?;
        }
        Ok(())
    }

    /// Whether its container, which the engine says was started last at `started_at`, is in the run that it is of.
    pub(in crate::checkpoints) fn is_of_run_begun(&self, started_at: &str) -> bool {
        self.is_same_run(&self.about.begun.started_at, started_at)
    }

    /// Whether a run that began at `start` may be told by the time `told` now.
    fn is_same_run(&self, start: &str, told: &str) -> bool {
        start == told
            || fs::read_to_string(self.directory.join(TOLD_AS))
                .is_ok_and(|noted| noted.split_once(' ') == Some((start, told)))
    }

    /// When the container had been started last as a restore of this one was ordered, if that is noted in a directory.
    fn ordered_at(&self, place: &Path) -> Result<Option<String>, CheckpointError> {
        let order = self.order("")?;
        Ok(noted(place).strip_prefix(&order).map(str::to_owned))
    }

    /// What is noted with the others before a restore of this one.
    fn order(&self, last_start: &str) -> Result<String, CheckpointError> {
        Ok(format!("{} {last_start}", self.about.identity()?))
    }

    /// Where what is known of its copies is noted, if there are any.
    pub(super) fn copies(&self) -> Result<PathBuf, CheckpointError> {
        let name = format!("{EXPORTED}{}", self.about.identity()?);
        Ok(self.directory.with_file_name(name))
    }

    /// The directories of all other checkpoints of the container, and of what is known of exported ones.
    fn others(&self) -> Result<Vec<PathBuf>, CheckpointError> {
        let own = [self.directory.clone(), self.copies()?];
        let parent = self.directory.parent().unwrap_or(&self.directory);
        let of_one = |name: &String| name.starts_with(EXPORTED) || CheckpointName::new(name.as_str()).is_ok();
        let named = names_in(parent)?.into_iter().filter(of_one);
        Ok(named
            .map(|name| parent.join(name))
            .filter(|path| !own.contains(path) && path.is_dir())
            .collect())
    }
}

impl Receipt {
    /// Its container, if it was ended for it, was noted to have been started since.
    pub(in crate::checkpoints) fn is_started_since(&self) -> bool {
        self.directory.join(SINCE).exists()
    }

    /// Notes that its container was started since.
    ///
    /// # Errors
    /// `checkpoint.store`.
    pub(in crate::checkpoints) fn started_since(&self) -> Result<(), CheckpointError> {
        note(&self.directory, "")
    }
}

fn noted(directory: &Path) -> String {
    fs::read_to_string(directory.join(SINCE)).unwrap_or_default()
}

fn note(directory: &Path, order: &str) -> Result<(), CheckpointError> {
    let path = directory.join(SINCE);
    if order.is_empty() && fs::read(&path).is_ok_and(|noted| noted.is_empty()) {
        return Ok(());
    }
    let written = crate::store::write_durably(&path, order.as_bytes());
    written.map_err(|error| CheckpointError::io(path, "written", error))
}
