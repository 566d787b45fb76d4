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
                    // The start itself may take long, and it has all its time from here.
                    Ok(()) => begun = tokio::time::Instant::now(),
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::Instant;
    use tranship_core::container::HealthCheck;
    use tranship_testkit::memory::{self, Failure, MemoryEngine};

    use super::*;

    fn policy(name: &str) -> RestartPolicy {
        RestartPolicy {
            name: name.into(),
            maximum_retries: 0,
        }
    }

    fn container(change: impl FnOnce(&mut ContainerSpec)) -> (Arc<MemoryEngine>, ContainerId) {
        let engine = Arc::new(MemoryEngine::new());
        let id = engine.run("web", &memory::image("app:1", 1), change).id;
        (engine, id)
    }

    fn proof(timeout_ms: u64) -> Proof<'static> {
        Proof {
            timeout: Duration::from_millis(timeout_ms),
            patient: false,
            parked: None,
        }
    }

    #[test]
    fn a_health_check_has_time_to_fail_by_itself() {
        let mut spec = memory::bare_spec("web", &memory::image("app:1", 1));
        assert_eq!(default_timeout_ms(&spec), 30_000);
        let mut check = HealthCheck {
            interval_ms: 5_000,
            timeout_ms: 1_000,
            start_period_ms: 2_000,
            retries: 3,
        };
        for (retries, expected) in [(3, 2_000 + 4 * 6_000 + 10_000), (0, 2_000 + 2 * 6_000 + 10_000)] {
            check.retries = retries;
            spec.health_check = Some(check);
            assert_eq!(default_timeout_ms(&spec), expected);
        }
        check.interval_ms = 3_600_000;
        spec.health_check = Some(check);
        assert_eq!(default_timeout_ms(&spec), 900_000, "not for hours");
    }

    #[test]
    fn a_policy_that_is_parked_starts_what_the_engine_would() {
        for (name, after_failure, after_success) in [
            ("always", true, true),
            ("unless-stopped", true, true),
            ("on-failure", true, false),
            ("no", false, false),
            ("", false, false),
        ] {
            assert_eq!(revived_by(&policy(name), 1), after_failure, "{name}");
            assert_eq!(revived_by(&policy(name), 0), after_success, "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_nothing_tests_has_to_stay_up() {
        for (timeout_ms, expected_ms) in [(30_000, 1_500), (600, 600)] {
            let (engine, id) = container(|_| {});
            let begun = Instant::now();
            let status = wait_until_ready(engine.as_ref(), &id, &proof(timeout_ms))
                .await
                .unwrap();
            assert_eq!(status.state, ContainerState::Running);
            let took = begun.elapsed();
            let expected = Duration::from_millis(expected_ms);
            assert!(took >= expected && took < expected + 2 * POLL, "{took:?}");
        }
        // One that the engine restarted has not.
        let (engine, id) = container(|s| s.status.restart_count = 1);
        let fault = wait_until_ready(engine.as_ref(), &id, &proof(5_000))
            .await
            .unwrap_err();
        assert_eq!(fault.code, "health.timeout");
        assert!(fault.message.contains("5.0 s") && fault.to_string().contains("its last line"));
        assert!(fault.hint.is_some_and(|h| h.contains("--health-timeout")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_health_check_decides_where_there_is_one() {
        let at = async |health, patient| {
            let (engine, id) = container(|_| {});
            engine.set_health(health);
            let proof = Proof {
                patient,
                ..proof(5_000)
            };
            let begun = Instant::now();
            let code = wait_until_ready(engine.as_ref(), &id, &proof)
                .await
                .map_or_else(|fault| fault.code, |_| "ready".into());
            (code, begun.elapsed() >= Duration::from_secs(5))
        };
        assert_eq!(at(Health::Healthy, false).await, ("ready".into(), false));
        assert_eq!(at(Health::Starting, false).await, ("health.timeout".into(), true));
        assert_eq!(
            at(Health::Unhealthy, false).await,
            ("health.unhealthy".into(), false)
        );
        assert_eq!(at(Health::Unhealthy, true).await, ("health.timeout".into(), true));
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_is_away_is_waited_for_a_minute() {
        let away = |calls: std::ops::Range<usize>| calls.map(|n| (n, Failure::After)).collect::<Vec<_>>();
        let (engine, id) = container(|_| {});
        // Sixteen times 300 ms are more than the proof has, and no time of the container's.
        engine.fail(&away(1..17));
        let begun = Instant::now();
        wait_until_ready(engine.as_ref(), &id, &proof(2_000))
            .await
            .unwrap();
        let took = begun.elapsed();
        assert!(
            took > Duration::from_millis(16 * 300 + 1_500),
            "it has to stay up afterwards: {took:?}"
        );

        let (engine, id) = container(|_| {});
        engine.fail(&away(0..1_000));
        let begun = Instant::now();
        let fault = wait_until_ready(engine.as_ref(), &id, &proof(2_000))
            .await
            .unwrap_err();
        assert!(begun.elapsed() >= ENGINE_AWAY && begun.elapsed() < ENGINE_AWAY + 2 * AFTER_THE_END);
        assert!(fault.message.contains("broke off"), "{fault}");

        let (engine, id) = container(|_| {});
        engine.fail(&[(0, Failure::Before)]);
        let fault = wait_until_ready(engine.as_ref(), &id, &proof(2_000))
            .await
            .unwrap_err();
        assert!(fault.message.contains("told to fail"), "{fault}");
    }

    /// Ends the container whenever it was started, so many times.
    async fn dying(
        times: usize,
        parked: Option<&RestartPolicy>,
        fail: &[(usize, Failure)],
        timeout_ms: u64,
    ) -> (Result<ContainerStatus, Fault>, usize) {
        let (engine, id) = container(|s| s.status.exit_code = 1);
        engine.fail(fail);
        let (killer, victim) = (Arc::clone(&engine), id.clone());
        let killing = tokio::spawn(async move {
            for _ in 0..times {
                killer.alter(&victim, |c| c.state = ContainerState::Exited);
                tokio::time::sleep(Duration::from_millis(1_000)).await;
            }
        });
        tokio::task::yield_now().await;
        let proof = Proof {
            parked,
            ..proof(timeout_ms)
        };
        let done = wait_until_ready(engine.as_ref(), &id, &proof).await;
        killing.abort();
        let starts = engine.calls().iter().filter(|c| **c == "start").count();
        (done, starts)
    }

    #[tokio::test(start_paused = true)]
    async fn what_ends_is_started_again_three_times_in_the_place_of_its_policy() {
        let always = policy("always");
        let no = policy("no");
        for times in 1..=3 {
            let (done, starts) = dying(times, Some(&always), &[], 30_000).await;
            assert!(done.is_ok(), "{times}: {done:?}");
            assert_eq!(starts, times);
        }
        for (times, parked, expected) in [(4, Some(&always), 3), (1, Some(&no), 0), (1, None, 0)] {
            let (done, starts) = dying(times, parked, &[], 30_000).await;
            let fault = done.unwrap_err();
            assert_eq!((fault.code.as_str(), starts), ("health.exited", expected));
            assert!(fault.message.contains("exited with exit code 1"), "{fault}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_started_again_has_all_its_time_from_there() {
        // The third start comes after more than two seconds, and what is started has to stay up for one and a half.
        let (done, starts) = dying(3, Some(&policy("always")), &[], 2_000).await;
        assert!(done.is_ok(), "{done:?}");
        assert_eq!(starts, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_that_is_refused_is_the_end_and_one_that_nobody_heard_of_is_not() {
        let always = policy("always");
        // The first call looks, the second one starts.
        let (done, _) = dying(1, Some(&always), &[(1, Failure::Before)], 30_000).await;
        assert!(done.unwrap_err().message.contains("told to fail"));
        let (done, starts) = dying(1, Some(&always), &[(1, Failure::After)], 30_000).await;
        assert!(done.is_ok(), "{done:?}");
        assert_eq!(starts, 1);
    }
}
