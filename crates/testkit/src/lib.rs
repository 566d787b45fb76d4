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
            $crate::skipped(&reason);
            return Ok(());
        }
    };
}

/// Notes that a test could not run: `SKIPPED: reason` on standard error, and a line in the file that the environment
/// names by `TRANSHIP_TEST_SKIPS`, where `cargo xtask test` counts them.
#[expect(
    clippy::disallowed_methods,
    reason = "the test runner and the tests meet in the environment"
)]
pub fn skipped(reason: &str) {
    use std::io::Write as _;
    // Not a print macro: those are swallowed when a test passes. That nobody reads is no reason to fail.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {reason}");
    let Some(list) = std::env::var_os("TRANSHIP_TEST_SKIPS") else {
        return;
    };
    let list = std::fs::OpenOptions::new().append(true).create(true).open(list);
    if let Ok(mut list) = list {
        let _ = writeln!(list, "{reason}");
    }
}
