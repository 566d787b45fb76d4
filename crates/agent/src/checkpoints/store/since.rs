//! Notes that containers were started after they had been ended for their checkpoints.
//!
//! The time of the last start tells that as well, but not for ever: Podman forgets the time of a restore when the machine is started
//! anew, and when the container is initialised. So it is written down before a restore is ordered, with the other checkpoints of the
//! container and with the copies of such, and taken back only where the container surely did not go on.

use std::fs;
use std::path::{Path, PathBuf};

use tranship_core::ids::CheckpointName;

use super::receipts::EXPORTED;
use super::{Kept, Receipt, names_in, unnote};
use crate::checkpoints::error::CheckpointError;

const SINCE: &str = "started-since";

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
        let order = self.order(last_start.unwrap_or_default())?;
        for place in self.others()? {
            let noted = noted(&place);
            if last_start.map_or(noted.starts_with(&order), |_| noted == order) {
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
        let order = self.order("")?;
        for place in self.others()? {
            if noted(&place).starts_with(&order) {
                note(&place, "")?;
            }
        }
        Ok(())
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
