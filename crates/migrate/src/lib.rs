//! The heart: what a migration is, in which steps it goes, and how each step is undone.
//!
//! This room knows ports only: [`tranship_core::Engine`] for what happens on a node, [`Destination`] for what the source
//! asks of the other side, [`Records`] for what must survive a crash. It never names an adapter, so the same steps run
//! between real hosts and between the engines in memory that the tests use.
//!
//! * [`plan()`] compares a container with what the destination says of itself, and lists every conflict before a byte moves.
//! * [`Departure`] drives a migration from the source.
//! * [`protocol`] decides who owns the container, without I/O; the two below do what it says.
//! * [`Arrival`] is the destination's half: it takes in, proves, and either adopts or discards without a trace.

pub mod arrival;
mod auto;
pub mod check;
pub mod departure;
pub mod destination;
pub mod elements;
pub mod failpoint;
mod health;
mod hook;
pub mod images;
pub mod options;
mod order;
mod pipe;
pub mod plan;
pub mod ports;
pub mod protocol;
pub mod record;

pub use arrival::Arrival;
pub use departure::Departure;
pub use destination::Destination;
pub use images::{ImageStrategy, ImageWays};
pub use options::{MoveOptions, OnSource};
pub use pipe::breakable;
pub use plan::{Finding, Mode, Plan, Severity, plan};
pub use ports::{Host, Ports};
pub use record::{ArrivalRecord, DepartureRecord, Records};
