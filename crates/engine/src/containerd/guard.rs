//! What has to be true of the directory that containerd names for a container's layer before anything is read or written there.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use tranship_core::{ContainerId, EngineError};

use crate::cgroups;

/// Whether `upper` is the directory of one of the snapshots below `snapshots`, and no other.
pub(super) fn is_snapshot(snapshots: &Path, upper: &Path) -> bool {
    upper.strip_prefix(snapshots).is_ok_and(|inside| {
        let parts: Vec<_> = inside.iter().collect();
        matches!(parts.as_slice(), [number, fs]
            if *fs == "fs" && number.to_str().is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit())))
    })
}

/// Compares the directory that its keeper (containerd, Podman) names with the one that the kernel has mounted for a container that runs, from the `cgroup`
/// and the `mountinfo` of its process (proc(5)).
pub(crate) fn same_as_mounted(
    keeper: &str,
    container: &ContainerId,
    upper: &Path,
    cgroup: io::Result<String>,
    mountinfo: io::Result<String>,
) -> Result<(), EngineError> {
    let unsupported = |why: String| EngineError::Unsupported {
        message: format!(
            "{keeper} keeps the layer of {container} in {}, but {why}",
            upper.display()
        ),
    };
    let unseen = |why: &str| unsupported(format!("what is mounted for it cannot be looked at: {why}"));
    let cgroup = cgroup.map_err(|error| unseen(&error.to_string()))?;
    // The number may mean another process here, or by now.
    if !cgroups::are_of(&cgroup, container.as_str()) {
        return Err(unseen("its process is not seen from here"));
    }
    let mountinfo = mountinfo.map_err(|error| unseen(&error.to_string()))?;
    let mounted = upper_in(&mountinfo).ok_or_else(|| unseen("its root is not an overlay"))?;
    if mounted == upper {
        return Ok(());
    }
    Err(unsupported(format!("it is mounted from {}", mounted.display())))
}

/// The upper directory of the root of a process, from its `mountinfo`.
fn upper_in(mountinfo: &str) -> Option<PathBuf> {
    let line = mountinfo
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some("/"))?;
    let (_, system) = line.split_once(" - ")?;
    let mut words = system.split(' ');
    if words.next() != Some("overlay") {
        return None;
    }
    let options = words.nth(1)?;
    let upper = options
        .split(',')
        .find_map(|option| option.strip_prefix("upperdir="))?;
    Some(PathBuf::from(OsString::from_vec(unescaped(upper.as_bytes()))))
}

/// The kernel writes blanks, commas and backslashes of paths as three octal digits.
fn unescaped(mut text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    while let Some((first, rest)) = text.split_first() {
        let escaped = match (first, rest) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        text = if escaped.is_some() {
            rest.get(3..).unwrap_or_default()
        } else {
            rest
        };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "78 48 0:61 / / rw,relatime - overlay overlay rw,lowerdir=/r/2/fs:/r/1/fs,upperdir=/r/3/fs,workdir=/r/3/work";

    #[test]
    fn the_kernel_says_what_a_process_has_for_its_root() {
        assert_eq!(upper_in(LINE), Some("/r/3/fs".into()));
        let other = "79 78 0:62 / /tmp rw - overlay overlay rw,upperdir=/other";
        assert_eq!(upper_in(&format!("{LINE}\n{other}\n")), Some("/r/3/fs".into()));
        assert_eq!(upper_in(other), None);
        assert_eq!(upper_in("78 48 8:1 / / rw - ext4 /dev/sda1 rw"), None);
        assert_eq!(upper_in(""), None);
        let escaped = LINE.replace("/r/3/fs", r"/my\040disk\054\134x/\3\9/fs");
        assert_eq!(upper_in(&escaped), Some(r"/my disk,\x/\3\9/fs".into()));
    }

    #[test]
    fn only_the_directory_of_a_snapshot_is_one() {
        let is = |upper: &str| is_snapshot(Path::new("/r/snapshots"), Path::new(upper));
        assert!(is("/r/snapshots/3/fs"));
        for other in [
            "/elsewhere/snapshots/3/fs",
            "/r/snapshots",
            "/r/snapshots/fs",
            "/r/snapshots/3",
            "/r/snapshots/3/work",
            "/r/snapshots/x/fs",
            "/r/snapshots/3/fs/4",
            "/r/snapshots/../fs",
            "/r/snapshots/3/../4/fs",
            "/r/snapshots/../snapshots/3/fs",
            "/r/snapshotsx/3/fs",
            "r/snapshots/3/fs",
            "/",
        ] {
            assert!(!is(other), "{other}");
        }
    }

    #[test]
    fn a_layer_that_is_not_the_mounted_one_is_refused() {
        let id = ContainerId::new("a1".repeat(32)).unwrap();
        let cgroup = || Ok(format!("0::/docker/{id}\n"));
        let mounts = || Ok(LINE.to_owned());
        let unreadable = || Err(io::ErrorKind::PermissionDenied.into());
        let compared = |upper: &str, cgroup, mounts| {
            same_as_mounted("containerd", &id, Path::new(upper), cgroup, mounts)
        };
        assert!(compared("/r/3/fs", cgroup(), mounts()).is_ok());
        for (upper, cgroup, mounts) in [
            ("/r/4/fs", cgroup(), mounts()),
            ("/r/3/fs", Ok("0::/docker/other\n".into()), mounts()),
            ("/r/3/fs", Ok(String::new()), mounts()),
            ("/r/3/fs", unreadable(), mounts()),
            ("/r/3/fs", cgroup(), unreadable()),
            ("/r/3/fs", cgroup(), Ok(String::new())),
            (
                "/r/3/fs",
                cgroup(),
                Ok("78 48 8:1 / / rw - ext4 /dev/sda1 rw".into()),
            ),
        ] {
            let refused = compared(upper, cgroup, mounts).unwrap_err();
            assert!(matches!(refused, EngineError::Unsupported { .. }), "{refused}");
        }
    }
}
