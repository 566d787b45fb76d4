//! `tranship image`: images by themselves, from node to node without a registry.

use std::time::Instant;

use futures_util::StreamExt as _;
use tranship_agent::images::{ExportImage, FoundImage, SettleImage, no_image};
use tranship_core::image::ImageSpec;
use tranship_core::{Fault, FaultKind, NodeAddress};
use tranship_wire::WireError;

use super::cp::Meter;
use super::{Context, serve};
use crate::cli::{ImageArgs, ImageCommand, ImageLayersArgs, ImageLsArgs};
use crate::connect::{self, Connection};
use crate::failure::one_line;
use crate::progress::Line;
use crate::render::{bytes, duration_ms, table};

/// What an agent says that it can do.
const CAPABILITY: &str = "images";
/// Characters of an id that people look at.
const SHORT: usize = 19;

/// Runs one of the forms.
pub async fn run(context: &Context, args: &ImageArgs) -> Result<(), Fault> {
    match &args.command {
        ImageCommand::Push(args) => bring(context, &args.images, &args.from, &args.node).await,
        ImageCommand::Pull(args) => bring(context, &args.images, &args.node, &args.to).await,
        ImageCommand::Ls(args) => list(context, args).await,
        ImageCommand::Layers(args) => layers(context, args).await,
        ImageCommand::Serve(args) => serve::run(context, args).await,
    }
}

async fn node(context: &Context, address: &NodeAddress) -> Result<Connection, Fault> {
    let node = connect::connect(context, address).await?;
    if node.can(CAPABILITY) {
        return Ok(node);
    }
    let text = "the agent there is of a version that knows nothing of images by themselves";
    Err(Fault::new("image.version", FaultKind::Environment, text)
        .with_hint("use the same version of tranship at both ends")
        .on_node(node.label))
}

/// The image that a reference means at a node.
async fn find(node: &Connection, reference: &str) -> Result<FoundImage, Fault> {
    let found = node.client.find_image(reference).await;
    let found = found.map_err(|fault| fault.on_node(node.label.clone()))?;
    found.ok_or_else(|| no_image(reference).on_node(node.label.clone()))
}

/// The tag of an image that a reference means; none if it is an id or a digest.
fn tag_of(image: &ImageSpec, reference: &str) -> Option<String> {
    let bare = reference.strip_prefix("docker.io/").unwrap_or(reference);
    let bare = bare.strip_prefix("library/").unwrap_or(bare);
    let latest = format!("{bare}:latest");
    let known = |tag: &&String| [reference, bare, latest.as_str()].contains(&tag.as_str());
    image.tags.iter().find(known).cloned()
}

/// How one image was brought.
#[derive(serde::Serialize)]
struct Brought {
    image: String,
    id: String,
    layers: usize,
    layers_sent: usize,
    bytes: u64,
    milliseconds: u64,
}

async fn bring(
    context: &Context,
    images: &[String],
    from: &NodeAddress,
    to: &NodeAddress,
) -> Result<(), Fault> {
    // An interrupt drops the streams, and the engine there gives up what it had of an image.
    tokio::select! {
        done = bring_all(context, images, from, to) => done,
        _ = tokio::signal::ctrl_c() => {
            let text = "bringing images over was aborted on request; those that were told of are there";
            Err(Fault::new("image.aborted", FaultKind::RolledBack, text))
        }
    }
}

/// The id of an image depends on how the engine keeps it.
async fn same_store(from: &Connection, to: &Connection) -> Result<(), Fault> {
    let facts = from
        .client
        .node()
        .await
        .map_err(|f| f.on_node(from.label.clone()))?;
    let there = to.client.node().await.map_err(|f| f.on_node(to.label.clone()))?;
    if facts.engine.image_store == there.engine.image_store {
        return Ok(());
    }
    let text = "the engines keep their images in stores of different kinds, in which the same image has different ids";
    Err(Fault::new("image.store", FaultKind::Environment, text)
        .with_hint("`docker info` shows the storage driver: set `containerd-snapshotter` alike at both")
        .on_node(to.label.clone()))
}

async fn bring_all(
    context: &Context,
    images: &[String],
    from: &NodeAddress,
    to: &NodeAddress,
) -> Result<(), Fault> {
    let (from, to) = (node(context, from).await?, node(context, to).await?);
    same_store(&from, &to).await?;
    // All of them are looked for before the first one travels.
    let mut found = Vec::new();
    for reference in images {
        found.push((reference, find(&from, reference).await?));
    }
    let mut all = Vec::new();
    for (reference, found) in found {
        let brought = one(context, &from, &to, reference, &found).await?;
        if !context.ui.json {
            let how = if brought.layers_sent == 0 && brought.bytes == 0 {
                "is there already".to_owned()
            } else {
                format!(
                    "{} of {} layers sent, {} in {}",
                    brought.layers_sent,
                    brought.layers,
                    bytes(brought.bytes),
                    duration_ms(brought.milliseconds)
                )
            };
            context.ui.say(&format!("{reference} → {}: {how}", to.label));
        }
        all.push(brought);
    }
    if context.ui.json {
        context.ui.json(&all)?;
    }
    Ok(())
}

async fn one(
    context: &Context,
    from: &Connection,
    to: &Connection,
    reference: &str,
    found: &FoundImage,
) -> Result<Brought, Fault> {
    let begun = Instant::now();
    let image = &found.image;
    let tag = tag_of(image, reference);
    let there = |fault: Fault| fault.on_node(to.label.clone());
    let mut brought = Brought {
        image: reference.to_owned(),
        id: image.id.to_string(),
        layers: image.layers.len(),
        layers_sent: 0,
        bytes: 0,
        milliseconds: 0,
    };
    let held = to.client.find_image(image.id.as_str()).await.map_err(there)?;
    if held.is_none_or(|held| held.image.incomplete) {
        let skip = to
            .client
            .layers_held(image.known_layers())
            .await
            .map_err(there)?
            .min(image.layers.len());
        brought.layers_sent = image.layers.len() - skip;
        let sent = send(context, from, to, reference, found, tag.as_deref(), skip).await;
        brought.bytes = match sent {
            // Layers that were there may have gone in between; the whole image does not depend on them.
            Err(fault) if skip > 0 => {
                let text =
                    format!("sending only the missing layers failed ({fault}); sending the whole image");
                context.ui.say(&text);
                brought.layers_sent = image.layers.len();
                send(context, from, to, reference, found, tag.as_deref(), 0).await?
            }
            sent => sent?,
        };
    }
    let settle = SettleImage {
        image: image.id.clone(),
        layers: image.layers.clone(),
        tag,
    };
    to.client.settle_image(&settle).await.map_err(there)?;
    brought.milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(brought)
}

/// Sends the layers that are missing, and returns the bytes of their archive.
async fn send(
    context: &Context,
    from: &Connection,
    to: &Connection,
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
    let archive = from.client.export_image(&ask).await;
    let archive = archive.map_err(|fault| fault.on_node(from.label.clone()))?;
    let total = found
        .sizes
        .get(skip)
        .map_or_else(String::new, |size| format!(" of {}", bytes(*size)));
    let mut meter = Meter::new(Line::new(&context.ui)).titled(format!("{reference}{total}: "));
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counter = std::sync::Arc::clone(&sent);
    let source = from.label.clone();
    let archive = archive.map(move |part| {
        let part = part.map_err(|error| WireError::into_fault(error).on_node(source.clone()))?;
        let length = part.len() as u64;
        let now = counter.fetch_add(length, std::sync::atomic::Ordering::Relaxed) + length;
        meter.at(now);
        Ok::<_, Fault>(part)
    });
    let taken_in = to.client.import_image(archive).await;
    taken_in.map_err(|fault| {
        if fault.node.is_some() {
            fault
        } else {
            fault.on_node(to.label.clone())
        }
    })?;
    Ok(sent.load(std::sync::atomic::Ordering::Relaxed))
}

/// Prints the images of a node: a line for every tag, and one for an image without a tag.
async fn list(context: &Context, args: &ImageLsArgs) -> Result<(), Fault> {
    let node = node(context, &args.node).await?;
    let images = node.client.images().await;
    let images = images.map_err(|fault| fault.on_node(node.label.clone()))?;
    if context.ui.json {
        return context.ui.json(&images);
    }
    let mut rows = vec![
        ["IMAGE", "ID", "LAYERS", "SIZE", "PLATFORM"]
            .map(String::from)
            .to_vec(),
    ];
    let mut lines: Vec<(&str, &ImageSpec)> = Vec::new();
    for image in &images {
        lines.extend(image.tags.iter().map(|tag| (tag.as_str(), image)));
        if image.tags.is_empty() {
            lines.push(("-", image));
        }
    }
    lines.sort_by_key(|(tag, image)| (*tag == "-", *tag, image.id.as_str()));
    for (tag, image) in lines {
        rows.push(vec![
            one_line(tag),
            image
                .id
                .as_str()
                .get(..SHORT)
                .unwrap_or(image.id.as_str())
                .to_owned(),
            image.layers.len().to_string(),
            bytes(image.size),
            one_line(&format!("{}/{}", image.os, image.architecture)),
        ]);
    }
    context.ui.document(&table(&rows).join("\n"))
}

/// One layer, as `tranship image layers` tells it.
#[derive(serde::Serialize)]
struct Layer<'a> {
    layer: &'a str,
    held: bool,
    bytes: Option<u64>,
}

async fn layers(context: &Context, args: &ImageLayersArgs) -> Result<(), Fault> {
    let (from, on) = (node(context, &args.from).await?, node(context, &args.on).await?);
    let found = find(&from, &args.image).await?;
    let there = |fault: Fault| fault.on_node(on.label.clone());
    let whole = on
        .client
        .find_image(found.image.id.as_str())
        .await
        .map_err(there)?
        .is_some_and(|there| !there.image.incomplete);
    let held = match whole {
        true => found.image.layers.len(),
        false => on
            .client
            .layers_held(found.image.known_layers())
            .await
            .map_err(there)?,
    };
    let size = |at: usize| Some(found.sizes.get(at)?.saturating_sub(*found.sizes.get(at + 1)?));
    let layers: Vec<Layer<'_>> = found
        .image
        .layers
        .iter()
        .enumerate()
        .map(|(at, layer)| Layer {
            layer: layer.as_str(),
            held: at < held,
            bytes: size(at),
        })
        .collect();
    if context.ui.json {
        return context.ui.json(&layers);
    }
    let mut rows = vec![["LAYER", "SIZE", "THERE"].map(String::from).to_vec()];
    for layer in &layers {
        rows.push(vec![
            layer.layer.get(..SHORT).unwrap_or(layer.layer).to_owned(),
            layer.bytes.map_or_else(|| "?".to_owned(), bytes),
            if layer.held { "yes" } else { "missing" }.to_owned(),
        ]);
    }
    context.ui.document(&table(&rows).join("\n"))?;
    let missing = found
        .sizes
        .get(held)
        .map_or_else(|| "?".to_owned(), |size| bytes(*size));
    context.ui.say(&format!(
        "{} of {} layers are missing on {}: {missing} would travel",
        layers.len().saturating_sub(held),
        layers.len(),
        on.label
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tranship_core::ids::Digest;

    #[test]
    fn a_reference_means_a_tag_as_docker_reads_it() {
        let image = ImageSpec {
            id: Digest::of(b"i"),
            tags: vec!["app:latest".into(), "host:5000/app:2".into()],
            repo_digests: Vec::new(),
            kept_layers: Vec::new(),
            variant: String::new(),
            incomplete: false,
            layers: Vec::new(),
            size: 0,
            architecture: String::new(),
            os: String::new(),
        };
        for (reference, tag) in [
            ("app", Some("app:latest")),
            ("app:latest", Some("app:latest")),
            ("docker.io/library/app", Some("app:latest")),
            ("host:5000/app:2", Some("host:5000/app:2")),
            (image.id.as_str(), None),
            ("ap", None),
        ] {
            assert_eq!(tag_of(&image, reference).as_deref(), tag, "{reference}");
        }
    }
}
