//! The ways of an image: which one a plan chooses, and what the two halves of a migration ask of their nodes for it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tranship_core::engine::ByteStream;
use tranship_core::fault::FaultKind;
use tranship_core::ids::Digest;
use tranship_core::node::{ImageStore, NodeFacts};
use tranship_core::storage::Pipe;
use tranship_core::{EngineError, Fault, ImageSpec};

use crate::check::Findings;
use crate::options::MoveOptions;
use crate::plan::Rates;

/// How an image gets to the destination.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageStrategy {
    /// The cheapest of the others that works.
    #[default]
    Auto,
    /// The whole image as one archive, layers that are there included.
    Simple,
    /// The missing layers as one archive, from the source's engine straight into the destination's.
    Stream,
    /// The missing layers one by one and several at once, each compared at the destination before its engine sees a byte of any, and
    /// each going on where it stood after the link broke.
    Layers,
    /// To a registry and from there, both without what is there already.
    Registry,
}

impl ImageStrategy {
    /// Whether the choice is left to the plan.
    #[must_use]
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

impl fmt::Display for ImageStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Simple => "simple",
            Self::Stream => "stream",
            Self::Layers => "layers",
            Self::Registry => "registry",
        })
    }
}

/// The way that a plan chose, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageWay {
    /// Never [`ImageStrategy::Auto`] in a plan of this version.
    pub strategy: ImageStrategy,
    /// For people.
    pub reason: String,
}

/// Where a destination has an image from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageOrigin {
    /// The source, which answers at the other end of the stream that was opened before.
    Source,
    /// A registry.
    Registry {
        /// Its address.
        address: String,
        /// The repository there.
        repository: String,
        /// Digest of the image's manifest.
        manifest: Digest,
    },
}

/// What came of an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Came {
    /// Layers that came.
    pub layers: usize,
    /// Bytes of layers that came.
    pub bytes: u64,
}

/// What is kept here of an image that came, until the engine has it. Dropped, it stays a while for who fetches the image next.
#[derive(Default)]
pub struct Kept(Option<Box<dyn FnOnce() + Send>>);

impl Kept {
    /// What `remove` takes away.
    #[must_use]
    pub fn new(remove: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(remove)))
    }

    /// Takes it away, unless the engine failed to take the image in for a reason that is not in the image: no space left, an engine that
    /// is gone, an archive that was broken off on request. What the engine itself refuses is not kept: it may have been damaged here.
    pub fn settle(self, taken: &Result<(), EngineError>) {
        let again = matches!(
            taken,
            Err(EngineError::NoSpace { .. }
                | EngineError::Unreachable { .. }
                | EngineError::Denied { .. }
                | EngineError::Uncertain { .. })
        );
        if let Some(remove) = self.0.filter(|_| !again) {
            remove();
        }
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kept").field(&self.0.is_some()).finish()
    }
}

/// An image that came, every byte of it compared.
pub struct Fetched {
    /// It as an archive for the engine.
    pub archive: ByteStream,
    /// What came of it.
    pub came: Came,
    /// What is kept of it until the engine has it.
    pub kept: Kept,
}

/// The ways of images beside one archive.
#[async_trait]
pub trait ImageWays: Send + Sync {
    /// At the source: answers what the other end of the pipe asks about this image, until it has asked everything. Bytes of layers
    /// are counted as they go.
    async fn serve(&self, image: &ImageSpec, pipe: Pipe, sent: Arc<AtomicU64>) -> Result<(), Fault>;

    /// At the source: brings the image to a registry, without what is there, and says where it is to be had. Bytes of layers are
    /// counted as they go. Unless it `may_push`, it only looks whether it is there: `registry.not-found` if not.
    async fn push(
        &self,
        image: &ImageSpec,
        registry: &str,
        may_push: bool,
        sent: Arc<AtomicU64>,
    ) -> Result<ImageOrigin, Fault>;

    /// At the destination: fetches the image without its `held` lowest layers, or without the blobs that the engine holds where it
    /// keeps blobs, and gives it as an archive for the engine once every
    /// byte of it was compared. The pipe is there where the origin is the source.
    async fn fetch(
        &self,
        image: &ImageSpec,
        held: usize,
        origin: &ImageOrigin,
        pipe: Option<Pipe>,
    ) -> Result<Fetched, Fault>;

    /// Whether something that came is kept here for whoever goes on with it. It is not for ever.
    fn keeps(&self) -> bool {
        false
    }

    /// Drops what is kept of layers if there are not so many bytes free beside it: it is of no use to an image that there is no room for.
    /// What is being brought or taken in at the moment stays.
    async fn make_room(&self, _bytes: u64) {}

    /// Bytes on the disk of this directory that would make way so.
    async fn kept_bytes(&self, _directory: &Path) -> u64 {
        0
    }
}

/// Room for an archive whose length nobody knows. Few images have more.
pub const ROOM: u64 = 8 << 30;

/// Room that the engine needs for an archive: it unpacks it before it makes layers of it.
#[must_use]
pub fn room_of(archive: Option<u64>) -> u64 {
    archive.map_or(ROOM, |bytes| bytes.saturating_mul(2))
}

pub(crate) fn unsupported() -> Fault {
    Fault::new(
        "image.strategy",
        FaultKind::Environment,
        "this node cannot bring images in this way",
    )
    .with_hint("use --image-strategy stream")
}

/// How long the end of a stream is waited for that says why a layer broke off.
const WHY: Duration = Duration::from_secs(2);

/// Has the source answer and the destination ask, at the two ends of one stream, until the destination has the image.
///
/// # Errors
/// What either says; where a layer could not be given out, what the source says of it.
pub async fn served_and_taken(
    serving: impl Future<Output = Result<(), Fault>>,
    taking: impl Future<Output = Result<Came, Fault>>,
) -> Result<Came, Fault> {
    let (mut serving, mut taking) = (std::pin::pin!(serving), std::pin::pin!(taking));
    tokio::select! {
        taken = &mut taking => {
            // The destination saw a layer break off; why, is known at the source.
            let served = match taken {
                Ok(_) => None,
                Err(_) => tokio::time::timeout(WHY, &mut serving).await.ok(),
            };
            return match served {
                Some(Err(why)) if is_of_the_source(&why) => Err(why),
                _ => taken,
            };
        }
        served = &mut serving => match served {
            // A layer that broke off may have come at the next try: whether the image is there, only the destination knows.
            Err(why) if is_of_the_source(&why) => return taking.await.map_err(|_| why),
            // The destination has asked everything, or sees for itself that the stream broke.
            Err(fault) => tracing::debug!("a stream of layers ended: {fault}"),
            Ok(()) => {}
        },
    }
    taking.await
}

/// Whether it was the source's engine that could not give out a layer: asking again does not mend it.
fn is_of_the_source(fault: &Fault) -> bool {
    ["engine.", "image."]
        .iter()
        .any(|room| fault.code.starts_with(room))
}

/// Whether a fault speaks against the way of an image, and not against the link: another way may do. A destination of an older
/// version does not know ways.
#[must_use]
pub fn is_no_way(fault: &Fault) -> bool {
    ["registry.", "oci.", "image."]
        .iter()
        .any(|room| fault.code.starts_with(room))
        || ["wire.not-found", "engine.failed"].contains(&fault.code.as_str())
}

/// A transfer of more than this many milliseconds is worth being kept when the link breaks.
const LONG: u64 = 60_000;

/// Why an image cannot go the way that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Stable code.
    pub code: &'static str,
    /// For people.
    pub message: &'static str,
    /// What they can do.
    pub remedy: &'static str,
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code, FaultKind::Environment, refusal.message).with_hint(refusal.remedy)
    }
}

/// What the choice depends on.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// What the user asked for: `image_strategy`, `registry` and `whole_image` count.
    pub options: &'a MoveOptions,
    /// The image, as the source has it.
    pub image: &'a ImageSpec,
    /// The source.
    pub source: &'a NodeFacts,
    /// The destination.
    pub destination: &'a NodeFacts,
    /// The image itself is there.
    pub held: bool,
    /// How many layers are there.
    pub skip: usize,
    /// Bytes that would travel.
    pub bytes: u64,
}

impl Choice<'_> {
    /// The way that was asked for, or the cheapest one that works.
    #[must_use]
    pub fn way(&self) -> ImageWay {
        let way = |strategy, reason: String| ImageWay { strategy, reason };
        let asked = self.options.image_strategy;
        if asked != ImageStrategy::Auto {
            return way(asked, "as asked for".into());
        }
        if self.options.whole_image {
            return way(ImageStrategy::Simple, "the whole image was asked for".into());
        }
        if self.held {
            return way(ImageStrategy::Stream, "it is there already".into());
        }
        if let Some(registry) = &self.options.registry
            && self.is_from(registry)
            && !(self.packed() && self.obstacle().is_some())
        {
            let reason = format!("it came from {registry}: nothing is sent from the source");
            return way(ImageStrategy::Registry, reason);
        }
        let expected = self.bytes.saturating_mul(1000) / Rates::default().image_bytes_per_second;
        // On their way they are on the disk there, and then a second time as the engine's.
        let room = self
            .destination
            .free_bytes
            .is_none_or(|free| free / 3 > self.bytes);
        if expected > LONG && room && self.obstacle().is_none() {
            let reason = format!(
                "about {} s on the way: what came of a layer is kept if the link breaks",
                expected / 1000
            );
            return way(ImageStrategy::Layers, reason);
        }
        let layers = self.image.layers.len();
        let missing = layers.saturating_sub(self.skip);
        let mut reason = format!("{missing} of {layers} layers straight into the engine there");
        if let Some(registry) = &self.options.registry {
            reason.push_str(&format!("; by way of {registry} they would travel twice"));
        }
        way(ImageStrategy::Stream, reason)
    }

    /// Whether the engine knows the image by a digest of this registry.
    fn is_from(&self, registry: &str) -> bool {
        let host = registry.split_once("://").map_or(registry, |(_, rest)| rest);
        let host = host.split('/').next().unwrap_or(host);
        let known = |name: &String| name.split('/').next() == Some(host);
        self.image.repo_digests.iter().any(known)
    }

    /// Whether an engine keeps images as blobs, as they were packed.
    fn packed(&self) -> bool {
        [self.source, self.destination]
            .iter()
            .any(|node| node.engine.image_store == ImageStore::Containerd)
    }

    /// What speaks against single layers.
    fn obstacle(&self) -> Option<&'static str> {
        if self.packed() {
            let both = [self.source, self.destination].map(|node| &node.engine);
            // Stores of different kinds are a conflict of their own.
            return match both
                .map(|engine| engine.image_store == ImageStore::Containerd && engine.containerd_seen)
            {
                [true, true] => None,
                [false, _] => Some("the source's agent cannot read single blobs from containerd"),
                [_, false] => Some("the destination's agent cannot ask containerd which blobs it has"),
            };
        }
        if !self.source.direct_layers {
            return Some("the source's agent cannot read single layers from its engine's storage");
        }
        if self.destination.engine.image_store != ImageStore::Classic {
            return Some("the destination's engine takes whole images only");
        }
        None
    }

    /// Says what speaks against the way that was asked for.
    pub(crate) fn check(&self, way: &ImageWay, found: &mut Findings) {
        if let Some(refusal) = self.refusal(way) {
            found.conflict(refusal.code, refusal.message, refusal.remedy);
        }
    }

    /// What speaks against the way that was asked for.
    #[must_use]
    pub fn refusal(&self, way: &ImageWay) -> Option<Refusal> {
        if self.held && !self.options.whole_image {
            return None;
        }
        let by_layers = match way.strategy {
            ImageStrategy::Layers => true,
            ImageStrategy::Registry => match &self.options.registry {
                // What containerd lacks is asked of it also where a registry has everything.
                Some(registry) => self.packed() || !self.is_from(registry),
                None => {
                    return Some(Refusal {
                        code: "image.registry",
                        message: "the image shall travel by way of a registry, and none is named",
                        remedy: "name one with --registry",
                    });
                }
            },
            _ => false,
        };
        let message = self.obstacle().filter(|_| by_layers)?;
        Some(Refusal {
            code: "image.strategy",
            message,
            remedy: "use --image-strategy stream",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(code: &str) -> Fault {
        Fault::new(code, FaultKind::Environment, code)
    }

    async fn both(served: Result<(), Fault>, taken: Result<Came, Fault>) -> Result<Came, String> {
        let serving = std::future::ready(served);
        let taking = async {
            // The source is through long before the destination's engine has the image.
            tokio::time::sleep(Duration::from_millis(20)).await;
            taken
        };
        served_and_taken(serving, taking)
            .await
            .map_err(|fault| fault.code)
    }

    #[test]
    fn what_came_is_kept_if_the_image_is_not_to_blame() {
        let (action, message) = ("load image".to_owned(), "no".to_owned());
        let failures = [
            (
                EngineError::NoSpace {
                    action: action.clone(),
                    message: message.clone(),
                },
                true,
            ),
            (
                EngineError::Uncertain {
                    action: action.clone(),
                    message: message.clone(),
                },
                true,
            ),
            (
                EngineError::Unreachable {
                    endpoint: "e".into(),
                    reason: message.clone(),
                },
                true,
            ),
            (EngineError::Denied { endpoint: "e".into() }, true),
            (
                EngineError::Failed {
                    action,
                    status: 500,
                    message: message.clone(),
                },
                false,
            ),
            (
                EngineError::Corrupt {
                    what: "layer".into(),
                    message: message.clone(),
                },
                false,
            ),
            (EngineError::Unsupported { message }, false),
        ];
        let ends = failures.into_iter().map(|(error, stays)| (Err(error), stays));
        for (taken, stays) in ends.chain([(Ok(()), false)]) {
            let (tell, told) = std::sync::mpsc::channel();
            Kept::new(move || tell.send(()).unwrap()).settle(&taken);
            assert_eq!(told.try_recv().is_ok(), !stays, "{taken:?}");
        }
        Kept::default().settle(&Ok(()));
    }

    #[tokio::test]
    async fn what_the_destination_has_counts_and_the_source_says_why_not() {
        let came = Came { layers: 1, bytes: 2 };
        let lost = || Err(fault("registry.lost"));
        assert_eq!(both(Ok(()), Ok(came)).await, Ok(came));
        // A layer that could not be read once, and then could.
        assert_eq!(both(Err(fault("engine.failed")), Ok(came)).await, Ok(came));
        assert_eq!(
            both(Err(fault("image.corrupt")), lost()).await,
            Err("image.corrupt".to_owned())
        );
        assert_eq!(
            both(Err(fault("wire.lost")), lost()).await,
            Err("registry.lost".to_owned())
        );
    }
}
