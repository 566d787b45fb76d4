//! Making a container again: from the source's inspect document to the body of `create`, and the proof afterwards that
//! nothing was lost on the way.
//!
//! Docker's create body is nearly its inspect document turned inside out: `Config` at the top, `HostConfig` below, the
//! endpoints' settings in `NetworkingConfig`. Nearly: what the engine allocated or filled in must not be sent back, and
//! a few fields read differently than they write. [`create_body`] knows those; everything else travels verbatim, known
//! or not. [`differences`] then compares what was made with what should have been, field by field over the whole
//! document, leaving out only what [`IGNORED`] names.
//!
//! All of it is pure; the calls are in `docker.rs`.

mod body;
mod compare;
#[cfg(test)]
mod tests;
mod volumes;

pub use body::{Joins, create_body, expected, network_body};
pub(crate) use body::{further_endpoints, leaves_primary, restart_policy};
pub(crate) use compare::losses;
pub use compare::{IGNORED, differences};
pub(crate) use volumes::{beforehand, carried, check as check_carried};
