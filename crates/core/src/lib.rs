//! The cellar: ids, domain types, ports and the error taxonomy that every other room builds on.
//!
//! Nothing in here does input or output. A port (a trait such as [`Engine`]) says what the heart of tranship needs
//! from the world; adapters in the edge rooms implement it; only the agent and the binary name an adapter.

pub mod address;
pub mod container;
pub mod engine;
pub mod event;
pub mod fault;
pub mod ids;
pub mod image;
pub mod memory;
pub mod network;
pub mod node;
pub mod storage;

pub use address::NodeAddress;
pub use container::ContainerSpec;
pub use engine::{Engine, EngineError};
pub use event::{Event, Phase, Reporter};
pub use fault::{Fault, FaultKind};
pub use ids::{ContainerId, MigrationId};
pub use image::ImageSpec;
pub use network::NetworkSpec;
