//! The node's own shell, for hooks of the user.

use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::AsyncReadExt as _;
use tranship_core::Fault;
use tranship_core::engine::ExecOutcome;
use tranship_core::fault::FaultKind;
use tranship_migrate::Host;

/// How much of what a command wrote is kept, in bytes.
const KEPT: usize = 4096;
/// How long what a command wrote is waited for after its end; something that it left in the background may hold its output.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Runs commands with `/bin/sh`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shell;

#[async_trait]
impl Host for Shell {
    async fn run(
        &self,
        command: &str,
        environment: &[(&str, &str)],
        timeout: Duration,
    ) -> Result<ExecOutcome, Fault> {
        let failed = |e: std::io::Error| {
            Fault::new(
                "hook.shell",
                FaultKind::Environment,
                format!("the shell of the node could not be run: {e}"),
            )
        };
        let mut child = tokio::process::Command::new("/bin/sh")
            .arg("-c")
            .arg(command)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that its children end with it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let group = child.id().and_then(|id| i32::try_from(id).ok());
        let output = tokio::spawn(last_words(child.stdout.take(), child.stderr.take()));
        let ended = tokio::time::timeout(timeout, child.wait()).await;
        if ended.is_err() {
            if let Some(group) = group.and_then(rustix::process::Pid::from_raw) {
                // Gone by itself in this moment is as good.
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            let _ = child.wait().await;
        }
        let output = tokio::time::timeout(LAST_WORDS, output)
            .await
            .ok()
            .and_then(Result::ok)
            .unwrap_or_default();
        let exit_code = match ended {
            Err(_) => None,
            // Killed by a signal: as shells write it.
            Ok(Ok(status)) => {
                use std::os::unix::process::ExitStatusExt as _;
                let signal = status.signal().map(|s| 128 + s);
                Some(i64::from(status.code().or(signal).unwrap_or(-1)))
            }
            Ok(Err(error)) => return Err(failed(error)),
        };
        Ok(ExecOutcome { exit_code, output })
    }
}

async fn last_words(
    out: Option<tokio::process::ChildStdout>,
    err: Option<tokio::process::ChildStderr>,
) -> String {
    let (out, err) = tokio::join!(tail(out), tail(err));
    let mut text = out;
    text.push_str(&err);
    text
}

/// The end of what a stream says.
async fn tail(stream: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else {
        return String::new();
    };
    let mut kept: Vec<u8> = Vec::new();
    let mut buffer = [0u8; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        kept.extend_from_slice(buffer.get(..n).unwrap_or_default());
        let excess = kept.len().saturating_sub(KEPT);
        kept.drain(..excess);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_is_told_where_it_is_and_its_end_is_seen() {
        let ran = Shell
            .run(
                "echo $WHO; echo no >&2; exit 3",
                &[("WHO", "me")],
                Duration::from_secs(5),
            )
            .await
            .unwrap();
        assert_eq!(ran.exit_code, Some(3));
        assert_eq!(ran.output, "me\nno\n");
    }

    #[tokio::test]
    async fn a_command_that_takes_too_long_is_killed_with_its_children() {
        let directory = std::env::temp_dir().join(format!("tranship-host-{}", std::process::id()));
        let command = format!("(sleep 1; touch {}) & wait", directory.display());
        let ran = Shell
            .run(&command, &[], Duration::from_millis(100))
            .await
            .unwrap();
        assert_eq!(ran.exit_code, None);
        tokio::time::sleep(Duration::from_millis(1300)).await;
        assert!(!directory.exists(), "a child lived on");
    }
}
