//! The hall: one agent per node, which answers callers, takes part in migrations, and remembers them.
//!
//! An agent lives on when the connection that started it ends: a migration is driven by the source's agent, and the
//! caller only watches. [`api`] lists what it can be asked.

pub mod api;
mod archive_api;
mod client;
mod copies;
pub mod daemon;
mod engine;
mod events;
pub mod files;
mod guids;
mod host;
mod incoming;
pub mod node;
mod outgoing;
mod registry;
mod server;
mod state;
mod storage;
mod store;
mod volumes;

pub use client::{AgentClient, CopyEvents};
pub use engine::NodeEngine;
pub use host::Shell;
pub use state::Identity;
pub use storage::NodeStorage;
