//! Mounts that are no volumes: directories of the host, and memory.

use tranship_core::container::MountSpec;
use tranship_core::storage::{ElementAt, ElementRoute};

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
        let filled = self.arrival.filled_bind_sources.contains(source);
        let making = match (filled, self.options.volume_conflict) {
            (false, _) => Making::New,
            (true, VolumeConflict::Replace) => {
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

    pub(super) fn tmpfs(&mut self, mount: &MountSpec) {
        let at = &mount.destination;
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
                "use --mode warm, which pauses it",
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
