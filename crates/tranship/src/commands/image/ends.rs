//! The two nodes of `tranship image push` and `pull`: which way an image takes between them, and the ways themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use tranship_agent::images::ways::{FetchImage, PushImage, ServeImage};
use tranship_agent::images::{ExportImage, FoundImage, SettleImage};
use tranship_core::event::{Event, Phase};
use tranship_core::node::NodeFacts;
use tranship_core::{Fault, FaultKind, NodeAddress};
use tranship_migrate::check::room_for_image;
use tranship_migrate::images::{Came, Choice, ImageOrigin, ImageWay, is_no_way, served_and_taken};
use tranship_migrate::{ImageStrategy, MoveOptions};
use tranship_wire::WireError;
use tranship_wire::relay::{RelayCounts, relay};

use super::brought::{Brought, Retagged};
use super::{node, tag_of};
use crate::cli::ImageWayArgs;
use crate::commands::Context;
use crate::commands::plan::new_id;
use crate::connect::Connection;
use crate::progress::Progress;
use crate::render::bytes;
use crate::ui::Ui;

/// What an agent says if it brings images by other ways than one archive.
const WAYS: &str = "images.ways";
/// How often it is said how far an image is.
const SHOWN: Duration = Duration::from_millis(200);

/// What stays of what broke off.
pub(super) const GOES_ON: &str = "run it again: what is there does not travel again. What came of single layers (`--image-strategy layers`) stays \
    at the destination for a quarter of an hour, and it goes on there";

/// The two nodes, and what was asked for.
pub(super) struct Ends<'a> {
    context: &'a Context,
    options: MoveOptions,
    pub(super) from: Connection,
    pub(super) to: Connection,
    source: NodeFacts,
    destination: NodeFacts,
}

/// How an image would get there.
pub(super) struct Chosen {
    way: ImageWay,
    /// It is there, and nothing has to travel.
    there: bool,
    /// How many of its lowest layers do not travel.
    skip: usize,
    /// The tags that it has there.
    tags: Vec<String>,
}

/// What travelled.
#[derive(Default)]
struct Travelled {
    layers: usize,
    bytes: u64,
    pushed: Option<u64>,
}

impl From<Came> for Travelled {
    fn from(came: Came) -> Self {
        Self {
            layers: came.layers,
            bytes: came.bytes,
            pushed: None,
        }
    }
}

/// That an image can have the same id at both: it depends on how the engine keeps it.
///
/// # Errors
/// `image.store`.
pub(super) fn same_store(source: &NodeFacts, destination: &NodeFacts) -> Result<(), Fault> {
    if source.engine.image_store == destination.engine.image_store {
        return Ok(());
    }
    let text = "the engines keep their images in stores of different kinds, in which the same image has different ids";
    Err(Fault::new("image.store", FaultKind::Environment, text)
        .with_hint("`docker info` shows the storage driver: set `containerd-snapshotter` alike at both"))
}

/// What a node is like now.
pub(super) async fn facts(node: &Connection) -> Result<NodeFacts, Fault> {
    let facts = node.client.node().await;
    facts.map_err(|fault| fault.on_node(node.label.clone()))
}

impl<'a> Ends<'a> {
    /// Both nodes, if an image can have the same id at both.
    ///
    /// # Errors
    /// `image.store`, `image.version`; what connecting says.
    pub(super) async fn connect(
        context: &'a Context,
        way: &ImageWayArgs,
        from: &NodeAddress,
        to: &NodeAddress,
    ) -> Result<Self, Fault> {
        let (from, to) = (node(context, from).await?, node(context, to).await?);
        let (source, destination) = (facts(&from).await?, facts(&to).await?);
        same_store(&source, &destination).map_err(|fault| fault.on_node(to.label.clone()))?;
        let strategy = way.strategy();
        let options = MoveOptions {
            image_strategy: strategy,
            whole_image: strategy == ImageStrategy::Simple,
            registry: way.registry.clone(),
            ..MoveOptions::default()
        };
        Ok(Self {
            context,
            options,
            from,
            to,
            source,
            destination,
        })
    }

    fn there(&self, fault: Fault) -> Fault {
        match fault.node {
            Some(_) => fault,
            None => fault.on_node(self.to.label.clone()),
        }
    }

    fn here(&self, fault: Fault) -> Fault {
        fault.on_node(self.from.label.clone())
    }

    /// The way of an image, as a migration would choose it.
    pub(super) async fn choose(&self, found: &FoundImage) -> Result<Chosen, Fault> {
        let image = &found.image;
        let known = self.to.client.find_image(image.id.as_str()).await;
        let known = known.map_err(|fault| self.there(fault))?;
        let held = known.as_ref().is_some_and(|known| !known.image.incomplete);
        let skip = if held {
            image.layers.len()
        } else {
            let held = self.to.client.layers_held(image.known_layers()).await;
            held.map_err(|fault| self.there(fault))?.min(image.layers.len())
        };
        let choice = Choice {
            options: &self.options,
            image,
            source: &self.source,
            destination: &self.destination,
            held,
            skip,
            bytes: found.sizes.get(skip).copied().unwrap_or(image.size),
        };
        let mut way = choice.way();
        if let Some(refusal) = choice.refusal(&way) {
            return Err(self.here(refusal.into()));
        }
        let there = held && !self.options.whole_image;
        let otherwise = matches!(way.strategy, ImageStrategy::Layers | ImageStrategy::Registry);
        if otherwise && !there && !(self.from.can(WAYS) && self.to.can(WAYS)) {
            let text = "an agent is of a version that brings images as archives only";
            if !self.options.image_strategy.is_auto() {
                return Err(Fault::new("image.version", FaultKind::Environment, text)
                    .with_hint("use the same version of tranship at both ends, or --image-strategy stream"));
            }
            way = ImageWay {
                strategy: ImageStrategy::Stream,
                reason: text.into(),
            };
        }
        let skip = if self.options.whole_image { 0 } else { skip };
        let tags = known.map_or_else(Vec::new, |known| known.image.tags);
        Ok(Chosen {
            way,
            there,
            skip,
            tags,
        })
    }

    /// The tag, if it means another image there. Engines take it from that one without a word.
    async fn retagged(
        &self,
        found: &FoundImage,
        tag: Option<&str>,
        there: &[String],
    ) -> Result<Option<Retagged>, Fault> {
        let Some(tag) = tag.filter(|tag| !there.iter().any(|known| known == tag)) else {
            return Ok(None);
        };
        let known = self.to.client.find_image(tag).await;
        let known = known
            .map_err(|fault| self.there(fault))?
            .map(|known| known.image.id);
        let other = known.filter(|known| *known != found.image.id);
        Ok(other.map(|before| Retagged {
            tag: tag.to_owned(),
            before: before.to_string(),
        }))
    }

    /// Brings one image.
    pub(super) async fn bring(&self, reference: &str, found: &FoundImage) -> Result<Brought, Fault> {
        let begun = Instant::now();
        let image = &found.image;
        let tag = tag_of(image, reference);
        // What came with the images before need not come again.
        let Chosen {
            mut way,
            there,
            skip,
            tags,
        } = self.choose(found).await?;
        // An archive brings its tag along: afterwards nobody knows.
        let retagged = self.retagged(found, tag.as_deref(), &tags).await?;
        let mut travelled = Travelled::default();
        if !there {
            self.room(found, skip).await?;
            let done = match way.strategy {
                ImageStrategy::Layers => Some(self.by_layers(reference, found, skip).await),
                ImageStrategy::Registry => Some(self.by_registry(reference, found).await),
                ImageStrategy::Auto | ImageStrategy::Simple | ImageStrategy::Stream => None,
            };
            travelled = match done {
                // Nobody asked for this way: where it turns out to be none, there is the one that always works.
                Some(Err(fault))
                    if self.options.image_strategy.is_auto() && is_none(way.strategy, &fault) =>
                {
                    way = ImageWay {
                        strategy: ImageStrategy::Stream,
                        reason: format!("{} does not work ({fault})", way.strategy),
                    };
                    self.by_archive(reference, found, tag.as_deref(), skip).await?
                }
                Some(done) => done.map_err(|fault| goes_on(way.strategy, fault))?,
                None => self.by_archive(reference, found, tag.as_deref(), skip).await?,
            };
        }
        let settle = SettleImage {
            image: image.id.clone(),
            layers: image.layers.clone(),
            tag,
        };
        let settled = self.to.client.settle_image(&settle).await;
        settled.map_err(|fault| self.there(fault))?;
        let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        if self.context.ui.json && !there {
            Progress::new(&self.context.ui).show(&Event::PhaseEnded {
                phase: Phase::Image,
                milliseconds,
                bytes: travelled.bytes,
            });
        }
        Ok(Brought {
            image: reference.to_owned(),
            id: image.id.to_string(),
            there,
            retagged,
            image_way: (!there).then_some(way),
            layers: image.layers.len(),
            layers_sent: travelled.layers,
            bytes: travelled.bytes,
            pushed_bytes: travelled.pushed,
            milliseconds,
        })
    }

    fn meter(&self, reference: &str, found: &FoundImage, skip: usize) -> Meter {
        Meter::new(&self.context.ui, reference, found.sizes.get(skip).copied())
    }

    /// That the engine there can take in what is missing, as far as it can be known before.
    async fn room(&self, found: &FoundImage, skip: usize) -> Result<(), Fault> {
        let missing = found.sizes.get(skip).copied().unwrap_or(found.image.size);
        let needed = room_for_image(missing);
        // Asked again for each image: the one before took some.
        match facts(&self.to).await?.free_bytes {
            Some(free) if missing > 0 && free < needed => Err(self.there(no_room(free, needed))),
            _ => Ok(()),
        }
    }

    /// The missing layers, or all of them, as one archive through this process.
    async fn by_archive(
        &self,
        reference: &str,
        found: &FoundImage,
        tag: Option<&str>,
        skip: usize,
    ) -> Result<Travelled, Fault> {
        let layers = found.image.layers.len();
        let (sent, skip) = match self.send(reference, found, tag, skip).await {
            // Layers that were there may have gone in between; the whole image does not depend on them.
            Err(fault) if skip > 0 => {
                let text =
                    format!("sending only the missing layers failed ({fault}); sending the whole image");
                self.context.ui.say(&text);
                (self.send(reference, found, tag, 0).await?, 0)
            }
            sent => (sent?, skip),
        };
        Ok(Travelled {
            layers: layers - skip,
            bytes: sent,
            pushed: None,
        })
    }

    /// Sends an archive without the lowest layers, and returns its bytes.
    async fn send(
        &self,
        reference: &str,
        found: &FoundImage,
        tag: Option<&str>,
        skip: usize,
    ) -> Result<u64, Fault> {
        let ask = ExportImage {
            image: found.image.id.clone(),
            tag: tag.map(str::to_owned),
            skip,
        };
        let archive = self.from.client.export_image(&ask).await;
        let archive = archive.map_err(|fault| self.here(fault))?;
        let mut meter = self.meter(reference, found, skip);
        let sent = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&sent);
        let source = self.from.label.clone();
        let archive = archive.map(move |part| {
            let part = part.map_err(|error| WireError::into_fault(error).on_node(source.clone()))?;
            let length = part.len() as u64;
            let now = counter.fetch_add(length, Ordering::Relaxed) + length;
            meter.at(now);
            Ok::<_, Fault>(part)
        });
        let taken_in = self.to.client.import_image(archive).await;
        taken_in.map_err(|fault| self.there(fault))?;
        Ok(sent.load(Ordering::Relaxed))
    }

    /// The destination asks the source for what it lacks, over a stream that this process carries.
    async fn by_layers(&self, reference: &str, found: &FoundImage, skip: usize) -> Result<Travelled, Fault> {
        let stream = new_id()?;
        let from = self.from.client.relay_stream(&stream).await;
        let from = from.map_err(|fault| self.here(fault))?;
        let to = self.to.client.relay_stream(&stream).await;
        let to = to.map_err(|fault| self.there(fault))?;
        let counts = Arc::new(RelayCounts::default());
        let carried = async {
            if let Err(error) = relay(from, to, &counts).await {
                tracing::debug!("the stream of layers ended: {error}");
            }
            // Both ends see for themselves that it ended.
            std::future::pending::<Result<Came, Fault>>().await
        };
        let mut meter = self.meter(reference, found, skip);
        let shown = async {
            loop {
                tokio::time::sleep(SHOWN).await;
                meter.at(counts.forward());
            }
        };
        let serve = ServeImage {
            stream: stream.clone(),
            image: found.image.id.clone(),
        };
        let fetch = FetchImage {
            stream: Some(stream),
            image: found.image.clone(),
            origin: ImageOrigin::Source,
        };
        let serving = async {
            let served = self.from.client.serve_image(&serve).await;
            served.map_err(|fault| self.here(fault))
        };
        let taking = async {
            let came = self.to.client.fetch_image(&fetch).await;
            came.map_err(|fault| self.there(fault))
        };
        let came = tokio::select! {
            came = served_and_taken(serving, taking) => came,
            never = carried => never,
            never = shown => never,
        };
        Ok(came?.into())
    }

    /// To a registry and from there: neither passes through this process.
    async fn by_registry(&self, reference: &str, found: &FoundImage) -> Result<Travelled, Fault> {
        let registry = self.options.registry.clone().unwrap_or_default();
        // How far the nodes are, they tell nobody.
        let _shown = self.meter(reference, found, found.image.layers.len());
        let push = PushImage {
            image: found.image.id.clone(),
            registry: registry.clone(),
            // Whoever leaves the choice to us does not want everything to travel twice.
            may_push: !self.options.image_strategy.is_auto(),
        };
        let pushed = self.from.client.push_image(&push).await;
        let pushed = pushed.map_err(|fault| self.here(fault))?;
        if pushed.bytes > 0 {
            let text = format!("{reference}: {} went to {registry}", bytes(pushed.bytes));
            self.context.ui.say(&text);
        }
        let fetch = FetchImage {
            stream: None,
            image: found.image.clone(),
            origin: expected(pushed.origin, &registry).map_err(|fault| self.here(fault))?,
        };
        let came = self.to.client.fetch_image(&fetch).await;
        let came = came.map_err(|fault| self.there(fault))?;
        Ok(Travelled {
            pushed: Some(pushed.bytes),
            ..came.into()
        })
    }
}

/// Shows how far an image is.
struct Meter {
    progress: Progress,
    total: Option<u64>,
    last: Instant,
}

impl Meter {
    /// Nothing of it came yet. `total` is in bytes, if known.
    fn new(ui: &Ui, image: &str, total: Option<u64>) -> Self {
        let mut progress = Progress::named(ui, image);
        progress.show(&Event::PhaseStarted { phase: Phase::Image });
        Self {
            progress,
            total: total.filter(|total| *total > 0),
            last: Instant::now(),
        }
    }

    /// So many bytes came.
    fn at(&mut self, bytes: u64) {
        if self.last.elapsed() < SHOWN {
            return;
        }
        self.last = Instant::now();
        self.progress.show(&Event::Progress {
            phase: Phase::Image,
            bytes,
            // A stream is a little longer than the layers in it.
            total: self.total.map(|total| total.max(bytes)),
        });
    }
}

fn no_room(free: u64, needed: u64) -> Fault {
    let text =
        format!("the engine there has {free} bytes free, and needs {needed} while it takes the image in");
    Fault::new("image.space", FaultKind::Environment, text)
        .with_hint("`docker system prune` there, or free space otherwise; nothing was sent")
}

/// Whether a fault speaks against the way that was taken, and not against the link: an archive would go over the same one.
fn is_none(way: ImageStrategy, fault: &Fault) -> bool {
    is_no_way(fault) && !(way == ImageStrategy::Layers && fault.code == "registry.lost")
}

/// A link that broke under single layers: what to do says more than that it may be down.
fn goes_on(way: ImageStrategy, fault: Fault) -> Fault {
    match fault.code.as_str() {
        "wire.lost" | "registry.lost" if way == ImageStrategy::Layers => fault.with_hint(GOES_ON),
        _ => fault,
    }
}

/// Only the registry that was named is asked: the destination shows names and passwords to it, and the source does not choose to whom.
fn expected(origin: ImageOrigin, registry: &str) -> Result<ImageOrigin, Fault> {
    let text = match &origin {
        ImageOrigin::Registry { address, .. } if address == registry => return Ok(origin),
        ImageOrigin::Registry { address, .. } => {
            format!("the image was to go to {registry}, and the source says that it is at {address:?}")
        }
        ImageOrigin::Source => {
            format!("the image was to go to {registry}, and the source says that it has it itself")
        }
    };
    Err(
        Fault::new("source.registry", FaultKind::Environment, text).with_hint(
            "nothing was asked of any other registry; an agent that answers so is not to be trusted with images",
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::IMAGE_ABORTED;
    use tranship_core::ids::Digest;

    #[test]
    fn a_source_does_not_choose_the_registry() {
        let at = |address: &str| ImageOrigin::Registry {
            address: address.into(),
            repository: "tranship".into(),
            manifest: Digest::of(b"m"),
        };
        assert_eq!(expected(at("r:5000"), "r:5000").unwrap(), at("r:5000"));
        for lie in [
            at("http://r:5000"),
            at("r:5001"),
            at("r:5000/"),
            at("R:5000"),
            at("evil"),
            at(""),
            ImageOrigin::Source,
        ] {
            let fault = expected(lie, "r:5000").unwrap_err();
            assert_eq!(fault.code, "source.registry");
            assert!(fault.hint.is_some());
            // Another way would have the same source.
            assert!(!is_none(ImageStrategy::Registry, &fault));
        }
    }

    #[test]
    fn a_lost_link_is_no_way_that_does_not_work() {
        let fault = |code: &str| Fault::new(code, FaultKind::Environment, code);
        for (code, layers, registry) in [
            ("registry.lost", false, true),
            ("registry.not-found", true, true),
            ("image.strategy", true, true),
            ("engine.failed", true, true),
            ("wire.lost", false, false),
        ] {
            assert_eq!(is_none(ImageStrategy::Layers, &fault(code)), layers, "{code}");
            assert_eq!(is_none(ImageStrategy::Registry, &fault(code)), registry, "{code}");
        }
    }

    #[test]
    fn what_broke_off_says_that_it_goes_on_and_not_that_a_source_serves() {
        let lost = || Fault::new("wire.lost", FaultKind::Environment, "lost");
        assert_eq!(
            goes_on(ImageStrategy::Layers, lost()).hint.as_deref(),
            Some(GOES_ON)
        );
        assert_eq!(goes_on(ImageStrategy::Stream, lost()).hint, None);
        let aborted = Fault::new(IMAGE_ABORTED, FaultKind::RolledBack, "aborted");
        let said = crate::failure::describe(&aborted);
        assert!(!said.iter().any(|line| line.contains("serves")), "{said:?}");
    }
}
