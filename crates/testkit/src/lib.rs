//! The tool shed: what tests need and releases never hold.

pub mod memory;
