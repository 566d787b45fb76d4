//! Checkpoints that leave their node as archives, and come back.
//!
//! What a node takes back is what it exported itself, into the container that it is of, and only as long as that container has not
//! gone on from it: an ended container has to be in the very run that it was ended in, and the node's own note of the export has to
//! know of no restore and no move. So an archive is never worth more than the checkpoint would be, had it stayed.

use std::io;

use bytes::Bytes;
use futures_util::Stream;
use serde_json::{Value, json};
use tranship_core::container::MountKind;
use tranship_core::fault::FaultKind;
use tranship_core::ids::CheckpointName;
use tranship_core::{ContainerSpec, EngineError, Fault};
use tranship_migrate::failpoint;

use super::archive::{Document, Export, Incoming, Versions};
use super::create::{new_id, room_for};
use super::error::CheckpointError;
use super::oci_image::{ImageExport, ImageFacts};
use super::store::{About, Kept, New, Store};
use super::{
    ArchiveMemory, CheckpointInfo, Checkpoints, ExportCheckpoint, ImportCheckpoint, blocking, find, info_of,
    not_found, restore,
};
use crate::files::bridge::{self, Pieces};

impl Checkpoints {
    /// A checkpoint as an archive, or as an image. An error ends the stream before the archive's own end.
    ///
    /// # Errors
    /// `checkpoint.not-found`; `checkpoint.used` and others where nothing can go on from it any more; `checkpoint.key`;
    /// `checkpoint.oci-encrypted`; what the engine says.
    pub async fn export(&self, asked: &ExportCheckpoint) -> Result<Pieces, Fault> {
        if asked.oci && asked.memory == ArchiveMemory::Encrypted {
            return Err(oci_encrypted());
        }
        let store = self.store().await?;
        let named = self.named(&asked.container).await?;
        let kept = find(&store, &asked.container, named.as_ref(), asked.name.as_ref())?
            .ok_or_else(|| not_found(&asked.container, asked.name.as_ref()))?;
        let Some(spec) = self.spec_of(&kept.about.begun.container).await? else {
            return Err(restore::gone(&kept));
        };
        let on = |fault: Fault| fault.on_container(spec.name.clone());
        self.is_worth_a_copy(&kept, &spec).map_err(on)?;
        // From here on there may be a copy, of which the note has to be there before. What was done with the checkpoint before it was
        // made is seen by a look after it, and whoever does something later finds the note.
        store.receipt(&kept.about)?.make()?;
        failpoint::reach("checkpoint.noted").await?;
        let Some(spec) = self.spec_of(&kept.about.begun.container).await? else {
            return Err(restore::gone(&kept));
        };
        self.is_worth_a_copy(&kept, &spec).map_err(on)?;
        let engine = self.engine().facts().await?;
        let criu = self.engine().live_facts().await?.criu;
        let facts = ImageFacts::new(&spec, &kept.about, &engine, &criu);
        let archive = Export {
            file: kept.memory(),
            context: kept.context.clone(),
            about: kept.about.clone(),
            key: self.node_key(false).await?,
            exported_by: Versions {
                tranship: env!("CARGO_PKG_VERSION").to_owned(),
                engine: engine.version,
                criu,
            },
            documents: documents(&spec).map_err(on)?,
            memory: asked.memory,
            compress: asked.compress,
        };
        let oci = asked.oci;
        let pieces = bridge::writer(move |out| {
            let written = if oci {
                ImageExport { archive, facts }.write(out)
            } else {
                archive.write(out)
            };
            written.map_err(Fault::from)
        });
        pieces.await.map_err(on)
    }

    /// Whether a restore of it, now or later, could be allowed.
    fn is_worth_a_copy(&self, kept: &Kept, spec: &ContainerSpec) -> Result<(), Fault> {
        if self.has_moved(kept, spec)? {
            return Err(moved(&kept.about, spec));
        }
        Ok(restore::is_good(kept, spec)?)
    }

    /// Brings a checkpoint back from an archive. Nothing of it is kept unless it is whole.
    ///
    /// # Errors
    /// `checkpoint.archive`, `checkpoint.foreign`, `checkpoint.other-container`, `checkpoint.not-exported`, `checkpoint.present`,
    /// `checkpoint.exists`; what stands in the way of a restore for good (`checkpoint.started-since`, `checkpoint.used`,
    /// `container.moved`); what else is done with the container meanwhile (`container.changed`); what the engine says. It is there all
    /// the same after `checkpoint.not-parked`.
    pub async fn import(
        &self,
        asked: &ImportCheckpoint,
        archive: impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static,
    ) -> Result<CheckpointInfo, Fault> {
        let store = self.store().await?;
        let spec = self.engine().inspect(&asked.container).await?;
        let on = |fault: Fault| fault.on_container(spec.name.clone());
        let key = self.node_key(false).await?;
        let input = bridge::reader(archive);
        let incoming = blocking(move || Incoming::open(input, &key)).await.map_err(on)?;
        let about = incoming.description.checkpoint.clone();
        // Told before anything of the container is held.
        self.may_come_back(&store, &about, &spec).await.map_err(on)?;
        let _hold = self.registry.hold(&new_id()?, &spec)?;
        let name = asked.name.clone().unwrap_or_else(|| about.name.clone());
        if store.holds(&spec.id, &name) {
            return Err(on(Fault::of(&CheckpointError::Exists {
                container: spec.name.clone(),
                name: name.to_string(),
            })));
        }
        room_for(&store, about.image_bytes)?;
        let new = store.make_new(&spec.id, &name)?;
        let (kept, seen) = match self.bring_back(&store, &new, incoming, name).await {
            Ok(back) => back,
            Err(fault) => {
                // Its naming may have failed after it had its name.
                return match new.where_it_is().map_or(Ok(()), |new| new.remove()) {
                    Ok(()) => Err(on(fault)),
                    Err(left) => Err(on(Fault::from(left).because(fault.to_string()))),
                };
            }
        };
        let seen = self.await_it(&kept, seen).await.map_err(on)?;
        // It is done, whatever the engine says from here on. What is held is not moved.
        Ok(info_of(&kept, seen.as_ref(), false))
    }

    /// Parks the restart policy of the container, which waits for a checkpoint that came back: its engine would start it afresh at
    /// the next restart. `first` is how it was when the checkpoint was described. Gives how it is now.
    ///
    /// # Errors
    /// `container.changed`, `checkpoint.started-since`, `checkpoint.container-gone`; what the engine says: the checkpoint is gone again, and
    /// the policy is as it was found. `checkpoint.not-parked`: the checkpoint is there.
    async fn await_it(&self, kept: &Kept, first: ContainerSpec) -> Result<Option<ContainerSpec>, Fault> {
        let begun = &kept.about.begun;
        let (container, name) = (first.name.clone(), kept.about.name.to_string());
        let started = |spec: &ContainerSpec| spec.status.started_at != begun.started_at;
        let since = || {
            Fault::of(&CheckpointError::StartedSince {
                container: container.clone(),
                name: name.clone(),
            })
        };
        if begun.leave_running {
            // It waits for nothing.
            return Ok(self.spec_of(&begun.container).await.unwrap_or(Some(first)));
        }
        // Asked again: it took a while since, and what its checkpoint says of the policy is what comes back.
        let stands = match self.spec_of(&begun.container).await {
            // The engine may forget it.
            Ok(Some(spec)) if started(&spec) => {
                Err(kept.started_since().map_or_else(Fault::from, |()| since()))
            }
            Ok(Some(spec)) if spec.restart_policy != first.restart_policy => Err(changed()),
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(restore::gone(kept)),
            Err(fault) => Err(fault),
        };
        if let Err(fault) = stands {
            kept.remove()?;
            return Err(fault);
        }
        let not_parked = |error: EngineError| {
            Fault::of(&CheckpointError::NotParked {
                container: container.clone(),
                name: name.clone(),
            })
            .because(error.to_string())
        };
        // It may be parked, and nothing but the checkpoint knows then what it was.
        self.park(begun).await.map_err(not_parked)?;
        failpoint::reach("checkpoint.parked").await?;
        let now = match self.spec_of(&begun.container).await {
            Ok(Some(now)) => now,
            Ok(None) => return Ok(None),
            Err(fault) => {
                tracing::warn!("{container} is not looked at again: {fault}");
                return Ok(Some(first));
            }
        };
        if started(&now) {
            self.unpark(begun, &now).await.map_err(not_parked)?;
            kept.started_since()?;
            kept.remove()?;
            return Err(since());
        }
        Ok(Some(now))
    }

    /// Whether a checkpoint from an archive may be one of this container's again.
    async fn may_come_back(&self, store: &Store, about: &About, spec: &ContainerSpec) -> Result<(), Fault> {
        let (container, name) = (spec.name.clone(), about.name.to_string());
        let begun = &about.begun;
        if begun.container != spec.id {
            let of = begun.container.to_string();
            return Err(CheckpointError::OtherContainer { container, of }.into());
        }
        let receipt = store.receipt(about)?;
        if !receipt.exists() {
            return Err(CheckpointError::NotExported { container, name }.into());
        }
        if self.note_move(&receipt, spec)? {
            return Err(moved(about, spec));
        }
        if !begun.leave_running && spec.status.started_at != begun.started_at {
            // The engine may forget it.
            receipt.started_since()?;
            return Err(CheckpointError::StartedSince { container, name }.into());
        }
        if receipt.is_used() {
            return Err(CheckpointError::Used { container, name }.into());
        }
        if !begun.leave_running && receipt.is_started_since() {
            return Err(CheckpointError::StartedSince { container, name }.into());
        }
        let identity = about.identity()?;
        for kept in store.all()? {
            // Two of one would be used twice.
            if kept.about.begun.container == spec.id && kept.about.identity()? == identity {
                let name = kept.about.name.to_string();
                return Err(CheckpointError::Present { container, name }.into());
            }
        }
        Ok(())
    }

    /// Reads the rest of the archive, and gives the checkpoint its name if it may still come back. Gives as well how its container was
    /// when it was described.
    async fn bring_back<R: io::Read + Send + 'static>(
        &self,
        store: &Store,
        new: &New,
        incoming: Incoming<R>,
        name: CheckpointName,
    ) -> Result<(Kept, ContainerSpec), Fault> {
        let archived = incoming.description.checkpoint.clone();
        let container = archived.begun.container.clone();
        let first = self.spec_of(&container).await?;
        let first = first.ok_or_else(|| restore::gone_of(&archived))?;
        let context = new.describe(&archived.clone().brought_back(name, &first))?;
        let (memory, key) = (new.memory(), self.node_key(false).await?);
        blocking(move || incoming.seal_into(&memory, &key, &context)).await?;
        failpoint::reach("checkpoint.imported").await?;
        // It took a while: it may have been started by hand.
        let spec = self.spec_of(&container).await?;
        let spec = spec.ok_or_else(|| restore::gone_of(&archived))?;
        self.may_come_back(store, &archived, &spec).await?;
        Ok((new.keep()?, first))
    }
}

/// An image that nobody but its node can read is of use to no other program.
fn oci_encrypted() -> Fault {
    Fault::new(
        "checkpoint.oci-encrypted",
        FaultKind::Usage,
        "a checkpoint becomes an image only unencrypted: no other program could read it",
    )
    .with_hint("ask for it with --unencrypted, or leave out --oci")
}

/// Its restart policy became another one meanwhile.
fn changed() -> Fault {
    Fault::new(
        "container.changed",
        FaultKind::RolledBack,
        "its restart policy was changed while the checkpoint came back, which was given up",
    )
    .with_hint("run the command again: the policy that it has then is what comes back")
}

fn moved(about: &About, spec: &ContainerSpec) -> Fault {
    Fault::of(&CheckpointError::Moved {
        container: spec.name.clone(),
        name: about.name.to_string(),
    })
}

/// What the container's runtime is called. Podman says it in its own document only.
pub(super) fn runtime_of(spec: &ContainerSpec) -> &str {
    let text = |pointer: &str| spec.document.pointer(pointer).and_then(Value::as_str);
    let named = text("/Libpod/Inspect/OCIRuntime").or_else(|| text("/HostConfig/Runtime"));
    named.filter(|name| !name.is_empty()).unwrap_or("runc")
}

/// What programs for podman's archives look for beside the images. It is told by what the engine has, and nothing here reads it.
fn documents(spec: &ContainerSpec) -> Result<Vec<Document>, Fault> {
    let text = |pointer: &str| spec.document.pointer(pointer).and_then(Value::as_str);
    let config = json!({
        "id": spec.id,
        "name": spec.name,
        "rootfsImageName": spec.image_reference,
        "runtime": runtime_of(spec),
        "createdTime": text("/Created").unwrap_or("0001-01-01T00:00:00Z"),
    });
    let argument = |value: &Value| value.as_str().map(str::to_owned);
    let rest = spec.document.pointer("/Args").and_then(Value::as_array);
    let mut args: Vec<String> = text("/Path").map(str::to_owned).into_iter().collect();
    args.extend(rest.into_iter().flatten().filter_map(argument));
    let mounts: Vec<Value> = spec
        .mounts
        .iter()
        .map(|mount| {
            let tmpfs = mount.kind == MountKind::Tmpfs;
            json!({
                "destination": mount.destination,
                "type": if tmpfs { "tmpfs" } else { "bind" },
                "source": if tmpfs { "tmpfs" } else { mount.source.as_str() },
            })
        })
        .collect();
    let specification = json!({
        "ociVersion": "1.0.2",
        "hostname": text("/Config/Hostname").unwrap_or_default(),
        "process": {
            "args": args,
            "cwd": text("/Config/WorkingDir").filter(|path| !path.is_empty()).unwrap_or("/"),
        },
        "mounts": mounts,
        // By this, checkpointctl knows the form of the archive.
        "annotations": { "io.container.manager": "libpod" },
    });
    [("config.dump", config), ("spec.dump", specification)]
        .into_iter()
        .map(|(name, value)| {
            let content = serde_json::to_vec_pretty(&value)
                .map_err(|error| Fault::from(CheckpointError::Stream(error.into())))?;
            Ok(Document { name, content })
        })
        .collect()
}

#[cfg(test)]
mod tests;
