//! Every fault at every place, on real hosts: at most one instance at every moment, one at the end, nothing acknowledged
//! lost, nothing left.
//!
//! A program of its own, so that nothing else is tested while it measures. `cases.rs` lists what goes wrong where,
//! `run.rs` is one migration with one fault, `watch.rs` looks on from outside, `leftovers.rs` compares before and after.
//! `TRANSHIP_FAULTS=TEXT` runs only the cases whose name holds the text; `TRANSHIP_FAULT_WORLDS` says how many pairs of
//! hosts work at a time.
#![allow(clippy::print_stdout, reason = "a run says how it ended")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may panic as tests do"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "tests find the program under test and what to run by the environment"
)]
#![cfg(feature = "fail-points")]

#[allow(
    dead_code,
    unused_macros,
    reason = "the other test program uses what this one does not"
)]
#[path = "../e2e/world.rs"]
mod world;

mod cases;
mod leftovers;
mod matrix;
mod run;
mod scene;
mod watch;
