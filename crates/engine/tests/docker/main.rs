//! The adapter against real Docker engines on two hosts of the testbed.
//!
//! Every test is skipped, with the reason, where the machine cannot carry a testbed.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests are tests; a skip is said on the terminal"
)]

mod elements;
mod fidelity;
mod hosts;
mod images;
mod lifecycle;
mod processes;
mod volumes;
