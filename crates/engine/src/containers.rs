//! Containers: reading everything about one, and making one again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use tranship_core::container::{MountKind, MountSpec, RestartPolicy};
use tranship_core::engine::CreateRequest;
use tranship_core::ids::ContainerName;
use tranship_core::node::ImageStore;
use tranship_core::{ContainerId, ContainerSpec, Engine as _, EngineError, ImageSpec, NetworkSpec};

use crate::describe::{self, Surroundings};
use crate::docker::{DockerEngine, Identity};
use crate::fault::Ask;
use crate::images::may_be_containerd;
use crate::json::{at, entries, flag, items, text};
use crate::podman::check_mounts;
use crate::raw::escape;
use crate::recreate::{
    Joins, beforehand, carried, create_body, expected, further_endpoints, leaves_primary, losses,
};

/// How often the restart policy is set again where Podman fails to, and after what time. It has the runtime set the limits of what runs
/// again as well, which fails now and then right after a restore (seen with 5.4.2 and crun 1.21).
const PODMAN_UPDATES: u32 = 10;
const UPDATE_AGAIN: Duration = Duration::from_millis(300);

impl DockerEngine {
    pub(crate) async fn inspect_container(&self, name: &ContainerName) -> Result<ContainerSpec, EngineError> {
        let ask = Ask::new("inspect", "container", name.as_str());
        let document = self.document(name.as_str()).await?;
        let id = ContainerId::new(text(&document, &["Id"])).map_err(|error| ask.uncertain(error))?;
        let image_id = describe::image_id(&text(&document, &["Image"]), &ask)?;
        let image = self.image_document(image_id.as_str()).await?;
        let may_be_containerd = may_be_containerd(&image);
        // One that is not whole may be whole at a destination.
        let image = self.as_kept(describe::image(&image, &ask)?, &image).await?;

        let mut networks = Vec::new();
        for (network, endpoint) in entries(&document, &["NetworkSettings", "Networks"]) {
            if NetworkSpec::is_predefined(network) {
                continue;
            }
            // A container that never ran has no network ids yet; one may have been removed meanwhile.
            let network_id = text(endpoint, &["NetworkID"]);
            let by_id = if network_id.is_empty() {
                None
            } else {
                self.network(&network_id).await?
            };
            match by_id {
                Some(found) => networks.push(found),
                None => networks.extend(self.network(network).await?),
            }
        }
        let identity = self.identity().await?;
        let uncertain = match may_be_containerd && identity.store == ImageStore::Containerd {
            true => self.uncertain_platform(&identity, &document, &image).await,
            false => None,
        };
        let podman = self.podman.then(|| identity.clone());
        let around = Surroundings {
            desired_macs: self.records(&identity).and_then(|store| store.desired_macs(&id)),
            host_name: identity.host_name,
            default_runtime: identity.default_runtime,
            engine_major: identity.major,
            anonymous_volumes: self.anonymous_volumes(&document).await?,
            container_names: self.container_names(&document).await?,
        };
        let mut spec = describe::container(document, image, networks, &around, &ask)?;
        spec.ties.image_platform = uncertain;
        if let Some(identity) = podman {
            self.as_podman_has_it(&mut spec, &identity).await?;
        }
        Ok(spec)
    }

    /// Why it is not certain that a container runs what its image is taken for: with containerd's store one id may stand for the images
    /// of several platforms, and the engine describes the one that it likes best.
    async fn uncertain_platform(
        &self,
        identity: &Identity,
        document: &Value,
        image: &ImageSpec,
    ) -> Option<String> {
        // Docker 28 and later say it.
        if let Some(told) = describe::platform(document) {
            let shown = format!("{}/{} {}", told.os, told.architecture, told.variant);
            return (!told.is_of(image)).then(|| {
                format!(
                    "the container is for {}, the engine takes the image for {}/{}",
                    shown.trim_end(),
                    image.os,
                    image.architecture
                )
            });
        }
        match self.platforms_of(identity, &image.id).await {
            Some(0 | 1) => None,
            Some(count) => Some(format!(
                "{count} platforms of {} are here, and the engine does not say which of them the container is for",
                image.id
            )),
            None => Some(format!(
                "{} may stand for several platforms; the engine does not say which of them the container is for, and the agent cannot \
                 look into containerd",
                image.id
            )),
        }
    }

    /// The volumes of a container that the engine labelled as named by itself (Docker ≥ 24).
    async fn anonymous_volumes(&self, document: &Value) -> Result<BTreeSet<String>, EngineError> {
        let mut anonymous = BTreeSet::new();
        for mount in items(document, &["Mounts"]) {
            let name = text(mount, &["Name"]);
            if text(mount, &["Type"]) != "volume" || describe::is_generated_name(&name) {
                continue;
            }
            let ask = Ask::new("inspect", "volume", &name);
            match self.raw.get(&format!("/volumes/{}", escape(&name)), &ask).await {
                Ok(volume) if !at(&volume, &["Labels", "com.docker.volume.anonymous"]).is_null() => {
                    anonymous.insert(name);
                }
                Ok(_) | Err(EngineError::NotFound { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(anonymous)
    }

    /// Names of the containers whose namespaces this one shares.
    async fn container_names(&self, document: &Value) -> Result<BTreeMap<String, String>, EngineError> {
        let mut names = BTreeMap::new();
        for (_, id) in describe::shared_namespaces(document) {
            match self.document(&id).await {
                Ok(other) => {
                    let name = text(&other, &["Name"]).trim_start_matches('/').to_owned();
                    names.insert(id, name);
                }
                Err(EngineError::NotFound { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(names)
    }

    pub(crate) async fn recreate(&self, request: &CreateRequest) -> Result<ContainerId, EngineError> {
        let ask = Ask::new("create", "container", &request.name);
        let name = ContainerName::new(request.name.as_str()).map_err(|error| EngineError::Unsupported {
            message: error.to_string(),
        })?;
        let (image, image_config) = self.image_for(request).await?;
        // Before anything is made: what cannot be asked for at all.
        if self.podman {
            check_mounts(request)?;
        } else {
            create_body(request, &image_config, &image, self.joins())?;
        }
        self.refuse_taken_volumes(request).await?;
        self.require_carried_volumes(request).await?;
        // Known to be free, so that what bears the name after an answer that broke off is ours.
        match self.document(name.as_str()).await {
            Err(EngineError::NotFound {
                what: "container", ..
            }) => {}
            Err(other) => return Err(other),
            Ok(_) => {
                return Err(EngineError::Conflict {
                    action: ask.action,
                    message: format!("the name {name} is in use"),
                });
            }
        }

        let mut request = request.clone();
        let mut volumes = Vec::new();
        let made = match self.make_beforehand(&mut request, &mut volumes).await {
            Ok(()) => {
                self.recreate_as(&name, &request, &image, &image_config, &ask)
                    .await
            }
            Err(error) => Err(error),
        };
        if made.is_err() {
            for volume in volumes {
                if let Err(left) = self.remove_volume(&volume).await {
                    tracing::error!(%volume, error = %left, "a volume of a half-made container could not be removed");
                }
            }
        }
        made
    }

    /// Makes the anonymous volumes that the create body cannot ask for, and lets the request carry them by name.
    async fn make_beforehand(
        &self,
        request: &mut CreateRequest,
        volumes: &mut Vec<String>,
    ) -> Result<(), EngineError> {
        for volume in beforehand(request) {
            let name = self
                .make_anonymous_volume(&volume.driver, &volume.options, &volume.labels)
                .await?;
            volumes.push(name.clone());
            for path in volume.paths {
                request.carried.insert(path, name.clone());
            }
        }
        Ok(())
    }

    async fn recreate_as(
        &self,
        name: &ContainerName,
        request: &CreateRequest,
        image: &str,
        image_config: &Value,
        ask: &Ask,
    ) -> Result<ContainerId, EngineError> {
        if self.podman {
            return self
                .podman_recreate(name, request, image, image_config, ask)
                .await;
        }
        let body = create_body(request, image_config, image, self.joins())?;
        let wanted = expected(request, image_config, image)?;
        let path = format!("/containers/create?name={}", escape(name.as_str()));
        let id = self.make(&path, &body, request, name, ask).await?;
        let done = self.complete(&id, request, &wanted, ask).await;
        self.kept_if(done, id).await
    }

    /// Has the engine make a container by this call. What may have been made without an answer is removed again.
    pub(crate) async fn make(
        &self,
        path: &str,
        body: &Value,
        request: &CreateRequest,
        name: &ContainerName,
        ask: &Ask,
    ) -> Result<ContainerId, EngineError> {
        let made = match self.raw.post(path, body, ask).await {
            Ok(answer) => {
                for warning in items(&answer, &["Warnings"]) {
                    tracing::warn!(container = %name, %warning, "the engine warns about the new container");
                }
                ContainerId::new(text(&answer, &["Id"])).map_err(|error| ask.uncertain(error))
            }
            Err(error) => Err(error),
        };
        if let Err(EngineError::Uncertain { .. }) = made {
            self.remove_unsure(name, request).await;
        }
        made
    }

    /// The container that was made, if it is as it has to be; else it is removed again.
    pub(crate) async fn kept_if(
        &self,
        done: Result<(), EngineError>,
        id: ContainerId,
    ) -> Result<ContainerId, EngineError> {
        let Err(error) = done else { return Ok(id) };
        if let Err(left) = self.remove_container(&id).await {
            tracing::error!(container = %id, error = %left, "a half-made container could not be removed");
        }
        Err(error)
    }

    fn joins(&self) -> Joins {
        let version = self.docker.client_version();
        if (version.major_version, version.minor_version) >= (1, 44) {
            Joins::All
        } else {
            Joins::Primary
        }
    }

    /// Connects the new container to its further networks and compares it with what it should be.
    async fn complete(
        &self,
        id: &ContainerId,
        request: &CreateRequest,
        wanted: &Value,
        ask: &Ask,
    ) -> Result<(), EngineError> {
        for (network, endpoint) in further_endpoints(request, self.joins()) {
            let ask = Ask::new("connect the container to", "network", &network);
            let path = format!("/networks/{}/connect", escape(&network));
            let body = json!({ "Container": id.as_str(), "EndpointConfig": endpoint });
            self.raw.post(&path, &body, &ask).await?;
        }
        let mut document = self.document(id.as_str()).await?;
        let joined = |network: &&str| !at(&document, &["NetworkSettings", "Networks", network]).is_null();
        if let Some(network) = leaves_primary(&request.spec).filter(joined) {
            let ask = Ask::new("take the container off", "network", network);
            let path = format!("/networks/{}/disconnect", escape(network));
            let body = json!({ "Container": id.as_str(), "Force": true });
            self.raw.post(&path, &body, &ask).await?;
            document = self.document(id.as_str()).await?;
        }
        if let Some(told) = describe::platform(&document).filter(|told| !told.is_of(&request.spec.image)) {
            return Err(EngineError::Conflict {
                action: ask.action.clone(),
                message: format!(
                    "the engine made it for {}/{} {}, from an image for several platforms",
                    told.os, told.architecture, told.variant
                ),
            });
        }
        let image = describe::image_id(&text(&document, &["Image"]), ask)?;
        if image != request.spec.image.id {
            return Err(EngineError::Conflict {
                action: ask.action.clone(),
                message: format!(
                    "{} means image {image} there, not {}",
                    request.spec.image_reference, request.spec.image.id
                ),
            });
        }
        let lost = losses(wanted, &document);
        if lost.is_empty() {
            return Ok(());
        }
        Err(EngineError::Unsupported {
            message: format!(
                "the engine made the container otherwise than asked: {}",
                lost.join("; ")
            ),
        })
    }

    /// How the image is called here, and its configuration: the source's reference where it means the same image, else
    /// the id. A reference by digest is known only where the image was pulled.
    async fn image_for(&self, request: &CreateRequest) -> Result<(String, Value), EngineError> {
        let spec = &request.spec;
        let ask = Ask::new("inspect", "image", &spec.image_reference);
        let by_reference = match self.image_document(&spec.image_reference).await {
            Err(EngineError::NotFound { .. }) => None,
            other => Some(other?),
        };
        let (name, document) = match by_reference {
            Some(document) if describe::image_id(&text(&document, &["Id"]), &ask)? == spec.image.id => {
                (spec.image_reference.clone(), document)
            }
            _ => {
                let id = spec.image.id.to_string();
                let document = self.image_document(&id).await?;
                (id, document)
            }
        };
        // One id may stand for the images of several platforms: the program of another one is no program for this layer.
        let here = describe::image(&document, &ask)?;
        if !self.podman && may_be_containerd(&document) && !here.is_whole(&spec.image) {
            return Err(EngineError::Conflict {
                action: format!("make a container from image {}", spec.image.id),
                message: format!(
                    "the engine takes it for the image for {}/{} {} there, and the container is for {}/{} {}",
                    here.os,
                    here.architecture,
                    here.variant,
                    spec.image.os,
                    spec.image.architecture,
                    spec.image.variant
                ),
            });
        }
        Ok((name, at(&document, &["Config"]).clone()))
    }

    /// A named volume that is there already would not be an empty one.
    async fn refuse_taken_volumes(&self, request: &CreateRequest) -> Result<(), EngineError> {
        let named = |mount: &&MountSpec| {
            mount.kind == MountKind::Volume && !mount.anonymous && carried(request, mount).is_none()
        };
        let mut wanted = request.spec.mounts.iter().filter(named).peekable();
        if wanted.peek().is_none() {
            return Ok(());
        }
        let present: BTreeSet<String> = self.volumes().await?.into_iter().collect();
        match wanted.find(|mount| present.contains(&mount.name)) {
            Some(mount) => Err(EngineError::Conflict {
                action: format!("create volume {}", mount.name),
                message: "a volume of this name is there already, with files of its own".into(),
            }),
            None => Ok(()),
        }
    }

    /// A volume that is not there would be made by the engine, without the options and the files of the old one.
    async fn require_carried_volumes(&self, request: &CreateRequest) -> Result<(), EngineError> {
        let names = request.spec.mounts.iter().filter(|m| m.kind == MountKind::Volume);
        let names: BTreeSet<&str> = names
            .filter_map(|mount| carried(request, mount))
            .filter(|name| !name.is_empty())
            .collect();
        for name in names {
            self.volume(name).await?;
        }
        Ok(())
    }

    /// After an answer that broke off: removes what was made under the name, if it is what was asked for.
    pub(crate) async fn remove_unsure(&self, name: &ContainerName, request: &CreateRequest) {
        let Ok(document) = self.document(name.as_str()).await else {
            return;
        };
        let ours = text(&document, &["State", "Status"]) == "created"
            && text(&document, &["Image"]).ends_with(request.spec.image.id.hex());
        if let (true, Ok(id)) = (ours, ContainerId::new(text(&document, &["Id"])))
            && let Err(error) = self.remove_container(&id).await
        {
            tracing::error!(container = %name, %error, "a half-made container could not be removed");
        }
    }

    pub(crate) async fn update_restart_policy(
        &self,
        id: &ContainerId,
        policy: &RestartPolicy,
    ) -> Result<(), EngineError> {
        let document = self.document(id.as_str()).await?;
        let current = describe::restart_policy(&document);
        let same = *policy == current || (policy.is_never() && current.is_never());
        // The engine refuses any update of the policy for these; they have none to begin with.
        let without = flag(&document, &["HostConfig", "AutoRemove"]) && policy.is_never();
        if same || without {
            return Ok(());
        }
        let ask = Ask::new("set the restart policy of", "container", id.as_str());
        let body = json!({ "RestartPolicy": crate::recreate::restart_policy(policy) });
        let path = format!("/containers/{}/update", id.as_str());
        let mut more = if self.podman { PODMAN_UPDATES } else { 0 };
        loop {
            match self.raw.post(&path, &body, &ask).await {
                Err(EngineError::Failed { message, .. }) if more > 0 => {
                    tracing::debug!(container = %id, %message, "the restart policy is set again");
                    more -= 1;
                    tokio::time::sleep(UPDATE_AGAIN).await;
                }
                done => return done.map(|_| ()),
            }
        }
    }
}
