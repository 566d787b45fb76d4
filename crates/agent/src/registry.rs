//! The migrations that this agent takes part in: those under way, and those that its records remember.

mod holds;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tranship_core::event::Event;
use tranship_core::fault::FaultKind;
use tranship_core::storage::ElementAt;
use tranship_core::{Engine, Fault, MigrationId};
use tranship_migrate::departure::Order;
use tranship_migrate::destination::ArrivalState;
use tranship_migrate::protocol::Owner;
use tranship_migrate::record::{ArrivalRecord, DepartureRecord, DepartureState, RecordError, Records};
use tranship_migrate::{Arrival, Departure, Destination, Plan, Ports};

use crate::api::{Leaving, MigrationView};
use crate::events::EventLog;
use crate::locks::{Held, Locks};
use crate::log::MigrationLog;
use crate::node::now_ms;
use crate::store::{Damaged, FileRecords};
use crate::views::{arrival_view, departure_view};
use crate::ways::Ways;
use crate::writes::{self, Writes, Writing};

pub(crate) use self::holds::Hold;

/// How often what a restart left open is tried again.
const RECOVER_AGAIN: Duration = Duration::from_secs(2);

/// A departure under way or over.
#[derive(Debug)]
pub struct DepartureTask {
    /// What happened so far.
    pub events: EventLog,
    cancel: watch::Sender<bool>,
    orders: watch::Sender<Option<Order>>,
    plan: Plan,
    log: MigrationLog,
}

/// A departure that nothing speaks against, and that has not begun.
pub struct Prepared {
    registry: Arc<Registry>,
    task: Arc<DepartureTask>,
    locks: Held,
}

/// All migrations of this agent.
pub struct Registry {
    ports: Ports,
    records: FileRecords,
    locks: Locks,
    /// Journals that cannot be used.
    damaged: Vec<Damaged>,
    /// The migrations that were over when this agent began, each with the time when it was begun.
    over: Vec<(u64, MigrationId)>,
    departures: Mutex<HashMap<MigrationId, Arc<DepartureTask>>>,
    arrivals: Mutex<HashMap<MigrationId, Arc<Arrival>>>,
    departure_records: Mutex<HashMap<MigrationId, DepartureRecord>>,
    arrival_records: Mutex<HashMap<MigrationId, ArrivalRecord>>,
    /// What copies write to; looked at and changed while `departures` is locked.
    writes: Arc<Writes>,
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
        self.show_departure(record);
        Ok(())
    }

    fn show_departure(&self, record: &DepartureRecord) {
        locked(&self.0.departure_records).insert(record.plan.id.clone(), record.clone());
    }

    async fn save_arrival(&self, record: &ArrivalRecord) -> Result<(), RecordError> {
        self.0.records.save_arrival(record).await?;
        self.0.log_arrival(record);
        locked(&self.0.arrival_records).insert(record.plan.id.clone(), record.clone());
        Ok(())
    }
}

impl Registry {
    /// Reads the records. [`crate::state::Agent::recover`] then goes on with what a crash left open.
    #[must_use]
    pub fn new(ports: Ports, records: FileRecords, locks: Locks) -> Arc<Self> {
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
        let damaged = departures.damaged.into_iter().chain(arrivals.damaged).collect();
        Arc::new(Self {
            ports,
            records,
            locks,
            damaged,
            over,
            writes: Arc::default(),
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

    /// Removes the oldest records from the disk. This agent still knows them; the next one does not. So it is to be done only once it is
    /// noted elsewhere which containers they moved away.
    pub fn prune(&self) {
        self.records.prune(&self.over);
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

    /// Takes up the arrivals that an agent that ended left open, and tells which.
    pub fn recover_arrivals(self: &Arc<Self>) -> Vec<MigrationId> {
        let records: Vec<ArrivalRecord> = locked(&self.arrival_records).values().cloned().collect();
        let mut known = locked(&self.arrivals);
        let mut open = Vec::new();
        for record in records {
            let id = record.plan.id.clone();
            let over = is_over(&record);
            let records: Arc<dyn Records> = Arc::new(Published(Arc::clone(self)));
            let arrival = Arc::new(Arrival::from_record(self.ports.clone(), records, record));
            // Those that are over answer a source that did not hear so.
            known.insert(id.clone(), Arc::clone(&arrival));
            if !over {
                open.push(id);
                tokio::spawn(recover_arrival(arrival));
            }
        }
        open
    }

    /// The departures that an agent that ended left open.
    #[must_use]
    pub fn open_departures(&self) -> Vec<DepartureRecord> {
        locked(&self.departure_records)
            .values()
            .filter(|r| !r.state.is_over())
            .cloned()
            .collect()
    }

    /// Goes on with a departure that an agent that ended left open.
    pub fn go_on(self: &Arc<Self>, record: DepartureRecord, destination: Arc<dyn Destination>, ways: Ways) {
        let plan = record.plan.clone();
        let containers: Vec<_> = plan.members().into_iter().map(|m| m.create.spec.id).collect();
        // Nobody can hold them: the agent that did is gone, or this one would not have its socket.
        let locks = self.locks.take(&plan.id, &containers).ok();
        let task = Arc::new(self.task(plan));
        locked(&self.departures).insert(task.plan.id.clone(), Arc::clone(&task));
        self.run(task, locks, ways, |parts| {
            Departure::recovered(
                parts.ports,
                destination,
                parts.records,
                parts.reporter,
                parts.cancelled,
                record,
            )
        });
    }

    /// Removes what an agent that was killed left of locks; those of migrations that go on are held by now.
    pub fn sweep_locks(&self) {
        self.locks.sweep();
    }

    fn task(&self, plan: Plan) -> DepartureTask {
        DepartureTask {
            events: EventLog::default(),
            cancel: watch::Sender::new(false),
            orders: watch::Sender::new(None),
            log: self.records.log(&plan.id),
            plan,
        }
    }

    /// Looks whether a migration from this node may begin, and keeps others from beginning with the same containers.
    ///
    /// # Errors
    /// `migrate.busy` when a container is on its way already; `container.copying`; `migrate.known` when the id was used before.
    pub fn prepare_departure(self: &Arc<Self>, plan: Plan) -> Result<Prepared, Fault> {
        let id = plan.id.clone();
        let containers: Vec<_> = plan.members().into_iter().map(|m| m.create.spec.id).collect();
        let mut running = locked(&self.departures);
        if locked(&self.departure_records).contains_key(&id) || running.contains_key(&id) {
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
            return Err(busy(&other.plan, &format!("to {}", other.plan.destination)));
        }
        // One that is still arriving does not belong to this node yet.
        let arriving = locked(&self.arrivals)
            .values()
            .map(|a| a.record())
            .find(|r| !is_over(r) && r.containers.values().any(|c| containers.contains(c)));
        if let Some(other) = arriving {
            return Err(busy(&other.plan, &format!("here from {}", other.plan.source)));
        }
        if let Some(fault) = self.writes.against(&writes::of_departure(&plan), &plan) {
            return Err(fault);
        }
        let locks = self.locks.take(&id, &containers)?;
        let task = Arc::new(self.task(plan));
        running.insert(id, Arc::clone(&task));
        Ok(Prepared {
            registry: Arc::clone(self),
            task,
            locks,
        })
    }

    /// Notes that something is about to be written to these, which keeps a migration from beginning until it is over.
    ///
    /// # Errors
    /// `container.moving` if a migration takes or brings one of them at the moment; `container.checkpointing`.
    pub(crate) fn begin_write(&self, elements: Vec<ElementAt>) -> Result<Writing, Fault> {
        let running = locked(&self.departures);
        self.refuse_moving(&running, &elements, writes::on_its_way)?;
        Ok(self.writes.begin(elements))
    }

    fn run(
        self: &Arc<Self>,
        task: Arc<DepartureTask>,
        locks: Option<Held>,
        ways: Ways,
        make: impl FnOnce(Parts) -> Departure,
    ) {
        let id = task.plan.id.clone();
        let departure = make(Parts {
            ports: self.ports.clone(),
            records: Arc::new(Published(Arc::clone(self))),
            reporter: Arc::new(TaskReporter(Arc::clone(&task))),
            cancelled: task.cancel.subscribe(),
        })
        .with_orders(task.orders.subscribe());
        let registry = Arc::clone(self);
        tokio::spawn(async move {
            let record = departure.run().await;
            // The record may not have reached the disk; what is known is shown all the same.
            locked(&registry.departure_records).insert(id.clone(), record);
            locked(&registry.departures).remove(&id);
            registry.records.close(&id);
            ways.forget_out(&id);
            drop(locks);
        });
    }

    /// Notes for people where an arrival stands.
    fn log_arrival(&self, record: &ArrivalRecord) {
        let id = &record.plan.id;
        let before = locked(&self.arrival_records).get(id).map(|r| r.state);
        if before != Some(record.state) {
            let text = format!("destination: {}", arrival_word(record.state));
            self.records.log(id).line(now_ms(), &text);
        }
    }

    /// What a person reads of a migration; empty where nothing was noted.
    #[must_use]
    pub fn log(&self, id: &MigrationId) -> String {
        self.records.log(id).text()
    }

    /// Who owns the container, by the word of a person who has looked at both sides.
    ///
    /// # Errors
    /// `migrate.not-found`; `migrate.decided` where it needs no person; what the engine says.
    pub async fn resolve(&self, id: &MigrationId, owner: Owner) -> Result<(), Fault> {
        let state = locked(&self.departure_records).get(id).map(|r| r.state);
        if let Some(task) = self.departure(id) {
            if !matches!(state, Some(DepartureState::Committed | DepartureState::InDoubt)) {
                return Err(decided("the migration goes on by itself"));
            }
            task.orders.send_replace(Some(Order::Resolve(owner)));
            return Ok(());
        }
        match self.arrival(id) {
            Some(arrival) if !arrival.is_over() => arrival.resolve(owner).await,
            Some(_) => Err(decided("it was decided before who owns the container")),
            None if state.is_some() => Err(decided("the migration is over")),
            None => Err(not_found(id)),
        }
    }

    /// Asks a departure under way to take the container back, also after the commit.
    ///
    /// # Errors
    /// `migrate.not-found` when it is over or not known.
    pub fn roll_back(&self, id: &MigrationId) -> Result<(), Fault> {
        let Some(task) = self.departure(id) else {
            return Err(not_found(id));
        };
        task.cancel.send_replace(true);
        task.orders.send_replace(Some(Order::GoBack));
        Ok(())
    }

    /// The migration under way that takes this container away, by its name or id.
    #[must_use]
    pub fn leaving(&self, container: &str) -> Option<Leaving> {
        let running = locked(&self.departures);
        let task = running.values().find(|t| {
            let members = t.plan.members();
            members
                .iter()
                .any(|m| m.create.spec.name == container || m.create.spec.id.as_str() == container)
        });
        task.map(|t| Leaving {
            id: t.plan.id.clone(),
            destination: t.plan.destination.clone(),
            options: t.plan.options.clone(),
        })
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
        if matches!(
            state,
            Some(
                DepartureState::Committed
                    | DepartureState::InDoubt
                    | DepartureState::Returning
                    | DepartureState::HandedOver
            )
        ) {
            return Err(Fault::new(
                "migrate.too-late",
                FaultKind::Environment,
                "the source has handed over already, and the destination decides how this ends",
            )
            .with_hint(format!(
                "`tranship rollback {id}` asks the destination to give it back"
            )));
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
    ///
    /// # Errors
    /// `container.copying` if it is new and something is being written to what it would fill.
    pub fn open_arrival(self: &Arc<Self>, plan: Plan) -> Result<Arc<Arrival>, Fault> {
        // Held so that no write begins between the look and the entry.
        let _writes = locked(&self.departures);
        let mut arrivals = locked(&self.arrivals);
        if let Some(known) = arrivals.get(&plan.id) {
            return Ok(Arc::clone(known));
        }
        if let Some(fault) = self.writes.against(&writes::targets(&plan), &plan) {
            return Err(fault);
        }
        let records: Arc<dyn Records> = Arc::new(Published(Arc::clone(self)));
        let id = plan.id.clone();
        let arrival = Arc::new(Arrival::new(self.ports.clone(), records, plan, now_ms()));
        arrivals.insert(id, Arc::clone(&arrival));
        Ok(arrival)
    }

    /// Number of migrations that are not over, and of containers that are held for a checkpoint.
    #[must_use]
    pub fn busy(&self) -> usize {
        let arrivals = locked(&self.arrivals)
            .values()
            .filter(|a| !is_over(&a.record()))
            .count();
        locked(&self.departures).len() + arrivals + self.writes.holds()
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

/// Starts again what was told to start, and goes on with taking away what was to go, however long the engine is away.
async fn recover_arrival(arrival: Arc<Arrival>) {
    while let Err(fault) = arrival.recover().await {
        tracing::error!("an arrival that a restart left open is not settled yet: {fault}");
        tokio::time::sleep(RECOVER_AGAIN).await;
    }
}

fn busy(other: &Plan, whither: &str) -> Fault {
    Fault::new(
        "migrate.busy",
        FaultKind::Environment,
        format!(
            "{} is on its way {whither} already, by migration {}",
            other.spec().name,
            other.id
        ),
    )
    .on_container(other.spec().name.clone())
    .with_hint(format!("`tranship status {}` shows it", other.id))
}

fn decided(what: &str) -> Fault {
    Fault::new("migrate.decided", FaultKind::Environment, what.to_owned())
        .with_hint("`tranship status ID` shows where it stands")
}

fn arrival_word(state: ArrivalState) -> &'static str {
    match state {
        ArrivalState::Receiving => "receiving",
        ArrivalState::Prepared => "prepared",
        ArrivalState::Started => "told to start",
        ArrivalState::Adopted => "adopted",
        ArrivalState::Discarding => "discarding",
        ArrivalState::Discarded => "discarded",
    }
}

/// What a departure is made of.
struct Parts {
    ports: Ports,
    records: Arc<dyn Records>,
    reporter: Arc<dyn tranship_core::Reporter>,
    cancelled: watch::Receiver<bool>,
}

impl Prepared {
    /// Begins it.
    pub fn begin(self, destination: Arc<dyn Destination>, ways: Ways) {
        let plan = self.task.plan.clone();
        self.registry.run(self.task, Some(self.locks), ways, |parts| {
            Departure::new(
                parts.ports,
                destination,
                parts.records,
                parts.reporter,
                parts.cancelled,
                plan,
                now_ms(),
            )
        });
    }

    /// Lets go of it.
    pub fn give_up(self) {
        locked(&self.registry.departures).remove(&self.task.plan.id);
    }
}

impl Registry {
    /// Why nothing can be said of a migration: its journal cannot be used, or nobody knows it.
    #[must_use]
    pub fn nothing_known(&self, id: &MigrationId) -> Fault {
        match self.damaged.iter().find(|d| d.id == id.as_str()) {
            None => not_found(id),
            Some(damaged) => {
                let mut fault = Fault::new(
                    "journal.damaged",
                    FaultKind::InDoubt,
                    format!("the journal of migration {id} cannot be used: {}", damaged.reason),
                )
                .with_hint("it is left as it is; look at both nodes with `docker ps -a`, and move the file away afterwards");
                fault.path = Some(damaged.path.display().to_string());
                fault
            }
        }
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
        self.0.log.event(now_ms(), &event);
        self.0.events.report(event);
    }
}
