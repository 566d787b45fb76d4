//! What is in storage elements, in memory: a map of files for each place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tranship_core::ids::Digest;
use tranship_core::node::ElementSize;
use tranship_core::storage::{
    BegunRound, ElementPlace, ElementRoute, ElementSink, ElementSource, Pipe, ProgressFn, RoundOptions,
    RoundProgress, RoundReport, Storage, SyncOptions,
};
use tranship_core::{Fault, FaultKind};

use super::Failure;

/// The files of an element: content by path.
pub type Contents = BTreeMap<String, Vec<u8>>;

/// Changes the files between two rounds; it is told the number of the round that just read them, from 0.
type Writer = Box<dyn FnMut(usize, &mut Contents) + Send>;

/// Longest message of a round, in bytes.
const LONGEST: u64 = 1 << 30;

#[derive(Default)]
struct State {
    elements: BTreeMap<PathBuf, Contents>,
    aliases: BTreeMap<PathBuf, PathBuf>,
    writers: BTreeMap<PathBuf, (usize, Writer)>,
    /// What made way, by key.
    asides: BTreeMap<String, Contents>,
    calls: usize,
    names: Vec<&'static str>,
    fail: Vec<(usize, Failure)>,
    rounds: Vec<(PathBuf, RoundOptions)>,
    sources: Vec<(PathBuf, SyncOptions)>,
}

/// Reads and writes storage elements that are in memory only. Clones share what they hold.
#[derive(Clone, Default)]
pub struct MemoryStorage {
    state: Arc<Mutex<State>>,
}

impl std::fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.with(|s| f.debug_map().entries(&s.elements).finish())
    }
}

impl MemoryStorage {
    /// A storage that holds nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The key of a place: a directory's path, and for what the engine reaches `/memory/archive/CONTAINER/PATH`.
    #[must_use]
    pub fn path_of(place: &ElementPlace) -> PathBuf {
        match place {
            ElementPlace::Directory { path, .. } => path.clone(),
            ElementPlace::Archive { container, path } => PathBuf::from("/memory/archive")
                .join(container.as_str())
                .join(path.trim_start_matches('/')),
        }
    }

    /// Replaces what an element holds. An element that was not there is there then.
    pub fn set(&self, path: impl AsRef<Path>, contents: Contents) {
        self.with(|s| {
            let path = s.target(path.as_ref());
            s.elements.insert(path, contents);
        });
    }

    /// What an element holds; `None` if it is not there.
    #[must_use]
    pub fn get(&self, path: impl AsRef<Path>) -> Option<Contents> {
        self.with(|s| s.elements.get(&s.target(path.as_ref())).cloned())
    }

    /// Writes one file of an element.
    pub fn put(&self, path: impl AsRef<Path>, file: &str, content: impl Into<Vec<u8>>) {
        self.with(|s| {
            let path = s.target(path.as_ref());
            let contents = s.elements.entry(path).or_default();
            contents.insert(file.to_owned(), content.into());
        });
    }

    /// Takes an element away.
    pub fn forget(&self, path: impl AsRef<Path>) {
        self.with(|s| s.elements.remove(path.as_ref()));
    }

    /// Takes all elements below a path away.
    pub fn forget_below(&self, path: impl AsRef<Path>) {
        self.with(|s| s.elements.retain(|key, _| !key.starts_with(path.as_ref())));
    }

    /// Lets another place mean the element at `path`.
    pub fn alias(&self, place: &ElementPlace, path: impl AsRef<Path>) {
        let key = Self::path_of(place);
        self.with(|s| s.aliases.insert(key, path.as_ref().to_owned()));
    }

    /// Lets `writer` change an element each time after a round read it, but for frozen ones. It is told the number of that
    /// round, from 0.
    pub fn on_round(
        &self,
        path: impl AsRef<Path>,
        writer: impl FnMut(usize, &mut Contents) + Send + 'static,
    ) {
        self.with(|s| {
            let path = s.target(path.as_ref());
            s.writers.insert(path, (0, Box::new(writer)));
        });
    }

    /// Lets the calls with these numbers (from 0) fail. Opening a source or a sink is a call, and so is each round at
    /// either end.
    ///
    /// A source's round that fails afterwards has had the sink's answer; a sink's round that fails afterwards holds the new
    /// files and has not answered.
    pub fn fail(&self, calls: &[(usize, Failure)]) {
        self.with(|s| s.fail = calls.to_vec());
    }

    /// The calls that there were: `source`, `sink`, `source round` and `sink round`.
    #[must_use]
    pub fn calls(&self) -> Vec<&'static str> {
        self.with(|s| s.names.clone())
    }

    /// The rounds that sources began, in order: which element, and how.
    #[must_use]
    pub fn rounds(&self) -> Vec<(PathBuf, RoundOptions)> {
        self.with(|s| s.rounds.clone())
    }

    /// The sources that were opened, in order: of which element, and how.
    #[must_use]
    pub fn sources(&self) -> Vec<(PathBuf, SyncOptions)> {
        self.with(|s| s.sources.clone())
    }

    /// Everything that is there, as sorted lines, for comparing before with after.
    #[must_use]
    pub fn inventory(&self) -> Vec<String> {
        self.with(|s| {
            let line = |(path, contents): (&PathBuf, &Contents)| {
                format!("element {} {}", path.display(), tree(contents))
            };
            let kept = s
                .asides
                .iter()
                .filter(|(key, _)| !key.starts_with("partial-"))
                .map(|(key, contents)| format!("aside {key} {}", tree(contents)));
            s.elements.iter().map(line).chain(kept).collect()
        })
    }

    /// Counts a call, and says how it is to fail.
    fn call(&self, name: &'static str) -> Result<Answer, Fault> {
        let failure = self.with(|s| {
            let number = s.calls;
            s.calls += 1;
            s.names.push(name);
            s.fail.iter().find(|(n, _)| *n == number).map(|(_, f)| *f)
        });
        match failure {
            Some(Failure::Before | Failure::Away) => {
                Err(fault("storage.failed", &format!("{name} was told to fail")))
            }
            Some(Failure::After) => Ok(Answer::Lost(name)),
            None => Ok(Answer::Given),
        }
    }
}

impl State {
    fn target(&self, path: &Path) -> PathBuf {
        self.aliases.get(path).map_or(path, PathBuf::as_path).to_owned()
    }
}

/// Whether the caller learns what was done.
enum Answer {
    Given,
    Lost(&'static str),
}

impl Answer {
    fn with<T>(self, result: T) -> Result<T, Fault> {
        match self {
            Self::Given => Ok(result),
            Self::Lost(name) => Err(fault(
                "storage.uncertain",
                &format!("{name} was told to lose the answer"),
            )),
        }
    }
}

fn fault(code: &str, message: &str) -> Fault {
    Fault::new(code, FaultKind::Environment, message)
}

/// The id of what an element holds.
fn tree(contents: &Contents) -> String {
    let bytes = serde_json::to_vec(contents).unwrap_or_default();
    Digest::of(&bytes).hex().to_owned()
}

/// What a source says in a round.
#[derive(Serialize, Deserialize)]
struct Message {
    options: RoundOptions,
    contents: Contents,
}

async fn send<T: Serialize + Sync>(pipe: &mut Pipe, message: &T) -> Result<u64, Fault> {
    let bytes = serde_json::to_vec(message).map_err(|error| broken(&error))?;
    pipe.write_u64(bytes.len() as u64)
        .await
        .map_err(|error| broken(&error))?;
    pipe.write_all(&bytes).await.map_err(|error| broken(&error))?;
    pipe.flush().await.map_err(|error| broken(&error))?;
    Ok(bytes.len() as u64 + 8)
}

async fn receive<T: DeserializeOwned>(pipe: &mut Pipe) -> Result<(T, u64), Fault> {
    let length = pipe.read_u64().await.map_err(|error| broken(&error))?;
    if length > LONGEST {
        return Err(fault("storage.broken", "a message longer than any"));
    }
    let mut bytes = Vec::new();
    let read = pipe.take(length).read_to_end(&mut bytes).await;
    if read.map_err(|error| broken(&error))? as u64 != length {
        return Err(fault("storage.broken", "the other end went away in the middle"));
    }
    let message = serde_json::from_slice(&bytes).map_err(|error| broken(&error))?;
    Ok((message, length + 8))
}

fn broken(error: &dyn std::error::Error) -> Fault {
    fault("storage.broken", &format!("the pipe broke: {error}"))
}

#[async_trait]
impl Storage for MemoryStorage {
    async fn source(
        &self,
        place: &ElementPlace,
        options: &SyncOptions,
    ) -> Result<Box<dyn ElementSource>, Fault> {
        let answer = self.call("source")?;
        let path = Self::path_of(place);
        if self.get(&path).is_none() {
            return Err(fault(
                "storage.not-found",
                &format!("nothing at {}", path.display()),
            ));
        }
        self.with(|s| s.sources.push((path.clone(), options.clone())));
        let source = MemorySource {
            storage: self.clone(),
            path,
            exclude: options.exclude.clone(),
        };
        answer.with(Box::new(source))
    }

    async fn sink(&self, place: &ElementPlace, _route: ElementRoute) -> Result<Box<dyn ElementSink>, Fault> {
        let answer = self.call("sink")?;
        let sink = MemorySink {
            storage: self.clone(),
            path: Self::path_of(place),
        };
        answer.with(Box::new(sink))
    }

    async fn exists(&self, place: &ElementPlace) -> Result<bool, Fault> {
        let answer = self.call("exists")?;
        let there = self.get(Self::path_of(place)).is_some();
        answer.with(there)
    }

    async fn make(&self, place: &ElementPlace) -> Result<bool, Fault> {
        let answer = self.call("make")?;
        let path = Self::path_of(place);
        let missing = self.get(&path).is_none();
        if missing {
            self.set(&path, Contents::new());
        }
        answer.with(missing)
    }

    async fn remove(&self, place: &ElementPlace) -> Result<(), Fault> {
        let answer = self.call("remove")?;
        self.forget(Self::path_of(place));
        answer.with(())
    }

    async fn set_aside(&self, place: &ElementPlace, key: &str) -> Result<(), Fault> {
        let answer = self.call("set aside")?;
        self.with(|s| {
            let path = s.target(&Self::path_of(place));
            if !s.asides.contains_key(key) {
                let contents = s.elements.insert(path, Contents::new()).unwrap_or_default();
                s.asides.insert(key.to_owned(), contents);
            }
        });
        answer.with(())
    }

    async fn put_back(&self, place: &ElementPlace, key: &str) -> Result<bool, Fault> {
        let answer = self.call("put back")?;
        let back = self.with(|s| {
            let path = s.target(&Self::path_of(place));
            let contents = s.asides.remove(key);
            contents
                .map(|contents| s.elements.insert(path, contents))
                .is_some()
        });
        answer.with(back)
    }

    async fn drop_aside(&self, _place: &ElementPlace, key: &str) -> Result<(), Fault> {
        let answer = self.call("drop aside")?;
        self.with(|s| s.asides.remove(key));
        answer.with(())
    }

    async fn size(&self, place: &ElementPlace) -> Result<Option<ElementSize>, Fault> {
        let contents = self.get(Self::path_of(place));
        Ok(contents.map(|c| ElementSize {
            bytes: c.values().map(|file| file.len() as u64).sum(),
            entries: c.len() as u64,
        }))
    }
}

#[derive(Clone)]
struct MemorySource {
    storage: MemoryStorage,
    path: PathBuf,
    exclude: Vec<String>,
}

impl MemorySource {
    fn stays(&self, file: &str) -> bool {
        let file = file.trim_start_matches('/');
        self.exclude.iter().any(|pattern| {
            let rest = file.strip_prefix(pattern.trim_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }

    /// What the element holds now; then the writer has its turn.
    fn read(&self, options: RoundOptions) -> Option<Contents> {
        self.storage.with(|s| {
            let path = s.target(&self.path);
            s.rounds.push((path.clone(), options));
            let contents = s.elements.get_mut(&path)?;
            let read = contents.clone();
            if let Some((round, writer)) = s.writers.get_mut(&path).filter(|_| !options.frozen) {
                writer(*round, contents);
                *round += 1;
            }
            Some(read)
        })
    }
}

struct MemoryRound {
    source: MemorySource,
    pipe: Pipe,
    options: RoundOptions,
}

#[async_trait]
impl ElementSource for MemorySource {
    async fn begin(&mut self, pipe: Pipe, options: RoundOptions) -> Result<Box<dyn BegunRound>, Fault> {
        Ok(Box::new(MemoryRound {
            source: self.clone(),
            pipe,
            options,
        }))
    }
}

#[async_trait]
impl BegunRound for MemoryRound {
    async fn meet(&mut self) -> Result<(), Fault> {
        self.source.storage.call("source meet")?.with(())
    }

    async fn foresee(&mut self) -> Result<(), Fault> {
        self.source.storage.call("source foresee")?.with(())
    }

    async fn follow(&mut self, writing: BoxFuture<'_, ()>) -> Result<(), Fault> {
        writing.await;
        self.source.storage.call("source follow")?.with(())
    }

    async fn go(self: Box<Self>, progress: ProgressFn) -> Result<RoundReport, Fault> {
        let Self {
            source,
            mut pipe,
            options,
        } = *self;
        let answer = source.storage.call("source round")?;
        let mut contents = source
            .read(options)
            .ok_or_else(|| fault("storage.not-found", "the element went away"))?;
        contents.retain(|file, _| !source.stays(file));
        let seen = RoundProgress {
            entries: contents.len() as u64,
            bytes: contents.values().map(|file| file.len() as u64).sum(),
            wire_bytes: 0,
        };
        progress(seen);
        let wire_bytes = send(&mut pipe, &Message { options, contents }).await?;
        progress(RoundProgress { wire_bytes, ..seen });
        let (report, _) = receive(&mut pipe).await?;
        answer.with(report)
    }
}

struct MemorySink {
    storage: MemoryStorage,
    path: PathBuf,
}

#[async_trait]
impl ElementSink for MemorySink {
    async fn round(&mut self, mut pipe: Pipe, progress: ProgressFn) -> Result<RoundReport, Fault> {
        let answer = self.storage.call("sink round")?;
        let (message, wire_bytes): (Message, u64) = receive(&mut pipe).await?;
        let new = message.contents;
        let old = self.storage.get(&self.path).unwrap_or_default();
        let different = new
            .iter()
            .filter(|(file, content)| old.get(*file) != Some(content));
        let gone = old.keys().filter(|file| !new.contains_key(*file)).count();
        let report = RoundReport {
            tree: tree(&new),
            entries: new.len() as u64,
            bytes: new.values().map(|file| file.len() as u64).sum(),
            changed_entries: (different.clone().count() + gone) as u64,
            literal_bytes: different.map(|(_, content)| content.len() as u64).sum(),
            wire_bytes,
            unsettled: 0,
            milliseconds: 1,
        };
        self.storage.set(&self.path, new);
        progress(RoundProgress {
            entries: report.entries,
            bytes: report.bytes,
            wire_bytes,
        });
        let report = answer.with(report)?;
        send(&mut pipe, &report).await?;
        Ok(report)
    }
}
