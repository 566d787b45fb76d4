//! The migrations that this agent takes part in: those under way, and those that its records remember.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tranship_core::event::Event;
use tranship_core::fault::FaultKind;
use tranship_core::{Engine, Fault, MigrationId};
use tranship_migrate::departure;
use tranship_migrate::destination::ArrivalState;
use tranship_migrate::record::{ArrivalRecord, DepartureRecord, DepartureState, RecordError, Records};
use tranship_migrate::{Arrival, Departure, Destination, Plan, Ports};

use crate::api::{MigrationView, Role};
use crate::events::EventLog;
use crate::node::now_ms;
use crate::store::FileRecords;

/// How often an undoing that failed is tried again.
const UNDO_AGAIN: Duration = Duration::from_secs(5);

/// A departure under way or over.
#[derive(Debug)]
pub struct DepartureTask {
    /// What happened so far.
    pub events: EventLog,
    cancel: watch::Sender<bool>,
    plan: Plan,
}

/// All migrations of this agent.
pub struct Registry {
    ports: Ports,
    records: FileRecords,
    departures: Mutex<HashMap<MigrationId, Arc<DepartureTask>>>,
    arrivals: Mutex<HashMap<MigrationId, Arc<Arrival>>>,
    departure_records: Mutex<HashMap<MigrationId, DepartureRecord>>,
    arrival_records: Mutex<HashMap<MigrationId, ArrivalRecord>>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // The maps are replaced entry by entry; a panic between two entries leaves them usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Saves to disk, then publishes to whoever asks.
struct Published(Arc<Registry>);

#[async_trait]
impl Records for Published {
    async fn save_departure(&self, record: &DepartureRecord) -> Result<(), RecordError> {
        self.0.records.save_departure(record).await?;
        locked(&self.0.departure_records).insert(record.plan.id.clone(), record.clone());
        Ok(())
    }

    async fn save_arrival(&self, record: &ArrivalRecord) -> Result<(), RecordError> {
        self.0.records.save_arrival(record).await?;
        locked(&self.0.arrival_records).insert(record.plan.id.clone(), record.clone());
        Ok(())
    }
}

impl Registry {
    /// Reads the records. [`Registry::recover`] then settles what a crash left open.
    #[must_use]
    pub fn new(ports: Ports, records: FileRecords) -> Arc<Self> {
        let (departures, arrivals) = (records.departures(), records.arrivals());
        for damaged in departures.damaged.iter().chain(&arrivals.damaged) {
            tracing::error!(
                "the journal {} cannot be used and is left as it is: {}",
                damaged.path.display(),
                damaged.reason
            );
        }
        let over: Vec<(u64, MigrationId)> = departures
            .records
            .iter()
            .filter(|r| r.state.is_over())
            .map(|r| (r.begun_at_ms, r.plan.id.clone()))
            .chain(
                arrivals
                    .records
                    .iter()
                    .filter(|r| is_over(r))
                    .map(|r| (r.begun_at_ms, r.plan.id.clone())),
            )
            .collect();
        records.prune(&over);
        Arc::new(Self {
            ports,
            records,
            departures: Mutex::default(),
            arrivals: Mutex::default(),
            departure_records: Mutex::new(
                departures
                    .records
                    .into_iter()
                    .map(|r| (r.plan.id.clone(), r))
                    .collect(),
            ),
            arrival_records: Mutex::new(
                arrivals
                    .records
                    .into_iter()
                    .map(|r| (r.plan.id.clone(), r))
                    .collect(),
            ),
        })
    }

    /// The engine of this node.
    #[must_use]
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.ports.engine
    }

    /// All ports of this node.
    #[must_use]
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// Settles what an agent that died left open: a source that was frozen but not committed resumes, an arrival that
    /// nothing was started for is undone. What was committed stays as it is, visibly in doubt.
    ///
    /// What is open is listed at once, before the future is first polled: migrations that begin while it runs are not its
    /// business.
    pub fn recover(self: &Arc<Self>) -> impl Future<Output = ()> + Send + 'static {
        let departures: Vec<DepartureRecord> = locked(&self.departure_records)
            .values()
            .filter(|r| !r.state.is_over())
            .cloned()
            .collect();
        let arrivals: Vec<Arc<Arrival>> = {
            let open: Vec<ArrivalRecord> = locked(&self.arrival_records)
                .values()
                .filter(|r| !is_over(r))
                .cloned()
                .collect();
            let mut known = locked(&self.arrivals);
            open.into_iter()
                .map(|record| {
                    let id = record.plan.id.clone();
                    let records: Arc<dyn Records> = Arc::new(Published(Arc::clone(self)));
                    let arrival = Arc::new(Arrival::from_record(self.ports.clone(), records, record));
                    known.insert(id, Arc::clone(&arrival));
                    arrival
                })
                .collect()
        };
        let registry = Arc::clone(self);
        async move {
            for arrival in arrivals {
                tokio::spawn(undo_what_was_left(arrival));
            }
            registry.settle(departures).await;
        }
    }

    async fn settle(self: &Arc<Self>, departures: Vec<DepartureRecord>) {
        for mut record in departures {
            let fault = Fault::new(
                "agent.restarted",
                FaultKind::RolledBack,
                "the source's agent ended before the migration did",
            );
            let fault = match record.state {
                DepartureState::Preparing => fault,
                DepartureState::Frozen | DepartureState::NotResumed => {
                    match departure::resume(self.ports.engine.as_ref(), &record.plan).await {
                        Ok(()) => fault,
                        Err(stuck) => stuck,
                    }
                }
                _ => Fault::new(
                    "migrate.in-doubt",
                    FaultKind::InDoubt,
                    "the source's agent ended after it had handed over, and before it knew whether the container runs there",
                )
                .with_hint("look at both nodes with `docker ps -a`; start the container on one of them only"),
            };
            record.state = match fault.kind {
                FaultKind::InDoubt if fault.code == departure::NOT_RESUMED => DepartureState::NotResumed,
                FaultKind::InDoubt => DepartureState::InDoubt,
                _ => DepartureState::RolledBack,
            };
            record.fault = Some(fault.on_container(record.plan.spec().name.clone()));
            self.publish_departure(&record).await;
        }
    }

    async fn publish_departure(self: &Arc<Self>, record: &DepartureRecord) {
        if let Err(error) = Published(Arc::clone(self)).save_departure(record).await {
            tracing::error!("{error}");
        }
    }

    /// Begins a migration from this node.
    ///
    /// # Errors
    /// `migrate.busy` when the container is on its way already; `migrate.known` when the id was used before.
    pub fn depart(self: &Arc<Self>, plan: Plan, destination: Arc<dyn Destination>) -> Result<(), Fault> {
        let id = plan.id.clone();
        let containers: Vec<_> = plan.members().into_iter().map(|m| m.create.spec.id).collect();
        let (cancel, cancelled) = watch::channel(false);
        let task = Arc::new(DepartureTask {
            events: EventLog::default(),
            cancel,
            plan: plan.clone(),
        });
        {
            let mut running = locked(&self.departures);
            let records = locked(&self.departure_records);
            if records.contains_key(&id) || running.contains_key(&id) {
                return Err(Fault::new(
                    "migrate.known",
                    FaultKind::Environment,
                    format!("migration {id} exists already"),
                ));
            }
            let leaving = |t: &&Arc<DepartureTask>| {
                t.plan
                    .members()
                    .iter()
                    .any(|m| containers.contains(&m.create.spec.id))
            };
            if let Some(other) = running.values().find(leaving) {
                let other = &other.plan;
                return Err(Fault::new(
                    "migrate.busy",
                    FaultKind::Environment,
                    format!(
                        "{} is on its way to {} already, by migration {}",
                        other.spec().name,
                        other.destination,
                        other.id
                    ),
                )
                .on_container(other.spec().name.clone())
                .with_hint(format!("`tranship status {}` shows it", other.id)));
            }
            running.insert(id.clone(), Arc::clone(&task));
        }
        let records: Arc<dyn Records> = Arc::new(Published(Arc::clone(self)));
        let reporter: Arc<dyn tranship_core::Reporter> = Arc::new(TaskReporter(Arc::clone(&task)));
        let departure = Departure::new(
            self.ports.clone(),
            destination,
            records,
            reporter,
            cancelled,
            plan,
            now_ms(),
        );
        let registry = Arc::clone(self);
        tokio::spawn(async move {
            let record = departure.run().await;
            // The record may not have reached the disk; what is known is shown all the same.
            locked(&registry.departure_records).insert(id.clone(), record);
            locked(&registry.departures).remove(&id);
        });
        Ok(())
    }

    /// The events of a departure under way.
    #[must_use]
    pub fn departure(&self, id: &MigrationId) -> Option<Arc<DepartureTask>> {
        locked(&self.departures).get(id).cloned()
    }

    /// Asks a departure under way to end in order.
    ///
    /// # Errors
    /// `migrate.not-found` when it is over or not known; `migrate.too-late` when it has handed over.
    pub fn abort(&self, id: &MigrationId) -> Result<(), Fault> {
        let state = locked(&self.departure_records).get(id).map(|r| r.state);
        if matches!(state, Some(DepartureState::Committed | DepartureState::InDoubt)) {
            return Err(Fault::new(
                "migrate.too-late",
                FaultKind::Environment,
                "the source has handed over already, and the destination decides how this ends",
            ));
        }
        match self.departure(id) {
            Some(task) => {
                task.cancel.send_replace(true);
                Ok(())
            }
            None => Err(not_found(id)),
        }
    }

    /// The arrival of a migration, if it began.
    #[must_use]
    pub fn arrival(&self, id: &MigrationId) -> Option<Arc<Arrival>> {
        locked(&self.arrivals).get(id).cloned()
    }

    /// The arrival of this plan's migration, begun now if it is new.
    #[must_use]
    pub fn open_arrival(self: &Arc<Self>, plan: Plan) -> Arc<Arrival> {
        let records: Arc<dyn Records> = Arc::new(Published(Arc::clone(self)));
        let mut arrivals = locked(&self.arrivals);
        let ports = self.ports.clone();
        Arc::clone(
            arrivals
                .entry(plan.id.clone())
                .or_insert_with(|| Arc::new(Arrival::new(ports, records, plan, now_ms()))),
        )
    }

    /// Number of migrations that are not over.
    #[must_use]
    pub fn busy(&self) -> usize {
        let arrivals = locked(&self.arrivals)
            .values()
            .filter(|a| !is_over(&a.record()))
            .count();
        locked(&self.departures).len() + arrivals
    }

    /// All migrations, newest first.
    #[must_use]
    pub fn views(&self) -> Vec<MigrationView> {
        let departures: Vec<MigrationView> = locked(&self.departure_records)
            .values()
            .map(departure_view)
            .collect();
        let arrivals: Vec<MigrationView> = locked(&self.arrival_records).values().map(arrival_view).collect();
        let mut views: Vec<MigrationView> = departures.into_iter().chain(arrivals).collect();
        views.sort_by(|a, b| b.begun_at_ms.cmp(&a.begun_at_ms).then_with(|| a.id.cmp(&b.id)));
        views
    }

    /// What this node knows of one migration; both ends when it moved within the node.
    #[must_use]
    pub fn view(&self, id: &MigrationId) -> Vec<MigrationView> {
        let mut departure = locked(&self.departure_records).get(id).map(departure_view);
        // The record is saved between the steps only; how far the present one is, its events know.
        if let (Some(view), Some(task)) = (&mut departure, self.departure(id)) {
            view.bytes_sent = view.bytes_sent.max(task.events.bytes());
        }
        let arrival = locked(&self.arrival_records).get(id).map(arrival_view);
        departure.into_iter().chain(arrival).collect()
    }
}

/// Undoes an arrival that a crash left open, however long the engine is away.
async fn undo_what_was_left(arrival: Arc<Arrival>) {
    while arrival.ends_with_its_link() {
        match arrival.discard().await {
            Ok(_) => return,
            Err(fault) => tracing::error!("an arrival that a crash left open could not be undone: {fault}"),
        }
        tokio::time::sleep(UNDO_AGAIN).await;
    }
}

/// The answer to a question about a migration that nobody knows.
#[must_use]
pub fn not_found(id: &MigrationId) -> Fault {
    Fault::new(
        "migrate.not-found",
        FaultKind::Environment,
        format!("there is no migration {id} here"),
    )
    .with_hint("`tranship list` shows those that are known")
}

fn is_over(record: &ArrivalRecord) -> bool {
    matches!(record.state, ArrivalState::Adopted | ArrivalState::Discarded)
}

struct TaskReporter(Arc<DepartureTask>);

impl tranship_core::Reporter for TaskReporter {
    fn report(&self, event: Event) {
        self.0.events.report(event);
    }
}

fn departure_view(record: &DepartureRecord) -> MigrationView {
    MigrationView {
        status: record.state.label().to_owned(),
        departure: Some(record.state),
        total_ms: record.total_ms,
        downtime_ms: record.downtime_ms,
        bytes_sent: record.bytes_sent,
        rounds: record.rounds.clone(),
        predicted_downtime_ms: record.predicted_downtime_ms,
        phases: record.phases.clone(),
        destination_container: record.destination_container.clone(),
        proved_healthy: record.proved_healthy,
        fault: record.fault.clone(),
        ..bare_view(&record.plan, Role::Source, record.begun_at_ms)
    }
}

fn arrival_view(record: &ArrivalRecord) -> MigrationView {
    let status = match record.state {
        ArrivalState::Adopted => "complete",
        ArrivalState::Discarded => "failed (rolled back)",
        ArrivalState::Receiving
        | ArrivalState::Prepared
        | ArrivalState::Started
        | ArrivalState::Discarding => "in-progress",
    };
    MigrationView {
        status: status.to_owned(),
        arrival: Some(record.state),
        destination_container: record.containers.get(&0).map(ToString::to_string),
        left_behind: record.left_behind.clone(),
        ..bare_view(&record.plan, Role::Destination, record.begun_at_ms)
    }
}

fn bare_view(plan: &Plan, role: Role, begun_at_ms: u64) -> MigrationView {
    MigrationView {
        id: plan.id.clone(),
        role,
        container: plan.spec().name.clone(),
        source: plan.source.clone(),
        destination: plan.destination.clone(),
        mode: plan.mode.to_string(),
        status: String::new(),
        departure: None,
        arrival: None,
        begun_at_ms,
        total_ms: 0,
        downtime_ms: None,
        bytes_sent: 0,
        rounds: Vec::new(),
        predicted_downtime_ms: None,
        image_bytes: plan.prediction.image_bytes,
        phases: Vec::new(),
        destination_container: None,
        proved_healthy: false,
        fault: None,
        left_behind: Vec::new(),
    }
}
