//! A container's processes: freezing, killing, and running one more.

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use bollard::exec::StartExecResults;
use bollard::models::ExecConfig;
use bollard::query_parameters as query;
use futures_util::StreamExt as _;
use rustix::fs::{Mode, OFlags};
use tranship_core::container::ContainerState;
use tranship_core::engine::ExecOutcome;
use tranship_core::{ContainerId, Engine as _, EngineError};

use crate::cgroups;
use crate::docker::{DockerEngine, UNLIMITED};
use crate::fault::Ask;

/// How long a killed container may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// Time before the second look at it: whoever waits may stand still.
const LOOK: Duration = Duration::from_millis(5);

/// Time between two looks at most. Where it takes long, the engine has more to do than to answer.
const LOOK_AT_MOST: Duration = Duration::from_millis(50);

/// How much of what a command writes is kept, in bytes.
const KEPT: usize = 4096;

/// How long what a command wrote may trail behind its end.
const TRAILING: Duration = Duration::from_millis(500);

impl DockerEngine {
    pub(crate) async fn freeze(&self, id: &ContainerId) -> Result<(), EngineError> {
        let ask = Ask::new("pause", "container", id.as_str());
        let paused = self.docker.pause_container(id.as_str()).await;
        let paused = self.told(paused, &ask);
        self.unless_it_is(ContainerState::Paused, id, paused).await
    }

    pub(crate) async fn thaw(&self, id: &ContainerId) -> Result<(), EngineError> {
        let ask = Ask::new("unpause", "container", id.as_str());
        let thawed = self.docker.unpause_container(id.as_str()).await;
        let thawed = self.told(thawed, &ask);
        self.unless_it_is(ContainerState::Running, id, thawed).await
    }

    /// A refusal counts only if the container is not what it was to become.
    async fn unless_it_is(
        &self,
        wanted: ContainerState,
        id: &ContainerId,
        result: Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        match result {
            Err(EngineError::Conflict { .. } | EngineError::Failed { .. })
                if self.status(id).await?.state == wanted =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// Kills a container. None of its processes is to run again if it was frozen: with the old freezer a signal takes
    /// effect only after the thaw, so all of them get it before that, as far as they are seen from here. The engine
    /// itself signals the main process first and thaws then.
    ///
    /// Only what never got a signal is told as unreachable.
    pub(crate) async fn kill_all(&self, id: &ContainerId) -> Result<(), EngineError> {
        let ask = Ask::new("kill", "container", id.as_str());
        let mut sent = false;
        match self.signal_and_wait(id, &ask, &mut sent).await {
            Err(error @ EngineError::Unreachable { .. }) if sent => Err(ask.uncertain(error)),
            // An answer that broke off before was one to a question.
            Err(error @ EngineError::Uncertain { .. }) if !sent => Err(EngineError::Unreachable {
                endpoint: "the engine".to_owned(),
                reason: error.to_string(),
            }),
            done => done,
        }
    }

    async fn signal_and_wait(&self, id: &ContainerId, ask: &Ask, sent: &mut bool) -> Result<(), EngineError> {
        let mut is_signalled = false;
        match self.status(id).await?.state {
            ContainerState::Created | ContainerState::Exited | ContainerState::Dead => return Ok(()),
            ContainerState::Paused if self.wants_direct() => {
                let (proc, of) = (self.root_prefix.join("proc"), id.clone());
                let signalled = tokio::task::spawn_blocking(move || signal_members(&proc, &of)).await;
                let signalled = signalled.map_err(|error| ask.failed(error))?;
                *sent |= signalled > 0;
                tracing::debug!(processes = signalled, "killed while they are frozen");
                if self.podman {
                    self.let_podman_end(id, signalled).await?;
                    is_signalled = true;
                }
            }
            _ => {}
        }
        let killed = if is_signalled {
            // Podman fails to signal what is just ending.
            Ok(())
        } else {
            let options = query::KillContainerOptionsBuilder::default()
                .signal("SIGKILL")
                .build();
            let killed = self.patient(GONE_WITHIN);
            let killed = killed.kill_container(id.as_str(), Some(options)).await;
            self.told(killed, ask)
        };
        *sent |= !matches!(killed, Err(EngineError::Unreachable { .. }));
        let begin = tokio::time::Instant::now();
        let mut look = LOOK;
        loop {
            match self.status(id).await {
                // It was removed as it ended (`--rm`).
                Err(EngineError::NotFound { .. }) => return Ok(()),
                Err(other) => return Err(other),
                Ok(status) => match status.state {
                    ContainerState::Created | ContainerState::Exited | ContainerState::Dead => return Ok(()),
                    // Between two lives there is nobody to kill; the next one must not come.
                    ContainerState::Restarting => self.stop(id, Some(Duration::ZERO)).await?,
                    // The signal is there already.
                    ContainerState::Paused if killed.is_ok() => self.thaw_killed(id).await,
                    _ => {}
                },
            }
            if begin.elapsed() > GONE_WITHIN {
                return killed.and(Err(ask.failed(format!(
                    "it is still there after {} seconds",
                    GONE_WITHIN.as_secs()
                ))));
            }
            // It ended by itself between the question and the signal, or is about to.
            let may_end = match &killed {
                Ok(()) | Err(EngineError::Conflict { .. } | EngineError::Uncertain { .. }) => true,
                // Its runtime does not find what is just ending, and Podman passes that on as any failure.
                Err(EngineError::Failed { .. }) => self.podman,
                Err(_) => false,
            };
            if !may_end {
                return killed;
            }
            tokio::time::sleep(look).await;
            look = (look * 2).min(LOOK_AT_MOST);
        }
    }

    async fn thaw_killed(&self, id: &ContainerId) {
        // It may be gone by now, which is what is waited for.
        if let Err(error) = self.docker.unpause_container(id.as_str()).await {
            tracing::debug!(container = %id, %error, "a killed container did not thaw");
        }
    }

    pub(crate) async fn run_in(
        &self,
        id: &ContainerId,
        command: &str,
        timeout: Duration,
    ) -> Result<ExecOutcome, EngineError> {
        let ask = Ask::new("run a command in", "container", id.as_str());
        let config = ExecConfig {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(["sh", "-c", command].map(str::to_owned).to_vec()),
            ..ExecConfig::default()
        };
        let created = self.docker.create_exec(id.as_str(), config).await;
        let exec = self.told(created, &ask)?.id;
        let mut kept = Tail::default();
        let running = self.follow(&exec, &mut kept, &ask);
        let exit_code = match tokio::time::timeout(timeout, running).await {
            Ok(ended) => Some(ended?),
            Err(_) => None,
        };
        let output = kept.text();
        // The runtime's own words, in place of a command's: 126 and 127 are what the engine makes of them.
        if matches!(exit_code, Some(126 | 127))
            && output.contains("OCI runtime exec failed")
            && output.contains("\"sh\"")
        {
            return Err(EngineError::Unsupported {
                message: format!(
                    "the container has no shell to run a command with: {}",
                    output.trim()
                ),
            });
        }
        Ok(ExecOutcome { exit_code, output })
    }

    /// Reads what a command writes until it ended. What it left behind may hold its output open for ever.
    async fn follow(&self, exec: &str, kept: &mut Tail, ask: &Ask) -> Result<i64, EngineError> {
        let started = self.patient(UNLIMITED).start_exec(exec, None).await;
        let StartExecResults::Attached { mut output, .. } = self.told(started, ask)? else {
            return Err(ask.uncertain("the engine did not attach"));
        };
        let mut open = true;
        let mut look = LOOK;
        loop {
            if open {
                match tokio::time::timeout(look, output.next()).await {
                    Ok(Some(Ok(piece))) => {
                        kept.push(&piece.into_bytes());
                        continue;
                    }
                    Ok(Some(Err(_)) | None) => open = false,
                    Err(_) => {}
                }
            } else {
                tokio::time::sleep(look).await;
            }
            look = (look * 2).min(TRAILING);
            let seen = self.told(self.docker.inspect_exec(exec).await, ask)?;
            if let (Some(false), Some(code)) = (seen.running, seen.exit_code) {
                while open && let Ok(Some(Ok(piece))) = tokio::time::timeout(TRAILING, output.next()).await {
                    kept.push(&piece.into_bytes());
                }
                return Ok(code);
            }
        }
    }
}

/// The end of what was written.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece);
        if self.0.len() > 2 * KEPT {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let more = self.0.len().saturating_sub(KEPT);
        // Not in the middle of a character.
        let more = (more..self.0.len())
            .find(|at| self.0[*at] & 0xc0 != 0x80)
            .unwrap_or(more);
        self.0.drain(..more);
    }

    fn text(mut self) -> String {
        if self.0.len() > KEPT {
            self.cut();
        }
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

/// Sends SIGKILL to every process of a container. Returns how many there were.
fn signal_members(proc: &Path, id: &ContainerId) -> usize {
    let mut signalled = 0;
    for entry in std::fs::read_dir(proc).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !name
            .to_str()
            .is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()))
        {
            continue;
        }
        // The directory stands for this very process, even if its number is used again.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(process) = rustix::fs::open(entry.path(), flags, Mode::empty()) else {
            continue;
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::openat(&process, "cgroup", flags, Mode::empty()) else {
            continue;
        };
        let mut groups = String::new();
        let read = std::fs::File::from(file).read_to_string(&mut groups);
        if read.is_ok()
            && cgroups::are_of(&groups, id.as_str())
            && rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL).is_ok()
        {
            signalled += 1;
        }
    }
    signalled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept() {
        let mut tail = Tail::default();
        for n in 0..5000 {
            tail.push(format!("{n}\n").as_bytes());
        }
        let text = tail.text();
        assert!(text.len() <= KEPT && text.len() > KEPT - 8 && text.ends_with("4999\n"));
        let mut tail = Tail::default();
        tail.push("ä".repeat(3000).as_bytes());
        tail.push(b"x");
        let text = tail.text();
        assert!(text.ends_with("äx") && !text.contains('\u{fffd}') && text.len() <= KEPT);
        let mut tail = Tail::default();
        tail.push(&[0x80; 10_000]);
        assert!(tail.text().len() <= 3 * KEPT);
    }
}
