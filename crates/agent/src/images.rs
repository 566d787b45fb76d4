//! Images by themselves, outside migrations: what `tranship image` asks of a node.

pub(crate) mod api;
mod client;
pub mod ways;

use serde::{Deserialize, Serialize};
use tranship_core::engine::{ByteStream, ImageArchive};
use tranship_core::fault::FaultKind;
use tranship_core::ids::Digest;
use tranship_core::image::ImageSpec;
use tranship_core::{EngineError, Fault};
use tranship_migrate::images::room_of;

use crate::state::Agent;

/// An image, and what it weighs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundImage {
    /// The image.
    pub image: ImageSpec,
    /// Bytes of its archive without its lowest layers, for none of them left out to all; empty where that cannot be told.
    pub sizes: Vec<u64>,
}

/// Asks for a part of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportImage {
    /// The image's id.
    pub image: Digest,
    /// The tag that the archive gives it.
    pub tag: Option<String>,
    /// So many of the lowest layers are left out.
    pub skip: usize,
}

/// Tells what an archive should have brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettleImage {
    /// The image's id.
    pub image: Digest,
    /// Its layers.
    pub layers: Vec<Digest>,
    /// The tag that it gets.
    pub tag: Option<String>,
}

impl Agent {
    /// The image that a tag, digest or id means.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn find_image(&self, reference: &str) -> Result<Option<FoundImage>, Fault> {
        let Some(image) = self.engine().image(reference).await? else {
            return Ok(None);
        };
        // They are for people only, and what is there in part has none.
        let sizes = self
            .engine()
            .archive_sizes(&image, None)
            .await
            .unwrap_or_default();
        Ok(Some(FoundImage { image, sizes }))
    }

    /// The image as an archive without its lowest layers.
    ///
    /// # Errors
    /// `image.not-found`; what the engine says.
    pub async fn export_image(&self, asked: &ExportImage) -> Result<ImageArchive, Fault> {
        let found = self.engine().image(asked.image.as_str()).await?;
        let Some(image) = found.filter(|image| !image.incomplete) else {
            return Err(no_image(asked.image.as_str()));
        };
        if asked.skip > image.layers.len() {
            let text = format!("the image has {} layers, not {}", image.layers.len(), asked.skip);
            return Err(Fault::new("request.invalid", FaultKind::Usage, text));
        }
        let archive = self
            .engine()
            .export_image(&image, asked.tag.as_deref(), asked.skip)
            .await?;
        Ok(archive)
    }

    /// Takes in an archive as [`Agent::export_image`] makes it.
    ///
    /// # Errors
    /// What the engine says; nothing is kept then.
    pub async fn import_image(&self, archive: ByteStream) -> Result<(), Fault> {
        // It goes on when the caller's connection is gone.
        let _loading = self.loading();
        self.registry.ports().images.make_room(room_of(None)).await;
        Ok(self.engine().import_image(archive).await?)
    }

    /// Looks whether an image is here as it should be, and gives it its tag.
    ///
    /// # Errors
    /// `image.corrupt` if another one is; what the engine says.
    pub async fn settle_image(&self, asked: &SettleImage) -> Result<(), Fault> {
        match self.engine().image(asked.image.as_str()).await? {
            Some(here) if !here.incomplete && here.layers == asked.layers => {}
            _ => {
                return Err(EngineError::Corrupt {
                    what: format!("the image {}", asked.image),
                    message: "the engine took the archive but holds another image than announced".into(),
                }
                .into());
            }
        }
        if let Some(tag) = &asked.tag {
            self.engine().tag_image(&asked.image, tag).await?;
        }
        Ok(())
    }
}

/// There is no such image.
#[must_use]
pub fn no_image(reference: &str) -> Fault {
    Fault::new(
        "image.not-found",
        FaultKind::Environment,
        format!("there is no image {reference}"),
    )
    .with_hint("`docker images` on that machine shows what there is")
}
