//! What the typed view of a container has from Podman's own documents.

use std::net::IpAddr;

use serde_json::Value;
use tranship_core::container::{
    ContainerState, ContainerStatus, ContainerSummary, Health, NetworkAttachment, PublishedPort,
};
use tranship_core::{ContainerId, ContainerSpec, EngineError};

use super::{KEY, obstacles};
use crate::describe::is_short_id;
use crate::docker::{DockerEngine, Identity};
use crate::fault::Ask;
use crate::json::{at, entries, flag, items, number, text, texts};

/// How a time begins that never was.
const NEVER: &str = "0001-01-01";

impl DockerEngine {
    /// What a container does.
    pub(crate) async fn podman_status(
        &self,
        container: &ContainerId,
    ) -> Result<ContainerStatus, EngineError> {
        let ask = Ask::new("inspect", "container", container.as_str());
        let inspect = self.libpod_document(container.as_str()).await?;
        let mut found = status(&inspect, &ask)?;
        if found.state == ContainerState::Running && found.health == Health::Starting {
            let interval = number(&inspect, &["Config", "Healthcheck", "Interval"]);
            self.check_health(container, &found.started_at, interval).await;
            found = status(&self.libpod_document(container.as_str()).await?, &ask)?;
        }
        Ok(found)
    }

    /// All containers. Podman has states that no other engine has, so the list is read as plain JSON.
    pub(crate) async fn podman_containers(&self) -> Result<Vec<ContainerSummary>, EngineError> {
        let ask = Ask::new("list", "containers", "");
        let list = self.raw.get("/containers/json?all=1", &ask).await?;
        let summary = |container: &Value| -> Result<ContainerSummary, EngineError> {
            let id = ContainerId::new(text(container, &["Id"])).map_err(|error| ask.uncertain(error))?;
            let port =
                |key: &Value, name: &str| u16::try_from(number(key, &[name])).ok().filter(|port| *port != 0);
            let mut ports: Vec<PublishedPort> = items(container, &["Ports"])
                .iter()
                .filter_map(|entry| {
                    Some(PublishedPort {
                        container_port: port(entry, "PrivatePort")?,
                        protocol: text(entry, &["Type"]),
                        host_address: text(entry, &["IP"]).parse().ok(),
                        host_port: Some(port(entry, "PublicPort")?),
                    })
                })
                .collect();
            ports.sort();
            Ok(ContainerSummary {
                id,
                names: texts(container, &["Names"])
                    .iter()
                    .map(|name| name.trim_start_matches('/').to_owned())
                    .collect(),
                state: text(container, &["State"]),
                ports,
            })
        };
        items(&list, &[]).iter().map(summary).collect()
    }

    /// Puts right what the compatible document says otherwise or not at all, and lets Podman's own documents travel along.
    pub(crate) async fn as_podman_has_it(
        &self,
        spec: &mut ContainerSpec,
        identity: &Identity,
    ) -> Result<(), EngineError> {
        let documents = self.podman_documents(&spec.id).await?;
        let inspect = documents.get("Inspect").cloned().unwrap_or_default();
        let ask = Ask::new("inspect", "container", spec.id.as_str());
        spec.status = status(&inspect, &ask)?;
        spec.ties.log_driver = text(&inspect, &["HostConfig", "LogConfig", "Type"]);
        let runtime = text(&inspect, &["OCIRuntime"]);
        spec.ties.runtime = if runtime == identity.default_runtime {
            String::new()
        } else {
            runtime
        };
        spec.attachments = attachments(&documents, spec.id.as_str());
        spec.ties.uncarried = obstacles::of(&documents, identity.shifts_ids);
        let addresses = obstacles::of_addresses(&spec.networks, &spec.attachments);
        spec.ties.uncarried.extend(addresses);
        if let Some(document) = spec.document.as_object_mut() {
            document.insert(KEY.into(), documents);
        }
        Ok(())
    }
}

/// What the container does, from libpod's document. One that was initialised and ended was never started; one that was restored
/// began to run at that time, of which the time of the start knows nothing.
///
/// # Errors
/// In a state that is not known: it must not count as ended, or as one that may be started.
pub(super) fn status(inspect: &Value, ask: &Ask) -> Result<ContainerStatus, EngineError> {
    let state = |key: &str| text(inspect, &["State", key]);
    let [started, restored] = ["StartedAt", "RestoredAt"].map(state);
    // It is taken away before every start, so that it is of the last run where it is there. Which of the two is later is another
    // question: clocks are set back.
    let started = if is_time(&restored) { restored } else { started };
    let ran = is_time(&started);
    Ok(ContainerStatus {
        state: match state("Status").as_str() {
            "running" | "stopping" => ContainerState::Running,
            "paused" => ContainerState::Paused,
            "removing" => ContainerState::Removing,
            "exited" | "stopped" if ran => ContainerState::Exited,
            "restarting" => ContainerState::Restarting,
            "configured" | "created" | "initialized" | "exited" | "stopped" => ContainerState::Created,
            other => return Err(ask.failed(format!("its state is {other:?}, which is not known here"))),
        },
        health: match text(inspect, &["State", "Health", "Status"]).as_str() {
            "starting" => Health::Starting,
            "healthy" => Health::Healthy,
            "unhealthy" => Health::Unhealthy,
            _ => Health::None,
        },
        started_at: started,
        exit_code: number(inspect, &["State", "ExitCode"]),
        error: state("Error"),
        oom_killed: flag(inspect, &["State", "OOMKilled"]),
        restart_count: u64::try_from(number(inspect, &["RestartCount"])).unwrap_or_default(),
    })
}

/// Whether Podman names a time, and does not say that it was never.
pub(super) fn is_time(text: &str) -> bool {
    !text.is_empty() && !text.starts_with(NEVER)
}

/// The networks with what the user asked for in them. Podman adds the short id and the host name to the aliases itself.
pub(super) fn attachments(documents: &Value, id: &str) -> Vec<NetworkAttachment> {
    let host_name = text(documents, &["Inspect", "Config", "Hostname"]);
    entries(documents, &["Inspect", "NetworkSettings", "Networks"])
        .map(|(network, _)| {
            let wish = ["Wishes", "Networks", network.as_str()];
            let list = |key: &str| texts(at(documents, &wish), &[key]);
            let mac = text(at(documents, &wish), &["static_mac"]);
            NetworkAttachment {
                network: network.clone(),
                aliases: list("aliases")
                    .into_iter()
                    .filter(|alias| !is_short_id(alias, id) && *alias != host_name)
                    .collect(),
                fixed_addresses: list("static_ips")
                    .iter()
                    .filter_map(|address| address.parse::<IpAddr>().ok())
                    .collect(),
                mac_address: (!mac.is_empty()).then_some(mac),
                links: Vec::new(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_restore_is_a_start_and_an_initialisation_is_none() {
        let at = |status: &str, started: &str, restored: &str| {
            status_of(json!({ "Status": status, "StartedAt": started, "RestoredAt": restored }))
        };
        let never = "0001-01-01T00:00:00Z";
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        assert_eq!(at("exited", never, never).state, ContainerState::Created);
        assert_eq!(at("initialized", never, never).state, ContainerState::Created);
        assert_eq!(at("exited", early, never).state, ContainerState::Exited);
        assert_eq!(at("running", never, late).started_at, late);
        assert_eq!(at("running", early, late).started_at, late);
        // The clock was set back before the restore.
        assert_eq!(at("running", late, early).started_at, early);
        assert_eq!(at("running", late, never).started_at, late);
        assert_eq!(at("paused", early, never).state, ContainerState::Paused);
    }

    fn status_of(state: Value) -> ContainerStatus {
        let ask = Ask::new("inspect", "container", "web");
        status(&json!({ "State": state }), &ask).unwrap()
    }

    #[test]
    fn only_what_never_ran_counts_as_created() {
        for created in ["configured", "created", "initialized"] {
            let found = status_of(json!({ "Status": created }));
            assert_eq!(found.state, ContainerState::Created, "{created}");
        }
        let ask = Ask::new("inspect", "container", "web");
        for unknown in ["unknown", "bad state", ""] {
            let found = status(&json!({ "State": { "Status": unknown } }), &ask);
            assert!(found.unwrap_err().to_string().contains("not known"), "{unknown}");
        }
    }

    #[test]
    fn addresses_are_those_that_were_asked_for() {
        let id = "d271e1184eb8df261f0531f3e223d6422a6b9be340c4c067fd52c02c86ed286a";
        let documents = json!({
            "Inspect": { "Config": { "Hostname": "hh" }, "NetworkSettings": { "Networks": {
                "net1": { "IPAddress": "10.66.0.9" }, "net2": { "IPAddress": "10.89.0.2", "MacAddress": "5e:a6:a8:08:54:21" },
            } } },
            "Wishes": { "Networks": {
                "net1": { "static_ips": ["10.66.0.9"], "aliases": ["foo", "d271e1184eb8", "hh"] },
                "net2": { "aliases": ["d271e1184eb8", "hh"], "static_mac": "" },
            } },
        });
        let found = attachments(&documents, id);
        assert_eq!(found[0].fixed_addresses, ["10.66.0.9".parse::<IpAddr>().unwrap()]);
        assert_eq!(found[0].aliases, ["foo"]);
        assert!(found[1].fixed_addresses.is_empty() && found[1].mac_address.is_none());
    }
}
