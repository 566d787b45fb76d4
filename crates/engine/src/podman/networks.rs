//! Networks by Podman's own API: the compatible one says nothing of names (DNS), routes and devices.

use serde_json::Value;
use tranship_core::{EngineError, NetworkSpec};

use super::API;
use crate::docker::DockerEngine;
use crate::fault::Ask;
use crate::json::{object, text};
use crate::raw::escape;

/// What Podman writes into a network besides what it was made from.
const STATE: [&str; 3] = ["id", "created", "containers"];

impl DockerEngine {
    /// Podman's own document of a network.
    pub(crate) async fn libpod_network(&self, name: &str) -> Result<Value, EngineError> {
        let ask = Ask::new("inspect", "network", name);
        let path = format!("{API}/networks/{}/json", escape(name));
        self.raw.get(&path, &ask).await
    }

    pub(crate) async fn make_podman_network(
        &self,
        spec: &NetworkSpec,
        new_subnets: bool,
    ) -> Result<String, EngineError> {
        let ask = Ask::new("create", "network", &spec.name);
        let body = network_body(spec, new_subnets);
        let made = self
            .raw
            .post(&format!("{API}/networks/create"), &body, &ask)
            .await?;
        let id = text(&made, &["id"]);
        if id.is_empty() {
            return Err(ask.uncertain("the answer names no id"));
        }
        Ok(id)
    }
}

/// The body of `create network`. A device that bears a name of Podman's choice has another one there.
fn network_body(spec: &NetworkSpec, new_subnets: bool) -> Value {
    let mut body = object(&spec.document, &[]);
    for key in STATE {
        body.remove(key);
    }
    body.insert("name".into(), spec.name.as_str().into());
    let device = text(&spec.document, &["network_interface"]);
    let number = device.strip_prefix("podman").unwrap_or("none");
    if number.bytes().all(|b| b.is_ascii_digit()) {
        body.remove("network_interface");
    }
    if new_subnets {
        body.remove("subnets");
    }
    Value::Object(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_network_is_made_of_what_was_wished_for() {
        let spec = |device: &str| NetworkSpec {
            id: "x".into(),
            name: "net1".into(),
            driver: "bridge".into(),
            scope: "local".into(),
            internal: false,
            ipv6: false,
            options: Default::default(),
            labels: Default::default(),
            pools: Vec::new(),
            used: Default::default(),
            document: json!({
                "name": "net1", "id": "x", "driver": "bridge", "network_interface": device, "created": "then",
                "subnets": [{ "subnet": "10.66.0.0/24" }], "dns_enabled": true, "containers": {},
            }),
        };
        let body = network_body(&spec("podman1"), false);
        assert_eq!(
            body,
            json!({ "name": "net1", "driver": "bridge", "subnets": [{ "subnet": "10.66.0.0/24" }], "dns_enabled": true })
        );
        assert_eq!(network_body(&spec("mine0"), true)["network_interface"], "mine0");
        assert!(network_body(&spec("mine0"), true)["subnets"].is_null());
    }
}
