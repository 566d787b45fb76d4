//! Arguments of `tranship image`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use tranship_core::{Fault, FaultKind, NodeAddress};
use tranship_migrate::ImageStrategy;

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
    /// Bring images to a node; layers that it holds do not travel, those that several images share travel once, and no registry is
    /// needed
    Push(ImagePushArgs),
    /// Bring images from a node to this machine, or to another node
    Pull(ImagePullArgs),
    /// List the images of a node
    Ls(ImageLsArgs),
    /// Show which layers of an image a node holds, and what would travel
    Layers(ImageLayersArgs),
    /// Serve this machine's images as a registry: docker, podman and skopeo pull from it and push to it
    Serve(ImageServeArgs),
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
    /// How the images get there.
    #[command(flatten)]
    pub way: ImageWayArgs,
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
    /// How the images get there.
    #[command(flatten)]
    pub way: ImageWayArgs,
}

/// `tranship image ls`
#[derive(Debug, Clone, Args)]
pub struct ImageLsArgs {
    /// The node
    #[arg(value_name = "NODE", default_value = "local")]
    pub node: NodeAddress,
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

/// `tranship image serve`
#[derive(Debug, Clone, Args)]
pub struct ImageServeArgs {
    /// Where it listens. Other machines get there only with --tls-cert, --tls-key and --credentials
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5000")]
    pub listen: SocketAddr,
    /// The certificate and those that vouch for it, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its key, in PEM; closed to other users
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Who may use it, as `htpasswd -B` writes it; closed to other users
    #[arg(long, value_name = "FILE")]
    pub credentials: Option<PathBuf>,
    /// Let nothing be pushed or deleted
    #[arg(long)]
    pub read_only: bool,
    /// The engine's socket, where it is not the default one
    #[arg(long, value_name = "SOCKET")]
    pub engine: Option<PathBuf>,
}

/// How an image, of a container or by itself, gets to its destination.
#[derive(Debug, Clone, Args)]
pub struct ImageWayArgs {
    /// How the image gets there
    #[arg(long, value_enum, default_value_t = ImageStrategyArg::Auto, help_heading = "Transfer")]
    pub image_strategy: ImageStrategyArg,
    /// The registry by way of which the image may get there; http:// before it says that it has no TLS
    #[arg(
        long,
        value_name = "HOST[:PORT][/PATH]",
        value_parser = parse_registry,
        required_if_eq("image_strategy", "registry"),
        help_heading = "Transfer"
    )]
    pub registry: Option<String>,
}

impl ImageWayArgs {
    /// Looks whether the arguments make sense together.
    ///
    /// # Errors
    /// `usage.registry`.
    pub fn check(&self) -> Result<(), Fault> {
        let by_registry = [ImageStrategyArg::Auto, ImageStrategyArg::Registry].contains(&self.image_strategy);
        if self.registry.is_none() || by_registry {
            return Ok(());
        }
        let text = "--registry is of no use with this --image-strategy";
        Err(Fault::new("usage.registry", FaultKind::Usage, text)
            .with_hint("use --image-strategy registry, or auto"))
    }

    /// The strategy, as the heart has it.
    pub fn strategy(&self) -> ImageStrategy {
        match self.image_strategy {
            ImageStrategyArg::Auto => ImageStrategy::Auto,
            ImageStrategyArg::Simple => ImageStrategy::Simple,
            ImageStrategyArg::Stream => ImageStrategy::Stream,
            ImageStrategyArg::Layers => ImageStrategy::Layers,
            ImageStrategyArg::Registry => ImageStrategy::Registry,
        }
    }
}

/// How the image gets there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ImageStrategyArg {
    /// The cheapest of the others that works; it is said which, and why
    Auto,
    /// The whole image as one archive, layers that are there included
    Simple,
    /// The missing layers as one archive, straight into the engine there
    Stream,
    /// The missing layers one by one, several at once; they go on where they stood if the link breaks
    Layers,
    /// To a registry (--registry) and from there, both without what is there already
    Registry,
}

fn parse_registry(text: &str) -> Result<String, String> {
    match tranship_agent::check_registry(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(fault) => Err(fault.message),
    }
}
