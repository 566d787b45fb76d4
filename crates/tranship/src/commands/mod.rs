//! One file per command. Each takes its arguments and a [`Context`], and gives back faults rather than ending the program.

pub mod agent;
mod archives;
pub mod checkpoint;
pub mod completions;
pub mod cp;
pub mod doctor;
pub mod image;
pub mod list;
pub mod migrate;
pub mod plan;
pub mod serve;
pub mod service;
pub mod settle;
pub mod status;
pub mod volume;

use std::path::{Path, PathBuf};

use crate::cli::GlobalArgs;
use crate::history::History;
use crate::ui::Ui;

/// What every command works with.
pub struct Context {
    /// Output.
    pub ui: Ui,
    /// Global options.
    pub global: GlobalArgs,
    /// What the environment says, read once by `main`.
    pub environment: Environment,
}

impl Context {
    /// The migrations that this user started from this machine.
    pub fn history(&self) -> History {
        History::new(&self.environment.state_directory)
    }
}

/// What the program takes from its surroundings.
#[derive(Debug, Clone)]
pub struct Environment {
    /// This program's file, by the name it was started by. Another may have taken that name since, or it may be gone:
    /// two callers that come to a host at once put the same file there, one over the other's.
    pub executable: PathBuf,
    /// This program's file itself, whatever became of its name.
    pub image: PathBuf,
    /// Where records that must survive a reboot go.
    pub state_directory: PathBuf,
    /// Where sockets and locks go.
    pub runtime_directory: PathBuf,
    /// Docker's configuration directory.
    pub docker_config: Option<PathBuf>,
    /// `DOCKER_HOST`, where it names a unix socket.
    pub docker_host: Option<String>,
    /// Where rootless engines have their sockets.
    pub user_runtime_directory: Option<PathBuf>,
}

impl Environment {
    /// What to start for another process of this very program: by its name, which `ps` then shows, as long as the
    /// name still leads to it.
    pub fn to_run(&self) -> &Path {
        use std::os::unix::fs::MetadataExt as _;
        let which = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
        if which(&self.executable).is_some_and(|file| Some(file) == which(&self.image)) {
            &self.executable
        } else {
            &self.image
        }
    }
}
