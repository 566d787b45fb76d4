//! Mounts that are no volumes: directories of the host, and memory.

use tranship_core::container::MountSpec;
use tranship_core::storage::{ElementAt, ElementRoute, VolumeUser};

use super::{ElementPlan, Making, Target, Work, comes_along, named};
use crate::options::{ModeRequest, VolumeConflict};

impl Work<'_> {
    pub(super) fn bind(&mut self, mount: &MountSpec) {
        let at = &mount.destination;
        let source = &mount.source;
        if comes_along(mount, self.options) {
            self.included_bind(mount);
            return;
        }
        let accepted = self.options.without_volumes || named(mount, &self.options.shared_bind);
        if !accepted {
            self.found.conflict(
                "bind.present",
                format!("{source} of the host is mounted at {at}; what it holds comes along only if you say so"),
                format!(
                    "--include-bind {at} carries it; --shared-bind {at} goes on with what the destination has at that path"
                ),
            );
            return;
        }
        self.carried.insert(at.clone(), source.clone());
        if self.arrival.missing_bind_sources.contains(source) {
            self.found.conflict(
                "bind.missing",
                format!("{source} is mounted at {at}, and does not exist at the destination"),
                "make it there first",
            );
        } else {
            self.found.warning(
                "bind.other",
                format!("at {at} it will see what {source} holds at the destination"),
                "",
            );
        }
    }

    fn included_bind(&mut self, mount: &MountSpec) {
        let at = &mount.destination;
        let source = &mount.source;
        if self.options.mode == ModeRequest::Stateless {
            self.found.conflict(
                "bind.stateless",
                format!("the bind mount at {at} cannot be carried while both instances run"),
                "use --mode cold or --mode warm",
            );
            return;
        }
        if self.report.bind_files.contains(source) {
            self.found.conflict(
                "bind.file",
                format!("{source}, mounted at {at}, is no directory, and only directories are carried"),
                format!("copy it there yourself, then --shared-bind {at} uses it"),
            );
            return;
        }
        let element_at = ElementAt::Bind { path: source.clone() };
        self.carried.insert(at.clone(), source.clone());
        if self.planned.elements.iter().any(|e| e.at == element_at) {
            return;
        }
        // Files of the system are not anybody's data to overwrite.
        let of_the_system = [
            "/", "/etc", "/usr", "/bin", "/sbin", "/lib", "/proc", "/sys", "/dev", "/run", "/boot", "/var",
        ];
        if of_the_system.contains(&source.as_str())
            || ["/proc/", "/sys/", "/dev/", "/run/"]
                .iter()
                .any(|p| source.starts_with(p))
        {
            self.found.conflict(
                "bind.system",
                format!("{source} belongs to the system of the host and is not carried"),
                format!("--shared-bind {at} uses the destination's own"),
            );
            return;
        }
        self.bind_users(mount);
        self.mounted_below(mount);
        let filled = self.arrival.filled_bind_sources.contains(source);
        let making = match (filled, self.options.volume_conflict) {
            (false, _) => Making::New,
            (true, VolumeConflict::Replace) => {
                self.bind_users_there(mount);
                self.found.warning(
                    "bind.replaced",
                    format!("what {source} holds at the destination is replaced"),
                    "",
                );
                Making::Replace
            }
            (true, _) => {
                self.found.conflict(
                    "bind.exists",
                    format!("{source} exists at the destination and is not empty"),
                    format!("--volume-conflict replace, or --shared-bind {at} to use it as it is"),
                );
                Making::New
            }
        };
        self.planned.elements.push(ElementPlan {
            at: element_at,
            target: Target::Bind {
                path: source.clone(),
                making,
            },
            path: at.clone(),
            volume: None,
            copied: true,
            route: ElementRoute::Tree,
            size: self.size(mount),
        });
    }

    /// Who goes on here with files that have gone, or writes into what is copied.
    fn bind_users(&mut self, mount: &MountSpec) {
        let at = &mount.destination;
        let others = self.report.bind_users.get(&mount.source).into_iter().flatten();
        let others = others.filter(|u| !self.reports.iter().any(|r| r.spec.id == u.container));
        let (running, stopped): (Vec<_>, Vec<_>) = others.partition(|u| u.running);
        let names = |users: Vec<&VolumeUser>| {
            let names: Vec<&str> = users.iter().map(|u| u.name.as_str()).collect();
            names.join(", ")
        };
        if !running.is_empty() {
            self.found.conflict(
                "bind.shared",
                format!(
                    "{}, mounted at {at}, is used by {} as well, which would go on here with what gets old",
                    mount.source,
                    names(running)
                ),
                "--with-dependents moves them together; or stop them first",
            );
        } else if !stopped.is_empty() {
            self.found.warning(
                "bind.shared",
                format!(
                    "{}, mounted at {at}, is mounted by {} as well, which is stopped and stays here with what gets old",
                    mount.source,
                    names(stopped)
                ),
                "move or remove the others yourself",
            );
        }
    }

    fn bind_users_there(&mut self, mount: &MountSpec) {
        let users = self.arrival.bind_users.get(&mount.source).into_iter().flatten();
        let users: Vec<&str> = users
            .filter(|u| u.running && !(self.options.replace && self.is_replaced(&u.name)))
            .map(|u| u.name.as_str())
            .collect();
        if !users.is_empty() {
            self.found.conflict(
                "bind.in-use",
                format!(
                    "{} at the destination is in use by {}, so what it holds cannot be replaced",
                    mount.source,
                    users.join(", ")
                ),
                "stop them first",
            );
        }
    }

    /// File systems that are mounted in what is to be carried would stay behind.
    pub(super) fn mounted_below(&mut self, mount: &MountSpec) {
        let below = self.report.mounted_below.get(&mount.destination);
        let excluded = |path: &str| {
            self.options.exclude.iter().any(|pattern| {
                let pattern = pattern.trim_matches('/');
                path == pattern
                    || path
                        .strip_prefix(pattern)
                        .is_some_and(|rest| rest.starts_with('/'))
            })
        };
        let left: Vec<&str> = below
            .into_iter()
            .flatten()
            .map(String::as_str)
            .filter(|path| !excluded(path))
            .collect();
        if let Some(first) = left.first() {
            self.found.conflict(
                "files.mounted-below",
                format!(
                    "other file systems are mounted in what is at {}, and would stay behind: {}",
                    mount.destination,
                    left.join(", ")
                ),
                format!("unmount them, or leave them behind with --exclude '/{first}' and take care of them yourself"),
            );
        }
    }

    pub(super) fn tmpfs(&mut self, mount: &MountSpec) {
        let at = &mount.destination;
        // It is in the dump of the memory.
        if self.options.mode == ModeRequest::Live {
            return;
        }
        if !comes_along(mount, self.options) {
            self.found.note(
                "mount.tmpfs",
                format!("the tmpfs at {at} comes empty, as after a restart; --include-tmpfs {at} carries it"),
            );
            return;
        }
        if self.options.mode != ModeRequest::Warm {
            self.found.conflict(
                "tmpfs.mode",
                format!("the tmpfs at {at} is gone once the container stops"),
                "use --mode warm, which pauses it, or --mode live",
            );
            return;
        }
        self.found.warning(
            "tmpfs.late",
            format!("the tmpfs at {at} is filled right after the start there; the program may see it empty for a moment"),
            "",
        );
        self.planned.elements.push(ElementPlan {
            at: ElementAt::Tmpfs {
                container: self.report.spec.id.clone(),
                path: at.clone(),
            },
            target: Target::Tmpfs {
                member: self.member,
                path: at.clone(),
            },
            path: at.clone(),
            volume: None,
            copied: true,
            route: ElementRoute::Tree,
            size: self.size(mount),
        });
    }
}
