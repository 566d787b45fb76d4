//! Both halves of a migration over engines in memory, without a wire in between.
#![allow(dead_code, reason = "each test uses its part of it")]

pub mod images;
pub mod link;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tranship_core::container::{MountKind, MountSpec};
use tranship_core::engine::{ByteStream, ExecOutcome};
use tranship_core::event::Reporter;
use tranship_core::node::{ArrivalFacts, NodeFacts, Survey};
use tranship_core::storage::Pipe;
use tranship_core::{Fault, NetworkSpec};
use tranship_migrate::destination::{Adopted, ArrivalState, Discarded, Opened};
use tranship_migrate::images::{Came, ImageOrigin};
use tranship_migrate::plan::Plan;
use tranship_migrate::record::{ArrivalRecord, DepartureRecord, RecordError, Records};
use tranship_migrate::{Arrival, Departure, Destination, Host, Ports};
use tranship_testkit::memory::{self, MemoryEngine};

/// Keeps the last record, as a disk would.
#[derive(Default)]
pub struct Kept(pub Mutex<(Option<DepartureRecord>, Option<ArrivalRecord>)>);

#[async_trait]
impl Records for Kept {
    async fn save_departure(&self, record: &DepartureRecord) -> Result<(), RecordError> {
        self.0.lock().unwrap().0 = Some(record.clone());
        Ok(())
    }
    async fn save_arrival(&self, record: &ArrivalRecord) -> Result<(), RecordError> {
        self.0.lock().unwrap().1 = Some(record.clone());
        Ok(())
    }
}

/// The other side without a wire in between.
pub struct Direct(pub Arc<Arrival>);

#[async_trait]
impl Destination for Direct {
    async fn open(&self, _plan: &Plan) -> Result<Vec<Opened>, Fault> {
        self.0.open().await
    }
    async fn image(&self, member: usize, archive: ByteStream) -> Result<(), Fault> {
        // As the agent does: a source that goes away does not end the step.
        let arrival = Arc::clone(&self.0);
        tokio::spawn(async move { arrival.image(member, Some(archive)).await })
            .await
            .unwrap()
    }
    async fn image_pipe(&self, _member: usize) -> Result<Pipe, Fault> {
        let (here, there) = tokio::io::duplex(64 << 10);
        self.0.offer_image_pipe(Box::new(there));
        Ok(Box::new(here))
    }
    async fn image_from(&self, member: usize, origin: &ImageOrigin) -> Result<Came, Fault> {
        let (arrival, origin) = (Arc::clone(&self.0), origin.clone());
        tokio::spawn(async move { arrival.image_from(member, &origin).await })
            .await
            .unwrap()
    }
    async fn prepare(&self) -> Result<(), Fault> {
        self.0.prepare().await
    }
    async fn create(&self) -> Result<(), Fault> {
        self.0.create().await
    }
    async fn element(&self, index: usize) -> Result<Pipe, Fault> {
        self.0.open_element(index).await?;
        let (here, there) = tokio::io::duplex(64 << 10);
        let arrival = Arc::clone(&self.0);
        tokio::spawn(async move { arrival.element(index, Box::new(there)).await });
        Ok(Box::new(here))
    }
    async fn go_on(&self) -> Result<(), Fault> {
        self.0.go_on().await
    }
    async fn start(&self) -> Result<(), Fault> {
        self.0.start().await
    }
    async fn ready(&self) -> Result<Adopted, Fault> {
        self.0.ready().await
    }
    async fn adopt(&self) -> Result<Adopted, Fault> {
        self.0.adopt().await
    }
    async fn discard(&self) -> Result<Discarded, Fault> {
        self.0.discard().await
    }
    async fn state(&self) -> Result<Option<ArrivalState>, Fault> {
        Ok(Some(self.0.record().state))
    }
}

/// A host whose commands end well unless they are `false`.
#[derive(Default)]
pub struct Shell(pub Mutex<Vec<String>>);

#[async_trait]
impl Host for Shell {
    async fn run(
        &self,
        command: &str,
        _environment: &[(&str, &str)],
        _timeout: Duration,
    ) -> Result<ExecOutcome, Fault> {
        self.0.lock().unwrap().push(command.to_owned());
        Ok(ExecOutcome {
            exit_code: Some(i64::from(command == "false")),
            output: String::new(),
        })
    }
}

/// The ports of a node in memory.
pub fn ports(engine: &Arc<MemoryEngine>) -> Ports {
    Ports {
        engine: engine.clone(),
        storage: Arc::new(engine.storage()),
        host: Arc::new(Shell::default()),
        images: Arc::new(images::Carried::by(engine)),
    }
}

/// Runs a migration to its end.
pub async fn run(
    source: &Arc<MemoryEngine>,
    destination: &Arc<MemoryEngine>,
    plan: &Plan,
    cancelled: watch::Receiver<bool>,
    reporter: Arc<dyn Reporter>,
) -> DepartureRecord {
    let kept = Arc::new(Kept::default());
    let arrival = Arc::new(Arrival::new(ports(destination), kept.clone(), plan.clone(), 0));
    let other = Arc::new(Direct(arrival));
    Departure::new(ports(source), other, kept, reporter, cancelled, plan.clone(), 0)
        .run()
        .await
}

/// A user-defined network.
pub fn network() -> NetworkSpec {
    NetworkSpec {
        id: "n1".into(),
        name: "back".into(),
        driver: "bridge".into(),
        scope: "local".into(),
        internal: false,
        ipv6: false,
        options: Default::default(),
        labels: Default::default(),
        pools: Vec::new(),
        used: Default::default(),
        document: serde_json::json!({}),
    }
}

/// Facts about a node that can do everything.
pub fn node(host: &str) -> NodeFacts {
    NodeFacts {
        host_name: host.into(),
        tranship_version: "0".into(),
        user_id: 0,
        clock_ms: 0,
        engine: memory::facts(),
        free_bytes: None,
        free_inodes: None,
        direct_layers: true,
        direct_files: true,
        addresses: Vec::new(),
        limits: Vec::new(),
        live: memory::live_facts(),
    }
}

/// A mount that may be written to.
pub fn mount(kind: MountKind, name: &str, path: &str) -> MountSpec {
    MountSpec {
        kind,
        name: name.into(),
        source: String::new(),
        destination: path.into(),
        driver: if kind == MountKind::Volume {
            "local".into()
        } else {
            String::new()
        },
        writable: true,
        anonymous: false,
    }
}

/// A destination with nothing on it that would be in the way.
pub fn survey(arrivals: Vec<ArrivalFacts>) -> Survey {
    Survey {
        node: node("b"),
        containers: Vec::new(),
        networks: Vec::new(),
        volumes: Vec::new(),
        volume_specs: Vec::new(),
        ports: Vec::new(),
        arrivals,
    }
}
