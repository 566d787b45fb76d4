//! The user's hooks, from the command line and from a file.

use tranship_core::{Fault, FaultKind};
use tranship_migrate::options::{Hook, HookPlace, HookTime};

use crate::cli::MoveArgs;

/// The hooks of the file, then those of the command line.
///
/// # Errors
/// `usage.hooks` when the file cannot be read.
pub fn all(moves: &MoveArgs) -> Result<Vec<Hook>, Fault> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(default)]
        hook: Vec<Hook>,
    }
    let mut hooks = Vec::new();
    if let Some(path) = &moves.hooks {
        let bad = |reason: String| {
            Fault::new(
                    "usage.hooks",
                    FaultKind::Usage,
                    format!("the hooks in {} cannot be read: {reason}", path.display()),
                )
                .with_hint("one [[hook]] table each, with when = \"pre-freeze\" (or post-freeze, post-start, thaw), where = \"container\" (or \"host\"), command and timeout")
        };
        let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
        let file: File = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
        hooks.extend(file.hook);
    }
    let lists = [
        (HookTime::PreFreeze, HookPlace::Container, &moves.hook_pre_freeze),
        (HookTime::PostFreeze, HookPlace::Host, &moves.hook_post_freeze),
        (HookTime::PostStart, HookPlace::Container, &moves.hook_post_start),
        (HookTime::Thaw, HookPlace::Container, &moves.hook_thaw),
    ];
    for (when, place, commands) in lists {
        hooks.extend(commands.iter().map(|command| Hook {
            when,
            place,
            command: command.clone(),
            timeout: moves.hook_timeout,
        }));
    }
    Ok(hooks)
}
