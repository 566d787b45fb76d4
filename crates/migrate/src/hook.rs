//! Running one of the user's commands, at either end.

use std::time::Duration;

use tranship_core::fault::FaultKind;
use tranship_core::{ContainerId, Fault};

use crate::options::{Hook, HookPlace};
use crate::plan::Plan;
use crate::ports::Ports;

/// Runs a hook and says what it said if it failed.
///
/// # Errors
/// `hook.failed`, `hook.timeout`, or what the engine says.
pub(crate) async fn run(
    ports: &Ports,
    hook: &Hook,
    container: &ContainerId,
    plan: &Plan,
    timeout: Duration,
) -> Result<(), Fault> {
    let outcome = match hook.place {
        HookPlace::Container => ports.engine.exec(container, &hook.command, timeout).await?,
        HookPlace::Host => {
            let when = hook.when.to_string();
            let environment = [
                ("TRANSHIP_HOOK", when.as_str()),
                ("TRANSHIP_MIGRATION", plan.id.as_str()),
                ("TRANSHIP_CONTAINER", plan.spec().name.as_str()),
                ("TRANSHIP_CONTAINER_ID", container.as_str()),
            ];
            ports.host.run(&hook.command, &environment, timeout).await?
        }
    };
    let (code, what) = match outcome.exit_code {
        Some(0) => return Ok(()),
        Some(code) => ("hook.failed", format!("ended with exit code {code}")),
        None => (
            "hook.timeout",
            format!("did not end within {} s", timeout.as_secs()),
        ),
    };
    let mut fault = Fault::new(
        code,
        FaultKind::Environment,
        format!("the {} hook {:?} {what}", hook.when, hook.command),
    )
    .with_hint("run the command by hand to see why; its time limit can be set");
    let said = outcome.output.trim();
    if !said.is_empty() {
        fault = fault.because(format!("it said: {said}"));
    }
    Err(fault)
}
