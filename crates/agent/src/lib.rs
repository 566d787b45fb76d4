//! The hall: one agent per node, which answers callers, takes part in migrations, and remembers them.
//!
//! An agent lives on when the connection that started it ends: a migration is driven by the source's agent, and the
//! caller only watches. [`api`] lists what it can be asked.

pub mod api;
mod archive_api;
mod archives;
pub mod checkpoints;
mod client;
mod copies;
pub mod daemon;
mod docker_config;
mod elements;
mod engine;
mod events;
pub mod files;
mod guids;
mod host;
mod image_ways;
pub mod images;
mod incoming;
mod journal;
mod locks;
mod log;
mod mounts;
pub mod node;
pub mod oci;
mod outgoing;
mod registry;
mod server;
mod state;
mod storage;
mod store;
mod tar_route;
mod transfers;
mod trust;
mod unfinished;
mod views;
mod volumes;
mod ways;
mod writes;

pub use archives::Imported;
pub use client::{AgentClient, CopyEvents, FilesEvents};
pub use docker_config::DockerConfig;
pub use engine::NodeEngine;
pub use host::Shell;
pub use image_ways::{NodeImages, check_registry};
pub use state::Identity;
pub use storage::NodeStorage;
pub use ways::peer_key;
