//! When a container has proved itself.

use std::time::Duration;

use tranship_core::container::{ContainerSpec, ContainerState, ContainerStatus, Health, RestartPolicy};
use tranship_core::fault::FaultKind;
use tranship_core::{ContainerId, Engine, EngineError, Fault};

/// A container without a health check must stay up this long.
const SETTLE: Duration = Duration::from_millis(1_500);
/// How long an engine that does not answer is waited for: it may be restarted just now.
pub(crate) const ENGINE_AWAY: Duration = Duration::from_secs(60);
/// How often a container that ended is started again in the place of its restart policy.
const REVIVALS: u32 = 3;
/// An engine that ends in order ends its containers first, and stops answering a moment later.
const AFTER_THE_END: Duration = Duration::from_millis(300);
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

/// Whether nothing is known because the engine did not answer.
pub(crate) fn engine_away(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::Unreachable { .. } | EngineError::Uncertain { .. }
    )
}

/// Whether the engine would start it again by this policy. An engine that is restarted ends its containers whatever they
/// do; an order of the user to stop it does not come from here.
fn revived_by(policy: &RestartPolicy, exit_code: i64) -> bool {
    match policy.name.as_str() {
        "always" | "unless-stopped" => true,
        "on-failure" => exit_code != 0,
        _ => false,
    }
}

/// How a container proves itself.
pub(crate) struct Proof<'a> {
    pub timeout: Duration,
    /// One that counts as unhealthy may still become healthy within the time.
    pub patient: bool,
    /// The restart policy that is parked meanwhile; in its place, what ends is started again a few times.
    pub parked: Option<&'a RestartPolicy>,
}

/// Waits until the container runs and is healthy, or just stays up where nothing tests its health. An engine that is away
/// for a while says nothing about the container.
///
/// # Errors
/// `health.exited`, `health.unhealthy` or `health.timeout`, each with the container's last lines; or what the engine says.
pub(crate) async fn wait_until_ready(
    engine: &dyn Engine,
    container: &ContainerId,
    proof: &Proof<'_>,
) -> Result<ContainerStatus, Fault> {
    let Proof {
        timeout,
        patient,
        parked,
    } = *proof;
    let mut begun = tokio::time::Instant::now();
    let mut first_seen_running = None;
    let mut away_since = None;
    let mut revivals = 0;
    loop {
        let status = match engine.status(container).await {
            Ok(status) => status,
            Err(error) if engine_away(&error) => {
                let since = *away_since.get_or_insert_with(tokio::time::Instant::now);
                if since.elapsed() >= ENGINE_AWAY {
                    return Err(error.into());
                }
                tokio::time::sleep(AFTER_THE_END).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if away_since.take().is_some() {
            (begun, first_seen_running) = (tokio::time::Instant::now(), None);
        }
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
            (ContainerState::Exited, _)
                if revivals < REVIVALS && parked.is_some_and(|p| revived_by(p, status.exit_code)) =>
            {
                revivals += 1;
                first_seen_running = None;
                tokio::time::sleep(AFTER_THE_END).await;
                match engine.start(container).await {
                    Ok(()) => {}
                    Err(error) if engine_away(&error) => {}
                    Err(error) => return Err(error.into()),
                }
            }
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
