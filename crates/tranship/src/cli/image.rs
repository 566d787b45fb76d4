//! Arguments of `tranship image`.

use clap::{Args, Subcommand};
use tranship_core::NodeAddress;

/// `tranship image`
#[derive(Debug, Clone, Args)]
pub struct ImageArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ImageCommand,
}

/// What can be done with images.
#[derive(Debug, Clone, Subcommand)]
pub enum ImageCommand {
    /// Bring images to a node; layers that it holds do not travel, and no registry is needed
    Push(ImagePushArgs),
    /// Bring images from a node to this machine, or to another node
    Pull(ImagePullArgs),
    /// Show which layers of an image a node holds, and what would travel
    Layers(ImageLayersArgs),
}

/// `tranship image push`
#[derive(Debug, Clone, Args)]
pub struct ImagePushArgs {
    /// Tag, digest or id of each image
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// The node that they are brought to
    #[arg(value_name = "NODE")]
    pub node: NodeAddress,
    /// The node where they are
    #[arg(long, value_name = "NODE", default_value = "local")]
    pub from: NodeAddress,
}

/// `tranship image pull`
#[derive(Debug, Clone, Args)]
pub struct ImagePullArgs {
    /// Tag, digest or id of each image
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// The node where they are
    #[arg(value_name = "NODE")]
    pub node: NodeAddress,
    /// The node that they are brought to
    #[arg(long, value_name = "NODE", default_value = "local")]
    pub to: NodeAddress,
}

/// `tranship image layers`
#[derive(Debug, Clone, Args)]
pub struct ImageLayersArgs {
    /// Tag, digest or id of the image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// The node that is asked what it holds
    #[arg(long, value_name = "NODE")]
    pub on: NodeAddress,
    /// The node where the image is
    #[arg(long, value_name = "NODE", default_value = "local")]
    pub from: NodeAddress,
}
