//! Health checks where nobody runs them.
//!
//! Podman leaves the running of health checks to timers of systemd. A host without it never runs one: a container would be `starting`
//! for ever. Whoever waits for its health has it looked at then.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use tranship_core::ContainerId;

use super::API;
use crate::docker::DockerEngine;
use crate::fault::Ask;

/// What is there where systemd runs (`sd_booted(3)`).
const SYSTEMD: &str = "run/systemd/system";

/// How often a health is looked at where nothing is said.
const USUAL_INTERVAL: Duration = Duration::from_secs(30);

/// When the health of each container was looked at last, by its start; or when that start was first seen.
#[derive(Debug, Default)]
pub(crate) struct Looks(BTreeMap<String, (String, Instant)>);

impl Looks {
    /// Whether an interval is over since the last look, or since the start. It counts as looked at then: who waits asks far more
    /// often, and a slow program would have failed all its checks before it is up.
    fn is_due(&mut self, container: &str, started: &str, interval: Duration, now: Instant) -> bool {
        match self.0.get_mut(container) {
            Some((start, last)) if start == started => {
                let due = now.saturating_duration_since(*last) >= interval;
                if due {
                    *last = now;
                }
                due
            }
            _ => {
                self.0.insert(container.to_owned(), (started.to_owned(), now));
                false
            }
        }
    }
}

/// The interval from Podman's document, in nanoseconds.
fn interval_of(nanoseconds: i64) -> Duration {
    match u64::try_from(nanoseconds) {
        Ok(0) | Err(_) => USUAL_INTERVAL,
        Ok(nanoseconds) => Duration::from_nanos(nanoseconds),
    }
}

impl DockerEngine {
    /// Runs the health check where no timer does, once in an interval. What comes of it is in the container's state.
    pub(super) async fn check_health(&self, container: &ContainerId, started: &str, interval: i64) {
        if self.root_prefix.join(SYSTEMD).is_dir() {
            return;
        }
        let interval = interval_of(interval);
        let due = self
            .looks
            .lock()
            .is_ok_and(|mut looks| looks.is_due(container.as_str(), started, interval, Instant::now()));
        if !due {
            return;
        }
        let ask = Ask::new("look at the health of", "container", container.as_str());
        let path = format!("{API}/containers/{}/healthcheck", container.as_str());
        let looked: Result<Value, _> = self.raw.get(&path, &ask).await;
        if let Err(error) = looked {
            tracing::debug!(%container, %error, "a health check that could not be run");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_looked_at_once_in_an_interval() {
        let mut looks = Looks::default();
        let (start, interval) = (Instant::now(), interval_of(5_000_000_000));
        let mut due = |started: &str, after: u64| {
            looks.is_due("c", started, interval, start + Duration::from_millis(after))
        };
        assert!(!due("one", 0));
        assert!(!due("one", 50));
        assert!(due("one", 5_000));
        assert!(!due("one", 5_050));
        assert!(!due("one", 9_900));
        assert!(due("one", 10_000));
        assert!(!due("two", 20_000), "another start");
        assert!(due("two", 25_000));
        assert_eq!(interval_of(0), USUAL_INTERVAL);
    }
}
