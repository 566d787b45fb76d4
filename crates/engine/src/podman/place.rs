//! Where the layer of a Podman container is, and whether Podman's files are the ones seen from here.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokio::net::UnixStream;
use tranship_core::{ContainerId, EngineError};

use crate::containerd::same_as_mounted;
use crate::docker::{DockerEngine, Identity};
use crate::json::{flag, number, text};

impl DockerEngine {
    /// The directory that a container wrote into: the one that Podman names, if it is one of its storage's, and the one that the kernel
    /// has mounted where the container runs. Anything else is refused: an archive of `/` has its volumes and the image in it as well.
    pub(crate) async fn podman_layer(
        &self,
        identity: &Identity,
        container: &ContainerId,
    ) -> Result<PathBuf, EngineError> {
        let unsupported = |why: String| EngineError::Unsupported {
            message: format!("the layer of {container} is not found among Podman's files: {why}"),
        };
        let mut inspect = self.libpod_document(container.as_str()).await?;
        let upper = PathBuf::from(text(&inspect, &["GraphDriver", "Data", "UpperDir"]));
        if text(&inspect, &["GraphDriver", "Name"]) != "overlay" || !is_layer(&identity.root, &upper) {
            return Err(unsupported(format!("it says {:?}", upper.display().to_string())));
        }
        if let Err(error) = self.compare_with_mount(container, &upper, &inspect) {
            // It may have ended meanwhile, or have started again.
            inspect = self.libpod_document(container.as_str()).await?;
            self.compare_with_mount(container, &upper, &inspect)
                .map_err(|_| error)?;
        }
        Ok(upper)
    }

    fn compare_with_mount(
        &self,
        container: &ContainerId,
        upper: &Path,
        inspect: &Value,
    ) -> Result<(), EngineError> {
        let process = number(inspect, &["State", "Pid"]);
        let runs = flag(inspect, &["State", "Running"]) || flag(inspect, &["State", "Paused"]);
        if !runs || process <= 0 {
            return Ok(());
        }
        let directory = self.root_prefix.join(format!("proc/{process}"));
        let read = |name: &str| std::fs::read_to_string(directory.join(name));
        same_as_mounted("podman", container, upper, read("cgroup"), read("mountinfo"))
    }

    /// Whether who listens at Podman's socket has the same file system as this process. A Podman without containers has nothing else by
    /// which its files could be told from those of another.
    pub(crate) async fn shares_mounts(&self) -> bool {
        let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
        let peer = peer_of(self.raw.socket()).await;
        let theirs = peer.and_then(|peer| namespace(&peer.to_string()));
        theirs.is_some() && theirs == namespace("self") && self.root_prefix == Path::new("/")
    }
}

/// The process that listens at a socket.
async fn peer_of(socket: &Path) -> Option<i32> {
    let stream = UnixStream::connect(socket).await.ok()?;
    stream.peer_cred().ok()?.pid()
}

/// Whether `upper` is where the storage below `root` keeps what one container wrote.
fn is_layer(root: &Path, upper: &Path) -> bool {
    upper.strip_prefix(root.join("overlay")).is_ok_and(|inside| {
        let parts: Vec<_> = inside.iter().collect();
        matches!(parts.as_slice(), [layer, diff]
            if *diff == "diff" && layer.len() == 64 && layer.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_layers_of_the_storage_are_layers() {
        let root = Path::new("/var/lib/containers/storage");
        let layer = "b3".repeat(32);
        let at = |path: String| is_layer(root, Path::new(&path));
        assert!(at(format!("/var/lib/containers/storage/overlay/{layer}/diff")));
        for other in [
            format!("/var/lib/containers/storage/overlay/{layer}/merged"),
            format!("/var/lib/containers/storage/overlay/{layer}/diff/etc"),
            format!("/var/lib/containers/storage/overlay/../{layer}/diff"),
            format!("/somewhere/overlay/{layer}/diff"),
            "/etc".to_owned(),
            String::new(),
        ] {
            assert!(!at(other.clone()), "{other}");
        }
    }

    #[tokio::test]
    async fn who_listens_is_known() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(peer_of(&path).await, i32::try_from(std::process::id()).ok());
        assert_eq!(peer_of(&directory.path().join("none")).await, None);
    }
}
