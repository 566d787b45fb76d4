//! Whose a process is, by its control groups, and which of them are a container's own.

/// Whether a process is one of the container's, by what its `/proc/PID/cgroup` says (cgroups(7)): an engine names a container's group after
/// its id, which nobody else has. Podman names that of conmon, which watches over the container from outside, after it as well
/// (`libpod-conmon-ID.scope`, with systemd): who kills the processes must leave it alone, since nobody else notices their end.
pub(crate) fn are_of(groups: &str, id: &str) -> bool {
    // The path is the rest: it may have colons in it.
    let paths = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths
        .flat_map(|path| path.split('/'))
        .any(|part| part.contains(id) && !part.contains("conmon"))
}

/// Which group a controller has a process in, by what its `/proc/PID/cgroup` says, as a path below where that hierarchy is mounted. The unified
/// hierarchy is that of no name.
pub(crate) fn group_in<'a>(groups: &'a str, controller: &str) -> Option<&'a str> {
    groups.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let path = path.trim_start_matches('/');
        controllers
            .split(',')
            .any(|name| name == controller)
            .then_some(path)
    })
}

/// What CRIU is told of control groups, by what `/proc/PID/cgroup` says of one of the container's processes: the unified hierarchy is left
/// out where the container has no group of its own in it, as it is beside those of version 1 unless systemd makes the groups. CRIU would
/// take the machine's whole tree for the container's: with some thousand groups a dump takes a second longer, and a restore makes them all
/// on the other machine.
pub(crate) fn own_hierarchies(groups: &str, id: &str) -> String {
    let mut unified = groups.lines().filter(|line| line.starts_with("0::"));
    if unified.any(|line| are_of(line, id)) {
        return String::new();
    }
    let names = groups.lines().filter_map(|line| line.split(':').nth(1));
    names
        .filter(|name| !name.is_empty() && !name.contains(char::is_whitespace))
        .map(|name| format!("cgroup-dump-controller {name}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{are_of, group_in, own_hierarchies};

    #[test]
    fn who_watches_a_container_is_none_of_it() {
        let (id, other) = ("d2".repeat(32), "7e".repeat(32));
        for own in [
            format!("0::/machine.slice/libpod-{id}.scope"),
            format!("0::/machine.slice/libpod-{id}.scope/container"),
            format!("0::/libpod_parent/libpod-{id}"),
            format!("0::/user.slice/x.service/libpod-payload-{id}"),
            format!("0::/docker/{id}"),
            format!("0::/system.slice/docker-{id}.scope"),
            format!("12:cpu,cpuacct:/\n1:name=systemd:/a:b/docker/{id}\n0::/\n"),
            // A container in the container, and who watches that.
            format!("0::/docker/{id}/machine.slice/libpod-conmon-{other}.scope"),
        ] {
            assert!(are_of(&own, &id), "{own}");
        }
        for strange in [
            format!("0::/machine.slice/libpod-conmon-{id}.scope"),
            format!("1:name=systemd:/machine.slice/libpod-conmon-{id}.scope\n0::/\n"),
            format!("0::/docker/{other}"),
            "0::/libpod_parent/conmon".to_owned(),
            format!("1:{id}:/"),
            String::new(),
        ] {
            assert!(!are_of(&strange, &id), "{strange}");
        }
    }

    #[test]
    fn a_controller_has_a_process_in_one_group() {
        let groups = "7:cpu,cpuacct:/x\n5:freezer:/docker/a:b\n0::/y\n";
        assert_eq!(group_in(groups, "cpuacct"), Some("x"));
        assert_eq!(group_in(groups, "freezer"), Some("docker/a:b"));
        assert_eq!(group_in(groups, ""), Some("y"));
        assert_eq!(group_in(groups, "acct"), None);
        assert_eq!(group_in("", ""), None);
    }

    #[test]
    fn the_unified_hierarchy_is_dumped_only_where_the_container_has_a_group_in_it() {
        let both = "3:cpu,cpuacct:/docker/d2\n1:name=systemd:/docker/d2\n0::/\n";
        assert_eq!(
            own_hierarchies(both, "d2"),
            "cgroup-dump-controller cpu,cpuacct\ncgroup-dump-controller name=systemd\n"
        );
        assert_eq!(own_hierarchies("0::/libpod/d2\n", "d2"), "");
        // Somebody has mounted one of version 1 on a machine with version 2, and systemd's groups are in all of them.
        let mounted = "2:net_cls:/\n0::/system.slice/docker-d2.scope\n";
        assert_eq!(own_hierarchies(mounted, "d2"), "");
    }
}
