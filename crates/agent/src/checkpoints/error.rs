//! Why a checkpoint is not made, found, or restored.

use std::path::PathBuf;

use tranship_core::fault::{Explain, FaultKind};

/// What stands in the way of a checkpoint.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    /// Memory is read and written by root only.
    #[error("checkpoints are made, shown and restored by an agent that runs as root")]
    Root,
    /// There is none of that name.
    #[error("there is no checkpoint {name:?} of {container}")]
    NotFound {
        /// The container, as it was asked for.
        container: String,
        /// The name, or a word for any.
        name: String,
    },
    /// There are several, and none was named.
    #[error("{container} has several checkpoints: {}", names.join(", "))]
    Which {
        /// The container.
        container: String,
        /// Their names.
        names: Vec<String>,
    },
    /// The name is taken.
    #[error("{container} has a checkpoint {name:?} already")]
    Exists {
        /// The container.
        container: String,
        /// The name.
        name: String,
    },
    /// There is no memory to keep.
    #[error("{container} is {state}, and only what runs has memory to keep")]
    NotRunning {
        /// The container.
        container: String,
        /// What it does.
        state: String,
    },
    /// It runs already.
    #[error("{container} is {state}, and only what stands still is restored")]
    Running {
        /// The container.
        container: String,
        /// What it does.
        state: String,
    },
    /// The engine removes it when it ends.
    #[error("{container} was made with --rm: nothing would be left to restore")]
    AutoRemove {
        /// The container.
        container: String,
    },
    /// It went on without this memory.
    #[error("{container} was started since the checkpoint {name:?} was made, and went on without it")]
    StartedSince {
        /// The container.
        container: String,
        /// The checkpoint.
        name: String,
    },
    /// It was restored, or may have been.
    #[error("{container} was restored from the checkpoint {name:?} before, or may have been")]
    Used {
        /// The container.
        container: String,
        /// The checkpoint.
        name: String,
    },
    /// Memory and files are of two moments.
    #[error("files of {container} changed since the checkpoint {name:?} was made: {}", changed.join(", "))]
    FilesChanged {
        /// The container.
        container: String,
        /// The checkpoint.
        name: String,
        /// In which of its storage elements.
        changed: Vec<String>,
    },
    /// The container belongs to another node by now.
    #[error("{container} was moved to another machine since the checkpoint {name:?} was made")]
    Moved {
        /// The container.
        container: String,
        /// The checkpoint.
        name: String,
    },
    /// How its making ended is not known yet.
    #[error("the agent has not settled yet how the making of the checkpoint {name:?} of {container} ended")]
    Unfinished {
        /// The container.
        container: String,
        /// The checkpoint.
        name: String,
    },
    /// Its files cannot be compared.
    #[error("the layer of {container} is no directory that the agent can look at")]
    Storage {
        /// The container.
        container: String,
    },
    /// An error on the way hid how a restore ended.
    #[error("whether {container} went on from the checkpoint {name:?} is not known")]
    InDoubt {
        /// The container.
        container: String,
        /// The checkpoint.
        name: String,
    },
    /// The container that it is of was removed.
    #[error("the container {container} is gone, of which the checkpoint {name:?} is")]
    ContainerGone {
        /// Its name.
        container: String,
        /// The checkpoint.
        name: String,
    },
    /// What is stored is not what was.
    #[error("the checkpoint at {} is damaged: {why}", path.display())]
    Damaged {
        /// Its file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// It cannot be read without the key that it was made with.
    #[error("the key of this node's checkpoints, {}, cannot be used: {why}", path.display())]
    Key {
        /// Its file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// It is no archive of a checkpoint, or a damaged one.
    #[error("the archive cannot be used: {why}")]
    Archive {
        /// What was found.
        why: String,
    },
    /// It is an image, of which the archive is the layer.
    #[error("the archive cannot be used: it is an image, not the archive of a checkpoint")]
    Image,
    /// It bears no proof that this node's key gave it.
    #[error("the archive was not exported by this node, or was changed since")]
    Foreign,
    /// It goes back to its own container only.
    #[error("the checkpoint is of the container {of}, which {container} is not")]
    OtherContainer {
        /// The container, as it was asked for.
        container: String,
        /// The id of the one that it is of.
        of: String,
    },
    /// What became of its container is not known.
    #[error("this node has no note that it exported the checkpoint {name:?} of {container}")]
    NotExported {
        /// The container.
        container: String,
        /// The checkpoint.
        name: String,
    },
    /// It never went away.
    #[error("the checkpoint is there already, as {container}@{name}")]
    Present {
        /// The container.
        container: String,
        /// The name that it has there.
        name: String,
    },
    /// It came back, and nobody saw whether its container waits for it as it should.
    #[error(
        "the checkpoint {name:?} is back, but whether the restart policy of {container} is parked for it is not known"
    )]
    NotParked {
        /// The container.
        container: String,
        /// The checkpoint.
        name: String,
    },
    /// Whoever takes an archive went away.
    #[error("the archive could not be passed on")]
    Stream(#[source] std::io::Error),
    /// The disk is too small.
    #[error("there is no room for the checkpoint: {needed} bytes are needed at {}, and {free} are free", path.display())]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
    },
    /// What the file system says.
    #[error("{} cannot be {what}", path.display())]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// `read`, `written`, `removed` …
        what: &'static str,
        /// Why.
        #[source]
        reason: std::io::Error,
    },
}

impl CheckpointError {
    /// What the file system says of a path.
    pub(crate) fn io(path: impl Into<PathBuf>, what: &'static str, reason: std::io::Error) -> Self {
        Self::Io {
            path: path.into(),
            what,
            reason,
        }
    }
}

impl Explain for CheckpointError {
    fn code(&self) -> &'static str {
        match self {
            Self::Root => "checkpoint.root",
            Self::NotFound { .. } => "checkpoint.not-found",
            Self::Which { .. } => "checkpoint.which",
            Self::Exists { .. } => "checkpoint.exists",
            Self::NotRunning { .. } => "checkpoint.not-running",
            Self::Running { .. } => "checkpoint.running",
            Self::AutoRemove { .. } => "checkpoint.auto-remove",
            Self::StartedSince { .. } => "checkpoint.started-since",
            Self::Used { .. } => "checkpoint.used",
            Self::FilesChanged { .. } => "checkpoint.files-changed",
            Self::Moved { .. } => "container.moved",
            Self::Unfinished { .. } => "checkpoint.unfinished",
            Self::Storage { .. } => "checkpoint.storage",
            Self::InDoubt { .. } => "checkpoint.in-doubt",
            Self::ContainerGone { .. } => "checkpoint.container-gone",
            Self::Damaged { .. } => "checkpoint.damaged",
            Self::Key { .. } => "checkpoint.key",
            Self::Archive { .. } | Self::Image => "checkpoint.archive",
            Self::Foreign => "checkpoint.foreign",
            Self::OtherContainer { .. } => "checkpoint.other-container",
            Self::NotExported { .. } => "checkpoint.not-exported",
            Self::Present { .. } => "checkpoint.present",
            Self::NotParked { .. } => "checkpoint.not-parked",
            Self::Stream(_) => "checkpoint.stream",
            Self::NoSpace { .. } => "checkpoint.no-space",
            Self::Io { reason, .. } if reason.kind() == std::io::ErrorKind::StorageFull => {
                "checkpoint.no-space"
            }
            Self::Io { .. } => "checkpoint.store",
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Root => "log in as root there".into(),
            Self::NotFound { .. } => "`tranship checkpoint ls` shows them".into(),
            Self::Which { container, .. } => format!("say which, as {container}@NAME"),
            Self::Exists { .. } => "choose another --name, or remove that one with `tranship checkpoint rm`".into(),
            Self::NotRunning { .. } => "start it, or let it go on with `docker unpause`".into(),
            Self::Running { .. } => "stop it first".into(),
            Self::AutoRemove { .. } => "make it again without --rm".into(),
            Self::StartedSince { .. } | Self::Used { .. } => {
                "memory goes on once only; remove the checkpoint with `tranship checkpoint rm`".into()
            }
            Self::FilesChanged { .. } => {
                "what its processes know of them may be wrong by now; --changed-files restores it all the same".into()
            }
            Self::Moved { .. } => {
                "it goes on there, and its memory must not go on here as well; remove the checkpoint with `tranship checkpoint rm`".into()
            }
            Self::Unfinished { .. } => "try again; the agent's log says what it waits for".into(),
            Self::Storage { .. } => "checkpoints need the engine's storage driver overlay2, on the agent's own machine".into(),
            Self::InDoubt { .. } => {
                "the checkpoint stays, and `tranship checkpoint ls` shows what the agent found; look at the container before you remove or start anything".into()
            }
            Self::ContainerGone { .. } => {
                "memory goes on only in the container that it is of; remove it with `tranship checkpoint rm`".into()
            }
            Self::Damaged { .. } => "remove it with `tranship checkpoint rm`, and start the container afresh".into(),
            Self::Key { .. } => {
                "checkpoints can be read only with the key that they were made with; bring that file back, or remove them".into()
            }
            Self::Archive { .. } => {
                "it has to be as `tranship checkpoint export` wrote it, whole and unchanged; fetch or export it again".into()
            }
            Self::Image => {
                "an exported image has the archive as its one layer: `tar -xOf IMAGE.tar blobs/sha256/… | tranship checkpoint import - NODE//CONTAINER`, \
                with the layer's digest as `skopeo inspect oci-archive:IMAGE.tar` names it"
                    .into()
            }
            Self::Foreign => {
                "memory decides what its processes may do, so a node takes back only what it exported itself, with the key that it has now".into()
            }
            Self::OtherContainer { .. } => "memory goes on only in the container that it is of; name that one".into(),
            Self::NotExported { .. } => {
                "without that note, which lies among the node's checkpoints, it is not known whether the container went on from it since".into()
            }
            Self::Present { .. } => "restore that one; there is nothing to bring back".into(),
            Self::NotParked { .. } => {
                "the checkpoint knows the policy: restore it, or remove it with `tranship checkpoint rm`, and it comes back; an engine that is restarted before may start the container afresh".into()
            }
            Self::Stream(_) => "run the command again".into(),
            Self::NoSpace { .. } => "free space there, or remove checkpoints that are no longer needed".into(),
            Self::Io { .. } => "the agent needs space and a writable file system there".into(),
        })
    }

    fn kind(&self) -> FaultKind {
        match self {
            Self::Which { .. } => FaultKind::Usage,
            Self::InDoubt { .. } | Self::NotParked { .. } => FaultKind::InDoubt,
            _ => FaultKind::Environment,
        }
    }
}
