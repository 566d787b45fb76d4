//! Two hosts with Docker, shared by the tests that run at the same time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use serde_json::Value;
use tranship_core::container::RestartPolicy;
use tranship_core::engine::CreateRequest;
use tranship_core::ids::ContainerName;
use tranship_core::{ContainerId, ContainerSpec, Engine as _, EngineError};
use tranship_engine::DockerEngine;
use tranship_testkit::testbed::{Node, Testbed, missing_capability};

/// The small image of the testbed.
pub const BUSYBOX: &str = "tranship-test/busybox:1";

/// One host and the adapter for its engine.
pub struct Host {
    pub node: Node,
    pub engine: DockerEngine,
}

/// Source and destination.
pub struct Hosts {
    nodes: [Node; 2],
}

static SHARED: Mutex<Weak<Hosts>> = Mutex::new(Weak::new());

/// The two hosts, or `None` with the reason said where there can be none.
pub fn hosts() -> Option<Arc<Hosts>> {
    if let Some(missing) = missing_capability() {
        tranship_testkit::skipped(&missing);
        return None;
    }
    let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(hosts) = shared.upgrade() {
        return Some(hosts);
    }
    let hosts = Arc::new(Hosts {
        nodes: Testbed::nodes().unwrap(),
    });
    for node in &hosts.nodes {
        node.load_image("busybox").unwrap();
    }
    *shared = Arc::downgrade(&hosts);
    Some(hosts)
}

impl Hosts {
    /// Source and destination with adapters that read layers directly.
    pub async fn connect(&self) -> [Host; 2] {
        let [a, b] = &self.nodes;
        [Host::of(a).await, Host::of(b).await]
    }
}

impl Host {
    async fn of(node: &Node) -> Self {
        let engine = DockerEngine::connect(&node.engine_socket().unwrap())
            .await
            .unwrap();
        Self {
            node: node.clone(),
            engine: engine.with_root_prefix(node.root().unwrap()),
        }
    }

    /// The same host through the engine's API alone.
    pub fn indirect(&self) -> DockerEngine {
        self.engine.clone().with_direct_layers(false)
    }

    /// Runs `docker` on the host.
    pub fn docker(&self, arguments: &str) -> String {
        let script = format!("docker {arguments}");
        self.node.sh(&script).unwrap().trim().to_owned()
    }

    pub async fn inspect(&self, name: &str) -> ContainerSpec {
        self.engine
            .inspect(&ContainerName::new(name).unwrap())
            .await
            .unwrap()
    }

    pub fn document(&self, name: &str) -> Value {
        let text = self.docker(&format!("inspect --type container {name}"));
        serde_json::from_str::<Value>(&text).unwrap()[0].clone()
    }
}

/// The request that makes the container again as it is.
pub fn same(spec: &ContainerSpec) -> CreateRequest {
    CreateRequest {
        name: spec.name.clone(),
        publish: BTreeMap::new(),
        restart_policy: RestartPolicy {
            name: spec.restart_policy.name.clone(),
            maximum_retries: spec.restart_policy.maximum_retries,
        },
        empty_volumes: false,
        carried: BTreeMap::new(),
        drop_fixed_addresses: false,
        spec: spec.clone(),
    }
}

/// Makes the container's networks, where they are missing, and the container.
pub async fn make(host: &Host, request: &CreateRequest) -> Result<ContainerId, EngineError> {
    let present = host.engine.networks().await?;
    for network in &request.spec.networks {
        if !present.iter().any(|n| n.name == network.name) {
            host.engine.create_network(network, false).await?;
        }
    }
    host.engine.create_container(request).await
}
