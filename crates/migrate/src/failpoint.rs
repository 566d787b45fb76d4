//! Named places where a test can make a migration fail, wait or die. Without the feature `fail-points` they are nothing.

use tranship_core::Fault;

/// Every fail point, so that a test run can tell which were reached.
pub const ALL: &[&str] = &[
    "source.check",
    "source.image",
    "source.prepare",
    "source.create",
    "source.freeze",
    "source.frozen",
    "source.start",
    "source.health",
    "source.adopt",
    "source.hand-over",
    "destination.open",
    "destination.image",
    "destination.image-loaded",
    "destination.prepare",
    "destination.network-made",
    "destination.create",
    "destination.created",
    "destination.start",
    "destination.started",
    "destination.adopt",
];

#[cfg(feature = "fail-points")]
mod switched_on {
    use std::sync::{Mutex, OnceLock};

    use tranship_core::Fault;
    use tranship_core::fault::FaultKind;

    fn armed() -> &'static Mutex<Option<String>> {
        static ARMED: OnceLock<Mutex<Option<String>>> = OnceLock::new();
        ARMED.get_or_init(Mutex::default)
    }

    /// Arms one place: `NAME=fail`, `NAME=wait:MILLISECONDS` or `NAME=die`.
    pub fn arm(text: &str) {
        if let Ok(mut armed) = armed().lock() {
            *armed = Some(text.to_owned());
        }
    }

    pub(crate) async fn reach(name: &str) -> Result<(), Fault> {
        let action = armed().lock().ok().and_then(|a| {
            let (point, action) = a.as_deref()?.split_once('=')?;
            (point == name).then(|| action.to_owned())
        });
        match action.as_deref() {
            None => Ok(()),
            Some("die") => std::process::abort(),
            Some(other) => match other.strip_prefix("wait:").and_then(|ms| ms.parse().ok()) {
                Some(ms) => {
                    tokio::time::sleep(std::time::Duration::from_millis(ms)).await;
                    Ok(())
                }
                None => Err(Fault::new(
                    "test.fail-point",
                    FaultKind::Environment,
                    format!("fail point {name}"),
                )),
            },
        }
    }
}

#[cfg(feature = "fail-points")]
pub use switched_on::arm;
#[cfg(feature = "fail-points")]
pub(crate) use switched_on::reach;

/// Passes the place `name`.
#[cfg(not(feature = "fail-points"))]
#[inline]
pub(crate) async fn reach(_name: &str) -> Result<(), Fault> {
    Ok(())
}
