//! The adapter against real Docker engines on two hosts of the testbed.
//!
//! Every test is skipped, with the reason, where the machine cannot carry a testbed.

mod fidelity;
mod hosts;
mod images;
mod lifecycle;
