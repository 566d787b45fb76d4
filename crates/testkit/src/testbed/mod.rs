//! Real hosts on one machine.
//!
//! A *bed* is a set of *nodes* plugged into one switch. A node has its own file system, process tree, control
//! groups, network address, sshd and container engine, and behaves like a small server: it can be logged into, cut
//! off, slowed down, rebooted, and its disk can run full. Nodes are built from namespaces over one shared Debian
//! tree, so a bed takes seconds to come up and leaves nothing behind.
//!
//! ```no_run
//! use tranship_testkit::testbed::{Link, Testbed};
//!
//! # fn main() -> Result<(), tranship_testkit::testbed::Error> {
//! let [a, b] = Testbed::nodes()?;
//! let image = a.load_image("busybox")?;
//! a.exec_ok(["docker", "run", "--detach", "--name", "web", &image])?;
//! b.set_link(Link::Rate("100mbit"))?;
//! assert!(b.exec(["ping", "-c1", "a"])?.success());
//! # Ok(())
//! # }
//! ```
//!
//! **What it needs**: root, a kernel with namespaces, overlayfs and bridges, and on first use a Debian mirror (taken
//! from the host's apt configuration) for about a minute. [`missing_capability`] says what keeps a machine from it.
//!
//! **What it leaves**: nothing but its cache. A bed goes when the last handle on it is dropped; if the process dies
//! before, the next bed or [`collect_garbage`] removes it. Every process of a bed is in the bed's control groups, so
//! none can be missed and no other is ever touched.
//!
//! **Users**: `root`, `deploy` (may use the engine) and `guest` (may not) accept the bed's key on every node.

mod bed;
mod cgroup;
mod error;
mod host;
mod images;
mod inventory;
mod keys;
mod mirror;
mod network;
mod node;
mod options;
mod paths;
mod process;
mod run;
mod state;
mod tree;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bed::Bed;
use state::Record;
use tree::Tree;

pub use error::{Error, Result};
pub use host::{missing_capability, required_programs};
pub use images::{IMAGES, ensure_images};
pub use network::{Link, LinkBytes};
pub use node::{Node, NodeProcess};
pub use options::{Engine, Options, SmallDisk};
pub use paths::{Dirs, Lock};
pub use run::Output;

/// A bed that is up. Unless it is persistent, it is taken down when this and all its [`Node`]s are dropped.
#[derive(Debug, Clone)]
pub struct Testbed {
    bed: Arc<Bed>,
}

impl Testbed {
    /// Brings up a bed and waits until every node's sshd and engine answer. Dead beds of others are removed first.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] or [`Error::MissingTools`] when the machine can't; [`Error::BedExists`] when the name
    /// is taken; [`Error::NotReady`], with the end of the log, when a node doesn't come up. What was started until
    /// then is taken away again.
    pub fn up(options: Options) -> Result<Self> {
        host::prepare(&options.dirs)?;
        let tree = Tree::ensure(&options.dirs, options.mirror.as_deref())?;
        match collect_garbage(&options.dirs) {
            Ok(names) if names.is_empty() => {}
            Ok(names) => tracing::info!("removed what dead processes left: {}", names.join(", ")),
            // Somebody else's bed is no reason for this one not to come up.
            Err(error) => tracing::warn!(%error, "a dead testbed could not be removed"),
        }
        let begin = Instant::now();
        let record = Record::reserve(&options, tree.root())?;
        tracing::info!(
            "bringing up testbed {} with {} nodes ({})",
            record.name,
            record.nodes.len(),
            record.engine
        );
        let mut bed = Bed::new(options.dirs, record, true)?;
        bed.start()?;
        if options.persistent {
            bed.release()?;
        }
        tracing::info!(
            "testbed {} is up after {:.1} s",
            bed.record.name,
            begin.elapsed().as_secs_f64()
        );
        Ok(Self { bed: Arc::new(bed) })
    }

    /// A new bed of `N` nodes with Docker, as an array to take apart: `let [a, b] = Testbed::nodes()?`.
    ///
    /// # Errors
    ///
    /// As [`Testbed::up`].
    pub fn nodes<const N: usize>() -> Result<[Node; N]> {
        Ok(Self::up(Options {
            nodes: N,
            ..Options::default()
        })?
        .array())
    }

    /// Finds a bed that is up, whoever brought it up; dropping the handle leaves it alone.
    ///
    /// # Errors
    ///
    /// [`Error::NoBed`] when there is none.
    pub fn attach(dirs: &Dirs, name: &str) -> Result<Self> {
        let record = Record::load(dirs, name)?;
        Ok(Self {
            bed: Arc::new(Bed::new(dirs.clone(), record, false)?),
        })
    }

    /// The bed's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.bed.record.name
    }

    /// The engine in its nodes.
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.bed.record.engine
    }

    /// All nodes, in order.
    #[must_use]
    pub fn all(&self) -> Vec<Node> {
        (0..self.bed.record.nodes.len())
            .map(|index| Node::new(Arc::clone(&self.bed), index))
            .collect()
    }

    /// The first `N` nodes, as an array to take apart.
    ///
    /// # Panics
    ///
    /// When the bed has fewer.
    #[must_use]
    pub fn array<const N: usize>(&self) -> [Node; N] {
        assert!(
            N <= self.bed.record.nodes.len(),
            "the bed has only {} nodes",
            self.bed.record.nodes.len()
        );
        std::array::from_fn(|index| Node::new(Arc::clone(&self.bed), index))
    }

    /// The node of this name.
    ///
    /// # Errors
    ///
    /// [`Error::NoNode`] when there is none.
    pub fn node(&self, name: &str) -> Result<Node> {
        let position = self.bed.record.nodes.iter().position(|known| known == name);
        let missing = || Error::NoNode {
            bed: self.name().to_owned(),
            node: name.to_owned(),
        };
        position
            .map(|index| Node::new(Arc::clone(&self.bed), index))
            .ok_or_else(missing)
    }

    /// A configuration for `ssh -F FILE a` on the host: addresses, key, and host keys with strict checking.
    #[must_use]
    pub fn ssh_config(&self) -> &Path {
        &self.bed.ssh_config
    }

    /// Who the bed belongs to, for people to read.
    #[must_use]
    pub fn owner(&self) -> String {
        match self.bed.record.owner {
            None => "stays until taken down".to_owned(),
            Some(owner) if owner.alive() => format!("belongs to process {}", owner.pid),
            Some(owner) => format!("dead: its owner, process {}, is gone", owner.pid),
        }
    }

    /// Whether the bed belongs to a process that still runs.
    #[must_use]
    pub fn has_living_owner(&self) -> bool {
        self.bed.record.owner.is_some_and(|owner| owner.alive())
    }

    /// Takes the bed down now, whoever brought it up. Handles that are left can do nothing any more.
    ///
    /// # Errors
    ///
    /// [`Error::NotGone`] when something can't be removed; trying again is safe.
    pub fn down(self) -> Result<()> {
        self.bed.tear_down()
    }
}

/// Builds the nodes' root file system unless the cache has it; returns the directory whose `root` it is.
///
/// # Errors
///
/// As [`Testbed::up`], and what building meets.
pub fn ensure_tree(dirs: &Dirs, mirror: Option<&str>) -> Result<PathBuf> {
    host::prepare(dirs)?;
    let root = Tree::ensure(dirs, mirror)?.root();
    Ok(root.parent().unwrap_or(&root).to_owned())
}

/// The names of all beds on this machine, sorted; those whose owner died are among them.
///
/// # Errors
///
/// When the state directory can't be read.
pub fn beds(dirs: &Dirs) -> Result<Vec<String>> {
    state::list(dirs)
}

/// Takes down the named bed, whoever brought it up.
///
/// # Errors
///
/// [`Error::NoBed`] when there is none; otherwise as [`Testbed::down`].
pub fn down(dirs: &Dirs, name: &str) -> Result<()> {
    Testbed::attach(dirs, name)?.down()
}

/// Removes every bed whose owner died or that an earlier run of the machine left; returns their names.
///
/// # Errors
///
/// As [`Testbed::down`], for the first bed that can't be removed; the others are removed all the same.
pub fn collect_garbage(dirs: &Dirs) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let mut failure = None;
    for record in state::claim_abandoned(dirs)? {
        let name = record.name.clone();
        match Bed::new(dirs.clone(), record, false).and_then(|bed| bed.tear_down()) {
            Ok(()) => removed.push(name),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    failure.map_or(Ok(removed), Err)
}
