//! Files of containers and volumes as archives: what `tranship cp` and docker's archive API ask for.
//!
//! A container that runs or is paused is reached through the root directory of its process, so that everything that is
//! mounted there is seen, memory included, and nothing of the engine is locked meanwhile. Everything else goes through the
//! engine's own archive API. What goes in that way is kept in a file first: the engine locks a container for a whole
//! upload or download, and two copies in opposite directions would wait for each other for ever (`spool`).

pub mod bridge;
pub mod delta;
mod engine_way;
pub(crate) mod live_way;
pub mod machine;
mod names;
mod request;
pub(crate) mod rewrite;
pub(crate) mod spool;
mod stat;

use std::io::Read;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tranship_archive::confined::{ExtractReport, Links, Root};
use tranship_archive::glob::{self, Glob};
use tranship_archive::path::TreePath;
use tranship_core::engine::LiveRoot;
use tranship_core::fault::FaultKind;
use tranship_core::ids::ContainerName;
use tranship_core::storage::{ElementAt, ElementPlace};
use tranship_core::{ContainerId, ContainerSpec, EngineError, Fault};

use self::bridge::Pieces;
use self::delta::{Decoder, Index};
pub(crate) use self::request::decode;
pub use self::request::{Owner, PathRequest};
pub use self::rewrite::rewrite;
pub use self::stat::RemoteStat;
pub(crate) use self::stat::rfc3339;
use crate::state::Agent;
use crate::writes::{self, Writing};

/// What was unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of content, holes not counted.
    pub bytes: u64,
    /// What was left out, and why; the first of it.
    pub skipped: Vec<String>,
}

impl From<ExtractReport> for Unpacked {
    fn from(report: ExtractReport) -> Self {
        let skipped = report.skipped.first.iter().take(20);
        Self {
            entries: report.entries,
            bytes: report.bytes,
            skipped: skipped
                .map(|s| format!("{}: {}", String::from_utf8_lossy(&s.path), s.what))
                .collect(),
        }
    }
}

/// Whose files are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Holder {
    /// A container, by name or id.
    Container(ContainerName),
    /// A volume, by name.
    Volume(String),
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Container(name) => write!(f, "container {name}"),
            Self::Volume(name) => write!(f, "volume {name}"),
        }
    }
}

/// The way to the files.
enum Way {
    /// Straight through a directory.
    Live(Arc<Root>),
    /// Through the engine, at this path of this container.
    Engine(ContainerId, String),
}

/// A holder whose files are within reach.
struct Opened {
    holder: Holder,
    way: Way,
    /// The container, if it is one.
    spec: Option<Box<ContainerSpec>>,
    /// Number of the process that it is reached through.
    process: i64,
    /// What has to be released.
    place: Option<ElementPlace>,
    /// Keeps migrations from beginning, if it is written to.
    writing: Option<Writing>,
}

/// Docker's words for a path that is not there.
pub(crate) fn no_file(path: &[u8], holder: &Holder) -> Fault {
    let path = String::from_utf8_lossy(path);
    Fault::new(
        "file.not-found",
        FaultKind::Environment,
        format!("Could not find the file {path} in {holder}"),
    )
}

impl Agent {
    async fn open(&self, holder: &Holder) -> Result<Opened, Fault> {
        match holder {
            Holder::Container(name) => self.open_container(name, holder).await,
            Holder::Volume(name) => {
                let at = ElementAt::Volume { name: name.clone() };
                let place = self.engine().locate(&at).await?;
                let way = match &place {
                    ElementPlace::Directory { path, .. } => {
                        Way::Live(Arc::new(Root::open(path, Links::InRoot)?))
                    }
                    ElementPlace::Archive { container, path } => Way::Engine(container.clone(), path.clone()),
                };
                Ok(Opened {
                    holder: holder.clone(),
                    way,
                    spec: None,
                    process: 0,
                    place: Some(place),
                    writing: None,
                })
            }
        }
    }

    async fn open_container(&self, name: &ContainerName, holder: &Holder) -> Result<Opened, Fault> {
        let missing = |error| match error {
            EngineError::NotFound {
                what: "container", ..
            } => Fault::new(
                "container.not-found",
                FaultKind::Environment,
                format!("No such container: {name}"),
            )
            .with_hint("`docker ps -a` on that machine shows the names"),
            other => other.into(),
        };
        // A container that stops or starts between the two questions is looked at once more.
        for attempt in 0..2 {
            let spec = self.engine().inspect(name).await.map_err(missing)?;
            let live = self.engine().live_root(&spec.id).await?;
            let again = self.engine().status(&spec.id).await?;
            if (again.state != spec.status.state || again.started_at != spec.status.started_at)
                && attempt == 0
            {
                continue;
            }
            let id = spec.id.clone();
            let (way, process) = match live {
                Some(LiveRoot { directory, process }) => (
                    Way::Live(Arc::new(Root::from_fd(directory, Links::InRoot))),
                    process,
                ),
                None => (Way::Engine(id, String::new()), 0),
            };
            return Ok(Opened {
                holder: holder.clone(),
                way,
                spec: Some(Box::new(spec)),
                process,
                place: None,
                writing: None,
            });
        }
        Err(changed(holder))
    }

    /// What the engine writes to is looked at first, so that a mistake is told before everything is sent.
    async fn open_to_write(&self, holder: &Holder, asked: &PathRequest) -> Result<Opened, Fault> {
        let mut opened = self.open(holder).await?;
        let elements = match (&opened.spec, holder) {
            (Some(spec), _) => writes::of_container(spec),
            (None, Holder::Volume(name)) => vec![ElementAt::Volume { name: name.clone() }],
            (None, Holder::Container(_)) => Vec::new(),
        };
        match self.registry.begin_write(elements) {
            Ok(writing) => opened.writing = Some(writing),
            Err(fault) => {
                self.close(opened).await;
                return Err(fault);
            }
        }
        if let Way::Engine(container, prefix) = &opened.way {
            let seen = engine_way::stat(self.engine(), container, prefix, &asked.path, holder).await;
            if let Err(fault) = seen {
                self.close(opened).await;
                return Err(fault);
            }
        }
        Ok(opened)
    }

    async fn close(&self, opened: Opened) {
        if let Some(place) = &opened.place
            && let Err(error) = self.engine().release(place).await
        {
            tracing::warn!("what reached {} could not be released: {error}", opened.holder);
        }
    }

    /// What is at a path.
    ///
    /// # Errors
    /// `container.not-found`, `volume.not-found`, `file.not-found`; what the engine or the file system says.
    pub async fn path_stat(&self, holder: &Holder, path: &[u8]) -> Result<RemoteStat, Fault> {
        let opened = self.open(holder).await?;
        let stat = self.stat_of(&opened, path).await;
        self.close(opened).await;
        stat
    }

    async fn stat_of(&self, opened: &Opened, path: &[u8]) -> Result<RemoteStat, Fault> {
        match &opened.way {
            Way::Live(root) => live_way::stat(root, path, &opened.holder).await,
            Way::Engine(container, prefix) => {
                engine_way::stat(self.engine(), container, prefix, path, &opened.holder).await
            }
        }
    }

    /// The paths that a pattern matches, sorted. Where only the engine reaches the files it has to be sent everything below the
    /// first component that is a pattern.
    ///
    /// # Errors
    /// As [`Agent::path_stat`]; not for what is not there.
    pub async fn find(&self, holder: &Holder, pattern: &[u8]) -> Result<Vec<Vec<u8>>, Fault> {
        let glob = Glob::parse(pattern)?;
        let opened = self.open(holder).await?;
        let found = match &opened.way {
            Way::Live(root) => {
                let root = Arc::clone(root);
                blocking(move || Ok(glob::find(&root, &glob)?)).await
            }
            Way::Engine(container, prefix) => {
                engine_way::find(self.engine(), container, prefix, glob, holder).await
            }
        };
        self.close(opened).await;
        let whole = |path: TreePath| [b"/", path.as_bytes()].concat();
        Ok(found?.into_iter().map(whole).collect())
    }

    /// What is at a path, as an archive.
    ///
    /// # Errors
    /// As [`Agent::path_stat`].
    pub async fn pack(
        self: &Arc<Self>,
        holder: &Holder,
        asked: &PathRequest,
    ) -> Result<(RemoteStat, Pieces), Fault> {
        let opened = self.open(holder).await?;
        let packed = self.pack_opened(&opened, asked).await;
        match packed {
            Ok((stat, pieces)) => {
                let agent = Arc::clone(self);
                Ok((
                    stat,
                    live_way::then(pieces, async move { agent.close(opened).await }),
                ))
            }
            Err(fault) => {
                self.close(opened).await;
                Err(fault)
            }
        }
    }

    async fn pack_opened(&self, opened: &Opened, asked: &PathRequest) -> Result<(RemoteStat, Pieces), Fault> {
        let stat = self.stat_of(opened, &asked.path).await?;
        let pieces = match &opened.way {
            Way::Live(root) => live_way::pack(Arc::clone(root), asked.clone(), &opened.holder).await?,
            Way::Engine(container, prefix) => {
                let pieces =
                    engine_way::pack(self.engine(), container, prefix, asked, &stat, &opened.holder).await?;
                match asked.headers_only {
                    true => rewrite::headers_only(pieces).await?,
                    false => pieces,
                }
            }
        };
        Ok((stat, pieces))
    }

    /// Unpacks an archive, compressed or not, into a directory.
    ///
    /// # Errors
    /// As [`Agent::path_stat`]; `container.moving`; `file.read-only`; what is wrong with the archive; `container.changed` if the
    /// container was stopped or started meanwhile.
    pub async fn unpack<S, E>(
        self: &Arc<Self>,
        holder: &Holder,
        asked: &PathRequest,
        archive: S,
    ) -> Result<Unpacked, Fault>
    where
        S: futures_util::Stream<Item = Result<bytes::Bytes, E>> + Send + Unpin + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let spool = self.copies.spool();
        let (opened, archive) = spool::meanwhile(
            || self.open_to_write(holder, asked),
            spool.clone(),
            bridge::reader(archive),
        )
        .await?;
        let archive = match archive {
            Ok(archive) => archive,
            Err(fault) => {
                self.close(opened).await;
                return Err(fault);
            }
        };
        let done = if asked.delta {
            let place = match &opened.way {
                Way::Live(root) => {
                    TreePath::of_request(&asked.path).map(|base| Some((Arc::clone(root), base)))
                }
                Way::Engine(..) => Ok(None),
            };
            match place {
                Ok(place) => {
                    let decoder = Decoder::new(archive, place);
                    let broken = decoder.broken();
                    let done = self.unpack_opened(&opened, asked, spool, decoder).await;
                    done.map_err(|fault| broken.or(fault))
                }
                Err(error) => Err(error.into()),
            }
        } else {
            self.unpack_opened(&opened, asked, spool, archive).await
        };
        let done = match (done, &opened.spec) {
            (Ok(done), Some(spec)) if opened.process != 0 => {
                let now = self.engine().status(&spec.id).await?;
                if now.started_at == spec.status.started_at && is_alive(now.state) {
                    Ok(done)
                } else {
                    Err(changed(holder))
                }
            }
            (done, _) => done,
        };
        self.close(opened).await;
        done
    }

    async fn unpack_opened(
        &self,
        opened: &Opened,
        asked: &PathRequest,
        spool: std::path::PathBuf,
        archive: impl Read + Send + 'static,
    ) -> Result<Unpacked, Fault> {
        match &opened.way {
            Way::Live(root) => live_way::unpack(Arc::clone(root), asked.clone(), opened, archive).await,
            Way::Engine(container, prefix) => {
                let (engine, holder) = (self.engine(), &opened.holder);
                engine_way::unpack(engine, container, prefix, asked, spool, holder, archive).await
            }
        }
    }

    /// What there is of the files that an archive would bring, for [`delta::encode()`]. Nothing where only the engine reaches them.
    ///
    /// # Errors
    /// As [`Agent::path_stat`].
    pub async fn index(&self, holder: &Holder, path: &[u8], names: Vec<Vec<u8>>) -> Result<Pieces, Fault> {
        let base = TreePath::of_request(path)?;
        let opened = self.open(holder).await?;
        let pieces = match &opened.way {
            Way::Live(root) => {
                let root = Arc::clone(root);
                bridge::writer(move |out| delta::write_index(&root, &base, &names, out)).await
            }
            Way::Engine(..) => bridge::writer(delta::write_empty_index).await,
        };
        self.close(opened).await;
        pieces
    }

    /// As [`Agent::pack`], without what the index has, as [`delta::encode()`] writes it.
    ///
    /// # Errors
    /// As [`Agent::pack`]; what is wrong with the index.
    pub async fn pack_against(
        self: &Arc<Self>,
        holder: &Holder,
        asked: &PathRequest,
        index: Index,
    ) -> Result<(RemoteStat, Pieces), Fault> {
        let (stat, pieces) = self.pack(holder, asked).await?;
        Ok((stat, delta::encoded(pieces, index).await?))
    }
}

fn is_alive(state: tranship_core::container::ContainerState) -> bool {
    use tranship_core::container::ContainerState::{Paused, Running};
    matches!(state, Running | Paused)
}

fn changed(holder: &Holder) -> Fault {
    Fault::new(
        "container.changed",
        FaultKind::Environment,
        format!("the {holder} was stopped or started during the copy"),
    )
    .with_hint("run the copy again")
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(Fault::new("agent.task", FaultKind::Bug, e.to_string())))
}
