//! The client against registries in memory: what it asks for, and what liars get.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may panic as tests do"
)]

#[path = "../registry/common.rs"]
#[allow(dead_code, reason = "shared with the tests of the registry")]
mod common;
mod fetching;
mod kept;
mod liars;
mod pushing;
mod server;
#[path = "../registry/store.rs"]
#[allow(dead_code, reason = "shared with the tests of the registry")]
mod store;
