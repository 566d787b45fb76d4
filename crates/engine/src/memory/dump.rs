//! Where a container's dump lies, and how the runtime writes it: whole, or, where the kernel tells which pages were written, one after
//! the other, each with what was written since.
//!
//! The kernel marks the pages that are written (`soft-dirty`, proc_pid_pagemap(5)); CRIU takes the marks away with each dump that is to
//! be followed by others. So nothing can follow a dump that did not come to its end: the marks may be gone, and the pages nowhere. Nor are
//! the marks believed: the last dump is compared with the memory itself (`compare`).

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use tranship_core::container::ContainerState;
use tranship_core::memory::{DumpKind, Dumped};
use tranship_core::storage::ElementAt;
use tranship_core::{ContainerId, Engine as _, EngineError};

use super::{
    AGAIN, BOOT, COMPLETE, DUMP_WITHIN, IMAGES, INVENTORY, LARGEST_GHOST, LOCK, Runtime, USED, WORK, boot,
    chain, compare, explain, facts, held, look_at, memory_of, or_missing, pagemap, podman, private_directory,
    room,
};
use crate::cgroups;
use crate::docker::DockerEngine;
use crate::fault::Ask;

/// Bytes from which it pays to dump in several steps. Below, a whole dump takes little more than the runtime's own time.
const TRACKED_FROM: u64 = 64 << 20;
/// So many times less than all of it must have been written between two dumps, one right after the other. Of memory that processes share, and
/// of files in memory, CRIU dumps all each time: what differs is found better by its content then.
const LESS: u64 = 16;
/// File with the number of pages that the kernel had not marked, for people and tests.
const COMPARED: &str = "compared";
/// One part in so many of its memory may be in huge pages. A single byte marks two megabytes there.
const FEW_HUGE: u64 = 4;

/// Where a container's dump is.
pub(super) struct Dump {
    pub(super) container: ContainerId,
    pub(super) bytes: u64,
    pub(super) directory: PathBuf,
}

impl Dump {
    pub(super) fn images(&self) -> PathBuf {
        self.directory.join(IMAGES)
    }

    pub(super) fn work(&self) -> PathBuf {
        self.directory.join(WORK)
    }

    /// It was made since the machine was started.
    pub(super) fn is_of_this_boot(&self) -> bool {
        let now = boot();
        !now.is_empty() && std::fs::read_to_string(self.directory.join(BOOT)).is_ok_and(|noted| noted == now)
    }

    /// Makes the directories; what is there of another boot goes.
    pub(super) fn make(&self) -> io::Result<()> {
        let parent = self.directory.parent().unwrap_or(Path::new("/"));
        private_directory(parent)?;
        if self.directory.exists() && !self.is_of_this_boot() {
            std::fs::remove_dir_all(&self.directory)?;
        }
        for path in [&self.directory, &self.images(), &self.work()] {
            private_directory(path)?;
        }
        std::fs::write(self.directory.join(BOOT), boot())
    }

    /// Removes what an earlier dump wrote. Processes of that time must not be taken for those of the next.
    pub(super) fn clear(&self) -> io::Result<()> {
        self.take_notes_away()?;
        for path in [self.images(), self.work()] {
            std::fs::remove_dir_all(&path)?;
            private_directory(&path)?;
        }
        Ok(())
    }

    fn take_notes_away(&self) -> io::Result<()> {
        for note in [COMPLETE, USED] {
            or_missing(std::fs::remove_file(self.directory.join(note)))?;
        }
        Ok(())
    }

    /// How many dumps are there that another one can follow.
    fn followed_by(&self) -> u32 {
        if !self.is_of_this_boot() || !self.directory.join(COMPLETE).exists() {
            return 0;
        }
        chain::length(&self.images()).unwrap_or_default()
    }

    /// Prepares for one more dump beside those that are there. Should it not come to its end, none can follow it.
    fn go_on(&self) -> io::Result<()> {
        self.take_notes_away()?;
        std::fs::remove_dir_all(self.work())?;
        private_directory(&self.work())
    }

    /// Whether it came to its end on this boot, and is still there.
    pub(super) fn is_there(&self) -> bool {
        self.is_of_this_boot()
            && self.directory.join(COMPLETE).exists()
            && chain::newest(&self.images()).is_ok_and(|newest| newest.join(INVENTORY).exists())
    }

    /// Waits until no dump is under way. What is given back keeps others from beginning one, as long as it is open anywhere.
    pub(super) async fn alone(&self) -> io::Result<std::fs::File> {
        let lock = std::fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.directory.join(LOCK))?;
        let begun = tokio::time::Instant::now();
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(lock),
                Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < DUMP_WITHIN => {
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl DockerEngine {
    pub(crate) async fn write_dump(
        &self,
        element: &ElementAt,
        kind: DumpKind,
    ) -> Result<Dumped, EngineError> {
        let (container, bytes) = memory_of(element)?;
        let dump = self.dump_of(container, bytes).await?;
        let ask = Ask::new("dump the memory of", "container", container.as_str());
        dump.make().map_err(|error| ask.failed(error))?;
        // The runtime holds it as well, so that whoever comes after an agent that was killed waits for its end.
        let lock = dump.alone().await.map_err(|error| ask.failed(error))?;
        let before = match kind {
            DumpKind::Next | DumpKind::Last => dump.followed_by(),
            DumpKind::Whole | DumpKind::First => 0,
        };
        let cleared = if before == 0 { dump.clear() } else { dump.go_on() };
        cleared.map_err(|error| ask.failed(error))?;
        let held = look_at(container).await.map_err(|error| ask.failed(error))?;
        let writer = Writer {
            runtime: self.runtime_of(container).await?,
            dump: &dump,
            lock,
            held: held.bytes,
            hugetlb: held.hugetlb,
            hierarchies: cgroups::own_hierarchies(&held.groups, container.as_str()),
            groups: held.groups,
            // Only what the engine's restore can take: the rest is refused while everything still runs.
            locks: self.restores_locks(),
        };
        let paused = self.status(container).await?.state == ContainerState::Paused;
        if self.podman {
            // They may have come since the container was looked at, and CRIU does not mind them before the restore.
            if self.has_shared_memory(container).await? {
                return Err(ask.failed(podman::SHARED_MEMORY));
            }
        }
        if kind == DumpKind::Last && !paused {
            return Err(ask.failed("it does not stand still any more: somebody let it go on"));
        }
        let tracked = match kind {
            DumpKind::Next if before > 0 => Some(writer.next(before + 1).await),
            DumpKind::Last if before > 0 => Some(writer.last(before + 1).await),
            // crun would not thaw it for a dump of pages alone.
            DumpKind::First if !paused && writer.held >= TRACKED_FROM => Some(writer.first().await),
            _ => None,
        };
        let whole = match tracked {
            Some(Ok(())) => Ok(Dumped::Tracked),
            // All of it would have to travel while it stands still.
            Some(Err(why)) if kind == DumpKind::Last => Err(format!(
                "{why} (--memory-tracking off makes no use of earlier dumps)"
            )),
            other => {
                let why = other.and_then(Result::err);
                let whole = async {
                    if why.is_some() {
                        dump.clear().map_err(|error| error.to_string())?;
                    }
                    writer.whole().await
                };
                whole.await.map(|()| Dumped::Whole { why })
            }
        };
        match whole {
            Ok(dumped) => {
                std::fs::write(dump.directory.join(COMPLETE), b"").map_err(|error| ask.failed(error))?;
                Ok(dumped)
            }
            Err(why) => {
                if paused {
                    pause_again(&writer.runtime, container).await;
                }
                Err(ask.failed(why))
            }
        }
    }
}

/// What the runtime is to do.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// Everything, on its own.
    Whole,
    /// Pages alone, the first of several.
    Pages,
    /// Everything, with what was written since the dump of this number.
    Since(u32),
}

/// Drives the runtime.
struct Writer<'a> {
    runtime: Runtime,
    dump: &'a Dump,
    lock: std::fs::File,
    /// Bytes that the processes hold.
    held: u64,
    hugetlb: bool,
    /// What one of the processes says of its control groups.
    groups: String,
    /// Settings of CRIU about control groups.
    hierarchies: String,
    locks: bool,
}

impl Writer<'_> {
    /// Fails where it cannot or will not pay to dump in several steps.
    async fn may_track(&self) -> Result<(), String> {
        let container = self.dump.container.clone();
        let looked = tokio::task::spawn_blocking(move || {
            (
                held::in_huge_pages(container.as_str()),
                held::numbers(container.as_str()),
            )
        });
        let (huge, numbers) = looked.await.map_err(|error| error.to_string())?;
        if huge > self.held / FEW_HUGE {
            return Err("much of it is in huge pages".to_owned());
        }
        // Older versions of CRIU look for such pages in the last dump alone.
        if self.hugetlb {
            return Err("it has pages of hugetlbfs".to_owned());
        }
        if numbers.is_empty() {
            return Err("its processes cannot be told apart".to_owned());
        }
        if rustix::param::page_size() as u64 != pagemap::PAGE {
            return Err("the machine's pages are not of 4 KiB".to_owned());
        }
        // On a disk it would be slow to compare, and the next one lies beside it.
        if !self.dump.directory.starts_with(room::IN_MEMORY) {
            return Err("too little memory is free for its dumps to lie there".to_owned());
        }
        if room::for_dump(self.held.saturating_mul(2), &self.dump.directory).is_err() {
            return Err("there is no room for two dumps of it in memory".to_owned());
        }
        if !facts::tracks_memory().await {
            return Err("CRIU does not say that the kernel tells what is written".to_owned());
        }
        Ok(())
    }

    async fn whole(&self) -> Result<(), String> {
        // It may have grown since the plan, and in memory nobody stops CRIU before the machine has none left.
        room::for_dump(self.held, &self.dump.directory)?;
        self.write(&self.dump.images(), Way::Whole).await
    }

    /// The pages first, which takes long and lets the processes go on soon, and what was written meanwhile with everything else, which tells
    /// whether they can be dumped at all. Fails where it does not pay.
    async fn first(&self) -> Result<(), String> {
        self.may_track().await?;
        let pages = self.link(1)?;
        self.write(&pages, Way::Pages).await?;
        self.since(2).await?;
        // With what is no memory of processes: files in memory are dumped anew each time.
        let (all, since) = (self.length_of(1)?, self.length_of(2)?);
        if since.saturating_mul(LESS) > all {
            return Err(format!(
                "{} MiB would be dumped again each time, beside {} MiB of the first",
                since >> 20,
                all >> 20
            ));
        }
        Ok(())
    }

    /// What was written since, and everything else. Fails where it does not pay to go on in this way.
    async fn next(&self, number: u32) -> Result<(), String> {
        self.since(number).await?;
        // The one of the freeze has to find room beside all of them.
        let mut since = 0_u64;
        for number in 2..=number {
            since = since.saturating_add(self.length_of(number)?);
        }
        let all = self.length_of(1)?;
        if since > all / 2 {
            return Err(format!(
                "{} MiB were dumped again by now, beside {} MiB of the first time",
                since >> 20,
                all >> 20
            ));
        }
        room::for_dump(self.held, &self.dump.directory)
    }

    /// The one of the freeze: what it leaves to those before it is compared with what the processes hold.
    async fn last(&self, number: u32) -> Result<(), String> {
        self.since(number).await?;
        let (images, container) = (self.dump.images(), self.dump.container.clone());
        let groups = self.groups.clone();
        let lock = self.lock.try_clone().map_err(|error| error.to_string())?;
        let compared = tokio::task::spawn_blocking(move || {
            let id = container.as_str();
            let processes = held::numbers(id);
            let pages = held::while_they_stand(id, &groups, || {
                compare::put_right(&images, number, &processes).map_err(|error| error.to_string())
            });
            // Whoever comes next waits until here.
            drop(lock);
            pages
        });
        let pages = compared.await.map_err(|error| error.to_string())??;
        tracing::debug!(pages, "differed although the kernel had not marked them");
        let noted = self.dump.work().join(COMPARED);
        std::fs::write(noted, pages.to_string()).map_err(|error| error.to_string())
    }

    async fn since(&self, number: u32) -> Result<(), String> {
        room::for_dump(self.held, &self.dump.directory)?;
        let link = self.link(number)?;
        self.write(&link, Way::Since(number - 1)).await
    }

    /// Bytes of all images of a dump.
    fn length_of(&self, number: u32) -> Result<u64, String> {
        chain::bytes_in(&chain::link(&self.dump.images(), number)).map_err(|error| error.to_string())
    }

    fn link(&self, number: u32) -> Result<PathBuf, String> {
        let path = chain::link(&self.dump.images(), number);
        private_directory(&path).map_err(|error| error.to_string())?;
        Ok(path)
    }

    async fn write(&self, images: &Path, way: Way) -> Result<(), String> {
        let told = |error: io::Error| error.to_string();
        let work = self.dump.work();
        let settings = work.join("criu.conf");
        let tracking = match way {
            Way::Whole => String::new(),
            Way::Pages => "track-mem\n".to_owned(),
            Way::Since(number) => format!("track-mem\nprev-images-dir {}\n", chain::from_the_next(number)),
        };
        let hierarchies = &self.hierarchies;
        let text =
            format!("skip-in-flight\nghost-limit {LARGEST_GHOST}\nverbosity 2\n{tracking}{hierarchies}");
        std::fs::write(&settings, text).map_err(told)?;
        let mut command = self.runtime.command();
        command.args(["checkpoint", "--leave-running"]);
        match way {
            Way::Pages => command.arg("--pre-dump"),
            Way::Whole | Way::Since(_) => command.arg("--tcp-established"),
        };
        if self.locks {
            command.arg("--file-locks");
        }
        let done = command
            .arg("--image-path")
            .arg(images)
            .arg("--work-path")
            .arg(&work)
            .arg(self.dump.container.as_str())
            .env("CRIU_CONFIG_FILE", &settings)
            // It would leave shared memory to earlier dumps by the kernel's marks.
            .env_remove("CRIU_TRACK_SHMEM")
            .stdin(self.lock.try_clone().map_err(told)?)
            .output()
            .await
            .map_err(|error| format!("{} could not be run: {error}", self.runtime.program))?;
        if done.status.success() {
            return Ok(());
        }
        let log = std::fs::read(work.join("dump.log")).unwrap_or_default();
        Err(explain::dump(&log, &done.stderr))
    }
}

/// A CRIU that was killed lets go of processes that the engine holds for paused, and would refuse to thaw later. Refused
/// where they stand still.
async fn pause_again(runtime: &Runtime, container: &ContainerId) {
    let mut command = runtime.command();
    command.arg("pause").arg(container.as_str());
    let done = command.output().await;
    tracing::debug!(?done, "pausing after a dump that failed");
}
