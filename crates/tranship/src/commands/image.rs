//! `tranship image`: images by themselves.

mod bring;
mod brought;
mod ends;

use tranship_agent::images::{FoundImage, no_image};
use tranship_core::image::ImageSpec;
use tranship_core::{Fault, FaultKind, NodeAddress};

use self::ends::{facts, same_store};
use super::{Context, serve};
use crate::cli::{ImageArgs, ImageCommand, ImageLayersArgs, ImageLsArgs};
use crate::connect::{self, Connection};
use crate::failure::one_line;
use crate::render::{bytes, table};

/// What an agent says that it can do.
const CAPABILITY: &str = "images";
/// Characters of an id that people look at.
const SHORT: usize = 19;

/// Runs one of the forms.
pub async fn run(context: &Context, args: &ImageArgs) -> Result<(), Fault> {
    match &args.command {
        ImageCommand::Push(args) => {
            bring::run(context, &args.images, &args.way, &args.from, &args.node).await
        }
        ImageCommand::Pull(args) => bring::run(context, &args.images, &args.way, &args.node, &args.to).await,
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
    same_store(&facts(&from).await?, &facts(&on).await?).map_err(there)?;
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
    let (missing, all) = (layers.len().saturating_sub(held), layers.len());
    let travels = match (whole, found.sizes.get(held)) {
        (true, _) => "nothing".to_owned(),
        (_, Some(size)) => bytes(*size),
        (_, None) => "?".to_owned(),
    };
    let text = format!(
        "{missing} of {all} layers are missing on {}: {travels} would travel",
        on.label
    );
    context.ui.say(&text);
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
