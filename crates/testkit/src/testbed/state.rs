//! The record of a live bed on disk, and who may remove it.
//!
//! A bed belongs to the process that brought it up, named by pid and start time; when that process is gone, however
//! it went, the bed is dead and the next `up` or `gc` removes it. A persistent bed belongs to nobody and stays until
//! somebody takes it down, or the machine restarts.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cgroup::Cgroups;
use super::error::{AtPath, Error, Result};
use super::network;
use super::options::{Engine, Options, SmallDisk};
use super::paths::{Dirs, Lock, make_dir, write_atomically};
use super::process::ProcessId;

/// What is known about a bed besides what its processes know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The bed's name.
    pub name: String,
    /// The third byte of its addresses.
    pub subnet: u8,
    /// The engine in its nodes.
    pub engine: Engine,
    /// The names of its nodes, in order.
    pub nodes: Vec<String>,
    /// Directories on small disks.
    pub disks: Vec<SmallDisk>,
    /// Nodes whose Docker keeps its images with containerd.
    #[serde(default)]
    pub containerd_stores: Vec<String>,
    /// The shared root file system.
    pub tree: PathBuf,
    /// The process it belongs to, if any.
    pub owner: Option<ProcessId>,
    /// Tells one run of the machine from the next.
    pub boot_id: String,
}

impl Record {
    /// Reads the record of the named bed.
    ///
    /// # Errors
    ///
    /// [`Error::NoBed`] when there is none, [`Error::State`] when it is damaged.
    pub fn load(dirs: &Dirs, name: &str) -> Result<Self> {
        check_name(name)?;
        let path = record_path(&dirs.bed(name));
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| Error::State { path, source }),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(Error::NoBed(name.to_owned())),
            Err(source) => Err(Error::Io {
                action: "read",
                path,
                source,
            }),
        }
    }

    /// Writes the record into the bed's directory.
    pub fn save(&self, dirs: &Dirs) -> Result<()> {
        let path = record_path(&dirs.bed(&self.name));
        let text = serde_json::to_vec_pretty(self).map_err(|source| Error::State {
            path: path.clone(),
            source,
        })?;
        write_atomically(&path, &text)
    }

    /// Chooses a name and a subnet, and makes the bed's directory with this record in it.
    pub fn reserve(options: &Options, tree: PathBuf) -> Result<Self> {
        let dirs = &options.dirs;
        let nodes = node_names(options)?;
        let _lock = Lock::take(&dirs.state.join("lock"))?;
        let beds = list(dirs)?;
        let taken: BTreeSet<u8> = beds
            .iter()
            .filter_map(|name| Self::load(dirs, name).ok())
            .map(|record| record.subnet)
            .collect();
        let in_use = network::subnets_in_use()?;
        let subnet = (1..=254)
            .find(|subnet| !taken.contains(subnet) && !in_use.contains(subnet))
            .ok_or(Error::NoSubnet)?;
        let name = match &options.name {
            Some(name) => {
                check_name(name)?;
                name.clone()
            }
            None => format!("bed-{subnet}"),
        };
        if beds.contains(&name) {
            return Err(Error::BedExists(name));
        }
        let record = Self {
            name,
            subnet,
            engine: options.engine,
            nodes,
            disks: options.disks.clone(),
            containerd_stores: options.containerd_stores.clone(),
            tree,
            owner: ProcessId::current(),
            boot_id: boot_id()?,
        };
        make_dir(&dirs.bed(&record.name))?;
        record.save(dirs)?;
        Ok(record)
    }

    /// Whether nobody will ever take this bed down.
    fn abandoned(&self, boot_id: &str) -> bool {
        self.boot_id != boot_id || self.owner.is_some_and(|owner| !owner.alive())
    }
}

/// The names of all beds, dead ones included.
pub(crate) fn list(dirs: &Dirs) -> Result<Vec<String>> {
    let path = dirs.beds();
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(Error::Io {
                action: "list",
                path,
                source,
            });
        }
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Takes over every bed that nobody owns any more, so that only the caller removes it.
pub(crate) fn claim_abandoned(dirs: &Dirs) -> Result<Vec<Record>> {
    let boot_id = boot_id()?;
    let _lock = Lock::take(&dirs.state.join("lock"))?;
    let mut claimed = Vec::new();
    for name in list(dirs)? {
        match Record::load(dirs, &name) {
            Ok(mut record) if record.abandoned(&boot_id) => {
                record.owner = ProcessId::current();
                record.boot_id.clone_from(&boot_id);
                record.save(dirs)?;
                claimed.push(record);
            }
            Ok(_) => {}
            // Its maker died before there was anything but the directory, or wrote a record we can't read.
            Err(Error::NoBed(_) | Error::State { .. }) => {
                let cgroups = Cgroups::detect()?;
                cgroups.kill(&name, None)?;
                cgroups.remove(&name, None)?;
                discard(dirs, &name)?;
            }
            Err(error) => return Err(error),
        }
    }
    // What others were discarding when they died.
    for path in fs::read_dir(dirs.trash())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
    {
        let discarder = path
            .extension()
            .and_then(|text| ProcessId::parse(&text.to_str()?.replace('-', " ")));
        if !discarder.is_some_and(|process| process.alive()) {
            remove(&path)?;
        }
    }
    Ok(claimed)
}

/// Removes a bed's directory. It leaves the beds at once, so that nobody meets half a bed.
pub(crate) fn discard(dirs: &Dirs, name: &str) -> Result<()> {
    let bed = dirs.bed(name);
    let trash = dirs.trash();
    make_dir(&trash)?;
    let suffix = ProcessId::current().map_or(String::new(), |me| format!("{}-{}", me.pid, me.start));
    let discarded = trash.join(format!("{name}.{suffix}"));
    match fs::rename(&bed, &discarded) {
        Ok(()) => remove(&discarded),
        // Somebody else was faster.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Io {
            action: "discard",
            path: bed,
            source,
        }),
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).at("remove", path),
        _ => Ok(()),
    }
}

fn record_path(bed: &Path) -> PathBuf {
    bed.join("bed.json")
}

fn check_name(name: &str) -> Result<()> {
    let fits = !name.is_empty()
        && name.len() <= 32
        && !name.starts_with('-')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if fits {
        Ok(())
    } else {
        Err(Error::BadName(name.to_owned()))
    }
}

fn node_names(options: &Options) -> Result<Vec<String>> {
    let names: Vec<String> = ('a'..='z').take(options.nodes).map(String::from).collect();
    if names.is_empty() || names.len() != options.nodes {
        return Err(Error::BadOptions(format!(
            "{} nodes asked for, 1 to 26 are possible",
            options.nodes
        )));
    }
    if let Some(node) = options
        .containerd_stores
        .iter()
        .find(|node| !names.contains(node))
    {
        return Err(Error::BadOptions(format!(
            "containerd's image store for node `{node}`, which there is not"
        )));
    }
    for disk in &options.disks {
        if !names.contains(&disk.node) {
            return Err(Error::BadOptions(format!(
                "a small disk for node `{}`, which there is not",
                disk.node
            )));
        }
        let path = disk.path.to_string_lossy();
        if !path.starts_with('/') || path.contains([' ', ':', '\n']) {
            return Err(Error::BadOptions(format!(
                "a small disk cannot be mounted at `{path}`"
            )));
        }
    }
    Ok(names)
}

fn boot_id() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    Ok(fs::read_to_string(path).at("read", path)?.trim().to_owned())
}
