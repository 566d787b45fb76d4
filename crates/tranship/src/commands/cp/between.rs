//! From one container or volume to another: from agent to agent where one reaches the other, else through this process.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use futures_util::StreamExt as _;
use serde::Serialize;
use tranship_agent::FilesEvents;
use tranship_agent::api::{CopyHere, FilesEvent, FilesRoute, ReceiveFiles, SendFiles};
use tranship_agent::files::machine::View;
use tranship_agent::files::{PathRequest, Unpacked};
use tranship_archive::copy_rules::asserts_directory;
use tranship_core::{Fault, FaultKind, MigrationId};
use tranship_wire::WireError;

use super::remote::Remote;
use super::{Watch, interrupted, transfer};
use crate::cli::CpArgs;
use crate::commands::Context;
use crate::commands::plan::new_id;

/// What an agent says it can do if it takes part without the caller.
const CAPABILITY: &str = "files.direct";
/// What it says if it copies from and to the caller's own files.
const HERE: &str = "files.here";

/// The way that files took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "way")]
pub enum Way {
    /// From one agent to the other.
    Direct {
        /// Where the destination answered.
        address: String,
    },
    /// Within one agent.
    Within,
    /// Through this process.
    Relay,
    /// Through this process, as what differs.
    Difference {
        /// Bytes that were sent.
        bytes: u64,
    },
}

impl Way {
    /// In words, after "copied … ".
    pub fn in_words(&self) -> &'static str {
        match self {
            Self::Direct { .. } => "directly between the hosts",
            Self::Within => "within the host",
            Self::Relay | Self::Difference { .. } => "through this machine",
        }
    }
}

/// Chooses ways, and remembers which there are not.
pub struct Ways<'a> {
    context: &'a Context,
    relay: bool,
    closed: HashSet<(String, String)>,
}

/// How a try without the caller ended.
enum Tried {
    Done(Unpacked, Way),
    /// Nothing was packed yet: another way may do.
    NoWay(Fault),
}

impl<'a> Ways<'a> {
    /// With `relay`, everything goes through this process.
    pub fn new(context: &'a Context, relay: bool) -> Self {
        Self {
            context,
            relay,
            closed: HashSet::new(),
        }
    }

    /// Copies.
    ///
    /// # Errors
    /// What either end says, with its node.
    pub async fn copy(
        &mut self,
        from: &Remote,
        asked: &PathRequest,
        to: &Remote,
        writing: &PathRequest,
        watch: &Watch,
    ) -> Result<(Unpacked, Way), Fault> {
        let pair = (from.node.hello.instance.clone(), to.node.hello.instance.clone());
        if self.relay || !from.can(CAPABILITY) || !to.can(CAPABILITY) || self.closed.contains(&pair) {
            let done = transfer::between(from, asked, to, writing, watch).await?;
            return Ok((done, Way::Relay));
        }
        match self.without_us(from, asked, to, writing, watch).await? {
            Tried::Done(done, way) => Ok((done, way)),
            Tried::NoWay(fault) => {
                self.context.ui.say(&format!("no direct data path: {fault}"));
                self.closed.insert(pair);
                let done = transfer::between(from, asked, to, writing, watch).await?;
                Ok((done, Way::Relay))
            }
        }
    }

    async fn without_us(
        &self,
        from: &Remote,
        asked: &PathRequest,
        to: &Remote,
        writing: &PathRequest,
        watch: &Watch,
    ) -> Result<Tried, Fault> {
        let id = new_id()?;
        let receive = ReceiveFiles {
            source: from.node.hello.fingerprint,
            holder: to.holder.clone(),
            request: writing.to_query(),
        };
        let within = from.node.hello.instance == to.node.hello.instance;
        let route = if within {
            FilesRoute::Here(Box::new(receive))
        } else {
            let expected = to.node.client.receive_files(&id, &receive).await;
            FilesRoute::Direct(Box::new(expected.map_err(|f| to.explain(f))?.offer))
        };
        let send = SendFiles {
            holder: from.holder.clone(),
            request: asked.to_query(),
            route,
        };
        let tried = match from.node.client.send_files(&id, &send).await {
            Ok(events) => follow(events, &id, (from, to), within, watch).await,
            Err(fault) => Err(from.explain(fault)),
        };
        if !within && !matches!(tried, Ok(Tried::Done(..))) {
            forget(to, &id).await;
        }
        tried
    }
}

/// Whether a path of this machine leads to what is different for every process.
fn is_of_a_process(path: &[u8], follow: bool) -> bool {
    let whole = Path::new(OsStr::from_bytes(path));
    let in_proc = |path: &Path| std::fs::canonicalize(path).is_ok_and(|real| real.starts_with("/proc"));
    whole.starts_with("/proc")
        || whole.parent().is_some_and(in_proc)
        || ((follow || asserts_directory(path)) && in_proc(whole))
}

/// From or to this machine's files, by the agent of this machine. None if it cannot do that: it runs elsewhere, sees something
/// else or may do something else than this process.
///
/// # Errors
/// What it says.
pub(super) async fn here(
    args: &CpArgs,
    remote: &Remote,
    into: bool,
    reading: &PathRequest,
    writing: &PathRequest,
    watch: &Watch,
) -> Result<Option<(Unpacked, Way)>, Fault> {
    let own = if into { reading } else { writing };
    let able = remote.node.here && remote.can(HERE) && rustix::process::geteuid().is_root();
    if args.relay || !able || is_of_a_process(&own.path, own.follow || !into) {
        return Ok(None);
    }
    let Ok(caller) = View::of("self") else {
        return Ok(None);
    };
    let asked = CopyHere {
        caller,
        holder: remote.holder.clone(),
        into,
        reading: reading.to_query(),
        writing: writing.to_query(),
    };
    let id = new_id()?;
    let done = match remote.node.client.copy_here(&id, &asked).await {
        Ok(events) => follow(events, &id, (remote, remote), true, watch).await,
        Err(fault) => Err(remote.explain(fault)),
    };
    match done {
        Ok(Tried::Done(done, way)) => Ok(Some((done, way))),
        // Nothing was read or written yet.
        Ok(Tried::NoWay(fault)) | Err(fault) if fault.code == "files.caller" => {
            tracing::debug!("not by the agent: {fault}");
            Ok(None)
        }
        Ok(Tried::NoWay(fault)) | Err(fault) => Err(fault),
    }
}

/// Nobody comes by that way any more. A destination that does not hear so closes it by itself.
async fn forget(to: &Remote, id: &MigrationId) {
    if let Err(fault) = to.node.client.forget_files(id).await {
        tracing::debug!("a way in stays open for a while: {fault}");
    }
}

async fn follow(
    mut events: FilesEvents,
    id: &MigrationId,
    (from, to): (&Remote, &Remote),
    within: bool,
    watch: &Watch,
) -> Result<Tried, Fault> {
    let mut meter = watch.meter();
    let mut way = within.then_some(Way::Within);
    let mut giving_up = false;
    loop {
        let event = tokio::select! {
            biased;
            () = watch.given_up.cancelled(), if !giving_up => {
                giving_up = true;
                // The next event is the end, when nothing is written any more.
                from.node.client.forget_files(id).await.map_err(|_| interrupted())?;
                continue;
            }
            event = events.next() => event,
        };
        let Some(event) = event else { break };
        match event {
            Ok(FilesEvent::Connected { address }) => way = Some(Way::Direct { address }),
            Ok(FilesEvent::Progress { bytes }) => meter.at(bytes),
            Ok(FilesEvent::Refused { fault }) => return Err(to.explain(*fault)),
            Ok(FilesEvent::Done { unpacked }) => {
                return Ok(Tried::Done(unpacked, way.unwrap_or(Way::Within)));
            }
            Err(_) if giving_up => return Err(interrupted()),
            Err(fault) if way.is_none() => return Ok(Tried::NoWay(from.explain(fault))),
            Err(fault) => return Err(from.explain(fault)),
        }
    }
    let lost = WireError::Lost {
        peer: from.node.label.clone(),
        source: None,
    };
    Err(from.explain(Fault::of(&lost).with_kind(FaultKind::Environment)))
}
