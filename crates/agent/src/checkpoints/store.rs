//! Where checkpoints lie: a directory for each, below one for its container, beside the engine's data, and closed to all but root.
//!
//! ```text
//! DATA-ROOT/tranship/checkpoints/CONTAINER/NAME/checkpoint.json   what it is
//!                                               memory.sealed     the images of the dump
//!                                               begun.json        how it is made, until that is over
//!                                               pausing           the container is, or is about to be, paused for it
//!                                               ending            the container is about to be ended for it
//!                                               restoring         while it is restored
//!                                               used              from right before a restore on
//!                                               moved             the container belongs to another node
//!                                               started-since     it was started after it had been ended for this one
//!                                               told-as           by which time the engine tells its run by now
//!                                          .new-NAME/             one that is being made, or brought back from an archive
//!                                          .exported-ID/          what became of the container of one that was exported
//! ```

mod receipts;
mod since;

pub(super) use self::receipts::Receipt;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tranship_core::container::RestartPolicy;
use tranship_core::ids::{CheckpointName, Digest};
use tranship_core::storage::ElementAt;
use tranship_core::{ContainerId, ContainerSpec};

use super::error::CheckpointError;
use super::look::Look;
use super::seal::HEADER;

const ABOUT: &str = "checkpoint.json";
const MEMORY: &str = "memory.sealed";
const BEGUN: &str = "begun.json";
const RESTORING: &str = "restoring";
const USED: &str = "used";
const PAUSING: &str = "pausing";
const ENDING: &str = "ending";
const MOVED: &str = "moved";
/// How the names of those begin that are being made. No checkpoint may be called so.
const NEW: &str = ".new-";
/// A description that is longer is none, in bytes.
const LONGEST_ABOUT: u64 = 16 << 20;
/// The form of the description.
const VERSION: u32 = 1;

/// What is known of a container whose checkpoint is being made: enough to take it all back, or to bring it to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Begun {
    /// The container.
    pub(super) container: ContainerId,
    /// When it was started; another start is another run.
    pub(super) started_at: String,
    /// Its restart policy, which is parked while it stands still for its checkpoint.
    pub(super) restart_policy: RestartPolicy,
    /// It goes on after the dump.
    pub(super) leave_running: bool,
    /// Bytes that its processes use.
    pub(super) memory_bytes: u64,
}

impl Begun {
    /// Its memory, as a storage element.
    pub(super) fn memory(&self) -> ElementAt {
        ElementAt::Memory {
            container: self.container.clone(),
            bytes: self.memory_bytes,
        }
    }
}

/// What a checkpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct About {
    version: u32,
    /// Its name.
    pub(super) name: CheckpointName,
    /// The container's name when it was made, for people.
    pub(super) container_name: String,
    /// The run of the container that it is of.
    pub(super) begun: Begun,
    /// Milliseconds since 1970 when it was made, for people.
    pub(super) created_at_ms: u64,
    /// Bytes of all images.
    pub(super) image_bytes: u64,
    /// What its files looked like.
    pub(super) files: Vec<Look>,
}

impl About {
    /// Describes a checkpoint that was made right now.
    pub(super) fn new(
        name: CheckpointName,
        spec: &ContainerSpec,
        begun: &Begun,
        image_bytes: u64,
        files: Vec<Look>,
    ) -> Self {
        Self {
            version: VERSION,
            name,
            container_name: spec.name.clone(),
            begun: begun.clone(),
            created_at_ms: crate::node::now_ms(),
            image_bytes,
            files,
        }
    }

    /// The form that it has, if that is another one than this version knows.
    pub(super) fn foreign_version(&self) -> Option<u32> {
        (self.version != VERSION).then_some(self.version)
    }

    /// The same checkpoint, brought back from an archive: by another name maybe, and with what its container is called by now and has
    /// as its restart policy.
    pub(super) fn brought_back(mut self, name: CheckpointName, spec: &ContainerSpec) -> Self {
        self.name = name;
        self.container_name.clone_from(&spec.name);
        if !spec.restart_policy.is_never() {
            self.begun.restart_policy = spec.restart_policy.clone();
        }
        self
    }

    /// What tells it from every other checkpoint, whatever it is called: 64 hexadecimal digits.
    ///
    /// # Errors
    /// None that is known: it is made of what was read from JSON, or is written as such.
    pub(super) fn identity(&self) -> Result<String, CheckpointError> {
        let begun = &self.begun;
        let one = (
            &begun.container,
            &begun.started_at,
            begun.leave_running,
            self.created_at_ms,
            self.image_bytes,
            &self.files,
        );
        let bytes = serde_json::to_vec(&one)
            .map_err(|error| CheckpointError::io(Path::new(ABOUT), "written", error.into()))?;
        Ok(Digest::of(&bytes).hex().to_owned())
    }
}

/// A checkpoint on the disk.
#[derive(Debug)]
pub(super) struct Kept {
    directory: PathBuf,
    /// What it is.
    pub(super) about: About,
    /// The same, byte for byte: its content opens with nothing else.
    pub(super) context: Vec<u8>,
}

impl Kept {
    fn read(directory: &Path) -> Result<Self, CheckpointError> {
        let path = directory.join(ABOUT);
        let damaged = |why: String| CheckpointError::Damaged {
            path: path.clone(),
            why,
        };
        let unread = |error| CheckpointError::io(&path, "read", error);
        let file = File::open(&path).map_err(unread)?;
        if file.metadata().map_err(unread)?.len() > LONGEST_ABOUT {
            return Err(damaged("it is too long".into()));
        }
        let mut context = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, LONGEST_ABOUT), &mut context).map_err(unread)?;
        let about: About = serde_json::from_slice(&context).map_err(|error| damaged(error.to_string()))?;
        if let Some(version) = about.foreign_version() {
            return Err(damaged(format!("it is of version {version}")));
        }
        let named = directory.file_name().and_then(|name| name.to_str());
        let below = directory.parent().and_then(Path::file_name);
        let is_its = below.and_then(|name| name.to_str()) == Some(about.begun.container.as_str());
        if named != Some(about.name.as_str()) || !is_its {
            return Err(damaged("it describes another checkpoint".into()));
        }
        Ok(Self {
            directory: directory.to_owned(),
            about,
            context,
        })
    }

    /// The sealed images.
    pub(super) fn memory(&self) -> PathBuf {
        self.directory.join(MEMORY)
    }

    /// Bytes of it on the disk.
    pub(super) fn stored_bytes(&self) -> u64 {
        fs::metadata(self.memory()).map_or(0, |about| about.len())
    }

    /// It was restored, or may have been.
    pub(super) fn is_used(&self) -> bool {
        self.directory.join(USED).exists()
    }

    /// A restore of it was begun, and its end was not noted.
    pub(super) fn is_restoring(&self) -> bool {
        self.directory.join(RESTORING).exists()
    }

    /// Its making was not brought to its end.
    pub(super) fn is_unfinished(&self) -> bool {
        self.directory.join(BEGUN).exists()
    }

    /// The container was about to be ended for it, and stood as it was dumped: an end of before is not ours.
    pub(super) fn is_ending(&self) -> bool {
        self.directory.join(ENDING).exists()
    }

    /// Notes that the container is about to be ended, or went on.
    pub(super) fn ending(&self, now: bool) -> Result<(), CheckpointError> {
        mark(&self.directory, ENDING, now)
    }

    /// The container went to another node.
    pub(super) fn is_moved(&self) -> bool {
        self.directory.join(MOVED).exists()
    }

    /// Notes that the container went to another node: the record of that does not stay for ever.
    pub(super) fn moved(&self) -> Result<(), CheckpointError> {
        mark(&self.directory, MOVED, true)
    }

    /// Notes that its making is over. The note of that goes first: without the others it would look as if it had failed.
    pub(super) fn finished(&self) -> Result<(), CheckpointError> {
        unnote(&self.directory, BEGUN)?;
        unnote(&self.directory, PAUSING)?;
        unnote(&self.directory, ENDING)
    }

    /// Notes that a restore begins, or is over.
    pub(super) fn restoring(&self, now: bool) -> Result<(), CheckpointError> {
        mark(&self.directory, RESTORING, now)
    }

    /// Notes that it is about to be restored, and in which boot of the machine, or was not after all.
    pub(super) fn used(&self, now: bool) -> Result<(), CheckpointError> {
        if !now {
            return unnote(&self.directory, USED);
        }
        let path = self.directory.join(USED);
        let written = crate::store::write_durably(&path, tranship_content::boot_id().as_bytes());
        written.map_err(|error| CheckpointError::io(path, "written", error))
    }

    /// The machine was started anew since it was noted that it is about to be restored.
    pub(super) fn is_used_before_this_boot(&self) -> bool {
        let noted = fs::read_to_string(self.directory.join(USED));
        noted.is_ok_and(|boot| boot != tranship_content::boot_id())
    }

    /// Removes it for good.
    pub(super) fn remove(&self) -> Result<(), CheckpointError> {
        wipe(&self.directory)
    }
}

/// One that is being made.
#[derive(Debug)]
pub(super) struct New {
    directory: PathBuf,
    name: CheckpointName,
}

impl New {
    /// Where its images are sealed.
    pub(super) fn memory(&self) -> PathBuf {
        self.directory.join(MEMORY)
    }

    /// How it was begun. `None` if that was not noted: nothing was done then.
    ///
    /// # Errors
    /// `checkpoint.store` if the note is there and cannot be read: something may have been done.
    pub(super) fn begun(&self) -> Result<Option<Begun>, CheckpointError> {
        let path = self.directory.join(BEGUN);
        match fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CheckpointError::io(&path, "read", error)),
        }
    }

    /// Writes down what it is: the very bytes with which its images are sealed.
    pub(super) fn describe(&self, about: &About) -> Result<Vec<u8>, CheckpointError> {
        let path = self.directory.join(ABOUT);
        let unwritten = |error: io::Error| CheckpointError::io(&path, "written", error);
        let bytes = serde_json::to_vec(about).map_err(|error| unwritten(error.into()))?;
        crate::store::write_durably(&path, &bytes).map_err(unwritten)?;
        Ok(bytes)
    }

    /// The container may be paused for it.
    pub(super) fn is_pausing(&self) -> bool {
        self.directory.join(PAUSING).exists()
    }

    /// Notes that the container is about to be paused, or goes on.
    pub(super) fn pausing(&self, now: bool) -> Result<(), CheckpointError> {
        mark(&self.directory, PAUSING, now)
    }

    /// Gives it its name: from here on it is a checkpoint.
    pub(super) fn keep(&self) -> Result<Kept, CheckpointError> {
        let named = self.directory.with_file_name(self.name.as_str());
        fs::rename(&self.directory, &named)
            .and_then(|()| sync(named.parent()))
            .map_err(|error| CheckpointError::io(&named, "named", error))?;
        Kept::read(&named)
    }

    /// Where it is by now: its naming may have failed after it had its name. `None` where it is gone.
    pub(super) fn where_it_is(&self) -> Option<Self> {
        let named = self.directory.with_file_name(self.name.as_str());
        let directory = [&self.directory, &named].into_iter().find(|path| path.exists())?;
        Some(Self {
            directory: directory.clone(),
            name: self.name.clone(),
        })
    }

    /// Removes it for good.
    pub(super) fn remove(&self) -> Result<(), CheckpointError> {
        wipe(&self.directory)
    }
}

/// All checkpoints of a node.
#[derive(Debug, Clone)]
pub(super) struct Store {
    root: PathBuf,
}

impl Store {
    /// Those beside an engine's data.
    pub(super) fn beside(data_root: &Path) -> Self {
        Self {
            root: data_root.join("tranship/checkpoints"),
        }
    }

    /// Where they are.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Begins one. What an earlier one of that name left that was never finished is gone by now.
    pub(super) fn begin(&self, name: &CheckpointName, begun: &Begun) -> Result<New, CheckpointError> {
        let new = self.make_new(&begun.container, name)?;
        let noted = serde_json::to_vec(begun)
            .map_err(io::Error::from)
            .and_then(|bytes| crate::store::write_durably(&new.directory.join(BEGUN), &bytes))
            .and_then(|()| sync(new.directory.parent()))
            .and_then(|()| sync(Some(&self.root)));
        if let Err(error) = noted {
            new.remove()?;
            return Err(CheckpointError::io(&new.directory, "made", error));
        }
        Ok(new)
    }

    /// Makes the directory of one. Without a note of how it was begun nothing is done to its container, as with one that comes from an
    /// archive: what is left of it is removed, and with its name it is whole.
    pub(super) fn make_new(
        &self,
        container: &ContainerId,
        name: &CheckpointName,
    ) -> Result<New, CheckpointError> {
        let parent = self.root.join(container.as_str());
        make_private(&parent)?;
        let directory = parent.join(format!("{NEW}{name}"));
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(|error| CheckpointError::io(&directory, "made", error))?;
        Ok(New {
            directory,
            name: name.clone(),
        })
    }

    /// Whether there is something of that name.
    pub(super) fn holds(&self, container: &ContainerId, name: &CheckpointName) -> bool {
        let path = self.root.join(container.as_str()).join(name.as_str());
        path.symlink_metadata().is_ok()
    }

    /// Removes what bears that name, whatever it is.
    pub(super) fn remove(
        &self,
        container: &ContainerId,
        name: &CheckpointName,
    ) -> Result<(), CheckpointError> {
        wipe(&self.root.join(container.as_str()).join(name.as_str()))
    }

    /// All that can be read, oldest first. Others are told in the log.
    pub(super) fn all(&self) -> Result<Vec<Kept>, CheckpointError> {
        let mut kept = Vec::new();
        for directory in self.directories(|name| CheckpointName::new(name).is_ok())? {
            match Kept::read(&directory) {
                Ok(found) => kept.push(found),
                Err(error) => tracing::warn!("a checkpoint is left out: {error}"),
            }
        }
        kept.sort_by(|a, b| {
            let key = |kept: &Kept| (kept.about.created_at_ms, kept.about.name.clone());
            key(a).cmp(&key(b))
        });
        Ok(kept)
    }

    /// Those that an agent which ended was making.
    pub(super) fn unfinished(&self) -> Result<Vec<New>, CheckpointError> {
        let directories = self.directories(|name| name.starts_with(NEW))?;
        let named = directories.into_iter().filter_map(|directory| {
            let name = directory.file_name()?.to_str()?.strip_prefix(NEW)?;
            Some(New {
                name: CheckpointName::new(name).ok()?,
                directory,
            })
        });
        Ok(named.collect())
    }

    fn directories(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, CheckpointError> {
        let mut found = Vec::new();
        for container in names_in(&self.root)? {
            if ContainerId::new(container.as_str()).is_err() {
                continue;
            }
            let parent = self.root.join(&container);
            let names = names_in(&parent)?;
            found.extend(
                names
                    .iter()
                    .filter(|name| wanted(name))
                    .map(|name| parent.join(name)),
            );
        }
        Ok(found)
    }
}

fn names_in(directory: &Path) -> Result<Vec<String>, CheckpointError> {
    let unread = |error| CheckpointError::io(directory, "read", error);
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(unread)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        // What is not UTF-8 is none of ours.
        names.extend(entry.map_err(unread)?.file_name().into_string());
    }
    Ok(names)
}

/// Makes the directory, and those above it that are missing, for this user alone; what is there must be so as well.
fn make_private(directory: &Path) -> Result<(), CheckpointError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| CheckpointError::io(directory, "made", error))?;
    let owner = rustix::process::geteuid().as_raw();
    let checked = [Some(directory), directory.parent()];
    for path in checked.into_iter().flatten() {
        let about = fs::symlink_metadata(path).map_err(|error| CheckpointError::io(path, "read", error))?;
        if !about.is_dir() || about.uid() != owner || about.mode() & 0o077 != 0 {
            let open = io::Error::other("it is open to others than the agent's user");
            return Err(CheckpointError::io(path, "used", open));
        }
    }
    Ok(())
}

fn sync(directory: Option<&Path>) -> io::Result<()> {
    directory.map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

fn mark(directory: &Path, note: &str, now: bool) -> Result<(), CheckpointError> {
    if !now {
        return unnote(directory, note);
    }
    let path = directory.join(note);
    let written = crate::store::write_durably(&path, b"");
    written.map_err(|error| CheckpointError::io(path, "written", error))
}

fn unnote(directory: &Path, note: &str) -> Result<(), CheckpointError> {
    let path = directory.join(note);
    or_missing(fs::remove_file(&path))
        .and_then(|()| sync(Some(directory)))
        .map_err(|error| CheckpointError::io(path, "removed", error))
}

fn or_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes a checkpoint. First what its content could be opened with: the rest is noise then, wherever a disk still has it.
fn wipe(directory: &Path) -> Result<(), CheckpointError> {
    let memory = directory.join(MEMORY);
    let salt = || {
        let mut file = File::options().write(true).open(&memory)?;
        file.write_all(&[0; HEADER])?;
        file.sync_all()
    };
    let removed = or_missing(salt())
        .and_then(|()| or_missing(fs::remove_dir_all(directory)))
        .and_then(|()| sync(directory.parent()));
    removed.map_err(|error| CheckpointError::io(directory, "removed", error))?;
    // Others of the same container may be there.
    let empty = directory.parent().map(fs::remove_dir);
    tracing::trace!(?empty, "the container's checkpoints");
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
