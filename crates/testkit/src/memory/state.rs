//! What the engine holds, and the rules by which it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tranship_core::container::{ContainerSpec, ContainerState, Health, MountKind, MountSpec};
use tranship_core::engine::{CreateRequest, ExecOutcome};
use tranship_core::ids::Digest;
use tranship_core::memory::{DumpKind, Dumped};
use tranship_core::storage::{ElementAt, ElementPlace, VolumeSpec, VolumeUser, mount_touches};
use tranship_core::{ContainerId, EngineError, ImageSpec, NetworkSpec};

use super::{Contents, Failure, MemoryContainer, MemoryStorage, bare_spec, image};

/// Path in a helper container.
const HELPER_PATH: &str = "/tranship-volume";

/// The file that every dump has.
const INVENTORY: &str = "inventory";

#[derive(Debug)]
pub(super) struct State {
    pub(super) node: String,
    pub(super) containers: BTreeMap<String, MemoryContainer>,
    pub(super) images: BTreeMap<String, ImageSpec>,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) networks: BTreeMap<String, NetworkSpec>,
    pub(super) volumes: BTreeMap<String, VolumeSpec>,
    pub(super) storage: MemoryStorage,
    pub(super) indirect: bool,
    pub(super) helpers: BTreeSet<String>,
    /// Containers whose dump came to its end.
    dumped: BTreeSet<String>,
    /// Dumps hold only what was put into the heap since the one before.
    pub(super) tracked: bool,
    pub(super) outcomes: BTreeMap<String, ExecOutcome>,
    pub(super) execs: Vec<(ContainerId, String)>,
    pub(super) calls: usize,
    pub(super) names: Vec<&'static str>,
    pub(super) fail: Vec<(usize, Failure)>,
    next_id: u64,
    pub(super) health: Option<Health>,
    pub(super) import_takes: Duration,
}

impl Default for State {
    fn default() -> Self {
        Self {
            node: "node".into(),
            containers: BTreeMap::new(),
            images: BTreeMap::new(),
            tags: BTreeMap::new(),
            networks: BTreeMap::new(),
            volumes: BTreeMap::new(),
            storage: MemoryStorage::new(),
            indirect: false,
            helpers: BTreeSet::new(),
            dumped: BTreeSet::new(),
            tracked: false,
            outcomes: BTreeMap::new(),
            execs: Vec::new(),
            calls: 0,
            names: Vec::new(),
            fail: Vec::new(),
            next_id: 0,
            health: None,
            import_takes: Duration::ZERO,
        }
    }
}

pub(super) fn conflict(action: &str, message: &str) -> EngineError {
    EngineError::Conflict {
        action: action.into(),
        message: message.into(),
    }
}

fn not_found(what: &'static str, name: &str) -> EngineError {
    EngineError::NotFound {
        what,
        name: name.to_owned(),
    }
}

impl State {
    pub(super) fn new_id(&mut self) -> ContainerId {
        self.next_id += 1;
        // Sixty-four hexadecimal digits always make an id.
        ContainerId::new(format!("{:064x}", self.next_id)).unwrap_or_else(|_| unreachable!())
    }

    pub(super) fn container(&mut self, id: &ContainerId) -> Result<&mut MemoryContainer, EngineError> {
        self.containers
            .get_mut(id.as_str())
            .ok_or_else(|| not_found("container", id.as_str()))
    }

    pub(super) fn image(&self, reference: &str) -> Option<ImageSpec> {
        let id = self.tags.get(reference).map_or(reference, String::as_str);
        let mut image = self.images.get(id)?.clone();
        image.tags = self
            .tags
            .iter()
            .filter(|(_, i)| i.as_str() == id)
            .map(|(t, _)| t.clone())
            .collect();
        Some(image)
    }

    fn place(&self, kind: &str, rest: &str) -> PathBuf {
        PathBuf::from(format!("/memory/{}/{kind}", self.node)).join(rest.trim_start_matches('/'))
    }

    pub(super) fn layer_path(&self, id: &ContainerId) -> PathBuf {
        self.place("layer", id.as_str())
    }

    /// Puts a volume there, empty, unless there is one.
    pub(super) fn add_volume(&mut self, spec: &VolumeSpec) {
        if self.volumes.contains_key(&spec.name) {
            return;
        }
        self.next_id += 1;
        let mountpoint = self.place("volume", &spec.name);
        self.storage.set(&mountpoint, Contents::new());
        let driver = if spec.driver.is_empty() {
            "local"
        } else {
            &spec.driver
        };
        let made = VolumeSpec {
            driver: driver.to_owned(),
            scope: "local".into(),
            created_at: format!("2001-02-03T04:05:06.{:09}Z", self.next_id),
            mountpoint: Some(mountpoint),
            users: Vec::new(),
            guid: String::new(),
            ..spec.clone()
        };
        self.volumes.insert(spec.name.clone(), made);
    }

    /// Puts the volumes there that a container mounts.
    pub(super) fn add_volumes_of(&mut self, spec: &ContainerSpec) {
        for mount in spec.mounts.iter().filter(|m| m.kind == MountKind::Volume) {
            self.add_volume(&VolumeSpec {
                name: mount.name.clone(),
                driver: mount.driver.clone(),
                anonymous: mount.anonymous,
                ..VolumeSpec::default()
            });
        }
    }

    pub(super) fn remove_volume(&mut self, name: &str) {
        self.volumes.remove(name);
        self.storage.forget(self.place("volume", name));
    }

    /// The containers that mount a volume, each with its mounts of it.
    pub(super) fn users_of<'a>(
        &'a self,
        volume: &'a str,
    ) -> impl Iterator<Item = (&'a MemoryContainer, Vec<&'a MountSpec>)> {
        self.containers.values().filter_map(move |container| {
            let mounts: Vec<&MountSpec> = container
                .spec
                .mounts
                .iter()
                .filter(|m| m.kind == MountKind::Volume && m.name == volume)
                .collect();
            (!mounts.is_empty()).then_some((container, mounts))
        })
    }

    pub(super) fn volume_specs(&self) -> Vec<VolumeSpec> {
        self.volumes
            .values()
            .map(|volume| VolumeSpec {
                users: self
                    .users_of(&volume.name)
                    .filter(|(container, _)| !self.helpers.contains(container.spec.id.as_str()))
                    .map(|(container, mounts)| VolumeUser {
                        container: container.spec.id.clone(),
                        name: container.spec.name.clone(),
                        running: is_up(container.state),
                        writable: mounts.iter().any(|mount| mount.writable),
                    })
                    .collect(),
                ..volume.clone()
            })
            .collect()
    }

    pub(super) fn path_users(&self, path: &str) -> Vec<VolumeUser> {
        let touches = |m: &MountSpec| {
            m.kind == MountKind::Bind && mount_touches(Path::new(&m.source), m.writable, Path::new(path))
        };
        self.containers
            .values()
            .filter(|container| container.spec.mounts.iter().any(touches))
            .map(|container| VolumeUser {
                container: container.spec.id.clone(),
                name: container.spec.name.clone(),
                running: is_up(container.state),
                writable: container.spec.mounts.iter().any(|m| touches(m) && m.writable),
            })
            .collect()
    }

    pub(super) fn locate(&mut self, element: &ElementAt) -> Result<ElementPlace, EngineError> {
        let (path, overlay) = match element {
            ElementAt::Layer { container } => {
                self.container(container)?;
                if self.indirect {
                    return Ok(ElementPlace::Archive {
                        container: container.clone(),
                        path: "/".into(),
                    });
                }
                (self.layer_path(container), true)
            }
            ElementAt::Volume { name } if !self.volumes.contains_key(name) => {
                return Err(not_found("volume", name));
            }
            ElementAt::Volume { name } => (self.place("volume", name), false),
            ElementAt::Bind { path } => (self.place("bind", path), false),
            ElementAt::Tmpfs { container, path } => {
                if self.indirect || !is_up(self.container(container)?.state) {
                    return Err(EngineError::Unsupported {
                        message: format!("the tmpfs at {path} cannot be reached"),
                    });
                }
                (self.tmpfs_path(container, path), false)
            }
            ElementAt::Memory { container, .. } => {
                self.container(container)?;
                let path = self.dump_path(container);
                if self.storage.get(&path).is_none() {
                    self.storage.set(&path, Contents::new());
                }
                return Ok(ElementPlace::Directory { path, overlay: false });
            }
        };
        if !self.indirect {
            return Ok(ElementPlace::Directory { path, overlay });
        }
        let id = self.new_id();
        let mut spec = bare_spec(&format!("tranship-helper-{id}"), &image("helper", 0));
        spec.id = id.clone();
        spec.mounts.push(MountSpec {
            kind: match element {
                ElementAt::Volume { .. } => MountKind::Volume,
                _ => MountKind::Bind,
            },
            name: match element {
                ElementAt::Volume { name } => name.clone(),
                _ => String::new(),
            },
            source: match element {
                ElementAt::Bind { path } => path.clone(),
                _ => String::new(),
            },
            destination: HELPER_PATH.into(),
            driver: String::new(),
            writable: true,
            anonymous: false,
        });
        self.helpers.insert(id.to_string());
        let place = ElementPlace::Archive {
            container: id.clone(),
            path: HELPER_PATH.into(),
        };
        self.storage.alias(&place, path);
        self.containers.insert(
            id.to_string(),
            MemoryContainer {
                policy: spec.restart_policy.clone(),
                spec,
                state: ContainerState::Created,
            },
        );
        Ok(place)
    }

    /// What a running container's processes hold.
    pub(super) fn heap_path(&self, container: &ContainerId) -> PathBuf {
        self.place("heap", container.as_str())
    }

    pub(super) fn dump_path(&self, container: &ContainerId) -> PathBuf {
        self.place("dump", container.as_str())
    }

    pub(super) fn dump(&mut self, element: &ElementAt, kind: DumpKind) -> Result<Dumped, EngineError> {
        let id = memory_of(element)?;
        let state = self.container(id)?.state;
        if !matches!(state, ContainerState::Running | ContainerState::Paused) {
            return Err(conflict("dump", &format!("the container is {state}")));
        }
        if kind == DumpKind::Last && state != ContainerState::Paused {
            return Err(conflict("dump", "the container goes on"));
        }
        let heap = self.storage.get(self.heap_path(id)).unwrap_or_default();
        let (path, goes_on) = (self.dump_path(id), self.dumped.contains(id.as_str()));
        let there = self
            .storage
            .get(path.clone())
            .filter(|_| goes_on && matches!(kind, DumpKind::Next | DumpKind::Last));
        let mut dump = there.unwrap_or_default();
        let before = links(&dump);
        let tracked = self.tracked && (kind == DumpKind::First || before > 0);
        let mut prefix = String::new();
        if tracked {
            prefix = format!("{}/", before + 1);
        } else {
            dump.clear();
        }
        let known = merged(&dump);
        let new = heap
            .into_iter()
            .filter(|(name, content)| known.get(name) != Some(content));
        dump.extend(new.map(|(name, content)| (format!("{prefix}{name}"), content)));
        dump.insert(format!("{prefix}{INVENTORY}"), Vec::new());
        self.storage.set(path, dump);
        self.dumped.insert(id.to_string());
        Ok(if tracked {
            Dumped::Tracked
        } else {
            Dumped::Whole { why: None }
        })
    }

    pub(super) fn clear_dump(&mut self, element: &ElementAt) -> Result<(), EngineError> {
        let id = memory_of(element)?;
        self.storage.set(self.dump_path(id), BTreeMap::new());
        self.dumped.remove(id.as_str());
        Ok(())
    }

    pub(super) fn has_dump(&self, element: &ElementAt) -> Result<bool, EngineError> {
        Ok(self.dumped.contains(memory_of(element)?.as_str()))
    }

    pub(super) fn restore(&mut self, element: &ElementAt) -> Result<(), EngineError> {
        let id = memory_of(element)?;
        let found = self.container(id)?;
        match found.state {
            ContainerState::Running => return Ok(()),
            state if is_up(state) => return Err(conflict("restore", &format!("the container is {state}"))),
            _ => {}
        }
        let mut heap = merged(&self.storage.get(self.dump_path(id)).unwrap_or_default());
        if heap.remove(INVENTORY).is_none() {
            return Err(not_found("file", INVENTORY));
        }
        self.storage.set(self.heap_path(id), heap);
        self.container(id)?.state = ContainerState::Running;
        Ok(())
    }

    pub(super) fn forget(&mut self, element: &ElementAt) -> Result<(), EngineError> {
        let id = memory_of(element)?;
        self.storage.forget(self.dump_path(id));
        self.dumped.remove(id.as_str());
        Ok(())
    }

    fn tmpfs_path(&self, container: &ContainerId, path: &str) -> PathBuf {
        self.place("tmpfs", container.as_str())
            .join(path.trim_start_matches('/'))
    }

    /// The element that a path of a container is the root of.
    fn element_at(&self, id: &ContainerId, path: &str) -> Result<PathBuf, EngineError> {
        let container = self
            .containers
            .get(id.as_str())
            .ok_or_else(|| not_found("container", id.as_str()))?;
        if path == "/" {
            return Ok(self.layer_path(id));
        }
        let mount = container
            .spec
            .mounts
            .iter()
            .find(|mount| mount.destination == path);
        match mount {
            Some(mount) if mount.kind == MountKind::Volume => Ok(self.place("volume", &mount.name)),
            Some(mount) if mount.kind == MountKind::Bind => Ok(self.place("bind", &mount.source)),
            _ => Err(not_found("file", path)),
        }
    }

    pub(super) fn contents_at(&self, id: &ContainerId, path: &str) -> Result<Contents, EngineError> {
        let place = self.element_at(id, path)?;
        self.storage.get(place).ok_or_else(|| not_found("file", path))
    }

    pub(super) fn import(&self, id: &ContainerId, path: &str, more: Contents) -> Result<(), EngineError> {
        let place = self.element_at(id, path)?;
        let mut contents = self.storage.get(&place).unwrap_or_default();
        contents.extend(more);
        self.storage.set(place, contents);
        Ok(())
    }

    /// One state of a running container into the other; there already is done well.
    pub(super) fn change(
        &mut self,
        id: &ContainerId,
        action: &str,
        from: ContainerState,
        to: ContainerState,
    ) -> Result<(), EngineError> {
        let found = self.container(id)?;
        if found.state != from && found.state != to {
            return Err(conflict(action, &format!("the container is {}", found.state)));
        }
        found.state = to;
        Ok(())
    }

    /// Its processes are gone, and what was in memory with them.
    pub(super) fn end(&mut self, id: &ContainerId, exit_code: i64) -> Result<(), EngineError> {
        let found = self.container(id)?;
        if !is_up(found.state) && found.state != ContainerState::Created {
            return Ok(());
        }
        found.state = ContainerState::Exited;
        found.spec.status.exit_code = exit_code;
        let auto_remove = found.spec.auto_remove;
        self.storage.forget_below(self.place("tmpfs", id.as_str()));
        self.storage.forget(self.heap_path(id));
        if auto_remove {
            self.remove_container(id, true);
        }
        Ok(())
    }

    pub(super) fn remove_container(&mut self, id: &ContainerId, volumes: bool) {
        let Some(gone) = self.containers.remove(id.as_str()) else {
            return;
        };
        self.helpers.remove(id.as_str());
        self.storage.forget(self.layer_path(id));
        self.storage.forget(self.heap_path(id));
        self.storage.forget_below(self.place("tmpfs", id.as_str()));
        let anonymous = gone.spec.mounts.into_iter().filter(|m| m.anonymous && volumes);
        for mount in anonymous {
            if self.users_of(&mount.name).next().is_none() {
                self.remove_volume(&mount.name);
            }
        }
    }

    pub(super) fn create(&mut self, request: &CreateRequest) -> Result<ContainerId, EngineError> {
        let mut spec = request.spec.clone();
        let carried = |mount: &MountSpec| request.carried.get(&mount.destination);
        for mount in spec.mounts.iter().filter(|m| m.kind != MountKind::Tmpfs) {
            match carried(mount) {
                None if !request.empty_volumes => {
                    return Err(EngineError::Unsupported {
                        message: format!("the data at {} does not come along", mount.destination),
                    });
                }
                None if mount.kind == MountKind::Volume
                    && !mount.anonymous
                    && self.volumes.contains_key(&mount.name) =>
                {
                    return Err(conflict("create", "a volume of this name is there already"));
                }
                Some(name)
                    if mount.kind == MountKind::Volume
                        && !name.is_empty()
                        && !self.volumes.contains_key(name) =>
                {
                    return Err(not_found("volume", name));
                }
                _ => {}
            }
        }
        let stray = |path: &&String| spec.mounts.iter().all(|mount| mount.destination != **path);
        if let Some(path) = request.carried.keys().find(stray) {
            return Err(EngineError::Unsupported {
                message: format!("the container mounts nothing at {path}"),
            });
        }
        let id = self.new_id();
        spec.id = id.clone();
        spec.name.clone_from(&request.name);
        let mut made_up: BTreeMap<String, String> = BTreeMap::new();
        for mount in &mut spec.mounts {
            match (mount.kind, request.carried.get(&mount.destination)) {
                (MountKind::Volume, Some(name)) if !name.is_empty() => {
                    mount.name.clone_from(name);
                    mount.anonymous = self.volumes.get(name).is_some_and(|volume| volume.anonymous);
                }
                (MountKind::Volume, to) if to.is_some() || mount.anonymous => {
                    self.next_id += 1;
                    let text = format!("{} volume {}", self.node, self.next_id);
                    let name = Digest::of(text.as_bytes()).hex().to_owned();
                    // One volume at two paths stays one.
                    let old = std::mem::take(&mut mount.name);
                    mount.name = made_up.entry(old).or_insert(name).clone();
                    mount.anonymous = true;
                }
                (MountKind::Bind, Some(path)) => mount.source.clone_from(path),
                _ => {}
            }
        }
        self.add_volumes_of(&spec);
        self.storage.set(self.layer_path(&id), Contents::new());
        let container = MemoryContainer {
            spec,
            state: ContainerState::Created,
            policy: request.restart_policy.clone(),
        };
        self.containers.insert(id.to_string(), container);
        Ok(id)
    }
}

fn memory_of(element: &ElementAt) -> Result<&ContainerId, EngineError> {
    match element {
        ElementAt::Memory { container, .. } => Ok(container),
        other => Err(EngineError::Unsupported {
            message: format!("{other} is no memory"),
        }),
    }
}

fn is_up(state: ContainerState) -> bool {
    matches!(
        state,
        ContainerState::Running | ContainerState::Paused | ContainerState::Restarting
    )
}

/// How many dumps belong together, each below its number; none if there is one that stands alone.
fn links(dump: &Contents) -> u32 {
    let numbers = dump
        .keys()
        .filter_map(|name| name.split_once('/')?.0.parse().ok());
    numbers.max().unwrap_or(0)
}

/// What a restore finds in a dump, or in all that belong together. One of them that is missing is seen.
fn merged(dump: &Contents) -> Contents {
    let mut all = Contents::new();
    for number in 1..=links(dump) {
        let prefix = format!("{number}/");
        let of_one = dump
            .iter()
            .filter_map(|(name, content)| Some((name.strip_prefix(&prefix)?.to_owned(), content.clone())));
        all.remove(INVENTORY);
        all.extend(of_one);
        if !all.contains_key(INVENTORY) {
            return Contents::new();
        }
    }
    if all.is_empty() { dump.clone() } else { all }
}
