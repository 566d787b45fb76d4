//! `tranship agent install` and `uninstall`: the agent as a service of systemd, so that it is there after a reboot.

use std::path::{Path, PathBuf};

use tokio::process::Command;
use tranship_core::{Fault, FaultKind};

use super::Context;

const NAME: &str = "tranship-agent.service";
/// Where units of the administrator go.
const UNITS: &str = "/etc/systemd/system";
/// There while systemd is the init system (sd_booted(3)).
const RUNNING: &str = "/run/systemd/system";
/// Where the service finds this program, whatever becomes of the file that was run.
const PROGRAM: &str = "/usr/local/bin/tranship";

/// The unit's text.
fn unit(program: &Path, engine: Option<&Path>) -> String {
    let engine = engine.map_or_else(String::new, |socket| format!(" --engine {}", quoted(socket)));
    format!(
        "[Unit]\n\
         Description=tranship agent: finishes or takes back migrations of containers after a reboot\n\
         After=docker.service podman.socket network-online.target\n\
         Wants=network-online.target\n\
         \n\
         [Service]\n\
         ExecStart={} agent --serve --stay -v{engine}\n\
         Restart=always\n\
         RestartSec=1\n\
         KillMode=process\n\
         OOMScoreAdjust=-500\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        quoted(program)
    )
}

/// A path as systemd takes one word.
fn quoted(path: &Path) -> String {
    let text = path
        .display()
        .to_string()
        .replace('\\', "\\\\")
        .replace('"', "\\\"");
    format!("\"{}\"", text.replace('%', "%%"))
}

/// Makes the service and starts it. Where there is no systemd, says what would be done and fails.
pub async fn install(context: &Context, engine: Option<&Path>) -> Result<(), Fault> {
    let text = unit(Path::new(PROGRAM), engine);
    let path = PathBuf::from(UNITS).join(NAME);
    if !Path::new(RUNNING).exists() {
        context.ui.say(&format!(
            "would copy {} to {PROGRAM}, and write {}:",
            context.environment.executable.display(),
            path.display()
        ));
        for line in text.lines() {
            context.ui.say(&format!("  {line}"));
        }
        context.ui.say(&format!(
            "would run: systemctl daemon-reload && systemctl enable --now {NAME}"
        ));
        return Err(no_systemd());
    }
    if context.environment.executable != Path::new(PROGRAM) {
        // A name of its own first: a program that runs cannot be written over.
        let new = PathBuf::from(format!("{PROGRAM}.new"));
        std::fs::copy(&context.environment.image, &new)
            .and_then(|_| std::fs::rename(&new, PROGRAM))
            .map_err(|e| failed(Path::new(PROGRAM), &e.to_string()))?;
    }
    std::fs::write(&path, text).map_err(|e| failed(&path, &e.to_string()))?;
    systemctl(&["daemon-reload"]).await?;
    systemctl(&["enable", "--now", NAME]).await?;
    context.ui.say(&format!("{NAME} runs, and will after a reboot"));
    Ok(())
}

/// Ends the service and removes it. Migrations under way go on when an agent runs again.
pub async fn uninstall(context: &Context) -> Result<(), Fault> {
    let path = PathBuf::from(UNITS).join(NAME);
    if !Path::new(RUNNING).exists() {
        context.ui.say(&format!(
            "would run: systemctl disable --now {NAME} && rm {} && systemctl daemon-reload",
            path.display()
        ));
        return Err(no_systemd());
    }
    if !path.exists() {
        return Err(Fault::new(
            "service.not-installed",
            FaultKind::Environment,
            "the agent is no service here",
        ));
    }
    systemctl(&["disable", "--now", NAME]).await?;
    std::fs::remove_file(&path).map_err(|e| failed(&path, &e.to_string()))?;
    systemctl(&["daemon-reload"]).await?;
    context.ui.say(&format!("{NAME} is gone; {PROGRAM} stays"));
    Ok(())
}

fn no_systemd() -> Fault {
    Fault::new(
        "service.no-systemd",
        FaultKind::Environment,
        "this machine is not run by systemd, so nothing was done",
    )
    .with_hint(format!(
        "let your init system keep `{PROGRAM} agent --serve --stay` running, from boot on"
    ))
}

fn failed(path: &Path, why: &str) -> Fault {
    let mut fault = Fault::new(
        "service.failed",
        FaultKind::Environment,
        format!("the service could not be changed: {why}"),
    )
    .with_hint("it needs root");
    fault.path = Some(path.display().to_string());
    fault
}

async fn systemctl(arguments: &[&str]) -> Result<(), Fault> {
    let output = Command::new("systemctl").args(arguments).output().await;
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(failed(
                Path::new(UNITS),
                &format!("systemctl {}: {said}", arguments.join(" ")),
            ))
        }
        Err(error) => Err(failed(Path::new(UNITS), &format!("systemctl: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_quotes_what_it_is_given() {
        let text = unit(Path::new("/opt/a b/100%"), Some(Path::new("/run/x.sock")));
        assert!(
            text.contains("ExecStart=\"/opt/a b/100%%\" agent --serve --stay -v --engine \"/run/x.sock\"\n")
        );
        assert!(text.contains("WantedBy=multi-user.target"));
    }
}
