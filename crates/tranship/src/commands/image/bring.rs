//! `tranship image push` and `pull`: all images are looked for first, and then one comes after the other.

use tranship_core::{Fault, FaultKind, NodeAddress};

use super::brought::Brought;
use super::ends::{Ends, GOES_ON};
use super::find;
use crate::cli::ImageWayArgs;
use crate::commands::Context;
use crate::failure::IMAGE_ABORTED;
use crate::interrupts::Interrupts;

/// Brings images from one node to another.
pub(super) async fn run(
    context: &Context,
    images: &[String],
    way: &ImageWayArgs,
    from: &NodeAddress,
    to: &NodeAddress,
) -> Result<(), Fault> {
    way.check()?;
    let mut all = Vec::new();
    let mut signals = Interrupts::unless_ignored()?;
    // An interrupt drops the streams, and the engine there gives up what it had of an image.
    let done = tokio::select! {
        done = bring_all(context, images, way, (from, to), &mut all) => done,
        () = signals.next() => {
            let text = "bringing images over was aborted on request; those that were told of are there";
            Err(Fault::new(IMAGE_ABORTED, FaultKind::RolledBack, text).with_hint(GOES_ON))
        }
    };
    // What is there is told of also where a later one failed.
    if context.ui.json && (done.is_ok() || !all.is_empty()) {
        let told = context.ui.json(&all);
        return done.and(told);
    }
    done
}

async fn bring_all(
    context: &Context,
    images: &[String],
    way: &ImageWayArgs,
    (from, to): (&NodeAddress, &NodeAddress),
    all: &mut Vec<Brought>,
) -> Result<(), Fault> {
    let ends = Ends::connect(context, way, from, to).await?;
    // All of them are looked for, and the ways of all, before the first one travels.
    let mut found = Vec::new();
    for reference in images {
        let image = find(&ends.from, reference).await?;
        ends.choose(&image).await?;
        found.push((reference, image));
    }
    for (reference, found) in found {
        let brought = ends.bring(reference, &found).await?;
        if !context.ui.json {
            context.ui.say(&brought.in_words(&ends.to.label));
        }
        all.push(brought);
    }
    Ok(())
}
