//! The registry over an engine in memory: what the requests of the distribution specification do, and what liars get.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may panic as tests do"
)]

mod common;
mod hostile;
mod kept;
mod pull;
mod push;
mod store;
mod whole;
