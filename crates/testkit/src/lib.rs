//! Everything the tests of tranship share. For development only: no released crate depends on it.
//!
//! [`testbed`] starts real hosts on one machine: each with its own file system, process tree, network address,
//! sshd and container engine. [`memory`] is an engine in memory, for tests that need speed and faults more.

pub mod memory;
pub mod testbed;
