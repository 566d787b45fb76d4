//! Taking back what an arrival changed, from its notes alone.

use tranship_core::ids::Digest;
use tranship_core::storage::ElementAt;
use tranship_core::{EngineError, Fault, MigrationId};

use super::Arrival;
use crate::record::{ArrivalRecord, Undo};

impl Arrival {
    /// At the end of a migration that went well: what made way goes for good.
    pub(super) async fn let_go(&self, note: &Undo) -> Result<(), Fault> {
        match note {
            Undo::SetAside { id, .. } => self.ports.engine.remove_container_only(id).await?,
            Undo::Aside { at, key } => {
                let place = self.ports.directory(at).await?;
                self.ports.storage.drop_aside(&place, key).await?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes one note back.
    pub(super) async fn undo(&self, note: &Undo, record: &ArrivalRecord) -> Result<(), Fault> {
        match note {
            Undo::Volume { name, guid } => self.keep_partial(name, guid).await,
            Undo::Aside { at, key } => {
                let place = self.ports.directory(at).await?;
                self.ports.storage.put_back(&place, key).await?;
            }
            Undo::Directory { path } => {
                let at = ElementAt::Bind { path: path.clone() };
                let place = self.ports.directory(&at).await?;
                self.ports.storage.remove(&place).await?;
            }
            _ => {}
        }
        self.undo_at_engine(note, record).await.map_err(Fault::from)
    }

    async fn undo_at_engine(&self, note: &Undo, record: &ArrivalRecord) -> Result<(), EngineError> {
        match note {
            Undo::Container { id: Some(id), .. } => self.ports.engine.remove_container(id).await,
            Undo::Container { name, id: None } => {
                // The crash came between making it and noting its id. The name was free before, so what bears it now
                // was made by this migration, unless it was made from another image.
                let Ok(reference) = tranship_core::ids::ContainerName::new(name.clone()) else {
                    return Ok(());
                };
                match self.ports.engine.inspect(&reference).await {
                    Ok(spec) if spec.image.id == record.plan.transfer.image.id => {
                        self.ports.engine.remove_container(&spec.id).await
                    }
                    Ok(_) | Err(EngineError::NotFound { .. }) => Ok(()),
                    Err(error) => Err(error),
                }
            }
            Undo::SetAside {
                id,
                name,
                was_running,
                policy,
            } => {
                let aside = aside_name(name, record.plan.id.as_str());
                let renamed = self
                    .ports
                    .engine
                    .containers()
                    .await?
                    .iter()
                    .any(|c| &c.id == id && c.names.contains(&aside));
                if renamed {
                    self.ports.engine.rename(id, name).await?;
                }
                self.ports.engine.set_restart_policy(id, policy).await?;
                if *was_running {
                    self.ports.engine.start(id).await?;
                }
                Ok(())
            }
            Undo::Volume { name, .. } => self.ports.engine.remove_volume(name).await,
            Undo::Aside { .. } | Undo::Directory { .. } => Ok(()),
            Undo::Network { id: Some(id), .. } => self.ports.engine.remove_network(id).await,
            Undo::Network { name, id: None } => {
                let made = self
                    .ports
                    .engine
                    .networks()
                    .await?
                    .into_iter()
                    .find(|n| &n.name == name && n.used.is_empty());
                match made {
                    Some(network) => self.ports.engine.remove_network(&network.id).await,
                    None => Ok(()),
                }
            }
            Undo::Tag { tag, previous } => {
                let now = self.ports.engine.image(tag).await?.map(|i| i.id);
                if now.as_ref() != Some(&record.plan.transfer.image.id) {
                    return Ok(());
                }
                match previous
                    .as_ref()
                    .and_then(|p| tranship_core::ids::Digest::new(p.clone()).ok())
                {
                    Some(previous) => self.ports.engine.tag_image(&previous, tag).await,
                    None if self.only_name(tag, record).await? => Err(EngineError::Unsupported {
                        message: "it stays: the image was here before without a tag, and would go with it"
                            .into(),
                    }),
                    None => self.ports.engine.remove_image(tag).await,
                }
            }
            Undo::Image { id } => self.ports.engine.remove_image(id).await,
        }
    }
}

impl Arrival {
    /// Whether an image that was here before the migration has no other tag: engines remove an image with its last one.
    async fn only_name(&self, tag: &str, record: &ArrivalRecord) -> Result<bool, EngineError> {
        let image = &record.plan.transfer.image.id;
        let brought = Undo::Image {
            id: image.to_string(),
        };
        if record.undo.contains(&brought) {
            return Ok(false);
        }
        let here = self.ports.engine.image(image.as_str()).await?;
        Ok(here.is_some_and(|here| here.tags.iter().all(|other| other == tag)))
    }
}

pub(super) fn aside_name(name: &str, migration: &str) -> String {
    format!("{name}.replaced-{migration}")
}

pub(super) fn describe(note: &Undo) -> String {
    match note {
        Undo::Image { id } => format!("the image {id}"),
        Undo::Tag { tag, .. } => format!("the image tag {tag}"),
        Undo::Network { name, .. } => format!("the network {name:?}"),
        Undo::Volume { name, .. } => format!("the volume {name:?}"),
        Undo::Aside { at, .. } => format!("what {at} held before"),
        Undo::Directory { path } => format!("the directory {path}"),
        Undo::SetAside { name, .. } => format!("the container {name:?} that made way"),
        Undo::Container { name, .. } => format!("the container {name:?}"),
    }
}

/// The key under which data that made way for a migration is kept.
pub(super) fn aside_key(migration: &MigrationId, at: &ElementAt) -> String {
    let element = Digest::of(at.to_string().as_bytes());
    format!(
        "replaced-{migration}-{}",
        element.hex().get(..16).unwrap_or_default()
    )
}
