//! What an agent does when it is asked, apart from how the question reached it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tranship_core::ids::ContainerName;
use tranship_core::node::{ContainerReport, NodeFacts, Survey, SurveyRequest};
use tranship_core::storage::{ElementAt, Pipe, VolumeSpec};
use tranship_core::{Engine, Fault, MigrationId};
use tranship_migrate::elements::Target;
use tranship_migrate::record::ArrivalRecord;
use tranship_wire::tls::PeerKey;

use crate::api::{Depart, Hello, PROTOCOL_MAX, PROTOCOL_MIN, ReceiveCopy, Route};
use crate::checkpoints::Checkpoints;
use crate::copies::Copies;
use crate::guids::Guids;
use crate::incoming::Incoming;
use crate::node;
use crate::outgoing::Outgoing;
use crate::registry::Registry;
use crate::transfers::Sending;
use crate::ways::Ways;

/// What an agent is made with.
#[derive(Clone)]
pub struct Identity {
    /// Hash of its binary.
    pub build: String,
    /// Random text of this run.
    pub instance: String,
    /// Its throw-away key, by which other agents know it.
    pub key: PeerKey,
}

/// One node's agent.
pub struct Agent {
    identity: Identity,
    /// Its migrations.
    pub registry: Arc<Registry>,
    /// Ways in for sources.
    pub incoming: Arc<Incoming>,
    /// Ways out to destinations.
    pub outgoing: Arc<Outgoing>,
    /// Copies of volumes outside migrations.
    pub copies: Arc<Copies>,
    /// Memory of containers that is kept here.
    pub(crate) checkpoints: Arc<Checkpoints>,
    /// The ways that survive a restart.
    ways: Ways,
    /// Which volume is which.
    pub(crate) guids: Guids,
    /// Copies of files that callers watch.
    pub(crate) sending: Sending,
    /// Connections of callers.
    connections: AtomicUsize,
    /// Images that the engine takes in, whoever waits for it.
    loading: AtomicUsize,
}

impl Agent {
    /// An agent over an engine and its records.
    #[must_use]
    pub fn new(
        identity: Identity,
        registry: Arc<Registry>,
        guids: Guids,
        ways: Ways,
        copies: Arc<Copies>,
        checkpoints: Arc<Checkpoints>,
    ) -> Arc<Self> {
        Arc::new(Self {
            incoming: Incoming::new(Arc::clone(&registry), identity.key.clone(), ways.clone()),
            ways,
            outgoing: Outgoing::new(identity.key.clone()),
            identity,
            registry,
            copies,
            checkpoints,
            guids,
            sending: Sending::default(),
            connections: AtomicUsize::new(0),
            loading: AtomicUsize::new(0),
        })
    }

    /// Begins a migration from this node.
    ///
    /// # Errors
    /// `migrate.busy`, `migrate.known`; `agent.state` when the way cannot be kept.
    pub fn depart(self: &Arc<Self>, depart: Depart) -> Result<(), Fault> {
        let Depart { plan, route } = depart;
        let destination = self.outgoing.destination(&plan, &route);
        let id = plan.id.clone();
        let begun = self.registry.prepare_departure(plan)?;
        if let Err(fault) = self.ways.keep_out(&id, &route) {
            begun.give_up();
            return Err(fault);
        }
        begun.begin(destination, self.ways.clone());
        Ok(())
    }

    /// Goes on with what an agent that ended left open: a source that was frozen comes back, one that committed asks on; an
    /// arrival that was told to start runs again and waits for its source, one that was not is undone unless its source comes
    /// back soon; and the ways in are open again.
    ///
    /// What is open is listed at once, before the future is first polled: migrations that begin while it runs are not its
    /// business.
    pub fn recover(self: &Arc<Self>) -> impl Future<Output = ()> + Send + 'static {
        let mut doors = self.incoming.left_open();
        for id in self.registry.recover_arrivals() {
            if !doors.contains(&id) {
                doors.push(id);
            }
        }
        for record in self.registry.open_departures() {
            let route = self.ways.kept_out(&record.plan.id).unwrap_or(Route::Relay);
            let destination = self.outgoing.destination(&record.plan, &route);
            self.registry.go_on(record, destination, self.ways.clone());
        }
        self.registry.sweep_locks();
        let agent = Arc::clone(self);
        async move {
            for id in doors {
                agent.incoming.reopen(&agent, id).await;
            }
        }
    }

    /// Makes ready to take in a copy of a volume.
    ///
    /// # Errors
    /// As [`Copies::receive`]; `container.moving`.
    pub(crate) async fn receive_copy(&self, id: &MigrationId, asked: ReceiveCopy) -> Result<(), Fault> {
        // Each round looks again; what stands in the way now is told to whoever asks for the copy.
        let name = asked.volume.name.clone();
        drop(self.registry.begin_write(vec![ElementAt::Volume { name }])?);
        self.copies.receive(id, asked).await
    }

    /// Takes in one round of a copy of a volume.
    ///
    /// # Errors
    /// As [`Copies::round`]; `container.moving`.
    pub(crate) async fn copy_round(&self, id: &MigrationId, pipe: Pipe) -> Result<(), Fault> {
        let name = self.copies.volume_of(id)?;
        let _writing = self.registry.begin_write(vec![ElementAt::Volume { name }])?;
        self.copies.round(id, pipe).await
    }

    pub(crate) fn engine(&self) -> &dyn Engine {
        self.registry.engine().as_ref()
    }

    /// Who it is and what it can do.
    #[must_use]
    pub fn hello(&self) -> Hello {
        let hello = Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            build: self.identity.build.clone(),
            capabilities: [
                "migrate.stateless",
                "migrate.cold",
                "migrate.warm",
                "elements",
                "image.thin",
                "images",
                "images.ways",
                "path.direct",
                "path.relay",
                "files.direct",
                "files.delta",
                "files.here",
                "files.partial",
                "checkpoints",
                "checkpoints.archives",
                "checkpoints.oci",
            ]
            .map(String::from)
            .to_vec(),
            pid: std::process::id(),
            instance: self.identity.instance.clone(),
            busy: self.registry.busy() + self.incoming.open(),
            fingerprint: self.identity.key.fingerprint(),
        };
        #[cfg(feature = "fail-points")]
        let hello = as_if_of_another_version(hello);
        hello
    }

    /// Facts about the node.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn node(&self) -> Result<NodeFacts, Fault> {
        node::facts(self.engine(), self.registry.ports().images.as_ref()).await
    }

    /// One container, for a plan.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn container(&self, name: &ContainerName) -> Result<ContainerReport, Fault> {
        node::report(self.registry.ports(), &self.guids, name).await
    }

    /// Remembers by which GUIDs the volumes of a finished arrival are known elsewhere.
    pub async fn note_guids(&self, record: &ArrivalRecord) {
        let wanted: Vec<_> = record
            .plan
            .elements
            .iter()
            .filter(|e| e.copied)
            .filter_map(|e| Some((e, e.volume.as_ref()?.guid.clone())))
            .collect();
        if wanted.is_empty() {
            return;
        }
        let volumes = match self.engine().volume_specs().await {
            Ok(volumes) => volumes,
            Err(error) => {
                tracing::warn!("the GUIDs of volumes are not noted: {error}");
                return;
            }
        };
        for (element, guid) in wanted {
            let here = match &element.target {
                Target::Volume { name, .. } => volumes.iter().find(|v| &v.name == name),
                Target::Anonymous { member, path } => {
                    let Some(id) = record.containers.get(member) else {
                        continue;
                    };
                    self.volume_at(id, path, &volumes).await
                }
                _ => None,
            };
            if let Some(here) = here {
                self.guids.set(here, &guid);
            }
        }
    }

    async fn volume_at<'a>(
        &self,
        container: &tranship_core::ContainerId,
        path: &str,
        volumes: &'a [VolumeSpec],
    ) -> Option<&'a VolumeSpec> {
        let name = ContainerName::new(container.as_str()).ok()?;
        let spec = self.engine().inspect(&name).await.ok()?;
        let mount = spec.mounts.into_iter().find(|m| m.destination == path)?;
        volumes.iter().find(|v| v.name == mount.name)
    }

    /// What would be if these containers came here.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn survey(&self, request: &SurveyRequest) -> Result<Survey, Fault> {
        node::survey(self.engine(), self.registry.ports().images.as_ref(), request).await
    }

    /// Ends a copy that arrives here.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn end_copy(&self, id: &MigrationId, complete: bool) -> Result<(), Fault> {
        self.copies.end(id, complete, &self.guids).await
    }

    /// Counts a caller's connection until the guard is dropped.
    #[must_use]
    pub fn connected(self: &Arc<Self>) -> ConnectionGuard {
        self.connections.fetch_add(1, Ordering::Relaxed);
        ConnectionGuard(Arc::clone(self))
    }

    /// Whether nothing is under way and nobody is connected, beside `own` connections.
    #[must_use]
    pub fn idle(&self, own: usize) -> bool {
        self.connections.load(Ordering::Relaxed) <= own
            && self.registry.busy() == 0
            && self.incoming.open() == 0
            && self.copies.busy() == 0
            && self.sending.busy() == 0
            && self.loading.load(Ordering::Relaxed) == 0
    }

    /// Whether it may end by itself. What came of layers ends with it, and waits a while for whoever goes on with it; an agent of another
    /// build need not wait for that.
    #[must_use]
    pub fn done(&self) -> bool {
        self.idle(0) && !self.registry.ports().images.keeps()
    }

    /// Counts an image that the engine takes in until the guard is dropped.
    pub(crate) fn loading(&self) -> LoadGuard<'_> {
        self.loading.fetch_add(1, Ordering::Relaxed);
        LoadGuard(&self.loading)
    }
}

/// Tests meet agents of other versions: `MIN MAX VERSION` in the setting `protocol`.
#[cfg(feature = "fail-points")]
fn as_if_of_another_version(mut hello: Hello) -> Hello {
    let text = tranship_migrate::failpoint::setting("protocol").unwrap_or_default();
    let mut words = text.split(' ');
    if let (Some(Ok(min)), Some(Ok(max)), Some(version)) = (
        words.next().map(str::parse),
        words.next().map(str::parse),
        words.next(),
    ) {
        (hello.protocol_min, hello.protocol_max) = (min, max);
        version.clone_into(&mut hello.version);
    }
    hello
}

/// A caller's connection.
pub struct ConnectionGuard(Arc<Agent>);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An image that the engine takes in.
pub(crate) struct LoadGuard<'a>(&'a AtomicUsize);

impl Drop for LoadGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
