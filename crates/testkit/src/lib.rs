//! Everything the tests of tranship share. For development only: no released crate depends on it.
//!
//! [`memory`] is an engine in memory. [`testbed`] starts real hosts on one machine: each with its own file system,
//! process tree, network address, sshd and container engine.

pub mod memory;
pub mod testbed;
