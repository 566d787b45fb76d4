//! Whose a process is, by its control groups.

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

#[cfg(test)]
mod tests {
    use super::are_of;

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
}
