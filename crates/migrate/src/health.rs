//! When a container has proved itself.

use std::time::Duration;

use tranship_core::container::{ContainerSpec, ContainerState, ContainerStatus, Health};
use tranship_core::fault::FaultKind;
use tranship_core::{ContainerId, Engine, Fault};

/// A container without a health check must stay up this long.
const SETTLE: Duration = Duration::from_millis(1_500);
const POLL: Duration = Duration::from_millis(50);
/// Upper bound of the default, so that a health check with an interval of hours does not hold a migration for days.
const LONGEST_DEFAULT_MS: u64 = 15 * 60 * 1000;

/// Milliseconds that a container may take to prove itself: by its own health check until it counts as unhealthy, and
/// some more.
pub(crate) fn default_timeout_ms(spec: &ContainerSpec) -> u64 {
    match spec.health_check {
        None => 30_000,
        Some(check) => {
            let rounds = check.retries.max(1).saturating_add(1);
            let all = check
                .interval_ms
                .saturating_add(check.timeout_ms)
                .saturating_mul(rounds);
            check
                .start_period_ms
                .saturating_add(all)
                .saturating_add(10_000)
                .min(LONGEST_DEFAULT_MS)
        }
    }
}

/// Waits until the container runs and is healthy, or just stays up where nothing tests its health. With `patient`, a
/// container that counts as unhealthy may still become healthy within the time.
///
/// # Errors
/// `health.exited`, `health.unhealthy` or `health.timeout`, each with the container's last lines; or what the engine says.
pub(crate) async fn wait_until_ready(
    engine: &dyn Engine,
    container: &ContainerId,
    timeout: Duration,
    patient: bool,
) -> Result<ContainerStatus, Fault> {
    let begun = tokio::time::Instant::now();
    let mut first_seen_running = None;
    loop {
        let status = engine.status(container).await.map_err(Fault::from)?;
        match (status.state, status.health) {
            (ContainerState::Running, Health::Healthy) => return Ok(status),
            (ContainerState::Running, Health::None) => {
                let since = *first_seen_running.get_or_insert_with(tokio::time::Instant::now);
                // A process that the engine restarted in between has not stayed up.
                if since.elapsed() >= SETTLE.min(timeout) && status.restart_count == 0 {
                    return Ok(status);
                }
            }
            (ContainerState::Running, Health::Unhealthy) if !patient => {
                return Err(explain(
                    engine,
                    container,
                    "health.unhealthy",
                    "it runs but its health check fails",
                )
                .await);
            }
            (ContainerState::Running, Health::Starting | Health::Unhealthy)
            | (ContainerState::Created, _) => {}
            (state, _) => {
                let why = if status.error.is_empty() {
                    format!("it is {state} with exit code {}", status.exit_code)
                } else {
                    format!(
                        "it is {state} with exit code {}: {}",
                        status.exit_code, status.error
                    )
                };
                return Err(explain(engine, container, "health.exited", &why).await);
            }
        }
        if begun.elapsed() >= timeout {
            let why = format!("it was not healthy after {:.1} s", timeout.as_secs_f64());
            return Err(explain(engine, container, "health.timeout", &why).await);
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn explain(engine: &dyn Engine, container: &ContainerId, code: &str, why: &str) -> Fault {
    let lines = engine.log_tail(container, 5).await.unwrap_or_default();
    let mut fault = Fault::new(
        code,
        FaultKind::Environment,
        format!("the container did not prove itself there: {why}"),
    );
    if !lines.is_empty() {
        fault = fault.because(format!("its last words: {}", lines.join(" | ")));
    }
    fault.with_hint(
        "look at what it needs there that it had here (files, other services, addresses); \
         --health-timeout SECONDS gives it more time",
    )
}
