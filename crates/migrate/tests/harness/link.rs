//! A migration whose link and whose disk do as a test says, and everything that it said.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tranship_core::container::LayerChanges;
use tranship_core::engine::ByteStream;
use tranship_core::event::{Event, Reporter};
use tranship_core::fault::FaultKind;
use tranship_core::node::{ArrivalFacts, ContainerReport};
use tranship_core::storage::{ElementAt, Pipe};
use tranship_core::{ContainerSpec, Engine, Fault, MigrationId};
use tranship_migrate::departure::Order;
use tranship_migrate::destination::{Adopted, ArrivalState, Discarded, Opened};
use tranship_migrate::images::{Came, ImageOrigin};
use tranship_migrate::options::{ModeRequest, MoveOptions};
use tranship_migrate::plan::{Plan, PlanInput, plan};
use tranship_migrate::record::{ArrivalRecord, DepartureRecord, DepartureState, RecordError, Records};
use tranship_migrate::{Arrival, Departure, Destination};
use tranship_testkit::memory::{self, MemoryEngine, MemoryStorage};

use super::{Direct, node, ports, survey};

/// How a call ends.
#[derive(Debug, Clone, Copy)]
pub enum How {
    /// It does not get there.
    Lost,
    /// It is done there, and the answer is lost.
    Deaf,
    /// The destination says this.
    Says(&'static str, FaultKind),
    /// It takes so many milliseconds; an image takes as many for each part.
    Takes(u64),
}

/// The other side behind a link that does as it is told.
pub struct Link {
    inner: Direct,
    script: Mutex<Vec<(String, Range<usize>, How)>>,
    calls: Mutex<Vec<String>>,
}

impl Link {
    /// The calls of this name with these numbers, counted from 0, end so. What was said last holds.
    pub fn on(&self, name: &str, numbers: Range<usize>, how: How) {
        self.script
            .lock()
            .unwrap()
            .insert(0, (name.to_owned(), numbers, how));
    }

    /// How often this was called.
    pub fn count(&self, name: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|c| *c == name).count()
    }

    fn next(&self, name: &str) -> Option<How> {
        let number = self.count(name);
        self.calls.lock().unwrap().push(name.to_owned());
        let script = self.script.lock().unwrap();
        let told = script
            .iter()
            .find(|(told, numbers, _)| told == name && numbers.contains(&number));
        told.map(|(.., how)| *how)
    }

    async fn call<T>(&self, name: &str, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        let lost = || Fault::new("wire.lost", FaultKind::Environment, "the link was lost");
        match self.next(name) {
            None => work.await,
            Some(How::Lost) => Err(lost()),
            Some(How::Deaf) => {
                let _ = work.await;
                Err(lost())
            }
            Some(How::Says(code, kind)) => Err(Fault::new(code, kind, "as it was told")),
            Some(How::Takes(ms)) => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                work.await
            }
        }
    }
}

#[async_trait]
impl Destination for Link {
    async fn open(&self, plan: &Plan) -> Result<Vec<Opened>, Fault> {
        self.call("open", self.inner.open(plan)).await
    }
    async fn image(&self, member: usize, archive: ByteStream) -> Result<(), Fault> {
        match self.next("image") {
            Some(How::Takes(ms)) => {
                let slow = archive.then(move |part| async move {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    part
                });
                self.inner.image(member, Box::pin(slow)).await
            }
            Some(How::Says(code, kind)) => Err(Fault::new(code, kind, "as it was told")),
            Some(_) => Err(Fault::new(
                "wire.lost",
                FaultKind::Environment,
                "the link was lost",
            )),
            None => self.inner.image(member, archive).await,
        }
    }
    async fn image_pipe(&self, member: usize) -> Result<Pipe, Fault> {
        self.call("image pipe", self.inner.image_pipe(member)).await
    }
    async fn image_from(&self, member: usize, origin: &ImageOrigin) -> Result<Came, Fault> {
        self.call("image from", self.inner.image_from(member, origin))
            .await
    }
    async fn prepare(&self) -> Result<(), Fault> {
        self.call("prepare", self.inner.prepare()).await
    }
    async fn create(&self) -> Result<(), Fault> {
        self.call("create", self.inner.create()).await
    }
    async fn element(&self, index: usize) -> Result<Pipe, Fault> {
        self.call(&format!("element {index}"), self.inner.element(index))
            .await
    }
    async fn go_on(&self) -> Result<(), Fault> {
        self.call("go on", self.inner.go_on()).await
    }
    async fn start(&self) -> Result<(), Fault> {
        self.call("start", self.inner.start()).await
    }
    async fn ready(&self) -> Result<Adopted, Fault> {
        self.call("ready", self.inner.ready()).await
    }
    async fn adopt(&self) -> Result<Adopted, Fault> {
        self.call("adopt", self.inner.adopt()).await
    }
    async fn discard(&self) -> Result<Discarded, Fault> {
        self.call("discard", self.inner.discard()).await
    }
    async fn state(&self) -> Result<Option<ArrivalState>, Fault> {
        self.call("state", self.inner.state()).await
    }
}

/// A disk that does not take some of the records.
#[derive(Default)]
pub struct Disk {
    /// So many records of a state are not taken.
    pub refuses: Mutex<Vec<(DepartureState, usize)>>,
    /// The same for the destination.
    pub refuses_there: Mutex<Vec<(ArrivalState, usize)>>,
    pub departures: Mutex<Vec<DepartureRecord>>,
    pub arrivals: Mutex<Vec<ArrivalRecord>>,
    /// What was only shown.
    pub shown: Mutex<Vec<DepartureState>>,
}

fn refused<S: PartialEq>(refuses: &Mutex<Vec<(S, usize)>>, state: S) -> Result<(), RecordError> {
    let mut refuses = refuses.lock().unwrap();
    match refuses.iter_mut().find(|(s, left)| *s == state && *left > 0) {
        Some((_, left)) => {
            *left -= 1;
            Err(RecordError {
                id: MigrationId::new("m1").unwrap(),
                path: "disk".into(),
                reason: "it is full".into(),
            })
        }
        None => Ok(()),
    }
}

#[async_trait]
impl Records for Disk {
    async fn save_departure(&self, record: &DepartureRecord) -> Result<(), RecordError> {
        refused(&self.refuses, record.state)?;
        self.departures.lock().unwrap().push(record.clone());
        Ok(())
    }
    fn show_departure(&self, record: &DepartureRecord) {
        self.shown.lock().unwrap().push(record.state);
    }
    async fn save_arrival(&self, record: &ArrivalRecord) -> Result<(), RecordError> {
        refused(&self.refuses_there, record.state)?;
        self.arrivals.lock().unwrap().push(record.clone());
        Ok(())
    }
}

type Listener = Box<dyn FnMut(&Event) + Send>;

/// Everything that was said.
#[derive(Default)]
pub struct Told(pub Mutex<Vec<Event>>, Mutex<Option<Listener>>);

impl Reporter for Told {
    fn report(&self, event: Event) {
        if let Some(listener) = self.1.lock().unwrap().as_mut() {
            listener(&event);
        }
        self.0.lock().unwrap().push(event);
    }
}

impl Told {
    /// Does something right when something is said.
    pub fn listen(&self, listener: impl FnMut(&Event) + Send + 'static) {
        *self.1.lock().unwrap() = Some(Box::new(listener));
    }

    /// How many warnings hold this text.
    pub fn warnings(&self, text: &str) -> usize {
        let holds = |e: &&Event| matches!(e, Event::Warning { text: t } if t.contains(text));
        self.0.lock().unwrap().iter().filter(holds).count()
    }

    /// How often it was said that it is over, and how.
    pub fn endings(&self) -> Vec<Option<Fault>> {
        let ending = |e: &Event| match e {
            Event::Finished { fault } => Some(fault.clone()),
            _ => None,
        };
        self.0.lock().unwrap().iter().filter_map(ending).collect()
    }
}

/// A migration, and what it goes through.
pub struct World {
    pub source: Arc<MemoryEngine>,
    pub destination: Arc<MemoryEngine>,
    pub plan: Plan,
    pub arrival: Arc<Arrival>,
    pub link: Arc<Link>,
    pub disk: Arc<Disk>,
    pub told: Arc<Told>,
    pub cancel: watch::Sender<bool>,
    pub orders: watch::Sender<Option<Order>>,
}

pub fn options(mode: ModeRequest) -> MoveOptions {
    MoveOptions {
        mode,
        ..MoveOptions::default()
    }
}

/// A world with one container called `web`.
pub fn world(options: &MoveOptions, change: impl Fn(&mut ContainerSpec)) -> World {
    group(options, &["web"], change)
}

/// A world with containers that move together.
pub fn group(options: &MoveOptions, names: &[&str], change: impl Fn(&mut ContainerSpec)) -> World {
    let source = Arc::new(MemoryEngine::named("a"));
    let destination = Arc::new(MemoryEngine::named("b"));
    let specs: Vec<ContainerSpec> = names
        .iter()
        .map(|name| source.run(name, &memory::image("app:1", 3), &change))
        .collect();
    let volumes = futures_util::FutureExt::now_or_never(source.volume_specs())
        .unwrap()
        .unwrap();
    let reports: Vec<ContainerReport> = specs
        .into_iter()
        .map(|spec| ContainerReport {
            volumes: volumes
                .iter()
                .filter(|v| spec.mounts.iter().any(|m| m.name == v.name))
                .cloned()
                .collect(),
            spec,
            changes: LayerChanges::default(),
            archive_bytes: Vec::new(),
            sizes: Default::default(),
            bind_files: Vec::new(),
            bind_users: Default::default(),
            mounted_below: Default::default(),
            memory: Some(Default::default()),
            notes: Default::default(),
        })
        .collect();
    let survey = survey(vec![ArrivalFacts::default(); names.len()]);
    let plan = plan(&PlanInput {
        source: "a",
        destination: "b",
        containers: &[(MigrationId::new("m1").unwrap(), reports)],
        source_node: &node("a"),
        survey: &survey,
        options,
        not_live: None,
    })
    .remove(0);
    assert_eq!(plan.conflicts().next(), None);
    World::of(source, destination, plan)
}

impl World {
    pub fn of(source: Arc<MemoryEngine>, destination: Arc<MemoryEngine>, plan: Plan) -> Self {
        let disk = Arc::new(Disk::default());
        let arrival = Arc::new(Arrival::new(ports(&destination), disk.clone(), plan.clone(), 0));
        let link = Arc::new(Link {
            inner: Direct(Arc::clone(&arrival)),
            script: Mutex::default(),
            calls: Mutex::default(),
        });
        Self {
            source,
            destination,
            plan,
            arrival,
            link,
            disk,
            told: Arc::default(),
            cancel: watch::Sender::new(false),
            orders: watch::Sender::new(None),
        }
    }

    /// Runs it to its end.
    pub async fn run(&self) -> DepartureRecord {
        Departure::new(
            ports(&self.source),
            self.link.clone(),
            self.disk.clone(),
            self.told.clone(),
            self.cancel.subscribe(),
            self.plan.clone(),
            0,
        )
        .with_orders(self.orders.subscribe())
        .run()
        .await
    }

    /// Goes on from a record of this state.
    pub async fn recover(&self, state: DepartureState) -> DepartureRecord {
        let mut record = DepartureRecord::new(self.plan.clone(), 0);
        record.state = state;
        self.recover_from(record).await
    }

    /// Goes on from a record.
    pub async fn recover_from(&self, record: DepartureRecord) -> DepartureRecord {
        Departure::recovered(
            ports(&self.source),
            self.link.clone(),
            self.disk.clone(),
            self.told.clone(),
            self.cancel.subscribe(),
            record,
        )
        .with_orders(self.orders.subscribe())
        .run()
        .await
    }

    /// What the container of this name does, and its restart policy.
    pub fn of_container(engine: &MemoryEngine, name: &str) -> Option<(String, String)> {
        let found = engine.all().into_iter().find(|c| c.spec.name == name)?;
        Some((found.state.to_string(), found.policy.name))
    }

    /// What `web` does at the source.
    pub fn here(&self) -> (String, String) {
        Self::of_container(&self.source, "web").unwrap_or_default()
    }

    /// What `web` does at the destination.
    pub fn there(&self) -> (String, String) {
        Self::of_container(&self.destination, "web").unwrap_or_default()
    }

    /// Where an element of one of the engines is kept.
    pub fn path_of(engine: &MemoryEngine, at: &ElementAt) -> std::path::PathBuf {
        let place = futures_util::FutureExt::now_or_never(engine.locate(at))
            .unwrap()
            .unwrap();
        MemoryStorage::path_of(&place)
    }

    /// How often the source's engine was asked for this.
    pub fn asked_here(&self, call: &str) -> usize {
        self.source.calls().iter().filter(|c| **c == call).count()
    }
}
