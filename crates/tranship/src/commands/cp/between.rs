//! From one container or volume to another: from agent to agent where one reaches the other, else through this process.

use std::collections::HashSet;

use futures_util::StreamExt as _;
use serde::Serialize;
use tranship_agent::FilesEvents;
use tranship_agent::api::{FilesEvent, FilesRoute, ReceiveFiles, SendFiles};
use tranship_agent::files::{PathRequest, Unpacked};
use tranship_core::{Fault, FaultKind, MigrationId};
use tranship_wire::WireError;

use super::remote::Remote;
use super::transfer::{self, Meter};
use crate::commands::Context;
use crate::commands::plan::new_id;
use crate::progress::Line;

/// What an agent says it can do if it takes part without the caller.
const CAPABILITY: &str = "files.direct";

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
        line: Line,
    ) -> Result<(Unpacked, Way), Fault> {
        let pair = (from.node.hello.instance.clone(), to.node.hello.instance.clone());
        let able = |end: &Remote| end.node.hello.capabilities.iter().any(|can| can == CAPABILITY);
        if self.relay || !able(from) || !able(to) || self.closed.contains(&pair) {
            let done = transfer::between(from, asked, to, writing, line).await?;
            return Ok((done, Way::Relay));
        }
        match self
            .without_us(from, asked, to, writing, Line::new(&self.context.ui))
            .await?
        {
            Tried::Done(done, way) => Ok((done, way)),
            Tried::NoWay(fault) => {
                self.context.ui.say(&format!("no direct data path: {fault}"));
                self.closed.insert(pair);
                let done = transfer::between(from, asked, to, writing, line).await?;
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
        line: Line,
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
            Ok(events) => follow(events, from, to, within, line).await,
            Err(fault) => Err(from.explain(fault)),
        };
        if !within && !matches!(tried, Ok(Tried::Done(..))) {
            forget(to, &id).await;
        }
        tried
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
    from: &Remote,
    to: &Remote,
    within: bool,
    line: Line,
) -> Result<Tried, Fault> {
    let mut meter = Meter::new(line);
    let mut way = within.then_some(Way::Within);
    while let Some(event) = events.next().await {
        match event {
            Ok(FilesEvent::Connected { address }) => way = Some(Way::Direct { address }),
            Ok(FilesEvent::Progress { bytes }) => meter.at(bytes),
            Ok(FilesEvent::Refused { fault }) => return Err(to.explain(*fault)),
            Ok(FilesEvent::Done { unpacked }) => {
                return Ok(Tried::Done(unpacked, way.unwrap_or(Way::Within)));
            }
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
