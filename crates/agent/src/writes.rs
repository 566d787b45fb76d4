//! What copies write to at the moment. A migration does not begin under them, and they do not begin under a migration: what were
//! written after the source was read for the last time would stay behind.
//!
//! A container of which a checkpoint is made, or which is restored from one, is held in the same way: neither copies nor
//! migrations begin on what belongs to it, and it is not begun under them.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tranship_core::ContainerId;
use tranship_core::container::{ContainerSpec, MountKind};
use tranship_core::fault::FaultKind;
use tranship_core::storage::ElementAt;
use tranship_core::{Fault, storage};
use tranship_migrate::Plan;
use tranship_migrate::elements::Target;
use tranship_migrate::record::ArrivalRecord;

/// The writes under way, by a number each.
#[derive(Debug, Default)]
pub(crate) struct Writes(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    open: Vec<Open>,
}

#[derive(Debug)]
struct Open {
    number: u64,
    elements: Vec<ElementAt>,
    /// The container that is held, where it is no write.
    held: Option<String>,
}

/// A write under way, or a container that is held, until this is dropped.
#[derive(Debug)]
pub(crate) struct Writing {
    writes: Arc<Writes>,
    number: u64,
}

impl Drop for Writing {
    fn drop(&mut self) {
        let mut inner = self.writes.inner();
        inner.open.retain(|open| open.number != self.number);
    }
}

impl Writes {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a write that begins.
    pub(crate) fn begin(self: &Arc<Self>, elements: Vec<ElementAt>) -> Writing {
        self.open(elements, None)
    }

    /// Notes that a container is to stand as its checkpoint has it.
    pub(crate) fn hold(self: &Arc<Self>, elements: Vec<ElementAt>, container: &str) -> Writing {
        self.open(elements, Some(container.to_owned()))
    }

    fn open(self: &Arc<Self>, elements: Vec<ElementAt>, held: Option<String>) -> Writing {
        let mut inner = self.inner();
        inner.last += 1;
        let number = inner.last;
        inner.open.push(Open {
            number,
            elements,
            held,
        });
        Writing {
            writes: Arc::clone(self),
            number,
        }
    }

    /// Whether something is being written to any of these, or one of them is held.
    pub(crate) fn touch(&self, elements: &[ElementAt]) -> bool {
        let inner = self.inner();
        inner.open.iter().any(|open| overlap(&open.elements, elements))
    }

    /// The container that is held and that one of these belongs to.
    pub(crate) fn held(&self, elements: &[ElementAt]) -> Option<String> {
        let inner = self.inner();
        let mut held = inner.open.iter().filter(|open| open.held.is_some());
        held.find(|open| overlap(&open.elements, elements))?.held.clone()
    }

    /// Number of containers that are held.
    pub(crate) fn holds(&self) -> usize {
        self.inner()
            .open
            .iter()
            .filter(|open| open.held.is_some())
            .count()
    }

    /// Why a migration that takes or fills these does not begin.
    pub(crate) fn against(&self, elements: &[ElementAt], plan: &Plan) -> Option<Fault> {
        if let Some(name) = self.held(elements) {
            return Some(checkpointing(&name));
        }
        self.touch(elements).then(|| being_written(plan))
    }
}

/// A path of the host, with links followed where it is there.
pub(crate) fn bind(path: &str) -> ElementAt {
    let real = std::fs::canonicalize(path).ok();
    let real = real.and_then(|real| real.into_os_string().into_string().ok());
    ElementAt::Bind {
        path: real.unwrap_or_else(|| path.to_owned()),
    }
}

/// A volume, by its name and by its directory, which other containers may reach through a bind mount.
fn volume(name: &str, directory: &str) -> Vec<ElementAt> {
    let mut elements = vec![ElementAt::Volume {
        name: name.to_owned(),
    }];
    if directory.starts_with('/') {
        elements.push(bind(directory));
    }
    elements
}

/// Everything that can be written to through the files of a container.
pub(crate) fn of_container(spec: &ContainerSpec) -> Vec<ElementAt> {
    let mut elements = vec![ElementAt::Layer {
        container: spec.id.clone(),
    }];
    for mount in spec.mounts.iter().filter(|mount| mount.writable) {
        match mount.kind {
            MountKind::Volume => elements.extend(volume(&mount.name, &mount.source)),
            MountKind::Bind => elements.push(bind(&mount.source)),
            MountKind::Tmpfs | MountKind::Other => {}
        }
    }
    elements
}

/// What a migration takes from its source.
pub(crate) fn of_departure(plan: &Plan) -> Vec<ElementAt> {
    let mut elements = Vec::new();
    for member in plan.members() {
        let spec = &member.create.spec;
        elements.push(ElementAt::Layer {
            container: spec.id.clone(),
        });
        // Of the host's paths only those that travel, which are among the plan's elements.
        let volumes = spec.mounts.iter().filter(|mount| mount.kind == MountKind::Volume);
        elements.extend(volumes.flat_map(|mount| volume(&mount.name, &mount.source)));
    }
    elements.extend(plan.elements.iter().map(|element| match &element.at {
        ElementAt::Bind { path } => bind(path),
        other => other.clone(),
    }));
    elements
}

/// What a migration fills at its destination.
pub(crate) fn of_arrival(record: &ArrivalRecord) -> Vec<ElementAt> {
    let containers = record.containers.values();
    let layers = containers.map(|container| ElementAt::Layer {
        container: container.clone(),
    });
    layers.chain(targets(&record.plan)).collect()
}

/// The same of one that has made no containers yet.
pub(crate) fn targets(plan: &Plan) -> Vec<ElementAt> {
    let targets = plan.elements.iter().filter_map(|element| match &element.target {
        Target::Volume { name, .. } => Some(ElementAt::Volume { name: name.clone() }),
        Target::Bind { path, .. } => Some(bind(path)),
        _ => None,
    });
    targets.collect()
}

/// Whether something of the one is, or is in, something of the other.
pub(crate) fn overlap(some: &[ElementAt], others: &[ElementAt]) -> bool {
    some.iter().any(|one| others.iter().any(|other| meet(one, other)))
}

fn meet(one: &ElementAt, other: &ElementAt) -> bool {
    match (one, other) {
        (ElementAt::Volume { name }, ElementAt::Volume { name: other }) => name == other,
        (ElementAt::Bind { path }, ElementAt::Bind { path: other }) => {
            storage::mount_touches(Path::new(path), true, Path::new(other))
        }
        _ => match (container(one), container(other)) {
            (Some(one), Some(other)) => one == other,
            _ => false,
        },
    }
}

fn container(element: &ElementAt) -> Option<&ContainerId> {
    match element {
        ElementAt::Layer { container }
        | ElementAt::Tmpfs { container, .. }
        | ElementAt::Memory { container, .. } => Some(container),
        ElementAt::Volume { .. } | ElementAt::Bind { .. } => None,
    }
}

/// Why nothing begins while a checkpoint is made or used.
pub(crate) fn checkpointing(name: &str) -> Fault {
    Fault::new(
        "container.checkpointing",
        FaultKind::Environment,
        format!("a checkpoint of {name} is being made or restored"),
    )
    .on_container(name)
    .with_hint("wait until that has ended, and try again")
}

/// Why a migration does not begin.
fn being_written(plan: &Plan) -> Fault {
    let names: Vec<String> = plan
        .members()
        .iter()
        .map(|m| m.create.spec.name.clone())
        .collect();
    Fault::new(
        "container.copying",
        FaultKind::Environment,
        format!(
            "files are being copied into what belongs to this move of {}",
            names.join(", ")
        ),
    )
    .on_container(plan.spec().name.clone())
    .with_hint("wait until that copy has ended, or end it, and move the container then")
}

/// Why a copy does not begin.
pub(crate) fn on_its_way(plan: &Plan, whither: &str) -> Fault {
    let name = &plan.spec().name;
    Fault::new(
        "container.moving",
        FaultKind::Environment,
        format!(
            "{name} is on its way {whither}, by migration {}: what is written now might stay behind",
            plan.id
        ),
    )
    .on_container(name.clone())
    .with_hint(format!(
        "copy when it has arrived; `tranship status {}` shows how far it is",
        plan.id
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str) -> ElementAt {
        ElementAt::Volume { name: name.into() }
    }

    fn bind(path: &str) -> ElementAt {
        ElementAt::Bind { path: path.into() }
    }

    fn layer(letter: &str) -> ElementAt {
        ElementAt::Layer {
            container: ContainerId::new(letter.repeat(64)).unwrap(),
        }
    }

    #[test]
    fn what_is_the_same_or_in_the_other_meets() {
        let tmpfs = ElementAt::Tmpfs {
            container: ContainerId::new("a".repeat(64)).unwrap(),
            path: "/run".into(),
        };
        for (one, other, expected) in [
            (volume("v"), volume("v"), true),
            (volume("v"), volume("w"), false),
            (volume("v"), bind("v"), false),
            (bind("/a"), bind("/a/b"), true),
            (bind("/a/b"), bind("/a"), true),
            (bind("/a"), bind("/ab"), false),
            (layer("a"), layer("a"), true),
            (layer("a"), layer("b"), false),
            (layer("a"), tmpfs, true),
            (layer("a"), volume("a"), false),
        ] {
            assert_eq!(
                overlap(&[volume("x"), one.clone()], std::slice::from_ref(&other)),
                expected,
                "{one:?} {other:?}"
            );
        }
    }

    #[test]
    fn a_write_is_seen_until_it_is_over() {
        let writes = Arc::new(Writes::default());
        let first = writes.begin(vec![volume("v")]);
        let second = writes.begin(vec![volume("v"), layer("a")]);
        assert!(writes.touch(&[volume("v")]) && writes.touch(&[layer("a")]) && !writes.touch(&[layer("b")]));
        drop(second);
        assert!(writes.touch(&[volume("v")]) && !writes.touch(&[layer("a")]));
        drop(first);
        assert!(!writes.touch(&[volume("v")]));
    }

    #[test]
    fn what_is_held_is_no_write() {
        let writes = Arc::new(Writes::default());
        let write = writes.begin(vec![volume("v")]);
        assert_eq!((writes.held(&[volume("v")]), writes.holds()), (None, 0));
        let hold = writes.hold(vec![layer("a"), volume("w")], "web");
        assert_eq!(writes.held(&[volume("w")]).as_deref(), Some("web"));
        assert_eq!((writes.held(&[layer("b")]), writes.holds()), (None, 1));
        assert!(writes.touch(&[layer("a")]), "a migration sees it");
        drop((write, hold));
        assert_eq!((writes.held(&[volume("w")]), writes.holds()), (None, 0));
    }
}
