//! The agent API from the answering side: which request leads where, and who may ask it.
//!
//! Two handlers, so that no request of a peer can reach what only the owner may ask: [`OwnerHandler`] for whoever holds
//! the node's own socket, [`PeerHandler`] for a source's agent that was let in for one migration.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming as RequestBody;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tranship_core::engine::ByteStream;
use tranship_core::fault::FaultKind;
use tranship_core::ids::ContainerName;
use tranship_core::{EngineError, Fault, MigrationId};
use tranship_migrate::images::ImageOrigin;
use tranship_migrate::{Arrival, Plan};
use tranship_wire::h2::{self, Body, Handler};
use tranship_wire::{PeerIdentity, WireError};

use crate::api::{
    CopyHere, Depart, Expect, Expected, Reach, ReceiveCopy, ReceiveFiles, Resolve, SendCopy, SendFiles,
    TakeSnapshot,
};
use crate::archive_api;
use crate::events::Cursor;
use crate::files::Holder;
use crate::images;
use crate::registry::not_found;
use crate::state::Agent;

/// Answers whoever holds the node's own socket.
pub struct OwnerHandler {
    /// The agent.
    pub agent: Arc<Agent>,
    /// Ends the agent.
    pub shutdown: CancellationToken,
}

/// Answers a source's agent, within one migration.
pub struct PeerHandler {
    /// The agent.
    pub agent: Arc<Agent>,
    /// The migration that the peer was let in for.
    pub id: MigrationId,
}

pub(crate) fn answer<T: Serialize>(result: Result<T, Fault>) -> Response<Body> {
    match result {
        Ok(value) => h2::json_response(&value),
        Err(fault) => {
            let missing = fault.code.ends_with(".not-found");
            if missing {
                h2::fault_response_with(StatusCode::NOT_FOUND, &fault)
            } else {
                h2::fault_response(&fault)
            }
        }
    }
}

/// Does `work` in a task of its own: what changes the node is finished, and noted, even if the caller goes away.
pub(crate) async fn regardless<T: Send + 'static>(
    work: impl Future<Output = Result<T, Fault>> + Send + 'static,
) -> Result<T, Fault> {
    tokio::spawn(work).await.map_err(|e| {
        Fault::new(
            "agent.task",
            FaultKind::Bug,
            format!("a step of the agent ended badly: {e}"),
        )
    })?
}

pub(crate) fn parse<T: std::str::FromStr>(text: &str) -> Result<T, Fault>
where
    T::Err: std::fmt::Display,
{
    text.parse()
        .map_err(|e: T::Err| Fault::new("request.invalid", FaultKind::Usage, e.to_string()))
}

/// `NAME` or `NAME@TIME`.
fn volume_and_time(text: &str) -> Result<(&str, Option<u64>), Fault> {
    match text.split_once('@') {
        None => Ok((text, None)),
        Some((name, time)) => Ok((name, Some(parse(time)?))),
    }
}

pub(crate) async fn body<T: serde::de::DeserializeOwned>(request: Request<RequestBody>) -> Result<T, Fault> {
    h2::read_json(request).await.map_err(WireError::into_fault)
}

#[async_trait]
impl Handler for OwnerHandler {
    async fn handle(&self, request: Request<RequestBody>, peer: &PeerIdentity) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let method = request.method().clone();
        match (&method, parts.as_slice()) {
            (&Method::GET, ["v1", "hello"]) => h2::json_response(&self.agent.hello()),
            (&Method::GET, ["v1", "node"]) => answer(self.agent.node().await),
            (&Method::GET, ["v1", "containers", name]) => answer(match parse::<ContainerName>(name) {
                Ok(name) => self.agent.container(&name).await,
                Err(fault) => Err(fault),
            }),
            (
                &Method::GET | &Method::HEAD | &Method::PUT | &Method::POST,
                ["v1", "containers", name, "archive"],
            ) => match parse::<ContainerName>(name) {
                Ok(name) => archive_api::answer(&self.agent, Holder::Container(name), request).await,
                Err(fault) => answer::<()>(Err(fault)),
            },
            (
                &Method::GET | &Method::HEAD | &Method::PUT | &Method::POST,
                ["v1", "volumes", name, "files"],
            ) => archive_api::answer(&self.agent, Holder::Volume((*name).to_owned()), request).await,
            (&Method::GET | &Method::HEAD | &Method::PUT, ["v1", "elements", store, id, "archive"]) => {
                crate::elements::answer(&self.agent, store, id, request).await
            }
            (&Method::GET, ["v1", "images"]) => {
                answer(self.agent.engine().images().await.map_err(Fault::from))
            }
            (_, ["v1", "images", what]) => images::api::answer_images(&self.agent, what, request).await,
            (&Method::POST, ["v1", "survey"]) => answer(match body(request).await {
                Ok(asked) => self.agent.survey(&asked).await,
                Err(fault) => Err(fault),
            }),
            (&Method::POST, ["v1", "arrivals"]) => answer(match body::<Expect>(request).await {
                Ok(expect) => self
                    .agent
                    .incoming
                    .expect(&self.agent, expect)
                    .await
                    .map(|offer| Expected { offer }),
                Err(fault) => Err(fault),
            }),
            (&Method::POST, ["v1", "arrivals", id, "stream"]) => match parse::<MigrationId>(id) {
                Ok(id) => match self.agent.incoming.let_in(&id) {
                    Ok(guard) => {
                        let (response, stream) = h2::duplex_response(request);
                        let agent = Arc::clone(&self.agent);
                        tokio::spawn(async move {
                            crate::incoming::serve_peer(agent, id, stream, PeerIdentity::Stdio, guard).await;
                        });
                        response
                    }
                    Err(fault) => answer::<()>(Err(fault)),
                },
                Err(fault) => answer::<()>(Err(fault)),
            },
            (&Method::POST, ["v1", "reach"]) => answer(match body::<Reach>(request).await {
                Ok(reach) => self.agent.outgoing.reach(&reach.offer).await,
                Err(fault) => Err(fault),
            }),
            (&Method::POST, ["v1", "relay", id]) => match parse::<MigrationId>(id) {
                Ok(id) => {
                    let (response, stream) = h2::duplex_response(request);
                    self.agent.outgoing.offer_relay(id, stream);
                    response
                }
                Err(fault) => answer::<()>(Err(fault)),
            },
            (&Method::POST, ["v1", "departures"]) => answer(match body::<Depart>(request).await {
                Ok(depart) => self.agent.depart(depart),
                Err(fault) => Err(fault),
            }),
            (&Method::GET, ["v1", "migrations"]) => h2::json_response(&self.agent.registry.views()),
            (&Method::GET, ["v1", "migrations", id]) => answer(parse(id).and_then(|id| {
                let views = self.agent.registry.view(&id);
                if views.is_empty() {
                    Err(self.agent.registry.nothing_known(&id))
                } else {
                    Ok(views)
                }
            })),
            (&Method::GET, ["v1", "migrations", id, "events"]) => match parse::<MigrationId>(id) {
                Ok(id) => self.events(&id),
                Err(fault) => answer::<()>(Err(fault)),
            },
            (&Method::GET, ["v1", "migrations", id, "log"]) => {
                answer(parse(id).map(|id| self.agent.registry.log(&id)))
            }
            (&Method::GET, ["v1", "containers", name, "migration"]) => {
                h2::json_response(&self.agent.registry.leaving(name))
            }
            (&Method::POST, ["v1", "migrations", id, "rollback"]) => {
                answer(parse(id).and_then(|id| self.agent.registry.roll_back(&id)))
            }
            (&Method::POST, ["v1", "migrations", id, "resolve"]) => {
                let id = parse::<MigrationId>(id);
                answer(match (id, body::<Resolve>(request).await) {
                    (Ok(id), Ok(resolve)) => {
                        let registry = Arc::clone(&self.agent.registry);
                        regardless(async move { registry.resolve(&id, resolve.owner).await }).await
                    }
                    (Err(fault), _) | (_, Err(fault)) => Err(fault),
                })
            }
            (&Method::POST, ["v1", "migrations", id, "abort"]) => {
                answer(parse(id).and_then(|id| self.agent.registry.abort(&id)))
            }
            (_, ["v1", "checkpoints", path @ ..]) => {
                crate::checkpoints::answer(&self.agent, path, request).await
            }
            (&Method::GET, ["v1", "volumes"]) => answer(self.agent.volumes().await),
            (&Method::GET, ["v1", "volumes", name, "manifest"]) => self.manifest(name).await,
            (&Method::GET, ["v1", "volumes", name, "archive"]) => {
                let archive = match volume_and_time(name) {
                    Ok((name, time)) => self.agent.export_volume(name, time).await,
                    Err(fault) => Err(fault),
                };
                match archive {
                    Ok(archive) => {
                        h2::stream_response(http::HeaderMap::new(), archive.map(|p| p.map_err(Box::new)))
                    }
                    Err(fault) => answer::<()>(Err(fault)),
                }
            }
            (&Method::PUT, ["v1", "volumes", _, "archive"]) => self.import(request).await,
            (&Method::POST, ["v1", "files", id, what]) => match parse::<MigrationId>(id) {
                Ok(id) if *what == "here" => self.copy_here(id, request, peer).await,
                Ok(id) => self.files(id, what, request).await,
                Err(fault) => answer::<()>(Err(fault)),
            },
            (&Method::POST, ["v1", "copies", id, what]) => match parse::<MigrationId>(id) {
                Ok(id) => self.copy(id, what, request).await,
                Err(fault) => answer::<()>(Err(fault)),
            },
            (&Method::POST, ["v1", "snapshots", id]) => {
                match (parse::<MigrationId>(id), body::<TakeSnapshot>(request).await) {
                    (Ok(id), Ok(asked)) => h2::events_response(self.agent.take_snapshot(id, asked)),
                    (Err(fault), _) | (_, Err(fault)) => answer::<()>(Err(fault)),
                }
            }
            (&Method::DELETE, ["v1", "snapshots", volume, timestamp]) => answer(match parse(timestamp) {
                Ok(timestamp) => self.agent.remove_snapshot(volume, timestamp).await,
                Err(fault) => Err(fault),
            }),
            (&Method::POST, ["v1", "retire"]) => {
                // The asker's own connection does not count.
                let idle = self.agent.idle(1);
                if idle {
                    self.shutdown.cancel();
                }
                h2::json_response(&idle)
            }
            _ => h2::not_found(&request),
        }
    }
}

impl OwnerHandler {
    async fn manifest(&self, name: &str) -> Response<Body> {
        let file = match volume_and_time(name) {
            Ok((name, snapshot)) => self.agent.manifest(name, snapshot).await,
            Err(fault) => Err(fault),
        };
        match file {
            Ok(file) => {
                let parts =
                    tokio_util::io::ReaderStream::with_capacity(tokio::fs::File::from_std(file), 256 << 10);
                h2::stream_response(http::HeaderMap::new(), parts)
            }
            Err(fault) => answer::<()>(Err(fault)),
        }
    }

    /// The volume's attributes come in a header, the archive as the body.
    async fn import(&self, request: Request<RequestBody>) -> Response<Body> {
        let spec = request
            .headers()
            .get(crate::api::VOLUME_HEADER)
            .and_then(|value| serde_json::from_slice(value.as_bytes()).ok());
        let Some(spec) = spec else {
            return answer::<()>(Err(Fault::new(
                "request.invalid",
                FaultKind::Usage,
                "the request does not say which volume",
            )));
        };
        let agent = Arc::clone(&self.agent);
        let parts = h2::read_stream(request)
            .map(|p| p.map_err(|e| std::io::Error::other(e.into_fault().to_string())));
        let imported = regardless(async move { agent.import_volume(&spec, Box::pin(parts)).await });
        answer(imported.await)
    }

    async fn files(&self, id: MigrationId, what: &str, request: Request<RequestBody>) -> Response<Body> {
        let agent = &self.agent;
        match what {
            "receive" => answer(match body::<ReceiveFiles>(request).await {
                Ok(asked) => agent
                    .incoming
                    .expect_files(agent, id, asked)
                    .await
                    .map(|offer| Expected { offer }),
                Err(fault) => Err(fault),
            }),
            "send" => match body::<SendFiles>(request).await {
                Ok(asked) => h2::events_response(agent.send_files(id, asked)),
                Err(fault) => answer::<()>(Err(fault)),
            },
            "forget" => {
                agent.sending.give_up(&id);
                agent.incoming.forget_files(&id);
                h2::json_response(&())
            }
            _ => h2::not_found(&request),
        }
    }

    /// For root by root: others pass their files on themselves, as does whoever the agent cannot stand in for.
    async fn copy_here(
        &self,
        id: MigrationId,
        request: Request<RequestBody>,
        peer: &PeerIdentity,
    ) -> Response<Body> {
        let process = match peer {
            PeerIdentity::Local { uid: 0, process } if rustix::process::geteuid().is_root() => *process,
            _ => {
                return answer::<()>(Err(Fault::new(
                    "files.caller",
                    FaultKind::Environment,
                    "files of this machine are copied by the agent for root only, and only if the agent is root",
                )));
            }
        };
        match body::<CopyHere>(request).await {
            Ok(asked) => h2::events_response(self.agent.copy_here(id, asked, process)),
            Err(fault) => answer::<()>(Err(fault)),
        }
    }

    async fn copy(&self, id: MigrationId, what: &str, request: Request<RequestBody>) -> Response<Body> {
        let agent = Arc::clone(&self.agent);
        match what {
            "receive" => answer(match body::<ReceiveCopy>(request).await {
                Ok(asked) => regardless(async move { agent.receive_copy(&id, asked).await }).await,
                Err(fault) => Err(fault),
            }),
            "complete" => answer(regardless(async move { agent.end_copy(&id, true).await }).await),
            "give-up" => answer(regardless(async move { agent.end_copy(&id, false).await }).await),
            "send" => match body::<SendCopy>(request).await {
                Ok(asked) => h2::events_response(agent.send_copy(id, asked)),
                Err(fault) => answer::<()>(Err(fault)),
            },
            _ => h2::not_found(&request),
        }
    }

    fn events(&self, id: &MigrationId) -> Response<Body> {
        let Some(task) = self.agent.registry.departure(id) else {
            // Over, or never begun here: the view says which.
            let known = !self.agent.registry.view(id).is_empty();
            if known {
                return h2::events_response(
                    futures_util::stream::empty::<Result<tranship_core::Event, Fault>>(),
                );
            }
            return answer::<()>(Err(not_found(id)));
        };
        let batches =
            futures_util::stream::unfold((task, Cursor::default()), |(task, mut cursor)| async move {
                let batch = task.events.next(&mut cursor).await?;
                Some((
                    futures_util::stream::iter(batch.into_iter().map(Ok::<_, Fault>)),
                    (task, cursor),
                ))
            });
        h2::events_response(batches.flatten())
    }
}

#[async_trait]
impl Handler for PeerHandler {
    async fn handle(&self, request: Request<RequestBody>, _peer: &PeerIdentity) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let Some(step) = path.strip_prefix("/v1/peer/") else {
            return h2::not_found(&request);
        };
        if request.method() != Method::POST {
            return h2::not_found(&request);
        }
        if step == "open" {
            return answer(self.open(request).await);
        }
        if step == "copy" {
            let (response, stream) = h2::duplex_response(request);
            let (agent, id) = (Arc::clone(&self.agent), self.id.clone());
            tokio::spawn(async move {
                if let Err(fault) = agent.copy_round(&id, Box::new(stream)).await {
                    tracing::warn!("a round of copy {id} failed: {fault}");
                }
            });
            return response;
        }
        if step == crate::transfers::STEP {
            return answer(self.agent.receive_files(&self.id, h2::read_stream(request)).await);
        }
        let Some(arrival) = self.agent.registry.arrival(&self.id) else {
            return match step {
                "state" => h2::json_response(&None::<()>),
                // Never begun here, or its records are lost: the source knows which of the two can be.
                _ => answer::<()>(Err(unknown(&self.id))),
            };
        };
        let parts: Vec<&str> = step.split('/').collect();
        if let ["element", index, rest @ ..] = parts.as_slice() {
            return self.element(arrival, index, rest, request).await;
        }
        if let ["image", member] = parts.as_slice() {
            return answer(match parse(member) {
                Ok(member) => regardless(async move { image(&arrival, member, request).await }).await,
                Err(fault) => Err(fault),
            });
        }
        if let ["image", member, what] = parts.as_slice() {
            return image_otherwise(arrival, member, what, request).await;
        }
        match step {
            "prepare" => answer(regardless(async move { arrival.prepare().await }).await),
            "create" => answer(regardless(async move { arrival.create().await }).await),
            "start" => answer(regardless(async move { arrival.start().await }).await),
            "go-on" => answer(regardless(async move { arrival.go_on().await }).await),
            "ready" => answer(arrival.ready().await),
            "adopt" => {
                let agent = Arc::clone(&self.agent);
                answer(
                    regardless(async move {
                        let adopted = arrival.adopt().await?;
                        agent.incoming.told(&arrival.record().plan.id);
                        agent.note_guids(&arrival.record()).await;
                        Ok(adopted)
                    })
                    .await,
                )
            }
            "discard" => {
                let agent = Arc::clone(&self.agent);
                answer(
                    regardless(async move {
                        let discarded = arrival.discard().await?;
                        agent.incoming.told(&arrival.record().plan.id);
                        Ok(discarded)
                    })
                    .await,
                )
            }
            "state" => h2::json_response(&Some(arrival.record().state)),
            _ => h2::not_found(&request),
        }
    }
}

impl PeerHandler {
    /// `element/N/open` says whether a round may begin; `element/N` is the round.
    async fn element(
        &self,
        arrival: Arc<Arrival>,
        index: &str,
        rest: &[&str],
        request: Request<RequestBody>,
    ) -> Response<Body> {
        let index: usize = match parse(index) {
            Ok(index) => index,
            Err(fault) => return answer::<()>(Err(fault)),
        };
        match rest {
            ["open"] => answer(regardless(async move { arrival.open_element(index).await }).await),
            [] => {
                let (response, stream) = h2::duplex_response(request);
                tokio::spawn(async move {
                    if let Err(fault) = arrival.element(index, Box::new(stream)).await {
                        tracing::warn!("a round of element {index} failed: {fault}");
                    }
                });
                response
            }
            _ => h2::not_found(&request),
        }
    }

    async fn open(
        &self,
        request: Request<RequestBody>,
    ) -> Result<Vec<tranship_migrate::destination::Opened>, Fault> {
        let plan: Plan = body(request).await?;
        if plan.id != self.id {
            return Err(Fault::new(
                "request.invalid",
                FaultKind::Usage,
                format!("this way in is for migration {}, not {}", self.id, plan.id),
            ));
        }
        let arrival = self.agent.registry.open_arrival(plan)?;
        regardless(async move { arrival.open().await }).await
    }
}

fn unknown(id: &MigrationId) -> Fault {
    Fault::new(
        tranship_migrate::destination::UNKNOWN,
        FaultKind::Environment,
        format!("the destination has no record of migration {id}"),
    )
}

/// When the sender goes away, the stream ends with an error, and so does the engine's call: it is waited for, because an
/// engine that has the whole archive goes on taking it in.
async fn image(arrival: &Arc<Arrival>, member: usize, request: Request<RequestBody>) -> Result<(), Fault> {
    arrival.image(member, Some(image_stream(request))).await
}

/// `image/N/pipe` is the stream on which the source answers, `image/N/from` the order to fetch.
async fn image_otherwise(
    arrival: Arc<Arrival>,
    member: &str,
    what: &str,
    request: Request<RequestBody>,
) -> Response<Body> {
    match what {
        "pipe" => {
            let (response, stream) = h2::duplex_response(request);
            arrival.offer_image_pipe(Box::new(stream));
            response
        }
        "from" => answer(match (parse(member), body::<ImageOrigin>(request).await) {
            (Ok(member), Ok(origin)) => {
                regardless(async move { arrival.image_from(member, &origin).await }).await
            }
            (Err(fault), _) | (_, Err(fault)) => Err(fault),
        }),
        _ => h2::not_found(&request),
    }
}

pub(crate) fn image_stream(request: Request<RequestBody>) -> ByteStream {
    Box::pin(h2::read_stream(request).map(|part| {
        part.map_err(|error| EngineError::Uncertain {
            action: "receive the image".into(),
            message: error.into_fault().to_string(),
        })
    }))
}
