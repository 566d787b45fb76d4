//! Images by other ways than one archive: single layers that the destination asks for, and registries.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;
use tranship_core::event::{Event, Phase};
use tranship_core::fault::FaultKind;
use tranship_core::{Fault, ImageSpec};

use super::{Departure, PATIENCE, PROGRESS_EVERY, RETRY};
use crate::destination::{Opened, link_lost};
use crate::images::{Came, ImageOrigin, ImageStrategy, is_no_way, served_and_taken};
use crate::plan::Member;

impl Departure {
    /// Brings a member's image there as the plan says; nothing where that is one archive.
    pub(super) async fn image_otherwise(
        &mut self,
        index: usize,
        member: &Member,
        opened: &Opened,
    ) -> Option<Result<(), Fault>> {
        let way = member.image_way.as_ref().unwrap_or(&self.plan().image_way);
        let strategy = way.strategy;
        if index == 0 && matches!(strategy, ImageStrategy::Layers | ImageStrategy::Registry) {
            self.record.plan.transfer.skip_layers =
                opened.layers_held.min(member.transfer.image.layers.len());
        }
        let image = &member.transfer.image;
        let done = match strategy {
            ImageStrategy::Layers => self.by_layers(index, image, member.transfer.bytes).await,
            ImageStrategy::Registry => self.by_registry(index, image).await,
            ImageStrategy::Auto | ImageStrategy::Simple | ImageStrategy::Stream => return None,
        };
        match done {
            // Nobody asked for this way: where it turns out to be none, there is the one that always works.
            Err(fault) if self.plan().options.image_strategy.is_auto() && is_no_way(&fault) => {
                let text =
                    format!("{strategy} does not work ({fault}); sending the missing layers from here");
                self.reporter.report(Event::Warning { text });
                None
            }
            done => Some(done),
        }
    }

    /// The destination asks for what it lacks. A link that broke is made again as long as something came since, and what came stays
    /// there.
    async fn by_layers(&mut self, index: usize, image: &ImageSpec, total: Option<u64>) -> Result<(), Fault> {
        let sent = Arc::new(AtomicU64::new(0));
        let (mut got_on, mut before, mut said) = (Instant::now(), 0, false);
        let result = loop {
            let result = self.layers_once(index, image, total, &sent).await;
            let now = sent.load(Ordering::Relaxed);
            if now > before {
                (got_on, before) = (Instant::now(), now);
            }
            match result {
                Err(fault) if passes(&fault) && got_on.elapsed() < PATIENCE => {
                    self.stop_if_cancelled()?;
                    if !said {
                        let text = format!(
                            "the link broke ({fault}); what came of the image is kept, and it goes on"
                        );
                        self.reporter.report(Event::Warning { text });
                        said = true;
                    }
                    tokio::time::sleep(RETRY).await;
                }
                done => break done,
            }
        };
        let bytes = sent.load(Ordering::Relaxed);
        self.record.bytes_sent += bytes;
        self.say_bytes(bytes, total);
        let came = result?;
        self.say_came(image, came, "the source");
        Ok(())
    }

    async fn layers_once(
        &self,
        index: usize,
        image: &ImageSpec,
        total: Option<u64>,
        sent: &Arc<AtomicU64>,
    ) -> Result<Came, Fault> {
        let pipe = self.destination.image_pipe(index).await?;
        let serving = self.ports.images.serve(image, pipe, Arc::clone(sent));
        let taking = self.destination.image_from(index, &ImageOrigin::Source);
        let both = served_and_taken(serving, taking);
        self.watched(both, sent, total).await
    }

    async fn by_registry(&mut self, index: usize, image: &ImageSpec) -> Result<(), Fault> {
        let registry = self.plan().options.registry.clone().unwrap_or_default();
        let sent = Arc::new(AtomicU64::new(0));
        // Whoever leaves the choice to the plan does not want everything to travel twice.
        let may_push = !self.plan().options.image_strategy.is_auto();
        let pushing = self
            .ports
            .images
            .push(image, &registry, may_push, Arc::clone(&sent));
        // Both ends speak to the registry, and what one of them met the other may not.
        let source = self.plan().source.clone();
        let pushing = async { pushing.await.map_err(|fault| fault.on_node(source)) };
        let pushed = self.watched(pushing, &sent, None).await;
        let bytes = sent.load(Ordering::Relaxed);
        self.record.bytes_sent += bytes;
        let origin = pushed?;
        self.reporter.report(Event::Note {
            text: format!("{bytes} bytes went to {registry}"),
        });
        let taking = self.destination.image_from(index, &origin);
        let destination = self.plan().destination.clone();
        let taking = async {
            taking.await.map_err(|fault| match link_lost(&fault) {
                true => fault,
                false => fault.on_node(destination),
            })
        };
        let came = self.watched(taking, &sent, None).await?;
        self.record.bytes_sent += came.bytes;
        self.say_bytes(bytes.saturating_add(came.bytes), None);
        self.say_came(image, came, &registry);
        Ok(())
    }

    /// Says how far it is until it is through, and gives up on request.
    async fn watched<T>(
        &self,
        work: impl Future<Output = Result<T, Fault>>,
        sent: &AtomicU64,
        total: Option<u64>,
    ) -> Result<T, Fault> {
        let mut work = std::pin::pin!(work);
        let mut cancelled = self.cancelled.clone();
        let mut tick = tokio::time::interval(PROGRESS_EVERY);
        let mut last = 0;
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = cancelled.wait_for(|c| *c) => {
                    return Err(Fault::new("migrate.aborted", FaultKind::RolledBack, "the migration was aborted on request"));
                }
                _ = tick.tick() => {
                    let now = sent.load(Ordering::Relaxed);
                    if now > last {
                        last = now;
                        self.say_bytes(now, total);
                    }
                }
            }
        }
    }

    fn say_bytes(&self, bytes: u64, total: Option<u64>) {
        self.reporter.report(Event::Progress {
            phase: Phase::Image,
            bytes,
            total,
        });
    }

    fn say_came(&self, image: &ImageSpec, came: Came, from: &str) {
        let text = format!(
            "{} of {} layers ({} bytes) came from {from}",
            came.layers,
            image.layers.len(),
            came.bytes
        );
        self.reporter.report(Event::Note { text });
    }
}

/// Whether it may go better over another connection.
fn passes(fault: &Fault) -> bool {
    // A destination that does not know the way will not learn it.
    (link_lost(fault) && fault.code != "wire.not-found") || fault.code == "registry.lost"
}
