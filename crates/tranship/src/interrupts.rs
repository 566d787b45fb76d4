//! Ctrl-C and SIGTERM, for commands that end in order.

use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tranship_core::{Fault, FaultKind};

/// Tells of each of them, in place of the end that they are by themselves.
pub struct Interrupts(Vec<Signal>);

impl Interrupts {
    /// From now on they end nothing by themselves.
    ///
    /// # Errors
    /// `signal.failed`.
    pub fn new() -> Result<Self, Fault> {
        Self::of(&[SignalKind::interrupt(), SignalKind::terminate()])
    }

    /// The same, and the end of the terminal; but what is ignored stays so, as `nohup` and shells in scripts ask for.
    ///
    /// # Errors
    /// `signal.failed`.
    pub fn unless_ignored() -> Result<Self, Fault> {
        let ignored = ignored();
        let mut kinds = vec![
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ];
        kinds.retain(|kind| ignored & (1 << (kind.as_raw_value() - 1)) == 0);
        Self::of(&kinds)
    }

    fn of(kinds: &[SignalKind]) -> Result<Self, Fault> {
        let bug = |e: std::io::Error| Fault::new("signal.failed", FaultKind::Bug, e.to_string());
        let signals = kinds.iter().map(|kind| signal(*kind).map_err(bug));
        Ok(Self(signals.collect::<Result<_, _>>()?))
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        std::future::poll_fn(|context| {
            let mut signals = self.0.iter_mut();
            match signals.any(|signal| signal.poll_recv(context).is_ready()) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
}

/// The signals that this process ignores, a bit each from the lowest on.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .unwrap_or_default()
}
