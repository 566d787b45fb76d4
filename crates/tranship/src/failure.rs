//! The one place that decides what a failure looks like and with which code the program ends.

use std::process::ExitCode;

use tranship_core::{Fault, FaultKind};

/// Exit codes, as the README lists them.
pub mod exit {
    /// Something in the environment or the request; nothing was changed.
    pub const FAILED: u8 = 1;
    /// The command line was wrong.
    pub const USAGE: u8 = 2;
    /// The reader of our output went away.
    pub const BROKEN_PIPE: u8 = 3;
    /// Failed under way, and rolled back.
    pub const ROLLED_BACK: u8 = 4;
    /// In doubt: a person has to look.
    pub const IN_DOUBT: u8 = 5;
    /// Interrupted by Ctrl-C or another signal, where that leaves something done and something not; as shells write SIGINT.
    pub const INTERRUPTED: u8 = 130;
    /// A defect in tranship.
    pub const BUG: u8 = 255;
}

/// The code of a fault that is an interrupt.
pub const INTERRUPTED: &str = "cp.interrupted";

/// The code of images that were not brought to the end on request: what came before stays, and no source serves anything.
pub const IMAGE_ABORTED: &str = "image.aborted";

/// The exit code for a kind of failure.
pub fn code_of(kind: FaultKind) -> u8 {
    match kind {
        FaultKind::Environment => exit::FAILED,
        FaultKind::Usage => exit::USAGE,
        FaultKind::RolledBack => exit::ROLLED_BACK,
        FaultKind::InDoubt => exit::IN_DOUBT,
        FaultKind::Bug => exit::BUG,
    }
}

/// The exit code for a whole run: the worst of what happened.
pub fn exit_code(faults: &[Fault]) -> ExitCode {
    let severity = |f: &Fault| match f.kind {
        FaultKind::Environment => 1,
        FaultKind::Usage => 2,
        FaultKind::RolledBack => 3,
        FaultKind::Bug => 4,
        FaultKind::InDoubt => 5,
    };
    match faults.iter().max_by_key(|f| severity(f)) {
        None => ExitCode::SUCCESS,
        Some(fault) if fault.code == INTERRUPTED => ExitCode::from(exit::INTERRUPTED),
        Some(fault) => ExitCode::from(code_of(fault.kind)),
    }
}

/// A failure as lines for a person: what, where, why, and what to do next.
pub fn describe(fault: &Fault) -> Vec<String> {
    let mut lines = vec![format!(
        "error[{}]: {}",
        one_line(&fault.code),
        one_line(&fault.message)
    )];
    let place: Vec<String> = [
        ("node", &fault.node),
        ("container", &fault.container),
        ("path", &fault.path),
    ]
    .iter()
    .filter_map(|(what, value)| value.as_ref().map(|v| format!("{what} {}", one_line(v))))
    .collect();
    if !place.is_empty() {
        lines.push(format!("  where: {}", place.join(", ")));
    }
    for cause in &fault.causes {
        lines.push(format!("  because: {}", one_line(cause)));
    }
    match fault.kind {
        FaultKind::RolledBack if fault.code == IMAGE_ABORTED => {}
        FaultKind::RolledBack => lines.push("  state: rolled back; the source serves as before".into()),
        FaultKind::InDoubt => lines.push("  state: in doubt; a person has to look".into()),
        FaultKind::Bug => lines.push("  this is a defect in tranship; please report it".into()),
        FaultKind::Environment | FaultKind::Usage => {}
    }
    if let Some(hint) = &fault.hint {
        lines.push(format!("  hint: {}", one_line(hint)));
    }
    lines
}

/// Text from other machines may hold anything; a terminal must not obey it.
pub fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect::<String>()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_failure_decides_the_exit_code() {
        let fault = |kind| Fault::new("x", kind, "x");
        let code = |kinds: &[FaultKind]| {
            format!(
                "{:?}",
                exit_code(&kinds.iter().map(|k| fault(*k)).collect::<Vec<_>>())
            )
        };
        assert_eq!(code(&[]), format!("{:?}", ExitCode::SUCCESS));
        assert_eq!(
            code(&[FaultKind::Environment, FaultKind::RolledBack]),
            format!("{:?}", ExitCode::from(4))
        );
        assert_eq!(
            code(&[FaultKind::InDoubt, FaultKind::RolledBack]),
            format!("{:?}", ExitCode::from(5))
        );
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let fault = Fault::new("x", FaultKind::Environment, "a\u{1b}[31mb\nc")
            .because("d\re")
            .on_container("we\u{1b}[2Jb");
        assert!(
            describe(&fault)
                .iter()
                .all(|line| !line.chars().any(char::is_control))
        );
    }
}
