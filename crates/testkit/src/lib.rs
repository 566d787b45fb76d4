//! Everything the tests of tranship share. For development only: no released crate depends on it.
//!
//! [`testbed`] starts real hosts on one machine: each with its own file system, process tree, network address,
//! sshd and container engine. [`memory`] is an engine in memory, for tests that need speed and faults more.

pub mod memory;
pub mod testbed;

/// Ends the calling test, which must return `Result<(), _>`, with `SKIPPED: reason` where the machine can't carry a
/// testbed. The line is seen although the test passes.
#[macro_export]
macro_rules! require_testbed {
    () => {
        if let Some(reason) = $crate::testbed::missing_capability() {
            use std::io::Write as _;
            // Not a print macro: those are swallowed when a test passes.
            writeln!(std::io::stderr(), "SKIPPED: {reason}")?;
            return Ok(());
        }
    };
}
