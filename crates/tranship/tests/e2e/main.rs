//! The whole program between real hosts. One file per kind of question.
//!
//! Every test has two hosts of its own, made by the testbed and taken down at its end.
#![allow(clippy::print_stdout, reason = "a test says what it measured")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may panic as tests do"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "tests find the program under test and their skip list by the environment"
)]

#[macro_use]
mod world;

mod checkpoint;
mod checkpoint_archive;
mod checkpoint_image;
mod commands;
mod conflicts;
mod connections;
mod containerd;
mod containerd_layers;
mod containerd_registry;
mod cp;
mod cp_across;
mod cp_broken;
mod cp_cases;
mod cp_delta;
mod cp_differential;
mod cp_elements;
mod cp_races;
mod failures;
mod fidelity;
mod image_push_ways;
mod image_ways;
mod images;
mod journals;
mod live;
mod moves;
mod output;
mod podman;
mod races;
mod registry;
mod registry_containerd;
mod state;
mod versions;
