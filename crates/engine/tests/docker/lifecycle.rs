//! Starting, stopping, failing.
