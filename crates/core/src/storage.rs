//! What holds a container's files: its layer, volumes, bind mounts and tmpfs, and the port through which their content
//! goes from one node to another.
//!
//! The engine says *where* an element is ([`crate::Engine::locate`]); a [`Storage`] reads and writes what is *in* it. One
//! element is brought up to date in rounds: each is one conversation over a [`Pipe`] between an [`ElementSource`] and an
//! [`ElementSink`], in a language that only those two know.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::fault::Fault;
use crate::ids::ContainerId;
use crate::node::ElementSize;

/// Kinds of storage elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ElementKind {
    /// What the container wrote over its image.
    Layer,
    /// A volume of the engine.
    Volume,
    /// A file or directory of the host.
    Bind,
    /// Files in memory, there only while the container runs.
    Tmpfs,
    /// What the processes of a running container hold.
    Memory,
}

impl std::fmt::Display for ElementKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Layer => "layer",
            Self::Volume => "volume",
            Self::Bind => "bind mount",
            Self::Tmpfs => "tmpfs",
            Self::Memory => "memory",
        })
    }
}

/// A storage element of one node, as the engine knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "element")]
pub enum ElementAt {
    /// The writable layer of a container.
    Layer {
        /// The container.
        container: ContainerId,
    },
    /// A volume.
    Volume {
        /// Its name.
        name: String,
    },
    /// A path of the host.
    Bind {
        /// Absolute path.
        path: String,
    },
    /// A tmpfs of a running container.
    Tmpfs {
        /// The container.
        container: ContainerId,
        /// Path in the container.
        path: String,
    },
    /// The memory of a container's processes, as a dump in a directory that only root reads.
    Memory {
        /// The container.
        container: ContainerId,
        /// About how many bytes it is, which decides where there is room for it.
        bytes: u64,
    },
}

impl ElementAt {
    /// What it is.
    #[must_use]
    pub fn kind(&self) -> ElementKind {
        match self {
            Self::Layer { .. } => ElementKind::Layer,
            Self::Volume { .. } => ElementKind::Volume,
            Self::Bind { .. } => ElementKind::Bind,
            Self::Tmpfs { .. } => ElementKind::Tmpfs,
            Self::Memory { .. } => ElementKind::Memory,
        }
    }
}

impl std::fmt::Display for ElementAt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Layer { .. } => f.write_str("the container's layer"),
            Self::Volume { name } => write!(f, "volume {name}"),
            Self::Bind { path } => write!(f, "bind mount {path}"),
            Self::Tmpfs { path, .. } => write!(f, "tmpfs {path}"),
            Self::Memory { .. } => f.write_str("the container's memory"),
        }
    }
}

/// Where an element's files are, and by which way they are reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "place")]
pub enum ElementPlace {
    /// A directory that this process may read and write as root.
    Directory {
        /// The directory. For a tmpfs it leads through `/proc/PID/root`.
        path: PathBuf,
        /// It is the upper directory of an overlay: device 0/0 and `trusted.overlay.*` mean deletions.
        overlay: bool,
    },
    /// Only the engine's archive API reaches it, through a container that is not running or need not be.
    Archive {
        /// The container whose path it is.
        container: ContainerId,
        /// Path in that container.
        path: String,
    },
}

/// A volume with everything that makes it that volume, but for its files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// Its name.
    pub name: String,
    /// Its driver.
    pub driver: String,
    /// Options of the driver, as the user gave them.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `local` or `global`.
    #[serde(default)]
    pub scope: String,
    /// When it was made, as the engine writes it; with the name it tells one volume from a later one of that name.
    #[serde(default)]
    pub created_at: String,
    /// Directory on the host, where the engine says one.
    #[serde(default)]
    pub mountpoint: Option<PathBuf>,
    /// The engine made up the name.
    #[serde(default)]
    pub anonymous: bool,
    /// Containers that mount it, stopped ones included.
    #[serde(default)]
    pub users: Vec<VolumeUser>,
    /// What makes it that volume wherever it is, kept through every move. Empty until somebody gives it one.
    #[serde(default)]
    pub guid: String,
}

impl VolumeSpec {
    /// Why the data does not travel: it lies elsewhere, and the same options find it again. `None` where it does travel.
    #[must_use]
    pub fn data_elsewhere(&self) -> Option<String> {
        if self.driver != "local" {
            return Some(format!("its driver {:?} keeps it", self.driver));
        }
        match self.options.get("type").map(String::as_str) {
            Some("tmpfs") => Some("it is memory, and comes empty as after a restart".into()),
            Some(
                kind @ ("nfs" | "nfs4" | "cifs" | "smb3" | "smbfs" | "ceph" | "9p" | "glusterfs" | "sshfs"
                | "fuse.sshfs"),
            ) => {
                let device = self.options.get("device").map_or("", String::as_str);
                Some(format!("it is a {kind} share {device}"))
            }
            _ => None,
        }
    }
}

/// Whether what a container mounts from `theirs` on its host touches what is at `path`: the same, something in it, or, where it
/// may be written to, something that it is in. Who only reads a directory far above (a monitor that has `/`) does not count.
#[must_use]
pub fn mount_touches(theirs: &Path, writable: bool, path: &Path) -> bool {
    theirs.starts_with(path) || (writable && path.starts_with(theirs))
}

/// A container that mounts a volume, or a path of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeUser {
    /// The container.
    pub container: ContainerId,
    /// Its name.
    pub name: String,
    /// It runs, or is paused.
    pub running: bool,
    /// It may write.
    pub writable: bool,
}

/// A duplex stream of bytes.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// One conversation between a source and a sink.
pub type Pipe = Box<dyn Duplex>;

/// How bulk data is compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// By what the data and the link are like.
    #[default]
    Auto,
    /// Not at all.
    None,
    /// zstd at this level.
    Zstd(i32),
}

impl std::str::FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "none" => Ok(Self::None),
            None if text == "zstd" => Ok(Self::Zstd(3)),
            Some(("zstd", level)) => match level.parse() {
                Ok(level @ 1..=19) => Ok(Self::Zstd(level)),
                _ => Err(format!("{level:?} is not a zstd level between 1 and 19")),
            },
            _ => Err(format!("{text:?} is none of none, zstd, zstd:LEVEL and auto")),
        }
    }
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

/// By which means an element travels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ElementRoute {
    /// As a tree of chunks, in rounds; both ends reach the files themselves.
    #[default]
    Tree,
    /// As one tar archive while the container stands still, because only the engine reaches the files at one of the ends.
    Archive,
}

/// How one element is read, the same in all its rounds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncOptions {
    /// Patterns of paths that stay behind, relative to the element's root.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Compression on the wire.
    #[serde(default)]
    pub compression: Compression,
    /// Bytes per second on the wire, at most.
    #[serde(default)]
    pub limit_rate: Option<u64>,
    /// What is mounted below it stays behind, instead of being an error: it is an element of its own.
    #[serde(default)]
    pub mounts_stay: bool,
    /// By which means it travels; the sink has to be opened with the same.
    #[serde(default)]
    pub route: ElementRoute,
}

/// How one round is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundOptions {
    /// Nothing writes any more once the round goes on ([`BegunRound::go`]): the result must equal the source exactly, and a change under the scan is an error.
    pub frozen: bool,
    /// The sink makes everything durable before it answers.
    pub durable: bool,
}

/// What one round did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundReport {
    /// Id of the tree that the sink holds now: lower-case hexadecimal BLAKE3 of its manifest.
    pub tree: String,
    /// Entries of the tree.
    pub entries: u64,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Entries that were new, different or gone.
    pub changed_entries: u64,
    /// Bytes of content that the sink did not hold, before compression.
    pub literal_bytes: u64,
    /// Bytes sent on the pipe.
    pub wire_bytes: u64,
    /// Files that changed while they were read; the next round looks at them again.
    pub unsettled: u64,
    /// Milliseconds that it took.
    pub milliseconds: u64,
}

/// How far a round is. Called often; must not block.
pub type ProgressFn = Arc<dyn Fn(RoundProgress) + Send + Sync>;

/// How far a round is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RoundProgress {
    /// Entries looked at.
    pub entries: u64,
    /// Bytes of content read or found unchanged.
    pub bytes: u64,
    /// Bytes on the pipe.
    pub wire_bytes: u64,
}

/// An element that is read.
#[async_trait]
pub trait ElementSource: Send {
    /// Begins a round with the sink at the other end of `pipe`. What is sent is what the element is at [`BegunRound::go`];
    /// [`BegunRound::meet`] may look at it before, while it is still written to. At most one round of an element is under way.
    async fn begin(&mut self, pipe: Pipe, options: RoundOptions) -> Result<Box<dyn BegunRound>, Fault>;

    /// Brings the sink at the other end of `pipe` up to what the element is now. After an error another round, over a new
    /// pipe, goes on with what arrived.
    async fn round(
        &mut self,
        pipe: Pipe,
        options: RoundOptions,
        progress: ProgressFn,
    ) -> Result<RoundReport, Fault> {
        self.begin(pipe, options).await?.go(progress).await
    }
}

/// A round that has begun and waits. Dropped, it ends, and the sink is as it was.
#[async_trait]
pub trait BegunRound: Send {
    /// Waits until the sink has said what it holds, which it may have to look through first: what is known before a freeze does
    /// not prolong it.
    async fn meet(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    /// Asks the sink for what makes [`BegunRound::follow`] of more use, after [`BegunRound::meet`]. It reads large files for that.
    async fn foresee(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    /// Awaits `writing`, which writes files of the element anew and does nothing with them but add to their ends. What it has written
    /// by then may be read meanwhile, after [`BegunRound::meet`], so that the round need not when it goes on.
    async fn follow(&mut self, writing: BoxFuture<'_, ()>) -> Result<(), Fault> {
        writing.await;
        Ok(())
    }

    /// Brings the sink up to what the element is now, not to what it was at the beginning.
    async fn go(self: Box<Self>, progress: ProgressFn) -> Result<RoundReport, Fault>;
}

/// An element that is written.
#[async_trait]
pub trait ElementSink: Send {
    /// Takes in one round.
    async fn round(&mut self, pipe: Pipe, progress: ProgressFn) -> Result<RoundReport, Fault>;
}

/// Reads and writes storage elements of this node.
#[async_trait]
pub trait Storage: Send + Sync {
    /// Opens an element for reading. Nothing of it changes.
    async fn source(
        &self,
        place: &ElementPlace,
        options: &SyncOptions,
    ) -> Result<Box<dyn ElementSource>, Fault>;

    /// Opens an element for writing. What it holds is used where it is right, and removed where it is not in the source.
    async fn sink(&self, place: &ElementPlace, route: ElementRoute) -> Result<Box<dyn ElementSink>, Fault>;

    /// Whether there is anything at the place.
    async fn exists(&self, place: &ElementPlace) -> Result<bool, Fault>;

    /// Makes the directory, and those above it, where it is missing; says whether it was.
    async fn make(&self, place: &ElementPlace) -> Result<bool, Fault>;

    /// Removes the directory with all that it holds. Gone already is done well.
    async fn remove(&self, place: &ElementPlace) -> Result<(), Fault>;

    /// What the element holds makes way, under a key, and the element is empty with the same attributes. If something is
    /// kept under that key already, nothing happens: it was done before. Survives the removal of the element by the engine.
    async fn set_aside(&self, place: &ElementPlace, key: &str) -> Result<(), Fault>;

    /// What was set aside under the key comes back, in place of what is there now. Nothing happens if there is nothing.
    /// Says whether there was something.
    async fn put_back(&self, place: &ElementPlace, key: &str) -> Result<bool, Fault>;

    /// What was set aside under the key goes for good. Gone already is done well.
    async fn drop_aside(&self, place: &ElementPlace, key: &str) -> Result<(), Fault>;

    /// How much the element holds: a quick look that reads no content. `None` where that cannot be told.
    async fn size(&self, place: &ElementPlace) -> Result<Option<ElementSize>, Fault>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_touch_by_whole_components() {
        let touches = |theirs, writable| mount_touches(Path::new(theirs), writable, Path::new("/srv/data"));
        assert!(touches("/srv/data", false));
        assert!(touches("/srv/data/in/it", false));
        assert!(touches("/srv", true));
        assert!(!touches("/srv", false), "it only reads");
        assert!(!touches("/srv/data2", true));
        assert!(!touches("/srv/dat", true));
    }
}
