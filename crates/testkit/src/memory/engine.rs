//! The port, method by method: each is one counted call.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tranship_core::container::{
    ContainerSpec, ContainerState, ContainerStatus, ContainerSummary, LayerChanges, RestartPolicy,
};
use tranship_core::engine::{ByteStream, CreateRequest, ExecOutcome, ImageArchive};
use tranship_core::ids::{ContainerName, Digest};
use tranship_core::image::common_layers;
use tranship_core::memory::{DumpKind, Dumped, LiveFacts};
use tranship_core::node::EngineFacts;
use tranship_core::storage::{ElementAt, ElementPlace, VolumeSpec, VolumeUser};
use tranship_core::{ContainerId, Engine, EngineError, ImageSpec, NetworkSpec};

use super::state::conflict;
use super::{Contents, MemoryEngine, facts, live_facts};

#[async_trait]
impl Engine for MemoryEngine {
    async fn facts(&self) -> Result<EngineFacts, EngineError> {
        self.call("facts", |_| Ok(facts()))
    }

    async fn inspect(&self, container: &ContainerName) -> Result<ContainerSpec, EngineError> {
        self.call("inspect", |s| {
            let found = s
                .containers
                .values()
                .find(|c| c.spec.name == container.as_str() || c.spec.id.as_str() == container.as_str())
                .ok_or_else(|| EngineError::NotFound {
                    what: "container",
                    name: container.to_string(),
                })?;
            let mut spec = found.spec.clone();
            spec.status.state = found.state;
            spec.restart_policy = found.policy.clone();
            Ok(spec)
        })
    }

    async fn status(&self, container: &ContainerId) -> Result<ContainerStatus, EngineError> {
        self.call("status", |s| {
            let health = s.health;
            let found = s.container(container)?;
            let mut status = found.spec.status.clone();
            status.state = found.state;
            if let Some(health) = health {
                status.health = health;
            }
            Ok(status)
        })
    }

    async fn containers(&self) -> Result<Vec<ContainerSummary>, EngineError> {
        self.call("containers", |s| {
            Ok(s.containers
                .values()
                .map(|c| ContainerSummary {
                    id: c.spec.id.clone(),
                    names: vec![c.spec.name.clone()],
                    state: c.state.to_string(),
                    ports: c.spec.ports.clone(),
                })
                .collect())
        })
    }

    async fn layer_changes(&self, _container: &ContainerId) -> Result<LayerChanges, EngineError> {
        self.call("layer changes", |_| Ok(LayerChanges::default()))
    }

    async fn image(&self, reference: &str) -> Result<Option<ImageSpec>, EngineError> {
        self.call("image", |s| Ok(s.image(reference)))
    }

    async fn layers_held(&self, layers: &[Digest]) -> Result<usize, EngineError> {
        self.call("layers held", |s| {
            Ok(common_layers(
                layers,
                s.images.values().map(|i| i.layers.as_slice()),
            ))
        })
    }

    async fn archive_sizes(&self, image: &ImageSpec, _tag: Option<&str>) -> Result<Vec<u64>, EngineError> {
        self.call("archive sizes", |_| {
            Ok((0..=image.layers.len()).rev().map(|n| 1000 * n as u64).collect())
        })
    }

    async fn export_image(
        &self,
        image: &ImageSpec,
        tag: Option<&str>,
        skip: usize,
    ) -> Result<ImageArchive, EngineError> {
        let tags: Vec<String> = tag.into_iter().map(str::to_owned).collect();
        self.call("export image", |_| {
            let mut archived = image.clone();
            archived.tags = tags;
            let head = serde_json::to_vec(&(archived, skip)).unwrap_or_default();
            let parts = vec![Ok(Bytes::from(head)), Ok(Bytes::from_static(b"\n"))];
            Ok(ImageArchive {
                length: None,
                stream: stream::iter(parts).boxed(),
            })
        })
    }

    async fn import_image(&self, mut archive: ByteStream) -> Result<(), EngineError> {
        let mut all = Vec::new();
        while let Some(part) = archive.next().await {
            all.extend_from_slice(&part?);
        }
        // As a real engine: what it has received as a whole it takes in, whether or not somebody still waits for it.
        let (state, takes) = (Arc::clone(&self.state), self.with(|s| s.import_takes));
        let work = async move {
            tokio::time::sleep(takes).await;
            Self { state }.take_in(&all)
        };
        match tokio::spawn(work).await {
            Ok(done) => done,
            Err(error) => Err(EngineError::Uncertain {
                action: "load".into(),
                message: error.to_string(),
            }),
        }
    }

    async fn tag_image(&self, image: &Digest, tag: &str) -> Result<(), EngineError> {
        self.call("tag image", |s| {
            s.tags.insert(tag.to_owned(), image.to_string());
            Ok(())
        })
    }

    async fn remove_image(&self, reference: &str) -> Result<(), EngineError> {
        self.call("remove image", |s| {
            match s.tags.remove(reference) {
                // As Docker: the image goes with its last tag.
                Some(id) if !s.tags.values().any(|i| *i == id) => {
                    s.images.remove(&id);
                }
                Some(_) => {}
                None => {
                    s.images.remove(reference);
                    s.tags.retain(|_, id| id != reference);
                }
            }
            Ok(())
        })
    }

    async fn networks(&self) -> Result<Vec<NetworkSpec>, EngineError> {
        self.call("networks", |s| Ok(s.networks.values().cloned().collect()))
    }

    async fn create_network(&self, spec: &NetworkSpec, _new_subnets: bool) -> Result<String, EngineError> {
        self.call("create network", |s| {
            let id = s.new_id().to_string();
            s.networks.insert(
                id.clone(),
                NetworkSpec {
                    id: id.clone(),
                    used: BTreeMap::new(),
                    ..spec.clone()
                },
            );
            Ok(id)
        })
    }

    async fn remove_network(&self, id: &str) -> Result<(), EngineError> {
        self.call("remove network", |s| {
            s.networks.remove(id);
            Ok(())
        })
    }

    async fn volumes(&self) -> Result<Vec<String>, EngineError> {
        self.call("volumes", |s| Ok(s.volumes.keys().cloned().collect()))
    }

    async fn volume_specs(&self) -> Result<Vec<VolumeSpec>, EngineError> {
        self.call("volume specs", |s| Ok(s.volume_specs()))
    }

    async fn path_users(&self, path: &str) -> Result<Vec<VolumeUser>, EngineError> {
        self.call("path users", |s| Ok(s.path_users(path)))
    }

    async fn create_volume(&self, spec: &VolumeSpec) -> Result<(), EngineError> {
        self.call("create volume", |s| {
            if s.volumes.contains_key(&spec.name) {
                return Err(conflict("create volume", "it is there already"));
            }
            s.add_volume(spec);
            Ok(())
        })
    }

    async fn locate(&self, element: &ElementAt) -> Result<ElementPlace, EngineError> {
        self.call("locate", |s| s.locate(element))
    }

    async fn release(&self, place: &ElementPlace) -> Result<(), EngineError> {
        self.call("release", |s| {
            if let ElementPlace::Archive { container, .. } = place
                && s.helpers.remove(container.as_str())
            {
                s.containers.remove(container.as_str());
            }
            Ok(())
        })
    }

    async fn export_path(&self, container: &ContainerId, path: &str) -> Result<ByteStream, EngineError> {
        self.call("export path", |s| {
            let contents = s.contents_at(container, path)?;
            let bytes = serde_json::to_vec(&contents).unwrap_or_default();
            Ok(stream::iter([Ok(Bytes::from(bytes))]).boxed())
        })
    }

    async fn import_path(
        &self,
        container: &ContainerId,
        path: &str,
        mut archive: ByteStream,
    ) -> Result<(), EngineError> {
        let mut all = Vec::new();
        while let Some(part) = archive.next().await {
            all.extend_from_slice(&part?);
        }
        self.call("import path", |s| {
            let more: Contents = serde_json::from_slice(&all).map_err(|e| EngineError::Corrupt {
                what: "archive".into(),
                message: e.to_string(),
            })?;
            s.import(container, path, more)
        })
    }

    async fn pause(&self, container: &ContainerId) -> Result<(), EngineError> {
        self.call("pause", |s| {
            s.change(
                container,
                "pause",
                ContainerState::Running,
                ContainerState::Paused,
            )
        })
    }

    async fn unpause(&self, container: &ContainerId) -> Result<(), EngineError> {
        self.call("unpause", |s| {
            s.change(
                container,
                "unpause",
                ContainerState::Paused,
                ContainerState::Running,
            )
        })
    }

    async fn kill(&self, container: &ContainerId) -> Result<(), EngineError> {
        self.call("kill", |s| s.end(container, 128 + 9))
    }

    async fn live_facts(&self) -> Result<LiveFacts, EngineError> {
        self.call("live facts", |_| Ok(live_facts()))
    }

    async fn dump(&self, element: &ElementAt, kind: DumpKind) -> Result<Dumped, EngineError> {
        self.call("dump", |s| s.dump(element, kind))
    }

    async fn clear_dump(&self, element: &ElementAt) -> Result<(), EngineError> {
        self.call("clear dump", |s| s.clear_dump(element))
    }

    async fn has_dump(&self, element: &ElementAt) -> Result<bool, EngineError> {
        self.call("has dump", |s| s.has_dump(element))
    }

    async fn restore(&self, element: &ElementAt) -> Result<(), EngineError> {
        let restored = self.call("restore", |s| s.restore(element));
        if let (Err(EngineError::Failed { .. }), ElementAt::Memory { container, .. }) = (&restored, element) {
            // As Docker notes it of a start that failed.
            self.alter(container, |c| c.spec.status.exit_code = 128);
        }
        restored
    }

    async fn forget(&self, element: &ElementAt) -> Result<(), EngineError> {
        self.call("forget", |s| s.forget(element))
    }

    async fn exec(
        &self,
        container: &ContainerId,
        command: &str,
        _timeout: Duration,
    ) -> Result<ExecOutcome, EngineError> {
        self.call("exec", |s| {
            if s.container(container)?.state != ContainerState::Running {
                return Err(conflict("run a command", "the container does not run"));
            }
            s.execs.push((container.clone(), command.to_owned()));
            let usual = ExecOutcome {
                exit_code: Some(0),
                output: String::new(),
            };
            Ok(s.outcomes.get(command).cloned().unwrap_or(usual))
        })
    }

    async fn remove_volume(&self, name: &str) -> Result<(), EngineError> {
        self.call("remove volume", |s| {
            if s.users_of(name).next().is_some() {
                return Err(conflict("remove volume", "volume is in use"));
            }
            s.remove_volume(name);
            Ok(())
        })
    }

    async fn create_container(&self, request: &CreateRequest) -> Result<ContainerId, EngineError> {
        self.call("create container", |s| {
            if s.containers.values().any(|c| c.spec.name == request.name) {
                return Err(EngineError::Conflict {
                    action: "create".into(),
                    message: "the name is in use".into(),
                });
            }
            s.create(request)
        })
    }

    async fn start(&self, container: &ContainerId) -> Result<(), EngineError> {
        self.call("start", |s| {
            let found = s.container(container)?;
            if found.state == ContainerState::Paused {
                return Err(conflict(
                    "start",
                    "cannot start a paused container, try unpause instead",
                ));
            }
            if found.state != ContainerState::Running {
                found.state = ContainerState::Running;
                // It begins afresh.
                s.storage.set(s.heap_path(container), Contents::new());
            }
            Ok(())
        })
    }

    async fn stop(&self, container: &ContainerId, _timeout: Option<Duration>) -> Result<(), EngineError> {
        self.call("stop", |s| s.end(container, 0))
    }

    async fn remove_container(&self, container: &ContainerId) -> Result<(), EngineError> {
        self.call("remove container", |s| {
            s.remove_container(container, true);
            Ok(())
        })
    }

    async fn remove_container_only(&self, container: &ContainerId) -> Result<(), EngineError> {
        self.call("remove container only", |s| {
            s.remove_container(container, false);
            Ok(())
        })
    }

    async fn rename(&self, container: &ContainerId, name: &str) -> Result<(), EngineError> {
        self.call("rename", |s| {
            s.container(container)?.spec.name = name.to_owned();
            Ok(())
        })
    }

    async fn set_restart_policy(
        &self,
        container: &ContainerId,
        policy: &RestartPolicy,
    ) -> Result<(), EngineError> {
        self.call("set restart policy", |s| {
            s.container(container)?.policy = policy.clone();
            Ok(())
        })
    }

    async fn log_tail(&self, _container: &ContainerId, _lines: usize) -> Result<Vec<String>, EngineError> {
        self.call("log tail", |_| Ok(vec!["its last line".into()]))
    }
}
