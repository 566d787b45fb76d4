//! Named places where a test can make a migration fail, wait or die. Without the feature `fail-points` they are nothing.

#[cfg(not(feature = "fail-points"))]
use tranship_core::Fault;

/// Every fail point of a migration, so that a test run can tell which were reached.
pub const ALL: &[&str] = &[
    "source.check",
    "source.image",
    "source.prepare",
    "source.create",
    "source.bulk",
    "source.hook",
    "source.freeze",
    "source.frozen",
    "source.delta",
    "source.delta-done",
    "source.committed",
    "source.start",
    "source.health",
    "source.adopt",
    "destination.open",
    "destination.image",
    "destination.image-loaded",
    "destination.prepare",
    "destination.network-made",
    "destination.volume-made",
    "destination.create",
    "destination.created",
    "destination.element",
    "destination.start",
    "destination.committed",
    "destination.started",
    "destination.adopt",
    "destination.adopted",
    "destination.discard",
    "destination.discarding",
    "destination.removed",
];

#[cfg(feature = "fail-points")]
mod switched_on {
    use std::io::Write as _;
    use std::path::PathBuf;
    use std::sync::OnceLock;

    use tranship_core::Fault;
    use tranship_core::fault::FaultKind;

    static FILE: OnceLock<PathBuf> = OnceLock::new();

    /// How often a place that holds looks whether it may go on.
    const LOOK: std::time::Duration = std::time::Duration::from_millis(10);

    /// Says which file arms places. Its lines are `NAME=fail`, `NAME=die`, `NAME=wait:MILLISECONDS`, or `NAME=hold`, which
    /// waits until the line is gone. Places that are passed are appended to a file of the same name with `.reached` at its
    /// end.
    pub fn read_from(file: PathBuf) {
        // The first file stays: one process has one.
        let _ = FILE.set(file);
    }

    /// What a test set beside the file that arms places, in a file of the same name with `.NAME` at its end.
    #[must_use]
    pub fn setting(name: &str) -> Option<String> {
        let text = std::fs::read_to_string(FILE.get()?.with_extension(name)).ok()?;
        Some(text.trim().to_owned())
    }

    /// Passes the place `name`: fails, waits or dies there if a test said so.
    ///
    /// # Errors
    /// `test.fail-point`.
    pub async fn reach(name: &str) -> Result<(), Fault> {
        let Some(file) = FILE.get() else { return Ok(()) };
        let reached = file.with_extension("reached");
        if let Ok(mut list) = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(reached)
        {
            // Tests see a missing line; a migration must not fail for it.
            // One call, so that lines of two places stay apart.
            let _ = list.write_all(format!("{name}\n").as_bytes());
        }
        loop {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let mut lines = text.lines().filter_map(|line| line.trim().split_once('='));
            let action = lines.find_map(|(point, action)| (point == name).then_some(action));
            match action {
                None => return Ok(()),
                Some("die") => std::process::abort(),
                Some("hold") => tokio::time::sleep(LOOK).await,
                Some(other) => {
                    let wait = other.strip_prefix("wait:").and_then(|ms| ms.parse().ok());
                    let Some(ms) = wait else {
                        return Err(Fault::new(
                            "test.fail-point",
                            FaultKind::Environment,
                            format!("fail point {name}"),
                        ));
                    };
                    tokio::time::sleep(std::time::Duration::from_millis(ms)).await;
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(feature = "fail-points")]
pub use switched_on::{reach, read_from, setting};

/// Passes the place `name`.
///
/// # Errors
/// None without the feature `fail-points`.
#[cfg(not(feature = "fail-points"))]
#[inline]
pub async fn reach(_name: &str) -> Result<(), Fault> {
    Ok(())
}

#[cfg(all(test, feature = "fail-points"))]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_place_fails_waits_or_holds_as_its_line_says() {
        let directory = std::env::temp_dir().join(format!("tranship-fail-points-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("points");
        assert!(reach("source.check").await.is_ok(), "nothing is armed");
        assert_eq!(setting("name"), None);
        read_from(file.clone());
        assert!(reach("source.check").await.is_ok(), "there is no file");

        std::fs::write(
            &file,
            "source.image=fail\nsource.prepare=wait:700\nsource.create=hold\n",
        )
        .unwrap();
        assert!(reach("source.check").await.is_ok());
        let fault = reach("source.image").await.unwrap_err();
        assert_eq!(fault.code, "test.fail-point");
        assert!(fault.message.contains("source.image"));
        let begun = tokio::time::Instant::now();
        assert!(reach("source.prepare").await.is_ok());
        assert_eq!(begun.elapsed().as_millis(), 700);
        let held = tokio::spawn(reach("source.create"));
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        assert!(!held.is_finished());
        std::fs::write(&file, "").unwrap();
        assert!(held.await.unwrap().is_ok());

        let reached = std::fs::read_to_string(directory.join("points.reached")).unwrap();
        assert_eq!(
            reached,
            "source.check\nsource.check\nsource.image\nsource.prepare\nsource.create\n"
        );
        std::fs::write(directory.join("points.name"), " value\n").unwrap();
        assert_eq!(setting("name").as_deref(), Some("value"));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
