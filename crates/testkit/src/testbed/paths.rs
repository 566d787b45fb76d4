//! Where the testbed keeps things on the host.
//!
//! ```text
//! CACHE/tree-HASH/root        the nodes' shared root file system
//! CACHE/tree-HASH/base.tar    a bare Debian, the test images' base
//! CACHE/tree-HASH/debs/       packages for the test images
//! CACHE/images/HASH/NAME.tar  test images as archives, seen by nodes as /images/HASH/NAME.tar
//! CACHE/kernel/               what `cargo xtask kernel` boots
//! STATE/lock                  held while beds are created, claimed or listed for removal
//! STATE/beds/NAME/            one live bed: record, keys, scripts, logs, the nodes' disks
//! STATE/trash/                beds on their way out
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::error::{AtPath, Result};

/// The two directories everything lives in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    /// What is expensive to make and can be made again.
    pub cache: PathBuf,
    /// Live beds.
    pub state: PathBuf,
}

impl Default for Dirs {
    /// `/var/cache/tranship-testbed` (or `$TRANSHIP_TESTBED_CACHE`) and `/var/lib/tranship-testbed`.
    #[expect(
        clippy::disallowed_methods,
        reason = "tests find the cache the way `cargo xtask testbed` does"
    )]
    fn default() -> Self {
        let cache = std::env::var_os("TRANSHIP_TESTBED_CACHE")
            .map_or_else(|| PathBuf::from("/var/cache/tranship-testbed"), PathBuf::from);
        Self {
            cache,
            state: PathBuf::from("/var/lib/tranship-testbed"),
        }
    }
}

impl Dirs {
    /// The directory with one subdirectory per test-image recipe.
    pub(crate) fn images(&self) -> PathBuf {
        self.cache.join("images")
    }

    /// The directory with one subdirectory per bed.
    pub(crate) fn beds(&self) -> PathBuf {
        self.state.join("beds")
    }

    /// The directory for what is being removed.
    pub(crate) fn trash(&self) -> PathBuf {
        self.state.join("trash")
    }

    /// A bed's own directory.
    pub(crate) fn bed(&self, name: &str) -> PathBuf {
        self.beds().join(name)
    }
}

/// An exclusive lock between processes, given back when dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock on a file, which is made if it is missing and stays afterwards.
    ///
    /// # Errors
    ///
    /// When the file can't be made or locked.
    pub fn take(path: &Path) -> Result<Self> {
        if let Some(parent) = path.parent() {
            make_dir(parent)?;
        }
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .at("open lock file", path)?;
        file.lock().at("lock", path)?;
        Ok(Self { _file: file })
    }
}

/// Makes a directory and those above it.
pub(crate) fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).at("create directory", path)
}

/// Writes a file whole, or not at all.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let unfinished = path.with_extension("new");
    fs::write(&unfinished, content).at("write", &unfinished)?;
    fs::rename(&unfinished, path).at("rename into place", path)
}
