//! Images by themselves that go by other ways than one archive: the halves of a node, which the caller brings together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tranship_core::engine::ByteStream;
use tranship_core::fault::FaultKind;
use tranship_core::ids::Digest;
use tranship_core::image::ImageSpec;
use tranship_core::storage::Pipe;
use tranship_core::{EngineError, Fault, MigrationId};
use tranship_migrate::images::{Came, Fetched, ImageOrigin, room_of};

use super::no_image;
use crate::server::regardless;
use crate::state::Agent;

/// Asks the node where an image is to answer what comes by a stream that the caller carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeImage {
    /// The name under which the stream was handed over.
    pub stream: MigrationId,
    /// The image's id.
    pub image: Digest,
}

/// Asks the node where an image is to bring it to a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushImage {
    /// The image's id.
    pub image: Digest,
    /// The registry: `[http://]HOST[:PORT][/PATH]`.
    pub registry: String,
    /// Else it is only looked whether the registry has the image.
    pub may_push: bool,
}

/// What became of a [`PushImage`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushedImage {
    /// Where the image is to be had.
    pub origin: ImageOrigin,
    /// Bytes of layers that went to the registry.
    pub bytes: u64,
}

/// Asks a node to fetch an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchImage {
    /// The name under which the stream to the source was handed over, if it comes from there.
    pub stream: Option<MigrationId>,
    /// The image, as the source has it: nothing else is taken in.
    pub image: ImageSpec,
    /// Where it is to be had.
    pub origin: ImageOrigin,
}

impl Agent {
    async fn whole_image(&self, id: &Digest) -> Result<ImageSpec, Fault> {
        let found = self.engine().image(id.as_str()).await?;
        found
            .filter(|image| !image.incomplete)
            .ok_or_else(|| no_image(id.as_str()))
    }

    fn stream_of(&self, id: &MigrationId) -> Option<Pipe> {
        Some(Box::new(self.outgoing.take_relay(id)?))
    }

    /// Answers what the other end of a stream asks about an image, until it has asked everything.
    ///
    /// # Errors
    /// `image.not-found`, `image.stream`; what the engine says of a layer that it cannot give out.
    pub async fn serve_image(&self, asked: &ServeImage) -> Result<(), Fault> {
        let Some(pipe) = self.stream_of(&asked.stream) else {
            return Err(Fault::new(
                "image.stream",
                FaultKind::Environment,
                "there is no stream on which the image could be asked for",
            ));
        };
        let image = self.whole_image(&asked.image).await?;
        let images = &self.registry.ports().images;
        images.serve(&image, pipe, Arc::default()).await
    }

    /// Brings an image to a registry, without what is there.
    ///
    /// # Errors
    /// `image.not-found`; what the registry or the engine says.
    pub async fn push_image(&self, asked: &PushImage) -> Result<PushedImage, Fault> {
        let image = self.whole_image(&asked.image).await?;
        let sent = Arc::new(AtomicU64::new(0));
        let images = &self.registry.ports().images;
        let pushing = images.push(&image, &asked.registry, asked.may_push, Arc::clone(&sent));
        Ok(PushedImage {
            origin: pushing.await?,
            bytes: sent.load(Ordering::Relaxed),
        })
    }

    /// Fetches an image without the layers that are here, compares it, and hands it to the engine. What came of layers when
    /// this breaks off stays for the next call, also if the engine fails to take them in for want of space or because it is gone. Of what it
    /// does not have all of, the engine keeps nothing.
    ///
    /// # Errors
    /// What the source, the registry or the engine says.
    pub async fn fetch_image(self: &Arc<Self>, asked: FetchImage) -> Result<Came, Fault> {
        let pipe = asked.stream.and_then(|id| self.stream_of(&id));
        let image = &asked.image;
        let held = self.engine().layers_held(image.known_layers()).await?;
        let images = &self.registry.ports().images;
        let fetched = images.fetch(image, held, &asked.origin, pipe).await?;
        let Fetched { archive, came, kept } = fetched;
        images.make_room(room_of(Some(came.bytes))).await;
        // Dropped with this future, and so when the caller leaves. The engine is waited for all the same: it goes on with an archive
        // that it has all of, and is broken off in one that it has not.
        let here = CancellationToken::new();
        let archive = while_here(archive, here.clone());
        let _here = here.drop_guard();
        let agent = Arc::clone(self);
        regardless(async move {
            let _loading = agent.loading();
            let taken = agent.engine().import_image(archive).await;
            kept.settle(&taken);
            Ok(taken?)
        })
        .await?;
        Ok(came)
    }
}

/// The archive, ending with an error once its caller has left.
fn while_here(archive: ByteStream, left: CancellationToken) -> ByteStream {
    let told = left.clone().cancelled_owned();
    let end = stream::once(async move {
        left.is_cancelled().then(|| {
            Err(EngineError::Uncertain {
                action: "take in the image".into(),
                message: "whoever asked for the image has left".into(),
            })
        })
    });
    Box::pin(archive.take_until(told).chain(end.filter_map(std::future::ready)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[tokio::test]
    async fn an_archive_ends_badly_when_its_caller_leaves_and_well_when_it_stays() {
        let piece = || Ok(Bytes::from_static(b"piece"));
        let stays = CancellationToken::new();
        let whole = while_here(Box::pin(stream::iter([piece(), piece()])), stays);
        let whole: Vec<_> = whole.collect().await;
        assert!(whole.len() == 2 && whole.iter().all(Result::is_ok), "{whole:?}");

        let leaves = CancellationToken::new();
        let endless = stream::iter([piece()]).chain(stream::pending());
        let mut broken = while_here(Box::pin(endless), leaves.clone());
        assert!(broken.next().await.unwrap().is_ok());
        drop(leaves.drop_guard());
        let error = broken.next().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("has left"), "{error}");
        assert!(broken.next().await.is_none());
    }
}
