//! Which storage elements come along, where they go, and what stands in their way.

mod mounts;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tranship_core::container::{MountKind, MountSpec};
use tranship_core::node::{ArrivalFacts, ContainerReport, ElementSize, NodeFacts, Survey};
use tranship_core::storage::{ElementAt, ElementRoute, VolumeSpec, VolumeUser};

use crate::check::Findings;
use crate::options::{ModeRequest, MoveOptions, VolumeConflict};

/// How an element of the destination comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Making {
    /// It is made new.
    New,
    /// It is there, and is used as it is.
    Reuse,
    /// It is there; what it holds makes way, and comes back if the migration fails.
    Replace,
}

/// Where an element goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "target")]
pub enum Target {
    /// A volume with a name.
    Volume {
        /// Its name there.
        name: String,
        /// How it comes to be.
        making: Making,
    },
    /// A volume whose name the engine there makes up when it makes the container.
    Anonymous {
        /// Which of the plan's containers.
        member: usize,
        /// Its path in that container.
        path: String,
    },
    /// The layer of a container.
    Layer {
        /// Which of the plan's containers.
        member: usize,
    },
    /// A path of the host.
    Bind {
        /// The path.
        path: String,
        /// How it comes to be.
        making: Making,
    },
    /// A tmpfs of a container; filled once it runs, while it is paused.
    Tmpfs {
        /// Which of the plan's containers.
        member: usize,
        /// Its path in that container.
        path: String,
    },
    /// What the processes of a container hold; it starts from that.
    Memory {
        /// Which of the plan's containers.
        member: usize,
        /// About how many bytes it is.
        bytes: u64,
    },
}

/// One storage element of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElementPlan {
    /// Where it is at the source.
    pub at: ElementAt,
    /// Where it goes.
    pub target: Target,
    /// Its path in the first container that has it.
    pub path: String,
    /// Its attributes, if it is a volume.
    #[serde(default)]
    pub volume: Option<VolumeSpec>,
    /// Its data travels. Otherwise it is only made, or used as it is.
    pub copied: bool,
    /// By which means it travels.
    #[serde(default)]
    pub route: ElementRoute,
    /// What it held when the plan was made, where the node could look.
    #[serde(default)]
    pub size: Option<ElementSize>,
}

impl ElementPlan {
    /// What a person calls it.
    #[must_use]
    pub fn label(&self) -> String {
        match &self.at {
            ElementAt::Volume { name } if matches!(self.target, Target::Anonymous { .. }) => {
                format!("volume {} at {}", name.get(..12).unwrap_or(name), self.path)
            }
            other => other.to_string(),
        }
    }
}

/// What the elements of a plan are.
#[derive(Debug, Default)]
pub(crate) struct Planned {
    pub(crate) elements: Vec<ElementPlan>,
    /// For each container, what its mounts become there: path in the container → name or path there.
    pub(crate) carried: Vec<BTreeMap<String, String>>,
    /// Some mount is new and empty there, or is what the destination has.
    pub(crate) some_left: bool,
}

/// Whether a user's `NAME` means this mount.
fn named(mount: &MountSpec, wanted: &[String]) -> bool {
    wanted.iter().any(|w| {
        let path = w.trim_end_matches('/');
        *w == mount.name
            || path == mount.destination
            || (mount.kind == MountKind::Bind && path == mount.source)
    })
}

/// Who else mounts the directories of the host that come along with a container.
pub fn bind_users<'a>(
    report: &'a ContainerReport,
    include_bind: &'a [String],
) -> impl Iterator<Item = &'a VolumeUser> {
    let included = |mount: &&MountSpec| mount.kind == MountKind::Bind && named(mount, include_bind);
    let mounts = report.spec.mounts.iter().filter(included);
    mounts.flat_map(|mount| report.bind_users.get(&mount.source).into_iter().flatten())
}

/// Whether the data of this mount comes along, by what the user asked for.
fn comes_along(mount: &MountSpec, options: &MoveOptions) -> bool {
    if options.without_volumes {
        return false;
    }
    match mount.kind {
        MountKind::Volume => {
            (options.volumes.is_empty() || named(mount, &options.volumes))
                && !named(mount, &options.exclude_volumes)
        }
        MountKind::Bind => named(mount, &options.include_bind),
        MountKind::Tmpfs => named(mount, &options.include_tmpfs),
        MountKind::Other => false,
    }
}

/// Whether a container keeps state that a start elsewhere, beside it, would not see.
pub(crate) fn keeps_state(report: &ContainerReport, options: &MoveOptions) -> bool {
    (report.changes.files > 0 && !options.without_layer)
        || report
            .spec
            .mounts
            .iter()
            .any(|m| m.kind != MountKind::Tmpfs && comes_along(m, options))
}

/// The elements of the containers that move together.
pub(crate) fn plan_elements(
    reports: &[ContainerReport],
    arrivals: &[ArrivalFacts],
    options: &MoveOptions,
    source: &NodeFacts,
    survey: &Survey,
    found: &mut Findings,
) -> Planned {
    let mut planned = Planned::default();
    for (member, report) in reports.iter().enumerate() {
        let mut carried = BTreeMap::new();
        let arrival = arrivals.get(member).cloned().unwrap_or_default();
        for mount in &report.spec.mounts {
            let mut work = Work {
                member,
                report,
                reports,
                options,
                survey,
                arrival: &arrival,
                found,
                planned: &mut planned,
                carried: &mut carried,
            };
            match mount.kind {
                MountKind::Volume => work.volume(mount),
                MountKind::Bind => work.bind(mount),
                MountKind::Tmpfs => work.tmpfs(mount),
                MountKind::Other => work.found.conflict(
                    "mount.unknown",
                    format!(
                        "the mount at {} is of a kind that cannot be carried",
                        mount.destination
                    ),
                    "",
                ),
            }
        }
        layer(member, report, options, found, &mut planned);
        if options.mode == ModeRequest::Live {
            memory(member, report, &mut planned);
        }
        planned.carried.push(carried);
    }
    unknown_names(reports, options, found);
    if !(source.direct_files && survey.node.direct_files) {
        through_the_engine(reports, options, found, &mut planned);
    }
    planned
}

/// Where one of the agents does not reach the files itself, data goes as archives through the engine, as far as that can be done.
fn through_the_engine(
    reports: &[ContainerReport],
    options: &MoveOptions,
    found: &mut Findings,
    planned: &mut Planned,
) {
    // A layer as an archive would be the whole image with it, and could not say what is gone.
    planned.elements.retain(|element| {
        let Target::Layer { member } = element.target else {
            return true;
        };
        let changes = reports.get(member).map(|r| &r.changes);
        if let Some(changes) = changes.filter(|c| c.files > 0) {
            found.conflict(
                "layer.route",
                format!(
                    "the container changed {} file(s) in its own layer ({}), which only root at both ends can carry",
                    changes.files,
                    changes.examples.join(", ")
                ),
                "log in as root at both ends, or --without-layer",
            );
        }
        false
    });
    let mut some = false;
    for element in planned.elements.iter_mut().filter(|e| e.copied) {
        some = true;
        element.route = ElementRoute::Archive;
        let replaced = matches!(
            element.target,
            Target::Volume {
                making: Making::Replace,
                ..
            } | Target::Bind { .. }
                | Target::Tmpfs { .. }
        );
        if replaced {
            found.conflict(
                "files.engine-route",
                format!("{} can only be carried by root at both ends", element.label()),
                "log in as root at both ends",
            );
        }
    }
    if some && !options.exclude.is_empty() {
        found.conflict(
            "files.exclude",
            "--exclude needs root at both ends: elsewhere the engine gives out whole volumes only",
            "log in as root at both ends",
        );
    }
    if some {
        found.warning(
            "files.engine-route",
            "without root at both ends volumes go through the engine, whole, while the source stands still, and without \
             extended attributes and ACLs other than capabilities",
            "log in as root at both ends to copy while it runs, with all attributes",
        );
    }
}

/// One mount being planned.
struct Work<'a> {
    member: usize,
    report: &'a ContainerReport,
    reports: &'a [ContainerReport],
    options: &'a MoveOptions,
    survey: &'a Survey,
    arrival: &'a ArrivalFacts,
    found: &'a mut Findings,
    planned: &'a mut Planned,
    carried: &'a mut BTreeMap<String, String>,
}

impl Work<'_> {
    fn size(&self, mount: &MountSpec) -> Option<ElementSize> {
        self.report.sizes.get(&mount.destination).copied()
    }

    fn volume(&mut self, mount: &MountSpec) {
        let at = &mount.destination;
        let stateless = self.options.mode == ModeRequest::Stateless;
        if stateless && comes_along(mount, self.options) {
            self.found.conflict(
                "volume.stateless",
                format!("the volume at {at} holds data, which cannot be carried while both instances run"),
                "--mode cold or --mode warm carries it; --without-volumes goes on with a new and empty one",
            );
            return;
        }
        if !comes_along(mount, self.options) {
            self.empty_volume(mount);
            return;
        }
        let mut spec = self
            .report
            .volumes
            .iter()
            .find(|v| v.name == mount.name)
            .cloned()
            .unwrap_or_else(|| VolumeSpec {
                name: mount.name.clone(),
                driver: mount.driver.clone(),
                anonymous: mount.anonymous,
                ..VolumeSpec::default()
            });
        let element_at = ElementAt::Volume {
            name: mount.name.clone(),
        };
        // The same volume at another path, or in another container of the group, is the same element.
        if let Some(known) = self.planned.elements.iter().find(|e| e.at == element_at) {
            if let Target::Volume { name, .. } = &known.target {
                self.carried.insert(at.clone(), name.clone());
            }
            return;
        }
        self.shared(&spec);
        self.mounted_below(mount);
        let elsewhere = spec.data_elsewhere();
        if let Some(why) = &elsewhere {
            self.found.note(
                "volume.elsewhere",
                format!(
                    "the volume {:?} at {at} is made again with the same options; its data is not copied, since {why}",
                    mount.name
                ),
            );
            if !self.survey.node.engine.volume_drivers.contains(&spec.driver) {
                self.found.conflict(
                    "volume.driver",
                    format!("the engine there has no volume driver {:?}", spec.driver),
                    "install the driver's plug-in there",
                );
            }
        }
        let shared_in_group = self
            .reports
            .iter()
            .flat_map(|r| &r.spec.mounts)
            .filter(|m| m.kind == MountKind::Volume && m.name == mount.name)
            .count()
            > 1;
        let target = if mount.anonymous && !shared_in_group && elsewhere.is_none() {
            self.carried.insert(at.clone(), String::new());
            Target::Anonymous {
                member: self.member,
                path: at.clone(),
            }
        } else {
            let (name, making) = self.name_there(&spec);
            self.carried.insert(at.clone(), name.clone());
            spec.name.clone_from(&name);
            Target::Volume { name, making }
        };
        let reused = matches!(
            target,
            Target::Volume {
                making: Making::Reuse,
                ..
            }
        );
        self.planned.elements.push(ElementPlan {
            at: element_at,
            target,
            path: at.clone(),
            volume: Some(spec),
            copied: elsewhere.is_none() && !reused,
            route: ElementRoute::Tree,
            size: self.size(mount),
        });
    }

    fn empty_volume(&mut self, mount: &MountSpec) {
        let at = &mount.destination;
        self.planned.some_left = true;
        if !mount.anonymous && self.survey.volumes.contains(&mount.name) {
            self.found.conflict(
                "volume.exists",
                format!(
                    "there is a volume {:?} at the destination already, with somebody's data",
                    mount.name
                ),
                "remove or rename that volume first",
            );
        } else {
            self.found.warning(
                "volume.empty",
                format!("the volume at {at} comes new and empty"),
                "",
            );
        }
    }

    /// Who else uses the volume decides whether it can go.
    fn shared(&mut self, spec: &VolumeSpec) {
        let others: Vec<_> = spec
            .users
            .iter()
            .filter(|u| !self.reports.iter().any(|r| r.spec.id == u.container))
            .collect();
        let running: Vec<&str> = others
            .iter()
            .filter(|u| u.running)
            .map(|u| u.name.as_str())
            .collect();
        if !running.is_empty() {
            self.found.conflict(
                "volume.shared",
                format!(
                    "the volume {:?} is used by {} as well, which would go on here with what is left of it",
                    spec.name,
                    running.join(", ")
                ),
                "--with-dependents moves them together; or stop them first",
            );
        } else if !others.is_empty() {
            let names: Vec<&str> = others.iter().map(|u| u.name.as_str()).collect();
            self.found.warning(
                "volume.shared",
                format!(
                    "the volume {:?} is mounted by {} as well, which is stopped and stays here with a copy that gets old",
                    spec.name,
                    names.join(", ")
                ),
                "--with-dependents moves running ones together; move or remove the others yourself",
            );
        }
    }

    /// The volume's name at the destination.
    fn name_there(&mut self, spec: &VolumeSpec) -> (String, Making) {
        let name = &spec.name;
        let taken = |name: &str| self.survey.volumes.iter().any(|v| v == name);
        if !taken(name) {
            return (name.clone(), Making::New);
        }
        let there = self.survey.volume_specs.iter().find(|v| &v.name == name);
        match self.options.volume_conflict {
            VolumeConflict::Refuse => {
                self.found.conflict(
                    "volume.exists",
                    format!("there is a volume {name:?} at the destination already, with somebody's data"),
                    "--volume-conflict rename, reuse (its data instead of this) or replace (this data instead of its)",
                );
                (name.clone(), Making::New)
            }
            VolumeConflict::Rename => {
                let free = (2u32..).map(|n| format!("{name}-{n}")).find(|n| !taken(n));
                let free = free.unwrap_or_else(|| format!("{name}-moved"));
                self.found.note(
                    "volume.renamed",
                    format!("the volume {name:?} is called {free:?} there, since that name is taken"),
                );
                (free, Making::New)
            }
            VolumeConflict::Reuse => {
                self.found.warning(
                    "volume.reused",
                    format!(
                        "the volume {name:?} of the destination is used as it is; the data here stays behind"
                    ),
                    "",
                );
                (name.clone(), Making::Reuse)
            }
            VolumeConflict::Replace => {
                let users: Vec<&str> = there
                    .iter()
                    .flat_map(|v| &v.users)
                    .filter(|u| u.running && !(self.options.replace && self.is_replaced(&u.name)))
                    .map(|u| u.name.as_str())
                    .collect();
                if users.is_empty() {
                    self.found.warning(
                        "volume.replaced",
                        format!("the data of the volume {name:?} at the destination is replaced"),
                        "",
                    );
                } else {
                    self.found.conflict(
                        "volume.in-use",
                        format!(
                            "the volume {name:?} at the destination is in use by {}, so its data cannot be replaced",
                            users.join(", ")
                        ),
                        "stop them first, or use --volume-conflict rename",
                    );
                }
                if let Some(there) = there
                    && (there.options != spec.options
                        || there.labels != spec.labels
                        || there.driver != spec.driver)
                {
                    self.found.warning(
                        "volume.attributes",
                        format!(
                            "the volume {name:?} of the destination keeps its own driver options and labels"
                        ),
                        "remove it there first if they should be those of the source",
                    );
                }
                (name.clone(), Making::Replace)
            }
        }
    }

    fn is_replaced(&self, name: &str) -> bool {
        let wanted = self.options.rename.as_deref().unwrap_or(&self.report.spec.name);
        name == wanted
    }
}

fn layer(
    member: usize,
    report: &ContainerReport,
    options: &MoveOptions,
    found: &mut Findings,
    planned: &mut Planned,
) {
    let changes = &report.changes;
    if options.without_layer || options.mode == ModeRequest::Stateless {
        if changes.files > 0 {
            found.warning(
                "layer.left-behind",
                format!(
                    "the container changed {} file(s) in its own layer ({} bytes; {}), which stay behind",
                    changes.files,
                    changes.bytes,
                    changes.examples.join(", ")
                ),
                "",
            );
        }
        return;
    }
    if options.mode == ModeRequest::Auto && !keeps_state(report, options) {
        return;
    }
    planned.elements.push(ElementPlan {
        at: ElementAt::Layer {
            container: report.spec.id.clone(),
        },
        target: Target::Layer { member },
        path: "/".into(),
        volume: None,
        copied: true,
        route: ElementRoute::Tree,
        size: report.sizes.get("/").copied().or(Some(ElementSize {
            bytes: changes.bytes,
            entries: changes.files,
        })),
    });
}

/// What the processes hold, last, so that it is as new as can be when the freeze comes.
fn memory(member: usize, report: &ContainerReport, planned: &mut Planned) {
    let bytes = report.memory.as_ref().map_or(0, |memory| memory.bytes);
    planned.elements.push(ElementPlan {
        at: ElementAt::Memory {
            container: report.spec.id.clone(),
            bytes,
        },
        target: Target::Memory { member, bytes },
        path: String::new(),
        volume: None,
        copied: true,
        route: ElementRoute::Tree,
        size: Some(ElementSize { bytes, entries: 0 }),
    });
}

/// A name that nothing bears is a typing error, and data would stay behind unseen.
fn unknown_names(reports: &[ContainerReport], options: &MoveOptions, found: &mut Findings) {
    let mounts = || reports.iter().flat_map(|r| &r.spec.mounts);
    let kinds: [(&str, &[String], MountKind); 5] = [
        ("--volume", &options.volumes, MountKind::Volume),
        ("--exclude-volume", &options.exclude_volumes, MountKind::Volume),
        ("--include-bind", &options.include_bind, MountKind::Bind),
        ("--shared-bind", &options.shared_bind, MountKind::Bind),
        ("--include-tmpfs", &options.include_tmpfs, MountKind::Tmpfs),
    ];
    for (flag, names, kind) in kinds {
        for name in names {
            if !mounts().any(|m| m.kind == kind && named(m, std::slice::from_ref(name))) {
                found.conflict(
                    "mount.no-such",
                    format!("{flag} {name}: the container has nothing of that kind by that name"),
                    "`docker inspect` shows its mounts; name one by its name or its path in the container",
                );
            }
        }
    }
}
